//! The part of iPXE's script language that boot scripts use, as a machine without sockets. ◆
//!
//! ```text
//!   step(Begin) ─► Action ──the ring does it──► step(answer) ─► Action ─► … ─► Boot | Reboot | PowerOff | Finished
//! ```
//! | rule | as in iPXE's `core/exec.c` and `image/script.c` |
//! |---|---|
//! | words | split at white space; no quotes; each word's `${…}` is expanded afterwards and stays one word |
//! | `&&` `\|\|` `;` | only as words of their own |
//! | `#` | a word that begins with it ends the line |
//! | `\` | at the end of a line joins the next one |
//! | a failed line | ends its script, and fails the `chain` that started it |
//! | unknown command | prints `<word>: command not found`, and fails |

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::time::Duration;

use super::uri::resolve;

/// 10 000 commands: a menu that waits in steps of a second needs hours for it; a script that loops without waiting needs
/// milliseconds, and would occupy a core for ever.
const STEPS_MAX: u32 = 10_000;
/// 16 scripts that chain each other: real ones need three (bootfile, farm script, user's script).
const DEPTH_MAX: usize = 16;
/// 100 expansions in one word, 64 KiB of it: more only comes from settings that expand to themselves.
const EXPANSIONS_MAX: u32 = 100;
const WORD_BYTES_MAX: usize = 64 * 1024;

/// What the ring does next.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Writes this on the console.
    Print(String),
    /// Fetches a file whole; the answer is [`Answer::Fetched`] or [`Answer::Failed`].
    Fetch {
        /// Its absolute address.
        uri: String,
        /// What it is for.
        purpose: Purpose,
    },
    /// Configures the network again; the answer is [`Answer::Done`] or [`Answer::Failed`].
    Dhcp,
    /// Waits.
    Sleep(Duration),
    /// Starts the kernel.
    Boot(Boot),
    /// Resets the machine.
    Reboot,
    /// Switches itself off.
    PowerOff,
    /// The script ended without booting anything; an error if it failed.
    Finished(Result<(), String>),
}

/// Why a script fetches a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// `kernel`.
    Kernel,
    /// `initrd`, `imgfetch`, `module`.
    Initrd,
    /// `chain`, `boot`, `imgexec`.
    Chain,
}

/// What came of the last action.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// The first step, after a print, and after a sleep or a DHCP that went well.
    Done,
    /// The file arrived whole.
    Fetched {
        /// Its size.
        bytes: u64,
        /// Its text if it is an iPXE script.
        script: Option<String>,
    },
    /// It did not work, in words for the console.
    Failed(String),
}

/// What is started at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The kernel.
    pub kernel: Image,
    /// Everything else that was fetched, in order.
    pub initrds: Vec<Image>,
    /// The kernel's arguments.
    pub command_line: String,
}

/// A file in iPXE's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its name: `--name`, or the last part of the address.
    pub name: String,
    /// Where it came from.
    pub uri: String,
    /// Its size.
    pub bytes: u64,
    arguments: String,
    script: Option<String>,
}

/// The value of a setting, and how it is written when no type is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(String),
    /// Bytes, written `52:54:00`.
    Hex(Vec<u8>),
    /// An IPv4 address.
    Address([u8; 4]),
    /// A UUID in the order in which it is written.
    Uuid([u8; 16]),
}

/// One run of scripts. Feed it the answer of the last action, do what it says.
#[derive(Debug)]
pub struct Interpreter {
    settings: BTreeMap<String, Value>,
    scripts: Vec<Running>,
    images: Vec<Image>,
    selected: Option<String>,
    waiting: Option<Waiting>,
    steps: u32,
}

#[derive(Debug)]
struct Running {
    uri: String,
    lines: Vec<Line>,
    next_line: usize,
    pieces: VecDeque<Piece>,
    status: Status,
}

#[derive(Debug)]
struct Line {
    label: Option<String>,
    command: String,
}

/// One command of a line, with how it hangs on the one before.
#[derive(Debug)]
struct Piece {
    join: Join,
    words: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Join {
    Always,
    OnSuccess,
    OnFailure,
}

type Status = Result<(), String>;

#[derive(Debug)]
enum Waiting {
    Image { name: String, uri: String, arguments: String, purpose: Purpose },
    Chain { name: String, uri: String, arguments: String, stays: Stays },
    Plain,
}

/// Whether the chaining script goes on after the chained one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stays {
    Yes,
    Replaced,
}

