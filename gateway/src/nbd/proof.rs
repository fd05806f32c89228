//! Whether an export is really to be had: connects as a DUT would, before there is one, and compares what comes with the disk.
//!
//! ```text
//!  prove ─► connect in the farm's network ─► EXPORT_NAME key/name ─► size, read-only as expected? ─► first bytes as on the disk?
//! ```
//! The client is the `nbd` crate, which shares no line with our server: a mistake that both make is unlikely. It attaches like anyone,
//! so prove before `begin_boot`, which starts the counters again.

use core::net::SocketAddr;
use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::content::disk::{Disk, DiskError, Mode, Piece};
use crate::namespace::NamespaceKey;
use crate::net::Net;

/// 10 s for each step: longer than a loaded farm needs, shorter than anyone waits for a machine to switch on.
const PATIENCE: Duration = Duration::from_secs(10);
/// What is compared: where boot loaders, partition tables and file systems have their marks.
const COMPARED_BYTES: u64 = 64 * 1024;

/// Why an export is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The server cannot be reached, or refuses the export.
    #[error("export `{name}` cannot be attached at {address}: {source}")]
    Attach {
        /// The export.
        name: String,
        /// The server.
        address: SocketAddr,
        /// What went wrong.
        source: io::Error,
    },
    /// The export is attached and says something else than the disk.
    #[error("export `{name}` is not its disk: {what}")]
    Differs {
        /// The export.
        name: String,
        /// What is different.
        what: String,
    },
    /// The disk itself cannot be read.
    #[error("export `{name}`: {source}")]
    Disk {
        /// The export.
        name: String,
        /// Why not.
        source: DiskError,
    },
}

/// Attaches `name` of the namespace behind `key` at `address`, and compares its beginning with `disk`.
pub async fn prove(
    net: &Net,
    address: SocketAddr,
    key: &NamespaceKey,
    name: &str,
    disk: &Disk,
) -> Result<(), ProofError> {
    let differs = |what: String| ProofError::Differs { name: name.to_owned(), what };
    let expected = beginning(disk).await.map_err(|source| ProofError::Disk { name: name.to_owned(), source })?;
    let (net, export, length) = (net.clone(), format!("{}/{name}", key.as_str()), expected.len());
    let attached = tokio::task::spawn_blocking(move || attach(&net, address, &export, length)).await;
    let seen = attached.unwrap_or_else(|error| Err(io::Error::other(error)));
    let seen = seen.map_err(|source| ProofError::Attach { name: name.to_owned(), address, source })?;
    if seen.size != disk.size() {
        return Err(differs(format!("{} bytes long instead of {}", seen.size, disk.size())));
    }
    if seen.is_read_only != (disk.mode() == Mode::ReadOnly) {
        return Err(differs(format!("read-only is {}, and the disk is {:?}", seen.is_read_only, disk.mode())));
    }
    match seen.bytes.iter().zip(&expected).position(|(seen, expected)| seen != expected) {
        Some(at) => Err(differs(format!("byte {at} is another"))),
        None => Ok(()),
    }
}

struct Seen {
    size: u64,
    is_read_only: bool,
    bytes: Vec<u8>,
}

fn attach(net: &Net, address: SocketAddr, export: &str, length: usize) -> io::Result<Seen> {
    let mut stream = net.run(|| TcpStream::connect_timeout(&address, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let found = nbd::client::handshake(&mut stream, export.as_bytes())?;
    let mut bytes = vec![0; length];
    nbd::client::NbdClient::new(&mut stream, &found).read_exact(&mut bytes)?;
    // The server closes when it has let go of the disk: the DUT may be the only one that it takes.
    stream.shutdown(Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(Seen { size: found.size, is_read_only: found.readonly, bytes })
}

async fn beginning(disk: &Disk) -> Result<Vec<u8>, DiskError> {
    let mut bytes = Vec::new();
    for piece in disk.view().read(0, COMPARED_BYTES).await? {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(&data),
            Piece::Zeros(length) => bytes.resize(bytes.len() + length as usize, 0),
        }
    }
    Ok(bytes)
}
