//! Requests to one GitLab instance: each call is tried once, and its answer is brought as it is.
//!
//! ```text
//!  request ─► connection, TLS, time ─► Answer: status, Job-Status, Range, Retry-After … (courier.rs says what it means)
//!                └ none of it: an Answer without a status
//! ```
//! Tokens go in headers and bodies, never in a URL: proxies write URLs down.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, RANGE, RETRY_AFTER};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;
use tokio_util::io::ReaderStream;

use super::super::http::{self, location, whole_of};
use super::super::runners::Asked;
use super::courier::{Answer, Log, State};
use super::wire::{self, Job};
use crate::config::gitlab::GitlabConfig;
use crate::farm::Descriptions;

/// A small call with its answer: a busy server takes some seconds.
const CALL_TIME: Duration = Duration::from_secs(30);
/// The server keeps the question for a job for 50 s at most (Workhorse's `apiCiLongPollingDuration`), and answers then.
const POLL_TIME: Duration = Duration::from_secs(80);
/// A file of some GiB over a slow line.
const FILE_TIME: Duration = Duration::from_secs(1800);
/// Read of an answer to a small call; a job with its variables has some tens of KiB.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Stands between the parts of an upload; nothing else that is sent begins a line so.
const BOUNDARY: &str = "wharf-7d2f61c0a9b84e35-upload";

/// One instance, for everything that is said to it.
#[derive(Clone)]
pub(super) struct Client {
    base: String,
    http: reqwest::Client,
}

/// What is uploaded, and as what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Upload {
    pub path: std::path::PathBuf,
    pub name: String,
    /// `archive`, `junit`…
    pub kind: String,
    /// `zip`, `gzip` or `raw`.
    pub format: String,
    pub expire_in: String,
}

impl Client {
    /// For the instance that the farm file names.
    pub(super) fn of(config: &GitlabConfig) -> Result<Client, String> {
        Client::new(&config.url, config.certificate_authority.as_deref())
    }

    /// For the instance at this URL.
    pub(super) fn new(url: &str, authority: Option<&Path>) -> Result<Client, String> {
        let http = http::client(authority)?;
        Ok(Client { base: url.trim_end_matches('/').to_owned(), http })
    }

    /// Asks for a job; the server may take its time. `last_update`: what it said of its queue, which it is told again.
    pub(super) async fn ask_for_job(
        &self,
        token: &str,
        system_id: &str,
        last_update: &mut Option<String>,
        session: Option<Value>,
    ) -> Asked<Job> {
        let body = wire::request(token, system_id, last_update.as_deref(), session);
        let request = self.call(Method::POST, "/jobs/request").timeout(POLL_TIME).header("RUNNER-TOKEN", token);
        let response = match json(request, &body).send().await {
            Ok(response) => response,
            Err(error) => return Asked::Failed(self.said(error), None),
        };
        let (status, after) = (response.status(), retry_after(response.headers()));
        match status.as_u16() {
            201 => match whole(response).await.map(|bytes| serde_json::from_slice::<Job>(&bytes)) {
                Ok(Ok(job)) => {
                    *last_update = None;
                    Asked::Job(Box::new(job))
                }
                Ok(Err(error)) => Asked::Failed(format!("{} gave a job that cannot be read: {error}", self.base), None),
                Err(error) => Asked::Failed(self.said(error), None),
            },
            204 => {
                *last_update = text_of(response.headers(), "x-gitlab-last-update");
                Asked::Nothing
            }
            403 => Asked::Refused,
            // Another one was faster.
            409 => Asked::Nothing,
            422 => Asked::Failed(format!("{}: the runner belongs to a project or group that is gone", self.base), None),
            _ => Asked::Failed(format!("{} answered {status} to the question for a job", self.base), after),
        }
    }

    /// Tells the state of a job.
    pub(super) async fn tell(&self, job: &Job, state: &State, log: Log) -> Answer {
        let request = self.call(Method::PUT, &format!("/jobs/{}", job.id)).header("JOB-TOKEN", &job.token);
        self.answer(json(request, &wire::update(&job.token, state, log))).await
    }

    /// Sends a piece of a job's log.
    pub(super) async fn piece(&self, job: &Job, from: u64, bytes: Vec<u8>) -> Answer {
        // The end is inclusive; an empty piece is never sent.
        let range = format!("{from}-{}", (from + bytes.len() as u64).saturating_sub(1));
        let request = self.call(Method::PATCH, &format!("/jobs/{}/trace?debug_trace=false", job.id));
        let request = request.header("JOB-TOKEN", &job.token).header(CONTENT_RANGE, range);
        // Without a type the server reads the body as JSON.
        self.answer(request.header(CONTENT_TYPE, "text/plain").body(bytes)).await
    }

