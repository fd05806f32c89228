//! What the farm file's machines and gear are to the leases: a DUT is its console, its outlet, its boot namespace and the gear that it
//! needs as one gang. ◆
//!
//! | part | of `left`, which is there | of `vm-2`, which is made on demand |
//! |---|---|---|
//! | boot namespace | made for each lease, slot `bootns:left` | made for each lease, slot `bootns:vm-2` |
//! | console | the resource `left.console` | made for each lease, slot `console:vm-2` |
//! | power | the resource `left.power` | made for each lease, slot `power:vm-2` |
//! | gear | the resource of its name | the resource of its name |

use std::time::Duration;

use crate::config::{BeforeService, DutConfig, FarmConfig, GearConfig, OnDemandConfig};
use crate::lease::rows::{
    Access, Admin, Blueprint, Claim, ClaimOn, Kind, Patience, PlacementPolicy, Service, Standing, Trial,
};

/// How long making a resource ready, or bringing up the parts of a lease, may take. Today's parts take milliseconds; the room is for one
/// whose outlet has to be switched and read first: two calls of 45 s, tried twice.
pub const ACTIVATE_MS: u64 = 200_000;

/// The name of a DUT's console among the resources.
pub fn console_name(dut: &str) -> String {
    format!("{dut}.console")
}

/// The name of a DUT's outlet among the resources.
pub fn power_name(dut: &str) -> String {
    format!("{dut}.power")
}

/// The slot that keeps two boot namespaces of one DUT apart.
fn boot_namespace_identity(dut: &str) -> String {
    format!("bootns:{dut}")
}

/// Everything of the farm file that can be leased.
pub fn rows(config: &FarmConfig) -> Vec<Blueprint> {
    let farm = format!("farm:{}", config.name);
    let machines = config.duts.iter().flat_map(|dut| machine(dut, &farm));
    let on_demand = config.on_demand.iter().map(|kind| on_demand(kind, &farm));
    let gear = config.gear.iter().map(|it| gear(it, &farm));
    let rows = machines.chain(on_demand).chain(gear).chain(super::host::rows(config));
    rows.map(|row| Blueprint { patience: config.patience, ..row }).collect()
}

/// A machine that is there, and its parts.
fn machine(dut: &DutConfig, farm: &str) -> [Blueprint; 3] {
    let named = |kind, name: &str| Claim { kind, on: ClaimOn::Named(name.to_owned()) };
    let (console, power) = (console_name(&dut.id), power_name(&dut.id));
    let namespace = ClaimOn::Made { identity: boot_namespace_identity(&dut.id) };
    let mut gang = vec![
        Claim { kind: Kind::BootNamespace, on: namespace },
        named(Kind::Console, &console),
        named(Kind::Power, &power),
    ];
    gang.extend(dut.needs.iter().map(|gear| named(Kind::Gear, gear)));
    let tags = tagged(&dut.tags, farm);
    let trial = match dut.before_service {
        BeforeService::Nothing => None,
        BeforeService::Training | BeforeService::Retired => Some(Trial::Training),
        BeforeService::QuickCheck => Some(Trial::QuickCheck),
    };
    // Only of a machine that is new here: what is known of one goes before this.
    let before = (dut.before_service == BeforeService::Retired).then(|| {
        let reason = "it was retired in the farm that it comes from".to_owned();
        Standing { admin: Admin::Retired { reason }, ..Standing::default() }
    });
    [
        Blueprint {
            tags,
            gang,
            access: dut.access,
            trial,
            before,
            ..lone(Kind::Dut, dut.id.clone(), dut.full_name.clone())
        },
        lone(Kind::Console, console, console_name(&dut.full_name)),
        lone(Kind::Power, power, power_name(&dut.full_name)),
    ]
}

