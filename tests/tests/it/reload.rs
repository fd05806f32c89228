//! A running farm takes a changed farm file: what is new is there, what changed follows, what is gone is drained, and no lease ends by it.

use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use tests::bench::{Bench, until};

use crate::farms::{WHARF, linux_job};

/// What a loaded machine needs for a DUT to be taken out or made.
const SOON: Duration = Duration::from_secs(30);

const FARM: &str = "name: lab\nnetwork: {private: {address: 10.79.1.1/24}}\nduts:\n";

/// A DUT's entry: its id, the last number of its address, its tags, and further keys.
fn dut(id: &str, address: u8, tags: &str, more: &str) -> String {
    format!(
        "- {{id: {id}, full_name: lab-{id}, mac: '52:54:00:79:01:{address:02x}', address: 10.79.1.{address}, \
         tags: [{tags}], {more}machine: {{simulated: {{}}}}}}\n"
    )
}

fn farm(duts: &[String]) -> String {
    format!("{FARM}{}", duts.concat())
}

fn hanging(tag: &str) -> String {
    linux_job(tag, "wharf.end=hang", "overall: {minutes: 5}", "")
}

fn short(tag: &str) -> String {
    linux_job(tag, "", "overall: {minutes: 5}", "")
}

fn reload(bench: &Bench) -> Output {
    Command::new(WHARF).args(["reload", "--server", &bench.url()]).output().unwrap()
}

