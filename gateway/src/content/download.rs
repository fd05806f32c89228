//! One download: from the first request to a complete body in the store, seen by any number of readers while it arrives.
//!
//! ```text
//!  Asking ── 304 ──────────────────────────────► Complete
//!    │  ╲── 200, 206 ──► Arriving ── all there ──► Complete
//!    │        ▲              │ broken off: ask again from there (back-off; restart = next version)
//!    │        └──────────────┘
//!    └── 404, stalled, too many tries ──► Failed
//! ```
//! A *version* is one body: when the server's answer is another one, readers of the old version end with an error.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::StreamExt;
use reqwest::Response;
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE,
};
use tokio::sync::watch;
use tokio::time::timeout;

use super::ContentError;
use super::file::blocking;
use super::reach::{Failed, Fetcher, Reach, Schemes};
use super::revalidation::{self, Answer, Conditions, Validators, Verdict, conditions, judge};
use super::store::{Complete, Part, Store, sha256};
use super::stores::{Object, Refused, Verb};

/// How far a download is.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// No headers yet.
    Asking,
    /// Bytes of `Status::version` arrive.
    Arriving,
    /// All bytes are there.
    Complete,
    /// It ended without them.
    Failed(ContentError),
}

/// What readers see of a download.
#[derive(Clone, Debug)]
pub(super) struct Status {
    /// How far it is.
    pub(super) phase: Phase,
    /// Bytes of the version that can be read.
    pub(super) bytes: u64,
    /// Length of the version, if known.
    pub(super) total: Option<u64>,
    /// The version's file.
    pub(super) version: Option<Version>,
}

/// One body that the URL had.
#[derive(Clone, Debug)]
pub(super) struct Version {
    /// Which one of this download, from 1.
    pub(super) number: u32,
    /// Its bytes.
    pub(super) file: Arc<File>,
    /// Its strong validator towards DUTs.
    pub(super) etag: Option<String>,
    /// The name of the body, once it is complete.
    pub(super) sha256: Option<String>,
}

/// How long and how often we try.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Longest silence of the server.
    pub(super) idle: Duration,
    /// Tries in a row that brought no new byte.
    pub(super) tries: u32,
    /// Pause after the first failure; doubles with each.
    pub(super) back_off: Duration,
}

/// A download that is under way.
pub(super) struct Download {
    pub(super) store: Arc<Store>,
    pub(super) fetcher: Fetcher,
    pub(super) reach: Reach,
    pub(super) url: reqwest::Url,
    /// What it is when it is an `s3://` URL.
    pub(super) object: Option<Object>,
    /// The URL without credentials, for messages and the index.
    pub(super) shown: String,
    pub(super) key: String,
    pub(super) patience: Patience,
    pub(super) status: watch::Sender<Status>,
}

/// Why one try ended.
enum Setback {
    /// For good.
    Final(ContentError),
    /// Worth another try.
    Passing(String),
}

/// What one try leaves for the next.
struct Progress {
    complete: Option<Complete>,
    part: Option<Part>,
    versions: u32,
}

impl Status {
    pub(super) fn new() -> Self {
        Status { phase: Phase::Asking, bytes: 0, total: None, version: None }
    }
}

impl From<ContentError> for Setback {
    fn from(error: ContentError) -> Self {
        Setback::Final(error)
    }
}

impl Download {
    /// Runs to the end and tells it to the readers.
    pub(super) async fn run(self) {
        if let Err(error) = self.complete().await {
            tracing::info!(url = self.shown, %error, "download failed");
            self.status.send_modify(|status| status.phase = Phase::Failed(error));
        }
    }

    async fn complete(&self) -> Result<(), ContentError> {
        let mut progress = self.look_into_store().await?;
        let (mut failures, mut furthest) = (0, progress.part.as_ref().map_or(0, Part::bytes));
        loop {
            let reason = match self.attempt(&mut progress).await {
                Ok(()) => return Ok(()),
                Err(Setback::Final(error)) => return Err(error),
                Err(Setback::Passing(reason)) => reason,
            };
            let reached = progress.part.as_ref().map_or(0, Part::bytes);
            failures = if reached > furthest { 1 } else { failures + 1 };
            furthest = furthest.max(reached);
            tracing::debug!(url = self.shown, reason, failures, reached, "download broke off");
            if failures >= self.patience.tries {
                return Err(ContentError::Unreachable { url: self.shown.clone(), reason, tries: failures });
            }
            tokio::time::sleep(pause(self.patience.back_off, failures)).await;
        }
    }

    async fn look_into_store(&self) -> Result<Progress, ContentError> {
        // 1 s: see `lock_when_free`; a foreign process may keep the part for minutes, and then we load our own.
        const LOCK_PATIENCE: Duration = Duration::from_secs(1);
        let (store, key) = (Arc::clone(&self.store), self.key.clone());
        blocking(move || {
            let part = store.adopt(&key, LOCK_PATIENCE)?;
            Ok(Progress { complete: store.complete(&key), part: Some(part), versions: 0 })
        })
        .await
    }

