//! A disk that DUTs write to: an image that nobody changes, and a copy-on-write layer of its own above it.
//!
//! ```text
//!   read ──► Layer (sparse file, one bit per 4 KiB block) ── bit set ──► its bytes
//!                                                          └─ not ────► Base: an image (file, download that may still arrive) | zeros
//!   write ─► adopt: the blocks at both ends that are written in part take the base's bytes first, once ─► pwrite ─► bits
//!   zero, trim ─► punch a hole ─► bits: what is ours and a hole reads as zeros
//!   reset ─► a new empty layer; who is attached keeps the old one, and is told by `View::is_stale`
//! ```
//! A bit per block rather than SEEK_DATA of the layer's file: a block of zeros over an image that has bytes there is a hole, too, and
//! has to be told from a block never written. 4 KiB: what page caches and file systems write at once; the bits of 20 GiB are 640 KiB,
//! and only those of regions written to exist. So a disk of any size is made in the time of opening a file, and takes no space.

mod layer;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;

use self::layer::{Layer, Owner};
use super::file::{LARGE_READ_BYTES, blocking, read_exactly};
use super::{Content, ContentError, Reader};

pub use self::layer::{Durability, Hole, Speed};

/// How much of a disk is copied when some of it is written.
const BLOCK_BYTES: u64 = 4096;

/// Steps of one answer about extents: a seek each, some milliseconds in all. Who asks goes on behind the last one.
const EXTENT_STEPS_MAX: usize = 4096;

/// What a disk holds before anyone writes to it.
#[derive(Clone, Debug)]
pub enum Base {
    /// Nothing but zeros.
    Zeros {
        /// The disk's size.
        size_bytes: u64,
    },
    /// A raw image, as large as the disk.
    Image(Content),
}

/// Whether a disk can be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Writes are refused.
    ReadOnly,
    /// Writes go into the disk's own layer, never into its base.
    CopyOnWrite,
}

/// What to make a disk of.
#[derive(Clone, Debug)]
pub struct Config {
    /// What it begins with.
    pub base: Base,
    /// Whether it can be written to.
    pub mode: Mode,
    /// Where the layer's file is made; it has no name there, and is gone with the disk.
    pub directory: PathBuf,
    /// How many may be attached at once.
    pub attachments_max: u32,
}

/// A disk. Cheap to clone: clones are the same disk.
#[derive(Clone)]
pub struct Disk(Arc<Inner>);

struct Inner {
    size: u64,
    base: Ground,
    directory: PathBuf,
    layer: RwLock<Option<Arc<Layer>>>,
    attachments: AtomicU32,
    attachments_max: u32,
}

/// The base, opened.
#[derive(Clone)]
enum Ground {
    Zeros,
    Image(Reader),
}

/// The disk between two resets. Cheap to clone.
#[derive(Clone)]
pub struct View {
    disk: Disk,
    layer: Option<Arc<Layer>>,
}

/// A place among those who are attached, freed when dropped.
#[derive(Debug)]
pub struct Attachment {
    view: View,
}

/// Bytes of a disk, in the order of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// These.
    Data(Bytes),
    /// So many zeros.
    Zeros(u64),
}

/// What is known about a range without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// How long the range is.
    pub length: u64,
    /// What it holds.
    pub fill: Fill,
}

/// What a range holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Anything.
    Data,
    /// A hole, that reads as zeros.
    Zeros,
}

