//! The keeper with effects that work, fail and are cut off.

use std::sync::Mutex;

use super::*;
use crate::lease::samples::{request, static_dut};

/// Writes down what it is asked for; `stuck` tear-downs fail until they are mended.
#[derive(Default)]
struct Recorder {
    done: Mutex<Vec<String>>,
    stuck: Mutex<bool>,
    outside: Mutex<Vec<Outside>>,
}

impl Recorder {
    fn note(&self, text: String) {
        self.done.lock().unwrap().push(text);
    }

    fn done(&self) -> Vec<String> {
        self.done.lock().unwrap().clone()
    }
}

impl Effects for Recorder {
    fn activate(&self, lease: &Lease, _: Option<Pass>) -> BoxFuture<'static, Result<(), EffectError>> {
        self.note(format!("activate {}", lease.request.want.kind));
        Box::pin(async { Ok(()) })
    }

    fn revoke(&self, lease: &Lease) -> BoxFuture<'static, ()> {
        self.note(format!("revoke {}", lease.request.want.kind));
        Box::pin(async {})
    }

    fn tear_down(&self, lease: &Lease) -> BoxFuture<'static, Result<(), EffectError>> {
        self.note(format!("tear down {}", lease.request.want.kind));
        let stuck = *self.stuck.lock().unwrap();
        Box::pin(async move { if stuck { Err(EffectError::Retry("it reads on".into())) } else { Ok(()) } })
    }

    fn make(&self, _: &Resource) -> BoxFuture<'static, Result<Vec<(String, String)>, EffectError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn unmake(&self, _: &Resource) -> BoxFuture<'static, Result<(), EffectError>> {
        Box::pin(async { Ok(()) })
    }

    fn enumerate(&self) -> BoxFuture<'static, Vec<Outside>> {
        let outside = self.outside.lock().unwrap().clone();
        Box::pin(async { outside })
    }

    fn remove(&self, _: &str, name: &str) -> BoxFuture<'static, Result<(), EffectError>> {
        self.note(format!("remove {name}"));
        Box::pin(async { Ok(()) })
    }

    fn grace(&self) -> Duration {
        Duration::from_millis(50)
    }

    fn reconcile(&self, _: &Effect) -> BoxFuture<'static, Reconciled> {
        Box::pin(async { Reconciled::NotApplied })
    }
}

fn open(path: &Path, effects: &Arc<Recorder>) -> Keeper {
    open_tagged(path, effects, &[])
}

fn open_tagged(path: &Path, effects: &Arc<Recorder>, tags: &[&str]) -> Keeper {
    let effects: Arc<dyn Effects> = Arc::clone(effects) as Arc<dyn Effects>;
    let (keeper, corruption) = Keeper::open(path, static_dut("a", tags), effects).unwrap();
    assert_eq!(corruption, []);
    keeper
}

async fn until(keeper: &Keeper, lease: &str, state: LeaseState) -> LeaseView {
    let mut views = keeper.watch(lease.into()).await.expect("the lease was requested");
    let found = tokio::time::timeout(Duration::from_secs(20), views.wait_for(|view| view.state == state)).await;
    found.expect("within 20 s").expect("the keeper lives").clone()
}

