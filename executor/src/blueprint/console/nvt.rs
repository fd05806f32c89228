//! A telnet connection (RFC 854) and its COM-PORT option (RFC 2217): its bytes to a console's bytes and commands, and back. ◆
//!
//! ```text
//!  connection ── receive ──► the console's bytes, and Heard: a break, a COM-PORT command
//!  console ───── send ─────┐
//!  commands ──── tell ─────┼─► outgoing
//!  answers to options ─────┘
//!
//!  an option, in each direction (RFC 1143, without its queue: nobody here changes their mind)
//!   No ── we ask ─► Asked ─┬─ they agree ──► Yes          they ask ─► Yes and an answer, or a refusal
//!                          └─ they refuse ─► No           they end ─► No and an answer
//! ```
//! Only a change is answered, so that two of these never answer each other for ever (RFC 854, page 3). Two that were told otherwise by somebody
//! else in between could go on changing all the same: so each option is agreed to a few times, and refused from then on.

/// "Interpret as command" (RFC 854, page 14), and what follows it.
const IAC: u8 = 255;
const DONT: u8 = 254;
const DO: u8 = 253;
const WONT: u8 = 252;
const WILL: u8 = 251;
const SB: u8 = 250;
const BREAK: u8 = 243;
const SE: u8 = 240;

/// Options: RFC 856, RFC 857, RFC 858, RFC 2217.
const BINARY: u8 = 0;
const ECHO: u8 = 1;
const SUPPRESS_GO_AHEAD: u8 = 3;
const COM_PORT: u8 = 44;

const CR: u8 = b'\r';
const LF: u8 = b'\n';

/// The longest subnegotiation that is kept. COM-PORT's have five bytes, but for the signature, which is a line of text; longer ones are nobody's.
const SUBNEGOTIATION_BYTES_MAX: usize = 256;
/// So often an option is agreed to, in each direction: once is what honest ends need.
const AGREEMENTS_MAX: u8 = 4;
/// What a server's command is above a client's (RFC 2217, section 3).
const SERVER: u8 = 100;

/// Which end of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It connected.
    Client,
    /// It was connected to: the line is here.
    Server,
}

/// Whether the connection carries a serial line's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carries {
    /// Bytes alone: plain telnet.
    Bytes,
    /// The line's settings, too: RFC 2217.
    Line,
}

/// How far an option is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Agreement {
    /// It is not on.
    #[default]
    No,
    /// We asked for it, and there is no answer yet.
    Asked,
    /// It is on.
    Yes,
}

/// What came that is no byte of the console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A break: RFC 854's, or COM-PORT's is in `ComPort`.
    Break,
    /// A command of RFC 2217.
    ComPort(ComPort),
}

/// A command of RFC 2217, section 3; the numbers are those of its tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ComPort {
    /// Who the other end is; empty: the question.
    Signature(Vec<u8>),
    /// Bits per second; 0: the question.
    BaudRate(u32),
    /// 5 to 8; 0: the question.
    DataSize(u8),
    /// 1 none, 2 odd, 3 even, 4 mark, 5 space; 0: the question.
    Parity(u8),
    /// 1: one, 2: two, 3: one and a half; 0: the question.
    StopSize(u8),
    /// Flow control, break, DTR, RTS.
    Control(u8),
    /// The line's errors and breaks.
    LineState(u8),
    /// DCD, RI, DSR, CTS.
    ModemState(u8),
    /// Send no more.
    Suspend,
    /// Go on.
    Resume,
    /// Which line states are wanted.
    LineStateMask(u8),
    /// Which modem states are wanted.
    ModemStateMask(u8),
    /// 1: what was received is dropped, 2: what is to be sent, 3: both.
    Purge(u8),
}

impl ComPort {
    /// The command's number for a client, and its value.
    fn parts(&self) -> (u8, Vec<u8>) {
        match self {
            ComPort::Signature(text) => (0, text.clone()),
            ComPort::BaudRate(rate) => (1, rate.to_be_bytes().to_vec()),
            ComPort::DataSize(value) => (2, vec![*value]),
            ComPort::Parity(value) => (3, vec![*value]),
            ComPort::StopSize(value) => (4, vec![*value]),
            ComPort::Control(value) => (5, vec![*value]),
            ComPort::LineState(value) => (6, vec![*value]),
            ComPort::ModemState(value) => (7, vec![*value]),
            ComPort::Suspend => (8, Vec::new()),
            ComPort::Resume => (9, Vec::new()),
            ComPort::LineStateMask(value) => (10, vec![*value]),
            ComPort::ModemStateMask(value) => (11, vec![*value]),
            ComPort::Purge(value) => (12, vec![*value]),
        }
    }