    /// One request and its answer.
    async fn attempt(&self, progress: &mut Progress) -> Result<(), Setback> {
        let part = progress.part.take();
        let part = part.ok_or_else(|| Setback::Final(ContentError::Cancelled { url: self.shown.clone() }))?;
        let complete = progress.complete.as_ref().map(|complete| &complete.record.validators);
        let asked =
            conditions(complete, Some(revalidation::Part { validators: part.validators(), bytes: part.bytes() }));
        let response = match self.ask(&asked).await {
            Ok(response) => response,
            Err(setback) => {
                progress.part = Some(part);
                return Err(setback);
            }
        };
        let answer = answer_of(&response);
        match judge(&asked, part.validators(), &answer) {
            Verdict::Reuse => self.reuse(progress).await,
            Verdict::Append { total } => self.receive(progress, part, total, response).await,
            Verdict::Start { total } => {
                let part = blocking(move || part.restart(answer.validators)).await?;
                // Another version than readers have: even if they saw none of its bytes yet, their file is another one.
                self.status.send_if_modified(|status| status.version.take().is_some());
                self.receive(progress, part, total, response).await
            }
            Verdict::AskWhole => {
                progress.part = Some(blocking(move || part.restart(Validators::default())).await?);
                Err(Setback::Passing("the server does not continue the download".to_owned()))
            }
            Verdict::TryAgain => {
                progress.part = Some(part);
                Err(Setback::Passing(format!("answered {}", response.status())))
            }
            Verdict::Refuse => {
                progress.part = Some(part);
                Err(self.refused(response).await)
            }
        }
    }

    async fn ask(&self, asked: &Conditions) -> Result<Response, Setback> {
        // The artifact's own bytes, not a compressed form of them.
        let mut headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]);
        let range = asked.range_from.map(|from| format!("bytes={from}-"));
        for (name, value) in [
            (IF_NONE_MATCH, &asked.if_none_match),
            (IF_MODIFIED_SINCE, &asked.if_modified_since),
            (RANGE, &range),
            (IF_RANGE, &asked.if_range),
        ] {
            // A validator that cannot be sent back is none.
            if let Some(value) = value.as_ref().and_then(|value| HeaderValue::from_str(value).ok()) {
                headers.insert(name, value);
            }
        }
        // A store is the administrator's word already.
        let reach = if self.object.is_some() { Reach::Everywhere } else { self.reach };
        let (url, address) = (self.shown.clone(), self.address()?);
        match timeout(self.patience.idle, self.fetcher.get(&address, &headers, Schemes::Any, reach)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(Failed::Denied(reason))) => Err(ContentError::Denied { url, reason }.into()),
            Ok(Err(Failed::Wrong(reason))) => Err(ContentError::BadUrl { url, reason }.into()),
            Ok(Err(Failed::Request(error))) if error.is_builder() => {
                Err(ContentError::BadUrl { url, reason: causes(&error) }.into())
            }
            Ok(Err(Failed::Request(error))) => Err(Setback::Passing(causes(&error))),
            Err(_) => Err(self.stalled(0).into()),
        }
    }

    /// What a refusal means; stores say it in XML.
    async fn refused(&self, response: Response) -> Setback {
        /// Stores' sentences are some hundred bytes.
        const BYTES_MAX: usize = 16 << 10;
        let (url, status) = (self.shown.clone(), response.status());
        let Some(object) = &self.object else {
            return ContentError::Status { url, status: status.to_string() }.into();
        };
        let mut body = Vec::new();
        let mut stream = response.bytes_stream();
        while let Ok(Some(Ok(chunk))) = timeout(self.patience.idle, stream.next()).await {
            body.extend_from_slice(&chunk);
            if body.len() > BYTES_MAX {
                break;
            }
        }
        match object.refused(status.as_u16(), &String::from_utf8_lossy(&body)) {
            Refused::ForGood(reason) => ContentError::BadUrl { url, reason }.into(),
            Refused::ForNow(reason) => Setback::Passing(reason),
        }
    }

    /// What is asked: an object's signed URL is made anew for each request.
    fn address(&self) -> Result<reqwest::Url, ContentError> {
        let Some(object) = &self.object else { return Ok(self.url.clone()) };
        let bad = |_| ContentError::BadUrl { url: self.shown.clone(), reason: "its key makes no URL".to_owned() };
        object.signed(Verb::Get, SystemTime::now()).parse().map_err(bad)
    }

    async fn reuse(&self, progress: &mut Progress) -> Result<(), Setback> {
        let (store, key) = (Arc::clone(&self.store), self.key.clone());
        let Some(complete) = progress.complete.take() else {
            return Err(ContentError::Cancelled { url: self.shown.clone() }.into());
        };
        let complete = blocking(move || {
            store.touch(&key, &complete);
            complete
        });
        self.show_complete(&complete.await, progress.versions + 1);
        Ok(())
    }

    /// Streams the body of `response` behind what `part` has.
    async fn receive(
        &self,
        progress: &mut Progress,
        part: Part,
        total: Option<u64>,
        response: Response,
    ) -> Result<(), Setback> {
        self.show_version(progress, &part, total);
        let broken = self.append_all(&mut progress.part, part, response).await?;
        let Some(part) = progress.part.take() else {
            return Err(ContentError::Cancelled { url: self.shown.clone() }.into());
        };
        if total.is_some_and(|total| part.bytes() > total) {
            progress.part = Some(blocking(move || part.restart(Validators::default())).await?);
            return Err(Setback::Passing("the server sent more than it announced".to_owned()));
        }
        let missing = total.is_some_and(|total| part.bytes() < total);
        let reason = broken.or_else(|| missing.then(|| "the connection ended too early".to_owned()));
        if let Some(reason) = reason {
            progress.part = Some(part);
            return Err(Setback::Passing(reason));
        }
        let url = self.shown.clone();
        let complete = blocking(move || part.finish(&url)).await?;
        self.show_complete(&complete, progress.versions);
        Ok(())
    }

    /// Appends until the stream ends (`None`) or breaks (its reason); the part is in `kept` whenever this returns `Ok`.
    async fn append_all(
        &self,
        kept: &mut Option<Part>,
        mut part: Part,
        response: Response,
    ) -> Result<Option<String>, Setback> {
        // 32 chunks (16 KiB and less each): what came meanwhile goes to disk in one step of about half a megabyte.
        const CHUNKS_AT_ONCE: usize = 32;
        let mut stream = response.bytes_stream().ready_chunks(CHUNKS_AT_ONCE);
        loop {
            let Ok(arrived) = timeout(self.patience.idle, stream.next()).await else {
                return Err(self.stalled(part.bytes()).into());
            };
            let Some(arrived) = arrived else {
                *kept = Some(part);
                return Ok(None);
            };
            let (chunks, broken) = sort(arrived);
            part = blocking(move || part.append(chunks)).await?;
            self.status.send_modify(|status| status.bytes = part.bytes());
            if broken.is_some() {
                *kept = Some(part);
                return Ok(broken);
            }
        }
    }

    fn show_version(&self, progress: &mut Progress, part: &Part, total: Option<u64>) {
        self.status.send_modify(|status| {
            if status.version.is_none() {
                progress.versions += 1;
                let etag = part.validators().strong_etag().map(|etag| derived_etag(&self.shown, etag));
                status.version = Some(Version { number: progress.versions, file: part.file(), etag, sha256: None });
            }
            (status.phase, status.bytes, status.total) = (Phase::Arriving, part.bytes(), total);
        });
    }

    fn show_complete(&self, complete: &Complete, number: u32) {
        let record = &complete.record;
        let derived = record.validators.strong_etag().map(|etag| derived_etag(&self.shown, etag));
        let etag = derived.unwrap_or_else(|| format!("\"{}\"", record.sha256));
        let sha256 = Some(record.sha256.clone());
        let version = Version { number, file: Arc::clone(&complete.file), etag: Some(etag), sha256 };
        self.status.send_replace(Status {
            phase: Phase::Complete,
            bytes: record.length,
            total: Some(record.length),
            version: Some(version),
        });
    }

    fn stalled(&self, bytes: u64) -> ContentError {
        ContentError::Stalled { url: self.shown.clone(), bytes, idle: self.patience.idle }
    }
}

