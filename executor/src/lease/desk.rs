//! The desk: requests come in, leases go out. One mutex, short sections, no await inside.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::queue::{Pending, Placement, plan};
use super::{Candidate, Pass, Wants};

/// Who holds what, and who waits. Cheap to clone.
#[derive(Clone)]
pub struct Desk {
    state: Arc<Mutex<State>>,
    changed: Arc<watch::Sender<u64>>,
}

struct State {
    duts: BTreeMap<String, Row>,
    queue: BTreeMap<u64, (String, Pending)>,
    last_number: u64,
}

struct Row {
    candidate: Candidate,
    fence: Arc<AtomicU64>,
}

/// A request in the queue. Dropping it withdraws it.
pub struct Waiting {
    desk: Desk,
    number: u64,
    job: String,
    seen: watch::Receiver<u64>,
    last: Option<Placement>,
}

/// News of a request.
#[derive(Debug)]
pub enum Step {
    /// It waits, or waits for other reasons than before.
    Waits {
        /// Its place; 1 is next.
        place: usize,
        /// Per fitting DUT, why not now.
        reasons: Vec<String>,
    },
    /// It is served.
    Granted(Lease),
}

/// The hold on one DUT. The DUT stays occupied until [`Lease::give_back`], which only the tear-down calls: a lease dropped without it
/// (a bug, a panic) keeps its DUT occupied rather than hand out a machine in an unknown state.
#[derive(Debug)]
pub struct Lease {
    desk: Desk,
    /// The DUT's id.
    pub dut: String,
    /// The permission.
    pub pass: Pass,
}

/// No DUT of the farm could ever serve the request: per DUT, why.
#[derive(Debug, PartialEq, Eq)]
pub struct Never(pub Vec<String>);

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Desk")
    }
}

impl Desk {
    /// A desk for these DUTs, all free.
    pub fn new(duts: impl IntoIterator<Item = Candidate>) -> Self {
        let row = |candidate: Candidate| (candidate.id.clone(), Row { candidate, fence: Arc::default() });
        let state = State { duts: duts.into_iter().map(row).collect(), queue: BTreeMap::new(), last_number: 0 };
        Desk { state: Arc::new(Mutex::new(state)), changed: Arc::new(watch::channel(0).0) }
    }

    /// The DUTs as they are now.
    pub fn candidates(&self) -> Vec<Candidate> {
        self.lock().candidates()
    }

    /// Puts a request for `job` into the queue; refuses what could never be served.
    pub fn request(&self, job: &str, wants: Wants, priority: i32) -> Result<Waiting, Never> {
        let mut state = self.lock();
        let misfits: Result<(), Vec<_>> = fits_any(&state.candidates(), &wants);
        misfits.map_err(Never)?;
        state.last_number += 1;
        let number = state.last_number;
        state.queue.insert(number, (job.to_owned(), Pending { number, priority, wants }));
        drop(state);
        let seen = self.changed.subscribe();
        self.wake();
        Ok(Waiting { desk: self.clone(), number, job: job.to_owned(), seen, last: None })
    }

    /// Would a request get a DUT at once? `Err`: per fitting DUT, why not now. Asked for clients that cannot wait.
    pub fn free_now(&self, wants: &Wants, priority: i32) -> Result<(), Vec<String>> {
        let state = self.lock();
        let newcomer = Pending { number: u64::MAX, priority, wants: wants.clone() };
        let pending: Vec<_> = state.queue.values().map(|(_, pending)| pending.clone()).chain([newcomer]).collect();
        match plan(&pending, &state.candidates()).into_iter().find(|(number, _)| *number == u64::MAX) {
            Some((_, Placement::Waits { reasons, .. })) => Err(reasons),
            _ => Ok(()),
        }
    }

    /// Takes a DUT out of service (`Some` reason) or back into it.
    pub fn hold_back(&self, dut: &str, reason: Option<String>) {
        if let Some(row) = self.lock().duts.get_mut(dut) {
            row.candidate.held_back = reason;
        }
        self.wake();
    }

