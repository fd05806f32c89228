//! The boot namespace of a leased DUT: what it may fetch, and what DHCP tells it.
//!
//! ```text
//!  closed ──open (artifacts are there)──► open ──publish(start | continue)──► published ──► …
//!    ▲                                      └──────── close: the lease's tear-down, whoever still holds it ────────┘
//! ```

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use gateway::Gateway;
use gateway::content::Content;
use gateway::dhcp::Mac;
use gateway::namespace::{AccessEvent, Counted, Name, Observer, Origin, Outcome, Protocol, Publication, Reading};
use gateway::s3::desk::Granted;
use job_schema::job::Artifact;
use tokio::sync::mpsc;

use super::contents::{Attachments, Contents};
use super::disks::Disks;
use super::egress::AuditTrail;
use super::fetching::Fetching;
use super::prepare::Prepared;
use super::reads::Reads;
use crate::boot::fastboot::HandOver;
use crate::boot::{BootPlan, Planned, Source};
use crate::job_log::{AccessEnd, AccessRecord, JobEvent, JobLog};
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
    /// The DUT's key to the buckets of its job.
    pub _buckets: Option<Granted>,
    pub attachments: Attachments,
    pub kept: Kept,
    pub published: Option<Which>,
    pub watch: Watch,
}

/// Who hears what was fetched.
pub(super) struct Watch {
    pub fetching: Arc<Fetching>,
    pub events: mpsc::Sender<Event>,
    pub audit: Arc<AuditTrail>,
}

/// Whether a job is served for the first time, or was before the farm was restarted.
#[derive(Clone, Copy)]
pub(super) enum Serving {
    Anew,
    /// In the middle of this boot; `None`: its outlet was being switched.
    Again(Option<u32>),
}

/// What is served, and since when; what of it was read, where that must outlive us.
pub(super) struct Kept {
    pub reads: Option<Reads>,
    since: Instant,
    /// The boot that the namespace is about.
    boot: Option<u32>,
}

impl Kept {
    /// For a machine that ends with us.
    pub(super) fn nothing() -> Kept {
        Kept { reads: None, since: Instant::now(), boot: None }
    }

    /// For a machine that outlives us; `folder` where something must be remembered.
    pub(super) fn of(
        folder: Option<&Path>,
        serving: Serving,
        publication: &Publication<Content>,
    ) -> Result<Kept, SetupError> {
        let failed = |why: String| SetupError {
            cause: Cause::Farm,
            reason: format!("what is read of its limited artifacts cannot be kept: {why}"),
        };
        let Some(folder) = folder else {
            let boot = if let Serving::Again(boot) = serving { boot } else { None };
            return Ok(Kept { boot, ..Kept::nothing() });
        };
        let kept = match serving {
            Serving::Anew => {
                let reads = Reads::begin(folder).map_err(|error| failed(error.to_string()))?;
                Kept { reads: Some(reads), ..Kept::nothing() }
            }
            Serving::Again(boot) => {
                let known = Reads::go_on(folder, Instant::now()).map_err(|error| failed(error.to_string()))?;
                let (reads, known) = known.ok_or_else(|| failed("there is no record of it".to_owned()))?;
                for ((protocol, entry), (count, first_access)) in known.read {
                    publication.remember(Counted { protocol, entry }, count, first_access);
                }
                Kept { reads: Some(reads), since: known.published, boot: boot.or(Some(known.boot)) }
            }
        };
        if let Some(reads) = &kept.reads {
            publication.record_with(reads.recorder());
        }
        Ok(kept)
    }
}

impl BootNamespace {
    /// Takes what is to be served. Both deployments are checked now, so that what cannot be served ends the job before the first boot.
    pub(super) fn open(&self, open: Open) -> Result<(), SetupError> {
        open.check().map_err(|reason| SetupError { cause: Cause::Artifact, reason })?;
        *self.lock() = Some(open);
        Ok(())
    }

    /// Serves a deployment from now on. Of a boot of another number nothing was read yet; without a number each time is a boot.
    pub(super) fn publish(&self, which: Which, boot: Option<u32>) -> Result<(), String> {
        self.lock().as_mut().ok_or("the boot namespace is closed")?.publish(which, boot)
    }

