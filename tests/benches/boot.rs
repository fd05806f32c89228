//! The same machine boots the same Linux, once from `wharf serve`, once from dnsmasq and nginx, in turns.
//!
//! ```text
//!   wharf serve, job ──► power on ─► SeaBIOS ─► iPXE ─► DHCP ─► script, kernel, initramfs ─► init ─► `reboot: Power down`
//!   dnsmasq + nginx  ──► spawn    ─►    …   the very words that started wharf's QEMU   …  ─►         `reboot: Power down`
//! ```
//! The peer's machine is started with the command line of the one that wharf has just run (read from /proc), so it cannot be
//! another. Ours is timed from the job's `power_cycling` event, before the boot is published and the outlet is switched; the
//! peer's from the spawn. Both end when the console's last line has arrived.
//!
//! `cargo bench -p executor --bench boot [-- ROUNDS]`, as root.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use tests::bench::Bench;
use tests::lab::{Lab, Running};
use tests::measure::{Samples, Table, machine};
use tests::peers::{self, Client, DNSMASQ, NGINX};

/// Rounds unless the command line has a number: a median of seven is steady within some percent.
const ROUNDS: usize = 7;

/// A boot takes ten seconds; a machine busy with other work may take five times that.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 11);
const MAC: &str = "52:54:00:77:00:01";

/// What a boot says on its way, in this order; the last one ends it.
const MILESTONES: &[(&str, &str)] = &[
    ("iPXE starts", "iPXE initialising"),
    ("iPXE asks DHCP", "Configuring (net0"),
    ("kernel loads", "_/job/kernel..."),
    ("init starts", "wharf: init started"),
    ("network is up", "wharf: network "),
    ("job is done", "wharf: job done"),
    ("power is down", "reboot: Power down"),
];

const FARM: &str = "\
name: bench
network:
  private: {address: 10.77.0.1/24}
duts:
  - base_name: bios
    mac: 52:54:00:77:00:01
    address: 10.77.0.11
    tags: [bench]
    machine:
      qemu: {firmware: bios}
";

const JOB: &str = r#"
version: 1
target:
  tags: [bench]
timeouts:
  overall: {minutes: 2}
console_patterns:
  session_end: {regex: 'reboot: Power down\r?$'}
  job_success: {regex: '^wharf: job done\r?$'}
deployment:
  start:
    kernel:
      url: "{{ images_url }}/kernel"
      cmdline: console=ttyS0,115200 quiet panic=-1 wharf.url={{ job.http.url }}/greeting wharf.tftp={{ job.tftp.url }}/greeting
    initramfs:
      url: "{{ images_url }}/initramfs"
    storage:
      http: [{path: /greeting, data: "ahoy\n"}]
      tftp: [{path: /greeting, data: "ahoy\n"}]
"#;

/// The peer's boot script: what ours does on a BIOS, with the same names.
const SCRIPT: &str = "\
#!ipxe
kernel --name kernel http://10.77.0.1/_/job/kernel console=ttyS0,115200 quiet panic=-1 wharf.url=http://10.77.0.1/greeting wharf.tftp=tftp://10.77.0.1/greeting
initrd --name initramfs http://10.77.0.1/_/job/initramfs
boot
";

fn main() -> anyhow::Result<()> {
    let rounds = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(ROUNDS);
    peers::install(&[DNSMASQ, NGINX])?;
    println!("{}", machine());
    println!("peers: {}, {}\n", DNSMASQ.title(), NGINX.title());
    // Sockets live in it: a path of theirs has at most 107 bytes.
    let folder = tempfile::Builder::new().prefix("wharf-bench-").tempdir_in("/tmp")?;
    let wharf = Wharf(Bench::start(env!("CARGO_BIN_EXE_wharf"), FARM));
    let mut peer = None;
    let (mut ours, mut theirs) = (Boots::default(), Boots::default());
    // One boot to fill caches, of the host's disk and of wharf, which is not counted.
    let warm = wharf.boot()?;
    for round in 1..=rounds {
        ours.add(&wharf.boot()?);
        if peer.is_none() {
            peer = Some(Peer::start(folder.path(), &wharf.0, &warm)?);
        }
        theirs.add(&peer.as_ref().context("it was just started")?.boot()?);
        eprintln!("round {round}/{rounds}: {}", last(&ours, &theirs));
    }
    report(&ours, &theirs);
    Ok(())
}

