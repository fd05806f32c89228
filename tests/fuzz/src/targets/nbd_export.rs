//! NBD's requests: a client's stream against a disk that is a vector, answered in an order that the script chooses.
//!
//! ```text
//!  script: size, read-only?, structured?, contexts? │ cut of the stream │ order of the answers │ the client's stream
//!  model:  the stream's requests, read by a reader of its own; the disk as the client must see it; every cookie that waits
//! ```
//! A request is answered once, by its cookie, with as many bytes as it asked for, or refused; and never anything else.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};
use gateway::content::disk::{Extent, Fill, Piece};
use gateway::nbd::export::{Done, End, Export, Output, Refused, Step, Ticket, Work};
use gateway::nbd::handshake::{Agreed, Context, Replies, Shape, Writes};
use gateway::nbd::message::{Errno, REQUEST_BYTES, Request, command};

use crate::corpus;
use crate::script::Script;

/// What of a disk is kept; a larger one fails behind it.
const KEPT_BYTES: u64 = 64 * 1024;
const IN_FLIGHT_BYTES_MAX: u64 = 32 * 1024 * 1024;
const REQUESTS_MAX: usize = 128;

pub(super) fn run(bytes: &[u8]) {
    let mut script = Script(bytes);
    let size = script.one_of(&[KEPT_BYTES, 4096, 1, 0, 513, 1 << 33, u64::MAX]);
    let writes = script.one_of(&[Writes::Taken, Writes::Taken, Writes::Refused]);
    let replies = script.one_of(&[Replies::Structured, Replies::Simple]);
    let context = script.one_of(&[Context::Allocation, Context::Absent]);
    let context = if replies == Replies::Simple { Context::Absent } else { context };
    let segment_bytes = usize::from(script.byte()) * 16 + 1;
    let order = script.byte();
    let stream = with_cookies(script.rest());
    let agreed = Agreed { shape: Shape { size, writes }, replies, context };
    let mut scene = Scene {
        export: Export::new(agreed),
        agreed,
        disk: vec![0; size.min(KEPT_BYTES) as usize],
        out: Output::default(),
        waiting: Vec::new(),
        due: BTreeMap::new(),
        order,
    };
    scene.serve(&stream, segment_bytes);
}

struct Scene {
    export: Export,
    agreed: Agreed,
    disk: Vec<u8>,
    out: Output,
    /// What the disk works on.
    waiting: Vec<(Ticket, Work, u64)>,
    /// Answers that the client waits for, by cookie.
    due: BTreeMap<u64, Expected>,
    order: u8,
}

/// What the client asked for, and the bytes that it must get.
#[derive(Debug)]
struct Expected {
    request: Request,
    bytes: Option<Bytes>,
}

impl Scene {
    fn serve(&mut self, stream: &[u8], segment_bytes: usize) {
        let asked = requests(stream);
        let (mut input, mut segments, mut taken) = (BytesMut::new(), stream.chunks(segment_bytes), asked.iter());
        let goodbye = asked.iter().position(|request| request.command == command::DISC);
        for request in &asked[..goodbye.unwrap_or(asked.len())] {
            self.due.insert(request.cookie, Expected { request: *request, bytes: None });
        }
        loop {
            match self.export.advance(&mut input, &mut self.out) {
                Step::Wanted(count) => {
                    assert!(count > input.len() || count == 1, "{count} bytes are wanted, and there");
                    assert!(count as u64 <= IN_FLIGHT_BYTES_MAX + REQUEST_BYTES as u64, "{count} bytes are wanted");
                    let Some(segment) = segments.next() else { break };
                    input.extend_from_slice(segment);
                }
                Step::Work(ticket, work) => {
                    let request = self.next_admitted(&mut taken);
                    self.begin(ticket, work, request);
                }
                Step::Full => {
                    assert!(!self.waiting.is_empty() || !self.out.is_empty(), "full, and nothing is under way");
                    self.finish_all();
                    self.receive();
                }
                Step::Closed(End::Disconnected) => {
                    assert!(goodbye.is_some(), "nobody said goodbye");
                    break;
                }
                Step::Closed(End::Garbage) => {
                    assert!(!input.starts_with(&[0x25, 0x60, 0x95, 0x13]), "a request is no garbage");
                    break;
                }
            }
        }
        self.finish_all();
        self.receive();
        assert_eq!(self.export.requests(), 0, "every ticket was given back");
        assert!(self.due.is_empty(), "not answered: {:?}", self.due);
    }

