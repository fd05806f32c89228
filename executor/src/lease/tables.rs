//! The rows in memory, with the few indexes that the steps and the allocator ask. ◆
//!
//! ```text
//!  transition ─► apply: every check first (version, slot, command), then every change ─► the same rows that the store has
//!  events ─────► replay: the same rows again
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::rows::{
    Authorization, Blueprint, Command, CommandId, Effect, EffectId, Gang, Journal, Kind, Lease, LeaseId, LeaseState,
    Moment, Object, Quota, Resource, ResourceId, ResourceState, Transition, Used, Want,
};
use super::shares::{Shares, Standing};

/// Why a transition was not taken: it does not go on from the rows as they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// The row changed in between.
    #[error("{object} is at version {found:?}, and the transition goes to {next}; plan it again")]
    Version {
        /// The row.
        object: Object,
        /// Its version, if it exists.
        found: Option<u64>,
        /// The transition's.
        next: u64,
    },
    /// The key has an owner.
    #[error("slot {key} belongs to {owner}; plan it again")]
    Slot {
        /// The key.
        key: String,
        /// Who owns it.
        owner: Object,
    },
    /// The key does not belong to whom it should be taken from.
    #[error("slot {key} does not belong to {owner}; plan it again")]
    NotOwned {
        /// The key.
        key: String,
        /// Who should own it.
        owner: Object,
    },
    /// The command was read already, or never posted.
    #[error("command {0} is not waiting to be read; plan it again")]
    Command(CommandId),
    /// Nobody would ever read the command.
    #[error("{0} is history or was never there; nothing can be asked of it")]
    NoTarget(Object),
}

/// The place of a waiting lease among those of its project: the first is the least.
pub type QueueKey = (Reverse<i32>, u64, LeaseId);

/// What waiting leases have in common: those of one line fare alike, and the first of a line goes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Line {
    /// They ask for the same in the same name.
    Ask(Ask),
    /// They belong to one gang.
    Gang(Gang),
}

/// What is asked for, and in whose name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ask {
    /// The resource.
    pub want: Want,
    /// What is claimed together with it.
    pub also: Vec<Want>,
    /// In whose name.
    pub authorizer: String,
}

impl Ask {
    /// What a lease asks for.
    pub fn of(lease: &Lease) -> Ask {
        let request = &lease.request;
        Ask { want: request.want.clone(), also: request.also.clone(), authorizer: request.authorizer.clone() }
    }
}

/// All rows that are not history, and the configuration that they are planned with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tables {
    leases: BTreeMap<LeaseId, Arc<Lease>>,
    resources: BTreeMap<ResourceId, Arc<Resource>>,
    slots: BTreeMap<String, Object>,
    commands: BTreeMap<Object, BTreeMap<CommandId, Command>>,
    effects: BTreeMap<Object, Effect>,
    children: BTreeMap<Object, BTreeSet<LeaseId>>,
    holders: BTreeMap<ResourceId, BTreeSet<LeaseId>>,
    lines: BTreeMap<Line, BTreeSet<QueueKey>>,
    /// Resources that are neither being released nor over.
    live: Live,
    last: Last,
    shares: Shares,
    /// What each project may have; `others` for those that are not here.
    pub quotas: BTreeMap<String, Quota>,
    /// What makes resources, by name.
    pub blueprints: BTreeMap<String, Blueprint>,
    /// Who may lease from what, by subject and blueprint.
    pub authorizations: BTreeMap<(String, String), Authorization>,
}

/// Resources that are neither being released nor over, by what the allocator asks for.
#[derive(Clone, Debug, Default, PartialEq)]
struct Live {
    by_kind: BTreeMap<Kind, BTreeSet<ResourceId>>,
    /// By name and by full name.
    by_name: BTreeMap<Kind, BTreeMap<String, BTreeSet<ResourceId>>>,
    by_blueprint: BTreeMap<String, BTreeSet<ResourceId>>,
    /// Active, and with a seat that nobody has.
    open: BTreeMap<Kind, BTreeSet<ResourceId>>,
    /// Being made.
    starting: BTreeMap<Kind, BTreeSet<ResourceId>>,
}

