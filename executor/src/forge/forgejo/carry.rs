//! One task of Forgejo or Gitea: what the farm is handed, how its state and its log are told. The rest is every forge's (../carry.rs).
//!
//! | the courier's word | here |
//! |---|---|
//! | PUT pending, PUT running | `UpdateTask` without a result: a task runs from the moment it is given |
//! | a piece of the log | `UpdateLog`, rows; the answer says how many the server has |
//! | the last word | `UpdateLog` with the last row and `noMore`, then `UpdateTask` with the result and the outputs |
//! | `canceling` | the server has a result, and we told none: somebody cancelled the task, or it has given up on it |

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::carry::{End, Errand, InTime, Sheet};
use super::super::courier::{Answer, Log, Outcome, State};
use super::super::mask::Masker;
use super::super::spool::Spool;
use super::super::trace::{Sections, Teller};
use super::client::Client;
use super::register::Wanted;
use super::source;
use super::wire::{self, Account, More, Progress, Task};
use super::workflow::{self, Form};
use crate::farm::{Descriptions, Farm, Submission};
use crate::job_log::Severity;
use crate::verdict::{Cause, Status};

/// Of one `UpdateLog`: a server parses it whole.
const ROWS_BYTES_MAX: usize = 512 << 10;
/// What scripts run in.
const SCRIPT_JOB: &str = include_str!("../../../../fixtures/jobs/good/forgejo-script.yml");
/// A job description, as the API takes them.
const TEXT_BYTES_MAX: usize = 256 * 1024;

/// A task that we were given.
#[derive(Serialize, Deserialize)]
pub(super) struct Taken {
    url: String,
    certificate_authority: Option<PathBuf>,
    log_bytes_max: u64,
    account: Account,
    task: Task,
    at: Timestamp,
    /// What its author and the farm file let it take.
    timeout: Duration,
}

impl Taken {
    /// What this runner was given just now.
    pub(super) fn new(task: Task, runner: &Wanted, account: Account) -> Taken {
        Taken {
            url: runner.instance.url.clone(),
            certificate_authority: runner.instance.certificate_authority.clone(),
            log_bytes_max: runner.instance.log_bytes_max,
            account,
            task,
            at: Timestamp::now(),
            timeout: runner.instance.maximum_timeout,
        }
    }

    /// What is told of it while it has no result.
    fn progress(&self, sheet: &Sheet<Taken>, log: Log) -> Progress<'static> {
        // What was said before the farm had it is no step's.
        let before: usize = sheet.said.iter().map(|(_, text)| text.lines().count()).sum();
        let log_index = log.length.min(before as u64);
        let (task, started, steps) = (self.task.id, self.at, workflow::steps(&self.task));
        Progress { task, started, result: None, steps, log_index, log_length: log.length - log_index }
    }

    async fn call(&self, client: &Client, method: &str, body: &Value) -> Result<Value, Answer> {
        client.call(method, Some(&self.account), None, body).await.map_err(|refusal| {
            tracing::debug!(forge_job = self.task.id, "{}", refusal.why);
            // A log that is closed has all that it will ever have.
            if refusal.code == "already_exists" { done() } else { refusal.answer() }
        })
    }

    /// The last row, and that no more comes; then how it ended.
    async fn last_word(
        &self,
        sheet: &Sheet<Taken>,
        client: &Client,
        outcome: &Outcome,
        log: Log,
        spool: &Spool,
    ) -> Answer {
        let last = match spool.rows(log.length, 1, ROWS_BYTES_MAX) {
            Ok(rows) => wire::rows(self.task.id, log.length, &rows, More::No),
            Err(error) => {
                tracing::error!(forge_job = self.task.id, %error, "a job's log cannot be read back");
                wire::rows(self.task.id, log.length, &[], More::No)
            }
        };
        if let Err(answer) = self.call(client, "UpdateLog", &last).await
            && answer != done()
        {
            return answer;
        }
        let result = outcome.failure_reason.as_deref().unwrap_or(wire::SUCCESS);
        let whole = Log { length: log.length + 1, ..log };
        let progress = Progress { result: Some((result, Timestamp::now())), ..self.progress(sheet, whole) };
        let update = wire::update(&progress, &self.outputs(outcome));
        self.call(client, "UpdateTask", &update).await.map_or_else(|answer| answer, |_| done())
    }

    fn outputs(&self, outcome: &Outcome) -> BTreeMap<String, String> {
        let verdict = Status::ALL.iter().find(|status| i32::from(status.exit_status()) == outcome.exit_code);
        let verdict = verdict.map(|status| status.name().to_owned());
        let left = verdict.map(|verdict| ("verdict".to_owned(), verdict)).into_iter().collect();
        let told = workflow::asked(&self.task).and_then(|asked| asked.told(&self.task, &left));
        told.unwrap_or_default()
    }
}

