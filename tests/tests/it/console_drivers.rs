//! Every way to reach a console, against programs that we did not write; and a leased console, served to programs that we did not write.
//!
//! ```text
//!  boards of this test, which echo ─┬─ pty ── ser2net ── raw, telnet, RFC 2217 ─┐
//!                                   ├─ pty ── socat ──── unix ──────────────────┼─► wharf serve ── raw, RFC 2217 ─► this test,
//!                                   ├─ pty ── tty, pty, exec (socat) ───────────┤
//!                                   ├─ sshd's command ─────────────────────────┤
//!                                   ├─ pyghmi's BMC ──── ipmitool ──────────────┤     pyserial, socat, telnet
//!                                   └─ pyserial's RFC 2217, with wires ─────────┘
//!  QEMU's firmware ── telnet, unix ─────────────────────────────────────────────┘
//! ```
//! All of it is in one network namespace, at ports that nobody else sees.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::bench::{Bench, Surroundings, need_programs, until};
use tests::lab::{Lab, Running};
use tests::packages::python;

use crate::farms::WHARF;

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The lines, and how the farm reaches each. `{folder}` is this test's.
const LINES: &[(&str, &str)] = &[
    ("raw", "tcp: {host: 127.0.0.1, port: 7001}"),
    ("telnet", "telnet: {host: 127.0.0.1, port: 7002}"),
    ("rfc2217", "rfc2217: {host: 127.0.0.1, port: 7003, baud: 57600}"),
    ("unix", "unix: {path: '{folder}/unix.sock'}"),
    (
        "ssh",
        "ssh: {host: 127.0.0.1, port: 7006, user: root, key: '{folder}/key', host_key: '{host_key}', command: exec cat}",
    ),
    ("tty", "tty: {path: '{folder}/tty'}"),
    ("pty", "pty: {path: '{folder}/pty'}"),
    ("exec", "exec: {command: [socat, '-', '{folder}/exec,raw,echo=0']}"),
    ("sol", "ipmi-sol: {host: 127.0.0.1, port: 7004, user: admin, password_file: '{folder}/password'}"),
    ("wires", "rfc2217: {host: 127.0.0.1, port: 7007}"),
    ("qemu-telnet", "telnet: {host: 127.0.0.1, port: 7005}"),
    ("qemu-unix", "unix: {path: '{folder}/qemu.sock'}"),
];

/// ser2net's lines.
const SER2NET: &str = "connection: &raw
  accepter: tcp,127.0.0.1,7001
  connector: serialdev(nouucplock=true),{folder}/raw,115200n81,local
connection: &telnet
  accepter: telnet,tcp,127.0.0.1,7002
  connector: serialdev(nouucplock=true),{folder}/telnet,115200n81,local
connection: &rfc2217
  accepter: telnet(rfc2217),tcp,127.0.0.1,7003
  connector: serialdev(nouucplock=true),{folder}/rfc2217,9600n81,local
";

/// A host whose command is the board.
const SSHD: &str = "ListenAddress 127.0.0.1
Port 7006
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/key.pub
PermitRootLogin yes
StrictModes no
UsePAM no
";

/// A BMC whose machine echoes.
const BMC: &str = "import pyghmi.ipmi.bmc
class Board(pyghmi.ipmi.bmc.Bmc):
    def is_active(self):
        return True
    def iohandler(self, data):
        if self.sol and not isinstance(data, dict):
            self.sol.send_data(data.encode('latin-1') if isinstance(data, str) else data)
Board({'admin': 'secret'}, address='127.0.0.1', port=7004).listen()
";

/// A line whose wires lead back to it, RTS to CTS and DTR to DSR, at pyserial's end of RFC 2217.
const WIRES: &str = "import serial, serial.rfc2217, socket, threading
listener = socket.create_server(('127.0.0.1', 7007))
class Wire:
    def __init__(self, connection):
        self.connection, self.lock = connection, threading.Lock()
    def write(self, data):
        with self.lock:
            self.connection.sendall(data)
