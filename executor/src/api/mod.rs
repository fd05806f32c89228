//! The operator's API: every route on one page, by audience. Nothing of it is reachable from the DUTs' network.
//!
//! ```text
//!  serve.rs, tls.rs (listeners) ─► guard.rs (who may?)
//!                                     └─► mod.rs (routes) ─┬─► submit.rs   hand in, type, cancel ──┐
//!                                                          ├─► inspect.rs  jobs, logs, documents ──┼─► Farm
//!                                                          ├─► leases.rs   leases, power, events ──┤
//!                                                          ├─► hosts.rs    commands and files ─────┤
//!                                                          ├─► disks.rs    disks that are kept ────┤
//!                                                          ├─► registry.rs images that are kept ───┤
//!                                                          ├─► buckets.rs  buckets, S3 ────────────┤
//!                                                          ├─► discovery.rs machines that register ┤
//!                                                          ├─► pdus.rs     power units, outlets ───┤
//!                                                          ├─► power_served.rs, power_text.rs  pdudaemon, labgrid ┤
//!                                                          ├─► consoles.rs what consoles say ──────┤
//!                                                          ├─► administer.rs  the farm file again ─┤
//!                                                          ├─► found_pdus.rs  power units found ───┤
//!                                                          ├─► callers.rs   tokens, who one is ──┤
//!                                                          └─► ci_tron.rs, ci_tron_duts.rs the compatible surface
//!                                                               └─► ci_tron_session.rs (one console) ─► ci_tron_console.rs (its bytes)
//! ```
//! `wire.rs` has the shapes, `error.rs` the statuses, `upload.rs` the limits, `owner.rs` what a lost connection means.

mod administer;
mod buckets;
mod callers;
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
mod guard;
mod hosts;
mod images;
mod inspect;
mod leases;
mod owner;
mod pdus;
mod power_served;
mod power_text;
mod registry;
mod serve;
mod submit;
mod tls;
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

use crate::callers::{Callers, Role};
use crate::farm::{Farm, JobRecord};
pub use callers::token_of;
use error::ApiError;
pub use guard::Door;
use guard::{Needs, Routes, delete, get, post, put};
pub use tls::Tls;

/// What the handlers behind one door work with.
#[derive(Clone)]
pub struct Api {
    farm: Arc<Farm>,
    callers: Arc<Callers>,
    door: Door,
}

impl Api {
    /// A farm's, for who comes by this door.
    pub fn new(farm: &Arc<Farm>, callers: &Arc<Callers>, door: Door) -> Api {
        farm.audits_to(&callers.audit);
        buckets::write_down(farm, &callers.audit);
        Api { farm: Arc::clone(farm), callers: Arc::clone(callers), door }
    }

    fn job(&self, id: &str) -> Result<Arc<JobRecord>, ApiError> {
        self.farm.job(id).ok_or_else(|| ApiError::NotFound(format!("no job `{id}`; `wharf jobs` lists them")))
    }
}

