//! A job's log on its way to a forge: masked, bounded, in a file, so that any piece of it can be sent again.
//!
//! ```text
//!  events ─► Teller ─► limit: the console stops there, the farm's own lines go on ─► Masker ─► file, its length and CRC-32
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use flate2::Crc;

use super::courier::Log;
use super::mask::Masker;
use super::trace::Teller;
use crate::job_log::{JobEvent, JobLog, Record, Severity};

/// The farm's own lines may be so many more: some thousands, which is a job that boots for days.
const LINES_BYTES_MAX: u64 = 1 << 20;

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
}

impl Spool {
    /// An empty one, over what was there.
    pub(super) fn create(path: &Path, teller: Teller, masker: Masker, bytes_max: u64) -> io::Result<Spool> {
        let file = File::options().create(true).truncate(true).read(true).write(true).open(path)?;
        Ok(Spool { file, teller, masker, crc: Crc::new(), bytes: 0, bytes_max, taken: 0, is_cut: false })
    }

    /// A line of the farm's own.
    pub(super) fn say(&mut self, severity: Severity, text: &str) {
        let line = self.teller.say(severity, text);
        self.take(&line, self.bytes_max + LINES_BYTES_MAX);
    }

    /// What an event of the job adds.
    pub(super) fn tell(&mut self, record: &Record, log: &JobLog) {
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
    }

    /// Whether the console is not in it to its end.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// How long it is.
    pub(super) fn log(&self) -> Log {
        Log { crc32: self.crc.sum(), length: self.bytes }
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
                self.bytes += bytes.len() as u64;
            }
            Err(error) => tracing::error!(%error, "a part of a job's log for its forge cannot be written"),
        }
    }
}
