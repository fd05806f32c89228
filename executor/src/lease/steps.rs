//! The two tables: what may happen to a lease and to a resource, and all that changes with it. ◆
//!
//! | # | from | event (guard) | to | with it |
//! |---|---|---|---|---|
//! | L1 | – | [`admit`] | Pending | – |
//! | L2 | Pending | `Placed` (resource Active ∧ all keys free) | Acquired | fence, keys, child leases, parts that are made |
//! | L3 | Pending | release, `QueueEnded`, `NeverFeasible`, `OwnerGone` | Destroyed | command read |
//! | L4 | Acquired | `Activated` (children Active ∧ resource Active or Draining ∧ no unread release) | Active | deadlines |
//! | L5 | Acquired | resource lost, `ActivationFailed` that may pass (attempts left, no gang, no parent) | Releasing, requeue | avoid |
//! | L6 | Acquired | release, other `ActivationFailed`, `ActivationEnded`, `OwnerGone` | Releasing | command read; its project has used its time |
//! | L7 | Active | release, `Expired`, `OwnerGone`, resource lost | Releasing | command read; its project has used its time |
//! | L8 | Active | renew, expires (≤ the most), hand over | Active | deadline |
//! | L9 | Releasing | `HandlesClosed` | Releasing, Revoked | – |
//! | L10 | Releasing, Revoked | `TornDown`; abandon | Releasing, TornDown | – |
//! | L11 | Releasing, TornDown | `ReleaseChildren` | Releasing | release to every child |
//! | L12 | Releasing, Revoked | `TearDownFailed` | Releasing | back-off; a person is called after some |
//! | L13 | Releasing, TornDown | `Finish` (no children ∧ then = destroy) | Destroyed | **keys freed**, idle since |
//! | L14 | Releasing, TornDown | `Finish` (no children ∧ then = requeue); a release flips `then` | Pending | **keys freed** |
//! | L15 | Destroyed, any | a command that does not apply | the same | command read |
//!
//! | # | from | event (guard) | to | with it |
//! |---|---|---|---|---|
//! | R1 | – | [`make`] | Pending | keys |
//! | R2 | Pending | `Activated` (children Active) | Active | idle since |
//! | R3 | Pending | `ActivationFailed` that may pass (attempts left, its lease waits still) | Pending | back-off |
//! | R4 | Pending | other `ActivationFailed`, `ActivationEnded`, release, drain, lost | Releasing | lost to every lease on it |
//! | R5 | Active | drain | Draining | – |
//! | R6 | Draining | undrain | Active | – |
//! | R7 | Draining | `Emptied` (no leases) | Releasing | – |
//! | R8 | Active | reclaim (no lease ∧ idle for long enough); any | Releasing; the same | command read |
//! | R9 | Active, Draining | release, lost, `Expired` | Releasing | **lost to every lease on it** |
//! | R10 | Releasing | (leases remain: nothing may happen) | Releasing | – |
//! | R11 | Releasing (no leases) | `TornDown`, `TearDownFailed`, abandon, `ReleaseChildren` | Releasing | back-off; release to children |
//! | R12 | Releasing, TornDown | `Finish` (no children) | Destroyed | **keys freed** |
//! | R13 | Pending, Active, Draining | cordon, uncordon, try, retire, judge, failed, describe, expires, renew | the same | – |
//!
//! Beside the tables: a command is posted, an effect is about to be done, and [`credit`] moves deadlines when the farm was away.

use self::lease::LeaseStep;
use self::resource::ResourceStep;
use super::rows::*;
use super::tables::Tables;

#[cfg(test)]
pub use self::away::AWAY_MS_MAX;
pub use self::away::credit;

mod away;
mod lease;
mod resource;

/// Activations of a lease that fail before it gives up: the third DUT that does not come up is no accident.
pub const ACTIVATIONS_AT_MOST: u32 = 3;
/// Tear-downs that fail before a person is called: with the pauses below, after a minute.
pub const TEAR_DOWNS_BEFORE_OPERATOR: u32 = 6;
/// The first pause after a failed effect, doubled each time: a PDU that was busy answers a second later.
pub const PAUSE_MS: u64 = 1_000;
/// The longest pause after a failed effect: an operator who has mended something does not wait longer.
pub const PAUSE_MS_MAX: u64 = 30_000;

