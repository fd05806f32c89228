//! One runner's questions for jobs. The server may keep one open for 50 s (`POST /jobs/request`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::super::runners::{Asked, Asker, PAUSE_MAX};
use super::carry::Taken;
use super::client::Client;
use super::folder;
use super::register::Wanted;
use super::terminal::{Session, Terminals};
use crate::config::gitlab::RegisteredFor;
use crate::farm::TargetOverride;

/// Until the disk is looked at again: who has made room sees jobs come soon.
const DISK_PAUSE: Duration = Duration::from_secs(10);

/// A runner that asks.
pub(super) struct Source {
    system_id: String,
    /// Where its jobs' files will be.
    state: PathBuf,
    terminals: Arc<Terminals>,
    /// What the server said of its queue; it keeps the next question open until that is another.
    last_update: Option<String>,
}

impl Source {
    pub(super) fn new(system_id: &str, state: &Path, terminals: &Arc<Terminals>) -> Source {
        let (system_id, state) = (system_id.to_owned(), state.to_owned());
        Source { system_id, state, terminals: Arc::clone(terminals), last_update: None }
    }
}

impl Asker for Source {
    type Runner = Wanted;
    type Pass = String;
    type Errand = Taken;

    fn needs(runner: &Wanted) -> (&TargetOverride, String) {
        (&runner.target, subject(runner, None))
    }

    async fn ask(&mut self, runner: &Wanted, token: &String) -> Asked<Taken> {
        // Another runner may have room for what would only fail here.
        if let Some(why) = folder::shortage(&self.state, runner.instance.checkout) {
            return Asked::Failed(format!("no job is asked for: {why}"), Some(DISK_PAUSE));
        }
        let client = match Client::of(&runner.instance) {
            Ok(client) => client,
            // A certificate authority that cannot be read, for one: only a person can mend it.
            Err(error) => return Asked::Failed(error, Some(PAUSE_MAX)),
        };
        let session = self.terminals.session(runner.instance.terminal.as_ref());
        let told = session.as_ref().map(Session::wire);
        match client.ask_for_job(token, &self.system_id, &mut self.last_update, told).await {
            Asked::Job(job) => Asked::Job(Box::new(Taken::new(*job, runner, token.clone(), session))),
            Asked::Nothing => Asked::Nothing,
            Asked::Refused => Asked::Refused,
            Asked::Failed(why, after) => Asked::Failed(why, after),
        }
    }
}

/// In whose name a job asks for its DUT: its project, by number, since paths are renamed and taken again.
pub(super) fn subject(runner: &Wanted, project: Option<u64>) -> String {
    let instance = &runner.instance;
    let host = instance.url.split_once("://").map_or(instance.url.as_str(), |(_, host)| host);
    let project = project.or(match instance.registered_for {
        RegisteredFor::Project(project) => Some(project),
        RegisteredFor::Group(_) | RegisteredFor::Instance => None,
    });
    let Some(project) = project else { return host.to_owned() };
    instance.projects.get(&project).cloned().unwrap_or_else(|| format!("{host}/project/{project}"))
}
