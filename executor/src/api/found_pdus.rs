//! Power units that are not in the farm file and tell of themselves: looked for, adopted, given up.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use super::error::ApiError;
use super::fields::read_fields;
use super::wire::ErrorWire;
use super::wire::found_pdus::{AdoptWire, FoundPduWire, FoundPdusWire};
use super::wire::pdus::{AdoptedWire, PowerUnitWire};
use crate::farm::{AdoptError, AdoptPdu};

/// mDNS asks at once, after 1 s, 3 s and 7 s (RFC 6762, 5.2); a unit answers within 120 ms.
const LISTEN_S: u64 = 4;
/// An admin waits for it.
const LISTEN_S_MAX: u64 = 60;

/// How long they get for it.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct Listen {
    /// Seconds, 4 when it is not said, 60 at most.
    listen_s: Option<u64>,
}

/// POST `/api/v1/pdus/discover`
#[utoipa::path(
    post, tag = "administer", path = "/api/v1/pdus/discover", params(Listen),
    responses((status = 200, description = "What was found; nothing is added", body = FoundPdusWire), (status = 400, body = ErrorWire))
)]
pub(super) async fn discover(
    State(api): State<Api>,
    Query(Listen { listen_s }): Query<Listen>,
) -> Result<Json<FoundPdusWire>, ApiError> {
    let found = api.farm.find_pdus(time_of(listen_s)?).await;
    let wire = |(unit, known): &(_, Option<String>)| FoundPduWire::of(unit, known.as_deref());
    Ok(Json(FoundPdusWire { units: found.units.iter().map(wire).collect(), problems: found.problems }))
}

/// POST `/api/v1/pdus/adopt`
#[utoipa::path(
    post, tag = "administer", path = "/api/v1/pdus/adopt", request_body = AdoptWire,
    responses(
        (status = 201, description = "It is the farm's from now on; whether it answers, its `state` says", body = AdoptedWire),
        (status = 400, description = "A key is wrong or missing", body = ErrorWire),
        (status = 404, description = "Nothing of this name tells of itself", body = ErrorWire),
        (status = 409, description = "It is in the farm already, or its name is taken", body = ErrorWire),
    )
)]
pub(super) async fn adopt(
    State(api): State<Api>,
    request: Request,
) -> Result<(StatusCode, Json<AdoptedWire>), ApiError> {
    let wanted: AdoptWire = read_fields(request.into_body()).await?;
    if wanted.found.is_empty() {
        return Err(ApiError::Malformed("`found` is missing: which of the units that were found".into()));
    }
    let (listen, AdoptWire { found, name, keys, .. }) = (time_of(wanted.listen_s)?, wanted);
    let ask = AdoptPdu { found, name, keys, listen };
    // On its own task: a client that hangs up must not leave half of it.
    let adopted = tokio::spawn(async move { api.farm.adopt_pdu(ask).await }).await;
    let pdu = adopted.map_err(|error| ApiError::Internal(format!("an internal error: {error}")))??;
    Ok((StatusCode::CREATED, Json(AdoptedWire { name: pdu.name.clone(), pdu: PowerUnitWire::of(&pdu) })))
}

/// DELETE `/api/v1/pdu/{name}`
#[utoipa::path(
    delete, tag = "administer", path = "/api/v1/pdu/{name}", params(("name" = String, Path, description = "An adopted unit")),
    responses(
        (status = 204, description = "It is the farm's no longer; its outlets stay as they are"),
        (status = 404, description = "None of this name was adopted", body = ErrorWire),
        (status = 409, description = "A machine is on it, or it is in the farm file", body = ErrorWire),
    )
)]
pub(super) async fn remove(State(api): State<Api>, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    let removed = tokio::spawn(async move { api.farm.remove_pdu(&name).await }).await;
    removed.map_err(|error| ApiError::Internal(format!("an internal error: {error}")))??;
    Ok(StatusCode::NO_CONTENT)
}

fn time_of(listen_s: Option<u64>) -> Result<Duration, ApiError> {
    match listen_s.unwrap_or(LISTEN_S) {
        seconds if seconds <= LISTEN_S_MAX => Ok(Duration::from_secs(seconds)),
        seconds => Err(ApiError::Malformed(format!("`listen_s`: `{seconds}` is out of range; 0 to {LISTEN_S_MAX}"))),
    }
}

impl From<AdoptError> for ApiError {
    fn from(error: AdoptError) -> Self {
        let text = error.to_string();
        match error {
            AdoptError::NoSuch(_) => ApiError::NotFound(text),
            AdoptError::Used(_) => ApiError::Conflict(text),
            AdoptError::Wrong(_) => ApiError::Malformed(text),
            AdoptError::Farm(_) => ApiError::Internal(text),
        }
    }
}
