//! One job from the queue to its verdict, and the tear-down that follows whatever happened.
//!
//! ```text
//!  waiting ──► leased ──► run (in a task of its own: a panic in there is a verdict, not a lost DUT) ──► tear-down ──► ended
//!     └ cancelled: ended
//! ```

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::FutureExt;
use gateway::content::Content;
use gateway::namespace::{AccessEvent, Observer, Outcome, Publication};
use tokio::sync::{mpsc, watch};
use tracing::Instrument;

use super::prepare::{Contents, Prepared};
use super::{CancelledBy, Dut, Farm, JobRecord, Submission};
use crate::blueprint::power::PowerState;
use crate::interface::Power;
use crate::job_log::{JobEvent, Severity};
use crate::lease::{Lease, Step, Waiting};
use crate::runner::{self, Ring, SetupError};
use crate::session::{Event, Session, Which};
use crate::verdict::{Cause, Status, Verdict};

/// What a job's task takes with it.
pub(super) struct Carried {
    pub record: Arc<JobRecord>,
    pub inbox: Inbox,
    pub submission: Submission,
}

/// The receiving ends of a [`JobRecord`].
pub(super) struct Inbox {
    pub events: mpsc::Receiver<Event>,
    pub typed: mpsc::Receiver<Bytes>,
    pub cancelled: watch::Receiver<Option<CancelledBy>>,
}

/// Access lines in one job's log: a DUT that asks for a missing file in a loop must not fill the memory.
const ACCESS_LINES_MAX: usize = 5000;
/// The longest pause between two attempts to switch off an outlet that will not go off.
const TEAR_DOWN_PAUSE_MAX: Duration = Duration::from_secs(30);
/// How long a verdict waits for the tear-down when the job could not even be read.
const TEAR_DOWN_DEFAULT: Duration = Duration::from_secs(600);

/// The whole life of an accepted job.
pub(super) async fn carry(farm: Arc<Farm>, carried: Carried, waiting: Waiting) {
    let Carried { record, inbox, submission } = carried;
    let mut cancelled = inbox.cancelled.clone();
    let mut stopping = farm.stopping.subscribe();
    let lease = tokio::select! {
        biased;
        // It stays in the queue, for the next start of the farm.
        _ = stopping.wait_for(|stopping| *stopping) => return,
        lease = queue(&record, waiting) => lease,
        by = cancellation(&mut cancelled) => {
            let (cause, summary) = in_words(&by);
            return record.ended(verdict(Status::Incomplete, cause, summary));
        }
    };
    let dut = Arc::clone(&farm.duts[&lease.dut]);
    record.leased(&dut);
    let span = tracing::info_span!("lease", dut = dut.config.full_name, fence = lease.pass.fence());
    tracing::info!(parent: &span, source = record.source_name, submitter = record.submitter, "the job has its DUT");
    let boot = Arc::new(Boot::default());
    let limit = Arc::new(Mutex::new(TEAR_DOWN_DEFAULT));
    let run =
        Run { farm: Arc::clone(&farm), record: Arc::clone(&record), dut: Arc::clone(&dut), boot: Arc::clone(&boot) };
    let pass = lease.pass.clone();
    let verdict =
        tokio::spawn(run.until_the_verdict(inbox, submission, pass, Arc::clone(&limit))).await.unwrap_or_else(
            |error| verdict(Status::Unknown, Cause::Farm, format!("an internal error ended the job: {error}")),
        );
    tracing::info!(parent: &span, status = %verdict.status, cause = %verdict.cause, "the job has its verdict");
    record.log.append(JobEvent::TeardownStarted);
    farm.listeners.forget(&dut.config.mac);
    let limit = *limit.lock().unwrap_or_else(PoisonError::into_inner);
    let tear_down = tokio::spawn(tear_down(farm, Arc::clone(&record), dut, boot, lease).instrument(span));
    if tokio::time::timeout(limit, tear_down).await.is_ok() {
        record.log.append(JobEvent::TeardownComplete);
    } else {
        record.note(
            Severity::Error,
            format!("the tear-down goes on after timeouts.infra_teardown of {limit:?}; the DUT stays occupied"),
        );
    }
    record.ended(verdict);
}

async fn queue(record: &JobRecord, mut waiting: Waiting) -> Lease {
    loop {
        match waiting.next().await {
            Step::Granted(lease) => return lease,
            Step::Waits { place, reasons } => record.log.append(JobEvent::Queued { place, reasons }),
        }
    }
}

