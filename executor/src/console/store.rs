//! A console's log on disk: pieces of files, so that the old ones can go.
//!
//! ```text
//!  <state>/consoles/<name>/00000000000000000000.log     the bytes as they came: `cat`, `grep` and `less` read them
//!                          00000000000000000000.marks   when what was said (marks.rs)
//!                          00000000000008388608.log     the next piece; called by the offset of its first byte
//!                          00000000000008388608.marks
//!
//!  write ─► the newest piece ──an eighth of the size, or of the age──► a new one ─► pieces beyond size or age are removed
//! ```
//! Offsets never begin again: what is removed, or could not be kept, leaves a hole. Bytes are in the kernel's hands before any reader hears of
//! them, and their mark after them: a killed server leaves a log that is whole up to its last write, with one line of the index cut short at
//! worst. Files are open while the console talks; a farm has thousands of consoles that are silent.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::statvfs::fstatvfs;

use super::marks::{Mark, What};

/// How much of a console is kept, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of one console.
    pub bytes_max: u64,
    /// What is older goes.
    pub age_max: Duration,
}

impl Default for Limits {
    /// 64 MiB are some hundred jobs of a talkative Linux, or an hour and a half of a line at 115,200 baud that never pauses; with 100 consoles
    /// they fill 6.4 GB at most. A month is as long as somebody remembers what he wants to look for.
    fn default() -> Self {
        Limits { bytes_max: 64 << 20, age_max: Duration::from_secs(30 * 24 * 3600) }
    }
}

/// A log is removed by eighths: so much less than its size may be left of it.
const PIECES: u32 = 8;
/// Bytes that come within this time share a mark: a line that never pauses costs 20 marks a second, some 5 % of its bytes.
pub(super) const MARK_EVERY: Duration = Duration::from_millis(50);

/// So much of a disk is left to what cannot be lost, the leases and the ends of jobs: some kilobytes each time. A console that floods would
/// otherwise take all room that somebody makes, before the lease that ends its flood could be kept.
const LEFT_BYTES: u64 = 1 << 20;

/// The log of one console.
pub(super) struct Store {
    folder: PathBuf,
    limits: Limits,
    pieces: VecDeque<PieceFile>,
    open: Option<OpenPiece>,
    end: u64,
    number: u64,
}

/// One file of bytes, with its index beside it.
struct PieceFile {
    start: u64,
    length: u64,
    begun: Timestamp,
    /// When it was written last.
    written: Timestamp,
}

struct OpenPiece {
    bytes: File,
    marks: File,
    marks_length: u64,
    /// When the last mark was made.
    marked: Option<Timestamp>,
}

/// Where the bytes of an offset are.
pub(super) enum Place {
    /// In this piece; so many bytes of it are there.
    Piece { start: u64, until: u64, log: PathBuf },
    /// Nowhere: the next ones are at this offset.
    Hole { until: u64 },
    /// Beyond what is on disk.
    Beyond,
}

impl Store {
    /// The log in `folder`, which need not be there.
    pub(super) fn open(folder: PathBuf, limits: Limits) -> io::Result<Store> {
        let mut pieces: Vec<_> = match fs::read_dir(&folder) {
            Ok(entries) => entries.map(|entry| PieceFile::of(&entry?.path())).collect::<io::Result<Vec<_>>>()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        }
        .into_iter()
        .flatten()
        .collect();
        pieces.sort_by_key(|piece| piece.start);
        let end = pieces.last().map_or(0, |piece| piece.start + piece.length);
        let mut store = Store { folder, limits, pieces: pieces.into(), open: None, end, number: 0 };
        // A piece is named when it is made and its first mark comes a moment later: a kill in between leaves an older one as the last word.
        for piece in store.pieces.iter().rev() {
            if let Some(mark) = last_mark(&store.marks_path(piece.start))? {
                store.number = mark.number;
                break;
            }
        }
        Ok(store)
    }

    /// The offset of the next byte on disk.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The offset of the oldest byte that is kept.
    pub(super) fn first(&self) -> u64 {
        self.pieces.front().map_or(self.end, |piece| piece.start)
    }

    /// How many gaps it has had.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// When something was written last.
    pub(super) fn written(&self) -> Option<Timestamp> {
        self.pieces.back().map(|piece| piece.written)
    }

