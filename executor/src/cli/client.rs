//! The HTTP client of the command line: one connection per request, over TCP, TLS or the server's local socket.
//!
//! ```text
//!  --server ─► http, https, socket         WHARF_TOKEN, --token-file ─► ours: sent    an id_token: exchanged for one first, once
//! ```
//! A token is never an argument: arguments are everybody's on the same host to read.

use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, anyhow, bail};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, TryStreamExt};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls_platform_verifier::BuilderVerifierExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::view::say;
use crate::api::local_sockets;
use crate::api::wire::callers::SessionWire;
use crate::api::wire::{ErrorWire, EventWire};

/// The longest line of an event stream: a console record of 64 KiB is 90 KiB of base64.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The longest answer that is read as a whole: ten thousand jobs.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What the command line says of tokens and certificates.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// A file with the token.
    pub(super) token_file: Option<PathBuf>,
    /// The certificates to go by.
    pub(super) ca: Option<PathBuf>,
}

static SHOWN: OnceLock<Shown> = OnceLock::new();

/// Remembers it, once.
pub(super) fn show(shown: Shown) {
    let _ = SHOWN.set(shown);
}

/// A server, and what it is shown.
#[derive(Clone, Debug)]
pub(super) struct Server {
    place: Place,
    credential: Option<Credential>,
}

/// A server's address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Host and port.
    Tcp(String),
    /// The same, over TLS.
    Tls(String),
    /// A socket of this host.
    Unix(PathBuf),
}

/// A token, which no log shows.
#[derive(Clone)]
struct Credential {
    text: Arc<str>,
    /// What an id_token was exchanged for.
    session: Arc<tokio::sync::OnceCell<String>>,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a token")
    }
}

impl Credential {
    fn find() -> anyhow::Result<Option<Credential>> {
        let file = SHOWN.get().and_then(|shown| shown.token_file.as_ref());
        let text = match file {
            Some(path) => Some(super::read_text(path)?),
            None => std::env::var("WHARF_TOKEN").ok(),
        };
        let text = text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        if text.as_ref().is_some_and(|text| !text.bytes().all(|byte| byte.is_ascii_graphic())) {
            bail!("the token has characters that no token has; is WHARF_TOKEN, or the file, the right one?");
        }
        Ok(text.map(|text| Credential { text: text.into(), session: Arc::default() }))
    }

    /// Three parts, the first of which is the beginning of a JSON object: a JWT.
    fn is_id_token(&self) -> bool {
        self.text.starts_with("eyJ") && self.text.split('.').count() == 3
    }
}

impl Server {
    /// The server of `--server` or `WHARF_SERVER`; without, the one that runs on this host.
    pub(super) fn find(named: Option<String>) -> anyhow::Result<Server> {
        let place = Place::find(named)?;
        // The socket is the host's own, and asks for none.
        let credential = if matches!(place, Place::Unix(_)) { None } else { Credential::find()? };
        if let (Place::Tcp(authority), Some(_)) = (&place, &credential)
            && !is_loopback(authority)
        {
            say(format_args!(
                "wharf: warning: the token goes to http://{authority} in clear, for everybody between to read; use https://"
            ));
        }
        Ok(Server { place, credential })
    }

    /// In whose name jobs and leases are asked for: a token says it itself.
    pub(super) fn subject(&self) -> Option<String> {
        self.credential.is_none().then(super::lease::user)
    }

    /// Exchanges an id_token; `None`: there is no token.
    pub(super) async fn sign_in(&self) -> anyhow::Result<Option<SessionWire>> {
        let Some(credential) = &self.credential else { return Ok(None) };
        if !credential.is_id_token() {
            bail!("the token is no id_token: it is good for more than one request as it is");
        }
        let request = Request::builder().method(Method::POST).uri("/api/v1/session").header(HOST, self.host());
        let request = request.header(AUTHORIZATION, bearer(&credential.text)?).body(Full::new(Bytes::new()))?;
        read_json(refuse(self.deliver(request).await?).await?).await.map(Some)
    }

