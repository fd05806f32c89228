//! Power: two verbs. Off-times, retries, read-back and limits are decided above the drivers, once.

use std::fmt;
use std::future::ready;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub mod exec;
pub mod qemu;
pub mod simulated;

use super::driver::Driver;

/// Every family of power units that a farm file can name.
pub const DRIVERS: &[Driver<dyn Pdu>] = &[Driver::of::<exec::Keys>("exec")];

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
#[allow(dead_code, reason = "for the room above the drivers, which polls and meters")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutletInfo {
    /// Its name on the unit.
    pub outlet: Outlet,
    /// What somebody called it in the unit's own settings.
    pub label: Option<String>,
}

/// What an outlet's meter reads.
#[allow(dead_code, reason = "for the room above the drivers, which polls and meters")]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// Power drawn now, in watts.
    pub watts: Option<f64>,
    /// Energy since some moment of the unit's own, in joules. It may start again at 0.
    pub joules: Option<f64>,
}

/// Whether a unit knows what its outlets do.
#[allow(dead_code, reason = "for the room above the drivers, which polls and meters")]
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

/// A power unit.
#[allow(dead_code, reason = "for the room above the drivers, which polls and meters")]
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

    /// What a state of this unit is worth.
    fn read_back(&self) -> ReadBack {
        ReadBack::Asked
    }
}
