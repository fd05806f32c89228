//! Jobs of GitLab instances: the farm is their runner.
//!
//! ```text
//!  ../runners.rs ─► register.rs: runners and their tokens ─► source.rs: one question per runner ─► carry.rs: one job
//!  a job: forms.rs ◆ what it asks for, ci_tron.rs ◆, executorctl.rs ◆ and variables.rs ◆ too, passed_over.rs ◆ what it does not get · a plain
//!  script: script.rs ◆ what its DUT runs, checkout.rs the files for it (git.rs, submodules.rs, lfs.rs, cache.rs), image.rs its image,
//!  results.rs those from it · ready.rs what is told meanwhile · produce.rs its files, globs.rs ◆ which · terminal.rs its
//!  console in a browser · client.rs the calls, wire.rs ◆ their JSON
//!  beside all that, for GitLab's own runner: driver.rs ◆, which `wharf gitlab-executor` goes by
//! ```

mod cache;
mod carry;
mod checkout;
mod ci_tron;
mod client;
mod describe;
pub mod driver;
mod executorctl;
mod folder;
mod forms;
mod git;
mod globs;
mod image;
mod lfs;
mod passed_over;
mod produce;
mod ready;
mod register;
mod results;
mod script;
mod source;
mod submodules;
mod terminal;
mod variables;
mod wire;

use std::sync::Arc;

use register::Registry;

use super::carry::Carriers;
use super::{courier, mask, runners, spool, trace};
use crate::farm::Farm;

/// Takes jobs for as long as the farm lives.
pub(super) fn take(farm: &Arc<Farm>, carriers: &Arc<Carriers>) -> impl Future<Output = ()> + Send + use<> {
    runners::take(Registry::open(&farm.forges().state, &Arc::downgrade(farm)), farm, carriers)
}
