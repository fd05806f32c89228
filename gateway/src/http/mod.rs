//! HTTP towards DUTs: hyper's HTTP/1 server over the namespaces.
//!
//! ```text
//!  TcpListener ── accept (at most CONNECTIONS_MAX, CONNECTIONS_PER_PEER_MAX) ──► clear, or TLS ──► connection.rs
//!    request ──► answer.rs: target ──► Namespaces: live? ──► ask.rs: form.rs ──► Answer, for as long as the client waits
//!            ──► proxy.rs, when it is for elsewhere        ──► images.rs, at the port of the registry cache
//!            ──► answer.rs: way ──► Namespaces: look (HEAD) | open | resume ──► Content ──► Reader
//!                                             └─ Refusal ──► 404, 410               └─ error ──► 500, 502, 504
//!            ──► answer.rs: status, range ──► transfer.rs: the bytes, accounted to the access
//! ```
//! Connections stay open after an answer (EDK2's HTTP boot fails otherwise, edk2 #9920), and each answer has its `Content-Length`.

pub mod answer;
mod ask;
mod connection;
pub mod form;
mod images;
mod proxy;
mod transfer;

use core::net::{IpAddr, SocketAddr};
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_NONE_MATCH, IF_RANGE, RANGE,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioTimer;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

use self::answer::{Conditions, Method, Target, Way};
use self::connection::{Patient, Running};
use self::proxy::Asker;
use self::transfer::{AnswerBody, Transfer};
use crate::content::{Content, ContentError, Reader, content_type};
use crate::door::Door;
use crate::namespace::{Access, Caller, Live, Namespaces, Opened, Outcome, Protocol, Refusal};
use crate::net::Net;
use crate::outside::Outside;
use crate::registry;
use crate::tls::Tls;
use crate::tls::wire::Wire;

/// How HTTP is served.
#[derive(Clone, Debug)]
pub struct Config {
    /// The network to listen in.
    pub net: Net,
    /// The only link that connections may come from; `None` for all.
    pub interface: Option<String>,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// A peer that takes no byte for this long loses its connection.
    pub write_timeout: Duration,
    /// A connection without a request for this long is closed.
    pub idle_timeout: Duration,
    /// What is served.
    pub serves: Serves,
    /// The farm's authority, whose certificate is told at the server's own port, and spoken with at others.
    pub tls: Option<Tls>,
    /// Where DUTs are led to, as far as their namespaces let them; nowhere when absent.
    pub outside: Option<Arc<dyn Outside>>,
}

/// What a server has of the namespaces.
#[derive(Clone, Debug)]
pub enum Serves {
    /// All that a caller may read.
    Everything,
    /// Only what is to be had at this port besides.
    ExposedAt(u16),
    /// Container images, and nothing else.
    Images(registry::Door),
}

impl Config {
    /// 120 s of not reading: a DUT that erases flash between two reads stays connected. 75 s without a request: what nginx
    /// keeps, longer than any firmware waits between its HEAD and its GET.
    pub fn new(net: Net, listen: SocketAddr) -> Self {
        let (write_timeout, idle_timeout) = (Duration::from_secs(120), Duration::from_secs(75));
        let serves = Serves::Everything;
        Config { net, interface: None, listen, write_timeout, idle_timeout, serves, tls: None, outside: None }
    }
}

/// A running HTTP server; dropping it closes all connections.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<Stop>,
    task: Option<JoinHandle<()>>,
    abort: AbortHandle,
}

/// Whether connections end after the answer they are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    No,
    AfterThisAnswer,
}

/// 1024: a rack that is switched on at once, several connections per DUT; each costs some 10 KiB until it transfers.
const CONNECTIONS_MAX: usize = 1024;

/// 64 per peer: iPXE and EDK2 use one or two, a Linux installer a dozen; a DUT that leaks connections must not starve the others.
const CONNECTIONS_PER_PEER_MAX: usize = 64;

/// Where everybody on the DUTs' network finds the certificate of the farm's authority.
pub const CA_PEM: &str = "/_/ca.pem";