/// What running one command gave.
enum Outcome {
    Status(Status),
    Act(Action),
    Jumped,
}

impl Interpreter {
    /// The script `text` that was fetched from `uri`.
    pub fn new(settings: BTreeMap<String, Value>, uri: &str, text: &str) -> Self {
        let mut interpreter =
            Interpreter { settings, scripts: Vec::new(), images: Vec::new(), selected: None, waiting: None, steps: 0 };
        interpreter.enter(uri, text);
        interpreter
    }

    /// Whether `text` is a script (the magic of `script_probe`).
    pub fn is_script(text: &[u8]) -> bool {
        (text.starts_with(b"#!ipxe") || text.starts_with(b"#!gpxe")) && text.get(6).is_some_and(u8::is_ascii_whitespace)
    }

    /// Gives settings a new value, after a DHCP exchange.
    pub fn configure(&mut self, settings: impl IntoIterator<Item = (String, Value)>) {
        self.settings.extend(settings);
    }

    /// Goes on with the answer to the last action.
    pub fn step(&mut self, answer: Answer) -> Action {
        if let Some(waiting) = self.waiting.take() {
            let status = self.arrived(waiting, answer);
            match status {
                Outcome::Status(status) => self.report(status),
                Outcome::Act(action) => return action,
                Outcome::Jumped => {}
            }
        }
        loop {
            let Some(running) = self.scripts.last_mut() else {
                return Action::Finished(Ok(()));
            };
            if let Some(piece) = running.pieces.pop_front() {
                if !piece.join.follows(&running.status) {
                    continue;
                }
                self.steps += 1;
                if self.steps > STEPS_MAX {
                    return Action::Finished(Err(format!("the script ran {STEPS_MAX} commands without booting")));
                }
                let words: Vec<String> = piece.words.iter().map(|word| self.expand(word)).collect();
                match self.run(&words) {
                    Outcome::Status(status) => self.report(status),
                    Outcome::Act(action) => return action,
                    Outcome::Jumped => {}
                }
            } else if running.status.is_ok() && running.next_line < running.lines.len() {
                running.pieces = split(&running.lines[running.next_line].command);
                running.next_line += 1;
            } else if let Some(end) = self.leave() {
                return Action::Finished(end);
            }
        }
    }

    fn enter(&mut self, uri: &str, text: &str) {
        let lines = lines(text);
        self.settings.insert("cwuri".into(), Value::Text(uri.to_owned()));
        self.scripts.push(Running {
            uri: uri.to_owned(),
            lines,
            next_line: 0,
            pieces: VecDeque::new(),
            status: Ok(()),
        });
    }

    /// Ends the innermost script; what it ended with becomes the status of the command that chained it.
    fn leave(&mut self) -> Option<Status> {
        let ended = self.scripts.pop()?;
        match self.scripts.last_mut() {
            Some(parent) => parent.status = ended.status,
            None => return Some(ended.status),
        }
        None
    }

    fn report(&mut self, status: Status) {
        if let Some(running) = self.scripts.last_mut() {
            running.status = status;
        }
    }

    fn arrived(&mut self, waiting: Waiting, answer: Answer) -> Outcome {
        let (bytes, script) = match answer {
            Answer::Failed(why) => return Outcome::Status(Err(why)),
            Answer::Done => return Outcome::Status(Ok(())),
            Answer::Fetched { bytes, script } => (bytes, script),
        };
        match waiting {
            Waiting::Plain => Outcome::Status(Ok(())),
            Waiting::Image { name, uri, arguments, purpose } => {
                if purpose == Purpose::Kernel {
                    self.selected = Some(name.clone());
                }
                self.register(Image { name, uri, bytes, arguments, script });
                Outcome::Status(Ok(()))
            }
            Waiting::Chain { name, uri, arguments, stays } => {
                self.execute(Image { name, uri, bytes, arguments, script }, stays)
            }
        }
    }

