//! One virtual machine that boots from the network.
//!
//! ```text
//!              spawn: a new process                    guest reboots: the process goes on, PXE boots again
//!   ┌─────┐ ─────────────────────────────► ┌────────┐ ──────────┐
//!   │ off │                                │ on     │ ◄─────────┘
//!   └─────┘ ◄───────────────────────────── └────────┘ guest powers off: paused; the outlet stays on, as a real one does
//!              SIGKILL, waited for
//! ```
//! The outlet is the process, because that is the truest power cut: memory, network card and open connections are gone without a
//! goodbye. Two unix sockets lead to it; we listen on both before it starts, and QEMU connects to them before its guest
//! runs its first instruction, so that no byte of the serial line is lost:
//!
//! * `serial`: a task reads it for as long as the machine exists, over all its boots, and passes it to the console that is open;
//! * `control`: QMP, JSON in lines: status, reset, events.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, DuplexStream, ReadBuf,
};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, OnceCell, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;

use super::cable::Cable;
use super::install::{self, Ovmf};
use super::network::{NetworkError, PrivateNetwork};
use super::tiny;
use crate::blueprint::power::PowerState;
use crate::config::{Firmware, QemuConfig};

/// How long QEMU may take from its start to its greeting: 0.1 s alone, some seconds with sixteen starting on two busy cores.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How long QEMU may take to answer on its control socket: milliseconds, unless the host swaps.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(10);

/// What a guest under KVM needs for the probe's few hundred instructions, with a wide margin; without real virtualisation below it the
/// probe takes minutes or dies.
const KVM_PROBE_TIMEOUT: Duration = Duration::from_secs(4);

/// Bytes of console that wait for a reader: a second of a 115200 baud line is 11 kB; beyond this QEMU waits.
const CONSOLE_BUFFER_BYTES: usize = 64 * 1024;

/// One read of the serial line.
const CHUNK_BYTES: usize = 4096;

/// A unix socket's path ends with a zero within 108 bytes (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why a machine does not do as told.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Something that it needs is not on this host.
    #[error("virtual DUT `{machine}` needs {what}, which is not there; `wharf virtual install` gets it")]
    Missing {
        /// Which machine.
        machine: String,
        /// What is missing.
        what: &'static str,
    },
    /// A file or socket of it could not be made.
    #[error("virtual DUT `{machine}`: cannot {action}: {source}")]
    System {
        /// Which machine.
        machine: String,
        /// What was tried.
        action: String,
        /// The system's word.
        source: io::Error,
    },
    /// QEMU ended while starting.
    #[error("virtual DUT `{machine}`: QEMU ended at once with {status}: {output}")]
    Ended {
        /// Which machine.
        machine: String,
        /// How it ended.
        status: String,
        /// What it said.
        output: String,
    },
    /// QEMU says no, or nothing.
    #[error("virtual DUT `{machine}`: QEMU did not {command}: {reason}")]
    Control {
        /// Which machine.
        machine: String,
        /// What was asked.
        command: String,
        /// Why not.
        reason: String,
    },
    /// There is no process to ask.
    #[error("virtual DUT `{0}` is switched off; switch its outlet on first")]
    Off(String),
}

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU's translator: works everywhere, ten times slower.
    Tcg,
}

/// A folder for machines' sockets and variables, with a path short enough for them. It is removed with the value; what a killed
/// process left is removed by the next one.
pub struct RuntimeFolder {
    folder: tempfile::TempDir,
    /// Held for as long as the folder is in use.
    _lock: fs::File,
}

/// Begins the name of every runtime folder.
const RUNTIME_FOLDER: &str = "wharf-run-";

