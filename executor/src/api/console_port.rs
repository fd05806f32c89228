//! Consoles for programs that want a serial line: a port of this host, for as long as the lease lasts.

use axum::Json;
use axum::extract::{Path, Request, State};

use super::Api;
use super::error::ApiError;
use super::fields::read_fields;
use super::wire::ErrorWire;
use super::wire::leases::{ConsolePortWire, ConsolePortWishWire};
use crate::console::Protocol;

/// POST `/api/v1/leases/{id}/console/serve`
#[utoipa::path(
    post, tag = "leases", path = "/api/v1/leases/{id}/console/serve", request_body = ConsolePortWishWire,
    params(("id" = String, Path, description = "The lease's id")),
    responses(
        (status = 200, description = "Served, until the lease is over; asked again, at the same port", body = ConsolePortWire),
        (status = 400, description = "A field is wrong", body = ErrorWire),
        (status = 404, body = ErrorWire),
        (status = 409, description = "Not active, or a job's", body = ErrorWire),
        (status = 410, description = "It is over", body = ErrorWire),
    )
)]
pub(super) async fn serve(
    State(api): State<Api>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<ConsolePortWire>, ApiError> {
    let wish: ConsolePortWishWire = read_fields(request.into_body()).await?;
    let protocol = wish.protocol.unwrap_or(Protocol::Raw);
    let address = api.farm.serve_console(&id, protocol).await?;
    Ok(Json(ConsolePortWire { protocol, address }))
}
