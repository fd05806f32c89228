//! DHCP: gives each machine its address and, while a job holds it, the name of what to boot.
//!
//! ```text
//!  UDP 67 ──► Request::parse ──► reply() ──► Reply + Destination ──► UDP
//!  UDP 4011     (request.rs ◆)   (reply.rs ◆,       └──► DhcpEvent ──► observer (the executor)
//!  as a proxy                     proxy.rs ◆)
//!                                 Table ◆ ◄── Server: reserve, set_boot, … (the executor)
//!  ICMPv6 133 ──► advertise.rs ──► 134, lifetime 0
//! ```
//! This file is the ring: the socket, the clock and the lock. One request is answered at a time; none takes longer than a walk over
//! the range. docs/protocols/dhcp.md tells what is sent and why.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::net::Net;

pub mod advertise;
pub mod boot;
pub mod options;
pub mod proxy;
pub mod reply;
pub mod request;
pub mod table;

pub use boot::{Architecture, BootMatch, BootOffer, BootRule, Class, is_settable};
pub use options::Extra;
pub use reply::{DhcpEvent, Outcome, Silence};
pub use request::{ClientKind, Mac, MachineUuid, NotAMac};
pub use table::{AddressProblem, Lease, Machine, Network, Refusal, Reservation};

use proxy::Port;
use reply::{Destination, Reply};
use request::Request;
use table::Table;

/// Longest datagram that is read: clients send 300 to 600 bytes, one Ethernet frame at most.
const DATAGRAM_BYTES_MAX: usize = 2048;

/// Pause after a failed receive (the link went down, say), so that a lasting failure costs one line of log a second.
const RECEIVE_RETRY: Duration = Duration::from_secs(1);

/// Where firmware asks a proxy that it heard of (PXE 2.1, chapter 2).
const PXE_PORT: u16 = 4011;

/// Hears every request. Called between two datagrams: it must not block.
pub type Observer = Arc<dyn Fn(DhcpEvent) + Send + Sync>;

/// What to serve, and where.
#[derive(Clone)]
pub struct Config {
    /// The network to make the socket in.
    pub net: Net,
    /// The link to serve (SO_BINDTODEVICE): broadcasts of others are not heard, replies leave by it. `None` in tests on loopback.
    pub interface: Option<String>,
    /// `0.0.0.0:67`; another port in tests.
    pub listen: SocketAddr,
    /// This server's address on that link: option 54, and the next server of boot files.
    pub server: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix_length: u8,
    /// The router to announce.
    pub router: Option<Ipv4Addr>,
    /// The name servers to announce.
    pub dns: Vec<Ipv4Addr>,
    /// Whether it gives addresses.
    pub role: Role,
    /// Where replies go.
    pub reply_to: ReplyTo,
    /// Who hears of each request.
    pub observer: Observer,
}

/// What this server is on its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The only DHCP server.
    Server {
        /// First and last address for machines without reservation; without it they get no answer.
        range: Option<(Ipv4Addr, Ipv4Addr)>,
    },
    /// Beside another one: it says what to boot, and gives no addresses.
    Proxy,
}

impl Default for Role {
    fn default() -> Self {
        Role::Server { range: None }
    }
}

/// Where replies go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplyTo {
    /// To where RFC 2131 4.1 says: port 68 of the client or of everybody, port 67 of a relay.
    #[default]
    Standard,
    /// To where the request came from, if that is an address at all: for clients that share a host and cannot all have port 68.
    Source,
}

/// A running server. Clones are handles to the same one; it stops when the last is dropped, or by [`Server::drain`].
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
    task: Arc<Task>,
}

struct Shared {
    table: Mutex<Table>,
    address: SocketAddr,
    pxe_address: Option<SocketAddr>,
}

struct Task(Mutex<Option<JoinHandle<()>>>);

/// Starts serving.
pub async fn start(config: Config) -> io::Result<Server> {
    let Config { net, interface, listen, server, prefix_length, router, dns, role, reply_to, observer } = config;
    let network = Network { server, prefix_length, router, dns };
    let range = match role {
        Role::Server { range } => range,
        Role::Proxy => None,
    };
    let table = Table::new(network, range).map_err(|problem| io::Error::new(io::ErrorKind::InvalidInput, problem))?;
    let open =
        |listen| net.udp(listen, interface.as_deref()).map_err(|error| explain(&error, listen, interface.as_deref()));
    let socket = open(listen)?;
    let pxe_socket = (role == Role::Proxy).then(|| open(pxe_listen(listen))).transpose()?;
    let pxe_address = pxe_socket.as_ref().map(UdpSocket::local_addr).transpose()?;
    let shared = Arc::new(Shared { table: Mutex::new(table), address: socket.local_addr()?, pxe_address });
    tracing::info!(address = %shared.address, interface = interface.as_deref(), ?role, "DHCP server started");
    let ring = Ring { socket, pxe_socket, shared: Arc::clone(&shared), reply_to, observer };
    let task = Task(Mutex::new(Some(tokio::spawn(ring.serve()))));
    Ok(Server { shared, task: Arc::new(task) })
}

/// Beside the standard port the standard one, beside another port a free one.
fn pxe_listen(listen: SocketAddr) -> SocketAddr {
    let port = if listen.port() == dhcproto::v4::SERVER_PORT { PXE_PORT } else { 0 };
    SocketAddr::new(listen.ip(), port)
}

