//! The operator's API and the commands that speak to it: jobs wait, are shown, are followed, are refused; and the machine is freed
//! when whoever owns its job goes away.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::bench::{Bench, Job, Shared, until};

use crate::farms::{HELLO, WHARF, farm_of, linux_job, simulated};

/// A farm of one machine, and the right to be the only test on it: these tests fill it.
struct OneMachine(Arc<Bench>, #[expect(dead_code, reason = "it is held")] MutexGuard<'static, ()>);

impl OneMachine {
    fn new() -> OneMachine {
        static ONE: Shared = Shared::new();
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        OneMachine(ONE.running(|| Bench::start(WHARF, &farm_of(&[("only", "")]))), alone)
    }

    /// Occupies the machine.
    fn occupied(&self) -> Job<'_> {
        let mut job = self.0.submit(&hanging(), "");
        job.wait_for_console("wharf: job done");
        job
    }
}

fn hanging() -> String {
    linux_job("only", "wharf.end=hang", "overall: {minutes: 5}", "")
}

fn short() -> String {
    linux_job("only", "wharf.beats=1", "overall: {minutes: 2}", "")
}

fn wharf(bench: &Bench, arguments: &[&str]) -> Command {
    let mut command = Command::new(WHARF);
    command.args(arguments).env("WHARF_SERVER", bench.url()).stdin(Stdio::null());
    command
}

