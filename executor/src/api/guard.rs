//! Who may ask what: every request passes here before its handler, and what it changed or was refused is written down.
//!
//! ```text
//!  request ─► its route's Needs (mod.rs; a route without is not to be had) ─► who? ─► 401
//!                                                                             ├─► may he? (role, whose job or lease, which machine) ─► 403
//!                                                                             └─► handler ─► audit line, when it changed something or refused
//!                                                                                   └─► a body without an end: cut off when the token is revoked
//! ```
//! The door that a request came by decides whether a credential is needed: the unix socket and a listener on the loopback need none,
//! unless the request was passed on by a proxy, whose guests are anybody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::handler::Handler;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::MethodRouter;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::{FutureExt, StreamExt, stream};

use super::Api;
use super::error::{ApiError, Dialect, Why};
use super::serve::Peer;
use crate::callers::audit::Line;
use crate::callers::{Caller, Refused, Role, may_use};
use crate::lease::rows::Lease;

/// Where a listener is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// On the host itself: whoever comes is let in.
    Local,
    /// Anybody may knock.
    Open,
}

/// What a route asks of who calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
    /// Nothing: it tells nothing of the farm.
    Nothing,
    /// The key of a lease, which is in its path; the handler checks it.
    Key,
    /// An id_token, which the handler checks.
    IdToken,
    /// A role.
    Role(Role),
    /// A role for a job of one's own project; the role `operate` for another's.
    Job(Role),
    /// The same for a lease.
    Lease(Role),
    /// A role, and the machine, console or resource must be one that the project may use.
    Named(Role),
    /// The same for whose a kept disk is, unless it is of one's own project.
    Disk(Role),
    /// The same for whose an outlet is.
    Outlet(Role),
}

/// Changes that are no change for a log of changes: a heartbeat, and what somebody types on what he holds.
const NOT_WRITTEN_DOWN: &[&str] =
    &["/api/v1/jobs/{id}/console", "/api/v1/leases/{id}/beat", "/api/v1/leases/{id}/console"];

/// The methods of one path, each with what it needs.
#[derive(Default)]
pub(super) struct Methods {
    router: MethodRouter<Api>,
    needs: Vec<(Method, Needs)>,
}

macro_rules! method {
    ($name:ident, $method:ident) => {
        /// A path with this method.
        pub(super) fn $name<T: 'static>(needs: Needs, handler: impl Handler<T, Api>) -> Methods {
            Methods::default().$name(needs, handler)
        }

        impl Methods {
            /// This method, too.
            pub(super) fn $name<T: 'static>(mut self, needs: Needs, handler: impl Handler<T, Api>) -> Methods {
                self.router = self.router.$name(handler);
                self.needs.push((Method::$method, needs));
                self
            }
        }
    };
}
method!(get, GET);
method!(post, POST);
method!(put, PUT);
method!(delete, DELETE);

impl Methods {
    /// PATCH, too.
    pub(super) fn patch<T: 'static>(mut self, needs: Needs, handler: impl Handler<T, Api>) -> Methods {
        self.router = self.router.patch(handler);
        self.needs.push((Method::PATCH, needs));
        self
    }
}

/// All paths: the only way to a router, so that no route is without its [`Needs`].
#[derive(Default)]
pub(super) struct Routes {
    router: Router<Api>,
    table: BTreeMap<(String, Method), Needs>,
}

impl Routes {
    /// One path more.
    pub(super) fn at(self, path: &str, methods: Methods) -> Routes {
        self.at_each(&[path], methods)
    }

    /// Several paths that are the same.
    pub(super) fn at_each(mut self, paths: &[&str], methods: Methods) -> Routes {
        for path in paths {
            self.router = self.router.route(path, methods.router.clone());
            self.table
                .extend(methods.needs.iter().map(|(method, needs)| (((*path).to_owned(), method.clone()), *needs)));
        }
        self
    }

    /// The paths of another list, too.
    pub(super) fn and(mut self, other: Routes) -> Routes {
        self.router = self.router.merge(other.router);
        self.table.extend(other.table);
        self
    }

    /// What each route needs.
    #[cfg(test)]
    pub(super) fn table(&self) -> &BTreeMap<(String, Method), Needs> {
        &self.table
    }

    /// A router that lets in who may come in, and `fallback` for what is not there.
    pub(super) fn guarded(self, api: Api, finish: impl FnOnce(Router<Api>) -> Router<Api>) -> Router {
        let guard = Guard { api: api.clone(), table: Arc::new(self.table) };
        finish(self.router).layer(middleware::from_fn_with_state(guard, guard_request)).with_state(api)
    }
}

