//! A registry that has other registries' images: containers are loaded once per farm, whoever pulls them.
//!
//! ```text
//!  http/images.rs ── a DUT's request, and in whose name ──► Door ─► ask.rs: what is asked ─► upstream of the farm file? ─ no ─► 403 DENIED
//!    manifest by tag ─► asked lately? ─ no ─► HEAD upstream ─┬─ the same ─► from the store
//!                                                            ├─ another ──► GET, verified, kept
//!                                                            └─ away ─────► the one of before, and a word about it
//!    manifest, blob by digest ─► index.rs: may he have it, as far as we know? ─ no ─► HEAD upstream; of what it never gave for this repository: GET
//!                             ─► store.rs: kept ─► from there
//!                             └─► load.rs: one download for all who wait, verified, and read while it arrives
//! ```
//! The bytes are shared between jobs, the right to them is not: who asks with other names and passwords is somebody else.

mod ask;
mod challenge;
mod index;
mod load;
mod store;
mod upstream;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use rand::RngExt;
use reqwest::{Method, StatusCode};
use tokio::time::timeout;

pub use self::ask::{Asked, DOCKER, Denied, Digest, Reference, Repository, asked, component_of, not_read};
use self::index::{Held, Known, Who};
use self::load::{Load, Reading, Setback, Source};
use self::store::{Store, now};
pub use self::upstream::Authority;
use self::upstream::{Asker, Failure, Question, Upstreams, body};
use crate::content::cache::Route;
use crate::content::{Arriving, Content, ContentError, Reader};
use crate::egress::Network;
use crate::outside::Outside;

/// Where registries listen by custom.
pub const PORT: u16 = 5000;
/// 4 MiB: what the specification lets a registry refuse beyond.
const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// 1 MiB: ten thousand tags.
const TAGS_BYTES_MAX: usize = 1 << 20;
/// 16 KiB of a blob, compared: nobody who only knows its name has them.
const SAMPLE_BYTES: usize = 16 * 1024;
/// They are in its first MiB.
const SAMPLED_BYTES: u64 = 1 << 20;
/// 30 s without a byte of them: no other answer is waited for longer.
const SAMPLE_TIME: Duration = Duration::from_secs(30);
/// What a manifest may be.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// What a manifest is whose registry does not say it.
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// How an upstream is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    /// Over TLS.
    #[default]
    Https,
    /// In clear, because the farm file says so.
    Http,
}

/// A name and a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The name.
    pub username: String,
    /// The password, or a token in its place.
    pub password: String,
}

impl Login {
    /// As RFC 7617 has it.
    fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.username, self.password)))
    }

    fn who(&self) -> Who {
        Who::Job(Digest::of(self.basic().as_bytes()))
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, with a password", self.username)
    }
}

/// A job's own names and passwords, by the upstream's host.
pub type Logins = BTreeMap<String, Login>;

/// A registry whose images are had here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upstream {
    /// As images' names have it, with the port where they have one.
    pub host: String,
    /// How it is reached.
    pub scheme: Scheme,
    /// In whose name, for jobs that have no name of their own.
    pub login: Option<Login>,
    /// Beside those that the host trusts, for it and wherever it leads.
    pub authority: Option<Authority>,
}

/// What may change while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The registries.
    pub upstreams: Vec<Upstream>,
    /// How much is kept.
    pub bytes_max: u64,
    /// How long a tag is what it was before its upstream is asked again.
    pub tags_last: Duration,
    /// Private networks where upstreams may keep what they give.
    pub private_networks: Vec<Network>,
}

impl Default for Settings {
    /// No registries. 50 GiB: some twenty images of a driver's test suite. A minute: who pushes and runs a job sees what he pushed, and a
    /// rack of DUTs that starts at once asks once.
    fn default() -> Settings {
        let (upstreams, private_networks) = (Vec::new(), Vec::new());
        Settings { upstreams, bytes_max: 50 << 30, tags_last: Duration::from_secs(60), private_networks }
    }
}