/// Why a disk cannot be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The base's bytes do not come.
    #[error(transparent)]
    Base(#[from] ContentError),
    /// The base is an image of another format.
    #[error("{0} is a qcow2 image, and only raw images are served; convert it with `qemu-img convert -O raw`")]
    Qcow2(String),
    /// No file for the layer.
    #[error("cannot make a copy-on-write file in {}: {source}; check its owner and the free space", directory.display())]
    Make {
        /// Where.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The layer's file fails.
    #[error("the disk's copy-on-write file: {0}")]
    Layer(#[from] io::Error),
    /// A write to a disk that has no layer.
    #[error("the disk is read-only")]
    ReadOnly,
}

/// As many are attached as the disk allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    /// How many that is.
    pub attachments_max: u32,
}

impl Disk {
    /// Makes a disk. Waits until the size of its base is known, not until the base is downloaded.
    pub async fn make(config: Config) -> Result<Self, DiskError> {
        let (base, size) = match config.base {
            Base::Zeros { size_bytes } => (Ground::Zeros, size_bytes),
            Base::Image(content) => {
                let reader = content.open().await?;
                refuse_qcow2(&content, &reader).await?;
                let size = reader.complete_size().await?;
                (Ground::Image(reader), size)
            }
        };
        let layer = match config.mode {
            Mode::ReadOnly => None,
            Mode::CopyOnWrite => Some(Arc::new(make_layer(config.directory.clone(), size).await?)),
        };
        Ok(Disk(Arc::new(Inner {
            size,
            base,
            directory: config.directory,
            layer: RwLock::new(layer),
            attachments: AtomicU32::new(0),
            attachments_max: config.attachments_max,
        })))
    }

    /// Whether the two are one disk.
    pub fn is(&self, other: &Disk) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// Whether it can be written to.
    pub fn mode(&self) -> Mode {
        if self.view().layer.is_some() { Mode::CopyOnWrite } else { Mode::ReadOnly }
    }

    /// How many are attached.
    pub fn attachments(&self) -> u32 {
        self.0.attachments.load(Ordering::Acquire)
    }

    /// Takes a place among those who are attached.
    pub fn attach(&self) -> Result<Attachment, Busy> {
        let attachments_max = self.0.attachments_max;
        let more = |count: u32| (count < attachments_max).then_some(count + 1);
        let taken = self.0.attachments.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        taken.map(|_| Attachment { view: self.view() }).map_err(|_| Busy { attachments_max })
    }

    /// The disk as it is now, for a look without a place.
    pub fn view(&self) -> View {
        let layer = self.0.layer.read().unwrap_or_else(PoisonError::into_inner).clone();
        View { disk: self.clone(), layer }
    }

    /// Back to the base. Whoever is still attached goes on with what was, which is gone when they are.
    pub async fn reset(&self) -> Result<(), DiskError> {
        let disk = self.clone();
        blocking(move || disk.renew()).await
    }

    /// The same, at once: making an empty file is all that it waits for.
    pub fn renew(&self) -> Result<(), DiskError> {
        if self.mode() == Mode::ReadOnly {
            return Ok(());
        }
        let directory = self.0.directory.clone();
        let made = Layer::make(&directory, self.0.size).map_err(|source| DiskError::Make { directory, source });
        *self.0.layer.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(made?));
        Ok(())
    }

    /// Bytes that the layer takes on the farm's own disk.
    pub fn layer_bytes(&self) -> u64 {
        self.view().layer.map_or(0, |layer| layer.allocated_bytes())
    }
}

async fn make_layer(directory: PathBuf, size: u64) -> Result<Layer, DiskError> {
    blocking(move || Layer::make(&directory, size).map_err(|source| DiskError::Make { directory, source })).await
}

/// The first bytes of a qcow2 image (QEMU, docs/interop/qcow2.txt). Served as it is, a DUT would find no partition and no reason.
async fn refuse_qcow2(content: &Content, reader: &Reader) -> Result<(), DiskError> {
    const MAGIC: &[u8] = b"QFI\xfb";
    match reader.read_at(0, MAGIC.len()).await? {
        first if first == MAGIC => Err(DiskError::Qcow2(content.to_string())),
        _ => Ok(()),
    }
}

impl View {
    /// Whether the disk was reset since.
    pub fn is_stale(&self) -> bool {
        let now = self.disk.0.layer.read().unwrap_or_else(PoisonError::into_inner);
        match (&*now, &self.layer) {
            (Some(now), Some(ours)) => !Arc::ptr_eq(now, ours),
            _ => false,
        }
    }

    /// The disk's size in bytes.
    pub fn size(&self) -> u64 {
        self.disk.size()
    }

    /// `length` bytes from `offset`, fewer only at the end. Waits for bytes that are still being downloaded.
    pub async fn read(&self, offset: u64, length: u64) -> Result<Vec<Piece>, DiskError> {
        let end = self.size().min(offset.saturating_add(length));
        let (mut pieces, mut at) = (Vec::new(), offset);
        while at < end {
            let (owner, until) = self.run(at, end);
            let part_end = until.min(at + LARGE_READ_BYTES as u64);
            let part_bytes = (part_end - at) as usize;
            let piece = match (owner, &self.layer, &self.disk.0.base) {
                (Owner::Layer, Some(layer), _) => Piece::Data(read_exactly(layer.file(), at, part_bytes).await?),
                (_, _, Ground::Zeros) => Piece::Zeros(until - at),
                (_, _, Ground::Image(reader)) => Piece::Data(read_image(reader, at, part_bytes).await?),
            };
            at += piece.length();
            pieces.push(piece);
        }
        Ok(pieces)
    }

    /// Writes `data` at `offset`; it has to end inside the disk.
    pub async fn write(&self, offset: u64, data: Bytes, durability: Durability) -> Result<(), DiskError> {
        let layer = self.writable()?;
        self.adopt_ends(&layer, offset, data.len() as u64).await?;
        blocking(move || layer.write(offset, &data, durability)).await?;
        Ok(())
    }

