//! Forges are asked for jobs only while a DUT is free for one.

use std::sync::Weak;
use std::time::Duration;

use tokio::time::sleep;

use crate::farm::{Farm, TargetOverride};

/// Between two looks at whether anything has happened to the farm's leases.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Until a job for this target, in this name, would find its DUT free. For ever once the farm is gone.
pub(super) async fn room(farm: &Weak<Farm>, target: &TargetOverride, subject: &str) {
    let mut seen = None;
    loop {
        let Some(farm) = farm.upgrade() else { return std::future::pending().await };
        let newest = farm.keeper().newest_event();
        if seen != Some(newest) {
            seen = Some(newest);
            if farm.has_room(target, subject).await {
                return;
            }
        }
        drop(farm);
        sleep(LOOK_AGAIN).await;
    }
}
