//! One runner: asks its instance for jobs, while a DUT that it means is free.
//!
//! ```text
//!  a token? ─► a free DUT? ─► POST /jobs/request ─┬─ 201: a carrier takes it (carry.rs) ─┐
//!     ▲                        (50 s at most)      ├─ 204, 409, failures                   │ once the farm has it
//!     └──────────────────────── a pause ◄──────────┴──────────────────────────────────────┘
//! ```
//! A DUT may get taken while the question is open, and a job comes all the same: it waits in the farm's queue then.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::super::carry::Carriers;
use super::super::room::room;
use super::carry::Taken;
use super::client::{Asked, Client};
use super::register::Wanted;
use super::terminal::{Session, Terminals};
use crate::config::gitlab::RegisteredFor;
use crate::farm::Farm;

/// Between two questions: a server that does not keep them open (no Workhorse, or long polling switched off) is asked as often as GitLab's
/// own runner does.
const QUESTION_EVERY: Duration = Duration::from_secs(3);
/// The longest pause after failures.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long a job that was taken may need to be in the farm's queue: its description may have to be fetched.
const TAKING: Duration = Duration::from_secs(120);

/// What all runners of the farm share.
#[derive(Clone)]
pub(super) struct Desk {
    pub farm: Weak<Farm>,
    pub system_id: String,
    pub tokens: watch::Receiver<BTreeMap<String, String>>,
    /// Keys and tokens that a server did not want.
    pub refusals: mpsc::Sender<(String, String)>,
    pub carriers: Arc<Carriers>,
    pub terminals: Arc<Terminals>,
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
    let mut tokens = desk.tokens.clone();
    let mut last_update = None;
    let mut failures = 0;
    while wanted.has_changed().is_ok() {
        let runner = wanted.borrow_and_update().clone();
        let token = tokio::select! {
            held = tokens.wait_for(|all| all.contains_key(key)) => match held {
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
        let client = match Client::of(&runner.instance) {
            Ok(client) => client,
            Err(error) => {
                tracing::warn!(runner = key, "{error}");
                sleep(PAUSE_MAX).await;
                continue;
            }
        };
        let next = Instant::now() + QUESTION_EVERY;
        let session = desk.terminals.session(runner.instance.terminal.as_ref());
        let told = session.as_ref().map(Session::wire);
        match client.ask_for_job(&token, &desk.system_id, last_update.as_deref(), told).await {
            Asked::Job(job) => {
                (failures, last_update) = (0, None);
                let (taken, is_taken) = oneshot::channel();
                desk.carriers.begin(&desk.farm, Taken::new(*job, &runner, token, session), runner, taken);
                // Else the same DUT would look free a second time.
                let _ = tokio::time::timeout(TAKING, is_taken).await;
                continue;
            }
            Asked::Nothing(update) => (failures, last_update) = (0, update),
            Asked::Conflict => continue,
            Asked::Refused => {
                let _ = desk.refusals.send((key.to_owned(), token.clone())).await;
                // Until another token is there, or this one is tried again.
                let _ = tokens.wait_for(|all| all.get(key) != Some(&token)).await;
            }
            Asked::Failed(why, after) => {
                if failures == 0 {
                    tracing::warn!(runner = key, "{why}");
                }
                failures += 1;
                let pause = after.unwrap_or(Duration::from_secs(1 << failures.min(6)));
                sleep(pause.min(PAUSE_MAX)).await;
            }
        }
        sleep_until(next).await;
    }
}

/// In whose name a job asks for its DUT: its project, by number, since paths are renamed and taken again.
pub(super) fn subject(runner: &Wanted, project: Option<u64>) -> String {
    let instance = &runner.instance;
    let host = instance.url.split_once("://").map_or(instance.url.as_str(), |(_, host)| host);
    let project = project.or(match instance.registered_for {
        RegisteredFor::Project(project) => Some(project),
        RegisteredFor::Group(_) | RegisteredFor::Instance => None,
    });
    let Some(project) = project else { return host.to_owned() };
    instance.projects.get(&project).cloned().unwrap_or_else(|| format!("{host}/project/{project}"))
}
