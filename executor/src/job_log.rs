//! Everything a job said, in order, for any number of readers at their own pace.
//!
//! ```text
//!  runner ── append ──► records (memory, and a line each in events.jsonl) + console bytes (console.log)
//!                           └──► Follower 1 … n, each from its own position
//! ```
//! A line is in the kernel's hands before anybody can read its record, so a killed server forgets nothing that it told. While the disk is
//! full that is not so: what cannot be written waits in memory, is told all the same, and is written once there is room.
//!
//! ```text
//!  disk full ─► bytes wait (1 MiB at most) ──room again──► written, nothing is missing
//!                     └── more comes ──► lost: append_console says so, and the job ends by it
//! ```
//! A reader that never reads costs nothing and delays nobody: the writer does not know its readers.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::verdict::Verdict;

/// The console's bytes.
const CONSOLE: &str = "console.log";
/// The records, a line of JSON each.
const EVENTS: &str = "events.jsonl";
/// Console bytes kept of one job: a day of a serial line at 115,200 baud that never pauses (995 MB). Patterns are searched in all that comes.
const CONSOLE_BYTES_MAX: u64 = 1 << 30;
/// Pieces in which they come: each is a record in memory, of some 130 bytes. The runner gathers pieces, so that a DUT that says a byte
/// at a time for a whole day stays below it.
const CONSOLE_PIECES_MAX: usize = 1_000_000;
/// Console bytes that wait while the disk is full: a minute and a half of a serial line at 115,200 baud.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// Console bytes that are told of together: what one read of a flood gives.
const GATHERED_BYTES_MAX: usize = 64 * 1024;
/// Between two attempts to write the end of a job whose log no more events come to.
const WRITE_AGAIN: Duration = Duration::from_secs(5);

/// One thing that happened in a job. Closed on purpose: every audience (console framing, CLI, JSON) matches it whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum JobEvent {
    /// Waiting for a DUT: the place in the queue (1 is next), per candidate why not now, and when its turn comes as far as one can tell.
    Queued {
        place: usize,
        reasons: Vec<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        estimate: Option<jiff::Timestamp>,
    },
    /// The job lives only as long as its submitter's connection does.
    Owned,
    /// A DUT was leased for the job.
    Leased { dut: String },
    /// Artifacts are being fetched and published.
    SetupStarted,
    /// How far a download is.
    Download { url: String, bytes: u64, total: Option<u64> },
    /// Everything the DUT may ask for is published.
    SetupComplete,
    /// The setup failed; the verdict follows.
    SetupFailed { reason: String },
    /// A boot cycle begins: power goes off, then on.
    PowerCycling { boot: u32 },
    /// Power is on; the read-back agrees.
    PoweredOn { boot: u32 },
    /// Power is off; the read-back agrees.
    PoweredOff,
    /// The first DHCP request of this boot, or its loader: the firmware lives.
    FirmwareBooted { seconds: f64 },
    /// The DUT finished reading an artifact, or was refused it. `access` is not in logs of before 2026-11-21.
    Access {
        text: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        access: Option<AccessRecord>,
    },
    /// A console pattern matched.
    PatternMatched { patterns: Vec<String>, line: String },
    /// A timeout expired.
    TimeoutHit { name: String, seconds: f64, retries: u32, retried: u32, is_retrying: bool },
    /// Bytes of the DUT's serial console: a range of the console file.
    Console { offset: u64, length: usize },
    /// The console's stream ended: from here on nothing is heard.
    ConsoleAway { reason: String },
    /// The console is open again: what the DUT said for so long is not in the log.
    ConsoleBack { seconds: f64 },
    /// What the outlets of its DUTs measured, until the verdict.
    EnergyMeasured { joules: f64, seconds: f64 },
    /// What the tests of a step came to, by the file that they wrote; the names of some that failed.
    TestResults { file: String, tests: u64, failures: u64, errors: u64, skipped: u64, failed: Vec<String> },
    /// Anything else worth a line.
    Note { text: String, severity: Severity },
    /// The tear-down began.
    TeardownStarted,
    /// Everything was given back.
    TeardownComplete,
    /// The last event.
    Ended { verdict: Verdict },
}

