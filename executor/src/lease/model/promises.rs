//! What must hold after every transition (I1–I16).

use super::*;
use crate::lease::steps::Grant;

impl World {
    pub(super) fn check(&self, promise: &'static str, holds: bool, what: impl FnOnce() -> String) -> Result {
        if holds { Ok(()) } else { Err(Broken { promise, what: what() }) }
    }

    /// I6: fences grow. I7: a command is read once, and by whom it asks. I15: what is held back is only given to whom it serves.
    pub(super) fn check_transition(&mut self, transition: &Transition) -> Result {
        for resource in &transition.resources {
            let before = self.tables.resource(&resource.id).map_or(0, |before| before.fence);
            let acquired = transition.leases.iter().any(|lease| {
                lease.resource.as_ref() == Some(&resource.id)
                    && lease.state == LeaseState::Acquired
                    && lease.request.want.mode == Mode::Hold
            });
            let grows = if acquired && transition.label == Label::L2 {
                resource.fence > before
            } else {
                resource.fence >= before
            };
            self.check("I6", grows, || {
                format!("the fence of {} goes from {before} to {}", resource.id, resource.fence)
            })?;
        }
        for lease in transition.leases.iter().filter(|it| transition.label == Label::L2 && it.parent.is_none()) {
            let resource = lease.resource.as_ref().and_then(|id| self.tables.resource(id));
            let purpose = lease.request.want.purpose;
            self.check("I15", resource.is_some_and(|it| it.serves(purpose)), || {
                format!("{} gets {resource:?}", lease.id())
            })?;
        }
        self.check_used(transition)?;
        for id in &transition.consumed {
            let first = self.read.insert(*id);
            self.check("I7", first, || format!("command {id} is read twice"))?;
        }
        Ok(())
    }

    /// I16: what a project has used is the sum over all that it gave back, each piece of time by its age; nothing is lost or counted twice.
    fn check_used(&mut self, transition: &Transition) -> Result {
        let Object::Lease(id) = &transition.object else { return Ok(()) };
        let (Label::L6 | Label::L7, Some(lease)) = (transition.label, self.tables.lease(id)) else { return Ok(()) };
        let is_held = matches!(lease.state, LeaseState::Acquired | LeaseState::Active);
        let want = &lease.request.want;
        if is_held && lease.parent.is_none() && want.purpose.is_work() && want.mode == Mode::Hold {
            let held = (lease.acquired_at.expect("it was held"), transition.at);
            self.held.entry(lease.request.authorizer.clone()).or_default().push(held);
        }
        for used in &transition.used {
            let held = self.held.get(&used.project).into_iter().flatten();
            let expected: f64 = held.clone().map(|held| worth_ms(*held, transition.at)).sum();
            // Rounded with each lease that was given back; less than a minute is forgotten.
            let bound = if used.ms == 0 { 60_000.0 } else { 0.0 } + held.count() as f64;
            self.check("I16", (used.ms as f64 - expected).abs() <= bound, || {
                format!("{} has used {expected} ms, and {} ms are written down", used.project, used.ms)
            })?;
            if used.ms == 0 {
                self.held.remove(&used.project);
            }
        }
        Ok(())
    }

    pub(super) fn check_rows(&self) -> Result {
        for (key, owner) in self.tables.slots() {
            let alive = match owner {
                Object::Lease(id) => self.tables.lease(id).is_some_and(|lease| lease.state != LeaseState::Destroyed),
                Object::Resource(id) => {
                    self.tables.resource(id).is_some_and(|resource| resource.state != ResourceState::Destroyed)
                }
            };
            self.check("I1", alive, || format!("{key} belongs to {owner}, which is over"))?;
        }
        for lease in self.tables.leases() {
            self.check_lease(lease)?;
        }
        for blueprint in self.tables.blueprints.values() {
            self.check_limit(blueprint)?;
        }
        Ok(())
    }

