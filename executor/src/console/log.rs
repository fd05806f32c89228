//! The log of one console: what it said, from the first day on, for any number of readers at their own pace.
//!
//! ```text
//!  hub ── said, away, back ──► Tail (memory) ──► Store (disk)
//!                                 │ 64 KiB        │ all that is kept          full: 1 MiB waits, then the oldest is lost, and that is said
//!                                 └───────┬───────┘
//!  Reader 1 … n ◄── from the memory, or from the files for those that are behind
//!
//!  a lease's reader that is 1 MiB behind holds the console up, for 10 s at most; nobody else's does
//! ```
//! The writer does not know its other readers: one that never reads costs nothing. What it has not read yet may be removed meanwhile, as
//! old pieces are; it is told how much.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{Notify, watch};

use super::marks::{Mark, What};
use super::reader::{Piece, Reader};
use super::store::{Limits, Place, Store};
use super::tail::{Entry, Tail, WAITING_BYTES_MAX};

/// So far may a lease's reader be behind before the console waits for it: a job's patterns are searched in 64 KiB at once.
const BEHIND_BYTES_MAX: u64 = 1 << 20;
/// For so long: a job that fetches its artifacts does not read yet. From then on it is served from the file, as everybody else.
const HOLD_UP_MAX: Duration = Duration::from_secs(10);
/// Files that nobody wrote to for so long are closed.
const CLOSE_AFTER: Duration = Duration::from_secs(10);

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// With what is said from now on.
    Now,
    /// With the byte of this offset.
    Offset(u64),
    /// With what was said at this time.
    Time(Timestamp),
    /// With so many bytes before now.
    Last(u64),
}

/// Whether a console is heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Since when.
    Open(Timestamp),
    /// Since when, and why not.
    Away(Timestamp, String),
}

/// What a console's log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The offset of the oldest byte that is kept.
    pub first: u64,
    /// The offset of the next byte.
    pub end: u64,
    /// When something was kept last.
    pub written: Option<Timestamp>,
    /// Why it cannot be kept now, and what waits or is lost by that.
    pub refused: Option<String>,
}

/// The log of one console.
pub(super) struct Log {
    name: String,
    inner: Mutex<Inner>,
    grown: watch::Sender<u64>,
    caught_up: Notify,
}

struct Inner {
    tail: Tail,
    store: Store,
    state: State,
    end: u64,
    number: u64,
    /// What the disk said last, while something waits.
    refused: Option<String>,
    lost_bytes: u64,
    leases: Vec<Weak<Progress>>,
    is_over: bool,
}

/// How far a lease's reader is.
pub(super) struct Progress {
    position: AtomicU64,
    /// It held the console up for too long.
    is_cut: AtomicBool,
}

/// What a reader finds.
pub(super) enum Found {
    Entry(Entry),
    /// In a file.
    File {
        start: u64,
        until: u64,
        path: PathBuf,
    },
    /// Not kept, up to this offset.
    Hole {
        until: u64,
    },
    NotYet,
    Over,
}

impl Log {
    /// The log in `folder`, gone on with if there is one. The console is away until it is opened.
    pub(super) fn open(name: &str, folder: PathBuf, limits: Limits, now: Timestamp) -> io::Result<Arc<Log>> {
        let mut store = Store::open(folder, limits)?;
        let mut state = State::Away(now, "it has not been opened yet".into());
        let mut tail = Tail::default();
        let (end, mut number) = (store.end(), store.number());
        if let Some(stopped) = store.written() {
            // Whatever ended us said nothing: the gap begins with the last thing that is known.
            match store.last_mark()? {
                Some(Mark { what: What::Away { .. }, .. }) => {}
                Some(_) | None => {
                    number += 1;
                    let what = What::Away { reason: "the farm was not running".into() };
                    tail.push(Entry::Gap(Mark { offset: end, at: stopped, number, what }));
                }
            }
            state = State::Away(stopped, "the farm was not running".into());
            store.prune(now);
        }
        let inner =
            Inner { tail, store, state, end, number, refused: None, lost_bytes: 0, leases: Vec::new(), is_over: false };
        let log = Log {
            name: name.to_owned(),
            inner: Mutex::new(inner),
            grown: watch::channel(0).0,
            caught_up: Notify::new(),
        };
        log.write(&mut log.lock());
        Ok(Arc::new(log))
    }

