//! The promises of the allocator, one sentence each.

use super::*;
use crate::lease::samples::{SmallFarm, blueprint, request, static_dut};

fn farm(duts: &[(&str, &[&str])]) -> SmallFarm {
    SmallFarm::of(duts.iter().flat_map(|(name, tags)| static_dut(name, tags)))
}

fn gang(id: &str, name: &str, tags: &[&str]) -> LeaseRequest {
    LeaseRequest { gang: Some(Gang { name: name.into(), members: 2 }), ..request(id, tags) }
}

fn gear(name: &str) -> Want {
    Want { kind: Kind::Gear, name: Some(name.into()), tags: Vec::new(), mode: Mode::Hold, purpose: Purpose::Work }
}

#[test]
fn the_older_of_two_equal_requests_gets_the_only_dut() {
    let mut farm = farm(&[("a", &[])]);
    farm.request(request("1", &[]));
    farm.request(request("2", &[]));
    farm.settle();
    assert_eq!(farm.holds("1").as_deref(), Some("a"));
    assert_eq!(farm.outlook("2"), (1, vec!["farm-a is busy with job 1".into()]));
    farm.release("1");
    assert_eq!(farm.state("1"), LeaseState::Destroyed);
    assert_eq!(farm.holds("2").as_deref(), Some("a"));
}

#[test]
fn within_one_plan_the_later_request_hears_who_came_earlier() {
    let mut farm = farm(&[("a", &[])]);
    farm.request(request("1", &[]));
    farm.request(request("2", &[]));
    assert_eq!(farm.outlook("2"), (1, vec!["farm-a goes to job 1, which came earlier".into()]));
}

#[test]
fn a_higher_priority_goes_before_age() {
    let mut farm = farm(&[("a", &[])]);
    farm.request(request("1", &[]));
    farm.request(LeaseRequest { priority: 5, ..request("2", &[]) });
    farm.settle();
    assert_eq!(farm.holds("2").as_deref(), Some("a"));
}

#[test]
fn a_newcomer_overtakes_only_where_the_head_does_not_fit() {
    let mut farm = farm(&[("gpu", &["gpu"]), ("plain", &[])]);
    farm.request(request("7", &["gpu"]));
    farm.settle();
    farm.request(request("1", &["gpu"]));
    farm.request(request("2", &[]));
    farm.settle();
    assert_eq!(farm.outlook("1"), (1, vec!["farm-gpu is busy with job 7".into()]));
    assert_eq!(farm.holds("2").as_deref(), Some("plain"));
}

#[test]
fn a_held_back_dut_is_not_given_away_and_says_why() {
    let mut farm = farm(&[("a", &[])]);
    let dut = farm.tables.resources().find(|resource| resource.name == "a").unwrap().object();
    farm.ask(dut, Verb::Cordon { reason: "the console said it is unfit".into() });
    farm.request(request("1", &[]));
    farm.settle();
    let why = "farm-a is held back: the console said it is unfit (somebody)";
    assert_eq!(farm.outlook("1"), (1, vec![why.into()]));
}

#[test]
fn a_dut_on_trial_is_for_health_jobs_alone_and_a_retired_one_for_nobody() {
    let health = |id: &str| {
        let request = request(id, &[]);
        LeaseRequest { want: Want { purpose: Purpose::Health, ..request.want }, ..request }
    };
    let mut farm = farm(&[("a", &[])]);
    let dut = farm.tables.resources().find(|resource| resource.name == "a").unwrap().object();
    farm.ask(dut.clone(), Verb::Try { trial: Trial::Training });
    farm.request(request("1", &[]));
    farm.request(health("2"));
    farm.settle();
    assert_eq!(farm.outlook("1"), (1, vec!["farm-a has to pass its training first".into()]));
    assert_eq!(farm.holds("2").as_deref(), Some("a"), "the earlier one cannot have it");
    farm.ask(dut.clone(), Verb::Retire { reason: "sold".into() });
    farm.release("2");
    farm.request(health("3"));
    farm.settle();
    assert_eq!(farm.outlook("3"), (2, vec!["farm-a is held back: retired: sold (somebody)".into()]));
    farm.ask(dut, Verb::Uncordon);
    farm.settle();
    assert_eq!(farm.holds("1").as_deref(), Some("a"), "the older one comes first");
}

#[test]
fn what_nothing_could_ever_serve_ends_at_once_and_says_what_is_missing() {
    let mut farm = farm(&[("a", &[])]);
    assert_eq!(can_ever(&farm.tables, &request("1", &["gpu"])), Err("farm-a lacks the tags `gpu`".into()));
    farm.request(request("1", &["gpu"]));
    farm.settle();
    let lease = farm.tables.lease(&"1".into()).unwrap();
    assert_eq!(lease.state, LeaseState::Destroyed);
    assert_eq!(lease.cause.to_string(), "nothing in the farm could ever serve it: farm-a lacks the tags `gpu`");
}

