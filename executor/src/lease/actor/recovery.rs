//! What a start looks into beside the rows themselves.
//!
//! ```text
//!  clocks          the farm was away: the clocks of leases stood (steps/away.rs)
//!  owners          have a grace in which to say that they are still there
//!  corruption      whatever rows that do not fit together concern is cordoned, and a lease that holds what is not there is left alone
//!  the farm file   a resource that it calls or tags otherwise than before is told so
//!  things outside  with a row and not there ─► lost;  there and without a row, twice ─► an orphan, removed
//! ```

use super::*;
use crate::lease::allocator::{number_of, parts_of};
use crate::lease::steps::{credit, pause_ms};

/// How long the owner of a lease has after our restart to attach again: a client's own retry is a few seconds.
pub(super) const REATTACH_MS: u64 = 30_000;
/// Heartbeats that may be missed before the owner counts as gone: one may be lost, the next may be late.
pub(super) const BEATS_MISSED: u64 = 3;
/// How often a farm with running clocks says that it is alive: by so much may a clock be credited too much.
const ALIVE_EVERY_MS: u64 = 5_000;
/// Attempts to remove an orphan: whatever is in its way for longer, a person looks at.
const REMOVALS: u32 = 3;

/// Who asks when the farm file says something else than before.
const FARM_FILE: &str = "the farm file";

/// The things outside that one blueprint's resources stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outside {
    /// The blueprint.
    pub blueprint: String,
    /// The names of what is there.
    pub names: Vec<String>,
}

/// A look at what is outside.
#[derive(Debug)]
pub(super) enum Seen {
    /// The first after the start, with the rows that were active then.
    First(Vec<ResourceId>),
    /// After the grace.
    Second,
}

impl KeeperThread {
    /// Moves the deadlines, once, by the time that the farm was away.
    pub(super) fn credit(&mut self, round: &mut round::Round) {
        if let Some(then) = self.away_since {
            let moved = credit(then, &self.context());
            moved.into_iter().for_each(|transition| self.apply(transition, round));
        }
    }

    /// After a start every owner has the same grace: our own absence is not held against anybody.
    pub(super) fn expect_owners(&mut self) {
        let now = self.now();
        let owned = self.tables.leases().filter(|it| it.parent.is_none() && it.state != LeaseState::Destroyed);
        let expected = owned.filter_map(|lease| Some((lease.id().clone(), grace(&lease.request.owner, now)?)));
        self.owners = expected.collect();
    }

    /// Whoever gets a lease from another has the same grace to show himself.
    pub(super) fn expect_new_owner(&mut self, lease: &Lease) {
        self.attached.remove(lease.id());
        let until = match &lease.request.owner {
            Owner::Job(_) => None,
            owner => grace(owner, self.now()),
        };
        match until {
            Some(until) => drop(self.owners.insert(lease.id().clone(), until)),
            None => drop(self.owners.remove(lease.id())),
        }
    }

    /// While no clock runs, nobody needs to know later how long we were alive.
    pub(super) fn say_alive(&mut self) {
        let now = self.now();
        if self.alive_again_at().is_some_and(|at| at <= now) {
            if let Err(error) = self.store.alive(now) {
                tracing::warn!(%error, "cannot note that the farm is alive; a restart may credit leases too much");
            }
            self.alive_at = now;
        }
    }

    pub(super) fn alive_again_at(&self) -> Option<Moment> {
        let runs = matches!(self.timers.keys().next(), Some(Object::Lease(_)));
        runs.then(|| self.alive_at.plus_ms(ALIVE_EVERY_MS))
    }

    /// Holds back what rows that do not fit together concern.
    pub(super) fn contain(&mut self, corruption: &[Corruption], round: &mut round::Round) {
        for found in corruption {
            tracing::error!(%found, "the rows do not fit together");
            if let Corruption::LeaseWithoutResource { lease, .. } = found {
                self.left_alone.insert(lease.clone());
            }
            for id in self.concerned(found) {
                let enabled = self.tables.resource(&id).is_some_and(|resource| resource.admin == Admin::Enabled);
                let asked =
                    self.tables.unread(&Object::Resource(id.clone())).any(|it| matches!(it.verb, Verb::Cordon { .. }));
                if enabled && !asked {
                    let verb = Verb::Cordon { reason: found.to_string() };
                    self.apply(Transition::ask(self.now(), Object::Resource(id), verb, "the farm"), round);
                }
            }
        }
    }

    /// Tells each resource what the farm file says of it now, where that is something else than before. One that is there no more, and one
    /// that is to be held by fewer at a time, is drained.
    pub(super) fn describe(&mut self, round: &mut round::Round) {
        let mut described = Vec::new();
        for resource in self.tables.resources().filter(|it| it.state != ResourceState::Destroyed) {
            let Some(blueprint) = self.tables.blueprints.get(&resource.blueprint) else { continue };
            // Of several the names are numbered; what is kept of one from the farm file is called as it is there.
            let full_name = if resource.name == blueprint.name { &blueprint.full_name } else { &resource.full_name };
            let (gang, seats) = (parts_of(blueprint, &resource.name), blueprint.seats);
            let is_surplus = number_of(blueprint, &resource.name).is_none() || seats < resource.seats;
            if is_surplus && resource.state == ResourceState::Active && blueprint.service != Service::Retired {
                // It comes back as the farm file has it, or not at all.
                described.push((resource.object(), Verb::Drain));
                continue;
            }
            let says = (full_name, &blueprint.tags, &gang, seats);
            if resource.keep == Keep::OnItsOwn
                && says != (&resource.full_name, &resource.tags, &resource.gang, resource.seats)
            {
                let (full_name, tags) = (full_name.clone(), blueprint.tags.clone());
                let verb = Verb::Describe { full_name, tags, gang: Some(gang), seats: Some(seats) };
                described.push((resource.object(), verb));
            }
        }
        for (object, verb) in described {
            self.apply(Transition::ask(self.now(), object, verb, FARM_FILE), round);
        }
    }

