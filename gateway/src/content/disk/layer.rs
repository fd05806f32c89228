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
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::BLOCK_BYTES;

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
    edges: RwLock<()>,
}

impl Layer {
    /// An empty layer for a disk of `size` bytes, in a file without a name: it goes with its last user, also when that one crashes.
    pub(super) fn make(directory: &Path, size: u64) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let file = tempfile::tempfile_in(directory)?;
        file.set_len(size)?;
        Ok(Layer { file: Arc::new(file), map: Map::new(size.div_ceil(BLOCK_BYTES)), edges: RwLock::new(()) })
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
            self.file.write_all_at(content, block * BLOCK_BYTES)?;
            self.map.set(block, block + 1);
        }
        Ok(())
    }

    pub(super) fn write(&self, offset: u64, data: &[u8], durability: Durability) -> io::Result<()> {
        {
            let _shared = self.edges.read().unwrap_or_else(PoisonError::into_inner);
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
        self.file.sync_data()
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

/// Blocks of one piece of the map: 128 MiB of disk in 4 KiB of memory, made when the first of them is written.
const PIECE_BLOCKS: u64 = 32_768;
const PIECE_WORDS: usize = (PIECE_BLOCKS / 64) as usize;

/// A bit per block.
struct Map {
    pieces: Box<[OnceLock<Box<[AtomicU64; PIECE_WORDS]>>]>,
}

impl Map {
    fn new(blocks: u64) -> Self {
        Map { pieces: (0..blocks.div_ceil(PIECE_BLOCKS)).map(|_| OnceLock::new()).collect() }
    }

    /// Whose `block` is, and the first block up to `end` that is the other's.
    fn run(&self, block: u64, end: u64) -> (Owner, u64) {
        let mut owner = None;
        let mut at = block;
        while at < end {
            let (word, left) = self.word(at);
            let first = if word & 1 == 1 { Owner::Layer } else { Owner::Base };
            let owner = *owner.get_or_insert(first);
            let others = if owner == Owner::Layer { !word } else { word };
            let same = u64::from(others.trailing_zeros());
            if same < left.min(64) {
                return (owner, end.min(at + same));
            }
            at += left;
        }
        (owner.unwrap_or(Owner::Base), end)
    }

    /// The bits from `block` on, the lowest first, and how many blocks they stand for: a piece that does not exist is many zeros.
    fn word(&self, block: u64) -> (u64, u64) {
        let inside = block % PIECE_BLOCKS;
        match self.pieces[(block / PIECE_BLOCKS) as usize].get() {
            None => (0, PIECE_BLOCKS - inside),
            Some(words) => {
                let word = words[(inside / 64) as usize].load(Ordering::Acquire);
                (word >> (block % 64), 64 - block % 64)
            }
        }
    }

    fn set(&self, block: u64, end: u64) {
        let mut at = block;
        while at < end {
            let words = self.pieces[(at / PIECE_BLOCKS) as usize]
                .get_or_init(|| Box::new([const { AtomicU64::new(0) }; PIECE_WORDS]));
            let count = (64 - at % 64).min(end - at);
            let mask = (u64::MAX >> (64 - count)) << (at % 64);
            words[(at % PIECE_BLOCKS / 64) as usize].fetch_or(mask, Ordering::AcqRel);
            at += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_the_map_end_where_a_bit_changes_in_any_word_and_piece() {
        let map = Map::new(4 * PIECE_BLOCKS);
        let ends = [
            (0, 1),
            (3, 5),
            (60, 70),
            (128, 192),
            (PIECE_BLOCKS - 2, PIECE_BLOCKS + 2),
            (3 * PIECE_BLOCKS, 4 * PIECE_BLOCKS),
        ];
        for (start, end) in ends {
            map.set(start, end);
        }
        let (mut at, mut seen) = (0, Vec::new());
        while at < 4 * PIECE_BLOCKS {
            let (owner, until) = map.run(at, 4 * PIECE_BLOCKS);
            if owner == Owner::Layer {
                seen.push((at, until));
            }
            assert!(until > at, "a run is never empty");
            at = until;
        }
        assert_eq!(seen, ends);
        assert_eq!(map.run(61, 65), (Owner::Layer, 65));
        assert_eq!(map.run(5, 5), (Owner::Base, 5));
    }
}
