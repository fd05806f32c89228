//! A role that is played by a host: its steps, one after the other, beside the DUTs of its job. What a DUT does by SSH is done here, too.
//!
//! ```text
//!  start barrier ─► checkout | put | run | get ─► … ─► all done: PASS
//!                     ├─ a `run` says no ─────────────► FAIL, cause test             the job goes on without it
//!                     ├─ it takes too long ───────────► INCOMPLETE, cause timeout  ┐
//!                     ├─ a file or a commit is not there ─► INCOMPLETE, artifact   ├─ the others end, too
//!                     └─ the host fails, others end ──► INCOMPLETE, cause farm     ┘
//! ```
//! What the steps say is the role's console. After a restart of the server the job ends, as every job over several machines does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use job_schema::{Failures, Results, Step, StepContent, StepKind};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::contents::Attachments;
use super::crew::Together;
use super::host_use::{CommandAsk, CommandNews, Errand, PIECES_MAX, told};
use super::on_dut::LoginToDut;
use super::{Farm, JobRecord, Submission, prepare};
use crate::blueprint::host::working_copy::checkout;
use crate::job_log::JobEvent;
use crate::junit;
use crate::lease::Pass;
use crate::lease::rows::LeaseId;
use crate::session::Event;
use crate::ssh::SshError;
use crate::verdict::{Cause, Status, Verdict};

/// Where files that were got are, in the role's folder.
const FILES: &str = "files";
/// What of a host's files a job keeps: logs and packages, no disks; they lie beside the jobs of everybody.
const KEPT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// A host that plays a role.
pub(super) struct OnHost {
    pub doing: Doing,
    pub crew: prepare::Crew,
    pub together: Arc<Together>,
    pub submission: Submission,
}

/// Steps, and where they are done.
pub(super) struct Doing {
    pub farm: Arc<Farm>,
    /// The role's.
    pub record: Arc<JobRecord>,
    pub on: On,
    pub pass: Pass,
    pub attachments: Attachments,
}

/// Where steps are done.
pub(super) enum On {
    Host { name: String, lease: LeaseId },
    Dut(LoginToDut),
}

impl JobRecord {
    /// A file that a step has got, by its name.
    pub fn kept_file(&self, name: &str) -> Option<PathBuf> {
        let is_plain = !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != "..";
        let path = self.log.folder().join(FILES).join(name);
        (is_plain && path.is_file()).then_some(path)
    }
}

/// How steps came to an end before the last one.
pub(super) type Ended = (Status, Cause, String);

impl OnHost {
    /// All steps, to a verdict.
    pub(super) async fn run(self, ended: impl Future<Output = Event>) -> Verdict {
        let mut evidence = Vec::new();
        let mut ended = std::pin::pin!(ended);
        let end = match self.doing.farm.planner.steps(&self.submission, &self.crew).await {
            Err(problems) => {
                Err((Status::SetupFail, Cause::Submitter, format!("the job is wrong for this host:\n{problems}")))
            }
            Ok(steps) => {
                let barrier = tokio::select! {
                    () = self.together.all_are_ready() => Ok(()),
                    event = &mut ended => Err(in_words(event)),
                };
                match barrier {
                    Ok(()) => self.doing.all(&steps, &mut evidence, ended).await,
                    Err(end) => Err(end),
                }
            }
        };
        let (status, cause, summary) = end.unwrap_or_else(|end| end);
        Verdict { status, cause, summary, evidence }
    }
}

impl Doing {
    /// All steps; what each came to is evidence.
    pub(super) async fn all(
        &self,
        steps: &[Step],
        evidence: &mut Vec<String>,
        mut ended: std::pin::Pin<&mut impl Future<Output = Event>>,
    ) -> Result<Ended, Ended> {
        for (number, step) in (1..).zip(steps) {
            let name = name_of(&step.what);
            let failed = |status, cause, why: String| (status, cause, format!("step {number}, {name}: {why}"));
            let (news, heard) = mpsc::channel(PIECES_MAX);
            let hears = tokio::spawn(hear(Arc::clone(&self.record), heard));
            let done = tokio::select! {
                done = self.in_time(step, &news) => done.map_err(|(status, cause, why)| failed(status, cause, why)),
                // Whoever drops a command ends it; the lease's tear-down ends what it started.
                event = &mut ended => Err(in_words(event)),
            };
            drop(news);
            let _ = hears.await;
            match done {
                Ok(what) => evidence.push(format!("step {number}, {name}: {what}")),
                Err(end) => {
                    evidence.push(end.2.clone());
                    return Err(end);
                }
            }
        }
        Ok((Status::Pass, Cause::Test, format!("all {} steps were done", steps.len())))
    }

