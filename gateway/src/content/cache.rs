//! The content-addressed cache of `url:` artifacts: each is downloaded once, and read while it still arrives.
//!
//! ```text
//!  fetch(url) ──► Cached ──┐                    ┌─► Body ── read_at waits for its bytes ──► DUT 1
//!  fetch(url) ──► Cached ──┴── one Download ────┼─► Body ──────────────────────────────────► DUT 2
//!                              (download.rs)    └─► Progress, wait_complete ───────────────► executor, before power-on
//!                                   │
//!                              Store (store.rs): index, bodies, partial
//! ```
//! `fetch` is the moment of revalidation: a job that starts asks the server whether its artifact is still current, the DUT's reads
//! do not. An error is remembered nowhere but in the handles that wait for it. Dropping the last handle of a download ends it; what
//! arrived stays, and the next one goes on from there.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::AbortHandle;

pub use super::store::Pruned;

use super::ContentError;
use super::disk::Fill;
use super::download::{Download, Patience, Phase, Status, Version};
use super::edit::{Editor, STEP_BYTES_MAX};
use super::file::{OpenFile, blocking, fill, read_exactly};
use super::reach::{Fetcher, OwnNetworks, Reach};
use super::store::{Store, sha256};
use super::{reach, stores};

/// Whether `file://` URLs are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileUrls {
    /// Refused: a job's author could read any file of this machine.
    #[default]
    Refuse,
    /// Served: the farm's administrator trusts all who submit jobs.
    Allow,
}

/// How the cache reaches artifact servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// Through the proxy that the environment names (`http_proxy`, `https_proxy`, `no_proxy`), if it names one.
    #[default]
    Environment,
    /// Straight, whatever the environment says.
    Direct,
}

/// How the cache works. Start from [`Config::new`].
#[derive(Clone)]
pub struct Config {
    /// Where bodies are kept; made if missing. Other processes may use it at the same time.
    pub directory: PathBuf,
    /// Whether `file://` URLs are served.
    pub file_urls: FileUrls,
    /// How artifact servers are reached.
    pub route: Route,
    /// What belongs to the farm itself, and is not for everybody who submits.
    pub own: OwnNetworks,
    /// Where `s3://` URLs lead.
    pub stores: Arc<[stores::Store]>,
    /// A server that sends nothing for this long has stalled.
    pub idle_timeout: Duration,
    /// Tries in a row that brought no new byte before a download fails.
    pub tries: u32,
    /// Pause before the second try; it doubles with each.
    pub back_off: Duration,
    /// What a step of making an artifact of others gives at most ([`edit`](super::edit)).
    pub edit_bytes_max: u64,
}

impl Config {
    /// 60 s of silence: an object store may need half a minute to wake a cold object. 5 tries, 0.5 s apart and doubling: 7.5 s, the
    /// restart of a web server.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Config {
            directory: directory.into(),
            file_urls: FileUrls::default(),
            route: Route::default(),
            own: Arc::new(Vec::new),
            stores: Arc::default(),
            idle_timeout: Duration::from_secs(60),
            tries: 5,
            back_off: Duration::from_millis(500),
            edit_bytes_max: STEP_BYTES_MAX,
        }
    }
}

/// The cache. Cheap to clone.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    config: Config,
    store: Arc<Store>,
    editor: Editor,
    fetcher: Fetcher,
    running: Mutex<HashMap<(String, Reach), Weak<Handle>>>,
}

/// A handle on one fetched artifact. Cheap to clone; the download runs for as long as one of them or a reader lives.
#[derive(Clone)]
pub struct Cached(Arc<Handle>);

struct Handle {
    url: String,
    status: watch::Receiver<Status>,
    task: AbortHandle,
}

/// How much of an artifact is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that can be read.
    pub bytes: u64,
    /// Bytes of the whole, once the server told.
    pub total: Option<u64>,
}

/// One version of a cached artifact, open for reading.
#[derive(Debug)]
pub(super) struct Body {
    cached: Cached,
    version: Version,
}

