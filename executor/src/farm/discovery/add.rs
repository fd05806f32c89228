//! A machine that an admin adds by hand, or says something of: the same record as if it had registered.

use std::net::Ipv4Addr;
use std::sync::Arc;

use gateway::dhcp::Mac;

use super::loaders::{id_of, mac_of};
use super::said;
use crate::farm::Farm;
use crate::inventory::{Arrives, Entry, OutletName};

/// What is said of it; what is absent stays as it is, or is not known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AddDut {
    /// The MAC it boots with.
    pub mac: String,
    /// Its address.
    pub address: Option<String>,
    /// The middle of its full name.
    pub base_name: Option<String>,
    /// What it is.
    pub tags: Option<Vec<String>>,
    /// What the admin says of it.
    pub manual_tags: Option<Vec<String>>,
    /// Its serial port, as it calls it itself.
    pub local_tty_device: Option<String>,
    /// From its power to its first request.
    pub firmware_boot_time_s: Option<f64>,
    /// A note.
    pub comment: Option<String>,
    /// Where its power comes from.
    pub outlet: Option<OutletName>,
    /// Its console.
    pub console: Option<String>,
    /// The serial number of its fastboot loader on USB; its id, then.
    pub fastboot_serial: Option<String>,
    /// How it begins, when it is new.
    pub arrives: Option<Arrives>,
}

/// Why a machine is not added.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// What is said of it cannot be.
    #[error("{0}")]
    Wrong(String),
    /// The farm failed.
    #[error("{0}")]
    Farm(String),
}

impl Farm {
    /// Writes the machine down, and takes it into the farm if it can be; its id.
    pub async fn add_dut(self: &Arc<Self>, add: AddDut) -> Result<String, AddError> {
        let wrong = |why: String| AddError::Wrong(why);
        let mac: Mac = match &add.fastboot_serial {
            Some(serial) if add.mac.is_empty() => mac_of(serial),
            _ => add.mac.parse().map_err(|error| wrong(format!("`mac_address`: {error}")))?,
        };
        let mac_address = mac.to_string();
        let config = self.config();
        let inventory = self.inventory();
        let found = inventory.find(add.fastboot_serial.as_ref().unwrap_or(&mac_address));
        let (id, before) = match (found, &add.fastboot_serial) {
            (Some((id, entry)), _) => (id, Some(entry)),
            (None, Some(serial)) => (id_of(serial).map_err(wrong)?, None),
            (None, None) => (mac_address.clone(), None),
        };
        if before.is_none()
            && let Some(dut) = config.duts.iter().find(|dut| dut.mac == mac_address || dut.id == id)
        {
            return Err(wrong(format!("{id} is {}; change it in the farm file, and `wharf reload`", dut.full_name)));
        }
        if let (Some(before), true) = (&before, add.arrives.is_some()) {
            let name = &before.full_name;
            return Err(wrong(format!("{id} is {name} already; PATCH its `ready_for_service` or `is_retired`")));
        }
        let address = match &add.address {
            Some(text) => {
                Some(text.parse::<Ipv4Addr>().map_err(|_| wrong(format!("`{text}` is not an IPv4 address")))?)
            }
            None => before.as_ref().map(|entry| entry.ip_address).or_else(|| self.gateway.dhcp().address_of(mac)),
        };
        // What boots by fastboot asks nobody for an address before.
        let address = address.or_else(|| add.fastboot_serial.as_ref().and_then(|_| self.free_address()));
        let address = address.ok_or_else(|| {
            wrong(format!("{id} has no address here yet; say one of the farm's network: `--address ADDRESS`"))
        })?;
        let base_name = add.base_name.as_deref().map(said::base_name);
        let mut entry = before.unwrap_or_else(|| {
            let base_name = base_name.unwrap_or_else(|| "dut".to_owned());
            Entry {
                full_name: inventory.full_name(&config, &base_name),
                base_name,
                mac_address,
                ip_address: address,
                tags: Vec::new(),
                manual_tags: Vec::new(),
                power: None,
                console: None,
                local_tty_device: None,
                firmware_boot_time_s: None,
                facts: Default::default(),
                comment: None,
                fastboot_serial: None,
                off_time_s: None,
                arrives: add.arrives,
                first_seen: jiff::Timestamp::now(),
            }
        });
        entry.ip_address = address;
        entry.tags = add.tags.unwrap_or(entry.tags);
        entry.manual_tags = add.manual_tags.unwrap_or(entry.manual_tags);
        entry.local_tty_device = add.local_tty_device.or(entry.local_tty_device);
        entry.firmware_boot_time_s = add.firmware_boot_time_s.or(entry.firmware_boot_time_s);
        entry.comment = add.comment.or(entry.comment);
        entry.power = add.outlet.or(entry.power);
        entry.console = add.console.or(entry.console);
        entry.fastboot_serial = add.fastboot_serial.or(entry.fastboot_serial);
        // What could never be in the farm is told to who says it, and not written down.
        inventory.check(self.discovery.file(), &id, &entry).map_err(AddError::Wrong)?;
        self.keep(&id, entry).await.map_err(|(_, why)| AddError::Farm(why))?;
        self.follow_inventory().await.map_err(|error| AddError::Farm(error.to_string()))?;
        Ok(id)
    }
}
