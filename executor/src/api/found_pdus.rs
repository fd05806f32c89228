//! Power units that are not in the farm file and tell of themselves.

use std::time::Duration;

use axum::Json;
use axum::extract::{Query, State};
use serde::Deserialize;
use utoipa::IntoParams;

use super::Api;
use super::error::ApiError;
use super::wire::ErrorWire;
use super::wire::found_pdus::{FoundPduWire, FoundPdusWire};

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
    let listen_s = listen_s.unwrap_or(LISTEN_S);
    if listen_s > LISTEN_S_MAX {
        return Err(ApiError::Malformed(format!("`listen_s`: `{listen_s}` is out of range; 0 to {LISTEN_S_MAX}")));
    }
    let found = api.farm.find_pdus(Duration::from_secs(listen_s)).await;
    let wire = |(unit, known): &(_, Option<String>)| FoundPduWire::of(unit, known.as_deref());
    Ok(Json(FoundPdusWire { units: found.units.iter().map(wire).collect(), problems: found.problems }))
}
