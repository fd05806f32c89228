//! TFTP for firmware: the ring of sockets around [`transfer`].
//!
//! ```text
//!  port 69 ─► decode ─► desk ─► one task per request, on a socket of its own (our address that was asked, ephemeral port)
//!               │         │        look ─► open content ─► options agreed ─► OACK ─► ACK 0 ─► open (counts) ─► DATA …
//!               │         │          │           │         none to agree on ──────────────► open (counts) ─► DATA …
//!               ▼         ▼          ▼           ▼
//!           ERROR 1,4,5  ERROR 0   ERROR 1,2   ERROR 0
//! ```
//! UEFI firmware asks once for the size, takes the OACK, aborts, and asks again: that is one access, not two, because an
//! access counts when the offer is taken. Reads only; a write request gets ERROR 2.
//!
//! That is our own engine; [`Engine`] names another.

mod crate_engine;
mod desk;
pub mod packet;
mod socket;
#[cfg(test)]
mod tests;
pub mod transfer;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use self::desk::{Admission, Caps, Desk, Notice, Ticket};
use self::packet::{ErrorCode, Packet, Request};
use self::socket::{Arrival, Segmentation};
use self::transfer::{Burst, Event, Limits, Terms, Transfer};
use crate::content::{Content, ContentError, Reader};
use crate::door::{Door, Transport};
use crate::namespace::{Access, Caller, Namespaces, Opened, Outcome, Protocol, Refusal};
use crate::net::Net;

/// RFC 2347 allows requests of 512 octets; the rest is room for padding.
const INBOX_BYTES: usize = 2048;
/// What a namespace's key stands behind, as in HTTP's paths.
const KEY_PREFIX: &str = "/_/n/";

/// What moves the blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// Ours.
    #[default]
    Own,
    /// The crate of this name.
    AsyncTftp,
}

/// Where and how generously to serve.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which engine serves.
    pub engine: Engine,
    /// The network the sockets are made in.
    pub net: Net,
    /// Serve this link only.
    pub interface: Option<String>,
    /// Port 0 takes any free one.
    pub listen: SocketAddr,
    /// `Some`: a port besides the server's own, where only what is exposed at it is read.
    pub exposed_at: Option<u16>,
    /// The largest block granted. Default 1468: with its headers a block fills an Ethernet packet of 1500 bytes. Larger blocks
    /// travel as fragments, which much firmware cannot put together.
    pub block_size_max: u16,
    /// The longest window granted. Default 64: what one UDP_SEGMENT send holds, and about what a gigabit switch port buffers.
    pub window_size_max: u16,
    /// Bytes in the windows of all transfers of one address. Default 1 MiB: 16 transfers with windows of 44 blocks.
    pub window_bytes_max_per_peer: usize,
    /// Default 1024: a rack that is switched on at once, each DUT with one transfer.
    pub transfer_count_max: usize,
    /// Default 16: firmware runs one, a second appears while the first waits for its end.
    pub transfer_count_max_per_peer: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            engine: Engine::Own,
            net: Net::host(),
            interface: None,
            listen: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 69),
            exposed_at: None,
            block_size_max: 1468,
            window_size_max: 64,
            window_bytes_max_per_peer: 1024 * 1024,
            transfer_count_max: 1024,
            transfer_count_max_per_peer: 16,
        }
    }
}

impl Config {
    /// What names are asked for through.
    fn door(&self) -> Door {
        Door { port: self.exposed_at, transport: Transport::Clear }
    }
}

/// A running TFTP server. Dropping it stops every transfer.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    drain: oneshot::Sender<()>,
    listener: AbortOnDropHandle<()>,
}

/// Starts serving `namespaces`.
pub async fn start(config: Config, namespaces: Namespaces<Content>) -> io::Result<Server> {
    let socket = socket::listen(&config.net, config.listen, config.interface.as_deref())?;
    let address = socket.local_addr()?;
    let desk = Desk::new(Caps {
        transfers: config.transfer_count_max,
        transfers_per_peer: config.transfer_count_max_per_peer,
        window_bytes_per_peer: config.window_bytes_max_per_peer,
    });
    let (drain, drained) = oneshot::channel();
    let listener = match config.engine {
        Engine::Own => {
            let ring = Arc::new(Ring { config, namespaces });
            let listener = Listener { socket, address, desk, ring, tasks: JoinSet::new() };
            AbortOnDropHandle::new(tokio::spawn(listener.run(drained)))
        }
        Engine::AsyncTftp => crate_engine::start(&config, socket.into_std()?, desk, namespaces, drained)?,
    };
    Ok(Server { address, drain, listener })
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no new request, and returns when the running transfers have ended. The crate's engine cuts them off: it cannot do the one
    /// without the other.
    pub async fn drain(self) {
        let _ = self.drain.send(());
        let _ = self.listener.await;
    }
}

