//! Events are kept for a while; what they began from is kept as long as they are.
//!
//! ```text
//!  event 1 … cut │ cut+1 … newest              each commit beyond the number below moves the cut a little:
//!  base rows ────┘   replay(base, events) = rows     fold the oldest events into the base, forget them and whatever is over with them
//! ```

use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::{Commit, Store, StoreError, database};
use crate::lease::rows::{Event, Journal, Lease, Moment, Object, Resource, Transition};
use crate::lease::tables::Last;

/// Events that are kept. A job on a DUT writes about forty, of 1 to 2 kB: two and a half thousand jobs, in 200 MB.
pub(super) const EVENTS_KEPT: u64 = 100_000;
/// Events that one commit folds away at most: it takes two milliseconds, and more than most commits write.
const FOLDED_AT_ONCE: u64 = 32;

const LAST: &str = "last";
const ALIVE_AT: &str = "alive_at";

/// The newest numbers at the cut, which are not given again although nothing that is kept has them.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct AtCut {
    command: u64,
    effect: u64,
    serial: u64,
    event: u64,
}

#[derive(Serialize, Deserialize)]
enum BaseRow {
    Lease(Box<Lease>),
    Resource(Box<Resource>),
}

impl Store {
    /// When somebody last had this store open and said so.
    pub fn alive_at(&self) -> Result<Option<Moment>, StoreError> {
        let text = self.meta(ALIVE_AT)?;
        Ok(text.and_then(|text| text.parse().ok()).map(Moment))
    }

    /// Says that somebody has it open now.
    pub fn alive(&mut self, now: Moment) -> Result<(), StoreError> {
        let query = "INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)";
        let written = self.connection.execute(query, params![ALIVE_AT, now.0.to_string()]);
        written.map(drop).map_err(|source| self.failed(source))
    }

    /// The rows before the first event that is kept.
    #[cfg(test)]
    pub fn base(&self) -> Result<crate::lease::tables::Tables, StoreError> {
        use crate::lease::rows::{Command, Effect};
        use crate::lease::tables::{Loaded, Tables};

        let mut loaded = Loaded { last: self.at_cut()?, ..Loaded::default() };
        for row in self.rows::<BaseRow>("SELECT body FROM base_row")? {
            match row {
                BaseRow::Lease(lease) => loaded.leases.push(*lease),
                BaseRow::Resource(resource) => loaded.resources.push(*resource),
            }
        }
        loaded.slots = self.slots("SELECT key, owner FROM base_slot")?;
        loaded.commands = self.rows::<Command>("SELECT body FROM base_command ORDER BY id")?;
        loaded.effects = self.rows::<Effect>("SELECT body FROM base_effect")?;
        loaded.used = self.rows("SELECT body FROM base_used")?;
        Ok(Tables::of(loaded))
    }

    /// The newest events of one object, the oldest of them first.
    pub fn events_of(&self, object: &Object, count_max: u32) -> Result<Vec<Event>, StoreError> {
        let query = "SELECT seq, body FROM event WHERE object = ?1 ORDER BY seq DESC LIMIT ?2";
        let mut events = self.read_events(query, params![self.render(object)?, count_max])?;
        events.reverse();
        Ok(events)
    }

    /// The newest numbers at the cut; its event is the newest that is not kept.
    pub(super) fn at_cut(&self) -> Result<Last, StoreError> {
        let text = self.meta(LAST)?;
        let at_cut: AtCut = text.map(|text| self.parse(&text)).transpose()?.unwrap_or_default();
        Ok(Last { command: at_cut.command, effect: at_cut.effect, serial: at_cut.serial, event: at_cut.event })
    }

    fn meta(&self, key: &str) -> Result<Option<String>, StoreError> {
        let read = self
            .connection
            .query_row("SELECT value FROM meta WHERE key = ?1", [key], |row| row.get::<_, String>(0))
            .optional();
        read.map_err(|source| self.failed(source))
    }
}

