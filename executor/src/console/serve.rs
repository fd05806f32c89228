//! A leased console at a port of this host, for programs that want a serial line: raw TCP, or RFC 2217.
//!
//! ```text
//!  Ports::open ─► listener ─► clients, 25 at most ─┬─ the first to come types, sets the line            ─► Hub, under the lease's pass
//!    │                                             └─ all of them hear from now on, each at its own pace ◄─ the console's log
//!    └─ lease over ─► close: listener, clients
//!
//!  RFC 2217: a command ─► the driver's line, where it has one ─► answered with what holds now
//!            whoever set it hangs up ─► the line is as the farm file has it
//! ```
//! Every command is answered at once: pyserial waits 3 s for each, and gives up the port without PURGE-DATA's. A console without a line of its
//! own, a virtual machine's say, agrees to everything.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use super::hub::{Hub, Writer};
use super::log::Since;
use super::reader::{Piece, Reader};
use crate::blueprint::console::nvt::{Agreement, Carries, ComPort, Heard, Side, Terminal};
use crate::blueprint::console::serial::{FlowControl, Level, Order, Settings};
use crate::blueprint::console::wires::Watch;
use crate::lease::Pass;

/// As many as CI-tron's SALAD shows a console to.
const CLIENTS_MAX: usize = 25;
/// Typed at once: a page that is pasted.
const CHUNK_BYTES: usize = 4096;
/// So much may wait for a client before nothing more is read of it: what it sends makes answers of about its own length.
const WAITING_BYTES_MAX: usize = 16 * 1024;
/// RFC 854's break has no length of its own: one that every line driver notices.
const BREAK_TIME: Duration = Duration::from_millis(250);
/// Between two attempts to accept, when the system has no descriptor for one.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// How often a line is asked for its wires, while a client of RFC 2217 is there: soon enough for a person who resets a board, and an ioctl each.
const WIRES_EVERY: Duration = Duration::from_millis(100);

/// What is spoken at a port.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// The console's bytes as they are.
    Raw,
    /// Telnet with the line's settings (RFC 2217).
    Rfc2217,
}

/// The ports of one console.
#[derive(Default)]
pub struct Ports(Mutex<BTreeMap<Protocol, Port>>);

