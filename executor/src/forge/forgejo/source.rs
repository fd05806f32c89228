//! One runner: asks its instance for tasks, while a DUT that it means is free.
//!
//! ```text
//!  an account? ─► a free DUT? ─► FetchTask ─┬─ a task: carried (../carry.rs) ─┐
//!     ▲                                      ├─ none, failures                 │ once the farm has it: another key
//!     └────────────────────── a pause ◄──────┴─────────────────────────────────┘
//! ```
//! The server answers at once. A DUT may get taken in that moment, and a task comes all the same: it waits in the farm's queue then.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::super::carry::Carriers;
use super::super::room::room;
use super::carry::Taken;
use super::client::{Client, Refusal};
use super::register::{Keys, Wanted};
use super::wire::{Account, Fetched, Task};
use crate::farm::Farm;

/// Between two questions; Forgejo's own runner asks every 2 s, and a farm is many runners.
const QUESTION_EVERY: Duration = Duration::from_secs(3);
/// The server need not look for a task while its list is as old as our last answer. It is made to look every so many questions all the
/// same: a task that another runner gave back does not make the list newer.
const LOOKS_EVERY: u32 = 10;
/// The longest pause after failures.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long a task that was taken may need to be in the farm's queue: its description may have to be fetched.
const TAKING: Duration = Duration::from_secs(120);

/// What all runners of the farm share.
#[derive(Clone)]
pub(super) struct Desk {
    pub farm: Weak<Farm>,
    pub accounts: watch::Receiver<BTreeMap<String, Account>>,
    /// Keys and accounts that a server did not want.
    pub refusals: mpsc::Sender<(String, Account)>,
    pub carriers: Arc<Carriers>,
    pub keys: Keys,
}

/// Asks until `wanted` is no longer sent, or the farm stops.
pub(super) async fn run(desk: Desk, key: String, mut wanted: watch::Receiver<Wanted>) {
    let Some(farm) = desk.farm.upgrade() else { return };
    let stopping = farm.stopping();
    drop(farm);
    tokio::select! {
        () = stopping => {}
        () = ask(&desk, &key, &mut wanted) => {}
    }
}

async fn ask(desk: &Desk, key: &str, wanted: &mut watch::Receiver<Wanted>) {
    let mut accounts = desk.accounts.clone();
    let (mut version, mut asked, mut failures) = (0, 0, 0);
    while wanted.has_changed().is_ok() {
        let runner = wanted.borrow_and_update().clone();
        let account = tokio::select! {
            held = accounts.wait_for(|all| all.contains_key(key)) => match held {
                Ok(all) => all.get(key).cloned().unwrap_or_default(),
                Err(_) => return,
            },
            _ = wanted.changed() => continue,
        };
        let name = subject(&runner, None);
        tokio::select! {
            () = room(&desk.farm, &runner.target, &name) => {}
            _ = wanted.changed() => continue,
        }
        let next = Instant::now() + QUESTION_EVERY;
        asked += 1;
        let seen = if asked % LOOKS_EVERY == 1 { 0 } else { version };
        match fetch(&runner, &account, &desk.keys.of(key), seen).await {
            Ok(Fetched { task: Some(task), .. }) => {
                (failures, version, asked) = (0, 0, 0);
                let (taken, is_taken) = oneshot::channel();
                desk.carriers.begin(&desk.farm, Taken::new(task, &runner, account), runner, taken);
                // Else the same DUT would look free a second time.
                let _ = tokio::time::timeout(TAKING, is_taken).await;
                desk.keys.renew(key);
                continue;
            }
            Ok(Fetched { task: None, tasks_version }) => (failures, version) = (0, tasks_version),
            Err(refusal) if refusal.is_of_the_account() => {
                let _ = desk.refusals.send((key.to_owned(), account.clone())).await;
                // Until it was looked at, and another account is there or this one is tried again.
                let _ = accounts.wait_for(|all| all.get(key) != Some(&account)).await;
            }
            Err(refusal) => {
                if failures == 0 {
                    tracing::warn!(runner = key, "{}", refusal.why);
                }
                (failures, version) = (failures + 1, 0);
                let pause = refusal.retry_after.unwrap_or(Duration::from_secs(1 << failures.min(6)));
                sleep(pause.min(PAUSE_MAX)).await;
            }
        }
        sleep_until(next).await;
    }
}

async fn fetch(runner: &Wanted, account: &Account, key: &str, version: u64) -> Result<Fetched, Refusal> {
    let unreadable = |why: String| Refusal { why, ..Refusal::default() };
    let instance = &runner.instance;
    let client = Client::new(&instance.url, instance.certificate_authority.as_deref()).map_err(unreadable)?;
    let body = json!({"tasksVersion": version.to_string()});
    let answer = client.call("FetchTask", Some(account), Some(key), &body).await?;
    let url = &instance.url;
    serde_json::from_value(answer)
        .map_err(|error| unreadable(format!("{url} gave a task that cannot be read: {error}")))
}

/// In whose name a job asks for its DUT: the project that the farm file says, or its repository, by number where the server tells it,
/// since paths are renamed and taken again.
pub(super) fn subject(runner: &Wanted, task: Option<&Task>) -> String {
    let instance = &runner.instance;
    if let Some(project) = &instance.project {
        return project.clone();
    }
    let host = instance.url.split_once("://").map_or(instance.url.as_str(), |(_, host)| host);
    let said = |name: &str| task.map(|task| task.said(name).to_owned()).filter(|said| !said.is_empty());
    match said("repository_id").or_else(|| said("repository")) {
        Some(repository) => format!("{host}/repository/{repository}"),
        None => host.to_owned(),
    }
}
