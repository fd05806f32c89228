//! The farm as a GitLab runner: jobs of every form come, run on simulated machines, and their states, logs and files go back, whatever goes
//! wrong on the way.
//!
//! The instance is ours (`tests::coordinator`), by the rules of GitLab's server. Tests share a farm; each asks for a machine of its own.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::bench::{Bench, Shared, need_programs, need_virtual_machines, until};
use tests::coordinator::{ADMIN_TOKEN, Commits, Coordinator, Job};
use tests::instance::Fault;
use tests::packages::python;

use crate::farms::{HELLO, QEMU, WHARF, expect_in, linux_job, short};

/// Longer than anything here takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A farm, and the instance that it asks.
pub(crate) struct Pair {
    pub(crate) bench: Bench,
    pub(crate) gitlab: Coordinator,
    _folders: Vec<tempfile::TempDir>,
}

/// Simulated machines with a tag each, and the farm file's `gitlab` for them.
fn farm(gitlab: &Coordinator, folder: &std::path::Path, duts: &[(&str, &str)], more: &str) -> String {
    let token = folder.join("token");
    std::fs::write(&token, format!("{ADMIN_TOKEN}\n")).unwrap();
    let entry = format!(
        "gitlab:\n  - url: {}\n    token_file: {}\n    register_for: {{project: 17}}\n{more}",
        gitlab.url(),
        token.display()
    );
    crate::farms::farm_of(duts) + &entry
}

impl Pair {
    fn start(duts: &[(&str, &str)], more: &str) -> Pair {
        need_programs(&[("/usr/lib/ipxe/undionly.kpxe", "ipxe"), ("/usr/bin/python3", "python3")]);
        let (gitlab, folder) = (Coordinator::start(), tempfile::tempdir().unwrap());
        let bench = Bench::start(WHARF, &farm(&gitlab, folder.path(), duts, more));
        Pair { bench, gitlab, _folders: vec![folder] }
    }

    /// A job whose description is in a variable.
    fn offer(&self, tag: &str, job: &str, more: Value) -> u64 {
        self.offer_as(Commits::Two, tag, job, more)
    }

    fn offer_as(&self, commits: Commits, tag: &str, job: &str, more: Value) -> u64 {
        let mut payload = json!({"variables": [{"key": "WHARF_JOB", "value": job, "raw": true}]});
        for (key, value) in more.as_object().into_iter().flatten() {
            match (key.as_str(), payload[key].as_array_mut()) {
                ("variables", Some(all)) => all.extend(value.as_array().cloned().unwrap_or_default()),
                _ => payload[key] = value.clone(),
            }
        }
        self.gitlab.offer(&[tag], commits, payload)
    }

    fn expect_free(&self, tag: &str) {
        let name = format!("odd-{tag}-1");
        self.bench.wait_until_free(&name, PATIENCE).unwrap_or_else(|dut| panic!("{name} is not free: {dut}"));
    }
}

/// The farm that most tests share.
pub(crate) fn shared() -> Arc<Pair> {
    static SHARED: Shared<Pair> = Shared::new();
    SHARED.running(pair_for_most)
}

fn pair_for_most() -> Pair {
    let names = ["whole", "faults", "cancel", "gently", "waits", "taken", "forms", "forms-too", "vars", "wrong"];
    let mut duts: Vec<_> = names.iter().map(|name| (*name, "")).collect();
    duts.push(("loud", "misbehave: [{what: console-floods, for: 1 s}]"));
    let listens = tempfile::tempdir().unwrap();
    let script = listens.path().join("listens.yml");
    std::fs::write(&script, "- say: 'who is there?'\n- expect: anna\n- say: 'hello anna'\n- hang\n").unwrap();
    let listening = format!("console: '{}'", script.display());
    duts.push(("screen", &listening));
    let more = "    runners: [{name: one, per: dut}]\n    log_size: 64k\n    terminal: {listen: 127.0.0.1:0}\n";
    let mut pair = Pair::start(&duts, more);
    pair._folders.push(listens);
    pair
}

/// One that goes on for ever.
fn endless(tag: &str) -> String {
    short(tag, "wharf.end=hang")
}

