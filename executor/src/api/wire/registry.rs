//! The cache of container images, as our own clients read it.

use std::collections::BTreeMap;

use gateway::registry::{Forgotten, Holding, Inventory};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What is kept of one repository.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ImageWire {
    /// `registry.example.org/group/name`.
    pub name: String,
    /// The tags that were asked for.
    pub tags: Vec<String>,
    /// Of all its parts; several repositories may share some.
    pub bytes: u64,
    /// When any of them was used last, RFC 3339.
    #[schema(value_type = String, format = DateTime)]
    pub used: Timestamp,
    /// In whose name its registry gave something of it, and when last: `anybody`, `farm` (the farm file's name), `job` (a job's own).
    #[schema(value_type = BTreeMap<String, String>)]
    pub readers: BTreeMap<String, Timestamp>,
}

/// All of it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RegistryWire {
    /// By name.
    pub images: Vec<ImageWire>,
    /// In all.
    pub bytes: u64,
    /// At most.
    pub bytes_max: u64,
}

/// What was forgotten.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ForgottenWire {
    /// The repositories.
    pub forgotten: Vec<String>,
    /// How many bytes are free for it.
    pub bytes: u64,
}

impl From<Inventory> for RegistryWire {
    fn from(inventory: Inventory) -> RegistryWire {
        let Inventory { holdings, bytes, bytes_max } = inventory;
        RegistryWire { images: holdings.into_iter().map(ImageWire::from).collect(), bytes, bytes_max }
    }
}

impl From<Holding> for ImageWire {
    fn from(holding: Holding) -> ImageWire {
        let Holding { repository, tags, bytes, used, readers } = holding;
        let readers = readers.into_iter().map(|(who, at)| (who, moment(at))).collect();
        ImageWire { name: repository, tags, bytes, used: moment(used), readers }
    }
}

impl From<Forgotten> for ForgottenWire {
    fn from(forgotten: Forgotten) -> ForgottenWire {
        let Forgotten { repositories, bytes } = forgotten;
        ForgottenWire { forgotten: repositories, bytes }
    }
}

fn moment(seconds: u64) -> Timestamp {
    i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or(Timestamp::MAX)
}
