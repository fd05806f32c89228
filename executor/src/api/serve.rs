//! The ring around the operator's listeners: connections in, requests to the router, a bounded end.
//!
//! ```text
//!  accept ─► permit (CONNECTIONS_MAX) ─► HTTP/1 with a header timeout ─► prepare: peer, path ─► router
//!                                                                          └ panic ─► 500, the server goes on
//! ```

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use gateway::s3::Door;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::error::ApiError;

/// Connections at once. Each may hold a job's console for hours; a farm has tens of DUTs and some hundred readers. Half of the usual
/// 1,024 descriptors of a process are left to the DUT's side.
pub(super) const CONNECTIONS_MAX: usize = 512;

/// A client may take this long over a request's head: the slowest real ones need milliseconds.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(20);

/// A stopping server waits this long for running answers, consoles included, then closes them.
const DRAIN: Duration = Duration::from_secs(5);

/// A pause after a failed accept: descriptors that ran out do not come back within a microsecond.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// A TCP client.
    Tcp(SocketAddr),
    /// A process of this host, over the unix socket.
    Unix,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Peer::Tcp(address) => write!(f, "{address}"),
            Peer::Unix => f.write_str("the local socket"),
        }
    }
}

/// A listener of either kind.
pub(super) trait Accept: Sync {
    /// Its connections as they come.
    type Raw: Send + 'static;
    /// Its connections as they are served.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next connection.
    fn next(&self) -> impl Future<Output = io::Result<(Self::Raw, Peer)>> + Send;

    /// From the one to the other: nobody else waits for that.
    fn ready(&self, raw: Self::Raw) -> impl Future<Output = io::Result<Self::Stream>> + Send + 'static;
}

impl Accept for TcpListener {
    type Raw = TcpStream;
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, address) = self.accept().await?;
        prepare_tcp(&stream);
        Ok((stream, Peer::Tcp(address)))
    }

    fn ready(&self, raw: TcpStream) -> impl Future<Output = io::Result<TcpStream>> + Send + 'static {
        std::future::ready(Ok(raw))
    }
}

impl Accept for UnixListener {
    type Raw = UnixStream;
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = self.accept().await?;
        Ok((stream, Peer::Unix))
    }

    fn ready(&self, raw: UnixStream) -> impl Future<Output = io::Result<UnixStream>> + Send + 'static {
        std::future::ready(Ok(raw))
    }
}

/// Serves a router until `shutdown` completes.
pub(super) async fn serve(listener: impl Accept, router: Router, shutdown: impl Future<Output = ()>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (stopping, stopped) = tokio::sync::watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        // The permit first: a full server leaves further clients in the kernel's queue.
        let next = async {
            let permit = Arc::clone(&permits).acquire_owned().await.map_err(io::Error::other)?;
            listener.next().await.map(|(stream, peer)| (stream, peer, permit))
        };
        tokio::select! {
            () = &mut shutdown => break,
            accepted = next => match accepted {
                Ok((stream, peer, permit)) => {
                    connections.spawn(connection(listener.ready(stream), peer, router.clone(), permit, stopped.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection to the API");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(stopping);
    let _ = tokio::time::timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
}

async fn connection<S>(
    ready: impl Future<Output = io::Result<S>>,
    peer: Peer,
    router: Router,
    permit: OwnedSemaphorePermit,
    mut stopped: tokio::sync::watch::Receiver<()>,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = match ready.await {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%peer, %error, "a connection to the API did not begin"),
    };
    let permit = Arc::new(permit);
    let service = service_fn(move |request| answer(router.clone(), prepare(request, peer, &permit)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = &mut connection => result,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "a connection to the API ended early");
    }
}

/// The peer, for the log and the console callback; the permit, so that an upgraded connection still counts as one; and CI-tron's clients
/// are told the server's address with a final slash, so that they ask for `//api/v1/jobs`.
fn prepare(mut request: hyper::Request<Incoming>, peer: Peer, permit: &Arc<OwnedSemaphorePermit>) -> Request {
    request.extensions_mut().insert(peer);
    request.extensions_mut().insert(Arc::clone(permit));
    // The name of an object may have them, and its signature is about them.
    if !Door::is_meant(&request)
        && let Some(uri) = without_double_slashes(request.uri())
    {
        *request.uri_mut() = uri;
    }
    request.map(Body::new)
}

fn without_double_slashes(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    if !path.contains("//") {
        return None;
    }
    let mut single = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !single.ends_with('/') {
            single.push(character);
        }
    }
    if let Some(query) = uri.query() {
        single.push('?');
        single.push_str(query);
    }
    single.parse().ok()
}

async fn answer(router: Router, request: Request) -> Result<Response, Infallible> {
    let path = request.uri().path().to_owned();
    let call = TowerToHyperService::new(router).call(request);
    match AssertUnwindSafe(call).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            tracing::error!(path, "a request handler panicked; the server goes on");
            Ok(ApiError::Internal(format!("an internal error at {path}; the server's log has the place"))
                .into_response())
        }
    }
}

/// A console is small writes that shall not wait for each other, on a connection whose other end may vanish without a word:
/// 30 s + 3 × 10 s of silence frees the DUT.
pub(super) fn prepare_tcp(stream: &TcpStream) {
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3);
    let result = stream.set_nodelay(true).and_then(|()| socket2::SockRef::from(stream).set_tcp_keepalive(&keepalive));
    if let Err(error) = result {
        tracing::debug!(%error, "cannot prepare a connection to the API");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(router: Router, request: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, router, std::future::pending()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        server.abort();
        answer
    }

    #[tokio::test]
    async fn a_panicking_handler_answers_500_and_the_server_goes_on() {
        async fn panics() -> &'static str {
            panic!("on purpose")
        }
        let router = Router::new().route("/panic", get(panics)).route("/fine", get(|| async { "fine" }));
        let request =
            "GET /panic HTTP/1.1\r\nhost: x\r\n\r\nGET /fine HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let answer = ask(router, request).await;
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
        assert!(answer.ends_with("fine"), "{answer}");
    }

    #[tokio::test]
    async fn a_path_with_double_slashes_is_the_path_with_single_ones() {
        let router = Router::new().route("/api/v1/jobs", get(|| async { "jobs" }));
        let answer = ask(router, "GET //api//v1/jobs?a=//b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(answer.ends_with("jobs"), "{answer}");
    }

    #[test]
    fn a_query_keeps_its_slashes() {
        let uri = without_double_slashes(&"//a//b?c=//d".parse().unwrap());
        assert_eq!(uri.unwrap().to_string(), "/a/b?c=//d");
    }
}
