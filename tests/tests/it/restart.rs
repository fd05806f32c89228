//! Jobs, their places and their verdicts outlive the server, however it ends.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tests::bench::{Bench, until};

use crate::farms::{HELLO, SIMULATED_FARM, WHARF, linux_job};

const TWO_ROLES: &str = include_str!("../../../fixtures/jobs/good/two-roles.yml");

/// Kills of the gate; `WHARF_KILLS=200` makes it a long run of some minutes.
const KILLS: usize = 10;
/// Jobs handed in between two kills: more than there are DUTs, so that some wait while some run.
const JOBS_BETWEEN_KILLS: usize = 5;
/// Every so many kills a job over two machines is handed in, too.
const KILLS_PER_PAIR: usize = 3;

fn jobs(bench: &Bench) -> Vec<Value> {
    bench.get("/api/v1/jobs").json()["jobs"].as_array().unwrap().clone()
}

/// Waits until every job has its verdict.
fn ended_jobs(bench: &Bench) -> Vec<Value> {
    let all_ended = || Some(jobs(bench)).filter(|jobs| jobs.iter().all(|job| job["state"] == "ended"));
    until(Duration::from_secs(120), all_ended).unwrap_or_else(|| panic!("not all have ended: {:#?}", jobs(bench)))
}

/// The verdict of every job, from its folder: a server lists no more than a thousand that have ended.
fn verdicts_on_disk(bench: &Bench) -> Vec<Value> {
    let folders = std::fs::read_dir(bench.state().join("jobs")).unwrap();
    let ended = |folder: std::fs::DirEntry| {
        let events = std::fs::read_to_string(folder.path().join("events.jsonl")).unwrap();
        let last: Value = serde_json::from_str(events.lines().last()?).ok()?;
        (last["event"] == "ended").then(|| last["verdict"].clone())
    };
    folders.filter_map(|folder| ended(folder.unwrap())).collect()
}

fn count(verdicts: &[Value], status: &str, cause: &str) -> usize {
    verdicts.iter().filter(|verdict| verdict["status"] == status && verdict["cause"] == cause).count()
}

/// A moment between 0 and 600 ms, the same in every run of the test: jobs take about 400.
fn moment(round: usize) -> Duration {
    Duration::from_millis((round as u64 * 7919) % 600)
}

fn hand_in(bench: &Bench, name: &str, job: &str) {
    let answer = bench.post(&format!("/api/v1/jobs?name={name}"), "application/yaml", job.as_bytes());
    assert_eq!(answer.status, 201, "{answer:?}");
}

/// A person's lease with no owner to miss: it has to outlive every kill.
fn take_for_good(bench: &Bench) {
    let wish = json!({"id": "annas", "owner": "term", "for": "2 hours", "name": "anna"});
    let headers = "Content-Type: application/json\r\n";
    let answer = bench.ask("POST", "/api/v1/leases", headers, wish.to_string().as_bytes());
    assert_eq!(answer.status, 201, "{answer:?}");
    let is_active = || Some(()).filter(|()| bench.get("/api/v1/leases/annas").json()["state"] == "active");
    until(Duration::from_secs(20), is_active).expect("the first lease of an idle farm is active soon");
}

/// Who holds each DUT after every event of the farm's life: never two.
fn no_dut_was_held_twice(bench: &Bench) -> usize {
    let mut holders: BTreeMap<String, String> = BTreeMap::new();
    let mut next = 1;
    loop {
        let page = bench.get(&format!("/api/v1/events?from={next}")).text();
        let events: Vec<Value> = page.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let Some(last) = events.last() else { return next as usize - 1 };
        next = last["seq"].as_u64().unwrap() + 1;
        for event in &events {
            let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            let id = text("id");
            match text("state").as_str() {
                "acquired" if text("step") == "L2" => {
                    let before = holders.insert(text("resource"), id.clone());
                    assert_eq!(before, None, "{event}");
                }
                "destroyed" | "pending" => holders.retain(|_, holder| *holder != id),
                _ => {}
            }
        }
    }
}

