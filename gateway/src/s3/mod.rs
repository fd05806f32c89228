//! S3 towards DUTs, and towards the operator's side: a job's buckets, to the keys that were given for them.
//!
//! ```text
//!  TcpListener (DUTs) ── accept (at most CONNECTIONS_MAX, CONNECTIONS_PER_PEER_MAX) ─ first byte: TLS or clear ─┐
//!  the operator's API ── a request that is signed as S3 has it ─────────────────────────────────────────────────┴─► Door
//!        ─► s3s: signature ─► desk.rs: whose key, from where ─► answer.rs: the operation ─► bucket.rs: bytes, quota
//!                                                     └ listing.rs: pages      fill.rs: an archive to begin with, pack.rs: one of all at the end
//! ```

mod answer;
pub mod bucket;
pub mod desk;
pub mod fill;
mod listing;
pub mod pack;
pub mod read;
mod sums;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{S3Error, S3Result, s3_error};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

use self::answer::{Asking, Operations};
use self::desk::{Caller, Desk, End};
use crate::net::Net;
use crate::tls::Tls;
use crate::tls::wire::Wire;

/// Where MinIO listens, and with it what CI-tron's jobs expect.
pub const PORT: u16 = 9000;

/// 512: S3 clients open some ten connections each (awscli: 10, rclone: 4), and a farm's DUTs finish their jobs at different times.
const CONNECTIONS_MAX: usize = 512;
/// 64 per peer: the most eager clients' own limit is below it.
const CONNECTIONS_PER_PEER_MAX: usize = 64;
/// A connection without a request for this long is closed, as the HTTP server does.
const IDLE: Duration = Duration::from_secs(75);
/// The longest body that is read whole: a list of 1000 names to delete, of 1024 bytes each, and XML around it; 10,000 parts to complete.
const XML_BYTES_MAX: usize = 4 << 20;

/// The body of an answer.
pub type Body = s3s::Body;

/// What answers S3 requests, wherever they come from. Cheap to clone.
#[derive(Clone)]
pub struct Door {
    service: S3Service,
    desk: Desk,
    refusals: Arc<OnceLock<Refusals>>,
}

/// Hears who was refused what, method and path, and why.
pub type Refusals = Arc<dyn Fn(Caller, &str, &str) + Send + Sync>;

impl Door {
    /// For the grants of `desk`.
    pub fn new(desk: Desk) -> Door {
        let mut builder = S3ServiceBuilder::new(Operations);
        builder.set_auth(Keys(desk.clone()));
        builder.set_access(Places(desk.clone()));
        let mut config = S3Config::default();
        config.xml_max_body_size = XML_BYTES_MAX;
        // Uploads by HTML forms: nobody at a DUT fills in one.
        config.post_object_max_file_size = 0;
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
        Door { service: builder.build(), desk, refusals: Arc::default() }
    }

    /// Tells of refusals on both sides, from the first time on that it is said.
    pub fn tells(&self, refusals: Refusals) {
        // A second one would be a mistake of ours, and the first one stays right.
        let _ = self.refusals.set(refusals);
    }

    /// The keys and what they are good for.
    pub fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Whether a request is one for S3: signed by its rules (all clients sign, and nothing is to be had unsigned).
    pub fn is_meant<B>(request: &Request<B>) -> bool {
        let header = request.headers().get(hyper::header::AUTHORIZATION);
        let is_signed = header.is_some_and(|value| value.as_bytes().starts_with(b"AWS"));
        let query = request.uri().query().unwrap_or_default();
        is_signed
            || query.split('&').any(|pair| pair.starts_with("X-Amz-Signature=") || pair.starts_with("AWSAccessKeyId="))
    }

