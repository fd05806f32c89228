//! Hosts: which there are; commands and files on the one that a lease holds.
//!
//! ```text
//!  POST leases/ID/command ─► a line of JSON per piece of output, one with the end; a client that hangs up ends the command
//!  PUT  leases/ID/file?path=… ─► bytes, as many as there are ─► compared at both ends ─► its length and SHA-256
//!  GET  jobs/ID/files/NAME ─► a file that a step of a job has got
//!  GET  leases/ID/file?path=… ─► the SHA-256 in the head, then bytes; broken off where they are not those that the host has
//! ```

use std::time::Duration;

use axum::Json;
use axum::body::{Body, BodyDataStream};
use axum::extract::{Path, Query, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use tokio::sync::mpsc;

use super::Api;
use super::error::ApiError;
use super::fields::read_fields;
use super::inspect::HEARTBEAT;
use super::leases::{line_of, lines, time_of};
use super::wire::ErrorWire;
use super::wire::hosts::{CommandNewsWire, CommandWire, FileWire, HostsWire, SHA256_HEADER};
use crate::farm::{CommandAsk, CommandNews};

/// What is refused is read on for this long: a gigabyte over a fast line, and nobody waits for ever for one that was no use.
const HEAR_OUT_TIME: Duration = Duration::from_secs(10);

/// GET `/api/v1/hosts`
#[utoipa::path(get, tag = "hosts", path = "/api/v1/hosts", responses((status = 200, body = HostsWire)))]
pub(super) async fn hosts(State(api): State<Api>) -> Json<HostsWire> {
    Json(HostsWire { hosts: api.farm.hosts().await.into_iter().map(Into::into).collect() })
}

/// POST `/api/v1/leases/{id}/command`
#[utoipa::path(
    post, tag = "hosts", path = "/api/v1/leases/{id}/command", request_body = CommandWire,
    params(("id" = String, Path, description = "The lease's id")),
    responses(
        (status = 200, description = "Its output as it comes, then how it ended; empty lines are heartbeats. Who hangs up ends it", content_type = "application/x-ndjson", body = CommandNewsWire),
        (status = 400, description = "A field is wrong", body = ErrorWire),
        (status = 404, body = ErrorWire),
        (status = 409, description = "Not active, or not on a host", body = ErrorWire),
        (status = 410, description = "It is over", body = ErrorWire),
    )
)]
pub(super) async fn command(
    State(api): State<Api>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let wish: CommandWire = read_fields(request.into_body()).await?;
    let ask = CommandAsk { argv: wish.argv, time: time_of("timeout", wish.timeout)? };
    let news = api.farm.run_in_lease(&id, ask).await?;
    Ok(lines(stream::unfold(Some(news), next_line)))
}

type News = mpsc::Receiver<CommandNews>;

async fn next_line(news: Option<News>) -> Option<(Result<bytes::Bytes, std::convert::Infallible>, Option<News>)> {
    let mut news = news?;
    // Only a line that cannot be sent tells that nobody listens any more.
    match tokio::time::timeout(HEARTBEAT, news.recv()).await {
        Err(_) => Some((Ok(bytes::Bytes::from_static(b"\n")), Some(news))),
        Ok(None) => None,
        Ok(Some(said)) => {
            let is_last = !matches!(said, CommandNews::Output(..));
            Some((Ok(line_of(&CommandNewsWire::from(said))), (!is_last).then_some(news)))
        }
    }
}

/// Which file.
#[derive(Debug, Default, Deserialize)]
pub(super) struct FileQuery {
    #[serde(default)]
    path: String,
}

/// PUT `/api/v1/leases/{id}/file`
#[utoipa::path(
    put, tag = "hosts", path = "/api/v1/leases/{id}/file",
    params(
        ("id" = String, Path, description = "The lease's id"),
        ("path" = String, Query, description = "The file, relative to the working copy or absolute"),
        ("x-sha256" = Option<String>, Header, description = "What the bytes have to be"),
    ),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "All of it is there, and the host has the same SHA-256", body = FileWire),
        (status = 400, description = "A field is wrong", body = ErrorWire),
        (status = 404, body = ErrorWire),
        (status = 409, description = "Not active, or not on a host", body = ErrorWire),
        (status = 410, description = "It is over", body = ErrorWire),
    )
)]
pub(super) async fn put(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<FileQuery>,
    request: Request,
) -> Result<Json<FileWire>, ApiError> {
    let expected = request.headers().get(SHA256_HEADER).and_then(|value| value.to_str().ok());
    let expected = expected.map(str::to_ascii_lowercase);
    let mut content = request.into_body().into_data_stream();
    let put = api.farm.put_in_lease(&id, &query.path, &mut content, expected.as_deref()).await;
    if put.is_err() {
        read_out(content).await;
    }
    Ok(Json(put?.into()))
}

/// A connection that is closed with bytes unread takes the answer along, for who still sends (RFC 9112 §9.6): he is heard out first.
async fn read_out(mut content: BodyDataStream) {
    let all = async { while let Some(Ok(_)) = content.next().await {} };
    let _ = tokio::time::timeout(HEAR_OUT_TIME, all).await;
}

/// GET `/api/v1/leases/{id}/file`
#[utoipa::path(
    get, tag = "hosts", path = "/api/v1/leases/{id}/file",
    params(
        ("id" = String, Path, description = "The lease's id"),
        ("path" = String, Query, description = "The file, relative to the working copy or absolute"),
    ),
    responses(
        (status = 200, description = "Its bytes; `x-sha256` in the head is what the host has", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 404, body = ErrorWire),
        (status = 409, description = "Not active, or not on a host", body = ErrorWire),
        (status = 410, description = "It is over", body = ErrorWire),
    )
)]
pub(super) async fn get(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<FileQuery>,
) -> Result<Response, ApiError> {
    let coming = api.farm.get_from_lease(&id, &query.path).await?;
    let bytes = stream::unfold(coming.bytes, |mut bytes| async { Some((bytes.recv().await?, bytes)) });
    let headers = [
        (header::CONTENT_TYPE.as_str(), "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH.as_str(), coming.announced.bytes.to_string()),
        (SHA256_HEADER, coming.announced.sha256),
    ];
    Ok((headers, Body::from_stream(bytes)).into_response())
}

/// GET `/api/v1/jobs/{id}/files/{name}`
#[utoipa::path(
    get, tag = "hosts", path = "/api/v1/jobs/{id}/files/{name}",
    params(("id" = String, Path, description = "A role of a job: `7-builder`"), ("name" = String, Path, description = "The file's name")),
    responses((status = 200, description = "A file that a step of it has got", content_type = "application/octet-stream", body = Vec<u8>), (status = 404, body = ErrorWire))
)]
pub(super) async fn kept(
    State(api): State<Api>,
    Path((id, name)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let job = api.job(&id)?;
    let none = || ApiError::NotFound(format!("job {id} keeps no file `{name}`; its evidence names what it has got"));
    let path = job.kept_file(&name).ok_or_else(none)?;
    let file = tokio::fs::File::open(path).await.map_err(|error| ApiError::Internal(error.to_string()))?;
    let headers = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((headers, Body::from_stream(tokio_util::io::ReaderStream::new(file))).into_response())
}
