//! A machine that is not the server's own goes on without it, and so does its job; no outlet is switched that somebody holds, and none
//! stays on that nobody holds.
//!
//! ```text
//!  a network namespace: the server ── exec ──► outlet (a script that writes down its calls)
//!                          │  └────── TCP ───► console (this test; or a QEMU machine that the test started)
//!                          └ killed with -9, started again
//! ```

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tests::bench::{Bench, Ended, Surroundings, need_virtual_machines, until};
use tests::board::spawn_qemu;
use tests::lab::{Lab, Running};

use crate::farms::{QEMU, WHARF};

pub const LINK: &str = "wharf0";
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
const NAME: &str = "bench-dut-1";
/// Longer than anything here takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Writes down what it is told, and does it. While the FIFO `hold` is there, switching off waits for a writer.
const OUTLET: &str = "#!/bin/sh
cd \"${0%/*}\" || exit 1
case $1 in
state) read -r state < state; echo \"$state\" ;;
*)
    echo \"$1\" >> calls
    if [ \"$1\" = off ] && [ -p hold ]; then read -r word < hold; fi
    echo \"$1\" > state.$$
    mv state.$$ state
    ;;
esac
";

/// A machine's place in the world: a network, an outlet, and a port for its console.
pub struct Place {
    pub lab: Arc<Lab>,
    folder: tempfile::TempDir,
    console: SocketAddr,
    listener: Option<TcpListener>,
}

impl Place {
    /// `None`: nobody may make a network namespace here.
    pub fn new() -> Option<Place> {
        let lab = match Lab::new() {
            Ok(lab) => lab,
            Err(error) => {
                eprintln!("SKIPPED: {error}");
                return None;
            }
        };
        lab.bridge(LINK, GATEWAY).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("outlet"), OUTLET).unwrap();
        fs::write(folder.path().join("state"), "off\n").unwrap();
        let listener = lab.inside(|| TcpListener::bind("127.0.0.1:0")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let console = listener.local_addr().unwrap();
        Some(Place { lab: Arc::new(lab), folder, console, listener: Some(listener) })
    }

    pub fn start(&self) -> Bench {
        self.start_with("")
    }

    /// Its DUT has further keys, each a line.
    pub fn start_with(&self, keys: &str) -> Bench {
        self.start_farm(&self.farm(keys))
    }

    /// A farm file of its DUT, with further keys of it.
    pub fn farm(&self, keys: &str) -> String {
        let outlet = self.path("outlet").display().to_string();
        format!(
            "name: bench
network: {{interface: {{name: {LINK}, address: {GATEWAY}/24}}}}
duts:
  - mac: 52:54:00:88:00:01
    address: 10.88.0.11
    tags: ['firmware:bios']
{keys}    off_time: 0 s
    machine:
      hardware:
        power: {{exec: {{on: [sh, '{outlet}', 'on'], off: [sh, '{outlet}', 'off'], state: [sh, '{outlet}', state]}}}}
        console: {{tcp: {{host: 127.0.0.1, port: {}}}}}
",
            self.console.port()
        )
    }

    /// The server of a farm file, in here.
    pub fn start_farm(&self, farm: &str) -> Bench {
        let surroundings = Surroundings { lab: Some(Arc::clone(&self.lab)), ..Surroundings::default() };
        Bench::start_with(WHARF, farm, surroundings)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the outlet was told, but not what it was asked.
    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    fn outlet(&self) -> String {
        fs::read_to_string(self.path("state")).unwrap().trim().to_owned()
    }

    /// The server opens the console.
    pub fn opened(&self) -> TcpStream {
        let listener = self.listener.as_ref().expect("the console is served");
        let (stream, _) = until(PATIENCE, || listener.accept().ok()).expect("the server opens the console");
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

/// Its machine need not boot anything: it talks.
fn talk(timeouts: &str) -> String {
    format!(
        "version: 1
target: {{tags: []}}
timeouts: {{overall: {{minutes: 4}}{timeouts}}}
console_patterns:
  session_end: {{regex: '^the end$'}}
  job_success: {{regex: '^all is good$'}}
  session_reboot: {{regex: '^once more$'}}
deployment: {{start: {{}}}}
"
    )
}

/// The kinds of a job's events from one on that is as wanted.
fn kinds_from<'a>(ended: &'a Ended, first: &str) -> Vec<&'a str> {
    let kinds = ended.events.iter().map(|event| event["event"].as_str().unwrap());
    kinds.skip_while(|kind| *kind != first).collect()
}

/// Waits until a job has been picked up so many times.
fn goes_on(bench: &Bench, job: &str, times: usize) {
    let mut job = bench.follow(job, "");
    for _ in 0..times {
        job.wait_for_kind("console_back");
    }
}

fn gap_of(ended: &Ended) -> Option<&Value> {
    ended.events.iter().find(|event| event["event"] == "console_away" && event["reason"] == "the farm was restarted")
}

#[test]
fn a_job_goes_on_where_its_console_stands_when_the_server_was_killed_and_its_outlet_is_left_alone() {
    let Some(place) = Place::new() else { return };
    let bench = place.start();
    assert_eq!(place.calls(), ["off"], "nobody holds it: the start switches it off");
    let mut job = bench.submit(&talk(""), "");
    let mut console = place.opened();
    job.wait_for_kind("powered_on");
    console.write_all(b"booting\nall is good\nthis line is torn ").unwrap();
    job.wait_for_console("torn");
    drop(job);
    let mut bench = bench;
    for times in 1..=2 {
        bench = bench.killed_and_started_again(WHARF);
        console = place.opened();
        goes_on(&bench, "1", times);
        assert_eq!(place.calls(), ["off", "off", "on"], "from its lease's begin on nobody switched it");
    }
    let mut job = bench.follow("1", "");
    console.write_all(b"apart\n").unwrap();
    job.wait_for_console("apart");
    job.type_line("ahoy");
    let mut typed = [0; 5];
    console.read_exact(&mut typed).unwrap();
    assert_eq!(&typed, b"ahoy\n");
    console.write_all(b"the end\n").unwrap();
    let ended = job.wait();
    ended.expect("PASS", "test").expect_summary("job_success and session_end matched");
    assert_eq!(ended.console, "booting\nall is good\nthis line is torn apart\nthe end\n");
    let after = kinds_from(&ended, "console_away");
    let expected = ["console_away", "console_back", "note", "console_away", "console_back"];
    assert_eq!(
        after.iter().filter(|kind| **kind != "console").take(5).copied().collect::<Vec<_>>(),
        expected,
        "{ended}"
    );
    ended.expect_in_order(&[
        "the outlet is on",
        "job_success matched",
        "the farm was restarted",
        "the farm was restarted",
    ]);
    assert_eq!(place.calls(), ["off", "off", "on", "off"]);
    assert_eq!(place.outlet(), "off");
    bench.wait_until_free(NAME, PATIENCE).expect("it is free again");
}

#[test]
fn a_job_that_was_picked_up_can_be_cancelled_and_its_reboots_and_clocks_are_its_own() {
    let Some(place) = Place::new() else { return };
    let bench = place.start();
    let mut job = bench.submit(&talk(", boot_cycle: {minutes: 3, retries: 1}"), "");
    let mut console = place.opened();
    job.wait_for_kind("powered_on");
    console.write_all(b"once more\n").unwrap();
    job.wait_for("the second boot", |event| event["event"] == "powered_on" && event["boot"] == 2);
    drop(job);
    let bench = bench.killed_and_started_again(WHARF);
    let mut console = place.opened();
    console.write_all(b"once more\n").unwrap();
    let ended = bench.follow("1", "").wait();
    ended.expect("INCOMPLETE", "test");
    ended.expect_summary("session_reboot matched, but timeouts.boot_cycle.retries allows 1 reboots");
    let mut job = bench.submit(&talk(""), "");
    job.wait_for_kind("powered_on");
    console.write_all(b"hello\n").unwrap();
    job.wait_for_console("hello");
    drop(job);
    let bench = bench.killed_and_started_again(WHARF);
    let _console = place.opened();
    let job = bench.follow("2", "");
    job.cancel();
    job.wait().expect("INCOMPLETE", "cancelled");
    assert_eq!(place.outlet(), "off");
}

#[test]
fn a_job_whose_console_cannot_be_opened_any_more_ends_with_the_farm_as_cause_and_its_machine_is_off() {
    let Some(mut place) = Place::new() else { return };
    let bench = place.start();
    let mut job = bench.submit(&talk(""), "");
    let mut console = place.opened();
    job.wait_for_kind("powered_on");
    console.write_all(b"all is good\n").unwrap();
    job.wait_for_kind("pattern_matched");
    drop(job);
    place.listener = None;
    let bench = bench.killed_and_started_again(WHARF);
    // Not before: who is left alone by it before the kill says so.
    drop(console);
    let ended = bench.follow("1", "").wait();
    ended.expect("INCOMPLETE", "farm").expect_summary(&format!(
        "the farm was restarted while the job ran, and its console cannot be opened any more: {}: Connection refused (os error 111); \
         its DUT was switched off",
        place.console
    ));
    ended.expect_in_order(&["the outlet is on", "job_success matched"]);
    assert_eq!(place.calls(), ["off", "off", "on", "off"]);
    bench.wait_until_free(NAME, PATIENCE).expect("it is free again");
}

#[test]
fn a_job_whose_outlet_is_not_as_it_was_ends_with_the_farm_as_cause() {
    let Some(place) = Place::new() else { return };
    let bench = place.start();
    let mut job = bench.submit(&talk(""), "");
    let _console = place.opened();
    job.wait_for_kind("powered_on");
    drop(job);
    fs::write(place.path("state"), "off\n").unwrap();
    let bench = bench.killed_and_started_again(WHARF);
    let ended = bench.follow("1", "").wait();
    ended.expect("INCOMPLETE", "farm").expect_summary(
        "the farm was restarted while the job ran, and its outlet reads off, and was on before; its DUT was switched off",
    );
}

#[test]
fn an_outlet_that_is_on_and_nobodys_is_off_after_a_start() {
    let Some(place) = Place::new() else { return };
    let bench = place.start();
    fs::write(place.path("state"), "on\n").unwrap();
    let bench = bench.killed_and_started_again(WHARF);
    assert_eq!((place.outlet().as_str(), place.calls()), ("off", vec!["off".to_owned(), "off".to_owned()]));
    bench.wait_until_free(NAME, PATIENCE).expect("it is free");
}

#[test]
fn a_verdict_that_was_reached_before_the_kill_is_told_after_it() {
    let Some(place) = Place::new() else { return };
    let bench = place.start();
    let mut job = bench.submit(&talk(""), "");
    let mut console = place.opened();
    job.wait_for_kind("powered_on");
    // The tear-down does not come to its end.
    nix::unistd::mkfifo(&place.path("hold"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    console.write_all(b"all is good\nthe end\n").unwrap();
    job.wait_for_kind("teardown_started");
    until(PATIENCE, || Some(()).filter(|()| place.calls().len() == 4)).expect("it is being switched off");
    drop(job);
    assert_eq!(place.outlet(), "on");
    fs::rename(place.path("hold"), place.path("held")).unwrap();
    let bench = bench.killed_and_started_again(WHARF);
    let ended = bench.follow("1", "").wait();
    ended.expect("PASS", "test");
    assert_eq!(place.outlet(), "off");
    assert!(gap_of(&ended).is_none(), "it heard nothing after the kill");
}

/// Kills of the gate; `WHARF_KILLS=200` makes it a long run.
const KILLS: usize = 10;

/// A machine that says its lines again and again while its outlet is on, to whoever listens.
fn talk_while_on(listener: TcpListener, state: PathBuf) {
    let mut clients: Vec<TcpStream> = Vec::new();
    // It ends with the test's folder.
    while let Ok(outlet) = fs::read_to_string(&state) {
        clients.extend(listener.accept().ok().map(|(stream, _)| stream));
        if outlet.trim() == "on" {
            clients.retain_mut(|client| client.write_all(b"all is good\nthe end\n").is_ok());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_job_on_hardware_has_its_verdict_whenever_the_server_is_killed() {
    let Some(mut place) = Place::new() else { return };
    let (listener, state) = (place.listener.take().unwrap(), place.path("state"));
    std::thread::spawn(move || talk_while_on(listener, state));
    let kills = std::env::var("WHARF_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let mut bench = place.start();
    let mut picked_up = 0;
    for kill in 0..kills {
        let id = bench.submit(&talk(""), "").id;
        // The kill comes at a moment that no condition names: that is what is tried. A job takes about 60 ms.
        std::thread::sleep(Duration::from_millis((kill as u64 * 37) % 80));
        bench = bench.killed_and_started_again(WHARF);
        let ended = bench.follow(&id, "").wait();
        ended.expect("PASS", "test");
        picked_up += usize::from(ended.events.iter().any(is_restart));
        assert_eq!(place.outlet(), "off", "{ended}");
    }
    println!("{kills} kills, {picked_up} jobs were picked up");
    bench.wait_until_free(NAME, PATIENCE).expect("it is free again");
}

/// Where a job's log says that it goes on after a restart.
fn is_restart(event: &Value) -> bool {
    event["text"].as_str().is_some_and(|text| text.starts_with("The farm was restarted: the job "))
}

/// A machine that the server did not start and cannot end, at the bridge, with its console on our port.
fn qemu(place: &mut Place) -> Running {
    place.lab.tap("tap0", LINK).unwrap();
    // QEMU takes the port over.
    place.listener = None;
    let machine =
        ["-m", "128", "-machine", "q35,graphics=off", "-netdev", "tap,id=n0,ifname=tap0,script=no,downscript=no"];
    let card = ["-device", "virtio-net-pci,netdev=n0,bootindex=1,mac=52:54:00:88:00:01"];
    spawn_qemu(&place.lab, place.folder.path(), place.console, "qemu-system-x86_64", &[&machine[..], &card].concat())
}

#[test]
fn a_machine_that_netboots_over_a_kill_and_talks_over_another_passes_without_a_power_cut() {
    need_virtual_machines(WHARF);
    let Some(mut place) = Place::new() else { return };
    let _place = QEMU.pass();
    let machine = qemu(&mut place);
    let bench = place.start();
    let job = "version: 1
target: {tags: ['firmware:bios']}
timeouts: {overall: {minutes: 10}}
console_patterns:
  session_end: {regex: '^TINY: power off\\r$'}
  job_success: {regex: '^good\\r$'}
deployment:
  start:
    kernel: {url: '{{ images_url }}/tiny', cmdline: [print=good, hold]}
";
    bench.submit(job, "").wait_for_kind("powered_on");
    // Its firmware has yet to ask for an address, or is about to fetch.
    let bench = bench.killed_and_started_again(WHARF);
    bench.follow("1", "").wait_for_console("TINY: ready");
    let bench = bench.killed_and_started_again(WHARF);
    let mut job = bench.follow("1", "");
    let mut gaps = 0;
    job.wait_for("the second gap", |event| {
        gaps += usize::from(event["event"] == "console_back");
        gaps == 2
    });
    job.type_line("ahoy");
    job.wait_for_console("TINY: got ahoy");
    job.type_line("off");
    let ended = job.wait();
    ended.expect("PASS", "test").expect_said(&["good\r\n", "TINY: ready", "TINY: got ahoy\r\n", "TINY: power off\r\n"]);
    ended.expect_in_order(&[
        "the outlet is on",
        "the farm was restarted",
        "job_success matched",
        "the farm was restarted",
    ]);
    assert_eq!(place.calls(), ["off", "off", "on", "off"], "one power cycle, of the one boot");
    drop(machine);
}
