//! Resources that do not exist yet: made up to a limit, kept, reclaimed when something else needs the room. ◆
//!
//! A request waits for at most one resource that is made for it, and asks at most one idle one to make room; so a burst of requests
//! makes no more than it needs, and two requests do not push each other's resources out by turns.

use super::*;

/// Whether the next request that asks for the same may fare better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hope {
    /// It may: it could have something made.
    Some,
    /// No.
    None,
}

impl<'a> Round<'a> {
    /// The blueprints that could make what is wanted.
    pub(super) fn add_blueprints(&self, want: &Want, authorizer: &str, class: &mut Class<'a>) {
        for blueprint in self.tables.blueprints.values() {
            if blueprint.kind != want.kind || blueprint.service == Service::Retired || blueprint.limit == 0 {
                continue;
            }
            let could = could_make(blueprint, want).and_then(|()| self.may(blueprint, authorizer));
            match could {
                Ok(_) => class.could_be = true,
                // A resource that is there has said so already.
                Err(why) if !self.live.contains_key(blueprint.name.as_str()) => class.misfits.push(why),
                Err(_) => {}
            }
        }
    }

    /// For a request that found nothing free.
    pub(super) fn build_or_reclaim(&mut self, lease: &'a Lease, reasons: &mut Vec<Reason>) -> Hope {
        if let Some(resource) = self.being_made_for(lease) {
            self.spoken_for.insert(&resource.id);
            return Hope::Some;
        }
        let mut hope = Hope::None;
        for blueprint in self.tables.blueprints.values() {
            let request = &lease.request;
            let fits = blueprint.kind == request.want.kind
                && could_make(blueprint, &request.want).is_ok()
                && matches!(self.may(blueprint, &request.authorizer), Ok(None));
            if !fits {
                continue;
            }
            match blueprint.service {
                Service::Retired => continue,
                Service::BackOff(until) if until > self.now => {
                    self.again_at(until);
                    reasons.push(Reason::BackOff { blueprint: blueprint.name.clone() });
                    continue;
                }
                Service::BackOff(_) | Service::Open => {}
            }
            if let Some(resource) = self.new_row(blueprint, Some(lease)) {
                reasons.push(Reason::Starting { resource: resource.full_name.clone() });
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
        for blueprint in tables.blueprints.values() {
            if blueprint.service != Service::Retired {
                self.preallocate(blueprint);
            }
            if blueprint.idle_ms_max.is_some() || blueprint.service == Service::Retired {
                let made = tables.resources().filter(|resource| resource.blueprint == blueprint.name);
                let active: Vec<_> = made.filter(|resource| resource.state == ResourceState::Active).collect();
                active.into_iter().for_each(|resource| self.retire(blueprint, resource));
            }
        }
    }

    fn preallocate(&mut self, blueprint: &'a Blueprint) {
        if let Service::BackOff(until) = blueprint.service
            && until > self.now
        {
            return self.again_at(until);
        }
        let planned =
            self.plan.decisions.iter().filter(
                |decision| matches!(decision, Decision::Build(resource) if resource.blueprint == blueprint.name),
            );
        let live = self.live.get(blueprint.name.as_str()).copied().unwrap_or_default() + planned.count() as u32;
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
        let live = self.live.get(blueprint.name.as_str()).copied().unwrap_or_default();
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

    fn being_made_for(&self, lease: &Lease) -> Option<&'a Resource> {
        let own = lease.building.as_ref().and_then(|id| self.tables.resource(id));
        if let Some(resource) = own.filter(|resource| resource.state == ResourceState::Pending) {
            return Some(resource);
        }
        let request = &lease.request;
        self.tables.resources().find(|resource| {
            resource.state == ResourceState::Pending
                && resource.kind == request.want.kind
                && resource.admin == Admin::Enabled
                && !self.spoken_for.contains(&resource.id)
                && !self.is_asked_to_end(resource)
                && matches!(self.could_serve(resource, &request.want, &request.authorizer), Ok(None))
        })
    }

    /// A new row of this blueprint, where its limits and names leave one.
    fn new_row(&mut self, blueprint: &'a Blueprint, lease: Option<&'a Lease>) -> Option<Resource> {
        let wanted = lease.and_then(|lease| lease.request.want.name.as_deref());
        let number = (0..blueprint.limit).find(|number| {
            let named = wanted.is_none_or(|name| {
                numbered(&blueprint.name, blueprint, *number) == name
                    || numbered(&blueprint.full_name, blueprint, *number) == name
            });
            named && self.is_unowned(&identity(blueprint, *number))
        })?;
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
        for resource in self.tables.resources().filter(|resource| resource.state == ResourceState::Active) {
            let Some(blueprint) = self.tables.blueprints.get(&resource.blueprint) else { continue };
            let live = self.live.get(blueprint.name.as_str()).copied().unwrap_or_default();
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
        if let Some(live) = self.live.get_mut(resource.blueprint.as_str()) {
            *live -= 1;
        }
        self.plan.decisions.push(Decision::Reclaim { resource: resource.id.clone(), lease });
    }

    /// Nobody holds it, and this plan gives it to nobody and keeps it for nobody.
    fn is_untouched(&self, resource: &Resource) -> bool {
        let mut seats = (0..resource.seats).map(|seat| format!("seat:{}:{seat}", resource.id));
        self.tables.holders(&resource.id).next().is_none()
            && seats.all(|key| !self.taken.contains_key(&key) && !self.reserved.contains_key(&key))
    }

    fn again_at(&mut self, at: Moment) {
        self.plan.again_at = Some(self.plan.again_at.map_or(at, |other| other.min(at)));
    }
}

fn could_make(blueprint: &Blueprint, want: &Want) -> Result<(), String> {
    if let Some(name) = &want.name {
        let names = (0..blueprint.limit).flat_map(|number| {
            [numbered(&blueprint.name, blueprint, number), numbered(&blueprint.full_name, blueprint, number)]
        });
        if !names.into_iter().any(|other| other == *name) {
            return Err(format!("{} is not `{name}`", blueprint.full_name));
        }
    }
    lacks_no_tags(&blueprint.full_name, &blueprint.tags, want)
}

fn numbered(name: &str, blueprint: &Blueprint, number: u32) -> String {
    if blueprint.limit == 1 { name.to_owned() } else { format!("{name}-{}", number + 1) }
}

fn identity(blueprint: &Blueprint, number: u32) -> String {
    format!("{}:{}", blueprint.kind, numbered(&blueprint.name, blueprint, number))
}

fn new_resource(
    blueprint: &Blueprint,
    number: u32,
    slots: Vec<String>,
    lease: Option<&Lease>,
    now: Moment,
) -> Resource {
    let name = numbered(&blueprint.name, blueprint, number);
    let claim = |claim: &Claim| Claim {
        kind: claim.kind,
        on: match &claim.on {
            ClaimOn::Named(part) => ClaimOn::Named(part.replace("{}", &name)),
            ClaimOn::Made { identity } => ClaimOn::Made { identity: identity.replace("{}", &name) },
        },
    };
    let mut gang: Vec<Claim> = blueprint.gang.iter().map(claim).collect();
    gang.sort_by_key(|claim| claim.kind.rank());
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
        admin: Admin::Enabled,
        health: Health::Unknown,
        failures: 0,
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