/// A file of an uploaded archive.
pub(crate) fn file_of(job: &Job, name: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("artifacts.zip");
    std::fs::write(&archive, &job.upload("archive").bytes).unwrap();
    let output = std::process::Command::new("python3")
        .args(["-c", "import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))"])
        .arg(&archive)
        .arg(name)
        .output()
        .unwrap();
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_job_is_pending_while_its_machine_boots_then_its_log_its_files_and_its_verdict_come_masked() {
    let pair = shared();
    // What it knows of registries, as it is written and as it is used.
    let auth = "bXk6cGxhaW4tcGFzcy13b3Jk";
    let job = short("whole", &format!("secret=$SECRET {auth} plain-pass-word"));
    let logins = json!({"auths": {"registry.example.org": {"auth": auth}}}).to_string();
    let more = json!({
        "variables": [
            {"key": "SECRET", "value": "hunter2-is-secret", "masked": true},
            {"key": "DOCKER_AUTH_CONFIG", "value": logins},
        ],
        "artifacts": [
            {"paths": ["wharf/"], "when": "always", "expire_in": "1 week"},
            {"paths": ["wharf/junit.xml"], "when": "always", "artifact_type": "junit", "artifact_format": "gzip"},
            {"paths": ["results/"], "when": "on_failure"},
        ],
    });
    let job = job.replace("$SECRET", "{{ environ.SECRET }}");
    let ended = pair.gitlab.wait_for_end(pair.offer("whole", &job, more));
    assert_eq!(ended.history, ["pending", "running", "success"], "{}", ended.log_text());
    let log = ended.log_text();
    expect_in(
        &log,
        &[
            "of the farm odd takes GitLab's job",
            "section_start:",
            ":wharf_setup\r",
            "section_start:",
            ":wharf_boot_1\r",
            "Command line: ",
            "secret=[MASKED] [MASKED] [MASKED]",
            "wharf: job done\r\n",
            "section_end:",
            ":wharf_boot_1\r",
            "Verdict: PASS",
        ],
    );
    let console = file_of(&ended, "wharf/console.log");
    expect_in(&console, &["secret=[MASKED]", "wharf: job done"]);
    for text in [&log, &console, &file_of(&ended, "wharf/events.jsonl")] {
        assert!(!text.contains("hunter2") && !text.contains("plain-pass") && !text.contains(auth), "{text}");
    }
    assert_eq!(serde_json::from_str::<Value>(&file_of(&ended, "wharf/verdict.json")).unwrap()["status"], "PASS");
    let junit = ended.upload("junit");
    assert_eq!((junit.format.as_str(), &junit.bytes[..2]), ("gzip", &b"\x1f\x8b"[..]));
    assert_eq!(ended.uploads.len(), 2);
    pair.expect_free("whole");
}

#[test]
fn calls_that_fail_are_repeated_until_the_log_the_files_and_the_last_word_have_arrived_whole() {
    let pair = shared();
    let again = |status, header| Fault::Answer(status, header);
    let artifacts = json!({"artifacts": [{"paths": ["wharf/verdict.json"], "when": "always"}]});
    let id = pair.offer_as(Commits::One, "faults", &short("faults", ""), artifacts);
    let path = format!("/jobs/{id}");
    pair.gitlab.fail(
        &format!("PATCH {path}"),
        [again(503, ""), Fault::DoneThenLost, again(416, ""), again(429, "Retry-After: 1"), again(416, "Range: 0-0")],
    );
    pair.gitlab.fail(&format!("POST {path}"), [Fault::Lost]);
    // Little is said of a mistake; each PUT after the first two is the last word.
    let mistake = json!({"variables": [{"key": "WHARF_JOB", "value": "deployment: 7"}]});
    let wrong = pair.gitlab.offer(&["wrong"], Commits::One, mistake);
    let path_of_wrong = format!("/jobs/{wrong}");
    pair.gitlab.fail(&format!("PUT {path_of_wrong}"), [again(429, ""), again(202, ""), again(500, ""), again(412, "")]);
    let ended = pair.gitlab.wait_for_end(id);
    assert_eq!((ended.status.as_str(), ended.history.first().map(String::as_str)), ("success", Some("running")));
    expect_in(&ended.log_text(), &["takes GitLab's job", "wharf: init started", "wharf: job done", "Verdict: PASS"]);
    assert_eq!(ended.log_text().matches("wharf: init started").count(), 1);
    assert_eq!(ended.upload("archive").format, "zip");
    let ended = pair.gitlab.wait_for_end(wrong);
    assert_eq!((ended.status.as_str(), ended.failure_reason.as_deref()), ("failed", Some("script_failure")));
    expect_in(&ended.log_text(), &["WHARF_JOB", "the key `target` is missing"]);
    for path in [path, path_of_wrong] {
        assert!(pair.gitlab.has_failed(&path), "not every fault of {path} happened");
    }
    pair.expect_free("faults");
}

#[test]
fn a_cancelled_job_frees_its_machine_and_a_gently_cancelled_one_brings_its_files_too() {
    let pair = shared();
    let artifacts = json!({"artifacts": [{"paths": ["wharf/console.log"], "when": "always"}]});
    let [at_once, gently] = ["cancel", "gently"].map(|tag| pair.offer(tag, &endless(tag), artifacts.clone()));
    for id in [at_once, gently] {
        pair.gitlab.wait_for(id, "said that it is done", |job| job.log_text().contains("wharf: job done"));
    }
    let asked = Instant::now();
    pair.gitlab.set_status(at_once, "canceled");
    pair.gitlab.set_status(gently, "canceling");
    pair.expect_free("cancel");
    println!("its machine was free {:?} after the cancel", asked.elapsed());
    pair.expect_free("gently");
    println!("the gently cancelled one's {:?}", asked.elapsed());
    let ended = pair.gitlab.wait_for_end(gently);
    assert_eq!(ended.history, ["pending", "running", "canceling", "canceled"]);
    assert!(file_of(&ended, "wharf/console.log").contains("wharf: job done"));
    expect_in(&ended.log_text(), &["cancelled by GitLab (cancelled in GitLab)"]);
    let job = pair.gitlab.job(at_once);
    assert_eq!((job.history.last().map(String::as_str), job.uploads.len()), (Some("canceled"), 0));
}

#[test]
fn a_job_that_is_cancelled_while_it_boots_or_at_its_last_word_frees_its_machine_and_one_whose_files_are_refused_fails()
{
    let pair = shared();
    let gone = Fault::Answer(403, "Job-Status: canceled");
    // While it boots: it stays pending until then, and is never accepted.
    let boots = pair.offer("cancel", &endless("cancel"), json!({}));
    pair.gitlab.fail(&format!("PUT /jobs/{boots}"), [Fault::Answer(502, ""), gone.clone()]);
    // At its last word: of a mistake little is said, and the second PUT is that.
    let mistake = json!({"variables": [{"key": "WHARF_JOB", "value": "deployment: 7"}]});
    let last = pair.gitlab.offer(&["wrong"], Commits::One, mistake);
    pair.gitlab.fail(&format!("PUT /jobs/{last}"), [Fault::Answer(200, ""), gone]);
    let artifacts = json!({"artifacts": [{"paths": ["wharf/verdict.json"], "when": "always"}]});
    let refused = pair.offer("gently", &short("gently", ""), artifacts);
    pair.gitlab.fail(&format!("POST /jobs/{refused}"), [Fault::Answer(413, "")]);
    let stopped = || Some(()).filter(|()| pair.gitlab.has_failed(&format!("/jobs/{boots}")));
    until(PATIENCE, stopped).expect("it is told twice");
    pair.expect_free("cancel");
    assert_eq!(pair.gitlab.job(boots).history, ["pending"]);
    let ended = pair.gitlab.wait_for_end(refused);
    assert_eq!((ended.status.as_str(), ended.uploads.len()), ("failed", 0), "{}", ended.log_text());
    assert_eq!((ended.failure_reason.as_deref(), ended.exit_code), (Some("script_failure"), Some(1)));
    expect_in(
        &ended.log_text(),
        &["Verdict: PASS", "GitLab did not take artifacts.zip (archive, ", " bytes): they are larger than"],
    );
    pair.expect_free("gently");
    let kept = |id: u64| {
        let names = std::fs::read_dir(pair.bench.state().join("gitlab")).into_iter().flatten().flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().ends_with(&format!("-{id}"))).count()
    };
    let nothing = || Some(()).filter(|()| [boots, last, refused].map(kept) == [0, 0, 0]);
    until(PATIENCE, nothing).expect("nothing is kept of what is over");
    assert_eq!(pair.gitlab.job(last).history, ["running"]);
}

