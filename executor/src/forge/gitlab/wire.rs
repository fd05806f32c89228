//! What GitLab's server says to a runner and a runner to it, as JSON. ◆
//!
//! | from the server | to the server |
//! |---|---|
//! | [`Job`]: what `POST /jobs/request` gives with 201 | [`request`]: asks for one |
//! | | [`update`]: `PUT /jobs/:id`, each state of it |
//!
//! Fields that are not known are passed over: the server has new ones every month.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::courier::{Log, Outcome, State};
use crate::verdict::{Cause, Status, Verdict};

/// What runners are called in GitLab's list.
const NAME: &str = "wharfinger";

/// A job as a runner gets it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Job {
    /// Its number on the instance.
    pub id: u64,
    /// Proves that this job is ours, for as long as it runs.
    pub token: String,
    #[serde(deserialize_with = "or_default")]
    pub job_info: JobInfo,
    #[serde(deserialize_with = "or_default")]
    pub git_info: GitInfo,
    #[serde(deserialize_with = "or_default")]
    pub runner_info: RunnerInfo,
    #[serde(deserialize_with = "or_default")]
    pub variables: Vec<Variable>,
    #[serde(deserialize_with = "or_default")]
    pub steps: Vec<Step>,
    #[serde(deserialize_with = "or_default")]
    pub image: Image,
    #[serde(deserialize_with = "or_default")]
    pub artifacts: Vec<Artifacts>,
    #[serde(deserialize_with = "or_default")]
    pub credentials: Vec<Credentials>,
    #[serde(deserialize_with = "or_default")]
    pub dependencies: Vec<Dependency>,
    #[serde(deserialize_with = "or_default")]
    pub cache: Vec<Cache>,
    /// Containers beside the script.
    #[serde(deserialize_with = "or_default")]
    pub services: Vec<Image>,
    #[serde(deserialize_with = "or_default")]
    pub hooks: Vec<Step>,
    /// `run:` as text; such a job has no script.
    #[serde(deserialize_with = "or_default")]
    pub run: Value,
    #[serde(deserialize_with = "or_default")]
    pub features: Features,
}

impl Job {
    /// Whether its author wants to see all that it does, and GitLab shows its log to those who may change it alone.
    pub(super) fn is_debugged(&self) -> bool {
        let said = self.variables.iter().rev().find(|one| one.key == "CI_DEBUG_TRACE");
        said.is_some_and(|one| !is_false(&one.value))
    }
}

/// Whether a variable says no, as GitLab's own runner reads it (Go's `strconv.ParseBool`); one that says nothing does.
pub(super) fn is_false(text: &str) -> bool {
    matches!(text, "" | "0" | "f" | "F" | "false" | "False" | "FALSE")
}

/// Whose job it is. It comes from GitLab itself: no variable of the author's can change it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct JobInfo {
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    pub project_id: u64,
    #[serde(deserialize_with = "or_default")]
    pub project_full_path: String,
}

/// What it is about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct GitInfo {
    #[serde(deserialize_with = "or_default")]
    pub sha: String,
    #[serde(rename = "ref", deserialize_with = "or_default")]
    pub reference: String,
    /// The repository, with a token in it.
    #[serde(deserialize_with = "or_default")]
    pub repo_url: String,
    /// What of it is wanted, in git's words.
    #[serde(deserialize_with = "or_default")]
    pub refspecs: Vec<String>,
    /// How many commits; 0 is all of them.
    #[serde(deserialize_with = "or_default")]
    pub depth: u64,
    /// `sha256` where it is not `sha1`.
    #[serde(deserialize_with = "or_default")]
    pub repo_object_format: String,
}

/// How long it may take.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct RunnerInfo {
    /// Seconds; 0 is no limit: that is what jobs that are not accepted yet have had (gitlab-org/gitlab#581960).
    #[serde(deserialize_with = "or_default")]
    pub timeout: i64,
}

/// A variable, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Variable {
    pub key: String,
    #[serde(deserialize_with = "or_default")]
    pub value: String,
    #[serde(deserialize_with = "or_default")]
    pub masked: bool,
    #[serde(deserialize_with = "or_default")]
    pub raw: bool,
    /// Its value is a file's; the name is that of a path.
    #[serde(deserialize_with = "or_default")]
    pub file: bool,
}

/// A script.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Step {
    pub name: String,
    #[serde(deserialize_with = "or_default")]
    pub script: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub when: String,
}

/// The container that scripts want.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Image {
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// In the place of the image's own.
    pub entrypoint: Option<Vec<String>>,
    /// By the kind of executor: `docker: {platform, user}`.
    #[serde(deserialize_with = "or_default")]
    pub executor_opts: Value,
}

