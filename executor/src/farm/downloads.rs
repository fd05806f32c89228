//! What is fetched for jobs and people: with whose view of the network, and what is written down when it leads where theirs does not.
//!
//! ```text
//!  Submission.reach ── judged, unless an administrator hands it in ─► Prepared ─► Downloads ─► the gateway's cache
//!  a description's URL ── Descriptions ─────────────────────────────────────────────────────► the gateway's fetcher, and not kept
//!                                                       denied ──► the job's log or the answer, and AuditTrail ──► audit.log
//! ```

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use gateway::content::ContentError;
use gateway::content::cache::{Cache, Cached};
use gateway::content::reach::{Failed, Fetcher, Reach, Schemes};
use gateway::egress::Fetching;
use reqwest::Url;

use super::Farm;
use super::egress::AuditTrail;
use crate::config::{FarmConfig, JobUrls};

/// What the farm lets be fetched for those who may submit.
pub(super) fn fetching(config: &FarmConfig) -> Fetching {
    let own_images = config.job_variables.get("images_url").and_then(|url| format!("{url}/").parse().ok());
    Fetching {
        trusted: config.downloads.trusted.clone(),
        own_images: own_images.into_iter().collect(),
        private_networks: config.downloads.private_networks.clone(),
    }
}

/// The downloads of one job. Cheap to clone.
#[derive(Clone)]
pub(super) struct Downloads {
    cache: Cache,
    reach: Reach,
    trail: Arc<AuditTrail>,
}

impl Downloads {
    /// With this view of the network; what is denied is told to the trail.
    pub(super) fn new(cache: &Cache, reach: Reach, trail: &Arc<AuditTrail>) -> Downloads {
        Downloads { cache: cache.clone(), reach, trail: Arc::clone(trail) }
    }

    /// Begins a download, or joins one.
    pub(super) fn fetch(&self, url: &str) -> Cached {
        self.cache.fetch_as(url, self.reach)
    }

    /// Begins one for which nobody here waits.
    pub(super) fn fetch_and_watch(&self, url: &str) -> Cached {
        let (cached, downloads) = (self.fetch(url), self.clone());
        let watched = cached.clone();
        tokio::spawn(async move {
            if let Err(error) = watched.ready().await {
                downloads.note(&error);
            }
        });
        cached
    }

    /// Writes a line if this is a download that was denied.
    pub(super) fn note(&self, error: &ContentError) {
        if let ContentError::Denied { url, reason } = error {
            self.trail.write(&fetch_of(url), "the farm", reason);
        }
    }

    /// Where downloads are kept.
    pub(super) fn cache(&self) -> &Cache {
        &self.cache
    }
}

/// Without its query, which may have a secret.
fn fetch_of(url: &str) -> String {
    format!("fetch {}", url.split(['?', '#']).next().unwrap_or_default())
}

/// Fetches job descriptions that somebody names by URL.
pub struct Descriptions {
    fetcher: Fetcher,
    urls: JobUrls,
    trail: Option<AuditTrail>,
}

impl Farm {
    /// For whoever hands in jobs by URL; who answers him writes down himself what was denied.
    pub fn descriptions(&self) -> Descriptions {
        let fetcher = self.gateway.cache().fetcher().clone();
        Descriptions { fetcher, urls: self.submission().job_urls, trail: None }
    }

    /// For `who`, in the name of `subject`: what is denied is written down here.
    pub fn descriptions_for(&self, who: String, subject: &str) -> Descriptions {
        Descriptions { trail: Some(AuditTrail::new(&self.audit, who, subject)), ..self.descriptions() }
    }
}

impl Descriptions {
    /// Whether the farm takes them from `http://`, too.
    pub fn urls(&self) -> JobUrls {
        self.urls
    }

    /// Where a program that fetches by itself may connect to for this URL; `None`: to any address that it has.
    pub async fn addresses(&self, url: &Url) -> Result<Option<Vec<IpAddr>>, Failed> {
        let judged = self.fetcher.addresses(url, Reach::Judged).await;
        self.note(url.as_str(), judged).map(|all| all.map(|all| all.into_iter().map(|one| one.ip()).collect()))
    }

    /// Where a URL leads in the end, which is asked; not what is there.
    pub async fn end_of(&self, url: &Url) -> Result<Url, Failed> {
        let got = self.fetcher.get(url, &Default::default(), Schemes::Any, Reach::Judged).await;
        self.note(url.as_str(), got).map(|response| response.url().clone())
    }

    fn note<T>(&self, url: &str, got: Result<T, Failed>) -> Result<T, Failed> {
        if let (Err(Failed::Denied(reason)), Some(trail)) = (&got, &self.trail) {
            trail.write(&fetch_of(url), "the farm", reason);
        }
        got
    }

    /// The bytes of a description.
    pub async fn get(&self, url: &str, reach: Reach, bytes_max: usize) -> Result<Bytes, Failed> {
        let parsed = url.parse().map_err(|error| Failed::Wrong(format!("it is not a URL: {error}")))?;
        let schemes = match self.urls {
            JobUrls::HttpsOnly => Schemes::Https,
            JobUrls::HttpToo => Schemes::Any,
        };
        let got = self.fetcher.get(&parsed, &Default::default(), schemes, reach).await;
        let response = self.note(url, got)?.error_for_status()?;
        let (mut bytes, mut chunks) = (Vec::new(), response.bytes_stream());
        while let Some(chunk) = chunks.next().await {
            bytes.extend_from_slice(&chunk?);
            if bytes.len() > bytes_max {
                return Err(Failed::Wrong(format!("it has more than {bytes_max} bytes")));
            }
        }
        Ok(bytes.into())
    }
}
