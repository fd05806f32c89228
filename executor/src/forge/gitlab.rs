//! Jobs of GitLab instances: the farm is their runner.
//!
//! ```text
//!  farm file, DUTs ─► register.rs: runners and their tokens ─► source.rs: one question per runner ─► carry.rs: one job
//!       (looked at every few seconds)                              ▲ refused tokens                     │
//!                                                                  └────────────────────────────────────┘
//!  a job: forms.rs ◆ what it asks for, ci_tron.rs ◆ and variables.rs ◆ too · a plain script: script.rs ◆ what its DUT runs, checkout.rs
//!  the files for it, image.rs its image, results.rs those from it · ready.rs what is told meanwhile · produce.rs its files, globs.rs ◆ which · terminal.rs its
//!  console in a browser · client.rs the calls, wire.rs ◆ their JSON
//!  beside all that, for GitLab's own runner: driver.rs ◆, which `wharf gitlab-executor` goes by
//! ```

mod carry;
mod checkout;
mod ci_tron;
mod client;
mod describe;
pub mod driver;
mod forms;
mod globs;
mod image;
mod produce;
mod ready;
mod register;
mod results;
mod script;
mod source;
mod terminal;
mod variables;
mod wire;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use carry::Taken;
use register::{Registry, Wanted};
use source::Desk;
use terminal::Terminals;

use super::carry::{Carriers, Errand, folder_of};
use super::{courier, mask, spool, trace};
use crate::farm::{AUTHORITY, Farm};

/// Between two looks at the farm file and the DUTs' tags: a reload shows in GitLab within seconds.
const LOOK: Duration = Duration::from_secs(2);
/// Refused tokens that wait: one per runner at most, and a farm of hundreds may have them all refused at once.
const REFUSALS_MAX: usize = 64;

/// Keeps runners registered and asking, for as long as the farm lives.
pub(super) async fn supervise(farm: Weak<Farm>, carriers: Arc<Carriers>) {
    let Some(state) = farm.upgrade().map(|farm| farm.forges().state) else { return };
    let mut registry = Registry::open(state.join("gitlab.json"));
    let kept = folder_of(&state, Taken::FORGE);
    carriers.resume::<Taken>(&farm, &kept);
    let terminals = Terminals::new(Weak::clone(&farm), kept, state.join(AUTHORITY));
    let (tokens, all_tokens) = watch::channel(BTreeMap::new());
    let (refusals, mut refused) = mpsc::channel(REFUSALS_MAX);
    let system_id = registry.system_id().to_owned();
    let desk = Desk { farm: Weak::clone(&farm), system_id, tokens: all_tokens, refusals, carriers, terminals };
    let mut sources: BTreeMap<String, watch::Sender<Wanted>> = BTreeMap::new();
    loop {
        let Some(forges) = farm.upgrade().map(|farm| farm.forges()) else { return };
        let wanted = register::wanted(&forges);
        desk.terminals.keep_in_step(forges.gitlab.iter().filter_map(|instance| instance.terminal.as_ref())).await;
        if !wanted.is_empty() || !registry.is_empty() {
            registry.keep_in_step(&wanted).await;
        }
        // A source whose sender is gone ends after its question.
        sources.retain(|key, source| wanted.contains_key(key) && !source.is_closed());
        for (key, wanted) in &wanted {
            let source = sources.entry(key.clone()).or_insert_with(|| {
                let (sender, receiver) = watch::channel(wanted.clone());
                tokio::spawn(source::run(desk.clone(), key.clone(), receiver));
                sender
            });
            source.send_if_modified(|current| {
                let is_other = current != wanted;
                current.clone_from(wanted);
                is_other
            });
        }
        let current = registry.tokens(&wanted);
        tokens.send_if_modified(|tokens| {
            let is_other = *tokens != current;
            *tokens = current;
            is_other
        });
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            Some((key, token)) = refused.recv() => registry.was_refused(&key, &token, &wanted).await,
        }
    }
}
