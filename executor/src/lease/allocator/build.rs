//! Resources that do not exist yet: made up to a limit, kept, reclaimed when something else needs the room. ◆
//!
//! A request waits for at most one resource that is made for it, and asks at most one idle one to make room; so a burst of requests
//! makes no more than it needs, and two requests do not push each other's resources out by turns.

use super::*;

const KINDS: [Kind; 7] =
    [Kind::BootNamespace, Kind::Console, Kind::Power, Kind::Gear, Kind::WorkingCopy, Kind::Host, Kind::Dut];

/// Whether the next request that asks for the same may fare better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hope {
    /// It may: it could have something made.
    Some,
    /// No.
    None,
}

impl<'a> Round<'a> {
    /// The blueprints that still make something of a kind.
    pub(super) fn blueprints(&self, kind: Kind) -> impl Iterator<Item = &'a Blueprint> + use<'a> {
        let blueprints = self.tables.blueprints.values();
        blueprints.filter(move |it| it.kind == kind && it.service != Service::Retired && it.limit > 0)
    }

    /// `Ok(Some)`: it could, once somebody has said yes.
    pub(super) fn could_make<'b>(
        &self,
        blueprint: &'b Blueprint,
        want: &'b Want,
        authorizer: &'b str,
    ) -> Result<Option<Reason>, Misfit<'b>> {
        let misfit = |why| Misfit { what: &blueprint.full_name, why };
        if want.name.as_ref().is_some_and(|name| number_of(blueprint, name).is_none()) {
            return Err(misfit(Why::Name(want)));
        }
        if !has_tags(&blueprint.tags, want) {
            return Err(misfit(Why::Tags(&blueprint.tags, want)));
        }
        self.may(blueprint, want.purpose, authorizer)
    }

    /// For a request that found nothing free.
    pub(super) fn build_or_reclaim(&mut self, lease: &'a Lease, reasons: &mut Vec<Reason>) -> Hope {
        if let Some(resource) = self.being_made_for(lease) {
            self.spoken_for.insert(&resource.id);
            return Hope::Some;
        }
        let mut hope = Hope::None;
        let request = &lease.request;
        for number in 0..self.growing.len() {
            let blueprint = self.growing[number];
            if blueprint.kind != request.want.kind {
                continue;
            }
            match self.could_make(blueprint, &request.want, &request.authorizer) {
                Err(_) => continue,
                Ok(Some(awaits)) => {
                    if !reasons.contains(&awaits) {
                        reasons.push(awaits);
                    }
                    continue;
                }
                Ok(None) => {}
            }
            match blueprint.service {
                Service::BackOff(until) if until > self.now => {
                    self.again_at(until);
                    reasons.push(Reason::BackOff { blueprint: blueprint.name.clone() });
                    continue;
                }
                Service::BackOff(_) | Service::Open | Service::Retired => {}
            }
            if let Some(resource) = self.new_row(blueprint, Some(lease)) {
                reasons.push(Reason::Starting { resource: resource.full_name.clone(), kind: resource.kind });
                self.plan.decisions.push(Decision::Build(Box::new(resource)));
                return Hope::Some;
            }
            if let Some(pool) = &blueprint.pool {
                reasons.push(Reason::Limit { blueprint: pool.name.clone(), limit: pool.limit });
                if self.reclaim(lease, &pool.name, reasons) == Hope::Some {
                    hope = Hope::Some;
                    break;
                }
            }
        }
        hope
    }

    /// What makes resources without a request: what is preallocated, idle for too long, or retired.
    pub(super) fn keep_house(&mut self) {
        let tables = self.tables;
        for number in 0..self.growing.len() {
            self.preallocate(self.growing[number]);
        }
        let retires = |it: &&Blueprint| it.idle_ms_max.is_some() || it.service == Service::Retired;
        for blueprint in tables.blueprints.values().filter(retires) {
            let active = tables.live_of(&blueprint.name).filter(|resource| resource.state == ResourceState::Active);
            active.for_each(|resource| self.retire(blueprint, resource));
        }
    }

    fn preallocate(&mut self, blueprint: &'a Blueprint) {
        if let Service::BackOff(until) = blueprint.service
            && until > self.now
        {
            return self.again_at(until);
        }
        if blueprint.preallocated <= self.live(blueprint) {
            return;
        }
        let planned =
            self.plan.decisions.iter().filter(
                |decision| matches!(decision, Decision::Build(resource) if resource.blueprint == blueprint.name),
            );
        let live = self.live(blueprint) + planned.count() as u32;
        for _ in live..blueprint.preallocated {
            let Some(resource) = self.new_row(blueprint, None) else { return };
            self.plan.decisions.push(Decision::Build(Box::new(resource)));
        }
    }

    fn retire(&mut self, blueprint: &Blueprint, resource: &'a Resource) {
        if self.is_asked_to_end(resource) || self.reclaimed.contains(&resource.id) {
            return;
        }
        if blueprint.service == Service::Retired {
            return self.plan.decisions.push(Decision::Drain(resource.id.clone()));
        }
        let live = self.live(blueprint);
        let (Some(since), Some(longest_ms)) = (resource.idle_since, blueprint.idle_ms_max) else { return };
        if live <= blueprint.preallocated || !self.is_untouched(resource) {
            return;
        }
        let at = since.plus_ms(longest_ms.max(resource.idle_ms_min));
        if at > self.now {
            return self.again_at(at);
        }
        self.give_up(resource, None);
    }

    /// How many of a blueprint's there are, and stay after this plan.
    fn live(&self, blueprint: &Blueprint) -> u32 {
        let given_up = self.given_up.get(blueprint.name.as_str()).copied().unwrap_or_default();
        self.tables.made_by(&blueprint.name) as u32 - given_up
    }

    fn being_made_for(&self, lease: &Lease) -> Option<&'a Resource> {
        let own = lease.building.as_ref().and_then(|id| self.tables.resource(id));
        if let Some(resource) = own.filter(|resource| resource.state == ResourceState::Pending) {
            return Some(resource);
        }
        let request = &lease.request;
        self.tables.starting(request.want.kind).find(|resource| {
            resource.serves(request.want.purpose)
                && !self.spoken_for.contains(&resource.id)
                && !self.is_asked_to_end(resource)
                && matches!(self.could_serve(resource, &request.want, &request.authorizer), Ok(None))
        })
    }

    /// A new row of this blueprint, where its limits and names leave one.
    fn new_row(&mut self, blueprint: &'a Blueprint, lease: Option<&'a Lease>) -> Option<Resource> {
        let wanted = lease.and_then(|lease| lease.request.want.name.as_deref());
        let number = match wanted {
            Some(name) => number_of(blueprint, name).filter(|number| self.is_unowned(&identity(blueprint, *number)))?,
            None => {
                let from = self.numbers.get(blueprint.name.as_str()).copied().unwrap_or_default();
                let number = (from..blueprint.limit).find(|number| self.is_unowned(&identity(blueprint, *number)));
                self.numbers.insert(&blueprint.name, number.map_or(blueprint.limit, |number| number + 1));
                number?
            }
        };
        let mut slots = vec![identity(blueprint, number)];
        if let Some(pool) = &blueprint.pool {
            let keys = (0..pool.limit).map(|number| format!("limit:{}:{number}", pool.name));
            slots.push(keys.into_iter().find(|key| self.is_unowned(key))?);
        }
        let resource = new_resource(blueprint, number, slots, lease, self.now);
        self.planned.extend(resource.slots.iter().cloned());
        Some(resource)
    }

    fn is_unowned(&self, key: &str) -> bool {
        self.tables.owner(key).is_none() && !self.planned.contains(key)
    }

    /// Asks one idle resource of the pool to make room; the one that has been idle longest.
    fn reclaim(&mut self, lease: &'a Lease, pool: &str, reasons: &mut Vec<Reason>) -> Hope {
        let asked = lease
            .reclaiming
            .as_ref()
            .and_then(|id| self.tables.resource(id))
            .filter(|resource| resource.state == ResourceState::Releasing || self.is_asked_to_end(resource));
        if let Some(resource) = asked {
            reasons.push(Reason::Reclaiming { resource: resource.full_name.clone() });
            return Hope::Some;
        }
        let mut idle: Vec<&'a Resource> = Vec::new();
        // What nobody holds has a free seat.
        for resource in KINDS.iter().flat_map(|kind| self.tables.open(*kind)) {
            let Some(blueprint) = self.tables.blueprints.get(&resource.blueprint) else { continue };
            let live = self.live(blueprint);
            let in_pool = blueprint.pool.as_ref().is_some_and(|other| other.name == pool);
            let Some(since) = resource.idle_since.filter(|_| in_pool && live > blueprint.preallocated) else {
                continue;
            };
            if !self.is_untouched(resource) || self.is_asked_to_end(resource) || self.reclaimed.contains(&resource.id) {
                continue;
            }
            let at = since.plus_ms(resource.idle_ms_min);
            if at > self.now {
                self.again_at(at);
            } else {
                idle.push(resource);
            }
        }
        let Some(resource) = idle.into_iter().min_by_key(|resource| (resource.idle_since, resource.id.clone())) else {
            return Hope::None;
        };
        reasons.push(Reason::Reclaiming { resource: resource.full_name.clone() });
        self.give_up(resource, Some(lease.id().clone()));
        Hope::Some
    }

    fn give_up(&mut self, resource: &'a Resource, lease: Option<LeaseId>) {
        self.reclaimed.insert(&resource.id);
        *self.given_up.entry(&resource.blueprint).or_default() += 1;
        self.plan.decisions.push(Decision::Reclaim { resource: resource.id.clone(), lease });
    }

    /// Nobody holds it, and this plan gives it to nobody and keeps it for nobody.
    fn is_untouched(&self, resource: &Resource) -> bool {
        let mut seats = (0..resource.seats).map(|seat| format!("seat:{}:{seat}", resource.id));
        self.tables.holders(&resource.id).next().is_none()
            && seats.all(|key| !self.taken.contains_key(&key) && !self.reserved.contains_key(&key))
    }

    pub(super) fn again_at(&mut self, at: Moment) {
        self.plan.again_at = Some(self.plan.again_at.map_or(at, |other| other.min(at)));
    }
}

