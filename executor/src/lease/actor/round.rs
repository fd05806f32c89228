//! One round of the keeper: everything that may move moves in memory, then one commit, then the world hears of it.

use super::*;
use crate::lease::allocator::{Decision, Look, Outlook, outlooks, plan_with};
use crate::lease::next::{Next, next_of_lease, next_of_resource};
use crate::lease::steps::{Failure, Grant, Hope, LeaseEvent, ResourceEvent, make, pause_ms, step_lease, step_resource};

/// Plans in one round: a grant and what follows from it take two or three; the rest waits for the next commit.
const PLANS_AT_MOST: u32 = 16;
/// After the queue was told how it stands, it is told again when this many times as long has passed as that took: a twentieth of a core
/// is what telling may cost, and a small farm is told at once.
const TELLING_SHARE: u32 = 20;
/// The longest that people in the queue hear nothing new: a person who watches does not mind.
const TELLING_PAUSE_MAX: Duration = Duration::from_secs(2);

/// What waits for the commit.
#[derive(Default)]
pub(super) struct Round {
    batch: Vec<Transition>,
    pub(super) authorizations: Vec<Authorization>,
    starts: Vec<(Object, Operation)>,
    answers: Vec<Box<dyn FnOnce(Option<String>)>>,
}

impl Round {
    /// Answers once the commit is through, or has failed.
    pub(super) fn answer<T: 'static>(
        &mut self,
        answer: Answer<T>,
        done: T,
        failed: impl FnOnce(String) -> T + 'static,
    ) {
        self.answers.push(Box::new(move |error| {
            // Whoever asked may be gone.
            let _ = answer.send(match error {
                None => done,
                Some(error) => failed(error),
            });
        }));
    }
}

impl KeeperThread {
    /// Moves what moves, commits, starts effects. Says how long nothing happens by itself.
    pub(super) fn finish(&mut self, mut round: Round) -> Duration {
        self.credit(&mut round);
        self.wake_the_due(&mut round);
        self.settle(&mut round);
        let error = match self.store.commit_with(&round.batch, &round.authorizations) {
            Ok(()) => None,
            Err(error) => Some(error.to_string()),
        };
        round.answers.drain(..).for_each(|answer| answer(error.clone()));
        if let Some(error) = error {
            tracing::error!(%error, "the leases cannot be kept; nothing moves until they can");
            self.read_again();
            return COMMIT_PAUSE;
        }
        self.away_since = None;
        if let Some(newest) = round.batch.last() {
            self.alive_at = newest.at;
            self.newest.send_replace(self.tables.last().event);
        }
        for (object, operation) in std::mem::take(&mut round.starts) {
            self.start(&object, operation);
        }
        self.tell();
        self.publish(&round.batch);
        self.forget();
        self.say_alive();
        self.until_next()
    }

    pub(super) fn apply(&mut self, mut transition: Transition, round: &mut Round) {
        self.tables.number(&mut transition);
        if let Err(conflict) = self.tables.apply(&transition) {
            // Planned on rows that have moved since: whoever planned looks again.
            tracing::debug!(%conflict, "a plan came too late");
            self.plan_is_due = true;
            return;
        }
        for wake in &transition.wakes {
            match wake {
                Wake::Object(object) => drop(self.dirty.insert(object.clone())),
                Wake::Allocator => self.plan_is_due = true,
            }
        }
        if transition.journal == Journal::Closed {
            self.begun.remove(&transition.object);
        }
        if matches!(transition.cause, Cause::HandedOver { .. }) {
            transition.leases.iter().for_each(|lease| self.expect_new_owner(lease));
        }
        self.back_off(&transition);
        self.hand_down(&transition);
        self.learn(&transition);
        if transition.resources.iter().any(|resource| self.goes_for_good(resource)) {
            self.look = Look::Everything;
        }
        round.batch.push(transition);
    }

