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
use tokio::io::AsyncWriteExt;
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
/// Between two attempts at a file that jobs need: a proxy that is restarted is back by then. Meanwhile a job is pending.
pub(super) const FETCH_PAUSES: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(15)];
/// Of what the server says of a failure: a sentence.
const SAID_MAX: usize = 500;
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
            _ => match self.moved(&response) {
                Some(why) => Asked::Failed(why, after),
                None => Asked::Failed(format!("{} answered {status} to the question for a job", self.base), after),
            },
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
        let path = format!("/jobs/{}/trace?debug_trace={}", job.id, job.is_debugged());
        let request = self.call(Method::PATCH, &path);
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
                None => return answer_to_upload(response).await,
            }
        }
        Answer::default()
    }

    /// Fetches a small file of at most so many bytes; the token is shown to the instance alone.
    pub(super) async fn fetch(&self, path: &str, token: &str, bytes_max: usize) -> Result<Bytes, String> {
        again(|| async move {
            let response = self.get(path, token).await?;
            whole_of(response, bytes_max).await.map_err(|error| Unfetched::for_good(format!("{}: {error}", self.base)))
        })
        .await
    }

    /// Fetches a file of at most so many bytes into this one.
    pub(super) async fn load(&self, path: &str, token: &str, target: &Path, bytes_max: u64) -> Result<(), String> {
        again(|| async move {
            let response = self.get(path, token).await?;
            written(response, target, bytes_max).await.map_err(|error| error.at(&self.base))
        })
        .await
    }

    async fn get(&self, path: &str, token: &str) -> Result<Response, Unfetched> {
        let url = format!("{}/api/v4{path}", self.base);
        let mut request = self.http.get(&url).header("JOB-TOKEN", token);
        for _ in 0..http::HOPS_MAX {
            let sent = request.timeout(FILE_TIME).send().await;
            let response = sent.map_err(|error| Unfetched::for_now(self.said(error)))?;
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
            let status = response.status();
            let why = format!("{} answered {status}", self.base);
            return match status.as_u16() {
                200..=299 => Ok(response),
                408 | 429 | 500..=599 => Err(Unfetched::for_now(why)),
                _ => Err(Unfetched::for_good(why)),
            };
        }
        Err(Unfetched::for_good(format!("{} sent us round in circles", self.base)))
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
        if let Some(why) = self.moved(&response) {
            return Err(why);
        }
        let bytes = whole(response).await.map_err(|error| self.said(error))?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
    }

    /// A sentence of where it sends us: what is asked of it would become another request on the way, and its token go elsewhere.
    fn moved(&self, response: &Response) -> Option<String> {
        let to = location(response).filter(|_| response.status().is_redirection())?;
        let to = to.as_str().split("/api/v4").next().unwrap_or_default();
        Some(format!("{} redirects to {to}: write where GitLab is as `url` in the farm file", self.base))
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

/// Why something was not fetched.
struct Unfetched {
    why: String,
    again: Again,
}

/// Whether it may come at another time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    May,
    WillNot,
}

impl Unfetched {
    fn for_now(why: String) -> Unfetched {
        Unfetched { why, again: Again::May }
    }

    fn for_good(why: String) -> Unfetched {
        Unfetched { why, again: Again::WillNot }
    }

    fn at(self, base: &str) -> Unfetched {
        Unfetched { why: format!("{base}: {}", self.why), ..self }
    }
}

/// Tries it until it is had, or will not be.
async fn again<T, F: Future<Output = Result<T, Unfetched>>>(got: impl Fn() -> F) -> Result<T, String> {
    for pause in FETCH_PAUSES {
        match got().await {
            Ok(got) => return Ok(got),
            Err(Unfetched { why, again: Again::WillNot }) => return Err(why),
            Err(Unfetched { again: Again::May, .. }) => tokio::time::sleep(pause).await,
        }
    }
    got().await.map_err(|unfetched| unfetched.why)
}

