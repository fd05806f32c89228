//! What a DUT writes to the board and reads from it: paths and pairs to requests, messages to lines. ◆
//!
//! ```text
//!  /send/<id>      key=value …   ──► Send { id, pairs }          role key=value     a line per pair
//!  /wait/<id>                    ──► Wait { id }                 role               of who sent the message without pairs
//!  /wait-all/<id>  role=NAME     ──► WaitAll { id, role? }
//!  /sync/<id>                    ──► Sync { id }                 role               a line per role
//! ```
//! A line is made for `while read -r role pair`: the role has no blank, the value is the rest of the line. What would end the line or
//! be lost at its end is written as `printf %b` reads it (POSIX, printf, `%b`): `\n`, `\r`, `\t`, `\\`, and `\0ooo` for any other byte
//! of a control character and for a blank at the very end.

use std::fmt;
use std::fmt::Write;

/// Key and value, in the order of the message.
pub(super) type Pairs = Vec<(String, String)>;

/// What a DUT may ask of the board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Leave a message for all roles.
    Send { id: String, pairs: Pairs },
    /// Until any role has sent it.
    Wait { id: String },
    /// Until all roles, or all instances of one, have sent it.
    WaitAll { id: String, role: Option<String> },
    /// Until all roles have come there.
    Sync { id: String },
}

/// What the board answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub status: Status,
    /// Lines, or one sentence; each with its newline.
    pub text: String,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// Lines follow.
    Done,
    /// The request makes no sense.
    Bad,
    /// No such call.
    NoSuchCall,
    /// What it waited for can no longer happen.
    Ended,
    /// A message beyond [`MESSAGE_BYTES_MAX`].
    TooLarge,
    /// A newer request took its place.
    GaveWay,
    /// The board keeps no more.
    Full,
}

/// 4 KiB of keys and values: what LAVA's coordinator takes as one packet; more than addresses, ports and versions is a file.
const MESSAGE_BYTES_MAX: usize = 4096;
/// 64 bytes: an id is a word of a script, and stands in lines of the log.
const ID_BYTES_MAX: usize = 64;

impl Status {
    /// The HTTP status code.
    pub(super) fn code(self) -> u16 {
        match self {
            Status::Done => 200,
            Status::Bad => 400,
            Status::NoSuchCall => 404,
            Status::Ended => 409,
            Status::TooLarge => 413,
            Status::GaveWay => 429,
            Status::Full => 507,
        }
    }
}

impl Reply {
    /// Lines.
    pub(super) fn done(text: String) -> Self {
        Reply { status: Status::Done, text }
    }

    /// A sentence that says why not.
    pub(super) fn refusal(status: Status, sentence: impl fmt::Display) -> Self {
        Reply { status, text: format!("{sentence}\n") }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Request::Send { id, .. } => write!(f, "send/{id}"),
            Request::Wait { id } => write!(f, "wait/{id}"),
            Request::WaitAll { id, role: None } => write!(f, "wait-all/{id}"),
            Request::WaitAll { id, role: Some(role) } => write!(f, "wait-all/{id}?role={role}"),
            Request::Sync { id } => write!(f, "sync/{id}"),
        }
    }
}

/// The request that a path below the board's URL and the pairs of query and form make.
pub(super) fn read(path: &str, pairs: Pairs) -> Result<Request, Reply> {
    let below = path.strip_prefix('/').unwrap_or(path);
    let (call, id) = below.split_once('/').unwrap_or((below, ""));
    match call {
        "send" => Ok(Request::Send { id: checked_id(id)?, pairs: checked_pairs(pairs)? }),
        "wait" => Ok(Request::Wait { id: checked_id(id)? }).and_then(|request| without(pairs, request)),
        "wait-all" => Ok(Request::WaitAll { id: checked_id(id)?, role: awaited_role(pairs)? }),
        "sync" => Ok(Request::Sync { id: checked_id(id)? }).and_then(|request| without(pairs, request)),
        _ => {
            let sentence = format!(
                "no such call {path:?}; calls: send/<id>?key=value, wait/<id>, wait-all/<id>, wait-all/<id>?role=<role>, sync/<id>"
            );
            Err(Reply::refusal(Status::NoSuchCall, sentence))
        }
    }
}