/// What a reload that works prints.
#[track_caller]
fn reloaded(bench: &Bench, farm: &str) -> String {
    bench.write_farm(farm);
    let output = reload(bench);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn names(bench: &Bench) -> Vec<String> {
    bench.duts().iter().map(|dut| dut["full_name"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn wait_for_names(bench: &Bench, expected: &[&str]) {
    until(SOON, || Some(()).filter(|()| names(bench) == expected)).unwrap_or_else(|| panic!("{:?}", names(bench)));
}

#[track_caller]
fn wait_for_dut(bench: &Bench, name: &str, what: &str, is_it: impl Fn(&Value) -> bool) {
    until(SOON, || Some(()).filter(|()| is_it(&bench.dut(name))))
        .unwrap_or_else(|| panic!("{name} is not {what}: {:#}", bench.dut(name)));
}

#[test]
fn what_is_added_and_changed_is_there_at_once_and_who_runs_runs_on() {
    let before = [dut("a", 11, "one", ""), dut("b", 12, "two", ""), dut("c", 13, "three", "")];
    let bench = Bench::start(WHARF, &farm(&before));
    let mut held = bench.submit(&hanging("one"), "");
    held.wait_for_kind("powered_on");
    let after = [
        dut("a", 11, "one, more", "comment: 'on the bench', "),
        dut("c", 23, "three", ""),
        dut("d", 14, "four", ""),
        "gear: [{name: meter}]\nvariables: {colour: red}\n".to_owned(),
    ];
    let told = "~ dut lab-a: tags, comment\n~ dut lab-c: mac, address\n+ dut lab-d\n- dut lab-b\n+ gear lab-meter\n\
                ~ the farm's variables\n";
    assert_eq!(reloaded(&bench, &farm(&after)), told);
    wait_for_names(&bench, &["lab-a", "lab-c", "lab-d"]);
    wait_for_dut(&bench, "lab-a", "as the file has it", |dut| {
        dut["comment"] == "on the bench" && dut["tags"] == serde_json::json!(["one", "more", "farm:lab"])
    });
    assert_eq!(bench.dut("lab-a")["job"], held.id, "who held it holds it");
    for tag in ["three", "four"] {
        bench.run(&short(tag)).expect("PASS", "test");
    }
    assert_eq!(bench.dut("lab-c")["ip_address"], "10.79.1.23");
    let gone = bench.refused(&short("two"), "");
    assert_eq!(gone.status, 406, "{gone:?}");
    held.cancel();
    held.wait().expect("INCOMPLETE", "cancelled");
    bench.run(&short("more")).expect("PASS", "test");
    assert_eq!(reloaded(&bench, &farm(&after)), "nothing changed\n");
}

#[test]
fn a_removed_dut_stays_with_its_holder_then_it_is_gone_and_it_can_come_back() {
    let both = farm(&[dut("a", 11, "one", ""), dut("b", 12, "two", "")]);
    let bench = Bench::start(WHARF, &both);
    let mut held = bench.submit(&hanging("one"), "");
    held.wait_for_kind("powered_on");
    let waiting = bench.submit(&short("one"), "");
    let told = format!("- dut lab-a (gone when job {} gives it back)\n", held.id);
    assert_eq!(reloaded(&bench, &farm(&[dut("b", 12, "two", "")])), told);
    let ended = waiting.wait();
    ended.expect("SETUP_FAIL", "farm");
    let why = "no DUT could be had: nothing in the farm could ever serve it: lab-a is no longer in the farm file";
    assert!(ended.summary.starts_with(why), "{ended}");
    assert_eq!(bench.refused(&short("one"), "").status, 406);
    assert_eq!(bench.dut("lab-a")["job"], held.id, "who held it holds it");
    held.cancel();
    held.wait().expect("INCOMPLETE", "cancelled");
    wait_for_names(&bench, &["lab-b"]);
    assert_eq!(reloaded(&bench, &both), "+ dut lab-a\n");
    bench.run(&short("one")).expect("PASS", "test");
}

#[test]
fn a_held_dut_follows_the_file_when_it_is_given_back_and_stays_held_back_by_whom_it_was() {
    let bench = Bench::start(WHARF, &farm(&[dut("a", 11, "one", ""), dut("b", 12, "two", "")]));
    let cordon =
        Command::new(WHARF).args(["dut", "cordon", "b", "--reason", "smoke", "--server", &bench.url()]).status();
    assert!(cordon.unwrap().success());
    let mut held = bench.submit(&hanging("one"), "");
    held.wait_for_kind("powered_on");
    let waiting = bench.submit(&short("one"), "");
    let told = format!("~ dut lab-a: mac, address (once job {} gives it back)\n~ dut lab-b: mac, address\n", held.id);
    assert_eq!(reloaded(&bench, &farm(&[dut("a", 21, "one", ""), dut("b", 22, "two", "")])), told);
    held.cancel();
    held.wait().expect("INCOMPLETE", "cancelled");
    waiting.wait().expect("PASS", "test");
    wait_for_names(&bench, &["lab-a", "lab-b"]);
    let why = bench.dut("lab-b")["comment"].as_str().unwrap().to_owned();
    assert!(why.starts_with("smoke"), "{why}");
    let bench = bench.killed_and_started_again(WHARF);
    assert_eq!(bench.dut("lab-a")["ip_address"], "10.79.1.21");
    assert!(bench.dut("lab-b")["comment"].as_str().unwrap().starts_with("smoke"));
}

#[test]
fn a_wrong_file_changes_nothing_and_tells_all_its_mistakes_and_a_hang_up_reads_it_too() {
    let right = farm(&[dut("a", 11, "one", "")]);
    let bench = Bench::start(WHARF, &right);
    let wrong = right.replace("address: 10.79.1.11", "address: 10.80.1.11").replace("tags: [one]", "tag: [one]");
    bench.write_farm(&wrong);
    let output = reload(&bench);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(70), 0), "{told}");
    for mistake in ["unknown key `tag`", "`10.80.1.11` is not an address for a DUT of this network", "farm.yml:4:"] {
        assert!(told.contains(mistake), "{told}");
    }
    bench.write_farm(&right.replace("10.79.1.1/24", "10.79.1.2/24").replace("name: lab", "name: other"));
    let told = String::from_utf8(reload(&bench).stderr).unwrap();
    for (key, place) in [("name", "farm.yml:1:7"), ("network", "farm.yml:2:1")] {
        assert!(told.contains(&format!("restart `wharf serve` to change `{key}`")), "{told}");
        assert!(told.contains(place), "{told}");
    }
    std::fs::remove_file(bench.farm_file()).unwrap();
    let told = String::from_utf8(reload(&bench).stderr).unwrap();
    assert!(told.contains("cannot read"), "{told}");
    bench.run(&short("one")).expect("PASS", "test");
    bench.write_farm(&wrong);
    bench.hang_up();
    until(SOON, || bench.errors().contains("nothing was changed: ").then_some(())).expect("the log says why");
    bench.write_farm(&farm(&[dut("a", 11, "one", ""), dut("b", 12, "two", "")]));
    bench.hang_up();
    wait_for_names(&bench, &["lab-a", "lab-b"]);
}
