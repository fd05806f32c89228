//! How much of the farm each project has, and has had lately: whose turn is next. ◆
//!
//! ```text
//!  a lease is given back ─► used = what is left of what was used before + the time that it was held          a row of the store
//!  whose turn            ─► the least of (used, as it counts now + the time of what is held) / share          at this moment
//!                                        └─ half of it after each HALF_LIFE     └─ at least as long as the project's leases last
//! ```
//! Who has used little lately goes first, however many others ask: so machine-time comes out even, and not the number of jobs. That a
//! lease counts as long as those of its project last, from its first moment on, keeps a project from all machines that become free
//! at once. Time counts from the moment when a lease gets its resource until it is given back; what tearing it down takes is the farm's.

use std::collections::{BTreeMap, BTreeSet};
use std::f64::consts::LN_2;

use super::rows::{Lease, LeaseId, LeaseState, Mode, Moment, Quota, Used};

/// After 6 hours used time counts half. Longer than jobs by far, so that a job of an hour is not half forgotten when it ends, and short
/// against a day: who had an idle farm for himself over night is not kept waiting for as long on the next day.
pub(super) const HALF_LIFE_MS: u64 = 6 * 3_600_000;
/// How long a lease of a project is taken to last of which nothing is known: a boot and a short test, 10 minutes.
pub(super) const MEAN_MS: u64 = 600_000;
/// A lease counts for a second at least, so that projects take turns whose leases end at once.
const MEAN_MS_MIN: u64 = 1_000;
/// A minute, less than a boot takes: what has become less is forgotten with its project.
const FORGOTTEN_MS: u64 = 60_000;
/// The largest share of the farm file, so that time by share is a whole number that tells them apart.
const SHARE_MAX: u64 = 1_000;

/// What every project has and has had, as the rows say it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Shares {
    waits: BTreeMap<String, BTreeSet<LeaseId>>,
    holds: BTreeMap<String, BTreeSet<LeaseId>>,
    /// What is held and not given back, since when.
    runs: BTreeMap<String, BTreeMap<LeaseId, Moment>>,
    used: BTreeMap<String, Used>,
}

/// Where a project stands against others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    used_ms: u64,
    mean_ms: u64,
    share: u64,
}

impl Standing {
    /// Its turn, if it has `more` leases than it has: the least is next.
    pub(super) fn turn(self, more: u64) -> u64 {
        let used_ms = self.used_ms.saturating_add(self.mean_ms.saturating_mul(more));
        used_ms.saturating_mul(SHARE_MAX) / self.share
    }
}

impl Shares {
    /// Follows a lease from what it was to what it is.
    pub(super) fn follow(&mut self, old: Option<&Lease>, new: &Lease) {
        let is = |lease: &Lease| (counts(lease), lease.state, lease.acquired_at);
        if old.map(is) == Some(is(new)) {
            return;
        }
        if let Some(old) = old.filter(|old| counts(old)) {
            self.change(old, |ids, id| ids.remove(id));
            change_in(&mut self.runs, &old.request.authorizer, |runs| runs.remove(old.id()));
        }
        if counts(new) {
            self.change(new, |ids, id| ids.insert(id.clone()));
            if let Some(since) = runs_since(new) {
                change_in(&mut self.runs, &new.request.authorizer, |runs| runs.insert(new.id().clone(), since));
            }
        }
    }

    fn change(&mut self, lease: &Lease, change: impl FnOnce(&mut BTreeSet<LeaseId>, &LeaseId) -> bool) {
        let index = if lease.state == LeaseState::Pending { &mut self.waits } else { &mut self.holds };
        change_in(index, &lease.request.authorizer, |ids| change(ids, lease.id()));
    }

    /// Takes what a project has used; nothing at all is forgotten.
    pub(super) fn put(&mut self, used: Used) {
        match used.ms {
            0 => drop(self.used.remove(&used.project)),
            _ => drop(self.used.insert(used.project.clone(), used)),
        }
    }

    /// What projects have used.
    pub(super) fn used(&self) -> impl Iterator<Item = &Used> {
        self.used.values()
    }

    /// How many requests of a project wait.
    pub(super) fn waiting(&self, project: &str) -> usize {
        self.waits.get(project).map_or(0, BTreeSet::len)
    }

