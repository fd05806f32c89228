//! What others see of registered machines, besides what they see of every DUT.

use crate::blueprint::power::PowerState;
use crate::farm::{DutState, DutView, Farm};
use crate::inventory::{Entry, OutletName, SetAside};
use crate::lease::rows::Health;

/// How a DUT was found, and where its power comes from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Its outlet, on a unit that the farm file names.
    pub outlet: Option<OutletName>,
    /// Its record, when it is none of the farm file's.
    pub registered: Option<Entry>,
}

impl Farm {
    /// What is known of a DUT besides its view.
    pub fn found(&self, dut: &str) -> Found {
        Found { outlet: self.outlet_of(dut), registered: self.inventory().find(dut).map(|(_, entry)| entry) }
    }

    /// The machines of the inventory that are not in the farm yet.
    pub(in crate::farm) fn waiting_for_config(&self) -> impl Iterator<Item = DutView> {
        let farm = self.name().to_owned();
        self.set_aside().into_iter().map(move |aside| waiting(&farm, aside))
    }
}

fn waiting(farm: &str, SetAside { id, entry, why }: SetAside) -> DutView {
    let mut tags = entry.tags;
    tags.extend(entry.manual_tags);
    tags.push(format!("farm:{farm}"));
    DutView {
        id,
        full_name: entry.full_name,
        base_name: entry.base_name,
        state: DutState::WaitForConfig,
        tags,
        mac_address: entry.mac_address,
        ip_address: entry.ip_address.to_string(),
        comment: Some(why),
        trial: None,
        health: Health::Unknown,
        is_retired: false,
        ready_for_service: false,
        job: None,
        holder: None,
        power: None::<PowerState>,
    }
}
