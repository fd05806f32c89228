//! Farm files, good and bad.

use super::*;

const FARM: &str = "name: lab\nnetwork: {private: {address: 10.77.0.1/24}}\nduts:\n";

fn farm(rest: &str) -> Result<FarmConfig, Problems> {
    parse("farm.yml", &format!("{FARM}{rest}"), Path::new(""))
}

fn problems(text: &str) -> Vec<String> {
    let problems = parse("farm.yml", text, Path::new("")).expect_err("the farm is wrong");
    let line = |problem: &job_schema::problem::Problem| {
        format!("{}: {}: {}", problem.location.map_or(0, |place| place.line), problem.field, problem.what)
    };
    problems.list().iter().map(line).collect()
}

#[test]
fn a_dut_gets_its_mac_as_id_and_a_full_name_of_the_farm() {
    let farm = farm(
        "- {mac: 52-54-00-77-00-0A, address: 10.77.0.11, base_name: box, machine: {simulated: {}}}\n\
         - {mac: 52:54:00:77:00:02, address: 10.77.0.12, base_name: box, machine: {qemu: {firmware: uefi-pxe}}}\n",
    )
    .unwrap();
    let names: Vec<_> = farm.duts.iter().map(|dut| (dut.id.as_str(), dut.full_name.as_str())).collect();
    assert_eq!(names, [("52:54:00:77:00:0a", "lab-box-1"), ("52:54:00:77:00:02", "lab-box-2")]);
    assert!(matches!(&farm.duts[1].machine, MachineConfig::Qemu(qemu) if qemu.firmware == Firmware::UefiPxe));
}

#[test]
fn the_farms_of_the_fixtures_are_right() {
    for text in [
        include_str!("../../../../fixtures/farms/virtual.yml"),
        include_str!("../../../../fixtures/farms/simulated.yml"),
    ] {
        let farm = parse("farm.yml", text, Path::new("")).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(farm.duts.len(), 4);
    }
}

#[test]
fn a_proxy_stands_on_a_network_with_another_dhcp_server_and_gives_no_addresses() {
    let text = |network: &str, dhcp: &str| format!("name: lab\nnetwork: {network}\ndhcp: {dhcp}\nduts: []\n");
    let interface = "{interface: {name: eth1, address: 10.0.0.1/24}}";
    let role = |dhcp: &str| parse("farm.yml", &text(interface, dhcp), Path::new("")).unwrap().dhcp;
    assert_eq!((role("{mode: proxy}"), role("{mode: server}")), (Role::Proxy, Role::default()));
    assert_eq!(
        problems(&text("{private: {address: 10.0.0.1/24}}", "{mode: proxy, range: [10.0.0.5, 10.0.0.9]}")),
        ["3: dhcp.mode: there is no other DHCP server on this network", "3: dhcp.range: a proxy gives no addresses",]
    );
}

#[test]
fn mistakes_of_shape_and_of_sense_are_told_together() {
    let text = "name: lab\nnetwork: {private: {address: 10.77.0.1/24}}\ndhcp: {range: [10.77.0.10, 10.77.0.20]}\n\
                listen: {api: 'farm:80'}\nvariables: {ntp_peer: 10.77.0.1, registry: r.example.org}\nduts:\n\
                - {mac: 52:54:00:77:00:01, address: 10.77.0.11, machine: {simulated: {}}}\n\
                - {mac: 52:54:00:77:00:01, address: 10.99.0.11, machine: {simulated: {console: nowhere.yml}}}\n\
                - {mac: nonsense, address: 10.77.0.12, speed: 9, machine: {qemu: {firmware: coreboot}}}\n";
    assert_eq!(
        problems(text),
        [
            "3: dhcp.range: the range holds `10.77.0.11`, the address of lab-dut-1",
            "4: listen.api: `farm:80` is not an address and port",
            "5: variables.registry: `registry` is a value of the farm's own in every template",
            "8: duts[1].mac: the MAC `52:54:00:77:00:01` is already used by `duts[0].mac`",
            "8: duts[1].address: `10.99.0.11` is not an address for a DUT of this network",
            "8: duts[1].machine.simulated.console: no file `nowhere.yml`",
            "9: duts[2].mac: `nonsense` is not a MAC address: it is not six bytes in hexadecimal",
            "9: duts[2].speed: unknown key `speed`",
            "9: duts[2].machine.qemu.firmware: `coreboot` is not known here",
        ]
    );
}

#[test]
fn what_is_wrong_in_one_dut_does_not_move_the_mistakes_of_the_next_ones() {
    let text = format!(
        "{FARM}- {{address: 10.77.0.11, machine: {{simulated: {{}}}}}}\n\
         - {{mac: 52:54:00:77:00:02, address: 10.77.0.12}}\n\
         - {{mac: 52:54:00:77:00:03, address: ten, machine: {{}}}}\n\
         - {{mac: nonsense, address: 10.77.0.14, machine: {{simulated: {{}}}}}}\n\
         - {{mac: 52:54:00:77:00:05, address: 10.77.0.15, machine: {{simulated: {{console: nowhere.yml}}}}}}\n"
    );
    assert_eq!(
        problems(&text),
        [
            "4: duts[0].mac: the key `mac` is missing",
            "5: duts[1].machine: the key `machine` is missing",
            "6: duts[2].address: `ten` is not an IPv4 address: invalid IPv4 address syntax",
            "6: duts[2].machine: one of `qemu`, `simulated` or `hardware` is missing",
            "7: duts[3].mac: `nonsense` is not a MAC address: it is not six bytes in hexadecimal",
            "8: duts[4].machine.simulated.console: no file `nowhere.yml`",
        ]
    );
}

#[test]
fn a_missing_network_or_name_is_said_by_name() {
    assert_eq!(
        problems("duts: []\n"),
        ["1: name: the key `name` is missing", "1: network: the key `network` is missing"]
    );
}

#[test]
fn a_fault_may_have_a_length_where_that_means_something() {
    let one = |fault: &str| {
        format!("- {{mac: 52:54:00:77:00:01, address: 10.77.0.11, machine: {{simulated: {{misbehave: [{fault}]}}}}}}\n")
    };
    let lasts = |fault: &str| match &farm(&one(fault)).unwrap().duts[0].machine {
        MachineConfig::Simulated(simulated) => simulated.misbehave[0].lasts,
        MachineConfig::Qemu(_) | MachineConfig::Hardware(_) => panic!("it is simulated"),
    };
    assert_eq!(lasts("{what: outlet-slow, for: 1m 30s}"), Some(Duration::from_secs(90)));
    assert_eq!(lasts("{what: outlet-slow}"), Some(Duration::from_secs(30)));
    assert_eq!(lasts("{what: console-away}"), Some(Duration::from_secs(60)));
    assert_eq!(lasts("{what: outlet-lies}"), None);
    let wrong = ["{what: talks-on, for: 1s}", "{what: outlet-slow, for: soon}", "{what: outlet-slow, for: {s: 1}}"];
    let told = wrong.map(|fault| problems(&format!("{FARM}{}", one(fault))).join("; "));
    assert_eq!(
        told,
        [
            "4: duts[0].machine.simulated.misbehave[0].for: this fault has no length",
            "4: duts[0].machine.simulated.misbehave[0].for: `soon` is not a duration: each part of a duration begins with a number",
            "4: duts[0].machine.simulated.misbehave[0].for: expected text, found a mapping",
        ]
    );
}
