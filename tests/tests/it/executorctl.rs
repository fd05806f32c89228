//! CI-tron's own client, unmodified from PyPI, on our server: the newest one, which upgrades its request to a console, and the last one
//! that is called back.
//!
//! They live in virtual environments, made once.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tests::bench::{Bench, Shared};
use tests::packages::python;

use crate::farms::{HELLO, WHARF, farm_of, linux_job, simulated};

/// Upgrades the connection of its POST.
const UPGRADES: &str = "0.2.1";
/// Listens, and is called back.
const IS_CALLED_BACK: &str = "0.0.9";

/// A client with the folder that its job file and its `mcli` are in.
struct Client {
    program: PathBuf,
    url: String,
    folder: tempfile::TempDir,
}

impl Client {
    fn new(version: &str, bench: &Bench) -> Client {
        let folder = tempfile::tempdir().unwrap();
        // It refuses to run without a MinIO client in its PATH, which it only uses when the server names a bucket.
        let mcli = folder.path().join("mcli");
        std::fs::write(&mcli, "#!/bin/sh\nexit 1\n").unwrap();
        std::fs::set_permissions(&mcli, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Client { program: program(version), url: bench.url(), folder }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.folder.path().display()));
        command.arg("-e").arg(&self.url).args(arguments).stdin(Stdio::null());
        command
    }

    fn run_command(&self, job: &str, arguments: &[&str]) -> Command {
        let file = self.folder.path().join("job.yml");
        std::fs::write(&file, job).unwrap();
        let mut command = self.command(&["run"]);
        command.args(arguments).arg(file);
        command
    }

    fn run(&self, job: &str, arguments: &[&str]) -> Output {
        self.run_command(job, arguments).output().unwrap()
    }

    /// Starts a job and leaves its standard output to be read.
    fn start(&self, job: &str, arguments: &[&str]) -> Child {
        let mut command = self.run_command(job, arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    }
}

/// The client's program; installed when it is not there yet.
fn program(version: &str) -> PathBuf {
    python(&[&format!("valve-gfx-ci.executor.client=={version}")]).join("executorctl")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Reads lines until one has these words.
fn read_until(lines: &mut impl BufRead, words: &str) -> String {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(words) {
        let length = lines.read_until(b'\n', &mut read).unwrap();
        assert!(length > 0, "no `{words}`: {}", String::from_utf8_lossy(&read));
    }
    String::from_utf8_lossy(&read).into_owned()
}

/// One machine: its jobs wait for each other.
fn one_machine() -> std::sync::Arc<Bench> {
    static ONE: Shared = Shared::new();
    ONE.bench(|| Bench::start(WHARF, &farm_of(&[("only", "")])))
}

/// Tests that fill the farm of one machine, one after the other.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[track_caller]
fn runs_hello(version: &str, connected: &str) {
    let bench = simulated();
    let output = Client::new(version, &bench).run(HELLO, &["--wait"]);
    let said = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for words in [connected, "wharf: init started\r\n", "wharf: job done\r\n", "job_success"] {
        assert!(said.contains(words), "no `{words}`:\n{said}");
    }
    assert!(!said.contains("Traceback"), "{said}");
}

#[test]
fn the_newest_client_runs_hello_over_the_upgraded_connection() {
    runs_hello(UPGRADES, "The http connection got upgraded to the ci-tron console protocol");
}

#[test]
fn an_old_client_runs_hello_and_is_called_back() {
    runs_hello(IS_CALLED_BACK, "Connection established after");
}

#[test]
fn a_job_that_fails_is_status_3_for_both() {
    let bench = simulated();
    let job = HELLO.replace("^wharf: job done", "^this is never said");
    for version in [UPGRADES, IS_CALLED_BACK] {
        let output = Client::new(version, &bench).run(&job, &["--wait"]);
        assert_eq!(output.status.code(), Some(3), "{version}: {output:?}");
    }
}

#[test]
fn a_job_with_problems_is_status_6_with_the_drawing_of_them() {
    let bench = simulated();
    let job = HELLO.replace("minutes: 10", "minuets: 10");
    let output = Client::new(UPGRADES, &bench).run(&job, &[]);
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("minuets") && told.contains("timeouts.overall"), "{told}");
}

#[test]
fn a_target_on_the_command_line_replaces_the_jobs_and_what_is_impossible_is_refused() {
    let bench = simulated();
    let client = Client::new(UPGRADES, &bench);
    let output = client.run(HELLO, &["--machine-id", "simulated-sim-2"]);
    assert!(stdout(&output).contains("hello") && output.status.success(), "{output:?}");
    assert!(stdout(&output).contains("wharf: network 10.78.0.12/24"), "{output:?}");
    let output = client.run(HELLO, &["--machine-tag", "amdgpu"]);
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no DUT has the tags amdgpu"), "{output:?}");
}

#[test]
fn the_newest_client_forwards_its_environment_and_attaches_a_file() {
    let bench = simulated();
    let client = Client::new(UPGRADES, &bench);
    let attached = client.folder.path().join("attached");
    std::fs::write(&attached, "x".repeat(12_345)).unwrap();
    let storage = "    storage:\n      http: [{path: /mine, attached: mine}]\n";
    let words = "word={{ environ.CI_TRON_WORD }} wharf.url={{ job.http.url }}/mine";
    let job = linux_job("simulated", words, "overall: {minutes: 2}", storage);
    let mut command = client.run_command(&job, &["-f", &format!("mine:{}", attached.display())]);
    let output = command.env("CI_TRON_WORD", "forwarded").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = stdout(&output);
    assert!(said.contains("word=forwarded ") && said.contains("/mine 12345 bytes"), "{said}");
}

