//! Where the DUT of a namespace may connect to, in whose name it has container images, and what is told of both.
//!
//! ```text
//!  Publication::lead_out(Egress), log_in(Logins) ──► the namespace
//!  http/proxy.rs, http/images.rs ── outward(peer, protocol) ──► Grant ─┬─ refuse(…) ──► Refused
//!                                                                      └─ begin(…) ───► Opened ─► Access ─► Ended
//! ```
//! The source address alone says whose DUT it is: who has the namespace's key reads, and connects to nowhere.

use core::net::IpAddr;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Access, AccessEvent, Caller, Liveness, Namespaces, Observer, Protocol, Publication, Refusal, lock};
use crate::egress::{Denial, Egress};
use crate::registry::Logins;

/// 32 connections at a time of one DUT: container engines pull with 6, browsers ask with a few more, and half of its places among the
/// HTTP server's connections stay free for artifacts.
pub const CONNECTIONS_PER_DUT_MAX: usize = 32;

/// What a namespace says of connections to elsewhere.
#[derive(Clone, Debug, Default)]
pub(super) struct Outward {
    egress: Arc<Egress>,
    logins: Arc<Logins>,
    taken: Arc<AtomicUsize>,
}

/// A DUT's question for a connection or an image, as far as its namespace knows the answer.
pub struct Grant {
    /// Where it may connect to.
    pub egress: Arc<Egress>,
    /// The job's own names at registries.
    pub logins: Arc<Logins>,
    protocol: Protocol,
    number: u64,
    peer: IpAddr,
    observer: Observer,
    liveness: Liveness,
    taken: Arc<AtomicUsize>,
}

/// One of a DUT's connections to elsewhere.
#[derive(Debug)]
pub struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<C: Clone> Namespaces<C> {
    /// What the DUT at `peer` may connect to, and has of registries; what comes of it is told as one of `protocol`.
    pub fn outward(&self, peer: IpAddr, protocol: Protocol) -> Result<Grant, Refusal> {
        let mut table = lock(&self.table);
        let namespace = table.of(Caller::Address(peer))?;
        namespace.accesses += 1;
        Ok(Grant {
            egress: Arc::clone(&namespace.outward.egress),
            logins: Arc::clone(&namespace.outward.logins),
            protocol,
            number: namespace.accesses,
            peer,
            observer: Arc::clone(&namespace.observer),
            liveness: Liveness(Arc::downgrade(&namespace.live)),
            taken: Arc::clone(&namespace.outward.taken),
        })
    }
}

impl<C> Publication<C> {
    /// Lets the DUT connect to elsewhere from now on. It belongs to the job rather than to a deployment: [`clear`](Self::clear) leaves it.
    pub fn lead_out(&self, egress: Egress) {
        self.with(|namespace| namespace.outward.egress = Arc::new(egress));
    }

    /// Has the DUT's images in these names from now on. It belongs to the job, as well.
    pub fn log_in(&self, logins: Logins) {
        self.with(|namespace| namespace.outward.logins = Arc::new(logins));
    }
}

impl Grant {
    /// Whether the publication still stands.
    pub fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// A place among the DUT's connections.
    pub fn place(&self) -> Result<Place, Denial> {
        let more = |taken: usize| (taken < CONNECTIONS_PER_DUT_MAX).then_some(taken + 1);
        let taken = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.map(|_| Place(Arc::clone(&self.taken))).map_err(Denial::TooMany)
    }

    /// Tells the namespace's observer that the DUT may not connect to `name`, or have it.
    pub fn refuse(self, name: String, why: &impl fmt::Display) {
        let refusal = Refusal::NotLedOut { reason: why.to_string() };
        (self.observer)(AccessEvent::Refused { protocol: self.protocol, name, peer: self.peer, refusal });
    }

    /// The DUT connects to `name`, or has it.
    pub fn begin(self, name: String) -> Access {
        let (access, protocol, peer) = (self.number, self.protocol, self.peer);
        (self.observer)(AccessEvent::Opened { access, protocol, name: name.clone(), peer });
        Access {
            number: access,
            protocol,
            name,
            observer: self.observer,
            liveness: self.liveness,
            tally: None,
            bytes: 0,
            reported: 0,
            reported_at: None,
            ended: false,
        }
    }
}
