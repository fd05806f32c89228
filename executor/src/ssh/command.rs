//! One command on a host, to its exit status, its output as it comes.
//!
//! ```text
//!  start ─► Output, Output, … ─► Ended(Exit::Status(n) | Exit::Signal(name))
//!              └─ whoever listens slowly slows the command down: the channel's window is all that waits here
//! ```

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use russh::{Channel, ChannelMsg, client};

use super::{Login, Session, SshError};

/// What a short script of ours may say: a page of errors.
const WORDS_BYTES_MAX: usize = 16 * 1024;
/// SSH_EXTENDED_DATA_STDERR (RFC 4254 §5.2).
const STDERR: u32 = 1;

/// Which of a command's two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself.
    Status(u32),
    /// By a signal, such as `KILL`.
    Signal(String),
}

impl Exit {
    /// Whether it did what it should.
    pub fn is_success(&self) -> bool {
        *self == Exit::Status(0)
    }

    /// As shells tell it: 128 and the signal's number.
    pub fn status(&self) -> u32 {
        match self {
            Exit::Status(status) => *status,
            Exit::Signal(name) => {
                128 + SIGNALS.iter().find(|(known, _)| known == name).map_or(0, |(_, number)| *number)
            }
        }
    }
}

/// The signals of RFC 4254 §6.10, with their numbers on Linux.
const SIGNALS: &[(&str, u32)] = &[
    ("ABRT", 6),
    ("ALRM", 14),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("KILL", 9),
    ("PIPE", 13),
    ("QUIT", 3),
    ("SEGV", 11),
    ("TERM", 15),
    ("USR1", 10),
];

impl fmt::Display for Exit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Status(status) => write!(formatter, "exit status {status}"),
            Exit::Signal(name) => write!(formatter, "killed by SIG{name}"),
        }
    }
}

/// A command that runs.
pub struct Running<'a> {
    session: &'a Session,
    channel: Channel<client::Msg>,
    exit: Option<Exit>,
}

/// What is heard of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It said something.
    Output(Stream, Bytes),
    /// It ended, and everything that it said was heard.
    Ended(Exit),
}

impl Session {
    /// Starts a line of the user's shell there.
    pub async fn start(&self, line: &str) -> Result<Running<'_>, SshError> {
        let channel = self.handle.channel_open_session().await.map_err(|error| self.broken(error))?;
        channel.exec(true, line).await.map_err(|error| self.broken(error))?;
        // Commands get no input: what waits for some sees its end.
        channel.eof().await.map_err(|error| self.broken(error))?;
        Ok(Running { session: self, channel, exit: None })
    }

    /// Runs a short script of ours; what it prints. Its failure is an error with its own words.
    pub async fn script(&self, script: &str) -> Result<String, SshError> {
        let mut running = self.start(script).await?;
        let (mut said, mut complained) = (Vec::new(), Vec::new());
        let exit = loop {
            let (words, data) = match running.next().await? {
                Heard::Output(Stream::Stdout, data) => (&mut said, data),
                Heard::Output(Stream::Stderr, data) => (&mut complained, data),
                Heard::Ended(exit) => break exit,
            };
            let room = WORDS_BYTES_MAX.saturating_sub(words.len());
            words.extend_from_slice(&data[..data.len().min(room)]);
        };
        if exit.is_success() {
            return Ok(String::from_utf8_lossy(&said).into_owned());
        }
        let words = String::from_utf8_lossy(&complained).trim().replace('\n', "; ");
        let what = if words.is_empty() { exit.to_string() } else { words };
        Err(SshError::Refused { host: self.host.clone(), what })
    }
}

impl Running<'_> {
    /// What comes next; nothing does after the end.
    pub async fn next(&mut self) -> Result<Heard, SshError> {
        while let Some(message) = self.channel.wait().await {
            match message {
                ChannelMsg::Data { data } => return Ok(Heard::Output(Stream::Stdout, data)),
                ChannelMsg::ExtendedData { data, ext: STDERR } => return Ok(Heard::Output(Stream::Stderr, data)),
                ChannelMsg::ExitStatus { exit_status } => self.exit = Some(Exit::Status(exit_status)),
                ChannelMsg::ExitSignal { signal_name, .. } => self.exit = Some(Exit::Signal(signal(&signal_name))),
                ChannelMsg::Failure => {
                    let what = "its SSH server runs no commands for us".to_owned();
                    return Err(SshError::Refused { host: self.session.host.clone(), what });
                }
                _ => {}
            }
        }
        self.exit.take().map(Heard::Ended).ok_or_else(|| self.session.broken("it ended before the command did"))
    }
}

impl Login {
    /// Connects, runs a short script of ours, hangs up.
    pub async fn script(&self, script: &str, time: Duration) -> Result<String, SshError> {
        let done = tokio::time::timeout(time, async { self.open().await?.script(script).await });
        done.await.unwrap_or_else(|_| {
            let what = format!("what was asked for was not done within {} s", time.as_secs());
            Err(SshError::Refused { host: self.to_string(), what })
        })
    }
}

fn signal(name: &russh::Sig) -> String {
    match name {
        russh::Sig::Custom(name) => name.clone(),
        known => format!("{known:?}"),
    }
}

/// A word of a command line, whatever it holds (POSIX shell, 2.2.2 single-quotes).
pub fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one_word_in_any_shell() {
        assert_eq!(quoted("make"), "make");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("it's $HOME; rm -rf *"), r"'it'\''s $HOME; rm -rf *'");
    }

    #[test]
    fn an_exit_by_signal_has_the_status_that_shells_give_it() {
        assert_eq!(Exit::Signal("KILL".into()).status(), 137);
        assert_eq!(Exit::Signal("TERM".into()).to_string(), "killed by SIGTERM");
        assert_eq!(Exit::Status(3).status(), 3);
    }
}