/// All routes, each with what it asks of who calls it.
fn routes() -> Routes {
    const NOTHING: Needs = Needs::Nothing;
    const SUBMIT: Needs = Needs::Role(Role::Submit);
    const OPERATE: Needs = Needs::Role(Role::Operate);
    const ADMINISTER: Needs = Needs::Role(Role::Administer);
    const JOB: Needs = Needs::Job(Role::Submit);
    const LEASE: Needs = Needs::Lease(Role::Submit);
    const MACHINE: Needs = Needs::Named(Role::Operate);
    Routes::default()
        // Submit.
        .at("/api/v1/jobs", get(SUBMIT, inspect::jobs).post(SUBMIT, submit::submit))
        .at("/api/v1/jobs/{id}/cancel", post(JOB, submit::cancel))
        .at("/api/v1/jobs/{id}/console", post(JOB, submit::type_on_console))
        // Inspect.
        .at("/api/v1/jobs/{id}", get(JOB, inspect::job))
        .at("/api/v1/jobs/{id}/log", get(JOB, inspect::log))
        .at("/api/v1/jobs/{id}/events", get(JOB, inspect::events))
        .at("/api/v1/jobs/{id}/buckets", get(JOB, buckets::buckets))
        .at("/api/v1/jobs/{id}/buckets/{name}", get(JOB, buckets::bucket))
        .at("/api/v1/consoles", get(SUBMIT, consoles::consoles))
        .at("/api/v1/consoles/{name}", get(SUBMIT, consoles::console))
        .at("/api/v1/consoles/{name}/log", get(MACHINE, consoles::log))
        .at("/api/v1/consoles/{name}/events", get(MACHINE, consoles::events))
        .at("/images/{name}", get(NOTHING, images::image))
        .at("/api/v1/openapi.json", get(NOTHING, inspect::openapi))
        .at("/api/v1/schema/job", get(NOTHING, inspect::job_schema))
        // Leases.
        .at("/api/v1/leases", get(SUBMIT, leases::leases).post(SUBMIT, leases::take))
        .at(
            "/api/v1/leases/{id}",
            get(LEASE, leases::lease).patch(LEASE, leases::change).delete(LEASE, leases::release),
        )
        .at("/api/v1/leases/{id}/events", get(LEASE, leases::events_of_lease))
        .at("/api/v1/leases/{id}/log", get(LEASE, leases::log))
        .at("/api/v1/leases/{id}/beat", post(LEASE, leases::beat))
        .at("/api/v1/leases/{id}/abandon", post(Needs::Lease(Role::Operate), leases::abandon))
        .at("/api/v1/leases/{id}/power", get(LEASE, leases::power).post(LEASE, leases::switch))
        .at("/api/v1/leases/{id}/power/served", get(LEASE, leases::served_power))
        .at("/api/v1/leases/{id}/boot", put(LEASE, leases::boot))
        .at("/api/v1/leases/{id}/console", get(LEASE, leases::console).post(LEASE, leases::type_on_console))
        .at("/api/v1/leases/{id}/command", post(LEASE, hosts::command))
        .at("/api/v1/leases/{id}/file", get(LEASE, hosts::get).put(LEASE, hosts::put))
        .at("/api/v1/leases/{id}/buckets", get(LEASE, buckets::buckets_of_lease))
        .at("/api/v1/leases/{id}/buckets/{name}", get(LEASE, buckets::bucket_of_lease))
        .at("/api/v1/leases/{id}/console/serve", post(LEASE, console_port::serve))
        .at("/api/v1/hosts", get(SUBMIT, hosts::hosts))
        .at("/api/v1/jobs/{id}/files/{name}", get(JOB, hosts::kept))
        .at("/api/v1/resources", get(SUBMIT, leases::resources))
        .at("/api/v1/resources/{name}", get(SUBMIT, leases::resource))
        .at("/api/v1/resources/{name}/{verb}", post(MACHINE, leases::tell_resource))
        .at("/api/v1/events", get(SUBMIT, leases::events))
        .at("/api/v1/authorizations", get(OPERATE, leases::authorizations).post(ADMINISTER, leases::authorize))
        // Disks.
        .at("/api/v1/disks", get(OPERATE, disks::disks))
        .at("/api/v1/disks/{id}", delete(Needs::Disk(Role::Operate), disks::remove))
        // Images of containers.
        .at("/api/v1/registry", get(OPERATE, registry::registry))
        .at("/api/v1/registry/{*name}", delete(ADMINISTER, registry::forget))
        // Administer.
        .at("/api/v1/reload", post(ADMINISTER, administer::reload))
        .at("/api/v1/caller", get(SUBMIT, callers::caller))
        .at("/api/v1/session", post(Needs::IdToken, callers::session))
        .at("/api/v1/tokens", get(ADMINISTER, callers::tokens).post(ADMINISTER, callers::add))
        .at("/api/v1/tokens/{name}", delete(ADMINISTER, callers::revoke))
        // CI-tron's; `machine` is its older word for `dut`.
        .at_each(
            &["/api/v1/dut/discover", "/api/v1/machine/discover"],
            get(OPERATE, discovery::discovery)
                .post(ADMINISTER, discovery::discover)
                .delete(ADMINISTER, discovery::cancel),
        )
        .at("/api/v1/dut/discover/outlets", get(OPERATE, discovery::outlets))
        .at("/api/v1/dut/discover/usb", get(OPERATE, discovery::loaders))
        .at("/api/v1/dut/discover/{id}", get(OPERATE, discovery::news))
        .at_each(
            &["/api/v1/dut/", "/api/v1/machine/"],
            post(ADMINISTER, discovery::add).put(ADMINISTER, discovery::add),
        )
        .at_each(&["/api/v1/duts", "/api/v1/machines"], get(SUBMIT, ci_tron::duts))
        .at_each(
            &["/api/v1/dut/{name}", "/api/v1/dut/{name}/", "/api/v1/machine/{name}", "/api/v1/machine/{name}/"],
            get(SUBMIT, ci_tron::dut).patch(MACHINE, ci_tron_duts::update).delete(ADMINISTER, discovery::remove),
        )
        .at_each(
            &["/api/v1/dut/{name}/cancel_job", "/api/v1/machine/{name}/cancel_job"],
            post(MACHINE, ci_tron::cancel_job),
        )
        .at_each(
            &["/api/v1/dut/{name}/quick_check", "/api/v1/machine/{name}/quick_check"],
            get(SUBMIT, ci_tron_duts::quick_check).post(MACHINE, ci_tron_duts::queue_quick_check),
        )
        .at_each(
            &["/api/v1/dut/{name}/training/loop/{number}", "/api/v1/machine/{name}/training/loop/{number}"],
            get(SUBMIT, ci_tron_duts::training_loop),
        )
        .at("/api/v1/full-state", get(SUBMIT, ci_tron::full_state))
        .at("/api/v1/pdus", get(SUBMIT, pdus::pdus))
        .at("/api/v1/pdus/discover", post(ADMINISTER, found_pdus::discover))
        .at("/api/v1/pdus/adopt", post(ADMINISTER, found_pdus::adopt))
        .at("/api/v1/pdu/{name}", get(SUBMIT, pdus::pdu).delete(ADMINISTER, found_pdus::remove))
        .at("/api/v1/pdu/{name}/port/{id}", get(SUBMIT, pdus::port).patch(ADMINISTER, pdus::change_port))
        .at("/api/v1/pdu/{name}/port/{id}/done", post(Needs::Outlet(Role::Operate), pdus::done))
        // For programs of others.
        .and(power_served::routes())
}

