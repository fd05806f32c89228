//! What a Forgejo or Gitea server says to a runner and a runner to it: messages of `runner.v1` as JSON. ◆
//!
//! | call | to the server | from the server |
//! |---|---|---|
//! | `Register` | [`register`] | [`Account`] |
//! | `Declare` | [`declare`] | |
//! | `FetchTask` | `tasksVersion` | [`Fetched`] |
//! | `UpdateTask` | [`update`]: result, the one step, outputs | [`result_of`]: what the server makes of the task |
//! | `UpdateLog` | [`rows`] | [`acknowledged`]: how many rows it has |
//!
//! The mapping is protobuf's own (protobuf.dev, "ProtoJSON format"): names in camel case, 64-bit numbers as texts, bytes in base64, times by
//! RFC 3339, enums by their names; what is zero is left out. Fields that are not known are passed over.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use crate::farm::registry_secrets_in;

use super::super::spool::Row;

/// Who a runner is to its server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Account {
    pub uuid: String,
    pub token: String,
}

/// What `FetchTask` gives.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Fetched {
    pub task: Option<Task>,
    #[serde(deserialize_with = "number")]
    pub tasks_version: u64,
}

/// A task: one job of a workflow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Task {
    #[serde(deserialize_with = "number")]
    pub id: u64,
    /// The workflow, with this one job, as YAML in base64.
    #[serde(deserialize_with = "or_default")]
    pub workflow_payload: String,
    /// `github` in expressions.
    #[serde(deserialize_with = "or_default")]
    pub context: BTreeMap<String, Value>,
    #[serde(deserialize_with = "or_default")]
    pub secrets: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub vars: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub needs: BTreeMap<String, Need>,
}

/// A job that this one waited for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Need {
    #[serde(deserialize_with = "or_default")]
    pub outputs: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    pub result: String,
}

/// How a task ended (enum `Result`).
pub(super) const SUCCESS: &str = "RESULT_SUCCESS";
pub(super) const FAILURE: &str = "RESULT_FAILURE";
pub(super) const CANCELLED: &str = "RESULT_CANCELLED";
const SKIPPED: &str = "RESULT_SKIPPED";

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(reader: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(reader).map(Option::unwrap_or_default)
}

/// A 64-bit number, which JSON has as a text; a bare number is read, too.
fn number<'de, D: Deserializer<'de>>(reader: D) -> Result<u64, D::Error> {
    let value = Value::deserialize(reader)?;
    let read = value.as_u64().or_else(|| value.as_str()?.parse().ok());
    if value.is_null() { Ok(0) } else { read.ok_or_else(|| serde::de::Error::custom("it is no number")) }
}

impl Task {
    /// The workflow's text.
    pub(super) fn workflow(&self) -> Result<String, String> {
        let bytes = STANDARD.decode(&self.workflow_payload).map_err(|error| format!("the workflow: {error}"))?;
        String::from_utf8(bytes).map_err(|_| "the workflow is no UTF-8 text".to_owned())
    }

    /// A text of the context; empty when it is none.
    pub(super) fn said(&self, name: &str) -> &str {
        self.context.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// What nobody may read in the task's log.
    pub(super) fn secret_values(&self) -> Vec<String> {
        // Forgejo and Gitea each have their own word for the token of their caches and artifacts.
        let tokens = ["token", "runtime_token", "gitea_runtime_token", "forgejo_runtime_token"];
        let tokens = tokens.iter().map(|name| self.said(name).to_owned());
        // A secret of several lines is in the log line by line.
        let lines = self.secrets.values().flat_map(|secret| secret.lines().map(str::to_owned).collect::<Vec<_>>());
        let written = self.secrets.values().flat_map(|secret| registry_secrets_in(secret));
        let all = self.secrets.values().cloned().chain(lines).chain(written).chain(tokens);
        all.filter(|secret| !secret.is_empty()).collect()
    }
}

/// Makes a runner; Gitea deletes one that is `ephemeral` after its first task, Forgejo passes the word over.
pub(super) fn register(token: &str, name: &str, version: &str, labels: &[String]) -> Value {
    json!({"token": token, "name": name, "version": version, "labels": labels, "ephemeral": false})
}

/// The runner's account in the answer to [`register`].
pub(super) fn account(answer: &Value) -> Option<Account> {
    serde_json::from_value(answer["runner"].clone()).ok().filter(|account: &Account| !account.uuid.is_empty())
}

/// Tells what a runner is now.
pub(super) fn declare(version: &str, labels: &[String]) -> Value {
    json!({"version": version, "labels": labels})
}

/// How far a task is.
pub(super) struct Progress<'a> {
    pub task: u64,
    pub started: Timestamp,
    /// How it ended, and when.
    pub result: Option<(&'a str, Timestamp)>,
    /// The steps that the server lists; ours is the first.
    pub steps: usize,
    /// The first row of its log that belongs to the step, and how many do.
    pub log_index: u64,
    pub log_length: u64,
}

/// Tells how far a task is.
pub(super) fn update(progress: &Progress<'_>, outputs: &BTreeMap<String, String>) -> Value {
    let mut state = json!({"id": progress.task.to_string(), "startedAt": progress.started.to_string()});
    let mut step = json!({
        "id": "0",
        "startedAt": progress.started.to_string(),
        "logIndex": progress.log_index.to_string(),
        "logLength": progress.log_length.to_string(),
    });
    let mut steps = Vec::new();
    if let Some((result, stopped)) = progress.result {
        for part in [&mut state, &mut step] {
            part["result"] = result.into();
            part["stoppedAt"] = stopped.to_string().into();
        }
        // A job of several steps is refused, and none of the others ran.
        steps.extend((1..progress.steps).map(|index| json!({"id": index.to_string(), "result": SKIPPED})));
    }
    steps.insert(0, step);
    state["steps"] = steps.into();
    json!({"state": state, "outputs": outputs})
}

/// What the server makes of a task, in its answer to [`update`]. Once it is over there, only that counts.
pub(super) fn result_of(answer: &Value) -> Option<&str> {
    answer["state"]["result"].as_str().filter(|result| [SUCCESS, FAILURE, CANCELLED, SKIPPED].contains(result))
}

/// Whether rows are the last of a log.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum More {
    May,
    No,
}

