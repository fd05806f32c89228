//! A hundred serial lines at 115,200 baud at once, with three readers each: whether every byte arrives everywhere, what it costs the server,
//! and how long it takes from a line's last byte to a reader, and to the event of a job's pattern. Beside ser2net with the same lines.
//!
//! ```text
//!                                             ┌─► wharf serve ─┬─► 3 readers each, by the API: compared byte for byte, marks timed
//!  this process ── ptys, 11,520 bytes/s each ─┤                ├─► the job's own log: compared
//!                                             │                └─► pattern_matched of the marks: timed
//!                                             └─► ser2net ───────► 3 readers each, by TCP: compared byte for byte, marks timed
//! ```
//! `cargo bench -p executor --bench console [-- CONSOLES [SECONDS [ROUNDS]]]`, as root (a network namespace).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use tests::bench::{Bench, Surroundings, until};
use tests::lab::Lab;
use tests::measure::{Samples, ServerProcess, Table, machine};
use tests::peers::{self, Keeps, SER2NET, SER2NET_BANNER, SER2NET_PORT};

/// Lines, unless the command line has a number.
const CONSOLES: usize = 100;
/// How long they talk, unless the command line has a second number.
const SECONDS: usize = 15;
/// How often each contender has its turn, unless the command line has a third number.
const ROUNDS: usize = 3;
/// 115,200 baud, ten bits a byte.
const BYTES_A_SECOND: usize = 11_520;
/// What comes at once: a UART's interrupt, some five milliseconds of it.
const TICK: Duration = Duration::from_millis(5);
const READERS: usize = 3;
/// For a server that has just started to ask a hundred outlets how they are.
const OUTLETS_ASKED: Duration = Duration::from_secs(60);
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

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    /// Consoles that nobody has leased: kept, and read.
    Wharf,
    /// The same, each with a job.
    WharfWithJobs,
    Ser2net(Keeps),
}

const CONTENDERS: [(Contender, &str); 4] = [
    (Contender::Ser2net(Keeps::Nothing), "ser2net"),
    (Contender::Ser2net(Keeps::Files), "ser2net, trace-read"),
    (Contender::Wharf, "wharf"),
    (Contender::WharfWithJobs, "wharf, a job each"),
];

/// A terminal whose far end a server opens.
struct Line {
    near: File,
    path: PathBuf,
    /// Held, so that nothing is lost before it is opened.
    _far: OwnedFd,
}

/// What one line says, and where its marks end.
struct Talk {
    bytes: Vec<u8>,
    marks: Vec<usize>,
}

/// When a mark's last byte was sent, by line and mark.
type Sent = Arc<Mutex<BTreeMap<(usize, usize), Instant>>>;

/// What one turn gave.
struct Turn {
    processor: f64,
    /// Milliseconds.
    to_readers: Vec<f64>,
    to_events: Vec<f64>,
    whole: usize,
}

/// The figures of one contender, over its turns.
#[derive(Default)]
struct Figures {
    processor: Samples,
    to_reader: [Samples; 2],
    to_event: [Samples; 2],
    whole: usize,
}

fn main() -> anyhow::Result<()> {
    let mut numbers = std::env::args().filter_map(|word| word.parse::<usize>().ok());
    let mut number = |unless_said| numbers.next().unwrap_or(unless_said);
    let (consoles, seconds, rounds) = (number(CONSOLES), number(SECONDS), number(ROUNDS));
    peers::install(&[SER2NET])?;
    println!("{}; {}\n", machine(), SER2NET.title());
    let talks: Arc<Vec<Talk>> = Arc::new((0..consoles).map(|id| talk(id, seconds)).collect());
    let mut figures: Vec<Figures> = CONTENDERS.iter().map(|_| Figures::default()).collect();
    for round in 0..rounds {
        for index in 0..CONTENDERS.len() {
            let index = (index + round) % CONTENDERS.len();
            let (contender, name) = CONTENDERS[index];
            let turn = turn(contender, &talks)?;
            eprintln!("round {}, {name}: {:.0} % of a core", round + 1, turn.processor);
            figures[index].take(turn);
        }
    }
    draw(&figures, consoles, rounds);
    let all = consoles * READERS * rounds;
    ensure!(figures.iter().all(|figures| figures.whole == all), "bytes are missing");
    Ok(())
}

