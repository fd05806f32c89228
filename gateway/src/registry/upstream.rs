//! Questions to registries elsewhere: in whose name, where their answers may lead us, and when they are left alone.
//!
//! ```text
//!  ask ─► rests? ─ yes ──────────────────────────────────────────────────────────────────► Failure::Away
//!    └─► request, with the token that is known ─┬─ 401 ─► challenge.rs ─► token from its realm ─► again, once
//!                                               ├─ 301 … 308 ─► judged ─► there, without our name and password (5 times at most)
//!                                               ├─ 429, 5xx, no answer ─► the upstream rests ─► Failure::Away
//!                                               ├─ 4xx ─► Failure::Denied
//!                                               └─ 2xx ─► Response
//! ```
//! The farm file names the upstreams, so that they may be anywhere. Where *they* lead (a token's realm, the store behind a redirect) is
//! judged as what jobs connect to is (egress.rs): never the farm itself, and what is private only with the farm's word.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT, HeaderMap, LOCATION, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Certificate, Client, Method, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::time::timeout;

use super::ask::{DOCKER, Repository};
use super::challenge::{Challenge, challenge};
use super::index::Who;
use super::{Login, Scheme, Upstream};
use crate::content::cache::{Route, client};
use crate::egress::{Egress, Network};
use crate::outside::Outside;

/// 30 s until the head of an answer: registries fetch cold objects, and a client behind us waits a minute and longer.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// 10 s: while a registry does not answer, each request would wait for it again.
const REST_TIME: Duration = Duration::from_secs(10);
/// A minute at most, whatever it asks for: rate limits count hours, and a job may have a right of its own.
const REST_TIME_MAX: Duration = Duration::from_secs(60);
/// 5 redirects: registries have one, to their store.
const REDIRECTS_MAX: usize = 5;
/// Of a token's answer: tokens have a few KiB.
const TOKEN_BYTES_MAX: usize = 64 * 1024;
/// A token without `expires_in` is good for 60 s (distribution's token specification).
const TOKEN_TIME: Duration = Duration::from_secs(60);

/// Why an upstream gave nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It does not give it, and says so by this status.
    Denied { status: u16, reason: String },
    /// It cannot be asked now.
    Away { reason: String },
}

/// In whose name an upstream is asked.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    pub(super) upstream: Upstream,
    pub(super) who: Who,
    pub(super) login: Option<Login>,
}

/// A question.
#[derive(Clone, Debug)]
pub(super) struct Question<'a> {
    pub(super) method: Method,
    pub(super) repository: &'a Repository,
    /// Behind the repository's name, such as `manifests/latest`.
    pub(super) path: String,
    /// The first byte that is wanted.
    pub(super) from: u64,
    /// The media types that are understood.
    pub(super) accept: &'a str,
}

/// Certificates of authorities, in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Authority(Arc<[u8]>);

impl Authority {
    /// Of a file's text.
    pub fn of(pem: &[u8]) -> Result<Authority, String> {
        let all = Certificate::from_pem_bundle(pem).map_err(|error| error.to_string())?;
        if all.is_empty() { Err("it has no certificate".to_owned()) } else { Ok(Authority(pem.into())) }
    }
}

/// What asks.
pub(super) struct Upstreams {
    /// By the authority that is trusted beside those of the host.
    clients: Mutex<HashMap<Option<Authority>, Clients>>,
    route: Route,
    guard: Guard,
    tokens: Mutex<HashMap<(Who, String), Token>>,
    rests: Mutex<HashMap<String, (Instant, String)>>,
}

#[derive(Clone)]
struct Clients {
    /// For the upstreams that the farm file names.
    named: Client,
    /// For wherever they lead.
    elsewhere: Client,
}

#[derive(Clone)]
struct Token {
    header: String,
    until: Instant,
}

