//! TLS towards DUTs, for every server that speaks it: one authority, one certificate for the gateway's address, one limit on handshakes.
//!
//! ```text
//!  Authority (authority.rs) ─► Leaves: a leaf, another when half of its time is over ─┐
//!  TcpStream of a peer ─► a place among HANDSHAKES_MAX, HANDSHAKES_PER_PEER_MAX ──────┴─► rustls, HANDSHAKE_TIMEOUT ─► TlsStream
//!                           └─ none free ─► Failure ◄── the other side's reason ──────────────┘
//! ```
//! A client shows no certificate: who it is, its address says, as everywhere.

pub mod authority;
pub(crate) mod wire;

use core::net::IpAddr;
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use self::authority::{Authority, AuthorityError, LEAF_LIFETIME};

/// 10 s: two round trips, each of which may lose a packet, and what a board of 100 MHz needs for its part of the key exchange.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// 256: a rack that is switched on at once; each holds some 20 KiB, and a fifth of a millisecond of our time.
const HANDSHAKES_MAX: usize = 256;
/// 16 per peer: a Linux installer opens a dozen connections; one DUT takes a sixteenth of the places at most.
const HANDSHAKES_PER_PEER_MAX: usize = 16;

/// What is spoken inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    /// HTTP/1.1, which is also agreed on (ALPN, RFC 7301).
    Http,
    /// NBD, which has no name there.
    Nbd,
}

/// TLS for the servers of a gateway. Cheap to clone.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    http: Arc<ServerConfig>,
    nbd: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    pem: String,
    handshakes: Mutex<HashMap<IpAddr, usize>>,
}

/// Why a connection did not become one of TLS, as a sentence.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The other side, or what it sent.
    #[error("the TLS handshake failed: {0}")]
    Handshake(String),
    /// Ours.
    #[error("{0}")]
    TooMany(&'static str),
}

impl Tls {
    /// TLS for a gateway at `address`, with leaves of `authority`.
    pub fn new(authority: Authority, address: IpAddr) -> Result<Self, AuthorityError> {
        let pem = authority.pem().to_owned();
        let client = builder(ClientConfig::builder_with_provider(Arc::new(ring::default_provider())))?
            .with_root_certificates(authority.roots())
            .with_no_client_auth();
        let leaves = Arc::new(Leaves::new(authority, vec![ServerName::IpAddress(address.into())])?);
        let config = |inside| server_config(inside, Arc::clone(&leaves));
        let (http, nbd) = (config(Inside::Http)?, config(Inside::Nbd)?);
        let (client, handshakes) = (Arc::new(client), Mutex::default());
        Ok(Tls(Arc::new(Shared { http, nbd, client, pem, handshakes })))
    }

    /// The authority's certificate, for who has to trust it.
    pub fn ca_pem(&self) -> &str {
        &self.0.pem
    }

    /// A client that trusts this authority, and no other.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0.client)
    }

    /// Makes `stream` one of TLS, or says why not.
    pub async fn accept(
        &self,
        stream: TcpStream,
        peer: IpAddr,
        inside: Inside,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        let _place = Place::take(&self.0, peer)?;
        let config = match inside {
            Inside::Http => &self.0.http,
            Inside::Nbd => &self.0.nbd,
        };
        let handshake = TlsAcceptor::from(Arc::clone(config)).accept(stream);
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(Failure::Handshake("the client closed the connection in the middle of it".to_owned()))
            }
            Ok(Err(error)) => Err(Failure::Handshake(error.to_string())),
            Err(_) => Err(Failure::Handshake(format!("it took longer than {} s", HANDSHAKE_TIMEOUT.as_secs()))),
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

fn server_config(inside: Inside, leaves: Arc<Leaves>) -> Result<Arc<ServerConfig>, AuthorityError> {
    let mut config = builder(ServerConfig::builder_with_provider(Arc::new(ring::default_provider())))?
        .with_no_client_auth()
        .with_cert_resolver(leaves);
    if inside == Inside::Http {
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
    }
    Ok(Arc::new(config))
}

/// TLS 1.2 and 1.3, whichever side asks.
fn builder<S: rustls::ConfigSide>(
    builder: rustls::ConfigBuilder<S, rustls::WantsVersions>,
) -> Result<rustls::ConfigBuilder<S, rustls::WantsVerifier>, AuthorityError> {
    builder.with_safe_default_protocol_versions().map_err(|error| AuthorityError::Make(error.to_string()))
}

