//! Leases for people and programs: take, look at, renew, hand over, release; power, console and boot of what is held; resources, events and
//! authorizations.
//!
//! ```text
//!  POST leases ─► pending ─► active ─► power, console, boot (409 in any other state) ─► DELETE, or its time, or its owner gone ─► over (410)
//!                    └──────────── GET leases/ID/events: one line per change; with owner=1 the lease lives as long as this connection
//! ```

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use job_schema::quantity::parse_duration;
use serde::Deserialize;
use tokio::sync::watch;

use super::Api;
use super::error::ApiError;
use super::fields::read_fields;
use super::guard::{caller_of, in_words};
use super::inspect::{HEARTBEAT, LogQuery};
use super::upload::read_job;
use super::wire::leases::*;
use super::wire::pdus::ServedPowerWire;
use super::wire::{ErrorWire, EventWire, console_of};
use crate::blueprint::power::PowerState;
use crate::callers::ANYBODY;
use crate::farm::{Asks, Farm, Keeps, LeaseAsk, LeaseError, Link, Until};
use crate::job_log::{Follower, JobEvent, JobLog};
use crate::lease::actor::Follow;
use crate::lease::rows::{Authorization, Cause, Lease, LeaseState, Verb};
use crate::lease::{LeaseView, Snapshot};

/// What is typed at once: a person types bytes, a script pastes a page.
const TYPED_BYTES_MAX: usize = 64 * 1024;

/// Who asks.
#[derive(Debug, Default, Deserialize)]
pub(super) struct By {
    #[serde(default)]
    by: Option<String>,
}

impl By {
    fn in_words(&self, request: &Request) -> String {
        in_words(request, self.by.as_deref(), "an operator")
    }
}

/// Which leases.
#[derive(Debug, Default, Deserialize)]
pub(super) struct LeasesQuery {
    #[serde(default)]
    all: Option<u8>,
}

/// GET `/api/v1/leases`
#[utoipa::path(
    get, tag = "leases", path = "/api/v1/leases",
    params(("all" = Option<u8>, Query, description = "1: with their parts")),
    responses((status = 200, description = "What is not over: holders first, then the queue in its order", body = LeasesWire))
)]
pub(super) async fn leases(
    State(api): State<Api>,
    Query(query): Query<LeasesQuery>,
) -> Result<Json<LeasesWire>, ApiError> {
    let rows = rows(&api.farm).await?;
    let wholes = rows.leases.iter().filter(|lease| lease.parent.is_none() && lease.state != LeaseState::Destroyed);
    let mut leases: Vec<_> = wholes.map(|lease| LeaseWire::in_snapshot(lease, &rows)).collect();
    leases.sort_by_key(|lease| (lease.place.unwrap_or(0), lease.requested));
    if query.all.is_some_and(|all| all != 0) {
        leases = leases.into_iter().map(|lease| lease.with_parts(&rows)).collect();
    }
    Ok(Json(LeasesWire { leases }))
}

/// POST `/api/v1/leases`
#[utoipa::path(
    post, tag = "leases", path = "/api/v1/leases", request_body = TakeWire,
    responses(
        (status = 201, description = "It waits, or is active already", body = LeaseWire),
        (status = 400, description = "A field is wrong", body = ErrorWire),
        (status = 403, description = "The id is that of another project's lease", body = ErrorWire),
        (status = 404, description = "No such DUT", body = ErrorWire),
        (status = 406, description = "Nothing in the farm could ever serve it", body = ErrorWire),
    )
)]
pub(super) async fn take(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    let (by, caller) = (in_words(&request, None, "a client"), caller_of(&request));
    let mut wish: TakeWire = read_fields(request.into_body()).await?;
    wish.subject = Some(caller.acts_for(wish.subject.as_deref()).map_err(ApiError::Forbidden)?);
    let name = wish.name.clone().unwrap_or(by);
    let id = api.farm.take_lease(ask_of(wish, name)?).await?;
    let location = format!("/api/v1/leases/{id}");
    let lease = shown(&api.farm, id.as_str()).await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(lease)).into_response())
}

