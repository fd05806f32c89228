//! Reading one file by TFTP, as a machine without sockets: packets and time-outs in, packets and bytes out. ◆
//!
//! ```text
//!            ┌─ OACK ─► ACK 0 ─┐                      every block in order: keep it; ACK the last of a window
//!  RRQ ──────┤                 ├─► DATA 1, 2, … ──►   a gap: ACK the last good block, once per window
//!            └─ DATA 1 (plain) ┘                      a short block: ACK it, done
//!  ERROR at any time: failed        silence: the last packet again, up to 6 times
//! ```
//! RFC 1350, 2347 (options), 2348 (blksize), 2349 (tsize), 7440 (windowsize).

use std::time::Duration;

/// 1 s as firmware does; 6 tries: shorter than a user's patience, longer than a server's slow open.
pub const RETRANSMIT_AFTER: Duration = Duration::from_secs(1);
/// See [`RETRANSMIT_AFTER`].
pub const TRIES_MAX: u32 = 6;

const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OACK: u16 = 6;

/// What a client asks for besides the file. Zero leaves an option out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// RFC 2348.
    pub block_size: u16,
    /// RFC 7440.
    pub window_size: u16,
}

impl Options {
    /// EDK2 (captured): `tsize 0 blksize 1468 windowsize 4`.
    pub const UEFI: Options = Options { block_size: 1468, window_size: 4 };
    /// iPXE (captured): `blksize 1432 tsize 0`.
    pub const IPXE: Options = Options { block_size: 1432, window_size: 0 };
    /// Intel's UNDI ROMs ask for 1456 so that a block fits into one frame with any header.
    pub const BIOS: Options = Options { block_size: 1456, window_size: 0 };
}

/// What to do after a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Nothing: a duplicate, or not for us.
    Ignore,
    /// Send [`Read::packet`] again or anew.
    Send,
    /// Keep these bytes; then send [`Read::packet`] if told so.
    Data(&'a [u8], Reply),
    /// Keep these last bytes, send [`Read::packet`], finished.
    Last(&'a [u8]),
    /// The server refuses; its words.
    Failed(String),
}

/// Whether a block is acknowledged at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It ends a window.
    Now,
    /// The window goes on.
    Later,
}

/// One transfer.
#[derive(Debug)]
pub struct Read {
    packet: Vec<u8>,
    block_size: usize,
    window_size: u16,
    size: Option<u64>,
    received: u64,
    block: u16,
    unacknowledged: u16,
    phase: Phase,
    complained: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Asked,
    Running,
    Over,
}

impl Read {
    /// A request for `name`, to be sent to the server's well-known port.
    pub fn new(name: &str, options: Options) -> Self {
        let mut packet = vec![0, 1];
        let mut word = |text: &str| {
            packet.extend_from_slice(text.as_bytes());
            packet.push(0);
        };
        word(name);
        word("octet");
        word("tsize");
        word("0");
        if options.block_size > 0 {
            word("blksize");
            word(&options.block_size.to_string());
        }
        if options.window_size > 0 {
            word("windowsize");
            word(&options.window_size.to_string());
        }
        Read {
            packet,
            block_size: 512,
            window_size: 1,
            size: None,
            received: 0,
            block: 0,
            unacknowledged: 0,
            phase: Phase::Asked,
            complained: None,
        }
    }

    /// What was sent last, or is to be sent now.
    pub fn packet(&self) -> &[u8] {
        &self.packet
    }

    /// Whether half of the file is here, or the rest will come in one block: the place for a fault.
    pub fn is_midway(&self) -> bool {
        self.size.is_none_or(|size| 2 * self.received >= size || size <= self.block_size as u64)
    }

    /// An ERROR packet that ends the transfer on the server's side.
    pub fn abort(code: u16, words: &str) -> Vec<u8> {
        let mut packet = [ERROR.to_be_bytes(), code.to_be_bytes()].concat();
        packet.extend_from_slice(words.as_bytes());
        packet.push(0);
        packet
    }

