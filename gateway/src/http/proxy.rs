//! Connections of DUTs to elsewhere: CONNECT, and plain `http://`, as far as job and farm allow them.
//!
//! ```text
//!  CONNECT host:port        ─┐   egress.rs: job's and farm's rules ─► a place ─► resolve, once ─► judge each address ─► connect
//!  GET http://host[:port]/… ─┘      │ 400, 403                        403          502               403                 502
//!        CONNECT ──► 200 ──► Running keeps the Tunnel ──► connection.rs hands the stream over ──► both ways, until one
//!                            end closes · no byte for IDLE_TIME · the publication is dropped · the server stops
//!        plain   ──► the request without what is between hops ──► the answer, likewise ──► Passed, a body
//! ```
//! Every connection is an access of protocol `proxy`, with the bytes of both directions; a path, which may hold a secret, is not told.

use core::net::{IpAddr, SocketAddr};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use job_schema::job::Endpoint;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_util::task::AbortOnDropHandle;

use super::connection::{LIVENESS_PERIOD, Running};
use super::transfer::AnswerBody;
use super::{Failure, ask};
use crate::egress::Denial;
use crate::namespace::{Access, Grant, Liveness, Outcome, Place};
use crate::outside::Outside;

/// 5 s for a name: what resolvers take for two tries of a name server.
const RESOLVE_TIME: Duration = Duration::from_secs(5);
/// 10 s for a connection: three tries of TCP (after 1 s and 3 s).
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// 10 minutes without a byte: a server that builds something answers after minutes; what is forgotten frees its place.
const IDLE_TIME: Duration = Duration::from_secs(600);
/// 32 KiB each way of a tunnel: 512 of them take 32 MiB.
const BUFFER_BYTES: usize = 32 * 1024;

/// What is between two hops and no further (RFC 9110 7.6.1), besides what `Connection` names; `Expect` we have answered ourselves.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Whether `request` is for somebody else than the server at `own`: every CONNECT, and what names another host in its first line.
pub(super) fn is_for_elsewhere(request: &Request<Incoming>, own: SocketAddr) -> bool {
    if request.method() == hyper::Method::CONNECT {
        return true;
    }
    // An origin server takes its own address there, too (RFC 9112 3.2.2).
    request.uri().authority().is_some_and(|authority| {
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host.map(|host| host.to_canonical()) != Ok(own.ip()) || authority.port_u16().unwrap_or(80) != own.port()
    })
}

/// Who asks, and on which connection.
pub(super) struct Asker<'a> {
    pub outside: &'a dyn Outside,
    pub grant: Grant,
    pub running: Arc<Running>,
}

/// The answer to a request for elsewhere.
pub(super) async fn pass_on(request: Request<Incoming>, asker: Asker<'_>) -> Result<Response<AnswerBody>, Failure> {
    let endpoint = endpoint(&request)?;
    let Asker { outside, grant, running } = asker;
    let name = endpoint.to_string();
    let place = match grant.egress.allows(&endpoint).and_then(|()| grant.place()) {
        Ok(place) => place,
        Err(denial) => return Err(refused(grant, name, &denial)),
    };
    let addresses = match judged(outside, &grant, &endpoint).await {
        Ok(addresses) => addresses,
        Err(NotFound::Denied(denial)) => return Err(refused(grant, name, &denial)),
        Err(NotFound::Failed(reason)) => return Err(unreachable(grant.begin(name), reason)),
    };
    let upstream = connected(outside, &addresses, grant.liveness()).await;
    let access = grant.begin(name);
    let upstream = match upstream {
        Ok(upstream) => upstream,
        Err(reason) => return Err(unreachable(access, reason)),
    };
    let _ = upstream.set_nodelay(true);
    if request.method() == hyper::Method::CONNECT {
        running.keep(Tunnel { upgrade: hyper::upgrade::on(request), upstream, access, _place: place });
        return Ok(Response::new(AnswerBody::Text(None)));
    }
    plain(request, &endpoint, upstream, access, place, running).await
}

fn endpoint(request: &Request<Incoming>) -> Result<Endpoint, Failure> {
    let bad = |why: &str| Failure { status: StatusCode::BAD_REQUEST, sentence: why.to_owned() };
    let authority = request.uri().authority().ok_or_else(|| bad("a proxy is asked for `host:port`"))?;
    if authority.as_str().contains('@') {
        return Err(bad("a user's name does not belong there"));
    }
    let is_tunnel = request.method() == hyper::Method::CONNECT;
    if !is_tunnel && request.uri().scheme() != Some(&Scheme::HTTP) {
        return Err(bad("only `http://` is passed on in clear; ask for anything else with CONNECT"));
    }
    let has_port = authority.port().is_some();
    let text = if has_port || is_tunnel { authority.to_string() } else { format!("{authority}:80") };
    text.parse().map_err(|why: String| bad(&format!("`{text}` is no `host:port`: {why}")))
}