    /// How many leases a project has.
    pub(super) fn holding(&self, project: &str) -> usize {
        self.holds.get(project).map_or(0, BTreeSet::len)
    }

    /// Where a project stands.
    pub(super) fn standing(&self, project: &str, quota: Option<&Quota>, now: Moment) -> Standing {
        let used = self.used.get(project);
        let mean_ms = used.map_or(MEAN_MS, |used| used.mean_ms).max(MEAN_MS_MIN);
        let runs = self.runs.get(project).into_iter().flat_map(BTreeMap::values);
        let runs_ms: u64 = runs.map(|since| worth_ms(now.since_ms(*since)).max(mean_ms)).sum();
        let used_ms = used.map_or(0, |used| left_ms(used, now)).saturating_add(runs_ms);
        let share = quota.and_then(|quota| quota.share).map_or(1, u64::from).clamp(1, SHARE_MAX);
        Standing { used_ms, mean_ms, share }
    }

    /// What is to be written down when a lease is given back now: what its project has used, and who is forgotten.
    pub(super) fn used_by(&self, lease: &Lease, now: Moment) -> Vec<Used> {
        let Some(since) = runs_since(lease).filter(|_| counts(lease)) else { return Vec::new() };
        let project = &lease.request.authorizer;
        let before = self.used.get(project);
        let held_ms = now.since_ms(since);
        let mean_ms = before.map_or(held_ms, |before| before.mean_ms.saturating_mul(7).saturating_add(held_ms) / 8);
        // Never nothing: it would be forgotten with its mean.
        let ms = before.map_or(0, |before| left_ms(before, now)).saturating_add(worth_ms(held_ms)).max(1);
        let faded = self.used.values().filter(|used| used.project != *project && left_ms(used, now) < FORGOTTEN_MS);
        let forgotten = faded.map(|used| Used { ms: 0, ..used.clone() });
        forgotten.chain([Used { project: project.clone(), ms, mean_ms, at: now }]).collect()
    }
}

/// What is left of used time.
fn left_ms(used: &Used, now: Moment) -> u64 {
    let half_lives = now.since_ms(used.at) as f64 / HALF_LIFE_MS as f64;
    (used.ms as f64 * (-half_lives).exp2()).round() as u64
}

/// What a hold of this length counts that lasts until now: its beginning is forgotten in part, as if it had been given back piece by piece.
fn worth_ms(held_ms: u64) -> u64 {
    let rate = LN_2 / HALF_LIFE_MS as f64;
    (-(-(held_ms as f64) * rate).exp_m1() / rate).round() as u64
}

fn change_in<V: Default + PartialEq, R>(
    index: &mut BTreeMap<String, V>,
    project: &str,
    change: impl FnOnce(&mut V) -> R,
) {
    let values = index.entry(project.to_owned()).or_default();
    change(values);
    if *values == V::default() {
        index.remove(project);
    }
}

/// Since when a lease is held, until it is given back.
fn runs_since(lease: &Lease) -> Option<Moment> {
    lease.acquired_at.filter(|_| matches!(lease.state, LeaseState::Acquired | LeaseState::Active))
}

/// Parts belong to their whole, readers take nothing from anybody, and a look at a machine's health is the farm's own.
pub(super) fn counts(lease: &Lease) -> bool {
    let want = &lease.request.want;
    let is_alive = lease.state == LeaseState::Pending || lease.is_held();
    is_alive && lease.parent.is_none() && want.mode == Mode::Hold && want.purpose.is_work()
}

#[cfg(test)]
mod tests {
    use super::super::rows::{Gang, Kind, LeaseRequest, Quota};
    use super::super::samples::{SmallFarm, blueprint, request};
    use super::HALF_LIFE_MS;
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

    const MINUTE_MS: u64 = 60_000;