/// What all transfers share.
struct Ring {
    config: Config,
    namespaces: Namespaces<Content>,
}

struct Listener {
    socket: UdpSocket,
    address: SocketAddr,
    desk: Arc<Desk>,
    ring: Arc<Ring>,
    /// Dropped with the listener, and every transfer with it.
    tasks: JoinSet<()>,
}

impl Listener {
    async fn run(mut self, mut drained: oneshot::Receiver<()>) {
        let mut inbox = vec![0; INBOX_BYTES];
        loop {
            tokio::select! {
                biased;
                asked = &mut drained => match asked {
                    Ok(()) => break,
                    // The server was dropped, and this task is about to be.
                    Err(_) => return,
                },
                Some(ended) = self.tasks.join_next(), if !self.tasks.is_empty() => report_panic(ended),
                arrival = socket::receive(&self.socket, self.address, &mut inbox) => match arrival {
                    Ok(arrival) => self.take(arrival, &inbox[..arrival.bytes]).await,
                    Err(error) => {
                        tracing::warn!(%error, "the TFTP listener could not receive");
                        // 100 ms: an interface that is down fails at once, again and again.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
        let Listener { socket, mut tasks, .. } = self;
        drop(socket);
        while let Some(ended) = tasks.join_next().await {
            report_panic(ended);
        }
    }

    async fn take(&mut self, arrival: Arrival, datagram: &[u8]) {
        match packet::decode(datagram) {
            Ok(Packet::Read(request)) => self.admit(arrival, datagram, request).await,
            Ok(Packet::Write(request)) => {
                let text = format!("{} cannot be written: this server is read-only", request.name);
                self.answer(arrival, ErrorCode::AccessViolation, &text).await;
            }
            Ok(Packet::Data { .. } | Packet::Ack { .. } | Packet::OptionAck(_)) => {
                self.answer(arrival, ErrorCode::UnknownTransfer, "no transfer runs here; send a read request").await;
            }
            // An error is never answered (RFC 1350 section 7), or two servers could talk to each other for ever.
            Ok(Packet::Error { code, text }) => tracing::debug!(peer = %arrival.peer, code, text, "stray TFTP error"),
            Err(malformed) => self.answer(arrival, malformed.code(), &malformed.to_string()).await,
        }
    }

    async fn admit(&mut self, arrival: Arrival, datagram: &[u8], request: Request) {
        match self.desk.admit(arrival.peer, datagram, Instant::now()) {
            Admission::Granted(ticket) => {
                let ring = Arc::clone(&self.ring);
                self.tasks.spawn(async move { ring.serve(arrival, &request, ticket).await });
            }
            Admission::Repeated => tracing::debug!(peer = %arrival.peer, name = request.name, "TFTP request repeated"),
            Admission::TooMany(sentence) => self.answer(arrival, ErrorCode::NotDefined, &sentence).await,
        }
    }

    /// Answers what becomes no transfer.
    async fn answer(&self, arrival: Arrival, code: ErrorCode, text: &str) {
        tracing::debug!(peer = %arrival.peer, code = code.number(), text, "TFTP datagram refused");
        if !self.address.ip().is_unspecified() {
            return send_error(&self.socket, arrival.peer, code, text).await;
        }
        match self.ring.answer_socket(arrival) {
            Ok(socket) => send_error(&socket, arrival.peer, code, text).await,
            Err(error) => tracing::warn!(peer = %arrival.peer, %error, "no socket to refuse a TFTP datagram from"),
        }
    }
}

impl Ring {
    async fn serve(&self, arrival: Arrival, request: &Request, mut ticket: Ticket) {
        let (peer, name) = (arrival.peer, request.name.as_str());
        let socket = match self.answer_socket(arrival) {
            Ok(socket) => socket,
            Err(error) => return tracing::warn!(%peer, name, %error, "no socket for a TFTP transfer"),
        };
        let asked = Asked { ring: self, peer, name };
        let begun = tokio::select! {
            biased;
            () = superseded(&mut ticket) => return tracing::debug!(%peer, name, "TFTP request superseded"),
            begun = asked.begin() => begun,
        };
        match begun {
            Ok(reader) => {
                let terms = ticket.agree(|window_bytes_max| self.agree(request, reader.size(), window_bytes_max));
                tracing::debug!(%peer, name, ?terms, "TFTP transfer");
                let transfer = Transfer::new(terms.clone(), request.mode, reader.size());
                let mut running = Running { asked, socket, reader, transfer, access: None, ticket };
                if terms.answer.is_empty() {
                    running.open();
                }
                running.run().await;
            }
            Err((code, text)) => {
                tracing::debug!(%peer, name, code = code.number(), text, "TFTP request refused");
                send_error(&socket, peer, code, &text).await;
            }
        }
    }

    fn agree(&self, request: &Request, size: Option<u64>, window_bytes_max: usize) -> Terms {
        let Config { block_size_max, window_size_max, .. } = self.config;
        Terms::agree(request, &Limits { block_size_max, window_size_max, window_bytes_max }, size)
    }

    fn answer_socket(&self, arrival: Arrival) -> io::Result<UdpSocket> {
        socket::answer_from(&self.config.net, arrival.asked, arrival.peer, self.config.interface.as_deref())
    }
}

/// One name asked for by one peer.
#[derive(Clone, Copy)]
struct Asked<'a> {
    ring: &'a Ring,
    peer: SocketAddr,
    name: &'a str,
}

impl Asked<'_> {
    /// The content's reader, without counting an access yet.
    async fn begin(&self) -> Result<Reader, (ErrorCode, String)> {
        let (caller, name) = caller(self.peer, self.name);
        let door = self.ring.config.door();
        self.ring.namespaces.admits(caller, Protocol::Tftp, name, door).map_err(refused)?;
        let content = self.ring.namespaces.look(caller, Protocol::Tftp, name, Instant::now()).map_err(refused)?;
        match content.open_as(name).await {
            Ok(reader) => Ok(reader),
            Err(error) => {
                // The job's log hears of it as of any access that failed.
                let text = error.to_string();
                self.open().map_err(refused)?.access.end(Outcome::Failed(text.clone()));
                Err((ErrorCode::NotDefined, text))
            }
        }
    }

    fn open(&self) -> Result<Opened<Content>, Refusal> {
        let (caller, name) = caller(self.peer, self.name);
        self.ring.namespaces.open(caller, Protocol::Tftp, name, Instant::now())
    }
}

/// `/_/n/<key>/rest` is `/rest` of that key's namespace; any other name belongs to the peer's address.
fn caller(peer: SocketAddr, name: &str) -> (Caller<'_>, &str) {
    let address: IpAddr = peer.ip().to_canonical();
    let keyed = name.strip_prefix(KEY_PREFIX).and_then(|rest| rest.find('/').map(|end| rest.split_at(end)));
    match keyed {
        Some((key, name)) => (Caller::Key(key, address), name),
        None => (Caller::Address(address), name),
    }
}

/// A transfer with its socket and content.
struct Running<'a> {
    asked: Asked<'a>,
    socket: UdpSocket,
    reader: Reader,
    transfer: Transfer,
    access: Option<Access>,
    ticket: Ticket,
}

/// Whether a transfer goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    On,
    Over,
}

