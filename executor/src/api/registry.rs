//! The cache of container images: what it has, and what it is to forget.

use axum::Json;
use axum::extract::{Path, State};
use gateway::registry::Door;

use super::Api;
use super::error::ApiError;
use super::wire::ErrorWire;
use super::wire::registry::{ForgottenWire, RegistryWire};

/// GET `/api/v1/registry`
#[utoipa::path(
    get, tag = "registry", path = "/api/v1/registry",
    responses(
        (status = 200, description = "By name", body = RegistryWire),
        (status = 404, description = "The farm file names no registry", body = ErrorWire)
    )
)]
pub(super) async fn registry(State(api): State<Api>) -> Result<Json<RegistryWire>, ApiError> {
    Ok(Json(RegistryWire::from(door(&api)?.inventory())))
}

/// DELETE `/api/v1/registry/{name}`
#[utoipa::path(
    delete, tag = "registry", path = "/api/v1/registry/{name}",
    params(("name" = String, Path, description = "A repository, `registry.example.org/group/name` with its slashes, or the beginning of several up to one")),
    responses(
        (status = 200, description = "What was forgotten", body = ForgottenWire),
        (status = 404, description = "Nothing is kept that is called so", body = ErrorWire)
    )
)]
pub(super) async fn forget(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<ForgottenWire>, ApiError> {
    let forgotten = door(&api)?.forget(&name).await;
    if forgotten.repositories.is_empty() {
        return Err(ApiError::NotFound(format!("nothing is kept of `{name}`; GET /api/v1/registry lists what is")));
    }
    Ok(Json(ForgottenWire::from(forgotten)))
}

fn door(api: &Api) -> Result<&Door, ApiError> {
    let none = || ApiError::NotFound("this farm keeps no images: its farm file has no `registry`".to_owned());
    api.farm.images().ok_or_else(none)
}
