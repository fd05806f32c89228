//! Machines on demand, pools and gear: good and bad.

use super::*;

const FARM: &str = "name: lab\nnetwork: {private: {address: 10.77.0.1/24}}\n";
const LEFT: &str = "duts:\n- {id: left, mac: 52:54:00:77:00:01, address: 10.77.0.11, machine: {simulated: {}}}\n";

fn farm(rest: &str) -> FarmConfig {
    parse("farm.yml", &format!("{FARM}{rest}"), Path::new("")).unwrap_or_else(|problems| panic!("{problems}"))
}

/// Place, mistake and next step of each problem.
fn problems(rest: &str) -> Vec<[String; 2]> {
    let problems = parse("farm.yml", &format!("{FARM}{rest}"), Path::new("")).expect_err("the farm is wrong");
    let line = |problem: &job_schema::problem::Problem| {
        let (line, column) = problem.location.map_or((0, 0), |place| (place.line, place.column));
        let hint = problem.hint.clone().unwrap_or_default();
        [format!("{line}:{column}: {}: {}", problem.field, problem.what), hint]
    };
    problems.list().iter().map(line).collect()
}

/// The same, without the next steps.
fn mistakes(rest: &str) -> Vec<String> {
    problems(rest).into_iter().map(|[mistake, _]| mistake).collect()
}

#[test]
fn what_the_file_leaves_out_has_a_default() {
    let farm = farm("duts: []\non_demand:\n- {name: vm, limit: 2, first_address: 10.77.0.50, machine: {qemu: {}}}\n");
    let kind = &farm.on_demand[0];
    assert_eq!((kind.limit, kind.preallocated, &kind.pool), (2, 0, &None));
    assert_eq!((kind.idle, kind.idle_min), (Duration::from_secs(300), Duration::ZERO));
    assert_eq!((kind.access, kind.policy), (Access::Everyone, PlacementPolicy::Spread));
    let members: Vec<_> = kind.members().map(|member| [member.id, member.mac, member.address.to_string()]).collect();
    assert_eq!(members, [["vm-1", "52:54:0a:4d:00:32", "10.77.0.50"], ["vm-2", "52:54:0a:4d:00:33", "10.77.0.51"]]);
}

#[test]
fn the_farm_of_the_fixtures_is_right() {
    let text = include_str!("../../../../../fixtures/farms/on-demand.yml");
    let farm = parse("on-demand.yml", text, Path::new("")).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!((farm.duts.len(), farm.on_demand.len(), farm.gear.len()), (1, 2, 1));
    assert!(farm.on_demand.iter().all(|kind| kind.pool == Some(Pool { name: "this-host".into(), limit: 4 })));
}

#[test]
fn machines_that_do_not_exist_yet_collide_with_nobody() {
    let rest = "dhcp: {range: [10.77.0.60, 10.77.0.70]}\nduts:\n\
        - {id: vm-2, mac: 52:54:00:77:02:01, address: 10.77.0.51, machine: {simulated: {}}}\n\
        - {base_name: box, mac: 52:54:00:77:00:02, address: 10.77.0.12, machine: {simulated: {}}}\n\
        on_demand:\n\
        - {name: vm, limit: 3, first_address: 10.77.0.50, first_mac: 52:54:00:77:02:00, machine: {simulated: {}}}\n\
        - {name: box, limit: 3, first_address: 10.77.0.52, machine: {simulated: {}}}\n\
        - {name: far, limit: 9, first_address: 10.77.0.250, machine: {simulated: {}}}\n\
        - {name: near, limit: 2, first_address: 10.77.0.69, machine: {simulated: {}}}\n\
        - {name: far, limit: 1, first_address: 10.77.0.100, first_mac: ff:ff:ff:ff:ff:ff, machine: {simulated: {}}}\n";
    assert_eq!(
        mistakes(rest),
        [
            "3:15: dhcp.range: the range holds `10.77.0.69`, the address of lab-near-1",
            "8:10: on_demand[0].name: the name `vm-2` is already used by `duts[0].id`",
            "8:39: on_demand[0].first_address: the address `10.77.0.51` is already used by `duts[0].address`",
            "8:62: on_demand[0].first_mac: the MAC `52:54:00:77:02:01` is already used by `duts[0].mac`",
            "9:10: on_demand[1].name: the full name `lab-box-1` is already used by `duts[1].full_name`",
            "9:40: on_demand[1].first_address: the address `10.77.0.52` is already used by `on_demand[0].first_address`",
            "10:40: on_demand[2].first_address: `10.77.0.250` to `10.77.1.2` are not all addresses for DUTs of this network",
            "12:10: on_demand[4].name: the name `far` is already used by `on_demand[2].name`",
        ]
    );
}

#[test]
fn macs_and_machines_do_not_run_out_unnoticed() {
    let kind = |name: &str, mac: &str, limit: u32, third: u32| {
        format!(
            "- {{name: {name}, limit: {limit}, first_address: 10.0.{third}.1, first_mac: {mac}, machine: {{simulated: {{}}}}}}\n"
        )
    };
    let many: String = (1..=11)
        .map(|number| kind(&format!("k{number}"), &format!("52:54:{number:02x}:00:00:00"), 1000, number * 8))
        .collect();
    let rest = format!("{}{many}", kind("last", "ff:ff:ff:ff:ff:ff", 2, 200));
    let text = format!("name: lab\nnetwork: {{private: {{address: 10.0.0.1/16}}}}\nduts: []\non_demand:\n{rest}");
    let problems = parse("farm.yml", &text, Path::new("")).expect_err("the farm is wrong");
    let told: Vec<_> = problems.list().iter().map(|problem| format!("{}: {}", problem.field, problem.what)).collect();
    assert_eq!(
        told,
        [
            "on_demand[0].first_mac: there are no 2 MACs from this one on",
            "on_demand[10].limit: up to here that is 10002 machines on demand",
        ]
    );
}