fn ask_of(wish: TakeWire, name: String) -> Result<LeaseAsk, ApiError> {
    let (asks, resource) = match (wish.host, wish.dut) {
        (Some(_), Some(_)) => {
            return Err(ApiError::Malformed("`host`: a lease is on a host or on a DUT; send one of them".into()));
        }
        (Some(name), None) => (Asks::Host, Some(name).filter(|name| !name.is_empty())),
        (None, dut) => (Asks::Dut, dut),
    };
    Ok(LeaseAsk {
        id: wish.id,
        asks,
        resource,
        tags: wish.tags,
        gear: wish.gear,
        prefers: wish.prefers,
        avoid: wish.avoid,
        sticky: wish.sticky,
        priority: wish.priority,
        name,
        subject: wish.subject.unwrap_or_else(|| ANYBODY.to_owned()),
        keeps: wish.owner.map(keeps_of).transpose()?.unwrap_or_default(),
        queue_time: time_of("queue_timeout", wish.queue_timeout)?,
        hold_time: time_of("for", wish.hold_time)?,
        hold_time_max: time_of("for_at_most", wish.hold_time_max)?,
    })
}

fn keeps_of(owner: OwnerWire) -> Result<Keeps, ApiError> {
    Ok(match owner {
        OwnerWire::Connection => Keeps::Connection,
        OwnerWire::Term => Keeps::Term,
        OwnerWire::Heartbeat(every) => {
            let every = time_of("owner", Some(every))?;
            Keeps::Heartbeat(every.unwrap_or_default())
        }
    })
}

pub(super) fn time_of(field: &str, text: Option<String>) -> Result<Option<Duration>, ApiError> {
    let wrong = |what| ApiError::Malformed(format!("`{field}`: {what}; write it as `1h 30m` or `90 s`"));
    text.map(|text| parse_duration(&text).map_err(wrong)).transpose()
}

/// GET `/api/v1/leases/{id}`
#[utoipa::path(
    get, tag = "leases", path = "/api/v1/leases/{id}",
    params(("id" = String, Path, description = "The lease's id")),
    responses((status = 200, description = "Over or not, with its parts", body = LeaseWire), (status = 404, body = ErrorWire))
)]
pub(super) async fn lease(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<LeaseWire>, ApiError> {
    Ok(Json(shown(&api.farm, &id).await?))
}

/// PATCH `/api/v1/leases/{id}`
#[utoipa::path(
    patch, tag = "leases", path = "/api/v1/leases/{id}", request_body = ChangeWire,
    params(("id" = String, Path, description = "The lease's id"), ("by" = Option<String>, Query, description = "Who asks, for the events")),
    responses(
        (status = 200, description = "As it is now", body = LeaseWire),
        (status = 400, description = "A field is wrong", body = ErrorWire),
        (status = 404, body = ErrorWire),
        (status = 409, description = "Not in its state, or a job's", body = ErrorWire),
        (status = 410, description = "It is over", body = ErrorWire),
    )
)]
pub(super) async fn change(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(by): Query<By>,
    request: Request,
) -> Result<Json<LeaseWire>, ApiError> {
    let by = by.in_words(&request);
    let wish: ChangeWire = read_fields(request.into_body()).await?;
    let until = match (time_of("for", wish.hold_time)?, wish.until) {
        (Some(_), Some(_)) => return Err(ApiError::Malformed("`for` and `until` are the same wish; send one".into())),
        (Some(time), None) => Some(Until::For(time)),
        (None, Some(until)) => Some(until_of(until)?),
        (None, None) => None,
    };
    let owner = wish.owner.map(keeps_of).transpose()?;
    if until.is_none() && owner.is_none() && wish.name.is_none() {
        return Err(ApiError::Malformed("nothing to change; send `for` or `until`, or `owner` and `name`".into()));
    }
    if let Some(until) = until {
        api.farm.renew_lease(&id, until, &by).await?;
    }
    if owner.is_some() || wish.name.is_some() {
        let name = wish.name.ok_or_else(|| ApiError::Malformed("`name`: say to whom it is handed over".into()))?;
        api.farm.hand_over_lease(&id, &name, owner.unwrap_or_default(), &by).await?;
    }
    Ok(Json(shown(&api.farm, &id).await?))
}

fn until_of(until: jiff::Timestamp) -> Result<Until, ApiError> {
    let ms = u64::try_from(until.as_millisecond());
    let ms = ms.map_err(|_| ApiError::Malformed("`until`: that was before 1970".into()))?;
    Ok(Until::At(crate::lease::rows::Moment(ms)))
}