#[test]
fn a_job_that_is_cancelled_or_taken_away_before_it_runs_holds_nothing() {
    let pair = shared();
    // Somebody has the machine: a job for it stays with GitLab, or, where the question was open already, waits in the farm's queue.
    let mut first = pair.bench.submit(&endless("waits"), "");
    first.wait_for_kind("leased");
    // This one comes to a runner whose machine is free, and then another runner has it.
    let id = pair.offer("taken", &endless("taken"), json!({}));
    pair.gitlab.fail(&format!("PUT /jobs/{id}"), [Fault::Answer(409, "")]);
    let waiting = pair.offer("waits", &short("waits", ""), json!({}));
    pair.gitlab.wait_for(id, "was asked for", |job| job.status == "pending");
    let gone = || pair.gitlab.has_failed(&format!("/jobs/{id}")).then_some(());
    until(PATIENCE, gone).expect("another runner has it");
    pair.expect_free("taken");
    assert_ne!(pair.gitlab.job(waiting).status, "running");
    first.cancel();
    let ended = pair.gitlab.wait_for_end(waiting);
    assert_eq!(ended.history, ["pending", "running", "success"]);
}

#[test]
fn a_description_comes_from_the_repository_or_an_artifact_and_brings_the_files_it_names() {
    let pair = shared();
    let storage = "    storage:\n      http: [{path: /greeting, attached: out/greeting.txt}]\n";
    let words = "wharf.url={{ job.http.url }}/greeting wharf.beats=1";
    let job = linux_job("forms", words, "overall: {minutes: 5}", storage);
    pair.gitlab.put_file("/projects/17/repository/files/ci%2Fjob.yml/raw", job.as_bytes());
    pair.gitlab.put_file("/jobs/4711/artifacts", &zip(&[("out/greeting.txt", "eleven here"), ("ci/job.yml", &job)]));
    let needs = json!([{"id": 4711, "name": "build", "token": "t", "artifacts_file": {"filename": "artifacts.zip", "size": 1}}]);
    let offered = [("WHARF_JOB_FILE", "forms"), ("WHARF_JOB_ARTIFACT", "forms-too")].map(|(variable, tag)| {
        let variables = json!([{"key": "NAME", "value": "job"}, {"key": variable, "value": "ci/$NAME.yml"}]);
        (variable, pair.gitlab.offer(&[tag], Commits::Two, json!({"variables": variables, "dependencies": needs})))
    });
    for (variable, id) in offered {
        let ended = pair.gitlab.wait_for_end(id);
        assert_eq!(ended.status, "success", "{variable}: {}", ended.log_text());
        expect_in(&ended.log_text(), &["The job description is ci/job.yml", "/greeting 11 bytes"]);
    }
}