    /// Bytes came.
    pub(super) fn said(&self, bytes: Bytes, at: Timestamp) {
        let mut inner = self.lock();
        let offset = inner.end;
        if !inner.is_over {
            inner.end += bytes.len() as u64;
        }
        self.push(&mut inner, Entry::Said { offset, at, bytes });
    }

    /// It is heard from now on.
    pub(super) fn is_open(&self, at: Timestamp) {
        let mut inner = self.lock();
        if matches!(inner.state, State::Away(..)) {
            inner.state = State::Open(at);
            // The first opening of all ends no gap.
            if inner.number > 0 {
                self.gap(&mut inner, at, What::Back);
            }
        }
    }

    /// It is not heard from now on. Said once; a later reason is kept for those who look.
    pub(super) fn is_away(&self, at: Timestamp, reason: &str) {
        let mut inner = self.lock();
        match &mut inner.state {
            State::Away(_, why) => reason.clone_into(why),
            State::Open(_) => {
                inner.state = State::Away(at, reason.to_owned());
                self.gap(&mut inner, at, What::Away { reason: reason.to_owned() });
            }
        }
    }

    /// Nothing comes any more.
    pub(super) fn is_over(&self, at: Timestamp, reason: &str) {
        self.is_away(at, reason);
        let mut inner = self.lock();
        self.write(&mut inner);
        inner.is_over = true;
        inner.store.close();
        self.grown.send_modify(|version| *version += 1);
    }

    pub(super) fn state(&self) -> State {
        self.lock().state.clone()
    }

    pub(super) fn extent(&self) -> Extent {
        let inner = self.lock();
        let refused = inner.refused.as_ref().map(|error| match inner.lost_bytes {
            0 => format!("{} bytes wait for the disk: {error}", inner.tail.waiting_bytes()),
            lost => format!("{lost} bytes are lost: {error}"),
        });
        let first = if inner.store.first() == inner.store.end() { inner.tail.first() } else { None };
        let first = first.unwrap_or(inner.store.first());
        Extent { first, end: inner.end, written: inner.store.written(), refused }
    }

    /// A reader from somewhere on.
    pub(super) fn attach(self: &Arc<Self>, since: Since) -> Reader {
        let inner = self.lock();
        let position = match since {
            Since::Now => inner.end,
            Since::Offset(offset) => offset.min(inner.end),
            Since::Last(bytes) => inner.end.saturating_sub(bytes).max(inner.store.first().min(inner.end)),
            // A time before all others, if the index cannot be read.
            Since::Time(at) => inner.store.find_time(at).unwrap_or(0).min(inner.end),
        };
        let number = if position == inner.end { inner.number } else { 0 };
        Reader::new(Arc::clone(self), position, number, self.grown.subscribe(), None)
    }

    /// A lease's reader, from `position` on, or from now on; the error: the console is away.
    pub(super) fn attach_lease(self: &Arc<Self>, position: Option<u64>) -> Result<Reader, String> {
        let mut inner = self.lock();
        if let State::Away(_, reason) = &inner.state {
            return Err(reason.clone());
        }
        let position = position.unwrap_or(inner.end).min(inner.end);
        let progress = Arc::new(Progress { position: AtomicU64::new(position), is_cut: AtomicBool::new(false) });
        inner.leases.retain(|lease| lease.strong_count() > 0);
        inner.leases.push(Arc::downgrade(&progress));
        // The gaps of before are told already.
        let number = inner.number;
        Ok(Reader::new(Arc::clone(self), position, number, self.grown.subscribe(), Some(progress)))
    }

    /// Returns when no lease's reader is too far behind, or has been for too long.
    pub(super) async fn room(&self) {
        let began = Instant::now();
        loop {
            let notified = self.caught_up.notified();
            let Some(slowest) = self.slowest() else { return };
            let left = HOLD_UP_MAX.saturating_sub(began.elapsed());
            if left.is_zero() {
                slowest.is_cut.store(true, Ordering::Relaxed);
                tracing::warn!(
                    console = self.name,
                    "whoever holds the console's lease does not keep up with it; it is not waited for any more"
                );
                continue;
            }
            let _ = tokio::time::timeout(left, notified).await;
        }
    }

    fn slowest(&self) -> Option<Arc<Progress>> {
        let inner = self.lock();
        let leases = inner.leases.iter().filter_map(Weak::upgrade);
        leases
            .filter(|lease| !lease.is_cut.load(Ordering::Relaxed))
            .find(|lease| inner.end - lease.position.load(Ordering::Relaxed).min(inner.end) > BEHIND_BYTES_MAX)
    }

