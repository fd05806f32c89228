//! A DUT's downloads over HTTP: our gateway and nginx, the same files, the same client, in turns.
//!
//! ```text
//!   client's namespace           servers' namespace
//!   curl 10.77.0.9  ──cable──►   10.77.0.1 our gateway: a download in its cache, as kernels are; a local file; text of a job
//!                                10.77.0.2 nginx (sendfile)
//! ```
//! curl's own clock gives the figures, so that its start does not count. It reads every byte and throws it away, which costs more
//! than serving does: beyond some GB/s it is curl that is measured.
//!
//! `cargo bench -p executor --bench http [-- ROUNDS]`, as root.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use gateway::content::Content;
use gateway::namespace::{Exposure, Name, Origin, Protocol, Publication};
use gateway::net::Net;
use gateway::{Config, Gateway, Ports};
use tests::lab::Lab;
use tests::measure::{Samples, Table, machine};
use tests::peers::{self, CURL, NGINX};

/// Rounds unless the command line has a number: one takes a second.
const ROUNDS: usize = 15;

const OURS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const NGINX_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);

/// A large root file system's piece, and a boot script.
const LARGE_BYTES: usize = 64 << 20;
const SMALL_BYTES: usize = 1 << 10;

/// nginx, and three kinds of content of ours.
const CONTENDERS: usize = 4;

/// Requests of one curl over one connection, so that a script's figure is more than noise.
const SMALL_REQUESTS: usize = 200;

fn main() -> anyhow::Result<()> {
    let rounds = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(ROUNDS);
    peers::install(&[CURL, NGINX])?;
    println!("{}", machine());
    println!("peer: {}; client: {}\n", NGINX.title(), CURL.title());
    let folder = tempfile::Builder::new().prefix("wharf-bench-").tempdir()?;
    let root = folder.path().join("root");
    fs::create_dir(&root)?;
    fs::write(root.join("large"), pattern(LARGE_BYTES))?;
    fs::write(root.join("small"), pattern(SMALL_BYTES))?;
    let (servers, client) = (Lab::new()?, Lab::new()?);
    servers.cable(&[OURS, NGINX_ADDRESS], &client, &[CLIENT])?;
    let _nginx = peers::start_nginx(&servers, NGINX_ADDRESS, &root, folder.path())?;
    // One thread, as nginx has one process.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (_gateway, _publication) = runtime.block_on(start_gateway(&servers, &root, folder.path()))?;
    let bench = Bench { client, ours: format!("http://{OURS}"), nginx: format!("http://{NGINX_ADDRESS}") };
    bench.large(rounds)?;
    bench.small(rounds)
}

/// Bytes that no layer can compress away.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(length).collect()
}

/// Our servers, with the files published to the client as a job's are.
async fn start_gateway(lab: &Lab, root: &Path, folder: &Path) -> anyhow::Result<(Gateway, Publication<Content>)> {
    let config = Config {
        net: Net::namespace(lab.handle()?),
        address: OURS,
        prefix_length: 24,
        ports: Ports { dhcp: None, ..Ports::standard() },
        cache_directory: folder.join("cache"),
        ..Config::default()
    };
    let gateway = Gateway::start(config).await?;
    let publication = gateway.namespaces().publish(CLIENT.into(), Arc::new(|_| ()))?;
    for file in ["large", "small"] {
        let download = gateway.cache().fetch(&serve_once(root.join(file))?);
        download.wait_complete().await.context("a proxy in the environment? set no_proxy=127.0.0.1")?;
        let text = Content::Inline(fs::read(root.join(file))?.into());
        let kinds = [("file", Content::File(root.join(file))), ("text", text), ("url", Content::Url(download))];
        for (kind, content) in kinds {
            let name = Name::Exact(format!("/{kind}/{file}"));
            publication.put(Protocol::Http, name, content, Exposure::default(), Origin::Job, Instant::now());
        }
    }
    Ok((gateway, publication))
}

/// A server of one file on the host's loopback, from where the cache downloads it.
fn serve_once(file: std::path::PathBuf) -> anyhow::Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let url = format!("http://{}/file", listener.local_addr()?);
    std::thread::spawn(move || -> std::io::Result<()> {
        let (mut stream, _) = listener.accept()?;
        let content = fs::read(file)?;
        // One read: a request for a file fits a segment.
        let _ = stream.read(&mut [0; 4096])?;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", content.len());
        stream.write_all(&[head.as_bytes(), &content].concat())
    });
    Ok(url)
}