/// Which of a blueprint's resources has this name.
pub fn number_of(blueprint: &Blueprint, wanted: &str) -> Option<u32> {
    [&blueprint.name, &blueprint.full_name].into_iter().find_map(|name| {
        let rest = wanted.strip_prefix(name.as_str())?;
        if blueprint.limit == 1 {
            return rest.is_empty().then_some(0);
        }
        let number = rest.strip_prefix('-').and_then(|digits| digits.parse::<u32>().ok())?.checked_sub(1)?;
        // `07` is not the name of the seventh.
        (number < blueprint.limit && numbered(name, blueprint, number) == wanted).then_some(number)
    })
}

fn numbered(name: &str, blueprint: &Blueprint, number: u32) -> String {
    if blueprint.limit == 1 { name.to_owned() } else { format!("{name}-{}", number + 1) }
}

fn identity(blueprint: &Blueprint, number: u32) -> String {
    format!("{}:{}", blueprint.kind, numbered(&blueprint.name, blueprint, number))
}

/// The parts of a blueprint's resource of this name.
pub fn parts_of(blueprint: &Blueprint, name: &str) -> Vec<Claim> {
    let claim = |claim: &Claim| Claim {
        kind: claim.kind,
        on: match &claim.on {
            ClaimOn::Named(part) => ClaimOn::Named(part.replace("{}", name)),
            ClaimOn::Made { identity } => ClaimOn::Made { identity: identity.replace("{}", name) },
        },
    };
    let mut gang: Vec<Claim> = blueprint.gang.iter().map(claim).collect();
    gang.sort_by_key(|claim| claim.kind.rank());
    gang
}