impl Cache {
    /// Opens or makes the cache's directory.
    pub fn new(config: Config) -> Result<Self, ContentError> {
        let store = Arc::new(Store::open(&config.directory)?);
        let fetcher = Fetcher::new(config.route, Arc::clone(&config.own)).map_err(|error| ContentError::BadUrl {
            url: "https:".to_owned(),
            reason: format!("the HTTP client does not start: {error}"),
        })?;
        let editor = Editor::new(&config.directory, config.edit_bytes_max)?;
        Ok(Cache(Arc::new(Inner { config, store, editor, fetcher, running: Mutex::default() })))
    }

    /// The artifact at `url`, for somebody who may do everything here.
    pub fn fetch(&self, url: &str) -> Cached {
        self.fetch_as(url, Reach::Everywhere)
    }

    /// The artifact at `url`: joins the download that runs for it, or begins one, which asks first whether a cached body is still
    /// current; so nobody gets from the cache what he could not fetch. Errors come from the handle. Must be called inside a tokio runtime.
    pub fn fetch_as(&self, url: &str, reach: Reach) -> Cached {
        // The same name in another store is another object.
        let key = match self.object(url) {
            Ok(object) => sha256(format!("{url}\n{}", object.store.endpoint).as_bytes()),
            Err(_) => sha256(url.as_bytes()),
        };
        let mut running = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, handle| handle.strong_count() > 0);
        let joined = (key, reach);
        if let Some(handle) = running.get(&joined).and_then(Weak::upgrade)
            && handle.is_running()
        {
            return Cached(handle);
        }
        let handle = Arc::new(self.start(url, &joined.0, reach));
        running.insert(joined, Arc::downgrade(&handle));
        Cached(handle)
    }

    /// What downloads are made with, for what is fetched and not kept.
    pub fn fetcher(&self) -> &Fetcher {
        &self.0.fetcher
    }

    /// What makes artifacts of others, and keeps them in the cache's directory.
    pub fn editor(&self) -> &Editor {
        &self.0.editor
    }

    /// Removes what no job fetched for `unused_for`.
    pub async fn prune(&self, unused_for: Duration) -> Result<Pruned, ContentError> {
        let store = Arc::clone(&self.0.store);
        blocking(move || store.prune(unused_for)).await
    }

    fn start(&self, url: &str, key: &str, reach: Reach) -> Handle {
        let (sender, status) = watch::channel(Status::new());
        let task = match self.parse(url) {
            Ok(parsed) if parsed.scheme() == "file" => tokio::spawn(open_file(parsed, sender)),
            Ok(parsed) => tokio::spawn(self.download((url, parsed), key, reach, sender).run()),
            Err(error) => {
                sender.send_modify(|status| status.phase = Phase::Failed(error));
                // The handle wants a task; the answer is there already.
                tokio::spawn(async {})
            }
        };
        Handle { url: shown(url), status, task: task.abort_handle() }
    }

    fn object(&self, url: &str) -> Result<stores::Object, String> {
        stores::object_of(&self.0.config.stores, url)
    }

    fn parse(&self, url: &str) -> Result<reqwest::Url, ContentError> {
        let bad = |reason: &str| ContentError::BadUrl { url: shown(url), reason: reason.to_owned() };
        let parsed = reqwest::Url::parse(url).map_err(|error| bad(&error.to_string()))?;
        match parsed.scheme() {
            "http" | "https" => Ok(parsed),
            "s3" => self.object(url).map(|_| parsed).map_err(|reason| bad(&reason)),
            "file" if self.0.config.file_urls == FileUrls::Allow => Ok(parsed),
            "file" => Err(bad("this farm does not serve its own files; its administrator may allow file:// URLs")),
            other => Err(bad(&format!("the scheme `{other}` is not supported; use http, https or s3"))),
        }
    }

    fn download(&self, url: (&str, reqwest::Url), key: &str, reach: Reach, status: watch::Sender<Status>) -> Download {
        let Config { idle_timeout, tries, back_off, .. } = self.0.config;
        Download {
            store: Arc::clone(&self.0.store),
            fetcher: self.0.fetcher.clone(),
            reach,
            object: self.object(url.0).ok(),
            shown: shown(url.1.as_str()),
            url: url.1,
            key: key.to_owned(),
            patience: Patience { idle: idle_timeout, tries, back_off },
            status,
        }
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "artifact cache in {}", self.0.config.directory.display())
    }
}