    /// The last thing that the index says; `None`: nothing.
    pub(super) fn last_mark(&self) -> io::Result<Option<Mark>> {
        self.pieces.back().map_or(Ok(None), |piece| last_mark(&self.marks_path(piece.start)))
    }

    /// Writes bytes. At an offset behind its end it leaves a hole.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8], at: Timestamp) -> io::Result<()> {
        self.make_piece_for(offset, at)?;
        let (Some(open), Some(piece)) = (&mut self.open, self.pieces.back_mut()) else {
            return Err(io::Error::other("no file is open"));
        };
        leave_room(&open.bytes)?;
        // At its place, not at the end: what was written in part is written over.
        open.bytes.write_all_at(bytes, offset - piece.start)?;
        let is_due = open.marked.is_none_or(|marked| is_older(marked, at, MARK_EVERY) || at < marked);
        if is_due {
            open.mark(&Mark { offset, at, number: self.number, what: What::Said })?;
        }
        piece.length = offset - piece.start + bytes.len() as u64;
        piece.written = at;
        self.end = offset + bytes.len() as u64;
        Ok(())
    }

    /// Writes a gap.
    pub(super) fn mark(&mut self, mark: &Mark) -> io::Result<()> {
        self.make_piece_for(mark.offset, mark.at)?;
        self.open.as_mut().ok_or_else(|| io::Error::other("no file is open"))?.mark(mark)?;
        self.number = mark.number;
        Ok(())
    }

    /// Lets go of its files until the next write.
    pub(super) fn close(&mut self) {
        self.open = None;
    }

    /// Removes what is too old or too much. The newest piece stays until it is too old as a whole.
    pub(super) fn prune(&mut self, now: Timestamp) {
        // The piece that is written next has room, too.
        let bytes_max = self.limits.bytes_max - self.piece_bytes();
        let mut bytes: u64 = self.pieces.iter().map(|piece| piece.length).sum();
        while let Some(piece) = self.pieces.front() {
            let is_too_much = bytes > bytes_max && self.pieces.len() > 1;
            if !is_too_much && !is_older(piece.written, now, self.limits.age_max) {
                return;
            }
            let (start, length) = (piece.start, piece.length);
            for path in [self.log_path(start), self.marks_path(start)] {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        tracing::warn!(path = %path.display(), %error, "an old piece of a console's log cannot be removed");
                    }
                    _ => {}
                }
            }
            bytes -= length;
            if self.pieces.len() == 1 {
                self.keep_place(now);
            }
            self.pieces.pop_front();
        }
    }

    /// Where a byte is.
    pub(super) fn find(&self, offset: u64) -> Place {
        if offset >= self.end {
            return Place::Beyond;
        }
        let after = self.pieces.partition_point(|piece| piece.start <= offset);
        let before = after.checked_sub(1).and_then(|index| self.pieces.get(index));
        if let Some(piece) = before.filter(|piece| offset < piece.start + piece.length) {
            let until = piece.start + piece.length;
            return Place::Piece { start: piece.start, until, log: self.log_path(piece.start) };
        }
        Place::Hole { until: self.pieces.get(after).map_or(self.end, |piece| piece.start) }
    }

    /// The offset from which on something was said at this time or later.
    pub(super) fn find_time(&self, at: Timestamp) -> io::Result<u64> {
        let after = self.pieces.partition_point(|piece| piece.begun <= at);
        let Some(piece) = after.checked_sub(1).and_then(|index| self.pieces.get(index)) else {
            return Ok(self.first());
        };
        let text = fs::read(self.marks_path(piece.start))?;
        let marks = text.split_inclusive(|byte| *byte == b'\n').filter_map(Mark::parse);
        // What shares a mark was said within its time.
        let mut said = marks.filter(|mark| mark.what == What::Said).filter(|mark| !is_older(mark.at, at, MARK_EVERY));
        Ok(said.next().map_or(piece.start + piece.length, |mark| mark.offset))
    }

    /// The newest piece, if it goes on at `offset` and has room; else a new one.
    fn make_piece_for(&mut self, offset: u64, at: Timestamp) -> io::Result<()> {
        let goes_on = self.pieces.back().is_some_and(|piece| {
            piece.start + piece.length == offset
                && piece.length < self.piece_bytes()
                && !is_older(piece.begun, at, self.limits.age_max / PIECES)
        });
        // Half a piece's own offset is the same file: nothing came between.
        let is_empty = self.pieces.back().is_some_and(|piece| piece.start == offset && piece.length == 0);
        if !goes_on && !is_empty {
            self.open = None;
            fs::create_dir_all(&self.folder)?;
            File::options().create(true).truncate(true).write(true).open(self.log_path(offset))?;
            File::options().create(true).truncate(true).write(true).open(self.marks_path(offset))?;
            self.pieces.push_back(PieceFile { start: offset, length: 0, begun: at, written: at });
            self.prune(at);
        }
        if self.open.is_none() {
            let start = self.pieces.back().map_or(offset, |piece| piece.start);
            self.open = Some(OpenPiece::open(&self.log_path(start), &self.marks_path(start))?);
        }
        Ok(())
    }

    /// A log of which nothing is left still knows its offset: an empty piece has it as its name.
    fn keep_place(&mut self, now: Timestamp) {
        self.open = None;
        let made = File::create(self.log_path(self.end)).and_then(|_| {
            let mark = Mark { offset: self.end, at: now, number: self.number, what: What::Said };
            fs::write(self.marks_path(self.end), mark.line())
        });
        match made {
            Ok(()) => self.pieces.push_back(PieceFile { start: self.end, length: 0, begun: now, written: now }),
            Err(error) => {
                tracing::warn!(folder = %self.folder.display(), %error, "where a console's log was cannot be kept")
            }
        }
    }

    fn piece_bytes(&self) -> u64 {
        self.limits.bytes_max / u64::from(PIECES)
    }

    fn log_path(&self, start: u64) -> PathBuf {
        self.folder.join(format!("{start:020}.log"))
    }

    fn marks_path(&self, start: u64) -> PathBuf {
        marks_beside(&self.log_path(start))
    }
}

