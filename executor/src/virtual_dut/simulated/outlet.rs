//! The outlet in front of a simulated DUT, and its faults: one that answers late, one that lies.
//!
//! ```text
//!  switch(on|off) ─► one command at a time ─► [slow: waits] ─► [lies: off is not done] ─► answer
//!  read()         ─► [slow: waits] ─► on while the DUT has power
//! ```
//! A command is carried out even when the one who gave it has stopped waiting: what was sent to a real unit lands late as well.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Machine;
use crate::blueprint::power::PowerState;
use crate::config::{Fault, Misbehaviour};

impl Machine {
    /// Tells the outlet to switch; it may say so and not do it.
    pub async fn switch(self: &Arc<Self>, state: PowerState) -> io::Result<()> {
        let machine = Arc::clone(self);
        let command = async move {
            let _turn = machine.commands.lock().await;
            sleep(machine.delay(state)).await;
            match state {
                PowerState::Off if machine.lies().await => Ok(()),
                PowerState::Off | PowerState::On => machine.set_power(state).await,
            }
        };
        tokio::spawn(command).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    /// Asks the outlet what it does.
    pub async fn read(&self) -> PowerState {
        sleep(self.delay(PowerState::Off)).await;
        self.power().await
    }

    fn delay(&self, state: PowerState) -> Duration {
        self.outlet_fault(Misbehaviour::OutletSlow, state).and_then(|fault| fault.lasts).unwrap_or_default()
    }

    /// Whether it stays on although it was told to go off. The time of a fault that ends runs from its first lie on.
    async fn lies(&self) -> bool {
        let fault = self.outlet_fault(Misbehaviour::OutletLies, PowerState::Off);
        let is_on = self.power().await == PowerState::On;
        let mut since = self.lies_since.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(fault) = fault.filter(|_| is_on) else {
            *since = None;
            return false;
        };
        let first = *since.get_or_insert_with(Instant::now);
        let lies = fault.lasts.is_none_or(|lasts| first.elapsed() < lasts);
        if !lies {
            *since = None;
        }
        lies
    }

    /// Switching on belongs to the boot that it begins, all else to the one that is.
    fn outlet_fault(&self, what: Misbehaviour, state: PowerState) -> Option<Fault> {
        let boots = self.dut.boots();
        self.dut.fault(what, if state == PowerState::On { boots + 1 } else { boots })
    }
}
