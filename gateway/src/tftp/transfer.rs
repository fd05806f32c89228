//! One read transfer, from the options' haggling to the last acknowledgement, without a socket or a clock of its own.
//!
//! ```text
//!   datagram ─► handle_packet ┐                        ┌► poll_event     Accepted | Took | Ended
//!    content ─► handle_data   ├─► Transfer { flight } ─┼► poll_transmit  OACK, a window of DATA, ERROR
//!       time ─► handle_timeout┘                        ├► poll_wanted    the next bytes of the content
//!                                                      └► poll_timeout
//!
//!   flight = what was sent and waits for an answer. Block 0 is the OACK, so one rule repairs all of them:
//!
//!   state            ACK of its last     ACK inside it         ACK before it               deadline passes
//!   flight n..=m     next: m+1..         rest again: k+1..     window > 1: n.. once more   n..=m again, wait doubles;
//!                    (last block: end)                         otherwise ignored           30 s silent: end
//! ```
//! "ACK before it" is a duplicate to a lock-step client and must never be answered (RFC 1123 section 4.2.3.1, the
//! sorcerer's apprentice); to a windowed client it says that the first block of the window was lost (RFC 7440 section 4).
//! It is believed only when it cannot be an echo: not sooner than half of the shortest round trip after the window left,
//! and not in the two windows after a repair, whose copies make the client say it again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::packet::{self, ErrorCode, Mode, Packet, Request, RequestOption};
use crate::namespace::Outcome;

/// RFC 1350: the block size without options.
const BLOCK_SIZE_DEFAULT: u16 = 512;
/// RFC 2348: the smallest and the largest block size.
const BLOCK_SIZES: std::ops::RangeInclusive<u64> = 8..=65464;
/// RFC 6298 section 2.1: before the first measurement.
const WAIT_FIRST: Duration = Duration::from_secs(1);
/// A client that writes flash or runs in an emulator pauses for tens of milliseconds: resending sooner only doubles traffic.
const WAIT_MIN: Duration = Duration::from_millis(100);
/// The longest a repaired link should wait for us; also what the `timeout` option of 1..=255 s cannot stretch.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// The slowest firmware seen (EDK2: 6 tries 4 s apart, iPXE: 10 s at last) has given up by then.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// The kernel's limit of segments in one UDP_SEGMENT send (UDP_MAX_SEGMENTS before Linux 6.9).
const BURST_SEGMENTS_MAX: usize = 64;
/// The longest UDP payload over IPv4 is 65507 bytes, a burst counts as one.
const BURST_BYTES_MAX: usize = 65507;
/// Read from content at once: a read costs tens of microseconds, as much as some lock-step round trips.
const READ_BYTES: usize = 64 * 1024;
/// Read again when fewer bytes than this lie ready behind the window: half a read, so that the wire never waits for a disk.
const AHEAD_BYTES_MIN: usize = READ_BYTES / 2;
/// Duplicates are not believed in the window that was repaired and the two after it (see the head of this file).
const WINDOWS_AFTER_REPAIR: u8 = 3;

/// How far a request's options may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest block size granted.
    pub block_size_max: u16,
    /// The most blocks in one window.
    pub window_size_max: u16,
    /// The most bytes in one window; one block is granted whatever its size.
    pub window_bytes_max: usize,
}

/// What both sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Bytes in each block but the last.
    pub block_size: u16,
    /// Blocks sent before an acknowledgement is awaited.
    pub window_size: u16,
    /// The client's `timeout` option.
    pub timeout: Option<Duration>,
    /// The options for the OACK; empty when the request named none that we grant, and then no OACK is sent (RFC 2347).
    pub answer: Vec<RequestOption>,
}

/// What the ring has to hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The client took the offered options: from here on it counts as an access.
    Accepted,
    /// The client acknowledged this many more bytes.
    Took(u64),
    /// Nothing follows but what [`Transfer::poll_transmit`] still holds.
    Ended(Outcome),
}

/// Bytes of the content that are needed next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Where they begin.
    pub offset: u64,
    /// How many; fewer may come only at the content's end.
    pub length: usize,
}

/// Datagrams of equal size, the last one may be shorter, laid one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Burst {
    /// Bytes of each datagram.
    pub segment_bytes: usize,
}

/// One client reading one content.
#[derive(Debug)]
pub struct Transfer {
    terms: Terms,
    mode: Mode,
    size: Option<u64>,
    feed: Feed,
    /// The first block that is not acknowledged; 0 is the OACK.
    next: u64,
    /// The highest block ever sent.
    highest: u64,
    flight: Option<Flight>,
    windows_until_repair: u8,
    round_trip: RoundTrip,
    deadline: Option<Instant>,
    silent_since: Option<Instant>,
    farewell: Option<(ErrorCode, String)>,
    events: VecDeque<Event>,
    life: Life,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Running,
    Over,
}

/// Blocks `cursor..=last` are to be sent, those before `cursor` wait for an answer.
#[derive(Clone, Copy, Debug)]
struct Flight {
    last: u64,
    cursor: u64,
    sent_at: Option<Instant>,
    copies: Copies,
}

/// Karn's rule: an answer to something sent twice measures nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copies {
    One,
    Several,
}

/// How much of a window must lie ready before it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fill {
    /// All of it: a client answers a whole window, half of one would leave it waiting.
    Whole,
    /// Whatever is there: these blocks were promised already.
    Ready,
}

