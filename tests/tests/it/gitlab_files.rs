//! The files of GitLab's jobs, there and back: the shared folder of CI-tron's variables, caches from job to job, submodules and large files
//! of their repositories; and what the server does not fetch in their name.
//!
//! ```text
//!  one network namespace: the instance (`tests::coordinator`) and the server ── bridge ── cable ── another: "the DUT", played by the test
//! ```

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tests::bench::{Bench, need_programs, until};
use tests::coordinator::{ADMIN_TOKEN, Commits, Coordinator, Job};
use tests::instance::Fault;

use crate::buckets::{DUT, Keys, World, good};
use crate::farms::expect_in;
use crate::gitlab::{Pair, file_of, shared, zip};
use crate::picked_up::{GATEWAY, PATIENCE};

/// The environment of a real job of Mesa's, where there is one.
const CORPUS: &str = "../../shared/corpus/gitlab-ci-tron-env/mesa-vangogh.json";
/// What runs plain scripts on a machine that need not boot anything.
const SCRIPT_JOB: &str = "version: 1
target: {tags: []}
timeouts: {overall: {minutes: 4}}
console_patterns:
  session_end: {regex: 'reboot: Power down'}
  job_success: {regex: '^wharf: script {{ environ.WHARF_NONCE }} exit 0$'}
deployment:
  start:
    storage:
      http:
        - path: /gitlab/script.sh
          data: |
            {% raw %}WHARF_RESULTS='{{ job.bucket.results_url }}'
            {{ environ.WHARF_SCRIPT }}{% endraw %}
        - {path: /gitlab/files.tar, attached: gitlab/files.tar}
";

/// A farm of one machine, which the test plays, and the instance that gives it jobs.
struct Scene {
    gitlab: Coordinator,
    bench: Bench,
    console: TcpStream,
    folder: tempfile::TempDir,
    world: World,
}

impl Scene {
    /// `None`: nobody may make a network namespace here.
    fn start() -> Option<Scene> {
        let world = World::new()?;
        need_programs(&[("/usr/bin/curl", "curl"), ("/usr/bin/git", "git"), ("/usr/bin/python3", "python3")]);
        let gitlab = world.place.lab.inside(|| Ok(Coordinator::start())).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            fs::write(folder.path().join(name), text).unwrap();
            folder.path().join(name).display().to_string()
        };
        let farm = format!(
            "{}s3: {{quota: 1M}}\ngitlab: [{{url: '{}', token_file: {}, register_for: {{project: 17}}, script_job: {}, checkout: {{quota: 8M}}}}]\n",
            world.place.farm(""),
            gitlab.url(),
            write("token", ADMIN_TOKEN),
            write("script.yml", SCRIPT_JOB),
        );
        let bench = world.place.start_farm(&farm);
        let console = world.place.opened();
        Some(Scene { gitlab, bench, console, folder, world })
    }

    /// Offers a job, and waits until its machine has power.
    fn begin(&self, payload: Value) -> u64 {
        let id = self.gitlab.offer(&[], Commits::Two, payload);
        let submitter = format!("GitLab job {id} of group/project");
        let running = until(PATIENCE, || {
            let jobs = self.bench.get("/api/v1/jobs").json();
            let mut all = jobs["jobs"].as_array().cloned().unwrap_or_default().into_iter();
            all.find(|job| job["submitter"] == submitter.as_str() && job["state"] == "running")
        });
        let running = running.unwrap_or_else(|| panic!("job {id} does not run: {}", self.gitlab.job(id).log_text()));
        self.bench.follow(running["id"].as_str().unwrap(), "").wait_for_kind("powered_on");
        id
    }

    /// The machine says this, and the job ends.
    fn end(&mut self, id: u64, words: &str) -> Job {
        self.console.write_all(words.as_bytes()).unwrap();
        self.gitlab.wait_for_end(id)
    }

    /// What the machine's firmware reads.
    fn get(&self, path: &str) -> Vec<u8> {
        let mut curl = self.world.at_dut(Path::new("curl"));
        let output = curl.args(["-sf", "--interface", &DUT.to_string(), &format!("http://{GATEWAY}{path}")]).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{path}: {output:?}");
        output.stdout
    }

    /// Plays the machine of a plain script: gives its files, sends back what is left in `results`, and its exit status.
    fn play_script(&mut self, id: u64, results: &Path, exit: u32) -> (Vec<String>, Job) {
        let script = String::from_utf8(self.get("/gitlab/script.sh")).unwrap();
        let after = |word: &str| script.split(word).nth(1).unwrap_or_else(|| panic!("{word}: {script}"));
        let url = after("WHARF_RESULTS='").split('\'').next().unwrap();
        let nonce = after("wharf: script ").split(' ').next().unwrap();
        fs::write(self.folder.path().join("files.tar"), self.get("/gitlab/files.tar")).unwrap();
        let files = good(Command::new("tar").arg("-tf").arg(self.folder.path().join("files.tar")).output().unwrap());
        let packed = self.folder.path().join("results.tar.gz");
        good(Command::new("tar").arg("-czf").arg(&packed).arg("-C").arg(results).arg(".").output().unwrap());
        let mut curl = self.world.at_dut(Path::new("curl"));
        good(curl.args(["-sf", "--interface", &DUT.to_string(), "-T"]).arg(&packed).arg(url).output().unwrap());
        let ended = self.end(id, &format!("\nwharf: script {nonce} exit {exit}\n[    9.9] reboot: Power down\n"));
        (files.lines().map(str::to_owned).collect(), ended)
    }

    /// A file of the last machine's.
    fn unpacked(&self, name: &str) -> String {
        let archive = self.folder.path().join("files.tar");
        good(Command::new("tar").arg("-xOf").arg(archive).arg(name).output().unwrap())
    }
}

