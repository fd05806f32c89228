//! The boot namespace of a leased DUT: what it may fetch, and what DHCP tells it.
//!
//! ```text
//!  closed ──open (artifacts are there)──► open ──publish(start | continue)──► published ──► …
//!    ▲                                      └──────── close: the lease's tear-down, whoever still holds it ────────┘
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use gateway::Gateway;
use gateway::content::Content;
use gateway::dhcp::Mac;
use gateway::namespace::{AccessEvent, Observer, Outcome, Publication};
use tokio::sync::mpsc;

use super::contents::Contents;
use super::disks::Disks;
use super::prepare::Prepared;
use crate::job_log::{JobEvent, JobLog};
use crate::lease::Pass;
use crate::runner::SetupError;
use crate::session::{Event, Which};
use crate::verdict::Cause;

/// Access lines in one job's log: a DUT that asks for a missing file in a loop must not fill the memory.
const ACCESS_LINES_MAX: usize = 5000;

/// The boot namespace of one DUT; empty while nothing is served.
#[derive(Default)]
pub(super) struct BootNamespace(Mutex<Option<Open>>);

/// A boot namespace that serves.
pub(super) struct Open {
    pub gateway: Arc<Gateway>,
    pub mac: Mac,
    pub pass: Pass,
    pub publication: Publication<Content>,
    pub prepared: Arc<Prepared>,
    pub contents: Contents,
    pub disks: Disks,
    pub attachments: BTreeMap<String, Bytes>,
    pub since: Instant,
    pub published: Option<Which>,
}

impl BootNamespace {
    /// Takes what is to be served. Both deployments are checked now, so that what cannot be served ends the job before the first boot.
    pub(super) fn open(&self, open: Open) -> Result<(), SetupError> {
        open.check().map_err(|reason| SetupError { cause: Cause::Artifact, reason })?;
        *self.lock() = Some(open);
        Ok(())
    }

    /// Serves a deployment from now on, and counts a boot.
    pub(super) fn publish(&self, which: Which) -> Result<(), String> {
        self.lock().as_mut().ok_or("the boot namespace is closed")?.publish(which)
    }

    /// Counts a boot of what is served, if anything is.
    pub(super) fn begin_boot(&self) -> Result<(), String> {
        let mut open = self.lock();
        match open.as_mut().and_then(|open| open.published.map(|which| (open, which))) {
            Some((open, which)) => open.publish(which),
            None => Ok(()),
        }
    }

    /// Serves nothing from now on.
    pub(super) fn close(&self) {
        if let Some(open) = self.lock().take() {
            open.gateway.dhcp().clear_boot(open.mac);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn check(&self) -> Result<(), String> {
        for planned in self.prepared.start.artifacts.iter().chain(&self.prepared.continue_.artifacts) {
            self.contents.of(planned, &self.attachments).map_err(|reason| format!("{:?}: {reason}", planned.name))?;
        }
        Ok(())
    }

    fn publish(&mut self, which: Which) -> Result<(), String> {
        self.pass.check().map_err(|revoked| revoked.to_string())?;
        if self.published != Some(which) {
            self.publication.clear();
            let plan = match which {
                Which::Start => &self.prepared.start,
                Which::Continue => &self.prepared.continue_,
            };
            for planned in &plan.artifacts {
                let content = self.contents.of(planned, &self.attachments)?;
                let name = planned.name.clone();
                self.publication.put(planned.protocol, name, content, planned.exposure, planned.origin, self.since);
            }
            self.disks.publish(which, &self.publication, self.since);
            self.gateway.dhcp().set_boot(self.mac, plan.dhcp.clone());
            self.published = Some(which);
        }
        self.publication.begin_boot();
        self.disks.begin_boot(which)
    }
}

/// Turns what the servers saw into lines of the log, evidence, and signs of life.
pub(super) fn observer(log: &Arc<JobLog>, events: mpsc::Sender<Event>) -> Observer {
    let log = Arc::clone(log);
    let lines = AtomicUsize::new(0);
    Arc::new(move |event| {
        if matches!(event, AccessEvent::Opened { .. } | AccessEvent::Progress) {
            let _ = events.try_send(Event::BootProgress);
        }
        let Some(text) = sentence(&event) else { return };
        match lines.fetch_add(1, Ordering::Relaxed) {
            count if count < ACCESS_LINES_MAX => {
                log.append(JobEvent::Access { text: text.clone() });
                let _ = events.try_send(Event::Evidence(text));
            }
            ACCESS_LINES_MAX => log.append(JobEvent::Access { text: "further accesses are not listed".into() }),
            _ => {}
        }
    })
}

fn sentence(event: &AccessEvent) -> Option<String> {
    match event {
        AccessEvent::Opened { .. } | AccessEvent::Progress => None,
        AccessEvent::Ended { protocol, name, bytes, outcome, .. } => Some(match outcome {
            Outcome::Complete => format!("{protocol} {name}: {bytes} bytes, complete"),
            Outcome::Aborted(reason) => format!("{protocol} {name}: {bytes} bytes, aborted by the DUT: {reason}"),
            Outcome::Failed(reason) => format!("{protocol} {name}: {bytes} bytes, failed: {reason}"),
        }),
        AccessEvent::Refused { protocol, name, peer, refusal } => {
            Some(format!("{protocol} {name}: refused to {peer}: {refusal}"))
        }
    }
}
