//! Jobs over several DUTs, and the gear between them.

use std::time::Duration;

use serde_json::Value;
use tests::bench::{Bench, until};

use crate::farms::{WHARF, farm_of, linux_job, simulated};

const TWO_ROLES: &str = include_str!("../../../fixtures/jobs/good/two-roles.yml");

/// A role's deployment: the farm's own Linux with these words.
fn role(name: &str, tags: &str, words: &str, more: &str) -> String {
    format!(
        "  - role: {name}
    tags: [{tags}]
    {more}
    deployment:
      start:
        kernel: {{url: '{{{{ images_url }}}}/kernel', cmdline: [\"{words}\"]}}
        initramfs: {{url: '{{{{ images_url }}}}/initramfs'}}
"
    )
}

fn job_of(roles: &[String], overall: &str) -> String {
    format!(
        "version: 1
target:
{}timeouts: {{overall: {overall}}}
console_patterns:
  session_end: {{regex: 'reboot: Power [Dd]own'}}
  job_success: {{regex: '^wharf: job done\\r?$'}}
",
        roles.concat()
    )
}

fn job(bench: &Bench, id: &str) -> Value {
    bench.get(&format!("/api/v1/jobs/{id}")).json()
}

#[test]
fn two_machines_of_one_job_start_together_tell_each_other_and_leave_together() {
    let bench = simulated();
    let ended = bench.run(TWO_ROLES);
    ended.expect("PASS", "test");
    ended.expect_summary("server: PASS");
    ended.expect_summary("client: PASS");
    ended.expect_said(&["[server] "]);
    ended.expect_said(&["[client] "]);
    let id = ended.id.clone();
    let roles = job(&bench, &id)["roles"].as_array().unwrap().clone();
    let named: Vec<_> = roles.iter().map(|role| role["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(named, [format!("{id}-server"), format!("{id}-client")]);
    assert_ne!(roles[0]["dut"], roles[1]["dut"], "two machines");
    let at = |role: &str, kind: &str| {
        let ended = bench.follow(&format!("{id}-{role}"), "").wait();
        ended.of_kind(kind)[0]["at"].as_str().unwrap().to_owned()
    };
    let both_set_up = at("server", "setup_started").max(at("client", "setup_started"));
    assert!(at("server", "powered_on") > both_set_up && at("client", "powered_on") > both_set_up);
    let log = bench.get(&format!("/api/v1/jobs/{id}-client/log")).text();
    assert!(log.contains("serving"), "the client saw what it waited for: {log}");
}

#[test]
fn a_role_that_ends_without_a_result_ends_the_others_and_every_machine_is_free() {
    let farm = farm_of(&[("good", "misbehave: []"), ("mute", "misbehave: [{what: fall-silent}]")]);
    let bench = Bench::start(WHARF, &farm);
    let quick =
        "timeouts: {overall: {minutes: 2}, console_activity: {seconds: 1}, first_console_activity: {seconds: 2}}";
    let text =
        job_of(&[role("waits", "good", "wharf.end=hang", ""), role("silent", "mute", "quiet", quick)], "{minutes: 2}");
    let ended = bench.run(&text);
    ended.expect("INCOMPLETE", "timeout");
    ended.expect_summary("its role silent ended INCOMPLETE");
    for dut in bench.duts() {
        assert_eq!((&dut["state"], &dut["power"]), (&Value::from("IDLE"), &Value::from("off")), "{dut}");
    }
}

#[test]
fn no_machine_is_powered_on_while_another_role_cannot_be_set_up() {
    let bench = Bench::start(WHARF, &farm_of(&[("one", ""), ("two", "")]));
    let broken = role("b", "two", "", "").replace("images_url }}/kernel", "images_url }}/nothing");
    let ended = bench.run(&job_of(&[role("a", "one", "", ""), broken], "{minutes: 1}"));
    ended.expect("SETUP_FAIL", "artifact");
    let a = bench.follow(&format!("{}-a", ended.id), "").wait();
    assert!(a.of_kind("powered_on").is_empty(), "{a}");
}

#[test]
fn a_job_that_no_set_of_machines_could_ever_serve_is_refused_with_the_role_that_is_left_over() {
    let bench = Bench::start(WHARF, &farm_of(&[("one", ""), ("two", "")]));
    let text = job_of(&[role("a", "one", "", ""), role("b", "one", "", "")], "{minutes: 1}");
    let answer = bench.refused(&text, "");
    assert_eq!(answer.status, 406);
    assert!(answer.text().contains("none is left for `b`"), "{}", answer.text());
    let meter = job_of(&[role("a", "one", "", "gear: [meter]")], "{minutes: 1}");
    let answer = bench.refused(&meter, "");
    assert!(answer.status == 406 && answer.text().contains("no gear `meter`"), "{}", answer.text());
}

#[test]
fn cancelling_a_job_over_two_machines_frees_both() {
    let bench = Bench::start(WHARF, &farm_of(&[("one", ""), ("two", "")]));
    let hang = "wharf.end=hang";
    let text = job_of(&[role("a", "one", hang, ""), role("b", "two", hang, "")], "{minutes: 5}");
    let mut running = bench.submit(&text, "");
    running.wait_for_console("[a] ");
    running.wait_for_console("[b] ");
    running.cancel();
    running.wait().expect("INCOMPLETE", "cancelled");
    let all_free =
        || Some(()).filter(|()| bench.duts().iter().all(|dut| dut["state"] == "IDLE" && dut["power"] == "off"));
    until(Duration::from_secs(5), all_free).unwrap_or_else(|| panic!("{:#?}", bench.duts()));
}

#[test]
fn two_jobs_that_need_the_same_gear_run_one_after_the_other() {
    let mut farm = farm_of(&[("one", ""), ("two", "")]);
    farm.push_str("gear: [{name: meter}]\n");
    let bench = Bench::start(WHARF, &farm);
    let with_meter = |tag: &str, words: &str| {
        linux_job(tag, words, "overall: {minutes: 2}", "")
            .replace(&format!("target: {{tags: [{tag}]}}"), &format!("target: {{tags: [{tag}], gear: [meter]}}"))
    };
    let mut first = bench.submit(&with_meter("one", "wharf.end=hang"), "");
    first.wait_for_kind("powered_on");
    let mut second = bench.submit(&with_meter("two", ""), "");
    let queued = second.wait_for_kind("queued");
    assert!(queued["reasons"].to_string().contains("needs meter, which is not free"), "{queued}");
    first.cancel();
    first.wait().expect("INCOMPLETE", "cancelled");
    second.wait().expect("PASS", "test");
}

#[test]
fn a_job_over_two_machines_that_a_kill_interrupts_ends_whole_and_says_so_for_each_role() {
    let bench = Bench::start(WHARF, &farm_of(&[("one", ""), ("two", "")]));
    let hang = "wharf.end=hang";
    let text = job_of(&[role("a", "one", hang, ""), role("b", "two", hang, "")], "{minutes: 5}");
    let mut running = bench.submit(&text, "");
    running.wait_for_console("[a] ");
    running.wait_for_console("[b] ");
    drop(running);
    let bench = bench.killed_and_started_again(WHARF);
    bench.follow("1", "").wait().expect("INCOMPLETE", "farm");
    for role in job(&bench, "1")["roles"].as_array().unwrap() {
        assert_eq!(role["verdict"]["cause"], "farm", "{role}");
    }
    assert!(bench.duts().iter().all(|dut| dut["state"] == "IDLE" && dut["power"] == "off"));
}
