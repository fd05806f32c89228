//! The cache's directory: what is on disk, and how it changes so that neither a crash nor a second process can spoil it.
//!
//! ```text
//!  index/<sha256 of the URL>.json      Record: which body the URL had, and its validators; its mtime is the last use
//!  bodies/<sha256 of the body>         complete, never written again
//!  partial/<sha256 of the URL>.part    growing, under flock by the one who writes it
//!  partial/<sha256 of the URL>.json    whose start the part is
//!  edited/<sha256 of recipe and sources>   what was made of them (edit/); its mtime is the last use
//!  partial/<sha256 of the URL>.<n>.part    a second writer's own, when the first holds the lock; never resumed
//!
//!  part ── sync, rename ──► body ── write beside, rename ──► index      each step leaves a directory that is right
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ContentError;
use super::revalidation::Validators;

/// The cache's directory.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
}

/// What the index remembers of a URL.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// The URL, for people who look into the directory.
    pub(super) url: String,
    /// What the server said.
    #[serde(flatten)]
    pub(super) validators: Validators,
    /// Bytes of the body.
    pub(super) length: u64,
    /// Name of the body.
    pub(super) sha256: String,
    /// When it was downloaded, seconds since 1970.
    pub(super) fetched_at: u64,
}

/// A complete body, open: it can be read even after another process pruned it.
#[derive(Debug)]
pub(super) struct Complete {
    /// Its record.
    pub(super) record: Record,
    /// The body.
    pub(super) file: Arc<File>,
}

/// Whose file a part is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ownership {
    /// `<key>.part`: it survives a restart.
    Resumable,
    /// Our own, because another writer holds that one.
    Private,
}

/// A body that is growing.
pub(super) struct Part {
    store: Arc<Store>,
    key: String,
    path: PathBuf,
    ownership: Ownership,
    file: Arc<File>,
    bytes: u64,
    /// `None` until the bytes of an earlier run are hashed.
    hash: Option<Sha256>,
    validators: Validators,
}

