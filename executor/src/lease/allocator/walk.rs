//! In which order those who wait are looked at. ◆
//!
//! ```text
//!  priority, the highest first
//!    └─ project, the one that has used least by its share (shares.rs); what it gets in this plan counts at once
//!         └─ line (what is asked for), the one with the oldest request; who waits on counts only for those behind him in his line:
//!            of what somebody waits for and cannot have, nothing is used
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, btree_set};

use crate::lease::rows::{Lease, LeaseId, Moment};
use crate::lease::shares::Standing;
use crate::lease::tables::{Line, QueueKey, Tables};

/// The next of a line, and who is behind him.
pub(super) struct Head<'a> {
    pub(super) line: &'a Line,
    pub(super) lease: &'a Lease,
    rest: btree_set::Iter<'a, QueueKey>,
    /// Behind all of them.
    extra: Option<&'a Lease>,
    /// How many of the line wait on before him.
    waits_before: u64,
}

/// How the head of a line fared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fared {
    /// So many leases are its project's from now on.
    Got(u64),
    /// It waits on.
    Waits,
}

/// Whether a line is looked at again in this walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goes {
    On,
    NoFurther,
}

/// Where a line stands within its project: how many wait on before its head, the head's age.
type Place<'a> = (u64, u64, &'a LeaseId);

/// All lines, and always the one whose turn is next.
pub(super) struct Turns<'a> {
    tables: &'a Tables,
    now: Moment,
    heads: BTreeMap<(Reverse<i32>, &'a str), BTreeMap<Place<'a>, Head<'a>>>,
    /// Each project's, and how many leases it gets in this walk.
    standings: HashMap<&'a str, (Standing, u64)>,
    /// Of the projects with this priority: turn, age, name.
    order: BTreeSet<(u64, u64, &'a LeaseId, &'a str)>,
    priority: Reverse<i32>,
    /// The projects that wait at all.
    waiting: BTreeSet<&'a str>,
}

impl<'a> Turns<'a> {
    /// Everybody who waits. `extra` stands where it would stand had it been asked for now.
    pub(super) fn of(tables: &'a Tables, now: Moment, mut extra: Option<(&'a Line, &'a Lease)>) -> Turns<'a> {
        static NOBODY: BTreeSet<QueueKey> = BTreeSet::new();
        let (heads, standings, order, waiting) = (BTreeMap::new(), HashMap::new(), BTreeSet::new(), BTreeSet::new());
        let mut turns = Turns { tables, now, heads, standings, order, priority: Reverse(i32::MAX), waiting };
        for (line, members) in tables.lines() {
            let extra = extra.take_if(|(of, _)| *of == line).map(|(_, lease)| lease);
            turns.add(line, members.iter(), extra, 0);
        }
        if let Some((line, lease)) = extra {
            turns.add(line, NOBODY.iter(), Some(lease), 0);
        }
        turns.waiting = turns.heads.keys().map(|(_, project)| *project).collect();
        turns
    }

    /// How many projects wait.
    pub(super) fn projects(&self) -> usize {
        self.waiting.len()
    }

    /// The head of the line whose turn is next; [`Turns::put_back`] has to follow.
    pub(super) fn next(&mut self) -> Option<Head<'a>> {
        if self.order.is_empty() {
            self.priority = self.heads.keys().next()?.0;
            let projects: Vec<&'a str> =
                self.heads.keys().take_while(|key| key.0 == self.priority).map(|key| key.1).collect();
            projects.into_iter().for_each(|project| self.put_in_order(project));
        }
        let (.., project) = self.order.pop_first()?;
        let heads = self.heads.get_mut(&(self.priority, project))?;
        let (_, head) = heads.pop_first()?;
        if heads.is_empty() {
            self.heads.remove(&(self.priority, project));
        }
        Some(head)
    }

    /// Goes on with the line of a head that fared so, or leaves it.
    pub(super) fn put_back(&mut self, head: Head<'a>, fared: Fared, goes: Goes) {
        let Head { line, lease, rest, extra, waits_before } = head;
        let project = lease.request.authorizer.as_str();
        let waits = match fared {
            Fared::Got(count) => {
                self.standing(project).1 += count;
                0
            }
            Fared::Waits => 1,
        };
        if goes == Goes::On {
            self.add(line, rest, extra, waits_before + waits);
        }
        self.put_in_order(project);
    }

    /// Whether somebody else who waits goes before a project's next lease, because he has used less.
    pub(super) fn is_passed(&mut self, project: &str) -> bool {
        let own = self.tables.standing(project, self.now).turn(0);
        let others: Vec<&'a str> = self.waiting.iter().copied().filter(|other| *other != project).collect();
        others.into_iter().any(|other| self.standing(other).0.turn(1) < own)
    }

    fn add(
        &mut self,
        line: &'a Line,
        mut rest: btree_set::Iter<'a, QueueKey>,
        extra: Option<&'a Lease>,
        waits_before: u64,
    ) {
        let next = rest.find_map(|(.., id)| self.tables.lease(id));
        let (next, extra) = if next.is_some() { (next, extra) } else { (extra, None) };
        let Some(lease) = next else { return };
        let key = (Reverse(lease.request.priority), lease.request.authorizer.as_str());
        let head = Head { line, lease, rest, extra, waits_before };
        self.heads.entry(key).or_default().insert((waits_before, lease.seq, lease.id()), head);
    }

    fn put_in_order(&mut self, project: &'a str) {
        let heads = self.heads.get(&(self.priority, project));
        let Some((&(waits_before, seq, id), _)) = heads.and_then(BTreeMap::first_key_value) else { return };
        let (standing, given) = *self.standing(project);
        self.order.insert((standing.turn(given + waits_before), seq, id, project));
    }

    fn standing(&mut self, project: &'a str) -> &mut (Standing, u64) {
        let (tables, now) = (self.tables, self.now);
        self.standings.entry(project).or_insert_with(|| (tables.standing(project, now), 0))
    }
}

impl<'a> Head<'a> {
    /// All members of a gang that are there.
    pub(super) fn members(&self, tables: &'a Tables) -> Vec<&'a Lease> {
        let rest = self.rest.clone().filter_map(|(.., id)| tables.lease(id));
        std::iter::once(self.lease).chain(rest).collect()
    }
}

/// Everybody who waits in the order in which they are looked at, if nobody gets anything.
#[cfg(test)]
pub fn queue(tables: &Tables, now: Moment) -> Vec<&Lease> {
    let mut turns = Turns::of(tables, now, None);
    let mut queue = Vec::new();
    while let Some(head) = turns.next() {
        match head.line {
            Line::Ask(_) => {
                queue.push(head.lease);
                turns.put_back(head, Fared::Waits, Goes::On);
            }
            Line::Gang(_) => {
                queue.extend(head.members(tables));
                turns.put_back(head, Fared::Waits, Goes::NoFurther);
            }
        }
    }
    queue
}
