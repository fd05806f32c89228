//! Who gets what, and why not yet: a pure function over the rows. ◆
//!
//! ```text
//!  the queue, by (priority, age); a gang stands where its oldest member stands
//!     for each:  never? ─► say so      free? ─► grant, whole      else build ─► else reclaim ─► else wait, with a reason per candidate
//!  who waits for one thing while another that it needs is free has that one reserved: a later request takes neither (no barging),
//!  and is served from whatever the earlier ones do not need (backfill)
//! ```
//! Nothing here is remembered: the same rows give the same plan. Requests that ask for the same share one look at the candidates, so that
//! a plan costs what the distinct requests cost, not what the queue is long.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::rows::*;
use super::steps::{Grant, Part, PartOn};
use super::tables::Tables;

mod build;

/// What is to be done now, and what everybody who waits is told.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In this order.
    pub decisions: Vec<Decision>,
    /// Per waiting lease.
    pub outlooks: BTreeMap<LeaseId, Outlook>,
    /// When another plan may come out differently although no row changed.
    pub again_at: Option<Moment>,
}

/// One decision; each is committed whole.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// These leases get these resources, all or none.
    Grant(Vec<(LeaseId, Grant)>),
    /// This resource is made.
    Build(Box<Resource>),
    /// This idle resource makes room.
    Reclaim {
        /// Which.
        resource: ResourceId,
        /// For whom; `None`: it was idle for too long.
        lease: Option<LeaseId>,
    },
    /// This resource is taken out: its blueprint is retired.
    Drain(ResourceId),
    /// This request can never be served.
    Never {
        /// Which.
        lease: LeaseId,
        /// Per candidate, why not.
        why: String,
    },
}

/// What a waiting lease is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Outlook {
    /// Its place in the queue; 1 is next.
    pub place: usize,
    /// Per candidate, why not now.
    pub reasons: Arc<[Reason]>,
    /// When its turn comes, as far as one can tell from the ends and the mean lengths of the holds before it.
    pub estimate: Option<Moment>,
}

/// Why a candidate is not to be had now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Somebody has it.
    Busy {
        /// The candidate.
        resource: String,
        /// Who.
        owner: String,
        /// Since when.
        since: Moment,
    },
    /// A person holds it back.
    Cordoned {
        /// The candidate.
        resource: String,
        /// Why.
        why: String,
    },
    /// The farm holds it back.
    Quarantined {
        /// The candidate.
        resource: String,
    },
    /// It takes no new leases.
    Draining {
        /// The candidate.
        resource: String,
    },
    /// It is not there yet.
    Starting {
        /// The candidate.
        resource: String,
    },
    /// An earlier request needs it.
    Earlier {
        /// The candidate.
        resource: String,
        /// Whose.
        owner: String,
    },
    /// Something that goes with it is not to be had.
    PartBusy {
        /// The candidate.
        resource: String,
        /// What.
        part: String,
    },
    /// As many as are allowed exist.
    Limit {
        /// The blueprint.
        blueprint: String,
        /// How many.
        limit: u32,
    },
    /// The last one could not be made.
    BackOff {
        /// The blueprint.
        blueprint: String,
    },
    /// Somebody has to say yes.
    AwaitsAuthorization {
        /// The blueprint.
        blueprint: String,
        /// For whom.
        subject: String,
    },
    /// An idle resource is asked to make room.
    Reclaiming {
        /// Which.
        resource: String,
    },
    /// Not all members of the gang have asked yet, or not all have a place.
    Gang {
        /// The gang.
        name: String,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Busy { resource, owner, .. } => write!(formatter, "{resource} is busy with {owner}"),
            Reason::Cordoned { resource, why } => write!(formatter, "{resource} is held back: {why}"),
            Reason::Quarantined { resource } => {
                write!(formatter, "{resource} is held back: it failed too often; look at its events")
            }
            Reason::Draining { resource } => write!(formatter, "{resource} is being taken out of service"),
            Reason::Starting { resource } => write!(formatter, "{resource} is being made ready"),
            Reason::Earlier { resource, owner } => write!(formatter, "{resource} goes to {owner}, which came earlier"),
            Reason::PartBusy { resource, part } => write!(formatter, "{resource} needs {part}, which is not free"),
            Reason::Limit { blueprint, limit } => {
                write!(formatter, "{blueprint} makes no more than {limit} at a time")
            }
            Reason::BackOff { blueprint } => write!(formatter, "{blueprint} pauses: the last one could not be made"),
            Reason::AwaitsAuthorization { blueprint, subject } => {
                write!(formatter, "nobody has said yet whether {subject} may use {blueprint}")
            }
            Reason::Reclaiming { resource } => write!(formatter, "{resource} is idle and makes room"),
            Reason::Gang { name } => write!(formatter, "gang {name} is not complete yet"),
        }
    }
}

