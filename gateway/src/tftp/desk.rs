//! Who may start a transfer, and which running one a new request replaces.
//!
//! ```text
//!  request ─► admit ─┬► Repeated    the same bytes again before the first answer was acknowledged: that answer is sent again
//!                    ├► Granted     a ticket; whatever ran for this source address and port is told to stop
//!                    └► TooMany     a sentence for the client
//! ```
//! A power-cycled DUT often comes back on the same port: its old transfer must not keep it out. A request repeated by a
//! client's impatience is another matter: replaced, its answer could already be under way from a port that just closed.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::transfer::Terms;

/// U-Boot repeats a request after 5 s, all others sooner; no machine is power-cycled and back at its request by then.
const REPEAT_AGE_MAX: Duration = Duration::from_secs(5);

/// How much may run at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caps {
    pub(super) transfers: usize,
    pub(super) transfers_per_peer: usize,
    pub(super) window_bytes_per_peer: usize,
}

/// All running transfers of one server.
#[derive(Debug)]
pub(super) struct Desk {
    caps: Caps,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    running: HashMap<SocketAddr, Running>,
    peers: HashMap<IpAddr, Use>,
    granted: u64,
}

#[derive(Debug)]
struct Running {
    number: u64,
    request: Box<[u8]>,
    since: Instant,
    answered: Arc<AtomicBool>,
    /// Dropping it stops the transfer.
    repeats: mpsc::Sender<()>,
    window_bytes: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Use {
    transfers: usize,
    window_bytes: usize,
}

/// The answer to a request.
#[derive(Debug)]
pub(super) enum Admission {
    Repeated,
    Granted(Ticket),
    TooMany(String),
}

/// The right to run one transfer; dropping it gives the place back.
#[derive(Debug)]
pub(super) struct Ticket {
    desk: Arc<Desk>,
    peer: SocketAddr,
    number: u64,
    repeats: mpsc::Receiver<()>,
    answered: Arc<AtomicBool>,
}

/// What the desk tells a running transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// The request came again.
    Repeated,
    /// Another request came from the same address and port: stop.
    Superseded,
}

impl Desk {
    pub(super) fn new(caps: Caps) -> Arc<Desk> {
        Arc::new(Desk { caps, table: Mutex::default() })
    }

    pub(super) fn admit(self: &Arc<Self>, peer: SocketAddr, request: &[u8], now: Instant) -> Admission {
        let mut table = self.lock();
        if let Some(running) = table.running.get(&peer)
            && running.is_repeated_by(request, now)
        {
            // Full means that one is on its way already.
            let _ = running.repeats.try_send(());
            return Admission::Repeated;
        }
        table.remove(peer);
        if let Some(sentence) = self.refusal(&table, peer) {
            return Admission::TooMany(sentence);
        }
        // 1: repeats are not counted, one unheard is as good as many.
        let (sender, repeats) = mpsc::channel(1);
        let answered = Arc::new(AtomicBool::new(false));
        table.granted += 1;
        let number = table.granted;
        table.peers.entry(peer.ip()).or_default().transfers += 1;
        table.running.insert(
            peer,
            Running {
                number,
                request: request.into(),
                since: now,
                answered: Arc::clone(&answered),
                repeats: sender,
                window_bytes: 0,
            },
        );
        Admission::Granted(Ticket { desk: Arc::clone(self), peer, number, repeats, answered })
    }

    fn refusal(&self, table: &Table, peer: SocketAddr) -> Option<String> {
        let Caps { transfers, transfers_per_peer, .. } = self.caps;
        if table.running.len() >= transfers {
            return Some(format!("too many transfers: {transfers} are running; try again later"));
        }
        let own = table.peers.get(&peer.ip()).map_or(0, |peer| peer.transfers);
        (own >= transfers_per_peer)
            .then(|| format!("too many transfers: {own} are running for your address; end one first"))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    fn is_repeated_by(&self, request: &[u8], now: Instant) -> bool {
        *self.request == *request
            && !self.answered.load(Ordering::Relaxed)
            && now.saturating_duration_since(self.since) < REPEAT_AGE_MAX
    }
}

impl Table {
    fn remove(&mut self, peer: SocketAddr) {
        let Some(running) = self.running.remove(&peer) else { return };
        if let Some(used) = self.peers.get_mut(&peer.ip()) {
            used.transfers -= 1;
            used.window_bytes -= running.window_bytes;
            if used.transfers == 0 {
                self.peers.remove(&peer.ip());
            }
        }
    }
}

impl Ticket {
    /// Agrees on terms with the window bytes that this peer's other transfers leave, and holds what was agreed on.
    pub(super) fn agree(&self, agree: impl FnOnce(usize) -> Terms) -> Terms {
        let mut table = self.desk.lock();
        let used = table.peers.get(&self.peer.ip()).map_or(0, |used| used.window_bytes);
        let terms = agree(self.desk.caps.window_bytes_per_peer.saturating_sub(used));
        if let Some(running) = table.running.get_mut(&self.peer).filter(|running| running.number == self.number) {
            running.window_bytes = terms.window_bytes();
            table.peers.entry(self.peer.ip()).or_default().window_bytes += terms.window_bytes();
        }
        terms
    }