fn new_resource(
    blueprint: &Blueprint,
    number: u32,
    slots: Vec<String>,
    lease: Option<&Lease>,
    now: Moment,
) -> Resource {
    let name = numbered(&blueprint.name, blueprint, number);
    let gang = parts_of(blueprint, &name);
    let new = || Standing {
        admin: blueprint.trial.map_or(Admin::Enabled, |trial| Admin::OnTrial { trial }),
        ..Standing::default()
    };
    let Standing { admin, health, failures } = blueprint.before.clone().unwrap_or_else(new);
    Resource {
        id: "".into(),
        serial: 0,
        version: 1,
        kind: blueprint.kind,
        blueprint: blueprint.name.clone(),
        full_name: numbered(&blueprint.full_name, blueprint, number),
        tags: blueprint.tags.clone(),
        seats: blueprint.seats,
        gang,
        keep: Keep::OnItsOwn,
        state: ResourceState::Pending,
        phase: Phase::Whole,
        cause: Cause::Requested,
        fence: 0,
        admin,
        health,
        failures,
        attempts: 0,
        tear_downs_failed: 0,
        slots,
        deadlines: Deadlines { activate: Some(now.plus_ms(blueprint.activate_ms)), ..Deadlines::default() },
        needs_operator: None,
        idle_since: None,
        idle_ms_min: blueprint.idle_ms_min,
        made_for: lease.map(|lease| lease.id().clone()),
        facts: Vec::new(),
        name,
    }
}