/// Plans everything that can be decided now.
pub fn plan(tables: &Tables, now: Moment) -> Plan {
    let mut round = Round::new(tables, now);
    let queue: Vec<&Lease> = tables.queue().collect();
    let mut gangs_seen: HashSet<&Gang> = HashSet::new();
    for lease in &queue {
        match &lease.request.gang {
            None => round.place_one(lease),
            Some(gang) => {
                if gangs_seen.insert(gang) {
                    let members =
                        queue.iter().copied().filter(|other| other.request.gang.as_ref() == Some(gang)).collect();
                    round.place_gang(gang, members);
                }
            }
        }
    }
    round.keep_house();
    round.plan
}

/// Whether a request could ever be served; `Err` says per candidate why not. Asked before a request becomes a row.
pub fn can_ever(tables: &Tables, request: &LeaseRequest) -> Result<(), String> {
    let class = Round::new(tables, Moment(0)).class_of(&request.want, &request.authorizer);
    if !class.could_be {
        return Err(class.misfits.join("; "));
    }
    for want in &request.also {
        if want.kind.rank() >= request.want.kind.rank() {
            return Err(format!("a {} cannot be a part of a {}", want.kind, request.want.kind));
        }
        let class = Round::new(tables, Moment(0)).class_of(want, &request.authorizer);
        if !class.could_be {
            return Err(class.misfits.join("; "));
        }
    }
    Ok(())
}

/// One plan in the making. Keys that are taken or reserved in it only become more, so what is not free once is not free later.
struct Round<'a> {
    tables: &'a Tables,
    now: Moment,
    plan: Plan,
    waiting: usize,
    taken: HashMap<String, &'a Lease>,
    reserved: HashMap<String, &'a Lease>,
    by_name: HashMap<(Kind, &'a str), &'a Resource>,
    live: HashMap<&'a str, u32>,
    /// Resources that are being made and that an earlier request waits for.
    spoken_for: HashSet<&'a ResourceId>,
    reclaimed: HashSet<&'a ResourceId>,
    /// Keys of resources that this plan makes.
    planned: HashSet<String>,
    classes: HashMap<(Want, Vec<Want>, String), Class<'a>>,
}

/// What all requests that ask for the same have in common.
#[derive(Default)]
struct Class<'a> {
    /// Whether anything could ever serve it.
    could_be: bool,
    /// Why what is there could not.
    misfits: Vec<String>,
    /// Resources that may be free.
    candidates: Vec<&'a Resource>,
    /// Why the others are not.
    reasons: Vec<Reason>,
    /// The ends of the holds on them, the first one first.
    ends: Vec<Moment>,
    /// How long a hold lasts.
    mean_ms: Option<u64>,
    /// Everybody who waits in it so far.
    waiting: usize,
    /// Set once nothing more can be had.
    exhausted: Option<Arc<[Reason]>>,
}

/// How a request fared.
enum Tried {
    Granted(Grant),
    /// Not now; with the keys that should wait for it.
    Waits(Vec<Reason>, Vec<String>),
}

