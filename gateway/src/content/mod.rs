//! Where the bytes of an artifact come from.
//!
//! ```text
//!  Content ── open().await ──► Reader ── read_at(offset, length).await ──► Bytes
//!    Inline   bytes in memory
//!    File     preads: no mapping, because a file that shrinks under a mapping kills the process     (file.rs)
//!    Url      a cached download; read while it is still arriving                                     (cache.rs)
//!    Joined   one after the other
//!    Archives the same, each on a boundary of four bytes (initramfs archives)
//!    Edited   what is made of others, once: archives, files out of them, U-Boot images               (edit/)
//!    ByName   another content for each name that it is asked for by
//!    Disk     a copy-on-write disk, as it is at that moment                                          (disk.rs)
//! ```
//! A [`Reader`] is one version of the bytes: a file replaced, or a download that starts again with other bytes, shows in readers
//! opened afterwards, and ends the older ones with an error rather than with a mixture.

pub mod cache;
pub mod disk;
mod download;
pub mod edit;
mod file;
pub mod reach;
mod revalidation;
mod store;
pub mod stores;

pub(crate) use self::file::LARGE_READ_BYTES;

use std::fmt;
use std::hash::Hasher;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;

/// What an entry of a namespace holds. Cheap to clone.
#[derive(Clone, Debug)]
pub enum Content {
    /// Bytes in memory.
    Inline(Bytes),
    /// A local file, opened at each access.
    File(PathBuf),
    /// A download, shared through the cache.
    Url(cache::Cached),
    /// Several contents one after the other.
    Joined(Arc<[Content]>),
    /// Several initramfs archives one after the other, with zeroes between them up to a boundary of four bytes: an archive that is not
    /// compressed is found only there (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
    Archives(Arc<[Content]>),
    /// Made of others when it is first asked for.
    Edited(edit::Edited),
    /// What it is depends on the name that it is asked for by.
    ByName(ByName),
    /// A disk; NBD serves it as a block device, the others as a file.
    Disk(disk::Disk),
}

/// A content that is chosen when it is asked for, by its name: a path with groups and a URL with `\1`, a template.
#[derive(Clone)]
pub struct ByName(pub Arc<Choose>);

/// Says what is meant by a name; it may take a moment.
pub type Choose = dyn Fn(&str) -> BoxFuture<'static, Result<Content, ContentError>> + Send + Sync;

impl fmt::Debug for ByName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("chosen by its name")
    }
}

/// One opened version of a content. Cheap to clone; reads may overlap.
#[derive(Clone, Debug)]
pub struct Reader(Arc<Source>);

#[derive(Debug)]
enum Source {
    Inline(Bytes),
    File(file::OpenFile),
    Url(cache::Body),
    Joined(Vec<Reader>),
    Disk(disk::View),
    Arriving(Arc<dyn Arriving>),
}

/// Bytes that somebody else of the gateway brings, and whose number is known.
pub(crate) trait Arriving: fmt::Debug + Send + Sync {
    /// `length` bytes from `offset`: fewer only at the end. Waits for them.
    fn read_at(&self, offset: u64, length: usize) -> BoxFuture<'_, Result<Bytes, ContentError>>;
    /// How many there will be.
    fn size(&self) -> u64;
}