    /// Makes a range read as zeros.
    pub async fn zero(
        &self,
        offset: u64,
        length: u64,
        hole: Hole,
        speed: Speed,
        durability: Durability,
    ) -> Result<(), DiskError> {
        let layer = self.writable()?;
        self.adopt_ends(&layer, offset, length).await?;
        blocking(move || layer.zero(offset, length, hole, speed, durability)).await?;
        Ok(())
    }

    /// Gives back the space of a range: what was written there reads as zeros, the base shows through where nothing was.
    pub async fn trim(&self, offset: u64, length: u64, durability: Durability) -> Result<(), DiskError> {
        let layer = self.writable()?;
        blocking(move || layer.trim(offset, length, durability)).await?;
        Ok(())
    }

    /// Returns when everything written before is on the farm's own disk.
    pub async fn flush(&self) -> Result<(), DiskError> {
        match self.layer.clone() {
            Some(layer) => Ok(blocking(move || layer.flush()).await?),
            None => Ok(()),
        }
    }

    /// What is known about a range, from its start; it may end before the range does, never at once.
    pub async fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>, DiskError> {
        let view = self.clone();
        Ok(blocking(move || view.extents_now(offset, length)).await?)
    }

    fn extents_now(&self, offset: u64, length: u64) -> io::Result<Vec<Extent>> {
        let end = self.size().min(offset.saturating_add(length));
        let (mut extents, mut at) = (Vec::<Extent>::new(), offset);
        for _ in 0..EXTENT_STEPS_MAX {
            if at >= end {
                break;
            }
            let (owner, until) = self.run(at, end);
            let (fill, until) = match (owner, &self.layer, &self.disk.0.base) {
                (Owner::Layer, Some(layer), _) => super::file::fill(layer.file(), at, until)?,
                (_, _, Ground::Zeros) => (Fill::Zeros, until),
                (_, _, Ground::Image(reader)) => reader.fill(at, until)?,
            };
            match extents.last_mut() {
                Some(last) if last.fill == fill => last.length += until - at,
                _ => extents.push(Extent { length: until - at, fill }),
            }
            at = until;
        }
        Ok(extents)
    }

    fn writable(&self) -> Result<Arc<Layer>, DiskError> {
        self.layer.clone().ok_or(DiskError::ReadOnly)
    }

    /// Whose the byte at `at` is, and up to where the next ones are as well; at most to `end`.
    fn run(&self, at: u64, end: u64) -> (Owner, u64) {
        self.layer.as_ref().map_or((Owner::Base, end), |layer| layer.run(at, end))
    }

    /// Copies the base's bytes of those blocks that a change covers in part. Over zeros there is nothing to copy: a hole reads the same.
    async fn adopt_ends(&self, layer: &Arc<Layer>, offset: u64, length: u64) -> Result<(), DiskError> {
        let Ground::Image(reader) = &self.disk.0.base else { return Ok(()) };
        let end = offset + length;
        let mut parts = Vec::with_capacity(2);
        if !offset.is_multiple_of(BLOCK_BYTES) {
            parts.push(offset / BLOCK_BYTES);
        }
        // The last block of a disk may be short, and is whole all the same.
        if !end.is_multiple_of(BLOCK_BYTES) && end < self.size() && parts.first() != Some(&(end / BLOCK_BYTES)) {
            parts.push(end / BLOCK_BYTES);
        }
        for block in parts {
            let start = block * BLOCK_BYTES;
            if layer.run(start, start + 1).0 == Owner::Layer {
                continue;
            }
            let bytes = BLOCK_BYTES.min(self.size() - start) as usize;
            let (layer, content) = (Arc::clone(layer), read_image(reader, start, bytes).await?);
            blocking(move || layer.adopt(block, &content)).await?;
        }
        Ok(())
    }
}

/// A base's size was told before its bytes came; what is missing at the end in spite of that is an error, not zeros.
async fn read_image(reader: &Reader, offset: u64, length: usize) -> Result<Bytes, DiskError> {
    let bytes = reader.read_at(offset, length).await?;
    if bytes.len() < length {
        let short = format!("the image ends at byte {}, before its size", offset + bytes.len() as u64);
        return Err(DiskError::Layer(io::Error::new(io::ErrorKind::UnexpectedEof, short)));
    }
    Ok(bytes)
}

impl Piece {
    /// How many bytes.
    pub fn length(&self) -> u64 {
        match self {
            Piece::Data(bytes) => bytes.len() as u64,
            Piece::Zeros(length) => *length,
        }
    }
}

impl Attachment {
    /// The disk as it was when it was attached.
    pub fn view(&self) -> &View {
        &self.view
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.view.disk.0.attachments.fetch_sub(1, Ordering::AcqRel);
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk of {} bytes, {:?}, {} attached", self.size(), self.mode(), self.attachments())
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "view of {:?}", self.disk)
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