/// What may happen to a lease.
#[derive(Clone, Debug, PartialEq)]
pub enum LeaseEvent {
    /// The allocator has a place for it.
    Placed(Box<Grant>),
    /// Its oldest unread command.
    Command(Command),
    /// It waited too long.
    QueueEnded,
    /// It took too long to come up.
    ActivationEnded,
    /// Its time is over.
    Expired,
    /// Its owner is gone.
    OwnerGone,
    /// Nothing in the farm could ever serve it.
    NeverFeasible {
        /// Per candidate, why not.
        why: String,
    },
    /// It is brought up.
    Activated,
    /// It could not be brought up.
    ActivationFailed(Failure),
    /// No handle works any more, and nothing is in flight.
    HandlesClosed,
    /// Its effects are undone.
    TornDown,
    /// They could not be undone.
    TearDownFailed {
        /// What happened.
        why: String,
    },
    /// Its children are to go.
    ReleaseChildren,
    /// Its destroy phase is complete.
    Finish,
}

/// What may happen to a resource.
#[derive(Clone, Debug, PartialEq)]
pub enum ResourceEvent {
    /// Its oldest unread command.
    Command(Command),
    /// It is there.
    Activated {
        /// What a probe found.
        facts: Vec<(String, String)>,
    },
    /// It could not be made.
    ActivationFailed(Failure),
    /// It took too long to come up.
    ActivationEnded,
    /// Its time is over.
    Expired,
    /// It drains and nobody holds it any more.
    Emptied,
    /// It is gone outside.
    TornDown,
    /// It would not go.
    TearDownFailed {
        /// What happened.
        why: String,
    },
    /// Its children are to go.
    ReleaseChildren,
    /// Its destroy phase is complete.
    Finish,
}

/// How an activation failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What happened.
    pub why: String,
    /// Whether it may work elsewhere or later.
    pub hope: Hope,
}

/// Whether a failure may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hope {
    /// It may work elsewhere or later.
    Passing,
    /// It will fail again.
    Lasting,
}

/// What the allocator gives to a lease, all or nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Grant {
    /// The resource.
    pub resource: ResourceId,
    /// The keys of the lease itself.
    pub slots: Vec<String>,
    /// Its parts, in the order of their ranks.
    pub parts: Vec<Part>,
}

/// A part of a grant.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// What kind.
    pub kind: Kind,
    /// The resource that exists, or the one to make.
    pub on: PartOn,
    /// The keys of the child lease.
    pub slots: Vec<String>,
    /// How it is held.
    pub mode: Mode,
}

/// Where a part comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum PartOn {
    /// A resource that exists.
    Existing(ResourceId),
    /// It is made for this lease.
    Made {
        /// Its name.
        name: String,
        /// The key that it owns.
        identity: String,
    },
}

/// A pair of the table that is empty, or a guard that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{object} is {state} and cannot take {event}: {why}")]
pub struct Illegal {
    /// Whose.
    pub object: Object,
    /// Where it is.
    pub state: String,
    /// What should have happened.
    pub event: String,
    /// The guard, or that there is no such row.
    pub why: &'static str,
}

/// A rule of the tables that the model switches off, to see that it would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Keys are freed in the transition that ends the row.
    SlotsFreedAtTheEnd,
    /// A resource waits for its leases.
    LeasesFirst,
    /// Handles are closed before anything is torn down.
    RevokeFirst,
    /// Handles count as closed only when nothing is in flight.
    #[cfg(test)]
    Drain,
    /// Who is asked is woken in the same step.
    #[cfg(test)]
    WakeWithState,
    /// A row that is over stays over.
    GuardedCommands,
    /// A release is read in every state.
    ReleaseFromAnyState,
    /// The resource is looked at again when it is acquired.
    RecheckOnAcquire,
}

