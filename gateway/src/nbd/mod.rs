//! Disks for DUTs: an NBD server (fixed newstyle) over the namespaces, one port for all.
//!
//! ```text
//!  TcpListener ── accept ──► Desk (CONNECTIONS_MAX, CONNECTIONS_PER_PEER_MAX) ──► connection.rs, one task each
//!     handshake.rs ◆ asks for exports ──► Exports: name, or key/name ──► Namespaces: names | look | open | join ──► Content::Disk
//!                                                                             └─ Refusal ──► ERR_UNKNOWN, ERR_POLICY
//!     export.rs ◆ gives work ──► Disk (content/disk.rs) ──► replies
//!  proof.rs  connects as a DUT would, before there is one
//!  Connections::drop_of(address) ──► every connection of that DUT, at once
//! ```
//! An export's name is the name it was published by, or `<key>/<name>` from an address that is not the DUT's; an empty name stands for
//! the only export there is. All connections of one caller to one disk at a time are one attach, and one access.

mod connection;
mod desk;
pub mod export;
pub mod handshake;
pub mod message;
pub mod proof;
#[cfg(test)]
mod tests;
mod wire;

use core::net::{IpAddr, SocketAddr};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::desk::Desk;
use self::handshake::{Denied, Exports, Shape, Writes};
use crate::content::Content;
use crate::content::disk::{Attachment, Busy, Disk, Mode};
use crate::door::{Door, Transport};
use crate::namespace::{Access, Caller, Liveness, Namespaces, Outcome, Protocol, Refusal};
use crate::net::Net;
use crate::tls::Tls;

/// The port that clients ask unless told otherwise (IANA).
pub const PORT: u16 = 10809;

/// How NBD is served. Start from [`Config::new`].
#[derive(Clone, Debug)]
pub struct Config {
    /// The network to listen in.
    pub net: Net,
    /// The only link that connections may come from; `None` for all.
    pub interface: Option<String>,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// How long a client may take from its connection to its export.
    pub handshake_timeout: Duration,
    /// A peer that leaves a request half sent, or takes no byte of an answer, for this long loses its connection.
    pub stall_timeout: Duration,
    /// What STARTTLS is answered with; without it there is none.
    pub tls: Option<Tls>,
}

impl Config {
    /// 10 s for a handshake: a dozen round trips, each of which may lose a packet. 120 s of not going on: a DUT that erases flash stays
    /// attached, as with HTTP.
    pub fn new(net: Net, listen: SocketAddr) -> Self {
        let (handshake_timeout, stall_timeout) = (Duration::from_secs(10), Duration::from_secs(120));
        Config { net, interface: None, listen, handshake_timeout, stall_timeout, tls: None }
    }
}

