//! What the standard library's UDP sockets cannot do: tell which of our addresses was asked, and send a window at once.
//!
//! ```text
//!  listener on 0.0.0.0:69 ── IP_PKTINFO ──► Arrival { peer, asked }      an answer from another address of ours is dropped
//!  transfer socket asked:ephemeral ── UDP_SEGMENT ──► one call, one walk through the stack, up to 64 datagrams
//! ```
//! A transfer's socket is not connected: the kernel would then drop what a stranger sends to it, and RFC 1350 section 4
//! wants an error 5 there. It has no SO_REUSEADDR either: with it, two transfers could be given the same ephemeral port.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::transfer::Burst;
use crate::net::Net;

/// A rack that is switched on at once asks within the same second; a queued request takes about 1 KiB of kernel memory, and
/// the default of 208 KiB holds 200. The kernel cuts it down to net.core.rmem_max.
const LISTENER_QUEUE_BYTES: usize = 1024 * 1024;

/// One datagram at the listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub(super) bytes: usize,
    pub(super) peer: SocketAddr,
    /// Our address that the peer sent to.
    pub(super) asked: IpAddr,
}

/// Whether windows leave in one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Segmentation {
    /// Until the kernel refuses.
    Kernel,
    /// One call per datagram: the interface has no UDP_SEGMENT, or a block is larger than its packets.
    Single,
}

/// The listener on port 69, or wherever it is configured to be.
pub(super) fn listen(net: &Net, address: SocketAddr, interface: Option<&str>) -> io::Result<UdpSocket> {
    let socket = net.udp(address, interface)?;
    SockRef::from(&socket).set_recv_buffer_size(LISTENER_QUEUE_BYTES)?;
    if address.ip().is_unspecified() {
        match address {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
        }
    }
    Ok(socket)
}

/// A socket on `asked` and an ephemeral port, to answer `peer`.
pub(super) fn answer_from(
    net: &Net,
    asked: IpAddr,
    peer: SocketAddr,
    interface: Option<&str>,
) -> io::Result<UdpSocket> {
    let address = match (asked, peer) {
        // A link-local address means nothing without the link that the peer is on.
        (IpAddr::V6(asked), SocketAddr::V6(peer)) => SocketAddrV6::new(asked, 0, 0, peer.scope_id()).into(),
        (asked, _) => SocketAddr::new(asked, 0),
    };
    let socket = net.run(|| {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if let Some(interface) = interface {
            socket.bind_device(Some(interface.as_bytes()))?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(socket)
    })?;
    UdpSocket::from_std(socket.into())
}

/// Waits for a datagram; one longer than `inbox` is cut.
pub(super) async fn receive(socket: &UdpSocket, local: SocketAddr, inbox: &mut [u8]) -> io::Result<Arrival> {
    socket.async_io(Interest::READABLE, || receive_now(socket, local, inbox)).await
}

fn receive_now(socket: &UdpSocket, local: SocketAddr, inbox: &mut [u8]) -> io::Result<Arrival> {
    let mut space = cmsg_space!(libc::in6_pktinfo);
    let mut parts = [IoSliceMut::new(inbox)];
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_DONTWAIT)?;
    let peer =
        message.address.as_ref().and_then(to_std).ok_or_else(|| io::Error::other("datagram without a source"))?;
    let mut asked = local.ip();
    for control in message.cmsgs()? {
        match control {
            // ipi_spec_dst and not ipi_addr: the address to answer from, also when a broadcast address was asked.
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                asked = Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into();
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => asked = Ipv6Addr::from(info.ipi6_addr.s6_addr).into(),
            _ => {}
        }
    }
    Ok(Arrival { bytes: message.bytes, peer, asked })
}

/// Sends all datagrams of `burst`. A datagram the kernel refuses is a lost datagram: the transfer repairs it.
pub(super) async fn send(
    socket: &UdpSocket,
    peer: SocketAddr,
    burst: Burst,
    bytes: &[u8],
    segmentation: &mut Segmentation,
) {
    if bytes.len() > burst.segment_bytes && *segmentation == Segmentation::Kernel {
        match send_segmented(socket, peer, burst, bytes).await {
            Ok(()) => return,
            Err(error) if is_unsegmentable(&error) => *segmentation = Segmentation::Single,
            Err(error) => return tracing::debug!(%peer, %error, "a window could not be sent"),
        }
    }
    for datagram in bytes.chunks(burst.segment_bytes) {
        if let Err(error) = socket.send_to(datagram, peer).await {
            tracing::debug!(%peer, %error, "a datagram could not be sent");
        }
    }
}

async fn send_segmented(socket: &UdpSocket, peer: SocketAddr, burst: Burst, bytes: &[u8]) -> io::Result<()> {
    let segment_bytes = u16::try_from(burst.segment_bytes).map_err(|_| Errno::EINVAL)?;
    let destination = SockaddrStorage::from(peer);
    let send = || {
        let control = [ControlMessage::UdpGsoSegments(&segment_bytes)];
        let parts = [IoSlice::new(bytes)];
        sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::MSG_DONTWAIT, Some(&destination))?;
        Ok(())
    };
    socket.async_io(Interest::WRITABLE, send).await
}

/// EINVAL: a segment is larger than the interface's packets. EIO: no checksum offload. The others: older kernels.
fn is_unsegmentable(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EINVAL | Errno::EIO | Errno::EOPNOTSUPP | Errno::EMSGSIZE | Errno::ENOPROTOOPT)
    )
}

fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
}
