//! The requests of one connection to one export: what is allowed, in which order it is taken, and how it is answered. ◆
//!
//! ```text
//!  input ─► head ─┬─ allowed ──── room for it? ──► Step::Work(ticket, work) … the ring does it … finish(ticket, result) ─► Output
//!                 │                    └─ no ────► Step::Full, until something was finished and sent
//!                 ├─ refused ─────────────────────► its error at once; the data of a write are skipped first
//!                 ├─ DISC ────────────────────────► Step::Closed(End::Disconnected), when all before is answered
//!                 └─ another magic ───────────────► Step::Closed(End::Garbage): where the next request begins is not known
//! ```
//! | command      | flags                       | length             | errors: past the end, read-only             |
//! |--------------|-----------------------------|--------------------|---------------------------------------------|
//! | READ         | FUA, DF with structured     | 1 to 32 MiB        | EINVAL                                      |
//! | WRITE        | FUA                         | 1 to 32 MiB        | ENOSPC, EPERM                               |
//! | FLUSH        | FUA                         | 0, at offset 0     |                                             |
//! | TRIM         | FUA                         | 1 to 4 GiB - 1     | EINVAL, EPERM                               |
//! | CACHE        | FUA                         | 1 to 4 GiB - 1     | EINVAL                                      |
//! | WRITE_ZEROES | FUA, NO_HOLE, FAST_ZERO     | 1 to 4 GiB - 1     | ENOSPC, EPERM                               |
//! | BLOCK_STATUS | FUA, REQ_ONE                | 1 to 4 GiB - 1     | EINVAL, also when no context was agreed on  |
//!
//! An unknown command or flag is EINVAL. A length of zero means nothing in the protocol text and is EINVAL, too.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

use super::handshake::{Agreed, BLOCK_SIZES, CONTEXT_NUMBER, Context, Replies, Writes};
use super::message::{
    Chunk, Errno, Last, REQUEST_BYTES, Request, STATE_HOLE_AND_ZERO, command, command_flags, encode_chunk,
    encode_error, encode_simple,
};
use crate::content::disk::{Durability, Extent, Fill, Hole, Piece, Speed};

/// 128 requests at once: the queue depth of the kernel's client; libnbd has 64, QEMU 16.
const REQUESTS_MAX: usize = 128;
/// 32 MiB in requests and answers: the largest request fills it, and a hundred of 256 KiB find room.
const IN_FLIGHT_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Largest READ and WRITE.
const LENGTH_MAX: u32 = BLOCK_SIZES[2];
/// 1024 extents in one answer, 8 KiB: the protocol lets it be shorter than the range, and the client goes on behind it.
const EXTENTS_MAX: usize = 1024;
/// Zeros shorter than this cost less as bytes than as a chunk of their own.
const HOLE_BYTES_MIN: u64 = 4096;

/// The requests of one connection.
#[derive(Debug)]
pub struct Export {
    agreed: Agreed,
    /// The answer that is due when so many bytes of a refused write were skipped.
    skipping: Option<(u64, Request, Refused)>,
    requests: usize,
    in_flight_bytes: u64,
    ending: bool,
}

/// What to do for a client. Ranges lie inside the export.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Work {
    Read { offset: u64, length: u64 },
    Write { offset: u64, data: Bytes, durability: Durability },
    Flush,
    Trim { offset: u64, length: u64, durability: Durability },
    Cache { offset: u64, length: u64 },
    Zero { offset: u64, length: u64, hole: Hole, speed: Speed, durability: Durability },
    Status { offset: u64, length: u64 },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// It is done.
    Nothing,
    /// The bytes of a read, all of them.
    Pieces(Vec<Piece>),
    /// What is known of the range.
    Extents(Vec<Extent>),
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The number for the client.
    pub errno: Errno,
    /// The sentence for it, where its replies have room for one.
    pub text: String,
}

