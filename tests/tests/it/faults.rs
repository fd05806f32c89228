//! Faults from our own parts: outlets, consoles, DUTs, the disk and the clock. Each ends with the right cause and its DUT free, or with one
//! clear call for a person.
//!
//! | fault | ends with |
//! |---|---|
//! | an outlet that says off and stays on | the job's own verdict, or cause `power`; the DUT is held, and a person called, until it is off |
//! | an outlet that answers after 30 s | the job's own verdict |
//! | a console of 10 MB/s | the job's own verdict; cancel and timeouts act |
//! | a console that is away for a minute | the job's own verdict, or cause `console` when it was not heard |
//! | a DUT that talks on | the job's own verdict |
//! | a full disk | cause `farm` when evidence is missing |
//! | a clock that jumps | the job's own verdict |
//!
//! The gate takes short figures; `WHARF_TRUE_FAULTS=1` takes the true ones as well, and some minutes.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::bench::{Bench, Ended, Shared, Surroundings, may_mount, need_programs, until};

use crate::farms::{WHARF, farm_of, linux_job};

const TWO_MINUTES: &str = "overall: {minutes: 2}";
/// The program that lets a process see another wall clock; its monotonic one stays as it is.
const FAKE_CLOCK: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

static FAULTY: Shared = Shared::new();

/// Machines with one fault each.
fn faulty() -> Arc<Bench> {
    let farm = farm_of(&[
        ("lies", "misbehave: [{what: outlet-lies, for: 2s}]"),
        ("lies-between", "misbehave: [{what: outlet-lies, for: 2s}]"),
        ("slow", "misbehave: [{what: outlet-slow, for: 1s, boot: 1}]"),
        ("flood", "misbehave: [{what: console-floods}]"),
        ("flood-cancel", "misbehave: [{what: console-floods}]"),
        ("flood-timeout", "misbehave: [{what: console-floods}]"),
        ("away", "misbehave: [{what: console-away, for: 1s}]"),
        ("away-unheard", "misbehave: [{what: console-away, for: 2s}]"),
        ("talks-on", "misbehave: [{what: talks-on}]"),
    ]);
    FAULTY.running(|| Bench::start(WHARF, &farm))
}

/// Runs a job that passes on a machine whose fault a job survives.
#[track_caller]
fn passes_on(bench: &Bench, tag: &str) -> Ended {
    let ended = bench.run(&linux_job(tag, "x=1", TWO_MINUTES, ""));
    ended.expect("PASS", "test");
    ended
}

#[track_caller]
fn is_free(bench: &Bench, ended: &Ended, limit: Duration) {
    let dut = ended.dut().expect("it had a DUT");
    bench.wait_until_free(&dut, limit).unwrap_or_else(|dut| panic!("the DUT is not free: {dut}\n{ended}"));
}

fn true_figures() -> bool {
    std::env::var_os("WHARF_TRUE_FAULTS").is_some()
}

#[test]
fn an_outlet_that_stays_on_for_a_while_keeps_its_dut_until_it_is_off() {
    let bench = faulty();
    let ended = passes_on(&bench, "lies");
    let end = ended.of_kind("teardown_complete");
    assert_eq!(end.len(), 1, "the verdict waits until the outlet obeyed: {ended}");
    is_free(&bench, &ended, Duration::from_secs(1));
    passes_on(&bench, "lies");
}

#[test]
fn an_outlet_that_lies_between_two_boots_ends_the_job_with_power_as_cause() {
    let bench = faulty();
    let timeouts = "overall: {minutes: 2}, boot_cycle: {minutes: 1, retries: 1}";
    let job = linux_job("lies-between", "wharf.end=reboot", timeouts, "")
        .replace("console_patterns:", "console_patterns:\n  session_reboot: {regex: 'reboot: Restarting'}");
    let ended = bench.run(&job);
    ended.expect("INCOMPLETE", "power").expect_summary("told to go off, but it reads back on");
    is_free(&bench, &ended, Duration::from_secs(30));
    passes_on(&bench, "lies-between");
}

