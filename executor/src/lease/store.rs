//! The rows on disk: SQLite, one writer, one transaction per commit, synced before anybody acts on it.
//!
//! ```text
//!  commit ─► BEGIN IMMEDIATE ─► per transition: versions (compare and swap), commands, slots, effects, event ─► COMMIT (WAL, fsync)
//!               └─ anything wrong, a full disk included: nothing of it is there
//!  load ───► every row that is not over, what nobody has read, what has no result ─► Tables
//! ```
//! A row is kept whole, as JSON, beside the few columns that the database itself watches: version, state, foreign keys, and one
//! writer per exclusive resource as the second line behind the slots.

use std::path::Path;

use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::rows::{
    Authorization, Command, Effect, Event, Journal, Lease, LeaseState, Moment, Object, Resource, ResourceState,
    Transition,
};
use super::tables::{Last, Loaded};

mod history;

/// What the store speaks now; [`MIGRATIONS`] lead here.
const SCHEMA: i64 = MIGRATIONS.len() as i64;

/// Each entry leads from the version that is its index to the next one. Entries are never changed once released; new ones are added.
const MIGRATIONS: &[&str] = &[include_str!("schema_1.sql"), include_str!("schema_2.sql"), include_str!("schema_3.sql")];

/// Why the store cannot do what it should. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The rows on disk are not what the transition goes on from.
    #[error(
        "{object} changed on disk since it was read; start the farm again, and keep only one process on this store"
    )]
    Conflict {
        /// The row.
        object: Object,
    },
    /// There is no room.
    #[error("the disk under {path} is full; make room, and the farm goes on")]
    DiskFull {
        /// The store.
        path: String,
    },
    /// Written by a later version.
    #[error("{path} was written by a later version (schema {found}, this one reads up to {known}); use that version")]
    Newer {
        /// The store.
        path: String,
        /// Its schema.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A row cannot be read.
    #[error("a row of {path} cannot be read: {source}; restore it from a copy")]
    Unreadable {
        /// The store.
        path: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The thread that would own the store.
    #[error("cannot start the thread that keeps the leases: {0}; look at the limits of this process")]
    Thread(std::io::Error),
    /// SQLite has something to say.
    #[error("{path}: {source}; look at the disk, or restore the file from a copy")]
    Database {
        /// The store.
        path: String,
        /// What it said.
        source: rusqlite::Error,
    },
}

/// Something in the rows that must not be: whom it concerns is not touched until a person has looked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corruption {
    /// A key belongs to a row that is over or was never there.
    #[error("slot {key} belongs to {owner}, which is {found}; nothing that needs it is started")]
    SlotWithoutOwner {
        /// The key.
        key: String,
        /// Its owner.
        owner: Object,
        /// What is wrong with the owner.
        found: &'static str,
    },
    /// A lease is on a resource that is over or was never there.
    #[error("{lease} is on resource {resource}, which is {found}; it is not touched")]
    LeaseWithoutResource {
        /// The lease.
        lease: Object,
        /// What it should hold.
        resource: String,
        /// What is wrong with it.
        found: &'static str,
    },
}

/// The store. Whoever has it is the one writer.
#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: String,
    /// The newest numbers at the newest event that is no longer kept.
    cut: Last,
    events_kept: u64,
}

