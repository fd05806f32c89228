//! What anybody may look at: jobs, their logs and events, the documents about this API.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use serde::Deserialize;
use serde_json::Value;
use utoipa::OpenApi;

use super::Api;
use super::error::ApiError;
use super::guard::caller_of;
use super::owner::Owner;
use super::wire::{ErrorWire, EventWire, JobWire, JobsWire, console_of};
use crate::callers::Role;
use crate::farm::JobRecord;
use crate::job_log::{Follower, JobEvent, JobLog};

/// An event stream without events gets an empty line this often: a reader that is gone is noticed by it, and a proxy between stays open.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(10);

/// GET `/api/v1/jobs`
#[utoipa::path(get, tag = "inspect", path = "/api/v1/jobs", responses((status = 200, description = "The newest first; those of the caller's own project, unless he may operate", body = JobsWire)))]
pub(super) async fn jobs(State(api): State<Api>, request: Request) -> Json<JobsWire> {
    let caller = caller_of(&request);
    let shows = |record: &&Arc<JobRecord>| {
        caller.role >= Role::Operate || caller.project.as_ref().is_none_or(|own| *own == record.subject)
    };
    Json(JobsWire { jobs: api.farm.jobs().iter().filter(shows).map(|record| JobWire::of(record)).collect() })
}

/// GET `/api/v1/jobs/{id}`
#[utoipa::path(
    get, tag = "inspect", path = "/api/v1/jobs/{id}",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, body = JobWire), (status = 404, body = ErrorWire))
)]
pub(super) async fn job(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<JobWire>, ApiError> {
    Ok(Json(JobWire::with_accesses(&*api.job(&id)?)))
}

/// What of a console is wanted.
#[derive(Debug, Default, Deserialize)]
pub(super) struct LogQuery {
    #[serde(default)]
    pub(super) since: u64,
    #[serde(default)]
    pub(super) follow: Option<u8>,
}

/// GET `/api/v1/jobs/{id}/log`: the console's bytes, as the DUT sent them.
#[utoipa::path(
    get, tag = "inspect", path = "/api/v1/jobs/{id}/log",
    params(
        ("id" = String, Path, description = "The job's id"),
        ("since" = Option<u64>, Query, description = "Offset of the first byte"),
        ("follow" = Option<u8>, Query, description = "1: goes on until the job ends"),
    ),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>), (status = 404, body = ErrorWire))
)]
pub(super) async fn log(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<LogQuery>,
) -> Result<Response, ApiError> {
    let record = api.job(&id)?;
    let headers = [(header::CONTENT_TYPE, "application/octet-stream")];
    let until = match query.follow {
        None | Some(0) => Some(record.log.records().len()),
        Some(_) => None,
    };
    let bytes = console(&record.log, query.since, until);
    Ok((headers, Body::from_stream(bytes)).into_response())
}

/// The console from byte `since` on, until record `until` or the end of the job.
pub(super) fn console(
    log: &Arc<JobLog>,
    since: u64,
    until: Option<usize>,
) -> impl Stream<Item = std::io::Result<Bytes>> + use<> {
    stream::try_unfold((log.follow(0), 0), move |(mut follower, mut read)| async move {
        while until.is_none_or(|until| read < until) {
            let Some(record) = follower.next().await else { break };
            read = record.number + 1;
            let JobEvent::Console { offset, length } = record.event else { continue };
            let end = offset + length as u64;
            if end > since {
                let start = offset.max(since);
                let bytes = follower.log().console_bytes(start, (end - start) as usize)?;
                return Ok(Some((bytes, (follower, read))));
            }
        }
        Ok(None)
    })
}

/// Which events are wanted, and what the connection means.
#[derive(Debug, Default, Deserialize)]
pub(super) struct EventsQuery {
    #[serde(default)]
    from: usize,
    #[serde(default)]
    owner: Option<u8>,
}

