//! The keeper at size: how long after a release the next lease is active, and what that costs.
//!
//! The gate runs a small farm and holds it to its order; `WHARF_KEEPER_DUTS` and `WHARF_KEEPER_REQUESTS` make it as large as wanted, and
//! the figures are printed.

use std::collections::VecDeque;

use super::*;
use crate::lease::samples::{request, static_dut};

/// Nothing outside takes any time.
struct Nothing;

impl Effects for Nothing {
    fn activate(&self, _: &Lease, _: Option<Pass>) -> BoxFuture<'static, Result<(), EffectError>> {
        Box::pin(async { Ok(()) })
    }

    fn revoke(&self, _: &Lease) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }

    fn tear_down(&self, _: &Lease) -> BoxFuture<'static, Result<(), EffectError>> {
        Box::pin(async { Ok(()) })
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

/// Lines of the queue, unless `WHARF_KEEPER_SORTS` says otherwise: machines come in so many sorts, and each request asks for one.
const SORTS: usize = 10;

fn asked(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn tag(sort: usize) -> String {
    format!("sort-{sort}")
}

/// The processor time of this process so far.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("there is a /proc");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // utime and stime (proc(5), fields 14 and 15), in hundredths of a second.
    let ticks = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

async fn active(views: &mut watch::Receiver<LeaseView>) {
    let found = views.wait_for(|view| view.state == LeaseState::Active);
    tokio::time::timeout(Duration::from_secs(60), found).await.expect("within a minute").expect("the keeper lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_farm_with_a_long_queue_serves_it_in_order_and_soon() {
    let (duts, requests) = (asked("WHARF_KEEPER_DUTS", 40), asked("WHARF_KEEPER_REQUESTS", 200));
    let sorts = asked("WHARF_KEEPER_SORTS", SORTS);
    let folder = tempfile::tempdir().unwrap();
    let blueprints =
        (0..duts).flat_map(|number| static_dut(&format!("dut-{number}"), &[&tag(number % sorts)])).collect();
    let (keeper, _) = Keeper::open(&folder.path().join("leases.sqlite"), blueprints, Arc::new(Nothing)).unwrap();
    let mut lines: Vec<VecDeque<(String, watch::Receiver<LeaseView>)>> = vec![VecDeque::new(); sorts];
    let filled = Instant::now();
    for number in 0..duts + requests {
        let (id, tag) = (number.to_string(), tag(number % sorts));
        keeper.request(request(&id, &[&tag])).await.unwrap();
        let views = keeper.watch(id.as_str().into()).await.unwrap();
        lines[number % sorts].push_back((id, views));
    }
    // The first of each line have the machines of their sort.
    let mut holders: Vec<VecDeque<String>> = vec![VecDeque::new(); sorts];
    for number in 0..duts {
        let (id, mut views) = lines[number % sorts].pop_front().unwrap();
        active(&mut views).await;
        holders[number % sorts].push_back(id);
    }
    println!("{duts} machines are leased and {requests} requests wait after {:?}", filled.elapsed());
    let (before, started, mut took) = (processor_time(), Instant::now(), Vec::new());
    let rounds = requests.min(400);
    for number in 0..rounds {
        let (line, held) = (&mut lines[number % sorts], &mut holders[number % sorts]);
        let cause = Cause::Released { by: "somebody".into() };
        let released = Instant::now();
        let lease = Object::Lease(held.pop_front().unwrap().as_str().into());
        keeper.command(lease, Verb::Release { cause }, "somebody").await.unwrap();
        let (id, mut views) = line.pop_front().unwrap();
        active(&mut views).await;
        took.push(released.elapsed());
        // Whoever is behind him waits on: nobody overtook.
        let behind = line.front().map(|(_, views)| views.borrow().state);
        assert!(behind.is_none_or(|state| state == LeaseState::Pending), "{behind:?} behind {id}");
        held.push_back(id);
    }
    took.sort_unstable();
    let cost = (processor_time() - before) / rounds as u32;
    let (median, p99, worst) = (took[rounds / 2], took[rounds * 99 / 100], took[rounds - 1]);
    let events = keeper.newest_event();
    println!("release to the next active: median {median:?}, p99 {p99:?}, worst {worst:?}");
    println!("{cost:?} of processor time each, {:?} in all, {events} events", started.elapsed());
}
