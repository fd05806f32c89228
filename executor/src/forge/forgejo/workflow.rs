//! What a workflow's job asks for: one step, which is a script or this farm's own action. ◆
//!
//! | the one step | it is |
//! |---|---|
//! | `run:` | a script, run on the DUT in the farm's small Linux |
//! | `uses: …/wharfinger/action@…`, `with: {job}` | the job description that stands there |
//! | `… with: {file}` | one in the repository, at the commit |
//! | `… with: {url}` | one at a URL |
//!
//! Nothing else of Actions is here: a job that asks for more is refused with a sentence, before anything runs. The server sends a workflow
//! with this one job in it, its matrix already taken apart.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::super::script::{is_shell_name, quoted};
use super::expressions::{Contexts, replaced, text_of};
use super::wire::Task;

/// What our action is called, whoever has a copy of it.
const ACTION: &str = "wharfinger/action";
/// What a job, and its step, may say without meaning more than what is done here.
const JOB_KEYS: [&str; 11] = [
    "name",
    "runs-on",
    "steps",
    "env",
    "outputs",
    "strategy",
    "needs",
    "timeout-minutes",
    "permissions",
    "concurrency",
    "if",
];
const STEP_KEYS: [&str; 9] = ["name", "id", "run", "uses", "with", "env", "shell", "timeout-minutes", "if"];
/// Of the context, what Actions give to scripts as `GITHUB_*`.
const CONTEXT: [&str; 19] = [
    "actor",
    "api_url",
    "base_ref",
    "event_name",
    "head_ref",
    "job",
    "ref",
    "ref_name",
    "ref_type",
    "repository",
    "repository_id",
    "repository_owner",
    "run_attempt",
    "run_id",
    "run_number",
    "server_url",
    "sha",
    "workflow",
    "workflow_ref",
];

/// A job that can be run here.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    pub form: Form,
    /// What its step has in its environment, and `environ` in templates.
    pub environ: BTreeMap<String, String>,
    /// What the author lets it take.
    pub timeout: Option<Duration>,
    /// The job's outputs, as they are written, and the name that they know the step by.
    pub outputs: BTreeMap<String, String>,
    pub step: String,
}

/// What runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// This script, with its environment.
    Script(String),
    /// This job description.
    Text(String),
    /// The one in this file of the repository.
    File(String),
    /// The one at this URL.
    Url(String),
}

/// How many steps the server lists for it.
pub(super) fn steps(task: &Task) -> usize {
    job_of(task).ok().and_then(|(_, job)| job["steps"].as_array().map(Vec::len)).unwrap_or(1)
}

/// What a task asks for; the error is a sentence for its author.
pub(super) fn asked(task: &Task) -> Result<Asked, String> {
    let (workflow, job) = job_of(task)?;
    only(&job, &JOB_KEYS, "the job")?;
    if let Some((name, value)) = workflow["defaults"]["run"].as_object().and_then(|run| run.iter().next()) {
        return Err(format!(
            "the workflow has `defaults: {{run: {{{name}: {}}}}}`, which is not done here",
            text_of(value)
        ));
    }
    let steps = job["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    let [step] = steps else {
        return Err(format!(
            "this job has {} steps, and a machine under test runs one: a `run:`, or `uses: …/{ACTION}`. Leave checkouts and builds to \
             another job, on another runner",
            steps.len()
        ));
    };
    only(step, &STEP_KEYS, "the step")?;
    for (what, of) in [("the job", &job), ("the step", step)] {
        let condition = text_of(&of["if"]);
        if !matches!(condition.trim(), "" | "true" | "always()" | "success()" | "${{ always() }}" | "${{ success() }}")
        {
            return Err(format!("{what} has `if: {condition}`, which is not decided here"));
        }
    }
    let mut contexts = contexts(task, &job);
    let mut environ = environment(task);
    for of in [&workflow, &job, step] {
        for (name, value) in of["env"].as_object().into_iter().flatten() {
            let value = replaced(&text_of(value), &contexts)?;
            environ.insert(name.clone(), value);
        }
        contexts.insert("env", json!(environ));
    }
    let form = form(step, &contexts, &environ)?;
    let timeout = [timeout(&job, &contexts)?, timeout(step, &contexts)?].into_iter().flatten().min();
    let outputs = strings(&job["outputs"]);
    let asked = Asked { form, environ, timeout, outputs, step: text_of(&step["id"]) };
    // What cannot be told at the end is refused at the beginning.
    asked.told(task, &BTreeMap::new())?;
    Ok(asked)
}

