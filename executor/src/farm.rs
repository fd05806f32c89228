//! One farm: its machines, its gateway, its jobs. What the API and the command line call.
//!
//! ```text
//!  submit ─► render (child) ─► Job ─► keeper.request ─► waits … ─► Active ─► render with the DUT ─► BootPlan ─► runner ─► Verdict
//!                                                                    └────────── release: revoke, off, unpublish, free ◄────────┘
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::future::ready;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use gateway::Gateway;
use gateway::content::reach::Reach;
use job_schema::problem::Problems;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::config::FarmConfig;
use crate::console::Consoles;
use crate::job_log::{JobEvent, JobLog, Severity};
use crate::lease::rows::{LeaseId, LeaseRequest, LeaseState, Owner, Purpose};
use crate::lease::{Keeper, Snapshot};
use crate::runner::{EVENTS_MAX, INPUT_CHUNKS_MAX};
use crate::session::Event;
use crate::verdict::{Cause, Status, Verdict};
use crate::virtual_dut::qemu::RuntimeFolder;

mod adopted_pdus;
mod announced;
mod archive;
mod attached;
mod boot_namespace;
mod buckets;
mod carry;
mod contents;
mod crew;
mod current;
mod discovery;
mod disks;
mod downloads;
mod duts;
mod egress;
mod fetching;
mod forges;
mod hand_over;
mod hardware;
mod hold;
mod host_use;
mod hosts;
mod lease_buckets;
mod ledger;
mod listening;
mod machines;
mod network;
mod on_dut;
mod pdus;
mod pick_up;
mod prepare;
mod projects;
mod reads;
mod record;
mod registry;
mod reload;
mod served_power;
mod shared_buckets;
mod shelf;
mod start;
mod steps;
mod texts;
mod training;
mod values;
mod wants;

pub use adopted_pdus::{AdoptError, AdoptPdu};
use announced::Announcements;
pub use attached::Attached;
pub use buckets::{BucketView, DIRECTORY, Keys as BucketKeys, RESULTS};
pub use current::Current;
pub use discovery::{
    AddDut, AddError, DiscoverAsk, DiscoverError, DiscoveryOutcome, DiscoveryRecord, Found, LoaderView, OutletView,
};
pub use downloads::Descriptions;
pub use duts::{DutState, DutView};
pub use forges::{ForgeDut, Forges};
pub use hold::{Asks, Keeps, LeaseAsk, LeaseError, Link, PowerAction, Until};
pub use host_use::{CommandAsk, CommandNews};
pub use hosts::HostView;
use ledger::{Kept, Reached};
use machines::Machines;
pub use network::AUTHORITY;
pub use pdus::{Origin, OutletChange, OutletError, PduView};
pub use prepare::{Planner, Preview};
pub use record::DutRecord;
use record::Records;
pub use registry::{
    DOCKER_AUTH_CONFIG, host_of as registry_of, logins as registry_logins, secrets_in as registry_secrets_in,
};
pub use reload::{Changes, ReloadError, Source, needs_of};
pub use shelf::{DiskView, RemoveError};
use training::Trials;
#[cfg(test)]
pub use training::{Loop, Training};
use wants::{Asked, Candidate};

/// Ended jobs that are kept for `wharf jobs`; their consoles stay on disk. A record with its log takes some 100 KiB.
const ENDED_JOBS_MAX: usize = 1000;

/// Jobs that come between two counts of those that have ended: so many more may be kept.
const JOBS_PER_COUNT: usize = 100;

/// Jobs that are read again at once when the farm starts: each is rendered in a child, which is all that it waits for.
const RENDERED_AT_ONCE: usize = 4;

