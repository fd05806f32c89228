//! Outlets for the programs of others: pdudaemon's `pduclient` and labgrid's power drivers, unmodified from PyPI, switch what a lease
//! holds, and nothing else.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use tests::bench::Bench;
use tests::packages::python;
use tests::rack::{Rack, power, take};

use crate::farms::WHARF;

const LABGRID: &str = "labgrid==26.0.1";
const PDUDAEMON: &str = "pdudaemon==1.1.1";

/// labgrid's drivers of one kind of port: on, off, cycle, and what is read in between.
const WITH_LABGRID: &str = "
import sys
from labgrid import Target
from labgrid.resource import NetworkPowerPort, PDUDaemonPort
from labgrid.driver import NetworkPowerDriver, PDUDaemonDriver
target = Target('dut')
if sys.argv[1] == 'pdudaemon':
    PDUDaemonPort(target, name=None, host='127.0.0.1', pdu=sys.argv[2], index=0)
    driver = PDUDaemonDriver(target, name=None, delay=0.0)
    read = lambda: None
else:
    NetworkPowerPort(target, name=None, model=sys.argv[1], host=sys.argv[2], index='0')
    driver = NetworkPowerDriver(target, name=None, delay=0.0)
    read = lambda: driver.get()
target.activate(driver)
driver.on()
print('on', read())
driver.off()
print('off', read())
driver.on()
driver.cycle()
print('cycled', read())
";

/// The script is in the source archive only.
fn pduclient() -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(PDUDAEMON.replace("==", "-"));
    let program = folder.join("pduclient");
    if !program.exists() {
        std::fs::create_dir_all(&folder).unwrap();
        let mut download = Command::new(python(&[LABGRID]).join("pip"));
        download.args(["download", "--quiet", "--no-deps", "--no-binary", "pdudaemon", "--dest"]).arg(&folder);
        must(download.arg(PDUDAEMON));
        let archive = folder.join(format!("{}.tar.gz", PDUDAEMON.replace("==", "-")));
        must(
            Command::new("tar")
                .arg("--extract")
                .arg("--file")
                .arg(archive)
                .arg("--strip-components=1")
                .current_dir(&folder),
        );
    }
    program
}