/// Which rules hold: all of them, outside of the model's own tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The one that does not.
    #[cfg(test)]
    pub off: Option<Rule>,
}

impl Rules {
    /// Whether a rule holds.
    pub fn hold(self, rule: Rule) -> bool {
        #[cfg(test)]
        return self.off != Some(rule);
        #[cfg(not(test))]
        {
            let _ = rule;
            true
        }
    }
}

/// What a step sees beside its row.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// All rows.
    pub tables: &'a Tables,
    /// The present.
    pub now: Moment,
    /// Which rules hold.
    pub rules: Rules,
}

/// L1: a request becomes a row.
pub fn admit(request: LeaseRequest, context: &Context) -> Transition {
    let now = context.now;
    let lease = Lease {
        version: 1,
        state: LeaseState::Pending,
        phase: Phase::Whole,
        then: Then::Destroy,
        cause: Cause::Requested,
        resource: None,
        fence: 0,
        seq: context.tables.last().serial + 1,
        attempts: 0,
        tear_downs_failed: 0,
        failed_on: Vec::new(),
        slots: Vec::new(),
        deadlines: Deadlines { queue: request.timeouts.queue_ms.map(|ms| now.plus_ms(ms)), ..Deadlines::default() },
        needs_operator: None,
        parent: None,
        building: None,
        reclaiming: None,
        acquired_at: None,
        requested_at: now,
        request,
    };
    let mut transition = Transition::new(now, lease.object(), Label::L1, Cause::Requested);
    transition.wakes = vec![Wake::Object(lease.object()), Wake::Allocator];
    transition.leases.push(lease);
    transition
}

/// R1: a plan becomes a row. `resource` is whole but for its number.
pub fn make(mut resource: Resource, context: &Context) -> Transition {
    resource.serial = context.tables.last().serial + 1;
    resource.id = row_id(&resource.name, resource.serial);
    let mut transition = Transition::new(context.now, resource.object(), Label::R1, resource.cause.clone());
    transition.taken = resource.slots.iter().map(|slot| (slot.clone(), resource.object())).collect();
    if let Some(lease) = resource.made_for.as_ref().and_then(|id| context.tables.lease(id)) {
        let building = Some(resource.id.clone());
        transition.leases.push(Lease { version: lease.version + 1, building, ..lease.clone() });
    }
    transition.wakes = vec![Wake::Object(resource.object())];
    transition.resources.push(resource);
    transition
}

/// The table of leases.
pub fn step_lease(lease: &Lease, context: &Context, event: LeaseEvent) -> Result<Transition, Illegal> {
    use LeaseEvent as E;
    use LeaseState::{Acquired, Active, Destroyed, Pending, Releasing};
    let step = LeaseStep { lease, context };
    match (lease.state, event) {
        (_, E::Command(command)) => Ok(step.command(&command)),

        (Pending, E::Placed(grant)) => step.placed(*grant),
        (Pending, E::QueueEnded) => Ok(step.over(Label::L3, Cause::QueueTimeout)),
        (Pending, E::NeverFeasible { why }) => Ok(step.over(Label::L3, Cause::NeverFeasible { why })),
        (Pending, E::OwnerGone) => Ok(step.over(Label::L3, Cause::OwnerGone)),

        (Acquired, E::Activated) => step.activated(),
        (Acquired, E::ActivationFailed(failure)) => Ok(step.activation_failed(failure)),
        (Acquired, E::ActivationEnded) => Ok(step.release(Label::L6, Cause::ActivateTimeout)),
        (Acquired, E::OwnerGone) => Ok(step.release(Label::L6, Cause::OwnerGone)),

        (Active, E::Expired) => Ok(step.release(Label::L7, Cause::Expired)),
        (Active, E::OwnerGone) => Ok(step.release(Label::L7, Cause::OwnerGone)),

        (Releasing, E::HandlesClosed) => step.handles_closed(),
        (Releasing, E::TornDown) => step.torn_down(),
        (Releasing, E::TearDownFailed { why }) => step.tear_down_failed(why),
        (Releasing, E::ReleaseChildren) => step.release_children(),
        (Releasing, E::Finish) => step.finish(),

        // The allocator, a timer or an effect was slower than something else. Its word is void.
        (
            Acquired | Active | Releasing | Destroyed,
            event @ (E::Placed(_) | E::QueueEnded | E::NeverFeasible { .. }),
        )
        | (Pending | Active | Releasing | Destroyed, event @ (E::Activated | E::ActivationFailed(_)))
        | (Pending | Active | Releasing | Destroyed, event @ E::ActivationEnded)
        | (Pending | Acquired | Releasing | Destroyed, event @ E::Expired)
        | (Releasing | Destroyed, event @ E::OwnerGone)
        | (
            Pending | Acquired | Active | Destroyed,
            event @ (E::HandlesClosed | E::TornDown | E::TearDownFailed { .. } | E::ReleaseChildren | E::Finish),
        ) => Err(step.illegal(&event, "the table has no such row")),
    }
}

