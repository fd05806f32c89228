//! Machines show that they are well: they train before they take jobs, are checked, retired and put back; those that fail are held back, with a
//! sentence, and their records outlive the server.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};
use tests::bench::{Bench, until};
use tests::workspace;

use crate::farms::{WHARF, linux_job};

/// Some boots of a simulated DUT on a loaded machine.
const SOON: Duration = Duration::from_secs(120);

/// A health job.
const HEALTH_JOB: &str = include_str!("../../../fixtures/jobs/good/quick-check.yml");

/// The same with few seconds for a machine that does nothing.
fn health_job() -> String {
    HEALTH_JOB.replace("boot_cycle: {minutes: 5}", "boot_cycle: {seconds: 3}")
}

/// A folder with the health job, and the farm file that names it.
fn farm(training: &str, simulated: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let job = folder.path().join("boot.yml");
    std::fs::write(&job, health_job()).unwrap();
    let farm = format!(
        "name: lab\nnetwork: {{private: {{address: 10.79.2.1/24}}}}\n\
         training: {{boot_loop: '{}', pause: 1 s, {training}}}\n\
         health: {{suspect_after: 2, quarantined_after: 3}}\n\
         duts:\n- {{id: a, full_name: lab-a, mac: '52:54:00:79:02:0b', address: 10.79.2.11, tags: [one], \
         machine: {{simulated: {{{simulated}}}}}}}\n",
        job.display()
    );
    (folder, farm)
}

fn short() -> String {
    linux_job("one", "", "overall: {minutes: 5}", "")
}

#[track_caller]
fn wait_for(bench: &Bench, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
    until(SOON, || Some(bench.dut("lab-a")).filter(&is_it))
        .unwrap_or_else(|| panic!("it is not {what}: {:#}", bench.dut("lab-a")))
}

#[track_caller]
fn wait_for_state(bench: &Bench, state: &str) -> Value {
    wait_for(bench, state, |dut| dut["state"] == state)
}

fn wharf(bench: &Bench, arguments: &[&str]) -> Output {
    let mut command = Command::new(WHARF);
    command.args(arguments).env("WHARF_SERVER", bench.url()).env("USER", "anna").output().unwrap()
}

