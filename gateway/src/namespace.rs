//! Who may read what, how often, until when: one answer for every protocol.
//!
//! ```text
//!  executor ── publish ──► Publication ── put(name, content, exposure) ──┐
//!     (drop removes all)                                                 ▼
//!  server ── open(caller, protocol, name, now) ──► namespace of the caller ──► Opened { content, access }
//!                                                                         └──► Refusal → one code per protocol
//!          live(caller, name) ──► what answers below a prefix, if something does; before any entry     (live.rs)
//! ```
//! A namespace has two keys: the leased DUT's address, because firmware that asks TFTP for a fixed name cannot be taught a
//! prefix, and an unguessable [`NamespaceKey`], for what boots behind another address (a container on the DUT, a NATed board).
//! One *access* is one successful open, counted before its first byte; a retransmission or a resumed range belongs to the same
//! open, while fewer bytes were sent than what was opened has. Counters start again with each boot ([`Publication::begin_boot`]).
//! Where they must outlive the server, a [`Recorder`] writes each access to a name with a limit down before it is granted, and
//! [`Publication::remember`] goes on with what it wrote.
//!
//! Look-up order: the job's exact names, the job's patterns in their order, then the generated names: a job that publishes the
//! name of a generated file wins.

mod outward;
mod tally;

use core::net::IpAddr;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use self::outward::Outward;
pub use self::outward::{CONNECTIONS_PER_DUT_MAX, Grant, Place};
use self::tally::Tally;
use crate::door::{Door, Transport};
use crate::live::{Answer, Takes};

/// The protocols that artifacts are served by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// Android's fastboot: the farm opens the artifact for the DUT, and gives it to its loader.
    Fastboot,
    /// HTTP/1.1 on the DUT side.
    Http,
    /// NBD, a network block device.
    Nbd,
    /// A connection to elsewhere, through the gateway: nothing is published by it.
    Proxy,
    /// A container image, through the gateway's cache of registries: nothing is published by it.
    Registry,
    /// TFTP, RFC 1350.
    Tftp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 6] =
        [Protocol::Fastboot, Protocol::Http, Protocol::Nbd, Protocol::Proxy, Protocol::Registry, Protocol::Tftp];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Fastboot => "fastboot",
            Protocol::Http => "HTTP",
            Protocol::Nbd => "NBD",
            Protocol::Proxy => "proxy",
            Protocol::Registry => "registry",
            Protocol::Tftp => "TFTP",
        })
    }
}

/// 128 random bits as text: whoever knows it may read the namespace from any address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NamespaceKey(String);

impl NamespaceKey {
    /// A fresh key from the system's random source.
    pub fn random() -> Self {
        NamespaceKey(format!("{:032x}", rand::random::<u128>()))
    }

    /// The key's text, as it stands in `/_/n/<key>/…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// By which of its two keys a caller reaches a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller<'a> {
    /// The source address of the packet.
    Address(IpAddr),
    /// A key from the request's path, with the address it came from.
    Key(&'a str, IpAddr),
}

impl Caller<'_> {
    /// The address that the request came from.
    pub fn peer(&self) -> IpAddr {
        match self {
            Caller::Address(peer) | Caller::Key(_, peer) => *peer,
        }
    }
}

/// What a published name is: one name, or all names that a pattern matches whole.
#[derive(Clone)]
pub enum Name {
    /// This name and no other, with its leading slash.
    Exact(String),
    /// The name that is the text itself, and every name for which the function says yes.
    Matching(String, Arc<dyn Fn(&str) -> bool + Send + Sync>),
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Exact(text) | Name::Matching(text, _) => f.write_str(text),
        }
    }
}

/// How long and how often an artifact may be read. The default sets no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exposure {
    /// Refused after this many accesses of one boot; `None` or 0 sets no limit.
    pub access_count: Option<u64>,
    /// Refused this long after the first access of this boot.
    pub first_read: Option<Duration>,
    /// Refused this long after publication.
    pub duration: Option<Duration>,
    /// A port besides the server's own where it is read as well.
    pub port: Option<u16>,
    /// What it is read over at least, at whichever port.
    pub transport: Transport,
}

impl Exposure {
    /// Whether accesses are limited in number.
    fn counts(&self) -> bool {
        self.access_count.is_some_and(|limit| limit > 0)
    }

