//! The handshake of one connection: greeting, flags, options, until an export is chosen or the client goes. ◆
//!
//! ```text
//!           flags                 GO, EXPORT_NAME
//!  Flags ─────────► Options ─────────────────────► Step::Attached      EXPORT_NAME that fails, ABORT: Step::Closed
//!                    │   ▲  INFO, LIST, STRUCTURED_REPLY,
//!                    ▼   │  LIST_META_CONTEXT, SET_META_CONTEXT
//!                   answered; unknown ones: ERR_UNSUP; too long: Skipping, then ERR_TOO_BIG
//!  Options ── STARTTLS ─► Step::StartTls ─► the ring makes the stream one of TLS ─► Options, with everything agreed before forgotten
//! ```
//! Which exports there are, and whether this caller may have one, an [`Exports`] says; attaching is what counts as an access. TLS is
//! the protocol text's SELECTIVETLS: an export that wants it is not listed in clear, and refused with ERR_TLS_REQD.

use bytes::{Buf, BytesMut};

use super::message::{
    Fields, GREETING, OPTION_BYTES, OptionHead, TEXT_BYTES_MAX, client_flags, encode_reply, export_flags, info, option,
    reply,
};

/// 64 options: libnbd and QEMU send about six; a client that lists its exports asks for two more per export.
const OPTIONS_MAX: usize = 64;
/// 16 KiB of one option: a name and a dozen queries, each of 4096 bytes at most, in practice of twenty.
const OPTION_BYTES_MAX: u32 = 16 * 1024;
/// 1 MiB: what is read and thrown away of an option that is too long; who sends more is not haggling.
const SKIPPED_BYTES_MAX: u32 = 1024 * 1024;

/// The only metadata context, and the number that the two sides know it by.
const CONTEXT: &str = "base:allocation";
/// See `CONTEXT`.
pub(super) const CONTEXT_NUMBER: u32 = 1;

/// Smallest request: none of our clients has to know about blocks. Best one: what a page holds. Largest: what the protocol text lets
/// clients expect everywhere.
pub(super) const BLOCK_SIZES: [u32; 3] = [1, 4096, 32 * 1024 * 1024];

/// Whether an export can be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// They are refused.
    Refused,
    /// They are taken.
    Taken,
}

/// What a client has to know of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its size in bytes.
    pub size: u64,
    /// Whether it can be written to.
    pub writes: Writes,
}

/// How replies are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replies {
    /// One head, and the data of a read.
    Simple,
    /// Chunks.
    Structured,
}

/// Whether a metadata context was agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// None.
    Absent,
    /// `base:allocation`.
    Allocation,
}

/// What both sides go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The export.
    pub shape: Shape,
    /// How replies are sent.
    pub replies: Replies,
    /// Whether BLOCK_STATUS may be asked.
    pub context: Context,
}

/// Why an export is not to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// There is none of this name for this caller.
    Unknown(String),
    /// There is one, but not now.
    Policy(String),
    /// There is one, but not in clear.
    TlsRequired(String),
}

/// The exports of one caller.
pub trait Exports {
    /// What an attached export is held by.
    type Attached;
    /// Their names.
    fn names(&self) -> Vec<String>;
    /// A look, that counts as nothing.
    fn look(&self, name: &str) -> Result<Shape, Denied>;
    /// Attaches; this is the access.
    fn attach(&self, name: &str) -> Result<(Shape, Self::Attached), Denied>;
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<A> {
    /// So many bytes have to be in the input before anything more happens.
    Wanted(usize),
    /// The requests follow.
    Attached(A, Agreed),
    /// What comes next comes over TLS, and what is still in the input came in clear after it should have.
    StartTls,
    /// The connection ends, with the reason.
    Closed(&'static str),
}

/// One handshake. Feed it with [`advance`](Handshake::advance).
#[derive(Debug)]
pub struct Handshake {
    state: State,
    replies: Replies,
    /// The export that the context was set for.
    context: Option<String>,
    options: usize,
    zeros: usize,
    tls: Tls,
}

/// Whether STARTTLS is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// There is none here.
    Absent,
    /// The client may ask for it.
    Offered,
    /// It is spoken.
    Spoken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Flags,
    Options,
    Skipping { option: u32, bytes: u32 },
}

/// What an option led to.
enum Turn<A> {
    On,
    StartTls,
    Attached(A, Shape),
    Closed(&'static str),
}

impl Handshake {
    /// A handshake, and its greeting in `out`.
    pub fn begin(tls: Tls, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(&GREETING);
        Handshake { state: State::Flags, replies: Replies::Simple, context: None, options: 0, zeros: 124, tls }
    }

