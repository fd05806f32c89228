//! A job's log on its way to a forge: masked, bounded, in a file, so that any piece of it can be sent again.
//!
//! ```text
//!  events ─► Teller ─► limit: the console stops there, the farm's own lines go on ─► Masker ─► file, its length and CRC-32,
//!                                                                                              its rows and their times
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use flate2::Crc;
use jiff::Timestamp;

use super::courier::Log;
use super::mask::Masker;
use super::trace::Teller;
use crate::job_log::{JobEvent, JobLog, Record, Severity};

/// The farm's own lines may be so many more: some thousands, which is a job that boots for days.
const LINES_BYTES_MAX: u64 = 1 << 20;

/// From one known place in the file to the next: a row is found by reading so much at most.
const MARK_BYTES: u64 = 64 * 1024;
/// Of one row; Gitea's server cuts them there (MaxLineSize of modules/actions/log.go).
const ROW_BYTES_MAX: usize = 64 * 1024;

/// A row of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// When the first of its bytes came, to the second.
    pub at: Timestamp,
    pub text: String,
}

/// Where a row begins.
#[derive(Clone, Copy)]
struct Mark {
    row: u64,
    offset: u64,
    at: Timestamp,
}

/// The log of one job.
pub(super) struct Spool {
    file: File,
    teller: Teller,
    masker: Masker,
    crc: Crc,
    bytes: u64,
    bytes_max: u64,
    /// How much came, before it was masked.
    taken: u64,
    is_cut: bool,
    /// How many rows are whole.
    rows: u64,
    /// Whether the next byte is the first of one.
    begins_row: bool,
    /// Never empty: the first is where the file begins.
    marks: Vec<Mark>,
    /// When what is written now was said.
    now: Timestamp,
    end: End,
}

/// Whether more comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Reached,
}

impl Spool {
    /// An empty one, over what was there.
    pub(super) fn create(path: &Path, teller: Teller, masker: Masker, bytes_max: u64) -> io::Result<Spool> {
        let file = File::options().create(true).truncate(true).read(true).write(true).open(path)?;
        let (crc, now, end) = (Crc::new(), Timestamp::now(), End::Open);
        let marks = vec![Mark { row: 0, offset: 0, at: now }];
        Ok(Spool {
            file,
            teller,
            masker,
            crc,
            bytes: 0,
            bytes_max,
            taken: 0,
            is_cut: false,
            rows: 0,
            begins_row: true,
            marks,
            now,
            end,
        })
    }

    /// A line of the farm's own.
    pub(super) fn say(&mut self, severity: Severity, text: &str) {
        let line = self.teller.say(severity, text);
        self.take(&line, self.bytes_max + LINES_BYTES_MAX);
    }

    /// What an event of the job adds.
    pub(super) fn tell(&mut self, record: &Record, log: &JobLog) {
        self.now = record.at;
        let JobEvent::Console { offset, length } = record.event else {
            let lines = self.teller.tell(record, b"");
            return self.take(&lines, self.bytes_max + LINES_BYTES_MAX);
        };
        if self.is_cut {
            return;
        }
        match log.console_bytes(offset, length) {
            Ok(console) if self.taken + console.len() as u64 > self.bytes_max => {
                self.is_cut = true;
                let text = format!(
                    "The log has more than {} KiB: what else the console says is not shown; all of it is in the artifact wharf/console.log",
                    self.bytes_max >> 10
                );
                self.say(Severity::Warning, &text);
            }
            Ok(console) => {
                let bytes = self.teller.tell(record, &console);
                self.take(&bytes, self.bytes_max);
            }
            Err(error) => tracing::warn!(%error, offset, length, "cannot read back console bytes"),
        }
    }

    /// Nothing more comes: what was held back is written.
    pub(super) fn finish(&mut self) {
        let rest = self.masker.finish();
        self.write(&rest);
        self.end = End::Reached;
    }

    /// Whether the console is not in it to its end.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// How long it is.
    pub(super) fn log(&self) -> Log {
        Log { crc32: self.crc.sum(), length: self.bytes }
    }

    /// How many rows can be told of: once nothing more comes, all but the last one, which goes with the last word.
    pub(super) fn rows_before_last(&self) -> u64 {
        if self.end == End::Reached { self.rows.saturating_sub(1) } else { self.rows }
    }

    /// At most so many rows from this one on, and no more than `bytes_max` of them but the first.
    pub(super) fn rows(&self, from: u64, rows_max: u64, bytes_max: usize) -> io::Result<Vec<Row>> {
        let index = self.marks.partition_point(|mark| mark.row <= from).saturating_sub(1);
        let Some(mark) = self.marks.get(index) else { return Ok(Vec::new()) };
        let mut place = FileRows { file: &self.file, offset: mark.offset, end: self.bytes, held: Vec::new() };
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for number in mark.row..self.rows.min(from.saturating_add(rows_max)) {
            let text = place.next()?;
            if number < from {
                continue;
            }
            bytes += text.len();
            if bytes > bytes_max && !rows.is_empty() {
                break;
            }
            let mark = self.marks.partition_point(|mark| mark.row <= number).saturating_sub(1);
            rows.push(Row { at: self.marks[mark].at, text });
        }
        Ok(rows)
    }