/// Why bytes did not come. Cheap to clone: all readers of one download hear the same error.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ContentError {
    /// A local file cannot be opened or read.
    #[error("cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The path is a directory, a device or the like.
    #[error("{} is not a regular file; name a file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A local file lost bytes while it was read.
    #[error("{} shrank to {found} bytes while it was read; replace files by rename", path.display())]
    Shrunk {
        /// The file.
        path: PathBuf,
        /// Bytes up to which it could be read.
        found: u64,
    },
    /// The URL cannot be used.
    #[error("cannot fetch `{url}`: {reason}")]
    BadUrl {
        /// The URL as written in the job.
        url: String,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// It leads to where the server does not go for who submitted the job.
    #[error("{reason}")]
    Denied {
        /// The URL as written in the job, without credentials.
        url: String,
        /// Where it leads, and what to do.
        reason: String,
    },
    /// The server answered, but not with the artifact.
    #[error("{url} answered {status}; check the URL, or the server behind it")]
    Status {
        /// The URL.
        url: String,
        /// Status code and its standard text.
        status: String,
    },
    /// No connection, or it broke as often as we try.
    #[error("cannot fetch {url}: {reason} (after {tries} tries without progress)")]
    Unreachable {
        /// The URL.
        url: String,
        /// The last error.
        reason: String,
        /// How many tries.
        tries: u32,
    },
    /// The server holds the connection and sends nothing.
    #[error("{url} stalled: no byte for {idle:?}, {bytes} bytes had arrived")]
    Stalled {
        /// The URL.
        url: String,
        /// Bytes that had arrived.
        bytes: u64,
        /// How long we waited.
        idle: Duration,
    },
    /// The artifact changed on its server in the middle of a download that a DUT was already reading.
    #[error("{url} changed while it was downloaded; read it again")]
    Changed {
        /// The URL.
        url: String,
    },
    /// An artifact cannot be made of others.
    #[error("cannot make {what}: {reason}")]
    Edit {
        /// What was to be made.
        what: String,
        /// Why not.
        reason: String,
    },
    /// A part of a container image does not come from its registry.
    #[error("{name}: {reason}")]
    Image {
        /// Repository and digest.
        name: String,
        /// Why not.
        reason: String,
    },
    /// The cache's own directory fails.
    #[error("artifact cache: cannot use {}: {source}; check its owner and the free space", path.display())]
    Cache {
        /// The path in the cache.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The download was given up because nobody waits for it any more.
    #[error("the download of {url} was given up")]
    Cancelled {
        /// The URL.
        url: String,
    },
}

impl Content {
    /// Opens the bytes as they are now. A download is waited for until its headers arrived, not until its end.
    pub async fn open(&self) -> Result<Reader, ContentError> {
        let source = match self {
            Content::Inline(bytes) => Source::Inline(bytes.clone()),
            Content::File(path) => Source::File(file::OpenFile::open(path).await?),
            Content::Url(cached) => Source::Url(cached.open().await?),
            Content::Joined(parts) => Source::Joined(open_all(parts).await?),
            Content::Archives(parts) => Source::Joined(aligned(open_all(parts).await?).await?),
            Content::Edited(edited) => Source::File(edited.open().await?),
            Content::ByName(_) => {
                let reason = "it is known only by the name that it is asked for by".to_owned();
                return Err(ContentError::Edit { what: self.to_string(), reason });
            }
            Content::Disk(disk) => Source::Disk(disk.view()),
        };
        Ok(Reader(Arc::new(source)))
    }

    /// Opens the bytes that are meant by `name`, the name that was asked for.
    pub async fn open_as(&self, name: &str) -> Result<Reader, ContentError> {
        match self {
            Content::ByName(ByName(choose)) => choose(name).await?.open_boxed().await,
            _ => self.open().await,
        }
    }

    /// Joined contents hold contents: a future that holds itself needs a box.
    fn open_boxed(&self) -> BoxFuture<'_, Result<Reader, ContentError>> {
        Box::pin(self.open())
    }
}

async fn open_all(parts: &[Content]) -> Result<Vec<Reader>, ContentError> {
    let mut readers = Vec::with_capacity(parts.len());
    for part in parts {
        readers.push(part.open_boxed().await?);
    }
    Ok(readers)
}

/// With zeroes behind each part, up to where the next one may begin. Waits for a download whose server did not tell its length.
async fn aligned(parts: Vec<Reader>) -> Result<Vec<Reader>, ContentError> {
    const ZEROES: &[u8] = &[0; 3];
    let mut all = Vec::with_capacity(2 * parts.len());
    for part in parts {
        let missing = part.complete_size_boxed().await?.wrapping_neg() as usize % 4;
        all.push(part);
        all.push(Reader(Arc::new(Source::Inline(Bytes::from_static(&ZEROES[..missing])))));
    }
    // Nothing follows the last one.
    all.pop();
    Ok(all)
}

impl Reader {
    /// Of bytes that `bytes` brings.
    pub(crate) fn arriving(bytes: Arc<dyn Arriving>) -> Reader {
        Reader(Arc::new(Source::Arriving(bytes)))
    }

    /// The number of bytes, `None` while a download runs whose server did not tell its length.
    pub fn size(&self) -> Option<u64> {
        match &*self.0 {
            Source::Inline(bytes) => Some(bytes.len() as u64),
            Source::File(file) => Some(file.size()),
            Source::Url(body) => body.size(),
            Source::Joined(parts) => parts.iter().map(Reader::size).sum(),
            Source::Disk(view) => Some(view.size()),
            Source::Arriving(bytes) => Some(bytes.size()),
        }
    }

    /// The number of bytes; waits until it is known, at the latest until a download ends.
    pub async fn complete_size(&self) -> Result<u64, ContentError> {
        match &*self.0 {
            Source::Inline(bytes) => Ok(bytes.len() as u64),
            Source::File(file) => Ok(file.size()),
            Source::Url(body) => body.complete_size().await,
            Source::Joined(parts) => {
                let mut total = 0;
                for part in parts {
                    total += part.complete_size_boxed().await?;
                }
                Ok(total)
            }
            Source::Disk(view) => Ok(view.size()),
            Source::Arriving(bytes) => Ok(bytes.size()),
        }
    }