/// A word for ids and keys: it has no blank, no `=`, and nothing that a shell expands.
fn is_word(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    (1..=ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(is_plain)
}

fn not_a_word(what: &str, text: &str) -> Reply {
    let shown: String = text.chars().take(ID_BYTES_MAX).collect();
    let rule = format!("use 1 to {ID_BYTES_MAX} letters, digits, `-`, `_`, `.`, `:`");
    Reply::refusal(Status::Bad, format!("{shown:?} is no {what}; {rule}"))
}

fn checked_id(id: &str) -> Result<String, Reply> {
    if is_word(id) { Ok(id.to_owned()) } else { Err(not_a_word("message id", id)) }
}

fn checked_pairs(pairs: Pairs) -> Result<Pairs, Reply> {
    let bytes: usize = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MESSAGE_BYTES_MAX {
        let sentence = format!("the message has {bytes} bytes; at most {MESSAGE_BYTES_MAX}: send where the data is");
        return Err(Reply::refusal(Status::TooLarge, sentence));
    }
    for (index, (key, _)) in pairs.iter().enumerate() {
        if !is_word(key) {
            return Err(not_a_word("key", key));
        }
        if pairs[..index].iter().any(|(other, _)| other == key) {
            return Err(Reply::refusal(Status::Bad, format!("the key `{key}` is there twice")));
        }
    }
    Ok(pairs)
}

/// `request`, which takes no pairs.
fn without(pairs: Pairs, request: Request) -> Result<Request, Reply> {
    match pairs.first() {
        None => Ok(request),
        Some((key, _)) => {
            let sentence = format!("{request} takes no data, but got {key:?}; data goes with send/<id>?key=value");
            Err(Reply::refusal(Status::Bad, sentence))
        }
    }
}

fn awaited_role(pairs: Pairs) -> Result<Option<String>, Reply> {
    let mut role = None;
    for (key, value) in pairs {
        if key != "role" || role.is_some() {
            return Err(Reply::refusal(Status::Bad, format!("wait-all takes one `role=<role>`, but got {key:?} too")));
        }
        role = Some(value);
    }
    Ok(role)
}

/// The lines of a message.
pub(super) fn lines(role: &str, pairs: &Pairs) -> String {
    if pairs.is_empty() {
        return format!("{role}\n");
    }
    pairs.iter().map(|(key, value)| format!("{role} {key}={}\n", on_one_line(value))).collect()
}

/// The message as a log tells it.
pub(super) fn told(pairs: &Pairs) -> String {
    // 200 characters: a line of a log; the whole is in the answers.
    const LONGEST: usize = 200;
    let words: Vec<_> = pairs.iter().map(|(key, value)| format!("{key}={}", on_one_line(value))).collect();
    let text = words.join(" ");
    match text.char_indices().nth(LONGEST) {
        None => text,
        Some((end, _)) => format!("{} …", &text[..end]),
    }
}

fn on_one_line(value: &str) -> String {
    let mut line = String::with_capacity(value.len());
    let mut characters = value.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            character if character.is_control() || (character == ' ' && characters.peek().is_none()) => {
                for byte in character.encode_utf8(&mut [0; 4]).bytes() {
                    write!(line, "\\0{byte:03o}").expect("a string takes what is written to it");
                }
            }
            character => line.push(character),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Pairs {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn paths_and_pairs_make_requests() {
        let id = || "a.b:c-1_2".to_owned();
        let data = || pairs(&[("ip", "10.0.0.1"), ("note", "two words")]);
        for (path, asked, expected) in [
            ("/send/a.b:c-1_2", data(), Request::Send { id: id(), pairs: data() }),
            ("/send/a.b:c-1_2", vec![], Request::Send { id: id(), pairs: vec![] }),
            ("/wait/a.b:c-1_2", vec![], Request::Wait { id: id() }),
            ("/wait-all/a.b:c-1_2", vec![], Request::WaitAll { id: id(), role: None }),
            ("/wait-all/a.b:c-1_2", pairs(&[("role", "s")]), Request::WaitAll { id: id(), role: Some("s".into()) }),
            ("/sync/a.b:c-1_2", vec![], Request::Sync { id: id() }),
        ] {
            assert_eq!(read(path, asked), Ok(expected), "{path}");
        }
    }

    #[test]
    fn what_is_no_request_is_told_with_the_next_step() {
        let long = "x".repeat(65);
        let word = "use 1 to 64 letters, digits, `-`, `_`, `.`, `:`\n";
        for (path, asked, status, text) in [
            ("/send/a b".to_owned(), vec![], 400, format!("\"a b\" is no message id; {word}")),
            ("/send/".to_owned(), vec![], 400, format!("\"\" is no message id; {word}")),
            ("/send".to_owned(), vec![], 400, format!("\"\" is no message id; {word}")),
            ("/wait/a/b".to_owned(), vec![], 400, format!("\"a/b\" is no message id; {word}")),
            (format!("/sync/{long}"), vec![], 400, format!("\"{}\" is no message id; {word}", &long[1..])),
            ("/send/a".to_owned(), pairs(&[("k k", "")]), 400, format!("\"k k\" is no key; {word}")),
            ("/send/a".to_owned(), pairs(&[("k", "1"), ("k", "2")]), 400, "the key `k` is there twice\n".to_owned()),
            (
                "/send/a".to_owned(),
                pairs(&[("k", &"v".repeat(4096))]),
                413,
                "the message has 4097 bytes; at most 4096: send where the data is\n".to_owned(),
            ),
            (
                "/wait/a".to_owned(),
                pairs(&[("k", "1")]),
                400,
                "wait/a takes no data, but got \"k\"; data goes with send/<id>?key=value\n".to_owned(),
            ),
            (
                "/sync/a".to_owned(),
                pairs(&[("k", "1")]),
                400,
                "sync/a takes no data, but got \"k\"; data goes with send/<id>?key=value\n".to_owned(),
            ),
            (
                "/wait-all/a".to_owned(),
                pairs(&[("rôle", "server")]),
                400,
                "wait-all takes one `role=<role>`, but got \"rôle\" too\n".to_owned(),
            ),
            (
                "/shout/a".to_owned(),
                vec![],
                404,
                "no such call \"/shout/a\"; calls: send/<id>?key=value, wait/<id>, wait-all/<id>, wait-all/<id>?role=<role>, \
                 sync/<id>\n"
                    .to_owned(),
            ),
        ] {
            let reply = read(&path, asked).unwrap_err();
            assert_eq!((reply.status.code(), reply.text), (status, text), "{path}");
        }
        assert!(read("/send/a", pairs(&[("k", &"v".repeat(4095))])).is_ok(), "4096 bytes are a message");
    }

    #[test]
    fn a_message_is_a_line_per_pair_and_a_value_stays_on_its_line() {
        assert_eq!(lines("server-1", &vec![]), "server-1\n");
        let message = pairs(&[("ip", "10.0.0.1"), ("note", "two words = 1"), ("empty", "")]);
        assert_eq!(lines("s", &message), "s ip=10.0.0.1\ns note=two words = 1\ns empty=\n");
        let odd = pairs(&[("a", "1\n2\r\t\\"), ("b", " end "), ("c", "\u{1}\u{7f}\u{85}é")]);
        assert_eq!(lines("s", &odd), "s a=1\\n2\\r\\t\\\\\ns b= end\\0040\ns c=\\0001\\0177\\0302\\0205é\n");
    }

    #[test]
    fn a_log_line_shows_the_head_of_a_long_message() {
        assert_eq!(told(&pairs(&[("a", "1"), ("b", "x\ny")])), "a=1 b=x\\ny");
        let long = told(&pairs(&[("a", &"é".repeat(300))]));
        assert_eq!(long, format!("a={} …", "é".repeat(198)));
    }
}
