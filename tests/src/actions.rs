//! A Forgejo instance as runners see it, by the rules of its server (routers/api/actions/runner/runner.go of Forgejo and Gitea), with faults
//! on request.
//!
//! ```text
//!  Actions::start() ─► offer(labels, job) ─► FetchTask ─► running ─► success | failure | cancelled
//!       offer_with(…, [("UpdateLog", [Fault, …])]): its first such calls go wrong   └ rows, steps, outputs: as they came
//! ```
//! | rule | answer |
//! |---|---|
//! | a runner that is not known, or shows another token | 401 `unauthenticated` |
//! | `FetchTask` with a key that a task was given for | that task again |
//! | `FetchTask` with the version that the list has | no task |
//! | a task of another runner | 500 `internal`: invalid runner for task |
//! | `UpdateTask` of a task that is over | changes nothing, and tells how it ended |
//! | `UpdateLog` after a gap, or without rows | nothing is taken; how many rows there are |
//! | `UpdateLog` with new rows after `noMore` | 409 `already_exists` |

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::instance::{Answer, Fault, Instance, Request, Rules, Shared};

/// The token that registers runners.
pub const REGISTRATION_TOKEN: &str = "registers-runners-0123456789";
/// The token of every task.
pub const TASK_TOKEN: &str = "0123456789abcdef0123456789abcdef01234567";

/// A running instance.
pub type Actions = Instance<State>;

/// What it knows.
#[derive(Default)]
pub struct State {
    last_id: u64,
    version: u64,
    runners: Vec<Runner>,
    tasks: BTreeMap<u64, Task>,
    files: BTreeMap<String, Vec<u8>>,
}

/// A registered runner.
#[derive(Clone, Debug, Default)]
pub struct Runner {
    /// Its number in the list.
    pub id: u64,
    /// What it is known by.
    pub uuid: String,
    /// Its password.
    pub token: String,
    /// What people call it.
    pub name: String,
    /// What jobs may ask of it.
    pub labels: Vec<String>,
}

/// A task, as the server has it.
#[derive(Clone, Debug, Default)]
pub struct Task {
    /// `waiting`, `running`, `success`, `failure`, `cancelled`.
    pub status: String,
    /// The rows of its log.
    pub rows: Vec<String>,
    /// Whether its log is closed.
    pub is_closed: bool,
    /// Its steps, as they were told last.
    pub steps: Value,
    /// What it left.
    pub outputs: Value,
    /// How often it was given.
    pub given: u32,
    runs_on: Vec<String>,
    message: Value,
    runner: String,
    key: String,
}

impl Instance<State> {
    /// Puts a job into the queue, for a runner with these labels: the YAML of the job, and what `more` says of its message.
    pub fn offer(&self, runs_on: &[&str], job: &str, more: Value) -> u64 {
        self.offer_with(runs_on, job, more, [])
    }