    /// `length` bytes from `offset`: fewer only at the end, none behind it. Waits for bytes that are still being downloaded.
    pub async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, ContentError> {
        match &*self.0 {
            Source::Inline(bytes) => Ok(slice(bytes, offset, length)),
            Source::File(file) => file.read_at(offset, length).await,
            Source::Url(body) => body.read_at(offset, length).await,
            Source::Joined(parts) => read_joined(parts, offset, length).await,
            Source::Disk(view) => read_disk(view, offset, length).await,
            Source::Arriving(bytes) => bytes.read_at(offset, length).await,
        }
    }

    /// What is known about the bytes from `offset` on without reading them, and up to where; at most to `end`. May wait for a disk.
    fn fill(&self, offset: u64, end: u64) -> io::Result<(disk::Fill, u64)> {
        match &*self.0 {
            Source::File(file) => file::fill(&file.handle(), offset, end),
            Source::Url(body) => body.fill(offset, end),
            Source::Inline(_) | Source::Joined(_) | Source::Disk(_) | Source::Arriving(_) => {
                Ok((disk::Fill::Data, end))
            }
        }
    }

    fn complete_size_boxed(&self) -> BoxFuture<'_, Result<u64, ContentError>> {
        Box::pin(self.complete_size())
    }

    fn read_at_boxed(&self, offset: u64, length: usize) -> BoxFuture<'_, Result<Bytes, ContentError>> {
        Box::pin(self.read_at(offset, length))
    }

    /// What tells these bytes from any others: the sha256 of a download that is complete, otherwise the validator.
    fn fingerprint(&self) -> Option<String> {
        match &*self.0 {
            Source::Url(body) => body.sha256().or_else(|| body.etag()),
            _ => self.etag(),
        }
    }

    /// A strong validator of these bytes, quoted as in the `ETag` header; `None` where none is known.
    pub fn etag(&self) -> Option<String> {
        match &*self.0 {
            Source::Inline(bytes) => inline_etag(bytes),
            Source::File(file) => Some(file.etag()),
            Source::Url(body) => body.etag(),
            Source::Joined(parts) => joined_etag(parts),
            Source::Disk(_) | Source::Arriving(_) => None,
        }
    }
}

fn slice(bytes: &Bytes, offset: u64, length: usize) -> Bytes {
    let start = usize::try_from(offset).map_or(bytes.len(), |offset| offset.min(bytes.len()));
    bytes.slice(start..bytes.len().min(start.saturating_add(length)))
}

/// Reads across the seams, so that a caller sees one file.
async fn read_joined(parts: &[Reader], offset: u64, length: usize) -> Result<Bytes, ContentError> {
    let mut gathered: Option<BytesMut> = None;
    let mut first = Bytes::new();
    let (mut position, mut missing) = (offset, length);
    for part in parts {
        if missing == 0 {
            break;
        }
        let size = part.complete_size_boxed().await?;
        if position >= size {
            position -= size;
            continue;
        }
        let bytes = part.read_at_boxed(position, missing).await?;
        missing -= bytes.len();
        position = 0;
        match &mut gathered {
            Some(all) => all.extend_from_slice(&bytes),
            None if first.is_empty() => first = bytes,
            None => gathered = Some([&first[..], &bytes[..]].concat().into_iter().collect()),
        }
    }
    Ok(gathered.map_or(first, BytesMut::freeze))
}

/// A disk as a file. Boxed, because a disk's own base is a content again.
fn read_disk(view: &disk::View, offset: u64, length: usize) -> BoxFuture<'_, Result<Bytes, ContentError>> {
    Box::pin(async move {
        let pieces = view.read(offset, length as u64).await.map_err(|error| match error {
            disk::DiskError::Base(error) => error,
            other => ContentError::File { path: PathBuf::from("disk"), source: Arc::new(io::Error::other(other)) },
        })?;
        let mut bytes = BytesMut::new();
        for piece in pieces {
            match piece {
                disk::Piece::Data(data) => bytes.extend_from_slice(&data),
                disk::Piece::Zeros(length) => bytes.resize(bytes.len() + length as usize, 0),
            }
        }
        Ok(bytes.freeze())
    })
}

/// 1 MiB: hashing more at each open would cost milliseconds; what is larger is a file or a download in practice.
const INLINE_ETAG_BYTES_MAX: usize = 1024 * 1024;

fn inline_etag(bytes: &Bytes) -> Option<String> {
    (bytes.len() <= INLINE_ETAG_BYTES_MAX).then(|| quoted_hash("i", bytes))
}

