//! One job on one leased DUT, to its verdict: events and `now` in, actions out. No sockets, no tasks, no clock.
//!
//! ```text
//!                      SetupDone                Off done              On done
//!   SettingUp ───────────────────► CuttingPower ────────► ApplyingPower ────────► Booted ──┐
//!      │ SetupFailed                  ▲                                              │      │ session_end, unfit
//!      │                              │ session_reboot, or timeouts that may be      │      ▼
//!      │                              └───────── retried: boot cycle n + 1 ──────────┘    Ended(verdict)
//!      └───────────────────── cancel, power failure, console away for too long, timeout without retry: from any state ──► Ended
//!
//!  a boot image that the farm gives to the loader: HandOver ─► Awaited ─► Found ─► Done │ Failed: a boot that counts against firmware_boot
//!
//!  ConsoleAway: the clocks that the console drives stand still, and no boot begins │ ConsoleBack: they go on
//!
//!  clock                                                       while the console is away
//!  overall, deadline, infra_setup, firmware_boot               goes on: nothing that the console says stops it
//!  boot_cycle, boot_progress, first_console_activity,
//!  console_activity, watchdogs                                 stands still: what would have stopped it may have been said
//!
//!  PickedUp: the farm was away. A session that heard all the same again goes on: every clock but the deadline stood still
//! ```
//! Semantics are CI-tron's, but where it has a bug the documented intention holds: `infra_setup` and `deadline` are enforced,
//! `machine_unfit_for_service` ends the session. Every boot cycle but the first uses the `continue` deployment.
//!
//! How to drive it, in this order: feed `handle_event` whatever happened, call `handle_timeout` when `poll_timeout` has passed,
//! then take actions with `poll_action` until there is none. After [`Action::End`] nothing more comes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use job_schema::job::{Job, Timeout};
use job_schema::pattern::Pattern;
use serde::{Deserialize, Serialize};

use crate::blueprint::console::lines::Lines;
use crate::job_log::{JobEvent, Severity};
use crate::verdict::{Cause, Status, Verdict};

mod fetches;
mod timers;

pub use fetches::Fetches;
use timers::{Hit, TimerName, Timers};

/// What can happen to a session.
#[derive(Clone, Debug)]
pub enum Event {
    /// Console open, artifacts there, everything published.
    SetupDone,
    /// It could not be set up.
    SetupFailed { cause: Cause, reason: String },
    /// The outlet is off, and reads back so.
    PowerIsOff,
    /// The outlet is on, and reads back so.
    PowerIsOn,
    /// The outlet did not do what it was told.
    PowerFailed { reason: String },
    /// Bytes from the console.
    Console(Bytes),
    /// The console's stream ended or failed; the ring opens it again.
    ConsoleAway { reason: String },
    /// The console is open again. What was said meanwhile is lost.
    ConsoleBack,
    /// A DHCP request of the DUT's firmware.
    FirmwareSeen,
    /// Artifact bytes moved, or an artifact was opened.
    BootProgress,
    /// News of the boot image that the farm gives to the DUT's loader in this boot.
    HandOver { boot: u32, news: HandOver },
    /// What of it all was fetched.
    Fetched(Fetches),
    /// Something for the verdict's evidence.
    Evidence(String),
    /// Somebody asked to end the job.
    Cancelled { by: String },
    /// The submitter is gone.
    SubmitterGone,
    /// What was done on the DUT by SSH came to this end, and the job with it.
    StepsEnded { status: Status, cause: Cause, summary: String },
    /// The farm cannot go on.
    FarmFailed { reason: String },
    /// The farm was away for so long, and is back with a session that has heard again what was heard before. The console is open, what
    /// was published is published again. What was said meanwhile is lost, and what was being done may be done or not.
    PickedUp { away: Duration },
}

/// How far a boot image is that the farm gives to the DUT's loader itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "news", rename_all = "snake_case")]
pub enum HandOver {
    /// The loader is looked for; these are the words for it.
    Awaited { loader: String },
    /// It is there.
    Found,
    /// It boots the image, in a sentence.
    Done { text: String },
    /// It does not.
    Failed { cause: Cause, reason: String },
}

