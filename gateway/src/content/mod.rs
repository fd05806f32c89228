//! Where the bytes of an artifact come from.
//!
//! ```text
//!  Content ── open().await ──► Reader ── read_at(offset, length).await ──► Bytes
//!    Inline | File | Url (cached, streams while it downloads) | Joined (one after the other)
//! ```

use bytes::Bytes;
use std::path::PathBuf;
use std::sync::Arc;

/// What an entry of a namespace holds. Cheap to clone; nothing is opened or downloaded before [`Content::open`].
#[derive(Clone, Debug)]
pub enum Content {
    /// Bytes in memory.
    Inline(Bytes),
    /// A local file, opened at each access.
    File(PathBuf),
    /// Several contents one after the other (initramfs archives).
    Joined(Arc<[Content]>),
}