def speak(line, manager, wire):
    try:
        while True:
            data = line.read(1)
            if data:
                wire.write(b''.join(manager.escape(data)))
            manager.check_modem_lines()
    except (OSError, serial.SerialException):
        pass
while True:
    connection, _ = listener.accept()
    line = serial.serial_for_url('loop://', timeout=0.02)
    wire = Wire(connection)
    manager = serial.rfc2217.PortManager(line, wire)
    threading.Thread(target=speak, args=(line, manager, wire), daemon=True).start()
    while data := connection.recv(1024):
        line.write(b''.join(manager.filter(data)))
    line.close()
";

/// A program that moves the wires of a line and drops what waits for it.
const MOVES_WIRES: &str = "import serial, serial.rfc2217, socket, sys, time
address, raw = sys.argv[1:]
port = serial.serial_for_url(f'rfc2217://{address}', timeout=20)
def until(wire, wanted):
    end = time.monotonic() + 60
    while getattr(port, wire) != wanted and time.monotonic() < end:
        time.sleep(0.01)
    print(wire, getattr(port, wire))
until('cts', True)
port.rts = False
until('cts', False)
port.rts = True
until('cts', True)
port.dtr = False
until('dsr', False)
host, number = raw.split(':')
other = socket.create_connection((host, int(number)), timeout=60)
while True:
    # It is there when it hears.
    port.write(b'?')
    other.settimeout(0.5)
    try:
        other.recv(64)
        break
    except socket.timeout:
        pass
other.settimeout(60)
port.rfc2217_send_subnegotiation(serial.rfc2217.FLOWCONTROL_SUSPEND)
port.write(b'dropped.')
heard = b''
while not heard.endswith(b'dropped.'):
    heard += other.recv(64)
port.reset_input_buffer()
port.rfc2217_send_subnegotiation(serial.rfc2217.FLOWCONTROL_RESUME)
port.write(b'kept')
print(port.read(4))
";

/// A program that wants a serial port, as labgrid opens it and as others do.
const PYSERIAL: &str = "import fcntl, os, serial, sys, time
address, path, own = sys.argv[1:]
device = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
def speed():
    # TCGETS2: the last number of struct termios2.
    return int.from_bytes(fcntl.ioctl(device, 0x802c542a, bytes(44))[-4:], sys.byteorder)
for options in ['', '?ign_set_control&timeout=3.0']:
    port = serial.serial_for_url(f'rfc2217://{address}{options}', baudrate=9600, timeout=20)
    port.write(bytes(range(256)) * 4)
    same = port.read(1024) == bytes(range(256)) * 4
    port.baudrate = 38400
    set_to = speed()
    port.send_break(0.01)
    port.reset_input_buffer()
    port.reset_output_buffer()
    print(same, set_to, port.cts, port.dsr, port.cd, port.ri)
    port.close()
    until = time.monotonic() + 60
    while speed() != int(own) and time.monotonic() < until:
        time.sleep(0.01)
    print(speed())
";

/// A line that somebody opens at a path, and the board at its other end, which echoes.
struct Line {
    path: PathBuf,
    plugged: Option<Plugged>,
}

struct Plugged {
    /// Held, so that the board does not see its line closed between two who open it.
    _near: OwnedFd,
    board: JoinHandle<()>,
    /// Dropped, it ends the board.
    stop: PipeWriter,
}

impl Line {
    fn new(path: PathBuf) -> Line {
        let mut line = Line { path, plugged: None };
        line.plug();
        line
    }

