//! CI-tron's own client, unmodified from PyPI, on our server: every version from 0.0.9 on, side by side. Those since 0.2.0 upgrade their
//! request to a console, the others are called back.
//!
//! | option | tried here |
//! |---|---|
//! | `-w` | on a busy farm |
//! | `-c`, `-j`, `-t`, `-i`, `-E`, `-f`, `--job-cookie`, `-a` | what the server makes of each |
//! | `-g` | refused here, where no group is; `buckets` has one |
//! | a job by URL | fetched by the server, over TLS |
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
/// The first with `-E`, `-f` and `--job-cookie`, and the last that is called back.
const LAST_CALLED_BACK: &str = "0.1.0";
/// The first that upgrades; it reads refusals otherwise than all others.
const FIRST_TO_UPGRADE: &str = "0.2.0";
/// All of them.
const VERSIONS: [&str; 4] = [IS_CALLED_BACK, LAST_CALLED_BACK, FIRST_TO_UPGRADE, UPGRADES];

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
    ONE.running(|| Bench::start(WHARF, &farm_of(&[("only", "")])))
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
fn the_first_client_that_upgrades_runs_hello() {
    runs_hello(FIRST_TO_UPGRADE, "The http connection got upgraded to the ci-tron console protocol");
}

/// A client of each version at the same time, and what each said.
fn side_by_side(bench: &Bench, job: &str, arguments: &[&str]) -> Vec<(&'static str, Output)> {
    let clients = VERSIONS.map(|version| (version, Client::new(version, bench)));
    let piped = |client: &Client| {
        let mut command = client.run_command(job, arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let running: Vec<_> = clients.iter().map(|(version, client)| (*version, piped(client))).collect();
    running.into_iter().map(|(version, child)| (version, child.wait_with_output().unwrap())).collect()
}

#[test]
fn a_job_that_fails_is_status_3_for_every_version_side_by_side() {
    let bench = simulated();
    let job = HELLO.replace("^wharf: job done", "^this is never said");
    for (version, output) in side_by_side(&bench, &job, &["--wait"]) {
        assert_eq!(output.status.code(), Some(3), "{version}: {output:?}");
        assert!(stdout(&output).contains("wharf: job done\r\n"), "{version}: {output:?}");
    }
}

#[test]
fn a_job_with_problems_is_status_6_with_the_drawing_of_them_in_every_version() {
    let bench = simulated();
    let job = HELLO.replace("minutes: 10", "minuets: 10");
    for (version, output) in side_by_side(&bench, &job, &[]) {
        assert_eq!(output.status.code(), Some(6), "{version}: {output:?}");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("minuets") && told.contains("timeouts.overall"), "{version}: {told}");
        assert!(!told.contains("Traceback"), "{version}: {told}");
    }
}

#[test]
fn a_group_of_minio_is_refused_by_its_option_in_every_version() {
    let bench = simulated();
    for (version, output) in side_by_side(&bench, HELLO, &["-a", "access:secret", "-g", "team"]) {
        assert_eq!(output.status.code(), Some(6), "{version}: {output:?}");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("--minio-group"), "{version}: {told}");
    }
}

#[test]
fn every_option_of_every_client_that_has_them_means_something() {
    let bench = simulated();
    for version in [LAST_CALLED_BACK, FIRST_TO_UPGRADE, UPGRADES] {
        every_option_means_something(&bench, version);
    }
}