fn refused(grant: Grant, name: String, denial: &Denial) -> Failure {
    let sentence = format!("not connected to {name}: {denial}");
    tracing::info!(sentence, "the proxy refused");
    grant.refuse(name, denial);
    Failure { status: StatusCode::FORBIDDEN, sentence }
}

fn unreachable(access: Access, reason: String) -> Failure {
    let sentence = reason.clone();
    access.end(Outcome::Failed(reason));
    Failure { status: StatusCode::BAD_GATEWAY, sentence }
}

enum NotFound {
    Denied(Denial),
    Failed(String),
}

/// Where `endpoint` leads and may lead: what is denied is left out, as long as something is left.
async fn judged(outside: &dyn Outside, grant: &Grant, endpoint: &Endpoint) -> Result<Vec<SocketAddr>, NotFound> {
    let resolving = outside.resolve(endpoint.host.clone(), endpoint.port);
    let failed = |why: String| NotFound::Failed(format!("cannot resolve {}: {why}", endpoint.host));
    let found = tokio::time::timeout(RESOLVE_TIME, resolving).await;
    let found = found.map_err(|_| failed(format!("no answer within {RESOLVE_TIME:?}")))?;
    let found = found.map_err(|error| failed(error.to_string()))?;
    let own = outside.own();
    let mut denial = None;
    let mut allowed = found;
    allowed.retain(|address| match grant.egress.may_reach(address.ip(), &own) {
        Ok(()) => true,
        Err(denied) => {
            denial.get_or_insert(denied);
            false
        }
    });
    match denial {
        Some(denial) if allowed.is_empty() => Err(NotFound::Denied(denial)),
        _ if allowed.is_empty() => Err(failed("it has no address".to_owned())),
        _ => Ok(allowed),
    }
}

/// The first of `addresses` that answers.
async fn connected(outside: &dyn Outside, addresses: &[SocketAddr], liveness: &Liveness) -> Result<TcpStream, String> {
    let any = async {
        let mut last = String::new();
        for address in addresses {
            match outside.connect(*address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = format!("cannot connect to {address}: {error}"),
            }
        }
        Err(last)
    };
    tokio::select! {
        connected = tokio::time::timeout(CONNECT_TIME, any) => {
            connected.unwrap_or_else(|_| Err(format!("no connection within {CONNECT_TIME:?}")))
        }
        () = ask::gone(liveness) => Err(OVER.to_owned()),
    }
}

const OVER: &str = "the job is over";

/// A connection that becomes another's when its answer is sent.
pub(super) struct Tunnel {
    upgrade: OnUpgrade,
    upstream: TcpStream,
    access: Access,
    _place: Place,
}