async fn cancellation(cancelled: &mut watch::Receiver<Option<CancelledBy>>) -> CancelledBy {
    let by = cancelled.wait_for(Option::is_some).await.ok().and_then(|by| by.clone());
    match by {
        Some(by) => by,
        // The record holds the sender for as long as anybody could cancel.
        None => std::future::pending().await,
    }
}

fn in_words(by: &CancelledBy) -> (Cause, String) {
    match by {
        CancelledBy::Operator(name) => (Cause::Cancelled, format!("cancelled by {name} while it waited for a DUT")),
        CancelledBy::SubmitterGone => {
            (Cause::Submitter, "the submitter went away while the job waited for a DUT".into())
        }
        CancelledBy::FarmStopping => (Cause::Farm, "the farm was stopped while the job waited for a DUT".into()),
    }
}

fn verdict(status: Status, cause: Cause, summary: String) -> Verdict {
    Verdict { status, cause, summary, evidence: Vec::new() }
}

/// A job on its leased DUT.
struct Run {
    farm: Arc<Farm>,
    record: Arc<JobRecord>,
    dut: Arc<Dut>,
    boot: Arc<Boot>,
}

impl Run {
    async fn until_the_verdict(
        self,
        inbox: Inbox,
        submission: Submission,
        pass: crate::lease::Pass,
        tear_down_limit: Arc<Mutex<Duration>>,
    ) -> Verdict {
        let Inbox { events, typed, mut cancelled } = inbox;
        let prepared = match self.farm.planner.prepare(&submission, &self.dut.config).await {
            Ok(prepared) => Arc::new(prepared),
            Err(problems) => {
                let summary = format!("the job is wrong for this DUT:\n{problems}");
                return verdict(Status::SetupFail, Cause::Submitter, summary);
            }
        };
        if let Some(limit) = prepared.job.timeouts.infra_teardown.duration {
            *tear_down_limit.lock().unwrap_or_else(PoisonError::into_inner) = limit;
        }
        let now = Instant::now();
        let deadline = prepared.job.deadline.map(|deadline| {
            let left = deadline.duration_since(jiff::Timestamp::now());
            now + Duration::try_from(left).unwrap_or_default()
        });
        let session = Session::new(Arc::clone(&prepared.job), deadline, now);
        self.farm.listeners.listen(&self.dut.config.mac, self.record.events.clone());
        let unfit = { (Arc::clone(&self.farm), self.dut.config.id.clone()) };
        let ring = Ring {
            log: Arc::clone(&self.record.log),
            power: self.power(pass),
            setup: self.setup(Arc::clone(&prepared), submission.attachments).boxed(),
            publish: self.publisher(),
            events,
            input: typed,
            cancelled: async move {
                match cancellation(&mut cancelled).await {
                    CancelledBy::Operator(by) => Event::Cancelled { by },
                    CancelledBy::SubmitterGone => Event::SubmitterGone,
                    CancelledBy::FarmStopping => {
                        Event::FarmFailed { reason: "the farm was stopped by its operator".into() }
                    }
                }
            }
            .boxed(),
            declare_unfit: Box::new(move |line| {
                unfit.0.desk.hold_back(&unfit.1, Some(format!("its console said it is unfit for service: {line}")));
            }),
        };
        runner::run(session, ring).await
    }

    fn power(&self, pass: crate::lease::Pass) -> Power {
        let dut = Arc::clone(&self.dut);
        Power::new(
            Arc::clone(&self.dut.pdu),
            self.dut.outlet.clone(),
            pass,
            Arc::new(move |state| dut.note_power(state)),
        )
    }

    /// Console first, so that no early byte is lost; then the artifacts; then the namespace they are published in.
    fn setup(
        &self,
        prepared: Arc<Prepared>,
        attachments: BTreeMap<String, Bytes>,
    ) -> impl Future<Output = Result<runner::Console, SetupError>> + Send + 'static {
        let (farm, record) = (Arc::clone(&self.farm), Arc::clone(&self.record));
        let (dut, boot) = (Arc::clone(&self.dut), Arc::clone(&self.boot));
        async move {
            let console = dut.console.open().await.map_err(|error| SetupError {
                cause: Cause::Console,
                reason: format!("cannot open the console of {}: {error}", dut.config.full_name),
            })?;
            let contents = farm.fetch(&record, &prepared).await?;
            let observer = observer(&record);
            let publication = farm
                .gateway
                .namespaces()
                .publish(dut.address(), observer)
                .map_err(|taken| SetupError { cause: Cause::Farm, reason: taken.to_string() })?;
            let since = Instant::now();
            boot.open(OpenBoot { farm, dut, publication, prepared, contents, attachments, since, published: None })?;
            Ok(console)
        }
    }

    fn publisher(&self) -> runner::Publish {
        let boot = Arc::clone(&self.boot);
        Arc::new(move |which| boot.publish(which))
    }
}

