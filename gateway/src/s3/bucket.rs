//! One bucket on the disk: objects by name, within a quota, that survive the process.
//!
//! ```text
//!  <folder>/index.jsonl   what is there, a line per change; written anew when most of it is history
//!           pieces/<n>    bytes; an object is one piece, or the parts of a multipart upload in their order
//!
//!  Writing (counts against the quota, gone when dropped) ─ finish ─► Piece ─┬─ put ────────► an object
//!                                                                           └─ add_part ─► an upload ─ complete ─► an object
//!  replaced, deleted, aborted ─► its pieces are doomed: gone with their last reader
//! ```
//! No name of an object is ever a path: a key leads to a numbered file by way of the index only.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

/// Objects of one bucket: each is some 300 bytes of memory for as long as the bucket is open.
pub const OBJECTS_MAX: usize = 100_000;
/// Files of one bucket, an object's or a part's each: an upload may have ten thousand parts, of no byte each, and an object as many.
const PIECES_MAX: usize = 2 * OBJECTS_MAX;
/// Uploads in parts that are open at once; a client that forgets to end them must not fill the memory.
const UPLOADS_MAX: usize = 100;
/// Parts of one upload, as S3 has it.
pub(super) const PARTS_MAX: i32 = 10_000;
/// Lines of the index beyond twice the objects before it is written anew.
const HISTORY_LINES: usize = 1000;
/// What of an object's headers is kept: twice what S3 keeps of user metadata (2 KiB).
const HEADERS_BYTES_MAX: usize = 4096;

const INDEX: &str = "index.jsonl";
const PIECES: &str = "pieces";

/// Why a bucket does not do it.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// It is full.
    #[error(
        "the bucket `{bucket}` may have {bytes_max} bytes; delete objects, or have the farm's administrator raise `s3.quota`"
    )]
    QuotaExceeded {
        /// Which.
        bucket: String,
        /// Its quota.
        bytes_max: u64,
    },
    /// It has too many.
    #[error("the bucket `{bucket}` has {OBJECTS_MAX} objects, which is the most; pack them into archives")]
    TooManyObjects {
        /// Which.
        bucket: String,
    },
    /// Objects and parts, of however few bytes.
    #[error("the bucket `{bucket}` has {PIECES_MAX} objects and parts, which is the most; upload in fewer parts")]
    TooManyPieces {
        /// Which.
        bucket: String,
    },
    /// Uploads that nobody ends.
    #[error("{UPLOADS_MAX} uploads in parts are open in the bucket `{bucket}`; complete or abort some")]
    TooManyUploads {
        /// Which.
        bucket: String,
    },
    /// What goes with an object is too long.
    #[error("headers and metadata of an object have at most {HEADERS_BYTES_MAX} bytes")]
    HeadersTooLong,
    /// There is none.
    #[error("no upload `{0}`; it was completed or aborted, or the farm was restarted")]
    NoSuchUpload(String),
    /// A part that is not there, or another than was uploaded.
    #[error("part {0} was not uploaded, or is another one than was named")]
    InvalidPart(i32),
    /// Parts are named in their order.
    #[error("the parts are not in ascending order")]
    PartsOutOfOrder,
    /// The farm's own disk is full.
    #[error("the farm's disk is full; its administrator has to make room")]
    DiskFull,
    /// Anything else that the system said.
    #[error("the farm cannot keep it: {0}")]
    Io(io::Error),
}

impl From<io::Error> for BucketError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BucketError::DiskFull,
            _ => BucketError::Io(error),
        }
    }
}

/// A bucket. Cheap to clone.
#[derive(Clone)]
pub struct Bucket(Arc<Inner>);

struct Inner {
    name: String,
    folder: PathBuf,
    bytes_max: u64,
    pieces_max: usize,
    /// Bytes; each piece has a clone.
    used: Arc<AtomicU64>,
    numbers: AtomicU64,
    shelf: Mutex<Shelf>,
}

struct Shelf {
    objects: BTreeMap<String, Object>,
    uploads: BTreeMap<String, Upload>,
    index: File,
    lines: usize,
}

/// An object as it is now; its bytes stay as long as this does.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its bytes, piece after piece.
    pub pieces: Vec<Arc<Piece>>,
    /// The MD5 of its bytes, or of its parts' with their number, as S3 forms it.
    pub etag: String,
    /// When it was put, in seconds since 1970.
    pub modified_s: u64,
    /// What was told with it.
    pub headers: Headers,
}

