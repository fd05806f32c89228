//! The bytes of NBD, fixed newstyle, as the protocol text has them ("The NBD protocol", doc/proto.md of the reference server): what
//! stands where, not what it means. ◆
//!
//! ```text
//!  server  NBDMAGIC IHAVEOPT flags:16                       client  flags:32
//!  client  IHAVEOPT option:32 length:32 data                server  0x3e889045565a9 option:32 reply:32 length:32 data
//!  client  0x25609513 flags:16 command:16 cookie:64 offset:64 length:32 data of a WRITE
//!  server  0x67446698 error:32 cookie:64 data of a READ                                        simple
//!          0x668e33ef flags:16 kind:16 cookie:64 length:32 payload                             structured, one or more
//! ```

/// What a server says first: `NBDMAGIC`, `IHAVEOPT`, and its flags.
pub const GREETING: [u8; 18] = *b"NBDMAGICIHAVEOPT\x00\x03";

/// What begins each option of a client.
pub const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
/// The longest name or query that the protocol text allows.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Bytes of an option before its data.
pub const OPTION_BYTES: usize = 16;
/// Bytes of a request before the data of a write.
pub const REQUEST_BYTES: usize = 28;

/// A client's handshake flags.
pub mod client_flags {
    /// NBD_FLAG_C_FIXED_NEWSTYLE.
    pub const FIXED_NEWSTYLE: u32 = 1;
    /// NBD_FLAG_C_NO_ZEROES: the answer to EXPORT_NAME ends without 124 zeros.
    pub const NO_ZEROES: u32 = 2;
}

/// Options (NBD_OPT_…).
pub mod option {
    #![allow(missing_docs)]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Answers to options (NBD_REP_…).
pub mod reply {
    #![allow(missing_docs)]
    const ERROR: u32 = 1 << 31;
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = ERROR + 1;
    pub const ERR_POLICY: u32 = ERROR + 2;
    pub const ERR_INVALID: u32 = ERROR + 3;
    pub const ERR_TLS_REQD: u32 = ERROR + 5;
    pub const ERR_UNKNOWN: u32 = ERROR + 6;
    pub const ERR_TOO_BIG: u32 = ERROR + 9;
}

/// Kinds of NBD_REP_INFO.
pub mod info {
    #![allow(missing_docs)]
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do (NBD_FLAG_…).
pub mod export_flags {
    #![allow(missing_docs)]
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Commands (NBD_CMD_…).
pub mod command {
    #![allow(missing_docs)]
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of commands (NBD_CMD_FLAG_…).
pub mod command_flags {
    #![allow(missing_docs)]
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Flags of an extent in `base:allocation`: a hole, that reads as zeros.
pub const STATE_HOLE_AND_ZERO: u32 = 3;

/// Error numbers that the protocol knows; they are Linux's, on every system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// EPERM: a write to what is read-only.
    Permission = 1,
    /// EIO.
    Io = 5,
    /// EINVAL.
    Invalid = 22,
    /// ENOSPC: also a write past the end.
    NoSpace = 28,
    /// ENOTSUP: zeros that would not be fast.
    Unsupported = 95,
    /// ESHUTDOWN: nothing more is answered here; attach again.
    Shutdown = 108,
}

/// What begins an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHead {
    /// Which one.
    pub option: u32,
    /// Bytes of data behind it.
    pub length: u32,
}

impl OptionHead {
    /// `None` where the magic is another: what follows cannot be made sense of.
    pub fn decode(bytes: &[u8; OPTION_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.u64()? == OPTION_MAGIC).then_some(())?;
        Some(OptionHead { option: fields.u32()?, length: fields.u32()? })
    }
}

/// A request, before the data of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// How.
    pub flags: u16,
    /// What to do.
    pub command: u16,
    /// What the client knows the request by.
    pub cookie: u64,
    /// Where.
    pub offset: u64,
    /// How much.
    pub length: u32,
}

impl Request {
    /// `None` where the magic is another.
    pub fn decode(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.u32()? == 0x2560_9513).then_some(())?;
        let (flags, command, cookie) = (fields.u16()?, fields.u16()?, fields.u64()?);
        Some(Request { flags, command, cookie, offset: fields.u64()?, length: fields.u32()? })
    }
}

/// Big-endian fields, one after the other; `None` where the bytes end before.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `count` bytes.
    pub fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// Text behind its length, as names and queries are. Names are UTF-8, and no longer than the protocol text allows.
    pub fn text(&mut self) -> Option<&'a str> {
        let length = self.u32()? as usize;
        let text = if length <= TEXT_BYTES_MAX { self.take(length)? } else { return None };
        str::from_utf8(text).ok()
    }

    /// The next 16 bits.
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    /// The next 32 bits.
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    /// The next 64 bits.
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
}

