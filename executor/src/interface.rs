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

/// One call to a PDU may take this long. SNMP units answer within a second; the slowest that must work take 30 s (a card that restarts
/// its web server first), and half as much again is for a loaded network between.
const PDU_CALL: Duration = Duration::from_secs(45);

impl Power {
    /// The power interface of the lease that `pass` belongs to; `observed` hears every read-back.
    pub fn new(pdu: Arc<dyn Pdu>, outlet: Outlet, pass: Pass, observed: Arc<dyn Fn(PowerState) + Send + Sync>) -> Self {
        Power { pdu, outlet, pass, observed }
    }

    /// Switches, then reads back: a unit that says "done" is not believed until the outlet says so too.
    pub async fn set(&self, state: PowerState) -> Result<(), PowerError> {
        let error = |reason| PowerError { outlet: self.outlet.0.clone(), reason };
        let _in_flight = self.pass.enter().await.map_err(|revoked| error(revoked.to_string()))?;
        switch(&*self.pdu, &self.outlet, state, &*self.observed).await
    }

    /// Reads the outlet.
    pub async fn state(&self) -> Result<PowerState, PowerError> {
        let read = read(&*self.pdu, &self.outlet).await?;
        (self.observed)(read);
        Ok(read)
    }
}

/// Reads, without a lease: whoever looks changes nothing.
pub async fn read(pdu: &dyn Pdu, outlet: &Outlet) -> Result<PowerState, PowerError> {
    bounded(outlet, pdu.state(outlet)).await
}

/// Switches and reads back, without a lease: for tear-downs, which come when no pass is valid any more.
pub async fn switch(
    pdu: &dyn Pdu,
    outlet: &Outlet,
    state: PowerState,
    observed: &(dyn Fn(PowerState) + Send + Sync),
) -> Result<(), PowerError> {
    bounded(outlet, pdu.set(outlet, state)).await?;
    let read = read(pdu, outlet).await?;
    observed(read);
    let reason = || format!("told to go {state}, but it reads back {read}");
    if read == state { Ok(()) } else { Err(PowerError { outlet: outlet.0.clone(), reason: reason() }) }
}

async fn bounded<T>(outlet: &Outlet, call: impl Future<Output = Result<T, PowerError>>) -> Result<T, PowerError> {
    timeout(PDU_CALL, call).await.unwrap_or_else(|_| {
        let reason = format!("the unit gave no answer in {} s; check its network", PDU_CALL.as_secs());
        Err(PowerError { outlet: outlet.0.clone(), reason })
    })
}
