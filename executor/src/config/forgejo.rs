//! Forgejo and Gitea instances whose tasks the farm takes.

use std::path::PathBuf;
use std::time::Duration;

use super::gitlab::Per;

/// An instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ForgejoConfig {
    /// Where it is, without a slash at the end.
    pub url: String,
    /// Certificates of its authority, where it is none that this host trusts.
    pub certificate_authority: Option<PathBuf>,
    /// Has the token that registers runners.
    pub token_file: Option<PathBuf>,
    /// What is offered.
    pub runners: Vec<ForgejoRunner>,
    /// The farm's project in whose name all its jobs run.
    pub project: Option<String>,
    /// The longest that a job of it may take.
    pub maximum_timeout: Duration,
    /// Of a job's log, so much is sent.
    pub log_bytes_max: u64,
    /// The job that runs plain scripts: its name and its text.
    pub script_job: Option<(String, String)>,
}

/// What is offered: one runner for each DUT that it means, or one for all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForgejoRunner {
    /// What it is called here.
    pub name: String,
    /// The DUTs that it means: those with all of these tags.
    pub tags: Vec<String>,
    /// The one DUT that it means, by id or full name.
    pub dut: Option<String>,
    /// Whether each of those DUTs has a runner of its own.
    pub per: Per,
    /// Labels besides the DUTs' tags.
    pub labels: Vec<String>,
    /// In the farm's own queue.
    pub priority: i32,
    /// Its uuid and the file with its token, where a person made it.
    pub account: Option<(String, PathBuf)>,
}
