//! A serial device of this host: a UART, a USB adapter.
//!
//! ```text
//!  open ─► which device is it now? ─► nobody else's lock? ─► opened, set, for us alone ─► our lock file ─► stream
//!             by path, or by the adapter's serial number         └ flock, TIOCEXCL           └ gone with the stream
//!  unplugged ─► the stream ends with an error ─► whoever holds it opens again: the adapter may have another name by then
//! ```
//! The package serialport finds, opens and sets the device; bytes go through a descriptor of our own (device.rs), because its reads lose what is
//! pending at a hang-up, and its writes block for as long as nobody takes them (both seen with 4.10.1).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use serialport::{SerialPort, SerialPortInfo, SerialPortType, TTYPort, UsbPortInfo};

use super::device::Device;
use super::serial::{FlowControl, Level, Order, Parity, Settings};
use super::stream::{Claim, Claims, Held, named};
use super::uucp_lock::{self, Lock};
use super::wires::{CARRIER, CLEAR_TO_SEND, DATA_SET_READY, Errors, RING, Wires};
use super::{Console, ConsoleStream};
use crate::blueprint::driver::{self, Mistake};

/// A serial device of this host.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("x-exactly-one" = ["path", "usb_serial"]))]
pub struct Keys {
    /// The device; a link below `/dev/serial/by-path` is the same socket after each boot of the host.
    #[schemars(extend("x-example" = "path: /dev/serial/by-path/pci-0000:00:14.0-usb-0:3:1.0-port0"))]
    path: Option<String>,
    /// The serial number of a USB adapter, wherever it is plugged in.
    usb_serial: Option<String>,
    /// Which line of an adapter with several: its USB interface's number.
    interface: Option<u8>,
    #[serde(flatten)]
    settings: Settings,
}

impl driver::Keys<dyn Console> for Keys {
    fn build(self, _: &driver::Context<'_>) -> Result<Arc<dyn Console>, Vec<Mistake>> {
        let which = match (self.path, self.usb_serial) {
            (Some(path), _) if self.interface.is_some() => {
                let what = format!("`{path}` is one line already");
                return Err(vec![Mistake::new("interface", what, "it is for `usb_serial`; remove it")]);
            }
            (Some(path), _) if !Path::new(&path).is_absolute() => {
                let what = format!("`{path}` is no device's path");
                return Err(vec![Mistake::new("path", what, "write all of it: `/dev/ttyUSB0`")]);
            }
            (Some(path), _) => Which::Path(path),
            (None, Some(serial)) => Which::Usb { serial, interface: self.interface },
            (None, None) => {
                let what = "which device it is, is not said";
                return Err(vec![Mistake::new("", what, "write its `path`, or `usb_serial`")]);
            }
        };
        Ok(Arc::new(TtyConsole::new(which, self.settings, uucp_lock::FOLDER.into())))
    }
}

/// How the device is found, each time that it is opened.
#[derive(Debug)]
enum Which {
    Path(String),
    Usb { serial: String, interface: Option<u8> },
}

/// Reaches a console over a serial device.
struct TtyConsole {
    which: Which,
    settings: Settings,
    locks: PathBuf,
    claims: Claims,
    /// While a stream of it lives.
    port: Arc<Mutex<Option<TTYPort>>>,
}

/// What an open device keeps with it until it is closed.
type Kept = (Open, Option<Lock>, Claim);

impl TtyConsole {
    fn new(which: Which, settings: Settings, locks: PathBuf) -> Self {
        TtyConsole { which, settings, locks, claims: Claims::default(), port: Arc::default() }
    }

    fn name(&self) -> String {
        match &self.which {
            Which::Path(path) => path.clone(),
            Which::Usb { serial, interface: None } => format!("USB adapter {serial}"),
            Which::Usb { serial, interface: Some(interface) } => format!("USB adapter {serial}, interface {interface}"),
        }
    }

