//! One console, open for as long as it exists: whoever holds its machine, or nobody, what it says is kept.
//!
//! ```text
//!            ┌──────────────── it ends, or fails ◄──────────┐
//!  away ─────┤ 0.25 s, 0.5 s, … 10 s; at once when asked    │
//!   ▲        └─► driver.open ─► open ─┬─ reads ─► Log ─► readers, a lease's session
//!   └──────────── refused ◄───┘       ├─ SALAD's words ─► Desk ─► pong
//!                                     └─ typed, under its pass ─► the driver
//! ```
//! Nobody else opens a driver: leases come and go, the line stays. A gap in what is heard is a mark in the log.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::desk::{Answer, Desk};
use super::log::{Extent, Log, Since, State};
use super::reader::Reader;
use super::salad::{Listener, PONG};
use super::session::Session;
use crate::blueprint::console::serial::{self, Settings};
use crate::blueprint::console::wires::Wires;
use crate::blueprint::console::{Console, ConsoleStream};
use crate::lease::{Pass, Revoked};

/// How the log says that a stream ended without a word.
pub(super) const CLOSED: &str = "the console closed";
/// Console bytes read at once: a serial line fills a fraction of it; a virtual one that floods gives few large pieces, not many small.
const READ_BYTES_MAX: usize = 64 * 1024;
/// The first reads are of this size; it doubles when one is full.
const READ_BYTES: usize = 4 * 1024;
/// A console that said this many pieces within a second gathers the next ones for a moment: a line at 115,200 baud comes in pieces of a few
/// bytes, and 100 such lines are 100,000 pieces a second.
const PIECES_AT_ONCE: u32 = 200;
const GATHER: Duration = Duration::from_millis(4);
/// The first pause before a console is opened again: a stream that broke is often there at once.
const OPEN_AGAIN: Duration = Duration::from_millis(250);
/// The longest, when nobody waits for it. A job that does asks more often.
const OPEN_AGAIN_MAX: Duration = Duration::from_secs(10);
/// A console that stayed open for less was not back: the pauses go on growing where they were.
const OPEN_STEADY: Duration = Duration::from_secs(10);
/// One attempt may take this long: TCP alone would ask a host that is gone for two minutes.
const OPEN_CALL: Duration = Duration::from_secs(10);
/// A chunk that the console does not take within this time is lost. A lease's end waits for it, so it is short.
const TYPING_TIME: Duration = Duration::from_secs(2);
/// Typed chunks that wait for a console that does not take them.
const TYPED_CHUNKS_MAX: usize = 64;
/// Questions that wait for the task: one for each lease that begins, or ends a boot.
const ORDERS_MAX: usize = 16;

/// One console. Dropping it closes the line, as the farm's end does; its log stays.
pub struct Hub {
    name: String,
    log: Arc<Log>,
    driver: Arc<dyn Console>,
    orders: mpsc::Sender<Order>,
    typed: mpsc::Sender<Typed>,
    task: AbortHandle,
}

/// "Read everything that lies there; open the line if it is away." Answered when that is done.
struct Order(oneshot::Sender<Result<(), String>>);

/// What is typed, and by which right; `None`: by ours.
pub(super) struct Typed {
    bytes: Bytes,
    pass: Option<Pass>,
}

/// Types on a console for as long as its lease lasts.
#[derive(Clone)]
pub struct Writer {
    typed: mpsc::Sender<Typed>,
    pass: Pass,
}

