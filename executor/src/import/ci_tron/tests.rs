//! What is made of a farm's files, whole, and of files with mistakes.

use super::*;

const MARS: &str = include_str!("../../../../fixtures/ci-tron/mars_db.yaml");
const BOOTS: &str = include_str!("../../../../fixtures/ci-tron/boots_db.yml");

fn wish(environment: &[(&str, &str)]) -> Wish {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Wish {
        name: "lab".into(),
        interface: "private".into(),
        address: "10.42.0.1/16".into(),
        range: Vec::new(),
        terminals: vec!["/dev/serial/by-id/usb-FTDI-port0".into()],
        environment,
        state: "/var/lib/lab".into(),
    }
}

fn imported(mars: &str, boots: Option<&str>) -> Result<Imported, String> {
    let boots = boots.map(|text| Source { name: "boots_db.yml", text });
    let told = |all: Vec<Problems>| all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    import(Source { name: "mars_db.yaml", text: mars }, boots, &wish(&[("EXECUTOR_JOB__NTP_PEER", "10.42.0.7")]))
        .map_err(told)
}

#[test]
fn the_farm_file_has_the_units_by_our_names_and_is_right() {
    let farm = imported(MARS, None).unwrap().farm;
    let expected = "\
# Made by `wharf import ci-tron`. The machines are in the inventory, in the folder `state`.
name: lab
network:
  interface:
    name: private
    address: 10.42.0.1/16
state: /var/lib/lab
variables:
  ntp_peer: 10.42.0.7
pdus:
- name: VPDU
  vpdu:
    host: localhost:9191
- name: rack-1
  snmp:
    host: 10.42.0.2
    preset: apc_masterswitch
    community: private
  reserved:
  - '1'
- name: hub
  usb-hub:
    controller: 0000:00:14.0
    devices:
    - devpath: '3'
      vendor: 1d6b
      product: '0002'
consoles:
- name: usb-FTDI-port0
  tty:
    path: /dev/serial/by-id/usb-FTDI-port0
duts: []
";
    assert_eq!(farm, expected);
    let config = crate::config::parse("farm.yml", &farm, std::path::Path::new("/")).unwrap();
    assert_eq!(config.pdus.len(), 3);
}

#[test]
fn machines_keep_their_names_tags_outlets_and_whether_they_were_in_service() {
    let duts = imported(MARS, None).unwrap().duts;
    let first = &duts["52:54:00:42:00:01"];
    // The older one is the first of its kind, whatever the order in the file.
    assert_eq!((first.full_name.as_str(), first.arrives), ("lab-navi21-1", Some(Arrives::Retired)));
    assert_eq!(first.comment.as_deref(), Some("fan is broken"));
    let second = &duts["52:54:00:42:00:02"];
    assert_eq!((second.full_name.as_str(), second.arrives), ("lab-navi21-2", Some(Arrives::QuickCheck)));
    assert_eq!(second.power, Some(OutletName { pdu: "rack-1".into(), outlet: "3".into() }));
    assert_eq!((second.off_time_s, second.manual_tags.as_slice()), (Some(5.5), &["vr".to_owned()][..]));
    assert_eq!(second.local_tty_device.as_deref(), Some("ttyUSB0"));
    assert_eq!(second.first_seen.to_string(), "2023-05-01T10:00:00.123456Z");
    let phone = &duts["0A1B2C3D"];
    assert_eq!((phone.mac_address.as_str(), phone.arrives), ("02:42:0a:1b:2c:3d", None));
    assert_eq!(phone.power, None, "its unit switches nothing");
}

#[test]
fn what_has_no_place_here_is_told_with_its_place_and_no_secret() {
    let left = imported(MARS, Some(BOOTS)).unwrap().left;
    let line = |left: &Left| {
        let (file, place) = left.at.as_ref().unwrap();
        format!("{file}:{}: {}: {}", place.line, left.field, left.why)
    };
    let told: Vec<String> = left.iter().map(line).collect();
    let expected = [
        "mars_db.yaml:16: pdus.hub.config.devices[0].maxchild: the hub says it itself",
        "mars_db.yaml:18: pdus.bench.driver: a `dummy` switches nothing; `manual` lets a person do it",
        "mars_db.yaml:27: duts.52:54:00:42:00:02.gitlab: runners are registered anew: their tokens belong to CI-tron's server",
        "mars_db.yaml:37: duts.52:54:00:42:00:02.boot_sequence_power: the draw of a boot is not learnt here",
        "mars_db.yaml:53: duts.0A1B2C3D.pdu: its PDU is not carried over: say its outlet with `wharf dut add`",
        "mars_db.yaml:57: gitlab: runners are registered anew: their tokens belong to CI-tron's server",
        "mars_db.yaml:62: jobs: has no counterpart in this farm",
        "boots_db.yml:4: fastboot.hdk8650.match.usb.idVendor: a loader is known by its serial number",
        "boots_db.yml:5: fastboot.hdk8650.match.variables: a loader is known by its serial number",
        "boots_db.yml:13: dhcp: firmware is answered by this farm's boot methods; see docs/protocols/booting.md",
    ];
    assert_eq!(told, expected);
    assert!(!format!("{left:?}").contains("secret-token"));
}