impl Asked {
    /// The job's outputs, once its step has left these.
    pub(super) fn told(
        &self,
        task: &Task,
        left: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, String>, String> {
        let (_, job) = job_of(task)?;
        let mut contexts = contexts(task, &job);
        contexts.insert("env", json!(self.environ));
        contexts.insert("steps", json!({self.step.as_str(): {"outputs": left}}));
        let one = |(name, text): (&String, &String)| Ok((name.clone(), replaced(text, &contexts)?));
        self.outputs.iter().map(one).collect::<Result<_, String>>().map_err(|why| format!("`outputs`: {why}"))
    }
}

/// What a job or a step may take. The servers write the number as a text.
fn timeout(of: &Value, contexts: &Contexts) -> Result<Option<Duration>, String> {
    let said = replaced(&text_of(&of["timeout-minutes"]), contexts)?;
    if said.is_empty() {
        return Ok(None);
    }
    let minutes = said.trim().parse().ok().filter(|minutes: &f64| *minutes > 0.0);
    let length = minutes.and_then(|minutes| Duration::try_from_secs_f64(minutes * 60.0).ok());
    length.map(Some).ok_or_else(|| format!("`timeout-minutes: {said}` is no number of minutes"))
}

/// The workflow and its one job.
fn job_of(task: &Task) -> Result<(Value, Value), String> {
    let text = task.workflow()?;
    let workflow: Value = job_schema::load("the workflow", &text)
        .map_err(|problems| format!("the workflow cannot be read: {problems}"))?;
    let jobs = workflow["jobs"].as_object().map(|jobs| jobs.values().cloned().collect::<Vec<_>>()).unwrap_or_default();
    match <[Value; 1]>::try_from(jobs) {
        Ok([job]) => Ok((workflow, job)),
        Err(jobs) => Err(format!("the workflow that the server sent has {} jobs, and a task is one", jobs.len())),
    }
}

/// Refuses what would otherwise silently not happen.
fn only(of: &Value, known: &[&str], what: &str) -> Result<(), String> {
    let is_empty = |value: &Value| {
        value.is_null() || value == "" || value == false || value.as_object().is_some_and(Map::is_empty)
    };
    let keys = of.as_object().into_iter().flatten();
    match keys.filter(|(_, value)| !is_empty(value)).find(|(key, _)| !known.contains(&key.as_str())) {
        Some((key, _)) => Err(format!("{what} has `{key}:`, which is not done here; it may have {}", known.join(", "))),
        None => Ok(()),
    }
}

fn form(step: &Value, contexts: &Contexts, environ: &BTreeMap<String, String>) -> Result<Form, String> {
    match (step["run"].as_str(), step["uses"].as_str()) {
        (Some(script), None) => {
            let shell = text_of(&step["shell"]);
            if !matches!(shell.as_str(), "" | "sh") {
                return Err(format!("`shell: {shell}` is not on the machine: write `sh`, or leave it out"));
            }
            Ok(Form::Script(script_of(&replaced(script, contexts)?, environ)))
        }
        (None, Some(uses)) => {
            let path = uses.split_once('@').map_or(uses, |(path, _)| path).trim_end_matches('/');
            if path != ACTION && !path.ends_with(&format!("/{ACTION}")) {
                return Err(format!("`uses: {uses}` is not run here: only `…/{ACTION}` is, and `run:`"));
            }
            action(&strings(&step["with"]), contexts)
        }
        _ => Err("the step has neither `run:` nor `uses:`, or both".to_owned()),
    }
}

fn action(with: &BTreeMap<String, String>, contexts: &Contexts) -> Result<Form, String> {
    let mut forms = Vec::new();
    for (name, value) in with {
        let value = replaced(value, contexts)?;
        match name.as_str() {
            _ if value.trim().is_empty() => {}
            "job" => forms.push(Form::Text(value)),
            "file" => forms.push(Form::File(value.trim_start_matches("./").to_owned())),
            "url" => forms.push(Form::Url(value)),
            // What the same step needs where another runner runs it (docs/github.md).
            "server" | "audience" | "token" | "ca" => {}
            _ => return Err(format!("`with: {name}` is not known; there are `job`, `file` and `url`")),
        }
    }
    match <[Form; 1]>::try_from(forms) {
        Ok([form]) => Ok(form),
        Err(_) => Err("write one of `with: {job: …}`, `with: {file: …}` and `with: {url: …}`".to_owned()),
    }
}

/// As Actions run it: the first command that fails ends it.
fn script_of(script: &str, environ: &BTreeMap<String, String>) -> String {
    let mut out = "mkdir -p /tmp/wharf /builds\ncd /builds\n".to_owned();
    for (name, value) in environ.iter().filter(|(name, _)| is_shell_name(name)) {
        out.push_str(&format!("export {name}={}\n", quoted(value)));
    }
    out.push_str(&format!("(\nset -e\n{script}\n) </dev/null\ncode=$?\n"));
    // The job's text sets the nonce: what a test prints by chance is not taken for its end.
    out.push_str("printf '\\nwharf: script %s exit %s\\n' \"$WHARF_NONCE\" \"$code\"\nexit \"$code\"\n");
    out
}

fn strings(of: &Value) -> BTreeMap<String, String> {
    of.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), text_of(value))).collect()
}

