//! Power units that tell of themselves are found on the farm's own network, what is printed for them is a farm file's, and one word makes
//! one of them the farm's own.
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
import json, socket, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit
from zeroconf import ServiceInfo, Zeroconf

# The plug itself, there before it is announced: the documented answers of a second generation's relay.
class Plug(BaseHTTPRequestHandler):
    def do_GET(self):
        path = urlsplit(self.path)
        if path.path == "/rpc/Switch.Set":
            Plug.on = parse_qs(path.query)["on"] == ["true"]
        answers = {
            "/shelly": {"id": "shellyplusplugs-80646fd61f2c", "gen": 2, "auth_en": False},
            "/rpc/Shelly.GetStatus": {"switch:0": {"id": 0, "output": Plug.on, "apower": 0.0, "aenergy": {"total": 0.0}}},
            "/rpc/Switch.Set": {"was_on": False},
        }
        body = json.dumps(answers[path.path]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

Plug.on = False
plug = HTTPServer(("10.88.0.40", 80), Plug)
threading.Thread(target=plug.serve_forever, daemon=True).start()

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
fn plugs_on_the_farms_network_are_found_by_mdns_and_dhcp_and_one_word_makes_them_the_farms() {
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
    let wharf = |bench: &Bench, arguments: &[&str]| {
        let mut command = lab.command(WHARF).unwrap();
        let output = command.args(["--server", &bench.url()]).args(arguments).output().unwrap();
        let said = if output.status.success() { output.stdout } else { output.stderr };
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    let done = |bench: &Bench, arguments: &[&str]| {
        let (is_done, said) = wharf(bench, arguments);
        assert!(is_done, "{arguments:?}: {said}");
        said
    };
    let refused = |bench: &Bench, arguments: &[&str]| {
        let (is_done, said) = wharf(bench, arguments);
        assert!(!is_done, "{arguments:?}: {said}");
        said
    };
    let discover = || done(&bench, &["pdus", "--discover", "--listen", "2"]);
    let mut last = String::new();
    // A responder that is just starting asks first whether the name is free.
    let found = until(Duration::from_secs(60), || {
        last = discover();
        expected.lines().all(|line| last.contains(line)).then(|| last.clone())
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

    // One of them becomes the farm's own, and goes on being so.
    let adopt = |name| ["pdu", "adopt", "shellyplusplugs-80646fd61f2c", "--as", name];
    let said = refused(&bench, &adopt("strip"));
    assert!(said.contains("there is a PDU `strip` already; say another name with `--as`"), "{said}");
    let said = done(&bench, &adopt("desk"));
    let row: Vec<_> = said.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    // Whether its meter was read already does not matter.
    assert_eq!(row.get(..5), Some(&["desk", "shelly", "yes", "0", "off"][..]), "{said}");
    let said = refused(&bench, &adopt("other"));
    assert!(said.contains("is in the farm already, as `desk`"), "{said}");
    // It was off just now, and a plug of hardware stays so for half a minute.
    let soon = bench.ask("PATCH", "/api/v1/pdu/desk/port/0", "", br#"{"min_off_time": 0}"#);
    assert_eq!(soon.status, 200, "{soon:?}");
    assert_eq!(done(&bench, &["pdu", "on", "desk", "0"]), "outlet 0 of desk: on\n");
    let add = ["dut", "add", "52:54:00:88:00:09", "--address", "10.88.0.50", "--pdu", "desk", "--outlet", "0"];
    done(&bench, &add);
    let said = refused(&bench, &["pdu", "remove", "desk"]);
    assert!(said.contains("is on `desk`; `wharf dut remove "), "{said}");

    let bench = bench.killed_and_started_again(WHARF);
    done(&bench, &["dut", "remove", "52:54:00:88:00:09"]);
    assert_eq!(done(&bench, &["pdu", "off", "desk", "0"]), "outlet 0 of desk: off\n");
    assert!(
        bench.get("/api/v1/pdu/desk").json()["adopted"] == true
            && bench.get("/api/v1/pdu/strip").json()["adopted"] == false
    );
    let said = refused(&bench, &["pdu", "remove", "strip"]);
    assert!(said.contains("`strip` is in the farm file; remove it there, and `wharf reload`"), "{said}");
    assert_eq!(done(&bench, &["pdu", "remove", "desk"]), "desk is the farm's no longer\n");
    assert_eq!(bench.get("/api/v1/pdu/desk").status, 404);
}
