//! Handshakes, byte for byte.

use super::*;
use crate::nbd::message::OPTION_MAGIC;

/// One writable disk, and one that is taken.
struct Two;

impl Exports for Two {
    type Attached = &'static str;

    fn names(&self) -> Vec<String> {
        vec!["disk".to_owned(), "taken".to_owned()]
    }

    fn look(&self, name: &str) -> Result<Shape, Denied> {
        match name {
            "disk" => Ok(Shape { size: 20 << 30, writes: Writes::Taken }),
            "iso" => Ok(Shape { size: 4096, writes: Writes::Refused }),
            "taken" => Err(Denied::Policy("already attached".to_owned())),
            "sealed" => Err(Denied::TlsRequired("only over TLS".to_owned())),
            other => Err(Denied::Unknown(format!("no {other}"))),
        }
    }

    fn attach(&self, name: &str) -> Result<(Shape, &'static str), Denied> {
        self.look(name).map(|shape| (shape, "attached"))
    }
}

const FLAGS: &[u8] = b"\0\0\0\x03";
const INFO_HEAD: &[u8] = b"\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x00\x00\x00\x03";

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [&OPTION_MAGIC.to_be_bytes()[..], &number.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
}

fn go(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((kinds.len() as u16).to_be_bytes());
    kinds.iter().for_each(|kind| data.extend(kind.to_be_bytes()));
    data
}