#[track_caller]
fn eight_at_once(version: &str) {
    let bench = simulated();
    let clients: Vec<_> = (0..8).map(|_| Client::new(version, &bench)).collect();
    let running: Vec<_> = clients.iter().map(|client| client.start(HELLO, &["--wait"])).collect();
    for child in running {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
        assert!(stdout(&output).contains("wharf: job done\r\n"), "{}", stdout(&output));
    }
}

#[test]
fn eight_of_the_newest_client_at_once_all_pass() {
    eight_at_once(UPGRADES);
}

#[test]
fn eight_of_an_old_client_at_once_all_pass() {
    eight_at_once(IS_CALLED_BACK);
}

/// A job that says it is done, and hangs.
fn hanging() -> String {
    linux_job("only", "wharf.end=hang", "overall: {minutes: 5}", "")
}

#[track_caller]
fn a_killed_client_frees_its_machine(version: &str) {
    let _alone = alone();
    let bench = one_machine();
    let client = Client::new(version, &bench);
    let mut child = client.start(&hanging(), &["--wait"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    // The job still runs: what is read now was shown live.
    read_until(&mut lines, "wharf: job done");
    assert_eq!(bench.dut("odd-only-1")["state"], "RUNNING");
    child.kill().unwrap();
    child.wait().unwrap();
    bench.wait_until_free("odd-only-1", Duration::from_secs(5)).expect("free and off");
    let jobs = bench.get("/api/v1/jobs").json();
    assert_eq!(jobs["jobs"][0]["verdict"]["cause"], "submitter", "{jobs}");
}

#[test]
fn killing_the_newest_client_frees_its_machine_within_five_seconds() {
    a_killed_client_frees_its_machine(UPGRADES);
}

#[test]
fn killing_an_old_client_frees_its_machine_within_five_seconds() {
    a_killed_client_frees_its_machine(IS_CALLED_BACK);
}

#[test]
fn on_a_busy_farm_the_newest_client_waits_in_the_queue_and_is_shown_its_place() {
    let _alone = alone();
    let bench = one_machine();
    let mut first = bench.submit(&hanging(), "");
    first.wait_for_kind("leased");
    let client = Client::new(UPGRADES, &bench);
    let mut second = client.start(&linux_job("only", "x=1", "overall: {minutes: 2}", ""), &[]);
    let mut lines = BufReader::new(second.stdout.take().unwrap());
    let told = read_until(&mut lines, "odd-only-1");
    assert!(told.contains("Waiting for a DUT: place 1 in the queue\n  odd-only-1"), "its place, and why: {told}");
    first.cancel();
    read_until(&mut lines, "wharf: job done");
    drop(std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink())));
    assert_eq!(second.wait().unwrap().code(), Some(0));
    first.wait().expect("INCOMPLETE", "cancelled");
}

#[test]
fn on_a_busy_farm_an_old_client_is_refused_and_with_wait_comes_again() {
    let _alone = alone();
    let bench = one_machine();
    let mut first = bench.submit(&hanging(), "");
    first.wait_for_kind("leased");
    let client = Client::new(IS_CALLED_BACK, &bench);
    let job = linux_job("only", "x=1", "overall: {minutes: 2}", "");
    let refused = client.run(&job, &[]);
    assert_eq!(refused.status.code(), Some(6), "{refused:?}");
    let told = stdout(&refused) + &String::from_utf8_lossy(&refused.stderr);
    assert!(told.contains("every fitting DUT is busy"), "{told}");
    let mut waits = client.start(&job, &["--wait"]);
    let mut output = BufReader::new(waits.stdout.take().unwrap());
    let mut told = vec![0; "No machines available for the job, waiting: ".len()];
    std::io::Read::read_exact(&mut output, &mut told).unwrap();
    assert_eq!(String::from_utf8_lossy(&told), "No machines available for the job, waiting: ");
    first.cancel();
    read_until(&mut output, "wharf: job done");
    drop(std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink())));
    assert_eq!(waits.wait().unwrap().code(), Some(0));
    first.wait().expect("INCOMPLETE", "cancelled");
}

#[test]
fn the_machines_are_listed_and_one_is_shown() {
    let bench = simulated();
    for version in [UPGRADES, IS_CALLED_BACK] {
        let client = Client::new(version, &bench);
        let list = client.command(&["duts"]).output().unwrap();
        assert!(list.status.success(), "{list:?}");
        let told = stdout(&list);
        for words in ["Full name", "simulated-sim-1", "10.78.0.14", "starts as UEFI without iPXE"] {
            assert!(told.contains(words), "no `{words}`: {told}");
        }
        let one = client.command(&["dut", "info", "simulated-sim-3"]).output().unwrap();
        assert!(one.status.success() && stdout(&one).contains("'mac_address': '52:54:00:78:00:03'"), "{one:?}");
        let none = client.command(&["dut", "info", "nobody"]).output().unwrap();
        assert_eq!((none.status.code(), stdout(&none).trim()), (Some(1), "No DUTs exist with this name"));
    }
}