/// One access to an artifact, with its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AccessRecord {
    /// `HTTP`, `TFTP` or `NBD`.
    pub protocol: String,
    /// The name asked for.
    pub name: String,
    /// The address it was asked from.
    pub peer: String,
    /// Bytes that were taken.
    pub bytes: u64,
    /// From the open to the end; none of a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// How it ended.
    pub end: AccessEnd,
    /// Why it ended so, unless it is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How an access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AccessEnd {
    /// All that was asked for was taken.
    Complete,
    /// The DUT gave up.
    Aborted,
    /// The gateway could not go on.
    Failed,
    /// It did not begin.
    Refused,
}

impl AccessEnd {
    /// The word, as it stands in the log.
    pub fn name(self) -> &'static str {
        match self {
            AccessEnd::Complete => "complete",
            AccessEnd::Aborted => "aborted",
            AccessEnd::Failed => "failed",
            AccessEnd::Refused => "refused",
        }
    }
}

/// How loud a note is; the numbers are CI-tron's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// For the curious.
    Debug = 0,
    /// Normal progress.
    Info = 1,
    /// Needs attention.
    Warning = 2,
    /// Something failed.
    Error = 3,
}

/// An event with its number and time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Position in the log, from 0.
    pub number: usize,
    /// When it was appended (UTC).
    pub at: jiff::Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub event: JobEvent,
}

/// The log of one job.
pub struct JobLog {
    state: Mutex<State>,
    path: PathBuf,
    grown: watch::Sender<usize>,
    this: Weak<JobLog>,
}

struct State {
    /// Open while the job is at work, and while something could not be written. A farm has thousands of jobs that wait, and remembers a
    /// thousand that have ended; a process may have as many files open.
    files: Option<Files>,
    /// Whether the job has its DUT, or has said something: from then on it is written often.
    at_work: bool,
    records: Vec<Arc<Record>>,
    ended: bool,
    console_length: u64,
    console_pieces: usize,
    /// The last bytes of the console, while they are gathered or the disk does not take them.
    waiting: Vec<u8>,
    /// So many of the last bytes have no record yet.
    gathered: usize,
    /// So many records are on disk, and this long is their file.
    written: usize,
    events_length: u64,
    /// What the disk said last, while something waits.
    refused: Option<String>,
    lost_bytes: u64,
    told: Told,
}

struct Files {
    console: File,
    events: File,
}

/// What is said once, not at every byte.
#[derive(Default)]
struct Told {
    too_much: bool,
    loss: bool,
}

/// Something of a job's log is not on disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the job's log is incomplete: {what} ({refused}); make room where {} is", path.display())]
pub struct Incomplete {
    what: String,
    refused: String,
    path: PathBuf,
}

/// Reads a log from some position on, waiting for what is not there yet.
pub struct Follower {
    log: Arc<JobLog>,
    next: usize,
    grown: watch::Receiver<usize>,
}

impl JobLog {
    /// A new log in `directory`.
    pub fn create(directory: &Path) -> io::Result<Arc<Self>> {
        std::fs::create_dir_all(directory)?;
        for name in [CONSOLE, EVENTS] {
            File::create(directory.join(name))?;
        }
        Self::open(directory)
    }

    /// The log in `directory`, gone on with if there is one.
    pub fn at(directory: &Path) -> io::Result<Arc<Self>> {
        if directory.join(EVENTS).exists() { Self::open(directory) } else { Self::create(directory) }
    }

    /// The log that an earlier run of the farm left in `directory`, to be read or gone on with. A last line that was cut short is dropped.
    pub fn open(directory: &Path) -> io::Result<Arc<Self>> {
        let path = directory.join(CONSOLE);
        let Files { console, events } = Files::open(&path)?;
        let (records, events_length) = read_records(&std::fs::read(directory.join(EVENTS))?);
        events.set_len(events_length)?;
        let console_length = console.metadata()?.len();
        let is_piece = |record: &&Arc<Record>| matches!(record.event, JobEvent::Console { .. });
        let ended = records.last().is_some_and(|record| matches!(record.event, JobEvent::Ended { .. }));
        let state = State {
            files: None,
            at_work: records.iter().any(|record| record.event.is_work()),
            ended,
            console_length,
            console_pieces: records.iter().filter(is_piece).count(),
            waiting: Vec::new(),
            gathered: 0,
            written: records.len(),
            events_length,
            refused: None,
            lost_bytes: 0,
            told: Told::default(),
            records,
        };
        let grown = watch::channel(state.records.len()).0;
        let state = Mutex::new(state);
        Ok(Arc::new_cyclic(|this| JobLog { state, path, grown, this: Weak::clone(this) }))
    }

