//! The keeper: one thread that owns the rows and the store, and goes on from them whatever happened before.
//!
//! ```text
//!  request, command, effect's result, timer ─► one round: every row that may move moves, in memory ─► one synced commit
//!                                                 └─ only then: effects start, askers are answered, watchers see it
//!  a commit that fails ─► the rows are read again from the disk, nothing was started; the next round is a pause later
//! ```
//! Effects run as tasks and come back as messages, so the thread never waits for a device; a thread and no task, because a synced
//! commit blocks.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::BoxFuture;
use tokio::sync::{oneshot, watch};

use super::Pass;
use super::allocator::{Look, Outlooks, Reason, can_ever, free_now, unasked};
use super::rows::*;
use super::steps::{Context, Rules, admit};
use super::store::{Corruption, Store, StoreError};
use super::tables::{QueueKey, Tables};

pub use self::follow::Follow;
pub use self::recovery::Outside;

mod follow;
mod recovery;
mod round;

/// The pause after a commit that failed; a full disk is looked at again as often.
const COMMIT_PAUSE: Duration = Duration::from_secs(1);
/// Events in one answer, so that a page of them stays below some MiB.
const EVENTS_AT_MOST: u32 = 1_000;

/// What happens outside. Everything here may be asked for again after a crash, and must then end in the same state.
pub trait Effects: Send + Sync + 'static {
    /// Makes the lease usable.
    fn activate(&self, lease: &Lease, pass: Option<Pass>) -> BoxFuture<'static, Result<(), EffectError>>;
    /// Returns when nothing of the lease is in flight any more. Its pass is refused already.
    fn revoke(&self, lease: &Lease) -> BoxFuture<'static, ()>;
    /// Undoes whatever the lease may have done: off, read back, unpublished.
    fn tear_down(&self, lease: &Lease) -> BoxFuture<'static, Result<(), EffectError>>;
    /// Makes the thing outside, under its own name, and says what was found of it.
    fn make(&self, resource: &Resource) -> BoxFuture<'static, Result<Vec<(String, String)>, EffectError>>;
    /// Removes the thing outside.
    fn unmake(&self, resource: &Resource) -> BoxFuture<'static, Result<(), EffectError>>;
    /// Whether an effect that was begun before a crash was done.
    fn reconcile(&self, effect: &Effect) -> BoxFuture<'static, Reconciled>;
    /// Asked at the last moment before a lease expires: how much longer it lasts, if it may not end now.
    fn veto(&self, _lease: &Lease) -> Option<Duration> {
        None
    }
    /// The things that are there outside, for each blueprint whose things can be listed. Asked after a start: what should be there and is
    /// not in the list is lost, and what is there without a row, twice, is removed.
    fn enumerate(&self) -> BoxFuture<'static, Vec<Outside>> {
        Box::pin(async { Vec::new() })
    }
    /// Removes a thing that [`Effects::enumerate`] has named and that belongs to no row.
    fn remove(&self, _blueprint: &str, _name: &str) -> BoxFuture<'static, Result<(), EffectError>> {
        Box::pin(async { Ok(()) })
    }
    /// How long such a thing is left alone after a start: whoever made it may be about to say so.
    fn grace(&self) -> Duration {
        Duration::from_secs(60)
    }
}

/// How an effect failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EffectError {
    /// It may work elsewhere or later.
    #[error("{0}")]
    Retry(String),
    /// It will fail again.
    #[error("{0}")]
    Permanent(String),
    /// Nobody knows; it is undone as if it had worked.
    #[error("{0}; it may have happened all the same")]
    MaybeApplied(String),
}

/// What became of an effect that was begun before a crash.
#[allow(
    dead_code,
    reason = "every effect of the drivers there are may simply be done again; the model drives all three"
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reconciled {
    /// It was done.
    Applied,
    /// It was not.
    NotApplied,
    /// Nobody can tell; it is undone as if it had been done.
    Unknown,
}