    /// Whether anything is limited.
    pub fn is_limited(&self) -> bool {
        self.counts() || self.first_read.is_some() || self.duration.is_some()
    }
}

/// Who made an entry; the job's own entries win over generated ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Named in the job description.
    Job,
    /// Made by the boot method (boot scripts, firmware images, kernel and initramfs).
    Generated,
}

/// Why a read was denied. [`fmt::Display`] is the sentence for the job's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No leased DUT has this address, and no namespace this key.
    UnknownCaller,
    /// The namespace has no such name under this protocol.
    NoSuchName,
    /// Read as often as allowed in this boot.
    Exhausted {
        /// The entry's `access_count`.
        access_count: u64,
    },
    /// The time after the first access is over.
    FirstReadOver {
        /// The entry's `first_read`.
        first_read: Duration,
    },
    /// The time after publication is over.
    Expired {
        /// The entry's `duration`.
        duration: Duration,
    },
    /// A disk has as many connections as it takes.
    Busy {
        /// The disk's `max_connections`.
        connections_max: u32,
    },
    /// It has a limit, and that it is read cannot be written down.
    NotRecorded {
        /// Why not.
        reason: String,
    },
    /// Asked for in clear.
    TlsRequired {
        /// The entry's port, where it has one.
        port: Option<u16>,
    },
    /// A connection to somewhere where it may not be led to.
    NotLedOut {
        /// Why not.
        reason: String,
    },
    /// Nothing was asked for: the connection did not become one of TLS.
    TlsFailed {
        /// Why not.
        reason: String,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::UnknownCaller => f.write_str("no leased DUT has this address"),
            Refusal::NoSuchName => f.write_str("the job publishes no such name"),
            Refusal::Exhausted { access_count } => {
                write!(f, "already read {access_count} times in this boot (lifetime.access_count)")
            }
            Refusal::FirstReadOver { first_read } => {
                write!(f, "first read more than {first_read:?} ago (lifetime.first_read)")
            }
            Refusal::Expired { duration } => write!(f, "published more than {duration:?} ago (lifetime.duration)"),
            Refusal::Busy { connections_max } => {
                write!(f, "already attached by {connections_max} connections (max_connections)")
            }
            Refusal::NotRecorded { reason } => {
                write!(f, "it has a lifetime, and the farm cannot write down that it is read: {reason}")
            }
            Refusal::TlsRequired { port: Some(port) } => {
                write!(f, "only to be read over TLS, at port {port} (expose.tls)")
            }
            Refusal::TlsRequired { port: None } => f.write_str("only to be read over TLS (expose.tls)"),
            Refusal::TlsFailed { reason } | Refusal::NotLedOut { reason } => f.write_str(reason),
        }
    }
}

/// What the servers report of a namespace's use; the executor turns it into lines of the job's log and evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessEvent {
    /// An access was counted; its first byte leaves next.
    Opened {
        /// Number of this access among all of the namespace, from 1.
        access: u64,
        /// By which protocol.
        protocol: Protocol,
        /// The name asked for.
        name: String,
        /// Who asked.
        peer: IpAddr,
    },
    /// An access that was counted before goes on: a range of a file whose start was read.
    Resumed {
        /// A number of its own, as `Opened` has.
        access: u64,
        /// By which protocol.
        protocol: Protocol,
        /// The name asked for.
        name: String,
        /// Who asked.
        peer: IpAddr,
    },
    /// An access ended.
    Ended {
        /// The number that `Opened` or `Resumed` had.
        access: u64,
        /// By which protocol.
        protocol: Protocol,
        /// The name asked for.
        name: String,
        /// Bytes that the peer took.
        bytes: u64,
        /// How it ended.
        outcome: Outcome,
    },
    /// A read was denied.
    Refused {
        /// By which protocol.
        protocol: Protocol,
        /// The name asked for.
        name: String,
        /// Who asked.
        peer: IpAddr,
        /// Why not.
        refusal: Refusal,
    },
    /// Bytes moved in some access (told about every 256 KiB, and every second): boot progress without a console.
    Progress,
}

/// How an access ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All that was asked for was taken.
    Complete,
    /// The peer gave up, with its words.
    Aborted(String),
    /// We could not go on (the content failed, the peer went silent), with the reason.
    Failed(String),
}