    /// The request that this work is: what was refused before it has no work.
    fn next_admitted<'a>(&self, taken: &mut impl Iterator<Item = &'a Request>) -> Request {
        *taken.find(|request| self.is_allowed(request)).expect("work for a request that is not allowed")
    }

    /// The table in export.rs, written a second time.
    fn is_allowed(&self, request: &Request) -> bool {
        let Shape { size, writes } = self.agreed.shape;
        let (flags, length_max, changes) = match request.command {
            command::READ => (1 | if self.agreed.replies == Replies::Structured { 4 } else { 0 }, 1 << 25, false),
            command::WRITE => (1, 1 << 25, true),
            command::FLUSH => return request.flags & !1 == 0 && request.offset == 0 && request.length == 0,
            command::TRIM => (1, u32::MAX, true),
            command::CACHE => (1, u32::MAX, false),
            command::WRITE_ZEROES => (1 | 2 | 16, u32::MAX, true),
            command::BLOCK_STATUS if self.agreed.context == Context::Allocation => (1 | 8, u32::MAX, false),
            _ => return false,
        };
        let is_inside = u128::from(request.offset) + u128::from(request.length) <= u128::from(size);
        let is_writable = !changes || writes == Writes::Taken;
        request.flags & !flags == 0 && is_writable && is_inside && (1..=length_max).contains(&request.length)
    }

    fn begin(&mut self, ticket: Ticket, work: Work, request: Request) {
        if let Work::Write { offset, data, .. } = &work {
            assert_eq!((*offset, data.len() as u64), (request.offset, u64::from(request.length)));
            if let Some(range) = self.kept(*offset, data.len() as u64) {
                self.disk[range].copy_from_slice(data);
            }
        }
        self.waiting.push((ticket, work, request.cookie));
        assert!(self.waiting.len() <= REQUESTS_MAX && self.export.requests() == self.waiting.len());
        let moved: u64 = self.waiting.iter().map(|(_, work, _)| moved_bytes(work)).sum();
        assert!(moved <= IN_FLIGHT_BYTES_MAX, "{moved} bytes are in flight");
        if self.order.is_multiple_of(5) || self.waiting.len() > usize::from(self.order) {
            self.finish_one();
        }
    }

    fn finish_all(&mut self) {
        while !self.waiting.is_empty() {
            self.finish_one();
        }
    }

    fn finish_one(&mut self) {
        let (ticket, work, cookie) = self.waiting.swap_remove(usize::from(self.order) % self.waiting.len());
        let result = self.perform(&work);
        if let (Ok(Done::Pieces(pieces)), Work::Read { length, .. }) = (&result, &work) {
            let bytes = joined(pieces);
            assert_eq!(bytes.len() as u64, *length);
            self.due.get_mut(&cookie).expect("somebody waits for it").bytes = Some(bytes);
        }
        self.export.finish(ticket, result, &mut self.out);
    }

    fn perform(&mut self, work: &Work) -> Result<Done, Refused> {
        let out_of_reach = || Refused { errno: Errno::Io, text: "behind what is kept".to_owned() };
        match *work {
            Work::Flush | Work::Write { .. } | Work::Cache { .. } | Work::Trim { .. } => Ok(Done::Nothing),
            Work::Read { offset, length } => {
                let range = self.kept(offset, length).ok_or_else(out_of_reach)?;
                // Runs of zeros are told apart, as a disk does.
                let pieces = self.disk[range].chunk_by(|one, other| (*one == 0) == (*other == 0));
                Ok(Done::Pieces(pieces.map(piece).collect()))
            }
            Work::Zero { offset, length, .. } => {
                let range = self.kept(offset, length).ok_or_else(out_of_reach)?;
                self.disk[range].fill(0);
                Ok(Done::Nothing)
            }
            Work::Status { length, .. } => {
                let half = length / 2;
                let extents = [(half, Fill::Zeros), (length - half, Fill::Data)];
                let extents = extents.into_iter().filter(|(length, _)| *length > 0);
                Ok(Done::Extents(extents.map(|(length, fill)| Extent { length, fill }).collect()))
            }
        }
    }

    fn kept(&self, offset: u64, length: u64) -> Option<std::ops::Range<usize>> {
        let end = offset.checked_add(length)?;
        assert!(end <= self.agreed.shape.size, "work lies inside the export");
        (end <= self.disk.len() as u64).then_some(offset as usize..end as usize)
    }

    /// Reads what was sent, as a client does.
    fn receive(&mut self) {
        let bytes: Vec<u8> = self.out.chunks().flatten().copied().collect();
        assert_eq!(bytes.len() as u64, self.out.bytes());
        // As a socket takes it: a part, then the rest.
        let part = bytes.len() / 3;
        self.out.sent(part);
        self.out.sent(bytes.len() - part);
        assert!(self.out.is_empty());
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            match rest.get_u32() {
                0x6744_6698 => self.simple(&mut rest),
                0x668e_33ef => self.structured(&mut rest),
                other => panic!("no reply begins with {other:#x}"),
            }
        }
    }

    fn simple(&mut self, rest: &mut &[u8]) {
        let (error, cookie) = (rest.get_u32(), rest.get_u64());
        let Expected { request, bytes } = self.take_due(cookie);
        if request.command == command::READ && error == 0 {
            assert_eq!(self.agreed.replies, Replies::Simple, "a read has a structured answer");
            let bytes = bytes.expect("what the disk read");
            assert!(rest.starts_with(&bytes), "the bytes of a read");
            rest.advance(bytes.len());
        }
    }

    /// All chunks of one reply; they follow one another here.
    fn structured(&mut self, rest: &mut &[u8]) {
        assert_eq!(self.agreed.replies, Replies::Structured, "chunks for a client that did not ask for them");
        let (mut read, mut error) = (Vec::new(), 0);
        loop {
            let (flags, kind, cookie, length) = (rest.get_u16(), rest.get_u16(), rest.get_u64(), rest.get_u32());
            let request = self.due.get(&cookie).unwrap_or_else(|| panic!("nobody waits for {cookie:#x}")).request;
            let mut payload = &rest[..length as usize];
            rest.advance(length as usize);
            if let 1 | 2 = kind {
                assert_eq!(payload.get_u64(), request.offset + read.len() as u64, "the bytes follow one another");
            }
            match kind {
                1 => read.extend_from_slice(payload),
                2 => read.resize(read.len() + payload.get_u32() as usize, 0),
                5 => check_extents(&request, payload),
                32769 => error = payload.get_u32(),
                other => panic!("a chunk of the type {other}"),
            }
            if flags & 1 == 1 {
                let expected = self.take_due(cookie);
                let is_read = request.command == command::READ && error == 0;
                assert!(!is_read || expected.bytes.is_some_and(|bytes| bytes == read), "the bytes of a read");
                return;
            }
            assert_eq!(rest.get_u32(), 0x668e_33ef, "more chunks of this reply");
        }
    }

    fn take_due(&mut self, cookie: u64) -> Expected {
        self.due.remove(&cookie).unwrap_or_else(|| panic!("nobody waits for {cookie:#x}"))
    }
}

