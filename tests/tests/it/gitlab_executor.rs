//! `wharf gitlab-executor` as gitlab-runner calls it: the same calls in the same order, with its environment, arguments and signals.
//!
//! gitlab-runner itself is not to be had here (a Go program in no registry of ours). What its documentation says of the custom executor is
//! written down once, in `Job::call`. The machine's SSH server is this host's, with a file system of its own where the job's files are.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::bench::{Bench, may_mount, until};

use crate::farms::{WHARF, linux_job};
use crate::hosts::Site;

/// What a loaded machine needs for some logins.
const SOON: Duration = Duration::from_secs(60);
/// None that a script or a shell would have by chance.
const BUILD_FAILURE: i32 = 81;
const SYSTEM_FAILURE: i32 = 82;

/// A job as gitlab-runner has it: a folder of its own, and what it writes there.
struct Job<'a> {
    bench: &'a Bench,
    folder: PathBuf,
    prepare: Vec<String>,
}

/// What a call said, on both streams, and its exit status.
#[derive(Debug)]
struct Said {
    status: Option<i32>,
    text: String,
}

impl<'a> Job<'a> {
    fn new(bench: &'a Bench, folder: PathBuf, id: u64, variables: Value, prepare: &[&str]) -> Job<'a> {
        fs::create_dir_all(&folder).unwrap();
        let job = json!({
            "id": id, "token": "job-token",
            "job_info": {"name": "boot", "project_id": 17, "project_full_path": "group/project"},
            "git_info": {"repo_url": "https://gitlab-ci-token:job-token@git.example.org/group/project.git"},
            "variables": variables, "steps": [], "runner_info": {"timeout": 3600},
        });
        fs::write(folder.join("job.json"), job.to_string()).unwrap();
        Job { bench, folder, prepare: prepare.iter().map(|word| (*word).to_owned()).collect() }
    }

    fn spawn(&self, words: &[&str]) -> Child {
        let (said, file) = (fs::File::create(self.folder.join("said")).unwrap(), self.folder.join("job.json"));
        let mut command = Command::new(WHARF);
        command.arg("gitlab-executor").args(words);
        if words[0] == "prepare" {
            command.args(&self.prepare);
        }
        command.current_dir(&self.folder).env("TMPDIR", &self.folder).env("JOB_RESPONSE_FILE", file);
        command.env("BUILD_FAILURE_EXIT_CODE", BUILD_FAILURE.to_string());
        command.env("SYSTEM_FAILURE_EXIT_CODE", SYSTEM_FAILURE.to_string());
        command.env("BUILD_EXIT_CODE_FILE", self.folder.join("exit-code"));
        // An author may set any of these.
        command.env("CUSTOM_ENV_CI_PROJECT_ID", "1").env("CUSTOM_ENV_CI_JOB_SERVICES", "[]");
        command.env("WHARF_SERVER", self.bench.local_socket()).env("WHARF_TOKEN", "wharf-of-the-runner");
        command.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said).process_group(0).spawn().unwrap()
    }

    fn call(&self, words: &[&str]) -> Said {
        let status = self.spawn(words).wait().unwrap().code();
        Said { status, text: self.said() }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.join("said")).unwrap()).into_owned()
    }

    /// One stage, by a script such as gitlab-runner generates.
    fn stage(&self, stage: &str, script: &str) -> Said {
        self.call(&["run", &self.script(script), stage])
    }

    fn script(&self, script: &str) -> String {
        let path = self.folder.join("script");
        let text = format!("set -eo pipefail\n: | eval $'cd {}\\n{script}\\n'\nexit 0\n", self.builds().display());
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn builds(&self) -> PathBuf {
        self.folder.join("builds")
    }

    fn exit_code(&self) -> String {
        fs::read_to_string(self.folder.join("exit-code")).unwrap_or_default()
    }

    fn lease(&self) -> Value {
        let leases = self.bench.get("/api/v1/leases").json();
        leases["leases"].as_array().and_then(|all| all.first()).cloned().unwrap_or_default()
    }
}

impl Said {
    #[track_caller]
    fn expect(self, status: i32, words: &str) -> Said {
        assert!(self.status == Some(status) && self.text.contains(words), "not {status}, `{words}`: {self:?}");
        self
    }
}

/// The machine once it has booted: lets the farm in.
fn let_the_farm_in(site: &Site, own: &Path) -> tests::lab::Running {
    let console = || site.farm().get("/api/v1/consoles/open.console/log").text();
    let said = until(SOON, || Some(console()).filter(|text| text.contains("ssh: ready"))).expect("it boots");
    let key = said.split_once("farm ssh-ed25519 ").and_then(|(_, rest)| rest.split_whitespace().next()).unwrap();
    site.start_dut(&format!("ssh-ed25519 {key}\n"), Some(own).filter(|_| may_mount().is_ok()))
}

