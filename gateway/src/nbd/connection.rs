//! One connection: the ring around [`Handshake`] and [`Export`].
//!
//! ```text
//!  greeting ─► handshake, perhaps TLS (wire.rs), 10 s ─► attached ─► loop { requests ─► works (the disk) ─► answers ─► socket } ─► one end:
//!     goodbye → complete   broken off → aborted   job ended, disk reset, DUT switched off, stalled, garbage → failed
//! ```
//! One task does all of it: a read that the page cache holds is answered without waking another thread. Nothing is read from the socket
//! while as much as allowed is in flight, so that a client that sends and does not listen stops at its own send buffer.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::desk::Place;
use super::export::{Done, End, Export, Output, Refused, Step, Ticket, Work};
use super::handshake::{self, Agreed, Handshake, Step as Haggled};
use super::message::Errno;
use super::wire::Wire;
use super::{Attach, Attached, Reach, Ring};
use crate::content::disk::{Attachment, DiskError};
use crate::door::Transport;
use crate::namespace::{Caller, Outcome, Protocol, Refusal};
use crate::tls::Inside;

/// How a connection ends that nobody ended: the machine lost its power, or its program was killed.
pub(super) const BROKEN_OFF: &str = "the connection ended without a goodbye";

/// What is read from a socket at least at once, and what a buffer grows by at most before bytes fill it: the length of a request that
/// nobody sends the data of takes no memory.
const READ_BYTES: usize = 256 * 1024;
/// 64 slices of one send: a chunk's head and its data, for 32 answers.
const SLICES_MAX: usize = 64;
/// How often it is asked whether the job still runs and the peer still moves.
const TICK: Duration = Duration::from_secs(1);
/// 32 MiB of one CACHE request are read ahead; it is a hint, and a disk is larger than memory.
const CACHE_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Serves one client to its end.
pub(super) async fn serve(place: Place, stream: TcpStream, ring: Arc<Ring>) {
    let peer = place.peer();
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "an NBD connection was gone at once");
        return;
    }
    let mut input = BytesMut::new();
    let haggled = tokio::select! {
        haggled = tokio::time::timeout(ring.config.handshake_timeout, haggle(stream, &mut input, &ring, &place)) => haggled,
        _ = place.closing() => return,
    };
    let (wire, attached, agreed) = match haggled {
        Ok(Ok(agreed)) => agreed,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "no NBD export was chosen"),
        Err(_) => return tracing::debug!(%peer, "an NBD handshake took too long"),
    };
    place.attached(attached.namespace);
    tracing::debug!(%peer, ?agreed, "NBD attached");
    let Attached { attach, attachment, .. } = attached;
    let stall_ticks = (ring.config.stall_timeout.as_secs() / TICK.as_secs()).max(1);
    let mut connection = Connection {
        input,
        out: Output::default(),
        export: Export::new(agreed),
        works: FuturesUnordered::new(),
        attachment: Arc::new(attachment),
        attach: Arc::clone(&attach),
        still_ticks: 0,
        stall_ticks,
        wire,
    };
    let outcome = tokio::select! {
        outcome = connection.run() => outcome,
        reason = place.closing() => Outcome::Failed(reason.to_owned()),
    };
    connection.wire.close();
    tracing::debug!(%peer, ?outcome, "NBD detached");
    attach.ended(outcome);
}

/// From the greeting to an export, in clear for as long as the client does not ask for TLS.
async fn haggle(
    mut stream: TcpStream,
    input: &mut BytesMut,
    ring: &Ring,
    place: &Place,
) -> io::Result<(Wire, Attached, Agreed)> {
    let peer = place.peer();
    let offered = if ring.config.tls.is_some() { handshake::Tls::Offered } else { handshake::Tls::Absent };
    let mut out = Vec::new();
    let mut handshake = Handshake::begin(offered, &mut out);
    let reach = Reach { ring, peer, transport: Transport::Clear };
    if let Some((attached, agreed)) = choose(&mut handshake, &mut stream, input, &mut out, &reach).await? {
        return Ok((Wire::Clear(stream), attached, agreed));
    }
    let Some(tls) = ring.config.tls.as_ref().filter(|_| input.is_empty()) else {
        return Err(io::Error::other("something came in clear after STARTTLS"));
    };
    let secured = tls.accept(stream, peer, Inside::Nbd).await;
    let mut stream = secured.map_err(|failure| {
        let refusal = Refusal::TlsFailed { reason: failure.to_string() };
        ring.namespaces.report(Caller::Address(peer), Protocol::Nbd, "STARTTLS", &refusal);
        io::Error::other(failure)
    })?;
    let reach = Reach { ring, peer, transport: Transport::Tls };
    match choose(&mut handshake, &mut stream, input, &mut out, &reach).await? {
        Some((attached, agreed)) => Ok((Wire::from(stream), attached, agreed)),
        None => Err(io::Error::other("STARTTLS came twice")),
    }
}