/// Sends rows of a log.
pub(super) fn rows(task: u64, index: u64, rows: &[Row], more: More) -> Value {
    let row = |row: &Row| json!({"time": row.at.to_string(), "content": row.text});
    let rows: Vec<Value> = rows.iter().map(row).collect();
    json!({"taskId": task.to_string(), "index": index.to_string(), "rows": rows, "noMore": more == More::No})
}

/// How many rows the server has, in its answer to [`rows`].
pub(super) fn acknowledged(answer: &Value) -> u64 {
    let index = &answer["ackIndex"];
    index.as_u64().or_else(|| index.as_str()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_task_is_read_with_numbers_as_texts_and_without_what_is_empty() {
        let text = r#"{"task": {"id": "9007199254740993", "workflowPayload": "am9iczoge30=", "context": {"sha": "abc", "run_attempt": 1},
            "secrets": {"KEY": "one\ntwo-lines"}, "needs": {"build": {"result": "RESULT_SUCCESS"}}, "new": 1}, "tasksVersion": 7}"#;
        let fetched: Fetched = serde_json::from_str(text).unwrap();
        let task = fetched.task.unwrap();
        assert_eq!((task.id, fetched.tasks_version, task.said("sha")), (9_007_199_254_740_993, 7, "abc"));
        assert_eq!(task.workflow().unwrap(), "jobs: {}");
        assert_eq!(task.secret_values(), ["one\ntwo-lines", "one", "two-lines"]);
        let nothing: Fetched = serde_json::from_str("{}").unwrap();
        assert!(nothing.task.is_none());
    }

    #[test]
    fn a_running_and_an_ended_task_are_told_with_their_step() {
        let running = Progress { task: 5, started: at(0), result: None, steps: 2, log_index: 3, log_length: 4 };
        let step = json!({"id": "0", "startedAt": "1970-01-01T00:00:00Z", "logIndex": "3", "logLength": "4"});
        let state = json!({"id": "5", "startedAt": "1970-01-01T00:00:00Z", "steps": [step]});
        assert_eq!(update(&running, &BTreeMap::new()), json!({"state": state, "outputs": {}}));
        let ended = Progress { result: Some((FAILURE, at(1))), ..running };
        let told = update(&ended, &BTreeMap::from([("verdict".to_owned(), "FAIL".to_owned())]));
        assert_eq!(told["state"]["result"], FAILURE);
        assert_eq!(told["state"]["steps"][0]["stoppedAt"], "1970-01-01T00:00:01Z");
        assert_eq!(told["state"]["steps"][1], json!({"id": "1", "result": SKIPPED}));
        assert_eq!(told["outputs"], json!({"verdict": "FAIL"}));
    }

    #[test]
    fn rows_have_their_times_and_the_last_ones_say_so() {
        let row = Row { at: at(2), text: "hello".into() };
        let told = rows(5, 10, &[row], More::No);
        let expected = json!({"taskId": "5", "index": "10", "rows": [{"time": "1970-01-01T00:00:02Z", "content": "hello"}], "noMore": true});
        assert_eq!(told, expected);
        assert_eq!(acknowledged(&json!({"ackIndex": "11"})), 11);
        assert_eq!(acknowledged(&json!({})), 0);
        assert_eq!(result_of(&json!({"state": {"id": "5"}})), None);
        assert_eq!(result_of(&json!({"state": {"result": "RESULT_CANCELLED"}})), Some(CANCELLED));
    }
}