/// The newest numbers, which are never given twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Last {
    /// Of a command.
    pub command: CommandId,
    /// Of an effect.
    pub effect: EffectId,
    /// Of a lease or resource.
    pub serial: u64,
    /// Of an event.
    pub event: u64,
}

/// The rows as a store gives them back.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// Leases.
    pub leases: Vec<Lease>,
    /// Resources.
    pub resources: Vec<Resource>,
    /// Owned keys.
    pub slots: Vec<(String, Object)>,
    /// Unread commands.
    pub commands: Vec<Command>,
    /// Effects without a result.
    pub effects: Vec<Effect>,
    /// What projects have used.
    pub used: Vec<Used>,
    /// The newest numbers.
    pub last: Last,
}

impl Tables {
    /// The rows of a store.
    pub fn of(loaded: Loaded) -> Tables {
        let mut tables = Tables { last: loaded.last, ..Tables::default() };
        loaded.resources.into_iter().for_each(|resource| tables.put_resource(resource));
        loaded.leases.into_iter().for_each(|lease| tables.put_lease(lease));
        tables.slots = loaded.slots.into_iter().collect();
        loaded.commands.into_iter().for_each(|command| tables.put_command(command));
        tables.effects = loaded.effects.into_iter().map(|effect| (effect.object.clone(), effect)).collect();
        loaded.used.into_iter().for_each(|used| tables.shares.put(used));
        tables
    }

