//! A serial line behind RFC 2217: ser2net's `telnet(rfc2217)`, labgrid's exporters, terminal servers. Telnet that carries the line's settings.
//!
//! ```text
//!  open ─► connect ─► COM-PORT-OPTION? ─► speed, bits, parity, stop bits, flow control ─► every one answered as wanted ─► stream
//!                       └ no, or silent: an error        └ otherwise, or silent: an error with both values
//! ```

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::nvt::{Agreement, Carries, ComPort};
use super::serial::{FlowControl, Order, Settings};
use super::stream::{Claims, connect};
use super::telnet::{Commands, over};
use super::wires::{ERRORS, Wires};
use super::{Console, ConsoleStream};
use crate::blueprint::driver::{self, Mistake};

/// A server answers in milliseconds; ser2net asks its device first. What opening a console may take in all is 10 s.
const ANSWER_TIME: Duration = Duration::from_secs(4);

/// A port of a server that has the serial line and sets it as we say.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["host", "port"]))]
pub struct Keys {
    /// Its name or address.
    host: String,
    /// The port of this machine's line.
    #[schemars(range(min = 1, max = 65535), extend("x-example" = "port: 2217"))]
    port: u16,
    #[serde(flatten)]
    settings: Settings,
}

impl driver::Keys<dyn Console> for Keys {
    fn build(self, _: &driver::Context<'_>) -> Result<Arc<dyn Console>, Vec<Mistake>> {
        Ok(Arc::new(Rfc2217Console::new(self.host, self.port, self.settings)))
    }
}

/// Reaches a serial line by RFC 2217.
struct Rfc2217Console {
    host: String,
    port: u16,
    settings: Settings,
    claims: Claims,
    open: Mutex<Option<Open>>,
}

/// The connection that was opened last.
#[derive(Clone)]
struct Open {
    orders: mpsc::Sender<ComPort>,
    wires: watch::Receiver<Wires>,
}

impl Rfc2217Console {
    fn new(host: String, port: u16, settings: Settings) -> Self {
        Rfc2217Console { host, port, settings, claims: Claims::default(), open: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Console for Rfc2217Console {
    fn open(&self) -> BoxFuture<'_, io::Result<Box<dyn ConsoleStream>>> {
        async {
            let address = format!("{}:{}", self.host, self.port);
            let claim = self.claims.take_from_task(&address).await?;
            let connection = connect(&self.host, self.port).await?;
            let (stream, mut commands) = over(connection, Carries::Line, address.clone(), claim);
            let failed = |what: String| io::Error::other(format!("{address} {what}"));
            agree(&mut commands).await.map_err(failed)?;
            set(&mut commands, &self.settings).await.map_err(failed)?;
            let Commands { orders, wires, .. } = commands;
            // Whoever serves this line to others tells them. A server that does not know the mask says nothing, and that is fine.
            let _ = orders.try_send(ComPort::LineStateMask(ERRORS));
            *self.lock() = Some(Open { orders, wires });
            Ok(Box::new(stream) as Box<dyn ConsoleStream>)
        }
        .boxed()
    }

    fn settings(&self) -> Option<Settings> {
        Some(self.settings)
    }

    fn wires(&self) -> Option<Wires> {
        let open = self.lock();
        // The other end is gone with the connection.
        let wires = &open.as_ref().filter(|open| open.wires.has_changed().is_ok())?.wires;
        Some(*wires.borrow())
    }

    fn tell(&self, order: Order) -> io::Result<()> {
        let open = self.lock().clone();
        let told = open.map(|open| open.orders.try_send(order.command()));
        told.and_then(Result::ok).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotConnected, format!("{}:{} is not open", self.host, self.port))
        })
    }
}

/// Waits until the server has said whether it takes commands.
async fn agree(commands: &mut Commands) -> Result<(), String> {
    let answered = commands.agreement.wait_for(|agreement| *agreement != Agreement::Asked);
    match timeout(ANSWER_TIME, answered).await {
        Ok(Ok(agreement)) if *agreement == Agreement::Yes => Ok(()),
        Ok(Ok(_)) => Err("does not speak RFC 2217: it refused COM-PORT-OPTION; use `telnet`".into()),
        Ok(Err(_)) => Err("closed the connection before it said whether it speaks RFC 2217".into()),
        Err(_) => Err(format!(
            "has not said within {} s whether it speaks RFC 2217; use `tcp` or `telnet` if it does not",
            ANSWER_TIME.as_secs()
        )),
    }
}

