//! A person's lease: a DUT for a while, with its console, its outlet and its boot namespace, by the rules that jobs live by.
//!
//! ```text
//!  take ─► keeper.request ─► waits … ─► Active ─► console opened, kept in <state>/leases/<id>/, shown to any number of readers
//!            │                            ├─► power: on, off, cycle  ─┐
//!            │                            ├─► typing                  ├─ each asks the pass, so each refuses once the lease has ended
//!            │                            └─► boot: fetch, publish   ─┘
//!            └─ kept by a connection (Link), by a heartbeat, or by its time alone
//!  release, end of its time, owner gone ─► the lease's own tear-down: off, read back, console closed, nothing published, free
//! ```
//! After a restart of the farm the lease is there: its console is opened again, and what was published is published again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use gateway::content::reach::Reach;
use job_schema::problem::Problems;
use tokio::sync::{mpsc, watch};

pub use self::ask::{Asks, Keeps, LeaseAsk};
use self::ask::{checked_id, ms, owner_of, request_of};
pub(super) use self::listen::Listener;
use self::listen::listen;
use super::boot_namespace::{Kept, Open, Watch, observer};
use super::disks::{self, Disks};
use super::egress::{self, AuditTrail};
use super::lease_buckets;
use super::listening::Listening;
use super::machines::Dut;
use super::wants::{self, Wants};
use super::{Farm, Submission, SubmitError};
use crate::blueprint::power::PowerState;
use crate::console::Protocol;
use crate::job_log::{JobEvent, JobLog, Severity};
use crate::lease::actor::Attachment;
use crate::lease::rows::{
    Authorization, Cause, Kind, Lease, LeaseId, LeaseRequest, LeaseState, Moment, Object, Owner, Verb,
};
use crate::lease::{LeaseView, Pass, RequestError, Snapshot};
use crate::outlets::Wish;
use crate::runner::SetupError;
use crate::session::Which;

mod ask;
mod listen;

/// How long a lease that lives by a connection waits for that connection to be made: its client has just been answered.
const CONNECT_TIME: Duration = Duration::from_secs(30);
/// Power waits this long for the console to be opened: a console server that needs longer has a fault of its own.
const LISTEN_TIME: Duration = Duration::from_secs(5);
/// Typed chunks that wait for a console that does not take them; more are refused.
const TYPED_CHUNKS_MAX: usize = 64;
/// The job description whose boot is published, in the lease's folder.
const BOOT: &str = "boot.yml";
/// There while what it boots is fetched as who may do everything here fetches.
const EVERYWHERE: &str = "boot-from-everywhere";

/// A wish about power.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PowerAction {
    /// Power on; boots what is published.
    On,
    /// Power off.
    Off,
    /// Off, a pause, on.
    Cycle,
}

/// Until when a lease is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// So long from now on.
    For(Duration),
    /// This moment.
    At(Moment),
}

/// Why something asked of a lease, or of a resource, was not done.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// There never was such a thing.
    #[error("{0}")]
    NoSuch(String),
    /// It is another project's.
    #[error("{0}")]
    NotYours(String),
    /// It is over.
    #[error("{0}")]
    Over(String),
    /// Not in this state.
    #[error("{0}")]
    NotNow(String),
    /// A field of the request is wrong.
    #[error("`{field}`: {what}")]
    Wrong {
        /// Which.
        field: &'static str,
        /// What is wrong, and what would be right.
        what: String,
    },
    /// Nothing could ever serve it.
    #[error("{0}")]
    Never(SubmitError),
    /// The job description has problems.
    #[error("{0}")]
    Problems(Problems),
    /// The hardware, an artifact or the farm failed.
    #[error("{0}")]
    Failed(String),
}

/// The leases of people that are not over, by id.
#[derive(Default)]
pub(super) struct Holds(Mutex<BTreeMap<LeaseId, Arc<Hold>>>);

/// One person's lease.
pub struct Hold {
    id: LeaseId,
    /// What its console said, and what was done.
    pub log: Arc<JobLog>,
    folder: PathBuf,
    views: watch::Receiver<LeaseView>,
    typed: mpsc::Sender<Bytes>,
    /// One change of power or boot at a time.
    turn: tokio::sync::Mutex<()>,
    link: Mutex<Weak<Link>>,
    /// Whether its console has been opened, or could not be.
    heard: watch::Sender<bool>,
    over: watch::Sender<bool>,
}

