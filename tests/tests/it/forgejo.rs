//! The farm as a runner of Forgejo and Gitea: jobs of one step come, run on simulated machines, and their states and logs go back, whatever
//! goes wrong on the way.
//!
//! The instance is ours (`tests::actions`), by the rules of the servers' own code. Tests share a farm; each asks for a machine of its own.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tests::actions::{Actions, REGISTRATION_TOKEN, Runner, TASK_TOKEN};
use tests::bench::{Bench, Shared, need_programs, until};
use tests::instance::Fault;

use crate::farms::{WHARF, expect_in, farm_of, short};

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A farm, and the instance that it asks.
struct Pair {
    bench: Bench,
    forgejo: Actions,
    _folder: tempfile::TempDir,
}

impl Pair {
    fn start(tags: &[&str]) -> Pair {
        need_programs(&[("/usr/lib/ipxe/undionly.kpxe", "ipxe")]);
        let (forgejo, folder) = (Actions::start(), tempfile::tempdir().unwrap());
        let token = folder.path().join("token");
        std::fs::write(&token, REGISTRATION_TOKEN).unwrap();
        let script = folder.path().join("script.yml");
        std::fs::write(&script, short("any", "said={{ environ.WHO }}").replace("[any]", "[]")).unwrap();
        let entry = format!(
            "forgejo:\n  - url: {}\n    token_file: {}\n    script_job: {}\n",
            forgejo.url(),
            token.display(),
            script.display()
        );
        let duts: Vec<_> = tags.iter().map(|tag| (*tag, "")).collect();
        let bench = Bench::start(WHARF, &(farm_of(&duts) + &entry));
        Pair { bench, forgejo, _folder: folder }
    }

    /// A job whose description is in its step.
    fn offer(&self, tag: &str, job: &str, more: Value) -> u64 {
        self.forgejo.offer(&[tag, "farm:odd"], &step(job), more)
    }

    fn expect_free(&self, tag: &str) {
        let name = format!("odd-{tag}-1");
        self.bench.wait_until_free(&name, PATIENCE).unwrap_or_else(|dut| panic!("{name} is not free: {dut}"));
    }
}

/// The farm that most tests share.
fn shared() -> Arc<Pair> {
    static SHARED: Shared<Pair> = Shared::new();
    SHARED.running(|| Pair::start(&["whole", "faults", "cancel", "file", "script", "again"]))
}

/// A workflow's job with this description in its one step.
fn step(description: &str) -> String {
    let description: String = description.lines().map(|line| format!("      {line}\n")).collect();
    format!(
        "outputs: {{v: '${{{{ steps.boot.outputs.verdict }}}}'}}\nsteps:\n- id: boot\n  \
         uses: https://example.org/lab/wharfinger/action@v1\n  env: {{WHO: '${{{{ secrets.NAME }}}}'}}\n  with:\n    job: |\n{description}"
    )
}

#[test]
fn a_task_runs_on_its_machine_and_its_log_comes_masked_with_its_step_and_its_outputs() {
    let pair = shared();
    let secrets = json!({"secrets": {"NAME": "hunter2-is-secret", "FORGEJO_TOKEN": TASK_TOKEN}});
    let job = short("whole", "me={{ dut.full_name }} secret={{ environ.WHO }}");
    let id = pair.offer("whole", &job, secrets);
    let ended = pair.forgejo.wait_for_end(id);
    assert_eq!(ended.status, "success", "{}", ended.log());
    expect_in(
        &ended.log(),
        &[
            "of the farm odd takes task",
            "The job description is with: job",
            "##[group]Setting up",
            "##[endgroup]\n##[group]Boot 1\n",
            "me=odd-whole-1 secret=[MASKED]",
            "wharf: job done\n",
            "##[endgroup]",
            "Verdict: PASS",
        ],
    );
    assert!(!ended.log().contains("hunter2"), "{}", ended.log());
    assert_eq!(ended.outputs, json!({"v": "PASS"}));
    let step = &ended.steps[0];
    assert_eq!((&step["result"], ended.given), (&json!("RESULT_SUCCESS"), 1));
    let rows: usize = step["logIndex"].as_str().unwrap().parse::<usize>().unwrap()
        + step["logLength"].as_str().unwrap().parse::<usize>().unwrap();
    assert_eq!(rows, ended.rows.len(), "the step has its rows to the end");
    pair.expect_free("whole");
}

