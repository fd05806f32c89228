//! A CI-tron farm moved to ours from its files, as an admin does it: imported, checked, served.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::json;
use tests::bench::Bench;

use crate::farms::{WHARF, linux_job};

fn import(into: &Path, mars: &str, more: &[&str]) -> Output {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/ci-tron");
    let mut command = Command::new(WHARF);
    command.args(["import", "ci-tron"]).arg(if mars.contains('/') { mars.into() } else { fixtures.join(mars) });
    command.arg("--environment").arg(fixtures.join("environment")).arg("--into").arg(into).args(more);
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn an_imported_farm_is_right_the_same_again_and_never_overwritten_without_being_asked() {
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("moved");
    let first = import(&into, "mars_db.yaml", &["--range", "10.42.1.1-10.42.1.99"]);
    assert!(first.status.success(), "{first:?}");
    let told = said(&first);
    for words in ["farm.yml: written", "inventory.yml: written", "3 machines, 1 of them retired", "valve-lab-navi21-2"]
    {
        assert!(told.contains(words), "no `{words}`: {told}");
    }
    assert!(told.contains("MINIO_ROOT_PASSWORD: ") && !told.contains("not-for-everybody"), "{told}");
    let farm = into.join("farm.yml");
    let check = Command::new(WHARF).arg("check").arg(&farm).output().unwrap();
    assert!(check.status.success(), "{check:?}");
    let again = said(&import(&into, "mars_db.yaml", &["--range", "10.42.1.1-10.42.1.99"]));
    assert!(again.contains("farm.yml: as it was") && again.contains("inventory.yml: as it was"), "{again}");
    std::fs::write(&farm, "name: mine\n").unwrap();
    let refused = import(&into, "mars_db.yaml", &[]);
    assert_eq!(refused.status.code(), Some(70), "{refused:?}");
    assert!(
        said(&refused).contains("says something else; nothing is written. `--overwrite` replaces it"),
        "{refused:?}"
    );
    assert_eq!(std::fs::read_to_string(&farm).unwrap(), "name: mine\n");
    assert!(import(&into, "mars_db.yaml", &["--overwrite"]).status.success());
    assert!(std::fs::read_to_string(&farm).unwrap().contains("name: valve-lab"));
}

#[test]
fn a_file_with_mistakes_is_drawn_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let mars = folder.path().join("mars_db.yaml");
    let text = "pdus:\n  a: {driver: tasmota, config: {hostname: h, colour: red}}\n  b: {driver: snmp, config: {hostname: h}}\n";
    std::fs::write(&mars, text).unwrap();
    let into = folder.path().join("moved");
    let output = import(&into, mars.to_str().unwrap(), &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = said(&output);
    assert!(told.contains("unknown key `colour`") && told.contains("outlet_labels"), "{told}");
    assert!(!into.exists());
}

/// The farm that the imported machines are put into: their outlets and consoles are those of its spares.
const SPARES: &str = "
name: old
network: {private: {address: 10.81.0.1/24}}
duts: []
spares:
  - {name: left, mac: '52:54:00:81:00:01', machine: {simulated: {}}}
  - {name: right, mac: '52:54:00:81:00:02', machine: {simulated: {}}}
";

#[test]
fn imported_machines_keep_their_names_and_the_one_in_service_takes_jobs_after_one_check_while_the_retired_one_waits() {
    let folder = tempfile::tempdir().unwrap();
    let mars = folder.path().join("mars_db.yaml");
    let text = "
pdus:
  desk: {driver: vpdu, config: {hostname: '127.0.0.1:9'}}
duts:
  '52:54:00:81:00:01': {base_name: a, ip_address: 10.81.0.11, tags: [t], pdu: desk, pdu_port_id: 0,
    ready_for_service: true, is_retired: true, first_seen: 2024-01-01 00:00:00, comment: old}
  '52:54:00:81:00:02': {base_name: a, ip_address: 10.81.0.12, tags: [t], pdu: desk, pdu_port_id: 1,
    ready_for_service: true, first_seen: 2024-01-02 00:00:00}
  '52:54:00:81:00:03': {base_name: a, ip_address: 10.81.0.13, tags: [t], first_seen: 2024-01-03 00:00:00}
";
    std::fs::write(&mars, text).unwrap();
    let into = folder.path().join("moved");
    assert!(import(&into, mars.to_str().unwrap(), &["--name", "old", "--address", "10.81.0.1/24"]).status.success());
    let inventory = std::fs::read_to_string(into.join("state/inventory.yml")).unwrap();
    let on = |text: String, outlet: &str, spare: &str| {
        let theirs = format!("      pdu: desk\n      outlet: '{outlet}'\n");
        assert!(text.contains(&theirs), "{text}");
        text.replace(&theirs, &format!("      pdu: spares\n      outlet: {spare}\n    console: {spare}\n"))
    };
    let inventory = on(on(inventory, "0", "left"), "1", "right");
    let bench = Bench::start(WHARF, SPARES);
    std::fs::write(bench.state().join("inventory.yml"), inventory).unwrap();
    let bench = bench.stopped_and_started_again(WHARF);
    // It takes it only once its quick check has passed.
    bench.run(&linux_job("t", "", "overall: {minutes: 5}", "")).expect("PASS", "test");
    let served = bench.dut("old-a-2");
    assert_eq!(served["record"]["boots"], 2, "{served:#}");
    let retired = bench.dut("old-a-1");
    assert_eq!((&retired["state"], &retired["is_retired"]), (&json!("RETIRED"), &json!(true)), "{retired:#}");
    let comment = retired["comment"].as_str().unwrap();
    assert!(comment.contains("it was retired in the farm that it comes from"), "{comment}");
    assert_eq!(retired["record"]["boots"], 0, "nobody has switched it on: {retired:#}");
    assert_eq!(bench.dut("old-a-3")["state"], "WAIT_FOR_CONFIG");
}