/// The connection that a lease lives by. When the last holder drops it, the owner is gone.
pub struct Link {
    farm: Weak<Farm>,
    attachment: Option<Attachment>,
}

/// How the console comes to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opened {
    First,
    AfterRestart,
}

impl Farm {
    /// Asks for a DUT for a person. The same id again is the same lease, of the same project.
    pub async fn take_lease(self: &Arc<Self>, ask: LeaseAsk) -> Result<LeaseId, LeaseError> {
        if *self.stopping.borrow() {
            return Err(LeaseError::Failed("the farm is stopping and gives no leases".into()));
        }
        let request = request_of(&ask)?;
        let id = request.id.clone();
        // What it left behind, and the keys that follow from its id, are for who had it.
        if self.lease_folder(id.as_str()).exists() && self.keeper.lease(id.clone()).await.is_none() {
            let what = format!("{id} was a lease before; leave it out, or send another one");
            return Err(LeaseError::Wrong { field: "id", what });
        }
        if let Err(error) = self.keeper.request(request).await {
            let wants = Wants { asks: ask.asks, id: ask.resource, tags: ask.tags, ..Wants::default() };
            return Err(match wants::refusal(&self.config(), &wants, error) {
                SubmitError::Farm(why) => LeaseError::Failed(why),
                never => LeaseError::Never(never),
            });
        }
        // What was there before this request is kept as it was asked for then.
        let LeaseRequest { authorizer, owner, .. } = self.lease(id.as_str()).await?.request;
        if authorizer != ask.subject {
            let what = format!("`id`: {id} is a lease of another project; leave it out, or send another one");
            return Err(LeaseError::NotYours(what));
        }
        if self.holds.get(&id).is_none() {
            self.look_after(&id, Opened::First).await?;
        }
        if matches!(owner, Owner::Connection(_))
            && let Some(hold) = self.holds.get(&id)
        {
            hold.wait_for_its_connection(self);
        }
        Ok(id)
    }

    /// A lease, over or not; a job's, too.
    pub async fn lease(&self, id: &str) -> Result<Lease, LeaseError> {
        self.keeper.lease(id.into()).await.ok_or_else(|| no_lease(id))
    }

    /// The news of a lease.
    pub async fn lease_views(&self, id: &str) -> Result<watch::Receiver<LeaseView>, LeaseError> {
        self.keeper.watch(id.into()).await.ok_or_else(|| no_lease(id))
    }

    /// Makes the caller the connection that a lease lives by.
    pub async fn link(self: &Arc<Self>, id: &str) -> Result<Arc<Link>, LeaseError> {
        let lease = self.unfinished(id).await?;
        let hold = self.holds.get(&id.into()).filter(|_| matches!(lease.request.owner, Owner::Connection(_)));
        let hold = hold.ok_or_else(|| {
            LeaseError::NotNow(format!(
                "lease {id} does not live by a connection: it is kept by {}",
                lease.request.owner
            ))
        })?;
        Ok(hold.link(self))
    }

    /// Its owner is still there.
    pub async fn beat(&self, id: &str) -> Result<Lease, LeaseError> {
        let lease = self.unfinished(id).await?;
        match lease.request.owner {
            Owner::Heartbeat { .. } => self.keeper.beat(id.into()),
            Owner::Job(_) | Owner::Connection(_) | Owner::Term(_) => {
                return Err(LeaseError::NotNow(format!(
                    "lease {id} has no heartbeat: it is kept by {}",
                    lease.request.owner
                )));
            }
        }
        Ok(lease)
    }

    /// Lets a person's lease last longer, or less long. Never beyond what was asked for at most.
    pub async fn renew_lease(&self, id: &str, until: Until, by: &str) -> Result<Lease, LeaseError> {
        let lease = self.unfinished_of_a_person(id).await?;
        if lease.state != LeaseState::Active {
            return Err(LeaseError::NotNow(format!("lease {id} cannot be renewed: it {}", in_words(lease.state))));
        }
        let until = match until {
            Until::For(time) => self.snapshot().await.at.plus_ms(ms(time)),
            Until::At(moment) => moment,
        };
        self.tell_and_see(Object::Lease(id.into()), Verb::Renew { until }, by).await?;
        self.lease(id).await
    }

