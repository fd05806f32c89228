//! Which blocks of a disk are its layer's: a bit each, in pieces that exist once something was written to their region. The map of a
//! layer that is kept is a file, too.
//!
//! ```text
//!  set ─► the bit, then `changed` of its piece         flush ─► changed pieces are copied ─► the layer's bytes are synced
//!                                                             ─► the copies are written, and synced          one flush at a time
//! ```
//! So a bit on disk always has its bytes there, whenever the power goes; and bits are only ever set, so that half a piece is right as
//! well. What was written after the last flush may be lost, which is what a disk without a flush promises.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use super::layer::Owner;
use super::view::Fill;
use crate::content::file::fill;

/// Blocks of one piece of the map: 128 MiB of disk in 4 KiB of memory, made when the first of them is written.
const PIECE_BLOCKS: u64 = 32_768;
const PIECE_WORDS: usize = (PIECE_BLOCKS / 64) as usize;

const PIECE_BYTES: u64 = PIECE_WORDS as u64 * 8;

/// A bit per block.
pub(super) struct Map {
    pieces: Box<[OnceLock<Box<Piece>>]>,
}

struct Piece {
    words: [AtomicU64; PIECE_WORDS],
    /// Whether a bit was set since it was copied last.
    changed: AtomicBool,
}

/// Where the map of a layer that is kept is written. One flush at a time: whoever comes second must not return before the bits are
/// on disk that the first one took.
pub(super) struct Book {
    file: File,
    turn: Mutex<()>,
}

impl Map {
    pub(super) fn new(blocks: u64) -> Self {
        Map { pieces: (0..blocks.div_ceil(PIECE_BLOCKS)).map(|_| OnceLock::new()).collect() }
    }

    /// Whose `block` is, and the first block up to `end` that is the other's.
    pub(super) fn run(&self, block: u64, end: u64) -> (Owner, u64) {
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
            Some(piece) => {
                let word = piece.words[(inside / 64) as usize].load(Ordering::Acquire);
                (word >> (block % 64), 64 - block % 64)
            }
        }
    }

    pub(super) fn set(&self, block: u64, end: u64) {
        let mut at = block;
        while at < end {
            let piece = self.pieces[(at / PIECE_BLOCKS) as usize].get_or_init(Box::default);
            let count = (64 - at % 64).min(end - at);
            let mask = (u64::MAX >> (64 - count)) << (at % 64);
            piece.words[(at % PIECE_BLOCKS / 64) as usize].fetch_or(mask, Ordering::AcqRel);
            piece.changed.store(true, Ordering::Release);
            at += count;
        }
    }

    /// The pieces that changed, by number, with their bytes.
    fn take_changed(&self) -> Vec<(usize, Vec<u8>)> {
        let changed = |(number, piece): (usize, &OnceLock<Box<Piece>>)| {
            let piece = piece.get()?;
            // Before its words are read: a bit that is set meanwhile marks it again.
            let bytes = || piece.words.iter().flat_map(|word| word.load(Ordering::Acquire).to_le_bytes()).collect();
            piece.changed.swap(false, Ordering::AcqRel).then(|| (number, bytes()))
        };
        self.pieces.iter().enumerate().filter_map(changed).collect()
    }

    fn put_back(&self, changed: &[(usize, Vec<u8>)]) {
        for piece in changed.iter().filter_map(|(number, _)| self.pieces[*number].get()) {
            piece.changed.store(true, Ordering::Release);
        }
    }
}

impl Default for Piece {
    fn default() -> Self {
        Piece { words: [const { AtomicU64::new(0) }; PIECE_WORDS], changed: AtomicBool::new(false) }
    }
}

impl Book {
    /// A map that was written to `file`, for `blocks`; an empty file is an empty map.
    pub(super) fn open(file: File, blocks: u64) -> io::Result<(Book, Map)> {
        let map = Map::new(blocks);
        let end = map.pieces.len() as u64 * PIECE_BYTES;
        file.set_len(end)?;
        let mut at = 0;
        while at < end {
            // Pieces that nothing was written to are holes.
            let (kind, until) = fill(&file, at, end)?;
            if kind == Fill::Data {
                map.read(&file, at / PIECE_BYTES, until.div_ceil(PIECE_BYTES))?;
            }
            at = until.next_multiple_of(PIECE_BYTES);
        }
        Ok((Book { file, turn: Mutex::default() }, map))
    }

    /// Syncs what was written by `sync`, and then the bits that say so.
    pub(super) fn flush(&self, map: &Map, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = map.take_changed();
        let flushed = sync().and_then(|()| self.write(&changed));
        flushed.inspect_err(|_| map.put_back(&changed))
    }

    fn write(&self, changed: &[(usize, Vec<u8>)]) -> io::Result<()> {
        for (number, bytes) in changed {
            self.file.write_all_at(bytes, *number as u64 * PIECE_BYTES)?;
        }
        if changed.is_empty() { Ok(()) } else { self.file.sync_data() }
    }
}

impl Map {
    fn read(&self, file: &File, first: u64, end: u64) -> io::Result<()> {
        let mut bytes = [0; PIECE_BYTES as usize];
        for number in first..end {
            file.read_exact_at(&mut bytes, number * PIECE_BYTES)?;
            let piece = self.pieces[number as usize].get_or_init(Box::default);
            for (word, bytes) in piece.words.iter().zip(bytes.as_chunks::<8>().0) {
                word.store(u64::from_le_bytes(*bytes), Ordering::Release);
            }
        }
        Ok(())
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
