//! `wharf console`: what a console says and said, and typing on it for whoever holds its machine.
//!
//! ```text
//!  a lease's id                its own log, from its beginning on; on a terminal every key goes to the DUT, but Ctrl-], which leaves
//!  a DUT's, a console's name   the console's log; typed on by whoever holds the DUT, or by --lease, else looked at only
//! ```
//! Ctrl-] because nothing on the other side wants it: Ctrl-A is the line editor's, `screen`'s and QEMU's, and `~.` is ssh's, over which this
//! is used. It is telnet's and virsh's escape, too.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, StatusCode};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::mpsc;

use super::client::{Lines, Refused, Server, in_query};
pub(super) use super::terminal::Keys;
use super::terminal::{Endings, Raw, read_keys};
use super::view::say;
use crate::api::wire::consoles::{ConsoleWire, PieceWire};
use crate::api::wire::leases::{LeaseStateWire, LeaseWire, LeasesWire};

/// Leaves, as telnet's: Ctrl-].
const ESCAPE: u8 = 0x1d;
/// What is shown of a console before what it says now: some screens.
const BEFORE_NOW: &str = "-4096";

/// Arguments of `wharf console`.
#[derive(clap::Args)]
pub struct Arguments {
    /// A DUT's id or full name, a console's name, or a lease's id
    #[arg(value_name = "DUT|CONSOLE|LEASE")]
    target: String,
    /// Replay from there: an offset, `-N` bytes before the end, a time such as `2026-11-21T12:00:00Z`, or so long ago such as `10m`
    #[arg(long, value_name = "OFFSET|TIME", allow_hyphen_values = true)]
    since: Option<String>,
    /// Go on with what it says, as it does without --since
    #[arg(long)]
    follow: bool,
    /// Say before each line when it came
    #[arg(long)]
    timestamps: bool,
    /// Type by this lease, which holds the DUT
    #[arg(long, value_name = "ID")]
    lease: Option<String>,
}

/// How looking at a console ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// The server ended it: the lease or the job is over.
    Over,
    /// By the escape key.
    Escaped,
}

/// Shows, and types.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let server = Server::find(server)?;
    match lease_called(&server, &arguments.target).await? {
        Some(lease) => of_lease(&server, &lease, &arguments).await,
        None => of_console(&server, &arguments).await,
    }
}

/// A lease's own log.
async fn of_lease(server: &Server, lease: &LeaseWire, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let since = arguments.since.as_deref().unwrap_or("0").parse::<u64>();
    let since = since.context("of a lease, --since is an offset in its own log; name its DUT for times")?;
    let keys = if lease.state == LeaseStateWire::Active { Keys::All } else { Keys::None };
    let typing = (keys == Keys::All).then(|| format!("/api/v1/leases/{}/console", in_query(&lease.id)));
    if typing.is_some() && std::io::stdin().is_terminal() {
        say("Ctrl-] leaves; the lease stays");
    }
    let path = match lease.id.strip_prefix("job-").filter(|_| lease.kept_by == "job") {
        Some(job) => format!("/api/v1/jobs/{}/log", in_query(job)),
        None => format!("/api/v1/leases/{}/console", in_query(&lease.id)),
    };
    show(server, &path, &Cell::new(since), typing.as_deref(), keys).await?;
    Ok(ExitCode::SUCCESS)
}

/// A console's log, whoever holds its machine.
async fn of_console(server: &Server, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let target = in_query(&arguments.target);
    let console = match server.get::<ConsoleWire>(&format!("/api/v1/consoles/{target}")).await {
        Err(error) if is_unknown(&error) => {
            let name = &arguments.target;
            bail!(
                "no console, no DUT and no lease `{name}`; `wharf consoles`, `wharf duts` and `wharf leases` list them"
            )
        }
        answer => answer?,
    };
    let follows = arguments.follow || arguments.since.is_none();
    let typing = if follows { typing_on(server, &console, arguments.lease.as_deref()).await? } else { None };
    if let Some(reason) = console.reason.as_ref().filter(|_| follows) {
        say(format_args!("{} is away: {reason}", console.name));
    }
    let since = in_query(arguments.since.as_deref().unwrap_or(BEFORE_NOW));
    let name = in_query(&console.name);
    let path = format!("/api/v1/consoles/{name}/events?follow={}&since={since}", u8::from(follows));
    let seen = Cell::new(console.end);
    let shown = Shown { seen: &seen, stamps: if arguments.timestamps { Stamps::Lines } else { Stamps::None } };
    let source = Source::Pieces(server.lines(&path).await?);
    let keys = if typing.is_some() { Keys::All } else { Keys::None };
    match copy(server, source, shown, typing.as_deref(), keys).await {
        Ok(Left::Over) if follows => {
            bail!("the server ended it; `--since {} --follow` goes on where it was", seen.get())
        }
        Err(error) if follows => {
            Err(error.context(format!("cut off; `--since {} --follow` goes on where it was", seen.get())))
        }
        ended => ended.map(|_| ExitCode::SUCCESS),
    }
}

