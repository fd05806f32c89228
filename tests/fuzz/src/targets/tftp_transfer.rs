//! One TFTP read: a request as firmware sends it, then datagrams, bytes of the content and time in any order.
//!
//! ```text
//!  script: content's size, whether it is announced, limits, request │ ack ± │ datagram │ time │ content │ repetition │ …
//!  model:  the file as the client must get it; the first block that was not acknowledged, by the transfer's own reports
//! ```

use std::time::{Duration, Instant};

use bytes::Bytes;
use gateway::namespace::Outcome;
use gateway::tftp::packet::{ErrorCode, Mode, Packet, Request, decode};
use gateway::tftp::transfer::{Event, Limits, Terms, Transfer};

use super::tftp_packet::requests;
use crate::corpus;
use crate::script::{Script, piece};

/// What one UDP datagram over IPv4 carries; a burst is handed to the kernel as one.
const BURST_BYTES_MAX: usize = 65507;
const READ_BYTES: usize = 64 * 1024;
/// Steps of one script: enough to end a file of several windows.
const STEPS_MAX: usize = 400;

pub(super) fn run(bytes: &[u8]) {
    let mut script = Script(bytes);
    let size = usize::from(script.number()) * usize::from(1 + script.byte() % 4);
    let announced = script.one_of(&[Some(0), Some(0), None, Some(1), Some(-1)]);
    let limits = Limits {
        block_size_max: script.one_of(&[1468, 512, 8192, 65464]),
        window_size_max: u16::from(1 + script.byte() % 64),
        window_bytes_max: script.one_of(&[1 << 20, 100_000, 1000, 1]),
    };
    let Ok(Packet::Read(request)) = decode(script.piece()) else { return };
    let announced = announced.map(|error| (size as u64).saturating_add_signed(error));
    let mut scene = Scene::new(&request, limits, size, announced);
    for _ in 0..STEPS_MAX {
        scene.settle();
        if script.is_over() {
            break;
        }
        scene.step(&mut script);
    }
    scene.settle();
}

struct Scene {
    transfer: Transfer,
    terms: Terms,
    content: Bytes,
    /// The content as it goes over the wire.
    wire: Vec<u8>,
    announced: Option<u64>,
    now: Instant,
    taken: u64,
    is_accepted: bool,
    outcome: Option<Outcome>,
    read: u64,
    wanted: Option<(u64, usize)>,
    last_sent: u16,
}

