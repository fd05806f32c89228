//! Tokens, and who one is.
//!
//! ```text
//!  POST tokens ─► its secret, once         POST session + id_token ─► a token for as long as that issuer's jobs may have one
//!  GET tokens  ─► all of them, without     GET caller ─► name, project, role
//! ```

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use job_schema::quantity::parse_duration;

use super::Api;
use super::error::ApiError;
use super::fields::read_fields;
use super::guard::{caller_of, shown_with};
use super::wire::ErrorWire;
use super::wire::callers::{AddTokenWire, CallerWire, MadeTokenWire, SessionWire, TokenWire, TokensWire};
use crate::callers::{NewToken, Role, StoreError};

/// How long a token lasts when nobody says it: long enough for a project's settings, short enough to be thought of again.
pub const LASTS: Duration = Duration::from_secs(90 * 86_400);
/// Ten years: what is to last for ever is forgotten.
const LASTS_MAX: Duration = Duration::from_secs(3650 * 86_400);
/// Names are for logs.
const NAME_LENGTH_MAX: usize = 80;

/// GET `/api/v1/caller`
#[utoipa::path(get, tag = "administer", path = "/api/v1/caller", responses((status = 200, description = "Who asks, and what he may do", body = CallerWire)))]
pub(super) async fn caller(request: Request) -> Json<CallerWire> {
    let caller = caller_of(&request);
    Json(CallerWire { name: caller.name, project: caller.project, role: caller.role })
}

/// POST `/api/v1/session`: the id_token is in `Authorization`, and is used up.
#[utoipa::path(
    post, tag = "administer", path = "/api/v1/session",
    responses(
        (status = 201, description = "A token for the further requests of the same CI job", body = SessionWire),
        (status = 401, description = "The id_token does not hold, or was used before", body = ErrorWire),
        (status = 403, description = "No rule of the farm file fits it", body = ErrorWire),
    )
)]
pub(super) async fn session(
    State(api): State<Api>,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<SessionWire>), ApiError> {
    let shown = shown_with(&headers);
    let shown = shown.ok_or_else(|| ApiError::Unauthorized("send the id_token as `Authorization: Bearer …`".into()))?;
    let session = api.callers.sign_in(&shown.0, &api.farm.config().issuers).await?;
    let caller = CallerWire { name: session.caller.name, project: session.caller.project, role: session.caller.role };
    Ok((StatusCode::CREATED, Json(SessionWire { token: session.secret, expires: session.expires, caller })))
}

/// GET `/api/v1/tokens`
#[utoipa::path(get, tag = "administer", path = "/api/v1/tokens", responses((status = 200, description = "The newest first; no secrets", body = TokensWire)))]
pub(super) async fn tokens(State(api): State<Api>) -> Result<Json<TokensWire>, ApiError> {
    let now = jiff::Timestamp::now();
    let tokens = api.callers.tokens()?;
    Ok(Json(TokensWire { tokens: tokens.into_iter().map(|token| TokenWire::of(token, now)).collect() }))
}

/// POST `/api/v1/tokens`
#[utoipa::path(
    post, tag = "administer", path = "/api/v1/tokens", request_body = AddTokenWire,
    responses(
        (status = 201, description = "The token; its secret is shown this once", body = MadeTokenWire),
        (status = 400, description = "A field is wrong", body = ErrorWire),
    )
)]
pub(super) async fn add(
    State(api): State<Api>,
    request: Request,
) -> Result<(StatusCode, Json<MadeTokenWire>), ApiError> {
    let wish: AddTokenWire = read_fields(request.into_body()).await?;
    let new = token_of(wish, jiff::Timestamp::now()).map_err(ApiError::Malformed)?;
    let (token, secret) = api.callers.add(new)?;
    Ok((StatusCode::CREATED, Json(MadeTokenWire { secret, token: TokenWire::of(token, jiff::Timestamp::now()) })))
}

/// The token that somebody wishes for.
pub fn token_of(wish: AddTokenWire, now: jiff::Timestamp) -> Result<NewToken, String> {
    let name = wish.name.unwrap_or_default();
    let project = wish.project.unwrap_or_else(|| crate::callers::ANYBODY.to_owned());
    for (field, value) in [("name", &name), ("project", &project)] {
        let is_plain = |character: char| !character.is_control() && character != '"';
        if value.trim().is_empty() || value.len() > NAME_LENGTH_MAX || !value.chars().all(is_plain) {
            return Err(format!("`{field}`: write a name of 1 to {NAME_LENGTH_MAX} letters, digits and the like"));
        }
    }
    let lasts = match &wish.lasts {
        None => LASTS,
        Some(text) => parse_duration(text).map_err(|what| format!("`for`: {what}; write it as `90 days`"))?,
    };
    if lasts.is_zero() || lasts > LASTS_MAX {
        return Err("`for`: a token lasts for some time, and at most for 3650 days".to_owned());
    }
    let expires = now.checked_add(lasts).map_err(|error| format!("`for`: {error}"))?;
    Ok(NewToken { name, project, role: wish.role.unwrap_or(Role::Submit), expires })
}

/// DELETE `/api/v1/tokens/{name}`
#[utoipa::path(
    delete, tag = "administer", path = "/api/v1/tokens/{name}",
    params(("name" = String, Path, description = "A token's id, or the name of one or several")),
    responses((status = 204, description = "Over, from the next request on"), (status = 404, body = ErrorWire))
)]
pub(super) async fn revoke(State(api): State<Api>, Path(name): Path<String>) -> Result<StatusCode, ApiError> {
    match api.callers.revoke(&name)? {
        0 => Err(ApiError::NotFound(format!("no token `{name}` that is not over; `wharf token list` shows them"))),
        _ => Ok(StatusCode::NO_CONTENT),
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        ApiError::Internal(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_a_name_and_an_end() {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let wish = |name: &str, lasts: &str| AddTokenWire {
            name: Some(name.into()),
            lasts: Some(lasts.into()),
            ..AddTokenWire::default()
        };
        let made = token_of(wish("ci", "2 days"), now).unwrap();
        assert_eq!((made.project.as_str(), made.role, made.expires.as_second()), ("anybody", Role::Submit, 2 * 86_400));
        assert!(token_of(wish("", "2 days"), now).unwrap_err().starts_with("`name`: "));
        assert!(token_of(wish("ci", "for ever"), now).unwrap_err().starts_with("`for`: "));
        assert!(token_of(wish("ci", "4000 days"), now).unwrap_err().contains("at most for 3650 days"));
    }
}
