//! A machine that nobody declared is powered, boots what registers it, says what it is, and runs jobs: with one command typed.
//!
//! | machine | its outlet | its console |
//! |---|---|---|
//! | QEMU, the farm's own | a spare | known with it |
//! | QEMU, somebody else's | of a unit in `pdus`, by commands | one of three in `consoles`: found by its ping |
//! | simulated | spares | says what honest machines do not, or nothing |

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::bench::{Bench, Surroundings, need_virtual_machines, until};
use tests::board::{Board, Rom};

use crate::farms::{QEMU, WHARF, expect_in, linux_job};
use crate::picked_up::{GATEWAY, LINK, Place};

/// Longer than a machine takes to be in service on a loaded host.
const SOON: Duration = Duration::from_secs(300);

fn discover(bench: &Bench, arguments: &[&str]) -> Output {
    Command::new(WHARF).args(["dut", "discover", "--server", &bench.url()]).args(arguments).output().unwrap()
}

/// What it printed, when it found a machine.
#[track_caller]
fn found(bench: &Bench, arguments: &[&str]) -> String {
    let output = discover(bench, arguments);
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}{errors}\n{}", bench.errors());
    said
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn wait_until_idle(bench: &Bench, name: &str) -> Value {
    let dut = || bench.duts().into_iter().find(|dut| dut["full_name"] == name);
    let idle = until(SOON, || dut().filter(|dut| dut["state"] == "IDLE"));
    idle.unwrap_or_else(|| panic!("{name} is not idle: {:#?}\n{}", dut(), bench.errors()))
}

/// The farm, whose machines train for so many boots before they take jobs.
fn trained(farm: &str, boots: u32) -> String {
    format!("{farm}training: {{boots: {boots}}}\n")
}

/// What was said on a console.
fn console_of(bench: &Bench, name: &str) -> String {
    let folder = fs::read_dir(bench.state().join("consoles").join(name)).unwrap();
    let mut files: Vec<_> = folder.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    files.sort();
    files.iter().map(|path| text(&fs::read(path).unwrap())).collect()
}

/// A farm of spares that does nothing else: the scripts of those that are simulated, by name.
fn spares(scripts: &[(&str, &str)]) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut farm = "name: lab\nnetwork: {private: {address: 10.81.0.1/24}}\ndhcp: {range: [10.81.0.100, 10.81.0.199]}\n\
                    duts:\n- {id: left, mac: 52:54:00:81:00:ff, address: 10.81.0.11, machine: {simulated: {}}}\nspares:\n"
        .to_owned();
    for (number, (name, script)) in scripts.iter().enumerate() {
        let path = folder.path().join(format!("{name}.yml"));
        fs::write(&path, script).unwrap();
        let console = if script.is_empty() { String::new() } else { format!("console: '{}'", path.display()) };
        farm +=
            &format!("- {{name: {name}, mac: '52:54:00:81:00:{number:02x}', machine: {{simulated: {{{console}}}}}}}\n");
    }
    let farm = trained(&farm, 0);
    (folder, farm)
}

#[test]
fn a_qemu_machine_that_nobody_declared_is_powered_boots_registers_trains_and_runs_a_job_with_one_command() {
    need_virtual_machines(WHARF);
    let _passage = QEMU.pass();
    let bench = Bench::start(WHARF, include_str!("../../../fixtures/farms/spares.yml"));
    assert_eq!(bench.duts(), Vec::<Value>::new());
    let said = found(&bench, &["--pdu", "spares", "--outlet", "spare-1"]);
    expect_in(
        &said,
        &[
            "outlet spare-1 of spares is on\n",
            "52:54:00:80:00:01 asks for something to boot: iPXE, x86 BIOS, address 10.80.0.100, ",
            "52:54:00:80:00:01 registered as spares-standard-pc-q35-ich9-2009-1: arch:x86_64 ",
            "firmware:bios ",
            "pci:0x1af4:0x1000 ",
            "console spare-1\n",
            "outlet spare-1 of spares is off\n",
            "spares-standard-pc-q35-ich9-2009-1 (52:54:00:80:00:01) is in the farm",
        ],
    );
    let dut = wait_until_idle(&bench, "spares-standard-pc-q35-ich9-2009-1");
    assert_eq!(dut["pdu"], json!({"name": "spares", "port_id": "spare-1"}));
    assert_eq!(dut["local_tty_device"], "ttyS0", "its ping was answered");
    assert!(dut["firmware_boot_time"].as_f64().unwrap() > 0.0);
    assert_eq!(dut["facts"]["uuid"], "00000000-0000-4000-8000-525400800001");
    let hello = include_str!("../../../fixtures/jobs/good/hello.yml");
    let ended = bench.run(hello);
    ended.expect("PASS", "test");
    assert_eq!(ended.dut().as_deref(), Some("spares-standard-pc-q35-ich9-2009-1"));
}

