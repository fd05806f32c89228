//! The drivers of machines that are not ours: units and consoles that several machines name are made once.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::network::Drivers;
use super::start::StartError;
use crate::blueprint::console::{self, Console};
use crate::blueprint::driver::Mistake;
use crate::blueprint::power::{self, Pdu};
use crate::config::{FarmConfig, HardwareConfig, Whose};

/// What the farm file's `pdus` and `consoles` are.
pub(super) struct Hardware {
    pdus: BTreeMap<String, Arc<dyn Pdu>>,
    consoles: BTreeMap<String, Arc<dyn Console>>,
}

impl Hardware {
    /// Makes all of them; those that were there `before` and are said to be the same are the same. Nothing is opened yet.
    pub(super) fn of(config: &FarmConfig, before: Option<(&FarmConfig, &Hardware)>) -> Result<Hardware, StartError> {
        let mut hardware = Hardware { pdus: BTreeMap::new(), consoles: BTreeMap::new() };
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
            let made = pdu.unit.make(power::DRIVERS, None).map_err(in_words).map_err(failed)?;
            hardware.pdus.insert(pdu.name.clone(), made);
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
    pub(super) fn pdu(&self, name: &str) -> Option<Arc<dyn Pdu>> {
        self.pdus.get(name).cloned()
    }

    /// What a machine is driven by.
    pub(super) fn drivers(&self, config: &HardwareConfig) -> Result<Drivers, String> {
        let outlet = config.power.outlet.clone();
        let pdu = match &config.power.unit {
            Whose::Named(name) => self.pdus.get(name).cloned().ok_or_else(|| format!("no PDU `{name}`"))?,
            Whose::Own(unit) => unit.make(power::DRIVERS, Some(&outlet)).map_err(in_words)?,
        };
        let console = match &config.console {
            Whose::Named(name) => self.consoles.get(name).cloned().ok_or_else(|| format!("no console `{name}`"))?,
            Whose::Own(way) => way.make(console::DRIVERS, None).map_err(in_words)?,
        };
        Ok(Drivers { pdu, outlet, console })
    }
}

/// The farm file was checked: this is about what has changed on the disk since.
fn in_words(mistakes: Vec<Mistake>) -> String {
    let sentence = |mistake: &Mistake| format!("{}; {}", mistake.what, mistake.hint);
    mistakes.iter().map(sentence).collect::<Vec<_>>().join("; ")
}
