//! The rows R2 to R13: what each changes. The table is in [`super`]. ◆

use super::*;

pub(super) struct ResourceStep<'a> {
    pub resource: &'a Resource,
    pub context: &'a Context<'a>,
}

impl ResourceStep<'_> {
    pub fn activated(&self, facts: Vec<(String, String)>) -> Result<Transition, Illegal> {
        if self.context.tables.children(&self.resource.object()).any(|child| child.state != LeaseState::Active) {
            return Err(self.illegal(&"Activated", "a child of it is not active"));
        }
        let mut transition = self.next(Label::R2, Cause::Activated, |resource| {
            resource.state = ResourceState::Active;
            resource.facts = facts;
            resource.deadlines.activate = None;
            resource.deadlines.retry = None;
        });
        if self.context.tables.holders(&self.resource.id).next().is_none() {
            transition.resources[0].idle_since = Some(self.context.now);
        }
        transition.journal = Journal::Closed;
        self.wake_holders(&mut transition);
        transition.wakes.push(Wake::Allocator);
        Ok(transition)
    }

    pub fn activation_failed(&self, failure: Failure) -> Transition {
        let failed = self.resource.attempts + 1;
        let cause = Cause::ActivationFailed { why: failure.why };
        if failure.hope == Hope::Lasting || failed >= ACTIVATIONS_AT_MOST || !self.is_wanted() {
            return self.end(Label::R4, cause);
        }
        let retry = self.context.now.plus_ms(pause_ms(failed));
        let mut transition = self.next(Label::R3, cause, |resource| {
            resource.attempts = failed;
            resource.deadlines.retry = Some(retry);
        });
        transition.journal = Journal::Closed;
        transition
    }

    /// Whether the lease that it is made for, if it is for one, is still there to have it.
    fn is_wanted(&self) -> bool {
        let ends = |lease: &Lease| matches!(lease.state, LeaseState::Releasing | LeaseState::Destroyed);
        self.resource.made_for.as_ref().is_none_or(|id| self.context.tables.lease(id).is_some_and(|lease| !ends(lease)))
    }

    pub fn command(&self, command: &Command) -> Transition {
        use ResourceState::{Active, Destroyed, Draining, Pending, Releasing};
        let by = command.by.clone();
        let mut transition = match (self.resource.state, &command.verb) {
            (Pending, Verb::Release { cause }) => self.end(Label::R4, cause.clone()),
            (Pending, Verb::ResourceLost { why }) => self.end(Label::R4, Cause::ResourceLost { why: why.clone() }),
            (Pending, Verb::Drain) => self.end(Label::R4, Cause::Drained { by }),
            (Active | Draining, Verb::Release { cause }) => self.end(Label::R9, cause.clone()),
            (Active | Draining, Verb::ResourceLost { why }) => {
                self.end(Label::R9, Cause::ResourceLost { why: why.clone() })
            }
            (Active, Verb::Drain) => self.next(Label::R5, Cause::Drained { by }, |resource| resource.state = Draining),
            (Draining, Verb::Undrain) => {
                let mut transition =
                    self.next(Label::R6, Cause::Administered { by }, |resource| resource.state = Active);
                transition.wakes.push(Wake::Allocator);
                transition
            }
            (Active, Verb::Reclaim) => self.reclaim(by),
            (Releasing, Verb::Abandon { reason }) if self.resource.needs_operator.is_some() => {
                let cause = Cause::Abandoned { by, reason: reason.clone() };
                self.next(Label::R11, cause, |resource| {
                    resource.phase = Phase::TornDown;
                    resource.needs_operator = None;
                })
            }
            (Pending | Active | Draining, verb @ (Verb::Renew { .. } | Verb::Expires { .. })) => self.note(verb, by),
            (
                Pending | Active | Draining,
                verb @ (Verb::Cordon { .. }
                | Verb::Uncordon
                | Verb::Try { .. }
                | Verb::Retire { .. }
                | Verb::Judge { .. }
                | Verb::Failed { .. }
                | Verb::Describe { .. }),
            ) => self.note(verb, by),
            (Destroyed, _) => self.refuse("it is over"),
            (
                Releasing,
                Verb::Release { .. }
                | Verb::ResourceLost { .. }
                | Verb::Renew { .. }
                | Verb::Expires { .. }
                | Verb::Drain
                | Verb::Undrain
                | Verb::Reclaim
                | Verb::Cordon { .. }
                | Verb::Uncordon
                | Verb::Try { .. }
                | Verb::Retire { .. }
                | Verb::Judge { .. }
                | Verb::Failed { .. }
                | Verb::Describe { .. }
                | Verb::Abandon { .. },
            ) => self.refuse("it is being released"),
            (Pending | Draining, Verb::Reclaim) => self.refuse("it is not active"),
            (Draining, Verb::Drain) => self.refuse("it drains already"),
            (Pending | Active, Verb::Undrain) => self.refuse("it does not drain"),
            (Pending | Active | Draining, Verb::Abandon { .. }) => self.refuse("nothing is stuck"),
            (Pending | Active | Draining | Releasing, Verb::HandOver { .. }) => {
                self.refuse("that is asked of leases only")
            }
        };
        transition.consumed.push(command.id);
        transition.wakes.push(Wake::Object(self.resource.object()));
        if transition.label == Label::R8 {
            // Whoever waited for the room looks again.
            transition.wakes.push(Wake::Allocator);
        }
        transition
    }

    fn reclaim(&self, by: String) -> Transition {
        let idle_for = self.resource.idle_since.map_or(0, |since| self.context.now.0.saturating_sub(since.0));
        if self.context.tables.holders(&self.resource.id).next().is_some() {
            self.refuse("somebody holds it")
        } else if self.resource.idle_since.is_none() || idle_for < self.resource.idle_ms_min {
            self.refuse("it was used a moment ago")
        } else {
            self.end(Label::R8, Cause::Reclaimed { by })
        }
    }

    /// R13: an opinion or a date changes, and nothing moves.
    fn note(&self, verb: &Verb, by: String) -> Transition {
        let blueprint = self.context.tables.blueprints.get(&self.resource.blueprint);
        let patience = blueprint.map_or_else(Patience::default, |blueprint| blueprint.patience);
        let cause = match verb {
            Verb::Failed { why } => Cause::Judged { why: why.clone() },
            Verb::Renew { .. } | Verb::Expires { .. } => Cause::Renewed { by: by.clone() },
            _ => Cause::Administered { by: by.clone() },
        };
        let mut transition = self.next(Label::R13, cause, |resource| match verb {
            Verb::Renew { until: at } | Verb::Expires { at } => resource.deadlines.expires = Some(*at),
            Verb::Cordon { reason } => {
                resource.admin = Admin::Cordoned { reason: format!("{reason} ({by})") };
            }
            Verb::Uncordon => resource.admin = Admin::Enabled,
            Verb::Try { trial } => resource.admin = Admin::OnTrial { trial: *trial },
            Verb::Retire { reason } => resource.admin = Admin::Retired { reason: format!("{reason} ({by})") },
            Verb::Judge { health } => {
                resource.health = *health;
                resource.failures = 0;
            }
            Verb::Failed { .. } => {
                resource.failures += 1;
                resource.health = match resource.failures {
                    failures if failures >= patience.quarantined_after => Health::Quarantined,
                    failures if failures >= patience.suspect_after => resource.health.max(Health::Suspect),
                    _ => resource.health,
                };
            }
            Verb::Describe { full_name, tags, gang, seats } => {
                resource.full_name.clone_from(full_name);
                resource.tags.clone_from(tags);
                resource.gang = gang.clone().unwrap_or(std::mem::take(&mut resource.gang));
                resource.seats = seats.unwrap_or(resource.seats);
            }
            Verb::Release { .. }
            | Verb::ResourceLost { .. }
            | Verb::HandOver { .. }
            | Verb::Drain
            | Verb::Undrain
            | Verb::Reclaim
            | Verb::Abandon { .. } => {}
        });
        transition.wakes.push(Wake::Allocator);
        transition
    }

    /// Into the destroy phase; every lease on it hears so in the same transition.
    pub fn end(&self, label: Label, cause: Cause) -> Transition {
        let mut transition = self.next(label, cause.clone(), |resource| {
            resource.state = ResourceState::Releasing;
            resource.phase = Phase::Whole;
            resource.tear_downs_failed = 0;
            resource.deadlines = Deadlines::default();
            resource.idle_since = None;
            resource.cause = cause.clone();
        });
        transition.journal = Journal::Closed;
        for holder in self.context.tables.holders(&self.resource.id) {
            let lost = Verb::ResourceLost { why: cause.to_string() };
            transition.post(holder.object(), lost, &self.resource.name);
        }
        transition.wakes.push(Wake::Allocator);
        transition
    }

    pub fn emptied(&self) -> Result<Transition, Illegal> {
        if self.context.tables.holders(&self.resource.id).next().is_some() {
            return Err(self.illegal(&"Emptied", "somebody holds it"));
        }
        Ok(self.end(Label::R7, self.resource.cause.clone()))
    }

    pub fn torn_down(&self) -> Result<Transition, Illegal> {
        self.check_tear_down(&"TornDown")?;
        let mut transition = self.next(Label::R11, self.resource.cause.clone(), |resource| {
            resource.phase = Phase::TornDown;
            resource.needs_operator = None;
            resource.deadlines.retry = None;
        });
        transition.journal = Journal::Closed;
        Ok(transition)
    }

    pub fn tear_down_failed(&self, why: String) -> Result<Transition, Illegal> {
        self.check_tear_down(&"TearDownFailed")?;
        let failed = self.resource.tear_downs_failed + 1;
        let retry = self.context.now.plus_ms(pause_ms(failed));
        let mut transition = self.next(Label::R11, Cause::TearDownFailed { why: why.clone() }, |resource| {
            resource.tear_downs_failed = failed;
            resource.deadlines.retry = Some(retry);
            if failed >= TEAR_DOWNS_BEFORE_OPERATOR {
                resource.needs_operator = Some(why);
            }
        });
        transition.journal = Journal::Closed;
        Ok(transition)
    }

    /// R10 is this guard.
    fn check_tear_down(&self, event: &dyn std::fmt::Debug) -> Result<(), Illegal> {
        if self.resource.phase == Phase::TornDown {
            return Err(self.illegal(event, "it is torn down already"));
        }
        let held = self.context.tables.holders(&self.resource.id).next().is_some();
        if held && self.context.rules.hold(Rule::LeasesFirst) {
            return Err(self.illegal(event, "somebody holds it"));
        }
        Ok(())
    }

    pub fn release_children(&self) -> Result<Transition, Illegal> {
        if self.resource.phase != Phase::TornDown {
            return Err(self.illegal(&"ReleaseChildren", "it is not torn down"));
        }
        let (now, cause) = (self.context.now, self.resource.cause.clone());
        let mut transition = Transition::new(now, self.resource.object(), Label::R11, cause);
        post_to_children(self.context.tables, &mut transition);
        Ok(transition)
    }

    pub fn finish(&self) -> Result<Transition, Illegal> {
        if self.resource.phase != Phase::TornDown {
            return Err(self.illegal(&"Finish", "it is not torn down"));
        }
        if self.context.tables.children(&self.resource.object()).next().is_some() {
            return Err(self.illegal(&"Finish", "it has children"));
        }
        let mut transition = self.next(Label::R12, self.resource.cause.clone(), |resource| {
            resource.state = ResourceState::Destroyed;
            resource.deadlines = Deadlines::default();
        });
        let object = self.resource.object();
        transition.freed = freed(&mut transition.resources[0].slots, &object);
        transition.wakes.push(Wake::Allocator);
        Ok(transition)
    }

    fn refuse(&self, why: &str) -> Transition {
        let cause = Cause::Refused { why: why.to_owned() };
        Transition::new(self.context.now, self.resource.object(), Label::R8, cause)
    }

    fn next(&self, label: Label, cause: Cause, change: impl FnOnce(&mut Resource)) -> Transition {
        let mut transition = Transition::new(self.context.now, self.resource.object(), label, cause);
        let mut resource = Resource { version: self.resource.version + 1, ..self.resource.clone() };
        change(&mut resource);
        transition.wakes.push(Wake::Object(resource.object()));
        transition.resources.push(resource);
        transition
    }

    fn wake_holders(&self, transition: &mut Transition) {
        let holders = self.context.tables.holders(&self.resource.id);
        transition.wakes.extend(holders.map(|holder| Wake::Object(holder.object())));
    }

    pub fn illegal(&self, event: &dyn std::fmt::Debug, why: &'static str) -> Illegal {
        let (state, event) = (format!("{:?}", self.resource.state), format!("{event:?}"));
        Illegal { object: self.resource.object(), state, event, why }
    }
}
