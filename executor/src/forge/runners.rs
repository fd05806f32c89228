//! The farm's runners on forges of one kind: which there are, and how each asks its instance for jobs while a DUT that it means is free.
//!
//! ```text
//!  farm file, DUTs ─► Runners::keep_in_step ─► one Asker per runner (a source) ─► carry.rs: one job
//!       (looked at every few seconds)                 ▲ refused passes                 │
//!                                                     └────────────────────────────────┘
//!  a source:  a pass? ─► a free DUT? ─► Asker::ask ─┬─ a job: a carrier takes it ─┐
//!     ▲                                              ├─ none, failures             │ once the farm has it
//!     └─────────────────── a pause ◄─────────────────┴─────────────────────────────┘
//! ```
//! A DUT may get taken while a question is open, and a job comes all the same: it waits in the farm's queue then.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::carry::{Carriers, Errand};
use super::room::room;
use crate::config::gitlab::Per;
use crate::farm::{Farm, ForgeDut, Forges, TargetOverride};

/// Between two looks at the farm file and the DUTs' tags: a reload shows on the forge within seconds.
const LOOK: Duration = Duration::from_secs(2);
/// Refused passes that wait: one per runner at most, and a farm of hundreds may have them all refused at once.
const REFUSALS_MAX: usize = 64;
/// Between two questions: GitLab's own runner asks every 3 s where no question is kept open, Forgejo's every 2 s, and a farm is many runners.
const QUESTION_EVERY: Duration = Duration::from_secs(3);
/// The longest pause after failures.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long a job that was taken may need to be in the farm's queue: its description may have to be fetched.
const TAKING: Duration = Duration::from_secs(120);

/// All runners on forges of one kind.
pub(super) trait Runners: Send + 'static {
    /// One that there shall be.
    type Runner: Clone + PartialEq + Send + Sync + 'static;
    /// What one shows its instance.
    type Pass: Clone + PartialEq + Send + Sync + 'static;
    /// One that asks.
    type Asker: Asker<Runner = Self::Runner, Pass = Self::Pass>;

    /// Which there shall be now, by keys that outlive restarts; the instances were told so, as far as they let us.
    fn keep_in_step(&mut self, forges: &Forges) -> impl Future<Output = BTreeMap<String, Self::Runner>> + Send;
    /// What those of them show that can ask for jobs.
    fn passes(&mut self, wanted: &BTreeMap<String, Self::Runner>) -> BTreeMap<String, Self::Pass>;
    /// The instance did not want this pass.
    fn was_refused(&mut self, key: &str, runner: &Self::Runner, pass: &Self::Pass) -> impl Future<Output = ()> + Send;
    /// The one with this key.
    fn asker(&self, key: &str) -> Self::Asker;
}

/// A runner that asks for jobs, with what one question tells the next.
pub(super) trait Asker: Send + 'static {
    type Runner: Clone + PartialEq + Send + Sync + 'static;
    type Pass: Clone + PartialEq + Send + Sync + 'static;
    /// A job that it was given.
    type Errand: Errand<Runner = Self::Runner>;

    /// What must be free before it asks, and in whose name.
    fn needs(runner: &Self::Runner) -> (&TargetOverride, String);
    /// Asks once. When it is asked to do so again, the farm has what it was given.
    fn ask(&mut self, runner: &Self::Runner, pass: &Self::Pass) -> impl Future<Output = Asked<Self::Errand>> + Send;
}

/// What a question brought.
pub(super) enum Asked<J> {
    Job(Box<J>),
    /// No job.
    Nothing,
    /// The pass is no longer good.
    Refused,
    /// Something else; a sentence, and whether the server said when to ask again.
    Failed(String, Option<Duration>),
}

/// Takes up what an earlier run left; then keeps runners registered and asking, for as long as the farm lives.
pub(super) fn take<R: Runners>(
    runners: R,
    farm: &Arc<Farm>,
    carriers: &Arc<Carriers>,
) -> impl Future<Output = ()> + Send + use<R> {
    carriers.resume::<<R::Asker as Asker>::Errand>(farm);
    supervise(runners, Arc::downgrade(farm), Arc::clone(carriers))
}