fn joined_etag(parts: &[Reader]) -> Option<String> {
    let tags: Option<Vec<String>> = parts.iter().map(Reader::etag).collect();
    tags.map(|tags| quoted_hash("j", tags.concat().as_bytes()))
}

/// 64 bits that only have to differ between versions of one name; nobody gains by making two collide but the job's own author.
fn quoted_hash(kind: &str, bytes: &[u8]) -> String {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(bytes);
    format!("\"{kind}{:x}-{:016x}\"", bytes.len(), hasher.finish())
}

/// The media type for the name of an artifact. Firmware looks at it in one place: EDK2's HTTP boot tells an EFI program, an ISO
/// image and a raw disk image apart by it when the name's ending does not (UEFI 2.10, 24.7.3.1).
pub fn content_type(name: &str) -> &'static str {
    let ending = Path::new(name).extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    match ending.to_ascii_lowercase().as_str() {
        "efi" => "application/efi",
        "iso" => "application/vnd.efi-iso",
        "img" => "application/vnd.efi-img",
        "ipxe" | "txt" | "cfg" | "conf" | "log" => "text/plain; charset=utf-8",
        "json" => "application/json",
        "yml" | "yaml" => "application/yaml",
        "html" => "text/html; charset=utf-8",
        "pem" => "application/x-pem-file",
        _ => "application/octet-stream",
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::Inline(bytes) => write!(f, "{} bytes inline", bytes.len()),
            Content::File(path) => write!(f, "{}", path.display()),
            Content::Url(cached) => f.write_str(cached.url()),
            Content::Joined(parts) | Content::Archives(parts) => write!(f, "{} parts joined", parts.len()),
            Content::Edited(edited) => write!(f, "{edited}"),
            Content::ByName(_) => f.write_str("a content chosen by its name"),
            Content::Disk(disk) => write!(f, "{disk:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inline(text: &'static str) -> Content {
        Content::Inline(Bytes::from_static(text.as_bytes()))
    }

    #[tokio::test]
    async fn joined_parts_read_as_one_file_across_their_seams() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("middle");
        std::fs::write(&path, "cdef").unwrap();
        let parts = [inline("ab"), Content::File(path), inline(""), inline("gh")];
        let reader = Content::Joined(parts.into()).open().await.unwrap();
        assert_eq!(reader.size(), Some(8));
        assert_eq!(reader.complete_size().await.unwrap(), 8);
        assert_eq!(reader.read_at(0, 100).await.unwrap(), "abcdefgh");
        assert_eq!(reader.read_at(1, 6).await.unwrap(), "bcdefg");
        assert_eq!(reader.read_at(2, 2).await.unwrap(), "cd");
        assert_eq!(reader.read_at(8, 1).await.unwrap(), "");
        assert_eq!(reader.read_at(u64::MAX, 1).await.unwrap(), "");
    }

    #[tokio::test]
    async fn archives_begin_on_boundaries_of_four_bytes_and_end_where_the_last_one_does() {
        let parts = [inline("abcde"), inline("fghi"), inline(""), inline("jkl"), inline("m")];
        let reader = Content::Archives(parts.into()).open().await.unwrap();
        assert_eq!(reader.read_at(0, 100).await.unwrap(), "abcde\0\0\0fghijkl\0m");
        assert_eq!((reader.size(), reader.read_at(4, 5).await.unwrap().as_ref()), (Some(17), &b"e\0\0\0f"[..]));
        assert_eq!(Content::Archives([inline("abc")].into()).open().await.unwrap().size(), Some(3));
    }

    #[tokio::test]
    async fn the_etag_of_a_joined_content_changes_with_any_part() {
        let tag =
            async |last| Content::Joined([inline("ab"), inline(last)].into()).open().await.unwrap().etag().unwrap();
        assert_eq!(tag("c").await, tag("c").await);
        assert_ne!(tag("c").await, tag("d").await);
    }

    #[tokio::test]
    async fn a_missing_file_and_a_directory_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let missing = Content::File(directory.path().join("none")).open().await.unwrap_err();
        assert!(missing.to_string().ends_with("none: No such file or directory (os error 2)"), "{missing}");
        let not_a_file = Content::File(directory.path().into()).open().await.unwrap_err();
        assert!(not_a_file.to_string().ends_with("is not a regular file; name a file"), "{not_a_file}");
    }

    #[test]
    fn the_media_type_follows_the_ending() {
        assert_eq!(content_type("/_/boot/snponly.efi"), "application/efi");
        assert_eq!(content_type("/disk.IMG"), "application/vnd.efi-img");
        assert_eq!(content_type("/_/job/kernel"), "application/octet-stream");
        assert_eq!(content_type("/boot.ipxe"), "text/plain; charset=utf-8");
    }
}
