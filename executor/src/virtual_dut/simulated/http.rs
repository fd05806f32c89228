//! One HTTP/1.1 GET (or a POST of JSON) from the DUT's own address, to the last byte of its Content-Length (hyper tells when one is missing).

use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::fetch::{Digest, FetchError, Fetched, SILENCE_MAX, Until};
use super::uri::{Scheme, Uri, resolve};
use super::wire::Wire;

/// 10 s to connect: the servers are on the same link.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// 64 KiB of an answer to a POST: one is a record of some hundred bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Five redirects, as many as a chain of sensible servers needs.
const REDIRECTS_MAX: u32 = 5;

/// Fetches `uri` whole, or gives up in the middle with a reset.
pub(super) async fn get(
    wire: &Wire,
    address: Ipv4Addr,
    host: Ipv4Addr,
    uri: &Uri,
    until: Until,
) -> Result<Fetched, FetchError> {
    let (mut uri, mut host) = (uri.clone(), host);
    for _ in 0..=REDIRECTS_MAX {
        let server = SocketAddr::from((host, uri.port.unwrap_or(80)));
        let connected = timeout(CONNECT_MAX, wire.tcp(address, server)).await;
        let (stream, farewell) = connected.map_err(|_| FetchError::Silence)??;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let (mut sender, connection) = handshake;
        // Polled beside the request, not spawned: when the power goes, this future and with it the socket go at once.
        let exchange = async {
            let response = timeout(SILENCE_MAX, sender.send_request(request(&uri))).await;
            let response = response.map_err(|_| FetchError::Silence)?.map_err(broken)?;
            if let Some(target) = redirect(&response) {
                return Ok(Got::Elsewhere(target));
            }
            body(response, until).await.map(Got::Body)
        };
        let got = drive(exchange, connection).await?;
        match got {
            Got::Body(fetched) => {
                farewell.close();
                return Ok(fetched);
            }
            Got::Elsewhere(target) => {
                farewell.close();
                uri = Uri::parse(&resolve(&text_of(&uri), &target)).map_err(FetchError::Address)?;
                let numbered = uri.host.parse().ok().filter(|_| uri.scheme == Scheme::Http);
                host =
                    numbered.ok_or_else(|| FetchError::Address(format!("cannot follow a redirect to `{target}`")))?;
            }
        }
    }
    Err(FetchError::Refused(format!("more than {REDIRECTS_MAX} redirects")))
}

/// Posts JSON; the answer's status and text.
pub(super) async fn post(
    wire: &Wire,
    address: Ipv4Addr,
    host: Ipv4Addr,
    uri: &Uri,
    json: String,
) -> Result<(u16, String), FetchError> {
    let server = SocketAddr::from((host, uri.port.unwrap_or(80)));
    let connected = timeout(CONNECT_MAX, wire.tcp(address, server)).await;
    let (stream, farewell) = connected.map_err(|_| FetchError::Silence)??;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let request = Request::post(uri.path.as_str())
        .header(HOST, authority(uri))
        .header(USER_AGENT, "wharf-simulated-dut")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(json)))
        .map_err(|error| FetchError::Address(error.to_string()))?;
    let exchange = async {
        let response = timeout(SILENCE_MAX, sender.send_request(request)).await;
        let response = response.map_err(|_| FetchError::Silence)?.map_err(broken)?;
        let status = response.status().as_u16();
        let body = timeout(SILENCE_MAX, Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect()).await;
        let body = body.map_err(|_| FetchError::Silence)?.map_err(|error| FetchError::Broken(error.to_string()))?;
        Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    };
    let answer = drive(exchange, connection).await?;
    farewell.close();
    Ok(answer)
}

enum Got {
    Body(Fetched),
    Elsewhere(String),
}

/// Runs the exchange while the connection moves its bytes.
async fn drive<T>(
    exchange: impl Future<Output = Result<T, FetchError>>,
    connection: impl Future<Output = hyper::Result<()>>,
) -> Result<T, FetchError> {
    tokio::pin!(exchange, connection);
    tokio::select! {
        got = &mut exchange => got,
        // The connection may end before its last bytes were taken out of the exchange.
        _ = &mut connection => exchange.await,
    }
}

fn request(uri: &Uri) -> Request<Empty> {
    let request =
        Request::get(uri.path.as_str()).header(HOST, authority(uri)).header(USER_AGENT, "wharf-simulated-dut");
    request.body(Empty).unwrap_or_else(|_| Request::new(Empty))
}