    /// Where it is kept.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    /// Appends one event. After [`JobEvent::Ended`] nothing more is taken.
    pub fn append(&self, event: JobEvent) {
        let mut state = self.lock();
        self.push(&mut state, event);
    }

    /// Appends bytes of the console, and tells of them. The error: the disk has been full for so long that some are lost.
    pub fn append_console(&self, bytes: &[u8]) -> Result<(), Incomplete> {
        self.keep_console(bytes, 0)
    }

    /// The same, but they are told of by [`tell_console`](Self::tell_console), or with the next event, or once there are many of them:
    /// together, in one record.
    pub fn gather_console(&self, bytes: &[u8]) -> Result<(), Incomplete> {
        self.keep_console(bytes, GATHERED_BYTES_MAX)
    }

    /// Tells of what was gathered: it is in the kernel's hands from now on.
    pub fn tell_console(&self) {
        let mut state = self.lock();
        if state.gathered > 0 {
            self.push_gathered(&mut state);
        }
    }

    /// Tells of the bytes if they make more than may be gathered.
    fn keep_console(&self, bytes: &[u8], gathered_bytes_max: usize) -> Result<(), Incomplete> {
        let mut state = self.lock();
        if state.ended || bytes.is_empty() {
            return Ok(());
        }
        let length = bytes.len() as u64;
        let is_too_much =
            state.console_length + length > CONSOLE_BYTES_MAX || state.console_pieces == CONSOLE_PIECES_MAX;
        if is_too_much || state.told.too_much {
            self.tell_too_much(&mut state);
            return Ok(());
        }
        if state.lost_bytes > 0 || (!state.waiting.is_empty() && state.waiting.len() + bytes.len() > WAITING_BYTES_MAX)
        {
            state.lost_bytes += length;
            self.tell_loss(&mut state);
            return self.incomplete(&state).map_or(Ok(()), Err);
        }
        state.waiting.extend_from_slice(bytes);
        state.console_length += length;
        state.gathered += bytes.len();
        if state.gathered > gathered_bytes_max {
            self.push_gathered(&mut state);
        }
        Ok(())
    }

    /// Whether everything that was told is on disk, which is tried once more; the error says what is not.
    pub fn settle(&self) -> Result<(), Incomplete> {
        let mut state = self.lock();
        if state.gathered > 0 {
            self.push_gathered(&mut state);
        }
        self.write(&mut state);
        self.incomplete(&state).map_or(Ok(()), Err)
    }

    /// How many bytes of the console it has.
    pub fn console_length(&self) -> u64 {
        self.lock().console_length
    }

    /// The bytes of a [`JobEvent::Console`] record.
    pub fn console_bytes(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        let state = self.lock();
        let on_disk = state.console_length - state.waiting.len() as u64;
        if let Some(start) = offset.checked_sub(on_disk).and_then(|start| usize::try_from(start).ok())
            && let Some(bytes) = state.waiting.get(start..start.saturating_add(length))
        {
            return Ok(Bytes::copy_from_slice(bytes));
        }
        // Read without the lock: a slow disk must not hold up who writes.
        let opened = state.files.as_ref().map(|files| files.console.try_clone());
        drop(state);
        let console = opened.unwrap_or_else(|| File::open(&self.path))?;
        // From the page cache as a rule: the bytes were written moments ago, or the operator asked for an old log.
        let mut buffer = vec![0; length];
        console.read_exact_at(&mut buffer, offset)?;
        Ok(buffer.into())
    }

    /// All records so far.
    pub fn records(&self) -> Vec<Arc<Record>> {
        self.lock().records.clone()
    }

    /// Reads from record `from` on.
    pub fn follow(self: &Arc<Self>, from: usize) -> Follower {
        Follower { log: Arc::clone(self), next: from, grown: self.grown.subscribe() }
    }

    fn push_gathered(&self, state: &mut State) {
        let length = std::mem::take(&mut state.gathered);
        state.console_pieces += 1;
        self.push(state, JobEvent::Console { offset: state.console_length - length as u64, length });
    }

    fn push(&self, state: &mut State, event: JobEvent) {
        if state.ended {
            return;
        }
        if state.gathered > 0 {
            self.push_gathered(state);
        }
        state.ended = matches!(event, JobEvent::Ended { .. });
        state.at_work |= event.is_work();
        let number = state.records.len();
        state.records.push(Arc::new(Record { number, at: jiff::Timestamp::now(), event }));
        self.write(state);
        if state.ended && state.refused.is_some() {
            self.write_later();
        }
        self.grown.send_replace(number + 1);
    }