/// A running farm. Used as `Arc<Farm>`.
pub struct Farm {
    name: String,
    /// Where its API is.
    api: SocketAddr,
    /// Where its own boot images are.
    images: SocketAddr,
    /// Where its configuration comes from, where that is a file.
    source: OnceLock<Source>,
    /// Held by whoever changes the configuration.
    reloading: tokio::sync::Mutex<()>,
    planner: Planner,
    /// Where it is written down what DUTs were refused.
    audit: egress::AuditLog,
    machines: Arc<Machines>,
    announcements: Arc<Announcements>,
    consoles: Arc<Consoles>,
    keeper: Keeper,
    gateway: Arc<Gateway>,
    jobs: Mutex<Jobs>,
    /// Who hears of a DUT's DHCP requests, by MAC.
    listeners: Arc<Listeners>,
    stopping: watch::Sender<bool>,
    carriers: Mutex<JoinSet<()>>,
    /// What each DUT has done so far.
    records: Arc<Records>,
    /// Who looks after which machine on trial.
    trials: Arc<Trials>,
    /// The leases of people.
    holds: hold::Holds,
    /// The disks that are nobody's own.
    shelf: shelf::Shelf,
    /// The buckets of jobs.
    buckets: buckets::Buckets,
    /// Machines that the farm file does not name.
    discovery: discovery::Discovery,
    /// The state folder is ours while this is open.
    _state_lock: std::fs::File,
    /// Sockets of virtual machines; the folder goes with the farm.
    _runtime: RuntimeFolder,
}

/// Events of DUTs that a session waits for, by MAC.
#[derive(Default)]
struct Listeners(Mutex<BTreeMap<String, mpsc::Sender<Event>>>);

#[derive(Default)]
struct Jobs {
    records: VecDeque<Arc<JobRecord>>,
    records_until_count: usize,
    last_number: u64,
}

/// A job as somebody hands it in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// The file's name, for problems.
    pub source_name: String,
    /// The job description, templates and all.
    pub text: String,
    /// Replaces the job's own target wholly.
    pub target: Option<TargetOverride>,
    /// What the client forwards of its environment: `environ` in templates.
    pub environ: BTreeMap<String, String>,
    /// Files that came along: `attached` artifacts by name.
    #[serde(skip)]
    pub attachments: BTreeMap<String, Attached>,
    /// What to do when every fitting DUT is busy.
    pub when_busy: WhenBusy,
    /// Higher goes first.
    pub priority: i32,
    /// Who submits, for the log.
    pub submitter: String,
    /// The project, user or token in whose name DUTs are authorized.
    #[serde(default)]
    pub subject: String,
    /// Whether it is one that looks whether its DUT is well: only the farm itself hands those in.
    #[serde(default, skip_serializing_if = "Purpose::is_work")]
    pub purpose: Purpose,
    /// The groups whose buckets its DUTs use; their submitter has shown a key of each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// What the keys to its buckets follow from; given when it is taken.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub seed: String,
    /// With whose view of the network its artifacts are fetched.
    #[serde(default)]
    pub reach: Reach,
}

/// A target that is not the job's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetOverride {
    /// A DUT's id or full name.
    pub id: Option<String>,
    /// Tags that it must have.
    pub tags: Option<Vec<String>>,
}

/// What to do with a job whose DUTs are all busy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhenBusy {
    /// Wait in the queue.
    #[default]
    Queue,
    /// Refuse it with [`SubmitError::Busy`].
    Refuse,
}

/// Why a job was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The description has problems.
    #[error("{0}")]
    Invalid(Problems),
    /// `target.id` names no DUT of the farm.
    #[error("no DUT `{wanted}`; DUTs: {}", known.join(", "))]
    NoSuchDut {
        /// What was asked for.
        wanted: String,
        /// What there is.
        known: Vec<String>,
    },
    /// No DUT has all the tags.
    #[error("no DUT has the tags {}: {}", tags.join(", "), reasons.join("; "))]
    NoDutMatches {
        /// What was asked for.
        tags: Vec<String>,
        /// Per DUT, what it lacks.
        reasons: Vec<String>,
    },
    /// Every fitting DUT is busy, and the client does not wait.
    #[error("every fitting DUT is busy: {}", reasons.join("; "))]
    Busy {
        /// Per fitting DUT, why not now.
        reasons: Vec<String>,
    },
    /// Nothing in the farm could ever serve it, for another reason than its DUT's name and tags.
    #[error("nothing in the farm could ever serve it: {0}")]
    Never(String),
    /// Its project has as many requests in the queue as it may.
    #[error("{0}")]
    TooMany(String),
    /// The farm is stopping, or cannot keep the job.
    #[error("{0}")]
    Farm(String),
}