impl Terms {
    /// Grants what `limits` allow. An option that is unknown, repeated or no number in its range is left out of the answer,
    /// which RFC 2347 reads as "not granted"; the transfer itself goes on.
    pub fn agree(request: &Request, limits: &Limits, size: Option<u64>) -> Terms {
        let mut terms = Terms { block_size: BLOCK_SIZE_DEFAULT, window_size: 1, timeout: None, answer: Vec::new() };
        let mut window_asked = 1;
        for (index, option) in request.options.iter().enumerate() {
            let repeated = request.options[..index].iter().any(|earlier| earlier.is(&option.name));
            let Some(value) = option.value.parse::<u64>().ok().filter(|_| !repeated) else { continue };
            if option.is("blksize") && value >= *BLOCK_SIZES.start() {
                let granted = value.min(*BLOCK_SIZES.end()).min(u64::from(limits.block_size_max));
                terms.block_size = u16::try_from(granted).expect("65464 is the most");
                terms.answer.push(RequestOption::new(&option.name, granted));
            } else if option.is("tsize") {
                // RFC 2349. The length of a netascii transfer is known only once it is translated; curl 7.88 takes 0, with which
                // it asked, for an illegal answer.
                let size = size.filter(|&size| request.mode == Mode::Octet && size > 0);
                terms.answer.extend(size.map(|size| RequestOption::new(&option.name, size)));
            } else if option.is("timeout") && (1..=255).contains(&value) {
                terms.timeout = Some(Duration::from_secs(value));
                terms.answer.push(RequestOption::new(&option.name, value));
            } else if option.is("windowsize") && (1..=65535).contains(&value) {
                window_asked = u16::try_from(value).expect("65535 is the most");
                terms.answer.push(option.clone());
            }
        }
        terms.grant_window(window_asked, limits);
        terms
    }

    /// Bytes that one window holds.
    pub fn window_bytes(&self) -> usize {
        usize::from(self.window_size) * usize::from(self.block_size)
    }

    /// Needs the block size, which may stand behind the window size.
    fn grant_window(&mut self, asked: u16, limits: &Limits) {
        let fitting = limits.window_bytes_max / usize::from(self.block_size);
        self.window_size = asked.min(limits.window_size_max).min(u16::try_from(fitting).unwrap_or(u16::MAX)).max(1);
        for option in self.answer.iter_mut().filter(|option| option.is("windowsize")) {
            option.value = self.window_size.to_string();
        }
    }
}

impl Transfer {
    /// A transfer of `size` bytes, when that is known. It begins with an OACK if the terms have an answer.
    pub fn new(terms: Terms, mode: Mode, size: Option<u64>) -> Transfer {
        let next = if terms.answer.is_empty() { 1 } else { 0 };
        let mut transfer = Transfer {
            round_trip: RoundTrip::new(terms.timeout),
            terms,
            mode,
            size,
            feed: Feed::default(),
            next,
            highest: 0,
            flight: None,
            windows_until_repair: 0,
            deadline: None,
            silent_since: None,
            farewell: None,
            events: VecDeque::new(),
            life: Life::Running,
        };
        transfer.take_off(Fill::Whole);
        transfer
    }

    /// A datagram came from the client.
    pub fn handle_packet(&mut self, datagram: &[u8], now: Instant) {
        if self.life == Life::Over {
            return;
        }
        match packet::decode(datagram) {
            Ok(Packet::Ack { block }) => self.handle_ack(block, now),
            Ok(Packet::Error { code, text }) => self.end(Outcome::Aborted(client_words(code, &text))),
            // Nothing else belongs to a read; what was sent by mistake must not end what goes well.
            Ok(Packet::Read(_) | Packet::Write(_) | Packet::Data { .. } | Packet::OptionAck(_)) | Err(_) => {}
        }
    }

    /// The bytes that [`poll_wanted`](Self::poll_wanted) asked for.
    pub fn handle_data(&mut self, bytes: Bytes) {
        if self.life == Life::Over {
            return;
        }
        let Some(wanted) = self.feed.wanted.take() else { return };
        let end = wanted.offset + bytes.len() as u64;
        let short = bytes.len() < wanted.length;
        if let Some(size) = self.size.filter(|&size| end > size || (short && end < size)) {
            return self.fail(ErrorCode::NotDefined, format!("the content has {end} bytes, {size} were announced"));
        }
        self.feed.push(match self.mode {
            Mode::Octet => bytes,
            Mode::Netascii => to_netascii(&bytes),
        });
        self.feed.read = end;
        self.feed.complete = short || self.size == Some(end);
        self.take_off(Fill::Whole);
    }

    /// The request came again before its first answer was acknowledged: that answer was lost, or is late.
    pub fn handle_repeated_request(&mut self) {
        if self.next <= 1 {
            self.resend();
        }
    }

