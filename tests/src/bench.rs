//! A farm to try things on: `wharf serve` in a process of its own, on a private network, seen through its API only.
//!
//! ```text
//!  Bench::start(wharf, farm file) ─► process, ready when it said so ─► submit ─► Job ─► wait_for, wait ─► Ended
//!       │ drop: SIGTERM                                                              (the events, the console, the verdict)
//!       └──────► nothing is left: no process, no network namespace, no folder; exit status 0
//! ```
//! Each farm has a network namespace without a name, so that any number of them may use the same addresses. Everything a farm
//! keeps on disk is in a temporary folder, but for the cache of downloads and boot images, which is the user's own.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::Lab;
use crate::packages::cache_folder;
pub use crate::packages::{need_packages, need_programs, need_virtual_machines};
use crate::workspace;

/// Names a farm's processes: they inherit it.
const MARK: &str = "WHARF_BENCH";
/// A farm answers within a second of its start; the first one of QEMU machines may install packages and a kernel before.
const START_S_MAX: u64 = 600;
/// The API sends a heartbeat every 10 s: twice that is a server that does not answer.
const SILENCE_S_MAX: u64 = 30;
/// Longer than any job of a test here lasts: those of QEMU machines end by their own `overall` of ten minutes. With a tenth of a processor
/// each, two of them at once needed more than four.
const JOB_S_MAX: u64 = 660;
/// Who ends a farm waits this long before it is killed: the server itself waits up to ten seconds for what it tears down.
const STOP_S_MAX: u64 = 20;
/// The kernel takes a moment to reap what died with its parent.
const REAP_S_MAX: u64 = 5;
/// Between two looks at a condition that nobody can tell us about.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A running farm. Dropping it ends it, and panics when anything of it is left.
pub struct Bench {
    api: SocketAddr,
    process: Pid,
    mark: String,
    exits: Mutex<mpsc::Receiver<ExitStatus>>,
    errors: Arc<Mutex<String>>,
    folder: Arc<tempfile::TempDir>,
    surroundings: Surroundings,
    is_over: bool,
}

/// What a farm runs in, besides its folders.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// Variables of its environment.
    pub environment: Vec<(String, String)>,
    /// Its state folder is a disk of its own with so many bytes, in a mount namespace that nobody else sees. It goes with the process.
    pub state_bytes: Option<u64>,
    /// The network that it is on; the host's when absent. With `state_bytes` it is the host's.
    pub lab: Option<Arc<Lab>>,
    /// Whom it asks for names, instead of those whom the host asks; in a lab, and in a mount namespace that nobody else sees.
    pub name_server: Option<Ipv4Addr>,
    /// Where its API is, port and all; a free port of the loopback when absent. Only in a lab may that be any other address.
    pub api: Option<String>,
}

/// A farm that tests share while any of them runs, with what else there is beside it; the last one ends it.
pub struct Shared<T = Bench>(Mutex<Weak<T>>);

/// So many tests at once may do something; the others wait.
pub struct Gate {
    free: Mutex<usize>,
    freed: Condvar,
}

/// The right to pass a [`Gate`]; dropping it lets the next one in.
pub struct Passage<'a>(&'a Gate);

/// An answer of the API.
#[derive(Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The head as it came.
    pub head: String,
    /// The body.
    pub body: Vec<u8>,
}

/// A job that was accepted.
pub struct Job<'a> {
    bench: &'a Bench,
    /// Its number.
    pub id: String,
    stream: BufReader<TcpStream>,
    events: Vec<Value>,
    until: Instant,
}

/// A job with its verdict.
#[derive(Debug)]
pub struct Ended {
    /// Its number.
    pub id: String,
    /// `PASS` and so on.
    pub status: String,
    /// `test`, `timeout` and so on.
    pub cause: String,
    /// Why, in a sentence.
    pub summary: String,
    /// What was seen, in order.
    pub evidence: Vec<String>,
    /// What its DUT said.
    pub console: String,
    /// All events.
    pub events: Vec<Value>,
}

impl Bench {
    /// Starts `wharf` (the binary's path) with a farm file's text.
    pub fn start(wharf: &str, farm: &str) -> Bench {
        Bench::start_with(wharf, farm, Surroundings::default())
    }

