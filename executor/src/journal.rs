//! What a session heard, on disk: a later server makes the same session of it, which then goes on where this one was killed.
//!
//! ```text
//!  runner ─► Recorded ─► Session                       <job>/session.journal
//!               └─► Journal ─ what, and when ─►          00000000004200000000 00001763704800000   alive until then: session's time, wall clock
//!                                                        {"at":0,"heard":"job","sha256":"…"}      what the session read of the job
//!  after a restart:                                      {"at":1000000,"heard":"setup_done"}
//!  Heard::read ─► replay ─► the same Session             {"at":9000000,"heard":"console","to":512}   the bytes are in console.log
//!                                                        {"at":9100000,"heard":"timeout"}            it was told the time, and acted on it
//! ```
//! A line is in the kernel's hands before anything that comes of it is done. What means nothing but "still alive" is gathered for a second:
//! a flood of console bytes costs a line a second, and so does a download. The first line is written over every second, so that the
//! clocks go on where they were.
//!
//! Only for machines that outlive the server: others have nothing that could be gone on with.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use job_schema::job::Job;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::job_log::{JobEvent, JobLog};
use crate::session::{Action, Event, Fetches, HandOver, Session};
use crate::verdict::{Cause, Status, Verdict};

/// In the job's folder.
const JOURNAL: &str = "session.journal";
/// How often is written what needs no line of its own. By so much may a clock be credited too much after a restart.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// A journal's length: a line a second for two weeks. The console's log has its limit at a million pieces, which is less.
const BYTES_MAX: u64 = 64 << 20;
/// Console bytes that are read and heard again at once.
const PIECE_BYTES: u64 = 64 * 1024;
/// The first line: two numbers of 20 digits, so that it is always as long.
const CLOCK_BYTES: u64 = 42;

/// A session, and the journal of what it hears.
pub struct Recorded {
    session: Session,
    journal: Option<Journal>,
}

impl Recorded {
    /// Of a machine that ends with us.
    pub fn unkept(session: Session) -> Self {
        Recorded { session, journal: None }
    }

    /// Of a machine that outlives us.
    pub fn kept(session: Session, journal: Journal) -> Self {
        Recorded { session, journal: Some(journal) }
    }

    /// Something happened. Console bytes are in the log already.
    pub fn handle_event(&mut self, event: Event, now: Instant) {
        let Some(journal) = &mut self.journal else { return self.session.handle_event(event, now) };
        let (noted, matches) = (Noted::of(&event), self.session.lines_matched());
        self.session.handle_event(event, now);
        let is_busy = self.session.has_actions() || self.session.lines_matched() != matches;
        journal.note(noted, if is_busy { Came::Something } else { Came::Nothing }, now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(journal) = &mut self.journal {
            if self.session.poll_timeout().is_some_and(|wake| wake <= now) {
                journal.write(What::Timeout, now);
            }
            journal.keep_time(now);
        }
        self.session.handle_timeout(now);
    }

    /// When `handle_timeout` wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let keep = self.journal.as_ref().and_then(Journal::keep_again_at);
        self.session.poll_timeout().into_iter().chain(keep).min()
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.session.poll_action()
    }
}

/// The journal of one session.
pub struct Journal {
    file: File,
    length: u64,
    /// When the session began, on a clock that stood still while there was no farm.
    start: Instant,
    log: Arc<JobLog>,
    /// Console bytes that the session has heard.
    heard: u64,
    /// The last time of what waits for its line.
    waiting: Waiting,
    /// Of what was fetched, as it is written.
    missing: Vec<String>,
    kept_at: Instant,
    is_lost: bool,
}

/// Whether anything came of an event that the DUT's life does not show by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Came {
    Something,
    Nothing,
}

#[derive(Default)]
struct Waiting {
    console: Option<Instant>,
    progress: Option<Instant>,
    fetched: Option<(Instant, Fetches)>,
}

impl Journal {
    /// A new journal for a session that begins at `start`, in the folder of its log.
    pub fn create(log: &Arc<JobLog>, job: &Job, start: Instant) -> io::Result<Journal> {
        let path = log.folder().join(JOURNAL);
        let file = File::options().create(true).truncate(true).write(true).open(path)?;
        let mut journal = Journal::at(file, CLOCK_BYTES, log, start, 0);
        journal.keep_time(start);
        journal.write(What::Job { sha256: sha256_of(job) }, start);
        if journal.is_lost { Err(io::Error::other("the disk is full")) } else { Ok(journal) }
    }

    /// Goes on with what was heard. The session has heard all of its console by then, and began at `start`.
    pub fn go_on(heard: &Heard, log: &Arc<JobLog>, start: Instant) -> io::Result<Journal> {
        let file = File::options().write(true).open(log.folder().join(JOURNAL))?;
        file.set_len(heard.length)?;
        let mut journal = Journal::at(file, heard.length, log, start, log.console_length());
        let until = start + heard.until;
        journal.write(What::Console { to: journal.heard }, until);
        journal.kept_at = until;
        Ok(journal)
    }