#[track_caller]
fn every_option_means_something(bench: &Bench, version: &str) {
    let client = Client::new(version, bench);
    let attached = client.folder.path().join("attached");
    std::fs::write(&attached, "x".repeat(54_321)).unwrap();
    let storage = "    storage:\n      http: [{path: /mine, attached: mine}]\n";
    let words = "word={{ environ.WORD_ONE }} other={{ environ.OTHER }}. wharf.url={{ job.http.url }}/mine";
    let job = linux_job("nobody-has-this", words, "overall: {minutes: 2}", storage);
    let attached = format!("mine:{}", attached.display());
    let cookie = format!("forge_{}", "0123456789abcdef".repeat(4));
    let options = ["-w", "-c", "127.0.0.2", "-j", "my-own-name", "-t", "simulated", "-E", "WORD_.*", "-a", "any:thing"];
    let mut command = client.run_command(&job, &[&options[..], &["--job-cookie", &cookie, "-f", &attached]].concat());
    let output = command.env("WORD_ONE", "forwarded").env("OTHER", "kept").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said = stdout(&output);
    for words in ["(my-own-name) is accepted", "word=forwarded other=. ", "/mine 54321 bytes"] {
        assert!(said.contains(words), "no `{words}`: {said}");
    }
    let jobs = bench.get("/api/v1/jobs").json();
    let of_mine = |job: &&serde_json::Value| {
        job["submitter"].as_str().is_some_and(|it| it.ends_with(" for the job source forge"))
    };
    assert!(jobs["jobs"].as_array().unwrap().iter().any(|job| of_mine(&job)), "{jobs}");
    assert!(!jobs.to_string().contains("0123456789abcdef"), "the cookie's secret is not kept: {jobs}");
}

#[test]
fn a_console_that_cannot_be_reached_is_told_with_the_option_that_names_another() {
    let bench = simulated();
    // The client listens on IPv4 alone.
    let output = Client::new(IS_CALLED_BACK, &bench).run(HELLO, &["--wait", "-c", "::1"]);
    assert_eq!(output.status.code(), Some(6), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("cannot connect to your console at ::1:") && told.contains("--callback"), "{told}");
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

/// A server with one file over TLS, whose certificate is its own authority. It ends with its standard input.
const HTTPS: &str = "
import http.server, os, ssl, sys, threading
os.chdir(sys.argv[1])
class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Quiet)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('certificate.pem', 'key.pem')
server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
sys.stdin.read()
";

fn certificate_in(folder: &std::path::Path) {
    tests::bench::need_programs(&[("/usr/bin/openssl", "openssl")]);
    let words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=here -keyout key.pem \
                 -out certificate.pem -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE";
    let output = Command::new("openssl").args(words.split_whitespace()).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_job_by_url_is_fetched_by_the_server_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    certificate_in(folder.path());
    std::fs::write(folder.path().join("hello.yml"), linux_job("only", "x=1", "overall: {minutes: 2}", "")).unwrap();
    let mut server = Command::new("python3");
    server.args(["-c", HTTPS]).arg(folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = server.spawn().unwrap();
    let mut port = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut port).unwrap();
    let certificate = folder.path().join("certificate.pem").display().to_string();
    let environment = vec![("SSL_CERT_FILE".to_owned(), certificate)];
    let surroundings = tests::bench::Surroundings { environment, ..Default::default() };
    let bench = Bench::start_with(WHARF, &farm_of(&[("only", "")]), surroundings);
    let url = format!("https://127.0.0.1:{}/hello.yml", port.trim());
    for version in [LAST_CALLED_BACK, FIRST_TO_UPGRADE, UPGRADES] {
        let output = Client::new(version, &bench).command(&["run", "-w", &url]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{version}: {output:?}");
        assert!(stdout(&output).contains("wharf: job done\r\n"), "{version}: {output:?}");
    }
    let missing = Client::new(UPGRADES, &bench).command(&["run", &url.replace("hello", "absent")]).output().unwrap();
    assert_eq!(missing.status.code(), Some(6), "{missing:?}");
    let told = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(told.contains("cannot fetch the job from https://") && told.contains("404"), "{told}");
    drop(server.stdin.take());
    server.wait().unwrap();
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
    // Its verdict comes once its DUT has been given back.
    let jobs = bench.get("/api/v1/jobs").json();
    let newest = jobs["jobs"][0]["id"].as_str().expect("a job was handed in");
    bench.follow(newest, "").wait().expect("INCOMPLETE", "submitter");
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
    for version in VERSIONS {
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