#[test]
fn a_board_on_a_free_outlet_is_found_with_its_serial_line_among_others() {
    find_a_board(Rom::Ipxe, &["-m", "160"], "");
}

/// With `WHARF_LINUX_IMAGE`, the folder of an unpacked `linux-image-…` package of Debian: the real kernel, whose network drivers are modules.
#[test]
fn a_board_whose_network_card_needs_a_module_is_found_with_a_distributions_kernel() {
    let Ok(image) = std::env::var("WHARF_LINUX_IMAGE") else { return };
    let only = |folder: String| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let is_kernel = |path: &std::path::PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("vmlinuz");
    let kernel = only(format!("{image}/boot")).into_iter().find(is_kernel).unwrap();
    let modules = only(format!("{image}/lib/modules")).remove(0);
    let keys = format!("discovery: {{kernel: '{}', modules: '{}'}}\n", kernel.display(), modules.display());
    find_a_board(Rom::IpxeOfE1000e, &["-m", "512"], &keys);
}

fn find_a_board(rom: Rom, machine: &[&str], discovery: &str) {
    need_virtual_machines(WHARF);
    let _passage = QEMU.pass();
    let Some(place) = Place::new() else { return };
    let board = Board::new(&place.lab, LINK, "52:54:00:88:00:09", rom, "qemu-system-x86_64", machine);
    let farm = format!(
        "name: bench
network: {{interface: {{name: {LINK}, address: {GATEWAY}/24}}}}
dhcp: {{range: [10.88.0.100, 10.88.0.120]}}
pdus: [{{name: rack, {}}}]
consoles:
  - {{name: line-1, tcp: {{host: 127.0.0.1, port: 1}}}}
  - {{name: line-2, tcp: {{host: 127.0.0.1, port: {}}}}}
duts: []
{discovery}",
        board.unit(),
        board.console_port(),
    );
    let bench =
        Bench::start_with(WHARF, &farm, Surroundings { lab: Some(place.lab.clone()), ..Surroundings::default() });
    // The command runs where the server is: nobody else reaches it there.
    let mut command = place.lab.command(WHARF).unwrap();
    command.args(["dut", "discover", "--pdu", "rack", "--outlet", "7", "--server", &bench.url()]);
    let output = command.output().unwrap();
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}\n{}", text(&output.stderr), bench.errors());
    expect_in(&said, &["outlet 7 of rack is on", "52:54:00:88:00:09 registered as bench-", "console line-2\n"]);
    let dut = bench.get("/api/v1/dut/52:54:00:88:00:09").json();
    assert_eq!(dut["pdu"], json!({"name": "rack", "port_id": "7"}));
    assert_eq!((&dut["console"], &dut["local_tty_device"]), (&json!("line-2"), &json!("ttyS0")));
    let outlets = bench.get("/api/v1/dut/discover/outlets").json();
    assert_eq!(outlets["outlets"][0]["dut"], dut["full_name"], "{outlets}");
}

#[test]
fn a_registered_machine_outlives_a_kill_and_leaves_when_it_is_removed() {
    let (_folder, farm) = spares(&[("sim", "")]);
    let bench = Bench::start(WHARF, &farm);
    let said = found(&bench, &["--pdu", "spares", "--outlet", "sim"]);
    expect_in(&said, &["registered as lab-simulated-1: arch:x86_64 simulated, console sim", "is in the farm"]);
    let bench = bench.killed_and_started_again(WHARF);
    wait_until_idle(&bench, "lab-simulated-1");
    bench.run(&linux_job("simulated", "", "overall: {minutes: 2}", "")).expect("PASS", "test");
    let again = discover(&bench, &["--pdu", "spares", "--outlet", "sim"]);
    assert_eq!(text(&again.stderr).lines().count(), 1);
    assert!(text(&again.stderr).contains("outlet `sim` of `spares` is lab-simulated-1's; outlets without a DUT: none"));
    let answer = bench.ask("DELETE", "/api/v1/dut/left", "", b"");
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("lab-dut-1 is in the farm file; remove it there, and `wharf reload`"), "{answer:?}");
    let answer = bench.ask("DELETE", "/api/v1/dut/lab-simulated-1", "", b"");
    assert_eq!((answer.status, answer.text().as_str()), (200, "52:54:00:81:00:00 is removed\n"));
    until(SOON, || (bench.duts().len() == 1).then_some(())).unwrap_or_else(|| panic!("{:#?}", bench.duts()));
}

