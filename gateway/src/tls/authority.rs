//! The farm's own certificate authority: a key made once and kept, a certificate for DUTs to trust, leaves that live for a month.
//!
//! ```text
//!  kept_in(folder) ─► key.pem there? ── no ─► ca.pem there? ── yes ─► refused: its key is lost
//!                        │ yes                    └─ no ─► made: key.pem (0600), then ca.pem
//!                        ▼
//!                     ca.pem there? ── no ─► made again of the key: the server ended between the two files
//!                        └─ yes ─► a leaf of this key holds under it? ── no ─► refused
//!  leaf(addresses, now) ─► key and certificate, over LEAF_LIFETIME after `now`
//! ```
//! P-256: what every TLS library since 2013 knows, and ring makes no RSA keys. Nothing begins to be valid before 1970, because a board
//! without a clock believes that it is 1970, and a certificate of our own authority has nothing to fear from the past.

use core::net::IpAddr;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};

/// The private key.
const KEY_FILE: &str = "key.pem";
/// The certificate, for everybody.
const CERTIFICATE_FILE: &str = "ca.pem";

/// 20 years: a farm's images outlive several of its servers, and each of them has to be told when this ends.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// 30 days: a leaf that was stolen is of use to a host with the gateway's address only, and not for longer.
pub(super) const LEAF_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read or written.
    #[error("the farm's certificate authority: {path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others than the server's user can read the key.
    #[error(
        "the farm's certificate authority: {path} has mode {mode:o}, so that others read the key; run `chmod 600 {path}`"
    )]
    Open {
        /// The key's file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file is there and is not what it should be.
    #[error("the farm's certificate authority: {path}: {what}")]
    Broken {
        /// Which one.
        path: PathBuf,
        /// What is wrong, and what to do.
        what: String,
    },
    /// Something cannot be made.
    #[error("the farm's certificate authority: {0}")]
    Make(String),
}

/// The farm's authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl Authority {
    /// One that nobody keeps, for tests and trials.
    pub fn new(now: SystemTime) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate().map_err(make)?;
        let pem = certificate_of(&key, now)?;
        Authority::of(key, &pem, Path::new(CERTIFICATE_FILE), now)
    }

    /// The one that is kept in `folder`, made if there is none.
    pub fn kept_in(folder: &Path, now: SystemTime) -> Result<Self, AuthorityError> {
        let (key_path, path) = (folder.join(KEY_FILE), folder.join(CERTIFICATE_FILE));
        let kept = read(&path)?;
        let key = match (read_key(&key_path)?, &kept) {
            (Some(text), _) => KeyPair::from_pem(&text).map_err(|error| AuthorityError::Broken {
                path: key_path,
                what: format!("no private key: {error}; bring it back, or remove this folder to make a new authority"),
            })?,
            (None, Some(_)) => {
                let what = format!(
                    "the key {KEY_FILE} beside it is lost; bring it back, or remove this file as well to make a new authority"
                );
                return Err(AuthorityError::Broken { path, what });
            }
            (None, None) => make_key(folder, &key_path)?,
        };
        let pem = match kept {
            Some(pem) => pem,
            None => {
                let pem = certificate_of(&key, now)?;
                write(&path, &pem, 0o644)?;
                pem
            }
        };
        Authority::of(key, &pem, &path, now)
    }

    /// Its certificate as text, for who has to trust it.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// What trusts this authority, and no other.
    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates([self.certificate.clone()]);
        roots
    }

    /// A key and certificate for a server of these names and addresses, from 1970 until [`LEAF_LIFETIME`] after `now`.
    pub fn leaf(&self, names: &[ServerName<'_>], now: SystemTime) -> Result<CertifiedKey, AuthorityError> {
        let key = KeyPair::generate().map_err(make)?;
        let mut wanted = CertificateParams::default();
        wanted.distinguished_name = name("Wharfinger gateway");
        wanted.subject_alt_names = names.iter().filter_map(alternative).collect();
        wanted.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        wanted.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        wanted.use_authority_key_identifier_extension = true;
        wanted.not_before = date_time_ymd(1970, 1, 1);
        wanted.not_after = date_time_ymd(1970, 1, 1) + (since_1970(now) + LEAF_LIFETIME);
        let certificate = wanted.signed_by(&key, &self.issuer).map_err(make)?;
        // The root as well: iPXE that was only told its fingerprint has no other copy.
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        CertifiedKey::from_der(chain, key.into(), &ring::default_provider()).map_err(make)
    }

    /// The key with its certificate, if they belong together at `now`.
    fn of(key: KeyPair, pem: &str, path: &Path, now: SystemTime) -> Result<Self, AuthorityError> {
        let broken = |what: String| AuthorityError::Broken {
            path: path.to_owned(),
            what: format!("{what}; remove this file to make it again of its key"),
        };
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes());
        let certificate = certificate.map_err(|error| broken(format!("no certificate: {error}")))?;
        let issuer = Issuer::new(wanted(&key, now), key);
        let authority = Authority { issuer, certificate, pem: pem.to_owned() };
        let leaf = authority.leaf(&[ServerName::IpAddress(IpAddr::from([127, 0, 0, 1]).into())], now)?;
        holds(&leaf, &authority.roots(), now)
            .map_err(|error| broken(format!("it does not belong to the key {KEY_FILE}, or is over: {error}")))?;
        Ok(authority)
    }
}

