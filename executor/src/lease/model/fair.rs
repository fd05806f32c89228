//! Machine-time comes out even, and nobody starves: a farm without accidents, for weeks.
//!
//! ```text
//!  projects, each with a length of its jobs, a share, and always more to ask for ─► who had how much of the machines' time, who waited longest
//! ```

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::lease::rows::*;
use crate::lease::samples::{SmallFarm, blueprint, request};
use crate::lease::shares::HALF_LIFE_MS;

const MINUTE_MS: u64 = 60_000;
/// Requests of a project that wait at any moment: it always wants more.
const WAITING: usize = 3;

struct Project {
    name: &'static str,
    share: u32,
    /// Its jobs last about as long, between a half and one and a half.
    minutes: u64,
    /// When it begins to ask.
    from_ms: u64,
}

/// What came of it.
#[derive(Debug, Default)]
struct Had {
    ms: u64,
    /// The longest time without anything, while it waited.
    dry_ms: u64,
    last: Option<Moment>,
}

struct Run<'a> {
    farm: SmallFarm,
    random: StdRng,
    projects: &'a [Project],
    ends: BTreeMap<(Moment, LeaseId), u64>,
    had: BTreeMap<&'a str, Had>,
    asked: u64,
    start: Moment,
}

impl<'a> Run<'a> {
    fn new(duts: usize, projects: &'a [Project]) -> Run<'a> {
        let mut farm = SmallFarm::of((0..duts).map(|number| blueprint(Kind::Dut, &format!("d{number}"), &[])));
        let quota = |share| Quota { share: Some(share), ..Quota::default() };
        farm.tables.quotas = projects.iter().map(|it| (it.name.to_owned(), quota(it.share))).collect();
        let (random, start) = (StdRng::seed_from_u64(7), farm.now);
        Run { farm, random, projects, ends: BTreeMap::new(), had: BTreeMap::new(), asked: 0, start }
    }

    /// Everybody asks, everybody who got something holds it for as long as its job lasts; time goes on to the next end.
    fn run(mut self, hours: u64) -> BTreeMap<&'a str, Had> {
        let end = self.start.plus_ms(hours * 60 * MINUTE_MS);
        while self.farm.now < end {
            self.ask();
            self.farm.settle();
            self.note_what_began();
            let ((at, id), held_ms) = self.ends.pop_first().expect("something is held");
            self.farm.now = at;
            let lease = self.farm.tables.lease(&id).expect("it is held");
            let project =
                self.projects.iter().find(|it| it.name == lease.request.authorizer).expect("it is one of them");
            self.had.entry(project.name).or_default().ms += held_ms;
            self.farm.release(id.as_str());
            self.farm.tables.forget(&Object::Lease(id));
            self.farm.log.clear();
        }
        self.had
    }

    fn ask(&mut self) {
        for project in self.projects {
            let begins = self.start.plus_ms(project.from_ms);
            while self.farm.now >= begins && self.farm.tables.waiting(project.name) < WAITING {
                self.asked += 1;
                let request = request(&format!("{}-{:06}", project.name, self.asked), &[]);
                self.farm.request(LeaseRequest { authorizer: project.name.to_owned(), ..request });
                let had = self.had.entry(project.name).or_default();
                had.last = had.last.or(Some(self.farm.now));
            }
        }
    }

    fn note_what_began(&mut self) {
        let now = self.farm.now;
        let began = self.farm.tables.leases().filter(|it| it.acquired_at == Some(now) && it.is_held());
        let began: Vec<(LeaseId, String)> =
            began.map(|lease| (lease.id().clone(), lease.request.authorizer.clone())).collect();
        for (id, of) in began {
            let project = self.projects.iter().find(|project| project.name == of).expect("it is one of them");
            let ms = self.random.random_range(project.minutes * MINUTE_MS / 2..project.minutes * MINUTE_MS * 3 / 2);
            if self.ends.keys().any(|(_, other)| *other == id) {
                continue;
            }
            self.ends.insert((now.plus_ms(ms), id), ms);
            let had = self.had.entry(project.name).or_default();
            let dry_ms = had.last.map_or(0, |last| now.since_ms(last));
            had.dry_ms = had.dry_ms.max(dry_ms);
            had.last = Some(now);
        }
    }
}

/// Per cent of all time that each had.
fn parts(had: &BTreeMap<&str, Had>) -> BTreeMap<String, u64> {
    let all: u64 = had.values().map(|had| had.ms).sum();
    had.iter().map(|(name, had)| ((*name).to_owned(), (had.ms * 100 + all / 2) / all)).collect()
}

fn project(name: &'static str, share: u32, minutes: u64) -> Project {
    Project { name, share, minutes, from_ms: 0 }
}

#[test]
fn jobs_of_minutes_and_jobs_of_hours_get_the_same_machine_time() {
    let projects = [project("short", 1, 5), project("long", 1, 120)];
    let had = Run::new(3, &projects).run(100);
    let part = parts(&had)["short"];
    assert!((46..=54).contains(&part), "{part} per cent: {had:?}");
}

#[test]
fn machine_time_goes_by_the_shares_on_a_single_machine_too() {
    let projects = [project("one", 1, 40), project("two", 2, 10), project("three", 3, 20)];
    let had = Run::new(1, &projects).run(200);
    let parts = parts(&had);
    for (name, expected) in [("one", 17_u64), ("two", 33), ("three", 50)] {
        assert!(parts[name].abs_diff(expected) <= 3, "{parts:?}: {had:?}");
    }
}

#[test]
fn whoever_had_the_farm_for_himself_waits_no_longer_than_a_half_life_for_whoever_comes_late() {
    let late = Project { from_ms: 48 * 60 * MINUTE_MS, ..project("late", 1, 30) };
    let projects = [project("early", 1, 30), late];
    let had = Run::new(2, &projects).run(72);
    let (early_ms, late_ms) = (had["early"].dry_ms, had["late"].dry_ms);
    assert!(
        late_ms <= 90 * MINUTE_MS,
        "the late one waits for the end of a job, and of two when both machines are the other's: {had:?}"
    );
    // The wait is there, or this would show nothing; and a job more is the end of what is held then.
    assert!((HALF_LIFE_MS / 2..HALF_LIFE_MS + 45 * MINUTE_MS).contains(&early_ms), "{had:?}");
}
