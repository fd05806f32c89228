//! A console behind a telnet port: ser2net's `telnet`, terminal servers, QEMU's `-serial telnet:`.
//!
//! ```text
//!  open ─► connect ─► asks for eight bits and no go-ahead (nvt.rs) ─► stream
//!                      └ RFC 2217: asks for the line, too; sets it, and waits until the server says that it is set
//! ```
//! Bytes are the console's: what telnet puts between them is taken out here. A server that refuses eight bits gets a NUL behind each CR, as
//! RFC 854 wants it. QEMU does not double the byte 255 that its guest writes, so that this byte and the one behind it are lost.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, watch};

use super::nvt::{Agreement, Carries, ComPort, Heard, Side, Terminal};
use super::stream::{Claim, Claims, Served, connect};
use super::wires::Wires;
use super::{Console, ConsoleStream};
use crate::blueprint::driver::{self, Mistake};

/// Read at once, from either side: a third of a second of 115,200 baud.
const CHUNK_BYTES: usize = 4096;
/// So much may wait for the connection before nothing more is read: what comes in makes answers of at most its own length.
const WAITING_BYTES_MAX: usize = 16 * 1024;
/// Commands on their way: all of a line's settings at once, twice. What the server says beyond that nobody waits for.
const COMMANDS_MAX: usize = 16;

/// A telnet port that is the serial line.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["host"]))]
pub struct Keys {
    /// Its name or address.
    host: String,
    /// The port of this machine's line.
    #[schemars(range(min = 1, max = 65535))]
    port: u16,
}

impl Default for Keys {
    /// Telnet's own port.
    fn default() -> Self {
        Keys { host: String::new(), port: 23 }
    }
}

impl driver::Keys<dyn Console> for Keys {
    fn build(self, _: &driver::Context<'_>) -> Result<Arc<dyn Console>, Vec<Mistake>> {
        Ok(Arc::new(TelnetConsole { host: self.host, port: self.port, claims: Claims::default() }))
    }
}

/// Reaches a console by telnet.
struct TelnetConsole {
    host: String,
    port: u16,
    claims: Claims,
}

impl Console for TelnetConsole {
    fn open(&self) -> BoxFuture<'_, io::Result<Box<dyn ConsoleStream>>> {
        async {
            let address = format!("{}:{}", self.host, self.port);
            let claim = self.claims.take_from_task(&address).await?;
            let (stream, _) = over(connect(&self.host, self.port).await?, Carries::Bytes, address, claim);
            Ok(Box::new(stream) as Box<dyn ConsoleStream>)
        }
        .boxed()
    }
}

/// What goes over a connection beside the console's bytes.
pub(super) struct Commands {
    /// For the server.
    pub(super) orders: mpsc::Sender<ComPort>,
    /// From the server; what nobody reads is dropped.
    pub(super) answers: mpsc::Receiver<ComPort>,
    /// Whether the server takes commands.
    pub(super) agreement: watch::Receiver<Agreement>,
    /// What the server told of the line; as it is not told, until then.
    pub(super) wires: watch::Receiver<Wires>,
}

/// The console's bytes over a connection.
pub(super) fn over(stream: TcpStream, carries: Carries, name: String, claim: Claim) -> (Served, Commands) {
    let terminal = Terminal::new(Side::Client, carries);
    let (orders, to_send) = mpsc::channel(COMMANDS_MAX);
    let (came, answers) = mpsc::channel(COMMANDS_MAX);
    let (agreed, agreement) = watch::channel(terminal.com_port());
    let (told, wires) = watch::channel(Wires::default());
    let line = Line {
        terminal: Mutex::new(terminal),
        changed: Notify::new(),
        sent: Notify::new(),
        is_suspended: AtomicBool::new(false),
        came,
        agreed,
        told,
    };
    let serve = |console| async move { line.serve(stream, console, to_send).await };
    (Served::spawn(name, claim, serve), Commands { orders, answers, agreement, wires })
}

/// One open connection.
struct Line {
    terminal: Mutex<Terminal>,
    /// There is something to be sent, or the server takes bytes again.
    changed: Notify,
    /// What was to be sent is sent.
    sent: Notify,
    /// The server takes no bytes now (RFC 2217, FLOWCONTROL-SUSPEND).
    is_suspended: AtomicBool,
    came: mpsc::Sender<ComPort>,
    agreed: watch::Sender<Agreement>,
    told: watch::Sender<Wires>,
}

