//! An outlet that a person switches: jobs wait for him, he says that it is done or that it is not, and who never comes is the farm's fault.
//!
//! ```text
//!  the server ─► `manual`: switch outlet 1 of bench on ─► wharf pdus ─► this test: wharf pdu done bench 1 ─► the job goes on
//!       └─────── TCP ───► console: this test, too
//! ```

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::Value;
use tests::bench::{Bench, Surroundings, until};
use tests::lab::Lab;
use tests::rack::PATIENCE;

use crate::farms::WHARF;

/// Two machines; for the second one nobody ever comes in time.
fn farm(consoles: &[TcpListener]) -> String {
    let machine = |number: usize, unit: &str| {
        let port = consoles[number - 1].local_addr().unwrap().port();
        format!(
            "- {{mac: '52:54:00:88:00:0{number}', address: 10.88.0.1{number}, tags: [{unit}], machine: {{hardware: \
             {{power: {{pdu: {unit}, outlet: '1'}}, console: {{tcp: {{host: 127.0.0.1, port: {port}}}}}}}}}}}\n"
        )
    };
    format!(
        "name: lab
network: {{interface: {{name: wharf0, address: 10.88.0.1/24}}}}
pdus:
- {{name: bench, min_off_time: 0 s, manual: {{outlets: ['1'], instructions: the grey box behind the bench}}}}
- {{name: attic, min_off_time: 0 s, manual: {{outlets: ['1'], wait_s: 1}}}}
duts:
{}{}",
        machine(1, "bench"),
        machine(2, "attic")
    )
}

fn job(tag: &str) -> String {
    format!(
        "version: 1
target: {{tags: [{tag}]}}
timeouts: {{overall: {{minutes: 4}}}}
console_patterns:
  session_end: {{regex: '^the end$'}}
  job_success: {{regex: '^all is good$'}}
deployment: {{start: {{}}}}
"
    )
}

/// Waits until a person is asked for something at the unit `bench`.
#[track_caller]
fn asked(bench: &Bench, state: &str) {
    let errand = |pdus: Value| pdus["pdus"]["bench"]["errands"][0]["state"].as_str() == Some(state);
    until(PATIENCE, || errand(bench.get("/api/v1/pdus").json()).then_some(()))
        .unwrap_or_else(|| panic!("nobody is asked for {state}; {}", bench.errors()));
}

fn opened(console: &TcpListener) -> TcpStream {
    console.set_nonblocking(true).unwrap();
    until(PATIENCE, || console.accept().ok()).expect("the server opens the console").0
}

#[test]
fn a_job_waits_for_the_person_who_switches_its_outlet_and_believes_what_he_says() {
    let lab = match Lab::new() {
        Ok(lab) => Arc::new(lab),
        Err(error) => return eprintln!("SKIPPED: {error}"),
    };
    lab.bridge("wharf0", Ipv4Addr::new(10, 88, 0, 1)).unwrap();
    let consoles = [(); 2].map(|()| lab.inside(|| TcpListener::bind("127.0.0.1:0")).unwrap());
    let surroundings = Surroundings { lab: Some(Arc::clone(&lab)), ..Surroundings::default() };
    let bench = Bench::start_with(WHARF, &farm(&consoles), surroundings);
    let wharf = |arguments: &[&str]| {
        let mut command: Command = lab.command(WHARF).unwrap();
        let output = command.args(["--server", &bench.url()]).args(arguments).stdin(Stdio::null()).output().unwrap();
        let said = if output.status.success() { output.stdout } else { output.stderr };
        String::from_utf8(said).unwrap().trim().to_owned()
    };
    let _serial = consoles.each_ref().map(opened);
    let mut serial = &_serial[0];

    // Nobody has said yet that the machine is off: it is nobody's, and the farm serves.
    asked(&bench, "off");
    let pdus = wharf(&["pdus"]);
    assert!(pdus.contains("switch outlet 1 of bench off (the grey box behind the bench), "), "{pdus}");
    assert!(pdus.contains(" s ago; then: wharf pdu done bench 1"), "{pdus}");
    let mut first = bench.submit(&job("bench"), "");
    assert!(wharf(&["duts"]).contains("nobody has said yet that it is off"), "{}", wharf(&["duts"]));
    assert_eq!(wharf(&["pdu", "done", "bench", "1"]), "outlet 1 of bench is off");

    asked(&bench, "on");
    assert_eq!(wharf(&["pdu", "done", "bench", "1"]), "outlet 1 of bench is on");
    first.wait_for_kind("powered_on");
    serial.write_all(b"all is good\nthe end\n").unwrap();
    asked(&bench, "off");
    assert_eq!(wharf(&["pdu", "done", "bench", "1", "off"]), "outlet 1 of bench is off");
    first.wait().expect("PASS", "test").expect_in_order(&["the outlet is on", "job_success matched"]);
    let nobody = wharf(&["pdu", "done", "bench", "1"]);
    assert!(nobody.contains("nobody waits for outlet `1` of bench: say `on` or `off`"), "{nobody}");

    // He comes, and cannot do it: he is not asked twice.
    let second = bench.submit(&job("bench"), "");
    asked(&bench, "on");
    assert_eq!(wharf(&["pdu", "done", "bench", "1", "off"]), "outlet 1 of bench is off");
    let ended = second.wait();
    ended.expect("SETUP_FAIL", "power");
    ended.expect_summary("asked to switch it on, a person says that it is off");

    // Nobody comes.
    assert_eq!(wharf(&["pdu", "done", "attic", "1", "off"]), "outlet 1 of attic is off");
    let ended = bench.submit(&job("attic"), "").wait();
    ended.expect("SETUP_FAIL", "power");
    ended.expect_summary("nobody has switched it on within 1 s; tell with `wharf pdu done`");
}