impl Scene {
    fn new(request: &Request, limits: Limits, size: usize, announced: Option<u64>) -> Scene {
        let content: Bytes = (0..size).map(|at| if at % 97 == 0 { b'\n' } else { (at * 7 + at / 251) as u8 }).collect();
        let terms = Terms::agree(request, &limits, announced);
        assert!((8..=limits.block_size_max.max(512)).contains(&terms.block_size), "{terms:?}");
        assert!((1..=limits.window_size_max).contains(&terms.window_size), "{terms:?}");
        assert!(terms.window_size == 1 || terms.window_bytes() <= limits.window_bytes_max, "{terms:?}");
        assert!(terms.answer.len() <= request.options.len(), "{terms:?}");
        Scene {
            transfer: Transfer::new(terms.clone(), request.mode, announced),
            is_accepted: terms.answer.is_empty(),
            terms,
            wire: on_the_wire(&content, request.mode),
            content,
            announced,
            now: Instant::now(),
            taken: 0,
            outcome: None,
            read: 0,
            wanted: None,
            last_sent: 0,
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 8 {
            0 => self.transfer.handle_packet(script.piece(), self.now),
            1 | 2 => self.acknowledge(self.last_sent),
            3 => self.acknowledge(self.last_sent.wrapping_add(script.byte().into()).wrapping_sub(16)),
            4 => {
                self.now += Duration::from_millis(script.number().into());
                self.transfer.handle_timeout(self.now);
            }
            5 => self.deliver(usize::from(script.number())),
            6 if script.byte() == 0 => self.transfer.fail(ErrorCode::NotDefined, "the disk is on fire".to_owned()),
            6 => self.transfer.handle_repeated_request(),
            _ => {
                self.now = self.transfer.poll_timeout().map_or(self.now, |due| due.max(self.now));
                self.transfer.handle_timeout(self.now);
            }
        }
    }

    fn acknowledge(&mut self, block: u16) {
        self.now += Duration::from_millis(1);
        let [high, low] = block.to_be_bytes();
        self.transfer.handle_packet(&[0, 4, high, low], self.now);
    }

    /// What a reader gives: all that was wanted, less at the end, or less before (a content that shrank).
    fn deliver(&mut self, short_by: usize) {
        let Some((offset, length)) = self.wanted.take() else { return };
        let start = (offset as usize).min(self.content.len());
        let end = (start + length).min(self.content.len());
        let cut = short_by.saturating_sub(60_000);
        let bytes = self.content.slice(start..end - cut.min(end - start));
        self.read = offset + bytes.len() as u64;
        if cut > 0 {
            // The file is what was read of it.
            self.content.truncate(self.read as usize);
        }
        self.transfer.handle_data(bytes);
    }

    /// Everything that the ring polls for, held against the model.
    fn settle(&mut self) {
        while let Some(event) = self.transfer.poll_event() {
            self.hear(event);
        }
        self.send();
        if let Some(wanted) = self.transfer.poll_wanted() {
            assert!(self.outcome.is_none() && self.is_accepted, "bytes are wanted for nobody");
            assert_eq!(wanted.offset, self.read, "the content is read from its start to its end");
            assert!(wanted.length <= self.terms.window_bytes().max(READ_BYTES), "{wanted:?}");
            assert_eq!(self.wanted, None, "{wanted:?} while others are still read");
            self.wanted = Some((wanted.offset, wanted.length));
        }
        assert!(self.outcome.is_none() || self.transfer.poll_timeout().is_none(), "an end needs no timer");
    }

    fn hear(&mut self, event: Event) {
        assert_eq!(self.outcome, None, "nothing comes after the end, but {event:?}");
        match event {
            Event::Accepted => {
                assert!(!self.is_accepted, "an offer is taken once");
                self.is_accepted = true;
            }
            Event::Took(bytes) => {
                self.taken += bytes;
                assert!(self.is_accepted && self.taken <= self.wire.len() as u64, "{} bytes were taken", self.taken);
            }
            Event::Ended(outcome) => {
                if outcome == Outcome::Complete {
                    assert!(self.announced.is_none_or(|size| size == self.read), "a file of another size");
                    assert!(self.read >= self.content.len() as u64, "complete, and not all was read");
                }
                self.outcome = Some(outcome);
            }
        }
    }

    fn send(&mut self) {
        let (mut out, mut datagrams) = (Vec::new(), 0);
        while let Some(burst) = self.transfer.poll_transmit(&mut out, self.now) {
            assert!(!out.is_empty() && out.len() <= BURST_BYTES_MAX && burst.segment_bytes <= out.len());
            let bytes = std::mem::take(&mut out);
            for datagram in bytes.chunks(burst.segment_bytes) {
                datagrams += 1;
                self.check(datagram);
            }
        }
        // One answer repairs one window, whatever the client sent.
        assert!(datagrams <= usize::from(self.terms.window_size) + 1, "{datagrams} datagrams at once");
    }

    fn check(&mut self, datagram: &[u8]) {
        match decode(datagram).expect("what we send can be read") {
            Packet::OptionAck(answer) => assert_eq!((answer, self.is_accepted), (self.terms.answer.clone(), false)),
            Packet::Error { .. } => assert!(matches!(self.outcome, Some(Outcome::Failed(_))), "an ERROR is the end"),
            Packet::Data { block, payload } => {
                assert!(self.outcome.is_none() && self.is_accepted, "bytes for nobody");
                self.last_sent = block;
                let size = u64::from(self.terms.block_size);
                let next = self.taken / size + 1;
                let ahead = u64::from(block.wrapping_sub(next as u16));
                assert!(ahead < u64::from(self.terms.window_size), "block {block}, and {next} is not acknowledged");
                let start = ((next + ahead - 1) * size) as usize;
                let end = (start + size as usize).min(self.wire.len());
                assert!(self.wire.get(start..end).is_some_and(|bytes| bytes.starts_with(payload)), "block {block}");
                // Short blocks end a file: only one that shrank ends before its time, and it is not complete then.
                let is_short = payload.len() < end - start;
                assert!(!is_short || self.read >= self.content.len() as u64, "block {block} is short");
            }
            other => panic!("a server does not send {other:?}"),
        }
    }
}

fn on_the_wire(content: &[u8], mode: Mode) -> Vec<u8> {
    let translated = |byte: &u8| match byte {
        b'\n' => vec![b'\r', b'\n'],
        b'\r' => vec![b'\r', 0],
        other => vec![*other],
    };
    match mode {
        Mode::Octet => content.to_vec(),
        Mode::Netascii => content.iter().flat_map(translated).collect(),
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    // Content, acknowledgement, and so on: a boot without accidents; with a lost block; with a silent client.
    let smooth = [5, 0, 0, 1].repeat(30);
    let bumpy = [5, 0, 0, 1, 3, 12, 4, 0, 200, 1, 7, 6, 1, 3, 15].repeat(8);
    let silent = [5, 0, 0, 1, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7].to_vec();
    let mut asked = requests();
    asked.push(b"\0\x01a\0netascii\0".to_vec());
    asked.push(b"\0\x01a\0octet\0windowsize\0\x316\0blksize\0\x31024\0tsize\0\x30\0timeout\0\x35\0".to_vec());
    let scripts = [&smooth, &bumpy, &silent];
    let script = |(number, request): (usize, &Vec<u8>)| {
        let head = [0x80, number as u8, number as u8, number as u8, 0, 15, 0].to_vec();
        [head, piece(request), scripts[number % 3].clone()].concat()
    };
    let mut seeds: Vec<_> = asked.iter().enumerate().map(script).collect();
    seeds.extend(corpus(include_str!("../../corpus/tftp_transfer.hex")));
    seeds
}
