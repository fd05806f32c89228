//! What a role does on a host, or by SSH on the machine that it boots: steps, one after the other.
//!
//! ```text
//!  - checkout: URL, ref: v1      a commit of a git repository, into the working copy
//!  - put: PATH, data | attached  a file
//!  - run: LINE, timeout          a line of the shell; its status decides, and the test results that it wrote
//!  - get: PATH                   a file, kept with the job
//! ```

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::description::{DurationForm, PatternKeys};
use crate::pattern::Pattern;

/// The most steps of a role: what needs more is a script.
pub const STEPS_AT_MOST: usize = 100;

/// A step as it is written: exactly one of the four, with what belongs to it.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("x-exactly-one" = ["run", "put", "get", "checkout"]))]
pub(crate) struct StepKeys {
    /// A line, or lines, of the shell.
    pub(crate) run: Option<String>,
    /// The path of a file to write, with `data` or `attached`.
    pub(crate) put: Option<String>,
    /// The path of a file to keep with the job.
    pub(crate) get: Option<String>,
    /// The address of a git repository.
    pub(crate) checkout: Option<String>,
    /// With `put`: the text of the file.
    pub(crate) data: Option<String>,
    /// With `put`: the name of a file that came with the job.
    pub(crate) attached: Option<String>,
    /// With `checkout`: a branch, tag or commit; the repository's own choice when absent.
    #[serde(rename = "ref")]
    pub(crate) reference: Option<String>,
    /// With `run`: the test results that it writes.
    #[schemars(with = "ResultsKeys", extend("x-never-null" = true))]
    pub(crate) results: Option<ResultsKeys>,
    /// How long it may take; as long as the job when absent.
    #[schemars(with = "Option<DurationForm>")]
    pub(crate) timeout: Option<f64>,
}

/// A file of test results.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["junit"]))]
pub(crate) struct ResultsKeys {
    /// The path of a file of JUnit's XML, as most test programs write it.
    #[schemars(extend("x-example" = "junit: report.xml"))]
    pub(crate) junit: String,
    /// What a failed test means; `fail` when absent.
    pub(crate) failures: Option<Failures>,
}

/// What a failed test means for the job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Failures {
    /// The job fails.
    #[default]
    Fail,
    /// It is counted, and no more.
    Count,
}

/// How a booted machine is logged in to.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct SshKeys {
    /// Who we are there; `root` when absent.
    pub(crate) user: Option<String>,
    /// The port of its SSH server; 22 when absent.
    #[schemars(range(min = 1, max = 65535))]
    pub(crate) port: Option<u16>,
    /// The key that it shows, as `ssh-keyscan` prints it, or its fingerprint; when absent the keys that it says on its console.
    pub(crate) host_key: Option<String>,
    /// The line of its console after which it is logged in to; from the start when absent.
    #[schemars(with = "PatternKeys", extend("x-never-null" = true))]
    pub(crate) when: Option<PatternKeys>,
}

/// What is done by SSH on the machine that a role boots.
#[derive(Debug, Clone, PartialEq)]
pub struct BySsh {
    /// Who we are there.
    pub user: String,
    /// The port of its SSH server.
    pub port: u16,
    /// The key that it shows; `None`: one that it says on its console.
    pub host_key: Option<String>,
    /// The line of its console after which it is logged in to.
    pub when: Option<Pattern>,
    /// What is done, in this order.
    pub steps: Vec<Step>,
}

impl SshKeys {
    pub(crate) fn with(self, steps: Vec<Step>) -> BySsh {
        BySsh {
            user: self.user.unwrap_or_else(|| "root".to_owned()),
            port: self.port.unwrap_or(22),
            host_key: self.host_key,
            when: self.when.map(|keys| keys.regex),
            steps,
        }
    }
}

/// A step on a host.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// What is done.
    pub what: StepKind,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq)]
pub enum StepKind {
    /// Runs lines of the shell.
    Run {
        /// The lines.
        line: String,
        /// The test results that they write.
        results: Option<Results>,
    },
    /// Writes a file.
    Put {
        /// Its path.
        path: String,
        /// What is in it.
        content: StepContent,
    },
    /// Keeps a file with the job.
    Get(String),
    /// Checks a commit out.
    Checkout {
        /// The repository.
        url: String,
        /// The commit.
        reference: String,
    },
}

/// A file of test results, in JUnit's XML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Results {
    /// Its path.
    pub junit: String,
    /// What a failed test means.
    pub failures: Failures,
}

/// What is in a file that a step writes.
#[derive(Debug, Clone, PartialEq)]
pub enum StepContent {
    /// This text.
    Data(String),
    /// A file that came with the job, by its name.
    Attached(String),
}

impl StepKeys {
    /// What does not fit together, by key: what, and the next step.
    pub(crate) fn mistakes(&self) -> Vec<(&'static str, &'static str, &'static str)> {
        let mut found = Vec::new();
        let put = self.put.is_some();
        match (put, self.data.is_some(), self.attached.is_some()) {
            (true, false, false) => found.push(("put", "a file of nothing", "add `data:` or `attached:`")),
            (true, true, true) => {
                found.push(("attached", "the file has two contents", "leave `data` or `attached` out"))
            }
            (false, true, _) => found.push(("data", "only a `put` has data", "write `put: PATH` beside it")),
            (false, _, true) => found.push(("attached", "only a `put` has a file", "write `put: PATH` beside it")),
            _ => {}
        }
        if self.reference.is_some() && self.checkout.is_none() {
            found.push(("ref", "only a `checkout` has a commit", "write `checkout: URL` beside it"));
        }
        if self.results.is_some() && self.run.is_none() {
            found.push(("results", "only a `run` has test results", "write `run: LINE` beside it"));
        }
        found
    }

    /// The step; `None` where a mistake was told.
    pub(crate) fn step(self) -> Option<Step> {
        let content = match (self.data, self.attached) {
            (Some(text), _) => Some(StepContent::Data(text)),
            (None, attached) => attached.map(StepContent::Attached),
        };
        let what = match (self.run, self.put, self.get, self.checkout) {
            (Some(line), ..) => {
                let of = |keys: ResultsKeys| Results { junit: keys.junit, failures: keys.failures.unwrap_or_default() };
                StepKind::Run { line, results: self.results.map(of) }
            }
            (_, Some(path), ..) => StepKind::Put { path, content: content? },
            (_, _, Some(path), _) => StepKind::Get(path),
            (.., url) => {
                StepKind::Checkout { url: url?, reference: self.reference.unwrap_or_else(|| "HEAD".to_owned()) }
            }
        };
        let timeout = self.timeout.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Some(Step { what, timeout })
    }
}
