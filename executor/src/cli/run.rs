//! `wharf run`: hands a job in, shows it live, exits with its verdict. The job belongs to this process: when it goes, the DUT is freed.
//!
//! ```text
//!  submit ─► follow as owner ─► Ended ─► exit status of the verdict
//!                │  Ctrl-C    ─► cancel, and still follow: the DUT is switched off and given back
//!                │  Ctrl-C ×2 ─► leave (130); the lost connection cancels
//!                └─ --detach  ─► print the id instead
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use serde_json::json;

use super::client::{Events, Refused, Server, in_query};
use super::interrupts::{INTERRUPTED, Interrupts};
use super::share;
use super::view::{View, print, say};
use crate::api::wire::JobWire;
use crate::job_log::JobEvent;
use crate::verdict::{Status, Verdict};

/// The part that the shared directory is, as CI-tron's clients call it.
const DIRECTORY: &str = "job_bucket_initial_state_tarball_file";

/// Arguments of `wharf run`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The job file
    job: PathBuf,
    /// A tag that the DUT must have; with --id, replaces the job's own target
    #[arg(short = 't', long = "tag")]
    tags: Vec<String>,
    /// The DUT's id or full name
    #[arg(short, long)]
    id: Option<String>,
    /// Forward environment variables whose whole name matches, as `environ` in the job's templates
    #[arg(short = 'E', long, value_name = "REGEX", value_parser = job_schema::Pattern::parse)]
    forward_env_regex: Option<job_schema::Pattern>,
    /// Attach a file, for artifacts with `attached: NAME`
    #[arg(short = 'f', long = "attach", value_name = "NAME:PATH")]
    attachments: Vec<String>,
    /// Share a directory by the job's own bucket: its files go there, and what is there at the end comes back
    #[arg(short, long, value_name = "DIR", conflicts_with = "detach")]
    share: Option<PathBuf>,
    /// Higher goes first
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Exit statuses of your own per verdict, such as `SETUP_FAIL=75,INCOMPLETE=76`
    #[arg(long, value_name = "VERDICT=N,…", value_parser = ExitMap::parse)]
    exit_map: Option<ExitMap>,
    /// Print the job's id and leave; the job runs on by itself
    #[arg(long)]
    detach: bool,
}

/// Submits, follows, judges.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let server = Server::find(server)?;
    let (shared, directory) = arguments.share.as_deref().map(share::pack).transpose()?.unzip();
    if arguments.detach {
        print(&submit(&server, &arguments, directory).await?.id)?;
        return Ok(ExitCode::SUCCESS);
    }
    // Before the server may have the job: who is told to stop meanwhile cancels it once he knows which one it is.
    let (mut interrupts, mut meanwhile) = (Interrupts::listen()?, Interrupts::listen()?);
    let told_twice = async {
        meanwhile.next().await;
        meanwhile.next().await
    };
    let job = tokio::select! {
        job = submit(&server, &arguments, directory) => job?,
        () = told_twice => return Ok(ExitCode::from(INTERRUPTED)),
    };
    match follow(&server, &job.id, &mut interrupts).await? {
        Outcome::Verdict(verdict) => {
            if let Some(shared) = shared {
                tokio::select! {
                    fetched = shared.fetch(&server, &job.id) => fetched?,
                    () = interrupts.next() => return Ok(ExitCode::from(INTERRUPTED)),
                }
            }
            let map = arguments.exit_map.unwrap_or_default();
            Ok(ExitCode::from(map.exit_status(verdict.status)))
        }
        Outcome::Left => Ok(ExitCode::from(INTERRUPTED)),
    }
}

async fn submit(server: &Server, arguments: &Arguments, directory: Option<Vec<u8>>) -> anyhow::Result<JobWire> {
    let text =
        std::fs::read(&arguments.job).with_context(|| format!("cannot read the job `{}`", arguments.job.display()))?;
    let environ = arguments.forward_env_regex.as_ref().map(forwarded).transpose()?.unwrap_or_default();
    let mut attachments = Vec::new();
    for attachment in &arguments.attachments {
        attachments.push(read_attachment(attachment)?);
    }
    attachments.extend(directory.map(|bytes| (DIRECTORY.to_owned(), bytes)));
    let path = address(arguments, server);
    if environ.is_empty() && attachments.is_empty() {
        return server.post(&path, Some("application/yaml"), text.into()).await;
    }
    let metadata = json!({"version": 1, "environ": environ}).to_string();
    let mut parts = vec![("metadata".to_owned(), metadata.into_bytes()), ("job".to_owned(), text)];
    parts.extend(attachments);
    let (content_type, body) = multipart(&parts);
    server.post(&path, Some(&content_type), body).await
}