    /// Whether nothing makes such a resource again, so that somebody may wait for it in vain.
    fn goes_for_good(&self, resource: &Resource) -> bool {
        let retired = |blueprint: &Blueprint| blueprint.service == Service::Retired;
        resource.state == ResourceState::Releasing
            && resource.keep == Keep::OnItsOwn
            && self.tables.blueprints.get(&resource.blueprint).is_none_or(retired)
    }

    /// A blueprint whose resource could not be made pauses; one that was made ends the pause.
    fn back_off(&mut self, transition: &Transition) {
        let until = match (transition.label, &transition.cause) {
            (Label::R4, Cause::ActivationFailed { .. } | Cause::ActivateTimeout) => {
                Service::BackOff(transition.at.plus_ms(pause_ms(u32::MAX)))
            }
            (Label::R2, _) => Service::Open,
            _ => return,
        };
        let Some(resource) = transition.resources.first() else { return };
        if let Some(blueprint) = self.tables.blueprints.get_mut(&resource.blueprint)
            && blueprint.service != Service::Retired
        {
            blueprint.service = until;
        }
    }

    /// A machine of the inventory that is made anew is the same machine: what was thought of it stays.
    fn hand_down(&mut self, transition: &Transition) {
        let Some(resource) = transition.resources.first() else { return };
        let Some(blueprint) = self.tables.blueprints.get_mut(&resource.blueprint) else { return };
        let is_one = blueprint.limit == 1 && blueprint.idle_ms_max.is_none();
        if is_one && blueprint.service != Service::Retired && resource.keep == Keep::OnItsOwn {
            blueprint.before = match transition.label {
                Label::R12 => Some(Standing {
                    admin: resource.admin.clone(),
                    health: resource.health,
                    failures: resource.failures,
                }),
                Label::R1 => None,
                _ => return,
            };
        }
    }

    /// How long leases on a blueprint last, for the estimates of those who wait: a mean in which the last eight weigh most.
    fn learn(&mut self, transition: &Transition) {
        let Some(lease) = transition.leases.first().filter(|_| transition.label == Label::L13) else { return };
        let Some(acquired) = lease.acquired_at else { return };
        let blueprint = lease.resource.as_ref().and_then(|id| self.tables.resource(id)).map(|it| it.blueprint.clone());
        let Some(blueprint) = blueprint.and_then(|name| self.tables.blueprints.get_mut(&name)) else { return };
        let held_ms = transition.at.0.saturating_sub(acquired.0);
        blueprint.mean_hold_ms = Some(blueprint.mean_hold_ms.map_or(held_ms, |mean| (mean * 7 + held_ms) / 8));
    }

    fn wake_the_due(&mut self, round: &mut Round) {
        let now = self.now();
        let due = self.timers.iter().filter(|(_, at)| **at <= now).map(|(object, _)| object.clone());
        self.dirty.extend(due.collect::<Vec<_>>());
        let silent: Vec<_> = self.owners.iter().filter(|(_, at)| **at <= now).map(|(id, _)| id.clone()).collect();
        silent.iter().for_each(|id| self.owner_gone(id, round));
        self.plan_is_due |= self.plan_again_at.is_some_and(|at| at <= now);
    }

    pub(super) fn owner_gone(&mut self, id: &LeaseId, round: &mut Round) {
        self.owners.remove(id);
        if !self.left_alone.contains(&Object::Lease(id.clone())) {
            self.lease_event(id, LeaseEvent::OwnerGone, round);
        }
    }

    fn settle(&mut self, round: &mut Round) {
        for _ in 0..PLANS_AT_MOST {
            while let Some(object) = self.dirty.pop_first() {
                self.look_at(&object, round);
            }
            if !std::mem::take(&mut self.plan_is_due) {
                return;
            }
            let look = std::mem::replace(&mut self.look, Look::Free);
            let plan = plan_with(&self.tables, self.now(), look);
            self.plan_again_at = plan.again_at;
            self.telling.0 = Told::Behind;
            plan.decisions.into_iter().for_each(|decision| self.decide(decision, round));
        }
        self.plan_again_at = Some(self.now());
    }