    /// The rows that these events lead to, from the rows before them.
    #[cfg(test)]
    pub fn replay<'a>(
        base: Tables,
        events: impl IntoIterator<Item = &'a super::rows::Event>,
    ) -> Result<Tables, Conflict> {
        let mut tables = base;
        for event in events {
            tables.apply(&event.transition)?;
        }
        Ok(tables)
    }

    /// A lease.
    pub fn lease(&self, id: &LeaseId) -> Option<&Lease> {
        self.leases.get(id).map(Arc::as_ref)
    }

    /// A resource.
    pub fn resource(&self, id: &ResourceId) -> Option<&Resource> {
        self.resources.get(id).map(Arc::as_ref)
    }

    /// All leases.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values().map(Arc::as_ref)
    }

    /// All resources.
    pub fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.resources.values().map(Arc::as_ref)
    }

    /// All leases, to be kept by whoever asks.
    pub fn shared_leases(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.leases.values()
    }

    /// A lease, to be kept by whoever asks.
    pub fn shared_lease(&self, id: &LeaseId) -> Option<Arc<Lease>> {
        self.leases.get(id).cloned()
    }

    /// All resources, to be kept by whoever asks.
    pub fn shared_resources(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    /// The resources of a kind that are neither being released nor over.
    pub fn live(&self, kind: Kind) -> impl Iterator<Item = &Resource> {
        self.rows_of(self.live.by_kind.get(&kind))
    }

    /// Those of them that somebody could know by this name.
    pub fn called(&self, kind: Kind, name: &str) -> impl Iterator<Item = &Resource> {
        self.rows_of(self.live.by_name.get(&kind).and_then(|names| names.get(name)))
    }

    /// Those of them that are active and have a seat that nobody has.
    pub fn open(&self, kind: Kind) -> impl Iterator<Item = &Resource> {
        self.rows_of(self.live.open.get(&kind))
    }

    /// Those of them that are being made.
    pub fn starting(&self, kind: Kind) -> impl Iterator<Item = &Resource> {
        self.rows_of(self.live.starting.get(&kind))
    }

    /// How many of a blueprint's resources are neither being released nor over.
    pub fn made_by(&self, blueprint: &str) -> usize {
        self.live.by_blueprint.get(blueprint).map_or(0, BTreeSet::len)
    }

    /// A blueprint's resources that are neither being released nor over.
    pub fn live_of(&self, blueprint: &str) -> impl Iterator<Item = &Resource> {
        self.rows_of(self.live.by_blueprint.get(blueprint))
    }

    /// What a project may have.
    pub fn quota(&self, project: &str) -> Option<&Quota> {
        self.quotas.get(project).or_else(|| self.quotas.get("others"))
    }

    /// How many leases a project has.
    pub fn holding(&self, project: &str) -> usize {
        self.shares.holding(project)
    }

    /// How many requests of a project wait.
    pub fn waiting(&self, project: &str) -> usize {
        self.shares.waiting(project)
    }

    /// Where a project stands against others now.
    pub fn standing(&self, project: &str, now: Moment) -> Standing {
        self.shares.standing(project, self.quota(project), now)
    }

    /// What projects have used, once this lease is given back now.
    pub fn used_by(&self, lease: &Lease, now: Moment) -> Vec<Used> {
        self.shares.used_by(lease, now)
    }

    /// What projects had used when they last gave something back.
    pub fn used(&self) -> impl Iterator<Item = &Used> {
        self.shares.used()
    }

    /// What is said of a subject and a blueprint.
    pub fn authorization(&self, subject: &str, blueprint: &str) -> Option<&Authorization> {
        self.authorizations.get(&(subject.to_owned(), blueprint.to_owned()))
    }

    fn rows_of<'a>(&'a self, ids: Option<&'a BTreeSet<ResourceId>>) -> impl Iterator<Item = &'a Resource> + use<'a> {
        ids.into_iter().flatten().filter_map(|id| self.resource(id))
    }

    /// The leases of a parent that are not over.
    pub fn children(&self, parent: &Object) -> impl DoubleEndedIterator<Item = &Lease> + use<'_> {
        self.children.get(parent).into_iter().flatten().filter_map(|id| self.lease(id))
    }

    /// The leases on a resource that are not over.
    pub fn holders(&self, resource: &ResourceId) -> impl Iterator<Item = &Lease> + use<'_> {
        self.holders.get(resource).into_iter().flatten().filter_map(|id| self.lease(id))
    }

    /// The lines of the queue, each with its members, the next one first.
    pub fn lines(&self) -> impl Iterator<Item = (&Line, &BTreeSet<QueueKey>)> {
        self.lines.iter()
    }

    /// Who owns a key.
    pub fn owner(&self, slot: &str) -> Option<&Object> {
        self.slots.get(slot)
    }

    /// All owned keys.
    #[cfg(test)]
    pub fn slots(&self) -> impl Iterator<Item = (&str, &Object)> {
        self.slots.iter().map(|(key, owner)| (key.as_str(), owner))
    }

    /// The commands that an object has not read, the oldest first.
    pub fn unread(&self, object: &Object) -> impl Iterator<Item = &Command> + use<'_> {
        self.commands.get(object).into_iter().flat_map(BTreeMap::values)
    }

    /// The objects that have commands to read.
    #[cfg(test)]
    pub fn asked(&self) -> impl Iterator<Item = &Object> {
        self.commands.keys()
    }

    /// The effect that an object was about to do, without a result.
    pub fn open_effect(&self, object: &Object) -> Option<&Effect> {
        self.effects.get(object)
    }

    /// The newest numbers.
    pub fn last(&self) -> Last {
        self.last
    }

    /// Gives the transition's commands and effects their numbers.
    pub fn number(&self, transition: &mut Transition) {
        let unnumbered = transition.posted.iter_mut().filter(|command| command.id == 0);
        unnumbered.zip(self.last.command + 1..).for_each(|(command, id)| command.id = id);
        let unnumbered = transition.intents.iter_mut().filter(|effect| effect.id == 0);
        unnumbered.zip(self.last.effect + 1..).for_each(|(effect, id)| effect.id = id);
    }

    /// Takes a numbered transition, whole or not at all.
    pub fn apply(&mut self, transition: &Transition) -> Result<(), Conflict> {
        self.check(transition)?;
        for (key, _) in &transition.freed {
            self.slots.remove(key);
        }
        for (key, owner) in &transition.taken {
            self.slots.insert(key.clone(), owner.clone());
        }
        if transition.journal == Journal::Closed {
            self.effects.remove(&transition.object);
        }
        for effect in &transition.intents {
            self.last.effect = self.last.effect.max(effect.id);
            self.effects.insert(effect.object.clone(), effect.clone());
        }
        transition.consumed.iter().for_each(|id| self.take_command(&transition.object, *id));
        transition.resources.iter().for_each(|resource| self.put_resource(resource.clone()));
        transition.leases.iter().for_each(|lease| self.put_lease(lease.clone()));
        transition.posted.iter().for_each(|command| self.put_command(command.clone()));
        transition.used.iter().for_each(|used| self.shares.put(used.clone()));
        self.last.event += 1;
        Ok(())
    }

    /// Forgets a row that is over and has read everything: it is history.
    pub fn forget(&mut self, object: &Object) {
        if self.commands.contains_key(object) {
            return;
        }
        match object {
            Object::Lease(id) if self.lease(id).is_some_and(|lease| lease.state == LeaseState::Destroyed) => {
                self.leases.remove(id);
            }
            Object::Resource(id)
                if self.resource(id).is_some_and(|resource| resource.state == ResourceState::Destroyed) =>
            {
                self.resources.remove(id);
            }
            Object::Lease(_) | Object::Resource(_) => {}
        }
    }

    fn check(&self, transition: &Transition) -> Result<(), Conflict> {
        for lease in &transition.leases {
            let found = self.lease(lease.id()).map(|lease| lease.version);
            check_version(found, lease.version, || lease.object())?;
        }
        for resource in &transition.resources {
            let found = self.resource(&resource.id).map(|resource| resource.version);
            check_version(found, resource.version, || resource.object())?;
        }
        for (key, owner) in &transition.freed {
            if self.slots.get(key) != Some(owner) {
                return Err(Conflict::NotOwned { key: key.clone(), owner: owner.clone() });
            }
        }
        let mut new = BTreeSet::new();
        for (key, owner) in &transition.taken {
            let freed = transition.freed.iter().any(|(freed, _)| freed == key);
            if let Some(owner) = self.slots.get(key).filter(|_| !freed).or((!new.insert(key)).then_some(owner)) {
                return Err(Conflict::Slot { key: key.clone(), owner: owner.clone() });
            }
        }
        if let Some(command) = transition.posted.iter().find(|command| !self.is_known(&command.target, transition)) {
            return Err(Conflict::NoTarget(command.target.clone()));
        }
        let unread = |id: &&CommandId| !self.commands.get(&transition.object).is_some_and(|all| all.contains_key(id));
        transition.consumed.iter().find(unread).map_or(Ok(()), |id| Err(Conflict::Command(*id)))
    }

    fn is_known(&self, object: &Object, transition: &Transition) -> bool {
        match object {
            Object::Lease(id) => self.leases.contains_key(id) || transition.leases.iter().any(|lease| lease.id() == id),
            Object::Resource(id) => {
                self.resources.contains_key(id) || transition.resources.iter().any(|other| other.id == *id)
            }
        }
    }

    fn put_lease(&mut self, lease: Lease) {
        let id = lease.id().clone();
        self.last.serial = self.last.serial.max(lease.seq);
        let lease = Arc::new(lease);
        let old = self.leases.insert(id.clone(), Arc::clone(&lease));
        if let Some(old) = old.as_ref().filter(|old| old.state == LeaseState::Pending) {
            remove_from(&mut self.lines, &line(old), &queue_key(old));
        }
        self.shares.follow(old.as_deref(), &lease);
        if lease.state == LeaseState::Pending {
            self.lines.entry(line(&lease)).or_default().insert(queue_key(&lease));
        }
        let alive = lease.state != LeaseState::Destroyed;
        match (&lease.parent, alive) {
            (Some(parent), true) => {
                self.children.entry(parent.clone()).or_default().insert(id.clone());
            }
            (Some(parent), false) => remove_from(&mut self.children, parent, &id),
            (None, _) => {}
        }
        if let Some(resource) = old.as_ref().and_then(|old| old.resource.as_ref()) {
            remove_from(&mut self.holders, resource, &id);
            self.index_seats(resource);
        }
        if let Some(resource) = lease.resource.as_ref().filter(|_| alive) {
            self.holders.entry(resource.clone()).or_default().insert(id);
            self.index_seats(resource);
        }
    }

    fn put_resource(&mut self, resource: Resource) {
        self.last.serial = self.last.serial.max(resource.serial);
        let id = resource.id.clone();
        let resource = Arc::new(resource);
        let old = self.resources.insert(id.clone(), Arc::clone(&resource));
        let was_alive = old.as_ref().is_some_and(|old| is_alive(old));
        match (was_alive, is_alive(&resource)) {
            (false, true) => self.live.insert(&resource),
            (true, false) => self.live.remove(&resource),
            (true, true) => {
                if let Some(old) = old.filter(|old| old.full_name != resource.full_name) {
                    self.live.remove(&old);
                    self.live.insert(&resource);
                }
            }
            (false, false) => {}
        }
        let starting = resource.state == ResourceState::Pending;
        put(&mut self.live.starting, resource.kind, &id, starting);
        self.index_seats(&id);
    }

    fn index_seats(&mut self, id: &ResourceId) {
        let Some(resource) = self.resources.get(id) else { return };
        let taken = self.holders(id).filter(|holder| !holder.slots.is_empty()).count();
        let open = resource.state == ResourceState::Active && taken < resource.seats as usize;
        put(&mut self.live.open, resource.kind, id, open);
    }

    fn put_command(&mut self, command: Command) {
        self.last.command = self.last.command.max(command.id);
        self.commands.entry(command.target.clone()).or_default().insert(command.id, command);
    }

    fn take_command(&mut self, object: &Object, id: CommandId) {
        if let Some(unread) = self.commands.get_mut(object) {
            unread.remove(&id);
            if unread.is_empty() {
                self.commands.remove(object);
            }
        }
    }
}

