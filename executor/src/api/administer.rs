//! What whoever runs the farm changes about it as a whole.

use axum::Json;
use axum::extract::State;

use super::Api;
use super::error::ApiError;
use super::wire::ErrorWire;
use crate::farm::{Changes, ReloadError};

/// POST `/api/v1/reload`: the farm file is read again. No lease ends by it.
#[utoipa::path(
    post, tag = "administer", path = "/api/v1/reload",
    responses(
        (status = 200, description = "What is otherwise than before", body = Changes),
        (status = 400, description = "The farm file has mistakes, or says what only a restart can change: nothing was changed", body = ErrorWire),
        (status = 409, description = "What it says cannot be set up: nothing was changed", body = ErrorWire),
    )
)]
pub(super) async fn reload(State(api): State<Api>) -> Result<Json<Changes>, ApiError> {
    // On its own task: a client that hangs up must not leave half a reload.
    let reloaded = tokio::spawn(async move { api.farm.reload().await }).await;
    Ok(Json(reloaded.map_err(|error| ApiError::Internal(format!("an internal error: {error}")))??))
}

impl From<ReloadError> for ApiError {
    fn from(error: ReloadError) -> Self {
        match error {
            ReloadError::Wrong(problems) => ApiError::Problems(problems),
            ReloadError::Unreadable(_) | ReloadError::Failed(_) => ApiError::Conflict(error.to_string()),
        }
    }
}
