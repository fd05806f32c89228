//! A DUT's downloads over TFTP: our gateway, tftpd-hpa, dnsmasq and atftpd, the same files, the same clients, in turns.
//!
//! ```text
//!   client's namespace           servers' namespace
//!   curl, atftp     ──cable──►   10.77.0.1 our gateway    10.77.0.2 tftpd-hpa    10.77.0.3 dnsmasq    10.77.0.4 atftpd
//!   10.77.0.9
//! ```
//! | round trip | client | asks for                                                          |
//! |------------|--------|-------------------------------------------------------------------|
//! | 512        | curl   | blksize 512, no window: what the oldest firmware does (RFC 1350)   |
//! | 1468       | curl   | blksize 1468 (RFC 2348), no window: what iPXE and U-Boot do        |
//! | window 16  | atftp  | blksize 1468, windowsize 16 (RFC 7440); not all servers grant it   |
//!
//! `cargo bench -p executor --bench tftp [-- ROUNDS]`, as root.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::ensure;
use gateway::content::Content;
use gateway::namespace::{Exposure, Name, Origin, Protocol, Publication};
use gateway::net::Net;
use gateway::{Config, Gateway, Ports};
use tests::lab::Lab;
use tests::measure::{Samples, Table, machine};
use tests::peers::{self, ATFTP, ATFTPD, CURL, DNSMASQ, TFTPD_HPA};

/// Rounds unless the command line has a number: one takes some seconds.
const ROUNDS: usize = 9;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);

/// Who serves, in the order of the last byte of their addresses. The first is the peer of the ratios.
const SERVERS: [(&str, Ipv4Addr); 4] = [
    ("tftpd-hpa", Ipv4Addr::new(10, 77, 0, 2)),
    ("dnsmasq", Ipv4Addr::new(10, 77, 0, 3)),
    ("atftpd", Ipv4Addr::new(10, 77, 0, 4)),
    ("wharf", Ipv4Addr::new(10, 77, 0, 1)),
];

/// As a kernel; below 65536 blocks of 512 bytes, so that no client's block number wraps.
const FILE_BYTES: usize = 16 << 20;

/// How a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// curl, this `blksize`, no window.
    Plain(usize),
    /// atftp, blksize 1468 with this `windowsize`.
    Windows(usize),
}

fn main() -> anyhow::Result<()> {
    let rounds = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(ROUNDS);
    peers::install(&[ATFTP, CURL, DNSMASQ, TFTPD_HPA])?;
    let folder = tempfile::Builder::new().prefix("wharf-bench-").tempdir()?;
    let unpacked = peers::unpack(ATFTPD, folder.path())?;
    println!("{}", machine());
    println!("peers: {}, {}, {}", TFTPD_HPA.title(), DNSMASQ.title(), unpacked.title());
    println!("clients: {}, {}\n", CURL.title(), ATFTP.title());
    let root = folder.path().join("root");
    fs::create_dir(&root)?;
    fs::write(root.join("file"), vec![0x5a; FILE_BYTES])?;
    let (servers, client) = (Lab::new()?, Lab::new()?);
    servers.cable(&SERVERS.map(|(_, address)| address), &client, &[CLIENT])?;
    let [hpa, dnsmasq, atftpd, ours] = SERVERS.map(|(_, address)| address);
    let _running = [
        peers::start_tftpd_hpa(&servers, hpa, &root, folder.path())?,
        peers::start_dnsmasq_for_tftp(&servers, dnsmasq, &root, folder.path())?,
        peers::start_atftpd(&servers, &unpacked, atftpd, &root, folder.path())?,
    ];
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (_gateway, _publication) = runtime.block_on(start_gateway(&servers, ours, &root, folder.path()))?;
    let bench = Bench { client, taken: folder.path().join("taken") };
    for way in [Way::Plain(512), Way::Plain(1468), Way::Windows(16)] {
        bench.run(way, rounds)?;
    }
    Ok(())
}

/// Our servers, with the file published to the client as a job's are.
async fn start_gateway(
    lab: &Lab,
    address: Ipv4Addr,
    root: &Path,
    folder: &Path,
) -> anyhow::Result<(Gateway, Publication<Content>)> {
    let config = Config {
        net: Net::namespace(lab.handle()?),
        address,
        prefix_length: 24,
        ports: Ports { dhcp: None, http: None, ..Ports::standard() },
        cache_directory: folder.join("cache"),
        ..Config::default()
    };
    let gateway = Gateway::start(config).await?;
    let publication = gateway.namespaces().publish(CLIENT.into(), Arc::new(|_| ()))?;
    let (name, content) = (Name::Exact("/file".to_owned()), Content::File(root.join("file")));
    publication.put(Protocol::Tftp, name, content, Exposure::default(), Origin::Job, Instant::now());
    Ok((gateway, publication))
}

struct Bench {
    client: Lab,
    taken: PathBuf,
}

impl Bench {
    fn run(&self, way: Way, rounds: usize) -> anyhow::Result<()> {
        let mut rates = vec![Samples::default(); SERVERS.len()];
        for round in 0..rounds {
            for turn in 0..SERVERS.len() {
                // Each round begins with another one: nobody is always behind the same neighbour.
                let index = (round + turn) % SERVERS.len();
                let seconds = self.fetch(way, SERVERS[index].1)?;
                rates[index].push(FILE_BYTES as f64 / 1e6 / seconds);
            }
        }
        let title = match way {
            Way::Plain(blksize) => format!("curl, blksize {blksize}, no window"),
            Way::Windows(windowsize) => format!("atftp, blksize 1468, windowsize {windowsize}"),
        };
        println!("{title}: one file of 16 MiB, {rounds} rounds\n");
        let mut table = Table::new(&["server", "MB/s", "range", "ratio to tftpd-hpa"]);
        for (index, (name, _)) in SERVERS.iter().enumerate() {
            let (low, high) = rates[index].range();
            table.row(vec![
                (*name).to_owned(),
                format!("{:.1}", rates[index].median()),
                format!("{low:.1} to {high:.1}"),
                format!("{:.2}", rates[index].ratios(&rates[0]).median()),
            ]);
        }
        println!("{}", table.draw());
        Ok(())
    }

    /// Fetches the file once; seconds by the clock of this process.
    fn fetch(&self, way: Way, server: Ipv4Addr) -> anyhow::Result<f64> {
        let mut command = match way {
            Way::Plain(blksize) => {
                let mut curl = self.client.command("curl")?;
                curl.args(["--silent", "--show-error", "--noproxy", "*", "--tftp-blksize", &blksize.to_string()]);
                curl.arg("--output").arg(&self.taken).arg(format!("tftp://{server}/file"));
                curl
            }
            Way::Windows(windowsize) => {
                let mut atftp = self.client.command("atftp")?;
                atftp.args(["--option", "blksize 1468", "--option", &format!("windowsize {windowsize}")]);
                atftp.args(["--get", "--remote-file", "file", "--local-file"]).arg(&self.taken).arg(server.to_string());
                atftp
            }
        };
        let _ = fs::remove_file(&self.taken);
        let start = Instant::now();
        let output = command.output()?;
        let seconds = start.elapsed().as_secs_f64();
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the client failed at {server}: {said}");
        let taken = fs::metadata(&self.taken)?.len();
        ensure!(taken == FILE_BYTES as u64, "{taken} bytes came from {server}: {said}");
        Ok(seconds)
    }
}
