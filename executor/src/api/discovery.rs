//! Machines that register: begun, followed and cancelled; added by hand. CI-tron's routes, and ours for who waits.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Query, Request, State};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Api;
use super::error::ApiError;
use super::guard::by;
use super::wire::ErrorWire;
use super::wire::discovery::{DiscoverWire, LoadersWire, NewDutWire, NewsWire, OutletsWire};
use crate::farm::{AddDut, AddError, DiscoverAsk, DiscoverError, DiscoveryRecord};
use crate::inventory::OutletName;

/// How long a machine may take to be seen: CI-tron's.
const TIMEOUT_S: u64 = 150;
/// A day: who waits for longer asks again.
const TIMEOUT_S_MAX: u64 = 86_400;
/// Who waits for news of a discovery is answered after this time at the latest.
const NEWS_TIME: Duration = Duration::from_secs(20);
/// A whole body: some kilobytes of tags.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// GET `/api/v1/dut/discover`
#[utoipa::path(get, tag = "ci-tron", path = "/api/v1/dut/discover", responses((status = 200, description = "`{}` while none runs; else `pdu`, `port_id`, `timeout`, `started_at`, `expires_in`, and ours: `id`, `machine`", body = Object)))]
pub(super) async fn discovery(State(api): State<Api>) -> Json<Value> {
    Json(running(&api))
}

/// The discovery that runs, in CI-tron's words.
pub(super) fn running(api: &Api) -> Value {
    let record = api.farm.discovery().filter(|record| record.outcome().is_none());
    record.map_or_else(|| json!({}), |record| wire(&record))
}

fn wire(record: &DiscoveryRecord) -> Value {
    let age = jiff::Timestamp::now().duration_since(record.began).as_secs_f64();
    json!({
        "id": record.id,
        "pdu": record.outlet.as_ref().map(|outlet| &outlet.pdu),
        "port_id": record.outlet.as_ref().map(|outlet| &outlet.outlet),
        "timeout": record.timeout.as_secs(),
        "started_at": record.began.to_string(),
        "expires_in": (record.timeout.as_secs_f64() - age).max(0.0),
        "machine": record.bound().map(|mac| mac.to_string()),
    })
}

/// POST `/api/v1/dut/discover`: the outlet goes off and on, and the next machine that the farm does not know is it. Without an outlet
/// somebody switches the machine on.
#[utoipa::path(
    post, tag = "ci-tron", path = "/api/v1/dut/discover", request_body = DiscoverWire,
    responses(
        (status = 200, description = "As GET says it", body = Object),
        (status = 400, description = "One runs already; no such outlet, or a DUT is on it", body = ErrorWire),
    )
)]
pub(super) async fn discover(State(api): State<Api>, request: Request) -> Result<Json<Value>, ApiError> {
    let by = by(&request);
    let wanted: DiscoverWire = body(request).await?;
    let timeout_s = wanted.timeout.unwrap_or(TIMEOUT_S);
    if !(1..=TIMEOUT_S_MAX).contains(&timeout_s) {
        return Err(ApiError::Malformed(format!("`timeout` is {timeout_s}; write 1 to {TIMEOUT_S_MAX} seconds")));
    }
    let outlet = match (wanted.pdu, wanted.port_id) {
        (Some(pdu), Some(outlet)) => Some(OutletName { pdu, outlet: outlet.text() }),
        (None, None) => None,
        (Some(_), None) => return Err(ApiError::Malformed("`port_id` is missing: which outlet of the PDU".into())),
        (None, Some(_)) => return Err(ApiError::Malformed("`pdu` is missing: on which PDU the outlet is".into())),
    };
    let ask = DiscoverAsk { outlet, timeout: Duration::from_secs(timeout_s), by };
    // On its own task: a client that hangs up must not leave half a begin.
    let begun = tokio::spawn(async move { api.farm.discover(ask).await }).await;
    let record = begun.map_err(|error| ApiError::Internal(format!("an internal error: {error}")))??;
    Ok(Json(wire(&record)))
}

/// DELETE `/api/v1/dut/discover`: the outlet goes off, and nothing is kept.
#[utoipa::path(delete, tag = "ci-tron", path = "/api/v1/dut/discover", responses((status = 200, body = String), (status = 400, description = "None runs", body = ErrorWire)))]
pub(super) async fn cancel(State(api): State<Api>, request: Request) -> Result<String, ApiError> {
    let running = api.farm.discovery().filter(|record| record.outcome().is_none());
    let record = running.ok_or_else(|| ApiError::Malformed("no discovery runs".into()))?;
    record.cancel(&by(&request));
    Ok(format!("{} is cancelled\n", record.in_words()))
}

/// From which line on.
#[derive(Debug, Default, Deserialize)]
pub(super) struct NewsQuery {
    #[serde(default)]
    from: usize,
}