async fn written(response: Response, target: &Path, bytes_max: u64) -> Result<(), Unfetched> {
    let cannot = |error: std::io::Error| Unfetched::for_good(error.to_string());
    let mut file = tokio::fs::File::create(target).await.map_err(cannot)?;
    let (mut bytes, mut chunks) = (0, response.bytes_stream());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| Unfetched::for_now(error.without_url().to_string()))?;
        bytes += chunk.len() as u64;
        if bytes > bytes_max {
            return Err(Unfetched::for_good(format!("it has more than {} MiB", bytes_max >> 20)));
        }
        file.write_all(&chunk).await.map_err(cannot)?;
    }
    file.flush().await.map_err(cannot)
}

/// What the server thinks of an upload; after a lost answer, or a restart of ours, it may have it already.
async fn answer_to_upload(response: Response) -> Answer {
    let answer = answer_of(&response);
    if response.status().is_success() {
        return answer;
    }
    let text = whole(response).await.unwrap_or_default();
    let said = said_in(&serde_json::from_slice(&text).unwrap_or_default());
    let is_there = said.contains("already exists") || said.contains("lready uploaded");
    let status = if is_there { Some(201) } else { answer.status };
    Answer { status, said, ..answer }
}

/// What an answer of the API says to people; empty where it says nothing.
pub(super) fn said_in(answer: &Value) -> String {
    let said = [&answer["message"], &answer["error"]].into_iter().find(|said| !said.is_null());
    let text = said.map_or(String::new(), |said| said.as_str().map_or_else(|| said.to_string(), str::to_owned));
    text.chars().filter(|letter| !letter.is_control()).take(SAID_MAX).collect()
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
        said: String::new(),
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

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    /// An instance that answers each call with the next of these.
    async fn client(answers: Vec<&'static str>) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/gitlab/", listener.local_addr().unwrap());
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                let is_whole = |request: &[u8]| match String::from_utf8_lossy(request).contains("chunked") {
                    true => request.ends_with(b"\r\n0\r\n\r\n"),
                    false => request.ends_with(b"}"),
                };
                while !is_whole(&request) {
                    let mut some = [0; 4096];
                    let count = stream.read(&mut some).await.unwrap();
                    assert!(count > 0, "the client says all that it says");
                    request.extend_from_slice(&some[..count]);
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Client::new(&url, None).unwrap()
    }

    #[tokio::test]
    async fn an_instance_that_is_elsewhere_is_named_with_what_to_write() {
        let moved = "HTTP/1.1 301 Moved Permanently\r\nLocation: https://git.example.org/api/v4/runners/verify\r\n\
                     Content-Length: 0\r\nConnection: close\r\n\r\n";
        let client = client(vec![moved, moved]).await;
        let why = client.manage(Method::POST, "/runners/verify", None, &serde_json::json!({})).await.unwrap_err();
        let expected = " redirects to https://git.example.org: write where GitLab is as `url` in the farm file";
        assert!(why.starts_with("http://127.0.0.1:") && why.ends_with(expected), "{why}");
        match client.ask_for_job("t", "s", &mut None, None).await {
            Asked::Failed(why, _) => assert!(why.ends_with(expected), "{why}"),
            _ => panic!("it is no job"),
        }
    }

    #[tokio::test]
    async fn an_upload_that_is_refused_says_why_and_one_that_is_there_already_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dotenv.gz");
        std::fs::write(&path, "x").unwrap();
        let answers = vec![
            "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n{\"message\":\"400 Bad request - Invalid Format\"}",
            "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n{\"message\":\"another artifact of the same type already exists\"}",
            "HTTP/1.1 413 Payload Too Large\r\nConnection: close\r\n\r\n<html>",
        ];
        let client = client(answers).await;
        let [kind, format] = ["dotenv", "gzip"].map(str::to_owned);
        let upload = Upload { path, name: "dotenv.gz".into(), kind, format, expire_in: String::new() };
        let job = Job::default();
        let answer = client.upload(&job, &upload).await;
        assert_eq!((answer.status, answer.said.as_str()), (Some(400), "400 Bad request - Invalid Format"));
        assert_eq!(client.upload(&job, &upload).await.status, Some(201));
        let answer = client.upload(&job, &upload).await;
        assert_eq!((answer.status, answer.said.as_str()), (Some(413), ""));
    }
}
