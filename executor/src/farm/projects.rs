//! What the farm's projects may use, as far as the farm file says it.

use super::Farm;

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
