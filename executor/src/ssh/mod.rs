//! Hosts reached by SSH, known by their keys: a login, and what can be done with it.
//!
//! ```text
//!  Login ─► open ─► TCP ─► key exchange ─► the host's key is one that was pinned? ─► our key ─► Session ─┬─► command  exit status, streams
//!                                            └─ no: refused, with both fingerprints                      └─► files    SFTP, compared
//! ```
//! One connection per thing that is done: a server that dies takes one of them along, and nobody has to tell a stale connection from a
//! slow one. A key exchange takes some 10 ms.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use russh::client::{self, AuthResult, Handle};
use russh::keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate};

pub mod command;
pub mod files;
pub mod line;

/// Connecting and logging in, together: a host that swaps answers within some seconds, one that is down never.
const OPEN_TIME: Duration = Duration::from_secs(20);
/// A host that says nothing is asked this often whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Questions without an answer until the connection counts as lost: half a minute, as long as a switch takes to find another way.
const KEEPALIVES_LOST: usize = 3;

/// Who logs in where.
#[derive(Clone)]
pub struct Login {
    /// What the host is called, for errors.
    pub name: String,
    /// Its address or name.
    pub address: String,
    /// The port of its SSH server.
    pub port: u16,
    /// Who we are there.
    pub user: String,
    /// Our key.
    pub key: Arc<PrivateKey>,
    /// The keys that it may show.
    pub host_keys: Vec<HostKey>,
    /// Where the connection begins.
    pub from: Origin,
}

/// Where a connection begins.
#[derive(Clone)]
pub enum Origin {
    /// On this machine's own network.
    Here,
    /// On the network that this socket is on; the host is known by its address there.
    Socket(Arc<dyn Fn() -> io::Result<tokio::net::TcpSocket> + Send + Sync>),
}

/// A host's key, pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostKey {
    /// As `ssh-keyscan` and `known_hosts` have it.
    Whole(PublicKey),
    /// As `ssh-keygen -l` prints it: `SHA256:…`.
    Fingerprint(String),
}

/// Why something could not be done on a host.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// It cannot be reached, or the connection broke.
    #[error("{host} cannot be reached by SSH: {why}")]
    Unreachable {
        /// Its name and address.
        host: String,
        /// What happened.
        why: String,
    },
    /// It is not who it should be.
    #[error(
        "{host} shows the host key {shown}, which is not pinned; pinned: {}. If it was installed anew, compare with \
         `ssh-keygen -lf` on the host itself and write the new key into `host_key`; otherwise somebody is between you and it",
        pinned.join(", ")
    )]
    WrongKey {
        /// Its name and address.
        host: String,
        /// The kind and fingerprint of what it shows.
        shown: String,
        /// Those that were expected.
        pinned: Vec<String>,
    },
    /// It does not let us in.
    #[error("{host} does not let `{user}` in with the key {key}; add that public key to its authorized keys")]
    NotLetIn {
        /// Its name and address.
        host: String,
        /// Who we are there.
        user: String,
        /// Our key's fingerprint.
        key: String,
    },
    /// It did not do what it was asked.
    #[error("{host}: {what}")]
    Refused {
        /// Its name.
        host: String,
        /// What, and why not.
        what: String,
    },
}

/// A connection that is logged in.
pub struct Session {
    handle: Handle<Watcher>,
    host: String,
}

impl Login {
    /// Connects, compares the host's key, logs in.
    pub async fn open(&self) -> Result<Session, SshError> {
        let unreachable = |why: String| SshError::Unreachable { host: self.to_string(), why };
        let opened = tokio::time::timeout(OPEN_TIME, self.open_slowly()).await;
        opened.unwrap_or_else(|_| Err(unreachable(format!("it did not answer within {} s", OPEN_TIME.as_secs()))))
    }

    async fn open_slowly(&self) -> Result<Session, SshError> {
        let shown = Arc::new(Mutex::new(None));
        let watcher = Watcher { pinned: self.host_keys.clone(), shown: Arc::clone(&shown) };
        let connected = match &self.from {
            Origin::Here => client::connect(self.settings(), (self.address.as_str(), self.port), watcher).await,
            Origin::Socket(socket) => match self.connected(&**socket).await {
                Ok(stream) => client::connect_stream(self.settings(), stream, watcher).await,
                Err(error) => Err(error.into()),
            },
        };
        let mut handle = connected.map_err(|error| match (error, taken(&shown)) {
            (russh::Error::UnknownKey, Some(shown)) => self.wrong_key(shown),
            (error @ russh::Error::NoCommonAlgo { .. }, None) => {
                let why = format!("{error}; perhaps it has no key of a pinned kind");
                SshError::Unreachable { host: self.to_string(), why }
            }
            (error, _) => SshError::Unreachable { host: self.to_string(), why: error.to_string() },
        })?;
        let key = PrivateKeyWithHashAlg::new(Arc::clone(&self.key), None);
        let let_in = handle.authenticate_publickey(&self.user, key).await;
        match let_in {
            Ok(AuthResult::Success) => Ok(Session { handle, host: self.name.clone() }),
            Ok(AuthResult::Failure { .. }) => Err(SshError::NotLetIn {
                host: self.to_string(),
                user: self.user.clone(),
                key: fingerprint(self.key.public_key()),
            }),
            Err(error) => Err(SshError::Unreachable { host: self.to_string(), why: error.to_string() }),
        }
    }

