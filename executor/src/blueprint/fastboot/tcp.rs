//! Fastboot over TCP, version 1: what loaders with a network card speak. From AOSP's description
//! (system/core/fastboot/README.md, "TCP Protocol v1").
//!
//! ```text
//!  host   FB01 ─►                                 two letters, two digits: the version that it speaks
//!  loader ◄─ FB01
//!  host   00000000 0000000e getvar:product ─►     eight bytes of length, the highest first; then so many bytes
//!  loader ◄─ 00000000 0000000a OKAYredfin
//!  host   00000000 01600000 ─► the image ─►       the whole image is one message, as AOSP's host sends it
//! ```

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use gateway::net::Net;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::dialogue::ANSWER_BYTES_MAX;
use super::{Link, Missed};

/// What we speak.
const HELLO: &[u8; 4] = b"FB01";
/// A loader that is there takes a connection in milliseconds, and says hello at once; a machine that is still off does not refuse.
const CONNECT_TIME: Duration = Duration::from_secs(3);

/// A TCP port on a network.
#[derive(Clone, Debug)]
pub struct Address {
    /// Where the network is.
    pub net: Net,
    /// The address and the port.
    pub socket: SocketAddr,
}

impl Address {
    pub(super) async fn connect(&self) -> Result<Box<dyn Link>, Missed> {
        match timeout(CONNECT_TIME, self.greet()).await {
            Ok(Ok(stream)) => Ok(Box::new(TcpLink { stream })),
            Ok(Err(Greeting::Io(error))) => Err(Missed::NotYet(error.to_string())),
            Ok(Err(Greeting::Other(said))) => {
                Err(Missed::Never(format!("it says `{}` where fastboot says `FB01`", said.escape_ascii())))
            }
            Err(_) => Err(Missed::NotYet("no answer".to_owned())),
        }
    }

    async fn greet(&self) -> Result<TcpStream, Greeting> {
        let socket = self.net.run(|| {
            let socket = Socket::new(Domain::for_address(self.socket), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })?;
        let mut stream = TcpSocket::from_std_stream(socket.into()).connect(self.socket).await?;
        stream.set_nodelay(true)?;
        stream.write_all(HELLO).await?;
        let mut hello = [0; 4];
        stream.read_exact(&mut hello).await?;
        let is_one_or_more = hello[2..].iter().all(u8::is_ascii_digit) && &hello[2..] != b"00";
        if hello.starts_with(b"FB") && is_one_or_more { Ok(stream) } else { Err(Greeting::Other(hello)) }
    }
}

/// Why nobody was greeted.
enum Greeting {
    Io(io::Error),
    Other([u8; 4]),
}

impl From<io::Error> for Greeting {
    fn from(error: io::Error) -> Self {
        Greeting::Io(error)
    }
}

struct TcpLink {
    stream: TcpStream,
}

impl Link for TcpLink {
    fn send<'a>(&'a mut self, command: &'a str) -> BoxFuture<'a, io::Result<()>> {
        async move {
            let length = (command.len() as u64).to_be_bytes();
            self.stream.write_all(&[&length, command.as_bytes()].concat()).await
        }
        .boxed()
    }

    fn begin_image(&mut self, bytes: u64) -> BoxFuture<'_, io::Result<()>> {
        async move { self.stream.write_all(&bytes.to_be_bytes()).await }.boxed()
    }

    fn send_piece(&mut self, piece: Bytes) -> BoxFuture<'_, io::Result<()>> {
        async move { self.stream.write_all(&piece).await }.boxed()
    }

    fn receive(&mut self) -> BoxFuture<'_, io::Result<Vec<u8>>> {
        async move {
            let length = self.stream.read_u64().await?;
            let length =
                usize::try_from(length).ok().filter(|length| *length <= ANSWER_BYTES_MAX).ok_or_else(|| {
                    io::Error::other(format!("an answer of {length} bytes; fastboot's have at most {ANSWER_BYTES_MAX}"))
                })?;
            let mut answer = vec![0; length];
            self.stream.read_exact(&mut answer).await?;
            Ok(answer)
        }
        .boxed()
    }
}
