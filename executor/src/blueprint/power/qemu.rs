//! A virtual machine's outlet: OFF is SIGKILL, ON is a new process. See [`crate::virtual_dut::qemu`] for why.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Outlet, Pdu, PowerError, PowerState};
use crate::virtual_dut::qemu::Machine;

/// A power unit with one outlet, named as its machine is.
pub struct QemuPdu {
    machine: Arc<Machine>,
}

impl QemuPdu {
    /// The power unit of `machine`.
    pub fn new(machine: Arc<Machine>) -> Self {
        QemuPdu { machine }
    }

    /// The machine behind an outlet.
    fn machine(&self, outlet: &Outlet) -> Result<&Machine, PowerError> {
        if outlet.0 == self.machine.name() {
            return Ok(&self.machine);
        }
        let reason = format!("there is no such outlet; outlets: {}", self.machine.name());
        Err(PowerError { outlet: outlet.0.clone(), reason })
    }

    async fn switch(&self, outlet: &Outlet, state: PowerState) -> Result<(), PowerError> {
        let machine = self.machine(outlet)?;
        let switched = match state {
            PowerState::On => machine.power_on().await,
            PowerState::Off => machine.power_off().await,
        };
        switched.map_err(|error| PowerError { outlet: outlet.0.clone(), reason: error.to_string() })
    }
}

impl Pdu for QemuPdu {
    fn set<'a>(&'a self, outlet: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>> {
        self.switch(outlet, state).boxed()
    }

    fn state<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>> {
        async { Ok(self.machine(outlet)?.state().await) }.boxed()
    }
}