    fn register(&mut self, image: Image) {
        self.images.retain(|other| other.name != image.name);
        self.images.push(image);
    }

    fn execute(&mut self, image: Image, stays: Stays) -> Outcome {
        let Some(text) = &image.script else {
            let others = self.images.iter().filter(|other| other.name != image.name).cloned().collect();
            let command_line = image.arguments.clone();
            return Outcome::Act(Action::Boot(Boot { kernel: image, initrds: others, command_line }));
        };
        if stays == Stays::Replaced {
            self.scripts.pop();
        }
        if self.scripts.len() >= DEPTH_MAX {
            return Outcome::Status(Err(format!("{DEPTH_MAX} scripts chain each other")));
        }
        let text = text.clone();
        self.enter(&image.uri, &text);
        Outcome::Jumped
    }

    fn run(&mut self, words: &[String]) -> Outcome {
        let Some((command, arguments)) = words.split_first() else {
            return Outcome::Status(Ok(()));
        };
        match command.as_str() {
            "echo" => self.echo(arguments),
            "set" => self.set(arguments),
            "clear" => self.clear(arguments),
            "inc" => self.inc(arguments),
            "isset" => isset(arguments),
            "iseq" => iseq(arguments),
            "kernel" | "imgselect" | "imgload" => self.fetch(arguments, Purpose::Kernel),
            "initrd" | "imgfetch" | "module" => self.fetch(arguments, Purpose::Initrd),
            "imgargs" => self.imgargs(arguments),
            "imgfree" => self.imgfree(arguments),
            "imgstat" => self.imgstat(),
            "chain" | "boot" | "imgexec" => self.chain(arguments),
            "dhcp" | "ifconf" | "autoconf" => self.wait_for(Action::Dhcp),
            // The one interface is always open, and nothing is left to write when `sync` is asked for.
            "ifopen" | "ifclose" | "iflinkwait" | "sync" => Outcome::Status(Ok(())),
            "sleep" => self.sleep(arguments),
            "goto" => self.goto(arguments),
            "exit" => self.exit(arguments),
            "reboot" => Outcome::Act(Action::Reboot),
            "poweroff" => Outcome::Act(Action::PowerOff),
            _ => {
                self.report(Err(format!("{command}: command not found")));
                Outcome::Act(Action::Print(format!("{command}: command not found\n")))
            }
        }
    }

    fn echo(&mut self, arguments: &[String]) -> Outcome {
        self.report(Ok(()));
        Outcome::Act(Action::Print(match arguments.split_first() {
            Some((option, rest)) if option == "-n" => rest.join(" "),
            _ => format!("{}\n", arguments.join(" ")),
        }))
    }

    fn wait_for(&mut self, action: Action) -> Outcome {
        self.waiting = Some(Waiting::Plain);
        Outcome::Act(action)
    }

    fn set(&mut self, arguments: &[String]) -> Outcome {
        let Some((name, words)) = arguments.split_first() else { return usage("set", "<setting> [value...]") };
        let name = plain_name(name).to_owned();
        match words {
            [] => drop(self.settings.remove(&name)),
            words => drop(self.settings.insert(name, Value::Text(words.join(" ")))),
        }
        Outcome::Status(Ok(()))
    }

    fn clear(&mut self, arguments: &[String]) -> Outcome {
        let [name] = arguments else { return usage("clear", "<setting>") };
        self.settings.remove(plain_name(name));
        Outcome::Status(Ok(()))
    }

    fn inc(&mut self, arguments: &[String]) -> Outcome {
        let Some(name) = arguments.first() else { return usage("inc", "<setting> [increment]") };
        let name = plain_name(name).to_owned();
        let number = |text: Option<String>| text.and_then(|text| text.parse::<i64>().ok());
        let current = number(self.settings.get(&name).map(|value| value.written(None))).unwrap_or(0);
        let by = number(arguments.get(1).cloned()).unwrap_or(1);
        self.settings.insert(name, Value::Text(current.wrapping_add(by).to_string()));
        Outcome::Status(Ok(()))
    }