/// Where keys go: to the lease that was named, or to one of the caller's own. Says who may type if it is somebody else.
async fn typing_on(server: &Server, console: &ConsoleWire, lease: Option<&str>) -> anyhow::Result<Option<String>> {
    let holder = match &console.dut {
        Some(dut) => {
            let leases: LeasesWire = server.get("/api/v1/leases").await?;
            leases.leases.into_iter().find(|lease| lease.resource.as_ref() == Some(dut))
        }
        None => None,
    };
    let named = lease.is_some();
    if let Some(id) = lease
        && holder.as_ref().is_none_or(|holder| holder.id != id)
    {
        let who = holder.map_or_else(|| "nobody".to_owned(), |holder| format!("{} ({})", holder.owner, holder.id));
        bail!("lease {id} does not hold {}: {who} does", console.dut.as_ref().unwrap_or(&console.name));
    }
    let is_terminal = std::io::stdin().is_terminal();
    let Some(holder) = holder else {
        if is_terminal {
            say("Ctrl-C leaves; nobody holds the machine, so nothing is typed");
        }
        return Ok(None);
    };
    if holder.state != LeaseStateWire::Active || !(named || holder.owner == super::lease::user()) {
        if is_terminal {
            say(format_args!(
                "Ctrl-C leaves; only {} types ({}; --lease says that it is you)",
                holder.owner, holder.id
            ));
        }
        return Ok(None);
    }
    if is_terminal {
        say(format_args!("Ctrl-] leaves; lease {} stays", holder.id));
    }
    Ok(Some(match holder.id.strip_prefix("job-").filter(|_| holder.kept_by == "job") {
        Some(job) => format!("/api/v1/jobs/{}/console", in_query(job)),
        None => format!("/api/v1/leases/{}/console", in_query(&holder.id)),
    }))
}

/// What a person named.
pub(super) enum Found {
    /// A lease, by its id.
    Lease(LeaseWire),
    /// A DUT's name: the lease on it.
    HolderOf(LeaseWire),
    /// A DUT that nobody holds, by its full name.
    Free(String),
}

/// What the server answers of a DUT that matters here.
#[derive(Deserialize)]
struct Dut {
    full_name: String,
}

/// The lease of this id, or the one on the DUT of this name.
pub(super) async fn find(server: &Server, name: &str) -> anyhow::Result<Found> {
    if let Some(lease) = lease_called(server, name).await? {
        return Ok(Found::Lease(lease));
    }
    let dut: Dut = match server.get(&format!("/api/v1/dut/{}", in_query(name))).await {
        Err(error) if error.downcast_ref::<Refused>().is_some() => {
            bail!("no lease and no DUT `{name}`; `wharf leases` and `wharf duts` list them")
        }
        answer => answer?,
    };
    let leases: LeasesWire = server.get("/api/v1/leases").await?;
    let is_on_it = |lease: &LeaseWire| lease.resource.as_deref() == Some(&dut.full_name);
    let holder = leases.leases.into_iter().find(is_on_it);
    Ok(holder.map_or(Found::Free(dut.full_name), Found::HolderOf))
}

/// The lease of this id, if there is one.
async fn lease_called(server: &Server, id: &str) -> anyhow::Result<Option<LeaseWire>> {
    match server.get::<LeaseWire>(&format!("/api/v1/leases/{}", in_query(id))).await {
        Ok(lease) => Ok(Some(lease)),
        Err(error) if is_unknown(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_unknown(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.status == StatusCode::NOT_FOUND)
}

/// Copies a job's or a lease's console from byte `seen` on to standard output until it ends, and counts; what is typed on a terminal goes to
/// `typing`.
pub(super) async fn show(
    server: &Server,
    path: &str,
    seen: &Cell<u64>,
    typing: Option<&str>,
    keys: Keys,
) -> anyhow::Result<Left> {
    let source = Source::Bytes(server.stream(&format!("{path}?follow=1&since={}", seen.get())).await?);
    copy(server, source, Shown { seen, stamps: Stamps::None }, typing, keys).await
}

/// Where what is shown comes from.
enum Source {
    /// The bytes alone.
    Bytes(Incoming),
    /// With offsets, times and gaps.
    Pieces(Lines<PieceWire>),
}

/// One thing to show.
enum Came {
    /// Bytes, and the offset after them if that is known.
    Said { at: Timestamp, end: Option<u64>, bytes: Bytes },
    /// What befell the console.
    Note(String),
}

impl Source {
    /// Safe to give up between two calls.
    async fn next(&mut self) -> anyhow::Result<Option<Came>> {
        match self {
            Source::Pieces(lines) => lines.next().await?.map(Came::of).transpose(),
            Source::Bytes(body) => loop {
                let Some(frame) = body.frame().await else { return Ok(None) };
                if let Ok(bytes) = frame.context("the connection to the server broke")?.into_data() {
                    return Ok(Some(Came::Said { at: Timestamp::now(), end: None, bytes }));
                }
            },
        }
    }
}

impl Came {
    fn of(piece: PieceWire) -> anyhow::Result<Came> {
        Ok(match piece {
            PieceWire::Said { offset, at, data } => {
                let bytes =
                    STANDARD.decode(data).context("the server's answer is not what this version understands")?;
                Came::Said { at, end: Some(offset + bytes.len() as u64), bytes: bytes.into() }
            }
            PieceWire::Away { at, reason, .. } => Came::Note(format!("[{at:.3} away: {reason}]")),
            PieceWire::Back { at, .. } => Came::Note(format!("[{at:.3} back]")),
            PieceWire::Lost { bytes, reason, .. } => Came::Note(format!("[{bytes} bytes are not here: {reason}]")),
        })
    }
}

/// Whether times are shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stamps {
    None,
    Lines,
}

/// How it is shown, and how far.
struct Shown<'a> {
    seen: &'a Cell<u64>,
    stamps: Stamps,
}