fn run(bench: &Bench, arguments: &[&str]) -> Output {
    wharf(bench, arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// Starts `wharf run` on a job that hangs, and waits until its console shows that it does.
fn run_until_it_hangs(bench: &Bench, job: &str) -> Child {
    let mut command = wharf(bench, &["run", job]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("wharf: job done") {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "the job ended");
    }
    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    child
}

#[test]
fn the_higher_priority_goes_first_and_then_the_older() {
    let farm = OneMachine::new();
    let bench = &farm.0;
    let first = farm.occupied();
    let mut waiting: Vec<_> = ["?priority=0&name=a", "?priority=5&name=b", "?priority=5&name=c"]
        .iter()
        .map(|query| bench.submit(&short(), query))
        .collect();
    // What it hears first may be this place already.
    let mut last = waiting.remove(0);
    last.wait_for("its place behind both", |event| event["place"] == 3);
    waiting.iter_mut().for_each(|job| drop(job.wait_for_kind("queued")));
    first.cancel();
    let mut order = Vec::new();
    for job in waiting.into_iter().chain([last]) {
        let ended = job.wait();
        ended.expect("PASS", "test");
        let leased = ended.of_kind("leased")[0]["at"].as_str().unwrap().to_owned();
        order.push(leased);
    }
    assert!(order.is_sorted(), "b, c, then a: {order:?}");
    first.wait().expect("INCOMPLETE", "cancelled");
}

#[test]
fn a_job_whose_deadline_passes_while_it_waits_ends_there_and_one_that_runs_ends_at_it() {
    let bench = Bench::start(WHARF, &farm_of(&[("only", "")]));
    let deadline = jiff::Timestamp::now() + Duration::from_secs(4);
    let hang = linux_job("only", "wharf.end=hang", "overall: {minutes: 5}", "");
    let with_deadline = format!("deadline: '{deadline}'\n{hang}");
    let mut first = bench.submit(&with_deadline, "");
    first.wait_for_kind("powered_on");
    let second = bench.submit(&with_deadline, "");
    let waited = second.wait();
    waited.expect("INCOMPLETE", "timeout");
    waited.expect_summary("its deadline passed while it waited for a DUT");
    assert_eq!(waited.dut(), None);
    let ran = first.wait();
    ran.expect("INCOMPLETE", "timeout");
    assert!(jiff::Timestamp::now() >= deadline);
    let late = bench.submit(&with_deadline, "").wait();
    late.expect("INCOMPLETE", "timeout");
}

#[test]
fn who_does_not_wait_is_told_who_holds_the_machine() {
    let farm = OneMachine::new();
    let first = farm.occupied();
    let answer = farm.0.refused(&short(), "?queue=0");
    assert_eq!(answer.status, 409, "{answer:?}");
    let error = answer.json()["error"].as_str().unwrap().to_owned();
    assert!(error.contains("every fitting DUT is busy") && error.contains("odd-only-1"), "{error}");
    first.cancel();
    first.wait().expect("INCOMPLETE", "cancelled");
}

#[test]
fn what_no_machine_could_ever_take_is_refused_at_once() {
    let bench = simulated();
    let refused = |query: &str| bench.refused(HELLO, query);
    let answer = refused("?tag=amdgpu");
    assert_eq!(answer.status, 406, "{answer:?}");
    assert!(answer.text().contains("no DUT has the tags amdgpu"), "{answer:?}");
    let answer = refused("?dut=nobody");
    assert_eq!(answer.status, 404, "{answer:?}");
    assert!(answer.text().contains("no DUT `nobody`; DUTs: simulated-sim-1, simulated-sim-2"), "{answer:?}");
    assert_eq!(refused("?colour=red").status, 400);
}

#[test]
fn the_problems_of_a_job_come_all_at_once_with_their_places() {
    let bench = simulated();
    let job = HELLO.replace("minutes: 10", "minuets: 10").replace("retries: 1", "retries: many");
    let answer = bench.refused(&job, "?name=wrong.yml").json();
    let problems = answer["problems"].as_array().unwrap();
    let fields: Vec<_> =
        problems.iter().map(|problem| (&problem["field"], &problem["line"], &problem["file"])).collect();
    let expected = [
        (&json!("timeouts.overall.minuets"), &json!(13), &json!("wrong.yml")),
        (&json!("timeouts.boot_cycle.retries"), &json!(14), &json!("wrong.yml")),
    ];
    assert_eq!(fields, expected, "{answer}");
}

#[test]
fn a_page_of_another_origin_may_not_submit() {
    let bench = simulated();
    let headers = "application/yaml\r\nOrigin: https://evil.example";
    assert_eq!(bench.post("/api/v1/jobs", headers, HELLO.as_bytes()).status, 403);
}

#[test]
fn what_does_not_exist_is_404_in_json() {
    let bench = simulated();
    for path in ["/", "/api/v1/nothing", "/api/v1/jobs/999999", "/api/v1/jobs/999999/log", "/api/v1/jobs/999999/events"]
    {
        let answer = bench.get(path);
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
        assert!(answer.json()["error"].is_string(), "{path}: {answer:?}");
    }
    assert_eq!(bench.post("/api/v1/jobs/999999/cancel", "application/json", b"").status, 404);
    assert_eq!(bench.post("/api/v1/duts", "application/json", b"").status, 405);
}

#[test]
fn the_document_for_programs_names_every_route_of_the_page() {
    let document = simulated().get("/api/v1/openapi.json").json();
    for path in ["/api/v1/jobs", "/api/v1/jobs/{id}", "/api/v1/jobs/{id}/log", "/api/v1/jobs/{id}/events"] {
        assert!(document["paths"][path]["get"].is_object(), "{path}: {document}");
    }
    for path in ["/api/v1/jobs/{id}/cancel", "/api/v1/jobs/{id}/console", "/api/v1/dut/{name}/cancel_job"] {
        assert!(document["paths"][path]["post"].is_object(), "{path}: {document}");
    }
    for path in ["/api/v1/duts", "/api/v1/full-state", "/api/v1/schema/job"] {
        assert!(document["paths"][path]["get"].is_object(), "{path}: {document}");
    }
}

#[test]
fn the_schema_is_the_one_that_the_command_prints() {
    let output = Command::new(WHARF).args(["schema", "job"]).output().unwrap();
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(simulated().get("/api/v1/schema/job").json(), printed);
}

#[test]
fn a_late_reader_gets_all_of_an_ended_job() {
    let bench = simulated();
    let ended = bench.run(&linux_job("simulated", "x=1", "overall: {minutes: 2}", ""));
    let again = bench.follow(&ended.id, "").wait();
    assert_eq!(again.events, ended.events);
    let from = bench.follow(&ended.id, "?from=3").wait();
    assert_eq!(from.events[..], ended.events[3..]);
    let since = bench.get(&format!("/api/v1/jobs/{}/log?since=10", ended.id));
    assert_eq!(since.body, ended.console.as_bytes()[10..]);
    assert_eq!(bench.post(&format!("/api/v1/jobs/{}/cancel", ended.id), "application/json", b"").status, 409);
}

#[test]
fn a_quick_check_boots_the_machine_that_it_names() {
    let bench = simulated();
    let newest = || bench.get("/api/v1/jobs").json()["jobs"].as_array().unwrap().clone();
    let answer = bench.post("/api/v1/dut/simulated-sim-2/quick_check", "application/json", b"");
    assert_eq!(answer.status, 200, "{answer:?}");
    let jobs = newest();
    let check = jobs.iter().find(|job| job["submitter"] == "quick check").unwrap_or_else(|| panic!("{jobs:?}"));
    let ended = bench.follow(check["id"].as_str().unwrap(), "").wait();
    ended.expect("PASS", "test");
    assert_eq!(ended.dut().as_deref(), Some("simulated-sim-2"));
    let is_over = || bench.get("/api/v1/dut/simulated-sim-2/quick_check").text().trim() == "false";
    until(Duration::from_secs(30), || is_over().then_some(())).expect("the check is over soon after its job");
}

#[test]
fn run_shows_the_console_on_standard_output_and_ends_with_the_verdict() {
    let bench = simulated();
    let folder = tempfile::tempdir().unwrap();
    let output = run(&bench, &["run", &file(&folder, "hello.yml", HELLO)]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let console = stdout(&output);
    assert!(console.contains("wharf: init started\r\n") && console.contains("wharf: job done\r\n"), "{console}");
    assert!(!console.contains("Verdict"), "standard output is the console and nothing else: {console}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("PASS"), "{output:?}");
    let fails = file(&folder, "fails.yml", &HELLO.replace("^wharf: job done", "^this is never said"));
    assert_eq!(run(&bench, &["run", &fails]).status.code(), Some(3));
    assert_eq!(run(&bench, &["run", "--exit-map", "FAIL=42", &fails]).status.code(), Some(42));
    assert_eq!(run(&bench, &["run"]).status.code(), Some(64), "a usage error");
    let wrong = file(&folder, "wrong.yml", "version: [");
    assert_eq!(run(&bench, &["run", &wrong]).status.code(), Some(70), "a refused job");
}

#[test]
fn run_forwards_the_environment_and_attaches_files() {
    let bench = simulated();
    let folder = tempfile::tempdir().unwrap();
    let attached = file(&folder, "attached", &"x".repeat(54_321));
    let storage = "    storage:\n      http: [{path: /mine, attached: mine}]\n";
    let words = "word={{ environ.OUR_WORD }} other=<{{ environ.HOME }}> wharf.url={{ job.http.url }}/mine";
    let job = file(&folder, "job.yml", &linux_job("simulated", words, "overall: {minutes: 2}", storage));
    let mut command = wharf(&bench, &["run", "-E", "OUR_.*", "-f", &format!("mine:{attached}"), &job]);
    let output = command.env("OUR_WORD", "forwarded").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let console = stdout(&output);
    assert!(console.contains("word=forwarded other=<> ") && console.contains("/mine 54321 bytes"), "{console}");
}

#[test]
fn ctrl_c_and_sigterm_end_run_with_the_verdict_and_free_the_machine_within_five_seconds() {
    let farm = OneMachine::new();
    let folder = tempfile::tempdir().unwrap();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut child = run_until_it_hangs(&farm.0, &file(&folder, "hangs.yml", &hanging()));
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        farm.0.wait_until_free("odd-only-1", Duration::from_secs(5)).expect("free and off");
        let status = until(Duration::from_secs(5), || child.try_wait().unwrap()).expect("it ends with its job");
        assert_eq!(status.code(), Some(4), "INCOMPLETE after {signal}");
        farm.0.follow(&newest(&farm.0), "").wait().expect("INCOMPLETE", "cancelled");
    }
}

/// A way to the server on which this is done before the first answer comes back.
fn relay(server: SocketAddr, before_the_first_answer: impl FnOnce() + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut before = Some(before_the_first_answer);
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect(server).unwrap();
            let (mut asks, mut asked) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut asks, &mut asked));
            let (mut server, mut client, before) = (server, client, before.take());
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                let length = server.read(&mut bytes)?;
                before.into_iter().for_each(|before| before());
                client.write_all(&bytes[..length])?;
                std::io::copy(&mut server, &mut client)
            });
        }
    });
    address
}

