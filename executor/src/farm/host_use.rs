//! What a lease on a host lets its holder do: run commands, put and get files. Each asks the pass first and stops when it is revoked.
//!
//! ```text
//!  command ─► Output, Output, … ─► Ended | TimedOut | Stopped | Failed
//!                ├─ its time is over, nobody listens any more, the lease ends: everything that it started is ended on the host, first
//!                └─ the connection is lost: tried to be ended, and told; the lease's tear-down ends it in any case
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::mpsc;

use super::hosts::Place;
use super::{Farm, LeaseError};
use crate::blueprint::host::working_copy::TERM_GRACE_S;
use crate::job_log::{JobEvent, JobLog, Severity};
use crate::lease::rows::Kind;
use crate::lease::{InFlight, Pass};
use crate::ssh::command::{self, Exit, Heard, quoted};
use crate::ssh::files::{Compared, Getting};
use crate::ssh::{Session, SshError};

/// Pieces of output that wait for who listens: the SSH window behind it holds more; without room the command waits.
pub(super) const PIECES_MAX: usize = 16;
/// Pieces of a file that wait.
const CHUNKS_MAX: usize = 4;
/// Connecting, and ending what runs: what heeds no SIGTERM is given its time.
const END_TIME: Duration = Duration::from_secs(30 + TERM_GRACE_S as u64);
/// A command line that fits into one packet of every SSH server, and into a process's arguments.
const WORDS_BYTES_MAX: usize = 30_000;
/// What of a command line is told in a log.
const TOLD_CHARACTERS_MAX: usize = 120;

/// A command to run.
#[derive(Clone, Debug, Default)]
pub struct CommandAsk {
    /// A program and its words.
    pub argv: Vec<String>,
    /// How long it may take.
    pub time: Option<Duration>,
}

/// What is heard of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandNews {
    /// It said something.
    Output(command::Stream, Bytes),
    /// It ended.
    Ended(Exit),
    /// It took too long, and was ended.
    TimedOut(Duration),
    /// Its lease ended, and it was ended.
    Stopped,
    /// The host failed us.
    Failed(String),
}

/// A file on its way to whoever asked for it.
pub struct FileComing {
    /// Its length and its SHA-256, as the host has them.
    pub announced: Compared,
    /// Its bytes; an error instead of the end where they are not those that the host has.
    pub bytes: mpsc::Receiver<Result<Bytes, std::io::Error>>,
}

/// What is done on a host, with the permission for it.
pub(super) struct Errand {
    pub place: Place,
    pub log: Arc<JobLog>,
    /// While this is there, the lease is not torn down.
    pub _in_flight: InFlight,
}

impl Farm {
    /// Runs a command in the working copy of a person's lease.
    pub async fn run_in_lease(&self, id: &str, ask: CommandAsk) -> Result<mpsc::Receiver<CommandNews>, LeaseError> {
        let words: usize = ask.argv.iter().map(|word| quoted(word).len() + 1).sum();
        let wrong = |what: String| LeaseError::Wrong { field: "argv", what };
        if ask.argv.first().is_none_or(String::is_empty) {
            return Err(wrong("name a program and its words".into()));
        }
        if words > WORDS_BYTES_MAX || ask.argv.iter().any(|word| word.contains('\0')) {
            return Err(wrong(format!("no NUL, and up to {WORDS_BYTES_MAX} bytes; put a script there instead")));
        }
        let errand = self.errand(id).await?;
        let (news, heard) = mpsc::channel(PIECES_MAX);
        tokio::spawn(async move {
            let end = errand.run(&ask, &news).await;
            let _ = news.send(end).await;
        });
        Ok(heard)
    }

    /// Writes a file into the working copy of a person's lease. Nothing is there unless all of it is.
    pub async fn put_in_lease<E: std::fmt::Display>(
        &self,
        id: &str,
        path: &str,
        content: impl Stream<Item = Result<Bytes, E>> + Unpin,
        expected: Option<&str>,
    ) -> Result<Compared, LeaseError> {
        let errand = self.errand(id).await?;
        let name = named(path)?;
        let done = errand
            .unless_stopped(errand.put(name, content, expected))
            .await?
            .map_err(|error| LeaseError::Failed(error.to_string()))?;
        errand.note(Severity::Info, format!("Put `{name}`: {} bytes, SHA-256 {}", done.bytes, done.sha256));
        Ok(done)
    }

    /// Reads a file of the working copy of a person's lease.
    pub async fn get_from_lease(&self, id: &str, path: &str) -> Result<FileComing, LeaseError> {
        let errand = self.errand(id).await?;
        let opened = errand.unless_stopped(errand.get(named(path)?)).await?;
        let mut getting = opened.map_err(|error| LeaseError::Failed(error.to_string()))?;
        let announced = getting.expected.clone();
        let (sender, bytes) = mpsc::channel(CHUNKS_MAX);
        tokio::spawn(async move {
            let reads = async {
                loop {
                    let next = getting.next().await.map_err(|error| std::io::Error::other(error.to_string()));
                    let is_last = !matches!(next, Ok(Some(_)));
                    let Some(piece) = next.transpose() else { return };
                    if sender.send(piece).await.is_err() || is_last {
                        return;
                    }
                }
            };
            if let Err(error) = errand.unless_stopped(reads).await {
                let _ = sender.try_send(Err(std::io::Error::other(error.to_string())));
            }
        });
        Ok(FileComing { announced, bytes })
    }

