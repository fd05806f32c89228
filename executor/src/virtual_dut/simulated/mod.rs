//! A DUT without hardware: a PXE client of ours that truly asks, fetches and boots over the network, then plays a console.
//!
//! ```text
//!  outlet OFF ──on──► firmware: DHCP ─► [plain PXE: bootfile by TFTP ─► DHCP as iPXE] ─► boot script ─► kernel, initramfs
//!      │                  │       └─► [fastboot: a boot image is given to it] ───────────────────────────────┤
//!      ▲                  ▲                                                                                │
//!      │ off: at once     └───────────────────── reboot ◄──────────── console script ◄─────────────────────┘
//!      └── from anywhere                                                   │
//!                                                                          └─ poweroff: idle, the outlet stays on
//! ```
//! | file | what |
//! |---|---|
//! | `boot` | one boot, from power-on to its end: the ring around the rest |
//! | `line` | the serial line, which outlives boots |
//! | `outlet` | the outlet, which may be slow or lie |
//! | `wire` | where the sockets are: a private network, or the loopback |
//! | `dhcp`, `tftp` ◆, `http`, `fetch` | the clients |
//! | `ipxe` ◆, `uri` ◆ | boot scripts |
//! | `fastboot`, `boot_image` ◆ | a loader that is given its boot image |
//! | `script` ◆ | console scripts |
//!
//! Both drivers of a simulated DUT (`blueprint/power/simulated.rs`, `blueprint/console/simulated.rs`) are made from one [`Machine`].

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::blueprint::console::ConsoleStream;
use crate::blueprint::power::PowerState;
use crate::config::{Fault, Misbehaviour, SimulatedConfig};

mod boot;
mod boot_image;
pub mod dhcp;
mod fastboot;
pub mod fetch;
mod http;
pub mod ipxe;
mod line;
mod outlet;
pub mod script;
pub mod tftp;
pub mod uri;
pub mod wire;

#[cfg(test)]
mod tests;

use line::{Line, Listening};
use script::Script;
pub use wire::Wire;

/// Why a simulated DUT cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Not a MAC address.
    #[error("`{0}` is not a MAC address; write six bytes such as `52:54:00:77:00:01`")]
    Mac(String),
    /// The console script cannot be read.
    #[error("cannot read the console script {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The console script cannot be played.
    #[error("{}: {source}", path.display())]
    Script {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: script::ScriptError,
    },
}

/// A simulated DUT: an outlet and a console. Dropping it cuts its power.
pub struct Machine {
    dut: Arc<Dut>,
    running: Mutex<Option<JoinHandle<()>>>,
    /// Held while the outlet carries out a command.
    commands: Mutex<()>,
    /// Since when an outlet that lies does.
    lies_since: std::sync::Mutex<Option<tokio::time::Instant>>,
}

/// What a boot needs of its machine.
struct Dut {
    config: SimulatedConfig,
    script: Script,
    mac: [u8; 6],
    wire: Wire,
    line: Line,
    boots: AtomicU32,
    powered: AtomicBool,
}

impl Dut {
    /// Boots since somebody began to use it, the one that runs included.
    fn boots(&self) -> u32 {
        self.boots.load(Ordering::SeqCst)
    }

    /// The fault, if the farm file wants it in this boot.
    fn fault(&self, what: Misbehaviour, boot: u32) -> Option<Fault> {
        let wanted = |fault: &&Fault| fault.what == what && fault.boot.is_none_or(|only| only == boot);
        self.config.misbehave.iter().find(wanted).copied()
    }
}

impl Machine {
    /// A DUT without power. Its console script is read here, so that a wrong one is told when the farm starts.
    pub fn new(config: SimulatedConfig, mac: &str, wire: Wire) -> Result<Arc<Machine>, MachineError> {
        let script = match &config.console {
            None => Script::built_in(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| MachineError::Unreadable { path: path.clone(), source })?;
                Script::parse(&text).map_err(|source| MachineError::Script { path: path.clone(), source })?
            }
        };
        let mac = parse_mac(mac).ok_or_else(|| MachineError::Mac(mac.to_owned()))?;
        let dut = Dut {
            config,
            script,
            mac,
            wire,
            line: Line::default(),
            boots: AtomicU32::new(0),
            powered: AtomicBool::new(false),
        };
        Ok(Arc::new(Machine {
            dut: Arc::new(dut),
            running: Mutex::new(None),
            commands: Mutex::new(()),
            lies_since: std::sync::Mutex::new(None),
        }))
    }

    /// Gives the DUT power, or takes it. Off stops the DUT before this returns: its address is gone first, then its sockets, and it says no goodbye.
    pub async fn set_power(&self, state: PowerState) -> io::Result<()> {
        let mut running = self.running.lock().await;
        match (state, running.take()) {
            (PowerState::On, Some(task)) => *running = Some(task),
            (PowerState::On, None) => {
                self.dut.line.set_listening(Listening::On);
                self.dut.powered.store(true, Ordering::SeqCst);
                *running = Some(tokio::spawn(boot::run(Arc::clone(&self.dut))));
            }
            (PowerState::Off, None) => {}
            (PowerState::Off, Some(task)) => {
                self.dut.powered.store(false, Ordering::SeqCst);
                self.dut.line.set_listening(Listening::Off);
                let cut = self.dut.wire.cut().await;
                task.abort();
                // The task's end is the proof that its sockets are closed; that it was cancelled is no error.
                let _ = task.await;
                cut?;
            }
        }
        Ok(())
    }

    /// On while the outlet is, also when the DUT switched itself off: as a real outlet reads back.
    pub async fn power(&self) -> PowerState {
        match *self.running.lock().await {
            Some(_) => PowerState::On,
            None => PowerState::Off,
        }
    }

    /// Opens the console.
    pub async fn open_console(&self) -> io::Result<impl ConsoleStream + use<>> {
        self.dut.line.open().await
    }

    /// Somebody begins to use the DUT: boots are counted from here. Whoever comes back to a console that was away finds it with power.
    pub fn begins(&self) {
        if !self.dut.powered.load(Ordering::SeqCst) {
            self.dut.boots.store(0, Ordering::SeqCst);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(task) = self.running.get_mut() {
            task.abort();
        }
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}