    /// Time passed; call it at [`poll_timeout`](Self::poll_timeout) or whenever convenient.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.life == Life::Over || self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        if self.silent_since.is_some_and(|since| now.saturating_duration_since(since) >= SILENCE_MAX) {
            let what = if self.next == 0 { "the options".to_owned() } else { format!("block {}", self.next) };
            return self.fail(ErrorCode::NotDefined, format!("no acknowledgement of {what} for 30 s"));
        }
        self.round_trip.double();
        self.windows_until_repair = WINDOWS_AFTER_REPAIR;
        self.resend();
    }

    /// We cannot go on: tells the client, and ends. What has ended stays as it ended.
    pub fn fail(&mut self, code: ErrorCode, text: String) {
        if self.life == Life::Over {
            return;
        }
        self.farewell = Some((code, text.clone()));
        self.end(Outcome::Failed(text));
    }

    /// Something happened, oldest first. Read these before [`poll_transmit`](Self::poll_transmit): `Accepted` may be refused.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Replaces `out` by the next datagrams to send, `None` when there are none.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>, now: Instant) -> Option<Burst> {
        out.clear();
        if let Some((code, text)) = self.farewell.take() {
            packet::encode_error(out, code, &text);
            return Some(Burst { segment_bytes: out.len() });
        }
        let flight = self.flight.as_mut().filter(|flight| flight.cursor <= flight.last)?;
        let segment_bytes = if flight.cursor == 0 {
            packet::encode_option_ack(out, &self.terms.answer);
            flight.cursor = 1;
            out.len()
        } else {
            put_blocks(out, flight, &self.feed, usize::from(self.terms.block_size))
        };
        flight.sent_at = Some(now);
        self.highest = self.highest.max(flight.cursor - 1);
        self.deadline = Some(now + self.round_trip.wait());
        self.silent_since.get_or_insert(now);
        Some(Burst { segment_bytes })
    }

    /// The next bytes to read from the content, told once; answer with [`handle_data`](Self::handle_data). Nothing is read
    /// before the offer is accepted: firmware that only probes for the size costs no read.
    pub fn poll_wanted(&mut self) -> Option<Wanted> {
        if self.life == Life::Over || self.next == 0 || self.feed.complete || self.feed.wanted.is_some() {
            return None;
        }
        let window_bytes = self.terms.window_bytes();
        let window_end = (self.next - 1) * u64::from(self.terms.block_size) + window_bytes as u64;
        if self.feed.end >= window_end + window_bytes.max(AHEAD_BYTES_MIN) as u64 {
            return None;
        }
        self.feed.wanted = Some(Wanted { offset: self.feed.read, length: window_bytes.max(READ_BYTES) });
        self.feed.wanted
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due. `None` while nothing was sent that could be answered: a slow
    /// content is not the client's silence.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    fn handle_ack(&mut self, number: u16, now: Instant) {
        // RFC 1350 has 16 bits; behind block 65535 comes 0. A window is at most 64 blocks, so the nearest number is meant.
        let ahead = u64::from(number.wrapping_sub(wire_number(self.next)));
        if ahead <= self.highest.saturating_sub(self.next) && self.highest >= self.next && self.flight.is_some() {
            self.advance(self.next + ahead, now);
        } else if number == wire_number(self.next.wrapping_sub(1)) {
            self.hear_duplicate(now);
        }
    }

    fn advance(&mut self, block: u64, now: Instant) {
        let flight = self.flight.take().expect("handle_ack looked");
        let whole = block >= flight.last;
        if whole
            && flight.copies == Copies::One
            && let Some(sent_at) = flight.sent_at
        {
            self.round_trip.measure(now.saturating_duration_since(sent_at));
        }
        self.round_trip.progress();
        self.deadline = None;
        self.silent_since = None;
        self.report(block);
        let last_block = self.last_block();
        self.next = block + 1;
        self.feed.forget(block.saturating_mul(u64::from(self.terms.block_size)));
        if last_block == Some(block) {
            return self.end(Outcome::Complete);
        }
        if whole {
            self.windows_until_repair = self.windows_until_repair.saturating_sub(1);
            self.take_off(Fill::Whole);
        } else {
            self.windows_until_repair = WINDOWS_AFTER_REPAIR;
            self.take_off(Fill::Ready);
        }
    }

    fn report(&mut self, block: u64) {
        if block == 0 {
            return self.events.push_back(Event::Accepted);
        }
        let block_size = u64::from(self.terms.block_size);
        let taken = |block: u64| (block * block_size).min(self.feed.end);
        let bytes = taken(block) - taken(self.next.saturating_sub(1));
        self.events.push_back(Event::Took(bytes));
    }

    fn hear_duplicate(&mut self, now: Instant) {
        let Some(Flight { cursor, last, sent_at: Some(sent_at), .. }) = self.flight else { return };
        let echo =
            self.round_trip.shortest.is_none_or(|shortest| now.saturating_duration_since(sent_at) < shortest / 2);
        if self.terms.window_size > 1 && cursor > last && !echo && self.windows_until_repair == 0 {
            self.windows_until_repair = WINDOWS_AFTER_REPAIR;
            self.resend();
        }
    }

    fn resend(&mut self) {
        self.deadline = None;
        if let Some(flight) = &mut self.flight {
            flight.cursor = self.next;
            flight.copies = Copies::Several;
        }
    }

    /// Makes the next flight, if its bytes are there.
    fn take_off(&mut self, fill: Fill) {
        if self.flight.is_some() || self.life == Life::Over {
            return;
        }
        let ready = self.feed.end / u64::from(self.terms.block_size);
        let asked = if self.next == 0 { 0 } else { self.next + u64::from(self.terms.window_size) - 1 };
        let last = match (self.last_block(), fill) {
            (Some(last_block), _) => asked.min(last_block),
            (None, Fill::Ready) if ready >= self.next => asked.min(ready),
            (None, _) if ready >= asked => asked,
            (None, _) => return,
        };
        // A repair sends blocks again: the answer may be to their first copy.
        let copies = if self.next <= self.highest && self.next > 0 { Copies::Several } else { Copies::One };
        self.flight = Some(Flight { last, cursor: self.next, sent_at: None, copies });
    }

    /// The number of the block that ends the transfer: the first that is not full, empty if need be (RFC 1350 section 6).
    fn last_block(&self) -> Option<u64> {
        self.feed.complete.then(|| self.feed.end / u64::from(self.terms.block_size) + 1)
    }

    fn end(&mut self, outcome: Outcome) {
        if self.life == Life::Running {
            self.life = Life::Over;
            self.flight = None;
            self.deadline = None;
            self.events.push_back(Event::Ended(outcome));
        }
    }
}

