//! A machine is switched through the unit that the farm file names: a lease turns it on, its end turns it off, and the unit itself says so.
//!
//! ```text
//!  a network namespace: the server ── SNMP v3 ──► snmpd with an APC-like unit (fixtures/blueprints/power/apc-like-unit.py)
//!                          └── CI-tron's words ─► a virtual unit of this file's
//! ```
//! What each driver says of refusals, meters and labels is tried beside the drivers.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tests::bench::{Bench, Surroundings, need_programs, until};
use tests::lab::{Lab, Running};

use crate::farms::WHARF;

const LINK: &str = "wharf0";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// CI-tron's virtual unit with four outlets, as its protocol is described; what it does is in the file `outlets`.
const VIRTUAL_UNIT: &str = "import os, socket
outlets = [4] * 4
server = socket.create_server(('127.0.0.1', 9191))
while True:
    stream, _ = server.accept()
    with stream:
        word = int.from_bytes(stream.recv(4, socket.MSG_WAITALL), 'big')
        command, outlet = word & 3, word >> 2 & 0x7ff
        if command == 0:
            answer = len(outlets)
        elif command == 3:
            answer = outlets[outlet]
        else:
            outlets[outlet] = 3 if command == 1 else 4
            answer = 1
        # Whoever reads it meanwhile reads what was before.
        with open('written', 'w') as file:
            file.write(' '.join('on' if it == 3 else 'off' for it in outlets))
        os.replace('written', 'outlets')
        stream.sendall(bytes([answer]))
";

struct Units {
    folder: tempfile::TempDir,
    _running: [Running; 2],
}

impl Units {
    fn start(lab: &Lab) -> Units {
        need_programs(&[("snmpd", "snmpd"), ("python3", "python3")]);
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let unit = write("unit.py", include_str!("../../../fixtures/blueprints/power/apc-like-unit.py"));
        let configuration = format!(
            "agentaddress udp:127.0.0.1:161\ncreateUser wharf SHA \"maple sugar\" AES \"lemon curd\"\nrwuser wharf priv\n\
             pass_persist .1.3.6.1.4.1.318 /usr/bin/env python3 {unit}\n"
        );
        let configuration = write("snmpd.conf", &configuration);
        let mut snmpd = lab.command("snmpd").unwrap();
        snmpd.args(["-f", "-Lo", "-C", "-c", &configuration]).current_dir(folder.path());
        snmpd.env("SNMP_PERSISTENT_DIR", folder.path().join("persistent")).env("MIBS", "");
        let log = folder.path().join("snmpd.log");
        let snmpd = Running::spawn("snmpd", snmpd, &log).unwrap();
        let serves = || fs::read_to_string(&log).ok().filter(|said| said.contains("NET-SNMP version"));
        until(PATIENCE, serves).expect("snmpd serves");
        let mut python = lab.command("python3").unwrap();
        python.arg(write("virtual.py", VIRTUAL_UNIT)).current_dir(folder.path());
        let mut python = Running::spawn("python3", python, &folder.path().join("virtual.log")).unwrap();
        lab.wait_for_tcp(SocketAddr::from(([127, 0, 0, 1], 9191)), &mut python).unwrap();
        Units { folder, _running: [snmpd, python] }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(Path::new(self.folder.path()).join(name)).unwrap_or_default()
    }

    /// What the APC-like unit was told last: `OUTLET=NUMBER`.
    fn told_last(&self) -> String {
        self.read("calls").lines().last().unwrap_or_default().to_owned()
    }
}

fn farm(consoles: &[SocketAddr]) -> String {
    let machine = |number: usize, power: &str| {
        format!(
            "  - {{mac: '52:54:00:88:00:0{number}', address: 10.88.0.1{number}, machine: {{hardware: {{power: {power}, \
             console: {{tcp: {{host: 127.0.0.1, port: {}}}}}}}}}}}\n",
            consoles[number - 1].port()
        )
    };
    format!(
        "name: bench
network: {{interface: {{name: {LINK}, address: {GATEWAY}/24}}}}
pdus:
  - name: rack
    min_off_time: 0.1 s
    snmp: {{host: 127.0.0.1, preset: apc_masterswitch, version: 3, security_username: wharf, auth_protocol: SHA,
            auth_password: maple sugar, privacy_protocol: AES, privacy_password: lemon curd}}
  - {{name: virtual, vpdu: {{host: '127.0.0.1:9191'}}}}
duts:
{}{}",
        machine(1, "{pdu: rack, outlet: '1'}"),
        machine(2, "{pdu: virtual, outlet: '2'}"),
    )
}

#[track_caller]
fn done(bench: &Bench, method: &str, path: &str, body: &Value) -> Value {
    let answer = bench.ask(method, path, "Content-Type: application/json\r\n", body.to_string().as_bytes());
    assert!(matches!(answer.status, 200 | 201), "{method} {path}: {answer:?}; {}", bench.errors());
    answer.json()
}

#[test]
fn a_lease_switches_its_machine_at_the_unit_and_its_end_switches_it_off() {
    let lab = match Lab::new() {
        Ok(lab) => Arc::new(lab),
        Err(error) => return eprintln!("SKIPPED: {error}"),
    };
    lab.bridge(LINK, GATEWAY).unwrap();
    let units = Units::start(&lab);
    // Nobody talks on them; that they are there is enough.
    let consoles = [(); 2].map(|()| lab.inside(|| TcpListener::bind("127.0.0.1:0")).unwrap());
    let addresses = consoles.each_ref().map(|console| console.local_addr().unwrap());
    let surroundings = Surroundings { lab: Some(Arc::clone(&lab)), ..Surroundings::default() };
    let bench = Bench::start_with(WHARF, &farm(&addresses), surroundings);
    let (snmp, vpdu) = ("bench-dut-1", "bench-dut-2");
    for dut in [snmp, vpdu] {
        bench.wait_until_free(dut, PATIENCE).unwrap_or_else(|dut| panic!("{dut:#}; {}", bench.errors()));
        let wish = json!({"id": dut, "dut": dut, "owner": "term", "for": "10m", "name": "anna", "subject": "anna"});
        done(&bench, "POST", "/api/v1/leases", &wish);
        let power = format!("/api/v1/leases/{dut}/power");
        until(PATIENCE, || (bench.get(&format!("/api/v1/leases/{dut}")).json()["state"] == "active").then_some(()))
            .expect("nobody else wants it");
        assert_eq!(done(&bench, "POST", &power, &json!({"state": "on"}))["state"], "on");
        assert_eq!(bench.get(&power).json()["state"], "on");
    }
    assert_eq!(units.told_last(), "3.1=1");
    assert_eq!(units.read("outlets"), "off off on off");
    for dut in [snmp, vpdu] {
        done(&bench, "DELETE", &format!("/api/v1/leases/{dut}?by=anna"), &json!({}));
        bench.wait_until_free(dut, PATIENCE).unwrap_or_else(|dut| panic!("{dut:#}; {}", bench.errors()));
    }
    assert_eq!(units.told_last(), "3.1=2");
    assert_eq!(units.read("outlets"), "off off off off");
}
