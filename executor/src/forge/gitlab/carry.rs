//! One GitLab job: what the farm is handed, how its state and its log are told, which files it leaves. The rest is every forge's (../carry.rs).

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::carry::{End, Errand, InTime, Sheet, own_folder};
use super::cache::Caches;
use super::client::{Client, Upload};
use super::courier::{Answer, Log, Outcome, State};
use super::describe::{self, Described, Kind, Place, Refused};
use super::folder;
use super::forms;
use super::mask::Masker;
use super::produce::{self, ChosenFrom, Console, Left, Meant};
use super::ready::{self, Ready};
use super::register::Wanted;
use super::results::{self, Results};
use super::script::{self, Said};
use super::source;
use super::spool::Spool;
use super::terminal::Session;
use super::trace::{Sections, Teller};
use super::wire::{Cache, Job};
use crate::config::gitlab::CacheLimits;
use crate::farm::{Farm, JobRecord, Submission};
use crate::job_log::Severity;
use crate::verdict::{Cause, Status};

/// A script's exit status is in the last lines of its console.
const TAIL_BYTES: u64 = 64 * 1024;

/// A job that GitLab gave us.
#[derive(Serialize, Deserialize)]
pub(super) struct Taken {
    url: String,
    certificate_authority: Option<PathBuf>,
    log_bytes_max: u64,
    #[serde(default)]
    cache: CacheLimits,
    runner_token: String,
    job: Job,
    kind: Kind,
    /// Where GitLab finds its terminal.
    #[serde(default)]
    pub(super) session: Option<Session>,
}

impl Taken {
    /// What this runner was given, with its token.
    pub(super) fn new(mut job: Job, runner: &Wanted, runner_token: String, session: Option<Session>) -> Taken {
        super::variables::expand_names(&mut job);
        Taken {
            url: runner.instance.url.clone(),
            certificate_authority: runner.instance.certificate_authority.clone(),
            log_bytes_max: runner.instance.log_bytes_max,
            cache: runner.instance.cache,
            runner_token,
            job,
            kind: Kind::Patterns,
            session,
        }
    }

    fn caches(&self, farm: &Farm) -> Caches {
        Caches::of(&farm.forges().state, &self.url, self.cache)
    }

    fn secrets(&self) -> Vec<String> {
        let environ = super::variables::of_job(&self.job);
        forms::secrets(&self.job, &environ).into_iter().chain([self.runner_token.clone()]).collect()
    }
}

impl Errand for Taken {
    type Client = Client;
    type Runner = Wanted;
    type Upload = Upload;
    const FORGE: &'static str = "GitLab";
    /// GitLab's own runner has it so.
    const PIECE_MAX: u64 = 1 << 20;

    fn id(&self) -> u64 {
        self.job.id
    }

    fn url(&self) -> &str {
        &self.url
    }

    fn client(&self) -> Result<Client, String> {
        Client::new(&self.url, self.certificate_authority.as_deref())
    }

    fn timeout(&self) -> Option<Duration> {
        let timeout_s = u64::try_from(self.job.runner_info.timeout).unwrap_or(0);
        (timeout_s > 0).then(|| Duration::from_secs(timeout_s))
    }

    fn log_bytes_max(&self) -> u64 {
        self.log_bytes_max
    }

    fn masker(&self) -> Masker {
        Masker::new(self.secrets(), &self.job.features.token_mask_prefixes)
    }

    fn teller(&self, text: &str) -> Teller {
        let sections = if self.job.features.trace_sections { Sections::Folded } else { Sections::Unknown };
        Teller::new(sections, text)
    }

    fn misconfigured(&self) -> Outcome {
        Outcome::misconfigured(&self.job.features)
    }

    fn lost(&self) -> Outcome {
        Outcome::lost()
    }

