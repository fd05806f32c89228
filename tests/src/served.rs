//! `wharf serve` as users run it: a process with a farm file, spoken to by curl over its API.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::Running;

/// How long a farm may take to stop: it cancels its jobs and drains its servers, five seconds at most.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A running server. Dropping it stops it as an operator would, by SIGTERM.
pub struct Served {
    process: Running,
    api: String,
}

impl Served {
    /// Starts `binary` (the path of `wharf`) with a farm file; what it keeps goes to `folder`. Returns when it takes jobs.
    pub fn start(binary: &str, farm: &Path, folder: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(binary);
        command.args(["serve", "--api", "127.0.0.1:0", "--farm"]).arg(farm).arg("--state").arg(folder.join("state"));
        command
            .env("XDG_RUNTIME_DIR", folder)
            .env("WHARF_LOG", std::env::var("WHARF_LOG").unwrap_or("warn".to_owned()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(fs::File::create(folder.join("wharf.log"))?);
        // SAFETY: between fork and exec only prctl(2) is called.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(&mut command, || {
                set_pdeathsig(Signal::SIGTERM).map_err(Into::into)
            });
        }
        let mut process = Running::of("wharf serve", command.spawn().context("cannot start wharf serve")?);
        let output = process.child().stdout.take().context("its output is piped")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let said = || fs::read_to_string(folder.join("wharf.log")).unwrap_or_default();
        let api = line.split_once("http://").with_context(|| format!("wharf serve did not start: {}", said()))?.1;
        Ok(Served { api: format!("http://{}", api.trim()), process })
    }

    /// Where its API is.
    pub fn api(&self) -> &str {
        &self.api
    }

    /// Hands in a job; its id.
    pub fn submit(&self, description: &Path) -> anyhow::Result<String> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--header", "content-type: application/yaml", "--data-binary"]);
        curl.arg(format!("@{}", description.display())).arg(format!("{}/api/v1/jobs", self.api));
        let answer: Value = serde_json::from_slice(&curl.output()?.stdout)?;
        let id = answer.get("id").and_then(Value::as_str);
        Ok(id.with_context(|| format!("the job was not taken: {answer}"))?.to_owned())
    }

    /// All events of a job as they come, until it ends.
    pub fn events(&self, job: &str, hear: &mut dyn FnMut(&Value) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--no-buffer"]).arg(format!("{}/api/v1/jobs/{job}/events", self.api));
        let mut curl = Running::of("curl", curl.stdout(Stdio::piped()).spawn()?);
        let output = curl.child().stdout.take().context("its output is piped")?;
        for line in BufReader::new(output).lines() {
            let line = line?;
            if !line.is_empty() {
                hear(&serde_json::from_str(&line)?)?;
            }
        }
        ensure!(curl.child().wait()?.success(), "the events of job {job} broke off");
        Ok(())
    }

    /// The words that started the machine it runs now, the program first.
    pub fn machine(&self) -> anyhow::Result<Vec<String>> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id()))?;
        let children = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
        let children: Vec<String> = children.flat_map(|line| words(&line)).collect();
        let lines = children.iter().filter_map(|child| fs::read_to_string(format!("/proc/{child}/cmdline")).ok());
        let words = |line: String| line.trim_end_matches('\0').split('\0').map(str::to_owned).collect::<Vec<_>>();
        let mut machines = lines.map(words).filter(|words| words.first().is_some_and(|it| it.contains("qemu-system")));
        machines.next().context("wharf serve runs no QEMU")
    }

    /// Processor time that it has used so far, its threads together, in seconds.
    pub fn processor_s(&self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        // proc(5): fields 14 and 15 in ticks of 10 ms, counted from behind the name in brackets, which is field 2.
        let fields = words(stat.rsplit_once(')').context("no name in brackets")?.1);
        let ticks = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<f64>().ok());
        Ok((ticks(14).context("no user time")? + ticks(15).context("no system time")?) / 100.0)
    }

    /// Memory that it holds now, in MiB.
    pub fn memory_mib(&self) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(words(line).first().context("no figure")?.parse::<f64>()? / 1024.0)
    }

    /// How many threads it has.
    pub fn threads(&self) -> anyhow::Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/task", self.process.id()))?.count())
    }
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.process.id() as i32), Signal::SIGTERM);
        let start = Instant::now();
        while matches!(self.process.child().try_wait(), Ok(None)) && start.elapsed() < STOP_TIMEOUT {
            std::thread::sleep(Duration::from_millis(10));
        }
        // Whatever is left is killed by `Running`.
    }
}