    /// The same, and its first calls go wrong.
    pub fn offer_with<const N: usize>(
        &self,
        runs_on: &[&str],
        job: &str,
        more: Value,
        faults: [(&str, Vec<Fault>); N],
    ) -> u64 {
        let id = self.lock().next_id();
        let body: String = job.lines().map(|line| format!("    {line}\n")).collect();
        let workflow =
            format!("name: test\n\"on\": [push]\njobs:\n  boot:\n    runs-on: [{}]\n{body}", runs_on.join(", "));
        let mut message = json!({
            "id": id.to_string(),
            "workflowPayload": base64(workflow.as_bytes()),
            "context": {
                "sha": "0123456789abcdef", "ref": "refs/heads/main", "repository": "group/project", "run_id": "7",
                "token": TASK_TOKEN, "runtime_token": "runtime-token-of-the-task", "event": {"inputs": {}},
            },
            "secrets": {"FORGEJO_TOKEN": TASK_TOKEN},
            "aFieldOfNextYear": [1],
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            message[key] = value.clone();
        }
        let runs_on = runs_on.iter().map(|label| (*label).to_owned()).collect();
        for (method, faults) in faults {
            self.fail(&format!("{method} {id}"), faults);
        }
        self.change(|state| {
            state.version += 1;
            state.tasks.insert(id, Task { status: "waiting".into(), runs_on, message, ..Task::default() });
        });
        id
    }

    /// A file of the repository.
    pub fn put_file(&self, path: &str, bytes: &[u8]) {
        self.lock().files.insert(path.to_owned(), bytes.to_vec());
    }

    /// A task as it is.
    pub fn task(&self, id: u64) -> Task {
        self.lock().tasks[&id].clone()
    }

    /// Waits until a task is so.
    #[track_caller]
    pub fn wait_for(&self, id: u64, what: &str, is_so: impl Fn(&Task) -> bool) -> Task {
        let found = self.wait(|state| state.tasks.get(&id).filter(|task| is_so(task)).cloned());
        found.unwrap_or_else(|| {
            let task = self.task(id);
            panic!("task {id} never {what}: {}, log:\n{}", task.status, task.log())
        })
    }

    /// Waits for the last word on a task.
    #[track_caller]
    pub fn wait_for_end(&self, id: u64) -> Task {
        let is_over = |task: &Task| task.is_closed && task.is_over();
        self.wait_for(id, "ended", is_over)
    }

    /// Waits until the runners are so.
    #[track_caller]
    pub fn wait_for_runners(&self, what: &str, are_so: impl Fn(&[Runner]) -> bool) -> Vec<Runner> {
        let found = self.wait(|state| Some(state.runners.clone()).filter(|runners| are_so(runners)));
        found.unwrap_or_else(|| panic!("{what}: {:?}", self.lock().runners))
    }

    /// Cancels a task, as a user does with its button.
    pub fn cancel(&self, id: u64) {
        self.change(|state| state.tasks.get_mut(&id).expect("it was offered").status = "cancelled".into());
    }

    /// Deletes a runner, as an admin does.
    pub fn delete_runner(&self, id: u64) {
        self.change(|state| state.runners.retain(|runner| runner.id != id));
    }

    /// A runner that a person has made.
    pub fn make_runner(&self) -> Runner {
        self.change(|state| state.add_runner("made by hand"))
    }
}

impl State {
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn add_runner(&mut self, name: &str) -> Runner {
        let id = self.next_id();
        let uuid = format!("00000000-0000-4000-8000-{id:012}");
        let runner = Runner { id, uuid, token: format!("token-of-runner-{id}"), name: name.into(), labels: vec![] };
        self.runners.push(runner.clone());
        runner
    }
}

impl Task {
    fn is_over(&self) -> bool {
        matches!(self.status.as_str(), "success" | "failure" | "cancelled")
    }

    /// Its log as text.
    pub fn log(&self) -> String {
        self.rows.join("\n")
    }
}

impl Rules for State {
    fn call(request: &Request) -> String {
        let body = request.json();
        let task = body["taskId"].as_str().or_else(|| body["state"]["id"].as_str()).unwrap_or_default();
        format!("{} {task}", request.path.rsplit('/').next().unwrap_or_default())
    }