impl Upstreams {
    /// With the host's certificates and, where its environment names one, through its proxy.
    pub(super) fn new(outside: Arc<dyn Outside>, route: Route) -> reqwest::Result<Upstreams> {
        let guard = Guard { outside, private_networks: Arc::default() };
        let usual = Clients::trusting(None, route, &guard)?;
        let clients = Mutex::new(HashMap::from([(None, usual)]));
        Ok(Upstreams { clients, route, guard, tokens: Mutex::default(), rests: Mutex::default() })
    }

    /// The private networks that upstreams may lead to.
    pub(super) fn set_private_networks(&self, networks: Vec<Network>) {
        *self.guard.private_networks.lock().unwrap_or_else(PoisonError::into_inner) = networks;
    }

    /// What names and passwords were good for is asked again.
    pub(super) fn forget(&self) {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.rests.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).retain(|authority, _| authority.is_none());
    }

    /// The answer to `question`.
    pub(super) async fn ask(&self, asker: &Asker, question: &Question<'_>) -> Result<Response, Failure> {
        let host = asker.upstream.host.clone();
        if let Some(reason) = self.rest_of(&host) {
            return Err(Failure::Away { reason });
        }
        let answered = self.ask_now(asker, question).await;
        if let Err((Failure::Away { reason }, rest)) = &answered {
            let until = Instant::now() + *rest;
            self.rests.lock().unwrap_or_else(PoisonError::into_inner).insert(host, (until, reason.clone()));
        }
        answered.map_err(|(failure, _)| failure)
    }

    fn rest_of(&self, host: &str) -> Option<String> {
        let mut rests = self.rests.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        rests.retain(|_, (until, _)| *until > now);
        rests.get(host).map(|(_, reason)| reason.clone())
    }

    async fn ask_now(&self, asker: &Asker, question: &Question<'_>) -> Result<Response, (Failure, Duration)> {
        let host = &asker.upstream.host;
        let scope = format!("repository:{}:pull", question.repository.name);
        let key = (asker.who.clone(), format!("{host} {scope}"));
        let known = self.token(&key);
        let mut response = self.send(asker, question, known.as_deref()).await.map_err(|why| (why, REST_TIME))?;
        // Its own word alone: the store that it leads to does not say where its names and passwords go.
        if response.status() == StatusCode::UNAUTHORIZED && asker.upstream.is_at(response.url()) {
            let wanted = self.authorization(asker, &response, &scope).await.map_err(|why| (why, REST_TIME))?;
            if let Some(token) = wanted {
                response = self.send(asker, question, Some(&token.header)).await.map_err(|why| (why, REST_TIME))?;
                if response.status() != StatusCode::UNAUTHORIZED {
                    self.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(key, token);
                }
            }
        }
        match response.status() {
            status if status.is_success() => Ok(response),
            status if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
                Err((Failure::Away { reason: format!("{host} answered {status}") }, rest_wanted(response.headers())))
            }
            status => {
                let reason = format!("{host} answered {status}");
                Err((Failure::Denied { status: status.as_u16(), reason }, Duration::ZERO))
            }
        }
    }

    fn token(&self, key: &(Who, String)) -> Option<String> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        tokens.retain(|_, token| token.until > now);
        tokens.get(key).map(|token| token.header.clone())
    }

    /// What the upstream wants to see, as its 401 says; `None` where we have nothing to show.
    async fn authorization(&self, asker: &Asker, response: &Response, scope: &str) -> Result<Option<Token>, Failure> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenges: Vec<_> = headers.filter_map(|header| challenge(header.to_str().ok()?)).collect();
        match (challenges.into_iter().next(), &asker.login) {
            (Some(Challenge::Basic), Some(login)) => {
                Ok(Some(Token { header: login.basic(), until: Instant::now() + TOKEN_TIME }))
            }
            (Some(Challenge::Bearer { realm, service, scope: wanted }), login) => {
                let wanted = wanted.unwrap_or_else(|| scope.to_owned());
                self.fetch_token(asker, (&realm, service.as_deref(), &wanted), login.as_ref()).await.map(Some)
            }
            (Some(Challenge::Basic) | None, _) => Ok(None),
        }
    }

    async fn fetch_token(
        &self,
        asker: &Asker,
        (realm, service, scope): (&str, Option<&str>, &str),
        login: Option<&Login>,
    ) -> Result<Token, Failure> {
        let host = &asker.upstream.host;
        let denied = |why: String| Failure::Denied { status: 502, reason: format!("{host} wants a token {why}") };
        let mut url = Url::parse(realm).map_err(|_| denied("from where there is nothing".to_owned()))?;
        url.query_pairs_mut().extend_pairs(service.map(|service| ("service", service))).append_pair("scope", scope);
        let client = self.client_for(&asker.upstream, &url).map_err(|why| denied(format!("from elsewhere: {why}")))?;
        let mut request = client.get(url.clone());
        if let Some(login) = login {
            request = request.header(reqwest::header::AUTHORIZATION, login.basic());
        }
        let place = url.host_str().unwrap_or_default();
        let away = |why: String| Failure::Away { reason: format!("{place} gives no token for {host}: {why}") };
        let answered = timeout(ANSWER_TIME, request.send()).await.map_err(|_| away("no answer".to_owned()))?;
        let response = answered.map_err(|error| away(causes(error)))?;
        match response.status() {
            status if status.is_success() => {}
            status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
                let reason = format!("{place} gives no token for {host}: it answered {status}");
                return Err(Failure::Denied { status: 401, reason });
            }
            status => return Err(away(format!("it answered {status}"))),
        }
        let bytes = body(response, TOKEN_BYTES_MAX).await.map_err(&away)?;
        let told: Told = serde_json::from_slice(&bytes).map_err(|_| away("its answer is no token".to_owned()))?;
        let token = told.token.or(told.access_token).ok_or_else(|| away("its answer has no token".to_owned()))?;
        // A tenth less, at least: it must be good still when it arrives.
        let lasts = told.expires_in.map_or(TOKEN_TIME, Duration::from_secs).min(Duration::from_secs(3600));
        Ok(Token { header: format!("Bearer {token}"), until: Instant::now() + lasts.mul_f64(0.9) })
    }

    /// One request, wherever it leads.
    async fn send(&self, asker: &Asker, question: &Question<'_>, token: Option<&str>) -> Result<Response, Failure> {
        let host = &asker.upstream.host;
        let away = |reason: String| Failure::Away { reason };
        let mut url = asker.upstream.base().and_then(|base| {
            base.join(&format!("/v2/{}/{}", question.repository.name, question.path)).map_err(|error| error.to_string())
        });
        for _ in 0..=REDIRECTS_MAX {
            let at = url.map_err(&away)?;
            let client = self.client_for(&asker.upstream, &at);
            let client = client.map_err(|why| away(format!("{host} leads to elsewhere: {why}")))?;
            let mut request = client.request(question.method.clone(), at.clone()).header(ACCEPT, question.accept);
            if question.from > 0 {
                request = request.header(RANGE, format!("bytes={}-", question.from));
            }
            if let Some(token) = token.filter(|_| asker.upstream.is_at(&at)) {
                request = request.header(reqwest::header::AUTHORIZATION, token);
            }
            let answered = timeout(ANSWER_TIME, request.send()).await;
            let answered = answered.map_err(|_| away(format!("{host} gave no answer within {ANSWER_TIME:?}")))?;
            let response = answered.map_err(|error| away(format!("{host}: {}", causes(error))))?;
            match next(&response) {
                Some(place) => url = at.join(&place).map_err(|error| format!("{host} leads to nowhere: {error}")),
                None => return Ok(response),
            }
        }
        Err(away(format!("{host} leads on and on")))
    }

    /// What may be used for `url`.
    fn client_for(&self, upstream: &Upstream, url: &Url) -> Result<Client, String> {
        let Clients { named, elsewhere } = self.clients_of(upstream)?;
        if upstream.is_at(url) {
            return Ok(named);
        }
        let place = url.host_str().unwrap_or_default();
        match url.scheme() {
            "https" => {}
            "http" if upstream.scheme == Scheme::Http => {}
            other => return Err(format!("{place}, by {other}")),
        }
        let bare = place.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse() {
            self.guard.judge(vec![SocketAddr::new(address, 0)])?;
        }
        Ok(elsewhere)
    }

    fn clients_of(&self, upstream: &Upstream) -> Result<Clients, String> {
        let mut all = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(clients) = all.get(&upstream.authority) {
            return Ok(clients.clone());
        }
        let made = Clients::trusting(upstream.authority.as_ref(), self.route, &self.guard).map_err(causes)?;
        all.insert(upstream.authority.clone(), made.clone());
        Ok(made)
    }
}

