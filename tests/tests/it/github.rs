//! GitHub's jobs: the composite action of this tree, its steps run as GitHub's runner runs them, with id_tokens as GitHub signs them.
//!
//! The forge is ours (`id_tokens`): it has GitHub's claims, and the place where a job asks for its id_token.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::bench::{Bench, need_programs, until};
use tests::workspace::root;

use crate::farms::{WHARF, farm_of, linux_job};
use crate::id_tokens::{Forge, ask, error};

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
const AUDIENCE: &str = "https://farm.example.com";

/// An id_token with the claims that GitHub's have (docs.github.com, "OpenID Connect reference"), and `ref_protected`, which real ones
/// have besides.
fn token(forge: &Forge, other: Value) -> String {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let mut claims = json!({
        "jti": format!("github-{number}"), "iss": format!("http://{}", forge.address), "aud": AUDIENCE,
        "sub": "repo:octo-org/octo-repo:ref:refs/heads/main", "iat": now, "nbf": now - 600, "exp": now + 300,
        "ref": "refs/heads/main", "ref_type": "branch", "ref_protected": "true", "sha": "0123456789abcdef",
        "repository": "octo-org/octo-repo", "repository_id": "74", "repository_owner": "octo-org",
        "repository_owner_id": "65", "repository_visibility": "private", "actor": "octocat", "actor_id": "12",
        "run_id": "4711", "run_number": "10", "run_attempt": "1", "event_name": "push", "head_ref": "", "base_ref": "",
        "workflow": "boot", "runner_environment": "github-hosted",
        "job_workflow_ref": "octo-org/octo-repo/.github/workflows/boot.yml@refs/heads/main",
    });
    for (claim, value) in other.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(claim)),
            value => claims[claim] = value.clone(),
        }
    }
    forge.signed("key", json!({"alg": "RS256", "kid": "key", "typ": "JWT", "x5t": "key"}), &claims)
}

fn bench(forge: &Forge) -> Bench {
    need_programs(&[("/usr/lib/ipxe/undionly.kpxe", "ipxe"), ("curl", "curl")]);
    let rules = [
        "{project: kernel, role: submit, claims: {repository_id: 74, job_workflow_ref: 'octo-org/octo-repo/.github/workflows/boot.yml@refs/heads/main'}}",
        "{project: kernel, role: submit, refs: any, claims: {repository_id: 75, environment: lab, runner_environment: github-hosted}}",
    ];
    let farm = format!(
        "{}callers:\n  issuers:\n    - issuer: http://{}\n      audience: {AUDIENCE}\n      session: 1 h\n      rules: [{}]\n",
        farm_of(&[("only", ""), ("again", "")]),
        forge.address,
        rules.join(", ")
    );
    Bench::start(WHARF, &farm)
}

/// The action as its file has it.
struct Action {
    inputs: BTreeMap<String, String>,
    steps: Vec<Value>,
    outputs: Value,
}

/// A step that runs, in a folder of its own.
struct Step {
    child: Child,
    folder: tempfile::TempDir,
}

struct Ended {
    status: Option<i32>,
    said: String,
    outputs: String,
}

impl Action {
    fn read() -> Action {
        let text = std::fs::read_to_string(root().join("action/action.yml")).unwrap();
        let file: Value = serde_yaml::from_str(&text).unwrap();
        assert_eq!(file["runs"]["using"], "composite");
        let default = |(name, input): (&String, &Value)| (name.clone(), input["default"].as_str().unwrap().to_owned());
        Action {
            inputs: file["inputs"].as_object().unwrap().iter().map(default).collect(),
            steps: file["runs"]["steps"].as_array().unwrap().clone(),
            outputs: file["outputs"].clone(),
        }
    }

    /// Begins its one step as GitHub's runner does (docs.github.com, "Metadata syntax"): its environment, a script for `sh -e`.
    fn begin(&self, with: &[(&str, &str)], more: &[(&str, &str)]) -> Step {
        let [step] = self.steps.as_slice() else { panic!("one step") };
        let mut inputs = self.inputs.clone();
        for (name, value) in with {
            assert!(inputs.insert((*name).to_owned(), (*value).to_owned()).is_some(), "{name} is no input");
        }
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("step.sh");
        std::fs::write(&script, step["run"].as_str().unwrap()).unwrap();
        std::fs::write(folder.path().join("outputs"), "").unwrap();
        assert_eq!(step["shell"], "sh");
        let programs = Path::new(WHARF).parent().unwrap().to_str().unwrap();
        // A shell cannot trap what was ignored when it began, as SIGINT is for what a script has in the background.
        let mut command = Command::new("env");
        command.args(["--default-signal", "sh", "-e"]).arg(&script).current_dir(folder.path()).env_clear();
        command.env("PATH", format!("{programs}:{}", std::env::var("PATH").unwrap()));
        command.env("GITHUB_ACTION_PATH", root().join("action")).env("RUNNER_TEMP", folder.path());
        command.env("GITHUB_OUTPUT", folder.path().join("outputs")).env("GITHUB_SHA", "0123456789abcdef");
        for (name, value) in step["env"].as_object().unwrap() {
            let input = value.as_str().unwrap().strip_prefix("${{ inputs.").and_then(|rest| rest.strip_suffix(" }}"));
            command.env(name, &inputs[input.unwrap()]);
        }
        let said = std::fs::File::create(folder.path().join("said")).unwrap();
        command.envs(more.iter().copied()).stdin(Stdio::null());
        command.stdout(said.try_clone().unwrap()).stderr(said);
        Step { child: command.spawn().unwrap(), folder }
    }
}

