//! The surface that CI-tron's clients know: `executorctl` 0.0.9 to 0.2.1, unmodified.
//!
//! ```text
//!  POST /api/v1/jobs ─ multipart ─► metadata, job ─► who shows the console?
//!                                                     Upgrade header   101; queues while the farm is busy
//!                                                     callback.port    we connect, then 200; 409 while the farm is busy
//!                                                     neither          201 with the job, as for our own clients
//! ```
//! Dates are HTTP dates here, as Flask writes them. The shared directory travels as an attached file of its own name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use gateway::content::reach::{Failed, Reach};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::OwnedSemaphorePermit;

use super::Api;
use super::ci_tron_console::PROTOCOL;
use super::ci_tron_duts::dut_of;
use super::ci_tron_session::{after_upgrade, call_back, converse};
use super::discovery::running;
use super::error::{ApiError, Dialect};
use super::guard::{Credential, by, caller_of, in_words, passed_on_by, shown_with};
use super::owner::Owner;
use super::serve::Peer;
use super::submit::{self, Ask};
use super::upload::{JOB_BYTES_MAX, Parts, inspect_tarball, read_parts, text_of};
use super::wire::pdus::http_date;
use crate::callers::{Caller, Role};
use crate::config::{BucketMember, JobUrls};
use crate::farm::Descriptions;
use crate::farm::{CancelledBy, DIRECTORY, DutView, Farm, JobRecord, Submission, TargetOverride, WhenBusy};
use crate::job_log::{JobEvent, Severity};

/// A job description behind an URL is some kilobytes: a server that needs longer does not answer.
const JOB_URL_TIMEOUT: Duration = Duration::from_secs(30);

/// A job source's name in a list of jobs; those of forges have some ten letters.
const SOURCE_LETTERS_MAX: usize = 64;

/// The part `metadata`, as client 0.2.1 sends it. Keys of newer clients are ignored.
#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    version: Option<u32>,
    #[serde(default)]
    job_id: Option<String>,
    #[serde(default)]
    job_desc_url: Option<String>,
    #[serde(default)]
    job_cookie: Option<String>,
    #[serde(default)]
    minio: Option<Minio>,
    #[serde(default)]
    callback: Option<Callback>,
    #[serde(default)]
    environ: Option<BTreeMap<String, String>>,
    #[serde(default)]
    target: Option<Target>,
}

#[derive(Debug, Default, Deserialize)]
struct Minio {
    #[serde(default)]
    groups: Option<Vec<String>>,
    #[serde(default)]
    credentials: Option<Credentials>,
}

/// Empty where the client was told none.
#[derive(Default, Deserialize)]
struct Credentials {
    #[serde(default)]
    access_key: Option<String>,
    #[serde(default)]
    secret_key: Option<String>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the key {:?}", self.access_key)
    }
}

#[derive(Debug, Deserialize)]
struct Callback {
    port: u16,
    #[serde(default)]
    host: Option<String>,
}

/// Each may be null: the client sends both keys when one of them is set.
#[derive(Debug, Deserialize)]
struct Target {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    tags: Option<Vec<String>>,
}

/// Who shows the console of a submission.
#[derive(Debug, PartialEq, Eq)]
enum Viewer {
    Upgrade,
    Callback { host: String, port: u16 },
    Nobody,
}

/// A multipart submission, answered in CI-tron's dialect.
pub(super) async fn submit(api: Api, ask: Ask, request: Request) -> Response {
    take(api, ask, request).await.unwrap_or_else(|error| error.respond(Dialect::CiTron))
}

