//! One GitLab job: handed to the farm, its log told while it runs, its files and its verdict at the end.
//!
//! ```text
//!  <state>/gitlab/<host>-<id>/sheet.json   what was taken, with its token (mode 0600), until GitLab knows the end
//!                             log          masked (spool.rs)
//!                             …            files to upload (produce.rs)
//!
//!  Taken ─► described ─► Farm::submit ─► loop: events ─► spool ─► courier ─► client ─► answers ─► courier … ─► Over
//!                                               └ FirmwareBooted, console, end: accepted
//!  at the start of the farm: each sheet is taken up again; the log is made again from the job's events, and goes on where GitLab has it
//! ```

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::client::{Client, Upload};
use super::courier::{Answer, Call, Courier, Order};
use super::describe::{self, Described, Kind};
use super::forms;
use super::mask::Masker;
use super::produce::{self, Console, Left};
use super::register::Wanted;
use super::source;
use super::spool::Spool;
use super::trace::{Sections, Teller};
use super::wire::{Job, Outcome};
use crate::farm::{CancelledBy, Farm, JobRecord, JobState, Submission, SubmitError};
use crate::job_log::{Follower, JobEvent, Record, Severity};
use crate::verdict::{Cause, Status, Verdict};

/// Events that are written between two looks at what is to be told: a console that floods must not keep a cancel waiting.
const EVENTS_AT_ONCE: usize = 500;
/// A script's exit status is in the last lines of its console.
const TAIL_BYTES: u64 = 64 * 1024;
/// What the farm's small Linux says of a script (fixtures/virtual-dut/init).
const EXIT_LINE: &str = "wharf: command exit ";

/// A job that GitLab gave us.
pub(super) struct Taken {
    pub job: Job,
    pub runner: Wanted,
    pub runner_token: String,
}

/// All jobs that are carried.
#[derive(Default)]
pub struct Carriers(Mutex<JoinSet<()>>);

/// What of a job outlives the process.
#[derive(Serialize, Deserialize)]
struct Sheet {
    url: String,
    certificate_authority: Option<PathBuf>,
    log_bytes_max: u64,
    runner_token: String,
    job: Job,
    /// Its number in the farm, once it has one.
    farm_job: Option<String>,
    /// The job description.
    text: String,
    kind: Kind,
    /// What was said before the farm had it.
    said: Vec<(Severity, String)>,
    /// Whether GitLab knows that it runs.
    is_accepted: bool,
}

impl Carriers {
    /// Carries a job; `taken` hears when the farm has it, or will not have it.
    pub(super) fn begin(&self, farm: &Weak<Farm>, client: Client, taken: Taken, told: oneshot::Sender<()>) {
        let Some(farm) = farm.upgrade() else { return };
        self.lock().spawn(begin(farm, client, taken, told));
    }

    /// Takes up what an earlier run of the farm had taken.
    pub(super) fn resume(&self, farm: &Weak<Farm>, state: &Path) {
        let Some(farm) = farm.upgrade() else { return };
        for entry in fs::read_dir(state.join("gitlab")).into_iter().flatten().flatten() {
            let folder = entry.path();
            match fs::read(folder.join(SHEET)).and_then(|text| Ok(serde_json::from_slice::<Sheet>(&text)?)) {
                Ok(sheet) => drop(self.lock().spawn(resume(Arc::clone(&farm), sheet, folder))),
                Err(error) => {
                    tracing::warn!(path = %folder.display(), %error, "a GitLab job of before the restart cannot be read");
                }
            }
        }
    }

    /// When no job is carried any more.
    pub async fn all_done(&self) {
        let mut carriers = std::mem::take(&mut *self.lock());
        while carriers.join_next().await.is_some() {}
    }

    /// Finished ones are let go on the way.
    fn lock(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        let mut carriers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while carriers.try_join_next().is_some() {}
        carriers
    }
}

const SHEET: &str = "sheet.json";

