//! What holds for every outlet, whatever unit it is on: how long it stays off, how often a unit is asked, what it drew. ◆
//!
//! ```text
//!  off ──(its off-time, by a clock that no one sets)──► may go on        Stamp, left_of
//!  a unit that fails: 0.25 s, 0.5 s, 1 s, … 15 s, each a quarter more or less                back_off
//!  watts at two moments, or a counter ──► joules                                               Energy
//! ```
//! No wall clock decides anything: a moment is the host's uptime, sleep included, with the name of the boot that it was read in. In another
//! boot all that is certain is that it was before the host came up: it has been off at least as long as the host is up.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::blueprint::power::Reading;

/// An outlet that somebody else switched is noticed within so many seconds; a rack of 48 asks its unit ten times a second.
pub const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// A command that was on its way when the server was killed has landed by then: units act within a second or two.
pub const SETTLE_TIME: Duration = Duration::from_secs(5);
/// Between two calls of one unit: the small processors in them answer ten a second.
pub const CALL_PAUSE: Duration = Duration::from_millis(100);
/// The pause after a first failure, and the longest.
const BACK_OFF: Duration = Duration::from_millis(250);
const BACK_OFF_MAX: Duration = Duration::from_secs(15);
/// Two readings of a meter further apart than this say nothing of the time between them.
const METER_GAP_MAX: Duration = Duration::from_secs(60);

/// How a unit and its outlets are treated.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The least time without power; as the driver has it when absent.
    pub off_time: Option<Duration>,
    /// How long after a crash an outlet may still do what it was told before.
    pub settle_time: Duration,
    /// How often the outlets are read; never when only we can switch them.
    pub poll_interval: Option<Duration>,
    /// Calls at a time.
    pub sessions: usize,
    /// Between two calls of a session.
    pub call_pause: Duration,
    /// How often an outlet is told, and how often it is read each time, until it reads as it was told.
    pub tries: Tries,
}

/// How often something is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tries {
    /// Commands.
    pub sets: u32,
    /// Readings after each, the pauses between them doubling from a quarter of a second.
    pub reads: u32,
}

impl Policy {
    /// Of what is there without us.
    pub const HARDWARE: Policy = Policy {
        off_time: None,
        settle_time: SETTLE_TIME,
        poll_interval: Some(POLL_INTERVAL),
        sessions: 1,
        call_pause: CALL_PAUSE,
        // Cards that say "done" before their relay moves read right within two seconds: 0.25 + 0.5 + 1 + 2.
        tries: Tries { sets: 2, reads: 5 },
    };

    /// Of a machine that is a part of this process, or its child: it has no capacitors, nobody else switches it, and it is told once.
    pub const VIRTUAL: Policy = Policy {
        off_time: Some(Duration::ZERO),
        settle_time: Duration::ZERO,
        poll_interval: None,
        sessions: 1,
        call_pause: Duration::ZERO,
        tries: Tries { sets: 1, reads: 1 },
    };
}

/// A moment that outlives the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Which boot of the host: the kernel's random name of it.
    pub boot: String,
    /// The host's uptime then, sleep included.
    pub uptime_ms: u64,
}

impl Stamp {
    /// How long ago it is at least.
    fn age(&self, now: &Stamp) -> Duration {
        let since = if self.boot == now.boot { self.uptime_ms } else { 0 };
        Duration::from_millis(now.uptime_ms.saturating_sub(since))
    }
}

/// What is left of an off-time that began then.
pub fn left_of(off_time: Duration, off_since: &Stamp, now: &Stamp) -> Duration {
    off_time.saturating_sub(off_since.age(now))
}

/// The pause after so many failures in a row; `chance` is between 0 and 1, so that units which failed together are not asked together.
pub fn back_off(failures: u32, chance: f64) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let pause = BACK_OFF.saturating_mul(1 << (failures - 1).min(16)).min(BACK_OFF_MAX);
    pause.mul_f64(0.75 + chance.clamp(0.0, 1.0) / 2.0)
}

/// What an outlet drew since it is watched.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Energy {
    joules: f64,
    last: Option<(Instant, Reading)>,
    watts: Option<f64>,
}