/// What a piece of work is answered by; every ticket is given back to [`Export::finish`].
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket {
    request: Request,
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client said goodbye.
    Disconnected,
    /// What came is no request.
    Garbage,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes have to be in the input before anything more happens.
    Wanted(usize),
    /// This is to be done.
    Work(Ticket, Work),
    /// As much is in flight as may be; go on when something was finished or sent.
    Full,
    /// The connection ends when what is in flight was answered.
    Closed(End),
}

/// What is to be sent, without copying what was read.
#[derive(Debug, Default)]
pub struct Output {
    /// In order; `heads` come behind them.
    chunks: VecDeque<Bytes>,
    /// What was encoded since the last data: short replies travel together.
    heads: Vec<u8>,
    /// Bytes in `chunks`.
    bytes: u64,
}

impl Export {
    /// The requests that follow a handshake.
    pub fn new(agreed: Agreed) -> Self {
        Export { agreed, skipping: None, requests: 0, in_flight_bytes: 0, ending: false }
    }

    /// How many tickets are out.
    pub fn requests(&self) -> usize {
        self.requests
    }

    /// Takes the next request from `input`; what it refuses is answered in `out` at once.
    pub fn advance(&mut self, input: &mut BytesMut, out: &mut Output) -> Step {
        loop {
            if self.ending {
                return Step::Closed(End::Disconnected);
            }
            if let Some((left, request, refused)) = self.skipping.take() {
                let skipped = left.min(input.len() as u64);
                input.advance(skipped as usize);
                if skipped < left {
                    self.skipping = Some((left - skipped, request, refused));
                    return Step::Wanted(1);
                }
                self.refuse(&request, &refused, out);
            }
            // Also refusals take room until they are sent: who sends nonsense and reads nothing is not read from any more.
            if self.requests >= REQUESTS_MAX || out.bytes() >= IN_FLIGHT_BYTES_MAX {
                return Step::Full;
            }
            let Some(head) = input.first_chunk::<REQUEST_BYTES>() else { return Step::Wanted(REQUEST_BYTES) };
            let Some(request) = Request::decode(head) else { return Step::Closed(End::Garbage) };
            if request.command == command::DISC {
                self.ending = true;
                continue;
            }
            if let Err(refused) = self.check(&request) {
                input.advance(REQUEST_BYTES);
                let is_write = request.command == command::WRITE;
                let left = if is_write { u64::from(request.length) } else { 0 };
                self.skipping = Some((left, request, refused));
                continue;
            }
            return self.admit(request, input, out);
        }
    }

    /// Answers a ticket.
    pub fn finish(&mut self, ticket: Ticket, result: Result<Done, Refused>, out: &mut Output) {
        let Ticket { request } = ticket;
        self.requests -= 1;
        self.in_flight_bytes -= moved_bytes(&request);
        let cookie = request.cookie;
        match (result, self.agreed.replies) {
            (Err(refused), _) => self.refuse(&request, &refused, out),
            (Ok(Done::Nothing), _) => encode_simple(&mut out.heads, None, cookie),
            (Ok(Done::Pieces(pieces)), Replies::Simple) => {
                encode_simple(&mut out.heads, None, cookie);
                pieces.into_iter().for_each(|piece| out.push_piece(piece));
            }
            (Ok(Done::Pieces(pieces)), Replies::Structured) => answer_read(&request, pieces, out),
            (Ok(Done::Extents(extents)), _) => answer_status(&request, &extents, out),
        }
    }

    fn admit(&mut self, request: Request, input: &mut BytesMut, out: &Output) -> Step {
        let moved = moved_bytes(&request);
        let busy = self.in_flight_bytes + out.bytes();
        if busy > 0 && busy + moved > IN_FLIGHT_BYTES_MAX {
            return Step::Full;
        }
        let payload = if request.command == command::WRITE { request.length as usize } else { 0 };
        if input.len() < REQUEST_BYTES + payload {
            return Step::Wanted(REQUEST_BYTES + payload);
        }
        input.advance(REQUEST_BYTES);
        let data = if payload == 0 { Bytes::new() } else { input.split_to(payload).freeze() };
        self.requests += 1;
        self.in_flight_bytes += moved;
        Step::Work(Ticket { request }, work(&request, data))
    }