impl Object {
    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.size).sum()
    }
}

/// What is kept with an object, and told with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Headers {
    /// Those of HTTP that S3 keeps, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub http: BTreeMap<String, String>,
    /// The user's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

impl Headers {
    fn bytes(&self) -> usize {
        self.http.iter().chain(&self.metadata).map(|(name, value)| name.len() + value.len()).sum()
    }
}

/// An upload in parts.
#[derive(Clone, Debug)]
pub(super) struct Upload {
    pub(super) key: String,
    pub(super) headers: Headers,
    pub(super) began_s: u64,
    pub(super) parts: BTreeMap<i32, Arc<Piece>>,
}

/// A file of bytes; gone with its last holder once it is doomed.
#[derive(Debug)]
pub struct Piece {
    path: PathBuf,
    number: u64,
    /// Its length.
    pub size: u64,
    /// Its MD5, in hexadecimal.
    pub md5: String,
    doomed: AtomicBool,
    used: Arc<AtomicU64>,
}

impl Piece {
    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if self.doomed.load(Ordering::Relaxed) {
            self.used.fetch_sub(self.size, Ordering::Relaxed);
            if let Err(error) = fs::remove_file(&self.path) {
                tracing::warn!(path = %self.path.display(), %error, "a deleted object's bytes stay on the disk");
            }
        }
    }
}

/// A line of the index.
#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    /// `None`: it is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    object: Option<Row>,
}

#[derive(Serialize, Deserialize)]
struct Row {
    pieces: Vec<(u64, u64, String)>,
    etag: String,
    modified_s: u64,
    #[serde(default)]
    headers: Headers,
}

impl Bucket {
    /// The bucket in `folder`, with what was in it before; it may have `bytes_max` bytes.
    pub fn open(name: &str, folder: &Path, bytes_max: u64) -> io::Result<Bucket> {
        // Readable for our user only: what DUTs write may be secret.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder.join(PIECES))?;
        let used = Arc::new(AtomicU64::new(0));
        let (objects, lines, broken) = read_index(folder, &used)?;
        let numbers = objects.values().flat_map(|object| &object.pieces).map(|piece| piece.number + 1).max();
        remove_strays(folder, &objects);
        let index = private().append(true).open(folder.join(INDEX))?;
        let mut shelf = Shelf { objects, uploads: BTreeMap::new(), index, lines };
        if broken {
            shelf.write_anew(folder)?;
        }
        let numbers = AtomicU64::new(numbers.unwrap_or(0));
        let (name, folder) = (name.to_owned(), folder.to_owned());
        let (pieces_max, shelf) = (PIECES_MAX, Mutex::new(shelf));
        Ok(Bucket(Arc::new(Inner { name, folder, bytes_max, pieces_max, used, numbers, shelf })))
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// When it was made, in seconds since 1970; where the file system does not keep that, when its folder was changed.
    pub fn made_s(&self) -> u64 {
        let made = fs::metadata(&self.0.folder).and_then(|folder| folder.created().or_else(|_| folder.modified())).ok();
        made.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs())
    }