/// Why a job could not be cancelled.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CancelError {
    /// No job has this id.
    #[error("no job `{0}`")]
    NoSuchJob(String),
    /// It is over.
    #[error("job {0} has already ended")]
    Ended(String),
}

/// Who cancels a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CancelledBy {
    /// A person or program, by name.
    Operator(String),
    /// Nobody: its submitter's connection is gone.
    SubmitterGone,
    /// The farm stops.
    FarmStopping,
}

/// Where a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// It waits for a DUT.
    Queued,
    /// It holds a DUT.
    Running,
    /// It has its verdict, and its DUT is given back.
    Ended,
}

/// One job, from submission on.
pub struct JobRecord {
    /// Its number in this farm, as text.
    pub id: String,
    /// When it came.
    pub submitted: jiff::Timestamp,
    /// The file's name.
    pub source_name: String,
    /// Who submitted it.
    pub submitter: String,
    /// The project whose it is.
    pub subject: String,
    /// Everything it said.
    pub log: Arc<JobLog>,
    events: mpsc::Sender<Event>,
    typed: mpsc::Sender<Bytes>,
    cancelled: watch::Sender<Option<CancelledBy>>,
    /// Whether a connection holds the job; see [`JobRecord::claim`].
    claimed: watch::Sender<bool>,
    status: Mutex<JobStatus>,
    roles: Mutex<Vec<Arc<JobRecord>>>,
}

struct JobStatus {
    state: JobState,
    dut: Option<DutName>,
    verdict: Option<Verdict>,
}

/// What a DUT is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DutName {
    /// What jobs name it by.
    pub id: String,
    /// Its full name.
    pub full_name: String,
}

impl Farm {
    /// The farm's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the farm file says now.
    pub fn config(&self) -> Arc<FarmConfig> {
        self.planner.config.get()
    }

    /// How jobs are taken from CI-tron's clients.
    pub fn submission(&self) -> crate::config::SubmissionConfig {
        self.config().submission
    }

    /// Takes a job, or says why not. The job runs on by itself; follow its log.
    pub async fn submit(self: &Arc<Self>, mut submission: Submission) -> Result<Arc<JobRecord>, SubmitError> {
        if *self.stopping.borrow() {
            return Err(SubmitError::Farm("the farm is stopping and takes no jobs".into()));
        }
        submission.seed = buckets::new_seed();
        let asked = self.planner.asked(&submission).await?;
        self.could_serve(&submission, &asked).await?;
        let number = self.next_number();
        let directory = self.job_directory(&number);
        let cannot = |error| SubmitError::Farm(format!("cannot keep the job in {}: {error}", directory.display()));
        let log = JobLog::create(&directory).map_err(cannot)?;
        let submitted = jiff::Timestamp::now();
        ledger::keep(&directory, submitted, &submission).map_err(cannot)?;
        let (record, inbox) = JobRecord::new(number, submitted, &submission, log);
        let crew = self.crew(&record, inbox, &submission, &asked).map_err(cannot)?;
        if let Err(error) = self.request(&record, &submission, &asked).await {
            ledger::forget(&directory);
            return Err(error);
        }
        self.enlist(Arc::clone(&record));
        self.carry(Arc::clone(&record), crew, submission);
        Ok(record)
    }

    /// Refuses what could never be served, and what would have to wait when its submitter does not.
    async fn could_serve(&self, submission: &Submission, asked: &Asked) -> Result<(), SubmitError> {
        let config = self.config();
        wants::cast(&config, &Candidate::all_of(&config), asked)?;
        for (wants, request) in asked.duts.iter().zip(asked.requests(submission, "")) {
            let refused = |error| wants::refusal(&config, wants, error);
            self.keeper.can_ever(request.clone()).await.map_err(refused)?;
            if submission.when_busy == WhenBusy::Refuse {
                let alone = LeaseRequest { gang: None, ..request };
                self.keeper.free_now(alone).await.map_err(|reasons| SubmitError::Busy { reasons })?;
            }
        }
        Ok(())
    }

