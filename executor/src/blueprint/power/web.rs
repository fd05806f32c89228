//! HTTP to units that speak it: one request, its whole answer.
//!
//! ```text
//!  Request ──────────────► 401 with a challenge? ── answered once, by digest (RFC 7616) or basic (RFC 7617) ─► Answer { status, text }
//!  what goes wrong names the unit's host and never the URL: some units want their password in it
//! ```
//! Units are on the lab's network: no proxy of the environment, no redirect to somewhere else.

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http_auth::{PasswordClient, PasswordParams};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, Method, StatusCode, Url};
use schemars::JsonSchema;
use serde::Deserialize;

/// One request with its answer: a plug on a bad wireless network answers after some seconds. Twice this, for a challenge, is still half of
/// what one call to a unit may take.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// Read of an answer. The longest of the units here, a Shelly's whole status, has 3 KiB; a page of a web server's own has some more.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// Shown of an answer in an error.
const SHOWN_CHARACTERS_MAX: usize = 120;

/// What is asked of a unit.
#[derive(Clone)]
pub(super) struct Request {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: String,
    /// User and password, for when the unit asks.
    pub login: Option<(String, String)>,
    pub certificate: Certificate,
}

/// What it said.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub text: String,
}

/// Whether an `https` unit must be the one that it says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Certificate {
    /// Its certificate is checked against the system's authorities.
    #[default]
    Checked,
    /// Any certificate will do: whoever is on the network between may read the password.
    Any,
}

impl Request {
    /// A GET of this URL.
    pub(super) fn get(url: Url) -> Self {
        Request {
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            body: String::new(),
            login: None,
            certificate: Certificate::Checked,
        }
    }

    /// Asks, and once more with the login if the unit wants one. An error is a sentence about the unit.
    pub(super) async fn send(&self) -> Result<Answer, String> {
        let asking = async {
            let (answer, challenges) = self.ask(None).await?;
            let Some((user, password)) = self.login.as_ref().filter(|_| answer.status == StatusCode::UNAUTHORIZED)
            else {
                return Ok(answer);
            };
            let credentials = self.respond(&challenges, user, password)?;
            self.ask(Some(credentials)).await.map(|(answer, _)| answer)
        };
        let late = || format!("{} did not answer within {} s", self.host(), 2 * REQUEST_TIME.as_secs());
        // The time of both requests: each has its own limit.
        tokio::time::timeout(2 * REQUEST_TIME, asking).await.unwrap_or_else(|_| Err(late()))
    }

    /// Who is asked.
    pub(super) fn host(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        self.url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    async fn ask(&self, credentials: Option<HeaderValue>) -> Result<(Answer, HeaderMap), String> {
        let mut asked =
            client(self.certificate)?.request(self.method.clone(), self.url.clone()).headers(self.headers.clone());
        if !self.body.is_empty() {
            asked = asked.body(Bytes::from(self.body.clone()));
        }
        if let Some(credentials) = credentials {
            asked = asked.header(AUTHORIZATION, credentials);
        }
        let failed = |error: reqwest::Error| format!("{}: {}", self.host(), innermost(error.without_url()));
        let response = asked.send().await.map_err(failed)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let (mut bytes, mut chunks) = (Vec::new(), response.bytes_stream());
        while let Some(chunk) = chunks.next().await {
            bytes.extend_from_slice(&chunk.map_err(failed)?);
            if bytes.len() > ANSWER_BYTES_MAX {
                return Err(format!("{} answered more than {} KiB", self.host(), ANSWER_BYTES_MAX / 1024));
            }
        }
        Ok((Answer { status, text: String::from_utf8_lossy(&bytes).into_owned() }, headers))
    }

    fn respond(&self, headers: &HeaderMap, user: &str, password: &str) -> Result<HeaderValue, String> {
        let mut challenges = PasswordClient::builder();
        for challenge in headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()) {
            challenges = challenges.challenges(challenge);
        }
        let failed = |why: String| format!("{} asks for a login in a way that is not known: {why}", self.host());
        let mut client = challenges.build().map_err(failed)?;
        let uri = match self.url.query() {
            Some(query) => format!("{}?{query}", self.url.path()),
            None => self.url.path().to_owned(),
        };
        let (method, body) = (self.method.as_str(), self.body.as_bytes());
        let parameters = PasswordParams { username: user, password, uri: &uri, method, body: Some(body) };
        let credentials = client.respond(&parameters).map_err(failed)?;
        let mut value = HeaderValue::try_from(credentials).map_err(|error| failed(error.to_string()))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl Answer {
    /// The text of an answer that says yes, or what is wrong with the login or the request.
    pub(super) fn accepted(self, host: &str) -> Result<String, String> {
        match self.status {
            status if status.is_success() => Ok(self.text),
            StatusCode::UNAUTHORIZED => {
                Err(format!("{host} refuses the login: give `user` and `password` in the farm file"))
            }
            status => Err(format!("{host} answered {status}: {}", shown(&self.text))),
        }
    }
}

/// An answer on one line, cut short.
pub(super) fn shown(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN_CHARACTERS_MAX) {
        _ if line.is_empty() => "nothing".to_owned(),
        Some((end, _)) => format!("`{}…`", &line[..end]),
        None => format!("`{line}`"),
    }
}

/// The URL of a unit that the farm file names by its host, with or without a port.
pub(super) fn url(host: &str, path: &str) -> Result<Url, String> {
    let host = match host.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => host.to_owned(),
    };
    let url =
        Url::parse(&format!("http://{host}{path}")).map_err(|error| format!("`{host}` is not a host: {error}"))?;
    let extra = url.path() != path.split('?').next().unwrap_or_default() || !url.username().is_empty();
    if extra { Err(format!("`{host}` is not a host")) } else { Ok(url) }
}

/// One client for all units: making one reads the system's certificates.
fn client(certificate: Certificate) -> Result<&'static Client, String> {
    static CHECKED: LazyLock<Result<Client, String>> = LazyLock::new(|| make(Certificate::Checked));
    static ANY: LazyLock<Result<Client, String>> = LazyLock::new(|| make(Certificate::Any));
    let client = match certificate {
        Certificate::Checked => &*CHECKED,
        Certificate::Any => &*ANY,
    };
    client.as_ref().map_err(String::clone)
}

fn make(certificate: Certificate) -> Result<Client, String> {
    // Refuses when the process has a provider already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = || {
        let builder = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(REQUEST_TIME)
            // Plugs have room for a handful of connections, and close them without a word.
            .pool_max_idle_per_host(0)
            .user_agent(concat!("wharfinger/", env!("CARGO_PKG_VERSION")));
        match certificate {
            Certificate::Checked => builder,
            Certificate::Any => builder.tls_danger_accept_invalid_certs(true),
        }
    };
    // A host without any certificates of authorities can still speak plain HTTP.
    let client = builder().build().or_else(|_| builder().tls_certs_only([]).build());
    client.map_err(|error| format!("no HTTP client can be made: {error}"))
}

/// The last cause: `Connection refused`, where the first says that an error occurred.
pub(super) fn innermost(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("no answer within {} s", REQUEST_TIME.as_secs());
    }
    let mut cause: &dyn std::error::Error = &error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
