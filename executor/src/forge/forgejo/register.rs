//! The farm's runners on Forgejo and Gitea instances, kept in step with the farm file and the DUTs' tags.
//!
//! | found | done |
//! |---|---|
//! | wanted, without an account of its own and not in the journal | `Register` with the token in `token_file`; the answer is its account |
//! | its labels are others than the server was told last, or the server was told nothing since the start | `Declare` |
//! | its account is refused | forgotten, and registered anew; one that a person made waits for its token to be put right |
//! | in the journal, not wanted | left there: the protocol has no word for removing a runner, and a DUT that comes back has its old one |
//!
//! A step that fails is tried again later; the log says so once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::super::kept::{keep, kept, token};
use super::super::runners::{Meant, Runners, meant};
use super::client::Client;
use super::source::Source;
use super::wire::{self, Account};
use crate::config::forgejo::{ForgejoConfig, ForgejoRunner};
use crate::farm::{Forges, TargetOverride};

/// Between two attempts at a step that failed: an admin who mends a token sees it work within the minute.
const AGAIN: Duration = Duration::from_secs(30);
/// What runners are called in the server's list.
const VERSION: &str = concat!("wharfinger ", env!("CARGO_PKG_VERSION"));

/// A runner that there shall be.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    pub instance: ForgejoConfig,
    pub runner: ForgejoRunner,
    /// The DUT or DUTs that its jobs are for.
    pub target: TargetOverride,
    /// What it is called in the server's list.
    name: String,
    /// What jobs ask for by `runs-on`.
    labels: Vec<String>,
}

/// A runner that the farm registered.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Registered {
    name: String,
    #[serde(flatten)]
    account: Account,
}

/// The runners that there are.
pub(super) struct Registry {
    path: PathBuf,
    runners: BTreeMap<String, Registered>,
    /// The labels that the server was told since the start.
    declared: BTreeMap<String, Vec<String>>,
    /// Keys of runners with which something failed: when to try again, and what was said.
    failed: BTreeMap<String, (Instant, String)>,
    questions: Keys,
}

/// Every runner that the farm offers, by a key that outlives restarts.
fn wanted(forges: &Forges) -> BTreeMap<String, Wanted> {
    let mut all = BTreeMap::new();
    for instance in &forges.forgejo {
        for runner in &instance.runners {
            for Meant { dut, name, tags, target } in
                meant(&forges.duts, runner.per, &runner.name, &runner.tags, runner.dut.as_deref())
            {
                let own = target.id.as_ref().map(|_| name.clone());
                let labels: BTreeSet<String> =
                    tags.into_iter().chain(own).chain(runner.labels.iter().cloned()).collect();
                let (instance, runner, labels) = (instance.clone(), runner.clone(), labels.into_iter().collect());
                let key = format!("{} {} {dut}", instance.url, runner.name);
                all.insert(key, Wanted { instance, runner, target, name, labels });
            }
        }
    }
    all
}

impl Registry {
    /// As an earlier run left it in the farm's folder.
    pub(super) fn open(state: &Path) -> Registry {
        let path = state.join("forgejo.json");
        let (runners, questions) = (kept(&path), Keys::open(state.join("forgejo-keys.json")));
        Registry { path, runners, declared: BTreeMap::new(), failed: BTreeMap::new(), questions }
    }

    async fn see_to(&mut self, key: &str, wanted: &Wanted) -> Result<(), String> {
        let instance = &wanted.instance;
        let client = Client::new(&instance.url, instance.certificate_authority.as_deref())?;
        let account = match self.account(key, wanted)? {
            Some(account) => account,
            None => self.register(key, wanted, &client).await?,
        };
        if self.declared.get(key) == Some(&wanted.labels) {
            self.failed.remove(key);
            return Ok(());
        }
        match client.call("Declare", Some(&account), None, &wire::declare(VERSION, &wanted.labels)).await {
            Ok(_) => {}
            // Gitea 1.19 has no such call; its runners keep the labels that they were registered with.
            Err(refusal) if refusal.code == "unimplemented" || refusal.status == Some(404) => {}
            Err(refusal) if refusal.is_of_the_account() => {
                self.refused(key, wanted, &account);
                return Ok(());
            }
            Err(refusal) => return Err(refusal.why),
        }
        self.failed.remove(key);
        self.declared.insert(key.to_owned(), wanted.labels.clone());
        Ok(())
    }

    fn account(&self, key: &str, wanted: &Wanted) -> Result<Option<Account>, String> {
        match &wanted.runner.account {
            Some((uuid, file)) => Ok(Some(Account { uuid: uuid.clone(), token: read(file)? })),
            None => Ok(self.runners.get(key).map(|registered| registered.account.clone())),
        }
    }

    async fn register(&mut self, key: &str, wanted: &Wanted, client: &Client) -> Result<Account, String> {
        let Some(file) = &wanted.instance.token_file else {
            return Err(format!("{}: no `token_file` in the farm file", wanted.instance.url));
        };
        let body = wire::register(&read(file)?, &wanted.name, VERSION, &wanted.labels);
        let hint = "; the token in `token_file` is the one that the page of the runners shows for a new one";
        let answer = client.call("Register", None, None, &body).await.map_err(|refusal| refusal.why + hint)?;
        let url = &wanted.instance.url;
        let account = wire::account(&answer).ok_or_else(|| format!("{url} registered a runner without an account"))?;
        tracing::info!(runner = key, uuid = account.uuid, "registered on {url}");
        self.runners.insert(key.to_owned(), Registered { name: wanted.name.clone(), account: account.clone() });
        self.save();
        Ok(account)
    }

