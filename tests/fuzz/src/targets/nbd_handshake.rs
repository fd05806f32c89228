//! NBD's options: whatever a client sends, however it is cut into segments, each option has its own answer, and the end is the same.
//!
//! ```text
//!  first byte: TLS, and how the stream is cut │ the rest: what the client sends after it connected
//!  model:  the options as the protocol text draws them, read by a reader of its own; the replies likewise
//! ```

use bytes::{Buf, BytesMut};
use gateway::nbd::handshake::{Denied, Exports, Handshake, Shape, Step, Tls, Writes};
use gateway::nbd::message::{GREETING, option, reply};

use crate::corpus;

const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// What one option may be answered by: a name of 4096 bytes, told twice, and heads.
const ANSWER_BYTES_MAX: usize = 10_000;
const OPTIONS_MAX: usize = 64;

struct Disks;

impl Exports for Disks {
    type Attached = String;

    fn names(&self) -> Vec<String> {
        vec!["disk".to_owned(), "iso".to_owned(), "taken".to_owned()]
    }

    fn look(&self, name: &str) -> Result<Shape, Denied> {
        match name {
            "" | "disk" => Ok(Shape { size: 20 << 30, writes: Writes::Taken }),
            "iso" => Ok(Shape { size: 1, writes: Writes::Refused }),
            "taken" => Err(Denied::Policy("already attached".to_owned())),
            other => Err(Denied::Unknown(format!("no export `{other}`"))),
        }
    }

    fn attach(&self, name: &str) -> Result<(Shape, String), Denied> {
        self.look(name).map(|shape| (shape, name.to_owned()))
    }
}

/// How a handshake went: what was sent, how it ended, and what is left for the requests that follow.
type Course = (Vec<u8>, String, Vec<u8>);

pub(super) fn run(bytes: &[u8]) {
    let Some((cut, stream)) = bytes.split_first() else { return };
    let tls = [Tls::Absent, Tls::Offered, Tls::Spoken][usize::from(*cut) % 3];
    let whole = haggle(tls, stream, stream.len().max(1));
    let parts = haggle(tls, stream, usize::from(*cut) % 61 + 1);
    assert_eq!(parts, whole, "TCP may cut a stream anywhere");
    check(stream, &whole);
}

fn haggle(tls: Tls, stream: &[u8], segment_bytes: usize) -> Course {
    let (mut out, mut input) = (Vec::new(), BytesMut::new());
    let mut handshake = Handshake::begin(tls, &mut out);
    let mut segments = stream.chunks(segment_bytes);
    loop {
        match handshake.advance(&mut input, &mut out, &Disks) {
            Step::Wanted(count) => {
                // One option at the most waits in the input.
                assert!(count > input.len() && count <= 16 + 16 * 1024, "{count} bytes are wanted");
                match segments.next() {
                    Some(segment) => input.extend_from_slice(segment),
                    None => return (out, "wanted".to_owned(), input.to_vec()),
                }
            }
            // The rest comes through TLS, which takes no byte away.
            Step::StartTls => {}
            step => {
                segments.for_each(|segment| input.extend_from_slice(segment));
                return (out, format!("{step:?}"), input.to_vec());
            }
        }
    }
}

fn check(stream: &[u8], (out, end, left): &Course) {
    let mut sent = out.strip_prefix(&GREETING).expect("the greeting comes first");
    let asked = options(stream);
    assert!(sent.len() <= OPTIONS_MAX * ANSWER_BYTES_MAX, "{} bytes were sent", sent.len());
    let mut attached = 0;
    for (number, data) in asked.iter().take(OPTIONS_MAX) {
        if *number == option::EXPORT_NAME {
            // The answer to it is no reply: the size, flags, and zeros that were not declined; or the end of the connection.
            assert!(matches!(sent.len(), 0 | 10 | 134), "{sent:?}");
            return;
        }
        if sent.is_empty() {
            // What the stream ended in, or what is refused by closing.
            break;
        }
        attached += usize::from(answer(*number, data, &mut sent) == End::Attached);
        if attached > 0 {
            break;
        }
    }
    assert!(sent.is_empty(), "{} bytes answer nothing", sent.len());
    assert_eq!(attached == 1, end.starts_with("Attached"), "{end}");
    assert!(stream.ends_with(left), "what follows the handshake is as it was sent");
}

