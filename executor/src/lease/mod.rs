//! Leases: the one way in which the executor holds a DUT.
//!
//! ```text
//!  Pending ──(a fitting DUT is free)──► Active ──(release)──► Releasing ──(torn down)──► Destroyed
//!     └──(withdrawn)──► Destroyed
//! ```
//! The farm still asks the [`Desk`], whose rows live in memory; the [`actor::Keeper`] is what it moves to:
//!
//! | file | holds |
//! |---|---|
//! | `rows` | the rows, and one transition as the only way to change them |
//! | `tables` | the rows in memory; the same from a store, from events, from transitions |
//! | `steps`, `next` | what may happen to a row, and what it does next |
//! | `allocator` | who gets what, and why not yet |
//! | `store` | one synced transaction per commit |
//! | `actor` | the ring around them |
//! | `model` | everything at once, under accidents |
//!
//! A [`Pass`] is the permission, and revoking it makes every interface refuse before the DUT is given to the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

#[allow(dead_code, reason = "the farm moves to it from the desk")]
pub mod actor;
#[allow(dead_code, reason = "the farm moves to it from the desk")]
pub mod allocator;
pub mod desk;
#[cfg(test)]
mod model;
#[allow(dead_code, reason = "the farm moves to it from the desk")]
pub mod next;
pub mod queue;
#[allow(dead_code, reason = "the farm moves to it from the desk")]
pub mod rows;
#[cfg(test)]
mod samples;
#[allow(dead_code, reason = "the farm moves to it from the desk")]
pub mod steps;
#[allow(dead_code, reason = "the farm moves to it from the desk")]
pub mod store;
#[allow(dead_code, reason = "the farm moves to it from the desk")]
pub mod tables;

pub use desk::{Desk, Lease, Step, Waiting};

/// What a job asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wants {
    /// A DUT's id or full name; `None`: any.
    pub id: Option<String>,
    /// Tags that the DUT must all have.
    pub tags: Vec<String>,
}

/// What is known of a DUT when leases are planned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: String,
    /// Its full name.
    pub full_name: String,
    /// Its tags, the farm's own `farm:<name>` included.
    pub tags: Vec<String>,
    /// Why it takes no jobs, if it takes none.
    pub held_back: Option<String>,
    /// The job that holds it.
    pub holder: Option<String>,
}

impl Candidate {
    /// `Err` says in a sentence why this DUT could never serve `wants`.
    pub fn fits(&self, wants: &Wants) -> Result<(), String> {
        if let Some(id) = &wants.id
            && *id != self.id
            && *id != self.full_name
        {
            return Err(format!("{} is not `{id}`", self.full_name));
        }
        let missing: Vec<_> =
            wants.tags.iter().filter(|tag| !self.tags.contains(tag)).map(|tag| format!("`{tag}`")).collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(format!("{} lacks the tags {}", self.full_name, missing.join(", ")))
        }
    }

    /// Why not now, for a DUT that fits.
    pub fn busy(&self) -> Option<String> {
        let held_back = self.held_back.as_ref().map(|reason| format!("{} is held back: {reason}", self.full_name));
        held_back.or_else(|| self.holder.as_ref().map(|job| format!("{} is busy with job {job}", self.full_name)))
    }
}

/// The permission that a lease gives: valid until the lease is released, then refused for ever.
#[derive(Clone, Debug)]
pub struct Pass {
    current: Arc<AtomicU64>,
    fence: u64,
}

/// A handle was used after its lease ended.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the lease that this handle came from has ended")]
pub struct Revoked;

impl Pass {
    /// A pass for the next holder of the DUT whose fence is `current`; all earlier ones are refused from now on.
    pub fn issue(current: &Arc<AtomicU64>) -> Pass {
        let fence = current.fetch_add(1, Ordering::SeqCst) + 1;
        Pass { current: Arc::clone(current), fence }
    }

    /// The pass of the holder whose fence is known from its row; all earlier ones are refused from now on.
    pub fn of(current: &Arc<AtomicU64>, fence: u64) -> Pass {
        current.store(fence, Ordering::SeqCst);
        Pass { current: Arc::clone(current), fence }
    }

    /// The number that tells this holder of the DUT from all others.
    pub fn fence(&self) -> u64 {
        self.fence
    }

    /// Asked before every device write.
    pub fn check(&self) -> Result<(), Revoked> {
        if self.current.load(Ordering::SeqCst) == self.fence { Ok(()) } else { Err(Revoked) }
    }

    /// Ends the pass; a later one is left alone.
    pub fn revoke(&self) {
        let _ = self.current.compare_exchange(self.fence, self.fence + 1, Ordering::SeqCst, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revoked_pass_refuses_and_the_next_one_is_not_touched_by_it() {
        let current = Arc::new(AtomicU64::new(0));
        let first = Pass::issue(&current);
        assert_eq!(first.check(), Ok(()));
        first.revoke();
        assert_eq!(first.check(), Err(Revoked));
        let second = Pass::issue(&current);
        first.revoke();
        assert_eq!(second.check(), Ok(()));
        assert_eq!(first.check(), Err(Revoked));
    }
}