/// Machines that are made when they are asked for; their parts come and go with the leases on them.
fn on_demand(kind: &OnDemandConfig, farm: &str) -> Blueprint {
    let made = |kind, identity: String| Claim { kind, on: ClaimOn::Made { identity } };
    let mut gang = vec![
        made(Kind::BootNamespace, boot_namespace_identity("{}")),
        made(Kind::Console, "console:{}".to_owned()),
        made(Kind::Power, "power:{}".to_owned()),
    ];
    gang.extend(kind.needs.iter().map(|gear| Claim { kind: Kind::Gear, on: ClaimOn::Named(gear.clone()) }));
    Blueprint {
        tags: tagged(&kind.tags, farm),
        limit: kind.limit,
        pool: kind.pool.clone(),
        preallocated: kind.preallocated,
        gang,
        access: kind.access,
        policy: kind.policy,
        idle_ms_min: milliseconds(kind.idle_min),
        idle_ms_max: Some(milliseconds(kind.idle)),
        ..lone(Kind::Dut, kind.name.clone(), kind.full_name.clone())
    }
}

fn gear(gear: &GearConfig, farm: &str) -> Blueprint {
    let tags = tagged(&gear.tags, farm);
    let (seats, access) = (gear.seats, gear.access);
    Blueprint { tags, seats, access, ..lone(Kind::Gear, gear.name.clone(), gear.full_name.clone()) }
}

