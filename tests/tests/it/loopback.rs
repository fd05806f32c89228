//! The gateway's servers in this process, with one namespace for one caller: what other people's clients are let loose on. They could
//! not reach a farm's own network.
//!
//! ```text
//!   start()     servers and clients on the host's loopback, free ports
//!   across()    servers ── a link that loses and delays ── clients: two network namespaces that nobody else is in
//! ```

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gateway::content::Content;
use gateway::content::disk::{self, Base, Disk, Mode};
use gateway::namespace::{AccessEvent, Exposure, Name, Origin, Protocol, Publication};
use gateway::net::Net;
use gateway::tftp::Engine;
use gateway::{Config, Gateway};
use tests::bad_link::{BadLink, Faults};
use tests::bench::until;
use tests::lab::Lab;

/// Servers, and what the namespace's observer heard. Fields are dropped from the first to the last: the runtime outlives its tasks.
pub(crate) struct Loopback {
    publication: Publication<Content>,
    gateway: Gateway,
    events: Arc<Mutex<Vec<AccessEvent>>>,
    folder: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    distance: Option<Distance>,
}

/// Where clients are that are not on the loopback.
struct Distance {
    far: Lab,
    link: BadLink,
}

/// The two ends of a bad link.
const NEAR: Ipv4Addr = Ipv4Addr::new(10, 77, 5, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 77, 5, 2);

/// 40 MB: more than 65535 blocks of 512 bytes, so that block numbers begin again.
pub(crate) const LARGE_BYTES: usize = 40_000_000;

impl Loopback {
    pub(crate) fn start() -> Loopback {
        Loopback::start_with(Engine::Own)
    }

    /// The same with this engine for TFTP.
    pub(crate) fn start_with(tftp_engine: Engine) -> Loopback {
        Loopback::serve(Config { tftp_engine, ..Config::default() }, Ipv4Addr::LOCALHOST, None)
    }

    /// The servers at one end of a link with these faults, and [`command`](Self::command)s at its other. `None`: nobody may make a network
    /// namespace here.
    pub(crate) fn across(faults: Faults) -> Option<Loopback> {
        let near = match Lab::new() {
            Ok(near) => near,
            Err(error) => {
                eprintln!("SKIPPED: {error}");
                return None;
            }
        };
        let far = Lab::new().unwrap();
        let link = BadLink::lay(&near, &[NEAR], &far, &[FAR], faults).unwrap();
        let net = Net::namespace(near.handle().unwrap());
        let config = Config { net, address: NEAR, prefix_length: 24, ..Config::default() };
        Some(Loopback::serve(config, FAR, Some(Distance { far, link })))
    }

    fn serve(config: Config, caller: Ipv4Addr, distance: Option<Distance>) -> Loopback {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let config = Config { cache_directory: folder.path().join("cache"), ..config };
        let gateway = runtime.block_on(Gateway::start(config)).unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&events);
        let observer = Arc::new(move |event| {
            if event != AccessEvent::Progress {
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            }
        });
        let publication = gateway.namespaces().publish(IpAddr::V4(caller), observer).unwrap();
        Loopback { publication, gateway, events, folder, runtime, distance }
    }

    /// A client, where the caller of the namespace is.
    pub(crate) fn command(&self, program: &str) -> Command {
        match &self.distance {
            Some(distance) => distance.far.command(program).unwrap(),
            None => Command::new(program),
        }
    }

    /// The link to the clients.
    pub(crate) fn link(&self) -> Option<&BadLink> {
        self.distance.as_ref().map(|distance| &distance.link)
    }

    /// Publishes bytes under one protocol; as a file on disk, as a job's downloads are.
    pub(crate) fn put(&self, protocol: Protocol, name: &str, bytes: &[u8], exposure: Exposure) {
        let path = self.folder.path().join(format!("{protocol}-{}", name.replace('/', "-")));
        std::fs::write(&path, bytes).unwrap();
        self.put_path(protocol, name, path, exposure);
    }

    /// Publishes a file under HTTP.
    pub(crate) fn put_file(&self, name: &str, path: &Path, exposure: Exposure) {
        self.put_path(Protocol::Http, name, path.to_owned(), exposure);
    }

    fn put_path(&self, protocol: Protocol, name: &str, path: PathBuf, exposure: Exposure) {
        let name = Name::Exact(name.to_owned());
        self.publication.put(protocol, name, Content::File(path), exposure, Origin::Job, Instant::now());
    }

    /// Publishes a disk that takes four connections.
    pub(crate) fn put_disk(&self, name: &str, base: Base, mode: Mode, exposure: Exposure) -> Disk {
        let directory = self.folder.path().join("disks");
        let disk = disk::Config { base, mode, directory, attachments_max: 4 };
        let disk = self.block_on(Disk::make(disk)).unwrap();
        let (name, content) = (Name::Exact(name.to_owned()), Content::Disk(disk.clone()));
        self.publication.put(Protocol::Nbd, name, content, exposure, Origin::Job, Instant::now());
        disk
    }

    /// The address of an export.
    pub(crate) fn nbd_url(&self, name: &str) -> String {
        format!("nbd://{}/{name}", self.gateway.addresses().nbd.unwrap())
    }

    /// The certificate of the authority that the servers' own are of.
    pub(crate) fn ca_pem(&self) -> &str {
        self.gateway.tls().ca_pem()
    }

    /// Runs a future among the servers.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub(crate) fn tftp(&self) -> SocketAddr {
        self.gateway.addresses().tftp.unwrap()
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.gateway.addresses().http.unwrap()
    }

    /// A path that no client wrote to yet.
    pub(crate) fn fresh(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join("clients").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = std::fs::remove_file(&path);
        path
    }

    /// What the observer heard so far.
    pub(crate) fn events(&self) -> Vec<AccessEvent> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the observer heard so many events. The last acknowledgement of a transfer may be on its way when its client is done.
    pub(crate) fn events_of(&self, count: usize) -> Vec<AccessEvent> {
        let enough = || Some(self.events()).filter(|events| events.len() >= count);
        until(Duration::from_secs(20), enough).unwrap_or_else(|| panic!("not {count} events: {:?}", self.events()))
    }
}

/// Bytes in which no two blocks are alike: a server that sends the wrong block is found out.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    // Knuth's multiplier for 64-bit linear congruential generators (MMIX).
    let mut state: u64 = 1;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()
    });
    words.flatten().take(length).collect()
}