#[test]
fn calls_that_fail_are_repeated_until_every_row_and_the_last_word_have_arrived_once() {
    let pair = shared();
    let again = || Fault::Answer(500, "");
    let faults = [
        ("UpdateLog", vec![again(), Fault::DoneThenLost, Fault::Lost]),
        ("UpdateTask", vec![again(), Fault::Lost, Fault::DoneThenLost]),
    ];
    let id = pair.forgejo.offer_with(&["faults"], &step(&short("faults", "")), json!({}), faults);
    let ended = pair.forgejo.wait_for_end(id);
    assert_eq!(ended.status, "success", "{}", ended.log());
    expect_in(&ended.log(), &["takes task", "wharf: init started", "wharf: job done", "Verdict: PASS"]);
    for once in ["wharf: init started", "Verdict: PASS"] {
        assert_eq!(ended.log().matches(once).count(), 1, "{once}:\n{}", ended.log());
    }
    assert!(pair.forgejo.has_failed(&id.to_string()), "not every fault happened");
    pair.expect_free("faults");
}

#[test]
fn a_task_whose_first_answer_was_lost_is_given_again() {
    let pair = shared();
    let faults = [("FetchTask", vec![Fault::DoneThenLost])];
    let id = pair.forgejo.offer_with(&["again"], &step(&short("again", "")), json!({}), faults);
    let ended = pair.forgejo.wait_for_end(id);
    assert_eq!((ended.status.as_str(), pair.forgejo.has_failed(&id.to_string())), ("success", true), "{}", ended.log());
    assert!(ended.given >= 2, "it was given {} times", ended.given);
}

#[test]
fn a_cancelled_task_frees_its_machine_and_its_log_still_comes() {
    let pair = shared();
    let id = pair.offer("cancel", &short("cancel", "wharf.end=hang"), json!({}));
    pair.forgejo.wait_for(id, "said that it is done", |task| task.log().contains("wharf: job done"));
    pair.forgejo.cancel(id);
    pair.expect_free("cancel");
    let ended = pair.forgejo.wait_for_end(id);
    assert_eq!(ended.status, "cancelled");
    expect_in(&ended.log(), &["wharf: job done", "Verdict: INCOMPLETE", "cancelled by Forgejo (cancelled in Forgejo)"]);
}

#[test]
fn a_description_comes_from_the_repository_and_a_run_step_is_a_script() {
    let pair = shared();
    pair.forgejo.put_file("ci/boot%20it.yml", short("file", "from=repository").as_bytes());
    let uses = "steps:\n- uses: wharfinger/action@v1\n  with: {file: ci/boot it.yml}";
    let file = pair.forgejo.offer(&["file"], uses, json!({}));
    let run = "env: {WHO: 'from-${{ vars.PLACE }}'}\nsteps:\n- run: echo hello";
    let script = pair.forgejo.offer(&["script"], run, json!({"vars": {"PLACE": "a-variable"}}));
    let ended = pair.forgejo.wait_for_end(file);
    assert_eq!(ended.status, "success", "{}", ended.log());
    expect_in(&ended.log(), &["The job description is ci/boot it.yml", "from=repository"]);
    let ended = pair.forgejo.wait_for_end(script);
    assert_eq!(ended.status, "success", "{}", ended.log());
    expect_in(&ended.log(), &["The job description is ", "script.yml", "said=from-a-variable"]);
}

