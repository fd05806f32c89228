//! Power: two verbs. Off-times, retries, read-back and limits are decided above the drivers, once.

use std::fmt;
use std::future::ready;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub mod announced;
mod child;
#[cfg(test)]
mod counterparts_tests;
pub mod devantech;
pub mod exec;
pub mod gpio;
pub mod http;
pub mod ipmi;
pub mod kernelchip;
pub mod manual;
pub mod pdudaemon;
pub mod qemu;
#[cfg(test)]
mod recorded_tests;
pub mod redfish;
pub mod shelly;
pub mod simulated;
pub mod snmp;
pub mod tasmota;
pub mod usb_hub;
pub mod vpdu;
mod web;

use super::driver::{Driver, Mistake};

/// Every family of power units that a farm file can name.
pub const DRIVERS: &[Driver<dyn Pdu>] = &[
    Driver::of::<devantech::Keys>("devantech"),
    Driver::of::<exec::Keys>("exec"),
    Driver::of::<gpio::Keys>("gpio"),
    Driver::of::<http::Keys>("http"),
    Driver::of::<ipmi::Keys>("ipmi"),
    Driver::of::<kernelchip::Keys>("kernelchip"),
    Driver::of::<manual::Keys>("manual"),
    Driver::of::<pdudaemon::Keys>("pdudaemon"),
    Driver::of::<redfish::Keys>("redfish"),
    Driver::of::<shelly::Keys>("shelly"),
    Driver::of::<snmp::Keys>("snmp"),
    Driver::of::<tasmota::Keys>("tasmota"),
    Driver::of::<usb_hub::Keys>("usb-hub"),
    Driver::of::<vpdu::Keys>("vpdu"),
];

/// One call to a PDU may take this long. SNMP units answer within a second; the slowest that must work take 30 s (a card that restarts
/// its web server first), and half as much again is for a loaded network between.
pub const CALL_TIME: Duration = Duration::from_secs(45);

/// What an outlet does, or should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PowerState {
    /// The DUT has power.
    On,
    /// The DUT has none; nothing of it runs.
    Off,
}

impl fmt::Display for PowerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PowerState::On => "on",
            PowerState::Off => "off",
        })
    }
}

/// The name of an outlet on its PDU.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Outlet(pub String);

/// An outlet as its unit describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutletInfo {
    /// Its name on the unit.
    pub outlet: Outlet,
    /// What somebody called it in the unit's own settings.
    pub label: Option<String>,
}

impl OutletInfo {
    /// An outlet that nobody has called anything.
    pub fn named(name: impl fmt::Display) -> Self {
        OutletInfo { outlet: Outlet(name.to_string()), label: None }
    }
}

/// What an outlet's meter reads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Power drawn now, in watts.
    pub watts: Option<f64>,
    /// Energy since some moment of the unit's own, in joules. It may start again at 0.
    pub joules: Option<f64>,
}

/// What a person is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errand {
    /// At which outlet.
    pub outlet: Outlet,
    /// Switch it so.
    pub state: PowerState,
    /// How long it has been waiting.
    pub waits: Duration,
    /// What the farm file says to that person.
    pub instructions: Option<String>,
}

/// Whether a unit knows what its outlets do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadBack {
    /// [`Pdu::state`] asks the unit.
    Asked,
    /// The unit cannot be asked: [`Pdu::state`] says what it was told last. A verdict must not rest on it.
    Remembered,
}

/// Why an outlet did not do as told, in words an operator can act on.
#[derive(Debug, thiserror::Error)]
#[error("outlet `{outlet}`: {reason}")]
pub struct PowerError {
    /// Which outlet.
    pub outlet: String,
    /// What went wrong and what to look at.
    pub reason: String,
}

impl PowerError {
    /// What went wrong with an outlet.
    pub fn of(outlet: &Outlet, reason: impl Into<String>) -> Self {
        PowerError { outlet: outlet.0.clone(), reason: reason.into() }
    }
}

/// Which of a unit's outlets is meant: the one with this name; and the only one of a unit that is `own` to one machine, whatever it is called.
fn position(outlet: &Outlet, own: Option<&Outlet>, known: &[String]) -> Result<usize, PowerError> {
    match known.iter().position(|name| *name == outlet.0) {
        Some(position) => Ok(position),
        None if own == Some(outlet) && known.len() == 1 => Ok(0),
        None if known.is_empty() => Err(PowerError::of(outlet, "the unit has no outlets")),
        None => Err(PowerError::of(outlet, format!("no such outlet; outlets: {}", known.join(", ")))),
    }
}

/// Host and port of a unit's `host`, with the port that its documents name.
fn address(host: &str, port: u16) -> Result<String, Mistake> {
    let wrong = |what: String| {
        Mistake::new("host", what, "write its address: `10.0.0.32`, `10.0.0.32:1700` or `[fd00::32]:1700`")
    };
    if let Ok(address) = host.parse::<std::net::Ipv6Addr>() {
        return Ok(format!("[{address}]:{port}"));
    }
    let (name, said) = match host.rsplit_once(':') {
        Some((name, said)) => (name, said.parse::<u16>().map_err(|_| wrong(format!("`{said}` is not a port")))?),
        None => (host, port),
    };
    let is_name = |text: &str| !text.is_empty() && !text.contains(['/', ' ', '@']);
    if is_name(name) { Ok(format!("{name}:{said}")) } else { Err(wrong(format!("`{host}` is not a host"))) }
}

/// A power unit.
pub trait Pdu: Send + Sync {
    /// Switches the outlet; returns when the unit says it is done. Repeating it is harmless.
    fn set<'a>(&'a self, outlet: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>>;
    /// Reads the outlet back from the unit.
    fn state<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>>;

    /// The outlets that it has, in its own order; `None` when it cannot say.
    fn outlets(&self) -> BoxFuture<'_, Result<Option<Vec<OutletInfo>>, PowerError>> {
        ready(Ok(None)).boxed()
    }

    /// What the outlet's meter reads; `None` when it has none.
    fn meter<'a>(&'a self, _outlet: &'a Outlet) -> BoxFuture<'a, Result<Option<Reading>, PowerError>> {
        ready(Ok(None)).boxed()
    }

    /// How long an outlet stays without power before it may go on again, where the farm file does not say it: boards live on their
    /// capacitors for seconds, power supplies of computers for longer. CI-tron's figure.
    fn off_time(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// How long one call may take.
    fn call_time(&self) -> Duration {
        CALL_TIME
    }

    /// Whether people switch its outlets: they come when they come, and are not asked twice for the same.
    fn asks_people(&self) -> bool {
        false
    }

    /// What people were asked to do at this unit, and have not said to be done.
    fn errands(&self) -> Vec<Errand> {
        Vec::new()
    }

    /// A person says what an outlet does.
    fn told(&self, outlet: &Outlet, _state: PowerState) -> Result<(), PowerError> {
        Err(PowerError::of(outlet, "the unit switches it by itself: `wharf pdu on`, `wharf pdu off`"))
    }

    /// What a state of this unit is worth.
    fn read_back(&self) -> ReadBack {
        ReadBack::Asked
    }
}