#[derive(Clone)]
struct Guard {
    api: Api,
    table: Arc<BTreeMap<(String, Method), Needs>>,
}

/// The credential that came with a request: what a client forwards of its environment must not carry it on.
#[derive(Clone)]
pub(super) struct Credential(pub(super) Arc<str>);

/// What the audit log says of a request, but for who and how it ended.
struct Asked {
    from: String,
    what: String,
    is_change: bool,
    /// A key that is none is refused as what is not there.
    by_key: bool,
    /// No client of ours asks for such a path.
    is_trick: bool,
}

async fn guard_request(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let method = if request.method() == Method::HEAD { Method::GET } else { request.method().clone() };
    // What is not there, and a method that a path has not, is told only to who may be here at all.
    let needs = path.clone().and_then(|path| guard.table.get(&(path, method)).copied());
    let needs = needs.unwrap_or(Needs::Role(Role::Submit));
    let asked = Asked::of(&request, path.as_deref(), needs);
    let dialect = dialect_of(request.headers());
    let (mut parts, body) = request.into_parts();
    let caller = match guard.identify(&parts, needs).await {
        Ok(caller) => caller,
        Err(error) => {
            let response = error.respond(dialect);
            guard.write(&asked, None, &response);
            return response;
        }
    };
    let params = <RawPathParams as axum::extract::FromRequestParts<()>>::from_request_parts(&mut parts, &()).await;
    let params: Vec<(String, String)> = params
        .map(|params| params.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
        .unwrap_or_default();
    let response = match guard.allow(&caller, needs, &params).await {
        Ok(()) => {
            let shown = shown_with(&parts.headers).filter(|_| is_known(&caller));
            let body = guard.until_revoked(body, shown.as_ref());
            parts.extensions.insert(Arc::new(caller.clone()));
            let response = next.run(Request::from_parts(parts, body)).await;
            response.map(|body| guard.until_revoked(body, shown.as_ref()))
        }
        Err(error) => error.respond(dialect),
    };
    guard.write(&asked, Some(&caller), &response);
    response
}

impl Guard {
    async fn identify(&self, parts: &axum::http::request::Parts, needs: Needs) -> Result<Caller, ApiError> {
        let nobody = || Caller { name: "somebody".to_owned(), project: Some(String::new()), role: Role::Submit };
        if matches!(needs, Needs::Nothing | Needs::Key | Needs::IdToken) {
            return Ok(nobody());
        }
        if let Some(credential) = credential_of(&parts.headers)? {
            let issuers = self.api.farm.config().issuers.clone();
            return self.api.callers.identify(&credential.0, &issuers).await.map_err(ApiError::from);
        }
        if self.api.door == Door::Open {
            let text = "this address needs a token: set WHARF_TOKEN or WHARF_TOKEN_FILE, or send `Authorization: Bearer …`; \
                        an administrator makes one with `wharf token add`";
            return Err(ApiError::Unauthorized(text.to_owned()));
        }
        is_truly_local(parts)?;
        Ok(Caller::local())
    }

    async fn allow(&self, caller: &Caller, needs: Needs, params: &[(String, String)]) -> Result<(), ApiError> {
        let param =
            |wanted: &str| params.iter().find(|(name, _)| name == wanted).map_or("", |(_, value)| value.as_str());
        match needs {
            Needs::Nothing | Needs::Key | Needs::IdToken => Ok(()),
            Needs::Role(role) => has(caller, role),
            Needs::Job(role) => {
                // What is not there, its handler tells.
                let Some(job) = self.api.farm.job(param("id")) else { return has(caller, role) };
                let what = format!("job {}", job.id);
                self.may_touch(caller, role, &what, &job.subject, job.dut().map(|dut| dut.id)).await
            }
            Needs::Lease(role) => {
                let lease: Lease = match self.api.farm.lease(param("id")).await {
                    Ok(lease) => lease,
                    Err(_) => return has(caller, role),
                };
                let held = lease.resource.as_ref().and_then(|id| id.as_str().rsplit_once('#'));
                let held = held.map(|(name, _)| name.to_owned());
                let what = format!("lease {}", lease.id());
                self.may_touch(caller, role, &what, &lease.request.authorizer, held).await
            }
            Needs::Named(role) => {
                has(caller, role)?;
                self.may_use(caller, param("name")).await
            }
            Needs::Disk(role) => {
                has(caller, role)?;
                let disk = self.api.farm.disks().into_iter().find(|disk| disk.id == param("id"));
                match disk.filter(|disk| caller.project.as_ref() != Some(&disk.subject)) {
                    // What is not there, its handler tells.
                    None => Ok(()),
                    Some(disk) => {
                        self.may_use_what_is_of(caller, disk.dut, "the disk is shared, and may be used by a machine")
                            .await
                    }
                }
            }
            Needs::Outlet(role) => {
                has(caller, role)?;
                let outlet = self.api.farm.outlet(param("name"), param("id")).ok();
                let dut = outlet.and_then(|outlet| outlet.dut);
                self.may_use_what_is_of(caller, dut, "no machine is on that outlet: it may feed one").await
            }
        }
    }

    /// His own project's by the role, another's when he operates what it is on.
    async fn may_touch(
        &self,
        caller: &Caller,
        role: Role,
        what: &str,
        subject: &str,
        resource: Option<String>,
    ) -> Result<(), ApiError> {
        let Some(own) = &caller.project else { return Ok(()) };
        if own == subject {
            return has(caller, role);
        }
        if caller.role < Role::Operate {
            let text = format!("{what} is not of the project `{own}`, and {} may only {}", caller.name, caller.role);
            return Err(ApiError::Forbidden(text));
        }
        has(caller, role)?;
        self.may_use_what_is_of(caller, resource, &format!("{what} has no machine yet, and may get one")).await
    }

    /// Of a machine that his project may use; what is of none, only where that may use all of them. `otherwise` says why.
    async fn may_use_what_is_of(
        &self,
        caller: &Caller,
        machine: Option<String>,
        otherwise: &str,
    ) -> Result<(), ApiError> {
        match (machine, &caller.project) {
            (Some(machine), _) => self.may_use(caller, &machine).await,
            (None, Some(own)) if caller.role < Role::Administer && self.is_kept_to_some(own) => {
                let text = format!("{otherwise} that the project `{own}` may not use (projects.{own}.blueprints)");
                Err(ApiError::Forbidden(text))
            }
            (None, _) => Ok(()),
        }
    }

    fn is_kept_to_some(&self, project: &str) -> bool {
        self.api.farm.config().project(project).is_some_and(|project| project.blueprints.is_some())
    }

    async fn may_use(&self, caller: &Caller, name: &str) -> Result<(), ApiError> {
        let (Some(own), true) = (&caller.project, caller.role < Role::Administer) else { return Ok(()) };
        let config = self.api.farm.config();
        let Some(project) = config.project(own).filter(|project| project.blueprints.is_some()) else { return Ok(()) };
        let names = self.api.farm.blueprint_of(name).await;
        if names.is_some_and(|[one, other]| may_use(Some(project), [&one, &other])) {
            return Ok(());
        }
        Err(ApiError::Forbidden(format!("the project `{own}` may not use `{name}` (projects.{own}.blueprints)")))
    }

    /// What comes or goes for as long as somebody likes is cut off when his token is revoked; what has a length ends by itself.
    fn until_revoked(&self, body: Body, shown: Option<&Credential>) -> Body {
        let Some(shown) = shown.filter(|_| body.size_hint().exact().is_none()).cloned() else { return body };
        let callers = Arc::clone(&self.api.callers);
        let mut revoked = Box::pin(async move { callers.until_revoked(&shown.0).await }.fuse());
        let mut data = body.into_data_stream();
        // An error, so that nobody takes the part that he has for the whole.
        Body::from_stream(stream::poll_fn(move |context| match revoked.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Some(Err(axum::Error::new("the token was revoked")))),
            Poll::Pending => data.poll_next_unpin(context),
        }))
    }

    fn write(&self, asked: &Asked, caller: Option<&Caller>, response: &Response) {
        let status = response.status();
        let why = response.extensions().get::<Why>().map(|why| why.0.clone());
        let is_refusal = match status.as_u16() {
            // 413 and 420: an upload that is too large, or no archive.
            401 | 403 | 413 | 420 | 429 => true,
            404 if asked.by_key => true,
            status => status >= 400 && asked.is_trick,
        };
        let is_change_made = asked.is_change && status.as_u16() < 400;
        if !is_refusal && !is_change_made {
            return;
        }
        let known = caller.filter(|caller| is_known(caller));
        let line = Line {
            at: jiff::Timestamp::now(),
            who: caller.map_or("nobody", |caller| caller.name.as_str()).to_owned(),
            project: known.and_then(|caller| caller.project.clone()),
            role: known.map(|caller| caller.role),
            from: asked.from.clone(),
            what: asked.what.clone(),
            status: status.as_u16(),
            why: why.filter(|_| is_refusal),
        };
        match is_refusal {
            true => self.api.callers.audit.write_refusal(&line, Instant::now()),
            false => self.api.callers.audit.write_change(&line, Instant::now()),
        }
    }
}

