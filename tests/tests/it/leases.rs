//! A person takes a DUT for a while, uses it, hands it over, gives it back; who waits knows for what; and everything that happened can be read,
//! with its cause.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::bench::{Answer, Bench, Shared, until};

use crate::farms::{WHARF, farm_of, linux_job};

/// What a DUT needs to be off and free once its owner is gone.
const FREE_S_MAX: u64 = 5;
/// What a loaded machine needs for a boot of a simulated DUT, or for a lease to move.
const SOON: Duration = Duration::from_secs(30);

static FARM: Shared = Shared::new();

/// A DUT per test, so that none waits for another.
fn farm() -> Arc<Bench> {
    let duts =
        ["boot", "kill", "stop", "queue", "short", "long", "hand", "beat", "silent", "twice", "story", "job", "held"];
    FARM.running(|| Bench::start(WHARF, &farm_of(&duts.map(|name| (name, "")))))
}

fn ask(bench: &Bench, method: &str, path: &str, body: &Value) -> Answer {
    bench.ask(method, path, "Content-Type: application/json\r\n", body.to_string().as_bytes())
}

#[track_caller]
fn done(bench: &Bench, method: &str, path: &str, body: &Value) -> Value {
    let answer = ask(bench, method, path, body);
    assert!(matches!(answer.status, 200 | 201), "{method} {path}: {answer:?}");
    answer.json()
}

/// Asks for a lease that only its time ends.
#[track_caller]
fn take(bench: &Bench, id: &str, dut: &str, hold_time: &str) -> Value {
    let wish = json!({"id": id, "dut": dut, "owner": "term", "for": hold_time, "name": "anna", "subject": "anna"});
    done(bench, "POST", "/api/v1/leases", &wish)
}

fn path(id: &str) -> String {
    format!("/api/v1/leases/{id}")
}

fn lease(bench: &Bench, id: &str) -> Value {
    bench.get(&path(id)).json()
}

#[track_caller]
fn wait_for(bench: &Bench, id: &str, state: &str, limit: Duration) -> Value {
    until(limit, || Some(lease(bench, id)).filter(|lease| lease["state"] == state))
        .unwrap_or_else(|| panic!("it is not {state}: {:#}", lease(bench, id)))
}

#[track_caller]
fn is_free(bench: &Bench, dut: &str) {
    let limit = Duration::from_secs(FREE_S_MAX);
    bench.wait_until_free(dut, limit).unwrap_or_else(|dut| panic!("it is not free: {dut:#}"));
}

/// Waits until the console of a lease has said this so many times.
#[track_caller]
fn wait_for_console(bench: &Bench, id: &str, text: &str, times: usize) {
    let console = || bench.get(&format!("{}/console", path(id))).text();
    until(SOON, || Some(()).filter(|()| console().matches(text).count() >= times))
        .unwrap_or_else(|| panic!("`{text}` did not come {times} times:\n{}", console()));
}

#[track_caller]
fn publish(bench: &Bench, id: &str, job: &str) {
    let answer = bench.ask("PUT", &format!("{}/boot", path(id)), "Content-Type: application/yaml\r\n", job.as_bytes());
    assert_eq!(answer.status, 204, "{answer:?}");
}

#[track_caller]
fn switch(bench: &Bench, id: &str, state: &str) -> Value {
    done(bench, "POST", &format!("{}/power", path(id)), &json!({"state": state}))["state"].clone()
}

#[track_caller]
fn refused(answer: &Answer, status: u16, words: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    let error = answer.json()["error"].as_str().unwrap().to_owned();
    assert!(error.contains(words), "{error}");
}

fn hanging(tag: &str) -> String {
    linux_job(tag, "wharf.end=hang", "overall: {minutes: 5}", "")
}

fn wharf(bench: &Bench, user: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(WHARF);
    command.args(arguments).env("WHARF_SERVER", bench.url()).env("USER", user).stdin(Stdio::null());
    command
}