/// Goes on until an export is chosen; `None`: until the client asked for TLS.
async fn choose(
    handshake: &mut Handshake,
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    input: &mut BytesMut,
    out: &mut Vec<u8>,
    reach: &Reach<'_>,
) -> io::Result<Option<(Attached, Agreed)>> {
    loop {
        let step = handshake.advance(input, out, reach);
        stream.write_all(out).await?;
        stream.flush().await?;
        out.clear();
        match step {
            Haggled::Attached(attached, agreed) => return Ok(Some((attached, agreed))),
            Haggled::StartTls => return Ok(None),
            Haggled::Closed(reason) => return Err(io::Error::other(reason)),
            Haggled::Wanted(_) => {
                if stream.read_buf(input).await? == 0 {
                    return Err(io::Error::other("the client went away"));
                }
            }
        }
    }
}

type Finished = (Ticket, u64, Result<Done, Refused>);

struct Connection {
    input: BytesMut,
    out: Output,
    export: Export,
    works: FuturesUnordered<BoxFuture<'static, Finished>>,
    attachment: Arc<Attachment>,
    attach: Arc<Attach>,
    /// Ticks since a byte moved that one side waits for.
    still_ticks: u64,
    stall_ticks: u64,
    /// Dropped last: a client that sees it close finds its place at the disk free.
    wire: Wire,
}

/// What happened.
enum Event {
    Finished(Finished),
    Readable,
    Writable,
    Tick,
}

impl Connection {
    async fn run(&mut self) -> Outcome {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let step = self.take_requests();
            let is_something_finished = self.finish_ready();
            let sent = match self.send() {
                Ok(sent) => sent,
                Err(error) => return Outcome::Aborted(error.to_string()),
            };
            let (wanted, is_over) = match step {
                Step::Closed(End::Garbage) => {
                    return Outcome::Failed("the client sent something that is no request".to_owned());
                }
                Step::Closed(End::Disconnected) => (0, true),
                // Something moved: there may be room now.
                Step::Full if is_something_finished || sent > 0 => continue,
                Step::Full | Step::Work(..) => (0, false),
                Step::Wanted(bytes) => (bytes, false),
            };
            if is_over && self.export.requests() == 0 && self.out.is_empty() && !self.wire.has_unsent() {
                return Outcome::Complete;
            }
            if let Some(reason) = self.reason_to_end() {
                return Outcome::Failed(reason.to_owned());
            }
            let event = tokio::select! {
                biased;
                Some(finished) = self.works.next(), if !self.works.is_empty() => Event::Finished(finished),
                _ = self.wire.readable(), if wanted > 0 => Event::Readable,
                _ = self.wire.writable(), if !self.out.is_empty() || self.wire.has_unsent() => Event::Writable,
                _ = ticks.tick() => Event::Tick,
            };
            match event {
                Event::Finished(finished) => self.finish(finished),
                Event::Readable => {
                    if let Err(outcome) = self.receive(wanted) {
                        return outcome;
                    }
                }
                // The next turn of the loop sends.
                Event::Writable => {}
                Event::Tick => self.still_ticks += 1,
            }
        }
    }

    /// A peer that waits for nothing may be silent for as long as it likes.
    fn reason_to_end(&mut self) -> Option<&'static str> {
        if !self.attach.liveness.is_live() {
            return Some("the job that published this has ended");
        }
        if self.attachment.view().is_stale() {
            return Some("the disk was reset");
        }
        if self.input.is_empty() && self.out.is_empty() && !self.wire.has_unsent() {
            self.still_ticks = 0;
        }
        (self.still_ticks > self.stall_ticks).then_some("the client stopped in the middle of a request or an answer")
    }

    fn take_requests(&mut self) -> Step {
        loop {
            // A request that came before its job ended is not begun after it.
            if !self.attach.liveness.is_live() || self.attachment.view().is_stale() {
                return Step::Full;
            }
            match self.export.advance(&mut self.input, &mut self.out) {
                Step::Work(ticket, work) => {
                    self.works.push(perform(Arc::clone(&self.attachment), ticket, work).boxed())
                }
                other => return other,
            }
        }
    }

    /// Answers what is finished without waiting.
    fn finish_ready(&mut self) -> bool {
        let mut is_something_finished = false;
        while let Some(Some(finished)) = self.works.next().now_or_never() {
            self.finish(finished);
            is_something_finished = true;
        }
        is_something_finished
    }

    fn finish(&mut self, (ticket, moved, result): Finished) {
        if moved > 0 && result.is_ok() {
            self.attach.took(moved);
        }
        self.still_ticks = 0;
        self.export.finish(ticket, result, &mut self.out);
    }

    /// Sends what the socket takes now.
    fn send(&mut self) -> io::Result<usize> {
        let mut total = 0;
        self.wire.push()?;
        while !self.out.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, chunk) in slices.iter_mut().zip(self.out.chunks()) {
                *slice = IoSlice::new(chunk);
                count += 1;
            }
            match self.wire.try_write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => {
                    self.out.sent(sent);
                    self.still_ticks = 0;
                    total += sent;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(total)
    }

    fn receive(&mut self, wanted: usize) -> Result<(), Outcome> {
        let missing = wanted.saturating_sub(self.input.len());
        // Doubled, so that bytes are moved a few times at most; never more than twice what has come.
        self.input.reserve(missing.min(self.input.len()).max(READ_BYTES));
        match self.wire.try_read_buf(&mut self.input) {
            Ok(0) => Err(Outcome::Aborted(BROKEN_OFF.to_owned())),
            Ok(_) => {
                self.still_ticks = 0;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(Outcome::Aborted(error.to_string())),
        }
    }
}

