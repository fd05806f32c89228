//! Fastboot loaders on this host's USB: which machine each is, and those that are nobody's, which a discovery takes.
//!
//! ```text
//!  what was there before the outlet went on ─┐
//!  what is there now, every half second ─────┴─► a new one that no machine names ─► in the inventory by its serial number
//! ```
//! Such a machine says nothing over the network before it has booted: its address is a free one of the range, its MAC is made of its serial
//! number, and both can be said otherwise with `wharf dut add`.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use gateway::dhcp::{Mac, Role};
use job_schema::DutId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::record::DiscoveryRecord;
use super::said::{self, Said};
use crate::blueprint::fastboot::plugged::{Plugged, plugged};
use crate::boot::settings::Settings;
use crate::config::{DutConfig, FarmConfig};
use crate::farm::Farm;

/// A loader on USB, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LoaderView {
    /// Its serial number; empty when it has none.
    pub serial: String,
    /// The place that it hangs at: bus and ports, `1-4.2`.
    pub path: String,
    /// What it calls itself.
    pub product: Option<String>,
    /// The machine that it is; `None`: nobody's.
    pub dut: Option<String>,
}

impl Farm {
    /// The loaders that are plugged in now.
    pub fn loaders(&self) -> Vec<LoaderView> {
        let config = self.config();
        let registered = self.inventory().all();
        let view = |loader: Plugged| {
            let waiting = registered.values().find(|entry| entry.fastboot_serial.as_ref() == Some(&loader.serial));
            let dut = machine_of(&config, &loader).or_else(|| waiting.map(|entry| entry.full_name.clone()));
            LoaderView { serial: loader.serial, path: loader.path, product: loader.product, dut }
        };
        plugged(Path::new("/sys")).into_iter().map(view).collect()
    }

    /// The first that is nobody's and was not there before.
    pub(super) fn new_loader(&self, before: &[LoaderView]) -> Option<LoaderView> {
        let is_new = |loader: &LoaderView| {
            loader.dut.is_none() && !before.iter().any(|it| (&it.serial, &it.path) == (&loader.serial, &loader.path))
        };
        self.loaders().into_iter().find(is_new)
    }

    /// It becomes a machine of the inventory; the MAC that it is given.
    pub(super) async fn take_loader(
        self: &Arc<Self>,
        record: &DiscoveryRecord,
        loader: &LoaderView,
    ) -> Result<Mac, String> {
        let id = id_of(&loader.serial)?;
        let address = self.free_address().ok_or("no address of the farm's range is free")?;
        let mac = mac_of(&loader.serial);
        let base_name = said::base_name(loader.product.as_deref().unwrap_or_default());
        let tags = vec!["firmware:fastboot".to_owned()];
        let said = Said { base_name, tags, ..Said::default() };
        let mut entry = self.entry_of(mac, address, said, Some(record)).await;
        entry.fastboot_serial = Some(loader.serial.clone());
        self.keep(&id, entry).await.map_err(|(_, why)| why)?;
        record.registered(&mac.to_string());
        Ok(mac)
    }

    /// One of the range that nobody has, from its end: DHCP gives them from the begin.
    pub(super) fn free_address(&self) -> Option<Ipv4Addr> {
        let config = self.config();
        let Role::Server { range: Some((first, last)) } = config.dhcp else { return None };
        let registered = self.inventory().all();
        let is_free = |address: &Ipv4Addr| {
            !config.duts.iter().any(|dut| dut.address == *address)
                && !registered.values().any(|entry| entry.ip_address == *address)
                && self.gateway.dhcp().mac_of(*address).is_none()
        };
        (u32::from(first)..=u32::from(last)).rev().map(Ipv4Addr::from).find(is_free)
    }
}

/// The machine of the farm that says this loader is its own.
fn machine_of(config: &FarmConfig, loader: &Plugged) -> Option<String> {
    let is_it = |dut: &&DutConfig| dut.boot.as_ref().is_some_and(|boot| names(boot, &dut.id, loader));
    config.duts.iter().find(is_it).map(|dut| dut.full_name.clone())
}

fn names(boot: &Settings, id: &str, loader: &Plugged) -> bool {
    if boot.method != "fastboot" || boot.tcp.is_some() {
        return false;
    }
    let usb = boot.usb.clone().unwrap_or_default();
    match (usb.serial, usb.path) {
        (None, None) => loader.serial == id,
        (serial, path) => {
            serial.is_none_or(|serial| serial == loader.serial) && path.is_none_or(|path| path == loader.path)
        }
    }
}

/// The serial number, if a machine can be called so.
pub(super) fn id_of(serial: &str) -> Result<String, String> {
    let cannot = |why: String| {
        format!(
            "the serial number `{serial}` cannot be a machine's id: {why}; name the machine in the farm file, with `boot.usb.path`"
        )
    };
    serial.parse::<DutId>().map(|id| id.to_string()).map_err(|error| cannot(error.to_string()))
}

/// A MAC of its own, locally administered and of one machine (IEEE 802-2014, 8.2): the same for the same serial number.
pub(super) fn mac_of(serial: &str) -> Mac {
    let hash = Sha256::digest(serial.as_bytes());
    Mac([(hash[0] & 0xfc) | 0x02, hash[1], hash[2], hash[3], hash[4], hash[5]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::settings::{TcpLoader, UsbLoader};

    fn loader(serial: &str, path: &str) -> Plugged {
        Plugged { serial: serial.into(), path: path.into(), product: None }
    }

    fn boot(usb: Option<(Option<&str>, Option<&str>)>) -> Settings {
        let own = |text: Option<&str>| text.map(str::to_owned);
        let usb = usb.map(|(serial, path)| UsbLoader { serial: own(serial), path: own(path) });
        Settings { method: "fastboot".into(), usb, ..Settings::default() }
    }

    #[test]
    fn a_machine_has_its_loader_by_serial_number_by_place_or_by_its_id() {
        let it = loader("0a3828e1", "1-4.2");
        assert!(names(&boot(None), "0a3828e1", &it));
        assert!(!names(&boot(None), "another", &it));
        assert!(names(&boot(Some((Some("0a3828e1"), None))), "another", &it));
        assert!(names(&boot(Some((None, Some("1-4.2")))), "another", &it));
        assert!(!names(&boot(Some((Some("0a3828e1"), Some("1-1")))), "another", &it));
        let by_tcp = Settings { tcp: Some(TcpLoader::default()), ..boot(None) };
        assert!(!names(&by_tcp, "0a3828e1", &it));
        assert!(!names(&Settings { method: "ipxe".into(), ..Settings::default() }, "0a3828e1", &it));
    }

    #[test]
    fn the_mac_of_a_serial_number_is_local_of_one_machine_and_always_the_same() {
        let mac = mac_of("0a3828e1");
        assert_eq!(mac.0[0] & 0b11, 0b10);
        assert_eq!(mac, mac_of("0a3828e1"));
        assert_ne!(mac, mac_of("0a3828e2"));
    }
}