    /// The first answer was acknowledged: the same request again is a new one from now on.
    pub(super) fn answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Waits for the desk.
    pub(super) async fn notice(&mut self) -> Notice {
        match self.repeats.recv().await {
            Some(()) => Notice::Repeated,
            None => Notice::Superseded,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut table = self.desk.lock();
        if table.running.get(&self.peer).is_some_and(|running| running.number == self.number) {
            table.remove(self.peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPS: Caps = Caps { transfers: 3, transfers_per_peer: 2, window_bytes_per_peer: 10_000 };

    fn peer(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, host], port))
    }

    fn granted(desk: &Arc<Desk>, peer: SocketAddr, request: &[u8], now: Instant) -> Ticket {
        match desk.admit(peer, request, now) {
            Admission::Granted(ticket) => ticket,
            other => panic!("expected a ticket, got {other:?}"),
        }
    }

    fn terms(window_size: u16) -> Terms {
        Terms { block_size: 1000, window_size, timeout: None, answer: Vec::new() }
    }

    #[tokio::test]
    async fn the_same_request_again_is_a_repetition_only_until_its_answer_is_acknowledged() {
        let (desk, now) = (Desk::new(CAPS), Instant::now());
        let mut ticket = granted(&desk, peer(1, 7), b"a", now);
        assert!(matches!(desk.admit(peer(1, 7), b"a", now), Admission::Repeated));
        assert_eq!(ticket.notice().await, Notice::Repeated);
        ticket.answered();
        let _new = granted(&desk, peer(1, 7), b"a", now);
        assert_eq!(ticket.notice().await, Notice::Superseded);
    }

    #[tokio::test]
    async fn another_request_from_the_same_port_and_a_late_repetition_supersede() {
        let (desk, now) = (Desk::new(CAPS), Instant::now());
        let mut first = granted(&desk, peer(1, 7), b"a", now);
        let mut second = granted(&desk, peer(1, 7), b"b", now);
        assert_eq!(first.notice().await, Notice::Superseded);
        let _third = granted(&desk, peer(1, 7), b"b", now + Duration::from_secs(5));
        assert_eq!(second.notice().await, Notice::Superseded);
    }

    #[test]
    fn places_are_counted_per_peer_and_in_all_and_come_back() {
        let (desk, now) = (Desk::new(CAPS), Instant::now());
        let first = granted(&desk, peer(1, 1), b"a", now);
        let _second = granted(&desk, peer(1, 2), b"a", now);
        let refused = desk.admit(peer(1, 3), b"a", now);
        assert!(
            matches!(&refused, Admission::TooMany(text) if text == "too many transfers: 2 are running for your address; end one first")
        );
        let _other = granted(&desk, peer(2, 1), b"a", now);
        let refused = desk.admit(peer(3, 1), b"a", now);
        assert!(
            matches!(&refused, Admission::TooMany(text) if text == "too many transfers: 3 are running; try again later")
        );
        drop(first);
        let _again = granted(&desk, peer(1, 3), b"a", now);
    }

    #[test]
    fn a_superseded_ticket_gives_back_its_place_once() {
        let (desk, now) = (Desk::new(CAPS), Instant::now());
        let old = granted(&desk, peer(1, 1), b"a", now);
        old.agree(|_| terms(4));
        let new = granted(&desk, peer(1, 1), b"b", now);
        old.agree(|_| terms(4));
        drop(old);
        new.agree(|left| {
            assert_eq!(left, 10_000, "the old window is not counted any more");
            terms(1)
        });
        drop(new);
        assert!(desk.lock().running.is_empty() && desk.lock().peers.is_empty());
    }

    #[test]
    fn windows_of_one_peer_share_its_bytes() {
        let (desk, now) = (Desk::new(CAPS), Instant::now());
        let first = granted(&desk, peer(1, 1), b"a", now);
        first.agree(|left| {
            assert_eq!(left, 10_000);
            terms(8)
        });
        granted(&desk, peer(1, 2), b"a", now).agree(|left| {
            assert_eq!(left, 2_000);
            terms(2)
        });
        granted(&desk, peer(2, 1), b"a", now).agree(|left| {
            assert_eq!(left, 10_000, "another peer's bytes are its own");
            terms(1)
        });
    }
}