    async fn errand(&self, id: &str) -> Result<Errand, LeaseError> {
        if self.lease(id).await?.request.want.kind == Kind::Dut {
            return self.errand_on_dut(id).await;
        }
        let (log, host, pass) = self.usable_host(id).await?;
        let place = self.machines.hosts().place(&host, &id.into()).await;
        let place = place.map_err(|error| LeaseError::Failed(error.to_string()))?;
        let _in_flight = enter(&pass, id).await?;
        Ok(Errand { place, log, _in_flight })
    }
}

pub(super) async fn enter(pass: &Pass, id: &str) -> Result<InFlight, LeaseError> {
    pass.enter().await.map_err(|_| LeaseError::Over(format!("lease {id} is over: it is being released")))
}

impl Errand {
    /// Runs a command to its end.
    pub(super) async fn run(&self, ask: &CommandAsk, news: &mpsc::Sender<CommandNews>) -> CommandNews {
        let told = told(&ask.argv);
        let line = self.place.copy.run(self.place.number, &ask.argv);
        let runs = async {
            let session = self.place.login.open().await?;
            let mut running = session.start(&line).await?;
            loop {
                match running.next().await? {
                    Heard::Output(stream, data) => drop(news.send(CommandNews::Output(stream, data)).await),
                    Heard::Ended(exit) => return Ok::<_, SshError>(exit),
                }
            }
        };
        let never = std::future::pending();
        let late = async { if let Some(time) = ask.time { tokio::time::sleep(time).await } else { never.await } };
        let end = tokio::select! {
            ended = runs => match ended {
                Ok(exit) => CommandNews::Ended(exit),
                Err(error) => CommandNews::Failed(error.to_string()),
            },
            () = late => CommandNews::TimedOut(ask.time.unwrap_or_default()),
            () = news.closed() => CommandNews::Stopped,
            () = self.place.stop.cancelled() => CommandNews::Stopped,
        };
        let said = match &end {
            CommandNews::Output(..) => String::new(),
            CommandNews::Ended(exit) => exit.to_string(),
            CommandNews::TimedOut(time) => format!("ended after {} s, which is its time", time.as_secs_f64()),
            CommandNews::Stopped => "ended, for nobody waits for it any more".to_owned(),
            CommandNews::Failed(why) => why.clone(),
        };
        let severity = if matches!(end, CommandNews::Ended(_)) { Severity::Info } else { Severity::Warning };
        self.note(severity, format!("Ran `{told}` on {}: {said}", self.place.login.name));
        if !matches!(end, CommandNews::Ended(_)) {
            self.end().await;
        }
        end
    }

    /// Writes a file.
    pub(super) async fn put<E: std::fmt::Display>(
        &self,
        name: &str,
        content: impl Stream<Item = Result<Bytes, E>> + Unpin,
        expected: Option<&str>,
    ) -> Result<Compared, SshError> {
        let session = self.place.login.open().await?;
        session.put(&self.absolute(&session, name).await?, content, expected).await
    }

    /// Begins to read a file.
    pub(super) async fn get(&self, name: &str) -> Result<Getting, SshError> {
        let session = self.place.login.open().await?;
        let path = self.absolute(&session, name).await?;
        session.get(&path).await
    }

    /// Ends what a command started. When that fails, the lease's tear-down does it.
    async fn end(&self) {
        let ended = self.place.login.script(&self.place.copy.end(self.place.number), END_TIME).await;
        if let Err(error) = ended {
            self.note(Severity::Warning, format!("What it started may still run: {error}"));
        }
    }

    async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, LeaseError> {
        tokio::select! {
            done = work => Ok(done),
            () = self.place.stop.cancelled() => {
                Err(LeaseError::Over("the lease ended in the middle of it".into()))
            }
        }
    }

    /// The path of a file of the working copy; one that is absolute is left as it is.
    async fn absolute(&self, session: &Session, name: &str) -> Result<String, SshError> {
        if name.starts_with('/') {
            return Ok(name.to_owned());
        }
        let found = session.script(&self.place.copy.find()).await?;
        Ok(format!("{}/{name}", found.trim_end()))
    }

    fn note(&self, severity: Severity, text: String) {
        self.log.append(JobEvent::Note { text, severity });
    }
}

fn named(path: &str) -> Result<&str, LeaseError> {
    if path.is_empty() || path.ends_with('/') || path.contains('\0') {
        let what = format!("`{path}` is no file; name one, relative to the working copy or absolute");
        return Err(LeaseError::Wrong { field: "path", what });
    }
    Ok(path)
}

/// A command line as a log has it.
pub(super) fn told(argv: &[String]) -> String {
    let line = argv.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ").replace('\n', "⏎");
    match line.char_indices().nth(TOLD_CHARACTERS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

impl From<SshError> for LeaseError {
    fn from(error: SshError) -> LeaseError {
        LeaseError::Failed(error.to_string())
    }
}
