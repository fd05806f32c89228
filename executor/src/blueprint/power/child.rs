//! A program that is run for its answer: what it said, and how it ended.
//!
//! ```text
//!  run ─► a group of its own ─► ended: status, output, errors        not within the time: killed with all that it waits for
//! ```
//! It ends with the server, and with whoever drops the call. What it leaves behind in the background is its own affair; it may keep our pipes open.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::blueprint::spawner;

/// Kept of what a command says: an error of some lines; the rest of it is read and dropped.
pub(super) const OUTPUT_BYTES_MAX: usize = 2048;
/// What a command said is in its pipe when it has ended. Only what it left in the background can keep the pipe open.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// How it ended, and the beginning of what it said.
pub(super) struct Ended {
    pub status: ExitStatus,
    pub output: String,
    pub errors: String,
}

impl Ended {
    /// What it said on one line: its errors, or its output where it has none.
    pub(super) fn said(&self) -> String {
        quoted(if self.errors.trim().is_empty() { &self.output } else { &self.errors })
    }
}

/// Runs a program with its words; no shell reads them. The error continues a sentence about it.
pub(super) async fn run(arguments: &[String], environment: &[(&str, &str)], limit: Duration) -> Result<Ended, String> {
    let started = timeout(limit, spawn(arguments, environment)).await;
    let started = started.map_err(|_| format!("was not started within {} s", limit.as_secs_f64()))?;
    let mut child = started.map_err(|why| format!("cannot be started: {why}"))?;
    let Ok(ended) = timeout(limit, until_ended(&mut child)).await else {
        end_with_all_it_started(&mut child).await;
        return Err(format!("did not end within {} s", limit.as_secs_f64()));
    };
    let (status, output, errors) = ended.map_err(|why| format!("cannot be waited for: {why}"))?;
    Ok(Ended { status, output, errors })
}

/// What somebody said, on one line.
pub(super) fn quoted(said: &str) -> String {
    let said = said.trim();
    if said.is_empty() { "nothing".to_owned() } else { format!("`{}`", said.replace('\n', " | ")) }
}

async fn spawn(arguments: &[String], environment: &[(&str, &str)]) -> std::io::Result<Child> {
    let [program, rest @ ..] = arguments else {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "the farm file names no command"));
    };
    let mut command = Command::new(program);
    command
        .args(rest)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // A group of its own, so that what it waits for ends with it; whoever drops the call ends it, too.
    command.process_group(0);
    spawner::spawn(command).await
}

async fn until_ended(child: &mut Child) -> std::io::Result<(ExitStatus, String, String)> {
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let status = {
        let mut reading = std::pin::pin!(async {
            tokio::join!(collect(stdout.as_mut(), &mut output), collect(stderr.as_mut(), &mut errors));
        });
        tokio::select! {
            status = child.wait() => {
                let status = status?;
                // When the time is over, what was read so far is all.
                let _ = timeout(LAST_WORDS, reading).await;
                status
            }
            () = &mut reading => child.wait().await?,
        }
    };
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((status, text(output), text(errors)))
}

/// Reads to the end, keeps the beginning.
async fn collect(pipe: Option<&mut (impl AsyncRead + Unpin)>, kept: &mut Vec<u8>) {
    let Some(pipe) = pipe else { return };
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        let room = OUTPUT_BYTES_MAX - kept.len();
        kept.extend_from_slice(&buffer[..length.min(room)]);
    }
}

async fn end_with_all_it_started(child: &mut Child) {
    if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok()) {
        // An error means that nothing of the group is left.
        let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
    }
    // Killed, it ends at once; the error would be that it has been waited for already.
    let _ = child.wait().await;
}