/// Why a request was not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Nothing in the farm could ever serve it.
    #[error("nothing in the farm could ever serve it: {0}")]
    NeverFeasible(String),
    /// Its project has as many requests in the queue as it may.
    #[error(
        "the project `{project}` has {queued} requests in the queue, and may have no more; wait, or cancel some (projects.{project}.queued)"
    )]
    TooMany {
        /// Which.
        project: String,
        /// How many.
        queued: u32,
    },
    /// It is over, or was never there.
    #[error("{0} is over or was never there; nothing can be asked of it")]
    NoSuch(Object),
    /// It cannot be kept.
    #[error("the farm cannot keep it: {0}")]
    Store(String),
    /// The farm is stopping.
    #[error("the farm is stopping")]
    Stopped,
}

/// A lease as its owner sees it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LeaseView {
    /// The lease.
    pub id: LeaseId,
    /// Counts its transitions.
    pub version: u64,
    /// Where it is.
    pub state: LeaseState,
    /// Why.
    pub cause: Cause,
    /// Whose it is.
    pub owner: Owner,
    /// While it waits: its place; 1 is next.
    pub place: Option<usize>,
    /// While it waits: per candidate, why not now. Shared with whoever waits for the same; rendered by whoever shows them.
    pub reasons: Arc<[Reason]>,
    /// While it waits: when its turn comes, if one can tell.
    pub estimate: Option<Moment>,
    /// What it holds.
    #[allow(dead_code, reason = "owners know the DUT by name; tests ask for the row")]
    pub holds: Option<ResourceId>,
    /// The name of what it holds.
    pub resource: Option<String>,
    /// The other name of what it holds.
    pub resource_full_name: Option<String>,
    /// The permission, while it is active.
    pub pass: Option<Pass>,
    /// When it ends, unless it is renewed.
    #[allow(dead_code, reason = "a change of it wakes whoever watches, who reads the row")]
    pub expires: Option<Moment>,
    /// What a person must look at.
    pub needs_operator: Option<String>,
}

/// Everything that is not history. Cheap to make and to clone: the rows are shared.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// When.
    pub at: Moment,
    /// Leases.
    pub leases: Vec<Arc<Lease>>,
    /// Resources.
    pub resources: Vec<Arc<Resource>>,
    /// What waiting leases are told.
    pub outlooks: Arc<Outlooks>,
    /// Authorizations.
    pub authorizations: Vec<Authorization>,
}

/// The keeper's handle. Cheap to clone. [`Keeper::stop`] ends the thread; the rows stay, and the next start goes on from them.
#[derive(Clone, Debug)]
pub struct Keeper {
    messages: Sender<Message>,
    newest: watch::Receiver<u64>,
}

/// Held by whoever owns a lease over a connection: dropping it says that the owner is gone.
#[derive(Debug)]
pub struct Attachment {
    messages: Sender<Message>,
    lease: LeaseId,
    number: u64,
}

/// Numbers of attachments: only the newest one of a lease takes the lease along.
static ATTACHMENTS: AtomicU64 = AtomicU64::new(0);

impl Drop for Attachment {
    fn drop(&mut self) {
        // The keeper may be gone before: then the grace after its next start applies.
        let _ = self.messages.send(Message::OwnerGone(self.lease.clone(), self.number));
    }
}

type Answer<T> = oneshot::Sender<T>;

#[derive(Debug)]
enum Message {
    Request(Box<LeaseRequest>, Answer<Result<LeaseId, RequestError>>),
    Command(Object, Verb, String, Answer<Result<(), RequestError>>),
    Watch(LeaseId, Answer<Option<watch::Receiver<LeaseView>>>),
    Snapshot(Answer<Snapshot>),
    Lease(LeaseId, Answer<Option<Lease>>),
    CanEver(Box<LeaseRequest>, Answer<Result<(), RequestError>>),
    FreeNow(Box<LeaseRequest>, Answer<Result<(), Vec<String>>>),
    Events(u64, Answer<Result<Vec<Event>, StoreError>>),
    Authorize(Authorization, Answer<Result<(), RequestError>>),
    Configure(Vec<Blueprint>, BTreeSet<String>, Answer<Result<(), RequestError>>),
    Quotas(BTreeMap<String, Quota>, Answer<()>),
    Stop(Answer<()>),
    EventsOf(Object, Answer<Result<Vec<Event>, StoreError>>),
    Attach(LeaseId, Option<u64>),
    OwnerGone(LeaseId, u64),
    Outside(recovery::Seen, Vec<Outside>),
    Done(Object, Operation, EffectResult),
}

