//! One TCP connection: hyper's HTTP/1 around a stream that gives up on a peer who stops reading.
//!
//! ```text
//!  Wire ── Patient (write timeout) ──► hyper http1 ──► service
//!                                             ▲
//!  every LIVENESS_PERIOD: does the publication of the running transfer still stand? no → the connection is dropped
//! ```

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, Sleep};

use super::wire::Wire;
use crate::door::Transport;
use crate::namespace::Liveness;

/// How soon a transfer ends after its publication was dropped.
pub(super) const LIVENESS_PERIOD: Duration = Duration::from_millis(250);

/// What the connection's task and its service share: what it travels over, and the publication behind the transfer that runs now.
#[derive(Debug)]
pub(super) struct Running {
    transport: Transport,
    transfer: Mutex<Option<Liveness>>,
}

impl Running {
    /// A connection over `transport`, on which nothing runs.
    pub(super) fn over(transport: Transport) -> Self {
        Running { transport, transfer: Mutex::default() }
    }

    /// What the connection travels over.
    pub(super) fn transport(&self) -> Transport {
        self.transport
    }

    /// A transfer began (HTTP/1 has one at a time on a connection).
    pub(super) fn begin(&self, liveness: Liveness) {
        *self.transfer.lock().unwrap_or_else(PoisonError::into_inner) = Some(liveness);
    }

    /// It is over.
    pub(super) fn end(&self) {
        *self.transfer.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether a transfer runs whose publication is gone.
    fn is_orphaned(&self) -> bool {
        let running = self.transfer.lock().unwrap_or_else(PoisonError::into_inner);
        running.as_ref().is_some_and(|liveness| !liveness.is_live())
    }

    /// Returns when a transfer runs whose publication is gone.
    pub(super) async fn orphaned(&self) {
        let mut period = tokio::time::interval(LIVENESS_PERIOD);
        while !self.is_orphaned() {
            period.tick().await;
        }
    }
}

/// A stream whose writes fail when the peer takes nothing for `patience`.
pub(super) struct Patient {
    stream: TokioIo<Wire>,
    patience: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    /// Wraps `stream`.
    pub(super) fn new(stream: Wire, patience: Duration) -> Self {
        Patient { stream: TokioIo::new(stream), patience, deadline: None }
    }

    /// `Pending` becomes an error once it lasted too long.
    fn limit<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.deadline = None;
            return written;
        }
        let patience = self.patience;
        let deadline =
            self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + patience)));
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer stopped reading")))
    }
}

impl Read for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Patient {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.limit(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.limit(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS writes here what it still holds.
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.limit(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
