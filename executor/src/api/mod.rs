//! The operator's API: every route on one page, by audience. Nothing of it is reachable from the DUTs' network.
//!
//! ```text
//!  serve.rs (listeners) ─► mod.rs (routes) ─┬─► submit.rs   hand in, type, cancel ──┐
//!                                           ├─► inspect.rs  jobs, logs, documents ──┼─► Farm
//!                                           ├─► leases.rs   leases, power, events ──┤
//!                                           ├─► hosts.rs    commands and files ─────┤
//!                                           ├─► disks.rs    disks that are kept ────┤
//!                                           ├─► discovery.rs machines that register ┤
//!                                           ├─► pdus.rs     power units, outlets ───┤
//!                                           ├─► power_served.rs, power_text.rs  pdudaemon, labgrid ┤
//!                                           ├─► consoles.rs what consoles say ──────┤
//!                                           ├─► administer.rs  the farm file again ─┤
//!                                           ├─► found_pdus.rs  power units found ───┤
//!                                           └─► ci_tron.rs, ci_tron_duts.rs the compatible surface
//!                                                └─► ci_tron_session.rs (one console) ─► ci_tron_console.rs (its bytes)
//! ```
//! `wire.rs` has the shapes, `error.rs` the statuses, `upload.rs` the limits, `owner.rs` what a lost connection means.

mod administer;
mod ci_tron;
mod ci_tron_console;
mod ci_tron_duts;
mod ci_tron_session;
mod console_port;
mod consoles;
mod discovery;
mod disks;
mod error;
mod fields;
mod found_pdus;
mod hosts;
mod images;
mod inspect;
mod leases;
mod owner;
mod pdus;
mod power_served;
mod power_text;
mod serve;
mod submit;
mod upload;
pub(crate) mod wire;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};

use crate::farm::{Farm, JobRecord};
use error::ApiError;

#[derive(Clone)]
struct Api {
    farm: Arc<Farm>,
}

impl Api {
    fn job(&self, id: &str) -> Result<Arc<JobRecord>, ApiError> {
        self.farm.job(id).ok_or_else(|| ApiError::NotFound(format!("no job `{id}`; `wharf jobs` lists them")))
    }
}