    /// A lease for each of a job's DUTs. Asking again changes nothing.
    async fn request(&self, record: &JobRecord, submission: &Submission, asked: &Asked) -> Result<(), SubmitError> {
        for (wants, request) in asked.duts.iter().zip(asked.requests(submission, &record.id)) {
            match self.keeper.request(request).await {
                Ok(lease) => self.keeper.beat(lease),
                Err(error) => {
                    self.release_all_of(&record.id).await;
                    return Err(wants::refusal(&self.config(), wants, error));
                }
            }
        }
        Ok(())
    }

    /// Ends every lease of a job that is not over.
    async fn release_all_of(&self, job: &str) {
        let owner = Owner::Job(job.to_owned());
        let rows = self.snapshot().await;
        for lease in rows.leases.iter().filter(|lease| lease.parent.is_none() && lease.request.owner == owner) {
            // One that ends by itself meanwhile needs no command.
            let _ = self.keeper.command(lease.object(), carry::release("its job has ended"), "the farm").await;
        }
    }

    /// Whoever plays a part in a job: the job itself, or a record below it for each of its roles.
    fn crew(
        &self,
        record: &Arc<JobRecord>,
        inbox: carry::Inbox,
        submission: &Submission,
        asked: &Asked,
    ) -> std::io::Result<carry::Crew> {
        let mut crew = carry::Crew { start: asked.start, cancelled: inbox.cancelled.clone(), seats: Vec::new() };
        let mut inbox = Some(inbox);
        for wants in &asked.duts {
            let lease = lease_of(&record.id, wants.role.as_deref());
            let (seated, inbox) = match &wants.role {
                None => (Arc::clone(record), inbox.take().expect("a job without roles has one DUT")),
                Some(role) => {
                    let log = JobLog::at(&ledger::role_folder(&self.job_directory(&record.id), role))?;
                    let (seated, inbox) =
                        JobRecord::new(format!("{}-{role}", record.id), record.submitted, submission, log);
                    record.add_role(Arc::clone(&seated));
                    (seated, inbox)
                }
            };
            crew.seats.push(carry::Seat { role: wants.role.clone(), asks: wants.asks, record: seated, inbox, lease });
        }
        Ok(crew)
    }

    /// All jobs, the newest first.
    pub fn jobs(&self) -> Vec<Arc<JobRecord>> {
        self.lock_jobs().records.iter().rev().cloned().collect()
    }

    /// One job; or one role of a job, by `<job>-<role>`.
    pub fn job(&self, id: &str) -> Option<Arc<JobRecord>> {
        let jobs = self.lock_jobs();
        let whole = jobs.records.iter().find(|job| job.id == id).cloned();
        whole.or_else(|| jobs.records.iter().find_map(|job| job.roles().into_iter().find(|role| role.id == id)))
    }

    /// The job that holds a DUT.
    pub async fn running_on(&self, dut: &str) -> Option<Arc<JobRecord>> {
        let job = self.dut(dut).await?.job?;
        self.job(&job)
    }

    /// The consoles of the farm, and their logs.
    pub fn consoles(&self) -> &Arc<Consoles> {
        &self.consoles
    }

    /// The leases of the farm.
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// The disks that are kept, or shared by DUTs.
    pub fn disks(&self) -> Vec<DiskView> {
        let with_its_name = |disk: DiskView| {
            let dut = disk.dut.map(|id| self.machines.get(&id).map_or(id, |dut| dut.config.full_name.clone()));
            DiskView { dut, ..disk }
        };
        self.shelf.list().into_iter().map(with_its_name).collect()
    }

    /// Removes a disk that nobody uses.
    pub fn remove_disk(&self, id: &str) -> Result<(), RemoveError> {
        self.shelf.remove(id)
    }

    /// How many DUTs the farm file has.
    pub fn size(&self) -> usize {
        self.config().duts.len()
    }

    /// Ends a job: its DUT is switched off and given back.
    pub fn cancel(&self, job: &str, by: CancelledBy) -> Result<(), CancelError> {
        let record = self.job(job).ok_or_else(|| CancelError::NoSuchJob(job.to_owned()))?;
        if record.state() == JobState::Ended {
            return Err(CancelError::Ended(job.to_owned()));
        }
        record.cancelled.send_if_modified(|cancelled| {
            let first = cancelled.is_none();
            if first {
                *cancelled = Some(by);
            }
            first
        });
        Ok(())
    }