fn authority(uri: &Uri) -> String {
    uri.port.map_or_else(|| uri.host.clone(), |port| format!("{}:{port}", uri.host))
}

fn redirect(response: &Response<Incoming>) -> Option<String> {
    let target = response.headers().get(LOCATION).filter(|_| response.status().is_redirection())?;
    target.to_str().ok().map(str::to_owned)
}

async fn body(response: Response<Incoming>, until: Until) -> Result<Fetched, FetchError> {
    let status = response.status();
    if !status.is_success() {
        return Err(FetchError::Refused(status.to_string()));
    }
    let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let middle = length.unwrap_or(0) / 2;
    let mut body = response.into_body();
    let mut digest = Digest::default();
    loop {
        if until == Until::Middle && digest.bytes() >= middle {
            return Err(FetchError::Aborted);
        }
        let next = poll_fn(|context| Pin::new(&mut body).poll_frame(context));
        match timeout(SILENCE_MAX, next).await.map_err(|_| FetchError::Silence)? {
            None => return Ok(digest.finish()),
            Some(frame) => {
                if let Ok(bytes) = frame.map_err(broken)?.into_data() {
                    digest.push(&bytes);
                }
            }
        }
    }
}

fn text_of(uri: &Uri) -> String {
    let port = uri.port.map(|port| format!(":{port}")).unwrap_or_default();
    format!("http://{}{port}{}", uri.host, uri.path)
}

fn broken(error: hyper::Error) -> FetchError {
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    FetchError::Broken(format!("Connection broken: {}", cause.unwrap_or_else(|| error.to_string())))
}

/// A request without a body.
struct Empty;

impl Body for Empty {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers each connection with the next text, then closes; returns the heads of the requests and where they came from.
    async fn server(answers: &'static [&'static str]) -> (SocketAddr, tokio::task::JoinHandle<Vec<(String, String)>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut heard = Vec::new();
            for answer in answers {
                let (mut stream, peer) = listener.accept().await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                heard.push((peer.ip().to_string(), String::from_utf8(head).unwrap()));
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            }
            heard
        });
        (address, task)
    }

    async fn get_from(server: SocketAddr, until: Until) -> Result<Fetched, String> {
        let wire = Wire::Loopback { address: Ipv4Addr::LOCALHOST, dhcp: server, tftp_port: 69 };
        let uri = Uri::parse(&format!("http://{server}/a/file?x=1")).unwrap();
        let from = Ipv4Addr::new(127, 77, 0, 7);
        get(&wire, from, Ipv4Addr::LOCALHOST, &uri, until).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_file_comes_whole_to_the_duts_own_address() {
        let (address, heard) = server(&["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n#!ipxe\nx\n"]).await;
        let fetched = get_from(address, Until::Whole).await.unwrap();
        assert_eq!((fetched.bytes, fetched.script.as_deref()), (9, Some("#!ipxe\nx\n")));
        let (peer, head) = heard.await.unwrap().remove(0);
        assert_eq!(peer, "127.77.0.7");
        assert!(head.starts_with(&format!("GET /a/file?x=1 HTTP/1.1\r\nhost: {address}\r\n")), "{head}");
    }

    #[tokio::test]
    async fn a_refusal_a_short_body_and_an_abort_are_told_apart() {
        for (answer, until, error) in [
            (&["HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"], Until::Whole, "404 Not Found"),
            (
                &["HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort"],
                Until::Whole,
                "Connection broken: end of file before message length reached",
            ),
            (&["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfour"], Until::Middle, "aborted"),
        ] {
            let (address, _heard) = server(answer).await;
            assert_eq!(get_from(address, until).await.unwrap_err(), error);
        }
    }

    #[tokio::test]
    async fn redirects_are_followed_and_an_endless_chain_is_not() {
        let moved = "HTTP/1.1 302 Found\r\nLocation: other\r\nContent-Length: 0\r\n\r\n";
        let here = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let (address, heard) = server(Box::leak(Box::new([moved, here]))).await;
        assert_eq!(get_from(address, Until::Whole).await.unwrap().bytes, 2);
        assert!(heard.await.unwrap()[1].1.starts_with("GET /a/other HTTP/1.1\r\n"));
        let (address, _heard) = server(Box::leak(Box::new([moved; 6]))).await;
        assert_eq!(get_from(address, Until::Whole).await.unwrap_err(), "more than 5 redirects");
    }
}
