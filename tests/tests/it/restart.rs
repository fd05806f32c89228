//! Jobs, their places and their verdicts outlive the server, however it ends.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tests::bench::{Bench, until};

use crate::farms::{HELLO, SIMULATED_FARM, WHARF, linux_job};

/// Kills of the gate; `WHARF_KILLS=200` makes it a long run of five minutes.
const KILLS: usize = 10;
/// Jobs handed in between two kills: more than there are DUTs, so that some wait while some run.
const JOBS_BETWEEN_KILLS: usize = 6;
/// Ended jobs that a server lists (docs/operations.md, limits); a long run has more.
const ENDED_JOBS_LISTED: usize = 1000;

fn jobs(bench: &Bench) -> Vec<Value> {
    bench.get("/api/v1/jobs").json()["jobs"].as_array().unwrap().clone()
}

/// Waits until every job has its verdict.
fn ended_jobs(bench: &Bench) -> Vec<Value> {
    let all_ended = || Some(jobs(bench)).filter(|jobs| jobs.iter().all(|job| job["state"] == "ended"));
    until(Duration::from_secs(120), all_ended).unwrap_or_else(|| panic!("not all have ended: {:#?}", jobs(bench)))
}

fn count(jobs: &[Value], status: &str, cause: &str) -> usize {
    jobs.iter().filter(|job| job["verdict"]["status"] == status && job["verdict"]["cause"] == cause).count()
}

/// A moment between 0 and 600 ms, the same in every run of the test: jobs take about 400.
fn moment(round: usize) -> Duration {
    Duration::from_millis((round as u64 * 7919) % 600)
}

#[test]
fn a_server_that_is_killed_again_and_again_loses_no_job_and_no_verdict() {
    let kills = std::env::var("WHARF_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let mut bench = Bench::start(WHARF, SIMULATED_FARM);
    for round in 0..kills {
        for _ in 0..JOBS_BETWEEN_KILLS {
            bench.post("/api/v1/jobs?name=hello.yml", "application/yaml", HELLO.as_bytes());
        }
        // The kill comes at a moment that no condition names: that is what is tried.
        std::thread::sleep(moment(round));
        bench = bench.killed_and_started_again(WHARF);
    }
    let jobs = ended_jobs(&bench);
    assert_eq!(jobs.len(), (kills * JOBS_BETWEEN_KILLS).min(ENDED_JOBS_LISTED));
    let (passed, interrupted) = (count(&jobs, "PASS", "test"), count(&jobs, "INCOMPLETE", "farm"));
    println!("{kills} kills, {} jobs: {passed} passed, {interrupted} ended by a restart", jobs.len());
    assert_eq!(passed + interrupted, jobs.len(), "{jobs:#?}");
    assert!(interrupted <= 4 * kills, "a kill interrupts no more jobs than there are DUTs");
    for dut in bench.duts() {
        assert_eq!((&dut["state"], &dut["power"]), (&Value::from("IDLE"), &Value::from("off")), "{dut}");
    }
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
