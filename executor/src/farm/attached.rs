//! A file that came along with a job: in memory as an upload leaves it, or on the disk where something of the farm's own has made it.
//!
//! ```text
//!  upload ─► Bytes ─► written into the job's folder ─► Bytes
//!  forge  ─► File  ─► a link to it there ────────────► File      its maker removes it when the job has ended
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use gateway::content::Content;

/// A file that came along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attached {
    /// All of it.
    Bytes(Bytes),
    /// A file that stays as it is until the job has ended.
    File(PathBuf),
}

impl From<Bytes> for Attached {
    fn from(bytes: Bytes) -> Attached {
        Attached::Bytes(bytes)
    }
}

impl Attached {
    /// As servers read it.
    pub(super) fn content(&self) -> Content {
        match self {
            Attached::Bytes(bytes) => Content::Inline(bytes.clone()),
            Attached::File(path) => Content::File(path.clone()),
        }
    }

    /// All of it; for what is sent whole.
    pub(super) fn read(&self) -> io::Result<Bytes> {
        match self {
            Attached::Bytes(bytes) => Ok(bytes.clone()),
            Attached::File(path) => fs::read(path).map(Bytes::from),
        }
    }

    /// Keeps it at `path`.
    pub(super) fn keep(&self, path: &Path, write: impl Fn(&Path, &[u8]) -> io::Result<()>) -> io::Result<()> {
        match self {
            Attached::Bytes(bytes) => write(path, bytes),
            Attached::File(source) => std::os::unix::fs::symlink(source, path),
        }
    }

    /// What was kept at `path`; of a job that has ended the file may be gone.
    pub(super) fn kept(path: &Path) -> io::Result<Attached> {
        if fs::symlink_metadata(path)?.is_symlink() {
            return fs::read_link(path).map(Attached::File);
        }
        fs::read(path).map(|bytes| Attached::Bytes(bytes.into()))
    }
}