    fn check_lease(&self, lease: &Lease) -> Result {
        let object = lease.object();
        let owned = lease.slots.iter().all(|slot| self.tables.owner(slot) == Some(&object));
        let holds = owned && !lease.slots.is_empty();
        self.check("I2", lease.is_held() == holds, || {
            format!("{object} is {:?} and holds {:?}", lease.state, lease.slots)
        })?;
        if lease.state == LeaseState::Destroyed {
            return Ok(());
        }
        if let Some(id) = &lease.resource {
            let there = self.tables.resource(id).is_some_and(|resource| resource.state != ResourceState::Destroyed);
            self.check("I3", there, || format!("{object} is on {id}, which is over"))?;
        }
        if let Some(Object::Lease(id)) = &lease.parent {
            let parent = self.tables.lease(id).is_some_and(|parent| parent.state != LeaseState::Destroyed);
            self.check("I8", parent, || format!("{object} outlives lease {id}"))?;
        }
        self.check_gang(lease)
    }

    /// I14: a gang is held whole or not at all, and so is a DUT with its parts.
    fn check_gang(&self, lease: &Lease) -> Result {
        if !matches!(lease.state, LeaseState::Acquired | LeaseState::Active) {
            return Ok(());
        }
        if let Some(gang) = &lease.request.gang {
            let mut others = self.tables.leases().filter(|other| other.state == LeaseState::Pending);
            let waits = others.find(|other| other.request.gang.as_ref() == Some(gang));
            self.check("I14", waits.is_none() || lease.parent.is_some(), || {
                format!("{} has a place, {waits:?} waits", lease.id())
            })?;
        }
        let Some(resource) = lease.resource.as_ref().and_then(|id| self.tables.resource(id)) else { return Ok(()) };
        let parts = resource.gang.len() + lease.request.also.len();
        let object = lease.object();
        let children = self.tables.children(&object).count();
        let told = self.tables.unread(&object).any(|command| command.verb.ends());
        self.check("I14", children == parts || told, || format!("{object} has {children} of {parts} parts"))
    }

    fn check_limit(&self, blueprint: &Blueprint) -> Result {
        let alive = |resource: &&Resource| resource.state != ResourceState::Destroyed;
        let count = self.tables.resources().filter(alive).filter(|it| it.blueprint == blueprint.name).count();
        self.check("I11", count <= blueprint.limit as usize, || format!("{count} of {}", blueprint.name))?;
        let Some(pool) = &blueprint.pool else { return Ok(()) };
        let in_pool = |resource: &&Resource| {
            let made_by = self.tables.blueprints.get(&resource.blueprint);
            made_by.and_then(|made_by| made_by.pool.as_ref()).is_some_and(|other| other.name == pool.name)
        };
        let count = self.tables.resources().filter(alive).filter(in_pool).count();
        self.check("I11", count <= pool.limit as usize, || format!("{count} in pool {}", pool.name))
    }

    /// I4: a write arrives under the newest hold, and its lease is still allowed to make it.
    pub(super) fn check_write(&self, id: &LeaseId, fence: u64) -> Result {
        let lease = self.tables.lease(id);
        let may = lease.is_some_and(|lease| {
            let resource = lease.resource.as_ref().and_then(|id| self.tables.resource(id));
            lease.is_held() && lease.phase == Phase::Whole && resource.is_some_and(|resource| resource.fence == fence)
        });
        self.check("I4", may, || format!("lease {id} (fence {fence}) writes although it is {lease:?}"))
    }

    /// I5: whoever tears down still owns its keys, and a resource has nobody on it.
    pub(super) fn check_tear_down(&self, object: &Object) -> Result {
        match object {
            Object::Lease(id) => {
                let lease = self.tables.lease(id);
                let owns = lease.is_some_and(|lease| {
                    !lease.slots.is_empty() && lease.slots.iter().all(|slot| self.tables.owner(slot) == Some(object))
                });
                self.check("I5", owns, || format!("{object} tears down what it does not hold: {lease:?}"))
            }
            Object::Resource(id) => {
                let holder = self.tables.holders(id).next();
                self.check("I5", holder.is_none(), || format!("{object} is torn down under {holder:?}"))
            }
        }
    }

    /// I10: nobody gets what an earlier request, which stands alone and needs nothing else, could have had.
    pub(super) fn check_order(&self, grants: &[(LeaseId, Grant)]) -> Result {
        let Some((first, _)) = grants.first() else { return Ok(()) };
        let members: Vec<&LeaseId> = grants.iter().map(|(id, _)| id).collect();
        let earlier = queue(&self.tables, self.now).into_iter().take_while(|lease| lease.id() != first);
        for lease in earlier.filter(|lease| lease.request.gang.is_none() && lease.request.also.is_empty()) {
            for (id, grant) in grants {
                let could = !members.contains(&lease.id()) && self.could_have(lease, &grant.resource);
                self.check("I10", !could, || format!("{id} gets {}, which {} waits for", grant.resource, lease.id()))?;
            }
        }
        Ok(())
    }

