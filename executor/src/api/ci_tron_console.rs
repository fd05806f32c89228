//! CI-tron's console protocol: bytes in, messages out, and the other way round. No socket, no clock.
//!
//! ```text
//!  frame   = u32 big-endian length ++ UTF-8 JSON {"msg_type", "date", "payload"}
//!
//!  to the client                                     from the client
//!   ctrl         {msg, severity, tag, metadata}       job_io   bytes typed on the console
//!   job_io       "base85 of the DUT's bytes"          (else)   ignored
//!   session_end  {status, joules_consumed, job_bucket {minio_access_url, bucket_name}}
//! ```
//! The client's `message.py` (0.0.9 to 0.2.1) is the evidence for every byte here. What a DUT says is forwarded as it comes; a match is
//! told after the bytes that it matched.

use bytes::{Buf, Bytes, BytesMut};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::buckets::Access;
use crate::job_log::{JobEvent, Record, Severity};
use crate::sentence::{sentence, severity};
use crate::verdict::Verdict;

/// The name of the protocol in `Upgrade:`; the client compares it letter by letter.
pub(super) const PROTOCOL: &str = "ci-tron-console";

/// Console bytes per frame. Client 0.0.9 mis-slices its buffer when a frame arrives in three pieces (`message.py`, `recv`); a frame that
/// is smaller than an Ethernet segment (1,448 bytes) touches two segments at most. 768 bytes make 960 of base85 and a frame of some 1,060.
const CONSOLE_BYTES_PER_FRAME: usize = 768;

/// Message bytes per frame, for the same reason: JSON may double them.
const MESSAGE_BYTES_PER_FRAME: usize = 500;

/// The longest piece of a matched line that is repeated in a message's metadata.
const LINE_BYTES_MAX: usize = 250;

/// The longest frame taken from a client. It sends single key presses (110 bytes); a program that pastes a whole script fits too.
const CLIENT_FRAME_BYTES_MAX: usize = 64 * 1024;

/// Seconds between two lines about the same download.
const DOWNLOAD_PAUSE_S: i64 = 5;

/// Turns the records of one job into frames.
#[derive(Default)]
pub(super) struct Framer {
    place: Place,
    download_told_at: Option<Timestamp>,
    joules: Option<f64>,
    /// The way to the job's bucket, for a client that came with a directory.
    pub(super) bucket: Option<Access>,
}

/// Where the client's cursor is, as far as the DUT's bytes tell.
#[derive(Default, PartialEq)]
enum Place {
    #[default]
    LineStart,
    MidLine,
}

impl Framer {
    /// The frames that tell a record; `console` holds the bytes of a [`JobEvent::Console`].
    pub(super) fn frames(&mut self, record: &Record, console: &[u8]) -> Vec<u8> {
        let mut frames = Vec::new();
        match &record.event {
            JobEvent::Console { .. } => self.console(&mut frames, record.at, console),
            JobEvent::Download { bytes, total, .. } => {
                if self.download_is_worth_a_line(record.at, Some(*bytes) == *total) {
                    self.control(&mut frames, record);
                }
            }
            JobEvent::Ended { verdict } => self.end(&mut frames, record, verdict),
            JobEvent::Queued { .. }
            | JobEvent::Owned
            | JobEvent::Leased { .. }
            | JobEvent::SetupStarted
            | JobEvent::SetupComplete
            | JobEvent::SetupFailed { .. }
            | JobEvent::PowerCycling { .. }
            | JobEvent::PoweredOn { .. }
            | JobEvent::PoweredOff
            | JobEvent::FirmwareBooted { .. }
            | JobEvent::Access { .. }
            | JobEvent::PatternMatched { .. }
            | JobEvent::TimeoutHit { .. }
            | JobEvent::ConsoleAway { .. }
            | JobEvent::ConsoleBack { .. }
            | JobEvent::TestResults { .. }
            | JobEvent::Note { .. }
            | JobEvent::TeardownStarted
            | JobEvent::TeardownComplete => self.control(&mut frames, record),
            JobEvent::EnergyMeasured { joules, .. } => {
                self.joules = Some(*joules);
                self.control(&mut frames, record);
            }
        }
        frames
    }

    /// A message of the server's own, such as the greeting.
    pub(super) fn note(&mut self, at: Timestamp, text: &str) -> Vec<u8> {
        let mut frames = Vec::new();
        self.message(&mut frames, at, text, Severity::Info, 0, &json!({}));
        frames
    }