#[test]
fn an_outlet_that_never_goes_off_calls_a_person_and_its_dut_goes_to_nobody() {
    let bench = Bench::start(WHARF, &farm_of(&[("stuck", "misbehave: [{what: outlet-lies}]")]));
    // Six attempts take half a minute, and the job's log is told as long as its timeout for the tear-down allows.
    let mut job =
        bench.submit(&linux_job("stuck", "x=1", "overall: {minutes: 2}, infra_teardown: {minutes: 2}", ""), "");
    let is_call = |event: &Value| {
        let text = event["text"].as_str().unwrap_or_default();
        text.contains("somebody must look at the DUT") && text.contains("reads back on")
    };
    job.wait_for("a call for a person", is_call);
    let leases = bench.get("/api/v1/leases").json()["leases"].clone();
    let calls = leases.as_array().unwrap().iter().filter_map(|lease| lease["needs_operator"].as_str());
    assert!(calls.clone().count() == 1 && calls.clone().all(|call| call.contains("reads back on")), "{leases:#}");
    let dut = bench.dut("odd-stuck-1");
    assert_eq!((&dut["state"], &dut["power"]), (&Value::from("RUNNING"), &Value::from("on")), "{dut}");
    let mut next = bench.submit(&linux_job("stuck", "x=1", TWO_MINUTES, ""), "");
    next.wait_for_kind("queued");
    // Nobody gets a DUT whose power cannot be cut: the server is not asked to give it back, since that would wait for it.
    drop((job, next));
    bench.kill();
}

#[test]
fn an_outlet_that_answers_late_is_waited_for() {
    let bench = faulty();
    let started = Instant::now();
    let ended = passes_on(&bench, "slow");
    assert!(started.elapsed() >= Duration::from_secs(2), "on and its read-back take a second each: {ended}");
    is_free(&bench, &ended, Duration::from_secs(1));
    passes_on(&bench, "slow");
}

#[test]
fn a_flood_hides_no_verdict() {
    let bench = faulty();
    let ended = passes_on(&bench, "flood");
    assert!(ended.console.len() > 1_000_000, "{} bytes are no flood", ended.console.len());
    assert!(ended.console.contains("\r\na line of a flood"));
    is_free(&bench, &ended, Duration::from_secs(1));
    passes_on(&bench, "flood");
}

#[test]
fn a_flood_does_not_hold_up_a_cancel() {
    let bench = faulty();
    let job = bench.submit(&linux_job("flood-cancel", "wharf.end=hang", TWO_MINUTES, ""), "");
    until(Duration::from_secs(60), || {
        let console = fs::metadata(bench.state().join(format!("jobs/{}/console.log", job.id))).ok()?;
        Some(()).filter(|()| console.len() > 5_000_000)
    })
    .expect("the flood came");
    job.cancel();
    bench.wait_until_free("odd-flood-cancel-1", Duration::from_secs(5)).expect("free within 5 s of the cancel");
    job.wait().expect("INCOMPLETE", "cancelled");
}