    fn tell_too_much(&self, state: &mut State) {
        if !std::mem::replace(&mut state.told.too_much, true) {
            let text = "the DUT says more than a log keeps: from here on its console is not in it; the patterns are still searched";
            self.push(state, JobEvent::Note { text: text.into(), severity: Severity::Warning });
        }
    }

    fn tell_loss(&self, state: &mut State) {
        if !std::mem::replace(&mut state.told.loss, true) {
            let refused = state.refused.clone().unwrap_or_default();
            let text = format!("console bytes are lost from here on: cannot write {}: {refused}", self.path.display());
            self.push(state, JobEvent::Note { text, severity: Severity::Error });
        }
    }

    /// Writes what waits, the console first: a record whose bytes are not there would lie.
    fn write(&self, state: &mut State) {
        if state.is_on_disk() {
            return;
        }
        let written = self.files(state).and_then(|files| {
            let written = state.write_console(&files.console).and_then(|()| state.write_records(&files.events));
            let done = state.ended || !state.at_work;
            state.files = (written.is_err() || !done).then_some(files);
            written
        });
        match written {
            Ok(()) => state.refused = None,
            Err(error) => {
                if state.refused.is_none() {
                    tracing::error!(path = %self.path.display(), %error, "a job's log cannot be written; it waits for room");
                }
                state.refused = Some(error.to_string());
            }
        }
    }

    fn files(&self, state: &mut State) -> io::Result<Files> {
        state.files.take().map_or_else(|| Files::open(&self.path), Ok)
    }