/// All routes.
pub fn router(farm: Arc<Farm>) -> Router {
    let dut = get(ci_tron::dut).patch(ci_tron_duts::update).delete(discovery::remove);
    let discover = get(discovery::discovery).post(discovery::discover).delete(discovery::cancel);
    let quick_check = get(ci_tron_duts::quick_check).post(ci_tron_duts::queue_quick_check);
    Router::new()
        // Submit.
        .route("/api/v1/jobs", get(inspect::jobs).post(submit::submit))
        .route("/api/v1/jobs/{id}/cancel", post(submit::cancel))
        .route("/api/v1/jobs/{id}/console", post(submit::type_on_console))
        // Inspect.
        .route("/api/v1/jobs/{id}", get(inspect::job))
        .route("/api/v1/jobs/{id}/log", get(inspect::log))
        .route("/api/v1/jobs/{id}/events", get(inspect::events))
        .route("/api/v1/consoles", get(consoles::consoles))
        .route("/api/v1/consoles/{name}", get(consoles::console))
        .route("/api/v1/consoles/{name}/log", get(consoles::log))
        .route("/api/v1/consoles/{name}/events", get(consoles::events))
        .route("/images/{name}", get(images::image))
        .route("/api/v1/openapi.json", get(inspect::openapi))
        .route("/api/v1/schema/job", get(inspect::job_schema))
        // Leases.
        .route("/api/v1/leases", get(leases::leases).post(leases::take))
        .route("/api/v1/leases/{id}", get(leases::lease).patch(leases::change).delete(leases::release))
        .route("/api/v1/leases/{id}/events", get(leases::events_of_lease))
        .route("/api/v1/leases/{id}/log", get(leases::log))
        .route("/api/v1/leases/{id}/beat", post(leases::beat))
        .route("/api/v1/leases/{id}/abandon", post(leases::abandon))
        .route("/api/v1/leases/{id}/power", get(leases::power).post(leases::switch))
        .route("/api/v1/leases/{id}/power/served", get(leases::served_power))
        .route("/api/v1/leases/{id}/boot", put(leases::boot))
        .route("/api/v1/leases/{id}/console", get(leases::console).post(leases::type_on_console))
        .route("/api/v1/leases/{id}/command", post(hosts::command))
        .route("/api/v1/leases/{id}/file", get(hosts::get).put(hosts::put))
        .route("/api/v1/leases/{id}/console/serve", post(console_port::serve))
        .route("/api/v1/hosts", get(hosts::hosts))
        .route("/api/v1/jobs/{id}/files/{name}", get(hosts::kept))
        .route("/api/v1/resources", get(leases::resources))
        .route("/api/v1/resources/{name}", get(leases::resource))
        .route("/api/v1/resources/{name}/{verb}", post(leases::tell_resource))
        .route("/api/v1/events", get(leases::events))
        .route("/api/v1/authorizations", get(leases::authorizations).post(leases::authorize))
        // Disks.
        .route("/api/v1/disks", get(disks::disks))
        .route("/api/v1/disks/{id}", delete(disks::remove))
        // Administer.
        .route("/api/v1/reload", post(administer::reload))
        // CI-tron's; `machine` is its older word for `dut`.
        .route("/api/v1/dut/discover", discover.clone())
        .route("/api/v1/machine/discover", discover)
        .route("/api/v1/dut/discover/outlets", get(discovery::outlets))
        .route("/api/v1/dut/discover/{id}", get(discovery::news))
        .route("/api/v1/dut/", post(discovery::add).put(discovery::add))
        .route("/api/v1/machine/", post(discovery::add).put(discovery::add))
        .route("/api/v1/duts", get(ci_tron::duts))
        .route("/api/v1/machines", get(ci_tron::duts))
        .route("/api/v1/dut/{name}", dut.clone())
        .route("/api/v1/dut/{name}/", dut.clone())
        .route("/api/v1/machine/{name}", dut.clone())
        .route("/api/v1/machine/{name}/", dut)
        .route("/api/v1/dut/{name}/cancel_job", post(ci_tron::cancel_job))
        .route("/api/v1/machine/{name}/cancel_job", post(ci_tron::cancel_job))
        .route("/api/v1/dut/{name}/quick_check", quick_check.clone())
        .route("/api/v1/machine/{name}/quick_check", quick_check)
        .route("/api/v1/dut/{name}/training/loop/{number}", get(ci_tron_duts::training_loop))
        .route("/api/v1/machine/{name}/training/loop/{number}", get(ci_tron_duts::training_loop))
        .route("/api/v1/full-state", get(ci_tron::full_state))
        .route("/api/v1/pdus", get(pdus::pdus))
        .route("/api/v1/pdus/discover", post(found_pdus::discover))
        .route("/api/v1/pdus/adopt", post(found_pdus::adopt))
        .route("/api/v1/pdu/{name}", get(pdus::pdu).delete(found_pdus::remove))
        .route("/api/v1/pdu/{name}/port/{id}", get(pdus::port).patch(pdus::change_port))
        .route("/api/v1/pdu/{name}/port/{id}/done", post(pdus::done))
        // For programs of others.
        .merge(power_served::routes())
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        // upload.rs counts by itself, part by part.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn(refuse_foreign_pages))
        .with_state(Api { farm })
}

/// Serves the outlets of leases alone, where pdudaemon's clients look for it, until `shutdown` completes.
pub async fn serve_power(
    listener: std::net::TcpListener,
    farm: Arc<Farm>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let foreign_pages = middleware::from_fn(refuse_foreign_pages);
    let api = Api { farm };
    let listener = power_text::EitherListener::of(listener, api.clone());
    let router = power_served::routes().fallback(nothing_here).layer(foreign_pages).with_state(api);
    serve::serve(listener, router, shutdown).await;
    Ok(())
}

