//! One job from the queue to its verdict. Giving everything back is the lease's tear-down, which comes whatever happened here.
//!
//! ```text
//!  its lease waits ──► Active ──► run (in a task of its own: a panic in there is a verdict, not a lost DUT) ──► release ──► ended
//!     └ cancelled, or never to be had: ended          └ the lease ends under it: cause farm ─────────────────────┘
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::FutureExt;
use tokio::sync::{mpsc, watch};

use super::boot_namespace::{Open, observer};
use super::machines::Dut;
use super::prepare::Prepared;
use super::{CancelledBy, Farm, JobRecord, Submission, by_restart};
use crate::job_log::{JobEvent, Severity};
use crate::lease::rows::{self, LeaseState, Object, Verb};
use crate::lease::{LeaseView, Pass};
use crate::runner::{self, Ring, SetupError};
use crate::session::{Event, Session};
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

/// A job's news, as its lease has them.
type Views = watch::Receiver<LeaseView>;

/// How long a verdict waits for the tear-down when the job could not even be read.
const TEAR_DOWN_DEFAULT: Duration = Duration::from_secs(600);
/// How long a farm that stops waits for a tear-down: an outlet that obeys is off by then. One that does not keeps its lease, and the
/// next start goes on with it.
const TEAR_DOWN_AT_STOP: Duration = Duration::from_secs(10);
/// News of the queue in a job's log come at most this often, but for the first and for the last places: a queue of thousands moves
/// several times a second.
const QUEUE_NEWS: Duration = Duration::from_secs(10);
/// Places at which every change is told.
const NEAR: usize = 3;
/// Candidates of which the log says why not now; a farm of hundreds would fill it.
const REASONS_MAX: usize = 20;

/// The whole life of an accepted job.
pub(super) async fn carry(farm: Arc<Farm>, carried: Carried) {
    let Carried { record, inbox, submission } = carried;
    let Some(mut views) = farm.keeper.watch(record.lease()).await else {
        return record.ended(verdict(Status::SetupFail, Cause::Farm, "the farm has lost the job's lease".into()));
    };
    let mut cancelled = inbox.cancelled.clone();
    let mut stopping = farm.stopping.subscribe();
    let waited = tokio::select! {
        biased;
        // It stays in the queue, for the next start of the farm.
        _ = stopping.wait_for(|stopping| *stopping) => return,
        waited = wait_for_dut(&farm, &record, &mut views) => waited,
        by = cancellation(&mut cancelled) => Err(in_words(&by)),
    };
    let (verdict, limit) = match waited {
        Ok((dut, pass)) => {
            record.leased(&dut);
            run(&farm, &record, dut, pass, inbox, submission, views.clone()).await
        }
        Err((cause, summary)) => (verdict(status_of(cause), cause, summary), TEAR_DOWN_DEFAULT),
    };
    hand_back(&farm, &record, &mut views, limit).await;
    record.ended(verdict);
}

/// A job whose DUT ran when the farm was killed: it ends once its lease has been torn down.
pub(super) async fn give_back(farm: Arc<Farm>, record: Arc<JobRecord>) {
    if let Some(mut views) = farm.keeper.watch(record.lease()).await {
        hand_back(&farm, &record, &mut views, TEAR_DOWN_DEFAULT).await;
    }
    record.ended(by_restart("the farm was restarted while the job ran; its DUT was switched off"));
}

/// The command that ends a lease.
pub(super) fn release(why: &str) -> Verb {
    Verb::Release { cause: rows::Cause::Released { by: why.to_owned() } }
}

/// Until the lease is active; `Err`: it never will be.
async fn wait_for_dut(farm: &Farm, record: &JobRecord, views: &mut Views) -> Result<(Arc<Dut>, Pass), (Cause, String)> {
    let mut told: Option<(usize, Instant)> = None;
    loop {
        let view = views.borrow_and_update().clone();
        match (view.state, view.pass.clone(), view.resource.as_ref()) {
            (LeaseState::Active, Some(pass), Some(name)) => {
                let dut = farm.machines.get(name);
                return dut.map(|dut| (dut, pass)).ok_or_else(|| (Cause::Farm, format!("the DUT {name} is gone")));
            }
            (LeaseState::Destroyed, ..) => return Err(never(&view.cause)),
            (LeaseState::Pending, ..) => tell_place(record, &view, &mut told),
            (LeaseState::Acquired | LeaseState::Releasing | LeaseState::Active, ..) => {}
        }
        if views.changed().await.is_err() {
            return Err((Cause::Farm, "the farm's leases are no longer kept".into()));
        }
    }
}