async fn take(api: Api, ask: Ask, mut request: Request) -> Result<Response, ApiError> {
    let peer = submit::peer_of(&request);
    let (caller, shown) = (caller_of(&request), shown_with(request.headers()));
    let revoked = revoked(&api, shown.clone());
    let (by_our_own, by_ci_tron) = (ask.submitter(&request), in_words(&request, Some("executorctl"), "executorctl"));
    let permit = request.extensions().get::<Arc<OwnedSemaphorePermit>>().cloned();
    let wants_upgrade = wants_upgrade(request.headers());
    let upgrade = wants_upgrade.then(|| hyper::upgrade::on(&mut request));
    let request_host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    let proxy = passed_on_by(request.headers());
    let parts = read_parts(request).await?;
    let metadata = metadata_of(&parts)?;
    let viewer = viewer_of(wants_upgrade, metadata.callback.as_ref(), peer)?;
    calls_back_its_client(&viewer, &caller, (peer, proxy))?;
    parts.bucket.as_deref().map(inspect_tarball).transpose()?;
    // Who came with a directory is told where to fetch it at the end.
    let reached_at = request_host.filter(|_| parts.bucket.is_some());
    let source = metadata.job_cookie.as_deref().and_then(job_source);
    let mut submission = submission_of(&api, parts, metadata, caller.reach()).await?;
    ask.refine(&mut submission, &caller)?;
    // `-E '.*'` forwards the token, too; a template could print it on a console.
    submission.environ.retain(|_, value| shown.as_ref().is_none_or(|shown| !value.contains(&*shown.0)));
    submission.submitter = match viewer {
        Viewer::Upgrade | Viewer::Callback { .. } => match source {
            Some(source) => format!("{by_ci_tron} for the job source {source}"),
            None => by_ci_tron,
        },
        Viewer::Nobody => by_our_own,
    };
    submission.when_busy = match viewer {
        Viewer::Upgrade => api.farm.submission().upgraded_when_busy,
        Viewer::Callback { .. } => WhenBusy::Refuse,
        Viewer::Nobody => ask.when_busy(),
    };
    match (viewer, upgrade) {
        (Viewer::Callback { host, port }, _) => {
            // The job first: a connection for a refused one would wait in the client's backlog, and be taken for the console of its
            // next attempt (`--wait` repeats a 409 every second on the same listener).
            let record = accept(&api.farm, submission).await?;
            let owner = Owner::of(&api.farm, &record);
            let stream = call_back(&host, port).await.map_err(ApiError::Malformed)?;
            tokio::spawn(async move {
                tokio::select! {
                    () = converse(stream, b"", owner, reached_at) => {}
                    () = revoked => {}
                }
            });
            Ok(Json(json!({"version": 1, "error_msg": "success"})).into_response())
        }
        (Viewer::Upgrade, Some(upgrade)) => {
            let record = accept(&api.farm, submission).await?;
            let shown = after_upgrade(upgrade, Owner::of(&api.farm, &record), reached_at, permit);
            tokio::spawn(async move {
                tokio::select! {
                    () = shown => {}
                    () = revoked => {}
                }
            });
            Ok(switching_protocols())
        }
        (Viewer::Upgrade | Viewer::Nobody, _) => {
            let record = accept(&api.farm, submission).await?;
            Ok(submit::created(&record))
        }
    }
}

/// Returns once the token is revoked that somebody came with: his console, and the job that is his by it, end then.
fn revoked(api: &Api, shown: Option<Credential>) -> impl Future<Output = ()> + Send + 'static {
    let callers = Arc::clone(&api.callers);
    async move {
        match shown {
            Some(shown) => callers.until_revoked(&shown.0).await,
            None => std::future::pending().await,
        }
    }
}

async fn accept(farm: &Arc<Farm>, submission: Submission) -> Result<Arc<JobRecord>, ApiError> {
    let attached = submission.attachments.keys().filter(|name| *name != DIRECTORY).count();
    let record = farm.submit(submission).await?;
    if attached > 0 {
        let text = format!("{attached} attached artifacts received");
        record.log.append(JobEvent::Note { text, severity: Severity::Debug });
    }
    Ok(record)
}

