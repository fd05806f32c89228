//! What the cache has: which bytes, in whose repositories, who was seen to be let to them, and what goes first when it is full. ◆
//!
//! ```text
//!  Holdings ── repositories: name ─► tags (tag ─► digest, when asked), parts (digest ─► media type), readers (who ─► when let in)
//!          └── kept: digest ─► bytes, last use, held
//!
//!  bytes are one for all repositories; a right to them is of a repository and of who reads it:
//!    part of this repository, and its reader seen by the upstream lately ─► Known::Yes
//!    the same, long ago                                                  ─► Known::Once   enough while the upstream cannot be asked
//!    part of this repository, and nothing known of its reader            ─► Known::No     the upstream is asked, by HEAD
//!    no part of it as far as we know                                     ─► Known::Foreign   its word is not enough: it gives the bytes, or some of them
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Holding;
use super::ask::Digest;

/// How long an upstream's word for a reader holds: the pull of a large image. Tokens of registries live 5 minutes and more.
const GRANT_TIME: Duration = Duration::from_secs(600);

/// In whose name an upstream is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Who {
    /// Nobody's.
    Anybody,
    /// The farm's, by its file.
    Farm,
    /// A job's own: a hash of name and password.
    Job(Digest),
}

/// Seconds since 1970: what outlives the process.
pub(super) type Seconds = u64;

/// What is known of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// `registry.example.org/a/b`.
    pub(super) name: String,
    /// What its tags were.
    pub(super) tags: BTreeMap<String, Tagged>,
    /// What is part of it, as `sha256:…`; a manifest with its media type.
    parts: BTreeMap<String, Option<String>>,
    /// Who was let in: `anybody`, `farm`. Of jobs nothing is kept: they are over.
    readers: BTreeMap<String, Seconds>,
    #[serde(skip)]
    jobs: HashMap<Digest, Seconds>,
}

/// What a tag was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tagged {
    /// The manifest.
    pub(super) digest: String,
    /// When the upstream said so.
    pub(super) asked: Seconds,
}

/// Whether somebody may have a part of a repository, as far as the cache knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Yes.
    Yes,
    /// He might once.
    Once,
    /// Nothing is known of him.
    No,
    /// It is no part of this repository.
    Foreign,
}

/// Bytes that are kept.
#[derive(Clone, Debug)]
struct Kept {
    bytes: u64,
    used: Seconds,
    /// Counts who reads it.
    held: Held,
}

/// Keeps what somebody reads from being thrown out.
pub(super) type Held = Arc<()>;

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    repositories: HashMap<String, Record>,
    kept: HashMap<Digest, Kept>,
    bytes: u64,
    /// Of what is being loaded.
    reserved: u64,
}

/// What has to go so that something else fits.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Room {
    /// Whose bytes are removed.
    pub(super) gone: Vec<Digest>,
    /// Repositories that change with it.
    pub(super) changed: BTreeSet<String>,
}

impl Holdings {
    /// With what was found on the disk; tags and parts whose bytes are gone are forgotten.
    pub(super) fn of(records: Vec<Record>, kept: Vec<(Digest, u64, Seconds)>) -> Holdings {
        let mut holdings = Holdings::default();
        for (digest, bytes, used) in kept {
            holdings.keep(digest, bytes, used);
        }
        for mut record in records {
            let has = |digest: &str| digest.parse().is_ok_and(|digest| holdings.kept.contains_key(&digest));
            record.tags.retain(|_, tagged| has(&tagged.digest));
            record.parts.retain(|digest, _| has(digest));
            holdings.repositories.insert(record.name.clone(), record);
        }
        holdings
    }

