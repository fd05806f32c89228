//! A disk between two resets: what reads, writes and looks at it.
//!
//! | a block is | read | written in part | looked at |
//! |---|---|---|---|
//! | the layer's | from its file | in place | a hole of its file is zeros |
//! | the base's | from the base | after the base's bytes were copied | as the base says |

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::ground::Ground;
use super::layer::{Durability, Hole, Layer, Owner, Speed};
use super::{BLOCK_BYTES, Disk, DiskError, Mode};
use crate::content::file::{LARGE_READ_BYTES, blocking, fill, read_exactly};

/// Steps of one answer about extents: a seek each, some milliseconds in all. Who asks goes on behind the last one.
const EXTENT_STEPS_MAX: usize = 4096;

/// The disk between two resets. Cheap to clone.
#[derive(Clone)]
pub struct View {
    pub(super) disk: Disk,
    pub(super) layer: Option<Arc<Layer>>,
}

/// A place among those who are attached, freed when dropped.
#[derive(Debug)]
pub struct Attachment {
    pub(super) view: View,
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

impl View {
    /// Whether the disk was reset since.
    pub fn is_stale(&self) -> bool {
        match (&self.disk.0.body.layer(), &self.layer) {
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
            let piece = match (owner, &self.layer) {
                (Owner::Layer, Some(layer)) => {
                    Piece::Data(read_exactly(layer.file(), at, (part_end - at) as usize).await?)
                }
                _ => self.ground().read(at, until).await?,
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
        let end = self.size().min(offset.saturating_add(length));
        let Ground::Qcow2(image) = self.ground() else {
            let view = self.clone();
            return Ok(blocking(move || view.extents_now(offset, end)).await?);
        };
        let mut extents = Extents { list: Vec::new(), at: offset };
        for _ in 0..EXTENT_STEPS_MAX {
            if extents.at >= end {
                break;
            }
            let (at, (owner, until)) = (extents.at, self.run(extents.at, end));
            let known = match (owner, self.layer.clone()) {
                (Owner::Layer, Some(layer)) => blocking(move || fill(layer.file(), at, until)).await?,
                _ => image.fill(at, until).await?,
            };
            extents.push(known);
        }
        Ok(extents.list)
    }

    /// Of a disk whose base is asked without waiting for anything but the farm's own disk.
    fn extents_now(&self, offset: u64, end: u64) -> io::Result<Vec<Extent>> {
        let mut extents = Extents { list: Vec::new(), at: offset };
        for _ in 0..EXTENT_STEPS_MAX {
            if extents.at >= end {
                break;
            }
            let (owner, until) = self.run(extents.at, end);
            extents.push(match (owner, &self.layer) {
                (Owner::Layer, Some(layer)) => fill(layer.file(), extents.at, until)?,
                _ => self.ground().fill_now(extents.at, until)?,
            });
        }
        Ok(extents.list)
    }

    fn ground(&self) -> &Ground {
        &self.disk.0.body.ground
    }

    fn writable(&self) -> Result<Arc<Layer>, DiskError> {
        match self.disk.mode() {
            Mode::CopyOnWrite => self.layer.clone().ok_or(DiskError::ReadOnly),
            Mode::ReadOnly => Err(DiskError::ReadOnly),
        }
    }

    /// Whose the byte at `at` is, and up to where the next ones are as well; at most to `end`.
    fn run(&self, at: u64, end: u64) -> (Owner, u64) {
        self.layer.as_ref().map_or((Owner::Base, end), |layer| layer.run(at, end))
    }

    /// Copies the base's bytes of those blocks that a change covers in part. Over zeros there is nothing to copy: a hole reads the same.
    async fn adopt_ends(&self, layer: &Arc<Layer>, offset: u64, length: u64) -> Result<(), DiskError> {
        if matches!(self.ground(), Ground::Zeros) {
            return Ok(());
        }
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
            let (layer, content) = (Arc::clone(layer), self.ground().read_exactly(start, bytes).await?);
            blocking(move || layer.adopt(block, &content)).await?;
        }
        Ok(())
    }
}

/// Extents in a row, the neighbours of one kind made one.
struct Extents {
    list: Vec<Extent>,
    at: u64,
}

impl Extents {
    fn push(&mut self, (fill, until): (Fill, u64)) {
        let length = until - self.at;
        match self.list.last_mut() {
            Some(last) if last.fill == fill => last.length += length,
            _ => self.list.push(Extent { length, fill }),
        }
        self.at = until;
    }
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

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "view of {:?}", self.disk)
    }
}