impl Tunnel {
    /// Moves bytes both ways until it is over.
    pub(super) async fn run(self) {
        let Tunnel { upgrade, upstream, mut access, _place } = self;
        let stream = match upgrade.await {
            Ok(stream) => TokioIo::new(stream),
            Err(error) => return access.end(Outcome::Failed(format!("no connection to tunnel: {error}"))),
        };
        let moved = AtomicU64::new(0);
        let (dut_reads, dut_writes) = tokio::io::split(stream);
        let (their_reads, their_writes) = upstream.into_split();
        let both = async {
            tokio::try_join!(pump(dut_reads, their_writes, &moved), pump(their_reads, dut_writes, &moved)).map(|_| ())
        };
        let outcome = tokio::select! {
            ended = both => match ended {
                Ok(()) => Outcome::Complete,
                Err(error) => Outcome::Failed(error.to_string()),
            },
            reason = watched(&mut access, &moved) => Outcome::Failed(reason),
        };
        account(&mut access, &moved);
        access.end(outcome);
    }
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, moved: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            // The other direction goes on: half-closed connections are TCP's, and some protocols use them.
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
        moved.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// Returns why a tunnel has to end, and accounts its bytes meanwhile.
async fn watched(access: &mut Access, moved: &AtomicU64) -> String {
    let liveness = access.liveness();
    let mut period = tokio::time::interval(LIVENESS_PERIOD);
    let mut last = tokio::time::Instant::now();
    loop {
        period.tick().await;
        if !liveness.is_live() {
            return OVER.to_owned();
        }
        if account(access, moved) > 0 {
            last = tokio::time::Instant::now();
        }
        if last.elapsed() >= IDLE_TIME {
            return format!("no byte for {IDLE_TIME:?}");
        }
    }
}

/// Tells the access what was moved since the last time.
fn account(access: &mut Access, moved: &AtomicU64) -> u64 {
    let count = moved.swap(0, Ordering::Relaxed);
    if count > 0 {
        access.took(count, Instant::now());
    }
    count
}

async fn plain(
    mut request: Request<Incoming>,
    endpoint: &Endpoint,
    upstream: TcpStream,
    access: Access,
    place: Place,
    running: Arc<Running>,
) -> Result<Response<AnswerBody>, Failure> {
    let moved = Arc::new(AtomicU64::new(0));
    let path = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let host = request.uri().authority().map(Authority::to_string).and_then(|host| HeaderValue::from_str(&host).ok());
    *request.uri_mut() = Uri::from(path);
    *request.version_mut() = hyper::Version::HTTP_11;
    for_the_next_hop(request.headers_mut());
    // What its sender said of the length and its host is not passed on, but what the first line and the body are.
    let length = request.body().size_hint().exact().filter(|_| !request.body().is_end_stream());
    request.headers_mut().remove(CONTENT_LENGTH);
    request.headers_mut().remove(EXPECT);
    request.headers_mut().remove(HOST);
    request.headers_mut().extend(length.map(|length| (CONTENT_LENGTH, HeaderValue::from(length))));
    request.headers_mut().extend(host.map(|host| (HOST, host)));
    let counter = Arc::clone(&moved);
    let request = request.map(|body| {
        body.map_frame(move |frame| {
            counter.fetch_add(frame.data_ref().map_or(0, Bytes::len) as u64, Ordering::Relaxed);
            frame
        })
    });
    let liveness = access.liveness();
    let answered = async {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(upstream)).await?;
        let connection = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
        sender.send_request(request).await.map(|response| (response, connection))
    };
    let answered = tokio::select! {
        answered = tokio::time::timeout(IDLE_TIME, answered) => answered,
        () = ask::gone(&liveness) => return Err(unreachable(access, OVER.to_owned())),
    };
    let (response, connection) = match answered {
        Ok(Ok(answered)) => answered,
        Ok(Err(error)) => return Err(unreachable(access, format!("{endpoint} gave no answer: {error}"))),
        Err(_) => return Err(unreachable(access, format!("{endpoint} gave no answer within {IDLE_TIME:?}"))),
    };
    running.begin(access.pulse());
    let mut response = response.map(|incoming| {
        let idle = Box::pin(tokio::time::sleep(IDLE_TIME));
        let (access, reading) = (Some(access), (connection, place));
        AnswerBody::Passed(Box::new(Passed { incoming, access, running, moved, idle, _reading: reading }))
    });
    *response.version_mut() = hyper::Version::HTTP_11;
    for_the_next_hop(response.headers_mut());
    Ok(response)
}

/// Takes away what is for one hop only.
fn for_the_next_hop(headers: &mut HeaderMap) {
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named = named.flat_map(|value| value.split(','));
    let named: Vec<HeaderName> = named.filter_map(|name| name.trim().parse().ok()).collect();
    for name in named {
        // Else a sender could have us forget what we rely on.
        if name != HOST && name != CONTENT_LENGTH {
            headers.remove(name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// The body of an answer from elsewhere.
pub(super) struct Passed {
    incoming: Incoming,
    access: Option<Access>,
    running: Arc<Running>,
    moved: Arc<AtomicU64>,
    idle: Pin<Box<Sleep>>,
    _reading: (AbortOnDropHandle<()>, Place),
}

impl Passed {
    /// The next of it.
    pub(super) fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match Pin::new(&mut self.incoming).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                self.moved.fetch_add(frame.data_ref().map_or(0, Bytes::len) as u64, Ordering::Relaxed);
                self.account();
                self.idle.as_mut().reset(tokio::time::Instant::now() + IDLE_TIME);
                if self.incoming.is_end_stream() {
                    self.finish(Outcome::Complete);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.finish(Outcome::Failed(error.to_string()));
                Poll::Ready(Some(Err(io::Error::other(error))))
            }
            Poll::Ready(None) => {
                self.finish(Outcome::Complete);
                Poll::Ready(None)
            }
            Poll::Pending if self.idle.as_mut().poll(context).is_ready() => {
                let reason = format!("no byte for {IDLE_TIME:?}");
                self.finish(Outcome::Failed(reason.clone()));
                Poll::Ready(Some(Err(io::Error::other(reason))))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Whether that was all.
    pub(super) fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    /// How much it is, as far as it was said.
    pub(super) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }

    fn account(&mut self) {
        if let Some(access) = &mut self.access {
            account(access, &self.moved);
        }
    }

    fn finish(&mut self, outcome: Outcome) {
        self.account();
        if let Some(access) = self.access.take() {
            access.end(outcome);
            self.running.end();
        }
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        let outcome = match &self.access {
            Some(_) if self.incoming.is_end_stream() => Outcome::Complete,
            Some(access) if access.liveness().is_live() => Outcome::Aborted("closed the connection".to_owned()),
            _ => Outcome::Failed(OVER.to_owned()),
        };
        self.finish(outcome);
    }
}

#[cfg(test)]
#[path = "proxy_tests.rs"]
mod tests;