    fn check(&self, request: &Request) -> Result<(), Refused> {
        use command::*;
        use command_flags::*;
        let structured = self.agreed.replies == Replies::Structured;
        let (flags, past_the_end) = match request.command {
            READ => (FUA | if structured { DF } else { 0 }, Errno::Invalid),
            WRITE => (FUA, Errno::NoSpace),
            FLUSH | TRIM | CACHE => (FUA, Errno::Invalid),
            WRITE_ZEROES => (FUA | NO_HOLE | FAST_ZERO, Errno::NoSpace),
            BLOCK_STATUS => (FUA | REQ_ONE, Errno::Invalid),
            other => return refused(Errno::Invalid, format!("command {other} is unknown")),
        };
        if request.flags & !flags != 0 {
            return refused(
                Errno::Invalid,
                format!("flags {:#x} do not belong to the command", request.flags & !flags),
            );
        }
        if matches!(request.command, WRITE | TRIM | WRITE_ZEROES) && self.agreed.shape.writes == Writes::Refused {
            return refused(Errno::Permission, "the export is read-only".to_owned());
        }
        if request.command == BLOCK_STATUS && self.agreed.context == Context::Absent {
            return refused(Errno::Invalid, "no metadata context was set for this export".to_owned());
        }
        if request.command == FLUSH {
            let is_plain = request.offset == 0 && request.length == 0;
            return if is_plain { Ok(()) } else { refused(Errno::Invalid, "a flush has no range".to_owned()) };
        }
        self.check_range(request, past_the_end)
    }

    fn check_range(&self, request: &Request, past_the_end: Errno) -> Result<(), Refused> {
        let Request { offset, length, .. } = *request;
        if length == 0 {
            return refused(Errno::Invalid, "the range is empty".to_owned());
        }
        if matches!(request.command, command::READ | command::WRITE) && length > LENGTH_MAX {
            return refused(Errno::Invalid, format!("{length} bytes are more than {LENGTH_MAX} at once"));
        }
        let size = self.agreed.shape.size;
        match offset.checked_add(u64::from(length)) {
            Some(end) if end <= size => Ok(()),
            _ => refused(past_the_end, format!("{length} bytes at {offset} reach past the end at {size}")),
        }
    }

    fn refuse(&self, request: &Request, refused: &Refused, out: &mut Output) {
        match self.agreed.replies {
            Replies::Simple => encode_simple(&mut out.heads, Some(refused.errno), request.cookie),
            Replies::Structured => encode_error(&mut out.heads, refused.errno, &refused.text, request.cookie),
        }
    }
}

fn refused(errno: Errno, text: String) -> Result<(), Refused> {
    Err(Refused { errno, text })
}

/// Bytes of data that a request brings or takes away.
fn moved_bytes(request: &Request) -> u64 {
    match request.command {
        command::READ | command::WRITE => u64::from(request.length),
        _ => 0,
    }
}

/// What an allowed request asks for.
fn work(request: &Request, data: Bytes) -> Work {
    use command_flags::*;
    let Request { flags, offset, .. } = *request;
    let length = u64::from(request.length);
    let durability = if flags & FUA == 0 { Durability::Memory } else { Durability::Disk };
    match request.command {
        command::READ => Work::Read { offset, length },
        command::WRITE => Work::Write { offset, data, durability },
        command::FLUSH => Work::Flush,
        command::TRIM => Work::Trim { offset, length, durability },
        command::CACHE => Work::Cache { offset, length },
        command::WRITE_ZEROES => {
            let hole = if flags & NO_HOLE == 0 { Hole::Allowed } else { Hole::Refused };
            let speed = if flags & FAST_ZERO == 0 { Speed::Any } else { Speed::FastOnly };
            Work::Zero { offset, length, hole, speed, durability }
        }
        command::BLOCK_STATUS => Work::Status { offset, length },
        other => unreachable!("command {other} passed the check"),
    }
}

