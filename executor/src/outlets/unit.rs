//! One power unit: whoever wants something of it waits in line, and a unit that fails is left alone for a while.
//!
//! ```text
//!  call ─► line of a session (an outlet always has the same) ─► pause ─► the driver, 45 s at most ─► answer
//!                                                                 ▲               │ an error: the next pause is longer
//!                                                                 └───────────────┘ the fifth in a row: the driver is made anew
//!  every poll interval, one after the other: each outlet's state, and its meter
//! ```
//! A line serves its calls one by one, in order: the last that an outlet was told is what it does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};

use super::policy::{self, Policy};
use super::store::Store;
use super::{Slot, Switch};
use crate::blueprint::power::{Outlet, OutletInfo, Pdu, PowerError, ReadBack};

/// Calls that wait in a line: two for each of 48 outlets, and a poll.
const CALLS_MAX: usize = 128;
/// Failures in a row after which the driver is made anew: a session that the unit has forgotten is not found by asking again.
const FAILURES_MAX: u32 = 5;

/// Makes the unit's driver.
pub type Make = Box<dyn Fn() -> Result<Arc<dyn Pdu>, String> + Send + Sync>;

/// A power unit and its outlets.
pub struct Unit {
    /// What the farm file calls it; a unit of one machine has that one's full name.
    pub name: String,
    /// Its driver's name.
    pub driver: &'static str,
    /// How it is treated.
    pub policy: Policy,
    /// The least time that its outlets are without power.
    pub off_time: Duration,
    /// Outlets that the farm file reserves.
    reserved: Vec<Outlet>,
    lines: Vec<mpsc::Sender<Call>>,
    worked: Arc<Worked>,
    pub(super) store: Arc<Store>,
    outlets: Mutex<BTreeMap<Outlet, Arc<Slot>>>,
    /// Whether the unit has said itself what it has.
    listed: OnceLock<()>,
}

/// What is being asked: it answers its caller by itself, and tells how it went.
type Call = Box<dyn FnOnce(Arc<dyn Pdu>) -> BoxFuture<'static, Went> + Send>;

/// How a call went.
enum Went {
    Well,
    Wrong(String),
    /// Nobody waited for it any more.
    NotMade,
}

/// What the lines share.
struct Worked {
    policy: Policy,
    make: Make,
    state: Mutex<Health>,
}

struct Health {
    driver: Arc<dyn Pdu>,
    failures: u32,
    error: Option<String>,
    asked: Asked,
    next_call: Instant,
}

/// Whether a unit has answered yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Never,
    Before,
}

/// How a unit is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnitState {
    /// Nothing was asked of it yet.
    New,
    /// It did what it was asked last.
    Ok,
    /// It did not.
    Failing(String),
}

impl Unit {
    /// A unit with this driver; nothing is asked of it yet.
    pub fn new(
        name: &str,
        driver: &'static str,
        make: Make,
        policy: Policy,
        reserved: Vec<Outlet>,
        store: Arc<Store>,
    ) -> Result<Arc<Unit>, String> {
        let pdu = make()?;
        let off_time = policy.off_time.unwrap_or(pdu.off_time());
        let health = Health { driver: pdu, failures: 0, error: None, asked: Asked::Never, next_call: Instant::now() };
        let worked = Arc::new(Worked { policy: policy.clone(), make, state: Mutex::new(health) });
        let lines = (0..policy.sessions.max(1)).map(|_| {
            let (line, calls) = mpsc::channel(CALLS_MAX);
            tokio::spawn(work(Arc::clone(&worked), calls));
            line
        });
        let unit = Arc::new(Unit {
            name: name.to_owned(),
            driver,
            reserved,
            lines: lines.collect(),
            worked,
            store,
            outlets: Mutex::default(),
            listed: OnceLock::new(),
            off_time,
            policy,
        });
        let noted = unit.store.known().into_iter().chain(unit.reserved.clone());
        noted.for_each(|outlet| drop(unit.switch(&outlet)));
        if let Some(interval) = unit.policy.poll_interval {
            tokio::spawn(poll(Arc::downgrade(&unit), interval));
        }
        Ok(unit)
    }

