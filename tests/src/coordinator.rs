//! A GitLab instance as runners see it, by the rules of its server (lib/api/ci/runner.rb), with faults on request.
//!
//! ```text
//!  Coordinator::start() ─► offer(job, tags) ─► POST /jobs/request ─► pending ─► running ─► success | failed | canceled
//!       fail("PATCH /jobs/7", [Fault, …]): the next such calls go wrong        └ trace, artifacts: as they came
//! ```
//! | rule | answer |
//! |---|---|
//! | a job's token, while it is pending, running or canceling | else 403 with `Job-Status` |
//! | PUT pending of a running job | 400 |
//! | the log goes on where it ends | else 416 with `Range` |
//! | a log without `text/plain` or `Content-Range` | 400 |
//! | the last word has the log's length and checksum | else 412, and the log is gone |
//! | `canceling` | calls are heard; the last word makes it `canceled` |

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::instance::{Answer, Instance, Request, Rules, Shared};

/// The token that may create runners.
pub const ADMIN_TOKEN: &str = "glpat-admin-of-the-farm";
/// How long a question for a job is kept open: long enough that few are asked, short enough that a farm can be stopped.
const POLL: Duration = Duration::from_secs(2);

/// A running instance.
pub type Coordinator = Instance<State>;

/// What it knows.
#[derive(Default)]
pub struct State {
    last_id: u64,
    runners: BTreeMap<u64, Runner>,
    jobs: BTreeMap<u64, Job>,
    files: BTreeMap<String, Vec<u8>>,
    /// Where repositories are, as `GROUP/PROJECT.git`.
    repositories: Option<PathBuf>,
}

/// A registered runner.
#[derive(Clone, Debug, Default)]
pub struct Runner {
    /// Its number.
    pub id: u64,
    /// `glrt-…`.
    pub token: String,
    /// What it is called.
    pub description: String,
    /// What jobs may ask of it.
    pub tags: Vec<String>,
}

/// A job, as the server has it.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// `created`, `pending`, `running`, `canceling`, `canceled`, `success`, `failed`.
    pub status: String,
    /// Every state that it has had.
    pub history: Vec<String>,
    /// Its log.
    pub log: Vec<u8>,
    /// Why it failed.
    pub failure_reason: Option<String>,
    /// With which number.
    pub exit_code: Option<i64>,
    /// What was uploaded.
    pub uploads: Vec<Upload>,
    /// What its runner said of its terminal.
    pub session: Value,
    payload: Value,
    tags: Vec<String>,
    commits: Commits,
}

/// What was uploaded.
#[derive(Clone, Debug)]
pub struct Upload {
    /// `archive`, `junit`…
    pub kind: String,
    /// `zip`, `gzip` or `raw`.
    pub format: String,
    /// The file.
    pub bytes: Vec<u8>,
}

/// Whether a job is given in two phases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Commits {
    /// It stays pending until it is accepted.
    #[default]
    Two,
    /// It runs at once.
    One,
}

