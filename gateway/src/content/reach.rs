//! What is fetched over HTTP in somebody's name, and where that may lead: the server asks with its own view of the network, which is more than
//! everybody who may submit a job is to have.
//!
//! ```text
//!  URL ─┬─ Reach::Everywhere, or a place that the farm names ──────────────► the open client ────────────────────────┐
//!       └─ else: an address in it is judged ─► the judged client, whose resolver leaves out what may not be reached ─┤
//!          ▲                                                                                                         ▼
//!          └── its place (HOPS_MAX times) ◄── a redirect ◄────────────────────────────────────────────────────── Response
//! ```
//! A name is judged where it is resolved for a connection, so what is judged is what is connected to. Where the environment names a proxy,
//! names are that proxy's to resolve, and to judge.

use core::net::{IpAddr, SocketAddr};
use std::error::Error;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{HeaderMap, LOCATION};
use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder, Response, StatusCode, Url};

use super::cache::{Route, client};
use super::download::causes;
use crate::egress::{Denial, Fetching, Network};

/// As many redirects as browsers and reqwest follow are twenty and ten; a release of a forge takes two.
const HOPS_MAX: usize = 10;

/// Whose view of the network something is fetched with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// That of somebody who may submit, and no more: where it leads is judged.
    #[default]
    Judged,
    /// The server's own: who asks may do everything here.
    Everywhere,
}

/// Whether `http://` will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schemes {
    /// `https://` only, redirects included.
    Https,
    /// Both.
    Any,
}

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// It leads to where who asks may not.
    #[error("{0}")]
    Denied(String),
    /// What is asked for, or where a redirect leads, is nothing that can be asked.
    #[error("{0}")]
    Wrong(String),
    /// No connection, or no answer.
    #[error("{}", causes(.0))]
    Request(#[from] reqwest::Error),
}

/// The addresses of the farm's host and of its DUTs, as they are at this moment.
pub type OwnNetworks = Arc<dyn Fn() -> Vec<Network> + Send + Sync>;

/// Fetches. Cheap to clone.
#[derive(Clone)]
pub struct Fetcher {
    open: Client,
    judged: Client,
    judge: Judge,
}

impl Fetcher {
    /// Nothing is trusted before [`trust`](Self::trust) says what.
    pub fn new(route: Route, own: OwnNetworks) -> reqwest::Result<Fetcher> {
        let proxies = match route {
            Route::Environment => proxies(|name| std::env::var(name).ok()),
            Route::Direct => Vec::new(),
        };
        let judge = Judge { fetching: Arc::default(), own, proxies: proxies.into() };
        let resolver = Arc::new(judge.clone());
        let plain = |builder: ClientBuilder| builder.redirect(Policy::none());
        let judged = client(route, |builder| plain(builder).dns_resolver(Arc::clone(&resolver)))?;
        Ok(Fetcher { open: client(route, plain)?, judged, judge })
    }

    /// From now on this is what the farm lets its submitters fetch.
    pub fn trust(&self, fetching: Fetching) {
        *self.judge.fetching.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fetching);
    }

    /// The answer to GET at the end of all redirects.
    pub async fn get(
        &self,
        url: &Url,
        headers: &HeaderMap,
        schemes: Schemes,
        reach: Reach,
    ) -> Result<Response, Failed> {
        let mut url = url.clone();
        for _ in 0..=HOPS_MAX {
            if schemes == Schemes::Https && url.scheme() != "https" {
                return Err(Failed::Wrong(format!("only https:// is fetched here, and {} is not", shown(&url))));
            }
            let response = self.hop(&url, headers, reach).await?;
            match next(&response)? {
                Some(there) => url = there,
                None => return Ok(response),
            }
        }
        Err(Failed::Wrong(format!("more than {HOPS_MAX} redirects")))
    }

    /// The answer of just this URL, be it a redirect.
    pub async fn hop(&self, url: &Url, headers: &HeaderMap, reach: Reach) -> Result<Response, Failed> {
        let client = match reach {
            Reach::Everywhere => &self.open,
            Reach::Judged => self.client_for(url).await?,
        };
        let sent = client.get(url.clone()).headers(headers.clone()).send().await;
        sent.map_err(|error| match denial_in(&error) {
            Some(denial) => Failed::Denied(refusal(url, denial)),
            None => Failed::Request(error.without_url()),
        })
    }

    /// The addresses that somebody else may connect to for this URL, in our place; `None`: any that it has. A name that a proxy of the
    /// environment resolves may be unknown here.
    pub async fn addresses(&self, url: &Url, reach: Reach) -> Result<Option<Vec<SocketAddr>>, Failed> {
        if reach == Reach::Everywhere || self.judge.fetching().trusts(url) {
            return Ok(None);
        }
        self.client_for(url).await?;
        let (Some(name), None) = (url.host_str(), address_in(url)) else { return Ok(None) };
        match self.judge.addresses(name).await {
            Ok(addresses) => Ok(Some(addresses)),
            Err(error) => match error.downcast_ref() {
                Some(Denied(denial)) => Err(Failed::Denied(refusal(url, denial))),
                None if !self.judge.proxies.is_empty() => Ok(None),
                None => Err(Failed::Wrong(format!("{name}: {error}"))),
            },
        }
    }

    async fn client_for(&self, url: &Url) -> Result<&Client, Failed> {
        let fetching = self.judge.fetching();
        if fetching.trusts(url) {
            return Ok(&self.open);
        }
        // Names are for the resolver; an address is not resolved, and the URL has it in its plain form already (0x7f.1 is 127.0.0.1).
        if let Some(address) = address_in(url) {
            let own = self.judge.own_networks().await;
            fetching.may_reach(address, &own).map_err(|denial| Failed::Denied(refusal(url, &denial)))?;
        }
        Ok(&self.judged)
    }
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("fetcher")
    }
}

