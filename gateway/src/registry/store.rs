//! The cache's directory: what is kept of images, so that neither a crash nor a full disk can spoil it.
//!
//! ```text
//!  blobs/<sha256>                       layers, configurations and manifests: whole, verified, never written again; mtime is the last use
//!  repositories/<sha256 of the name>.json   index.rs's Record: tags, parts, readers
//!  partial/…                            growing; removed at the next start
//!
//!  part ── verified, sync, rename ──► blob ── write beside, rename ──► record        each step leaves a directory that is right
//! ```

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::NamedTempFile;

use super::ask::Digest;
use super::index::{Held, Holdings, Record, Room, Seconds};

/// The directory, and what is in it.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    holdings: Mutex<Holdings>,
    bytes_max: AtomicU64,
    /// One record is written at a time, as it is then.
    saving: tokio::sync::Mutex<()>,
    #[cfg(test)]
    is_full: std::sync::atomic::AtomicBool,
}

/// Bytes that are kept, and stay while this lives.
pub(super) struct Found {
    /// Where.
    pub(super) path: PathBuf,
    /// How many.
    pub(super) bytes: u64,
    /// Keeps them.
    pub(super) held: Held,
}

/// Room for what is being loaded, until this is dropped.
#[derive(Debug)]
pub(super) struct Reserved {
    store: Arc<Store>,
    bytes: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.store.holdings().unreserve(self.bytes);
    }
}

impl Store {
    /// Opens or makes the directory; readable for our user only, because images may be secret. What was cut off is removed.
    pub(super) fn open(directory: &Path, bytes_max: u64) -> io::Result<Store> {
        for name in ["blobs", "repositories", "partial"] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory.join(name))?;
        }
        for entry in fs::read_dir(directory.join("partial"))? {
            fs::remove_file(entry?.path())?;
        }
        let records = read_records(&directory.join("repositories"))?;
        let holdings = Mutex::new(Holdings::of(records, list_blobs(&directory.join("blobs"))?));
        let (directory, bytes_max) = (directory.to_owned(), AtomicU64::new(bytes_max));
        Ok(Store {
            directory,
            holdings,
            bytes_max,
            saving: tokio::sync::Mutex::default(),
            #[cfg(test)]
            is_full: std::sync::atomic::AtomicBool::default(),
        })
    }

    /// What is known.
    pub(super) fn holdings(&self) -> MutexGuard<'_, Holdings> {
        self.holdings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another limit, from the next thing on that is kept.
    pub(super) fn set_bytes_max(&self, bytes_max: u64) {
        self.bytes_max.store(bytes_max, Ordering::Relaxed);
    }

    /// What is kept under `digest`.
    pub(super) fn find(&self, digest: Digest) -> Option<Found> {
        let (bytes, held) = self.holdings().hold(digest, now())?;
        let path = self.blob(digest);
        match File::open(&path).and_then(|file| file.set_modified(SystemTime::now())) {
            Ok(()) => Some(Found { path, bytes, held }),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the registry cache lost something");
                self.holdings().lose(digest);
                None
            }
        }
    }

    /// The bytes of something small.
    pub(super) async fn read(&self, digest: Digest) -> Option<Vec<u8>> {
        let found = self.find(digest)?;
        let bytes = blocking(move || fs::read(&found.path)).await.ok()?;
        if Digest::of(&bytes) == digest {
            return Some(bytes);
        }
        // A manifest is read whole anyway: one that a disk has spoiled is loaded again.
        tracing::warn!(%digest, "a manifest in the registry cache is not what it was");
        self.holdings().lose(digest);
        None
    }

    /// Room for `bytes`; what has to go for it is gone afterwards.
    pub(super) async fn make_room(self: &Arc<Self>, bytes: u64) -> Result<Reserved, String> {
        let bytes_max = self.bytes_max();
        let room = self.holdings().make_room(bytes, bytes_max);
        let room = room.ok_or_else(|| {
            format!("{bytes} bytes do not fit into the registry cache's {bytes_max} beside what is read from it now")
        })?;
        let reserved = Reserved { store: Arc::clone(self), bytes };
        if !room.gone.is_empty() {
            tracing::info!(count = room.gone.len(), "the registry cache is full: what was not used for longest goes");
            self.remove(room).await;
        }
        Ok(reserved)
    }

    /// Forgets a repository, or all whose names go on with a `/`: which, and how many bytes that freed.
    pub(super) async fn forget(&self, name: &str) -> (Vec<String>, u64) {
        let (room, bytes) = {
            let mut holdings = self.holdings();
            let before = holdings.bytes();
            let room = holdings.forget(name);
            (room, before - holdings.bytes())
        };
        let names = room.changed.iter().cloned().collect();
        self.remove(room).await;
        (names, bytes)
    }

    /// How much may be kept.
    pub(super) fn bytes_max(&self) -> u64 {
        self.bytes_max.load(Ordering::Relaxed)
    }

    async fn remove(&self, room: Room) {
        let paths: Vec<_> = room.gone.iter().map(|digest| self.blob(*digest)).collect();
        blocking(move || {
            for path in paths {
                if let Err(error) = fs::remove_file(&path) {
                    tracing::warn!(path = %path.display(), %error, "cannot remove it from the registry cache");
                }
            }
        })
        .await;
        for repository in room.changed {
            self.save(&repository).await;
        }
    }

    /// A new file for something that comes.
    pub(super) fn part(&self) -> io::Result<NamedTempFile> {
        NamedTempFile::new_in(self.directory.join("partial"))
    }

    /// Writes a piece of something that comes.
    pub(super) fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(test)]
        if self.is_full.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        file.write_all_at(bytes, offset)
    }

    /// As if nothing more could be written.
    #[cfg(test)]
    pub(super) fn fill_the_disk(&self) {
        self.is_full.store(true, Ordering::Relaxed);
    }

    /// What arrived is `digest`: it is kept from now on.
    pub(super) fn keep(&self, part: NamedTempFile, digest: Digest, bytes: u64) -> io::Result<Held> {
        part.as_file().sync_data()?;
        part.persist(self.blob(digest)).map_err(|error| error.error)?;
        let mut holdings = self.holdings();
        holdings.keep(digest, bytes, now());
        Ok(holdings.hold(digest, now()).map(|(_, held)| held).unwrap_or_default())
    }

    /// Keeps something small.
    pub(super) async fn keep_bytes(self: &Arc<Self>, digest: Digest, bytes: bytes::Bytes) -> Result<(), String> {
        let _reserved = self.make_room(bytes.len() as u64).await?;
        let store = Arc::clone(self);
        let kept = blocking(move || {
            let mut part = store.part()?;
            io::Write::write_all(&mut part, &bytes)?;
            store.keep(part, digest, bytes.len() as u64)
        });
        kept.await.map(drop).map_err(|error| error.to_string())
    }

    /// Writes down what is known of a repository. A failure costs a question to the upstream after the next start.
    pub(super) async fn save(&self, repository: &str) {
        let _one = self.saving.lock().await;
        let path = self.record(repository);
        let text = self.holdings().record(repository).map(serde_json::to_vec);
        let saved = blocking(move || match text {
            Some(Ok(text)) => {
                let beside = path.with_extension("new");
                fs::write(&beside, text).and_then(|()| fs::rename(&beside, &path))
            }
            Some(Err(error)) => Err(error.into()),
            None => match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        });
        if let Err(error) = saved.await {
            tracing::warn!(repository, %error, "the registry cache cannot write down what it knows");
        }
    }

    fn blob(&self, digest: Digest) -> PathBuf {
        self.directory.join("blobs").join(digest.hexadecimal())
    }

    fn record(&self, repository: &str) -> PathBuf {
        let name = Digest::of(repository.as_bytes()).hexadecimal();
        self.directory.join("repositories").join(format!("{name}.json"))
    }
}