    /// Of what the machine boots from, in the boot that goes on, so much is missing.
    pub(super) fn goes_on(&self, which: Which, missing: &[String]) {
        if let Some(open) = &*self.lock() {
            open.watch.fetching.go_on(open.plan(which), missing);
        }
    }

    /// Counts a boot of what is served, if anything is.
    pub(super) fn begin_boot(&self) -> Result<(), String> {
        let mut open = self.lock();
        match open.as_mut().and_then(|open| open.published.map(|which| (open, which))) {
            Some((open, which)) => open.publish(which, None),
            None => Ok(()),
        }
    }

    /// What the farm gives to the DUT's loader in this deployment.
    pub(super) fn hand_over(&self, which: Which) -> Option<HandOver> {
        self.lock().as_ref()?.plan(which).hand_over.clone()
    }

    /// What of the deployment that is served was published and never read, as a line of evidence.
    pub(super) fn never_read(&self) -> Option<String> {
        self.lock().as_ref()?.never_read()
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

    fn never_read(&self) -> Option<String> {
        let never = never_read(self.plan(self.published?), &self.publication.readings());
        (!never.is_empty()).then(|| format!("published, and never read: {}", never.join(", ")))
    }

    fn plan(&self, which: Which) -> &BootPlan {
        match which {
            Which::Start => &self.prepared.start,
            Which::Continue => &self.prepared.continue_,
        }
    }

    fn publish(&mut self, which: Which, boot: Option<u32>) -> Result<(), String> {
        self.pass.check().map_err(|revoked| revoked.to_string())?;
        self.contents.begin(which, boot);
        if self.published != Some(which) {
            self.publication.clear();
            let plan = self.plan(which);
            for planned in &plan.artifacts {
                let content = self.contents.of(planned, &self.attachments)?;
                let name = planned.name.clone();
                self.publication.put(
                    planned.protocol,
                    name,
                    content,
                    planned.exposure,
                    planned.origin,
                    self.kept.since,
                );
            }
            self.disks.publish(which, &self.publication, self.kept.since);
            self.gateway.dhcp().set_boot(self.mac, plan.dhcp.clone());
            self.published = Some(which);
        }
        if boot.is_some() && boot == self.kept.boot {
            return Ok(());
        }
        // One that is lost is followed by another at the next access.
        let _ = self.watch.events.try_send(Event::Fetched(self.watch.fetching.begin(self.plan(which))));
        if let (Some(reads), Some(boot)) = (&self.kept.reads, boot) {
            reads.boot(boot).map_err(|error| format!("a boot cannot be written down: {error}"))?;
        }
        self.kept.boot = boot;
        self.publication.begin_boot();
        self.disks.begin_boot(which)
    }
}

/// Turns what the servers saw into lines of the log, evidence, and signs of life.
pub(super) fn observer(log: &Arc<JobLog>, watch: &Watch) -> Observer {
    let log = Arc::clone(log);
    let (fetching, events) = (Arc::clone(&watch.fetching), watch.events.clone());
    let audit = Arc::clone(&watch.audit);
    let lines = AtomicUsize::new(0);
    let running = Mutex::new(HashMap::new());
    Arc::new(move |event| {
        audit.note(&event);
        if let Some(fetches) = fetching.note(&event) {
            let _ = events.try_send(Event::Fetched(fetches));
        }
        if is_progress(&event) {
            let _ = events.try_send(Event::BootProgress);
        }
        let running = &mut *running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(access) = record(&event, running) else { return };
        let text = sentence(&access);
        match lines.fetch_add(1, Ordering::Relaxed) {
            count if count < ACCESS_LINES_MAX => {
                // First the session: who reads the line, and cancels the job for it, finds it in the verdict.
                let _ = events.try_send(Event::Evidence(text.clone()));
                log.append(JobEvent::Access { text, access: Some(access) });
            }
            ACCESS_LINES_MAX => {
                log.append(JobEvent::Access { text: "further accesses are not listed".into(), access: None });
            }
            _ => {}
        }
    })
}

/// What a machine does that is booting; that it broke off is none of it.
fn is_progress(event: &AccessEvent) -> bool {
    match event {
        AccessEvent::Opened { .. } | AccessEvent::Resumed { .. } | AccessEvent::Progress => true,
        AccessEvent::Ended { outcome, .. } => *outcome == Outcome::Complete,
        AccessEvent::Refused { .. } => false,
    }
}

/// Accesses that run, by their number: who began them, and when.
type Running = HashMap<u64, (IpAddr, Instant)>;

/// The access that is over with this event.
fn record(event: &AccessEvent, running: &mut Running) -> Option<AccessRecord> {
    match event {
        AccessEvent::Opened { access, peer, .. } | AccessEvent::Resumed { access, peer, .. } => {
            running.insert(*access, (*peer, Instant::now()));
            None
        }
        AccessEvent::Progress => None,
        AccessEvent::Ended { access, protocol, name, bytes, outcome } => {
            let (peer, opened) = running.remove(access)?;
            let (end, reason) = match outcome {
                Outcome::Complete => (AccessEnd::Complete, None),
                Outcome::Aborted(reason) => (AccessEnd::Aborted, Some(reason.clone())),
                Outcome::Failed(reason) => (AccessEnd::Failed, Some(reason.clone())),
            };
            let seconds = Some(opened.elapsed().as_secs_f64());
            let (protocol, name, peer) = (protocol.to_string(), name.clone(), peer.to_string());
            Some(AccessRecord { protocol, name, peer, bytes: *bytes, seconds, end, reason })
        }
        AccessEvent::Refused { protocol, name, peer, refusal } => Some(AccessRecord {
            protocol: protocol.to_string(),
            name: name.clone(),
            peer: peer.to_string(),
            bytes: 0,
            seconds: None,
            end: AccessEnd::Refused,
            reason: Some(refusal.to_string()),
        }),
    }
}

fn sentence(access: &AccessRecord) -> String {
    let AccessRecord { protocol, name, peer, bytes, end, reason, .. } = access;
    let reason = reason.as_deref().unwrap_or_default();
    match end {
        AccessEnd::Complete => format!("{protocol} {name}: {bytes} bytes, complete"),
        AccessEnd::Aborted => format!("{protocol} {name}: {bytes} bytes, aborted by the DUT: {reason}"),
        AccessEnd::Failed => format!("{protocol} {name}: {bytes} bytes, failed: {reason}"),
        AccessEnd::Refused => format!("{protocol} {name}: refused to {peer}: {reason}"),
    }
}

/// What was published for the DUT and never read, of what the job names itself: its own entries, and kernel, initial RAM disks and
/// device trees, which a boot method may serve under several names.
fn never_read(plan: &BootPlan, readings: &[(Protocol, String, Reading)]) -> Vec<String> {
    let reading = |planned: &Planned| {
        let (Name::Exact(name) | Name::Matching(name, _)) = &planned.name;
        let of_it = readings.iter().filter(|(protocol, other, _)| *protocol == planned.protocol && other == name);
        let of_it: Vec<Reading> = of_it.map(|(_, _, reading)| *reading).collect();
        // A job's file and the generated one that it replaces have one name.
        of_it.contains(&Reading::Read).then_some(Reading::Read).or(of_it.first().copied())
    };
    let read: Vec<&Planned> = plan.artifacts.iter().filter(|planned| reading(planned) == Some(Reading::Read)).collect();
    let has_read = |artifact: &Artifact| read.iter().any(|planned| is_made_of(&planned.source, artifact));
    let mut never = Vec::new();
    for planned in &plan.artifacts {
        let (Name::Exact(name) | Name::Matching(name, _)) = &planned.name;
        let says = match (planned.origin, &planned.source) {
            (Origin::Job, _) if reading(planned) == Some(Reading::Never) => format!("{} {name}", planned.protocol),
            (Origin::Generated, Source::Artifacts(list)) => match list.as_slice() {
                [one] if name.starts_with("/_/job/") && !has_read(one) => name["/_/job/".len()..].to_owned(),
                _ => continue,
            },
            _ => continue,
        };
        // A single RAM disk is published as the whole and as its only part.
        if !never.iter().any(|other: &String| *other == says || says.strip_prefix(other.as_str()) == Some("/0")) {
            never.push(says);
        }
    }
    never
}

fn is_made_of(source: &Source, artifact: &Artifact) -> bool {
    match source {
        Source::Artifacts(list) | Source::Archives(list) => list.contains(artifact),
        Source::Android(image) => {
            image.kernel == *artifact || image.ramdisk.contains(artifact) || image.dtb.contains(artifact)
        }
        Source::Text(_) | Source::Wrapped { .. } | Source::Firmware(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gateway::namespace::Exposure;

    #[test]
    fn an_access_is_told_with_who_what_how_much_and_how_it_ended() {
        let mut running = Running::new();
        let (protocol, name, peer) = (Protocol::Http, "/kernel".to_owned(), IpAddr::from([10, 0, 0, 2]));
        let opened = AccessEvent::Opened { access: 3, protocol, name: name.clone(), peer };
        assert_eq!(record(&opened, &mut running), None);
        let outcome = Outcome::Aborted("connection reset".into());
        let ended = AccessEvent::Ended { access: 3, protocol, name: name.clone(), bytes: 512, outcome };
        let access = record(&ended, &mut running).unwrap();
        assert_eq!((access.peer.as_str(), access.bytes, access.end), ("10.0.0.2", 512, AccessEnd::Aborted));
        assert!(access.seconds.is_some());
        assert_eq!(sentence(&access), "HTTP /kernel: 512 bytes, aborted by the DUT: connection reset");
        let refusal = gateway::namespace::Refusal::NoSuchName;
        let refused = AccessEvent::Refused { protocol, name, peer, refusal };
        let access = record(&refused, &mut running).unwrap();
        assert_eq!(sentence(&access), "HTTP /kernel: refused to 10.0.0.2: the job publishes no such name");
        assert!(running.is_empty());
    }

    #[test]
    fn what_was_never_read_is_told_once_by_what_it_is_and_by_any_name_it_has() {
        let artifact = |data: &str| Artifact {
            source: job_schema::job::ArtifactSource::Data(data.to_owned()),
            format: Vec::new(),
        };
        let entry = |protocol, name: &str, data: &str, origin| Planned {
            protocol,
            name: Name::Exact(name.to_owned()),
            source: Source::Artifacts(vec![artifact(data)]),
            exposure: Exposure::default(),
            origin,
        };
        let artifacts = vec![
            entry(Protocol::Http, "/secret", "s", Origin::Job),
            entry(Protocol::Http, "/read", "r", Origin::Job),
            entry(Protocol::Tftp, "/boot.scr", "of the job", Origin::Job),
            entry(Protocol::Tftp, "/boot.scr", "hidden by it", Origin::Generated),
            entry(Protocol::Tftp, "/vmlinuz", "k", Origin::Generated),
            entry(Protocol::Http, "/_/job/kernel", "k", Origin::Generated),
            entry(Protocol::Http, "/_/job/initramfs", "i", Origin::Generated),
            entry(Protocol::Http, "/_/job/initramfs/0", "i", Origin::Generated),
        ];
        let plan = BootPlan { artifacts, dhcp: gateway::dhcp::BootOffer::default(), hand_over: None };
        let readings: Vec<_> = plan
            .artifacts
            .iter()
            .map(|planned| {
                let (Name::Exact(name) | Name::Matching(name, _)) = &planned.name;
                let is_hidden = name == "/boot.scr" && planned.origin == Origin::Generated;
                let was_read = ["/read", "/vmlinuz", "/boot.scr"].contains(&name.as_str()) && !is_hidden;
                (planned.protocol, name.clone(), if was_read { Reading::Read } else { Reading::Never })
            })
            .collect();
        assert_eq!(never_read(&plan, &readings), ["HTTP /secret", "initramfs"]);
    }
}
