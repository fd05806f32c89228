//! What a DUT has done so far: its boots, its jobs' ends, its failures by cause, its training. Kept in a file per DUT, over restarts.
//!
//! ```text
//!  <state>/duts/<id>.json ◄── change: written beside it, then put in its place ◄── power on · a verdict · a step of its training
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::training::Training;
use crate::lease::rows::Purpose;
use crate::verdict::{Cause, Status, Verdict};

/// The folder in the state folder.
const FOLDER: &str = "duts";

/// What a DUT has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct DutRecord {
    /// How often it was switched on.
    pub boots: u64,
    /// How its jobs ended, by status.
    pub jobs: BTreeMap<String, u64>,
    /// Jobs that ended otherwise than by what their own tests said, by cause.
    pub failures: BTreeMap<String, u64>,
    /// Failures that count against it since a job last came to its own end.
    pub failures_in_a_row: u32,
    /// The newest failure that counts against it.
    pub last_failure: Option<Failure>,
    /// Its training, the newest one.
    pub training: Option<Training>,
    /// The health job that waits or runs.
    pub health_job: Option<String>,
}

/// A failure that was not the job's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Failure {
    /// When the verdict came.
    #[schema(value_type = String, format = DateTime)]
    pub at: jiff::Timestamp,
    /// The job's number.
    pub job: String,
    /// What decided it.
    pub cause: Cause,
    /// In a sentence.
    pub what: String,
}

/// What a verdict says about the DUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opinion {
    /// It booted and talked: it is well.
    Well,
    /// It failed, or what it hangs on did.
    Failed,
    /// Nothing.
    None,
}

/// Whether a verdict counts against its DUT. What the farm itself failed at does not: it would take all DUTs out of service at once. A
/// timeout is the job's own, but of a health job, which has nothing to do but to boot.
pub(super) fn opinion(verdict: &Verdict, purpose: Purpose) -> Opinion {
    match (verdict.cause, purpose) {
        (Cause::Test, _) => Opinion::Well,
        (Cause::Dut | Cause::Power | Cause::Console | Cause::Network, _) => Opinion::Failed,
        (Cause::Timeout, Purpose::Health) => Opinion::Failed,
        (Cause::Timeout | Cause::Cancelled | Cause::Submitter | Cause::Artifact | Cause::Farm, _) => Opinion::None,
    }
}

impl DutRecord {
    /// A job on it has ended.
    pub(super) fn heard(&mut self, job: &str, verdict: &Verdict, purpose: Purpose, now: jiff::Timestamp) {
        *self.jobs.entry(verdict.status.name().to_owned()).or_default() += 1;
        if !matches!(verdict.status, Status::Pass | Status::Warn | Status::Complete) {
            *self.failures.entry(verdict.cause.to_string()).or_default() += 1;
        }
        match opinion(verdict, purpose) {
            Opinion::Well => self.failures_in_a_row = 0,
            Opinion::Failed => {
                self.failures_in_a_row += 1;
                let what = verdict.summary.lines().next().unwrap_or_default().to_owned();
                self.last_failure = Some(Failure { at: now, job: job.to_owned(), cause: verdict.cause, what });
            }
            Opinion::None => {}
        }
    }

    /// Why the farm thinks ill of it, in a sentence.
    pub(super) fn complaint(&self) -> Option<String> {
        let Failure { job, cause, what, .. } = self.last_failure.as_ref().filter(|_| self.failures_in_a_row > 0)?;
        let times = self.failures_in_a_row;
        let rows = if times == 1 { "1 failure".to_owned() } else { format!("{times} failures in a row") };
        Some(format!("{rows}, the last one in job {job}, cause {cause}: {what}"))
    }
}

/// The records of all DUTs.
pub(super) struct Records {
    folder: PathBuf,
    all: Mutex<BTreeMap<String, DutRecord>>,
}