    fn read(number: u8, value: &[u8]) -> Option<ComPort> {
        let one = |make: fn(u8) -> ComPort| value.first().map(|value| make(*value));
        match number {
            0 => Some(ComPort::Signature(value.to_vec())),
            1 => value.first_chunk().map(|rate| ComPort::BaudRate(u32::from_be_bytes(*rate))),
            2 => one(ComPort::DataSize),
            3 => one(ComPort::Parity),
            4 => one(ComPort::StopSize),
            5 => one(ComPort::Control),
            6 => one(ComPort::LineState),
            7 => one(ComPort::ModemState),
            8 => Some(ComPort::Suspend),
            9 => Some(ComPort::Resume),
            10 => one(ComPort::LineStateMask),
            11 => one(ComPort::ModemStateMask),
            12 => one(ComPort::Purge),
            _ => None,
        }
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct Terminal {
    side: Side,
    carries: Carries,
    ours: Options,
    theirs: Options,
    place: Place,
    subnegotiation: Vec<u8>,
    outgoing: Vec<u8>,
}

/// The state of each option that is known here, in one direction.
#[derive(Debug, Default)]
struct Options {
    binary: Agreement,
    echo: Agreement,
    suppress_go_ahead: Agreement,
    com_port: Agreement,
    /// How often each was agreed to, in this order.
    agreements: [u8; 4],
}

/// Where in the stream the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Data,
    /// Behind a CR that was no binary data: a NUL belongs to it (RFC 854, page 11).
    Return,
    Command,
    /// Behind WILL, WONT, DO or DONT.
    Option(u8),
    Subnegotiation,
    CommandInSubnegotiation,
}

impl Options {
    /// The state of an option, and how often it was agreed to.
    fn get(&mut self, option: u8) -> Option<(&mut Agreement, &mut u8)> {
        let [binary, echo, suppress_go_ahead, com_port] = &mut self.agreements;
        match option {
            BINARY => Some((&mut self.binary, binary)),
            ECHO => Some((&mut self.echo, echo)),
            SUPPRESS_GO_AHEAD => Some((&mut self.suppress_go_ahead, suppress_go_ahead)),
            COM_PORT => Some((&mut self.com_port, com_port)),
            _ => None,
        }
    }
}

impl Terminal {
    /// A new connection's end. It asks for what it needs: eight bits both ways, no go-ahead, and the line's settings if it carries them.
    pub fn new(side: Side, carries: Carries) -> Terminal {
        let mut terminal = Terminal {
            side,
            carries,
            ours: Options::default(),
            theirs: Options::default(),
            place: Place::Data,
            subnegotiation: Vec::new(),
            outgoing: Vec::new(),
        };
        terminal.ask(WILL, BINARY);
        terminal.ask(DO, BINARY);
        terminal.ask(WILL, SUPPRESS_GO_AHEAD);
        terminal.ask(DO, SUPPRESS_GO_AHEAD);
        if side == Side::Server {
            // What the DUT echoes is on the line already: a client that echoes, too, shows it twice.
            terminal.ask(WILL, ECHO);
        }
        if carries == Carries::Line {
            // The client offers the commands, the server takes them (RFC 2217, section 2).
            terminal.ask(if side == Side::Client { WILL } else { DO }, COM_PORT);
        }
        terminal
    }

    /// Whether commands of RFC 2217 go over this connection.
    pub fn com_port(&self) -> Agreement {
        match (self.ours.com_port, self.theirs.com_port) {
            (Agreement::Yes, _) | (_, Agreement::Yes) => Agreement::Yes,
            (Agreement::Asked, _) | (_, Agreement::Asked) => Agreement::Asked,
            (Agreement::No, Agreement::No) => Agreement::No,
        }
    }

    /// What is to be written to the connection; whoever takes of it removes it.
    pub fn outgoing(&mut self) -> &mut Vec<u8> {
        &mut self.outgoing
    }

    /// Sends the console's bytes.
    pub fn send(&mut self, bytes: &[u8]) {
        let is_binary = self.ours.binary == Agreement::Yes;
        for (index, byte) in bytes.iter().enumerate() {
            self.outgoing.push(*byte);
            match *byte {
                IAC => self.outgoing.push(IAC),
                // A CR alone is followed by NUL (RFC 854, page 11). Nobody knows whether more comes: at the end it is alone.
                CR if !is_binary && bytes.get(index + 1) != Some(&LF) => self.outgoing.push(0),
                _ => {}
            }
        }
    }

