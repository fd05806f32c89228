//! A qcow2 image as what lies beneath a disk: read where it is, unpacked as it is read, never written.
//!
//! ```text
//!  find(at) ─► level 1 entry ─► level 2 entry ─► Place      tables by pages of 4 KiB, a few of which are kept
//!                                                 ├─ Zeros, for as long as the next ones are
//!                                                 ├─ At: the image's own bytes, for as long as they follow one another
//!                                                 └─ Compressed: unpacked on the blocking pool, once for all who ask; a few are kept
//! ```
//! What an image says of itself is believed of no more than what is read of it: nothing is as large as it claims, and an entry that
//! leads anywhere leads to bytes of the image or to an error. It may still be arriving: a read waits for its bytes.

mod layout;

use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress};
use ruzstd::decoding::StreamingDecoder;
use tokio::sync::OnceCell;

use self::layout::{Compression, ENTRY_BYTES, HEADER_BYTES, Layout, Place, be64};
use super::{DiskError, Fill, Piece, SIZE_BYTES_MAX};
use crate::content::file::{LARGE_READ_BYTES, blocking};
use crate::content::{Content, Reader};

pub use self::layout::Unreadable;

/// Tables are read in pages, as QEMU's cache has them: 512 entries tell of 32 MiB of disk where clusters have 64 KiB.
const PAGE_BYTES: u64 = 4096;
/// 1 MiB in all: the tables of 8 GiB of disk.
const PAGES_MAX: usize = 256;
/// Clusters that stay unpacked, because their neighbours in the same cluster are read next; of 2 MiB each, two.
const UNPACKED_BYTES_MAX: u64 = 2 * 1024 * 1024;
const UNPACKED_MIN: usize = 2;
/// What a decoder of zstd may look back: as far as RFC 8878 (3.1.1.1.2) asks everybody to support. QEMU's own frames need 2 MiB.
const ZSTD_WINDOW_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Steps of one look for where something ends: a caller that wants more asks again.
const STEPS_MAX: usize = 4096;

/// An opened image.
#[derive(Debug)]
pub(super) struct Image {
    name: String,
    reader: Reader,
    layout: Layout,
    pages: Mutex<Slots<Bytes>>,
    unpacked: Mutex<Slots<Arc<OnceCell<Bytes>>>>,
}

/// Whether bytes are the beginning of such an image.
pub(super) fn is_one(head: &[u8]) -> bool {
    head.starts_with(layout::MAGIC)
}

impl Image {
    /// Reads the header, and looks whether the tables that it names are there.
    pub(super) async fn open(content: &Content, reader: Reader) -> Result<Image, DiskError> {
        let name = content.to_string();
        let unreadable = |reason| DiskError::Qcow2 { image: name.clone(), reason };
        // The name of a backing file stands behind the header, in the first cluster.
        let head = reader.read_at(0, PAGE_BYTES as usize).await?;
        if head.len() < HEADER_BYTES - 1 {
            return Err(unreadable(Unreadable::Short));
        }
        let layout = Layout::read(&head, SIZE_BYTES_MAX).map_err(unreadable)?;
        look_at_table(&reader, &layout).await?.map_err(unreadable)?;
        let unpacked_max = (UNPACKED_BYTES_MAX / layout.cluster_bytes()) as usize;
        let unpacked = Mutex::new(Slots::new(unpacked_max.clamp(UNPACKED_MIN, PAGES_MAX)));
        Ok(Image { name, reader, layout, pages: Mutex::new(Slots::new(PAGES_MAX)), unpacked })
    }

    /// The size of the disk.
    pub(super) fn size(&self) -> u64 {
        self.layout.size
    }

