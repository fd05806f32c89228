//! `wharf gitlab-executor`: a driver of GitLab's custom executor, which lets gitlab-runner run the scripts of its jobs on a leased machine.
//!
//! ```text
//!  config ──► builds are in $TMPDIR/builds, the job's own folder
//!  prepare ─► a lease ─► boot ─► until it lets us in by SSH             ┐ the lease lasts 5 minutes, and whichever call runs renews it:
//!  run ─┬───► beside the runner: sh SCRIPT                              │ a runner that is killed leaves the machine taken for 5 minutes
//!       └───► files ─► the machine ─► sh SCRIPT there ─► … ─► files ─►  ┘
//!  cleanup ─► released, off, free; as often as it is called
//! ```
//! `$TMPDIR/wharf.json` tells one call of the next. What each stage is: forge/gitlab/driver.rs.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::client::{Refused, Server};
use super::host::{self, Ended};
use super::interrupts::Interrupts;
use super::lease::{boot_text, path, release, wait_until_active};
use super::view::{print, say};
use crate::api::wire::leases::{ChangeWire, LeaseWire, OwnerWire, TakeWire};
use crate::forge::gitlab::driver::{Brief, Place, settings, wants_files};

/// How long the lease lasts when nobody renews it: between two calls of the runner are moments, and a killed runner costs no more.
const LEASE_TIME: &str = "5m";
/// Several of them fail before the lease is lost.
const RENEW_EVERY: Duration = Duration::from_secs(60);
/// Between two attempts to log in to a machine that boots.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// What a script is called on the machine, in the lease's working copy.
const SCRIPT: &str = "stage.sh";
/// What gitlab-runner takes for a failure of the job, and for one of the farm, where it does not say (19.4 says these).
const BUILD_FAILURE: u8 = 1;
const SYSTEM_FAILURE: u8 = 2;

/// Arguments of `wharf gitlab-executor`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// For `config_exec`: say where builds are
    Config,
    /// For `prepare_exec`: lease a machine and boot it
    Prepare(Prepare),
    /// For `run_exec`: run a stage's script, the job's own on the machine
    Run {
        /// The script, which gitlab-runner names
        script: PathBuf,
        /// The stage, which gitlab-runner names
        stage: String,
    },
    /// For `cleanup_exec`: give the machine back
    Cleanup,
}

/// Arguments of `wharf gitlab-executor prepare`.
#[derive(clap::Args)]
struct Prepare {
    /// The machine's id or full name; any that has the tags when absent
    #[arg(long)]
    dut: Option<String>,
    /// A tag that the machine must have, beside those of the job's WHARF_DUT_TAGS
    #[arg(short = 't', long = "tag")]
    tags: Vec<String>,
    /// Higher goes first
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Boot what this job file's `deployment.start` says, where the job has no WHARF_JOB
    #[arg(long, value_name = "JOB.yml")]
    boot: Option<PathBuf>,
    /// How long it may take from power on until it lets us in by SSH
    #[arg(long, value_name = "TIME", default_value = "10m")]
    boot_time: String,
}

/// How a call ends.
enum Call {
    Done,
    /// The job's own fault, with its exit status.
    BuildFailure(Option<u8>),
}

/// Does what the verb says. The farm's faults and the job's end with the numbers that gitlab-runner names.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let mut interrupts = Interrupts::listen()?;
    let call = async {
        let job = JobFolder::find()?;
        match arguments.verb {
            Verb::Config => print(&settings(&job.builds().display().to_string()).to_string()).map(|()| Call::Done),
            Verb::Prepare(arguments) => arguments.prepare(&Server::find(server)?, &job).await,
            Verb::Run { script, stage } => job.run(&Server::find(server)?, &script, &stage).await,
            Verb::Cleanup => job.clean_up(&Server::find(server)?).await,
        }
    };
    let ended = tokio::select! {
        ended = call => ended,
        // What runs on the machine ends with our connection; the lease stays for `after_script` and `cleanup`.
        () = interrupts.next() => Err(anyhow!("told to stop")),
    };
    Ok(ExitCode::from(match ended {
        Ok(Call::Done) => 0,
        Ok(Call::BuildFailure(status)) => {
            tell_status(status)?;
            number("BUILD_FAILURE_EXIT_CODE", BUILD_FAILURE)
        }
        Err(error) => {
            say(format_args!("wharf: {}", super::in_one_line(&error)));
            // What the server refuses in the description is its author's to mend.
            let is_authors = error.downcast_ref::<Refused>().is_some_and(|refused| {
                matches!(refused.status, StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY)
            });
            match is_authors {
                true => number("BUILD_FAILURE_EXIT_CODE", BUILD_FAILURE),
                false => number("SYSTEM_FAILURE_EXIT_CODE", SYSTEM_FAILURE),
            }
        }
    }))
}