#[test]
fn a_run_that_is_told_to_stop_before_it_knows_its_job_cancels_it() {
    let farm = OneMachine::new();
    let folder = tempfile::tempdir().unwrap();
    let (tell, told) = mpsc::channel();
    let relay = relay(farm.0.address(), move || kill(told.recv().unwrap(), Signal::SIGTERM).unwrap());
    let mut command = wharf(&farm.0, &["run", &file(&folder, "hangs.yml", &hanging())]);
    command.env("WHARF_SERVER", format!("http://{relay}")).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    tell.send(Pid::from_raw(child.id().cast_signed())).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(4), "INCOMPLETE: {output:?}");
    farm.0.follow(&newest(&farm.0), "").wait().expect("INCOMPLETE", "cancelled");
}

#[test]
fn killing_run_frees_the_machine_within_five_seconds() {
    let farm = OneMachine::new();
    let folder = tempfile::tempdir().unwrap();
    let mut child = run_until_it_hangs(&farm.0, &file(&folder, "hangs.yml", &hanging()));
    child.kill().unwrap();
    child.wait().unwrap();
    farm.0.wait_until_free("odd-only-1", Duration::from_secs(5)).expect("free and off");
    // Its verdict comes once its DUT has been given back.
    farm.0.follow(&newest(&farm.0), "").wait().expect("INCOMPLETE", "submitter");
}