    /// One of its outlets.
    pub fn switch(self: &Arc<Self>, outlet: &Outlet) -> Switch {
        let slot = Arc::clone(
            self.lock()
                .entry(outlet.clone())
                .or_insert_with(|| Arc::new(Slot::new(outlet.clone(), self.store.get(outlet).off_since))),
        );
        Switch { unit: Arc::clone(self), slot }
    }

    /// All of its outlets that are known, by name.
    pub fn switches(self: &Arc<Self>) -> Vec<Switch> {
        let slots: Vec<_> = self.lock().values().cloned().collect();
        slots.into_iter().map(|slot| Switch { unit: Arc::clone(self), slot }).collect()
    }

    /// An outlet that is known.
    pub fn find(self: &Arc<Self>, outlet: &str) -> Option<Switch> {
        let slot = self.lock().get(&Outlet(outlet.to_owned())).cloned()?;
        Some(Switch { unit: Arc::clone(self), slot })
    }

    /// What the unit says it has; `None` when it cannot say.
    pub async fn outlets(&self) -> Result<Option<Vec<OutletInfo>>, PowerError> {
        self.call(&Outlet(String::new()), |pdu, _| async move { pdu.outlets().await }.boxed()).await
    }

    /// Whether it has said itself what outlets it has.
    pub fn lists_outlets(&self) -> bool {
        self.listed.get().is_some()
    }

    /// An outlet of a unit that cannot say what it has: it is there when the unit tells its state.
    pub async fn asked_for(self: &Arc<Self>, outlet: &Outlet) -> Result<Switch, PowerError> {
        self.call(outlet, |pdu, outlet| async move { pdu.state(&outlet).await }.boxed()).await?;
        Ok(self.switch(outlet))
    }

    /// How it is.
    pub fn state(&self) -> UnitState {
        let health = self.worked.lock();
        match (&health.error, health.asked) {
            (Some(error), _) => UnitState::Failing(error.clone()),
            (None, Asked::Never) => UnitState::New,
            (None, Asked::Before) => UnitState::Ok,
        }
    }

    /// Its driver, for what is not asked of the unit itself.
    pub fn pdu(&self) -> Arc<dyn Pdu> {
        Arc::clone(&self.worked.lock().driver)
    }

    /// What a state that it tells is worth.
    pub fn read_back(&self) -> ReadBack {
        self.worked.lock().driver.read_back()
    }

    /// What is kept of its outlets: a unit that takes its place goes on with it.
    pub fn store(&self) -> Arc<Store> {
        Arc::clone(&self.store)
    }

    /// Whether the farm file says that this outlet is not to be switched.
    pub(super) fn reserves(&self, outlet: &Outlet) -> bool {
        self.reserved.contains(outlet)
    }