/// How the cache is made.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is served.
    pub settings: Settings,
    /// Where it is kept: nobody else's.
    pub directory: PathBuf,
    /// How upstreams are reached.
    pub route: Route,
}

/// What answers. Cheap to clone.
#[derive(Clone)]
pub struct Door(Arc<Inner>);

struct Inner {
    settings: Mutex<Arc<Settings>>,
    store: Arc<Store>,
    upstreams: Arc<Upstreams>,
    loading: Mutex<HashMap<Digest, Weak<Load>>>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<_> = self.settings().upstreams.iter().map(|upstream| upstream.host.clone()).collect();
        write!(f, "registry cache of {}", hosts.join(", "))
    }
}

/// What is given.
#[derive(Debug)]
pub enum Given {
    /// This is a registry.
    Pong,
    /// A list of tags, and what follows it.
    Tags {
        /// JSON.
        body: Bytes,
        /// The query of the next page.
        next: Option<String>,
    },
    /// A manifest or a blob.
    Object {
        /// Its bytes.
        reader: Reader,
        /// How many.
        bytes: u64,
        /// Its name.
        digest: Digest,
        /// What it is.
        media_type: String,
        /// What is to be said of it.
        note: Option<String>,
    },
}

/// What the cache has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// `registry.example.org/a/b`.
    pub repository: String,
    /// The tags that were asked for.
    pub tags: Vec<String>,
    /// Of all its parts; several repositories may share some.
    pub bytes: u64,
    /// When any of them was used last, in seconds since 1970.
    pub used: u64,
    /// In whose name its registry gave something of it, and when last: `anybody`, `farm` (the farm file's name), `job` (a job's own).
    pub readers: BTreeMap<String, u64>,
}

/// All that the cache has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// By name.
    pub holdings: Vec<Holding>,
    /// In all.
    pub bytes: u64,
    /// At most.
    pub bytes_max: u64,
}

/// What was forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forgotten {
    /// The repositories.
    pub repositories: Vec<String>,
    /// How many bytes are free for it.
    pub bytes: u64,
}

impl Door {
    /// Opens the cache.
    pub fn open(config: Config, outside: Arc<dyn Outside>) -> io::Result<Door> {
        let store = Arc::new(Store::open(&config.directory, config.settings.bytes_max)?);
        let upstreams = Upstreams::new(outside, config.route).map_err(io::Error::other)?;
        upstreams.set_private_networks(config.settings.private_networks.clone());
        let settings = Mutex::new(Arc::new(config.settings));
        Ok(Door(Arc::new(Inner { settings, store, upstreams: Arc::new(upstreams), loading: Mutex::default() })))
    }

    /// Goes by other settings from the next request on.
    pub fn set(&self, settings: Settings) {
        self.0.upstreams.set_private_networks(settings.private_networks.clone());
        self.0.upstreams.forget();
        self.0.store.set_bytes_max(settings.bytes_max);
        let mut own = self.0.settings.lock().unwrap_or_else(PoisonError::into_inner);
        if own.upstreams != settings.upstreams {
            self.0.store.holdings().forget_the_farm();
        }
        *own = Arc::new(settings);
    }

    /// What it has.
    pub fn inventory(&self) -> Inventory {
        let (holdings, bytes_max) = (self.0.store.holdings(), self.0.store.bytes_max());
        Inventory { holdings: holdings.list(), bytes: holdings.bytes(), bytes_max }
    }

    /// Forgets a repository, or all whose names go on behind `name` with a `/`: they are loaded again when somebody wants them.
    pub async fn forget(&self, name: &str) -> Forgotten {
        let (repositories, bytes) = self.0.store.forget(name).await;
        Forgotten { repositories, bytes }
    }

    fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.0.settings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is given to a job with `logins` that asks for `asked`, and `query` behind it.
    pub async fn answer(&self, asked: &Asked, query: Option<&str>, logins: &Logins) -> Result<Given, Denied> {
        match asked {
            Asked::Ping => Ok(Given::Pong),
            Asked::Manifest(repository, reference) => {
                Pull { door: self, asker: self.asker(repository, logins)?, repository }.manifest(reference).await
            }
            Asked::Blob(repository, digest) => {
                Pull { door: self, asker: self.asker(repository, logins)?, repository }.blob(*digest).await
            }
            Asked::Tags(repository) => {
                Pull { door: self, asker: self.asker(repository, logins)?, repository }.tags(query).await
            }
        }
    }

