//! Consoles belong to their machines: they are heard outside of jobs, over kills and floods, replayed from any place, and typed on by the
//! holder of the lease alone.
//!
//! ```text
//!  this test ── TCP ──► the server's hub ─► <state>/consoles/ ─► `wharf console`, the API
//! ```

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::bench::{Bench, until};

use crate::farms::WHARF;
use crate::picked_up::{PATIENCE, Place};

/// The machine of a [`Place`], its name and its console's.
const DUT: &str = "bench-dut-1";
const MAC: &str = "52:54:00:88:00:01";
const CONSOLE: &str = "52:54:00:88:00:01.console";

fn wharf(bench: &Bench, user: &str, arguments: &[&str]) -> Command {
    // It hears the signals that end it, also where the tests run in a script's background, where some are ignored.
    let mut command = Command::new("env");
    command
        .args(["--default-signal", WHARF])
        .args(arguments)
        .env("WHARF_SERVER", bench.local_socket())
        .env("USER", user)
        .stdin(Stdio::null());
    command
}

fn run(bench: &Bench, arguments: &[&str]) -> Output {
    wharf(bench, "anna", arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn console(bench: &Bench) -> Value {
    bench.get(&format!("/api/v1/consoles/{DUT}")).json()
}

/// Waits until so many bytes of the console are kept.
#[track_caller]
fn wait_for_end(bench: &Bench, end: usize) {
    until(PATIENCE, || Some(()).filter(|()| console(bench)["end"] == end))
        .unwrap_or_else(|| panic!("not {end} bytes: {:#}", console(bench)));
}

#[track_caller]
fn take(bench: &Bench, id: &str, owner: &str) {
    let wish = json!({"id": id, "dut": DUT, "name": owner, "owner": "term", "for": "5m"});
    let taken = bench.post("/api/v1/leases", "application/json", wish.to_string().as_bytes());
    assert_eq!(taken.status, 201, "{taken:?}");
    let state = || bench.get(&format!("/api/v1/leases/{id}")).json()["state"].clone();
    until(PATIENCE, || Some(()).filter(|()| state() == "active")).unwrap_or_else(|| panic!("{id} is {}", state()));
}

#[test]
fn what_is_said_outside_of_jobs_is_kept_over_a_kill_and_replayed_from_any_place() {
    let Some(place) = Place::new() else { return };
    let bench = place.start();
    let mut line = place.opened();
    let first: Vec<u8> = (0..20_000).flat_map(|number: u32| format!("line {number}\0\r\n").into_bytes()).collect();
    line.write_all(&first).unwrap();
    wait_for_end(&bench, first.len());
    let bench = bench.killed_and_started_again(WHARF);
    let mut line = place.opened();
    line.write_all(b"after the kill\n").unwrap();
    wait_for_end(&bench, first.len() + 15);
    let whole = run(&bench, &["console", DUT, "--since", "0"]);
    assert!(whole.status.success(), "{}: {}", whole.status, text(&whole.stderr));
    assert!(whole.stdout == [&first, b"after the kill\n".as_slice()].concat(), "every byte, and nothing else");
    let told = text(&whole.stderr);
    let gap: Vec<_> = told.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(gap, ["away: the farm was not running]", "back]"], "{told}");
    assert_eq!(run(&bench, &["console", CONSOLE, "--since", "-9"]).stdout, b"the kill\n");
    let from = (first.len() + 6).to_string();
    let stamped = text(&run(&bench, &["console", MAC, "--since", &from, "--timestamps"]).stdout);
    let (time, words) = stamped.split_once(' ').unwrap();
    assert_eq!(words, "the kill\n");
    let at: jiff::Timestamp = time.parse().unwrap();
    // A clock's step between two writes is all that lies between.
    let later = run(&bench, &["console", DUT, "--since", &(at + Duration::from_secs(60)).to_string()]);
    assert_eq!(text(&later.stdout), "");
    let since = run(&bench, &["console", DUT, "--since", &(at - Duration::from_millis(1)).to_string()]);
    assert!(since.stdout.ends_with(b"after the kill\n"), "{}", text(&since.stdout));
    let listed = text(&run(&bench, &["consoles"]).stdout);
    let row = listed.lines().find(|row| row.trim_start().starts_with(CONSOLE)).unwrap();
    assert!(row.contains(DUT) && row.contains("open"), "{listed}");
    let unknown = run(&bench, &["console", "nowhere"]);
    assert!(text(&unknown.stderr).contains("no console, no DUT and no lease `nowhere`"), "{unknown:?}");
    let wrong = bench.get(&format!("/api/v1/consoles/{DUT}/log?since=yesterday"));
    assert_eq!((wrong.status, wrong.text().contains("no place in a console")), (400, true), "{wrong:?}");
}

#[test]
fn a_jobs_evidence_says_where_in_its_consoles_log_it_is() {
    let Some(place) = Place::new() else { return };
    let bench = place.start();
    let mut line = place.opened();
    line.write_all(b"before any job\n").unwrap();
    wait_for_end(&bench, 15);
    let job = "version: 1\ntarget: {tags: []}\ntimeouts: {overall: {minutes: 2}}\n\
               console_patterns: {session_end: {regex: '^the end$'}, job_success: {regex: good}}\ndeployment: {start: {}}\n";
    let mut job = bench.submit(job, "");
    job.wait_for_kind("powered_on");
    line.write_all(b"all is good\nthe end\n").unwrap();
    let ended = job.wait();
    ended.expect("PASS", "test").expect_in_order(&["console 52:54:00:88:00:01.console: bytes 15 to 35 of its log"]);
    assert_eq!(ended.console, "all is good\nthe end\n", "nothing of what was said before");
    line.write_all(b"and after\n").unwrap();
    wait_for_end(&bench, 45);
    let log = bench.get(&format!("/api/v1/consoles/{CONSOLE}/log?since=15")).text();
    assert_eq!(log, "all is good\nthe end\nand after\n");
}

/// `wharf console` on a terminal of its own.
struct Window {
    child: Child,
    terminal: nix::pty::OpenptyResult,
    output: BufReader<std::process::ChildStdout>,
}

impl Window {
    fn open(bench: &Bench, user: &str, arguments: &[&str]) -> Window {
        let terminal = openpty(None, None).unwrap();
        let mut command = wharf(bench, user, arguments);
        command.stdin(terminal.slave.try_clone().unwrap()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Window { child, terminal, output }
    }

    fn wait_for_line(&mut self, wanted: &str) {
        let mut line = String::new();
        while !line.contains(wanted) {
            line.clear();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "`{wanted}` did not come");
        }
    }

    fn press(&self, keys: &[u8]) {
        nix::unistd::write(&self.terminal.master, keys).unwrap();
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.terminal.master).unwrap().local_flags.contains(LocalFlags::ECHO)
    }
}

#[test]
fn a_console_is_typed_on_by_its_lease_alone_and_the_terminal_is_as_it_was_whatever_ends_it() {
    let Some(place) = Place::new() else { return };
    let bench = place.start();
    let mut line = place.opened();
    line.set_read_timeout(Some(PATIENCE)).unwrap();
    take(&bench, "annas", "anna");
    let mut annas = Window::open(&bench, "anna", &["console", DUT]);
    let mut berts = Window::open(&bench, "bert", &["console", DUT]);
    line.write_all(b"hello\n").unwrap();
    annas.wait_for_line("hello");
    berts.wait_for_line("hello");
    assert!(annas.is_raw() && !berts.is_raw());
    berts.press(b"of bert\r");
    annas.press(b"\x01\x03of anna\r");
    let mut typed = [0; 10];
    line.read_exact(&mut typed).unwrap();
    assert_eq!(&typed, b"\x01\x03of anna\r", "Ctrl-A and Ctrl-C are the machine's, and bert is not heard");
    annas.press(b"\x1d");
    assert!(annas.child.wait().unwrap().success());
    assert!(!annas.is_raw(), "Ctrl-] leaves");
    // In the name of the lease, from anywhere.
    let mut again = Window::open(&bench, "bert", &["console", DUT, "--lease", "annas"]);
    line.write_all(b"once more\n").unwrap();
    again.wait_for_line("once more");
    assert!(again.is_raw());
    kill(Pid::from_raw(again.child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(again.child.wait().unwrap().code(), Some(128 + 15));
    assert!(!again.is_raw(), "as it was before the signal");
    let other = run(&bench, &["console", DUT, "--lease", "berts"]);
    assert!(text(&other.stderr).contains("lease berts does not hold bench-dut-1: anna (annas) does"), "{other:?}");
    assert!(wharf(&bench, "anna", &["lease", "release", "annas"]).output().unwrap().status.success());
    bench.wait_until_free(DUT, PATIENCE).expect("it is free again");
    let late = bench.post("/api/v1/leases/annas/console", "application/octet-stream", b"too late");
    assert_eq!(late.status, 410, "{late:?}");
    line.write_all(b"still heard\n").unwrap();
    berts.wait_for_line("still heard");
    kill(Pid::from_raw(berts.child.id().cast_signed()), Signal::SIGINT).unwrap();
    berts.child.wait().unwrap();
}

#[test]
fn a_flood_fills_no_disk_and_no_memory_and_a_reader_that_does_not_read_loses_only_its_place() {
    let Some(place) = Place::new() else { return };
    let bench = place.start_farm(&format!("console_log: {{size: 4M}}\n{}", place.farm("")));
    let mut line = place.opened();
    let mut idle = wharf(&bench, "anna", &["console", DUT, "--since", "0", "--follow"]);
    let mut idle = idle.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    line.write_all(b"the first line\n").unwrap();
    let mut shown = idle.stdout.take().unwrap();
    let mut first = [0; 15];
    shown.read_exact(&mut first).unwrap();
    let piece: Vec<u8> = (0..1_000_000_u32).map(|number| (number % 251) as u8).collect();
    let before = bench.memory_bytes_max();
    for _ in 0..24 {
        line.write_all(&piece).unwrap();
    }
    wait_for_end(&bench, 24_000_015);
    // What is no longer kept is given up a moment after the last of it came.
    let kept = |console: &Value| 24_000_015 - console["first"].as_u64().unwrap();
    let small = || Some(()).filter(|()| (3_000_000..=4 << 20).contains(&kept(&console(&bench))));
    until(PATIENCE, small).unwrap_or_else(|| panic!("{:#}", console(&bench)));
    let grown = bench.memory_bytes_max() - before;
    assert!(grown < 16 << 20, "{grown} bytes of memory for a flood of 24 MB");
    let late = run(&bench, &["console", DUT, "--since", "15"]);
    let told = text(&late.stderr);
    let lost = 24_000_015 - 15 - late.stdout.len();
    assert!(told.contains(&format!("[{lost} bytes are not here: they are no longer kept]")), "{told}");
    assert!((3_000_000..=4 << 20).contains(&late.stdout.len()), "{} bytes are shown", late.stdout.len());
    let last = bench.get(&format!("/api/v1/consoles/{DUT}/log?since=-1000000"));
    assert!(last.body == piece, "the last megabyte is as it was said");
    // It goes on reading, from wherever it can, to the end.
    line.write_all(b"the last line\n").unwrap();
    let mut shown = BufReader::new(shown);
    let mut rest = Vec::new();
    while !rest.ends_with(b"the last line\n") {
        rest.clear();
        assert!(shown.read_until(b'\n', &mut rest).unwrap() > 0, "it ended before the last line");
    }
    idle.kill().unwrap();
    idle.wait().unwrap();
}

#[test]
fn a_machine_that_says_who_it_is_is_believed_on_its_own_console_and_nowhere_else() {
    let Some(place) = Place::new() else { return };
    let free = place.lab.inside(|| TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = free.local_addr().unwrap().port();
    let lines = format!("consoles:\n- {{name: line-3, tcp: {{host: 127.0.0.1, port: {port}}}}}\n");
    let bench = place.start_farm(&format!("{lines}{}", place.farm("")));
    let mut line = place.opened();
    line.set_read_timeout(Some(PATIENCE)).unwrap();
    line.write_all(format!("login: SALAD.ping\r\nSALAD.machine_id={MAC}\r\n").as_bytes()).unwrap();
    let mut pong = [0; 11];
    line.read_exact(&mut pong).unwrap();
    assert_eq!(&pong, b"SALAD.pong\n");
    until(PATIENCE, || Some(()).filter(|()| console(&bench)["machine_id"] == MAC)).expect("it is believed");
    line.write_all(b"SALAD.machine_id=52:54:00:88:00:02\n").unwrap();
    until(PATIENCE, || Some(()).filter(|()| bench.errors().contains("it says that it is `52:54:00:88:00:02`")))
        .expect("the spoof is in the farm's log");
    assert_eq!(console(&bench)["machine_id"], MAC, "and is not believed");
    let (mut free, _) = free.accept().unwrap();
    let spoof = format!("SALAD.ping\nSALAD.machine_id={MAC}\nthe end\n");
    free.write_all(spoof.as_bytes()).unwrap();
    let of_line_3 = || bench.get("/api/v1/consoles/line-3").json();
    until(PATIENCE, || Some(()).filter(|()| of_line_3()["end"] == spoof.len()))
        .expect("a line of no DUT is heard, too");
    assert_eq!((&of_line_3()["dut"], &of_line_3()["machine_id"]), (&Value::Null, &Value::Null));
    free.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(free.read(&mut pong).is_err(), "nobody answers where nobody looks for machines");
}