/// A zip archive without compression (APPNOTE 4.3).
pub(crate) fn zip(files: &[(&str, &str)]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("a.zip");
    let script = "import sys, zipfile\nwith zipfile.ZipFile(sys.argv[1], 'w') as it:\n for n, t in zip(sys.argv[2::2], sys.argv[3::2]): it.writestr(n, t)";
    let arguments = files.iter().flat_map(|(name, text)| [*name, *text]);
    let status =
        std::process::Command::new("python3").args(["-c", script]).arg(&archive).args(arguments).status().unwrap();
    assert!(status.success());
    let mut bytes = Vec::new();
    std::fs::File::open(&archive).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_job_in_ci_trons_variables_boots_what_they_say() {
    let pair = shared();
    let variable = |key: &str, value: &str| json!({"key": key, "value": value});
    let variables = json!([
        variable("CI_TRON_PATTERN__SESSION_END__REGEX", "reboot: Power [Dd]own"),
        variable("CI_TRON_PATTERN__JOB_SUCCESS__REGEX", "^wharf: job done\\r?$"),
        variable("CI_TRON_TIMEOUT__OVERALL__MINUTES", "5"),
        variable("CI_TRON_KERNEL__URL", &format!("{}/images/kernel", pair.bench.url())),
        variable("CI_TRON_INITRAMFS__MINE__URL", &format!("{}/images/initramfs", pair.bench.url())),
        variable("CI_TRON_KERNEL_CMDLINE__10_WHO", "me={{ dut.full_name }}"),
        variable(
            "CI_TRON_KERNEL_CMDLINE__20_GET",
            "wharf.url={{ job.http.url }}${CI_TRON_HTTP_ARTIFACT__CFG__PATH} wharf.beats=1"
        ),
        variable("CI_TRON_HTTP_ARTIFACT__CFG__PATH", "/cfg"),
        variable("CI_TRON_HTTP_ARTIFACT__CFG__DATA__00", "#!jinja2"),
        variable("CI_TRON_HTTP_ARTIFACT__CFG__DATA__01", "{{ environ.CI_TRON__WORD }}"),
        variable("CI_TRON__WORD", "nine-char"),
    ]);
    let ended = pair.gitlab.wait_for_end(pair.gitlab.offer(&["vars"], Commits::Two, json!({"variables": variables})));
    assert_eq!(ended.status, "success", "{}", ended.log_text());
    expect_in(
        &ended.log_text(),
        &["The job description is CI_TRON_*", "me=odd-vars-1", "/cfg 10 bytes", "Verdict: PASS"],
    );
}

#[test]
fn a_log_has_its_limit_and_the_whole_console_is_an_artifact_then() {
    let pair = shared();
    let ended =
        pair.gitlab.wait_for_end(pair.offer("loud", &short("loud", "").replace("beats=1 ", "beats=8 "), json!({})));
    let log = ended.log_text();
    expect_in(&log, &["The log has more than 64 KiB", "Verdict: PASS"]);
    assert!(log.len() < 200 * 1024, "{} bytes", log.len());
    assert!(file_of(&ended, "wharf/console.log").contains("wharf: job done"));
}

/// Workhorse's side of terminals, by another's program: arguments are the authority's file, then steps of some words each.
const WORKHORSE: &str = r#"
import base64, ssl, sys, time
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

context = ssl.create_default_context(cafile=sys.argv[1])
plain, text = "terminal.gitlab.com", "base64.terminal.gitlab.com"

def terminal(url, secret, protocol=plain):
    return connect(url.replace("https://", "wss://") + "/exec", ssl=context, subprotocols=[protocol],
                   additional_headers={"Authorization": secret}, proxy=None)

def refused(*where):
    try:
        terminal(*where).close()
    except InvalidStatus as refusal:
        return refusal.response.status_code

def until(words):
    seen = b""
    while words not in seen:
        piece = socket.recv()
        seen += piece if socket.subprotocol == plain else base64.b64decode(piece)

for step in sys.argv[2:]:
    verb, *rest = step.split(" ", 2)
    if verb == "refused":
        print(refused(*rest), flush=True)
    elif verb == "plain":
        socket = terminal(*rest)
        assert socket.subprotocol == plain
    elif verb == "text":
        socket = terminal(*rest, text)
        assert socket.subprotocol == text
    elif verb == "type":
        socket.send(base64.b64encode((rest[0] + "\n").encode()).decode())
    elif verb == "until":
        until(" ".join(rest).encode())
    elif verb == "tell":
        print(*rest, flush=True)
    elif verb == "close":
        socket.close()
    elif verb == "free":
        while refused(*rest) == 423:
            time.sleep(0.05)
    elif verb == "end":
        try:
            while True:
                socket.recv()
        except ConnectionClosed as closed:
            print("closed", closed.rcvd.code, flush=True)
    elif verb == "gone":
        while refused(*rest) != 404:
            time.sleep(0.05)
"#;

#[test]
fn gitlabs_web_terminal_is_the_console_of_the_job_while_it_runs_for_who_has_its_secret() {
    let (pair, folder) = (shared(), tempfile::tempdir().unwrap());
    let program = python(&["websockets==15.0.1"]).join("python");
    let id = pair.offer("screen", &endless("screen"), json!({}));
    let job = pair.gitlab.wait_for(id, "asks who is there", |job| job.log_text().contains("who is there?"));
    // Shares and limits are its project's.
    let leases = pair.bench.get("/api/v1/leases").json();
    let project = format!("{}/project/17", pair.gitlab.url().trim_start_matches("http://"));
    let mut on_it = leases["leases"].as_array().into_iter().flatten().filter(|it| it["resource"] == "odd-screen-1");
    assert!(on_it.any(|lease| lease["subject"] == project), "no {project}: {leases:#}");
    let said = |key: &str| job.session[key].as_str().unwrap_or_else(|| panic!("{}", job.session)).to_owned();
    let (url, secret, authority) = (said("url"), said("authorization"), folder.path().join("authority.pem"));
    std::fs::write(&authority, said("certificate")).unwrap();
    let steps = [
        "refused URL another",
        "refused URL0 SECRET",
        "text URL SECRET",
        "until who is there?",
        "type anna",
        "until hello anna",
        "refused URL SECRET",
        "close",
        "free URL SECRET",
        "plain URL SECRET",
        "until hello anna",
        "tell looks again",
        "end",
        "gone URL SECRET",
    ];
    let steps = steps.map(|step| step.replace("URL", &url).replace("SECRET", &secret));
    let mut command = std::process::Command::new(program);
    command.args(["-c", WORKHORSE]).arg(&authority).args(steps).stdout(std::process::Stdio::piped());
    let mut workhorse = command.spawn().unwrap();
    let mut lines = std::io::BufReader::new(workhorse.stdout.take().unwrap());
    let mut line = || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut lines, &mut line).unwrap();
        line
    };
    assert_eq!([line(), line(), line()], ["401\n", "404\n", "423\n"]);
    pair.gitlab.wait_for(id, "tells that somebody looks", |job| job.log_text().contains("GitLab's web terminal"));
    assert_eq!(line(), "looks again\n");
    pair.gitlab.set_status(id, "canceled");
    assert_eq!(line(), "closed 1000\n");
    assert!(workhorse.wait().unwrap().success(), "who comes later finds nothing");
    pair.expect_free("screen");
}

