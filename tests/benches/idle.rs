//! What a farm costs while nothing happens: processor time and memory of `wharf serve` with the four simulated DUTs of
//! `fixtures/farms/simulated.yml`, before its first job and after some.
//!
//! `cargo bench -p executor --bench idle [-- JOBS]`, as root (the farm makes a private network).

use std::fs;
use std::time::Duration;

use anyhow::ensure;
use tests::bench::Bench;
use tests::measure::{ServerProcess, Table, machine};
use tests::workspace::root;

/// Jobs between two looks, unless the command line has a number.
const JOBS: usize = 40;

/// Looks after jobs: memory that grows from each to the next is kept by something.
const LOOKS: usize = 3;

/// How long an idle server is watched: its processor time counts in steps of 10 ms, so that 0.1 % is seen.
const WATCH: Duration = Duration::from_secs(10);

fn main() -> anyhow::Result<()> {
    let jobs = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(JOBS);
    println!("{}\n", machine());
    let read = |path: &str| fs::read_to_string(root().join(path));
    let job = read("fixtures/jobs/good/hello.yml")?;
    let bench = Bench::start(env!("CARGO_BIN_EXE_wharf"), &read("fixtures/farms/simulated.yml")?);
    let server = ServerProcess::of(&bench)?;
    let mut table = Table::new(&["wharf serve, 4 simulated DUTs", "processor %", "memory MiB", "threads"]);
    table.row(watch(&server, "idle, before any job".to_owned())?);
    for look in 1..=LOOKS {
        run_jobs(&bench, &job, jobs)?;
        table.row(watch(&server, format!("idle, after {} jobs", jobs * look))?);
    }
    println!("{}", table.draw());
    Ok(())
}

/// All at once: the farm queues them.
fn run_jobs(bench: &Bench, job: &str, count: usize) -> anyhow::Result<()> {
    let jobs: Vec<_> = (0..count).map(|_| bench.submit(job, "")).collect();
    for job in jobs {
        let ended = job.wait();
        ensure!(ended.status == "PASS", "job {} did not pass: {}", ended.id, ended.summary);
    }
    Ok(())
}

/// Processor time over a while, then memory and threads.
fn watch(server: &ServerProcess, name: String) -> anyhow::Result<Vec<String>> {
    let before = server.processor_s()?;
    std::thread::sleep(WATCH);
    let used = (server.processor_s()? - before) / WATCH.as_secs_f64() * 100.0;
    Ok(vec![name, format!("{used:.2}"), format!("{:.1}", server.memory_mib()?), server.threads()?.to_string()])
}
