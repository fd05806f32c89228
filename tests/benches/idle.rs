//! What a farm costs while nothing happens: processor time and memory of `wharf serve` with the four simulated DUTs of
//! `fixtures/farms/simulated.yml`, before its first job and after some.
//!
//! `cargo bench -p executor --bench idle [-- JOBS]`, as root (the farm makes a private network).

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use tests::bench::Bench;
use tests::measure::{Table, machine};
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
    let server = Server::of(&bench)?;
    let mut table = Table::new(&["wharf serve, 4 simulated DUTs", "processor %", "memory MiB", "threads"]);
    table.row(server.watch("idle, before any job".to_owned())?);
    for look in 1..=LOOKS {
        run_jobs(&bench, &job, jobs)?;
        table.row(server.watch(format!("idle, after {} jobs", jobs * look))?);
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

/// The server's own process, in /proc.
struct Server(PathBuf);

impl Server {
    fn of(bench: &Bench) -> anyhow::Result<Self> {
        let folders = bench.processes().into_iter().map(|id| PathBuf::from(format!("/proc/{id}")));
        let is_server = |folder: &PathBuf| fs::read(folder.join("comm")).is_ok_and(|name| name == b"wharf\n");
        Ok(Server(folders.into_iter().find(is_server).context("the server has no process")?))
    }

    /// Processor time over a while, then memory and threads.
    fn watch(&self, name: String) -> anyhow::Result<Vec<String>> {
        let before = self.processor_s()?;
        std::thread::sleep(WATCH);
        let used = (self.processor_s()? - before) / WATCH.as_secs_f64() * 100.0;
        let threads = fs::read_dir(self.0.join("task"))?.count();
        Ok(vec![name, format!("{used:.2}"), format!("{:.1}", self.memory_mib()?), threads.to_string()])
    }

    /// Processor time so far, of all threads.
    fn processor_s(&self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(self.0.join("stat"))?;
        // proc(5): fields 14 and 15 in ticks of 10 ms, counted from behind the name in brackets, which is field 2.
        let after_name = stat.rsplit_once(')').context("no name in brackets")?.1;
        let fields: Vec<_> = after_name.split_whitespace().collect();
        let ticks = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<f64>().ok());
        Ok((ticks(14).context("no user time")? + ticks(15).context("no system time")?) / 100.0)
    }

    /// Memory that it holds now.
    fn memory_mib(&self) -> anyhow::Result<f64> {
        let status = fs::read_to_string(self.0.join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }
}