impl Line {
    /// Until either side is gone.
    async fn serve(&self, stream: TcpStream, console: DuplexStream, orders: mpsc::Receiver<ComPort>) -> io::Error {
        let (from_server, to_server) = stream.into_split();
        let (typed, said) = tokio::io::split(console);
        let ended = tokio::select! {
            ended = self.listen(from_server, said) => ended,
            ended = self.speak(to_server, typed, orders) => ended,
        };
        ended.err().unwrap_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed"))
    }

    async fn listen(&self, mut server: OwnedReadHalf, mut said: WriteHalf<DuplexStream>) -> io::Result<()> {
        let (mut chunk, mut data) = ([0; CHUNK_BYTES], Vec::new());
        loop {
            while self.terminal().outgoing().len() > WAITING_BYTES_MAX {
                self.sent.notified().await;
            }
            let length = server.read(&mut chunk).await?;
            if length == 0 {
                return Ok(());
            }
            let heard = self.terminal().receive(&chunk[..length], &mut data);
            heard.into_iter().for_each(|heard| self.take(heard));
            let agreement = self.terminal().com_port();
            self.agreed.send_if_modified(|state| std::mem::replace(state, agreement) != agreement);
            self.changed.notify_one();
            said.write_all(&data).await?;
            data.clear();
        }
    }

    fn take(&self, heard: Heard) {
        match heard {
            Heard::ComPort(ComPort::Suspend) => self.is_suspended.store(true, Ordering::Relaxed),
            Heard::ComPort(ComPort::Resume) => self.is_suspended.store(false, Ordering::Relaxed),
            Heard::ComPort(news @ (ComPort::ModemState(_) | ComPort::LineState(_))) => {
                self.told.send_modify(|wires| wires.follow(&news));
            }
            // Nobody waits for more than that.
            Heard::ComPort(answer) => drop(self.came.try_send(answer)),
            Heard::Break => {}
        }
    }

    async fn speak(
        &self,
        mut server: OwnedWriteHalf,
        mut typed: ReadHalf<DuplexStream>,
        mut orders: mpsc::Receiver<ComPort>,
    ) -> io::Result<()> {
        let mut chunk = [0; CHUNK_BYTES];
        let mut are_orders_left = true;
        loop {
            let outgoing = std::mem::take(self.terminal().outgoing());
            server.write_all(&outgoing).await?;
            self.sent.notify_one();
            let may_send = !self.is_suspended.load(Ordering::Relaxed);
            tokio::select! {
                () = self.changed.notified() => {}
                order = orders.recv(), if are_orders_left => match order {
                    Some(order) => self.terminal().tell(&order),
                    None => are_orders_left = false,
                },
                length = typed.read(&mut chunk), if may_send => match length? {
                    0 => return Ok(()),
                    length => self.terminal().send(&chunk[..length]),
                },
            }
        }
    }

    fn terminal(&self) -> MutexGuard<'_, Terminal> {
        self.terminal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_telnet_puts_between_the_bytes_is_taken_out_and_put_in() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let console = TelnetConsole { host: "127.0.0.1".into(), port, claims: Claims::default() };
        let mut stream = console.open().await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut asked = [0; 12];
        server.read_exact(&mut asked).await.unwrap();
        assert_eq!(asked, [255, 251, 0, 255, 253, 0, 255, 251, 3, 255, 253, 3]);
        // It agrees to eight bits both ways, and offers to echo.
        server.write_all(b"\xff\xfd\x00\xff\xfb\x00\xff\xfb\x01log\xff\xffin:").await.unwrap();
        let mut answer = [0; 3];
        server.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, [255, 253, 1]);
        let mut heard = [0; 7];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"log\xffin:");
        stream.write_all(b"ro\xff\r").await.unwrap();
        let mut typed = [0; 5];
        server.read_exact(&mut typed).await.unwrap();
        assert_eq!(&typed, b"ro\xff\xff\r");
        drop(server);
        let why = stream.read(&mut [0; 8]).await.unwrap_err().to_string();
        assert_eq!(why, format!("127.0.0.1:{port}: the connection was closed"));
    }

    #[tokio::test]
    async fn a_line_that_was_let_go_can_be_opened_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let console = TelnetConsole { host: "127.0.0.1".into(), port, claims: Claims::default() };
        for _ in 0..20 {
            let stream = console.open().await.unwrap();
            drop(stream);
        }
        let first = console.open().await.unwrap();
        let why = console.open().await.map(drop).unwrap_err().to_string();
        assert_eq!(why, format!("the console at 127.0.0.1:{port} is open already; close that first"));
        drop(first);
    }
}