    /// A command has its time from its errand, which ends it there.
    async fn in_time(&self, step: &Step, news: &mpsc::Sender<CommandNews>) -> Result<String, Ended> {
        match (&step.what, step.timeout) {
            (StepKind::Put { .. } | StepKind::Get(_), Some(time)) => {
                tokio::time::timeout(time, self.one(step, news)).await.unwrap_or_else(|_| Err(late(time)))
            }
            _ => self.one(step, news).await,
        }
    }

    async fn one(&self, step: &Step, news: &mpsc::Sender<CommandNews>) -> Result<String, Ended> {
        let errand = self.errand().await.map_err(|why| (Status::Incomplete, Cause::Farm, why))?;
        let lacks = |error: SshError| match error {
            SshError::Refused { what, .. } => (Status::Incomplete, Cause::Artifact, what),
            error => (Status::Incomplete, Cause::Farm, error.to_string()),
        };
        match &step.what {
            StepKind::Run { line, results } => {
                let argv = ["sh", "-c", line].map(str::to_owned).to_vec();
                let ran = command(&errand, argv, step.timeout, news, (Status::Fail, Cause::Test)).await;
                match (results, &ran) {
                    // What never ended has written nothing that one could count on.
                    (Some(results), Ok(_) | Err((Status::Fail, ..))) => self.counted(results, ran).await,
                    _ => ran,
                }
            }
            StepKind::Checkout { url, reference } => {
                let argv = checkout(url, reference);
                command(&errand, argv, step.timeout, news, (Status::Incomplete, Cause::Artifact)).await
            }
            StepKind::Put { path, content } => {
                let content = self.content(content).map_err(|why| (Status::Incomplete, Cause::Artifact, why))?;
                let content = stream::iter([Ok::<_, std::convert::Infallible>(content)]);
                let put = errand.put(path, content, None).await.map_err(lacks)?;
                Ok(format!("{} bytes, SHA-256 {}", put.bytes, put.sha256))
            }
            StepKind::Get(path) => self.keep(&errand, path).await.map_err(lacks),
        }
    }

    fn content(&self, content: &StepContent) -> Result<Bytes, String> {
        match content {
            StepContent::Data(text) => Ok(text.clone().into()),
            StepContent::Attached(name) => {
                let found = self.attachments.get(name);
                let found = found.ok_or_else(|| {
                    format!("no file `{name}` came with the job; `wharf run -f {name}:PATH` sends one")
                })?;
                found.read().map_err(|error| format!("the file `{name}` of the job cannot be read: {error}"))
            }
        }
    }

    /// A file of the host becomes one of the job's.
    async fn keep(&self, errand: &Errand, path: &str) -> Result<String, SshError> {
        let refused = |what: String| SshError::Refused { host: errand.place.login.name.clone(), what };
        let mut getting = errand.get(path).await?;
        let bytes = getting.expected.bytes;
        if bytes > KEPT_BYTES_MAX {
            return Err(refused(format!("`{path}` has {bytes} bytes; a job keeps up to {KEPT_BYTES_MAX}")));
        }
        let name = path.rsplit('/').next().unwrap_or(path);
        let folder: PathBuf = self.record.log.folder().join(FILES);
        let cannot = |error: std::io::Error| refused(format!("`{name}` cannot be kept: {error}"));
        tokio::fs::create_dir_all(&folder).await.map_err(cannot)?;
        let mut file = tokio::fs::File::create(folder.join(name)).await.map_err(cannot)?;
        while let Some(chunk) = getting.next().await? {
            file.write_all(&chunk).await.map_err(cannot)?;
        }
        file.flush().await.map_err(cannot)?;
        Ok(format!("{} bytes, SHA-256 {}", getting.expected.bytes, getting.expected.sha256))
    }