    /// Sends a command of RFC 2217.
    pub fn tell(&mut self, command: &ComPort) {
        let (number, value) = command.parts();
        let number = if self.side == Side::Server { number + SERVER } else { number };
        self.outgoing.extend([IAC, SB, COM_PORT, number]);
        for byte in value {
            self.outgoing.push(byte);
            if byte == IAC {
                self.outgoing.push(IAC);
            }
        }
        self.outgoing.extend([IAC, SE]);
    }

    /// Takes what came over the connection: the console's bytes are put behind `data`.
    pub fn receive(&mut self, mut bytes: &[u8], data: &mut Vec<u8>) -> Vec<Heard> {
        let mut heard = Vec::new();
        while let Some((byte, rest)) = bytes.split_first() {
            if self.place == Place::Data {
                let is_binary = self.theirs.binary == Agreement::Yes;
                let plain = bytes.iter().position(|byte| *byte == IAC || (*byte == CR && !is_binary));
                let (plain, left) = bytes.split_at(plain.unwrap_or(bytes.len()));
                if !plain.is_empty() {
                    data.extend_from_slice(plain);
                    bytes = left;
                    continue;
                }
            }
            bytes = rest;
            self.place = self.take(*byte, data, &mut heard);
        }
        heard
    }

    fn take(&mut self, byte: u8, data: &mut Vec<u8>, heard: &mut Vec<Heard>) -> Place {
        match (self.place, byte) {
            (Place::Data | Place::Return, IAC) => Place::Command,
            (Place::Return, 0) => Place::Data,
            (Place::Data | Place::Return, _) => {
                data.push(byte);
                let is_binary = self.theirs.binary == Agreement::Yes;
                if byte == CR && !is_binary { Place::Return } else { Place::Data }
            }
            (Place::Command, _) => self.command(byte, data, heard),
            (Place::Option(verb), _) => {
                self.negotiate(verb, byte);
                Place::Data
            }
            (Place::Subnegotiation, IAC) => Place::CommandInSubnegotiation,
            (Place::Subnegotiation, _) => self.keep(byte),
            (Place::CommandInSubnegotiation, IAC) => self.keep(byte),
            (Place::CommandInSubnegotiation, _) => {
                heard.extend(self.subnegotiated());
                // Anything but SE ends it without its end: a command of its own.
                if byte == SE { Place::Data } else { self.command(byte, data, heard) }
            }
        }
    }

    fn command(&mut self, byte: u8, data: &mut Vec<u8>, heard: &mut Vec<Heard>) -> Place {
        match byte {
            IAC => data.push(IAC),
            BREAK => heard.push(Heard::Break),
            WILL | WONT | DO | DONT => return Place::Option(byte),
            SB => {
                self.subnegotiation.clear();
                return Place::Subnegotiation;
            }
            // GA, NOP, AYT and the rest are for people's terminals.
            _ => {}
        }
        Place::Data
    }

    /// One byte more than is read says that there were too many.
    fn keep(&mut self, byte: u8) -> Place {
        if self.subnegotiation.len() <= SUBNEGOTIATION_BYTES_MAX {
            self.subnegotiation.push(byte);
        }
        Place::Subnegotiation
    }

    /// A client's commands are for servers, and the other way round; what is not agreed on is not listened to.
    fn subnegotiated(&mut self) -> Option<Heard> {
        let [COM_PORT, number, value @ ..] = self.subnegotiation.as_slice() else { return None };
        if self.subnegotiation.len() > SUBNEGOTIATION_BYTES_MAX || self.com_port() != Agreement::Yes {
            return None;
        }
        let number = match self.side {
            Side::Client => number.checked_sub(SERVER)?,
            Side::Server => *number,
        };
        ComPort::read(number, value).map(Heard::ComPort)
    }

    fn ask(&mut self, verb: u8, option: u8) {
        let options = if verb == WILL { &mut self.ours } else { &mut self.theirs };
        if let Some((state, _)) = options.get(option) {
            *state = Agreement::Asked;
            self.outgoing.extend([IAC, verb, option]);
        }
    }

