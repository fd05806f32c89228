//! The drivers of machines that are not ours: units and consoles that several machines name are made once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::network::Drivers;
use super::start::StartError;
use crate::blueprint::console::{self, Console};
use crate::blueprint::driver::{Chosen, Mistake};
use crate::blueprint::power::{self, Outlet};
use crate::config::{DutConfig, FarmConfig, HardwareConfig, Whose};
use crate::outlets::{Policy, Store, Unit};

/// What the outlets of hardware did, in the state folder.
pub(super) const OUTLETS: &str = "power";

/// What the farm file's `pdus` and `consoles` are.
pub(super) struct Hardware {
    pdus: BTreeMap<String, Arc<Unit>>,
    consoles: BTreeMap<String, Arc<dyn Console>>,
    outlets: PathBuf,
}

impl Hardware {
    /// Makes all of them; those that were there `before` and are said to be the same are the same. Nothing is opened yet.
    pub(super) fn of(config: &FarmConfig, before: Option<(&FarmConfig, &Hardware)>) -> Result<Hardware, StartError> {
        let outlets = config.state.join(OUTLETS);
        let mut hardware = Hardware { pdus: BTreeMap::new(), consoles: BTreeMap::new(), outlets };
        if let Some((old, made)) = before {
            let kept = config.pdus.iter().filter(|pdu| old.pdus.contains(pdu));
            let kept = kept.filter_map(|pdu| Some((pdu.name.clone(), Arc::clone(made.pdus.get(&pdu.name)?))));
            hardware.pdus = kept.collect();
            let kept = config.consoles.iter().filter(|line| old.consoles.contains(line));
            let kept = kept.filter_map(|line| Some((line.name.clone(), Arc::clone(made.consoles.get(&line.name)?))));
            hardware.consoles = kept.collect();
        }
        for pdu in config.pdus.iter().filter(|pdu| !hardware.pdus.contains_key(&pdu.name)).collect::<Vec<_>>() {
            let failed = |reason| StartError::Hardware { name: pdu.name.clone(), reason };
            let store = before.and_then(|(_, made)| made.pdus.get(&pdu.name)).map(|unit| unit.store());
            let store = store.unwrap_or_else(|| hardware.store(&pdu.name));
            let unit = unit_of(&pdu.name, &pdu.unit, None, &pdu.policy, pdu.reserved.clone(), store).map_err(failed)?;
            hardware.pdus.insert(pdu.name.clone(), unit);
        }
        for line in
            config.consoles.iter().filter(|line| !hardware.consoles.contains_key(&line.name)).collect::<Vec<_>>()
        {
            let failed = |reason| StartError::Hardware { name: line.name.clone(), reason };
            let made = line.way.make(console::DRIVERS, None).map_err(in_words).map_err(failed)?;
            hardware.consoles.insert(line.name.clone(), made);
        }
        Ok(hardware)
    }

    /// A console that machines may name.
    pub(super) fn console(&self, name: &str) -> Option<&Arc<dyn Console>> {
        self.consoles.get(name)
    }

    /// All of them, by name.
    pub(super) fn consoles(&self) -> impl Iterator<Item = (&String, &Arc<dyn Console>)> {
        self.consoles.iter()
    }

    /// A unit of the farm file's.
    pub(super) fn pdu(&self, name: &str) -> Option<Arc<Unit>> {
        self.pdus.get(name).cloned()
    }

    /// What a machine is driven by.
    pub(super) fn drivers(&self, dut: &DutConfig, config: &HardwareConfig) -> Result<Drivers, String> {
        let outlet = &config.power.outlet;
        let unit = match &config.power.unit {
            Whose::Named(name) => self.pdus.get(name).cloned().ok_or_else(|| format!("no PDU `{name}`"))?,
            Whose::Own(unit) => {
                // No unit of the farm file can be called so.
                let store = self.store(&format!("@{}", dut.full_name));
                unit_of(&dut.full_name, unit, Some(outlet), &Policy::HARDWARE, Vec::new(), store)?
            }
        };
        let console = match &config.console {
            Whose::Named(name) => self.consoles.get(name).cloned().ok_or_else(|| format!("no console `{name}`"))?,
            Whose::Own(way) => way.make(console::DRIVERS, None).map_err(in_words)?,
        };
        Ok(Drivers { outlet: unit.switch(outlet), console })
    }

    /// The units of the farm file.
    pub(super) fn units(&self) -> Vec<Arc<Unit>> {
        self.pdus.values().cloned().collect()
    }

    fn store(&self, unit: &str) -> Arc<Store> {
        Arc::new(Store::open(&self.outlets, unit))
    }
}

fn unit_of(
    name: &str,
    chosen: &Chosen,
    outlet: Option<&Outlet>,
    policy: &Policy,
    reserved: Vec<Outlet>,
    store: Arc<Store>,
) -> Result<Arc<Unit>, String> {
    let (driver, chosen, outlet) = (chosen.driver, chosen.clone(), outlet.cloned());
    let make = move || chosen.make(power::DRIVERS, outlet.as_ref()).map_err(in_words);
    Unit::new(name, driver, Box::new(make), policy.clone(), reserved, store)
}

/// The farm file was checked: this is about what has changed on the disk since.
fn in_words(mistakes: Vec<Mistake>) -> String {
    let sentence = |mistake: &Mistake| format!("{}; {}", mistake.what, mistake.hint);
    mistakes.iter().map(sentence).collect::<Vec<_>>().join("; ")
}
