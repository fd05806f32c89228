//! All servers of one farm from one configuration: what the executor holds.
//!
//! ```text
//!  Config ──► Gateway::start ──┬─► dhcp  0.0.0.0:67 on the interface      ports.dhcp     None: reservations kept, nobody answered
//!                              │         and :4011 as a proxy             dhcp_role
//!                              ├─► dhcp::advertise (IPv6, lifetime 0)     with an interface only
//!                              ├─► tftp  address:69                       ports.tftp     None: not started
//!                              ├─► http  address:80                       ports.http     None: not started
//!                              ├─► nbd   address:10809                    ports.nbd      None: not started
//!                              ├─► s3    address:9000                     ports.s3       None: not started
//!                              ├─► images  address:5000, HTTP             ports.registry None, or no `registry`: not started
//!                              ├─► cache (downloads leave by the host's network)
//!                              └─► authority, and the TLS of http and nbd made of it
//!  Gateway::open_port ──► http | tftp  address:port, for as long as somebody holds it
//! ```
//! Dropping it stops every server at once; [`Gateway::drain`] lets running transfers end first.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use crate::content::cache::{self, Cache, FileUrls};
use crate::content::reach::OwnNetworks;
use crate::content::stores::Store;
use crate::content::{Content, ContentError};
use crate::dhcp::{self, ReplyTo, advertise};
use crate::egress::Network;
use crate::namespace::{Namespaces, Protocol};
use crate::net::Net;
use crate::outside::{Internet, Outside};
use crate::tls::Tls;
use crate::tls::authority::{Authority, AuthorityError};
use crate::{http, nbd, registry, s3, tftp};

/// Which ports the servers take: `None` switches a server off, 0 takes a free port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// DHCP, RFC 2131.
    pub dhcp: Option<u16>,
    /// TFTP, RFC 1350.
    pub tftp: Option<u16>,
    /// HTTP.
    pub http: Option<u16>,
    /// NBD.
    pub nbd: Option<u16>,
    /// S3.
    pub s3: Option<u16>,
    /// Container images.
    pub registry: Option<u16>,
}

impl Ports {
    /// The ports that firmware, kernels and clients ask: 67, 69, 80, 10809, 9000, 5000.
    pub const fn standard() -> Self {
        let (s3, registry) = (Some(s3::PORT), Some(registry::PORT));
        Ports { dhcp: Some(67), tftp: Some(69), http: Some(80), nbd: Some(nbd::PORT), s3, registry }
    }

    /// Free ports, for farms on loopback: [`Gateway::addresses`] tells them.
    pub const fn ephemeral() -> Self {
        Ports { dhcp: Some(0), tftp: Some(0), http: Some(0), nbd: Some(0), s3: Some(0), registry: Some(0) }
    }
}

impl Default for Ports {
    fn default() -> Self {
        Ports::standard()
    }
}

/// What to serve, and where.
#[derive(Clone)]
pub struct Config {
    /// The network to make the sockets in.
    pub net: Net,
    /// The link that DUTs are on; `None` on loopback.
    pub interface: Option<String>,
    /// Our address on it.
    pub address: Ipv4Addr,
    /// Length of its network's prefix.
    pub prefix_length: u8,
    /// Which ports.
    pub ports: Ports,
    /// Whether the DHCP server gives addresses.
    pub dhcp_role: dhcp::Role,
    /// The router to announce to DUTs.
    pub router: Option<Ipv4Addr>,
    /// The name servers to announce to DUTs.
    pub name_servers: Vec<Ipv4Addr>,
    /// What moves the blocks of TFTP.
    pub tftp_engine: tftp::Engine,
    /// Who hears of each DHCP request.
    pub dhcp_observer: dhcp::Observer,
    /// Where downloaded artifacts are kept.
    pub cache_directory: PathBuf,
    /// Whether jobs may name files of this machine.
    pub file_urls: FileUrls,
    /// Where `s3://` URLs lead.
    pub stores: Arc<[Store]>,
    /// Other registries' images, where it has some.
    pub registry: Option<registry::Config>,
    /// Where the key and certificate of the farm's own authority are kept; without it there is a new one at each start.
    pub authority_directory: Option<PathBuf>,
}

impl Default for Config {
    /// Loopback, free ports, the system's cache directory, and nobody who listens.
    fn default() -> Self {
        Config {
            net: Net::host(),
            interface: None,
            address: Ipv4Addr::LOCALHOST,
            prefix_length: 8,
            ports: Ports::ephemeral(),
            dhcp_role: dhcp::Role::default(),
            router: None,
            name_servers: Vec::new(),
            tftp_engine: tftp::Engine::Own,
            dhcp_observer: Arc::new(|_| ()),
            cache_directory: PathBuf::from("/var/cache/wharfinger/artifacts"),
            file_urls: FileUrls::default(),
            stores: Arc::default(),
            registry: None,
            authority_directory: None,
        }
    }
}