/// DELETE `/api/v1/leases/{id}`
#[utoipa::path(
    delete, tag = "leases", path = "/api/v1/leases/{id}",
    params(("id" = String, Path, description = "The lease's id"), ("by" = Option<String>, Query, description = "Who asks, for the events")),
    responses(
        (status = 200, description = "It is being given back; follow its events. A job's lease takes its job along", body = LeaseWire),
        (status = 404, body = ErrorWire),
        (status = 410, description = "It is over", body = ErrorWire),
    )
)]
pub(super) async fn release(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(by): Query<By>,
    request: Request,
) -> Result<Json<LeaseWire>, ApiError> {
    api.farm.release_lease(&id, &by.in_words(&request)).await?;
    Ok(Json(shown(&api.farm, &id).await?))
}

/// POST `/api/v1/leases/{id}/beat`
#[utoipa::path(
    post, tag = "leases", path = "/api/v1/leases/{id}/beat",
    params(("id" = String, Path, description = "The lease's id")),
    responses(
        (status = 200, body = LeaseWire),
        (status = 404, body = ErrorWire),
        (status = 409, description = "It has no heartbeat", body = ErrorWire),
        (status = 410, description = "It is over", body = ErrorWire),
    )
)]
pub(super) async fn beat(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<LeaseWire>, ApiError> {
    api.farm.beat(&id).await?;
    Ok(Json(shown(&api.farm, &id).await?))
}

/// POST `/api/v1/leases/{id}/abandon`
#[utoipa::path(
    post, tag = "leases", path = "/api/v1/leases/{id}/abandon", request_body = ReasonWire,
    params(("id" = String, Path, description = "The lease's id"), ("by" = Option<String>, Query, description = "Who asks, for the events")),
    responses(
        (status = 200, description = "Its tear-down counts as done", body = LeaseWire),
        (status = 404, body = ErrorWire),
        (status = 409, description = "Its tear-down needs nobody", body = ErrorWire),
        (status = 410, description = "It is over", body = ErrorWire),
    )
)]
pub(super) async fn abandon(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(by): Query<By>,
    request: Request,
) -> Result<Json<LeaseWire>, ApiError> {
    let by = by.in_words(&request);
    let reason = reason_of(read_fields(request.into_body()).await?)?;
    api.farm.abandon_lease(&id, &reason, &by).await?;
    Ok(Json(shown(&api.farm, &id).await?))
}

fn reason_of(wish: ReasonWire) -> Result<String, ApiError> {
    let reason = wish.reason.filter(|reason| !reason.trim().is_empty());
    reason.ok_or_else(|| ApiError::Malformed("`reason`: say why; the events keep it".into()))
}

/// What a connection means for a lease.
#[derive(Debug, Default, Deserialize)]
pub(super) struct EventsOfLease {
    #[serde(default)]
    owner: Option<u8>,
}

/// GET `/api/v1/leases/{id}/events`
#[utoipa::path(
    get, tag = "leases", path = "/api/v1/leases/{id}/events",
    params(
        ("id" = String, Path, description = "The lease's id"),
        ("owner" = Option<u8>, Query, description = "1: this connection keeps the lease; when it is lost, the lease is released"),
    ),
    responses(
        (status = 200, description = "The lease once per change, until it is over; empty lines are heartbeats", content_type = "application/x-ndjson", body = LeaseWire),
        (status = 404, body = ErrorWire),
        (status = 409, description = "It does not live by a connection", body = ErrorWire),
        (status = 410, description = "It is over", body = ErrorWire),
    )
)]
pub(super) async fn events_of_lease(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<EventsOfLease>,
) -> Result<Response, ApiError> {
    let link = match query.owner {
        None | Some(0) => None,
        Some(_) => Some(api.farm.link(&id).await?),
    };
    let views = api.farm.lease_views(&id).await?;
    Ok(lines(news(Arc::clone(&api.farm), views, link)))
}

