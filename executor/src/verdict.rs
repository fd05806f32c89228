//! How a session ended: the status that CI-tron's users know, apart from it the cause, and the evidence for both.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The result of a job, with CI-tron's names and exit statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, utoipa::ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Status {
    /// The session ended, and `job_success` matched.
    Pass,
    /// As PASS, but `job_warn` matched too.
    Warn,
    /// The session ended and the job defines no `job_success`.
    Complete,
    /// The session ended and `job_success` never matched.
    Fail,
    /// The session never reached `session_end`.
    Incomplete,
    /// No result could be computed.
    Unknown,
    /// The job never got to run: artifacts, power, console or farm failed before the first boot.
    SetupFail,
}

impl Status {
    /// All of them, from the best to the worst.
    pub const ALL: [Status; 7] = [
        Status::Pass,
        Status::Warn,
        Status::Complete,
        Status::Fail,
        Status::Incomplete,
        Status::Unknown,
        Status::SetupFail,
    ];

    /// The process exit status of `wharf run` and `wharf demo`.
    pub fn exit_status(self) -> u8 {
        match self {
            Status::Pass => 0,
            Status::Warn => 1,
            Status::Complete => 2,
            Status::Fail => 3,
            Status::Incomplete => 4,
            Status::Unknown => 5,
            Status::SetupFail => 6,
        }
    }

    /// The name on CI-tron's wire.
    pub fn name(self) -> &'static str {
        match self {
            Status::Pass => "PASS",
            Status::Warn => "WARN",
            Status::Complete => "COMPLETE",
            Status::Fail => "FAIL",
            Status::Incomplete => "INCOMPLETE",
            Status::Unknown => "UNKNOWN",
            Status::SetupFail => "SETUP_FAIL",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What decided the verdict: keeps "the job failed" apart from "our farm failed".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The console's patterns: what the job's own test said.
    Test,
    /// One of the job's timeouts.
    Timeout,
    /// Somebody cancelled the job.
    Cancelled,
    /// The submitter went away.
    Submitter,
    /// The DUT misbehaved, or declared itself unfit.
    Dut,
    /// The outlet did not do what it was told.
    Power,
    /// The console could not be opened or was lost.
    Console,
    /// The DUT never asked the network for anything.
    Network,
    /// An artifact could not be had.
    Artifact,
    /// The farm itself failed.
    Farm,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::Test => "test",
            Cause::Timeout => "timeout",
            Cause::Cancelled => "cancelled",
            Cause::Submitter => "submitter",
            Cause::Dut => "dut",
            Cause::Power => "power",
            Cause::Console => "console",
            Cause::Network => "network",
            Cause::Artifact => "artifact",
            Cause::Farm => "farm",
        })
    }
}

/// The end of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, utoipa::ToSchema)]
pub struct Verdict {
    /// CI-tron's status.
    pub status: Status,
    /// What decided it.
    pub cause: Cause,
    /// One sentence for a person.
    pub summary: String,
    /// What was seen, in order: power read-back, accesses, patterns, timeouts.
    pub evidence: Vec<String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (cause: {}): {}", self.status, self.cause, self.summary)
    }
}