/// The certificate that is shown for some names, made again in time.
pub struct Leaves {
    authority: Authority,
    names: Vec<ServerName<'static>>,
    current: Mutex<Option<(Arc<CertifiedKey>, SystemTime)>>,
}

impl Leaves {
    /// Of this authority, for a server of these names and addresses.
    pub fn new(authority: Authority, names: Vec<ServerName<'static>>) -> Result<Leaves, AuthorityError> {
        let leaves = Leaves { authority, names, current: Mutex::new(None) };
        leaves.at(SystemTime::now())?;
        Ok(leaves)
    }

    /// The leaf for a handshake at `now`.
    fn at(&self, now: SystemTime) -> Result<Arc<CertifiedKey>, AuthorityError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((leaf, made)) = &*current
            && is_fresh(*made, now)
        {
            return Ok(Arc::clone(leaf));
        }
        let leaf = Arc::new(self.authority.leaf(&self.names, now)?);
        *current = Some((Arc::clone(&leaf), now));
        Ok(leaf)
    }
}

/// Half of its time at most, so that a DUT whose clock is days ahead still takes it. A clock that was set back asks for a new one.
fn is_fresh(made: SystemTime, now: SystemTime) -> bool {
    now.duration_since(made).is_ok_and(|age| age < LEAF_LIFETIME / 2)
}

impl ResolvesServerCert for Leaves {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.at(SystemTime::now()).inspect_err(|error| tracing::error!(%error, "no certificate can be made")).ok()
    }
}

impl fmt::Debug for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "leaves for {:?}", self.names)
    }
}

/// A place among the handshakes that run, free again when dropped.
struct Place<'a> {
    shared: &'a Shared,
    peer: IpAddr,
}

impl<'a> Place<'a> {
    fn take(shared: &'a Shared, peer: IpAddr) -> Result<Self, Failure> {
        let mut handshakes = shared.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        if handshakes.values().sum::<usize>() >= HANDSHAKES_MAX {
            return Err(Failure::TooMany("256 TLS handshakes are running"));
        }
        let own = handshakes.entry(peer).or_default();
        if *own >= HANDSHAKES_PER_PEER_MAX {
            return Err(Failure::TooMany("16 TLS handshakes of this address are running"));
        }
        *own += 1;
        Ok(Place { shared, peer })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut handshakes = self.shared.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = handshakes.get_mut(&self.peer) {
            *own -= 1;
            if *own == 0 {
                handshakes.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: IpAddr = IpAddr::V4(core::net::Ipv4Addr::LOCALHOST);

    #[test]
    fn a_leaf_is_shown_for_half_of_its_time_and_after_a_clock_that_was_set_back_made_anew() {
        let now = SystemTime::now();
        let day = Duration::from_secs(24 * 3600);
        assert!(is_fresh(now, now) && is_fresh(now, now + 14 * day));
        assert!(!is_fresh(now, now + 16 * day) && !is_fresh(now, now - day));
        let names = vec![ServerName::IpAddress(ADDRESS.into())];
        let leaves = Leaves { authority: Authority::new(now).unwrap(), names, current: Mutex::new(None) };
        let first = leaves.at(now).unwrap();
        assert!(Arc::ptr_eq(&first, &leaves.at(now + 14 * day).unwrap()));
        assert!(!Arc::ptr_eq(&first, &leaves.at(now + 16 * day).unwrap()));
    }

    #[test]
    fn one_peer_cannot_take_every_handshake_and_leaves_those_it_had() {
        let tls = Tls::new(Authority::new(SystemTime::now()).unwrap(), ADDRESS).unwrap();
        let places: Vec<_> =
            (0..HANDSHAKES_PER_PEER_MAX).map(|_| Place::take(&tls.0, ADDRESS).unwrap_or_else(|_| panic!())).collect();
        let full = Place::take(&tls.0, ADDRESS).err().expect("no place is left").to_string();
        assert_eq!(full, "16 TLS handshakes of this address are running");
        assert!(Place::take(&tls.0, IpAddr::from([127, 0, 0, 2])).is_ok());
        drop(places);
        assert!(tls.0.handshakes.lock().unwrap().is_empty());
    }
}
