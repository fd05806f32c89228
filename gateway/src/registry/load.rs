//! A blob on its way from its upstream: loaded once, verified, and read by everybody while it still arrives.
//!
//! ```text
//!  Asking ── 200 ──► Arriving ── all there, sha256 as asked ──► Complete        (the store has it now)
//!    │                 │  ▲                  │ another sha256
//!    │                 │  └─ broke off: again, from there (TRIES)
//!    │                 ▼                     ▼
//!    └──────────────► Failed(Setback) ◄──────┘   Denied, Away, Wrong: readers end
//!                                                Unkept: no room, or the disk is full: each reader goes on by himself (Straight)
//! ```
//! The last byte is held back until all were verified: nobody ever gets the whole of something wrong.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use reqwest::{Method, Response};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::ask::{Digest, Repository};
use super::index::Held;
use super::store::{Reserved, Store, blocking};
use super::upstream::{Asker, Failure, Question, Upstreams, causes};
use crate::content::{Arriving, ContentError};

/// 60 s without a byte, as for other downloads.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// 5 tries in a row without a new byte, a second apart and more: a registry that restarts is back by then.
const TRIES: u32 = 5;
/// 32 chunks of 16 KiB and less are written in one step.
const CHUNKS_AT_ONCE: usize = 32;

/// Why a blob did not come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Setback {
    /// By its upstream.
    Upstream(Failure),
    /// It is not what it should be.
    Wrong(String),
    /// It cannot be kept.
    Unkept(String),
}

#[derive(Clone, Debug)]
enum Phase {
    Asking,
    Arriving,
    Complete,
    Failed(Setback),
}

#[derive(Clone, Debug)]
struct Status {
    phase: Phase,
    bytes: u64,
    total: Option<u64>,
    file: Option<Arc<File>>,
    /// Keeps what is complete.
    _held: Option<Held>,
}

/// Where a blob comes from.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) upstreams: Arc<Upstreams>,
    pub(super) asker: Asker,
    pub(super) repository: Repository,
    pub(super) digest: Digest,
}

/// A blob that is being loaded, for as long as somebody waits for it.
pub(super) struct Load {
    status: watch::Receiver<Status>,
    _task: AbortOnDropHandle<()>,
}

impl Load {
    /// Begins.
    pub(super) fn start(source: Source, store: Arc<Store>) -> Load {
        let status = Status { phase: Phase::Asking, bytes: 0, total: None, file: None, _held: None };
        let (sender, status) = watch::channel(status);
        let loader = Loader { source, store, status: sender };
        Load { status, _task: AbortOnDropHandle::new(tokio::spawn(loader.run())) }
    }

    /// Waits for its size.
    pub(super) async fn size(&self) -> Result<u64, Setback> {
        let known = self.wait(|status| status.total.is_some() || matches!(status.phase, Phase::Complete)).await?;
        Ok(known.total.unwrap_or(known.bytes))
    }

    /// Whether it still comes.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.status.borrow().phase, Phase::Asking | Phase::Arriving) && self.status.has_changed().is_ok()
    }

    async fn wait(&self, enough: impl Fn(&Status) -> bool) -> Result<Status, Setback> {
        let mut status = self.status.clone();
        let waited = status.wait_for(|status| matches!(status.phase, Phase::Failed(_)) || enough(status)).await;
        let ended = || Setback::Upstream(Failure::Away { reason: "the farm stops".to_owned() });
        let status = waited.map_err(|_| ended())?.clone();
        match status.phase {
            Phase::Failed(setback) => Err(setback),
            Phase::Asking | Phase::Arriving | Phase::Complete => Ok(status),
        }
    }

    /// `length` bytes from `offset`, which the blob has, once they are there.
    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes, Setback> {
        // All but the last byte, until they are known to be right.
        let readable = |status: &Status| match status.phase {
            Phase::Complete => status.bytes,
            Phase::Asking | Phase::Arriving | Phase::Failed(_) => status.bytes.saturating_sub(1),
        };
        let end = offset.saturating_add(length as u64);
        let status = self.wait(|status| readable(status) >= end || matches!(status.phase, Phase::Complete)).await?;
        let length = usize::try_from(readable(&status).saturating_sub(offset)).map_or(length, |left| left.min(length));
        let Some(file) = status.file else { return Ok(Bytes::new()) };
        let read = blocking(move || {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, offset).map(|()| Bytes::from(bytes))
        });
        read.await.map_err(|error| Setback::Unkept(error.to_string()))
    }
}

/// The task of a [`Load`].
struct Loader {
    source: Source,
    store: Arc<Store>,
    status: watch::Sender<Status>,
}

/// What has arrived.
struct Growing {
    part: NamedTempFile,
    file: Arc<File>,
    hash: Sha256,
    bytes: u64,
    reserved: Vec<Reserved>,
}

impl Loader {
    async fn run(self) {
        if let Err(setback) = self.load().await {
            let Source { repository, digest, .. } = &self.source;
            tracing::info!(%repository, %digest, ?setback, "a blob was not loaded");
            self.status.send_modify(|status| status.phase = Phase::Failed(setback));
        }
    }