impl Commit<'_> {
    /// With the same commit: somebody has this store open.
    pub(super) fn alive(&self, now: Moment) -> Result<(), StoreError> {
        self.run("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)", params![ALIVE_AT, now.0.to_string()])
    }

    /// Moves the cut, if more than `kept` events are kept. Says where it is now.
    pub(super) fn cut(&self, cut: Last, kept: u64) -> Result<Last, StoreError> {
        let newest = self.transaction.query_row("SELECT max(seq) FROM event", [], |row| row.get::<_, Option<i64>>(0));
        let newest = newest.map_err(|source| database(self.path, source))?.unwrap_or_default() as u64;
        let above = newest.saturating_sub(cut.event).saturating_sub(kept).min(FOLDED_AT_ONCE);
        if above == 0 {
            return Ok(cut);
        }
        let mut now = cut;
        for seq in cut.event + 1..=cut.event + above {
            let query = "SELECT body FROM event WHERE seq = ?1";
            let body = self
                .transaction
                .prepare_cached(query)
                .and_then(|mut it| it.query_row([seq as i64], |row| row.get::<_, String>(0)).optional());
            if let Some(body) = body.map_err(|source| database(self.path, source))? {
                let read = serde_json::from_str(&body);
                let transition: Transition =
                    read.map_err(|source| StoreError::Unreadable { path: self.path.to_owned(), source })?;
                self.fold(&transition, &mut now)?;
                self.run("DELETE FROM event WHERE seq = ?1", [seq as i64])?;
                self.forget(&transition)?;
            }
            now.event = seq;
        }
        let at_cut = AtCut { command: now.command, effect: now.effect, serial: now.serial, event: now.event };
        let at_cut = self.render(&at_cut)?;
        self.run("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)", params![LAST, at_cut])?;
        Ok(now)
    }

    /// The transition, taken by the base.
    fn fold(&self, transition: &Transition, last: &mut Last) -> Result<(), StoreError> {
        let object = self.render(&transition.object)?;
        for (key, _) in &transition.freed {
            self.run("DELETE FROM base_slot WHERE key = ?1", [key])?;
        }
        for (key, owner) in &transition.taken {
            let query = "INSERT OR REPLACE INTO base_slot (key, owner) VALUES (?1, ?2)";
            self.run(query, params![key, self.render(owner)?])?;
        }
        if transition.journal == Journal::Closed {
            self.run("DELETE FROM base_effect WHERE object = ?1", [&object])?;
        }
        for effect in &transition.intents {
            last.effect = last.effect.max(effect.id);
            let query = "INSERT OR REPLACE INTO base_effect (object, body) VALUES (?1, ?2)";
            self.run(query, params![self.render(&effect.object)?, self.render(effect)?])?;
        }
        for id in &transition.consumed {
            self.run("DELETE FROM base_command WHERE id = ?1", [*id as i64])?;
        }
        for command in &transition.posted {
            last.command = last.command.max(command.id);
            let query = "INSERT OR REPLACE INTO base_command (id, target, body) VALUES (?1, ?2, ?3)";
            self.run(query, params![command.id as i64, self.render(&command.target)?, self.render(command)?])?;
        }
        self.write_used("base_used", transition)?;
        for resource in &transition.resources {
            last.serial = last.serial.max(resource.serial);
            self.put_base(&resource.object(), &BaseRow::Resource(Box::new(resource.clone())))?;
        }
        for lease in &transition.leases {
            last.serial = last.serial.max(lease.seq);
            self.put_base(&lease.object(), &BaseRow::Lease(Box::new(lease.clone())))?;
        }
        Ok(())
    }

    fn put_base(&self, object: &Object, row: &BaseRow) -> Result<(), StoreError> {
        let query = "INSERT OR REPLACE INTO base_row (object, body) VALUES (?1, ?2)";
        self.run(query, params![self.render(object)?, self.render(row)?])
    }

    /// What is over and has no event any more is not asked for again; what was read and done with it neither.
    fn forget(&self, transition: &Transition) -> Result<(), StoreError> {
        for id in &transition.consumed {
            self.run("DELETE FROM command WHERE id = ?1 AND consumed_at IS NOT NULL", [*id as i64])?;
        }
        let object = self.render(&transition.object)?;
        if transition.journal == Journal::Closed {
            let query = "DELETE FROM effect WHERE object = ?1 AND closed_at <= ?2";
            self.run(query, params![object, transition.at.0 as i64])?;
        }
        let later = self
            .transaction
            .prepare_cached("SELECT 1 FROM event WHERE object = ?1 LIMIT 1")
            .and_then(|mut it| it.exists([&object]));
        if later.map_err(|source| database(self.path, source))? {
            return Ok(());
        }
        let is_over = "NOT EXISTS (SELECT 1 FROM base_command WHERE target = ?1)";
        match &transition.object {
            Object::Lease(id) => {
                let base = format!(
                    "DELETE FROM base_row WHERE object = ?1 AND {is_over} AND EXISTS
                         (SELECT 1 FROM lease WHERE id = ?2 AND state = 'destroyed')"
                );
                self.run(&base, params![object, id.as_str()])?;
                let query = format!("DELETE FROM lease WHERE id = ?2 AND state = 'destroyed' AND {is_over}");
                self.run(&query, params![object, id.as_str()])
            }
            Object::Resource(id) => {
                let base = format!(
                    "DELETE FROM base_row WHERE object = ?1 AND {is_over} AND EXISTS
                         (SELECT 1 FROM resource WHERE id = ?2 AND state = 'destroyed')"
                );
                self.run(&base, params![object, id.as_str()])?;
                // A lease that is over names what it held: both go, whichever is the last.
                let query = format!(
                    "DELETE FROM resource WHERE id = ?2 AND state = 'destroyed' AND {is_over}
                         AND NOT EXISTS (SELECT 1 FROM lease WHERE resource = ?2)"
                );
                self.run(&query, params![object, id.as_str()])
            }
        }
    }

    pub(super) fn run(&self, query: &str, params: impl rusqlite::Params) -> Result<(), StoreError> {
        let done = self.transaction.prepare_cached(query).and_then(|mut statement| statement.execute(params));
        done.map(drop).map_err(|source| database(self.path, source))
    }
}