/// What the ring has to do. Results come back as events.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Switch the outlet off and read it back.
    CutPower,
    /// Publish this deployment, reset the access counters, then switch the outlet on and read it back.
    BootWith { deployment: Which, boot: u32 },
    /// Give the DUT's loader what this deployment has for it, if anything.
    HandOver { deployment: Which, boot: u32 },
    /// Append to the job's log.
    Say(JobEvent),
    /// The DUT said it is unfit: take no more jobs for it.
    DeclareUnfit { line: String },
    /// The session is over: release the lease.
    End(Verdict),
}

/// Where a session stands, for whoever picks it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing was done to the DUT: the setup begins anew.
    SettingUp,
    /// Its outlet is being switched, so that it is on or off.
    Switching,
    /// Its outlet is off, and stays so until the console is back.
    Off,
    /// Its outlet is on, and this deployment is published.
    Booted(Which),
}

/// Which of a job's two deployments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// `deployment.start`: the first boot cycle.
    Start,
    /// `deployment.continue`: every later one.
    Continue,
}

/// One job on one leased DUT.
pub struct Session {
    job: Arc<Job>,
    state: State,
    boot: u32,
    timers: Timers,
    lines: Lines,
    booted_at: Option<Instant>,
    seen: Seen,
    evidence: Evidence,
    matches_told: usize,
    outage: Option<Outage>,
    actions: VecDeque<Action>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    SettingUp,
    CuttingPower,
    /// Off; the boot waits for a console that is away, so that no early byte is lost.
    AwaitingConsole,
    ApplyingPower,
    Booted,
    Ended,
}

/// What was seen so far. The first group lasts for the job, the second for one boot.
#[derive(Default)]
struct Seen {
    session_end: bool,
    success: bool,
    warn: bool,
    unfit: Option<String>,

    reboot: bool,
    console_active: bool,
    firmware: bool,
    asked: bool,
    handing: Handing,
    fetches: Fetches,
    deaf: Duration,
    /// How long the farm was away, if it was.
    farm_away: Option<Duration>,
}

/// A boot image that the farm gives to the DUT's loader.
#[derive(Default)]
enum Handing {
    #[default]
    Nothing,
    /// To this loader, once it is there.
    Waiting(String),
    Sending,
    Done,
}

/// The console's last absence; several that follow each other at once are one.
struct Outage {
    reason: String,
    first_left: Instant,
    left: Instant,
    back: Option<Instant>,
}

/// A console may be away this long: a console server that restarts takes a minute or two, the switch before it some three. What is away
/// for longer wants a person.
const CONSOLE_AWAY_MAX: Duration = Duration::from_secs(300);
/// A console that goes away again sooner than this after it came back was not back: the same absence goes on. A server that takes a
/// connection only to close it does so within a second or two.
const CONSOLE_STEADY: Duration = Duration::from_secs(10);
/// Matched lines in one job's log: a pattern that matches every line of a flood must not fill memory and disk with notes of it. The
/// patterns go on being searched.
const MATCHES_TOLD_MAX: usize = 5000;

/// The verdict's evidence; bounded, since a DUT can ask for a missing file for hours.
#[derive(Default)]
struct Evidence {
    entries: Vec<String>,
    left_out: usize,
}

/// Entries of evidence kept: enough for the accesses of a few boots, readable in one screen or two.
const EVIDENCE_ENTRIES_MAX: usize = 100;

impl Session {
    /// A session that waits for [`Event::SetupDone`]. `deadline` is the job's own deadline as an instant.
    pub fn new(job: Arc<Job>, deadline: Option<Instant>, now: Instant) -> Self {
        let mut timers = Timers::default();
        timers.start(TimerName::Overall, job.timeouts.overall, now);
        timers.start(TimerName::InfraSetup, job.timeouts.infra_setup, now);
        let actions = VecDeque::from([Action::Say(JobEvent::SetupStarted)]);
        let mut session = Session {
            job,
            state: State::SettingUp,
            boot: 0,
            timers,
            lines: Lines::default(),
            booted_at: None,
            seen: Seen::default(),
            evidence: Evidence::default(),
            matches_told: 0,
            outage: None,
            actions,
        };
        if let Some(deadline) = deadline {
            session.set_deadline(deadline, now);
        }
        session
    }

