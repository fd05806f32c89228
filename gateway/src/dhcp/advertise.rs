//! An IPv6 router advertisement that says "no router here", so that firmware stops waiting for one.
//!
//! ```text
//!  DUT ── router solicitation (133) to ff02::2 ──► us
//!      ◄── router advertisement (134), lifetime 0, to ff02::1 ──
//! ```
//! Stock iPXE is built with IPv6 and waits about 15 s for a router before each boot; with this 16-byte answer it goes on at once
//! (measured: 18.2 s to 2.3 s). A lifetime of 0 makes nobody use us as a router (RFC 4861 6.3.4), and no prefix is announced.
//! The farm works without it, only slower: an interface without IPv6 is a warning, not a failure.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::net::Net;

const ROUTER_SOLICITATION: u8 = 133;

/// RFC 4861 4.1: type, code, checksum and a reserved word.
const SOLICITATION_BYTES_MIN: usize = 8;

/// RFC 4861 4.2: type 134, code 0, checksum (the kernel's work on a raw ICMPv6 socket), hop limit unspecified, no flags,
/// router lifetime 0, reachable time and retransmission timer unspecified; no options.
const ADVERTISEMENT: [u8; 16] = [134, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// RFC 4861 6.1.2: receivers drop an advertisement with any other hop limit.
const HOP_LIMIT: u32 = 255;

/// Pause after a failure (the link went down, say), so that a lasting one costs one line of log a second.
const RETRY: Duration = Duration::from_secs(1);

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// Answers router solicitations until it is dropped.
#[derive(Debug)]
pub struct Advertiser {
    task: Option<JoinHandle<()>>,
}

impl Advertiser {
    /// Whether solicitations are answered; `false` when the interface has no IPv6 or the process no right to raw sockets.
    pub fn is_active(&self) -> bool {
        self.task.is_some()
    }
}

impl Drop for Advertiser {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Advertises on `interface` of `net`: once now, then after each solicitation. Fails only if there is no such interface.
pub fn start(net: &Net, interface: &str) -> io::Result<Advertiser> {
    let index = net.run(|| {
        nix::net::if_::if_nametoindex(interface).map_err(|error| {
            io::Error::new(io::ErrorKind::NotFound, format!("no network interface `{interface}` ({error})"))
        })
    })?;
    let socket = match net.run(|| open(interface, index)).and_then(UdpSocket::from_std) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::warn!(
                interface,
                %error,
                "no IPv6 router advertisements: iPXE will wait about 15 s at each boot. They need IPv6 on the interface and the \
                 right to raw sockets (CAP_NET_RAW)"
            );
            return Ok(Advertiser { task: None });
        }
    };
    let everybody = SocketAddr::from(SocketAddrV6::new(ALL_NODES, 0, 0, index));
    let interface: Arc<str> = Arc::from(interface);
    let task = tokio::spawn(answer_all(socket, everybody, interface));
    Ok(Advertiser { task: Some(task) })
}

/// A raw ICMPv6 socket, behind the type whose `recvfrom` and `sendto` are all that is used of it.
fn open(interface: &str, index: u32) -> io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.set_multicast_hops_v6(HOP_LIMIT)?;
    socket.set_multicast_if_v6(index)?;
    socket.set_multicast_loop_v6(false)?;
    socket.join_multicast_v6(&ALL_ROUTERS, index)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

async fn answer_all(socket: UdpSocket, everybody: SocketAddr, interface: Arc<str>) {
    // The link-local address may still be tentative here; whoever comes later solicits.
    if let Err(error) = socket.send_to(&ADVERTISEMENT, everybody).await {
        tracing::debug!(%interface, %error, "the first router advertisement could not be sent");
    }
    // 64 bytes: all that is looked at is the first eight; the kernel drops the rest of the datagram.
    let mut buffer = [0; 64];
    loop {
        let answer = match socket.recv_from(&mut buffer).await {
            Ok((length, _)) if classify(&buffer[..length]) == Received::Other => continue,
            Ok(_) => socket.send_to(&ADVERTISEMENT, everybody).await,
            Err(error) => Err(error),
        };
        if let Err(error) = answer {
            tracing::warn!(%interface, %error, "a router solicitation could not be answered");
            tokio::time::sleep(RETRY).await;
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Received {
    Solicitation,
    Other,
}

/// RFC 4861 6.1.1: type, code 0 and the length; the kernel has checked the checksum.
fn classify(message: &[u8]) -> Received {
    match message {
        [ROUTER_SOLICITATION, 0, ..] if message.len() >= SOLICITATION_BYTES_MIN => Received::Solicitation,
        _ => Received::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_router_solicitation_is_answered() {
        assert_eq!(classify(&[133, 0, 0x7b, 0xb8, 0, 0, 0, 0]), Received::Solicitation);
        // iPXE's, with its link-layer address as an option.
        assert_eq!(
            classify(&[133, 0, 0x5f, 0x10, 0, 0, 0, 0, 1, 1, 0x52, 0x54, 0, 0x77, 0, 1]),
            Received::Solicitation
        );
        assert_eq!(classify(&[133, 0, 0x7b, 0xb8]), Received::Other, "cut short");
        assert_eq!(classify(&[133, 1, 0x7b, 0xb7, 0, 0, 0, 0]), Received::Other, "another code");
        assert_eq!(classify(&[134, 0, 0, 0, 0, 0, 0, 0]), Received::Other, "an advertisement, perhaps our own");
        assert_eq!(classify(&[]), Received::Other);
    }

    #[tokio::test]
    async fn a_missing_interface_is_named_in_the_error() {
        let error = start(&Net::host(), "no-such-link").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().starts_with("no network interface `no-such-link` ("), "{error}");
    }
}
