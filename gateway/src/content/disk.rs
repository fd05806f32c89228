//! A disk that DUTs write to: an image that nobody changes, and a copy-on-write layer of its own above it.
//!
//! ```text
//!   read ──► Layer (sparse file, one bit per 4 KiB block) ── bit set ──► its bytes
//!                                                          └─ not ────► Ground: an image, raw or qcow2, that may still arrive | zeros
//!   write ─► adopt: the blocks at both ends that are written in part take the base's bytes first, once ─► pwrite ─► bits
//!   zero, trim ─► punch a hole ─► bits: what is ours and a hole reads as zeros
//!   reset ─► a new empty layer; who is attached keeps the old one, and is told by `View::is_stale`
//!
//!   Disk ─┬─► Body: base and layer      of a shared disk, several Disks have one Body, each with its own mode and its own places
//!   Disk ─┘
//! ```
//! A bit per block rather than SEEK_DATA of the layer's file: a block of zeros over an image that has bytes there is a hole, too, and
//! has to be told from a block never written. 4 KiB: what page caches and file systems write at once; the bits of 20 GiB are 640 KiB,
//! and only those of regions written to exist. So a disk of any size is made in the time of opening a file, and takes no space.

mod ground;
mod kept;
mod layer;
mod map;
mod qcow2;
mod view;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use self::ground::Ground;
use self::layer::Layer;
use super::file::blocking;
use super::{Content, ContentError};

pub use self::kept::Beginning;
pub use self::layer::{Durability, Hole, Speed};
pub use self::qcow2::Unreadable;
pub use self::view::{Attachment, Extent, Fill, Piece, View};

/// How much of a disk is copied when some of it is written.
const BLOCK_BYTES: u64 = 4096;

/// 16 TiB: the largest file of ext4 with blocks of 4 KiB, which a layer may have to be. Its bits would be 512 MiB.
pub const SIZE_BYTES_MAX: u64 = 16 << 40;

/// What a disk holds before anyone writes to it.
#[derive(Clone, Debug)]
pub enum Base {
    /// Nothing but zeros.
    Zeros {
        /// The disk's size.
        size_bytes: u64,
    },
    /// An image: qcow2 if it begins like one, otherwise raw and as large as the disk.
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
    /// Where the layer's file is made; it has no name there, and is gone with the disk. Of a disk that is kept, the folder that is its
    /// own.
    pub directory: PathBuf,
    /// How many may be attached at once.
    pub attachments_max: u32,
}

/// A disk. Cheap to clone: clones are the same disk.
#[derive(Clone)]
pub struct Disk(Arc<Inner>);

struct Inner {
    body: Arc<Body>,
    mode: Mode,
    attachments: AtomicU32,
    attachments_max: u32,
}

/// The bytes of a disk.
struct Body {
    size: u64,
    ground: Ground,
    directory: PathBuf,
    layer: RwLock<Option<Arc<Layer>>>,
}

/// Why a disk cannot be made, read or written.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The base's bytes do not come.
    #[error(transparent)]
    Base(#[from] ContentError),
    /// The base is a qcow2 image that is not read.
    #[error("cannot read the qcow2 image {image}: {reason}")]
    Qcow2 {
        /// Which.
        image: String,
        /// Why not.
        reason: Unreadable,
    },
    /// More than a disk may have.
    #[error("a disk of {size} bytes is too large; {SIZE_BYTES_MAX} bytes are the most")]
    TooLarge {
        /// What was asked for.
        size: u64,
    },
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
        let (ground, size) = Ground::open(&config.base).await?;
        let layer = match config.mode {
            Mode::ReadOnly => None,
            Mode::CopyOnWrite => {
                let directory = config.directory.clone();
                Some(blocking(move || Layer::make(&directory, size).map_err(not_made(&directory))).await?)
            }
        };
        Ok(Disk::of(config, ground, size, layer))
    }

    /// Makes a disk whose layer is kept in its directory, or goes on with the one that is kept there. Waits until all of its base is
    /// there: over other bytes a layer is worth nothing.
    pub async fn keep(config: Config) -> Result<(Self, Beginning), DiskError> {
        let fingerprint = Ground::fingerprint(&config.base).await?;
        let (ground, size) = Ground::open(&config.base).await?;
        let (directory, is_zeros) = (config.directory.clone(), matches!(ground, Ground::Zeros));
        let opened =
            blocking(move || kept::open(&directory, size, &fingerprint, is_zeros).map_err(not_made(&directory)));
        let (layer, beginning) = opened.await?;
        Ok((Disk::of(config, ground, size, Some(layer)), beginning))
    }

    fn of(config: Config, ground: Ground, size: u64, layer: Option<Layer>) -> Disk {
        let layer = RwLock::new(layer.map(Arc::new));
        let body = Arc::new(Body { size, ground, directory: config.directory, layer });
        Disk::over(body, config.mode, config.attachments_max)
    }

    fn over(body: Arc<Body>, mode: Mode, attachments_max: u32) -> Disk {
        Disk(Arc::new(Inner { body, mode, attachments: AtomicU32::new(0), attachments_max }))
    }

    /// Another disk with the same bytes: what is written to one is read from the other. Only a disk that has a layer can be written to.
    pub fn another(&self, mode: Mode, attachments_max: u32) -> Disk {
        let mode = if self.0.body.layer().is_some() { mode } else { Mode::ReadOnly };
        Disk::over(Arc::clone(&self.0.body), mode, attachments_max)
    }

    /// Whether the two are one disk.
    pub fn is(&self, other: &Disk) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.0.body.size
    }

    /// Whether it can be written to.
    pub fn mode(&self) -> Mode {
        self.0.mode
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
        View { disk: self.clone(), layer: self.0.body.layer() }
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
        let body = &self.0.body;
        let made = Layer::make(&body.directory, body.size).map_err(not_made(&body.directory))?;
        *body.layer.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(made));
        Ok(())
    }

    /// Bytes that the layer takes on the farm's own disk.
    pub fn layer_bytes(&self) -> u64 {
        self.view().layer.map_or(0, |layer| layer.allocated_bytes())
    }
}

impl Body {
    fn layer(&self) -> Option<Arc<Layer>> {
        self.layer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn not_made(directory: &std::path::Path) -> impl FnOnce(io::Error) -> DiskError {
    let directory = directory.to_owned();
    |source| DiskError::Make { directory, source }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk of {} bytes, {:?}, {} attached", self.size(), self.mode(), self.attachments())
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