/// One lease per change.
fn news(
    farm: Arc<Farm>,
    views: watch::Receiver<LeaseView>,
    link: Option<Arc<Link>>,
) -> impl Stream<Item = Result<Bytes, LeaseError>> {
    stream::try_unfold(Some((farm, views, link, Told::Nothing)), |state| async {
        let Some((farm, mut views, link, told)) = state else { return Ok(None) };
        if told == Told::Something {
            match tokio::time::timeout(HEARTBEAT, views.changed()).await {
                Err(_) => return Ok(Some((Bytes::from_static(b"\n"), Some((farm, views, link, told))))),
                // The keeper is gone, and the farm with it.
                Ok(Err(_)) => return Ok(None),
                Ok(Ok(())) => {}
            }
        }
        let view = views.borrow_and_update().clone();
        let lease = farm.lease(view.id.as_str()).await?;
        let line = line_of(&LeaseWire::of(&lease, &view));
        let rest = (view.state != LeaseState::Destroyed).then_some((farm, views, link, Told::Something));
        Ok(Some((line, rest)))
    })
}

/// Whether a stream has begun.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Something,
}

/// GET `/api/v1/leases/{id}/power`
#[utoipa::path(
    get, tag = "leases", path = "/api/v1/leases/{id}/power",
    params(("id" = String, Path, description = "The lease's id")),
    responses(
        (status = 200, description = "As the outlet reads now", body = PowerWire),
        (status = 404, body = ErrorWire),
        (status = 409, description = "Not active, or a job's", body = ErrorWire),
        (status = 410, description = "It is over", body = ErrorWire),
    )
)]
pub(super) async fn power(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<PowerWire>, ApiError> {
    Ok(power_wire(api.farm.read_power(&id).await?))
}

/// POST `/api/v1/leases/{id}/power`
#[utoipa::path(
    post, tag = "leases", path = "/api/v1/leases/{id}/power", request_body = PowerWishWire,
    params(("id" = String, Path, description = "The lease's id")),
    responses(
        (status = 200, description = "Switched, and read back", body = PowerWire),
        (status = 404, body = ErrorWire),
        (status = 409, description = "Not active, or a job's", body = ErrorWire),
        (status = 410, description = "It is over", body = ErrorWire),
    )
)]
pub(super) async fn switch(
    State(api): State<Api>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Json<PowerWire>, ApiError> {
    let wish: PowerWishWire = read_fields(request.into_body()).await?;
    let action = wish.state.ok_or_else(|| ApiError::Malformed("`state`: send `on`, `off` or `cycle`".into()))?;
    Ok(power_wire(api.farm.switch_lease(&id, action, Duration::ZERO).await?))
}

/// GET `/api/v1/leases/{id}/power/served`
#[utoipa::path(
    get, tag = "leases", path = "/api/v1/leases/{id}/power/served",
    params(("id" = String, Path, description = "The lease's id")),
    responses(
        (status = 200, description = "How pdudaemon's clients and labgrid name its outlet", body = ServedPowerWire),
        (status = 404, body = ErrorWire),
        (status = 409, description = "Not active, or a job's", body = ErrorWire),
        (status = 410, description = "It is over", body = ErrorWire),
    )
)]
pub(super) async fn served_power(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<ServedPowerWire>, ApiError> {
    let (_, outlet) = api.farm.outlet_of_lease(&id).await?;
    let key = api.farm.power_key(&id).await?;
    let (rest, pdudaemon) = api.farm.power_addresses();
    Ok(Json(ServedPowerWire {
        rest: format!("http://{rest}/power/{key}"),
        simplerest: format!("http://{rest}/power/{key}/{{value}}"),
        pdudaemon: format!("http://{pdudaemon}/power/control/on?hostname={key}&port=0"),
        outlet,
        key,
    }))
}

fn power_wire(state: PowerState) -> Json<PowerWire> {
    Json(PowerWire { state })
}

/// PUT `/api/v1/leases/{id}/boot`
#[utoipa::path(
    put, tag = "leases", path = "/api/v1/leases/{id}/boot",
    params(("id" = String, Path, description = "The lease's id"), ("name" = Option<String>, Query, description = "The job file's name, for problems")),
    request_body(content = String, content_type = "application/yaml", description = "A job description; its `deployment.start` is published for the DUT"),
    responses(
        (status = 204, description = "Whatever switches the DUT on boots it"),
        (status = 400, description = "The job has problems", body = ErrorWire),
        (status = 404, body = ErrorWire),
        (status = 409, description = "Not active, or a job's", body = ErrorWire),
        (status = 410, description = "It is over", body = ErrorWire),
    )
)]
pub(super) async fn boot(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<BootQuery>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    let reach = caller_of(&request).reach();
    let text = read_job(request.into_body()).await?;
    api.farm.boot_lease(&id, query.name.as_deref().unwrap_or("job.yml"), &text, reach).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The name of a job file.
#[derive(Debug, Default, Deserialize)]
pub(super) struct BootQuery {
    #[serde(default)]
    name: Option<String>,
}

/// GET `/api/v1/leases/{id}/console`
#[utoipa::path(
    get, tag = "leases", path = "/api/v1/leases/{id}/console",
    params(
        ("id" = String, Path, description = "The lease's id; a person's"),
        ("since" = Option<u64>, Query, description = "Offset of the first byte"),
        ("follow" = Option<u8>, Query, description = "1: goes on until the lease is over"),
    ),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>), (status = 404, body = ErrorWire))
)]
pub(super) async fn console(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<LogQuery>,
) -> Result<Response, ApiError> {
    let follows = query.follow.is_some_and(|follow| follow != 0);
    let over = api.farm.hold(&id).filter(|_| follows).map(|hold| hold.over());
    let log = log_of(&api.farm, &id).await?;
    let headers = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((headers, Body::from_stream(bytes_of(&log, query.since, over))).into_response())
}

