//! Leases: the one way in which the executor holds hardware.
//!
//! ```text
//!  Pending ──(everything it needs is free)──► Acquired ──(brought up)──► Active ──(release)──► Releasing ──(torn down)──► Destroyed
//!     └──(withdrawn, never feasible)──► Destroyed          └──(its resource was lost)──► Releasing ──► Pending, in its old place
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `rows` | the rows, and one transition as the only way to change them |
//! | `tables` | the rows in memory; the same from a store, from events, from transitions |
//! | `steps`, `next` | what may happen to a row, and what it does next |
//! | `allocator` | who gets what, and why not yet |
//! | `store` | one synced transaction per commit |
//! | `actor` | the ring around them: the [`Keeper`] |
//! | `model` | everything at once, under accidents |
//!
//! A [`Pass`] is the permission, and revoking it makes every interface refuse before the DUT is given to the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedRwLockReadGuard, RwLock};

pub mod actor;
pub mod allocator;
#[cfg(test)]
mod model;
pub mod next;
pub mod rows;
#[cfg(test)]
pub mod samples;
mod shares;
pub mod steps;
pub mod store;
pub mod tables;

pub use actor::{EffectError, Effects, Keeper, LeaseView, Reconciled, RequestError, Snapshot};

/// The permission that a lease gives: valid until the lease is released, then refused for ever.
#[derive(Clone, Debug)]
pub struct Pass {
    current: Arc<AtomicU64>,
    fence: u64,
    in_flight: Arc<RwLock<()>>,
}

/// A handle was used after its lease ended.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the lease that this handle came from has ended")]
pub struct Revoked;

/// Something that is being done to the hardware under a pass. While it lives, the lease is not torn down.
pub struct InFlight {
    _until_dropped: OwnedRwLockReadGuard<()>,
}

impl Pass {
    /// The pass of the holder whose fence is known from its row; all earlier ones are refused from now on.
    pub fn of(current: &Arc<AtomicU64>, fence: u64) -> Pass {
        current.store(fence, Ordering::SeqCst);
        Pass { current: Arc::clone(current), fence, in_flight: Arc::default() }
    }

    /// The number that tells this holder of the DUT from all others.
    pub fn fence(&self) -> u64 {
        self.fence
    }

    /// Asked before anything is prepared for the hardware.
    pub fn check(&self) -> Result<(), Revoked> {
        if self.current.load(Ordering::SeqCst) == self.fence { Ok(()) } else { Err(Revoked) }
    }

    /// Asked before every device write, and held until it is answered.
    pub async fn enter(&self) -> Result<InFlight, Revoked> {
        let until_dropped = Arc::clone(&self.in_flight).read_owned().await;
        self.check()?;
        Ok(InFlight { _until_dropped: until_dropped })
    }

    /// Ends the pass; a later one is left alone.
    pub fn revoke(&self) {
        let _ = self.current.compare_exchange(self.fence, self.fence + 1, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Returns when nothing is in flight under a pass that was revoked.
    pub async fn drained(&self) {
        drop(self.in_flight.write().await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn a_revoked_pass_refuses_and_the_next_one_is_not_touched_by_it() {
        let current = Arc::new(AtomicU64::new(0));
        let first = Pass::of(&current, 1);
        assert_eq!(first.check(), Ok(()));
        first.revoke();
        assert_eq!(first.check(), Err(Revoked));
        let second = Pass::of(&current, 2);
        first.revoke();
        assert_eq!(second.check(), Ok(()));
        assert_eq!(first.check(), Err(Revoked));
    }

    #[tokio::test]
    async fn a_revoked_pass_is_drained_when_what_was_in_flight_is_over() {
        let pass = Pass::of(&Arc::default(), 1);
        let in_flight = pass.enter().await.unwrap();
        pass.revoke();
        assert_eq!(pass.drained().now_or_never(), None);
        drop(in_flight);
        pass.drained().await;
        assert_eq!(pass.enter().await.err(), Some(Revoked));
    }
}
