//! `wharf console`: what a DUT says, and typing to it for whoever holds it.
//!
//! ```text
//!  a lease's id     its console; on a terminal every key goes to the DUT, but Ctrl-], which leaves
//!  a DUT's name     the console of whoever holds it, a job or a person; looked at only
//! ```

use std::cell::Cell;
use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use nix::sys::termios::{self, LocalFlags, OutputFlags, SetArg, Termios};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::client::{Refused, Server, in_query};
use crate::api::wire::leases::{LeaseStateWire, LeaseWire, LeasesWire};

/// Leaves, as telnet's: Ctrl-].
const ESCAPE: u8 = 0x1d;
/// Keys that wait for the server; a person types slower, a paste waits in the terminal.
const KEYS_MAX: usize = 64;

/// Arguments of `wharf console`.
#[derive(clap::Args)]
pub struct Arguments {
    /// A lease's id, or a DUT's id or full name
    #[arg(value_name = "DUT|LEASE")]
    target: String,
    /// The offset of the first byte; everything since the lease began when absent
    #[arg(long, default_value_t = 0)]
    since: u64,
}

/// Which keys are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    /// All: nothing is typed.
    None,
    /// The escape only: Ctrl-C goes to the DUT.
    All,
    /// Ctrl-C and the like stay signals of ours.
    ButSignals,
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
    let found = find(&server, &arguments.target).await?;
    let (lease, keys) = match found {
        Found::Lease(lease) if lease.state == LeaseStateWire::Active => (lease, Keys::All),
        Found::Lease(lease) => (lease, Keys::None),
        Found::HolderOf(lease) => (lease, Keys::None),
        Found::Free(dut) => {
            bail!("nobody holds {dut}, so nothing listens to it; take it with `wharf lease take {dut}`")
        }
    };
    let typing = (keys == Keys::All).then(|| format!("/api/v1/leases/{}/console", in_query(&lease.id)));
    if typing.is_some() && std::io::stdin().is_terminal() {
        eprintln!("Ctrl-] leaves; the lease stays");
    }
    let path = match lease.id.strip_prefix("job-").filter(|_| lease.kept_by == "job") {
        Some(job) => format!("/api/v1/jobs/{}/log", in_query(job)),
        None => format!("/api/v1/leases/{}/console", in_query(&lease.id)),
    };
    show(&server, &path, &Cell::new(arguments.since), typing.as_deref(), keys).await?;
    Ok(ExitCode::SUCCESS)
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
    match server.get::<LeaseWire>(&format!("/api/v1/leases/{}", in_query(name))).await {
        Ok(lease) => return Ok(Found::Lease(lease)),
        Err(error) if is_unknown(&error) => {}
        Err(error) => return Err(error),
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

fn is_unknown(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.status == StatusCode::NOT_FOUND)
}

/// Copies a console from byte `seen` on to standard output until it ends, and counts; what is typed on a terminal goes to `typing`.
pub(super) async fn show(
    server: &Server,
    path: &str,
    seen: &Cell<u64>,
    typing: Option<&str>,
    keys: Keys,
) -> anyhow::Result<Left> {
    let mut body = server.stream(&format!("{path}?follow=1&since={}", seen.get())).await?;
    let typing = typing.filter(|_| keys != Keys::None && std::io::stdin().is_terminal());
    let _raw = typing.map(|_| Raw::new(keys)).transpose()?;
    let mut typed = typing.map(|_| read_keys());
    loop {
        tokio::select! {
            frame = body.frame() => match frame {
                None => return Ok(Left::Over),
                Some(frame) => {
                    let frame = frame.context("the connection to the server broke")?;
                    let Ok(bytes) = frame.into_data() else { continue };
                    seen.set(seen.get() + bytes.len() as u64);
                    if write(&bytes)? == Reader::Gone {
                        return Ok(Left::Escaped);
                    }
                }
            },
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

/// Keys as they are pressed. The thread ends with the process: nobody can take a read of a terminal back.
fn read_keys() -> mpsc::Receiver<Bytes> {
    let (keys, typed) = mpsc::channel(KEYS_MAX);
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(length) = std::io::stdin().lock().read(&mut buffer) {
            if length == 0 || keys.blocking_send(Bytes::copy_from_slice(&buffer[..length])).is_err() {
                return;
            }
        }
    });
    typed
}

/// A terminal that gives single keys and echoes none; as it was before once this is dropped.
struct Raw(Termios);

impl Raw {
    fn new(keys: Keys) -> anyhow::Result<Raw> {
        let before = termios::tcgetattr(std::io::stdin()).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        // Our own lines beside the console still begin at the left.
        raw.output_flags.insert(OutputFlags::OPOST | OutputFlags::ONLCR);
        if keys == Keys::ButSignals {
            raw.local_flags.insert(LocalFlags::ISIG);
        }
        termios::tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &raw)
            .context("cannot change the terminal's settings")?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}