    fn could_have(&self, lease: &Lease, id: &ResourceId) -> bool {
        let Some(resource) = self.tables.resource(id) else { return false };
        let want = &lease.request.want;
        resource.serves(want.purpose)
            && want.kind == resource.kind
            && want.name.as_ref().is_none_or(|name| resource.is_called(name))
            && want.tags.iter().all(|tag| resource.tags.contains(tag))
    }

    /// I9: at rest, every row waits for somebody, and the allocator has nothing to decide.
    pub(super) fn check_rest(&self) -> Result {
        self.check_moving("at rest")?;
        let decisions = plan(&self.tables, self.now).decisions;
        self.check("I9", decisions.is_empty(), || format!("nobody makes these decisions: {decisions:?}"))
    }

    /// I9: who can go on will be looked at.
    pub(super) fn check_moving(&self, when: &str) -> Result {
        for lease in self.tables.leases() {
            self.check_next(when, lease.object(), next_of_lease(lease, &self.context()))?;
        }
        for resource in self.tables.resources() {
            self.check_next(when, resource.object(), next_of_resource(resource, &self.context()))?;
        }
        for asked in self.tables.asked() {
            let seen = self.dirty.contains(asked);
            self.check("I9", seen, || format!("{when}, {asked} has an unread command and nobody looks"))?;
        }
        Ok(())
    }

    fn check_next(&self, when: &str, object: Object, next: Next) -> Result {
        let flying = self.flights.iter().any(|flight| matches!(flight, Flight::Effect(other, _) if *other == object));
        let looked_at = self.dirty.contains(&object);
        let moves = match &next {
            Next::Lease(_) | Next::Resource(_) | Next::Effect(_) => looked_at || flying,
            Next::Wait(waits) => {
                let timed = waits.until.is_none_or(|until| self.timers.get(&object).is_some_and(|at| *at <= until));
                let dependency = match &waits.on {
                    Dependency::Object(other) => self.is_alive(other),
                    Dependency::Clock => waits.until.is_some(),
                    Dependency::Allocator | Dependency::Owner | Dependency::Nobody => true,
                };
                dependency && (timed || looked_at || flying)
            }
            Next::Over => true,
        };
        self.check("I9", moves, || format!("{when}, {object} should go on with {next:?}, and nobody looks"))
    }

    fn is_alive(&self, object: &Object) -> bool {
        match object {
            Object::Lease(id) => self.tables.lease(id).is_some_and(|lease| lease.state != LeaseState::Destroyed),
            Object::Resource(id) => {
                self.tables.resource(id).is_some_and(|resource| resource.state != ResourceState::Destroyed)
            }
        }
    }

    /// I13, where there is a store: the events lead to the rows.
    pub(super) fn check_replay(&mut self) -> Result {
        let Some(store) = &self.store else { return Ok(()) };
        let events = store.events(1, u32::MAX).expect("the store can be read");
        let base = store.base().expect("the store can be read");
        let replayed = Tables::replay(base, &events);
        self.check("I13", replayed.is_ok(), || format!("{replayed:?}"))?;
        let mut replayed = replayed.expect("it was checked above");
        let over: Vec<Object> =
            replayed.leases().map(Lease::object).chain(replayed.resources().map(Resource::object)).collect();
        over.iter().for_each(|object| replayed.forget(object));
        self.forget(0);
        replayed.blueprints.clone_from(&self.tables.blueprints);
        replayed.quotas.clone_from(&self.tables.quotas);
        self.check("I13", replayed == self.tables, || "the events lead to other rows".to_owned())
    }
}

/// What a hold counts at a moment: the area below the curve that halves at each half-life.
fn worth_ms((from, until): (Moment, Moment), now: Moment) -> f64 {
    let half_life = HALF_LIFE_MS as f64;
    let left = |at: Moment| (-(now.0 as f64 - at.0 as f64) / half_life).exp2();
    (left(until) - left(from)) * half_life / std::f64::consts::LN_2
}
