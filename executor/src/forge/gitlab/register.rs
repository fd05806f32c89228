//! The farm's runners on GitLab instances, kept in step with the farm file and the DUTs' tags.
//!
//! ```text
//!  farm file, DUTs ─► wanted ─┐
//!                             ├─► plan: what is missing, other, too old, no longer wanted ─► calls of the API ─► journal
//!  <state>/gitlab.json ───────┘
//! ```
//! | found | done |
//! |---|---|
//! | wanted, not in the journal | `POST /user/runners`, then `POST /runners/verify` with our features |
//! | its tags or limits are others now | `PUT /runners/:id`: it keeps its number and its history |
//! | 75 % of its token's life are over | `POST /runners/reset_authentication_token` |
//! | in the journal, not wanted | `DELETE /runners` with its own token |
//! | its token is refused, and `verify` agrees | forgotten, and made anew: somebody deleted it, or took its token |
//!
//! A step that fails is tried again later; the log says so once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rand::RngExt;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::super::carry::{Errand, folder_of};
use super::super::kept::{keep, kept, token};
use super::super::runners::{Meant, Runners, meant};
use super::carry::Taken;
use super::client::{Client, said_in};
use super::source::Source;
use super::terminal::Terminals;
use super::wire;
use crate::config::gitlab::{GitlabConfig, Refs, RegisteredFor, RunnerConfig};
use crate::farm::{AUTHORITY, Farm, Forges, TargetOverride};

/// Between two attempts at a step that failed: an admin who mends a token sees it work within the minute.
const AGAIN: Duration = Duration::from_secs(30);
/// CI-tron's word for the queue that a runner serves; jobs ask for it among their tags.
const QUEUE_TAG: &str = "ci-tron:priority:";
/// How many of a token's hundred parts may pass before it is renewed: GitLab's own runner has it so.
const LIFE_PER_CENT: i64 = 75;

/// A runner that there shall be.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    pub instance: GitlabConfig,
    /// The DUT or DUTs that its jobs are for.
    pub target: TargetOverride,
    /// In the farm's own queue.
    pub priority: i32,
    /// A file with its token, where a person made it.
    token_file: Option<PathBuf>,
    facts: Facts,
}

/// What GitLab knows of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    description: String,
    tags: Vec<String>,
    maximum_timeout_s: u64,
    access_level: String,
}

/// What was registered, as it is kept.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Journal {
    /// Tells this farm from others with the same token.
    system_id: String,
    runners: BTreeMap<String, Registered>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Registered {
    url: String,
    certificate_authority: Option<PathBuf>,
    id: u64,
    token: String,
    since: jiff::Timestamp,
    expires: Option<jiff::Timestamp>,
    facts: Facts,
}

/// What is to be done about a runner, by its key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Remove(String),
    Rotate(String),
    Change(String),
    Create(String),
}

/// The runners that there are.
pub(super) struct Registry {
    path: PathBuf,
    journal: Journal,
    /// Steps that failed: when to try again, and what was said.
    failed: BTreeMap<Step, (Instant, String)>,
    /// Tokens that the server did not want, until then.
    refused: BTreeMap<String, (String, Instant)>,
    terminals: Arc<Terminals>,
}

/// Every runner that the farm offers, by a key that outlives restarts.
fn wanted(forges: &Forges) -> BTreeMap<String, Wanted> {
    let mut all = BTreeMap::new();
    for instance in &forges.gitlab {
        for runner in &instance.runners {
            let meant = meant(&forges.duts, runner.per, &runner.name, &runner.tags, runner.dut.as_deref());
            all.extend(meant.into_iter().flat_map(|meant| queues(instance, runner, meant)));
        }
    }
    all
}

/// A runner for each queue.
fn queues(instance: &GitlabConfig, runner: &RunnerConfig, meant: Meant) -> Vec<(String, Wanted)> {
    let Meant { dut, name, tags, target } = meant;
    let of = |(queue, priority): &(String, i32)| {
        let tags: BTreeSet<String> = tags.iter().cloned().chain([format!("{QUEUE_TAG}{queue}")]).collect();
        let key = format!("{} {} {} {dut} {queue}", instance.url, instance.registered_for.word(), runner.name);
        let facts = Facts {
            // CI-tron's jobs know their DUT by `$CI_RUNNER_DESCRIPTION`.
            description: name.clone(),
            tags: tags.into_iter().collect(),
            maximum_timeout_s: instance.maximum_timeout.as_secs(),
            access_level: match instance.refs {
                Refs::All => "not_protected".to_owned(),
                Refs::Protected => "ref_protected".to_owned(),
            },
        };
        let token_file = runner.token_file.clone();
        (key, Wanted { instance: instance.clone(), target: target.clone(), priority: *priority, token_file, facts })
    };
    runner.priorities.iter().map(of).collect()
}