/// How an effect's task ended.
#[derive(Clone, Debug)]
enum EffectResult {
    Worked(Vec<(String, String)>),
    Failed(EffectError),
    /// It was not done before the crash: it is begun now.
    Again,
}

impl Keeper {
    /// Opens the store at `path` and goes on from it. What rows that do not fit together concern is held back already. Must be called inside a tokio runtime, in which effects will run.
    pub fn open(
        path: &Path,
        blueprints: Vec<Blueprint>,
        effects: Arc<dyn Effects>,
    ) -> Result<(Keeper, Vec<Corruption>), StoreError> {
        let store = Store::open(path)?;
        let loaded = store.load()?;
        let corruption = store.corruption(&loaded);
        let alive_at = store.alive_at()?;
        let (messages, inbox) = channel();
        let (newest_sender, newest) = watch::channel(loaded.last.event);
        let mut thread = KeeperThread::new(store, Tables::of(loaded), effects, messages.clone(), newest_sender);
        thread.away_since = alive_at;
        thread.corruption.clone_from(&corruption);
        thread.configure(blueprints);
        thread.read_authorizations()?;
        thread.look_at_everything();
        thread.expect_owners();
        let spawned = std::thread::Builder::new().name("lease-keeper".into()).spawn(move || thread.run(inbox));
        spawned.map_err(StoreError::Thread)?;
        Ok((Keeper { messages, newest }, corruption))
    }

    /// Makes a request a row; the same id again is the same lease.
    pub async fn request(&self, request: LeaseRequest) -> Result<LeaseId, RequestError> {
        self.ask(|answer| Message::Request(Box::new(request), answer)).await.unwrap_or(Err(RequestError::Stopped))
    }

    /// Whether a request could ever be served. Nothing is written.
    pub async fn can_ever(&self, request: LeaseRequest) -> Result<(), RequestError> {
        self.ask(|answer| Message::CanEver(Box::new(request), answer)).await.unwrap_or(Err(RequestError::Stopped))
    }

    /// Whether a request would be granted at once if it were made now, or get something made for it at once; `Err` says per candidate
    /// why not. Nothing is written, so that another request may be faster.
    pub async fn free_now(&self, request: LeaseRequest) -> Result<(), Vec<String>> {
        let stopped = || Err(vec![RequestError::Stopped.to_string()]);
        self.ask(|answer| Message::FreeNow(Box::new(request), answer)).await.unwrap_or_else(stopped)
    }

    /// A lease, over or not.
    pub async fn lease(&self, lease: LeaseId) -> Option<Lease> {
        self.ask(|answer| Message::Lease(lease, answer)).await.flatten()
    }

    /// Puts a command where its target reads it. `Ok` means that it is on disk, not that it was obeyed.
    pub async fn command(&self, target: Object, verb: Verb, by: &str) -> Result<(), RequestError> {
        let by = by.to_owned();
        self.ask(|answer| Message::Command(target, verb, by, answer)).await.unwrap_or(Err(RequestError::Stopped))
    }

    /// Follows a lease; `None`: there was never such a lease.
    pub async fn watch(&self, lease: LeaseId) -> Option<watch::Receiver<LeaseView>> {
        self.ask(|answer| Message::Watch(lease, answer)).await.flatten()
    }

    /// Everything that is not history.
    pub async fn snapshot(&self) -> Option<Snapshot> {
        self.ask(Message::Snapshot).await
    }

    /// The next events from a number on, or from the oldest that is kept.
    pub async fn events(&self, from: u64) -> Result<Vec<Event>, StoreError> {
        self.ask(|answer| Message::Events(from, answer)).await.unwrap_or(Ok(Vec::new()))
    }