    /// The same in these surroundings.
    pub fn start_with(wharf: &str, farm: &str, surroundings: Surroundings) -> Bench {
        let folder = tempfile::Builder::new().prefix("bench-").tempdir().expect("a temporary folder can be made");
        for name in ["run", "tmp"] {
            fs::create_dir(folder.path().join(name)).expect("the folder is new");
        }
        fs::write(folder.path().join("farm.yml"), farm).expect("the folder is ours");
        Bench::start_in(wharf, Arc::new(folder), surroundings)
    }

    /// Ends the farm as `kill -9` does, and starts it again with what that left behind.
    pub fn killed_and_started_again(mut self, wharf: &str) -> Bench {
        self.end(Signal::SIGKILL);
        Bench::start_in(wharf, Arc::clone(&self.folder), self.surroundings.clone())
    }

    /// Asks the farm to stop, and starts it again.
    pub fn stopped_and_started_again(mut self, wharf: &str) -> Bench {
        self.end(Signal::SIGTERM);
        Bench::start_in(wharf, Arc::clone(&self.folder), self.surroundings.clone())
    }

    fn start_in(wharf: &str, folder: Arc<tempfile::TempDir>, surroundings: Surroundings) -> Bench {
        let farm_file = folder.path().join("farm.yml");
        let mark = new_mark();
        let mut command = match (surroundings.state_bytes, &surroundings.lab) {
            (None, None) => Command::new(wharf),
            (None, Some(lab)) => match surroundings.name_server {
                None => lab.command(wharf).expect("the namespace is open"),
                Some(server) => with_a_name_server(wharf, lab, &folder.path().join("resolv.conf"), server),
            },
            (Some(bytes), _) => on_a_small_disk(wharf, &folder.path().join("state"), bytes),
        };
        command.envs(surroundings.environment.iter().map(|(name, value)| (name, value)));
        let api = surroundings.api.as_deref().unwrap_or("127.0.0.1:0");
        command.arg("serve").arg("--farm").arg(&farm_file).args(["--api", api, "--state"]);
        command.arg(folder.path().join("state")).env(MARK, &mark).current_dir(workspace::root());
        command.env("XDG_RUNTIME_DIR", folder.path().join("run")).env("TMPDIR", folder.path().join("tmp"));
        command.env("WHARF_CACHE", cache_folder()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (process, mut output, exits) = spawn(command);
        let errors = Arc::new(Mutex::new(String::new()));
        collect(output.stderr.take().expect("it is piped"), Arc::clone(&errors));
        let stdout = output.stdout.take().expect("it is piped");
        let api = wait_for_address(stdout).unwrap_or_else(|| {
            let status = exits.recv_timeout(Duration::from_secs(STOP_S_MAX));
            panic!("wharf serve did not start ({status:?}); it said:\n{}", lock(&errors))
        });
        Bench { api, process, mark, exits: Mutex::new(exits), errors, folder, surroundings, is_over: false }
    }

    /// Writes another text into the farm file, which the farm has read before.
    pub fn write_farm(&self, farm: &str) {
        fs::write(self.folder.path().join("farm.yml"), farm).expect("the folder is ours");
    }

    /// Where that is.
    pub fn farm_file(&self) -> PathBuf {
        self.folder.path().join("farm.yml")
    }

    /// Tells the server by SIGHUP to read its farm file again.
    pub fn hang_up(&self) {
        kill(self.process, Signal::SIGHUP).expect("the server runs");
    }

    /// `http://ADDRESS:PORT` of the API.
    pub fn url(&self) -> String {
        format!("http://{}", self.api)
    }

    /// Address and port of the API.
    pub fn address(&self) -> SocketAddr {
        self.api
    }

    /// The API's unix socket.
    pub fn local_socket(&self) -> PathBuf {
        self.folder.path().join("run/wharf.sock")
    }

    /// Its state folder as it sees it, be it in a mount namespace of its own.
    pub fn state(&self) -> PathBuf {
        let state = self.folder.path().join("state");
        let inside = state.strip_prefix("/").expect("temporary folders have absolute paths");
        PathBuf::from(format!("/proc/{}/root", self.process)).join(inside)
    }

    /// What the server wrote on its standard error so far.
    pub fn errors(&self) -> String {
        lock(&self.errors).clone()
    }

    /// GET.
    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "", b"")
    }

    /// POST.
    pub fn post(&self, path: &str, content_type: &str, body: &[u8]) -> Answer {
        self.ask("POST", path, &format!("Content-Type: {content_type}\r\n"), body)
    }

    /// Hands a job in; what the server refuses is the error. `query` begins with `?`, or is empty.
    pub fn try_submit(&self, job: &str, query: &str) -> Result<Job<'_>, Answer> {
        let answer = self.post(&format!("/api/v1/jobs{query}"), "application/yaml", job.as_bytes());
        if answer.status != 201 {
            return Err(answer);
        }
        let id = answer.json()["id"].as_str().expect("a JOB has an id").to_owned();
        Ok(self.follow(&id, ""))
    }

    /// Hands in a job that the server takes.
    pub fn submit(&self, job: &str, query: &str) -> Job<'_> {
        self.try_submit(job, query).unwrap_or_else(|answer| panic!("the job was refused: {answer:?}"))
    }

    /// Hands in what the server refuses.
    #[track_caller]
    pub fn refused(&self, job: &str, query: &str) -> Answer {
        match self.try_submit(job, query) {
            Err(answer) => answer,
            Ok(job) => panic!("it was taken as job {}", job.id),
        }
    }

    /// Runs a job to its end.
    pub fn run(&self, job: &str) -> Ended {
        self.submit(job, "").wait()
    }

    /// Reads a job's events; `query` may be `?owner=1`.
    pub fn follow(&self, id: &str, query: &str) -> Job<'_> {
        let mut stream = self.connect();
        let path = format!("/api/v1/jobs/{id}/events{query}");
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.api).expect("the server reads requests");
        let mut stream = BufReader::new(stream);
        let head = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200"), "{path}: {head}");
        let until = Instant::now() + Duration::from_secs(JOB_S_MAX);
        Job { bench: self, id: id.to_owned(), stream, events: Vec::new(), until }
    }

    /// The farm's DUTs.
    pub fn duts(&self) -> Vec<Value> {
        let answer = self.get("/api/v1/duts").json();
        answer["duts"].as_object().expect("DUTs by id").values().cloned().collect()
    }

    /// One DUT, by its full name.
    pub fn dut(&self, full_name: &str) -> Value {
        let duts = self.duts();
        duts.into_iter().find(|dut| dut["full_name"] == full_name).expect("the farm has this DUT")
    }

    /// Waits until a DUT is free with its power off; the error is how it was at the end of that time.
    pub fn wait_until_free(&self, full_name: &str, limit: Duration) -> Result<(), Value> {
        let is_free = |dut: &Value| dut["state"] == "IDLE" && dut["power"] == "off";
        until(limit, || Some(()).filter(|()| is_free(&self.dut(full_name)))).ok_or_else(|| self.dut(full_name))
    }

    /// The most memory that the server's own process ever had: VmHWM of proc(5), which counts what it has only for a moment.
    pub fn memory_bytes_max(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process)).expect("the server runs");
        let most =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB")?.trim().parse::<u64>().ok());
        most.expect("the kernel says it of every process") * 1024
    }

    /// Processes of this farm: the server and its virtual machines.
    pub fn processes(&self) -> Vec<i32> {
        processes_marked(&self.mark)
    }

    /// Ends the farm as `kill -9` does, and checks that it left nothing but its folders.
    pub fn kill(mut self) {
        self.end(Signal::SIGKILL);
    }

    /// Any method; `headers` are whole lines.
    pub fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let (host, length) = (self.api, body.len());
        // HTTP/1.0: the answer ends with the connection, whatever the server thinks of chunks.
        let head = format!("{method} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Length: {length}\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).expect("the server reads requests");
        // A server that refuses early closes before it has read a large body: its answer counts.
        let _ = stream.write_all(body);
        let mut stream = BufReader::new(stream);
        let head = read_head(&mut stream);
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        let mut body = Vec::new();
        stream.read_to_end(&mut body).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        Answer { status: status.unwrap_or_else(|| panic!("{method} {path}: {head:?}")), head, body }
    }

    /// A connection to the API, for whoever writes requests himself.
    pub fn connected(&self) -> TcpStream {
        self.connect()
    }

    fn connect(&self) -> TcpStream {
        let connected = match &self.surroundings.lab {
            None => TcpStream::connect(self.api),
            Some(lab) => lab.inside(|| TcpStream::connect(self.api)),
        };
        let stream = connected.unwrap_or_else(|error| {
            panic!("the server does not serve any more: {error}; it said:\n{}", self.errors());
        });
        let silence = Some(Duration::from_secs(SILENCE_S_MAX));
        stream.set_read_timeout(silence).expect("the time is not zero");
        stream
    }

    /// Sends the signal, waits, and looks for what is left.
    fn end(&mut self, signal: Signal) {
        self.is_over = true;
        let mut namespaces = network_namespaces(self.process);
        // While they are open here, no namespace that another test makes meanwhile gets their numbers.
        let _open = opened(self.process, &namespaces);
        // That of the lab is not its own.
        if let Some(name) = self.surroundings.lab.as_ref().and_then(|lab| lab.name().ok()) {
            namespaces.remove(&name);
        }
        let _ = kill(self.process, signal);
        let status = lock(&self.exits).recv_timeout(Duration::from_secs(STOP_S_MAX)).ok();
        if status.is_none() {
            let _ = kill(self.process, Signal::SIGKILL);
        }
        let mut left = Vec::new();
        match (signal, status) {
            (_, None) => left.push(format!("it did not stop within {STOP_S_MAX} s of {signal}")),
            (Signal::SIGKILL, Some(status)) if status.signal() == Some(9) => {}
            (Signal::SIGTERM, Some(status)) if status.success() => left.extend(self.files_left()),
            (_, Some(status)) => left.push(format!("it ended with {status}")),
        }
        left.extend(self.processes_left(&namespaces));
        if !left.is_empty() && !std::thread::panicking() {
            panic!("the farm left something behind: {}; it said:\n{}", left.join("; "), self.errors());
        }
        if std::thread::panicking() {
            eprintln!("the farm said:\n{}", self.errors());
        }
    }

    fn files_left(&self) -> Vec<String> {
        let folders = ["run", "tmp"].map(|name| self.folder.path().join(name));
        let entries = folders.iter().flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten());
        entries.map(|entry| entry.path().display().to_string()).collect()
    }

    fn processes_left(&self, namespaces: &BTreeSet<PathBuf>) -> Vec<String> {
        let left = || {
            let mut left: Vec<_> = self.processes().iter().map(|process| format!("process {process}")).collect();
            left.extend(namespaces.iter().filter_map(|namespace| {
                holder_of(namespace).map(|process| format!("{} in process {process}", namespace.display()))
            }));
            left
        };
        until(Duration::from_secs(REAP_S_MAX), || Some(()).filter(|()| left().is_empty()))
            .map_or_else(left, |()| vec![])
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !self.is_over {
            self.end(Signal::SIGTERM);
        }
    }
}