impl RegisteredFor {
    fn word(self) -> String {
        match self {
            RegisteredFor::Instance => "instance".to_owned(),
            RegisteredFor::Group(id) => format!("group-{id}"),
            RegisteredFor::Project(id) => format!("project-{id}"),
        }
    }
}

/// What has to be done. What is no longer wanted goes first, so that a DUT that changed its place is not there twice for long.
fn plan(journal: &Journal, wanted: &BTreeMap<String, Wanted>, now: jiff::Timestamp) -> Vec<Step> {
    let mut steps = Vec::new();
    let is_ours = |key: &String| wanted.get(key).is_some_and(|wanted| wanted.token_file.is_none());
    for (key, registered) in &journal.runners {
        if !is_ours(key) {
            steps.push(Step::Remove(key.clone()));
        } else if registered.is_old(now) {
            steps.push(Step::Rotate(key.clone()));
        } else if registered.facts != wanted[key].facts {
            steps.push(Step::Change(key.clone()));
        }
    }
    let missing = wanted.keys().filter(|key| is_ours(key) && !journal.runners.contains_key(*key));
    steps.extend(missing.cloned().map(Step::Create));
    steps.sort();
    steps
}

impl Registered {
    fn is_old(&self, now: jiff::Timestamp) -> bool {
        let Some(expires) = self.expires else { return false };
        let (life, passed) = (expires.as_second() - self.since.as_second(), now.as_second() - self.since.as_second());
        passed * 100 >= life * LIFE_PER_CENT
    }
}

impl Registry {
    /// As an earlier run left it in the farm's folder.
    pub(super) fn open(state: &Path, farm: &Weak<Farm>) -> Registry {
        let path = state.join("gitlab.json");
        let mut journal: Journal = kept(&path);
        if journal.system_id.is_empty() {
            let digits: u64 = rand::rng().random::<u64>() & 0xffff_ffff_ffff;
            journal.system_id = format!("r_{digits:012x}");
        }
        let terminals = Terminals::new(Weak::clone(farm), folder_of(state, Taken::FORGE), state.join(AUTHORITY));
        Registry { path, journal, failed: BTreeMap::new(), refused: BTreeMap::new(), terminals }
    }

    async fn perform(&mut self, step: &Step, wanted: &BTreeMap<String, Wanted>) -> Result<(), String> {
        match step {
            Step::Create(key) => self.create(key, &wanted[key]).await,
            Step::Change(key) => self.change(key, &wanted[key]).await,
            Step::Rotate(key) => self.rotate(key).await,
            Step::Remove(key) => self.remove(key).await,
        }
    }

    async fn create(&mut self, key: &str, wanted: &Wanted) -> Result<(), String> {
        let instance = &wanted.instance;
        let client = Client::of(instance)?;
        let token = admin_token(instance)?;
        let mut body = wanted.facts.as_json();
        body["maintenance_note"] = "kept by wharf: changes made here are undone".into();
        match instance.registered_for {
            RegisteredFor::Instance => body["runner_type"] = "instance_type".into(),
            RegisteredFor::Group(id) => {
                body["runner_type"] = "group_type".into();
                body["group_id"] = id.into();
            }
            RegisteredFor::Project(id) => {
                body["runner_type"] = "project_type".into();
                body["project_id"] = id.into();
            }
        }
        let (status, answer) = client.manage(Method::POST, "/user/runners", Some(&token), &body).await?;
        let (Some(id), Some(token)) = (answer["id"].as_u64(), answer["token"].as_str()) else {
            return Err(refusal(instance, "create", "create_runner", status, &answer));
        };
        let registered = Registered {
            url: instance.url.clone(),
            certificate_authority: instance.certificate_authority.clone(),
            id,
            token: token.to_owned(),
            since: jiff::Timestamp::now(),
            expires: answer["token_expires_at"].as_str().and_then(|at| at.parse().ok()),
            facts: wanted.facts.clone(),
        };
        tracing::info!(runner = key, id, "registered on {}", instance.url);
        self.journal.runners.insert(key.to_owned(), registered);
        // Before anything else can fail: what is not written down is an orphan after a crash.
        self.save();
        // The server learns our features here; what it keeps of them decides how it cancels.
        let body = wire::verification(token, &self.journal.system_id);
        if let Err(error) = client.manage(Method::POST, "/runners/verify", None, &body).await {
            tracing::warn!(runner = key, "{error}");
        }
        Ok(())
    }