    async fn authorization(&self) -> anyhow::Result<Option<HeaderValue>> {
        let Some(credential) = &self.credential else { return Ok(None) };
        if !credential.is_id_token() {
            return bearer(&credential.text).map(Some);
        }
        let session = credential.session.get_or_try_init(|| async {
            let session = self.sign_in().await?;
            session.map(|session| session.token).context("there is no token any more")
        });
        bearer(session.await?).map(Some)
    }
}

impl Place {
    fn find(named: Option<String>) -> anyhow::Result<Place> {
        match named {
            Some(named) => Place::parse(&named),
            None => {
                let sockets = local_sockets();
                let found = sockets.iter().find(|path| path.exists()).cloned();
                found.map(Place::Unix).with_context(|| {
                    let looked: Vec<_> = sockets.iter().map(|path| path.display().to_string()).collect();
                    format!(
                        "no server runs on this host (looked for {}); start one with `wharf serve --farm FILE`, or name one with \
                         --server or WHARF_SERVER",
                        looked.join(" and ")
                    )
                })
            }
        }
    }

    fn parse(named: &str) -> anyhow::Result<Place> {
        if let Some(path) = named.strip_prefix("unix:") {
            return Ok(Place::Unix(path.into()));
        }
        if named.starts_with(['/', '.']) {
            return Ok(Place::Unix(named.into()));
        }
        let (authority, port, of): (_, _, fn(String) -> Place) = match named.strip_prefix("https://") {
            Some(authority) => (authority, 443, Place::Tls),
            None => (named.strip_prefix("http://").unwrap_or(named), 80, Place::Tcp),
        };
        let authority = authority.trim_end_matches('/');
        if authority.contains('@') {
            bail!("an address is no place for a token: set WHARF_TOKEN or WHARF_TOKEN_FILE");
        }
        if authority.is_empty() || authority.contains('/') {
            bail!(
                "`{named}` is no server; write it as https://HOST:PORT, http://HOST:PORT, HOST:PORT or the path of a socket"
            );
        }
        let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        Ok(of(if has_port { authority.to_owned() } else { format!("{authority}:{port}") }))
    }
}

