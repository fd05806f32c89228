//! A console as its lease has it: a stream of what is said from the lease's beginning on, and a way to type.
//!
//! | the console | the stream |
//! |---|---|
//! | says something | gives it |
//! | goes away | ends, or fails with the reason; the next one is opened by whoever wants to hear on |
//! | says what cannot be kept, to a reader that is late | fails: a job must not take what it heard for the whole |
//! | is typed on | takes it while the lease's pass is valid, and after that refuses |

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio_util::sync::{PollSender, ReusableBoxFuture};

use super::hub::{CLOSED, Typed, Writer};
use super::reader::{Next, Piece, Reader};

/// The stream. Dropping it leaves the console as it is.
pub struct Session {
    reader: Reader,
    rest: Bytes,
    /// What ended the bytes of the read before.
    end: Option<Piece>,
    place: Place,
    grown: ReusableBoxFuture<'static, bool>,
    waits: bool,
    typed: PollSender<Typed>,
    writer: Writer,
}

/// How far a session is, also after it is gone.
#[derive(Clone)]
pub struct Place(Arc<AtomicU64>);

impl Place {
    /// The offset of the byte that it reads next.
    pub fn offset(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Session {
    pub(super) fn new(reader: Reader, writer: Writer) -> Session {
        let typed = PollSender::new(writer.queue());
        let grown = ReusableBoxFuture::new(std::future::ready(true));
        let place = Place(Arc::new(AtomicU64::new(reader.position())));
        Session { reader, rest: Bytes::new(), end: None, place, grown, waits: false, typed, writer }
    }

    /// Where it is.
    pub fn place(&self) -> Place {
        self.place.clone()
    }

    /// Gives what is there, of as many pieces as have room; says whether anything was.
    fn fill(&mut self, buffer: &mut ReadBuf<'_>) -> Filled {
        let before = buffer.filled().len();
        while buffer.remaining() > 0 {
            if !self.rest.is_empty() {
                let length = self.rest.len().min(buffer.remaining());
                buffer.put_slice(&self.rest[..length]);
                self.rest.advance(length);
                self.place.0.store(self.reader.position() - self.rest.len() as u64, Ordering::Relaxed);
                continue;
            }
            if self.end.is_some() {
                break;
            }
            match self.reader.try_next() {
                Next::Piece(Piece::Said { bytes, .. }) => self.rest = bytes,
                Next::Piece(Piece::Back { .. }) => {}
                Next::Piece(end @ (Piece::Away { .. } | Piece::Lost { .. })) => self.end = Some(end),
                Next::Over if buffer.filled().len() == before => return Filled::Over,
                Next::Over => break,
                Next::NotYet(grown) if buffer.filled().len() == before => return Filled::Nothing(grown),
                Next::NotYet(_) => break,
            }
        }
        Filled::Something
    }
}

enum Filled {
    /// Bytes, or what ended them.
    Something,
    Nothing(watch::Receiver<u64>),
    Over,
}

impl AsyncRead for Session {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        loop {
            if this.waits {
                ready!(this.grown.poll(context));
                this.waits = false;
            }
            match this.fill(buffer) {
                Filled::Something if buffer.filled().len() > before => return Poll::Ready(Ok(())),
                Filled::Something => return Poll::Ready(this.end.take().map_or(Ok(()), how_it_ended)),
                Filled::Over => return Poll::Ready(Ok(())),
                Filled::Nothing(grown) => {
                    this.grown.set(has_grown(grown));
                    this.waits = true;
                }
            }
        }
    }
}

fn how_it_ended(end: Piece) -> io::Result<()> {
    match end {
        Piece::Away { reason, .. } if reason != CLOSED => Err(io::Error::other(reason)),
        Piece::Lost { bytes, why, .. } => Err(io::Error::other(format!("{bytes} bytes of it are lost: {why}"))),
        Piece::Away { .. } | Piece::Back { .. } | Piece::Said { .. } => Ok(()),
    }
}

async fn has_grown(mut grown: watch::Receiver<u64>) -> bool {
    grown.changed().await.is_ok()
}

impl AsyncWrite for Session {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writer.check().map_err(io::Error::other)?;
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the console is no more");
        ready!(self.typed.poll_reserve(context)).map_err(gone)?;
        let typed = self.writer.typed(Bytes::copy_from_slice(bytes));
        self.typed.send_item(typed).map_err(gone)?;
        Poll::Ready(Ok(bytes.len()))
    }

    /// It is written in its own time: a console that takes nothing must not hold up who types.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
