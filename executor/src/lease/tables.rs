//! The rows in memory, with the few indexes that the steps and the allocator ask. ◆
//!
//! ```text
//!  transition ─► apply: every check first (version, slot, command), then every change ─► the same rows that the store has
//!  events ─────► replay: the same rows again
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::rows::{
    Authorization, Blueprint, Command, CommandId, Effect, EffectId, Event, Journal, Lease, LeaseId, LeaseState, Object,
    Resource, ResourceId, ResourceState, Transition,
};

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

/// The place of a waiting lease in the queue: the first is the least.
pub type QueueKey = (Reverse<i32>, u64, LeaseId);

/// All rows that are not history, and the configuration that they are planned with.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tables {
    leases: BTreeMap<LeaseId, Lease>,
    resources: BTreeMap<ResourceId, Resource>,
    slots: BTreeMap<String, Object>,
    commands: BTreeMap<Object, BTreeMap<CommandId, Command>>,
    effects: BTreeMap<Object, Effect>,
    children: BTreeMap<Object, BTreeSet<LeaseId>>,
    holders: BTreeMap<ResourceId, BTreeSet<LeaseId>>,
    queue: BTreeSet<QueueKey>,
    last: Last,
    /// What makes resources, by name.
    pub blueprints: BTreeMap<String, Blueprint>,
    /// Who may lease from what, by subject and blueprint.
    pub authorizations: BTreeMap<(String, String), Authorization>,
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
        tables
    }

    /// The rows that these events lead to, from nothing.
    pub fn replay<'a>(events: impl IntoIterator<Item = &'a Event>) -> Result<Tables, Conflict> {
        let mut tables = Tables::default();
        for event in events {
            tables.apply(&event.transition)?;
        }
        Ok(tables)
    }

    /// A lease.
    pub fn lease(&self, id: &LeaseId) -> Option<&Lease> {
        self.leases.get(id)
    }

    /// A resource.
    pub fn resource(&self, id: &ResourceId) -> Option<&Resource> {
        self.resources.get(id)
    }

    /// All leases.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// All resources.
    pub fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.resources.values()
    }

    /// The leases of a parent that are not over.
    pub fn children(&self, parent: &Object) -> impl DoubleEndedIterator<Item = &Lease> + use<'_> {
        self.children.get(parent).into_iter().flatten().filter_map(|id| self.leases.get(id))
    }

    /// The leases on a resource that are not over.
    pub fn holders(&self, resource: &ResourceId) -> impl Iterator<Item = &Lease> + use<'_> {
        self.holders.get(resource).into_iter().flatten().filter_map(|id| self.leases.get(id))
    }

    /// The waiting leases, the next one first.
    pub fn queue(&self) -> impl Iterator<Item = &Lease> {
        self.queue.iter().filter_map(|(_, _, id)| self.leases.get(id))
    }

    /// Who owns a key.
    pub fn owner(&self, slot: &str) -> Option<&Object> {
        self.slots.get(slot)
    }

    /// All owned keys.
    pub fn slots(&self) -> impl Iterator<Item = (&str, &Object)> {
        self.slots.iter().map(|(key, owner)| (key.as_str(), owner))
    }

    /// The commands that an object has not read, the oldest first.
    pub fn unread(&self, object: &Object) -> impl Iterator<Item = &Command> + use<'_> {
        self.commands.get(object).into_iter().flat_map(BTreeMap::values)
    }

    /// The objects that have commands to read.
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
        if let Some(old) = self.leases.get(&id) {
            self.queue.remove(&queue_key(old));
            if let Some(resource) = &old.resource {
                remove_from(&mut self.holders, resource, &id);
            }
        }
        self.last.serial = self.last.serial.max(lease.seq);
        let alive = lease.state != LeaseState::Destroyed;
        if let (Some(resource), true) = (&lease.resource, alive) {
            self.holders.entry(resource.clone()).or_default().insert(id.clone());
        }
        match (&lease.parent, alive) {
            (Some(parent), true) => {
                self.children.entry(parent.clone()).or_default().insert(id.clone());
            }
            (Some(parent), false) => remove_from(&mut self.children, parent, &id),
            (None, _) => {}
        }
        if lease.state == LeaseState::Pending {
            self.queue.insert(queue_key(&lease));
        }
        self.leases.insert(id, lease);
    }

    fn put_resource(&mut self, resource: Resource) {
        self.last.serial = self.last.serial.max(resource.serial);
        self.resources.insert(resource.id.clone(), resource);
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

fn queue_key(lease: &Lease) -> QueueKey {
    (Reverse(lease.request.priority), lease.seq, lease.id().clone())
}

fn remove_from<K: Ord>(index: &mut BTreeMap<K, BTreeSet<LeaseId>>, key: &K, id: &LeaseId) {
    if let Some(ids) = index.get_mut(key) {
        ids.remove(id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}

fn check_version(found: Option<u64>, next: u64, object: impl Fn() -> Object) -> Result<(), Conflict> {
    if found.unwrap_or(0) + 1 == next { Ok(()) } else { Err(Conflict::Version { object: object(), found, next }) }
}