    async fn prepare(
        sheet: &mut Sheet<Taken>,
        farm: &Farm,
        client: &Client,
        runner: &Wanted,
    ) -> Result<Submission, Outcome> {
        let job = &sheet.errand.job;
        let dut = match &runner.target.id {
            Some(id) => farm.dut(id).await.map(|dut| dut.full_name),
            None => None,
        };
        let forges = farm.forges();
        let tags = match &runner.target.id {
            Some(id) => forges.duts.iter().find(|dut| dut.id == *id).map(|dut| dut.tags.clone()),
            None => runner.target.tags.clone(),
        };
        let architecture = tags.unwrap_or_default().iter().find_map(|tag| tag.strip_prefix("arch:").map(str::to_owned));
        let sha = job.git_info.sha.get(..8).unwrap_or(&job.git_info.sha);
        let hello = format!("GitLab's job {} of {} at {sha}", job.id, job.job_info.project_full_path);
        let hello = format!("wharf {} of the farm {} takes {hello}", env!("CARGO_PKG_VERSION"), farm.name());
        sheet.said.push((Severity::Info, hello));
        let folder = own_folder(farm, &sheet.errand).join("begins-with");
        if let Err(error) = std::fs::create_dir_all(&folder) {
            sheet.said.push((Severity::Error, format!("the farm cannot make a folder for the job's files: {error}")));
            return Err(sheet.errand.lost());
        }
        let who = format!("GitLab job {} of {}", job.id, job.job_info.project_full_path);
        let elsewhere = farm.descriptions_for(who, &source::subject(runner, Some(job.job_info.project_id)));
        let images = farm.images();
        let caches = sheet.errand.caches(farm);
        let place = Place { dut, elsewhere: &elsewhere, images, architecture, caches: &caches, folder: &folder };
        let limits = runner.instance.checkout;
        let describing = async {
            let described = folder::within(&folder, limits, describe::describe(client, job, runner, place)).await;
            described.unwrap_or_else(|over| Err(over.into()))
        };
        let Described { source_name, text, environ, attachments, said, notes, groups, member, kind } =
            match ready::telling(client, job, describing).await {
                Ready::Done(Ok(described)) => described,
                Ready::Done(Err(Refused { why, blame })) => {
                    folder::remove(folder).await;
                    sheet.said.push((Severity::Error, why));
                    return Err(blame.outcome(&sheet.errand.job.features));
                }
                Ready::Cancelled => {
                    folder::remove(folder).await;
                    sheet.said.push((Severity::Error, "Cancelled in GitLab before the farm had it".to_owned()));
                    return Err(sheet.errand.lost());
                }
            };
        sheet.said.push((Severity::Info, format!("The job description is {source_name}")));
        sheet.said.extend(said.into_iter().map(|line| (Severity::Info, line)));
        sheet.said.extend(notes.into_iter().map(|note| (Severity::Warning, note)));
        sheet.errand.kind = kind;
        if let Err(why) = farm.may_join(&groups, member.as_ref()) {
            sheet.said.push((Severity::Error, why));
            return Err(sheet.errand.misconfigured());
        }
        let job = &sheet.errand.job;
        Ok(Submission {
            source_name,
            text,
            target: Some(runner.target.clone()),
            environ,
            groups,
            attachments,
            priority: runner.priority,
            submitter: format!("GitLab job {} of {}", job.id, job.job_info.project_full_path),
            subject: source::subject(runner, Some(job.job_info.project_id)),
            ..Submission::default()
        })
    }

    async fn end(sheet: &Sheet<Taken>, end: End<'_>, spool: &mut Spool) -> (Outcome, Vec<Upload>) {
        let mut outcome = match end.in_time {
            InTime::No => Outcome::too_late(),
            InTime::Yes => Outcome::of(end.verdict, &sheet.errand.job.features),
        };
        if let Kind::Script { nonce, .. } = &sheet.errand.kind
            && end.verdict.cause == Cause::Test
            && end.verdict.status == Status::Fail
        {
            match script::end(&tail(end.record), nonce) {
                Some(Said::Exit(code)) => {
                    spool.say(Severity::Error, &format!("The script ended with exit status {code}"));
                    outcome.exit_code = code;
                }
                Some(Said::Broken(why)) => {
                    spool.say(Severity::Error, &format!("It was not the script that failed: {why}"));
                    outcome = Outcome::lost();
                }
                None => {}
            }
        }
        let uploads = files(sheet, &end, &outcome, spool).await.unwrap_or_else(|error| {
            spool.say(Severity::Error, &format!("The job's files cannot be written: {error}"));
            if outcome.failure_reason.is_none() {
                outcome = Outcome::lost();
            }
            Vec::new()
        });
        (outcome, uploads)
    }

    fn length(spool: &Spool) -> Log {
        spool.log()
    }

    async fn tell(sheet: &Sheet<Taken>, client: &Client, state: &State, log: Log, _: &Spool) -> Answer {
        client.tell(&sheet.errand.job, state, log).await
    }

    async fn piece(sheet: &Sheet<Taken>, client: &Client, from: u64, length: u64, spool: &Spool) -> io::Result<Answer> {
        Ok(client.piece(&sheet.errand.job, from, spool.piece(from, length)?).await)
    }

    async fn upload(&self, client: &Client, upload: &Upload) -> Answer {
        client.upload(&self.job, upload).await
    }