/// Whether an entry was ever opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Once at least.
    Read,
    /// Not yet.
    Never,
}

/// Hears every [`AccessEvent`] of one namespace. Called inside a short critical section: it must not block.
pub type Observer = Arc<dyn Fn(AccessEvent) + Send + Sync>;

/// An access that counts against a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// By which protocol.
    pub protocol: Protocol,
    /// The entry, as it was published: a pattern's own text.
    pub entry: String,
}

/// Writes a counted access down, for good when it returns; its error is why not. Called before the first byte, with nothing locked.
pub type Recorder = Arc<dyn Fn(&Counted) -> Result<(), String> + Send + Sync>;

/// All namespaces of one gateway. `C` is what an entry holds; the servers use [`Content`](crate::content::Content). Cheap to clone.
pub struct Namespaces<C> {
    table: Arc<Mutex<Table<C>>>,
}

/// One job's artifacts, for as long as this value lives: dropping it removes the namespace from every server.
pub struct Publication<C> {
    table: Arc<Mutex<Table<C>>>,
    address: IpAddr,
    key: NamespaceKey,
}

/// A granted read: the content, and the access it counts as.
#[derive(Debug)]
pub struct Opened<C> {
    /// What to send.
    pub content: C,
    /// The running access; say how it ended with [`Access::end`].
    pub access: Access,
}

/// What answers a name live; see [`Namespaces::live`].
pub struct Live {
    /// Whom to ask.
    pub answer: Arc<dyn Answer>,
    /// The name below the prefix: with its leading slash, or empty.
    pub path: String,
    /// A watch on the publication.
    pub liveness: Liveness,
}

/// A running access. Dropped without [`Access::end`] it is reported as failed.
pub struct Access {
    number: u64,
    protocol: Protocol,
    name: String,
    observer: Observer,
    liveness: Liveness,
    tally: Option<Arc<Tally>>,
    bytes: u64,
    reported: u64,
    reported_at: Option<Instant>,
    ended: bool,
}

/// A watch on an access for whoever sees its bytes arrive after they were taken: behind a socket's buffer.
#[derive(Clone)]
pub struct Pulse {
    observer: Observer,
    liveness: Liveness,
}

impl Pulse {
    /// Whether the publication behind the access still stands.
    pub fn is_live(&self) -> bool {
        self.liveness.is_live()
    }

    /// The peer has taken some more.
    pub fn beat(&self) {
        (self.observer)(AccessEvent::Progress);
    }
}

impl fmt::Debug for Pulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a pulse, live: {}", self.is_live())
    }
}

/// Whether the publication that granted an access still stands: a transfer that outlives it has to stop.
#[derive(Clone, Debug)]
pub struct Liveness(Weak<()>);

impl Liveness {
    /// `false` once the publication was dropped.
    pub fn is_live(&self) -> bool {
        self.0.strong_count() > 0
    }
}

/// Another live publication already holds the address.
#[derive(Debug, thiserror::Error)]
#[error("address {0} already has a live namespace; release its lease first")]
pub struct AddressTaken(pub IpAddr);

struct Table<C> {
    by_address: HashMap<IpAddr, Namespace<C>>,
    by_key: HashMap<String, IpAddr>,
}

struct Namespace<C> {
    entries: Vec<Entry<C>>,
    answers: Vec<(String, Arc<dyn Answer>)>,
    outward: Outward,
    observer: Observer,
    recorder: Option<Recorder>,
    /// By protocol and entry: reads of this boot that were counted before the entry was put here.
    remembered: HashMap<(Protocol, String), (u64, Instant)>,
    accesses: u64,
    live: Arc<()>,
}

struct Entry<C> {
    protocol: Protocol,
    name: Name,
    content: C,
    exposure: Exposure,
    origin: Origin,
    published: Instant,
    count: u64,
    first_access: Option<Instant>,
    tally: Arc<Tally>,
    /// In any boot.
    was_read: bool,
}

impl<C> Clone for Namespaces<C> {
    fn clone(&self) -> Self {
        Namespaces { table: Arc::clone(&self.table) }
    }
}

impl<C: Clone> Default for Namespaces<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C: Clone> Namespaces<C> {
    /// No namespace yet.
    pub fn new() -> Self {
        Namespaces { table: Arc::new(Mutex::new(Table { by_address: HashMap::new(), by_key: HashMap::new() })) }
    }