fn address(arguments: &Arguments, server: &Server) -> String {
    let name = arguments.job.display().to_string();
    let user = std::env::var("USER").unwrap_or_else(|_| format!("user {}", nix::unistd::getuid()));
    let submitter = format!("wharf run of {user}");
    let mut path = format!("/api/v1/jobs?name={}&submitter={}", in_query(&name), in_query(&submitter));
    if let Some(subject) = server.subject() {
        path.push_str(&format!("&subject={}", in_query(&subject)));
    }
    path.push_str(&format!("&priority={}", arguments.priority));
    for tag in &arguments.tags {
        path.push_str(&format!("&tag={}", in_query(tag)));
    }
    if let Some(id) = &arguments.id {
        path.push_str(&format!("&dut={}", in_query(id)));
    }
    path
}

fn forwarded(pattern: &job_schema::Pattern) -> anyhow::Result<BTreeMap<String, String>> {
    let mut environ = BTreeMap::new();
    // The token is nobody's business, whatever the pattern is.
    for (name, value) in std::env::vars().filter(|(name, _)| name != "WHARF_TOKEN") {
        if pattern.is_full_match(name.as_bytes()).with_context(|| format!("--forward-env-regex on {name}"))? {
            environ.insert(name, value);
        }
    }
    Ok(environ)
}

fn read_attachment(text: &str) -> anyhow::Result<(String, Vec<u8>)> {
    let Some((name, path)) = text.split_once(':').filter(|(name, path)| !name.is_empty() && !path.is_empty()) else {
        bail!("`{text}` is no attachment; write NAME:PATH");
    };
    if matches!(name, "metadata" | "job" | DIRECTORY) || name.contains(['"', '\r', '\n', '\\']) {
        bail!("an attachment cannot be named `{name}`; choose another name");
    }
    let bytes = std::fs::read(path).with_context(|| format!("cannot read the attachment `{path}`"))?;
    Ok((name.to_owned(), bytes))
}

