//! The clocks of a session: started, touched, stopped, standing still while nobody hears the DUT, and how often each was retried. ◆
//!
//! ```text
//!  start ─► running ── its end ─► Hit, counted      stop: it is gone │ touch: from now on again
//!              └ pause ─► paused ── go_on ─► running, with the time that was left
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use job_schema::job::Timeout;

/// The clocks of a session, each with a sentence in `docs/job-description.md`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TimerName {
    Overall,
    Deadline,
    InfraSetup,
    FirmwareBoot,
    BootCycle,
    FirstConsoleActivity,
    ConsoleActivity,
    BootProgress,
    Watchdog(String),
}

impl std::fmt::Display for TimerName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TimerName::Overall => f.write_str("overall"),
            TimerName::Deadline => f.write_str("deadline"),
            TimerName::InfraSetup => f.write_str("infra_setup"),
            TimerName::FirmwareBoot => f.write_str("firmware_boot"),
            TimerName::BootCycle => f.write_str("boot_cycle"),
            TimerName::FirstConsoleActivity => f.write_str("first_console_activity"),
            TimerName::ConsoleActivity => f.write_str("console_activity"),
            TimerName::BootProgress => f.write_str("boot_progress"),
            TimerName::Watchdog(name) => write!(f, "watchdogs.{name}"),
        }
    }
}

impl TimerName {
    /// Whether what the console says stops it, or should.
    pub(super) fn is_driven_by_console(&self) -> bool {
        match self {
            TimerName::InfraSetup | TimerName::FirmwareBoot => false,
            TimerName::Overall
            | TimerName::Deadline
            | TimerName::BootCycle
            | TimerName::FirstConsoleActivity
            | TimerName::ConsoleActivity
            | TimerName::BootProgress
            | TimerName::Watchdog(_) => true,
        }
    }

    /// Whether it stands still while the console is away. The two that bound the job as a whole do not.
    pub(super) fn can_be_paused(&self) -> bool {
        self.is_driven_by_console() && !matches!(self, TimerName::Overall | TimerName::Deadline)
    }
}

/// Running timers, and how often each was retried in this job.
#[derive(Default)]
pub(super) struct Timers {
    running: BTreeMap<TimerName, (Instant, Timeout)>,
    /// Those that stand still, with the time they have left; `None` while none may.
    paused: Option<BTreeMap<TimerName, (Duration, Timeout)>>,
    retried: BTreeMap<TimerName, u32>,
}

/// An expired timer, counted.
pub(super) struct Hit {
    pub name: TimerName,
    pub timeout: Timeout,
    pub retried: u32,
}

impl Hit {
    pub(super) fn may_retry(&self) -> bool {
        self.retried <= self.timeout.retries && !matches!(self.name, TimerName::Overall | TimerName::Deadline)
    }
}

impl Timers {
    /// An infinite timeout never runs.
    pub(super) fn start(&mut self, name: TimerName, timeout: Timeout, now: Instant) {
        if let Some(paused) = self.paused.as_mut().filter(|_| name.can_be_paused()) {
            paused.extend(timeout.duration.map(|duration| (name, (duration, timeout))));
        } else if let Some(end) = timeout.duration.and_then(|duration| now.checked_add(duration)) {
            self.running.insert(name, (end, timeout));
        }
    }

    /// Starts a running timer anew; a stopped one stays stopped.
    pub(super) fn touch(&mut self, name: &TimerName, now: Instant) {
        let running = self.running.get(name).map(|(_, timeout)| *timeout);
        let paused = || Some(self.paused.as_ref()?.get(name)?.1);
        if let Some(timeout) = running.or_else(paused) {
            self.start(name.clone(), timeout, now);
        }
    }

    pub(super) fn stop(&mut self, name: &TimerName) {
        self.running.remove(name);
        self.paused.as_mut().map(|paused| paused.remove(name));
    }

    pub(super) fn stop_all_of_a_boot(&mut self) {
        self.running.retain(|name, _| matches!(name, TimerName::Overall | TimerName::Deadline));
        self.paused.as_mut().map(BTreeMap::clear);
    }

    /// Those that may stand still do so from now on, also those that are started meanwhile.
    pub(super) fn pause(&mut self, now: Instant) {
        let names: Vec<_> = self.running.keys().filter(|name| name.can_be_paused()).cloned().collect();
        let running = names.into_iter().filter_map(|name| self.running.remove_entry(&name));
        let left = |(name, (end, timeout)): (TimerName, (Instant, Timeout))| {
            (name, (end.saturating_duration_since(now), timeout))
        };
        self.paused = Some(running.map(left).collect());
    }

    pub(super) fn shift(&mut self, time: Duration) {
        self.running.values_mut().for_each(|(end, _)| *end = end.checked_add(time).unwrap_or(*end));
    }

    pub(super) fn go_on(&mut self, now: Instant) {
        for (name, (left, timeout)) in self.paused.take().unwrap_or_default() {
            if let Some(end) = now.checked_add(left) {
                self.running.insert(name, (end, timeout));
            }
        }
    }

    /// Whether it was started, be it that it stands still.
    pub(super) fn is_running(&self, name: &TimerName) -> bool {
        self.running.contains_key(name) || self.paused.as_ref().is_some_and(|paused| paused.contains_key(name))
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.running.values().map(|(end, _)| *end).min()
    }

    pub(super) fn take_expired(&mut self, now: Instant) -> Vec<Hit> {
        let names: Vec<_> =
            self.running.iter().filter(|(_, (end, _))| *end <= now).map(|(name, _)| name.clone()).collect();
        names
            .into_iter()
            .filter_map(|name| self.running.remove(&name).map(|(_, timeout)| self.retry(name, timeout)))
            .collect()
    }

    pub(super) fn retry(&mut self, name: TimerName, timeout: Timeout) -> Hit {
        let retried = self.retried.entry(name.clone()).or_default();
        *retried += 1;
        Hit { retried: *retried, name, timeout }
    }
}