/// A running NBD server; dropping it closes all connections.
pub struct Server {
    address: SocketAddr,
    ring: Arc<Ring>,
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

/// When a silent peer is asked whether it is still there, how often again, and after how many silences it is given up: a minute in all,
/// so that a DUT that lost its power keeps no place at a disk.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// Why connections end that outlive their server.
const STOPS: &str = "the farm stops";

/// Listens, and serves `namespaces` until the [`Server`] is dropped or drained.
pub async fn start(config: Config, namespaces: Namespaces<Content>) -> io::Result<Server> {
    let listener = config.net.tcp_listener(config.listen)?;
    if let Some(interface) = &config.interface {
        SockRef::from(&listener).bind_device(Some(interface.as_bytes()))?;
    }
    let (idle, period, tries) = KEEPALIVE;
    // Accepted sockets inherit it (Linux, tcp_create_openreq_child).
    let keepalive = TcpKeepalive::new().with_time(idle).with_interval(period).with_retries(tries);
    SockRef::from(&listener).set_tcp_keepalive(&keepalive)?;
    let address = listener.local_addr()?;
    let ring = Arc::new(Ring { config, namespaces, desk: Desk::default(), attaches: Mutex::default() });
    let stop = CancellationToken::new();
    let task = AbortOnDropHandle::new(tokio::spawn(accept_all(listener, Arc::clone(&ring), stop.clone())));
    tracing::info!(%address, "NBD for DUTs");
    Ok(Server { address, ring, stop, task })
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its connections.
    pub fn connections(&self) -> Connections {
        Connections(self.ring.desk.clone())
    }

    /// Takes no more connections and closes those that are open: a disk has no end to wait for.
    pub async fn drain(self) {
        self.stop.cancel();
        self.ring.desk.close(|_| true, STOPS).await;
        let _ = self.task.await;
    }
}

/// The connections of a server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connections(Desk);

impl Connections {
    /// Closes every connection from `address` and every other one to the disks of the DUT there, and returns how many there were when
    /// they have let go of their disks. For a DUT that was switched off: they would otherwise stand until the keepalive gives up.
    pub async fn drop_of(&self, address: IpAddr) -> usize {
        let is_its = |seat: &desk::Seat| seat.peer == address || seat.namespace == Some(address);
        self.0.close(is_its, "the DUT was switched off").await
    }
}

/// What all connections share.
struct Ring {
    config: Config,
    namespaces: Namespaces<Content>,
    desk: Desk,
    attaches: Mutex<HashMap<AttachKey, Weak<Attach>>>,
}

/// Who attached what: where the caller comes from, and the export as it was asked for.
type AttachKey = (IpAddr, String);

/// One access: all connections of one caller to one disk at a time.
#[derive(Debug)]
struct Attach {
    disk: Disk,
    liveness: Liveness,
    access: Mutex<Option<Access>>,
    /// How the connection that ended last has ended.
    outcome: Mutex<Outcome>,
}

async fn accept_all(listener: TcpListener, ring: Arc<Ring>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => admit(stream, peer.ip().to_canonical(), &ring, &mut connections),
                Err(error) => {
                    // 50 ms: out of descriptors, most likely; others close some meanwhile.
                    tracing::warn!(%error, "cannot accept an NBD connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(ended) = connections.join_next() => report_panic(ended),
            () = stop.cancelled() => break,
        }
    }
    drop(listener);
    // A connection may have come between the closing of all and the end of this loop.
    ring.desk.close(|_| true, STOPS).await;
    while let Some(ended) = connections.join_next().await {
        report_panic(ended);
    }
}

fn admit(stream: TcpStream, peer: IpAddr, ring: &Arc<Ring>, connections: &mut JoinSet<()>) {
    match ring.desk.sit(peer) {
        Ok(place) => {
            connections.spawn(connection::serve(place, stream, Arc::clone(ring)));
        }
        Err(reason) => tracing::warn!(%peer, reason, "an NBD connection was refused"),
    }
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "an NBD connection panicked; the server goes on");
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NBD server at {}", self.address)
    }
}

/// What one peer may attach.
struct Reach<'a> {
    ring: &'a Ring,
    peer: IpAddr,
    transport: Transport,
}

/// An attached disk: the access it belongs to, its place at the disk, and the DUT it was published for.
#[derive(Debug)]
struct Attached {
    attach: Arc<Attach>,
    attachment: Attachment,
    namespace: Option<IpAddr>,
}

impl Exports for Reach<'_> {
    type Attached = Attached;

    fn names(&self) -> Vec<String> {
        self.ring.namespaces.names(Caller::Address(self.peer), Protocol::Nbd, Door::main(self.transport))
    }

    fn look(&self, asked: &str) -> Result<Shape, Denied> {
        let (caller, name) = self.admitted(asked)?;
        let content = match self.ring.running(&(self.peer, asked.to_owned())) {
            Some(_) => self.ring.namespaces.join(caller, Protocol::Nbd, &name, Instant::now()),
            None => self.ring.namespaces.look(caller, Protocol::Nbd, &name, Instant::now()),
        };
        disk(content.map_err(denied)?).map(|disk| shape(&disk))
    }

    fn attach(&self, asked: &str) -> Result<(Shape, Attached), Denied> {
        let (caller, name) = self.admitted(asked)?;
        let Ring { namespaces, attaches, .. } = self.ring;
        let key = (self.peer, asked.to_owned());
        // Held to the end: of two connections at once, one counts and the other joins.
        let mut attaches = attaches.lock().unwrap_or_else(PoisonError::into_inner);
        attaches.retain(|_, attach| attach.strong_count() > 0);
        let running = attaches.get(&key).and_then(running);
        let looked = match &running {
            Some(_) => namespaces.join(caller, Protocol::Nbd, &name, Instant::now()),
            None => namespaces.look(caller, Protocol::Nbd, &name, Instant::now()),
        };
        let disk = disk(looked.map_err(denied)?)?;
        let attachment = disk.attach().map_err(|busy| self.busy(caller, &name, busy))?;
        let attach = match running.filter(|attach| attach.disk.is(&disk)) {
            Some(attach) => attach,
            None => {
                let opened = namespaces.open(caller, Protocol::Nbd, &name, Instant::now()).map_err(denied)?;
                let attach = Arc::new(Attach::new(disk.clone(), opened.access));
                attaches.insert(key, Arc::downgrade(&attach));
                attach
            }
        };
        Ok((shape(&disk), Attached { attach, attachment, namespace: namespaces.address_of(caller) }))
    }
}

