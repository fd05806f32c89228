//! A DUT's disk over NBD: our gateway, nbdkit and qemu-nbd, each with writes kept beside the same image, the same clients, in turns.
//!
//! ```text
//!   client's namespace                servers' namespace
//!   nbdcopy, fio 10.77.0.9 ──cable──► 10.77.0.1 our gateway   10.77.0.2 nbdkit (cow over file)   10.77.0.3 qemu-nbd (snapshot)
//! ```
//! | figure      | client                                | what it does                                       |
//! |-------------|---------------------------------------|----------------------------------------------------|
//! | read        | nbdcopy, four connections             | the whole image, to nowhere                        |
//! | write       | nbdcopy, four connections             | a file of the image's size, over the whole disk    |
//! | random read, write | fio, 16 requests in flight     | 4 KiB each, for two seconds                        |
//!
//! The image is in the page cache, so that servers are measured and not a disk. `cargo bench -p executor --bench nbd [-- ROUNDS]`, as root.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use gateway::content::Content;
use gateway::content::disk::{self, Base, Disk, Mode};
use gateway::namespace::{Exposure, Name, Origin, Protocol, Publication};
use gateway::net::Net;
use gateway::{Config, Gateway, Ports};
use tests::lab::Lab;
use tests::measure::{Samples, Table, machine};
use tests::peers::{self, FIO, NBDCOPY, NBDKIT, QEMU_NBD};

/// Rounds unless the command line has a number: one takes half a minute.
const ROUNDS: usize = 7;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);

/// Who serves. The first is the peer of the ratios.
const SERVERS: [(&str, Ipv4Addr); 3] = [
    ("nbdkit", Ipv4Addr::new(10, 77, 0, 2)),
    ("qemu-nbd", Ipv4Addr::new(10, 77, 0, 3)),
    ("wharf", Ipv4Addr::new(10, 77, 0, 1)),
];

/// A root file system, small enough to stay in memory beside what is written.
const IMAGE_BYTES: usize = 256 << 20;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Read,
    Write,
    Random(&'static str),
}

fn main() -> anyhow::Result<()> {
    let rounds = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(ROUNDS);
    peers::install(&[FIO, NBDCOPY, NBDKIT, QEMU_NBD])?;
    println!("{}", machine());
    println!("peers: {}, {}; clients: {}, {}\n", NBDKIT.title(), QEMU_NBD.title(), NBDCOPY.title(), FIO.title());
    let folder = tempfile::Builder::new().prefix("wharf-bench-").tempdir()?;
    let (image, other) = (folder.path().join("image"), folder.path().join("other"));
    fs::write(&image, pattern(1, IMAGE_BYTES))?;
    fs::write(&other, pattern(2, IMAGE_BYTES))?;
    let (servers, client) = (Lab::new()?, Lab::new()?);
    servers.cable(&SERVERS.map(|(_, address)| address), &client, &[CLIENT])?;
    let [nbdkit, qemu_nbd, ours] = SERVERS.map(|(_, address)| address);
    let _running = [
        peers::start_nbdkit(&servers, nbdkit, &image, folder.path())?,
        peers::start_qemu_nbd(&servers, qemu_nbd, &image, folder.path())?,
    ];
    // Two threads, as the machine has cores; nbdkit starts one per request.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (_gateway, _publication, disk) = runtime.block_on(start_gateway(&servers, ours, &image, folder.path()))?;
    making(&runtime, folder.path())?;
    let bench = Bench { client, other };
    bench.run("Read, MB/s", Way::Read, rounds)?;
    bench.run("Random reads of 4 KiB, a second", Way::Random("randread"), rounds)?;
    bench.run("Random writes of 4 KiB, a second", Way::Random("randwrite"), rounds)?;
    bench.run("Write, MB/s", Way::Write, rounds)?;
    println!("{} MiB in the layer at the end", disk.layer_bytes() >> 20);
    Ok(())
}

/// Bytes that no layer can compress away.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64 ^ seed;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(length).collect()
}