    async fn change(&mut self, key: &str, wanted: &Wanted) -> Result<(), String> {
        let client = Client::of(&wanted.instance)?;
        let token = admin_token(&wanted.instance)?;
        let Some(registered) = self.journal.runners.get_mut(key) else { return Ok(()) };
        let path = format!("/runners/{}", registered.id);
        let (status, answer) = client.manage(Method::PUT, &path, Some(&token), &wanted.facts.as_json()).await?;
        match status {
            status if status.is_success() => {
                tracing::info!(runner = key, id = registered.id, tags = wanted.facts.tags.join(","), "changed");
                registered.facts = wanted.facts.clone();
                Ok(())
            }
            StatusCode::NOT_FOUND => {
                self.journal.runners.remove(key);
                Ok(())
            }
            status => Err(refusal(&wanted.instance, "change", "manage_runner", status, &answer)),
        }
    }

    async fn rotate(&mut self, key: &str) -> Result<(), String> {
        let Some(registered) = self.journal.runners.get_mut(key) else { return Ok(()) };
        let client = Client::new(&registered.url, registered.certificate_authority.as_deref())?;
        let body = json!({"token": registered.token});
        let (status, answer) = client.manage(Method::POST, "/runners/reset_authentication_token", None, &body).await?;
        match answer["token"].as_str() {
            Some(token) => {
                registered.token = token.to_owned();
                registered.since = jiff::Timestamp::now();
                registered.expires = answer["token_expires_at"].as_str().and_then(|at| at.parse().ok());
                Ok(())
            }
            None if status == StatusCode::FORBIDDEN => {
                self.journal.runners.remove(key);
                Ok(())
            }
            None => Err(format!("{} does not renew the runner's token: {status}", registered.url)),
        }
    }

    async fn remove(&mut self, key: &str) -> Result<(), String> {
        let Some(registered) = self.journal.runners.get(key) else { return Ok(()) };
        let client = Client::new(&registered.url, registered.certificate_authority.as_deref())?;
        let body = json!({"token": registered.token});
        let (status, _) = client.manage(Method::DELETE, "/runners", None, &body).await?;
        // With 403 and 404 somebody was faster.
        if !status.is_success() && !matches!(status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND) {
            return Err(format!("{} does not delete the runner: {status}", registered.url));
        }
        tracing::info!(runner = key, id = registered.id, "deleted from {}", registered.url);
        self.journal.runners.remove(key);
        Ok(())
    }

    fn save(&self) {
        if let Err(error) = keep(&self.path, &self.journal) {
            tracing::error!(path = %self.path.display(), %error, "the runners cannot be written down: after a restart they would be made twice");
        }
    }
}

impl Runners for Registry {
    type Runner = Wanted;
    type Pass = String;
    type Asker = Source;

    /// Does what has to be done and may be tried now.
    async fn keep_in_step(&mut self, forges: &Forges) -> BTreeMap<String, Wanted> {
        self.terminals.keep_in_step(forges.gitlab.iter().filter_map(|instance| instance.terminal.as_ref())).await;
        let wanted = wanted(forges);
        if !self.path.exists() && !wanted.is_empty() {
            // Else this farm would be another one to GitLab after each restart.
            self.save();
        }
        let steps = plan(&self.journal, &wanted, jiff::Timestamp::now());
        self.failed.retain(|step, _| steps.contains(step));
        for step in steps {
            if self.failed.get(&step).is_some_and(|(again, _)| *again > Instant::now()) {
                continue;
            }
            match self.perform(&step, &wanted).await {
                Ok(()) => {
                    self.failed.remove(&step);
                    self.save();
                }
                Err(why) => {
                    if self.failed.get(&step).is_none_or(|(_, said)| *said != why) {
                        tracing::warn!(runner = step.key(), "{why}");
                    }
                    self.failed.insert(step, (Instant::now() + AGAIN, why));
                }
            }
        }
        wanted
    }

