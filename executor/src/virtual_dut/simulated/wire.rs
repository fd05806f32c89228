//! Where a simulated DUT's sockets are.
//!
//! | wire | its network | DHCP | TFTP without a port | power cut |
//! |---|---|---|---|---|
//! | private | a namespace of its own, joined to the farm's bridge | broadcast, port 68 to 67 | 69 | the address goes first: not a packet leaves |
//! | loopback | the host's, an address in 127/8 | unicast to the gateway's port | told out of band | TCP connections are reset |

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use gateway::net::Net;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use super::super::network::Port;

/// RFC 2131, 4.1.
const DHCP_CLIENT_PORT: u16 = 68;
const DHCP_SERVER_PORT: u16 = 67;
/// RFC 1350.
const TFTP_PORT: u16 = 69;

/// A simulated DUT's connection to the farm. Cheap to clone.
#[derive(Clone)]
pub enum Wire {
    /// A link at the bridge of a private network.
    Private(Arc<Port>),
    /// The host's loopback, where no namespace may be made.
    Loopback {
        /// Our address in 127/8 before DHCP told one.
        address: Ipv4Addr,
        /// The gateway's DHCP server, answering to the source address of a request.
        dhcp: SocketAddr,
        /// The gateway's TFTP server.
        tftp_port: u16,
    },
}

/// Decides how a TCP connection ends: by a reset (a crash, a power cut), unless it is [closed](Farewell::close) first.
pub struct Farewell(OwnedFd);

impl Farewell {
    /// Lets the connection end as its program closed it.
    pub fn close(self) {
        // An error means that the connection is gone already.
        let _ = SockRef::from(&self.0).set_linger(None);
    }
}

impl Wire {
    /// A socket for DHCP, and where to send requests.
    pub fn dhcp_socket(&self) -> io::Result<(UdpSocket, SocketAddr)> {
        match self {
            Wire::Private(port) => {
                accept_before_configured(port);
                let from = SocketAddr::from((Ipv4Addr::UNSPECIFIED, DHCP_CLIENT_PORT));
                let to = SocketAddr::from((Ipv4Addr::BROADCAST, DHCP_SERVER_PORT));
                Ok((port.net.udp(from, Some(&port.interface))?, to))
            }
            Wire::Loopback { address, dhcp, .. } => Ok((Net::host().udp((*address, 0).into(), None)?, *dhcp)),
        }
    }

    /// Takes the leased address.
    pub async fn configure(&self, address: Ipv4Addr, netmask: Ipv4Addr) -> io::Result<()> {
        let Wire::Private(port) = self else { return Ok(()) };
        let port = Arc::clone(port);
        let prefix_length = u8::try_from(netmask.to_bits().leading_ones()).expect("an IPv4 mask has 32 bits");
        let set = move || port.set_address(address, prefix_length);
        tokio::task::spawn_blocking(set).await.map_err(io::Error::other)?.map_err(io::Error::other)
    }

    /// Gives the address up, so that no packet leaves any more: before a boot, and when the power is cut.
    pub async fn cut(&self) -> io::Result<()> {
        let Wire::Private(port) = self else { return Ok(()) };
        let port = Arc::clone(port);
        let clear = move || port.clear_address();
        tokio::task::spawn_blocking(clear).await.map_err(io::Error::other)?.map_err(io::Error::other)
    }

    /// A UDP socket on our address; port 0 takes any.
    pub fn udp(&self, address: Ipv4Addr, port: u16) -> io::Result<UdpSocket> {
        self.net().udp((address, port).into(), None)
    }

    /// A TCP connection from our address.
    pub async fn tcp(&self, address: Ipv4Addr, to: SocketAddr) -> io::Result<(TcpStream, Farewell)> {
        let socket = self.net().run(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_nonblocking(true)?;
            socket.set_linger(Some(Duration::ZERO))?;
            socket.bind(&SocketAddr::from((address, 0)).into())?;
            Ok(socket)
        })?;
        let stream = TcpSocket::from_std_stream(socket.into()).connect(to).await?;
        let farewell = Farewell(stream.as_fd().try_clone_to_owned()?);
        Ok((stream, farewell))
    }

    /// A listening TCP port of our address.
    pub fn listen(&self, address: Ipv4Addr, port: u16) -> io::Result<TcpListener> {
        self.net().tcp_listener((address, port).into())
    }

    /// The TFTP server's address on `host`.
    pub fn tftp_server(&self, host: Ipv4Addr, port: Option<u16>) -> SocketAddr {
        let usual = match self {
            Wire::Private(_) => TFTP_PORT,
            Wire::Loopback { tftp_port, .. } => *tftp_port,
        };
        SocketAddr::new(IpAddr::V4(host), port.unwrap_or(usual))
    }

    fn net(&self) -> Net {
        match self {
            Wire::Private(port) => port.net.clone(),
            Wire::Loopback { .. } => Net::host(),
        }
    }
}

/// A link without an address drops what it cannot route back (rp_filter, which Debian sets on every new link); a server's broadcast is
/// such a packet. Where /proc/sys is read-only the default of the namespace must do.
fn accept_before_configured(port: &Port) {
    let _ = port.net.run(|| {
        for link in ["all", &port.interface] {
            let _ = std::fs::write(format!("/proc/sys/net/ipv4/conf/{link}/rp_filter"), "0");
        }
        Ok(())
    });
}
