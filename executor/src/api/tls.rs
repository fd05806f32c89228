//! TLS on the operator's listener.
//!
//! ```text
//!  files of the farm file ─► read, and read again once they have changed ─┐
//!  the farm's own authority ─► a leaf, made again in time ────────────────┴─► rustls, HANDSHAKE_TIMEOUT ─► HTTP/1.1
//! ```

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use gateway::tls::Leaves;
use gateway::tls::authority::Authority;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::serve::{Accept, Peer, prepare_tcp};
use crate::config::TlsConfig;

/// Two round trips over any network that people use; each handshake holds one of the listener's connections meanwhile.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A renewed certificate is shown within this time; programs that renew do it weeks before the end.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// TLS for a listener.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of the farm file.
    #[error("{what} `{}`: {why}", path.display())]
    File {
        /// Which.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The farm's own authority.
    #[error("the farm's own certificate authority: {0}")]
    Authority(String),
}

impl Tls {
    /// What the farm file wants for a listener at this address; `None`: in clear.
    pub fn of(config: &TlsConfig, address: SocketAddr, authority: &Path) -> Result<Option<Tls>, TlsError> {
        let own = |names: &[String]| Tls::own(names, address.ip(), authority).map(Some);
        match config {
            TlsConfig::None => Ok(None),
            TlsConfig::Usual if address.ip().is_loopback() => Ok(None),
            TlsConfig::Usual => own(&[]),
            TlsConfig::Own(names) => own(names),
            TlsConfig::Files { certificate, key } => {
                let files = Files::read(certificate, key)?;
                Tls::with(Arc::new(files)).map(Some)
            }
        }
    }

    fn own(names: &[String], address: IpAddr, folder: &Path) -> Result<Tls, TlsError> {
        let authority = Authority::kept_in(folder, SystemTime::now());
        let authority = authority.map_err(|error| TlsError::Authority(error.to_string()))?;
        let leaves = Leaves::new(authority, names_of(names, address)?);
        let leaves = leaves.map_err(|error| TlsError::Authority(error.to_string()))?;
        Tls::with(Arc::new(leaves))
    }

    fn with(certificates: Arc<dyn ResolvesServerCert>) -> Result<Tls, TlsError> {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| TlsError::Authority(error.to_string()))?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(certificates);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls { acceptor: Arc::new(config).into() })
    }

    pub(super) fn on(self, listener: TcpListener) -> TlsListener {
        TlsListener { listener, acceptor: self.acceptor }
    }
}

/// The names that the farm file has, this host's own, and its addresses where it listens at all of them.
fn names_of(names: &[String], address: IpAddr) -> Result<Vec<ServerName<'static>>, TlsError> {
    let wrong = |name: &String| TlsError::Authority(format!("`{name}` in `listen.names` is no name of a host"));
    let told = names.iter().map(|name| ServerName::try_from(name.clone()).map_err(|_| wrong(name)));
    let mut all: Vec<ServerName<'static>> = told.collect::<Result<_, _>>()?;
    let host = nix::unistd::gethostname().ok().and_then(|host| host.into_string().ok());
    all.extend(host.into_iter().chain(["localhost".to_owned()]).filter_map(|name| ServerName::try_from(name).ok()));
    let mut addresses = vec![IpAddr::from([127, 0, 0, 1]), address];
    if address.is_unspecified() {
        addresses =
            nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|link| address_of(link.address?)).collect();
    }
    all.extend(addresses.into_iter().map(|address| ServerName::IpAddress(address.into())));
    Ok(all)
}

fn address_of(address: nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let four = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
    four.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
}

/// A certificate and its key in two files.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    current: Mutex<Current>,
}

struct Current {
    key: Arc<CertifiedKey>,
    changed: [Option<SystemTime>; 2],
    looked: Instant,
}

impl Files {
    fn read(certificate: &Path, key: &Path) -> Result<Files, TlsError> {
        let changed = [changed(certificate), changed(key)];
        let current = Current { key: certified(certificate, key)?, changed, looked: Instant::now() };
        Ok(Files { certificate: certificate.to_owned(), key: key.to_owned(), current: Mutex::new(current) })
    }