impl Figures {
    fn take(&mut self, turn: Turn) {
        self.processor.push(turn.processor);
        self.whole += turn.whole;
        for (took, samples) in [(turn.to_readers, &mut self.to_reader), (turn.to_events, &mut self.to_event)] {
            let mut all = Samples::default();
            took.into_iter().for_each(|ms| all.push(ms));
            samples[0].push(all.median());
            samples[1].push(all.percentile(0.99));
        }
    }
}

fn draw(figures: &[Figures], consoles: usize, rounds: usize) {
    println!("{consoles} lines, {:.2} MB/s in all, {rounds} rounds", (consoles * BYTES_A_SECOND) as f64 / 1e6);
    let heads =
        ["server", "readers whole", "processor %", "byte to reader ms, p50", "p99", "byte to event ms, p50", "p99"];
    let mut table = Table::new(&heads);
    let shown = |samples: &Samples| match samples.range() {
        (least, _) if least.is_nan() => String::new(),
        (least, most) => format!("{:.1} ({least:.1} to {most:.1})", samples.median()),
    };
    for ((_, name), figures) in CONTENDERS.iter().zip(figures) {
        let whole = format!("{} of {}", figures.whole, consoles * READERS * rounds);
        let mut row = vec![(*name).to_owned(), whole, shown(&figures.processor)];
        row.extend(figures.to_reader.iter().chain(&figures.to_event).map(shown));
        table.row(row);
    }
    println!("{}", table.draw());
}

fn turn(contender: Contender, talks: &Arc<Vec<Talk>>) -> anyhow::Result<Turn> {
    let lab = Arc::new(Lab::new()?);
    lab.bridge("wharf0", GATEWAY)?;
    let folder = tempfile::tempdir()?;
    let lines: Vec<Line> = talks.iter().map(|_| Line::new()).collect::<anyhow::Result<_>>()?;
    let sent = Sent::default();
    match contender {
        Contender::Ser2net(keeps) => {
            let paths: Vec<PathBuf> = lines.iter().map(|line| line.path.clone()).collect();
            let server = peers::start_ser2net(&lab, &paths, READERS, keeps, folder.path())?;
            let connect = |console: usize| {
                let address = (Ipv4Addr::LOCALHOST, SER2NET_PORT + console as u16);
                let mut stream = lab.inside(|| TcpStream::connect(address))?;
                let mut banner = vec![0; SER2NET_BANNER.len()];
                stream.read_exact(&mut banner)?;
                ensure!(banner == SER2NET_BANNER.as_bytes(), "ser2net says {:?}", String::from_utf8_lossy(&banner));
                Ok(stream)
            };
            let readers = readers(talks, &sent, connect)?;
            let processor = feed(&lines, talks, &sent, &ServerProcess::running(&server))?;
            let (to_readers, whole) = all_of(readers)?;
            Ok(Turn { processor, to_readers, to_events: Vec::new(), whole })
        }
        Contender::Wharf | Contender::WharfWithJobs => {
            let farm = farm(&lines, folder.path())?;
            let surroundings = Surroundings { lab: Some(Arc::clone(&lab)), ..Surroundings::default() };
            let bench = Bench::start_with(env!("CARGO_BIN_EXE_wharf"), &farm, surroundings);
            wharf(contender, &bench, &lines, talks, &sent)
        }
    }
}