    /// Bytes that are kept.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many things are kept.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.kept.len()
    }

    /// Every repository, by name.
    pub(super) fn list(&self) -> Vec<Holding> {
        let mut list: Vec<_> = self.repositories.values().map(|record| self.holding(record)).collect();
        list.sort_by(|one, other| one.repository.cmp(&other.repository));
        list
    }

    fn holding(&self, record: &Record) -> Holding {
        let parts = record.parts.keys().filter_map(|digest| self.kept.get(&digest.parse().ok()?));
        let jobs = record.jobs.values().max().map(|at| ("job".to_owned(), *at));
        Holding {
            repository: record.name.clone(),
            tags: record.tags.keys().cloned().collect(),
            bytes: parts.clone().map(|kept| kept.bytes).sum(),
            used: parts.map(|kept| kept.used).max().unwrap_or_default(),
            readers: record.readers.clone().into_iter().chain(jobs).collect(),
        }
    }

    /// Forgets a repository, or all whose names go on behind `name` with a `/`. Of their parts those go that are part of no other, but for
    /// what is read now.
    pub(super) fn forget(&mut self, name: &str) -> Room {
        let is_of =
            |other: &String| other.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let changed: BTreeSet<String> = self.repositories.keys().filter(|other| is_of(other)).cloned().collect();
        let records: Vec<Record> = changed.iter().filter_map(|name| self.repositories.remove(name)).collect();
        let parts: BTreeSet<&String> = records.iter().flat_map(|record| record.parts.keys()).collect();
        let others = &self.repositories;
        let alone = parts.into_iter().filter(|part| !others.values().any(|record| record.parts.contains_key(*part)));
        let mut gone: Vec<Digest> = alone.filter_map(|part| part.parse().ok()).collect();
        gone.retain(|digest| self.kept.get(digest).is_some_and(|kept| Arc::strong_count(&kept.held) == 1));
        self.bytes -= gone.iter().filter_map(|digest| self.kept.remove(digest)).map(|kept| kept.bytes).sum::<u64>();
        Room { gone, changed }
    }

    /// What is known of a repository.
    pub(super) fn record(&self, repository: &str) -> Option<&Record> {
        self.repositories.get(repository)
    }

    /// What a tag was, when the upstream was asked last.
    pub(super) fn tag(&self, repository: &str, tag: &str) -> Option<(Digest, Seconds)> {
        let tagged = self.repositories.get(repository)?.tags.get(tag)?;
        Some((tagged.digest.parse().ok()?, tagged.asked))
    }

    /// The upstream said what a tag is.
    pub(super) fn tagged(&mut self, repository: &str, tag: &str, digest: Digest, now: Seconds) {
        let tagged = Tagged { digest: digest.to_string(), asked: now };
        self.of_name(repository).tags.insert(tag.to_owned(), tagged);
    }

    /// The upstream has no such tag any more.
    pub(super) fn untagged(&mut self, repository: &str, tag: &str) {
        if let Some(record) = self.repositories.get_mut(repository) {
            record.tags.remove(tag);
        }
    }

    /// The upstream gave `digest` as part of `repository` to `who`. Tells whether what is on the disk is to change.
    pub(super) fn granted(
        &mut self,
        repository: &str,
        digest: Digest,
        media_type: Option<&str>,
        who: &Who,
        now: Seconds,
    ) -> bool {
        let record = self.of_name(repository);
        let part = record.parts.entry(digest.to_string());
        let is_new = matches!(part, std::collections::btree_map::Entry::Vacant(_));
        let known = part.or_default();
        if let Some(media_type) = media_type {
            *known = Some(media_type.to_owned());
        }
        let is_first = match who {
            Who::Anybody => record.readers.insert("anybody".to_owned(), now).is_none(),
            Who::Farm => record.readers.insert("farm".to_owned(), now).is_none(),
            Who::Job(job) => {
                record.jobs.retain(|_, at| now.saturating_sub(*at) < 24 * 3600);
                record.jobs.insert(*job, now);
                false
            }
        };
        is_new || is_first
    }

    /// What the farm's own name and password open may be something else from now on.
    pub(super) fn forget_the_farm(&mut self) {
        for record in self.repositories.values_mut() {
            record.readers.remove("farm");
        }
    }

    /// The upstream does not let `who` in, or has it no more.
    pub(super) fn denied(&mut self, repository: &str, who: &Who) {
        if let Some(record) = self.repositories.get_mut(repository) {
            let _ = match who {
                Who::Anybody => record.readers.remove("anybody"),
                Who::Farm => record.readers.remove("farm"),
                Who::Job(job) => record.jobs.remove(job),
            };
        }
    }

    /// Whether `who` may have `digest` of `repository`.
    pub(super) fn knows(&self, repository: &str, digest: Digest, who: &Who, now: Seconds) -> Known {
        let Some(record) = self.repositories.get(repository) else { return Known::Foreign };
        if !record.parts.contains_key(&digest.to_string()) {
            return Known::Foreign;
        }
        let seen = match who {
            Who::Anybody => record.readers.get("anybody"),
            Who::Farm => record.readers.get("farm"),
            Who::Job(job) => record.jobs.get(job),
        };
        match seen {
            Some(at) if now.saturating_sub(*at) < GRANT_TIME.as_secs() => Known::Yes,
            Some(_) => Known::Once,
            None => Known::No,
        }
    }

    /// The media type of a manifest.
    pub(super) fn media_type(&self, repository: &str, digest: Digest) -> Option<String> {
        let own = self.repositories.get(repository).and_then(|record| record.parts.get(&digest.to_string()));
        let parts = self.repositories.values().filter_map(|record| record.parts.get(&digest.to_string()));
        own.into_iter().chain(parts).find_map(Clone::clone)
    }

    /// What is kept under `digest`, held for whoever reads it: its size.
    pub(super) fn hold(&mut self, digest: Digest, now: Seconds) -> Option<(u64, Held)> {
        let kept = self.kept.get_mut(&digest)?;
        kept.used = now;
        Some((kept.bytes, Arc::clone(&kept.held)))
    }

    /// These bytes are there now.
    pub(super) fn keep(&mut self, digest: Digest, bytes: u64, now: Seconds) {
        let kept = Kept { bytes, used: now, held: Held::default() };
        if self.kept.insert(digest, kept).is_none() {
            self.bytes += bytes;
        }
    }

    /// These are gone; the repositories that had them.
    pub(super) fn lose(&mut self, digest: Digest) -> BTreeSet<String> {
        self.bytes -= self.kept.remove(&digest).map_or(0, |kept| kept.bytes);
        let (text, mut changed) = (digest.to_string(), BTreeSet::new());
        for record in self.repositories.values_mut() {
            if record.parts.remove(&text).is_some() {
                record.tags.retain(|_, tagged| tagged.digest != text);
                changed.insert(record.name.clone());
            }
        }
        self.repositories.retain(|_, record| !record.parts.is_empty());
        changed
    }

    /// Room for `bytes` more: what was not used for longest goes, but nothing that is read now. `None`: they do not fit.
    pub(super) fn make_room(&mut self, bytes: u64, bytes_max: u64) -> Option<Room> {
        let wanted = (self.bytes + self.reserved).saturating_add(bytes).saturating_sub(bytes_max);
        let mut free: Vec<_> = self.kept.iter().filter(|(_, kept)| Arc::strong_count(&kept.held) == 1).collect();
        if free.iter().map(|(_, kept)| kept.bytes).sum::<u64>() < wanted {
            return None;
        }
        free.sort_by_key(|(digest, kept)| (kept.used, **digest));
        let mut freed = 0;
        let until_enough = free.into_iter().take_while(|(_, kept)| {
            let goes = freed < wanted;
            freed += kept.bytes;
            goes
        });
        let gone: Vec<_> = until_enough.map(|(digest, _)| *digest).collect();
        let changed = gone.iter().flat_map(|digest| self.lose(*digest)).collect();
        self.reserved += bytes;
        Some(Room { gone, changed })
    }

    /// What was reserved is kept by now, or was given up.
    pub(super) fn unreserve(&mut self, bytes: u64) {
        self.reserved -= bytes;
    }

    fn of_name(&mut self, repository: &str) -> &mut Record {
        let new = || Record { name: repository.to_owned(), ..Record::default() };
        self.repositories.entry(repository.to_owned()).or_insert_with(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u8) -> Digest {
        Digest::from_bytes([number; 32])
    }

    #[test]
    fn a_part_is_had_by_whom_the_upstream_let_to_its_repository_and_by_nobody_else() {
        let mut holdings = Holdings::default();
        let (job, other) = (Who::Job(digest(8)), Who::Job(digest(9)));
        assert!(holdings.granted("quay.io/secret", digest(1), None, &job, 1000));
        let knows =
            |holdings: &Holdings, repository, part, who: &Who, now| holdings.knows(repository, digest(part), who, now);
        assert_eq!(knows(&holdings, "quay.io/secret", 1, &job, 1599), Known::Yes);
        assert_eq!(knows(&holdings, "quay.io/secret", 1, &job, 1600), Known::Once);
        for who in [&other, &Who::Anybody, &Who::Farm] {
            assert_eq!(knows(&holdings, "quay.io/secret", 1, who, 1001), Known::No, "{who:?}");
        }
        // Of the same bytes behind another name he knows nothing.
        holdings.granted("quay.io/public", digest(2), None, &Who::Anybody, 1000);
        assert_eq!(knows(&holdings, "quay.io/public", 1, &Who::Anybody, 1001), Known::Foreign);
        assert_eq!(knows(&holdings, "quay.io/none", 1, &Who::Anybody, 1001), Known::Foreign);
        holdings.denied("quay.io/secret", &job);
        assert_eq!(knows(&holdings, "quay.io/secret", 1, &job, 1001), Known::No);
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first_and_what_is_read_stays() {
        let mut holdings = Holdings::default();
        for (number, used) in [(1, 10), (2, 20), (3, 30)] {
            holdings.keep(digest(number), 100, used);
            holdings.granted("quay.io/a", digest(number), None, &Who::Anybody, used);
        }
        holdings.tagged("quay.io/a", "old", digest(2), 20);
        let held = holdings.hold(digest(1), 15).unwrap();
        assert_eq!(held.0, 100);
        let changed = BTreeSet::from(["quay.io/a".to_owned()]);
        assert_eq!(holdings.make_room(50, 300), Some(Room { gone: vec![digest(2)], changed: changed.clone() }));
        assert_eq!((holdings.bytes(), holdings.count(), holdings.tag("quay.io/a", "old")), (200, 2, None));
        // What was reserved counts.
        assert_eq!(holdings.make_room(50, 300), Some(Room::default()));
        assert_eq!(holdings.make_room(150, 300), None, "what is read and what is loaded stay");
        drop(held);
        assert_eq!(holdings.make_room(150, 300), Some(Room { gone: vec![digest(1), digest(3)], changed }));
        holdings.unreserve(250);
        assert_eq!(holdings.make_room(301, 300), None);
        assert_eq!(holdings.list(), []);
    }

    #[test]
    fn a_repository_is_forgotten_with_its_parts_but_for_those_of_others_and_those_that_are_read() {
        let mut holdings = Holdings::default();
        for (repository, parts) in [("quay.io/a", [1, 2, 3]), ("quay.io/a/b", [3, 4, 5]), ("quay.io/ab", [5, 6, 6])] {
            for number in parts {
                holdings.keep(digest(number), 100, 1000);
                holdings.granted(repository, digest(number), None, &Who::Anybody, 1000);
            }
        }
        let held = holdings.hold(digest(2), 1000);
        let changed = BTreeSet::from(["quay.io/a".to_owned(), "quay.io/a/b".to_owned()]);
        assert_eq!(holdings.forget("quay.io/a"), Room { gone: vec![digest(1), digest(3), digest(4)], changed });
        drop(held);
        let left: Vec<_> = holdings.list().into_iter().map(|holding| (holding.repository, holding.bytes)).collect();
        assert_eq!((left, holdings.bytes()), (vec![("quay.io/ab".to_owned(), 200)], 300));
        assert_eq!(holdings.forget("quay"), Room::default());
        // What was read then is nobody's, and goes when there is no room.
        assert_eq!(holdings.make_room(100, 300).map(|room| room.gone.len()), Some(1));
    }

    #[test]
    fn a_record_of_the_disk_is_read_again_without_what_is_gone() {
        let mut holdings = Holdings::default();
        for number in [1, 2] {
            holdings.granted("quay.io/a", digest(number), Some("application/x"), &Who::Anybody, 1000);
            holdings.granted("quay.io/a", digest(number), None, &Who::Job(digest(9)), 1000);
            holdings.tagged("quay.io/a", &format!("v{number}"), digest(number), 1000);
        }
        let text = serde_json::to_string(holdings.record("quay.io/a").unwrap()).unwrap();
        let again = Holdings::of(vec![serde_json::from_str(&text).unwrap()], vec![(digest(2), 7, 900)]);
        assert_eq!((again.tag("quay.io/a", "v1"), again.tag("quay.io/a", "v2")), (None, Some((digest(2), 1000))));
        assert_eq!(again.media_type("quay.io/a", digest(2)).as_deref(), Some("application/x"));
        assert_eq!(again.knows("quay.io/a", digest(2), &Who::Anybody, 1001), Known::Yes);
        assert_eq!(again.knows("quay.io/a", digest(2), &Who::Job(digest(9)), 1001), Known::No);
        let holding = Holding {
            repository: "quay.io/a".to_owned(),
            tags: vec!["v2".to_owned()],
            bytes: 7,
            used: 900,
            readers: BTreeMap::from([("anybody".to_owned(), 1000)]),
        };
        assert_eq!(again.list(), [holding]);
    }
}
