//! Discoveries and machines that are added, as clients write and read them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::farm::{AddDut, DiscoveryOutcome, LoaderView, OutletView};
use crate::inventory::{Arrives, OutletName};

/// A text or a number: CI-tron's clients write outlets as either.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum NameWire {
    /// As it is called.
    Text(String),
    /// Its number.
    Number(u64),
}

impl NameWire {
    /// As a text.
    pub fn text(self) -> String {
        match self {
            NameWire::Text(text) => text,
            NameWire::Number(number) => number.to_string(),
        }
    }
}

/// What a discovery is asked for.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiscoverWire {
    /// The unit.
    pub pdu: Option<String>,
    /// The outlet on it.
    pub port_id: Option<NameWire>,
    /// How many seconds a machine may take to be seen; 150 when absent.
    pub timeout: Option<u64>,
}

/// What happened in a discovery.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct NewsWire {
    /// From the line that was asked for on.
    pub lines: Vec<String>,
    /// The line to ask for next.
    pub next: usize,
    /// How it ended, once it has.
    pub outcome: Option<DiscoveryOutcome>,
}

/// All outlets that the farm knows of.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct OutletsWire {
    /// By unit.
    pub outlets: Vec<OutletView>,
}

/// Fastboot loaders on USB of the server's host.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LoadersWire {
    /// By place.
    pub loaders: Vec<LoaderView>,
}

/// Where a machine's power comes from.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PduWire {
    /// The unit.
    pub name: String,
    /// The outlet on it.
    pub port_id: NameWire,
}

/// A machine that an admin adds.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewDutWire {
    /// Its MAC; the id, too.
    pub mac_address: Option<String>,
    /// The same, when `mac_address` is absent.
    pub id: Option<String>,
    /// Its address; the one that DHCP gave it when absent.
    pub ip_address: Option<String>,
    /// The middle of its full name; `dut` when absent.
    pub base_name: Option<String>,
    /// What the machine is.
    pub tags: Option<Vec<String>>,
    /// What the admin says of it.
    pub manual_tags: Option<Vec<String>>,
    /// Its serial port, as it calls it itself.
    pub local_tty_device: Option<String>,
    /// From its power to its first request, in seconds.
    pub firmware_boot_time: Option<f64>,
    /// A note.
    pub comment: Option<String>,
    /// Of a machine that is new: it was in service elsewhere, and one health job is enough.
    pub ready_for_service: Option<bool>,
    /// Of a machine that is new: it takes no jobs until somebody activates it.
    pub is_retired: Option<bool>,
    /// Where its power comes from.
    pub pdu: Option<PduWire>,
    /// Its console: a name of the farm file's `consoles`.
    pub console: Option<String>,
    /// The serial number of its fastboot loader on USB of the server's host: its id, and `mac_address` may be absent.
    pub fastboot_serial: Option<String>,
}

impl From<NewDutWire> for AddDut {
    fn from(wire: NewDutWire) -> AddDut {
        let outlet = wire.pdu.map(|pdu| OutletName { pdu: pdu.name, outlet: pdu.port_id.text() });
        AddDut {
            mac: wire
                .mac_address
                .or(wire.id.filter(|id| wire.fastboot_serial.as_ref() != Some(id)))
                .unwrap_or_default(),
            address: wire.ip_address,
            base_name: wire.base_name,
            tags: wire.tags,
            manual_tags: wire.manual_tags,
            local_tty_device: wire.local_tty_device,
            firmware_boot_time_s: wire.firmware_boot_time,
            comment: wire.comment,
            outlet,
            console: wire.console,
            fastboot_serial: wire.fastboot_serial,
            arrives: match (wire.is_retired, wire.ready_for_service) {
                (Some(true), _) => Some(Arrives::Retired),
                (_, Some(true)) => Some(Arrives::QuickCheck),
                _ => None,
            },
        }
    }
}
