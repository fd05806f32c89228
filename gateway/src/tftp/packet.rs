//! The words of TFTP: datagrams to values and back. RFC 1350, with the options of RFC 2347.
//!
//! ```text
//!  1 RRQ   name 0 mode 0 [option 0 value 0]…      4 ACK    block
//!  2 WRQ   name 0 mode 0 [option 0 value 0]…      5 ERROR  code text 0
//!  3 DATA  block payload                          6 OACK   [option 0 value 0]…
//! ```
//! Firmware pads requests, forgets the last NUL and spells options in capitals: all of that is read. What cannot be read
//! gets a sentence ([`Malformed`]), never silence and never a panic: one odd datagram must not cost another DUT its boot.

use std::fmt;

/// RFC 2347: a request is at most 512 octets, so no honest name is longer.
pub const NAME_BYTES_MAX: usize = 512;

/// RFCs define five options; more pairs than this are junk behind the request, not read further.
const OPTION_COUNT_MAX: usize = 16;

/// One datagram, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// RRQ: the peer wants to read.
    Read(Request),
    /// WRQ: the peer wants to write.
    Write(Request),
    /// DATA: one block.
    Data {
        /// The block's number, modulo 65536.
        block: u16,
        /// Its bytes; fewer than the block size ends the transfer.
        payload: &'a [u8],
    },
    /// ACK: everything up to this block arrived.
    Ack {
        /// The block's number, modulo 65536.
        block: u16,
    },
    /// ERROR: the peer gives up.
    Error {
        /// The peer's code; vendors use numbers outside of RFC 1350's table.
        code: u16,
        /// The peer's words, control characters replaced.
        text: String,
    },
    /// OACK: the options granted.
    OptionAck(Vec<RequestOption>),
}

/// What an RRQ or WRQ asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The name, with one leading slash and no backslashes (see [`tidy_name`]).
    pub name: String,
    /// How bytes are to be represented.
    pub mode: Mode,
    /// The options in their order.
    pub options: Vec<RequestOption>,
}

/// One option as written by the peer. Names compare without case (RFC 2347).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestOption {
    /// The peer's own spelling, so that the answer can repeat it.
    pub name: String,
    /// The value, decimal digits for all options of the RFCs.
    pub value: String,
}

/// RFC 1350 section 1: how a file's bytes are represented on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Bytes as they are.
    Octet,
    /// Lines end in CR LF, a lone CR is CR NUL (RFC 764). The default of the tftp-hpa client.
    Netascii,
}

/// RFC 1350's error codes that a read-only server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// 0: see the text.
    NotDefined,
    /// 1: no such file.
    FileNotFound,
    /// 2: not allowed.
    AccessViolation,
    /// 4: not a request this server can understand.
    IllegalOperation,
    /// 5: the datagram belongs to no transfer.
    UnknownTransfer,
}

/// Why a datagram was not understood. [`fmt::Display`] is the sentence for the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Less than an operation code, or less than the operation's fixed part.
    TooShort {
        /// Bytes that came.
        bytes: usize,
    },
    /// An operation that no RFC defines.
    UnknownOperation {
        /// The code that came.
        code: u16,
    },
    /// A request whose name is empty.
    NoName,
    /// A request whose name cannot be one.
    BadName {
        /// What is wrong with it.
        why: &'static str,
    },
    /// A request that ends after its name.
    NoMode,
    /// `mail`, or a word that is no mode.
    UnknownMode {
        /// The word, shortened.
        mode: String,
    },
}

impl ErrorCode {
    /// The number on the wire.
    pub fn number(self) -> u16 {
        match self {
            ErrorCode::NotDefined => 0,
            ErrorCode::FileNotFound => 1,
            ErrorCode::AccessViolation => 2,
            ErrorCode::IllegalOperation => 4,
            ErrorCode::UnknownTransfer => 5,
        }
    }
}

