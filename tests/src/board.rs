//! A machine that is not the farm's own: QEMU in a [`Lab`], which the farm knows as hardware.
//!
//! ```text
//!  farm file: machine.hardware ── power.exec ─► outlet (a script) ─► QEMU's monitor: off is stopped and reset, on is running
//!                              └─ console.tcp ─► QEMU's serial line
//! ```
//! The process goes on whatever the farm does, and is killed when the value is dropped.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use crate::bench::until;
use crate::lab::{Lab, Running};

/// How long QEMU may take until its monitor is there: 0.1 s alone.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// QEMU's monitor as an outlet. What it was told, but not what it was asked, it writes down in `calls`.
const MONITOR: &str = "import json, socket, sys
folder = sys.argv[0].rsplit('/', 1)[0]
monitor = socket.socket(socket.AF_UNIX)
monitor.connect(folder + '/monitor')
lines = monitor.makefile('rw')
def ask(command):
    lines.write(json.dumps({'execute': command}) + '\\n')
    lines.flush()
    while True:
        answer = json.loads(lines.readline())
        if 'return' in answer:
            return answer['return']
        if 'error' in answer:
            sys.exit(answer['error']['desc'])
lines.readline()
ask('qmp_capabilities')
if sys.argv[1] != 'state':
    with open(folder + '/calls', 'a') as calls:
        calls.write(sys.argv[1] + '\\n')
if sys.argv[1] == 'on':
    ask('cont')
elif sys.argv[1] == 'off':
    ask('stop')
    ask('system_reset')
else:
    print('on' if ask('query-status')['status'] == 'running' else 'off')
";

/// Starts QEMU, switched off, with the script `outlet` in `folder` and its serial line at `console`, a free port of the lab.
pub fn spawn_qemu(lab: &Lab, folder: &Path, console: SocketAddr, program: &str, arguments: &[&str]) -> Running {
    fs::write(folder.join("monitor.py"), MONITOR).expect("the folder is ours");
    fs::write(folder.join("outlet"), "exec python3 \"${0%/*}/monitor.py\" \"$1\"\n").expect("the folder is ours");
    let mut command = lab.command(program).expect("the namespace is open");
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-S", "-accel", "tcg,tb-size=64"]);
    command.args(["-action", "shutdown=pause,reboot=reset,panic=pause"]);
    let monitor = folder.join("monitor");
    command.args(["-qmp", &format!("unix:{},server=on,wait=off", monitor.display())]);
    command.args(["-serial", &format!("tcp:{console},server=on,wait=off")]).args(arguments);
    let log = folder.join("qemu.log");
    let running = Running::spawn("qemu", command, &log).expect("QEMU is installed");
    let said = || fs::read_to_string(&log).unwrap_or_default();
    until(START_TIMEOUT, || monitor.exists().then_some(())).unwrap_or_else(|| panic!("QEMU does not run: {}", said()));
    running
}

/// What is in a network card's option ROM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rom {
    /// iPXE.
    Ipxe,
    /// iPXE, in a card whose driver is a module of distributions' kernels: Intel's e1000e.
    IpxeOfE1000e,
    /// Nothing: the firmware boots from the network by itself.
    Empty,
}

/// A QEMU machine with one network card, at a bridge.
pub struct Board {
    folder: tempfile::TempDir,
    console: SocketAddr,
    _process: Running,
}

impl Board {
    /// Starts it, switched off. `arguments` are the program's, but for the network card.
    pub fn new(lab: &Lab, bridge: &str, mac: &str, rom: Rom, program: &str, arguments: &[&str]) -> Board {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        // A link's name has at most 15 bytes.
        let tap = format!("tap{}", mac.replace(':', ""));
        lab.tap(&tap, bridge).expect("the lab has the bridge");
        // QEMU takes the port over: nobody else is in the lab.
        let free = || TcpListener::bind("127.0.0.1:0")?.local_addr();
        let console = lab.inside(free).expect("the lab has a loopback");
        let network = format!("tap,id=n0,ifname={tap},script=no,downscript=no");
        // Debian's ROMs fit any virtio card; U-Boot reads a wrong MAC from one that can also be a legacy card.
        let card = match rom {
            Rom::Ipxe => format!("virtio-net-pci,netdev=n0,bootindex=1,mac={mac}"),
            Rom::IpxeOfE1000e => format!("e1000e,netdev=n0,bootindex=1,mac={mac}"),
            Rom::Empty => format!("virtio-net-pci,netdev=n0,bootindex=1,disable-legacy=on,romfile=,mac={mac}"),
        };
        let arguments = [arguments, &["-netdev", &network, "-device", &card]].concat();
        let process = spawn_qemu(lab, folder.path(), console, program, &arguments);
        Board { folder, console, _process: process }
    }

    /// What a farm file has in an entry of `pdus`: every outlet of it is this machine's.
    pub fn unit(&self) -> String {
        let outlet = self.folder.path().join("outlet").display().to_string();
        let call = |word: &str| format!("[sh, '{outlet}', '{word}', '{{outlet}}']");
        format!("min_off_time: 0 s, exec: {{on: {}, off: {}, state: {}}}", call("on"), call("off"), call("state"))
    }

    /// The port of its serial line, on the lab's loopback.
    pub fn console_port(&self) -> u16 {
        self.console.port()
    }

    /// What a farm file has at the machine's `machine`.
    pub fn machine(&self) -> String {
        let outlet = self.folder.path().join("outlet").display().to_string();
        let exec =
            format!("{{on: [sh, '{outlet}', 'on'], off: [sh, '{outlet}', 'off'], state: [sh, '{outlet}', state]}}");
        let console = format!("{{host: 127.0.0.1, port: {}}}", self.console.port());
        format!("{{hardware: {{power: {{exec: {exec}}}, console: {{tcp: {console}}}}}}}")
    }
}