    /// Uploads a file of a job.
    pub(super) async fn upload(&self, job: &Job, upload: &Upload) -> Answer {
        let mut url = format!("/jobs/{}/artifacts?artifact_type={}", job.id, in_query(&upload.kind));
        url.push_str(&format!("&artifact_format={}", in_query(&upload.format)));
        if !upload.expire_in.is_empty() {
            url.push_str(&format!("&expire_in={}", in_query(&upload.expire_in)));
        }
        let mut target = format!("{}/api/v4{url}", self.base);
        for _ in 0..http::HOPS_MAX {
            let file = match tokio::fs::File::open(&upload.path).await {
                Ok(file) => file,
                Err(error) => {
                    tracing::error!(path = %upload.path.display(), %error, "an artifact cannot be read");
                    return Answer { status: Some(403), ..Answer::default() };
                }
            };
            let request = self.http.request(Method::POST, &target).timeout(FILE_TIME).header("JOB-TOKEN", &job.token);
            let request = request.header(CONTENT_TYPE, format!("multipart/form-data; boundary={BOUNDARY}"));
            let response = match request.body(multipart(&upload.name, file)).send().await {
                Ok(response) => response,
                Err(error) => {
                    tracing::warn!("{}", self.said(error));
                    return Answer::default();
                }
            };
            match location(&response).filter(|_| response.status() == StatusCode::TEMPORARY_REDIRECT) {
                Some(next) => target = next.into(),
                None => return answer_of(&response),
            }
        }
        Answer::default()
    }

    /// Fetches a file of at most so many bytes; the token is shown to the instance alone.
    pub(super) async fn fetch(&self, path: &str, token: &str, bytes_max: usize) -> Result<Bytes, String> {
        let url = format!("{}/api/v4{path}", self.base);
        let mut request = self.http.get(&url).header("JOB-TOKEN", token);
        for _ in 0..http::HOPS_MAX {
            let response = request.timeout(FILE_TIME).send().await.map_err(|error| self.said(error))?;
            if response.status().is_redirection()
                && let Some(next) = location(&response)
            {
                let same = next.as_str().starts_with(&format!("{}/", self.base));
                request = self.http.get(next);
                if same {
                    request = request.header("JOB-TOKEN", token);
                }
                continue;
            }
            if !response.status().is_success() {
                return Err(format!("{} answered {}", self.base, response.status()));
            }
            return whole_of(response, bytes_max).await.map_err(|error| format!("{}: {error}", self.base));
        }
        Err(format!("{} sent us round in circles", self.base))
    }

    /// Fetches from any URL that the farm lets jobs be fetched from.
    pub(super) async fn fetch_url(&self, url: &str, from: &Descriptions, bytes_max: usize) -> Result<Bytes, String> {
        http::fetch(&self.http, &self.base, url, from, bytes_max).await
    }

    /// For what its own answers lead to.
    pub(super) fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// A path of its API as a URL.
    pub(super) fn api_url(&self, path: &str) -> String {
        format!("{}/api/v4{path}", self.base)
    }

    /// A call of the API with a person's token, or with none; the answer's JSON, null where it has none.
    pub(super) async fn manage(
        &self,
        method: Method,
        path: &str,
        private_token: Option<&str>,
        body: &Value,
    ) -> Result<(StatusCode, Value), String> {
        let mut request = self.call(method, path);
        if let Some(token) = private_token {
            request = request.header("PRIVATE-TOKEN", token);
        }
        let response = json(request, body).send().await.map_err(|error| self.said(error))?;
        let status = response.status();
        let bytes = whole(response).await.map_err(|error| self.said(error))?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
    }

    fn call(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}/api/v4{path}", self.base));
        request.timeout(CALL_TIME).header("Accept", "application/json")
    }

    async fn answer(&self, request: RequestBuilder) -> Answer {
        match request.send().await {
            Ok(response) => answer_of(&response),
            Err(error) => {
                tracing::debug!("{}", self.said(error));
                Answer::default()
            }
        }
    }

    fn said(&self, error: reqwest::Error) -> String {
        http::said(&self.base, error)
    }
}

fn json(request: RequestBuilder, body: &Value) -> RequestBuilder {
    request.header(CONTENT_TYPE, "application/json").body(body.to_string())
}

/// The last word of the server on a call.
fn answer_of(response: &Response) -> Answer {
    let headers = response.headers();
    let range_end = text_of(headers, RANGE.as_str()).and_then(|range| range.rsplit_once('-')?.1.parse().ok());
    let interval = text_of(headers, "x-gitlab-trace-update-interval").and_then(|text| text.parse().ok());
    Answer {
        status: Some(response.status().as_u16()),
        job_status: text_of(headers, "job-status"),
        range_end,
        log_interval: interval.map(Duration::from_secs),
        retry_after: retry_after(headers),
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    text_of(headers, RETRY_AFTER.as_str()).and_then(|text| text.parse().ok()).map(Duration::from_secs)
}

fn text_of(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(|text| text.trim().to_owned())
}

async fn whole(response: Response) -> Result<Bytes, reqwest::Error> {
    let mut bytes = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        bytes.extend_from_slice(&chunk?);
        if bytes.len() > ANSWER_BYTES_MAX {
            break;
        }
    }
    Ok(bytes.into())
}

/// A form with one file (RFC 7578 §4), as it is read.
fn multipart(name: &str, file: tokio::fs::File) -> Body {
    let name: String = name.chars().filter(|letter| !matches!(letter, '"' | '\\') && !letter.is_control()).collect();
    let head = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    );
    let tail = format!("\r\n--{BOUNDARY}--\r\n");
    let one = |text: String| futures_util::stream::iter([Ok::<Bytes, std::io::Error>(text.into())]);
    Body::wrap_stream(one(head).chain(ReaderStream::new(file)).chain(one(tail)))
}

/// A value inside a query or a path's part (RFC 3986 §2.3).
pub(super) fn in_query(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