#[test]
fn a_board_of_the_boots_database_is_an_entry_for_a_tag_that_its_machine_gets() {
    let imported = imported(MARS, Some(BOOTS)).unwrap();
    let expected = "\
# Made by `wharf import ci-tron`: what jobs on these boards start from.
boots:
- match:
    tags:
    - boots:hdk8650
  defaults:
    kernel:
      url: https://files.example.org/Image.gz
      cmdline:
        defaults:
        - g_cdc.dev_addr={{ machine.mac_address }}
    dtb:
      url: https://files.example.org/hdk.dtb
";
    assert_eq!(imported.boots.unwrap(), expected);
    let phone = &imported.duts["0A1B2C3D"];
    assert_eq!(
        (phone.manual_tags.as_slice(), phone.fastboot_serial.as_deref()),
        (&["boots:hdk8650".to_owned()][..], Some("0A1B2C3D"))
    );
    assert!(imported.farm.contains("\nboots: boots.yml\n"));
}

#[test]
fn every_mistake_of_both_files_is_told_at_once_with_its_line_and_column() {
    let mars = "\
pdus:
  a: {driver: apc, config: {hostname: x}}
  b: {driver: tasmota, config: {}}
duts:
  not-a-mac: {base_name: x, ip_address: 10.42.0.300, tags: []}
  '52:54:00:00:00:01': {base_name: x, ip_address: 10.42.0.2, tags: yes, pdu: c, pdu_port_id: 1}
  '52:54:00:00:00:02': {ip_address: 10.42.0.2, tags: [], ready_for_service: 1, first_seen: yesterday}
";
    let boots = "fastboot:\n{% for board in boards %}\n  {{ board }}: {}\n{% endfor %}\n";
    let told = imported(mars, Some(boots)).err().unwrap();
    for words in [
        "mars_db.yaml:2:",
        "no driver is called `apc`",
        "the key `hostname` is missing",
        "`not-a-mac` is no MAC address",
        "`10.42.0.300` is no IPv4 address",
        "`tags` is not a list of texts",
        "no PDU is called `c`",
        "PDUs: a, b",
        "the key `base_name` is missing",
        "`ready_for_service` is not true or false",
        "`yesterday` is no time",
        "the address 10.42.0.2 is that of `52:54:00:00:00:01`, too",
        "boots_db.yml:2:1",
        "a template's statement stands around the entries",
    ] {
        assert!(told.contains(words), "no {words:?}:\n{told}");
    }
}

#[test]
fn what_the_environment_says_of_training_and_jobs_is_carried_over_and_the_rest_is_named() {
    let environment = [
        ("EXECUTOR_JOB__BUCKET", "b"),
        ("SERGENT_HARTMAN_BOOT_COUNT", "20"),
        ("SERGENT_HARTMAN_QUALIFYING_BOOT_COUNT", "99"),
        ("MINIO_ROOT_PASSWORD", "secret"),
    ];
    let imported = import(Source { name: "m", text: "pdus: {}\n" }, None, &wish(&environment)).ok().unwrap();
    assert!(imported.farm.contains("variables:\n  bucket: b\n"), "its letters stay: {}", imported.farm);
    assert!(imported.farm.contains("training:\n  boots: 20\n  qualifying: 20\n"), "{}", imported.farm);
    let expected =
        Left { at: None, field: "MINIO_ROOT_PASSWORD".into(), why: "has no counterpart in this farm".into() };
    assert_eq!(imported.left, [expected]);
}

#[test]
fn what_led_to_ci_trons_own_gateway_leads_to_what_stands_in_its_place_or_is_named() {
    let environment = [
        ("EXECUTOR_JOB__FDO_PROXY_REGISTRY", "10.42.0.1:8002"),
        ("EXECUTOR_JOB__LOCAL_REGISTRY", "ci-gateway:8004"),
        ("EXECUTOR_JOB__PULL_THRU_REGISTRY", "http://10.42.0.15:8003"),
        ("EXECUTOR_JOB__REGISTRY", "registry.example.org"),
    ];
    let imported = import(Source { name: "m", text: "pdus: {}\n" }, None, &wish(&environment)).ok().unwrap();
    let expected = "\
variables:
  local_registry: ci-gateway:8004
  pull_thru_registry: http://10.42.0.15:8003
registry:
  upstreams:
  - host: registry.freedesktop.org
";
    assert!(imported.farm.contains(expected), "{}", imported.farm);
    let left: Vec<_> = imported.left.iter().map(|left| (left.field.as_str(), left.why.as_str())).collect();
    let expected = [
        ("EXECUTOR_JOB__FDO_PROXY_REGISTRY", "the farm's own cache of registry.freedesktop.org is in its place"),
        (
            "EXECUTOR_JOB__LOCAL_REGISTRY",
            "kept, but it leads to a server of CI-tron's gateway, which is not there any more",
        ),
        ("EXECUTOR_JOB__REGISTRY", "`registry` is a value of the farm's own in every template"),
    ];
    assert_eq!(left, expected);
}
