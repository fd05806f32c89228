//! Every state with every event: what the tables say, and nothing else.

use super::*;
use crate::lease::samples::{SmallFarm, request, static_dut};

const LEASE_STATES: [LeaseState; 5] =
    [LeaseState::Pending, LeaseState::Acquired, LeaseState::Active, LeaseState::Releasing, LeaseState::Destroyed];
const RESOURCE_STATES: [ResourceState; 5] = [
    ResourceState::Pending,
    ResourceState::Active,
    ResourceState::Draining,
    ResourceState::Releasing,
    ResourceState::Destroyed,
];

fn command(target: Object, verb: Verb) -> Command {
    Command { id: 7, target, verb, by: "somebody".into(), at: Moment(0) }
}

fn verbs() -> Vec<Verb> {
    let why = || "a reason".to_owned();
    vec![
        Verb::Release { cause: Cause::Released { by: "somebody".into() } },
        Verb::Renew { until: Moment(9_000) },
        Verb::Expires { at: Moment(9_000) },
        Verb::ResourceLost { why: why() },
        Verb::HandOver { owner: Owner::Job("2".into()) },
        Verb::Drain,
        Verb::Undrain,
        Verb::Reclaim,
        Verb::Cordon { reason: why() },
        Verb::Uncordon,
        Verb::Try { trial: Trial::Training },
        Verb::Retire { reason: why() },
        Verb::Judge { health: Health::Good },
        Verb::Failed { why: why() },
        Verb::Describe { full_name: "farm-b".into(), tags: vec!["gpu".into()], gang: None, seats: None },
        Verb::Abandon { reason: why() },
    ]
}

fn failure(hope: Hope) -> Failure {
    Failure { why: "an accident".into(), hope }
}

/// A farm with one DUT and a lease without children in any state; the phase is the latest, and its tear-down is stuck.
fn lease_in(state: LeaseState, phase: Phase) -> (SmallFarm, Lease) {
    let mut farm = SmallFarm::of(static_dut("a", &[]));
    farm.request(request("1", &[]));
    let mut lease = farm.tables.lease(&"1".into()).unwrap().clone();
    lease.state = state;
    lease.phase = phase;
    lease.needs_operator = (state == LeaseState::Releasing).then(|| "it is stuck".to_owned());
    if state != LeaseState::Pending {
        lease.resource = farm.tables.resources().find(|resource| resource.name == "a").map(|it| it.id.clone());
    }
    (farm, lease)
}

fn resource_in(state: ResourceState, phase: Phase) -> (SmallFarm, Resource) {
    let farm = SmallFarm::of(static_dut("a", &[]));
    let mut resource = farm.tables.resources().find(|resource| resource.name == "a").unwrap().clone();
    resource.state = state;
    resource.phase = phase;
    resource.needs_operator = (state == ResourceState::Releasing).then(|| "it is stuck".to_owned());
    (farm, resource)
}

/// `event: pending acquired active releasing destroyed`, each `row` or `row>state`; `.` where the table is empty.
fn lease_line(name: &str, event: impl Fn(&SmallFarm, &Lease) -> LeaseEvent, phase: Phase) -> String {
    let cells = LEASE_STATES.map(|state| {
        let (farm, lease) = lease_in(state, phase);
        let event = event(&farm, &lease);
        match step_lease(&lease, &farm.context(), event) {
            Err(_) => ".".to_owned(),
            Ok(transition) => {
                let next = transition.leases.iter().find(|next| next.id() == lease.id());
                let to = next.map(|next| next.state).filter(|next| *next != state);
                to.map_or(format!("{:?}", transition.label), |to| format!("{:?}>{to:?}", transition.label))
            }
        }
    });
    format!("{name}: {}", cells.join(" "))
}

fn resource_line(name: &str, event: impl Fn(&Resource) -> ResourceEvent, phase: Phase) -> String {
    let cells = RESOURCE_STATES.map(|state| {
        let (farm, resource) = resource_in(state, phase);
        match step_resource(&resource, &farm.context(), event(&resource)) {
            Err(_) => ".".to_owned(),
            Ok(transition) => {
                let to = transition.resources.first().map(|next| next.state).filter(|next| *next != state);
                to.map_or(format!("{:?}", transition.label), |to| format!("{:?}>{to:?}", transition.label))
            }
        }
    });
    format!("{name}: {}", cells.join(" "))
}

fn grant(farm: &SmallFarm) -> Grant {
    let resource = farm.tables.resources().find(|resource| resource.name == "a").unwrap();
    Grant { resource: resource.id.clone(), slots: vec![format!("seat:{}:0", resource.id)], parts: Vec::new() }
}