impl Step {
    fn wait(mut self) -> Ended {
        let status = self.child.wait().unwrap().code();
        let read =
            |name: &str| String::from_utf8_lossy(&std::fs::read(self.folder.path().join(name)).unwrap()).into_owned();
        Ended { status, said: read("said"), outputs: read("outputs") }
    }
}

#[test]
fn an_id_token_of_github_is_good_for_the_repository_workflow_and_environment_that_the_farm_file_names() {
    let forge = Forge::new();
    forge.publish(&["key"]);
    let bench = bench(&forge);
    let told = |claims: Value| {
        let answer = ask(&bench, &token(&forge, claims), "GET", "/api/v1/caller");
        (
            answer.status,
            if answer.status == 200 { answer.json()["name"].as_str().unwrap().to_owned() } else { error(&answer) },
        )
    };
    assert_eq!(told(json!({})), (200, format!("run 4711 of repository 74 at {}", forge.address)));
    for (claims, sentence) in [
        (json!({"ref_protected": null}), "rule 1: its ref is not protected"),
        (json!({"ref_protected": "false"}), "rule 1: its ref is not protected"),
        (
            json!({"job_workflow_ref": "octo-org/octo-repo/.github/workflows/other.yml@refs/heads/main"}),
            "rule 1: `job_workflow_ref` is `",
        ),
        (json!({"repository_id": "99"}), "rule 1: `repository_id` is `99`, not `74`"),
        (json!({"repository_id": "75", "ref_protected": null}), "rule 2: `environment` is not there, not `lab`"),
        (
            json!({"repository_id": "75", "environment": "lab", "runner_environment": "self-hosted"}),
            "rule 2: `runner_environment` is `self-hosted`, not `github-hosted`",
        ),
    ] {
        let (status, said) = told(claims);
        assert!(status == 403 && said.contains(sentence), "{status}: {said}");
    }
    let (status, _) = told(json!({"repository_id": "75", "environment": "lab", "ref_protected": null}));
    assert_eq!(status, 200, "GitHub's documentation has no `ref_protected`; a rule can do without");
}

#[test]
fn the_composite_action_runs_a_job_with_its_id_token_and_a_cancelled_one_frees_its_machine() {
    let forge = Forge::new();
    forge.publish(&["key"]);
    let (bench, action) = (bench(&forge), Action::read());
    assert_eq!(action.outputs["verdict"]["value"], "${{ steps.run.outputs.verdict }}");
    let url = format!("http://{}/id-token?api-version=2.0", forge.address);
    let github =
        [("ACTIONS_ID_TOKEN_REQUEST_URL", url.as_str()), ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "request-token-0123")];
    let server = bench.url();
    let job = |tag: &str, words: &str| linux_job(tag, words, "overall: {minutes: 5}", "");

    let mine = token(&forge, json!({}));
    forge.tokens.lock().unwrap().push(mine.clone());
    let hello = job("only", "wharf.beats=1 sha={{ environ.GITHUB_SHA }}");
    let with = [("server", server.as_str()), ("audience", AUDIENCE)];
    let ended = action.begin(&[&with[..], &[("job", &hello)]].concat(), &github).wait();
    assert_eq!((ended.status, ended.outputs.as_str()), (Some(0), "verdict=PASS\n"), "{}", ended.said);
    assert!(ended.said.contains("sha=0123456789abcdef") && ended.said.contains("wharf: job done"), "{}", ended.said);
    assert_eq!(ended.said.matches(&mine).count(), 1, "only to have it masked:\n{}", ended.said);
    assert!(ended.said.contains(&format!("::add-mask::{mine}\n")), "{}", ended.said);
    let request = forge.requests.lock().unwrap()[0].to_lowercase();
    assert!(request.contains("api-version=2.0&audience=https%3a%2f%2ffarm.example.com"), "{request}");
    assert!(request.contains("authorization: bearer request-token-0123\r\n"), "{request}");

    forge.tokens.lock().unwrap().push(token(&forge, json!({})));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), job("any", "wharf.end=hang")).unwrap();
    let inputs = [("file", file.path().to_str().unwrap()), ("tags", "again farm:odd")];
    let step = action.begin(&[&with[..], &inputs[..]].concat(), &github);
    let said = || std::fs::read_to_string(step.folder.path().join("said")).unwrap_or_default();
    until(PATIENCE, || said().contains("wharf: job done").then_some(()))
        .unwrap_or_else(|| panic!("it waits: {}", said()));
    kill(Pid::from_raw(step.child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let ended = step.wait();
    assert_eq!((ended.status, ended.outputs.as_str()), (Some(4), "verdict=INCOMPLETE\n"), "{}", ended.said);
    bench.wait_until_free("odd-again-1", PATIENCE).unwrap_or_else(|dut| panic!("it is not free: {dut}"));

    for (with, more, sentence) in [
        (vec![("job", hello.as_str())], &github[..], "write the farm's address in with: server"),
        (vec![("server", &server)], &github[..], "write one of with: job, with: file and with: url"),
        (
            vec![("server", &server), ("file", "none.yml")],
            &github[..],
            "there is no file none.yml; was the repository checked out?",
        ),
        (
            vec![("server", &server), ("job", &hello)],
            &[],
            "give it permissions: {id-token: write}, or write with: token",
        ),
        (vec![("server", &server), ("job", &hello), ("token", "wharf-of-nobody")], &[], "this token is not known here"),
    ] {
        let ended = action.begin(&with, more).wait();
        assert!(ended.status != Some(0) && ended.said.contains(sentence), "{:?}: {}", ended.status, ended.said);
    }
}
