//! Local files, read without mapping them: a file that shrinks under a mapping kills the process with SIGBUS.
//!
//! ```text
//!  read_at ──► preadv2(RWF_NOWAIT) on this thread ── all there ──► Bytes     what the page cache holds costs one copy
//!                    └── not in the page cache ──► pread on the blocking pool ──► Bytes
//! ```
//! Large reads take their buffer from a small pool and give it back when the last `Bytes` of it is dropped: the same hot pages
//! are used again, where a fresh allocation of this size would be mapped, zeroed and unmapped by the kernel each time.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Whence, lseek};

use super::ContentError;
use super::disk::Fill;

/// A regular file, opened once; its size is the one at that moment.
#[derive(Clone, Debug)]
pub(super) struct OpenFile {
    file: Arc<File>,
    path: PathBuf,
    size: u64,
    etag: String,
}

impl OpenFile {
    /// Opens `path` for reading.
    pub(super) async fn open(path: &Path) -> Result<Self, ContentError> {
        let path = path.to_owned();
        blocking(move || Self::open_now(path)).await
    }

    fn open_now(path: PathBuf) -> Result<Self, ContentError> {
        let failed = |source: io::Error| ContentError::File { path: path.clone(), source: Arc::new(source) };
        // O_NONBLOCK: opening a FIFO without a writer would wait for ever.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(ContentError::NotAFile { path });
        }
        Ok(OpenFile { file: Arc::new(file), size: metadata.len(), etag: etag(&metadata), path })
    }

    /// The size when it was opened.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The open file itself.
    pub(super) fn handle(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Changes when the file is written or replaced.
    pub(super) fn etag(&self) -> String {
        self.etag.clone()
    }

    /// `length` bytes from `offset`, fewer only at the end.
    pub(super) async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, ContentError> {
        let left = self.size.saturating_sub(offset);
        let length = usize::try_from(left).map_or(length, |left| length.min(left));
        let failed = |source: io::Error| ContentError::File { path: self.path.clone(), source: Arc::new(source) };
        let bytes = read_exactly(&self.file, offset, length).await.map_err(failed)?;
        if bytes.len() < length {
            return Err(ContentError::Shrunk { path: self.path.clone(), found: offset + bytes.len() as u64 });
        }
        Ok(bytes)
    }
}

fn etag(metadata: &Metadata) -> String {
    let modified = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    format!("\"f{:x}-{:x}-{:x}\"", metadata.ino(), metadata.len(), modified)
}

/// `length` bytes from `offset` of `file`, fewer where the file ends before.
pub(super) async fn read_exactly(file: &Arc<File>, offset: u64, length: usize) -> io::Result<Bytes> {
    let mut buffer = Buffer::take(length);
    let ready = read_cached(file, offset, &mut buffer.memory[..length]);
    if ready == length {
        return Ok(buffer.freeze(length));
    }
    let file = Arc::clone(file);
    let read = blocking(move || {
        let filled = read_waiting(&file, offset + ready as u64, &mut buffer.memory[ready..length])?;
        Ok((buffer, ready + filled))
    });
    read.await.map(|(buffer, filled)| buffer.freeze(filled))
}

/// What can be had without waiting for a disk; 0 also where the file system knows no such read.
fn read_cached(file: &File, offset: u64, target: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < target.len() {
        let rest = &mut target[filled..];
        let vector = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
        let Ok(position) = libc::off_t::try_from(offset + filled as u64) else { break };
        // SAFETY: the one vector describes `rest`, which is writable and outlives the call; the descriptor is open.
        let count = unsafe { libc::preadv2(file.as_raw_fd(), &raw const vector, 1, position, libc::RWF_NOWAIT) };
        match usize::try_from(count) {
            Ok(count) if count > 0 => filled += count,
            _ => break,
        }
    }
    filled
}