/// How long the log of the test below is, in MiB.
const LOG_MIB: &str = "WHARF_LOG_MIB";

#[test]
fn a_long_log_arrives_whole() {
    let mib = std::env::var(LOG_MIB).ok().and_then(|text| text.parse().ok()).unwrap_or(8);
    // Ten mebibytes a second, while the console script says its beats.
    let floods = format!("misbehave: [{{what: console-floods, for: {} ms}}]", mib * 100);
    let pair = Pair::start(&[("long", &floods)], "    log_size: 200M\n");
    let job = linux_job("long", &format!("wharf.beats={}", mib + 5), "overall: {minutes: 5}", "");
    let began = Instant::now();
    let ended = pair.gitlab.wait_for_end(pair.offer("long", &job, json!({})));
    assert_eq!(ended.status, "success");
    println!("{} bytes of log came in {:?}", ended.log.len(), began.elapsed());
    assert!(ended.log.len() > 1 << 20, "{} bytes", ended.log.len());
    expect_in(&ended.log_text(), &["wharf: init started", "wharf: job done", "Verdict: PASS"]);
}

#[test]
fn a_plain_script_runs_on_a_real_boot_and_its_exit_status_comes_back_with_its_files() {
    let gitlab = Coordinator::start();
    need_virtual_machines(WHARF);
    let _place = QEMU.pass();
    let folder = tempfile::tempdir().unwrap();
    let runner = gitlab.make_runner(&["vm"]);
    let token = folder.path().join("runner-token");
    std::fs::write(&token, &runner.token).unwrap();
    let farm = format!(
        "name: script\nnetwork: {{private: {{address: 10.79.0.1/24}}}}\nduts: [{{base_name: vm, mac: '52:54:00:79:00:01', \
         address: 10.79.0.11, machine: {{qemu: {{}}}}}}]\ngitlab: [{{url: '{}', runners: [{{name: vm, per: class, token_file: {}}}]}}]\n\
         registry: {{upstreams: [{{host: '{}', scheme: http}}]}}\n",
        gitlab.url(),
        token.display(),
        gitlab.url().trim_start_matches("http://"),
    );
    let _bench = Bench::start(WHARF, &farm);
    let sha = repository(&gitlab, folder.path());
    gitlab.put_file("/jobs/4711/artifacts", &zip(&[("out/tool.sh", "echo I am a tool")]));
    let job = json!({
        "git_info": {"ref": "main", "sha": sha, "repo_url": format!("{}/group/project.git", gitlab.url()), "depth": 20,
                     "refspecs": ["+refs/heads/main:refs/remotes/origin/main"]},
        "dependencies": [{"id": 4711, "name": "build", "token": "t", "artifacts_file": {"filename": "artifacts.zip", "size": 1}}],
        "variables": [
            {"key": "NAME", "value": "it's {{ me }}"},
            {"key": "SECRET", "value": "hunter2-is-secret", "masked": true},
            {"key": "CERTIFICATE", "value": "line 1\nline 2", "file": true},
            {"key": "OUT", "value": "results"},
        ],
        "steps": [
            {"name": "script", "script": [
                "echo \"$NAME, $SECRET\"", "cat \"$CERTIFICATE\"", "pwd; cat Makefile", "sh out/tool.sh",
                "mkdir -p results/deep; echo '<testsuite name=\"mine\"/>' | tee results/deep/junit.xml",
                "echo 'wharf: script 0123456789abcdef exit 0'", "exit 42",
            ]},
            {"name": "after_script", "script": ["echo \"this is after: $CI_JOB_STATUS\""]},
        ],
        "artifacts": [
            {"paths": ["$OUT/**/*.xml", "wharf/verdict.json"], "when": "always"},
            {"paths": ["results/deep/junit.xml"], "when": "on_failure", "artifact_type": "junit", "artifact_format": "gzip"},
        ],
    });
    let ended = gitlab.wait_for_end(gitlab.offer(&["vm"], Commits::Two, job));
    let log = ended.log_text();
    assert_eq!((ended.failure_reason.as_deref(), ended.exit_code), (Some("script_failure"), Some(42)), "{log}");
    let said = [
        "it's {{ me }}, [MASKED]",
        "line 1",
        "line 2",
        "/builds/group/project",
        "all: from the repository",
        "I am a tool",
        "this is after: failed",
    ];
    expect_in(&log, &said);
    assert_eq!(file_of(&ended, "results/deep/junit.xml"), "<testsuite name=\"mine\"/>\n");
    assert!(file_of(&ended, "wharf/verdict.json").contains("FAIL"));
    assert_eq!(ended.upload("junit").format, "gzip");
    run_in_an_image(&gitlab, folder.path());
}