impl Server {
    /// Asks for JSON.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let response = self.send(Method::GET, path, None, Bytes::new()).await?;
        read_json(refuse(response).await?).await
    }

    /// Sends a body, reads JSON.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> anyhow::Result<T> {
        let response = self.send(Method::POST, path, content_type, body).await?;
        read_json(refuse(response).await?).await
    }

    /// Asks for something to be done, reads JSON.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let body = serde_json::to_vec(body)?;
        let response = self.send(method, path, Some("application/json"), body.into()).await?;
        read_json(refuse(response).await?).await
    }

    /// Sends a body; the answer has none.
    pub(super) async fn put(&self, method: Method, path: &str, content_type: &str, body: Bytes) -> anyhow::Result<()> {
        refuse(self.send(method, path, Some(content_type), body).await?).await.map(drop)
    }

    /// Sends a body as long as it likes with some headers, reads JSON.
    pub(super) async fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        headers: &[(&str, String)],
        content: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> anyhow::Result<T> {
        let mut request = Request::builder().method(Method::PUT).uri(path).header(HOST, self.host());
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let body = StreamBody::new(content.map_ok(Frame::data)).boxed_unsync();
        read_json(refuse(self.exchange(request.body(body)?).await?).await?).await
    }

    /// Opens a stream of bytes, and its head.
    pub(super) async fn download(&self, path: &str) -> anyhow::Result<Response<Incoming>> {
        refuse(self.send(Method::GET, path, None, Bytes::new()).await?).await
    }

    /// Asks for something to be done, reads text.
    pub(super) async fn text(&self, method: Method, path: &str, body: Bytes) -> anyhow::Result<String> {
        let response = refuse(self.send(method, path, Some("application/json"), body).await?).await?;
        Ok(String::from_utf8_lossy(&read_whole(response).await?).into_owned())
    }

    /// Opens a stream of bytes.
    pub(super) async fn stream(&self, path: &str) -> anyhow::Result<Incoming> {
        Ok(self.download(path).await?.into_body())
    }

    /// Asks for something to be done, opens the stream of JSON that tells how it goes.
    pub(super) async fn follow<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<Lines<T>> {
        let response =
            self.send(Method::POST, path, Some("application/json"), serde_json::to_vec(body)?.into()).await?;
        let body = refuse(response).await?.into_body();
        Ok(Lines { body, buffer: BytesMut::new(), values: PhantomData })
    }

    /// Opens a stream of events.
    pub(super) async fn events(&self, path: &str) -> anyhow::Result<Events> {
        self.lines(path).await
    }

    /// Opens a stream of JSON, one value per line.
    pub(super) async fn lines<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Lines<T>> {
        Ok(Lines { body: self.stream(path).await?, buffer: BytesMut::new(), values: PhantomData })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> anyhow::Result<Response<Incoming>> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, self.host());
        if let Some(content_type) = content_type {
            request = request.header(CONTENT_TYPE, content_type);
        }
        self.exchange(request.body(Full::new(body))?).await
    }

    async fn exchange<B>(&self, mut request: Request<B>) -> anyhow::Result<Response<Incoming>>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: std::error::Error + Send + Sync,
    {
        if let Some(value) = self.authorization().await? {
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        self.deliver(request).await
    }

    async fn deliver<B>(&self, request: Request<B>) -> anyhow::Result<Response<Incoming>>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: std::error::Error + Send + Sync,
    {
        let no_answer = || format!("the server at {self} does not answer");
        match &self.place {
            Place::Tcp(authority) => {
                let stream = TcpStream::connect(authority).await.with_context(no_answer)?;
                // A server behind TLS answers with an alert of TLS (RFC 8446, 6).
                exchange(stream, request).await.map_err(|error| match error.downcast_ref::<hyper::Error>() {
                    Some(broken) if broken.is_parse() => {
                        anyhow!("what answers at {self} does not speak HTTP: try https://{authority}")
                    }
                    _ => error.context(no_answer()),
                })
            }
            Place::Tls(authority) => {
                let stream = TcpStream::connect(authority).await.with_context(no_answer)?;
                let stream = secured(stream, authority).await.with_context(no_answer)?;
                exchange(stream, request).await.with_context(no_answer)
            }
            Place::Unix(path) => {
                let stream = connect_unix(path).await.with_context(no_answer)?;
                exchange(stream, request).await.with_context(no_answer)
            }
        }
    }

    fn host(&self) -> &str {
        match &self.place {
            Place::Tcp(authority) | Place::Tls(authority) => authority,
            Place::Unix(_) => "localhost",
        }
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.place {
            Place::Tcp(authority) => write!(f, "http://{authority}"),
            Place::Tls(authority) => write!(f, "https://{authority}"),
            Place::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

fn bearer(token: &str) -> anyhow::Result<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).context("the token cannot be sent")?;
    value.set_sensitive(true);
    Ok(value)
}

fn is_loopback(authority: &str) -> bool {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// TLS, vouched for by whom the command line names, else by whom the system trusts.
async fn secured(stream: TcpStream, authority: &str) -> anyhow::Result<TlsStream<TcpStream>> {
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).with_context(|| format!("`{host}` is no name of a host"))?;
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?;
    let config = match SHOWN.get().and_then(|shown| shown.ca.as_ref()) {
        None => builder.with_platform_verifier()?,
        Some(path) => builder.with_root_certificates(roots_in(path)?),
    };
    let connector = TlsConnector::from(Arc::new(config.with_no_client_auth()));
    let hint = "its certificate is not trusted: --ca FILE, or WHARF_CA, names who vouches for it, such as the farm's own ca.pem";
    connector.connect(name, stream).await.map_err(|error| {
        let is_of_trust = error.to_string().contains("certificate");
        let error = anyhow::Error::new(error);
        if is_of_trust { error.context(hint) } else { error }
    })
}

fn roots_in(path: &Path) -> anyhow::Result<rustls::RootCertStore> {
    let cannot = || format!("cannot read certificates from `{}`", path.display());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).with_context(cannot)? {
        roots.add(certificate.with_context(cannot)?).with_context(cannot)?;
    }
    if roots.is_empty() {
        bail!("no certificate is in `{}`", path.display());
    }
    Ok(roots)
}

async fn connect_unix(path: &Path) -> std::io::Result<UnixStream> {
    UnixStream::connect(path).await
}

async fn exchange<S, B>(stream: S, request: Request<B>) -> anyhow::Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: std::error::Error + Send + Sync,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?)
}