    /// The tokens by key, of those runners that can be asked for jobs.
    fn passes(&mut self, wanted: &BTreeMap<String, Wanted>) -> BTreeMap<String, String> {
        self.refused.retain(|_, (_, until)| *until > Instant::now());
        let token = |(key, wanted): (&String, &Wanted)| {
            let token = match &wanted.token_file {
                Some(path) => token(path).ok()?,
                None => self.journal.runners.get(key)?.token.clone(),
            };
            let is_refused = self.refused.get(key).is_some_and(|(refused, _)| *refused == token);
            (!is_refused).then(|| (key.clone(), token))
        };
        wanted.iter().filter_map(token).collect()
    }

    /// Whether the token is gone is asked for: a server in trouble refuses good ones, too.
    async fn was_refused(&mut self, key: &str, of: &Wanted, token: &String) {
        let url = &of.instance.url;
        let registered = self.journal.runners.get(key).is_some_and(|registered| registered.token == *token);
        let verified = match Client::of(&of.instance) {
            Ok(client) => {
                let body = wire::verification(token, &self.journal.system_id);
                client.manage(Method::POST, "/runners/verify", None, &body).await
            }
            Err(error) => Err(error),
        };
        match verified {
            Ok((StatusCode::FORBIDDEN, _)) if registered => {
                tracing::warn!(runner = key, "the runner is gone from {url} or has another token: it is made anew");
                self.journal.runners.remove(key);
                self.save();
            }
            Ok((StatusCode::FORBIDDEN, _)) => {
                let file = of.token_file.as_deref().unwrap_or(Path::new("")).display();
                tracing::warn!(runner = key, "{url} refuses the token in {file}: put the runner's token there");
            }
            Ok(_) => {}
            Err(why) => tracing::warn!(runner = key, "{why}"),
        }
        self.refused.insert(key.to_owned(), (token.to_owned(), Instant::now() + AGAIN));
    }

    fn asker(&self, _: &str) -> Source {
        let state = self.path.parent().unwrap_or(Path::new(""));
        Source::new(&self.journal.system_id, state, &self.terminals)
    }
}

impl Step {
    fn key(&self) -> &str {
        match self {
            Step::Create(key) | Step::Change(key) | Step::Rotate(key) | Step::Remove(key) => key,
        }
    }
}

impl Facts {
    fn as_json(&self) -> Value {
        json!({
            "description": self.description,
            "tag_list": self.tags,
            "run_untagged": false,
            "maximum_timeout": self.maximum_timeout_s,
            "access_level": self.access_level,
        })
    }
}