#[track_caller]
fn must(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn served(bench: &Bench, lease: &str, key: &str) -> String {
    bench.get(&format!("/api/v1/leases/{lease}/power/served")).json()[key].as_str().expect("it is there").to_owned()
}

#[test]
fn pduclient_and_labgrid_switch_what_a_lease_holds_and_nothing_else() {
    let (interpreter, pduclient) = (python(&[LABGRID]).join("python"), pduclient());
    let Some(rack) = Rack::new() else { return };
    let farm = "listen: {power: 127.0.0.1:16421}\n";
    let bench = rack.start(WHARF, &["4", "5"], "min_off_time: 0 s, call_pause: 0 s", farm);
    let leases = ["lab-dut-1", "lab-dut-2"].map(|dut| take(&bench, dut));
    let key = served(&bench, &leases[0], "key");
    let run = |arguments: &[&str]| {
        let mut command = rack.lab.command(interpreter.to_str().unwrap()).unwrap();
        command.args(arguments).output().unwrap()
    };

    for (model, host) in
        [("rest", served(&bench, &leases[0], "rest")), ("simplerest", served(&bench, &leases[0], "simplerest"))]
    {
        let output = run(&["-c", WITH_LABGRID, model, &host]);
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said, "on True\noff False\ncycled True\n", "{model}: {errors}");
    }
    let verbs = ["on", "off", "on", "off", "on"];
    assert_eq!(rack.verbs("4"), [&["off"], &verbs[..], &verbs[..]].concat());
    let output = run(&["-c", WITH_LABGRID, "pdudaemon", &key]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "on None\noff None\ncycled None\n", "{errors}");
    assert_eq!(rack.verbs("4").len(), 1 + 3 * verbs.len());

    let client = pduclient.to_str().unwrap();
    let ask = |key: &str, port: &str, command: &str| {
        let (daemon, delay) = ("127.0.0.1", if command == "reboot" { "1" } else { "0" });
        let words =
            ["-H", "--daemon", daemon, "--hostname", key, "--port", port, "--command", command, "--delay", delay];
        let output = run(&[&[client], &words[..]].concat());
        (output.status.code(), rack.state("4"))
    };
    assert_eq!(ask(&key, "0", "off"), (Some(0), "off".into()), "it is off when the client is answered");
    assert_eq!(ask(&key, "4", "on"), (Some(0), "on".into()));
    assert_eq!(ask(&key, "4", "reboot"), (Some(0), "on".into()));
    let calls = rack.calls("4");
    let [.., (off, _), (on, _)] = &calls[..] else { panic!("{calls:?}") };
    assert!(on - off >= 1.0, "as long as the client says: {calls:?}");
    assert_eq!(ask(&key, "5", "off"), (Some(127), "on".into()), "an outlet that the lease has not");
    assert_eq!(ask("rack", "4", "off"), (Some(127), "on".into()), "the name of a unit is no key");

    // Without `-H` it speaks pdudaemon's older TCP text.
    let text = |key: &str, port: &str, command: &str| {
        let words = ["--daemon", "127.0.0.1", "--hostname", key, "--port", port, "--command", command];
        let output = run(&[&[client], &words[..]].concat());
        (output.status.code(), String::from_utf8_lossy(&output.stdout).trim().to_owned(), rack.state("4"))
    };
    let sent = "Command sent successfully.".to_owned();
    assert_eq!(text(&key, "0", "off"), (Some(0), sent.clone(), "off".into()), "it is off when the client is answered");
    assert_eq!(text(&key, "4", "on"), (Some(0), sent, "on".into()));
    let why = format!("nack: lease {} holds outlet `4`, not `5`; 0 means the same", leases[0]);
    let refused = format!("Error sending command! 127.0.0.1 replied: {why}");
    assert_eq!(text(&key, "5", "off"), (Some(127), refused, "on".into()));
    let (status, said, state) = text("rack", "4", "off");
    assert_eq!((status, state.as_str()), (Some(127), "on"), "the name of a unit is no key: {said}");

    let audit = std::fs::read_to_string(bench.state().join("audit.log")).unwrap();
    for (what, status) in [("outlet 0 off", 200), ("outlet 4 on", 200), ("outlet 4 off", 404)] {
        let words = [format!("\"what\":\"{what}\""), format!("\"status\":{status}")];
        let is_there = audit.lines().any(|line| words.iter().all(|word| line.contains(word)));
        assert!(is_there, "no line of `{what}`, {status}:\n{audit}");
    }
    assert!(!audit.contains(&key), "the audit log has a key:\n{audit}");

    let get = |path: &str| bench.get(path);
    assert_eq!(get(&format!("/power/control/off?alias={key}")).text(), "OK - accepted request\n");
    let wrong = get(&format!("/power/control/off?hostname={key}&port=5"));
    assert_eq!(
        (wrong.status, wrong.text().as_str()),
        (400, "lease of-lab-dut-1 holds outlet `4`, not `5`; 0 means the same\n")
    );
    assert_eq!(get(&format!("/power/control/jump?alias={key}")).status, 400);
    assert_eq!(get(&format!("/power/{key}/2")).text(), "`2` is neither 0 nor 1\n");
    rack.make("fail-4");
    let failed = get(&format!("/power/{key}/1"));
    assert!(failed.status == 500 && failed.text().contains("the relay board is not there"), "{failed:?}");
    assert_eq!(rack.verbs("5"), ["off"], "nobody else's was touched");

    assert_eq!(power(&bench, &leases[1], "on").status, 200);
    assert_eq!(bench.ask("DELETE", &format!("/api/v1/leases/{}", leases[0]), "", b"").status, 200);
    let over = get(&format!("/power/{key}"));
    assert_eq!(
        (over.status, over.text().as_str()),
        (404, "no lease has this key; `wharf power LEASE urls` shows that of yours\n")
    );
}
