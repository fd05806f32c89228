//! Telnet and RFC 2217, either end: what is heard does not depend on how the stream is cut, answers are no longer than questions, nobody
//! answers for ever, and a console's bytes come out as they went in.
//!
//! ```text
//!  script: which end │ what it carries │ the console's bytes │ anything, as from the connection
//! ```
//! The room that speaks it is a part of the binary, not of a library: the file is taken as it is.

#[path = "../../../../executor/src/blueprint/console/nvt.rs"]
mod nvt;

use self::nvt::{Agreement, Carries, ComPort, Side, Terminal};
use crate::corpus;
use crate::script::{Script, piece};

/// Each of four options is agreed to at most four times in each direction, with a refusal between two.
const ROUNDS_MAX: usize = 40;

pub(super) fn run(bytes: &[u8]) {
    let mut script = Script(bytes);
    let side = if script.byte() % 2 == 0 { Side::Client } else { Side::Server };
    let carries = if script.byte() % 2 == 0 { Carries::Bytes } else { Carries::Line };
    let console = script.piece().to_vec();
    let stream = script.rest();
    cut_anywhere(side, carries, stream);
    ends(carries, stream, &console);
}

fn cut_anywhere(side: Side, carries: Carries, stream: &[u8]) {
    let (mut whole, mut cut) = (Terminal::new(side, carries), Terminal::new(side, carries));
    let asked = whole.outgoing().len();
    let (mut data, mut data_cut) = (Vec::new(), Vec::new());
    let heard = whole.receive(stream, &mut data);
    let mut heard_cut = Vec::new();
    for piece in stream.chunks(3) {
        heard_cut.extend(cut.receive(piece, &mut data_cut));
    }
    assert_eq!((&heard, &data), (&heard_cut, &data_cut), "the cut changes nothing");
    assert_eq!(whole.outgoing(), cut.outgoing());
    assert!(data.len() + (whole.outgoing().len() - asked) <= stream.len(), "an answer is as long as its question");
    if carries == Carries::Bytes {
        assert_eq!(
            (whole.com_port(), heard.iter().any(|heard| matches!(heard, nvt::Heard::ComPort(_)))),
            (Agreement::No, false)
        );
    }
}

/// A peer that was confused agrees with its server again, and bytes and commands arrive.
fn ends(carries: Carries, stream: &[u8], console: &[u8]) {
    let (mut client, mut server) = (Terminal::new(Side::Client, carries), Terminal::new(Side::Server, carries));
    settle(&mut client, &mut server);
    let order = ComPort::BaudRate(u32::from_be_bytes([console.len() as u8, 255, 0, 13]));
    for (from, to) in [(0, 1), (1, 0)] {
        let ends = [&mut client, &mut server];
        let [client, server] = ends;
        let (from, to) = if from < to { (client, server) } else { (server, client) };
        from.send(console);
        if carries == Carries::Line {
            from.tell(&order);
        }
        from.send(console);
        let (mut data, sent) = (Vec::new(), std::mem::take(from.outgoing()));
        let heard = to.receive(&sent, &mut data);
        assert_eq!(data, [console, console].concat(), "a console's bytes come out as they went in");
        assert_eq!(heard.len(), usize::from(carries == Carries::Line));
    }
    client.receive(stream, &mut Vec::new());
    settle(&mut client, &mut server);
}

fn settle(client: &mut Terminal, server: &mut Terminal) {
    for _ in 0..ROUNDS_MAX {
        let (there, back) = (std::mem::take(client.outgoing()), std::mem::take(server.outgoing()));
        if there.is_empty() && back.is_empty() {
            return;
        }
        server.receive(&there, &mut Vec::new());
        client.receive(&back, &mut Vec::new());
    }
    panic!("they answer each other for ever");
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    // What ser2net, pyserial and QEMU begin with; a purge, a break, a NUL behind a return, a subnegotiation without its end.
    let streams: [&[u8]; 6] = [
        b"\xff\xfb\x03\xff\xfb\x01\xff\xfd\x03\xff\xfe\x01\xff\xfb\x00\xff\xfd\x00\xff\xfb\x2c\xff\xfd\x2clogin: ",
        b"\xff\xfd\x01\xff\xfb\x03\xff\xfd\x03\xff\xfd\x2c\xff\xfb\x2c\xff\xfa\x2c\x01\x00\x00\x25\x80\xff\xf0",
        b"\xff\xfb\x01\xff\xfb\x03\xff\xfb\x00\xff\xfd\x00SeaBIOS\r\n\xff\xff",
        b"\xff\xfb\x2c\xff\xfa\x2c\x0c\x03\xff\xf0\xff\xf3",
        b"ls\r\x00\r\n\xff\xfa\x18\x01\xff\xf0\xff\xfe\x00\xff\xfc\x00",
        b"\xff\xfd\x2c\xff\xfa\x2c\x66\x08\xff\xfb\x1f\xff\xfa\x2c\x65\x00\xff\xff\x00\x01\xff\xf0",
    ];
    let ends = [[0, 0], [0, 1], [1, 0], [1, 1]];
    let with_stream = |stream: &&[u8]| ends.map(|end| [&end[..], &piece(b"\r\xff\r\n"), stream].concat());
    let mut seeds: Vec<_> = streams.iter().flat_map(with_stream).collect();
    seeds.extend(corpus(include_str!("../../corpus/telnet.hex")));
    seeds
}