    /// Gives a person's lease to another owner.
    pub async fn hand_over_lease(
        self: &Arc<Self>,
        id: &str,
        name: &str,
        keeps: Keeps,
        by: &str,
    ) -> Result<Lease, LeaseError> {
        let lease = self.unfinished_of_a_person(id).await?;
        if keeps == Keeps::Term && lease.deadlines.expires.is_none() && lease.request.timeouts.hold_ms.is_none() {
            return Err(LeaseError::Wrong {
                field: "owner",
                what: "a lease that only its time ends needs `for`; renew it first".into(),
            });
        }
        let owner = owner_of(name, keeps)?;
        let hold = self.holds.get(&id.into()).ok_or_else(|| over(id, "it is being released"))?;
        // Whoever kept it so far may go from now on.
        self.tell(Object::Lease(id.into()), Verb::HandOver { owner: owner.clone() }, by).await?;
        let lease = self.lease(id).await?;
        if lease.request.owner != owner {
            return Err(LeaseError::NotNow(format!("lease {id} was not handed over: it {}", in_words(lease.state))));
        }
        *hold.lock_link() = Weak::new();
        match keeps {
            Keeps::Connection => hold.wait_for_its_connection(self),
            Keeps::Heartbeat(_) | Keeps::Term => self.keeper.beat(id.into()),
        }
        Ok(lease)
    }

    /// Ends a lease; a job's is cancelled by it.
    pub async fn release_lease(&self, id: &str, by: &str) -> Result<Lease, LeaseError> {
        self.unfinished(id).await?;
        let cause = Cause::Released { by: by.to_owned() };
        self.tell(Object::Lease(id.into()), Verb::Release { cause }, by).await?;
        self.lease(id).await
    }

    /// Counts a tear-down that does not succeed as done. The events keep who said so, and why.
    pub async fn abandon_lease(&self, id: &str, reason: &str, by: &str) -> Result<Lease, LeaseError> {
        let lease = self.unfinished(id).await?;
        if lease.needs_operator.is_none() {
            return Err(LeaseError::NotNow(format!("lease {id} needs nobody: it {}", in_words(lease.state))));
        }
        self.tell_and_see(Object::Lease(id.into()), Verb::Abandon { reason: reason.to_owned() }, by).await?;
        self.lease(id).await
    }

    /// What a resource is told: drain, cordon and so on. The newest row of that name is meant.
    pub async fn tell_resource(&self, name: &str, verb: Verb, by: &str) -> Result<(), LeaseError> {
        let snapshot = self.snapshot().await;
        let found = snapshot.resources.iter().filter(|row| row.is_called(name)).max_by_key(|row| row.serial);
        let resource =
            found.ok_or_else(|| LeaseError::NoSuch(format!("no resource `{name}`; `wharf duts` lists the DUTs")))?;
        self.tell_and_see(resource.object(), verb, by).await
    }

    /// Answers whether a subject may lease from a blueprint, which is known by either of its names.
    pub async fn authorize(&self, authorization: Authorization) -> Result<(), LeaseError> {
        let rows = crate::blueprint::dut::rows(&self.config());
        let leasable = || rows.iter().filter(|row| matches!(row.kind, Kind::Dut | Kind::Gear | Kind::Host));
        let wanted = &authorization.blueprint;
        let Some(found) = leasable().find(|row| row.name == *wanted || row.full_name == *wanted) else {
            let known: Vec<_> = leasable().map(|row| row.full_name.as_str()).collect();
            return Err(LeaseError::NoSuch(format!("no blueprint `{wanted}`; there are {}", known.join(", "))));
        };
        let authorization = Authorization { blueprint: found.name.clone(), ..authorization };
        self.keeper.authorize(authorization).await.map_err(|error| LeaseError::Failed(error.to_string()))
    }

