//! GitLab's web terminal, on the console of the DUT that a job runs on.
//!
//! ```text
//!  the question for a job has a session: a URL of ours, the authority's certificate, a secret ─► GitLab keeps it with the job
//!  browser ─► Workhorse ─► wss://ADVERTISED/session/NAME/exec, `Authorization: SECRET` ─► the job's console, both ways
//!                                     └ TLS, CONNECTIONS_MAX        └ 404, 401, 423, 503
//! ```
//! | asked | answer |
//! |---|---|
//! | no such session, or its job is over | 404 |
//! | another secret | 401 |
//! | somebody looks already | 423, as GitLab's runner has it |
//! | the job waits for its DUT | 503 |
//! | else | 101; it ends with the job |
//!
//! Workhorse (doc/development/workhorse/channel.md of GitLab) speaks `terminal.gitlab.com`: binary messages with what was typed, and with what
//! is shown; `base64.terminal.gitlab.com` has the same as text in base64. What is typed goes the way of everything that a job types: by its lease.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use gateway::tls::Leaves;
use gateway::tls::authority::Authority;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};
use tokio_rustls::TlsAcceptor;

use super::super::carry::sheets;
use super::carry::Taken;
use crate::config::gitlab::TerminalConfig;
use crate::farm::{Farm, JobRecord, JobState};
use crate::job_log::{JobEvent, JobLog, Record, Severity};

/// Connections at once: one looks at each job, and a farm of hundreds has few that are looked at.
const CONNECTIONS_MAX: usize = 64;
/// A handshake and a head: two round trips over any network that people use.
const GREETING: Duration = Duration::from_secs(10);
/// A pause after a failed accept: descriptors that ran out do not come back within a microsecond.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What who comes is shown of what was said before: a screen.
const BEFORE_BYTES: u64 = 4096;
/// Proxies close what is silent for a minute.
const PING_EVERY: Duration = Duration::from_secs(30);
/// A message that is not taken for so long has nobody who reads it.
const SEND_TIME: Duration = Duration::from_secs(30);
/// Of what is typed or pasted at once, as the operator's API takes it.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// What Workhorse asks for, and what is the same for who can have text only.
const PROTOCOLS: [&str; 2] = ["terminal.gitlab.com", IN_BASE64];
const IN_BASE64: &str = "base64.terminal.gitlab.com";

/// Where GitLab finds the terminal of one job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Session {
    name: String,
    url: String,
    certificate: String,
    authorization: String,
}

impl Session {
    /// As the question for a job has it.
    pub(super) fn wire(&self) -> Value {
        json!({"url": self.url, "certificate": self.certificate, "authorization": self.authorization})
    }
}

/// The terminals of all jobs, and the listeners by which they are reached.
pub(super) struct Terminals {
    farm: Weak<Farm>,
    /// Where jobs are kept, each with its session, for as long as they are carried.
    jobs: PathBuf,
    /// The folder of the farm's own certificate authority.
    authority: PathBuf,
    listeners: Mutex<BTreeMap<TerminalConfig, Listener>>,
    /// Sessions that somebody looks at.
    visited: Mutex<BTreeSet<String>>,
}

enum Listener {
    Serves {
        base: String,
        certificate: String,
        task: JoinHandle<()>,
    },
    /// It cannot, which the log says already.
    Fails,
}

/// Somebody looks; no second one comes while this is there.
struct Visit {
    terminals: Arc<Terminals>,
    name: String,
}

impl Drop for Visit {
    fn drop(&mut self) {
        lock(&self.terminals.visited).remove(&self.name);
    }
}

impl Terminals {
    /// None yet. `jobs`: the folder where jobs are kept.
    pub(super) fn new(farm: Weak<Farm>, jobs: PathBuf, authority: PathBuf) -> Arc<Terminals> {
        let (listeners, visited) = (Mutex::default(), Mutex::default());
        Arc::new(Terminals { farm, jobs, authority, listeners, visited })
    }