    fn console(&mut self, frames: &mut Vec<u8>, at: Timestamp, console: &[u8]) {
        for piece in console.chunks(CONSOLE_BYTES_PER_FRAME) {
            push_frame(frames, "job_io", at, Value::String(base85_encode(piece)));
        }
        if let Some(last) = console.last() {
            self.place = if *last == b'\n' { Place::LineStart } else { Place::MidLine };
        }
    }

    fn control(&mut self, frames: &mut Vec<u8>, record: &Record) {
        let Some(text) = sentence(&record.event) else { return };
        let (tag, metadata) = (tag(&record.event), metadata(&record.event));
        self.message(frames, record.at, &text, severity(&record.event), tag, &metadata);
    }

    fn end(&mut self, frames: &mut Vec<u8>, record: &Record, verdict: &Verdict) {
        self.control(frames, record);
        for line in &verdict.evidence {
            self.message(frames, record.at, &format!("  {line}"), Severity::Info, 0, &json!({}));
        }
        let mut payload = json!({"status": verdict.status.name(), "joules_consumed": self.joules});
        if let Some(Access { url, name }) = &self.bucket {
            payload["job_bucket"] = json!({"minio_access_url": url, "bucket_name": name});
        }
        push_frame(frames, "session_end", record.at, payload);
    }

    /// Client 0.0.9 prints a message as it is, 0.2.1 strips its end and adds a newline: so each ends in one. One that would continue a
    /// half line of the DUT's starts with one.
    fn message(
        &mut self,
        frames: &mut Vec<u8>,
        at: Timestamp,
        text: &str,
        severity: Severity,
        tag: u16,
        metadata: &Value,
    ) {
        let text = visible(text.trim_end());
        let (mut tag, mut metadata) = (tag, metadata.clone());
        for piece in pieces(&text, MESSAGE_BYTES_PER_FRAME) {
            let start = if self.place == Place::MidLine { "\r\n" } else { "" };
            let payload = json!({
                "msg": format!("{start}{piece}\n"),
                "severity": severity as u8,
                "tag": tag,
                "metadata": metadata,
            });
            push_frame(frames, "ctrl", at, payload);
            self.place = Place::LineStart;
            // A match or a timeout is counted by its tag: only the first piece carries it.
            (tag, metadata) = (0, json!({}));
        }
    }

    fn download_is_worth_a_line(&mut self, now: Timestamp, is_complete: bool) -> bool {
        let is_due = self.download_told_at.is_none_or(|told| now.as_second() - told.as_second() >= DOWNLOAD_PAUSE_S);
        if is_due || is_complete {
            self.download_told_at = Some(now);
        }
        is_due || is_complete
    }
}

/// The numbers of `ControlMessageTag`; "never change the ids of existing tags", says its file.
fn tag(event: &JobEvent) -> u16 {
    match event {
        JobEvent::SetupStarted => 100,
        JobEvent::SetupComplete => 101,
        JobEvent::SetupFailed { .. } => 102,
        JobEvent::TeardownStarted => 105,
        JobEvent::TeardownComplete => 106,
        JobEvent::PowerCycling { .. } => 200,
        JobEvent::PoweredOn { .. } => 201,
        JobEvent::FirmwareBooted { .. } => 301,
        JobEvent::TimeoutHit { .. } => 400,
        JobEvent::PatternMatched { .. } => 401,
        // 300 (the DUT's power draw showed its power sequence) has no source yet: no boot's draw is learnt.
        JobEvent::Queued { .. }
        | JobEvent::Owned
        | JobEvent::Leased { .. }
        | JobEvent::Download { .. }
        | JobEvent::PoweredOff
        | JobEvent::Access { .. }
        | JobEvent::Console { .. }
        | JobEvent::ConsoleAway { .. }
        | JobEvent::ConsoleBack { .. }
        | JobEvent::EnergyMeasured { .. }
        | JobEvent::TestResults { .. }
        | JobEvent::Note { .. }
        | JobEvent::Ended { .. } => 0,
    }
}

fn metadata(event: &JobEvent) -> Value {
    match event {
        JobEvent::TimeoutHit { name, seconds, retries, retried, is_retrying } => json!({
            "timeout": {
                "name": name, "seconds": seconds, "retries": retries, "retried": retried, "is_retrying": is_retrying,
            }
        }),
        // The client's summary calls `.strip()` on the line: it must be there, and a string.
        JobEvent::PatternMatched { patterns, line } => {
            json!({"patterns": patterns, "line": pieces(line, LINE_BYTES_MAX).next().unwrap_or_default()})
        }
        _ => json!({}),
    }
}

#[derive(Serialize)]
struct Frame<'a> {
    msg_type: &'a str,
    date: String,
    payload: Value,
}

