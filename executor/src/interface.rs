//! What a lease lets you do: power of its DUT, through one gate. Every call asks the [`Pass`] first, so a handle that outlives its lease
//! refuses by itself.

use std::sync::Arc;
use std::time::Duration;

use crate::blueprint::power::{PowerError, PowerState};
use crate::lease::Pass;
use crate::outlets::Switch;

/// Nobody wonders about a shorter wait.
const WORTH_A_LINE: Duration = Duration::from_secs(2);

/// The outlet of a leased DUT: switch and read back.
#[derive(Clone)]
pub struct Power {
    switch: Switch,
    pass: Pass,
    went: Arc<dyn Fn(PowerState) + Send + Sync>,
}

impl Power {
    /// The power interface of the lease that `pass` belongs to; `went` is called when it has no power any more, and when it has it
    /// again.
    pub fn new(switch: Switch, pass: Pass, went: Arc<dyn Fn(PowerState) + Send + Sync>) -> Self {
        Power { switch, pass, went }
    }

    /// Switches, and returns when the outlet reads back so: a unit that says "done" is not believed.
    pub async fn set(&self, state: PowerState) -> Result<(), PowerError> {
        match state {
            // Not yet under the pass: a lease that ends meanwhile need not wait for the off-time to pass.
            PowerState::On => self.switch.stay_off().await,
            PowerState::Off => return self.off(self.switch.set(PowerState::Off)).await,
        }
        let _in_flight = self.pass.enter().await.map_err(|revoked| self.refused(&revoked))?;
        let before = self.switch.seen();
        self.switch.set(state).await?;
        if before != Some(PowerState::On) {
            (self.went)(PowerState::On);
        }
        Ok(())
    }

    /// Off, to go on again: should the server be killed before that, the next one does it.
    pub async fn set_off_to_cycle(&self) -> Result<(), PowerError> {
        self.off(self.switch.set_off_to_cycle()).await
    }

    async fn off(&self, switched: impl Future<Output = Result<(), PowerError>>) -> Result<(), PowerError> {
        let _in_flight = self.pass.enter().await.map_err(|revoked| self.refused(&revoked))?;
        switched.await?;
        (self.went)(PowerState::Off);
        Ok(())
    }

    /// How long it will stay off before it goes on, in a sentence; `None` when that is not worth one.
    pub fn waits(&self) -> Option<String> {
        let left = self.switch.time_left();
        (left >= WORTH_A_LINE).then(|| format!("The DUT stays without power for {:.0} s more", left.as_secs_f64()))
    }

    /// Reads the outlet.
    pub async fn state(&self) -> Result<PowerState, PowerError> {
        self.switch.state().await
    }

    fn refused(&self, revoked: &crate::lease::Revoked) -> PowerError {
        PowerError { outlet: self.switch.outlet().0.clone(), reason: revoked.to_string() }
    }
}
