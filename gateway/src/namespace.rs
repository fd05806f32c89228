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
//! open. Counters start again with each boot ([`Publication::begin_boot`]).
//!
//! Look-up order: the job's exact names, the job's patterns in their order, then the generated names: a job that publishes the
//! name of a generated file wins.

use core::net::IpAddr;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::live::Answer;

/// The protocols that artifacts are served by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// HTTP/1.1 on the DUT side.
    Http,
    /// NBD, a network block device.
    Nbd,
    /// TFTP, RFC 1350.
    Tftp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Http => "HTTP",
            Protocol::Nbd => "NBD",
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
    /// A port besides the server's own where it is read as well, by HTTP.
    pub port: Option<u16>,
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
    /// Bytes moved in some access (sent at most every 256 KiB): boot progress without a console.
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
    bytes: u64,
    reported: u64,
    ended: bool,
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
    observer: Observer,
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
        let (entries, answers) = (Vec::new(), Vec::new());
        table.by_address.insert(address, Namespace { entries, answers, observer, accesses: 0, live: Arc::new(()) });
        Ok(Publication { table: Arc::clone(&self.table), address, key })
    }

    /// What answers `name` live for `caller`, if something does. No access: what it is good for, and how often, it says itself.
    pub fn live(&self, caller: Caller<'_>, name: &str) -> Option<Live> {
        let mut table = lock(&self.table);
        let namespace = table.of(caller).ok()?;
        namespace.answers.iter().find_map(|(prefix, answer)| {
            let path = name.strip_prefix(prefix.as_str()).filter(|path| path.is_empty() || path.starts_with('/'))?;
            let (answer, path) = (Arc::clone(answer), path.to_owned());
            Some(Live { answer, path, liveness: Liveness(Arc::downgrade(&namespace.live)) })
        })
    }

    /// Opens `name` for `caller`: counts one access, or says why not. The refusal is reported to the namespace's observer here.
    pub fn open(&self, caller: Caller<'_>, protocol: Protocol, name: &str, now: Instant) -> Result<Opened<C>, Refusal> {
        let mut table = lock(&self.table);
        let namespace = table.of(caller)?;
        let allowed =
            namespace.find(protocol, name).and_then(|index| namespace.entries[index].allows(now).map(|()| index));
        let index = allowed.inspect_err(|refusal| namespace.report_refusal(protocol, name, caller.peer(), refusal))?;
        namespace.accesses += 1;
        let entry = &mut namespace.entries[index];
        entry.count += 1;
        entry.was_read = true;
        entry.first_access.get_or_insert(now);
        let content = entry.content.clone();
        let access = namespace.access(protocol, name);
        (namespace.observer)(AccessEvent::Opened {
            access: access.number,
            protocol,
            name: name.to_owned(),
            peer: caller.peer(),
        });
        Ok(Opened { content, access })
    }

    /// What `open` would give, without counting: HTTP HEAD, and the TFTP size probe of UEFI firmware that aborts after the OACK.
    pub fn look(&self, caller: Caller<'_>, protocol: Protocol, name: &str, now: Instant) -> Result<C, Refusal> {
        let mut table = lock(&self.table);
        let namespace = table.of(caller)?;
        let allowed =
            namespace.find(protocol, name).and_then(|index| namespace.entries[index].allows(now).map(|()| index));
        let index = allowed.inspect_err(|refusal| namespace.report_refusal(protocol, name, caller.peer(), refusal))?;
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

    /// The exact names that `caller` could ask for by `protocol`, whatever their limits.
    pub fn names(&self, caller: Caller<'_>, protocol: Protocol) -> Vec<String> {
        let exact = |entry: &Entry<C>| match &entry.name {
            Name::Exact(name) if entry.protocol == protocol => Some(name.clone()),
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

    /// Whether what `caller` means by `name` is to be had at this port of its own; counts nothing, and reports a refusal.
    pub fn exposes(&self, caller: Caller<'_>, name: &str, port: u16) -> Result<(), Refusal> {
        let mut table = lock(&self.table);
        let namespace = table.of(caller)?;
        match namespace.find(Protocol::Http, name) {
            Ok(index) if namespace.entries[index].exposure.port == Some(port) => Ok(()),
            _ => {
                namespace.report_refusal(Protocol::Http, name, caller.peer(), &Refusal::NoSuchName);
                Err(Refusal::NoSuchName)
            }
        }
    }

    /// Goes on with an access that this boot already counted (a byte range of a file whose start was read). A name never opened
    /// in this boot is opened and counted instead; a name that expired meanwhile is refused.
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
                && namespace.entries[index].count > 0
            {
                let entry = &namespace.entries[index];
                let in_time = entry.in_time(now);
                in_time.inspect_err(|refusal| namespace.report_refusal(protocol, name, caller.peer(), refusal))?;
                let content = namespace.entries[index].content.clone();
                namespace.accesses += 1;
                let access = namespace.access(protocol, name);
                (namespace.observer)(AccessEvent::Resumed {
                    access: access.number,
                    protocol,
                    name: name.to_owned(),
                    peer: caller.peer(),
                });
                return Ok(Opened { content, access });
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

    fn access(&self, protocol: Protocol, name: &str) -> Access {
        Access {
            number: self.accesses,
            protocol,
            name: name.to_owned(),
            observer: Arc::clone(&self.observer),
            liveness: Liveness(Arc::downgrade(&self.live)),
            bytes: 0,
            reported: 0,
            ended: false,
        }
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
            namespace.entries.push(Entry {
                protocol,
                name,
                content,
                exposure,
                origin,
                published: now,
                count: 0,
                first_access: None,
                was_read: false,
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
            for entry in &mut namespace.entries {
                entry.count = 0;
                entry.first_access = None;
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

    /// `bytes` more were taken by the peer.
    pub fn took(&mut self, bytes: u64) {
        // 256 KiB: often enough to see a stall within seconds on a slow link, rare enough to cost nothing on a fast one.
        const PROGRESS_BYTES: u64 = 256 * 1024;
        self.bytes += bytes;
        if self.bytes - self.reported >= PROGRESS_BYTES {
            self.reported = self.bytes;
            (self.observer)(AccessEvent::Progress);
        }
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
mod tests {
    use super::*;

    const DUT: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(10, 77, 0, 11));
    const OTHER: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(10, 77, 0, 12));

    struct Scene {
        namespaces: Namespaces<&'static str>,
        publication: Publication<&'static str>,
        seen: Arc<Mutex<Vec<AccessEvent>>>,
        start: Instant,
    }

    fn scene() -> Scene {
        let namespaces = Namespaces::new();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let publication = namespaces.publish(DUT, Arc::new(move |event| log.lock().unwrap().push(event))).unwrap();
        Scene { namespaces, publication, seen, start: Instant::now() }
    }

    impl Scene {
        fn put(&self, name: &str, content: &'static str, exposure: Exposure) {
            self.publication.put(Protocol::Http, Name::Exact(name.into()), content, exposure, Origin::Job, self.start);
        }

        fn open_at(&self, seconds: u64, name: &str) -> Result<&'static str, Refusal> {
            let now = self.start + Duration::from_secs(seconds);
            self.namespaces.open(Caller::Address(DUT), Protocol::Http, name, now).map(|opened| opened.content)
        }
    }

    #[test]
    fn a_dut_reads_its_own_namespace_and_no_other() {
        let scene = scene();
        scene.put("/a", "mine", Exposure::default());
        assert_eq!(scene.open_at(0, "/a"), Ok("mine"));
        let stranger = scene.namespaces.open(Caller::Address(OTHER), Protocol::Http, "/a", scene.start);
        assert_eq!(stranger.unwrap_err(), Refusal::UnknownCaller);
        let tftp = scene.namespaces.open(Caller::Address(DUT), Protocol::Tftp, "/a", scene.start);
        assert_eq!(tftp.unwrap_err(), Refusal::NoSuchName);
    }

    #[test]
    fn the_key_opens_the_namespace_from_any_address_and_a_wrong_key_does_not() {
        let scene = scene();
        scene.put("/a", "mine", Exposure::default());
        let key = scene.publication.key().as_str().to_owned();
        let opened = scene.namespaces.open(Caller::Key(&key, OTHER), Protocol::Http, "/a", scene.start);
        assert_eq!(opened.unwrap().content, "mine");
        let guessed = scene.namespaces.open(Caller::Key("0", OTHER), Protocol::Http, "/a", scene.start);
        assert_eq!(guessed.unwrap_err(), Refusal::UnknownCaller);
    }

    #[test]
    fn access_count_is_counted_per_boot() {
        let scene = scene();
        scene.put("/a", "once", Exposure { access_count: Some(1), ..Exposure::default() });
        assert_eq!(scene.open_at(0, "/a"), Ok("once"));
        assert_eq!(scene.open_at(0, "/a"), Err(Refusal::Exhausted { access_count: 1 }));
        scene.publication.begin_boot();
        assert_eq!(scene.open_at(0, "/a"), Ok("once"));
    }

    #[test]
    fn a_look_and_a_resumed_range_are_not_accesses() {
        let scene = scene();
        scene.put("/a", "once", Exposure { access_count: Some(1), ..Exposure::default() });
        let caller = Caller::Address(DUT);
        assert_eq!(scene.namespaces.look(caller, Protocol::Http, "/a", scene.start), Ok("once"));
        assert!(
            scene.namespaces.resume(caller, Protocol::Http, "/a", scene.start).is_ok(),
            "a range before any read opens"
        );
        assert!(scene.namespaces.resume(caller, Protocol::Http, "/a", scene.start).is_ok(), "a second range goes on");
        assert_eq!(scene.open_at(0, "/a"), Err(Refusal::Exhausted { access_count: 1 }));
    }

    #[test]
    fn a_running_access_can_be_joined_until_its_name_expires() {
        let scene = scene();
        let (access_count, duration) = (Some(1), Some(Duration::from_secs(5)));
        scene.put("/disk", "d", Exposure { access_count, duration, ..Exposure::default() });
        assert_eq!(scene.open_at(0, "/disk"), Ok("d"));
        let join_at = |seconds| {
            let now = scene.start + Duration::from_secs(seconds);
            scene.namespaces.join(Caller::Address(DUT), Protocol::Http, "/disk", now)
        };
        assert_eq!(join_at(5), Ok("d"), "joining is not another access");
        assert_eq!(join_at(6), Err(Refusal::Expired { duration: Duration::from_secs(5) }));
        assert_eq!(scene.seen.lock().unwrap().len(), 3, "opened, ended, and one refusal");
    }

    #[test]
    fn a_caller_sees_its_own_names_only() {
        let scene = scene();
        scene.put("/a", "a", Exposure::default());
        let names = |address, protocol| scene.namespaces.names(Caller::Address(address), protocol);
        assert_eq!(names(DUT, Protocol::Http), ["/a"]);
        assert!(names(DUT, Protocol::Nbd).is_empty() && names(OTHER, Protocol::Http).is_empty());
        let key = scene.publication.key().as_str().to_owned();
        assert_eq!(scene.namespaces.address_of(Caller::Key(&key, OTHER)), Some(DUT));
        assert_eq!(scene.namespaces.address_of(Caller::Address(OTHER)), None);
    }

    #[test]
    fn first_read_and_duration_end_by_the_clock_they_name() {
        let scene = scene();
        let five = Some(Duration::from_secs(5));
        scene.put("/first", "f", Exposure { first_read: five, ..Exposure::default() });
        scene.put("/until", "u", Exposure { duration: five, ..Exposure::default() });
        assert_eq!(scene.open_at(5, "/until"), Ok("u"));
        assert_eq!(scene.open_at(6, "/until"), Err(Refusal::Expired { duration: Duration::from_secs(5) }));
        assert_eq!(scene.open_at(100, "/first"), Ok("f"));
        assert_eq!(scene.open_at(105, "/first"), Ok("f"));
        assert_eq!(scene.open_at(106, "/first"), Err(Refusal::FirstReadOver { first_read: Duration::from_secs(5) }));
    }

    #[test]
    fn a_jobs_own_name_wins_over_a_generated_one_and_exact_over_pattern() {
        let scene = scene();
        let put = |name, content, origin| {
            scene.publication.put(Protocol::Http, name, content, Exposure::default(), origin, scene.start)
        };
        put(Name::Exact("/config.txt".into()), "generated", Origin::Generated);
        assert_eq!(scene.open_at(0, "/config.txt"), Ok("generated"));
        put(Name::Matching("/.*".into(), Arc::new(|_| true)), "pattern", Origin::Job);
        assert_eq!(scene.open_at(0, "/config.txt"), Ok("pattern"));
        put(Name::Matching("/config.txt".into(), Arc::new(|_| false)), "job", Origin::Job);
        assert_eq!(scene.open_at(0, "/config.txt"), Ok("job"), "a pattern's own text is an exact name");
    }

    #[test]
    fn dropping_the_publication_closes_both_doors() {
        let scene = scene();
        scene.put("/a", "mine", Exposure::default());
        let key = scene.publication.key().as_str().to_owned();
        assert!(scene.namespaces.publish(DUT, Arc::new(|_| ())).is_err(), "one live namespace per address");
        let Scene { namespaces, publication, start, .. } = scene;
        let running = namespaces.open(Caller::Address(DUT), Protocol::Http, "/a", start).unwrap().access.liveness();
        assert!(running.is_live());
        drop(publication);
        assert!(!running.is_live(), "a transfer that runs hears of it");
        assert_eq!(
            namespaces.open(Caller::Address(DUT), Protocol::Http, "/a", start).unwrap_err(),
            Refusal::UnknownCaller
        );
        assert_eq!(
            namespaces.open(Caller::Key(&key, DUT), Protocol::Http, "/a", start).unwrap_err(),
            Refusal::UnknownCaller
        );
        assert!(namespaces.publish(DUT, Arc::new(|_| ())).is_ok());
    }

    #[test]
    fn only_exact_names_are_published_exactly() {
        let scene = scene();
        scene.put("/a", "a", Exposure::default());
        let any = Name::Matching("/.*".into(), Arc::new(|_| true));
        scene.publication.put(Protocol::Http, any, "any", Exposure::default(), Origin::Job, scene.start);
        let publishes = |name| scene.namespaces.publishes(Caller::Address(DUT), Protocol::Http, name);
        assert_eq!((publishes("/a"), publishes("/b")), (true, false));
        assert!(scene.seen.lock().unwrap().is_empty(), "asking is not an access");
    }

    #[test]
    fn every_access_and_every_refusal_is_reported_once() {
        let scene = scene();
        scene.put("/a", "mine", Exposure::default());
        let opened = scene.namespaces.open(Caller::Address(DUT), Protocol::Http, "/a", scene.start).unwrap();
        let mut access = opened.access;
        access.took(300 * 1024);
        access.end(Outcome::Complete);
        let _ = scene.open_at(0, "/missing");
        let name = || "/a".to_owned();
        let protocol = Protocol::Http;
        assert_eq!(
            *scene.seen.lock().unwrap(),
            [
                AccessEvent::Opened { access: 1, protocol, name: name(), peer: DUT },
                AccessEvent::Progress,
                AccessEvent::Ended { access: 1, protocol, name: name(), bytes: 300 * 1024, outcome: Outcome::Complete },
                AccessEvent::Refused { protocol, name: "/missing".into(), peer: DUT, refusal: Refusal::NoSuchName },
            ]
        );
    }
}
