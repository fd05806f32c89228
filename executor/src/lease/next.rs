//! What a row does next, derived from the rows alone: after a restart nothing else is needed. ◆
//!
//! ```text
//!  an unread command ─► read it        a deadline has passed ─► its event        otherwise, by state:
//!
//!  lease     Pending: the allocator    Acquired: children, then Activate    Active: its deadline
//!            Releasing: Revoke ─► TearDown ─► release children ─► wait for them ─► Finish
//!  resource  Pending: children, then Activate       Active: its deadline    Draining: its leases, then Emptied
//!            Releasing: its leases ─► TearDown ─► release children ─► wait for them ─► Finish
//! ```

use super::rows::{Command, Deadlines, Lease, LeaseState, Moment, Object, Operation, Phase, Resource, ResourceState};
use super::steps::{Context, LeaseEvent, ResourceEvent, Rule, needs_release};

/// What an object does next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// A transition of a lease.
    Lease(LeaseEvent),
    /// A transition of a resource.
    Resource(ResourceEvent),
    /// Something outside; its result is the next event.
    Effect(Operation),
    /// Nothing before this moment, or before somebody else moves.
    Wait(Waits),
    /// It is over.
    Over,
}

/// What an object waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waits {
    /// On whom.
    pub on: Dependency,
    /// Until when at most.
    pub until: Option<Moment>,
}

/// Whose move it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dependency {
    /// The allocator's.
    Allocator,
    /// The owner's: it works.
    Owner,
    /// Another row's.
    Object(Object),
    /// The clock's: a failed effect is tried again.
    Clock,
    /// Nobody's: it is there to be leased.
    Nobody,
}

/// What a lease does next.
pub fn next_of_lease(lease: &Lease, context: &Context) -> Next {
    let object = lease.object();
    if let Some(command) = oldest_command(&object, context)
        && (lease.state != LeaseState::Pending || context.rules.hold(Rule::ReleaseFromAnyState))
    {
        return Next::Lease(LeaseEvent::Command(command.clone()));
    }
    let passed = |deadline: Option<Moment>| deadline.is_some_and(|at| at <= context.now);
    let Deadlines { queue, activate, expires, .. } = lease.deadlines;
    match lease.state {
        LeaseState::Pending if passed(queue) => Next::Lease(LeaseEvent::QueueEnded),
        LeaseState::Pending => wait(Dependency::Allocator, queue),
        LeaseState::Acquired if passed(activate) => Next::Lease(LeaseEvent::ActivationEnded),
        LeaseState::Acquired => next_of_acquired(lease, context),
        LeaseState::Active if passed(expires) => Next::Lease(LeaseEvent::Expired),
        LeaseState::Active => wait(Dependency::Owner, expires),
        LeaseState::Releasing => next_of_releasing(lease, context),
        LeaseState::Destroyed => Next::Over,
    }
}

fn next_of_acquired(lease: &Lease, context: &Context) -> Next {
    let resource = lease.resource.as_ref().and_then(|id| context.tables.resource(id));
    if let Some(resource) = resource.filter(|it| !matches!(it.state, ResourceState::Active | ResourceState::Draining)) {
        return wait(Dependency::Object(resource.object()), lease.deadlines.activate);
    }
    match context.tables.children(&lease.object()).find(|child| child.state != LeaseState::Active) {
        Some(child) => wait(Dependency::Object(child.object()), lease.deadlines.activate),
        None => Next::Effect(Operation::Activate),
    }
}

fn next_of_releasing(lease: &Lease, context: &Context) -> Next {
    match lease.phase {
        Phase::Whole if context.rules.hold(Rule::RevokeFirst) => Next::Effect(Operation::Revoke),
        Phase::Whole | Phase::Revoked => match lease.deadlines.retry.filter(|retry| *retry > context.now) {
            Some(retry) => wait(Dependency::Clock, Some(retry)),
            None => Next::Effect(Operation::TearDown),
        },
        Phase::TornDown => match children(&lease.object(), context) {
            Children::Unasked => Next::Lease(LeaseEvent::ReleaseChildren),
            Children::Going(child) => wait(Dependency::Object(child), None),
            Children::Gone => Next::Lease(LeaseEvent::Finish),
        },
    }
}

/// What a resource does next.
pub fn next_of_resource(resource: &Resource, context: &Context) -> Next {
    if let Some(command) = oldest_command(&resource.object(), context) {
        return Next::Resource(ResourceEvent::Command(command.clone()));
    }
    let passed = |deadline: Option<Moment>| deadline.is_some_and(|at| at <= context.now);
    let Deadlines { activate, expires, .. } = resource.deadlines;
    let holder = context.tables.holders(&resource.id).next().map(Lease::object);
    match (resource.state, holder) {
        (ResourceState::Pending, _) if passed(activate) => Next::Resource(ResourceEvent::ActivationEnded),
        (ResourceState::Pending, _) => next_of_pending_resource(resource, context),
        (ResourceState::Active | ResourceState::Draining, _) if passed(expires) => {
            Next::Resource(ResourceEvent::Expired)
        }
        (ResourceState::Active, _) => wait(Dependency::Nobody, expires),
        (ResourceState::Draining, Some(holder)) => wait(Dependency::Object(holder), expires),
        (ResourceState::Draining, None) => Next::Resource(ResourceEvent::Emptied),
        (ResourceState::Releasing, Some(holder)) if context.rules.hold(Rule::LeasesFirst) => {
            wait(Dependency::Object(holder), None)
        }
        (ResourceState::Releasing, _) => next_of_releasing_resource(resource, context),
        (ResourceState::Destroyed, _) => Next::Over,
    }
}

fn next_of_pending_resource(resource: &Resource, context: &Context) -> Next {
    if let Some(child) = context.tables.children(&resource.object()).find(|child| child.state != LeaseState::Active) {
        return wait(Dependency::Object(child.object()), resource.deadlines.activate);
    }
    match resource.deadlines.retry.filter(|retry| *retry > context.now) {
        Some(retry) => {
            let until = resource.deadlines.activate.map_or(retry, |activate| activate.min(retry));
            wait(Dependency::Clock, Some(until))
        }
        None => Next::Effect(Operation::Activate),
    }
}

fn next_of_releasing_resource(resource: &Resource, context: &Context) -> Next {
    if resource.phase != Phase::TornDown {
        return match resource.deadlines.retry.filter(|retry| *retry > context.now) {
            Some(retry) => wait(Dependency::Clock, Some(retry)),
            None => Next::Effect(Operation::TearDown),
        };
    }
    match children(&resource.object(), context) {
        Children::Unasked => Next::Resource(ResourceEvent::ReleaseChildren),
        Children::Going(child) => wait(Dependency::Object(child), None),
        Children::Gone => Next::Resource(ResourceEvent::Finish),
    }
}

enum Children {
    Unasked,
    Going(Object),
    Gone,
}

fn children(parent: &Object, context: &Context) -> Children {
    let mut first = None;
    for child in context.tables.children(parent) {
        if needs_release(context.tables, child) {
            return Children::Unasked;
        }
        first.get_or_insert_with(|| child.object());
    }
    first.map_or(Children::Gone, Children::Going)
}

fn oldest_command<'a>(object: &Object, context: &'a Context) -> Option<&'a Command> {
    context.tables.unread(object).next()
}

fn wait(on: Dependency, until: Option<Moment>) -> Next {
    Next::Wait(Waits { on, until })
}
