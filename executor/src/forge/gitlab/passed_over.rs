//! What a plain script asks for that there is not here: said in its log, so that nobody looks for it in the test. ◆
//!
//! | asked for | here |
//! |---|---|
//! | `run:` | refused: such a job has no script, and would pass |
//! | `services:`, `hooks:`, some of the `GIT_…` variables | passed over, in one line |

use super::ci_tron::Environment;
use super::wire::Job;

/// Variables of GitLab's own runner that change what a job finds, and are not read here.
const VARIABLES: [&str; 7] = [
    "GIT_CLEAN_FLAGS",
    "GIT_CLONE_EXTRA_FLAGS",
    "GIT_FETCH_EXTRA_FLAGS",
    "GIT_SUBMODULE_DEPTH",
    "GIT_SUBMODULE_PATHS",
    "GIT_SUBMODULE_UPDATE_FLAGS",
    "GIT_SUBMODULE_UPDATE_JOBS",
];

/// A sentence of what is passed over; `Err`: the job cannot be run at all.
pub(super) fn of_script(job: &Job, environ: &Environment) -> Result<Option<String>, String> {
    let has_script = job.steps.iter().any(|step| !step.script.is_empty());
    if !job.run.is_null() && job.run != "" && !has_script {
        return Err("`run:` cannot be run on a machine of this farm yet: write its steps as `script:`".to_owned());
    }
    let services = job.services.iter().map(|service| service.name.as_str());
    let services = services.collect::<Vec<_>>().join(", ");
    let hooks = job.hooks.iter().filter(|hook| !hook.script.is_empty()).map(|hook| format!("hooks:{}", hook.name));
    let variables = VARIABLES.iter().filter(|name| environ.get(**name).is_some_and(|value| !value.is_empty()));
    let services = (!services.is_empty()).then(|| format!("services ({services})"));
    let all: Vec<String> = services.into_iter().chain(hooks).chain(variables.map(|name| (*name).to_owned())).collect();
    Ok((!all.is_empty()).then(|| format!("Passed over, as there is no such thing on this farm: {}", all.join(", "))))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn job(payload: serde_json::Value) -> Job {
        serde_json::from_value(payload).unwrap()
    }

    #[test]
    fn what_is_passed_over_is_said_in_one_line() {
        let payload = json!({
            "services": [{"name": "postgres:15"}, {"name": "redis"}],
            "hooks": [{"name": "pre_get_sources_script", "script": ["git config --global x y"]}],
            "steps": [{"name": "script", "script": ["true"]}],
        });
        let environ = Environment::from([("GIT_CLEAN_FLAGS".to_owned(), "-ffdx".to_owned())]);
        let expected = "Passed over, as there is no such thing on this farm: services (postgres:15, redis), \
                        hooks:pre_get_sources_script, GIT_CLEAN_FLAGS";
        assert_eq!(of_script(&job(payload), &environ), Ok(Some(expected.to_owned())));
        assert_eq!(of_script(&job(json!({"services": null, "hooks": null})), &Environment::new()), Ok(None));
    }

    #[test]
    fn a_job_of_steps_is_not_one_that_passes() {
        let error = of_script(&job(json!({"run": "[{\"name\": \"x\"}]", "steps": []})), &Environment::new());
        assert!(error.unwrap_err().starts_with("`run:` cannot be run"));
    }
}