impl Asked {
    fn of(request: &Request, path: Option<&str>, needs: Needs) -> Asked {
        let peer = request.extensions().get::<Peer>().copied();
        let told = path.filter(|_| needs == Needs::Key).unwrap_or(request.uri().path());
        let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
        // pdudaemon's and labgrid's clients switch with GET.
        let switches = needs == Needs::Key && path != Some("/power/{key}");
        Asked {
            from: peer.map_or_else(|| "somewhere".to_owned(), |peer| peer.to_string()),
            what: format!("{} {}", request.method(), clean(told)),
            by_key: needs == Needs::Key,
            is_trick: is_trick(request.uri().path()),
            is_change: (!reads || switches) && path.is_some_and(|path| !NOT_WRITTEN_DOWN.contains(&path)),
        }
    }
}

/// Whether somebody tries where a path leads: up, to an empty name or to a NUL, and slashes that are not to be seen. Twice encoded, too.
fn is_trick(path: &str) -> bool {
    let mut path = path.to_ascii_lowercase();
    for _ in 0..2 {
        if ["//", "%2f", "%5c", "%00"].iter().any(|part| path.contains(part))
            || path.split('/').any(|step| step == "..")
        {
            return true;
        }
        path = path.replace("%2e", ".").replace("%25", "%");
    }
    path.split('/').any(|step| step == "..")
}