/// Which records of a log.
#[derive(Debug, Default, Deserialize)]
pub(super) struct RecordsQuery {
    #[serde(default)]
    from: usize,
}

/// GET `/api/v1/leases/{id}/log`
#[utoipa::path(
    get, tag = "leases", path = "/api/v1/leases/{id}/log",
    params(("id" = String, Path, description = "The lease's id; a person's"), ("from" = Option<u64>, Query, description = "Number of the first record")),
    responses((status = 200, description = "What was done and seen so far, as a job's events", content_type = "application/x-ndjson", body = EventWire), (status = 404, body = ErrorWire))
)]
pub(super) async fn log(
    State(api): State<Api>,
    Path(id): Path<String>,
    Query(query): Query<RecordsQuery>,
) -> Result<Response, ApiError> {
    let log = log_of(&api.farm, &id).await?;
    let records = log.records().into_iter().skip(query.from);
    let records: Vec<_> = records.map(|record| line_of(&EventWire::of(&record, &console_of(&log, &record)))).collect();
    Ok(lines(stream::iter(records.into_iter().map(Ok::<_, std::convert::Infallible>))))
}

async fn log_of(farm: &Farm, id: &str) -> Result<Arc<JobLog>, ApiError> {
    if let Some(hold) = farm.hold(id) {
        return Ok(Arc::clone(&hold.log));
    }
    farm.lease(id).await?;
    let nothing =
        || ApiError::NotFound(format!("lease {id} has no console of its own; that of a job is the job's log"));
    farm.log_of_lease(id).ok_or_else(nothing)
}

/// The console from byte `since` on, as far as it goes; with `over` until the lease is.
fn bytes_of(
    log: &Arc<JobLog>,
    since: u64,
    over: Option<watch::Receiver<bool>>,
) -> impl Stream<Item = std::io::Result<Bytes>> + use<> {
    let until = if over.is_some() { usize::MAX } else { log.records().len() };
    stream::try_unfold(
        (log.follow(0), over, until, 0),
        move |(mut follower, mut over, mut until, mut read)| async move {
            while read < until {
                let record = tokio::select! {
                    biased;
                    record = follower.next() => record,
                    () = is_over(&mut over) => {
                        (over, until) = (None, follower.log().records().len());
                        continue;
                    }
                };
                let Some(record) = record else { break };
                read = record.number + 1;
                if let Some(bytes) = console_bytes(&follower, &record.event, since)? {
                    return Ok(Some((bytes, (follower, over, until, read))));
                }
            }
            Ok(None)
        },
    )
}

async fn is_over(over: &mut Option<watch::Receiver<bool>>) {
    match over {
        // A hold that is gone is over.
        Some(over) => drop(over.wait_for(|over| *over).await),
        None => std::future::pending().await,
    }
}

fn console_bytes(follower: &Follower, event: &JobEvent, since: u64) -> std::io::Result<Option<Bytes>> {
    let JobEvent::Console { offset, length } = *event else { return Ok(None) };
    let (end, start) = (offset + length as u64, offset.max(since));
    if end <= start {
        return Ok(None);
    }
    follower.log().console_bytes(start, usize::try_from(end - start).unwrap_or(length)).map(Some)
}