/// The variables of a job of `.ci-tron-b2c-job-v1`: Mesa's where there are some, without what is fetched from elsewhere.
fn of_ci_tron() -> Vec<Value> {
    let sets = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(CORPUS)).ok();
    let sets: Option<Value> = sets.map(|text| serde_json::from_slice(&text).unwrap());
    let mut all = sets.map_or_else(Default::default, |sets| sets["raw"].as_object().unwrap().clone());
    all.retain(|name, value| {
        !name.ends_with("__URL")
            && !name.contains("__GPU__")
            && !name.contains("_ARTIFACT__INSTALL__")
            && value.is_string()
    });
    all.retain(|name, _| {
        !name.starts_with("CI_TRON_KERNEL") && !["CI_PROJECT_DIR", "CI_JOB_ID"].contains(&name.as_str())
    });
    for (name, value) in [
        ("CI_TRON_PATTERN__SESSION_END__REGEX", "^the end$"),
        ("CI_TRON_PATTERN__JOB_SUCCESS__REGEX", "^all is good$"),
        ("CI_TRON_EXECUTORCTL_EXTRA_ARGS__SHARE_FOLDER", "--share-directory ${CI_TRON__B2C_SHARE_FOLDER_PATH}"),
        ("CI_TRON__B2C_SHARE_FOLDER_PATH", "./"),
        ("CI_TRON_HTTP_ARTIFACT__KEYS__PATH", "/keys"),
        (
            "CI_TRON_HTTP_ARTIFACT__KEYS__DATA",
            "#!jinja2\n{{ job.bucket.url }} {{ job.bucket.name }} {{ job.bucket.access_key }} {{ job.bucket.secret_key }}",
        ),
        ("GIT_STRATEGY", "none"),
    ] {
        all.insert(name.to_owned(), value.into());
    }
    all.into_iter().map(|(key, value)| json!({"key": key, "value": value})).collect()
}

#[test]
fn files_go_to_the_machine_and_come_back_and_caches_go_from_job_to_job_of_one_project() {
    let Some(mut scene) = Scene::start() else { return };
    the_shared_folder_of_ci_trons_variables(&mut scene);
    caches_submodules_and_large_files(&mut scene);
    a_repository_that_is_too_large(&scene);
}

