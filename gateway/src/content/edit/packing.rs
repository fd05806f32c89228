//! Compression, taken off by what the bytes say and put on by what the job says.
//!
//! ```text
//!  1f 8b          gzip     ─┐
//!  "BZh"          bzip2     ├─► unpack, at most LAYERS_MAX deep ─► Peek: the first bytes can be looked at before they are read
//!  fd "7zXZ" 00   xz        │
//!  28 b5 2f fd    zstd     ─┘   (RFC 1952; bzip2 1.0; the .xz format 1.2; RFC 8878)
//! ```
//! What comes out of each is counted, also where it is skipped: deflate makes up to 1032 bytes of one, and three may be around one another.

use std::io::{self, Read, Write};

use bzip2::read::MultiBzDecoder;
use bzip2::write::BzEncoder;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use job_schema::job::Compression;
use lzma_rust2::XzReader;
use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};

use super::{Limit, evil};

/// Compressions around one another: a `.tar.gz` has one; more than three nobody makes but to keep us busy.
const LAYERS_MAX: usize = 3;
/// What a decoder of xz may take: `xz -9` needs 65 MiB, the largest dictionary of the format 1.5 GiB.
const XZ_MEMORY_KIB: u32 = 128 * 1024;

/// A stream whose next bytes can be looked at.
pub(super) struct Peek {
    head: Vec<u8>,
    at: usize,
    inner: Box<dyn Read>,
}

impl Peek {
    /// Nothing was looked at yet.
    pub(super) fn new(inner: Box<dyn Read>) -> Self {
        Peek { head: Vec::new(), at: 0, inner }
    }

    /// The next `count` bytes, fewer only where the stream ends before.
    pub(super) fn look(&mut self, count: usize) -> io::Result<&[u8]> {
        let missing = (self.at + count).saturating_sub(self.head.len());
        (&mut self.inner).take(missing as u64).read_to_end(&mut self.head)?;
        let end = self.head.len().min(self.at + count);
        Ok(&self.head[self.at..end])
    }

    /// Skips zeros: what stands between the archives of an initial RAM disk, and after the last.
    pub(super) fn skip_zeros(&mut self) -> io::Result<()> {
        while self.look(1)?.first() == Some(&0) {
            self.at += 1;
            if self.at == self.head.len() {
                (self.head, self.at) = (Vec::new(), 0);
                // A look at a time would be a read per byte of padding.
                self.look(4096)?;
            }
        }
        Ok(())
    }
}

impl Read for Peek {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let waiting = &self.head[self.at..];
        if waiting.is_empty() {
            return self.inner.read(target);
        }
        let count = waiting.len().min(target.len());
        target[..count].copy_from_slice(&waiting[..count]);
        self.at += count;
        Ok(count)
    }
}

/// Takes off every compression that the bytes begin with; says whether there was one.
pub(super) fn unpack(stream: Peek, limit: &Limit) -> io::Result<(Peek, Wrapped)> {
    let (mut stream, mut wrapped) = (stream, Wrapped::No);
    for _ in 0..LAYERS_MAX {
        let decoder: Box<dyn Read> = match stream.look(6)? {
            [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(stream)),
            [b'B', b'Z', b'h', ..] => Box::new(MultiBzDecoder::new(stream)),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(XzReader::new_mem_limit(stream, true, XZ_MEMORY_KIB)),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(Zstd::new(stream)?),
            _ => return Ok((stream, wrapped)),
        };
        let counted = Counted { decoder, bytes: 0, limit: limit.clone() };
        (stream, wrapped) = (Peek::new(Box::new(counted)), Wrapped::Yes);
    }
    Err(evil(format!("it is compressed more than {LAYERS_MAX} times over")))
}

/// What comes out of a decoder, up to the limit, and for as long as somebody waits: bytes that are skipped cost time, too.
struct Counted {
    decoder: Box<dyn Read>,
    bytes: u64,
    limit: Limit,
}

impl Read for Counted {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        self.limit.is_waited_for()?;
        let count = self.decoder.read(target)?;
        self.bytes += count as u64;
        self.limit.check("what it unpacks to is", self.bytes)?;
        Ok(count)
    }
}

/// Whether bytes were compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrapped {
    /// They are as they were given.
    No,
    /// They come out of a decoder.
    Yes,
}

/// The frames of a zstd stream, one after the other; the decoder beneath ends with each.
struct Zstd(Option<StreamingDecoder<Peek, ruzstd::decoding::FrameDecoder>>);

impl Zstd {
    fn new(stream: Peek) -> io::Result<Self> {
        next_frame(stream).map(Zstd)
    }
}

fn next_frame(mut stream: Peek) -> io::Result<Option<StreamingDecoder<Peek, ruzstd::decoding::FrameDecoder>>> {
    loop {
        match *stream.look(8)? {
            [] => return Ok(None),
            // A skippable frame, RFC 8878 3.1.2: its length, and nothing for us.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, a, b, c, d] => {
                let length = 8 + u64::from(u32::from_le_bytes([a, b, c, d]));
                if io::copy(&mut (&mut stream).take(length), &mut io::sink())? < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            _ => break,
        }
    }
    StreamingDecoder::new(stream).map(Some).map_err(|error| match error {
        FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::BadMagicNumber(_)) => {
            evil("bytes that are not zstd follow its zstd frames".to_owned())
        }
        other => evil(format!("zstd: {other}")),
    })
}

impl Read for Zstd {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = &mut self.0 {
            match decoder.read(target) {
                Ok(0) if !target.is_empty() => {}
                outcome => return outcome,
            }
            let ended = self.0.take().map(StreamingDecoder::into_inner);
            self.0 = ended.map(next_frame).transpose()?.flatten();
        }
        Ok(0)
    }
}

/// Writes what is given to it compressed as a job asks.
pub(super) enum Packer<W: Write> {
    Plain(W),
    Gz(Box<GzEncoder<W>>),
    Bz2(Box<BzEncoder<W>>),
}

impl<W: Write> Packer<W> {
    /// gzip's and bzip2's own defaults; neither notes a time, so that the same bytes give the same bytes.
    pub(super) fn new(target: W, compression: Compression) -> Self {
        match compression {
            Compression::None => Packer::Plain(target),
            Compression::Gz => Packer::Gz(Box::new(GzEncoder::new(target, flate2::Compression::default()))),
            Compression::Bz2 => Packer::Bz2(Box::new(BzEncoder::new(target, bzip2::Compression::default()))),
        }
    }

    /// The end of the stream.
    pub(super) fn finish(self) -> io::Result<W> {
        match self {
            Packer::Plain(target) => Ok(target),
            Packer::Gz(encoder) => encoder.finish(),
            Packer::Bz2(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Packer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Packer::Plain(target) => target.write(bytes),
            Packer::Gz(encoder) => encoder.write(bytes),
            Packer::Bz2(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Packer::Plain(target) => target.flush(),
            Packer::Gz(encoder) => encoder.flush(),
            Packer::Bz2(encoder) => encoder.flush(),
        }
    }
}