fn number(name: &str, otherwise: u8) -> u8 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// The script's own exit status, for `allow_failure:exit_codes` and `retry:exit_codes`.
fn tell_status(status: Option<u8>) -> anyhow::Result<()> {
    if let (Some(status), Some(file)) = (status, std::env::var_os("BUILD_EXIT_CODE_FILE")) {
        std::fs::write(&file, format!("{status}\n"))
            .with_context(|| format!("cannot write `{}`", Path::new(&file).display()))?;
    }
    Ok(())
}

impl Prepare {
    async fn prepare(&self, server: &Server, job: &JobFolder) -> anyhow::Result<Call> {
        let brief = brief()?;
        let (name, text) = match (&brief.boot, &self.boot) {
            (Some(text), _) => ("WHARF_JOB".to_owned(), text.clone()),
            (None, Some(file)) => (file.display().to_string(), super::read_text(file)?),
            (None, None) => {
                say(format_args!(
                    "wharf: nothing says what to boot: set WHARF_JOB, a job description, in the job, or --boot FILE in prepare_args"
                ));
                return Ok(Call::BuildFailure(None));
            }
        };
        // This may be gitlab-runner's second attempt.
        job.give_back(server).await?;
        let id = format!("gitlab-{}-{:08x}", brief.id, rand::random::<u32>());
        job.keep(&Held { lease: id.clone(), files: Place::Runner })?;
        let lease: LeaseWire = server.ask(Method::POST, "/api/v1/leases", &self.wish(&id, brief, server)).await?;
        wait_until_active(server, &lease.id).await?;
        let boots = async {
            boot_text(server, &id, &name, text).await?;
            self.until_it_lets_us_in(server, &id).await
        };
        renewed(server, &id, boots).await.map(|()| Call::Done)
    }

    fn wish(&self, id: &str, brief: Brief, server: &Server) -> TakeWire {
        TakeWire {
            id: Some(id.to_owned()),
            dut: self.dut.clone(),
            tags: self.tags.iter().cloned().chain(brief.tags).collect(),
            priority: self.priority,
            hold_time: Some(LEASE_TIME.to_owned()),
            owner: Some(OwnerWire::Term),
            name: Some(brief.name),
            // Who shows a token asks in the token's name.
            subject: server.subject().map(|_| brief.subject),
            ..TakeWire::default()
        }
    }