impl Running<'_> {
    async fn run(mut self) {
        // 4 bytes would do for an ACK, errors are longer.
        let mut inbox = [0; INBOX_BYTES];
        let mut out = Vec::new();
        let mut segmentation = Segmentation::Kernel;
        let mut reading: Option<BoxFuture<'static, Result<Bytes, ContentError>>> = None;
        let alarm = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(alarm);
        let mut armed: Option<Instant> = None;
        loop {
            if self.access.as_ref().is_some_and(|access| !access.liveness().is_live()) {
                self.transfer.fail(ErrorCode::AccessViolation, "the job that published this has ended".to_owned());
            }
            let step = self.hear_events();
            while let Some(burst) = self.transfer.poll_transmit(&mut out, Instant::now()) {
                socket::send(&self.socket, self.asked.peer, burst, &out, &mut segmentation).await;
            }
            if step == Step::Over {
                return;
            }
            if reading.is_none() {
                reading = self.read_on();
            }
            // The alarm is moved only to an earlier time: most answers come long before it, and each move costs a lock.
            if let Some(deadline) = self.transfer.poll_timeout()
                && armed.is_none_or(|armed| deadline < armed)
            {
                alarm.as_mut().reset(deadline.into());
                armed = Some(deadline);
            }
            tokio::select! {
                biased;
                notice = self.ticket.notice() => match notice {
                    Notice::Repeated => self.transfer.handle_repeated_request(),
                    Notice::Superseded => return self.end(Outcome::Aborted("asked again from the same port".to_owned())),
                },
                Some(read) = pending(&mut reading) => {
                    reading = None;
                    match read {
                        Ok(bytes) => self.transfer.handle_data(bytes),
                        Err(error) => self.transfer.fail(ErrorCode::NotDefined, error.to_string()),
                    }
                }
                received = self.socket.recv_from(&mut inbox) => match received {
                    Ok((bytes, source)) => self.take(source, &inbox[..bytes]).await,
                    Err(error) => tracing::debug!(peer = %self.asked.peer, %error, "TFTP socket"),
                },
                () = alarm.as_mut(), if armed.is_some() => {
                    armed = None;
                    self.transfer.handle_timeout(Instant::now());
                }
            }
        }
    }

    async fn take(&mut self, source: SocketAddr, datagram: &[u8]) {
        if source == self.asked.peer {
            return self.transfer.handle_packet(datagram, Instant::now());
        }
        // RFC 1350 section 4: a stranger is told so, and the transfer goes on. An error is never answered.
        if !matches!(packet::decode(datagram), Ok(Packet::Error { .. })) {
            send_error(&self.socket, source, ErrorCode::UnknownTransfer, "this port serves another client").await;
        }
    }

    fn hear_events(&mut self) -> Step {
        let mut step = Step::On;
        while let Some(event) = self.transfer.poll_event() {
            match event {
                Event::Accepted => {
                    self.ticket.answered();
                    self.open();
                }
                Event::Took(bytes) => {
                    self.ticket.answered();
                    if let Some(access) = &mut self.access {
                        access.took(bytes, Instant::now());
                    }
                }
                Event::Ended(outcome) => {
                    self.end(outcome);
                    step = Step::Over;
                }
            }
        }
        step
    }

    /// Counts the access; its name may have expired since it was looked up.
    fn open(&mut self) {
        match self.asked.open() {
            Ok(opened) => self.access = Some(opened.access),
            Err(refusal) => {
                let (code, text) = refused(refusal);
                self.transfer.fail(code, text);
            }
        }
    }

    fn end(&mut self, outcome: Outcome) {
        tracing::debug!(peer = %self.asked.peer, name = self.asked.name, ?outcome, "TFTP transfer ended");
        if let Some(access) = self.access.take() {
            access.end(outcome);
        }
    }

    fn read_on(&mut self) -> Option<BoxFuture<'static, Result<Bytes, ContentError>>> {
        let wanted = self.transfer.poll_wanted()?;
        let reader = self.reader.clone();
        Some(Box::pin(async move { reader.read_at(wanted.offset, wanted.length).await }))
    }
}