#[test]
fn a_server_that_is_killed_again_and_again_loses_no_job_no_lease_and_no_verdict() {
    let kills = std::env::var("WHARF_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let mut bench = Bench::start(WHARF, SIMULATED_FARM);
    take_for_good(&bench);
    let mut handed_in = 0;
    for round in 0..kills {
        for _ in 0..JOBS_BETWEEN_KILLS {
            hand_in(&bench, "hello.yml", HELLO);
        }
        let pairs = usize::from(round % KILLS_PER_PAIR == 0);
        (0..pairs).for_each(|_| hand_in(&bench, "two-roles.yml", TWO_ROLES));
        handed_in += JOBS_BETWEEN_KILLS + pairs;
        // The kill comes at a moment that no condition names: that is what is tried.
        std::thread::sleep(moment(round));
        bench = bench.killed_and_started_again(WHARF);
    }
    ended_jobs(&bench);
    let verdicts = verdicts_on_disk(&bench);
    assert_eq!(verdicts.len(), handed_in, "a verdict for every job that was taken");
    let (passed, interrupted) = (count(&verdicts, "PASS", "test"), count(&verdicts, "INCOMPLETE", "farm"));
    assert_eq!(passed + interrupted, handed_in, "{verdicts:#?}");
    assert!(interrupted <= 4 * kills, "a kill interrupts no more jobs than there are DUTs");
    let annas = bench.get("/api/v1/leases/annas").json();
    assert_eq!(annas["state"], "active", "{annas}");
    let released = bench.ask("DELETE", "/api/v1/leases/annas", "", b"");
    assert!(matches!(released.status, 200 | 202 | 204), "{released:?}");
    let leases = || bench.get("/api/v1/leases?all=1").json()["leases"].as_array().unwrap().clone();
    until(Duration::from_secs(20), || Some(()).filter(|()| leases().is_empty()))
        .unwrap_or_else(|| panic!("not all are given back: {:#?}", leases()));
    for dut in bench.duts() {
        assert_eq!((&dut["state"], &dut["power"]), (&Value::from("IDLE"), &Value::from("off")), "{dut}");
    }
    let events = no_dut_was_held_twice(&bench);
    println!(
        "{kills} kills, {handed_in} jobs: {passed} passed, {interrupted} ended by a restart; {events} events of leases"
    );
}

/// Holds every DUT but for one job that runs until it is cancelled.
const LONG: &str = "wharf.end=hang";

#[test]
fn a_waiting_job_keeps_its_place_over_a_graceful_stop_and_the_running_one_says_why_it_ended() {
    let bench = Bench::start(WHARF, ONE_DUT);
    let mut running = bench.submit(&linux_job("sim", LONG, "overall: {minutes: 5}", ""), "");
    running.wait_for_console("wharf: init started");
    for name in ["first", "second"] {
        bench.post(&format!("/api/v1/jobs?name={name}"), "application/yaml", HELLO.as_bytes());
    }
    drop(running);
    let bench = bench.stopped_and_started_again(WHARF);
    let mut jobs = ended_jobs(&bench);
    jobs.sort_by_key(|job| job["id"].as_str().unwrap().to_owned());
    let verdicts: Vec<_> = jobs.iter().map(|job| job["verdict"]["status"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["INCOMPLETE", "PASS", "PASS"]);
    assert_eq!(jobs[0]["verdict"]["cause"], "farm");
    assert_eq!(jobs[0]["verdict"]["summary"], "the farm was stopped by its operator");
    let first = bench.follow("2", "").wait();
    let second = bench.follow("3", "").wait();
    let at = |ended: &tests::bench::Ended| ended.of_kind("leased")[0]["at"].as_str().unwrap().to_owned();
    assert!(at(&first) < at(&second), "the older one went first");
}

#[test]
fn a_server_that_is_told_to_stop_the_moment_it_says_that_it_is_there_stops() {
    let mut bench = Bench::start(WHARF, "name: empty\nnetwork: {loopback: {}}\nduts: []\n");
    // Whether a signal meets a moment at which nobody hears it is a matter of luck: one start in seven did.
    for _ in 0..30 {
        bench = bench.stopped_and_started_again(WHARF);
    }
}

#[test]
fn wharf_run_finds_its_job_again_after_a_restart() {
    let bench = Bench::start(WHARF, ONE_DUT);
    let mut running = bench.submit(&linux_job("sim", LONG, "overall: {minutes: 5}", ""), "");
    running.wait_for_console("wharf: init started");
    let client = Command::new(WHARF)
        .args(["--server", bench.local_socket().to_str().unwrap(), "run", "fixtures/jobs/good/hello.yml"])
        .current_dir(tests::workspace::root())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until(Duration::from_secs(20), || Some(()).filter(|()| jobs(&bench).len() == 2)).expect("it is handed in");
    bench.follow("2", "").wait_for_kind("owned");
    drop(running);
    let bench = bench.killed_and_started_again(WHARF);
    let output = client.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("looking for the server"), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("wharf: job done"));
    assert_eq!(ended_jobs(&bench).len(), 2);
}

/// A farm with one DUT, so that every second job waits.
const ONE_DUT: &str = "name: one
network: {private: {address: 10.78.0.1/24}}
duts:
  - {base_name: sim, mac: '52:54:00:78:00:01', address: 10.78.0.11, tags: [sim, 'arch:x86_64'], machine: {simulated: {}}}
";