    fn negotiate(&mut self, verb: u8, option: u8) {
        // What they do is theirs, what they want done is ours.
        let (is_theirs, is_wanted) = (matches!(verb, WILL | WONT), matches!(verb, WILL | DO));
        let is_allowed = if is_theirs { self.may_be_theirs(option) } else { self.may_be_ours(option) };
        let (agree, refuse) = if is_theirs { (DO, DONT) } else { (WILL, WONT) };
        let options = if is_theirs { &mut self.theirs } else { &mut self.ours };
        let (mut unknown, mut never) = (Agreement::No, 0);
        let (state, agreements) = options.get(option).unwrap_or((&mut unknown, &mut never));
        let (next, answer) = match (*state, is_wanted) {
            (Agreement::No, true) if is_allowed && *agreements < AGREEMENTS_MAX => {
                *agreements += 1;
                (Agreement::Yes, Some(agree))
            }
            (Agreement::No, true) => (Agreement::No, Some(refuse)),
            (Agreement::Asked | Agreement::Yes, true) => (Agreement::Yes, None),
            (Agreement::Yes, false) => (Agreement::No, Some(refuse)),
            (Agreement::No | Agreement::Asked, false) => (Agreement::No, None),
        };
        *state = next;
        if let Some(answer) = answer {
            self.outgoing.extend([IAC, answer, option]);
        }
    }

    fn may_be_ours(&self, option: u8) -> bool {
        match option {
            BINARY | SUPPRESS_GO_AHEAD => true,
            ECHO => self.side == Side::Server,
            COM_PORT => self.carries == Carries::Line,
            _ => false,
        }
    }

