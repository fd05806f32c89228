//! Machines that are made when jobs ask for them: up to a limit, kept for a while, given up for others, there again after a restart.

use std::time::Duration;

use tests::bench::{Bench, until};

use crate::farms::{WHARF, linux_job};

/// The farm of the fixtures, but nothing is kept idle for long.
fn farm() -> String {
    let farm = include_str!("../../../fixtures/farms/on-demand.yml");
    farm.replace("idle: 30 seconds", "idle: 1 s")
        .replace("idle: 2 minutes", "idle: 1 s")
        .replace("idle_min: 5 s", "idle_min: 0 s")
}

const HANG: &str = "wharf.end=hang";

fn names(bench: &Bench) -> Vec<String> {
    bench.duts().iter().map(|dut| dut["full_name"].as_str().unwrap().to_owned()).collect()
}

/// Waits until so many machines are there.
fn wait_for_count(bench: &Bench, expected: usize) {
    let there = || Some(()).filter(|()| names(bench).len() == expected);
    until(Duration::from_secs(20), there).unwrap_or_else(|| panic!("{:?}, not {expected} of them", names(bench)));
}

#[test]
fn machines_are_made_up_to_the_limit_of_their_pool_kept_idle_and_given_up() {
    let bench = Bench::start(WHARF, &farm());
    assert_eq!(names(&bench), ["on-demand-dut-1", "on-demand-sim-1"], "one of the file, one kept ready");
    let mut running: Vec<_> =
        (0..5).map(|_| bench.submit(&linux_job("simulated", HANG, "overall: {minutes: 5}", ""), "")).collect();
    for job in &mut running {
        job.wait_for_kind("powered_on");
    }
    let duts: std::collections::BTreeSet<_> = bench.duts().iter().map(|dut| dut["job"].to_string()).collect();
    assert_eq!((duts.len(), bench.duts().len()), (5, 5), "five jobs on five different machines");
    let mut waiting = bench.submit(&linux_job("simulated", "", "overall: {minutes: 5}", ""), "");
    let reasons = waiting.wait_for_kind("queued")["reasons"].to_string();
    assert!(reasons.contains("this-host makes no more than 4 at a time"), "{reasons}");
    for job in &running {
        job.cancel();
    }
    waiting.wait().expect("PASS", "test");
    for job in running {
        job.wait().expect("INCOMPLETE", "cancelled");
    }
    wait_for_count(&bench, 2);
    assert!(names(&bench)[1].starts_with("on-demand-sim-"), "one is kept ready: {:?}", names(&bench));
}

#[test]
fn an_idle_machine_makes_room_for_one_of_another_kind() {
    let farm = farm().replace("preallocated: 1", "preallocated: 0").replace("idle: 1 s", "idle: 10 minutes");
    let bench = Bench::start(WHARF, &farm);
    let mut running: Vec<_> =
        (0..5).map(|_| bench.submit(&linux_job("simulated", HANG, "overall: {minutes: 5}", ""), "")).collect();
    for job in &mut running {
        job.wait_for_kind("powered_on");
    }
    let made = names(&bench);
    running.iter().for_each(|job| job.cancel());
    for job in running {
        job.wait().expect("INCOMPLETE", "cancelled");
    }
    assert_eq!(names(&bench), made, "they are kept");
    let others = made.iter().filter(|name| name.contains("plain-bios")).count();
    let jobs: Vec<_> =
        (0..2).map(|_| bench.submit(&linux_job("plain-bios", "", "overall: {minutes: 5}", ""), "")).collect();
    for job in jobs {
        job.wait().expect("PASS", "test");
    }
    let after = names(&bench).iter().filter(|name| name.contains("plain-bios")).count();
    assert!(after > others || others == 2, "{made:?}, then {:?}", names(&bench));
    assert!(names(&bench).len() <= 5, "the pool's four and the one of the file");
}

#[test]
fn a_machine_that_was_made_is_there_again_after_a_kill_and_runs_the_next_job() {
    let farm = farm().replace("idle: 1 s", "idle: 10 minutes");
    let bench = Bench::start(WHARF, &farm);
    let job = linux_job("simulated", "", "overall: {minutes: 2}", "").replace("{tags: [simulated]}", "{id: sim-3}");
    bench.run(&job).expect("PASS", "test");
    let made = names(&bench);
    assert!(made.contains(&"on-demand-sim-3".to_owned()), "{made:?}");
    let bench = bench.killed_and_started_again(WHARF);
    assert_eq!(names(&bench), made);
    let ended = bench.run(&job);
    ended.expect("PASS", "test");
    assert_eq!(ended.dut().as_deref(), Some("on-demand-sim-3"));
    assert!(bench.duts().iter().all(|dut| dut["state"] == "IDLE"));
}
