//! Machines that have an address of the range and no name: what they may boot, and that they may register.
//!
//! ```text
//!  DHCP: an unknown MAC gets an address ──► hear ──► a namespace at that address ─┬─ what registers it to boot, while it may
//!                                             │                                   └─ /api/v1/machine/, /api/v1/dut/: itself alone
//!                                             └─ it asks for something to boot ──► Sighting ──► the discovery that runs
//! ```
//! Called between two datagrams, so that the namespace is there before the machine reads its first byte. A machine that registered, or
//! whose address somebody else has now, loses its namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use gateway::content::Content;
use gateway::dhcp::{Architecture, ClientKind, DhcpEvent, Mac, Machine, MachineUuid, Outcome, Silence};
use gateway::namespace::{AccessEvent, Exposure, Name, Namespaces, Origin, Protocol, Publication};
use tokio::sync::mpsc;

use super::registrar::Registrar;
use crate::farm::Farm;

/// Strangers with a namespace: a rack or two that is switched on at once. The one that was not heard of for longest goes first.
const STRANGERS_MAX: usize = 256;
/// Names that a stranger read, for whoever wonders how far it came.
const FETCHED_MAX: usize = 16;

/// The machines without a name that were heard of.
#[derive(Default)]
pub(in crate::farm) struct Strangers(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// Where their namespaces are, and who registers them; absent while the farm starts.
    serves: Option<(Namespaces<Content>, Weak<Farm>)>,
    known: BTreeMap<Mac, Stranger>,
    boot: Option<Arc<Boot>>,
    told_to: Option<mpsc::Sender<Sighting>>,
}

struct Stranger {
    address: Ipv4Addr,
    publication: Publication<Content>,
    /// The boot that is in its namespace.
    boot: Option<Arc<Boot>>,
    fetched: Fetched,
    /// Another DHCP server, whose address it took.
    other_server: Option<Ipv4Addr>,
    heard: Instant,
}

type Fetched = Arc<Mutex<Vec<String>>>;

/// What registers a machine, ready to be served.
pub(in crate::farm) struct Boot {
    pub entries: Vec<Entry>,
}

/// One name of it.
pub(in crate::farm) struct Entry {
    pub protocol: Protocol,
    pub name: Name,
    pub content: Content,
    pub exposure: Exposure,
    pub origin: Origin,
}

/// A stranger asked for something to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::farm) struct Sighting {
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub client: ClientKind,
    pub architecture: Option<Architecture>,
    pub uuid: Option<MachineUuid>,
}

impl fmt::Display for Sighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} asks for something to boot", self.mac)?;
        let program = match self.client {
            ClientKind::Ipxe => "iPXE",
            ClientKind::Pxe => "PXE",
            ClientKind::HttpBoot => "UEFI HTTP boot",
            ClientKind::UBoot => "U-Boot",
            ClientKind::OtherNetboot | ClientKind::OperatingSystem => "another program",
        };
        match self.architecture {
            Some(architecture) => write!(f, ": {program}, {architecture}, address {}", self.address),
            None => write!(f, ": {program}, address {}", self.address),
        }
    }
}

impl Strangers {
    /// From now on strangers are served there, and register with this farm.
    pub(in crate::farm) fn serve(&self, namespaces: Namespaces<Content>, farm: Weak<Farm>) {
        self.lock().serves = Some((namespaces, farm));
    }

    /// What a machine of the farm says of itself in its own namespace.
    pub(in crate::farm) fn registrar(&self, mac: Mac, address: IpAddr) -> Option<Registrar> {
        let IpAddr::V4(address) = address else { return None };
        let (_, farm) = self.lock().serves.clone()?;
        Some(Registrar::of(farm, mac, address))
    }

    /// What strangers boot from now on; `None`: nothing.
    pub(in crate::farm) fn offer(&self, boot: Option<Arc<Boot>>) {
        let mut inner = self.lock();
        inner.boot = boot;
        let boot = inner.boot.clone();
        inner.known.values_mut().for_each(|stranger| stranger.follow(boot.as_ref()));
    }

    /// Who hears of strangers that ask for something to boot.
    pub(in crate::farm) fn tell(&self, to: Option<mpsc::Sender<Sighting>>) {
        self.lock().told_to = to;
    }

    /// The machine is no stranger any more.
    pub(in crate::farm) fn forget(&self, mac: Mac) {
        let forgotten = self.lock().known.remove(&mac);
        // Its namespace goes with nothing locked.
        drop(forgotten);
    }

    /// These addresses belong to machines of the farm now: whoever had one of them gets another, and a namespace there.
    pub(in crate::farm) fn make_room(&self, taken: &BTreeSet<Ipv4Addr>) {
        let mut inner = self.lock();
        inner.known.retain(|_, stranger| !taken.contains(&stranger.address));
    }