    /// Something happened.
    pub fn handle_event(&mut self, event: Event, now: Instant) {
        if self.state == State::Ended {
            return;
        }
        match event {
            Event::SetupDone => self.setup_done(),
            Event::SetupFailed { cause, reason } => {
                self.say(JobEvent::SetupFailed { reason: reason.clone() });
                self.end(Status::SetupFail, cause, reason);
            }
            Event::PowerIsOff => self.power_is_off(),
            Event::PowerIsOn => self.power_is_on(now),
            Event::PowerFailed { reason } => self.end(self.status_of_failed_part(), Cause::Power, reason),
            Event::Console(bytes) => self.console(&bytes, now),
            Event::ConsoleAway { reason } => self.console_away(reason, now),
            Event::ConsoleBack => self.console_back(now),
            Event::FirmwareSeen => self.firmware_seen(now),
            Event::BootProgress => {
                self.seen.asked |= matches!(self.state, State::ApplyingPower | State::Booted);
                self.timers.touch(&TimerName::BootProgress, now);
            }
            Event::HandOver { boot, news } => self.hand_over(boot, news, now),
            Event::Fetched(fetches) => self.seen.fetches = fetches,
            Event::Evidence(text) => self.evidence.push(text),
            Event::Cancelled { by } => self.end(Status::Incomplete, Cause::Cancelled, format!("cancelled by {by}")),
            Event::SubmitterGone => {
                self.end(Status::Incomplete, Cause::Submitter, "the submitter went away before the job ended".into());
            }
            Event::StepsEnded { status, cause, summary } => self.end(status, cause, summary),
            Event::FarmFailed { reason } => self.end(Status::Incomplete, Cause::Farm, reason),
            Event::PickedUp { away } => self.picked_up(away, now),
        }
    }

