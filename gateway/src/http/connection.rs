//! One TCP connection: hyper's HTTP/1 around a stream that gives up on a peer who stops reading.
//!
//! ```text
//!  Wire ── Patient (write timeout) ──► hyper http1 ──► service
//!                                             ▲
//!  every LIVENESS_PERIOD: does the publication of the running transfer still stand? no → the connection is dropped
//!                         has the peer's TCP acknowledged more of it? yes → the transfer's pulse beats
//! ```

use std::io::{self, IoSlice};
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, Sleep};

use super::proxy::Tunnel;
use crate::door::Transport;
use crate::namespace::Pulse;
use crate::tls::wire::Wire;

/// How soon a transfer ends after its publication was dropped.
pub(super) const LIVENESS_PERIOD: Duration = Duration::from_millis(250);

nix::ioctl_read_bad!(
    /// Bytes in a socket's send queue that the peer has not acknowledged (tcp(7), SIOCOUTQ).
    unacknowledged,
    nix::libc::TIOCOUTQ,
    nix::libc::c_int
);

/// What the connection's task and its service share: what it travels over, and the transfer that runs now, or was the last one.
pub(super) struct Running {
    transport: Transport,
    transfer: Mutex<Option<(Pulse, Stage)>>,
    tunnel: Mutex<Option<Tunnel>>,
}

/// How far a transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Runs,
    /// All of it is in the socket's queue.
    Queued,
}

impl Running {
    /// A connection over `transport`, on which nothing runs.
    pub(super) fn over(transport: Transport) -> Self {
        Running { transport, transfer: Mutex::default(), tunnel: Mutex::default() }
    }

    /// What the connection travels over.
    pub(super) fn transport(&self) -> Transport {
        self.transport
    }

    /// The connection becomes `tunnel` after this answer.
    pub(super) fn keep(&self, tunnel: Tunnel) {
        *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
    }

    /// What the connection has become, if it has.
    pub(super) fn tunnel(&self) -> Option<Tunnel> {
        self.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// A transfer began (HTTP/1 has one at a time on a connection).
    pub(super) fn begin(&self, pulse: Pulse) {
        *self.transfer.lock().unwrap_or_else(PoisonError::into_inner) = Some((pulse, Stage::Runs));
    }

    /// It is over, but for what is in the socket's queue.
    pub(super) fn end(&self) {
        if let Some((_, stage)) = &mut *self.transfer.lock().unwrap_or_else(PoisonError::into_inner) {
            *stage = Stage::Queued;
        }
    }

    /// Returns when a transfer runs whose publication is gone. Until then it watches that bytes leave `socket`, which must be open: a slow
    /// peer takes seconds for what fits its buffer, and has not stalled.
    pub(super) async fn orphaned(&self, socket: RawFd) {
        let mut period = tokio::time::interval(LIVENESS_PERIOD);
        let mut before = 0;
        loop {
            period.tick().await;
            let running = self.transfer.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let queued = queued_bytes(socket);
            match running {
                Some((pulse, _)) if pulse.is_live() => {
                    if queued != before {
                        pulse.beat();
                    }
                }
                Some((_, Stage::Runs)) => return,
                Some((_, Stage::Queued)) | None => {}
            }
            before = queued;
        }
    }
}

/// What `socket` has sent, or is about to, and its peer has not acknowledged.
fn queued_bytes(socket: RawFd) -> nix::libc::c_int {
    let mut queued = 0;
    // SAFETY: the kernel writes one int, to where there is one; a descriptor that is no socket is an error, which leaves 0.
    let _ = unsafe { unacknowledged(socket, &mut queued) };
    queued
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