/// Waits for the desk to stop this request; repetitions change nothing while its content is being opened.
async fn superseded(ticket: &mut Ticket) {
    while ticket.notice().await == Notice::Repeated {}
}

async fn pending<T>(future: &mut Option<BoxFuture<'static, T>>) -> Option<T> {
    match future {
        Some(future) => Some(future.await),
        None => None,
    }
}

fn refused(refusal: Refusal) -> (ErrorCode, String) {
    let code = match refusal {
        Refusal::UnknownCaller | Refusal::NoSuchName => ErrorCode::FileNotFound,
        Refusal::Exhausted { .. }
        | Refusal::FirstReadOver { .. }
        | Refusal::Expired { .. }
        | Refusal::Busy { .. }
        | Refusal::NotRecorded { .. }
        | Refusal::TlsRequired { .. }
        | Refusal::TlsFailed { .. }
        | Refusal::NotLedOut { .. } => ErrorCode::AccessViolation,
    };
    (code, refusal.to_string())
}

async fn send_error(socket: &UdpSocket, peer: SocketAddr, code: ErrorCode, text: &str) {
    let mut out = Vec::new();
    packet::encode_error(&mut out, code, text);
    let burst = Burst { segment_bytes: out.len() };
    socket::send(socket, peer, burst, &out, &mut Segmentation::Single).await;
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a TFTP transfer panicked; the server goes on");
    }
}
