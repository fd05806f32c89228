//! Everything a job said, in order, for any number of readers at their own pace.
//!
//! ```text
//!  runner ── append ──► records (memory, and a line each in events.jsonl) + console bytes (console.log)
//!                           └──► Follower 1 … n, each from its own position
//! ```
//! A line is in the kernel's hands before anybody can read its record, so a killed server forgets nothing that it told.
//! A reader that never reads costs nothing and delays nobody: the writer does not know its readers.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::verdict::Verdict;

/// The console's bytes.
const CONSOLE: &str = "console.log";
/// The records, a line of JSON each.
const EVENTS: &str = "events.jsonl";

/// One thing that happened in a job. Closed on purpose: every audience (console framing, CLI, JSON) matches it whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum JobEvent {
    /// Waiting for a DUT: the place in the queue (1 is next) and, per candidate, why not now.
    Queued { place: usize, reasons: Vec<String> },
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
    /// The first DHCP request of this boot: the firmware lives.
    FirmwareBooted { seconds: f64 },
    /// The DUT opened, finished or was refused an artifact.
    Access { text: String },
    /// A console pattern matched.
    PatternMatched { patterns: Vec<String>, line: String },
    /// A timeout expired.
    TimeoutHit { name: String, seconds: f64, retries: u32, retried: u32, is_retrying: bool },
    /// Bytes of the DUT's serial console: a range of the console file.
    Console { offset: u64, length: usize },
    /// Anything else worth a line.
    Note { text: String, severity: Severity },
    /// The tear-down began.
    TeardownStarted,
    /// Everything was given back.
    TeardownComplete,
    /// The last event.
    Ended { verdict: Verdict },
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
    console: File,
    events: File,
    path: PathBuf,
    grown: watch::Sender<usize>,
}

struct State {
    records: Vec<Arc<Record>>,
    console_length: u64,
    ended: bool,
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

    /// The log that an earlier run of the farm left in `directory`, to be read or gone on with. A last line that was cut short is dropped.
    pub fn open(directory: &Path) -> io::Result<Arc<Self>> {
        let path = directory.join(CONSOLE);
        let appending = |path: &Path| File::options().read(true).append(true).open(path);
        let (console, events) = (appending(&path)?, appending(&directory.join(EVENTS))?);
        let (records, whole_bytes) = read_records(&std::fs::read(directory.join(EVENTS))?);
        events.set_len(whole_bytes)?;
        let ended = records.last().is_some_and(|record| matches!(record.event, JobEvent::Ended { .. }));
        let grown = watch::channel(records.len()).0;
        let state = State { records, console_length: console.metadata()?.len(), ended };
        Ok(Arc::new(JobLog { state: Mutex::new(state), console, events, path, grown }))
    }

    /// Appends one event. After [`JobEvent::Ended`] nothing more is taken.
    pub fn append(&self, event: JobEvent) {
        let mut state = self.lock();
        self.push(&mut state, event);
    }

    /// Appends bytes of the console. A full disk loses console bytes, not the job: the loss is noted in the log.
    pub fn append_console(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let offset = state.console_length;
        match (&self.console).write_all(bytes) {
            Ok(()) => {
                state.console_length += bytes.len() as u64;
                self.push(&mut state, JobEvent::Console { offset, length: bytes.len() });
            }
            Err(error) => {
                let text = format!("lost {} console bytes: cannot write {}: {error}", bytes.len(), self.path.display());
                self.push(&mut state, JobEvent::Note { text, severity: Severity::Error });
            }
        }
    }

    /// The bytes of a [`JobEvent::Console`] record.
    pub fn console_bytes(&self, offset: u64, length: usize) -> io::Result<Bytes> {
        // From the page cache as a rule: the bytes were written moments ago, or the operator asked for an old log.
        let mut buffer = vec![0; length];
        self.console.read_exact_at(&mut buffer, offset)?;
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

    fn push(&self, state: &mut State, event: JobEvent) {
        if state.ended {
            return;
        }
        state.ended = matches!(event, JobEvent::Ended { .. });
        let number = state.records.len();
        let record = Record { number, at: jiff::Timestamp::now(), event };
        if let Err(error) = self.keep(&record, state.ended) {
            tracing::error!(path = %self.path.display(), %error, "a job's event cannot be written; a restart will not know it");
        }
        state.records.push(Arc::new(record));
        self.grown.send_replace(number + 1);
    }

    /// One line; the last one is on the disk before it is told.
    fn keep(&self, record: &Record, last: bool) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        (&self.events).write_all(&line)?;
        if last { self.events.sync_all() } else { Ok(()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        log.append_console(b"hello\r\n");
        log.append(ended());
        log.append(note("after the end"));
        let mut follower = log.follow(0);
        let mut seen = Vec::new();
        while let Some(record) = follower.next().await {
            seen.push(record.event.clone());
        }
        assert_eq!(seen, [note("one"), JobEvent::Console { offset: 0, length: 7 }, ended()]);
        assert_eq!(log.console_bytes(0, 7).unwrap(), "hello\r\n");
    }

    #[test]
    fn a_log_is_read_back_after_a_crash_without_the_line_that_was_cut_short() {
        let directory = tempfile::tempdir().unwrap();
        let log = JobLog::create(directory.path()).unwrap();
        log.append(note("one"));
        log.append_console(b"hello\r\n");
        let before = log.records();
        drop(log);
        let path = directory.path().join(EVENTS);
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"number\":2,\"at\":");
        std::fs::write(&path, text).unwrap();
        let log = JobLog::open(directory.path()).unwrap();
        assert_eq!(log.records(), before);
        log.append_console(b"more");
        log.append(ended());
        assert_eq!(log.records()[2].event, JobEvent::Console { offset: 7, length: 4 });
        let again = JobLog::open(directory.path()).unwrap();
        assert_eq!(again.records(), log.records());
        again.append(note("after the end"));
        assert_eq!(again.records().len(), 4);
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
}
