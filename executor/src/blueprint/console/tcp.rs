//! A console behind a TCP port: a console server's raw mode (ser2net `raw`, a terminal server, QEMU's `-serial tcp:`). Bytes as they are.
//!
//! ```text
//!  open ─► connect (8 s) ─► keep-alive ─► stream ─► dropped, and the next may open
//!            └ refused, no answer: an error with the address       └ dead for a minute: a read error
//! ```
//! Most servers take one client a port, and keep the rest waiting or hang up on them: so does this, with a sentence.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Console, ConsoleStream};
use crate::blueprint::driver::{self, Mistake};

/// A TCP port that is the serial line, byte for byte.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["host", "port"]))]
pub struct Keys {
    /// Its name or address.
    host: String,
    /// The port of this machine's line.
    #[schemars(range(min = 1, max = 65535), extend("x-example" = "port: 2001"))]
    port: u16,
}

impl driver::Keys<dyn Console> for Keys {
    fn build(self, _: &driver::Context<'_>) -> Result<Arc<dyn Console>, Vec<Mistake>> {
        Ok(Arc::new(TcpConsole::new(self.host, self.port)))
    }
}

/// A host that is there answers in milliseconds. Two seconds below what opening a console again may take, so that the error has an address.
const CONNECT_TIME: Duration = Duration::from_secs(8);
/// A silent console's server is asked after this time whether it is there, then so often, so many times: a server that lost its power is
/// noticed within a minute, at two packets a minute of silence.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_TRIES: u32 = 3;

/// Reaches a console over TCP.
pub struct TcpConsole {
    host: String,
    port: u16,
    is_open: Arc<AtomicBool>,
}

impl TcpConsole {
    /// The console at this address.
    pub fn new(host: String, port: u16) -> Self {
        TcpConsole { host, port, is_open: Arc::default() }
    }

    async fn connect(&self) -> io::Result<Stream> {
        let address = format!("{}:{}", self.host, self.port);
        if self.is_open.swap(true, Ordering::SeqCst) {
            let why = format!("the console at {address} is open already; close that first");
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, why));
        }
        let claim = Claim(Arc::clone(&self.is_open));
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let stream = match timeout(CONNECT_TIME, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(io::Error::new(error.kind(), format!("{address}: {error}"))),
            Err(_) => {
                let why = format!("{address}: no answer within {} s", CONNECT_TIME.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
        };
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_TRIES))?;
        Ok(Stream { stream, address, _claim: claim })
    }
}

impl Console for TcpConsole {
    fn open(&self) -> BoxFuture<'_, io::Result<Box<dyn ConsoleStream>>> {
        async { Ok(Box::new(self.connect().await?) as Box<dyn ConsoleStream>) }.boxed()
    }
}

/// The right to be the only one; dropping it lets the next one open.
struct Claim(Arc<AtomicBool>);

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

struct Stream {
    stream: TcpStream,
    address: String,
    _claim: Claim,
}

impl Stream {
    fn with_address(&self, error: io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("{}: {error}", self.address))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = std::task::ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        Poll::Ready(match read {
            Err(error) => Err(self.with_address(error)),
            // Its end is no end of the DUT's: whoever reads on wants to know who hung up.
            Ok(()) if buffer.filled().len() == before && buffer.remaining() > 0 => {
                let why = format!("{} closed the connection", self.address);
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, why))
            }
            Ok(()) => Ok(()),
        })
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        written.map_err(|error| self.with_address(error))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn server() -> (TcpListener, TcpConsole, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let console = TcpConsole::new("127.0.0.1".into(), address.port());
        (listener, console, address.to_string())
    }

    #[tokio::test]
    async fn bytes_go_both_ways_as_they_are() {
        let (listener, console, _) = server().await;
        let mut stream = console.open().await.unwrap();
        let (mut dut, _) = listener.accept().await.unwrap();
        dut.write_all(b"\xff\xfblogin:\r\n\0").await.unwrap();
        let mut heard = [0; 11];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"\xff\xfblogin:\r\n\0");
        stream.write_all(b"root\xff\n").await.unwrap();
        let mut typed = [0; 6];
        dut.read_exact(&mut typed).await.unwrap();
        assert_eq!(&typed, b"root\xff\n");
    }

    #[tokio::test]
    async fn it_has_one_writer_at_a_time() {
        let (_listener, console, address) = server().await;
        let first = console.open().await.unwrap();
        let refused = console.open().await.map(drop).unwrap_err();
        assert_eq!(refused.to_string(), format!("the console at {address} is open already; close that first"));
        drop(first);
        console.open().await.map(drop).unwrap();
        console.open().await.map(drop).unwrap();
    }

    #[tokio::test]
    async fn a_console_that_nobody_serves_or_that_hangs_up_is_told_with_its_address() {
        let (listener, console, address) = server().await;
        let mut stream = console.open().await.unwrap();
        drop(listener.accept().await.unwrap());
        let closed = stream.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(closed.to_string(), format!("{address} closed the connection"));
        drop((listener, stream));
        let refused = console.open().await.map(drop).unwrap_err();
        assert_eq!(refused.to_string(), format!("{address}: Connection refused (os error 111)"));
        console.open().await.map(drop).expect_err("a failed attempt does not keep the next one out");
        let unknown = TcpConsole::new("no such host".into(), 1);
        let why = unknown.open().await.map(drop).unwrap_err().to_string();
        assert!(why.starts_with("no such host:1: "), "{why}");
    }

    #[tokio::test]
    async fn a_silent_server_is_asked_whether_it_is_there() {
        let (_listener, console, _) = server().await;
        let stream = console.connect().await.unwrap();
        let socket = SockRef::from(&stream.stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(30));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
    }
}