fn read_waiting(file: &File, offset: u64, target: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < target.len() {
        match file.read_at(&mut target[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Whether `file` has a hole at `offset`, and up to where the answer is the same; at most to `end`. A file system without holes says
/// that all is data. Nothing here reads by the file's own position, which this moves.
pub(super) fn fill(file: &File, offset: u64, end: u64) -> io::Result<(Fill, u64)> {
    let seek = |from: u64, whence| match lseek(file, from.cast_signed(), whence) {
        Ok(found) => Ok(found.cast_unsigned().min(end)),
        // Behind the last data there is only a hole.
        Err(Errno::ENXIO) => Ok(end),
        Err(errno) => Err(io::Error::from(errno)),
    };
    let data = seek(offset, Whence::SeekData)?;
    if data > offset {
        return Ok((Fill::Zeros, data));
    }
    // A hole punched between the two seeks may begin here; it is data then, which is never wrong.
    Ok((Fill::Data, seek(offset, Whence::SeekHole)?.max(end.min(offset + 1))))
}

/// Runs `work` on the blocking pool. A panic there is a bug of ours and goes on here.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down and never ran the work: nobody is left to see an answer.
            Err(_) => std::future::pending().await,
        },
    }
}

/// What a large read fills at most: two of them fit a core's second-level cache, and it is what one send takes at a time.
pub(crate) const LARGE_READ_BYTES: usize = 256 * 1024;

/// 64 buffers of 256 KiB, 16 MiB: about two for each of 32 DUTs that boot at once; more are made, and freed after use.
const POOLED_BUFFERS_MAX: usize = 64;

static POOL: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

/// Memory for one read.
struct Buffer {
    memory: Box<[u8]>,
    used: usize,
}

impl Buffer {
    fn take(length: usize) -> Self {
        // Below half of a pooled buffer the allocator serves from its own lists.
        if length > LARGE_READ_BYTES / 2 && length <= LARGE_READ_BYTES {
            let pooled = POOL.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let memory = pooled.unwrap_or_else(|| vec![0; LARGE_READ_BYTES].into_boxed_slice());
            return Buffer { memory, used: 0 };
        }
        Buffer { memory: vec![0; length].into_boxed_slice(), used: 0 }
    }

    fn freeze(mut self, length: usize) -> Bytes {
        self.used = length;
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.used]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.memory.len() == LARGE_READ_BYTES {
            let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
            if pool.len() < POOLED_BUFFERS_MAX {
                pool.push(std::mem::take(&mut self.memory));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(length: usize) -> Vec<u8> {
        (0..length).map(|index| (index / 7) as u8).collect()
    }

    #[tokio::test]
    async fn any_range_of_a_file_reads_as_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let expected = numbered(700_001);
        std::fs::write(&path, &expected).unwrap();
        let file = OpenFile::open(&path).await.unwrap();
        for (offset, length) in [(0, 700_001), (1, LARGE_READ_BYTES), (262_143, 200_000), (700_000, 10), (5, 0)] {
            let end = expected.len().min(offset + length);
            assert_eq!(file.read_at(offset as u64, length).await.unwrap(), expected[offset..end], "{offset}+{length}");
        }
        assert_eq!(file.read_at(800_000, 1).await.unwrap(), "");
    }

    #[tokio::test]
    async fn a_file_that_shrinks_under_a_reader_is_an_error_and_not_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, numbered(10_000)).unwrap();
        let file = OpenFile::open(&path).await.unwrap();
        File::options().write(true).open(&path).unwrap().set_len(4_000).unwrap();
        assert_eq!(file.read_at(0, 4_000).await.unwrap().len(), 4_000);
        let error = file.read_at(0, 10_000).await.unwrap_err();
        assert!(error.to_string().contains("shrank to 4000 bytes while it was read"), "{error}");
    }

    #[tokio::test]
    async fn a_rewritten_file_has_another_etag() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "one").unwrap();
        let before = OpenFile::open(&path).await.unwrap().etag();
        assert_eq!(OpenFile::open(&path).await.unwrap().etag(), before);
        std::fs::write(&path, "three").unwrap();
        assert_ne!(OpenFile::open(&path).await.unwrap().etag(), before);
    }
}