/// The API behind one door.
fn router(api: Api) -> Router {
    // Before all rules of the API: what is signed for S3 has its own.
    behind_guard(routes(), api.clone()).layer(middleware::from_fn_with_state(api, buckets::s3_first))
}

fn behind_guard(routes: Routes, api: Api) -> Router {
    routes.guarded(api, |router| {
        router
            .fallback(nothing_here)
            .method_not_allowed_fallback(wrong_method)
            // upload.rs counts by itself, part by part.
            .layer(DefaultBodyLimit::disable())
            .layer(middleware::from_fn(refuse_foreign_pages))
    })
}

/// Serves the outlets of leases alone, where pdudaemon's clients look for it, until `shutdown` completes.
pub async fn serve_power(
    listener: std::net::TcpListener,
    api: Api,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let listener = power_text::EitherListener::of(of_tokio(listener)?, api.clone());
    serve::serve(listener, behind_guard(power_served::routes(), api), shutdown).await;
    Ok(())
}

/// Serves the farm's boot images alone, which the farm itself fetches, until `shutdown` completes.
pub async fn serve_images(
    listener: std::net::TcpListener,
    api: Api,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let routes = Routes::default().at("/images/{name}", get(Needs::Nothing, images::image));
    serve::serve(of_tokio(listener)?, behind_guard(routes, api), shutdown).await;
    Ok(())
}

/// Serves a farm's API over TCP until `shutdown` completes.
pub async fn serve(
    listener: std::net::TcpListener,
    api: Api,
    tls: Option<Tls>,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let listener = of_tokio(listener)?;
    match tls {
        None => serve::serve(listener, router(api), shutdown).await,
        Some(tls) => serve::serve(tls.on(listener), router(api), shutdown).await,
    }
    Ok(())
}

fn of_tokio(listener: std::net::TcpListener) -> io::Result<tokio::net::TcpListener> {
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
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
    pub async fn serve(self, api: Api, shutdown: impl Future<Output = ()>) {
        tracing::info!(path = %self.path.display(), "the API is at the local socket, too");
        serve::serve(self.listener, router(api), shutdown).await;
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
    // Whoever may open it may do everything: the server's user only. Others have tokens.
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

    /// Every route with what it needs. A new one is added here by hand: somebody has thought of who may ask it.
    #[test]
    fn every_route_says_what_it_needs() {
        let table = routes();
        let lines = table.table().iter().map(|((path, method), needs)| {
            let needs = match needs {
                Needs::Nothing => "nothing".to_owned(),
                Needs::Key => "its key".to_owned(),
                Needs::IdToken => "an id_token".to_owned(),
                Needs::Role(role) => role.to_string(),
                Needs::Job(role) => format!("{role} job"),
                Needs::Lease(role) => format!("{role} lease"),
                Needs::Named(role) => format!("{role} machine"),
                Needs::Disk(role) => format!("{role} disk"),
                Needs::Outlet(role) => format!("{role} outlet"),
            };
            format!("{path} {method}: {needs}\n")
        });
        let expected = include_str!("../../../fixtures/api/roles.txt");
        assert_eq!(lines.collect::<String>(), expected);
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