/// POST `/api/v1/leases/{id}/console`
#[utoipa::path(
    post, tag = "leases", path = "/api/v1/leases/{id}/console",
    params(("id" = String, Path, description = "The lease's id; a person's")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 204, description = "Typed"),
        (status = 404, body = ErrorWire),
        (status = 409, description = "Not active, or a job's", body = ErrorWire),
        (status = 410, description = "It is over", body = ErrorWire),
    )
)]
pub(super) async fn type_on_console(
    State(api): State<Api>,
    Path(id): Path<String>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let bytes = axum::body::to_bytes(body, TYPED_BYTES_MAX).await;
    let bytes =
        bytes.map_err(|error| ApiError::TooLarge(format!("at most {TYPED_BYTES_MAX} bytes at once: {error}")))?;
    api.farm.type_in_lease(&id, bytes).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// GET `/api/v1/resources`
#[utoipa::path(get, tag = "leases", path = "/api/v1/resources", responses((status = 200, body = ResourcesWire)))]
pub(super) async fn resources(State(api): State<Api>) -> Result<Json<ResourcesWire>, ApiError> {
    let rows = rows(&api.farm).await?;
    let mut resources: Vec<_> = rows.resources.iter().map(|resource| ResourceWire::of(resource, &rows)).collect();
    resources.sort_by(|one, other| (&one.name, &one.id).cmp(&(&other.name, &other.id)));
    Ok(Json(ResourcesWire { resources }))
}

/// GET `/api/v1/resources/{name}`
#[utoipa::path(
    get, tag = "leases", path = "/api/v1/resources/{name}",
    params(("name" = String, Path, description = "Its name, its full name or its row's id")),
    responses((status = 200, body = ResourcePageWire), (status = 404, body = ErrorWire))
)]
pub(super) async fn resource(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<ResourcePageWire>, ApiError> {
    let rows = rows(&api.farm).await?;
    let called = rows.resources.iter().filter(|row| row.is_called(&name) || row.id.as_str() == name);
    let found = called.max_by_key(|row| row.serial);
    let found =
        found.ok_or_else(|| ApiError::NotFound(format!("no resource `{name}`; `wharf duts` lists the DUTs")))?;
    let events = api.farm.keeper().events_of(found.object()).await;
    let events = events.map_err(|error| ApiError::Internal(error.to_string()))?;
    let on_it = rows.leases.iter().filter(|lease| lease.resource.as_ref() == Some(&found.id));
    Ok(Json(ResourcePageWire {
        resource: ResourceWire::of(found, &rows),
        held_by: on_it.map(|lease| LeaseWire::in_snapshot(lease, &rows)).collect(),
        events: events.iter().map(TransitionWire::of).collect(),
    }))
}

/// POST `/api/v1/resources/{name}/{verb}`
#[utoipa::path(
    post, tag = "leases", path = "/api/v1/resources/{name}/{verb}", request_body = Option<ReasonWire>,
    params(
        ("name" = String, Path, description = "Its name or full name"),
        ("verb" = String, Path, description = "`drain`, `undrain`, `cordon`, `uncordon`, `release`, `reclaim`, `abandon`; `cordon` and `abandon` need a reason"),
        ("by" = Option<String>, Query, description = "Who asks, for the events"),
    ),
    responses((status = 200, description = "As it is now", body = ResourceWire), (status = 400, body = ErrorWire), (status = 404, body = ErrorWire))
)]
pub(super) async fn tell_resource(
    State(api): State<Api>,
    Path((name, verb)): Path<(String, String)>,
    Query(by): Query<By>,
    request: Request,
) -> Result<Json<ResourceWire>, ApiError> {
    let by = by.in_words(&request);
    let wish: ReasonWire = read_fields(request.into_body()).await?;
    let verb = match verb.as_str() {
        "drain" => Verb::Drain,
        "undrain" => Verb::Undrain,
        "cordon" => Verb::Cordon { reason: reason_of(wish)? },
        "uncordon" => Verb::Uncordon,
        "release" => Verb::Release { cause: Cause::Released { by: by.clone() } },
        "reclaim" => Verb::Reclaim,
        "abandon" => Verb::Abandon { reason: reason_of(wish)? },
        unknown => {
            let known = "drain, undrain, cordon, uncordon, release, reclaim, abandon";
            return Err(ApiError::NotFound(format!("nobody can `{unknown}` a resource; there are {known}")));
        }
    };
    let uncordoned = verb == Verb::Uncordon;
    api.farm.tell_resource(&name, verb, &by).await?;
    if uncordoned {
        // What the farm held back itself is let go with it, as with CI-tron's `ready_for_service`.
        let health = crate::lease::rows::Health::Unknown;
        api.farm.tell_resource(&name, Verb::Judge { health }, &by).await?;
    }
    let rows = rows(&api.farm).await?;
    let found = rows.resources.iter().filter(|row| row.is_called(&name)).max_by_key(|row| row.serial);
    let found = found.ok_or_else(|| ApiError::NotFound(format!("`{name}` is gone")))?;
    Ok(Json(ResourceWire::of(found, &rows)))
}

