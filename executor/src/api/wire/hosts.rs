//! Hosts, commands and files on the wire.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::farm::{CommandNews, HostView};
use crate::ssh::command::Stream;
use crate::ssh::files::Compared;

/// The header that tells a file's SHA-256 in hexadecimal, both ways.
pub const SHA256_HEADER: &str = "x-sha256";

/// A host, or a kind of hosts that are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostWire {
    /// Its name.
    pub name: String,
    /// `<farm>-<name>`.
    pub full_name: String,
    /// `free`, `leased`, `starting`, `ending`, `cordoned`, `quarantined`, or `not made`.
    pub state: String,
    /// Why it is held back.
    pub why: Option<String>,
    /// What can be asked of it.
    pub tags: Vec<String>,
    /// How many leases may hold it at a time.
    pub seats: u32,
    /// Who has it.
    pub holders: Vec<String>,
    /// Where it is; of one that is made, once it is.
    pub address: Option<String>,
    /// Who makes it; nobody when it is there.
    pub provider: Option<String>,
    /// The admin's note.
    pub comment: Option<String>,
}

/// All hosts.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct HostsWire {
    /// In the order of the farm file.
    pub hosts: Vec<HostWire>,
}

impl From<HostView> for HostWire {
    fn from(view: HostView) -> HostWire {
        let HostView { name, full_name, state, why, tags, seats, holders, address, provider, comment } = view;
        let (state, provider) = (state.to_owned(), provider.map(str::to_owned));
        HostWire { name, full_name, state, why, tags, seats, holders, address, provider, comment }
    }
}

/// A command to run.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandWire {
    /// A program and its words; for a shell's line `["sh", "-c", LINE]`.
    #[serde(default)]
    pub argv: Vec<String>,
    /// How long it may take, such as `1h 30m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
}

/// What is heard of a command: output, then exactly one with `end`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CommandNewsWire {
    /// Bytes of its standard output, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,
    /// Bytes of its standard error, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,
    /// How it ended: `exit`, `timeout`, `stopped`, `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// With `exit`: its status, 128 and the signal's number where a signal ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u32>,
    /// With any end: the sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub what: Option<String>,
}

impl From<CommandNews> for CommandNewsWire {
    fn from(news: CommandNews) -> CommandNewsWire {
        let ended = |end: &str, status, what: String| CommandNewsWire {
            end: Some(end.to_owned()),
            status,
            what: Some(what),
            ..CommandNewsWire::default()
        };
        match news {
            CommandNews::Output(Stream::Stdout, data) => {
                CommandNewsWire { stdout: Some(BASE64_STANDARD.encode(data)), ..CommandNewsWire::default() }
            }
            CommandNews::Output(Stream::Stderr, data) => {
                CommandNewsWire { stderr: Some(BASE64_STANDARD.encode(data)), ..CommandNewsWire::default() }
            }
            CommandNews::Ended(exit) => ended("exit", Some(exit.status()), exit.to_string()),
            CommandNews::TimedOut(time) => {
                ended("timeout", None, format!("ended after {} s, which is its time", time.as_secs_f64()))
            }
            CommandNews::Stopped => ended("stopped", None, "its lease ended".to_owned()),
            CommandNews::Failed(why) => ended("failed", None, why),
        }
    }
}

/// A file that was put, compared at both ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FileWire {
    /// How long it is.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

impl From<Compared> for FileWire {
    fn from(Compared { bytes, sha256 }: Compared) -> FileWire {
        FileWire { bytes, sha256 }
    }
}