impl Store {
    /// Opens or creates the store at `path`.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        let name = path.display().to_string();
        let connection = Connection::open(path).map_err(|source| database(&name, source))?;
        Store::set_up(connection, name)
    }

    /// A store that is gone when it is dropped.
    #[cfg(test)]
    pub fn in_memory() -> Result<Store, StoreError> {
        let connection = Connection::open_in_memory().map_err(|source| database("memory", source))?;
        Store::set_up(connection, "memory".to_owned())
    }

    /// Keeps fewer events than a farm does, so that a test sees the cut.
    #[cfg(test)]
    pub fn keeping(mut self, events: u64) -> Store {
        self.events_kept = events;
        self
    }

    fn set_up(connection: Connection, path: String) -> Result<Store, StoreError> {
        let mut store = Store { connection, path, cut: Last::default(), events_kept: history::EVENTS_KEPT };
        store.configure().map_err(|source| store.failed(source))?;
        store.migrate()?;
        store.cut = store.at_cut()?;
        Ok(store)
    }

    fn configure(&self) -> rusqlite::Result<()> {
        // Full: a commit that was told to anybody is still there after the power was cut.
        self.connection.pragma_update(None, "journal_mode", "WAL")?;
        self.connection.pragma_update(None, "synchronous", "FULL")?;
        self.connection.pragma_update(None, "foreign_keys", "ON")?;
        // Somebody looks at the file with a tool: five seconds are longer than any of its reads.
        self.connection.busy_timeout(std::time::Duration::from_secs(5))
    }

    fn migrate(&mut self) -> Result<(), StoreError> {
        let found: i64 = self
            .connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(|source| database(&self.path, source))?;
        if found > SCHEMA {
            return Err(StoreError::Newer { path: self.path.clone(), found, known: SCHEMA });
        }
        for (from, script) in MIGRATIONS.iter().enumerate().skip(usize::try_from(found).unwrap_or_default()) {
            let migrate = |connection: &mut Connection| {
                let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                transaction.execute_batch(script)?;
                transaction.pragma_update(None, "user_version", from as i64 + 1)?;
                transaction.commit()
            };
            migrate(&mut self.connection).map_err(|source| database(&self.path, source))?;
        }
        Ok(())
    }

    /// Commits numbered transitions together: all of them, or none.
    #[cfg(test)]
    pub fn commit(&mut self, transitions: &[Transition]) -> Result<(), StoreError> {
        self.commit_with(transitions, &[])
    }

    /// The same, with what is newly said of who may lease what. Nothing is written for nothing.
    pub fn commit_with(
        &mut self,
        transitions: &[Transition],
        authorizations: &[Authorization],
    ) -> Result<(), StoreError> {
        if transitions.is_empty() && authorizations.is_empty() {
            return Ok(());
        }
        let path = self.path.clone();
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|source| database(&path, source))?;
        let commit = Commit { transaction: &transaction, path: &path };
        for transition in transitions {
            commit.write(transition)?;
        }
        for authorization in authorizations {
            commit.write_authorization(authorization)?;
        }
        if let Some(last) = transitions.last() {
            commit.alive(last.at)?;
        }
        let cut = commit.cut(self.cut, self.events_kept)?;
        transaction.commit().map_err(|source| database(&path, source))?;
        self.cut = cut;
        Ok(())
    }

    /// Everything that is not over.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        Ok(Loaded {
            leases: self.rows(&alive("lease"))?,
            resources: self.rows(&alive("resource"))?,
            slots: self.slots("SELECT key, owner FROM slot")?,
            commands: self.rows("SELECT body FROM command WHERE consumed_at IS NULL ORDER BY id")?,
            effects: self.rows("SELECT body FROM effect WHERE closed_at IS NULL ORDER BY id")?,
            used: self.rows("SELECT body FROM used")?,
            last: self.last()?,
        })
    }

    /// One lease, over or not.
    pub fn lease(&self, id: &str) -> Result<Option<Lease>, StoreError> {
        let body = self
            .connection
            .query_row("SELECT body FROM lease WHERE id = ?1", [id], |row| row.get::<_, String>(0))
            .optional();
        body.map_err(|source| self.failed(source))?.map(|body| self.parse(&body)).transpose()
    }

    /// Events from a number on, or from the oldest that is kept, the oldest first.
    pub fn events(&self, from: u64, count_max: u32) -> Result<Vec<Event>, StoreError> {
        let query = "SELECT seq, body FROM event WHERE seq >= ?1 ORDER BY seq LIMIT ?2";
        // Beyond what SQLite can count there is no event.
        let from = i64::try_from(from).unwrap_or(i64::MAX);
        self.read_events(query, params![from, count_max])
    }

    fn read_events(&self, query: &str, params: impl rusqlite::Params) -> Result<Vec<Event>, StoreError> {
        let read = || {
            let mut statement = self.connection.prepare_cached(query)?;
            let rows = statement.query_map(params, |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let rows = read().map_err(|source| self.failed(source))?;
        rows.into_iter().map(|(seq, body)| Ok(Event { seq: seq as u64, transition: self.parse(&body)? })).collect()
    }

    /// The authorizations.
    pub fn authorizations(&self) -> Result<Vec<Authorization>, StoreError> {
        self.rows("SELECT body FROM authorization ORDER BY subject, blueprint")
    }

    /// What must not be, and is: slots and leases without what they need.
    pub fn corruption(&self, loaded: &Loaded) -> Vec<Corruption> {
        let is_alive = |object: &Object| match object {
            Object::Lease(id) => {
                loaded.leases.iter().any(|lease| lease.id() == id && lease.state != LeaseState::Destroyed)
            }
            Object::Resource(id) => {
                loaded.resources.iter().any(|other| other.id == *id && other.state != ResourceState::Destroyed)
            }
        };
        let found = "over, or was never there";
        let slots = loaded
            .slots
            .iter()
            .filter(|(_, owner)| !is_alive(owner))
            .map(|(key, owner)| Corruption::SlotWithoutOwner { key: key.clone(), owner: owner.clone(), found });
        let held = loaded.leases.iter().filter(|lease| lease.state != LeaseState::Destroyed);
        let leases = held.filter_map(|lease| {
            let resource = lease.resource.clone()?;
            (!is_alive(&Object::Resource(resource.clone()))).then(|| Corruption::LeaseWithoutResource {
                lease: lease.object(),
                resource: resource.to_string(),
                found,
            })
        });
        slots.chain(leases).collect()
    }

    fn rows<T: DeserializeOwned>(&self, query: &str) -> Result<Vec<T>, StoreError> {
        let read = || {
            let mut statement = self.connection.prepare_cached(query)?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let bodies = read().map_err(|source| self.failed(source))?;
        bodies.iter().map(|body| self.parse(body)).collect()
    }

    fn slots(&self, query: &str) -> Result<Vec<(String, Object)>, StoreError> {
        let read = || {
            let mut statement = self.connection.prepare_cached(query)?;
            let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let rows = read().map_err(|source| self.failed(source))?;
        rows.into_iter().map(|(key, owner)| Ok((key, self.parse(&owner)?))).collect()
    }

    fn last(&self) -> Result<Last, StoreError> {
        let newest = |query: &str| {
            let number: Option<i64> = self.connection.query_row(query, [], |row| row.get(0))?;
            Ok::<_, rusqlite::Error>(number.unwrap_or_default() as u64)
        };
        let cut = self.cut;
        let read = || {
            Ok(Last {
                command: newest("SELECT max(id) FROM command")?.max(cut.command),
                effect: newest("SELECT max(id) FROM effect")?.max(cut.effect),
                serial: newest(
                    "SELECT max(serial) FROM (SELECT max(serial) AS serial FROM lease UNION ALL SELECT max(serial) FROM resource)",
                )?
                .max(cut.serial),
                event: newest("SELECT max(seq) FROM event")?.max(cut.event),
            })
        };
        read().map_err(|source| self.failed(source))
    }

    fn parse<T: DeserializeOwned>(&self, body: &str) -> Result<T, StoreError> {
        serde_json::from_str(body).map_err(|source| StoreError::Unreadable { path: self.path.clone(), source })
    }

    fn render(&self, row: &impl Serialize) -> Result<String, StoreError> {
        render(&self.path, row)
    }

    fn failed(&self, source: rusqlite::Error) -> StoreError {
        database(&self.path, source)
    }
}

/// The writes of one transaction.
struct Commit<'a> {
    transaction: &'a Transaction<'a>,
    path: &'a str,
}

impl Commit<'_> {
    fn write(&self, transition: &Transition) -> Result<(), StoreError> {
        // Resources first: leases refer to them. Keys are freed before they are taken again.
        for resource in &transition.resources {
            self.write_resource(resource)?;
        }
        for lease in &transition.leases {
            self.write_lease(lease)?;
        }
        for id in &transition.consumed {
            let query = "UPDATE command SET consumed_at = ?2 WHERE id = ?1 AND consumed_at IS NULL";
            self.one(&transition.object, query, params![*id as i64, at(transition.at)])?;
        }
        for command in &transition.posted {
            self.write_command(command)?;
        }
        for (key, owner) in &transition.freed {
            let owner = self.render(owner)?;
            self.one(&transition.object, "DELETE FROM slot WHERE key = ?1 AND owner = ?2", params![key, owner])?;
        }
        for (key, owner) in &transition.taken {
            let owner = self.render(owner)?;
            self.one(&transition.object, "INSERT INTO slot (key, owner) VALUES (?1, ?2)", params![key, owner])?;
        }
        self.write_effects(transition)?;
        self.write_used("used", transition)?;
        self.write_event(transition)
    }

    fn write_resource(&self, resource: &Resource) -> Result<(), StoreError> {
        let (id, version, serial) = (resource.id.as_str(), resource.version as i64, resource.serial as i64);
        let (state, body) = (resource_state(resource.state), self.render(resource)?);
        let object = resource.object();
        if version == 1 {
            let query = "INSERT INTO resource (id, version, serial, state, body) VALUES (?1, ?2, ?3, ?4, ?5)";
            self.one(&object, query, params![id, version, serial, state, body])
        } else {
            let query = "UPDATE resource SET version = ?2, state = ?3, body = ?4 WHERE id = ?1 AND version = ?2 - 1";
            self.one(&object, query, params![id, version, state, body])
        }
    }

    fn write_lease(&self, lease: &Lease) -> Result<(), StoreError> {
        let (id, version, serial) = (lease.id().as_str(), lease.version as i64, lease.seq as i64);
        let (state, body) = (lease_state(lease.state), self.render(lease)?);
        let resource = lease.resource.as_ref().map(|resource| resource.as_str());
        // The first seat of a resource: what has one seat has one holder.
        let seat = lease.slots.iter().find(|slot| slot.starts_with("seat:"));
        let object = lease.object();
        if version == 1 {
            let query = "INSERT INTO lease (id, version, serial, state, resource, seat, body)
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
            self.one(&object, query, params![id, version, serial, state, resource, seat, body])
        } else {
            let query = "UPDATE lease SET version = ?2, state = ?3, resource = ?4, seat = ?5, body = ?6
                         WHERE id = ?1 AND version = ?2 - 1";
            self.one(&object, query, params![id, version, state, resource, seat, body])
        }
    }

    fn write_command(&self, command: &Command) -> Result<(), StoreError> {
        let target = self.render(&command.target)?;
        let query = "INSERT INTO command (id, target, body) VALUES (?1, ?2, ?3)";
        self.one(&command.target, query, params![command.id as i64, target, self.render(command)?])
    }

    fn write_effects(&self, transition: &Transition) -> Result<(), StoreError> {
        if transition.journal == Journal::Closed {
            let object = self.render(&transition.object)?;
            let query = "UPDATE effect SET closed_at = ?2 WHERE object = ?1 AND closed_at IS NULL";
            let closed = self
                .transaction
                .prepare_cached(query)
                .and_then(|mut it| it.execute(params![object, at(transition.at)]));
            closed.map_err(|source| database(self.path, source))?;
        }
        for effect in &transition.intents {
            self.write_effect(effect)?;
        }
        Ok(())
    }

    fn write_effect(&self, effect: &Effect) -> Result<(), StoreError> {
        let object = self.render(&effect.object)?;
        let query = "INSERT INTO effect (id, object, body) VALUES (?1, ?2, ?3)";
        self.one(&effect.object, query, params![effect.id as i64, object, self.render(effect)?])
    }

    /// Who has used nothing any more is forgotten.
    fn write_used(&self, table: &str, transition: &Transition) -> Result<(), StoreError> {
        for used in &transition.used {
            match used.ms {
                0 => self.run(&format!("DELETE FROM {table} WHERE project = ?1"), [&used.project])?,
                _ => {
                    let query = format!("INSERT OR REPLACE INTO {table} (project, body) VALUES (?1, ?2)");
                    self.run(&query, params![used.project, self.render(used)?])?;
                }
            }
        }
        Ok(())
    }

    fn write_authorization(&self, authorization: &Authorization) -> Result<(), StoreError> {
        let body = self.render(authorization)?;
        let query = "INSERT OR REPLACE INTO authorization (subject, blueprint, body) VALUES (?1, ?2, ?3)";
        self.run(query, params![authorization.subject, authorization.blueprint, body])
    }

    fn write_event(&self, transition: &Transition) -> Result<(), StoreError> {
        let (object, body) = (self.render(&transition.object)?, self.render(transition)?);
        let query = "INSERT INTO event (at, object, body) VALUES (?1, ?2, ?3)";
        self.one(&transition.object, query, params![at(transition.at), object, body])
    }

    /// A write that must change exactly one row.
    fn one(&self, object: &Object, query: &str, params: impl rusqlite::Params) -> Result<(), StoreError> {
        let changed = self.transaction.prepare_cached(query).and_then(|mut statement| statement.execute(params));
        match changed {
            Ok(1) => Ok(()),
            Ok(_) => Err(StoreError::Conflict { object: object.clone() }),
            Err(rusqlite::Error::SqliteFailure(error, _)) if error.code == ErrorCode::ConstraintViolation => {
                Err(StoreError::Conflict { object: object.clone() })
            }
            Err(source) => Err(database(self.path, source)),
        }
    }

    fn render(&self, row: &impl Serialize) -> Result<String, StoreError> {
        render(self.path, row)
    }
}

fn render(path: &str, row: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(row).map_err(|source| StoreError::Unreadable { path: path.to_owned(), source })
}

/// What is not over, and what is over but has not read everything yet.
fn alive(table: &str) -> String {
    format!(
        "SELECT body FROM {table} WHERE state <> 'destroyed' OR json_object('{table}', id) IN
            (SELECT target FROM command WHERE consumed_at IS NULL)"
    )
}

fn at(moment: Moment) -> i64 {
    moment.0 as i64
}

fn lease_state(state: LeaseState) -> &'static str {
    match state {
        LeaseState::Pending => "pending",
        LeaseState::Acquired => "acquired",
        LeaseState::Active => "active",
        LeaseState::Releasing => "releasing",
        LeaseState::Destroyed => "destroyed",
    }
}