/// What [`Store::prune`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Number of files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// The sha256 of `bytes` in hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hexadecimal(Sha256::digest(bytes).as_ref())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Store {
    /// Makes the directories that are missing; readable for our user only, because artifacts may be secret.
    pub(super) fn open(directory: &Path) -> Result<Self, ContentError> {
        for name in ["index", "bodies", "edited", "partial"] {
            let path = directory.join(name);
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
            made.map_err(|source| failed(&path, source))?;
        }
        Ok(Store { directory: directory.to_owned() })
    }

    fn index(&self, key: &str) -> PathBuf {
        self.directory.join("index").join(format!("{key}.json"))
    }

    fn body(&self, sha256: &str) -> PathBuf {
        self.directory.join("bodies").join(sha256)
    }

    fn part(&self, key: &str, ending: &str) -> PathBuf {
        self.directory.join("partial").join(format!("{key}.{ending}"))
    }

    /// The complete body of a URL, if there is one and it has the length it should have.
    pub(super) fn complete(&self, key: &str) -> Option<Complete> {
        let record: Record = serde_json::from_slice(&fs::read(self.index(key)).ok()?).ok()?;
        let is_name = record.sha256.len() == 64 && record.sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
        let file = is_name.then(|| File::open(self.body(&record.sha256)).ok()).flatten()?;
        (file.metadata().ok()?.len() == record.length).then(|| Complete { record, file: Arc::new(file) })
    }

    /// Notes that a body was used now, so that it is not pruned.
    pub(super) fn touch(&self, key: &str, complete: &Complete) {
        let now = SystemTime::now();
        for file in [File::open(self.index(key)).ok(), complete.file.try_clone().ok()].into_iter().flatten() {
            if let Err(error) = file.set_modified(now) {
                tracing::debug!(url = complete.record.url, %error, "cannot note the use of a cached artifact");
            }
        }
    }

    /// The part of a URL that an earlier run left, or an empty one.
    pub(super) fn adopt(self: &Arc<Self>, key: &str, patience: Duration) -> Result<Part, ContentError> {
        let path = self.part(key, "part");
        match lock_when_free(&path, patience).map_err(|source| failed(&path, source))? {
            Some(file) => {
                let bytes = file.metadata().map_err(|source| failed(&path, source))?.len();
                let known = fs::read(self.part(key, "json")).ok();
                let validators = known.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
                Ok(self.new_part(key, path, Ownership::Resumable, file, bytes, validators))
            }
            None => {
                let (path, file) = self.private(key)?;
                Ok(self.new_part(key, path, Ownership::Private, file, 0, Validators::default()))
            }
        }
    }

    fn new_part(
        self: &Arc<Self>,
        key: &str,
        path: PathBuf,
        ownership: Ownership,
        file: File,
        bytes: u64,
        validators: Validators,
    ) -> Part {
        let hash = (bytes == 0).then(Sha256::new);
        let (store, key) = (Arc::clone(self), key.to_owned());
        Part { store, key, path, ownership, file: Arc::new(file), bytes, hash, validators }
    }

    /// A new, locked file that nobody else has.
    fn private(&self, key: &str) -> Result<(PathBuf, File), ContentError> {
        let path = self.part(key, &format!("{:016x}.part", rand::random::<u64>()));
        let made = File::options().read(true).write(true).create_new(true).open(&path);
        let file = made.and_then(|file| file.try_lock().map(|()| file).map_err(io::Error::from));
        file.map(|file| (path.clone(), file)).map_err(|source| failed(&path, source))
    }

    /// Removes what was not used for `unused_for` and is not being written.
    pub(super) fn prune(&self, unused_for: Duration) -> Result<Pruned, ContentError> {
        let oldest = SystemTime::now().checked_sub(unused_for).unwrap_or(UNIX_EPOCH);
        let mut pruned = Pruned::default();
        for path in self.list("index")? {
            pruned.remove_if(&path, |_| is_older(&path, oldest));
        }
        let mut needed = std::collections::HashSet::new();
        for path in self.list("index")? {
            let record = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok());
            needed.extend(record.map(|record| record.sha256));
        }
        for path in self.list("bodies")? {
            let is_needed = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| needed.contains(name));
            // A body is renamed into place before its index is: a young one may still get it.
            pruned.remove_if(&path, |_| !is_needed && is_older(&path, oldest));
        }
        for path in self.list("edited")? {
            pruned.remove_if(&path, |_| is_older(&path, oldest));
        }
        for path in self.list("partial")? {
            pruned.remove_if(&path, |file| is_older(&path, oldest) && file.try_lock().is_ok());
        }
        Ok(pruned)
    }

    fn list(&self, name: &str) -> Result<Vec<PathBuf>, ContentError> {
        let path = self.directory.join(name);
        let entries = fs::read_dir(&path).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
        entries.map_err(|source| failed(&path, source))
    }
}

impl Pruned {
    fn remove_if(&mut self, path: &Path, condition: impl FnOnce(&File) -> bool) {
        let Ok(file) = File::open(path) else { return };
        let bytes = file.metadata().map_or(0, |metadata| metadata.len());
        if condition(&file) && fs::remove_file(path).is_ok() {
            self.files += 1;
            self.bytes += bytes;
        }
    }
}

fn is_older(path: &Path, oldest: SystemTime) -> bool {
    fs::metadata(path).and_then(|metadata| metadata.modified()).is_ok_and(|modified| modified < oldest)
}

fn failed(path: &Path, source: io::Error) -> ContentError {
    ContentError::Cache { path: path.to_owned(), source: Arc::new(source) }
}

/// Opens and locks `path`; `None` when another writer keeps it for longer than `patience`.
fn lock_when_free(path: &Path, patience: Duration) -> io::Result<Option<File>> {
    // 20 ms: an abandoned download of ours lets go after the write it is in.
    const PAUSE: Duration = Duration::from_millis(20);
    let mut waited = Duration::ZERO;
    loop {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            // Between our open and our lock its owner may have finished it and renamed it away: then it is a body now.
            Ok(()) if is_still_at(&file, path) => return Ok(Some(file)),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if waited >= patience => return Ok(None),
            Err(TryLockError::WouldBlock) => {
                std::thread::sleep(PAUSE);
                waited += PAUSE;
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn is_still_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(theirs)) => ours.ino() == theirs.ino() && ours.dev() == theirs.dev(),
        _ => false,
    }
}

