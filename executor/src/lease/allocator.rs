//! Who gets what, and why not yet: a pure function over the rows. ◆
//!
//! ```text
//!  the queue, in the order of walk.rs: priority, what projects have used, age; a gang stands where its oldest member stands
//!     for each:  never? ─► say so      free? ─► grant, whole      else build ─► else reclaim ─► else wait, with a reason per candidate
//!  who waits for one thing while another that it needs is free has that one reserved: a later request takes neither (no barging),
//!  and is served from whatever the earlier ones do not need (backfill)
//! ```
//! Nothing here is remembered: the same rows give the same plan. Requests that ask for the same share one look at the candidates, so that
//! a plan costs what the distinct requests cost, not what the queue is long.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;

pub use self::build::{number_of, parts_of};
pub use self::reasons::{Outlook, Outlooks, Reason};
#[cfg(test)]
pub use self::walk::queue;
use self::walk::{Fared, Goes, Turns};
use super::rows::*;
use super::shares::counts;
use super::steps::{Grant, Part, PartOn};
use super::tables::{Ask, Line, Tables, line};

mod build;
mod reasons;
mod walk;

/// Turns move by themselves, and with them what is kept free for whom: a minute is a small part of what anybody has used when they do.
const TURNS_MOVE_MS: u64 = 60_000;

/// What is to be done now.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In this order.
    pub decisions: Vec<Decision>,
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

/// Plans everything that can be decided now. Only resources with a free seat are looked at, and of each line of the queue only as many
/// requests as may get something.
pub fn plan_with(tables: &Tables, now: Moment, look: Look) -> Plan {
    let mut round = Round::new(tables, now, Walk::Decide);
    round.look = look;
    round.walk_the_queue(None);
    round.keep_house();
    round.plan
}

/// The same, over everything.
#[cfg(test)]
pub fn plan(tables: &Tables, now: Moment) -> Plan {
    plan_with(tables, now, Look::Everything)
}

/// What everybody who waits is told: the same walk, to the end of the queue and over all candidates.
pub fn outlooks(tables: &Tables, now: Moment) -> Outlooks {
    let mut round = Round::new(tables, now, Walk::Tell);
    round.walk_the_queue(None);
    round.outlooks
}

/// Whether a request would be granted at once if it were made now, or get something made for it; `Err` says per candidate why not.
pub fn free_now(tables: &Tables, lease: &Lease, now: Moment) -> Result<(), Arc<[Reason]>> {
    let line = line(lease);
    let mut round = Round::new(tables, now, Walk::Tell);
    round.walk_the_queue(Some((&line, lease)).filter(|_| lease.request.gang.is_none()));
    let granted = round.plan.decisions.iter().any(|decision| match decision {
        Decision::Grant(grants) => grants.iter().any(|(id, _)| id == lease.id()),
        Decision::Build(resource) => resource.made_for.as_ref() == Some(lease.id()),
        Decision::Reclaim { .. } | Decision::Drain(_) | Decision::Never { .. } => false,
    });
    if granted {
        return Ok(());
    }
    Err(round.outlooks.remove(lease.id()).map_or_else(|| Arc::from([]), |outlook| outlook.reasons))
}

/// Whether a request could ever be served; `Err` says per candidate why not. Asked before a request becomes a row.
pub fn can_ever(tables: &Tables, request: &LeaseRequest) -> Result<(), String> {
    let round = Round::new(tables, Moment(0), Walk::Decide);
    if let Some(want) = request.also.iter().find(|want| want.kind.rank() >= request.want.kind.rank()) {
        return Err(format!("a {} cannot be a part of a {}", want.kind, request.want.kind));
    }
    let (project, members) = (&request.authorizer, request.gang.as_ref().map_or(1, |gang| gang.members));
    if let Some(running) = tables.quota(project).and_then(|quota| quota.running).filter(|running| members > *running) {
        let leases = if running == 1 { "lease" } else { "leases" };
        return Err(format!("the project `{project}` may have {running} {leases} at a time, and this takes {members}"));
    }
    std::iter::once(&request.want).chain(&request.also).try_for_each(|want| {
        let misfits = round.misfits(want, &request.authorizer);
        misfits.map_or(Ok(()), Err)
    })
}