    /// The test results that a command wrote, beside what it came to.
    async fn counted(&self, results: &Results, ran: Result<String, Ended>) -> Result<String, Ended> {
        let lacks = |why: String| {
            let exit = ran.as_ref().map_or_else(|(_, _, why)| why.clone(), String::clone);
            (Status::Incomplete, Cause::Artifact, format!("{exit}; no results: {why}"))
        };
        let errand = self.errand().await.map_err(|why| (Status::Incomplete, Cause::Farm, why))?;
        let kept = self.keep(&errand, &results.junit).await;
        kept.map_err(|error| match error {
            SshError::Refused { what, .. } => lacks(what),
            error => (Status::Incomplete, Cause::Farm, error.to_string()),
        })?;
        let name = results.junit.rsplit('/').next().unwrap_or(&results.junit);
        let path = self.record.log.folder().join(FILES).join(name);
        let tests = tokio::task::spawn_blocking(move || junit::read(&path)).await;
        let tests = tests.map_err(|error| lacks(error.to_string()))?.map_err(lacks)?;
        self.record.log.append(JobEvent::TestResults {
            file: name.to_owned(),
            tests: tests.tests,
            failures: tests.failures,
            errors: tests.errors,
            skipped: tests.skipped,
            failed: tests.failed.clone(),
        });
        match (ran, results.failures) {
            (Ok(_), Failures::Fail) if !tests.is_success() => Err((Status::Fail, Cause::Test, tests.to_string())),
            (Ok(exit), _) => Ok(format!("{exit}; {tests}")),
            (Err((status, cause, exit)), _) => Err((status, cause, format!("{exit}; {tests}"))),
        }
    }

    async fn errand(&self) -> Result<Errand, String> {
        let place = match &self.on {
            On::Host { name, lease } => self.farm.machines.hosts().place(name, lease).await,
            On::Dut(login) => login.place(&self.farm).await,
        };
        let place = place.map_err(|error| error.to_string())?;
        let _in_flight = self.pass.enter().await.map_err(|revoked| revoked.to_string())?;
        Ok(Errand { place, log: Arc::clone(&self.record.log), _in_flight })
    }
}

/// What a step says is the role's console.
async fn hear(record: Arc<JobRecord>, mut heard: mpsc::Receiver<CommandNews>) {
    while let Some(news) = heard.recv().await {
        if let CommandNews::Output(_, bytes) = news {
            // A loss is noted in the log itself.
            let _ = record.log.append_console(&bytes);
        }
    }
}

/// Runs a command; `otherwise` is what it means when it says no.
async fn command(
    errand: &Errand,
    argv: Vec<String>,
    time: Option<Duration>,
    news: &mpsc::Sender<CommandNews>,
    otherwise: (Status, Cause),
) -> Result<String, Ended> {
    match errand.run(&CommandAsk { argv, time }, news).await {
        CommandNews::Ended(exit) if exit.is_success() => Ok(exit.to_string()),
        CommandNews::Ended(exit) => Err((otherwise.0, otherwise.1, exit.to_string())),
        CommandNews::TimedOut(time) => Err(late(time)),
        CommandNews::Stopped => Err((Status::Incomplete, Cause::Farm, "its lease ended".to_owned())),
        CommandNews::Failed(why) => Err((Status::Incomplete, Cause::Farm, why)),
        CommandNews::Output(..) => Err((Status::Unknown, Cause::Farm, "it never ended".to_owned())),
    }
}

fn late(time: Duration) -> Ended {
    (Status::Incomplete, Cause::Timeout, format!("it took longer than {} s", time.as_secs_f64()))
}

fn name_of(what: &StepKind) -> String {
    match what {
        StepKind::Run { line, .. } => format!("run `{}`", told(std::slice::from_ref(line)).trim_matches('\'')),
        StepKind::Put { path, .. } => format!("put `{path}`"),
        StepKind::Get(path) => format!("get `{path}`"),
        StepKind::Checkout { url, reference } => format!("checkout `{url}` at `{reference}`"),
    }
}

/// Who was ended from outside, in a verdict's terms; as a session has it.
fn in_words(event: Event) -> Ended {
    match event {
        Event::Cancelled { by } => (Status::Incomplete, Cause::Cancelled, format!("cancelled by {by}")),
        Event::SubmitterGone => (Status::Incomplete, Cause::Submitter, "the submitter went away".to_owned()),
        Event::FarmFailed { reason } => (Status::Incomplete, Cause::Farm, reason),
        _ => (Status::Incomplete, Cause::Farm, "it was ended from outside".to_owned()),
    }
}
