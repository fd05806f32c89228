//! The rows L2 to L15: what each changes. The table is in [`super`]. ◆

use super::*;

pub(super) struct LeaseStep<'a> {
    pub lease: &'a Lease,
    pub context: &'a Context<'a>,
}

impl LeaseStep<'_> {
    pub fn placed(&self, grant: Grant) -> Result<Transition, Illegal> {
        let resource = self
            .context
            .tables
            .resource(&grant.resource)
            .ok_or_else(|| self.illegal(&"Placed", "the resource does not exist"))?;
        let parts = grant.parts.iter().filter_map(|part| match &part.on {
            PartOn::Existing(id) => Some(id),
            PartOn::Made { .. } => None,
        });
        let is_active = |id| self.context.tables.resource(id).is_some_and(|it| it.state == ResourceState::Active);
        if !parts.chain([&grant.resource]).all(is_active) && self.context.rules.hold(Rule::RecheckOnAcquire) {
            return Err(self.illegal(&"Placed", "the resource or a part of it is not active"));
        }
        if !resource.serves(self.lease.request.want.purpose) {
            return Err(self.illegal(&"Placed", "the resource is held back"));
        }
        let mut keys = grant.slots.iter().chain(grant.parts.iter().flat_map(|part| &part.slots));
        if keys.any(|key| self.context.tables.owner(key).is_some()) {
            return Err(self.illegal(&"Placed", "a key of it has another owner"));
        }
        let holds = self.lease.request.want.mode == Mode::Hold;
        let fence = resource.fence + u64::from(holds);
        let (mut lease, mut transition) = self.next_owned(Label::L2, Cause::Placed);
        let now = self.context.now;
        lease.state = LeaseState::Acquired;
        lease.resource = Some(resource.id.clone());
        lease.fence = fence;
        lease.slots.clone_from(&grant.slots);
        lease.acquired_at = Some(now);
        lease.building = None;
        lease.reclaiming = None;
        lease.deadlines.activate = lease.request.timeouts.activate_ms.map(|ms| now.plus_ms(ms));
        transition.leases[0] = lease.clone();
        transition.taken = grant.slots.into_iter().map(|slot| (slot, lease.object())).collect();
        transition.resources.push(Resource {
            version: resource.version + 1,
            fence,
            idle_since: None,
            ..resource.clone()
        });
        self.add_parts(&mut transition, &lease, grant.parts);
        Ok(transition)
    }

    fn add_parts(&self, transition: &mut Transition, lease: &Lease, parts: Vec<Part>) {
        let mut serial = self.context.tables.last().serial;
        for part in parts {
            let resource = match part.on {
                PartOn::Existing(id) => {
                    let Some(found) = self.context.tables.resource(&id) else { continue };
                    let fence = found.fence + u64::from(part.mode == Mode::Hold);
                    Resource { version: found.version + 1, fence, idle_since: None, ..found.clone() }
                }
                PartOn::Made { name, identity } => {
                    serial += 1;
                    let made = made_part(part.kind, name, identity, serial, lease);
                    transition.taken.extend(made.slots.iter().map(|slot| (slot.clone(), made.object())));
                    made
                }
            };
            serial += 1;
            let child = child_lease(lease, &resource, part.slots, part.mode, serial, self.context.now);
            transition.taken.extend(child.slots.iter().map(|slot| (slot.clone(), child.object())));
            transition.wakes.extend([Wake::Object(resource.object()), Wake::Object(child.object())]);
            transition.resources.push(resource);
            transition.leases.push(child);
        }
    }

    pub fn activated(&self) -> Result<Transition, Illegal> {
        let event = LeaseEvent::Activated;
        let usable = self
            .lease
            .resource
            .as_ref()
            .and_then(|id| self.context.tables.resource(id))
            .is_some_and(|it| matches!(it.state, ResourceState::Active | ResourceState::Draining));
        if !usable {
            return Err(self.illegal(&event, "its resource is not active"));
        }
        let object = self.lease.object();
        if self.context.tables.children(&object).any(|child| child.state != LeaseState::Active) {
            return Err(self.illegal(&event, "a child of it is not active"));
        }
        if self.context.tables.unread(&object).any(|command| command.verb.ends()) {
            return Err(self.illegal(&event, "a command to end waits to be read"));
        }
        let (mut lease, mut transition) = self.next_owned(Label::L4, Cause::Activated);
        let now = self.context.now;
        let timeouts = lease.request.timeouts;
        lease.state = LeaseState::Active;
        lease.deadlines.queue = None;
        lease.deadlines.activate = None;
        lease.deadlines.expires_at_most = timeouts.hold_ms_max.map(|ms| now.plus_ms(ms));
        lease.deadlines.expires = timeouts.hold_ms.map(|ms| now.plus_ms(ms)).or(lease.deadlines.expires_at_most);
        transition.journal = Journal::Closed;
        transition.wakes.extend(self.lease.parent.clone().map(Wake::Object));
        transition.leases[0] = lease;
        Ok(transition)
    }

    pub fn activation_failed(&self, failure: Failure) -> Transition {
        let cause = Cause::ActivationFailed { why: failure.why.clone() };
        let mut transition = match failure.hope {
            Hope::Passing => self.lost(cause),
            Hope::Lasting => self.release(Label::L6, cause),
        };
        if let (Hope::Passing, Some(resource)) = (failure.hope, &self.lease.resource) {
            transition.post(Object::Resource(resource.clone()), Verb::Failed { why: failure.why }, "a lease on it");
        }
        transition
    }

    /// L5, or L6 when a second try is of no use: a part goes with its whole, a gang with its members.
    fn lost(&self, cause: Cause) -> Transition {
        let retry = self.lease.attempts + 1 < ACTIVATIONS_AT_MOST
            && self.lease.parent.is_none()
            && self.lease.request.gang.is_none();
        if !retry {
            return self.release(Label::L6, cause);
        }
        let mut transition = self.release(Label::L5, cause);
        let lease = &mut transition.leases[0];
        lease.then = Then::Requeue;
        lease.attempts += 1;
        let name = lease.resource.as_ref().and_then(|id| self.context.tables.resource(id));
        lease.failed_on.extend(name.map(|resource| resource.name.clone()));
        transition
    }

    pub fn command(&self, command: &Command) -> Transition {
        use LeaseState::{Acquired, Active, Destroyed, Pending, Releasing};
        let by = command.by.clone();
        let mut transition = match (self.lease.state, &command.verb) {
            (Pending, Verb::Release { cause }) => self.over(Label::L3, cause.clone()),
            (Acquired, Verb::Release { cause }) => self.release(Label::L6, cause.clone()),
            (Active, Verb::Release { cause }) => self.release(Label::L7, cause.clone()),
            (Releasing, Verb::Release { cause }) => self.flip(cause.clone()),
            (Acquired, Verb::ResourceLost { why }) => self.lost(Cause::ResourceLost { why: why.clone() }),
            (Active, Verb::ResourceLost { why }) => self.release(Label::L7, Cause::ResourceLost { why: why.clone() }),
            (Active, Verb::Renew { until: at } | Verb::Expires { at }) => self.renew(*at, Cause::Renewed { by }),
            (Pending | Acquired | Active, Verb::HandOver { owner }) => {
                let (mut lease, mut transition) = self.next_owned(Label::L8, Cause::HandedOver { by });
                lease.request.owner = owner.clone();
                transition.leases[0] = lease;
                transition
            }
            (Releasing, Verb::Abandon { reason }) if self.lease.needs_operator.is_some() => {
                let (mut lease, mut transition) =
                    self.next_owned(Label::L10, Cause::Abandoned { by, reason: reason.clone() });
                lease.phase = Phase::TornDown;
                lease.needs_operator = None;
                transition.journal = Journal::Closed;
                transition.leases[0] = lease;
                transition
            }
            (Destroyed, Verb::Release { cause }) if !self.context.rules.hold(Rule::GuardedCommands) => {
                self.release(Label::L7, cause.clone())
            }
            (Pending, Verb::ResourceLost { .. } | Verb::Renew { .. } | Verb::Expires { .. } | Verb::Abandon { .. }) => {
                self.refuse("it waits in the queue")
            }
            (Acquired, Verb::Renew { .. } | Verb::Expires { .. } | Verb::Abandon { .. }) => {
                self.refuse("it is not active yet")
            }
            (Active, Verb::Abandon { .. }) => self.refuse("nothing is stuck"),
            (
                Releasing,
                Verb::ResourceLost { .. }
                | Verb::Renew { .. }
                | Verb::Expires { .. }
                | Verb::HandOver { .. }
                | Verb::Abandon { .. },
            ) => self.refuse("it is being released"),
            (
                Destroyed,
                Verb::Release { .. }
                | Verb::ResourceLost { .. }
                | Verb::Renew { .. }
                | Verb::Expires { .. }
                | Verb::HandOver { .. }
                | Verb::Abandon { .. },
            ) => self.refuse("it is over"),
            (
                Pending | Acquired | Active | Releasing | Destroyed,
                Verb::Drain
                | Verb::Undrain
                | Verb::Reclaim
                | Verb::Cordon { .. }
                | Verb::Uncordon
                | Verb::Try { .. }
                | Verb::Retire { .. }
                | Verb::Judge { .. }
                | Verb::Failed { .. }
                | Verb::Describe { .. },
            ) => self.refuse("that is asked of resources only"),
        };
        transition.consumed.push(command.id);
        transition.wakes.push(Wake::Object(self.lease.object()));
        transition
    }

    fn flip(&self, cause: Cause) -> Transition {
        if self.lease.then == Then::Destroy {
            return self.refuse("it is being released already");
        }
        let (mut lease, mut transition) = self.next_owned(Label::L14, cause.clone());
        lease.then = Then::Destroy;
        lease.cause = cause;
        transition.leases[0] = lease;
        transition
    }

    fn renew(&self, until: Moment, cause: Cause) -> Transition {
        let (mut lease, mut transition) = self.next_owned(Label::L8, cause);
        lease.deadlines.expires = Some(lease.deadlines.expires_at_most.map_or(until, |most| most.min(until)));
        transition.leases[0] = lease;
        transition
    }

    /// L3: nothing was done, so nothing is to be undone.
    pub fn over(&self, label: Label, cause: Cause) -> Transition {
        let (mut lease, mut transition) = self.next_owned(label, cause.clone());
        lease.state = LeaseState::Destroyed;
        lease.cause = cause;
        lease.deadlines = Deadlines::default();
        transition.leases[0] = lease;
        transition.wakes.push(Wake::Allocator);
        self.tell_gang(&mut transition);
        transition
    }

    /// Into the destroy phase.
    pub fn release(&self, label: Label, cause: Cause) -> Transition {
        let (mut lease, mut transition) = self.next_owned(label, cause.clone());
        lease.state = LeaseState::Releasing;
        lease.phase = Phase::Whole;
        lease.then = Then::Destroy;
        lease.tear_downs_failed = 0;
        lease.deadlines = Deadlines { queue: lease.deadlines.queue, ..Deadlines::default() };
        lease.cause = cause.clone();
        transition.leases[0] = lease;
        // What was half brought up is undone whole; the journal's line has its result.
        transition.journal = Journal::Closed;
        if matches!(label, Label::L5 | Label::L6) {
            self.tell_gang(&mut transition);
        }
        // What the farm could not bring up, and tries again elsewhere, is on nobody's account.
        if label != Label::L5 {
            transition.used = self.context.tables.used_by(self.lease, self.context.now);
        }
        self.tell_parent(&mut transition, &cause);
        transition
    }

    fn tell_gang(&self, transition: &mut Transition) {
        let Some(gang) = &self.lease.request.gang else { return };
        let member = self.lease.id();
        let others = self.context.tables.leases().filter(|other| {
            other.request.gang.as_ref() == Some(gang)
                && other.id() != member
                && !matches!(other.state, LeaseState::Releasing | LeaseState::Destroyed)
        });
        for other in others {
            let cause = Cause::GangBroken { member: member.clone() };
            transition.post(other.object(), Verb::Release { cause }, "the gang");
        }
    }

    /// A part that ends by itself takes its whole along.
    fn tell_parent(&self, transition: &mut Transition, cause: &Cause) {
        let Some(parent) = self.lease.parent.as_ref().filter(|_| *cause != Cause::ParentEnds) else { return };
        let tables = self.context.tables;
        let ends = match parent {
            Object::Lease(id) => tables
                .lease(id)
                .is_none_or(|lease| matches!(lease.state, LeaseState::Releasing | LeaseState::Destroyed)),
            Object::Resource(id) => tables
                .resource(id)
                .is_none_or(|resource| matches!(resource.state, ResourceState::Releasing | ResourceState::Destroyed)),
        };
        if !ends {
            let why = format!("its {}: {cause}", self.lease.request.want.kind);
            transition.post(parent.clone(), Verb::ResourceLost { why }, self.lease.id().as_str());
        }
    }

    pub fn handles_closed(&self) -> Result<Transition, Illegal> {
        if self.lease.phase != Phase::Whole {
            return Err(self.illegal(&LeaseEvent::HandlesClosed, "they are closed already"));
        }
        let (mut lease, mut transition) = self.next_owned(Label::L9, self.lease.cause.clone());
        lease.phase = Phase::Revoked;
        transition.leases[0] = lease;
        Ok(transition)
    }

    pub fn torn_down(&self) -> Result<Transition, Illegal> {
        self.check_tear_down(&LeaseEvent::TornDown)?;
        let (mut lease, mut transition) = self.next_owned(Label::L10, self.lease.cause.clone());
        if !self.context.rules.hold(Rule::SlotsFreedAtTheEnd) && !lease.slots.is_empty() {
            // Drydock's order: the keys first, the state in a later transaction.
            transition.freed = freed(&mut lease.slots, &self.lease.object());
            transition.wakes.push(Wake::Allocator);
        } else {
            lease.phase = Phase::TornDown;
        }
        lease.needs_operator = None;
        lease.deadlines.retry = None;
        transition.journal = Journal::Closed;
        transition.leases[0] = lease;
        Ok(transition)
    }

    pub fn tear_down_failed(&self, why: String) -> Result<Transition, Illegal> {
        self.check_tear_down(&LeaseEvent::TearDownFailed { why: why.clone() })?;
        let (mut lease, mut transition) = self.next_owned(Label::L12, Cause::TearDownFailed { why: why.clone() });
        lease.tear_downs_failed += 1;
        lease.deadlines.retry = Some(self.context.now.plus_ms(pause_ms(lease.tear_downs_failed)));
        if lease.tear_downs_failed >= TEAR_DOWNS_BEFORE_OPERATOR {
            lease.needs_operator = Some(why);
        }
        transition.journal = Journal::Closed;
        transition.leases[0] = lease;
        Ok(transition)
    }

    fn check_tear_down(&self, event: &LeaseEvent) -> Result<(), Illegal> {
        match self.lease.phase {
            Phase::Whole if self.context.rules.hold(Rule::RevokeFirst) => {
                Err(self.illegal(event, "its handles are not closed"))
            }
            Phase::Whole | Phase::Revoked => Ok(()),
            Phase::TornDown => Err(self.illegal(event, "it is torn down already")),
        }
    }

    pub fn release_children(&self) -> Result<Transition, Illegal> {
        if self.lease.phase != Phase::TornDown {
            return Err(self.illegal(&LeaseEvent::ReleaseChildren, "it is not torn down"));
        }
        let mut transition =
            Transition::new(self.context.now, self.lease.object(), Label::L11, self.lease.cause.clone());
        post_to_children(self.context.tables, &mut transition);
        Ok(transition)
    }

    pub fn finish(&self) -> Result<Transition, Illegal> {
        if self.lease.phase != Phase::TornDown {
            return Err(self.illegal(&LeaseEvent::Finish, "it is not torn down"));
        }
        if self.context.tables.children(&self.lease.object()).next().is_some() {
            return Err(self.illegal(&LeaseEvent::Finish, "it has children"));
        }
        let label = match self.lease.then {
            Then::Destroy => Label::L13,
            Then::Requeue => Label::L14,
        };
        let (mut lease, mut transition) = self.next_owned(label, self.lease.cause.clone());
        transition.freed = freed(&mut lease.slots, &self.lease.object());
        self.leave_resource(&mut transition);
        match self.lease.then {
            Then::Destroy => {
                lease.state = LeaseState::Destroyed;
                lease.deadlines = Deadlines::default();
            }
            Then::Requeue => {
                lease.state = LeaseState::Pending;
                lease.phase = Phase::Whole;
                lease.then = Then::Destroy;
                lease.resource = None;
                lease.acquired_at = None;
                lease.tear_downs_failed = 0;
            }
        }
        transition.wakes.push(Wake::Allocator);
        transition.wakes.extend(self.lease.parent.clone().map(Wake::Object));
        transition.leases[0] = lease;
        Ok(transition)
    }

    fn leave_resource(&self, transition: &mut Transition) {
        let tables = self.context.tables;
        let Some(resource) = self.lease.resource.as_ref().and_then(|id| tables.resource(id)) else { return };
        transition.wakes.push(Wake::Object(resource.object()));
        if resource.keep == Keep::WithItsLease
            && !matches!(resource.state, ResourceState::Releasing | ResourceState::Destroyed)
        {
            transition.post(resource.object(), Verb::Release { cause: Cause::ParentEnds }, self.lease.id().as_str());
        }
        if resource.state == ResourceState::Destroyed {
            return;
        }
        let mut next = Resource { version: resource.version + 1, ..resource.clone() };
        if tables.holders(&resource.id).all(|holder| holder.id() == self.lease.id()) {
            next.idle_since = Some(self.context.now);
        }
        // What failed on it before is not forgotten: only a job that came to its own end says that it is well again.
        let is_new = next.health == Health::Unknown && next.failures == 0;
        if is_new && matches!(self.lease.cause, Cause::Released { .. } | Cause::Expired) {
            next.health = Health::Good;
        }
        transition.resources.push(next);
    }

    fn refuse(&self, why: &str) -> Transition {
        let cause = Cause::Refused { why: why.to_owned() };
        Transition::new(self.context.now, self.lease.object(), Label::L15, cause)
    }

    /// The next version of the lease, which the transition already has: the caller puts the changed one in its place.
    fn next_owned(&self, label: Label, cause: Cause) -> (Lease, Transition) {
        let mut transition = Transition::new(self.context.now, self.lease.object(), label, cause);
        let lease = Lease { version: self.lease.version + 1, ..self.lease.clone() };
        transition.wakes.push(Wake::Object(lease.object()));
        transition.leases.push(lease.clone());
        (lease, transition)
    }

    pub fn illegal(&self, event: &dyn std::fmt::Debug, why: &'static str) -> Illegal {
        let (state, event) = (format!("{:?}", self.lease.state), format!("{event:?}"));
        Illegal { object: self.lease.object(), state, event, why }
    }
}