#[test]
fn what_is_more_than_one_step_of_ours_fails_with_a_sentence_and_holds_nothing() {
    let pair = shared();
    let all = [
        ("steps:\n- uses: actions/checkout@v4\n- run: make", "this job has 2 steps, and a machine under test runs one"),
        ("steps:\n- uses: actions/checkout@v4", "`uses: actions/checkout@v4` is not run here"),
        ("container: debian\nsteps:\n- run: make", "the job has `container:`, which is not done here"),
        ("steps:\n- uses: wharfinger/action@v1\n  with: {file: none.yml}", "cannot fetch `none.yml` of the repository"),
        ("steps:\n- uses: wharfinger/action@v1\n  with: {job: 'deployment: 7'}", "the key `target` is missing"),
        (
            "steps:\n- uses: wharfinger/action@v1\n  with: {url: 'https://169.254.169.254/job.yml'}",
            "169.254.169.254:443 is not fetched for jobs: it leads to 169.254.169.254, a link-local address",
        ),
    ];
    let offered = all.map(|(job, sentence)| (pair.forgejo.offer(&["farm:odd"], job, json!({})), sentence));
    for (id, sentence) in offered {
        let ended = pair.forgejo.wait_for_end(id);
        assert_eq!((ended.status.as_str(), &ended.steps[0]["result"]), ("failure", &json!("RESULT_FAILURE")));
        expect_in(&ended.log(), &["takes task", sentence]);
    }
}

#[test]
fn a_killed_farm_takes_its_tasks_up_again_with_the_same_runners_which_are_made_anew_when_they_are_gone() {
    let mut pair = Pair::start(&["one"]);
    let is_one = |runners: &[Runner]| matches!(runners, [one] if one.labels.contains(&"one".to_owned()));
    let first = pair.forgejo.wait_for_runners("a runner with its labels", is_one);
    assert_eq!(
        (first[0].name.as_str(), first[0].labels.as_slice()),
        ("odd-one-1", &["farm:odd", "odd-one-1", "one"].map(String::from)[..])
    );
    let id = pair.offer("one", &short("one", "wharf.end=hang"), json!({}));
    pair.forgejo.wait_for(id, "said that it is done", |task| task.log().contains("wharf: job done"));
    pair.bench = pair.bench.killed_and_started_again(WHARF);
    let ended = pair.forgejo.wait_for_end(id);
    assert_eq!(ended.status, "failure", "{}", ended.log());
    expect_in(&ended.log(), &["wharf: init started", "wharf: job done", "Verdict: "]);
    assert_eq!(ended.log().matches("wharf: init started").count(), 1);
    let left = || std::fs::read_dir(pair.bench.state().join("forgejo")).map_or(0, |entries| entries.count());
    until(PATIENCE, || Some(()).filter(|()| left() == 0)).expect("nothing is kept of what the server knows");
    assert_eq!(pair.forgejo.wait_for_runners("the same runner", is_one)[0].uuid, first[0].uuid);
    pair.forgejo.delete_runner(first[0].id);
    let is_new = |runners: &[Runner]| is_one(runners) && runners[0].uuid != first[0].uuid;
    pair.forgejo.wait_for_runners("another runner", is_new);
    let id = pair.offer("one", &short("one", ""), json!({}));
    assert_eq!(pair.forgejo.wait_for_end(id).status, "success");
}

#[test]
fn a_runner_that_a_person_made_is_used_by_its_uuid_and_token() {
    need_programs(&[("/usr/lib/ipxe/undionly.kpxe", "ipxe")]);
    let (forgejo, folder) = (Actions::start(), tempfile::tempdir().unwrap());
    let runner = forgejo.make_runner();
    let token = folder.path().join("token");
    std::fs::write(&token, format!("{}\n", runner.token)).unwrap();
    let entry = format!(
        "forgejo: [{{url: '{}', project: kernel, runners: [{{name: lab, tags: [only], per: class, labels: [hardware], uuid: {}, token_file: {}}}]}}]\n",
        forgejo.url(),
        runner.uuid,
        token.display()
    );
    let bench = Bench::start(WHARF, &(farm_of(&[("only", "")]) + &entry));
    let ended = forgejo.wait_for_end(forgejo.offer(&["hardware", "only"], &step(&short("only", "")), json!({})));
    assert_eq!(ended.status, "success", "{}", ended.log());
    let registered = forgejo.wait_for_runners("only that one", |runners| runners.len() == 1);
    assert_eq!(registered[0].labels, ["farm:odd", "hardware", "only"]);
    let jobs = bench.get("/api/v1/jobs").json();
    assert_eq!(jobs["jobs"][0]["submitter"], format!("Forgejo task {} of group/project", runner.id + 1), "{jobs}");
}