impl Instance<State> {
    /// Puts a job into the queue, for a runner with these tags; what `more` says goes over the usual fields of its payload.
    pub fn offer(&self, tags: &[&str], commits: Commits, more: Value) -> u64 {
        let id = self.lock().next_id();
        let mut payload = json!({
            "id": id,
            "token": format!("job-token-of-{id}"),
            "job_info": {"name": format!("job {id}"), "stage": "test", "project_id": 17, "project_full_path": "group/project"},
            "git_info": {"ref": "main", "sha": "0123456789abcdef", "repo_url": "http://nowhere"},
            "runner_info": {"timeout": 3600},
            "variables": [],
            "steps": [{"name": "script", "script": ["true"], "timeout": 3600, "when": "on_success", "allow_failure": false}],
            "image": null,
            "services": null,
            "artifacts": null,
            "features": {"trace_sections": true, "token_mask_prefixes": ["corp-"], "failure_reasons": []},
            "a_field_of_next_year": [1],
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            payload[key] = value.clone();
        }
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        let job = Job { status: "created".into(), payload, tags, commits, ..Job::default() };
        self.change(|state| state.jobs.insert(id, job));
        id
    }

    /// A file that is found at this path of the API.
    pub fn put_file(&self, path: &str, bytes: &[u8]) {
        self.lock().files.insert(path.to_owned(), bytes.to_vec());
    }

    /// Serves the repositories of this folder by git's own program, to jobs that show their token.
    pub fn serve_repositories(&self, folder: &Path) {
        self.lock().repositories = Some(folder.to_owned());
    }

    /// A job as it is.
    pub fn job(&self, id: u64) -> Job {
        self.lock().jobs[&id].clone()
    }

    /// Waits until a job is so.
    #[track_caller]
    pub fn wait_for(&self, id: u64, what: &str, is_so: impl Fn(&Job) -> bool) -> Job {
        let found = self.wait(|state| state.jobs.get(&id).filter(|job| is_so(job)).cloned());
        found.unwrap_or_else(|| {
            let job = self.job(id);
            panic!("job {id} never {what}: {:?}, log:\n{}", job.history, String::from_utf8_lossy(&job.log))
        })
    }

    /// Waits for the last word on a job.
    #[track_caller]
    pub fn wait_for_end(&self, id: u64) -> Job {
        self.wait_for(id, "ended", |job| matches!(job.status.as_str(), "success" | "failed" | "canceled"))
    }

    /// Waits until the runners are so.
    #[track_caller]
    pub fn wait_for_runners(&self, what: &str, are_so: impl Fn(&[Runner]) -> bool) -> Vec<Runner> {
        let all = |state: &State| state.runners.values().cloned().collect::<Vec<_>>();
        let found = self.wait(|state| Some(all(state)).filter(|runners| are_so(runners)));
        found.unwrap_or_else(|| panic!("{what}: {:?}", all(&self.lock())))
    }

    /// Sets a job's state, as a user does with its buttons.
    pub fn set_status(&self, id: u64, status: &str) {
        self.change(|state| state.jobs.get_mut(&id).expect("it was offered").become_(status));
    }

    /// Deletes a runner, as an admin does.
    pub fn delete_runner(&self, id: u64) {
        self.change(|state| state.runners.remove(&id));
    }

    /// A runner that a person has made, with its token.
    pub fn make_runner(&self, tags: &[&str]) -> Runner {
        let mut state = self.lock();
        let id = state.next_id();
        let runner = Runner {
            id,
            token: format!("glrt-made-{id}"),
            description: "made by hand".into(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        };
        state.runners.insert(id, runner.clone());
        runner
    }

    /// Gives a runner another token, as an admin does.
    pub fn rotate(&self, id: u64) -> String {
        self.change(|state| {
            let runner = state.runners.get_mut(&id).expect("it was made");
            runner.token.push_str("-again");
            runner.token.clone()
        })
    }
}

impl State {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn runner_with(&self, token: &str) -> Option<&Runner> {
        self.runners.values().find(|runner| runner.token == token)
    }

    /// The first job in the queue that this runner may have.
    fn give(&mut self, tags: &[String], session: &Value) -> Option<Value> {
        let fits = |job: &Job| job.status == "created" && job.tags.iter().all(|tag| tags.contains(tag));
        let job = self.jobs.values_mut().find(|job| fits(job))?;
        job.become_(if job.commits == Commits::Two { "pending" } else { "running" });
        job.session = session.clone();
        Some(job.payload.clone())
    }
}

impl Job {
    fn become_(&mut self, status: &str) {
        if self.status != status {
            self.status = status.to_owned();
            self.history.push(status.to_owned());
        }
    }

    /// Its log as text.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&self.log).into_owned()
    }

    /// The upload of this kind.
    #[track_caller]
    pub fn upload(&self, kind: &str) -> &Upload {
        self.uploads
            .iter()
            .find(|upload| upload.kind == kind)
            .unwrap_or_else(|| panic!("no {kind}: {:?}", self.uploads))
    }
}

impl Rules for State {
    fn call(request: &Request) -> String {
        format!("{} {}", request.method, request.path)
    }

