//! What of a job outlives the process: one folder each, and what becomes of it when the farm starts again.
//!
//! ```text
//!  <state>/lock                        held while a farm runs: two would switch the same outlets
//!  <state>/jobs/<id>/submission.json   as it was handed in (mode 0600: what a client forwards of its environment may be secret)
//!                    attachments/<n>   the files that came along
//!                    events.jsonl, console.log   (job_log.rs)
//!                    session.journal             (journal.rs; of a machine that outlives us)
//!                    reads.jsonl                 (reads.rs; of the same, where something is limited)
//!                    roles/<role>/               the same two for each DUT of a job over several; messages.jsonl between them
//!
//!  found at the start          becomes
//!  Ended in its log            history, with its verdict
//!  Leased, not ended           picked up where its console stands, or ended with cause farm (pick_up.rs)
//!  neither                     its lease waits in the old place; a request that came too late for the crash is made now
//! ```
//! A folder without `submission.json` was never answered for: its client got no number, and it is no job.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Attached, Submission};
use crate::job_log::{JobEvent, JobLog};
use crate::verdict::Verdict;

const SUBMISSION: &str = "submission.json";
const ATTACHMENTS: &str = "attachments";
const ROLES: &str = "roles";

/// The file as it is written.
#[derive(Serialize, Deserialize)]
struct Sheet {
    submitted: jiff::Timestamp,
    submission: Submission,
    /// Names of the attachments; the bytes are in the files `0`, `1`, … of their folder.
    attachments: Vec<String>,
}

/// A job of an earlier run.
pub(super) struct Kept {
    pub id: String,
    pub submitted: jiff::Timestamp,
    pub submission: Submission,
    pub log: Arc<JobLog>,
}

/// How far a job of an earlier run came.
pub(super) enum Reached {
    Queue,
    Dut(String),
    Verdict { dut: Option<String>, verdict: Verdict },
}

/// Takes the state folder for this process, or says who else may have it.
pub(super) fn lock(state: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(state.join("lock"))?;
    file.try_lock()
        .map_err(|_| io::Error::new(io::ErrorKind::ResourceBusy, "another wharf runs a farm with this state folder"))?;
    Ok(file)
}

/// Writes a submission down for good: when this returns, a restart knows the job.
pub(super) fn keep(directory: &Path, submitted: jiff::Timestamp, submission: &Submission) -> io::Result<()> {
    let folder = directory.join(ATTACHMENTS);
    if !submission.attachments.is_empty() {
        fs::create_dir_all(&folder)?;
    }
    for (index, attached) in submission.attachments.values().enumerate() {
        attached.keep(&folder.join(index.to_string()), write_private)?;
    }
    let attachments = submission.attachments.keys().cloned().collect();
    let sheet = serde_json::to_vec(&Sheet { submitted, submission: submission.clone(), attachments })?;
    let unfinished = directory.join(".submission.json");
    write_private(&unfinished, &sheet)?;
    fs::rename(&unfinished, directory.join(SUBMISSION))?;
    File::open(directory)?.sync_all()
}

/// Forgets a job that was not taken after all; its number stays used.
pub(super) fn forget(directory: &Path) {
    if let Err(error) = fs::remove_file(directory.join(SUBMISSION)) {
        tracing::error!(path = %directory.display(), %error, "a job that was refused cannot be removed; the next start will refuse it again");
    }
}

/// The jobs of earlier runs, the oldest first, and the highest number ever given. What cannot be read is left alone and logged.
pub(super) fn read(state: &Path) -> (Vec<Kept>, u64) {
    let entries = fs::read_dir(state.join("jobs")).into_iter().flatten().flatten();
    let mut numbers: Vec<u64> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    let last = numbers.last().copied().unwrap_or(0);
    let kept = numbers.iter().filter_map(|number| {
        let directory = state.join("jobs").join(number.to_string());
        if !directory.join(SUBMISSION).exists() {
            return None;
        }
        read_one(&directory, number.to_string())
            .inspect_err(|error| tracing::error!(job = number, %error, "an earlier job cannot be read; its folder is left as it is"))
            .ok()
    });
    (kept.collect(), last)
}

fn read_one(directory: &Path, id: String) -> io::Result<Kept> {
    let sheet: Sheet = serde_json::from_slice(&fs::read(directory.join(SUBMISSION))?)?;
    let mut submission = sheet.submission;
    for (index, name) in sheet.attachments.into_iter().enumerate() {
        let attached = Attached::kept(&directory.join(ATTACHMENTS).join(index.to_string()))?;
        submission.attachments.insert(name, attached);
    }
    Ok(Kept { id, submitted: sheet.submitted, submission, log: JobLog::open(directory)? })
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Where the log of a role of the job in `directory` is kept.
pub(super) fn role_folder(directory: &Path, role: &str) -> PathBuf {
    directory.join(ROLES).join(role)
}

/// The roles of the job in `directory` by name, each with its log.
pub(super) fn roles(directory: &Path) -> BTreeMap<String, Arc<JobLog>> {
    let entries = fs::read_dir(directory.join(ROLES)).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, JobLog::open(&entry.path()).ok()?)))
        .collect()
}

/// How far a job, or a role of one, came, by its log.
pub(super) fn reached(log: &JobLog) -> Reached {
    let mut dut = None;
    for record in log.records() {
        match &record.event {
            JobEvent::Leased { dut: name } => dut = Some(name.clone()),
            JobEvent::Ended { verdict } => return Reached::Verdict { dut, verdict: verdict.clone() },
            _ => {}
        }
    }
    dut.map_or(Reached::Queue, Reached::Dut)
}

impl Kept {
    /// Whether its submitter's connection was what kept it.
    pub(super) fn is_owned(&self) -> bool {
        self.log.records().iter().any(|record| record.event == JobEvent::Owned)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn submission() -> Submission {
        let attachments =
            [("b".to_owned(), Bytes::from("two").into()), ("a".to_owned(), Attached::File("/nowhere/one".into()))];
        Submission { text: "version: 1".into(), priority: 7, attachments: attachments.into(), ..Submission::default() }
    }

    #[test]
    fn a_kept_job_comes_back_as_it_was_handed_in() {
        let state = tempfile::tempdir().unwrap();
        let directory = state.path().join("jobs/3");
        let log = JobLog::create(&directory).unwrap();
        let now = jiff::Timestamp::now();
        keep(&directory, now, &submission()).unwrap();
        log.append(JobEvent::Owned);
        let (kept, last) = read(state.path());
        assert_eq!((kept.len(), last), (1, 3));
        assert_eq!(kept[0].submission, submission());
        assert_eq!((kept[0].id.as_str(), kept[0].submitted), ("3", now));
        assert!(kept[0].is_owned() && matches!(reached(&kept[0].log), Reached::Queue));
        log.append(JobEvent::Leased { dut: "box".into() });
        assert!(matches!(reached(&read(state.path()).0[0].log), Reached::Dut(dut) if dut == "box"));
    }

    #[test]
    fn a_folder_that_was_never_answered_for_is_no_job_but_its_number_is_used() {
        let state = tempfile::tempdir().unwrap();
        JobLog::create(&state.path().join("jobs/9")).unwrap();
        let (kept, last) = read(state.path());
        assert!(kept.is_empty());
        assert_eq!(last, 9);
    }

    #[test]
    fn two_farms_cannot_have_one_state_folder() {
        let state = tempfile::tempdir().unwrap();
        let held = lock(state.path()).unwrap();
        assert!(lock(state.path()).unwrap_err().to_string().contains("another wharf"));
        drop(held);
        assert!(lock(state.path()).is_ok());
    }
}