#[test]
fn every_lease_takes_every_event_as_the_table_says() {
    let (whole, revoked, torn_down) = (Phase::Whole, Phase::Revoked, Phase::TornDown);
    let mut lines = vec![
        lease_line("placed", |farm, _| LeaseEvent::Placed(Box::new(grant(farm))), whole),
        lease_line("queue ended", |_, _| LeaseEvent::QueueEnded, whole),
        lease_line("never", |_, _| LeaseEvent::NeverFeasible { why: "no".into() }, whole),
        lease_line("activated", |_, _| LeaseEvent::Activated, whole),
        lease_line("failed, passing", |_, _| LeaseEvent::ActivationFailed(failure(Hope::Passing)), whole),
        lease_line("failed, lasting", |_, _| LeaseEvent::ActivationFailed(failure(Hope::Lasting)), whole),
        lease_line("activation ended", |_, _| LeaseEvent::ActivationEnded, whole),
        lease_line("expired", |_, _| LeaseEvent::Expired, whole),
        lease_line("owner gone", |_, _| LeaseEvent::OwnerGone, whole),
        lease_line("handles closed", |_, _| LeaseEvent::HandlesClosed, whole),
        lease_line("handles closed again", |_, _| LeaseEvent::HandlesClosed, revoked),
        lease_line("torn down too early", |_, _| LeaseEvent::TornDown, whole),
        lease_line("torn down", |_, _| LeaseEvent::TornDown, revoked),
        lease_line("torn down again", |_, _| LeaseEvent::TornDown, torn_down),
        lease_line("tear-down failed", |_, _| LeaseEvent::TearDownFailed { why: "no".into() }, revoked),
        lease_line("release children", |_, _| LeaseEvent::ReleaseChildren, torn_down),
        lease_line("finish too early", |_, _| LeaseEvent::Finish, revoked),
        lease_line("finish", |_, _| LeaseEvent::Finish, torn_down),
    ];
    lines.extend(verbs().into_iter().map(|verb| {
        let name = format!("{verb:?}");
        let name = name.split([' ', '{']).next().unwrap_or_default().to_owned();
        lease_line(&name, move |_, lease| LeaseEvent::Command(command(lease.object(), verb.clone())), revoked)
    }));
    let expected = "\
placed: L2>Acquired . . . .
queue ended: L3>Destroyed . . . .
never: L3>Destroyed . . . .
activated: . L4>Active . . .
failed, passing: . L5>Releasing . . .
failed, lasting: . L6>Releasing . . .
activation ended: . L6>Releasing . . .
expired: . . L7>Releasing . .
owner gone: L3>Destroyed L6>Releasing L7>Releasing . .
handles closed: . . . L9 .
handles closed again: . . . . .
torn down too early: . . . . .
torn down: . . . L10 .
torn down again: . . . . .
tear-down failed: . . . L12 .
release children: . . . L11 .
finish too early: . . . . .
finish: . . . L13>Destroyed .
Release: L3>Destroyed L6>Releasing L7>Releasing L15 L15
Renew: L15 L15 L8 L15 L15
Expires: L15 L15 L8 L15 L15
ResourceLost: L15 L5>Releasing L7>Releasing L15 L15
HandOver: L8 L8 L8 L15 L15
Drain: L15 L15 L15 L15 L15
Undrain: L15 L15 L15 L15 L15
Reclaim: L15 L15 L15 L15 L15
Cordon: L15 L15 L15 L15 L15
Uncordon: L15 L15 L15 L15 L15
Try: L15 L15 L15 L15 L15
Retire: L15 L15 L15 L15 L15
Judge: L15 L15 L15 L15 L15
Failed: L15 L15 L15 L15 L15
Describe: L15 L15 L15 L15 L15
Abandon: L15 L15 L15 L10 L15";
    assert_eq!(lines.join("\n"), expected);
}