    fn answer(shared: &Shared<State>, request: &Request) -> Option<Answer> {
        Some(answer(shared, request))
    }
}

fn answer(shared: &Shared<State>, request: &Request) -> Answer {
    let words: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
    match (request.method.as_str(), words.as_slice()) {
        ("POST", ["user", "runners"]) => create_runner(&mut shared.lock(), request),
        ("PUT", ["runners", id]) => change_runner(&mut shared.lock(), request, id.parse().unwrap_or(0)),
        ("POST", ["runners", "verify"]) => {
            let known = shared.lock().runner_with(request.json()["token"].as_str().unwrap_or_default()).is_some();
            Answer::of(if known { 200 } else { 403 })
        }
        ("DELETE", ["runners"]) => {
            let (mut state, token) = (shared.lock(), request.json()["token"].as_str().unwrap_or_default().to_owned());
            let id = state.runner_with(&token).map(|runner| runner.id);
            id.map_or(Answer::of(403), |id| {
                state.runners.remove(&id);
                Answer::of(204)
            })
        }
        ("POST", ["jobs", "request"]) => give_job(shared, request),
        // A registry beside it (OCI distribution-spec, 4.4): what was put there; one that does not know HEAD.
        ("GET", ["v2", ..]) => match shared.lock().files.get(&request.path) {
            Some(bytes) => Answer { body: bytes.clone(), ..Answer::of(200) },
            None => {
                Answer::json(404, &json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}))
            }
        },
        (_, ["v2", ..]) => Answer::of(405),
        ("POST", [.., "info", "lfs", "objects", "batch"]) => large_files(shared, request),
        ("GET", ["lfs", _]) => match shared.lock().files.get(&request.path) {
            Some(bytes) if request.header("x-of-batch") == "yes" => Answer { body: bytes.clone(), ..Answer::of(200) },
            _ => Answer::of(403),
        },
        (_, [_, project, ..]) if project.ends_with(".git") => repository(shared, request),
        ("GET", ["jobs", _, "artifacts"]) | ("GET", ["projects", ..]) => match shared.lock().files.get(&request.path) {
            Some(bytes) if !request.header("job-token").is_empty() => Answer { body: bytes.clone(), ..Answer::of(200) },
            Some(_) => Answer::of(401),
            None => Answer::of(404),
        },
        (method, ["jobs", id, rest @ ..]) => {
            let mut state = shared.lock();
            let Some(job) = state.jobs.get_mut(&id.parse().unwrap_or(0)) else { return Answer::of(403) };
            if job.payload["token"] != request.header("job-token") {
                return Answer::of(403);
            }
            let is_ours = matches!(job.status.as_str(), "pending" | "running" | "canceling");
            if !is_ours || (job.status == "pending" && method != "PUT") {
                return Answer::of(403).with("Job-Status", &job.status);
            }
            match (method, rest) {
                ("PUT", []) => update(job, &request.json()),
                ("PATCH", ["trace"]) => append(job, request),
                ("POST", ["artifacts"]) => upload(job, request),
                _ => Answer::of(404),
            }
        }
        _ => Answer::of(404),
    }
}

/// Git LFS's batch API (git-lfs, docs/api/batch.md): what was put at `/lfs/` and its digest.
fn large_files(shared: &Shared<State>, request: &Request) -> Answer {
    if !is_of_a_job(shared, request) {
        return Answer::of(401);
    }
    let (state, asked) = (shared.lock(), request.json());
    let of_object = |object: &Value| {
        let path = format!("/lfs/{}", object["oid"].as_str().unwrap_or_default());
        let mut answer = object.clone();
        match state.files.contains_key(&path) {
            true => {
                let href = format!("http://{}{path}", request.header("host"));
                answer["actions"] = json!({"download": {"href": href, "header": {"X-Of-Batch": "yes"}}});
            }
            false => answer["error"] = json!({"code": 404, "message": "Object does not exist"}),
        }
        answer
    };
    let objects: Vec<Value> = asked["objects"].as_array().into_iter().flatten().map(of_object).collect();
    Answer::json(200, &json!({"transfer": "basic", "objects": objects}))
}