/// Whether who trusts `roots` takes `leaf` at `now`.
fn holds(leaf: &CertifiedKey, roots: &RootCertStore, now: SystemTime) -> Result<(), rustls::Error> {
    let (certificate, above) = leaf.cert.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
    let algorithms = ring::default_provider().signature_verification_algorithms.all;
    let now = UnixTime::since_unix_epoch(since_1970(now));
    let certificate = ParsedCertificate::try_from(certificate)?;
    rustls::client::verify_server_cert_signed_by_trust_anchor(&certificate, roots, above, now, algorithms)
}

/// The certificate of `key`, as text.
fn certificate_of(key: &KeyPair, now: SystemTime) -> Result<String, AuthorityError> {
    Ok(wanted(key, now).self_signed(key).map_err(make)?.pem())
}

/// What the authority's certificate says. Its name is made of its key: a client that trusts two farms tells them apart.
fn wanted(key: &KeyPair, now: SystemTime) -> CertificateParams {
    let mark: String = Sha256::digest(key.public_key_raw()).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let mut wanted = CertificateParams::default();
    wanted.distinguished_name = name(&format!("Wharfinger farm {mark}"));
    wanted.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    wanted.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    wanted.not_before = date_time_ymd(1970, 1, 1);
    wanted.not_after = date_time_ymd(1970, 1, 1) + (since_1970(now) + AUTHORITY_LIFETIME);
    wanted
}

/// `None`: no certificate can have it.
fn alternative(name: &ServerName<'_>) -> Option<SanType> {
    match name {
        ServerName::DnsName(name) => name.as_ref().try_into().ok().map(SanType::DnsName),
        ServerName::IpAddress(address) => Some(SanType::IpAddress((*address).into())),
        _ => None,
    }
}

fn name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

fn since_1970(now: SystemTime) -> Duration {
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn make(error: impl std::fmt::Display) -> AuthorityError {
    AuthorityError::Make(error.to_string())
}

/// The text of a file, `None` if there is none.
fn read(path: &Path) -> Result<Option<String>, AuthorityError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AuthorityError::File { path: path.to_owned(), source }),
    }
}

fn read_key(path: &Path) -> Result<Option<String>, AuthorityError> {
    let Some(text) = read(path)? else { return Ok(None) };
    let metadata = std::fs::metadata(path).map_err(|source| AuthorityError::File { path: path.to_owned(), source })?;
    match metadata.permissions().mode() & 0o777 {
        mode if mode & 0o077 != 0 => Err(AuthorityError::Open { path: path.to_owned(), mode }),
        _ => Ok(Some(text)),
    }
}

