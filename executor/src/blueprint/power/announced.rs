//! Power units that tell of themselves: what is known of their words, and what to write into the farm file for them. ◆
//!
//! | heard | from | evidence |
//! |---|---|---|
//! | DHCP host name or mDNS instance `shelly…`, service `_shelly._tcp` | a Shelly | shelly-api-docs.shelly.cloud: gen1 "mDNS Discovery", gen2 "Common Device Traits" |
//! | DHCP host name or mDNS instance `tasmota…` | Tasmota | its default host name; tasmota.github.io/docs/Commands, `Hostname` |
//! | DHCP vendor class `APC`, or a MAC of American Power Conversion's | an APC unit with a network card | its user's guides, "DHCP: Vendor Class"; IEEE's list, 00:C0:B7 and 28:29:86 |
//! | a MAC of CyberPower Systems' | a CyberPower unit | IEEE's list, 00:0C:15 |
//! | a hub on USB | a hub that may switch its ports | sysfs |
//!
//! Devantech and KernelChip boards say nothing of themselves that is documented.

use std::net::IpAddr;

use serde_json::{Map, Value};

use super::usb_hub::Hub;

/// Something that was heard on the farm's network, or is plugged into this host.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// A client of DHCP that is no machine of the farm.
    Dhcp {
        /// Its MAC, in lower case.
        mac: String,
        /// The address that it has or asks for.
        address: Option<IpAddr>,
        /// Option 12.
        host_name: Option<String>,
        /// Option 60.
        vendor_class: Option<String>,
    },
    /// A service that was announced.
    Mdns {
        /// `_http._tcp`.
        service: String,
        /// What stands before the service.
        instance: String,
        /// Where it is.
        address: Option<IpAddr>,
        /// Its port.
        port: u16,
    },
    /// A hub, with its other half.
    Usb(Vec<Hub>),
}

/// A unit that may be added to the farm file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// A name for it.
    pub name: String,
    /// What it is.
    pub what: &'static str,
    /// How it was found.
    pub heard: String,
    /// Where it is, on the network.
    pub address: Option<IpAddr>,
    /// The driver for it, and its keys as they stand in a farm file.
    pub driver: &'static str,
    /// Its keys.
    pub keys: String,
}

/// The port of `http`, which no farm file needs to name.
const HTTP_PORT: u16 = 80;

/// The first three bytes of a MAC, by who has them, and what his units are (IEEE's list of assignments).
const MAKERS: &[(&str, Kind)] = &[("00:0c:15", CYBERPOWER), ("00:c0:b7", APC), ("28:29:86", APC)];

#[derive(Clone, Copy)]
struct Kind {
    what: &'static str,
    driver: &'static str,
    /// Keys beside the address.
    keys: &'static str,
}

const SHELLY: Kind = Kind { what: "a Shelly", driver: "shelly", keys: "" };
const TASMOTA: Kind = Kind { what: "a unit that runs Tasmota", driver: "tasmota", keys: "" };
const APC: Kind = Kind { what: "a unit of APC's", driver: "snmp", keys: ", preset: apc_masterswitch" };
const CYBERPOWER: Kind = Kind { what: "a unit of CyberPower's", driver: "snmp", keys: ", preset: cyberpower_pdu41004" };

impl Candidate {
    /// What it is that was heard; `None` for what is no power unit that is known.
    pub fn of(heard: &Heard) -> Option<Candidate> {
        match heard {
            Heard::Dhcp { mac, address, host_name, vendor_class } => {
                let kind = host_name.as_deref().and_then(by_name).or_else(|| by_maker(mac, vendor_class.as_deref()))?;
                let name = host_name.clone().unwrap_or_else(|| format!("{}-{}", kind.driver, mac.replace(':', "")));
                Some(kind.at(&name, *address, HTTP_PORT, format!("DHCP: {mac}")))
            }
            Heard::Mdns { service, instance, address, port } => {
                let kind = if service.starts_with("_shelly.") { Some(SHELLY) } else { by_name(instance) }?;
                Some(kind.at(instance, *address, *port, format!("mDNS: {service}")))
            }
            Heard::Usb(halves) => of_hub(halves),
        }
    }

