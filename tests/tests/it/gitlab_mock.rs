//! The farm as a runner of a coordinator that others wrote: `gitlab-runner-mock`, of the crate gitlab-runner by Collabora.
//!
//! It gives jobs, takes their log piece by piece, their uploads and their last word, and cancels. It has no two-phase commit (a job runs once
//! it is given, and a PUT that says `pending` breaks the connection), no `Range` in its 416, no `canceling`, no checksums, no runners' API and
//! no faults: those are asked of our own coordinator, in `gitlab`.

use std::time::Duration;

use gitlab_runner_mock::{
    GitlabRunnerMock, MockJob, MockJobArtifactWhen, MockJobState, MockJobStepName, MockJobStepWhen,
};
use tests::bench::{Bench, need_programs, until};

use crate::farms::{WHARF, farm_of, linux_job};

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A job that boots what its variable says.
fn offer(mock: &GitlabRunnerMock, name: &str, words: &str) -> MockJob {
    let mut job = mock.job_builder(name.to_owned());
    let text = linux_job("mocked", words, "overall: {minutes: 5}", "");
    job.add_variable("WHARF_JOB".into(), text, true, false);
    job.add_variable("SECRET".into(), "hunter2-is-secret".into(), false, true);
    job.add_step(MockJobStepName::Script, vec!["true".into()], 3600, MockJobStepWhen::OnSuccess, false);
    let (always, paths) = (Some(MockJobArtifactWhen::Always), vec!["wharf/verdict.json".to_owned()]);
    job.add_artifact(None, false, paths, always, "archive".into(), Some("zip".into()), None);
    let job = job.build();
    mock.enqueue_job(job.clone());
    job
}

fn wait_for(job: &MockJob, what: &str, is_so: impl Fn() -> bool) {
    let log = || String::from_utf8_lossy(&job.log()).into_owned();
    until(PATIENCE, || Some(()).filter(|()| is_so())).unwrap_or_else(|| panic!("{}: {what}: {}", job.state(), log()));
}

#[test]
fn anothers_coordinator_gives_a_job_and_gets_its_log_its_files_and_its_verdict_and_cancels_one() {
    need_programs(&[("/usr/lib/ipxe/undionly.kpxe", "ipxe")]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mock = runtime.block_on(GitlabRunnerMock::start());
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, mock.runner_token()).unwrap();
    let url = mock.uri();
    let entry = format!(
        "gitlab: [{{url: '{}', runners: [{{name: one, per: class, token_file: {}}}]}}]\n",
        url.as_str().trim_end_matches('/'),
        token.display()
    );
    let bench = Bench::start(WHARF, &(farm_of(&[("mocked", ""), ("other", "")]) + &entry));
    let short = offer(&mock, "short", "secret={{ environ.SECRET }} wharf.beats=1");
    let endless = offer(&mock, "endless", "wharf.beats=1 wharf.end=hang");
    let log = || String::from_utf8_lossy(&short.log()).into_owned();
    wait_for(&short, "ends", || short.finished());
    assert_eq!(short.state(), MockJobState::Success, "{}", log());
    for words in ["takes GitLab's job", "secret=[MASKED]", "wharf: job done", "Verdict: PASS"] {
        assert!(log().contains(words), "no `{words}` in:\n{}", log());
    }
    assert!(!log().contains("hunter2"), "{}", log());
    let files: Vec<_> = short.uploaded_artifacts().collect();
    assert_eq!(
        (files.len(), files[0].filename.as_deref(), &files[0].data[..2]),
        (1, Some("artifacts.zip"), &b"PK"[..])
    );

    wait_for(&endless, "runs", || String::from_utf8_lossy(&endless.log()).contains("wharf: job done"));
    endless.cancel();
    for name in ["odd-mocked-1", "odd-other-1"] {
        bench.wait_until_free(name, PATIENCE).unwrap_or_else(|dut| panic!("not free: {dut}"));
    }
    assert_eq!(endless.uploaded_artifacts().count(), 0, "its token is void");
}
