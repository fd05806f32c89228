//! A unit that says what a recording says, for the tests of drivers: `fixtures/blueprints/power/exchanges/` has the recordings.
//!
//! ```text
//!  # where it is from             at the beginning
//!  > what the driver must send    the next thing that it sends, or the exchange fails, and says so
//!  < what the unit answers
//!  (an empty line)                the next connection
//! ```
//! HTTP: a connection for each request: `> METHOD path [Authorization: …] [body]`, `< status [WWW-Authenticate: …] [body]`.

use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Outlet, Pdu};
use crate::blueprint::driver::{self, Context};

/// A unit that is played.
pub(super) struct Recorded {
    host: String,
    left: Arc<Mutex<Vec<Vec<Said>>>>,
    server: tokio::task::JoinHandle<()>,
}

/// One line of a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Driver(String),
    Unit(String),
}

/// How the lines of a recording are bytes.
#[derive(Clone, Copy)]
enum Form {
    Lines,
    Hexadecimal,
}

impl Recorded {
    /// A unit that speaks HTTP.
    pub(super) async fn http(recording: &str) -> Recorded {
        let said: Vec<Said> = conversations(recording).concat();
        let each: Vec<Vec<Said>> = said.chunks(2).map(<[Said]>::to_vec).collect();
        Recorded::start(each, |stream, said| Box::pin(answer(stream, said))).await
    }

    /// A unit that speaks in lines that end in CR and LF.
    pub(super) async fn lines(recording: &str) -> Recorded {
        Recorded::start(conversations(recording), |stream, said| Box::pin(converse(stream, said, Form::Lines))).await
    }

    /// A unit that speaks in bytes, which the recording has as hexadecimal numbers.
    pub(super) async fn bytes(recording: &str) -> Recorded {
        Recorded::start(conversations(recording), |stream, said| Box::pin(converse(stream, said, Form::Hexadecimal)))
            .await
    }

    async fn start(
        mut left: Vec<Vec<Said>>,
        play: impl Fn(TcpStream, Vec<Said>) -> futures_util::future::BoxFuture<'static, ()> + Send + 'static,
    ) -> Recorded {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        left.reverse();
        let left = Arc::new(Mutex::new(left));
        let rest = left.clone();
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Nothing left to say: the connection closes.
                let next = rest.lock().unwrap().pop();
                if let Some(said) = next {
                    play(stream, said).await;
                }
            }
        });
        Recorded { host, left, server }
    }

    /// Its address and port.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Every conversation took place.
    pub(super) fn was_played_to_its_end(&self) {
        assert_eq!(*self.left.lock().unwrap(), Vec::<Vec<Said>>::new(), "left of the recording");
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The driver with these keys; of one machine, whose outlet has a name, or with any number of outlets.
pub(super) fn build<K: driver::Keys<dyn Pdu>>(keys: &Value, own: Option<&str>) -> Arc<dyn Pdu> {
    let own = own.map(outlet);
    let context = Context { directory: std::path::Path::new(""), outlet: own.as_ref() };
    let keys: K = serde_json::from_value(keys.clone()).unwrap();
    keys.build(&context).unwrap_or_else(|mistakes| panic!("{mistakes:?}"))
}

/// What is wrong with these keys: `key: what`.
pub(super) fn mistakes<K: driver::Keys<dyn Pdu>>(keys: &Value, own: Option<&str>) -> Vec<String> {
    let own = own.map(outlet);
    let context = Context { directory: std::path::Path::new(""), outlet: own.as_ref() };
    let keys: K = serde_json::from_value(keys.clone()).unwrap();
    let mistakes = keys.build(&context).err().unwrap_or_default();
    mistakes.iter().map(|mistake| format!("{}: {}", mistake.key.join("."), mistake.what)).collect()
}

/// A recording of the repository.
pub(super) fn exchange(name: &str) -> String {
    let path = format!("{}/../fixtures/blueprints/power/exchanges/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub(super) fn outlet(name: &str) -> Outlet {
    Outlet(name.to_owned())
}

fn conversations(recording: &str) -> Vec<Vec<Said>> {
    let line = |line: &str| match line.split_at_checked(2) {
        Some(("> ", text)) => Some(Said::Driver(text.to_owned())),
        Some(("< ", text)) => Some(Said::Unit(text.to_owned())),
        _ if line.starts_with('#') => None,
        _ => panic!("neither `> …`, `< …` nor `# …`: {line}"),
    };
    let parts =
        recording.split("\n\n").map(|part| part.lines().filter(|line| !line.is_empty()).filter_map(line).collect());
    parts.filter(|part: &Vec<Said>| !part.is_empty()).collect()
}

async fn converse(mut stream: TcpStream, said: Vec<Said>, form: Form) {
    let bytes = |text: &str| match form {
        Form::Lines => format!("{text}\r\n").into_bytes(),
        Form::Hexadecimal => text.split(' ').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect(),
    };
    for said in said {
        match said {
            Said::Unit(text) => stream.write_all(&bytes(&text)).await.unwrap(),
            Said::Driver(text) => {
                let expected = bytes(&text);
                let mut sent = vec![0; expected.len()];
                // Whoever says something else hears no more: the driver's error is the test's.
                if stream.read_exact(&mut sent).await.is_err() || sent != expected {
                    eprintln!("expected `{text}`, got {}", sent.escape_ascii());
                    return;
                }
            }
        }
    }
}

async fn answer(mut stream: TcpStream, said: Vec<Said>) {
    let [Said::Driver(expected), Said::Unit(answer)] = said.as_slice() else {
        panic!("not a request and an answer: {said:?}")
    };
    let request = read_request(&mut stream).await;
    let answer =
        if request == *expected { answer.clone() } else { format!("500 expected `{expected}`, got `{request}`") };
    let (status, rest) = answer.split_once(' ').unwrap_or((&answer, ""));
    let (header, body) = match rest.strip_prefix("WWW-Authenticate: ") {
        Some(challenge) => (format!("WWW-Authenticate: {challenge}\r\n"), ""),
        None => (String::new(), rest),
    };
    let length = if status == "204" { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let response = format!("HTTP/1.1 {status} X\r\n{header}{length}Connection: close\r\n\r\n{body}");
    stream.write_all(response.as_bytes()).await.unwrap();
}

/// Method, path, credentials and body, on one line.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
            break String::from_utf8(bytes.drain(..end + 4).collect()).unwrap();
        }
        if stream.read_buf(&mut bytes).await.unwrap() == 0 {
            return String::from_utf8_lossy(&bytes).into_owned();
        }
    };
    let field = |name: &str| {
        head.lines().find_map(|line| line.split_once(": ").filter(|field| field.0.eq_ignore_ascii_case(name)))
    };
    let length: usize = field("content-length").map_or(0, |(_, length)| length.parse().unwrap());
    while bytes.len() < length {
        stream.read_buf(&mut bytes).await.unwrap();
    }
    let mut request = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
    if let Some((_, credentials)) = field("authorization") {
        // A client's own nonce and what follows from it are another test's.
        let credentials = if credentials.starts_with("Digest") { "Digest" } else { credentials };
        request += &format!(" Authorization: {credentials}");
    }
    if !bytes.is_empty() {
        request += &format!(" {}", String::from_utf8(bytes).unwrap());
    }
    request
}