#[track_caller]
fn run(bench: &Bench, user: &str, arguments: &[&str]) -> Output {
    let output = wharf(bench, user, arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `wharf console` on a terminal: keys go to the DUT one by one, Ctrl-] leaves, and the terminal is as it was.
#[track_caller]
fn type_on_a_terminal(bench: &Bench, id: &str) {
    let terminal = openpty(None, None).unwrap();
    let echoes = || tcgetattr(&terminal.master).unwrap().local_flags.contains(LocalFlags::ECHO);
    assert!(echoes());
    let mut command = wharf(bench, "bert", &["console", id]);
    command.stdin(terminal.slave.try_clone().unwrap()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut console = BufReader::new(child.stdout.take().unwrap());
    let mut wait_for_line = |text: &str| {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert!(console.read_line(&mut line).unwrap() > 0, "`{text}` did not come");
        }
    };
    wait_for_line("hello anna");
    assert!(!echoes(), "the DUT echoes, not the terminal");
    nix::unistd::write(&terminal.master, b"bert\r").unwrap();
    wait_for_line("hello bert");
    nix::unistd::write(&terminal.master, b"\x1d").unwrap();
    assert!(child.wait().unwrap().success());
    assert!(echoes());
}

/// Starts `wharf lease take` and waits until the DUT has booted and said so.
fn take_and_boot(bench: &Bench, name: &str) -> Child {
    let folder = tempfile::tempdir().unwrap();
    let job = folder.path().join("job.yml");
    std::fs::write(&job, hanging(name)).unwrap();
    let mut command = wharf(bench, "anna", &["lease", "take", "-t", name, "--boot", job.to_str().unwrap()]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("wharf: job done") {
        line.clear();
        if lines.read_line(&mut line).unwrap() == 0 {
            let mut told = String::new();
            child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
            panic!("the console ended: {told}");
        }
    }
    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    child
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

/// The lease on a DUT, as `wharf leases` has it.
fn lease_on(bench: &Bench, dut: &str) -> Option<Value> {
    let leases = bench.get("/api/v1/leases").json()["leases"].as_array().unwrap().clone();
    leases.into_iter().find(|lease| lease["resource"] == dut)
}

#[test]
fn a_held_dut_boots_what_its_holder_publishes_and_is_off_and_free_afterwards() {
    let bench = farm();
    take(&bench, "boot", "odd-boot-1", "5m");
    wait_for(&bench, "boot", "active", SOON);
    assert_eq!(switch(&bench, "boot", "off"), "off");
    publish(&bench, "boot", &hanging("boot"));
    assert_eq!(switch(&bench, "boot", "on"), "on");
    wait_for_console(&bench, "boot", "wharf: job done", 1);
    assert_eq!(said(&run(&bench, "anna", &["power", "odd-boot-1", "state"])), "on\n");
    assert_eq!(said(&run(&bench, "anna", &["power", "boot", "cycle"])), "on\n");
    wait_for_console(&bench, "boot", "wharf: job done", 2);
    run(&bench, "anna", &["lease", "release", "boot"]);
    let free = bench.dut("odd-boot-1");
    assert_eq!((&free["state"], &free["power"]), (&json!("IDLE"), &json!("off")), "the command waits until it is");
    let boot = bench.ask("PUT", &format!("{}/boot", path("boot")), "", b"");
    refused(&boot, 410, "lease boot is over: anna at");
    refused(&ask(&bench, "POST", &format!("{}/power", path("boot")), &json!({"state": "on"})), 410, "is over");
    refused(&bench.post(&format!("{}/console", path("boot")), "text/plain", b"x"), 410, "is over");
    assert_eq!(bench.get(&format!("{}/console", path("boot"))).text().matches("wharf: job done").count(), 2);
}

#[test]
fn what_is_typed_reaches_the_dut_and_a_wrong_job_is_refused_with_its_problems() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("listens.yml");
    std::fs::write(
        &script,
        "- say: 'who is there?'\n- expect: anna\n- say: 'hello anna'\n- expect: bert\n- say: 'hello bert'\n- hang\n",
    )
    .unwrap();
    let bench = Bench::start(WHARF, &farm_of(&[("type", &format!("console: '{}'", script.display()))]));
    take(&bench, "type", "odd-type-1", "5m");
    wait_for(&bench, "type", "active", SOON);
    let answer = bench.ask("PUT", "/api/v1/leases/type/boot?name=mine.yml", "", b"version: 1\nnonsense: 1\n");
    assert_eq!(answer.status, 400, "{answer:?}");
    assert_eq!(answer.json()["problems"][0]["file"], "mine.yml");
    publish(&bench, "type", &hanging("type"));
    switch(&bench, "type", "on");
    wait_for_console(&bench, "type", "who is there?", 1);
    let typed = bench.post("/api/v1/leases/type/console", "application/octet-stream", b"anna\n");
    assert_eq!(typed.status, 204, "{typed:?}");
    wait_for_console(&bench, "type", "hello anna", 1);
    type_on_a_terminal(&bench, "type");
    run(&bench, "anna", &["lease", "release", "type"]);
}

#[test]
fn a_killed_wharf_lease_take_leaves_its_dut_off_and_free_within_five_seconds() {
    let bench = farm();
    let mut child = take_and_boot(&bench, "kill");
    let id = lease_on(&bench, "odd-kill-1").unwrap()["id"].as_str().unwrap().to_owned();
    signal(&child, Signal::SIGKILL);
    is_free(&bench, "odd-kill-1");
    assert_eq!(lease(&bench, &id)["cause"], "its owner is gone");
    child.wait().unwrap();
}

#[test]
fn ctrl_c_and_sigterm_give_the_dut_back_before_wharf_lease_take_ends() {
    let bench = farm();
    for number in [Signal::SIGINT, Signal::SIGTERM] {
        let child = take_and_boot(&bench, "stop");
        signal(&child, number);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{number}: {}", String::from_utf8_lossy(&output.stderr));
        let dut = bench.dut("odd-stop-1");
        assert_eq!((&dut["state"], &dut["power"]), (&json!("IDLE"), &json!("off")), "{number}: {dut:#}");
    }
}

#[test]
fn a_job_behind_a_persons_lease_says_who_has_the_dut_and_runs_afterwards() {
    let bench = farm();
    take(&bench, "queue", "odd-queue-1", "5m");
    wait_for(&bench, "queue", "active", SOON);
    let mut job = bench.submit(&linux_job("queue", "wharf.beats=1", "overall: {minutes: 2}", ""), "");
    let queued = job.wait_for_kind("queued");
    // Its place is among all that wait on the farm, which other tests use as well.
    assert!(queued["place"].as_u64() >= Some(1), "{queued}");
    assert_eq!(queued["reasons"][0], "odd-queue-1 is busy with anna");
    let listed = said(&run(&bench, "anna", &["leases"]));
    assert!(listed.contains("place ") && listed.contains(": odd-queue-1 is busy with anna"), "{listed}");
    run(&bench, "anna", &["lease", "release", "queue"]);
    job.wait().expect("PASS", "test");
}

#[test]
fn a_lease_ends_with_its_time_and_one_that_is_renewed_does_not() {
    let bench = farm();
    // Long enough for a loaded machine to ask for more of it.
    let wish = json!({"id": "long", "dut": "odd-long-1", "owner": "term", "for": "4 s", "for_at_most": "2h"});
    done(&bench, "POST", "/api/v1/leases", &wish);
    wait_for(&bench, "long", "active", SOON);
    let renewed = done(&bench, "PATCH", "/api/v1/leases/long?by=anna", &json!({"for": "5h"}));
    assert_eq!(
        renewed["expires"], renewed["expires_at_most"],
        "no renewal goes beyond what was asked for: {renewed:#}"
    );
    // Asked for after it, and for the time that the other would have had, too.
    take(&bench, "short", "odd-short-1", "4s");
    let over = wait_for(&bench, "short", "destroyed", SOON);
    assert_eq!(over["cause"], "its time was over");
    is_free(&bench, "odd-short-1");
    assert_eq!(lease(&bench, "long")["state"], "active");
    refused(&ask(&bench, "PATCH", "/api/v1/leases/short", &json!({"for": "1h"})), 410, "its time was over");
    run(&bench, "anna", &["lease", "release", "long"]);
}

#[test]
fn a_lease_that_is_handed_over_outlives_who_took_it() {
    let bench = farm();
    let mut child = take_and_boot(&bench, "hand");
    let id = lease_on(&bench, "odd-hand-1").unwrap()["id"].as_str().unwrap().to_owned();
    refused(&ask(&bench, "PATCH", &path(&id), &json!({"name": "bert", "owner": "term"})), 400, "needs `for`");
    run(&bench, "anna", &["lease", "hand-over", &id, "bert", "--for", "10m"]);
    assert!(child.wait().unwrap().success());
    let mut told = String::new();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(told.contains("has another owner from now on"), "{told}");
    let lease = lease(&bench, &id);
    assert_eq!((&lease["state"], &lease["owner"]), (&json!("active"), &json!("bert")), "{lease:#}");
    assert_eq!(bench.dut("odd-hand-1")["power"], "on");
    run(&bench, "bert", &["lease", "release", &id]);
}

#[test]
fn an_owner_that_falls_silent_loses_its_lease_and_one_that_beats_keeps_it() {
    let bench = farm();
    // Three beats may be missed: two seconds, in which also a loaded machine comes to one.
    let begin = |id: &str| {
        let wish = json!({"id": id, "dut": format!("odd-{id}-1"), "owner": {"heartbeat": "700 ms"}, "name": "a robot"});
        done(&bench, "POST", "/api/v1/leases", &wish);
    };
    let beat = |id: &str| done(&bench, "POST", &format!("{}/beat", path(id)), &json!({}));
    begin("beat");
    wait_for(&bench, "beat", "active", SOON);
    beat("beat");
    begin("silent");
    let is_silent_over = || {
        beat("beat");
        Some(lease(&bench, "silent")).filter(|lease| lease["state"] == "destroyed")
    };
    let silent = until(SOON, is_silent_over).unwrap_or_else(|| panic!("{:#}", lease(&bench, "silent")));
    assert_eq!(silent["cause"], "its owner is gone");
    assert_eq!(lease(&bench, "beat")["state"], "active");
    let over = wait_for(&bench, "beat", "destroyed", SOON);
    assert_eq!(over["cause"], "its owner is gone");
    is_free(&bench, "odd-beat-1");
}

#[test]
fn the_same_id_twice_is_one_lease_and_wrong_wishes_are_told_what_is_wrong() {
    let bench = farm();
    let first = take(&bench, "twice", "odd-twice-1", "5m");
    let second = take(&bench, "twice", "odd-twice-1", "5m");
    assert_eq!(first["requested"], second["requested"]);
    let wrong =
        |wish: Value, status, words: &str| refused(&ask(&bench, "POST", "/api/v1/leases", &wish), status, words);
    wrong(json!({"dut": "odd-none-1"}), 404, "no DUT `odd-none-1`");
    wrong(json!({"tags": ["amdgpu"]}), 406, "no DUT has the tags amdgpu");
    wrong(json!({"gear": ["scope"], "dut": "odd-twice-1"}), 406, "the farm has no gear");
    wrong(json!({"owner": "term"}), 400, "`for`");
    wrong(json!({"for": "an hour"}), 400, "`for`");
    wrong(json!({"priority": "high"}), 400, "`priority`");
    wrong(json!({"colour": "red"}), 400, "`colour`");
    wrong(json!({"id": "../x"}), 400, "`id`");
    wrong(json!({"id": "job-1"}), 400, "`id`");
    refused(&bench.get("/api/v1/leases/none"), 404, "no lease `none`");
    refused(&ask(&bench, "POST", "/api/v1/leases/twice/abandon", &json!({"reason": "x"})), 409, "needs nobody");
    refused(&bench.get("/api/v1/leases/twice/events?owner=1"), 409, "does not live by a connection");
    run(&bench, "anna", &["lease", "release", "twice"]);
}

#[test]
fn a_jobs_lease_is_shown_and_its_power_is_the_jobs_own() {
    let bench = farm();
    let mut job = bench.submit(&hanging("job"), "");
    job.wait_for_console("wharf: job done");
    let id = format!("job-{}", job.id);
    let shown = wait_for(&bench, &id, "active", SOON);
    assert_eq!((&shown["owner"], &shown["resource"]), (&json!(format!("job {}", job.id)), &json!("odd-job-1")));
    let kinds: Vec<_> = shown["parts"].as_array().unwrap().iter().map(|part| part["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds.len(), 3, "{kinds:?}");
    let power = ask(&bench, "POST", &format!("{}/power", path(&id)), &json!({"state": "off"}));
    refused(&power, 409, "which uses it by itself");
    let refused = wharf(&bench, "anna", &["power", "odd-job-1", "off"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(70));
    let mut console = wharf(&bench, "anna", &["console", "odd-job-1"]).stdout(Stdio::piped()).spawn().unwrap();
    let heard = BufReader::new(console.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(heard.into_iter().any(|line| line.contains("wharf: job done")));
    run(&bench, "anna", &["lease", "release", &id]);
    job.wait().expect("INCOMPLETE", "cancelled");
    // The console outlives the lease.
    console.kill().unwrap();
    console.wait().unwrap();
}

#[test]
fn a_dut_that_is_held_back_goes_to_nobody_until_it_is_let_go() {
    let bench = farm();
    let said_of = |arguments: &[&str]| said(&run(&bench, "anna", arguments));
    let cordoned = said_of(&["dut", "cordon", "odd-held-1", "--reason", "the fan is loud"]);
    assert!(cordoned.starts_with("odd-held-1 is held back: the fan is loud (anna at "), "{cordoned}");
    take(&bench, "held", "odd-held-1", "5m");
    let waits = until(SOON, || Some(lease(&bench, "held")).filter(|lease| lease["place"] == 1)).unwrap();
    let reason = waits["reasons"][0].as_str().unwrap();
    assert!(reason.starts_with("odd-held-1 is held back: the fan is loud"), "{reason}");
    assert_eq!(said_of(&["dut", "uncordon", "odd-held-1"]), "odd-held-1 is in service\n");
    wait_for(&bench, "held", "active", SOON);
    let page = bench.get("/api/v1/resources/odd-held-1").json();
    assert_eq!((&page["held_by"][0]["id"], &page["facts"].is_object()), (&json!("held"), &true));
    assert!(page["events"].as_array().unwrap().iter().any(|event| event["cause"].as_str().unwrap().contains("anna")));
    run(&bench, "anna", &["lease", "release", "held"]);
}

#[test]
fn the_events_tell_every_step_of_a_lease_with_its_cause() {
    let bench = farm();
    take(&bench, "story", "odd-story-1", "5m");
    wait_for(&bench, "story", "active", SOON);
    let follow = ["events", "--follow", "--json", "--of", "story"];
    let mut follower = wharf(&bench, "anna", &follow).stdout(Stdio::piped()).spawn().unwrap();
    run(&bench, "anna", &["lease", "release", "story"]);
    let all = said(&run(&bench, "anna", &["events", "--from", "1", "--of", "story", "--json"]));
    let events: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<_> = events.iter().map(|event| event["step"].as_str().unwrap()).collect();
    assert_eq!(steps, ["L1", "L2", "Intent", "L4", "Asked", "L7", "L9", "L10", "L11", "L13"]);
    let states: Vec<_> = events.iter().filter_map(|event| event["state"].as_str()).collect();
    assert_eq!(states[..3], ["pending", "acquired", "active"]);
    assert_eq!(states.last(), Some(&"destroyed"));
    let cause = |step: &str| events.iter().find(|event| event["step"] == step).unwrap()["cause"].as_str().unwrap();
    assert_eq!([cause("L1"), cause("L2"), cause("L4")], ["it was asked for", "there was a place for it", "it came up"]);
    assert!(cause("L7").starts_with("anna at ") && cause("L7").ends_with(" released it"), "{}", cause("L7"));
    let numbers: Vec<_> = events.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert!(numbers.is_sorted_by(|one, next| one < next));
    let mut followed = BufReader::new(follower.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(followed.any(|line| line.contains("\"L13\"")), "whoever follows sees the end as well");
    follower.kill().unwrap();
    follower.wait().unwrap();
}

/// A farm with a DUT that asks who may have it, and one with gear.
const GUARDED: &str = "name: odd
network: {private: {address: 10.80.0.1/24}}
gear:
  - {name: scope}
duts:
  - {base_name: guarded, mac: '52:54:00:80:00:01', address: 10.80.0.11, tags: [guarded], access: authorized, machine: {simulated: {}}}
  - {base_name: left, mac: '52:54:00:80:00:02', address: 10.80.0.12, tags: [left], machine: {simulated: {}}}
  - {base_name: right, mac: '52:54:00:80:00:03', address: 10.80.0.13, tags: [right], machine: {simulated: {}}}
";

#[test]
fn whoever_is_not_authorized_waits_for_an_answer_and_gear_goes_to_one_at_a_time() {
    let bench = Bench::start(WHARF, GUARDED);
    let wish = |id: &str, subject: &str| {
        let wish = json!({"id": id, "dut": "odd-guarded-1", "owner": "term", "for": "5m", "subject": subject});
        done(&bench, "POST", "/api/v1/leases", &wish)
    };
    wish("of-anna", "anna");
    let waits = until(SOON, || Some(lease(&bench, "of-anna")).filter(|lease| lease["place"] == 1)).unwrap();
    assert!(waits["reasons"][0].as_str().unwrap().contains("nobody has said yet whether anna may use"), "{waits:#}");
    let requested = bench.get("/api/v1/authorizations").json()["authorizations"][0].clone();
    assert_eq!((&requested["subject"], &requested["state"]), (&json!("anna"), &json!("requested")));
    run(&bench, "admin", &["authorize", "anna", "odd-guarded-1"]);
    wait_for(&bench, "of-anna", "active", SOON);
    wish("of-eve", "eve");
    run(&bench, "admin", &["authorize", "eve", "odd-guarded-1", "--decline"]);
    let over = wait_for(&bench, "of-eve", "destroyed", SOON);
    assert!(over["cause"].as_str().unwrap().contains("eve"), "{over:#}");
    let listed = said(&run(&bench, "admin", &["authorizations"]));
    assert!(listed.contains("declined") && listed.contains("admin at "), "{listed}");
    let declined = ask(&bench, "POST", "/api/v1/leases", &json!({"dut": "odd-guarded-1", "subject": "eve"}));
    assert_eq!(declined.status, 406, "{declined:?}");
    let mut job = bench.submit(&linux_job("guarded", "wharf.beats=1", "overall: {minutes: 2}", ""), "?subject=anna");
    job.wait_for_kind("queued");
    run(&bench, "anna", &["lease", "release", "of-anna"]);
    job.wait().expect("PASS", "test");

    let with_scope = |id: &str, dut: &str| {
        let wish = json!({"id": id, "dut": dut, "gear": ["scope"], "owner": "term", "for": "5m", "name": id});
        done(&bench, "POST", "/api/v1/leases", &wish)
    };
    with_scope("first", "odd-left-1");
    wait_for(&bench, "first", "active", SOON);
    with_scope("second", "odd-right-1");
    let waits = until(SOON, || Some(lease(&bench, "second")).filter(|lease| lease["place"] == 1)).unwrap();
    assert!(waits["reasons"][0].as_str().unwrap().contains("scope"), "{waits:#}");
    run(&bench, "anna", &["lease", "release", "first"]);
    wait_for(&bench, "second", "active", SOON);
    run(&bench, "anna", &["lease", "release", "second"]);
}

#[test]
fn a_detached_lease_outlives_the_server_and_is_used_on() {
    let bench = Bench::start(WHARF, &farm_of(&[("kept", ""), ("lost", "")]));
    let taken = said(&run(&bench, "anna", &["lease", "take", "odd-kept-1", "--detach", "--for", "10m"]));
    let id = taken.trim().to_owned();
    wait_for(&bench, &id, "active", SOON);
    publish(&bench, &id, &hanging("kept"));
    switch(&bench, &id, "on");
    wait_for_console(&bench, &id, "wharf: job done", 1);
    let bench = bench.killed_and_started_again(WHARF);
    let after = wait_for(&bench, &id, "active", SOON);
    assert_eq!((&after["owner"], &after["resource"]), (&json!("anna"), &json!("odd-kept-1")));
    let log = || bench.get(&format!("{}/log", path(&id))).text();
    until(SOON, || Some(()).filter(|()| log().contains("The farm was restarted")))
        .unwrap_or_else(|| panic!("{}", log()));
    // What the simulated DUT was died with the server; its lease did not, nor did what it boots.
    switch(&bench, &id, "on");
    wait_for_console(&bench, &id, "wharf: job done", 2);
    let bench = bench.stopped_and_started_again(WHARF);
    wait_for(&bench, &id, "active", SOON);
    run(&bench, "anna", &["lease", "release", &id]);
    is_free(&bench, "odd-kept-1");
}

#[test]
fn a_lease_by_connection_waits_for_its_owner_over_a_restart() {
    let bench = Bench::start(WHARF, &farm_of(&[("linked", "")]));
    let socket = bench.local_socket();
    let mut command = wharf(&bench, "anna", &["lease", "take", "-t", "linked"]);
    let mut child = command.env("WHARF_SERVER", &socket).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // That it is active the server knows before its owner, who looks for a server only once it has told him something.
    let (mut stderr, mut told) = (BufReader::new(child.stderr.take().unwrap()), String::new());
    while !told.contains("you have odd-linked-1") {
        assert!(stderr.read_line(&mut told).unwrap() > 0, "no lease became active: {told}");
    }
    let lease = lease_on(&bench, "odd-linked-1").expect("it is active");
    let id = lease["id"].as_str().unwrap().to_owned();
    let bench = bench.killed_and_started_again(WHARF);
    let log = || bench.get(&format!("{}/log", path(&id))).text();
    until(SOON, || Some(()).filter(|()| log().contains("The farm was restarted")))
        .unwrap_or_else(|| panic!("{}", log()));
    signal(&child, Signal::SIGINT);
    stderr.read_to_string(&mut told).unwrap();
    assert!(child.wait().unwrap().success() && told.contains("looking for the server"), "{told}");
    is_free(&bench, "odd-linked-1");
}

#[test]
fn a_tear_down_that_does_not_succeed_calls_a_person_who_may_abandon_it_and_is_remembered() {
    let bench = Bench::start(WHARF, &farm_of(&[("stuck", "misbehave: [{what: outlet-lies}]")]));
    take(&bench, "stuck", "odd-stuck-1", "5m");
    wait_for(&bench, "stuck", "active", SOON);
    switch(&bench, "stuck", "on");
    done(&bench, "DELETE", "/api/v1/leases/stuck?by=anna", &json!({}));
    // Six attempts with pauses of up to sixteen seconds.
    let calls = || Some(lease(&bench, "stuck")).filter(|lease| lease["needs_operator"].is_string());
    let stuck = until(Duration::from_secs(90), calls).unwrap_or_else(|| panic!("{:#}", lease(&bench, "stuck")));
    assert!(stuck["needs_operator"].as_str().unwrap().contains("reads back on"), "{stuck:#}");
    assert!(said(&run(&bench, "bert", &["leases"])).contains("somebody must look at it"));
    refused(&ask(&bench, "POST", "/api/v1/leases/stuck/abandon", &json!({})), 400, "`reason`");
    run(&bench, "bert", &["lease", "abandon", "stuck", "--reason", "I pulled the plug"]);
    let over = wait_for(&bench, "stuck", "destroyed", SOON);
    assert_eq!(over["needs_operator"], Value::Null);
    let told = said(&run(&bench, "bert", &["events", "--of", "stuck"]));
    assert!(told.contains("bert at ") && told.contains("counted its tear-down as done: I pulled the plug"), "{told}");
    take(&bench, "next", "odd-stuck-1", "5m");
    wait_for(&bench, "next", "active", SOON);
    // Its outlet will not obey at the end either: nobody waits for that.
    bench.kill();
}