    fn open_now(&self) -> io::Result<Held<Device, Kept>> {
        let claim = self.claims.take(&self.name())?;
        let device = match &self.which {
            Which::Path(path) => PathBuf::from(path),
            Which::Usb { serial, interface } => find(&ports()?, serial, *interface).map_err(io::Error::other)?,
        };
        // Locks are called after the device itself, not after a link to it.
        let failed = |error: io::Error| named(&self.name(), error);
        let device = device.canonicalize().map_err(failed)?;
        uucp_lock::look(&self.locks, &device)?;
        let port = open(&device, &self.settings).map_err(failed)?;
        let lock = Lock::take(&self.locks, &device)?;
        // SAFETY: the descriptor is the port's, which lives until the end of this block.
        let file = unsafe { BorrowedFd::borrow_raw(port.as_raw_fd()) }.try_clone_to_owned()?;
        let open = Open(Arc::clone(&self.port));
        *open.lock() = Some(port);
        // The device is free before its lock says so.
        Ok(Held::new(Device::new(file)?, self.name(), (open, lock, claim)))
    }
}

impl Console for TtyConsole {
    fn open(&self) -> BoxFuture<'_, io::Result<Box<dyn ConsoleStream>>> {
        async { Ok(Box::new(self.open_now()?) as Box<dyn ConsoleStream>) }.boxed()
    }

    fn settings(&self) -> Option<Settings> {
        Some(self.settings)
    }

    fn wires(&self) -> Option<Wires> {
        let port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        wires(port.as_ref()?)
    }

    fn tell(&self, order: Order) -> io::Result<()> {
        let mut port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        let not_open = || io::Error::new(io::ErrorKind::NotConnected, format!("{} is not open", self.name()));
        obey(port.as_mut().ok_or_else(not_open)?, order).map_err(|error| named(&self.name(), error.into()))
    }
}

/// The port that orders are for; closed when dropped.
struct Open(Arc<Mutex<Option<TTYPort>>>);

impl Open {
    fn lock(&self) -> MutexGuard<'_, Option<TTYPort>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        *self.lock() = None;
    }
}

fn open(device: &Path, settings: &Settings) -> io::Result<TTYPort> {
    let builder = serialport::new(device.to_string_lossy(), settings.baud)
        .data_bits(data_bits(settings.data_bits))
        .parity(parity(settings.parity))
        .stop_bits(stop_bits(settings.stop_bits))
        .flow_control(flow_control(settings.flow_control))
        .exclusive(true);
    TTYPort::open(&builder).map_err(|error| match error.kind() {
        serialport::ErrorKind::NoDevice if error.description.contains("lock") => {
            io::Error::new(io::ErrorKind::ResourceBusy, "another program has opened it; end that first")
        }
        _ => error.into(),
    })
}

fn obey(port: &mut TTYPort, order: Order) -> serialport::Result<()> {
    match order {
        Order::Baud(baud) => port.set_baud_rate(baud),
        Order::DataBits(bits) => port.set_data_bits(data_bits(bits)),
        Order::Parity(wanted) => port.set_parity(parity(wanted)),
        Order::StopBits(bits) => port.set_stop_bits(stop_bits(bits)),
        Order::FlowControl(control) => port.set_flow_control(flow_control(control)),
        Order::Break(Level::On) => port.set_break(),
        Order::Break(Level::Off) => port.clear_break(),
        Order::DataTerminalReady(level) => port.write_data_terminal_ready(level == Level::On),
        Order::RequestToSend(level) => port.write_request_to_send(level == Level::On),
        Order::DropUnsent => port.clear(serialport::ClearBuffer::Output),
    }
}

/// What the driver of a device has counted (linux/serial.h, `serial_icounter_struct`).
#[repr(C)]
#[derive(Default)]
struct Counted {
    changes: [i32; 4],
    bytes: [i32; 2],
    framing: i32,
    overruns: i32,
    parity: i32,
    breaks: i32,
    buffer_overruns: i32,
    reserved: [i32; 9],
}

nix::ioctl_read_bad!(
    /// The wires, as bits (tty_ioctl(4)).
    read_wires,
    nix::libc::TIOCMGET,
    nix::libc::c_int
);
nix::ioctl_read_bad!(
    /// The errors so far.
    read_errors,
    TIOCGICOUNT,
    Counted
);