    async fn load(&self) -> Result<(), Setback> {
        let mut growing: Option<Growing> = None;
        let (mut failures, mut furthest) = (0, 0);
        loop {
            let from = growing.as_ref().map_or(0, |growing| growing.bytes);
            let broken = match self.source.ask(from).await {
                Ok(response) => {
                    let mut now = match growing.take() {
                        Some(growing) => growing,
                        None => self.begin(response.content_length()).await?,
                    };
                    let broken = self.append_all(&mut now, response).await?;
                    growing = Some(now);
                    broken
                }
                Err(Failure::Away { reason }) if from > 0 => Some(reason),
                Err(failure) => return Err(Setback::Upstream(failure)),
            };
            let (Some(reason), Some(so_far)) = (broken, &growing) else {
                return match growing {
                    Some(growing) => self.finish(growing).await,
                    None => Ok(()),
                };
            };
            failures = if so_far.bytes > furthest { 1 } else { failures + 1 };
            furthest = so_far.bytes;
            if failures >= TRIES {
                return Err(Setback::Upstream(Failure::Away { reason }));
            }
            tokio::time::sleep(Duration::from_secs(1) * failures).await;
        }
    }

    async fn begin(&self, total: Option<u64>) -> Result<Growing, Setback> {
        let reserved = self.store.make_room(total.unwrap_or(0)).await.map_err(Setback::Unkept);
        let store = Arc::clone(&self.store);
        let made = blocking(move || store.part().and_then(|part| Ok((part.reopen()?, part)))).await;
        let (file, part) = made.map_err(|error| Setback::Unkept(error.to_string()))?;
        let file = Arc::new(file);
        self.status.send_modify(|status| {
            (status.phase, status.total, status.file) = (Phase::Arriving, total, Some(Arc::clone(&file)));
        });
        Ok(Growing { part, file, hash: Sha256::new(), bytes: 0, reserved: vec![reserved?] })
    }

    /// Appends until the stream ends (`None`) or breaks (why).
    async fn append_all(&self, growing: &mut Growing, response: Response) -> Result<Option<String>, Setback> {
        // Who does not know ranges sends all of it again; it is the same, by its name.
        let mut skipped = if response.status().as_u16() == 206 { 0 } else { growing.bytes };
        let has_length = self.status.borrow().total.is_some();
        let mut stream = response.bytes_stream().ready_chunks(CHUNKS_AT_ONCE);
        loop {
            let Ok(arrived) = timeout(IDLE_TIME, stream.next()).await else {
                return Ok(Some(format!("no byte for {IDLE_TIME:?}")));
            };
            let Some(arrived) = arrived else {
                let total = self.status.borrow().total;
                let is_short = total.is_some_and(|total| growing.bytes < total);
                return Ok(is_short.then(|| "the connection ended too early".to_owned()));
            };
            for chunk in arrived {
                match chunk {
                    Ok(mut chunk) => {
                        let skip = usize::try_from(skipped).map_or(chunk.len(), |skipped| skipped.min(chunk.len()));
                        skipped -= skip as u64;
                        let chunk = chunk.split_off(skip);
                        if !has_length {
                            let reserved = self.store.make_room(chunk.len() as u64).await;
                            growing.reserved.push(reserved.map_err(Setback::Unkept)?);
                        }
                        self.append(growing, chunk).await?;
                    }
                    Err(error) => return Ok(Some(causes(error))),
                }
            }
        }
    }

    async fn append(&self, growing: &mut Growing, chunk: Bytes) -> Result<(), Setback> {
        let end = growing.bytes + chunk.len() as u64;
        if self.status.borrow().total.is_some_and(|total| end > total) {
            return Err(Setback::Wrong("it is longer than its registry said".to_owned()));
        }
        growing.hash.update(&chunk);
        let (store, file, offset) = (Arc::clone(&self.store), Arc::clone(&growing.file), growing.bytes);
        let written = blocking(move || store.write(&file, &chunk, offset)).await;
        written.map_err(|error| Setback::Unkept(format!("the registry cache cannot be written: {error}")))?;
        growing.bytes = end;
        self.status.send_modify(|status| status.bytes = end);
        Ok(())
    }

    async fn finish(&self, growing: Growing) -> Result<(), Setback> {
        let Growing { part, hash, bytes, reserved, .. } = growing;
        let digest = self.source.digest;
        let found = Digest::from_bytes(hash.finalize().into());
        if found != digest {
            let upstream = &self.source.repository.upstream;
            return Err(Setback::Wrong(format!("{upstream} sent {found} where {digest} was asked for")));
        }
        let store = Arc::clone(&self.store);
        let kept = blocking(move || {
            let kept = store.keep(part, digest, bytes);
            drop(reserved);
            kept
        });
        let held = kept.await.map_err(|error| {
            // It is right, and the readers have it open: only others do not find it.
            tracing::warn!(%digest, %error, "the registry cache cannot keep a blob");
        });
        self.status.send_modify(|status| {
            (status.phase, status.total, status._held) = (Phase::Complete, Some(bytes), held.ok());
        });
        Ok(())
    }
}

