//! CI-tron's power units as ours. ◆
//!
//! | CI-tron's `driver` | here | |
//! |---|---|---|
//! | `apc_masterswitch`, `cyberpower_pdu41004`, `cyberpower_pdu15swhviec12atnet` | `snmp` | with a `preset` of that name |
//! | `snmp` | `snmp` | its columns have the same names |
//! | `shelly`, `tasmota`, `devantech`, `kernelchip`, `vpdu` | the same | `hostname` is `host` |
//! | `usbhub` | `usb-hub` | `idVendor`, `idProduct` are `vendor`, `product` |
//! | `dummy` | – | it switches nothing |

use job_schema::Findings;
use job_schema::problem::quoted;
use serde_json::{Map, Value, json};

use super::Reader;
use crate::import::table::Table;

/// All that CI-tron has.
const DRIVERS: [&str; 11] = [
    "apc_masterswitch",
    "cyberpower_pdu15swhviec12atnet",
    "cyberpower_pdu41004",
    "devantech",
    "dummy",
    "kernelchip",
    "shelly",
    "snmp",
    "tasmota",
    "usbhub",
    "vpdu",
];

/// A unit's name here, where only letters, digits, `-`, `_` and `.` may be in one.
pub(super) fn name_of(name: &str) -> String {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    name.chars().map(|letter| if fits(letter) { letter } else { '-' }).collect()
}

/// What a serial device of this host is called as a line: the last part of its path.
pub(super) fn line_of(path: &str) -> String {
    name_of(path.rsplit('/').next().unwrap_or(path))
}

impl Reader<'_> {
    /// An entry of `pdus`; nothing for a unit that has no counterpart.
    pub(super) fn pdu(&mut self, name: &str, mut table: Table, findings: &mut Findings) -> Option<Value> {
        let at = table.at("driver");
        let driver = table.needed("driver", findings)?;
        let config = table.table("config", findings);
        let reserved = table.texts("reserved_port_ids", findings);
        for (at, _) in table.rest() {
            self.leave(&at, "has no counterpart in this farm", findings);
        }
        if !DRIVERS.contains(&driver.as_str()) {
            let hint = format!("CI-tron's drivers are {}", DRIVERS.join(", "));
            findings.tell(&at, format!("no driver is called {}", quoted(&driver)), &hint);
            return None;
        }
        if driver == "dummy" {
            self.leave(&at, "a `dummy` switches nothing; `manual` lets a person do it", findings);
            return None;
        }
        let (ours, keys) = self.unit(&driver, config, findings);
        let mut pdu = Map::from_iter([("name".to_owned(), json!(name_of(name))), (ours.to_owned(), keys)]);
        if !reserved.is_empty() {
            pdu.insert("reserved".into(), json!(reserved));
        }
        Some(Value::Object(pdu))
    }

    fn unit(&mut self, driver: &str, mut config: Table, findings: &mut Findings) -> (&'static str, Value) {
        if driver == "usbhub" {
            return ("usb-hub", self.usb_hub(config, findings));
        }
        let mut keys = Map::new();
        if let Some(host) = config.needed("hostname", findings) {
            keys.insert("host".into(), json!(host));
        }
        let ours = match driver {
            "shelly" => "shelly",
            "tasmota" => "tasmota",
            "devantech" => "devantech",
            "kernelchip" => "kernelchip",
            "vpdu" => "vpdu",
            "snmp" => "snmp",
            preset => {
                keys.insert("preset".into(), json!(preset));
                "snmp"
            }
        };
        // What is no key here is told when the whole is checked as a farm file.
        keys.extend(config.into_said().into_iter().filter(|(_, value)| !value.is_null()));
        (ours, Value::Object(keys))
    }

    fn usb_hub(&mut self, mut config: Table, findings: &mut Findings) -> Value {
        let mut keys = Map::new();
        for key in ["serial", "controller"] {
            if let Some(text) = config.text(key, findings) {
                keys.insert(key.into(), json!(text));
            }
        }
        let at = config.at("devices");
        if let Some(Value::Array(devices)) = config.take("devices") {
            let half = |(index, device): (usize, Value)| {
                let at: Vec<String> = at.iter().cloned().chain([index.to_string()]).collect();
                self.half(Table::of(&at, device, findings), findings)
            };
            keys.insert("devices".into(), devices.into_iter().enumerate().map(half).collect());
        }
        for (at, _) in config.rest() {
            self.leave(&at, "has no counterpart in this farm", findings);
        }
        Value::Object(keys)
    }

    fn half(&mut self, mut device: Table, findings: &mut Findings) -> Value {
        let mut keys = Map::new();
        for (theirs, ours) in [("devpath", "devpath"), ("idVendor", "vendor"), ("idProduct", "product")] {
            if let Some(text) = device.text(theirs, findings) {
                keys.insert(ours.into(), json!(text));
            }
        }
        for (at, _) in device.rest() {
            self.leave(&at, "the hub says it itself", findings);
        }
        Value::Object(keys)
    }
}