async fn begin(farm: Arc<Farm>, client: Client, taken: Taken, told: oneshot::Sender<()>) {
    let Taken { job, runner, runner_token } = taken;
    let host = runner.instance.url.split_once("://").map_or("", |(_, host)| host).replace([':', '/'], "_");
    let folder = farm.forges().state.join("gitlab").join(format!("{host}-{}", job.id));
    tracing::info!(gitlab_job = job.id, project = job.job_info.project_full_path, "GitLab gave a job");
    let mut sheet = Sheet {
        url: runner.instance.url.clone(),
        certificate_authority: runner.instance.certificate_authority.clone(),
        log_bytes_max: runner.instance.log_bytes_max,
        runner_token,
        job,
        farm_job: None,
        text: String::new(),
        kind: Kind::Patterns,
        said: Vec::new(),
        is_accepted: false,
    };
    if let Err(error) = sheet.keep(&folder) {
        tracing::error!(path = %folder.display(), %error, "a GitLab job cannot be kept: GitLab will give up on it");
        return;
    }
    let submitted = submit(&farm, &client, &runner, &mut sheet).await;
    let _ = told.send(());
    let kept = sheet.keep(&folder);
    if let (Err(error), Ok(record)) = (kept, &submitted) {
        tracing::error!(path = %folder.display(), %error, job = record.id, "a GitLab job cannot be kept; a restart will not know it");
    }
    let (record, outcome) = match submitted {
        Ok(record) => (Some(record), None),
        Err(outcome) => (None, Some(outcome)),
    };
    let carrier = Carrier::new(farm, client, sheet, folder, record, Courier::new());
    carrier.run(outcome).await;
}

/// Hands the job in. `Err`: why it never will be.
async fn submit(
    farm: &Arc<Farm>,
    client: &Client,
    runner: &Wanted,
    sheet: &mut Sheet,
) -> Result<Arc<JobRecord>, Outcome> {
    let (job, features) = (&sheet.job, &sheet.job.features);
    let misconfigured = Outcome::misconfigured(features);
    let dut = match &runner.target.id {
        Some(id) => farm.dut(id).await.map(|dut| dut.full_name),
        None => None,
    };
    let hello = format!(
        "GitLab's job {} of {} at {}",
        job.id,
        job.job_info.project_full_path,
        job.git_info.sha.get(..8).unwrap_or(&job.git_info.sha)
    );
    let hello = format!("wharf {} of the farm {} takes {hello}", env!("CARGO_PKG_VERSION"), farm.name());
    let described = describe::describe(client, job, runner, dut, farm.submission().job_urls).await;
    sheet.said.push((Severity::Info, hello));
    let Described { source_name, text, environ, attachments, notes, is_script } = match described {
        Ok(described) => described,
        Err(why) => {
            sheet.said.push((Severity::Error, why));
            return Err(misconfigured);
        }
    };
    sheet.said.push((Severity::Info, format!("The job description is {source_name}")));
    sheet.said.extend(notes.into_iter().map(|note| (Severity::Warning, note)));
    (sheet.text, sheet.kind) = (text.clone(), is_script);
    let submission = Submission {
        source_name,
        text,
        target: Some(runner.target.clone()),
        environ,
        attachments,
        priority: runner.priority,
        submitter: format!("GitLab job {} of {}", sheet.job.id, sheet.job.job_info.project_full_path),
        subject: source::subject(runner, Some(sheet.job.job_info.project_id)),
        ..Submission::default()
    };
    match farm.submit(submission).await {
        Ok(record) => {
            sheet.farm_job = Some(record.id.clone());
            sheet.said.push((Severity::Info, format!("It is job {} of the farm", record.id)));
            Ok(record)
        }
        Err(error) => {
            sheet.said.push((Severity::Error, error.to_string()));
            Err(match error {
                SubmitError::Farm(_) | SubmitError::Busy { .. } => Outcome::lost(),
                _ => misconfigured,
            })
        }
    }
}

async fn resume(farm: Arc<Farm>, mut sheet: Sheet, folder: PathBuf) {
    let client = match Client::new(&sheet.url, sheet.certificate_authority.as_deref()) {
        Ok(client) => client,
        Err(error) => return tracing::warn!(gitlab_job = sheet.job.id, "{error}"),
    };
    let record = sheet.farm_job.as_ref().and_then(|id| farm.job(id));
    let outcome = record.is_none().then(|| {
        sheet.said.push((Severity::Error, "The farm was restarted before it had the job".to_owned()));
        Outcome::lost()
    });
    let courier = if sheet.is_accepted { Courier::resumed() } else { Courier::new() };
    let carrier = Carrier::new(farm, client, sheet, folder, record, courier);
    carrier.run(outcome).await;
}

impl Sheet {
    /// Written whole or not at all.
    fn keep(&self, folder: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let unfinished = folder.join("sheet.new");
        let mut file = fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(&unfinished)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(unfinished, folder.join(SHEET))
    }

    fn masker(&self) -> Masker {
        let environ = super::variables::expanded(&self.job.variables);
        let secrets = forms::secrets(&self.job, &environ).into_iter().chain([self.runner_token.clone()]);
        Masker::new(secrets, &self.job.features.token_mask_prefixes)
    }
}

/// One job on its way.
struct Carrier {
    farm: Arc<Farm>,
    client: Client,
    sheet: Sheet,
    folder: PathBuf,
    record: Option<Arc<JobRecord>>,
    courier: Courier,
    uploads: Vec<Upload>,
    /// When GitLab's own limit for the job is reached.
    deadline: Option<Instant>,
    is_late: bool,
}