/// The HTTP client, with the system's certificates; on a machine without any, https fails with a clear error and http works.
pub(crate) fn client(
    route: Route,
    with: impl Fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
) -> reqwest::Result<reqwest::Client> {
    // Whoever installed a provider before us has chosen; ours is the one that this workspace links.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = || {
        // 10 s: three TCP SYNs (1 s, 3 s, 7 s) went unanswered.
        let builder = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .user_agent(concat!("wharfinger/", env!("CARGO_PKG_VERSION")));
        let builder = with(builder);
        match route {
            Route::Environment => builder,
            Route::Direct => builder.no_proxy(),
        }
    };
    builder().build().or_else(|error| {
        tracing::warn!(%error, "no system certificates: https artifacts will fail; install ca-certificates");
        builder().tls_certs_only([]).build()
    })
}

/// A `file://` URL is read where it is: there is nothing to keep.
async fn open_file(url: reqwest::Url, status: watch::Sender<Status>) {
    let opened = match url.to_file_path() {
        Ok(path) => OpenFile::open(&path).await,
        Err(()) => Err(ContentError::BadUrl {
            url: url.to_string(),
            reason: "it names another host; write file:///path".to_owned(),
        }),
    };
    status.send_modify(|status| match opened {
        Ok(file) => {
            let version = Version { number: 1, file: file.handle(), etag: Some(file.etag()), sha256: None };
            (status.bytes, status.total) = (file.size(), Some(file.size()));
            (status.phase, status.version) = (Phase::Complete, Some(version));
        }
        Err(error) => status.phase = Phase::Failed(error),
    });
}

/// `url` without user name and password: it goes into logs.
fn shown(url: &str) -> String {
    match reqwest::Url::parse(url) {
        Ok(parsed) if !parsed.username().is_empty() || parsed.password().is_some() => reach::shown(&parsed),
        _ => url.to_owned(),
    }
}

impl Handle {
    /// Whether a new job can join: nothing was decided yet that it would have to ask again.
    fn is_running(&self) -> bool {
        let lives = self.status.has_changed().is_ok();
        lives && matches!(self.status.borrow().phase, Phase::Asking | Phase::Arriving)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Cached {
    /// The URL, without credentials.
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// How much is there.
    pub fn state(&self) -> Progress {
        let status = self.0.status.borrow();
        Progress { bytes: status.bytes, total: status.total }
    }

    /// Waits until the server answered with the artifact: it can be opened, and [`state`](Self::state) knows the size if the
    /// server told it.
    pub async fn ready(&self) -> Result<(), ContentError> {
        self.wait(|status| matches!(status.phase, Phase::Complete) || status.version.is_some()).await.map(drop)
    }

    /// Waits until all bytes are there.
    pub async fn wait_complete(&self) -> Result<(), ContentError> {
        self.wait(|status| matches!(status.phase, Phase::Complete)).await.map(drop)
    }

    /// Opens the version that is there, or arrives.
    pub(super) async fn open(&self) -> Result<Body, ContentError> {
        let version = self.wait(|status| status.version.is_some()).await?.version;
        let version = version.ok_or_else(|| ContentError::Cancelled { url: self.0.url.clone() })?;
        Ok(Body { cached: self.clone(), version })
    }

    /// The first status that satisfies `condition`; the download's error if it fails before.
    async fn wait(&self, condition: impl Fn(&Status) -> bool) -> Result<Status, ContentError> {
        let mut receiver = self.0.status.clone();
        let waited = receiver.wait_for(|status| matches!(status.phase, Phase::Failed(_)) || condition(status)).await;
        // The sender is gone without a last word only when the runtime stops.
        let status = waited.map_err(|_| ContentError::Cancelled { url: self.0.url.clone() })?.clone();
        match status.phase {
            Phase::Failed(error) => Err(error),
            _ => Ok(status),
        }
    }
}

impl fmt::Debug for Cached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.0.url, self.state())
    }
}