    /// An empty namespace for the DUT at `address`.
    pub fn publish(&self, address: IpAddr, observer: Observer) -> Result<Publication<C>, AddressTaken> {
        let mut table = lock(&self.table);
        if table.by_address.contains_key(&address) {
            return Err(AddressTaken(address));
        }
        let key = NamespaceKey::random();
        table.by_key.insert(key.as_str().to_owned(), address);
        let namespace = Namespace {
            entries: Vec::new(),
            answers: Vec::new(),
            outward: Outward::default(),
            observer,
            recorder: None,
            remembered: HashMap::new(),
            accesses: 0,
            live: Arc::new(()),
        };
        table.by_address.insert(address, namespace);
        Ok(Publication { table: Arc::clone(&self.table), address, key })
    }

    /// What answers `name` live for `caller`, if something does. No access: what it is good for, and how often, it says itself.
    pub fn live(&self, caller: Caller<'_>, name: &str) -> Option<Live> {
        let mut table = lock(&self.table);
        let namespace = table.of(caller).ok()?;
        namespace.answers.iter().find_map(|(prefix, answer)| {
            let path = name.strip_prefix(prefix.as_str()).filter(|path| path.is_empty() || path.starts_with('/'))?;
            if matches!((answer.takes(), caller), (Takes::Json, Caller::Key(..))) {
                return None;
            }
            let (answer, path) = (Arc::clone(answer), path.to_owned());
            Some(Live { answer, path, liveness: Liveness(Arc::downgrade(&namespace.live)) })
        })
    }

    /// Opens `name` for `caller`: counts one access, or says why not. The refusal is reported to the namespace's observer here.
    pub fn open(&self, caller: Caller<'_>, protocol: Protocol, name: &str, now: Instant) -> Result<Opened<C>, Refusal> {
        let (opened, observer, record) = {
            let mut table = lock(&self.table);
            let namespace = table.of(caller)?;
            let index = namespace.allowed(caller, protocol, name, now)?;
            namespace.accesses += 1;
            let record = namespace.recorder.clone().zip(namespace.entries[index].count(now));
            let opened = namespace.opened(index, protocol, name);
            (opened, Arc::clone(&namespace.observer), record)
        };
        let (protocol, name, peer) = (protocol, name.to_owned(), caller.peer());
        if let Some(Err(reason)) = record.map(|(recorder, counted)| recorder(&counted)) {
            let refusal = Refusal::NotRecorded { reason };
            opened.access.never_begun();
            observer(AccessEvent::Refused { protocol, name, peer, refusal: refusal.clone() });
            return Err(refusal);
        }
        observer(AccessEvent::Opened { access: opened.access.number, protocol, name, peer });
        Ok(opened)
    }

    /// What `open` would give, without counting: HTTP HEAD, and the TFTP size probe of UEFI firmware that aborts after the OACK.
    pub fn look(&self, caller: Caller<'_>, protocol: Protocol, name: &str, now: Instant) -> Result<C, Refusal> {
        let mut table = lock(&self.table);
        let namespace = table.of(caller)?;
        let index = namespace.allowed(caller, protocol, name, now)?;
        Ok(namespace.entries[index].content.clone())
    }

    /// Whether the job or its boot method publishes exactly `name`, whatever its limits; patterns do not count, nothing is reported.
    pub fn publishes(&self, caller: Caller<'_>, protocol: Protocol, name: &str) -> bool {
        let mut table = lock(&self.table);
        let is_it =
            |entry: &Entry<C>| entry.protocol == protocol && matches!(&entry.name, Name::Exact(other) if other == name);
        table.of(caller).is_ok_and(|namespace| namespace.entries.iter().any(is_it))
    }

    /// Joins an access that is still running (a further connection to the same disk): counts nothing, but what expired is refused.
    pub fn join(&self, caller: Caller<'_>, protocol: Protocol, name: &str, now: Instant) -> Result<C, Refusal> {
        let mut table = lock(&self.table);
        let namespace = table.of(caller)?;
        let allowed =
            namespace.find(protocol, name).and_then(|index| namespace.entries[index].in_time(now).map(|()| index));
        let index = allowed.inspect_err(|refusal| namespace.report_refusal(protocol, name, caller.peer(), refusal))?;
        Ok(namespace.entries[index].content.clone())
    }