/// GET `/api/v1/jobs/{id}/events`: one JSON record per line until the job ends; empty lines are heartbeats.
#[utoipa::path(
    get, tag = "inspect", path = "/api/v1/jobs/{id}/events",
    params(
        ("id" = String, Path, description = "The job's id"),
        ("from" = Option<u64>, Query, description = "Number of the first record"),
        ("owner" = Option<u8>, Query, description = "1: this connection owns the job; when it is lost, the job is cancelled"),
    ),
    responses((status = 200, content_type = "application/x-ndjson", body = EventWire), (status = 404, body = ErrorWire))
)]
pub(super) async fn events(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<EventsQuery>,
) -> Result<Response, ApiError> {
    let record = api.job(&id)?;
    let owner = match query.owner {
        None | Some(0) => None,
        Some(_) => Some(Owner::of(&api.farm, &record)),
    };
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(lines(record.log.follow(query.from), owner))).into_response())
}

fn lines(follower: Follower, owner: Option<Owner>) -> impl Stream<Item = serde_json::Result<Bytes>> {
    stream::try_unfold((follower, owner), |(mut follower, owner)| async move {
        let line = match tokio::time::timeout(HEARTBEAT, follower.next()).await {
            Err(_) => Bytes::from_static(b"\n"),
            Ok(None) => return Ok(None),
            Ok(Some(record)) => {
                let console = console_of(follower.log(), &record);
                let mut line = serde_json::to_vec(&EventWire::of(&record, &console))?;
                line.push(b'\n');
                line.into()
            }
        };
        Ok(Some((line, (follower, owner))))
    })
}

/// GET `/api/v1/schema/job`
#[utoipa::path(get, tag = "inspect", path = "/api/v1/schema/job", responses((status = 200, description = "JSON Schema of a job description", body = Object)))]
pub(super) async fn job_schema() -> Json<Value> {
    Json(job_schema::json_schema())
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Wharfinger", description = "The operator's API of a farm of machines under test"),
    paths(
        jobs,
        job,
        log,
        events,
        job_schema,
        super::administer::reload,
        super::callers::add,
        super::callers::caller,
        super::callers::revoke,
        super::callers::session,
        super::callers::tokens,
        super::found_pdus::adopt,
        super::found_pdus::discover,
        super::found_pdus::remove,
        super::console_port::serve,
        super::discovery::add,
        super::discovery::cancel,
        super::discovery::discover,
        super::discovery::discovery,
        super::discovery::loaders,
        super::discovery::news,
        super::discovery::outlets,
        super::discovery::remove,
        super::consoles::consoles,
        super::consoles::console,
        super::consoles::log,
        super::consoles::events,
        super::buckets::buckets,
        super::buckets::bucket,
        super::buckets::bucket_of_lease,
        super::buckets::buckets_of_lease,
        super::disks::disks,
        super::disks::remove,
        super::registry::registry,
        super::registry::forget,
        super::hosts::command,
        super::hosts::get,
        super::hosts::hosts,
        super::hosts::kept,
        super::hosts::put,
        super::leases::leases,
        super::leases::take,
        super::leases::lease,
        super::leases::change,
        super::leases::release,
        super::leases::beat,
        super::leases::abandon,
        super::leases::events_of_lease,
        super::leases::power,
        super::leases::switch,
        super::leases::served_power,
        super::leases::boot,
        super::leases::console,
        super::leases::log,
        super::leases::type_on_console,
        super::leases::resources,
        super::leases::resource,
        super::leases::tell_resource,
        super::leases::events,
        super::leases::authorizations,
        super::leases::authorize,
        super::submit::submit,
        super::submit::cancel,
        super::submit::type_on_console,
        super::ci_tron::duts,
        super::ci_tron::dut,
        super::ci_tron_duts::update,
        super::ci_tron_duts::training_loop,
        super::ci_tron::cancel_job,
        super::ci_tron_duts::quick_check,
        super::ci_tron_duts::queue_quick_check,
        super::pdus::pdus,
        super::pdus::pdu,
        super::pdus::port,
        super::pdus::change_port,
        super::pdus::done,
        super::ci_tron::full_state,
    ),
    components(schemas(super::wire::ProblemWire))
)]
struct Document;