impl Clients {
    fn trusting(authority: Option<&Authority>, route: Route, guard: &Guard) -> reqwest::Result<Clients> {
        let all =
            authority.map(|authority| Certificate::from_pem_bundle(&authority.0)).transpose()?.unwrap_or_default();
        let plain = |builder: reqwest::ClientBuilder| {
            builder.redirect(reqwest::redirect::Policy::none()).tls_certs_merge(all.clone())
        };
        let resolver = Arc::new(guard.clone());
        Ok(Clients {
            named: client(route, plain)?,
            elsewhere: client(route, move |builder| plain(builder).dns_resolver(Arc::clone(&resolver)))?,
        })
    }
}

#[derive(Deserialize)]
struct Told {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Lets names lead where jobs may be let to.
#[derive(Clone)]
struct Guard {
    outside: Arc<dyn Outside>,
    private_networks: Arc<Mutex<Vec<Network>>>,
}

impl Guard {
    fn judge(&self, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, String> {
        let private_networks = self.private_networks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (egress, own) = (Egress { private_networks, ..Egress::default() }, self.outside.own());
        let mut denial = "it has no address".to_owned();
        let mut allowed = addresses;
        allowed.retain(|address| match egress.may_reach(address.ip(), &own) {
            Ok(()) => true,
            Err(denied) => {
                denial = denied.to_string();
                false
            }
        });
        if allowed.is_empty() { Err(denial) } else { Ok(allowed) }
    }
}

/// For reqwest, whose resolvers are values.
impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let found = guard.outside.resolve(name.as_str().to_owned(), 0).await?;
            let allowed = guard.judge(found).map_err(std::io::Error::other)?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

impl Upstream {
    /// Where its API is.
    fn base(&self) -> Result<Url, String> {
        // Docker's images are named after a host that has none of them.
        let host = if self.host == DOCKER { "registry-1.docker.io" } else { &self.host };
        let scheme = match self.scheme {
            Scheme::Https => "https",
            Scheme::Http => "http",
        };
        Url::parse(&format!("{scheme}://{host}/")).map_err(|error| format!("{}: {error}", self.host))
    }

