//! One runner's questions for tasks. The server answers at once.

use serde_json::json;

use super::super::runners::{Asked, Asker};
use super::carry::Taken;
use super::client::{Client, Refusal};
use super::register::{Keys, Wanted};
use super::wire::{Account, Fetched, Task};
use crate::farm::TargetOverride;

/// The server need not look for a task while its list is as old as our last answer. It is made to look every so many questions all the
/// same: a task that another runner gave back does not make the list newer.
const LOOKS_EVERY: u32 = 10;

/// A runner that asks.
pub(super) struct Source {
    key: String,
    keys: Keys,
    /// Whether the last question brought a task.
    is_given: bool,
    /// How old the server's list was.
    version: u64,
    asked: u32,
}

impl Source {
    pub(super) fn new(key: &str, keys: Keys) -> Source {
        Source { key: key.to_owned(), keys, is_given: false, version: 0, asked: 0 }
    }
}

impl Asker for Source {
    type Runner = Wanted;
    type Pass = Account;
    type Errand = Taken;

    fn needs(runner: &Wanted) -> (&TargetOverride, String) {
        (&runner.target, subject(runner, None))
    }

    async fn ask(&mut self, runner: &Wanted, account: &Account) -> Asked<Taken> {
        if std::mem::take(&mut self.is_given) {
            // Its task is ours, and this is another question.
            self.keys.renew(&self.key);
        }
        self.asked += 1;
        let seen = if self.asked % LOOKS_EVERY == 1 { 0 } else { self.version };
        match fetch(runner, account, &self.keys.of(&self.key), seen).await {
            Ok(Fetched { task: Some(task), .. }) => {
                (self.is_given, self.version, self.asked) = (true, 0, 0);
                Asked::Job(Box::new(Taken::new(task, runner, account.clone())))
            }
            Ok(Fetched { task: None, tasks_version }) => {
                self.version = tasks_version;
                Asked::Nothing
            }
            Err(refusal) if refusal.is_of_the_account() => Asked::Refused,
            Err(refusal) => {
                self.version = 0;
                Asked::Failed(refusal.why, refusal.retry_after)
            }
        }
    }
}

async fn fetch(runner: &Wanted, account: &Account, key: &str, version: u64) -> Result<Fetched, Refusal> {
    let unreadable = |why: String| Refusal { why, ..Refusal::default() };
    let instance = &runner.instance;
    let client = Client::new(&instance.url, instance.certificate_authority.as_deref()).map_err(unreadable)?;
    let body = json!({"tasksVersion": version.to_string()});
    let answer = client.call("FetchTask", Some(account), Some(key), &body).await?;
    let url = &instance.url;
    serde_json::from_value(answer)
        .map_err(|error| unreadable(format!("{url} gave a task that cannot be read: {error}")))
}

/// In whose name a job asks for its DUT: the project that the farm file says, or its repository, by number where the server tells it,
/// since paths are renamed and taken again.
pub(super) fn subject(runner: &Wanted, task: Option<&Task>) -> String {
    let instance = &runner.instance;
    if let Some(project) = &instance.project {
        return project.clone();
    }
    let host = instance.url.split_once("://").map_or(instance.url.as_str(), |(_, host)| host);
    let said = |name: &str| task.map(|task| task.said(name).to_owned()).filter(|said| !said.is_empty());
    match said("repository_id").or_else(|| said("repository")) {
        Some(repository) => format!("{host}/repository/{repository}"),
        None => host.to_owned(),
    }
}
