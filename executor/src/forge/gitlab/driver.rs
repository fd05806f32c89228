//! What GitLab's own runner tells a driver of its custom executor (docs/executors/custom.md of gitlab-runner), and what that means here. ◆
//!
//! ```text
//!  JOB_RESPONSE_FILE ─► Brief: whose lease, on which tags, what to boot      (CUSTOM_ENV_* are the author's to change: not read)
//!  config ─► settings()      run SCRIPT STAGE ─► Place::of(STAGE)
//! ```
//!
//! | stage | where |
//! |---|---|
//! | `step_…`, `build_script`, `after_script` | on the machine |
//! | all others: sources, cache, artifacts | beside the runner: they want git and `gitlab-runner` |
//!
//! After the first kind the job's files are on the machine; `archive_…` and `upload_…` want them back.

use serde_json::{Value, json};

use super::variables;
use super::wire::Job;

/// What a job asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Brief {
    /// Its number on the instance.
    pub id: u64,
    /// Whose the lease is, for people.
    pub name: String,
    /// In whose name it is asked for: the project, by number.
    pub subject: String,
    /// What to boot: `WHARF_JOB`.
    pub boot: Option<String>,
    /// Tags that the machine must have: `WHARF_DUT_TAGS`.
    pub tags: Vec<String>,
}

impl Brief {
    /// Reads a job as the server gave it to the runner.
    pub fn read(text: &[u8]) -> Result<Brief, String> {
        let whole: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        let host = host_of(whole["git_info"]["repo_url"].as_str().unwrap_or_default()).to_owned();
        let job: Job = serde_json::from_value(whole).map_err(|error| error.to_string())?;
        let said = variables::expanded(&job.variables);
        let tags = said.get("WHARF_DUT_TAGS").map_or("", String::as_str).split([' ', ',']);
        Ok(Brief {
            id: job.id,
            name: format!("GitLab job {} of {}", job.id, job.job_info.project_full_path),
            subject: format!("{host}/project/{}", job.job_info.project_id),
            boot: said.get("WHARF_JOB").filter(|text| !text.trim().is_empty()).cloned(),
            tags: tags.filter(|tag| !tag.is_empty()).map(str::to_owned).collect(),
        })
    }
}

/// The host of a repository's address, without the login that is in it.
fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    authority.rsplit('@').next().unwrap_or_default()
}

/// What `config` answers.
pub fn settings(builds: &str) -> Value {
    json!({
        "builds_dir": builds,
        "builds_dir_is_shared": false,
        "driver": {"name": "wharf", "version": env!("CARGO_PKG_VERSION")},
    })
}

/// Where a stage's script runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Place {
    /// On the leased machine.
    Machine,
    /// Beside the runner.
    Runner,
}

impl Place {
    /// Of a stage by its name.
    pub fn of(stage: &str) -> Place {
        match stage {
            "build_script" | "after_script" => Place::Machine,
            step if step.starts_with("step_") => Place::Machine,
            _ => Place::Runner,
        }
    }
}

/// Whether a stage beside the runner wants the files as the job left them.
pub fn wants_files(stage: &str) -> bool {
    stage.starts_with("archive_") || stage.starts_with("upload_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_brief_is_what_the_server_said_and_no_name_of_the_authors() {
        let job = json!({
            "id": 42,
            "job_info": {"project_id": 17, "project_full_path": "group/project", "name": "boot"},
            "git_info": {"repo_url": "https://gitlab-ci-token:secret@git.example.org:8443/group/project.git"},
            "variables": [
                {"key": "CI_PROJECT_ID", "value": "1"}, {"key": "ARCH", "value": "x86_64"},
                {"key": "WHARF_DUT_TAGS", "value": "arch:$ARCH, gpu"}, {"key": "WHARF_JOB", "value": "version: 1\n", "file": true},
            ],
            "a_key_of_next_year": {},
        });
        let brief = Brief::read(job.to_string().as_bytes()).unwrap();
        assert_eq!(brief.subject, "git.example.org:8443/project/17");
        assert_eq!(brief.name, "GitLab job 42 of group/project");
        assert_eq!(
            (brief.boot.as_deref(), brief.tags),
            (Some("version: 1\n"), vec!["arch:x86_64".into(), "gpu".into()])
        );
        assert!(Brief::read(b"{").is_err());
    }

    #[test]
    fn only_the_jobs_own_scripts_run_on_the_machine() {
        for stage in ["build_script", "step_script", "step_release", "after_script"] {
            assert_eq!((Place::of(stage), wants_files(stage)), (Place::Machine, false), "{stage}");
        }
        for stage in ["prepare_script", "get_sources", "restore_cache", "download_artifacts", "cleanup_file_variables"]
        {
            assert_eq!((Place::of(stage), wants_files(stage)), (Place::Runner, false), "{stage}");
        }
        for stage in ["archive_cache", "archive_cache_on_failure", "upload_artifacts_on_failure"] {
            assert_eq!((Place::of(stage), wants_files(stage)), (Place::Runner, true), "{stage}");
        }
    }
}