/// Which events.
#[derive(Debug, Default, Deserialize)]
pub(super) struct EventsQuery {
    #[serde(default)]
    from: u64,
    #[serde(default)]
    follow: Option<u8>,
    #[serde(default)]
    of: Option<String>,
}

/// GET `/api/v1/events`
#[utoipa::path(
    get, tag = "leases", path = "/api/v1/events",
    params(
        ("from" = Option<u64>, Query, description = "Number of the first event; the oldest that is kept when absent"),
        ("follow" = Option<u8>, Query, description = "1: goes on for as long as the farm runs; empty lines are heartbeats"),
        ("of" = Option<String>, Query, description = "Only those of this lease, resource, or DUT by its name"),
    ),
    responses((status = 200, content_type = "application/x-ndjson", body = TransitionWire))
)]
pub(super) async fn events(State(api): State<Api>, Query(query): Query<EventsQuery>) -> Result<Response, ApiError> {
    let follow = api.farm.keeper().follow_events(query.from);
    if query.follow.is_some_and(|follow| follow != 0) {
        return Ok(lines(followed(follow, query.of)));
    }
    let pages = stream::try_unfold((api, query), |(api, mut query)| async {
        let page = api.farm.keeper().events(query.from).await?;
        let Some(last) = page.last() else { return Ok(None) };
        query.from = last.seq + 1;
        let wanted = page.iter().map(TransitionWire::of).filter(|event| is_of(event, query.of.as_deref()));
        let text: Vec<u8> = wanted.flat_map(|event| line_of(&event)).collect();
        Ok::<_, crate::lease::store::StoreError>(Some((Bytes::from(text), (api, query))))
    });
    Ok(lines(pages))
}

fn followed(follow: Follow, of: Option<String>) -> impl Stream<Item = Result<Bytes, crate::lease::store::StoreError>> {
    stream::try_unfold((follow, of), |(mut follow, of)| async {
        loop {
            let event = match tokio::time::timeout(HEARTBEAT, follow.next()).await {
                Err(_) => return Ok(Some((Bytes::from_static(b"\n"), (follow, of)))),
                Ok(None) => return Ok(None),
                Ok(Some(event)) => TransitionWire::of(&event?),
            };
            if is_of(&event, of.as_deref()) {
                return Ok(Some((line_of(&event), (follow, of))));
            }
        }
    })
}

/// By id, or a resource's by its name: its rows are `<name>#<serial>`.
fn is_of(event: &TransitionWire, of: Option<&str>) -> bool {
    let name = event.id.rsplit_once('#').map(|(name, _)| name);
    of.is_none_or(|of| event.id == of || name == Some(of))
}

/// GET `/api/v1/authorizations`
#[utoipa::path(get, tag = "leases", path = "/api/v1/authorizations", responses((status = 200, description = "Those that wait for an answer, too", body = AuthorizationsWire)))]
pub(super) async fn authorizations(State(api): State<Api>) -> Result<Json<AuthorizationsWire>, ApiError> {
    let rows = rows(&api.farm).await?;
    Ok(Json(AuthorizationsWire { authorizations: rows.authorizations.iter().map(AuthorizationWire::from).collect() }))
}