fn wharf(
    contender: Contender,
    bench: &Bench,
    lines: &[Line],
    talks: &Arc<Vec<Talk>>,
    sent: &Sent,
) -> anyhow::Result<Turn> {
    // A server that has just started asks each outlet how it is: a hundred programs, as the outlets here are.
    let all_off = || bench.duts().iter().all(|dut| dut["power"] == "off").then_some(());
    until(OUTLETS_ASKED, all_off).context("the outlets are not read")?;
    let with_a_job = if contender == Contender::WharfWithJobs { lines.len() } else { 0 };
    let mut jobs: Vec<_> = (0..with_a_job).map(|id| bench.submit(&JOB.replace("ID", &format!("c{id}")), "")).collect();
    for job in &mut jobs {
        job.wait_for_kind("powered_on");
    }
    let socket = bench.local_socket();
    let log = |console: usize| get(&socket, &format!("/api/v1/consoles/c{console}/log?since=0&follow=1"));
    let readers = readers(talks, sent, log)?;
    let timers: Vec<_> = jobs
        .iter()
        .enumerate()
        .map(|(id, job)| time_events(&socket, id, &job.id, Arc::clone(sent)))
        .collect::<anyhow::Result<_>>()?;
    let processor = feed(lines, talks, sent, &ServerProcess::of(bench)?)?;
    let (to_readers, whole) = all_of(readers)?;
    let mut to_events = Vec::new();
    for timer in timers {
        to_events.extend(timer.join().map_err(|_| anyhow!("a timer panicked"))?);
    }
    for (job, talk) in jobs.into_iter().zip(talks.iter()) {
        let ended = job.wait();
        // The timed pattern is the warning's.
        ensure!(ended.status == "WARN", "job {}: {}", ended.id, ended.summary);
        let log = bench.get(&format!("/api/v1/jobs/{}/log", ended.id)).body;
        ensure!(log == talk.bytes, "the log of job {} lacks bytes", ended.id);
    }
    Ok(Turn { processor, to_readers, to_events, whole })
}

