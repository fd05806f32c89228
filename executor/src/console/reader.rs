//! One reader of a console, at its own pace.
//!
//! ```text
//!  next ─┬─ what it has not read is in memory ─► the next entry
//!        ├─ it is on disk ─► Replay: a file of bytes and its index, read side by side ─► bytes up to the next mark
//!        ├─ it is nowhere ─► Lost, so many bytes
//!        └─ there is nothing ─► waits
//! ```
//! A file that is removed while it is replayed is replayed to its end: it is open.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;

use super::log::{Found, Log, Progress, Since};
use super::marks::{Mark, What};
use super::store::marks_beside;

/// Bytes that are read from a file at once.
const REPLAY_BYTES: u64 = 64 * 1024;
/// Bytes of an index that are read at once: some hundred lines.
const MARKS_BYTES: usize = 8 * 1024;

/// The next thing of a console's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes as they came, and when (within 50 ms, if they come from a file).
    Said {
        /// Of the first byte.
        offset: u64,
        /// When they came.
        at: Timestamp,
        /// As they came.
        bytes: Bytes,
    },
    /// From here on nothing was heard.
    Away {
        /// Of the next byte.
        offset: u64,
        /// Since when.
        at: Timestamp,
        /// Why not.
        reason: String,
    },
    /// The console was heard again.
    Back {
        /// Of the next byte.
        offset: u64,
        /// Since when.
        at: Timestamp,
    },
    /// Bytes that are not in the log, or not any more.
    Lost {
        /// Of the first of them.
        offset: u64,
        /// How many.
        bytes: u64,
        /// Why.
        why: String,
    },
}

/// Reads a console's log, waiting for what is not there yet.
pub struct Reader {
    log: Arc<Log>,
    position: u64,
    /// The gaps up to this one were seen.
    number: u64,
    replay: Option<Replay>,
    grown: watch::Receiver<u64>,
    /// Of a lease's reader.
    progress: Option<Arc<Progress>>,
}

/// What there is for a reader now.
pub(super) enum Next {
    Piece(Piece),
    /// Ask again when the log has grown.
    NotYet(watch::Receiver<u64>),
    Over,
}

impl Reader {
    pub(super) fn new(
        log: Arc<Log>,
        position: u64,
        number: u64,
        grown: watch::Receiver<u64>,
        progress: Option<Arc<Progress>>,
    ) -> Reader {
        Reader { log, position, number, replay: None, grown, progress }
    }

    /// The next piece; waits for it. `None`: the console is no more.
    pub async fn next(&mut self) -> Option<Piece> {
        loop {
            match self.try_next() {
                Next::Piece(piece) => return Some(piece),
                Next::Over => return None,
                // The log, which tells of its growth, is held here.
                Next::NotYet(_) => self.grown.changed().await.ok()?,
            }
        }
    }

    /// The next piece if it is there. Files are read from the page cache as a rule: their bytes came moments ago, or somebody asked for old ones.
    pub fn now(&mut self) -> Option<Piece> {
        match self.try_next() {
            Next::Piece(piece) => Some(piece),
            Next::NotYet(_) | Next::Over => None,
        }
    }

    /// Goes on with what is said from now on.
    pub fn skip(&mut self) {
        *self = self.log.attach(Since::Now);
    }

    /// The offset of the byte that it reads next.
    pub fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn try_next(&mut self) -> Next {
        self.grown.borrow_and_update();
        loop {
            if let Some(piece) = self.read_the_file() {
                return Next::Piece(piece);
            }
            let piece = match self.log.find(self.position, self.number) {
                Found::Entry(entry) => {
                    self.replay = None;
                    if let super::tail::Entry::Gap(mark) = &entry {
                        self.number = mark.number;
                    }
                    let (piece, position) = entry.piece(self.position);
                    self.has_come_to(position);
                    piece
                }
                Found::File { start, until, path } => match self.open(start, until, &path) {
                    Ok(()) => continue,
                    Err(error) => self.lose(until, format!("it cannot be read: {error}")),
                },
                Found::Hole { until } => {
                    let why = self.log.why_lost(until);
                    self.lose(until, why)
                }
                Found::NotYet => return Next::NotYet(self.grown.clone()),
                Found::Over => return Next::Over,
            };
            return Next::Piece(piece);
        }
    }

