//! How much of the queue and of the farm each project has, and whose turn is next. ◆
//!
//! ```text
//!  a request is made ─► its turn = the later of ─┬─ the project's last turn that is not over, and STEP / share more
//!                                                └─ the turn that is being served: that of the newest hold, else of the first who waits
//! ```
//! That is start-time fair queueing with requests of equal length: the queue's order is (priority, turn, age), set when a request is made.
//! A project that asks for much has turns far in the future, and one that asks for little comes in between; who did not ask gathered nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::rows::{Lease, LeaseId, LeaseRequest, LeaseState, Mode, Quota};
use super::tables::QueueKey;

/// The distance between two turns of a project with one share; a share is at most 1000, so that they stay apart.
const STEP: u64 = 1_000_000;

/// What every project has, as the rows say it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Shares {
    waits: BTreeMap<String, BTreeSet<LeaseId>>,
    holds: BTreeMap<String, BTreeSet<LeaseId>>,
    /// The turns of what is not over, by priority and project.
    turns: BTreeMap<(i32, String), BTreeSet<(u64, LeaseId)>>,
    /// The turns of what is held, by priority.
    served: BTreeMap<i32, BTreeSet<(u64, LeaseId)>>,
}

impl Shares {
    /// Follows a lease from what it was to what it is.
    pub(super) fn follow(&mut self, old: Option<&Lease>, new: &Lease) {
        let is = |lease: &Lease| (counts(lease), lease.state == LeaseState::Pending, lease.is_held());
        if old.map(is) == Some(is(new)) {
            return;
        }
        if let Some(old) = old.filter(|old| counts(old)) {
            self.change(old, |ids, id| ids.remove(id), |turns, turn| turns.remove(turn));
        }
        if counts(new) {
            self.change(new, |ids, id| ids.insert(id.clone()), |turns, turn| turns.insert(turn.clone()));
        }
    }

    fn change(
        &mut self,
        lease: &Lease,
        of_ids: impl Fn(&mut BTreeSet<LeaseId>, &LeaseId) -> bool,
        of_turns: impl Fn(&mut BTreeSet<(u64, LeaseId)>, &(u64, LeaseId)) -> bool,
    ) {
        let (project, priority) = (lease.request.authorizer.clone(), lease.request.priority);
        let turn = (lease.turn, lease.id().clone());
        if lease.state == LeaseState::Pending {
            change_in(&mut self.waits, project.clone(), |ids| of_ids(ids, lease.id()));
        } else {
            change_in(&mut self.holds, project.clone(), |ids| of_ids(ids, lease.id()));
            change_in(&mut self.served, priority, |turns| of_turns(turns, &turn));
        }
        change_in(&mut self.turns, (priority, project), |turns| of_turns(turns, &turn));
    }

    /// How many requests of a project wait.
    pub(super) fn waiting(&self, project: &str) -> usize {
        self.waits.get(project).map_or(0, BTreeSet::len)
    }

    /// How many leases a project has.
    pub(super) fn holding(&self, project: &str) -> usize {
        self.holds.get(project).map_or(0, BTreeSet::len)
    }

    /// The turn of a request that is made now. `queue` is that of all who wait.
    pub(super) fn turn(&self, request: &LeaseRequest, quota: Option<&Quota>, queue: &BTreeSet<QueueKey>) -> u64 {
        let priority = request.priority;
        let last = |turns: &BTreeSet<(u64, LeaseId)>| turns.last().map(|(turn, _)| *turn);
        let of_first = || {
            let first = queue.range((Reverse(priority), (0, 0), LeaseId::from(""))..).next();
            first.filter(|(of, ..)| *of == Reverse(priority)).map(|(_, (turn, _), _)| *turn)
        };
        let served = self.served.get(&priority).and_then(last).or_else(of_first).unwrap_or(0);
        let step = STEP / u64::from(quota.and_then(|quota| quota.share).unwrap_or(1)).max(1);
        let own = self.turns.get(&(priority, request.authorizer.clone())).and_then(last);
        own.map_or(0, |own| own.saturating_add(step)).max(served)
    }
}

fn change_in<K: Ord + Clone, V>(
    index: &mut BTreeMap<K, BTreeSet<V>>,
    key: K,
    change: impl FnOnce(&mut BTreeSet<V>) -> bool,
) {
    let values = index.entry(key.clone()).or_default();
    change(values);
    if values.is_empty() {
        index.remove(&key);
    }
}

/// Parts belong to their whole, readers take nothing from anybody, and a look at a machine's health is the farm's own.
fn counts(lease: &Lease) -> bool {
    let want = &lease.request.want;
    let is_alive = lease.state == LeaseState::Pending || lease.is_held();
    is_alive && lease.parent.is_none() && want.mode == Mode::Hold && want.purpose.is_work()
}