struct Port {
    address: SocketAddr,
    fence: u64,
    task: AbortHandle,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ports {
    /// A port that the system chooses; asked again, a lease is told the same. On the loopback, as the API is: nobody logs in to either.
    pub async fn open(&self, hub: &Arc<Hub>, pass: &Pass, protocol: Protocol) -> io::Result<SocketAddr> {
        pass.check().map_err(io::Error::other)?;
        if let Some(port) = self.lock().get(&protocol).filter(|port| port.fence == pass.fence()) {
            return Ok(port.address);
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let desk = Arc::new(Desk {
            hub: Arc::clone(hub),
            pass: pass.clone(),
            protocol,
            clients: Mutex::default(),
            line: Mutex::new(Line::of(hub)),
        });
        let task = tokio::spawn(serve(listener, desk)).abort_handle();
        let mut ports = self.lock();
        ports.insert(protocol, Port { address, fence: pass.fence(), task });
        // Its lease may have ended meanwhile.
        if pass.check().is_err() {
            ports.clear();
        }
        Ok(address)
    }

    /// Nothing is served any more; its clients are hung up on.
    pub fn close(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Protocol, Port>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One port: who is there, and how the line is.
struct Desk {
    hub: Arc<Hub>,
    pass: Pass,
    protocol: Protocol,
    /// In the order in which they came: the first may type.
    clients: Mutex<Vec<u64>>,
    line: Mutex<Line>,
}

/// The line as RFC 2217 can ask for it.
#[derive(Clone, Copy)]
struct Line {
    settings: Settings,
    held: Levels,
}

#[derive(Clone, Copy)]
struct Levels {
    sends_break: Level,
    data_terminal_ready: Level,
    request_to_send: Level,
}

/// The right to hear, and for the first one to type.
struct Client {
    desk: Arc<Desk>,
    number: u64,
}

impl Desk {
    fn enter(self: &Arc<Self>, number: u64) -> Client {
        lock(&self.clients).push(number);
        Client { desk: Arc::clone(self), number }
    }
}

impl Client {
    fn may_type(&self) -> bool {
        lock(&self.desk.clients).first() == Some(&self.number)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let typed = self.may_type();
        lock(&self.desk.clients).retain(|number| *number != self.number);
        if typed && self.desk.protocol == Protocol::Rfc2217 {
            let mut line = lock(&self.desk.line);
            let before = std::mem::replace(&mut *line, Line::of(&self.desk.hub));
            for order in before.orders_back_to(*line) {
                // A line that is away is set when it is opened again.
                let _ = self.desk.hub.tell(order);
            }
        }
    }
}

async fn serve(listener: TcpListener, desk: Arc<Desk>) {
    let mut clients = JoinSet::new();
    for number in 0.. {
        let stream = loop {
            tokio::select! {
                accepted = listener.accept(), if clients.len() < CLIENTS_MAX => match accepted {
                    Ok((stream, _)) => break stream,
                    Err(error) => {
                        tracing::warn!(console = desk.hub.name(), %error, "a client of its port cannot be accepted");
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                    }
                },
                Some(_) = clients.join_next() => {}
            }
        };
        // Each key is a packet of its own.
        let _ = stream.set_nodelay(true);
        clients.spawn(Connection::new(desk.enter(number)).serve(stream));
    }
}

/// One client's connection.
struct Connection {
    wire: Mutex<Wire>,
    client: Client,
    writer: Writer,
    /// There is something to be sent besides the console's bytes.
    changed: Notify,
    /// What was to be sent is sent.
    sent: Notify,
    /// The client takes no bytes now (RFC 2217, FLOWCONTROL-SUSPEND).
    is_suspended: AtomicBool,
    /// What waits for the client is to be dropped (RFC 2217, PURGE-DATA).
    is_purged: AtomicBool,
    watch: Mutex<Watch>,
}

/// How bytes look on the connection.
enum Wire {
    Raw(Vec<u8>),
    Telnet(Terminal),
}

impl Wire {
    fn receive(&mut self, bytes: &[u8], data: &mut Vec<u8>) -> Vec<Heard> {
        match self {
            Wire::Raw(_) => {
                data.extend_from_slice(bytes);
                Vec::new()
            }
            Wire::Telnet(terminal) => terminal.receive(bytes, data),
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        match self {
            Wire::Raw(outgoing) => outgoing.extend_from_slice(bytes),
            Wire::Telnet(terminal) => terminal.send(bytes),
        }
    }

    fn tell(&mut self, command: &ComPort) {
        if let Wire::Telnet(terminal) = self {
            terminal.tell(command);
        }
    }

    fn outgoing(&mut self) -> &mut Vec<u8> {
        match self {
            Wire::Raw(outgoing) => outgoing,
            Wire::Telnet(terminal) => terminal.outgoing(),
        }
    }

    fn takes_commands(&self) -> bool {
        matches!(self, Wire::Telnet(terminal) if terminal.com_port() == Agreement::Yes)
    }
}

impl Connection {
    fn new(client: Client) -> Connection {
        let wire = match client.desk.protocol {
            Protocol::Raw => Wire::Raw(Vec::new()),
            Protocol::Rfc2217 => Wire::Telnet(Terminal::new(Side::Server, Carries::Line)),
        };
        let writer = client.desk.hub.writer(client.desk.pass.clone());
        let [changed, sent] = [Notify::new(), Notify::new()];
        let [is_suspended, is_purged] = [AtomicBool::new(false), AtomicBool::new(false)];
        let (wire, watch) = (Mutex::new(wire), Mutex::default());
        Connection { wire, client, writer, changed, sent, is_suspended, is_purged, watch }
    }

    /// Until either side hangs up, or the lease is over.
    async fn serve(self, stream: TcpStream) {
        let reader = self.client.desk.hub.attach_reader(Since::Now);
        let (from_client, to_client) = stream.into_split();
        // What ended it is the client's own affair.
        tokio::select! {
            _ = self.listen(from_client) => {}
            _ = self.speak(to_client, reader) => {}
            () = self.watch_line() => {}
        }
    }

    /// For ever.
    async fn watch_line(&self) {
        let mut tick = tokio::time::interval(WIRES_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.tell_news();
        }
    }

    fn tell_news(&self) {
        let wires = self.client.desk.hub.wires();
        let mut wire = lock(&self.wire);
        // A client that reads nothing is told how it is once it does.
        if !wire.takes_commands() || wire.outgoing().len() > WAITING_BYTES_MAX {
            return;
        }
        let news = lock(&self.watch).news(wires);
        if !news.is_empty() {
            news.iter().for_each(|news| wire.tell(news));
            self.changed.notify_one();
        }
    }

    async fn listen(&self, mut client: OwnedReadHalf) -> io::Result<()> {
        let (mut chunk, mut data) = ([0; CHUNK_BYTES], Vec::new());
        loop {
            while lock(&self.wire).outgoing().len() > WAITING_BYTES_MAX {
                self.sent.notified().await;
            }
            let length = client.read(&mut chunk).await?;
            if length == 0 {
                return Ok(());
            }
            let heard = lock(&self.wire).receive(&chunk[..length], &mut data);
            for heard in heard {
                self.take(heard).await;
            }
            // There are programs that ask how the wires are as soon as they are connected.
            if !lock(&self.watch).has_begun() {
                self.tell_news();
            }
            self.changed.notify_one();
            if self.client.may_type() && !data.is_empty() {
                self.writer.type_on(Bytes::copy_from_slice(&data)).await.map_err(io::Error::other)?;
            }
            data.clear();
        }
    }

    async fn speak(&self, mut client: OwnedWriteHalf, mut reader: Reader) -> io::Result<()> {
        loop {
            let outgoing = std::mem::take(lock(&self.wire).outgoing());
            client.write_all(&outgoing).await?;
            self.sent.notify_one();
            if self.is_purged.swap(false, Ordering::Relaxed) {
                reader.skip();
            }
            let may_send = !self.is_suspended.load(Ordering::Relaxed);
            tokio::select! {
                // What the client said goes before what comes of it: a suspended client is sent nothing.
                biased;
                () = self.changed.notified() => {}
                piece = reader.next(), if may_send => match piece {
                    Some(Piece::Said { bytes, .. }) => lock(&self.wire).send(&bytes),
                    // A line has no way to tell of it.
                    Some(Piece::Away { .. } | Piece::Back { .. } | Piece::Lost { .. }) => {}
                    None => return Ok(()),
                },
            }
        }
    }

    async fn take(&self, heard: Heard) {
        match heard {
            Heard::Break => {
                self.obey(Order::Break(Level::On));
                tokio::time::sleep(BREAK_TIME).await;
                self.obey(Order::Break(Level::Off));
            }
            Heard::ComPort(ComPort::Suspend) => self.is_suspended.store(true, Ordering::Relaxed),
            Heard::ComPort(ComPort::Resume) => self.is_suspended.store(false, Ordering::Relaxed),
            Heard::ComPort(command) => {
                lock(&self.watch).wants(&command);
                if matches!(command, ComPort::Purge(1 | 3)) {
                    self.is_purged.store(true, Ordering::Relaxed);
                }
                if let Some(order) = Order::of(&command) {
                    self.obey(order);
                }
                let answer = self.answer(command);
                answer.into_iter().for_each(|answer| lock(&self.wire).tell(&answer));
            }
        }
    }

    /// Who may not type may not set the line; who asked is answered with what holds.
    fn obey(&self, order: Order) {
        if !self.client.may_type() || self.client.desk.pass.check().is_err() {
            return;
        }
        match self.client.desk.hub.tell(order) {
            Ok(()) => lock(&self.client.desk.line).follow(order),
            // It has no line that could be set otherwise.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => lock(&self.client.desk.line).follow(order),
            Err(error) => {
                tracing::info!(console = self.client.desk.hub.name(), %error, "its line is not set as a client wants it")
            }
        }
    }

    /// What a server says to a command: what holds now.
    fn answer(&self, command: ComPort) -> Option<ComPort> {
        let line = *lock(&self.client.desk.line);
        let settings = line.settings;
        Some(match command {
            ComPort::Signature(_) => ComPort::Signature(format!("wharf {}", self.client.desk.hub.name()).into_bytes()),
            ComPort::BaudRate(_) => Order::Baud(settings.baud).command(),
            ComPort::DataSize(_) => Order::DataBits(settings.data_bits).command(),
            ComPort::Parity(_) => Order::Parity(settings.parity).command(),
            ComPort::StopSize(_) => Order::StopBits(settings.stop_bits).command(),
            ComPort::Control(value) => ComPort::Control(line.control(value)),
            ComPort::LineStateMask(_) | ComPort::ModemStateMask(_) | ComPort::Purge(_) => command,
            // These are a server's to say.
            ComPort::LineState(_) | ComPort::ModemState(_) | ComPort::Suspend | ComPort::Resume => return None,
        })
    }
}

impl Line {
    fn of(hub: &Hub) -> Line {
        let held = Levels { sends_break: Level::Off, data_terminal_ready: Level::On, request_to_send: Level::On };
        Line { settings: hub.settings().unwrap_or_default(), held }
    }

    fn follow(&mut self, order: Order) {
        self.settings.follow(order);
        match order {
            Order::Break(level) => self.held.sends_break = level,
            Order::DataTerminalReady(level) => self.held.data_terminal_ready = level,
            Order::RequestToSend(level) => self.held.request_to_send = level,
            Order::Baud(_) | Order::DataBits(_) | Order::Parity(_) | Order::StopBits(_) => {}
            Order::FlowControl(_) | Order::DropUnsent => {}
        }
    }

    fn orders(&self) -> [Order; 8] {
        let [baud, data_bits, parity, stop_bits, flow_control] = self.settings.orders();
        let held = [
            Order::Break(self.held.sends_break),
            Order::DataTerminalReady(self.held.data_terminal_ready),
            Order::RequestToSend(self.held.request_to_send),
        ];
        [baud, data_bits, parity, stop_bits, flow_control, held[0], held[1], held[2]]
    }

    /// What differs; nothing, as a rule.
    fn orders_back_to(self, wanted: Line) -> Vec<Order> {
        let pairs = self.orders().into_iter().zip(wanted.orders());
        pairs.filter(|(is, wanted)| is != wanted).map(|(_, wanted)| wanted).collect()
    }

    /// The answer to SET-CONTROL: the value that holds in the group of the one that was sent (RFC 2217, section 3).
    fn control(&self, value: u8) -> u8 {
        let either = |level, on, off| if level == Level::On { on } else { off };
        match value {
            4..=6 => either(self.held.sends_break, 5, 6),
            7..=9 => either(self.held.data_terminal_ready, 8, 9),
            10..=12 => either(self.held.request_to_send, 11, 12),
            // Flow control in the other direction is not apart from it here.
            13..=16 => self.flow_control() + 13,
            _ => self.flow_control(),
        }
    }

    fn flow_control(&self) -> u8 {
        match self.settings.flow_control {
            FlowControl::None => 1,
            FlowControl::Software => 2,
            FlowControl::Hardware => 3,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
