//! What our own clients read and write, written for the wire: the rooms behind may change their types, these stay.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::farm::{JobRecord, JobState};
use crate::job_log::{AccessRecord, JobEvent, JobLog, Record};
use crate::verdict::Verdict;

pub mod buckets;
pub mod callers;
pub mod consoles;
pub mod discovery;
pub mod disks;
pub mod found_pdus;
pub mod hosts;
pub mod leases;
pub mod pdus;
pub mod registry;

/// A job.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobWire {
    /// Its number in this farm, as text.
    pub id: String,
    /// The job file's name.
    pub name: String,
    /// Who submitted it.
    pub submitter: String,
    /// When it came, RFC 3339.
    #[schema(value_type = String, format = DateTime)]
    pub submitted: jiff::Timestamp,
    /// `queued`, `running` or `ended`.
    pub state: JobState,
    /// The full name of the DUT that it holds or held.
    pub dut: Option<String>,
    /// How it ended.
    pub verdict: Option<Verdict>,
    /// The DUTs of a job over several: each with an id, a console and a verdict of its own. Left out when there is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(no_recursion)]
    pub roles: Vec<JobWire>,
    /// What its DUT read and was refused, in order; of one job asked for by its id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accesses: Vec<AccessRecord>,
}

impl JobWire {
    /// The same with what its DUTs read.
    pub(super) fn with_accesses(record: &JobRecord) -> Self {
        let of_event = |event: &JobEvent| match event {
            JobEvent::Access { access, .. } => access.clone(),
            _ => None,
        };
        let records = record.log.records();
        let mut wire = JobWire::of(record);
        wire.accesses = records.iter().filter_map(|record| of_event(&record.event)).collect();
        wire.roles = record.roles().iter().map(|role| JobWire::with_accesses(role)).collect();
        wire
    }

    /// A job of this farm.
    pub(super) fn of(record: &JobRecord) -> Self {
        JobWire {
            id: record.id.clone(),
            name: record.source_name.clone(),
            submitter: record.submitter.clone(),
            submitted: record.submitted,
            state: record.state(),
            dut: record.dut().map(|dut| dut.full_name),
            verdict: record.verdict(),
            roles: record.roles().iter().map(|role| JobWire::of(role)).collect(),
            accesses: Vec::new(),
        }
    }
}

/// All jobs, the newest first.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobsWire {
    /// The jobs.
    pub jobs: Vec<JobWire>,
}

/// One line of an event stream. A stream also has empty lines: they keep the connection alive.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EventWire {
    /// Number, time and event; `event` names the kind, the further fields are its own.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub record: Record,
    /// The bytes of a `console` event, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

impl EventWire {
    /// The record with the console bytes that it stands for.
    pub fn of(record: &Record, console: &[u8]) -> Self {
        let data = (!console.is_empty()).then(|| BASE64_STANDARD.encode(console));
        EventWire { record: record.clone(), data }
    }

    /// The console bytes; none where the sender's base64 is broken.
    pub fn console_bytes(&self) -> Vec<u8> {
        self.data.as_deref().and_then(|data| BASE64_STANDARD.decode(data).ok()).unwrap_or_default()
    }
}

/// The console bytes that a record stands for; empty for all others, and where the file cannot be read any more.
pub(super) fn console_of(log: &JobLog, record: &Record) -> Bytes {
    match record.event {
        crate::job_log::JobEvent::Console { offset, length } => {
            log.console_bytes(offset, length).unwrap_or_else(|error| {
                tracing::warn!(%error, offset, length, "cannot read back console bytes");
                Bytes::new()
            })
        }
        _ => Bytes::new(),
    }
}

/// A refusal.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorWire {
    /// What is wrong and what to do next, for a person; a drawing when a file has problems.
    pub error: String,
    /// The problems of the file, for programs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<ProblemWire>,
}

/// One problem of a file.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProblemWire {
    /// The file's name.
    pub file: String,
    /// Line, from 1.
    pub line: Option<usize>,
    /// Column in characters, from 1.
    pub column: Option<usize>,
    /// The field, such as `deployment.start.kernel.url`.
    pub field: String,
    /// What is wrong.
    pub what: String,
    /// The next step.
    pub hint: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job_log::JobEvent;

    #[test]
    fn an_event_line_carries_number_time_kind_and_console_bytes() {
        let record = Record {
            number: 3,
            at: "2026-11-20T23:35:13Z".parse().unwrap(),
            event: JobEvent::Console { offset: 7, length: 3 },
        };
        let line = serde_json::to_string(&EventWire::of(&record, b"ok\n")).unwrap();
        let expected =
            r#"{"number":3,"at":"2026-11-20T23:35:13Z","event":"console","offset":7,"length":3,"data":"b2sK"}"#;
        assert_eq!(line, expected);
        let back: EventWire = serde_json::from_str(&line).unwrap();
        assert_eq!(back.record, record);
        assert_eq!(back.console_bytes(), b"ok\n");
    }
}