    /// A packet of the server's.
    pub fn handle_packet<'a>(&mut self, packet: &'a [u8]) -> Step<'a> {
        let Some((kind, rest)) = number(packet) else { return Step::Ignore };
        match (kind, self.phase) {
            (_, Phase::Over) => Step::Ignore,
            (ERROR, _) => Step::Failed(refusal(rest)),
            (OACK, Phase::Asked) => self.handle_options(rest),
            // The server lost our ACK 0.
            (OACK, Phase::Running) if self.block == 0 => Step::Send,
            (DATA, _) => match number(rest) {
                Some((block, data)) => self.handle_data(block, data),
                None => Step::Ignore,
            },
            _ => Step::Ignore,
        }
    }

    fn handle_options(&mut self, rest: &[u8]) -> Step<'static> {
        let words: Vec<String> =
            rest.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).to_ascii_lowercase()).collect();
        for pair in words.chunks_exact(2) {
            match (pair[0].as_str(), pair[1].parse::<u64>()) {
                ("blksize", Ok(size)) => self.block_size = usize::try_from(size).unwrap_or(512).clamp(8, 65464),
                ("windowsize", Ok(size)) => self.window_size = u16::try_from(size).unwrap_or(1).max(1),
                ("tsize", Ok(size)) => self.size = Some(size),
                _ => {}
            }
        }
        self.phase = Phase::Running;
        self.acknowledge();
        Step::Send
    }

    fn handle_data<'a>(&mut self, block: u16, data: &'a [u8]) -> Step<'a> {
        if block != self.block.wrapping_add(1) {
            return self.handle_gap(block);
        }
        if data.len() > self.block_size {
            self.phase = Phase::Over;
            return Step::Failed(format!(
                "the server sent a block of {} bytes, {} were agreed",
                data.len(),
                self.block_size
            ));
        }
        self.phase = Phase::Running;
        self.complained = None;
        self.block = block;
        self.received += data.len() as u64;
        self.unacknowledged += 1;
        if data.len() < self.block_size {
            self.phase = Phase::Over;
            self.acknowledge();
            return Step::Last(data);
        }
        if self.unacknowledged < self.window_size {
            return Step::Data(data, Reply::Later);
        }
        self.acknowledge();
        Step::Data(data, Reply::Now)
    }

    /// RFC 7440, 4: a block out of order is answered with the last good one. Once per gap, so that the rest of a window in flight does
    /// not multiply. The last acknowledged block again means that our ACK was lost; older ones mean nothing any more.
    fn handle_gap(&mut self, block: u16) -> Step<'static> {
        let ahead = block.wrapping_sub(self.block);
        let is_repetition = ahead == 0 && self.unacknowledged == 0;
        let is_gap = (2..=self.window_size).contains(&ahead);
        if self.phase != Phase::Running || self.complained == Some(self.block) || !(is_repetition || is_gap) {
            return Step::Ignore;
        }
        self.complained = Some(self.block);
        self.acknowledge();
        Step::Send
    }

    /// The time ran out: the last packet again, with what arrived meanwhile acknowledged.
    pub fn handle_timeout(&mut self) {
        if self.phase == Phase::Running {
            self.acknowledge();
        }
        self.complained = None;
    }

    fn acknowledge(&mut self) {
        self.unacknowledged = 0;
        self.packet = [ACK.to_be_bytes(), self.block.to_be_bytes()].concat();
    }
}

fn number(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*head), rest))
}