/// Why nothing was typed.
#[derive(Debug, thiserror::Error)]
pub enum TypeError {
    /// Its lease is over.
    #[error(transparent)]
    Revoked(#[from] Revoked),
    /// The machine is gone.
    #[error("the console is no more")]
    Gone,
}

impl Hub {
    /// Opens a console, and keeps it open. Called from within a tokio runtime.
    pub(super) fn new(name: &str, log: Arc<Log>, driver: Arc<dyn Console>, desk: Arc<Desk>) -> Hub {
        let (orders, orders_inbox) = mpsc::channel(ORDERS_MAX);
        let (typed, typed_inbox) = mpsc::channel(TYPED_CHUNKS_MAX);
        let line = Line {
            name: name.to_owned(),
            log: Arc::clone(&log),
            desk,
            listener: Listener::default(),
            answers: typed.downgrade(),
            buffer: vec![0; READ_BYTES],
            second: (Instant::now(), 0),
            orders: orders_inbox,
            asked: Vec::new(),
        };
        let task = tokio::spawn(line.keep(Arc::clone(&driver), typed_inbox)).abort_handle();
        Hub { name: name.to_owned(), log, driver, orders, typed, task }
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is heard.
    pub fn state(&self) -> State {
        self.log.state()
    }

    /// What its log holds.
    pub fn extent(&self) -> Extent {
        self.log.extent()
    }

    /// A reader, for anybody. It is served from the log, and holds nothing up.
    pub fn attach_reader(&self, since: Since) -> Reader {
        self.log.attach(since)
    }

    /// Types for a lease; several writers of one lease take turns by the chunk.
    pub fn writer(&self, pass: Pass) -> Writer {
        Writer { typed: self.typed.clone(), pass }
    }

    /// The console as a lease has it, from now on. What was said before is not heard. The error: it is away, and why.
    pub async fn open(&self, pass: &Pass) -> io::Result<Session> {
        self.driver.begins();
        self.open_from(pass, None).await
    }

    /// The same from an offset on, for a lease that was there before a restart.
    pub async fn open_from(&self, pass: &Pass, position: Option<u64>) -> io::Result<Session> {
        pass.check().map_err(io::Error::other)?;
        self.settle().await.map_err(io::Error::other)?;
        let reader = self.log.attach_lease(position).map_err(io::Error::other)?;
        Ok(Session::new(reader, self.writer(pass.clone())))
    }

    /// Returns when everything is read that lay there, after an attempt to open the line if it is away.
    pub async fn settle(&self) -> Result<(), String> {
        let gone = || "the console is no more".to_owned();
        let (answer, settled) = oneshot::channel();
        self.orders.send(Order(answer)).await.map_err(|_| gone())?;
        settled.await.unwrap_or_else(|_| Err(gone()))
    }

    /// How its line is set, if it has one that we set.
    pub(super) fn settings(&self) -> Option<Settings> {
        self.driver.settings()
    }

    /// What its line says of itself; as a line without wires, if it does not.
    pub(super) fn wires(&self) -> Wires {
        self.driver.wires().unwrap_or_default()
    }

    /// Tells its line something beside the bytes.
    pub(super) fn tell(&self, order: serial::Order) -> io::Result<()> {
        self.driver.tell(order)
    }

    pub(super) fn is_driven_by(&self, driver: &Arc<dyn Console>) -> bool {
        Arc::ptr_eq(&self.driver, driver)
    }

    /// Nothing comes any more, for a reason.
    pub(super) fn close(&self, reason: &str) {
        self.task.abort();
        self.log.is_over(Timestamp::now(), reason);
    }

    pub(super) fn look_after(&self, now: Timestamp) {
        self.log.look_after(now);
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.close("the farm was stopped");
    }
}

impl Writer {
    /// Types. Waits for room in the queue; what the console does not take within two seconds is lost, as on a real line.
    pub async fn type_on(&self, bytes: Bytes) -> Result<(), TypeError> {
        self.check()?;
        self.typed.send(self.typed(bytes)).await.map_err(|_| TypeError::Gone)
    }

    pub(super) fn check(&self) -> Result<(), Revoked> {
        self.pass.check()
    }

    pub(super) fn queue(&self) -> mpsc::Sender<Typed> {
        self.typed.clone()
    }