impl<T> Shared<T> {
    /// Nothing runs yet.
    pub const fn new() -> Self {
        Shared(Mutex::new(Weak::new()))
    }

    /// The farm, started if none of its users runs.
    pub fn running(&self, start: impl FnOnce() -> T) -> Arc<T> {
        let mut shared = lock(&self.0);
        if let Some(running) = shared.upgrade() {
            return running;
        }
        let running = Arc::new(start());
        *shared = Arc::downgrade(&running);
        running
    }
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Shared::new()
    }
}

impl Gate {
    /// Lets `count` in at once.
    pub const fn new(count: usize) -> Self {
        Gate { free: Mutex::new(count), freed: Condvar::new() }
    }

    /// Waits for a place.
    pub fn pass(&self) -> Passage<'_> {
        let free = lock(&self.free);
        let mut free = self.freed.wait_while(free, |free| *free == 0).unwrap_or_else(PoisonError::into_inner);
        *free -= 1;
        Passage(self)
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        *lock(&self.0.free) += 1;
        self.0.freed.notify_one();
    }
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.head, self.text())
    }
}

impl Job<'_> {
    /// Reads events until one is as wanted; panics when the job ends before.
    pub fn wait_for(&mut self, what: &str, mut is_it: impl FnMut(&Value) -> bool) -> Value {
        loop {
            let event = self.next().unwrap_or_else(|| panic!("the job ended before {what}: {:#?}", self.events));
            if is_it(&event) {
                return event;
            }
        }
    }

    /// Waits for an event of this kind.
    pub fn wait_for_kind(&mut self, kind: &str) -> Value {
        self.wait_for(kind, |event| event["event"] == kind)
    }

    /// Waits until the console has said this.
    pub fn wait_for_console(&mut self, text: &str) {
        let mut stream = self.bench.connect();
        let (path, host) = (format!("/api/v1/jobs/{}/log?follow=1", self.id), self.bench.api);
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n").expect("the server reads requests");
        let mut stream = BufReader::new(stream);
        read_head(&mut stream);
        let mut said = Vec::new();
        while !String::from_utf8_lossy(&said).contains(text) {
            let chunk = stream.fill_buf().unwrap_or_else(|error| {
                panic!("`{text}` did not come: {error}; so far:\n{}", String::from_utf8_lossy(&said))
            });
            assert!(!chunk.is_empty(), "`{text}` did not come:\n{}", String::from_utf8_lossy(&said));
            said.extend_from_slice(chunk);
            let length = chunk.len();
            stream.consume(length);
        }
    }

    /// Types on its console.
    pub fn type_line(&self, line: &str) {
        let path = format!("/api/v1/jobs/{}/console", self.id);
        let answer = self.bench.post(&path, "application/octet-stream", format!("{line}\n").as_bytes());
        assert_eq!(answer.status, 204, "{answer:?}");
    }

    /// Asks the server to end it.
    pub fn cancel(&self) {
        let answer = self.bench.post(&format!("/api/v1/jobs/{}/cancel", self.id), "application/json", b"");
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    /// Its verdict, when it comes. Its DUT is given back by then, switched off.
    pub fn wait(mut self) -> Ended {
        while self.next().is_some() {}
        let last = self.events.last().filter(|event| event["event"] == "ended");
        let verdict = last.unwrap_or_else(|| panic!("no verdict came: {:#?}", self.events))["verdict"].clone();
        let text = |key: &str| verdict[key].as_str().expect("every verdict has it").to_owned();
        let evidence = verdict["evidence"].as_array().expect("every verdict has it");
        let ended = Ended {
            status: text("status"),
            cause: text("cause"),
            summary: text("summary"),
            evidence: evidence.iter().filter_map(|entry| entry.as_str().map(str::to_owned)).collect(),
            console: self.bench.get(&format!("/api/v1/jobs/{}/log", self.id)).text(),
            id: self.id,
            events: self.events,
        };
        // A machine that was made on demand may be gone by now.
        let dut = || ended.dut().and_then(|dut| self.bench.duts().into_iter().find(|it| it["full_name"] == dut));
        if let Some(dut) = dut() {
            assert_ne!(dut["job"], Value::from(ended.id.as_str()), "the DUT was not given back: {dut}");
        }
        // Between the look at who has it and the look at its outlet somebody else may begin: then a later look sees both.
        let is_right = || dut().is_none_or(|dut| dut["state"] != "IDLE" || dut["power"] == "off");
        until(Duration::from_secs(REAP_S_MAX), || Some(()).filter(|()| is_right()))
            .unwrap_or_else(|| panic!("the DUT is free and its power is on: {:?}", dut()));
        ended
    }

    fn next(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            let read = self.stream.read_line(&mut line);
            let length = read.unwrap_or_else(|error| panic!("{error} after {:#?}", self.events));
            if length == 0 {
                return None;
            }
            assert!(Instant::now() < self.until, "the job runs for more than {JOB_S_MAX} s: {:#?}", self.events);
            if line.trim().is_empty() {
                continue;
            }
            let event: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            self.events.push(event.clone());
            return Some(event);
        }
    }
}

