//! How much was sent of what may be read so often: a range goes on with a counted read, and may not become another.
//!
//! ```text
//!  open ─ is_of(size) ─► sent(bytes) … ─► a range: less sent than `count` reads have? it goes on · else it is an access of its own
//! ```
//! Bytes that a broken connection lost count as sent: what had a limit was on its way, and nobody knows who has it.

use std::sync::atomic::{AtomicU64, Ordering};

/// What was sent of one entry in this boot. Shared by its accesses.
#[derive(Debug)]
pub(super) struct Tally {
    sent: AtomicU64,
    size: AtomicU64,
}

impl Default for Tally {
    /// Nothing sent yet, of what is as large as can be until somebody knows better.
    fn default() -> Self {
        Tally { sent: AtomicU64::new(0), size: AtomicU64::new(u64::MAX) }
    }
}

impl Tally {
    /// As if all had been sent.
    pub(super) fn all_sent() -> Self {
        Tally { sent: AtomicU64::new(0), size: AtomicU64::new(0) }
    }

    /// The entry has so many bytes.
    pub(super) fn is_of(&self, size: u64) {
        self.size.store(size, Ordering::Relaxed);
    }

    /// So many bytes more are on their way.
    pub(super) fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether as many bytes were sent as `count` reads of the whole have.
    pub(super) fn is_sent(&self, count: u64) -> bool {
        self.sent.load(Ordering::Relaxed) >= self.size.load(Ordering::Relaxed).saturating_mul(count)
    }
}