#[test]
fn a_dut_that_is_being_remade_keeps_its_requests_waiting() {
    let mut farm = farm(&[("a", &[])]);
    farm.request(request("1", &[]));
    farm.settle();
    let dut = farm.tables.lease(&"1".into()).unwrap().resource.clone().unwrap();
    farm.request(request("2", &[]));
    farm.ask(Object::Resource(dut.clone()), Verb::ResourceLost { why: "it burnt".into() });
    farm.settle();
    assert_eq!(farm.state("1"), LeaseState::Destroyed);
    assert_eq!(farm.holds("2").as_deref(), Some("a"));
    assert_ne!(farm.tables.lease(&"2".into()).unwrap().resource, Some(dut));
}

#[test]
fn a_dut_is_claimed_with_its_parts_in_the_order_of_their_ranks() {
    let mut farm = farm(&[("a", &[])]);
    farm.request(request("1", &[]));
    farm.settle();
    let children = farm.tables.children(&Object::Lease("1".into()));
    let mut kinds: Vec<_> = children.map(|child| (child.seq, child.request.want.kind.to_string())).collect();
    kinds.sort();
    let kinds: Vec<_> = kinds.into_iter().map(|(_, kind)| kind).collect();
    assert_eq!(kinds, ["boot-namespace", "console", "power"]);
}

#[test]
fn a_dut_whose_outlet_somebody_holds_is_not_claimed_by_halves() {
    let mut farm = farm(&[("a", &[])]);
    let outlet = Want {
        kind: Kind::Power,
        name: Some("a-outlet".into()),
        tags: Vec::new(),
        mode: Mode::Hold,
        purpose: Purpose::Work,
    };
    farm.request(LeaseRequest { want: outlet, ..request("person", &[]) });
    farm.settle();
    farm.request(request("1", &[]));
    farm.settle();
    assert_eq!(farm.outlook("1"), (1, vec!["farm-a needs the power a-outlet, which is not free".into()]));
    let console = Want {
        kind: Kind::Console,
        name: Some("a-tty".into()),
        tags: Vec::new(),
        mode: Mode::Hold,
        purpose: Purpose::Work,
    };
    farm.request(LeaseRequest { want: console, ..request("late", &[]) });
    farm.settle();
    assert_eq!(farm.outlook("late").1, ["farm-a-tty goes to job 1, which came earlier"]);
    farm.release("person");
    assert_eq!(farm.holds("1").as_deref(), Some("a"));
}

#[test]
fn a_gang_gets_all_its_duts_or_none_and_keeps_what_it_waits_for() {
    let mut farm = farm(&[("a", &[]), ("b", &[])]);
    farm.request(request("1", &[]));
    farm.settle();
    farm.request(gang("2a", "two", &[]));
    farm.settle();
    assert_eq!(farm.outlook("2a"), (1, vec!["gang two is not complete yet".into()]));
    farm.request(gang("2b", "two", &[]));
    farm.request(request("3", &[]));
    farm.settle();
    assert_eq!((farm.holds("2a"), farm.holds("2b"), farm.holds("3")), (None, None, None));
    farm.release("1");
    assert_eq!((farm.state("2a"), farm.state("2b")), (LeaseState::Active, LeaseState::Active));
    assert_eq!(farm.holds("3"), None);
}

#[test]
fn a_gang_that_cannot_be_whole_any_more_ends() {
    let mut farm = farm(&[("a", &[]), ("b", &[])]);
    farm.request(gang("1a", "one", &[]));
    farm.request(gang("1b", "one", &["never"]));
    farm.settle();
    let other = farm.tables.lease(&"1a".into()).unwrap();
    assert_eq!(other.cause, Cause::GangBroken { member: "1b".into() });
    assert_eq!(other.state, LeaseState::Destroyed);
}

#[test]
fn who_waits_for_gear_keeps_one_dut_and_the_others_are_used_meanwhile() {
    let mut blueprints = static_dut("a", &[]);
    blueprints.extend(static_dut("b", &[]));
    blueprints.push(blueprint(Kind::Gear, "meter", &[]));
    let mut farm = SmallFarm::of(blueprints);
    farm.request(LeaseRequest { want: gear("meter"), ..request("person", &[]) });
    farm.settle();
    farm.request(LeaseRequest { also: vec![gear("meter")], ..request("1", &[]) });
    farm.request(request("2", &[]));
    farm.request(request("3", &[]));
    farm.settle();
    assert_eq!(farm.holds("1"), None);
    assert_eq!(farm.holds("2").as_deref(), Some("b"), "backfill");
    assert_eq!(farm.holds("3"), None, "the head keeps a DUT");
    farm.release("person");
    assert_eq!(farm.holds("1").as_deref(), Some("a"));
}

fn on_demand(name: &str, limit: u32, pool: Option<u32>) -> Blueprint {
    let pool = pool.map(|limit| Pool { name: "host".into(), limit });
    Blueprint { limit, pool, preallocated: 0, ..blueprint(Kind::Dut, name, &[name]) }
}