    /// Shows the console meanwhile, in a section of the log that can be folded.
    async fn until_it_lets_us_in(&self, server: &Server, id: &str) -> anyhow::Result<()> {
        let time =
            job_schema::quantity::parse_duration(&self.boot_time).map_err(|why| anyhow!("--boot-time: {why}"))?;
        let section = |what: &str, more: &str| {
            let at = jiff::Timestamp::now().as_second();
            print(&format!("\x1b[0Ksection_{what}:{at}:wharf_boot\r\x1b[0K{more}"))
        };
        section("start", "The machine boots")?;
        let looks = async {
            tokio::select! {
                said = show_console(server, id) => said,
                () = std::future::pending() => Ok(()),
            }
        };
        let let_in = async {
            let deadline = Instant::now() + time;
            let mut told = String::new();
            loop {
                let why = match host::command(server, id, vec!["true".to_owned()], None).await {
                    Ok(Ended::Exit(0)) => return Ok(()),
                    Ok(ended) => format!("{ended:?}"),
                    Err(error) => match error.downcast_ref::<Refused>() {
                        Some(refused) if refused.status == StatusCode::INTERNAL_SERVER_ERROR => error.to_string(),
                        _ => return Err(error),
                    },
                };
                if Instant::now() > deadline {
                    bail!("the machine let nobody in by SSH in {}: {why}", self.boot_time);
                }
                if told != why {
                    say(format_args!("wharf: not by SSH yet: {why}"));
                    told = why;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        let ended = tokio::select! { ended = let_in => ended, error = looks => error };
        section("end", "")?;
        ended
    }
}

/// Until the lease is over.
async fn show_console(server: &Server, id: &str) -> anyhow::Result<()> {
    let mut console = server.stream(&format!("{}/console?follow=1", path(id))).await?;
    while let Some(frame) = console.frame().await {
        if let Ok(data) = frame?.into_data() {
            let mut log = std::io::stdout().lock();
            log.write_all(&data).and_then(|()| log.flush())?;
        }
    }
    bail!("lease {id} is over")
}

/// Does something while the lease is renewed.
async fn renewed<T>(server: &Server, id: &str, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let renews = async {
        loop {
            let change = ChangeWire { hold_time: Some(LEASE_TIME.to_owned()), ..ChangeWire::default() };
            match server.ask::<LeaseWire>(Method::PATCH, &path(id), &change).await {
                Err(error) if error.downcast_ref::<Refused>().is_some() => return error,
                // A server that restarts is back in time.
                Err(error) => say(format_args!("wharf: the lease was not renewed: {error:#}")),
                Ok(_) => {}
            }
            tokio::time::sleep(RENEW_EVERY).await;
        }
    };
    tokio::select! { done = work => done, error = renews => Err(error) }
}

fn brief() -> anyhow::Result<Brief> {
    let file =
        std::env::var_os("JOB_RESPONSE_FILE").context("JOB_RESPONSE_FILE is not set: gitlab-runner calls this")?;
    let text = std::fs::read(&file).with_context(|| format!("cannot read `{}`", Path::new(&file).display()))?;
    Brief::read(&text).map_err(|why| anyhow!("`{}` is no job: {why}", Path::new(&file).display()))
}

/// What one call tells the next.
#[derive(Serialize, Deserialize)]
struct Held {
    lease: String,
    /// Where the job's files are as it left them.
    files: Place,
}

/// The folder that gitlab-runner makes for a job, and removes.
struct JobFolder(PathBuf);

impl JobFolder {
    fn find() -> anyhow::Result<JobFolder> {
        let folder = std::env::var_os("TMPDIR").context("TMPDIR is not set: gitlab-runner calls this")?;
        Ok(JobFolder(std::path::absolute(folder).context("TMPDIR is no path")?))
    }

    fn builds(&self) -> PathBuf {
        self.0.join("builds")
    }

    fn sheet(&self) -> PathBuf {
        self.0.join("wharf.json")
    }

    fn keep(&self, held: &Held) -> anyhow::Result<()> {
        let path = self.sheet();
        std::fs::write(&path, serde_json::to_vec(held)?).with_context(|| format!("cannot write `{}`", path.display()))
    }

    /// `None`: no lease was asked for.
    fn held(&self) -> anyhow::Result<Option<Held>> {
        let path = self.sheet();
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| format!("cannot read `{}`", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read `{}`", path.display())),
        }
    }

    async fn run(&self, server: &Server, script: &Path, stage: &str) -> anyhow::Result<Call> {
        let held = self.held()?.context("there is no lease: `wharf gitlab-executor prepare` comes first")?;
        let id = held.lease.clone();
        match Place::of(stage) {
            Place::Machine => renewed(server, &id, self.run_there(server, held, script)).await,
            Place::Runner => renewed(server, &id, self.run_here(server, held, script, stage)).await,
        }
    }

    async fn run_there(&self, server: &Server, held: Held, script: &Path) -> anyhow::Result<Call> {
        let id = held.lease;
        if held.files == Place::Runner {
            self.send_files(server, &id).await?;
            self.keep(&Held { lease: id.clone(), files: Place::Machine })?;
        }
        host::put(server, &id, script, SCRIPT).await.context("the script cannot be put on the machine")?;
        // The shell that gitlab-runner chooses, too.
        let shell = "if command -v bash >/dev/null; then exec bash \"$0\"; fi; exec sh \"$0\"";
        let argv = ["sh", "-c", shell, SCRIPT].map(str::to_owned).to_vec();
        match host::command(server, &id, argv, None).await? {
            Ended::Exit(0) => Ok(Call::Done),
            Ended::Exit(status) => Ok(Call::BuildFailure(Some(status))),
            ended => bail!("the machine failed the script: {ended:?}"),
        }
    }

    async fn run_here(&self, server: &Server, held: Held, script: &Path, stage: &str) -> anyhow::Result<Call> {
        if held.files == Place::Machine && wants_files(stage) {
            self.fetch_files(server, &held.lease).await?;
            self.keep(&Held { lease: held.lease, files: Place::Runner })?;
        }
        std::fs::create_dir_all(self.builds()).context("the folder of builds cannot be made")?;
        let shell = if Path::new("/bin/bash").exists() { "bash" } else { "sh" };
        let mut command = tokio::process::Command::new(shell);
        command.arg(script).stdin(std::process::Stdio::null()).kill_on_drop(true);
        // What the farm trusts us with is none of a job's.
        command.env_remove("WHARF_TOKEN").env_remove("WHARF_TOKEN_FILE");
        let status = command.status().await.with_context(|| format!("cannot run {shell}"))?;
        // No fault of a test: `retry: when: runner_system_failure` repeats it.
        if status.success() { Ok(Call::Done) } else { bail!("the stage {stage} failed: {status}") }
    }

    /// The folder of builds, at the same path there.
    async fn send_files(&self, server: &Server, id: &str) -> anyhow::Result<()> {
        let builds = self.builds();
        std::fs::create_dir_all(&builds)?;
        let archive = tempfile::Builder::new().prefix("builds").suffix(".tar").tempfile_in(&self.0)?;
        let mut builder = tar::Builder::new(archive.as_file());
        builder.follow_symlinks(false);
        builder.append_dir_all("builds", &builds).context("the job's files cannot be packed")?;
        builder.finish()?;
        host::put(server, id, archive.path(), "builds.tar").await.context("the job's files cannot be sent")?;
        let unpack = "mkdir -p \"$0\" && tar -x -f builds.tar -C \"$0\" && rm builds.tar";
        self.must(server, id, unpack).await.context("the job's files cannot be unpacked on the machine")
    }

    /// What the machine has of them now, instead of what is here.
    async fn fetch_files(&self, server: &Server, id: &str) -> anyhow::Result<()> {
        self.must(server, id, "tar -c -f builds.tar -C \"$0\" builds")
            .await
            .context("the job's files cannot be packed")?;
        let archive = self.0.join("builds.tar");
        host::get(server, id, "builds.tar", &archive).await.context("the job's files do not come back")?;
        let fresh = tempfile::tempdir_in(&self.0)?;
        for entry in tar::Archive::new(std::fs::File::open(&archive)?).entries()? {
            let mut entry = entry.context("the job's files did not come whole")?;
            let path = entry.path()?.into_owned();
            // Refuses what would lead out of the folder, also by a link in it.
            if !entry.unpack_in(fresh.path()).with_context(|| format!("cannot write `{}`", path.display()))? {
                bail!("the machine's file `{}` would lead out of the builds", path.display());
            }
        }
        std::fs::remove_file(&archive)?;
        std::fs::remove_dir_all(self.builds())?;
        std::fs::rename(fresh.path().join("builds"), self.builds()).context("the machine has no builds any more")
    }

    async fn must(&self, server: &Server, id: &str, script: &str) -> anyhow::Result<()> {
        let argv = ["sh", "-c", script, &self.0.display().to_string()].map(str::to_owned).to_vec();
        match host::command(server, id, argv, None).await? {
            Ended::Exit(0) => Ok(()),
            ended => bail!("{ended:?}"),
        }
    }

    async fn clean_up(&self, server: &Server) -> anyhow::Result<Call> {
        self.give_back(server).await?;
        match std::fs::remove_dir_all(self.builds()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context("the builds cannot be removed")
            }
            _ => Ok(Call::Done),
        }
    }

    /// Ends the lease of an earlier call, if there is one.
    async fn give_back(&self, server: &Server) -> anyhow::Result<()> {
        let Some(held) = self.held()? else { return Ok(()) };
        let released = release(server, &held.lease).await;
        if let Err(error) = released
            && !error
                .downcast_ref::<Refused>()
                .is_some_and(|refused| matches!(refused.status, StatusCode::NOT_FOUND | StatusCode::GONE))
        {
            return Err(error);
        }
        std::fs::remove_file(self.sheet()).context("what was noted of the lease cannot be removed")
    }
}
