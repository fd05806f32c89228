//! What the farm file's machines are to the leases: a DUT is its console, its outlet and its boot namespace as one gang. ◆
//!
//! ```text
//!  dut `left` ──gang──► boot namespace  made for each lease; the slot `bootns:left` keeps two of them apart
//!             ├───────► `left.console`  a resource of its own: its writer is leased
//!             └───────► `left.power`    a resource of its own: it is switched under a lease only
//! ```

use crate::config::{DutConfig, FarmConfig};
use crate::lease::rows::{Access, Blueprint, Claim, ClaimOn, Kind, PlacementPolicy, Service};

/// How long making a resource ready may take: a PDU's call may take 30 s, being switched is two of them (set, read back), and it is
/// tried three times with pauses of seconds between.
const ACTIVATE_MS: u64 = 200_000;

/// The name of a DUT's console among the resources.
pub fn console_name(dut: &str) -> String {
    format!("{dut}.console")
}

/// The name of a DUT's outlet among the resources.
pub fn power_name(dut: &str) -> String {
    format!("{dut}.power")
}

/// The slot that keeps two boot namespaces of one DUT apart.
pub fn boot_namespace_identity(dut: &str) -> String {
    format!("bootns:{dut}")
}

/// Everything of the farm file that can be leased.
pub fn rows(config: &FarmConfig) -> Vec<Blueprint> {
    let farm = format!("farm:{}", config.name);
    config.duts.iter().flat_map(|dut| machine(dut, &farm)).collect()
}

/// A machine of the inventory and its parts.
fn machine(dut: &DutConfig, farm: &str) -> [Blueprint; 3] {
    let named = |kind, name: &str| Claim { kind, on: ClaimOn::Named(name.to_owned()) };
    let (console, power) = (console_name(&dut.id), power_name(&dut.id));
    let namespace = ClaimOn::Made { identity: boot_namespace_identity(&dut.id) };
    let gang = vec![
        Claim { kind: Kind::BootNamespace, on: namespace },
        named(Kind::Console, &console),
        named(Kind::Power, &power),
    ];
    let tags = dut.tags.iter().cloned().chain([farm.to_owned()]).collect();
    [
        Blueprint { tags, gang, ..lone(Kind::Dut, dut.id.clone(), dut.full_name.clone()) },
        lone(Kind::Console, console, console_name(&dut.full_name)),
        lone(Kind::Power, power, power_name(&dut.full_name)),
    ]
}

/// One thing that is there, for one lease at a time.
fn lone(kind: Kind, name: String, full_name: String) -> Blueprint {
    Blueprint {
        name,
        full_name,
        kind,
        tags: Vec::new(),
        limit: 1,
        pool: None,
        preallocated: 1,
        seats: 1,
        gang: Vec::new(),
        access: Access::Everyone,
        policy: PlacementPolicy::Spread,
        idle_ms_min: 0,
        idle_ms_max: None,
        activate_ms: ACTIVATE_MS,
        mean_hold_ms: None,
        service: Service::Open,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn rows_of(text: &str) -> Vec<Blueprint> {
        let config =
            crate::config::parse("farm.yml", text, Path::new("")).unwrap_or_else(|problems| panic!("{problems}"));
        rows(&config)
    }

    #[test]
    fn a_machine_of_the_inventory_is_a_gang_of_its_console_its_outlet_and_a_boot_namespace() {
        let rows = rows_of(
            "name: lab\nnetwork: {private: {address: 10.77.0.1/24}}\nduts:\n\
             - {id: left, mac: 52:54:00:77:00:01, address: 10.77.0.11, tags: [arm], machine: {simulated: {}}}\n",
        );
        let names: Vec<_> = rows.iter().map(|row| (row.kind, row.name.as_str(), row.full_name.as_str())).collect();
        assert_eq!(
            names,
            [
                (Kind::Dut, "left", "lab-dut-1"),
                (Kind::Console, "left.console", "lab-dut-1.console"),
                (Kind::Power, "left.power", "lab-dut-1.power"),
            ]
        );
        assert!(rows.iter().all(|row| (row.limit, row.preallocated, row.seats) == (1, 1, 1)));
        assert_eq!(rows[0].tags, ["arm", "farm:lab"]);
        assert_eq!(
            rows[0].gang,
            [
                Claim { kind: Kind::BootNamespace, on: ClaimOn::Made { identity: "bootns:left".into() } },
                Claim { kind: Kind::Console, on: ClaimOn::Named("left.console".into()) },
                Claim { kind: Kind::Power, on: ClaimOn::Named("left.power".into()) },
            ]
        );
    }
}
