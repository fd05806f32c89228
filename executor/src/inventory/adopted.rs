//! Power units that told of themselves and that an admin took into the farm: what is kept of them, and how they join the farm file's.
//!
//! ```text
//!  found ─► adopt ─► inventory.yml, `pdus` ─► config ─► as if it stood in the farm file
//!                                               └─► the farm file has its name, or its keys are wrong: set aside, and the log says why
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use job_schema::problem::Problems;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{File, Inventory, InventoryError};
use crate::config::{self, FarmConfig, PduConfig, SPARES};

/// So many units: some racks of plugs, as many as are remembered to have told of themselves.
pub(super) const ADOPTED_MAX: usize = 256;

/// A unit, as it is written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdoptedPdu {
    /// Its driver.
    pub driver: String,
    /// The driver's keys, as they stand in a farm file.
    pub keys: Map<String, Value>,
    /// How it was found.
    pub heard: String,
    /// When it was adopted.
    pub first_seen: jiff::Timestamp,
}

impl AdoptedPdu {
    /// As if it stood in the farm file; `Err`: what is wrong with it there.
    pub fn config(&self, name: &str, directory: &Path) -> Result<PduConfig, String> {
        config::parse_pdu(name, &self.driver, &self.keys, directory).map_err(|problems| in_words(&problems))
    }
}

impl Inventory {
    /// The units that were adopted, by name.
    pub fn adopted(&self) -> BTreeMap<String, AdoptedPdu> {
        self.lock().pdus.clone()
    }

    /// Writes a new unit down. Blocks until it is on the disk.
    pub fn adopt(&self, name: &str, unit: AdoptedPdu) -> Result<(), InventoryError> {
        self.change(|File { pdus, .. }| {
            if pdus.contains_key(name) {
                return Err(InventoryError::Adopted(name.to_owned()));
            }
            if pdus.len() >= ADOPTED_MAX {
                return Err(InventoryError::Full);
            }
            pdus.insert(name.to_owned(), unit);
            Ok(())
        })
    }

    /// Forgets a unit. Blocks until that is on the disk.
    pub fn forget_pdu(&self, name: &str) -> Result<AdoptedPdu, InventoryError> {
        self.change(|File { pdus, .. }| pdus.remove(name).ok_or_else(|| InventoryError::NotAdopted(name.to_owned())))
    }

    /// The farm file wins, and what cannot be is left out.
    pub(super) fn add_adopted(&self, config: &mut FarmConfig) {
        for (name, unit) in self.adopted() {
            let is_taken = name == SPARES || config.pdus.iter().any(|pdu| pdu.name == name);
            let made = if is_taken { Err(taken(&name)) } else { unit.config(&name, &config.state) };
            match made {
                Ok(pdu) => config.pdus.push(pdu),
                Err(why) => tracing::warn!(pdu = name, why, "an adopted power unit is not in the farm"),
            }
        }
    }
}

fn taken(name: &str) -> String {
    format!("the farm file has a PDU `{name}`, too; rename one of the two, or `wharf pdu remove {name}`")
}

/// A command's answer has no file to draw.
fn in_words(problems: &Problems) -> String {
    let sentence = |problem: &job_schema::problem::Problem| {
        let field = problem.field.trim_start_matches("pdus[0]").trim_start_matches('.');
        let (what, hint) =
            (&problem.what, problem.hint.as_deref().map(|hint| format!(" ({hint})")).unwrap_or_default());
        if field.is_empty() { format!("{what}{hint}") } else { format!("{field}: {what}{hint}") }
    };
    problems.list().iter().map(sentence).collect::<Vec<_>>().join("; ")
}