/// The client compares both values letter by letter, and reads the version from the header because a 101 has no body.
fn switching_protocols() -> Response {
    let headers = [
        (header::CONNECTION, HeaderValue::from_static("Upgrade")),
        (header::UPGRADE, HeaderValue::from_static(PROTOCOL)),
        (super::error::VERSION, HeaderValue::from_static("1")),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response()
}

fn wants_upgrade(headers: &HeaderMap) -> bool {
    let named =
        headers.get(header::UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(PROTOCOL.as_bytes()));
    let asked = headers.get(header::CONNECTION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    named && asked.split(',').any(|word| word.trim().eq_ignore_ascii_case("upgrade"))
}

fn metadata_of(parts: &Parts) -> Result<Metadata, ApiError> {
    let Some(json) = &parts.metadata else {
        let text = "No metadata file found: the part `metadata` must be a file part, with a file name";
        return Err(ApiError::Malformed(text.into()));
    };
    let metadata: Metadata = serde_json::from_slice(json)
        .map_err(|error| ApiError::Malformed(format!("the part `metadata` is wrong: {error}")))?;
    match metadata.version {
        Some(1) => Ok(metadata),
        Some(version) => {
            Err(ApiError::Malformed(format!("metadata of version {version}; this server speaks version 1")))
        }
        None => Err(ApiError::Malformed("the part `metadata` has no `version`; send `\"version\": 1`".into())),
    }
}

fn viewer_of(wants_upgrade: bool, callback: Option<&Callback>, peer: Peer) -> Result<Viewer, ApiError> {
    match (wants_upgrade, callback) {
        (true, _) => Ok(Viewer::Upgrade),
        (false, None) => Ok(Viewer::Nobody),
        (false, Some(Callback { port, host })) => match (host, peer) {
            (Some(host), _) => Ok(Viewer::Callback { host: host.clone(), port: *port }),
            (None, Peer::Tcp(address)) => {
                Ok(Viewer::Callback { host: address.ip().to_canonical().to_string(), port: *port })
            }
            (None, Peer::Unix) => {
                let text = "a client on the local socket has no address to call back; name one in `callback.host`";
                Err(ApiError::Malformed(text.into()))
            }
        },
    }
}

/// Who comes from elsewhere is called back at his own address: else he could have the server connect to whatever it reaches.
fn calls_back_its_client(
    viewer: &Viewer,
    caller: &Caller,
    (peer, proxy): (Peer, Option<&str>),
) -> Result<(), ApiError> {
    let (Viewer::Callback { host, .. }, false) = (viewer, caller.role == Role::Administer) else { return Ok(()) };
    if let Some(name) = proxy {
        return Err(ApiError::Forbidden(format!(
            "`callback`: a proxy passed this on (`{name}`), and would be called back; use a client that upgrades (0.2.0 or newer)"
        )));
    }
    let is_his_own = match peer {
        Peer::Tcp(address) => host.parse() == Ok(address.ip().to_canonical()),
        Peer::Unix => true,
    };
    if is_his_own {
        return Ok(());
    }
    Err(ApiError::Forbidden(format!(
        "`callback.host`: the console is shown to {peer} alone, not to `{host}`; leave it out"
    )))
}

async fn submission_of(api: &Api, parts: Parts, metadata: Metadata, reach: Reach) -> Result<Submission, ApiError> {
    let Minio { groups, credentials } = metadata.minio.unwrap_or_default();
    let Credentials { access_key, secret_key } = credentials.unwrap_or_default();
    let key = access_key.zip(secret_key).map(|(access_key, secret_key)| BucketMember { access_key, secret_key });
    let groups = groups.unwrap_or_default();
    api.farm.may_join(&groups, key.as_ref()).map_err(|why| ApiError::Forbidden(format!("--minio-group: {why}")))?;
    let (source_name, text) = match (&parts.job, metadata.job_desc_url) {
        (Some(job), _) => (metadata.job_id.unwrap_or_else(|| "job".into()), text_of(job)?),
        (None, Some(url)) => (url.clone(), fetch(&url, &api.farm.descriptions(), reach).await?),
        (None, None) => {
            return Err(ApiError::Malformed("No job file found: send a part `job`, or `job_desc_url`".into()));
        }
    };
    let directory = parts.bucket.map(|bytes| (DIRECTORY.to_owned(), bytes));
    Ok(Submission {
        source_name,
        text,
        target: metadata.target.map(|target| TargetOverride { id: target.id, tags: target.tags }),
        environ: metadata.environ.unwrap_or_default(),
        groups,
        attachments: parts.attachments.into_iter().chain(directory).map(|(name, bytes)| (name, bytes.into())).collect(),
        ..Submission::default()
    })
}

/// Who made a job cookie, `<source>_<64 hexadecimal digits>`, for people: nothing is held for a source here, so a cookie opens nothing. Its
/// digits may be a secret elsewhere, and so may one of another form: neither is kept.
fn job_source(cookie: &str) -> Option<String> {
    let (source, digits) = cookie.rsplit_once('_')?;
    let is_whole = digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_whole && !source.is_empty())
        .then(|| source.chars().filter(|it| !it.is_control()).take(SOURCE_LETTERS_MAX).collect())
}

async fn fetch(url: &str, from: &Descriptions, reach: Reach) -> Result<String, ApiError> {
    may_begin_so(url, from.urls())?;
    let refuse = |reason: String| ApiError::Malformed(format!("cannot fetch the job from {url}: {reason}"));
    match tokio::time::timeout(JOB_URL_TIMEOUT, from.get(url, reach, JOB_BYTES_MAX)).await {
        Ok(Ok(bytes)) => text_of(&bytes),
        Ok(Err(Failed::Denied(reason))) => Err(ApiError::Forbidden(format!("`job_desc_url`: {reason}"))),
        Ok(Err(error)) => Err(refuse(error.to_string())),
        Err(_) => Err(refuse(format!("it did not arrive within {JOB_URL_TIMEOUT:?}"))),
    }
}

fn may_begin_so(url: &str, urls: JobUrls) -> Result<(), ApiError> {
    if urls == JobUrls::HttpToo || url.starts_with("https://") {
        return Ok(());
    }
    Err(ApiError::Malformed(format!("`job_desc_url` must begin with https://, `{url}` does not")))
}

/// GET `/api/v1/duts`
#[utoipa::path(get, tag = "ci-tron", path = "/api/v1/duts", responses((status = 200, description = "`{\"duts\": {id: DUT}}`, CI-tron's DUTs with `job`, `holder` and `power` added", body = Object)))]
pub(super) async fn duts(State(api): State<Api>) -> Json<Value> {
    Json(json!({"duts": all_duts(&api.farm).await}))
}

/// GET `/api/v1/dut/<id or full name>`
#[utoipa::path(get, tag = "ci-tron", path = "/api/v1/dut/{name}", params(("name" = String, Path, description = "id or full name")), responses((status = 200, body = Object), (status = 400, description = "no such DUT", body = super::wire::ErrorWire)))]
pub(super) async fn dut(State(api): State<Api>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    dut_by_name(&api, &name).await
}

/// A DUT as CI-tron's clients read it.
pub(super) async fn dut_by_name(api: &Api, name: &str) -> Result<Json<Value>, ApiError> {
    find(&api.farm, name).await.map(|dut| Json(dut_of(&api.farm, &dut)))
}

/// POST `/api/v1/dut/<id or full name>/cancel_job`
#[utoipa::path(post, tag = "ci-tron", path = "/api/v1/dut/{name}/cancel_job", params(("name" = String, Path, description = "id or full name")), responses((status = 200, body = String), (status = 400, description = "no such DUT, or it runs no job", body = super::wire::ErrorWire)))]
pub(super) async fn cancel_job(
    State(api): State<Api>,
    Path(name): Path<String>,
    request: Request,
) -> Result<String, ApiError> {
    let dut = find(&api.farm, &name).await?;
    let running = api.farm.running_on(&dut.id).await;
    let by = CancelledBy::Operator(by(&request));
    match running.map(|record| api.farm.cancel(&record.id, by)) {
        Some(Ok(())) => Ok("The job was marked for cancellation\n".into()),
        Some(Err(_)) | None => Err(ApiError::Malformed(format!("the DUT {} is not running a job", dut.full_name))),
    }
}

/// GET `/api/v1/full-state`
#[utoipa::path(get, tag = "ci-tron", path = "/api/v1/full-state", responses((status = 200, description = "`{pdus, duts, discover, now}`", body = Object)))]
pub(super) async fn full_state(State(api): State<Api>) -> Json<Value> {
    let now = http_date(jiff::Timestamp::now());
    let pdus = super::pdus::all(&api.farm).pdus;
    Json(json!({"pdus": pdus, "duts": all_duts(&api.farm).await, "discover": running(&api), "now": now}))
}

pub(super) async fn find(farm: &Farm, name: &str) -> Result<DutView, ApiError> {
    if let Some(dut) = farm.dut(name).await {
        return Ok(dut);
    }
    let known: Vec<_> = farm.duts().await.into_iter().map(|dut| dut.full_name).collect();
    Err(ApiError::Malformed(format!("no DUT `{name}`; DUTs: {}", known.join(", "))))
}

async fn all_duts(farm: &Farm) -> Map<String, Value> {
    farm.duts().await.iter().map(|dut| (dut.id.clone(), dut_of(farm, dut))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(metadata: &'static str) -> Parts {
        Parts { metadata: Some(metadata.into()), ..Parts::default() }
    }

    #[test]
    fn metadata_of_client_0_2_1_is_understood_with_its_nulls() {
        let metadata = metadata_of(&parts(
            r#"{"version": 1, "job_id": null, "job_desc_url": null, "job_cookie": null,
                "minio": {"credentials": {}, "groups": []}, "callback": {"port": 35000}, "environ": {"CI_TRON_A": "b"},
                "target": {"id": "dut-1", "tags": null}}"#,
        ))
        .unwrap();
        assert_eq!(metadata.callback.unwrap().port, 35000);
        assert_eq!(metadata.target.unwrap().id.as_deref(), Some("dut-1"));
        assert_eq!(metadata.environ.unwrap()["CI_TRON_A"], "b");
    }

    #[test]
    fn nobody_has_the_server_connect_to_anything_but_himself() {
        let called_back = |host: &str, role, proxy| {
            let (viewer, peer) =
                (Viewer::Callback { host: host.into(), port: 8420 }, Peer::Tcp(([127, 0, 0, 1], 5).into()));
            let caller = Caller { name: "ci".into(), project: Some("mesa".into()), role };
            calls_back_its_client(&viewer, &caller, (peer, proxy)).map_err(|error| match error {
                ApiError::Forbidden(text) => text,
                error => panic!("{error:?}"),
            })
        };
        assert_eq!(called_back("127.0.0.1", Role::Submit, None), Ok(()));
        assert_eq!(called_back("10.0.0.9", Role::Administer, Some("via")), Ok(()));
        let other = called_back("10.0.0.9", Role::Operate, None).unwrap_err();
        assert!(other.contains("not to `10.0.0.9`; leave it out"), "{other}");
        // The proxy's own host has listeners that let everybody in.
        let proxy = called_back("127.0.0.1", Role::Submit, Some("via")).unwrap_err();
        assert!(proxy.starts_with("`callback`: a proxy passed this on (`via`)"), "{proxy}");
    }

    #[test]
    fn a_job_cookie_tells_its_source_and_never_its_secret() {
        let digits = "0123456789abcdef".repeat(4);
        assert_eq!(job_source(&format!("fdo_gitlab_{digits}")).as_deref(), Some("fdo_gitlab"));
        for other in ["", "secret", "a_secret", &digits, &format!("_{digits}")] {
            assert_eq!(job_source(other), None, "{other}");
        }
    }

    #[test]
    fn missing_or_foreign_metadata_is_answered_with_a_sentence() {
        let text = |parts: Parts| match metadata_of(&parts) {
            Err(ApiError::Malformed(text)) => text,
            other => panic!("{other:?}"),
        };
        assert!(text(Parts::default()).starts_with("No metadata file found"));
        assert_eq!(text(parts(r#"{"version": 2}"#)), "metadata of version 2; this server speaks version 1");
        assert!(text(parts("7")).starts_with("the part `metadata` is wrong: "));
        assert!(text(parts("{}")).contains("has no `version`"));
    }

    #[test]
    fn the_console_goes_to_the_upgrade_before_the_callback_and_to_the_named_host_before_the_peer() {
        let peer = Peer::Tcp("[::ffff:192.0.2.7]:40000".parse().unwrap());
        let callback = Callback { port: 35000, host: None };
        let named = Callback { port: 35000, host: Some("runner.example".into()) };
        assert_eq!(viewer_of(true, Some(&callback), peer).unwrap(), Viewer::Upgrade);
        assert_eq!(viewer_of(false, None, peer).unwrap(), Viewer::Nobody);
        let expected = Viewer::Callback { host: "192.0.2.7".into(), port: 35000 };
        assert_eq!(viewer_of(false, Some(&callback), peer).unwrap(), expected);
        let expected = Viewer::Callback { host: "runner.example".into(), port: 35000 };
        assert_eq!(viewer_of(false, Some(&named), peer).unwrap(), expected);
        assert!(viewer_of(false, Some(&callback), Peer::Unix).is_err());
    }

    #[test]
    fn an_upgrade_is_wanted_only_by_both_headers() {
        let headers = |connection: &'static str, upgrade: &'static str| {
            HeaderMap::from_iter([
                (header::CONNECTION, HeaderValue::from_static(connection)),
                (header::UPGRADE, HeaderValue::from_static(upgrade)),
            ])
        };
        assert!(wants_upgrade(&headers("Upgrade", "ci-tron-console")));
        assert!(wants_upgrade(&headers("keep-alive, upgrade", "CI-TRON-console")));
        assert!(!wants_upgrade(&headers("keep-alive", "ci-tron-console")));
        assert!(!wants_upgrade(&headers("Upgrade", "websocket")));
    }

    #[test]
    fn the_101_has_the_three_headers_that_the_client_looks_for() {
        let response = switching_protocols();
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()["connection"], "Upgrade");
        assert_eq!(response.headers()["upgrade"], "ci-tron-console");
        assert_eq!(response.headers()["ci_tron_version"], "1");
    }

    #[test]
    fn a_job_behind_plain_http_is_refused_where_the_farm_wants_https() {
        let error = may_begin_so("http://127.0.0.1:1/job.yml", JobUrls::HttpsOnly).unwrap_err();
        assert!(matches!(error, ApiError::Malformed(text) if text.contains("must begin with https://")));
    }

    #[test]
    fn dates_are_http_dates() {
        let at = "2026-11-20T23:35:13Z".parse().unwrap();
        assert_eq!(http_date(at), "Fri, 20 Nov 2026 23:35:13 GMT");
    }
}
