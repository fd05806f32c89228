//! Power: two verbs. Off-times, retries, read-back and limits are decided above the drivers, once.

use std::fmt;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub mod exec;
pub mod qemu;
pub mod simulated;

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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Outlet(pub String);

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
pub trait Pdu: Send + Sync {
    /// Switches the outlet; returns when the unit says it is done. Repeating it is harmless.
    fn set<'a>(&'a self, outlet: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>>;
    /// Reads the outlet back from the unit.
    fn state<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>>;
}