impl Live {
    fn insert(&mut self, resource: &Resource) {
        self.by_kind.entry(resource.kind).or_default().insert(resource.id.clone());
        let names = self.by_name.entry(resource.kind).or_default();
        for name in [&resource.name, &resource.full_name] {
            names.entry(name.clone()).or_default().insert(resource.id.clone());
        }
        self.by_blueprint.entry(resource.blueprint.clone()).or_default().insert(resource.id.clone());
    }

    fn remove(&mut self, resource: &Resource) {
        remove_from(&mut self.by_kind, &resource.kind, &resource.id);
        remove_from(&mut self.by_blueprint, &resource.blueprint, &resource.id);
        let Some(names) = self.by_name.get_mut(&resource.kind) else { return };
        remove_from(names, &resource.name, &resource.id);
        remove_from(names, &resource.full_name, &resource.id);
        if names.is_empty() {
            self.by_name.remove(&resource.kind);
        }
    }
}

fn is_alive(resource: &Resource) -> bool {
    !matches!(resource.state, ResourceState::Releasing | ResourceState::Destroyed)
}

fn queue_key(lease: &Lease) -> QueueKey {
    (Reverse(lease.request.priority), lease.seq, lease.id().clone())
}

pub(super) fn line(lease: &Lease) -> Line {
    lease.request.gang.clone().map_or_else(|| Line::Ask(Ask::of(lease)), Line::Gang)
}

fn remove_from<K: Ord, V: Ord>(index: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(values) = index.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            index.remove(key);
        }
    }
}

fn put(index: &mut BTreeMap<Kind, BTreeSet<ResourceId>>, kind: Kind, id: &ResourceId, inside: bool) {
    if !inside {
        remove_from(index, &kind, id);
    } else if !index.get(&kind).is_some_and(|ids| ids.contains(id)) {
        index.entry(kind).or_default().insert(id.clone());
    }
}

fn check_version(found: Option<u64>, next: u64, object: impl Fn() -> Object) -> Result<(), Conflict> {
    if found.unwrap_or(0) + 1 == next { Ok(()) } else { Err(Conflict::Version { object: object(), found, next }) }
}
