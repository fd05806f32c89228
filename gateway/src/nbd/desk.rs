//! Who is connected, how many may be, and who has to go.
//!
//! ```text
//!  sit(peer) ──► Place ──► attached(namespace) ──► dropped: the place is free, and `closed` says so
//!                  │ closing ◄── close(which, reason), which waits for `closed` of each
//! ```

use core::net::IpAddr;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio_util::sync::CancellationToken;

/// 1024: a rack that is switched on at once, with a few connections per DUT.
const CONNECTIONS_MAX: usize = 1024;
/// 32 per peer: the kernel's client opens up to 16, qemu and libnbd four. With 64 MiB in buffers each, what one hostile DUT can make us
/// hold is 2 GiB.
const CONNECTIONS_PER_PEER_MAX: usize = 32;

/// The places of all connections. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Desk(Arc<Mutex<Seats>>);

#[derive(Debug, Default)]
struct Seats {
    next: u64,
    taken: HashMap<u64, Seat>,
}

/// One connection, as the desk knows it.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    /// Where it comes from.
    pub(super) peer: IpAddr,
    /// The DUT whose disk it has.
    pub(super) namespace: Option<IpAddr>,
    closing: Closing,
    closed: CancellationToken,
}

/// Whether a connection has to end, and why.
#[derive(Clone, Debug, Default)]
struct Closing {
    token: CancellationToken,
    reason: Arc<OnceLock<&'static str>>,
}

/// A connection's place, free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    desk: Desk,
    number: u64,
    peer: IpAddr,
    closing: Closing,
    closed: CancellationToken,
}

impl Desk {
    /// A place for a connection of `peer`, or why there is none.
    pub(super) fn sit(&self, peer: IpAddr) -> Result<Place, &'static str> {
        let mut seats = self.seats();
        if seats.taken.len() >= CONNECTIONS_MAX {
            return Err("1024 connections are open");
        }
        if seats.taken.values().filter(|seat| seat.peer == peer).count() >= CONNECTIONS_PER_PEER_MAX {
            return Err("32 connections of this address are open");
        }
        let (closing, closed) = (Closing::default(), CancellationToken::new());
        let number = seats.next;
        seats.next += 1;
        let seat = Seat { peer, namespace: None, closing: closing.clone(), closed: closed.clone() };
        seats.taken.insert(number, seat);
        Ok(Place { desk: self.clone(), number, peer, closing, closed })
    }

    /// Tells those connections to end, with a reason for their job, and returns how many they were when they have.
    pub(super) async fn close(&self, which: impl Fn(&Seat) -> bool, reason: &'static str) -> usize {
        let closed: Vec<_> = {
            let seats = self.seats();
            let chosen = seats.taken.values().filter(|seat| which(seat));
            chosen.inspect(|seat| seat.closing.begin(reason)).map(|seat| seat.closed.clone()).collect()
        };
        for closed in &closed {
            closed.cancelled().await;
        }
        closed.len()
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Where the connection comes from.
    pub(super) fn peer(&self) -> IpAddr {
        self.peer
    }

    /// The connection has a disk of the DUT at `namespace`.
    pub(super) fn attached(&self, namespace: Option<IpAddr>) {
        if let Some(seat) = self.desk.seats().taken.get_mut(&self.number) {
            seat.namespace = namespace;
        }
    }

    /// Returns when the connection has to end, with the reason.
    pub(super) async fn closing(&self) -> &'static str {
        self.closing.token.cancelled().await;
        self.closing.reason.get().copied().unwrap_or_default()
    }
}

impl Closing {
    /// The first reason stays.
    fn begin(&self, reason: &'static str) {
        let _ = self.reason.set(reason);
        self.token.cancel();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.desk.seats().taken.remove(&self.number);
        self.closed.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_peer_cannot_take_every_place_and_leaves_those_it_had() {
        let desk = Desk::default();
        let (hostile, other) = (IpAddr::from([10, 77, 0, 11]), IpAddr::from([10, 77, 0, 12]));
        let places: Vec<_> = (0..CONNECTIONS_PER_PEER_MAX).map(|_| desk.sit(hostile).unwrap()).collect();
        assert_eq!(desk.sit(hostile).unwrap_err(), "32 connections of this address are open");
        let place = desk.sit(other).unwrap();
        drop(places);
        assert!(desk.sit(hostile).is_ok());
        let ends = tokio::spawn(async move { place.closing().await });
        assert_eq!(desk.close(|seat| seat.peer == other, "it was switched off").await, 1);
        assert_eq!(ends.await.unwrap(), "it was switched off");
        assert_eq!(desk.close(|_| true, "the server stops").await, 0);
    }
}
