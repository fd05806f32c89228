//! A console that a command of the admin's reaches: what it prints is what the DUT said, what it reads is what was typed.
//!
//! ```text
//!  open ─► the command, no shell ─► its standard output and input ─► stream
//!  it ends ─► the stream ends with its exit status and what it said on standard error
//!  the stream is dropped ─► the command is killed, and all that it started in its process group
//! ```

use std::convert::Infallible;
use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use super::device::{Device, pair};
use super::stream::{Claim, Claims, Served};
use super::{Console, ConsoleStream};
use crate::blueprint::driver::{self, Mistake};
use crate::blueprint::spawner;

/// Read at once: a third of a second of 115,200 baud.
const CHUNK_BYTES: usize = 4096;
/// Kept of what a command says on standard error: the last lines of it, which say why it ended.
const ERRORS_BYTES_MAX: usize = 2048;
/// What a command said is in its pipe when it has ended. Only what it left in the background can keep the pipe open.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// A command that has closed its output ends; one that does not is killed.
const END_TIME: Duration = Duration::from_secs(2);

/// A command whose standard input and output are the console.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["command"]))]
pub struct Keys {
    /// A program and its words; no shell reads them.
    command: Vec<String>,
}

impl driver::Keys<dyn Console> for Keys {
    fn build(self, _: &driver::Context<'_>) -> Result<Arc<dyn Console>, Vec<Mistake>> {
        if self.command.first().is_none_or(String::is_empty) {
            let hint = "write a program and its words: `[picocom, --quiet, /dev/ttyUSB0]`";
            return Err(vec![Mistake::new("command", "no program is named", hint)]);
        }
        Ok(Arc::new(ExecConsole { command: self.command, claims: Claims::default() }))
    }
}

/// Reaches a console over a command.
struct ExecConsole {
    command: Vec<String>,
    claims: Claims,
}

impl Console for ExecConsole {
    fn open(&self) -> BoxFuture<'_, io::Result<Box<dyn ConsoleStream>>> {
        async {
            let name = format!("`{}`", self.command.join(" "));
            let claim = self.claims.take_from_task(&name).await?;
            let (program, words) = self.command.split_first().expect("it was checked that a program is named");
            let mut command = Command::new(program);
            command.args(words);
            Ok(Box::new(serve(name, command, Output::Pipe, claim).await?) as Box<dyn ConsoleStream>)
        }
        .boxed()
    }
}

/// What a command takes for its standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// A pipe.
    Pipe,
    /// A terminal, for programs that keep back what they print to a pipe.
    Terminal,
}

/// Starts a command whose standard input and output are the console.
pub(super) async fn serve(name: String, mut command: Command, output: Output, claim: Claim) -> io::Result<Served> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut terminal = None;
    if output == Output::Terminal {
        let (near, far, _) = pair()?;
        command.stdout(far);
        terminal = Some(Device::new(near)?);
    }
    // A group of its own, so that what it started ends with it.
    command.process_group(0);
    let started = spawner::spawn(command).await;
    let mut child =
        started.map_err(|error| io::Error::new(error.kind(), format!("{name} cannot be started: {error}")))?;
    let said: Box<dyn AsyncRead + Send + Unpin> = match (terminal, child.stdout.take()) {
        (Some(terminal), _) => Box::new(terminal),
        (None, Some(pipe)) => Box::new(pipe),
        (None, None) => Box::new(tokio::io::empty()),
    };
    let group = Group::of(child);
    Ok(Served::spawn(name, claim, |console| group.serve(said, console)))
}

/// A command and what it started: killed when dropped.
struct Group {
    child: Child,
    id: Option<Pid>,
}

impl Group {
    fn of(child: Child) -> Group {
        let id = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Group { child, id }
    }