impl Malformed {
    /// The code that goes with the sentence.
    pub fn code(&self) -> ErrorCode {
        match self {
            Malformed::BadName { .. } | Malformed::NoName => ErrorCode::FileNotFound,
            Malformed::TooShort { .. }
            | Malformed::UnknownOperation { .. }
            | Malformed::NoMode
            | Malformed::UnknownMode { .. } => ErrorCode::IllegalOperation,
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::TooShort { bytes } => write!(f, "a datagram of {bytes} bytes is no TFTP request"),
            Malformed::UnknownOperation { code } => write!(f, "operation {code} is not known; send a read request (1)"),
            Malformed::NoName => f.write_str("the request names no file"),
            Malformed::BadName { why } => write!(f, "the name {why}"),
            Malformed::NoMode => f.write_str("the request has no mode; send octet"),
            Malformed::UnknownMode { mode } => write!(f, "mode \"{mode}\" is not served; send octet or netascii"),
        }
    }
}

impl RequestOption {
    /// An option of ours.
    pub fn new(name: &str, value: impl fmt::Display) -> Self {
        RequestOption { name: name.to_owned(), value: value.to_string() }
    }

    /// Whether this is the option `name`, in any case.
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

/// Reads one datagram.
pub fn decode(datagram: &[u8]) -> Result<Packet<'_>, Malformed> {
    let too_short = Malformed::TooShort { bytes: datagram.len() };
    let Some((operation, rest)) = split_number(datagram) else { return Err(too_short) };
    match operation {
        1 => decode_request(rest).map(Packet::Read),
        2 => decode_request(rest).map(Packet::Write),
        3 => split_number(rest).map(|(block, payload)| Packet::Data { block, payload }).ok_or(too_short),
        4 => split_number(rest).map(|(block, _)| Packet::Ack { block }).ok_or(too_short),
        5 => split_number(rest).map(|(code, text)| Packet::Error { code, text: words(text) }).ok_or(too_short),
        6 => Ok(Packet::OptionAck(decode_options(&mut Strings(rest)))),
        code => Err(Malformed::UnknownOperation { code }),
    }
}

/// Appends a read request.
pub fn encode_read(out: &mut Vec<u8>, name: &str, mode: Mode, options: &[RequestOption]) {
    out.extend_from_slice(&[0, 1]);
    put_string(out, name);
    put_string(
        out,
        match mode {
            Mode::Octet => "octet",
            Mode::Netascii => "netascii",
        },
    );
    put_options(out, options);
}

/// Appends the four bytes in front of a block.
pub fn encode_data_header(out: &mut Vec<u8>, block: u16) {
    out.extend_from_slice(&[0, 3]);
    out.extend_from_slice(&block.to_be_bytes());
}

/// Appends an acknowledgement.
pub fn encode_ack(out: &mut Vec<u8>, block: u16) {
    out.extend_from_slice(&[0, 4]);
    out.extend_from_slice(&block.to_be_bytes());
}

/// Appends an error; a NUL inside `text` would end it early and is left out.
pub fn encode_error(out: &mut Vec<u8>, code: ErrorCode, text: &str) {
    out.extend_from_slice(&[0, 5]);
    out.extend_from_slice(&code.number().to_be_bytes());
    put_string(out, &text.replace('\0', ""));
}

/// Appends an option acknowledgement.
pub fn encode_option_ack(out: &mut Vec<u8>, options: &[RequestOption]) {
    out.extend_from_slice(&[0, 6]);
    put_options(out, options);
}

/// One spelling for every name: `boot\x`, `boot//x` and `/boot/x` are the same artifact to firmware, so to us.
pub fn tidy_name(name: &str) -> String {
    let mut tidy = String::with_capacity(name.len() + 1);
    tidy.push('/');
    for letter in name.chars() {
        let letter = if letter == '\\' { '/' } else { letter };
        if letter != '/' || !tidy.ends_with('/') {
            tidy.push(letter);
        }
    }
    tidy
}

fn decode_request(rest: &[u8]) -> Result<Request, Malformed> {
    let mut strings = Strings(rest);
    let name = decode_name(strings.next().unwrap_or_default())?;
    let mode = decode_mode(strings.next().filter(|mode| !mode.is_empty()).ok_or(Malformed::NoMode)?)?;
    Ok(Request { name, mode, options: decode_options(&mut strings) })
}

fn decode_name(raw: &[u8]) -> Result<String, Malformed> {
    if raw.is_empty() {
        return Err(Malformed::NoName);
    }
    if raw.len() > NAME_BYTES_MAX {
        return Err(Malformed::BadName { why: "is longer than 512 bytes (RFC 2347)" });
    }
    let name = str::from_utf8(raw).map_err(|_| Malformed::BadName { why: "is not UTF-8" })?;
    if name.chars().any(char::is_control) {
        return Err(Malformed::BadName { why: "holds control characters" });
    }
    Ok(tidy_name(name))
}