/// asm-generic/ioctls.h.
const TIOCGICOUNT: nix::libc::Ioctl = 0x545d;

/// Of a device that has wires: a pseudo terminal has none.
fn wires(port: &TTYPort) -> Option<Wires> {
    let (mut bits, mut counted) = (0, Counted::default());
    // SAFETY: the descriptor is the port's, which lives on, and the kernel writes an integer.
    unsafe { read_wires(port.as_raw_fd(), &mut bits) }.ok()?;
    // SAFETY: as above; the structure is the kernel's. Some drivers count nothing.
    let _ = unsafe { read_errors(port.as_raw_fd(), &mut counted) };
    let wires = [
        (nix::libc::TIOCM_CTS, CLEAR_TO_SEND),
        (nix::libc::TIOCM_DSR, DATA_SET_READY),
        (nix::libc::TIOCM_RNG, RING),
        (nix::libc::TIOCM_CAR, CARRIER),
    ];
    let modem = wires.into_iter().filter(|(bit, _)| bits & bit != 0).map(|(_, wire)| wire).sum();
    let Counted { framing, overruns, parity, breaks, buffer_overruns, .. } = counted;
    // A counter that has passed its end is negative, and goes on: it is compared, never added up.
    let [overruns, parity, framing, breaks] =
        [overruns.wrapping_add(buffer_overruns), parity, framing, breaks].map(i32::cast_unsigned);
    Some(Wires { modem, errors: Errors { overruns, parity, framing, breaks } })
}

/// The schema allows 5 to 8.
fn data_bits(bits: u8) -> serialport::DataBits {
    match bits {
        5 => serialport::DataBits::Five,
        6 => serialport::DataBits::Six,
        7 => serialport::DataBits::Seven,
        _ => serialport::DataBits::Eight,
    }
}

fn parity(parity: Parity) -> serialport::Parity {
    match parity {
        Parity::None => serialport::Parity::None,
        Parity::Odd => serialport::Parity::Odd,
        Parity::Even => serialport::Parity::Even,
    }
}

/// The schema allows 1 and 2.
fn stop_bits(bits: u8) -> serialport::StopBits {
    if bits == 2 { serialport::StopBits::Two } else { serialport::StopBits::One }
}

fn flow_control(control: FlowControl) -> serialport::FlowControl {
    match control {
        FlowControl::None => serialport::FlowControl::None,
        FlowControl::Software => serialport::FlowControl::Software,
        FlowControl::Hardware => serialport::FlowControl::Hardware,
    }
}

/// The serial devices of this host.
fn ports() -> io::Result<Vec<SerialPortInfo>> {
    // The package takes it for granted that the folder is there; in some containers it is not.
    std::fs::metadata("/sys/class/tty").map_err(|error| named("/sys/class/tty", error))?;
    Ok(serialport::available_ports()?)
}

/// The device of an adapter; or which there are.
fn find(ports: &[SerialPortInfo], serial: &str, interface: Option<u8>) -> Result<PathBuf, String> {
    let adapters: Vec<(&str, &UsbPortInfo)> = ports
        .iter()
        .filter_map(|port| match &port.port_type {
            SerialPortType::UsbPort(usb) => Some((port.port_name.as_str(), usb)),
            SerialPortType::PciPort | SerialPortType::BluetoothPort | SerialPortType::Unknown => None,
        })
        .collect();
    let fits = |usb: &UsbPortInfo| {
        usb.serial_number.as_deref() == Some(serial) && (interface.is_none() || usb.interface == interface)
    };
    let fitting: Vec<&(&str, &UsbPortInfo)> = adapters.iter().filter(|(_, usb)| fits(usb)).collect();
    let listed = |list: &mut dyn Iterator<Item = &(&str, &UsbPortInfo)>| {
        let mut lines: Vec<String> = list.map(|(device, usb)| in_words(device, usb)).collect();
        lines.sort();
        if lines.is_empty() { "none".to_owned() } else { lines.join("; ") }
    };
    let wanted = match interface {
        None => format!("USB serial adapter `{serial}`"),
        Some(interface) => format!("USB serial adapter `{serial}` with interface {interface}"),
    };
    match fitting.as_slice() {
        [(device, _)] => Ok(PathBuf::from(device)),
        [] => Err(format!("no {wanted}; there are: {}", listed(&mut adapters.iter()))),
        several => Err(format!(
            "{wanted} has several lines; add `interface`, or use a path: {}",
            listed(&mut several.iter().copied())
        )),
    }
}