    /// What is there now; files that are being exchanged, or are wrong, change nothing.
    fn at(&self, now: Instant) -> Arc<CertifiedKey> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(current.looked) >= LOOK_AGAIN {
            current.looked = now;
            let changed = [changed(&self.certificate), changed(&self.key)];
            if changed != current.changed {
                match certified(&self.certificate, &self.key) {
                    Ok(key) => {
                        tracing::info!(path = %self.certificate.display(), "the API has another certificate");
                        (current.key, current.changed) = (key, changed);
                    }
                    Err(error) => tracing::error!(%error, "the API goes on with the certificate that it has"),
                }
            }
        }
        Arc::clone(&current.key)
    }
}

impl ResolvesServerCert for Files {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.at(Instant::now()))
    }
}

impl fmt::Debug for Files {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the certificate {}", self.certificate.display())
    }
}

fn changed(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

fn certified(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, TlsError> {
    let wrong = |what, path: &Path, why: String| TlsError::File { what, path: path.to_owned(), why };
    let of_chain = |error: rustls::pki_types::pem::Error| wrong("certificate", certificate, error.to_string());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate).map_err(of_chain)?.collect();
    let chain = chain.map_err(of_chain)?;
    if chain.is_empty() {
        return Err(wrong("certificate", certificate, "no certificate is in it".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong("key", key, error.to_string()))?;
    let certified = CertifiedKey::from_der(chain, private, &ring::default_provider());
    certified.map(Arc::new).map_err(|error| wrong("key", key, format!("it does not go with the certificate: {error}")))
}

/// A listener whose connections have yet to shake hands.
pub(super) struct TlsListener {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Accept for TlsListener {
    type Raw = TcpStream;
    type Stream = TlsStream<TcpStream>;

    async fn next(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, address) = self.listener.accept().await?;
        prepare_tcp(&stream);
        Ok((stream, Peer::Tcp(address)))
    }

    fn ready(&self, raw: TcpStream) -> impl Future<Output = io::Result<TlsStream<TcpStream>>> + Send + 'static {
        let handshake = self.acceptor.accept(raw);
        async move {
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the TLS handshake took too long");
            tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await.map_err(late)?
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate of an authority of its own, as files.
    fn write_pair(folder: &Path) -> Vec<u8> {
        let made = rcgen::generate_simple_self_signed(["farm.example.com".to_owned()]).unwrap();
        std::fs::write(folder.join("a.pem"), made.cert.pem()).unwrap();
        std::fs::write(folder.join("a.key"), made.signing_key.serialize_pem()).unwrap();
        made.cert.der().to_vec()
    }

    #[test]
    fn files_are_read_again_once_they_have_changed_and_wrong_ones_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("a.pem"), folder.path().join("a.key"));
        let first = write_pair(folder.path());
        let files = Files::read(&certificate, &key).unwrap();
        let shown = |later: u32| files.at(Instant::now() + LOOK_AGAIN * later).cert[0].to_vec();
        assert_eq!(shown(1), first);
        let set = |path: &Path, second| {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(second)).unwrap();
        };
        std::fs::write(&certificate, "half").unwrap();
        set(&certificate, 1);
        assert_eq!(shown(2), first);
        let second = write_pair(folder.path());
        set(&certificate, 2);
        assert_eq!(shown(2), first, "not looked at again within its time");
        assert_eq!(shown(4), second);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        write_pair(folder.path());
        let (certificate, key) = (folder.path().join("a.pem"), folder.path().join("a.key"));
        let refused = |certificate: &Path, key: &Path| certified(certificate, key).unwrap_err().to_string();
        assert!(refused(&key, &key).contains("no certificate is in it"), "{}", refused(&key, &key));
        assert!(refused(&certificate, &certificate).starts_with("key `"), "{}", refused(&certificate, &certificate));
        assert!(refused(&folder.path().join("none"), &key).starts_with("certificate `"));
    }
}