fn decode_mode(raw: &[u8]) -> Result<Mode, Malformed> {
    if raw.eq_ignore_ascii_case(b"octet") {
        Ok(Mode::Octet)
    } else if raw.eq_ignore_ascii_case(b"netascii") {
        Ok(Mode::Netascii)
    } else {
        // 16: enough to recognise the word, too little to fill a log.
        Err(Malformed::UnknownMode { mode: words(raw).chars().take(16).collect() })
    }
}

/// Pairs until the first empty name or half pair: behind a complete request, NULs and junk are padding.
fn decode_options(strings: &mut Strings<'_>) -> Vec<RequestOption> {
    let mut options = Vec::new();
    while options.len() < OPTION_COUNT_MAX
        && let Some(name) = strings.next().filter(|name| !name.is_empty())
        && let Some(value) = strings.next()
        && let (Ok(name), Ok(value)) = (str::from_utf8(name), str::from_utf8(value))
    {
        options.push(RequestOption::new(name, value));
    }
    options
}

/// NUL-terminated strings; the end of the datagram also ends the last one.
struct Strings<'a>(&'a [u8]);

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let length = self.0.iter().position(|&byte| byte == 0).unwrap_or(self.0.len());
        let (string, rest) = self.0.split_at(length);
        self.0 = rest.get(1..).unwrap_or_default();
        Some(string)
    }
}

fn split_number(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*number), rest))
}