impl Ended {
    /// The DUT it ran on; `None` when it never held one.
    pub fn dut(&self) -> Option<String> {
        let leased = self.events.iter().find(|event| event["event"] == "leased")?;
        leased["dut"].as_str().map(str::to_owned)
    }

    /// Checks status and cause, and shows everything when they differ.
    #[track_caller]
    pub fn expect(&self, status: &str, cause: &str) -> &Self {
        assert_eq!((self.status.as_str(), self.cause.as_str()), (status, cause), "{self}");
        self
    }

    /// Checks that the evidence has these words, each in an entry of its own, and what the supervisor wrote (outlets, patterns, timeouts) in
    /// this order. Accesses are wherever they are: when one is over is heard by a task that waits neither for another access nor for the
    /// console.
    #[track_caller]
    pub fn expect_in_order(&self, words: &[&str]) -> &Self {
        let mut accesses: Vec<&String> = self.evidence.iter().filter(|entry| is_access(entry)).collect();
        let mut written = self.evidence.iter().filter(|entry| !is_access(entry));
        for word in words {
            let access = accesses.iter().position(|entry| entry.contains(word)).map(|at| accesses.remove(at));
            let found = access.is_some() || written.any(|entry| entry.contains(word));
            assert!(found, "no `{word}` in its place in the evidence\n{self}");
        }
        self
    }