fn the_shared_folder_of_ci_trons_variables(scene: &mut Scene) {
    scene.gitlab.put_file("/jobs/4711/artifacts", &zip(&[("out/tool.sh", "echo tool"), ("stale", "x")]));
    // A server that is away for a moment costs no job.
    scene.gitlab.fail("GET /jobs/4711/artifacts", [Fault::Answer(502, "")]);
    let id = scene.begin(json!({
        "variables": of_ci_tron(),
        "dependencies": [{"id": 4711, "name": "build", "token": "t", "artifacts_file": {"filename": "a.zip", "size": 1}}],
        "artifacts": [{"paths": ["results/", "stale", "wharf/verdict.json"], "when": "always"}],
        "cache": [{"key": "deps-non_protected", "paths": [".cache/"], "policy": "pull-push"}],
    }));
    let text = String::from_utf8(scene.get("/keys")).unwrap();
    let [endpoint, own, access_key, secret_key] = text.trim().split(' ').collect::<Vec<_>>()[..] else {
        panic!("{text}")
    };
    let [endpoint, own, access_key, secret_key] = [endpoint, own, access_key, secret_key].map(str::to_owned);
    let keys = Keys { endpoint, own, access_key, secret_key };
    let ask = |path: &str, more: &[&str]| scene.world.curl(DUT, &keys, &format!("/{}/{path}", keys.own), more);
    let (status, body) = ask("out/tool.sh", &["-i"]);
    assert!(status == "200" && body.ends_with("echo tool"), "{status} {body}");
    // As MinIO's client keeps it: `preserve` makes it a program again.
    assert!(body.to_lowercase().contains("x-amz-meta-mc-attrs: gid:0/gname:root/mode:33"), "{body}");
    let report = scene.folder.path().join("report");
    fs::write(&report, "<testsuite/>").unwrap();
    let report = report.display().to_string();
    for path in ["results/junit.xml", ".cache/thing"] {
        let (status, body) = ask(path, &["-T", &report, "-H", "x-amz-meta-mc-attrs: mode:33261"]);
        assert_eq!(status, "200", "{path}: {body}");
    }
    assert_eq!(ask("stale", &["-X", "DELETE"]).0, "204");
    let ended = scene.end(id, "all is good\nthe end\n");
    assert_eq!(ended.status, "success", "{}", ended.log_text());
    expect_in(&ended.log_text(), &["begins with 2 files", "1 files are kept as `deps-non_protected`"]);
    assert_eq!(file_of(&ended, "results/junit.xml"), "<testsuite/>");
    let names = "import sys, zipfile; print([(it.filename, oct(it.external_attr >> 16)) for it in zipfile.ZipFile(sys.argv[1]).infolist()])";
    let archive = scene.folder.path().join("uploaded.zip");
    fs::write(&archive, &ended.upload("archive").bytes).unwrap();
    let names = good(Command::new("python3").args(["-c", names]).arg(&archive).output().unwrap());
    assert_eq!(names.trim(), "[('wharf/verdict.json', '0o100644'), ('results/junit.xml', '0o100755')]");
}

/// A repository with a submodule of the same instance, and a file of Git LFS; its commit.
fn repository(scene: &Scene) -> String {
    let script = r#"set -e
        export GIT_AUTHOR_NAME=me GIT_AUTHOR_EMAIL=me@example.org GIT_COMMITTER_NAME=me GIT_COMMITTER_EMAIL=me@example.org
        mkdir -p group/project.git group/lib.git; cd group/lib.git
        git init -q -b main; echo 'of the library' >lib.txt; git add .; git commit -q -m one; inner=$(git rev-parse HEAD)
        cd ../project.git
        git init -q -b main; echo '*.bin filter=lfs' >.gitattributes
        printf 'version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 5\n' "$DIGEST" >large.bin
        printf '[submodule "lib"]\n\tpath = lib\n\turl = %s\n' "$LIB" >.gitmodules
        git update-index --add --cacheinfo "160000,$inner,lib"; git add .gitattributes .gitmodules large.bin
        git commit -q -m one; git rev-parse HEAD"#;
    let digest = gateway::registry::Digest::of(b"large").to_string();
    let digest = digest.trim_start_matches("sha256:");
    scene.gitlab.put_file(&format!("/lfs/{digest}"), b"large");
    scene.gitlab.serve_repositories(scene.folder.path());
    // Nobody has a key for SSH here.
    commit(scene.folder.path(), script, digest, "git@127.0.0.1:group/lib.git")
}

fn commit(folder: &Path, script: &str, digest: &str, lib: &str) -> String {
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).current_dir(folder).env("DIGEST", digest).env("LIB", lib);
    good(shell.output().unwrap()).trim().to_owned()
}

