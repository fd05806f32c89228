//! The world that is not the farm: where names lead, and which addresses are the farm's own.
//!
//! ```text
//!  http/proxy.rs   what DUTs connect to ─┐
//!  registry/       where images are ─────┴─► Outside: resolve, connect, own ──► Internet: the host's network, with the host's resolver
//! ```

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};

use futures_util::future::BoxFuture;
use tokio::net::TcpStream;

use crate::egress::Network;
use crate::net::Net;

/// The world that is not the farm.
pub trait Outside: fmt::Debug + Send + Sync {
    /// Where `host` leads to, an address included.
    fn resolve(&self, host: String, port: u16) -> BoxFuture<'_, io::Result<Vec<SocketAddr>>>;
    /// Connects to just this address.
    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>>;
    /// What belongs to the gateway's host and to its DUTs.
    fn own(&self) -> Vec<Network>;
}

/// The host's network, with the host's resolver.
#[derive(Debug)]
pub struct Internet {
    /// The network that DUTs are on.
    pub net: Net,
    /// The link that they are on, where there is one.
    pub interface: Option<String>,
    /// Their addresses.
    pub duts: Network,
}

impl Outside for Internet {
    fn resolve(&self, host: String, port: u16) -> BoxFuture<'_, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(address))
    }

    fn own(&self) -> Vec<Network> {
        // A host whose addresses cannot be told reaches nothing, rather than itself.
        let everything = [IpAddr::from([0; 4]), IpAddr::from([0; 16])].map(|address| Network::new(address, 0));
        let all = addresses(&Net::host(), None)
            .and_then(|host| Ok([host, addresses(&self.net, self.interface.as_deref())?].concat()));
        let mut own = all.unwrap_or_else(|error| {
            tracing::error!(%error, "cannot list this host's addresses; the proxy refuses everything");
            everything.to_vec()
        });
        own.push(self.duts);
        own
    }
}

/// The addresses of a network's host; of `link` the whole networks.
fn addresses(net: &Net, link: Option<&str>) -> io::Result<Vec<Network>> {
    let ip = |address: nix::sys::socket::SockaddrStorage| -> Option<IpAddr> {
        let four = address.as_sockaddr_in().map(|four| IpAddr::V4(four.ip()));
        four.or_else(|| address.as_sockaddr_in6().map(|six| IpAddr::V6(six.ip())))
    };
    net.run(|| {
        let listed = nix::ifaddrs::getifaddrs()?;
        let networks = listed.filter_map(|found| {
            let address = ip(found.address?)?;
            let ones = |mask| match mask {
                IpAddr::V4(mask) => mask.to_bits().count_ones() as u8,
                IpAddr::V6(mask) => mask.to_bits().count_ones() as u8,
            };
            match found.netmask.and_then(ip).filter(|_| link == Some(found.interface_name.as_str())) {
                Some(mask) => Some(Network::new(address, ones(mask))),
                None => Some(Network::one(address)),
            }
        });
        Ok(networks.collect())
    })
}
