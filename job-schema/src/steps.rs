//! What a role without a machine under test does: steps on a host, one after the other.
//!
//! ```text
//!  - checkout: URL, ref: v1      a commit of a git repository, into the working copy
//!  - put: PATH, data | attached  a file
//!  - run: LINE, timeout          a line of the shell; its status decides
//!  - get: PATH                   a file, kept with the job
//! ```

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::description::DurationForm;

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
    /// How long it may take; as long as the job when absent.
    #[schemars(with = "Option<DurationForm>")]
    pub(crate) timeout: Option<f64>,
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
    Run(String),
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
        found
    }

    /// The step; `None` where a mistake was told.
    pub(crate) fn step(self) -> Option<Step> {
        let content = match (self.data, self.attached) {
            (Some(text), _) => Some(StepContent::Data(text)),
            (None, attached) => attached.map(StepContent::Attached),
        };
        let what = match (self.run, self.put, self.get, self.checkout) {
            (Some(line), ..) => StepKind::Run(line),
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