struct Bench {
    client: Lab,
    ours: String,
    nginx: String,
}

/// What curl measured.
struct Fetched {
    bytes: f64,
    total_s: f64,
}

impl Bench {
    /// Who serves, and under which address; the peer first.
    fn contenders(&self) -> [(&'static str, String); CONTENDERS] {
        let (ours, nginx) = (&self.ours, &self.nginx);
        [
            ("nginx", nginx.clone()),
            ("wharf, a cached url", format!("{ours}/url")),
            ("wharf, a local file", format!("{ours}/file")),
            ("wharf, text of a job", format!("{ours}/text")),
        ]
    }

    /// One large file.
    fn large(&self, rounds: usize) -> anyhow::Result<()> {
        let rates = self.take_turns(rounds, "large", 1, |fetched| fetched.bytes / 1e6 / fetched.total_s)?;
        println!("One file of 64 MiB, one connection, {rounds} rounds\n\n{}", self.draw("MB/s", 0, &rates));
        Ok(())
    }

    /// Many small files over one connection.
    fn small(&self, rounds: usize) -> anyhow::Result<()> {
        let per_request = |fetched: &Fetched| fetched.total_s / SMALL_REQUESTS as f64 * 1e6;
        let times = self.take_turns(rounds, "small", SMALL_REQUESTS, per_request)?;
        let table = self.draw("µs a request", 1, &times);
        println!("1 KiB, {SMALL_REQUESTS} requests over one connection, {rounds} rounds\n\n{table}");
        Ok(())
    }

    /// All contenders, once a round; per contender what `figure` makes of it.
    fn take_turns(
        &self,
        rounds: usize,
        file: &str,
        requests: usize,
        figure: impl Fn(&Fetched) -> f64,
    ) -> anyhow::Result<Vec<Samples>> {
        let mut samples = vec![Samples::default(); CONTENDERS];
        let expected = if file == "large" { LARGE_BYTES } else { SMALL_BYTES } * requests;
        for round in 0..rounds {
            for turn in 0..CONTENDERS {
                // Each round begins with another one: nobody is always behind the same neighbour.
                let index = (round + turn) % CONTENDERS;
                let url = format!("{}/{file}", self.contenders()[index].1);
                let fetched = self.fetch(&vec![url; requests])?;
                ensure!(fetched.bytes == expected as f64, "{} of {expected} bytes came", fetched.bytes);
                samples[index].push(figure(&fetched));
            }
        }
        Ok(samples)
    }

    fn draw(&self, unit: &str, decimals: usize, samples: &[Samples]) -> String {
        let mut table = Table::new(&["server", unit, "range", "ratio to nginx"]);
        for ((name, _), own) in self.contenders().iter().zip(samples) {
            let (low, high) = own.range();
            let median = own.median();
            let ratio = own.ratios(&samples[0]).median();
            let cells = [
                format!("{median:.decimals$}"),
                format!("{low:.decimals$} to {high:.decimals$}"),
                format!("{ratio:.2}"),
            ];
            table.row([(*name).to_owned()].into_iter().chain(cells).collect());
        }
        table.draw()
    }

    /// Fetches all of these in one go; the sums.
    fn fetch(&self, urls: &[String]) -> anyhow::Result<Fetched> {
        let mut curl = self.client.command("curl")?;
        curl.args(["--silent", "--show-error", "--fail", "--noproxy", "*"]);
        curl.args(["--write-out", "%{stderr}%{size_download} %{time_total}\n"]);
        for url in urls {
            curl.args(["--output", "/dev/null", url]);
        }
        let output = curl.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "curl failed: {said}");
        let mut sum = Fetched { bytes: 0.0, total_s: 0.0 };
        for line in said.lines() {
            let figures: Vec<f64> = line.split(' ').filter_map(|figure| figure.parse().ok()).collect();
            let [bytes, total_s] = figures[..] else { anyhow::bail!("curl said `{line}`") };
            sum.bytes += bytes;
            sum.total_s += total_s;
        }
        Ok(sum)
    }
}