    /// The newest events of one lease or resource, the oldest of them first.
    pub async fn events_of(&self, object: Object) -> Result<Vec<Event>, StoreError> {
        self.ask(|answer| Message::EventsOf(object, answer)).await.unwrap_or(Ok(Vec::new()))
    }

    /// The number of the newest event.
    pub fn newest_event(&self) -> u64 {
        *self.newest.borrow()
    }

    /// Events from a number on, and then as they are committed.
    pub fn follow_events(&self, from: u64) -> Follow {
        Follow::of(self.clone(), self.newest.clone(), from)
    }

    /// Answers whether a subject may lease from a blueprint.
    ///
    /// It is looked at when a lease is granted, so that an answer that is withdrawn ends no lease that is held: whoever wants that
    /// releases it. Who waits is refused, where nothing else can serve him.
    pub async fn authorize(&self, authorization: Authorization) -> Result<(), RequestError> {
        let authorized = self.ask(|answer| Message::Authorize(authorization, answer)).await;
        authorized.unwrap_or(Err(RequestError::Stopped))
    }

    /// The owner is there, or still there.
    pub fn beat(&self, lease: LeaseId) {
        let _ = self.messages.send(Message::Attach(lease, None));
    }

    /// Binds a lease to whoever holds the attachment. A later attachment, or another owner, takes its place.
    pub fn attach(&self, lease: LeaseId) -> Attachment {
        let number = ATTACHMENTS.fetch_add(1, Ordering::Relaxed) + 1;
        let _ = self.messages.send(Message::Attach(lease.clone(), Some(number)));
        Attachment { messages: self.messages.clone(), lease, number }
    }

    /// Goes on with these blueprints. What others have made is drained: nobody gets it any more, whoever holds it keeps it, and then it
    /// goes. What those in `anew` have made goes in the same way, and is made again. Who waits for what cannot be had any more ends.
    pub async fn configure(&self, blueprints: Vec<Blueprint>, anew: BTreeSet<String>) -> Result<(), RequestError> {
        let configured = self.ask(|answer| Message::Configure(blueprints, anew, answer)).await;
        configured.unwrap_or(Err(RequestError::Stopped))
    }

    /// From now on the projects may have this.
    pub async fn set_quotas(&self, quotas: BTreeMap<String, Quota>) {
        self.ask(|answer| Message::Quotas(quotas, answer)).await;
    }

    /// Ends the thread after its present round. Leases stay as they are: whoever wants them given back releases them first.
    pub async fn stop(&self) {
        self.ask(Message::Stop).await;
    }

    async fn ask<T>(&self, message: impl FnOnce(Answer<T>) -> Message) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.messages.send(message(answer)).ok()?;
        answered.await.ok()
    }
}

/// The thread's own.
struct KeeperThread {
    store: Store,
    tables: Tables,
    effects: Arc<dyn Effects>,
    runtime: tokio::runtime::Handle,
    results: Sender<Message>,
    started: (Instant, Moment),
    dirty: BTreeSet<Object>,
    plan_is_due: bool,
    /// What the next plan must look at.
    look: Look,
    plan_again_at: Option<Moment>,
    timers: BTreeMap<Object, Moment>,
    tasks: HashMap<Object, (Operation, tokio::task::JoinHandle<()>)>,
    /// Rows whose open effect was begun by this process.
    begun: BTreeSet<Object>,
    /// Until when an owner must be heard of.
    owners: HashMap<LeaseId, Moment>,
    /// The newest attachment of a lease.
    attached: HashMap<LeaseId, u64>,
    /// When the process before this one was last alive, until that is credited.
    away_since: Option<Moment>,
    /// When this process last said on disk that it is alive.
    alive_at: Moment,
    corruption: Vec<Corruption>,
    /// Rows that nobody can make sense of.
    left_alone: BTreeSet<Object>,
    /// Things outside that had no row when they were first seen.
    strays: BTreeSet<(String, String)>,
    newest: watch::Sender<u64>,
    fences: HashMap<ResourceId, Arc<AtomicU64>>,
    passes: HashMap<LeaseId, Pass>,
    outlooks: Arc<Outlooks>,
    /// Whether the queue may have moved since it was told of, and before which moment it is not told again.
    telling: (Told, Moment),
    watchers: HashMap<LeaseId, watch::Sender<LeaseView>>,
    over: Vec<Object>,
    stopping: Option<Answer<()>>,
}