#[test]
fn every_resource_takes_every_event_as_the_table_says() {
    let (whole, torn_down) = (Phase::Whole, Phase::TornDown);
    let mut lines = vec![
        resource_line("activated", |_| ResourceEvent::Activated { facts: Vec::new() }, whole),
        resource_line("failed, passing", |_| ResourceEvent::ActivationFailed(failure(Hope::Passing)), whole),
        resource_line("failed, lasting", |_| ResourceEvent::ActivationFailed(failure(Hope::Lasting)), whole),
        resource_line("activation ended", |_| ResourceEvent::ActivationEnded, whole),
        resource_line("expired", |_| ResourceEvent::Expired, whole),
        resource_line("emptied", |_| ResourceEvent::Emptied, whole),
        resource_line("torn down", |_| ResourceEvent::TornDown, whole),
        resource_line("torn down again", |_| ResourceEvent::TornDown, torn_down),
        resource_line("tear-down failed", |_| ResourceEvent::TearDownFailed { why: "no".into() }, whole),
        resource_line("release children", |_| ResourceEvent::ReleaseChildren, torn_down),
        resource_line("finish too early", |_| ResourceEvent::Finish, whole),
        resource_line("finish", |_| ResourceEvent::Finish, torn_down),
    ];
    lines.extend(verbs().into_iter().map(|verb| {
        let name = format!("{verb:?}");
        let name = name.split([' ', '{']).next().unwrap_or_default().to_owned();
        resource_line(&name, move |resource| ResourceEvent::Command(command(resource.object(), verb.clone())), whole)
    }));
    let expected = "\
activated: R2>Active . . . .
failed, passing: R3 . . . .
failed, lasting: R4>Releasing . . . .
activation ended: R4>Releasing . . . .
expired: . R9>Releasing R9>Releasing . .
emptied: . . R7>Releasing . .
torn down: . . . R11 .
torn down again: . . . . .
tear-down failed: . . . R11 .
release children: . . . R11 .
finish too early: . . . . .
finish: . . . R12>Destroyed .
Release: R4>Releasing R9>Releasing R9>Releasing R8 R8
Renew: R13 R13 R13 R8 R8
Expires: R13 R13 R13 R8 R8
ResourceLost: R4>Releasing R9>Releasing R9>Releasing R8 R8
HandOver: R8 R8 R8 R8 R8
Drain: R4>Releasing R5>Draining R8 R8 R8
Undrain: R8 R8 R6>Active R8 R8
Reclaim: R8 R8>Releasing R8 R8 R8
Cordon: R13 R13 R13 R8 R8
Uncordon: R13 R13 R13 R8 R8
Try: R13 R13 R13 R8 R8
Retire: R13 R13 R13 R8 R8
Judge: R13 R13 R13 R8 R8
Failed: R13 R13 R13 R8 R8
Describe: R13 R13 R13 R8 R8
Abandon: R8 R8 R8 R11 R8";
    assert_eq!(lines.join("\n"), expected);
}

#[test]
fn a_release_while_it_is_about_to_wait_again_ends_it() {
    let (farm, mut lease) = lease_in(LeaseState::Releasing, Phase::Revoked);
    lease.then = Then::Requeue;
    let release = verbs().swap_remove(0);
    let event = LeaseEvent::Command(command(lease.object(), release));
    let transition = step_lease(&lease, &farm.context(), event).unwrap();
    assert_eq!((transition.label, transition.leases[0].then), (Label::L14, Then::Destroy));
}

#[test]
fn a_requeued_lease_keeps_its_place_and_avoids_what_failed_it() {
    let (farm, lease) = lease_in(LeaseState::Acquired, Phase::Whole);
    let failed = LeaseEvent::ActivationFailed(failure(Hope::Passing));
    let transition = step_lease(&lease, &farm.context(), failed).unwrap();
    let mut releasing = transition.leases[0].clone();
    assert_eq!((releasing.then, releasing.failed_on.as_slice()), (Then::Requeue, ["a".to_owned()].as_slice()));
    releasing.phase = Phase::TornDown;
    let transition = step_lease(&releasing, &farm.context(), LeaseEvent::Finish).unwrap();
    let waiting = &transition.leases[0];
    assert_eq!((transition.label, waiting.state, waiting.seq), (Label::L14, LeaseState::Pending, lease.seq));
    assert_eq!(waiting.resource, None);
}

#[test]
fn a_tear_down_that_fails_is_tried_again_with_longer_pauses_and_then_calls_a_person() {
    let (farm, mut lease) = lease_in(LeaseState::Releasing, Phase::Revoked);
    lease.needs_operator = None;
    let mut pauses = Vec::new();
    while lease.needs_operator.is_none() {
        let event = LeaseEvent::TearDownFailed { why: "the outlet reads on".into() };
        lease = step_lease(&lease, &farm.context(), event).unwrap().leases.remove(0);
        pauses.push(lease.deadlines.retry.unwrap().0 - farm.now.0);
    }
    assert_eq!(pauses, [1_000, 2_000, 4_000, 8_000, 16_000, 30_000]);
    assert_eq!(lease.needs_operator.as_deref(), Some("the outlet reads on"));
}

#[test]
fn what_is_made_for_a_lease_that_is_gone_is_not_tried_again() {
    let mut farm = SmallFarm::of(static_dut("a", &[]));
    farm.request(request("wants", &["nowhere"]));
    let mut resource = farm.tables.resources().find(|resource| resource.name == "a").unwrap().clone();
    (resource.state, resource.made_for) = (ResourceState::Pending, Some("wants".into()));
    let label = |farm: &SmallFarm| {
        let failed = ResourceEvent::ActivationFailed(failure(Hope::Passing));
        step_resource(&resource, &farm.context(), failed).unwrap().label
    };
    assert_eq!(label(&farm), Label::R3);
    farm.release("wants");
    assert_eq!(label(&farm), Label::R4);
}

#[test]
fn a_renewal_ends_where_the_longest_hold_ends() {
    let (farm, mut lease) = lease_in(LeaseState::Active, Phase::Whole);
    lease.deadlines.expires_at_most = Some(Moment(5_000));
    let event = LeaseEvent::Command(command(lease.object(), Verb::Renew { until: Moment(9_000) }));
    let transition = step_lease(&lease, &farm.context(), event).unwrap();
    assert_eq!(transition.leases[0].deadlines.expires, Some(Moment(5_000)));
}