impl<'a> Round<'a> {
    fn new(tables: &'a Tables, now: Moment) -> Round<'a> {
        let mut by_name = HashMap::new();
        let mut live: HashMap<&str, u32> = HashMap::new();
        for resource in tables.resources() {
            if !matches!(resource.state, ResourceState::Releasing | ResourceState::Destroyed) {
                by_name.insert((resource.kind, resource.name.as_str()), resource);
                *live.entry(resource.blueprint.as_str()).or_default() += 1;
            }
        }
        Round {
            tables,
            now,
            plan: Plan::default(),
            waiting: 0,
            taken: HashMap::new(),
            reserved: HashMap::new(),
            by_name,
            live,
            spoken_for: HashSet::new(),
            reclaimed: HashSet::new(),
            planned: HashSet::new(),
            classes: HashMap::new(),
        }
    }

    fn place_one(&mut self, lease: &'a Lease) {
        let key = class_key(lease);
        let mut class = self.take_class(&key);
        if !class.could_be {
            let why = class.misfits.join("; ");
            self.plan.decisions.push(Decision::Never { lease: lease.id().clone(), why });
        } else if let Some(reasons) = class.exhausted.clone() {
            self.wait(lease, &mut class, reasons);
        } else {
            match self.try_place(lease, &mut class) {
                Tried::Granted(grant) => {
                    self.take(lease, &grant);
                    self.plan.decisions.push(Decision::Grant(vec![(lease.id().clone(), grant)]));
                }
                Tried::Waits(mut reasons, reserve) => {
                    self.reserve(lease, reserve);
                    let hope = self.build_or_reclaim(lease, &mut reasons);
                    let reasons: Arc<[Reason]> = reasons.into();
                    if hope == build::Hope::None {
                        class.exhausted = Some(Arc::clone(&reasons));
                    }
                    self.wait(lease, &mut class, reasons);
                }
            }
        }
        self.classes.insert(key, class);
    }

    /// All members or none. What the members found is reserved for them when one of them found nothing.
    fn place_gang(&mut self, gang: &Gang, members: Vec<&'a Lease>) {
        let complete = members.len() == gang.members as usize;
        let mut grants = Vec::new();
        let mut failed: Vec<Reason> = Vec::new();
        let mut reserve = Vec::new();
        let mut missing = Vec::new();
        for lease in members.iter().filter(|_| complete) {
            let key = class_key(lease);
            let mut class = self.take_class(&key);
            if !class.could_be {
                let why = class.misfits.join("; ");
                self.plan.decisions.push(Decision::Never { lease: lease.id().clone(), why });
            }
            match self.try_place(lease, &mut class) {
                Tried::Granted(grant) => {
                    self.take(lease, &grant);
                    grants.push((*lease, grant));
                }
                Tried::Waits(reasons, keys) => {
                    failed.extend(reasons);
                    reserve.extend(keys);
                    missing.push(*lease);
                }
            }
            self.classes.insert(key, class);
        }
        if complete && missing.is_empty() {
            let grants = grants.into_iter().map(|(lease, grant)| (lease.id().clone(), grant)).collect();
            return self.plan.decisions.push(Decision::Grant(grants));
        }
        for (lease, grant) in &grants {
            let keys: Vec<String> = keys_of(grant).cloned().collect();
            for key in &keys {
                self.taken.remove(key);
            }
            self.reserve(lease, keys);
        }
        for lease in &missing {
            self.reserve(lease, std::mem::take(&mut reserve));
            self.build_or_reclaim(lease, &mut failed);
        }
        failed.push(Reason::Gang { name: gang.name.clone() });
        let reasons: Arc<[Reason]> = failed.into();
        for lease in members {
            let key = class_key(lease);
            let mut class = self.take_class(&key);
            self.wait(lease, &mut class, Arc::clone(&reasons));
            self.classes.insert(key, class);
        }
    }

    fn wait(&mut self, lease: &Lease, class: &mut Class, reasons: Arc<[Reason]>) {
        self.waiting += 1;
        let estimate = class.estimate(class.waiting);
        class.waiting += 1;
        self.plan.outlooks.insert(lease.id().clone(), Outlook { place: self.waiting, reasons, estimate });
    }

    fn take_class(&mut self, key: &(Want, Vec<Want>, String)) -> Class<'a> {
        if let Some(class) = self.classes.remove(key) {
            return class;
        }
        let (want, also, authorizer) = key;
        let mut class = self.class_of(want, authorizer);
        for want in also {
            let part = self.class_of(want, authorizer);
            class.could_be &= part.could_be;
            class.misfits.extend(part.misfits);
        }
        class
    }