/// Turns a refusal into an error with the server's own words.
async fn refuse(response: Response<Incoming>) -> anyhow::Result<Response<Incoming>> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = read_whole(response).await?;
    let words = match serde_json::from_slice::<ErrorWire>(&body) {
        Ok(error) => error.error,
        Err(_) => String::from_utf8_lossy(&body).trim().to_owned(),
    };
    Err(Refused { status, words }.into())
}

/// What the server said no to, and why.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
pub(super) struct Refused {
    /// The HTTP status.
    pub(super) status: StatusCode,
    words: String,
}

async fn read_json<T: DeserializeOwned>(response: Response<Incoming>) -> anyhow::Result<T> {
    let body = read_whole(response).await?;
    serde_json::from_slice(&body).context("the server's answer is not what this version of wharf understands")
}

async fn read_whole(response: Response<Incoming>) -> anyhow::Result<Bytes> {
    let limited = http_body_util::Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    let body = limited.collect().await.map_err(|error| anyhow::anyhow!("the server's answer broke off: {error}"))?;
    Ok(body.to_bytes())
}

/// A job's event stream, line by line.
pub(super) type Events = Lines<EventWire>;

/// A stream of JSON, line by line.
pub(super) struct Lines<T> {
    body: Incoming,
    buffer: BytesMut,
    values: PhantomData<T>,
}

impl<T: DeserializeOwned> Lines<T> {
    /// The next value; `None` when there are no more. Safe to give up between two calls.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<T>> {
        loop {
            while let Some(line) = take_line(&mut self.buffer) {
                if !line.is_empty() {
                    return serde_json::from_slice(&line)
                        .map(Some)
                        .context("the server sent an event that this version does not know");
                }
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                bail!("the server sent a line of more than {LINE_BYTES_MAX} bytes");
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            if let Ok(data) = frame.context("the connection to the server broke")?.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

fn take_line(buffer: &mut BytesMut) -> Option<BytesMut> {
    let end = buffer.iter().position(|byte| *byte == b'\n')?;
    let mut line = buffer.split_to(end + 1);
    line.truncate(end);
    Some(line)
}

/// A value inside a query (RFC 3986 section 2.3: unreserved characters stay).
pub(super) fn in_query(value: &str) -> String {
    let mut encoded = String::new();
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_an_url_an_authority_or_a_path() {
        let tcp = |text: &str| Place::Tcp(text.into());
        assert_eq!(Place::parse("http://127.0.0.1:8420/").unwrap(), tcp("127.0.0.1:8420"));
        assert_eq!(Place::parse("http://farm.example").unwrap(), tcp("farm.example:80"));
        assert_eq!(Place::parse("[::1]:8420").unwrap(), tcp("[::1]:8420"));
        assert_eq!(Place::parse("/run/wharf.sock").unwrap(), Place::Unix("/run/wharf.sock".into()));
        assert_eq!(Place::parse("unix:wharf.sock").unwrap(), Place::Unix("wharf.sock".into()));
        assert_eq!(Place::parse("https://farm.example").unwrap(), Place::Tls("farm.example:443".into()));
        assert!(Place::parse("http://a/b").unwrap_err().to_string().contains("HOST:PORT"));
        assert!(Place::parse("https://me:secret@farm").unwrap_err().to_string().contains("WHARF_TOKEN"));
        assert!(is_loopback("127.0.0.1:8420") && is_loopback("[::1]:1") && !is_loopback("farm.example:80"));
    }

    #[test]
    fn a_stream_is_cut_into_lines_wherever_it_was_cut_before() {
        let mut buffer = BytesMut::from(&b"{}\n\n{\"a\""[..]);
        assert_eq!(take_line(&mut buffer).unwrap(), "{}");
        assert_eq!(take_line(&mut buffer).unwrap(), "");
        assert_eq!(take_line(&mut buffer), None);
        buffer.extend_from_slice(b":1}\n");
        assert_eq!(take_line(&mut buffer).unwrap(), "{\"a\":1}");
    }

    #[test]
    fn a_value_in_a_query_cannot_become_another_parameter() {
        assert_eq!(in_query("a b&dut=é"), "a%20b%26dut%3D%C3%A9");
    }
}
