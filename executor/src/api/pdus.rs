//! The power units: looked at, and their outlets reserved or switched where no machine in service needs them. CI-tron's routes.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};

use super::Api;
use super::error::ApiError;
use super::wire::ErrorWire;
use super::wire::pdus::{OFF_TIME_MAX, PdusWire, PortWire, PortWishWire, PowerUnitWire, SwitchedWire};
use crate::blueprint::power::PowerState;
use crate::farm::{Farm, OutletChange, OutletError};
use crate::outlets::Reserved;

/// GET `/api/v1/pdus`
#[utoipa::path(get, tag = "ci-tron", path = "/api/v1/pdus", responses((status = 200, description = "By name; a machine with a unit of its own is one, too", body = PdusWire)))]
pub(super) async fn pdus(State(api): State<Api>) -> Json<PdusWire> {
    Json(all(&api.farm))
}

/// All of them.
pub(super) fn all(farm: &Farm) -> PdusWire {
    PdusWire { pdus: farm.pdus().iter().map(|pdu| (pdu.name.clone(), PowerUnitWire::of(pdu))).collect() }
}

/// GET `/api/v1/pdu/{name}`
#[utoipa::path(
    get, tag = "ci-tron", path = "/api/v1/pdu/{name}",
    params(("name" = String, Path, description = "As the farm file has it")),
    responses((status = 200, body = PowerUnitWire), (status = 404, body = ErrorWire))
)]
pub(super) async fn pdu(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<PowerUnitWire>, ApiError> {
    Ok(Json(PowerUnitWire::of(&api.farm.pdu(&name)?)))
}

/// GET `/api/v1/pdu/{name}/port/{id}`
#[utoipa::path(
    get, tag = "ci-tron", path = "/api/v1/pdu/{name}/port/{id}",
    params(("name" = String, Path, description = "The unit"), ("id" = String, Path, description = "The outlet's name on it")),
    responses((status = 200, body = PortWire), (status = 404, body = ErrorWire))
)]
pub(super) async fn port(
    State(api): State<Api>,
    Path((name, id)): Path<(String, String)>,
) -> Result<Json<PortWire>, ApiError> {
    Ok(Json(PortWire::of(&api.farm.outlet(&name, &id)?)))
}

/// PATCH `/api/v1/pdu/{name}/port/{id}`
#[utoipa::path(
    patch, tag = "ci-tron", path = "/api/v1/pdu/{name}/port/{id}", request_body = PortWishWire,
    params(("name" = String, Path, description = "The unit"), ("id" = String, Path, description = "The outlet's name on it")),
    responses(
        (status = 200, description = "Done, and read back", body = PortWire),
        (status = 400, description = "Another key, or a value that means nothing", body = ErrorWire),
        (status = 404, body = ErrorWire),
        (status = 409, description = "It is the outlet of a machine in service", body = ErrorWire),
    )
)]
pub(super) async fn change_port(
    State(api): State<Api>,
    Path((name, id)): Path<(String, String)>,
    request: axum::extract::Request,
) -> Result<Json<PortWire>, ApiError> {
    let wish: PortWishWire = super::fields::read_fields(request.into_body()).await?;
    let change = change_of(wish)?;
    Ok(Json(PortWire::of(&api.farm.change_outlet(&name, &id, change).await?)))
}

/// POST `/api/v1/pdu/{name}/port/{id}/done`
#[utoipa::path(
    post, tag = "administer", path = "/api/v1/pdu/{name}/port/{id}/done", request_body = SwitchedWire,
    params(("name" = String, Path, description = "The unit"), ("id" = String, Path, description = "The outlet's name on it")),
    responses(
        (status = 200, description = "Whoever waited for it goes on", body = SwitchedWire),
        (status = 404, body = ErrorWire),
        (status = 409, description = "Nobody waits for it, or the unit switches by itself", body = ErrorWire),
    )
)]
pub(super) async fn done(
    State(api): State<Api>,
    Path((name, id)): Path<(String, String)>,
    request: axum::extract::Request,
) -> Result<Json<SwitchedWire>, ApiError> {
    let said: SwitchedWire = super::fields::read_fields(request.into_body()).await?;
    let state = api.farm.outlet_was_switched(&name, &id, said.state)?;
    Ok(Json(SwitchedWire { state: Some(state) }))
}

fn change_of(wish: PortWishWire) -> Result<OutletChange, ApiError> {
    let state = match wish.state.as_deref().map(str::to_ascii_lowercase).as_deref() {
        None => None,
        Some("on") => Some(PowerState::On),
        Some("off") => Some(PowerState::Off),
        Some(other) => return Err(ApiError::Malformed(format!("`state`: `{other}` is neither `on` nor `off`"))),
    };
    let off_time = wish.min_off_time.map(|seconds| match Duration::try_from_secs_f64(seconds) {
        Ok(time) if time <= OFF_TIME_MAX => Ok(time),
        _ => Err(ApiError::Malformed(format!(
            "`min_off_time`: `{seconds}` is not between 0 and {} s",
            OFF_TIME_MAX.as_secs()
        ))),
    });
    let reserved = wish.reserved.map(|reserved| if reserved { Reserved::Yes } else { Reserved::No });
    Ok(OutletChange { state, reserved, off_time: off_time.transpose()? })
}

impl From<OutletError> for ApiError {
    fn from(error: OutletError) -> Self {
        let text = error.to_string();
        match error {
            OutletError::NoSuch(_) => ApiError::NotFound(text),
            OutletError::Used(_) => ApiError::Conflict(text),
            OutletError::Failed(_) => ApiError::Internal(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(json: &str) -> Result<OutletChange, String> {
        change_of(serde_json::from_str(json).map_err(|error| error.to_string())?).map_err(|error| format!("{error:?}"))
    }

    #[test]
    fn what_an_admin_wishes_is_read_and_nothing_else() {
        let expected = OutletChange { state: Some(PowerState::On), reserved: Some(Reserved::No), off_time: None };
        assert_eq!(wish(r#"{"state": "ON", "reserved": false}"#).unwrap(), expected);
        let expected = OutletChange { off_time: Some(Duration::from_millis(2500)), ..OutletChange::default() };
        assert_eq!(wish(r#"{"min_off_time": 2.5}"#).unwrap(), expected);
        let expected = OutletChange { reserved: Some(Reserved::Yes), ..OutletChange::default() };
        assert_eq!(wish(r#"{"reserved": "True"}"#).unwrap(), expected);
        assert!(wish(r#"{"reserved": "perhaps"}"#).unwrap_err().contains("neither true nor false"));
        assert!(wish(r#"{"state": "reboot"}"#).unwrap_err().contains("neither `on` nor `off`"));
        assert!(wish(r#"{"min_off_time": -1}"#).unwrap_err().contains("not between 0 and 3600 s"));
        assert!(wish(r#"{"label": "x"}"#).unwrap_err().contains("unknown field"));
    }
}