    /// Stops: no new jobs; running ones end and their DUTs are given back; waiting ones stay in the queue for the next start. Then
    /// the gateway goes.
    pub async fn stop(self: Arc<Self>) {
        self.stopping.send_replace(true);
        for job in self.jobs().iter().filter(|job| job.state() == JobState::Running) {
            let _ = self.cancel(&job.id, CancelledBy::FarmStopping);
        }
        let mut carriers = std::mem::take(&mut *self.carriers());
        while carriers.join_next().await.is_some() {}
        self.keeper.stop().await;
        self.consoles.stop();
        self.shelf.close().await;
        self.gateway.drain().await;
    }

    fn next_number(&self) -> String {
        let mut jobs = self.lock_jobs();
        jobs.last_number += 1;
        jobs.last_number.to_string()
    }

    fn enlist(&self, record: Arc<JobRecord>) {
        let mut jobs = self.lock_jobs();
        jobs.records.push_back(record);
        jobs.forget_old();
    }

    fn carry(self: &Arc<Self>, record: Arc<JobRecord>, crew: carry::Crew, submission: Submission) {
        let span = tracing::info_span!("job", job = record.id);
        let carried = carry::Carried { record, crew, submission };
        self.carriers().spawn(carry::carry(Arc::clone(self), carried).instrument(span));
    }

    /// The rows of the leases; none any more once the farm has stopped.
    async fn snapshot(&self) -> Snapshot {
        self.keeper.snapshot().await.unwrap_or_default()
    }

    /// Lets go of what has ended long ago.
    fn forget_old_jobs(&self) {
        self.lock_jobs().forget_old();
    }

    /// Takes up the jobs of an earlier run. Their leases and their places in the queue are there.
    async fn restore(self: &Arc<Self>, kept: Vec<Kept>) {
        let rows = self.snapshot().await;
        let mut leases: BTreeMap<&str, Vec<&LeaseId>> = BTreeMap::new();
        for lease in rows.leases.iter().filter(|lease| lease.parent.is_none() && lease.state != LeaseState::Destroyed) {
            if let Owner::Job(job) = &lease.request.owner {
                leases.entry(job).or_default().push(lease.id());
            }
        }
        let mut waiting = Vec::new();
        for kept in kept {
            let (reached, owned) = (ledger::reached(&kept.log), kept.is_owned());
            let Kept { id, submitted, submission, log } = kept;
            let (record, inbox) = JobRecord::new(id, submitted, &submission, log);
            self.enlist(Arc::clone(&record));
            self.reopen_buckets(&record, &submission);
            if !matches!(reached, Reached::Queue) {
                self.restore_roles(&record, &submission);
            }
            match reached {
                Reached::Verdict { dut, verdict } => {
                    record.was(dut.map(|dut| self.named(dut)), verdict);
                    self.archive_again(&record);
                    // Nearly always they are over.
                    if leases.contains_key(record.id.as_str()) {
                        self.release_all_of(&record.id).await;
                    }
                }
                Reached::Dut(dut) => {
                    record.was_leased(self.named(dut));
                    let span = tracing::info_span!("job", job = record.id);
                    if owned {
                        tokio::spawn(forsake_unless_claimed(Arc::downgrade(self), Arc::clone(&record)));
                    }
                    let carried = pick_up::pick_up(Arc::clone(self), record, inbox, submission);
                    self.carriers().spawn(carried.instrument(span));
                }
                Reached::Queue => {
                    // Its job is there, however long it takes until that one's text has been read again.
                    leases.get(record.id.as_str()).into_iter().flatten().for_each(|id| self.keeper.beat((*id).clone()));
                    waiting.push((record, inbox, submission, owned));
                }
            }
        }
        // Thousands take some seconds, in which the farm serves: their leases are in the queue already.
        let farm = Arc::clone(self);
        self.carriers().spawn(async move {
            let again = waiting.into_iter().map(|(record, inbox, submission, owned)| {
                let farm = &farm;
                async move {
                    if !*farm.stopping.borrow() {
                        farm.queue_again(record, inbox, submission, owned).await;
                    }
                }
            });
            futures_util::stream::iter(again).buffer_unordered(RENDERED_AT_ONCE).for_each(|()| ready(())).await;
        });
    }

