//! What the farm's projects may use, as far as the farm file says it.

use std::collections::BTreeMap;

use super::Farm;
use crate::config::FarmConfig;
use crate::lease::rows::Quota;

/// What the leases' keeper goes by.
pub(super) fn quotas(config: &FarmConfig) -> BTreeMap<String, Quota> {
    let quota = |(name, project): (&String, &crate::config::ProjectConfig)| {
        let crate::config::ProjectConfig { running, queued, share, blueprints } = project.clone();
        (name.clone(), Quota { running, queued, share, blueprints })
    };
    config.projects.iter().map(quota).collect()
}

impl Farm {
    /// Both names of the blueprint that made what is called so: a machine, a host, gear, or a machine's console.
    pub async fn blueprint_of(&self, name: &str) -> Option<[String; 2]> {
        let rows = self.snapshot().await;
        let name = name.strip_suffix(".console").unwrap_or(name);
        let found = rows.resources.iter().find(|row| row.is_called(name) || row.id.as_str() == name);
        let blueprint = found.map_or(name, |row| row.blueprint.as_str());
        let rows = crate::blueprint::dut::rows(&self.config());
        let row = rows.into_iter().find(|row| row.name == blueprint || row.full_name == blueprint)?;
        Some([row.name, row.full_name])
    }
}