/// The number of the job that was handed in last.
fn newest(bench: &Bench) -> String {
    bench.get("/api/v1/jobs").json()["jobs"][0]["id"].as_str().expect("a job was handed in").to_owned()
}

#[test]
fn a_detached_job_is_listed_shown_logged_and_cancelled_by_commands() {
    let farm = OneMachine::new();
    let bench = &farm.0;
    let folder = tempfile::tempdir().unwrap();
    let detached = run(bench, &["run", "--detach", &file(&folder, "hangs.yml", &hanging())]);
    assert_eq!(detached.status.code(), Some(0), "{detached:?}");
    let id = stdout(&detached).trim().to_owned();
    bench.follow(&id, "").wait_for_console("wharf: job done");
    let jobs: Value = serde_json::from_str(&stdout(&run(bench, &["jobs", "--json"]))).unwrap();
    assert_eq!((&jobs["jobs"][0]["id"], &jobs["jobs"][0]["state"]), (&json!(id), &json!("running")));
    let duts: Value = serde_json::from_str(&stdout(&run(bench, &["duts", "--json"]))).unwrap();
    assert!(duts.to_string().contains("RUNNING"), "{duts}");
    assert!(stdout(&run(bench, &["duts"])).contains("odd-only-1"));
    assert_eq!(run(bench, &["job", "cancel", &id]).status.code(), Some(0));
    bench.follow(&id, "").wait().expect("INCOMPLETE", "cancelled");
    let shown: Value = serde_json::from_str(&stdout(&run(bench, &["job", "show", "--json", &id]))).unwrap();
    assert_eq!(shown["verdict"]["status"], "INCOMPLETE", "{shown}");
    let raw = run(bench, &["job", "log", "--raw", &id]);
    assert!(stdout(&raw).contains("wharf: job done\r\n"), "{raw:?}");
}

#[test]
fn the_local_socket_of_the_server_answers_as_its_address_does() {
    let bench = simulated();
    // The server says that it is ready when its address answers, which may be a moment before its socket does.
    let connect = || UnixStream::connect(bench.local_socket()).ok();
    let mut stream = until(Duration::from_secs(10), connect).expect("the socket answers");
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"GET /api/v1/jobs HTTP/1.0\r\nHost: wharf\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 200 OK\r\n") && answer.contains("\"jobs\""), "{answer}");
    let socket = bench.local_socket().display().to_string();
    let output = Command::new(WHARF).args(["--server", &socket, "duts", "--json"]).output().unwrap();
    assert!(stdout(&output).contains("simulated-sim-4"), "{output:?}");
}

#[test]
fn the_api_of_a_farm_is_not_on_the_network_of_its_machines() {
    let bench = simulated();
    let port = bench.address().port();
    let words = format!("wharf.url=http://10.78.0.1:{port}/api/v1/duts wharf.url=http://10.78.0.1/api/v1/duts");
    let ended = bench.run(&linux_job("simulated", &words, "overall: {minutes: 2}", ""));
    ended.expect("FAIL", "test").expect_said(&["wharf: failed http", "wharf: failed http", "wharf: job failed"]);
    ended.expect_in_order(&["HTTP /api/v1/duts: refused to 10.78.0."]);
}
