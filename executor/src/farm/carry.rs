//! One job from the queue to its verdict. Giving everything back is the leases' tear-down, which comes whatever happened here.
//!
//! ```text
//!  its leases wait ──► all Active ──► a Run per DUT (in a task of its own: a panic in there is a verdict, not a lost DUT)
//!     └ cancelled, or                      │  start barrier; messages; whoever ends without a result ends the others
//!       never to be had: ended             ▼
//!                                     its verdict ──► release ──► torn down      when all are through: the job's verdict
//! ```
//! A job with one DUT is a crew of one whose record is the job's own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{FutureExt, join_all};
use job_schema::{BySsh, StartBarrier};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::boot_namespace::{Kept, Open, Serving, Watch, observer};
use super::buckets;
use super::contents::Attachments;
use super::crew::{self, Together};
use super::disks::{self, Disks};
use super::egress::{self, AuditTrail};
use super::listening::Listening;
use super::machines::Dut;
use super::on_dut::{self, LoginToDut, Reached};
use super::pick_up::{Beginning, Begun};
use super::prepare::{self, MESSAGES, Prepared};
use super::steps::{Doing, On, OnHost};
use super::{Asks, CancelledBy, DutName, Farm, JobRecord, Submission};
use crate::blueprint::power::ReadBack;
use crate::config::DutConfig;
use crate::job_log::{JobEvent, Severity};
use crate::lease::rows::{self, LeaseId, LeaseState, Object, Verb};
use crate::lease::{Keeper, LeaseView, Pass, RequestError};
use crate::outlets::Switch;
use crate::runner::{self, Ring, SetupError};
use crate::sentence;
use crate::session::Event;
use crate::verdict::{Cause, Status, Verdict};

/// What a job's task takes with it.
pub(super) struct Carried {
    pub record: Arc<JobRecord>,
    pub crew: Crew,
    pub submission: Submission,
}

/// Whoever plays a part in a job.
pub(super) struct Crew {
    pub start: StartBarrier,
    pub cancelled: Cancelled,
    pub seats: Vec<Seat>,
}

/// One DUT of a job.
pub(super) struct Seat {
    /// What it is called in the job; `None` when it is the only one.
    pub role: Option<String>,
    /// Whether a DUT or a host plays it.
    pub asks: Asks,
    /// The job's record, or its role's.
    pub record: Arc<JobRecord>,
    pub inbox: Inbox,
    pub lease: LeaseId,
}

/// The receiving ends of a [`JobRecord`].
pub(super) struct Inbox {
    pub events: mpsc::Receiver<Event>,
    pub typed: mpsc::Receiver<Bytes>,
    pub cancelled: Cancelled,
}

/// Who cancels a job, once somebody does.
pub(super) type Cancelled = watch::Receiver<Option<CancelledBy>>;

/// A seat, what it got, and the news of its lease.
type Held = ((Seat, (Got, Pass)), Views);

/// What a lease of a job holds.
#[derive(Clone)]
pub(super) enum Got {
    Dut(Arc<Dut>),
    /// By its name.
    Host(String),
}

impl Got {
    fn name(&self) -> DutName {
        match self {
            Got::Dut(dut) => DutName { id: dut.config.id.clone(), full_name: dut.config.full_name.clone() },
            Got::Host(name) => DutName { id: name.clone(), full_name: name.clone() },
        }
    }
}

/// A lease's news.
pub(super) type Views = watch::Receiver<LeaseView>;

/// How long a verdict waits for the tear-down when the job could not even be read.
const TEAR_DOWN_DEFAULT: Duration = Duration::from_secs(600);
/// How long a farm that stops waits for a tear-down: an outlet that obeys is off by then. One that does not keeps its lease, and the
/// next start goes on with it.
const TEAR_DOWN_AT_STOP: Duration = Duration::from_secs(10);
/// Between two attempts to end a lease while the store's disk is full: as often as the store itself tries.
const RELEASE_AGAIN: Duration = Duration::from_secs(1);
/// News of the queue in a job's log come at most this often, but for the first and for the last places: a queue of thousands moves
/// several times a second.
const QUEUE_NEWS: Duration = Duration::from_secs(10);
/// Places at which every change is told.
const NEAR: usize = 3;
/// Candidates of which the log says why not now; a farm of hundreds would fill it.
const REASONS_MAX: usize = 20;