    fn may_be_theirs(&self, option: u8) -> bool {
        match option {
            BINARY | SUPPRESS_GO_AHEAD => true,
            ECHO => self.side == Side::Client,
            COM_PORT => self.carries == Carries::Line,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(terminal: &mut Terminal, bytes: &[u8]) -> (Vec<u8>, Vec<Heard>) {
        let mut data = Vec::new();
        let heard = terminal.receive(bytes, &mut data);
        (data, heard)
    }

    fn taken(terminal: &mut Terminal) -> Vec<u8> {
        std::mem::take(terminal.outgoing())
    }

    /// Both ends of a connection, after all that they have to agree on.
    fn agreed(carries: Carries) -> (Terminal, Terminal) {
        let mut client = Terminal::new(Side::Client, carries);
        let mut server = Terminal::new(Side::Server, carries);
        for _ in 0..10 {
            let (there, back) = (taken(&mut client), taken(&mut server));
            if there.is_empty() && back.is_empty() {
                return (client, server);
            }
            assert_eq!(receive(&mut server, &there), (vec![], vec![]));
            assert_eq!(receive(&mut client, &back), (vec![], vec![]));
        }
        panic!("they never stop answering each other");
    }

    #[test]
    fn a_client_asks_for_eight_bits_and_for_the_line() {
        let mut client = Terminal::new(Side::Client, Carries::Line);
        let asked = [[IAC, WILL, BINARY], [IAC, DO, BINARY], [IAC, WILL, 3], [IAC, DO, 3], [IAC, WILL, COM_PORT]];
        assert_eq!(taken(&mut client), asked.concat());
        assert_eq!(client.com_port(), Agreement::Asked);
        receive(&mut client, &[IAC, DONT, COM_PORT]);
        assert_eq!(client.com_port(), Agreement::No);
        assert!(taken(&mut client).is_empty());
    }

    #[test]
    fn two_ends_agree_and_stop_and_every_byte_goes_both_ways() {
        let (mut client, mut server) = agreed(Carries::Line);
        assert_eq!((client.com_port(), server.com_port()), (Agreement::Yes, Agreement::Yes));
        let all: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
        client.send(&all);
        assert_eq!(receive(&mut server, &taken(&mut client)), (all.clone(), vec![]));
        server.send(&all);
        assert_eq!(receive(&mut client, &taken(&mut server)), (all, vec![]));
    }

    #[test]
    fn without_binary_a_return_has_a_null_behind_it_or_a_line_feed() {
        let mut client = Terminal::new(Side::Client, Carries::Bytes);
        taken(&mut client);
        client.send(b"ls\r");
        client.send(b"a\rb\r\nc");
        assert_eq!(taken(&mut client), b"ls\r\0a\r\0b\r\nc");
        assert_eq!(receive(&mut client, b"one\r\0two\r\nthree\r").0, b"one\rtwo\r\nthree\r");
        assert_eq!(receive(&mut client, b"\0four\0").0, b"four\0");
    }

    #[test]
    fn what_is_not_known_is_refused_once_and_an_answer_is_not_answered() {
        let mut server = Terminal::new(Side::Server, Carries::Bytes);
        taken(&mut server);
        // Window size (RFC 1073), terminal type (RFC 1091), the client's own echo.
        receive(&mut server, &[IAC, WILL, 31, IAC, DO, 24, IAC, WILL, ECHO]);
        assert_eq!(taken(&mut server), [IAC, DONT, 31, IAC, WONT, 24, IAC, DONT, ECHO]);
        receive(&mut server, &[IAC, WONT, 31, IAC, DONT, 24, IAC, DO, BINARY, IAC, DO, BINARY]);
        assert!(taken(&mut server).is_empty());
        receive(&mut server, &[IAC, DONT, BINARY, IAC, DONT, BINARY]);
        assert_eq!(taken(&mut server), [IAC, WONT, BINARY]);
    }

    #[test]
    fn two_ends_that_somebody_else_confused_stop_all_the_same() {
        let (mut client, mut server) = agreed(Carries::Line);
        receive(&mut client, &[IAC, DONT, BINARY, IAC, DO, BINARY]);
        for _ in 0..20 {
            let there = taken(&mut client);
            if there.is_empty() {
                return;
            }
            receive(&mut server, &there);
            receive(&mut client, &taken(&mut server));
        }
        panic!("they answer each other for ever");
    }

    #[test]
    fn every_command_of_rfc_2217_is_read_as_it_was_told_however_it_is_cut() {
        let commands = [
            ComPort::Signature(b"wharf \xff".to_vec()),
            ComPort::BaudRate(0xff_0001),
            ComPort::DataSize(8),
            ComPort::Parity(1),
            ComPort::StopSize(2),
            ComPort::Control(5),
            ComPort::LineState(0xff),
            ComPort::ModemState(0xb0),
            ComPort::Suspend,
            ComPort::Resume,
            ComPort::LineStateMask(0xff),
            ComPort::ModemStateMask(0),
            ComPort::Purge(3),
        ];
        let (mut client, mut server) = agreed(Carries::Line);
        for command in &commands {
            client.send(b"before");
            client.tell(command);
            client.send(b"after");
            let (mut data, mut heard) = (Vec::new(), Vec::new());
            for byte in taken(&mut client) {
                heard.extend(server.receive(&[byte], &mut data));
            }
            assert_eq!((data, heard), (b"beforeafter".to_vec(), vec![Heard::ComPort(command.clone())]));
            server.tell(command);
            assert_eq!(receive(&mut client, &taken(&mut server)).1, [Heard::ComPort(command.clone())]);
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_rfc() {
        let (mut client, mut server) = agreed(Carries::Line);
        client.tell(&ComPort::BaudRate(115_200));
        assert_eq!(taken(&mut client), [255, 250, 44, 1, 0, 1, 194, 0, 255, 240]);
        server.tell(&ComPort::Purge(3));
        assert_eq!(taken(&mut server), [255, 250, 44, 112, 3, 255, 240]);
        let (data, heard) = receive(&mut server, &[b'a', 255, 243, 255, 255, 255, 241, b'b']);
        assert_eq!((data.as_slice(), heard.as_slice()), (&[b'a', 255, b'b'][..], &[Heard::Break][..]));
    }

    #[test]
    fn a_command_that_was_not_agreed_on_or_is_too_long_or_the_other_side_s_is_not_heard() {
        let mut client = Terminal::new(Side::Client, Carries::Bytes);
        taken(&mut client);
        assert_eq!(receive(&mut client, &[IAC, SB, COM_PORT, 101, 0, 0, 37, 128, IAC, SE]), (vec![], vec![]));
        let (mut client, _) = agreed(Carries::Line);
        assert_eq!(receive(&mut client, &[IAC, SB, COM_PORT, 1, 0, 0, 37, 128, IAC, SE, b'x']), (vec![b'x'], vec![]));
        assert_eq!(receive(&mut client, &[IAC, SB, COM_PORT, 101, 0, 0, IAC, SE]), (vec![], vec![]));
        let long = [&[IAC, SB, COM_PORT, 100][..], &[b'x'; 1000], &[IAC, SE, b'y']].concat();
        assert_eq!(receive(&mut client, &long), (vec![b'y'], vec![]));
    }

    #[test]
    fn a_subnegotiation_that_is_not_ended_ends_with_the_next_command() {
        let (mut client, _) = agreed(Carries::Line);
        let (data, heard) = receive(&mut client, &[IAC, SB, COM_PORT, 102, 8, IAC, WILL, 31, b'x']);
        assert_eq!((data, heard), (vec![b'x'], vec![Heard::ComPort(ComPort::DataSize(8))]));
        assert_eq!(taken(&mut client), [IAC, DONT, 31]);
    }
}