    /// Bytes in it, of uploads that are not complete as well.
    pub fn used_bytes(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Its quota.
    pub fn bytes_max(&self) -> u64 {
        self.0.bytes_max
    }

    /// How many objects it has.
    pub fn count(&self) -> usize {
        self.lock().objects.len()
    }

    /// Begins to write bytes.
    pub async fn write(&self) -> Result<Writing, BucketError> {
        if Arc::strong_count(&self.0.used) > self.0.pieces_max {
            return Err(BucketError::TooManyPieces { bucket: self.0.name.clone() });
        }
        let number = self.0.numbers.fetch_add(1, Ordering::Relaxed);
        let path = self.0.folder.join(PIECES).join(number.to_string());
        let file = private().write(true).create_new(true).open(&path)?;
        let piece = Piece {
            path,
            number,
            size: 0,
            md5: String::new(),
            doomed: AtomicBool::new(true),
            used: Arc::clone(&self.0.used),
        };
        let file = tokio::fs::File::from_std(file);
        Ok(Writing { bucket: self.clone(), piece, file, hash: Md5::new() })
    }

    /// Puts an object in the place of what had its name.
    pub fn put(&self, key: &str, headers: Headers, piece: Arc<Piece>) -> Result<Object, BucketError> {
        let etag = piece.md5.clone();
        self.put_object(key, Object { pieces: vec![piece], etag, modified_s: now_s(), headers })
    }

    fn put_object(&self, key: &str, object: Object) -> Result<Object, BucketError> {
        if object.headers.bytes() > HEADERS_BYTES_MAX {
            return Err(BucketError::HeadersTooLong);
        }
        let mut shelf = self.lock();
        if shelf.objects.len() >= OBJECTS_MAX && !shelf.objects.contains_key(key) {
            return Err(BucketError::TooManyObjects { bucket: self.0.name.clone() });
        }
        shelf.append(&Line { key: key.to_owned(), object: Some(Row::of(&object)) })?;
        if let Some(replaced) = shelf.objects.insert(key.to_owned(), object.clone()) {
            doom(&replaced);
        }
        // Last: an upload that is completed twice at once has the same pieces both times.
        object.pieces.iter().for_each(|piece| piece.doomed.store(false, Ordering::Relaxed));
        shelf.tidy(&self.0.folder);
        Ok(object)
    }

    /// The object of this name.
    pub fn get(&self, key: &str) -> Option<Object> {
        self.lock().objects.get(key).cloned()
    }

    /// Deletes the object of this name, if there is one.
    pub fn delete(&self, key: &str) -> Result<(), BucketError> {
        let mut shelf = self.lock();
        if !shelf.objects.contains_key(key) {
            return Ok(());
        }
        shelf.append(&Line { key: key.to_owned(), object: None })?;
        if let Some(object) = shelf.objects.remove(key) {
            doom(&object);
        }
        shelf.tidy(&self.0.folder);
        Ok(())
    }

    /// Calls `visit` with the objects from the name `from` on, in the order of their names, until it says no.
    pub(super) fn each_from(&self, from: &str, mut visit: impl FnMut(&str, &Object) -> bool) {
        for (key, object) in self.lock().objects.range(from.to_owned()..) {
            if !visit(key, object) {
                return;
            }
        }
    }

    /// The names of all objects, in their order.
    pub fn keys(&self) -> Vec<String> {
        self.lock().objects.keys().cloned().collect()
    }

    /// Begins an upload in parts, and names it.
    pub(super) fn begin_upload(&self, key: &str, headers: Headers) -> Result<String, BucketError> {
        if headers.bytes() > HEADERS_BYTES_MAX {
            return Err(BucketError::HeadersTooLong);
        }
        let mut shelf = self.lock();
        if shelf.uploads.len() >= UPLOADS_MAX {
            return Err(BucketError::TooManyUploads { bucket: self.0.name.clone() });
        }
        let id = format!("{:032x}", rand::random::<u128>());
        let upload = Upload { key: key.to_owned(), headers, began_s: now_s(), parts: BTreeMap::new() };
        shelf.uploads.insert(id.clone(), upload);
        Ok(id)
    }

    /// An upload of this object, as it is now.
    pub(super) fn upload(&self, key: &str, id: &str) -> Result<Upload, BucketError> {
        let upload = self.lock().uploads.get(id).filter(|upload| upload.key == key).cloned();
        upload.ok_or_else(|| BucketError::NoSuchUpload(id.to_owned()))
    }

    /// All uploads, by their names.
    pub(super) fn uploads(&self) -> Vec<(String, Upload)> {
        self.lock().uploads.iter().map(|(id, upload)| (id.clone(), upload.clone())).collect()
    }

    pub(super) fn add_part(&self, key: &str, id: &str, number: i32, piece: Arc<Piece>) -> Result<(), BucketError> {
        let mut shelf = self.lock();
        let upload = shelf.uploads.get_mut(id).filter(|upload| upload.key == key);
        let upload = upload.ok_or_else(|| BucketError::NoSuchUpload(id.to_owned()))?;
        upload.parts.insert(number, piece);
        Ok(())
    }

    /// Ends an upload: `parts` by number, each with its MD5 where it was named.
    pub(super) fn complete_upload(
        &self,
        key: &str,
        id: &str,
        parts: &[(i32, Option<String>)],
    ) -> Result<Object, BucketError> {
        let upload = self.upload(key, id)?;
        if !parts.is_sorted_by(|(one, _), (other, _)| one < other) {
            return Err(BucketError::PartsOutOfOrder);
        }
        let mut pieces = Vec::with_capacity(parts.len());
        let mut hash = Md5::new();
        for (number, md5) in parts {
            let piece = upload.parts.get(number).filter(|piece| md5.as_ref().is_none_or(|md5| *md5 == piece.md5));
            let piece = piece.ok_or(BucketError::InvalidPart(*number))?;
            hash.update(from_hex(&piece.md5));
            pieces.push(Arc::clone(piece));
        }
        let etag = format!("{}-{}", to_hex(&hash.finalize()), pieces.len());
        let object = Object { pieces, etag, modified_s: now_s(), headers: upload.headers };
        let object = self.put_object(key, object)?;
        self.lock().uploads.remove(id);
        Ok(object)
    }

    /// Forgets an upload and its parts.
    pub(super) fn abort_upload(&self, key: &str, id: &str) -> Result<(), BucketError> {
        self.upload(key, id)?;
        self.lock().uploads.remove(id);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.0.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bucket").field("name", &self.0.name).finish_non_exhaustive()
    }
}

impl Shelf {
    fn append(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.index.write_all(&text)?;
        self.lines += 1;
        Ok(())
    }