    /// No more events come that would try again: somebody else has to.
    fn write_later(&self) {
        let this = Weak::clone(&self.this);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            loop {
                tokio::time::sleep(WRITE_AGAIN).await;
                let Some(log) = this.upgrade() else { return };
                let mut state = log.lock();
                log.write(&mut state);
                if state.refused.is_none() {
                    return;
                }
            }
        });
    }

    fn incomplete(&self, state: &State) -> Option<Incomplete> {
        let (records, bytes) = (state.records.len() - state.written, state.waiting.len());
        let what = match state.lost_bytes {
            0 if records == 0 && bytes == 0 => return None,
            0 => format!("{records} events and {bytes} bytes of the console are not on disk"),
            lost => format!("{lost} bytes of the console are lost"),
        };
        let refused = state.refused.clone().unwrap_or_else(|| "the disk was full".into());
        Some(Incomplete { what, refused, path: self.path.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files {
    fn open(console: &Path) -> io::Result<Files> {
        let open = |path: &Path| File::options().read(true).write(true).open(path);
        Ok(Files { console: open(console)?, events: open(&console.with_file_name(EVENTS))? })
    }
}

impl JobEvent {
    fn is_work(&self) -> bool {
        matches!(self, JobEvent::Leased { .. } | JobEvent::Console { .. })
    }
}

impl State {
    fn is_on_disk(&self) -> bool {
        self.waiting.is_empty() && self.written == self.records.len()
    }

    /// At its place, not at the end: what was written in part is written over.
    fn write_console(&mut self, console: &File) -> io::Result<()> {
        if !self.waiting.is_empty() {
            console.write_all_at(&self.waiting, self.console_length - self.waiting.len() as u64)?;
            self.waiting.clear();
        }
        Ok(())
    }

    /// A line each; the last one of an ended job is on the disk before it is told.
    fn write_records(&mut self, events: &File) -> io::Result<()> {
        let mut lines = Vec::new();
        for record in &self.records[self.written..] {
            serde_json::to_writer(&mut lines, &**record)?;
            lines.push(b'\n');
        }
        if !lines.is_empty() {
            events.write_all_at(&lines, self.events_length)?;
            if self.ended {
                events.sync_all()?;
            }
        }
        self.events_length += lines.len() as u64;
        self.written = self.records.len();
        Ok(())
    }
}

/// The records of whole lines, and how many bytes these take.
fn read_records(text: &[u8]) -> (Vec<Arc<Record>>, u64) {
    let mut records = Vec::new();
    let mut bytes = 0;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        let Some(record) = line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice::<Record>(line).ok()) else {
            break;
        };
        records.push(Arc::new(record));
        bytes += line.len() as u64;
    }
    (records, bytes)
}

impl Follower {
    /// The next record; waits for it. `None` after the last one of an ended job.
    pub async fn next(&mut self) -> Option<Arc<Record>> {
        loop {
            {
                let state = self.log.lock();
                if let Some(record) = state.records.get(self.next) {
                    self.next += 1;
                    return Some(Arc::clone(record));
                }
                if state.ended {
                    return None;
                }
            }
            self.grown.wait_for(|length| *length > self.next).await.ok()?;
        }
    }

    /// The log this follower reads.
    pub fn log(&self) -> &Arc<JobLog> {
        &self.log
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{Cause, Status};

    fn note(text: &str) -> JobEvent {
        JobEvent::Note { text: text.into(), severity: Severity::Info }
    }

    fn ended() -> JobEvent {
        let verdict = Verdict { status: Status::Pass, cause: Cause::Test, summary: "done".into(), evidence: vec![] };
        JobEvent::Ended { verdict }
    }

    #[tokio::test]
    async fn a_late_reader_gets_everything_and_then_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let log = JobLog::create(directory.path()).unwrap();
        log.append(note("one"));
        log.append_console(b"hello\r\n").unwrap();
        log.append(ended());
        log.append(note("after the end"));
        let mut follower = log.follow(0);
        let mut seen = Vec::new();
        while let Some(record) = follower.next().await {
            seen.push(record.event.clone());
        }
        assert_eq!(seen, [note("one"), JobEvent::Console { offset: 0, length: 7 }, ended()]);
        assert_eq!(log.console_bytes(0, 7).unwrap(), "hello\r\n");
        assert!(log.lock().files.is_none(), "an ended job keeps no file open");
    }

    #[test]
    fn a_log_is_read_back_after_a_crash_without_the_line_that_was_cut_short() {
        let directory = tempfile::tempdir().unwrap();
        let log = JobLog::create(directory.path()).unwrap();
        log.append(note("one"));
        log.append_console(b"hello\r\n").unwrap();
        let before = log.records();
        drop(log);
        let path = directory.path().join(EVENTS);
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"number\":2,\"at\":");
        std::fs::write(&path, text).unwrap();
        let log = JobLog::open(directory.path()).unwrap();
        assert_eq!(log.records(), before);
        log.append_console(b"more").unwrap();
        log.append(ended());
        assert_eq!(log.records()[2].event, JobEvent::Console { offset: 7, length: 4 });
        let again = JobLog::open(directory.path()).unwrap();
        assert_eq!(again.records(), log.records());
        again.append(note("after the end"));
        assert_eq!(again.records().len(), 4);
    }

    #[test]
    fn a_job_that_waits_keeps_no_file_open_and_one_at_work_does() {
        let directory = tempfile::tempdir().unwrap();
        let log = JobLog::create(directory.path()).unwrap();
        log.append(note("it waits"));
        assert!(log.lock().files.is_none());
        log.append(JobEvent::Leased { dut: "box".into() });
        assert!(log.lock().files.is_some());
        let again = JobLog::open(directory.path()).unwrap();
        assert_eq!(again.records(), log.records());
        again.append(note("it goes on"));
        assert!(again.lock().files.is_some());
    }

    #[tokio::test]
    async fn an_early_reader_is_woken_by_what_comes() {
        let directory = tempfile::tempdir().unwrap();
        let log = JobLog::create(directory.path()).unwrap();
        let mut follower = log.follow(0);
        let reader = tokio::spawn(async move { follower.next().await.map(|record| record.event.clone()) });
        log.append(note("late"));
        assert_eq!(reader.await.unwrap(), Some(note("late")));
    }

    /// Lets the log's two files be a disk without room; what is given back makes room again.
    fn fill_disk(log: &JobLog) -> [std::os::fd::OwnedFd; 2] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut state = log.lock();
        let files = state.files.get_or_insert_with(|| Files::open(&log.path).unwrap());
        [&files.console, &files.events].map(|file| {
            let kept = nix::unistd::dup(file).unwrap();
            put_in_place(&full, file);
            kept
        })
    }

    fn make_room(log: &JobLog, kept: &[std::os::fd::OwnedFd; 2]) {
        let state = log.lock();
        let files = state.files.as_ref().unwrap();
        put_in_place(&kept[0], &files.console);
        put_in_place(&kept[1], &files.events);
    }

    fn put_in_place(of: &impl std::os::fd::AsFd, at: &File) {
        use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
        // SAFETY: the descriptor stays `at`'s: what was opened anew under its number is not closed here.
        let mut target = unsafe { OwnedFd::from_raw_fd(at.as_raw_fd()) };
        nix::unistd::dup2(of, &mut target).unwrap();
        let _ = target.into_raw_fd();
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_told_and_is_written_once_there_is_room() {
        let directory = tempfile::tempdir().unwrap();
        let log = JobLog::create(directory.path()).unwrap();
        log.append_console(b"before\r\n").unwrap();
        let kept = fill_disk(&log);
        log.append_console(b"mean").unwrap();
        log.append_console(b"while\r\n").unwrap();
        log.append(note("one"));
        assert_eq!(log.console_bytes(8, 4).unwrap(), "mean");
        assert_eq!(log.console_bytes(12, 7).unwrap(), "while\r\n");
        assert_eq!(log.records().len(), 4);
        let error = log.settle().unwrap_err().to_string();
        let told = "the job's log is incomplete: 3 events and 11 bytes of the console are not on disk (No space left on device";
        assert!(error.starts_with(told), "{error}");
        make_room(&log, &kept);
        log.append(ended());
        assert_eq!(log.settle(), Ok(()));
        let again = JobLog::open(directory.path()).unwrap();
        assert_eq!(again.records(), log.records());
        assert_eq!(again.console_bytes(0, 19).unwrap(), "before\r\nmeanwhile\r\n");
    }

    #[test]
    fn a_disk_that_stays_full_loses_console_bytes_and_says_so_once() {
        let directory = tempfile::tempdir().unwrap();
        let log = JobLog::create(directory.path()).unwrap();
        let kept = fill_disk(&log);
        let piece = vec![b'x'; 64 * 1024];
        let taken = (0..100).take_while(|_| log.append_console(&piece).is_ok()).count();
        assert_eq!(taken, WAITING_BYTES_MAX / piece.len());
        let error = log.append_console(&piece).unwrap_err().to_string();
        assert!(error.contains("131072 bytes of the console are lost"), "{error}");
        make_room(&log, &kept);
        assert!(log.append_console(&piece).is_err(), "a log with a hole does not go on as if it had none");
        assert!(log.settle().is_err());
        let notes = log.records().iter().filter(|record| matches!(record.event, JobEvent::Note { .. })).count();
        assert_eq!(notes, 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_end_of_a_job_is_written_once_there_is_room() {
        let directory = tempfile::tempdir().unwrap();
        let log = JobLog::create(directory.path()).unwrap();
        let kept = fill_disk(&log);
        log.append(ended());
        assert!(log.settle().is_err());
        make_room(&log, &kept);
        let written = async {
            while JobLog::open(directory.path()).unwrap().records().is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), written).await.expect("somebody tries again");
    }

    #[test]
    fn a_log_has_a_limit_and_says_when_it_is_reached() {
        let directory = tempfile::tempdir().unwrap();
        let log = JobLog::create(directory.path()).unwrap();
        log.lock().console_length = CONSOLE_BYTES_MAX - 3;
        log.append_console(b"one").unwrap();
        log.append_console(b"two").unwrap();
        log.append_console(b"three").unwrap();
        let kinds: Vec<_> = log.records().iter().map(|record| matches!(record.event, JobEvent::Note { .. })).collect();
        assert_eq!(kinds, [false, true]);
    }

    #[test]
    fn what_is_gathered_is_one_record_before_the_next_event_and_is_there_for_those_who_ask_for_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let log = JobLog::create(directory.path()).unwrap();
        log.gather_console(b"he").unwrap();
        log.gather_console(b"llo\r\n").unwrap();
        assert_eq!((log.records().len(), log.console_length()), (0, 7));
        assert_eq!(log.console_bytes(0, 7).unwrap(), "hello\r\n");
        log.append(note("one"));
        log.gather_console(b"two").unwrap();
        log.tell_console();
        log.tell_console();
        log.gather_console(b"three").unwrap();
        log.append_console(b"four").unwrap();
        log.gather_console(&vec![b'x'; GATHERED_BYTES_MAX + 1]).unwrap();
        log.gather_console(b"the last").unwrap();
        assert_eq!(log.settle(), Ok(()));
        let console = |offset, length| JobEvent::Console { offset, length };
        let told: Vec<_> = log.records().iter().map(|record| record.event.clone()).collect();
        let many = console(19, GATHERED_BYTES_MAX + 1);
        let last = console(20 + GATHERED_BYTES_MAX as u64, 8);
        assert_eq!(told, [console(0, 7), note("one"), console(7, 3), console(10, 9), many, last]);
        assert_eq!(JobLog::open(directory.path()).unwrap().records(), log.records());
    }
}