/// The blueprints that could serve a request, and of which nobody has been asked yet whether they may.
pub fn unasked(tables: &Tables, request: &LeaseRequest) -> Vec<String> {
    let round = Round::new(tables, Moment(0), Walk::Decide);
    let asks = |blueprint: &&Blueprint| {
        let is_new = tables.authorization(&request.authorizer, &blueprint.name).is_none();
        blueprint.access == Access::Authorized && is_new
    };
    let wants = std::iter::once(&request.want).chain(&request.also);
    let fits = wants.flat_map(|want| {
        let blueprints = round.blueprints(want.kind).filter(asks);
        let fitting = blueprints.filter(|it| round.could_make(it, want, &request.authorizer).is_ok());
        fitting.map(|blueprint| blueprint.name.clone()).collect::<Vec<_>>()
    });
    fits.collect()
}

/// Who is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Everything that could ever serve somebody: needed when blueprints, answers or resources went away.
    Everything,
    /// What is free.
    Free,
}

/// What a walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Walk {
    /// To find what can be done.
    Decide,
    /// To say why nothing can.
    Tell,
}

/// One plan in the making. Keys that are taken or reserved in it only become more, so what is not free once is not free later.
struct Round<'a> {
    tables: &'a Tables,
    now: Moment,
    purpose: Walk,
    look: Look,
    plan: Plan,
    outlooks: Outlooks,
    waiting: usize,
    /// How many leases each project gets in this plan.
    given: HashMap<&'a str, usize>,
    taken: HashMap<String, &'a Lease>,
    reserved: HashMap<String, &'a Lease>,
    /// Resources that are being made and that an earlier request waits for.
    spoken_for: HashSet<&'a ResourceId>,
    reclaimed: HashSet<&'a ResourceId>,
    /// How many of those there are, per blueprint.
    given_up: HashMap<&'a str, u32>,
    /// Keys of resources that this plan makes.
    planned: HashSet<String>,
    /// Per blueprint, the first number that this plan has not found taken.
    numbers: HashMap<&'a str, u32>,
    /// Blueprints that could make one more, or that share their limit.
    growing: Vec<&'a Blueprint>,
    classes: HashMap<Ask, Class<'a>>,
}

