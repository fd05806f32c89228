//! Everything about power that is the same for every unit: drivers know one device and two verbs, the rest is here, once.
//!
//! ```text
//!  a lease (interface.rs) ─┐
//!  tear-downs, the start  ─┼─► Switch ─► wish written down ─► off-time over? ─► Unit: told ─► read back, again, again ─► done
//!  admins (farm/pdus.rs)  ─┘                (store.rs)          (policy.rs)      (unit.rs)          │
//!  poll ─► read, meter ─► somebody else switched it? the holder hears of it                          └─► told once more, or an error
//! ```
//!
//! | the server is killed | the next start finds | and |
//! |---|---|---|
//! | before the unit is told | the wish | does it, where the lease still holds; a machine that nobody holds goes off |
//! | between the off and the on of a cycle | the wish `cycle` | cycles: off once more, the rest of its off-time, on |
//! | while a command is on its way | the wish | does it, and looks again when the command must have landed |
//!
//! Of two commands for one outlet the later counts: an `off` does not wait for an `on` that waits for the off-time to pass.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::FutureExt;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::blueprint::power::{CALL_TIME, Outlet, PowerError, PowerState, Reading};

pub mod policy;
pub mod store;
pub mod unit;

pub use policy::Policy;
use policy::{Energy, Stamp};
pub use store::{Store, Wish};
pub use unit::{Unit, UnitState};

/// The pause before an outlet that reads wrong is read again; it doubles.
const READ_AGAIN: Duration = Duration::from_millis(250);

const RESERVED_BY_FILE: &str = "the farm file reserves it; take it out of `reserved` there, and `wharf reload`";

/// A verdict waits this long for the last reading of a meter.
const METER_TIME: Duration = Duration::from_secs(3);

/// An outlet, to switch and to read. Whoever holds this may: leases guard theirs with their pass.
#[derive(Clone)]
pub struct Switch {
    unit: Arc<Unit>,
    slot: Arc<Slot>,
}

/// What is known of an outlet, once for all that hold it.
struct Slot {
    outlet: Outlet,
    /// Counts the commands; the latest one counts.
    turns: watch::Sender<u64>,
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    label: Option<String>,
    seen: Option<PowerState>,
    read_at: Option<jiff::Timestamp>,
    off_since: Option<Stamp>,
    energy: Energy,
    metered: Metered,
    user: Option<User>,
}

/// Whether something measures an outlet.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Metered {
    #[default]
    Perhaps,
    No,
}

/// Whose outlet it is.
#[derive(Clone)]
pub struct User {
    /// The machine's full name.
    pub dut: String,
    /// How long the machine must be without power; as the unit has it when absent.
    pub off_time: Option<Duration>,
    /// Hears when somebody else switched it.
    pub changed: Arc<dyn Fn(PowerState) + Send + Sync>,
}

/// An outlet as others see it.
#[derive(Clone, Debug, PartialEq)]
pub struct OutletView {
    /// Its name on the unit.
    pub name: String,
    /// What it is called in the unit's own settings.
    pub label: Option<String>,
    /// As it was last read.
    pub state: Option<PowerState>,
    /// When that was.
    pub read_at: Option<jiff::Timestamp>,
    /// When it went off last, as far as we saw.
    pub last_off: Option<jiff::Timestamp>,
    /// The least time without power.
    pub off_time: Duration,
    /// Whether nobody may switch it.
    pub reserved: bool,
    /// The machine on it.
    pub dut: Option<String>,
    /// What it draws, in watts.
    pub watts: Option<f64>,
    /// What it drew since the server began to look.
    pub joules: Option<f64>,
}

/// A command in its turn.
struct Turn<'a> {
    slot: &'a Slot,
    number: u64,
}

impl Switch {
    /// Its unit.
    pub fn unit(&self) -> &Arc<Unit> {
        &self.unit
    }

    /// Whether a person switches it.
    pub fn asks_people(&self) -> bool {
        self.unit.pdu().asks_people()
    }

    /// Its name on the unit.
    pub fn outlet(&self) -> &Outlet {
        &self.slot.outlet
    }

    /// From now on it is this machine's, or nobody's.
    pub fn belongs_to(&self, user: Option<User>) {
        self.slot.lock().user = user;
    }

    /// Switches; returns when it reads back so.
    pub async fn set(&self, state: PowerState) -> Result<(), PowerError> {
        self.set_as(state, state.into()).await
    }