fn tell_place(record: &JobRecord, view: &LeaseView, told: &mut Option<(usize, Instant)>) {
    let Some(place) = view.place else { return };
    let is_news = |(before, at): (usize, Instant)| place != before && (place <= NEAR || at.elapsed() >= QUEUE_NEWS);
    if !told.is_none_or(is_news) {
        return;
    }
    *told = Some((place, Instant::now()));
    let mut reasons: Vec<_> = view.reasons.iter().take(REASONS_MAX).map(ToString::to_string).collect();
    if view.reasons.len() > REASONS_MAX {
        reasons.push(format!("and {} more", view.reasons.len() - REASONS_MAX));
    }
    let estimate = view.estimate.and_then(|at| jiff::Timestamp::from_millisecond(i64::try_from(at.0).ok()?).ok());
    record.log.append(JobEvent::Queued { place, reasons, estimate });
}

/// Why a lease that never became active ended, in a verdict's terms.
fn never(cause: &rows::Cause) -> (Cause, String) {
    match cause {
        rows::Cause::QueueTimeout => (Cause::Timeout, "its deadline passed while it waited for a DUT".to_owned()),
        rows::Cause::Released { by } => (Cause::Cancelled, format!("{by} released its lease")),
        rows::Cause::OwnerGone => (Cause::Submitter, "the submitter went away while the job waited for a DUT".into()),
        other => (Cause::Farm, format!("no DUT could be had: {other}")),
    }
}

