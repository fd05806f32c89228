//! The power units of the farm, for whoever runs it: what they and their outlets do; outlets without a machine are switched here.
//!
//! | outlet | who switches it |
//! |---|---|
//! | of a machine in service | whoever leases the machine |
//! | of a machine that is held back, and that nobody holds | an admin |
//! | of no machine | an admin |
//! | reserved | nobody |

use std::sync::Arc;
use std::time::Duration;

use super::{DutState, Farm};
use crate::blueprint::power::{Errand, Outlet, PowerState, ReadBack};
use crate::outlets::{OutletView, Reserved, Switch, Unit, UnitState};

/// A power unit as others see it.
#[derive(Clone, Debug)]
pub struct PduView {
    /// What the farm file calls it; a machine's full name when it is that machine's own.
    pub name: String,
    /// Its driver.
    pub driver: &'static str,
    /// How it is.
    pub state: UnitState,
    /// What its states are worth.
    pub read_back: ReadBack,
    /// Its outlets, as far as they are known.
    pub outlets: Vec<OutletView>,
    /// What people are asked to do at it.
    pub errands: Vec<Errand>,
    /// Whether the farm file names it.
    pub origin: Origin,
}

/// Where a unit comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The farm file.
    File,
    /// An admin adopted it.
    Adopted,
}

/// What an admin wants of an outlet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct OutletChange {
    /// Switch it.
    pub state: Option<PowerState>,
    /// Keep everybody from it.
    pub reserved: Option<Reserved>,
    /// Give it an off-time.
    pub off_time: Option<Duration>,
}

/// Why an outlet was not changed.
#[derive(Debug, thiserror::Error)]
pub enum OutletError {
    /// There is no such unit or outlet.
    #[error("{0}")]
    NoSuch(String),
    /// A machine needs it.
    #[error("{0}")]
    Used(String),
    /// The unit does not do it.
    #[error("{0}")]
    Failed(String),
}

impl Farm {
    /// All power units: those of the farm file and the adopted ones, then those of single machines.
    pub fn pdus(&self) -> Vec<PduView> {
        let adopted = self.inventory().adopted();
        let in_the_file = self.discovery.pdus_of_the_file();
        let origin = |name: &String| match adopted.contains_key(name) && !in_the_file.contains(name) {
            true => Origin::Adopted,
            false => Origin::File,
        };
        self.machines.units().iter().map(|unit| view(unit, origin(&unit.name))).collect()
    }

    /// One unit, by its name.
    pub fn pdu(&self, name: &str) -> Result<PduView, OutletError> {
        let found = self.pdus().into_iter().find(|pdu| pdu.name == name);
        found.ok_or_else(|| self.no_unit(name))
    }

    /// One outlet of a unit.
    pub fn outlet(&self, unit: &str, outlet: &str) -> Result<OutletView, OutletError> {
        let unit = self.unit(unit)?;
        unit.find(outlet).map(|switch| switch.view()).ok_or_else(|| no_outlet(&unit, outlet))
    }

    /// Changes an outlet that no machine in service has, and says how it is then.
    pub async fn change_outlet(
        &self,
        unit: &str,
        outlet: &str,
        change: OutletChange,
    ) -> Result<OutletView, OutletError> {
        let unit = self.unit(unit)?;
        let switch = match unit.find(outlet) {
            Some(switch) => switch,
            None if unit.lists_outlets() => return Err(no_outlet(&unit, outlet)),
            // A unit that cannot say what it has: asking it for this one tells.
            None => unit.asked_for(&Outlet(outlet.to_owned())).await.map_err(failed)?,
        };
        self.may_be_changed(&switch).await?;
        if change.reserved == Some(Reserved::No) {
            switch.reserve(Reserved::No).await.map_err(failed)?;
        }
        if let Some(off_time) = change.off_time {
            switch.set_off_time(off_time).await;
        }
        if let Some(state) = change.state {
            // On its own task: a client that hangs up must not leave an outlet half told.
            let switch = switch.clone();
            let switched = tokio::spawn(async move { switch.set(state).await }).await;
            switched.map_err(|error| OutletError::Failed(format!("an internal error: {error}")))?.map_err(failed)?;
        }
        if change.reserved == Some(Reserved::Yes) {
            switch.reserve(Reserved::Yes).await.map_err(failed)?;
        }
        Ok(switch.view())
    }

    /// How long an outlet stays off at least, from now on; also while a machine is on it.
    pub async fn set_off_time(&self, unit: &str, outlet: &str, off_time: Duration) -> Result<(), OutletError> {
        let unit = self.unit(unit)?;
        let switch = unit.find(outlet).ok_or_else(|| no_outlet(&unit, outlet))?;
        switch.set_off_time(off_time).await;
        Ok(())
    }

    /// A person says what an outlet of a unit without a drive of its own does; what was asked for, when he does not say it.
    pub fn outlet_was_switched(
        &self,
        unit: &str,
        outlet: &str,
        state: Option<PowerState>,
    ) -> Result<PowerState, OutletError> {
        let pdu = self.unit(unit)?.pdu();
        let asked = pdu.errands().into_iter().find(|errand| errand.outlet.0 == outlet).map(|errand| errand.state);
        let nobody = || OutletError::Used(format!("nobody waits for outlet `{outlet}` of {unit}: say `on` or `off`"));
        let state = state.or(asked).ok_or_else(nobody)?;
        pdu.told(&Outlet(outlet.to_owned()), state).map_err(|error| OutletError::Used(error.to_string()))?;
        Ok(state)
    }

    /// Its machine, if it has one, is held back and nobody's.
    async fn may_be_changed(&self, switch: &Switch) -> Result<(), OutletError> {
        let Some(name) = switch.view().dut else { return Ok(()) };
        match self.dut(&name).await {
            Some(dut) if dut.state != DutState::Retired => Err(OutletError::Used(format!(
                "outlet `{}` is {name}'s, which is in service: lease the machine to switch it, or hold it back with `wharf dut cordon {name}`",
                switch.outlet().0
            ))),
            _ => Ok(()),
        }
    }

    pub(super) fn unit(&self, name: &str) -> Result<Arc<Unit>, OutletError> {
        let found = self.machines.units().into_iter().find(|unit| unit.name == name);
        found.ok_or_else(|| self.no_unit(name))
    }

    fn no_unit(&self, name: &str) -> OutletError {
        let units = self.machines.units();
        let known: Vec<_> = units.iter().map(|unit| unit.name.as_str()).collect();
        OutletError::NoSuch(format!("no PDU `{name}`; PDUs: {}", known.join(", ")))
    }
}

fn view(unit: &Arc<Unit>, origin: Origin) -> PduView {
    PduView {
        name: unit.name.clone(),
        driver: unit.driver,
        state: unit.state(),
        read_back: unit.read_back(),
        outlets: unit.switches().iter().map(Switch::view).collect(),
        errands: unit.pdu().errands(),
        origin,
    }
}

fn no_outlet(unit: &Arc<Unit>, outlet: &str) -> OutletError {
    let known: Vec<_> = unit.switches().into_iter().map(|switch| switch.outlet().0.clone()).collect();
    OutletError::NoSuch(format!("no outlet `{outlet}` on {}; outlets: {}", unit.name, known.join(", ")))
}

fn failed(error: crate::blueprint::power::PowerError) -> OutletError {
    OutletError::Failed(error.to_string())
}
