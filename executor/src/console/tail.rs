//! What a console said last, in memory: for the readers that keep up, and for the disk while it is full. ◆
//!
//! ```text
//!  push ─► │ said │ said │ away │ back │ said │            on disk: goes when there is more than 64 KiB
//!          └──────────── on disk ─────┴ not yet ┘          not yet: goes when there is more than 1 MiB, and is lost
//! ```

use std::collections::VecDeque;

use bytes::Bytes;
use jiff::Timestamp;

use super::marks::Mark;

/// Bytes kept for readers that are a moment behind: half a second of a flood of 100 KB/s, five seconds of a line at 115,200 baud. Whoever is
/// later reads the file.
const BYTES_MAX: usize = 64 * 1024;
/// And in so many pieces, of some 100 bytes each: a console that says a byte at a time has no more memory than others.
const ENTRIES_MAX: usize = 1024;
/// What waits for a disk that is full: a minute and a half of a line at 115,200 baud.
pub(super) const WAITING_BYTES_MAX: usize = 1 << 20;
/// And in so many pieces.
const WAITING_ENTRIES_MAX: usize = 64 * 1024;

/// One thing that the console said, or that befell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Bytes.
    Said { offset: u64, at: Timestamp, bytes: Bytes },
    /// A gap's beginning or end.
    Gap(Mark),
}

/// The last entries, in order.
#[derive(Debug, Default)]
pub(super) struct Tail {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// So many of the last ones are not on disk.
    waiting: usize,
    waiting_bytes: usize,
}

impl Tail {
    /// Takes an entry that is not on disk yet. Gives the number of bytes that are lost by it: the disk has been full for too long.
    pub(super) fn push(&mut self, entry: Entry) -> u64 {
        self.bytes += entry.length();
        self.waiting += 1;
        self.waiting_bytes += entry.length();
        self.entries.push_back(entry);
        let mut lost = 0;
        while self.waiting > WAITING_ENTRIES_MAX || (self.waiting_bytes > WAITING_BYTES_MAX && self.waiting > 1) {
            self.forget_written(0, 0);
            let Some(entry) = self.entries.pop_front() else { break };
            self.bytes -= entry.length();
            self.waiting -= 1;
            self.waiting_bytes -= entry.length();
            lost += entry.length() as u64;
        }
        lost
    }

    /// The first entry that is not on disk.
    pub(super) fn unwritten(&self) -> Option<&Entry> {
        self.entries.get(self.entries.len() - self.waiting).filter(|_| self.waiting > 0)
    }

    /// That one is on disk now.
    pub(super) fn is_written(&mut self) {
        if let Some(entry) = self.unwritten() {
            self.waiting_bytes -= entry.length();
            self.waiting -= 1;
        }
        self.forget_written(BYTES_MAX, ENTRIES_MAX);
    }

    /// How many bytes wait for the disk.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// The offset of the first byte that is here; `None`: nothing is.
    pub(super) fn first(&self) -> Option<u64> {
        self.entries.front().map(Entry::offset)
    }

    /// The first entry that a reader at `position` has not read, who has seen the gaps up to `number`.
    pub(super) fn after(&self, position: u64, number: u64) -> Option<&Entry> {
        let is_read = |entry: &Entry| match entry {
            Entry::Said { offset, bytes, .. } => offset + bytes.len() as u64 <= position,
            Entry::Gap(mark) => mark.offset < position || mark.number <= number,
        };
        self.entries.get(self.entries.partition_point(is_read))
    }

    fn forget_written(&mut self, bytes_max: usize, entries_max: usize) {
        while self.entries.len() > self.waiting && (self.bytes > bytes_max || self.entries.len() > entries_max) {
            let Some(entry) = self.entries.pop_front() else { return };
            self.bytes -= entry.length();
        }
    }
}

impl Entry {
    /// Of its first byte.
    pub(super) fn offset(&self) -> u64 {
        match self {
            Entry::Said { offset, .. } => *offset,
            Entry::Gap(mark) => mark.offset,
        }
    }

    fn length(&self) -> usize {
        match self {
            Entry::Said { bytes, .. } => bytes.len(),
            Entry::Gap(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::marks::What;

    fn said(offset: u64, length: usize) -> Entry {
        Entry::Said { offset, at: Timestamp::UNIX_EPOCH, bytes: vec![b'x'; length].into() }
    }

    fn gap(offset: u64, number: u64) -> Entry {
        Entry::Gap(Mark { offset, at: Timestamp::UNIX_EPOCH, number, what: What::Back })
    }

    #[test]
    fn a_reader_finds_what_it_has_not_read() {
        let mut tail = Tail::default();
        for entry in [said(10, 5), gap(15, 1), gap(15, 2), said(15, 5)] {
            assert_eq!(tail.push(entry), 0);
        }
        assert_eq!(tail.first(), Some(10));
        assert_eq!(tail.after(10, 0), Some(&said(10, 5)));
        assert_eq!(tail.after(12, 0), Some(&said(10, 5)), "in the middle of an entry");
        assert_eq!(tail.after(15, 0), Some(&gap(15, 1)));
        assert_eq!(tail.after(15, 1), Some(&gap(15, 2)));
        assert_eq!(tail.after(15, 2), Some(&said(15, 5)));
        assert_eq!(tail.after(20, 2), None);
    }

    #[test]
    fn what_is_on_disk_goes_and_what_is_not_stays() {
        let mut tail = Tail::default();
        for number in 0..100 {
            assert_eq!(tail.push(said(number * 1024, 1024)), 0);
        }
        assert_eq!((tail.first(), tail.waiting_bytes()), (Some(0), 100 * 1024));
        while tail.unwritten().is_some() {
            tail.is_written();
        }
        assert_eq!((tail.first(), tail.waiting_bytes()), (Some(36 * 1024), 0), "64 KiB are left");
    }

    #[test]
    fn a_disk_that_stays_full_costs_a_mebibyte_and_then_the_oldest() {
        let mut tail = Tail::default();
        let lost: u64 = (0..1100).map(|number| tail.push(said(number * 1024, 1024))).sum();
        assert_eq!((lost, tail.first(), tail.waiting_bytes()), (76 * 1024, Some(76 * 1024), 1 << 20));
        let lost: u64 = (0..70_000).map(|number| tail.push(said(1_126_400 + number, 1))).sum();
        assert!(
            lost > 0 && tail.entries.len() <= WAITING_ENTRIES_MAX,
            "{lost} bytes lost, {} entries",
            tail.entries.len()
        );
    }
}