/// Asks for things that are not its own, then registers.
const CURIOUS: &str = r#"
- say: "SALAD.ping"
- expect: {regex: '^SALAD\.pong', within: 10s}
- post: {to: "http://10.81.0.1/api/v1/machine/", json: '{"mac_address": "52:54:00:81:00:ff"}'}
- post: {to: "http://10.81.0.1/api/v1/dut/", json: '{"tags": ["farm:other"]}'}
- post: {to: "http://10.81.0.1/api/v1/dut/left", json: '{}'}
- post: {to: "http://10.81.0.1/api/v1/machine/", json: 'no JSON'}
- post: {to: "http://10.81.0.1/api/v1/jobs", json: '{}'}
- post: {to: "http://10.81.0.1/api/v1/dut/discover", json: '{}'}
- fetch: "http://10.81.0.1/api/v1/duts"
- fetch: "http://10.81.0.1/api/v1/dut/52:54:00:81:00:ff"
- post: {to: "http://10.81.0.1/api/v1/machine/", json: '{"base_name": "Curious One", "mac_address": "{{ mac }}"}'}
- fetch: "http://10.81.0.1/api/v1/machine/{{ mac }}/"
- post: {to: "http://10.81.0.1/api/v1/machine/", json: '{"tags": ["second"]}'}
- say: "wharf: job done"
- kernel: "reboot: Power Down"
"#;

#[test]
fn a_machine_registers_only_itself_and_nothing_else_of_the_api_answers_it() {
    let (_folder, farm) = spares(&[("curious", CURIOUS)]);
    let bench = Bench::start(WHARF, &farm);
    let said = found(&bench, &["--pdu", "spares", "--outlet", "curious"]);
    expect_in(
        &said,
        &[
            "52:54:00:81:00:00 is refused: `mac_address` is `52:54:00:81:00:ff`, but this is 52:54:00:81:00:00 at 10.81.0.100: \
             a machine registers only itself",
            "is refused: `farm:other` is no tag for a machine to give itself",
            "is refused: post to /api/v1/machine/, or get /api/v1/machine/<your MAC>",
            "is refused: not a registration: expected ident at line 1 column 2",
            "is refused: a machine sees and changes only its own record; this is 52:54:00:81:00:00",
            "52:54:00:81:00:00 registered as lab-curious-one-1: ",
        ],
    );
    wait_until_idle(&bench, "lab-curious-one-1");
    // It does all of it again in a job, as a machine that is known.
    bench.run(
        &linux_job("farm:lab", "", "overall: {minutes: 2}", "")
            .replace("{tags: [farm:lab]}", "{id: '52:54:00:81:00:00'}"),
    );
    let dut = wait_until_idle(&bench, "lab-curious-one-1");
    assert_eq!(dut["tags"], json!(["second", "farm:lab"]), "it says what it is now");
    let heard = console_of(&bench, "curious");
    for expected in [
        "wharf: posted to http://10.81.0.1/api/v1/machine/: 403 {\"error\":\"`mac_address` is",
        "wharf: posted to http://10.81.0.1/api/v1/jobs: 4",
        "wharf: posted to http://10.81.0.1/api/v1/dut/discover: 404",
        "wharf: failed http://10.81.0.1/api/v1/duts",
        "wharf: failed http://10.81.0.1/api/v1/dut/52:54:00:81:00:ff",
        "wharf: posted to http://10.81.0.1/api/v1/machine/: 200 {\"id\":\"52:54:00:81:00:00\"",
        "wharf: fetched http://10.81.0.1/api/v1/machine/52:54:00:81:00:00/",
    ] {
        assert!(heard.contains(expected), "no {expected:?} in:\n{heard}");
    }
}