/// Whether those who wait know how the queue stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Everything,
    Behind,
}

impl KeeperThread {
    fn new(
        store: Store,
        tables: Tables,
        effects: Arc<dyn Effects>,
        results: Sender<Message>,
        newest: watch::Sender<u64>,
    ) -> KeeperThread {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        KeeperThread {
            store,
            tables,
            effects,
            runtime: tokio::runtime::Handle::current(),
            results,
            // From here on time only goes forward, whatever becomes of the wall clock.
            started: (Instant::now(), Moment(since_epoch.as_millis() as u64)),
            dirty: BTreeSet::new(),
            plan_is_due: true,
            look: Look::Everything,
            plan_again_at: None,
            timers: BTreeMap::new(),
            tasks: HashMap::new(),
            begun: BTreeSet::new(),
            owners: HashMap::new(),
            attached: HashMap::new(),
            away_since: None,
            alive_at: Moment(0),
            corruption: Vec::new(),
            left_alone: BTreeSet::new(),
            strays: BTreeSet::new(),
            newest,
            fences: HashMap::new(),
            passes: HashMap::new(),
            outlooks: Arc::default(),
            telling: (Told::Behind, Moment(0)),
            watchers: HashMap::new(),
            over: Vec::new(),
            stopping: None,
        }
    }

    fn now(&self) -> Moment {
        self.started.1.plus_ms(self.started.0.elapsed().as_millis() as u64)
    }