    /// Some of the bytes from `offset` on: at least one, at most up to `end`, and no more than one read takes.
    pub(super) async fn read(&self, offset: u64, end: u64) -> Result<Piece, DiskError> {
        let end = end.min(self.size());
        let (place, until) = self.find(offset, end).await?;
        let inside = offset % self.layout.cluster_bytes();
        match place {
            Place::Zeros => Ok(Piece::Zeros(until - offset)),
            Place::At(start) => {
                let length = (until - offset).min(LARGE_READ_BYTES as u64) as usize;
                Ok(Piece::Data(self.exactly("a cluster", start + inside, length).await?))
            }
            Place::Compressed { offset: start, length } => {
                let cluster = self.unpack(offset - inside, start, length).await?;
                Ok(Piece::Data(cluster.slice(inside as usize..(inside + until - offset) as usize)))
            }
        }
    }

    /// What is known about the bytes from `offset` on without reading them, and up to where; at most to `end`.
    pub(super) async fn fill(&self, offset: u64, end: u64) -> Result<(Fill, u64), DiskError> {
        let (place, until) = self.find(offset, end.min(self.size())).await?;
        Ok((if place == Place::Zeros { Fill::Zeros } else { Fill::Data }, until))
    }

    /// Where the cluster of `offset` is, and up to where what follows is of the same kind, in a row; at most to `end`.
    async fn find(&self, offset: u64, end: u64) -> Result<(Place, u64), DiskError> {
        let (first, mut until) = self.find_one(offset).await?;
        let start = offset - offset % self.layout.cluster_bytes();
        for _ in 0..STEPS_MAX {
            if until >= end || matches!(first, Place::Compressed { .. }) {
                break;
            }
            let (next, next_until) = self.find_one(until).await?;
            let goes_on = match (first, next) {
                (Place::Zeros, Place::Zeros) => true,
                (Place::At(from), Place::At(next)) => from + (until - start) == next,
                _ => false,
            };
            if !goes_on {
                break;
            }
            until = next_until;
        }
        Ok((first, until.min(end)))
    }

    /// Where the cluster of `offset` is, and where the next one begins, or the next one that a table tells of.
    async fn find_one(&self, offset: u64) -> Result<(Place, u64), DiskError> {
        let (span, cluster) = (self.layout.span(), self.layout.cluster_bytes());
        let entry = self.entry(self.layout.table, offset / span).await?;
        match self.layout.second_table(entry).map_err(|reason| self.unreadable(reason))? {
            None => Ok((Place::Zeros, (offset / span + 1) * span)),
            Some(table) => {
                let entry = self.entry(table, offset % span / cluster).await?;
                let place = self.layout.place(entry).map_err(|reason| self.unreadable(reason))?;
                Ok((place, (offset / cluster + 1) * cluster))
            }
        }
    }

    async fn entry(&self, table: u64, index: u64) -> Result<u64, DiskError> {
        let at = table + index * ENTRY_BYTES;
        let behind = || self.unreadable(Unreadable::Behind { what: "a table", offset: at });
        let page = self.page(at - at % PAGE_BYTES).await?;
        be64(&page, (at % PAGE_BYTES) as usize).ok_or_else(behind)
    }

    async fn page(&self, at: u64) -> Result<Bytes, DiskError> {
        let kept = lock(&self.pages).get(at / PAGE_BYTES);
        match kept {
            Some(page) => Ok(page),
            None => {
                let page = self.reader.read_at(at, PAGE_BYTES as usize).await?;
                lock(&self.pages).put(at / PAGE_BYTES, page.clone());
                Ok(page)
            }
        }
    }

    /// The cluster of the disk's byte `at`, whose compressed bytes are in the `length` ones from `start` on.
    async fn unpack(&self, at: u64, start: u64, length: u64) -> Result<Bytes, DiskError> {
        let cluster = at >> self.layout.cluster_bits;
        let cell = {
            let mut unpacked = lock(&self.unpacked);
            unpacked.get(cluster).unwrap_or_else(|| unpacked.put(cluster, Arc::default()))
        };
        let filled = cell.get_or_try_init(|| async {
            // What is behind the compressed bytes is counted with them, and may be missing where the image ends.
            let packed = self.reader.read_at(start, length as usize).await?;
            let (bytes, compression) = (self.layout.cluster_bytes() as usize, self.layout.compression);
            let unpacked = blocking(move || inflate(&packed, bytes, compression)).await;
            unpacked.map_err(|reason| self.unreadable(Unreadable::Unpack { offset: start, reason }))
        });
        filled.await.cloned()
    }

