//! Tasks of Forgejo and Gitea instances: the farm is their runner, for jobs of one step.
//!
//! ```text
//!  farm file, DUTs ─► register.rs: runners and their accounts ─► source.rs: one question per runner ─► carry.rs: one task
//!       (looked at every few seconds)                              ▲ refused accounts                     │
//!                                                                  └──────────────────────────────────────┘
//!  a task: workflow.rs ◆ what it asks for, expressions.rs ◆ · client.rs the calls, wire.rs ◆ their JSON
//! ```

mod carry;
mod client;
mod expressions;
mod register;
mod source;
mod wire;
mod workflow;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use carry::Taken;
use register::{Keys, Registry, Wanted};
use source::Desk;

use super::carry::{Carriers, Errand, folder_of};
use crate::farm::Farm;

/// Between two looks at the farm file and the DUTs' tags: a reload shows on the server within seconds.
const LOOK: Duration = Duration::from_secs(2);
/// Refused accounts that wait: one per runner at most, and a farm of hundreds may have them all refused at once.
const REFUSALS_MAX: usize = 64;

/// Keeps runners registered and asking, for as long as the farm lives.
pub(super) async fn supervise(farm: Weak<Farm>, carriers: Arc<Carriers>) {
    let Some(state) = farm.upgrade().map(|farm| farm.forges().state) else { return };
    let mut registry = Registry::open(state.join("forgejo.json"));
    carriers.resume::<Taken>(&farm, &folder_of(&state, Taken::FORGE));
    let (accounts, all_accounts) = watch::channel(BTreeMap::new());
    let (refusals, mut refused) = mpsc::channel(REFUSALS_MAX);
    let keys = Keys::open(state.join("forgejo-keys.json"));
    let desk = Desk { farm: Weak::clone(&farm), accounts: all_accounts, refusals, carriers, keys };
    let mut sources: BTreeMap<String, watch::Sender<Wanted>> = BTreeMap::new();
    loop {
        let Some(forges) = farm.upgrade().map(|farm| farm.forges()) else { return };
        let wanted = register::wanted(&forges);
        registry.keep_in_step(&wanted).await;
        // A source whose sender is gone ends after its question.
        sources.retain(|key, source| wanted.contains_key(key) && !source.is_closed());
        for (key, wanted) in &wanted {
            let source = sources.entry(key.clone()).or_insert_with(|| {
                let (sender, receiver) = watch::channel(wanted.clone());
                tokio::spawn(source::run(desk.clone(), key.clone(), receiver));
                sender
            });
            source.send_if_modified(|current| std::mem::replace(current, wanted.clone()) != *wanted);
        }
        let current = registry.accounts(&wanted);
        accounts.send_if_modified(|accounts| std::mem::replace(accounts, current.clone()) != current);
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            Some((key, account)) = refused.recv() => registry.was_refused(&key, &account, &wanted),
        }
    }
}