    /// Listens where the farm file says, and nowhere else.
    pub(super) async fn keep_in_step<'a>(self: &Arc<Self>, wanted: impl Iterator<Item = &'a TerminalConfig>) {
        let wanted: Vec<_> = wanted.cloned().collect();
        lock(&self.listeners).retain(|config, listener| {
            let stays = wanted.contains(config);
            if let Listener::Serves { task, .. } = listener
                && !stays
            {
                task.abort();
            }
            stays
        });
        for config in wanted {
            if matches!(lock(&self.listeners).get(&config), Some(Listener::Serves { .. })) {
                continue;
            }
            let listener = match self.listen(&config).await {
                Ok(listener) => listener,
                Err(error) => {
                    if !lock(&self.listeners).contains_key(&config) {
                        tracing::error!(listen = %config.listen, "no web terminals for GitLab: {error}");
                    }
                    Listener::Fails
                }
            };
            lock(&self.listeners).insert(config, listener);
        }
    }

    async fn listen(self: &Arc<Self>, config: &TerminalConfig) -> Result<Listener, String> {
        let told = |error: &dyn std::fmt::Display| error.to_string();
        let authority = Authority::kept_in(&self.authority, SystemTime::now()).map_err(|error| told(&error))?;
        let certificate = authority.pem().to_owned();
        let name = ServerName::try_from(config.host.clone()).map_err(|error| told(&error))?;
        let leaves = Leaves::new(authority, vec![name]).map_err(|error| told(&error))?;
        let builder = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(|error| told(&error))?;
        let mut tls = builder.with_no_client_auth().with_cert_resolver(Arc::new(leaves));
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let listener = TcpListener::bind(config.listen).await.map_err(|error| told(&error))?;
        let port = match config.port {
            Some(port) => port,
            None => listener.local_addr().map_err(|error| told(&error))?.port(),
        };
        let host = if config.host.contains(':') { format!("[{}]", config.host) } else { config.host.clone() };
        let base = format!("https://{host}:{port}");
        tracing::info!(listen = %config.listen, base, "GitLab finds web terminals here");
        let router = Router::new().route("/session/{name}/exec", any(exec)).with_state(Arc::clone(self));
        let task = tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(tls)), router));
        Ok(Listener::Serves { base, certificate, task })
    }

    /// A session for the next job; `None` where there is no listener.
    pub(super) fn session(&self, config: Option<&TerminalConfig>) -> Option<Session> {
        let config = config?;
        let listeners = lock(&self.listeners);
        let Listener::Serves { base, certificate, .. } = listeners.get(config)? else { return None };
        let [name, authorization] = std::array::from_fn(|_| format!("{:032x}", rand::random::<u128>()));
        let url = format!("{base}/session/{name}");
        Some(Session { name, url, certificate: certificate.clone(), authorization })
    }

    /// Whom a session leads to: a job's sheet is there for as long as the job is carried, restarts included.
    fn found(&self, name: &str) -> Option<(Session, Option<Arc<JobRecord>>)> {
        let mut errands = sheets::<Taken>(&self.jobs).filter_map(|sheet| Some((sheet.errand.session?, sheet.farm_job)));
        let (session, job) = errands.find(|(session, _)| session.name == name)?;
        let farm = self.farm.upgrade()?;
        Some((session, job.and_then(|id| farm.job(&id))))
    }

    fn visit(self: &Arc<Self>, name: &str) -> Option<Visit> {
        let is_first = lock(&self.visited).insert(name.to_owned());
        is_first.then(|| Visit { terminals: Arc::clone(self), name: name.to_owned() })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, router: Router) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => drop(tokio::spawn(connection(stream, peer, tls.clone(), router.clone(), permit))),
            Err(error) => {
                tracing::warn!(%error, "a connection to a web terminal cannot be taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: TlsAcceptor,
    router: Router,
    _permit: OwnedSemaphorePermit,
) {
    let stream = match timeout(GREETING, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "no TLS with who asked for a web terminal"),
        Err(_) => return,
    };
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(GREETING);
    let service = TowerToHyperService::new(router);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await {
        tracing::debug!(%peer, %error, "a connection to a web terminal broke");
    }
}