    async fn exactly(&self, what: &'static str, at: u64, length: usize) -> Result<Bytes, DiskError> {
        let bytes = self.reader.read_at(at, length).await?;
        if bytes.len() < length {
            return Err(self.unreadable(Unreadable::Behind { what, offset: at + bytes.len() as u64 }));
        }
        Ok(bytes)
    }

    fn unreadable(&self, reason: Unreadable) -> DiskError {
        DiskError::Qcow2 { image: self.name.clone(), reason }
    }
}

/// Whether the level 1 table, and every table that it names, is inside the image: 32 MiB to read at most, for a disk that nobody has.
async fn look_at_table(reader: &Reader, layout: &Layout) -> Result<Result<(), Unreadable>, DiskError> {
    let behind = |what, offset| Ok(Err(Unreadable::Behind { what, offset }));
    let size = reader.complete_size().await?;
    let table_end = layout.table.saturating_add(layout.entries * ENTRY_BYTES);
    if table_end > size {
        return behind("its level 1 table", layout.table);
    }
    let mut at = layout.table;
    while at < table_end {
        let part = reader.read_at(at, (table_end - at).min(LARGE_READ_BYTES as u64) as usize).await?;
        if part.is_empty() {
            return behind("its level 1 table", at);
        }
        for entry in part.chunks_exact(ENTRY_BYTES as usize) {
            match layout.second_table(be64(entry, 0).unwrap_or_default()) {
                Ok(Some(table)) if table + layout.cluster_bytes() > size => return behind("a level 2 table", table),
                Ok(_) => {}
                Err(reason) => return Ok(Err(reason)),
            }
        }
        at += part.len() as u64;
    }
    Ok(Ok(()))
}

/// A whole cluster of `bytes` out of `packed`, which may be followed by anything.
fn inflate(packed: &[u8], bytes: usize, compression: Compression) -> Result<Bytes, String> {
    let mut cluster = vec![0; bytes];
    let filled = match compression {
        Compression::Zlib => {
            let mut decoder = Decompress::new(false);
            let outcome = decoder.decompress(packed, &mut cluster, FlushDecompress::Finish);
            outcome.map_err(|error| error.to_string())?;
            decoder.total_out() as usize
        }
        Compression::Zstd => {
            let decoder = StreamingDecoder::new_with_max_window_size(packed, ZSTD_WINDOW_BYTES_MAX);
            let mut decoder = decoder.map_err(|error| error.to_string())?.take(bytes as u64);
            decoder.read_exact(&mut cluster).map(|()| bytes).map_err(|error| error.to_string())?
        }
    };
    if filled < bytes {
        return Err(format!("it has {filled} bytes instead of {bytes}"));
    }
    Ok(cluster.into())
}

/// A few values by number: each has one place where it may be, and is gone when another takes it.
#[derive(Debug)]
struct Slots<T>(Vec<Option<(u64, T)>>);

impl<T: Clone> Slots<T> {
    fn new(count: usize) -> Self {
        Slots((0..count).map(|_| None).collect())
    }

    fn get(&self, number: u64) -> Option<T> {
        match &self.0[self.place(number)] {
            Some((kept, value)) if *kept == number => Some(value.clone()),
            _ => None,
        }
    }

    fn put(&mut self, number: u64, value: T) -> T {
        let place = self.place(number);
        self.0[place] = Some((number, value.clone()));
        value
    }

    fn place(&self, number: u64) -> usize {
        (number % self.0.len() as u64) as usize
    }
}

fn lock<T>(slots: &Mutex<Slots<T>>) -> MutexGuard<'_, Slots<T>> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "qcow2_tests.rs"]
mod tests;
