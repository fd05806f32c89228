//! Whether an export is really to be had: connects as a DUT would, before there is one, and compares what comes with the disk.
//!
//! ```text
//!  prove ─► connect in the farm's network ─► TLS, if it wants it ─► EXPORT_NAME key/name ─► size, read-only as expected? ─► first bytes as on the disk?
//! ```
//! The client is the `nbd` crate, which shares no line with our server: a mistake that both make is unlikely. It attaches like anyone,
//! so prove before `begin_boot`, which starts the counters again.

use core::net::SocketAddr;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::message::{GREETING, client_flags, option, reply};
use crate::content::disk::{Disk, DiskError, Mode, Piece};
use crate::namespace::NamespaceKey;
use crate::net::Net;
use crate::tls::Tls;

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

/// Attaches `name` of the namespace behind `key` at `address`, over `tls` if there is some, and compares its beginning with `disk`.
pub async fn prove(
    net: &Net,
    address: SocketAddr,
    tls: Option<&Tls>,
    key: &NamespaceKey,
    name: &str,
    disk: &Disk,
) -> Result<(), ProofError> {
    let differs = |what: String| ProofError::Differs { name: name.to_owned(), what };
    let expected = beginning(disk).await.map_err(|source| ProofError::Disk { name: name.to_owned(), source })?;
    let (net, export, length) = (net.clone(), format!("{}/{name}", key.as_str()), expected.len());
    let client = tls.map(Tls::client_config);
    let attached = tokio::task::spawn_blocking(move || attach(&net, address, client, &export, length)).await;
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

fn attach(
    net: &Net,
    address: SocketAddr,
    client: Option<Arc<ClientConfig>>,
    export: &str,
    length: usize,
) -> io::Result<Seen> {
    let mut stream = net.run(|| TcpStream::connect_timeout(&address, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let Some(client) = client else {
        let seen = look(&mut stream, export, length)?;
        leave(&mut stream)?;
        return Ok(seen);
    };
    start_tls(&mut stream)?;
    let session = ClientConnection::new(client, ServerName::from(address.ip())).map_err(io::Error::other)?;
    let mut again = Greeted { greeting: &GREETING, flags_bytes: 4, stream: StreamOwned::new(session, stream) };
    let seen = look(&mut again, export, length)?;
    let Greeted { stream: StreamOwned { conn: mut session, sock: mut stream }, .. } = again;
    session.send_close_notify();
    session.write_tls(&mut stream)?;
    leave(&mut stream)?;
    Ok(seen)
}

fn look(mut stream: impl Read + Write, export: &str, length: usize) -> io::Result<Seen> {
    let found = nbd::client::handshake(&mut stream, export.as_bytes())?;
    let mut bytes = vec![0; length];
    nbd::client::NbdClient::new(&mut stream, &found).read_exact(&mut bytes)?;
    Ok(Seen { size: found.size, is_read_only: found.readonly, bytes })
}

/// The server closes when it has let go of the disk: the DUT may be the only one that it takes.
fn leave(stream: &mut TcpStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new()).map(|_| ())
}

/// Greeting, flags and STARTTLS, which the client's crate does not know.
fn start_tls(stream: &mut TcpStream) -> io::Result<()> {
    stream.read_exact(&mut [0; GREETING.len()])?;
    let (flags, number) = (client_flags::FIXED_NEWSTYLE.to_be_bytes(), option::STARTTLS.to_be_bytes());
    stream.write_all(&[&flags[..], b"IHAVEOPT", &number, &[0; 4]].concat())?;
    // Magic, option, reply's type, length: with nothing after it, when it is an ACK.
    let mut answer = [0; 20];
    stream.read_exact(&mut answer)?;
    if answer[12..16] == reply::ACK.to_be_bytes() { Ok(()) } else { Err(io::Error::other("STARTTLS was refused")) }
}

/// A stream whose greeting and flags have gone by already, for a client that begins with them.
struct Greeted<S> {
    greeting: &'static [u8],
    flags_bytes: usize,
    stream: S,
}

impl<S: Read> Read for Greeted<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.greeting.is_empty() { self.stream.read(buffer) } else { self.greeting.read(buffer) }
    }
}

impl<S: Write> Write for Greeted<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.flags_bytes == 0 {
            return self.stream.write(bytes);
        }
        let dropped = bytes.len().min(self.flags_bytes);
        self.flags_bytes -= dropped;
        Ok(dropped)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
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