    fn look_at(&mut self, object: &Object, round: &mut Round) {
        self.timers.remove(object);
        if self.left_alone.contains(object) {
            return;
        }
        let next = match object {
            Object::Lease(id) => self.tables.lease(id).map(|lease| next_of_lease(lease, &self.context())),
            Object::Resource(id) => self.tables.resource(id).map(|it| next_of_resource(it, &self.context())),
        };
        match (object, next.unwrap_or(Next::Over)) {
            (Object::Lease(id), Next::Lease(LeaseEvent::Expired)) => self.expire(id, round),
            (Object::Lease(id), Next::Lease(event)) => self.lease_event(id, event, round),
            (Object::Resource(id), Next::Resource(event)) => self.resource_event(id, event, round),
            (_, Next::Effect(operation)) => self.want(object, operation, round),
            (_, Next::Wait(waits)) => self.timers.extend(waits.until.map(|until| (object.clone(), until))),
            (_, Next::Over) => self.over.push(object.clone()),
            (Object::Lease(_), Next::Resource(_)) | (Object::Resource(_), Next::Lease(_)) => {}
        }
    }

    /// The last moment at which somebody may ask for more time.
    fn expire(&mut self, id: &LeaseId, round: &mut Round) {
        let Some(lease) = self.tables.lease(id) else { return };
        let now = self.now();
        let allowed = |until: &Moment| lease.deadlines.expires_at_most.is_none_or(|most| *until <= most);
        let longer = self.effects.veto(lease).map(|longer| now.plus_ms(longer.as_millis() as u64));
        match longer.filter(|until| *until > now).filter(allowed) {
            Some(until) => {
                let renew =
                    Transition::ask(now, lease.object(), Verb::Renew { until }, "its owner, at the last moment");
                self.apply(renew, round);
            }
            None => self.lease_event(id, LeaseEvent::Expired, round),
        }
    }

    pub(super) fn lease_event(&mut self, id: &LeaseId, event: LeaseEvent, round: &mut Round) {
        let Some(lease) = self.tables.lease(id) else { return };
        match step_lease(lease, &self.context(), event) {
            Ok(transition) => self.apply(transition, round),
            Err(illegal) => tracing::debug!(%illegal, "an event came too late"),
        }
    }

    fn resource_event(&mut self, id: &ResourceId, event: ResourceEvent, round: &mut Round) {
        let Some(resource) = self.tables.resource(id) else { return };
        match step_resource(resource, &self.context(), event) {
            Ok(transition) => self.apply(transition, round),
            Err(illegal) => tracing::debug!(%illegal, "an event came too late"),
        }
    }

    fn decide(&mut self, decision: Decision, round: &mut Round) {
        let now = self.now();
        match decision {
            Decision::Grant(grants) => {
                // Earlier decisions of the same plan have moved rows: a gang is tried on the side first, so that it is never half placed.
                if grants.len() > 1 && !self.all_can_be_placed(&grants) {
                    self.plan_is_due = true;
                    return;
                }
                for (id, grant) in grants {
                    self.lease_event(&id, LeaseEvent::Placed(Box::new(grant)), round);
                }
            }
            Decision::Build(resource) => {
                let transition = make(*resource, &self.context());
                self.apply(transition, round);
            }
            Decision::Reclaim { resource, lease } => {
                let by = lease.as_ref().map_or_else(|| "the farm".to_owned(), |id| format!("lease {id}"));
                let mut transition = Transition::ask(now, Object::Resource(resource.clone()), Verb::Reclaim, &by);
                if let Some(lease) = lease.and_then(|id| self.tables.lease(&id)) {
                    let reclaiming = Some(resource);
                    transition.leases.push(Lease { version: lease.version + 1, reclaiming, ..lease.clone() });
                }
                self.apply(transition, round);
            }
            Decision::Drain(resource) => {
                self.apply(Transition::ask(now, Object::Resource(resource), Verb::Drain, "the farm file"), round);
            }
            Decision::Never { lease, why } => self.lease_event(&lease, LeaseEvent::NeverFeasible { why }, round),
        }
    }