    /// Checks that the console said these, in this order.
    #[track_caller]
    pub fn expect_said(&self, texts: &[&str]) -> &Self {
        let mut rest = self.console.as_str();
        for text in texts {
            rest = rest.split_once(text).unwrap_or_else(|| panic!("no `{text}` in its place on the console\n{self}")).1;
        }
        self
    }

    /// Checks the summary.
    #[track_caller]
    pub fn expect_summary(&self, words: &str) -> &Self {
        assert!(self.summary.contains(words), "no `{words}` in the summary\n{self}");
        self
    }

    /// Events of this kind.
    pub fn of_kind(&self, kind: &str) -> Vec<&Value> {
        self.events.iter().filter(|event| event["event"] == kind).collect()
    }
}

/// Whether this entry of the evidence tells of a name that the DUT asked the gateway for.
fn is_access(entry: &str) -> bool {
    ["HTTP ", "TFTP ", "NBD ", "S3 ", "proxy "].iter().any(|protocol| entry.starts_with(protocol))
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "job {}: {} ({}): {}", self.id, self.status, self.cause, self.summary)?;
        writeln!(f, "{}", self.evidence.join("\n"))?;
        let notes = self.of_kind("note").into_iter().chain(self.of_kind("access"));
        notes.into_iter().try_for_each(|event| writeln!(f, "{}", event["text"]))?;
        write!(f, "console:\n{}", self.console)
    }
}

