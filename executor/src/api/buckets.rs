//! The buckets of jobs and of leases, for those who submitted or hold them: S3 at the API's own address, a list, and each as one tar archive.
//!
//! ```text
//!  a request ─► signed as S3 has it? ─ yes ─► the gateway's S3: its own keys say what it may
//!                                     └ no ──► the routes of the API
//! ```

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use gateway::s3::Door;
use gateway::s3::bucket::Bucket;
use gateway::s3::desk::Caller;

use super::Api;
use super::error::ApiError;
use super::guard::clean;
use super::serve::Peer;
use super::submit::peer_of;
use super::wire::ErrorWire;
use super::wire::buckets::{BucketWire, BucketsWire};
use crate::callers::audit::{Audit, Line};
use crate::farm::{BucketKeys, BucketView, Farm, JobRecord};

/// Answers what is meant for S3; everything else goes on.
pub(super) async fn s3_first(State(api): State<Api>, request: Request, next: Next) -> Response {
    if !Door::is_meant(&request) {
        return next.run(request).await;
    }
    let caller = match peer_of(&request) {
        Peer::Tcp(address) => Caller::Operator(Some(address.ip().to_canonical())),
        Peer::Unix => Caller::Operator(None),
    };
    api.farm.s3().answer(request, caller).await.map(Body::new)
}

/// Has written down what clients of S3 are refused, operators' and DUTs'.
pub(super) fn write_down(farm: &Farm, audit: &Arc<Audit>) {
    let audit = Arc::clone(audit);
    farm.s3().tells(Arc::new(move |caller, what, why| {
        let line = Line {
            at: jiff::Timestamp::now(),
            who: "an S3 client".to_owned(),
            project: None,
            role: None,
            from: caller.to_string(),
            what: clean(what),
            status: StatusCode::FORBIDDEN.as_u16(),
            why: Some(clean(why)),
        };
        audit.write_refusal(&line, Instant::now());
    }));
}

/// What CI-tron's client is told of the job's own bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Access {
    /// Where S3 is, with the keys in it, as MinIO's client takes it from `MC_HOST_…`.
    pub(super) url: String,
    /// The bucket.
    pub(super) name: String,
}

/// The way to the job's own bucket for a client that reached us at `host`.
pub(super) fn access(farm: &Arc<Farm>, record: &JobRecord, host: &str) -> Option<Access> {
    let keys = farm.bucket_keys_of(record)?;
    let own = farm.buckets_of(record).into_iter().find(|bucket| bucket.is_own)?;
    let url = format!("{}://{}:{}@{host}", farm.api_scheme(), keys.access_key, keys.secret_key);
    Some(Access { url, name: own.name })
}

/// GET `/api/v1/jobs/{id}/buckets`
#[utoipa::path(
    get, tag = "inspect", path = "/api/v1/jobs/{id}/buckets",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "Its buckets, and the key to them", body = BucketsWire), (status = 404, description = "No such job", body = ErrorWire))
)]
pub(super) async fn buckets(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<BucketsWire>, ApiError> {
    let record = api.job(&id)?;
    Ok(told(api.farm.bucket_keys_of(&record), api.farm.buckets_of(&record)))
}

/// GET `/api/v1/leases/{id}/buckets`
#[utoipa::path(
    get, tag = "leases", path = "/api/v1/leases/{id}/buckets",
    params(("id" = String, Path, description = "The lease's id")),
    responses((status = 200, description = "Its buckets, and the key to them", body = BucketsWire), (status = 404, description = "No such lease", body = ErrorWire))
)]
pub(super) async fn buckets_of_lease(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<BucketsWire>, ApiError> {
    api.farm.lease(&id).await?;
    Ok(told(api.farm.bucket_keys_of_lease(&id), api.farm.buckets_of_lease(&id).await))
}

fn told(keys: Option<BucketKeys>, buckets: Vec<BucketView>) -> Json<BucketsWire> {
    let buckets = buckets.into_iter().map(BucketWire::from).collect();
    let (access_key, secret_key) = keys.map(|keys| (keys.access_key, keys.secret_key)).unzip();
    Json(BucketsWire { buckets, access_key, secret_key })
}

/// GET `/api/v1/jobs/{id}/buckets/{name}`
#[utoipa::path(
    get, tag = "inspect", path = "/api/v1/jobs/{id}/buckets/{name}",
    params(("id" = String, Path, description = "The job's id"), ("name" = String, Path, description = "The bucket's name; `own`: the job's own")),
    responses((status = 200, description = "A tar archive of its objects", content_type = "application/x-tar"), (status = 404, description = "No such job, or no such bucket of it", body = ErrorWire))
)]
pub(super) async fn bucket(
    State(api): State<Api>,
    Path((id, name)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let record = api.job(&id)?;
    packed(&format!("job {id}"), &name, api.farm.buckets_of(&record), |name| api.farm.bucket_of(&record, name))
}

/// GET `/api/v1/leases/{id}/buckets/{name}`
#[utoipa::path(
    get, tag = "leases", path = "/api/v1/leases/{id}/buckets/{name}",
    params(("id" = String, Path, description = "The lease's id"), ("name" = String, Path, description = "The bucket's name; `own`: the lease's own")),
    responses((status = 200, description = "A tar archive of its objects", content_type = "application/x-tar"), (status = 404, description = "No such lease, or no such bucket of it", body = ErrorWire))
)]
pub(super) async fn bucket_of_lease(
    State(api): State<Api>,
    Path((id, name)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    api.farm.lease(&id).await?;
    let buckets = api.farm.buckets_of_lease(&id).await;
    packed(&format!("lease {id}"), &name, buckets, |name| api.farm.bucket_of_lease(&id, name))
}

fn packed(
    whose: &str,
    name: &str,
    views: Vec<BucketView>,
    open: impl FnOnce(&str) -> Option<Bucket>,
) -> Result<Response, ApiError> {
    let wanted = views.iter().find(|bucket| bucket.name == name || (name == "own" && bucket.is_own));
    let Some(bucket) = wanted.and_then(|view| open(&view.name)) else {
        let known: Vec<_> = views.into_iter().map(|bucket| bucket.name).collect();
        let text = match known.is_empty() {
            true => format!("{whose} has no buckets, or none any more"),
            false => format!("{whose} has no bucket `{name}`; it has {}", known.join(", ")),
        };
        return Err(ApiError::NotFound(text));
    };
    let body = Body::from_stream(gateway::s3::pack::tar(&bucket));
    Ok(([(header::CONTENT_TYPE, "application/x-tar")], body).into_response())
}