/// Appends one answer to an option; `parts` are its data.
pub fn encode_reply(out: &mut Vec<u8>, option: u32, reply: u32, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.extend(0x0003_e889_0455_65a9_u64.to_be_bytes());
    for field in [option, reply, length as u32] {
        out.extend(field.to_be_bytes());
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// Appends a simple reply; the data of a read follow it.
pub fn encode_simple(out: &mut Vec<u8>, error: Option<Errno>, cookie: u64) {
    out.extend(0x6744_6698_u32.to_be_bytes());
    out.extend(error.map_or(0, |errno| errno as u32).to_be_bytes());
    out.extend(cookie.to_be_bytes());
}

/// Kinds of structured chunks (NBD_REPLY_TYPE_…).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Nothing.
    None = 0,
    /// An offset, and the bytes there.
    Data = 1,
    /// An offset, and how many zeros are there.
    Hole = 2,
    /// A context, and extents.
    BlockStatus = 5,
    /// An error number, and a sentence.
    Error = 32769,
}

/// Whether a chunk is the last one of its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Last {
    /// More follow.
    No = 0,
    /// NBD_REPLY_FLAG_DONE.
    Yes = 1,
}

/// Appends the head of a chunk; `length` bytes of payload follow it.
pub fn encode_chunk(out: &mut Vec<u8>, last: Last, chunk: Chunk, cookie: u64, length: u32) {
    out.extend(0x668e_33ef_u32.to_be_bytes());
    out.extend((last as u16).to_be_bytes());
    out.extend((chunk as u16).to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(length.to_be_bytes());
}

/// Appends a whole error chunk.
pub fn encode_error(out: &mut Vec<u8>, errno: Errno, text: &str, cookie: u64) {
    // 1 KiB of a sentence: an error can name a URL.
    let text = &text.as_bytes()[..text.floor_char_boundary(1024)];
    encode_chunk(out, Last::Yes, Chunk::Error, cookie, 6 + text.len() as u32);
    out.extend((errno as u32).to_be_bytes());
    out.extend((text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_with_another_magic_are_not_decoded() {
        let option = *b"IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x09";
        assert_eq!(OptionHead::decode(&option), Some(OptionHead { option: 7, length: 9 }));
        assert_eq!(OptionHead::decode(b"IHAVEOPS\x00\x00\x00\x07\x00\x00\x00\x09"), None);
        let mut request = *b"\x25\x60\x95\x13\x00\x01\x00\x02ABCDEFGH\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x02\x00";
        let (cookie, offset, length) = (u64::from_be_bytes(*b"ABCDEFGH"), 4096, 512);
        assert_eq!(Request::decode(&request), Some(Request { flags: 1, command: 2, cookie, offset, length }));
        request[0] = 0x26;
        assert_eq!(Request::decode(&request), None);
    }

    #[test]
    fn texts_longer_than_their_bytes_or_the_protocol_allows_are_not_read() {
        assert_eq!(Fields(b"\x00\x00\x00\x02ab").text(), Some("ab"));
        assert_eq!(Fields(b"\x00\x00\x00\x03ab").text(), None);
        assert_eq!(Fields(b"\xff\xff\xff\xffab").text(), None);
        assert_eq!(Fields(b"\x00\x00\x00\x01\xff").text(), None);
        assert_eq!(Fields(&[&[0, 0, 0x10, 1][..], &[b'a'; 4097]].concat()).text(), None);
    }

    #[test]
    fn replies_stand_as_in_the_protocol_text() {
        let mut out = Vec::new();
        encode_reply(&mut out, option::GO, reply::ERR_UNKNOWN, &[b"no ", b"disk"]);
        assert_eq!(out, b"\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x80\x00\x00\x06\x00\x00\x00\x07no disk");
        out.clear();
        encode_simple(&mut out, Some(Errno::NoSpace), 7);
        assert_eq!(out, b"\x67\x44\x66\x98\x00\x00\x00\x1c\x00\x00\x00\x00\x00\x00\x00\x07");
        out.clear();
        encode_error(&mut out, Errno::Invalid, "why", 7);
        assert_eq!(
            out,
            b"\x66\x8e\x33\xef\x00\x01\x80\x01\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x09\x00\x00\x00\x16\x00\x03why"
        );
    }
}