/// Looks until the condition gives something or the time is over.
pub fn until<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        match look() {
            Some(found) => return Some(found),
            None if Instant::now() >= end => return None,
            None => std::thread::sleep(LOOK_AGAIN),
        }
    }
}

/// Whether this user may make mount namespaces; the error is why not.
pub fn may_mount() -> Result<(), String> {
    let output = Command::new("unshare").args(own_mounts()).arg("true").output();
    let output = output.map_err(|error| format!("no program `unshare`: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// util-linux makes what is mounted there private: nothing of it reaches the host.
fn own_mounts() -> &'static [&'static str] {
    if nix::unistd::geteuid().is_root() { &["--mount"] } else { &["--mount", "--map-root-user"] }
}

/// The program, once a disk of this size is mounted over the folder.
fn on_a_small_disk(wharf: &str, folder: &Path, bytes: u64) -> Command {
    let script = "mkdir -p \"$1\" && mount -t tmpfs -o \"size=$2\" small-disk \"$1\" && shift 2 && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(own_mounts()).args(["sh", "-c", script, "sh"]).arg(folder).arg(bytes.to_string()).arg(wharf);
    command
}

/// The program, once it sees another file in the place of `/etc/resolv.conf`.
fn with_a_name_server(wharf: &str, lab: &Lab, file: &Path, server: Ipv4Addr) -> Command {
    fs::write(file, format!("nameserver {server}\n")).expect("the folder is ours");
    let script = "mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"";
    let mut command = lab.command("unshare").expect("the namespace is open");
    command.args(own_mounts()).args(["sh", "-c", script, "sh"]).arg(file).arg(wharf);
    command
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn new_mark() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Starts the command so that it dies with this process in whatever way: the kernel sends the signal when the *thread* ends that
/// started it, so that is one that waits for it.
fn spawn(mut command: Command) -> (Pid, Output, mpsc::Receiver<ExitStatus>) {
    // SAFETY: between fork and exec only prctl(2) is called.
    unsafe { command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(Into::into)) };
    let (started, start) = mpsc::channel();
    let (ended, exits) = mpsc::channel();
    std::thread::spawn(move || {
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let process = Pid::from_raw(child.id().cast_signed());
        let output = Output { stdout: child.stdout.take(), stderr: child.stderr.take() };
        let _ = started.send((process, output));
        let _ = ended.send(child.wait().expect("nobody else waits for it"));
    });
    let (process, output) = start.recv().expect("wharf was started");
    (process, output, exits)
}

/// Reads a pipe into memory until it closes, so that its writer never waits.
fn collect(mut pipe: impl Read + Send + 'static, text: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length) = pipe.read(&mut buffer) {
            if length == 0 {
                return;
            }
            lock(&text).push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    });
}