/// A path is at most so long in a log: ours have some fifty characters.
const PATH_LENGTH_MAX: usize = 200;

pub(super) fn clean(path: &str) -> String {
    path.chars().filter(|character| !character.is_control()).take(PATH_LENGTH_MAX).collect()
}

/// Whoever needs no credential for his route is nobody that is known.
fn is_known(caller: &Caller) -> bool {
    caller.project.as_deref() != Some("")
}

fn has(caller: &Caller, role: Role) -> Result<(), ApiError> {
    if caller.role >= role {
        return Ok(());
    }
    let text = format!("this needs the role `{role}`, and {} may only {}", caller.name, caller.role);
    Err(ApiError::Forbidden(text))
}

/// A token behind `Bearer`, or as the password of `Basic`: clients that know nothing of tokens have an URL `https://any:TOKEN@host`, or a
/// .netrc.
fn credential_of(headers: &HeaderMap) -> Result<Option<Credential>, ApiError> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let unreadable = || ApiError::Unauthorized("`Authorization` cannot be read; write `Bearer TOKEN`".to_owned());
    let (scheme, rest) = value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or_else(unreadable)?;
    let token = if scheme.eq_ignore_ascii_case("bearer") {
        rest.trim().to_owned()
    } else if scheme.eq_ignore_ascii_case("basic") {
        let pair = BASE64_STANDARD.decode(rest.trim()).ok().and_then(|pair| String::from_utf8(pair).ok());
        let pair = pair.ok_or_else(unreadable)?;
        pair.split_once(':').ok_or_else(unreadable)?.1.to_owned()
    } else {
        return Err(unreadable());
    };
    Ok(Some(Credential(token.into())))
}

/// The same for handlers; what the guard could not read never comes to them.
pub(super) fn shown_with(headers: &HeaderMap) -> Option<Credential> {
    credential_of(headers).ok().flatten()
}

/// The header by which a proxy says that it passed a request on.
pub(super) fn passed_on_by(headers: &HeaderMap) -> Option<&'static str> {
    ["forwarded", "x-forwarded-for", "x-real-ip", "via"].into_iter().find(|name| headers.contains_key(*name))
}

/// On the loopback nobody is asked for a token. Whom a proxy there lets in is not on the loopback; and a page whose name was made to lead
/// to 127.0.0.1 after it was loaded (DNS rebinding) asks for that name.
fn is_truly_local(parts: &axum::http::request::Parts) -> Result<(), ApiError> {
    if let Some(name) = passed_on_by(&parts.headers) {
        let text = format!("a proxy passed this on (`{name}`): it needs a token, though it comes from this host");
        return Err(ApiError::Unauthorized(text));
    }
    if parts.extensions.get::<Peer>() == Some(&Peer::Unix) {
        return Ok(());
    }
    let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    if is_address_or_localhost(host) {
        return Ok(());
    }
    let text =
        format!("`{}` is not how the loopback is called: ask for 127.0.0.1 or localhost, or show a token", clean(host));
    Err(ApiError::Unauthorized(text))
}

