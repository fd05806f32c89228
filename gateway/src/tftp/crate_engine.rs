//! The crate `async-tftp` in the place of our own engine, for who asks for it in the farm file, and to compare ours with in tests.
//!
//! ```text
//!  thread in the farm's network                             the runtime, in the host's
//!  ────────────────────────────                             ──────────────────────────
//!  TftpServer::serve ── read_req_open ──► Files: desk ─► Namespaces::open (counts) ── open_as ──►  Content ─► Reader
//!        │                                  └ Refusal ─► ERROR 1, 2; the crate sends its own words
//!        └ AsyncRead ──► Body ── 64 KiB at a time ───────────────────────────────── read_at ──►  Reader
//!                         └ dropped: Complete | Failed, by what was read and how long ago
//! ```
//! The crate binds a socket for each transfer where its future is polled: so it has a thread of its own, inside the farm's network. What
//! it cannot do that our engine does is in `docs/protocols/tftp.md`.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_tftp::packet::Error as CrateError;
use async_tftp::server::{Handler, TftpServerBuilder};
use bytes::{Buf, Bytes};
use futures_util::future::FutureExt;
use futures_util::io::{AsyncRead, Sink};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::desk::{Admission, Desk, Ticket};
use super::packet::{ErrorCode, tidy_name};
use super::{Config, caller, refused};
use crate::content::{Content, ContentError, Reader};
use crate::door::Door;
use crate::namespace::{Access, Namespaces, Opened, Outcome, Protocol};

/// The crate's wait never adapts. Three times the shortest of our own engine: a lock-step transfer that loses a block stands still for it.
const WAIT: Duration = Duration::from_millis(300);
/// 20 × 300 ms: so long a machine that was power-cycled and comes back on the same port is not heard by the crate, and as long a DUT may
/// be silent. Less than the 30 s of our own engine, for the crate shuts out whom it waits for.
const RETRIES: u32 = 19;
/// After so long without a read, a body that is dropped was given up: its last block was never acknowledged.
const SILENCE: Duration = WAIT.saturating_mul(RETRIES + 1);
/// A file of this host is open within a millisecond. The crate opens one at a time: what takes longer (a download) is opened while it is
/// read, without its size, so that no DUT waits longer than this for another's.
const OPEN_WAIT: Duration = Duration::from_millis(100);
/// Read from content at once, as our own engine does.
const READ_BYTES: usize = 64 * 1024;

/// Serves `namespaces` from `socket` until `stopped` hears of a word or of its sender's end.
pub(super) fn start(
    config: &Config,
    socket: UdpSocket,
    desk: Arc<Desk>,
    namespaces: Namespaces<Content>,
    stopped: oneshot::Receiver<()>,
) -> io::Result<AbortOnDropHandle<()>> {
    let files = Files { desk, namespaces, door: config.door(), runtime: Handle::current() };
    let (block_size, window_size) = (config.block_size_max, config.window_size_max);
    let builder = move |socket: &UdpSocket| {
        let builder = TftpServerBuilder::with_handler(files.clone()).std_socket(socket.try_clone()?);
        let builder =
            builder.map_err(io::Error::other)?.timeout(WAIT).max_send_retries(RETRIES).ignore_client_timeout();
        Ok::<_, io::Error>(builder.block_size_limit(block_size).window_size_limit(window_size))
    };
    // Here and not in the thread: the first socket starts the process's one `async-io` thread, in the network of who made it.
    let first = builder(&socket)?;
    let serve = async move {
        let mut next = Ok(first);
        loop {
            let error = match next {
                Ok(builder) => match builder.build().await {
                    Ok(server) => server.serve().await.map_err(io::Error::other).err(),
                    Err(error) => Some(io::Error::other(error)),
                },
                Err(error) => Some(error),
            };
            // The crate ends when its listener cannot receive: an interface that is down fails at once, again and again.
            tracing::warn!(?error, "the TFTP listener could not receive");
            tokio::time::sleep(Duration::from_millis(100)).await;
            next = builder(&socket);
        }
    };
    let (net, runtime) = (config.net.clone(), Handle::current());
    let (ended, has_ended) = oneshot::channel::<()>();
    std::thread::Builder::new().name("async-tftp".to_owned()).spawn(move || {
        let _ended = ended;
        let serve = async {
            tokio::select! {
                () = serve => {}
                _ = stopped => {}
            }
        };
        if let Err(error) = net.run(|| {
            runtime.block_on(serve);
            Ok(())
        }) {
            tracing::error!(%error, "the TFTP server has no network");
        }
    })?;
    Ok(AbortOnDropHandle::new(tokio::spawn(has_ended.map(|_| ()))))
}

/// What the crate asks for files.
#[derive(Clone)]
struct Files {
    desk: Arc<Desk>,
    namespaces: Namespaces<Content>,
    door: Door,
    runtime: Handle,
}

impl Handler for Files {
    type Reader = Body;
    type Writer = Sink;