/// Whether a job is still told of.
enum Next {
    Goes,
    Done,
    /// The farm stops: the rest is told after its next start.
    Later,
}

impl Carrier {
    fn new(
        farm: Arc<Farm>,
        client: Client,
        sheet: Sheet,
        folder: PathBuf,
        record: Option<Arc<JobRecord>>,
        courier: Courier,
    ) -> Carrier {
        let (uploads, deadline, is_late) = (Vec::new(), None, false);
        Carrier { farm, client, sheet, folder, record, courier, uploads, deadline, is_late }
    }

    /// Until GitLab knows the end, or wants to know nothing any more.
    async fn run(mut self, outcome: Option<Outcome>) {
        let sections = if self.sheet.job.features.trace_sections { Sections::Folded } else { Sections::Unknown };
        let teller = Teller::new(sections, &self.sheet.text);
        let spool = Spool::create(&self.folder.join("log"), teller, self.sheet.masker(), self.sheet.log_bytes_max);
        let mut spool = match spool {
            Ok(spool) => spool,
            Err(error) => {
                tracing::error!(path = %self.folder.display(), %error, "a GitLab job's log cannot be written; the job is cancelled");
                return self.cancel("its log cannot be written");
            }
        };
        for (severity, text) in &self.sheet.said {
            spool.say(*severity, text);
        }
        if let Some(outcome) = outcome {
            self.courier.accept();
            spool.finish();
            self.courier.ended(outcome, 0, Instant::now());
        }
        self.courier.log_is(spool.log());
        let mut follower = self.record.as_ref().map(|record| record.log.follow(0));
        // After a restart GitLab may have more of the log than a part of the events makes.
        while let Some(event) = follower.as_mut().and_then(|follower| follower.next().now_or_never()) {
            self.hear(event, &mut spool, &mut follower).await;
            tokio::task::yield_now().await;
        }
        loop {
            match self.step(&mut spool, &mut follower).await {
                Next::Goes => {}
                Next::Later => return,
                Next::Done => break,
            }
        }
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            tracing::warn!(path = %self.folder.display(), %error, "what was kept of a GitLab job cannot be removed");
        }
    }

    async fn step(&mut self, spool: &mut Spool, follower: &mut Option<Follower>) -> Next {
        for _ in 0..EVENTS_AT_ONCE {
            match follower.as_mut().and_then(|follower| follower.next().now_or_never()) {
                Some(event) => self.hear(event, spool, follower).await,
                None => break,
            }
        }
        self.courier.log_is(spool.log());
        if !self.sheet.is_accepted && self.courier.is_accepted() {
            self.accepted();
        }
        match self.courier.next(Instant::now()) {
            Order::Call(call) => {
                let answer = self.make(&call, spool).await;
                if answer.status.is_some_and(|status| !(200..300).contains(&status)) {
                    tracing::debug!(gitlab_job = self.sheet.job.id, ?call, ?answer, "GitLab did not simply agree");
                }
                self.courier.answered(&call, &answer, Instant::now());
                Next::Goes
            }
            Order::Wait(until) => self.wait(until, spool, follower).await,
            Order::Cancel => {
                self.cancel("cancelled in GitLab");
                Next::Goes
            }
            Order::Stop => {
                tracing::info!(gitlab_job = self.sheet.job.id, "GitLab has let go of the job");
                self.cancel("GitLab has cancelled it, or let go of it");
                Next::Done
            }
            Order::Over => Next::Done,
        }
    }

    async fn wait(&mut self, until: Instant, spool: &mut Spool, follower: &mut Option<Follower>) -> Next {
        let event = async {
            match follower {
                Some(follower) => follower.next().await,
                None => std::future::pending().await,
            }
        };
        let late = async {
            match self.deadline.filter(|_| !self.is_late) {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        let is_waiting = self.record.as_ref().is_some_and(|record| record.state() == JobState::Queued);
        tokio::select! {
            event = event => self.hear(event, spool, follower).await,
            () = tokio::time::sleep_until(until.into()) => {}
            () = late => {
                self.is_late = true;
                let timeout = self.sheet.job.runner_info.timeout;
                spool.say(Severity::Error, &format!("The job took longer than GitLab lets it: {timeout} s"));
                self.cancel("it took longer than GitLab lets it");
            }
            () = self.farm.stopping(), if is_waiting => return Next::Later,
        }
        Next::Goes
    }

    /// What the server knows now, a restart must know, too; and the job's time begins.
    fn accepted(&mut self) {
        self.sheet.is_accepted = true;
        if let Err(error) = self.sheet.keep(&self.folder) {
            tracing::warn!(%error, "that GitLab knows that the job runs cannot be written down");
        }
        let timeout = u64::try_from(self.sheet.job.runner_info.timeout).unwrap_or(0);
        if timeout > 0 {
            self.deadline = Some(Instant::now() + Duration::from_secs(timeout));
        }
    }

    /// An event of the job; `None` after the last one.
    async fn hear(&mut self, event: Option<Arc<Record>>, spool: &mut Spool, follower: &mut Option<Follower>) {
        let (Some(event), Some(record)) = (event, self.record.clone()) else {
            *follower = None;
            return;
        };
        spool.tell(&event, &record.log);
        match &event.event {
            JobEvent::FirmwareBooted { .. } | JobEvent::Console { .. } | JobEvent::TimeoutHit { .. } => {
                self.courier.accept();
            }
            JobEvent::Ended { verdict } => {
                self.courier.accept();
                self.end(&record, verdict, spool).await;
            }
            _ => {}
        }
    }

    async fn end(&mut self, record: &Arc<JobRecord>, verdict: &Verdict, spool: &mut Spool) {
        let mut outcome = match self.is_late {
            true => Outcome::too_late(),
            false => Outcome::of(verdict, &self.sheet.job.features),
        };
        if self.sheet.kind == Kind::Script
            && verdict.cause == Cause::Test
            && verdict.status == Status::Fail
            && let Some(code) = exit_code(record)
        {
            outcome.exit_code = code;
        }
        match self.files(record, verdict, &outcome, spool).await {
            Ok(uploads) => self.uploads = uploads,
            Err(error) => spool.say(Severity::Error, &format!("The job's files cannot be written: {error}")),
        }
        spool.finish();
        self.courier.log_is(spool.log());
        self.courier.ended(outcome, self.uploads.len(), Instant::now());
    }

    /// On a thread for it: a console may have a gibibyte.
    async fn files(
        &self,
        record: &Arc<JobRecord>,
        verdict: &Verdict,
        outcome: &Outcome,
        spool: &mut Spool,
    ) -> io::Result<Vec<Upload>> {
        let console = if spool.is_cut() { Console::Cut } else { Console::Shown };
        if self.sheet.job.artifacts.is_empty() && console == Console::Shown {
            return Ok(Vec::new());
        }
        let (job, text, folder) = (self.sheet.job.clone(), self.sheet.text.clone(), self.folder.clone());
        let (record, verdict, outcome) = (Arc::clone(record), verdict.clone(), outcome.clone());
        let environ = super::variables::expanded(&job.variables);
        let mut secrets = forms::secrets(&job, &environ);
        secrets.push(self.sheet.runner_token.clone());
        let write = move || {
            let masker = || Masker::new(secrets.clone(), &job.features.token_mask_prefixes);
            let left = Left { log: &record.log, text: &text, name: &job.job_info.name, verdict: &verdict };
            let files = produce::write(&folder, &left, &masker)?;
            produce::uploads(&folder, &job, &outcome, &files, console)
        };
        let (uploads, missing) = tokio::task::spawn_blocking(write).await.map_err(io::Error::other)??;
        for sentence in missing {
            spool.say(Severity::Warning, &sentence);
        }
        Ok(uploads)
    }

    async fn make(&self, call: &Call, spool: &Spool) -> Answer {
        let job = &self.sheet.job;
        match call {
            Call::Tell(state, log) => self.client.tell(job, state, *log).await,
            Call::Piece { from, length } => match spool.piece(*from, *length) {
                Ok(bytes) => self.client.piece(job, *from, bytes).await,
                Err(error) => {
                    tracing::error!(gitlab_job = job.id, %error, "a job's log cannot be read back");
                    Answer::default()
                }
            },
            Call::Upload(index) => match self.uploads.get(*index) {
                Some(upload) => self.client.upload(job, upload).await,
                None => Answer { status: Some(201), ..Answer::default() },
            },
        }
    }

    /// One that has ended by itself meanwhile needs no cancel.
    fn cancel(&self, why: &str) {
        if let Some(record) = &self.record {
            let by = CancelledBy::Operator(format!("GitLab ({why})"));
            let _ = self.farm.cancel(&record.id, by);
        }
    }
}

/// What the script exited with, by the last line that says so.
fn exit_code(record: &JobRecord) -> Option<i32> {
    let length = record.log.console_length();
    let from = length.saturating_sub(TAIL_BYTES);
    let tail = record.log.console_bytes(from, usize::try_from(length - from).ok()?).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    tail.lines().rev().find_map(|line| line.trim().strip_prefix(EXIT_LINE)?.parse().ok())
}
