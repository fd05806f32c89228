//! One job of a forge: handed to the farm, its log told while it runs, its verdict at the end. What differs between forges is an [`Errand`].
//!
//! ```text
//!  <state>/<forge>/<host>-<id>/sheet.json   what was taken, with its token (mode 0600), until the forge knows the end
//!                              log          masked (spool.rs)
//!
//!  taken ─► prepared ─► Farm::submit ─► loop: events ─► spool ─► courier ─► errand's calls ─► answers ─► courier … ─► Over
//!                                               └ FirmwareBooted, console, end: accepted
//!  at the start of the farm: each sheet is taken up again; the log is made again from the job's events, and goes on where the forge has it
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::courier::{Answer, Call, Courier, Heard, Log, Order, Outcome, State};
use super::kept::keep;
use super::mask::Masker;
use super::spool::Spool;
use super::trace::Teller;
use crate::farm::{CancelledBy, Farm, JobRecord, JobState, Submission, SubmitError};
use crate::job_log::{Follower, JobEvent, Record, Severity};
use crate::verdict::Verdict;

/// Events that are written between two looks at what is to be told: a console that floods must not keep a cancel waiting.
const EVENTS_AT_ONCE: usize = 500;
/// What a forge's jobs are kept in.
const SHEET: &str = "sheet.json";

/// A job of a forge, as it outlives the process, and how its forge is spoken to.
pub(super) trait Errand: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Speaks to the instance.
    type Client: Send + Sync;
    /// Which runner took it: asked once, before the job is the farm's.
    type Runner: Send + Sync + 'static;
    /// A file to upload.
    type Upload: Send + Sync;
    /// What people call the forge.
    const FORGE: &'static str;
    /// Of one piece of the log.
    const PIECE_MAX: u64;

    /// Its number on its instance.
    fn id(&self) -> u64;
    /// Its instance.
    fn url(&self) -> &str;
    /// Who speaks to that.
    fn client(&self) -> Result<Self::Client, String>;
    /// How long it may take once it runs.
    fn timeout(&self) -> Option<Duration>;
    /// Of its log, so much goes to the forge.
    fn log_bytes_max(&self) -> u64;
    /// What nobody may read.
    fn masker(&self) -> Masker;
    /// How its log looks; `text` is the job description.
    fn teller(&self, text: &str) -> Teller;
    /// How it ends when it was wrong.
    fn misconfigured(&self) -> Outcome;
    /// How it ends when the farm lost it.
    fn lost(&self) -> Outcome;
    /// What the farm is handed; what was said of it on the way goes into the sheet.
    fn prepare(
        sheet: &mut Sheet<Self>,
        farm: &Farm,
        client: &Self::Client,
        runner: &Self::Runner,
    ) -> impl Future<Output = Result<Submission, Outcome>> + Send;
    /// How it ended, and what is uploaded.
    fn end(
        sheet: &Sheet<Self>,
        end: End<'_>,
        spool: &mut Spool,
    ) -> impl Future<Output = (Outcome, Vec<Self::Upload>)> + Send;
    /// How long its log is, in what the forge counts.
    fn length(spool: &Spool) -> Log;
    /// Tells its state.
    fn tell(
        sheet: &Sheet<Self>,
        client: &Self::Client,
        state: &State,
        log: Log,
        spool: &Spool,
    ) -> impl Future<Output = Answer> + Send;
    /// Sends a piece of its log; the error is the file's.
    fn piece(
        sheet: &Sheet<Self>,
        client: &Self::Client,
        from: u64,
        length: u64,
        spool: &Spool,
    ) -> impl Future<Output = io::Result<Answer>> + Send;
    /// Uploads a file.
    fn upload(&self, client: &Self::Client, upload: &Self::Upload) -> impl Future<Output = Answer> + Send;
    /// What is said of an upload that is lost, and how a job ends that would have succeeded.
    fn lost_upload(&self, upload: &Self::Upload, answer: &Answer) -> (String, Outcome);
}

/// How a job ended on the farm.
pub(super) struct End<'a> {
    pub farm: &'a Farm,
    pub record: &'a Arc<JobRecord>,
    pub verdict: &'a Verdict,
    pub in_time: InTime,
    /// The job's own folder.
    pub folder: &'a Path,
}

/// Whether the forge's limit was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InTime {
    Yes,
    No,
}