impl Reach<'_> {
    /// Whose export is meant, if it may be had over what the connection travels over.
    fn admitted<'n>(&self, asked: &'n str) -> Result<(Caller<'n>, String), Denied> {
        let (caller, name) = self.resolve(asked);
        let door = Door::main(self.transport);
        self.ring.namespaces.admits(caller, Protocol::Nbd, &name, door).map_err(denied)?;
        Ok((caller, name))
    }

    /// `key/name` is `name` of that key's namespace; any other name belongs to the peer's address. No name is the only one.
    fn resolve<'n>(&self, asked: &'n str) -> (Caller<'n>, String) {
        let is_key = |key: &str| key.len() == 32 && key.bytes().all(|byte| byte.is_ascii_hexdigit());
        let (caller, name) = match asked.split_once('/') {
            Some((key, name)) if is_key(key) => (Caller::Key(key, self.peer), name),
            _ => (Caller::Address(self.peer), asked),
        };
        if !name.is_empty() {
            return (caller, name.to_owned());
        }
        match <[String; 1]>::try_from(self.ring.namespaces.names(caller, Protocol::Nbd, Door::main(Transport::Tls))) {
            Ok([only]) => (caller, only),
            Err(_) => (caller, String::new()),
        }
    }

    fn busy(&self, caller: Caller<'_>, name: &str, busy: Busy) -> Denied {
        let refusal = Refusal::Busy { connections_max: busy.attachments_max };
        self.ring.namespaces.report(caller, Protocol::Nbd, name, &refusal);
        denied(refusal)
    }
}

impl Ring {
    fn running(&self, key: &AttachKey) -> Option<Arc<Attach>> {
        self.attaches.lock().unwrap_or_else(PoisonError::into_inner).get(key).and_then(running)
    }
}

/// An attach whose job goes on and whose disk is the one it was.
fn running(attach: &Weak<Attach>) -> Option<Arc<Attach>> {
    attach.upgrade().filter(|attach| attach.liveness.is_live())
}

fn shape(disk: &Disk) -> Shape {
    let writes = match disk.mode() {
        Mode::ReadOnly => Writes::Refused,
        Mode::CopyOnWrite => Writes::Taken,
    };
    Shape { size: disk.size(), writes }
}

fn disk(content: Content) -> Result<Disk, Denied> {
    let Content::Disk(disk) = content else {
        return Err(Denied::Policy("what was published by this name is no disk".to_owned()));
    };
    Ok(disk)
}

fn denied(refusal: Refusal) -> Denied {
    let text = refusal.to_string();
    match refusal {
        Refusal::UnknownCaller | Refusal::NoSuchName => Denied::Unknown(text),
        Refusal::Exhausted { .. }
        | Refusal::FirstReadOver { .. }
        | Refusal::Expired { .. }
        | Refusal::Busy { .. }
        | Refusal::NotRecorded { .. }
        | Refusal::TlsFailed { .. }
        | Refusal::NotLedOut { .. } => Denied::Policy(text),
        Refusal::TlsRequired { .. } => Denied::TlsRequired(text),
    }
}

impl Attach {
    fn new(disk: Disk, access: Access) -> Self {
        let outcome = Outcome::Aborted(connection::BROKEN_OFF.to_owned());
        Attach { disk, liveness: access.liveness(), access: Mutex::new(Some(access)), outcome: Mutex::new(outcome) }
    }

    /// `bytes` more were read or written.
    fn took(&self, bytes: u64) {
        if let Some(access) = &mut *self.access.lock().unwrap_or_else(PoisonError::into_inner) {
            access.took(bytes, Instant::now());
        }
    }

    fn ended(&self, outcome: Outcome) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = outcome;
    }
}

impl Drop for Attach {
    fn drop(&mut self) {
        let access = self.access.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(access) = access {
            access.end(self.outcome.get_mut().unwrap_or_else(PoisonError::into_inner).clone());
        }
    }
}