    /// Writes the index anew when most of it is history; one that cannot be written stays as it is.
    fn tidy(&mut self, folder: &Path) {
        if self.lines > 2 * self.objects.len() + HISTORY_LINES
            && let Err(error) = self.write_anew(folder)
        {
            tracing::warn!(path = %folder.display(), %error, "a bucket's index cannot be written anew");
        }
    }

    fn write_anew(&mut self, folder: &Path) -> io::Result<()> {
        let unfinished = folder.join(".index.jsonl");
        let mut file = private().write(true).truncate(true).open(&unfinished)?;
        let mut text = Vec::new();
        for (key, object) in &self.objects {
            serde_json::to_writer(&mut text, &Line { key: key.clone(), object: Some(Row::of(object)) })?;
            text.push(b'\n');
        }
        file.write_all(&text)?;
        fs::rename(&unfinished, folder.join(INDEX))?;
        self.index = private().append(true).open(folder.join(INDEX))?;
        self.lines = self.objects.len();
        Ok(())
    }
}

impl Row {
    fn of(object: &Object) -> Row {
        let pieces = object.pieces.iter().map(|piece| (piece.number, piece.size, piece.md5.clone())).collect();
        Row { pieces, etag: object.etag.clone(), modified_s: object.modified_s, headers: object.headers.clone() }
    }
}

/// Bytes on their way into a bucket; what is not finished is gone.
pub struct Writing {
    bucket: Bucket,
    piece: Piece,
    file: tokio::fs::File,
    hash: Md5,
}

impl Writing {
    /// Adds bytes.
    pub async fn push(&mut self, bytes: &Bytes) -> Result<(), BucketError> {
        let length = bytes.len() as u64;
        let Inner { name, bytes_max, used, .. } = &*self.bucket.0;
        // Counted before they are there, so that many writers together stay within it, too.
        let reserved = used.try_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(length).filter(|sum| sum <= bytes_max)
        });
        if reserved.is_err() {
            return Err(BucketError::QuotaExceeded { bucket: name.clone(), bytes_max: *bytes_max });
        }
        self.piece.size += length;
        self.hash.update(bytes);
        Ok(self.file.write_all(bytes).await?)
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.piece.size
    }

    /// All bytes are there.
    pub async fn finish(mut self) -> Result<Arc<Piece>, BucketError> {
        self.file.flush().await?;
        self.piece.md5 = to_hex(&self.hash.finalize());
        Ok(Arc::new(self.piece))
    }
}

fn doom(object: &Object) {
    object.pieces.iter().for_each(|piece| piece.doomed.store(true, Ordering::Relaxed));
}

fn private() -> fs::OpenOptions {
    let mut options = File::options();
    options.create(true).mode(0o600);
    options
}