    /// Tells the namespace's observer of a refusal that is not for the namespace to decide.
    pub fn report(&self, caller: Caller<'_>, protocol: Protocol, name: &str, refusal: &Refusal) {
        if let Ok(namespace) = lock(&self.table).of(caller) {
            namespace.report_refusal(protocol, name, caller.peer(), refusal);
        }
    }

    /// The exact names that `caller` could ask for by `protocol` and this door, whatever their limits.
    pub fn names(&self, caller: Caller<'_>, protocol: Protocol, door: Door) -> Vec<String> {
        let exact = |entry: &Entry<C>| match &entry.name {
            Name::Exact(name) if entry.protocol == protocol && entry.exposure.admits(door).is_ok() => {
                Some(name.clone())
            }
            Name::Exact(_) | Name::Matching(..) => None,
        };
        let mut table = lock(&self.table);
        table.of(caller).map(|namespace| namespace.entries.iter().filter_map(exact).collect()).unwrap_or_default()
    }

    /// The address of the DUT whose namespace `caller` reaches.
    pub fn address_of(&self, caller: Caller<'_>) -> Option<IpAddr> {
        let table = lock(&self.table);
        let address = match caller {
            Caller::Address(address) => address,
            Caller::Key(key, _) => *table.by_key.get(key)?,
        };
        table.by_address.contains_key(&address).then_some(address)
    }

    /// Whether what `caller` means by `name` is to be had by this door; counts nothing, and reports a refusal.
    pub fn admits(&self, caller: Caller<'_>, protocol: Protocol, name: &str, door: Door) -> Result<(), Refusal> {
        let mut table = lock(&self.table);
        let namespace = table.of(caller)?;
        let found = namespace.find(protocol, name);
        let admitted = found.and_then(|index| namespace.entries[index].exposure.admits(door));
        admitted.inspect_err(|refusal| namespace.report_refusal(protocol, name, caller.peer(), refusal))
    }

    /// Goes on with an access that this boot already counted (a byte range of a file whose start was read). A name never opened in this
    /// boot, or sent as often as it was opened, is opened and counted instead; a name that expired meanwhile is refused.
    pub fn resume(
        &self,
        caller: Caller<'_>,
        protocol: Protocol,
        name: &str,
        now: Instant,
    ) -> Result<Opened<C>, Refusal> {
        {
            let mut table = lock(&self.table);
            let namespace = table.of(caller)?;
            if let Ok(index) = namespace.find(protocol, name)
                && namespace.entries[index].goes_on()
            {
                let in_time = namespace.entries[index].in_time(now);
                in_time.inspect_err(|refusal| namespace.report_refusal(protocol, name, caller.peer(), refusal))?;
                namespace.accesses += 1;
                let opened = namespace.opened(index, protocol, name);
                (namespace.observer)(AccessEvent::Resumed {
                    access: opened.access.number,
                    protocol,
                    name: name.to_owned(),
                    peer: caller.peer(),
                });
                return Ok(opened);
            }
        }
        self.open(caller, protocol, name, now)
    }
}

impl<C> Table<C> {
    fn of(&mut self, caller: Caller<'_>) -> Result<&mut Namespace<C>, Refusal> {
        let address = match caller {
            Caller::Address(address) => address,
            Caller::Key(key, _) => *self.by_key.get(key).ok_or(Refusal::UnknownCaller)?,
        };
        self.by_address.get_mut(&address).ok_or(Refusal::UnknownCaller)
    }
}

impl<C> Namespace<C> {
    fn find(&self, protocol: Protocol, name: &str) -> Result<usize, Refusal> {
        let matches = |wanted: Origin, exact: bool| {
            self.entries.iter().position(|entry| {
                entry.protocol == protocol
                    && entry.origin == wanted
                    && match (&entry.name, exact) {
                        (Name::Exact(text) | Name::Matching(text, _), true) => text == name,
                        (Name::Matching(_, matches), false) => matches(name),
                        (Name::Exact(_), false) => false,
                    }
            })
        };
        matches(Origin::Job, true)
            .or_else(|| matches(Origin::Job, false))
            .or_else(|| matches(Origin::Generated, true))
            .or_else(|| matches(Origin::Generated, false))
            .ok_or(Refusal::NoSuchName)
    }