async fn release(keeper: &Keeper, lease: &str) {
    let cause = Cause::Released { by: "somebody".into() };
    keeper.command(Object::Lease(lease.into()), Verb::Release { cause }, "somebody").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_one_gets_the_dut_when_the_first_has_been_torn_down() {
    let (folder, effects) = (tempfile::tempdir().unwrap(), Arc::new(Recorder::default()));
    let keeper = open(&folder.path().join("leases.sqlite"), &effects);
    keeper.request(request("1", &[])).await.unwrap();
    let first = until(&keeper, "1", LeaseState::Active).await;
    assert_eq!(first.resource.as_deref(), Some("a"));
    keeper.request(request("2", &[])).await.unwrap();
    // Who waits is told how the queue stands a moment after his request is kept.
    let mut views = keeper.watch("2".into()).await.unwrap();
    let told = tokio::time::timeout(Duration::from_secs(20), views.wait_for(|view| view.place.is_some())).await;
    let waiting = told.expect("within 20 s").expect("the keeper lives").clone();
    let reasons: Vec<_> = waiting.reasons.iter().map(ToString::to_string).collect();
    assert_eq!((waiting.place, reasons), (Some(1), vec!["farm-a is busy with job 1".to_owned()]));
    assert_eq!(keeper.free_now(request("3", &[])).await, Err(vec!["farm-a is busy with job 1".to_owned()]));
    release(&keeper, "1").await;
    let second = until(&keeper, "2", LeaseState::Active).await;
    assert!(first.pass.unwrap().check().is_err() && second.pass.unwrap().check().is_ok());
    let done = effects.done();
    let dut: Vec<_> = done.iter().filter(|text| text.ends_with(" dut")).map(String::as_str).collect();
    assert_eq!(dut, ["activate dut", "revoke dut", "tear down dut", "activate dut"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_that_starts_again_has_its_leases_and_its_queue() {
    let (folder, effects) = (tempfile::tempdir().unwrap(), Arc::new(Recorder::default()));
    let path = folder.path().join("leases.sqlite");
    let keeper = open(&path, &effects);
    keeper.request(request("1", &[])).await.unwrap();
    until(&keeper, "1", LeaseState::Active).await;
    keeper.request(request("2", &[])).await.unwrap();
    keeper.stop().await;
    let effects = Arc::new(Recorder::default());
    let keeper = open(&path, &effects);
    let first = until(&keeper, "1", LeaseState::Active).await;
    assert_eq!(keeper.watch("2".into()).await.unwrap().borrow().state, LeaseState::Pending);
    assert!(first.resource.as_deref() == Some("a") && effects.done().is_empty(), "{:?}", effects.done());
    release(&keeper, "1").await;
    until(&keeper, "2", LeaseState::Active).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dut_has_the_tags_that_the_farm_file_gives_it_now() {
    let (folder, effects) = (tempfile::tempdir().unwrap(), Arc::new(Recorder::default()));
    let path = folder.path().join("leases.sqlite");
    let keeper = open_tagged(&path, &effects, &["old"]);
    keeper.request(request("1", &["old"])).await.unwrap();
    until(&keeper, "1", LeaseState::Active).await;
    keeper.stop().await;
    let keeper = open_tagged(&path, &Arc::new(Recorder::default()), &["new"]);
    keeper.request(request("2", &["new"])).await.unwrap();
    until(&keeper, "1", LeaseState::Active).await;
    release(&keeper, "1").await;
    until(&keeper, "2", LeaseState::Active).await;
    let tags: Vec<_> = keeper.snapshot().await.unwrap().resources.iter().map(|it| it.tags.clone()).collect();
    assert!(tags.contains(&vec!["new".to_owned()]) && !tags.contains(&vec!["old".to_owned()]), "{tags:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_never_be_served_is_refused_and_the_same_request_twice_is_one_lease() {
    let (folder, effects) = (tempfile::tempdir().unwrap(), Arc::new(Recorder::default()));
    let keeper = open(&folder.path().join("leases.sqlite"), &effects);
    let never = keeper.request(request("1", &["gpu"])).await;
    assert_eq!(never, Err(RequestError::NeverFeasible("farm-a lacks the tags `gpu`".into())));
    keeper.request(request("2", &[])).await.unwrap();
    keeper.request(request("2", &[])).await.unwrap();
    until(&keeper, "2", LeaseState::Active).await;
    let snapshot = keeper.snapshot().await.unwrap();
    assert_eq!(snapshot.leases.iter().filter(|lease| lease.parent.is_none()).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_whose_connection_is_gone_is_given_back() {
    let (folder, effects) = (tempfile::tempdir().unwrap(), Arc::new(Recorder::default()));
    let keeper = open(&folder.path().join("leases.sqlite"), &effects);
    let owner = Owner::Connection("somebody's terminal".into());
    keeper.request(LeaseRequest { owner, ..request("1", &[]) }).await.unwrap();
    let attachment = keeper.attach("1".into());
    until(&keeper, "1", LeaseState::Active).await;
    drop(attachment);
    let over = until(&keeper, "1", LeaseState::Destroyed).await;
    assert_eq!(over.cause, Cause::OwnerGone);
    let late = keeper.command(Object::Lease("1".into()), Verb::Drain, "somebody").await;
    assert_eq!(late, Err(RequestError::NoSuch(Object::Lease("1".into()))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tear_down_that_is_mended_goes_on_by_itself() {
    let (folder, effects) = (tempfile::tempdir().unwrap(), Arc::new(Recorder::default()));
    let keeper = open(&folder.path().join("leases.sqlite"), &effects);
    keeper.request(request("1", &[])).await.unwrap();
    until(&keeper, "1", LeaseState::Active).await;
    *effects.stuck.lock().unwrap() = true;
    release(&keeper, "1").await;
    until(&keeper, "1", LeaseState::Releasing).await;
    *effects.stuck.lock().unwrap() = false;
    until(&keeper, "1", LeaseState::Destroyed).await;
    let events = keeper.events(1).await.unwrap();
    assert_eq!(events.last().map(|event| event.seq), Some(events.len() as u64));
}

async fn authorize(keeper: &Keeper, state: AuthorizationState) {
    let (subject, by) = ("somebody".to_owned(), "admin".to_owned());
    let authorization = Authorization { subject, blueprint: "a".into(), state, by, at: Moment(1) };
    keeper.authorize(authorization).await.unwrap();
}

fn guarded() -> Vec<Blueprint> {
    let mut blueprints = static_dut("a", &[]);
    blueprints[0].access = Access::Authorized;
    blueprints
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_needs_authorization_asks_for_it_waits_and_is_served_when_the_answer_comes() {
    let (folder, effects) = (tempfile::tempdir().unwrap(), Arc::new(Recorder::default()));
    let (keeper, _) = Keeper::open(&folder.path().join("leases.sqlite"), guarded(), effects).unwrap();
    keeper.request(request("1", &[])).await.unwrap();
    let mut view = keeper.watch("1".into()).await.unwrap();
    let told = |view: &LeaseView| view.reasons.iter().map(ToString::to_string).collect::<Vec<_>>();
    let waits = view.wait_for(|view| !view.reasons.is_empty()).await.unwrap().clone();
    assert_eq!(told(&waits), ["nobody has said yet whether somebody may use a"]);
    let asked = keeper.snapshot().await.unwrap().authorizations;
    let asked: Vec<_> = asked.iter().map(|it| (it.subject.as_str(), it.blueprint.as_str(), it.state)).collect();
    assert_eq!(asked, [("somebody", "a", AuthorizationState::Requested)]);
    authorize(&keeper, AuthorizationState::Authorized).await;
    until(&keeper, "1", LeaseState::Active).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawn_authorization_ends_nothing_that_is_held_and_refuses_who_waits() {
    let (folder, effects) = (tempfile::tempdir().unwrap(), Arc::new(Recorder::default()));
    let (keeper, _) = Keeper::open(&folder.path().join("leases.sqlite"), guarded(), effects).unwrap();
    authorize(&keeper, AuthorizationState::Authorized).await;
    keeper.request(request("1", &[])).await.unwrap();
    until(&keeper, "1", LeaseState::Active).await;
    keeper.request(request("2", &[])).await.unwrap();
    authorize(&keeper, AuthorizationState::Declined).await;
    let over = until(&keeper, "2", LeaseState::Destroyed).await;
    assert_eq!(over.cause.to_string(), "nothing in the farm could ever serve it: somebody may not use a");
    assert_eq!(keeper.lease("1".into()).await.unwrap().state, LeaseState::Active);
    let refused = keeper.request(request("3", &[])).await;
    assert_eq!(refused, Err(RequestError::NeverFeasible("somebody may not use a".into())));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_followed_as_they_are_committed_until_the_farm_stops() {
    let (folder, effects) = (tempfile::tempdir().unwrap(), Arc::new(Recorder::default()));
    let keeper = open(&folder.path().join("leases.sqlite"), &effects);
    let mut events = keeper.follow_events(1);
    keeper.request(request("1", &[])).await.unwrap();
    let mut seen = Vec::new();
    while let Some(event) = events.next().await {
        let Event { seq, transition } = event.unwrap();
        seen.push(seq);
        if transition.label == Label::L4 && transition.object == Object::Lease("1".into()) {
            break;
        }
    }
    assert!(seen.iter().copied().eq(1..=seen.len() as u64), "{seen:?}");
    let own = keeper.events_of(Object::Lease("1".into())).await.unwrap();
    let labels: Vec<_> = own.iter().map(|event| event.transition.label).collect();
    assert_eq!(labels, [Label::L1, Label::L2, Label::Intent, Label::L4]);
    keeper.stop().await;
    while let Some(event) = events.next().await {
        event.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_was_handed_over_does_not_end_with_its_first_owners_connection() {
    let (folder, effects) = (tempfile::tempdir().unwrap(), Arc::new(Recorder::default()));
    let keeper = open(&folder.path().join("leases.sqlite"), &effects);
    let owner = Owner::Connection("somebody's terminal".into());
    keeper.request(LeaseRequest { owner, ..request("1", &[]) }).await.unwrap();
    let attachment = keeper.attach("1".into());
    until(&keeper, "1", LeaseState::Active).await;
    let other = Owner::Job("17".into());
    keeper.command(Object::Lease("1".into()), Verb::HandOver { owner: other.clone() }, "somebody").await.unwrap();
    keeper.watch("1".into()).await.unwrap().wait_for(|view| view.owner == other).await.unwrap();
    drop(attachment);
    // Whatever the drop would do is done before the answer to a later message.
    keeper.snapshot().await.unwrap();
    assert_eq!(keeper.lease("1".into()).await.unwrap().state, LeaseState::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_outside_is_lost_and_what_nobody_knows_is_removed_after_a_grace() {
    let (folder, effects) = (tempfile::tempdir().unwrap(), Arc::new(Recorder::default()));
    let path = folder.path().join("leases.sqlite");
    let keeper = open(&path, &effects);
    keeper.request(request("1", &[])).await.unwrap();
    until(&keeper, "1", LeaseState::Active).await;
    keeper.stop().await;
    let effects = Arc::new(Recorder::default());
    *effects.outside.lock().unwrap() = vec![Outside { blueprint: "a".into(), names: vec!["stray".into()] }];
    let keeper = open(&path, &effects);
    let over = until(&keeper, "1", LeaseState::Destroyed).await;
    let why = "its resource went away: its resource went away: it was not there any more when the farm started";
    assert_eq!(over.cause.to_string(), why);
    let removed = async {
        while !effects.done().contains(&"remove stray".to_owned()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), removed).await.expect("the stray is removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seat_of_nobody_holds_its_resource_back() {
    let (folder, effects) = (tempfile::tempdir().unwrap(), Arc::new(Recorder::default()));
    let path = folder.path().join("leases.sqlite");
    let keeper = open(&path, &effects);
    keeper.request(request("1", &[])).await.unwrap();
    let held = until(&keeper, "1", LeaseState::Active).await.holds.unwrap();
    release(&keeper, "1").await;
    until(&keeper, "1", LeaseState::Destroyed).await;
    keeper.stop().await;
    let key = format!("seat:{held}:7");
    let damage = rusqlite::Connection::open(&path).unwrap();
    damage.execute("INSERT INTO slot (key, owner) VALUES (?1, ?2)", [&key, r#"{"lease":"1"}"#]).unwrap();
    drop(damage);
    let (keeper, corruption) = Keeper::open(&path, static_dut("a", &[]), effects).unwrap();
    assert_eq!(corruption.len(), 1);
    let free = keeper.free_now(request("2", &[])).await;
    let why = format!(
        "farm-a is held back: slot {key} belongs to lease 1, which is over, or was never there; nothing that needs it is started (the \
         farm)"
    );
    assert_eq!(free, Err(vec![why]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_heartbeat_has_three_of_its_own_intervals_after_a_restart() {
    let (folder, effects) = (tempfile::tempdir().unwrap(), Arc::new(Recorder::default()));
    let store = Store::open(&folder.path().join("leases.sqlite")).unwrap();
    let (results, _inbox) = channel();
    let mut thread = KeeperThread::new(store, Tables::default(), effects, results, watch::channel(0).0);
    for (id, every_ms) in [("slow", 60_000), ("quick", 1_000)] {
        let owner = Owner::Heartbeat { name: "somebody".into(), every_ms };
        let mut transition = admit(LeaseRequest { owner, ..request(id, &[]) }, &thread.context());
        thread.tables.number(&mut transition);
        thread.tables.apply(&transition).unwrap();
    }
    let before = thread.now();
    thread.expect_owners();
    let grace_ms = |id: &str| (thread.owners[&id.into()].0 - before.0) / 1_000 * 1_000;
    assert_eq!((grace_ms("slow"), grace_ms("quick")), (180_000, 30_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_farm_without_running_clocks_writes_nothing_and_one_with_them_says_that_it_lives() {
    let (folder, effects) = (tempfile::tempdir().unwrap(), Arc::new(Recorder::default()));
    let store = Store::open(&folder.path().join("leases.sqlite")).unwrap();
    let (results, _inbox) = channel();
    let mut thread = KeeperThread::new(store, Tables::default(), effects, results, watch::channel(0).0);
    thread.say_alive();
    assert_eq!((thread.alive_again_at(), thread.store.alive_at().unwrap()), (None, None));
    thread.timers.insert(Object::Lease("1".into()), thread.now().plus_ms(60_000));
    thread.say_alive();
    let said = thread.store.alive_at().unwrap().expect("it was said");
    assert_eq!(thread.alive_again_at(), Some(said.plus_ms(5_000)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_does_not_expire_while_the_farm_is_away() {
    let (folder, effects) = (tempfile::tempdir().unwrap(), Arc::new(Recorder::default()));
    let path = folder.path().join("leases.sqlite");
    let keeper = open(&path, &effects);
    let timeouts = Timeouts { hold_ms: Some(600_000), ..Timeouts::default() };
    keeper.request(LeaseRequest { timeouts, ..request("1", &[]) }).await.unwrap();
    let before = until(&keeper, "1", LeaseState::Active).await;
    keeper.stop().await;
    // It was last alive two hours ago, and the hold of ten minutes began then.
    let two_hours_ms = 7_200_000;
    let mut store = Store::open(&path).unwrap();
    let alive_at = store.alive_at().unwrap().unwrap();
    store.alive(Moment(alive_at.0 - two_hours_ms)).unwrap();
    drop(store);
    let keeper = open(&path, &effects);
    let after = keeper.watch("1".into()).await.unwrap().borrow().clone();
    let moved = after.expires.unwrap().0 - before.expires.unwrap().0;
    assert!(after.state == LeaseState::Active && (two_hours_ms..two_hours_ms + 60_000).contains(&moved), "{moved}");
    let events = keeper.events_of(Object::Lease("1".into())).await.unwrap();
    let last = events.last().unwrap().transition.to_string();
    assert!(last.contains("lease 1: deadlines moved: the farm was away for 7200 s (on a)"), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_on_what_is_not_there_is_not_touched_and_its_parts_are_held_back() {
    let (folder, effects) = (tempfile::tempdir().unwrap(), Arc::new(Recorder::default()));
    let path = folder.path().join("leases.sqlite");
    let keeper = open(&path, &effects);
    keeper.request(request("1", &[])).await.unwrap();
    let held = until(&keeper, "1", LeaseState::Active).await.holds.unwrap();
    keeper.stop().await;
    let damage = rusqlite::Connection::open(&path).unwrap();
    damage.pragma_update(None, "foreign_keys", "OFF").unwrap();
    damage.execute("DELETE FROM resource WHERE id = ?1", [held.as_str()]).unwrap();
    drop(damage);
    let effects = Arc::new(Recorder::default());
    let recorder: Arc<dyn Effects> = Arc::clone(&effects) as Arc<dyn Effects>;
    let (keeper, corruption) = Keeper::open(&path, static_dut("a", &[]), recorder).unwrap();
    let lease = format!("lease 1 is on resource {held}, which is over, or was never there; it is not touched");
    assert!(corruption.iter().any(|found| found.to_string() == lease), "{corruption:?}");
    release(&keeper, "1").await;
    let snapshot = keeper.snapshot().await.unwrap();
    let state = snapshot.leases.iter().find(|it| it.id().as_str() == "1").unwrap().state;
    let cordoned = snapshot.resources.iter().filter(|it| matches!(it.admin, Admin::Cordoned { .. }));
    let cordoned: BTreeSet<_> = cordoned.map(|it| it.name.as_str()).filter(|name| name.starts_with("a-")).collect();
    assert_eq!(state, LeaseState::Active);
    assert!(cordoned.is_superset(&["a-outlet", "a-tty"].into()), "{cordoned:?}");
    assert_eq!(effects.done(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_is_told_when_its_turn_comes_once_the_farm_knows_how_long_leases_last() {
    let (folder, effects) = (tempfile::tempdir().unwrap(), Arc::new(Recorder::default()));
    let keeper = open(&folder.path().join("leases.sqlite"), &effects);
    keeper.request(request("1", &[])).await.unwrap();
    until(&keeper, "1", LeaseState::Active).await;
    keeper.request(request("2", &[])).await.unwrap();
    assert_eq!(keeper.watch("2".into()).await.unwrap().borrow().estimate, None, "no lease has ended yet");
    release(&keeper, "1").await;
    until(&keeper, "2", LeaseState::Active).await;
    keeper.request(request("3", &[])).await.unwrap();
    assert!(keeper.watch("3".into()).await.unwrap().borrow().estimate.is_some());
}
