//! What the inventory keeps, merges and refuses.

use super::*;

const FARM: &str = "name: lab\nnetwork: {interface: {name: eth1, address: 10.77.0.1/24}}\n\
    pdus: [{name: rack, exec: {on: [outlet, '{outlet}'], off: [outlet, '{outlet}'], state: [outlet, '{outlet}']}}]\n\
    consoles: [{name: line-1, tcp: {host: ser2net.lab, port: 2001}}, {name: line-2, tcp: {host: ser2net.lab, port: 2002}}]\n\
    duts:\n\
    - {id: left, mac: 52:54:00:77:00:01, address: 10.77.0.11, machine: {hardware: {power: {pdu: rack, outlet: '1'}, console: {line: line-1}}}}\n";

fn farm() -> FarmConfig {
    crate::config::parse("farm.yml", FARM, Path::new("")).unwrap_or_else(|problems| panic!("{problems}"))
}

fn entry() -> Entry {
    Entry {
        base_name: "nuc".into(),
        full_name: "lab-nuc-1".into(),
        mac_address: "52:54:00:77:00:02".into(),
        ip_address: Ipv4Addr::new(10, 77, 0, 101),
        tags: vec!["arch:x86_64".into()],
        manual_tags: vec!["desk".into()],
        power: Some(OutletName { pdu: "rack".into(), outlet: "2".into() }),
        console: Some("line-2".into()),
        local_tty_device: Some("ttyS0".into()),
        firmware_boot_time_s: Some(12.5),
        facts: BTreeMap::from([("cpu".to_owned(), "a processor".to_owned())]),
        comment: None,
        fastboot_serial: None,
        off_time_s: None,
        arrives: None,
        first_seen: "2026-11-21T12:00:00Z".parse().unwrap(),
    }
}

const ID: &str = "52:54:00:77:00:02";

fn inventory() -> (tempfile::TempDir, Inventory) {
    let folder = tempfile::tempdir().unwrap();
    let inventory = Inventory::open(folder.path()).unwrap();
    (folder, inventory)
}