fn context_query(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

/// What is answered to these bytes after the greeting, and how it went on.
fn haggle(sent: &[&[u8]]) -> (Vec<u8>, Step<&'static str>) {
    let mut out = Vec::new();
    let mut handshake = Handshake::begin(Tls::Offered, &mut out);
    assert_eq!(out, b"NBDMAGICIHAVEOPT\x00\x03");
    out.clear();
    let mut input = BytesMut::from(&sent.concat()[..]);
    let step = handshake.advance(&mut input, &mut out, &Two);
    (out, step)
}

/// Numbers of the answers in `out`.
fn answers(out: &[u8]) -> Vec<u32> {
    let mut fields = Fields(out);
    let mut answers = Vec::new();
    while !fields.is_empty() {
        assert_eq!(fields.u64(), Some(0x0003_e889_0455_65a9));
        fields.u32().unwrap();
        answers.push(fields.u32().unwrap());
        let length = fields.u32().unwrap();
        fields.take(length as usize).expect("an answer is as long as it says");
    }
    answers
}

fn agreed(replies: Replies, context: Context) -> Agreed {
    Agreed { shape: Shape { size: 20 << 30, writes: Writes::Taken }, replies, context }
}

#[test]
fn go_answers_size_flags_and_block_sizes_and_begins() {
    let (out, step) = haggle(&[FLAGS, &option(option::GO, &go("disk", &[]))]);
    let export = [INFO_HEAD, b"\0\0\0\x0c\0\0\0\0\0\x05\0\0\0\0\x0d\x6d"].concat();
    let blocks = [INFO_HEAD, b"\0\0\0\x0e\0\x03\0\0\0\x01\0\0\x10\0\x02\0\0\0"].concat();
    let ack = b"\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x00\x00\x00\x01\0\0\0\0";
    assert_eq!(out, [&export[..], &blocks, ack].concat());
    assert_eq!(step, Step::Attached("attached", agreed(Replies::Simple, Context::Absent)));
}

#[test]
fn a_read_only_export_offers_no_command_that_writes() {
    let (out, _) = haggle(&[FLAGS, &option(option::STRUCTURED_REPLY, b""), &option(option::GO, &go("iso", &[]))]);
    // HAS_FLAGS, READ_ONLY, FLUSH, FUA, DF, MULTI_CONN, CACHE.
    assert!(out.windows(4).any(|bytes| bytes == [0x10, 0x00, 0x05, 0x8f]), "{out:x?}");
}

#[test]
fn export_name_is_answered_with_or_without_zeros_and_never_with_a_refusal() {
    let name = option(option::EXPORT_NAME, b"disk");
    let (short, step) = haggle(&[FLAGS, &name]);
    assert_eq!(short, b"\0\0\0\x05\0\0\0\0\x0d\x6d");
    assert!(matches!(step, Step::Attached(..)));
    // With fixed newstyle and without.
    for flags in [b"\0\0\0\x01", b"\0\0\0\0"] {
        let (long, _) = haggle(&[flags, &name]);
        assert_eq!(long, [&short[..], &[0; 124]].concat());
    }
    for name in [&b"none"[..], b"taken", b"\xff", &[b'a'; 4097]] {
        let (out, step) = haggle(&[FLAGS, &option(option::EXPORT_NAME, name)]);
        assert!(out.is_empty() && matches!(step, Step::Closed(_)), "{step:?}");
    }
}

#[test]
fn a_context_is_set_after_structured_replies_and_for_its_export_only() {
    let set = |name| option(option::SET_META_CONTEXT, &context_query(name, &["base:allocation", "qemu:dirty"]));
    let (structured, begin) = (option(option::STRUCTURED_REPLY, b""), option(option::GO, &go("disk", &[])));
    let (out, step) = haggle(&[FLAGS, &set("disk"), &structured, &set("disk"), &begin]);
    let [ack, invalid, context] = [reply::ACK, reply::ERR_INVALID, reply::META_CONTEXT];
    assert_eq!(answers(&out), [invalid, ack, context, ack, reply::INFO, reply::INFO, ack]);
    assert_eq!(step, Step::Attached("attached", agreed(Replies::Structured, Context::Allocation)));
    let (_, step) = haggle(&[FLAGS, &structured, &set("taken"), &begin]);
    assert_eq!(step, Step::Attached("attached", agreed(Replies::Structured, Context::Absent)));
    let nothing = option(option::SET_META_CONTEXT, &context_query("disk", &["base:"]));
    let (_, step) = haggle(&[FLAGS, &structured, &set("disk"), &nothing, &begin]);
    assert_eq!(step, Step::Attached("attached", agreed(Replies::Structured, Context::Absent)), "the last one counts");
}

#[test]
fn contexts_are_listed_by_name_by_their_space_and_without_a_query() {
    let list = |queries: &[&str]| option(option::LIST_META_CONTEXT, &context_query("disk", queries));
    let structured = option(option::STRUCTURED_REPLY, b"");
    let (out, _) =
        haggle(&[FLAGS, &structured, &list(&[]), &list(&["base:"]), &list(&["x:"]), &list(&["base:allocation"])]);
    let [ack, context] = [reply::ACK, reply::META_CONTEXT];
    assert_eq!(answers(&out), [ack, context, ack, context, ack, ack, context, ack]);
}

#[test]
fn what_is_unknown_malformed_or_refused_is_said_so_and_the_haggling_goes_on() {
    let options = [
        (option(99, b"?"), reply::ERR_UNSUP),
        (option(option::STARTTLS, b"x"), reply::ERR_INVALID),
        (option(option::LIST, b"x"), reply::ERR_INVALID),
        (option(option::STRUCTURED_REPLY, b"x"), reply::ERR_INVALID),
        (option(option::GO, b"\0\0\0\x09disk\0\0"), reply::ERR_INVALID),
        (option(option::GO, &[&go("disk", &[])[..], b"x"].concat()), reply::ERR_INVALID),
        (option(option::INFO, b""), reply::ERR_INVALID),
        (option(option::GO, &go("none", &[])), reply::ERR_UNKNOWN),
        (option(option::INFO, &go("taken", &[])), reply::ERR_POLICY),
        (option(99, &vec![0; 17_000]), reply::ERR_TOO_BIG),
    ];
    let sent: Vec<&[u8]> = std::iter::once(FLAGS).chain(options.iter().map(|(bytes, _)| &bytes[..])).collect();
    let (out, step) = haggle(&sent);
    assert_eq!(answers(&out), options.map(|(_, code)| code));
    assert_eq!(step, Step::Wanted(OPTION_BYTES));
}

#[test]
fn starttls_is_acknowledged_once_and_what_was_agreed_in_clear_is_forgotten() {
    let go = option(option::GO, &go("disk", &[]));
    let sent = [FLAGS, &option(option::STRUCTURED_REPLY, b""), &option(option::STARTTLS, b"")].concat();
    let (mut out, mut input) = (Vec::new(), BytesMut::from(&sent[..]));
    let mut handshake = Handshake::begin(Tls::Offered, &mut out);
    out.clear();
    assert_eq!(handshake.advance(&mut input, &mut out, &Two), Step::StartTls);
    assert!(input.is_empty());
    assert_eq!(answers(&out), [reply::ACK, reply::ACK]);
    out.clear();
    input.extend_from_slice(&[option(option::STARTTLS, b""), go].concat());
    let Step::Attached(_, agreed) = handshake.advance(&mut input, &mut out, &Two) else { panic!("no disk") };
    assert_eq!(agreed.replies, Replies::Simple);
    assert_eq!(answers(&out)[0], reply::ERR_INVALID);
}

#[test]
fn what_comes_in_clear_after_starttls_is_left_for_the_ring_to_see() {
    let sent = [FLAGS, &option(option::STARTTLS, b""), &option(option::LIST, b"")].concat();
    let (mut out, mut input) = (Vec::new(), BytesMut::from(&sent[..]));
    let mut handshake = Handshake::begin(Tls::Offered, &mut out);
    assert_eq!(handshake.advance(&mut input, &mut out, &Two), Step::StartTls);
    assert_eq!(input, option(option::LIST, b""));
}

#[test]
fn a_server_without_tls_says_so_and_an_export_that_wants_it_is_refused_in_clear() {
    let (mut out, mut input) = (Vec::new(), BytesMut::from(&[FLAGS, &option(option::STARTTLS, b"")].concat()[..]));
    let mut handshake = Handshake::begin(Tls::Absent, &mut out);
    out.clear();
    assert_eq!(handshake.advance(&mut input, &mut out, &Two), Step::Wanted(OPTION_BYTES));
    assert_eq!(answers(&out), [reply::ERR_POLICY]);
    let (out, _) = haggle(&[FLAGS, &option(option::GO, &go("sealed", &[])), &option(option::INFO, &go("sealed", &[]))]);
    assert_eq!(answers(&out), [reply::ERR_TLS_REQD, reply::ERR_TLS_REQD]);
    let (out, step) = haggle(&[FLAGS, &option(option::EXPORT_NAME, b"sealed")]);
    assert!(out.is_empty() && matches!(step, Step::Closed(_)));
}

#[test]
fn the_list_has_every_name_and_an_abort_is_acknowledged() {
    let (out, step) = haggle(&[FLAGS, &option(option::LIST, b""), &option(option::ABORT, b"")]);
    assert_eq!(answers(&out), [reply::SERVER, reply::SERVER, reply::ACK, reply::ACK]);
    assert!(out.windows(8).any(|bytes| bytes == b"\0\0\0\x04disk"));
    assert_eq!(step, Step::Closed("the client chose no export"));
}

#[test]
fn haggling_has_an_end() {
    let (list, endless) = (option(option::LIST, b""), [&b"IHAVEOPT"[..], b"\0\0\0\x63\xff\xff\xff\xff"].concat());
    let sent: Vec<&[u8]> = std::iter::once(FLAGS).chain(std::iter::repeat_n(&list[..], 65)).collect();
    let (_, step) = haggle(&sent);
    assert_eq!(step, Step::Closed("the client haggled through 64 options and chose nothing"));
    assert_eq!(haggle(&[FLAGS, &endless]).1, Step::Closed("an option was too long to be one"));
    assert_eq!(haggle(&[b"\0\0\0\x07"]).1, Step::Closed("the client set flags that nobody offered"));
    assert_eq!(haggle(&[FLAGS, b"GET / HTTP/1.1\r\n"]).1, Step::Closed("no option came, or no NBD"));
}

#[test]
fn bytes_may_come_one_by_one() {
    let sent = [FLAGS, &option(99, &vec![0; 17_000]), &option(option::GO, &go("disk", &[info::NAME]))].concat();
    let (whole, _) = haggle(&[&sent]);
    let (mut out, mut input) = (Vec::new(), BytesMut::new());
    let mut handshake = Handshake::begin(Tls::Offered, &mut out);
    out.clear();
    for (index, byte) in sent.iter().enumerate() {
        input.extend_from_slice(&[*byte]);
        match handshake.advance(&mut input, &mut out, &Two) {
            Step::Wanted(_) => assert!(index + 1 < sent.len()),
            step => assert!(index + 1 == sent.len() && matches!(step, Step::Attached(..)), "{step:?} at {index}"),
        }
    }
    assert_eq!(out, whole);
}