/// The table of resources.
pub fn step_resource(resource: &Resource, context: &Context, event: ResourceEvent) -> Result<Transition, Illegal> {
    use ResourceEvent as E;
    use ResourceState::{Active, Destroyed, Draining, Pending, Releasing};
    let step = ResourceStep { resource, context };
    match (resource.state, event) {
        (_, E::Command(command)) => Ok(step.command(&command)),

        (Pending, E::Activated { facts }) => step.activated(facts),
        (Pending, E::ActivationFailed(failure)) => Ok(step.activation_failed(failure)),
        (Pending, E::ActivationEnded) => Ok(step.end(Label::R4, Cause::ActivateTimeout)),

        (Draining, E::Emptied) => step.emptied(),
        (Active | Draining, E::Expired) => Ok(step.end(Label::R9, Cause::Expired)),

        (Releasing, E::TornDown) => step.torn_down(),
        (Releasing, E::TearDownFailed { why }) => step.tear_down_failed(why),
        (Releasing, E::ReleaseChildren) => step.release_children(),
        (Releasing, E::Finish) => step.finish(),

        (
            Active | Draining | Releasing | Destroyed,
            event @ (E::Activated { .. } | E::ActivationFailed(_) | E::ActivationEnded),
        )
        | (Pending | Active | Releasing | Destroyed, event @ E::Emptied)
        | (Pending | Releasing | Destroyed, event @ E::Expired)
        | (
            Pending | Active | Draining | Destroyed,
            event @ (E::TornDown | E::TearDownFailed { .. } | E::ReleaseChildren | E::Finish),
        ) => Err(step.illegal(&event, "the table has no such row")),
    }
}

/// The pause after the `failures`-th failure.
pub fn pause_ms(failures: u32) -> u64 {
    PAUSE_MS.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(PAUSE_MS_MAX)
}

fn row_id(name: &str, serial: u64) -> ResourceId {
    format!("{name}#{serial}").into()
}

/// Releases the children that were not asked yet, the last claimed first.
fn post_to_children(tables: &Tables, transition: &mut Transition) {
    let mut children: Vec<_> = tables.children(&transition.object.clone()).collect();
    children.sort_by_key(|child| std::cmp::Reverse(child.seq));
    for child in children {
        if needs_release(tables, child) {
            transition.post(child.object(), Verb::Release { cause: Cause::ParentEnds }, "what it is a part of");
        }
    }
}

/// Whether nobody has asked a child to end yet.
pub fn needs_release(tables: &Tables, child: &Lease) -> bool {
    !matches!(child.state, LeaseState::Releasing | LeaseState::Destroyed)
        && !tables.unread(&child.object()).any(|command| matches!(command.verb, Verb::Release { .. }))
}

fn freed(slots: &mut Vec<String>, owner: &Object) -> Vec<(String, Object)> {
    std::mem::take(slots).into_iter().map(|slot| (slot, owner.clone())).collect()
}

impl Verb {
    /// Whether whoever reads it is not there afterwards.
    pub fn ends(&self) -> bool {
        matches!(self, Verb::Release { .. } | Verb::ResourceLost { .. })
    }
}

#[cfg(test)]
mod tests;