    fn lost_upload(&self, upload: &Upload, answer: &Answer) -> (String, Outcome) {
        let why = match answer.status {
            None => "it cannot be reached".to_owned(),
            Some(413) => "they are larger than it lets them be (Maximum artifacts size, in its settings)".to_owned(),
            Some(status) if answer.said.is_empty() => format!("it answered {status}"),
            Some(status) => format!("it answered {status}, {}", answer.said),
        };
        let bytes = upload.path.metadata().map_or(0, |it| it.len());
        let why = format!("GitLab did not take {} ({}, {bytes} bytes): {why}", upload.name, upload.kind);
        // With GitLab's own runner such a job fails, too.
        let outcome = match answer.status {
            Some(400..=499) => Outcome { failure_reason: Some("script_failure".to_owned()), exit_code: 1 },
            _ => Outcome::lost(),
        };
        (why, outcome)
    }
}

/// What is uploaded; what its caches have is kept on the way.
async fn files(sheet: &Sheet<Taken>, end: &End<'_>, outcome: &Outcome, spool: &mut Spool) -> io::Result<Vec<Upload>> {
    let console = if spool.is_cut() { Console::Cut } else { Console::Shown };
    let errand = &sheet.errand;
    let job = &errand.job;
    let to_cache: Vec<Cache> =
        job.cache.iter().filter(|entry| entry.pushes() && outcome.uploads(&entry.when)).cloned().collect();
    if job.artifacts.is_empty() && to_cache.is_empty() && console == Console::Shown {
        return Ok(Vec::new());
    }
    let environ = super::variables::of_job(job);
    let project_dir = environ.get("CI_PROJECT_DIR").cloned().unwrap_or_default();
    let artifacts = Meant::by_artifacts(job, &project_dir);
    let (mut results, mut archive, mut tracked) = (Results::default(), None, BTreeSet::new());
    match &errand.kind {
        Kind::Patterns => {}
        Kind::Script { tracked: of_git, .. } => {
            tracked.clone_from(of_git);
            archive = results::fetch(end.farm, end.record, end.folder).await?;
        }
        Kind::Folder { below, tracked: of_git } => {
            tracked.clone_from(of_git);
            let cached = Meant::by_caches(&to_cache, &project_dir);
            let is_wanted = |name: &str| artifacts.has(name) || cached.has(name);
            let folder = end.folder.join("results");
            results.files = results::of_folder(end.farm, end.record, &folder, below, is_wanted).await?;
        }
    }
    let (job, text, folder) = (job.clone(), sheet.text.clone(), end.folder.to_owned());
    let (record, verdict, outcome) = (Arc::clone(end.record), end.verdict.clone(), outcome.clone());
    let (secrets, caches) = (errand.secrets(), errand.caches(end.farm));
    // On a thread for it: a console may have a gibibyte.
    let write = move || {
        let masker = || Masker::new(secrets.clone(), &job.features.token_mask_prefixes);
        let left = Left { log: &record.log, text: &text, name: &job.job_info.name, verdict: &verdict };
        let mut files = produce::write(&folder, &left, &masker)?;
        if let Some(archive) = archive {
            results = results::unpack(&archive, &folder.join("results"), |name| artifacts.has(name))?;
        }
        let has_too_much = results.has_too_much_to_cache;
        files.extend(results.files);
        let chosen_from = ChosenFrom { files: &files, tracked: &tracked, project_dir: &project_dir };
        let mut said = Vec::new();
        for entry in to_cache {
            let chosen = chosen_from.choose(&entry.paths, &[], entry.untracked.into());
            said.push(match has_too_much {
                true => Err(format!("cache: `{}` is not kept: there are too many files, or too large ones", entry.key)),
                false => caches.keep(&job, &entry, &chosen),
            });
        }
        let (uploads, missing) = produce::uploads(&folder, &job, &outcome, &chosen_from, console)?;
        said.extend(missing.into_iter().map(Err));
        io::Result::Ok((uploads, said))
    };
    let (uploads, said) = tokio::task::spawn_blocking(write).await.map_err(io::Error::other)??;
    for sentence in said {
        match sentence {
            Ok(sentence) => spool.say(Severity::Info, &sentence),
            Err(sentence) => spool.say(Severity::Warning, &sentence),
        }
    }
    Ok(uploads)
}

/// The last that the console said.
fn tail(record: &JobRecord) -> String {
    let length = record.log.console_length();
    let from = length.saturating_sub(TAIL_BYTES);
    let tail = usize::try_from(length - from).ok().and_then(|count| record.log.console_bytes(from, count).ok());
    String::from_utf8_lossy(&tail.unwrap_or_default()).into_owned()
}
