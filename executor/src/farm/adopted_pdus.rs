//! Power units that told of themselves become the farm's own, by one word of an admin; and are given up again.
//!
//! ```text
//!  adopt ─► it tells of itself once more ─► name free? keys whole? ─► inventory.yml ─► the farm goes by it ─► it is asked what it has
//!  remove ─► no machine on it? ─► out of inventory.yml ─► the farm goes by that
//! ```
//! A unit that does not answer is adopted nevertheless, and says so: it may be set right afterwards.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::timeout;

use super::Farm;
use super::pdus::PduView;
use crate::blueprint::power::PowerState;
use crate::blueprint::power::announced::Candidate;
use crate::config::SPARES;
use crate::inventory::{AdoptedPdu, InventoryError, outlet_of};

/// How long a unit may take to say what it has, before it is shown without.
const FIRST_WORD_TIME: Duration = Duration::from_secs(5);
/// The key that says where a unit is on the network.
const HOST: &str = "host";

/// Which unit is adopted, and how.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdoptPdu {
    /// What it was called when it was found, or its address.
    pub found: String,
    /// What it is called from now on; as it was found when absent.
    pub name: Option<String>,
    /// Keys of its driver that it does not tell: a password.
    pub keys: Map<String, Value>,
    /// How long it has for telling of itself.
    pub listen: Duration,
}

/// Why a unit is not adopted or given up.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// There is no such unit.
    #[error("{0}")]
    NoSuch(String),
    /// It is there already, or a machine needs it.
    #[error("{0}")]
    Used(String),
    /// What is said of it cannot be.
    #[error("{0}")]
    Wrong(String),
    /// The farm failed.
    #[error("{0}")]
    Farm(String),
}

impl From<InventoryError> for AdoptError {
    fn from(error: InventoryError) -> Self {
        match error {
            InventoryError::Adopted(_) => AdoptError::Used(error.to_string()),
            InventoryError::NotAdopted(_) => AdoptError::NoSuch(error.to_string()),
            other => AdoptError::Farm(other.to_string()),
        }
    }
}

impl Farm {
    /// Takes a unit that tells of itself into the farm.
    pub async fn adopt_pdu(self: &Arc<Self>, ask: AdoptPdu) -> Result<PduView, AdoptError> {
        ask.name.as_deref().map_or(Ok(()), |name| self.is_free_pdu_name(name))?;
        let unit = self.found_pdu(&ask).await?;
        let name = ask.name.unwrap_or_else(|| unit.name.clone());
        self.is_free_pdu_name(&name)?;
        let keys = all_keys(&unit, ask.keys)?;
        let driver = unit.driver.to_owned();
        let adopted = AdoptedPdu { driver, keys, heard: unit.heard, first_seen: jiff::Timestamp::now() };
        adopted.config(&name, &self.config().state).map_err(AdoptError::Wrong)?;
        self.change_inventory({
            let name = name.clone();
            move |farm| farm.inventory().adopt(&name, adopted)
        })
        .await?;
        if let Err(error) = self.follow_inventory().await {
            let undone = name.clone();
            self.change_inventory(move |farm| farm.inventory().forget_pdu(&undone)).await?;
            return Err(AdoptError::Farm(error.to_string()));
        }
        self.first_word(&name).await
    }

    /// Gives an adopted unit up.
    pub async fn remove_pdu(self: &Arc<Self>, name: &str) -> Result<(), AdoptError> {
        if !self.inventory().adopted().contains_key(name) {
            let config = self.config();
            return Err(match config.pdus.iter().any(|pdu| pdu.name == name) {
                true => AdoptError::Used(format!("`{name}` is in the farm file; remove it there, and `wharf reload`")),
                false => InventoryError::NotAdopted(name.to_owned()).into(),
            });
        }
        if let Some(user) = self.user_of_pdu(name) {
            return Err(AdoptError::Used(format!("{user} is on `{name}`; `wharf dut remove {user}` first")));
        }
        let runs = self.discovery().filter(|record| record.outcome().is_none());
        if runs.is_some_and(|record| record.outlet.as_ref().is_some_and(|outlet| outlet.pdu == name)) {
            let what = format!("a discovery runs on `{name}`; wait for it, or `wharf dut discover --cancel`");
            return Err(AdoptError::Used(what));
        }
        let forgotten = name.to_owned();
        let unit = self.change_inventory(move |farm| farm.inventory().forget_pdu(&forgotten)).await?;
        if let Err(error) = self.follow_inventory().await {
            let again = name.to_owned();
            self.change_inventory(move |farm| farm.inventory().adopt(&again, unit)).await?;
            return Err(AdoptError::Farm(error.to_string()));
        }
        Ok(())
    }

    fn is_free_pdu_name(&self, name: &str) -> Result<(), AdoptError> {
        if name == SPARES || self.pdus().iter().any(|pdu| pdu.name == name) {
            return Err(AdoptError::Used(format!("there is a PDU `{name}` already; say another name with `--as`")));
        }
        Ok(())
    }