    /// From time to time: writes what waits, removes what is too old, closes what is not used.
    pub(super) fn look_after(&self, now: Timestamp) {
        let mut inner = self.lock();
        if inner.is_over {
            return;
        }
        self.write(&mut inner);
        inner.store.prune(now);
        let is_idle = |written: Timestamp| {
            now.duration_since(written).as_nanos() > i128::try_from(CLOSE_AFTER.as_nanos()).unwrap_or(0)
        };
        if inner.store.written().is_none_or(is_idle) {
            inner.store.close();
        }
    }

    /// What comes after a reader's place.
    pub(super) fn find(&self, position: u64, number: u64) -> Found {
        let inner = self.lock();
        if inner.tail.first().is_some_and(|first| first <= position) || position >= inner.end {
            return match inner.tail.after(position, number) {
                Some(entry) => Found::Entry(entry.clone()),
                None if inner.is_over => Found::Over,
                None => Found::NotYet,
            };
        }
        match inner.store.find(position) {
            Place::Piece { start, until, log } => Found::File { start, until, path: log },
            Place::Hole { until } => Found::Hole { until },
            Place::Beyond => Found::Hole { until: inner.tail.first().unwrap_or(inner.end) },
        }
    }

    /// Why there is a hole that ends at this offset.
    pub(super) fn why_lost(&self, until: u64) -> String {
        let inner = self.lock();
        let is_old = inner.store.first() == until && inner.lost_bytes == 0;
        if is_old { "they are no longer kept".into() } else { "the disk was full".into() }
    }

    fn gap(&self, inner: &mut Inner, at: Timestamp, what: What) {
        inner.number += 1;
        let mark = Mark { offset: inner.end, at, number: inner.number, what };
        self.push(inner, Entry::Gap(mark));
    }

    fn push(&self, inner: &mut Inner, entry: Entry) {
        // Another log may be open in the same folder by now.
        if inner.is_over {
            return;
        }
        let lost = inner.tail.push(entry);
        self.write(inner);
        if lost > 0 {
            if inner.lost_bytes == 0 {
                let error = inner.refused.as_deref().unwrap_or_default();
                tracing::error!(
                    console = self.name,
                    error,
                    "the disk has been full for {WAITING_BYTES_MAX} bytes of a console: its log has a hole from here on"
                );
            }
            inner.lost_bytes += lost;
        }
        self.grown.send_modify(|version| *version += 1);
    }

    fn write(&self, inner: &mut Inner) {
        while let Some(entry) = inner.tail.unwritten() {
            let written = match entry {
                Entry::Said { offset, at, bytes } => inner.store.write(*offset, bytes, *at),
                // A console that never said anything needs no files.
                Entry::Gap(mark) if inner.store.written().is_none() && mark.offset == 0 => Ok(()),
                Entry::Gap(mark) => inner.store.mark(mark),
            };
            match written {
                Ok(()) => inner.tail.is_written(),
                Err(error) => {
                    if inner.refused.is_none() {
                        tracing::error!(console = self.name, %error, "a console's log cannot be written; it waits for room");
                    }
                    inner.refused = Some(error.to_string());
                    return;
                }
            }
        }
        if inner.refused.take().is_some() {
            tracing::info!(console = self.name, lost_bytes = inner.lost_bytes, "the console's log is written again");
            inner.lost_bytes = 0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lease's reader has come so far.
    pub(super) fn has_read(&self, progress: &Progress, position: u64) {
        progress.position.store(position, Ordering::Relaxed);
        self.caught_up.notify_waiters();
    }
}

impl Entry {
    /// For a reader at `position`.
    pub(super) fn piece(self, position: u64) -> (Piece, u64) {
        match self {
            Entry::Said { offset, at, bytes } => {
                let skipped = usize::try_from(position.saturating_sub(offset)).unwrap_or(usize::MAX).min(bytes.len());
                let bytes = bytes.slice(skipped..);
                let end = position + bytes.len() as u64;
                (Piece::Said { offset: position, at, bytes }, end)
            }
            Entry::Gap(Mark { offset, at, what: What::Away { reason }, .. }) => {
                (Piece::Away { offset, at, reason }, position)
            }
            Entry::Gap(Mark { offset, at, what: What::Back | What::Said, .. }) => {
                (Piece::Back { offset, at }, position)
            }
        }
    }
}
