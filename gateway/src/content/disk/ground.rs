//! What a disk holds before anyone writes to it: zeros, or an image, raw or qcow2 by what it begins with.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::qcow2::{self, Image};
use super::{Base, DiskError, Fill, Piece, SIZE_BYTES_MAX};
use crate::content::file::LARGE_READ_BYTES;
use crate::content::{Content, Reader};

/// The base, opened.
#[derive(Clone)]
pub(super) enum Ground {
    Zeros,
    Raw(Reader),
    Qcow2(Arc<Image>),
}

impl Ground {
    /// Opens a base, and says how large a disk over it is. Waits until that is known, not until the base is downloaded.
    pub(super) async fn open(base: &Base) -> Result<(Ground, u64), DiskError> {
        let (ground, size) = match base {
            Base::Zeros { size_bytes } => (Ground::Zeros, *size_bytes),
            Base::Image(content) => {
                let reader = content.open().await?;
                match qcow2::is_one(&reader.read_at(0, 4).await?) {
                    true => {
                        let image = Image::open(content, reader).await?;
                        let size = image.size();
                        (Ground::Qcow2(Arc::new(image)), size)
                    }
                    false => {
                        let size = reader.complete_size().await?;
                        (Ground::Raw(reader), size)
                    }
                }
            }
        };
        if size > SIZE_BYTES_MAX {
            return Err(DiskError::TooLarge { size });
        }
        Ok((ground, size))
    }

    /// What tells these bytes from others: an image that changed on its server has another one. Waits until all of it is there.
    pub(super) async fn fingerprint(base: &Base) -> Result<String, DiskError> {
        match base {
            Base::Zeros { size_bytes } => Ok(format!("zeros {size_bytes}")),
            Base::Image(content) => {
                if let Content::Url(cached) = content {
                    cached.wait_complete().await?;
                }
                let reader = content.open().await?;
                let bytes = reader.complete_size().await?;
                Ok(format!("image {bytes} {}", reader.fingerprint().unwrap_or_default()))
            }
        }
    }

    /// Some of the bytes from `at` on, which is inside: at least one, at most up to `end`.
    pub(super) async fn read(&self, at: u64, end: u64) -> Result<Piece, DiskError> {
        match self {
            Ground::Zeros => Ok(Piece::Zeros(end - at)),
            Ground::Raw(reader) => {
                let length = (end - at).min(LARGE_READ_BYTES as u64) as usize;
                Ok(Piece::Data(read_raw(reader, at, length).await?))
            }
            Ground::Qcow2(image) => image.read(at, end).await,
        }
    }

    /// All of `length` bytes from `at` on.
    pub(super) async fn read_exactly(&self, at: u64, length: usize) -> Result<Bytes, DiskError> {
        let end = at + length as u64;
        let mut bytes = BytesMut::with_capacity(length);
        while bytes.len() < length {
            match self.read(at + bytes.len() as u64, end).await? {
                Piece::Data(data) => bytes.extend_from_slice(&data),
                Piece::Zeros(count) => bytes.resize(bytes.len() + count as usize, 0),
            }
        }
        Ok(bytes.freeze())
    }

    /// What is known about the bytes from `at` on, and up to where; at most to `end`. A qcow2 image has its own way, which may wait.
    pub(super) fn fill_now(&self, at: u64, end: u64) -> io::Result<(Fill, u64)> {
        match self {
            Ground::Zeros => Ok((Fill::Zeros, end)),
            Ground::Raw(reader) => reader.fill(at, end),
            Ground::Qcow2(_) => Ok((Fill::Data, end)),
        }
    }
}

/// A base's size was told before its bytes came; what is missing at the end in spite of that is an error, not zeros.
async fn read_raw(reader: &Reader, at: u64, length: usize) -> Result<Bytes, DiskError> {
    let bytes = reader.read_at(at, length).await?;
    if bytes.len() < length {
        let short = format!("the image ends at byte {}, before its size", at + bytes.len() as u64);
        return Err(DiskError::Layer(io::Error::new(io::ErrorKind::UnexpectedEof, short)));
    }
    Ok(bytes)
}