fn put_blocks(out: &mut Vec<u8>, flight: &mut Flight, feed: &Feed, block_size: usize) -> usize {
    const HEADER_BYTES: usize = 4;
    let segment_bytes = HEADER_BYTES + block_size;
    let count_max = (BURST_BYTES_MAX / segment_bytes).clamp(1, BURST_SEGMENTS_MAX);
    for _ in 0..count_max {
        if flight.cursor > flight.last {
            break;
        }
        packet::encode_data_header(out, wire_number(flight.cursor));
        feed.copy((flight.cursor - 1) * block_size as u64, block_size, out);
        flight.cursor += 1;
    }
    segment_bytes.min(out.len())
}

fn wire_number(block: u64) -> u16 {
    (block & 0xffff) as u16
}

fn client_words(code: u16, text: &str) -> String {
    if text.is_empty() { format!("client's error {code}") } else { format!("client's error {code}: {text}") }
}

/// RFC 764: LF becomes CR LF, CR becomes CR NUL. Each byte by itself, so a text may be cut anywhere.
fn to_netascii(bytes: &[u8]) -> Bytes {
    let mut translated = Vec::with_capacity(bytes.len() + bytes.len() / 16);
    for &byte in bytes {
        match byte {
            b'\n' => translated.extend_from_slice(b"\r\n"),
            b'\r' => translated.extend_from_slice(b"\r\0"),
            other => translated.push(other),
        }
    }
    Bytes::from(translated)
}

/// Bytes from the first unacknowledged block to the end of what was read.
#[derive(Debug, Default)]
struct Feed {
    chunks: VecDeque<Bytes>,
    /// Where the first chunk begins, and the last one ends, in the bytes of the transfer.
    start: u64,
    end: u64,
    /// Bytes of the content read; differs from `end` in netascii.
    read: u64,
    wanted: Option<Wanted>,
    complete: bool,
}

impl Feed {
    fn push(&mut self, bytes: Bytes) {
        self.end += bytes.len() as u64;
        if !bytes.is_empty() {
            self.chunks.push_back(bytes);
        }
    }

    fn forget(&mut self, before: u64) {
        while let Some(chunk) = self.chunks.front()
            && self.start + chunk.len() as u64 <= before
        {
            self.start += chunk.len() as u64;
            self.chunks.pop_front();
        }
    }

    /// Appends up to `length` bytes from `offset`; fewer at the end.
    fn copy(&self, offset: u64, length: usize, out: &mut Vec<u8>) {
        let mut skip = usize::try_from(offset - self.start).expect("buffered bytes fit in memory");
        let mut missing = length;
        for chunk in &self.chunks {
            if skip >= chunk.len() {
                skip -= chunk.len();
                continue;
            }
            let part = &chunk[skip..chunk.len().min(skip + missing)];
            out.extend_from_slice(part);
            missing -= part.len();
            skip = 0;
            if missing == 0 {
                return;
            }
        }
    }
}

/// How long to wait for an answer: RFC 6298.
#[derive(Debug)]
struct RoundTrip {
    smoothed: Option<Duration>,
    variation: Duration,
    shortest: Option<Duration>,
    doublings: u32,
    wait_max: Duration,
}

impl RoundTrip {
    fn new(timeout: Option<Duration>) -> Self {
        let wait_max = timeout.map_or(WAIT_MAX, |timeout| timeout.min(WAIT_MAX));
        RoundTrip { smoothed: None, variation: Duration::ZERO, shortest: None, doublings: 0, wait_max }
    }