/// What a request's head may take, and what is buffered of an answer.
const BUFFER_BYTES_MAX: usize = 256 * 1024;

/// When a silent peer of an open connection is asked whether it is still there, how often again, and after how many silences it is
/// given up: a minute in all, so that a DUT whose power was cut while it waited for an answer keeps no place in a queue.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);

/// Listens, and serves `namespaces` until the [`Server`] is dropped or drained.
pub async fn start(config: Config, namespaces: Namespaces<Content>) -> io::Result<Server> {
    let listener = config.net.tcp_listener(config.listen)?;
    if let Some(interface) = &config.interface {
        SockRef::from(&listener).bind_device(Some(interface.as_bytes()))?;
    }
    let (idle, period, tries) = KEEPALIVE;
    // Accepted sockets inherit it (Linux, tcp_create_openreq_child).
    let keepalive = TcpKeepalive::new().with_time(idle).with_interval(period).with_retries(tries);
    SockRef::from(&listener).set_tcp_keepalive(&keepalive)?;
    let address = listener.local_addr()?;
    let (stop, stopped) = watch::channel(Stop::No);
    let desk = Arc::new(Desk { config, address, namespaces, peers: Mutex::default() });
    let task = tokio::spawn(accept_all(listener, desk, stopped));
    let abort = task.abort_handle();
    tracing::info!(%address, "HTTP for DUTs");
    Ok(Server { address, stop, task: Some(task), abort })
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections, and waits until the running answers are sent; for 5 s, because who stops a server is waiting too.
    pub async fn drain(mut self) {
        const LONGEST: Duration = Duration::from_secs(5);
        self.stop.send_replace(Stop::AfterThisAnswer);
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

/// What all connections share.
struct Desk {
    config: Config,
    address: SocketAddr,
    namespaces: Namespaces<Content>,
    peers: Mutex<HashMap<IpAddr, usize>>,
}

/// A place among the connections of one peer.
struct Seat {
    desk: Arc<Desk>,
    peer: IpAddr,
}

impl Seat {
    fn take(desk: &Arc<Desk>, peer: IpAddr) -> Option<Self> {
        let mut peers = desk.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let count = peers.entry(peer).or_default();
        if *count >= CONNECTIONS_PER_PEER_MAX {
            return None;
        }
        *count += 1;
        Some(Seat { desk: Arc::clone(desk), peer })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut peers = self.desk.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = peers.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                peers.remove(&self.peer);
            }
        }
    }
}