fn push_frame(frames: &mut Vec<u8>, msg_type: &str, at: Timestamp, payload: Value) {
    // Python before 3.11 takes neither `Z` nor nine digits in `fromisoformat`.
    let date = at.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string();
    let json = serde_json::to_vec(&Frame { msg_type, date, payload }).expect("strings and numbers always become JSON");
    let length = u32::try_from(json.len()).expect("a frame is some kilobytes");
    frames.extend_from_slice(&length.to_be_bytes());
    frames.extend_from_slice(&json);
}

/// A text in pieces of at most `bytes_max`, cut between characters; an empty text is one empty piece.
fn pieces(text: &str, bytes_max: usize) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let cut = text.floor_char_boundary(bytes_max);
        let (piece, after) = text.split_at(cut);
        rest = (!after.is_empty()).then_some(after);
        Some(piece)
    })
}

/// No message of ours moves a terminal's cursor; only the DUT's own bytes may.
fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// What a client said.
#[derive(Debug, PartialEq)]
pub(super) enum FromClient {
    /// Bytes for the DUT's console.
    Typed(Bytes),
    /// A message that means nothing to a server.
    Other,
}

/// Why a client's bytes are not the console protocol.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum FrameError {
    /// The length is beyond what any client sends.
    #[error("a frame of {0} bytes; the longest taken is {CLIENT_FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// The frame's body is not one of the protocol's messages.
    #[error("a frame that is not a message: {0}")]
    NotAMessage(String),
}

/// Collects a client's bytes until they are messages.
#[derive(Default)]
pub(super) struct Decoder {
    buffer: BytesMut,
}

impl Decoder {
    /// Takes what was read.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, if one is there. After an error the stream has lost its frames and is of no more use.
    pub(super) fn next(&mut self) -> Result<Option<FromClient>, FrameError> {
        let Some(head) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        if length > CLIENT_FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        if self.buffer.len() < 4 + length {
            return Ok(None);
        }
        self.buffer.advance(4);
        message(&self.buffer.split_to(length)).map(Some)
    }
}

#[derive(Deserialize)]
struct ClientFrame {
    msg_type: String,
    #[serde(default)]
    payload: Value,
}

fn message(json: &[u8]) -> Result<FromClient, FrameError> {
    let frame: ClientFrame =
        serde_json::from_slice(json).map_err(|error| FrameError::NotAMessage(error.to_string()))?;
    match (frame.msg_type.as_str(), frame.payload) {
        ("job_io", Value::String(text)) => match base85_decode(text.as_bytes()) {
            Some(bytes) => Ok(FromClient::Typed(bytes.into())),
            None => Err(FrameError::NotAMessage("its payload is not base85".into())),
        },
        ("job_io", _) => Err(FrameError::NotAMessage("its payload is not a string".into())),
        _ => Ok(FromClient::Other),
    }
}

/// RFC 1924 section 4.2, as Python's `base64.b85encode` uses it.
const ALPHABET: &[u8; 85] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";

/// Four bytes become five digits, the most significant first; the last group is padded with zeros and loses as many digits.
fn base85_encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(4) * 5);
    for group in bytes.chunks(4) {
        let mut padded = [0; 4];
        padded[..group.len()].copy_from_slice(group);
        let mut value = u32::from_be_bytes(padded);
        let mut digits = ['0'; 5];
        for digit in digits.iter_mut().rev() {
            *digit = char::from(ALPHABET[(value % 85) as usize]);
            value /= 85;
        }
        text.extend(&digits[..=group.len()]);
    }
    text
}