    /// The lines for `pdus` in a farm file.
    pub fn entry(&self) -> String {
        format!("- name: {}\n  {}: {{{}}}\n", self.name, self.driver, self.keys)
    }

    /// The keys, read.
    pub fn told(&self) -> Result<Map<String, Value>, serde_yaml::Error> {
        serde_yaml::from_str(&format!("{{{}}}", self.keys))
    }

    /// Where it is on USB.
    pub fn place(&self) -> Option<(String, Vec<String>)> {
        place_of(&Value::Object(self.told().ok()?))
    }
}

/// Where keys of a driver say that a hub is: its controller, and the ports that lead to its halves.
pub fn place_of(keys: &Value) -> Option<(String, Vec<String>)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut halves: Vec<String> =
        keys["devices"].as_array()?.iter().filter_map(|half| text(&half["devpath"])).collect();
    halves.sort();
    Some((text(&keys["controller"])?, halves))
}

/// A unit that was heard several times is one: by its address, or by its name where it has none. The first word of it counts.
pub fn once_each(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    let mut seen = Vec::new();
    candidates.retain(|candidate| {
        let key = candidate.address.map_or_else(|| candidate.name.clone(), |address| address.to_string());
        let is_new = !seen.contains(&key);
        seen.push(key);
        is_new
    });
    let mut names: Vec<String> = Vec::new();
    for candidate in &mut candidates {
        let same = names.iter().filter(|name| **name == candidate.name).count();
        names.push(candidate.name.clone());
        if same > 0 {
            candidate.name = format!("{}-{}", candidate.name, same + 1);
        }
    }
    candidates
}

impl Kind {
    fn at(self, name: &str, address: Option<IpAddr>, port: u16, heard: String) -> Candidate {
        let host = match address {
            Some(address) if self.driver != SNMP && port != HTTP_PORT => match address {
                IpAddr::V4(address) => format!("{address}:{port}"),
                IpAddr::V6(address) => format!("\"[{address}]:{port}\""),
            },
            Some(IpAddr::V4(address)) => address.to_string(),
            Some(IpAddr::V6(address)) => format!("\"{address}\""),
            // It has none yet: whoever reads this gives it one.
            None => "ADDRESS".to_owned(),
        };
        let keys = format!("host: {host}{}", self.keys);
        Candidate { name: as_name(name), what: self.what, heard, address, driver: self.driver, keys }
    }
}

const SNMP: &str = "snmp";

/// What the makers' default names begin with.
fn by_name(name: &str) -> Option<Kind> {
    let name = name.to_ascii_lowercase();
    let kinds = [("shelly", SHELLY), ("tasmota", TASMOTA)];
    kinds.into_iter().find(|(begins, _)| name.starts_with(begins)).map(|(_, kind)| kind)
}

fn by_maker(mac: &str, vendor_class: Option<&str>) -> Option<Kind> {
    if vendor_class.is_some_and(|class| class == "APC") {
        return Some(APC);
    }
    MAKERS.iter().find(|(begins, _)| mac.starts_with(begins)).map(|(_, kind)| *kind)
}

fn of_hub(halves: &[Hub]) -> Option<Candidate> {
    let first = halves.first()?;
    let half = |hub: &Hub| {
        let (vendor, product) = &hub.identity;
        format!("{{devpath: \"{}\", vendor: \"{vendor}\", product: \"{product}\"}}", hub.devpath)
    };
    let halves: Vec<String> = halves.iter().map(half).collect();
    Some(Candidate {
        name: as_name(&format!("usb-hub-{}", first.name)),
        what: "a USB hub, which may switch its ports",
        heard: format!("USB: {} ports", first.ports),
        address: None,
        driver: "usb-hub",
        keys: format!("controller: \"{}\", devices: [{}]", first.controller, halves.join(", ")),
    })
}