async fn exec(
    State(terminals): State<Arc<Terminals>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let (looked, of) = (Arc::clone(&terminals), name.clone());
    let found = tokio::task::spawn_blocking(move || looked.found(&of)).await;
    let Ok(Some((session, record))) = found else { return StatusCode::NOT_FOUND.into_response() };
    let shown = headers.get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
    // Of the hashes a comparison may tell how far they agree.
    if Sha256::digest(shown) != Sha256::digest(&session.authorization) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let record = match record {
        Some(record) if record.state() == JobState::Ended => return StatusCode::NOT_FOUND.into_response(),
        Some(record) if record.state() == JobState::Running => record,
        _ => return (StatusCode::SERVICE_UNAVAILABLE, "the job waits for its machine").into_response(),
    };
    let Some(visit) = terminals.visit(&name) else {
        return (StatusCode::LOCKED, "somebody looks already").into_response();
    };
    match upgrade {
        Ok(upgrade) => upgrade
            .protocols(PROTOCOLS)
            .max_message_size(MESSAGE_BYTES_MAX)
            .on_upgrade(move |socket| visited(socket, record, visit)),
        Err(why) => why.into_response(),
    }
}

async fn visited(mut socket: WebSocket, record: Arc<JobRecord>, _visit: Visit) {
    let form = match socket.protocol().is_some_and(|protocol| protocol == IN_BASE64) {
        true => Form::Base64,
        false => Form::Bytes,
    };
    let text = "Somebody looks at the console by GitLab's web terminal, and may type".to_owned();
    record.log.append(JobEvent::Note { text, severity: Severity::Info });
    looks(&mut socket, &record, form).await;
    let bye = CloseFrame { code: close_code::NORMAL, reason: "the console is closed".into() };
    let _ = timeout(SEND_TIME, socket.send(Message::Close(Some(bye)))).await;
}

/// How bytes are in messages.
#[derive(Clone, Copy)]
enum Form {
    Bytes,
    Base64,
}

/// Until one of both sides is gone.
async fn looks(socket: &mut WebSocket, record: &Arc<JobRecord>, form: Form) {
    let records = record.log.records();
    let mut follower = record.log.follow(records.len());
    if send(socket, form, before(&record.log, &records)).await.is_none() {
        return;
    }
    let mut pings = interval(PING_EVERY);
    loop {
        let sent = tokio::select! {
            event = follower.next() => match event {
                Some(event) => send(socket, form, said(&record.log, &event)).await,
                None => return,
            },
            message = socket.recv() => match message {
                Some(Ok(Message::Binary(bytes))) => {
                    record.type_on_console(typed(form, bytes));
                    Some(())
                }
                Some(Ok(Message::Text(text))) => {
                    record.type_on_console(typed(form, Bytes::from(text)));
                    Some(())
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => Some(()),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
            },
            _ = pings.tick() => timeout(SEND_TIME, socket.send(Message::Ping(Bytes::new()))).await.ok().and_then(Result::ok),
        };
        if sent.is_none() {
            return;
        }
    }
}

async fn send(socket: &mut WebSocket, form: Form, bytes: Bytes) -> Option<()> {
    if bytes.is_empty() {
        return Some(());
    }
    let message = match form {
        Form::Bytes => Message::Binary(bytes),
        Form::Base64 => Message::Text(BASE64_STANDARD.encode(bytes).into()),
    };
    timeout(SEND_TIME, socket.send(message)).await.ok()?.ok()
}

/// What is no base64 there types nothing.
fn typed(form: Form, bytes: Bytes) -> Bytes {
    match form {
        Form::Bytes => bytes,
        Form::Base64 => BASE64_STANDARD.decode(&bytes).unwrap_or_default().into(),
    }
}

fn said(log: &JobLog, record: &Record) -> Bytes {
    match record.event {
        JobEvent::Console { offset, length } => log.console_bytes(offset, length).unwrap_or_default(),
        _ => Bytes::new(),
    }
}

/// The end of what was said in these records.
fn before(log: &JobLog, records: &[Arc<Record>]) -> Bytes {
    let end = records.iter().rev().find_map(|record| match record.event {
        JobEvent::Console { offset, length } => Some(offset + length as u64),
        _ => None,
    });
    let Some(end) = end else { return Bytes::new() };
    let length = end.min(BEFORE_BYTES);
    log.console_bytes(end - length, usize::try_from(length).unwrap_or_default()).unwrap_or_default()
}