    fn at(file: File, length: u64, log: &Arc<JobLog>, start: Instant, heard: u64) -> Journal {
        let kept_at = start.checked_sub(KEEP_EVERY).unwrap_or(start);
        let (log, waiting) = (Arc::clone(log), Waiting::default());
        let missing = Vec::new();
        Journal { file, length, start, log, heard, waiting, missing, kept_at, is_lost: false }
    }

    fn note(&mut self, noted: Noted, came: Came, now: Instant) {
        let is_console = matches!(noted, Noted::Console(_));
        match (noted, came) {
            (Noted::Console(length), Came::Something) => {
                self.write_waiting();
                self.heard += length;
                self.write_line(What::Console { to: self.heard }, now);
            }
            (Noted::Console(length), Came::Nothing) => {
                self.heard += length;
                self.waiting.console = Some(now);
            }
            (Noted::Line(Happened::BootProgress), Came::Nothing) => self.waiting.progress = Some(now),
            // What is still missing decides what a line of the console means.
            (Noted::Line(Happened::Fetched(fetches)), Came::Nothing) if fetches.missing == self.missing => {
                self.waiting.fetched = Some((now, fetches));
            }
            (Noted::Line(Happened::Fetched(fetches)), _) => {
                self.missing.clone_from(&fetches.missing);
                self.write(What::Happened(Happened::Fetched(fetches)), now);
            }
            // A machine that asks for its address again and again is no news.
            (Noted::Line(Happened::FirmwareSeen), Came::Nothing) => {}
            (Noted::Line(happened), _) => self.write(What::Happened(happened), now),
        }
        // At another event the log may be ahead: by bytes that came at the same moment, and are heard after it.
        if is_console && self.log.console_length() != self.heard {
            self.lose("its log does not keep all that the console says");
        }
    }

    /// What waited comes first.
    fn write(&mut self, what: What, now: Instant) {
        self.write_waiting();
        self.write_line(what, now);
    }

    fn write_waiting(&mut self) {
        let Waiting { console, progress, fetched } = std::mem::take(&mut self.waiting);
        let console = console.map(|at| (at, What::Console { to: self.heard }));
        let progress = progress.map(|at| (at, What::Happened(Happened::BootProgress)));
        let fetched = fetched.map(|(at, fetches)| (at, What::Happened(Happened::Fetched(fetches))));
        let mut lines: Vec<_> = [fetched, progress, console].into_iter().flatten().collect();
        lines.sort_by_key(|(at, _)| *at);
        lines.into_iter().for_each(|(at, what)| self.write_line(what, at));
    }

    fn write_line(&mut self, what: What, now: Instant) {
        if self.is_lost {
            return;
        }
        if matches!(what, What::Console { .. }) {
            // Its bytes are in the log's file before it.
            self.log.tell_console();
        }
        let at = nanoseconds(now.saturating_duration_since(self.start));
        let mut line = serde_json::to_vec(&Line { at, what }).expect("numbers and texts can be written");
        line.push(b'\n');
        if self.length + line.len() as u64 > BYTES_MAX {
            return self.lose("it is longer than a journal may be");
        }
        match self.file.write_all_at(&line, self.length) {
            Ok(()) => self.length += line.len() as u64,
            Err(error) => self.lose(&error.to_string()),
        }
    }

    /// Once a second: what waits, and that the farm is alive.
    fn keep_time(&mut self, now: Instant) {
        if self.is_lost || now < self.kept_at + KEEP_EVERY {
            return;
        }
        self.kept_at = now;
        self.write_waiting();
        let until = nanoseconds(now.saturating_duration_since(self.start));
        let wall_ms = jiff::Timestamp::now().as_millisecond();
        if let Err(error) = self.file.write_all_at(format!("{until:020} {wall_ms:020}\n").as_bytes(), 0) {
            self.lose(&error.to_string());
        }
    }

    fn keep_again_at(&self) -> Option<Instant> {
        (!self.is_lost).then(|| self.kept_at + KEEP_EVERY)
    }

    /// Half of what was heard is worse than nothing: the job cannot be picked up any more.
    fn lose(&mut self, why: &str) {
        if !std::mem::replace(&mut self.is_lost, true) {
            tracing::warn!(folder = %self.log.folder().display(), why, "a restart will end this job: what it heard cannot be kept");
            // A full disk lets a file become shorter.
            let _ = self.file.set_len(0);
        }
    }
}

/// Of a job whose verdict is told. Most have no journal; one that stays costs its room and nothing else.
pub fn forget(folder: &Path) {
    let _ = std::fs::remove_file(folder.join(JOURNAL));
}