    /// Takes what these blueprints have made out of service, to be made anew once nobody holds it.
    pub(super) fn make_anew(&mut self, blueprints: &BTreeSet<String>, round: &mut round::Round) {
        let live = blueprints.iter().flat_map(|name| self.tables.live_of(name));
        let live: Vec<_> = live.filter(|it| it.state != ResourceState::Draining).map(Resource::object).collect();
        for object in live {
            self.apply(Transition::ask(self.now(), object, Verb::Drain, FARM_FILE), round);
        }
    }

    fn concerned(&self, found: &Corruption) -> Vec<ResourceId> {
        match found {
            Corruption::SlotWithoutOwner { key, .. } => {
                // A seat is `seat:<resource>:<number>`, or `seat:<identity>:0` where the part is made with its lease.
                let seat = key.strip_prefix("seat:").and_then(|rest| rest.rsplit_once(':'));
                let of = seat.map_or(key.as_str(), |(of, _)| of);
                let needs = |resource: &&Resource| {
                    let made = |claim: &Claim| match &claim.on {
                        ClaimOn::Made { identity } => match identity.split_once("{lease}") {
                            Some((before, after)) => of.starts_with(before) && of.ends_with(after),
                            None => identity == of,
                        },
                        ClaimOn::Named(_) => false,
                    };
                    resource.id.as_str() == of || resource.gang.iter().any(made)
                };
                self.tables.resources().filter(needs).map(|resource| resource.id.clone()).collect()
            }
            Corruption::LeaseWithoutResource { lease, .. } => {
                self.tables.children(lease).filter_map(|child| child.resource.clone()).collect()
            }
        }
    }

    /// Looks at what is outside, and again after the grace.
    pub(super) fn look_outside(&self) {
        let active = |it: &&Resource| matches!(it.state, ResourceState::Active | ResourceState::Draining);
        let rows = self.tables.resources().filter(active).map(|resource| resource.id.clone()).collect();
        let (effects, results) = (Arc::clone(&self.effects), self.results.clone());
        self.runtime.spawn(async move {
            // The keeper's inbox lives as long as its thread.
            let _ = results.send(Message::Outside(Seen::First(rows), effects.enumerate().await));
            tokio::time::sleep(effects.grace()).await;
            let _ = results.send(Message::Outside(Seen::Second, effects.enumerate().await));
        });
    }

    pub(super) fn seen_outside(&mut self, seen: Seen, outside: Vec<Outside>, round: &mut round::Round) {
        let strays = self.strays(&outside);
        match seen {
            Seen::First(rows) => {
                self.strays = strays;
                rows.iter().for_each(|id| self.lose_if_gone(id, &outside, round));
            }
            Seen::Second => {
                let twice: Vec<_> = self.strays.intersection(&strays).cloned().collect();
                twice.into_iter().for_each(|(blueprint, name)| self.remove_orphan(blueprint, name));
            }
        }
    }

    /// What is there and belongs to no row. A row is written before its thing is made, and stays until it is gone.
    fn strays(&self, outside: &[Outside]) -> BTreeSet<(String, String)> {
        let has_row = |blueprint: &str, name: &str| {
            let mut rows = self.tables.resources().filter(|it| it.state != ResourceState::Destroyed);
            rows.any(|it| it.blueprint == blueprint && it.name == name)
        };
        let all = outside.iter().flat_map(|it| it.names.iter().map(|name| (it.blueprint.clone(), name.clone())));
        all.filter(|(blueprint, name)| !has_row(blueprint, name)).collect()
    }

    fn lose_if_gone(&mut self, id: &ResourceId, outside: &[Outside], round: &mut round::Round) {
        let Some(resource) = self.tables.resource(id) else { return };
        let gone = outside.iter().any(|it| it.blueprint == resource.blueprint && !it.names.contains(&resource.name));
        if gone && matches!(resource.state, ResourceState::Active | ResourceState::Draining) {
            let why = "it was not there any more when the farm started".to_owned();
            let lost = Transition::ask(self.now(), resource.object(), Verb::ResourceLost { why }, "the farm");
            self.apply(lost, round);
        }
    }

    fn remove_orphan(&self, blueprint: String, name: String) {
        let effects = Arc::clone(&self.effects);
        tracing::warn!(blueprint, name, "nobody knows this; it is removed");
        self.runtime.spawn(async move {
            for failures in 1..=REMOVALS {
                let Err(error) = effects.remove(&blueprint, &name).await else { return };
                tracing::error!(%error, blueprint, name, "what nobody knows cannot be removed; look at it");
                tokio::time::sleep(Duration::from_millis(pause_ms(failures))).await;
            }
        });
    }
}

/// Until when an owner has the time to show himself: one with a slow heartbeat is not asked to be faster than he said he is. `None`: he is
/// not expected.
fn grace(owner: &Owner, now: Moment) -> Option<Moment> {
    let beats_ms = match owner {
        Owner::Heartbeat { every_ms, .. } => every_ms.saturating_mul(BEATS_MISSED),
        Owner::Job(_) | Owner::Connection(_) => 0,
        Owner::Term(_) => return None,
    };
    Some(now.plus_ms(REATTACH_MS.max(beats_ms)))
}