/// A context, and pairs of a length and a state.
fn check_extents(request: &Request, mut payload: &[u8]) {
    assert_eq!((payload.get_u32(), payload.len() % 8), (1, 0));
    let described: u64 = payload.chunks(8).map(|mut extent| u64::from(extent.get_u32())).sum();
    assert!((1..=u64::from(request.length)).contains(&described), "{described} bytes were described");
}

fn moved_bytes(work: &Work) -> u64 {
    match work {
        Work::Read { length, .. } => *length,
        Work::Write { data, .. } => data.len() as u64,
        _ => 0,
    }
}

fn piece(bytes: &[u8]) -> Piece {
    if bytes[0] == 0 { Piece::Zeros(bytes.len() as u64) } else { Piece::Data(Bytes::copy_from_slice(bytes)) }
}

fn joined(pieces: &[Piece]) -> Bytes {
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(data),
            Piece::Zeros(length) => bytes.resize(bytes.len() + *length as usize, 0),
        }
    }
    bytes.into()
}

/// The stream, with a cookie for each request that no other has.
fn with_cookies(stream: &[u8]) -> Vec<u8> {
    let mut stream = stream.to_vec();
    for (number, at) in places(&stream).into_iter().enumerate() {
        stream[at + 8..at + 16].copy_from_slice(&(0xc00c_1e00_0000_0000 + number as u64).to_be_bytes());
    }
    stream
}