/// Long runs of zeros as holes, everything else as data; with DF all of it in one chunk of data.
fn answer_read(request: &Request, pieces: Vec<Piece>, out: &mut Output) {
    let is_whole = request.flags & command_flags::DF != 0;
    let is_hole = |piece: &Piece| !is_whole && matches!(piece, Piece::Zeros(length) if *length >= HOLE_BYTES_MIN);
    let mut offset = request.offset;
    let mut pieces = VecDeque::from(pieces);
    while let Some(first) = pieces.front() {
        if is_hole(first) {
            let length = first.length();
            pieces.pop_front();
            let last = if pieces.is_empty() { Last::Yes } else { Last::No };
            encode_chunk(&mut out.heads, last, Chunk::Hole, request.cookie, 12);
            out.heads.extend(offset.to_be_bytes());
            // A read is 32 MiB at most.
            out.heads.extend((length as u32).to_be_bytes());
            offset += length;
            continue;
        }
        let count = pieces.iter().take_while(|piece| !is_hole(piece)).count();
        let length: u64 = pieces.iter().take(count).map(Piece::length).sum();
        let last = if count == pieces.len() { Last::Yes } else { Last::No };
        encode_chunk(&mut out.heads, last, Chunk::Data, request.cookie, 8 + length as u32);
        out.heads.extend(offset.to_be_bytes());
        pieces.drain(..count).for_each(|piece| out.push_piece(piece));
        offset += length;
    }
}

fn answer_status(request: &Request, extents: &[Extent], out: &mut Output) {
    let count_max = if request.flags & command_flags::REQ_ONE == 0 { EXTENTS_MAX } else { 1 };
    let extents = &extents[..extents.len().min(count_max)];
    encode_chunk(&mut out.heads, Last::Yes, Chunk::BlockStatus, request.cookie, 4 + 8 * extents.len() as u32);
    out.heads.extend(CONTEXT_NUMBER.to_be_bytes());
    for extent in extents {
        let state = match extent.fill {
            Fill::Data => 0,
            Fill::Zeros => STATE_HOLE_AND_ZERO,
        };
        out.heads.extend((extent.length as u32).to_be_bytes());
        out.heads.extend(state.to_be_bytes());
    }
}

/// 64 KiB of zeros, sent as often as needed.
static ZEROS: [u8; 65536] = [0; 65536];

impl Output {
    /// Bytes that were not sent yet.
    pub fn bytes(&self) -> u64 {
        self.bytes + self.heads.len() as u64
    }

    /// Whether all was sent.
    pub fn is_empty(&self) -> bool {
        self.bytes() == 0
    }

    /// The next bytes to send, in order.
    pub fn chunks(&mut self) -> impl Iterator<Item = &[u8]> {
        self.seal();
        self.chunks.iter().map(|chunk| &chunk[..])
    }

    /// So many of them were sent.
    pub fn sent(&mut self, mut count: usize) {
        self.bytes -= count as u64;
        while count > 0 {
            let Some(first) = self.chunks.front_mut() else { break };
            if count < first.len() {
                first.advance(count);
                break;
            }
            count -= first.len();
            self.chunks.pop_front();
        }
    }

    fn push_piece(&mut self, piece: Piece) {
        self.seal();
        match piece {
            Piece::Data(bytes) => self.push(bytes),
            Piece::Zeros(mut length) => {
                while length > 0 {
                    let part = length.min(ZEROS.len() as u64);
                    self.push(Bytes::from_static(&ZEROS[..part as usize]));
                    length -= part;
                }
            }
        }
    }

    /// What was encoded so far takes its place before the next data.
    fn seal(&mut self) {
        if !self.heads.is_empty() {
            let heads = Bytes::from(std::mem::take(&mut self.heads));
            self.push(heads);
        }
    }

    fn push(&mut self, bytes: Bytes) {
        self.bytes += bytes.len() as u64;
        self.chunks.push_back(bytes);
    }
}

#[cfg(test)]
#[path = "export_tests.rs"]
mod tests;