    /// A piece of it.
    pub(super) fn piece(&self, from: u64, length: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut bytes, from)?;
        Ok(bytes)
    }

    fn take(&mut self, bytes: &[u8], bytes_max: u64) {
        if self.taken + bytes.len() as u64 <= bytes_max {
            self.taken += bytes.len() as u64;
            let masked = self.masker.push(bytes);
            self.write(&masked);
        }
    }

    /// What a full disk does not take is not in the log: its length and its checksum are those of what is there.
    fn write(&mut self, bytes: &[u8]) {
        match self.file.write_all_at(bytes, self.bytes) {
            Ok(()) => {
                self.crc.update(bytes);
                self.mark(bytes);
                self.bytes += bytes.len() as u64;
            }
            Err(error) => tracing::error!(%error, "a part of a job's log for its forge cannot be written"),
        }
    }

    /// Counts rows; notes where one begins once a second, and after so many bytes.
    fn mark(&mut self, bytes: &[u8]) {
        for (offset, byte) in (self.bytes..).zip(bytes) {
            let last = self.marks[self.marks.len() - 1];
            let is_due = last.at.as_second() != self.now.as_second() || offset - last.offset >= MARK_BYTES;
            if self.begins_row && is_due {
                self.marks.push(Mark { row: self.rows, offset, at: self.now });
            }
            self.begins_row = *byte == b'\n';
            self.rows += u64::from(self.begins_row);
        }
    }
}

/// Rows of the file, one after the other.
struct FileRows<'a> {
    file: &'a File,
    offset: u64,
    end: u64,
    held: Vec<u8>,
}

impl FileRows<'_> {
    /// The next one, without its end, as text that is no longer than rows may be.
    fn next(&mut self) -> io::Result<String> {
        let mut searched = 0;
        let length = loop {
            if let Some(found) = self.held[searched..].iter().position(|byte| *byte == b'\n') {
                break searched + found;
            }
            searched = self.held.len();
            let more = usize::try_from(MARK_BYTES.min(self.end - self.offset)).map_err(io::Error::other)?;
            if more == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let start = self.held.len();
            self.held.resize(start + more, 0);
            self.file.read_exact_at(&mut self.held[start..], self.offset)?;
            self.offset += more as u64;
        };
        let row: Vec<u8> = self.held.drain(..=length).collect();
        let row = row.trim_ascii_end();
        Ok(String::from_utf8_lossy(&row[..row.len().min(ROW_BYTES_MAX)]).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forge::trace::Sections;

    fn spool(folder: &Path) -> Spool {
        let masker = Masker::new(["hunter2!".to_owned()], &[]);
        Spool::create(&folder.join("log"), Teller::new(Sections::Unknown, ""), masker, 1 << 20).unwrap()
    }

    fn texts(rows: &[Row]) -> Vec<&str> {
        rows.iter().map(|row| row.text.as_str()).collect()
    }

    #[test]
    fn rows_are_whole_masked_and_found_from_any_of_them_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = spool(folder.path());
        for piece in [&b"one\r\ntwo hun"[..], b"ter2!\nthree\n", b"\xffour"] {
            spool.take(piece, 1 << 20);
        }
        assert_eq!(spool.rows_before_last(), 3);
        assert_eq!(texts(&spool.rows(0, 9, 1000).unwrap()), ["one", "two [MASKED]", "three"]);
        assert_eq!(texts(&spool.rows(1, 1, 1000).unwrap()), ["two [MASKED]"]);
        assert_eq!(texts(&spool.rows(1, 9, 3).unwrap()), ["two [MASKED]"], "the first goes whatever its length");
        spool.finish();
        assert_eq!(spool.rows_before_last(), 2);
    }

    #[test]
    fn rows_have_the_times_at_which_they_were_said_and_long_ones_are_cut() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = spool(folder.path());
        for second in 10..13 {
            spool.now = Timestamp::from_second(second).unwrap();
            spool.take(format!("{second}\n{}\n", "x".repeat(100_000)).as_bytes(), 1 << 20);
        }
        let rows = spool.rows(2, 9, 1 << 20).unwrap();
        let of = |row: &Row| (row.at.as_second(), row.text.len());
        assert_eq!(rows.iter().map(of).collect::<Vec<_>>(), [(11, 2), (11, 65_536), (12, 2), (12, 65_536)]);
    }
}