    fn restore_roles(&self, record: &Arc<JobRecord>, submission: &Submission) {
        for (role, log) in ledger::roles(&self.job_directory(&record.id)) {
            let reached = ledger::reached(&log);
            let id = format!("{}-{role}", record.id);
            let (seated, _) = JobRecord::new(id, record.submitted, submission, log);
            match reached {
                Reached::Verdict { dut, verdict } => seated.was(dut.map(|dut| self.named(dut)), verdict),
                Reached::Dut(dut) => seated.was_leased(self.named(dut)),
                Reached::Queue => {}
            }
            record.add_role(seated);
        }
    }

    /// The DUT that had this full name; the name is its id, too, when it has left the farm.
    fn named(&self, full_name: String) -> DutName {
        let all = self.machines.all();
        let found = all.iter().find(|dut| dut.config.full_name == full_name);
        DutName { id: found.map_or_else(|| full_name.clone(), |dut| dut.config.id.clone()), full_name }
    }

    /// Its place is the old one. A job that a connection kept waits a while for its submitter.
    async fn queue_again(
        self: &Arc<Self>,
        record: Arc<JobRecord>,
        inbox: carry::Inbox,
        submission: Submission,
        owned: bool,
    ) {
        match self.ask_again(&record, inbox, &submission).await {
            // What waits stays in the queue, for the next start.
            _ if *self.stopping.borrow() => {}
            Ok(crew) => {
                record.note(Severity::Info, "The farm was restarted: the job is in the queue again");
                if owned {
                    tokio::spawn(forsake_unless_claimed(Arc::downgrade(self), Arc::clone(&record)));
                }
                self.carry(record, crew, submission);
            }
            Err(error) => {
                self.ends(&record, by_restart(&format!("the farm was restarted, and no longer takes the job: {error}")))
            }
        }
    }

    /// Nearly always the leases are there, and asking again changes nothing.
    async fn ask_again(
        &self,
        record: &Arc<JobRecord>,
        inbox: carry::Inbox,
        submission: &Submission,
    ) -> Result<carry::Crew, SubmitError> {
        let asked = self.planner.asked(submission).await?;
        let crew = self.crew(record, inbox, submission, &asked);
        self.request(record, submission, &asked).await?;
        crew.map_err(|error| SubmitError::Farm(format!("cannot keep the job's logs: {error}")))
    }

    fn job_directory(&self, id: &str) -> PathBuf {
        self.config().state.join("jobs").join(id)
    }

    fn lock_jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The running jobs' tasks; finished ones are let go on the way.
    fn carriers(&self) -> MutexGuard<'_, JoinSet<()>> {
        let mut carriers = self.carriers.lock().unwrap_or_else(PoisonError::into_inner);
        while carriers.try_join_next().is_some() {}
        carriers
    }
}

/// How long a job that lives by its submitter's connection waits for it after a restart.
const CLAIM_TIME: Duration = Duration::from_secs(60);

async fn forsake_unless_claimed(farm: Weak<Farm>, record: Arc<JobRecord>) {
    let claimed = async { record.claimed.subscribe().wait_for(|claimed| *claimed).await.is_ok() };
    if !matches!(tokio::time::timeout(CLAIM_TIME, claimed).await, Ok(true))
        && let Some(farm) = farm.upgrade()
    {
        let _ = farm.cancel(&record.id, CancelledBy::SubmitterGone);
    }
}

fn by_restart(summary: &str) -> Verdict {
    Verdict { status: Status::Incomplete, cause: Cause::Farm, summary: summary.to_owned(), evidence: Vec::new() }
}

impl Jobs {
    /// Those that wait or run are never forgotten, however many they are. Counting looks at every record, so it is not done for each job.
    fn forget_old(&mut self) {
        self.records_until_count = self.records_until_count.saturating_sub(1);
        if self.records.len() <= ENDED_JOBS_MAX || self.records_until_count > 0 {
            return;
        }
        self.records_until_count = JOBS_PER_COUNT;
        let ended = self.records.iter().filter(|job| job.state() == JobState::Ended).count();
        let mut too_many = ended.saturating_sub(ENDED_JOBS_MAX);
        self.records.retain(|job| {
            let forgotten = too_many > 0 && job.state() == JobState::Ended;
            too_many -= usize::from(forgotten);
            !forgotten
        });
    }
}