/// Seconds from power-on, by milestone.
type Times = BTreeMap<&'static str, f64>;

/// One boot of ours, with what only we have.
struct Boot {
    times: Times,
    words: Vec<String>,
}

/// The figures of all rounds, by milestone.
#[derive(Default)]
struct Boots(BTreeMap<&'static str, Samples>);

impl Boots {
    fn add(&mut self, boot: &Boot) {
        for (name, seconds) in &boot.times {
            self.0.entry(name).or_default().push(*seconds);
        }
    }

    fn samples(&self, milestone: &str) -> Samples {
        self.0.get(milestone).cloned().unwrap_or_default()
    }
}

fn last(ours: &Boots, theirs: &Boots) -> String {
    let end = MILESTONES[MILESTONES.len() - 1].0;
    let figure = |boots: &Boots| boots.samples(end).figures().last().copied().unwrap_or(f64::NAN);
    format!("wharf {:.2} s, dnsmasq and nginx {:.2} s", figure(ours), figure(theirs))
}

fn report(ours: &Boots, theirs: &Boots) {
    let mut table = Table::new(&["since power-on", "wharf s", "range", "dnsmasq + nginx s", "range", "ratio"]);
    for (name, _) in MILESTONES {
        let (own, peer) = (ours.samples(name), theirs.samples(name));
        let range = |samples: &Samples| format!("{:.2} to {:.2}", samples.range().0, samples.range().1);
        let ratio = format!("{:.2}", own.median() / peer.median());
        let figure = |samples: &Samples| format!("{:.2}", samples.median());
        table.row(vec![(*name).to_owned(), figure(&own), range(&own), figure(&peer), range(&peer), ratio]);
    }
    println!("{}", table.draw());
    let end = MILESTONES[MILESTONES.len() - 1].0;
    let ratios = ours.samples(end).ratios(&theirs.samples(end));
    println!("median of the ratios of each round: {:.3}", ratios.median());
    for (name, what) in [("set-up", "from the lease to power-on"), ("tear-down", "from the last line to the verdict")] {
        println!("{what}: {:.3} s", ours.samples(name).median());
    }
}

/// Finds milestones in what a console says.
#[derive(Default)]
struct Milestones {
    said: String,
    times: Times,
}

impl Milestones {
    /// Takes the console's bytes that came `seconds` after power-on.
    fn hear(&mut self, bytes: &[u8], seconds: f64) {
        self.said.push_str(&String::from_utf8_lossy(bytes));
        for (name, text) in MILESTONES {
            if !self.times.contains_key(name) && self.said.contains(text) {
                self.times.insert(name, seconds);
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.times.contains_key(MILESTONES[MILESTONES.len() - 1].0)
    }

    fn finish(self) -> anyhow::Result<Times> {
        let missed: Vec<_> = MILESTONES.iter().filter(|(name, _)| !self.times.contains_key(name)).collect();
        ensure!(missed.is_empty(), "the console did not say {missed:?}:\n{}", self.said);
        Ok(self.times)
    }
}

/// Our side.
struct Wharf(Bench);

impl Wharf {
    /// Runs a job, and takes its times from its events.
    fn boot(&self) -> anyhow::Result<Boot> {
        let mut job = self.0.submit(JOB, "");
        job.wait_for_kind("powered_on");
        let words = machine_words(&self.0)?;
        let job = job.wait();
        ensure!(job.status == "PASS", "the job did not pass: {}", job.summary);
        let at = |kind: &str| {
            let event = job.events.iter().find(|event| text(event, "event") == kind);
            seconds(event.with_context(|| format!("no event `{kind}`"))?)
        };
        let (set_up, power_on, ended) = (at("leased")?, at("power_cycling")?, at("ended")?);
        let mut milestones = Milestones::default();
        for event in job.events.iter().filter(|event| text(event, "event") == "console") {
            milestones.hear(&BASE64_STANDARD.decode(text(event, "data"))?, seconds(event)? - power_on);
        }
        let mut times = milestones.finish()?;
        let end = times[MILESTONES[MILESTONES.len() - 1].0];
        times.insert("set-up", power_on - set_up);
        times.insert("tear-down", ended - power_on - end);
        Ok(Boot { times, words })
    }
}

/// The words that started the farm's QEMU, the program first.
fn machine_words(bench: &Bench) -> anyhow::Result<Vec<String>> {
    let lines = bench.processes().into_iter().filter_map(|id| fs::read_to_string(format!("/proc/{id}/cmdline")).ok());
    let words = |line: String| line.trim_end_matches('\0').split('\0').map(str::to_owned).collect::<Vec<_>>();
    let mut machines = lines.map(words).filter(|words| words.first().is_some_and(|word| word.contains("qemu-system")));
    machines.next().context("the farm runs no QEMU")
}

fn text<'a>(event: &'a Value, key: &str) -> &'a str {
    event.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// An event's time in seconds of some day.
fn seconds(event: &Value) -> anyhow::Result<f64> {
    let at: jiff::Timestamp = text(event, "at").parse()?;
    Ok(at.as_microsecond() as f64 / 1e6)
}

/// The other side.
struct Peer {
    lab: Lab,
    words: Vec<String>,
    folder: std::path::PathBuf,
    _servers: [Running; 2],
}

impl Peer {
    /// Servers with the same kernel and initramfs, and a tap of the same name.
    fn start(folder: &Path, bench: &Bench, boot: &Boot) -> anyhow::Result<Self> {
        let root = folder.join("root");
        fs::create_dir_all(root.join("_/job"))?;
        for image in ["kernel", "initramfs"] {
            let answer = bench.get(&format!("/images/{image}"));
            ensure!(answer.status == 200, "cannot fetch the {image}: {}", answer.head);
            fs::write(root.join("_/job").join(image), answer.body)?;
        }
        fs::write(root.join("boot.ipxe"), SCRIPT)?;
        fs::write(root.join("greeting"), "ahoy\n")?;
        let lab = Lab::new()?;
        lab.bridge("br0", SERVER)?;
        let tap = boot.words.iter().find_map(|word| word.split(',').find_map(|part| part.strip_prefix("ifname=")));
        lab.tap(tap.with_context(|| format!("no tap in {:?}; run as root", boot.words))?, "br0")?;
        let client = Client { mac: MAC, address: CLIENT };
        let dnsmasq = peers::start_dnsmasq_for_pxe(&lab, "br0", SERVER, &client, &root, folder)?;
        let nginx = peers::start_nginx(&lab, SERVER, &root, folder)?;
        let words = boot.words.iter().map(|word| with_own_socket(word, folder)).collect();
        Ok(Peer { lab, words, folder: folder.to_owned(), _servers: [dnsmasq, nginx] })
    }

    /// Starts the machine and listens until it has said its last line.
    fn boot(&self) -> anyhow::Result<Boot> {
        let listen = |name: &str| {
            let path = self.folder.join(name);
            let _ = fs::remove_file(&path);
            UnixListener::bind(path)
        };
        let (serial, _control) = (listen("serial")?, listen("control")?);
        let (program, words) = self.words.split_first().context("an empty command line")?;
        let mut command = self.lab.command(program)?;
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null());
        let start = Instant::now();
        let _machine = Running::of("QEMU", command.spawn()?);
        let (mut console, _) = serial.accept()?;
        console.set_read_timeout(Some(BOOT_TIMEOUT))?;
        let mut milestones = Milestones::default();
        let mut chunk = [0; 4096];
        while !milestones.is_complete() && start.elapsed() < BOOT_TIMEOUT {
            match console.read(&mut chunk)? {
                0 => bail!("the console ended after:\n{}", milestones.said),
                length => milestones.hear(&chunk[..length], start.elapsed().as_secs_f64()),
            }
        }
        Ok(Boot { times: milestones.finish()?, words: Vec::new() })
    }
}

/// A word of the command line with our folder in the place of wharf's, if it names a socket.
fn with_own_socket(word: &str, folder: &Path) -> String {
    match word.split_once("path=") {
        Some((before, path)) if word.starts_with("socket,") => {
            let name = path.rsplit('/').next().unwrap_or_default();
            format!("{before}path={}/{name}", folder.display())
        }
        _ => word.to_owned(),
    }
}