/// A peer's words for a log: up to the first NUL, at most 200 characters, nothing that moves a terminal's cursor.
fn words(raw: &[u8]) -> String {
    let raw = raw.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(raw).chars().take(200).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

fn put_options(out: &mut Vec<u8>, options: &[RequestOption]) {
    for option in options {
        put_string(out, &option.name);
        put_string(out, &option.value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::SmallRng;
    use rand::{Rng, RngExt, SeedableRng};

    fn read(datagram: &[u8]) -> Request {
        match decode(datagram) {
            Ok(Packet::Read(request)) => request,
            other => panic!("expected a read request, got {other:?}"),
        }
    }

    #[test]
    fn a_request_is_read_with_its_options_in_order() {
        let request = read(b"\0\x01snponly.efi\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0");
        assert_eq!(
            request,
            Request {
                name: "/snponly.efi".into(),
                mode: Mode::Octet,
                options: vec![
                    RequestOption::new("tsize", 0),
                    RequestOption::new("blksize", 1468),
                    RequestOption::new("windowsize", 4)
                ],
            }
        );
    }

    #[test]
    fn mode_and_option_names_have_no_case() {
        let request = read(b"\0\x01a\0OcTeT\0BLKSIZE\x001024\0");
        assert_eq!(request.mode, Mode::Octet);
        assert!(request.options[0].is("blksize"));
        assert_eq!(request.options[0].name, "BLKSIZE", "the answer repeats the peer's spelling");
        assert_eq!(read(b"\0\x01a\0NETASCII\0").mode, Mode::Netascii);
    }

    #[test]
    fn padding_and_junk_behind_a_complete_request_are_ignored() {
        for tail in [
            &b"\0"[..],
            b"\0\0",
            b"\0\0\0",
            b"\0\0\0\0\0\0\0\0",
            b"junk",
            b"\0junk\xff\xfe",
            b"half\0",
            b"\xff\0\xff\0",
        ] {
            let mut datagram = b"\0\x01boot/a\0octet\0".to_vec();
            datagram.extend_from_slice(tail);
            let request = read(&datagram);
            assert_eq!((request.name.as_str(), request.mode), ("/boot/a", Mode::Octet), "behind it: {tail:?}");
        }
        assert_eq!(read(b"\0\x01a\0octet").mode, Mode::Octet, "the last NUL may be missing");
        assert_eq!(read(b"\0\x01a\0octet\0blksize\x00512").options, [RequestOption::new("blksize", 512)]);
    }

    #[test]
    fn one_artifact_has_one_name_however_firmware_spells_it() {
        for spelling in
            ["boot/x64/a.efi", "/boot/x64/a.efi", "//boot//x64/a.efi", "boot\\x64\\a.efi", "\\\\boot/x64\\\\a.efi"]
        {
            assert_eq!(tidy_name(spelling), "/boot/x64/a.efi");
        }
        assert_eq!(tidy_name("dtb/"), "/dtb/");
    }

    #[test]
    fn what_cannot_be_read_gets_a_code_and_a_sentence() {
        let long = [&b"\0\x01"[..], &[b'a'; 513], b"\0octet\0"].concat();
        let cases: &[(&[u8], u16, &str)] = &[
            (b"", 4, "a datagram of 0 bytes is no TFTP request"),
            (b"\0", 4, "a datagram of 1 bytes is no TFTP request"),
            (b"\0\x04\0", 4, "a datagram of 3 bytes is no TFTP request"),
            (b"\0\x09abc", 4, "operation 9 is not known; send a read request (1)"),
            (b"\0\x01", 1, "the request names no file"),
            (b"\0\x01\0octet\0", 1, "the request names no file"),
            (b"\0\x01a\0", 4, "the request has no mode; send octet"),
            (b"\0\x01a", 4, "the request has no mode; send octet"),
            (b"\0\x01a\0mail\0", 4, "mode \"mail\" is not served; send octet or netascii"),
            (b"\0\x01\xff\xfe\0octet\0", 1, "the name is not UTF-8"),
            (b"\0\x01a\nb\0octet\0", 1, "the name holds control characters"),
            (&long, 1, "the name is longer than 512 bytes (RFC 2347)"),
        ];
        for (datagram, code, sentence) in cases {
            let malformed = decode(datagram).unwrap_err();
            assert_eq!((malformed.code().number(), malformed.to_string().as_str()), (*code, *sentence));
        }
    }

    #[test]
    fn what_we_write_is_what_the_rfc_draws() {
        let mut out = Vec::new();
        encode_option_ack(&mut out, &[RequestOption::new("tsize", 7), RequestOption::new("blksize", 512)]);
        assert_eq!(out, b"\0\x06tsize\x007\0blksize\x00512\0");
        out.clear();
        encode_error(&mut out, ErrorCode::AccessViolation, "no\0pe");
        assert_eq!(out, b"\0\x05\0\x02nope\0");
        out.clear();
        encode_data_header(&mut out, 0xabcd);
        assert_eq!(out, b"\0\x03\xab\xcd");
        out.clear();
        encode_ack(&mut out, 258);
        assert_eq!(out, b"\0\x04\x01\x02");
        out.clear();
        encode_read(&mut out, "a", Mode::Octet, &[RequestOption::new("tsize", 0)]);
        assert_eq!(out, b"\0\x01a\0octet\0tsize\x000\0");
    }

    #[test]
    fn a_peers_words_cannot_move_the_cursor() {
        let error = decode(b"\0\x05\0\x08User \x1b[2Jaborted\0junk").unwrap();
        assert_eq!(error, Packet::Error { code: 8, text: "User \u{fffd}[2Jaborted".into() });
    }

    /// Half of the datagrams are pure noise, half are damaged requests, which reach deeper.
    #[test]
    fn any_bytes_never_panic() {
        let mut random = SmallRng::seed_from_u64(0x7f7b);
        let request = b"\0\x01boot/a\0octet\0tsize\x000\0blksize\x001468\0windowsize\x004\0timeout\x005\0";
        for round in 0..200_000_u32 {
            let mut datagram = if round % 2 == 0 { vec![0; random.random_range(0..80)] } else { request.to_vec() };
            if round % 2 == 0 {
                random.fill_bytes(&mut datagram);
                if let Some(high) = datagram.first_mut() {
                    *high = 0;
                }
                if let Some(low) = datagram.get_mut(1) {
                    *low %= 8;
                }
            } else {
                for _ in 0..random.random_range(1..6) {
                    let position = random.random_range(0..datagram.len());
                    datagram[position] = random.random();
                }
                datagram.truncate(random.random_range(0..=datagram.len()));
            }
            match decode(&datagram) {
                Ok(Packet::Read(request) | Packet::Write(request)) => {
                    assert!(request.name.starts_with('/') && request.options.len() <= OPTION_COUNT_MAX);
                }
                Ok(_) => {}
                Err(malformed) => assert!(!malformed.to_string().is_empty()),
            }
        }
    }
}
