//! The keys of hosts that we make: each is computed from one secret of the farm, so that none has to be kept and a crash loses none.
//!
//! ```text
//!  <state>/hosts.key ─┬─ "login"            ─► the key that we log in with
//!                     └─ "host <name>"      ─► the key that the host shows: given to it at its first boot, so that it is pinned before it is seen
//! ```

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use russh::keys::PrivateKey;
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use sha2::Sha256;

use crate::ssh::files::hex;

/// Where the secret is, in the state folder.
const FILE: &str = "hosts.key";
const SECRET_BYTES: usize = 32;

/// The secret of a farm.
#[derive(Clone)]
pub struct FarmKeys(Arc<[u8; SECRET_BYTES]>);

impl FarmKeys {
    /// Reads the secret of this state folder, or makes one.
    pub fn of(state: &Path) -> std::io::Result<FarmKeys> {
        let path = state.join(FILE);
        let mut secret = [0; SECRET_BYTES];
        match std::fs::File::open(&path) {
            Ok(mut file) => file.read_exact(&mut secret)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                secret = rand::random();
                // Whole or not at all: half a secret would be another one.
                let part = path.with_extension("part");
                let mut options = std::fs::OpenOptions::new();
                let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&part)?;
                file.write_all(&secret)?;
                file.sync_all()?;
                std::fs::rename(part, path)?;
            }
            Err(error) => return Err(error),
        }
        Ok(FarmKeys(Arc::new(secret)))
    }

    /// The key that farms of this state folder log in with, once one has run.
    pub fn login_of(state: &Path) -> Option<String> {
        if !state.join(FILE).is_file() {
            return None;
        }
        FarmKeys::of(state).ok()?.login().public_key().to_openssh().ok()
    }

    /// The key that we log in with.
    pub fn login(&self) -> PrivateKey {
        self.key("login")
    }

    /// The key that the host of this name shows.
    pub fn host(&self, name: &str) -> PrivateKey {
        self.key(&format!("host {name}"))
    }

    /// What tells this farm from others of its name; no secret.
    pub fn owner(&self) -> String {
        hex(&self.derive("owner")[..8])
    }

    /// The same for each attempt to make a thing of this row.
    pub fn token(&self, row: &str) -> String {
        hex(&self.derive(&format!("token {row}")))
    }

    fn key(&self, what: &str) -> PrivateKey {
        let pair = KeypairData::Ed25519(Ed25519Keypair::from_seed(&self.derive(what)));
        PrivateKey::new(pair, "wharf").expect("a key that is not encrypted needs nothing else")
    }

    fn derive(&self, what: &str) -> [u8; SECRET_BYTES] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&*self.0).expect("HMAC takes keys of any length");
        mac.update(what.as_bytes());
        mac.finalize().into_bytes().into()
    }
}

/// What cloud-init does at the first boot of a host: it shows the host key that we computed, and lets our login key in.
pub fn cloud_init(host: &PrivateKey, login: &PrivateKey) -> Result<String, russh::keys::ssh_key::Error> {
    let private = host.to_openssh(Default::default())?;
    let private: Vec<_> = private.lines().map(|line| format!("    {line}")).collect();
    Ok(format!(
        "#cloud-config\nssh_deletekeys: true\nssh_genkeytypes: []\ndisable_root: false\nssh_keys:\n  ed25519_private: |\n{}\n  \
         ed25519_public: {}\nssh_authorized_keys:\n  - {}\n",
        private.join("\n"),
        host.public_key().to_openssh()?,
        login.public_key().to_openssh()?
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_same_after_a_restart_and_others_for_every_host_and_farm() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let fingerprint = |keys: &FarmKeys, name: &str| crate::ssh::fingerprint(keys.host(name).public_key());
        let keys = FarmKeys::of(one.path()).unwrap();
        let again = FarmKeys::of(one.path()).unwrap();
        assert_eq!(fingerprint(&keys, "cloud-1"), fingerprint(&again, "cloud-1"));
        assert_ne!(fingerprint(&keys, "cloud-1"), fingerprint(&keys, "cloud-2"));
        assert_ne!(fingerprint(&keys, "cloud-1"), fingerprint(&FarmKeys::of(other.path()).unwrap(), "cloud-1"));
        assert_eq!(keys.token("cloud-1#7").len(), 64);
    }

    #[test]
    fn a_first_boot_is_told_both_keys() {
        let folder = tempfile::tempdir().unwrap();
        let keys = FarmKeys::of(folder.path()).unwrap();
        let text = cloud_init(&keys.host("a"), &keys.login()).unwrap();
        assert!(text.starts_with("#cloud-config\n"));
        assert!(text.contains("\n    -----END OPENSSH PRIVATE KEY-----\n  ed25519_public: ssh-ed25519 AAAA"), "{text}");
        let told: serde_json::Value = serde_yaml::from_str(&text).unwrap();
        assert_eq!(told["ssh_authorized_keys"][0], keys.login().public_key().to_openssh().unwrap());
    }
}