impl RuntimeFolder {
    /// A new one in `$XDG_RUNTIME_DIR`, or in the folder for temporary files.
    pub fn new() -> io::Result<RuntimeFolder> {
        let home = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_dir());
        RuntimeFolder::within(&home.unwrap_or_else(std::env::temp_dir))
    }

    fn within(home: &Path) -> io::Result<RuntimeFolder> {
        remove_abandoned(home);
        let folder = tempfile::Builder::new().prefix(RUNTIME_FOLDER).tempdir_in(home)?;
        let lock = fs::File::create(folder.path().join("lock"))?;
        lock.lock()?;
        Ok(RuntimeFolder { folder, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Removes the runtime folders of `home` that nobody holds. One that was made a moment ago has no lock yet, and is left alone.
fn remove_abandoned(home: &Path) {
    for entry in fs::read_dir(home).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(RUNTIME_FOLDER));
        if is_ours && fs::File::open(entry.path().join("lock")).is_ok_and(|lock| lock.try_lock().is_ok()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// A virtual machine, on or off. Dropping it switches it off.
pub struct Machine {
    config: QemuConfig,
    name: String,
    mac: String,
    uuid: String,
    network: Arc<PrivateNetwork>,
    folder: PathBuf,
    control: UnixListener,
    cable: OnceCell<Option<Cable>>,
    running: Mutex<Option<Running>>,
    consoles: mpsc::Sender<DuplexStream>,
    console_slot: Arc<Semaphore>,
    serial_pump: JoinHandle<()>,
    /// A test boots its payload without a gateway.
    extra_arguments: Vec<OsString>,
}

/// While the outlet is on.
struct Running {
    process: Child,
    control: Control,
}

impl Machine {
    /// A machine that is off. Its sockets and files are in a folder of its own in `runtime_folder`; see [`RuntimeFolder`].
    /// Called from within a tokio runtime.
    pub fn new(
        config: QemuConfig,
        name: &str,
        mac: &str,
        uuid: &str,
        network: Arc<PrivateNetwork>,
        runtime_folder: &Path,
    ) -> Result<Self, MachineError> {
        let failed =
            |action: &str, source| MachineError::System { machine: name.to_owned(), action: action.to_owned(), source };
        let folder = runtime_folder.join(hexadecimal(mac));
        fs::create_dir_all(&folder).map_err(|source| failed("make its folder", source))?;
        let listen = |socket: &str| listen_on(&folder.join(socket)).map_err(|source| failed("listen for QEMU", source));
        let (serial, control) = (listen("serial")?, listen("control")?);
        // There is one console at a time (`console_slot`); the rest is for those opened and dropped before the pump looks.
        let (consoles, opened) = mpsc::channel(8);
        Ok(Machine {
            config,
            name: name.to_owned(),
            mac: mac.to_owned(),
            uuid: uuid.to_owned(),
            network,
            folder,
            control,
            cable: OnceCell::new(),
            running: Mutex::new(None),
            consoles,
            console_slot: Arc::new(Semaphore::new(1)),
            serial_pump: tokio::spawn(pump_serial(serial, opened)),
            extra_arguments: Vec::new(),
        })
    }

    /// What people call it; also the name of its one outlet.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts the process unless it runs; returns when the guest is about to run.
    pub async fn power_on(&self) -> Result<(), MachineError> {
        let mut running = self.running.lock().await;
        if let Some(machine) = running.as_mut()
            && machine.is_alive()
        {
            return Ok(());
        }
        *running = None;
        *running = Some(self.start().await?);
        Ok(())
    }

    /// Ends the process by SIGKILL and waits until nothing of it is left.
    pub async fn power_off(&self) -> Result<(), MachineError> {
        let mut running = self.running.lock().await;
        if let Some(machine) = running.as_mut() {
            let killed = machine.process.kill().await;
            killed.map_err(|source| self.failed("end QEMU", source))?;
        }
        *running = None;
        Ok(())
    }

    /// On while the process lives, whatever its guest does.
    pub async fn state(&self) -> PowerState {
        let mut running = self.running.lock().await;
        match running.as_mut().is_some_and(Running::is_alive) {
            true => PowerState::On,
            false => PowerState::Off,
        }
    }

    /// Presses the reset button: the guest starts over, memory is kept as on a real machine.
    #[allow(dead_code, reason = "no job asks for it yet: drivers switch outlets")]
    pub async fn reset(&self) -> Result<(), MachineError> {
        self.ask("system_reset").await.map(drop)
    }

    /// What QEMU says of its guest: `running`, `shutdown` (powered off by itself, outlet still on), `internal-error`, …
    #[allow(dead_code, reason = "no job asks for it yet: drivers switch outlets")]
    pub async fn guest_status(&self) -> Result<String, MachineError> {
        let answer = self.ask("query-status").await?;
        Ok(answer.get("status").and_then(Value::as_str).unwrap_or("unknown").to_owned())
    }

    /// Opens the serial line, over all boots to come; `None` while it is open elsewhere.
    pub fn open_console(&self) -> Option<MachineConsole> {
        let permit = Arc::clone(&self.console_slot).try_acquire_owned().ok()?;
        let (ours, theirs) = tokio::io::duplex(CONSOLE_BUFFER_BYTES);
        self.consoles.try_send(theirs).ok()?;
        Some(MachineConsole { stream: ours, _permit: permit })
    }

    /// Spawns QEMU and speaks with it until its guest is about to run.
    async fn start(&self) -> Result<Running, MachineError> {
        let netdev = self.netdev().await.map_err(|error| self.failed("plug in its cable", io::Error::other(error)))?;
        let command = self.command(&netdev).await?;
        tracing::debug!(dut = %self.name, ?command, "starting QEMU");
        let mut process = self.network.spawn(command).map_err(|source| self.failed("start QEMU", source))?;
        let connected = async {
            let (stream, _) = self.control.accept().await?;
            Control::greet(stream, self.name.clone()).await
        };
        let outcome = tokio::select! {
            status = process.wait() => return Err(self.ended(status)),
            outcome = tokio::time::timeout(START_TIMEOUT, connected) => outcome,
        };
        match outcome {
            Ok(Ok(control)) => Ok(Running { process, control }),
            Ok(Err(error)) => match process.try_wait() {
                Ok(Some(status)) => Err(self.ended(Ok(status))),
                _ => Err(self.failed("speak with QEMU", error)),
            },
            Err(_) => Err(self.failed("speak with QEMU", io::Error::from(io::ErrorKind::TimedOut))),
        }
    }

    /// The whole command, with its output going to a file for [`Self::ended`].
    async fn command(&self, netdev: &[u8]) -> Result<Command, MachineError> {
        let missing = |what| MachineError::Missing { machine: self.name.clone(), what };
        let cache = install::cache_folder().map_err(|error| self.failed("find the cache", io::Error::other(error)))?;
        let installed = install::look(&cache);
        let (qemu, u_boot) = match (self.config.firmware, installed.u_boot) {
            (Firmware::UBootArm64, Some(u_boot)) => (u_boot.qemu, Some(u_boot.image)),
            (Firmware::UBootArm64, None) => return Err(missing("U-Boot, or QEMU for ARM")),
            _ => (installed.qemu.ok_or_else(|| missing("QEMU"))?, None),
        };
        let firmware = match (self.config.firmware, installed.ovmf) {
            (Firmware::Bios | Firmware::UBootArm64, _) => None,
            (_, Some(ovmf)) => {
                Some(self.own_variables(ovmf).map_err(|source| self.failed("copy OVMF's variables", source))?)
            }
            (_, None) => return Err(missing("OVMF")),
        };
        let accelerator = match u_boot {
            // Another processor than the host's, as a rule.
            Some(_) => Accelerator::Tcg,
            None => accelerator(&qemu, &cache).await,
        };
        let launch = Launch {
            config: &self.config,
            name: &self.name,
            mac: &self.mac,
            uuid: &self.uuid,
            netdev,
            accelerator,
            folder: &self.folder,
            ovmf: firmware.as_ref(),
            u_boot: u_boot.as_deref(),
        };
        let output =
            fs::File::create(self.folder.join("output")).map_err(|source| self.failed("make a file", source))?;
        let errors = output.try_clone().map_err(|source| self.failed("make a file", source))?;
        let mut command = Command::new(qemu);
        command
            .args(launch.arguments())
            .args(&self.extra_arguments)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .kill_on_drop(true);
        Ok(command)
    }

    /// This machine's copy of the variables, made once: they outlive its boots as a flash chip does.
    fn own_variables(&self, ovmf: Ovmf) -> io::Result<Ovmf> {
        let copy = self.folder.join("variables.fd");
        if !copy.exists() {
            fs::write(&copy, fs::read(&ovmf.variables)?)?;
        }
        Ok(Ovmf { code: ovmf.code, variables: copy })
    }

    /// What QEMU plugs its card into: a tap, or where none may be made a socket of [`Cable`].
    async fn netdev(&self) -> Result<Vec<u8>, NetworkError> {
        // A link's name has at most 15 bytes; the MAC is what tells machines apart.
        let [tap, far] = ["tap", "far"].map(|end| format!("{end}{}", hexadecimal(&self.mac)));
        let cable = self.cable.get_or_try_init(async || match self.network.tap(&tap) {
            Err(error @ NetworkError::Tun { .. }) => {
                tracing::info!(dut = %self.name, "no tap, so a cable of our own, which is slower: {error}");
                Cable::plug(&self.network, &tap, &far, &self.folder.join("cable")).map(Some)
            }
            made => made.map(|()| None),
        });
        Ok(match cable.await? {
            None => format!("tap,id=n0,ifname={tap},script=no,downscript=no").into_bytes(),
            Some(cable) => {
                [b"stream,id=n0,server=off,addr.type=unix,addr.path=", &*escaped_path(cable.path())].concat()
            }
        })
    }

    async fn ask(&self, command: &str) -> Result<Value, MachineError> {
        let mut running = self.running.lock().await;
        let off = || MachineError::Off(self.name.clone());
        let machine = running.as_mut().ok_or_else(off)?;
        if !machine.is_alive() {
            return Err(off());
        }
        machine.control.execute(command).await.map_err(|reason| MachineError::Control {
            machine: self.name.clone(),
            command: command.to_owned(),
            reason: reason.to_string(),
        })
    }

    fn ended(&self, status: io::Result<std::process::ExitStatus>) -> MachineError {
        let output = fs::read(self.folder.join("output")).unwrap_or_default();
        MachineError::Ended {
            machine: self.name.clone(),
            status: status.map_or_else(|error| error.to_string(), |status| status.to_string()),
            output: String::from_utf8_lossy(&output).trim().to_owned(),
        }
    }

    fn failed(&self, action: &str, source: io::Error) -> MachineError {
        MachineError::System { machine: self.name.clone(), action: action.to_owned(), source }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The process dies with its handle (`kill_on_drop`), a moment after.
        self.serial_pump.abort();
        // In vain when the whole runtime folder has gone already.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Running {
    fn is_alive(&mut self) -> bool {
        matches!(self.process.try_wait(), Ok(None))
    }
}

/// A MAC without its colons.
fn hexadecimal(mac: &str) -> String {
    mac.replace(':', "")
}

/// A listener on a fresh socket, or why its path will not do.
pub(super) fn listen_on(path: &Path) -> io::Result<UnixListener> {
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        let why = format!(
            "the path {} is longer than {SOCKET_PATH_BYTES_MAX} bytes; set XDG_RUNTIME_DIR to a shorter one",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

/// Everything that QEMU's command line is made of.
struct Launch<'a> {
    config: &'a QemuConfig,
    name: &'a str,
    mac: &'a str,
    uuid: &'a str,
    netdev: &'a [u8],
    accelerator: Accelerator,
    folder: &'a Path,
    ovmf: Option<&'a Ovmf>,
    u_boot: Option<&'a Path>,
}

impl Launch<'_> {
    fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Arguments::default();
        arguments.pair("-name", &[b"guest=", &escaped(self.name.as_bytes())]);
        arguments.words(&["-nodefaults", "-no-user-config", "-display", "none"]);
        self.add_board(&mut arguments);
        // A guest's reboot starts over in the same process; its power-off leaves the process, so the outlet is still on.
        arguments.words(&["-action", "shutdown=pause,reboot=reset,panic=pause"]);
        self.add_sockets(&mut arguments);
        arguments.pair("-netdev", &[self.netdev]);
        let card: &[u8] = match self.config.firmware {
            Firmware::Bios | Firmware::UefiIpxe => b"",
            // An empty ROM: what is left is OVMF's own PXE or HTTP client.
            Firmware::UefiPxe | Firmware::UefiHttp => b",romfile=",
            // U-Boot reads another MAC than this from a card that can also be a legacy one (seen with 2023.01: 52:52:52:52:52:52).
            Firmware::UBootArm64 => b",romfile=,disable-legacy=on",
        };
        arguments.pair("-device", &[b"virtio-net-pci,netdev=n0,bootindex=1,mac=", self.mac.as_bytes(), card]);
        arguments.list
    }

    fn add_board(&self, arguments: &mut Arguments) {
        // Without graphics SeaBIOS talks on the serial line, and iPXE with it: a failed boot can be read.
        arguments.words(match self.config.firmware {
            Firmware::Bios => &["-machine", "q35,graphics=off"],
            Firmware::UefiIpxe | Firmware::UefiPxe => &["-machine", "q35"],
            // OVMF tries PXE first, for minutes where it is not answered (OvmfPkg's NetworkPkg switches).
            Firmware::UefiHttp => &[
                "-machine",
                "q35",
                "-fw_cfg",
                "name=opt/org.tianocore/IPv4PXESupport,string=n",
                "-fw_cfg",
                "name=opt/org.tianocore/IPv6PXESupport,string=n",
            ],
            Firmware::UBootArm64 => &["-machine", "virt", "-cpu", "cortex-a57"],
        });
        arguments.words(match self.accelerator {
            Accelerator::Kvm => &["-accel", "kvm", "-cpu", "host"],
            // 64 MiB of translated code instead of a fraction of the host's memory: 50 MB less per machine, no slower.
            Accelerator::Tcg => &["-accel", "tcg,tb-size=64"],
        });
        arguments.pair("-m", &[self.config.memory_mib.to_string().as_bytes()]);
        arguments.pair("-uuid", &[self.uuid.as_bytes()]);
        if let Some(ovmf) = self.ovmf {
            let (code, variables) = (escaped_path(&ovmf.code), escaped_path(&ovmf.variables));
            arguments.pair("-drive", &[b"if=pflash,format=raw,readonly=on,file=", &code]);
            arguments.pair("-drive", &[b"if=pflash,format=raw,file=", &variables]);
        }
        if let Some(image) = self.u_boot {
            arguments.pair("-bios", &[image.as_os_str().as_bytes()]);
        }
    }

    /// QEMU connects to both before the guest runs. No `reconnect`: it would connect in the background, and our side never hangs up.
    fn add_sockets(&self, arguments: &mut Arguments) {
        for socket in ["serial", "control"] {
            let path = escaped_path(&self.folder.join(socket));
            arguments.pair("-chardev", &[b"socket,server=off,id=", socket.as_bytes(), b",path=", &path]);
        }
        arguments.words(&["-serial", "chardev:serial", "-mon", "chardev=control,mode=control"]);
    }
}

/// A command line that grows.
#[derive(Default)]
struct Arguments {
    list: Vec<OsString>,
}

impl Arguments {
    fn words(&mut self, words: &[&str]) {
        self.list.extend(words.iter().map(OsString::from));
    }

    fn pair(&mut self, option: &str, value: &[&[u8]]) {
        self.words(&[option]);
        self.list.push(std::ffi::OsStr::from_bytes(&value.concat()).to_owned());
    }
}

/// QEMU takes a comma for the end of a value unless it is doubled.
fn escaped(value: &[u8]) -> Vec<u8> {
    value.iter().flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b',' { 2 } else { 1 })).collect()
}

fn escaped_path(path: &Path) -> Vec<u8> {
    escaped(path.as_os_str().as_bytes())
}

/// The control socket: one answer for each command, events in between.
struct Control {
    writer: OwnedWriteHalf,
    answers: mpsc::Receiver<Value>,
    reader: JoinHandle<()>,
}

impl Control {
    /// Takes QEMU's greeting and leaves the negotiation of capabilities, as the protocol wants it before anything else.
    async fn greet(stream: UnixStream, machine: String) -> io::Result<Self> {
        let (reader, writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let greeting = read_message(&mut reader).await?;
        if greeting.get("QMP").is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("not a greeting of QMP: {greeting}")));
        }
        // One: a command is sent when the last is answered.
        let (sender, answers) = mpsc::channel(1);
        let reader = tokio::spawn(read_messages(reader, sender, machine));
        let mut control = Control { writer, answers, reader };
        control.execute("qmp_capabilities").await?;
        Ok(control)
    }

    async fn execute(&mut self, command: &str) -> io::Result<Value> {
        let line = format!("{}\n", json!({ "execute": command }));
        self.writer.write_all(line.as_bytes()).await?;
        let answer = tokio::time::timeout(CONTROL_TIMEOUT, self.answers.recv()).await;
        let mut answer = answer?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        match answer.get("error") {
            Some(error) => Err(io::Error::other(error.to_string())),
            None => Ok(answer.get_mut("return").map(Value::take).unwrap_or_default()),
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Reads to the end: events go to the log, answers to whoever asked.
async fn read_messages(mut reader: BufReader<OwnedReadHalf>, answers: mpsc::Sender<Value>, machine: String) {
    while let Ok(message) = read_message(&mut reader).await {
        match message.get("event").and_then(serde_json::Value::as_str) {
            Some(event) => {
                let data = message.get("data").map(ToString::to_string).unwrap_or_default();
                tracing::debug!(dut = %machine, event, data, "QEMU");
            }
            None => {
                if answers.send(message).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn read_message(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Value> {
    let mut line = String::new();
    if reader.read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_str(&line).map_err(io::Error::from)
}

/// The serial line of a machine, over all its boots. Dropping it lets another be opened.
pub struct MachineConsole {
    stream: DuplexStream,
    _permit: OwnedSemaphorePermit,
}

impl AsyncRead for MachineConsole {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for MachineConsole {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Carries bytes between QEMUs, one after the other, and consoles, one after the other, until the machine is dropped. Either side may be
/// absent: without a console what the guest says is dropped, without a guest what is typed is. Neither direction waits for the other.
async fn pump_serial(listener: UnixListener, mut consoles: mpsc::Receiver<DuplexStream>) {
    let mut pump = Pump::default();
    let (mut said, mut typed) = ([0; CHUNK_BYTES], [0; CHUNK_BYTES]);
    loop {
        let Pump { guest_in, guest_out, console_in, console_out, to_console, to_guest } = &mut pump;
        let (has_guest, is_console_idle, is_guest_idle) =
            (guest_in.is_some(), to_console.is_empty(), to_guest.is_empty());
        // Every branch is cancel-safe: a read or write that loses the race has moved no byte. In this order: a console that was opened
        // before power-on is plugged in before the guest's first byte is read, and what is typed gets through a guest's flood.
        tokio::select! {
            biased;
            opened = consoles.recv() => match opened {
                Some(console) => pump.plug_console(console),
                None => return,
            },
            written = write_some(guest_out, to_guest), if !is_guest_idle => pump.guest_took(written),
            read = read_some(console_in, &mut typed), if is_guest_idle => pump.console_typed(read, &typed),
            written = write_some(console_out, to_console), if !is_console_idle => pump.console_took(written),
            read = read_some(guest_in, &mut said), if is_console_idle => pump.guest_said(read, &said),
            connection = listener.accept(), if !has_guest => pump.plug_guest(connection).await,
        }
    }
}

/// The pump's ends and what is under way between them: at most a chunk in each direction.
#[derive(Default)]
struct Pump {
    guest_in: Option<OwnedReadHalf>,
    guest_out: Option<OwnedWriteHalf>,
    console_in: Option<tokio::io::ReadHalf<DuplexStream>>,
    console_out: Option<tokio::io::WriteHalf<DuplexStream>>,
    to_console: Vec<u8>,
    to_guest: Vec<u8>,
}

impl Pump {
    async fn plug_guest(&mut self, connection: io::Result<(UnixStream, tokio::net::unix::SocketAddr)>) {
        match connection {
            Ok((stream, _)) => {
                let (reader, writer) = stream.into_split();
                (self.guest_in, self.guest_out) = (Some(reader), Some(writer));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a virtual DUT's serial line");
                // Out of file descriptors, most likely; a second, so that the log stays readable.
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    fn plug_console(&mut self, console: DuplexStream) {
        let (reader, writer) = tokio::io::split(console);
        (self.console_in, self.console_out) = (Some(reader), Some(writer));
        self.to_console.clear();
    }

    fn guest_said(&mut self, read: io::Result<usize>, said: &[u8]) {
        match read {
            Ok(length @ 1..) if self.console_out.is_some() => self.to_console.extend_from_slice(&said[..length]),
            Ok(1..) => {}
            Ok(0) | Err(_) => {
                (self.guest_in, self.guest_out) = (None, None);
                self.to_guest.clear();
            }
        }
    }

    fn console_typed(&mut self, read: io::Result<usize>, typed: &[u8]) {
        match read {
            Ok(length @ 1..) if self.guest_out.is_some() => self.to_guest.extend_from_slice(&typed[..length]),
            Ok(1..) => {}
            Ok(0) | Err(_) => self.unplug_console(),
        }
    }

    fn console_took(&mut self, written: io::Result<usize>) {
        match written {
            Ok(length @ 1..) => drop(self.to_console.drain(..length)),
            Ok(0) | Err(_) => self.unplug_console(),
        }
    }

    fn guest_took(&mut self, written: io::Result<usize>) {
        match written {
            Ok(length @ 1..) => drop(self.to_guest.drain(..length)),
            // The reading half learns of it and unplugs.
            Ok(0) | Err(_) => self.to_guest.clear(),
        }
    }

    fn unplug_console(&mut self) {
        (self.console_in, self.console_out) = (None, None);
        self.to_console.clear();
    }
}

/// Waits for ever where there is nothing to read from.
async fn read_some(from: &mut Option<impl AsyncRead + Unpin>, buffer: &mut [u8]) -> io::Result<usize> {
    match from {
        Some(from) => from.read(buffer).await,
        None => std::future::pending().await,
    }
}

/// Waits for ever where there is nothing to write to.
async fn write_some(to: &mut Option<impl AsyncWrite + Unpin>, bytes: &[u8]) -> io::Result<usize> {
    match to {
        Some(to) => to.write(bytes).await,
        None => std::future::pending().await,
    }
}

/// What runs guests here; found out once per boot of the host, and remembered in `cache`.
pub async fn accelerator(qemu: &Path, cache: &Path) -> Accelerator {
    static FOUND: OnceCell<Accelerator> = OnceCell::const_new();
    *FOUND.get_or_init(|| find_accelerator(qemu, cache)).await
}

async fn find_accelerator(qemu: &Path, cache: &Path) -> Accelerator {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let device = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").map(drop);
    let memory = cache.join("kvm-probe");
    let remembered = fs::read_to_string(&memory).unwrap_or_default();
    match judge_kvm(device, &processor, &remembered, boot.trim()) {
        KvmEvidence::Unusable => Accelerator::Tcg,
        KvmEvidence::Known(accelerator) => accelerator,
        KvmEvidence::ToProbe => {
            let accelerator = if probe_kvm(qemu).await { Accelerator::Kvm } else { Accelerator::Tcg };
            // Remembering saves the next process four seconds at most; where it cannot be written, it probes again.
            let _ = fs::create_dir_all(cache);
            let _ = fs::write(memory, kvm_memory(boot.trim(), accelerator));
            accelerator
        }
    }
}

/// What is known of KVM before anything is run.
#[derive(Debug, PartialEq, Eq)]
enum KvmEvidence {
    /// No device for us, or a processor that does not virtualise. Some hosts have the device all the same (kvm_pvm): a guest's firmware
    /// takes minutes on them and dies.
    Unusable,
    /// Probed since the host was started.
    Known(Accelerator),
    /// Only a guest can tell.
    ToProbe,
}

fn judge_kvm(device: io::Result<()>, processor: &str, remembered: &str, boot: &str) -> KvmEvidence {
    let virtualises = processor
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|flags| flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
    if device.is_err() || !virtualises {
        return KvmEvidence::Unusable;
    }
    [Accelerator::Kvm, Accelerator::Tcg]
        .into_iter()
        .find(|accelerator| remembered == kvm_memory(boot, *accelerator))
        .map_or(KvmEvidence::ToProbe, KvmEvidence::Known)
}

/// The remembered line: for which boot of the host, and what.
fn kvm_memory(boot: &str, accelerator: Accelerator) -> String {
    let found = match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg",
    };
    format!("{boot} {found}\n")
}

/// Whether a guest under KVM really runs: firmware, a payload of ours, and its last words, in time.
async fn probe_kvm(qemu: &Path) -> bool {
    let Ok(folder) = tempfile::tempdir() else { return false };
    let payload = folder.path().join("tiny.elf");
    if fs::write(&payload, tiny::ELF).is_err() {
        return false;
    }
    let mut command = Command::new(qemu);
    command.args(["-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "32", "-nodefaults", "-no-user-config"]);
    command.args(["-display", "none", "-no-reboot", "-serial", "stdio", "-kernel"]).arg(payload);
    command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(KVM_PROBE_TIMEOUT, command.output()).await;
    output.is_ok_and(|output| {
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(tiny::LAST_WORDS))
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn launch(firmware: Firmware, accelerator: Accelerator) -> String {
        let ovmf = Ovmf { code: "/fw/CODE.fd".into(), variables: "/run/a,b/variables.fd".into() };
        let launch = Launch {
            config: &QemuConfig { firmware, memory_mib: 256 },
            name: "demo, one",
            mac: "52:54:00:77:00:01",
            uuid: "00000000-0000-4000-8000-525400770001",
            netdev: b"tap,id=n0,ifname=tap525400770001,script=no,downscript=no",
            accelerator,
            folder: Path::new("/run/a,b"),
            ovmf: (!matches!(firmware, Firmware::Bios | Firmware::UBootArm64)).then_some(&ovmf),
            u_boot: (firmware == Firmware::UBootArm64).then_some(Path::new("/fw/u-boot.bin")),
        };
        let words: Vec<String> = launch.arguments().into_iter().map(|word| word.into_string().unwrap()).collect();
        words.join(" ")
    }

    #[test]
    fn a_runtime_folder_that_nobody_holds_is_removed_by_the_next_one() {
        let home = tempfile::tempdir().unwrap();
        let held = RuntimeFolder::within(home.path()).unwrap();
        let abandoned = home.path().join("wharf-run-dead");
        fs::create_dir(&abandoned).unwrap();
        fs::write(abandoned.join("lock"), "").unwrap();
        let _next = RuntimeFolder::within(home.path()).unwrap();
        assert!(held.path().exists() && !abandoned.exists());
    }

    #[test]
    fn a_bios_machine_talks_on_its_serial_line_from_the_firmware_on() {
        assert_eq!(
            launch(Firmware::Bios, Accelerator::Tcg),
            "-name guest=demo,, one -nodefaults -no-user-config -display none -machine q35,graphics=off -accel tcg,tb-size=64 \
             -m 256 -uuid 00000000-0000-4000-8000-525400770001 -action shutdown=pause,reboot=reset,panic=pause \
             -chardev socket,server=off,id=serial,path=/run/a,,b/serial -chardev socket,server=off,id=control,path=/run/a,,b/control \
             -serial chardev:serial -mon chardev=control,mode=control \
             -netdev tap,id=n0,ifname=tap525400770001,script=no,downscript=no \
             -device virtio-net-pci,netdev=n0,bootindex=1,mac=52:54:00:77:00:01"
        );
    }

    #[test]
    fn a_uefi_machine_has_its_own_variables_and_an_empty_rom_when_its_firmware_is_to_do_pxe() {
        let ipxe = launch(Firmware::UefiIpxe, Accelerator::Kvm);
        assert!(ipxe.contains("-machine q35 -accel kvm -cpu host -m 256"), "{ipxe}");
        assert!(
            ipxe.contains(
                "-drive if=pflash,format=raw,readonly=on,file=/fw/CODE.fd \
                 -drive if=pflash,format=raw,file=/run/a,,b/variables.fd"
            ),
            "{ipxe}"
        );
        assert!(ipxe.ends_with("mac=52:54:00:77:00:01"), "{ipxe}");
        assert!(launch(Firmware::UefiPxe, Accelerator::Tcg).ends_with("mac=52:54:00:77:00:01,romfile="));
    }

    #[test]
    fn a_machine_with_u_boot_is_an_arm64_one_without_a_boot_rom() {
        let words = launch(Firmware::UBootArm64, Accelerator::Tcg);
        assert!(words.contains("-machine virt -cpu cortex-a57 -accel tcg,tb-size=64 -m 256"), "{words}");
        assert!(words.contains(" -bios /fw/u-boot.bin ") && !words.contains("pflash"), "{words}");
        assert!(words.ends_with("mac=52:54:00:77:00:01,romfile=,disable-legacy=on"), "{words}");
    }

    #[test]
    fn a_machine_that_boots_by_http_is_told_to_leave_pxe_alone() {
        let words = launch(Firmware::UefiHttp, Accelerator::Tcg);
        assert!(words.contains(
            "name=opt/org.tianocore/IPv4PXESupport,string=n -fw_cfg name=opt/org.tianocore/IPv6PXESupport,string=n"
        ));
        assert!(words.contains("if=pflash") && words.ends_with(",romfile="), "{words}");
    }

    #[test]
    fn kvm_is_believed_only_with_a_processor_for_it_and_a_probe_since_the_hosts_start() {
        let (intel, plain) = ("model name : x\nflags\t\t: fpu vmx sse\n", "flags\t\t: fpu sse\nbugs : svm\n");
        let refused = || Err(io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(judge_kvm(refused(), intel, "", "b1"), KvmEvidence::Unusable);
        assert_eq!(judge_kvm(Ok(()), plain, "b1 kvm\n", "b1"), KvmEvidence::Unusable);
        assert_eq!(judge_kvm(Ok(()), intel, "", "b1"), KvmEvidence::ToProbe);
        assert_eq!(judge_kvm(Ok(()), intel, "b0 kvm\n", "b1"), KvmEvidence::ToProbe);
        assert_eq!(judge_kvm(Ok(()), intel, "b1 kvm\n", "b1"), KvmEvidence::Known(Accelerator::Kvm));
        assert_eq!(judge_kvm(Ok(()), intel, "b1 tcg\n", "b1"), KvmEvidence::Known(Accelerator::Tcg));
    }

    #[tokio::test]
    async fn a_socket_path_that_is_too_long_is_refused_with_the_way_out() {
        let error = listen_on(&Path::new("/tmp").join("x".repeat(110))).unwrap_err().to_string();
        assert!(error.ends_with("is longer than 107 bytes; set XDG_RUNTIME_DIR to a shorter one"), "{error}");
    }

    /// A machine that boots the payload with `words`, without a network; the folder is to be kept. `None` where there is no QEMU or no
    /// network may be made; says so.
    fn machine(words: &str, uuid: &str) -> Option<(Machine, RuntimeFolder)> {
        let folder = RuntimeFolder::new().unwrap();
        if install::look(folder.path()).qemu.is_none() {
            eprintln!("SKIPPED: no QEMU");
            return None;
        }
        let network = match PrivateNetwork::create(Ipv4Addr::new(10, 77, 0, 1), 24) {
            Err(error @ NetworkError::Refused { .. }) => {
                eprintln!("SKIPPED: {error}");
                return None;
            }
            network => Arc::new(network.unwrap()),
        };
        let config = QemuConfig { firmware: Firmware::Bios, memory_mib: 16 };
        let mut machine = Machine::new(config, "test", "52:54:00:77:00:01", uuid, network, folder.path()).unwrap();
        let payload = folder.path().join("tiny.elf");
        fs::write(&payload, tiny::ELF).unwrap();
        machine.extra_arguments = vec!["-kernel".into(), payload.into(), "-append".into(), words.into()];
        Some((machine, folder))
    }

    const UUID: &str = "00000000-0000-4000-8000-525400770001";

    /// Reads on until the console has said `text`.
    async fn hear(console: &mut MachineConsole, text: &str) -> String {
        let mut heard = String::new();
        let listening = async {
            let mut chunk = [0; 512];
            while !heard.contains(text) {
                let length = console.read(&mut chunk).await.unwrap();
                assert_ne!(length, 0, "the console ended after {heard:?}");
                heard.push_str(&String::from_utf8_lossy(&chunk[..length]));
            }
        };
        let outcome = tokio::time::timeout(PATIENCE, listening).await;
        assert!(outcome.is_ok(), "no {text:?} in {heard:?}");
        heard
    }

    #[tokio::test]
    async fn a_machine_boots_hears_is_cut_off_and_boots_again_on_one_console() {
        let Some((machine, _folder)) = machine("hold", UUID) else { return };
        let mut console = machine.open_console().unwrap();
        assert_eq!(machine.state().await, PowerState::Off);
        machine.power_on().await.unwrap();
        machine.power_on().await.unwrap();
        let heard = hear(&mut console, "TINY: ready\r\n").await;
        assert!(heard.contains("SeaBIOS (version"), "the first bytes are there: {heard:?}");
        console.write_all(b"hello\r").await.unwrap();
        hear(&mut console, "TINY: got hello\r\n").await;
        assert_eq!(machine.state().await, PowerState::On);
        assert_eq!(machine.guest_status().await.unwrap(), "running");
        machine.power_off().await.unwrap();
        machine.power_off().await.unwrap();
        assert_eq!(machine.state().await, PowerState::Off);
        // What is typed while there is no power is lost, as on a real line.
        console.write_all(b"nobody\r").await.unwrap();
        machine.power_on().await.unwrap();
        hear(&mut console, "TINY: ready\r\n").await;
        console.write_all(b"again\r").await.unwrap();
        let heard = hear(&mut console, "TINY: got again\r\n").await;
        assert!(!heard.contains("nobody"), "{heard:?}");
    }

    #[tokio::test]
    async fn a_guest_that_powers_itself_off_leaves_the_outlet_on() {
        let Some((machine, _folder)) = machine("print=[_1.0]_bye", UUID) else { return };
        let mut console = machine.open_console().unwrap();
        machine.power_on().await.unwrap();
        hear(&mut console, "[ 1.0] bye\r\nTINY: power off\r\n").await;
        let down = async { while machine.guest_status().await.unwrap() != "shutdown" {} };
        tokio::time::timeout(PATIENCE, down).await.unwrap();
        assert_eq!(machine.state().await, PowerState::On);
    }

    #[tokio::test]
    async fn a_guest_that_reboots_and_a_reset_both_start_over() {
        let Some((machine, _folder)) = machine("hold end=reset", UUID) else { return };
        let mut console = machine.open_console().unwrap();
        machine.power_on().await.unwrap();
        hear(&mut console, "TINY: ready\r\n").await;
        console.write_all(b"go\r").await.unwrap();
        hear(&mut console, "TINY: reset\r\n").await;
        hear(&mut console, "TINY: ready\r\n").await;
        machine.reset().await.unwrap();
        hear(&mut console, "TINY: ready\r\n").await;
    }

    #[tokio::test]
    async fn a_machine_that_cannot_start_says_what_qemu_said() {
        let Some((machine, _folder)) = machine("", "nonsense") else { return };
        let error = machine.power_on().await.unwrap_err().to_string();
        assert!(error.starts_with("virtual DUT `test`: QEMU ended at once with exit status: 1: "), "{error}");
        assert!(error.contains("uuid"), "{error}");
        assert_eq!(machine.state().await, PowerState::Off);
        let error = machine.reset().await.unwrap_err().to_string();
        assert_eq!(error, "virtual DUT `test` is switched off; switch its outlet on first");
    }

    #[tokio::test]
    async fn a_process_that_is_killed_from_outside_reads_as_off_and_can_be_switched_on() {
        let Some((machine, _folder)) = machine("hold", UUID) else { return };
        machine.power_on().await.unwrap();
        let process = machine.running.lock().await.as_ref().unwrap().process.id().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(process as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
        let gone = async {
            while machine.state().await == PowerState::On {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.unwrap();
        let mut console = machine.open_console().unwrap();
        machine.power_on().await.unwrap();
        hear(&mut console, "TINY: ready\r\n").await;
    }

    #[tokio::test]
    async fn the_console_is_open_once_and_again_after_it_was_closed() {
        let Some((machine, folder)) = machine("hold", UUID) else { return };
        let mut console = machine.open_console().unwrap();
        machine.power_on().await.unwrap();
        hear(&mut console, "TINY: ready\r\n").await;
        drop(console);
        for _ in 0..20 {
            let console = machine.open_console().unwrap();
            assert!(machine.open_console().is_none());
            drop(console);
            // The pump may not have looked yet; it must have before its queue of eight is full.
            tokio::task::yield_now().await;
        }
        let mut console = machine.open_console().unwrap();
        console.write_all(b"still there\r").await.unwrap();
        hear(&mut console, "TINY: got still there\r\n").await;
        let own = machine.folder.clone();
        drop(machine);
        assert!(!own.exists() && folder.path().exists());
        assert_eq!(console.read(&mut [0; 8]).await.unwrap(), 0, "the end of the machine is the end of its console");
    }
}