    /// What a stranger has read.
    pub(in crate::farm) fn fetched(&self, mac: Mac) -> Vec<String> {
        let inner = self.lock();
        inner.known.get(&mac).map(|stranger| lock(&stranger.fetched).clone()).unwrap_or_default()
    }

    /// The other DHCP server that a stranger went with.
    pub(in crate::farm) fn other_server(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.lock().known.get(&mac)?.other_server
    }

    /// One request of DHCP. Must not block.
    pub(in crate::farm) fn hear(&self, event: &DhcpEvent) {
        let is_answered = matches!(event.outcome, Outcome::Offered | Outcome::Acknowledged);
        let mut inner = self.lock();
        if event.machine == Machine::Reserved {
            inner.known.remove(&event.mac);
            return;
        }
        if let Outcome::Unanswered(Silence::OtherServer(server)) = event.outcome {
            let told_to = inner.goes_with(event.mac, server);
            drop(inner);
            if let Some(farm) = told_to {
                let next = "switch that server off, or put the machine where it is not heard";
                farm.tell_discovery(&format!(
                    "{} takes its address from another DHCP server, {server}: {next}",
                    event.mac
                ));
            }
            return;
        }
        let Some(address) = event.address.filter(|_| is_answered) else { return };
        if let Err(why) = inner.let_in(event.mac, address) {
            tracing::warn!(mac = %event.mac, %address, why, "a machine without a name cannot register");
            return;
        }
        if event.client.boots_from_network()
            && let Some(told_to) = &inner.told_to
        {
            let DhcpEvent { mac, client, architecture, uuid, .. } = *event;
            // A discovery that is behind by that many hears of this machine when it asks again.
            let _ = told_to.try_send(Sighting { mac, address, client, architecture, uuid });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }
}

impl Inner {
    /// It took another server's address; who is to hear of it, the first time.
    fn goes_with(&mut self, mac: Mac, server: Ipv4Addr) -> Option<Arc<Farm>> {
        let stranger = self.known.get_mut(&mac)?;
        let before = stranger.other_server.replace(server);
        let (_, farm) = self.serves.as_ref()?;
        farm.upgrade().filter(|_| before != Some(server))
    }

    /// Makes its namespace, or leaves the one that it has.
    fn let_in(&mut self, mac: Mac, address: Ipv4Addr) -> Result<(), String> {
        let Some((namespaces, farm)) = &self.serves else { return Ok(()) };
        let now = Instant::now();
        if let Some(stranger) = self.known.get_mut(&mac).filter(|stranger| stranger.address == address) {
            stranger.heard = now;
            return Ok(());
        }
        self.known.retain(|other, stranger| *other != mac && stranger.address != address);
        let oldest = || self.known.iter().min_by_key(|(_, stranger)| stranger.heard).map(|(mac, _)| *mac);
        if self.known.len() >= STRANGERS_MAX
            && let Some(oldest) = oldest()
        {
            self.known.remove(&oldest);
        }
        let fetched = Fetched::default();
        let noted = Arc::clone(&fetched);
        let published = namespaces.publish(IpAddr::V4(address), Arc::new(move |event| note(&noted, event)));
        let publication = published.map_err(|taken| taken.to_string())?;
        Registrar::of(farm.clone(), mac, address).answer_in(&publication);
        let mut stranger = Stranger { address, publication, boot: None, fetched, other_server: None, heard: now };
        stranger.follow(self.boot.as_ref());
        self.known.insert(mac, stranger);
        Ok(())
    }
}

impl Stranger {
    /// Has this boot in its namespace and no other.
    fn follow(&mut self, boot: Option<&Arc<Boot>>) {
        let is_the_same = match (&self.boot, boot) {
            (Some(has), Some(boot)) => Arc::ptr_eq(has, boot),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if is_the_same {
            return;
        }
        self.publication.clear();
        let now = Instant::now();
        for Entry { protocol, name, content, exposure, origin } in boot.iter().flat_map(|boot| &boot.entries) {
            self.publication.put(*protocol, name.clone(), content.clone(), *exposure, *origin, now);
        }
        self.boot = boot.cloned();
    }
}

fn note(fetched: &Fetched, event: AccessEvent) {
    let line = match event {
        AccessEvent::Opened { protocol, name, .. } => format!("{protocol} {name}"),
        AccessEvent::Refused { protocol, name, refusal, .. } => format!("{protocol} {name} (refused: {refusal})"),
        AccessEvent::Resumed { .. } | AccessEvent::Progress | AccessEvent::Ended { .. } => return,
    };
    let mut fetched = lock(fetched);
    if fetched.len() < FETCHED_MAX {
        fetched.push(line);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
