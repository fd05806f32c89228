//! The keeper with effects that work, fail and are cut off.

use std::sync::Mutex;

use super::*;
use crate::lease::samples::{request, static_dut};

/// Writes down what it is asked for; `stuck` tear-downs fail until they are mended.
#[derive(Default)]
struct Recorder {
    done: Mutex<Vec<String>>,
    stuck: Mutex<bool>,
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

    fn reconcile(&self, _: &Effect) -> BoxFuture<'static, Reconciled> {
        Box::pin(async { Reconciled::NotApplied })
    }
}

fn open(path: &Path, effects: &Arc<Recorder>) -> Keeper {
    let effects: Arc<dyn Effects> = Arc::clone(effects) as Arc<dyn Effects>;
    let (keeper, corruption) = Keeper::open(path, static_dut("a", &[]), effects).unwrap();
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
    let waiting = until(&keeper, "2", LeaseState::Pending).await;
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
