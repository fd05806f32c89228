//! Power units that tell of themselves are found on the farm's own network, and what is printed for them is a farm file's.
//!
//! ```text
//!  a network namespace: the server ─ bridge ─ cable ─ a namespace beside it: zeroconf's responder (mDNS), busybox's udhcpc (DHCP)
//! ```

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tests::bench::{Bench, Surroundings, need_programs, until};
use tests::lab::{Lab, Running};
use tests::packages::python;

use crate::farms::WHARF;

const LINK: &str = "wharf0";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
const PLUG: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 40);

const FARM: &str = "name: desk
network: {interface: {name: wharf0, address: 10.88.0.1/24}}
dhcp: {range: [10.88.0.100, 10.88.0.120]}
";

/// Two plugs, one of which the farm has already, and a printer.
const RESPONDER: &str = r#"
import socket, sys, threading
from zeroconf import ServiceInfo, Zeroconf

responder = Zeroconf(interfaces=["10.88.0.40"])
def announce(name, kind, address, texts):
    kind += ".local."
    addresses = [socket.inet_aton(address)]
    responder.register_service(ServiceInfo(kind, f"{name}.{kind}", port=80, addresses=addresses, properties=texts, server=f"{name}.local."))

announce("shellyplusplugs-80646fd61f2c", "_shelly._tcp", "10.88.0.40", {"gen": "2"})
announce("shellyplusplugs-80646fd61f2c", "_http._tcp", "10.88.0.40", {"gen": "2"})
announce("shelly1-5ECF7F1632E8", "_http._tcp", "10.88.0.41", {"id": "shelly1-5ECF7F1632E8"})
announce("printer", "_http._tcp", "10.88.0.42", {})
threading.Event().wait()
"#;

#[test]
fn plugs_on_the_farms_network_are_found_by_mdns_and_dhcp_and_their_entries_are_a_farm_files() {
    need_programs(&[("busybox", "busybox-static")]);
    let lab = match Lab::new() {
        Ok(lab) => Arc::new(lab),
        Err(error) => return eprintln!("SKIPPED: {error}"),
    };
    lab.bridge(LINK, GATEWAY).unwrap();
    let (beside, folder) = (Lab::new().unwrap(), tempfile::tempdir().unwrap());
    lab.plug(LINK, &beside, PLUG).unwrap();
    let farm = format!("{FARM}pdus:\n- {{name: strip, shelly: {{host: 10.88.0.41}}}}\nduts: []\n");
    let surroundings = Surroundings { lab: Some(Arc::clone(&lab)), ..Surroundings::default() };
    let bench = Bench::start_with(WHARF, &farm, surroundings);
    let mut responder = beside.command(python(&["zeroconf==0.154.0"]).join("python").to_str().unwrap()).unwrap();
    responder.args(["-c", RESPONDER]);
    let _responder = Running::spawn("zeroconf", responder, &folder.path().join("zeroconf.log")).unwrap();
    let mut client = beside.command("busybox").unwrap();
    client.args([
        "udhcpc",
        "-f",
        "-q",
        "-n",
        "-t",
        "20",
        "-i",
        "cable0",
        "-s",
        "/bin/true",
        "-x",
        "hostname:tasmota-1A2B3C-2876",
    ]);
    let output = client.output().unwrap();
    assert!(output.status.success(), "udhcpc: {}", String::from_utf8_lossy(&output.stderr));

    let expected = "# a Shelly (mDNS: _http._tcp) is `strip` already\n\
                    # a Shelly (mDNS: _shelly._tcp)\n- name: shellyplusplugs-80646fd61f2c\n  shelly: {host: 10.88.0.40}\n";
    let discover = || {
        let mut command = lab.command(WHARF).unwrap();
        let output = command.args(["--server", &bench.url(), "pdus", "--discover", "--listen", "2"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let mut last = String::new();
    // A responder that is just starting asks first whether the name is free.
    let found = until(Duration::from_secs(60), || {
        last = discover();
        (last.contains("10.88.0.40") && last.contains("`strip`")).then(|| last.clone())
    });
    let found = found.unwrap_or_else(|| panic!("not all were found: {last}"));
    assert!(!found.contains("printer"), "{found}");
    let tasmota = found.split_once("- name: tasmota-1a2b3c-2876\n  tasmota: {host: 10.88.0.1").expect(&found);
    let mut told: Vec<&str> = expected.lines().filter(|line| !found.contains(line)).collect();
    told.retain(|line| !line.is_empty());
    assert!(told.is_empty() && tasmota.0.contains("# a unit that runs Tasmota (DHCP: "), "{found}");

    let whole = folder.path().join("farm.yml");
    std::fs::write(&whole, format!("{FARM}pdus:\n{found}duts: []\n")).unwrap();
    let output = Command::new(WHARF).arg("check").arg(&whole).output().unwrap();
    assert!(output.status.success(), "{found}\n{}", String::from_utf8_lossy(&output.stderr));
}