/// How long it takes to make a disk of 20 GiB, and to take it back to its beginning.
fn making(runtime: &tokio::runtime::Runtime, folder: &Path) -> anyhow::Result<()> {
    let (mut made, mut reset) = (Samples::default(), Samples::default());
    for _ in 0..100 {
        let config = disk::Config {
            base: Base::Zeros { size_bytes: 20 << 30 },
            mode: Mode::CopyOnWrite,
            directory: folder.to_owned(),
            attachments_max: 4,
        };
        let begin = Instant::now();
        let disk = runtime.block_on(Disk::make(config))?;
        made.push(begin.elapsed().as_secs_f64() * 1e6);
        let begin = Instant::now();
        runtime.block_on(disk.reset())?;
        reset.push(begin.elapsed().as_secs_f64() * 1e6);
        ensure!(disk.layer_bytes() == 0, "a new disk takes {} bytes", disk.layer_bytes());
    }
    println!(
        "A disk of 20 GiB is made in {:.0} µs and reset in {:.0} µs (medians of 100)\n",
        made.median(),
        reset.median()
    );
    Ok(())
}

async fn start_gateway(
    lab: &Lab,
    address: Ipv4Addr,
    image: &Path,
    folder: &Path,
) -> anyhow::Result<(Gateway, Publication<Content>, Disk)> {
    let config = Config {
        net: Net::namespace(lab.handle()?),
        address,
        prefix_length: 24,
        ports: Ports { dhcp: None, http: None, tftp: None, ..Ports::standard() },
        cache_directory: folder.join("cache"),
        ..Config::default()
    };
    let gateway = Gateway::start(config).await?;
    let publication = gateway.namespaces().publish(CLIENT.into(), Arc::new(|_| ()))?;
    let config = disk::Config {
        base: Base::Image(Content::File(image.to_owned())),
        mode: Mode::CopyOnWrite,
        directory: folder.join("layers"),
        attachments_max: 8,
    };
    let disk = Disk::make(config).await?;
    let (name, content) = (Name::Exact("disk".to_owned()), Content::Disk(disk.clone()));
    publication.put(Protocol::Nbd, name, content, Exposure::default(), Origin::Job, Instant::now());
    Ok((gateway, publication, disk))
}

struct Bench {
    client: Lab,
    other: std::path::PathBuf,
}

impl Bench {
    /// All servers, once a round; each round begins with another one.
    fn run(&self, title: &str, way: Way, rounds: usize) -> anyhow::Result<()> {
        let mut samples = SERVERS.map(|_| Samples::default());
        for round in 0..rounds {
            for turn in 0..SERVERS.len() {
                let index = (round + turn) % SERVERS.len();
                let (name, address) = SERVERS[index];
                let url = format!("nbd://{address}/{}", if name == "wharf" { "disk" } else { "" });
                samples[index].push(self.once(way, &url).with_context(|| format!("{name}: {way:?}"))?);
            }
        }
        let mut table = Table::new(&["server", "median", "range", "ratio to nbdkit"]);
        for ((name, _), own) in SERVERS.iter().zip(&samples) {
            let (low, high) = own.range();
            let ratio = own.ratios(&samples[0]).median();
            let cells = [format!("{:.0}", own.median()), format!("{low:.0} to {high:.0}"), format!("{ratio:.2}")];
            table.row([(*name).to_owned()].into_iter().chain(cells).collect());
        }
        println!("{title}, {rounds} rounds\n\n{}", table.draw());
        Ok(())
    }

    fn once(&self, way: Way, url: &str) -> anyhow::Result<f64> {
        let other = self.other.display().to_string();
        match way {
            Way::Read => self.copy(url, "null:"),
            Way::Write => self.copy(&other, url),
            Way::Random(mode) => self.fio(url, mode),
        }
    }

    fn copy(&self, from: &str, to: &str) -> anyhow::Result<f64> {
        let mut command = self.client.command("nbdcopy")?;
        command.args(["--connections=4", from, to]);
        let begin = Instant::now();
        let output = command.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(IMAGE_BYTES as f64 / 1e6 / begin.elapsed().as_secs_f64())
    }

    fn fio(&self, url: &str, mode: &str) -> anyhow::Result<f64> {
        let mut command = self.client.command("fio")?;
        command.args(["--name=nbd", "--ioengine=nbd", "--bs=4k", "--iodepth=16", "--time_based", "--runtime=2"]);
        command.args(["--output-format=json", "--norandommap", &format!("--uri={url}"), &format!("--rw={mode}")]);
        command.arg(format!("--size={IMAGE_BYTES}"));
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let json = said.find('{').map(|start| &said[start..]).context("fio printed no figures")?;
        let figures: serde_json::Value = serde_json::from_str(json)?;
        let part = if mode == "randread" { "read" } else { "write" };
        figures["jobs"][0][part]["iops"].as_f64().context("fio printed no IOPS")
    }
}