/// The same tag before and after the last byte arrived, so that a DUT can resume what it began while we were downloading.
fn derived_etag(url: &str, etag: &str) -> String {
    format!("\"u{}\"", &sha256(format!("{url}\n{etag}").as_bytes())[..32])
}

/// Doubles with each failure, to 10 s at most: a server that restarts is back by then, and a job's own timeout is minutes.
fn pause(first: Duration, failures: u32) -> Duration {
    const LONGEST: Duration = Duration::from_secs(10);
    first.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST)
}

fn sort(arrived: Vec<reqwest::Result<Bytes>>) -> (Vec<Bytes>, Option<String>) {
    let mut chunks = Vec::with_capacity(arrived.len());
    for chunk in arrived {
        match chunk {
            Ok(bytes) => chunks.push(bytes),
            Err(error) => return (chunks, Some(causes(&error))),
        }
    }
    (chunks, None)
}

fn answer_of(response: &Response) -> Answer {
    let header = |name: HeaderName| {
        response.headers().get(name).and_then(|value| value.to_str().ok()).map(|value| value.trim().to_owned())
    };
    Answer {
        status: response.status().as_u16(),
        validators: Validators { etag: header(ETAG), last_modified: header(LAST_MODIFIED) },
        content_range: header(CONTENT_RANGE),
        content_length: header(CONTENT_LENGTH).and_then(|length| length.parse().ok()),
    }
}

/// An error's innermost causes, without the URL that the message around it names already.
pub(super) fn causes(error: &reqwest::Error) -> String {
    let mut parts = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        parts.push(inner.to_string());
        cause = inner.source();
    }
    parts.dedup();
    if parts.is_empty() { error.to_string() } else { parts.join(": ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_ten_seconds() {
        let pauses = [1, 2, 3, 6, 40].map(|failures| pause(Duration::from_millis(500), failures).as_millis());
        assert_eq!(pauses, [500, 1_000, 2_000, 10_000, 10_000]);
    }
}
