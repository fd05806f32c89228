//! Everything a job said, in order, for any number of readers at their own pace.
//!
//! ```text
//!  runner ── append ──► records (memory) + console bytes (file) ──► Follower 1 … n (each from its own position)
//! ```
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

/// One thing that happened in a job. Closed on purpose: every audience (console framing, CLI, JSON) matches it whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum JobEvent {
    /// Waiting for a DUT: the place in the queue (1 is next) and, per candidate, why not now.
    Queued { place: usize, reasons: Vec<String> },
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
    /// A new log whose console bytes are kept in `directory/console.log`.
    pub fn create(directory: &Path) -> io::Result<Arc<Self>> {
        std::fs::create_dir_all(directory)?;
        let path = directory.join("console.log");
        let console = File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
        let state = State { records: Vec::new(), console_length: 0, ended: false };
        Ok(Arc::new(JobLog { state: Mutex::new(state), console, path, grown: watch::channel(0).0 }))
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
        state.records.push(Arc::new(Record { number, at: jiff::Timestamp::now(), event }));
        self.grown.send_replace(number + 1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
