//! What drivers of consoles have in common: one holder at a time, errors that name the line, and the way to a TCP port.
//!
//! ```text
//!  Claims::take ─► Claim ─► held by the stream ─► dropped, and the next may open
//!                    └ taken: `10.0.0.2:2007 is open already; close that first`
//!
//!  Served ◄── memory, 64 KiB ──► a task that speaks to the device ─► its last word is the stream's error
//! ```

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// A host that is there answers in milliseconds. Two seconds below what opening a console again may take, so that the error has an address.
const CONNECT_TIME: Duration = Duration::from_secs(8);
/// A silent console's server is asked after this time whether it is there, then so often, so many times: a server that lost its power is
/// noticed within a minute, at two packets a minute of silence.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_TRIES: u32 = 3;

/// A task that is told to end does so at its next await; this is for a busy host.
const END_TIME: Duration = Duration::from_secs(1);
/// Bytes between a task and who reads: a second of a 115,200 baud line is 11 kB; beyond this the device waits.
const BUFFER_BYTES: usize = 64 * 1024;

/// Connects to a console server.
pub(super) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let address = format!("{host}:{port}");
    let stream = match timeout(CONNECT_TIME, TcpStream::connect((host, port))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(named(&address, error)),
        Err(_) => {
            let why = format!("{address}: no answer within {} s", CONNECT_TIME.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
    };
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_TRIES))?;
    Ok(stream)
}

/// The error of a line, with the line's name.
pub(super) fn named(name: &str, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{name}: {error}"))
}

/// Whether a line is held.
pub(super) struct Claims(Arc<Semaphore>);

/// The right to be the only one; dropping it lets the next one open.
pub(super) struct Claim(
    #[expect(dead_code, reason = "it is held, and given back by being dropped")] OwnedSemaphorePermit,
);

impl Default for Claims {
    fn default() -> Self {
        Claims(Arc::new(Semaphore::new(1)))
    }
}

impl Claims {
    /// Takes the line called `name`.
    pub(super) fn take(&self, name: &str) -> io::Result<Claim> {
        Arc::clone(&self.0).try_acquire_owned().map(Claim).map_err(|_| is_open(name))
    }

    /// Takes it, and waits for a task that is just ending.
    pub(super) async fn take_from_task(&self, name: &str) -> io::Result<Claim> {
        match timeout(END_TIME, Arc::clone(&self.0).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Claim(permit)),
            Ok(Err(_)) | Err(_) => Err(is_open(name)),
        }
    }
}

fn is_open(name: &str) -> io::Error {
    let why = format!("the console at {name} is open already; close that first");
    io::Error::new(io::ErrorKind::ResourceBusy, why)
}

/// A stream with its line's name and the right to it. Its end is an error: whoever reads on wants to know who hung up.
pub(super) struct Held<S, H = Claim> {
    pub(super) stream: S,
    name: String,
    _held: H,
}

impl<S, H> Held<S, H> {
    /// The stream of the line called `name`, and what is held with it: dropped after it, in order.
    pub(super) fn new(stream: S, name: String, held: H) -> Self {
        Held { stream, name, _held: held }
    }
}

impl<S: AsyncRead + Unpin, H: Unpin> AsyncRead for Held<S, H> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        Poll::Ready(match read {
            Err(error) => Err(named(&self.name, error)),
            Ok(()) if buffer.filled().len() == before && buffer.remaining() > 0 => {
                let why = format!("{} closed the connection", self.name);
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, why))
            }
            Ok(()) => Ok(()),
        })
    }
}

impl<S: AsyncWrite + Unpin, H: Unpin> AsyncWrite for Held<S, H> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        written.map_err(|error| named(&self.name, error))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context).map_err(|error| named(&self.name, error))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A stream that a task serves. The task has the claim: the line is free when it has ended, and that is soon after this is dropped.
pub(super) struct Served {
    near: DuplexStream,
    /// Until its last word was told.
    task: Option<JoinHandle<io::Error>>,
}

impl Served {
    /// Spawns what `serve` makes of the far end; what it ends with is what readers are told, with the line's name.
    pub(super) fn spawn<F>(name: String, claim: Claim, serve: impl FnOnce(DuplexStream) -> F) -> Served
    where
        F: Future<Output = io::Error> + Send + 'static,
    {
        let (near, far) = tokio::io::duplex(BUFFER_BYTES);
        let serving = serve(far);
        let task = tokio::spawn(async move {
            let _claim = claim;
            named(&name, serving.await)
        });
        Served { near, task: Some(task) }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl AsyncRead for Served {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.near).poll_read(context, buffer))?;
        if buffer.filled().len() > before || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let Some(task) = &mut self.task else { return Poll::Ready(Ok(())) };
        let last_word = ready!(Pin::new(task).poll(context));
        self.task = None;
        Poll::Ready(Err(last_word.unwrap_or_else(io::Error::other)))
    }
}

impl AsyncWrite for Served {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.near).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.near).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.near).poll_shutdown(context)
    }
}