/// The answer to a call that was done.
fn done() -> Answer {
    Answer { status: Some(200), ..Answer::default() }
}

impl Errand for Taken {
    type Client = Client;
    type Runner = Wanted;
    type Upload = ();
    const FORGE: &'static str = "Forgejo";
    /// Rows; a serial line at 115,200 baud says so many in some seconds.
    const PIECE_MAX: u64 = 1000;

    fn id(&self) -> u64 {
        self.task.id
    }

    fn url(&self) -> &str {
        &self.url
    }

    fn client(&self) -> Result<Client, String> {
        Client::new(&self.url, self.certificate_authority.as_deref())
    }

    fn timeout(&self) -> Option<Duration> {
        Some(self.timeout)
    }

    fn log_bytes_max(&self) -> u64 {
        self.log_bytes_max
    }

    fn masker(&self) -> Masker {
        Masker::new(self.task.secret_values().into_iter().chain([self.account.token.clone()]), &[])
    }

    fn teller(&self, text: &str) -> Teller {
        Teller::new(Sections::Groups, text)
    }

    fn misconfigured(&self) -> Outcome {
        failed(Status::SetupFail)
    }

    fn lost(&self) -> Outcome {
        failed(Status::SetupFail)
    }

    async fn prepare(
        sheet: &mut Sheet<Taken>,
        farm: &Farm,
        client: &Client,
        runner: &Wanted,
    ) -> Result<Submission, Outcome> {
        let task = &sheet.errand.task;
        let (repository, sha) = (task.said("repository").to_owned(), task.said("sha"));
        let hello = format!("task {} of {repository} at {}", task.id, sha.get(..8).unwrap_or(sha));
        let hello = format!("wharf {} of the farm {} takes {hello}", env!("CARGO_PKG_VERSION"), farm.name());
        sheet.said.push((Severity::Info, hello));
        let asked = match workflow::asked(task) {
            Ok(asked) => asked,
            Err(why) => return Err(refused(sheet, why)),
        };
        let (submitter, subject) =
            (format!("Forgejo task {} of {repository}", task.id), source::subject(runner, Some(task)));
        let elsewhere = farm.descriptions_for(submitter.clone(), &subject);
        let (source_name, text, script) = match described(client, runner, task, &asked.form, &elsewhere).await {
            Ok(described) => described,
            Err(why) => return Err(refused(sheet, why)),
        };
        sheet.said.push((Severity::Info, format!("The job description is {source_name}")));
        let mut environ = asked.environ;
        if let Some(script) = script {
            environ.insert("WHARF_SCRIPT".to_owned(), script);
            environ.insert("WHARF_NONCE".to_owned(), format!("{:016x}", rand::random::<u64>()));
        }
        sheet.errand.timeout = sheet.errand.timeout.min(asked.timeout.unwrap_or(Duration::MAX));
        Ok(Submission {
            source_name,
            text,
            target: Some(runner.target.clone()),
            environ,
            priority: runner.runner.priority,
            submitter,
            subject,
            ..Submission::default()
        })
    }