#[test]
fn a_flood_does_not_hold_up_a_timeout() {
    let bench = faulty();
    let job = linux_job("flood-timeout", "wharf.end=hang", "overall: {seconds: 4}", "");
    let ended = bench.run(&job.replace("Power [Dd]own", "never"));
    ended.expect("INCOMPLETE", "timeout").expect_summary("timeouts.overall of 4 s expired");
    let at = |kind: &str| ended.of_kind(kind)[0]["at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let took = at("timeout_hit").duration_since(at("setup_started"));
    // The clock starts a moment before the event is written; the rest is room for a loaded machine.
    assert!((3.5..10.0).contains(&took.as_secs_f64()), "it acted after {took:?}");
    is_free(&bench, &ended, Duration::from_secs(5));
}

#[test]
fn a_console_that_goes_away_and_comes_back_leaves_a_gap_and_no_more() {
    let bench = faulty();
    // Ten beats a second: the last ones and the verdict come after the gap.
    let watched = "overall: {minutes: 2}, first_console_activity: {seconds: 30}, console_activity: {seconds: 30}";
    let ended = bench.run(&linux_job("away", "wharf.beats=40", watched, ""));
    ended.expect("PASS", "test").expect_in_order(&["the console was away for ", "job_success"]);
    assert_eq!((ended.of_kind("console_away").len(), ended.of_kind("console_back").len()), (1, 1), "{ended}");
    let (away, back) = (ended.of_kind("console_away")[0], ended.of_kind("console_back")[0]);
    let at = |event: &Value| event["at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let seconds = back["seconds"].as_f64().unwrap();
    // A loaded machine may be late for the one and for the other.
    let between = at(back).duration_since(at(away)).as_secs_f64();
    assert!((1.0..between + 1.0).contains(&seconds), "away for {seconds} s, between two events {between} s apart");
    assert!(!ended.console.contains("wharf: init started"), "what was said meanwhile is lost: {ended}");
    ended.expect_said(&["wharf: beat 40", "wharf: job done"]);
    is_free(&bench, &ended, Duration::from_secs(1));
    bench.run(&linux_job("away", "wharf.beats=40", TWO_MINUTES, "")).expect("PASS", "test");
}

#[test]
fn a_verdict_that_was_said_while_the_console_was_away_is_the_consoles_fault() {
    let bench = faulty();
    let ended =
        bench.run(&linux_job("away-unheard", "wharf.beats=1", "overall: {minutes: 2}, boot_cycle: {seconds: 3}", ""));
    ended.expect("INCOMPLETE", "console").expect_summary("of this boot, and what it said is lost");
    is_free(&bench, &ended, Duration::from_secs(1));
    bench.run(&linux_job("away-unheard", "wharf.beats=50", TWO_MINUTES, "")).expect("PASS", "test");
}

#[test]
fn a_dut_that_talks_on_after_its_verdict_is_cut_off() {
    let bench = faulty();
    let ended = passes_on(&bench, "talks-on");
    is_free(&bench, &ended, Duration::from_secs(1));
    let length = ended.console.len();
    let again = passes_on(&bench, "talks-on");
    assert!(again.console.starts_with("\r\nWharfinger simulated DUT"), "nothing of the job before is heard: {again}");
    let log = bench.get(&format!("/api/v1/jobs/{}/log", ended.id)).text();
    assert_eq!(log.len(), length, "nothing more came to the ended job's log");
}

/// A state folder of 8 MiB: room for the farm and some jobs, and soon filled.
const SMALL_DISK: u64 = 8 << 20;

#[test]
fn a_full_disk_ends_the_job_with_the_farm_as_cause_and_all_goes_on_when_there_is_room() {
    if let Err(why) = may_mount() {
        println!("SKIPPED: a small disk cannot be mounted here: {why}");
        return;
    }
    let surroundings = Surroundings { state_bytes: Some(SMALL_DISK), ..Surroundings::default() };
    let bench = Bench::start_with(WHARF, &farm_of(&[("full", "")]), surroundings);
    passes_on(&bench, "full");
    let timeouts = "overall: {minutes: 2}, infra_teardown: {seconds: 3}";
    let mut job = bench.submit(&linux_job("full", "wharf.beats=100000", timeouts, ""), "");
    job.wait_for_console("wharf: beat 3");
    let filler = bench.state().join("filler");
    fill(&filler);
    // What its files have left of their last block is room.
    let refused = || Some(()).filter(|()| bench.errors().contains("a job's log cannot be written; it waits for room"));
    until(Duration::from_secs(60), refused).expect("the log grows over its last block");
    job.cancel();
    let ended = job.wait_for_kind("ended");
    let verdict = &ended["verdict"];
    assert_eq!(
        (&verdict["status"], &verdict["cause"]),
        (&Value::from("INCOMPLETE"), &Value::from("farm")),
        "{verdict}"
    );
    let summary = verdict["summary"].as_str().unwrap();
    assert!(summary.contains("No space left on device"), "{summary}");
    drop(job);
    fs::remove_file(&filler).unwrap();
    bench.wait_until_free("odd-full-1", Duration::from_secs(30)).expect("free once there is room");
    passes_on(&bench, "full");
}

/// Writes until nothing more fits, to the last byte.
fn fill(path: &std::path::Path) {
    use std::io::Write;
    let mut file = fs::File::create(path).unwrap();
    for size in [1 << 16, 4096, 1] {
        while file.write(&vec![0; size]).is_ok_and(|written| written > 0) {}
    }
}

#[test]
fn a_flood_that_fills_the_disk_ends_its_job_and_the_server_lives_on() {
    if let Err(why) = may_mount() {
        println!("SKIPPED: a small disk cannot be mounted here: {why}");
        return;
    }
    let surroundings = Surroundings { state_bytes: Some(SMALL_DISK), ..Surroundings::default() };
    let bench = Bench::start_with(WHARF, &farm_of(&[("full", "misbehave: [{what: console-floods}]")]), surroundings);
    let timeouts = "overall: {minutes: 2}, infra_teardown: {seconds: 3}";
    let mut job = bench.submit(&linux_job("full", "wharf.end=hang", timeouts, ""), "");
    let ended = job.wait_for_kind("ended");
    let verdict = &ended["verdict"];
    assert_eq!(
        (&verdict["status"], &verdict["cause"]),
        (&Value::from("INCOMPLETE"), &Value::from("farm")),
        "{verdict}"
    );
    let summary = verdict["summary"].as_str().unwrap();
    assert!(summary.contains("bytes of the console are lost (No space left on device"), "{summary}");
    let id = job.id.clone();
    drop(job);
    // Made empty, not removed: a file that the server has open keeps its room.
    fs::File::create(bench.state().join(format!("jobs/{id}/console.log"))).unwrap();
    bench.wait_until_free("odd-full-1", Duration::from_secs(30)).expect("free once there is room");
}

#[test]
fn a_wall_clock_that_jumps_ends_no_job_and_no_place_in_the_queue() {
    need_programs(&[(FAKE_CLOCK, "libfaketime")]);
    let folder = tempfile::tempdir().unwrap();
    let clock = folder.path().join("clock");
    let set = |offset: &str| fs::write(&clock, format!("{offset}\n")).unwrap();
    set("+0");
    let environment = [
        ("LD_PRELOAD", FAKE_CLOCK),
        ("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let surroundings = Surroundings { environment, ..Surroundings::default() };
    let bench = Bench::start_with(WHARF, &farm_of(&[("clock", "")]), surroundings);
    for offset in ["+2d", "-2d"] {
        set("+0");
        let deadline = jiff::Timestamp::now() + Duration::from_secs(3600);
        let job = linux_job("clock", "wharf.beats=20", TWO_MINUTES, "");
        let mut running = bench.submit(&format!("deadline: '{deadline}'\n{job}"), "");
        running.wait_for_console("wharf: beat 2");
        let waiting = bench.submit(&job, "");
        set(offset);
        let ended = running.wait();
        ended.expect("PASS", "test");
        let day = |event: &Value| event["at"].as_str().unwrap()[..10].to_owned();
        assert_ne!(day(&ended.events[0]), day(&ended.events[ended.events.len() - 1]), "the farm saw the jump");
        waiting.wait().expect("PASS", "test");
    }
}

#[test]
fn the_true_figures_end_the_same() {
    if !true_figures() {
        println!(
            "SKIPPED: WHARF_TRUE_FAULTS=1 takes the outlet of 30 s, the console away for a minute and the one that stays away"
        );
        return;
    }
    let farm = farm_of(&[
        ("slow", "misbehave: [{what: outlet-slow}]"),
        ("away", "misbehave: [{what: console-away}]"),
        ("gone", "misbehave: [{what: console-away, for: 1 hour}]"),
    ]);
    let bench = Bench::start(WHARF, &farm);
    let long = "overall: {minutes: 20}";
    let slow = bench.submit(&linux_job("slow", "x=1", long, ""), "");
    let away = bench.submit(&linux_job("away", "wharf.beats=700", long, ""), "");
    let gone = bench.submit(&linux_job("gone", "wharf.end=hang", long, ""), "").id.clone();
    away.wait().expect("PASS", "test").expect_in_order(&["the console was away for 6"]);
    let ended = slow.wait();
    ended.expect("PASS", "test");
    is_free(&bench, &ended, Duration::from_secs(1));
    let ended = bench.follow(&gone, "").wait();
    ended.expect("INCOMPLETE", "console").expect_summary("the console closed; it was away for 300 s");
    bench.wait_until_free("odd-gone-1", Duration::from_secs(1)).expect("its DUT is given back");
}
