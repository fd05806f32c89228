//! A thousand simulated DUTs, five thousand jobs, one process: how long a DUT that becomes free waits for its next job's power, and
//! what that costs. Order and completeness are checked from the events; a run that breaks them ends the benchmark with the reason.
//!
//! ```text
//!  steady     each job holds its DUT for a while in silence, and DUTs become free one after the other: two cores have time to spare
//!  saturated  all DUTs become free at once, and each further job ends as soon as it has booted: the cores are the limit
//!  labgrid    its coordinator with as many places and reservations: a place released, the next reservation allocated
//! ```
//! `cargo bench -p executor --bench queue [-- DUTS JOBS HOLD_S]`. The peer is installed from PyPI into the target folder, once; without
//! Python it is left out, visibly.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tests::bench::Bench;
use tests::crowd::{Crowd, Delays, Heard};
use tests::measure::{Samples, ServerProcess, Table, machine};
use tests::workspace::root;

/// DUTs, and jobs for them, unless the command line has numbers.
const DUTS: usize = 1_000;
const JOBS: usize = 5_000;
/// How long a job of the steady run holds its DUT: 1,000 DUTs then become free 25 times a second, which takes half of one core.
const HOLD_S: u32 = 40;
/// How long the first jobs hold their DUTs, so that the others are in the queue by then: 5,000 are taken in half a minute, or in a whole
/// one where others compile.
const FILL_S: u32 = 60;
/// Tags: lines of the queue.
const CLASSES: usize = 10;
/// Between two looks at memory.
const LOOK: Duration = Duration::from_millis(250);
/// A run that makes no headway for so long is broken.
const STALL: Duration = Duration::from_secs(180);
/// The peer, as it is on PyPI.
const LABGRID: &str = "labgrid==26.0.1";

fn main() -> anyhow::Result<()> {
    let mut numbers = std::env::args().filter_map(|word| word.parse::<usize>().ok());
    let duts = numbers.next().unwrap_or(DUTS);
    let jobs = numbers.next().unwrap_or(JOBS);
    let hold_s = numbers.next().map_or(Ok(HOLD_S), u32::try_from)?;
    println!("{}\n", machine());
    let crowd = Crowd { duts, classes: CLASSES, jobs, hold_s, first_hold_s: [FILL_S, FILL_S + hold_s] };
    let runs = [("steady", crowd), ("saturated", Crowd { hold_s: 0, first_hold_s: [FILL_S, FILL_S], ..crowd })];
    let done = runs.into_iter().map(|(name, crowd)| run(name, &crowd)).collect::<anyhow::Result<Vec<_>>>()?;
    report(&done);
    match peer(&crowd) {
        Ok(text) => println!("{text}"),
        Err(why) => println!("labgrid is left out: {why:#}"),
    }
    Ok(())
}

/// What one run showed.
struct Run {
    name: String,
    submitted_s: f64,
    done_s: f64,
    start_s: f64,
    processor_s: f64,
    memory_mib: [f64; 2],
    listed: (usize, f64),
    delays: Delays,
    waits: Vec<(i64, f64)>,
    jobs: usize,
}

fn run(name: &str, crowd: &Crowd) -> anyhow::Result<Run> {
    let started = Instant::now();
    let bench = Bench::start(env!("CARGO_BIN_EXE_wharf"), &crowd.farm());
    let start_s = started.elapsed().as_secs_f64();
    let server = ServerProcess::of(&bench)?;
    let before_mib = server.memory_mib()?;
    let heard = Heard::follow(&bench)?;
    let (before_s, started) = (server.processor_s()?, Instant::now());
    let (peak_mib, (submitted, listed)) = watch_while(&server, || {
        let submitted = crowd.submit(&bench);
        let listed = list(&bench)?;
        wait_for_all(&heard, crowd)?;
        Ok((submitted, listed))
    })?;
    let (done, processor_s) = (started.elapsed(), server.processor_s()? - before_s);
    let history = heard.history(&bench, crowd)?;
    history.check_order()?;
    history.check_holders()?;
    let run = Run {
        name: format!("{name}: {} DUTs, {} jobs of {} s", crowd.duts, crowd.jobs, crowd.hold_s),
        submitted_s: submitted.as_secs_f64(),
        done_s: done.as_secs_f64(),
        start_s,
        processor_s,
        memory_mib: [before_mib, peak_mib],
        listed,
        delays: history.delays()?,
        waits: history.longest_waits(),
        jobs: crowd.jobs,
    };
    eprintln!("{}: done in {:.0} s, order kept, every job passed", run.name, run.done_s);
    Ok(run)
}

/// All jobs in one answer: how many, and how long that takes.
fn list(bench: &Bench) -> anyhow::Result<(usize, f64)> {
    let started = Instant::now();
    let answer = bench.get("/api/v1/jobs");
    let seconds = started.elapsed().as_secs_f64();
    Ok((answer.json()["jobs"].as_array().context("no list of jobs")?.len(), seconds))
}