/// POST `/api/v1/authorizations`
#[utoipa::path(
    post, tag = "leases", path = "/api/v1/authorizations", request_body = AuthorizeWire,
    params(("by" = Option<String>, Query, description = "Who answers")),
    responses((status = 200, description = "All answers", body = AuthorizationsWire), (status = 400, body = ErrorWire), (status = 404, description = "No such blueprint", body = ErrorWire))
)]
pub(super) async fn authorize(
    State(api): State<Api>,
    Query(by): Query<By>,
    request: Request,
) -> Result<Json<AuthorizationsWire>, ApiError> {
    let by = by.in_words(&request);
    let wish: AuthorizeWire = read_fields(request.into_body()).await?;
    for (field, value) in [("subject", &wish.subject), ("blueprint", &wish.blueprint)] {
        if value.is_empty() {
            return Err(ApiError::Malformed(format!("`{field}` is missing")));
        }
    }
    let state = wish.state.ok_or_else(|| ApiError::Malformed("`state`: send `authorized` or `declined`".into()))?;
    let at = rows(&api.farm).await?.at;
    let answer = Authorization { subject: wish.subject, blueprint: wish.blueprint, state: state.into(), by, at };
    api.farm.authorize(answer).await?;
    authorizations(State(api)).await
}

async fn rows(farm: &Farm) -> Result<Snapshot, ApiError> {
    farm.keeper().snapshot().await.ok_or_else(|| ApiError::Unavailable("the farm is stopping".into()))
}

async fn shown(farm: &Farm, id: &str) -> Result<LeaseWire, ApiError> {
    let lease: Lease = farm.lease(id).await?;
    let view = farm.lease_views(id).await?.borrow().clone();
    let whole = LeaseWire::of(&lease, &view);
    Ok(match lease.state {
        LeaseState::Pending | LeaseState::Destroyed => whole,
        LeaseState::Acquired | LeaseState::Active | LeaseState::Releasing => whole.with_parts(&rows(farm).await?),
    })
}

pub(super) fn line_of(value: &impl serde::Serialize) -> Bytes {
    let mut line = serde_json::to_vec(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}").into_bytes());
    line.push(b'\n');
    line.into()
}

pub(super) fn lines<E>(stream: impl Stream<Item = Result<Bytes, E>> + Send + 'static) -> Response
where
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(stream)).into_response()
}

impl From<LeaseError> for ApiError {
    fn from(error: LeaseError) -> Self {
        let text = error.to_string();
        match error {
            LeaseError::NoSuch(_) => ApiError::NotFound(text),
            LeaseError::NotYours(_) => ApiError::Forbidden(text),
            LeaseError::Over(_) => ApiError::Gone(text),
            LeaseError::NotNow(_) => ApiError::Conflict(text),
            LeaseError::Wrong { .. } => ApiError::Malformed(text),
            LeaseError::Never(never) => ApiError::from(never),
            LeaseError::Problems(problems) => ApiError::Problems(problems),
            LeaseError::Failed(_) => ApiError::Internal(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_duration_says_how_to_write_one() {
        let wish = TakeWire { hold_time: Some("an hour".into()), ..TakeWire::default() };
        let error = ask_of(wish, "anna".into()).unwrap_err();
        let text = "`for`: each part of a duration begins with a number; write it as `1h 30m` or `90 s`";
        assert!(matches!(error, ApiError::Malformed(said) if said == text));
    }

    #[test]
    fn a_connection_keeps_a_lease_unless_something_else_is_asked() {
        let ask = |owner| ask_of(TakeWire { owner, ..TakeWire::default() }, "anna".into()).unwrap().keeps;
        assert_eq!(ask(None), Keeps::Connection);
        assert_eq!(ask(Some(OwnerWire::Term)), Keeps::Term);
        assert_eq!(ask(Some(OwnerWire::Heartbeat("30 s".into()))), Keeps::Heartbeat(Duration::from_secs(30)));
    }

    #[tokio::test]
    async fn a_console_that_is_followed_ends_with_the_lease_and_loses_nothing() {
        use futures_util::TryStreamExt;
        let directory = tempfile::tempdir().unwrap();
        let log = JobLog::create(directory.path()).unwrap();
        let (over, is_over) = watch::channel(false);
        log.append_console(b"hello ").unwrap();
        let mut bytes = std::pin::pin!(bytes_of(&log, 2, Some(is_over)));
        assert_eq!(bytes.try_next().await.unwrap().unwrap(), "llo ");
        log.append_console(b"world").unwrap();
        over.send_replace(true);
        assert_eq!(bytes.try_next().await.unwrap().unwrap(), "world");
        assert_eq!(bytes.try_next().await.unwrap(), None);
    }
}
