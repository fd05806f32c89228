//! The buckets of people's leases: as those of jobs, for as long as the lease, and then for as long as a job's would be.
//!
//! ```text
//!  <state>/leases/<id>/   seed  what its keys follow from       buckets/  as a job's
//!
//!  boot ─► seed, buckets ─┬─► the DUT's key, until the next boot or the end of the lease
//!                         └─► the holder's, until the last bucket is gone
//! ```

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use gateway::s3::bucket::Bucket;
use gateway::s3::desk::Granted;
use tokio::sync::mpsc;

use super::Farm;
use super::buckets::{Ask, BucketView, Keys, new_seed};
use super::contents::{Attachments, Contents};
use super::machines::Dut;
use super::prepare::Prepared;
use crate::job_log::JobLog;
use crate::lease::rows::LeaseState;
use crate::runner::SetupError;

/// What a lease is called among the jobs that have buckets.
const LEASE: &str = "lease-";
const SEED: &str = "seed";

/// A lease that boots something.
pub(super) struct Boot<'a> {
    pub id: &'a str,
    pub folder: &'a Path,
    pub dut: &'a Dut,
    pub log: &'a Arc<JobLog>,
}

/// What the keys of a lease follow from; made when it is asked for first.
pub(super) fn seed_in(folder: &Path) -> io::Result<String> {
    let path = folder.join(SEED);
    match fs::read_to_string(&path) {
        Ok(seed) if !seed.is_empty() => return Ok(seed),
        Ok(_) => fs::remove_file(&path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let seed = new_seed();
    fs::File::options().create_new(true).write(true).mode(0o600).open(path)?.write_all(seed.as_bytes())?;
    Ok(seed)
}

impl Farm {
    pub(super) async fn open_buckets_of_lease(
        &self,
        boot: Boot<'_>,
        prepared: &Prepared,
        contents: &Contents,
    ) -> Result<Granted, SetupError> {
        let ask = Ask {
            number: &format!("{LEASE}{}", boot.id),
            folder: boot.folder,
            seed: &prepared.seed,
            groups: &[],
            job: &prepared.job,
            contents,
            attachments: &Attachments::default(),
            dut: (&boot.dut.config.id, boot.dut.address()),
            log: boot.log,
            events: &mpsc::channel(1).0,
        };
        self.buckets.open(ask).await
    }

    /// The buckets of a person's lease, over or not.
    pub async fn buckets_of_lease(&self, id: &str) -> Vec<BucketView> {
        let ended = self.end_of_lease(id).await.and_then(|ended| jiff::Timestamp::try_from(ended).ok());
        self.buckets.views(&format!("{LEASE}{id}"), ended)
    }

    /// The key by which its holder reaches them.
    pub fn bucket_keys_of_lease(&self, id: &str) -> Option<Keys> {
        self.buckets.keys_of(&format!("{LEASE}{id}"))
    }

    /// One of them.
    pub fn bucket_of_lease(&self, id: &str, name: &str) -> Option<Bucket> {
        self.buckets.bucket(&format!("{LEASE}{id}"), name)
    }

    /// Those of before a restart, of leases that are over as well.
    pub(super) fn reopen_buckets_of_leases(&self) {
        for entry in fs::read_dir(self.config().state.join("leases")).into_iter().flatten().flatten() {
            let Ok(seed) = fs::read_to_string(entry.path().join(SEED)) else { continue };
            self.buckets.reopen(&format!("{LEASE}{}", entry.file_name().to_string_lossy()), &entry.path(), &seed);
        }
    }

    /// When what has buckets was over, if that is a lease. The outer `None`: it is a job; the inner one: it is not over.
    pub(super) async fn end_of_its_lease(&self, number: &str) -> Option<Option<SystemTime>> {
        match number.strip_prefix(LEASE) {
            Some(id) => Some(self.end_of_lease(id).await),
            None => None,
        }
    }

    /// By the last thing that is told of it.
    async fn end_of_lease(&self, id: &str) -> Option<SystemTime> {
        if self.lease(id).await.is_ok_and(|lease| lease.state != LeaseState::Destroyed) {
            return None;
        }
        let told = fs::metadata(self.config().state.join("leases").join(id).join("events.jsonl"));
        Some(told.and_then(|told| told.modified()).unwrap_or(SystemTime::UNIX_EPOCH))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_of_a_lease_is_made_once_and_for_nobody_else_to_read() {
        let folder = tempfile::tempdir().unwrap();
        let seed = seed_in(folder.path()).unwrap();
        assert_eq!((seed.len(), seed_in(folder.path()).unwrap()), (64, seed.clone()));
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(folder.path().join(SEED)).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        fs::write(folder.path().join(SEED), "").unwrap();
        assert_ne!(seed_in(folder.path()).unwrap(), seed, "a server that was killed in between left none");
    }
}