async fn copy(
    server: &Server,
    mut source: Source,
    shown: Shown<'_>,
    typing: Option<&str>,
    keys: Keys,
) -> anyhow::Result<Left> {
    let typing = typing.filter(|_| keys != Keys::None && std::io::stdin().is_terminal());
    // Whoever shows it beside something that is to be given back hears the signals himself; with this the terminal is restored.
    let endings = typing.filter(|_| keys == Keys::All).map(|_| Endings::listen()).transpose()?;
    let mut raw = typing.map(|_| Raw::new(keys)).transpose()?;
    let mut typed = typing.map(|_| read_keys());
    let ended = async {
        match endings {
            Some(endings) => endings.restore(&mut raw).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(ended);
    let mut place = Place::LineStart;
    loop {
        tokio::select! {
            came = source.next() => match came? {
                None => return Ok(Left::Over),
                Some(came) => if draw(came, &shown, &mut place)? == Reader::Gone {
                    return Ok(Left::Escaped);
                },
            },
            () = &mut ended => {}
            Some(bytes) = next_keys(&mut typed) => {
                let (text, escaped) = match bytes.iter().position(|key| *key == ESCAPE) {
                    Some(at) => (bytes.slice(..at), true),
                    None => (bytes, false),
                };
                if let Some(path) = typing.filter(|_| !text.is_empty()) {
                    server.put(Method::POST, path, "application/octet-stream", text).await?;
                }
                if escaped {
                    return Ok(Left::Escaped);
                }
            }
        }
    }
}

/// Where the last byte left the line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    LineStart,
    MidLine,
}

fn draw(came: Came, shown: &Shown<'_>, place: &mut Place) -> anyhow::Result<Reader> {
    let (at, bytes) = match came {
        Came::Said { at, end, bytes } => {
            shown.seen.set(end.unwrap_or(shown.seen.get() + bytes.len() as u64));
            (at, bytes)
        }
        Came::Note(text) => return Ok(note(place, &text)),
    };
    let mut text = Vec::with_capacity(bytes.len());
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        if shown.stamps == Stamps::Lines && *place == Place::LineStart {
            text.extend_from_slice(format!("{at:.3} ").as_bytes());
        }
        text.extend_from_slice(line);
        *place = if line.ends_with(b"\n") { Place::LineStart } else { Place::MidLine };
    }
    write(&text)
}

/// Beside the console, so that `wharf console … > file` has its bytes and nothing else.
fn note(place: &mut Place, text: &str) -> Reader {
    let start = if *place == Place::MidLine && std::io::stdout().is_terminal() { "\n" } else { "" };
    *place = Place::LineStart;
    say(format_args!("{start}{text}"));
    Reader::There
}

/// Whether somebody still reads our output.
#[derive(PartialEq, Eq)]
enum Reader {
    There,
    Gone,
}

fn write(bytes: &[u8]) -> anyhow::Result<Reader> {
    let mut output = std::io::stdout().lock();
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(error).context("cannot write the console"),
    }
}

async fn next_keys(typed: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    match typed {
        Some(typed) => typed.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_is_counted_by_the_consoles_own_offsets() {
        let seen = Cell::new(0);
        let shown = Shown { seen: &seen, stamps: Stamps::None };
        let json = r#"{"event": "said", "offset": 4096, "at": "2026-11-21T12:00:00Z", "data": ""}"#;
        let piece = Came::of(serde_json::from_str(json).unwrap()).unwrap();
        draw(piece, &shown, &mut Place::LineStart).unwrap();
        assert_eq!(seen.get(), 4096);
        let away = r#"{"event": "away", "offset": 4096, "at": "2026-11-21T12:00:00Z", "reason": "it closed"}"#;
        let Came::Note(text) = Came::of(serde_json::from_str(away).unwrap()).unwrap() else { panic!("bytes") };
        assert_eq!(text, "[2026-11-21T12:00:00.000Z away: it closed]");
    }
}