fn make_key(folder: &Path, path: &Path) -> Result<KeyPair, AuthorityError> {
    std::fs::create_dir_all(folder).map_err(|source| AuthorityError::File { path: folder.to_owned(), source })?;
    let key = KeyPair::generate().map_err(make)?;
    write(path, &key.serialize_pem(), 0o600)?;
    Ok(key)
}

/// Writes beside and renames: a file is there whole, or not at all.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), AuthorityError> {
    let beside = path.with_extension("new");
    let written = || {
        let _ = std::fs::remove_file(&beside);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    written().map_err(|source| AuthorityError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const ADDRESS: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(10, 77, 0, 1));

    #[test]
    fn the_authority_is_made_once_and_its_key_is_nobody_else_s_to_read() {
        let folder = tempfile::tempdir().unwrap();
        let (kept, now) = (folder.path().join("authority"), SystemTime::now());
        let first = Authority::kept_in(&kept, now).unwrap();
        assert_eq!(std::fs::metadata(kept.join("key.pem")).unwrap().permissions().mode() & 0o777, 0o600);
        let again = Authority::kept_in(&kept, now).unwrap();
        assert_eq!(first.pem(), again.pem());
        holds(&again.leaf(&[ServerName::IpAddress(ADDRESS.into())], now).unwrap(), &first.roots(), now).unwrap();
        // A server that was killed between the two files.
        std::fs::remove_file(kept.join("ca.pem")).unwrap();
        let third = Authority::kept_in(&kept, now).unwrap();
        holds(&third.leaf(&[ServerName::IpAddress(ADDRESS.into())], now).unwrap(), &first.roots(), now).unwrap();
    }

    #[test]
    fn a_leaf_holds_for_a_board_without_a_clock_and_ends_after_a_month() {
        let now = SystemTime::now();
        let (authority, other) = (Authority::new(now).unwrap(), Authority::new(now).unwrap());
        let leaf = authority.leaf(&[ServerName::IpAddress(ADDRESS.into())], now).unwrap();
        for moment in [UNIX_EPOCH, now, now + 29 * DAY] {
            holds(&leaf, &authority.roots(), moment).unwrap();
        }
        let over = holds(&leaf, &authority.roots(), now + 31 * DAY).unwrap_err().to_string();
        assert!(over.contains("certificate expired"), "{over}");
        let foreign = holds(&leaf, &other.roots(), now).unwrap_err().to_string();
        assert!(foreign.contains("UnknownIssuer"), "{foreign}");
    }

    #[test]
    fn files_that_are_broken_open_or_lost_are_told_by_name_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        Authority::kept_in(folder.path(), now).unwrap();
        let (key, certificate) = (folder.path().join("key.pem"), folder.path().join("ca.pem"));
        let (key_text, certificate_text) = (read(&key).unwrap().unwrap(), read(&certificate).unwrap().unwrap());
        let refused = || Authority::kept_in(folder.path(), now).err().expect("it is refused").to_string();

        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(refused().ends_with(&format!("run `chmod 600 {}`", key.display())), "{}", refused());
        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();

        std::fs::write(&key, "garbage").unwrap();
        assert!(refused().contains("key.pem: no private key: "), "{}", refused());
        assert_eq!(read(&key).unwrap().unwrap(), "garbage");

        std::fs::remove_file(&key).unwrap();
        assert!(refused().contains("ca.pem: the key key.pem beside it is lost"), "{}", refused());

        std::fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
        std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
        assert!(refused().contains("ca.pem: it does not belong to the key key.pem, or is over: "), "{}", refused());

        std::fs::write(&key, key_text).unwrap();
        std::fs::write(&certificate, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert!(refused().contains("remove this file to make it again of its key"), "{}", refused());
        std::fs::write(&certificate, certificate_text).unwrap();
        Authority::kept_in(folder.path(), now).unwrap();
    }
}