#[cfg(test)]
mod tests {
    use super::super::rows::{Gang, Kind, LeaseRequest, Quota};
    use super::super::samples::{SmallFarm, blueprint, request};
    use crate::lease::allocator::can_ever;

    fn of(project: &str, id: &str) -> LeaseRequest {
        LeaseRequest { authorizer: project.into(), ..request(id, &[]) }
    }

    /// A farm of some DUTs, and what the projects may.
    fn farm(duts: usize, quotas: &[(&str, Quota)]) -> SmallFarm {
        let names = ["a", "b", "c", "d"];
        let mut farm = SmallFarm::of(names.iter().take(duts).map(|name| blueprint(Kind::Dut, name, &[])));
        farm.tables.quotas = quotas.iter().map(|(project, quota)| ((*project).to_owned(), quota.clone())).collect();
        farm
    }

    /// Gives back what is held and sees who is next, so many times.
    fn served(farm: &mut SmallFarm, mut held: Vec<String>, times: usize) -> Vec<String> {
        let mut order = Vec::new();
        for _ in 0..times {
            let first = held.remove(0);
            farm.release(&first);
            let new = farm.tables.leases().filter(|lease| lease.is_held() && !held.contains(&lease.id().to_string()));
            let new: Vec<String> = new.map(|lease| lease.id().to_string()).collect();
            order.extend(new.iter().cloned());
            held.extend(new);
        }
        order
    }

    #[test]
    fn who_asks_for_little_comes_in_between_those_of_who_asks_for_much() {
        let mut farm = farm(1, &[]);
        (0..6).for_each(|number| farm.request(of("much", &format!("much-{number}"))));
        farm.settle();
        (0..2).for_each(|number| farm.request(of("little", &format!("little-{number}"))));
        farm.settle();
        let order = served(&mut farm, vec!["much-0".into()], 7);
        assert_eq!(order, ["little-0", "much-1", "little-1", "much-2", "much-3", "much-4", "much-5"]);
    }

    #[test]
    fn with_twice_the_share_a_project_is_twice_as_often_next_and_within_a_project_it_is_by_age() {
        let double = Quota { share: Some(2), ..Quota::default() };
        let mut farm = farm(1, &[("double", double)]);
        farm.request(of("else", "held"));
        farm.settle();
        (0..3).for_each(|number| farm.request(of("single", &format!("s{number}"))));
        (0..6).for_each(|number| farm.request(of("double", &format!("d{number}"))));
        farm.settle();
        let order = served(&mut farm, vec!["held".into()], 9);
        assert_eq!(order, ["s0", "d0", "d1", "s1", "d2", "d3", "s2", "d4", "d5"]);
    }

    #[test]
    fn who_did_not_ask_gathered_nothing() {
        let mut farm = farm(1, &[]);
        (0..5).for_each(|number| farm.request(of("early", &format!("e{number}"))));
        farm.settle();
        served(&mut farm, vec!["e0".into()], 3);
        (0..3).for_each(|number| farm.request(of("late", &format!("l{number}"))));
        farm.settle();
        let order = served(&mut farm, vec!["e3".into()], 4);
        assert_eq!(order, ["l0", "e4", "l1", "l2"]);
    }

    #[test]
    fn a_project_holds_no_more_than_it_may_and_others_pass_it() {
        let one = Quota { running: Some(1), ..Quota::default() };
        let mut farm = farm(3, &[("kept", one)]);
        ["k0", "k1"].into_iter().for_each(|id| farm.request(of("kept", id)));
        farm.settle();
        assert_eq!((farm.holds("k0").is_some(), farm.holds("k1")), (true, None));
        let told = vec!["the project `kept` has 1 lease at a time, and no more (projects.kept.running)".to_owned()];
        assert_eq!(farm.outlook("k1"), (1, told));
        farm.request(of("free", "f0"));
        farm.settle();
        assert!(farm.holds("f0").is_some());
        farm.release("k0");
        assert!(farm.holds("k1").is_some());
        let gang = Some(Gang { name: "two".into(), members: 2 });
        let never = can_ever(&farm.tables, &LeaseRequest { gang, ..of("kept", "g0") }).unwrap_err();
        assert_eq!(never, "the project `kept` may have 1 lease at a time, and this takes 2");
    }

    #[test]
    fn a_project_gets_what_it_may_use_and_is_told_that_it_will_never_get_the_rest() {
        let some = Quota { blueprints: Some(vec!["b".into()]), ..Quota::default() };
        let mut farm = farm(2, &[("others", some)]);
        farm.request(of("any", "x"));
        farm.settle();
        assert_eq!(farm.holds("x").as_deref(), Some("b"));
        let mut named = of("any", "y");
        named.want.name = Some("a".into());
        let never = can_ever(&farm.tables, &named).unwrap_err();
        assert!(never.contains("the project `any` may not use it"), "{never}");
    }
}