    /// Switches the leased DUT, and says what it reads back. A cycle is without power for `off`, and for the off-time at least.
    pub async fn switch_lease(
        self: &Arc<Self>,
        id: &str,
        action: PowerAction,
        off: Duration,
    ) -> Result<PowerState, LeaseError> {
        let (hold, dut, pass) = self.usable(id).await?;
        let id = id.to_owned();
        // On its own task: a client that hangs up must not leave an outlet half told.
        let switched = tokio::spawn(async move {
            let _turn = hold.turn.lock().await;
            let switched = hold.switch(&dut, &pass, action, off).await;
            // What failed because the lease ended meanwhile is no failure of the outlet.
            switched.map_err(|error| if pass.check().is_err() { over(&id, "it was released meanwhile") } else { error })
        });
        switched.await.map_err(|error| LeaseError::Failed(format!("an internal error: {error}")))?
    }

    /// Reads the leased DUT's outlet.
    pub async fn read_power(&self, id: &str) -> Result<PowerState, LeaseError> {
        let (_, dut, pass) = self.usable(id).await?;
        dut.power(pass).state().await.map_err(|error| LeaseError::Failed(error.to_string()))
    }

    /// Publishes a job's `deployment.start` for the leased DUT: whatever switches it on boots it.
    pub async fn boot_lease(
        self: &Arc<Self>,
        id: &str,
        name: &str,
        text: &str,
        reach: Reach,
    ) -> Result<(), LeaseError> {
        let (hold, dut, pass) = self.usable(id).await?;
        let _turn = hold.turn.lock().await;
        self.publish(&hold, &dut, &pass, (name, text), reach).await?;
        let kept = keep_boot(&hold.folder, text, reach);
        kept.map_err(|error| LeaseError::Failed(format!("it is published, but a restart would forget it: {error}")))
    }

    /// Types on the leased DUT's console.
    pub async fn type_in_lease(&self, id: &str, bytes: Bytes) -> Result<(), LeaseError> {
        let (hold, ..) = self.usable(id).await?;
        hold.typed
            .try_send(bytes)
            .map_err(|_| LeaseError::NotNow(format!("the console of lease {id} takes nothing; try again")))
    }

    /// Serves the leased DUT's console at a port of this host, for as long as the lease lasts.
    pub async fn serve_console(&self, id: &str, protocol: Protocol) -> Result<SocketAddr, LeaseError> {
        let (hold, dut, pass) = self.usable(id).await?;
        let address = dut.console_ports.open(&dut.console, &pass, protocol).await;
        let address = address.map_err(|error| LeaseError::Failed(format!("the console cannot be served: {error}")))?;
        hold.note(Severity::Info, format!("The console is served at {address}"));
        Ok(address)
    }

    /// A person's lease that is not over.
    pub fn hold(&self, id: &str) -> Option<Arc<Hold>> {
        self.holds.get(&id.into())
    }

    /// What a person's lease left behind, when it is over.
    pub fn log_of_lease(&self, id: &str) -> Option<Arc<JobLog>> {
        checked_id(id).ok()?;
        JobLog::open(&self.lease_folder(id)).ok()
    }

    /// Takes up the leases of people after a restart.
    pub(super) async fn look_after_again(self: &Arc<Self>, leases: &Snapshot) {
        let of_people = leases.leases.iter().filter(|lease| {
            lease.parent.is_none()
                && lease.state != LeaseState::Destroyed
                && !matches!(lease.request.owner, Owner::Job(_))
        });
        for lease in of_people {
            if let Err(error) = self.look_after(lease.id(), Opened::AfterRestart).await {
                tracing::error!(lease = %lease.id(), %error, "a lease of before the restart has no console");
            }
        }
    }