impl Part {
    /// How much there is.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whose start it is.
    pub(super) fn validators(&self) -> &Validators {
        &self.validators
    }

    /// The file, for readers.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// An empty part for another version. It is another file: readers of the old one keep what they were reading.
    pub(super) fn restart(mut self, validators: Validators) -> Result<Self, ContentError> {
        if self.bytes > 0 {
            let (path, file) = self.store.private(&self.key)?;
            match self.ownership {
                Ownership::Resumable => fs::rename(&path, &self.path).map_err(|source| failed(&self.path, source))?,
                Ownership::Private => {
                    // A leftover is pruned later.
                    let _ = fs::remove_file(&self.path);
                    self.path = path;
                }
            }
            let old = std::mem::replace(&mut self.file, Arc::new(file));
            let _ = old.unlock();
        }
        (self.bytes, self.hash, self.validators) = (0, Some(Sha256::new()), validators);
        if self.ownership == Ownership::Resumable {
            replace(&self.store.part(&self.key, "json"), &self.validators)?;
        }
        Ok(self)
    }

    /// Appends `chunks`.
    pub(super) fn append(mut self, chunks: Vec<Bytes>) -> Result<Self, ContentError> {
        let mut hash = self.take_hash()?;
        for chunk in chunks {
            self.file.write_all_at(&chunk, self.bytes).map_err(|source| failed(&self.path, source))?;
            hash.update(&chunk);
            self.bytes += chunk.len() as u64;
        }
        self.hash = Some(hash);
        Ok(self)
    }

    /// The part is the whole body: it goes to its place, and the URL's record beside it.
    pub(super) fn finish(mut self, url: &str) -> Result<Complete, ContentError> {
        let sha256 = hexadecimal(self.take_hash()?.finalize().as_ref());
        self.file.sync_data().map_err(|source| failed(&self.path, source))?;
        let body = self.store.body(&sha256);
        fs::rename(&self.path, &body).map_err(|source| failed(&body, source))?;
        let fetched_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let record =
            Record { url: url.to_owned(), validators: self.validators.clone(), length: self.bytes, sha256, fetched_at };
        replace(&self.store.index(&self.key), &record)?;
        if self.ownership == Ownership::Resumable {
            // Without its part the note says nothing; the next part writes its own.
            let _ = fs::remove_file(self.store.part(&self.key, "json"));
        }
        Ok(Complete { record, file: Arc::clone(&self.file) })
    }

    fn take_hash(&mut self) -> Result<Sha256, ContentError> {
        match self.hash.take() {
            Some(hash) => Ok(hash),
            None => hash_start(&self.path, self.bytes).map_err(|source| failed(&self.path, source)),
        }
    }
}

impl Drop for Part {
    /// What nobody can go on with is removed. The lock was the writer's; readers keep the open file for as long as they read. What
    /// cannot be unlocked here is unlocked when the last of them closes it.
    fn drop(&mut self) {
        let is_useless = self.bytes == 0 || self.ownership == Ownership::Private;
        if is_useless && is_still_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
        let _ = self.file.unlock();
    }
}

fn hash_start(path: &Path, bytes: u64) -> io::Result<Sha256> {
    let mut hash = Sha256::new();
    let mut file = File::open(path)?.take(bytes);
    let mut buffer = vec![0; super::file::LARGE_READ_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hash),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// Writes `value` beside `path` and renames it: whoever reads sees the old text or the new one, never half of one.
fn replace(path: &Path, value: &impl Serialize) -> Result<(), ContentError> {
    let beside = path.with_extension(format!("{:016x}.new", rand::random::<u64>()));
    let text = serde_json::to_vec(value).map_err(|error| failed(path, error.into()))?;
    fs::write(&beside, text).and_then(|()| fs::rename(&beside, path)).map_err(|source| failed(path, source))
}