    fn fetch(&mut self, arguments: &[String], purpose: Purpose) -> Outcome {
        let (options, rest) = options(arguments, &["name", "timeout"]);
        let Some((address, arguments)) = rest.split_first() else {
            return usage("imgfetch", "[--name <name>] <uri> [<arguments>...]");
        };
        let uri = self.resolved(address);
        let name = options.get("name").cloned().unwrap_or_else(|| last_part(&uri));
        self.waiting = Some(Waiting::Image { name, uri: uri.clone(), arguments: arguments.join(" "), purpose });
        Outcome::Act(Action::Fetch { uri, purpose })
    }

    fn chain(&mut self, arguments: &[String]) -> Outcome {
        let (options, rest) = options(arguments, &["name", "timeout"]);
        let stays = if options.contains_key("replace") { Stays::Replaced } else { Stays::Yes };
        let Some((address, arguments)) = rest.split_first() else {
            let selected = self.selected.clone().or_else(|| self.images.last().map(|image| image.name.clone()));
            return match selected.and_then(|name| self.image(&name)) {
                Some(image) => self.execute(image, stays),
                None => Outcome::Status(Err("No such file or directory".into())),
            };
        };
        if let Some(mut image) = self.image(address) {
            if !arguments.is_empty() {
                image.arguments = arguments.join(" ");
            }
            return self.execute(image, stays);
        }
        let uri = self.resolved(address);
        let name = options.get("name").cloned().unwrap_or_else(|| last_part(&uri));
        self.waiting = Some(Waiting::Chain { name, uri: uri.clone(), arguments: arguments.join(" "), stays });
        Outcome::Act(Action::Fetch { uri, purpose: Purpose::Chain })
    }

    fn imgargs(&mut self, arguments: &[String]) -> Outcome {
        let Some((name, words)) = arguments.split_first() else { return usage("imgargs", "<image> [<arguments>...]") };
        match self.images.iter_mut().find(|image| image.name == *name) {
            Some(image) => {
                image.arguments = words.join(" ");
                Outcome::Status(Ok(()))
            }
            None => Outcome::Status(Err(format!("{name}: No such file or directory"))),
        }
    }

    fn imgfree(&mut self, arguments: &[String]) -> Outcome {
        self.images.retain(|image| arguments.first().is_some_and(|name| *name != image.name));
        if !self.selected.as_ref().is_some_and(|name| self.images.iter().any(|image| image.name == *name)) {
            self.selected = None;
        }
        Outcome::Status(Ok(()))
    }

    fn imgstat(&mut self) -> Outcome {
        let mut text = String::new();
        for image in &self.images {
            let selected = if self.selected.as_ref() == Some(&image.name) { " [SELECTED]" } else { "" };
            let _ = writeln!(text, "{} : {} bytes{selected}", image.name, image.bytes);
        }
        self.report(Ok(()));
        Outcome::Act(Action::Print(text))
    }

    fn sleep(&mut self, arguments: &[String]) -> Outcome {
        match arguments {
            [seconds] => match seconds.parse() {
                Ok(seconds) => self.wait_for(Action::Sleep(Duration::from_secs(seconds))),
                Err(_) => usage("sleep", "<seconds>"),
            },
            _ => usage("sleep", "<seconds>"),
        }
    }

    fn goto(&mut self, arguments: &[String]) -> Outcome {
        let ([wanted], Some(running)) = (arguments, self.scripts.last_mut()) else { return usage("goto", "<label>") };
        let found = running.lines.iter().position(|line| line.label.as_ref() == Some(wanted));
        let Some(at) = found else {
            return Outcome::Status(Err(format!("no label :{wanted}")));
        };
        running.next_line = at;
        running.pieces.clear();
        running.status = Ok(());
        Outcome::Jumped
    }

    fn exit(&mut self, arguments: &[String]) -> Outcome {
        let code = arguments.first().map_or("0", String::as_str);
        if let Some(running) = self.scripts.last_mut() {
            running.pieces.clear();
            running.next_line = running.lines.len();
            running.status = if code == "0" { Ok(()) } else { Err(format!("exit status {code}")) };
        }
        Outcome::Jumped
    }

    fn image(&self, name: &str) -> Option<Image> {
        self.images.iter().find(|image| image.name == name).cloned()
    }

    fn resolved(&self, address: &str) -> String {
        resolve(self.scripts.last().map_or("", |running| &running.uri), address)
    }