fn is_address_or_localhost(host: &str) -> bool {
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let name = name.map_or(host, |(name, _)| name).trim_start_matches('[').trim_end_matches(']');
    name.parse::<std::net::IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost")
}

/// CI-tron's clients read other words.
fn dialect_of(headers: &HeaderMap) -> Dialect {
    let form = headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"multipart/"));
    if form { Dialect::CiTron } else { Dialect::Ours }
}

/// Who asks, for logs and events.
pub(super) fn by(request: &Request) -> String {
    let peer = super::submit::peer_of(request);
    let caller = request.extensions().get::<Arc<Caller>>().filter(|caller| !caller.is_local());
    caller.map_or_else(|| peer.to_string(), |caller| format!("{} at {peer}", caller.name))
}

/// The same with what he says: who he is, and for whom he says that he asks.
pub(super) fn in_words(request: &Request, says: Option<&str>, otherwise: &str) -> String {
    let peer = super::submit::peer_of(request);
    let caller = request.extensions().get::<Arc<Caller>>().filter(|caller| !caller.is_local());
    match (caller, says) {
        (None, says) => format!("{} at {peer}", says.unwrap_or(otherwise)),
        (Some(caller), None) => format!("{} at {peer}", caller.name),
        (Some(caller), Some(says)) => format!("{} ({says}) at {peer}", caller.name),
    }
}

/// Who asks. The guard has let him in.
pub(super) fn caller_of(request: &Request) -> Caller {
    request.extensions().get::<Arc<Caller>>().map_or_else(
        || Caller { name: "nobody".to_owned(), project: Some(String::new()), role: Role::Submit },
        |caller| Caller::clone(caller),
    )
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Credential(text) => ApiError::Unauthorized(text),
            Refused::NoRule(text) => ApiError::Forbidden(text),
            Refused::Unable(text) => ApiError::Unavailable(text),
        }
    }
}

/// How a client may show who it is (RFC 9110 section 11.6.1).
pub(super) const CHALLENGE: HeaderValue = HeaderValue::from_static("Bearer realm=\"wharf\", Basic realm=\"wharf\"");

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: &'static str) -> Result<Option<String>, ()> {
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))]);
        credential_of(&headers).map(|found| found.map(|credential| credential.0.to_string())).map_err(drop)
    }

    #[test]
    fn a_token_comes_as_bearer_or_as_a_password() {
        assert_eq!(shown("Bearer wharf-1"), Ok(Some("wharf-1".into())));
        assert_eq!(shown("bearer  wharf-1 "), Ok(Some("wharf-1".into())));
        // any:wharf-1
        assert_eq!(shown("Basic YW55OndoYXJmLTE="), Ok(Some("wharf-1".into())));
        for wrong in ["Digest x", "Bearer", "Basic !!", "Basic YW55"] {
            assert_eq!(shown(wrong), Err(()), "{wrong}");
        }
        assert!(credential_of(&HeaderMap::new()).unwrap().is_none());
    }

    #[test]
    fn the_loopback_is_an_address_or_localhost() {
        for host in ["127.0.0.1:8420", "localhost", "LOCALHOST:1", "[::1]:8420", "[::1]"] {
            assert!(is_address_or_localhost(host), "{host}");
        }
        for host in ["evil.example", "evil.example:8420", "localhost.evil.example", ""] {
            assert!(!is_address_or_localhost(host), "{host}");
        }
    }

    #[test]
    fn a_path_that_tries_to_lead_elsewhere_is_told_from_one_that_is_only_wrong() {
        for path in [
            "/api/v1/jobs/../reload",
            "/images/..%2f..%2fcallers.sqlite",
            "/images/%2e%2e/x",
            "/images/%252e%252e/x",
            "/api/v1/jobs/7%00",
            "/images/..%5cx",
            "//etc/passwd",
        ] {
            assert!(is_trick(path), "{path}");
        }
        for path in ["/api/v1/jobs/7", "/images/kernel..old", "/api/v1/dut/a%20b", "/api/v2/jobs", "/"] {
            assert!(!is_trick(path), "{path}");
        }
    }
}