    fn is_at(&self, url: &Url) -> bool {
        self.base().is_ok_and(|base| base.origin() == url.origin())
    }
}

/// The place that a redirect names.
fn next(response: &Response) -> Option<String> {
    let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let place = response.headers().get(LOCATION).filter(|_| is_redirect)?;
    place.to_str().ok().map(str::to_owned)
}

/// How long an upstream that has too many requests wants to be left alone.
fn rest_wanted(headers: &HeaderMap) -> Duration {
    let wanted = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    wanted.map_or(REST_TIME, Duration::from_secs).min(REST_TIME_MAX)
}

/// A small body, whole.
pub(super) async fn body(mut response: Response, bytes_max: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    loop {
        let chunk = timeout(ANSWER_TIME, response.chunk()).await;
        let chunk = chunk.map_err(|_| format!("no byte for {ANSWER_TIME:?}"))?.map_err(causes)?;
        let Some(chunk) = chunk else { return Ok(bytes) };
        if bytes.len() + chunk.len() > bytes_max {
            return Err(format!("more than {bytes_max} bytes"));
        }
        bytes.extend_from_slice(&chunk);
    }
}

/// An error's innermost causes; the URL in its message may have a signature in it.
pub(super) fn causes(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut innermost: &dyn std::error::Error = &error;
    while let Some(inner) = innermost.source() {
        innermost = inner;
    }
    innermost.to_string()
}