/// What an earlier run's session heard.
pub struct Heard {
    lines: Vec<Line>,
    /// How long the session had lasted when the farm was last alive.
    until: Duration,
    /// When that was.
    alive: jiff::Timestamp,
    length: u64,
}

/// A session that heard everything again.
pub enum Replayed {
    /// It is where it was, and hears on.
    GoesOn(Box<Session>),
    /// It had come to its verdict; the DUT may have declared itself unfit with this line.
    Ended { verdict: Verdict, unfit: Option<String> },
}

impl Heard {
    /// What the job in `folder` heard; `None`: there is no journal. The error says why it cannot be gone on with.
    pub fn read(folder: &Path) -> Result<Option<Heard>, String> {
        let text = match std::fs::read(folder.join(JOURNAL)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("what it heard cannot be read: {error}")),
        };
        let lost = || "what it heard could not be kept".to_owned();
        let clock = text.get(..CLOCK_BYTES as usize).and_then(read_clock).ok_or_else(lost)?;
        let mut lines = Vec::new();
        let mut length = CLOCK_BYTES;
        for line in text[CLOCK_BYTES as usize..].split_inclusive(|byte| *byte == b'\n') {
            let read = line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice::<Line>(line).ok());
            // The last line may have been cut short.
            let Some(read) = read else { break };
            lines.push(read);
            length += line.len() as u64;
        }
        let last = lines.last().ok_or_else(lost)?.at;
        Ok(Some(Heard { until: clock.0.max(Duration::from_nanos(last)), alive: clock.1, lines, length }))
    }

    /// How long the session had lasted.
    pub fn until(&self) -> Duration {
        self.until
    }

    /// How long the farm has been away.
    pub fn away(&self) -> Duration {
        Duration::try_from(jiff::Timestamp::now().duration_since(self.alive)).unwrap_or_default()
    }

    /// The session of `job` as it was; it began at `start`. What came of what it heard was done, or begun, in its time, and is not done again:
    /// but what the last bytes of the console gave occasion to say is in the log by then.
    pub fn replay(&self, job: &Arc<Job>, log: &JobLog, start: Instant) -> Result<Replayed, String> {
        let is_same = |line: &Line| matches!(&line.what, What::Job { sha256 } if *sha256 == sha256_of(job));
        if !self.lines.first().is_some_and(is_same) {
            return Err("the job reads otherwise now: the farm file was changed".to_owned());
        }
        let session = Session::new(Arc::clone(job), None, start);
        let mut replay = Replay { session, log, heard: 0, said: Vec::new(), unfit: None, verdict: None };
        for line in self.lines.iter().skip(1) {
            replay.hear(&line.what, start + Duration::from_nanos(line.at))?;
            replay.said.clear();
        }
        replay.hear(&What::Console { to: log.console_length() }, start + self.until)?;
        replay.said.drain(..).for_each(|event| log.append(event));
        Ok(match replay.verdict {
            Some(verdict) => Replayed::Ended { verdict, unfit: replay.unfit },
            None => Replayed::GoesOn(Box::new(replay.session)),
        })
    }
}

/// A session that hears everything again.
struct Replay<'a> {
    session: Session,
    log: &'a JobLog,
    heard: u64,
    said: Vec<JobEvent>,
    unfit: Option<String>,
    verdict: Option<Verdict>,
}

impl Replay<'_> {
    fn hear(&mut self, what: &What, now: Instant) -> Result<(), String> {
        match what.clone() {
            What::Timeout => self.session.handle_timeout(now),
            What::Console { to } => return self.hear_console(to, now),
            What::Job { .. } => {}
            What::Happened(event) => self.session.handle_event(event.into(), now),
        }
        self.take_actions();
        Ok(())
    }

    fn hear_console(&mut self, to: u64, now: Instant) -> Result<(), String> {
        while self.heard < to && self.verdict.is_none() {
            let length = PIECE_BYTES.min(to - self.heard);
            let bytes = self.log.console_bytes(self.heard, length as usize);
            let bytes = bytes.map_err(|error| format!("its console's log lacks what it heard: {error}"))?;
            self.heard += length;
            self.session.handle_event(Event::Console(bytes), now);
            self.take_actions();
        }
        Ok(())
    }

    fn take_actions(&mut self) {
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Say(event) => self.said.push(event),
                Action::DeclareUnfit { line } => self.unfit = Some(line),
                Action::End(verdict) => self.verdict = Some(verdict),
                Action::CutPower | Action::BootWith { .. } | Action::HandOver { .. } => {}
            }
        }
    }
}

/// A line of the journal.
#[derive(Serialize, Deserialize)]
struct Line {
    /// Nanoseconds since the session began.
    at: u64,
    #[serde(flatten)]
    what: What,
}

