//! The disks that are kept: looked at, and removed when nobody needs them any more.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;

use super::Api;
use super::error::ApiError;
use super::wire::ErrorWire;
use super::wire::disks::{DiskWire, DisksWire};

/// GET `/api/v1/disks`
#[utoipa::path(get, tag = "disks", path = "/api/v1/disks", responses((status = 200, description = "By name", body = DisksWire)))]
pub(super) async fn disks(State(api): State<Api>) -> Json<DisksWire> {
    Json(DisksWire { disks: api.farm.disks().into_iter().map(DiskWire::from).collect() })
}

/// DELETE `/api/v1/disks/{id}`
#[utoipa::path(
    delete, tag = "disks", path = "/api/v1/disks/{id}",
    params(("id" = String, Path, description = "The disk's id")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, body = ErrorWire),
        (status = 409, description = "Somebody uses it", body = ErrorWire)
    )
)]
pub(super) async fn remove(State(api): State<Api>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    api.farm.remove_disk(&id)?;
    Ok(StatusCode::NO_CONTENT)
}