    async fn found_pdu(&self, ask: &AdoptPdu) -> Result<Candidate, AdoptError> {
        let is_it = |unit: &Candidate| {
            unit.name == ask.found || unit.address.is_some_and(|address| address.to_string() == ask.found)
        };
        let found = self.find_pdus_until(ask.listen, is_it).await;
        let names: Vec<&str> = found.units.iter().map(|(unit, _)| unit.name.as_str()).collect();
        match found.units.iter().find(|(unit, _)| is_it(unit)) {
            Some((unit, None)) => Ok(unit.clone()),
            Some((_, Some(known))) => {
                Err(AdoptError::Used(format!("`{}` is in the farm already, as `{known}`", ask.found)))
            }
            None if names.is_empty() => {
                Err(AdoptError::NoSuch(format!("no power unit tells of itself, nor `{}`", ask.found)))
            }
            None => Err(AdoptError::NoSuch(format!("no `{}` tells of itself; found: {}", ask.found, names.join(", ")))),
        }
    }

    /// A machine of the farm or of the inventory that is on this unit.
    fn user_of_pdu(&self, name: &str) -> Option<String> {
        let registered = self.inventory().all().into_values();
        let mut registered = registered.filter(|entry| entry.power.as_ref().is_some_and(|outlet| outlet.pdu == name));
        registered.next().map(|entry| entry.full_name).or_else(|| {
            let config = self.config();
            let outlet = |machine: &crate::config::MachineConfig| match machine {
                crate::config::MachineConfig::Hardware(hardware) => outlet_of(&hardware.power),
                crate::config::MachineConfig::Qemu(_) | crate::config::MachineConfig::Simulated(_) => None,
            };
            let on_it = |machine| outlet(machine).is_some_and(|outlet| outlet.pdu == name);
            config.duts.iter().find(|dut| on_it(&dut.machine)).map(|dut| dut.full_name.clone())
        })
    }

    /// What it says of itself: its outlets, and what they do.
    async fn first_word(&self, name: &str) -> Result<PduView, AdoptError> {
        let no_such = |error: super::OutletError| AdoptError::NoSuch(error.to_string());
        let unit = self.unit(name).map_err(no_such)?;
        // Who says nothing within the time is asked again by the polls, and shows why.
        let _ = timeout(FIRST_WORD_TIME, async {
            let outlets = unit.outlets().await.ok().flatten();
            for info in outlets.into_iter().flatten() {
                let _: Result<PowerState, _> = unit.switch(&info.outlet).state().await;
            }
        })
        .await;
        self.pdu(name).map_err(no_such)
    }

    /// The file is written on a thread that may wait for the disk.
    async fn change_inventory<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&Farm) -> Result<T, InventoryError> + Send + 'static,
    ) -> Result<T, AdoptError> {
        let farm = Arc::clone(self);
        let changed = tokio::task::spawn_blocking(move || change(&farm)).await;
        Ok(changed.map_err(|error| AdoptError::Farm(format!("an internal error: {error}")))??)
    }
}

/// What it told, and what the admin says beside or instead of it.
fn all_keys(unit: &Candidate, said: Map<String, Value>) -> Result<Map<String, Value>, AdoptError> {
    let broken = |error| AdoptError::Farm(format!("an internal error: `{}`: {error}", unit.keys));
    let mut keys = unit.told().map_err(broken)?;
    if unit.address.is_none() && keys.contains_key(HOST) && !said.contains_key(HOST) {
        return Err(AdoptError::Wrong(format!(
            "`{}` has no address yet; give it one, and say it with `--with host=ADDRESS`",
            unit.name
        )));
    }
    keys.extend(said);
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use serde_json::json;

    use super::*;
    use crate::blueprint::power::announced::Heard;

    fn keys(address: Option<IpAddr>, said: &Value) -> Result<Value, String> {
        let (mac, host_name) = ("00:c0:b7:00:00:01".to_owned(), None);
        let unit = Candidate::of(&Heard::Dhcp { mac, address, host_name, vendor_class: None }).unwrap();
        let said = said.as_object().unwrap().clone();
        all_keys(&unit, said).map(Value::Object).map_err(|error| error.to_string())
    }

    #[test]
    fn what_an_admin_says_of_a_unit_stands_beside_what_it_told_or_instead() {
        let address = Some([10, 0, 0, 30].into());
        let told = json!({ "host": "10.0.0.30", "preset": "apc_masterswitch" });
        assert_eq!(keys(address, &json!({})).unwrap(), told);
        let both = json!({ "host": "10.0.0.30", "preset": "cyberpower_pdu41004", "community": "lab" });
        assert_eq!(keys(address, &json!({ "community": "lab", "preset": "cyberpower_pdu41004" })).unwrap(), both);
        let told = keys(None, &json!({})).unwrap_err();
        assert_eq!(told, "`snmp-00c0b7000001` has no address yet; give it one, and say it with `--with host=ADDRESS`");
        assert_eq!(keys(None, &json!({ "host": "10.0.0.9" })).unwrap()["host"], "10.0.0.9");
    }
}