async fn supervise<R: Runners>(mut runners: R, farm: Weak<Farm>, carriers: Arc<Carriers>) {
    let (passes, all_passes) = watch::channel(BTreeMap::new());
    let (refusals, mut refused) = mpsc::channel(REFUSALS_MAX);
    let desk = Desk { farm: Weak::clone(&farm), passes: all_passes, refusals, carriers };
    let mut sources: BTreeMap<String, watch::Sender<R::Runner>> = BTreeMap::new();
    loop {
        let Some(forges) = farm.upgrade().map(|farm| farm.forges()) else { return };
        let wanted = runners.keep_in_step(&forges).await;
        // A source whose sender is gone ends after its question.
        sources.retain(|key, source| wanted.contains_key(key) && !source.is_closed());
        for (key, runner) in &wanted {
            let source = sources.entry(key.clone()).or_insert_with(|| {
                let (sender, receiver) = watch::channel(runner.clone());
                tokio::spawn(run(desk.clone(), key.clone(), runners.asker(key), receiver));
                sender
            });
            tell(source, runner.clone());
        }
        tell(&passes, runners.passes(&wanted));
        tokio::select! {
            () = sleep(LOOK) => {}
            Some((key, pass)) = refused.recv() => if let Some(runner) = wanted.get(&key) {
                runners.was_refused(&key, runner, &pass).await;
            }
        }
    }
}

/// Only what is new wakes anybody.
fn tell<T: PartialEq>(who: &watch::Sender<T>, now: T) {
    who.send_if_modified(|before| {
        let is_other = *before != now;
        *before = now;
        is_other
    });
}

/// What all sources share.
#[derive(Clone)]
struct Desk<P> {
    farm: Weak<Farm>,
    passes: watch::Receiver<BTreeMap<String, P>>,
    /// Keys and passes that a server did not want.
    refusals: mpsc::Sender<(String, P)>,
    carriers: Arc<Carriers>,
}

/// Asks until `wanted` is no longer sent, or the farm stops.
async fn run<A: Asker>(desk: Desk<A::Pass>, key: String, asker: A, wanted: watch::Receiver<A::Runner>) {
    let Some(stopping) = desk.farm.upgrade().map(|farm| farm.stopping()) else { return };
    tokio::select! {
        () = stopping => {}
        () = ask(&desk, &key, asker, wanted) => {}
    }
}

async fn ask<A: Asker>(desk: &Desk<A::Pass>, key: &str, mut asker: A, mut wanted: watch::Receiver<A::Runner>) {
    let mut passes = desk.passes.clone();
    let mut failures = 0;
    while wanted.has_changed().is_ok() {
        let runner = wanted.borrow_and_update().clone();
        let pass = tokio::select! {
            held = passes.wait_for(|all| all.contains_key(key)) => match held.ok().and_then(|all| all.get(key).cloned()) {
                Some(pass) => pass,
                None => return,
            },
            _ = wanted.changed() => continue,
        };
        let (target, name) = A::needs(&runner);
        tokio::select! {
            () = room(&desk.farm, target, &name) => {}
            _ = wanted.changed() => continue,
        }
        let next = Instant::now() + QUESTION_EVERY;
        match asker.ask(&runner, &pass).await {
            Asked::Job(errand) => {
                failures = 0;
                let (taken, is_taken) = oneshot::channel();
                desk.carriers.begin(&desk.farm, *errand, runner, taken);
                // Else the same DUT would look free a second time.
                let _ = timeout(TAKING, is_taken).await;
                continue;
            }
            Asked::Nothing => failures = 0,
            Asked::Refused => {
                let _ = desk.refusals.send((key.to_owned(), pass.clone())).await;
                // Until it was looked at, and another pass is there or this one is tried again.
                let _ = passes.wait_for(|all| all.get(key) != Some(&pass)).await;
            }
            Asked::Failed(why, after) => {
                if failures == 0 {
                    tracing::warn!(runner = key, "{why}");
                }
                failures += 1;
                sleep(after.unwrap_or(Duration::from_secs(1 << failures.min(6))).min(PAUSE_MAX)).await;
            }
        }
        sleep_until(next).await;
    }
}

/// What one runner of the farm file means: each of its DUTs, or all of them together.
pub(super) struct Meant {
    /// Its part in the runner's key.
    pub dut: String,
    /// What the forge shows people.
    pub name: String,
    pub tags: Vec<String>,
    pub target: TargetOverride,
}

/// The DUTs with these tags, or the one of this name; a class of none is no runner.
pub(super) fn meant(duts: &[ForgeDut], per: Per, class: &str, tags: &[String], dut: Option<&str>) -> Vec<Meant> {
    let duts: Vec<_> = duts.iter().filter(|it| it.is_meant(tags, dut)).collect();
    match (per, dut) {
        (Per::Class, None) if duts.is_empty() => Vec::new(),
        (Per::Class, None) => vec![Meant {
            dut: "*".to_owned(),
            name: class.to_owned(),
            tags: ForgeDut::common_tags(&duts),
            target: TargetOverride { id: None, tags: Some(tags.to_vec()) },
        }],
        (Per::Dut, _) | (Per::Class, Some(_)) => {
            let of = |dut: &ForgeDut| Meant {
                dut: dut.id.clone(),
                name: dut.full_name.clone(),
                tags: dut.tags.clone(),
                target: TargetOverride { id: Some(dut.id.clone()), tags: None },
            };
            duts.into_iter().map(of).collect()
        }
    }
}