#[test]
fn what_no_discovery_can_do_is_told_with_the_next_step_and_the_outlet_is_off_again() {
    let (_folder, farm) = spares(&[("mute", "- hang\n"), ("slow", "- hang\n")]);
    let farm = farm.replacen("simulated: {console", "simulated: {misbehave: [{what: no-dhcp}], console", 1);
    let bench = Bench::start(WHARF, &farm);
    for (arguments, told) in [
        (&["--pdu", "rack", "--outlet", "1"][..], "no PDU `rack`; PDUs: spares"),
        (&["--pdu", "spares", "--outlet", "1"], "no outlet `1` on `spares`; outlets: mute, slow"),
        (&["--pdu", "spares"], "--outlet <OUTLET>"),
        (&["--timeout", "soon"], "`soon` is no time; write `150s` or `3m`"),
        (&["--cancel"], "no discovery runs"),
    ] {
        let output = discover(&bench, arguments);
        assert!(!output.status.success());
        assert!(text(&output.stderr).contains(told), "{arguments:?}: {}", text(&output.stderr));
    }
    let output = discover(&bench, &["--pdu", "spares", "--outlet", "mute", "--timeout", "1s"]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    expect_in(
        &said,
        &[
            "outlet mute of spares is on\n",
            "outlet mute of spares is off\n",
            "no machine that the farm does not know asked for something to boot within 1s\n",
        ],
    );
    let begun =
        bench.post("/api/v1/dut/discover", "application/json", br#"{"pdu": "spares", "port_id": "slow"}"#).json();
    assert_eq!((&begun["pdu"], &begun["port_id"], &begun["timeout"]), (&json!("spares"), &json!("slow"), &json!(150)));
    let second = discover(&bench, &[]);
    assert!(text(&second.stderr).contains("the discovery of outlet slow of spares runs already"), "{second:?}");
    until(SOON, || {
        let state = bench.get("/api/v1/full-state").json();
        (state["discover"]["machine"] == "52:54:00:81:00:01").then_some(())
    })
    .expect("it is seen");
    let cancelled = bench.ask("DELETE", "/api/v1/dut/discover", "", b"");
    assert_eq!(cancelled.text(), "the discovery of outlet slow of spares is cancelled\n");
    let over = || (bench.get("/api/v1/dut/discover").json() == json!({})).then_some(());
    until(SOON, over).expect("it ends");
    let news = bench.get(&format!("/api/v1/dut/discover/{}", begun["id"])).json();
    assert!(news["lines"].as_array().unwrap().contains(&json!("outlet slow of spares is off")), "{news:#}");
    assert!(news["outcome"]["cancelled"]["by"].is_string(), "{news:#}");
    assert_eq!(bench.duts().len(), 1, "nothing is kept");
}

#[test]
fn a_machine_that_boots_and_never_registers_is_told_with_what_it_read_and_an_interrupted_discovery_keeps_nothing() {
    let (_folder, farm) = spares(&[("hangs", "- hang\n")]);
    let bench = Bench::start(WHARF, &format!("{farm}discovery: {{register_time: 3 s}}\n"));
    for (number, signal) in [(1, Signal::SIGINT), (2, Signal::SIGTERM)] {
        let mut command = Command::new(WHARF);
        command.args(["dut", "discover", "--server", &bench.url(), "--pdu", "spares", "--outlet", "hangs"]);
        let mut interrupted = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(interrupted.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "outlet hangs of spares is on\n");
        kill(Pid::from_raw(i32::try_from(interrupted.id()).unwrap()), signal).unwrap();
        let output = interrupted.wait_with_output().unwrap();
        assert!(text(&output.stderr).contains("cancelled by you"), "{signal}: {output:?}");
        let over = || (bench.get("/api/v1/dut/discover").json() == json!({})).then_some(());
        until(SOON, over).expect("it ends");
        let news = bench.get(&format!("/api/v1/dut/discover/{number}")).json();
        assert!(news["lines"].as_array().unwrap().contains(&json!("outlet hangs of spares is off")), "{news:#}");
    }
    assert_eq!(bench.duts().len(), 1, "nothing is kept");
    let said = found(&bench, &["--pdu", "spares", "--outlet", "hangs"]);
    expect_in(
        &said,
        &[
            "52:54:00:81:00:00 asks for something to boot: iPXE, ",
            "52:54:00:81:00:00 did not register within 3s: it read ",
            "outlet hangs of spares is off\n",
            "lab-dut-2 (52:54:00:81:00:00) is in the farm",
        ],
    );
    assert_eq!(bench.dut("lab-dut-2")["mac_address"], "52:54:00:81:00:00");
}

#[test]
fn the_outlet_of_a_discovery_is_off_again_after_the_server_was_killed_in_it_and_nothing_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let outlet = folder.path().join("outlet-7");
    fs::write(&outlet, "off").unwrap();
    let there = folder.path().display();
    let told = |what: &str| format!("[sh, -c, \"echo {what} > {there}/outlet-$0\", '{{outlet}}']");
    let farm = format!(
        "name: lab\nnetwork: {{private: {{address: 10.81.2.1/24}}}}\ndhcp: {{range: [10.81.2.100, 10.81.2.199]}}\n\
         pdus:\n- {{name: rack, min_off_time: 0 s, exec: {{on: {}, off: {}, state: [cat, '{there}/outlet-{{outlet}}']}}}}\nduts: []\n",
        told("on"),
        told("off")
    );
    let reads = |wanted: &str| {
        let is = || fs::read_to_string(&outlet).is_ok_and(|now| now.trim() == wanted).then_some(());
        until(SOON, is).unwrap_or_else(|| panic!("the outlet is not {wanted}: {:?}", fs::read_to_string(&outlet)));
    };
    let bench = Bench::start(WHARF, &farm);
    bench.post("/api/v1/dut/discover", "application/json", br#"{"pdu": "rack", "port_id": "7"}"#).json();
    reads("on");
    let bench = bench.killed_and_started_again(WHARF);
    reads("off");
    assert_eq!(bench.get("/api/v1/dut/discover").json(), json!({}));
    assert_eq!(bench.duts(), Vec::<Value>::new());
    until(SOON, || (!bench.state().join("discovery.json").exists()).then_some(())).expect("it is done with it");
}

#[test]
fn what_is_not_known_of_a_machine_is_waited_for_and_the_farm_file_wins() {
    let (_folder, farm) = spares(&[("sim", "")]);
    let bench = Bench::start(WHARF, &farm);
    let add = |json: Value| bench.post("/api/v1/dut/", "application/json", json.to_string().as_bytes());
    let answer = add(json!({"mac_address": "52:54:00:81:00:00"}));
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("52:54:00:81:00:00 has no address here yet"), "{answer:?}");
    let answer = add(json!({"mac_address": "52:54:00:81:00:ff", "ip_address": "10.81.0.50"}));
    assert!(answer.text().contains("is lab-dut-1; change it in the farm file"), "{answer:?}");
    let dut = add(json!({"mac_address": "52:54:00:81:00:00", "ip_address": "10.81.0.50", "base_name": "nuc"})).json();
    assert_eq!((&dut["state"], &dut["full_name"]), (&json!("WAIT_FOR_CONFIG"), &json!("lab-nuc-1")));
    assert!(
        dut["comment"].as_str().unwrap().starts_with(
            "its outlet is not known; say it with `wharf dut add 52:54:00:81:00:00 --pdu PDU --outlet OUTLET`"
        ),
        "{dut}"
    );
    let add_by_hand = |arguments: &[&str]| {
        let mut command = Command::new(WHARF);
        command.args(["dut", "add", "52:54:00:81:00:00", "--server", &bench.url()]).args(arguments);
        command.output().unwrap()
    };
    let wrong = add_by_hand(&["--pdu", "rack", "--outlet", "7"]);
    assert!(text(&wrong.stderr).contains("the farm has no PDU `rack`; PDUs: none"), "{wrong:?}");
    let right = add_by_hand(&["--pdu", "spares", "--outlet", "sim", "--console", "sim", "--tag", "by-hand"]);
    assert!(right.status.success(), "{right:?}");
    let dut = wait_until_idle(&bench, "lab-nuc-1");
    assert_eq!((&dut["tags"], &dut["manual_tags"]), (&json!(["by-hand", "farm:lab"]), &json!(["by-hand"])));
    bench.run(&linux_job("by-hand", "", "overall: {minutes: 2}", "")).expect("PASS", "test");
    // Somebody writes a machine with its address into the farm file.
    bench.write_farm(&farm.replace("10.81.0.11", "10.81.0.50"));
    let reloaded = Command::new(WHARF).args(["reload", "--server", &bench.url()]).output().unwrap();
    assert!(reloaded.status.success(), "{reloaded:?}");
    let waits = || bench.duts().into_iter().find(|dut| dut["state"] == "WAIT_FOR_CONFIG");
    let dut = until(SOON, waits).unwrap_or_else(|| panic!("{:#?}", bench.duts()));
    let why = "its address 10.81.0.50 is lab-dut-1's; change one of the two, or `wharf dut remove lab-nuc-1`";
    assert_eq!(dut["comment"], why);
}
