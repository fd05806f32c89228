//! The consoles of the farm: which there are, what they said, and what they say now.
//!
//! | `since` | begins with |
//! |---|---|
//! | `4096` | the byte of this offset |
//! | `-4096` | so many bytes before the end |
//! | `2026-11-21T12:00:00Z` | what was said at this time |
//! | `10m`, `1h 30m` | what was said so long ago |
//! | `now` | what is said from now on |

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use jiff::Timestamp;
use job_schema::quantity::parse_duration;
use serde::Deserialize;

use super::Api;
use super::error::ApiError;
use super::inspect::HEARTBEAT;
use super::wire::ErrorWire;
use super::wire::consoles::{ConsoleWire, ConsolesWire, PieceWire};
use crate::console::{Piece, Reader, Since};

/// What of a console is wanted.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ConsoleQuery {
    #[serde(default)]
    since: Option<String>,
    #[serde(default)]
    follow: Option<u8>,
}

/// GET `/api/v1/consoles`
#[utoipa::path(get, tag = "inspect", path = "/api/v1/consoles", responses((status = 200, description = "By name", body = ConsolesWire)))]
pub(super) async fn consoles(State(api): State<Api>) -> Json<ConsolesWire> {
    let consoles = api.farm.consoles();
    Json(ConsolesWire { consoles: consoles.all().iter().map(|hub| ConsoleWire::of(hub, consoles)).collect() })
}

/// GET `/api/v1/consoles/{name}`
#[utoipa::path(
    get, tag = "inspect", path = "/api/v1/consoles/{name}",
    params(("name" = String, Path, description = "A console's name, or its DUT's id or full name")),
    responses((status = 200, body = ConsoleWire), (status = 404, body = ErrorWire))
)]
pub(super) async fn console(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<ConsoleWire>, ApiError> {
    let consoles = api.farm.consoles();
    let hub = consoles.get(&name).ok_or_else(|| unknown(&name))?;
    Ok(Json(ConsoleWire::of(&hub, consoles)))
}

/// GET `/api/v1/consoles/{name}/log`: the bytes, as they came. What is not kept is left out.
#[utoipa::path(
    get, tag = "inspect", path = "/api/v1/consoles/{name}/log",
    params(
        ("name" = String, Path, description = "A console's name, or its DUT's id or full name"),
        ("since" = Option<String>, Query, description = "An offset, `-N` bytes before the end, a time (RFC 3339), so long ago (`10m`), or `now`; all that is kept when absent"),
        ("follow" = Option<u8>, Query, description = "1: goes on with what is said"),
    ),
    responses(
        (status = 200, content_type = "application/octet-stream", body = Vec<u8>),
        (status = 400, description = "`since` is none", body = ErrorWire),
        (status = 404, body = ErrorWire),
    )
)]
pub(super) async fn log(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<ConsoleQuery>,
) -> Result<Response, ApiError> {
    let reading = reading(&api, &name, &query)?;
    let bytes = stream::unfold(reading, |mut reading| async move {
        loop {
            if let Piece::Said { bytes, .. } = reading.next().await? {
                return Some((Ok::<_, std::convert::Infallible>(bytes), reading));
            }
        }
    });
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(bytes)).into_response())
}

/// GET `/api/v1/consoles/{name}/events`: a JSON line per piece, with offsets, times and gaps; empty lines are heartbeats.
#[utoipa::path(
    get, tag = "inspect", path = "/api/v1/consoles/{name}/events",
    params(
        ("name" = String, Path, description = "A console's name, or its DUT's id or full name"),
        ("since" = Option<String>, Query, description = "As for the log"),
        ("follow" = Option<u8>, Query, description = "1: goes on with what is said"),
    ),
    responses(
        (status = 200, content_type = "application/x-ndjson", body = PieceWire),
        (status = 400, description = "`since` is none", body = ErrorWire),
        (status = 404, body = ErrorWire),
    )
)]
pub(super) async fn events(
    State(api): State<Api>,
    Path(name): Path<String>,
    Query(query): Query<ConsoleQuery>,
) -> Result<Response, ApiError> {
    let reading = reading(&api, &name, &query)?;
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(lines(reading))).into_response())
}