/// Sets the line, and waits for the answer to each order.
async fn set(commands: &mut Commands, settings: &Settings) -> Result<(), String> {
    let wanted: Vec<ComPort> = settings.orders().into_iter().map(Order::command).collect();
    for command in &wanted {
        // There is room for all of them.
        let _ = commands.orders.try_send(command.clone());
    }
    // Some servers never answer SET-CONTROL (pyserial has `ign_set_control` for them): what is not asked for need not be answered.
    let is_needed =
        |command: &ComPort| !matches!(command, ComPort::Control(_)) || settings.flow_control != FlowControl::None;
    let mut open: Vec<ComPort> = wanted.into_iter().filter(is_needed).collect();
    let answered = async {
        while !open.is_empty() {
            let answer = commands.answers.recv().await.ok_or("closed the connection while its line was set")?;
            let same = |command: &ComPort| std::mem::discriminant(command) == std::mem::discriminant(&answer);
            let Some(index) = open.iter().position(same) else { continue };
            let command = open.swap_remove(index);
            if command != answer {
                return Err(format!("does not set the line: {command:?} was answered with {answer:?}"));
            }
        }
        Ok(())
    };
    match timeout(ANSWER_TIME, answered).await {
        Ok(result) => result,
        Err(_) => Err(format!("has not answered within {} s: {open:?}", ANSWER_TIME.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::super::nvt::{Heard, Side, Terminal};
    use super::super::serial::{Level, Parity};
    use super::*;

    /// A server of one connection: answers each command with what `answer` makes of it, says `hello` after the fifth, and gives all that it heard.
    async fn server(mut stream: TcpStream, answer: impl Fn(ComPort) -> Option<ComPort>) -> (Vec<ComPort>, Vec<u8>) {
        let mut terminal = Terminal::new(Side::Server, Carries::Line);
        let (mut commands, mut data, mut chunk) = (Vec::new(), Vec::new(), [0; 512]);
        loop {
            let outgoing = std::mem::take(terminal.outgoing());
            stream.write_all(&outgoing).await.unwrap();
            let Ok(length @ 1..) = stream.read(&mut chunk).await else { return (commands, data) };
            for heard in terminal.receive(&chunk[..length], &mut data) {
                let Heard::ComPort(command) = heard else { panic!("{heard:?}") };
                if let Some(answer) = answer(command.clone()) {
                    terminal.tell(&answer);
                }
                commands.push(command);
                if commands.len() == 5 {
                    terminal.send(b"hello");
                }
            }
        }
    }

    async fn console(settings: Settings) -> (TcpListener, Rfc2217Console, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, Rfc2217Console::new("127.0.0.1".into(), address.port(), settings), address.to_string())
    }

    #[tokio::test]
    async fn the_line_is_set_before_its_first_byte_and_told_what_comes_later() {
        let settings = Settings { baud: 9600, parity: Parity::Even, data_bits: 7, stop_bits: 2, ..Settings::default() };
        let (listener, console, _) = console(settings).await;
        let serving = tokio::spawn(async move { server(listener.accept().await.unwrap().0, Some).await });
        let mut stream = console.open().await.unwrap();
        let mut heard = [0; 5];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
        console.tell(Order::Break(Level::On)).unwrap();
        stream.write_all(b"root\xff").await.unwrap();
        stream.flush().await.unwrap();
        // The two go by different ways: the order is only sure to be sent when the next one finds room.
        let orders = console.lock().clone().unwrap().orders;
        while orders.capacity() < orders.max_capacity() {
            tokio::task::yield_now().await;
        }
        stream.shutdown().await.unwrap();
        let (commands, data) = serving.await.unwrap();
        let expected = [
            ComPort::BaudRate(9600),
            ComPort::DataSize(7),
            ComPort::Parity(3),
            ComPort::StopSize(2),
            ComPort::Control(1),
            ComPort::LineStateMask(30),
            ComPort::Control(5),
        ];
        assert_eq!(commands, expected);
        assert_eq!(data, b"root\xff");
        drop(stream);
    }

    #[tokio::test]
    async fn a_server_that_keeps_another_speed_or_says_nothing_of_its_flow_control_is_told() {
        let (listener, console, address) = console(Settings::default()).await;
        let keeps = |command| match command {
            ComPort::BaudRate(_) => Some(ComPort::BaudRate(9600)),
            ComPort::Control(_) => None,
            command => Some(command),
        };
        let serving = tokio::spawn(async move { server(listener.accept().await.unwrap().0, keeps).await });
        let why = console.open().await.map(drop).unwrap_err().to_string();
        let expected = "does not set the line: BaudRate(115200) was answered with BaudRate(9600)";
        assert_eq!(why, format!("{address} {expected}"));
        let why = console.tell(Order::Baud(300)).unwrap_err().to_string();
        assert_eq!(why, format!("{address} is not open"));
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn a_server_that_does_not_speak_it_is_told_by_what_it_answered() {
        let (listener, console, address) = console(Settings::default()).await;
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"\xff\xfe\x2clogin:").await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let why = console.open().await.map(drop).unwrap_err().to_string();
        let expected = "does not speak RFC 2217: it refused COM-PORT-OPTION; use `telnet`";
        assert_eq!(why, format!("{address} {expected}"));
    }
}