/// A multipart form of file parts (RFC 7578) whose boundary no part contains.
fn multipart(parts: &[(String, Vec<u8>)]) -> (String, Bytes) {
    let boundary = (0u64..)
        .map(|number| format!("wharf-cut-{number}"))
        .find(|boundary| !parts.iter().any(|(_, bytes)| contains(bytes, boundary.as_bytes())))
        .expect("some number is in no part");
    let mut body = Vec::new();
    for (name, bytes) in parts {
        let head = format!(
            "--{boundary}\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"{name}\"\r\n\
             content-type: application/octet-stream\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    (format!("multipart/form-data; boundary={boundary}"), body.into())
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// How following ended.
enum Outcome {
    Verdict(Verdict),
    Left,
}

async fn follow(server: &Server, id: &str, interrupts: &mut Interrupts) -> anyhow::Result<Outcome> {
    let view = RefCell::new(View::new());
    let mut follower = Follower { server, id, view: &view, next: 0 };
    let mut the_end = std::pin::pin!(follower.until_the_verdict());
    tokio::select! {
        outcome = &mut the_end => return outcome.map(Outcome::Verdict),
        () = interrupts.next() => {}
    }
    view.borrow_mut().finish();
    say(format_args!("cancelling job {id} and waiting for its DUT to be free; Ctrl-C again to leave at once"));
    let cancel = async {
        let path = format!("/api/v1/jobs/{id}/cancel");
        if let Err(error) = server.post::<JobWire>(&path, None, Bytes::new()).await {
            say(format_args!("cannot cancel job {id}: {error:#}"));
        }
    };
    // The connection that owns the job is kept meanwhile: without it the server would take us for gone before it is told.
    let to_the_end = async { tokio::join!(cancel, the_end).1 };
    tokio::select! {
        outcome = to_the_end => outcome.map(Outcome::Verdict),
        () = interrupts.next() => Ok(Outcome::Left),
    }
}

/// How long a server that went away is waited for: as long as a restarted one keeps the job for us.
const RESTART_PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts to reach it.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// Shows a job as its owner, also over a restart of the server: it goes on at the record after the last one shown.
struct Follower<'a> {
    server: &'a Server,
    id: &'a str,
    /// Shared with who tells of a Ctrl-C between two of its lines.
    view: &'a RefCell<View>,
    next: usize,
}

impl Follower<'_> {
    async fn until_the_verdict(&mut self) -> anyhow::Result<Verdict> {
        let mut lost_at: Option<Instant> = None;
        loop {
            let before = self.next;
            let error = match self.on_one_connection().await {
                Ok(verdict) => return Ok(verdict),
                Err(error) => error,
            };
            // What the server refuses it refuses the next time, too.
            if error.downcast_ref::<Refused>().is_some() {
                return Err(error);
            }
            if self.next > before {
                lost_at = None;
            }
            match lost_at {
                Some(lost_at) if lost_at.elapsed() > RESTART_PATIENCE => return Err(error),
                Some(_) => {}
                None => {
                    self.view.borrow_mut().finish();
                    say(format_args!("wharf: {error:#}; looking for the server for {} s", RESTART_PATIENCE.as_secs()));
                    lost_at = Some(Instant::now());
                }
            }
            tokio::time::sleep(RESTART_PAUSE).await;
        }
    }

    async fn on_one_connection(&mut self) -> anyhow::Result<Verdict> {
        let path = format!("/api/v1/jobs/{}/events?owner=1&from={}", self.id, self.next);
        let mut events = self.server.events(&path).await?;
        while let Some(event) = events.next().await? {
            self.view.borrow_mut().show(&event.record, &event.console_bytes()).context("cannot write the console")?;
            self.next = event.record.number + 1;
            if let JobEvent::Ended { verdict } = event.record.event {
                return Ok(verdict);
            }
        }
        bail!("the server ended the stream before the verdict")
    }
}

/// Shows events until the last one.
pub(super) async fn show(events: &mut Events, view: &mut View) -> anyhow::Result<Verdict> {
    while let Some(event) = events.next().await? {
        view.show(&event.record, &event.console_bytes()).context("cannot write the console")?;
        if let JobEvent::Ended { verdict } = event.record.event {
            return Ok(verdict);
        }
    }
    view.finish();
    bail!("the server ended the stream before the verdict; `wharf job show` tells whether the job still runs")
}

/// A user's exit statuses, where they differ from CI-tron's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ExitMap(BTreeMap<String, u8>);

impl ExitMap {
    fn parse(text: &str) -> Result<ExitMap, String> {
        let mut map = BTreeMap::new();
        for entry in text.split(',').filter(|entry| !entry.is_empty()) {
            let (name, number) = entry.split_once('=').ok_or_else(|| format!("`{entry}` is not VERDICT=NUMBER"))?;
            let known: Vec<_> = Status::ALL.iter().map(|status| status.name()).collect();
            if !known.contains(&name) {
                return Err(format!("no verdict `{name}`; verdicts: {}", known.join(", ")));
            }
            let number = number.parse().map_err(|_| format!("`{number}` is no exit status; they are 0 to 255"))?;
            map.insert(name.to_owned(), number);
        }
        Ok(ExitMap(map))
    }

    fn exit_status(&self, status: Status) -> u8 {
        self.0.get(status.name()).copied().unwrap_or_else(|| status.exit_status())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_map_changes_what_it_names_and_nothing_else() {
        let map = ExitMap::parse("SETUP_FAIL=75,INCOMPLETE=76").unwrap();
        let statuses: Vec<_> = Status::ALL.into_iter().map(|status| map.exit_status(status)).collect();
        assert_eq!(statuses, [0, 1, 2, 3, 76, 5, 75]);
    }

    #[test]
    fn a_wrong_exit_map_names_the_verdicts() {
        let error = ExitMap::parse("SETUP=1").unwrap_err();
        let expected = "no verdict `SETUP`; verdicts: PASS, WARN, COMPLETE, FAIL, INCOMPLETE, UNKNOWN, SETUP_FAIL";
        assert_eq!(error, expected);
        assert_eq!(ExitMap::parse("PASS=256").unwrap_err(), "`256` is no exit status; they are 0 to 255");
        assert_eq!(ExitMap::parse("PASS").unwrap_err(), "`PASS` is not VERDICT=NUMBER");
    }

    #[test]
    fn a_form_is_cut_where_no_part_is() {
        let parts = [("job".to_owned(), b"a wharf-cut-0 b".to_vec())];
        let (content_type, body) = multipart(&parts);
        assert_eq!(content_type, "multipart/form-data; boundary=wharf-cut-1");
        let expected = "--wharf-cut-1\r\ncontent-disposition: form-data; name=\"job\"; filename=\"job\"\r\n\
                        content-type: application/octet-stream\r\n\r\na wharf-cut-0 b\r\n--wharf-cut-1--\r\n";
        assert_eq!(body, expected);
    }

    #[test]
    fn a_wrong_attachment_says_how_to_write_one() {
        assert_eq!(read_attachment("initrd").unwrap_err().to_string(), "`initrd` is no attachment; write NAME:PATH");
        let error = read_attachment("job:/x").unwrap_err().to_string();
        assert_eq!(error, "an attachment cannot be named `job`; choose another name");
    }
}