    /// Lets what is held last as long as `minutes` says, gives it back and sees who is next, so many times.
    fn served(farm: &mut SmallFarm, held: &str, times: usize, minutes: impl Fn(&str) -> u64) -> Vec<String> {
        let (mut held, mut order) = (held.to_owned(), Vec::new());
        for _ in 0..times {
            farm.now = farm.now.plus_ms(minutes(&held) * MINUTE_MS);
            farm.release(&held);
            let next = farm.tables.leases().find(|lease| lease.is_held()).expect("somebody waits");
            held = next.id().to_string();
            order.push(held.clone());
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
        let order = served(&mut farm, "much-0", 7, |_| 10);
        assert_eq!(order, ["little-0", "much-1", "little-1", "much-2", "much-3", "much-4", "much-5"]);
    }

    #[test]
    fn with_twice_the_share_a_project_gets_twice_the_time_and_within_a_project_it_is_by_age() {
        let double = Quota { share: Some(2), ..Quota::default() };
        let mut farm = farm(1, &[("double", double)]);
        farm.request(of("else", "held"));
        farm.settle();
        (0..3).for_each(|number| farm.request(of("single", &format!("s{number}"))));
        (0..6).for_each(|number| farm.request(of("double", &format!("d{number}"))));
        farm.settle();
        let order = served(&mut farm, "held", 9, |_| 10);
        assert_eq!(order, ["s0", "d0", "d1", "s1", "d2", "d3", "s2", "d4", "d5"]);
    }

    #[test]
    fn it_is_the_time_that_comes_out_even_and_not_the_number_of_jobs() {
        let mut farm = farm(1, &[]);
        (0..3).for_each(|number| farm.request(of("long", &format!("long-{number}"))));
        farm.settle();
        (0..8).for_each(|number| farm.request(of("short", &format!("s{number}"))));
        farm.settle();
        let order = served(&mut farm, "long-0", 8, |lease| if lease.starts_with("long") { 60 } else { 10 });
        assert_eq!(order, ["s0", "s1", "s2", "s3", "s4", "s5", "long-1", "s6"]);
    }

    #[test]
    fn machines_that_become_free_together_do_not_all_go_to_one_project() {
        let mut farm = farm(4, &[]);
        for project in ["one", "two"] {
            (0..4).for_each(|number| farm.request(of(project, &format!("{project}-{number}"))));
        }
        farm.settle();
        let held = farm.tables.leases().filter(|lease| lease.is_held()).map(|lease| lease.id().to_string());
        assert_eq!(held.collect::<Vec<_>>(), ["one-0", "one-1", "two-0", "two-1"]);
        assert_eq!(farm.outlook("one-2").0, 1, "the next of two that are even is the older one");
        assert_eq!(farm.outlook("two-2").0, 2);
    }

    #[test]
    fn who_has_used_more_is_told_so_while_others_wait() {
        let mut farm = farm(1, &[]);
        farm.request(of("much", "m0"));
        farm.settle();
        ["m1", "m2"].into_iter().for_each(|id| farm.request(of("much", id)));
        farm.settle();
        let busy = "farm-a is busy with job m0".to_owned();
        assert_eq!(farm.outlook("m1"), (1, vec![busy.clone()]));
        farm.now = farm.now.plus_ms(30 * MINUTE_MS);
        farm.request(of("little", "l0"));
        farm.settle();
        let used = "the project `much` has used more machine-time lately than others that wait: they go first";
        assert_eq!(farm.outlook("l0"), (1, vec![busy.clone()]));
        assert_eq!(farm.outlook("m1"), (2, vec![busy, used.to_owned()]));
    }

    #[test]
    fn used_time_counts_half_after_each_half_life_and_who_has_none_left_is_forgotten() {
        let mut farm = farm(1, &[]);
        farm.request(of("early", "e0"));
        farm.settle();
        farm.now = farm.now.plus_ms(32 * MINUTE_MS);
        farm.release("e0");
        let used = |farm: &SmallFarm| {
            let used =
                farm.tables.used().map(|used| (used.project.clone(), used.ms / MINUTE_MS, used.mean_ms / MINUTE_MS));
            used.collect::<Vec<_>>()
        };
        assert_eq!(used(&farm), [("early".to_owned(), 31, 32)], "of the first minutes a part is forgotten already");
        let later = farm.now.plus_ms(HALF_LIFE_MS);
        let turns = [farm.now, later].map(|now| farm.tables.standing("early", now).turn(0));
        assert_eq!(turns[1], turns[0] / 2);
        farm.now = farm.now.plus_ms(5 * HALF_LIFE_MS);
        farm.request(of("late", "l0"));
        farm.settle();
        farm.now = farm.now.plus_ms(2 * MINUTE_MS);
        farm.release("l0");
        assert_eq!(used(&farm), [("late".to_owned(), 1, 2)]);
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
