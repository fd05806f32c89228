//! A hundred serial lines at 115,200 baud at once, each with a job of eight patterns and three readers: whether every byte arrives everywhere,
//! what it costs the server, and how long it takes from a line's last byte to the event of its pattern.
//!
//! ```text
//!  this process ── TCP, 11,520 bytes/s each ──► wharf serve ─┬─► 3 readers each, by the API: compared byte for byte
//!                                                            ├─► the job's own log: compared
//!                                                            └─► pattern_matched of ten jobs: timed
//! ```
//! `cargo bench -p executor --bench console [-- CONSOLES [SECONDS]]`, as root (a network namespace).

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tests::bench::{Bench, Surroundings};
use tests::lab::Lab;
use tests::measure::{Samples, ServerProcess, Table, machine};

/// Lines, unless the command line has a number.
const CONSOLES: usize = 100;
/// How long they talk, unless the command line has a second number.
const SECONDS: usize = 20;
/// 115,200 baud, ten bits a byte.
const BYTES_A_SECOND: usize = 11_520;
/// What comes at once: a UART's interrupt, some five milliseconds of it.
const TICK: Duration = Duration::from_millis(5);
const READERS: usize = 3;
/// Jobs whose events are followed and timed.
const TIMED: usize = 10;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);

/// Eight patterns; the warning is the one that is timed.
const JOB: &str = "version: 1
target: {id: 'ID'}
timeouts: {overall: {minutes: 10}}
console_patterns:
  session_end: {regex: '^the end$'}
  session_reboot: {regex: 'reboot: Restarting system'}
  job_success: {regex: 'execution is over, status: 0'}
  job_warn: {regex: '^mark \\d+$'}
  machine_unfit_for_service: {regex: 'machine check exception'}
  watchdogs:
    boot: {start: {regex: 'Linux version'}, reset: {regex: 'systemd'}, stop: {regex: 'login:'}}
deployment: {start: {}}
";

/// What one line says, and where its marks end.
struct Talk {
    bytes: Vec<u8>,
    marks: Vec<usize>,
}

/// When a mark's last byte was sent, by line and mark.
type Sent = Arc<Mutex<BTreeMap<(usize, usize), Instant>>>;

fn main() -> anyhow::Result<()> {
    let mut numbers = std::env::args().filter_map(|word| word.parse::<usize>().ok());
    let (consoles, seconds) = (numbers.next().unwrap_or(CONSOLES), numbers.next().unwrap_or(SECONDS));
    println!("{}\n", machine());
    let lab = Arc::new(Lab::new()?);
    lab.bridge("wharf0", GATEWAY)?;
    let listeners: Vec<_> =
        (0..consoles).map(|_| lab.inside(|| TcpListener::bind("127.0.0.1:0"))).collect::<Result<_, _>>()?;
    let folder = tempfile::tempdir()?;
    let farm = farm(&listeners, folder.path())?;
    let surroundings = Surroundings { lab: Some(Arc::clone(&lab)), ..Surroundings::default() };
    let bench = Bench::start_with(env!("CARGO_BIN_EXE_wharf"), &farm, surroundings);
    let lines: Vec<TcpStream> =
        listeners.iter().map(|listener| Ok(listener.accept()?.0)).collect::<std::io::Result<_>>()?;
    let mut jobs: Vec<_> = (0..consoles).map(|id| bench.submit(&JOB.replace("ID", &format!("c{id}")), "")).collect();
    for job in &mut jobs {
        job.wait_for_kind("powered_on");
    }
    let talks: Arc<Vec<Talk>> = Arc::new((0..consoles).map(|id| talk(id, seconds)).collect());
    let socket = bench.local_socket();
    let readers: Vec<_> = (0..consoles * READERS)
        .map(|reader| read_along(&socket, reader / READERS, Arc::clone(&talks)))
        .collect::<anyhow::Result<_>>()?;
    let sent = Sent::default();
    let timers: Vec<_> = (0..consoles.min(TIMED))
        .map(|id| time_events(&socket, id, &jobs[id].id, Arc::clone(&sent)))
        .collect::<anyhow::Result<_>>()?;
    let server = ServerProcess::of(&bench)?;
    let (before, began) = (server.processor_s()?, Instant::now());
    feed(lines, &talks, &sent)?;
    let used = (server.processor_s()? - before) / began.elapsed().as_secs_f64() * 100.0;
    let whole = readers.into_iter().map(|reader| reader.join().unwrap_or(false)).filter(|whole| *whole).count();
    let mut latencies = Samples::default();
    for timer in timers {
        timer.join().map_err(|_| anyhow::anyhow!("a timer panicked"))?.into_iter().for_each(|ms| latencies.push(ms));
    }
    let mut logs = 0;
    for (job, talk) in jobs.into_iter().zip(talks.iter()) {
        let ended = job.wait();
        // The timed pattern is the warning's.
        ensure!(ended.status == "WARN", "job {}: {}", ended.id, ended.summary);
        logs += usize::from(bench.get(&format!("/api/v1/jobs/{}/log", ended.id)).body == talk.bytes);
    }
    let mut table = Table::new(&[
        "consoles",
        "MB/s",
        "readers whole",
        "job logs whole",
        "processor %",
        "byte to event ms, p50",
        "p99",
    ]);
    table.row(vec![
        consoles.to_string(),
        format!("{:.2}", (consoles * BYTES_A_SECOND) as f64 / 1e6),
        format!("{whole} of {}", consoles * READERS),
        format!("{logs} of {consoles}"),
        format!("{used:.0}"),
        format!("{:.1}", latencies.median()),
        format!("{:.1}", latencies.percentile(0.99)),
    ]);
    println!("{}", table.draw());
    ensure!(whole == consoles * READERS && logs == consoles, "bytes are missing");
    Ok(())
}

