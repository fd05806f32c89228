//! What a lease lets you do: power and console of its DUT, through one gate. Every call asks the [`Pass`] first, so a handle that
//! outlives its lease refuses by itself.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use crate::blueprint::power::{Outlet, Pdu, PowerError, PowerState};
use crate::lease::Pass;

/// The outlet of a leased DUT: switch and read back.
#[derive(Clone)]
pub struct Power {
    pdu: Arc<dyn Pdu>,
    outlet: Outlet,
    pass: Pass,
    observed: Arc<dyn Fn(PowerState) + Send + Sync>,
}

/// One call to a PDU may take this long: SNMP units answer within a second, the slowest known (a card that reboots its web server)
/// within twenty.
const PDU_CALL: Duration = Duration::from_secs(30);

impl Power {
    /// The power interface of the lease that `pass` belongs to; `observed` hears every read-back.
    pub fn new(pdu: Arc<dyn Pdu>, outlet: Outlet, pass: Pass, observed: Arc<dyn Fn(PowerState) + Send + Sync>) -> Self {
        Power { pdu, outlet, pass, observed }
    }

    /// Switches, then reads back: a unit that says "done" is not believed until the outlet says so too.
    pub async fn set(&self, state: PowerState) -> Result<(), PowerError> {
        self.pass.check().map_err(|revoked| self.error(revoked.to_string()))?;
        self.bounded(self.pdu.set(&self.outlet, state)).await?;
        let read = self.bounded(self.pdu.state(&self.outlet)).await?;
        (self.observed)(read);
        if read == state { Ok(()) } else { Err(self.error(format!("told to go {state}, but it reads back {read}"))) }
    }

    async fn bounded<T>(&self, call: impl Future<Output = Result<T, PowerError>>) -> Result<T, PowerError> {
        timeout(PDU_CALL, call).await.unwrap_or_else(|_| {
            Err(self.error(format!("the unit gave no answer in {} s; check its network", PDU_CALL.as_secs())))
        })
    }

    fn error(&self, reason: String) -> PowerError {
        PowerError { outlet: self.outlet.0.clone(), reason }
    }
}