fn resource_state(state: ResourceState) -> &'static str {
    match state {
        ResourceState::Pending => "pending",
        ResourceState::Active => "active",
        ResourceState::Draining => "draining",
        ResourceState::Releasing => "releasing",
        ResourceState::Destroyed => "destroyed",
    }
}

fn database(path: &str, source: rusqlite::Error) -> StoreError {
    match &source {
        rusqlite::Error::SqliteFailure(error, _) if error.code == ErrorCode::DiskFull => {
            StoreError::DiskFull { path: path.to_owned() }
        }
        _ => StoreError::Database { path: path.to_owned(), source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::rows::{Cause, Label, LeaseRequest, Verb};
    use crate::lease::samples::{SmallFarm, request, static_dut};
    use crate::lease::tables::Tables;

    /// A farm's transitions: two leases, one of them over, one waiting with an unread command.
    fn history() -> SmallFarm {
        let mut farm = SmallFarm::of(static_dut("a", &[]));
        for id in ["1", "2", "3"] {
            farm.request(LeaseRequest { authorizer: format!("author of {id}"), ..request(id, &[]) });
        }
        farm.settle();
        farm.release("1");
        farm.ask(Object::Lease("3".into()), Verb::Release { cause: Cause::OwnerGone });
        farm
    }

    fn alive(mut tables: Tables) -> Tables {
        let over: Vec<Object> = tables
            .leases()
            .filter(|lease| lease.state == LeaseState::Destroyed)
            .map(Lease::object)
            .chain(
                tables.resources().filter(|resource| resource.state == ResourceState::Destroyed).map(Resource::object),
            )
            .collect();
        over.iter().for_each(|object| tables.forget(object));
        tables.blueprints.clear();
        tables
    }

    #[test]
    fn what_was_committed_is_there_after_the_store_was_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("leases.sqlite");
        let farm = history();
        let mut store = Store::open(&path).unwrap();
        for batch in farm.log.chunks(3) {
            store.commit(batch).unwrap();
        }
        drop(store);
        let store = Store::open(&path).unwrap();
        let loaded = store.load().unwrap();
        assert_eq!(store.corruption(&loaded), []);
        assert!(Tables::of(loaded) == alive(farm.tables.clone()));
        assert_eq!(store.lease("1").unwrap().unwrap().state, LeaseState::Destroyed);
        let events = store.events(1, u32::MAX).unwrap();
        assert!(alive(Tables::replay(Tables::default(), &events).unwrap()) == alive(farm.tables));
    }

    #[test]
    fn a_transition_that_goes_on_from_an_older_row_leaves_nothing_behind() {
        let farm = history();
        let mut store = Store::in_memory().unwrap();
        store.commit(&farm.log).unwrap();
        let before = Tables::of(store.load().unwrap());
        let events = store.events(1, u32::MAX).unwrap().len();
        let ask = Transition::ask(Moment(5), Object::Lease("2".into()), Verb::Drain, "somebody");
        let mut ask = ask;
        before.number(&mut ask);
        let repeated = farm.log.iter().find(|transition| transition.leases.len() > 1).unwrap().clone();
        let refused = store.commit(&[ask, repeated]);
        assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");
        assert!(Tables::of(store.load().unwrap()) == before);
        assert_eq!(store.events(1, u32::MAX).unwrap().len(), events);
    }

    #[test]
    fn a_command_is_read_once() {
        let mut farm = history();
        let mut store = Store::in_memory().unwrap();
        store.commit(&farm.log).unwrap();
        let written = farm.log.len();
        farm.settle();
        let read = farm.log[written..].iter().find(|transition| !transition.consumed.is_empty()).unwrap().clone();
        store.commit(&farm.log[written..]).unwrap();
        let again = Transition { leases: Vec::new(), resources: Vec::new(), posted: Vec::new(), ..read };
        assert!(matches!(store.commit(&[again]), Err(StoreError::Conflict { .. })));
    }

    #[test]
    fn a_full_disk_is_told_and_writes_nothing_by_halves() {
        let farm = history();
        let mut store = Store::in_memory().unwrap();
        let (first, rest) = farm.log.split_at(8);
        store.commit(first).unwrap();
        let before = Tables::of(store.load().unwrap());
        let pages: i64 = store.connection.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
        store.connection.pragma_update(None, "max_page_count", pages).unwrap();
        let error = store.commit(rest).unwrap_err();
        assert_eq!(error.to_string(), "the disk under memory is full; make room, and the farm goes on");
        assert!(Tables::of(store.load().unwrap()) == before);
        store.connection.pragma_update(None, "max_page_count", 1_000_000).unwrap();
        store.commit(rest).unwrap();
    }

    #[test]
    fn a_slot_without_its_owner_is_reported() {
        let farm = history();
        let mut store = Store::in_memory().unwrap();
        store.commit(&farm.log).unwrap();
        store.connection.execute("INSERT INTO slot (key, owner) VALUES ('seat:x:0', '{\"lease\":\"1\"}')", []).unwrap();
        let corruption = store.corruption(&store.load().unwrap());
        let said: Vec<_> = corruption.iter().map(ToString::to_string).collect();
        let expected =
            "slot seat:x:0 belongs to lease 1, which is over, or was never there; nothing that needs it is started";
        assert_eq!(said, [expected]);
    }

    #[test]
    fn old_events_are_forgotten_and_the_rest_still_leads_to_the_rows() {
        let (mut farm, mut store) = (history(), Store::in_memory().unwrap().keeping(20));
        store.commit(&farm.log).unwrap();
        for round in 0..40 {
            let written = farm.log.len();
            farm.request(request(&format!("more {round}"), &[]));
            farm.release(&format!("more {round}"));
            store.commit(&farm.log[written..]).unwrap();
        }
        let events = store.events(1, u32::MAX).unwrap();
        assert_eq!((events.len(), events.last().unwrap().seq), (20, farm.log.len() as u64));
        let replayed = Tables::replay(store.base().unwrap(), &events).unwrap();
        assert!(alive(replayed) == alive(farm.tables.clone()));
        assert_eq!(Tables::of(store.load().unwrap()).last(), farm.tables.last());
        let count = |table: &str| {
            let query = format!("SELECT count(*) FROM {table}");
            store.connection.query_row(&query, [], |row| row.get::<_, i64>(0)).unwrap()
        };
        let counts = ["lease", "resource", "command", "base_row"].map(count);
        assert_eq!(counts, [11, 4, 7, 9]);
        assert_eq!(store.lease("more 3").unwrap(), None);
    }

    #[test]
    fn the_events_of_one_lease_are_its_own() {
        let (farm, mut store) = (history(), Store::in_memory().unwrap());
        store.commit(&farm.log).unwrap();
        let labels: Vec<_> = store
            .events_of(&Object::Lease("3".into()), 10)
            .unwrap()
            .into_iter()
            .map(|it| it.transition.label)
            .collect();
        assert_eq!(labels, [Label::L1, Label::Asked]);
    }

    #[test]
    fn a_store_of_a_later_version_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("leases.sqlite");
        Store::open(&path).unwrap().connection.pragma_update(None, "user_version", 99).unwrap();
        let refused = Store::open(&path).unwrap_err();
        assert!(matches!(refused, StoreError::Newer { found: 99, known: 3, .. }), "{refused}");
    }
}