fn admin_token(instance: &GitlabConfig) -> Result<String, String> {
    let Some(path) = &instance.token_file else {
        return Err(format!("{}: no `token_file` in the farm file", instance.url));
    };
    token(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn refusal(instance: &GitlabConfig, verb: &str, scope: &str, status: StatusCode, answer: &Value) -> String {
    let said = Some(said_in(answer)).filter(|said| !said.is_empty()).unwrap_or_else(|| "nothing".to_owned());
    let next = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            format!(
                "; the token in `token_file` needs the scope {scope}, and its owner the right to have runners there"
            )
        }
        _ => String::new(),
    };
    format!("{} does not {verb} the runner: {status}, {said}{next}", instance.url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::gitlab::Per;
    use crate::farm::ForgeDut;

    fn instance(runners: Vec<RunnerConfig>) -> GitlabConfig {
        GitlabConfig {
            url: "https://g".into(),
            certificate_authority: None,
            token_file: Some("t".into()),
            registered_for: RegisteredFor::Project(17),
            runners,
            projects: BTreeMap::new(),
            refs: Refs::All,
            maximum_timeout: Duration::from_secs(3600),
            log_bytes_max: 1 << 20,
            script_job: None,
            cache: Default::default(),
            checkout: Default::default(),
            terminal: None,
        }
    }

    fn runner(name: &str, per: Per, tags: &[&str]) -> RunnerConfig {
        RunnerConfig {
            name: name.into(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            dut: None,
            per,
            priorities: vec![("default".into(), 0)],
            token_file: None,
        }
    }

    fn forges(runners: Vec<RunnerConfig>, duts: &[(&str, &[&str])]) -> Forges {
        let dut = |(id, tags): &(&str, &[&str])| ForgeDut {
            id: (*id).to_owned(),
            full_name: format!("lab-{id}"),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        };
        Forges {
            gitlab: vec![instance(runners)],
            forgejo: vec![],
            duts: duts.iter().map(dut).collect(),
            state: PathBuf::new(),
        }
    }

    fn registered(wanted: &Wanted, expires: Option<&str>) -> Registered {
        Registered {
            url: "https://g".into(),
            certificate_authority: None,
            id: 1,
            token: "glrt-x".into(),
            since: "2026-01-01T00:00:00Z".parse().unwrap(),
            expires: expires.map(|at| at.parse().unwrap()),
            facts: wanted.facts.clone(),
        }
    }

    #[test]
    fn each_dut_has_a_runner_per_queue_with_its_tags() {
        let with_queues = RunnerConfig {
            priorities: vec![("high".into(), 9), ("low".into(), -9)],
            ..runner("dut", Per::Dut, &["arm"])
        };
        let all = wanted(&forges(vec![with_queues], &[("a", &["arm", "big"]), ("b", &["x86"])]));
        let keys: Vec<_> = all.keys().map(String::as_str).collect();
        assert_eq!(keys, ["https://g project-17 dut a high", "https://g project-17 dut a low"]);
        let high = &all["https://g project-17 dut a high"];
        assert_eq!((high.facts.description.as_str(), high.priority), ("lab-a", 9));
        assert_eq!(high.facts.tags, ["arm", "big", "ci-tron:priority:high"]);
    }

    #[test]
    fn a_class_has_the_tags_that_all_of_it_have() {
        let all = wanted(&forges(
            vec![runner("arm", Per::Class, &["arm"])],
            &[("a", &["arm", "big"]), ("b", &["arm", "old"]), ("c", &["x86"])],
        ));
        assert_eq!(all.len(), 1);
        let class = &all["https://g project-17 arm * default"];
        assert_eq!(class.facts.tags, ["arm", "ci-tron:priority:default"]);
        assert_eq!(class.target, TargetOverride { id: None, tags: Some(vec!["arm".into()]) });
    }

    #[test]
    fn the_plan_makes_changes_renews_and_removes() {
        let wanted =
            wanted(&forges(vec![runner("dut", Per::Dut, &[])], &[("a", &["1"]), ("b", &["1"]), ("c", &["1"])]));
        let key = |dut: &str| format!("https://g project-17 dut {dut} default");
        let mut journal = Journal::default();
        let mut changed = registered(&wanted[&key("a")], None);
        changed.facts.tags.clear();
        journal.runners.insert(key("a"), changed);
        journal.runners.insert(key("b"), registered(&wanted[&key("b")], Some("2026-01-05T00:00:00Z")));
        journal.runners.insert(key("gone"), registered(&wanted[&key("a")], None));
        let now = |text: &str| text.parse().unwrap();
        let first = [Step::Remove(key("gone")), Step::Change(key("a")), Step::Create(key("c"))];
        assert_eq!(plan(&journal, &wanted, now("2026-01-03T00:00:00Z")), first);
        let later = [Step::Remove(key("gone")), Step::Rotate(key("b")), Step::Change(key("a")), Step::Create(key("c"))];
        assert_eq!(plan(&journal, &wanted, now("2026-01-04T00:00:00Z")), later);
    }

    #[test]
    fn the_journal_is_kept_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut registry = Registry::open(folder.path(), &Weak::new());
        let all = wanted(&forges(vec![runner("dut", Per::Dut, &[])], &[("a", &[])]));
        let key = all.keys().next().unwrap().clone();
        registry.journal.runners.insert(key.clone(), registered(&all[&key], None));
        registry.save();
        let mut again = Registry::open(folder.path(), &Weak::new());
        assert_eq!(again.journal.system_id, registry.journal.system_id);
        assert_eq!(again.passes(&all), BTreeMap::from([(key, "glrt-x".to_owned())]));
    }
}