/// GET `/api/v1/dut/discover/{id}`: answered once there is news, or after 20 s.
#[utoipa::path(
    get, tag = "administer", path = "/api/v1/dut/discover/{id}",
    params(
        ("id" = u64, Path, description = "The discovery's number"),
        ("from" = Option<usize>, Query, description = "The first line that is not known yet"),
    ),
    responses((status = 200, body = NewsWire), (status = 404, body = ErrorWire))
)]
pub(super) async fn news(
    State(api): State<Api>,
    Path(id): Path<u64>,
    Query(query): Query<NewsQuery>,
) -> Result<Json<NewsWire>, ApiError> {
    let record = api.farm.discovery().filter(|record| record.id == id);
    let record = record.ok_or_else(|| ApiError::NotFound(format!("no discovery {id}; only the last one is kept")))?;
    let mut changed = record.watch();
    let end = tokio::time::Instant::now() + NEWS_TIME;
    loop {
        changed.mark_unchanged();
        let (lines, outcome) = record.told(query.from);
        let is_late = tokio::time::timeout_at(end, async {
            if lines.is_empty() && outcome.is_none() {
                let _ = changed.changed().await;
                return false;
            }
            true
        });
        match is_late.await {
            Ok(false) => {}
            Ok(true) | Err(_) => return Ok(Json(NewsWire { next: query.from + lines.len(), lines, outcome })),
        }
    }
}

/// GET `/api/v1/dut/discover/outlets`
#[utoipa::path(get, tag = "administer", path = "/api/v1/dut/discover/outlets", responses((status = 200, description = "By unit; a discovery may switch those without a DUT", body = OutletsWire)))]
pub(super) async fn outlets(State(api): State<Api>) -> Json<OutletsWire> {
    Json(OutletsWire { outlets: api.farm.outlets().await })
}

/// GET `/api/v1/dut/discover/usb`
#[utoipa::path(get, tag = "administer", path = "/api/v1/dut/discover/usb", responses((status = 200, description = "Fastboot loaders that are plugged in, and whose they are", body = LoadersWire)))]
pub(super) async fn loaders(State(api): State<Api>) -> Json<LoadersWire> {
    Json(LoadersWire { loaders: api.farm.loaders() })
}

/// POST, PUT `/api/v1/dut/`: a machine that an admin adds by hand, or changes; CI-tron's keys, and where its outlet and its console are.
#[utoipa::path(
    post, tag = "ci-tron", path = "/api/v1/dut/", request_body = NewDutWire,
    responses((status = 200, description = "The DUT", body = Object), (status = 400, body = ErrorWire))
)]
pub(super) async fn add(State(api): State<Api>, request: Request) -> Result<Json<Value>, ApiError> {
    let dut: NewDutWire = body(request).await?;
    let farm = api.farm.clone();
    let added = tokio::spawn(async move { farm.add_dut(AddDut::from(dut)).await }).await;
    let id = added.map_err(|error| ApiError::Internal(format!("an internal error: {error}")))??;
    super::ci_tron::dut_by_name(&api, &id).await
}

/// DELETE `/api/v1/dut/{name}`: a machine that registered, or was added, is forgotten.
#[utoipa::path(delete, tag = "ci-tron", path = "/api/v1/dut/{name}", params(("name" = String, Path, description = "id or full name")), responses((status = 200, body = String), (status = 400, description = "no such DUT, or it is the farm file's", body = ErrorWire)))]
pub(super) async fn remove(State(api): State<Api>, Path(name): Path<String>) -> Result<String, ApiError> {
    let farm = api.farm.clone();
    let removed = tokio::spawn(async move { farm.remove_dut(&name).await }).await;
    let id = removed.map_err(|error| ApiError::Internal(format!("an internal error: {error}")))??;
    Ok(format!("{id} is removed\n"))
}

async fn body<T: serde::de::DeserializeOwned>(request: Request) -> Result<T, ApiError> {
    let read = axum::body::to_bytes(request.into_body(), BODY_BYTES_MAX).await;
    let bytes: Bytes = read.map_err(|error| ApiError::Malformed(format!("the body cannot be read: {error}")))?;
    let bytes = if bytes.is_empty() { Bytes::from_static(b"{}") } else { bytes };
    serde_json::from_slice(&bytes).map_err(|error| ApiError::Malformed(format!("the body is wrong: {error}")))
}

impl From<DiscoverError> for ApiError {
    fn from(error: DiscoverError) -> Self {
        match error {
            DiscoverError::Farm(_) => ApiError::Internal(error.to_string()),
            // All of them are 400 with CI-tron.
            _ => ApiError::Malformed(error.to_string()),
        }
    }
}

impl From<AddError> for ApiError {
    fn from(error: AddError) -> Self {
        match error {
            AddError::Wrong(text) => ApiError::Malformed(text),
            AddError::Farm(text) => ApiError::Internal(text),
        }
    }
}