    /// Time has passed: call it when `poll_timeout` says so; calling it early is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.state == State::Ended {
            return;
        }
        if let Some(outage) = self.outage.as_ref().filter(|outage| outage.must_be_back().is_some_and(|end| end <= now))
        {
            let away_s = (now - outage.first_left).as_secs_f64();
            let summary = format!("{}; it was away for {away_s:.0} s", outage.reason);
            return self.end(self.status_of_failed_part(), Cause::Console, summary);
        }
        let expired = self.timers.take_expired(now);
        if expired.is_empty() {
            return;
        }
        let mut refused = None;
        for hit in expired {
            let is_retrying = self.state != State::SettingUp && hit.may_retry();
            self.say_timeout(&hit, is_retrying);
            if !is_retrying && refused.is_none() {
                refused = Some(hit);
            }
        }
        match refused {
            Some(hit) => self.end_by_timeout(&hit, now),
            None => self.next_boot(),
        }
    }

    /// When `handle_timeout` wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let console = self.outage.as_ref().and_then(Outage::must_be_back);
        if self.state == State::Ended { None } else { self.timers.next().into_iter().chain(console).min() }
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether there is something to do.
    pub fn has_actions(&self) -> bool {
        !self.actions.is_empty()
    }

    /// The boot cycle that it is in, from 1; 0 before the first.
    pub fn boot(&self) -> u32 {
        self.boot
    }

    /// What the machine has fetched in this boot.
    pub fn fetches(&self) -> &Fetches {
        &self.seen.fetches
    }

    /// How many lines of the console meant something to it.
    pub fn lines_matched(&self) -> usize {
        self.matches_told
    }

    /// Where it stands; once ended it is nobody's business any more.
    pub fn standing(&self) -> Standing {
        match self.state {
            State::SettingUp | State::Ended => Standing::SettingUp,
            State::CuttingPower | State::ApplyingPower => Standing::Switching,
            State::AwaitingConsole => Standing::Off,
            State::Booted => Standing::Booted(self.deployment()),
        }
    }

    /// From here on the job must be over by then.
    pub fn set_deadline(&mut self, deadline: Instant, now: Instant) {
        let left = deadline.saturating_duration_since(now);
        self.timers.start(TimerName::Deadline, Timeout { duration: Some(left), retries: 0 }, now);
    }

    /// So much time has passed without it: as if everything so far had happened so much later.
    pub fn stood_still(&mut self, time: Duration) {
        self.timers.shift(time);
        let later = |at: &mut Instant| *at += time;
        self.booted_at.iter_mut().for_each(later);
        if let Some(outage) = &mut self.outage {
            [&mut outage.first_left, &mut outage.left].into_iter().chain(&mut outage.back).for_each(later);
        }
    }

    fn setup_done(&mut self) {
        if self.state != State::SettingUp {
            return;
        }
        self.timers.stop(&TimerName::InfraSetup);
        self.say(JobEvent::SetupComplete);
        self.next_boot();
    }

    /// Off, then on: a boot cycle always begins with the outlet off.
    fn next_boot(&mut self) {
        self.timers.stop_all_of_a_boot();
        self.lines = Lines::default();
        self.seen.reboot = false;
        self.seen.console_active = false;
        self.seen.firmware = false;
        self.seen.asked = false;
        self.seen.handing = Handing::Nothing;
        self.seen.fetches = Fetches::default();
        self.seen.deaf = Duration::ZERO;
        self.seen.farm_away = None;
        self.boot += 1;
        self.state = State::CuttingPower;
        self.say(JobEvent::PowerCycling { boot: self.boot });
        self.actions.push_back(Action::CutPower);
    }

    fn power_is_off(&mut self) {
        if self.state != State::CuttingPower {
            return;
        }
        self.say(JobEvent::PoweredOff);
        if self.is_deaf() {
            self.state = State::AwaitingConsole;
        } else {
            self.begin_boot();
        }
    }

    fn begin_boot(&mut self) {
        self.state = State::ApplyingPower;
        self.actions.push_back(Action::BootWith { deployment: self.deployment(), boot: self.boot });
    }

    fn deployment(&self) -> Which {
        if self.boot <= 1 { Which::Start } else { Which::Continue }
    }

    fn power_is_on(&mut self, now: Instant) {
        if self.state != State::ApplyingPower {
            return;
        }
        self.state = State::Booted;
        self.booted_at = Some(now);
        let timeouts = &self.job.timeouts;
        self.timers.start(TimerName::BootCycle, timeouts.boot_cycle, now);
        self.timers.start(TimerName::BootProgress, timeouts.boot_progress, now);
        if !self.seen.console_active {
            self.timers.start(TimerName::FirstConsoleActivity, timeouts.first_console_activity, now);
        }
        if !self.seen.firmware {
            self.timers.start(TimerName::FirmwareBoot, timeouts.firmware_boot, now);
        }
        self.evidence.push(format!("boot {}: the outlet is on, and reads back so", self.boot));
        self.say(JobEvent::PoweredOn { boot: self.boot });
        self.begin_hand_over();
    }

    fn begin_hand_over(&mut self) {
        self.actions.push_back(Action::HandOver { deployment: self.deployment(), boot: self.boot });
    }

    /// News of another boot are old ones.
    fn hand_over(&mut self, boot: u32, news: HandOver, now: Instant) {
        if boot != self.boot || self.state != State::Booted {
            return;
        }
        match news {
            HandOver::Awaited { loader } => self.seen.handing = Handing::Waiting(loader),
            HandOver::Found => {
                let loader = match std::mem::replace(&mut self.seen.handing, Handing::Sending) {
                    Handing::Waiting(loader) => loader,
                    Handing::Nothing | Handing::Sending | Handing::Done => "its loader".to_owned(),
                };
                let seconds = self.booted_at.map_or(0.0, |on| now.saturating_duration_since(on).as_secs_f64());
                self.evidence.push(format!("boot {boot}: {loader} was there after {seconds:.1} s"));
                self.firmware_lives(seconds, now);
                // From here on its console tells nothing of the image, and stops the clock only once it is taken.
                self.timers.start(TimerName::BootProgress, self.job.timeouts.boot_progress, now);
            }
            HandOver::Done { text } => {
                self.seen.handing = Handing::Done;
                match self.seen.console_active {
                    true => self.timers.stop(&TimerName::BootProgress),
                    false => self.timers.touch(&TimerName::BootProgress, now),
                }
                self.evidence.push(format!("boot {boot}: {text}"));
                self.say(JobEvent::Note { text, severity: Severity::Info });
            }
            HandOver::Failed { cause, reason } => self.hand_over_failed(cause, reason),
        }
    }

    /// A boot that came to nothing counts against `firmware_boot.retries`.
    fn hand_over_failed(&mut self, cause: Cause, reason: String) {
        self.evidence.push(format!("boot {}: {reason}", self.boot));
        self.say(JobEvent::Note { text: reason.clone(), severity: Severity::Warning });
        let hit = self.timers.retry(TimerName::FirmwareBoot, self.job.timeouts.firmware_boot);
        if hit.may_retry() {
            return self.next_boot();
        }
        let tries = if hit.retried > 1 { format!(" ({}. time)", hit.retried) } else { String::new() };
        self.end(self.status_of_patterns(), cause, format!("{reason}{tries}"));
    }

    /// Whether the console is away.
    fn is_deaf(&self) -> bool {
        self.outage.as_ref().is_some_and(|outage| outage.back.is_none())
    }

    fn console_away(&mut self, reason: String, now: Instant) {
        if self.is_deaf() {
            return;
        }
        let is_one_with = |before: &&Outage| before.back.is_some_and(|back| now < back + CONSOLE_STEADY);
        let first_left = self.outage.as_ref().filter(is_one_with).map_or(now, |before| before.first_left);
        // What is not ended by now is no line: what comes later does not belong to it.
        self.lines = Lines::default();
        self.timers.pause(now);
        self.say(JobEvent::ConsoleAway { reason: reason.clone() });
        self.outage = Some(Outage { reason, first_left, left: now, back: None });
    }

    fn console_back(&mut self, now: Instant) {
        let Some(outage) = self.outage.as_mut().filter(|outage| outage.back.is_none()) else { return };
        outage.back = Some(now);
        let length = now.saturating_duration_since(outage.left);
        self.timers.go_on(now);
        self.say(JobEvent::ConsoleBack { seconds: length.as_secs_f64() });
        if self.state == State::AwaitingConsole {
            return self.begin_boot();
        }
        if matches!(self.state, State::ApplyingPower | State::Booted) {
            self.seen.deaf += length;
            let boot = self.boot;
            let length = length.as_secs_f64();
            self.evidence.push(format!("boot {boot}: the console was away for {length:.1} s; what it said is lost"));
        }
    }

    /// What was being done is begun again: each of it may be done twice.
    fn picked_up(&mut self, away: Duration, now: Instant) {
        self.console_away("the farm was restarted".to_owned(), now);
        let seconds = away.as_secs_f64();
        if let Some(outage) = self.outage.as_mut().filter(|outage| outage.back.is_none()) {
            outage.back = Some(now);
            // It may have been away before the farm was.
            let seconds = (now.saturating_duration_since(outage.left) + away).as_secs_f64();
            self.say(JobEvent::ConsoleBack { seconds });
        }
        self.timers.go_on(now);
        match self.state {
            State::SettingUp | State::Ended => {}
            State::CuttingPower => self.actions.push_back(Action::CutPower),
            State::AwaitingConsole => self.begin_boot(),
            State::ApplyingPower | State::Booted => {
                *self.seen.farm_away.get_or_insert_default() += away;
                let boot = self.boot;
                self.evidence.push(format!(
                    "boot {boot}: the farm was restarted and away for {seconds:.1} s; what the DUT said meanwhile is lost"
                ));
                if self.state == State::ApplyingPower {
                    self.begin_boot();
                } else if !matches!(self.seen.handing, Handing::Done) {
                    self.begin_hand_over();
                }
            }
        }
    }

    fn firmware_seen(&mut self, now: Instant) {
        if self.seen.firmware || !matches!(self.state, State::ApplyingPower | State::Booted) {
            return;
        }
        let seconds = self.booted_at.map_or(0.0, |on| now.saturating_duration_since(on).as_secs_f64());
        self.evidence.push(format!("boot {}: first DHCP request after {seconds:.1} s", self.boot));
        self.firmware_lives(seconds, now);
    }

    fn firmware_lives(&mut self, seconds: f64, now: Instant) {
        self.timers.stop(&TimerName::FirmwareBoot);
        self.timers.touch(&TimerName::BootProgress, now);
        if !std::mem::replace(&mut self.seen.firmware, true) {
            self.say(JobEvent::FirmwareBooted { seconds });
        }
    }

    fn console(&mut self, bytes: &[u8], now: Instant) {
        // What the DUT wrote before its power was cut arrives late: it belongs to the boot that is over.
        if !matches!(self.state, State::ApplyingPower | State::Booted) {
            return;
        }
        self.note_activity(bytes, now);
        for line in self.lines.feed(bytes) {
            self.line(&line, now);
        }
        self.act_on_matches();
    }

    /// Activity starts with the first chunk that holds a newline; from then on any byte counts (CI-tron). A boot that is fetched whole
    /// and has said a line since is no longer the servers' to watch.
    fn note_activity(&mut self, bytes: &[u8], now: Instant) {
        let has_newline = bytes.contains(&b'\n');
        if !self.seen.console_active && has_newline {
            self.seen.console_active = true;
            self.timers.stop(&TimerName::FirstConsoleActivity);
        }
        if has_newline && self.seen.fetches.missing.is_empty() && !matches!(self.seen.handing, Handing::Sending) {
            self.timers.stop(&TimerName::BootProgress);
        } else if has_newline {
            self.timers.touch(&TimerName::BootProgress, now);
        }
        if self.seen.console_active {
            self.timers.start(TimerName::ConsoleActivity, self.job.timeouts.console_activity, now);
        }
    }

    /// Every pattern is searched in every line, all matches count.
    fn line(&mut self, line: &[u8], now: Instant) {
        let job = Arc::clone(&self.job);
        let patterns = &job.patterns;
        let mut hits: Vec<String> = Vec::new();
        let text = || String::from_utf8_lossy(line).trim_end().to_owned();
        if self.matches(Some(&patterns.session_end), line) {
            self.seen.session_end = true;
            hits.push("session_end".into());
        }
        if self.matches(patterns.session_reboot.as_ref(), line) {
            self.seen.reboot = true;
            hits.push("session_reboot".into());
        }
        if self.matches(patterns.job_success.as_ref(), line) {
            self.seen.success = true;
            hits.push("job_success".into());
        }
        if self.matches(patterns.job_warn.as_ref(), line) {
            self.seen.warn = true;
            hits.push("job_warn".into());
        }
        if self.matches(patterns.machine_unfit_for_service.as_ref(), line) {
            self.seen.unfit.get_or_insert_with(text);
            hits.push("machine_unfit_for_service".into());
        }
        self.watchdogs(line, now, &mut hits);
        if !hits.is_empty() {
            let line = text();
            self.evidence.push(format!("boot {}: {} matched `{line}`", self.boot, hits.join(", ")));
            self.say_match(JobEvent::PatternMatched { patterns: hits, line });
        }
    }

    /// What a line of the console gives occasion to: bounded, since a console can say any number of lines. A line that ends the session
    /// is in its verdict.
    fn say_match(&mut self, event: JobEvent) {
        self.matches_told += 1;
        if self.matches_told <= MATCHES_TOLD_MAX {
            self.say(event);
        } else if self.matches_told == MATCHES_TOLD_MAX + 1 {
            let text = "further matches are not listed; the patterns are still searched".to_owned();
            self.say(JobEvent::Note { text, severity: Severity::Warning });
        }
    }

    /// An idle watchdog only listens for `start`; a running one for `reset` first, else `stop`.
    fn watchdogs(&mut self, line: &[u8], now: Instant, hits: &mut Vec<String>) {
        let job = Arc::clone(&self.job);
        for (name, patterns) in &job.patterns.watchdogs {
            let timer = TimerName::Watchdog(name.clone());
            let Some(timeout) = job.timeouts.watchdogs.get(name) else { continue };
            if !self.timers.is_running(&timer) {
                if self.matches(Some(&patterns.start), line) {
                    self.timers.start(timer, *timeout, now);
                    hits.push(format!("watchdogs.{name}.start"));
                }
            } else if self.matches(Some(&patterns.reset), line) {
                self.timers.start(timer, *timeout, now);
                hits.push(format!("watchdogs.{name}.reset"));
            } else if self.matches(Some(&patterns.stop), line) {
                self.timers.stop(&timer);
                hits.push(format!("watchdogs.{name}.stop"));
            }
        }
    }

    /// A pattern that gives up on a line (its match limit) does not match it, and the log says so.
    fn matches(&mut self, pattern: Option<&Pattern>, line: &[u8]) -> bool {
        match pattern.map(|pattern| pattern.is_match(line)) {
            None => false,
            Some(Ok(matched)) => matched,
            Some(Err(error)) => {
                self.say_match(JobEvent::Note { text: error.to_string(), severity: Severity::Warning });
                false
            }
        }
    }

    fn act_on_matches(&mut self) {
        if let Some(line) = self.seen.unfit.clone() {
            self.actions.push_back(Action::DeclareUnfit { line: line.clone() });
            let summary = format!("the DUT declared itself unfit for service: `{line}`");
            let status = self.status_of_patterns();
            self.end(status, Cause::Dut, summary);
        } else if self.seen.session_end {
            let status = self.status_of_patterns();
            self.end(status, Cause::Test, self.summary_of_patterns(status));
        } else if self.seen.reboot {
            self.seen.reboot = false;
            self.reboot();
        }
    }

    /// A reboot that the console asks for counts against `boot_cycle.retries`.
    fn reboot(&mut self) {
        let hit = self.timers.retry(TimerName::BootCycle, self.job.timeouts.boot_cycle);
        if hit.may_retry() {
            self.next_boot();
        } else {
            let retries = hit.timeout.retries;
            let summary = format!("session_reboot matched, but timeouts.boot_cycle.retries allows {retries} reboots");
            let status = self.status_of_patterns();
            self.end(status, Cause::Test, summary);
        }
    }

    fn end_by_timeout(&mut self, hit: &Hit, now: Instant) {
        let duration = hit.timeout.duration.unwrap_or_default();
        let mut summary = format!("timeouts.{} of {} expired", hit.name, seconds(duration));
        if hit.timeout.retries > 0 {
            summary.push_str(&format!(" for the {}. time", hit.retried));
        }
        if hit.name == TimerName::BootProgress {
            summary.push_str(&self.seen.fetches.in_words());
        }
        if self.state == State::SettingUp {
            summary.push_str(" before every artifact was there");
            return self.end(Status::SetupFail, Cause::Artifact, summary);
        }
        let deaf = self.deaf_in_this_boot(now).as_secs_f64();
        let cause = if let Some(away) = self.seen.farm_away {
            // It may well have done in that time what was waited for.
            let away = away.as_secs_f64();
            summary.push_str(&format!(
                "; the farm was away for {away:.1} s of this boot, and what the DUT did then is not known"
            ));
            Cause::Farm
        } else if let Some(words) = self.seen.handing.in_words() {
            summary.push_str(&words);
            Cause::Dut
        } else if deaf > 0.0 && hit.name.is_driven_by_console() {
            // The farm, not the job, is why nobody heard what was waited for.
            summary.push_str(&format!("; the console was away for {deaf:.1} s of this boot, and what it said is lost"));
            Cause::Console
        } else if let Some(words) = self.on_the_network(deaf) {
            summary.push_str(words);
            Cause::Network
        } else {
            Cause::Timeout
        };
        let status = self.status_of_patterns();
        self.end(status, cause, summary);
    }

    fn deaf_in_this_boot(&self, now: Instant) -> Duration {
        let away = self.outage.as_ref().filter(|outage| outage.back.is_none());
        self.seen.deaf + away.map_or(Duration::ZERO, |outage| now.saturating_duration_since(outage.left))
    }

    /// What is wrong with a boot that asked for nothing; `None` when it did ask, or need not. A DUT whose job has no kernel may well
    /// boot from its disk: it is suspect only while its console is silent too.
    fn on_the_network(&self, deaf: f64) -> Option<&'static str> {
        if self.state != State::Booted || self.seen.firmware || self.seen.asked {
            return None;
        }
        let deployment = if self.boot == 1 { &self.job.start } else { &self.job.continue_ };
        match (self.seen.console_active, &deployment.kernel) {
            _ if deaf > 0.0 => Some("; the DUT never asked the network for anything in this boot"),
            (false, _) => {
                Some("; the DUT never asked the network for anything and its console stayed silent in this boot")
            }
            (true, Some(_)) => {
                Some("; the DUT never asked the network for anything in this boot, though its console is alive")
            }
            (true, None) => None,
        }
    }

    /// The status of what the farm's own parts end: before the first boot nothing of the job was tried.
    fn status_of_failed_part(&self) -> Status {
        if self.booted_at.is_none() { Status::SetupFail } else { Status::Incomplete }
    }

    /// CI-tron's order: no session_end, no success pattern, success with or without warning, nothing.
    fn status_of_patterns(&self) -> Status {
        if !self.seen.session_end {
            Status::Incomplete
        } else if self.job.patterns.job_success.is_none() {
            Status::Complete
        } else if self.seen.success && self.seen.warn {
            Status::Warn
        } else if self.seen.success {
            Status::Pass
        } else {
            Status::Fail
        }
    }

    fn summary_of_patterns(&self, status: Status) -> String {
        match status {
            Status::Pass => "job_success and session_end matched",
            Status::Warn => "job_success and session_end matched, and job_warn too",
            Status::Complete => "session_end matched, and the job defines no job_success",
            Status::Fail => "session_end matched, but job_success never did",
            Status::Incomplete | Status::Unknown | Status::SetupFail => "session_end never matched",
        }
        .to_owned()
    }

    fn say_timeout(&mut self, hit: &Hit, is_retrying: bool) {
        let (name, timeout) = (hit.name.to_string(), hit.timeout);
        let length = timeout.duration.unwrap_or_default();
        let fetched = if hit.name == TimerName::BootProgress { self.seen.fetches.in_words() } else { String::new() };
        self.evidence.push(format!("boot {}: timeouts.{name} of {} expired{fetched}", self.boot, seconds(length)));
        self.say(JobEvent::TimeoutHit {
            name,
            seconds: length.as_secs_f64(),
            retries: timeout.retries,
            retried: hit.retried,
            is_retrying,
        });
    }

    fn say(&mut self, event: JobEvent) {
        self.actions.push_back(Action::Say(event));
    }

    fn end(&mut self, status: Status, cause: Cause, summary: String) {
        self.state = State::Ended;
        let evidence = std::mem::take(&mut self.evidence).into_entries();
        self.actions.push_back(Action::End(Verdict { status, cause, summary, evidence }));
    }
}

impl Handing {
    /// What has not happened yet.
    fn in_words(&self) -> Option<String> {
        match self {
            Handing::Nothing | Handing::Done => None,
            Handing::Waiting(loader) => Some(format!("; {loader} did not show up in this boot")),
            Handing::Sending => Some("; its loader has not booted the image that it was being given".to_owned()),
        }
    }
}

impl Outage {
    /// The end of our patience with a console that is away.
    fn must_be_back(&self) -> Option<Instant> {
        self.back.is_none().then(|| self.first_left + CONSOLE_AWAY_MAX)
    }
}

impl Evidence {
    fn push(&mut self, text: String) {
        if self.entries.len() < EVIDENCE_ENTRIES_MAX { self.entries.push(text) } else { self.left_out += 1 }
    }

    fn into_entries(mut self) -> Vec<String> {
        if self.left_out > 0 {
            self.entries.push(format!("… and {} more, in the job's log", self.left_out));
        }
        self.entries
    }
}

/// A duration as people write it.
fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests;