    /// Goes on as far as `input` reaches; answers are appended to `out`.
    pub fn advance<E: Exports>(&mut self, input: &mut BytesMut, out: &mut Vec<u8>, exports: &E) -> Step<E::Attached> {
        loop {
            match self.state {
                State::Flags if input.len() < 4 => return Step::Wanted(4),
                State::Flags => {
                    if let Err(reason) = self.take_flags(input.get_u32()) {
                        return Step::Closed(reason);
                    }
                }
                State::Skipping { option, bytes } => {
                    let skipped = input.len().min(bytes as usize);
                    input.advance(skipped);
                    let bytes = bytes - skipped as u32;
                    self.state = State::Skipping { option, bytes };
                    if bytes > 0 {
                        return Step::Wanted(1);
                    }
                    self.state = State::Options;
                    encode_reply(out, option, reply::ERR_TOO_BIG, &[b"the option is longer than 16 KiB"]);
                }
                State::Options => {
                    let Some(head) = input.first_chunk::<OPTION_BYTES>() else { return Step::Wanted(OPTION_BYTES) };
                    let Some(head) = OptionHead::decode(head) else { return Step::Closed("no option came, or no NBD") };
                    if head.length > OPTION_BYTES_MAX {
                        match self.skip(head, input) {
                            Ok(()) => continue,
                            Err(reason) => return Step::Closed(reason),
                        }
                    }
                    let whole = OPTION_BYTES + head.length as usize;
                    if input.len() < whole {
                        return Step::Wanted(whole);
                    }
                    let data = input.split_to(whole).freeze().slice(OPTION_BYTES..);
                    match self.take_option(head.option, &data, out, exports) {
                        Turn::On => {}
                        Turn::Attached(attached, shape) => return Step::Attached(attached, self.agreed(shape)),
                        Turn::StartTls => return Step::StartTls,
                        Turn::Closed(reason) => return Step::Closed(reason),
                    }
                }
            }
        }
    }

    /// A client of the old kind does not set FIXED_NEWSTYLE and goes on with EXPORT_NAME; the protocol text lets us answer it all the same.
    fn take_flags(&mut self, flags: u32) -> Result<(), &'static str> {
        if flags & !(client_flags::FIXED_NEWSTYLE | client_flags::NO_ZEROES) != 0 {
            return Err("the client set flags that nobody offered");
        }
        if flags & client_flags::NO_ZEROES != 0 {
            self.zeros = 0;
        }
        self.state = State::Options;
        Ok(())
    }

    /// EXPORT_NAME has no answer that says no.
    fn skip(&mut self, head: OptionHead, input: &mut BytesMut) -> Result<(), &'static str> {
        self.count()?;
        if head.length > SKIPPED_BYTES_MAX || head.option == option::EXPORT_NAME {
            return Err("an option was too long to be one");
        }
        input.advance(OPTION_BYTES);
        self.state = State::Skipping { option: head.option, bytes: head.length };
        Ok(())
    }