/// The same machine, and a job in a container's image; then one whose image is not there.
fn run_in_an_image(gitlab: &Coordinator, folder: &std::path::Path) {
    put_image(gitlab, folder);
    let host = gitlab.url().replace("http://", "");
    let job = json!({
        "image": {"name": "$REGISTRY/group/box:1", "executor_opts": {"docker": {"user": "1000:1001"}}},
        "variables": [{"key": "GIT_STRATEGY", "value": "none"}, {"key": "REGISTRY", "value": host}],
        "steps": [{"name": "script", "script": [
            "echo \"$FROM_IMAGE; $(cat /etc/name)\"; [ ! -e /etc/gone ]", "pwd; echo made >made.txt; ln -s made.txt link.txt; busybox id >/dev/stdout", "mount | grep -c ' /proc '",
        ]}],
        "artifacts": [{"paths": ["*.txt"]}],
    });
    let ended = gitlab.wait_for_end(gitlab.offer(&["vm"], Commits::Two, job));
    let log = ended.log_text();
    assert_eq!(ended.status, "success", "{log}");
    expect_in(
        &log,
        &[
            "2 layers",
            "entered",
            "of the image; upper",
            "/builds/group/project",
            "uid=1000",
            "gid=1001",
            "Verdict: PASS",
        ],
    );
    assert_eq!(file_of(&ended, "made.txt"), "made\n");
    assert_eq!(file_of(&ended, "link.txt"), "made.txt", "a link comes back as a link");
    assert!(!log.contains("could not be sent"), "{log}");
    let job = json!({
        "image": {"name": format!("{host}/group/box:2")},
        "features": {"failure_reasons": ["image_pull_failure"]},
    });
    let ended = gitlab.wait_for_end(gitlab.offer(&["vm"], Commits::Two, job));
    assert_eq!(ended.failure_reason.as_deref(), Some("image_pull_failure"), "{}", ended.log_text());
    expect_in(&ended.log_text(), &["the image cannot be had: ", "group/box"]);
}