    /// Goes off, to go on again: whoever finds this unfinished goes on with it.
    pub async fn set_off_to_cycle(&self) -> Result<(), PowerError> {
        self.set_as(PowerState::Off, Wish::Cycle).await
    }

    async fn set_as(&self, state: PowerState, wish: Wish) -> Result<(), PowerError> {
        if self.is_reserved() {
            return Err(match self.unit.reserves(&self.slot.outlet) {
                true => self.error(RESERVED_BY_FILE.to_owned()),
                false => self.error(format!("it is reserved; `wharf pdu unreserve {}` frees it", self.path())),
            });
        }
        let turn = self.slot.take_turn();
        self.keep(move |kept| kept.wish = Some(wish)).await;
        match state {
            PowerState::On => tokio::select! {
                () = self.stay_off() => {}
                () = turn.is_over() => return Err(self.overtaken()),
            },
            // Whoever was away does not know whether it was off all the time: its off-time begins when it goes off.
            PowerState::Off if self.seen().is_none() && !self.off_time().is_zero() => drop(self.state().await),
            PowerState::Off => {}
        }
        let begun = Instant::now();
        // A person who says no has said it.
        let sets = if self.asks_people() { 1 } else { self.unit.policy.tries.sets };
        for set in 1.. {
            let told = self.tell(state, &turn).await;
            let error = match told {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if set >= sets || begun.elapsed() > CALL_TIME || !turn.is_mine() {
                return Err(error);
            }
            tracing::warn!(unit = self.unit.name, %error, "the outlet is told once more");
        }
        unreachable!("the loop ends with its last try")
    }

    /// Tells it once, and reads until it obeys.
    async fn tell(&self, state: PowerState, turn: &Turn<'_>) -> Result<(), PowerError> {
        self.unit
            .call(&self.slot.outlet, move |pdu, outlet| async move { pdu.set(&outlet, state).await }.boxed())
            .await?;
        let (reads, mut pause) = (self.unit.policy.tries.reads, READ_AGAIN);
        for read in 1.. {
            let found = self.state().await?;
            if !turn.is_mine() {
                return Err(self.overtaken());
            }
            if found == state {
                return Ok(());
            }
            if read >= reads {
                return Err(self.error(format!("told to go {state}, but it reads back {found}")));
            }
            sleep(pause).await;
            pause *= 2;
        }
        unreachable!("the loop ends with its last reading")
    }

    /// Reads it from the unit.
    pub async fn state(&self) -> Result<PowerState, PowerError> {
        let asked = |pdu: Arc<dyn crate::blueprint::power::Pdu>, outlet: Outlet| {
            async move { pdu.state(&outlet).await }.boxed()
        };
        let read = self.unit.call(&self.slot.outlet, asked).await?;
        self.saw(read).await;
        Ok(read)
    }

    /// Until its off-time is over; at once when it is on.
    pub async fn stay_off(&self) {
        if self.off_time().is_zero() {
            return;
        }
        if self.seen().is_none() {
            // A unit that does not know it yet is told what to do, and asked again.
            let _ = self.state().await;
        }
        loop {
            let left = self.time_left();
            if left.is_zero() {
                return;
            }
            sleep(left).await;
        }
    }

    /// What is left of its off-time, as far as is known.
    pub fn time_left(&self) -> Duration {
        let (off_time, off_since) = (self.off_time(), self.slot.lock().off_since.clone());
        off_since.map_or(Duration::ZERO, |since| policy::left_of(off_time, &since, &now()))
    }

    /// What it should do, as the last command had it: the one of an earlier process, too.
    pub fn wish(&self) -> Option<Wish> {
        self.unit.store.get(&self.slot.outlet).wish
    }

    /// As it was last read.
    pub fn seen(&self) -> Option<PowerState> {
        self.slot.lock().seen
    }

    /// What it drew since it is watched, in joules, as of the last poll. `None`: nothing measured it yet.
    pub fn joules(&self) -> Option<f64> {
        self.slot.lock().energy.joules()
    }

    /// The same as of now, if it can be had soon.
    pub async fn joules_now(&self) -> Option<f64> {
        let _ = tokio::time::timeout(METER_TIME, self.measure()).await;
        self.joules()
    }

    /// Looks once more when every command of an earlier process must have landed, and sets what is not as it should be.
    pub async fn settle(self) {
        sleep(self.unit.policy.settle_time).await;
        let turn = *self.slot.turns.borrow();
        let Ok(read) = self.state().await else { return };
        let wished = match self.wish() {
            Some(Wish::On) => PowerState::On,
            Some(Wish::Off) => PowerState::Off,
            Some(Wish::Cycle) | None => return,
        };
        // Odd: a command is under way.
        if read == wished || turn % 2 == 1 || *self.slot.turns.borrow() != turn {
            return;
        }
        tracing::warn!(unit = self.unit.name, outlet = self.slot.outlet.0, %read, "the outlet is not as it was left: it is set again");
        if let Err(error) = self.set(wished).await {
            tracing::error!(unit = self.unit.name, %error, "the outlet cannot be set again");
        }
    }

    /// Keeps everybody from switching it, or lets them again.
    pub async fn reserve(&self, reserved: Reserved) -> Result<(), PowerError> {
        if self.unit.reserves(&self.slot.outlet) && reserved == Reserved::No {
            return Err(self.error(RESERVED_BY_FILE.to_owned()));
        }
        self.keep(move |kept| kept.reserved = reserved == Reserved::Yes).await;
        Ok(())
    }

    /// Gives it an off-time of its own.
    pub async fn set_off_time(&self, off_time: Duration) {
        self.keep(move |kept| kept.off_time_ms = u64::try_from(off_time.as_millis()).ok()).await;
    }

    /// As others see it.
    pub fn view(&self) -> OutletView {
        let kept = self.unit.store.get(&self.slot.outlet);
        let (off_time, reserved) = (self.off_time(), self.is_reserved());
        let now = self.slot.lock();
        OutletView {
            name: self.slot.outlet.0.clone(),
            label: now.label.clone(),
            state: now.seen,
            read_at: now.read_at,
            last_off: kept.last_off,
            off_time,
            reserved,
            dut: now.user.as_ref().map(|user| user.dut.clone()),
            watts: now.energy.watts(),
            joules: now.energy.joules(),
        }
    }

    /// One look of many: who else switched it is told to its user.
    async fn poll(&self) {
        let (before, turn) = (self.seen(), *self.slot.turns.borrow());
        match self.state().await {
            Ok(read) if before.is_some_and(|before| before != read) => {
                let is_ours = turn % 2 == 1 || *self.slot.turns.borrow() != turn;
                if !is_ours {
                    self.somebody_else(read);
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(unit = self.unit.name, %error, "an outlet cannot be read"),
        }
        self.measure().await;
    }

    fn somebody_else(&self, state: PowerState) {
        tracing::warn!(unit = self.unit.name, outlet = self.slot.outlet.0, "somebody else switched the outlet {state}");
        let user = self.slot.lock().user.clone();
        if let Some(user) = user {
            (user.changed)(state);
        }
    }

    async fn measure(&self) {
        if self.slot.lock().metered == Metered::No {
            return;
        }
        let asked = |pdu: Arc<dyn crate::blueprint::power::Pdu>, outlet: Outlet| {
            async move { pdu.meter(&outlet).await }.boxed()
        };
        let reading: Result<Option<Reading>, _> = self.unit.call(&self.slot.outlet, asked).await;
        match reading {
            Ok(Some(reading)) => self.slot.lock().energy.note(reading, Instant::now()),
            Ok(None) => self.slot.lock().metered = Metered::No,
            Err(error) => tracing::debug!(unit = self.unit.name, %error, "an outlet's meter cannot be read"),
        }
    }

    async fn saw(&self, read: PowerState) {
        let news = self.slot.saw(read);
        if let Some(off_since) = news {
            let last_off = off_since.is_some().then(jiff::Timestamp::now);
            self.keep(move |kept| {
                kept.off_since = off_since;
                kept.last_off = last_off.or(kept.last_off);
            })
            .await;
        }
    }

    /// On a thread that may wait for the disk. What cannot be kept is said loudly; the outlet is switched nevertheless, since one that
    /// cannot be switched off is worse.
    async fn keep(&self, change: impl FnOnce(&mut store::Kept) + Send + 'static) {
        let (store, outlet) = (Arc::clone(&self.unit.store), self.slot.outlet.clone());
        let kept = if store.outlives_us() {
            tokio::task::spawn_blocking(move || store.change(&outlet, change))
                .await
                .map_err(std::io::Error::other)
                .flatten()
        } else {
            store.change(&outlet, change)
        };
        if let Err(error) = kept {
            tracing::error!(unit = self.unit.name, %error, "what the outlets do cannot be kept: a restart will not know it");
        }
    }

    fn off_time(&self) -> Duration {
        let own = self.unit.store.get(&self.slot.outlet).off_time_ms.map(Duration::from_millis);
        let users = || self.slot.lock().user.as_ref().and_then(|user| user.off_time);
        own.or_else(users).unwrap_or(self.unit.off_time)
    }

    fn is_reserved(&self) -> bool {
        self.unit.reserves(&self.slot.outlet) || self.unit.store.get(&self.slot.outlet).reserved
    }

    fn path(&self) -> String {
        format!("{} {}", self.unit.name, self.slot.outlet.0)
    }

    fn overtaken(&self) -> PowerError {
        self.error("a later command came before this one was done".into())
    }

    fn error(&self, reason: String) -> PowerError {
        PowerError { outlet: self.slot.outlet.0.clone(), reason }
    }
}

/// Whether an outlet may be switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// By nobody.
    Yes,
    /// It may.
    No,
}

impl Slot {
    fn new(outlet: Outlet, off_since: Option<Stamp>) -> Slot {
        Slot { outlet, turns: watch::channel(0).0, now: Mutex::new(Now { off_since, ..Now::default() }) }
    }

    fn label(&self, label: Option<String>) {
        self.lock().label = label;
    }

    /// Its number is odd; when it is over and no other came, the count is even again.
    fn take_turn(&self) -> Turn<'_> {
        let mut number = 0;
        self.turns.send_modify(|turn| {
            *turn += 1 + *turn % 2;
            number = *turn;
        });
        Turn { slot: self, number }
    }

    /// What is new of its off-time, if anything is.
    fn saw(&self, read: PowerState) -> Option<Option<Stamp>> {
        let mut slot = self.lock();
        slot.read_at = Some(jiff::Timestamp::now());
        if slot.seen.replace(read).is_some_and(|before| before != read) {
            slot.energy.switched();
        }
        let off_since = match (read, slot.off_since.is_some()) {
            (PowerState::Off, false) => Some(now()),
            (PowerState::On, true) => None,
            (PowerState::Off, true) | (PowerState::On, false) => return None,
        };
        slot.off_since = off_since.clone();
        Some(off_since)
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    fn is_mine(&self) -> bool {
        *self.slot.turns.borrow() == self.number
    }

    /// When a later command came.
    async fn is_over(&self) {
        let number = self.number;
        let mut turns = self.slot.turns.subscribe();
        if turns.wait_for(|turn| *turn != number).await.is_err() {
            std::future::pending().await
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.slot.turns.send_if_modified(|turn| {
            let is_mine = *turn == self.number;
            *turn += u64::from(is_mine);
            is_mine
        });
    }
}

/// This moment, as it is kept.
fn now() -> Stamp {
    static BOOT: OnceLock<String> = OnceLock::new();
    let boot = BOOT.get_or_init(|| {
        let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        read.unwrap_or_default().trim().to_owned()
    });
    Stamp { boot: boot.clone(), uptime_ms: uptime_ms().unwrap_or_default() }
}

/// proc(5): the first number of /proc/uptime is seconds, sleep included, in hundredths. Where it cannot be read every off-time is waited
/// for in whole.
fn uptime_ms() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let (seconds, hundredths) = text.split_whitespace().next()?.split_once('.')?;
    Some(seconds.parse::<u64>().ok()? * 1000 + hundredths.parse::<u64>().ok()? * 10)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::future::BoxFuture;

    use super::*;
    use crate::blueprint::power::Pdu;

    /// A unit whose driver fails as often as it says, and whose meter counts its readings.
    struct Board {
        state: Mutex<PowerState>,
        failures_left: AtomicU32,
        readings: AtomicU32,
        made: AtomicU32,
    }

    impl Pdu for Arc<Board> {
        fn set<'a>(&'a self, outlet: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>> {
            async move {
                let fails =
                    self.failures_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
                if fails.is_ok() {
                    return Err(PowerError { outlet: outlet.0.clone(), reason: "no answer".into() });
                }
                *self.state.lock().unwrap() = state;
                Ok(())
            }
            .boxed()
        }

        fn state<'a>(&'a self, _: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>> {
            async { Ok(*self.state.lock().unwrap()) }.boxed()
        }

        fn meter<'a>(&'a self, _: &'a Outlet) -> BoxFuture<'a, Result<Option<Reading>, PowerError>> {
            let joules = f64::from(self.readings.fetch_add(1, Ordering::SeqCst) * 100);
            async move { Ok(Some(Reading { watts: Some(7.0), joules: Some(joules) })) }.boxed()
        }
    }

    fn board(failures: u32) -> Arc<Board> {
        let (state, count) = (Mutex::new(PowerState::Off), AtomicU32::new);
        Arc::new(Board { state, failures_left: count(failures), readings: count(0), made: count(0) })
    }

    fn switch(board: &Arc<Board>, policy: Policy, store: Store) -> Switch {
        let board = Arc::clone(board);
        let make = move || {
            board.made.fetch_add(1, Ordering::SeqCst);
            Ok(Arc::new(Arc::clone(&board)) as Arc<dyn Pdu>)
        };
        let unit = Unit::new("board", "board", Box::new(make), policy, vec![Outlet("8".into())], Arc::new(store));
        unit.unwrap().switch(&Outlet("7".into()))
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn an_off_overtakes_an_on_that_waits() {
        let board = board(0);
        let policy = Policy { off_time: Some(HOUR), ..Policy::VIRTUAL };
        let switch = switch(&board, policy, Store::none());
        switch.set(PowerState::Off).await.unwrap();
        let (waiting, mut begun) = (switch.clone(), switch.slot.turns.subscribe());
        let on = tokio::spawn(async move { waiting.set(PowerState::On).await });
        begun.wait_for(|turn| turn % 2 == 1).await.unwrap();
        switch.set(PowerState::Off).await.unwrap();
        let error = on.await.unwrap().unwrap_err().to_string();
        assert_eq!(error, "outlet `7`: a later command came before this one was done");
        assert_eq!((switch.seen(), switch.wish()), (Some(PowerState::Off), Some(Wish::Off)));
    }

    #[tokio::test]
    async fn a_driver_that_fails_again_and_again_is_made_anew() {
        let board = board(u32::MAX);
        let switch = switch(&board, Policy::VIRTUAL, Store::none());
        for _ in 0..5 {
            switch.set(PowerState::On).await.unwrap_err();
        }
        // The line serves a call only when the one before it has been noted.
        switch.state().await.unwrap();
        assert_eq!(board.made.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn what_fails_once_is_tried_again() {
        let board = board(1);
        let policy = Policy { tries: policy::Tries { sets: 2, reads: 1 }, ..Policy::VIRTUAL };
        let switch = switch(&board, policy, Store::none());
        switch.set(PowerState::On).await.unwrap();
        assert_eq!(switch.seen(), Some(PowerState::On));
    }

    #[tokio::test]
    async fn a_counter_of_the_unit_counts_from_when_it_is_first_read() {
        let switch = switch(&board(0), Policy::VIRTUAL, Store::none());
        assert_eq!(switch.joules(), None);
        assert_eq!(switch.joules_now().await, Some(0.0));
        assert_eq!(switch.joules_now().await, Some(100.0));
        assert_eq!(switch.view().watts, Some(7.0));
    }

    #[tokio::test]
    async fn an_outlet_that_a_late_command_switched_is_set_again() {
        let (board, store) = (board(0), Store::none());
        store.change(&Outlet("7".into()), |kept| kept.wish = Some(Wish::On)).unwrap();
        let switch = switch(&board, Policy::VIRTUAL, store);
        switch.clone().settle().await;
        assert_eq!(*board.state.lock().unwrap(), PowerState::On);
    }

    #[tokio::test]
    async fn what_the_farm_file_reserves_is_not_switched() {
        let of_seven = switch(&board(0), Policy::VIRTUAL, Store::none());
        let eight = of_seven.unit().switch(&Outlet("8".into()));
        let error = eight.set(PowerState::Off).await.unwrap_err().to_string();
        assert_eq!(error, "outlet `8`: the farm file reserves it; take it out of `reserved` there, and `wharf reload`");
        assert!(eight.reserve(Reserved::No).await.is_err());
        assert!(eight.view().reserved);
    }
}