/// What all requests that ask for the same have in common.
#[derive(Default)]
struct Class<'a> {
    /// Why nothing could ever serve it.
    never: Option<String>,
    /// Resources that may be free, the best first.
    candidates: VecDeque<&'a Resource>,
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
    fn new(tables: &'a Tables, now: Moment, purpose: Walk) -> Round<'a> {
        let grows = |blueprint: &&Blueprint| {
            blueprint.service != Service::Retired
                && (blueprint.pool.is_some() || tables.made_by(&blueprint.name) < blueprint.limit as usize)
        };
        Round {
            tables,
            now,
            purpose,
            look: Look::Everything,
            plan: Plan::default(),
            outlooks: Outlooks::default(),
            waiting: 0,
            given: HashMap::new(),
            taken: HashMap::new(),
            reserved: HashMap::new(),
            spoken_for: HashSet::new(),
            reclaimed: HashSet::new(),
            given_up: HashMap::new(),
            planned: HashSet::new(),
            numbers: HashMap::new(),
            growing: tables.blueprints.values().filter(grows).collect(),
            classes: HashMap::new(),
        }
    }

    fn walk_the_queue(&mut self, extra: Option<(&'a Line, &'a Lease)>) {
        let mut turns = Turns::of(self.tables, self.now, extra);
        if turns.projects() > 1 {
            self.again_at(self.now.plus_ms(TURNS_MOVE_MS));
        }
        while let Some(head) = turns.next() {
            let before = self.given_of(head.lease);
            let goes = match head.line {
                Line::Ask(ask) => self.place_one(head.lease, ask, &mut turns),
                Line::Gang(gang) => {
                    self.place_gang(gang, head.members(self.tables));
                    Goes::NoFurther
                }
            };
            let tells_all = self.purpose == Walk::Tell && matches!(head.line, Line::Ask(_));
            let fared = match self.given_of(head.lease) - before {
                0 => Fared::Waits,
                count => Fared::Got(count as u64),
            };
            turns.put_back(head, fared, if tells_all { Goes::On } else { goes });
        }
    }

    fn given_of(&self, lease: &Lease) -> usize {
        self.given.get(lease.request.authorizer.as_str()).copied().unwrap_or(0)
    }

    fn place_one(&mut self, lease: &'a Lease, ask: &Ask, turns: &mut Turns<'a>) -> Goes {
        let mut class = self.take_class(ask);
        let mut goes = Goes::On;
        if let Some(why) = class.never.clone() {
            self.plan.decisions.push(Decision::Never { lease: lease.id().clone(), why });
        } else if let Some(reasons) = class.exhausted.clone() {
            self.wait(lease, &mut class, reasons);
        } else if let Some(reason) = self.has_all_it_may(lease, 1) {
            // Nothing is kept for it: what it waits for is an end of its own project's.
            let reasons: Arc<[Reason]> = Arc::from([reason]);
            class.exhausted = Some(Arc::clone(&reasons));
            goes = Goes::NoFurther;
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
                    if self.purpose == Walk::Tell && counts(lease) && turns.is_passed(&ask.authorizer) {
                        reasons.push(Reason::UsedMore { project: ask.authorizer.clone() });
                    }
                    let reasons: Arc<[Reason]> = reasons.into();
                    if hope == build::Hope::None {
                        class.exhausted = Some(Arc::clone(&reasons));
                        goes = Goes::NoFurther;
                    }
                    self.wait(lease, &mut class, reasons);
                }
            }
        }
        self.put_class(ask, class);
        goes
    }

    /// All members or none. What the members found is reserved for them when one of them found nothing.
    fn place_gang(&mut self, gang: &Gang, members: Vec<&'a Lease>) {
        let kept_back = members.first().and_then(|lease| self.has_all_it_may(lease, members.len()));
        let complete = members.len() == gang.members as usize && kept_back.is_none();
        let mut grants = Vec::new();
        let mut failed: Vec<Reason> = Vec::new();
        let mut reserve = Vec::new();
        let mut missing = Vec::new();
        for lease in members.iter().filter(|_| complete) {
            let ask = Ask::of(lease);
            let mut class = self.take_class(&ask);
            if let Some(why) = class.never.clone() {
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
            self.put_class(&ask, class);
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
            if counts(lease) {
                self.given.entry(&lease.request.authorizer).and_modify(|given| *given -= 1);
            }
            self.reserve(lease, keys);
        }
        for lease in &missing {
            self.reserve(lease, std::mem::take(&mut reserve));
            self.build_or_reclaim(lease, &mut failed);
        }
        failed.push(kept_back.unwrap_or_else(|| Reason::Gang { name: gang.name.clone() }));
        let reasons: Arc<[Reason]> = failed.into();
        for lease in members {
            let ask = Ask::of(lease);
            let mut class = self.take_class(&ask);
            self.wait(lease, &mut class, Arc::clone(&reasons));
            self.put_class(&ask, class);
        }
    }

    /// Why a project gets no `more` leases now, if it has as many as it may.
    fn has_all_it_may(&self, lease: &Lease, more: usize) -> Option<Reason> {
        let project = lease.request.authorizer.as_str();
        let running = self.tables.quota(project)?.running?;
        let has = self.tables.holding(project) + self.given_of(lease);
        (counts(lease) && has + more > running as usize).then(|| Reason::Quota { project: project.to_owned(), running })
    }

    fn wait(&mut self, lease: &Lease, class: &mut Class, reasons: Arc<[Reason]>) {
        if self.purpose == Walk::Tell {
            self.waiting += 1;
            let estimate = class.estimate(class.waiting);
            class.waiting += 1;
            self.outlooks.insert(lease.id().clone(), Outlook { place: self.waiting, reasons, estimate });
        }
    }

    fn take_class(&mut self, ask: &Ask) -> Class<'a> {
        if let Some(class) = self.classes.get_mut(ask) {
            return std::mem::take(class);
        }
        let mut class = self.class_of(&ask.want, &ask.authorizer);
        let also = ask.also.iter().filter(|_| self.look == Look::Everything);
        let never = also.filter_map(|want| self.misfits(want, &ask.authorizer));
        class.never = class.never.into_iter().chain(never).reduce(|one, other| format!("{one}; {other}"));
        class
    }

    fn put_class(&mut self, ask: &Ask, class: Class<'a>) {
        match self.classes.get_mut(ask) {
            Some(place) => *place = class,
            None => drop(self.classes.insert(ask.clone(), class)),
        }
    }

    fn class_of(&self, want: &Want, authorizer: &str) -> Class<'a> {
        let mut class = Class::default();
        let tables = self.tables;
        match (self.purpose, &want.name) {
            (_, Some(name)) => {
                tables.called(want.kind, name).for_each(|it| self.add_candidate(it, want, authorizer, &mut class));
            }
            // A reader needs no seat.
            (Walk::Decide, None) if want.mode == Mode::Hold => {
                tables.open(want.kind).for_each(|it| self.add_candidate(it, want, authorizer, &mut class));
            }
            (Walk::Decide | Walk::Tell, None) => {
                tables.live(want.kind).for_each(|it| self.add_candidate(it, want, authorizer, &mut class));
            }
        }
        class.ends.sort_unstable();
        class.candidates.make_contiguous().sort_by_key(|resource| self.rank(resource));
        if class.candidates.is_empty() && class.reasons.is_empty() && self.look == Look::Everything {
            class.never = self.misfits(want, authorizer);
        }
        class
    }

    fn add_candidate(&self, resource: &'a Resource, want: &Want, authorizer: &str, class: &mut Class<'a>) {
        match self.could_serve(resource, want, authorizer) {
            Err(_) => {}
            Ok(Some(awaits)) => class.reasons.push(awaits),
            Ok(None) => self.sort_candidate(resource, want.purpose, class),
        }
    }

    fn sort_candidate(&self, resource: &'a Resource, purpose: Purpose, class: &mut Class<'a>) {
        match (resource.serves(purpose), resource.state) {
            (false, _) => class.reasons.push(Reason::of_held_back(resource)),
            (true, ResourceState::Draining) => {
                class.reasons.push(Reason::Draining { resource: resource.full_name.clone() });
            }
            (true, ResourceState::Pending) => {
                class.reasons.push(Reason::Starting { resource: resource.full_name.clone(), kind: resource.kind });
            }
            (true, _) => class.candidates.push_back(resource),
        }
        if self.purpose == Walk::Tell {
            self.add_ends(resource, class);
        }
    }

    fn add_ends(&self, resource: &Resource, class: &mut Class) {
        let mean_ms = self.tables.blueprints.get(&resource.blueprint).and_then(|blueprint| blueprint.mean_hold_ms);
        class.mean_ms = class.mean_ms.max(mean_ms);
        let ends = self.tables.holders(&resource.id).filter_map(|holder| {
            let by_mean = || Some(holder.acquired_at?.plus_ms(mean_ms?));
            holder.deadlines.expires.or_else(by_mean).map(|end| end.max(self.now))
        });
        class.ends.extend(ends);
    }

    /// `None`: something could serve it, now or later. Otherwise, per candidate, why not.
    fn misfits(&self, want: &Want, authorizer: &str) -> Option<String> {
        let tables = self.tables;
        let mut called = want.name.iter().flat_map(|name| tables.called(want.kind, name));
        if called.any(|resource| self.could_serve(resource, want, authorizer).is_ok())
            || self.blueprints(want.kind).any(|it| self.could_make(it, want, authorizer).is_ok())
            || tables.live(want.kind).any(|resource| self.could_serve(resource, want, authorizer).is_ok())
        {
            return None;
        }
        let resources = tables.live(want.kind).filter_map(|it| self.could_serve(it, want, authorizer).err());
        let mut misfits: Vec<String> = resources.map(|misfit| misfit.to_string()).collect();
        // A resource that is there has said so already.
        let others = self.blueprints(want.kind).filter(|blueprint| tables.made_by(&blueprint.name) == 0);
        misfits.extend(others.filter_map(|it| self.could_make(it, want, authorizer).err()).map(|it| it.to_string()));
        if misfits.is_empty() {
            misfits.push(format!("the farm has no {}", want.kind));
        }
        Some(misfits.join("; "))
    }

    /// `Ok(Some)`: it could, once somebody has said yes.
    fn could_serve<'b>(
        &self,
        resource: &'b Resource,
        want: &'b Want,
        authorizer: &'b str,
    ) -> Result<Option<Reason>, Misfit<'b>>
    where
        'a: 'b,
    {
        let misfit = |why| Misfit { what: &resource.full_name, why };
        if want.name.as_ref().is_some_and(|name| !resource.is_called(name)) {
            return Err(misfit(Why::Name(want)));
        }
        if !has_tags(&resource.tags, want) {
            return Err(misfit(Why::Tags(&resource.tags, want)));
        }
        if resource.keep == Keep::WithItsLease {
            return Err(misfit(Why::OfAnotherLease));
        }
        let blueprint = self.tables.blueprints.get(&resource.blueprint);
        let blueprint = blueprint.filter(|it| it.service != Service::Retired).ok_or(misfit(Why::NoBlueprint))?;
        self.may(blueprint, want.purpose, authorizer)
    }

    /// A health job is the farm's own, so that nobody has to be asked.
    fn may<'b>(
        &self,
        blueprint: &'b Blueprint,
        purpose: Purpose,
        subject: &'b str,
    ) -> Result<Option<Reason>, Misfit<'b>> {
        let allowed = self.tables.quota(subject).and_then(|quota| quota.blueprints.as_ref());
        let is_one_of =
            |allowed: &Vec<String>| allowed.iter().any(|it| *it == blueprint.name || *it == blueprint.full_name);
        if purpose == Purpose::Work && !allowed.is_none_or(is_one_of) {
            return Err(Misfit { what: &blueprint.full_name, why: Why::NotOfProject(subject) });
        }
        if blueprint.access == Access::Everyone || purpose == Purpose::Health {
            return Ok(None);
        }
        match self.tables.authorization(subject, &blueprint.name).map(|it| it.state) {
            Some(AuthorizationState::Authorized) => Ok(None),
            Some(AuthorizationState::Declined) => Err(Misfit { what: &blueprint.name, why: Why::Declined(subject) }),
            Some(AuthorizationState::Requested) | None => {
                Ok(Some(Reason::AwaitsAuthorization { blueprint: blueprint.name.clone(), subject: subject.to_owned() }))
            }
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
                    let resource = class.candidates.front().map_or("it", |resource| &resource.full_name).to_owned();
                    return Tried::Waits(vec![Reason::PartBusy { resource, part: wanted }], reserve);
                }
            }
        }
        match self.best(lease, class) {
            Some((resource, slots, mut parts)) => {
                // What the whole brings along by itself is not claimed a second time.
                extras.retain(|extra| parts.iter().all(|part| part.on != extra.on));
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
        let request = &lease.request;
        let likes_all_alike = request.prefers.is_empty()
            && request.avoid.is_empty()
            && request.sticky.is_none()
            && lease.failed_on.is_empty();
        if likes_all_alike {
            return self.first(lease, class);
        }
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
        free.into_iter().min_by_key(|(resource, ..)| (liking(lease, resource), self.rank(resource)))
    }

    /// The candidates stand in their order: whoever likes them all alike takes the first free one.
    fn first(&self, lease: &'a Lease, class: &mut Class<'a>) -> Option<(&'a Resource, Vec<String>, Vec<Part>)> {
        while let Some(resource) = class.candidates.front() {
            match self.free(lease, resource) {
                Ok((slots, parts)) => return Some((resource, slots, parts)),
                Err(reason) => class.reasons.push(reason),
            }
            class.candidates.pop_front();
        }
        None
    }

    /// Less is better, whoever asks.
    fn rank(&self, resource: &'a Resource) -> impl Ord + use<'a> {
        let suspect = resource.health == Health::Suspect;
        let idle_since = i128::from(resource.idle_since.unwrap_or_default().0);
        let policy = self.tables.blueprints.get(&resource.blueprint).map(|blueprint| blueprint.policy);
        let age = if policy == Some(PlacementPolicy::Pack) { -idle_since } else { idle_since };
        (suspect, resource.failures, age, &resource.id)
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
                let part = self.part(claim, &resource.name, lease).ok_or_else(|| Reason::PartBusy {
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

    fn part(&self, claim: &Claim, whole: &str, lease: &Lease) -> Option<Part> {
        let kind = claim.kind;
        match &claim.on {
            ClaimOn::Named(name) => {
                let resource = self.tables.called(kind, name).find(|it| it.name == *name && self.is_usable(it))?;
                let slots = self.seat(resource, Mode::Hold).ok()?;
                Some(Part { kind, on: PartOn::Existing(resource.id.clone()), slots, mode: Mode::Hold })
            }
            ClaimOn::Made { identity } => {
                let identity = identity.replace("{lease}", lease.id().as_str());
                self.is_free(&identity).then_some(())?;
                let on = PartOn::Made { name: format!("{whole}-{kind}"), identity: identity.clone() };
                Some(Part { kind, on, slots: vec![format!("seat:{identity}:0")], mode: Mode::Hold })
            }
        }
    }

    fn find_extra(&self, lease: &Lease, want: &Want, others: &[Part]) -> Option<Part> {
        let chosen = |slots: &[String]| others.iter().any(|part| part.slots.iter().any(|slot| slots.contains(slot)));
        let mut found = self.tables.live(want.kind).filter(|resource| {
            self.is_usable(resource) && matches!(self.could_serve(resource, want, &lease.request.authorizer), Ok(None))
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
            && resource.serves(Purpose::Work)
            && !self.reclaimed.contains(&resource.id)
            && !self.is_asked_to_end(resource)
    }

    /// A release, a loss, a drain or a doubt that it has not read yet: nobody gets on board now.
    fn is_asked_to_end(&self, resource: &Resource) -> bool {
        self.tables.unread(&resource.object()).any(|command| {
            matches!(
                command.verb,
                Verb::Release { .. }
                    | Verb::ResourceLost { .. }
                    | Verb::Drain
                    | Verb::Reclaim
                    | Verb::Cordon { .. }
                    | Verb::Try { .. }
                    | Verb::Retire { .. }
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
        let active = |it: &&Resource| it.state == ResourceState::Active;
        let Some(resource) =
            blocked.and_then(|name| self.tables.called(kind, name).find(|it| it.full_name == *name && active(it)))
        else {
            return Vec::new();
        };
        let mut keys = self.seat(resource, Mode::Hold).unwrap_or_default();
        let parts = resource.gang.iter().filter_map(|claim| self.part(claim, &resource.name, lease));
        keys.extend(parts.flat_map(|part| keys_in(&[], &[part])));
        keys
    }

    fn take(&mut self, lease: &'a Lease, grant: &Grant) {
        if counts(lease) {
            *self.given.entry(&lease.request.authorizer).or_default() += 1;
        }
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

/// Less is better, for this lease.
fn liking<'a>(lease: &'a Lease, resource: &Resource) -> impl Ord + use<'a> {
    let named = |names: &[String]| names.iter().any(|name| resource.is_called(name));
    let request = &lease.request;
    let avoided = named(&request.avoid) || named(&lease.failed_on);
    let not_sticky = !request.sticky.as_ref().is_some_and(|name| resource.is_called(name));
    let lacking: Vec<bool> = request.prefers.iter().map(|tag| !resource.tags.contains(tag)).collect();
    (avoided, resource.health == Health::Suspect, not_sticky, lacking)
}

fn has_tags(tags: &[String], want: &Want) -> bool {
    want.tags.iter().all(|tag| tags.contains(tag))
}

/// Why something could never serve a request; a sentence only where somebody reads it.
#[derive(Clone, Copy, Debug)]
struct Misfit<'a> {
    what: &'a str,
    why: Why<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Why<'a> {
    Name(&'a Want),
    Tags(&'a [String], &'a Want),
    OfAnotherLease,
    NoBlueprint,
    Declined(&'a str),
    NotOfProject(&'a str),
}

impl fmt::Display for Misfit<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = self.what;
        match self.why {
            Why::Name(want) => write!(formatter, "{what} is not `{}`", want.name.as_deref().unwrap_or_default()),
            Why::Tags(tags, want) => {
                let missing = want.tags.iter().filter(|tag| !tags.contains(tag)).map(|tag| format!("`{tag}`"));
                write!(formatter, "{what} lacks the tags {}", missing.collect::<Vec<_>>().join(", "))
            }
            Why::OfAnotherLease => write!(formatter, "{what} belongs to another lease"),
            Why::NoBlueprint => write!(formatter, "{what} is no longer in the farm file"),
            Why::Declined(subject) => write!(formatter, "{subject} may not use {what}"),
            Why::NotOfProject(project) => write!(formatter, "{what}: the project `{project}` may not use it"),
        }
    }
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