#[test]
fn numbers_that_contradict_each_other_are_told() {
    let rest = "duts: []\n\
        pools: {host: {limit: 4}, 'a b': {limit: 0}}\n\
        on_demand:\n\
        - {name: a, limit: 2, preallocated: 3, share: host, first_address: 10.77.0.20, machine: {simulated: {}}}\n\
        - {name: b, limit: 9, preallocated: 2, share: hots, first_address: 10.77.0.30, machine: {simulated: {}}}\n\
        - {name: c, limit: 0, preallocated: 2, share: host, idle: 1 s, idle_min: 1 minute, first_address: 10.77.0.40, machine: {}}\n\
        - {limit: 2, policy: pak, access: nobody, first_address: 10.77.0.50}\n";
    assert_eq!(
        problems(rest),
        [
            [
                "4:9: pools.host: 5 machines are to be kept in a pool of 4",
                "raise its `limit`, or lower `preallocated` of what shares it"
            ],
            [
                "4:27: pools.a b: `a b` is not a name: a name cannot contain ` `; use letters, digits, `-`, `_` and `.`",
                "call it that in `share`, too"
            ],
            ["4:42: pools.a b.limit: `0` is out of range", "write a number from 1 to 1000"],
            [
                "6:37: on_demand[0].preallocated: 3 are to be kept, and no more than 2 may exist",
                "raise `limit`, or keep fewer"
            ],
            ["7:47: on_demand[1].share: no pool `hots`", "did you mean `host`?"],
            ["8:20: on_demand[2].limit: `0` is out of range", "write a number from 1 to 1000"],
            [
                "8:74: on_demand[2].idle_min: one is gone after 1 s, before it may make room after 60 s",
                "make `idle_min` shorter than `idle`"
            ],
            ["8:120: on_demand[2].machine: one of `qemu`, `simulated` or `hardware` is missing", "add `qemu:`"],
            ["9:3: on_demand[3].name: the key `name` is missing", "add `name: vm`"],
            ["9:3: on_demand[3].machine: the key `machine` is missing", "add `machine:`"],
            ["9:22: on_demand[3].policy: `pak` is not known here", "did you mean `pack`?"],
            ["9:35: on_demand[3].access: `nobody` is not known here", "use `everyone` or `authorized`"],
        ]
    );
}

#[test]
fn only_what_ranks_below_can_be_needed_and_only_gear_is_shared() {
    let rest = format!(
        "{LEFT}\
        - {{mac: 52:54:00:77:00:02, address: 10.77.0.12, needs: [meter, metre, left], machine: {{simulated: {{}}}}}}\n\
        - {{mac: 52:54:00:77:00:03, address: 10.77.0.13, needs: [lamp, left.console, meter, meter], machine: {{simulated: {{}}}}}}\n\
        on_demand:\n\
        - {{name: vm, limit: 2, first_address: 10.77.0.50, needs: [vm-1], machine: {{simulated: {{}}}}}}\n\
        gear:\n\
        - {{name: meter}}\n\
        - {{name: scope, needs: [meter, vm]}}\n"
    );
    let order = "a part ranks below what needs it, or two could wait for each other: a DUT may need gear, gear nothing";
    assert_eq!(
        problems(&rest),
        [
            ["5:64: duts[1].needs[1]: no gear `metre`", "did you mean `meter`?"],
            ["5:71: duts[1].needs[2]: a dut cannot need `left`, which is a dut", order],
            ["6:57: duts[2].needs[0]: no gear `lamp`", "name `meter` or `scope`, or add it to `gear`"],
            [
                "6:63: duts[2].needs[1]: `left.console` is the console of a DUT",
                "it goes with its own DUT; only gear can be needed"
            ],
            ["6:84: duts[2].needs[3]: `meter` is needed twice", "name it once"],
            ["8:59: on_demand[0].needs[0]: a dut cannot need `vm-1`, which is a dut", order],
            ["11:25: gear[1].needs[0]: a gear cannot need `meter`, which is a gear", order],
            ["11:32: gear[1].needs[1]: a gear cannot need `vm`, which is a dut", order],
        ]
    );
}

#[test]
fn gear_and_parts_have_names_that_nothing_else_has() {
    let rest = format!(
        "{LEFT}\
        - {{id: 'right{{}}', mac: 52:54:00:77:00:02, address: 10.77.0.12, machine: {{simulated: {{}}}}}}\n\
        - {{id: 'a b', mac: 52:54:00:77:00:03, address: 10.77.0.255, machine: {{simulated: {{}}}}}}\n\
        gear: [{{name: left}}, {{name: left.power}}, {{name: meter, seats: 2}}, {{name: meter}}]\n"
    );
    assert_eq!(
        mistakes(&rest),
        [
            "5:8: duts[1].id: `right{}` is not an id: an id cannot contain braces",
            "6:8: duts[2].id: `a b` is not an id: an id cannot contain ` `",
            "6:48: duts[2].address: `10.77.0.255` is not an address for a DUT of this network",
            "7:15: gear[0].name: the name `left` is already used by `duts[0].id`",
            "7:29: gear[1].name: the name `left.power` is already used by `duts[0].id`",
            "7:74: gear[3].name: the name `meter` is already used by `gear[2].name`",
        ]
    );
}