    fn answer(shared: &Shared<State>, request: &Request) -> Option<Answer> {
        let (answer, given) = answer(&mut shared.lock(), request);
        // Only now is it known which task a question brought.
        given.and_then(|task| shared.fault(&format!("FetchTask {task}"))).is_none().then_some(answer)
    }
}

fn error(status: u16, code: &str, message: &str) -> Answer {
    Answer::json(status, &json!({"code": code, "message": message}))
}

/// The answer, and the task that it gives.
fn answer(state: &mut State, request: &Request) -> (Answer, Option<u64>) {
    let answer = match request.path.strip_prefix("/api/actions/runner.v1.RunnerService/") {
        None => file(state, request),
        Some(_) if request.header("content-type") != "application/json" => Answer::of(415),
        Some("Register") => register(state, &request.json()),
        Some(method) => {
            let (uuid, token) = (request.header("x-runner-uuid"), request.header("x-runner-token"));
            let is_it = |runner: &Runner| runner.uuid == uuid && runner.token == token;
            match (method, state.runners.iter().position(is_it), request.json()) {
                (_, None, _) => error(401, "unauthenticated", "unregistered runner"),
                ("Declare", Some(runner), body) => {
                    state.runners[runner].labels = strings(&body["labels"]);
                    Answer::json(200, &json!({"runner": {"uuid": uuid}}))
                }
                ("FetchTask", Some(runner), body) => {
                    return fetch(state, runner, request.header("x-runner-request-key"), &body);
                }
                ("UpdateTask", _, body) => update(state, uuid, &body),
                ("UpdateLog", _, body) => append(state, uuid, &body),
                _ => error(501, "unimplemented", method),
            }
        }
    };
    (answer, None)
}

fn file(state: &State, request: &Request) -> Answer {
    let path = request.path.strip_prefix("/api/v1/repos/group/project/raw/").unwrap_or_default();
    let is_ours = request.header("authorization") == format!("token {TASK_TOKEN}");
    match state.files.get(path) {
        Some(bytes) if is_ours && request.query("ref") == "0123456789abcdef" => {
            Answer { body: bytes.clone(), ..Answer::of(200) }
        }
        _ => Answer::of(404),
    }
}

fn register(state: &mut State, body: &Value) -> Answer {
    if body["token"] != REGISTRATION_TOKEN {
        return error(400, "invalid_argument", "runner registration token not found");
    }
    let runner = state.add_runner(body["name"].as_str().unwrap_or_default());
    Answer::json(200, &json!({"runner": {"id": runner.id.to_string(), "uuid": runner.uuid, "token": runner.token}}))
}

fn fetch(state: &mut State, runner: usize, key: &str, body: &Value) -> (Answer, Option<u64>) {
    let (labels, uuid) = (state.runners[runner].labels.clone(), state.runners[runner].uuid.clone());
    let is_old = body["tasksVersion"].as_str().is_some_and(|version| version.parse() == Ok(state.version));
    let again = |task: &Task| task.runner == uuid && !key.is_empty() && task.key == key && !task.is_over();
    let fits =
        |task: &Task| !is_old && task.status == "waiting" && task.runs_on.iter().all(|label| labels.contains(label));
    let found =
        state.tasks.iter().find(|(_, task)| again(task)).or_else(|| state.tasks.iter().find(|(_, task)| fits(task)));
    let found = found.map(|(id, _)| *id);
    let version = state.version.to_string();
    let Some(task) = found.and_then(|id| state.tasks.get_mut(&id)) else {
        return (Answer::json(200, &json!({"tasksVersion": version})), None);
    };
    task.status = "running".into();
    (task.runner, task.key) = (uuid, key.to_owned());
    task.given += 1;
    (Answer::json(200, &json!({"task": task.message, "tasksVersion": version})), found)
}

fn update(state: &mut State, uuid: &str, body: &Value) -> Answer {
    let told = &body["state"];
    let id: u64 = told["id"].as_str().and_then(|id| id.parse().ok()).unwrap_or_default();
    let Some(task) = state.tasks.get_mut(&id) else {
        return error(500, "internal", "update task: resource does not exist");
    };
    if task.runner != uuid {
        return error(500, "internal", "update task: invalid runner for task");
    }
    if !task.is_over() {
        task.steps = told["steps"].clone();
        task.outputs = body["outputs"].clone();
        if let Some(result) = told["result"].as_str() {
            task.status = result.trim_start_matches("RESULT_").to_ascii_lowercase();
        }
    }
    let mut answer = json!({"state": {"id": id.to_string()}});
    if task.is_over() {
        answer["state"]["result"] = format!("RESULT_{}", task.status.to_ascii_uppercase()).into();
    }
    Answer::json(200, &answer)
}

fn append(state: &mut State, uuid: &str, body: &Value) -> Answer {
    let number = |value: &Value| value.as_str().and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
    let Some(task) = state.tasks.get_mut(&number(&body["taskId"])) else {
        return error(500, "internal", "get task: resource does not exist");
    };
    if task.runner != uuid {
        return error(500, "internal", "invalid runner for task");
    }
    let rows = body["rows"].as_array().cloned().unwrap_or_default();
    let (index, have) = (number(&body["index"]), task.rows.len() as u64);
    if rows.is_empty() || index > have || index + rows.len() as u64 <= have {
        return Answer::json(200, &json!({"ackIndex": have.to_string()}));
    }
    if task.is_closed {
        return error(409, "already_exists", "log file has been archived");
    }
    let is_row =
        |row: &Value| row["time"].is_string() && row["content"].as_str().is_some_and(|row| !row.contains('\n'));
    if !rows.iter().all(is_row) {
        return error(400, "invalid_argument", "rows have times and no ends of lines");
    }
    let new = rows.iter().skip((have - index) as usize);
    task.rows.extend(new.map(|row| row["content"].as_str().unwrap_or_default().to_owned()));
    task.is_closed = body["noMore"] == true;
    Answer::json(200, &json!({"ackIndex": task.rows.len().to_string()}))
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
}

/// RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let all = chunk.iter().chain([&0; 2]).take(3).fold(0u32, |all, byte| all << 8 | u32::from(*byte));
        (0..4).for_each(|index| match index <= chunk.len() {
            true => text.push(char::from(LETTERS[(all >> (18 - 6 * index) & 63) as usize])),
            false => text.push('='),
        });
    }
    text
}