/// The index of a piece.
pub(super) fn marks_beside(log: &Path) -> PathBuf {
    log.with_extension("marks")
}

impl PieceFile {
    /// `None`: something else lies there.
    fn of(path: &Path) -> io::Result<Option<PieceFile>> {
        let is_log = path.extension().is_some_and(|extension| extension == "log");
        let start = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        let (true, Some(start)) = (is_log, start) else { return Ok(None) };
        let about = path.metadata()?;
        let written = about.modified().ok().and_then(|at| Timestamp::try_from(at).ok()).unwrap_or_default();
        let begun = first_mark(&marks_beside(path))?.map_or(written, |mark| mark.at);
        Ok(Some(PieceFile { start, length: about.len(), begun, written }))
    }
}

impl OpenPiece {
    fn open(log: &Path, marks: &Path) -> io::Result<OpenPiece> {
        let open = |path| File::options().create(true).truncate(false).read(true).write(true).open(path);
        let (bytes, marks_file) = (open(log)?, open(marks)?);
        let text = fs::read(marks)?;
        // A last line that was cut short is written over.
        let marks_length = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end as u64 + 1);
        marks_file.set_len(marks_length)?;
        Ok(OpenPiece { bytes, marks: marks_file, marks_length, marked: None })
    }

    fn mark(&mut self, mark: &Mark) -> io::Result<()> {
        let line = mark.line();
        self.marks.write_all_at(line.as_bytes(), self.marks_length)?;
        self.marks_length += line.len() as u64;
        // What comes after a gap came at another time.
        self.marked = (mark.what == What::Said).then_some(mark.at);
        Ok(())
    }
}

fn is_older(before: Timestamp, now: Timestamp, than: Duration) -> bool {
    now.duration_since(before).as_nanos() >= i128::try_from(than.as_nanos()).unwrap_or(i128::MAX)
}

fn first_mark(path: &Path) -> io::Result<Option<Mark>> {
    let mut head = [0; 1024];
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = file.read_at(&mut head, 0)?;
    Ok(head[..length].split_inclusive(|byte| *byte == b'\n').next().and_then(Mark::parse))
}

/// Of the last 4 KiB, which hold some lines: one is 600 bytes long at most.
fn last_mark(path: &Path) -> io::Result<Option<Mark>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut tail = [0; 4096];
    let from = file.metadata()?.len().saturating_sub(tail.len() as u64);
    let length = file.read_at(&mut tail, from)?;
    Ok(tail[..length].split_inclusive(|byte| *byte == b'\n').rev().find_map(Mark::parse))
}

