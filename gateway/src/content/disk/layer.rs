//! What was written to a disk: a sparse file, and a bit per block that says whether it is ours.
//!
//! ```text
//!  write, zero, trim  hold `edges` shared      pwrite or fallocate, then the bits: who sees a bit sees its bytes
//!  adopt              holds `edges` alone      a block that is not ours yet takes the base's bytes, and its bit
//! ```
//! Without `edges` a block written whole while another writer adopts it could get the base's bytes back. Everything here may wait for
//! a disk: callers are on the blocking pool.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::fstatvfs;

use super::BLOCK_BYTES;
use super::map::{Book, Map};

/// When a change counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// When readers see it.
    Memory,
    /// When it would survive a power cut of the farm.
    Disk,
}

/// Whether zeros may be a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hole {
    /// They may: they take no space.
    Allowed,
    /// They may not: a later write there does not find the farm's disk full.
    Refused,
}

/// Whether zeros may take as long as writing them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speed {
    /// They may.
    Any,
    /// Better an error at once.
    FastOnly,
}

/// Whose a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Base,
    Layer,
}

/// The layer of one disk between two resets.
pub(super) struct Layer {
    file: Arc<File>,
    map: Map,
    /// Where the map is written, when the layer is kept and its map cannot be told from the file itself.
    book: Option<Book>,
    edges: RwLock<()>,
    room: Room,
}

/// What is left on the farm's own disk when DUTs have filled it: jobs go on writing their logs, and leases their rows.
const ROOM_BYTES_MIN: u64 = 256 * 1024 * 1024;
/// Bytes between two looks at how much is left: a hundred layers that look at once overshoot by a fraction of what is left.
const LOOK_EVERY_BYTES: i64 = 1024 * 1024;

/// How much room must stay, and how much may be written before it is looked at again.
struct Room {
    bytes_min: u64,
    until_look: AtomicI64,
}