    fn asker(&self, repository: &Repository, logins: &Logins) -> Result<Asker, Denied> {
        let settings = self.settings();
        let host = &repository.upstream;
        let upstream = settings.upstreams.iter().find(|upstream| upstream.host == *host).cloned();
        let upstream = upstream.ok_or_else(|| {
            let known: Vec<_> = settings.upstreams.iter().map(|upstream| upstream.host.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Denied::new(403, "DENIED", format!("this farm has no images of {host}; it has those of {known}"))
        })?;
        let login = logins.get(host).cloned();
        let (who, login) = match (login, upstream.login.clone()) {
            (Some(own), _) => (own.who(), Some(own)),
            (None, Some(farms)) => (Who::Farm, Some(farms)),
            (None, None) => (Who::Anybody, None),
        };
        Ok(Asker { upstream, who, login })
    }
}

/// One request for something of a repository.
struct Pull<'a> {
    door: &'a Door,
    asker: Asker,
    repository: &'a Repository,
}

/// What a manifest is called, in answers and in errors.
const MANIFEST_UNKNOWN: &str = "MANIFEST_UNKNOWN";
const BLOB_UNKNOWN: &str = "BLOB_UNKNOWN";

impl Pull<'_> {
    fn store(&self) -> &Arc<Store> {
        &self.door.0.store
    }

    fn name(&self) -> String {
        self.repository.to_string()
    }

    fn known(&self, digest: Digest) -> Known {
        self.store().holdings().knows(&self.name(), digest, &self.asker.who, now())
    }

    async fn ask(&self, method: Method, path: String) -> Result<reqwest::Response, Failure> {
        let accept = if path.starts_with("manifests/") { MANIFEST_TYPES } else { "*/*" };
        let question = Question { method, repository: self.repository, path, from: 0, accept };
        self.door.0.upstreams.ask(&self.asker, &question).await
    }

    async fn manifest(&self, reference: &Reference) -> Result<Given, Denied> {
        match reference {
            Reference::Digest(digest) => {
                let note = match self.may_have(*digest, format!("manifests/{digest}")).await? {
                    May::Have(note) => note,
                    May::Ask => return self.fetch_manifest(reference).await,
                };
                match self.kept_manifest(*digest, note).await {
                    Some(given) => Ok(given),
                    None => self.fetch_manifest(reference).await,
                }
            }
            Reference::Tag(tag) => self.tagged(tag).await,
        }
    }

    async fn tagged(&self, tag: &str) -> Result<Given, Denied> {
        let (name, reference) = (self.name(), Reference::Tag(tag.to_owned()));
        let before = self.store().holdings().tag(&name, tag);
        let known = before.map(|(digest, asked)| (digest, now().saturating_sub(asked), self.known(digest)));
        if let Some((digest, age, Known::Yes)) = known
            && age < self.door.settings().tags_last.as_secs()
            && let Some(given) = self.kept_manifest(digest, None).await
        {
            return Ok(given);
        }
        let answered = self.ask(Method::HEAD, format!("manifests/{tag}")).await;
        match (answered, known) {
            (Ok(response), _) => {
                let header = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
                let Some(digest) = header.and_then(|text| text.parse().ok()) else {
                    return self.fetch_manifest(&reference).await;
                };
                // It may say any name: what it never gave for this repository it has to give.
                let is_foreign = self.known(digest) == Known::Foreign;
                let given = if is_foreign { None } else { self.kept_manifest(digest, None).await };
                let Some(given) = given else { return self.fetch_manifest(&reference).await };
                self.granted(digest, None).await;
                self.tag(tag, digest).await;
                Ok(given)
            }
            (Err(Failure::Away { reason }), Some((digest, age, Known::Yes | Known::Once))) => {
                let note = format!("as of {}, because {reason}", ago(age));
                let given = self.kept_manifest(digest, Some(note)).await;
                given.ok_or_else(|| self.denied(Failure::Away { reason }, MANIFEST_UNKNOWN))
            }
            // Registries that do not know HEAD.
            (Err(Failure::Denied { status: 405, .. }), _) => self.fetch_manifest(&reference).await,
            (Err(failure), _) => {
                if let Failure::Denied { status: 404, .. } = failure {
                    self.store().holdings().untagged(&name, tag);
                }
                Err(self.denied(failure, MANIFEST_UNKNOWN))
            }
        }
    }

    async fn tag(&self, tag: &str, digest: Digest) {
        self.store().holdings().tagged(&self.name(), tag, digest, now());
        self.store().save(&self.name()).await;
    }

    async fn granted(&self, digest: Digest, media_type: Option<&str>) {
        let (name, who) = (self.name(), &self.asker.who);
        let is_news = self.store().holdings().granted(&name, digest, media_type, who, now());
        if is_news {
            self.store().save(&name).await;
        }
    }

    async fn kept_manifest(&self, digest: Digest, note: Option<String>) -> Option<Given> {
        let media_type = self.store().holdings().media_type(&self.name(), digest)?;
        let bytes = Bytes::from(self.store().read(digest).await?);
        object(bytes, digest, media_type, note).await.ok()
    }

    /// Whether `digest` may be given from the store. What is not there is asked for anyway.
    async fn may_have(&self, digest: Digest, path: String) -> Result<May, Denied> {
        let code = if path.starts_with("blobs") { BLOB_UNKNOWN } else { MANIFEST_UNKNOWN };
        if !self.is_there(digest) {
            return Ok(May::Ask);
        }
        let known = self.known(digest);
        let asked = match known {
            Known::Yes => return Ok(May::Have(None)),
            Known::Foreign if code == MANIFEST_UNKNOWN => return Ok(May::Ask),
            Known::Foreign => match self.has_the_same(digest).await {
                Some(asked) => asked,
                None => return Ok(May::Ask),
            },
            Known::Once | Known::No => self.ask(Method::HEAD, path).await.map(drop),
        };
        match asked {
            Ok(_) => {
                self.granted(digest, None).await;
                Ok(May::Have(None))
            }
            Err(Failure::Away { reason }) if known == Known::Once => {
                Ok(May::Have(Some(format!("without asking, because {reason}"))))
            }
            Err(failure) => Err(self.denied(failure, code)),
        }
    }

    /// Whether the registry has these very bytes: of one that says so of every digest, other repositories' would be had by their names. `None`:
    /// ours cannot be read.
    async fn has_the_same(&self, digest: Digest) -> Option<Result<(), Failure>> {
        let ours = match self.store().find(digest) {
            Some(found) => held(found, digest, None).await.ok()?,
            None => arriving(Reading::of(self.load(digest).0, self.source(digest)).await.ok()?, digest, None),
        };
        let Given::Object { reader, bytes, .. } = ours else { return None };
        // Where, nobody knows before; not far behind the first byte, since what arrives is waited for.
        let last = bytes.saturating_sub(SAMPLE_BYTES as u64).min(SAMPLED_BYTES);
        let from = rand::rng().random_range(0..=last);
        let theirs = match self.source(digest).ask(from).await {
            Ok(response) => response,
            Err(failure) => return Some(Err(failure)),
        };
        let from = if theirs.status() == StatusCode::PARTIAL_CONTENT { from } else { 0 };
        let ours = reader.read_at(from, SAMPLE_BYTES).await.ok()?;
        let other = || Failure::Denied { status: 404, reason: format!("{} has something else", self.repository) };
        Some(if begins_with(theirs, &ours).await { Ok(()) } else { Err(other()) })
    }

    fn is_there(&self, digest: Digest) -> bool {
        self.store().holdings().hold(digest, now()).is_some() || self.loading(digest).is_some()
    }

    fn loading(&self, digest: Digest) -> Option<Arc<Load>> {
        let loading = self.door.0.loading.lock().unwrap_or_else(PoisonError::into_inner);
        loading.get(&digest).and_then(Weak::upgrade).filter(|load| load.is_running())
    }

    async fn fetch_manifest(&self, reference: &Reference) -> Result<Given, Denied> {
        let failed = |why: String| Denied::new(502, MANIFEST_UNKNOWN, format!("{}: {why}", self.repository));
        let response = self.ask(Method::GET, format!("manifests/{reference}")).await;
        let response = response.map_err(|failure| self.denied(failure, MANIFEST_UNKNOWN))?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let media_type = header("content-type").unwrap_or_else(|| MANIFEST_TYPE.to_owned());
        let told = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => header("docker-content-digest").and_then(|text| text.parse().ok()),
        };
        let bytes = Bytes::from(body(response, MANIFEST_BYTES_MAX).await.map_err(failed)?);
        let digest = Digest::of(&bytes);
        if let Some(told) = told.filter(|told| *told != digest) {
            return Err(failed(format!("its registry sent {digest} where {told} was asked for")));
        }
        let note = match self.store().keep_bytes(digest, bytes.clone()).await {
            Ok(()) => {
                self.granted(digest, Some(&media_type)).await;
                if let Reference::Tag(tag) = reference {
                    self.tag(tag, digest).await;
                }
                None
            }
            Err(why) => Some(format!("not kept: {why}")),
        };
        object(bytes, digest, media_type, note).await
    }

    async fn blob(&self, digest: Digest) -> Result<Given, Denied> {
        // Once more where somebody else's download ends for what only he is refused.
        const TRIES: usize = 3;
        let mut setback = None;
        for _ in 0..TRIES {
            let may = self.may_have(digest, format!("blobs/{digest}")).await?;
            if let (May::Have(note), Some(found)) = (&may, self.store().find(digest)) {
                return held(found, digest, note.clone()).await;
            }
            let (load, is_own) = self.load(digest);
            let note = match (may, is_own) {
                (May::Have(note), _) => note,
                (May::Ask, true) => None,
                // It was not there when he was asked whether he may have it.
                (May::Ask, false) => continue,
            };
            match Reading::of(load, self.source(digest)).await {
                Ok(reading) => {
                    self.granted(digest, None).await;
                    return Ok(arriving(reading, digest, note));
                }
                Err(why) if is_own => return Err(self.unloaded(why)),
                Err(why) => setback = Some(why),
            }
        }
        let nobody = || Setback::Upstream(Failure::Away { reason: "nobody loads it".to_owned() });
        Err(self.unloaded(setback.unwrap_or_else(nobody)))
    }

    fn source(&self, digest: Digest) -> Source {
        let (upstreams, repository) = (Arc::clone(&self.door.0.upstreams), self.repository.clone());
        Source { upstreams, asker: self.asker.clone(), repository, digest }
    }

    /// The download that runs, which he may join, or one of his own.
    fn load(&self, digest: Digest) -> (Arc<Load>, bool) {
        let mut loading = self.door.0.loading.lock().unwrap_or_else(PoisonError::into_inner);
        loading.retain(|_, load| load.strong_count() > 0);
        if let Some(load) = loading.get(&digest).and_then(Weak::upgrade).filter(|load| load.is_running()) {
            return (load, false);
        }
        let load = Arc::new(Load::start(self.source(digest), Arc::clone(self.store())));
        loading.insert(digest, Arc::downgrade(&load));
        (load, true)
    }

    async fn tags(&self, query: Option<&str>) -> Result<Given, Denied> {
        let path = match query {
            Some(query) => format!("tags/list?{query}"),
            None => "tags/list".to_owned(),
        };
        let response = self.ask(Method::GET, path).await.map_err(|failure| self.denied(failure, "NAME_UNKNOWN"))?;
        let link = response.headers().get("link").and_then(|value| value.to_str().ok());
        let next = link.and_then(|link| Some(link.split_once('?')?.1.split_once('>')?.0.to_owned()));
        let body = body(response, TAGS_BYTES_MAX).await;
        let body = body.map_err(|why| Denied::new(502, "NAME_UNKNOWN", format!("{}: {why}", self.repository)))?;
        Ok(Given::Tags { body: body.into(), next })
    }

    fn unloaded(&self, setback: Setback) -> Denied {
        match setback {
            Setback::Upstream(failure) => self.denied(failure, BLOB_UNKNOWN),
            Setback::Wrong(why) => Denied::new(502, "DIGEST_INVALID", format!("{}: {why}", self.repository)),
            Setback::Unkept(why) => Denied::new(503, "UNAVAILABLE", format!("{}: {why}", self.repository)),
        }
    }

    /// What the upstream's word means to whoever asked.
    fn denied(&self, failure: Failure, unknown: &'static str) -> Denied {
        match failure {
            Failure::Denied { status, reason } => {
                let (status, code) = match status {
                    404 => (404, unknown),
                    // A 401 would have a client look for a password of ours.
                    401 | 403 => (403, "DENIED"),
                    _ => (502, "UNAVAILABLE"),
                };
                if matches!(status, 403 | 404) {
                    tracing::info!(repository = %self.repository, reason, "the registry cache gives nothing");
                }
                if status == 403 {
                    self.store().holdings().denied(&self.name(), &self.asker.who);
                }
                Denied::new(status, code, format!("{}: {reason}", self.repository))
            }
            Failure::Away { reason } => Denied::new(503, "UNAVAILABLE", format!("{}: {reason}", self.repository)),
        }
    }
}