    /// Until it ends, or nobody reads it any more.
    async fn serve(mut self, stdout: impl AsyncRead + Unpin, console: DuplexStream) -> io::Error {
        let pipes = (self.child.stdin.take(), self.child.stderr.take());
        let (Some(stdin), Some(stderr)) = pipes else { return io::Error::other("it has no pipes") };
        let (typed, said) = tokio::io::split(console);
        let mut errors = Vec::new();
        {
            let mut collecting = std::pin::pin!(collect(stderr, &mut errors));
            let mut copying = std::pin::pin!(async {
                tokio::select! {
                    () = print(stdout, said) => {}
                    never = feed(typed, stdin) => match never {},
                }
            });
            tokio::select! {
                () = &mut copying => drop(timeout(LAST_WORDS, collecting).await),
                () = &mut collecting => copying.await,
            }
        }
        let how = match timeout(END_TIME, self.child.wait()).await {
            Ok(Ok(status)) => format!("it ended with {status}"),
            Ok(Err(error)) => format!("it cannot be waited for: {error}"),
            Err(_) => "it closed its output".to_owned(),
        };
        let errors = String::from_utf8_lossy(&errors);
        let errors = errors.trim().replace('\n', " | ");
        io::Error::other(if errors.is_empty() { how } else { format!("{how}; it said `{errors}`") })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // An error means that nothing of the group is left.
        if let Some(id) = self.id {
            let _ = killpg(id, Signal::SIGKILL);
        }
    }
}

async fn print(mut stdout: impl AsyncRead + Unpin, mut said: impl AsyncWrite + Unpin) {
    let mut chunk = [0; CHUNK_BYTES];
    while let Ok(length @ 1..) = stdout.read(&mut chunk).await {
        if said.write_all(&chunk[..length]).await.is_err() {
            return;
        }
    }
}

/// A command may go on when it reads no more: that is no end.
async fn feed(mut typed: impl AsyncRead + Unpin, mut stdin: ChildStdin) -> Infallible {
    let mut chunk = [0; CHUNK_BYTES];
    while let Ok(length @ 1..) = typed.read(&mut chunk).await {
        if stdin.write_all(&chunk[..length]).await.is_err() {
            break;
        }
    }
    std::future::pending().await
}

/// Reads to the end, keeps what came last.
async fn collect(mut pipe: impl AsyncRead + Unpin, kept: &mut Vec<u8>) {
    let mut chunk = [0; CHUNK_BYTES];
    while let Ok(length @ 1..) = pipe.read(&mut chunk).await {
        kept.extend_from_slice(&chunk[..length]);
        kept.drain(..kept.len().saturating_sub(ERRORS_BYTES_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(script: &str) -> ExecConsole {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        ExecConsole { command, claims: Claims::default() }
    }

    #[tokio::test]
    async fn what_a_command_prints_is_said_and_what_is_typed_it_reads() {
        let mut stream = console("printf 'login:\\377\\000'; exec cat").open().await.unwrap();
        let mut heard = [0; 8];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"login:\xff\0");
        stream.write_all(b"root\r\xff").await.unwrap();
        let mut echo = [0; 6];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"root\r\xff");
    }

    #[tokio::test]
    async fn a_command_that_ends_says_how_behind_its_last_byte() {
        let script = "echo no route >&2; echo to host >&2; printf bye; exit 3";
        let mut stream = console(script).open().await.unwrap();
        let mut heard = Vec::new();
        let why = stream.read_to_end(&mut heard).await.unwrap_err().to_string();
        assert_eq!(heard, b"bye");
        let expected = "it ended with exit status: 3; it said `no route | to host`";
        assert_eq!(why, format!("`sh -c {script}`: {expected}"));
        let gone = ExecConsole { command: vec!["/no/such/program".into()], claims: Claims::default() };
        let why = gone.open().await.map(drop).unwrap_err().to_string();
        assert_eq!(why, "`/no/such/program` cannot be started: No such file or directory (os error 2)");
    }

    #[tokio::test]
    async fn a_command_and_what_it_started_end_with_the_stream_and_it_opens_again() {
        let console = console("sleep 600 & echo $!; wait");
        let mut stream = console.open().await.unwrap();
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            line.push(stream.read_u8().await.unwrap());
        }
        let sleeper: i32 = String::from_utf8(line).unwrap().trim().parse().unwrap();
        drop(stream);
        let is_dead = || {
            let stat = std::fs::read_to_string(format!("/proc/{sleeper}/stat"));
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        let dead = async {
            while !is_dead() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(10), dead).await.expect("it ends with the stream");
        console.open().await.map(drop).unwrap();
    }
}