    /// Waits for its turn, then asks. Whoever stops waiting before his turn has asked nothing.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        outlet: &Outlet,
        ask: impl FnOnce(Arc<dyn Pdu>, Outlet) -> BoxFuture<'static, Result<T, PowerError>> + Send + 'static,
    ) -> Result<T, PowerError> {
        let (answer, answered) = oneshot::channel();
        let name = outlet.clone();
        let call: Call = Box::new(move |pdu| {
            async move {
                if answer.is_closed() {
                    return Went::NotMade;
                }
                let limit = pdu.call_time();
                let result = bounded(&name, limit, ask(pdu, name.clone())).await;
                let went = result.as_ref().map_or_else(|error| Went::Wrong(error.to_string()), |_| Went::Well);
                let _ = answer.send(result);
                went
            }
            .boxed()
        });
        let line = &self.lines[line_of(outlet, self.lines.len())];
        let failed = |reason: &str| PowerError { outlet: outlet.0.clone(), reason: reason.to_owned() };
        line.send(call).await.map_err(|_| failed("its unit is not served any more"))?;
        answered.await.map_err(|_| failed("an internal error: the call to its unit was lost"))?
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Outlet, Arc<Slot>>> {
        self.outlets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Worked {
    fn lock(&self) -> MutexGuard<'_, Health> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the next call may be made; the one after it comes later.
    fn turn(&self) -> Instant {
        let mut health = self.lock();
        let at = health.next_call.max(Instant::now());
        health.next_call = at + self.policy.call_pause;
        at
    }

    fn note(&self, went: Went) {
        let mut health = self.lock();
        match went {
            Went::NotMade => return,
            Went::Well => (health.failures, health.error) = (0, None),
            Went::Wrong(error) => {
                health.failures = health.failures.saturating_add(1);
                health.error = Some(error);
                // Of a machine that is ours nothing is to be spared; and a person says himself how often he is asked.
                if !self.policy.call_pause.is_zero() && !health.driver.asks_people() {
                    health.next_call = Instant::now() + policy::back_off(health.failures, rand::random());
                }
            }
        }
        health.asked = Asked::Before;
        // What a person said is nowhere else.
        let remembers = health.driver.read_back() == ReadBack::Remembered;
        if health.failures > 0 && health.failures.is_multiple_of(FAILURES_MAX) && !remembers {
            match (self.make)() {
                Ok(driver) => health.driver = driver,
                Err(error) => tracing::error!(error, "the driver of a power unit cannot be made anew"),
            }
        }
    }
}

/// An outlet's calls stay in their order.
fn line_of(outlet: &Outlet, lines: usize) -> usize {
    outlet.0.bytes().fold(0, |sum: usize, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte))) % lines
}

/// A line of calls, for as long as the unit is there.
async fn work(worked: Arc<Worked>, mut calls: mpsc::Receiver<Call>) {
    while let Some(call) = calls.recv().await {
        let turn = worked.turn();
        if turn > Instant::now() {
            sleep_until(turn).await;
        }
        let driver = Arc::clone(&worked.lock().driver);
        let went = call(driver).await;
        worked.note(went);
    }
}

/// Looks at all outlets again and again, for the first time at once. What the unit says it has is asked until it has said it.
async fn poll(unit: Weak<Unit>, interval: Duration) {
    let mut tick = interval_at(second_look(Instant::now(), interval), interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut listed = None;
    loop {
        let Some(unit) = unit.upgrade() else { return };
        if listed.is_none() {
            listed = list(&unit).await;
        }
        for switch in unit.switches() {
            switch.poll().await;
        }
        drop(unit);
        tick.tick().await;
    }
}

/// Units that begin together, when the server starts, do not go on together: a hundred programs begun at one moment would keep everything
/// else waiting, the consoles' readers first.
fn second_look(first: Instant, interval: Duration) -> Instant {
    first + interval.mul_f64(rand::random())
}

/// `None`: it did not answer.
async fn list(unit: &Arc<Unit>) -> Option<()> {
    let outlets = unit.outlets().await.ok()?;
    for info in outlets.into_iter().flatten() {
        unit.switch(&info.outlet).slot.label(info.label);
        let _ = unit.listed.set(());
    }
    Some(())
}

async fn bounded<T>(
    outlet: &Outlet,
    limit: Duration,
    call: impl Future<Output = Result<T, PowerError>>,
) -> Result<T, PowerError> {
    timeout(limit, call).await.unwrap_or_else(|_| {
        let reason = format!("the unit gave no answer in {} s; check its network", limit.as_secs());
        Err(PowerError { outlet: outlet.0.clone(), reason })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_that_begin_together_are_looked_at_all_over_the_interval() {
        let (begin, tenth) = (Instant::now(), Duration::from_secs(6));
        let mut of_tenth = [0; 10];
        for _ in 0..1000 {
            let after = second_look(begin, 10 * tenth).duration_since(begin);
            of_tenth[usize::try_from(after.as_nanos() / tenth.as_nanos()).unwrap()] += 1;
        }
        // A hundred each, on the whole; that one has none is not to be seen (0.9^1000).
        assert!(of_tenth.iter().all(|units| (1..500).contains(units)), "{of_tenth:?}");
    }
}