    fn class_of(&self, want: &Want, authorizer: &str) -> Class<'a> {
        let mut class = Class::default();
        for resource in self.tables.resources().filter(|resource| resource.kind == want.kind) {
            if matches!(resource.state, ResourceState::Releasing | ResourceState::Destroyed) {
                continue;
            }
            match self.could_serve(resource, want, authorizer) {
                Err(misfit) => class.misfits.push(misfit),
                Ok(None) => {
                    class.could_be = true;
                    self.sort_candidate(resource, &mut class);
                }
                Ok(Some(awaits)) => {
                    class.could_be = true;
                    class.reasons.push(awaits);
                }
            }
        }
        self.add_blueprints(want, authorizer, &mut class);
        class.ends.sort_unstable();
        if class.misfits.is_empty() && !class.could_be {
            class.misfits.push(format!("the farm has no {}", want.kind));
        }
        class
    }

    fn sort_candidate(&self, resource: &'a Resource, class: &mut Class<'a>) {
        let name = || resource.full_name.clone();
        match (resource.state, &resource.admin, resource.health) {
            (_, Admin::Cordoned { reason }, _) => {
                class.reasons.push(Reason::Cordoned { resource: name(), why: reason.clone() });
            }
            (_, _, Health::Quarantined) => class.reasons.push(Reason::Quarantined { resource: name() }),
            (ResourceState::Draining, ..) => class.reasons.push(Reason::Draining { resource: name() }),
            (ResourceState::Pending, ..) => class.reasons.push(Reason::Starting { resource: name() }),
            _ => class.candidates.push(resource),
        }
        let mean_ms = self.tables.blueprints.get(&resource.blueprint).and_then(|blueprint| blueprint.mean_hold_ms);
        class.mean_ms = class.mean_ms.max(mean_ms);
        let ends = self.tables.holders(&resource.id).filter_map(|holder| {
            let by_mean = || Some(holder.acquired_at?.plus_ms(mean_ms?));
            holder.deadlines.expires.or_else(by_mean).map(|end| end.max(self.now))
        });
        class.ends.extend(ends);
    }

    /// `Ok(Some)`: it could, once somebody has said yes.
    fn could_serve(&self, resource: &Resource, want: &Want, authorizer: &str) -> Result<Option<Reason>, String> {
        if want.name.as_ref().is_some_and(|name| !resource.is_called(name)) {
            return Err(format!("{} is not `{}`", resource.full_name, want.name.as_deref().unwrap_or_default()));
        }
        lacks_no_tags(&resource.full_name, &resource.tags, want)?;
        if resource.keep == Keep::WithItsLease {
            return Err(format!("{} belongs to another lease", resource.full_name));
        }
        let blueprint = self.tables.blueprints.get(&resource.blueprint);
        let blueprint = blueprint.ok_or_else(|| format!("{} is no longer in the farm file", resource.full_name))?;
        self.may(blueprint, authorizer)
    }

    fn may(&self, blueprint: &Blueprint, subject: &str) -> Result<Option<Reason>, String> {
        if blueprint.access == Access::Everyone {
            return Ok(None);
        }
        let answer = self.tables.authorizations.get(&(subject.to_owned(), blueprint.name.clone()));
        match answer.map(|authorization| authorization.state) {
            Some(AuthorizationState::Authorized) => Ok(None),
            Some(AuthorizationState::Requested) => {
                Ok(Some(Reason::AwaitsAuthorization { blueprint: blueprint.name.clone(), subject: subject.to_owned() }))
            }
            Some(AuthorizationState::Declined) => Err(format!("{subject} may not use {}", blueprint.name)),
            None => Err(format!("{subject} is not authorized to use {}; ask for it", blueprint.name)),
        }
    }

    /// The best free candidate, with everything that goes with it.
    fn try_place(&mut self, lease: &'a Lease, class: &mut Class<'a>) -> Tried {
        let mut reserve = Vec::new();
        let mut extras = Vec::new();
        for want in &lease.request.also {
            match self.find_extra(lease, want, &extras) {
                Some(part) => extras.push(part),
                None => {
                    let wanted = want.name.clone().unwrap_or_else(|| want.kind.to_string());
                    let best = self.best(lease, class);
                    reserve.extend(best.iter().flat_map(|(_, slots, parts)| keys_in(slots, parts)));
                    reserve.extend(extras.iter().flat_map(|part: &Part| part.slots.iter().cloned()));
                    let resource = class.candidates.first().map_or("it", |resource| &resource.full_name).to_owned();
                    return Tried::Waits(vec![Reason::PartBusy { resource, part: wanted }], reserve);
                }
            }
        }
        match self.best(lease, class) {
            Some((resource, slots, mut parts)) => {
                parts.extend(extras);
                parts.sort_by_key(|part| part.kind.rank());
                Tried::Granted(Grant { resource: resource.id.clone(), slots, parts })
            }
            None => {
                reserve.extend(extras.iter().flat_map(|part| part.slots.iter().cloned()));
                reserve.extend(self.free_keys_of_blocked(lease, class));
                Tried::Waits(class.reasons.clone(), reserve)
            }
        }
    }

    fn best(&self, lease: &'a Lease, class: &mut Class<'a>) -> Option<(&'a Resource, Vec<String>, Vec<Part>)> {
        let mut free = Vec::new();
        let reasons = &mut class.reasons;
        class.candidates.retain(|resource| match self.free(lease, resource) {
            Ok((slots, parts)) => {
                free.push((*resource, slots, parts));
                true
            }
            Err(reason) => {
                reasons.push(reason);
                false
            }
        });
        free.into_iter().min_by_key(|(resource, ..)| self.rank(lease, resource))
    }

    /// Less is better.
    fn rank(&self, lease: &Lease, resource: &'a Resource) -> impl Ord + use<'a> {
        let named = |names: &[String]| names.iter().any(|name| resource.is_called(name));
        let request = &lease.request;
        let avoided = named(&request.avoid) || named(&lease.failed_on);
        let not_sticky = !request.sticky.as_ref().is_some_and(|name| resource.is_called(name));
        let lacking: Vec<bool> = request.prefers.iter().map(|tag| !resource.tags.contains(tag)).collect();
        let idle_since = i128::from(resource.idle_since.unwrap_or_default().0);
        let policy = self.tables.blueprints.get(&resource.blueprint).map(|blueprint| blueprint.policy);
        let age = if policy == Some(PlacementPolicy::Pack) { -idle_since } else { idle_since };
        let suspect = resource.health == Health::Suspect;
        (avoided, suspect, not_sticky, lacking, resource.failures, age, resource.id.clone())
    }

    fn free(&self, lease: &Lease, resource: &Resource) -> Result<(Vec<String>, Vec<Part>), Reason> {
        if self.reclaimed.contains(&resource.id) || self.is_asked_to_end(resource) {
            return Err(Reason::Draining { resource: resource.full_name.clone() });
        }
        let mode = lease.request.want.mode;
        let slots = self.seat(resource, mode).map_err(|blocker| match blocker {
            Some(earlier) => {
                Reason::Earlier { resource: resource.full_name.clone(), owner: earlier.request.owner.to_string() }
            }
            None => self.busy(resource),
        })?;
        let mut parts = Vec::new();
        if mode == Mode::Hold {
            for claim in &resource.gang {
                let part = self.part(claim, &resource.name).ok_or_else(|| Reason::PartBusy {
                    resource: resource.full_name.clone(),
                    part: match &claim.on {
                        ClaimOn::Named(name) => format!("the {} {name}", claim.kind),
                        ClaimOn::Made { .. } => format!("a new {}", claim.kind),
                    },
                })?;
                parts.push(part);
            }
        }
        Ok((slots, parts))
    }

    fn part(&self, claim: &Claim, whole: &str) -> Option<Part> {
        let kind = claim.kind;
        match &claim.on {
            ClaimOn::Named(name) => {
                let resource = self.by_name.get(&(kind, name.as_str()))?;
                self.is_usable(resource).then_some(())?;
                let slots = self.seat(resource, Mode::Hold).ok()?;
                Some(Part { kind, on: PartOn::Existing(resource.id.clone()), slots, mode: Mode::Hold })
            }
            ClaimOn::Made { identity } => {
                self.is_free(identity).then_some(())?;
                let on = PartOn::Made { name: format!("{whole}-{kind}"), identity: identity.clone() };
                Some(Part { kind, on, slots: vec![format!("seat:{identity}:0")], mode: Mode::Hold })
            }
        }
    }

    fn find_extra(&self, lease: &Lease, want: &Want, others: &[Part]) -> Option<Part> {
        let chosen = |slots: &[String]| others.iter().any(|part| part.slots.iter().any(|slot| slots.contains(slot)));
        let mut found = self.tables.resources().filter(|resource| {
            resource.kind == want.kind
                && self.is_usable(resource)
                && matches!(self.could_serve(resource, want, &lease.request.authorizer), Ok(None))
        });
        found.find_map(|resource| {
            let slots = self.seat(resource, want.mode).ok()?;
            let part = Part {
                kind: want.kind,
                on: PartOn::Existing(resource.id.clone()),
                slots: slots.clone(),
                mode: want.mode,
            };
            (!chosen(&slots)).then_some(part)
        })
    }

    fn is_usable(&self, resource: &Resource) -> bool {
        resource.state == ResourceState::Active
            && resource.admin == Admin::Enabled
            && resource.health != Health::Quarantined
            && !self.reclaimed.contains(&resource.id)
            && !self.is_asked_to_end(resource)
    }

    /// A release, a loss or a drain that it has not read yet: nobody gets on board now.
    fn is_asked_to_end(&self, resource: &Resource) -> bool {
        self.tables.unread(&resource.object()).any(|command| {
            matches!(
                command.verb,
                Verb::Release { .. } | Verb::ResourceLost { .. } | Verb::Drain | Verb::Reclaim | Verb::Cordon { .. }
            )
        })
    }

    /// A free key of the resource, or none for a reader. `Err` names the earlier request in whose favour there is none.
    fn seat(&self, resource: &Resource, mode: Mode) -> Result<Vec<String>, Option<&'a Lease>> {
        if mode == Mode::Reader {
            return Ok(Vec::new());
        }
        let mut earlier = None;
        for seat in 0..resource.seats {
            let key = format!("seat:{}:{seat}", resource.id);
            if self.tables.owner(&key).is_some() {
                continue;
            }
            match self.blocker(&key) {
                None => return Ok(vec![key]),
                Some(blocker) => earlier = Some(blocker),
            }
        }
        Err(earlier)
    }

    fn is_free(&self, key: &str) -> bool {
        self.tables.owner(key).is_none() && self.blocker(key).is_none()
    }

    /// The request before this one that has the key, or needs it.
    fn blocker(&self, key: &str) -> Option<&'a Lease> {
        self.taken.get(key).or_else(|| self.reserved.get(key)).copied()
    }

    fn busy(&self, resource: &Resource) -> Reason {
        let holder = self.tables.holders(&resource.id).find(|holder| holder.is_held());
        Reason::Busy {
            resource: resource.full_name.clone(),
            owner: holder.map_or_else(|| "nobody".to_owned(), |holder| holder.request.owner.to_string()),
            since: holder.and_then(|holder| holder.acquired_at).unwrap_or_default(),
        }
    }

    /// Of the first candidate whose own key is free but whose parts are not: what is free of it.
    fn free_keys_of_blocked(&self, lease: &Lease, class: &Class) -> Vec<String> {
        let blocked = class.reasons.iter().find_map(|reason| match reason {
            Reason::PartBusy { resource, .. } => Some(resource),
            _ => None,
        });
        let kind = lease.request.want.kind;
        let Some(resource) = blocked.and_then(|name| {
            self.tables.resources().find(|resource| {
                resource.kind == kind && resource.full_name == *name && resource.state == ResourceState::Active
            })
        }) else {
            return Vec::new();
        };
        let mut keys = self.seat(resource, Mode::Hold).unwrap_or_default();
        let parts = resource.gang.iter().filter_map(|claim| self.part(claim, &resource.name));
        keys.extend(parts.flat_map(|part| keys_in(&[], &[part])));
        keys
    }

    fn take(&mut self, lease: &'a Lease, grant: &Grant) {
        self.taken.extend(keys_of(grant).map(|key| (key.clone(), lease)));
    }

    fn reserve(&mut self, lease: &'a Lease, keys: Vec<String>) {
        for key in keys {
            self.reserved.entry(key).or_insert(lease);
        }
    }
}