    async fn end(_: &Sheet<Taken>, end: End<'_>, _: &mut Spool) -> (Outcome, Vec<()>) {
        let verdict = end.verdict;
        let outcome = match (verdict.status, verdict.cause, end.in_time) {
            (Status::Pass, _, InTime::Yes) => {
                Outcome { failure_reason: None, exit_code: i32::from(Status::Pass.exit_status()) }
            }
            (status, Cause::Cancelled, InTime::Yes) => {
                Outcome { failure_reason: Some(wire::CANCELLED.to_owned()), ..failed(status) }
            }
            (status, ..) => failed(status),
        };
        (outcome, Vec::new())
    }

    fn length(spool: &Spool) -> Log {
        // The last row goes with the last word: older servers close a log only together with a row.
        Log { crc32: 0, length: spool.rows_before_last() }
    }

    async fn tell(sheet: &Sheet<Taken>, client: &Client, state: &State, log: Log, spool: &Spool) -> Answer {
        let errand = &sheet.errand;
        if let State::Final(outcome) = state {
            return errand.last_word(sheet, client, outcome, log, spool).await;
        }
        let update = wire::update(&errand.progress(sheet, log), &BTreeMap::new());
        match errand.call(client, "UpdateTask", &update).await {
            Ok(answer) => {
                let job_status = if wire::result_of(&answer).is_some() { "canceling" } else { "running" };
                Answer { job_status: Some(job_status.to_owned()), ..done() }
            }
            Err(answer) => answer,
        }
    }

    async fn piece(sheet: &Sheet<Taken>, client: &Client, from: u64, length: u64, spool: &Spool) -> io::Result<Answer> {
        let rows = spool.rows(from, length, ROWS_BYTES_MAX)?;
        let body = wire::rows(sheet.errand.task.id, from, &rows, More::May);
        Ok(match sheet.errand.call(client, "UpdateLog", &body).await {
            Ok(answer) => Answer { range_end: Some(wire::acknowledged(&answer)), ..done() },
            Err(answer) => answer,
        })
    }

    async fn upload(&self, _: &Client, (): &()) -> Answer {
        done()
    }

    fn lost_upload(&self, (): &(), _: &Answer) -> (String, Outcome) {
        ("Files are not uploaded".to_owned(), self.lost())
    }
}

fn failed(status: Status) -> Outcome {
    Outcome { failure_reason: Some(wire::FAILURE.to_owned()), exit_code: i32::from(status.exit_status()) }
}

fn refused(sheet: &mut Sheet<Taken>, why: String) -> Outcome {
    sheet.said.push((Severity::Error, why));
    sheet.errand.misconfigured()
}

/// The description's name, its text, and the script that it runs.
async fn described(
    client: &Client,
    runner: &Wanted,
    task: &Task,
    form: &Form,
    elsewhere: &Descriptions,
) -> Result<(String, String, Option<String>), String> {
    let (name, bytes) = match form {
        Form::Script(script) => {
            let own = || ("run:".to_owned(), SCRIPT_JOB.to_owned());
            let (name, text) = runner.instance.script_job.clone().unwrap_or_else(own);
            return Ok((name, text, Some(script.clone())));
        }
        Form::Text(text) => return Ok(("with: job".to_owned(), text.clone(), None)),
        Form::File(path) => {
            let (repository, sha) = (task.said("repository"), task.said("sha"));
            let fetched = client.file(repository, path, sha, task.said("token"), TEXT_BYTES_MAX).await;
            let hint = "is it there at this commit, and may the task's token read the repository?";
            (path, fetched.map_err(|error| format!("cannot fetch `{path}` of the repository: {error}; {hint}"))?)
        }
        Form::Url(url) => (url, client.fetch_url(url, elsewhere, TEXT_BYTES_MAX).await?),
    };
    let text = String::from_utf8(bytes.to_vec()).map_err(|_| "the job description is no UTF-8 text".to_owned())?;
    Ok((name.clone(), text, None))
}