/// The whole life of an accepted job.
pub(super) async fn carry(farm: Arc<Farm>, carried: Carried) {
    let Carried { record, crew, submission } = carried;
    let Crew { start, cancelled, seats } = crew;
    let Some(views) = watch_all(&farm, &seats).await else {
        return farm
            .ends(&record, verdict(Status::SetupFail, Cause::Farm, "the farm has lost the job's leases".into()));
    };
    let mut by = cancelled.clone();
    let mut stopping = farm.stopping.subscribe();
    let waited = tokio::select! {
        biased;
        // It stays in the queue, for the next start of the farm.
        _ = stopping.wait_for(|stopping| *stopping) => return,
        waited = wait_for_all(&farm, &record, &seats, views.clone()) => waited,
        by = cancellation(&mut by) => Err(in_words(&by)),
    };
    let verdict = match waited {
        Ok(held) => {
            let crew = seats.into_iter().zip(held).zip(views).collect();
            run_all(&farm, &record, Together::of(&record, start, &cancelled), crew, submission).await
        }
        Err((cause, summary)) => {
            for (seat, mut views) in seats.iter().zip(views) {
                hand_back(&farm, &seat.record, &seat.lease, &mut views, TEAR_DOWN_DEFAULT).await;
            }
            verdict(status_of(cause), cause, summary)
        }
    };
    farm.ends(&record, verdict);
    farm.forget_old_jobs();
}

async fn watch_all(farm: &Farm, seats: &[Seat]) -> Option<Vec<Views>> {
    join_all(seats.iter().map(|seat| farm.keeper.watch(seat.lease.clone()))).await.into_iter().collect()
}

/// Until all leases are active; `Err`: one of them never will be. The first one tells the job's place.
async fn wait_for_all(
    farm: &Farm,
    record: &JobRecord,
    seats: &[Seat],
    views: Vec<Views>,
) -> Result<Vec<(Got, Pass)>, (Cause, String)> {
    let waits = views.into_iter().zip(seats).enumerate().map(|(index, (mut views, seat))| async move {
        let told_to = (index == 0).then_some(record);
        wait_until_active(farm, told_to, seat.asks, &mut views).await
    });
    futures_util::future::try_join_all(waits).await
}

/// All DUTs of a job at once, each to its own verdict.
async fn run_all(
    farm: &Arc<Farm>,
    record: &Arc<JobRecord>,
    together: Arc<Together>,
    crew: Vec<Held>,
    submission: Submission,
) -> Verdict {
    let duts: BTreeMap<_, _> =
        crew.iter().filter_map(|((seat, (got, _)), _)| Some((seat.role.clone()?, config_of(got)?))).collect();
    // The hosts first: a job is known by its last DUT.
    let is_host = |got: &Got| matches!(got, Got::Host(_));
    for of_hosts in [true, false] {
        let named = crew.iter().filter(|((_, (got, _)), _)| is_host(got) == of_hosts);
        named.for_each(|((_, (got, _)), _)| record.leased(got.name()));
    }
    let together_all = &together;
    let runs = crew.into_iter().map(|((seat, (got, pass)), mut views)| {
        let (submission, together) = (submission.clone(), Arc::clone(together_all));
        let crew = seat.role.clone().map(|role| prepare::Crew { role, duts: duts.clone() });
        async move {
            let Seat { role, record: seated, inbox, lease, .. } = seat;
            if role.is_some() {
                seated.leased(got.name());
            }
            let (farm_too, record, together_too) = (Arc::clone(farm), Arc::clone(&seated), Arc::clone(&together));
            let (verdict, limit) = match got {
                Got::Dut(dut) => {
                    let listening = Listening::new(&dut.console, &pass, &seated.log);
                    let run = Run { farm: farm_too, record, dut, pass, listening, crew, together: together_too };
                    run.supervised(Beginning::New, None, inbox, submission, views.clone()).await
                }
                Got::Host(host) => {
                    let ended = ended_from_outside(inbox.cancelled, views.clone(), Arc::clone(&together));
                    let (lease, crew, together) = (lease.clone(), crew.unwrap_or_default(), together_too);
                    let attachments = submission.attachments.clone();
                    let on = On::Host { name: host, lease };
                    let doing = Doing { farm: farm_too, record, on, pass, attachments };
                    let on_host = OnHost { doing, crew, together, submission };
                    let verdict = tokio::spawn(on_host.run(ended)).await;
                    (verdict.unwrap_or_else(|error| verdict_of_panic(&error)), TEAR_DOWN_DEFAULT)
                }
            };
            if let Some(role) = &role {
                together.has_ended(role, &verdict);
            }
            hand_back(farm, &seated, &lease, &mut views, limit).await;
            if role.is_some() {
                seated.ended(verdict.clone());
            }
            (role, verdict)
        }
    });
    let verdicts = join_all(runs).await;
    if let Some(event) = measured(&record.roles()) {
        record.log.append(event);
    }
    together.is_over();
    crew::verdict_of(verdicts)
}