/// The whole requests of a stream, up to where it makes no sense any more.
fn requests(stream: &[u8]) -> Vec<Request> {
    let heads = places(stream).into_iter().filter_map(|at| stream[at..].first_chunk::<REQUEST_BYTES>());
    heads.filter_map(Request::decode).collect()
}

/// Where they begin.
fn places(stream: &[u8]) -> Vec<usize> {
    let (mut places, mut at) = (Vec::new(), 0);
    while let Some(head) = stream.get(at..at + REQUEST_BYTES).filter(|head| head.starts_with(&[0x25, 0x60, 0x95, 0x13]))
    {
        let (mut kind, mut length) = (&head[6..8], &head[24..28]);
        let data = if kind.get_u16() == command::WRITE { length.get_u32() as usize } else { 0 };
        let end = at + REQUEST_BYTES + data;
        if end > stream.len() {
            break;
        }
        places.push(at);
        at = end;
    }
    places
}

/// Every command, allowed and not, in streams as clients send them.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let request = |flags: u16, command: u16, offset: u64, length: u32, data: &[u8]| {
        let head = [&[0x25, 0x60, 0x95, 0x13][..], &flags.to_be_bytes(), &command.to_be_bytes(), &[7; 8]].concat();
        [&head[..], &offset.to_be_bytes(), &length.to_be_bytes(), data].concat()
    };
    let write = request(0, command::WRITE, 512, 16, b"0123456789abcdef");
    let all = [
        write.clone(),
        request(0, command::READ, 0, 1024, b""),
        request(4, command::READ, 0, 65536, b""),
        request(1, command::FLUSH, 0, 0, b""),
        request(0, command::TRIM, 0, 4096, b""),
        request(18, command::WRITE_ZEROES, 512, 8, b""),
        request(0, command::CACHE, 0, u32::MAX, b""),
        request(8, command::BLOCK_STATUS, 0, 512, b""),
        request(0, command::READ, 0, 0, b""),
        request(0, command::READ, u64::MAX, 2, b""),
        request(0, 99, 0, 0, b""),
        request(0, command::WRITE, 1 << 40, 3, b"abc"),
        request(0, command::READ, 500, 100, b""),
        request(0, command::DISC, 0, 0, b""),
    ];
    let many = request(0, command::READ, 0, 64, b"").repeat(200);
    let heads =
        [[0, 0, 0, 0, 255, 0], [0, 0, 1, 0, 2, 1], [5, 2, 0, 0, 1, 9], [1, 0, 0, 1, 0, 200], [6, 1, 1, 1, 40, 4]];
    let mut seeds: Vec<_> = heads.iter().map(|head| [&head[..], &all.concat()].concat()).collect();
    seeds.push([&heads[3][..], &many].concat());
    seeds.push([&heads[0][..], &write, b"no request at all, but as long as one"].concat());
    seeds.extend(corpus(include_str!("../../corpus/nbd_export.hex")));
    seeds
}
