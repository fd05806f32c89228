//! Clients for forges' servers.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use gateway::content::reach::Reach;
use reqwest::header::LOCATION;
use reqwest::{Client, Response, Url};

use crate::config::JobUrls;
use crate::farm::Descriptions;

/// A connection, handshakes included.
const CONNECT_TIME: Duration = Duration::from_secs(15);
/// A small file.
const FETCH_TIME: Duration = Duration::from_secs(30);
/// Hops of a download: an object store is one.
pub(super) const HOPS_MAX: usize = 5;

/// One that trusts whom the host trusts, and this authority; redirections are not followed.
pub(super) fn client(authority: Option<&Path>) -> Result<Client, String> {
    // Refuses when the process has a provider already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = || {
        Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIME)
            .user_agent(concat!("wharfinger ", env!("CARGO_PKG_VERSION")))
    };
    let with_authority = match authority {
        None => builder(),
        Some(path) => {
            let wrong = |what: String| format!("{}: {what}", path.display());
            let text = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
            let all = reqwest::Certificate::from_pem_bundle(&text).map_err(|error| wrong(error.to_string()))?;
            builder().tls_certs_merge(all)
        }
    };
    // A host without any certificates of authorities can still speak plain HTTP.
    let http = with_authority.build().or_else(|_| builder().tls_certs_only([]).build());
    http.map_err(|error| format!("no HTTP client can be made: {error}"))
}

/// The last cause: `Connection refused`, where the first says that an error occurred.
pub(super) fn said(base: &str, error: reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("{base} did not answer in time");
    }
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    format!("{base}: {cause}")
}

/// A whole answer of at most so many bytes.
pub(super) async fn whole_of(response: Response, bytes_max: usize) -> Result<Bytes, String> {
    let mut bytes = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        bytes.extend_from_slice(&chunk.map_err(|error| error.without_url().to_string())?);
        if bytes.len() > bytes_max {
            return Err(format!("it has more than {} MiB", bytes_max >> 20));
        }
    }
    Ok(bytes.into())
}

/// Fetches from any URL that the farm lets jobs be fetched from: from the forge at `base`, which the farm file names, with its own
/// certificates; from elsewhere as whoever may submit, and no more.
pub(super) async fn fetch(
    http: &Client,
    base: &str,
    url: &str,
    from: &Descriptions,
    bytes_max: usize,
) -> Result<Bytes, String> {
    let forge = Url::parse(base).map_err(|error| format!("`{base}` is not a URL: {error}"))?.origin();
    let mut url = Url::parse(url).map_err(|error| format!("`{url}` is not a URL: {error}"))?;
    for _ in 0..HOPS_MAX {
        if from.urls() == JobUrls::HttpsOnly && url.scheme() != "https" {
            return Err(format!(
                "a job is fetched by https only, and {url} is not (`listen.job_urls` of the farm file)"
            ));
        }
        if url.origin() != forge {
            let fetched = tokio::time::timeout(FETCH_TIME, from.get(url.as_str(), Reach::Judged, bytes_max)).await;
            let fetched = fetched.map_err(|_| format!("{url}: no answer within {FETCH_TIME:?}"))?;
            return fetched.map_err(|error| format!("{url}: {error}"));
        }
        let response = http.get(url.clone()).timeout(FETCH_TIME).send().await;
        let response = response.map_err(|error| format!("{url}: {}", error.without_url()))?;
        match location(&response).filter(|_| response.status().is_redirection()) {
            Some(next) => url = next,
            None if response.status().is_success() => {
                return whole_of(response, bytes_max).await.map_err(|error| format!("{url}: {error}"));
            }
            None => return Err(format!("{url} answered {}", response.status())),
        }
    }
    Err(format!("{url} sent us round in circles"))
}

/// Where a redirection leads.
pub(super) fn location(response: &Response) -> Option<Url> {
    let to = response.headers().get(LOCATION)?.to_str().ok()?;
    response.url().join(to.trim()).ok()
}