/// The clock of what outlives the process.
pub(super) fn now() -> Seconds {
    seconds(SystemTime::now())
}

fn seconds(time: SystemTime) -> Seconds {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// What cannot be read is forgotten: it is asked for again.
fn read_records(directory: &Path) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let record = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        match record {
            Some(record) => records.push(record),
            None => fs::remove_file(&path)?,
        }
    }
    Ok(records)
}

/// Files that are not named as ours are nobody's, and stay.
fn list_blobs(directory: &Path) -> io::Result<Vec<(Digest, u64, Seconds)>> {
    let mut blobs = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let digest = entry.file_name().to_str().and_then(|name| format!("sha256:{name}").parse().ok());
        if let Some(digest) = digest {
            let metadata = entry.metadata()?;
            blobs.push((digest, metadata.len(), seconds(metadata.modified()?)));
        }
    }
    Ok(blobs)
}

/// Work with files, beside the tasks.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::index::{Known, Who};

    #[tokio::test]
    async fn what_was_kept_is_there_after_a_restart_and_what_was_cut_off_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let digest = Digest::of(b"ahoy");
        {
            let store = Arc::new(Store::open(directory.path(), 1000).unwrap());
            store.keep_bytes(digest, "ahoy".into()).await.unwrap();
            store.holdings().granted("quay.io/a", digest, Some("application/x"), &Who::Anybody, now());
            store.holdings().tagged("quay.io/a", "v1", digest, 5);
            store.save("quay.io/a").await;
            // As a crash leaves it.
            store.part().unwrap().keep().unwrap();
        }
        fs::write(directory.path().join("repositories/broken.json"), "{").unwrap();
        let store = Arc::new(Store::open(directory.path(), 1000).unwrap());
        assert_eq!(store.read(digest).await.as_deref(), Some(&b"ahoy"[..]));
        assert_eq!(store.holdings().tag("quay.io/a", "v1"), Some((digest, 5)));
        assert_eq!(store.holdings().knows("quay.io/a", digest, &Who::Anybody, now()), Known::Yes);
        assert_eq!(fs::read_dir(directory.path().join("partial")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(directory.path().join("repositories")).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_manifest_that_the_disk_has_spoiled_is_not_given_out() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path(), 1000).unwrap());
        let digest = Digest::of(b"ahoy");
        store.keep_bytes(digest, "ahoy".into()).await.unwrap();
        fs::write(store.blob(digest), "ohoy").unwrap();
        assert_eq!((store.read(digest).await, store.holdings().count()), (None, 0));
    }

    #[tokio::test]
    async fn room_is_made_on_the_disk_by_what_nobody_reads() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path(), 1000).unwrap());
        for text in ["one", "two"] {
            store.keep_bytes(Digest::of(text.as_bytes()), text.into()).await.unwrap();
        }
        let held = store.find(Digest::of(b"two")).unwrap();
        let reserved = store.make_room(997).await.unwrap();
        assert_eq!(fs::read_dir(directory.path().join("blobs")).unwrap().count(), 1);
        assert_eq!(fs::read(&held.path).unwrap(), b"two");
        let expected = "1 bytes do not fit into the registry cache's 1000 beside what is read from it now";
        assert_eq!(store.make_room(1).await.unwrap_err(), expected);
        drop(reserved);
        store.make_room(1).await.unwrap();
    }
}
