//! The keys of the forges, fetched from where each says they are (OpenID Connect Discovery 1.0 section 4) and kept.
//!
//! ```text
//!  a token of issuer I, key K ─► K among I's keys that are kept, and younger than KEYS_AGE? ─► used
//!                                  └─ no ─► fetched before REFRESHES_MAX times within a minute? ─ no ─► <I>/.well-known/openid-configuration
//!                                             └─ yes ─► the kept ones decide                              └─► its jwks_uri ─► kept
//! ```
//! A forge that does not answer for a while is no reason to refuse: keys that are kept are used for KEYS_AGE_MAX.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use super::Refused;
use super::id_token::{Claims, Key, Unverified};
use crate::config::IssuerConfig;

/// A key that was withdrawn is believed for another hour at most.
const KEYS_AGE: Duration = Duration::from_secs(3600);
/// While the forge does not answer: as long as one night.
const KEYS_AGE_MAX: Duration = Duration::from_secs(12 * 3600);
/// Who makes up names of keys makes us ask the forge so often, and no more often.
const REFRESHES_MAX: usize = 6;
const REFRESHES_WITHIN: Duration = Duration::from_secs(60);
/// Both documents have some KiB.
const DOCUMENT_BYTES_MAX: usize = 256 * 1024;
/// Somebody waits for an answer.
const FETCH_TIME: Duration = Duration::from_secs(10);

/// The keys of all issuers, by their name.
#[derive(Default)]
pub(super) struct Issuers(std::sync::Mutex<BTreeMap<String, Arc<Mutex<Kept>>>>);

/// The keys of one issuer.
#[derive(Default)]
struct Kept {
    keys: Vec<Key>,
    fetched: Option<Instant>,
    refreshes: Vec<Instant>,
}

#[derive(Deserialize)]
struct Configuration {
    issuer: String,
    jwks_uri: String,
}

/// A key of another kind than we know must not hide the others.
#[derive(Deserialize)]
struct KeySet {
    keys: Vec<serde_json::Value>,
}

impl Issuers {
    /// What an id_token truly says, and by which issuer of ours.
    pub(super) async fn verified<'a>(
        &self,
        token: &str,
        issuers: &'a [IssuerConfig],
        now: Timestamp,
    ) -> Result<(Claims, &'a IssuerConfig), Refused> {
        let unverified = Unverified::of(token).map_err(Refused::Credential)?;
        let Some(issuer) = issuers.iter().find(|issuer| issuer.issuer == unverified.issuer) else {
            let known: Vec<_> = issuers.iter().map(|issuer| issuer.issuer.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Refused::Credential(format!("the id_token's issuer is not known here; known: {known}")));
        };
        let keys = self.keys_of(issuer, &unverified.key).await?;
        let claims = unverified.verified(&keys, issuer, now).map_err(Refused::Credential)?;
        Ok((claims, issuer))
    }

    async fn keys_of(&self, issuer: &IssuerConfig, wanted: &str) -> Result<Vec<Key>, Refused> {
        let kept = {
            let mut all = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            Arc::clone(all.entry(issuer.issuer.clone()).or_default())
        };
        // Held while it fetches: whoever else comes meanwhile wants the same.
        let mut kept = kept.lock().await;
        let age = kept.fetched.map(|fetched| fetched.elapsed());
        let is_known = kept.keys.iter().any(|key| key.kid == wanted);
        if is_known && age.is_some_and(|age| age < KEYS_AGE) || !kept.may_refresh() {
            return Ok(kept.keys.clone());
        }
        match tokio::time::timeout(FETCH_TIME, fetch(&issuer.issuer)).await {
            Ok(Ok(keys)) => {
                tracing::info!(issuer = issuer.issuer, keys = keys.len(), "the keys of an issuer were fetched");
                (kept.keys, kept.fetched) = (keys, Some(Instant::now()));
                Ok(kept.keys.clone())
            }
            failed => {
                let why = failed.map_or_else(
                    |_| format!("no answer within {} s", FETCH_TIME.as_secs()),
                    |result| result.err().unwrap_or_default(),
                );
                tracing::warn!(issuer = issuer.issuer, why, "the keys of an issuer cannot be fetched");
                if is_known && age.is_some_and(|age| age < KEYS_AGE_MAX) {
                    return Ok(kept.keys.clone());
                }
                Err(Refused::Unable(format!("cannot get the keys of {}: {why}; try again", issuer.issuer)))
            }
        }
    }
}

impl Kept {
    fn may_refresh(&mut self) -> bool {
        self.refreshes.retain(|at| at.elapsed() < REFRESHES_WITHIN);
        let may = self.refreshes.len() < REFRESHES_MAX;
        if may {
            self.refreshes.push(Instant::now());
        }
        may
    }
}

async fn fetch(issuer: &str) -> Result<Vec<Key>, String> {
    // Refuses when the process has a provider already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // The farm file says https, or http on the loopback. A redirect leads where the admin did not say.
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build();
    let client = client.map_err(|error| error.to_string())?;
    let address = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
    let configuration: Configuration = document(&client, &address).await?;
    if configuration.issuer != issuer {
        return Err(format!("{address} is of another issuer, `{}`", configuration.issuer));
    }
    let is_as_safe = configuration.jwks_uri.starts_with("https://") || issuer.starts_with("http://");
    if !is_as_safe {
        return Err(format!("its keys are at `{}`, which is not https", configuration.jwks_uri));
    }
    let set: KeySet = document(&client, &configuration.jwks_uri).await?;
    Ok(set.keys.into_iter().filter_map(|key| serde_json::from_value(key).ok()).collect())
}

async fn document<T: DeserializeOwned>(client: &reqwest::Client, address: &str) -> Result<T, String> {
    let told = |error: reqwest::Error| {
        let causes = std::iter::successors(std::error::Error::source(&error), |error| error.source());
        causes.fold(error.to_string(), |told, cause| format!("{told}: {cause}"))
    };
    let response = client.get(address).send().await.map_err(told)?;
    if !response.status().is_success() {
        return Err(format!("{address} answers {}", response.status()));
    }
    let (mut bytes, mut chunks) = (Vec::new(), response.bytes_stream());
    while let Some(chunk) = chunks.next().await {
        bytes.extend_from_slice(&chunk.map_err(told)?);
        if bytes.len() > DOCUMENT_BYTES_MAX {
            return Err(format!("{address} has more than {DOCUMENT_BYTES_MAX} bytes"));
        }
    }
    serde_json::from_slice(&bytes).map_err(|error| format!("{address} cannot be read: {error}"))
}
