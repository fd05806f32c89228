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
    grown: ReusableBoxFuture<'static, bool>,
    waits: bool,
    typed: PollSender<Typed>,
    writer: Writer,
}

impl Session {
    pub(super) fn new(reader: Reader, writer: Writer) -> Session {
        let typed = PollSender::new(writer.queue());
        let grown = ReusableBoxFuture::new(std::future::ready(true));
        Session { reader, rest: Bytes::new(), grown, waits: false, typed, writer }
    }

    /// The offset of the byte that it reads next.
    pub fn position(&self) -> u64 {
        self.reader.position() - self.rest.len() as u64
    }
}

impl AsyncRead for Session {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if !this.rest.is_empty() {
                let length = this.rest.len().min(buffer.remaining());
                buffer.put_slice(&this.rest[..length]);
                this.rest.advance(length);
                return Poll::Ready(Ok(()));
            }
            if this.waits {
                ready!(this.grown.poll(context));
                this.waits = false;
            }
            match this.reader.try_next() {
                Next::Piece(Piece::Said { bytes, .. }) => this.rest = bytes,
                Next::Piece(Piece::Back { .. }) => {}
                Next::Piece(Piece::Away { reason, .. }) if reason == CLOSED => return Poll::Ready(Ok(())),
                Next::Piece(Piece::Away { reason, .. }) => return Poll::Ready(Err(io::Error::other(reason))),
                Next::Piece(Piece::Lost { bytes, why, .. }) => {
                    let why = format!("{bytes} bytes of it are lost: {why}");
                    return Poll::Ready(Err(io::Error::other(why)));
                }
                Next::Over => return Poll::Ready(Ok(())),
                Next::NotYet(grown) => {
                    this.grown.set(has_grown(grown));
                    this.waits = true;
                }
            }
        }
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