fn status_of(cause: Cause) -> Status {
    if cause == Cause::Farm { Status::SetupFail } else { Status::Incomplete }
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

/// The job on its DUT, to its verdict; and how long its tear-down may take.
async fn run(
    farm: &Arc<Farm>,
    record: &Arc<JobRecord>,
    dut: Arc<Dut>,
    pass: Pass,
    inbox: Inbox,
    submission: Submission,
    views: Views,
) -> (Verdict, Duration) {
    let span = tracing::info_span!("lease", dut = dut.config.full_name, fence = pass.fence());
    tracing::info!(parent: &span, source = record.source_name, submitter = record.submitter, "the job has its DUT");
    let limit = Arc::new(Mutex::new(TEAR_DOWN_DEFAULT));
    let (mac, tear_down_limit) = (dut.config.mac.clone(), Arc::clone(&limit));
    let run = Run { farm: Arc::clone(farm), record: Arc::clone(record), dut, pass };
    let verdict = tokio::spawn(run.until_the_verdict(inbox, submission, views, tear_down_limit)).await;
    let verdict = verdict.unwrap_or_else(|error| verdict_of_panic(&error));
    tracing::info!(parent: &span, status = %verdict.status, cause = %verdict.cause, "the job has its verdict");
    farm.listeners.forget(&mac);
    let limit = *limit.lock().unwrap_or_else(PoisonError::into_inner);
    (verdict, limit)
}

fn verdict_of_panic(error: &tokio::task::JoinError) -> Verdict {
    verdict(Status::Unknown, Cause::Farm, format!("an internal error ended the job: {error}"))
}

/// Releases the lease and waits until everything is given back, for as long as the job allows.
async fn hand_back(farm: &Farm, record: &JobRecord, views: &mut Views, limit: Duration) {
    let held = !matches!(views.borrow().state, LeaseState::Pending | LeaseState::Destroyed);
    if held {
        record.log.append(JobEvent::TeardownStarted);
    }
    // A lease that is over already needs no command.
    let _ = farm.keeper.command(Object::Lease(record.lease()), release("the job"), "the job").await;
    let mut stopping = farm.stopping.subscribe();
    let at_stop = async {
        let _ = stopping.wait_for(|stopping| *stopping).await;
        tokio::time::sleep(TEAR_DOWN_AT_STOP).await;
    };
    let given_back = tokio::select! {
        given_back = tokio::time::timeout(limit, until_over(record, views)) => given_back.is_ok(),
        () = at_stop => false,
    };
    match (given_back, held) {
        (true, true) => record.log.append(JobEvent::TeardownComplete),
        (true, false) => {}
        (false, _) => record.note(
            Severity::Error,
            format!("the tear-down goes on after {limit:?} (timeouts.infra_teardown), or the farm's stop; the DUT stays occupied"),
        ),
    }
}

/// Until the lease is over; says what a person must look at.
async fn until_over(record: &JobRecord, views: &mut Views) {
    let mut told = None;
    loop {
        let view = views.borrow_and_update().clone();
        if view.needs_operator.is_some() && view.needs_operator != told {
            told.clone_from(&view.needs_operator);
            let what = told.clone().unwrap_or_default();
            record.note(Severity::Error, format!("somebody must look at the DUT: {what}"));
        }
        if view.state == LeaseState::Destroyed || views.changed().await.is_err() {
            return;
        }
    }
}

/// A job on its leased DUT.
struct Run {
    farm: Arc<Farm>,
    record: Arc<JobRecord>,
    dut: Arc<Dut>,
    pass: Pass,
}

impl Run {
    async fn until_the_verdict(
        self,
        inbox: Inbox,
        submission: Submission,
        views: Views,
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
        let unfit = (Arc::clone(&self.farm), self.dut.config.id.clone());
        let ring = Ring {
            log: Arc::clone(&self.record.log),
            power: self.dut.power(self.pass.clone()),
            setup: self.setup(Arc::clone(&prepared), submission.attachments).boxed(),
            open_console: self.console(),
            publish: self.publisher(),
            events,
            input: typed,
            cancelled: async move {
                tokio::select! {
                    by = cancellation(&mut cancelled) => cancelled_by(by),
                    event = lease_lost(views) => event,
                }
            }
            .boxed(),
            declare_unfit: Box::new(move |line| {
                let (farm, dut) = unfit.clone();
                let why = format!("its console said it is unfit for service: {line}");
                tokio::spawn(async move { farm.hold_back(&dut, Some(why)).await });
            }),
        };
        runner::run(session, ring).await
    }

    /// Console first, so that no early byte is lost; then the artifacts; then the namespace they are published in.
    fn setup(
        &self,
        prepared: Arc<Prepared>,
        attachments: BTreeMap<String, Bytes>,
    ) -> impl Future<Output = Result<runner::Console, SetupError>> + Send + 'static {
        let (farm, record) = (Arc::clone(&self.farm), Arc::clone(&self.record));
        let (dut, pass) = (Arc::clone(&self.dut), self.pass.clone());
        async move {
            let console = dut.console.open().await.map_err(|error| SetupError {
                cause: Cause::Console,
                reason: format!("cannot open the console of {}: {error}", dut.config.full_name),
            })?;
            let contents = farm.fetch(&record.log, &prepared).await?;
            let observer = observer(&record.log, record.events.clone());
            let publication = farm
                .gateway
                .namespaces()
                .publish(dut.address(), observer)
                .map_err(|taken| SetupError { cause: Cause::Farm, reason: taken.to_string() })?;
            dut.boot.open(Open {
                gateway: Arc::clone(&farm.gateway),
                mac: dut.mac,
                pass,
                publication,
                prepared,
                contents,
                attachments,
                since: Instant::now(),
                published: None,
            })?;
            Ok(console)
        }
    }

    /// For a console that went away: under the pass, as the first time.
    fn console(&self) -> runner::OpenConsole {
        let (dut, pass) = (Arc::clone(&self.dut), self.pass.clone());
        Arc::new(move || {
            let (dut, pass) = (Arc::clone(&dut), pass.clone());
            async move {
                pass.check().map_err(std::io::Error::other)?;
                dut.console.open().await
            }
            .boxed()
        })
    }

    fn publisher(&self) -> runner::Publish {
        let dut = Arc::clone(&self.dut);
        Arc::new(move |which| dut.boot.publish(which))
    }
}

fn cancelled_by(by: CancelledBy) -> Event {
    match by {
        CancelledBy::Operator(by) => Event::Cancelled { by },
        CancelledBy::SubmitterGone => Event::SubmitterGone,
        CancelledBy::FarmStopping => Event::FarmFailed { reason: "the farm was stopped by its operator".into() },
    }
}

/// Ends when the lease does, whoever ended it.
async fn lease_lost(mut views: Views) -> Event {
    let Ok(view) = views.wait_for(|view| view.state != LeaseState::Active).await else {
        // The keeper is gone only when the farm is.
        return Event::FarmFailed { reason: "the farm's leases are no longer kept".into() };
    };
    match &view.cause {
        rows::Cause::Released { by } => Event::Cancelled { by: format!("{by}, who released its lease") },
        cause => Event::FarmFailed { reason: format!("its lease ended: {cause}") },
    }
}