impl Class<'_> {
    /// The n-th who waits goes after the n-th end; when there are fewer ends, after a mean hold more.
    fn estimate(&self, waiting: usize) -> Option<Moment> {
        let rounds = waiting.checked_div(self.ends.len())? as u64;
        let end = self.ends[waiting % self.ends.len()];
        if rounds == 0 { Some(end) } else { Some(end.plus_ms(self.mean_ms?.saturating_mul(rounds))) }
    }
}

fn class_key(lease: &Lease) -> (Want, Vec<Want>, String) {
    (lease.request.want.clone(), lease.request.also.clone(), lease.request.authorizer.clone())
}

fn lacks_no_tags(name: &str, tags: &[String], want: &Want) -> Result<(), String> {
    let missing: Vec<_> = want.tags.iter().filter(|tag| !tags.contains(tag)).map(|tag| format!("`{tag}`")).collect();
    if missing.is_empty() { Ok(()) } else { Err(format!("{name} lacks the tags {}", missing.join(", "))) }
}

/// All keys that a grant takes.
fn keys_of(grant: &Grant) -> impl Iterator<Item = &String> {
    let identities = grant.parts.iter().filter_map(|part| match &part.on {
        PartOn::Made { identity, .. } => Some(identity),
        PartOn::Existing(_) => None,
    });
    grant.slots.iter().chain(grant.parts.iter().flat_map(|part| &part.slots)).chain(identities)
}

fn keys_in(slots: &[String], parts: &[Part]) -> Vec<String> {
    let grant = Grant { resource: "".into(), slots: slots.to_vec(), parts: parts.to_vec() };
    keys_of(&grant).cloned().collect()
}

#[cfg(test)]
mod tests;