impl Layer {
    /// An empty layer for a disk of `size` bytes, in a file without a name: it goes with its last user, also when that one crashes.
    pub(super) fn make(directory: &Path, size: u64) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let file = tempfile::tempfile_in(directory)?;
        file.set_len(size)?;
        Ok(Layer::of(file, Map::new(size.div_ceil(BLOCK_BYTES)), None))
    }

    /// A layer in `file`, of whose blocks `map` tells.
    pub(super) fn of(file: File, map: Map, book: Option<Book>) -> Self {
        let room = Room { bytes_min: ROOM_BYTES_MIN, until_look: AtomicI64::new(0) };
        Layer { file: Arc::new(file), map, book, edges: RwLock::new(()), room }
    }

    /// The sparse file.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Bytes that the file takes.
    pub(super) fn allocated_bytes(&self) -> u64 {
        // st_blocks counts 512 bytes whatever the file system's own blocks are (inode(7)).
        self.file.metadata().map_or(0, |metadata| metadata.blocks() * 512)
    }

    /// Whose the byte at `at` is, and up to where the next ones are as well; at most to `end`.
    pub(super) fn run(&self, at: u64, end: u64) -> (Owner, u64) {
        let (owner, until) = self.map.run(at / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        (owner, end.min(until * BLOCK_BYTES))
    }

    /// Takes `block` over with the base's `content`, unless it is ours meanwhile.
    pub(super) fn adopt(&self, block: u64, content: &[u8]) -> io::Result<()> {
        let _alone = self.edges.write().unwrap_or_else(PoisonError::into_inner);
        if self.map.run(block, block + 1).0 == Owner::Base {
            self.room.take(&self.file, content.len() as u64)?;
            self.file.write_all_at(content, block * BLOCK_BYTES)?;
            self.map.set(block, block + 1);
        }
        Ok(())
    }

    pub(super) fn write(&self, offset: u64, data: &[u8], durability: Durability) -> io::Result<()> {
        {
            let _shared = self.edges.read().unwrap_or_else(PoisonError::into_inner);
            self.room.take(&self.file, data.len() as u64)?;
            self.file.write_all_at(data, offset)?;
            self.own(offset, data.len() as u64);
        }
        self.settle(durability)
    }

    pub(super) fn zero(
        &self,
        offset: u64,
        length: u64,
        hole: Hole,
        speed: Speed,
        durability: Durability,
    ) -> io::Result<()> {
        {
            let _shared = self.edges.read().unwrap_or_else(PoisonError::into_inner);
            match self.punch(offset, length) {
                Ok(()) if hole == Hole::Refused => self.reserve(offset, length, speed)?,
                Ok(()) => {}
                Err(Errno::EOPNOTSUPP) if speed == Speed::Any => self.write_zeros(offset, length)?,
                Err(errno) => return Err(errno.into()),
            }
            self.own(offset, length);
        }
        self.settle(durability)
    }

    pub(super) fn trim(&self, offset: u64, length: u64, durability: Durability) -> io::Result<()> {
        // Whole blocks: the rest of a block that is trimmed in part stays.
        let start = offset.next_multiple_of(BLOCK_BYTES);
        let end = (offset + length) / BLOCK_BYTES * BLOCK_BYTES;
        if start < end {
            let _shared = self.edges.read().unwrap_or_else(PoisonError::into_inner);
            match self.punch(start, end - start) {
                // Trimming is a hint: a file system without holes keeps the bytes.
                Ok(()) | Err(Errno::EOPNOTSUPP) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.settle(durability)
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        match &self.book {
            Some(book) => book.flush(&self.map, || self.file.sync_data()),
            None => self.file.sync_data(),
        }
    }

    fn settle(&self, durability: Durability) -> io::Result<()> {
        match durability {
            Durability::Memory => Ok(()),
            Durability::Disk => self.flush(),
        }
    }

    fn own(&self, offset: u64, length: u64) {
        self.map.set(offset / BLOCK_BYTES, (offset + length).div_ceil(BLOCK_BYTES));
    }

    fn punch(&self, offset: u64, length: u64) -> nix::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        fallocate(&*self.file, flags, offset.cast_signed(), length.cast_signed())
    }

    /// Takes space for a hole, which goes on reading as zeros.
    fn reserve(&self, offset: u64, length: u64, speed: Speed) -> io::Result<()> {
        self.room.take(&self.file, length)?;
        match fallocate(&*self.file, FallocateFlags::empty(), offset.cast_signed(), length.cast_signed()) {
            Ok(()) => Ok(()),
            Err(Errno::EOPNOTSUPP) if speed == Speed::Any => self.write_zeros(offset, length),
            Err(errno) => Err(errno.into()),
        }
    }

    fn write_zeros(&self, offset: u64, length: u64) -> io::Result<()> {
        // 256 KiB: a system call is nothing beside so many bytes.
        let zeros = vec![0; length.min(256 * 1024) as usize];
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let part = (end - at).min(zeros.len() as u64);
            self.file.write_all_at(&zeros[..part as usize], at)?;
            at += part;
        }
        Ok(())
    }
}

impl Room {
    /// `bytes` are about to be written; an error when the farm's disk has no room for them beside what has to stay.
    fn take(&self, file: &File, bytes: u64) -> io::Result<()> {
        let taken = i64::try_from(bytes).unwrap_or(i64::MAX);
        if self.until_look.fetch_sub(taken, Ordering::AcqRel) >= taken {
            return Ok(());
        }
        let space = fstatvfs(file)?;
        // The type differs between platforms.
        #[allow(clippy::unnecessary_cast)]
        let left = (space.blocks_available() as u64).saturating_mul(space.fragment_size() as u64);
        if left < self.bytes_min.saturating_add(bytes) {
            self.until_look.store(0, Ordering::Release);
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.until_look.store(LOOK_EVERY_BYTES, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_leaves_the_farm_the_room_that_it_needs() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let mut layer = Layer::of(file, Map::new(256), None);
        layer.write(0, &[1; 100], Durability::Memory).unwrap();
        layer.room = Room { bytes_min: u64::MAX / 2, until_look: AtomicI64::new(50) };
        layer.write(0, &[2; 50], Durability::Memory).unwrap();
        let full = layer.write(4096, &[3; 1], Durability::Memory).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        let full = layer.adopt(1, &[3; 4096]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert_eq!(layer.run(0, 8192), (Owner::Layer, 4096));
        layer.zero(4096, 4096, Hole::Allowed, Speed::Any, Durability::Memory).unwrap();
        let full = layer.zero(8192, 4096, Hole::Refused, Speed::Any, Durability::Memory).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    }
}