    fn wake(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn candidates(&self) -> Vec<Candidate> {
        self.duts.values().map(|row| row.candidate.clone()).collect()
    }
}

fn fits_any(duts: &[Candidate], wants: &Wants) -> Result<(), Vec<String>> {
    let misfits: Vec<_> = duts.iter().filter_map(|dut| dut.fits(wants).err()).collect();
    if misfits.len() < duts.len() { Ok(()) } else { Err(misfits) }
}

impl Waiting {
    /// The next news; returns at once the first time. Cancel-safe.
    pub async fn next(&mut self) -> Step {
        loop {
            self.seen.mark_unchanged();
            if let Some(step) = self.look() {
                return step;
            }
            // The desk outlives its requests: its sender is never gone here.
            let _ = self.seen.changed().await;
        }
    }

    fn look(&mut self) -> Option<Step> {
        let mut state = self.desk.lock();
        let pending: Vec<_> = state.queue.values().map(|(_, pending)| pending.clone()).collect();
        let placements = plan(&pending, &state.candidates());
        let placement =
            placements.into_iter().find(|(number, _)| *number == self.number).map(|(_, placement)| placement)?;
        if self.last.as_ref() == Some(&placement) {
            return None;
        }
        self.last = Some(placement.clone());
        match placement {
            Placement::Waits { place, reasons } => Some(Step::Waits { place, reasons }),
            Placement::Granted { dut } => {
                state.queue.remove(&self.number);
                let row = state.duts.get_mut(&dut).expect("the allocator only grants DUTs of its snapshot");
                row.candidate.holder = Some(self.job.clone());
                let pass = Pass::issue(&row.fence);
                drop(state);
                self.desk.wake();
                Some(Step::Granted(Lease { desk: self.desk.clone(), dut, pass }))
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.desk.lock().queue.remove(&self.number);
        self.desk.wake();
    }
}

impl Lease {
    /// The last step of the tear-down: the DUT is clean and may be leased again.
    pub fn give_back(self) {
        self.pass.revoke();
        if let Some(row) = self.desk.lock().duts.get_mut(&self.dut) {
            row.candidate.holder = None;
        }
        self.desk.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desk(ids: &[&str]) -> Desk {
        Desk::new(ids.iter().map(|id| Candidate {
            id: id.to_string(),
            full_name: format!("farm-{id}"),
            tags: vec!["farm:farm".into()],
            held_back: None,
            holder: None,
        }))
    }

    fn any() -> Wants {
        Wants { id: None, tags: vec![] }
    }

    async fn granted(waiting: &mut Waiting) -> Lease {
        loop {
            if let Step::Granted(lease) = waiting.next().await {
                return lease;
            }
        }
    }

    #[tokio::test]
    async fn the_second_waits_until_the_first_has_given_back() {
        let desk = desk(&["a"]);
        let mut first = desk.request("1", any(), 0).unwrap();
        let lease = granted(&mut first).await;
        let mut second = desk.request("2", any(), 0).unwrap();
        assert!(
            matches!(second.next().await, Step::Waits { place: 1, reasons } if reasons == ["farm-a is busy with job 1"])
        );
        assert_eq!(desk.free_now(&any(), 0), Err(vec!["farm-a is busy with job 1".into()]));
        let old_pass = lease.pass.clone();
        lease.give_back();
        let lease = granted(&mut second).await;
        assert_eq!(lease.dut, "a");
        assert!(old_pass.check().is_err() && lease.pass.check().is_ok());
    }

    #[tokio::test]
    async fn a_withdrawn_request_lets_the_next_one_move_up() {
        let desk = desk(&["a"]);
        let mut first = desk.request("1", any(), 0).unwrap();
        let _held = granted(&mut first).await;
        let second = desk.request("2", any(), 0).unwrap();
        let mut third = desk.request("3", any(), 0).unwrap();
        assert!(matches!(third.next().await, Step::Waits { place: 2, .. }));
        drop(second);
        assert!(matches!(third.next().await, Step::Waits { place: 1, .. }));
    }

    #[test]
    fn what_no_dut_could_ever_serve_is_refused_at_once() {
        let refused = desk(&["a"]).request("1", Wants { id: None, tags: vec!["gpu".into()] }, 0);
        assert_eq!(refused.err(), Some(Never(vec!["farm-a lacks the tags `gpu`".into()])));
    }
}