    async fn read_req_open(&mut self, peer: &SocketAddr, path: &Path) -> Result<(Body, Option<u64>), CrateError> {
        let name = tidy_name(path.to_str().ok_or(CrateError::FileNotFound)?);
        let ticket = match self.desk.admit(*peer, name.as_bytes(), Instant::now()) {
            Admission::Granted(ticket) => ticket,
            Admission::TooMany(sentence) => return Err(CrateError::Msg(sentence)),
            Admission::Repeated => return Err(CrateError::Msg("asked for already".to_owned())),
        };
        let (caller, name) = caller(*peer, &name);
        let admitted = self.namespaces.admits(caller, Protocol::Tftp, name, self.door);
        let opened = admitted.and_then(|()| self.namespaces.open(caller, Protocol::Tftp, name, Instant::now()));
        let Opened { content, access } = opened.map_err(|refusal| to_crate(refused(refusal)))?;
        tracing::debug!(%peer, name, "TFTP request, for the crate's engine");
        let name = name.to_owned();
        let mut opening = AbortOnDropHandle::new(self.runtime.spawn(async move { content.open_as(&name).await }));
        let source = match tokio::time::timeout(OPEN_WAIT, &mut opening).await {
            Ok(opened) => match flat(opened) {
                Ok(reader) => Source::Open(reader),
                Err(text) => {
                    access.end(Outcome::Failed(text.clone()));
                    return Err(CrateError::Msg(text));
                }
            },
            Err(_elapsed) => Source::Opening(opening),
        };
        let size = match &source {
            // As in `Terms::agree`: curl 7.88 takes 0 for an illegal answer.
            Source::Open(reader) => reader.size().filter(|&size| size > 0),
            Source::Opening(_) => None,
        };
        Ok((Body::new(self.runtime.clone(), source, access, ticket), size))
    }

    async fn write_req_open(&mut self, _: &SocketAddr, _: &Path, _: Option<u64>) -> Result<Sink, CrateError> {
        Err(CrateError::PermissionDenied)
    }
}

/// The crate sends its own words with a code; only code 0 may have ours.
fn to_crate((code, text): (ErrorCode, String)) -> CrateError {
    match code {
        ErrorCode::NotDefined => CrateError::Msg(text),
        ErrorCode::FileNotFound => CrateError::FileNotFound,
        ErrorCode::AccessViolation => CrateError::PermissionDenied,
        ErrorCode::IllegalOperation => CrateError::IllegalOperation,
        ErrorCode::UnknownTransfer => CrateError::UnknownTransferId,
    }
}

/// What a task on the runtime came back with.
fn flat<T>(joined: Result<Result<T, ContentError>, tokio::task::JoinError>) -> Result<T, String> {
    match joined {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(error) => Err(format!("the server stopped: {error}")),
    }
}

type Task<T> = AbortOnDropHandle<Result<T, ContentError>>;

/// The bytes of one access.
struct Body {
    runtime: Handle,
    source: Source,
    reading: Option<Task<Bytes>>,
    ready: Bytes,
    position: u64,
    access: Option<Access>,
    _ticket: Ticket,
    progress: Progress,
    last_read: Instant,
}

enum Source {
    Opening(Task<Reader>),
    Open(Reader),
}

/// How far the crate has read.
enum Progress {
    Reading,
    /// It was told that nothing follows.
    AtEnd,
    Failed(String),
}

impl Body {
    fn new(runtime: Handle, source: Source, access: Access, ticket: Ticket) -> Body {
        Body {
            runtime,
            source,
            reading: None,
            ready: Bytes::new(),
            position: 0,
            access: Some(access),
            _ticket: ticket,
            progress: Progress::Reading,
            last_read: Instant::now(),
        }
    }

    /// Has bytes in `ready`, unless there are no more.
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), String>> {
        if self.access.as_ref().is_some_and(|access| !access.liveness().is_live()) {
            return Poll::Ready(Err("the job that published this has ended".to_owned()));
        }
        while self.ready.is_empty() {
            let reader = match &mut self.source {
                Source::Open(reader) => reader,
                Source::Opening(opening) => {
                    self.source = Source::Open(flat(ready!(Pin::new(opening).poll(context)))?);
                    continue;
                }
            };
            let reading = self.reading.get_or_insert_with(|| {
                let (reader, position) = (reader.clone(), self.position);
                let read = async move { reader.read_at(position, READ_BYTES).await };
                AbortOnDropHandle::new(self.runtime.spawn(read))
            });
            let bytes = flat(ready!(Pin::new(reading).poll(context)));
            self.reading = None;
            self.ready = bytes?;
            self.position += self.ready.len() as u64;
            if self.ready.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
        Poll::Ready(Ok(()))
    }

    fn outcome(&self) -> Outcome {
        let is_silent = self.last_read.elapsed() >= SILENCE;
        match &self.progress {
            Progress::Failed(text) => Outcome::Failed(text.clone()),
            _ if is_silent => Outcome::Failed(format!("no acknowledgement for {SILENCE:?}")),
            Progress::AtEnd => Outcome::Complete,
            Progress::Reading => Outcome::Failed("the server stopped, or could not send".to_owned()),
        }
    }
}

impl AsyncRead for Body {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        let body = &mut *self;
        let filled = ready!(body.poll_ready(context));
        body.last_read = Instant::now();
        if let Err(text) = filled {
            body.progress = Progress::Failed(text);
            // The crate makes ERROR 2 of it, and has no place for the sentence: the job's log has.
            return Poll::Ready(Err(io::ErrorKind::PermissionDenied.into()));
        }
        let length = body.ready.len().min(out.len());
        body.ready.copy_to_slice(&mut out[..length]);
        if length == 0 {
            body.progress = Progress::AtEnd;
        } else if let Some(access) = &mut body.access {
            access.took(length as u64, std::time::Instant::now());
        }
        Poll::Ready(Ok(length))
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let outcome = self.outcome();
        if let Some(access) = self.access.take() {
            access.end(outcome);
        }
    }
}
