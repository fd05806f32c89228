//! Outlets for the programs of others: pdudaemon's API and what labgrid's `rest` and `simplerest` ask, by the key of a lease.
//!
//! | asks | does | of |
//! |---|---|---|
//! | GET `/power/KEY` | `1` or `0`, and no newline | labgrid, `power_get` of `rest` and `simplerest` |
//! | PUT `/power/KEY`, body `1` or `0` | switches | labgrid, `power_set` of `rest` |
//! | GET `/power/KEY/1`, `/power/KEY/0` | switches | labgrid, `power_set` of `simplerest` |
//! | GET `/power/control/{on,off,reboot}?hostname=KEY&port=OUTLET[&delay=S]` | switches | pdudaemon 1.1.1's `httplistener.py`; `alias=KEY` instead |
//!
//! Unlike there, an answer comes when it is done and read back, and a failure is no 200. Answers are lines of text. pdudaemon's older
//! protocol is in power_text.rs.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::Api;
use super::error::ApiError;
use super::guard::{Needs, Routes, get};
use crate::blueprint::power::PowerState;
use crate::farm::{LeaseError, PowerAction};

/// What pdudaemon answers, and the time that it waits within a reboot when nobody says one: its clients know both.
const ACCEPTED: &str = "OK - accepted request\n";
const REBOOT_DELAY: Duration = Duration::from_secs(5);
/// The longest delay: who waits longer for an answer has given up.
const DELAY_MAX: Duration = Duration::from_secs(300);
/// The body of a PUT is one digit.
const BODY_BYTES_MAX: usize = 16;

/// The routes.
pub(super) fn routes() -> Routes {
    Routes::default()
        .at("/power/control/{request}", get(Needs::Key, control))
        .at("/power/{key}", get(Needs::Key, read).put(Needs::Key, put))
        .at("/power/{key}/{value}", get(Needs::Key, set))
}

/// pdudaemon's parameters.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Control {
    hostname: Option<String>,
    port: Option<String>,
    alias: Option<String>,
    delay: Option<String>,
}

/// A refusal as text: none of these programs reads JSON.
pub(super) struct Refused(ApiError);

impl Refused {
    /// What HTTP says of it, and its sentence.
    pub(super) fn in_text(self) -> (StatusCode, String) {
        self.0.in_text()
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, text) = self.in_text();
        (status, format!("{text}\n")).into_response()
    }
}

impl From<LeaseError> for Refused {
    fn from(error: LeaseError) -> Self {
        Refused(error.into())
    }
}

async fn control(
    State(api): State<Api>,
    Path(request): Path<String>,
    Query(control): Query<Control>,
) -> Result<&'static str, Refused> {
    let (key, outlet) = match (&control.alias, &control.hostname, &control.port) {
        (Some(key), None, None) => (key, None),
        (None, Some(key), Some(port)) => (key, Some(port.as_str())),
        _ => {
            return Err(wrong(
                "send `hostname` and `port`, or `alias` alone; `hostname` and `alias` are a lease's key".into(),
            ));
        }
    };
    as_pdudaemon(&api, Asked { key, outlet, request: &request, delay: control.delay.as_deref() }).await?;
    Ok(ACCEPTED)
}

/// What pdudaemon's clients ask, by either protocol.
pub(super) struct Asked<'a> {
    /// Of a lease.
    pub key: &'a str,
    /// One of the lease's; `None`: the only one.
    pub outlet: Option<&'a str>,
    /// `on`, `off` or `reboot`.
    pub request: &'a str,
    /// In seconds: before an on or off, within a reboot.
    pub delay: Option<&'a str>,
}

/// Does it; returns when the outlet reads so.
pub(super) async fn as_pdudaemon(api: &Api, asked: Asked<'_>) -> Result<(), Refused> {
    let action = match asked.request {
        "on" => PowerAction::On,
        "off" => PowerAction::Off,
        "reboot" => PowerAction::Cycle,
        other => return Err(wrong(format!("no request `{other}`; there are on, off, reboot"))),
    };
    let delay = delay_of(asked.delay)?;
    let lease = api.farm.lease_of_key(asked.key).await?;
    if let Some(wanted) = asked.outlet {
        let (_, outlet) = api.farm.outlet_of_lease(&lease).await?;
        // labgrid's index is a number, and not every outlet's name is one: 0 is the only outlet that a lease has.
        if wanted != outlet && wanted != "0" {
            return Err(wrong(format!("lease {lease} holds outlet `{outlet}`, not `{wanted}`; 0 means the same")));
        }
    }
    match action {
        PowerAction::Cycle => {}
        PowerAction::On | PowerAction::Off => tokio::time::sleep(delay.unwrap_or_default()).await,
    }
    api.farm.switch_lease(&lease, action, delay.unwrap_or(REBOOT_DELAY)).await?;
    Ok(())
}

fn delay_of(text: Option<&str>) -> Result<Option<Duration>, Refused> {
    let Some(text) = text else { return Ok(None) };
    let delay = text.parse().ok().map(Duration::from_secs).filter(|delay| *delay <= DELAY_MAX);
    delay.map(Some).ok_or_else(|| wrong(format!("`delay`: `{text}` is not between 0 and {} s", DELAY_MAX.as_secs())))
}

async fn read(State(api): State<Api>, Path(key): Path<String>) -> Result<&'static str, Refused> {
    let lease = api.farm.lease_of_key(&key).await?;
    Ok(match api.farm.read_power(&lease).await? {
        PowerState::On => "1",
        PowerState::Off => "0",
    })
}

async fn put(State(api): State<Api>, Path(key): Path<String>, body: Body) -> Result<StatusCode, Refused> {
    let body = axum::body::to_bytes(body, BODY_BYTES_MAX).await.unwrap_or_default();
    switch(&api, &key, &String::from_utf8_lossy(&body)).await
}

async fn set(State(api): State<Api>, Path((key, value)): Path<(String, String)>) -> Result<StatusCode, Refused> {
    switch(&api, &key, &value).await
}

async fn switch(api: &Api, key: &str, value: &str) -> Result<StatusCode, Refused> {
    let action = match value.trim() {
        "1" => PowerAction::On,
        "0" => PowerAction::Off,
        other => return Err(wrong(format!("`{other}` is neither 0 nor 1"))),
    };
    let lease = api.farm.lease_of_key(key).await?;
    api.farm.switch_lease(&lease, action, Duration::ZERO).await?;
    Ok(StatusCode::OK)
}

pub(super) fn wrong(text: String) -> Refused {
    Refused(ApiError::Malformed(text))
}