    fn read_the_file(&mut self) -> Option<Piece> {
        let replay = self.replay.as_mut()?;
        match replay.next(self.position, &mut self.number) {
            Ok(Some(piece)) => {
                if let Piece::Said { offset, bytes, .. } = &piece {
                    let position = offset + bytes.len() as u64;
                    self.has_come_to(position);
                }
                Some(piece)
            }
            Ok(None) => None,
            Err(error) => {
                let until = replay.until;
                self.replay = None;
                Some(self.lose(until, format!("it cannot be read: {error}")))
            }
        }
    }

    fn open(&mut self, start: u64, until: u64, path: &Path) -> io::Result<()> {
        match &mut self.replay {
            Some(replay) if replay.start == start => replay.until = until,
            _ => self.replay = Some(Replay::open(start, until, path)?),
        }
        Ok(())
    }

    fn lose(&mut self, until: u64, why: String) -> Piece {
        let (offset, bytes) = (self.position, until.saturating_sub(self.position));
        self.has_come_to(until);
        Piece::Lost { offset, bytes, why }
    }

    fn has_come_to(&mut self, position: u64) {
        self.position = position;
        if let Some(progress) = &self.progress {
            self.log.has_read(progress, position);
        }
    }
}

/// One file of the log, being read.
struct Replay {
    start: u64,
    bytes: File,
    marks: Marks,
    /// The next mark, when it has been read already.
    mark: Option<Mark>,
    /// When what is read was said.
    at: Timestamp,
    /// So far there is something, as far as is known.
    until: u64,
}

impl Replay {
    fn open(start: u64, until: u64, path: &Path) -> io::Result<Replay> {
        let marks = Marks { file: File::open(marks_beside(path))?, read: 0, line: Vec::new() };
        Ok(Replay { start, bytes: File::open(path)?, marks, mark: None, at: Timestamp::UNIX_EPOCH, until })
    }

    /// What is at `position`; `None`: nothing more that is known of.
    fn next(&mut self, position: u64, number: &mut u64) -> io::Result<Option<Piece>> {
        loop {
            if self.mark.is_none() {
                self.mark = self.marks.next()?;
            }
            let Some(mark) = self.mark.take_if(|mark| mark.offset <= position) else { break };
            match mark.what {
                What::Said => self.at = mark.at,
                // Of before this reader's place, or seen in memory.
                What::Away { .. } | What::Back if mark.offset < position || mark.number <= *number => {}
                What::Away { reason } => {
                    *number = mark.number;
                    return Ok(Some(Piece::Away { offset: position, at: mark.at, reason }));
                }
                What::Back => {
                    *number = mark.number;
                    return Ok(Some(Piece::Back { offset: position, at: mark.at }));
                }
            }
        }
        let until = self.mark.as_ref().map_or(self.until, |mark| mark.offset.min(self.until));
        let length = until.saturating_sub(position).min(REPLAY_BYTES);
        if length == 0 {
            return Ok(None);
        }
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.bytes.read_exact_at(&mut bytes, position - self.start)?;
        Ok(Some(Piece::Said { offset: position, at: self.at, bytes: bytes.into() }))
    }
}

/// The lines of an index.
struct Marks {
    file: File,
    read: u64,
    line: Vec<u8>,
}

impl Marks {
    /// The next one that is whole. What cannot be read is passed over: the bytes count.
    fn next(&mut self) -> io::Result<Option<Mark>> {
        loop {
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.line.drain(..=end).collect();
                match Mark::parse(&line) {
                    Some(mark) => return Ok(Some(mark)),
                    None => continue,
                }
            }
            let mut buffer = [0; MARKS_BYTES];
            let length = self.file.read_at(&mut buffer, self.read)?;
            if length == 0 {
                return Ok(None);
            }
            self.read += length as u64;
            self.line.extend_from_slice(&buffer[..length]);
        }
    }
}