/// The boot namespace of a lease: what its DUT may fetch, and what DHCP tells it. Emptied by the tear-down, whoever still holds it.
#[derive(Default)]
struct Boot(Mutex<Option<OpenBoot>>);

struct OpenBoot {
    farm: Arc<Farm>,
    dut: Arc<Dut>,
    publication: Publication<Content>,
    prepared: Arc<Prepared>,
    contents: Contents,
    attachments: BTreeMap<String, Bytes>,
    since: Instant,
    published: Option<Which>,
}

impl Boot {
    fn open(&self, open: OpenBoot) -> Result<(), SetupError> {
        // Both deployments now, so that what cannot be served ends the job before the first boot.
        open.check().map_err(|reason| SetupError { cause: Cause::Artifact, reason })?;
        *self.lock() = Some(open);
        Ok(())
    }

    fn publish(&self, which: Which) -> Result<(), String> {
        self.lock().as_mut().ok_or("the boot namespace is closed")?.publish(which)
    }

    fn close(&self) {
        if let Some(open) = self.lock().take() {
            open.farm.gateway.dhcp().clear_boot(open.dut.mac);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<OpenBoot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenBoot {
    fn check(&self) -> Result<(), String> {
        for planned in self.prepared.start.artifacts.iter().chain(&self.prepared.continue_.artifacts) {
            self.contents.of(planned, &self.attachments).map_err(|reason| format!("{:?}: {reason}", planned.name))?;
        }
        Ok(())
    }

    fn publish(&mut self, which: Which) -> Result<(), String> {
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
            self.farm.gateway.dhcp().set_boot(self.dut.mac, plan.dhcp.clone());
            self.published = Some(which);
        }
        self.publication.begin_boot();
        Ok(())
    }
}

/// Turns what the servers saw into lines of the log, evidence, and signs of life.
fn observer(record: &Arc<JobRecord>) -> Observer {
    let (log, events) = (Arc::clone(&record.log), record.events.clone());
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

/// The only clean-up: handles refuse, the outlet goes off and reads back so, nothing is published, and only then is the DUT free.
/// Repeated until it works: a DUT whose power cannot be cut must not be given to the next job.
async fn tear_down(farm: Arc<Farm>, record: Arc<JobRecord>, dut: Arc<Dut>, boot: Arc<Boot>, lease: Lease) {
    lease.pass.revoke();
    let mut pause = Duration::from_secs(1);
    while let Err(error) = power_off(&dut).await {
        record.note(Severity::Error, format!("cannot switch the DUT off: {error}; the next attempt is in {pause:?}"));
        tracing::error!(dut = dut.config.full_name, %error, "the tear-down cannot switch the DUT off");
        // A farm that stops tries once more at once, then leaves the outlet to the operator.
        if wait_unless_stopping(&farm, pause).await.is_break() {
            let _ = power_off(&dut).await;
            break;
        }
        pause = (pause * 2).min(TEAR_DOWN_PAUSE_MAX);
    }
    boot.close();
    lease.give_back();
}

async fn wait_unless_stopping(farm: &Farm, pause: Duration) -> ControlFlow<()> {
    let mut stopping = farm.stopping.subscribe();
    let stopped = async { stopping.wait_for(|stopping| *stopping).await.is_ok() };
    match tokio::time::timeout(pause, stopped).await {
        Ok(true) => ControlFlow::Break(()),
        Ok(false) | Err(_) => ControlFlow::Continue(()),
    }
}

pub(super) async fn power_off(dut: &Dut) -> Result<(), crate::blueprint::power::PowerError> {
    dut.pdu.set(&dut.outlet, PowerState::Off).await?;
    let state = dut.pdu.state(&dut.outlet).await?;
    dut.note_power(state);
    match state {
        PowerState::Off => Ok(()),
        PowerState::On => Err(crate::blueprint::power::PowerError {
            outlet: dut.outlet.0.clone(),
            reason: "told to go off, but it reads back on".into(),
        }),
    }
}