fn lines(reading: Reading) -> impl Stream<Item = serde_json::Result<Bytes>> {
    stream::try_unfold(reading, |mut reading| async move {
        let line = match tokio::time::timeout(HEARTBEAT, reading.next()).await {
            Err(_) => Bytes::from_static(b"\n"),
            Ok(None) => return Ok(None),
            Ok(Some(piece)) => {
                let mut line = serde_json::to_vec(&PieceWire::from(piece))?;
                line.push(b'\n');
                line.into()
            }
        };
        Ok(Some((line, reading)))
    })
}

/// A reader, and how far it reads.
struct Reading {
    reader: Reader,
    /// `None`: it goes on.
    until: Option<u64>,
}

impl Reading {
    async fn next(&mut self) -> Option<Piece> {
        match self.until {
            None => self.reader.next().await,
            // What is said meanwhile belongs to the next who asks.
            Some(until) if self.reader.position() > until => None,
            Some(until) => {
                let piece = self.reader.now()?;
                match piece {
                    Piece::Said { offset, .. } if offset >= until => None,
                    piece => Some(piece),
                }
            }
        }
    }
}

fn reading(api: &Api, name: &str, query: &ConsoleQuery) -> Result<Reading, ApiError> {
    let hub = api.farm.consoles().get(name).ok_or_else(|| unknown(name))?;
    let extent = hub.extent();
    let since = match &query.since {
        None => Since::Offset(extent.first),
        Some(text) => since(text, Timestamp::now())?,
    };
    let follows = query.follow.is_some_and(|follow| follow != 0);
    Ok(Reading { reader: hub.attach_reader(since), until: (!follows).then_some(extent.end) })
}

fn since(text: &str, now: Timestamp) -> Result<Since, ApiError> {
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let wrong = || {
        let what = "write an offset, `-N` bytes before the end, a time such as `2026-11-21T12:00:00Z`, so long ago (`10m`), or `now`";
        ApiError::Malformed(format!("`since`: `{text}` is no place in a console; {what}"))
    };
    if text == "now" {
        return Ok(Since::Now);
    }
    if let Some(last) = text.strip_prefix('-').filter(|last| is_number(last)) {
        return last.parse().map(Since::Last).map_err(|_| wrong());
    }
    if is_number(text) {
        return text.parse().map(Since::Offset).map_err(|_| wrong());
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(Since::Time(at));
    }
    let ago = parse_duration(text).map_err(|_| wrong())?;
    Ok(Since::Time(now.checked_sub(ago).unwrap_or(Timestamp::UNIX_EPOCH)))
}

fn unknown(name: &str) -> ApiError {
    ApiError::NotFound(format!("no console and no DUT `{name}`; `wharf consoles` lists them"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_a_console_is_an_offset_a_time_or_so_long_ago() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let place = |text: &str| since(text, now).unwrap();
        assert_eq!(place("4096"), Since::Offset(4096));
        assert_eq!(place("-4096"), Since::Last(4096));
        assert_eq!(place("now"), Since::Now);
        assert_eq!(place("2026-11-21T11:00:00Z"), Since::Time("2026-11-21T11:00:00Z".parse().unwrap()));
        assert_eq!(place("1h 30m"), Since::Time("2026-11-21T10:30:00Z".parse().unwrap()));
        for wrong in ["", "yesterday", "-", "-1h", "99999999999999999999"] {
            let ApiError::Malformed(told) = since(wrong, now).unwrap_err() else { panic!("{wrong}") };
            assert!(told.contains("is no place in a console"), "{told}");
        }
    }
}
