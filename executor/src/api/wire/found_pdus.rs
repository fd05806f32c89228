//! Power units that tell of themselves, as our clients read them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::blueprint::power::announced::Candidate;

/// What was found.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct FoundPdusWire {
    /// Units.
    pub units: Vec<FoundPduWire>,
    /// What could not be looked at.
    pub problems: Vec<String>,
}

/// A unit that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FoundPduWire {
    /// A name for it.
    pub name: String,
    /// What it is.
    pub what: String,
    /// How it was found.
    pub heard: String,
    /// Where it is on the network.
    pub address: Option<String>,
    /// The driver for it.
    pub driver: String,
    /// The lines for `pdus` in the farm file.
    pub entry: String,
    /// What the farm file calls it, where it has it already.
    pub known_as: Option<String>,
}

/// Which of them is taken into the farm.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdoptWire {
    /// Its `name` as it was found, or its address.
    #[serde(default)]
    pub found: String,
    /// What it is called from now on; as it was found when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Keys of its driver that it does not tell, such as a password.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub keys: Map<String, Value>,
    /// How long it has for telling of itself, in seconds; 4 when it is not said, 60 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_s: Option<u64>,
}

impl FoundPduWire {
    /// As it was found.
    pub fn of(unit: &Candidate, known_as: Option<&str>) -> Self {
        FoundPduWire {
            name: unit.name.clone(),
            what: unit.what.to_owned(),
            heard: unit.heard.clone(),
            address: unit.address.map(|address| address.to_string()),
            driver: unit.driver.to_owned(),
            entry: unit.entry(),
            known_as: known_as.map(str::to_owned),
        }
    }
}