/// As a name may be in a farm file: what is no letter, digit or dash is a dash.
fn as_name(text: &str) -> String {
    let text = text.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let kept = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '-' };
    let name: String = text.chars().map(kept).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { "pdu".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dhcp(mac: &str, host_name: Option<&str>, vendor_class: Option<&str>) -> Heard {
        let (host_name, vendor_class) = (host_name.map(str::to_owned), vendor_class.map(str::to_owned));
        Heard::Dhcp { mac: mac.to_owned(), address: Some([10, 0, 0, 30].into()), host_name, vendor_class }
    }

    fn mdns(service: &str, instance: &str, port: u16) -> Heard {
        let address = Some([10, 0, 0, 31].into());
        Heard::Mdns { service: service.to_owned(), instance: instance.to_owned(), address, port }
    }

    fn entry(heard: &Heard) -> Option<String> {
        Candidate::of(heard).map(|candidate| candidate.entry())
    }

    #[test]
    fn plugs_are_known_by_the_names_that_their_makers_give_them() {
        let shelly = dhcp("80:64:6f:d6:1f:2c", Some("ShellyPlusPlugS-80646FD61F2C"), None);
        let expected = "- name: shellyplusplugs-80646fd61f2c\n  shelly: {host: 10.0.0.30}\n";
        assert_eq!(entry(&shelly).as_deref(), Some(expected));
        let tasmota = dhcp("2c:3a:e8:00:00:01", Some("tasmota-1A2B3C-2876"), None);
        let expected = "- name: tasmota-1a2b3c-2876\n  tasmota: {host: 10.0.0.30}\n";
        assert_eq!(entry(&tasmota).as_deref(), Some(expected));
        let expected = "- name: shelly1-5ecf7f1632e8\n  shelly: {host: 10.0.0.31}\n";
        assert_eq!(entry(&mdns("_http._tcp", "shelly1-5ECF7F1632E8", 80)).as_deref(), Some(expected));
        let expected = "- name: heater\n  shelly: {host: 10.0.0.31:8080}\n";
        assert_eq!(entry(&mdns("_shelly._tcp", "Heater", 8080)).as_deref(), Some(expected));
    }

    #[test]
    fn units_with_network_cards_are_known_by_their_class_or_maker() {
        let expected = "- name: snmp-00c0b7000001\n  snmp: {host: 10.0.0.30, preset: apc_masterswitch}\n";
        assert_eq!(entry(&dhcp("00:c0:b7:00:00:01", None, None)).as_deref(), Some(expected));
        let apc = dhcp("02:00:00:00:00:01", Some("rack 4"), Some("APC"));
        let expected = "- name: rack-4\n  snmp: {host: 10.0.0.30, preset: apc_masterswitch}\n";
        assert_eq!(entry(&apc).as_deref(), Some(expected));
        let expected = "- name: snmp-000c15000001\n  snmp: {host: 10.0.0.30, preset: cyberpower_pdu41004}\n";
        assert_eq!(entry(&dhcp("00:0c:15:00:00:01", None, None)).as_deref(), Some(expected));
    }

    #[test]
    fn what_is_no_power_unit_is_none() {
        assert_eq!(entry(&dhcp("52:54:00:00:00:01", Some("laptop"), Some("android-dhcp-14"))), None);
        assert_eq!(entry(&mdns("_http._tcp", "printer", 80)), None);
        assert_eq!(entry(&Heard::Usb(Vec::new())), None);
    }

    #[test]
    fn a_unit_that_was_heard_twice_is_one_and_two_of_one_name_are_told_apart() {
        let twice = [mdns("_shelly._tcp", "shelly1-a", 80), mdns("_http._tcp", "shelly1-a", 80)];
        assert_eq!(once_each(twice.iter().filter_map(Candidate::of).collect()).len(), 1);
        let far = Heard::Mdns {
            service: "_shelly._tcp".into(),
            instance: "shelly1-a".into(),
            address: Some([10, 0, 0, 77].into()),
            port: 80,
        };
        let two = once_each([&twice[0], &far].into_iter().filter_map(Candidate::of).collect());
        assert_eq!(two.iter().map(|unit| unit.name.as_str()).collect::<Vec<_>>(), ["shelly1-a", "shelly1-a-2"]);
    }
}
