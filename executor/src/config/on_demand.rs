//! Machines that are made when jobs ask for them. Every one of them is known in full before it exists, so that a lease, a restart and
//! the admin's address plan all mean the same machine by `vm-3`. ◆
//!
//! ```text
//!  {name: vm, limit: 3, first_address: 10.77.0.50}  ── member(1) ──► `vm-1`  10.77.0.50  52:54:0a:4d:00:32
//!                                                   ── member(3) ──► `vm-3`  10.77.0.52  52:54:0a:4d:00:34
//! ```

use std::net::Ipv4Addr;
use std::time::Duration;

use super::{BeforeService, DutConfig, FarmConfig, MachineConfig};
use crate::lease::rows::{Access, PlacementPolicy, Pool};

/// How long a machine is kept idle when the file does not say: the jobs of one pipeline come within minutes of each other, and a
/// machine that is off costs no more than its place.
pub const IDLE: Duration = Duration::from_secs(300);

/// A kind of machine that is made when jobs ask for it.
#[derive(Clone, Debug, PartialEq)]
pub struct OnDemandConfig {
    /// Its machines are called `<name>-<k>`, k from 1; or `<name>` where there may only be one.
    pub name: String,
    /// `<farm>-<name>`, numbered in the same way.
    pub full_name: String,
    /// What jobs ask for.
    pub tags: Vec<String>,
    /// A note of the admin's.
    pub comment: Option<String>,
    /// What is made.
    pub machine: MachineConfig,
    /// The most that exist at a time.
    pub limit: u32,
    /// How many are kept, wanted or not.
    pub preallocated: u32,
    /// The limit that it shares with others.
    pub pool: Option<Pool>,
    /// How long one is kept idle.
    pub idle: Duration,
    /// How long one must have been idle before it makes room for another.
    pub idle_min: Duration,
    /// The address of the first; the others follow it.
    pub first_address: Ipv4Addr,
    /// The MAC of the first, as a number of 48 bits; the others follow it.
    pub first_mac: u64,
    /// Who may lease one.
    pub access: Access,
    /// Which of several free ones is taken.
    pub policy: PlacementPolicy,
    /// Gear that goes with each, by name.
    pub needs: Vec<String>,
}

impl OnDemandConfig {
    /// The machine of this number, from 1 to the limit.
    pub fn member(&self, number: u32) -> DutConfig {
        debug_assert!((1..=self.limit).contains(&number), "members are numbered from 1 to the limit");
        let offset = number.saturating_sub(1);
        DutConfig {
            id: self.numbered(&self.name, number),
            full_name: self.numbered(&self.full_name, number),
            base_name: self.name.clone(),
            tags: self.tags.clone(),
            mac: mac_text(self.first_mac.saturating_add(u64::from(offset))),
            address: u32::from(self.first_address).saturating_add(offset).into(),
            comment: self.comment.clone(),
            access: self.access,
            needs: self.needs.clone(),
            machine: self.machine.clone(),
            off_time: None,
            boot: None,
            before_service: BeforeService::Nothing,
        }
    }

    /// All machines that there may be.
    pub fn members(&self) -> impl Iterator<Item = DutConfig> {
        (1..=self.limit).map(|number| self.member(number))
    }

    /// The number of the machine that is called this.
    fn number_of(&self, name: &str) -> Option<u32> {
        let number = match name.strip_prefix(self.name.as_str())? {
            "" => 1,
            rest => rest.strip_prefix('-')?.parse().ok()?,
        };
        let is_it = (1..=self.limit).contains(&number) && self.numbered(&self.name, number) == name;
        is_it.then_some(number)
    }

    fn numbered(&self, name: &str, number: u32) -> String {
        if self.limit == 1 { name.to_owned() } else { format!("{name}-{number}") }
    }
}

impl FarmConfig {
    /// The machine that a resource of this name is: one of the file, or one that is made on demand.
    pub fn member(&self, name: &str) -> Option<DutConfig> {
        let of_the_file = self.duts.iter().find(|dut| dut.id == name).cloned();
        of_the_file.or_else(|| self.on_demand.iter().find_map(|kind| Some(kind.member(kind.number_of(name)?))))
    }

    /// Every machine that this farm may have to run, each kind made on demand once.
    pub fn machines(&self) -> impl Iterator<Item = &MachineConfig> {
        let on_demand = self.on_demand.iter().map(|kind| &kind.machine);
        let spares = self.spares.iter().map(|spare| &spare.machine);
        self.duts.iter().map(|dut| &dut.machine).chain(on_demand).chain(spares)
    }
}

/// A MAC that nobody else uses who sticks to this rule: QEMU's locally administered `52:54`, then the machine's address.
pub(super) fn mac_of(address: Ipv4Addr) -> u64 {
    0x5254_0000_0000 | u64::from(u32::from(address))
}

/// A MAC of six bytes in hexadecimal, as a number.
pub(super) fn mac_number(text: &str) -> Option<u64> {
    u64::from_str_radix(&text.replace([':', '-'], ""), 16).ok()
}

fn mac_text(mac: u64) -> String {
    let bytes: Vec<_> = mac.to_be_bytes()[2..].iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SimulatedConfig;

    fn kind(name: &str, limit: u32) -> OnDemandConfig {
        OnDemandConfig {
            name: name.into(),
            full_name: format!("lab-{name}"),
            tags: vec!["virtual".into()],
            comment: None,
            machine: MachineConfig::Simulated(SimulatedConfig::default()),
            limit,
            preallocated: 0,
            pool: None,
            idle: IDLE,
            idle_min: Duration::ZERO,
            first_address: [10, 77, 0, 255].into(),
            first_mac: 0x5254_0077_02ff,
            access: Access::Everyone,
            policy: PlacementPolicy::Spread,
            needs: Vec::new(),
        }
    }

    #[test]
    fn a_member_has_its_own_name_mac_and_address() {
        let second = kind("vm", 3).member(2);
        assert_eq!(
            (second.id.as_str(), second.full_name.as_str(), second.base_name.as_str()),
            ("vm-2", "lab-vm-2", "vm")
        );
        assert_eq!((second.mac.as_str(), second.address), ("52:54:00:77:03:00", Ipv4Addr::new(10, 77, 1, 0)));
    }

    #[test]
    fn the_only_member_has_no_number() {
        let only = kind("vm", 1);
        assert_eq!((only.member(1).id.as_str(), only.member(1).full_name.as_str()), ("vm", "lab-vm"));
        assert_eq!((only.number_of("vm"), only.number_of("vm-1")), (Some(1), None));
    }

    #[test]
    fn a_name_leads_back_to_its_number_and_no_other_name_does() {
        let kind = kind("vm", 12);
        for member in 1..=12 {
            assert_eq!(kind.number_of(&kind.member(member).id), Some(member));
        }
        for stranger in
            ["vm", "vm-", "vm-0", "vm-13", "vm-01", "vm-+1", "vm1", "vm-1-1", "v", "lab-vm-1", "vm-99999999999"]
        {
            assert_eq!(kind.number_of(stranger), None, "{stranger}");
        }
    }

    #[test]
    fn a_mac_is_made_of_the_address_where_none_is_given() {
        assert_eq!(mac_text(mac_of([10, 77, 0, 50].into())), "52:54:0a:4d:00:32");
        assert_eq!(mac_number("52:54:0a:4d:00:32"), Some(mac_of([10, 77, 0, 50].into())));
    }
}