    /// The entry that answers for `name` now; a refusal is reported.
    fn allowed(&self, caller: Caller<'_>, protocol: Protocol, name: &str, now: Instant) -> Result<usize, Refusal> {
        let allowed = self.find(protocol, name).and_then(|index| self.entries[index].allows(now).map(|()| index));
        allowed.inspect_err(|refusal| self.report_refusal(protocol, name, caller.peer(), refusal))
    }

    fn opened(&self, index: usize, protocol: Protocol, name: &str) -> Opened<C>
    where
        C: Clone,
    {
        let entry = &self.entries[index];
        let access = Access {
            number: self.accesses,
            protocol,
            name: name.to_owned(),
            observer: Arc::clone(&self.observer),
            liveness: Liveness(Arc::downgrade(&self.live)),
            tally: entry.exposure.counts().then(|| Arc::clone(&entry.tally)),
            bytes: 0,
            reported: 0,
            reported_at: None,
            ended: false,
        };
        Opened { content: entry.content.clone(), access }
    }

    fn report_refusal(&self, protocol: Protocol, name: &str, peer: IpAddr, refusal: &Refusal) {
        (self.observer)(AccessEvent::Refused { protocol, name: name.to_owned(), peer, refusal: refusal.clone() });
    }
}

impl<C> Entry<C> {
    fn allows(&self, now: Instant) -> Result<(), Refusal> {
        match self.exposure.access_count {
            Some(limit) if limit > 0 && self.count >= limit => Err(Refusal::Exhausted { access_count: limit }),
            _ => self.in_time(now),
        }
    }

    /// Counts an access; gives what is to be written down of it.
    fn count(&mut self, now: Instant) -> Option<Counted> {
        let is_news = self.exposure.counts() || (self.exposure.first_read.is_some() && self.first_access.is_none());
        self.count += 1;
        self.was_read = true;
        self.first_access.get_or_insert(now);
        let (Name::Exact(name) | Name::Matching(name, _)) = &self.name;
        is_news.then(|| Counted { protocol: self.protocol, entry: name.clone() })
    }

    /// Whether a range belongs to what was opened before.
    fn goes_on(&self) -> bool {
        self.count > 0 && !(self.exposure.counts() && self.tally.is_sent(self.count))
    }

    fn in_time(&self, now: Instant) -> Result<(), Refusal> {
        if let (Some(first_read), Some(first)) = (self.exposure.first_read, self.first_access)
            && now.saturating_duration_since(first) > first_read
        {
            return Err(Refusal::FirstReadOver { first_read });
        }
        match self.exposure.duration {
            Some(duration) if now.saturating_duration_since(self.published) > duration => {
                Err(Refusal::Expired { duration })
            }
            _ => Ok(()),
        }
    }
}

impl<C> Publication<C> {
    /// The unguessable key of this namespace.
    pub fn key(&self) -> &NamespaceKey {
        &self.key
    }

    /// The address whose caller reads this namespace.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Publishes `content`; the same exact name of the same protocol and origin is replaced.
    pub fn put(&self, protocol: Protocol, name: Name, content: C, exposure: Exposure, origin: Origin, now: Instant) {
        self.with(|namespace| {
            if let Name::Exact(text) = &name {
                namespace.entries.retain(|entry| {
                    entry.protocol != protocol
                        || entry.origin != origin
                        || !matches!(&entry.name, Name::Exact(other) if other == text)
                });
            }
            let (Name::Exact(text) | Name::Matching(text, _)) = &name;
            let key = (protocol, text.clone());
            let read = namespace.remembered.get(&key).filter(|_| origin == Origin::Job).copied();
            namespace.entries.push(Entry {
                protocol,
                name,
                content,
                exposure,
                origin,
                published: now,
                count: read.map_or(0, |(count, _)| count),
                first_access: read.map(|(_, first_access)| first_access),
                tally: Arc::new(if read.is_some() { Tally::all_sent() } else { Tally::default() }),
                was_read: read.is_some(),
            });
        });
    }

    /// Lets `answer` answer every HTTP request for `prefix` (`/_/messages`) and what is below it, before any entry; the same prefix is
    /// replaced. It belongs to the job rather than to a deployment: [`clear`](Self::clear) leaves it.
    pub fn answer(&self, prefix: &str, answer: Arc<dyn Answer>) {
        self.with(|namespace| {
            namespace.answers.retain(|(other, _)| other != prefix);
            namespace.answers.push((prefix.to_owned(), answer));
        });
    }