fn explain(error: &io::Error, listen: SocketAddr, interface: Option<&str>) -> io::Error {
    let link = interface.map(|interface| format!(" of interface `{interface}`")).unwrap_or_default();
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => "; another DHCP server runs here, stop it or serve another interface",
        io::ErrorKind::PermissionDenied => "; it needs root, CAP_NET_BIND_SERVICE or a private network",
        _ => "",
    };
    io::Error::new(error.kind(), format!("cannot serve DHCP on {listen}{link}: {error}{hint}"))
}

impl Server {
    /// Gives a machine its address for good; an older reservation of the same MAC is replaced.
    pub fn reserve(&self, reservation: Reservation) -> Result<(), AddressProblem> {
        self.table().reserve(reservation)
    }

    /// Ends the reservation and any lease of `mac`.
    pub fn forget(&self, mac: Mac) {
        self.table().forget(mac);
    }

    /// From its next request on, `mac` boots by `offer`.
    pub fn set_boot(&self, mac: Mac, offer: BootOffer) {
        self.table().set_boot(mac, offer);
    }

    /// From its next request on, `mac` gets an address and no boot file.
    pub fn clear_boot(&self, mac: Mac) {
        self.table().clear_boot(mac);
    }

    /// From its next request on, a machine without reservation boots by `offer`; `None`: it gets an address and no boot file.
    pub fn set_strangers_boot(&self, offer: Option<BootOffer>) {
        self.table().set_strangers_boot(offer);
    }

    /// Every reservation and every running lease, by address.
    pub fn leases(&self) -> Vec<Lease> {
        self.table().leases(Instant::now())
    }

    /// The address that `mac` has: reserved, offered or leased.
    pub fn address_of(&self, mac: Mac) -> Option<Ipv4Addr> {
        self.table().address_of(mac, Instant::now())
    }

    /// Whose `address` is.
    pub fn mac_of(&self, address: Ipv4Addr) -> Option<Mac> {
        self.table().mac_of(address, Instant::now())
    }

    /// The address and port of the socket.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// The same of the socket for PXE requests, which a proxy has.
    pub fn pxe_address(&self) -> Option<SocketAddr> {
        self.shared.pxe_address
    }

    /// Stops serving and waits until the socket is closed. The table can still be read.
    pub async fn drain(&self) {
        let task = self.task.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
            // The only outcome is "aborted", which is what was asked for.
            let _ = task.await;
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.shared.table()
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DHCP server on {}", self.shared.address)
    }
}

impl Shared {
    /// A panic inside a critical section leaves plain data behind: go on with it rather than stop giving out addresses.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

struct Ring {
    socket: UdpSocket,
    /// A proxy has it.
    pxe_socket: Option<UdpSocket>,
    shared: Arc<Shared>,
    reply_to: ReplyTo,
    observer: Observer,
}

impl Ring {
    async fn serve(self) {
        match &self.pxe_socket {
            None => self.serve_at(&self.socket, Port::Dhcp).await,
            Some(pxe_socket) => {
                tokio::join!(self.serve_at(&self.socket, Port::Dhcp), self.serve_at(pxe_socket, Port::Pxe));
            }
        }
    }

    async fn serve_at(&self, socket: &UdpSocket, port: Port) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            match socket.recv_from(&mut buffer).await {
                Ok((length, source)) => {
                    if let Some((reply, target)) = self.answer(&buffer[..length], source, port) {
                        send(socket, &reply, target).await;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, address = %self.shared.address, "no DHCP request could be received");
                    tokio::time::sleep(RECEIVE_RETRY).await;
                }
            }
        }
    }

    fn answer(&self, datagram: &[u8], source: SocketAddr, port: Port) -> Option<(Reply, SocketAddr)> {
        let request = match Request::parse(datagram) {
            Ok(request) => request,
            Err(malformed) => {
                tracing::debug!(%source, %malformed, "a datagram on the DHCP port was dropped");
                return None;
            }
        };
        let now = Instant::now();
        let decision = match &self.pxe_socket {
            None => reply::reply(&request, &mut self.shared.table(), now),
            Some(_) => proxy::reply(&request, &self.shared.table(), port, now),
        };
        log(&decision.event);
        // Told first: whatever the machine does with the answer happens after.
        (self.observer)(decision.event);
        decision.reply.map(|(reply, destination)| (reply, self.target(destination, source, port)))
    }

    /// What came to the port for PXE is answered where it came from: firmware listens there, be that port 68 or 4011.
    fn target(&self, destination: Destination, source: SocketAddr, port: Port) -> SocketAddr {
        match (self.reply_to, port) {
            (ReplyTo::Source, _) | (_, Port::Pxe) if is_unicast(source.ip()) => source,
            _ => SocketAddr::V4(destination.address()),
        }
    }
}

async fn send(socket: &UdpSocket, reply: &Reply, target: SocketAddr) {
    if let Err(error) = socket.send_to(&reply.encode(), target).await {
        tracing::warn!(%target, %error, "a DHCP reply could not be sent; is the link up and has it this server's address?");
    }
}

fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_unspecified() && !address.is_broadcast() && !address.is_multicast(),
        IpAddr::V6(_) => false,
    }
}

fn log(event: &DhcpEvent) {
    tracing::info!(
        mac = %event.mac,
        address = event.address.map(tracing::field::display),
        client = ?event.client,
        architecture = event.architecture.map(tracing::field::display),
        bootfile = event.bootfile,
        "DHCP {}",
        event.outcome
    );
}

#[cfg(test)]
mod tests;