/// Which server did not start, and why.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The DHCP server.
    #[error("{0}")]
    Dhcp(#[source] io::Error),
    /// The router advertisements.
    #[error("cannot advertise on the farm's network: {0}")]
    Advertise(#[source] io::Error),
    /// The TFTP server.
    #[error("cannot serve TFTP on {address}: {source}{}", hint(.source, *.address))]
    Tftp {
        /// Where it should listen.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The HTTP server.
    #[error("cannot serve HTTP on {address}: {source}{}", hint(.source, *.address))]
    Http {
        /// Where it should listen.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The NBD server.
    #[error("cannot serve NBD on {address}: {source}{}", hint(.source, *.address))]
    Nbd {
        /// Where it should listen.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The S3 server.
    #[error("cannot serve S3 on {address}: {source}{}", hint(.source, *.address))]
    S3 {
        /// Where it should listen.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The server of container images.
    #[error("cannot serve container images on {address}: {source}{}", hint(.source, *.address))]
    Registry {
        /// Where it should listen.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The cache of container images.
    #[error("cannot keep container images in {}: {source}", path.display())]
    Images {
        /// Its folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The artifact cache.
    #[error(transparent)]
    Cache(#[from] ContentError),
    /// The farm's certificate authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// The next step, for the errors that a farm's administrator meets first.
fn hint(error: &io::Error, address: SocketAddr) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("; another server has port {}: stop it, or give this one another port", address.port())
        }
        io::ErrorKind::AddrNotAvailable => "; the farm's interface does not have this address".to_owned(),
        io::ErrorKind::PermissionDenied => "; it needs root, CAP_NET_BIND_SERVICE or a private network".to_owned(),
        _ => String::new(),
    }
}

/// Where the servers listen; `None` for those that are off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// DHCP.
    pub dhcp: Option<SocketAddr>,
    /// TFTP.
    pub tftp: Option<SocketAddr>,
    /// HTTP.
    pub http: Option<SocketAddr>,
    /// NBD.
    pub nbd: Option<SocketAddr>,
    /// S3.
    pub s3: Option<SocketAddr>,
    /// Container images.
    pub registry: Option<SocketAddr>,
}

/// The running servers of one farm.
pub struct Gateway {
    namespaces: Namespaces<Content>,
    cache: Cache,
    dhcp: dhcp::Server,
    addresses: Addresses,
    nbd_connections: Option<nbd::Connections>,
    s3: s3::Door,
    registry: Option<registry::Door>,
    running: Mutex<Running>,
    config: Config,
    tls: Tls,
    ports: tokio::sync::Mutex<HashMap<(Protocol, u16), Weak<PortServer>>>,
}

/// A port besides the servers' own, closed when its last clone is dropped.
#[derive(Clone, Debug)]
pub struct OpenPort(Arc<PortServer>);

#[derive(Debug)]
enum PortServer {
    Http(http::Server),
    Tftp(tftp::Server),
}

impl OpenPort {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        match &*self.0 {
            PortServer::Http(server) => server.address(),
            PortServer::Tftp(server) => server.address(),
        }
    }
}

/// What a drain takes away.
#[derive(Default)]
struct Running {
    tftp: Option<tftp::Server>,
    http: Option<http::Server>,
    nbd: Option<nbd::Server>,
    s3: Option<s3::Server>,
    registry: Option<http::Server>,
    advertiser: Option<advertise::Advertiser>,
}

impl Gateway {
    /// Starts the servers; either all of them run afterwards, or none.
    pub async fn start(config: Config) -> Result<Self, GatewayError> {
        let cache_config = cache::Config {
            file_urls: config.file_urls,
            stores: Arc::clone(&config.stores),
            own: own_networks(&config),
            ..cache::Config::new(&config.cache_directory)
        };
        let cache = Cache::new(cache_config)?;
        let namespaces = Namespaces::new();
        let tls = make_tls(&config)?;
        let dhcp = start_dhcp(&config).await?;
        let door = s3::Door::new(s3::desk::Desk::default());
        let images = open_images(&config)?;
        let running = Running {
            tftp: start_tftp(&config, &namespaces).await?,
            http: start_http(&config, &namespaces, &tls).await?,
            nbd: start_nbd(&config, &namespaces, &tls).await?,
            s3: start_s3(&config, &door, &tls).await?,
            registry: start_images(&config, &namespaces, images.as_ref()).await?,
            advertiser: start_advertiser(&config)?,
        };
        let addresses = Addresses {
            dhcp: config.ports.dhcp.map(|_| dhcp.address()),
            tftp: running.tftp.as_ref().map(tftp::Server::address),
            http: running.http.as_ref().map(http::Server::address),
            nbd: running.nbd.as_ref().map(nbd::Server::address),
            s3: running.s3.as_ref().map(s3::Server::address),
            registry: running.registry.as_ref().map(http::Server::address),
        };
        let nbd_connections = running.nbd.as_ref().map(nbd::Server::connections);
        let (running, ports) = (Mutex::new(running), tokio::sync::Mutex::default());
        let (s3, registry) = (door, images);
        Ok(Gateway { namespaces, cache, dhcp, addresses, nbd_connections, s3, registry, running, config, tls, ports })
    }

    /// HTTP (in clear and over TLS) or TFTP at a port besides, for what is exposed there; callers share it.
    pub async fn open_port(&self, protocol: Protocol, port: u16) -> Result<OpenPort, GatewayError> {
        let mut ports = self.ports.lock().await;
        ports.retain(|_, server| server.strong_count() > 0);
        if let Some(server) = ports.get(&(protocol, port)).and_then(Weak::upgrade) {
            return Ok(OpenPort(server));
        }
        let server = match protocol {
            Protocol::Tftp => self.tftp_at(port).await?,
            Protocol::Http => self.http_at(port).await?,
            Protocol::Fastboot | Protocol::Nbd | Protocol::Proxy | Protocol::Registry => {
                let why = format!("{protocol} has no ports besides");
                let source = io::Error::new(io::ErrorKind::Unsupported, why);
                return Err(GatewayError::Nbd { address: SocketAddr::new(self.config.address.into(), port), source });
            }
        };
        let server = Arc::new(server);
        ports.insert((protocol, port), Arc::downgrade(&server));
        Ok(OpenPort(server))
    }

    async fn http_at(&self, port: u16) -> Result<PortServer, GatewayError> {
        let listen = SocketAddr::new(self.config.address.into(), port);
        let config = http::Config {
            interface: self.config.interface.clone(),
            serves: http::Serves::ExposedAt(port),
            tls: Some(self.tls.clone()),
            ..http::Config::new(self.config.net.clone(), listen)
        };
        let server = http::start(config, self.namespaces.clone()).await;
        server.map(PortServer::Http).map_err(|source| GatewayError::Http { address: listen, source })
    }

    async fn tftp_at(&self, port: u16) -> Result<PortServer, GatewayError> {
        let listen = SocketAddr::new(self.config.address.into(), port);
        let (net, interface) = (self.config.net.clone(), self.config.interface.clone());
        let engine = self.config.tftp_engine;
        let config = tftp::Config { engine, net, interface, listen, exposed_at: Some(port), ..tftp::Config::default() };
        let server = tftp::start(config, self.namespaces.clone()).await;
        server.map(PortServer::Tftp).map_err(|source| GatewayError::Tftp { address: listen, source })
    }

    /// The TLS of its servers.
    pub fn tls(&self) -> &Tls {
        &self.tls
    }

    /// Where jobs publish what their DUTs may read.
    pub fn namespaces(&self) -> &Namespaces<Content> {
        &self.namespaces
    }

    /// Addresses and boot files of machines.
    pub fn dhcp(&self) -> &dhcp::Server {
        &self.dhcp
    }

    /// What answers S3 requests, of the operator's side as well.
    pub fn s3(&self) -> &s3::Door {
        &self.s3
    }

    /// Other registries' images.
    pub fn registry(&self) -> Option<&registry::Door> {
        self.registry.as_ref()
    }

    /// Downloads.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Where the servers listen.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// The DUT at `address` was switched off: closes its connections to disks, and returns how many there were when they have let go.
    pub async fn drop_connections(&self, address: IpAddr) -> usize {
        match &self.nbd_connections {
            Some(connections) => connections.drop_of(address).await,
            None => 0,
        }
    }

    /// Stops the servers, after the transfers that run; for 5 s, because who stops a farm has ended its jobs before.
    pub async fn drain(&self) {
        const LONGEST: Duration = Duration::from_secs(5);
        let Running { tftp, http, nbd, s3, registry, advertiser } =
            std::mem::take(&mut *self.running.lock().unwrap_or_else(PoisonError::into_inner));
        drop(advertiser);
        let tftp = async {
            if let Some(tftp) = tftp {
                tftp.drain().await;
            }
        };
        let http = async {
            if let Some(http) = http {
                http.drain().await;
            }
        };
        let nbd = async {
            if let Some(nbd) = nbd {
                nbd.drain().await;
            }
        };
        let s3 = async {
            if let Some(s3) = s3 {
                s3.drain().await;
            }
        };
        let registry = async {
            if let Some(registry) = registry {
                registry.drain().await;
            }
        };
        let all = async { tokio::join!(tftp, http, nbd, s3, registry, self.dhcp.drain()) };
        if tokio::time::timeout(LONGEST, all).await.is_err() {
            tracing::warn!("transfers were still running when the gateway stopped");
        }
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("addresses", &self.addresses)
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

async fn start_s3(config: &Config, door: &s3::Door, tls: &Tls) -> Result<Option<s3::Server>, GatewayError> {
    let Some(port) = config.ports.s3 else { return Ok(None) };
    let listen = SocketAddr::new(config.address.into(), port);
    let config = s3::Config { net: config.net.clone(), interface: config.interface.clone(), listen, tls: tls.clone() };
    let server = s3::start(config, door.clone());
    server.await.map(Some).map_err(|source| GatewayError::S3 { address: listen, source })
}

fn make_tls(config: &Config) -> Result<Tls, AuthorityError> {
    let now = SystemTime::now();
    let authority = match &config.authority_directory {
        Some(directory) => Authority::kept_in(directory, now)?,
        None => Authority::new(now)?,
    };
    Tls::new(authority, config.address.into())
}

/// A server that is off keeps its table, so that the executor need not ask: it has no socket in the farm's network.
async fn start_dhcp(config: &Config) -> Result<dhcp::Server, GatewayError> {
    let is_on = config.ports.dhcp.is_some();
    let port = config.ports.dhcp.unwrap_or(0);
    let listen: IpAddr = match (&config.interface, is_on) {
        // DUTs without an address broadcast: the socket of an interface hears them only at 0.0.0.0.
        (Some(_), true) => Ipv4Addr::UNSPECIFIED.into(),
        (None, true) => config.address.into(),
        (_, false) => Ipv4Addr::LOCALHOST.into(),
    };
    let server = dhcp::start(dhcp::Config {
        net: if is_on { config.net.clone() } else { Net::host() },
        interface: config.interface.clone().filter(|_| is_on),
        listen: SocketAddr::new(listen, port),
        server: config.address,
        prefix_length: config.prefix_length,
        router: config.router,
        dns: config.name_servers.clone(),
        role: config.dhcp_role,
        // On loopback all clients share a host, and port 68.
        reply_to: if config.address.is_loopback() { ReplyTo::Source } else { ReplyTo::Standard },
        observer: Arc::clone(&config.dhcp_observer),
    });
    let server = server.await.map_err(GatewayError::Dhcp)?;
    if !is_on {
        server.drain().await;
    }
    Ok(server)
}

async fn start_tftp(config: &Config, namespaces: &Namespaces<Content>) -> Result<Option<tftp::Server>, GatewayError> {
    let Some(port) = config.ports.tftp else { return Ok(None) };
    let listen = SocketAddr::new(config.address.into(), port);
    let (net, interface, engine) = (config.net.clone(), config.interface.clone(), config.tftp_engine);
    let config = tftp::Config { engine, net, interface, listen, ..tftp::Config::default() };
    let server = tftp::start(config, namespaces.clone());
    server.await.map(Some).map_err(|source| GatewayError::Tftp { address: listen, source })
}

async fn start_http(
    config: &Config,
    namespaces: &Namespaces<Content>,
    tls: &Tls,
) -> Result<Option<http::Server>, GatewayError> {
    let Some(port) = config.ports.http else { return Ok(None) };
    let listen = SocketAddr::new(config.address.into(), port);
    let (interface, tls) = (config.interface.clone(), Some(tls.clone()));
    let outside = Some(internet(config));
    let config = http::Config { interface, tls, outside, ..http::Config::new(config.net.clone(), listen) };
    let server = http::start(config, namespaces.clone());
    server.await.map(Some).map_err(|source| GatewayError::Http { address: listen, source })
}

fn internet(config: &Config) -> Arc<dyn Outside> {
    let duts = Network::new(config.address.into(), config.prefix_length);
    Arc::new(Internet { net: config.net.clone(), interface: config.interface.clone(), duts })
}

fn open_images(config: &Config) -> Result<Option<registry::Door>, GatewayError> {
    let Some(images) = &config.registry else { return Ok(None) };
    let door = registry::Door::open(images.clone(), internet(config));
    door.map(Some).map_err(|source| GatewayError::Images { path: images.directory.clone(), source })
}

async fn start_images(
    config: &Config,
    namespaces: &Namespaces<Content>,
    door: Option<&registry::Door>,
) -> Result<Option<http::Server>, GatewayError> {
    let (Some(port), Some(door)) = (config.ports.registry, door) else { return Ok(None) };
    let listen = SocketAddr::new(config.address.into(), port);
    let (interface, serves) = (config.interface.clone(), http::Serves::Images(door.clone()));
    let config = http::Config { interface, serves, ..http::Config::new(config.net.clone(), listen) };
    let server = http::start(config, namespaces.clone());
    server.await.map(Some).map_err(|source| GatewayError::Registry { address: listen, source })
}

fn own_networks(config: &Config) -> OwnNetworks {
    let internet = internet(config);
    Arc::new(move || internet.own())
}

async fn start_nbd(
    config: &Config,
    namespaces: &Namespaces<Content>,
    tls: &Tls,
) -> Result<Option<nbd::Server>, GatewayError> {
    let Some(port) = config.ports.nbd else { return Ok(None) };
    let listen = SocketAddr::new(config.address.into(), port);
    let (interface, tls) = (config.interface.clone(), Some(tls.clone()));
    let config = nbd::Config { interface, tls, ..nbd::Config::new(config.net.clone(), listen) };
    let server = nbd::start(config, namespaces.clone());
    server.await.map(Some).map_err(|source| GatewayError::Nbd { address: listen, source })
}

fn start_advertiser(config: &Config) -> Result<Option<advertise::Advertiser>, GatewayError> {
    let Some(interface) = &config.interface else { return Ok(None) };
    advertise::start(&config.net, interface).map(Some).map_err(GatewayError::Advertise)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpStream, UdpSocket};

    use super::*;
    use crate::namespace::{Exposure, Name, Origin};

    fn config(directory: &tempfile::TempDir, ports: Ports) -> Config {
        Config { ports, cache_directory: directory.path().to_owned(), ..Config::default() }
    }

    #[tokio::test]
    async fn one_configuration_serves_a_name_over_tftp_and_http() {
        let directory = tempfile::tempdir().unwrap();
        let gateway = Gateway::start(config(&directory, Ports::ephemeral())).await.unwrap();
        let publication = gateway.namespaces().publish(Ipv4Addr::LOCALHOST.into(), Arc::new(|_| ())).unwrap();
        for protocol in [Protocol::Http, Protocol::Tftp] {
            let (name, content) = (Name::Exact("/a".into()), Content::Inline("ahoy".into()));
            let now = std::time::Instant::now();
            publication.put(protocol, name, content, Exposure::default(), Origin::Job, now);
        }
        let mut stream = TcpStream::connect(gateway.addresses().http.unwrap()).await.unwrap();
        stream.write_all(b"GET /a HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("\r\n\r\nahoy"), "{answer}");
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(b"\x00\x01a\x00octet\x00", gateway.addresses().tftp.unwrap()).await.unwrap();
        let mut block = [0; 64];
        let (length, from) = socket.recv_from(&mut block).await.unwrap();
        assert_eq!(&block[..length], b"\x00\x03\x00\x01ahoy");
        socket.send_to(b"\x00\x04\x00\x01", from).await.unwrap();
        gateway.drain().await;
        assert!(TcpStream::connect(gateway.addresses().http.unwrap()).await.is_err());
    }

    #[tokio::test]
    async fn servers_that_are_off_have_no_address_and_reservations_are_kept_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let none = Ports { dhcp: None, tftp: None, http: None, nbd: None, s3: None, registry: None };
        let gateway = Gateway::start(config(&directory, none)).await.unwrap();
        let nowhere = Addresses { dhcp: None, tftp: None, http: None, nbd: None, s3: None, registry: None };
        assert_eq!(gateway.addresses(), nowhere);
        let mac: dhcp::Mac = "52:54:00:00:00:01".parse().unwrap();
        let address = Ipv4Addr::new(127, 0, 0, 11);
        gateway.dhcp().reserve(dhcp::Reservation { mac, address, hostname: None }).unwrap();
        assert_eq!(gateway.dhcp().address_of(mac), Some(address));
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named_with_the_next_step() {
        let directory = tempfile::tempdir().unwrap();
        let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let ports = Ports { http: Some(port), ..Ports::ephemeral() };
        let error = Gateway::start(config(&directory, ports)).await.unwrap_err().to_string();
        let expected = format!(
            "cannot serve HTTP on 127.0.0.1:{port}: Address already in use (os error 98); another server has port {port}: stop it, \
             or give this one another port"
        );
        assert_eq!(error, expected);
    }
}