    pub(super) fn typed(&self, bytes: Bytes) -> Typed {
        Typed { bytes, pass: Some(self.pass.clone()) }
    }
}

/// The task's side.
struct Line {
    name: String,
    log: Arc<Log>,
    desk: Arc<Desk>,
    listener: Listener,
    /// Weak, so that the queue ends with its hub.
    answers: mpsc::WeakSender<Typed>,
    buffer: Vec<u8>,
    /// The second that began then, and its pieces.
    second: (Instant, u32),
    orders: mpsc::Receiver<Order>,
    /// Orders that wait for their answer.
    asked: Vec<Order>,
}

impl Line {
    async fn keep(mut self, driver: Arc<dyn Console>, mut typed: mpsc::Receiver<Typed>) {
        let mut pause = OPEN_AGAIN;
        loop {
            let opened = match timeout(OPEN_CALL, driver.open()).await {
                Ok(opened) => opened.map_err(|error| error.to_string()),
                Err(_) => Err(format!("nothing answers for it within {} s", OPEN_CALL.as_secs())),
            };
            match opened {
                Ok(stream) => {
                    self.log.is_open(Timestamp::now());
                    self.answer(Ok(()));
                    let since = Instant::now();
                    let reason = self.use_it(stream, &mut typed).await;
                    tracing::debug!(console = self.name, reason, "the console went away");
                    self.log.is_away(Timestamp::now(), &reason);
                    self.listener.forget();
                    if since.elapsed() >= OPEN_STEADY {
                        pause = OPEN_AGAIN;
                    }
                }
                Err(reason) => {
                    self.log.is_away(Timestamp::now(), &reason);
                    self.answer(Err(reason));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(OPEN_AGAIN_MAX),
                order = self.orders.recv() => match order {
                    Some(order) => self.asked.push(order),
                    None => return,
                }
            }
        }
    }

    /// To all who asked while it was tried.
    fn answer(&mut self, answer: Result<(), String>) {
        while let Ok(order) = self.orders.try_recv() {
            self.asked.push(order);
        }
        for Order(asked) in self.asked.drain(..) {
            // Whoever does not wait any more needs no answer.
            let _ = asked.send(answer.clone());
        }
    }

    /// Until it goes away; gives the reason.
    async fn use_it(&mut self, stream: Box<dyn ConsoleStream>, typed: &mut mpsc::Receiver<Typed>) -> String {
        let (mut reader, mut writer) = tokio::io::split(stream);
        // What was typed while it was away was typed to nobody.
        while typed.try_recv().is_ok() {}
        tokio::select! {
            reason = self.hear(&mut reader) => reason,
            reason = type_on_it(&mut writer, typed) => reason,
        }
    }

    async fn hear(&mut self, reader: &mut (impl AsyncRead + Unpin)) -> String {
        let mut next_piece: Option<tokio::time::Instant> = None;
        loop {
            self.log.room().await;
            if let Some(at) = next_piece.take() {
                tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    Some(order) = self.orders.recv() => self.asked.push(order),
                }
            }
            let read = tokio::select! {
                biased;
                read = reader.read(&mut self.buffer) => read,
                // Nothing lies there: that is what they wait for.
                () = next_order(&mut self.orders, &mut self.asked) => {
                    self.answer(Ok(()));
                    continue;
                }
            };
            let length = match read {
                Ok(0) => return CLOSED.into(),
                Ok(length) => length,
                Err(error) => return error.to_string(),
            };
            self.heard(length);
            // A full buffer has gathered enough: a flood is read as fast as it comes.
            let is_full = length == self.buffer.len();
            if is_full && length < READ_BYTES_MAX {
                self.buffer.resize(length * 2, 0);
            }
            if !is_full && self.asked.is_empty() && self.talks_on() {
                next_piece = Some(tokio::time::Instant::now() + GATHER);
            }
        }
    }

    fn heard(&mut self, length: usize) {
        let (bytes, now) = (Bytes::copy_from_slice(&self.buffer[..length]), Timestamp::now());
        let words = self.listener.feed(&bytes);
        self.log.said(bytes, now);
        for word in words {
            if self.desk.heard(&self.name, word, now) == Answer::Pong
                && let Some(typed) = self.answers.upgrade()
            {
                // A console that takes nothing is not answered.
                let _ = typed.try_send(Typed { bytes: Bytes::from_static(PONG), pass: None });
            }
        }
    }

    /// Whether it said so many pieces in this second that the next ones should come together.
    fn talks_on(&mut self) -> bool {
        if self.second.0.elapsed() >= Duration::from_secs(1) {
            self.second = (Instant::now(), 0);
        }
        self.second.1 += 1;
        self.second.1 > PIECES_AT_ONCE
    }
}

/// Returns when there is an order.
async fn next_order(orders: &mut mpsc::Receiver<Order>, asked: &mut Vec<Order>) {
    if asked.is_empty() {
        match orders.recv().await {
            Some(order) => asked.push(order),
            None => std::future::pending().await,
        }
    }
}

/// Ends only when the console cannot be written.
async fn type_on_it(console: &mut (impl AsyncWrite + Unpin), typed: &mut mpsc::Receiver<Typed>) -> String {
    while let Some(Typed { bytes, pass }) = typed.recv().await {
        let _in_flight = match &pass {
            None => None,
            Some(pass) => match pass.enter().await {
                Ok(in_flight) => Some(in_flight),
                // After the lease what was typed too late is dropped.
                Err(Revoked) => continue,
            },
        };
        if let Ok(Err(error)) = timeout(TYPING_TIME, console.write_all(&bytes)).await {
            return format!("it takes no input: {error}");
        }
    }
    std::future::pending().await
}