fn caches_submodules_and_large_files(scene: &mut Scene) {
    let sha = repository(scene);
    let git_info = json!({"ref": "main", "sha": sha, "repo_url": format!("{}/group/project.git", scene.gitlab.url()), "depth": 20,
                          "refspecs": ["+refs/heads/main:refs/remotes/origin/main"]});
    let results = scene.folder.path().join("results");
    fs::create_dir_all(results.join(".cache/bin")).unwrap();
    fs::write(results.join(".cache/thing"), "kept by a script").unwrap();
    std::os::unix::fs::symlink("../thing", results.join(".cache/bin/link")).unwrap();
    let id = scene.begin(json!({
        "git_info": git_info,
        "services": [{"name": "postgres:15"}],
        "variables": [
            {"key": "GIT_SUBMODULE_STRATEGY", "value": "recursive"}, {"key": "GIT_SUBMODULE_FORCE_HTTPS", "value": "true"},
            {"key": "KEY", "value": "deps"}, {"key": "CERT", "value": "of $KEY", "file": true}, {"key": "USES", "value": "$CERT"},
        ],
        "cache": [
            {"key": "new-non_protected", "fallback_keys": ["$KEY-non_protected"], "paths": [".cache/"], "when": "always"},
            {"key": "read-non_protected", "paths": ["lib/"], "policy": "pull"},
        ],
    }));
    let (files, ended) = scene.play_script(id, &results, 0);
    assert_eq!(ended.status, "success", "{}", ended.log_text());
    let said = [
        "Passed over, as there is no such thing on this farm: services (postgres:15)",
        "2 files are kept as `new-non_protected`",
    ];
    expect_in(&ended.log_text(), &said);
    for line in [
        "cache: 1 files of `deps-non_protected`, 12 bytes",
        "nothing of `read-non_protected` yet",
        "Git LFS: 1 files of 5 bytes",
    ] {
        assert!(ended.log_text().contains(line), "{line}: {}", ended.log_text());
    }
    let environment = scene.unpacked(".wharf/environment");
    for name in ["CERT", "USES"] {
        assert!(environment.contains(&format!("export {name}='/builds/group/project.tmp/CERT'\n")), "{environment}");
    }
    assert_eq!(scene.unpacked("builds/group/project.tmp/CERT"), "of deps");
    assert_eq!(scene.unpacked("builds/group/project/large.bin"), "large");
    assert_eq!(scene.unpacked("builds/group/project/lib/lib.txt"), "of the library\n");
    assert!(files.contains(&"builds/group/project/.cache/thing".to_owned()), "{files:?}");
    // What that one kept the next begins with; another project's does not.
    for (project, expected) in [(17, true), (18, false)] {
        let id = scene.begin(json!({
            "job_info": {"name": "next", "project_id": project, "project_full_path": "group/project"},
            "variables": [{"key": "GIT_STRATEGY", "value": "none"}],
            "cache": [{"key": "new-non_protected", "paths": [".cache/"], "policy": "pull"}],
        }));
        let (files, ended) = scene.play_script(id, &results, 3);
        assert_eq!(ended.exit_code, Some(3), "{}", ended.log_text());
        for name in ["thing", "bin/link"] {
            let has = files.contains(&format!("builds/group/project/.cache/{name}"));
            assert_eq!(has, expected, "project {project}: {files:?}");
        }
        if expected {
            assert_eq!(scene.unpacked("builds/group/project/.cache/thing"), "kept by a script");
        }
    }
}

/// A few KiB as git sends it, and 40 MiB as the machine would get it.
fn a_repository_that_is_too_large(scene: &Scene) {
    let script = "set -e; mkdir -p group/bomb.git; cd group/bomb.git; git init -q -b main
        dd if=/dev/zero of=zeros bs=1M count=40 status=none; git add zeros
        git -c user.name=me -c user.email=me@example.org commit -q -m one; rm zeros; git rev-parse HEAD";
    let sha = commit(scene.folder.path(), script, "", "");
    let git_info = json!({"ref": "main", "sha": sha, "repo_url": format!("{}/group/bomb.git", scene.gitlab.url())});
    let features = json!({"failure_reasons": ["runner_configuration_error"]});
    let id = scene.gitlab.offer(&[], Commits::Two, json!({"git_info": git_info, "features": features}));
    let ended = scene.gitlab.wait_for_end(id);
    assert_eq!(ended.failure_reason.as_deref(), Some("runner_configuration_error"), "{}", ended.log_text());
    let said = "the job's files have more than 8 MiB, which is all that a job may have here (`checkout.quota`)";
    expect_in(&ended.log_text(), &[said]);
    let state = scene.bench.state().join("gitlab");
    let left = || fs::read_dir(&state).unwrap().flatten().any(|folder| folder.path().join("begins-with").exists());
    assert!(!left(), "its files are removed before the end is told");
}