#[track_caller]
fn says(bench: &Bench, arguments: &[&str]) -> String {
    let output = wharf(bench, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refuses(bench: &Bench, arguments: &[&str]) -> String {
    let output = wharf(bench, arguments);
    assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_machine_trains_for_five_boots_over_a_crash_and_then_takes_jobs() {
    let (folder, farm) = farm("machines: all, boots: 5, qualifying: 5, register: boot.yml", "");
    let job = folder.path().join("boot.yml");
    std::fs::write(&job, HEALTH_JOB).unwrap();
    let farm = farm.replace("register: boot.yml", &format!("register: '{}'", job.display()));
    let bench = Bench::start(WHARF, &farm);
    let mut waiting = bench.submit(&short(), "");
    let reasons = waiting.wait_for_kind("queued")["reasons"].to_string();
    assert!(reasons.contains("lab-a has to pass its training first"), "{reasons}");
    let id = waiting.id.clone();
    drop(waiting);
    // It does not wait for us: the next boot may be over, too.
    let dut = wait_for(&bench, "past its second boot, and says so", |dut| {
        let boots = &dut["training"]["current_loop_count"];
        let comment = format!("it trains: {boots} of 5 boots, {boots} passed");
        boots.as_u64() >= Some(2) && dut["comment"].as_str().is_some_and(|it| it.starts_with(&comment))
    });
    assert_eq!((&dut["state"], &dut["ready_for_service"]), (&json!("TRAINING"), &json!(false)), "{dut:#}");
    let bench = bench.killed_and_started_again(WHARF);
    bench.follow(&id, "").wait().expect("PASS", "test");
    let dut = wait_for_state(&bench, "IDLE");
    let training = &dut["training"];
    assert_eq!((&training["state"], &training["is_registered"]), (&json!("IDLE"), &json!(true)), "{training:#}");
    assert_eq!((&training["boot_loop_counts"], &training["qualifying_rate"]), (&json!(5), &json!(5)));
    assert_eq!(training["statuses"], json!({"PASS": 5}), "{training:#}");
    let console = bench.get("/api/v1/dut/lab-a/training/loop/4").text();
    assert!(console.contains("wharf: init started"), "{console}");
    assert_eq!(bench.get("/api/v1/dut/a/training/loop/5").status, 404);
    assert!(dut["record"]["boots"].as_u64().unwrap() >= 5, "{dut:#}");
    assert!(says(&bench, &["dut", "show", "lab-a"]).starts_with("lab-a\n  state        IDLE\n"));
}

#[test]
fn a_machine_that_fails_is_quarantined_with_a_sentence_and_a_pass_heals_it() {
    let (_folder, mute) = farm("machines: all, boots: 2", "misbehave: [{what: no-dhcp}]");
    let bench = Bench::start(WHARF, &mute);
    let dut = wait_for_state(&bench, "BORKED");
    let comment = dut["comment"].as_str().unwrap();
    assert!(
        comment.starts_with("quarantined after 3 failures in a row, the last one in job 3, cause network: "),
        "{comment}"
    );
    assert_eq!(dut["record"]["failures"], json!({"network": 3}), "{dut:#}");
    let bench = bench.stopped_and_started_again(WHARF);
    assert_eq!(wait_for_state(&bench, "BORKED")["comment"], dut["comment"], "it is not forgotten");
    let shown = says(&bench, &["dut", "show", "lab-a"]);
    assert!(shown.contains("  health       quarantined\n") && shown.contains("  in a row     3\n"), "{shown}");
    bench.write_farm(&mute.replace("misbehave: [{what: no-dhcp}]", ""));
    assert_eq!(says(&bench, &["reload"]), "~ dut lab-a: machine\n");
    assert_eq!(says(&bench, &["dut", "check", "lab-a"]), "lab-a goes on with its training\n");
    let dut = wait_for_state(&bench, "IDLE");
    assert_eq!((&dut["health"], &dut["record"]["failures_in_a_row"]), (&json!("good"), &json!(0)), "{dut:#}");
    bench.run(&short()).expect("PASS", "test");
}

#[test]
fn a_machine_is_retired_activated_by_a_check_and_cordoned_when_that_fails() {
    let (_folder, farm) = farm("boots: 1", "");
    let bench = Bench::start(WHARF, &farm);
    assert_eq!(bench.dut("lab-a")["state"], "IDLE", "a machine of the farm file is in service at once");
    let retired = says(&bench, &["dut", "retire", "lab-a", "--reason", "sold"]);
    assert_eq!(retired, "lab-a is RETIRED: sold (anna)\n");
    let mut waiting = bench.submit(&short(), "");
    let reasons = waiting.wait_for_kind("queued")["reasons"].to_string();
    assert!(reasons.contains("lab-a is held back: retired: sold (anna)"), "{reasons}");
    let told = refuses(&bench, &["dut", "check", "a"]);
    assert!(told.contains("lab-a is retired: sold (anna); `wharf dut activate` puts it back"), "{told}");
    says(&bench, &["dut", "activate", "a"]);
    waiting.wait().expect("PASS", "test");
    let submitters: Vec<_> = bench.get("/api/v1/jobs").json()["jobs"].as_array().unwrap().clone();
    assert!(submitters.iter().any(|job| job["submitter"] == "quick check"), "{submitters:#?}");
    for command in [&["dut", "set", "a", "--comment", "x"][..], &["dut", "remove", "a"]] {
        let told = refuses(&bench, command);
        assert!(told.contains("lab-a is in the farm file; ") && told.contains("`wharf reload`"), "{told}");
    }
    bench.write_farm(&farm.replace("simulated: {}", "simulated: {misbehave: [{what: no-dhcp}]}"));
    says(&bench, &["reload"]);
    wait_for_state(&bench, "IDLE");
    says(&bench, &["dut", "check", "a"]);
    let dut = wait_for_state(&bench, "RETIRED");
    let comment = dut["comment"].as_str().unwrap();
    assert!(comment.starts_with("its quick check ended INCOMPLETE (cause: network)"), "{comment}");
    assert_eq!(says(&bench, &["dut", "uncordon", "a"]), "lab-a is in service\n");
    wait_for_state(&bench, "IDLE");
}

/// CI-tron's own templates, where its sources lie beside ours. They need a container registry only after the kernel runs, which a simulated
/// machine plays.
#[test]
fn ci_trons_own_health_jobs_run_as_they_are() {
    let Some(templates) = corpus() else { return };
    let (folder, farm) = farm("machines: all, boots: 2", "console: 'says.yml'");
    // Its container opens the serial port itself: no terminal puts a `\r` before the line's end, and the template's pattern has none.
    let says_it = "- raw: \"MaRS: Registration complete\\n\"\n- say: 'Execution is over, pipeline status: 0'\n\
                   - say: \"It's now safe to turn off your computer\"\n- hang\n";
    std::fs::write(folder.path().join("says.yml"), says_it).unwrap();
    let boots = "boots:\n- defaults: {kernel: {data: 'a kernel'}, initramfs: {data: 'an initramfs'}}\n";
    std::fs::write(folder.path().join("boots.yml"), boots).unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let boot_loop = templates.join("bootloop.yml.j2").display().to_string();
    let farm = farm.replace(&at("boot.yml"), &boot_loop).replace("says.yml", &at("says.yml"));
    let bench = Bench::start(WHARF, &format!("{farm}boots: '{}'\n", at("boots.yml")));
    let dut = wait_for_state(&bench, "IDLE");
    assert_eq!(dut["training"]["statuses"], json!({"PASS": 2}), "{dut:#}");
    let register = std::fs::read_to_string(templates.join("register.yml.j2")).unwrap();
    let ended = bench.submit(&register, "?dut=a").wait();
    ended.expect("PASS", "test");
}

fn corpus() -> Option<PathBuf> {
    let beside = |root: &Path| root.join("../shared/corpus/ci-tron-server");
    Some(beside(&workspace::root())).filter(|folder| folder.join("bootloop.yml.j2").is_file())
}