/// `None` for a foreign character or a group above 2^32 - 1, where Python raises.
fn base85_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 5 * 4 + 4);
    for group in text.chunks(5) {
        let mut value: u32 = 0;
        for place in 0..5 {
            let character = group.get(place).copied().unwrap_or(b'~');
            let digit = ALPHABET.iter().position(|known| *known == character)?;
            value = value.checked_mul(85)?.checked_add(u32::try_from(digit).ok()?)?;
        }
        bytes.extend_from_slice(&value.to_be_bytes()[..group.len() - 1]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{Cause, Status};

    fn at() -> Timestamp {
        "2026-11-20T23:35:13.5Z".parse().unwrap()
    }

    fn record(event: JobEvent) -> Record {
        Record { number: 0, at: at(), event }
    }

    fn told(event: JobEvent) -> Vec<Value> {
        split(&Framer::default().frames(&record(event), b""))
    }

    fn split(mut frames: &[u8]) -> Vec<Value> {
        let mut messages = Vec::new();
        while !frames.is_empty() {
            let length = frames.get_u32() as usize;
            messages.push(serde_json::from_slice(&frames[..length]).unwrap());
            frames = &frames[length..];
        }
        messages
    }

    #[test]
    fn base85_is_that_of_python() {
        // python3 -c 'import base64; print(base64.b85encode(...))'
        let known: [(&[u8], &str); 7] = [
            (b"", ""),
            (b"a", "VE"),
            (b"ab", "VPX"),
            (b"abc", "VPaz"),
            (b"hello\r\n", "Xk~0{Zw(3"),
            (b"\x00\x00\x00\x00", "00000"),
            (b"\xff\xff\xff\xff\xff", "|NsC0{{"),
        ];
        for (bytes, text) in known {
            assert_eq!(base85_encode(bytes), text);
            assert_eq!(base85_decode(text.as_bytes()).unwrap(), bytes);
        }
    }

    #[test]
    fn base85_refuses_foreign_characters_and_too_large_groups() {
        assert_eq!(base85_decode(b"\"\"\"\"\""), None);
        assert_eq!(base85_decode(b"~~~~~"), None);
        assert_eq!(base85_decode("é".as_bytes()), None);
    }

    #[test]
    fn console_bytes_become_one_frame_to_the_byte() {
        let console = JobEvent::Console { offset: 0, length: 3 };
        let frames = Framer::default().frames(&record(console), b"abc");
        let expected = b"\x00\x00\x00\x50{\"msg_type\":\"job_io\",\"date\":\"2026-11-20T23:35:13.500000+00:00\",\"payload\":\"VPaz\"}";
        assert_eq!(String::from_utf8_lossy(&frames), String::from_utf8_lossy(expected));
    }

    #[test]
    fn a_long_console_chunk_is_cut_so_that_every_frame_fits_in_an_ethernet_segment() {
        let console: Vec<u8> = (0..5000).map(|n| n as u8).collect();
        let event = JobEvent::Console { offset: 0, length: console.len() };
        let frames = Framer::default().frames(&record(event), &console);
        let mut rest = &frames[..];
        let mut received = Vec::new();
        while !rest.is_empty() {
            let length = rest.get_u32() as usize;
            assert!(length + 4 < 1448, "a frame of {length} bytes");
            let message: Value = serde_json::from_slice(&rest[..length]).unwrap();
            received.extend(base85_decode(message["payload"].as_str().unwrap().as_bytes()).unwrap());
            rest = &rest[length..];
        }
        assert_eq!(received, console);
    }

    #[test]
    fn events_carry_the_tags_of_the_client() {
        let tags: Vec<_> = [
            JobEvent::SetupStarted,
            JobEvent::SetupComplete,
            JobEvent::SetupFailed { reason: "no".into() },
            JobEvent::TeardownStarted,
            JobEvent::TeardownComplete,
            JobEvent::PowerCycling { boot: 1 },
            JobEvent::PoweredOn { boot: 1 },
            JobEvent::FirmwareBooted { seconds: 1.5 },
            JobEvent::Leased { dut: "a".into() },
        ]
        .into_iter()
        .map(|event| told(event)[0]["payload"]["tag"].as_u64().unwrap())
        .collect();
        assert_eq!(tags, [100, 101, 102, 105, 106, 200, 201, 301, 0]);
    }

    #[test]
    fn what_the_outlet_measured_comes_with_the_end() {
        let mut framer = Framer::default();
        let ended = |framer: &mut Framer| {
            let verdict = Verdict {
                status: crate::verdict::Status::Pass,
                cause: crate::verdict::Cause::Test,
                summary: "good".into(),
                evidence: Vec::new(),
            };
            let frames = framer.frames(&record(JobEvent::Ended { verdict }), b"");
            String::from_utf8_lossy(&frames).into_owned()
        };
        assert!(ended(&mut framer).contains(r#""joules_consumed":null"#));
        framer.frames(&record(JobEvent::EnergyMeasured { joules: 120.5, seconds: 10.0 }), b"");
        assert!(ended(&mut framer).contains(r#""joules_consumed":120.5"#));
    }

    #[test]
    fn a_match_carries_its_patterns_and_its_line_as_a_string() {
        let event = JobEvent::PatternMatched { patterns: vec!["job_success".into()], line: "ok\r\n".into() };
        let message = told(event).remove(0);
        assert_eq!(message["payload"]["tag"], 401);
        assert_eq!(message["payload"]["metadata"], json!({"patterns": ["job_success"], "line": "ok\r\n"}));
        assert_eq!(message["payload"]["severity"], 1);
    }

    #[test]
    fn a_timeout_carries_its_accounting() {
        let event = JobEvent::TimeoutHit {
            name: "boot_cycle".into(),
            seconds: 60.0,
            retries: 2,
            retried: 1,
            is_retrying: true,
        };
        let message = told(event).remove(0);
        assert_eq!(message["payload"]["tag"], 400);
        let expected = json!({"name": "boot_cycle", "seconds": 60.0, "retries": 2, "retried": 1, "is_retrying": true});
        assert_eq!(message["payload"]["metadata"]["timeout"], expected);
    }

    #[test]
    fn the_last_frame_is_the_session_end_with_the_status() {
        let verdict = Verdict {
            status: Status::SetupFail,
            cause: Cause::Artifact,
            summary: "no kernel".into(),
            evidence: vec!["404".into()],
        };
        let messages = told(JobEvent::Ended { verdict });
        assert_eq!(messages.len(), 3);
        assert_eq!(messages[1]["payload"]["msg"], "  404\n");
        assert_eq!(messages[2]["msg_type"], "session_end");
        assert_eq!(messages[2]["payload"], json!({"status": "SETUP_FAIL", "joules_consumed": null}));
    }

    #[test]
    fn a_message_does_not_continue_a_half_line_of_the_duts() {
        let mut framer = Framer::default();
        framer.frames(&record(JobEvent::Console { offset: 0, length: 5 }), b"login");
        let first = split(&framer.frames(&record(JobEvent::SetupStarted), b"")).remove(0);
        let second = split(&framer.frames(&record(JobEvent::SetupStarted), b"")).remove(0);
        assert!(first["payload"]["msg"].as_str().unwrap().starts_with("\r\n"));
        assert!(!second["payload"]["msg"].as_str().unwrap().starts_with("\r\n"));
    }

    #[test]
    fn a_long_message_is_told_in_pieces_and_counted_once() {
        let event = JobEvent::PatternMatched { patterns: vec!["p".into()], line: "é\u{1b}".repeat(700) };
        let messages = told(event);
        assert!(messages.len() > 2);
        let tags: Vec<_> = messages.iter().map(|message| message["payload"]["tag"].as_u64().unwrap()).collect();
        assert_eq!(tags.iter().filter(|tag| **tag == 401).count(), 1);
        assert!(messages.iter().all(|message| !message["payload"]["msg"].as_str().unwrap().contains('\u{1b}')));
    }

    #[test]
    fn a_download_is_told_every_five_seconds_and_when_complete() {
        let download = |second: i64, bytes| Record {
            number: 0,
            at: Timestamp::from_second(second).unwrap(),
            event: JobEvent::Download { url: "http://a/b".into(), bytes, total: Some(10) },
        };
        let mut framer = Framer::default();
        let told: Vec<_> = [(0, 1), (1, 2), (4, 3), (5, 4), (6, 10)]
            .into_iter()
            .map(|(second, bytes)| !framer.frames(&download(second, bytes), b"").is_empty())
            .collect();
        assert_eq!(told, [true, false, false, true, true]);
    }

    #[test]
    fn a_key_press_arrives_however_it_is_cut() {
        let json = br#"{"msg_type": "job_io", "date": "2026-11-20T23:35:13+00:00", "payload": "VPaz"}"#;
        let mut bytes = u32::try_from(json.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(json);
        let mut decoder = Decoder::default();
        let mut messages = Vec::new();
        for byte in bytes.iter().chain(&bytes) {
            decoder.push(&[*byte]);
            messages.extend(decoder.next().unwrap());
        }
        assert_eq!(messages, [FromClient::Typed("abc".into()), FromClient::Typed("abc".into())]);
    }

    #[test]
    fn what_is_not_the_protocol_is_refused_and_unknown_messages_are_ignored() {
        let mut decoder = Decoder::default();
        decoder.push(b"GET / HTTP/1.1\r\n");
        assert_eq!(decoder.next(), Err(FrameError::TooLong(0x4745_5420)));
        let mut decoder = Decoder::default();
        decoder.push(b"\x00\x00\x00\x12{\"msg_type\":\"ctrl\"}\x00\x00\x00\x02[]");
        decoder.push(b"");
        assert_eq!(
            decoder.next(),
            Err(FrameError::NotAMessage("EOF while parsing an object at line 1 column 18".into()))
        );
        let mut decoder = Decoder::default();
        decoder.push(b"\x00\x00\x00\x13{\"msg_type\":\"ctrl\"}");
        assert_eq!(decoder.next(), Ok(Some(FromClient::Other)));
    }
}