/// Whether a job's token is shown as git shows it.
fn is_of_a_job(shared: &Shared<State>, request: &Request) -> bool {
    use base64::Engine;
    let login = request.header("authorization").strip_prefix("Basic ").unwrap_or_default();
    let login = base64::prelude::BASE64_STANDARD.decode(login).unwrap_or_default();
    let login = String::from_utf8_lossy(&login).into_owned();
    let token = login.strip_prefix("gitlab-ci-token:").unwrap_or_default();
    shared.lock().jobs.values().any(|job| job.payload["token"] == token)
}

/// `git http-backend`, as a web server calls it (its manual page).
fn repository(shared: &Shared<State>, request: &Request) -> Answer {
    let folder = shared.lock().repositories.clone();
    let Some(folder) = folder.filter(|_| is_of_a_job(shared, request)) else {
        return Answer::of(401).with("WWW-Authenticate", "Basic realm=\"GitLab\"");
    };
    let mut command = std::process::Command::new("git");
    command.arg("http-backend").env("GIT_PROJECT_ROOT", folder).env("GIT_HTTP_EXPORT_ALL", "1");
    command.env("PATH_INFO", &request.path).env("QUERY_STRING", &request.query);
    command.env("REQUEST_METHOD", &request.method).env("CONTENT_TYPE", request.header("content-type"));
    command.env("HTTP_CONTENT_ENCODING", request.header("content-encoding"));
    command.env("GIT_PROTOCOL", request.header("git-protocol")).env("CONTENT_LENGTH", request.body.len().to_string());
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let Ok(mut child) = command.spawn() else { return Answer::of(500) };
    if let Some(mut stdin) = child.stdin.take() {
        // One that has enough does not read on.
        let _ = stdin.write_all(&request.body);
    }
    let said = child.wait_with_output().map(|output| output.stdout).unwrap_or_default();
    let end = said.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(0);
    let mut answer = Answer { body: said[(end + 4).min(said.len())..].to_vec(), ..Answer::of(200) };
    for line in String::from_utf8_lossy(&said[..end]).lines() {
        match line.split_once(": ") {
            Some(("Status", status)) => answer.status = status[..3].parse().unwrap_or(500),
            Some((name, value)) => answer = answer.with(name, value),
            None => {}
        }
    }
    answer
}

fn create_runner(state: &mut State, request: &Request) -> Answer {
    if request.header("private-token") != ADMIN_TOKEN {
        return Answer::json(403, &json!({"error": "insufficient_scope"}));
    }
    let id = state.next_id();
    let token = format!("glrt-runner-{id}-secret");
    let body = request.json();
    let mut runner = Runner { id, token: token.clone(), ..Runner::default() };
    runner.take(&body);
    if body["run_untagged"] != false || body["runner_type"] != "project_type" || body["project_id"] != 17 {
        return Answer::json(400, &json!({"message": "the runner is for nobody, or for everything"}));
    }
    state.runners.insert(id, runner);
    Answer::json(201, &json!({"id": id, "token": token, "token_expires_at": null}))
}

fn change_runner(state: &mut State, request: &Request, id: u64) -> Answer {
    if request.header("private-token") != ADMIN_TOKEN {
        return Answer::json(403, &json!({"error": "insufficient_scope"}));
    }
    match state.runners.get_mut(&id) {
        Some(runner) => {
            runner.take(&request.json());
            Answer::json(200, &json!({"id": id}))
        }
        None => Answer::json(404, &json!({"message": "404 Not found"})),
    }
}