/// A part that lives as long as the lease that it is made for.
fn made_part(kind: Kind, name: String, identity: String, serial: u64, lease: &Lease) -> Resource {
    Resource {
        id: row_id(&name, serial),
        serial,
        version: 1,
        kind,
        blueprint: String::new(),
        full_name: name.clone(),
        name,
        tags: Vec::new(),
        seats: 1,
        gang: Vec::new(),
        keep: Keep::WithItsLease,
        state: ResourceState::Pending,
        phase: Phase::Whole,
        cause: Cause::Placed,
        fence: 1,
        admin: Admin::Enabled,
        health: Health::Unknown,
        failures: 0,
        attempts: 0,
        tear_downs_failed: 0,
        slots: vec![identity],
        deadlines: Deadlines { activate: lease.deadlines.activate, ..Deadlines::default() },
        needs_operator: None,
        idle_since: None,
        idle_ms_min: 0,
        made_for: Some(lease.id().clone()),
        facts: Vec::new(),
    }
}

/// The lease on a part: acquired together with its whole, and bounded by it.
fn child_lease(parent: &Lease, on: &Resource, slots: Vec<String>, mode: Mode, seq: u64, now: Moment) -> Lease {
    let request = LeaseRequest {
        // Never given twice: a lease that waits again and gets the same resource has other children.
        id: format!("{}/{}:{}.{}", parent.id(), on.kind, on.name, seq).into(),
        want: Want { kind: on.kind, name: Some(on.name.clone()), tags: Vec::new(), mode, purpose: Purpose::Work },
        also: Vec::new(),
        gang: None,
        prefers: Vec::new(),
        avoid: Vec::new(),
        sticky: None,
        timeouts: Timeouts::default(),
        ..parent.request.clone()
    };
    Lease {
        request,
        version: 1,
        state: LeaseState::Acquired,
        phase: Phase::Whole,
        then: Then::Destroy,
        cause: Cause::Placed,
        resource: Some(on.id.clone()),
        fence: on.fence,
        seq,
        attempts: 0,
        tear_downs_failed: 0,
        failed_on: Vec::new(),
        slots,
        deadlines: Deadlines::default(),
        needs_operator: None,
        parent: Some(parent.object()),
        building: None,
        reclaiming: None,
        acquired_at: Some(now),
        requested_at: now,
    }
}