    fn all_can_be_placed(&self, grants: &[(LeaseId, Grant)]) -> bool {
        let mut trial = self.tables.clone();
        grants.iter().all(|(id, grant)| {
            let Some(lease) = trial.lease(id) else { return false };
            let context = Context { tables: &trial, ..self.context() };
            let Ok(mut transition) = step_lease(lease, &context, LeaseEvent::Placed(Box::new(grant.clone()))) else {
                return false;
            };
            trial.number(&mut transition);
            trial.apply(&transition).is_ok()
        })
    }

    /// The intent goes into this round's commit; the effect starts after it.
    fn want(&mut self, object: &Object, operation: Operation, round: &mut Round) {
        let runs = self.tasks.get(object).is_some_and(|(other, task)| *other == operation && !task.is_finished());
        if runs || round.starts.iter().any(|(other, same)| other == object && *same == operation) {
            return;
        }
        if operation == Operation::Activate && self.tables.open_effect(object).is_none() {
            let mut intent = Transition::new(self.now(), object.clone(), Label::Intent, Cause::Requested);
            let fence = match object {
                Object::Lease(id) => self.tables.lease(id).map_or(0, |lease| lease.fence),
                Object::Resource(_) => 0,
            };
            let intent_at = intent.at;
            intent.intents.push(Effect { id: 0, object: object.clone(), operation, fence, intent_at });
            self.apply(intent, round);
            self.begun.insert(object.clone());
        }
        round.starts.push((object.clone(), operation));
    }

    fn start(&mut self, object: &Object, operation: Operation) {
        let unclear = self.tables.open_effect(object).filter(|_| operation == Operation::Activate);
        let effect = match unclear.filter(|_| !self.begun.contains(object)).cloned() {
            Some(effect) => self.reconcile(&effect),
            None => match self.effect(object, operation) {
                Some(effect) => effect,
                None => return,
            },
        };
        // What was under way for this row ends first: nothing of it may arrive later.
        let before = self.tasks.remove(object).map(|(_, task)| task);
        let (results, object_then) = (self.results.clone(), object.clone());
        let task = self.runtime.spawn(async move {
            if let Some(before) = before {
                before.abort();
                let _ = before.await;
            }
            let result = effect.await;
            // The keeper's inbox lives as long as its thread.
            let _ = results.send(Message::Done(object_then, operation, result));
        });
        self.tasks.insert(object.clone(), (operation, task));
    }