fn refusal(url: &Url, denial: &Denial) -> String {
    let place = format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default());
    format!("{place} is not fetched for jobs: {denial}; an administrator may name it in `downloads.trusted_endpoints`")
}

fn address_in(url: &Url) -> Option<IpAddr> {
    url.host_str()?.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// Where a redirect leads (RFC 9110 15.4); a Location that is none is left to who asked.
fn next(response: &Response) -> Result<Option<Url>, Failed> {
    let is_one = matches!(
        response.status(),
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    );
    let location = response.headers().get(LOCATION).filter(|_| is_one).and_then(|value| value.to_str().ok());
    let Some(location) = location else { return Ok(None) };
    let there =
        response.url().join(location).map_err(|error| Failed::Wrong(format!("a redirect to nowhere: {error}")))?;
    match there.scheme() {
        "http" | "https" => Ok(Some(there)),
        other => Err(Failed::Wrong(format!("a redirect to `{other}:`; only http and https are followed"))),
    }
}

/// A URL without user name and password: it goes into logs.
pub(super) fn shown(url: &Url) -> String {
    let mut shown = url.clone();
    // Neither can fail: an URL without a host has no user either.
    let _ = shown.set_username("");
    let _ = shown.set_password(None);
    shown.to_string()
}

/// The hosts that the environment names as proxies: who sends everything through them may reach them.
fn proxies(variable: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let names = ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let host = |text: String| {
        let url = Url::parse(&text).ok().filter(Url::has_host).or_else(|| Url::parse(&format!("http://{text}")).ok());
        url.and_then(|url| url.host_str().map(str::to_owned))
    };
    names.into_iter().filter_map(variable).filter_map(host).collect()
}

#[derive(Clone)]
struct Judge {
    fetching: Arc<RwLock<Arc<Fetching>>>,
    own: OwnNetworks,
    proxies: Arc<[String]>,
}

impl Judge {
    fn fetching(&self) -> Arc<Fetching> {
        Arc::clone(&self.fetching.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Listing addresses asks the kernel, in another network namespace at times.
    async fn own_networks(&self) -> Vec<Network> {
        let own = Arc::clone(&self.own);
        // A task that panicked leaves nothing known of the host: it reaches nothing then, rather than itself.
        let everything =
            || [IpAddr::from([0; 4]), IpAddr::from([0; 16])].map(|address| Network::new(address, 0)).to_vec();
        tokio::task::spawn_blocking(move || own()).await.unwrap_or_else(|_| everything())
    }

    async fn addresses(&self, name: &str) -> Result<Vec<SocketAddr>, Box<dyn Error + Send + Sync>> {
        let found: Vec<SocketAddr> = tokio::net::lookup_host((name, 0)).await?.collect();
        if self.proxies.iter().any(|proxy| proxy == name) {
            return Ok(found);
        }
        let (own, fetching) = (self.own_networks().await, self.fetching());
        let (mut allowed, mut denial) = (Vec::new(), None);
        for address in found {
            match fetching.may_reach(address.ip(), &own) {
                Ok(()) => allowed.push(address),
                Err(denied) => denial = denial.or(Some(denied)),
            }
        }
        match denial {
            Some(denial) if allowed.is_empty() => Err(Box::new(Denied(denial))),
            _ => Ok(allowed),
        }
    }
}

impl Resolve for Judge {
    fn resolve(&self, name: Name) -> Resolving {
        let judge = self.clone();
        Box::pin(async move { Ok(Box::new(judge.addresses(name.as_str()).await?.into_iter()) as Addrs) })
    }
}

/// A denial on its way through the HTTP client.
#[derive(Debug)]
struct Denied(Denial);

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Denied {}

fn denial_in(error: &reqwest::Error) -> Option<&Denial> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(Denied(denial)) = error.downcast_ref() {
            return Some(denial);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
#[path = "reach_tests.rs"]
mod tests;
