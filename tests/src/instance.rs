//! A forge's server as tests need it: HTTP on the loopback by somebody's rules, calls that go wrong on request, and a state that tests
//! wait for.
//!
//! ```text
//!  a call ─► Rules::call ─┬─ a fault is left for it: answered so, or lost
//!                         └─ Rules::answer ─► state ─► whoever waits looks again
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The longest that anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// A running server; its threads end with the test's process.
pub struct Instance<S> {
    address: SocketAddr,
    shared: Arc<Shared<S>>,
}

/// What a server knows, and how it answers.
pub trait Rules: Default + Send + 'static {
    /// What its faults know this call by: two words, the second of them a path or a number.
    fn call(request: &Request) -> String;
    /// Does what is asked; without an answer the connection is lost.
    fn answer(shared: &Shared<Self>, request: &Request) -> Option<Answer>;
}

/// What the threads of a server share.
#[derive(Default)]
pub struct Shared<S> {
    state: Mutex<S>,
    changed: Condvar,
    calls: Mutex<Calls>,
}

/// The calls that came, and those that are to go wrong.
#[derive(Default)]
struct Calls {
    came: Vec<String>,
    faults: Vec<(String, VecDeque<Fault>)>,
}

/// What goes wrong with a call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is not done, and answered so.
    Answer(u16, &'static str),
    /// It is done, and the connection is lost before the answer.
    DoneThenLost,
    /// The connection is lost before it is read.
    Lost,
}

/// A call as it came.
pub struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

/// What it is answered.
pub struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl<S: Rules> Instance<S> {
    /// Listens on the loopback.
    pub fn start() -> Instance<S> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has free ports");
        let address = listener.local_addr().expect("it listens");
        let shared = Arc::new(Shared::default());
        let served = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&served);
                std::thread::spawn(move || serve(&shared, stream));
            }
        });
        Instance { address, shared }
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next calls that are this one, or begin with it and a `/`, go wrong so, one after the other.
    pub fn fail(&self, call: &str, faults: impl IntoIterator<Item = Fault>) {
        self.shared.calls().faults.push((call.to_owned(), faults.into_iter().collect()));
    }

    /// Whether all faults of calls about this have happened.
    pub fn has_failed(&self, about: &str) -> bool {
        let is_about = |call: &str| call.split_once(' ').is_some_and(|(_, it)| it == about);
        self.shared.calls().faults.iter().all(|(call, left)| !is_about(call) || left.is_empty())
    }

    /// Each call so far, in two words.
    pub fn calls(&self) -> Vec<String> {
        self.shared.calls().came.clone()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, S> {
        self.shared.lock()
    }

    /// Changes what it knows, and has whoever waits look again.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut S) -> T) -> T {
        let changed = change(&mut self.lock());
        self.shared.changed.notify_all();
        changed
    }

    pub(crate) fn wait<T>(&self, find: impl Fn(&S) -> Option<T>) -> Option<T> {
        let until = Instant::now() + PATIENCE;
        let mut state = self.lock();
        loop {
            if let Some(found) = find(&state) {
                return Some(found);
            }
            state = self.shared.wait_until(until, state)?;
        }
    }
}

impl<S> Shared<S> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, S> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state after its next change; `None` when it is so late already.
    pub(crate) fn wait_until<'a>(&self, until: Instant, state: MutexGuard<'a, S>) -> Option<MutexGuard<'a, S>> {
        let left = until.checked_duration_since(Instant::now())?;
        Some(self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0)
    }

    /// The next fault that is left for this call.
    pub(crate) fn fault(&self, call: &str) -> Option<Fault> {
        let is_of = |of: &str| call.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let mut calls = self.calls();
        let (_, faults) = calls.faults.iter_mut().find(|(of, left)| is_of(of) && !left.is_empty())?;
        faults.pop_front()
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn serve<S: Rules>(shared: &Shared<S>, stream: TcpStream) {
    let Ok(mut writer) = stream.try_clone() else { return };
    let mut reader = BufReader::new(stream);
    while let Some(request) = read(&mut reader) {
        let call = S::call(&request);
        let fault = shared.fault(&call);
        shared.calls().came.push(call);
        let answer = match fault {
            Some(Fault::Lost) => return,
            Some(Fault::Answer(status, header)) => {
                let header = header.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
                Some(Answer { headers: header.into_iter().collect(), ..Answer::of(status) })
            }
            Some(Fault::DoneThenLost) => S::answer(shared, &request).and(None),
            None => S::answer(shared, &request),
        };
        shared.changed.notify_all();
        let Some(answer) = answer else { return };
        if write(&mut writer, &answer).is_err() {
            return;
        }
    }
}

fn read(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let length = usize::from_str_radix(line.trim(), 16).ok()?;
            let mut chunk = vec![0; length + 2];
            reader.read_exact(&mut chunk).ok()?;
            if length == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..length]);
        }
    } else {
        body.resize(headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0), 0);
        reader.read_exact(&mut body).ok()?;
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let path = path.strip_prefix("/api/v4").unwrap_or(path).to_owned();
    Some(Request { method, path, query: query.to_owned(), headers, body })
}

fn write(writer: &mut TcpStream, answer: &Answer) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} x\r\nContent-Length: {}\r\n", answer.status, answer.body.len());
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    writer.write_all(head.as_bytes())?;
    writer.write_all(b"\r\n")?;
    writer.write_all(&answer.body)
}

impl Request {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) fn query(&self, name: &str) -> String {
        let mut pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).unwrap_or_default()
    }
}

impl Answer {
    pub(crate) fn of(status: u16) -> Answer {
        Answer { status, headers: Vec::new(), body: Vec::new() }
    }

    pub(crate) fn json(status: u16, body: &Value) -> Answer {
        Answer { body: body.to_string().into_bytes(), ..Answer::of(status) }
    }

    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Answer {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }
}