impl Line {
    fn new() -> anyhow::Result<Line> {
        let pair = openpty(None, None)?;
        for end in [&pair.master, &pair.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        let mut raw = tcgetattr(&pair.slave)?;
        cfmakeraw(&mut raw);
        tcsetattr(&pair.slave, SetArg::TCSANOW, &raw)?;
        Ok(Line { path: nix::unistd::ttyname(&pair.slave)?, near: pair.master.into(), _far: pair.slave })
    }
}

/// Machines with an outlet that is a file, and a console that is a terminal of ours.
fn farm(lines: &[Line], folder: &Path) -> anyhow::Result<String> {
    let mut farm = format!("name: bench\nnetwork: {{interface: {{name: wharf0, address: {GATEWAY}/16}}}}\nduts:\n");
    for (id, line) in lines.iter().enumerate() {
        let outlet = folder.join(format!("outlet-{id}")).display().to_string();
        fs::write(&outlet, "off\n")?;
        let path = line.path.display();
        let (high, low) = (id / 200 + 1, id % 200 + 1);
        farm += &format!(
            "- id: c{id}
  mac: 52:54:00:88:{high:02x}:{low:02x}
  address: 10.88.{high}.{low}
  machine:
    hardware:
      power: {{exec: {{on: [sh, -c, 'echo on > {outlet}'], off: [sh, -c, 'echo off > {outlet}'], state: [cat, '{outlet}']}}}}
      console: {{tty: {{path: {path}}}}}
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

/// All lines at their speed; gives what the server had of a core meanwhile, in percent.
fn feed(lines: &[Line], talks: &[Talk], sent: &Sent, server: &ServerProcess) -> anyhow::Result<f64> {
    let (used_before, began) = (server.processor_s()?, Instant::now());
    let longest = talks.iter().map(|talk| talk.bytes.len()).max().unwrap_or(0);
    let (mut before, mut tick) = (0, 0);
    while before < longest {
        tick += 1;
        let due = began + TICK * tick;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let until = (began.elapsed().as_secs_f64() * BYTES_A_SECOND as f64) as usize;
        for (id, (line, talk)) in lines.iter().zip(talks).enumerate() {
            let (from, to) = (before.min(talk.bytes.len()), until.min(talk.bytes.len()));
            let marks = talk.marks.iter().enumerate().filter(|(_, end)| (from + 1..=to).contains(*end));
            for (mark, _) in marks {
                lock(sent).insert((id, mark), Instant::now());
            }
            (&line.near).write_all(&talk.bytes[from..to])?;
        }
        before = until;
    }
    Ok((server.processor_s()? - used_before) / began.elapsed().as_secs_f64() * 100.0)
}

/// HTTP/1.0: the body is what comes until the end.
fn get(socket: &Path, path: &str) -> anyhow::Result<BufReader<UnixStream>> {
    let mut stream = UnixStream::connect(socket)?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")?;
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

/// What a reader heard.
type Heard = JoinHandle<(Vec<f64>, Whole)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whole {
    Yes,
    No,
}

/// Three for each line, in threads of their own.
fn readers<R: Read + Send + 'static>(
    talks: &Arc<Vec<Talk>>,
    sent: &Sent,
    connect: impl Fn(usize) -> anyhow::Result<R>,
) -> anyhow::Result<Vec<Heard>> {
    let consoles = (0..talks.len()).flat_map(|console| [console; READERS]);
    consoles
        .map(|console| {
            let (reader, talks, sent) = (connect(console)?, Arc::clone(talks), Arc::clone(sent));
            Ok(thread::spawn(move || read_along(reader, console, &talks[console], &sent)))
        })
        .collect()
}

/// Milliseconds to each mark, and whether it heard every byte.
fn read_along(mut reader: impl Read, console: usize, talk: &Talk, sent: &Sent) -> (Vec<f64>, Whole) {
    let (mut heard, mut took, mut next) = (0, Vec::new(), 0);
    let mut buffer = vec![0; 64 * 1024];
    while heard < talk.bytes.len() {
        let Ok(length @ 1..) = reader.read(&mut buffer) else { return (took, Whole::No) };
        let now = Instant::now();
        if talk.bytes.get(heard..heard + length) != Some(&buffer[..length]) {
            return (took, Whole::No);
        }
        heard += length;
        while talk.marks.get(next).is_some_and(|end| *end <= heard) {
            took.extend(lock(sent).get(&(console, next)).map(|at| milliseconds(*at, now)));
            next += 1;
        }
    }
    (took, Whole::Yes)
}

fn all_of(readers: Vec<Heard>) -> anyhow::Result<(Vec<f64>, usize)> {
    let (mut took, mut whole) = (Vec::new(), 0);
    for reader in readers {
        let (times, is_whole) = reader.join().map_err(|_| anyhow!("a reader panicked"))?;
        took.extend(times);
        whole += usize::from(is_whole == Whole::Yes);
    }
    Ok((took, whole))
}

/// Milliseconds from a mark's last byte to its event.
fn time_events(socket: &Path, console: usize, job: &str, sent: Sent) -> anyhow::Result<JoinHandle<Vec<f64>>> {
    let reader = get(socket, &format!("/api/v1/jobs/{job}/events"))?;
    Ok(thread::spawn(move || {
        let mut took = Vec::new();
        for line in reader.lines().map_while(Result::ok).filter(|line| line.contains("\"pattern_matched\"")) {
            let now = Instant::now();
            let number = line.split("mark ").nth(1).map(|rest| rest.chars().take_while(char::is_ascii_digit).collect());
            let mark = number.and_then(|number: String| number.parse::<usize>().ok());
            took.extend(mark.and_then(|mark| Some(milliseconds(*lock(&sent).get(&(console, mark))?, now))));
        }
        took
    }))
}

fn milliseconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1e3
}

fn lock(sent: &Sent) -> std::sync::MutexGuard<'_, BTreeMap<(usize, usize), Instant>> {
    sent.lock().unwrap_or_else(PoisonError::into_inner)
}
