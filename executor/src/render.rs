//! Templates that users send are rendered in a short-lived child of our own binary, so that no job text can hang or kill the server.
//!
//! ```text
//!  server ── spawn `wharf render-template` ──► child: limits itself, reads one request, renders it, answers, exits
//!     └── kills it after the wall-clock limit ──► Problem
//! ```
//! The child limits itself, before it has read a byte of what a user wrote. The server could do it between fork and exec, but a fork
//! copies the page tables of all its memory: with some thousand jobs that is most of what taking a job costs. Without such a step the
//! system spawns without copying.

use std::io::{self, Read, Write};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use job_schema::problem::{Problem, Problems};
use job_schema::template::{Limits, Rendered, Variables, render, render_inline};
use nix::sys::resource::{Resource, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Address space of the child: the binary, a deep stack and a job's worth of strings; a template that doubles a string 40 times ends here.
const MEMORY_BYTES: u64 = 512 << 20;
/// CPU time of the child. Real job files take milliseconds.
const CPU_SECONDS: u64 = 2;
/// Wall-clock time of the child, on a machine that is busy with other things.
const WALL_CLOCK: Duration = Duration::from_secs(10);
/// How much is read of the child's answer: the largest rendered document, escaped as JSON.
const ANSWER_BYTES: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
struct Request {
    source_name: String,
    what: What,
    variables: Variables,
}

#[derive(Serialize, Deserialize)]
enum What {
    /// A job file.
    Document(String),
    /// Texts of a rendered job.
    Texts(Vec<String>),
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Rendered(Vec<String>),
    Refused(Vec<Problem>),
}

/// Renders `text` in a child. Problems name what the template did wrong, or which limit it hit.
pub async fn in_child(source_name: &str, text: &str, variables: &Variables) -> Result<Rendered, Problems> {
    let mut rendered = asked(source_name, text, What::Document(text.into()), variables).await?;
    Ok(Rendered::plain(source_name, rendered.pop().unwrap_or_default()))
}

/// Renders texts of a job in a child, each by itself: `data` and the command line, when they are served. A text that fails stays as it
/// is, unless its first line is `#!jinja2`.
pub async fn texts_in_child(
    source_name: &str,
    texts: Vec<String>,
    variables: &Variables,
) -> Result<Vec<String>, Problems> {
    let count = texts.len();
    let rendered = asked(source_name, "", What::Texts(texts), variables).await?;
    assert_eq!(rendered.len(), count, "our own child answers text by text");
    Ok(rendered)
}

async fn asked(source_name: &str, text: &str, what: What, variables: &Variables) -> Result<Vec<String>, Problems> {
    let refuse = |problem: Problem| Problems::one(source_name, text, problem);
    let request = Request { source_name: source_name.into(), what, variables: variables.clone() };
    let request = serde_json::to_vec(&request)
        .map_err(|error| refuse(Problem::new(format!("cannot hand over the template: {error}"))))?;
    let (status, answer) = match tokio::time::timeout(WALL_CLOCK, exchange(&request)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => {
            return Err(refuse(Problem::new(format!("cannot start a process to render the template: {error}"))));
        }
        Err(_) => return Err(refuse(too_much(&format!("{} s", WALL_CLOCK.as_secs())))),
    };
    match serde_json::from_slice(&answer) {
        Ok(Answer::Rendered(texts)) => Ok(texts),
        Ok(Answer::Refused(problems)) => Err(Problems::new(source_name, text, problems)),
        Err(_) => Err(refuse(too_much(&how_it_ended(status)))),
    }
}

/// The child's side: one request on standard input, one answer on standard output.
pub fn child_main() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_AS, MEMORY_BYTES, MEMORY_BYTES)?;
    setrlimit(Resource::RLIMIT_CPU, CPU_SECONDS, CPU_SECONDS)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let mut request = Vec::new();
    io::stdin().read_to_end(&mut request)?;
    let request: Request = serde_json::from_slice(&request)?;
    let (name, limits) = (&request.source_name, Limits::default());
    let rendered = match &request.what {
        What::Document(text) => render(name, text, &request.variables, &limits).map(|rendered| vec![rendered.text]),
        What::Texts(texts) => texts.iter().map(|text| render_inline(name, text, &request.variables, &limits)).collect(),
    };
    let answer = rendered.map_or_else(|problems| Answer::Refused(problems.list().to_vec()), Answer::Rendered);
    io::stdout().write_all(&serde_json::to_vec(&answer)?)
}

async fn exchange(request: &[u8]) -> io::Result<(ExitStatus, Vec<u8>)> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("render-template").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.env_clear().kill_on_drop(true);
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().ok_or_else(|| io::Error::other("no standard input"))?;
    let mut stdout = child.stdout.take().ok_or_else(|| io::Error::other("no standard output"))?;
    let write = async move {
        // A child that died early closes the pipe; how it died tells more than the broken pipe.
        let _ = stdin.write_all(request).await;
    };
    let read = async {
        let mut answer = Vec::new();
        tokio::io::AsyncReadExt::read_to_end(
            &mut tokio::io::AsyncReadExt::take(&mut stdout, ANSWER_BYTES),
            &mut answer,
        )
        .await?;
        io::Result::Ok(answer)
    };
    let ((), answer) = tokio::join!(write, read);
    Ok((child.wait().await?, answer?))
}

fn too_much(what: &str) -> Problem {
    Problem::new(format!("rendering the template was stopped: {what}")).hint(format!(
        "a template may use {} MiB of memory and {CPU_SECONDS} s of CPU time; simplify it",
        MEMORY_BYTES >> 20
    ))
}

fn how_it_ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(libc_signal) => match nix::sys::signal::Signal::try_from(libc_signal) {
            Ok(nix::sys::signal::Signal::SIGKILL | nix::sys::signal::Signal::SIGXCPU) => {
                "it used too much CPU time".into()
            }
            Ok(nix::sys::signal::Signal::SIGABRT | nix::sys::signal::Signal::SIGSEGV) => {
                "it used too much memory or nested too deep".into()
            }
            _ => format!("its process was killed by signal {libc_signal}"),
        },
        None => format!("its process ended with {status}"),
    }
}