    async fn connected(
        &self,
        socket: &(dyn Fn() -> io::Result<tokio::net::TcpSocket> + Send + Sync),
    ) -> io::Result<tokio::net::TcpStream> {
        let address: IpAddr = self.address.parse().map_err(io::Error::other)?;
        let stream = socket()?.connect(SocketAddr::new(address, self.port)).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn settings(&self) -> Arc<client::Config> {
        let mut config = client::Config {
            keepalive_interval: Some(KEEPALIVE),
            keepalive_max: KEEPALIVES_LOST,
            nodelay: true,
            ..client::Config::default()
        };
        // A host has keys of several kinds and shows the first that we ask for: it has to be the pinned one.
        let kinds: Option<Vec<Algorithm>> = self.host_keys.iter().map(HostKey::kind).collect();
        if let Some(kinds) = kinds.filter(|kinds| !kinds.is_empty()) {
            config.preferred.key = kinds.into();
        }
        Arc::new(config)
    }

    fn wrong_key(&self, shown: String) -> SshError {
        let pinned = self.host_keys.iter().map(HostKey::to_string).collect();
        SshError::WrongKey { host: self.to_string(), shown, pinned }
    }
}

impl fmt::Display for Login {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({}@{}:{})", self.name, self.user, self.address, self.port)
    }
}

impl HostKey {
    /// Reads a line of `ssh-keyscan`, of a `.pub` file, or a fingerprint.
    pub fn parse(text: &str) -> Result<HostKey, String> {
        let text = text.trim();
        if let Some(hash) = text.strip_prefix("SHA256:") {
            let is_hash =
                hash.len() == 43 && hash.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(&byte));
            return if is_hash {
                Ok(HostKey::Fingerprint(text.to_owned()))
            } else {
                Err("a fingerprint has 43 characters after `SHA256:`".into())
            };
        }
        // `ssh-keyscan` and `known_hosts` put the host's name before the key.
        let words: Vec<_> = text.split_whitespace().collect();
        let begin = words.iter().position(|word| word.starts_with("ssh-") || word.starts_with("ecdsa-"));
        let key = begin.and_then(|begin| words.get(begin..begin + 2)).map(|words| words.join(" "));
        let parsed = key.and_then(|key| PublicKey::from_openssh(&key).ok());
        parsed.map(HostKey::Whole).ok_or_else(|| "it is neither `ssh-ed25519 AAAA…` nor `SHA256:…`".into())
    }

    fn kind(&self) -> Option<Algorithm> {
        match self {
            HostKey::Whole(key) => Some(key.algorithm()),
            HostKey::Fingerprint(_) => None,
        }
    }

    fn is(&self, shown: &PublicKey) -> bool {
        match self {
            HostKey::Whole(key) => key.key_data() == shown.key_data(),
            HostKey::Fingerprint(pinned) => shown.fingerprint(HashAlg::Sha256).to_string() == *pinned,
        }
    }
}

impl fmt::Display for HostKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostKey::Whole(key) => formatter.write_str(&fingerprint(key)),
            HostKey::Fingerprint(pinned) => formatter.write_str(pinned),
        }
    }
}

/// A key as people compare it.
pub fn fingerprint(key: &PublicKey) -> String {
    format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256))
}

impl Session {
    fn broken(&self, error: impl fmt::Display) -> SshError {
        SshError::Unreachable { host: self.host.clone(), why: format!("the connection broke: {error}") }
    }
}

/// Looks at the host's key before anything is said to it.
struct Watcher {
    pinned: Vec<HostKey>,
    shown: Arc<Mutex<Option<String>>>,
}

impl client::Handler for Watcher {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let told = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } if self.pinned.iter().any(|pinned| pinned.is(key)) => {
                return Ok(true);
            }
            PublicKeyOrCertificate::PublicKey { key, .. } => fingerprint(key),
            PublicKeyOrCertificate::Certificate(_) => "of a certificate".to_owned(),
        };
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
        Ok(false)
    }
}

fn taken(shown: &Mutex<Option<String>>) -> Option<String> {
    shown.lock().unwrap_or_else(PoisonError::into_inner).take()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti";

    #[test]
    fn a_host_key_is_read_from_known_hosts_from_a_pub_file_and_as_a_fingerprint() {
        let whole = HostKey::parse(KEY).unwrap();
        assert_eq!(HostKey::parse(&format!("builder,10.0.0.5 {KEY}\n")).unwrap(), whole);
        assert_eq!(HostKey::parse(&format!("{KEY} root@builder")).unwrap(), whole);
        assert_eq!(whole.to_string(), "ssh-ed25519 SHA256:UCUiLr7Pjs9wFFJMDByLgc3NrtdU344OgUM45wZPcIQ");
        let short = HostKey::parse("SHA256:UCUiLr7Pjs9wFFJMDByLgc3NrtdU344OgUM45wZPcIQ").unwrap();
        let HostKey::Whole(key) = &whole else { panic!("{whole:?}") };
        assert!(short.is(key) && whole.is(key));
    }

    #[test]
    fn what_is_no_key_is_told_so() {
        for text in ["", "SHA256:short", "ssh-ed25519", "ssh-ed25519 rubbish", "builder"] {
            assert!(HostKey::parse(text).is_err(), "{text}");
        }
    }
}