fn in_words(device: &str, usb: &UsbPortInfo) -> String {
    let serial = usb.serial_number.as_deref().unwrap_or("without a number");
    match usb.interface {
        Some(interface) => format!("{serial}, interface {interface}, at {device}"),
        None => format!("{serial} at {device}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::device::pair;
    use super::*;

    /// A line whose far end is the test's, at a path that stays when it is plugged in again.
    struct Plug {
        folder: tempfile::TempDir,
        far: Option<File>,
        near: Option<File>,
    }

    impl Plug {
        fn new() -> Plug {
            let mut plug = Plug { folder: tempfile::tempdir().unwrap(), far: None, near: None };
            plug.plug();
            plug
        }

        fn plug(&mut self) {
            let (far, near, device) = pair().unwrap();
            let _ = std::fs::remove_file(self.path());
            std::os::unix::fs::symlink(device, self.path()).unwrap();
            (self.far, self.near) = (Some(far.into()), Some(near.into()));
        }

        fn unplug(&mut self) {
            (self.far, self.near) = (None, None);
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("by-path")
        }

        fn console(&self, settings: Settings) -> TtyConsole {
            TtyConsole::new(Which::Path(self.path().display().to_string()), settings, self.folder.path().into())
        }

        fn far(&mut self) -> &mut File {
            self.far.as_mut().unwrap()
        }

        fn locks(&self) -> usize {
            let entries = std::fs::read_dir(self.folder.path()).unwrap();
            entries.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("LCK..")).count()
        }
    }

    #[tokio::test]
    async fn bytes_go_both_ways_as_they_are_at_the_speed_that_was_wanted() {
        let mut plug = Plug::new();
        let console = plug.console(Settings { baud: 9600, ..Settings::default() });
        let mut stream = console.open().await.unwrap();
        let all: Vec<u8> = (0..=255).collect();
        plug.far().write_all(&all).unwrap();
        let mut heard = vec![0; 256];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, all);
        stream.write_all(&all).await.unwrap();
        plug.far().read_exact(&mut heard).unwrap();
        assert_eq!(heard, all);
        let speed = || console.port.lock().unwrap().as_ref().unwrap().baud_rate().unwrap();
        assert_eq!(speed(), 9600);
        console.tell(Order::Baud(3_686_400)).unwrap();
        assert_eq!(speed(), 3_686_400);
    }

    #[tokio::test]
    async fn it_is_one_program_s_while_it_is_open_and_nobody_s_afterwards() {
        let plug = Plug::new();
        let path = plug.path().display().to_string();
        let console = plug.console(Settings::default());
        let stream = console.open().await.unwrap();
        assert_eq!(plug.locks(), 1);
        let why = console.open().await.map(drop).unwrap_err().to_string();
        assert_eq!(why, format!("the console at {path} is open already; close that first"));
        let why = plug.console(Settings::default()).open().await.map(drop).unwrap_err().to_string();
        assert_eq!(why, format!("{path}: another program has opened it; end that first"));
        assert_eq!(plug.locks(), 1, "the lock is still the first one's");
        drop(stream);
        assert_eq!(plug.locks(), 0);
        let why = console.tell(Order::Break(Level::On)).unwrap_err().to_string();
        assert_eq!(why, format!("{path} is not open"));
        console.open().await.map(drop).unwrap();
    }

    #[tokio::test]
    async fn it_ends_when_it_is_unplugged_and_opens_again_under_another_name() {
        let mut plug = Plug::new();
        let path = plug.path().display().to_string();
        let console = plug.console(Settings::default());
        let mut stream = console.open().await.unwrap();
        plug.far().write_all(b"last").unwrap();
        let mut heard = [0; 4];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"last");
        plug.unplug();
        let why = stream.read_u8().await.unwrap_err().to_string();
        assert_eq!(why, format!("{path}: the device went away; it is opened again when it is back"));
        assert_eq!(stream.write_all(b"x").await.unwrap_err().to_string(), why);
        drop(stream);
        let why = console.open().await.map(drop).unwrap_err().to_string();
        assert_eq!(why, format!("{path}: No such file or directory (os error 2)"));
        plug.plug();
        let mut stream = console.open().await.unwrap();
        plug.far().write_all(b"back").unwrap();
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"back");
        drop(stream);
        assert_eq!(plug.locks(), 0);
    }

    #[tokio::test]
    async fn a_line_that_another_program_has_locked_is_left_alone() {
        let plug = Plug::new();
        let device = plug.path().canonicalize().unwrap();
        let lock = plug.folder.path().join(format!("LCK..{}", device.file_name().unwrap().to_string_lossy()));
        std::fs::write(&lock, "         1\n").unwrap();
        let why = plug.console(Settings::default()).open().await.map(drop).unwrap_err().to_string();
        let expected = format!("{} is in use by process 1", device.display());
        assert!(why.starts_with(&expected) && why.ends_with("; end that first"), "{why}");
        assert!(lock.exists());
    }

    fn adapter(device: &str, serial: Option<&str>, interface: u8) -> SerialPortInfo {
        let usb = UsbPortInfo {
            vid: 0x0403,
            pid: 0x6011,
            serial_number: serial.map(str::to_owned),
            manufacturer: None,
            product: None,
            interface: Some(interface),
        };
        SerialPortInfo { port_name: device.to_owned(), port_type: SerialPortType::UsbPort(usb) }
    }

    #[test]
    fn an_adapter_is_found_by_its_number_and_interface_and_otherwise_the_error_lists_what_is_there() {
        let uart = SerialPortInfo { port_name: "/dev/ttyS0".into(), port_type: SerialPortType::Unknown };
        let ports = [
            uart,
            adapter("/dev/ttyUSB1", Some("FT4QUAD"), 1),
            adapter("/dev/ttyUSB0", Some("FT4QUAD"), 0),
            adapter("/dev/ttyUSB2", None, 0),
            adapter("/dev/ttyACM0", Some("E6616"), 0),
        ];
        assert_eq!(find(&ports, "E6616", None), Ok("/dev/ttyACM0".into()));
        assert_eq!(find(&ports, "FT4QUAD", Some(1)), Ok("/dev/ttyUSB1".into()));
        assert_eq!(
            find(&ports, "FT4QUAD", None).unwrap_err(),
            "USB serial adapter `FT4QUAD` has several lines; add `interface`, or use a path: \
             FT4QUAD, interface 0, at /dev/ttyUSB0; FT4QUAD, interface 1, at /dev/ttyUSB1"
        );
        assert_eq!(
            find(&ports[..2], "FT9", Some(2)).unwrap_err(),
            "no USB serial adapter `FT9` with interface 2; there are: FT4QUAD, interface 1, at /dev/ttyUSB1"
        );
        assert_eq!(find(&[], "FT9", None).unwrap_err(), "no USB serial adapter `FT9`; there are: none");
    }

    #[test]
    fn keys_that_do_not_fit_together_are_told() {
        let context = driver::Context { directory: Path::new("/lab"), outlet: None };
        let told = |keys: Keys| driver::Keys::build(keys, &context).map(drop).unwrap_err().remove(0).what;
        let path = |path: &str| Keys { path: Some(path.into()), ..Keys::default() };
        assert_eq!(told(path("ttyUSB0")), "`ttyUSB0` is no device's path");
        assert_eq!(told(Keys { interface: Some(0), ..path("/dev/ttyUSB0") }), "`/dev/ttyUSB0` is one line already");
    }
}