    /// Replaces every `${…}`, the innermost first.
    fn expand(&self, word: &str) -> String {
        let mut text = word.to_owned();
        for _ in 0..EXPANSIONS_MAX {
            let Some(start) = text.rfind("${") else { break };
            let Some(length) = text[start..].find('}') else { break };
            let value = self.setting(&text[start + 2..start + length]);
            text.replace_range(start..=start + length, &value);
            if text.len() > WORD_BYTES_MAX {
                break;
            }
        }
        text
    }

    fn setting(&self, name: &str) -> String {
        let kind = name.split_once(':').map(|(_, kind)| kind);
        self.settings.get(plain_name(name)).map(|value| value.written(kind)).unwrap_or_default()
    }
}

impl Join {
    fn follows(self, status: &Status) -> bool {
        match self {
            Join::Always => true,
            Join::OnSuccess => status.is_ok(),
            Join::OnFailure => status.is_err(),
        }
    }
}

impl Value {
    /// As iPXE writes it, in the type that the script asks for (`hex`, `hexhyp`, `hexraw`, `uristring`, …) or in its own.
    fn written(&self, kind: Option<&str>) -> String {
        match (kind, self) {
            (Some("hex"), _) => hex(&self.bytes(), ":"),
            (Some("hexhyp"), _) => hex(&self.bytes(), "-"),
            (Some("hexraw"), _) => hex(&self.bytes(), ""),
            (Some("uristring"), _) => percent_encoded(&self.written(None)),
            (_, Value::Text(text)) => text.clone(),
            (_, Value::Hex(bytes)) => hex(bytes, ":"),
            (_, Value::Address([a, b, c, d])) => format!("{a}.{b}.{c}.{d}"),
            (_, Value::Uuid(bytes)) => {
                let digits = hex(bytes, "");
                let part = |from: usize, to: usize| &digits[from..to];
                format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
            }
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match self {
            Value::Text(text) => text.as_bytes().to_vec(),
            Value::Hex(bytes) => bytes.clone(),
            Value::Address(bytes) => bytes.to_vec(),
            Value::Uuid(bytes) => bytes.to_vec(),
        }
    }
}

/// A setting's name without the block it is looked up in (one interface only: `net0/`, `netX/`, `builtin/`) and without its type.
fn plain_name(name: &str) -> &str {
    let name = name.split_once(':').map_or(name, |(name, _)| name);
    name.rsplit_once('/').map_or(name, |(_, name)| name)
}

fn hex(bytes: &[u8], between: &str) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(between)
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            byte => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
        encoded
    })
}

fn last_part(uri: &str) -> String {
    let path = uri.split(['?', '#']).next().unwrap_or_default();
    path.rsplit('/').next().unwrap_or_default().to_owned()
}

fn isset(arguments: &[String]) -> Outcome {
    match arguments {
        [value] if value.is_empty() => Outcome::Status(Err("isset: no".into())),
        [_] => Outcome::Status(Ok(())),
        _ => usage("isset", "<value>"),
    }
}

fn iseq(arguments: &[String]) -> Outcome {
    match arguments {
        [left, right] if left == right => Outcome::Status(Ok(())),
        [_, _] => Outcome::Status(Err("iseq: no".into())),
        _ => usage("iseq", "<value1> <value2>"),
    }
}

fn usage(command: &str, arguments: &str) -> Outcome {
    Outcome::Status(Err(format!("Usage: {command} {arguments}")))
}

/// Takes `--name x`, `--name=x`, `-n x` and flags off the front. `with_value` lists the long options that take a value.
fn options<'a>(arguments: &'a [String], with_value: &[&str]) -> (BTreeMap<String, String>, &'a [String]) {
    let mut found = BTreeMap::new();
    let mut rest = arguments;
    while let Some((word, after)) = rest.split_first() {
        let Some(option) = word.strip_prefix('-').filter(|option| !option.is_empty()) else { break };
        rest = after;
        let (name, value) = match option.strip_prefix('-').map(|long| long.split_once('=').unwrap_or((long, ""))) {
            Some(("", _)) => break,
            Some((name, value)) => (name, value),
            None => (long_name(option), ""),
        };
        let mut value = value.to_owned();
        if value.is_empty() && with_value.contains(&name) {
            let Some((given, after)) = rest.split_first() else { break };
            (value, rest) = (given.clone(), after);
        }
        found.insert(name.to_owned(), value);
    }
    (found, rest)
}

