//! A console behind a TCP port: a console server's raw mode (ser2net `raw`, a terminal server, QEMU's `-serial tcp:`). Bytes as they are.
//!
//! ```text
//!  open ─► connect (8 s) ─► keep-alive ─► stream ─► dropped, and the next may open
//!            └ refused, no answer: an error with the address       └ dead for a minute: a read error
//! ```
//! Most servers take one client a port, and keep the rest waiting or hang up on them: so does this, with a sentence.

use std::io;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::net::TcpStream;

use super::stream::{Claims, Held, connect};
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

/// Reaches a console over TCP.
pub struct TcpConsole {
    host: String,
    port: u16,
    claims: Claims,
}

impl TcpConsole {
    /// The console at this address.
    pub fn new(host: String, port: u16) -> Self {
        TcpConsole { host, port, claims: Claims::default() }
    }

    async fn connect(&self) -> io::Result<Held<TcpStream>> {
        let address = format!("{}:{}", self.host, self.port);
        let claim = self.claims.take(&address)?;
        Ok(Held::new(connect(&self.host, self.port).await?, address, claim))
    }
}

impl Console for TcpConsole {
    fn open(&self) -> BoxFuture<'_, io::Result<Box<dyn ConsoleStream>>> {
        async { Ok(Box::new(self.connect().await?) as Box<dyn ConsoleStream>) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use socket2::SockRef;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

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