impl Runner {
    fn take(&mut self, body: &Value) {
        self.description = body["description"].as_str().unwrap_or_default().to_owned();
        let tags = body["tag_list"].as_array().into_iter().flatten();
        self.tags = tags.filter_map(|tag| tag.as_str().map(str::to_owned)).collect();
    }
}

fn give_job(shared: &Shared<State>, request: &Request) -> Answer {
    let body = request.json();
    let features = &body["info"]["features"];
    let token = body["token"].as_str().unwrap_or_default().to_owned();
    let until = Instant::now() + POLL;
    let mut state = shared.lock();
    loop {
        let Some(tags) = state.runner_with(&token).map(|runner| runner.tags.clone()) else { return Answer::of(403) };
        // A server gives no job to a runner that could not do what it asks for.
        let needed = [
            "upload_multiple_artifacts",
            "refspecs",
            "return_exit_code",
            "artifacts_exclude",
            "cancel_gracefully",
            "fallback_cache_keys",
        ];
        if needed.iter().all(|feature| features[feature] == true)
            && let Some(payload) = state.give(&tags, &body["session"])
        {
            return Answer::json(201, &payload);
        }
        state = match shared.wait_until(until, state) {
            Some(state) => state,
            None => return Answer::of(204).with("X-GitLab-Last-Update", "update-7"),
        };
    }
}

fn update(job: &mut Job, body: &Value) -> Answer {
    let say = |status: u16, job: &Job| {
        Answer::of(status).with("Job-Status", &job.status).with("X-GitLab-Trace-Update-Interval", 3)
    };
    let state = body["state"].as_str().unwrap_or_default();
    match (state, job.status.as_str()) {
        ("pending", "pending") => say(200, job),
        ("pending", _) => say(400, job),
        ("running", _) => {
            if job.status == "pending" {
                job.become_("running");
            }
            say(200, job)
        }
        ("success" | "failed", "pending") => say(400, job),
        ("success" | "failed", before) => {
            let checksum = format!("crc32:{:08x}", crc32(&job.log));
            if body["output"] != json!({"checksum": checksum, "bytesize": job.log.len()}) {
                job.log.clear();
                return say(412, job);
            }
            let after = if before == "canceling" { "canceled" } else { state };
            job.failure_reason = body["failure_reason"].as_str().map(str::to_owned);
            job.exit_code = body["exit_code"].as_i64();
            job.become_(after);
            say(200, job)
        }
        _ => say(400, job),
    }
}

fn append(job: &mut Job, request: &Request) -> Answer {
    let from = request.header("content-range").split_once('-');
    let Some((from, to)) = from.and_then(|(from, to)| Some((from.parse::<usize>().ok()?, to.parse::<usize>().ok()?)))
    else {
        return Answer::of(400);
    };
    if !request.header("content-type").starts_with("text/plain") || to + 1 - from != request.body.len() {
        return Answer::of(400);
    }
    if from != job.log.len() {
        return Answer::of(416).with("Range", format!("0-{}", job.log.len())).with("Job-Status", &job.status);
    }
    job.log.extend_from_slice(&request.body);
    let answer = Answer::of(202).with("Range", format!("0-{}", job.log.len())).with("Job-Status", &job.status);
    answer.with("X-GitLab-Trace-Update-Interval", 3)
}

fn upload(job: &mut Job, request: &Request) -> Answer {
    let boundary =
        request.header("content-type").split_once("boundary=").map(|(_, boundary)| format!("\r\n--{boundary}--"));
    let body = request.body.as_slice();
    let find = |what: &[u8]| body.windows(what.len()).position(|window| window == what);
    let (Some(start), Some(end)) = (find(b"\r\n\r\n"), boundary.and_then(|boundary| find(boundary.as_bytes()))) else {
        return Answer::of(400);
    };
    let (kind, format) = (request.query("artifact_type"), request.query("artifact_format"));
    job.uploads.push(Upload { kind, format, bytes: body[start + 4..end].to_vec() });
    Answer::of(201)
}

/// CRC-32 as of ISO 3309, which zlib has, too.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
        }
    }
    !crc
}