/// Machines with an outlet that is a file, and a console that is a port of ours.
fn farm(listeners: &[TcpListener], folder: &Path) -> anyhow::Result<String> {
    let mut farm = format!("name: bench\nnetwork: {{interface: {{name: wharf0, address: {GATEWAY}/16}}}}\nduts:\n");
    for (id, listener) in listeners.iter().enumerate() {
        let outlet = folder.join(format!("outlet-{id}")).display().to_string();
        fs::write(&outlet, "off\n")?;
        let port = listener.local_addr()?.port();
        let (high, low) = (id / 200 + 1, id % 200 + 1);
        farm += &format!(
            "- id: c{id}
  mac: 52:54:00:88:{high:02x}:{low:02x}
  address: 10.88.{high}.{low}
  machine:
    hardware:
      power: {{exec: {{on: [sh, -c, 'echo on > {outlet}'], off: [sh, -c, 'echo off > {outlet}'], state: [cat, '{outlet}']}}}}
      console: {{tcp: {{host: 127.0.0.1, port: {port}}}}}
"
        );
    }
    Ok(farm)
}

fn talk(console: usize, seconds: usize) -> Talk {
    let (mut bytes, mut marks) = (Vec::new(), Vec::new());
    for line in 0.. {
        if bytes.len() >= seconds * BYTES_A_SECOND {
            break;
        }
        if line % 150 == 149 {
            bytes.extend_from_slice(format!("mark {}\n", marks.len()).as_bytes());
            marks.push(bytes.len());
        }
        let text =
            format!("[{line:8}.000000] usb 1-1.2: console {console:04} says line {line:06} of many, and so on\n");
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes.extend_from_slice(b"execution is over, status: 0\nthe end\n");
    Talk { bytes, marks }
}

/// All lines at their speed.
fn feed(mut lines: Vec<TcpStream>, talks: &[Talk], sent: &Sent) -> anyhow::Result<()> {
    let (began, longest) = (Instant::now(), talks.iter().map(|talk| talk.bytes.len()).max().unwrap_or(0));
    let (mut before, mut tick) = (0, 0);
    while before < longest {
        tick += 1;
        let due = began + TICK * tick;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let until = (began.elapsed().as_secs_f64() * BYTES_A_SECOND as f64) as usize;
        for (id, (line, talk)) in lines.iter_mut().zip(talks).enumerate() {
            let (from, to) = (before.min(talk.bytes.len()), until.min(talk.bytes.len()));
            let now = Instant::now();
            line.write_all(&talk.bytes[from..to])?;
            let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
            let marks = talk.marks.iter().enumerate().filter(|(_, end)| (from + 1..=to).contains(*end));
            sent.extend(marks.map(|(mark, _)| ((id, mark), now)));
        }
        before = until;
    }
    Ok(())
}

/// HTTP/1.0: the body is what comes until the end.
fn get(socket: &Path, path: &str) -> anyhow::Result<BufReader<UnixStream>> {
    let mut stream = UnixStream::connect(socket)?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: bench\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    ensure!(line.contains(" 200 "), "{path}: {line}");
    while line != "\r\n" {
        line.clear();
        reader.read_line(&mut line)?;
    }
    Ok(reader)
}

/// Whether it heard every byte.
fn read_along(socket: &Path, console: usize, talks: Arc<Vec<Talk>>) -> anyhow::Result<thread::JoinHandle<bool>> {
    let mut reader = get(socket, &format!("/api/v1/consoles/c{console}/log?since=0&follow=1"))?;
    Ok(thread::spawn(move || {
        let expected = &talks[console].bytes;
        let mut heard = vec![0; expected.len()];
        reader.read_exact(&mut heard).is_ok() && heard == *expected
    }))
}

/// Milliseconds from a mark's last byte to its event.
fn time_events(socket: &Path, console: usize, job: &str, sent: Sent) -> anyhow::Result<thread::JoinHandle<Vec<f64>>> {
    let reader = get(socket, &format!("/api/v1/jobs/{job}/events"))?;
    Ok(thread::spawn(move || {
        let mut took = Vec::new();
        for line in reader.lines().map_while(Result::ok).filter(|line| line.contains("\"pattern_matched\"")) {
            let now = Instant::now();
            let number = line.split("mark ").nth(1).map(|rest| rest.chars().take_while(char::is_ascii_digit).collect());
            let mark = number.and_then(|number: String| number.parse::<usize>().ok());
            let sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
            let at = mark.and_then(|mark| sent.get(&(console, mark)));
            took.extend(at.map(|at| now.saturating_duration_since(*at).as_secs_f64() * 1e3));
        }
        took
    }))
}