impl Records {
    /// Those in the state folder. One that cannot be read is set aside, and told.
    pub(super) fn open(state: &Path) -> io::Result<Records> {
        let folder = state.join(FOLDER);
        std::fs::create_dir_all(&folder)?;
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let Some(id) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".json")) else { continue };
            match std::fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?)) {
                Ok(record) => drop(all.insert(id.to_owned(), record)),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a DUT's record cannot be read; it begins anew");
                    let _ = std::fs::rename(&path, path.with_extension("unreadable"));
                }
            }
        }
        Ok(Records { folder, all: Mutex::new(all) })
    }

    /// What a DUT has done so far.
    pub(super) fn of(&self, dut: &str) -> DutRecord {
        self.lock().get(dut).cloned().unwrap_or_default()
    }

    /// Writes down what happens to it. One after the other, so that the newest is what stays; a record is some KiB, and written when a job
    /// ends.
    pub(super) fn change<T>(&self, dut: &str, change: impl FnOnce(&mut DutRecord) -> T) -> T {
        let mut all = self.lock();
        let record = all.entry(dut.to_owned()).or_default();
        let before = record.clone();
        let changed = change(record);
        if *record != before
            && let Err(error) = self.write(dut, record)
        {
            tracing::error!(dut, %error, "the DUT's record cannot be kept; a restart would know an older one");
        }
        changed
    }

    /// A machine that is removed takes its record along.
    pub(super) fn forget(&self, dut: &str) {
        self.lock().remove(dut);
        let _ = std::fs::remove_file(self.folder.join(format!("{dut}.json")));
    }

    /// A crash of ours finds the old one or the new one, whole.
    fn write(&self, dut: &str, record: &DutRecord) -> io::Result<()> {
        let path = self.folder.join(format!("{dut}.json"));
        let beside = path.with_extension("new");
        std::fs::write(&beside, serde_json::to_vec_pretty(record)?)?;
        std::fs::rename(beside, path)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, DutRecord>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(status: Status, cause: Cause, summary: &str) -> Verdict {
        Verdict { status, cause, summary: summary.into(), evidence: Vec::new() }
    }

    #[test]
    fn failures_of_the_machine_count_and_those_of_the_job_or_the_farm_do_not() {
        let mut record = DutRecord::default();
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        let mut hear = |cause, purpose| {
            let status = if cause == Cause::Test { Status::Fail } else { Status::Incomplete };
            record.heard("7", &verdict(status, cause, "it is so\nand more"), purpose, now);
            record.failures_in_a_row
        };
        assert_eq!(hear(Cause::Power, Purpose::Work), 1);
        assert_eq!(hear(Cause::Farm, Purpose::Work), 1);
        assert_eq!(hear(Cause::Timeout, Purpose::Work), 1, "the job may have been wrong");
        assert_eq!(hear(Cause::Timeout, Purpose::Health), 2, "a health job has nothing to do but to boot");
        assert_eq!(hear(Cause::Network, Purpose::Work), 3);
        let sentence = "3 failures in a row, the last one in job 7, cause network: it is so";
        assert_eq!(record.complaint().as_deref(), Some(sentence));
        record.heard("8", &verdict(Status::Fail, Cause::Test, "no"), Purpose::Work, now);
        assert_eq!((record.failures_in_a_row, record.complaint()), (0, None), "it booted and talked");
        let failures: Vec<_> = record.failures.iter().map(|(cause, count)| (cause.as_str(), *count)).collect();
        assert_eq!(failures, [("farm", 1), ("network", 1), ("power", 1), ("test", 1), ("timeout", 2)]);
    }

    #[test]
    fn a_record_outlives_the_process_and_a_broken_one_is_set_aside() {
        let state = tempfile::tempdir().unwrap();
        Records::open(state.path()).unwrap().change("52:54:00:00:00:01", |record| record.boots += 3);
        let records = Records::open(state.path()).unwrap();
        assert_eq!(records.of("52:54:00:00:00:01").boots, 3);
        std::fs::write(state.path().join("duts/52:54:00:00:00:01.json"), "{\"boots\": ").unwrap();
        assert_eq!(Records::open(state.path()).unwrap().of("52:54:00:00:00:01"), DutRecord::default());
        assert!(state.path().join("duts/52:54:00:00:00:01.unreadable").exists());
    }
}