#[test]
fn duts_are_made_on_demand_up_to_the_limit_and_no_more_than_are_wanted() {
    let mut farm = SmallFarm::of([on_demand("sim", 2, None)]);
    assert_eq!(farm.tables.resources().count(), 0);
    farm.request(request("1", &[]));
    farm.settle();
    assert_eq!(farm.tables.resources().count(), 1);
    farm.request(request("2", &[]));
    farm.request(request("3", &[]));
    farm.settle();
    assert_eq!((farm.holds("1").as_deref(), farm.holds("2").as_deref()), (Some("sim-1"), Some("sim-2")));
    assert_eq!(farm.outlook("3").1, ["farm-sim-1 is busy with job 1", "farm-sim-2 is busy with job 2"]);
}

#[test]
fn an_idle_dut_makes_room_for_another_kind_on_the_same_host() {
    let mut farm = SmallFarm::of([on_demand("big", 1, Some(1)), on_demand("small", 1, Some(1))]);
    farm.request(request("1", &["big"]));
    farm.settle();
    farm.request(request("2", &["small"]));
    farm.settle();
    assert_eq!(farm.outlook("2").1, ["host makes no more than 1 at a time"]);
    farm.release("1");
    assert_eq!(farm.holds("2").as_deref(), Some("small"));
}

#[test]
fn an_idle_dut_above_what_is_kept_goes_after_its_time() {
    let sim = Blueprint { idle_ms_max: Some(5_000), ..on_demand("sim", 2, None) };
    let mut farm = SmallFarm::of([sim]);
    farm.request(request("1", &[]));
    farm.settle();
    farm.release("1");
    assert_eq!(plan(&farm.tables, farm.now).again_at, Some(farm.now.plus_ms(5_000)));
    farm.now = farm.now.plus_ms(5_000);
    farm.settle();
    assert!(farm.tables.resources().all(|resource| resource.state == ResourceState::Destroyed));
}

#[test]
fn a_blueprint_that_needs_authorization_asks_for_it() {
    let mut blueprints = static_dut("a", &[]);
    blueprints[0].access = Access::Authorized;
    let mut farm = SmallFarm::of(blueprints);
    assert_eq!(can_ever(&farm.tables, &request("1", &[])), Ok(()));
    let answer = |farm: &mut SmallFarm, state| {
        let authorization = Authorization {
            subject: "somebody".into(),
            blueprint: "a".into(),
            state,
            by: "admin".into(),
            at: farm.now,
        };
        farm.tables.authorizations.insert(("somebody".into(), "a".into()), authorization);
    };
    answer(&mut farm, AuthorizationState::Requested);
    farm.request(request("1", &[]));
    farm.settle();
    assert_eq!(farm.outlook("1").1, ["nobody has said yet whether somebody may use a"]);
    answer(&mut farm, AuthorizationState::Authorized);
    farm.settle();
    assert_eq!(farm.holds("1").as_deref(), Some("a"));
}

#[test]
fn wishes_decide_among_what_is_free() {
    let mut farm = farm(&[("a", &[]), ("b", &["fast"]), ("c", &[])]);
    let wishes = LeaseRequest { prefers: vec!["fast".into()], ..request("1", &[]) };
    farm.request(wishes);
    farm.request(LeaseRequest { avoid: vec!["a".into()], ..request("2", &[]) });
    farm.request(LeaseRequest { avoid: vec!["a".into()], ..request("3", &[]) });
    farm.settle();
    assert_eq!(farm.holds("1").as_deref(), Some("b"));
    assert_eq!(farm.holds("2").as_deref(), Some("c"));
    assert_eq!(farm.holds("3").as_deref(), Some("a"), "what is avoided is taken last, not never");
}

#[test]
fn estimates_follow_the_ends_of_the_holds_before() {
    let mut blueprints = static_dut("a", &[]);
    blueprints[0].mean_hold_ms = Some(10_000);
    let mut farm = SmallFarm::of(blueprints);
    for id in ["1", "2", "3"] {
        farm.request(request(id, &[]));
    }
    farm.settle();
    let outlooks = outlooks(&farm.tables, farm.now);
    let estimate = |id: &str| outlooks[&id.into()].estimate;
    assert_eq!(estimate("2"), Some(farm.now.plus_ms(10_000)));
    assert_eq!(estimate("3"), Some(farm.now.plus_ms(20_000)));
}

#[test]
fn the_events_replay_to_the_same_rows() {
    let mut farm = farm(&[("a", &[]), ("b", &[])]);
    farm.request(request("1", &[]));
    farm.settle();
    farm.release("1");
    let events: Vec<Event> =
        farm.log.iter().cloned().zip(1..).map(|(transition, seq)| Event { seq, transition }).collect();
    let mut replayed = Tables::replay(Tables::default(), &events).unwrap();
    replayed.blueprints.clone_from(&farm.tables.blueprints);
    assert!(replayed == farm.tables);
}