fn config_of(got: &Got) -> Option<DutConfig> {
    match got {
        Got::Dut(dut) => Some(dut.config.clone()),
        Got::Host(_) => None,
    }
}

/// A job whose DUTs ran when the farm was killed: it ends with this verdict once its leases have been torn down.
pub(super) async fn give_back(farm: Arc<Farm>, record: Arc<JobRecord>, verdict: Verdict) {
    let rows = farm.snapshot().await;
    let owner = rows::Owner::Job(record.id.clone());
    let held = rows.leases.iter().filter(|lease| lease.parent.is_none() && lease.request.owner == owner);
    join_all(held.map(|lease| async {
        if let Some(mut views) = farm.keeper.watch(lease.id().clone()).await {
            hand_back(&farm, &record, lease.id(), &mut views, TEAR_DOWN_DEFAULT).await;
        }
    }))
    .await;
    for role in record.roles().iter().filter(|role| role.verdict().is_none()) {
        role.ended(verdict.clone());
    }
    farm.ends(&record, verdict);
}

/// The command that ends a lease.
pub(super) fn release(why: &str) -> Verb {
    Verb::Release { cause: rows::Cause::Released { by: why.to_owned() } }
}

/// Until the lease is active; `Err`: it never will be.
async fn wait_until_active(
    farm: &Farm,
    told_to: Option<&JobRecord>,
    asks: Asks,
    views: &mut Views,
) -> Result<(Got, Pass), (Cause, String)> {
    let mut told: Option<(usize, Instant)> = None;
    loop {
        let view = views.borrow_and_update().clone();
        match (view.state, view.pass.clone(), view.resource.as_ref()) {
            (LeaseState::Active, Some(pass), Some(name)) => {
                let got = match asks {
                    Asks::Host => Some(Got::Host(name.clone())),
                    Asks::Dut => farm.machines.get(name).map(Got::Dut),
                };
                return got.map(|got| (got, pass)).ok_or_else(|| (Cause::Farm, format!("the DUT {name} is gone")));
            }
            (LeaseState::Destroyed, ..) => return Err(never(&view.cause)),
            (LeaseState::Pending, ..) => {
                if let Some(record) = told_to {
                    tell_place(record, &view, &mut told);
                }
            }
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

pub(super) async fn cancellation(cancelled: &mut Cancelled) -> CancelledBy {
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

fn verdict_of_panic(error: &tokio::task::JoinError) -> Verdict {
    verdict(Status::Unknown, Cause::Farm, format!("an internal error ended the job: {error}"))
}

/// Releases the lease and waits until everything is given back, for as long as the job allows.
async fn hand_back(farm: &Farm, record: &JobRecord, lease: &LeaseId, views: &mut Views, limit: Duration) {
    let held = !matches!(views.borrow().state, LeaseState::Pending | LeaseState::Destroyed);
    if held {
        record.log.append(JobEvent::TeardownStarted);
    }
    tokio::spawn(give_up(farm.keeper.clone(), lease.clone()));
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

/// Asks for the lease's end until that is kept: a disk that is full now will have room again. A lease that is over needs no command.
async fn give_up(keeper: Keeper, lease: LeaseId) {
    let lease = Object::Lease(lease);
    while let Err(RequestError::Store(error)) = keeper.command(lease.clone(), release("the job"), "the job").await {
        // The keeper has said it loudly.
        tracing::debug!(%lease, error, "the lease's end cannot be kept yet");
        tokio::time::sleep(RELEASE_AGAIN).await;
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
pub(super) struct Run {
    pub farm: Arc<Farm>,
    pub record: Arc<JobRecord>,
    pub dut: Arc<Dut>,
    pub pass: Pass,
    pub listening: Arc<Listening>,
    /// What it plays, when it is not alone.
    pub crew: Option<prepare::Crew>,
    pub together: Arc<Together>,
}

impl Run {
    /// A job with one DUT, to its end.
    pub(super) async fn alone(
        self,
        beginning: Beginning,
        prepared: Arc<Prepared>,
        inbox: Inbox,
        submission: Submission,
        lease: LeaseId,
        mut views: Views,
    ) {
        let (farm, record) = (Arc::clone(&self.farm), Arc::clone(&self.record));
        let (verdict, limit) = self.supervised(beginning, Some(prepared), inbox, submission, views.clone()).await;
        hand_back(&farm, &record, &lease, &mut views, limit).await;
        farm.ends(&record, verdict);
    }

    /// The job on its DUT, to its verdict; and how long its tear-down may take.
    async fn supervised(
        self,
        beginning: Beginning,
        prepared: Option<Arc<Prepared>>,
        inbox: Inbox,
        submission: Submission,
        views: Views,
    ) -> (Verdict, Duration) {
        let span = tracing::info_span!("lease", dut = self.dut.config.full_name, fence = self.pass.fence());
        let (source, submitter) = (&self.record.source_name, &self.record.submitter);
        let (purpose, number) = (submission.purpose, self.job_number().to_owned());
        tracing::info!(parent: &span, source, submitter, "the job has its DUT");
        let limit = Arc::new(Mutex::new(TEAR_DOWN_DEFAULT));
        let (farm, mac, tear_down_limit) = (Arc::clone(&self.farm), self.dut.config.mac.clone(), Arc::clone(&limit));
        let (dut, listening) = (Arc::clone(&self.dut), Arc::clone(&self.listening));
        let job = self.until_the_verdict(beginning, prepared, inbox, submission, views, tear_down_limit);
        let verdict = tokio::spawn(job).await;
        let mut verdict = verdict.unwrap_or_else(|error| verdict_of_panic(&error));
        verdict.evidence.extend(dut.boot.never_read());
        verdict.evidence.extend(listening.evidence());
        tracing::info!(parent: &span, status = %verdict.status, cause = %verdict.cause, "the job has its verdict");
        farm.listeners.forget(&mac);
        farm.judge_by(&dut.config.id, &number, &verdict, purpose).await;
        let limit = *limit.lock().unwrap_or_else(PoisonError::into_inner);
        (verdict, limit)
    }

    async fn until_the_verdict(
        self,
        beginning: Beginning,
        prepared: Option<Arc<Prepared>>,
        inbox: Inbox,
        submission: Submission,
        views: Views,
        tear_down_limit: Arc<Mutex<Duration>>,
    ) -> Verdict {
        let Inbox { events, typed, cancelled } = inbox;
        let prepared = match prepared {
            Some(prepared) => prepared,
            None => match self.farm.planner.prepare(&submission, &self.dut.config, self.crew.as_ref()).await {
                Ok(prepared) => Arc::new(prepared),
                Err(problems) => {
                    let summary = format!("the job is wrong for this DUT:\n{problems}");
                    return verdict(Status::SetupFail, Cause::Submitter, summary);
                }
            },
        };
        if let Some(limit) = prepared.job.timeouts.infra_teardown.duration {
            *tear_down_limit.lock().unwrap_or_else(PoisonError::into_inner) = limit;
        }
        let now = Instant::now();
        let deadline = prepared.job.deadline.map(|deadline| {
            let left = deadline.duration_since(jiff::Timestamp::now());
            now + Duration::try_from(left).unwrap_or_default()
        });
        self.farm.listeners.listen(&self.dut.config.mac, self.record.events.clone());
        let ended = ended_from_outside(cancelled, views, Arc::clone(&self.together)).shared();
        let by_ssh = prepared.job.by_ssh.clone().map(|by_ssh| self.by_ssh(by_ssh, &submission.attachments));
        let begun = self.begin(beginning, &prepared, submission.attachments, deadline, ended.clone()).await;
        let Begun { session, setup } = match begun {
            Ok(begun) => begun,
            Err(verdict) => return verdict,
        };
        let unfit = (Arc::clone(&self.farm), self.dut.config.id.clone());
        let ring = Ring {
            log: Arc::clone(&self.record.log),
            power: self.dut.power(self.pass.clone()),
            setup,
            open_console: self.console(),
            hear_all: self.hear_all(),
            publish: self.publisher(),
            hand_over: self.hand_over(),
            events,
            input: typed,
            cancelled: ended.boxed(),
            declare_unfit: Box::new(move |line| declare_unfit(&unfit.0, &unfit.1, line)),
        };
        let meter = Meter::begin(&self.dut, &self.record);
        let _by_ssh = by_ssh.map(|by_ssh| AbortOnDropHandle::new(tokio::spawn(by_ssh)));
        let verdict = runner::run(session, ring).await;
        meter.end(verdict).await
    }

    /// Console first, so that no early byte is lost; then the artifacts; then the namespace they are published in.
    pub(super) fn setup(
        &self,
        prepared: Arc<Prepared>,
        attachments: Attachments,
    ) -> impl Future<Output = Result<runner::Console, SetupError>> + Send + 'static {
        let (dut, together) = (Arc::clone(&self.dut), Arc::clone(&self.together));
        let listening = Arc::clone(&self.listening);
        let served = self.serve(prepared, attachments, Serving::Anew);
        async move {
            let console = listening.open().await.map_err(|error| SetupError {
                cause: Cause::Console,
                reason: format!("cannot open the console of {}: {error}", dut.config.full_name),
            })?;
            served.await?;
            together.all_are_ready().await;
            Ok(Box::new(console) as runner::Console)
        }
    }

    /// What the job does on the DUT by SSH, once it is up.
    fn by_ssh(&self, by_ssh: BySsh, attachments: &Attachments) -> impl Future<Output = ()> + use<> {
        let (dut, log) = (Arc::clone(&self.dut), Arc::clone(&self.record.log));
        let stop = CancellationToken::new();
        let login = LoginToDut { dut, log, by: Reached::of(&by_ssh), copy: self.record.id.clone(), stop };
        let doing = Doing {
            farm: Arc::clone(&self.farm),
            record: Arc::clone(&self.record),
            on: On::Dut(login),
            pass: self.pass.clone(),
            attachments: attachments.clone(),
        };
        on_dut::run(doing, by_ssh, self.record.events.clone())
    }

    /// The number of the whole job, also when it is one of several DUTs of it.
    fn job_number(&self) -> &str {
        let role =
            self.crew.as_ref().and_then(|crew| self.record.id.strip_suffix(crew.role.as_str())?.strip_suffix('-'));
        role.unwrap_or(&self.record.id)
    }

    /// Artifacts and boot namespace; nothing is published in it yet.
    pub(super) fn serve(
        &self,
        prepared: Arc<Prepared>,
        attachments: Attachments,
        serving: Serving,
    ) -> impl Future<Output = Result<(), SetupError>> + Send + 'static {
        let (farm, record) = (Arc::clone(&self.farm), Arc::clone(&self.record));
        let (dut, pass, together) = (Arc::clone(&self.dut), self.pass.clone(), Arc::clone(&self.together));
        let role = self.crew.as_ref().map(|crew| crew.role.clone());
        let may_be_picked_up = self.may_be_picked_up();
        let (number, seed, groups) = (self.job_number().to_owned(), prepared.seed.clone(), prepared.groups.clone());
        let job = format!("job {number}");
        async move {
            let audit = Arc::new(AuditTrail::new(&farm.audit, job.clone(), &prepared.subject));
            let contents = farm.fetch(&record.log, &prepared, &audit).await?;
            let (id, subject) = (dut.config.id.as_str(), prepared.subject.as_str());
            let user = disks::User { job: &job, dut: id, subject, log: &record.log };
            let disks = Disks::make(&prepared.job, &farm.shelf, &user, contents.downloads()).await?;
            disks.prove(&farm.gateway, &farm.machines.net(), dut.address()).await?;
            let granted = farm
                .buckets
                .open(buckets::Ask {
                    number: &number,
                    folder: &farm.job_directory(&number),
                    seed: &seed,
                    groups: &groups,
                    job: &prepared.job,
                    contents: &contents,
                    attachments: &attachments,
                    dut: (id, dut.address()),
                    log: &record.log,
                    events: &record.events,
                })
                .await
                .inspect_err(|error| audit.write("fill the job's buckets", "the farm", &error.reason))?;
            // Entered for what follows, so that the tear-down comes before it or after it.
            let farm_failed = |reason: String| SetupError { cause: Cause::Farm, reason };
            let _in_flight = pass.enter().await.map_err(|revoked| farm_failed(revoked.to_string()))?;
            let watch = Watch { fetching: Arc::default(), events: record.events.clone(), audit };
            let observer = observer(&record.log, &watch);
            let publication = farm
                .gateway
                .namespaces()
                .publish(dut.address(), observer)
                .map_err(|taken| farm_failed(taken.to_string()))?;
            farm.discovery.let_register(&dut, &publication);
            publication.lead_out(egress::of(&prepared.job, &farm.planner.config.get().proxy));
            publication.log_in(prepared.logins.clone());
            let must_remember = may_be_picked_up && (prepared.is_limited() || disks.are_limited());
            let kept = Kept::of(must_remember.then(|| record.log.folder()), serving, &publication)?;
            if let Some(seat) = role.and_then(|role| together.messages_of(&role)) {
                publication.answer(MESSAGES, seat);
            }
            dut.boot.open(Open {
                gateway: Arc::clone(&farm.gateway),
                mac: dut.mac,
                pass: pass.clone(),
                publication,
                prepared,
                contents,
                disks,
                _buckets: Some(granted),
                attachments,
                kept,
                published: None,
                watch,
            })
        }
    }

    /// For a console that went away: under the pass, as the first time.
    pub(super) fn console(&self) -> runner::OpenConsole {
        let listening = Arc::clone(&self.listening);
        Arc::new(move || {
            let listening = Arc::clone(&listening);
            async move { Ok(Box::new(listening.open().await?) as runner::Console) }.boxed()
        })
    }

    fn hear_all(&self) -> runner::HearAll {
        let listening = Arc::clone(&self.listening);
        Arc::new(move || {
            let listening = Arc::clone(&listening);
            async move { listening.hear_all().await }.boxed()
        })
    }

    fn publisher(&self) -> runner::Publish {
        let dut = Arc::clone(&self.dut);
        Arc::new(move |which, boot| dut.boot.publish(which, Some(boot)))
    }
}

/// What a job's outlet measures while it runs.
struct Meter {
    outlet: Switch,
    record: Arc<JobRecord>,
    began: Instant,
    before: Option<f64>,
}

impl Meter {
    fn begin(dut: &Dut, record: &Arc<JobRecord>) -> Meter {
        if dut.outlet.unit().read_back() == ReadBack::Remembered {
            let text = "Its power unit cannot be asked: where the outlet reads back as told, that is what it was told";
            record.note(Severity::Warning, text);
        }
        let (outlet, before) = (dut.outlet.clone(), dut.outlet.joules());
        Meter { outlet, record: Arc::clone(record), began: Instant::now(), before }
    }

    async fn end(self, mut verdict: Verdict) -> Verdict {
        if let Some(after) = self.outlet.joules_now().await {
            let (joules, seconds) = (after - self.before.unwrap_or_default(), self.began.elapsed().as_secs_f64());
            self.record.log.append(JobEvent::EnergyMeasured { joules, seconds });
            verdict.evidence.push(sentence::energy(joules, seconds));
        }
        verdict
    }
}

/// What several logs measured, as one; `None`: nothing did.
fn measured(roles: &[Arc<JobRecord>]) -> Option<JobEvent> {
    let of = |role: &Arc<JobRecord>| {
        role.log.records().iter().rev().find_map(|record| match record.event {
            JobEvent::EnergyMeasured { joules, seconds } => Some((joules, seconds)),
            _ => None,
        })
    };
    let sum = |(joules, longest): (f64, f64), (more, seconds): (f64, f64)| (joules + more, longest.max(seconds));
    let (joules, seconds) = roles.iter().filter_map(of).reduce(sum)?;
    Some(JobEvent::EnergyMeasured { joules, seconds })
}

/// The DUT said so itself: it takes no more jobs.
pub(super) fn declare_unfit(farm: &Arc<Farm>, dut: &str, line: String) {
    let (farm, dut) = (Arc::clone(farm), dut.to_owned());
    let why = format!("its console said it is unfit for service: {line}");
    tokio::spawn(async move { farm.hold_back(&dut, Some(why)).await });
}

async fn ended_from_outside(mut cancelled: Cancelled, views: Views, together: Arc<Together>) -> Event {
    tokio::select! {
        by = cancellation(&mut cancelled) => cancelled_by(by),
        event = lease_lost(views) => event,
        event = together.ended_by_others() => event,
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