    fn measure(&mut self, sample: Duration) {
        self.shortest = Some(self.shortest.map_or(sample, |shortest| shortest.min(sample)));
        self.smoothed = Some(match self.smoothed {
            None => {
                self.variation = sample / 2;
                sample
            }
            // RFC 6298 section 2.3: beta 1/4, alpha 1/8.
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(sample)) / 4;
                (smoothed * 7 + sample) / 8
            }
        });
    }

    fn progress(&mut self) {
        self.doublings = 0;
    }

    fn double(&mut self) {
        // 2^6 times the shortest wait is past the longest.
        self.doublings = (self.doublings + 1).min(6);
    }

    fn wait(&self) -> Duration {
        let wait = self.smoothed.map_or(WAIT_FIRST, |smoothed| smoothed + self.variation * 4);
        (wait.max(WAIT_MIN) * (1 << self.doublings)).min(self.wait_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, RngExt, SeedableRng};

    const LIMITS: Limits = Limits { block_size_max: 1468, window_size_max: 64, window_bytes_max: 1024 * 1024 };
    const ANY: Limits = Limits { block_size_max: 65464, window_size_max: 64, window_bytes_max: 1024 * 1024 };

    fn request(options: &[(&str, &str)]) -> Request {
        Request {
            name: "/a".into(),
            mode: Mode::Octet,
            options: options.iter().map(|(name, value)| RequestOption::new(name, value)).collect(),
        }
    }

    fn answer(options: &[(&str, &str)], limits: &Limits) -> String {
        let terms = Terms::agree(&request(options), limits, Some(7000));
        terms.answer.iter().map(|option| format!("{}={} ", option.name, option.value)).collect()
    }

    fn content(length: usize) -> Bytes {
        (0..length).map(|position| (position % 251) as u8 ^ (position / 509) as u8).collect()
    }

    /// A transfer with its content at hand and a clock that only tests move.
    struct Scene {
        transfer: Transfer,
        content: Bytes,
        now: Instant,
        data_sent: usize,
    }

    impl Scene {
        fn new(length: usize, options: &[(&str, &str)]) -> Scene {
            let content = content(length);
            let size = Some(length as u64);
            let transfer = Transfer::new(Terms::agree(&request(options), &ANY, size), Mode::Octet, size);
            Scene { transfer, content, now: Instant::now(), data_sent: 0 }
        }

        /// Everything the transfer sends now, as datagrams.
        fn sent(&mut self) -> Vec<Vec<u8>> {
            while let Some(wanted) = self.transfer.poll_wanted() {
                let start = self.content.len().min(wanted.offset as usize);
                let end = self.content.len().min(start + wanted.length);
                self.transfer.handle_data(self.content.slice(start..end));
            }
            let (mut datagrams, mut out) = (Vec::new(), Vec::new());
            while let Some(burst) = self.transfer.poll_transmit(&mut out, self.now) {
                datagrams.extend(out.chunks(burst.segment_bytes).map(<[u8]>::to_vec));
            }
            self.data_sent += datagrams.iter().filter(|datagram| datagram[1] == 3).count();
            datagrams
        }

        /// The block numbers that leave now.
        fn blocks(&mut self) -> Vec<u16> {
            let number = |datagram: &Vec<u8>| match packet::decode(datagram) {
                Ok(Packet::Data { block, .. }) => block,
                other => panic!("expected DATA, got {other:?}"),
            };
            self.sent().iter().map(number).collect()
        }

        fn ack(&mut self, block: u16) {
            let mut datagram = Vec::new();
            packet::encode_ack(&mut datagram, block);
            self.transfer.handle_packet(&datagram, self.now);
        }

        fn pass(&mut self, milliseconds: u64) {
            self.now += Duration::from_millis(milliseconds);
            self.transfer.handle_timeout(self.now);
        }

        fn events(&mut self) -> Vec<Event> {
            std::iter::from_fn(|| self.transfer.poll_event()).collect()
        }

        fn outcome(&mut self) -> Option<Outcome> {
            self.events().into_iter().find_map(|event| match event {
                Event::Ended(outcome) => Some(outcome),
                Event::Accepted | Event::Took(_) => None,
            })
        }

        /// A faultless client, until the end.
        fn finish(&mut self) -> Vec<u8> {
            let (mut received, mut expected, mut window) = (Vec::new(), 1_u64, self.transfer.terms.window_size);
            loop {
                let datagrams = self.sent();
                assert!(!datagrams.is_empty(), "the transfer stopped at block {expected}");
                for datagram in datagrams {
                    match packet::decode(&datagram).unwrap() {
                        Packet::OptionAck(_) => self.ack(0),
                        Packet::Data { block, payload } => {
                            assert_eq!(block, (expected & 0xffff) as u16, "block {expected}");
                            received.extend_from_slice(payload);
                            expected += 1;
                            window -= 1;
                            let last = payload.len() < usize::from(self.transfer.terms.block_size);
                            if window == 0 || last {
                                window = self.transfer.terms.window_size;
                                self.ack(block);
                            }
                            if last {
                                return received;
                            }
                        }
                        other => panic!("unexpected {other:?}"),
                    }
                }
            }
        }
    }

    #[test]
    fn options_are_granted_within_limits_in_the_clients_order_and_spelling() {
        assert_eq!(
            answer(&[("tsize", "0"), ("blksize", "1468"), ("windowsize", "4")], &LIMITS),
            "tsize=7000 blksize=1468 windowsize=4 "
        );
        assert_eq!(answer(&[("WindowSize", "65535"), ("BLKSIZE", "65464")], &LIMITS), "WindowSize=64 BLKSIZE=1468 ");
        assert_eq!(answer(&[("blksize", "99999999")], &ANY), "blksize=65464 ");
        assert_eq!(answer(&[("blksize", "8"), ("timeout", "255")], &LIMITS), "blksize=8 timeout=255 ");
        assert_eq!(answer(&[("windowsize", "64"), ("blksize", "65464")], &ANY), "windowsize=16 blksize=65464 ");
        let nothing_left = Limits { window_bytes_max: 0, ..LIMITS };
        assert_eq!(answer(&[("windowsize", "64")], &nothing_left), "windowsize=1 ");
    }

    #[test]
    fn an_option_that_makes_no_sense_is_not_granted_and_costs_nothing_else() {
        for (name, value) in [
            ("blksize", "0"),
            ("blksize", "7"),
            ("blksize", "many"),
            ("blksize", "-1"),
            ("blksize", "99999999999999999999999"),
            ("timeout", "0"),
            ("timeout", "256"),
            ("windowsize", "0"),
            ("windowsize", "65536"),
            ("multicast", ""),
            ("rollover", "1"),
        ] {
            assert_eq!(answer(&[(name, value), ("tsize", "0")], &LIMITS), "tsize=7000 ", "{name}={value}");
            assert_eq!(answer(&[(name, value)], &LIMITS), "");
        }
        assert_eq!(answer(&[("blksize", "1024"), ("BLKSIZE", "600")], &LIMITS), "blksize=1024 ");
        let unknown = Terms::agree(&request(&[("tsize", "0")]), &LIMITS, None);
        assert_eq!(unknown.answer, [], "a length that nobody knows yet is not told");
        let empty = Terms::agree(&request(&[("tsize", "0")]), &LIMITS, Some(0));
        assert_eq!(empty.answer, [], "curl ends with \"invalid tsize\" when it is told 0");
    }

    #[test]
    fn without_options_the_first_answer_is_block_1_of_512_bytes() {
        let mut scene = Scene::new(600, &[]);
        let sent = scene.sent();
        assert_eq!((sent.len(), &sent[0][..4], sent[0].len()), (1, &b"\0\x03\0\x01"[..], 516));
        scene.ack(1);
        assert_eq!(scene.sent()[0].len(), 4 + 88);
        scene.ack(2);
        assert_eq!(scene.events(), [Event::Took(512), Event::Took(88), Event::Ended(Outcome::Complete)]);
    }

    #[test]
    fn a_size_that_is_a_multiple_of_the_block_ends_with_an_empty_block() {
        for (length, last) in [(0, 1), (512, 2), (1024, 3)] {
            let mut scene = Scene::new(length, &[]);
            for block in 1..last {
                assert_eq!(scene.blocks(), [block]);
                scene.ack(block);
            }
            let sent = scene.sent();
            assert_eq!(sent, [[0, 3, 0, last as u8]]);
            scene.ack(last);
            assert_eq!(scene.outcome(), Some(Outcome::Complete), "{length} bytes");
        }
    }

    #[test]
    fn content_arrives_whole_for_any_block_and_window_size() {
        for block_size in ["8", "512", "1468", "65464"] {
            for window_size in ["1", "4", "16", "64"] {
                for length in [0, 1, 1468 * 64, 150_001] {
                    let mut scene = Scene::new(length, &[("blksize", block_size), ("windowsize", window_size)]);
                    let received = scene.finish();
                    assert!(
                        received == scene.content,
                        "{length} bytes in blocks of {block_size}, windows of {window_size}"
                    );
                    assert_eq!(scene.outcome(), Some(Outcome::Complete));
                }
            }
        }
    }

    #[test]
    fn block_numbers_roll_over_to_zero_and_the_content_stays_right() {
        for (options, length) in [
            (&[("blksize", "8")][..], 70_000 * 8 + 3),
            (&[("blksize", "8"), ("windowsize", "7")], 140_000 * 8),
            (&[], 33 * 1024 * 1024 + 5),
        ] {
            let mut scene = Scene::new(length, options);
            let received = scene.finish();
            assert!(received == scene.content, "{options:?}");
            assert_eq!(scene.outcome(), Some(Outcome::Complete));
        }
    }

    #[test]
    fn a_lost_option_ack_is_sent_again() {
        let mut scene = Scene::new(1000, &[("blksize", "600")]);
        let offer = scene.sent();
        assert_eq!(offer, [b"\0\x06blksize\x00600\0"]);
        scene.pass(999);
        assert!(scene.sent().is_empty());
        scene.pass(1);
        assert_eq!(scene.sent(), offer);
        scene.ack(0);
        assert_eq!(scene.blocks(), [1]);
        assert_eq!(scene.events(), [Event::Accepted]);
    }

    #[test]
    fn a_repeated_request_gets_the_first_answer_again_and_only_the_first() {
        let mut scene = Scene::new(2000, &[("blksize", "600")]);
        let offer = scene.sent();
        scene.transfer.handle_repeated_request();
        assert_eq!(scene.sent(), offer);
        scene.ack(0);
        assert_eq!(scene.blocks(), [1]);
        scene.ack(1);
        assert_eq!(scene.blocks(), [2]);
        scene.transfer.handle_repeated_request();
        assert!(scene.sent().is_empty());
    }

    #[test]
    fn a_lost_last_block_is_sent_again_until_it_is_acknowledged() {
        let mut scene = Scene::new(512, &[]);
        scene.sent();
        scene.ack(1);
        assert_eq!(scene.sent(), [[0, 3, 0, 2]]);
        scene.pass(5000);
        assert_eq!(scene.sent(), [[0, 3, 0, 2]]);
        scene.ack(2);
        assert_eq!(scene.outcome(), Some(Outcome::Complete));
        assert!(scene.sent().is_empty());
    }

    #[test]
    fn duplicate_acks_never_double_the_traffic() {
        for options in [&[][..], &[("windowsize", "4")], &[("windowsize", "16")]] {
            let mut scene = Scene::new(40 * 512, options);
            let mut sent = scene.sent();
            while scene.outcome().is_none() {
                let last = sent.pop().unwrap_or_else(|| panic!("stopped after {} blocks", scene.data_sent));
                let block = if last[1] == 6 { 0 } else { u16::from_be_bytes([last[2], last[3]]) };
                scene.now += Duration::from_millis(2);
                // Each acknowledgement comes three times, the copies while its answer is already on the wire.
                for _ in 0..3 {
                    scene.ack(block);
                    sent.extend(scene.sent());
                    scene.now += Duration::from_micros(10);
                }
            }
            assert_eq!(scene.data_sent, 41, "{options:?}");
        }
    }

    #[test]
    fn duplicates_that_come_late_repeat_a_window_at_most_once_in_three() {
        let mut scene = Scene::new(1200 * 512, &[("windowsize", "4")]);
        scene.sent();
        scene.ack(0);
        let mut block = 0;
        while scene.outcome().is_none() {
            scene.sent();
            scene.now += Duration::from_millis(2);
            // The echo of the acknowledgement before, one whole round trip late: it looks like a lost first block.
            scene.ack(block);
            scene.sent();
            scene.now += Duration::from_millis(2);
            block = (block + 4).min(1201);
            scene.ack(block);
        }
        assert!(scene.data_sent < 1201 * 4 / 3 + 8, "{} datagrams for 1201 blocks", scene.data_sent);
    }

    #[test]
    fn a_lock_step_client_is_never_answered_twice_for_one_acknowledgement() {
        let mut scene = Scene::new(5000, &[]);
        assert_eq!(scene.blocks(), [1]);
        scene.now += Duration::from_millis(3);
        scene.ack(1);
        assert_eq!(scene.blocks(), [2]);
        for _ in 0..10 {
            scene.now += Duration::from_millis(5);
            scene.ack(1);
            assert!(scene.sent().is_empty());
        }
    }

    #[test]
    fn an_ack_inside_a_window_resumes_there() {
        let mut scene = Scene::new(100 * 512, &[("windowsize", "8")]);
        scene.sent();
        scene.now += Duration::from_millis(2);
        scene.ack(0);
        assert_eq!(scene.blocks(), [1, 2, 3, 4, 5, 6, 7, 8]);
        scene.now += Duration::from_millis(2);
        scene.ack(3);
        assert_eq!(scene.blocks(), [4, 5, 6, 7, 8, 9, 10, 11]);
        for _ in 0..4 {
            scene.ack(3);
        }
        assert!(scene.sent().is_empty(), "blocks 5 to 8 of the first copy make the client say it again");
    }

    #[test]
    fn a_lost_first_block_of_a_window_is_repaired_in_one_round_trip() {
        let mut scene = Scene::new(100 * 512, &[("windowsize", "4")]);
        scene.sent();
        scene.now += Duration::from_millis(2);
        scene.ack(0);
        assert_eq!(scene.blocks(), [1, 2, 3, 4]);
        scene.now += Duration::from_millis(2);
        scene.ack(4);
        assert_eq!(scene.blocks(), [5, 6, 7, 8]);
        scene.now += Duration::from_millis(2);
        scene.ack(4);
        assert_eq!(scene.blocks(), [5, 6, 7, 8]);
        scene.ack(4);
        assert!(scene.sent().is_empty());
    }

    #[test]
    fn an_error_of_the_client_ends_at_once_in_any_phase() {
        let abort = b"\0\x05\0\x08User aborted the transfer\0";
        let mut probe = Scene::new(1000, &[("tsize", "0")]);
        assert_eq!(probe.sent(), [b"\0\x06tsize\x001000\0"]);
        probe.transfer.handle_packet(abort, probe.now);
        let outcome = Outcome::Aborted("client's error 8: User aborted the transfer".into());
        assert_eq!(probe.events(), [Event::Ended(outcome.clone())], "a probe is never accepted, so never an access");
        probe.pass(10_000);
        assert!(probe.sent().is_empty() && probe.transfer.poll_timeout().is_none());

        let mut middle = Scene::new(5000, &[]);
        middle.sent();
        middle.ack(1);
        middle.sent();
        middle.transfer.handle_packet(abort, middle.now);
        assert_eq!(middle.events(), [Event::Took(512), Event::Ended(outcome)]);
    }

    #[test]
    fn the_wait_follows_the_link_and_doubles_only_while_nothing_comes() {
        let mut scene = Scene::new(100 * 512, &[]);
        for block in 1..20 {
            assert_eq!(scene.blocks(), [block]);
            scene.now += Duration::from_millis(40);
            scene.ack(block);
        }
        assert_eq!(scene.blocks(), [20]);
        let wait = |scene: &Scene| (scene.transfer.poll_timeout().unwrap() - scene.now).as_millis();
        assert_eq!(wait(&scene), 100, "40 ms round trips, so the least wait");
        let mut waits = Vec::new();
        for _ in 0..8 {
            let due = wait(&scene) as u64;
            waits.push(due);
            scene.pass(due);
            assert_eq!(scene.blocks(), [20]);
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        scene.ack(20);
        assert_eq!(scene.blocks(), [21]);
        assert_eq!(wait(&scene), 100);
    }

    #[test]
    fn an_answer_to_a_block_sent_twice_measures_nothing() {
        let mut scene = Scene::new(10 * 512, &[]);
        scene.sent();
        scene.now += Duration::from_millis(1);
        scene.ack(1);
        scene.sent();
        let before = scene.transfer.round_trip.smoothed;
        scene.pass(1000);
        scene.sent();
        scene.now += Duration::from_millis(70);
        scene.ack(2);
        assert_eq!(scene.transfer.round_trip.smoothed, before);
    }

    #[test]
    fn the_timeout_option_shortens_the_wait_and_never_stretches_it() {
        let due = |seconds| {
            let mut scene = Scene::new(10, &[("timeout", seconds)]);
            for _ in 0..6 {
                scene.sent();
                scene.now = scene.transfer.poll_timeout().unwrap();
                scene.transfer.handle_timeout(scene.now);
            }
            scene.sent();
            scene.transfer.poll_timeout().unwrap() - scene.now
        };
        assert_eq!(due("1"), Duration::from_secs(1));
        assert_eq!(due("255"), Duration::from_secs(5));
    }

    #[test]
    fn a_silent_client_is_given_up_after_30_seconds() {
        let mut scene = Scene::new(1000, &[]);
        scene.sent();
        let began = scene.now;
        let mut tries = 0;
        while let Some(due) = scene.transfer.poll_timeout() {
            scene.now = due;
            scene.transfer.handle_timeout(due);
            tries += scene.sent().iter().filter(|datagram| datagram[1] == 3).count();
        }
        let reason = "no acknowledgement of block 1 for 30 s".to_owned();
        assert_eq!(scene.outcome(), Some(Outcome::Failed(reason)));
        assert_eq!((scene.now - began).as_secs(), 32);
        assert_eq!(tries, 7);
    }

    #[test]
    fn a_slow_content_is_not_the_clients_silence() {
        let length = 4 * 65536;
        let mut scene = Scene::new(length, &[("windowsize", "4")]);
        scene.sent();
        scene.ack(0);
        let wanted = scene.transfer.poll_wanted().unwrap();
        assert_eq!(wanted, Wanted { offset: 0, length: 65536 });
        assert!(scene.transfer.poll_wanted().is_none(), "one read at a time");
        assert_eq!(scene.transfer.poll_timeout(), None);
        scene.pass(3_600_000);
        assert_eq!(scene.events(), [Event::Accepted]);
        scene.transfer.handle_data(scene.content.slice(..65536));
        assert_eq!(scene.blocks(), [1, 2, 3, 4]);
    }

    #[test]
    fn content_that_breaks_its_promise_ends_with_an_error_for_the_client() {
        let mut scene = Scene::new(100_000, &[]);
        scene.transfer.poll_wanted().unwrap();
        scene.transfer.handle_data(Bytes::from_static(b"short"));
        assert_eq!(scene.sent(), [b"\0\x05\0\0the content has 5 bytes, 100000 were announced\0"]);
        assert_eq!(scene.outcome(), Some(Outcome::Failed("the content has 5 bytes, 100000 were announced".into())));
    }

    #[test]
    fn netascii_is_translated_also_across_block_borders() {
        let text = Bytes::from_static(b"a\nb\rc\r\nd");
        let request = Request { mode: Mode::Netascii, ..request(&[("blksize", "8"), ("tsize", "0")]) };
        let terms = Terms::agree(&request, &ANY, Some(8));
        assert_eq!(terms.answer, [RequestOption::new("blksize", 8)], "the translated length is not known, so not told");
        let transfer = Transfer::new(terms, Mode::Netascii, Some(8));
        let mut scene = Scene { transfer, content: text, now: Instant::now(), data_sent: 0 };
        assert_eq!(scene.finish(), b"a\r\nb\r\0c\r\0\r\nd");
        assert_eq!(scene.outcome(), Some(Outcome::Complete));
    }

    #[test]
    fn a_burst_fits_into_one_segmented_send() {
        let mut scene = Scene::new(300_000, &[("blksize", "1468"), ("windowsize", "64")]);
        scene.sent();
        scene.ack(0);
        while let Some(wanted) = scene.transfer.poll_wanted() {
            let start = wanted.offset as usize;
            scene.transfer.handle_data(scene.content.slice(start..300_000.min(start + wanted.length)));
        }
        let (mut out, mut counts) = (Vec::new(), Vec::new());
        while let Some(burst) = scene.transfer.poll_transmit(&mut out, scene.now) {
            assert_eq!(burst.segment_bytes, 1472);
            assert!(out.len() <= 65507);
            counts.push(out.len() / 1472);
        }
        assert_eq!(counts, [44, 20]);
    }

    /// Whatever a client sends, in whatever order, nothing panics, and what is buffered stays within the window and two reads.
    #[test]
    fn any_bytes_at_any_time_never_panic() {
        let mut random = SmallRng::seed_from_u64(0x7440);
        for _ in 0..300 {
            let window = random.random_range(1..=64_u32).to_string();
            let block = random.random_range(8..=2000_u32).to_string();
            let length = random.random_range(0..400_000);
            let mut scene = Scene::new(length, &[("blksize", &block), ("windowsize", &window)]);
            for _ in 0..400 {
                scene.sent();
                let buffered: usize = scene.transfer.feed.chunks.iter().map(Bytes::len).sum();
                assert!(
                    buffered <= 4 * scene.transfer.terms.window_bytes().max(READ_BYTES),
                    "{buffered} bytes buffered"
                );
                match random.random_range(0..4) {
                    0 => {
                        let mut datagram = vec![0; random.random_range(0..8)];
                        random.fill_bytes(&mut datagram);
                        if datagram.len() > 1 && datagram[1] != 5 {
                            datagram[0] = 0;
                        }
                        scene.transfer.handle_packet(&datagram, scene.now);
                    }
                    1 => scene.pass(random.random_range(0..200)),
                    2 => scene.ack(random.random_range(0..100)),
                    _ => {
                        let near = scene.transfer.next + random.random_range(0..66);
                        scene.ack(wire_number(near.saturating_sub(1)));
                    }
                }
            }
        }
    }

    /// Loses datagrams in both directions with a fixed seed; the content must come through whole.
    #[test]
    fn a_lossy_link_is_repaired() {
        for window in [1_u16, 4, 16, 64] {
            let mut random = SmallRng::seed_from_u64(u64::from(window));
            let mut scene = Scene::new(300_000, &[("blksize", "1024"), ("windowsize", &window.to_string())]);
            let (mut received, mut expected, mut in_window) = (Vec::new(), 1_u64, 0);
            let began = scene.now;
            while scene.outcome().is_none() {
                let datagrams = scene.sent();
                scene.now += Duration::from_millis(1);
                let mut acks = Vec::new();
                for datagram in datagrams.iter().filter(|_| !random.random_bool(0.02)) {
                    match packet::decode(datagram).unwrap() {
                        Packet::OptionAck(_) => acks.push(0),
                        Packet::Data { block, payload } if block == (expected & 0xffff) as u16 => {
                            received.extend_from_slice(payload);
                            expected += 1;
                            in_window += 1;
                            if in_window == window || payload.len() < 1024 {
                                in_window = 0;
                                acks.push(block);
                            }
                        }
                        // A gap or a copy: say what is known, as RFC 7440 section 4 has it.
                        Packet::Data { .. } => {
                            in_window = 0;
                            acks.push(((expected - 1) & 0xffff) as u16);
                        }
                        other => panic!("unexpected {other:?}"),
                    }
                }
                let heard: Vec<u16> = acks.into_iter().filter(|_| !random.random_bool(0.02)).collect();
                for block in heard {
                    scene.ack(block);
                }
                if let Some(due) = scene.transfer.poll_timeout().filter(|_| datagrams.is_empty()) {
                    scene.now = scene.now.max(due);
                    scene.transfer.handle_timeout(scene.now);
                }
            }
            assert!(received == scene.content, "windows of {window}");
            assert!(scene.data_sent < 293 * 2, "windows of {window}: {} datagrams for 293 blocks", scene.data_sent);
            assert!(scene.now - began < Duration::from_secs(6), "windows of {window}: {:?}", scene.now - began);
        }
    }
}