fn environment(task: &Task) -> BTreeMap<String, String> {
    let of = |name: &&str| (format!("GITHUB_{}", name.to_ascii_uppercase()), text_of(&task_said(task, name)));
    let said = CONTEXT.iter().map(of).filter(|(_, value)| !value.is_empty());
    said.chain([("CI".to_owned(), "true".to_owned())]).collect()
}

fn task_said(task: &Task, name: &str) -> Value {
    task.context.get(name).cloned().unwrap_or_default()
}

fn contexts(task: &Task, job: &Value) -> Contexts {
    let context = json!(task.context);
    // The one value that is left of each of the matrix's lists.
    let one = |(name, list): (&String, &Value)| (name.clone(), list.get(0).cloned().unwrap_or_else(|| list.clone()));
    let matrix: Map<String, Value> = job["strategy"]["matrix"].as_object().into_iter().flatten().map(one).collect();
    let needs = task.needs.iter().map(|(name, need)| {
        let result = need.result.trim_start_matches("RESULT_").to_ascii_lowercase();
        (name.clone(), json!({"outputs": need.outputs, "result": result}))
    });
    BTreeMap::from([
        ("env", json!({})),
        ("forgejo", context.clone()),
        ("gitea", context.clone()),
        ("inputs", context["event"]["inputs"].clone()),
        ("github", context),
        ("matrix", Value::Object(matrix)),
        ("needs", Value::Object(needs.collect())),
        ("secrets", json!(task.secrets)),
        ("vars", json!(task.vars)),
    ])
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn task(workflow: &str) -> Task {
        Task {
            id: 1,
            workflow_payload: STANDARD.encode(workflow),
            context: BTreeMap::from([("sha".to_owned(), json!("abc")), ("run_id".to_owned(), json!("7"))]),
            secrets: BTreeMap::from([("KEY".to_owned(), "hunter2".to_owned())]),
            vars: BTreeMap::from([("PLACE".to_owned(), "lab".to_owned())]),
            ..Task::default()
        }
    }

    fn job(job: &str) -> Task {
        let body: String = job.lines().map(|line| format!("    {line}\n")).collect();
        task(&format!("name: t\non: [push]\nenv: {{WHERE: '${{{{ vars.PLACE }}}}'}}\njobs:\n  test:\n{body}"))
    }

    #[test]
    fn a_script_has_its_environment_and_ends_at_the_first_failure() {
        let task = job(
            "runs-on: lab\nenv:\n  WHO: me and ${{ env.WHERE }}\ntimeout-minutes: '2'\nsteps:\n- run: |\n    echo \
                        \"$WHO $GITHUB_SHA ${{ secrets.KEY }}\"\n    false\n    echo not\n  env: {X: 1}",
        );
        let asked = asked(&task).unwrap();
        assert_eq!(asked.timeout, Some(Duration::from_secs(120)));
        assert_eq!((asked.environ["X"].as_str(), asked.environ["CI"].as_str()), ("1", "true"));
        let Form::Script(text) = asked.form else { panic!("it is a script") };
        let text = text.replace("/tmp/wharf /builds", "/dev/null/x").replace("cd /builds\n", "");
        let output = std::process::Command::new("sh").arg("-c").arg(&text).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "me and lab abc hunter2\n\nwharf: script  exit 1\n");
    }

    #[test]
    fn our_own_action_names_a_job_description() {
        let of = |with: &str| {
            asked(&job(&format!("steps:\n- uses: https://example.org/me/wharfinger/action@v1\n  with: {with}")))
                .map(|asked| asked.form)
        };
        assert_eq!(of("{file: ./ci/job.yml}"), Ok(Form::File("ci/job.yml".into())));
        assert_eq!(of("{url: 'https://h/${{ github.sha }}'}"), Ok(Form::Url("https://h/abc".into())));
        assert_eq!(of("{job: 'version: 1', server: 'https://farm'}"), Ok(Form::Text("version: 1".into())));
        assert!(of("{file: a, url: b}").unwrap_err().starts_with("write one of"));
        assert_eq!(of("{jib: x}").unwrap_err(), "`with: jib` is not known; there are `job`, `file` and `url`");
    }

    #[test]
    fn whatever_is_more_is_refused_by_its_own_words() {
        for (text, said) in [
            ("steps:\n- uses: actions/checkout@v4\n- run: make", "this job has 2 steps"),
            ("steps:\n- uses: actions/checkout@v4", "`uses: actions/checkout@v4` is not run here"),
            ("container: debian\nsteps:\n- run: make", "the job has `container:`"),
            ("steps:\n- run: make\n  working-directory: x", "the step has `working-directory:`"),
            ("steps:\n- run: make\n  shell: python", "`shell: python` is not on the machine"),
            ("steps:\n- run: make\n  if: failure()", "the step has `if: failure()`"),
            ("steps:\n- run: echo ${{ hashFiles('x') }}", "only names such as"),
            ("steps:\n- name: nothing", "neither `run:` nor `uses:`"),
            ("runs-on: lab", "this job has 0 steps"),
            ("timeout-minutes: soon\nsteps:\n- run: make", "`timeout-minutes: soon` is no number of minutes"),
            (
                "outputs: {x: '${{ job.status }}'}\nsteps:\n- run: make",
                "`outputs`: `${{ job.status }}`: there is no `job`",
            ),
        ] {
            let error = asked(&job(text)).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        assert!(asked(&task("jobs: [")).unwrap_err().contains("cannot be read"));
        let shell = asked(&task("defaults: {run: {shell: bash}}\njobs: {a: {steps: [{run: make}]}}"));
        assert!(shell.unwrap_err().contains("`defaults: {run: {shell: bash}}`"));
        assert!(asked(&task("jobs: {a: {}, b: {}}")).unwrap_err().contains("has 2 jobs"));
    }

    #[test]
    fn the_jobs_outputs_are_what_its_step_left() {
        let task = job(
            "outputs: {v: 'it is ${{ steps.boot.outputs.verdict }}', w: '${{ vars.PLACE }}'}\nsteps:\n- run: make\n  id: boot",
        );
        let left = BTreeMap::from([("verdict".to_owned(), "PASS".to_owned())]);
        let told = asked(&task).unwrap().told(&task, &left).unwrap();
        assert_eq!((told["v"].as_str(), told["w"].as_str()), ("it is PASS", "lab"));
        assert_eq!((steps(&task), steps(&job("steps: [{run: a}, {run: b}]"))), (1, 2));
    }

    #[test]
    fn the_matrix_is_what_the_server_left_of_it() {
        let task = job("strategy:\n  matrix:\n    arch: [arm]\nsteps:\n- run: echo ${{ matrix.arch }}");
        let Form::Script(text) = asked(&task).unwrap().form else { panic!("it is a script") };
        assert!(text.contains("echo arm\n"), "{text}");
    }
}