    fn plug(&mut self) {
        let pair = openpty(None, None).unwrap();
        // No program that is started meanwhile may hold the line.
        for end in [&pair.master, &pair.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        let mut raw = tcgetattr(&pair.slave).unwrap();
        cfmakeraw(&mut raw);
        tcsetattr(&pair.slave, SetArg::TCSANOW, &raw).unwrap();
        let _ = std::fs::remove_file(&self.path);
        std::os::unix::fs::symlink(nix::unistd::ttyname(&pair.slave).unwrap(), &self.path).unwrap();
        let (stopped, stop) = std::io::pipe().unwrap();
        let board = std::thread::spawn(move || echo(File::from(pair.master), &stopped));
        self.plugged = Some(Plugged { _near: pair.slave, board, stop });
    }

    fn unplug(&mut self) {
        if let Some(Plugged { board, stop, .. }) = self.plugged.take() {
            drop(stop);
            board.join().unwrap();
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.unplug();
    }
}

fn echo(mut line: File, stopped: &PipeReader) {
    let mut bytes = [0; 4096];
    loop {
        let mut events = [line.as_fd(), stopped.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        poll(&mut events, PollTimeout::NONE).unwrap();
        if events[1].any() == Some(true) {
            return;
        }
        let length = line.read(&mut bytes).unwrap();
        line.write_all(&bytes[..length]).unwrap();
    }
}

/// The farm with all that it reaches.
struct Place {
    bench: Bench,
    lab: Arc<Lab>,
    tty: Mutex<Line>,
    _lines: Vec<Line>,
    _servers: Vec<Running>,
    _folder: TempDir,
    _until_dropped: mpsc::Sender<()>,
}

/// Shared by the tests, ended by the last one.
fn place() -> Arc<Place> {
    static PLACE: Mutex<Weak<Place>> = Mutex::new(Weak::new());
    let mut shared = lock(&PLACE);
    shared.upgrade().unwrap_or_else(|| {
        // The servers end with the thread that starts them: it must outlive the test that was first.
        let (made, place) = mpsc::channel();
        std::thread::spawn(move || {
            let (until_dropped, dropped) = mpsc::channel();
            made.send(Arc::new(Place::new(until_dropped))).expect("a test waits for it");
            dropped.recv()
        });
        let place = place.recv().expect("everything that it needs is there");
        *shared = Arc::downgrade(&place);
        place
    })
}

impl Place {
    fn new(until_dropped: mpsc::Sender<()>) -> Place {
        need_programs(&[
            ("ser2net", "ser2net"),
            ("socat", "socat"),
            ("/usr/sbin/sshd", "openssh-server"),
            ("ssh-keygen", "openssh-client"),
            ("ipmitool", "ipmitool"),
            ("qemu-system-x86_64", "qemu-system-x86"),
        ]);
        let lab = Lab::new().unwrap();
        lab.bridge("wharf0", Ipv4Addr::new(10, 93, 0, 1)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let text = |template: &str| template.replace("{folder}", &folder.path().display().to_string());
        let path = |name: &str| folder.path().join(name);
        let line = |name: &str| Line::new(path(name));
        let lines = ["raw", "telnet", "rfc2217", "unix", "pty", "exec"].map(line).into();
        std::fs::write(path("ser2net.yaml"), text(SER2NET)).unwrap();
        for name in ["key", "host_key"] {
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path(name));
            assert!(command.status().unwrap().success());
        }
        let host_key = std::fs::read_to_string(path("host_key.pub")).unwrap().trim().to_owned();
        std::fs::write(path("sshd_config"), text(SSHD)).unwrap();
        // sshd wants its folder.
        std::fs::create_dir_all("/run/sshd").unwrap();
        std::fs::write(path("bmc.py"), BMC).unwrap();
        std::fs::write(path("wires.py"), WIRES).unwrap();
        std::fs::write(path("password"), "secret\n").unwrap();
        let pyserial = python(&["pyserial==3.5"]).join("python").display().to_string();
        let bmc = python(&["pyghmi==1.6.19"]).join("python").display().to_string();
        let qemu = "qemu-system-x86_64 -M q35,graphics=off -m 32 -display none -nodefaults -serial";
        let servers = [
            text("ser2net -n -u -c {folder}/ser2net.yaml"),
            text("socat UNIX-LISTEN:{folder}/unix.sock,fork {folder}/unix,raw,echo=0"),
            text(&format!("{bmc} {{folder}}/bmc.py")),
            text(&format!("{pyserial} -W ignore {{folder}}/wires.py")),
            text("/usr/sbin/sshd -D -e -f {folder}/sshd_config"),
            format!("{qemu} telnet:127.0.0.1:7005,server=on,wait=on"),
            text(&format!("{qemu} unix:{{folder}}/qemu.sock,server=on,wait=on")),
        ];
        let servers = servers.iter().map(|words| start(&lab, words, &path("servers.log"))).collect();
        let tty = Mutex::new(line("tty"));
        let mut farm = "name: lines\nnetwork: {interface: {name: wharf0, address: 10.93.0.1/24}}\nduts:\n".to_owned();
        for (index, (name, console)) in (1..).zip(LINES) {
            let outlet = path(&format!("{name}.outlet")).display().to_string();
            std::fs::write(&outlet, "off\n").unwrap();
            farm.push_str(&format!(
                "  - {{id: {name}, mac: '52:54:00:93:00:{index:02x}', address: 10.93.0.{}, machine: {{hardware: {{\
                 power: {{exec: {{on: [sh, -c, 'echo on > {outlet}'], off: [sh, -c, 'echo off > {outlet}'], \
                 state: [cat, '{outlet}']}}}}, console: {{{}}}}}}}}}\n",
                index + 10,
                text(console).replace("{host_key}", &host_key)
            ));
        }
        let lab = Arc::new(lab);
        let surroundings = Surroundings { lab: Some(Arc::clone(&lab)), ..Surroundings::default() };
        let bench = Bench::start_with(WHARF, &farm, surroundings);
        Place { bench, lab, tty, _lines: lines, _servers: servers, _folder: folder, _until_dropped: until_dropped }
    }

    /// Holds a line's DUT under its name.
    fn take(&self, name: &str) -> Lease<'_> {
        let wish = json!({"dut": name, "owner": "term", "for": "10m", "name": "anna", "subject": "anna"});
        let id = self.ask("POST", "", &wish)["id"].as_str().unwrap().to_owned();
        let lease = Lease { place: self, id: id.clone() };
        let state = || self.bench.get(&format!("/api/v1/leases/{id}")).json();
        until(PATIENCE, || Some(()).filter(|()| state()["state"] == "active"))
            .unwrap_or_else(|| panic!("{name}: {:#}", state()));
        lease
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let path = format!("/api/v1/leases{path}");
        let answer = self.bench.ask(method, &path, "Content-Type: application/json\r\n", body.to_string().as_bytes());
        assert!(matches!(answer.status, 200 | 201), "{method} {path}: {answer:?}");
        answer.json()
    }

    /// Starts a program, types a line on it until its output has the line, which a board that echoes sends back.
    #[track_caller]
    fn talks(&self, words: &[&str], text: &str) {
        let mut command = self.lab.command(words[0]).unwrap();
        command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = command.spawn().unwrap();
        let (mut typed, mut said) = (program.stdin.take().unwrap(), program.stdout.take().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let listener = Arc::clone(&heard);
        let listening = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = said.read(&mut bytes) {
                lock(&listener).extend_from_slice(&bytes[..length]);
            }
        });
        let shown = || String::from_utf8_lossy(&lock(&heard)).into_owned();
        // What comes before it is connected is the program's to keep, or to drop.
        let answered = until(PATIENCE, || {
            typed.write_all(format!("{text}\n").as_bytes()).unwrap();
            until(Duration::from_secs(1), || Some(()).filter(|()| shown().contains(text)))
        });
        program.kill().unwrap();
        program.wait().unwrap();
        listening.join().unwrap();
        answered.unwrap_or_else(|| panic!("{words:?} shows {:?}", shown()));
    }

    /// A connection to a port that is served in the lab.
    fn connect(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        let stream = self.lab.inside(|| TcpStream::connect(address))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}

fn start(lab: &Lab, words: &str, log: &Path) -> Running {
    let mut words = words.split(' ');
    let program = words.next().unwrap();
    let mut command = lab.command(program).unwrap();
    command.args(words);
    Running::spawn(program, command, log).unwrap()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Lease<'a> {
    place: &'a Place,
    id: String,
}

impl Lease<'_> {
    fn console(&self) -> String {
        self.place.bench.get(&format!("/api/v1/leases/{}/console", self.id)).text()
    }

    /// Types until the board answers: a line that is just being opened loses what is typed.
    #[track_caller]
    fn hears_what_is_typed(&self, text: &str) {
        let path = format!("/api/v1/leases/{}/console", self.id);
        let echoed = || {
            self.place.bench.post(&path, "application/octet-stream", text.as_bytes());
            until(Duration::from_secs(1), || Some(()).filter(|()| self.console().contains(text)))
        };
        until(PATIENCE, echoed).unwrap_or_else(|| {
            let lease = self.place.bench.get(&format!("/api/v1/leases/{}/log", self.id)).text();
            panic!("{}: no `{text}` in:\n{lease}", self.id)
        });
    }

    fn serve(&self, protocol: &str) -> SocketAddr {
        let port = self.place.ask("POST", &format!("/{}/console/serve", self.id), &json!({"protocol": protocol}));
        assert_eq!(port["protocol"], protocol);
        port["address"].as_str().unwrap().parse().unwrap()
    }

    fn release(self) {
        self.place.ask("DELETE", &format!("/{}", self.id), &json!({}));
        let state = || self.place.bench.get(&format!("/api/v1/leases/{}", self.id)).json();
        until(PATIENCE, || Some(()).filter(|()| state()["state"] == "destroyed")).expect("it is given back");
    }
}

#[test]
fn every_way_leads_to_a_board_and_back() {
    let place = place();
    for name in ["raw", "telnet", "rfc2217", "unix", "pty", "exec", "ssh", "sol"] {
        let lease = place.take(name);
        lease.hears_what_is_typed(&format!("this is {name}\r"));
        lease.release();
    }
    // What QEMU's firmware says it says once, to whoever was there first.
    for name in ["qemu-telnet", "qemu-unix"] {
        let said = || {
            let log = place.bench.state().join("consoles");
            let files = walk(&log).into_iter().filter(|file| file.to_string_lossy().contains(name));
            files.map(|file| String::from_utf8_lossy(&std::fs::read(file).unwrap()).into_owned()).collect::<String>()
        };
        until(PATIENCE, || Some(()).filter(|()| said().contains("SeaBIOS (version ")))
            .unwrap_or_else(|| panic!("{name}: {}", said()));
    }
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn a_served_line_is_one_program_s_to_type_on_and_all_programs_to_hear_and_goes_with_its_lease() {
    let place = place();
    let mut tty = lock(&place.tty);
    let lease = place.take("tty");
    lease.hears_what_is_typed("begin\r");
    let address = lease.serve("raw");
    assert_eq!(lease.serve("raw"), address);
    assert!(address.ip().is_loopback());
    let mut first = place.connect(address).unwrap();
    let mut second = None;
    // Every byte there is, four times over, to both.
    let all: Vec<u8> = (0..=255).cycle().take(1024).collect();
    for round in 0..2 {
        first.write_all(&all).unwrap();
        let mut heard = vec![0; all.len()];
        first.read_exact(&mut heard).unwrap();
        assert_eq!(heard, all, "round {round}");
        let second = second.get_or_insert_with(|| place.connect(address).unwrap());
        if round == 1 {
            // What it was asked last may be on its way yet; the bytes begin with a zero.
            while matches!(second.peek(&mut heard[..1]), Ok(1) if heard[0] == b'?') {
                second.read_exact(&mut heard[..1]).unwrap();
            }
            second.read_exact(&mut heard).unwrap();
            assert_eq!(heard, all);
        } else {
            // It is there when it hears: what was said before it came is not repeated.
            second.set_nonblocking(true).unwrap();
            let hears = || {
                first.write_all(b"?").unwrap();
                first.read_exact(&mut [0]).unwrap();
                Some(()).filter(|()| matches!(second.read(&mut [0; 64]), Ok(1..)))
            };
            until(PATIENCE, hears).expect("it hears what the first one types");
            second.set_nonblocking(false).unwrap();
        }
    }
    let mut second = second.unwrap();
    second.write_all(b"not heard").unwrap();
    first.write_all(b"heard").unwrap();
    let mut heard = [0; 5];
    second.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"heard");
    drop(first);
    // Its turn comes when the server has seen the first one go.
    second.set_nonblocking(true).unwrap();
    let types = || {
        second.write_all(b"mine").unwrap();
        let mut heard = [0; 64];
        until(Duration::from_millis(500), || Some(()).filter(|()| matches!(second.read(&mut heard), Ok(1..))))
    };
    until(PATIENCE, types).expect("whoever is next may type");
    second.set_nonblocking(false).unwrap();

    tty.unplug();
    let path = format!("/api/v1/leases/{}", lease.id);
    let log = || place.bench.get(&format!("{path}/log")).text();
    until(PATIENCE, || Some(()).filter(|()| log().contains("the device went away")))
        .unwrap_or_else(|| panic!("{}", log()));
    tty.plug();
    lease.hears_what_is_typed("plugged in again\r");

    lease.release();
    let end = second.read_to_end(&mut Vec::new());
    assert!(end.is_ok() || end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    place.connect(address).expect_err("nobody listens there any more");
    let over = place.bench.post(&format!("{path}/console/serve"), "application/json", b"{}");
    assert_eq!(over.status, 410, "{over:?}");
}

#[test]
fn pyserial_sets_a_served_line_as_it_likes_and_the_farm_sets_it_back() {
    let place = place();
    let tty = lock(&place.tty);
    let python = python(&["pyserial==3.5"]).join("python").display().to_string();
    // A line of this host, which has no wires, and one behind ser2net, which says that such wires are off.
    let lines =
        [("tty", "tty", "115200", "True True True False"), ("rfc2217", "rfc2217", "57600", "False False False False")];
    for (name, device, own, wires) in lines {
        let lease = place.take(name);
        lease.hears_what_is_typed("begin\r");
        let address = lease.serve("rfc2217").to_string();
        let device = place._folder.path().join(device).display().to_string();
        let mut command = place.lab.command(&python).unwrap();
        command.args(["-W", "ignore", "-c", PYSERIAL, &address, &device, own]);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said, format!("True 38400 {wires}\n{own}\n").repeat(2), "{name}: {errors}");
        lease.release();
    }
    drop(tty);
}

#[test]
fn pyserial_sees_the_wires_of_a_served_line_move_and_drops_what_waits_for_it() {
    let place = place();
    let python = python(&["pyserial==3.5"]).join("python").display().to_string();
    let lease = place.take("wires");
    lease.hears_what_is_typed("begin\r");
    let (address, raw) = (lease.serve("rfc2217").to_string(), lease.serve("raw").to_string());
    let mut command = place.lab.command(&python).unwrap();
    let output = command.args(["-W", "ignore", "-c", MOVES_WIRES, &address, &raw]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "cts True\ncts False\ncts True\ndsr False\nb'kept'\n", "{errors}");
    lease.release();
}

#[test]
fn socat_and_telnet_talk_to_a_board_over_the_ports_of_its_lease() {
    need_programs(&[("telnet", "telnet")]);
    let place = place();
    let lease = place.take("pty");
    lease.hears_what_is_typed("begin\r");
    let (raw, telnet) = (lease.serve("raw"), lease.serve("rfc2217"));
    place.talks(&["socat", "-", &format!("TCP:{raw}")], "socat is here");
    place.talks(&["telnet", "127.0.0.1", &telnet.port().to_string()], "telnet is here");
    lease.release();
}
