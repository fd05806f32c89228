//! What HTTP and S3 travel over: TCP as it is, or TLS on it.
//!
//! ```text
//!  a connection ─► its first byte ─┬─ 22, a TLS record ─► handshake ─► Tls
//!                                  └─ anything else ────────────────► Clear
//! ```

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::{Failure, Inside, Tls};
use crate::door::Transport;

/// A TLS record with a handshake in it (RFC 8446 section 5.1); no HTTP method begins with it.
const TLS_HANDSHAKE: u8 = 22;

/// A connection's bytes.
pub(crate) enum Wire {
    Clear(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    /// What `stream` is, by its first byte; `None`: it brought none within this time.
    pub(crate) async fn of(
        stream: TcpStream,
        peer: IpAddr,
        tls: &Tls,
        patience: Duration,
    ) -> Option<Result<Wire, Failure>> {
        let mut first = [0];
        match tokio::time::timeout(patience, stream.peek(&mut first)).await {
            Ok(Ok(1)) if first[0] == TLS_HANDSHAKE => {}
            Ok(Ok(1..)) => return Some(Ok(Wire::Clear(stream))),
            Ok(Ok(0) | Err(_)) | Err(_) => return None,
        }
        let stream = tls.accept(stream, peer, Inside::Http).await;
        Some(stream.map(|stream| Wire::Tls(Box::new(stream))))
    }

    /// Which of the two it is.
    pub(crate) fn transport(&self) -> Transport {
        match self {
            Wire::Clear(_) => Transport::Clear,
            Wire::Tls(_) => Transport::Tls,
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Clear(stream) => Pin::new(stream).poll_read(context, buffer),
            Wire::Tls(stream) => Pin::new(stream.as_mut()).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Clear(stream) => Pin::new(stream).poll_write(context, bytes),
            Wire::Tls(stream) => Pin::new(stream.as_mut()).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Clear(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Wire::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Wire::Clear(stream) => stream.is_write_vectored(),
            Wire::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Clear(stream) => Pin::new(stream).poll_flush(context),
            Wire::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Clear(stream) => Pin::new(stream).poll_shutdown(context),
            Wire::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(context),
        }
    }
}
