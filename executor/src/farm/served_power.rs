//! Outlets for the programs of others: each lease of a person has a key, and whoever has the key switches what the lease holds.
//!
//! ```text
//!  key = the first half of SHA-256(the farm's secret, the lease's id)      a lease that is over has none any more
//! ```
//! Nobody guesses a key (128 bits), and it need not be kept: it is the same after a restart. The secret is made when it is first needed.

use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::{Farm, LeaseError};
use crate::lease::rows::{LeaseState, Owner};

/// The farm's secret, in the folder of the outlets.
const SECRET: &str = "secret";
/// As long as what it is hashed to.
const SECRET_BYTES: usize = 32;
/// Half of the hash: what is left out keeps anybody from hashing on.
const KEY_BYTES: usize = 16;

impl Farm {
    /// The key of a person's lease.
    pub async fn power_key(&self, lease: &str) -> Result<String, LeaseError> {
        self.usable(lease).await?;
        Ok(key_of(&self.secret()?, lease))
    }

    /// The lease that a key is of, while it holds something.
    pub async fn lease_of_key(&self, key: &str) -> Result<String, LeaseError> {
        let leases = self.snapshot().await.leases;
        let of_people = leases.iter().filter(|lease| {
            lease.parent.is_none() && lease.state == LeaseState::Active && !matches!(lease.request.owner, Owner::Job(_))
        });
        let secret = self.secret()?;
        // Of the hashes a comparison may tell how far they agree.
        let shown = Sha256::digest(key);
        let is_his = |lease: &&str| Sha256::digest(key_of(&secret, lease)) == shown;
        let found = of_people.map(|lease| lease.id().as_str()).find(is_his);
        found.map(str::to_owned).ok_or_else(|| {
            LeaseError::NoSuch("no lease has this key; `wharf power LEASE urls` shows that of yours".into())
        })
    }

    /// Where outlets are served: with the API, and where pdudaemon's clients ask.
    pub fn power_addresses(&self) -> (SocketAddr, SocketAddr) {
        (self.api, self.planner.config.get().power_listener.unwrap_or(self.api))
    }

    /// The outlet that a lease holds: the name of its unit, and its own.
    pub async fn outlet_of_lease(&self, lease: &str) -> Result<(String, String), LeaseError> {
        let (_, dut, _) = self.usable(lease).await?;
        Ok((dut.outlet.unit().name.clone(), dut.outlet.outlet().0.clone()))
    }

    fn secret(&self) -> Result<Vec<u8>, LeaseError> {
        let folder = self.planner.config.get().state.join(super::hardware::OUTLETS);
        secret(&folder)
            .map_err(|error| LeaseError::Failed(format!("cannot keep a secret in {}: {error}", folder.display())))
    }
}

fn key_of(secret: &[u8], lease: &str) -> String {
    let hash = Sha256::new().chain_update(secret).chain_update(lease).finalize();
    hash.iter().take(KEY_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

/// Read, or made; of two who make it at once the first one's counts.
fn secret(folder: &Path) -> io::Result<Vec<u8>> {
    let path = folder.join(SECRET);
    match fs::read(&path) {
        Ok(secret) if secret.len() == SECRET_BYTES => return Ok(secret),
        Ok(_) => fs::remove_file(&path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    fs::create_dir_all(folder)?;
    let beside = folder.join(format!("{SECRET}-{:016x}", rand::random::<u64>()));
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(&rand::random::<[u8; SECRET_BYTES]>())?;
    file.sync_all()?;
    let made = fs::hard_link(&beside, &path);
    fs::remove_file(&beside)?;
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => fs::read(&path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_has_the_same_key_for_ever_and_another_lease_or_farm_another() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let made = secret(folder.path()).unwrap();
        assert_eq!(secret(folder.path()).unwrap(), made);
        let mine = key_of(&made, "mine");
        assert_eq!((mine.len(), &key_of(&made, "mine")), (32, &mine));
        assert_ne!(key_of(&made, "yours"), mine);
        assert_ne!(key_of(&secret(other.path()).unwrap(), "mine"), mine);
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(folder.path().join(SECRET)).unwrap());
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