/// What blobs are, to everybody but their manifests.
const BLOB_TYPE: &str = "application/octet-stream";

/// Whether something may be given as it is kept.
enum May {
    /// Yes; with this to say.
    Have(Option<String>),
    /// It is not there.
    Ask,
}

async fn object(bytes: Bytes, digest: Digest, media_type: String, note: Option<String>) -> Result<Given, Denied> {
    let size = bytes.len() as u64;
    let reader = Content::Inline(bytes).open().await.map_err(|error| unreadable(&error))?;
    Ok(Given::Object { reader, bytes: size, digest, media_type, note })
}

/// A blob of the store, which stays there while it is read.
#[derive(Debug)]
struct KeptBlob {
    reader: Reader,
    bytes: u64,
    _held: Held,
}

impl Arriving for KeptBlob {
    fn read_at(&self, offset: u64, length: usize) -> BoxFuture<'_, Result<Bytes, ContentError>> {
        Box::pin(self.reader.read_at(offset, length))
    }

    fn size(&self) -> u64 {
        self.bytes
    }
}

async fn held(found: store::Found, digest: Digest, note: Option<String>) -> Result<Given, Denied> {
    let store::Found { path, bytes, held } = found;
    let reader = Content::File(path).open().await.map_err(|error| unreadable(&error))?;
    let reader = Reader::arriving(Arc::new(KeptBlob { reader, bytes, _held: held }));
    Ok(Given::Object { reader, bytes, digest, media_type: BLOB_TYPE.to_owned(), note })
}

fn arriving(reading: Reading, digest: Digest, note: Option<String>) -> Given {
    let bytes = reading.size();
    Given::Object { reader: Reader::arriving(Arc::new(reading)), bytes, digest, media_type: BLOB_TYPE.to_owned(), note }
}

/// Whether the answer begins so; the rest of it is not read.
async fn begins_with(mut response: reqwest::Response, expected: &[u8]) -> bool {
    let mut left = expected;
    while !left.is_empty() {
        let Ok(Ok(Some(chunk))) = timeout(SAMPLE_TIME, response.chunk()).await else { return false };
        let length = chunk.len().min(left.len());
        if chunk[..length] != left[..length] {
            return false;
        }
        left = &left[length..];
    }
    true
}

fn unreadable(error: &ContentError) -> Denied {
    tracing::error!(%error, "the registry cache cannot be read");
    Denied::new(500, "UNAVAILABLE", "the farm cannot read its registry cache; its log says why")
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} seconds ago"),
        120..7200 => format!("{} minutes ago", seconds / 60),
        _ => format!("{} hours ago", seconds / 3600),
    }
}

#[cfg(test)]
mod tests;