impl JobRecord {
    fn new(
        id: String,
        submitted: jiff::Timestamp,
        submission: &Submission,
        log: Arc<JobLog>,
    ) -> (Arc<Self>, carry::Inbox) {
        let (events, events_inbox) = mpsc::channel(EVENTS_MAX);
        let (typed, typed_inbox) = mpsc::channel(INPUT_CHUNKS_MAX);
        let (cancelled, cancelled_inbox) = watch::channel(None);
        let record = Arc::new(JobRecord {
            id,
            submitted,
            source_name: submission.source_name.clone(),
            submitter: submission.submitter.clone(),
            subject: submission.subject.clone(),
            log,
            events,
            typed,
            cancelled,
            claimed: watch::channel(false).0,
            status: Mutex::new(JobStatus { state: JobState::Queued, dut: None, verdict: None }),
            roles: Mutex::default(),
        });
        (record, carry::Inbox { events: events_inbox, typed: typed_inbox, cancelled: cancelled_inbox })
    }

    /// From now on the job lives by its submitter's connection; after a restart it waits for that connection to come back.
    pub fn claim(&self) {
        if !self.claimed.send_replace(true) {
            self.log.append(JobEvent::Owned);
        }
    }

    /// Where it is.
    pub fn state(&self) -> JobState {
        self.lock().state
    }

    /// The DUT it holds, or held.
    pub fn dut(&self) -> Option<DutName> {
        self.lock().dut.clone()
    }

    fn add_role(&self, role: Arc<JobRecord>) {
        self.roles.lock().unwrap_or_else(PoisonError::into_inner).push(role);
    }

    /// Its roles, each a record of its own, called `<job>-<role>`; none when it has one DUT.
    pub fn roles(&self) -> Vec<Arc<JobRecord>> {
        self.roles.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How it ended.
    pub fn verdict(&self) -> Option<Verdict> {
        self.lock().verdict.clone()
    }

    /// Types on the DUT's console; dropped when nobody listens or too much waits already.
    pub fn type_on_console(&self, bytes: Bytes) {
        let _ = self.typed.try_send(bytes);
    }

    fn note(&self, severity: Severity, text: impl Into<String>) {
        self.log.append(JobEvent::Note { text: text.into(), severity });
    }

    fn leased(&self, dut: DutName) {
        let mut status = self.lock();
        status.state = JobState::Running;
        status.dut = Some(dut.clone());
        drop(status);
        self.log.append(JobEvent::Leased { dut: dut.full_name });
    }

    /// As an earlier run left it.
    fn was(&self, dut: Option<DutName>, verdict: Verdict) {
        *self.lock() = JobStatus { state: JobState::Ended, dut, verdict: Some(verdict) };
    }

    fn was_leased(&self, dut: DutName) {
        let mut status = self.lock();
        status.state = JobState::Running;
        status.dut = Some(dut);
    }

    /// The status first, so that whoever reads the last record finds the job ended.
    fn ended(&self, verdict: Verdict) {
        let mut status = self.lock();
        status.state = JobState::Ended;
        status.verdict = Some(verdict.clone());
        drop(status);
        self.log.append(JobEvent::Ended { verdict });
        // While the disk is full, a restart still needs it.
        if self.log.settle().is_ok() {
            crate::journal::forget(self.log.folder());
        }
    }

    fn lock(&self) -> MutexGuard<'_, JobStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lease of a job's DUT.
fn lease_of(job: &str, role: Option<&str>) -> LeaseId {
    role.map_or_else(|| format!("job-{job}"), |role| format!("job-{job}-{role}")).into()
}

impl Listeners {
    fn tell(&self, mac: &str, event: Event) {
        if let Some(session) = self.lock().get(mac) {
            let _ = session.try_send(event);
        }
    }

    fn listen(&self, mac: &str, session: mpsc::Sender<Event>) {
        self.lock().insert(mac.to_owned(), session);
    }

    fn forget(&self, mac: &str) {
        self.lock().remove(mac);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, mpsc::Sender<Event>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