#[derive(PartialEq, Eq)]
enum End {
    Attached,
    Goes,
}

/// Takes the replies to one option: any number that are not the last one, and the last one.
fn answer(number: u32, data: &[u8], sent: &mut &[u8]) -> End {
    loop {
        assert!(sent.len() >= 20, "a reply has a head");
        let (magic, option, kind) = (sent.get_u64(), sent.get_u32(), sent.get_u32());
        let length = sent.get_u32() as usize;
        assert_eq!((magic, option), (REPLY_MAGIC, number), "each option is answered in its turn");
        assert!(length <= sent.len() && length <= 4096 + 100, "{length} bytes in one reply");
        sent.advance(length);
        match kind {
            reply::ACK if number == option::GO => return End::Attached,
            reply::ACK => return End::Goes,
            error if error & 1 << 31 != 0 => return End::Goes,
            reply::SERVER => assert_eq!(number, option::LIST),
            reply::INFO => assert!(matches!(number, option::INFO | option::GO) && !data.is_empty()),
            reply::META_CONTEXT => {
                assert!(matches!(number, option::LIST_META_CONTEXT | option::SET_META_CONTEXT));
            }
            other => panic!("a reply of the type {other}"),
        }
    }
}

/// The options of a stream that begins with the client's flags; the last may be cut, or no option.
fn options(mut stream: &[u8]) -> Vec<(u32, &[u8])> {
    let mut options = Vec::new();
    stream = stream.get(4..).unwrap_or_default();
    while stream.len() >= 16 && stream.get_u64() == OPTION_MAGIC {
        let (number, length) = (stream.get_u32(), stream.get_u32() as usize);
        let (data, rest) = stream.split_at(length.min(stream.len()));
        options.push((number, data));
        stream = rest;
    }
    options
}

/// Handshakes of the kernel's client, libnbd and QEMU, after the protocol text, and odd ones.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let option = |number: u32, data: &[u8]| {
        [&b"IHAVEOPT"[..], &number.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
    };
    let name = |name: &str| [&(name.len() as u32).to_be_bytes()[..], name.as_bytes()].concat();
    let go = |export: &str| [name(export), vec![0, 2, 0, 1, 0, 3]].concat();
    let contexts = |export: &str, query: &str| [name(export), vec![0, 0, 0, 1], name(query)].concat();
    let structured = option(option::STRUCTURED_REPLY, b"");
    let sessions = [
        vec![option(option::EXPORT_NAME, b"disk")],
        vec![option(option::GO, &go("disk"))],
        vec![
            structured.clone(),
            option(option::SET_META_CONTEXT, &contexts("disk", "base:allocation")),
            option(option::GO, &go("disk")),
        ],
        vec![option(option::LIST, b""), option(option::INFO, &go("iso")), option(option::ABORT, b"")],
        vec![
            structured,
            option(option::LIST_META_CONTEXT, &contexts("", "base:")),
            option(option::GO, &go("taken")),
            option(option::GO, &go("")),
        ],
        vec![
            option(5, b""),
            option(99, &[0; 20_000]),
            option(option::GO, &go("no such export")),
            option(option::EXPORT_NAME, b""),
        ],
    ];
    let session = |(number, options): (usize, &Vec<Vec<u8>>)| {
        // With and without the zeros behind an export's flags; the first requests follow at once.
        let flags = [0, 0, 0, if number % 2 == 0 { 1 } else { 3 }];
        [&[number as u8 * 7][..], &flags, &options.concat(), b"\x25\x60\x95\x13"].concat()
    };
    let mut seeds: Vec<_> = sessions.iter().enumerate().map(session).collect();
    seeds.extend(corpus(include_str!("../../corpus/nbd_handshake.hex")));
    seeds
}
