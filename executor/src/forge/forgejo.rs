//! Tasks of Forgejo and Gitea instances: the farm is their runner, for jobs of one step.
//!
//! ```text
//!  ../runners.rs ─► register.rs: runners and their accounts ─► source.rs: one question per runner ─► carry.rs: one task
//!  a task: workflow.rs ◆ what it asks for, expressions.rs ◆ · client.rs the calls, wire.rs ◆ their JSON
//! ```

mod carry;
mod client;
mod expressions;
mod register;
mod source;
mod wire;
mod workflow;

use std::sync::Arc;

use register::Registry;

use super::carry::Carriers;
use super::runners;
use crate::farm::Farm;

/// Takes tasks for as long as the farm lives.
pub(super) fn take(farm: &Arc<Farm>, carriers: &Arc<Carriers>) -> impl Future<Output = ()> + Send + use<> {
    runners::take(Registry::open(&farm.forges().state), farm, carriers)
}