/// What of a job outlives the process.
#[derive(Serialize, Deserialize)]
#[serde(bound = "E: Errand")]
pub(super) struct Sheet<E: Errand> {
    pub errand: E,
    /// Its number in the farm, once it has one.
    pub farm_job: Option<String>,
    /// The job description.
    pub text: String,
    /// What was said before the farm had it.
    pub said: Vec<(Severity, String)>,
    /// Since when the forge knows that it runs.
    pub accepted: Option<Timestamp>,
}

/// All jobs that are carried.
#[derive(Default)]
pub struct Carriers(Mutex<JoinSet<()>>);

impl Carriers {
    /// Carries a job; `taken` hears when the farm has it, or will not have it.
    pub(super) fn begin<E: Errand>(&self, farm: &Weak<Farm>, errand: E, runner: E::Runner, taken: oneshot::Sender<()>) {
        let Some(farm) = farm.upgrade() else { return };
        self.lock().spawn(begin(farm, errand, runner, taken));
    }

    /// Takes up what an earlier run of the farm had taken and kept in its folder.
    pub(super) fn resume<E: Errand>(&self, farm: &Arc<Farm>) {
        for entry in fs::read_dir(folder_of(&farm.forges().state, E::FORGE)).into_iter().flatten().flatten() {
            let folder = entry.path();
            match fs::read(folder.join(SHEET)).and_then(|text| Ok(serde_json::from_slice::<Sheet<E>>(&text)?)) {
                Ok(sheet) => drop(self.lock().spawn(resume(Arc::clone(farm), sheet, folder))),
                Err(error) => {
                    tracing::warn!(path = %folder.display(), %error, "a job of {} of before the restart cannot be read", E::FORGE);
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

/// The jobs that are carried now, as they are kept in this folder.
pub(super) fn sheets<E: Errand>(folder: &Path) -> impl Iterator<Item = Sheet<E>> + use<E> {
    let folders = fs::read_dir(folder).into_iter().flatten().flatten();
    folders.filter_map(|entry| serde_json::from_slice(&fs::read(entry.path().join(SHEET)).ok()?).ok())
}

/// Where the jobs of a forge are kept.
pub(super) fn folder_of(state: &Path, forge: &str) -> PathBuf {
    state.join(forge.to_ascii_lowercase())
}

/// Where one of them is kept, with whatever its errand puts there, until the forge knows the end.
pub(super) fn own_folder<E: Errand>(farm: &Farm, errand: &E) -> PathBuf {
    let host = errand.url().split_once("://").map_or("", |(_, host)| host).replace([':', '/'], "_");
    folder_of(&farm.forges().state, E::FORGE).join(format!("{host}-{}", errand.id()))
}

async fn begin<E: Errand>(farm: Arc<Farm>, errand: E, runner: E::Runner, told: oneshot::Sender<()>) {
    let folder = own_folder(&farm, &errand);
    if folder.join(SHEET).exists() {
        // Forgejo gives a job again whose first answer it believes lost.
        return tracing::info!(forge_job = errand.id(), "{} gave a job again that is here already", E::FORGE);
    }
    tracing::info!(forge_job = errand.id(), "{} gave a job", E::FORGE);
    let client = match errand.client() {
        Ok(client) => client,
        Err(error) => return tracing::warn!(forge_job = errand.id(), "{error}"),
    };
    let mut sheet = Sheet { errand, farm_job: None, text: String::new(), said: Vec::new(), accepted: None };
    if let Err(error) = sheet.keep(&folder) {
        tracing::error!(path = %folder.display(), %error, "a job of {0} cannot be kept: {0} will give up on it", E::FORGE);
        return;
    }
    let submitted = submit(&farm, &client, &runner, &mut sheet).await;
    let kept = sheet.keep(&folder);
    let _ = told.send(());
    if let (Err(error), Ok(record)) = (kept, &submitted) {
        tracing::error!(path = %folder.display(), %error, job = record.id, "a job of {} cannot be kept; a restart will not know it", E::FORGE);
    }
    let (record, outcome) = match submitted {
        Ok(record) => (Some(record), None),
        Err(outcome) => (None, Some(outcome)),
    };
    let carrier = Carrier::new(farm, client, sheet, folder, record, Courier::new(E::PIECE_MAX));
    carrier.run(outcome).await;
}

/// Hands the job in. `Err`: how it ends, as it never will be.
async fn submit<E: Errand>(
    farm: &Arc<Farm>,
    client: &E::Client,
    runner: &E::Runner,
    sheet: &mut Sheet<E>,
) -> Result<Arc<JobRecord>, Outcome> {
    let submission = E::prepare(sheet, farm, client, runner).await?;
    sheet.text.clone_from(&submission.text);
    match farm.submit(submission).await {
        Ok(record) => {
            sheet.farm_job = Some(record.id.clone());
            sheet.said.push((Severity::Info, format!("It is job {} of the farm", record.id)));
            Ok(record)
        }
        Err(error) => {
            sheet.said.push((Severity::Error, error.to_string()));
            Err(match error {
                SubmitError::Farm(_) | SubmitError::Busy { .. } => sheet.errand.lost(),
                _ => sheet.errand.misconfigured(),
            })
        }
    }
}

async fn resume<E: Errand>(farm: Arc<Farm>, mut sheet: Sheet<E>, folder: PathBuf) {
    let client = match sheet.errand.client() {
        Ok(client) => client,
        Err(error) => return tracing::warn!(forge_job = sheet.errand.id(), "{error}"),
    };
    let record = sheet.farm_job.as_ref().and_then(|id| farm.job(id));
    let outcome = record.is_none().then(|| {
        sheet.said.push((Severity::Error, "The farm was restarted before it had the job".to_owned()));
        sheet.errand.lost()
    });
    let courier = if sheet.accepted.is_some() { Courier::resumed(E::PIECE_MAX) } else { Courier::new(E::PIECE_MAX) };
    let carrier = Carrier::new(farm, client, sheet, folder, record, courier);
    carrier.run(outcome).await;
}

impl<E: Errand> Sheet<E> {
    /// Written whole or not at all.
    fn keep(&self, folder: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        keep(&folder.join(SHEET), self)
    }

    /// When its forge's limit is reached: a restart gives it no more time.
    fn deadline(&self) -> Option<Instant> {
        let passed = Duration::try_from(Timestamp::now().duration_since(self.accepted?)).unwrap_or_default();
        Some(Instant::now() + self.errand.timeout()?.saturating_sub(passed))
    }
}

/// One job on its way.
struct Carrier<E: Errand> {
    farm: Arc<Farm>,
    client: E::Client,
    sheet: Sheet<E>,
    folder: PathBuf,
    record: Option<Arc<JobRecord>>,
    courier: Courier,
    uploads: Vec<E::Upload>,
    /// When the forge's own limit for the job is reached.
    deadline: Option<Instant>,
    in_time: InTime,
}

/// Whether a job is still told of.
enum Next {
    Goes,
    Done,
    /// The farm stops: the rest is told after its next start.
    Later,
}

impl<E: Errand> Carrier<E> {
    fn new(
        farm: Arc<Farm>,
        client: E::Client,
        sheet: Sheet<E>,
        folder: PathBuf,
        record: Option<Arc<JobRecord>>,
        courier: Courier,
    ) -> Carrier<E> {
        let (uploads, deadline, in_time) = (Vec::new(), sheet.deadline(), InTime::Yes);
        Carrier { farm, client, sheet, folder, record, courier, uploads, deadline, in_time }
    }

    /// Until the forge knows the end, or wants to know nothing any more.
    async fn run(mut self, outcome: Option<Outcome>) {
        let errand = &self.sheet.errand;
        let (teller, masker) = (errand.teller(&self.sheet.text), errand.masker());
        let mut spool = match Spool::create(&self.folder.join("log"), teller, masker, errand.log_bytes_max()) {
            Ok(spool) => spool,
            Err(error) => {
                tracing::error!(path = %self.folder.display(), %error, "a job's log for {} cannot be written; the job is cancelled", E::FORGE);
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
        self.courier.log_is(E::length(&spool));
        let mut follower = self.record.as_ref().map(|record| record.log.follow(0));
        // After a restart the forge may have more of the log than a part of the events makes.
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
            tracing::warn!(path = %self.folder.display(), %error, "what was kept of a job of {} cannot be removed", E::FORGE);
        }
    }

    async fn step(&mut self, spool: &mut Spool, follower: &mut Option<Follower>) -> Next {
        for _ in 0..EVENTS_AT_ONCE {
            match follower.as_mut().and_then(|follower| follower.next().now_or_never()) {
                Some(event) => self.hear(event, spool, follower).await,
                None => break,
            }
        }
        self.courier.log_is(E::length(spool));
        if self.sheet.accepted.is_none() && self.courier.is_accepted() {
            self.accepted();
        }
        match self.courier.next(Instant::now()) {
            Order::Call(call) => {
                let answer = self.make(&call, spool).await;
                if answer.status.is_some_and(|status| !(200..300).contains(&status)) {
                    tracing::debug!(
                        forge_job = self.sheet.errand.id(),
                        ?call,
                        ?answer,
                        "{} did not simply agree",
                        E::FORGE
                    );
                }
                if self.courier.answered(&call, &answer, Instant::now()) == Heard::UploadLost {
                    self.lost(&call, &answer, spool);
                }
                Next::Goes
            }
            Order::Wait(until) => self.wait(until, spool, follower).await,
            Order::Cancel => {
                self.cancel(&format!("cancelled in {}", E::FORGE));
                Next::Goes
            }
            Order::Stop => {
                tracing::info!(forge_job = self.sheet.errand.id(), "{} has let go of the job", E::FORGE);
                self.cancel(&format!("{} has cancelled it, or let go of it", E::FORGE));
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
            match self.deadline.filter(|_| self.in_time == InTime::Yes) {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        let is_waiting = self.record.as_ref().is_some_and(|record| record.state() == JobState::Queued);
        tokio::select! {
            event = event => self.hear(event, spool, follower).await,
            () = tokio::time::sleep_until(until.into()) => {}
            () = late => {
                self.in_time = InTime::No;
                let timeout_s = self.sheet.errand.timeout().unwrap_or_default().as_secs();
                spool.say(Severity::Error, &format!("The job took longer than {} lets it: {timeout_s} s", E::FORGE));
                self.cancel(&format!("it took longer than {} lets it", E::FORGE));
            }
            () = self.farm.stopping(), if is_waiting => return Next::Later,
        }
        Next::Goes
    }

    /// A job whose files are not where its pipeline looks for them has not succeeded.
    fn lost(&mut self, call: &Call, answer: &Answer, spool: &mut Spool) {
        let Call::Upload(index) = call else { return };
        let Some(upload) = self.uploads.get(*index) else { return };
        let (why, outcome) = self.sheet.errand.lost_upload(upload, answer);
        spool.say(Severity::Error, &why);
        spool.finish();
        self.courier.log_is(E::length(spool));
        self.courier.fails(outcome);
    }

    /// What the server knows now, a restart must know, too; and the job's time begins.
    fn accepted(&mut self) {
        self.sheet.accepted = Some(Timestamp::now());
        if let Err(error) = self.sheet.keep(&self.folder) {
            tracing::warn!(%error, "that {} knows that the job runs cannot be written down", E::FORGE);
        }
        self.deadline = self.sheet.deadline();
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
                let end =
                    End { farm: &self.farm, record: &record, verdict, in_time: self.in_time, folder: &self.folder };
                let (outcome, uploads) = E::end(&self.sheet, end, spool).await;
                self.uploads = uploads;
                spool.finish();
                self.courier.log_is(E::length(spool));
                self.courier.ended(outcome, self.uploads.len(), Instant::now());
            }
            _ => {}
        }
    }

    async fn make(&self, call: &Call, spool: &Spool) -> Answer {
        match call {
            Call::Tell(state, log) => E::tell(&self.sheet, &self.client, state, *log, spool).await,
            Call::Piece { from, length } => {
                let sent = E::piece(&self.sheet, &self.client, *from, *length, spool).await;
                sent.unwrap_or_else(|error| {
                    tracing::error!(forge_job = self.sheet.errand.id(), %error, "a job's log cannot be read back");
                    Answer::default()
                })
            }
            Call::Upload(index) => match self.uploads.get(*index) {
                Some(upload) => self.sheet.errand.upload(&self.client, upload).await,
                None => Answer { status: Some(201), ..Answer::default() },
            },
        }
    }

    /// One that has ended by itself meanwhile needs no cancel.
    fn cancel(&self, why: &str) {
        if let Some(record) = &self.record {
            let by = CancelledBy::Operator(format!("{} ({why})", E::FORGE));
            let _ = self.farm.cancel(&record.id, by);
        }
    }
}