    fn reconcile(&self, effect: &Effect) -> BoxFuture<'static, EffectResult> {
        let asked = self.effects.reconcile(effect);
        Box::pin(async move {
            match asked.await {
                Reconciled::Applied => EffectResult::Worked(Vec::new()),
                Reconciled::NotApplied => EffectResult::Again,
                Reconciled::Unknown => EffectResult::Failed(EffectError::MaybeApplied(
                    "the farm was stopped while it was brought up".into(),
                )),
            }
        })
    }

    fn effect(&mut self, object: &Object, operation: Operation) -> Option<BoxFuture<'static, EffectResult>> {
        let nothing_found = |done: Result<(), EffectError>| match done {
            Ok(()) => EffectResult::Worked(Vec::new()),
            Err(error) => EffectResult::Failed(error),
        };
        let effects = Arc::clone(&self.effects);
        Some(match object {
            Object::Lease(id) => {
                let lease = self.tables.lease(id)?.clone();
                match operation {
                    Operation::Activate => {
                        let done = effects.activate(&lease, self.pass(&lease));
                        Box::pin(async move { nothing_found(done.await) })
                    }
                    Operation::Revoke => {
                        let pass = self.passes.remove(id);
                        pass.iter().for_each(Pass::revoke);
                        let done = effects.revoke(&lease);
                        Box::pin(async move {
                            if let Some(pass) = pass {
                                pass.drained().await;
                            }
                            done.await;
                            EffectResult::Worked(Vec::new())
                        })
                    }
                    Operation::TearDown => {
                        let done = effects.tear_down(&lease);
                        Box::pin(async move { nothing_found(done.await) })
                    }
                }
            }
            Object::Resource(id) => {
                let resource = self.tables.resource(id)?;
                match operation {
                    Operation::Activate => {
                        let made = effects.make(resource);
                        Box::pin(async move { made.await.map_or_else(EffectResult::Failed, EffectResult::Worked) })
                    }
                    Operation::Revoke | Operation::TearDown => {
                        let done = effects.unmake(resource);
                        Box::pin(async move { nothing_found(done.await) })
                    }
                }
            }
        })
    }

    /// The permission of a holder; a reader has none.
    pub(super) fn pass(&mut self, lease: &Lease) -> Option<Pass> {
        let resource = lease.resource.clone().filter(|_| lease.request.want.mode == Mode::Hold)?;
        let is_shared = self.tables.resource(&resource).is_some_and(|it| it.seats > 1);
        // Of several holders none ends another's permission.
        let own = &mut Arc::default();
        let current = if is_shared { own } else { self.fences.entry(resource).or_default() };
        let pass = self.passes.entry(lease.id().clone()).or_insert_with(|| Pass::of(current, lease.fence));
        Some(pass.clone())
    }

    pub(super) fn done(&mut self, object: Object, operation: Operation, result: EffectResult, round: &mut Round) {
        self.dirty.insert(object.clone());
        if self.tasks.get(&object).is_some_and(|(other, _)| *other == operation) {
            self.tasks.remove(&object);
        }
        match (&object, operation, result) {
            (_, _, EffectResult::Again) => drop(self.begun.insert(object)),
            (Object::Lease(id), Operation::Activate, EffectResult::Worked(_)) => {
                self.lease_event(id, LeaseEvent::Activated, round);
            }
            (Object::Lease(id), Operation::Activate, EffectResult::Failed(error)) => {
                self.lease_event(id, LeaseEvent::ActivationFailed(failure(error)), round);
            }
            (Object::Lease(id), Operation::Revoke, _) => self.lease_event(id, LeaseEvent::HandlesClosed, round),
            (Object::Lease(id), Operation::TearDown, EffectResult::Worked(_)) => {
                self.lease_event(id, LeaseEvent::TornDown, round);
            }
            (Object::Lease(id), Operation::TearDown, EffectResult::Failed(error)) => {
                self.lease_event(id, LeaseEvent::TearDownFailed { why: error.to_string() }, round);
            }
            (Object::Resource(id), Operation::Activate, EffectResult::Worked(facts)) => {
                self.resource_event(id, ResourceEvent::Activated { facts }, round);
            }
            (Object::Resource(id), Operation::Activate, EffectResult::Failed(error)) => {
                self.resource_event(id, ResourceEvent::ActivationFailed(failure(error)), round);
            }
            (Object::Resource(id), Operation::TearDown | Operation::Revoke, EffectResult::Worked(_)) => {
                self.resource_event(id, ResourceEvent::TornDown, round);
            }
            (Object::Resource(id), Operation::TearDown | Operation::Revoke, EffectResult::Failed(error)) => {
                self.resource_event(id, ResourceEvent::TearDownFailed { why: error.to_string() }, round);
            }
        }
    }

    /// Memory is ahead of the disk after a commit that failed: the disk is right.
    fn read_again(&mut self) {
        if let Ok(loaded) = self.store.load() {
            let mut tables = Tables::of(loaded);
            tables.blueprints = std::mem::take(&mut self.tables.blueprints);
            tables.quotas = std::mem::take(&mut self.tables.quotas);
            self.tables = tables;
            // Cannot be read: then nobody is authorized until it can, and the next commit fails as this one did.
            if let Err(error) = self.read_authorizations() {
                tracing::error!(%error, "cannot read who may lease what");
            }
        }
        let tables = &self.tables;
        self.look = Look::Everything;
        self.begun.retain(|object| tables.open_effect(object).is_some());
        self.look_at_everything();
    }

    /// Tells those who wait how the queue stands. What is equal stays the same value, so that nobody sees a change where none is.
    fn tell(&mut self) {
        let now = self.now();
        if self.telling.0 == Told::Everything || now < self.telling.1 {
            return;
        }
        let started = Instant::now();
        let mut new = outlooks(&self.tables, now);
        let mut kept: HashMap<*const Reason, Arc<[Reason]>> = HashMap::new();
        for (id, outlook) in &mut new {
            let address = outlook.reasons.as_ptr();
            let kept = kept.entry(address).or_insert_with(|| match self.outlooks.get(id) {
                Some(old) if old.reasons == outlook.reasons => Arc::clone(&old.reasons),
                _ => Arc::clone(&outlook.reasons),
            });
            outlook.reasons = Arc::clone(kept);
        }
        self.outlooks = Arc::new(new);
        for (id, sender) in &self.watchers {
            if let Some(outlook) = self.outlooks.get(id) {
                sender.send_if_modified(|view| view.is_told(outlook));
            }
        }
        let pause = (started.elapsed() * TELLING_SHARE).min(TELLING_PAUSE_MAX);
        self.telling = (Told::Everything, now.plus_ms(pause.as_millis() as u64));
    }

    /// Shows watchers what this batch changed.
    fn publish(&mut self, batch: &[Transition]) {
        let changed: BTreeSet<&LeaseId> = batch.iter().flat_map(|it| &it.leases).map(Lease::id).collect();
        for id in changed {
            let Some(lease) = self.tables.shared_lease(id) else { continue };
            if lease.state == LeaseState::Active && !self.passes.contains_key(id) {
                self.pass(&lease);
            }
            if let Some(sender) = self.watchers.get(id) {
                let view = self.view(&lease);
                sender.send_if_modified(|old| {
                    let changed = !old.is_same(&view);
                    *old = view;
                    changed
                });
            }
        }
    }

    /// What is over is history: the store has it.
    fn forget(&mut self) {
        for object in std::mem::take(&mut self.over) {
            self.tables.forget(&object);
            if let Object::Lease(id) = &object {
                self.watchers.remove(id);
                self.owners.remove(id);
                self.attached.remove(id);
                self.passes.remove(id);
            }
            if let Object::Resource(id) = &object {
                self.fences.remove(id);
            }
        }
    }

    fn until_next(&self) -> Duration {
        let told_at = Some(self.telling.1).filter(|_| self.telling.0 == Told::Behind);
        let others = [self.plan_again_at, told_at, self.alive_again_at()];
        let timers = self.timers.values().chain(self.owners.values()).chain(others.iter().flatten());
        let now = self.now();
        // Without any timer an hour is as good as for ever: messages end it.
        let ms = timers.min().map_or(3_600_000, |at| at.0.saturating_sub(now.0));
        Duration::from_millis(ms)
    }
}

fn failure(error: EffectError) -> Failure {
    let hope = match &error {
        EffectError::Retry(_) | EffectError::MaybeApplied(_) => Hope::Passing,
        EffectError::Permanent(_) => Hope::Lasting,
    };
    Failure { why: error.to_string(), hope }
}

impl LeaseView {
    /// Whether a watcher would see no difference: whatever the row says comes with a new version.
    fn is_same(&self, other: &LeaseView) -> bool {
        self.version == other.version && self.place == other.place && Arc::ptr_eq(&self.reasons, &other.reasons)
    }

    /// Takes how the queue stands; whether that is news.
    fn is_told(&mut self, outlook: &Outlook) -> bool {
        let same = self.place == Some(outlook.place) && Arc::ptr_eq(&self.reasons, &outlook.reasons);
        self.place = Some(outlook.place);
        self.reasons = Arc::clone(&outlook.reasons);
        self.estimate = outlook.estimate;
        !same
    }
}