    fn count(&mut self) -> Result<(), &'static str> {
        self.options += 1;
        if self.options > OPTIONS_MAX { Err("the client haggled through 64 options and chose nothing") } else { Ok(()) }
    }

    fn take_option<E: Exports>(
        &mut self,
        option: u32,
        data: &[u8],
        out: &mut Vec<u8>,
        exports: &E,
    ) -> Turn<E::Attached> {
        if let Err(reason) = self.count() {
            return Turn::Closed(reason);
        }
        let invalid = |out: &mut Vec<u8>| encode_reply(out, option, reply::ERR_INVALID, &[b"the option is malformed"]);
        match option {
            option::EXPORT_NAME => return self.export_name(data, out, exports),
            option::GO => return self.go(data, out, exports),
            option::ABORT => {
                encode_reply(out, option, reply::ACK, &[]);
                return Turn::Closed("the client chose no export");
            }
            option::INFO => self.info(data, out, exports),
            option::LIST if !data.is_empty() => invalid(out),
            option::LIST => list(out, &exports.names()),
            option::STRUCTURED_REPLY if !data.is_empty() => invalid(out),
            option::STRUCTURED_REPLY => {
                self.replies = Replies::Structured;
                encode_reply(out, option, reply::ACK, &[]);
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.contexts(option, data, out),
            option::STARTTLS if !data.is_empty() => invalid(out),
            option::STARTTLS => return self.start_tls(out),
            _ => encode_reply(out, option, reply::ERR_UNSUP, &[b"this server does not know the option"]),
        }
        Turn::On
    }

    /// What was agreed on before could have been said by someone in between (CVE-2021-3716 of nbdkit).
    fn start_tls<A>(&mut self, out: &mut Vec<u8>) -> Turn<A> {
        let (code, text): (u32, &[u8]) = match self.tls {
            Tls::Absent => (reply::ERR_POLICY, b"this server has no TLS"),
            Tls::Spoken => (reply::ERR_INVALID, b"this is TLS already"),
            Tls::Offered => {
                (self.tls, self.replies, self.context) = (Tls::Spoken, Replies::Simple, None);
                encode_reply(out, option::STARTTLS, reply::ACK, &[]);
                return Turn::StartTls;
            }
        };
        encode_reply(out, option::STARTTLS, code, &[text]);
        Turn::On
    }

    fn export_name<E: Exports>(&mut self, data: &[u8], out: &mut Vec<u8>, exports: &E) -> Turn<E::Attached> {
        let name = str::from_utf8(data).ok().filter(|name| name.len() <= TEXT_BYTES_MAX);
        let Some(name) = name else { return Turn::Closed("the export's name is no text, or longer than 4096 bytes") };
        match exports.attach(name) {
            Ok((shape, attached)) => {
                self.keep_context_of(name);
                out.extend(shape.size.to_be_bytes());
                out.extend(self.flags(shape).to_be_bytes());
                out.resize(out.len() + self.zeros, 0);
                Turn::Attached(attached, shape)
            }
            Err(_) => Turn::Closed("the export is not to be had, and EXPORT_NAME has no answer that says so"),
        }
    }

    fn go<E: Exports>(&mut self, data: &[u8], out: &mut Vec<u8>, exports: &E) -> Turn<E::Attached> {
        let Some((name, kinds)) = wanted(data) else {
            encode_reply(out, option::GO, reply::ERR_INVALID, &[b"the option is malformed"]);
            return Turn::On;
        };
        match exports.attach(name) {
            Ok((shape, attached)) => {
                self.keep_context_of(name);
                self.describe(option::GO, name, &kinds, shape, out);
                Turn::Attached(attached, shape)
            }
            Err(denied) => {
                deny(option::GO, &denied, out);
                Turn::On
            }
        }
    }

    fn info<E: Exports>(&mut self, data: &[u8], out: &mut Vec<u8>, exports: &E) {
        let Some((name, kinds)) = wanted(data) else {
            return encode_reply(out, option::INFO, reply::ERR_INVALID, &[b"the option is malformed"]);
        };
        match exports.look(name) {
            Ok(shape) => self.describe(option::INFO, name, &kinds, shape, out),
            Err(denied) => deny(option::INFO, &denied, out),
        }
    }

    fn describe(&self, option: u32, name: &str, kinds: &[u16], shape: Shape, out: &mut Vec<u8>) {
        let (size, flags) = (shape.size.to_be_bytes(), self.flags(shape).to_be_bytes());
        encode_reply(out, option, reply::INFO, &[&info::EXPORT.to_be_bytes(), &size, &flags]);
        if kinds.contains(&info::NAME) {
            encode_reply(out, option, reply::INFO, &[&info::NAME.to_be_bytes(), name.as_bytes()]);
        }
        let [min, preferred, max] = BLOCK_SIZES.map(u32::to_be_bytes);
        encode_reply(out, option, reply::INFO, &[&info::BLOCK_SIZE.to_be_bytes(), &min, &preferred, &max]);
        encode_reply(out, option, reply::ACK, &[]);
    }

    /// LIST answers a query that ends in a colon with all of that name space; SET wants the whole name. Whether there is such an export
    /// is said by the option that chooses it: asked here, each refusal would stand in the job's log twice.
    fn contexts(&mut self, option: u32, data: &[u8], out: &mut Vec<u8>) {
        if self.replies == Replies::Simple {
            let first = b"ask for STRUCTURED_REPLY first";
            return encode_reply(out, option, reply::ERR_INVALID, &[first]);
        }
        let is_set = option == option::SET_META_CONTEXT;
        if is_set {
            // Also one that fails takes back what was set before.
            self.context = None;
        }
        let Some((name, queries)) = queries(data) else {
            return encode_reply(out, option, reply::ERR_INVALID, &[b"the option is malformed"]);
        };
        let is_asked = queries.contains(&CONTEXT) || (!is_set && (queries.is_empty() || queries.contains(&"base:")));
        if is_asked {
            let number = if is_set { CONTEXT_NUMBER } else { 0 };
            encode_reply(out, option, reply::META_CONTEXT, &[&number.to_be_bytes(), CONTEXT.as_bytes()]);
            if is_set {
                self.context = Some(name.to_owned());
            }
        }
        encode_reply(out, option, reply::ACK, &[]);
    }

    /// A context holds for the export it was set for.
    fn keep_context_of(&mut self, name: &str) {
        self.context.take_if(|set_for| set_for != name);
    }

    fn agreed(&self, shape: Shape) -> Agreed {
        let context = if self.context.is_some() { Context::Allocation } else { Context::Absent };
        Agreed { shape, replies: self.replies, context }
    }

    fn flags(&self, shape: Shape) -> u16 {
        use export_flags::*;
        // A flush on one connection syncs the one file that all of them write to: CAN_MULTI_CONN holds.
        let always = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_CACHE | CAN_MULTI_CONN;
        let by_replies = if self.replies == Replies::Structured { SEND_DF } else { 0 };
        let by_writes = match shape.writes {
            Writes::Refused => READ_ONLY,
            Writes::Taken => SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO,
        };
        always | by_replies | by_writes
    }
}