async fn accept_all(listener: TcpListener, desk: Arc<Desk>, mut stopped: watch::Receiver<Stop>) {
    let mut connections = JoinSet::new();
    let handed_on = stopped.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => admit(stream, peer.ip().to_canonical(), &desk, &handed_on, &mut connections),
                Err(error) => {
                    // 50 ms: out of descriptors, most likely; others close some meanwhile.
                    tracing::warn!(%error, "cannot accept an HTTP connection");
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
async fn stop_wanted(stopped: &mut watch::Receiver<Stop>) {
    let _ = stopped.wait_for(|stop| *stop == Stop::AfterThisAnswer).await;
}

fn admit(
    stream: TcpStream,
    peer: IpAddr,
    desk: &Arc<Desk>,
    stopped: &watch::Receiver<Stop>,
    connections: &mut JoinSet<()>,
) {
    match Seat::take(desk, peer) {
        Some(seat) if connections.len() < CONNECTIONS_MAX => {
            connections.spawn(converse(stream, seat, stopped.clone()));
        }
        _ => tracing::warn!(%peer, "too many HTTP connections; closed this one"),
    }
}

/// One connection, request after request.
async fn converse(stream: TcpStream, seat: Seat, mut stopped: watch::Receiver<Stop>) {
    // Without it a 1 KiB script takes 44 ms: Nagle waits for the peer's delayed ACK.
    let _ = stream.set_nodelay(true);
    let (desk, peer) = (Arc::clone(&seat.desk), seat.peer);
    // The connection below has the stream for as long as this function runs.
    let socket = stream.as_raw_fd();
    let wire = tokio::select! {
        wire = desk.wire(stream, peer) => wire,
        () = stop_wanted(&mut stopped) => return,
    };
    let Some(wire) = wire else { return };
    let running = Arc::new(Running::over(wire.transport()));
    let handed_on = stopped.clone();
    let service = service_fn(|request| {
        let (desk, running, stopped) = (Arc::clone(&desk), Arc::clone(&running), handed_on.clone());
        async move { Ok::<_, Infallible>(desk.answer(request, peer, running, stopped).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(desk.config.idle_timeout)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(Patient::new(wire, desk.config.write_timeout), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let mut stopping = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "HTTP connection ended");
                }
                break;
            }
            () = running.orphaned(socket) => {
                tracing::debug!(%peer, "HTTP connection closed: the job took its artifacts back");
                return;
            }
            () = stop_wanted(&mut stopped), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
    if let Some(tunnel) = running.tunnel() {
        tokio::select! {
            () = tunnel.run() => {}
            () = stop_wanted(&mut stopped) => {}
        }
    }
}

/// An answer that is not the artifact: a status and a sentence.
struct Failure {
    status: StatusCode,
    sentence: String,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::UnknownCaller | Refusal::NoSuchName => StatusCode::NOT_FOUND,
            Refusal::Exhausted { .. } | Refusal::FirstReadOver { .. } | Refusal::Expired { .. } => StatusCode::GONE,
            Refusal::Busy { .. } | Refusal::NotRecorded { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::TlsRequired { .. } | Refusal::TlsFailed { .. } | Refusal::NotLedOut { .. } => {
                StatusCode::FORBIDDEN
            }
        };
        Failure { status, sentence: refusal.to_string() }
    }
}

impl From<&ContentError> for Failure {
    fn from(error: &ContentError) -> Self {
        let status = match error {
            ContentError::Stalled { .. } => StatusCode::GATEWAY_TIMEOUT,
            ContentError::BadUrl { .. }
            | ContentError::Denied { .. }
            | ContentError::Status { .. }
            | ContentError::Unreachable { .. }
            | ContentError::Changed { .. }
            | ContentError::Image { .. }
            | ContentError::Cancelled { .. } => StatusCode::BAD_GATEWAY,
            ContentError::File { .. }
            | ContentError::NotAFile { .. }
            | ContentError::Shrunk { .. }
            | ContentError::Edit { .. }
            | ContentError::Cache { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        // The path of a file on our disk is for the job's log, not for the DUT.
        let sentence = match status {
            StatusCode::INTERNAL_SERVER_ERROR => {
                "the gateway cannot read this artifact; the job's log says why".to_owned()
            }
            _ => error.to_string(),
        };
        Failure { status, sentence }
    }
}

impl Desk {
    /// What `stream` is, by its first byte; the job of a DUT whose handshake fails hears why.
    async fn wire(&self, stream: TcpStream, peer: IpAddr) -> Option<Wire> {
        let (Serves::ExposedAt(port), Some(tls)) = (&self.config.serves, &self.config.tls) else {
            return Some(Wire::Clear(stream));
        };
        match Wire::of(stream, peer, tls, self.config.idle_timeout).await? {
            Ok(wire) => Some(wire),
            Err(failure) => {
                tracing::debug!(%peer, port, %failure, "no TLS");
                let refusal = Refusal::TlsFailed { reason: failure.to_string() };
                self.namespaces.report(Caller::Address(peer), Protocol::Http, &format!("at port {port}"), &refusal);
                None
            }
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        peer: IpAddr,
        running: Arc<Running>,
        stopped: watch::Receiver<Stop>,
    ) -> Response<AnswerBody> {
        let (asked, path) = (request.method().clone(), request.uri().path().to_owned());
        if let Serves::Images(door) = &self.config.serves {
            let response = images::answer(door, &self.namespaces, &request, peer, running).await;
            tracing::debug!(%peer, method = %asked, path, status = response.status().as_u16(), "registry request");
            return response;
        }
        if proxy::is_for_elsewhere(&request, self.address) {
            let response = self.pass_on(request, peer, running).await;
            tracing::debug!(%peer, method = %asked, status = response.status().as_u16(), "proxy request");
            return response;
        }
        let response = match answer::route(&path) {
            Ok(target) => match (self.authority(&target), self.live(caller(&target, peer), &target.name)) {
                (Some(pem), _) => certificate(pem, &request),
                (None, Some(live)) => ask::ask(live, request, self.config.idle_timeout, stopped).await,
                (None, None) => self.answer_artifact(&target, &request, peer, running).await,
            },
            Err(bad) => {
                let status = StatusCode::from_u16(bad.status()).unwrap_or(StatusCode::BAD_REQUEST);
                sentence(&Failure { status, sentence: bad.to_string() })
            }
        };
        tracing::debug!(%peer, method = %asked, path, status = response.status().as_u16(), "HTTP request");
        response
    }

    async fn pass_on(&self, request: Request<Incoming>, peer: IpAddr, running: Arc<Running>) -> Response<AnswerBody> {
        let grant = self.namespaces.outward(peer, Protocol::Proxy).map_err(|refusal| {
            let sentence = refusal.to_string();
            Failure { status: StatusCode::FORBIDDEN, sentence }
        });
        let passed = match (grant, &self.config.outside) {
            (Ok(grant), Some(outside)) => {
                proxy::pass_on(request, Asker { outside: outside.as_ref(), grant, running }).await
            }
            (Err(failure), _) => Err(failure),
            (Ok(_), None) => {
                let sentence = "connections to elsewhere are not made at this port".to_owned();
                Err(Failure { status: StatusCode::FORBIDDEN, sentence })
            }
        };
        passed.unwrap_or_else(|failure| sentence(&failure))
    }

    /// The certificate to trust; told at the server's own port only.
    fn authority(&self, target: &Target) -> Option<&str> {
        let is_it = target.key.is_none() && target.name == CA_PEM && matches!(self.config.serves, Serves::Everything);
        self.config.tls.as_ref().filter(|_| is_it).map(Tls::ca_pem)
    }

    /// What answers by itself does so at the server's own port only.
    fn live(&self, caller: Caller<'_>, name: &str) -> Option<Live> {
        match self.config.serves {
            Serves::Everything => self.namespaces.live(caller, name),
            Serves::ExposedAt(_) | Serves::Images(_) => None,
        }
    }

    async fn answer_artifact(
        &self,
        target: &Target,
        request: &Request<Incoming>,
        peer: IpAddr,
        running: Arc<Running>,
    ) -> Response<AnswerBody> {
        let answered = match method(request) {
            Some(method) => self.artifact(method, target, request.headers(), peer, running).await,
            None => Err(not_read(request)),
        };
        answered.unwrap_or_else(|failure| sentence(&failure))
    }

    async fn artifact(
        &self,
        method: Method,
        target: &Target,
        headers: &HeaderMap,
        peer: IpAddr,
        running: Arc<Running>,
    ) -> Result<Response<AnswerBody>, Failure> {
        let caller = caller(target, peer);
        let name = self.name(caller, &target.name);
        let asked = conditions(headers);
        let port = match self.config.serves {
            Serves::Everything | Serves::Images(_) => None,
            Serves::ExposedAt(port) => Some(port),
        };
        self.namespaces.admits(caller, Protocol::Http, name, Door { port, transport: running.transport() })?;
        match method {
            Method::Head => {
                let content = self.namespaces.look(caller, Protocol::Http, name, Instant::now())?;
                let (reader, size) = open(&content, name).await.map_err(|error| Failure::from(&error))?;
                Ok(respond(name, &reader, answer::answer(asked, size, reader.etag().as_deref()), |_, _| None))
            }
            Method::Get => {
                let opened = self.open(caller, name, answer::way(asked.range))?;
                running.begin(opened.access.pulse());
                send(name, opened, asked, running).await
            }
        }
    }

    fn open(&self, caller: Caller<'_>, name: &str, way: Way) -> Result<Opened<Content>, Refusal> {
        match way {
            Way::Open => self.namespaces.open(caller, Protocol::Http, name, Instant::now()),
            Way::Resume => self.namespaces.resume(caller, Protocol::Http, name, Instant::now()),
        }
    }

    /// The name that answers: CI-tron's path to the boot script, unless the job publishes just that name.
    fn name<'a>(&self, caller: Caller<'_>, name: &'a str) -> &'a str {
        match answer::alias(name) {
            Some(alias) if !self.namespaces.publishes(caller, Protocol::Http, name) => alias,
            _ => name,
        }
    }
}

fn method(request: &Request<Incoming>) -> Option<Method> {
    match *request.method() {
        hyper::Method::GET => Some(Method::Get),
        hyper::Method::HEAD => Some(Method::Head),
        _ => None,
    }
}

fn not_read(request: &Request<Incoming>) -> Failure {
    let sentence = format!("artifacts are read with GET or HEAD, not {}", request.method());
    Failure { status: StatusCode::METHOD_NOT_ALLOWED, sentence }
}

/// The farm's authority. It is nobody's secret, and asked for before there is a job.
fn certificate(pem: &str, request: &Request<Incoming>) -> Response<AnswerBody> {
    if method(request).is_none() {
        return sentence(&not_read(request));
    }
    let mut response = text(StatusCode::OK, pem.to_owned());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-pem-file"));
    response
}

fn caller(target: &Target, peer: IpAddr) -> Caller<'_> {
    match &target.key {
        Some(key) => Caller::Key(key, peer),
        None => Caller::Address(peer),
    }
}

fn conditions(headers: &HeaderMap) -> Conditions<'_> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    Conditions { range: text(RANGE), if_range: text(IF_RANGE), if_none_match: text(IF_NONE_MATCH) }
}

/// Opens `content` and waits for its size: firmware needs a Content-Length.
async fn open(content: &Content, name: &str) -> Result<(Reader, u64), ContentError> {
    let reader = content.open_as(name).await?;
    let size = reader.complete_size().await?;
    Ok((reader, size))
}

/// The answer to a GET that was granted; the access ends with its last byte, or here.
async fn send(
    name: &str,
    opened: Opened<Content>,
    asked: Conditions<'_>,
    running: Arc<Running>,
) -> Result<Response<AnswerBody>, Failure> {
    let Opened { content, access } = opened;
    let (reader, size) = match open(&content, name).await {
        Ok(opened) => opened,
        Err(error) => {
            running.end();
            access.end(Outcome::Failed(error.to_string()));
            return Err(Failure::from(&error));
        }
    };
    access.is_of(size);
    let answer = answer::answer(asked, size, reader.etag().as_deref());
    let body = |reader: Reader, access: Access, offset, length| Transfer::new(reader, access, running, offset, length);
    Ok(respond(name, &reader, answer, |offset, length| Some(body(reader.clone(), access, offset, length))))
}

fn respond(
    name: &str,
    reader: &Reader,
    answer: answer::Answer,
    transfer: impl FnOnce(u64, u64) -> Option<Transfer>,
) -> Response<AnswerBody> {
    let body = transfer(answer.offset, answer.length.unwrap_or(0));
    let mut response = Response::new(body.map_or(AnswerBody::Text(None), AnswerBody::Artifact));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if answer.status == 200 || answer.status == 206 {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type(name)));
    }
    if let Some(length) = answer.length {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let texts = [(ETAG, reader.etag()), (CONTENT_RANGE, answer.content_range)];
    for (name, text) in texts {
        // Absent rather than empty: an empty header value hangs OVMF (edk2 #7443).
        if let Some(value) = text.and_then(|text| HeaderValue::from_str(&text).ok()) {
            headers.insert(name, value);
        }
    }
    response
}

/// A plain sentence with a newline, for who looks with curl.
fn sentence(failure: &Failure) -> Response<AnswerBody> {
    let mut response = text(failure.status, format!("{}\n", failure.sentence));
    if failure.status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

fn text(status: StatusCode, text: String) -> Response<AnswerBody> {
    let length = text.len();
    let mut response = Response::new(AnswerBody::Text((length > 0).then(|| Bytes::from(text))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    response
}

#[cfg(test)]
mod tests;
