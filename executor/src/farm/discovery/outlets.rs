//! The outlets that a discovery may switch: those that no DUT is on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::record::DiscoverError;
use crate::blueprint::console::Console;
use crate::blueprint::power::{Outlet, PowerError, PowerState};
use crate::config::{BeforeService, DutConfig, FarmConfig, MachineConfig, SPARES};
use crate::farm::Farm;
use crate::farm::network::Drivers;
use crate::inventory::{OutletName, outlet_of};
use crate::lease::rows::Access;
use crate::outlets::Switch;

/// An outlet, and who is on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OutletView {
    /// Its unit.
    pub pdu: String,
    /// Its name there.
    pub outlet: String,
    /// The DUT that is on it; `None`: a discovery may switch it.
    pub dut: Option<String>,
}

/// An outlet that a discovery switches.
pub(super) struct Socket {
    switch: Switch,
    /// Of a spare, which has no other place where it is heard.
    pub console: Option<(String, Arc<dyn Console>)>,
}

impl Socket {
    pub(super) async fn state(&self) -> Result<PowerState, PowerError> {
        self.switch.state().await
    }

    pub(super) async fn set(&self, state: PowerState) -> Result<(), PowerError> {
        self.switch.set(state).await
    }

    /// Until it may go on again.
    pub(super) async fn stay_off(&self) {
        self.switch.stay_off().await;
    }
}

impl Farm {
    /// Every outlet that the farm knows of, by unit. A unit that does not say what it has is there with those that DUTs are on.
    pub async fn outlets(&self) -> Vec<OutletView> {
        let config = self.config();
        let used = used(&config, self.inventory().all().into_values().map(|entry| (entry.full_name, entry.power)));
        let mut all: BTreeSet<OutletName> = used.keys().cloned().collect();
        let hardware = self.machines.hardware();
        for unit in &config.pdus {
            let Some(pdu) = hardware.pdu(&unit.name) else { continue };
            match pdu.outlets().await {
                Ok(outlets) => all.extend(
                    outlets
                        .into_iter()
                        .flatten()
                        .map(|info| OutletName { pdu: unit.name.clone(), outlet: info.outlet.0 }),
                ),
                Err(error) => tracing::warn!(pdu = unit.name, %error, "the unit does not say what outlets it has"),
            }
        }
        let spare = |name: &str| OutletName { pdu: SPARES.to_owned(), outlet: name.to_owned() };
        all.extend(config.spares.iter().map(|it| spare(&it.name)));
        let view = |name: OutletName| {
            let dut = used.get(&name).cloned();
            OutletView { pdu: name.pdu, outlet: name.outlet, dut }
        };
        all.into_iter().map(view).collect()
    }

    /// The outlet, if a discovery may switch it.
    pub(super) async fn socket(&self, name: &OutletName) -> Result<Socket, DiscoverError> {
        let config = self.config();
        let OutletName { pdu, outlet } = name.clone();
        let all = self.outlets().await;
        let of_the_unit: Vec<&OutletView> = all.iter().filter(|other| other.pdu == pdu).collect();
        if let Some(dut) = of_the_unit.iter().find(|it| it.outlet == outlet).and_then(|it| it.dut.clone()) {
            let free = of_the_unit.iter().filter(|it| it.dut.is_none()).map(|it| it.outlet.as_str());
            return Err(DiscoverError::InUse { pdu, outlet, dut, free: listed(free) });
        }
        if pdu == SPARES && !config.spares.is_empty() {
            let names = config.spares.iter().map(|spare| spare.name.as_str());
            let Some(spare) = config.spares.iter().find(|spare| spare.name == outlet) else {
                return Err(DiscoverError::NoSuchOutlet { pdu, wanted: outlet, known: listed(names) });
            };
            let machine = spare_as_dut(&spare.name, &spare.mac, spare.machine.clone());
            let drivers = self.machines.drivers_of(&machine).map_err(|error| DiscoverError::Farm(error.to_string()))?;
            let Drivers { outlet, console } = drivers;
            return Ok(Socket { switch: outlet, console: Some((spare.name.clone(), console)) });
        }
        let Some(unit) = self.machines.hardware().pdu(&pdu) else {
            let spares = (!config.spares.is_empty()).then_some(SPARES);
            let known = listed(config.pdus.iter().map(|unit| unit.name.as_str()).chain(spares));
            return Err(DiscoverError::NoSuchPdu { wanted: pdu, known });
        };
        // A unit that cannot say what it has is believed to have it.
        if let Ok(Some(outlets)) = unit.outlets().await
            && !outlets.iter().any(|info| info.outlet.0 == outlet)
        {
            let known = listed(outlets.iter().map(|info| info.outlet.0.as_str()));
            return Err(DiscoverError::NoSuchOutlet { pdu, wanted: outlet, known });
        }
        Ok(Socket { switch: unit.switch(&Outlet(outlet)), console: None })
    }
}

/// Which DUT is on which outlet: those of the farm, and those of the inventory that are not in it.
fn used(
    config: &FarmConfig,
    registered: impl Iterator<Item = (String, Option<OutletName>)>,
) -> BTreeMap<OutletName, String> {
    let of_the_farm = config.duts.iter().filter_map(|dut| match &dut.machine {
        MachineConfig::Hardware(hardware) => Some((outlet_of(&hardware.power)?, dut.full_name.clone())),
        MachineConfig::Qemu(_) | MachineConfig::Simulated(_) => None,
    });
    registered.filter_map(|(name, outlet)| Some((outlet?, name))).chain(of_the_farm).collect()
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// A spare as the machine that its drivers are made of. It has no address until DHCP gives it one.
fn spare_as_dut(name: &str, mac: &str, machine: MachineConfig) -> DutConfig {
    DutConfig {
        id: mac.to_owned(),
        full_name: name.to_owned(),
        base_name: name.to_owned(),
        tags: Vec::new(),
        mac: mac.to_owned(),
        address: std::net::Ipv4Addr::UNSPECIFIED,
        comment: None,
        access: Access::Everyone,
        needs: Vec::new(),
        machine,
        off_time: None,
        boot: None,
        before_service: BeforeService::Nothing,
    }
}