/// What a line says.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "heard", rename_all = "snake_case")]
enum What {
    /// The first line: what the session reads of its job.
    Job { sha256: String },
    /// The time, when it mattered.
    Timeout,
    /// The console, up to this byte of its log.
    Console { to: u64 },
    #[serde(untagged)]
    Happened(Happened),
}

/// An event but for the console's bytes, as it is written.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "heard", rename_all = "snake_case")]
enum Happened {
    SetupDone,
    SetupFailed { cause: Cause, reason: String },
    PowerIsOff,
    PowerIsOn,
    PowerFailed { reason: String },
    ConsoleAway { reason: String },
    ConsoleBack,
    FirmwareSeen,
    BootProgress,
    HandOver { boot: u32, hand_over: HandOver },
    Fetched(Fetches),
    Evidence { text: String },
    Cancelled { by: String },
    SubmitterGone,
    StepsEnded { status: Status, cause: Cause, summary: String },
    FarmFailed { reason: String },
    PickedUp { away_s: f64 },
}

/// What becomes of an event in the journal.
enum Noted {
    /// So many bytes more of the console.
    Console(u64),
    Line(Happened),
}

impl Noted {
    fn of(event: &Event) -> Noted {
        Noted::Line(match event {
            Event::Console(bytes) => return Noted::Console(bytes.len() as u64),
            Event::SetupDone => Happened::SetupDone,
            Event::SetupFailed { cause, reason } => Happened::SetupFailed { cause: *cause, reason: reason.clone() },
            Event::PowerIsOff => Happened::PowerIsOff,
            Event::PowerIsOn => Happened::PowerIsOn,
            Event::PowerFailed { reason } => Happened::PowerFailed { reason: reason.clone() },
            Event::ConsoleAway { reason } => Happened::ConsoleAway { reason: reason.clone() },
            Event::ConsoleBack => Happened::ConsoleBack,
            Event::FirmwareSeen => Happened::FirmwareSeen,
            Event::BootProgress => Happened::BootProgress,
            Event::HandOver { boot, news } => Happened::HandOver { boot: *boot, hand_over: news.clone() },
            Event::Fetched(fetches) => Happened::Fetched(fetches.clone()),
            Event::Evidence(text) => Happened::Evidence { text: text.clone() },
            Event::Cancelled { by } => Happened::Cancelled { by: by.clone() },
            Event::SubmitterGone => Happened::SubmitterGone,
            Event::StepsEnded { status, cause, summary } => {
                Happened::StepsEnded { status: *status, cause: *cause, summary: summary.clone() }
            }
            Event::FarmFailed { reason } => Happened::FarmFailed { reason: reason.clone() },
            Event::PickedUp { away } => Happened::PickedUp { away_s: away.as_secs_f64() },
        })
    }
}

impl From<Happened> for Event {
    fn from(happened: Happened) -> Event {
        match happened {
            Happened::SetupDone => Event::SetupDone,
            Happened::SetupFailed { cause, reason } => Event::SetupFailed { cause, reason },
            Happened::PowerIsOff => Event::PowerIsOff,
            Happened::PowerIsOn => Event::PowerIsOn,
            Happened::PowerFailed { reason } => Event::PowerFailed { reason },
            Happened::ConsoleAway { reason } => Event::ConsoleAway { reason },
            Happened::ConsoleBack => Event::ConsoleBack,
            Happened::FirmwareSeen => Event::FirmwareSeen,
            Happened::BootProgress => Event::BootProgress,
            Happened::HandOver { boot, hand_over } => Event::HandOver { boot, news: hand_over },
            Happened::Fetched(fetches) => Event::Fetched(fetches),
            Happened::Evidence { text } => Event::Evidence(text),
            Happened::Cancelled { by } => Event::Cancelled { by },
            Happened::SubmitterGone => Event::SubmitterGone,
            Happened::StepsEnded { status, cause, summary } => Event::StepsEnded { status, cause, summary },
            Happened::FarmFailed { reason } => Event::FarmFailed { reason },
            Happened::PickedUp { away_s } => {
                Event::PickedUp { away: Duration::try_from_secs_f64(away_s).unwrap_or_default() }
            }
        }
    }
}

fn read_clock(line: &[u8]) -> Option<(Duration, jiff::Timestamp)> {
    let (until, wall) = std::str::from_utf8(line).ok()?.strip_suffix('\n')?.split_once(' ')?;
    Some((Duration::from_nanos(until.parse().ok()?), jiff::Timestamp::from_millisecond(wall.parse().ok()?).ok()?))
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Of what a session decides by. What is published may be another URL after a restart, and is no matter of its.
fn sha256_of(job: &Job) -> String {
    let digest = Sha256::digest(format!("{:?}\n{:?}", job.timeouts, job.patterns));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
