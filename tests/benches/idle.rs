//! What a farm costs while nothing happens: processor time and memory of `wharf serve` with the four simulated DUTs of
//! `fixtures/farms/simulated.yml`, before its first job and after some.
//!
//! `cargo bench -p executor --bench idle [-- JOBS]`, as root (the farm makes a private network).

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use serde_json::Value;
use tests::measure::{Table, machine};
use tests::peers::{self, CURL};
use tests::served::Served;
use tests::workspace::root;

/// Jobs unless the command line has a number: enough that a leak of a job's memory would show.
const JOBS: usize = 40;

/// How long an idle server is watched: its processor time counts in steps of 10 ms, so that 0.1 % is seen.
const WATCH: Duration = Duration::from_secs(10);

fn main() -> anyhow::Result<()> {
    let jobs = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(JOBS);
    peers::install(&[CURL])?;
    println!("{}\n", machine());
    let folder = tempfile::Builder::new().prefix("wharf-bench-").tempdir_in("/tmp")?;
    let farm = root().join("fixtures/farms/simulated.yml");
    let served = Served::start(env!("CARGO_BIN_EXE_wharf"), &farm, folder.path())?;
    let mut table = Table::new(&["wharf serve, 4 simulated DUTs", "processor %", "memory MiB", "threads"]);
    table.row(watch(&served, "idle, before any job")?);
    run_jobs(&served, &root().join("fixtures/jobs/good/hello.yml"), jobs)?;
    table.row(watch(&served, &format!("idle, after {jobs} jobs"))?);
    println!("{}", table.draw());
    Ok(())
}

/// Processor time over a while, then memory and threads.
fn watch(served: &Served, name: &str) -> anyhow::Result<Vec<String>> {
    let before = served.processor_s()?;
    std::thread::sleep(WATCH);
    let used = (served.processor_s()? - before) / WATCH.as_secs_f64() * 100.0;
    let memory = format!("{:.1}", served.memory_mib()?);
    Ok(vec![name.to_owned(), format!("{used:.2}"), memory, served.threads()?.to_string()])
}

/// All at once: the farm queues them.
fn run_jobs(served: &Served, job: &Path, count: usize) -> anyhow::Result<()> {
    let job: PathBuf = job.to_owned();
    let ids: Vec<String> = (0..count).map(|_| served.submit(&job)).collect::<Result<_, _>>()?;
    for id in ids {
        let mut status = String::new();
        served.events(&id, &mut |event| {
            let said = event.pointer("/verdict/status").and_then(Value::as_str);
            status = said.unwrap_or(&status).to_owned();
            Ok(())
        })?;
        ensure!(status.eq_ignore_ascii_case("pass"), "job {id} ended {status}");
    }
    Ok(())
}