fn long_name(short: &str) -> &str {
    match short {
        "n" => "name",
        "t" => "timeout",
        "a" => "autofree",
        "r" => "replace",
        other => other,
    }
}

/// A script's lines: continued ones joined, labels taken off.
fn lines(text: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut joined = String::new();
    for fragment in text.split('\n') {
        joined.push_str(fragment.strip_suffix('\r').unwrap_or(fragment));
        if joined.ends_with('\\') {
            joined.pop();
            continue;
        }
        let line = std::mem::take(&mut joined);
        let trimmed = line.trim_start();
        lines.push(match trimmed.strip_prefix(':') {
            Some(rest) => {
                let (label, command) = rest.split_at(rest.find(char::is_whitespace).unwrap_or(rest.len()));
                Line { label: Some(label.to_owned()), command: command.to_owned() }
            }
            None => Line { label: None, command: trimmed.to_owned() },
        });
    }
    lines
}

fn split(command: &str) -> VecDeque<Piece> {
    let mut pieces = VecDeque::from([Piece { join: Join::Always, words: Vec::new() }]);
    for word in command.split_ascii_whitespace() {
        let join = match word {
            "&&" => Join::OnSuccess,
            "||" => Join::OnFailure,
            ";" => Join::Always,
            comment if comment.starts_with('#') => break,
            word => {
                if let Some(piece) = pieces.back_mut() {
                    piece.words.push(word.to_owned());
                }
                continue;
            }
        };
        pieces.push_back(Piece { join, words: Vec::new() });
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "http://10.0.0.1/boot/boot.ipxe";

    fn settings() -> BTreeMap<String, Value> {
        BTreeMap::from([
            ("mac".to_owned(), Value::Hex(vec![0x52, 0x54, 0, 0x12, 0x34, 0x56])),
            ("ip".to_owned(), Value::Address([10, 0, 0, 9])),
            ("uuid".to_owned(), Value::Uuid(*b"\x01\x23\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67\x89\xab\xcd\xef")),
            ("platform".to_owned(), Value::Text("pcbios".into())),
            ("buildarch".to_owned(), Value::Text("i386".into())),
        ])
    }

    /// Runs a script against a server that has every file of `files` (a script where its text begins so), to its last action.
    fn play(script: &str, files: &[(&str, &str)]) -> (String, Vec<String>, Action) {
        let mut interpreter = Interpreter::new(settings(), BASE, script);
        let (mut printed, mut fetched) = (String::new(), Vec::new());
        let mut answer = Answer::Done;
        loop {
            answer = match interpreter.step(answer) {
                Action::Print(text) => {
                    printed.push_str(&text);
                    Answer::Done
                }
                Action::Fetch { uri, .. } => {
                    fetched.push(uri.clone());
                    match files.iter().find(|(name, _)| *name == uri) {
                        Some((_, text)) => Answer::Fetched {
                            bytes: text.len() as u64,
                            script: Interpreter::is_script(text.as_bytes()).then(|| (*text).to_owned()),
                        },
                        None => Answer::Failed("No such file or directory".into()),
                    }
                }
                Action::Sleep(time) => {
                    printed.push_str(&format!("<{time:?}>"));
                    Answer::Done
                }
                Action::Dhcp => {
                    interpreter.configure([("ip".to_owned(), Value::Address([10, 0, 0, 10]))]);
                    Answer::Done
                }
                last => return (printed, fetched, last),
            };
        }
    }

    fn printed(script: &str) -> String {
        play(script, &[]).0
    }

    #[test]
    fn settings_expand_in_the_type_that_the_script_asks_for() {
        for (word, text) in [
            ("${net0/mac}", "52:54:00:12:34:56\n"),
            ("${mac:hexhyp}", "52-54-00-12-34-56\n"),
            ("${net0/mac:hexraw}", "525400123456\n"),
            ("${ip}", "10.0.0.9\n"),
            ("${ip:hex}", "0a:00:00:09\n"),
            ("${uuid}", "01234567-89ab-cdef-0123-456789abcdef\n"),
            ("${platform}-${buildarch}", "pcbios-i386\n"),
            ("[${unknown}]", "[]\n"),
            ("${open", "${open\n"),
            ("a   b", "a b\n"),
            ("-n x", "x"),
        ] {
            assert_eq!(printed(&format!("#!ipxe\necho {word}")), text, "{word}");
        }
    }

    #[test]
    fn a_users_setting_may_hold_spaces_signs_and_the_name_of_another() {
        let signs = "#!ipxe\nset both &${empty}&\nset line a ${both} b\nset line ${line} && echo ${line}";
        assert_eq!(printed(signs), "a && b\n", "what a setting expands to is no sign of the language");
        assert_eq!(
            printed("#!ipxe\nset x:string a b\nset name x\necho [${${name}}] [${x:uristring}]"),
            "[a b] [a%20b]\n"
        );
        assert_eq!(
            printed("#!ipxe\nset x a\nclear x\nisset ${x} || echo gone\nset n 4\ninc n\ninc n 3\necho ${n}"),
            "gone\n8\n"
        );
    }

    #[test]
    fn and_or_and_semicolon_join_commands_when_they_stand_alone() {
        for (line, text) in [
            ("iseq a a && echo yes || echo no", "yes\n"),
            ("iseq a b && echo yes || echo no", "no\n"),
            ("iseq a b || echo one && echo two", "one\ntwo\n"),
            ("iseq a b ; echo always", "always\n"),
            ("echo a;b &&c", "a;b &&c\n"),
            ("echo a # and not this && echo b", "a\n"),
            ("isset ${mac} && echo set", "set\n"),
        ] {
            assert_eq!(printed(&format!("#!ipxe\n{line}")), text, "{line}");
        }
    }

    #[test]
    fn a_failed_line_ends_the_script_and_an_unknown_command_says_so() {
        let (text, _, end) = play("#!ipxe\necho a\nfrobnicate x\necho b", &[]);
        assert_eq!(text, "a\nfrobnicate: command not found\n");
        assert_eq!(end, Action::Finished(Err("frobnicate: command not found".into())));
        let (text, _, end) = play("#!ipxe\nfrobnicate || echo goes on\necho b", &[]);
        assert_eq!(text, "frobnicate: command not found\ngoes on\nb\n");
        assert_eq!(end, Action::Finished(Ok(())));
    }

    #[test]
    fn labels_comments_carriage_returns_and_continuations_are_understood() {
        let script = "#!ipxe\r\n# comment\r\ngoto there ; echo skipped\r\necho not\r\n:there echo one \\\r\n two\r\n  exit 0\r\necho never\r\n";
        assert_eq!(play(script, &[]), ("one two\n".into(), vec![], Action::Finished(Ok(()))));
        let (_, _, end) = play("#!ipxe\ngoto nowhere", &[]);
        assert_eq!(end, Action::Finished(Err("no label :nowhere".into())));
    }

    #[test]
    fn kernel_and_initrds_are_fetched_from_beside_the_script_and_booted_with_the_arguments() {
        let script = "#!ipxe\nset args console=ttyS0 BOOTIF=01-${net0/mac:hexhyp}\nkernel --name linux /k initrd=i ${args}\n\
                      initrd --name=i initramfs\nimgfetch -n j http://10.0.0.2/j\nimgstat\nboot";
        let files =
            [("http://10.0.0.1/k", "123"), ("http://10.0.0.1/boot/initramfs", "4567"), ("http://10.0.0.2/j", "")];
        let (text, fetched, end) = play(script, &files);
        assert_eq!(fetched, ["http://10.0.0.1/k", "http://10.0.0.1/boot/initramfs", "http://10.0.0.2/j"]);
        assert_eq!(text, "linux : 3 bytes [SELECTED]\ni : 4 bytes\nj : 0 bytes\n");
        let Action::Boot(boot) = end else { panic!("{end:?}") };
        assert_eq!(boot.command_line, "initrd=i console=ttyS0 BOOTIF=01-52-54-00-12-34-56");
        assert_eq!((boot.kernel.name.as_str(), boot.kernel.bytes), ("linux", 3));
        let names: Vec<&str> = boot.initrds.iter().map(|image| image.name.as_str()).collect();
        assert_eq!(names, ["i", "j"]);
    }

    #[test]
    fn imgargs_and_the_arguments_of_boot_replace_those_of_kernel() {
        let files = [("http://10.0.0.1/boot/k", "1")];
        let line = |script: &str| match play(script, &files).2 {
            Action::Boot(boot) => boot.command_line,
            other => panic!("{other:?}"),
        };
        assert_eq!(line("#!ipxe\nkernel k a b\nimgargs k c\nboot"), "c");
        assert_eq!(line("#!ipxe\nkernel k a b\nboot k d e"), "d e");
        assert_eq!(line("#!ipxe\nchain k f"), "f");
    }

    #[test]
    fn a_missing_file_fails_its_line_and_can_be_caught() {
        let (_, _, end) = play("#!ipxe\nkernel k\nboot", &[]);
        assert_eq!(end, Action::Finished(Err("No such file or directory".into())));
        let (text, _, end) = play("#!ipxe\nkernel k || goto failed\nboot\n:failed\necho sorry\nreboot", &[]);
        assert_eq!((text.as_str(), end), ("sorry\n", Action::Reboot));
    }

    #[test]
    fn a_chained_script_runs_inside_and_returns_unless_it_replaces() {
        let files = [
            ("http://10.0.0.1/sub/inner", "#!ipxe\necho inner ${cwuri}\nchain beside\nexit 1"),
            ("http://10.0.0.1/sub/beside", "#!ipxe\necho beside"),
        ];
        let (text, fetched, end) = play("#!ipxe\nchain /sub/inner || echo failed inside\npoweroff", &files);
        assert_eq!(text, "inner http://10.0.0.1/sub/inner\nbeside\nfailed inside\n");
        assert_eq!(fetched, ["http://10.0.0.1/sub/inner", "http://10.0.0.1/sub/beside"]);
        assert_eq!(end, Action::PowerOff);
        let (text, _, end) = play("#!ipxe\nchain --replace /sub/beside\necho never", &files);
        assert_eq!((text.as_str(), end), ("beside\n", Action::Finished(Ok(()))));
    }

    #[test]
    fn dhcp_gives_new_settings_and_sleep_waits() {
        assert_eq!(printed("#!ipxe\ndhcp net0 && sleep 2\necho ${ip}"), "<2s>10.0.0.10\n");
    }

    #[test]
    fn loops_without_an_end_are_ended() {
        let (_, _, end) = play("#!ipxe\n:again\ngoto again", &[]);
        assert_eq!(end, Action::Finished(Err("the script ran 10000 commands without booting".into())));
        let files = [(BASE, "#!ipxe\nchain boot.ipxe")];
        let (_, fetched, end) = play("#!ipxe\nchain boot.ipxe", &files);
        assert_eq!((fetched.len(), end), (16, Action::Finished(Err("16 scripts chain each other".into()))));
        let self_reference = "#!ipxe\nset d $\nset x ${d}{x}${d}{x}\necho ${x}";
        assert!(printed(self_reference).len() <= 2 * WORD_BYTES_MAX);
    }

    #[test]
    fn any_text_ends_without_a_panic() {
        use rand::{RngExt, SeedableRng};
        let mut random = rand::rngs::SmallRng::seed_from_u64(7);
        let words = [
            "echo",
            "${",
            "}",
            "${x}",
            "set",
            "x",
            "&&",
            "||",
            ";",
            "goto",
            ":l",
            "\n",
            "\\\n",
            "#",
            "--name",
            "kernel",
            "chain",
            "-",
            "--",
            "exit",
            "isset",
            "${mac:",
            "é",
            "imgfree",
            "boot",
            "imgargs",
            "inc",
            "sleep",
            "99999999999999999999",
        ];
        for _ in 0..5_000 {
            let length = random.random_range(1..30);
            let text: Vec<&str> = (0..length).map(|_| words[random.random_range(0..words.len())]).collect();
            let separator = if random.random_range(0..2) == 0 { " " } else { "" };
            play(&format!("#!ipxe\n{}", text.join(separator)), &[]);
        }
    }
}