/// The objects that the index names and whose bytes are there; how many lines it has; whether some of it is broken, as after a full disk
/// or a power cut.
fn read_index(folder: &Path, used: &Arc<AtomicU64>) -> io::Result<(BTreeMap<String, Object>, usize, bool)> {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    let (mut lines, mut broken) = (0, false);
    match File::open(folder.join(INDEX)) {
        Ok(file) => {
            for line in BufReader::new(file).split(b'\n') {
                lines += 1;
                match serde_json::from_slice(&line?) {
                    Ok(Line { key, object: Some(row) }) => drop(rows.insert(key, row)),
                    Ok(Line { key, object: None }) => drop(rows.remove(&key)),
                    Err(_) => broken = true,
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut objects = BTreeMap::new();
    for (key, row) in rows {
        let is_there = |(number, size, _): &(u64, u64, String)| {
            fs::metadata(folder.join(PIECES).join(number.to_string())).is_ok_and(|file| file.len() == *size)
        };
        if !row.pieces.iter().all(is_there) {
            tracing::warn!(path = %folder.display(), key, "an object's bytes are gone; so is the object");
            broken = true;
            continue;
        }
        let piece = |(number, size, md5): (u64, u64, String)| {
            used.fetch_add(size, Ordering::Relaxed);
            let path = folder.join(PIECES).join(number.to_string());
            Arc::new(Piece { path, number, size, md5, doomed: AtomicBool::new(false), used: Arc::clone(used) })
        };
        let pieces = row.pieces.into_iter().map(piece).collect();
        objects.insert(key, Object { pieces, etag: row.etag, modified_s: row.modified_s, headers: row.headers });
    }
    Ok((objects, lines, broken))
}

/// Files of uploads that a killed process had begun.
fn remove_strays(folder: &Path, objects: &BTreeMap<String, Object>) {
    let known: std::collections::BTreeSet<_> =
        objects.values().flat_map(|object| &object.pieces).map(|piece| piece.number.to_string()).collect();
    for entry in fs::read_dir(folder.join(PIECES)).into_iter().flatten().flatten() {
        if !entry.file_name().to_str().is_some_and(|name| known.contains(name)) {
            // One that stays costs its space until the bucket is gone.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits =
        |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap_or_default(), 16).unwrap_or_default();
    text.as_bytes().chunks(2).map(digits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn write(bucket: &Bucket, bytes: &'static [u8]) -> Result<Arc<Piece>, BucketError> {
        let mut writing = bucket.write().await?;
        writing.push(&Bytes::from_static(bytes)).await?;
        writing.finish().await
    }

    async fn put(bucket: &Bucket, key: &str, bytes: &'static [u8]) {
        let piece = write(bucket, bytes).await.unwrap();
        bucket.put(key, Headers::default(), piece).unwrap();
    }

    fn files(folder: &Path) -> usize {
        fs::read_dir(folder.join(PIECES)).unwrap().count()
    }

    #[tokio::test]
    async fn what_was_put_is_there_after_a_restart_and_what_was_deleted_or_unfinished_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let bucket = Bucket::open("results", folder.path(), 100).unwrap();
        put(&bucket, "../../etc/passwd", b"kept").await;
        put(&bucket, "twice", b"first").await;
        put(&bucket, "twice", b"second!").await;
        put(&bucket, "gone", b"x").await;
        bucket.delete("gone").unwrap();
        assert_eq!((bucket.used_bytes(), files(folder.path())), (11, 2));
        let unfinished = write(&bucket, b"of an upload").await.unwrap();
        std::mem::forget(unfinished);
        fs::OpenOptions::new()
            .append(true)
            .open(folder.path().join(INDEX))
            .unwrap()
            .write_all(b"{\"key\": \"to")
            .unwrap();
        drop(bucket);
        let bucket = Bucket::open("results", folder.path(), 100).unwrap();
        assert_eq!(bucket.keys(), ["../../etc/passwd", "twice"]);
        assert_eq!((bucket.used_bytes(), files(folder.path())), (11, 2));
        // `printf second! | md5sum`
        assert_eq!(bucket.get("twice").unwrap().etag, "26de793d084efdd1c4134652c5494af1");
        put(&bucket, "new", b"y").await;
        assert_eq!(bucket.count(), 3);
    }

    #[tokio::test]
    async fn a_quota_holds_for_all_writers_together_and_what_broke_off_is_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let bucket = Bucket::open("small", folder.path(), 10).unwrap();
        put(&bucket, "a", b"12345678").await;
        let error = write(&bucket, b"abc").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "the bucket `small` may have 10 bytes; delete objects, or have the farm's administrator raise `s3.quota`"
        );
        assert_eq!(bucket.used_bytes(), 8);
        let half = write(&bucket, b"ab").await.unwrap();
        assert!(write(&bucket, b"c").await.is_err());
        drop(half);
        put(&bucket, "b", b"xy").await;
        assert_eq!(bucket.used_bytes(), 10);
    }

    #[tokio::test]
    async fn an_object_that_is_replaced_while_it_is_read_stays_for_its_reader() {
        let folder = tempfile::tempdir().unwrap();
        let bucket = Bucket::open("b", folder.path(), 100).unwrap();
        put(&bucket, "a", b"old").await;
        let reader = bucket.get("a").unwrap();
        put(&bucket, "a", b"newer").await;
        assert_eq!(fs::read(reader.pieces[0].path()).unwrap(), b"old");
        assert_eq!(bucket.used_bytes(), 8);
        drop(reader);
        assert_eq!((bucket.used_bytes(), files(folder.path())), (5, 1));
    }

    #[tokio::test]
    async fn parts_are_joined_in_the_order_of_their_numbers_and_an_aborted_upload_takes_no_space() {
        let folder = tempfile::tempdir().unwrap();
        let bucket = Bucket::open("b", folder.path(), 100).unwrap();
        let id = bucket.begin_upload("big", Headers::default()).unwrap();
        for (number, bytes) in [(2, &b"world"[..]), (1, b"hello "), (7, b"unused")] {
            let piece = write(&bucket, bytes).await.unwrap();
            bucket.add_part("big", &id, number, piece).unwrap();
        }
        assert!(matches!(
            bucket.add_part("other", &id, 1, write(&bucket, b"").await.unwrap()),
            Err(BucketError::NoSuchUpload(_))
        ));
        let wrong = Some("00".repeat(16));
        assert!(matches!(bucket.complete_upload("big", &id, &[(1, wrong)]), Err(BucketError::InvalidPart(1))));
        assert!(matches!(
            bucket.complete_upload("big", &id, &[(2, None), (1, None)]),
            Err(BucketError::PartsOutOfOrder)
        ));
        let object = bucket.complete_upload("big", &id, &[(1, None), (2, None)]).unwrap();
        // `(printf 'hello ' | openssl md5 -binary; printf world | openssl md5 -binary) | md5sum`
        assert_eq!((object.size(), object.etag.as_str()), (11, "e09e4fd6265b36115fe3db32df945d84-2"));
        assert_eq!((bucket.used_bytes(), files(folder.path())), (11, 2));
        let id = bucket.begin_upload("none", Headers::default()).unwrap();
        bucket.add_part("none", &id, 1, write(&bucket, b"abc").await.unwrap()).unwrap();
        bucket.abort_upload("none", &id).unwrap();
        assert_eq!((bucket.used_bytes(), bucket.count()), (11, 1));
    }

    #[tokio::test]
    async fn an_upload_that_is_completed_twice_at_once_keeps_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let bucket = Bucket::open("b", folder.path(), 100).unwrap();
        let id = bucket.begin_upload("big", Headers::default()).unwrap();
        bucket.add_part("big", &id, 1, write(&bucket, b"hello").await.unwrap()).unwrap();
        let upload = bucket.upload("big", &id).unwrap();
        bucket.complete_upload("big", &id, &[(1, None)]).unwrap();
        // Both had looked before either was done.
        bucket.lock().uploads.insert(id.clone(), upload);
        bucket.complete_upload("big", &id, &[(1, None)]).unwrap();
        drop(bucket);
        assert_eq!(Bucket::open("b", folder.path(), 100).unwrap().keys(), ["big"]);
    }

    #[tokio::test]
    async fn parts_of_no_bytes_are_counted_too() {
        let folder = tempfile::tempdir().unwrap();
        let mut bucket = Bucket::open("b", folder.path(), 100).unwrap();
        Arc::get_mut(&mut bucket.0).unwrap().pieces_max = 3;
        put(&bucket, "a", b"").await;
        let id = bucket.begin_upload("big", Headers::default()).unwrap();
        for number in 1..3 {
            bucket.add_part("big", &id, number, write(&bucket, b"").await.unwrap()).unwrap();
        }
        let error = write(&bucket, b"").await.unwrap_err();
        let expected = "the bucket `b` has 200000 objects and parts, which is the most; upload in fewer parts";
        assert_eq!(error.to_string(), expected);
        bucket.abort_upload("big", &id).unwrap();
        put(&bucket, "b", b"").await;
    }

    #[tokio::test]
    async fn an_index_of_mostly_history_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let bucket = Bucket::open("b", folder.path(), 1 << 20).unwrap();
        for _ in 0..HISTORY_LINES + 10 {
            put(&bucket, "same", b"x").await;
        }
        let lines = fs::read_to_string(folder.path().join(INDEX)).unwrap().lines().count();
        assert!(lines < 20, "{lines}");
        drop(bucket);
        assert_eq!(Bucket::open("b", folder.path(), 1 << 20).unwrap().keys(), ["same"]);
    }
}