/// What a read at some place can have now.
enum Available {
    /// So many bytes.
    Bytes(usize),
    /// Nothing before more arrived.
    Later,
}

impl Body {
    /// The number of bytes, if known.
    pub(super) fn size(&self) -> Option<u64> {
        let status = self.cached.0.status.borrow();
        if self.is_current(&status) { status.total } else { None }
    }

    /// The strong validator of this version.
    pub(super) fn etag(&self) -> Option<String> {
        let status = self.cached.0.status.borrow();
        match &status.version {
            // A download without a tag of the server has one when it is complete: its sha256.
            Some(version) if version.number == self.version.number => version.etag.clone(),
            _ => self.version.etag.clone(),
        }
    }

    /// The sha256 of this version, once it is complete; a local file has none.
    pub(super) fn sha256(&self) -> Option<String> {
        let status = self.cached.0.status.borrow();
        status.version.as_ref().filter(|version| version.number == self.version.number)?.sha256.clone()
    }

    /// Waits until the length is known.
    pub(super) async fn complete_size(&self) -> Result<u64, ContentError> {
        let status = self.cached.wait(|status| status.total.is_some() || !self.is_current(status)).await?;
        match status.total {
            Some(total) if self.is_current(&status) => Ok(total),
            _ => Err(self.changed()),
        }
    }

    /// `length` bytes from `offset`, fewer only at the end.
    pub(super) async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, ContentError> {
        let length = self.wait_for(offset, length).await?;
        let read = read_exactly(&self.version.file, offset, length).await;
        let failed = |source| ContentError::File { path: PathBuf::from(self.cached.url()), source: Arc::new(source) };
        let bytes = read.map_err(failed)?;
        if bytes.len() < length {
            let found = offset + bytes.len() as u64;
            return Err(ContentError::Shrunk { path: PathBuf::from(self.cached.url()), found });
        }
        Ok(bytes)
    }

    /// What is known about the bytes from `offset` on; while they arrive, a hole may be only what is still missing.
    pub(super) fn fill(&self, offset: u64, end: u64) -> io::Result<(Fill, u64)> {
        let is_complete = matches!(self.cached.0.status.borrow().phase, Phase::Complete);
        if is_complete { fill(&self.version.file, offset, end) } else { Ok((Fill::Data, end)) }
    }

    /// Waits until the bytes are there; says how many of them exist.
    async fn wait_for(&self, offset: u64, length: usize) -> Result<usize, ContentError> {
        let mut receiver = self.cached.0.status.clone();
        let mut outcome = self.available(&receiver.borrow_and_update(), offset, length);
        loop {
            match outcome? {
                Available::Bytes(length) => return Ok(length),
                Available::Later => {}
            }
            let changed = receiver.changed().await;
            changed.map_err(|_| ContentError::Cancelled { url: self.cached.url().to_owned() })?;
            outcome = self.available(&receiver.borrow_and_update(), offset, length);
        }
    }

    fn available(&self, status: &Status, offset: u64, length: usize) -> Result<Available, ContentError> {
        if !self.is_current(status) {
            return Err(self.changed());
        }
        let end = offset.saturating_add(length as u64);
        let end = status.total.map_or(end, |total| end.min(total));
        let is_there = status.bytes >= end || matches!(status.phase, Phase::Complete);
        match &status.phase {
            _ if is_there => {
                let count = end.min(status.bytes).saturating_sub(offset);
                Ok(Available::Bytes(usize::try_from(count).unwrap_or(length)))
            }
            Phase::Failed(error) => Err(error.clone()),
            Phase::Asking | Phase::Arriving | Phase::Complete => Ok(Available::Later),
        }
    }

    fn is_current(&self, status: &Status) -> bool {
        status.version.as_ref().is_some_and(|version| version.number == self.version.number)
    }

    fn changed(&self) -> ContentError {
        ContentError::Changed { url: self.cached.url().to_owned() }
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