    /// Answers a request of `caller`.
    pub async fn answer<B>(&self, request: Request<B>, caller: Caller) -> Response<Body>
    where
        B: hyper::body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        let is_read = Arc::new(AtomicBool::new(request.body().is_end_stream()));
        let watched = |body| Watched { body: Box::pin(body), is_read: Arc::clone(&is_read) };
        let mut request = request.map(|body| Body::http_body_unsync(watched(body).map_err(Into::into)));
        request.extensions_mut().insert(caller);
        // As long as a bucket's and an object's name in hexadecimal; more is nobody's path.
        let path: String = request.uri().path().chars().take(3200).collect();
        let what = format!("{} {path}", request.method());
        let mut response = self.service.call(request).await.unwrap_or_else(|error| {
            tracing::error!(?error, "an S3 request could not be answered");
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        });
        if response.status() == StatusCode::FORBIDDEN {
            let why;
            (response, why) = with_its_reason(response).await;
            tracing::info!(%caller, what, why, "an S3 request was refused");
            if let Some(refusals) = self.refusals.get() {
                refusals(caller, &what, &why);
            }
        }
        if response.status().as_u16() >= 400 && !is_read.load(Ordering::Relaxed) {
            // RFC 9110, 10.1.1: who answers instead of reading says that the connection ends. botocore 1.46 takes it for the next
            // request otherwise, and the old status for that one's.
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// A refusal and its reason: `SignatureDoesNotMatch`, `AccessDenied: …`. Some are s3s's own, and only the answer's XML has them all.
async fn with_its_reason(refusal: Response<Body>) -> (Response<Body>, String) {
    let (head, body) = refusal.into_parts();
    // It is small, and in memory already.
    let bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let why = reason_in(&bytes).unwrap_or_else(|| "no reason is given".to_owned());
    (Response::from_parts(head, Body::from(bytes)), why)
}

fn reason_in(error: &[u8]) -> Option<String> {
    let document = roxmltree::Document::parse(std::str::from_utf8(error).ok()?).ok()?;
    let said = |name: &str| document.descendants().find(|node| node.has_tag_name(name))?.text();
    let code = said("Code")?;
    Some(said("Message").map_or_else(|| code.to_owned(), |message| format!("{code}: {message}")))
}

/// A request's body, and whether all of it was read.
struct Watched<B> {
    body: Pin<Box<B>>,
    is_read: Arc<AtomicBool>,
}

impl<B: hyper::body::Body> hyper::body::Body for Watched<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = self.body.as_mut().poll_frame(context);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.is_read.store(true, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whose signature it would have to be.
struct Keys(Desk);

#[async_trait]
impl S3Auth for Keys {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        let standing = self.0.standing(access_key);
        standing.map(|standing| SecretKey::from(standing.secret.clone())).ok_or_else(no_such_key)
    }
}

fn no_such_key() -> S3Error {
    s3_error!(InvalidAccessKeyId, "no job has this key now; keys end with their job")
}

/// From where a key may be used.
struct Places(Desk);

#[async_trait]
impl S3Access for Places {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let unsigned = || s3_error!(AccessDenied, "nothing is to be had unsigned; sign with the job's key");
        let key = context.credentials().ok_or_else(unsigned)?.access_key.clone();
        let caller = context.extensions_mut().get::<Caller>().copied().ok_or_else(unsigned)?;
        let grant = self.0.standing(&key).ok_or_else(no_such_key)?;
        let asking = Asking { caller, grant };
        if !asking.grant.is_for(caller) {
            let why = format!("the key is not good from {caller}");
            let path = context.uri().path().to_owned();
            asking.tell("request", &path, 0, Instant::now(), End::Refused(why.clone()));
            return Err(s3_error!(AccessDenied, "{why}"));
        }
        context.extensions_mut().insert(asking);
        Ok(())
    }
}

/// How S3 is served to DUTs.
#[derive(Clone, Debug)]
pub struct Config {
    /// The network to listen in.
    pub net: Net,
    /// The only link that connections may come from; `None` for all.
    pub interface: Option<String>,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// With what TLS is spoken to who begins with it.
    pub tls: Tls,
}

/// A running S3 server; dropping it closes all connections.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
    abort: AbortHandle,
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections, and waits until the running answers are sent; for 5 s, because who stops a server is waiting too.
    pub async fn drain(mut self) {
        const LONGEST: Duration = Duration::from_secs(5);
        self.stop.send_replace(true);
        if let Some(task) = self.task.take() {
            let _ = tokio::time::timeout(LONGEST, task).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

/// Listens, and answers by `door` until the [`Server`] is dropped or drained.
pub async fn start(config: Config, door: Door) -> io::Result<Server> {
    let listener = config.net.tcp_listener(config.listen)?;
    if let Some(interface) = &config.interface {
        SockRef::from(&listener).bind_device(Some(interface.as_bytes()))?;
    }
    // A minute in all, as the HTTP server: a DUT whose power was cut leaves no connection behind.
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(30)).with_interval(Duration::from_secs(10)).with_retries(3);
    SockRef::from(&listener).set_tcp_keepalive(&keepalive)?;
    let address = listener.local_addr()?;
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(accept_all(listener, door, config.tls, stopped));
    let abort = task.abort_handle();
    tracing::info!(%address, "S3 for DUTs");
    Ok(Server { address, stop, task: Some(task), abort })
}

type Peers = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// A place among the connections of one peer.
struct Seat(Peers, IpAddr);

impl Seat {
    fn take(peers: &Peers, peer: IpAddr) -> Option<Seat> {
        let mut all = peers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(peer).or_default();
        if *count >= CONNECTIONS_PER_PEER_MAX {
            return None;
        }
        *count += 1;
        Some(Seat(Arc::clone(peers), peer))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.1);
            }
        }
    }
}

async fn accept_all(listener: TcpListener, door: Door, tls: Tls, mut stopped: watch::Receiver<bool>) {
    let (mut connections, peers) = (JoinSet::new(), Peers::default());
    let handed_on = stopped.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let peer = peer.ip().to_canonical();
                    match Seat::take(&peers, peer) {
                        Some(seat) if connections.len() < CONNECTIONS_MAX => {
                            connections.spawn(converse(stream, seat, door.clone(), tls.clone(), handed_on.clone()));
                        }
                        _ => tracing::warn!(%peer, "too many S3 connections; closed this one"),
                    }
                }
                Err(error) => {
                    // 50 ms: out of descriptors, most likely; others close some meanwhile.
                    tracing::warn!(%error, "cannot accept an S3 connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = stop_wanted(&mut stopped) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Returns when the server is to stop, also when it is gone.
async fn stop_wanted(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// One connection, request after request.
async fn converse(stream: TcpStream, seat: Seat, door: Door, tls: Tls, mut stopped: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    let wire = tokio::select! {
        wire = Wire::of(stream, seat.1, &tls, IDLE) => wire,
        () = stop_wanted(&mut stopped) => None,
    };
    let wire = match wire {
        Some(Ok(wire)) => wire,
        Some(Err(failure)) => return tracing::info!(peer = %seat.1, %failure, "no TLS for an S3 client"),
        None => return,
    };
    let caller = Caller::Dut(seat.1);
    let service = service_fn(move |request| {
        let door = door.clone();
        async move { Ok::<_, Infallible>(door.answer(request, caller).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .serve_connection(TokioIo::new(wire), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop_wanted(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %seat.1, %error, "S3 connection ended");
    }
}
