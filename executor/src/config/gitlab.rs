//! GitLab instances whose jobs the farm takes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// An instance.
#[derive(Clone, Debug, PartialEq)]
pub struct GitlabConfig {
    /// Where it is, without a slash at the end.
    pub url: String,
    /// Certificates of its authority, where it is none that this host trusts.
    pub certificate_authority: Option<PathBuf>,
    /// Has the token that creates runners; without it none are registered.
    pub token_file: Option<PathBuf>,
    /// Whose the runners are that are registered.
    pub registered_for: RegisteredFor,
    /// What is offered.
    pub runners: Vec<RunnerConfig>,
    /// The farm's project for a project of the instance, by its number.
    pub projects: BTreeMap<u64, String>,
    /// Whose jobs are taken: of protected branches and tags, or of all.
    pub refs: Refs,
    /// The longest that a job of it may take.
    pub maximum_timeout: Duration,
    /// Of a job's log, so much is sent.
    pub log_bytes_max: u64,
    /// The job that runs plain scripts: its name and its text.
    pub script_job: Option<(String, String)>,
    /// What is kept of `cache:`.
    pub cache: CacheLimits,
    /// What a job's files may take of the farm's disk.
    pub checkout: CheckoutLimits,
    /// Where it finds the consoles of its jobs, for its web terminal.
    pub terminal: Option<TerminalConfig>,
}

/// What is kept of `cache:` between jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CacheLimits {
    /// Of all projects together.
    pub bytes_max: u64,
    /// After the last use.
    pub expiration: Duration,
}

impl Default for CacheLimits {
    /// 10 GiB: what a project's packages and compilers' results take is a tenth of that, and a small farm's disk has it. Two weeks: a branch that
    /// nobody works on for longer can be built anew.
    fn default() -> Self {
        CacheLimits { bytes_max: 10 << 30, expiration: Duration::from_secs(14 * 86_400) }
    }
}

/// What the repository of a job, its image, and what else it begins with may take of the farm's disk while they are fetched and packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckoutLimits {
    /// Of one job, all together.
    pub bytes_max: u64,
    /// On the disk that the state folder is on, so much stays.
    pub bytes_left: u64,
}

impl Default for CheckoutLimits {
    /// 32 GiB: a kernel's tree with all of its history is 5 GB and more, which are there twice while they are packed; the artifacts of earlier
    /// jobs may have 8 GiB; an image is there twice, too. 1 GiB: logs and leases go on being written with a quarter of that, and git
    /// takes the rest of it at most between two looks.
    fn default() -> Self {
        CheckoutLimits { bytes_max: 32 << 30, bytes_left: 1 << 30 }
    }
}

/// Where web terminals are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TerminalConfig {
    /// Where we listen.
    pub listen: SocketAddr,
    /// The host as GitLab is told.
    pub host: String,
    /// Its port there; the one at which we listen when absent.
    pub port: Option<u16>,
}

/// Whose a runner is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RegisteredFor {
    /// Everybody's.
    #[default]
    Instance,
    /// A group's, by its number.
    Group(u64),
    /// A project's, by its number.
    Project(u64),
}

/// Whose jobs are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refs {
    /// Of every branch and tag.
    #[default]
    All,
    /// Of protected ones.
    Protected,
}

/// What is offered to GitLab: one runner for each DUT that it means, or one for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerConfig {
    /// What it is called here.
    pub name: String,
    /// The DUTs that it means: those with all of these tags.
    pub tags: Vec<String>,
    /// The one DUT that it means, by id or full name.
    pub dut: Option<String>,
    /// Whether each of those DUTs has a runner of its own.
    pub per: Per,
    /// The queues it is registered for, each with what goes into the farm's own queue.
    pub priorities: Vec<(String, i32)>,
    /// Has the runner's own token, where a person registered it.
    pub token_file: Option<PathBuf>,
}

/// Who has a runner of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Per {
    /// Each DUT.
    #[default]
    Dut,
    /// All of them together.
    Class,
}