fn wait_for_all(heard: &Arc<Heard>, crowd: &Crowd) -> anyhow::Result<()> {
    let mut last = (heard.freed(), Instant::now());
    while last.0 < crowd.jobs {
        heard.wait_for_more();
        let freed = heard.freed();
        if freed > last.0 {
            last = (freed, Instant::now());
        }
        ensure!(last.1.elapsed() < STALL, "only {freed} of {} jobs are over, and none for {STALL:?}", crowd.jobs);
    }
    Ok(())
}

fn report(runs: &[Run]) {
    let mut table = Table::new(&["from a freed DUT to its next job", "median ms", "p99 ms", "max ms", "of"]);
    for run in runs {
        let delays = &run.delays;
        let steps = [
            (run.name.as_str(), &delays.whole),
            ("  freed to granted", &delays.granted),
            ("  granted to active", &delays.active),
            ("  active to power on", &delays.powered_on),
        ];
        for (what, samples) in steps {
            let shown = [0.5, 0.99, 1.0].map(|share| format!("{:.0}", samples.percentile(share)));
            let [median, p99, max] = shown;
            table.row(vec![what.to_owned(), median, p99, max, samples.figures().len().to_string()]);
        }
    }
    println!("{}", table.draw());
    let mut table =
        Table::new(&["run", "start s", "taken jobs/s", "all done s", "CPU ms a job", "MiB before", "MiB peak", "list"]);
    for run in runs {
        let cells = [
            run.name.clone(),
            format!("{:.1}", run.start_s),
            format!("{:.0}", run.jobs as f64 / run.submitted_s),
            format!("{:.0}", run.done_s),
            format!("{:.1}", run.processor_s / run.jobs as f64 * 1e3),
            format!("{:.0}", run.memory_mib[0]),
            format!("{:.0}", run.memory_mib[1]),
            format!("{} in {:.0} ms", run.listed.0, run.listed.1 * 1e3),
        ];
        table.row(cells.to_vec());
    }
    println!("{}", table.draw());
    for run in runs {
        let waits: Vec<_> = run.waits.iter().map(|(priority, s)| format!("priority {priority}: {s:.1} s")).collect();
        println!("{}: longest waits {}", run.name, waits.join(", "));
    }
    println!();
}

/// The most memory that it held meanwhile.
fn watch_while<T>(server: &ServerProcess, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(f64, T)> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut peak: f64 = 0.0;
            while !over.load(Ordering::Relaxed) {
                peak = peak.max(server.memory_mib().unwrap_or_default());
                std::thread::sleep(LOOK);
            }
            peak
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        let peak = watcher.join().map_err(|_| anyhow::anyhow!("the watcher panicked"))?;
        Ok((peak, done?))
    })
}

/// The same numbers of places and reservations in labgrid's coordinator; driven by its own package's wire, in Python.
fn peer(crowd: &Crowd) -> anyhow::Result<String> {
    let programs = labgrid()?;
    let mut script = Command::new(programs.join("python"));
    script.arg(root().join("tests/benches/queue_labgrid.py")).arg(programs.join("labgrid-coordinator"));
    script.args([crowd.duts, crowd.classes, crowd.jobs].map(|number| number.to_string()));
    let output = script.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "it could not be driven: {}", said.lines().last().unwrap_or_default());
    let text = String::from_utf8(output.stdout)?;
    let mut table = Table::new(&["from a freed place to the next in the queue", "median ms", "p99 ms", "max ms", "of"]);
    let waiting = crowd.jobs.saturating_sub(crowd.duts);
    for kind in ["busy", "quiet"] {
        let mut samples = Samples::default();
        let figures = text.lines().filter_map(|line| line.strip_prefix(kind)?.trim().parse().ok());
        figures.for_each(|figure| samples.push(figure));
        let [median, p99, max] = [0.5, 0.99, 1.0].map(|share| format!("{:.0}", samples.percentile(share)));
        let name = format!("{LABGRID}, {kind}: {} places, {waiting} reservations wait", crowd.duts);
        table.row(vec![name, median, p99, max, samples.figures().len().to_string()]);
    }
    Ok(format!(
        "{}\nlabgrid: a place released and its reservation cancelled, until a client is told that the place is the next reservation's; `busy`: \
         another client asks right behind, which makes the coordinator look again; `quiet`: nobody does, and it looks every 15 s. No jobs \
         run meanwhile, and nothing goes to disk before that. Beside it stands our `freed to granted`, which includes the synced commit \
         and is taken while jobs run. labgrid switches no power then.",
        table.draw()
    ))
}

/// The folder of labgrid's programs, in a virtual environment of its own.
fn labgrid() -> anyhow::Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(LABGRID.replace("==", "-"));
    let is_whole = folder.join("whole");
    if !is_whole.exists() {
        let _ = fs::remove_dir_all(&folder);
        must(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        must(Command::new(folder.join("bin/pip")).args([
            "install",
            "--quiet",
            "--disable-pip-version-check",
            LABGRID,
        ]))?;
        fs::write(is_whole, "")?;
    }
    Ok(folder.join("bin"))
}

fn must(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