/// An error when nothing of its disk is left but what others need.
fn leave_room(file: &File) -> io::Result<()> {
    let space = fstatvfs(file)?;
    // The type differs between platforms.
    #[allow(clippy::unnecessary_cast)]
    let left = (space.blocks_available() as u64).saturating_mul(space.fragment_size() as u64);
    if left < LEFT_BYTES {
        let why = "the last mebibyte of its disk is left to leases and jobs";
        return Err(io::Error::new(io::ErrorKind::StorageFull, why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_763_000_000 + second).unwrap()
    }

    fn limits(bytes_max: u64) -> Limits {
        Limits { bytes_max, age_max: Duration::from_secs(800) }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_log_goes_on_at_its_offset_after_a_restart_and_drops_a_mark_that_was_cut_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("left");
        let mut store = Store::open(path.clone(), limits(8000)).unwrap();
        assert_eq!((store.first(), store.end(), store.number()), (0, 0, 0));
        store.write(0, b"hello ", at(0)).unwrap();
        store.mark(&Mark { offset: 6, at: at(1), number: 1, what: What::Back }).unwrap();
        drop(store);
        let marks = path.join("00000000000000000000.marks");
        fs::write(&marks, [fs::read(&marks).unwrap(), b"6 2026-11".to_vec()].concat()).unwrap();
        let mut store = Store::open(path.clone(), limits(8000)).unwrap();
        assert_eq!((store.first(), store.end(), store.number()), (0, 6, 1));
        store.write(6, b"world", at(2)).unwrap();
        assert_eq!(fs::read(path.join("00000000000000000000.log")).unwrap(), b"hello world");
        assert_eq!(
            fs::read_to_string(marks).unwrap(),
            "0 2025-11-13T02:13:20.000000Z 0 said\n6 2025-11-13T02:13:21.000000Z 1 back\n6 2025-11-13T02:13:22.000000Z 1 said\n"
        );
    }

    #[test]
    fn old_pieces_go_by_size_and_by_age_and_offsets_never_begin_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path().to_owned(), limits(80)).unwrap();
        for number in 0..20 {
            store.write(number * 10, &[b'x'; 10], at(0)).unwrap();
        }
        assert_eq!((store.first(), store.end()), (120, 200), "80 bytes are kept");
        assert!(matches!(store.find(0), Place::Hole { until: 120 }));
        assert!(matches!(store.find(125), Place::Piece { start: 120, until: 130, .. }));
        assert!(matches!(store.find(200), Place::Beyond));
        store.prune(at(900));
        assert_eq!((store.first(), store.end()), (200, 200));
        assert_eq!(names(folder.path()), ["00000000000000000200.log", "00000000000000000200.marks"]);
        let mut store = Store::open(folder.path().to_owned(), limits(80)).unwrap();
        assert_eq!((store.first(), store.end()), (200, 200), "an empty log knows its offset");
        store.write(200, b"on", at(901)).unwrap();
        assert_eq!(names(folder.path()), ["00000000000000000200.log", "00000000000000000200.marks"]);
        assert_eq!(store.end(), 202);
    }

    #[test]
    fn what_could_not_be_kept_is_a_hole() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path().to_owned(), limits(8000)).unwrap();
        store.write(0, b"before", at(0)).unwrap();
        store.write(100, b"after", at(1)).unwrap();
        assert!(matches!(store.find(6), Place::Hole { until: 100 }));
        assert!(matches!(store.find(100), Place::Piece { start: 100, until: 105, .. }));
        let again = Store::open(folder.path().to_owned(), limits(8000)).unwrap();
        assert!(matches!(again.find(50), Place::Hole { until: 100 }));
        assert_eq!(again.end(), 105);
    }

    #[test]
    fn a_time_is_found_by_the_marks() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path().to_owned(), limits(80)).unwrap();
        for number in 0..6 {
            store.write(number * 5, b"hello", at(number as i64 * 10)).unwrap();
        }
        let found = |seconds| store.find_time(at(seconds)).unwrap();
        assert_eq!(
            [found(-5), found(0), found(1), found(10), found(41), found(50), found(51)],
            [0, 0, 5, 5, 25, 25, 30]
        );
    }
}