    /// Removes every entry, to publish another deployment under the same keys.
    pub fn clear(&self) {
        self.with(|namespace| namespace.entries.clear());
    }

    /// Has every access that counts against a limit written down from now on.
    pub fn record_with(&self, recorder: Recorder) {
        self.with(|namespace| namespace.recorder = Some(recorder));
    }

    /// An entry that is put here before the next boot was read before: so often, and for the first time then. What was sent of it is not
    /// known, so that a range is an access of its own.
    pub fn remember(&self, counted: Counted, count: u64, first_access: Instant) {
        self.with(|namespace| {
            namespace.remembered.insert((counted.protocol, counted.entry), (count, first_access));
        });
    }

    /// Protocol and name of every entry, and whether it was opened since it was put here.
    pub fn readings(&self) -> Vec<(Protocol, String, Reading)> {
        let mut readings = Vec::new();
        self.with(|namespace| {
            for Entry { protocol, name: Name::Exact(name) | Name::Matching(name, _), was_read, .. } in
                &namespace.entries
            {
                let reading = if *was_read { Reading::Read } else { Reading::Never };
                readings.push((*protocol, name.clone(), reading));
            }
        });
        readings
    }

    /// A new boot of the DUT: counters and first reads start again.
    pub fn begin_boot(&self) {
        self.with(|namespace| {
            namespace.remembered.clear();
            for entry in &mut namespace.entries {
                entry.count = 0;
                entry.first_access = None;
                entry.tally = Arc::default();
            }
        });
    }

    fn with(&self, change: impl FnOnce(&mut Namespace<C>)) {
        let mut table = lock(&self.table);
        let namespace =
            table.by_address.get_mut(&self.address).expect("a publication owns its address until it is dropped");
        change(namespace);
    }
}

impl<C> Drop for Publication<C> {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        table.by_address.remove(&self.address);
        table.by_key.remove(self.key.as_str());
    }
}

impl Access {
    /// A watch on the publication behind this access.
    pub fn liveness(&self) -> Liveness {
        self.liveness.clone()
    }

    /// What hears that bytes of this access still move.
    pub fn pulse(&self) -> Pulse {
        Pulse { observer: Arc::clone(&self.observer), liveness: self.liveness.clone() }
    }

    /// `bytes` more were taken by the peer.
    pub fn took(&mut self, bytes: u64, now: Instant) {
        // 256 KiB or a second, whatever comes first: a stall is seen within seconds also on the slowest link, and a fast one costs nothing.
        const PROGRESS_BYTES: u64 = 256 * 1024;
        const PROGRESS_TIME: Duration = Duration::from_secs(1);
        self.bytes += bytes;
        if let Some(tally) = &self.tally {
            tally.sent(bytes);
        }
        let since = *self.reported_at.get_or_insert(now);
        if self.bytes - self.reported >= PROGRESS_BYTES || now.saturating_duration_since(since) >= PROGRESS_TIME {
            (self.reported, self.reported_at) = (self.bytes, Some(now));
            (self.observer)(AccessEvent::Progress);
        }
    }

    /// What is read has so many bytes.
    pub fn is_of(&self, size: u64) {
        if let Some(tally) = &self.tally {
            tally.is_of(size);
        }
    }

    /// It was not granted after all: nobody hears of its end.
    fn never_begun(mut self) {
        self.ended = true;
    }

    /// The access is over.
    pub fn end(mut self, outcome: Outcome) {
        self.report(outcome);
    }

    fn report(&mut self, outcome: Outcome) {
        self.ended = true;
        (self.observer)(AccessEvent::Ended {
            access: self.number,
            protocol: self.protocol,
            name: self.name.clone(),
            bytes: self.bytes,
            outcome,
        });
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        if !self.ended {
            self.report(Outcome::Failed("the connection ended".to_owned()));
        }
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "access {} of {} {}", self.number, self.protocol, self.name)
    }
}

/// A panic inside a critical section leaves plain data behind: go on with it rather than stop every server.
fn lock<C>(table: &Mutex<Table<C>>) -> MutexGuard<'_, Table<C>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