/// Serves a farm's API over TCP until `shutdown` completes.
pub async fn serve(
    listener: std::net::TcpListener,
    farm: Arc<Farm>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    serve::serve(listener, router(farm), shutdown).await;
    Ok(())
}

/// The unix socket by which `wharf` finds the server of its own host without being told an address. Opened before the server says that
/// it is there: whoever waited for that finds it.
pub struct LocalSocket {
    listener: tokio::net::UnixListener,
    path: PathBuf,
}

impl LocalSocket {
    /// The first place that is free; `None` when there is none, which the log explains.
    pub fn open() -> Option<Self> {
        let mut refusals = Vec::new();
        for path in local_sockets() {
            match open_socket(&path) {
                Ok(listener) => return Some(LocalSocket { listener, path }),
                Err(error) => refusals.push(format!("{}: {error}", path.display())),
            }
        }
        tracing::info!("no local socket: {}; name this server with --server or WHARF_SERVER", refusals.join("; "));
        None
    }

    /// Serves the same API there.
    pub async fn serve(self, farm: Arc<Farm>, shutdown: impl Future<Output = ()>) {
        tracing::info!(path = %self.path.display(), "the API is at the local socket, too");
        serve::serve(self.listener, router(farm), shutdown).await;
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A socket that a dead server left behind is replaced; one that answers is another server's, and stays.
fn open_socket(path: &Path) -> io::Result<tokio::net::UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another server answers there"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = tokio::net::UnixListener::bind(path)?;
    // Whoever may open it may submit jobs: the server's user only. A group's access comes with roles.
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Where the unix sockets of servers are, the user's own first.
pub fn local_sockets() -> Vec<PathBuf> {
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty()).map(PathBuf::from);
    own.into_iter().chain([PathBuf::from("/run")]).map(|directory| directory.join("wharf.sock")).collect()
}

async fn nothing_here(request: Request) -> ApiError {
    let path = request.uri().path();
    ApiError::NotFound(format!("nothing is at {path}; /api/v1/openapi.json lists what is"))
}

async fn wrong_method(method: Method, request: Request) -> Response {
    let text = format!("{method} is not possible at {}; /api/v1/openapi.json lists what is", request.uri().path());
    let body = axum::Json(serde_json::json!({"error": text}));
    (axum::http::StatusCode::METHOD_NOT_ALLOWED, body).into_response()
}

/// On the loopback nobody is asked for a token, but a page that a browser of this host shows must not submit jobs: a form post crosses
/// origins without asking. Browsers say where such a request comes from; other clients send no `Origin`.
async fn refuse_foreign_pages(request: Request, next: Next) -> Response {
    match foreign_origin(request.headers()) {
        Some(origin) => ApiError::Forbidden(format!("a page of {origin} may not use this API")).into_response(),
        None => next.run(request).await,
    }
}

fn foreign_origin(headers: &HeaderMap) -> Option<String> {
    let origin = headers.get(header::ORIGIN)?.to_str().unwrap_or("(unreadable)");
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    if authority.is_some() && authority == host { None } else { Some(origin.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_servers_socket_is_replaced_and_a_living_ones_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wharf.sock");
        drop(open_socket(&path).unwrap());
        let living = open_socket(&path).unwrap();
        let error = open_socket(&path).unwrap_err();
        assert_eq!(error.to_string(), "another server answers there");
        drop(living);
    }

    #[test]
    fn a_page_of_another_origin_is_refused_and_other_clients_are_not() {
        let headers = |origin: &'static str| {
            HeaderMap::from_iter([
                (header::HOST, "127.0.0.1:8420".parse().unwrap()),
                (header::ORIGIN, axum::http::HeaderValue::from_static(origin)),
            ])
        };
        assert_eq!(foreign_origin(&HeaderMap::new()), None);
        assert_eq!(foreign_origin(&headers("http://127.0.0.1:8420")), None);
        assert_eq!(foreign_origin(&headers("https://evil.example")), Some("https://evil.example".into()));
        assert_eq!(foreign_origin(&headers("null")), Some("null".into()));
    }
}