/// An image of two layers, `group/box:1`: busybox, and something over it.
fn put_image(gitlab: &Coordinator, folder: &std::path::Path) {
    let script = r#"set -e
        for busybox in /bin/busybox "$HOME"/.cache/wharf/busybox/*/busybox; do
            [ -x "$busybox" ] && ! ldd "$busybox" >/dev/null 2>&1 && break
        done
        mkdir -p lower/bin lower/etc upper/etc
        cp "$busybox" lower/bin/busybox
        for name in sh cat ls mount grep; do ln -s busybox lower/bin/$name; done
        printf '#!/bin/sh\necho entered\nexec "$@"\n' >lower/bin/entry
        chmod +x lower/bin/entry
        echo lower >lower/etc/name; echo x >lower/etc/gone
        echo upper >upper/etc/name; : >upper/etc/.wh.gone
        tar -C lower -czf lower.tar.gz bin etc; tar -C upper -cf upper.tar etc"#;
    let output = std::process::Command::new("sh").args(["-c", script]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let put = |bytes: &[u8]| {
        let digest = gateway::registry::Digest::of(bytes).to_string();
        gitlab.put_file(&format!("/v2/group/box/blobs/{digest}"), bytes);
        json!({"mediaType": "application/octet-stream", "digest": digest, "size": bytes.len()})
    };
    let layers = ["lower.tar.gz", "upper.tar"].map(|name| put(&std::fs::read(folder.join(name)).unwrap()));
    let environment = ["PATH=/bin", "FROM_IMAGE=of the image"];
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Env": environment, "Entrypoint": ["/bin/entry"]},
    });
    let manifest = json!({"schemaVersion": 2, "config": put(config.to_string().as_bytes()), "layers": layers});
    gitlab.put_file("/v2/group/box/manifests/1", manifest.to_string().as_bytes());
}

/// A repository of one commit, `group/project`, as the instance has it; its commit.
fn repository(gitlab: &Coordinator, folder: &std::path::Path) -> String {
    let repository = folder.join("group/project.git");
    std::fs::create_dir_all(&repository).unwrap();
    let script = "git init -q -b main . && printf 'all: from the repository\n' >Makefile && git add . && \
                  git -c user.name=me -c user.email=me@example.org commit -q -m one && git rev-parse HEAD";
    let output = std::process::Command::new("sh").args(["-c", script]).current_dir(&repository).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    gitlab.serve_repositories(folder);
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn runners_keep_in_step_with_the_farm_and_with_what_becomes_of_them() {
    let pair = Pair::start(&[("one", ""), ("two", "")], "");
    let named =
        |runners: &[tests::coordinator::Runner], name: &str| runners.iter().find(|it| it.description == name).cloned();
    let both = pair.gitlab.wait_for_runners("two runners", |runners| runners.len() == 2);
    let one = named(&both, "odd-one-1").unwrap();
    assert_eq!(one.tags, ["ci-tron:priority:default", "farm:odd", "one"]);
    // Its tags change: it stays the same runner. The other machine leaves the farm.
    let folder = tempfile::tempdir().unwrap();
    let changed = farm(&pair.gitlab, folder.path(), &[("one", "")], "").replace("tags: [one]", "tags: [one, faster]");
    pair.bench.write_farm(&changed);
    pair.bench.hang_up();
    pair.gitlab.wait_for_runners(
        "one runner with another tag",
        |runners| matches!(runners, [only] if only.id == one.id && only.tags.contains(&"faster".to_owned())),
    );
    // Somebody deletes it: it is made anew, and takes jobs.
    pair.gitlab.delete_runner(one.id);
    let made = pair.gitlab.wait_for_runners("a new runner", |runners| matches!(runners, [only] if only.id != one.id));
    // Somebody takes its token.
    pair.gitlab.rotate(made[0].id);
    let all = pair.gitlab.wait_for_runners("another runner", |runners| runners.iter().any(|it| it.id != made[0].id));
    assert_eq!(all.len(), 2, "whose token is lost cannot be deleted with it: {all:?}");
    // The question for a job fails in every way, and is asked again.
    let wrong = [Fault::Answer(409, ""), Fault::Answer(503, "Retry-After: 0"), Fault::Answer(204, "")];
    pair.gitlab.fail("POST /jobs/request", wrong);
    let ended = pair.gitlab.wait_for_end(pair.offer("faster", &short("one", ""), json!({})));
    assert_eq!(ended.status, "success");
    assert!(pair.gitlab.has_failed("/jobs/request"));
}

#[test]
fn a_runner_that_a_person_made_is_used_with_its_token_as_that_changes() {
    need_programs(&[("/usr/lib/ipxe/undionly.kpxe", "ipxe"), ("/usr/bin/python3", "python3")]);
    let (gitlab, folder) = (Coordinator::start(), tempfile::tempdir().unwrap());
    let token = folder.path().join("runner-token");
    let runner = gitlab.make_runner(&["lab"]);
    std::fs::write(&token, &runner.token).unwrap();
    let entry = format!(
        "gitlab: [{{url: '{}', runners: [{{name: lab, tags: [only], per: class, token_file: {}}}]}}]\n",
        gitlab.url(),
        token.display()
    );
    let bench = Bench::start(WHARF, &(crate::farms::farm_of(&[("only", "")]) + &entry));
    let variables = |job: &str| json!({"variables": [{"key": "WHARF_JOB", "value": job, "raw": true}]});
    let first = gitlab.offer(&["lab"], Commits::Two, variables(&short("only", "")));
    assert_eq!(gitlab.wait_for_end(first).status, "success");
    std::fs::write(&token, gitlab.rotate(runner.id)).unwrap();
    let second = gitlab.offer(&["lab"], Commits::Two, variables(HELLO));
    assert_eq!(gitlab.wait_for_end(second).status, "success");
    drop(bench);
    assert!(gitlab.calls().iter().all(|call| !call.contains("/user/runners") && !call.starts_with("DELETE")));
}

#[test]
fn a_killed_farm_takes_its_gitlab_jobs_up_again() {
    let mut pair = Pair::start(&[("one", "")], "");
    let id = pair.offer("one", &endless("one"), json!({}));
    pair.gitlab.wait_for(id, "said that it is done", |job| job.log_text().contains("wharf: job done"));
    pair.bench = pair.bench.killed_and_started_again(WHARF);
    let ended = pair.gitlab.wait_for_end(id);
    assert_eq!((ended.status.as_str(), ended.failure_reason.as_deref()), ("failed", Some("runner_system_failure")));
    expect_in(&ended.log_text(), &["wharf: init started", "wharf: job done", "Verdict: "]);
    assert_eq!(ended.log_text().matches("wharf: init started").count(), 1);
    let left = || std::fs::read_dir(pair.bench.state().join("gitlab")).map_or(0, |entries| entries.count());
    until(PATIENCE, || Some(()).filter(|()| left() == 0)).expect("nothing is kept of what GitLab knows");
    assert_eq!(pair.gitlab.wait_for_runners("the same runner", |runners| !runners.is_empty()).len(), 1);
}
