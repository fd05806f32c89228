//! An object's bytes, piece after piece, while the object is held: also when it is replaced meanwhile.

use std::io::{self, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::bucket::{Object, Piece};

/// What is read of a file at a time.
const READ_BYTES: usize = 256 * 1024;

/// The bytes of `range`, in chunks.
pub fn read(object: &Object, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
    let (mut parts, mut start) = (Vec::new(), 0);
    for piece in &object.pieces {
        let (from, to) = (range.start.max(start), range.end.min(start + piece.size));
        if from < to {
            parts.push((Arc::clone(piece), from - start, to - from));
        }
        start += piece.size;
    }
    let opened = futures_util::stream::iter(parts).then(open);
    let chunks = opened.flat_map(|opened| match opened {
        Ok(chunks) => chunks,
        Err(error) => futures_util::stream::once(async { Err(error) }).boxed(),
    });
    chunks.boxed()
}

async fn open((piece, offset, length): (Arc<Piece>, u64, u64)) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
    let mut file = tokio::fs::File::open(piece.path()).await?;
    file.seek(SeekFrom::Start(offset)).await?;
    // The closure holds the piece, and with it the file.
    Ok(ReaderStream::with_capacity(file.take(length), READ_BYTES).inspect(move |_| _ = &piece).boxed())
}