    async fn look_after(self: &Arc<Self>, id: &LeaseId, opened: Opened) -> Result<(), LeaseError> {
        let Some(views) = self.keeper.watch(id.clone()).await else { return Err(no_lease(id.as_str())) };
        if views.borrow().state == LeaseState::Destroyed {
            return Ok(());
        }
        let folder = self.lease_folder(id.as_str());
        let log = JobLog::open(&folder).or_else(|_| JobLog::create(&folder));
        let log =
            log.map_err(|error| LeaseError::Failed(format!("cannot keep the lease in {}: {error}", folder.display())))?;
        let (typed, typed_inbox) = mpsc::channel(TYPED_CHUNKS_MAX);
        let hold = Arc::new(Hold {
            id: id.clone(),
            log,
            folder,
            views,
            typed,
            turn: tokio::sync::Mutex::default(),
            link: Mutex::default(),
            heard: watch::channel(false).0,
            over: watch::channel(false).0,
        });
        if self.holds.add(Arc::clone(&hold)) {
            tokio::spawn(until_it_is_over(Arc::clone(self), hold, typed_inbox, opened));
        }
        Ok(())
    }

    /// Prepares, fetches, publishes. The pass is entered for the last step, so that the tear-down comes before it or after it.
    async fn publish(
        &self,
        hold: &Hold,
        dut: &Dut,
        pass: &Pass,
        (name, text): (&str, &str),
        reach: Reach,
    ) -> Result<(), LeaseError> {
        let subject = self.lease(hold.id.as_str()).await?.request.authorizer;
        let seed = lease_buckets::seed_in(&hold.folder).map_err(|error| {
            LeaseError::Failed(format!("cannot keep the keys of its buckets in {}: {error}", hold.folder.display()))
        })?;
        let (source_name, text) = (name.to_owned(), text.to_owned());
        let submission = Submission { source_name, text, subject, seed, reach, ..Submission::default() };
        let prepared = self.planner.prepare(&submission, &dut.config, None).await.map_err(LeaseError::Problems)?;
        let failed = |error: SetupError| LeaseError::Failed(error.reason);
        let job = format!("lease {}", hold.id);
        let audit = Arc::new(AuditTrail::new(&self.audit, job.clone(), &prepared.subject));
        let contents = self.fetch(&hold.log, &prepared, &audit).await.map_err(failed)?;
        let user = disks::User { job: &job, dut: &dut.config.id, subject: &prepared.subject, log: &hold.log };
        let disks = Disks::make(&prepared.job, &self.shelf, &user, contents.downloads()).await.map_err(failed)?;
        let boot = lease_buckets::Boot { id: hold.id.as_str(), folder: &hold.folder, dut, log: &hold.log };
        let granted = self.open_buckets_of_lease(boot, &prepared, &contents).await.map_err(failed)?;
        let _in_flight = pass.enter().await.map_err(|_| over(hold.id.as_str(), "it is being released"))?;
        // Two namespaces of one address there are not: what was published before goes first.
        dut.boot.close();
        disks.prove(&self.gateway, &self.machines.net(), dut.address()).await.map_err(failed)?;
        let watch = Watch { fetching: Arc::default(), events: mpsc::channel(1).0, audit };
        let publication = self.gateway.namespaces().publish(dut.address(), observer(&hold.log, &watch));
        let publication = publication.map_err(|taken| LeaseError::Failed(taken.to_string()))?;
        self.discovery.let_register(dut, &publication);
        publication.lead_out(egress::of(&prepared.job, &self.planner.config.get().proxy));
        publication.log_in(prepared.logins.clone());
        let open = Open {
            gateway: Arc::clone(&self.gateway),
            mac: dut.mac,
            pass: pass.clone(),
            publication,
            prepared: Arc::new(prepared),
            contents,
            disks,
            _buckets: Some(granted),
            attachments: BTreeMap::new(),
            kept: Kept::nothing(),
            published: None,
            watch,
        };
        dut.boot.open(open).map_err(|error| LeaseError::Failed(error.reason))?;
        dut.boot.publish(Which::Start, None).map_err(LeaseError::Failed)?;
        hold.log.append(JobEvent::SetupComplete);
        Ok(())
    }

    /// A person's lease with the DUT that it holds, and the permission; otherwise why nothing can be done with it.
    pub(super) async fn usable(&self, id: &str) -> Result<(Arc<Hold>, Arc<Dut>, Pass), LeaseError> {
        let (hold, name, pass) = self.usable_as(Kind::Dut, id).await?;
        let dut = self.machines.get(&name).ok_or_else(|| LeaseError::Failed(format!("the DUT {name} is gone")))?;
        Ok((hold, dut, pass))
    }