#[test]
fn gitlabs_own_runner_runs_a_jobs_scripts_on_a_leased_machine_and_its_files_come_back() {
    let site = Site::new("");
    let boot = site.path("boot.yml");
    fs::write(&boot, linux_job("open", "farm {{ ssh.public_key }}", "overall: {minutes: 5}", "")).unwrap();
    let prepare = ["-t", "open", "--boot", boot.to_str().unwrap()];
    let job = Job::new(site.farm(), site.path("runner-1"), 42, json!([]), &prepare);

    let config: Value = serde_json::from_str(&job.call(&["config"]).expect(0, "{").text).unwrap();
    assert_eq!((&config["builds_dir"], &config["driver"]["name"]), (&json!(job.builds()), &json!("wharf")));
    job.stage("get_sources", "true").expect(SYSTEM_FAILURE, "`wharf gitlab-executor prepare` comes first");
    let mut preparing = job.spawn(&["prepare"]);
    let _machine = let_the_farm_in(&site, &job.folder);
    assert!(preparing.wait().unwrap().success(), "{}", job.said());
    let log = job.said();
    assert!(log.contains(":wharf_boot\r") && log.contains("ssh: ready"), "{log}");
    let lease = job.lease();
    assert_eq!((&lease["owner"], &lease["kept_by"]), (&json!("GitLab job 42 of group/project"), &json!("term")));
    assert_eq!(lease["subject"], "git.example.org/project/17");

    let sources = "echo from the sources >group/project/in; ln -s in group/project/link; echo token=$WHARF_TOKEN=";
    job.stage("get_sources", &format!("mkdir -p group/project; {sources}")).expect(0, "token==");
    let script = "cd group/project; cat link; echo made there >out; exit 42";
    job.stage("build_script", script).expect(BUILD_FAILURE, "from the sources");
    assert_eq!(job.exit_code(), "42\n");
    let out = job.builds().join("group/project/out");
    assert_eq!(out.exists(), may_mount().is_err(), "what the machine makes is on the machine");
    job.stage("upload_artifacts_on_failure", "cat group/project/out group/project/link")
        .expect(0, "made there\nfrom the sources\n");
    job.stage("cleanup_file_variables", "exit 3").expect(SYSTEM_FAILURE, "the stage cleanup_file_variables failed");
    what_is_told_to_stop_stops_and_the_lease_stays_for_a_while(&job);
    job.call(&["cleanup"]).expect(0, "");
    assert_eq!(job.lease(), Value::Null, "it waits until the machine is free");
    job.call(&["cleanup"]).expect(0, "");
    assert!(!job.builds().exists());
    what_is_the_authors_mistake_is_no_fault_of_the_farms(&site);
}

fn what_is_told_to_stop_stops_and_the_lease_stays_for_a_while(job: &Job) {
    let mut running = job.spawn(&["run", &job.script("echo begun; sleep 1000; echo never"), "after_script"]);
    until(SOON, || Some(()).filter(|()| job.said().contains("begun"))).unwrap_or_else(|| panic!("{}", job.said()));
    let group = Pid::from_raw(-i32::try_from(running.id()).unwrap());
    kill(group, Signal::SIGTERM).unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(SYSTEM_FAILURE), "{}", job.said());
    let lease = job.lease();
    assert_eq!(lease["state"], "active");
    // For a runner that was killed, too: its lease has an end, and that is near.
    let expires: jiff::Timestamp = lease["expires"].as_str().expect("it has an end").parse().unwrap();
    let left = expires.duration_since(jiff::Timestamp::now());
    assert!(left.as_secs() <= 300, "{left}");
}

fn what_is_the_authors_mistake_is_no_fault_of_the_farms(site: &Site) {
    let job = |id, variables, prepare: &[&str]| Job::new(site.farm(), site.path("runner-2"), id, variables, prepare);
    job(44, json!([]), &[]).call(&["prepare"]).expect(BUILD_FAILURE, "nothing says what to boot: set WHARF_JOB");
    let wrong = json!([{"key": "WHARF_JOB", "value": "deployment: 7"}, {"key": "WHARF_DUT_TAGS", "value": "open"}]);
    let job_of_wrong = job(45, wrong, &[]);
    job_of_wrong.call(&["prepare"]).expect(BUILD_FAILURE, "WHARF_JOB");
    // gitlab-runner's second attempt takes another lease, and gives the first one back.
    let first = job_of_wrong.lease();
    job_of_wrong.call(&["prepare"]).expect(BUILD_FAILURE, "WHARF_JOB");
    let leases = site.farm().get("/api/v1/leases").json();
    assert!(leases["leases"].as_array().unwrap().len() == 1 && job_of_wrong.lease()["id"] != first["id"], "{leases:#}");
    job_of_wrong.call(&["cleanup"]).expect(0, "");
    assert_eq!(job_of_wrong.lease(), Value::Null);
    let nowhere = json!([{"key": "WHARF_JOB", "value": "x"}, {"key": "WHARF_DUT_TAGS", "value": "no-such-tag"}]);
    job(46, nowhere, &[]).call(&["prepare"]).expect(SYSTEM_FAILURE, "no DUT has the tags no-such-tag");
}