#[test]
fn what_is_put_is_there_after_a_restart_in_a_file_that_people_can_read() {
    let (folder, inventory) = inventory();
    inventory.put(ID, entry()).unwrap();
    let again = Inventory::open(folder.path()).unwrap();
    assert_eq!(again.all(), BTreeMap::from([(ID.to_owned(), entry())]));
    let text = fs::read_to_string(folder.path().join("inventory.yml")).unwrap();
    let expected = "\
duts:
  52:54:00:77:00:02:
    base_name: nuc
    full_name: lab-nuc-1
    mac_address: 52:54:00:77:00:02
    ip_address: 10.77.0.101
    tags:
    - arch:x86_64
    manual_tags:
    - desk
    power:
      pdu: rack
      outlet: '2'
    console: line-2
    local_tty_device: ttyS0
    firmware_boot_time_s: 12.5
    facts:
      cpu: a processor
    first_seen: 2026-11-21T12:00:00Z
";
    assert_eq!(text, format!("{HEAD}{expected}"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing half written is left");
}

#[test]
fn a_machine_with_outlet_and_console_is_one_of_the_farm() {
    let (_folder, inventory) = inventory();
    inventory.put(ID, entry()).unwrap();
    let (config, aside) = inventory.merged(farm());
    assert_eq!(aside, []);
    let [_, dut] = config.duts.as_slice() else { panic!("{:?}", config.duts) };
    assert_eq!((dut.id.as_str(), dut.full_name.as_str(), dut.mac.as_str()), (ID, "lab-nuc-1", ID));
    assert_eq!(dut.tags, ["arch:x86_64", "desk"]);
    let MachineConfig::Hardware(hardware) = &dut.machine else { panic!("{dut:?}") };
    assert_eq!(outlet_of(&hardware.power), entry().power);
    assert_eq!(hardware.console, Whose::Named("line-2".into()));
}

#[test]
fn what_is_missing_or_taken_is_told_with_the_next_step_and_the_farm_file_wins() {
    let outlet = |pdu: &str, outlet: &str| Some(OutletName { pdu: pdu.into(), outlet: outlet.into() });
    for (id, changed, why) in [
        (
            ID,
            Entry { power: None, ..entry() },
            "its outlet is not known; say it with `wharf dut add 52:54:00:77:00:02 --pdu PDU --outlet OUTLET`",
        ),
        (
            ID,
            Entry { console: None, ..entry() },
            "its console is not known; say it with `wharf dut add 52:54:00:77:00:02 --console LINE`",
        ),
        (ID, Entry { power: outlet("shelf", "2"), ..entry() }, "the farm has no PDU `shelf`; PDUs: rack"),
        (
            ID,
            Entry { console: Some("line-3".into()), ..entry() },
            "the farm file has no console `line-3`; consoles: line-1, line-2",
        ),
        (
            ID,
            Entry { power: outlet("rack", "1"), ..entry() },
            "its outlet 1 of rack is lab-dut-1's; change one of the two, or `wharf dut remove lab-nuc-1`",
        ),
        (
            ID,
            Entry { console: Some("line-1".into()), ..entry() },
            "its console line-1 is lab-dut-1's; change one of the two, or `wharf dut remove lab-nuc-1`",
        ),
        (
            ID,
            Entry { ip_address: Ipv4Addr::new(10, 77, 0, 11), ..entry() },
            "its address 10.77.0.11 is lab-dut-1's; change one of the two, or `wharf dut remove lab-nuc-1`",
        ),
        (
            ID,
            Entry { mac_address: "52:54:00:77:00:01".into(), ..entry() },
            "its MAC 52:54:00:77:00:01 is lab-dut-1's; change one of the two, or `wharf dut remove lab-nuc-1`",
        ),
        ("left", entry(), "its name left is lab-dut-1's; change one of the two, or `wharf dut remove lab-nuc-1`"),
    ] {
        let (_folder, inventory) = inventory();
        inventory.put(id, changed).unwrap();
        let (config, aside) = inventory.merged(farm());
        assert_eq!(config.duts.len(), 1);
        assert_eq!(aside.iter().map(|aside| aside.why.as_str()).collect::<Vec<_>>(), [why]);
    }
}

#[test]
fn two_registered_machines_cannot_have_one_outlet() {
    let (_folder, inventory) = inventory();
    inventory.put(ID, entry()).unwrap();
    let second = Entry {
        full_name: "lab-nuc-2".into(),
        mac_address: "52:54:00:77:00:03".into(),
        ip_address: Ipv4Addr::new(10, 77, 0, 102),
        ..entry()
    };
    inventory.put("52:54:00:77:00:03", second).unwrap();
    let (config, aside) = inventory.merged(farm());
    assert_eq!((config.duts.len(), aside.len()), (2, 1));
    assert!(aside[0].why.starts_with("its outlet 2 of rack is lab-nuc-1's; "), "{}", aside[0].why);
}

#[test]
fn machines_are_edited_and_removed_by_either_name_and_unknown_ones_are_told() {
    let (folder, inventory) = inventory();
    inventory.put(ID, entry()).unwrap();
    let (id, edited) = inventory.edit("lab-nuc-1", |entry| entry.comment = Some("loud".into())).unwrap();
    assert_eq!((id.as_str(), edited.comment.as_deref()), (ID, Some("loud")));
    let error = inventory.edit("lab-nuc-2", |_| ()).unwrap_err().to_string();
    assert_eq!(
        error,
        "no registered machine `lab-nuc-2`; `wharf duts` lists them, and machines of the farm file are changed there"
    );
    inventory.remove(ID).unwrap();
    assert!(inventory.remove(ID).is_err());
    assert!(Inventory::open(folder.path()).unwrap().all().is_empty());
}

#[test]
fn full_names_are_counted_over_both() {
    let (_folder, inventory) = inventory();
    let config = farm();
    assert_eq!(inventory.full_name(&config, "dut"), "lab-dut-2");
    assert_eq!(inventory.full_name(&config, "nuc"), "lab-nuc-1");
    inventory.put(ID, entry()).unwrap();
    assert_eq!(inventory.full_name(&config, "nuc"), "lab-nuc-2");
}

#[test]
fn a_file_that_is_not_ours_is_named_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("inventory.yml");
    fs::write(&path, "duts: [1]\n").unwrap();
    let error = Inventory::open(folder.path()).map(drop).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: duts: invalid type", path.display())), "{error}");
    assert!(error.ends_with("mend it, or move it away to begin without registered machines"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "duts: [1]\n");
}

fn plug(host: &str) -> AdoptedPdu {
    let keys = serde_json::json!({ "host": host }).as_object().unwrap().clone();
    let first_seen = "2026-11-21T12:00:00Z".parse().unwrap();
    AdoptedPdu { driver: "shelly".into(), keys, heard: "mDNS: _shelly._tcp".into(), first_seen }
}

#[test]
fn an_adopted_unit_is_one_of_the_farms_after_a_restart_and_machines_may_be_on_it() {
    let (folder, inventory) = inventory();
    inventory.adopt("strip", plug("10.0.0.30")).unwrap();
    inventory
        .put(ID, Entry { power: Some(OutletName { pdu: "strip".into(), outlet: "0".into() }), ..entry() })
        .unwrap();
    let inventory = Inventory::open(folder.path()).unwrap();
    let (config, aside) = inventory.merged(farm());
    assert_eq!(aside, []);
    assert_eq!(config.pdus.iter().map(|pdu| pdu.name.as_str()).collect::<Vec<_>>(), ["rack", "strip"]);
    let text = fs::read_to_string(folder.path().join("inventory.yml")).unwrap();
    let expected = "pdus:
  strip:
    driver: shelly
    keys:
      host: 10.0.0.30
    heard: mDNS: _shelly._tcp
    first_seen: 2026-11-21T12:00:00Z
";
    assert!(text.replace('\'', "").ends_with(expected), "{text}");
    let told = inventory.adopt("strip", plug("10.0.0.31")).unwrap_err().to_string();
    assert_eq!(told, "`strip` was adopted already; say another name with `--as`, or `wharf pdu remove strip`");
    assert_eq!(inventory.forget_pdu("strip").unwrap(), plug("10.0.0.30"));
    let told = inventory.forget_pdu("strip").unwrap_err().to_string();
    assert_eq!(told, "no unit `strip` was adopted; `wharf pdus` lists all of them");
}

#[test]
fn an_adopted_unit_that_cannot_be_is_left_out_and_the_farm_file_wins() {
    let (_folder, inventory) = inventory();
    inventory.adopt("rack", plug("10.0.0.30")).unwrap();
    let mut wrong = plug("10.0.0.31");
    wrong.keys.insert("colour".into(), "red".into());
    let told = wrong.config("wrong", Path::new("")).unwrap_err();
    assert!(told.contains("colour") && !told.contains("pdus[0]"), "{told}");
    inventory.adopt("wrong", wrong).unwrap();
    inventory.adopt("abacus", AdoptedPdu { driver: "abacus".into(), ..plug("10.0.0.32") }).unwrap();
    let (config, _) = inventory.merged(farm());
    let units: Vec<_> = config.pdus.iter().map(|pdu| (pdu.name.as_str(), pdu.unit.driver)).collect();
    assert_eq!(units, [("rack", "exec")]);
}

#[test]
fn a_machine_with_a_fastboot_loader_is_called_by_its_serial_number_and_boots_by_it() {
    let (_folder, inventory) = inventory();
    inventory.put("0a3828e1", Entry { fastboot_serial: Some("0a3828e1".into()), ..entry() }).unwrap();
    assert_eq!(inventory.find(ID).unwrap().0, "0a3828e1", "its MAC is known, too");
    let (config, aside) = inventory.merged(farm());
    assert_eq!(aside, []);
    let dut = config.duts.iter().find(|dut| dut.id == "0a3828e1").unwrap();
    let boot = dut.boot.as_ref().unwrap();
    assert_eq!((boot.method.as_str(), boot.usb.as_ref().unwrap().serial.as_deref()), ("fastboot", Some("0a3828e1")));
}

#[test]
fn a_machine_of_another_farm_keeps_its_off_time_and_begins_as_it_was_there() {
    let (_folder, inventory) = inventory();
    let of = |arrives| Entry { off_time_s: Some(2.5), arrives, ..entry() };
    for (arrives, begins) in [
        (None, BeforeService::Training),
        (Some(Arrives::QuickCheck), BeforeService::QuickCheck),
        (Some(Arrives::Retired), BeforeService::Retired),
    ] {
        inventory.put(ID, of(arrives)).unwrap();
        let (config, aside) = inventory.merged(farm());
        assert_eq!(aside, []);
        let dut = config.duts.iter().find(|dut| dut.id == ID).unwrap();
        assert_eq!((dut.off_time, dut.before_service), (Some(Duration::from_millis(2500)), begins));
    }
}