impl Source {
    /// Its bytes from this one on, where the registry knows ranges.
    pub(super) async fn ask(&self, from: u64) -> Result<Response, Failure> {
        let path = format!("blobs/{}", self.digest);
        let question = Question { method: Method::GET, repository: &self.repository, path, from, accept: "*/*" };
        self.upstreams.ask(&self.asker, &question).await
    }
}

/// One reader of a blob that was not kept when it was asked for.
pub(super) struct Reading {
    load: Arc<Load>,
    source: Source,
    size: u64,
    straight: Mutex<Option<Straight>>,
}

impl Reading {
    /// Of what `load` brings; what cannot be kept comes straight from `source`.
    pub(super) async fn of(load: Arc<Load>, source: Source) -> Result<Reading, Setback> {
        match load.size().await {
            Ok(size) => Ok(Reading { load, source, size, straight: Mutex::default() }),
            Err(Setback::Unkept(why)) => {
                tracing::warn!(repository = %source.repository, why, "a blob is passed through without being kept");
                let straight = Straight::begin(&source).await?;
                let size = straight.size.ok_or_else(|| {
                    Setback::Unkept(format!("{why}, and {} does not say its length", source.repository.upstream))
                })?;
                Ok(Reading { load, source, size, straight: Mutex::new(Some(straight)) })
            }
            Err(setback) => Err(setback),
        }
    }

    /// Its size.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, offset: u64, length: usize) -> Result<Bytes, Setback> {
        let mut straight = self.straight.lock().await;
        if straight.is_none() {
            match self.load.read_at(offset, length).await {
                Err(Setback::Unkept(why)) => {
                    tracing::warn!(repository = %self.source.repository, why, "a blob goes on without being kept");
                }
                read => return read,
            }
        }
        let mut stream = match straight.take() {
            Some(stream) if stream.position() <= offset => stream,
            Some(_) | None => Straight::begin(&self.source).await?,
        };
        let bytes = stream.read_at(offset, length, self.size, self.source.digest).await?;
        *straight = Some(stream);
        Ok(bytes)
    }
}

impl Arriving for Reading {
    fn read_at(&self, offset: u64, length: usize) -> BoxFuture<'_, Result<Bytes, ContentError>> {
        let wanted = self.size.saturating_sub(offset);
        let length = usize::try_from(wanted).map_or(length, |wanted| wanted.min(length));
        Box::pin(async move {
            if length == 0 {
                return Ok(Bytes::new());
            }
            let failed = |setback: Setback| ContentError::Image {
                name: format!("{}@{}", self.source.repository, self.source.digest),
                reason: setback.to_string(),
            };
            self.read(offset, length).await.map_err(failed)
        })
    }

    fn size(&self) -> u64 {
        self.size
    }
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.source.repository, self.source.digest)
    }
}

impl fmt::Display for Setback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Setback::Upstream(Failure::Denied { reason, .. } | Failure::Away { reason })
            | Setback::Wrong(reason)
            | Setback::Unkept(reason) => f.write_str(reason),
        }
    }
}

/// A blob straight from its upstream, for one reader who goes forward: all of it, so that it can be verified.
struct Straight {
    response: Response,
    size: Option<u64>,
    hash: Sha256,
    /// What arrived and was not taken.
    waiting: BytesMut,
    arrived: u64,
}

impl Straight {
    async fn begin(source: &Source) -> Result<Straight, Setback> {
        let response = source.ask(0).await.map_err(Setback::Upstream)?;
        let size = response.content_length();
        Ok(Straight { response, size, hash: Sha256::new(), waiting: BytesMut::new(), arrived: 0 })
    }

    fn position(&self) -> u64 {
        self.arrived - self.waiting.len() as u64
    }

    /// `length` bytes from `offset`, which the blob has: a reader's piece of it is held here until it is whole.
    async fn read_at(&mut self, offset: u64, length: usize, size: u64, digest: Digest) -> Result<Bytes, Setback> {
        loop {
            let before = usize::try_from(offset - self.position())
                .map_or(self.waiting.len(), |skipped| skipped.min(self.waiting.len()));
            let _ = self.waiting.split_to(before);
            // The last byte waits for the end.
            let there = if self.arrived == size { self.waiting.len() } else { self.waiting.len().saturating_sub(1) };
            if there >= length && self.position() == offset {
                return Ok(self.waiting.split_to(length).freeze());
            }
            let away = |reason: String| Setback::Upstream(Failure::Away { reason });
            let chunk = timeout(IDLE_TIME, self.response.chunk()).await;
            let chunk = chunk.map_err(|_| away(format!("no byte for {IDLE_TIME:?}")))?;
            let chunk = chunk.map_err(|error| away(causes(error)))?;
            let Some(chunk) = chunk else { return Err(away("the connection ended too early".to_owned())) };
            self.hash.update(&chunk);
            self.waiting.extend_from_slice(&chunk);
            self.arrived += chunk.len() as u64;
            let is_right = || Digest::from_bytes(self.hash.clone().finalize().into()) == digest;
            if self.arrived > size || self.arrived == size && !is_right() {
                return Err(Setback::Wrong(format!("its registry sent something else than {digest}")));
            }
        }
    }
}