/// Whether it was written down that a job was refused this.
fn audited(bench: &Bench, what: &str) -> bool {
    let text = fs::read_to_string(bench.state().join("audit.log")).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .any(|line| line["what"] == what && line["who"].as_str().is_some_and(|who| who.starts_with("GitLab job ")))
}

#[test]
fn what_a_job_names_is_not_fetched_from_the_farms_own_network() {
    let pair = shared();
    let reasons = json!({"failure_reasons": ["runner_configuration_error", "runner_external_dependency_failure"]});
    for (url, why) in [
        ("https://127.0.0.1:9/job.yml", "it leads to 127.0.0.1"),
        ("https://[::1]:9/job.yml", "it leads to ::1"),
        ("https://169.254.169.254/job.yml", "it leads to 169.254.169.254"),
        ("https://10.79.0.1/job.yml", "it leads to 10.79.0.1"),
    ] {
        let variables = json!([{"key": "WHARF_JOB_URL", "value": url}]);
        let id = pair.gitlab.offer(&["wrong"], Commits::One, json!({"variables": variables, "features": reasons}));
        let ended = pair.gitlab.wait_for_end(id);
        assert_eq!(ended.failure_reason.as_deref(), Some("runner_configuration_error"), "{}", ended.log_text());
        expect_in(&ended.log_text(), &["is not fetched for jobs: ", why]);
        assert!(audited(&pair.bench, &format!("fetch {url}")), "{url}");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("group/project.git")).unwrap();
    pair.gitlab.serve_repositories(folder.path());
    let mut of_last = Value::Null;
    for (lib, why) in [
        ("http://127.0.0.1:9/lib.git", "127.0.0.1:9 is not fetched for jobs: "),
        ("http://169.254.169.254/lib.git", "169.254.169.254:80 is not fetched for jobs: "),
        ("file:///etc", "it is fetched by http or https alone"),
        ("git@gitlab.example.org:g/x.git", "set GIT_SUBMODULE_FORCE_HTTPS to true"),
    ] {
        let script =
            "set -e; cd group/project.git; rm -rf .git; git init -q -b main; git config uploadpack.allowFilter true
            git config uploadpack.allowAnySHA1InWant true; mkdir -p ci; echo 'deployment: 7' >ci/job.yml; git add ci
            printf '[submodule \"lib\"]\n\tpath = lib\n\turl = %s\n' \"$LIB\" >.gitmodules; git add .gitmodules
            git update-index --add --cacheinfo 160000,0123456789012345678901234567890123456789,lib
            git -c user.name=me -c user.email=me@example.org commit -q -m one; git rev-parse HEAD";
        let sha = commit(folder.path(), script, "", lib);
        let git_info =
            json!({"ref": "main", "sha": sha, "repo_url": format!("{}/group/project.git", pair.gitlab.url())});
        let variables = json!([{"key": "GIT_SUBMODULE_STRATEGY", "value": "normal"}]);
        let job = json!({"git_info": git_info.clone(), "variables": variables, "features": reasons});
        let ended = pair.gitlab.wait_for_end(pair.gitlab.offer(&["wrong"], Commits::One, job));
        assert_eq!(ended.failure_reason.as_deref(), Some("runner_external_dependency_failure"), "{}", ended.log_text());
        expect_in(&ended.log_text(), &[&format!("the submodule {lib}: "), why]);
        assert_eq!(audited(&pair.bench, &format!("fetch {lib}/info/refs")), lib.starts_with("http"), "{lib}");
        of_last = git_info;
    }
    a_description_comes_by_git(&pair, &of_last);
}

/// Where the API does not give the job's token the repository's files, which is the rule.
fn a_description_comes_by_git(pair: &Pair, git_info: &Value) {
    for (path, said) in [
        ("ci/job.yml", ["The job description is ci/job.yml", "deployment"]),
        (
            "ci/other.yml",
            ["cannot fetch `ci/other.yml` of the repository, by its API: ", "; by git: git cat-file failed: "],
        ),
    ] {
        let variables = json!([{"key": "WHARF_JOB_FILE", "value": path}]);
        let job = json!({"git_info": git_info, "variables": variables});
        let ended = pair.gitlab.wait_for_end(pair.gitlab.offer(&["wrong"], Commits::One, job));
        expect_in(&ended.log_text(), &said);
    }
}