/// `farm NAME with N DUTs: http://ADDRESS`, the line that a server says when it is ready.
fn wait_for_address(stdout: impl Read + Send + 'static) -> Option<SocketAddr> {
    let (ready, address) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let found = line.strip_prefix("farm ").and_then(|line| line.split_once("://"));
            if let Some(address) = found.and_then(|(_, address)| address.trim().parse().ok()) {
                let _ = ready.send(address);
            }
        }
    });
    address.recv_timeout(Duration::from_secs(START_S_MAX)).ok()
}

fn read_head(stream: &mut impl BufRead) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let length = stream.read_line(&mut head).unwrap_or_else(|error| panic!("no answer: {error}"));
        assert!(length > 0, "the server closed in the middle of an answer: {head:?}");
    }
    head
}

/// Numbers of all processes that we may look at.
fn processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn processes_marked(mark: &str) -> Vec<i32> {
    let wanted = format!("{MARK}={mark}");
    let has_mark = |process: &i32| {
        let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
    };
    processes().into_iter().filter(has_mark).collect()
}

/// The network namespaces that a process is in or keeps open, but for ours.
fn network_namespaces(process: Pid) -> BTreeSet<PathBuf> {
    let own = fs::read_link("/proc/self/ns/net").ok();
    namespaces_of(process.as_raw()).into_iter().filter(|namespace| Some(namespace) != own.as_ref()).collect()
}

fn namespaces_of(process: i32) -> BTreeSet<PathBuf> {
    let folder = PathBuf::from(format!("/proc/{process}"));
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let of_threads = entries(&folder.join("task")).map(|thread| thread.join("ns/net"));
    let links = of_threads.chain(entries(&folder.join("fd"))).filter_map(|link| fs::read_link(link).ok());
    links.filter(|target| target.to_string_lossy().starts_with("net:[")).collect()
}

fn opened(process: Pid, namespaces: &BTreeSet<PathBuf>) -> Vec<fs::File> {
    let entries = |name: &str| fs::read_dir(format!("/proc/{process}/{name}")).into_iter().flatten().flatten();
    let of_threads = entries("task").map(|thread| thread.path().join("ns/net"));
    let links = of_threads.chain(entries("fd").map(|entry| entry.path()));
    let is_one = |link: &PathBuf| fs::read_link(link).is_ok_and(|target| namespaces.contains(&target));
    links.filter(is_one).filter_map(|link| fs::File::open(link).ok()).collect()
}

fn holder_of(namespace: &Path) -> Option<i32> {
    let own = std::process::id().cast_signed();
    processes().into_iter().find(|process| *process != own && namespaces_of(*process).contains(namespace))
}

/// The pipes of a process.
struct Output {
    stdout: Option<std::process::ChildStdout>,
    stderr: Option<std::process::ChildStderr>,
}