fn refusal(rest: &[u8]) -> String {
    let Some((code, words)) = number(rest) else { return "the server ended the transfer".into() };
    let words = words.split(|byte| *byte == 0).next().unwrap_or_default();
    format!("TFTP error {code}: {}", String::from_utf8_lossy(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(block: u16, bytes: &[u8]) -> Vec<u8> {
        [&DATA.to_be_bytes()[..], &block.to_be_bytes(), bytes].concat()
    }

    fn oack(words: &[&str]) -> Vec<u8> {
        let mut packet = OACK.to_be_bytes().to_vec();
        for word in words {
            packet.extend_from_slice(word.as_bytes());
            packet.push(0);
        }
        packet
    }

    #[test]
    fn the_request_is_what_firmware_sends() {
        let read = Read::new("snponly.efi", Options::UEFI);
        assert_eq!(read.packet(), b"\0\x01snponly.efi\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0");
        let read = Read::new("a", Options::IPXE);
        assert_eq!(read.packet(), b"\0\x01a\0octet\0tsize\x000\0blksize\x001432\0");
    }

    #[test]
    fn a_server_without_options_is_read_in_blocks_of_512() {
        let mut read = Read::new("a", Options::UEFI);
        assert_eq!(read.handle_packet(&data(1, &[7; 512])), Step::Data(&[7; 512], Reply::Now));
        assert_eq!(read.packet(), [0, 4, 0, 1]);
        assert_eq!(read.handle_packet(&data(2, b"end")), Step::Last(b"end"));
        assert_eq!(read.packet(), [0, 4, 0, 2]);
        assert_eq!((read.received, read.size), (515, None));
    }

    #[test]
    fn a_window_is_acknowledged_at_its_end_and_a_gap_once() {
        let mut read = Read::new("a", Options { block_size: 8, window_size: 3 });
        assert_eq!(read.handle_packet(&oack(&["BLKSIZE", "8", "windowsize", "3", "tsize", "44"])), Step::Send);
        assert_eq!((read.packet(), read.size), (&[0, 4, 0, 0][..], Some(44)));
        let block = |number| data(number, &[number as u8; 8]);
        assert_eq!(read.handle_packet(&block(1)), Step::Data(&[1; 8], Reply::Later));
        assert_eq!(read.handle_packet(&block(3)), Step::Send, "block 2 is missing");
        assert_eq!(read.packet(), [0, 4, 0, 1]);
        assert_eq!(read.handle_packet(&block(4)), Step::Ignore, "one complaint per gap");
        assert_eq!(read.handle_packet(&block(2)), Step::Data(&[2; 8], Reply::Later));
        assert_eq!(read.handle_packet(&block(2)), Step::Ignore, "a duplicate");
        assert_eq!(read.handle_packet(&block(3)), Step::Data(&[3; 8], Reply::Later));
        assert_eq!(read.handle_packet(&block(4)), Step::Data(&[4; 8], Reply::Now));
        assert_eq!(read.packet(), [0, 4, 0, 4]);
        assert_eq!(read.handle_packet(&block(5)), Step::Data(&[5; 8], Reply::Later));
        read.handle_timeout();
        assert_eq!(read.packet(), [0, 4, 0, 5], "what arrived is acknowledged when the rest stays away");
        assert_eq!(read.handle_packet(&data(6, &[6; 4])), Step::Last(&[6; 4]));
        assert_eq!(read.received, 44);
    }

    #[test]
    fn the_block_number_rolls_over_to_zero() {
        let mut read = Read::new("a", Options { block_size: 8, window_size: 0 });
        read.handle_packet(&oack(&["blksize", "8"]));
        for block in 1..=70_000_u32 {
            assert_eq!(read.handle_packet(&data(block as u16, &[1; 8])), Step::Data(&[1; 8], Reply::Now), "{block}");
        }
        assert_eq!(read.handle_packet(&data(70_001_u32 as u16, b"")), Step::Last(b""));
        assert_eq!(read.received, 560_000);
    }

    #[test]
    fn a_refusal_is_told_in_the_servers_words_and_a_lost_oack_is_asked_for_again() {
        let mut read = Read::new("a", Options::IPXE);
        read.handle_timeout();
        assert!(read.packet().starts_with(b"\0\x01a\0"), "still the request");
        assert_eq!(
            read.handle_packet(b"\0\x05\0\x01no such name\0"),
            Step::Failed("TFTP error 1: no such name".into())
        );
        assert_eq!(Read::abort(8, "User aborted the transfer"), b"\0\x05\0\x08User aborted the transfer\0");
    }

    #[test]
    fn an_oversized_block_is_refused() {
        let mut read = Read::new("a", Options::IPXE);
        let packet = data(1, &[0; 513]);
        let step = read.handle_packet(&packet);
        assert_eq!(step, Step::Failed("the server sent a block of 513 bytes, 512 were agreed".into()));
    }

    #[test]
    fn any_bytes_never_panic() {
        use rand::{RngExt, SeedableRng};
        let mut random = rand::rngs::SmallRng::seed_from_u64(11);
        for _ in 0..20_000 {
            let mut read = Read::new("a", Options::UEFI);
            for _ in 0..4 {
                let mut packet: Vec<u8> = (0..random.random_range(0..40)).map(|_| random.random_range(0..8)).collect();
                if let Some(first) = packet.first_mut() {
                    *first = 0;
                }
                read.handle_packet(&packet);
            }
        }
    }
}