impl Energy {
    /// The meter reads so.
    pub fn note(&mut self, reading: Reading, now: Instant) {
        if let Some((at, before)) = self.last {
            self.joules += drawn(before, reading, now.saturating_duration_since(at));
        }
        self.last = Some((now, reading));
        self.watts = reading.watts;
    }

    /// The outlet went on or off: what it drew before is not what it draws.
    pub fn switched(&mut self) {
        self.watts = None;
    }

    /// So far, in joules; `None` when there is no meter.
    pub fn joules(&self) -> Option<f64> {
        self.last.map(|_| self.joules)
    }

    /// The power that was read last, in watts; `None` when nothing was read since the outlet was switched.
    pub fn watts(&self) -> Option<f64> {
        self.watts
    }
}

/// Between two readings. The unit's own counter knows better than what we interpolate; one that went back began again at 0.
fn drawn(before: Reading, after: Reading, time: Duration) -> f64 {
    match (before, after) {
        (Reading { joules: Some(before), .. }, Reading { joules: Some(after), .. }) if after >= before => {
            after - before
        }
        (Reading { joules: Some(_), .. }, Reading { joules: Some(after), .. }) => after.max(0.0),
        (Reading { watts: Some(before), .. }, Reading { watts: Some(after), .. }) if time <= METER_GAP_MAX => {
            (before + after) / 2.0 * time.as_secs_f64()
        }
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(boot: &str, uptime_s: u64) -> Stamp {
        Stamp { boot: boot.into(), uptime_ms: uptime_s * 1000 }
    }

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn the_off_time_is_counted_from_the_real_off() {
        let off = stamp("a", 100);
        assert_eq!(left_of(S(30), &off, &stamp("a", 100)), S(30));
        assert_eq!(left_of(S(30), &off, &stamp("a", 112)), S(18));
        assert_eq!(left_of(S(30), &off, &stamp("a", 500)), S(0));
    }

    #[test]
    fn after_the_host_was_restarted_only_its_uptime_counts() {
        let off = stamp("before", 90_000);
        assert_eq!(left_of(S(30), &off, &stamp("now", 12)), S(18));
        assert_eq!(left_of(S(30), &off, &stamp("now", 31)), S(0));
    }

    #[test]
    fn an_uptime_that_went_back_waits_the_whole_time() {
        assert_eq!(left_of(S(30), &stamp("a", 100), &stamp("a", 90)), S(30));
    }

    #[test]
    fn the_pauses_after_failures_double_up_to_a_quarter_of_a_minute() {
        let pauses: Vec<u128> = (0..9).map(|failures| back_off(failures, 0.5).as_millis()).collect();
        assert_eq!(pauses, [0, 250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000]);
        assert_eq!((back_off(3, 0.0).as_millis(), back_off(3, 1.0).as_millis()), (750, 1250));
        assert_eq!(back_off(u32::MAX, 0.5), S(15));
    }

    fn watts(watts: f64) -> Reading {
        Reading { watts: Some(watts), joules: None }
    }

    #[test]
    fn watts_are_summed_over_time_and_a_gap_says_nothing() {
        let (start, mut energy) = (Instant::now(), Energy::default());
        assert_eq!(energy.joules(), None);
        energy.note(watts(10.0), start);
        assert_eq!((energy.joules(), energy.watts()), (Some(0.0), Some(10.0)));
        energy.note(watts(20.0), start + S(10));
        assert_eq!(energy.joules(), Some(150.0));
        energy.switched();
        assert_eq!((energy.joules(), energy.watts()), (Some(150.0), None));
        energy.note(watts(20.0), start + S(100));
        assert_eq!(energy.joules(), Some(150.0));
        energy.note(watts(20.0), start + S(101));
        assert_eq!(energy.joules(), Some(170.0));
    }

    #[test]
    fn a_counter_goes_before_watts_and_may_begin_again() {
        let (start, mut energy) = (Instant::now(), Energy::default());
        let counted = |joules| Reading { watts: Some(1.0), joules: Some(joules) };
        energy.note(counted(1000.0), start);
        energy.note(counted(1400.0), start + S(600));
        assert_eq!(energy.joules(), Some(400.0));
        energy.note(counted(50.0), start + S(601));
        assert_eq!(energy.joules(), Some(450.0));
    }
}