/// Files that are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Artifacts {
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    #[serde(deserialize_with = "or_default")]
    pub paths: Vec<String>,
    /// All that git does not have.
    #[serde(deserialize_with = "or_default")]
    pub untracked: bool,
    #[serde(deserialize_with = "or_default")]
    pub exclude: Vec<String>,
    /// `on_success`, `on_failure` or `always`.
    #[serde(deserialize_with = "or_default")]
    pub when: String,
    #[serde(deserialize_with = "or_default")]
    pub expire_in: String,
    /// `archive`, or the kind of a report.
    #[serde(deserialize_with = "or_default")]
    pub artifact_type: String,
    /// `zip`, `gzip` or `raw`.
    #[serde(deserialize_with = "or_default")]
    pub artifact_format: String,
}

/// Files that the next job of the project begins with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Cache {
    /// Ends with `-protected` or `-non_protected`, which the server adds by the job's ref.
    #[serde(deserialize_with = "or_default")]
    pub key: String,
    #[serde(deserialize_with = "or_default")]
    pub fallback_keys: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub paths: Vec<String>,
    /// All that git does not have.
    #[serde(deserialize_with = "or_default")]
    pub untracked: bool,
    /// `pull-push`, `pull` or `push`.
    #[serde(deserialize_with = "or_default")]
    pub policy: String,
    /// `on_success`, `on_failure` or `always`.
    #[serde(deserialize_with = "or_default")]
    pub when: String,
}

impl Cache {
    /// Whether the job begins with what is there.
    pub(super) fn pulls(&self) -> bool {
        self.policy != "push"
    }

    /// Whether the job's own files are kept.
    pub(super) fn pushes(&self) -> bool {
        self.policy != "pull"
    }
}

/// A login at a registry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Credentials {
    /// `registry`.
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub kind: String,
    #[serde(deserialize_with = "or_default")]
    pub url: String,
    #[serde(deserialize_with = "or_default")]
    pub username: String,
    #[serde(deserialize_with = "or_default")]
    pub password: String,
}

/// An earlier job with artifacts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Dependency {
    pub id: u64,
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    #[serde(deserialize_with = "or_default")]
    pub token: String,
    pub artifacts_file: Option<Value>,
}

/// What the server can.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Features {
    #[serde(deserialize_with = "or_default")]
    pub trace_sections: bool,
    #[serde(deserialize_with = "or_default")]
    pub token_mask_prefixes: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub failure_reasons: Vec<String>,
}

/// The server writes null for much that is not there.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Who asks, in each call: the server goes by the features when it chooses jobs (`Ci::Build::RUNNER_FEATURES`), and when it cancels.
fn info() -> Value {
    json!({
        "name": NAME,
        "version": env!("CARGO_PKG_VERSION"),
        "platform": std::env::consts::OS,
        "architecture": std::env::consts::ARCH,
        "executor": "wharf",
        "shell": "sh",
        "features": {
            "artifacts": true, "artifacts_exclude": true, "cache": true, "cancel_gracefully": true, "cancelable": true,
            "fallback_cache_keys": true, "image": true,
            "masking": true, "raw_variables": true, "refspecs": true, "return_exit_code": true, "trace_checksum": true,
            "trace_reset": true, "trace_size": true, "two_phase_job_commit": true, "upload_multiple_artifacts": true,
            "upload_raw_artifacts": true, "variables": true,
        },
    })
}

/// Asks for a job; `last_update` is what the server said at the last time, and lets it keep the question until there is news. `session`: where
/// the job's terminal will be.
pub(super) fn request(token: &str, system_id: &str, last_update: Option<&str>, session: Option<Value>) -> Value {
    let mut body =
        json!({"info": info(), "token": token, "system_id": system_id, "last_update": last_update.unwrap_or_default()});
    if let Some(session) = session {
        body["session"] = session;
        for feature in ["session", "terminal"] {
            body["info"]["features"][feature] = true.into();
        }
    }
    body
}

/// Asks whether a runner's token is good.
pub(super) fn verification(token: &str, system_id: &str) -> Value {
    json!({"token": token, "system_id": system_id, "info": info()})
}

/// Tells a job's state.
pub(super) fn update(token: &str, state: &State, log: Log) -> Value {
    let mut body = json!({"info": info(), "token": token});
    match state {
        State::Pending => body["state"] = "pending".into(),
        State::Running => body["state"] = "running".into(),
        State::Final(outcome) => {
            let checksum = format!("crc32:{:08x}", log.crc32);
            body["output"] = json!({"checksum": checksum, "bytesize": log.length});
            body["checksum"] = checksum.into();
            body["state"] = if outcome.failure_reason.is_none() { "success" } else { "failed" }.into();
            if let Some(reason) = &outcome.failure_reason {
                body["failure_reason"] = reason.as_str().into();
                body["exit_code"] = outcome.exit_code.into();
            }
        }
    }
    body
}