    /// The same of a lease on a host: its log, the host's name, and the permission.
    pub(super) async fn usable_host(&self, id: &str) -> Result<(Arc<JobLog>, String, Pass), LeaseError> {
        let (hold, name, pass) = self.usable_as(Kind::Host, id).await?;
        Ok((Arc::clone(&hold.log), name, pass))
    }

    async fn usable_as(&self, kind: Kind, id: &str) -> Result<(Arc<Hold>, String, Pass), LeaseError> {
        let lease = self.unfinished_of_a_person(id).await?;
        if lease.request.want.kind != kind {
            let has = lease.request.want.kind;
            return Err(LeaseError::NotNow(format!("lease {id} is on a {has}, and this is for one on a {kind}")));
        }
        let hold = self.holds.get(lease.id()).ok_or_else(|| over(id, "it is being released"))?;
        // The row is read as soon as it is written, the view with its pass follows in the same round of the keeper.
        let mut views = hold.views.clone();
        let follows = |view: &LeaseView| lease.state != LeaseState::Active || view.state >= LeaseState::Active;
        let view = views.wait_for(follows).await.map_err(|_| over(id, "the farm stops"))?.clone();
        match (view.state, view.pass, view.resource) {
            (LeaseState::Active, Some(pass), Some(name)) => Ok((hold, name, pass)),
            (state, ..) => Err(LeaseError::NotNow(format!("lease {id} gives nothing to use: it {}", in_words(state)))),
        }
    }

    async fn unfinished(&self, id: &str) -> Result<Lease, LeaseError> {
        let lease = self.lease(id).await?;
        match lease.state {
            LeaseState::Destroyed => Err(over(id, &lease.cause.to_string())),
            LeaseState::Pending | LeaseState::Acquired | LeaseState::Active | LeaseState::Releasing => Ok(lease),
        }
    }

    async fn unfinished_of_a_person(&self, id: &str) -> Result<Lease, LeaseError> {
        let lease = self.unfinished(id).await?;
        match (&lease.request.owner, &lease.parent) {
            (Owner::Job(job), _) => Err(LeaseError::NotNow(format!(
                "lease {id} belongs to job {job}, which uses it by itself; `wharf job show {job}` looks at it"
            ))),
            (_, Some(parent)) => Err(LeaseError::NotNow(format!("lease {id} is a part of {parent}; ask that"))),
            (Owner::Connection(_) | Owner::Term(_) | Owner::Heartbeat { .. }, None) => Ok(lease),
        }
    }

    async fn tell(&self, object: Object, verb: Verb, by: &str) -> Result<(), LeaseError> {
        self.keeper.command(object, verb, by).await.map_err(|error| match error {
            RequestError::NoSuch(object) => LeaseError::Over(format!("{object} is over")),
            error => LeaseError::Failed(error.to_string()),
        })
    }

    /// Says as well whether the command was obeyed: it is read in the same commit.
    async fn tell_and_see(&self, object: Object, verb: Verb, by: &str) -> Result<(), LeaseError> {
        let before = self.keeper.newest_event();
        self.tell(object.clone(), verb, by).await?;
        let events = self.keeper.events_of(object.clone()).await;
        let events = events.map_err(|error| LeaseError::Failed(error.to_string()))?;
        let mut since = events.into_iter().filter(|event| event.seq > before).map(|event| event.transition.cause);
        match since.find(|cause| matches!(cause, Cause::Refused { .. })) {
            Some(Cause::Refused { why }) => Err(LeaseError::NotNow(format!("{object} does not do that: {why}"))),
            _ => Ok(()),
        }
    }

    fn lease_folder(&self, id: &str) -> PathBuf {
        self.config().state.join("leases").join(id)
    }
}

impl Holds {
    fn get(&self, id: &LeaseId) -> Option<Arc<Hold>> {
        self.lock().get(id).cloned()
    }

    /// Whether it was not there yet: two who ask at once get one.
    fn add(&self, hold: Arc<Hold>) -> bool {
        let mut holds = self.lock();
        let is_new = !holds.contains_key(&hold.id);
        if is_new {
            holds.insert(hold.id.clone(), hold);
        }
        is_new
    }