/// GET `/api/v1/openapi.json`
pub(super) async fn openapi() -> Response {
    match Document::openapi().to_json() {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(error) => ApiError::Internal(format!("cannot write the OpenAPI document: {error}")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::TryStreamExt;

    #[tokio::test]
    async fn an_event_stream_is_one_json_object_per_line_from_the_record_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let log = JobLog::create(directory.path()).unwrap();
        log.append(JobEvent::SetupStarted);
        log.append_console(b"ok\n").unwrap();
        let mut lines = std::pin::pin!(lines(log.follow(1), None));
        let line = lines.try_next().await.unwrap().unwrap();
        let event: EventWire = serde_json::from_slice(&line).unwrap();
        assert_eq!((event.record.number, event.console_bytes()), (1, b"ok\n".to_vec()));
        assert!(line.ends_with(b"}\n"));
    }

    #[tokio::test]
    async fn a_running_jobs_console_is_given_from_an_offset_and_does_not_wait() {
        let directory = tempfile::tempdir().unwrap();
        let log = JobLog::create(directory.path()).unwrap();
        log.append_console(b"hello ").unwrap();
        log.append(JobEvent::PoweredOff);
        log.append_console(b"world").unwrap();
        let bytes: Vec<Bytes> = console(&log, 4, Some(3)).try_collect().await.unwrap();
        assert_eq!(bytes, ["o ", "world"]);
        let bytes: Vec<Bytes> = console(&log, 0, Some(0)).try_collect().await.unwrap();
        assert_eq!(bytes, Vec::<Bytes>::new());
    }

    #[test]
    fn the_openapi_document_has_every_route_of_ours() {
        let document: Value = serde_json::from_str(&Document::openapi().to_json().unwrap()).unwrap();
        let mut paths: Vec<_> = document["paths"].as_object().unwrap().keys().cloned().collect();
        paths.sort();
        let expected = [
            "/api/v1/authorizations",
            "/api/v1/caller",
            "/api/v1/consoles",
            "/api/v1/consoles/{name}",
            "/api/v1/consoles/{name}/events",
            "/api/v1/consoles/{name}/log",
            "/api/v1/disks",
            "/api/v1/disks/{id}",
            "/api/v1/dut/",
            "/api/v1/dut/discover",
            "/api/v1/dut/discover/outlets",
            "/api/v1/dut/discover/usb",
            "/api/v1/dut/discover/{id}",
            "/api/v1/dut/{name}",
            "/api/v1/dut/{name}/cancel_job",
            "/api/v1/dut/{name}/quick_check",
            "/api/v1/dut/{name}/training/loop/{number}",
            "/api/v1/duts",
            "/api/v1/events",
            "/api/v1/full-state",
            "/api/v1/hosts",
            "/api/v1/jobs",
            "/api/v1/jobs/{id}",
            "/api/v1/jobs/{id}/buckets",
            "/api/v1/jobs/{id}/buckets/{name}",
            "/api/v1/jobs/{id}/cancel",
            "/api/v1/jobs/{id}/console",
            "/api/v1/jobs/{id}/events",
            "/api/v1/jobs/{id}/files/{name}",
            "/api/v1/jobs/{id}/log",
            "/api/v1/leases",
            "/api/v1/leases/{id}",
            "/api/v1/leases/{id}/abandon",
            "/api/v1/leases/{id}/beat",
            "/api/v1/leases/{id}/boot",
            "/api/v1/leases/{id}/buckets",
            "/api/v1/leases/{id}/buckets/{name}",
            "/api/v1/leases/{id}/command",
            "/api/v1/leases/{id}/console",
            "/api/v1/leases/{id}/console/serve",
            "/api/v1/leases/{id}/events",
            "/api/v1/leases/{id}/file",
            "/api/v1/leases/{id}/log",
            "/api/v1/leases/{id}/power",
            "/api/v1/leases/{id}/power/served",
            "/api/v1/pdu/{name}",
            "/api/v1/pdu/{name}/port/{id}",
            "/api/v1/pdu/{name}/port/{id}/done",
            "/api/v1/pdus",
            "/api/v1/pdus/adopt",
            "/api/v1/pdus/discover",
            "/api/v1/registry",
            "/api/v1/registry/{name}",
            "/api/v1/reload",
            "/api/v1/resources",
            "/api/v1/resources/{name}",
            "/api/v1/resources/{name}/{verb}",
            "/api/v1/schema/job",
            "/api/v1/session",
            "/api/v1/tokens",
            "/api/v1/tokens/{name}",
        ];
        assert_eq!(paths, expected);
        assert!(document["components"]["schemas"]["JobWire"].is_object());
    }
}