impl Outcome {
    /// What a verdict is to GitLab. Warnings are failures there, with an exit code of their own that a job may allow.
    pub(super) fn of(verdict: &Verdict, features: &Features) -> Outcome {
        let exit_code = i32::from(verdict.status.exit_status());
        let reason = match (verdict.status, verdict.cause) {
            (Status::Pass, _) => return Outcome { failure_reason: None, exit_code },
            (Status::Warn | Status::Complete | Status::Fail, _) | (_, Cause::Test) => "script_failure",
            (_, Cause::Timeout) => "job_execution_timeout",
            (_, Cause::Artifact) => "runner_external_dependency_failure",
            (_, Cause::Cancelled | Cause::Submitter) => "runner_interrupted",
            (_, Cause::Dut | Cause::Power | Cause::Console | Cause::Network | Cause::Farm) => "runner_system_failure",
        };
        Outcome { failure_reason: Some(features.known(reason).to_owned()), exit_code }
    }

    /// A job that could not be begun for a mistake of its own.
    pub(super) fn misconfigured(features: &Features) -> Outcome {
        let reason = features.known("runner_configuration_error").to_owned();
        Outcome { failure_reason: Some(reason), exit_code: i32::from(Status::SetupFail.exit_status()) }
    }

    /// A job that could not be begun for want of something of elsewhere.
    pub(super) fn unfetched(reason: &'static str, features: &Features) -> Outcome {
        let exit_code = i32::from(Status::SetupFail.exit_status());
        Outcome { failure_reason: Some(features.known(reason).to_owned()), exit_code }
    }

    /// A job that took longer than GitLab lets it.
    pub(super) fn too_late() -> Outcome {
        let exit_code = i32::from(Status::Incomplete.exit_status());
        Outcome { failure_reason: Some("job_execution_timeout".to_owned()), exit_code }
    }

    /// A job that the farm lost.
    pub(super) fn lost() -> Outcome {
        let exit_code = i32::from(Status::SetupFail.exit_status());
        Outcome { failure_reason: Some("runner_system_failure".to_owned()), exit_code }
    }

    /// Whether artifacts with this `when` are uploaded.
    pub(super) fn uploads(&self, when: &str) -> bool {
        match when {
            "always" => true,
            "on_failure" => self.failure_reason.is_some(),
            _ => self.failure_reason.is_none(),
        }
    }
}

impl Features {
    /// A reason that the server has, in the place of one that it may not have yet.
    fn known(&self, reason: &'static str) -> &'static str {
        if self.failure_reasons.iter().any(|known| known == reason) {
            return reason;
        }
        match reason {
            "runner_configuration_error" => "script_failure",
            "image_pull_failure" | "runner_external_dependency_failure" | "runner_interrupted" => {
                "runner_system_failure"
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(status: Status, cause: Cause) -> Verdict {
        Verdict { status, cause, summary: String::new(), evidence: Vec::new() }
    }

    #[test]
    fn nulls_and_unknown_fields_are_no_obstacle() {
        let text = r#"{"id": 7, "token": "t", "image": null, "steps": null, "new": {"x": 1}, "variables": [
            {"key": "A", "value": null, "public": true}], "runner_info": {"timeout": null}, "git_info": {"ref": "main"}}"#;
        let job: Job = serde_json::from_str(text).unwrap();
        assert_eq!((job.id, job.variables[0].value.as_str(), job.git_info.reference.as_str()), (7, "", "main"));
    }

    #[test]
    fn a_verdict_tells_tests_from_infrastructure() {
        let all = Features {
            failure_reasons: ["runner_external_dependency_failure", "runner_interrupted"].map(String::from).into(),
            ..Features::default()
        };
        let reason = |status, cause, features: &Features| Outcome::of(&verdict(status, cause), features).failure_reason;
        assert_eq!(reason(Status::Pass, Cause::Test, &all), None);
        for (status, cause, expected) in [
            (Status::Warn, Cause::Test, "script_failure"),
            (Status::Fail, Cause::Test, "script_failure"),
            (Status::Incomplete, Cause::Timeout, "job_execution_timeout"),
            (Status::SetupFail, Cause::Artifact, "runner_external_dependency_failure"),
            (Status::Incomplete, Cause::Cancelled, "runner_interrupted"),
            (Status::Incomplete, Cause::Power, "runner_system_failure"),
        ] {
            assert_eq!(reason(status, cause, &all).as_deref(), Some(expected), "{status} {cause}");
        }
        let old = Features::default();
        assert_eq!(reason(Status::SetupFail, Cause::Artifact, &old).as_deref(), Some("runner_system_failure"));
        assert_eq!(Outcome::misconfigured(&old).failure_reason.as_deref(), Some("script_failure"));
    }

    #[test]
    fn the_last_word_tells_the_state_the_reason_and_what_the_log_was() {
        let outcome = Outcome { failure_reason: Some("script_failure".into()), exit_code: 3 };
        let body = update("job-token", &State::Final(outcome), Log { crc32: 0xbeef, length: 12 });
        assert_eq!(body["state"], "failed");
        assert_eq!(body["exit_code"], 3);
        assert_eq!(body["output"], json!({"checksum": "crc32:0000beef", "bytesize": 12}));
        assert_eq!(update("t", &State::Pending, Log { crc32: 0, length: 0 })["state"], "pending");
    }
}
