//! Requests and replies, byte for byte.

use super::*;
use crate::nbd::handshake::Shape;

const SIZE: u64 = 1 << 30;

fn export(writes: Writes, replies: Replies, context: Context) -> Export {
    Export::new(Agreed { shape: Shape { size: SIZE, writes }, replies, context })
}

fn plain() -> Export {
    export(Writes::Taken, Replies::Simple, Context::Absent)
}

fn structured() -> Export {
    export(Writes::Taken, Replies::Structured, Context::Allocation)
}

fn request(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

fn sent(out: &mut Output) -> Vec<u8> {
    out.chunks().flatten().copied().collect()
}

fn simple(error: u8, cookie: u8) -> Vec<u8> {
    vec![0x67, 0x44, 0x66, 0x98, 0, 0, 0, error, 0, 0, 0, 0, 0, 0, 0, cookie]
}

#[track_caller]
fn next_work(export: &mut Export, input: &mut BytesMut, out: &mut Output) -> (Ticket, Work) {
    match export.advance(input, out) {
        Step::Work(ticket, work) => (ticket, work),
        other => panic!("no work: {other:?}"),
    }
}

#[test]
fn each_allowed_request_becomes_the_work_it_names() {
    use command_flags::*;
    let (offset, length) = (4096, 8192);
    let (memory, disk) = (Durability::Memory, Durability::Disk);
    let cases = [
        (request(0, command::READ, 1, 4096, 8192), Work::Read { offset, length }),
        (request(DF, command::READ, 1, 4096, 8192), Work::Read { offset, length }),
        (
            [&request(FUA, command::WRITE, 2, 4096, 3)[..], b"abc"].concat(),
            Work::Write { offset, data: Bytes::from_static(b"abc"), durability: disk },
        ),
        (request(0, command::FLUSH, 3, 0, 0), Work::Flush),
        (request(0, command::TRIM, 4, 4096, 8192), Work::Trim { offset, length, durability: memory }),
        (request(0, command::CACHE, 5, 4096, 8192), Work::Cache { offset, length }),
        (
            request(0, command::WRITE_ZEROES, 6, 4096, 8192),
            Work::Zero { offset, length, hole: Hole::Allowed, speed: Speed::Any, durability: memory },
        ),
        (
            request(NO_HOLE | FAST_ZERO | FUA, command::WRITE_ZEROES, 6, 4096, 8192),
            Work::Zero { offset, length, hole: Hole::Refused, speed: Speed::FastOnly, durability: disk },
        ),
        (request(REQ_ONE, command::BLOCK_STATUS, 7, 4096, 8192), Work::Status { offset, length }),
    ];
    for (bytes, expected) in cases {
        let (mut input, mut out) = (BytesMut::from(&bytes[..]), Output::default());
        let (_, work) = next_work(&mut structured(), &mut input, &mut out);
        assert_eq!(work, expected);
        assert!(input.is_empty() && out.is_empty());
    }
}

#[test]
fn what_is_refused_has_the_errno_of_the_protocol_text_and_the_next_request_is_understood() {
    use command::*;
    let big = 32 * 1024 * 1024 + 1;
    let end = SIZE - 512;
    let cases = [
        (request(0, READ, 1, end, 513), 22),
        (request(0, READ, 1, u64::MAX, 2), 22),
        (request(0, READ, 1, 0, 0), 22),
        (request(0, READ, 1, 0, big), 22),
        (request(0, READ, 1, 0, u32::MAX), 22),
        (request(command_flags::DF, READ, 1, 0, 512), 22),
        (request(1 << 9, READ, 1, 0, 512), 22),
        (request(0, WRITE, 1, end, 513), 28),
        (request(0, WRITE, 1, 0, 0), 22),
        (request(0, WRITE, 1, 0, big), 22),
        (request(command_flags::NO_HOLE, WRITE, 1, 0, 512), 22),
        (request(0, FLUSH, 1, 1, 0), 22),
        (request(0, TRIM, 1, end, 513), 22),
        (request(0, TRIM, 1, 0, 0), 22),
        (request(0, CACHE, 1, end, 513), 22),
        (request(0, WRITE_ZEROES, 1, end, 513), 28),
        (request(0, BLOCK_STATUS, 1, 0, 512), 22),
        (request(0, 8, 1, 0, 512), 22),
        (request(0, 0xffff, 1, 0, u32::MAX), 22),
    ];
    for (bytes, errno) in cases {
        let (mut export, mut input, mut out) = (plain(), BytesMut::from(&bytes[..]), Output::default());
        let is_write = bytes[6..8] == WRITE.to_be_bytes();
        if is_write {
            // The data are skipped; a request hidden in them is data.
            let length = u32::from_be_bytes(bytes[24..].try_into().unwrap()) as usize;
            let hidden = request(0, TRIM, 9, 0, 4096).repeat(2);
            input.extend(hidden.iter().copied().cycle().take(length));
        }
        input.extend(request(0, FLUSH, 2, 0, 0));
        let (_, work) = next_work(&mut export, &mut input, &mut out);
        assert_eq!(work, Work::Flush, "{bytes:x?}");
        assert_eq!(sent(&mut out), simple(errno, 1), "{bytes:x?}");
    }
}

#[test]
fn a_read_only_export_refuses_writes_and_skips_their_data() {
    let mut export = export(Writes::Refused, Replies::Simple, Context::Absent);
    let mut input = BytesMut::from(&request(0, command::WRITE, 1, 0, 100_000)[..]);
    let mut out = Output::default();
    for part in [40_000, 59_999] {
        input.extend(vec![0xee; part]);
        assert_eq!(export.advance(&mut input, &mut out), Step::Wanted(1));
        assert!(input.is_empty(), "what is skipped is not kept");
    }
    input.extend([0xee]);
    input.extend(request(0, command::WRITE_ZEROES, 2, 0, 512));
    input.extend(request(0, command::TRIM, 3, 0, 512));
    assert_eq!(export.advance(&mut input, &mut out), Step::Wanted(REQUEST_BYTES));
    assert_eq!(sent(&mut out), [simple(1, 1), simple(1, 2), simple(1, 3)].concat());
}

#[test]
fn a_structured_read_sends_long_zeros_as_holes_and_the_rest_as_data() {
    let (mut export, mut input, mut out) = (structured(), BytesMut::new(), Output::default());
    input.extend(request(0, command::READ, 7, 4096, 8200));
    let (ticket, _) = next_work(&mut export, &mut input, &mut out);
    let pieces = vec![
        Piece::Data(Bytes::from_static(b"ab")),
        Piece::Zeros(2),
        Piece::Zeros(8192),
        Piece::Data(Bytes::from_static(b"wxyz")),
    ];
    export.finish(ticket, Ok(Done::Pieces(pieces.clone())), &mut out);
    let cookie = b"\0\0\0\0\0\0\0\x07";
    let expected = [
        &b"\x66\x8e\x33\xef\0\0\0\x01"[..],
        cookie,
        b"\0\0\0\x0c\0\0\0\0\0\0\x10\0ab\0\0",
        b"\x66\x8e\x33\xef\0\0\0\x02",
        cookie,
        b"\0\0\0\x0c\0\0\0\0\0\0\x10\x04\0\0\x20\0",
        b"\x66\x8e\x33\xef\0\x01\0\x01",
        cookie,
        b"\0\0\0\x0c\0\0\0\0\0\0\x30\x04wxyz",
    ];
    assert_eq!(sent(&mut out), expected.concat());
    let (mut input, mut out) =
        (BytesMut::from(&request(command_flags::DF, command::READ, 7, 4096, 8200)[..]), Output::default());
    let (ticket, _) = next_work(&mut export, &mut input, &mut out);
    export.finish(ticket, Ok(Done::Pieces(pieces)), &mut out);
    let whole =
        [&b"\x66\x8e\x33\xef\0\x01\0\x01"[..], cookie, b"\0\0\x20\x10\0\0\0\0\0\0\x10\0ab", &[0; 8194], b"wxyz"];
    assert_eq!(sent(&mut out), whole.concat());
}

#[test]
fn a_simple_read_sends_zeros_as_bytes_and_its_error_without_data() {
    let (mut export, mut input, mut out) = (plain(), BytesMut::new(), Output::default());
    input.extend(request(0, command::READ, 1, 0, 70_000));
    input.extend(request(0, command::READ, 2, 0, 512));
    let (first, _) = next_work(&mut export, &mut input, &mut out);
    let (second, _) = next_work(&mut export, &mut input, &mut out);
    export.finish(second, Err(Refused { errno: Errno::Io, text: "a disk".to_owned() }), &mut out);
    export.finish(first, Ok(Done::Pieces(vec![Piece::Zeros(70_000)])), &mut out);
    assert_eq!(sent(&mut out), [simple(5, 2), simple(0, 1), vec![0; 70_000]].concat());
    assert_eq!(export.requests(), 0);
}

#[test]
fn extents_are_told_with_the_context_and_only_one_when_one_is_asked_for() {
    let (mut export, mut out) = (structured(), Output::default());
    let extents = || vec![Extent { length: 4096, fill: Fill::Data }, Extent { length: 512, fill: Fill::Zeros }];
    for flags in [0, command_flags::REQ_ONE] {
        let mut input = BytesMut::from(&request(flags, command::BLOCK_STATUS, 7, 0, 4608)[..]);
        let (ticket, _) = next_work(&mut export, &mut input, &mut out);
        export.finish(ticket, Ok(Done::Extents(extents())), &mut out);
    }
    let head = b"\x66\x8e\x33\xef\0\x01\0\x05\0\0\0\0\0\0\0\x07\0\0\0";
    let two = [&head[..], b"\x14\0\0\0\x01\0\0\x10\0\0\0\0\0\0\0\x02\0\0\0\0\x03"].concat();
    let one = [&head[..], b"\x0c\0\0\0\x01\0\0\x10\0\0\0\0\0"].concat();
    assert_eq!(sent(&mut out), [two, one].concat());
}

#[test]
fn no_more_is_in_flight_than_allowed_and_one_of_the_largest_always_is() {
    let (mut export, mut input, mut out) = (plain(), BytesMut::new(), Output::default());
    input.extend(request(0, command::READ, 1, 0, LENGTH_MAX));
    input.extend(request(0, command::READ, 2, 0, 512));
    let (ticket, _) = next_work(&mut export, &mut input, &mut out);
    assert_eq!(export.advance(&mut input, &mut out), Step::Full);
    export.finish(ticket, Ok(Done::Pieces(vec![Piece::Zeros(u64::from(LENGTH_MAX))])), &mut out);
    assert_eq!(export.advance(&mut input, &mut out), Step::Full, "an answer that was not sent is in flight");
    assert!(out.chunks().next().is_some());
    out.sent(16 + LENGTH_MAX as usize);
    assert!(out.is_empty());
    next_work(&mut export, &mut input, &mut out);
    let many = request(0, command::READ, 3, 0, 1).repeat(REQUESTS_MAX + 1);
    input.extend(many);
    let begun = std::iter::from_fn(|| matches!(export.advance(&mut input, &mut out), Step::Work(..)).then_some(()));
    assert_eq!(begun.count(), REQUESTS_MAX - 1);
    assert_eq!(export.requests(), REQUESTS_MAX);
}

#[test]
fn answers_to_nonsense_that_nobody_reads_do_not_pile_up() {
    let (mut export, mut out) = (plain(), Output::default());
    let nonsense = request(0, 99, 1, 0, 0).repeat(4096);
    let mut input = BytesMut::new();
    let mut taken = 0;
    while export.advance(&mut input, &mut out) != Step::Full {
        assert!(taken < 1 << 30, "it never stops");
        input.extend(&nonsense);
        taken += nonsense.len();
    }
    assert!(out.bytes() <= IN_FLIGHT_BYTES_MAX + 16, "{}", out.bytes());
}

#[test]
fn a_goodbye_ends_after_what_was_asked_before_and_garbage_at_once() {
    let (mut export, mut input, mut out) = (plain(), BytesMut::new(), Output::default());
    input.extend(request(0, command::FLUSH, 1, 0, 0));
    input.extend(request(0, command::DISC, 2, 0, 0));
    input.extend(request(0, command::TRIM, 3, 0, 512));
    let (ticket, _) = next_work(&mut export, &mut input, &mut out);
    assert_eq!(export.advance(&mut input, &mut out), Step::Closed(End::Disconnected));
    assert_eq!(export.requests(), 1);
    export.finish(ticket, Ok(Done::Nothing), &mut out);
    assert_eq!(sent(&mut out), simple(0, 1));
    assert_eq!(export.advance(&mut input, &mut out), Step::Closed(End::Disconnected), "nothing is taken after it");
    let mut input = BytesMut::from(&[0; REQUEST_BYTES][..]);
    assert_eq!(plain().advance(&mut input, &mut Output::default()), Step::Closed(End::Garbage));
}