/// The name, and the kinds of information asked for.
fn wanted(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let mut fields = Fields(data);
    let name = fields.text()?;
    let kinds = (0..fields.u16()?).map(|_| fields.u16()).collect::<Option<_>>()?;
    fields.is_empty().then_some((name, kinds))
}

/// The name, and the queries. As many as the option's length has room for.
fn queries(data: &[u8]) -> Option<(&str, Vec<&str>)> {
    let mut fields = Fields(data);
    let name = fields.text()?;
    let count = fields.u32()?;
    let mut queries = Vec::new();
    for _ in 0..count {
        queries.push(fields.text()?);
    }
    fields.is_empty().then_some((name, queries))
}

fn list(out: &mut Vec<u8>, names: &[String]) {
    for name in names {
        let length = (name.len() as u32).to_be_bytes();
        encode_reply(out, option::LIST, reply::SERVER, &[&length, name.as_bytes()]);
    }
    encode_reply(out, option::LIST, reply::ACK, &[]);
}

fn deny(option: u32, denied: &Denied, out: &mut Vec<u8>) {
    let (code, text) = match denied {
        Denied::Unknown(text) => (reply::ERR_UNKNOWN, text),
        Denied::Policy(text) => (reply::ERR_POLICY, text),
        Denied::TlsRequired(text) => (reply::ERR_TLS_REQD, text),
    };
    encode_reply(out, option, code, &[text.as_bytes()]);
}

#[cfg(test)]
#[path = "handshake_tests.rs"]
mod tests;