async fn perform(attachment: Arc<Attachment>, ticket: Ticket, work: Work) -> Finished {
    let view = attachment.view();
    let (moved, result) = match work {
        Work::Read { offset, length } => (length, view.read(offset, length).await.map(Done::Pieces)),
        Work::Write { offset, data, durability } => {
            (data.len() as u64, view.write(offset, data, durability).await.map(|()| Done::Nothing))
        }
        Work::Flush => (0, view.flush().await.map(|()| Done::Nothing)),
        Work::Trim { offset, length, durability } => {
            (0, view.trim(offset, length, durability).await.map(|()| Done::Nothing))
        }
        Work::Cache { offset, length } => (0, read_ahead(&attachment, offset, length).await.map(|()| Done::Nothing)),
        Work::Zero { offset, length, hole, speed, durability } => {
            (0, view.zero(offset, length, hole, speed, durability).await.map(|()| Done::Nothing))
        }
        Work::Status { offset, length } => (0, view.extents(offset, length).await.map(Done::Extents)),
    };
    (ticket, moved, result.map_err(|error| refused(&error)))
}

/// Reads and throws away, so that the bytes are in the page cache, and downloaded, when they are asked for.
async fn read_ahead(attachment: &Attachment, offset: u64, length: u64) -> Result<(), DiskError> {
    let end = offset + length.min(CACHE_BYTES_MAX);
    let mut at = offset;
    while at < end {
        let part = (end - at).min(READ_BYTES as u64);
        attachment.view().read(at, part).await?;
        at += part;
    }
    Ok(())
}

fn refused(error: &DiskError) -> Refused {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull, Unsupported};
    let errno = match error {
        DiskError::ReadOnly => Errno::Permission,
        DiskError::Layer(error) => match error.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => Errno::NoSpace,
            Unsupported => Errno::Unsupported,
            _ => Errno::Io,
        },
        DiskError::Base(_) | DiskError::Make { .. } | DiskError::Qcow2 { .. } | DiskError::TooLarge { .. } => Errno::Io,
    };
    tracing::warn!(%error, "an NBD request failed");
    Refused { errno, text: error.to_string() }
}