    fn remove(&self, id: &LeaseId) {
        self.lock().remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<LeaseId, Arc<Hold>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hold {
    /// Completes when the lease is over and its log is whole.
    pub fn over(&self) -> watch::Receiver<bool> {
        self.over.subscribe()
    }

    /// A cycle is without power for `off`, and for the machine's off-time at least.
    async fn switch(
        &self,
        dut: &Arc<Dut>,
        pass: &Pass,
        action: PowerAction,
        off: Duration,
    ) -> Result<PowerState, LeaseError> {
        let power = dut.power(pass.clone());
        let failed = |error: crate::blueprint::power::PowerError| LeaseError::Failed(error.to_string());
        match action {
            PowerAction::Off => power.set(PowerState::Off).await.map_err(failed)?,
            PowerAction::Cycle => power.set_off_to_cycle().await.map_err(failed)?,
            PowerAction::On => {}
        }
        match action {
            PowerAction::Off => {
                self.log.append(JobEvent::PoweredOff);
                return Ok(PowerState::Off);
            }
            PowerAction::Cycle => {
                self.log.append(JobEvent::PoweredOff);
                tokio::time::sleep(off).await;
            }
            PowerAction::On => {}
        }
        // So that no early byte of the boot is lost.
        let _ = tokio::time::timeout(LISTEN_TIME, self.heard.subscribe().wait_for(|heard| *heard)).await;
        // Limits on artifacts count per boot.
        dut.boot.begin_boot().map_err(LeaseError::Failed)?;
        if let Some(text) = power.waits() {
            self.note(Severity::Info, text);
        }
        power.set(PowerState::On).await.map_err(failed)?;
        self.note(Severity::Info, "The DUT has power");
        Ok(PowerState::On)
    }

    /// What the outlet was told before the restart, or was about to be.
    async fn switch_as_before(&self, dut: &Arc<Dut>, pass: &Pass) {
        let action = match (dut.outlet.wish(), dut.outlet.seen()) {
            (Some(Wish::Cycle), _) => PowerAction::Cycle,
            (Some(Wish::On), Some(PowerState::Off)) => PowerAction::On,
            (Some(Wish::Off), Some(PowerState::On)) => PowerAction::Off,
            (Some(Wish::On | Wish::Off) | None, _) => return,
        };
        let text = match action {
            PowerAction::Cycle => "A power cycle was begun before the restart: it is done now",
            PowerAction::On => "The DUT had been switched on before the restart, and is off: it is switched on again",
            PowerAction::Off => "The DUT had been switched off before the restart, and is on: it is switched off again",
        };
        self.note(Severity::Warning, text);
        if let Err(error) = self.switch(dut, pass, action, Duration::ZERO).await {
            self.note(Severity::Error, format!("That failed: {error}"));
        }
    }

    /// The connection that keeps the lease: the one that there is, or a new one.
    fn link(&self, farm: &Arc<Farm>) -> Arc<Link> {
        let mut link = self.lock_link();
        link.upgrade().unwrap_or_else(|| {
            let attachment = Some(farm.keeper.attach(self.id.clone()));
            let new = Arc::new(Link { farm: Arc::downgrade(farm), attachment });
            *link = Arc::downgrade(&new);
            new
        })
    }

    /// Whoever asked has some time to connect. The connection takes the place of this attachment.
    fn wait_for_its_connection(&self, farm: &Arc<Farm>) {
        if self.lock_link().strong_count() > 0 {
            return;
        }
        let meanwhile = Link { farm: Arc::downgrade(farm), attachment: Some(farm.keeper.attach(self.id.clone())) };
        tokio::spawn(async move {
            tokio::time::sleep(CONNECT_TIME).await;
            drop(meanwhile);
        });
    }

    fn lock_link(&self) -> MutexGuard<'_, Weak<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, severity: Severity, text: impl Into<String>) {
        self.log.append(JobEvent::Note { text: text.into(), severity });
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let farm = self.farm.upgrade();
        // A farm that stops hangs up by itself: the lease waits for its owner's next connection.
        if farm.is_none_or(|farm| *farm.stopping.borrow()) {
            std::mem::forget(self.attachment.take());
        }
    }
}

/// The whole life of a person's lease, on our side.
async fn until_it_is_over(farm: Arc<Farm>, hold: Arc<Hold>, typed: mpsc::Receiver<Bytes>, opened: Opened) {
    let mut views = hold.views.clone();
    let mut typed = Some(typed);
    let (mut told, mut owner) = (None, views.borrow().owner.clone());
    loop {
        let view = views.borrow_and_update().clone();
        if view.owner != owner {
            owner = view.owner.clone();
            hold.note(Severity::Info, format!("The lease is {owner}'s from now on"));
        }
        if view.state == LeaseState::Destroyed {
            hold.note(Severity::Info, format!("The lease is over: {}", view.cause));
            break;
        }
        if let (LeaseState::Active, Some(pass), Some(name)) = (view.state, view.pass, view.resource)
            && let Some(dut) = farm.machines.get(&name)
            && let Some(typed) = typed.take()
        {
            use_it(&farm, &hold, &dut, pass, typed, opened).await;
        }
        if view.needs_operator.is_some() && view.needs_operator != told {
            told.clone_from(&view.needs_operator);
            let what = told.clone().unwrap_or_default();
            hold.note(Severity::Error, format!("somebody must look at the DUT: {what}"));
        }
        // The keeper is gone only when the farm is.
        if views.changed().await.is_err() {
            break;
        }
    }
    farm.holds.remove(&hold.id);
    hold.over.send_replace(true);
}

async fn use_it(
    farm: &Farm,
    hold: &Arc<Hold>,
    dut: &Arc<Dut>,
    pass: Pass,
    typed: mpsc::Receiver<Bytes>,
    opened: Opened,
) {
    match opened {
        Opened::First => hold.log.append(JobEvent::Leased { dut: dut.config.full_name.clone() }),
        Opened::AfterRestart => {
            hold.note(Severity::Warning, "The farm was restarted: what the console said meanwhile is missing here");
        }
    }
    // The tear-down waits for us, or comes first and the pass refuses.
    if let Ok(_in_flight) = pass.enter().await {
        let (log, heard) = (Arc::clone(&hold.log), hold.heard.clone());
        let listening = Listening::new(&dut.console, &pass, &log);
        dut.listener.start(tokio::spawn(listen(log, listening, opened, pass.clone(), typed, heard)));
    }
    let _turn = hold.turn.lock().await;
    if let Ok(text) = std::fs::read_to_string(hold.folder.join(BOOT))
        && let Err(error) = farm.publish(hold, dut, &pass, (BOOT, &text), kept_reach(&hold.folder)).await
    {
        hold.note(Severity::Error, format!("What it boots cannot be published again: {error}"));
    }
    if opened == Opened::AfterRestart && dut.outlives_us() {
        hold.switch_as_before(dut, &pass).await;
    }
}

/// Keeps what a lease boots for after a restart, and with whose view of the network it is fetched.
fn keep_boot(folder: &Path, text: &str, reach: Reach) -> std::io::Result<()> {
    std::fs::write(folder.join(BOOT), text)?;
    match (reach, std::fs::remove_file(folder.join(EVERYWHERE))) {
        (Reach::Everywhere, _) => std::fs::write(folder.join(EVERYWHERE), ""),
        (Reach::Judged, Err(error)) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        (Reach::Judged, _) => Ok(()),
    }
}

fn kept_reach(folder: &Path) -> Reach {
    if folder.join(EVERYWHERE).exists() { Reach::Everywhere } else { Reach::Judged }
}

fn no_lease(id: &str) -> LeaseError {
    LeaseError::NoSuch(format!("no lease `{id}`; `wharf leases` lists them"))
}

fn over(id: &str, why: &str) -> LeaseError {
    LeaseError::Over(format!("lease {id} is over: {why}"))
}

fn in_words(state: LeaseState) -> &'static str {
    match state {
        LeaseState::Pending => "waits in the queue",
        LeaseState::Acquired => "is being brought up",
        LeaseState::Active => "is active",
        LeaseState::Releasing => "is being released",
        LeaseState::Destroyed => "is over",
    }
}
