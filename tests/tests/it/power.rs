//! What holds for every outlet, tried with a unit that is a script: off-times and cycles over kills, units that fail or lie, outlets that
//! are reserved, two machines on one unit; and with a plug that measures.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use tests::bench::{Bench, Surroundings, need_programs, until};
use tests::rack::{PATIENCE, Rack, power, take};

use crate::farms::WHARF;

const FAST: &str = "min_off_time: 0 s, poll_interval: 0.2 s, call_pause: 0 s";
const OFF_TIME_S: f64 = 3.0;
const SLOW: &str = "min_off_time: 3 s, poll_interval: 0.2 s";

fn wharf(bench: &Bench, rack: &Rack, arguments: &[&str]) -> Output {
    let mut command: Command = rack.lab.command(WHARF).unwrap();
    command.args(arguments).env("WHARF_SERVER", bench.url()).env("USER", "root").stdin(Stdio::null());
    command.output().unwrap()
}

#[track_caller]
fn said(bench: &Bench, rack: &Rack, arguments: &[&str]) -> String {
    let output = wharf(bench, rack, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[track_caller]
fn refused(bench: &Bench, rack: &Rack, arguments: &[&str]) -> String {
    let output = wharf(bench, rack, arguments);
    assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

fn port(bench: &Bench, outlet: &str) -> Value {
    bench.get("/api/v1/pdus").json()["pdus"]["rack"]["ports"][outlet].clone()
}

/// From the last off to the on after it, in seconds of the host's uptime.
#[track_caller]
fn time_off(rack: &Rack, outlet: &str) -> f64 {
    let calls = rack.calls(outlet);
    let [.., (off_at, off), (on_at, on)] = &calls[..] else { panic!("{calls:?}") };
    assert_eq!((off.as_str(), on.as_str()), ("off", "on"), "{calls:?}");
    // The host says it in hundredths, which the difference of two such numbers is not by itself.
    ((on_at - off_at) * 100.0).round() / 100.0
}

#[test]
fn an_off_time_is_counted_from_the_last_off_though_the_server_is_killed_in_it() {
    let Some(rack) = Rack::new() else { return };
    rack.switch_by_hand("7", "on");
    let bench = rack.start(WHARF, &["7"], SLOW, "");
    let lease = take(&bench, "lab-dut-1");
    assert_eq!(power(&bench, &lease, "on").status, 200);
    assert!(time_off(&rack, "7") >= OFF_TIME_S, "the start switched it off: {:?}", rack.calls("7"));
    assert_eq!(power(&bench, &lease, "off").status, 200);
    let bench = bench.killed_and_started_again(WHARF);
    assert_eq!(power(&bench, &lease, "on").status, 200);
    assert!(time_off(&rack, "7") >= OFF_TIME_S, "{:?}", rack.calls("7"));
    assert_eq!(rack.verbs("7"), ["off", "on", "off", "on"], "nothing was switched by the restart");
    assert_eq!(port(&bench, "7")["state"], "ON");
}

#[test]
fn a_cycle_that_is_killed_while_it_is_off_is_done_by_the_next_start() {
    let Some(rack) = Rack::new() else { return };
    need_programs(&[("curl", "curl")]);
    let bench = rack.start(WHARF, &["7"], SLOW, "");
    let lease = take(&bench, "lab-dut-1");
    assert_eq!(power(&bench, &lease, "on").status, 200);
    // Whoever asks hangs up with the server.
    let url = format!("{}/api/v1/leases/{lease}/power", bench.url());
    let mut asks = rack.lab.command("curl").unwrap();
    asks.args(["-s", "-d", r#"{"state": "cycle"}"#, &url]).stdout(Stdio::null());
    let mut asks = asks.spawn().unwrap();
    rack.wait("the off of the cycle", |rack| rack.verbs("7") == ["off", "on", "off"] && rack.state("7") == "off");
    let bench = bench.killed_and_started_again(WHARF);
    asks.wait().unwrap();
    rack.wait("the rest of the cycle", |rack| rack.state("7") == "on");
    assert_eq!(rack.verbs("7"), ["off", "on", "off", "off", "on"]);
    let calls = rack.calls("7");
    assert!(calls[4].0 - calls[2].0 > OFF_TIME_S - 0.01, "{calls:?}");
    let log = String::from_utf8(bench.get(&format!("/api/v1/leases/{lease}/log")).body).unwrap();
    assert!(log.contains("A power cycle was begun before the restart: it is done now"), "{log}");
}

#[test]
fn machines_on_one_unit_wait_for_its_calls_and_not_for_each_others_off_time() {
    let Some(rack) = Rack::new() else { return };
    let bench = rack.start(WHARF, &["1", "2"], "min_off_time: 2 s, poll_interval: 0.1 s, call_pause: 0 s", "");
    let leases = ["lab-dut-1", "lab-dut-2"].map(|dut| take(&bench, dut));
    std::thread::scope(|scope| {
        for lease in &leases {
            scope.spawn(|| assert_eq!(power(&bench, lease, "on").status, 200));
        }
    });
    std::thread::scope(|scope| {
        for lease in &leases {
            scope.spawn(|| assert_eq!(power(&bench, lease, "cycle").status, 200));
        }
    });
    assert_eq!((rack.state("1"), rack.state("2")), ("on".into(), "on".into()));
    assert!(!rack.path("overlaps").exists(), "one call at a time");
}

#[test]
fn a_unit_that_fails_is_asked_again_and_one_that_lies_is_told() {
    let Some(rack) = Rack::new() else { return };
    let bench = rack.start(WHARF, &["1", "2", "3"], FAST, "");
    let leases = ["lab-dut-1", "lab-dut-2", "lab-dut-3"].map(|dut| take(&bench, dut));
    rack.make("fail-once-1");
    assert_eq!(power(&bench, &leases[0], "on").status, 200);
    assert_eq!(rack.verbs("1"), ["off", "on", "on"]);
    rack.make("fail-2");
    let answer = power(&bench, &leases[1], "on");
    assert!(answer.status == 500 && answer.text().contains("the relay board is not there"), "{answer:?}");
    assert_eq!(rack.verbs("2"), ["off", "on", "on"], "twice, no more");
    rack.make("stuck-3");
    let answer = power(&bench, &leases[2], "on");
    assert!(answer.text().contains("outlet `3`: told to go on, but it reads back off"), "{answer:?}");
    assert_eq!(rack.verbs("3"), ["off", "on", "on"]);
    // A poll that succeeds shows it well again.
    let is_well = || bench.get("/api/v1/pdus").json()["pdus"]["rack"]["state"] == "OK";
    until(PATIENCE, || Some(()).filter(|()| is_well())).expect("it answers again");
    for file in ["fail-2", "stuck-3"] {
        std::fs::remove_file(rack.path(file)).unwrap();
    }
    rack.switch_by_hand("1", "off");
    let is_told = || bench.errors().contains("somebody else switched the outlet off");
    until(PATIENCE, || Some(()).filter(|()| is_told())).expect("the log says who it was not");
    assert_eq!(port(&bench, "1")["state"], "OFF");
}

#[test]
fn an_admin_switches_and_reserves_what_no_machine_in_service_has() {
    let Some(rack) = Rack::new() else { return };
    let bench = rack.start(WHARF, &["1"], &format!("{FAST}, reserved: ['8']"), "");
    assert_eq!(said(&bench, &rack, &["pdu", "on", "rack", "9"]), "outlet 9 of rack: on");
    assert_eq!(rack.state("9"), "on");
    assert_eq!(said(&bench, &rack, &["pdu", "reserve", "rack", "9"]), "outlet 9 of rack: on, reserved");
    let why = refused(&bench, &rack, &["pdu", "off", "rack", "9"]);
    assert_eq!(why, "wharf: outlet `9`: it is reserved; `wharf pdu unreserve rack 9` frees it");
    let why = refused(&bench, &rack, &["pdu", "unreserve", "rack", "8"]);
    assert!(why.contains("the farm file reserves it"), "{why}");
    let why = refused(&bench, &rack, &["pdu", "off", "rack", "1"]);
    assert!(why.contains("outlet `1` is lab-dut-1's, which is in service: lease the machine"), "{why}");
    let why = refused(&bench, &rack, &["pdu", "show", "shelf"]);
    assert_eq!(why, "wharf: no PDU `shelf`; PDUs: rack");
    let bench = bench.killed_and_started_again(WHARF);
    assert_eq!(port(&bench, "9")["reserved"], true, "it is reserved over a restart");
    assert_eq!(rack.state("9"), "on", "and what has no machine stays as it is");
    said(&bench, &rack, &["pdu", "unreserve", "rack", "9"]);
    assert_eq!(said(&bench, &rack, &["pdu", "off", "rack", "9"]), "outlet 9 of rack: off");
    said(&bench, &rack, &["dut", "cordon", "lab-dut-1"]);
    assert_eq!(said(&bench, &rack, &["pdu", "on", "rack", "1"]), "outlet 1 of rack: on");
    let table = said(&bench, &rack, &["pdus"]);
    let row = table.lines().find(|line| line.contains("lab-dut-1")).unwrap();
    assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["rack", "exec", "yes", "1", "on", "lab-dut-1"], "{table}");
    let wish = br#"{"min_off_time": 1.5}"#;
    let answer = bench.ask("PATCH", "/api/v1/pdu/rack/port/9", "Content-Type: application/json\r\n", wish);
    assert_eq!((answer.status, &answer.json()["min_off_time"]), (200, &Value::from(1.5)));
    // CI-tron's word for the same, by the machine's name, and in CI-tron's two forms.
    for (delay, is) in [("\"0.75\"", 0.75), ("0.5", 0.5)] {
        let wish = format!(r#"{{"pdu_off_delay": {delay}}}"#);
        let answer = bench.ask("PATCH", "/api/v1/dut/lab-dut-1", "Content-Type: application/json\r\n", wish.as_bytes());
        assert_eq!((answer.status, &bench.dut("lab-dut-1")["pdu_off_delay"]), (200, &Value::from(is)), "{delay}");
    }
    let wish = br#"{"pdu_off_delay": "soon"}"#;
    let answer = bench.ask("PATCH", "/api/v1/dut/lab-dut-1", "Content-Type: application/json\r\n", wish);
    assert!(answer.status == 400 && answer.text().contains("no number of seconds from 0 to 3600"), "{}", answer.text());
}

/// A plug with a meter and a machine that says what it should once it has power. Every reading is 0.01 Wh, 36 J, more than the one before.
fn serve_plug_and_console(plug: TcpListener, console: TcpListener) {
    let (on, readings) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for stream in console.incoming() {
                let mut stream = stream.unwrap();
                while !on.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                let _ = stream.write_all(b"all is good\nthe end\n");
                // Until it is closed from the other side.
                let _ = stream.read(&mut [0]);
            }
        });
        for stream in plug.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut line = String::new();
            let _ = reader.read_line(&mut line);
            let mut head = line.clone();
            while !matches!(head.as_str(), "\r\n" | "") {
                head.clear();
                let _ = reader.read_line(&mut head);
            }
            let answer = match line.split(' ').nth(1) {
                Some(path @ ("/on" | "/off")) => {
                    on.store(path == "/on", Ordering::SeqCst);
                    "done".to_owned()
                }
                Some("/state") => format!("it is {}", if on.load(Ordering::SeqCst) { "on" } else { "off" }),
                _ => {
                    let hours = f64::from(readings.fetch_add(1, Ordering::SeqCst)) / 100.0;
                    format!(r#"{{"watts": 12.5, "hours": {hours}}}"#)
                }
            };
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", answer.len());
            let _ = reader.get_mut().write_all(format!("{head}{answer}").as_bytes());
        }
    });
}

#[test]
fn what_the_outlet_measured_is_in_the_evidence_of_the_job() {
    let Some(rack) = Rack::new() else { return };
    let listen = || rack.lab.inside(|| TcpListener::bind("127.0.0.1:0")).unwrap();
    let (plug, console) = (listen(), listen());
    let (url, port) = (format!("http://{}", plug.local_addr().unwrap()), console.local_addr().unwrap().port());
    std::thread::spawn(move || serve_plug_and_console(plug, console));
    let farm = format!(
        "name: lab
network: {{interface: {{name: wharf0, address: 10.89.0.1/24}}}}
duts:
  - mac: 52:54:00:89:00:01
    address: 10.89.0.11
    off_time: 0 s
    machine:
      hardware:
        console: {{tcp: {{host: 127.0.0.1, port: {port}}}}}
        power:
          http:
            on: {{url: '{url}/on'}}
            off: {{url: '{url}/off'}}
            state: {{url: '{url}/state', 'on': it is on, 'off': it is off}}
            meter: {{url: '{url}/meter', watts: /watts, watt_hours: /hours}}
"
    );
    let surroundings = Surroundings { lab: Some(Arc::clone(&rack.lab)), ..Surroundings::default() };
    let bench = Bench::start_with(WHARF, &farm, surroundings);
    let unit = || bench.get("/api/v1/pdus").json()["pdus"]["lab-dut-1"]["ports"]["lab-dut-1"].clone();
    until(PATIENCE, || Some(()).filter(|()| unit()["instant_power"] == 12.5)).expect("it is polled");
    let job = "version: 1
target: {tags: []}
timeouts: {overall: {minutes: 4}}
console_patterns:
  session_end: {regex: '^the end$'}
  job_success: {regex: '^all is good$'}
deployment: {start: {}}
";
    let ended = bench.run(job);
    ended.expect("PASS", "test");
    let measured = ended.of_kind("energy_measured");
    assert!(measured[0]["joules"].as_f64().is_some_and(|joules| joules >= 35.9), "{ended}");
    let told = |line: &String| line.starts_with("Its outlet measured ");
    assert_eq!(ended.evidence.iter().filter(|line| told(line)).count(), 1, "{ended}");
}