    fn refused(&mut self, key: &str, wanted: &Wanted, account: &Account) {
        let url = &wanted.instance.url;
        self.declared.remove(key);
        let why = match &wanted.runner.account {
            Some((uuid, file)) => {
                format!("{url} refuses the runner {uuid} with the token in {}: put its token there", file.display())
            }
            None => {
                if self.runners.get(key).is_some_and(|registered| registered.account == *account) {
                    self.runners.remove(key);
                    self.save();
                }
                format!("the runner is gone from {url} or has another token: it is registered anew")
            }
        };
        self.fail(key, why);
    }

    /// It is tried again later; the log says so once.
    fn fail(&mut self, key: &str, why: String) {
        if self.failed.get(key).is_none_or(|(_, said)| *said != why) {
            tracing::warn!(runner = key, "{why}");
        }
        self.failed.insert(key.to_owned(), (Instant::now() + AGAIN, why));
    }

    fn save(&self) {
        if let Err(error) = keep(&self.path, &self.runners) {
            tracing::error!(path = %self.path.display(), %error, "the runners cannot be written down: after a restart they would be made twice");
        }
    }
}

impl Runners for Registry {
    type Runner = Wanted;
    type Pass = Account;
    type Asker = Source;

    /// Does what has to be done and may be tried now.
    async fn keep_in_step(&mut self, forges: &Forges) -> BTreeMap<String, Wanted> {
        let wanted = wanted(forges);
        self.failed.retain(|key, _| wanted.contains_key(key));
        for (key, runner) in &wanted {
            if self.failed.get(key).is_some_and(|(again, _)| *again > Instant::now()) {
                continue;
            }
            if let Err(why) = self.see_to(key, runner).await {
                self.fail(key, why);
            }
        }
        wanted
    }

    fn passes(&mut self, wanted: &BTreeMap<String, Wanted>) -> BTreeMap<String, Account> {
        let account = |(key, wanted): (&String, &Wanted)| Some((key.clone(), self.account(key, wanted).ok()??));
        wanted.iter().filter(|(key, _)| self.declared.contains_key(*key)).filter_map(account).collect()
    }

    async fn was_refused(&mut self, key: &str, wanted: &Wanted, account: &Account) {
        self.refused(key, wanted, account);
    }

    fn asker(&self, key: &str) -> Source {
        Source::new(key, self.questions.clone())
    }
}

fn read(file: &Path) -> Result<String, String> {
    token(file).map_err(|error| format!("cannot read {}: {error}", file.display()))
}

/// The keys of the runners' questions. A question that is asked again with the same key brings the task that the server believes given
/// (Forgejo 15; others pass the key over), also after this farm was killed before it had it.
#[derive(Clone)]
pub(super) struct Keys {
    path: PathBuf,
    all: Arc<Mutex<BTreeMap<String, String>>>,
}

impl Keys {
    /// As an earlier run left them.
    pub(super) fn open(path: PathBuf) -> Keys {
        Keys { all: Arc::new(Mutex::new(kept(&path))), path }
    }

    /// The key of this runner's question.
    pub(super) fn of(&self, runner: &str) -> String {
        let known = self.all.lock().unwrap_or_else(PoisonError::into_inner).get(runner).cloned();
        known.unwrap_or_else(|| self.renew(runner))
    }

    /// Its task is ours: the next question is another one.
    pub(super) fn renew(&self, runner: &str) -> String {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let key = uuid(rand::rng().random());
        all.insert(runner.to_owned(), key.clone());
        if let Err(error) = keep(&self.path, &*all) {
            tracing::warn!(path = %self.path.display(), %error, "the keys of questions for tasks cannot be written down");
        }
        key
    }
}

/// One of random bits (RFC 9562 §5.4).
fn uuid(bits: u128) -> String {
    let bits = bits & !(0xf << 76) & !(0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    let digits = format!("{bits:032x}");
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::gitlab::Per;
    use crate::farm::ForgeDut;

    fn forges(runner: ForgejoRunner) -> Forges {
        let dut = |(id, tags): (&str, &[&str])| ForgeDut {
            id: id.to_owned(),
            full_name: format!("lab-{id}"),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        };
        let instance = ForgejoConfig { url: "https://f".into(), runners: vec![runner], ..ForgejoConfig::default() };
        let duts = vec![dut(("a", &["arm", "big"])), dut(("b", &["arm"]))];
        Forges { gitlab: vec![], forgejo: vec![instance], duts, state: PathBuf::new() }
    }

    #[test]
    fn each_dut_has_a_runner_with_its_tags_its_name_and_what_the_farm_file_adds() {
        let runner = ForgejoRunner { name: "dut".into(), labels: vec!["hardware".into()], ..ForgejoRunner::default() };
        let all = wanted(&forges(runner));
        assert_eq!(all.keys().collect::<Vec<_>>(), ["https://f dut a", "https://f dut b"]);
        assert_eq!(all["https://f dut a"].labels, ["arm", "big", "hardware", "lab-a"]);
        assert_eq!(all["https://f dut a"].name, "lab-a");
    }

    #[test]
    fn a_class_has_the_tags_that_all_of_it_have() {
        let runner =
            ForgejoRunner { name: "arm".into(), tags: vec!["arm".into()], per: Per::Class, ..ForgejoRunner::default() };
        let all = wanted(&forges(runner));
        let class = &all["https://f arm *"];
        assert_eq!((all.len(), class.labels.as_slice()), (1, &["arm".to_owned()][..]));
        assert_eq!(class.target, TargetOverride { id: None, tags: Some(vec!["arm".into()]) });
    }

    #[test]
    fn a_question_has_its_key_until_its_task_has_come_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let first = Keys::open(path.clone()).of("one");
        let keys = Keys::open(path);
        assert_eq!(keys.of("one"), first);
        assert_ne!(keys.of("two"), first);
        assert_ne!(keys.renew("one"), first);
        assert_eq!(uuid(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    }
}