    fn context(&self) -> Context<'_> {
        Context { tables: &self.tables, now: self.now(), rules: Rules::default() }
    }

    fn run(mut self, inbox: Receiver<Message>) {
        // Before anybody asks: what is preallocated has its rows, and holders of before a restart have their passes.
        let mut round = round::Round::default();
        let corruption = std::mem::take(&mut self.corruption);
        self.contain(&corruption, &mut round);
        self.describe(&mut round);
        self.ask_for_everybody(&mut round);
        self.look_outside();
        self.finish(round);
        let mut first = None;
        loop {
            let mut round = round::Round::default();
            for message in first.take().into_iter().chain(inbox.try_iter()) {
                self.handle(message, &mut round);
            }
            let pause = self.finish(round);
            if let Some(stopped) = self.stopping.take() {
                self.tasks.drain().for_each(|(_, (_, task))| task.abort());
                // Whoever asked may be gone.
                let _ = stopped.send(());
                return;
            }
            match inbox.recv_timeout(pause) {
                Ok(message) => first = Some(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn handle(&mut self, message: Message, round: &mut round::Round) {
        match message {
            Message::Request(request, answer) => self.request(*request, answer, round),
            Message::Command(target, verb, by, answer) => {
                if !self.is_known(&target) {
                    return drop(answer.send(Err(RequestError::NoSuch(target))));
                }
                self.apply(Transition::ask(self.now(), target, verb, &by), round);
                round.answer(answer, Ok(()), |error| Err(RequestError::Store(error)));
            }
            Message::Watch(lease, answer) => drop(answer.send(self.watch(&lease))),
            Message::Snapshot(answer) => drop(answer.send(self.snapshot())),
            Message::Lease(id, answer) => drop(answer.send(self.lease(&id))),
            Message::CanEver(request, answer) => {
                drop(answer.send(can_ever(&self.tables, &request).map_err(RequestError::NeverFeasible)));
            }
            Message::FreeNow(request, answer) => drop(answer.send(self.free_now(*request))),
            Message::Events(from, answer) => drop(answer.send(self.store.events(from, EVENTS_AT_MOST))),
            Message::EventsOf(object, answer) => drop(answer.send(self.store.events_of(&object, EVENTS_AT_MOST))),
            Message::Authorize(authorization, answer) => {
                self.authorize(authorization, round);
                round.answer(answer, Ok(()), |error| Err(RequestError::Store(error)));
            }
            Message::Configure(blueprints, anew, answer) => {
                self.configure(blueprints);
                self.describe(round);
                self.make_anew(&anew, round);
                self.ask_for_everybody(round);
                round.answer(answer, Ok(()), |error| Err(RequestError::Store(error)));
            }
            Message::Quotas(quotas, answer) => {
                self.tables.quotas = quotas;
                self.look = Look::Everything;
                self.plan_is_due = true;
                let _ = answer.send(());
            }
            Message::Stop(answer) => self.stopping = Some(answer),
            Message::Attach(lease, number) => {
                self.attached.extend(number.map(|number| (lease.clone(), number)));
                self.attach(lease);
            }
            Message::OwnerGone(lease, number) => {
                if self.attached.get(&lease) == Some(&number) {
                    self.owner_gone(&lease, round);
                }
            }
            Message::Outside(seen, outside) => self.seen_outside(seen, outside, round),
            Message::Done(object, operation, result) => self.done(object, operation, result, round),
        }
    }

    fn is_known(&self, object: &Object) -> bool {
        match object {
            Object::Lease(id) => self.tables.lease(id).is_some(),
            Object::Resource(id) => self.tables.resource(id).is_some(),
        }
    }

    fn request(
        &mut self,
        request: LeaseRequest,
        answer: Answer<Result<LeaseId, RequestError>>,
        round: &mut round::Round,
    ) {
        let id = request.id.clone();
        let known = self.tables.lease(&id).is_some() || self.store.lease(id.as_str()).is_ok_and(|it| it.is_some());
        if !known {
            if let Err(why) = can_ever(&self.tables, &request) {
                return drop(answer.send(Err(RequestError::NeverFeasible(why))));
            }
            let project = &request.authorizer;
            let queued = self.tables.quota(project).and_then(|quota| quota.queued);
            if let Some(queued) = queued.filter(|queued| self.tables.waiting(project) >= *queued as usize) {
                let project = project.clone();
                return drop(answer.send(Err(RequestError::TooMany { project, queued })));
            }
            self.ask_for(&request, round);
            let transition = admit(request, &self.context());
            self.apply(transition, round);
            self.attach(id.clone());
        }
        round.answer(answer, Ok(id), |error| Err(RequestError::Store(error)));
    }

    fn free_now(&self, request: LeaseRequest) -> Result<(), Vec<String>> {
        can_ever(&self.tables, &request).map_err(|why| vec![why])?;
        let asked = admit(request, &self.context());
        let free = asked.leases.first().map_or(Ok(()), |lease| free_now(&self.tables, lease, self.now()));
        free.map_err(|reasons| reasons.iter().map(ToString::to_string).collect())
    }

    fn lease(&self, id: &LeaseId) -> Option<Lease> {
        let alive = self.tables.lease(id).cloned();
        alive.or_else(|| self.store.lease(id.as_str()).ok().flatten())
    }

    fn watch(&mut self, id: &LeaseId) -> Option<watch::Receiver<LeaseView>> {
        if let Some(sender) = self.watchers.get(id) {
            return Some(sender.subscribe());
        }
        let lease = self.lease(id)?;
        let (sender, receiver) = watch::channel(self.view(&lease));
        if lease.state != LeaseState::Destroyed {
            self.watchers.insert(id.clone(), sender);
        }
        Some(receiver)
    }

    fn view(&self, lease: &Lease) -> LeaseView {
        let outlook = self.outlooks.get(lease.id()).filter(|_| lease.state == LeaseState::Pending);
        let resource = lease.resource.as_ref().and_then(|id| self.tables.resource(id));
        LeaseView {
            id: lease.id().clone(),
            version: lease.version,
            state: lease.state,
            cause: lease.cause.clone(),
            owner: lease.request.owner.clone(),
            place: outlook.map(|outlook| outlook.place),
            reasons: outlook.map_or_else(|| Arc::from([]), |outlook| Arc::clone(&outlook.reasons)),
            estimate: outlook.and_then(|outlook| outlook.estimate),
            holds: lease.resource.clone(),
            resource: resource.map(|resource| resource.name.clone()),
            resource_full_name: resource.map(|resource| resource.full_name.clone()),
            pass: self.passes.get(lease.id()).filter(|_| lease.state == LeaseState::Active).cloned(),
            expires: lease.deadlines.expires,
            needs_operator: lease.needs_operator.clone(),
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            at: self.now(),
            leases: self.tables.shared_leases().cloned().collect(),
            resources: self.tables.shared_resources().cloned().collect(),
            outlooks: Arc::clone(&self.outlooks),
            authorizations: self.tables.authorizations.values().cloned().collect(),
        }
    }

    fn configure(&mut self, blueprints: Vec<Blueprint>) {
        let new: BTreeMap<_, _> = blueprints.into_iter().map(|it| (it.name.clone(), it)).collect();
        let old = std::mem::replace(&mut self.tables.blueprints, new);
        for (name, old) in old {
            let made = self.tables.made_by(&name);
            match self.tables.blueprints.get_mut(&name) {
                Some(new) => (new.mean_hold_ms, new.before) = (old.mean_hold_ms, old.before),
                // What has made nothing that is still there needs no entry.
                None if made == 0 => {}
                None => {
                    let retired = Blueprint { service: Service::Retired, preallocated: 0, before: None, ..old };
                    self.tables.blueprints.insert(name, retired);
                }
            }
        }
        self.look = Look::Everything;
        self.plan_is_due = true;
    }

    fn read_authorizations(&mut self) -> Result<(), StoreError> {
        let all = self.store.authorizations()?.into_iter();
        self.tables.authorizations = all.map(|it| ((it.subject.clone(), it.blueprint.clone()), it)).collect();
        Ok(())
    }

    fn look_at_everything(&mut self) {
        self.dirty = self.tables.leases().map(Lease::object).collect();
        self.dirty.extend(self.tables.resources().map(Resource::object));
        self.plan_is_due = true;
        // Who was active before has his pass again when he asks.
        let active = self.tables.shared_leases().filter(|lease| lease.state == LeaseState::Active);
        let active: Vec<_> = active.filter(|lease| !self.passes.contains_key(lease.id())).cloned().collect();
        active.iter().for_each(|lease| drop(self.pass(lease)));
    }

    fn authorize(&mut self, authorization: Authorization, round: &mut round::Round) {
        let key = (authorization.subject.clone(), authorization.blueprint.clone());
        self.tables.authorizations.insert(key, authorization.clone());
        round.authorizations.push(authorization);
        self.look = Look::Everything;
        self.plan_is_due = true;
    }

    /// Where nobody has said yet whether a request may be served from something that fits it, the question is written down.
    fn ask_for(&mut self, request: &LeaseRequest, round: &mut round::Round) {
        for blueprint in unasked(&self.tables, request) {
            let authorization = Authorization {
                subject: request.authorizer.clone(),
                blueprint,
                state: AuthorizationState::Requested,
                by: request.owner.to_string(),
                at: self.now(),
            };
            self.authorize(authorization, round);
        }
    }

    fn ask_for_everybody(&mut self, round: &mut round::Round) {
        let first = |members: &BTreeSet<QueueKey>| members.first().and_then(|(.., id)| self.tables.lease(id));
        let lines = self.tables.lines().filter_map(|(_, members)| first(members));
        let requests: Vec<LeaseRequest> = lines.map(|lease| lease.request.clone()).collect();
        requests.iter().for_each(|request| self.ask_for(request, round));
    }

    fn attach(&mut self, id: LeaseId) {
        let Some(lease) = self.tables.lease(&id) else { return };
        match &lease.request.owner {
            Owner::Heartbeat { every_ms, .. } => {
                let until = self.now().plus_ms(every_ms.saturating_mul(recovery::BEATS_MISSED));
                self.owners.insert(id, until);
            }
            Owner::Job(_) | Owner::Connection(_) | Owner::Term(_) => drop(self.owners.remove(&id)),
        }
    }
}

#[cfg(test)]
mod size_tests;
#[cfg(test)]
mod tests;