fn tagged(tags: &[String], farm: &str) -> Vec<String> {
    tags.iter().cloned().chain([farm.to_owned()]).collect()
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// One thing that is there, for one lease at a time.
pub(super) fn lone(kind: Kind, name: String, full_name: String) -> Blueprint {
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
        patience: Patience::default(),
        trial: None,
        before: None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::lease::rows::{LeaseRequest, LeaseState, Mode, Object, Pool, Purpose, Want};
    use crate::lease::samples::{SmallFarm, request};

    fn farm_of(text: &str) -> FarmConfig {
        crate::config::parse("farm.yml", text, Path::new("")).unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn rows_of(text: &str) -> Vec<Blueprint> {
        rows(&farm_of(text))
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

    const FARM: &str = "name: lab\nnetwork: {private: {address: 10.77.0.1/24}}\n";

    #[test]
    fn a_machine_on_demand_makes_its_parts_and_gear_is_there_by_its_name() {
        let rows = rows_of(&format!(
            "{FARM}duts:\n\
             - {{id: left, mac: 52:54:00:77:00:01, address: 10.77.0.11, needs: [meter], access: authorized, machine: {{simulated: {{}}}}}}\n\
             pools: {{host: {{limit: 3}}}}\n\
             on_demand:\n\
             - {{name: vm, limit: 4, preallocated: 1, share: host, idle: 90 s, idle_min: 5 s, policy: pack, tags: [virtual],\n\
                 first_address: 10.77.0.50, needs: [meter], machine: {{qemu: {{}}}}}}\n\
             gear: [{{name: meter, tags: [volts], seats: 2}}]\n"
        ));
        let [left, .., vm, meter] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!(left.access, Access::Authorized);
        assert_eq!(left.gang[3], Claim { kind: Kind::Gear, on: ClaimOn::Named("meter".into()) });
        let made = |kind, identity: &str| Claim { kind, on: ClaimOn::Made { identity: identity.into() } };
        let expected = Blueprint {
            name: "vm".into(),
            full_name: "lab-vm".into(),
            kind: Kind::Dut,
            tags: vec!["virtual".into(), "farm:lab".into()],
            limit: 4,
            pool: Some(Pool { name: "host".into(), limit: 3 }),
            preallocated: 1,
            seats: 1,
            gang: vec![
                made(Kind::BootNamespace, "bootns:{}"),
                made(Kind::Console, "console:{}"),
                made(Kind::Power, "power:{}"),
                Claim { kind: Kind::Gear, on: ClaimOn::Named("meter".into()) },
            ],
            access: Access::Everyone,
            policy: PlacementPolicy::Pack,
            idle_ms_min: 5_000,
            idle_ms_max: Some(90_000),
            activate_ms: 200_000,
            mean_hold_ms: None,
            service: Service::Open,
            patience: Patience::default(),
            trial: None,
            before: None,
        };
        assert_eq!(*vm, expected);
        assert_eq!((meter.kind, meter.name.as_str(), meter.full_name.as_str()), (Kind::Gear, "meter", "lab-meter"));
        assert_eq!((meter.seats, meter.limit, meter.preallocated), (2, 1, 1));
        assert_eq!(meter.tags, ["volts", "farm:lab"]);
    }

    /// The allocator numbers what it makes by itself: the names it comes to must be those that the farm file knows.
    #[test]
    fn what_the_leases_make_is_a_machine_that_the_farm_file_knows() {
        let config = farm_of(&format!(
            "{FARM}duts: []\non_demand:\n\
             - {{name: one, limit: 1, first_address: 10.77.0.40, preallocated: 1, machine: {{simulated: {{}}}}}}\n\
             - {{name: vm, limit: 3, first_address: 10.77.0.50, preallocated: 3, machine: {{simulated: {{}}}}}}\n"
        ));
        let farm = SmallFarm::of(rows(&config));
        let made: Vec<_> = farm.tables.resources().map(|made| (made.name.as_str(), made.full_name.as_str())).collect();
        assert_eq!(made, [("one", "lab-one"), ("vm-1", "lab-vm-1"), ("vm-2", "lab-vm-2"), ("vm-3", "lab-vm-3")]);
        for (name, full_name) in made {
            assert_eq!(config.member(name).map(|member| member.full_name).as_deref(), Some(full_name));
        }
        assert!(config.member("vm-4").is_none());
    }

    #[test]
    fn two_machines_that_need_the_same_gear_take_turns() {
        let mut farm = SmallFarm::of(rows_of(&format!(
            "{FARM}duts:\n\
             - {{id: left, mac: 52:54:00:77:00:01, address: 10.77.0.11, needs: [meter], machine: {{simulated: {{}}}}}}\n\
             - {{id: right, mac: 52:54:00:77:00:02, address: 10.77.0.12, needs: [meter], machine: {{simulated: {{}}}}}}\n\
             gear: [{{name: meter}}]\n"
        )));
        farm.request(request("first", &["farm:lab"]));
        farm.request(request("second", &["farm:lab"]));
        farm.settle();
        assert_eq!((farm.holds("first").as_deref(), farm.state("second")), (Some("left"), LeaseState::Pending));
        assert_eq!(
            farm.outlook("second").1,
            ["lab-dut-1 is busy with job first", "lab-dut-2 needs the gear meter, which is not free"]
        );
        farm.release("first");
        assert_eq!(farm.state("second"), LeaseState::Active);
    }

    #[test]
    fn gear_that_a_job_asks_for_and_its_machine_needs_is_held_once() {
        let mut farm = SmallFarm::of(rows_of(&format!(
            "{FARM}duts:\n\
             - {{id: left, mac: 52:54:00:77:00:01, address: 10.77.0.11, needs: [meter], machine: {{simulated: {{}}}}}}\n\
             gear: [{{name: meter}}]\n"
        )));
        let meter = Want {
            kind: Kind::Gear,
            name: Some("meter".into()),
            tags: Vec::new(),
            mode: Mode::Hold,
            purpose: Purpose::Work,
        };
        farm.request(LeaseRequest { also: vec![meter], ..request("job", &[]) });
        farm.settle();
        assert_eq!((farm.state("job"), farm.holds("job").as_deref()), (LeaseState::Active, Some("left")));
        let held: Vec<_> =
            farm.tables.children(&Object::Lease("job".into())).map(|part| part.request.want.kind).collect();
        assert_eq!(held, [Kind::BootNamespace, Kind::Console, Kind::Gear, Kind::Power]);
    }
}
