//! The cache before a registry that is played here: what is asked of it, who gets what, and what never enters.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;

use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_util::task::AbortOnDropHandle;

use super::*;

/// Nobody but what the test names.
#[derive(Debug)]
struct Nowhere;

impl Outside for Nowhere {
    fn resolve(&self, host: String, port: u16) -> BoxFuture<'_, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        Box::pin(TcpStream::connect(address))
    }

    fn own(&self) -> Vec<Network> {
        Vec::new()
    }
}

/// What the played registry has, and what it was asked.
struct Played {
    objects: Mutex<HashMap<String, Bytes>>,
    tags: Mutex<HashMap<String, Digest>>,
    /// `name:password` that repositories beginning with `secret` want.
    login: Option<&'static str>,
    asked: Mutex<Vec<String>>,
    /// It says of every digest that it has it.
    boasts: std::sync::atomic::AtomicBool,
    /// What it answers next instead.
    instead: Mutex<VecDeque<(u16, &'static str, String)>>,
    /// How many chunks of bodies may leave.
    chunks: Semaphore,
    address: SocketAddr,
    scheme: &'static str,
}

const CHUNK_BYTES: usize = 1000;
const SECRET: &[u8] = b"{\"secret\":1}";

impl Played {
    async fn start() -> (Arc<Played>, AbortOnDropHandle<()>) {
        Played::start_with(None).await
    }

    async fn start_with(tls: Option<TlsAcceptor>) -> (Arc<Played>, AbortOnDropHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let played = Arc::new(Played {
            objects: Mutex::default(),
            tags: Mutex::default(),
            login: Some("me:word"),
            asked: Mutex::default(),
            boasts: std::sync::atomic::AtomicBool::default(),
            instead: Mutex::default(),
            chunks: Semaphore::new(Semaphore::MAX_PERMITS),
            address: listener.local_addr().unwrap(),
            scheme: if tls.is_some() { "https" } else { "http" },
        });
        let serving = Arc::clone(&played);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let played = Arc::clone(&serving);
                let service = service_fn(move |request| {
                    let played = Arc::clone(&played);
                    async move { Ok::<_, Infallible>(played.answer(&request)) }
                });
                let http = hyper::server::conn::http1::Builder::new();
                let tls = tls.clone();
                tokio::spawn(async move {
                    // Whoever does not trust us hangs up.
                    let _ = match tls {
                        None => http.serve_connection(TokioIo::new(stream), service).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => http.serve_connection(TokioIo::new(stream), service).await,
                            Err(_) => return,
                        },
                    };
                });
            }
        });
        (played, AbortOnDropHandle::new(task))
    }

    fn put(&self, repository: &str, kind: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let path = format!("/v2/{repository}/{kind}/{digest}");
        self.objects.lock().unwrap().insert(path, Bytes::copy_from_slice(bytes));
        digest
    }

    fn tag(&self, repository: &str, tag: &str, digest: Digest) {
        self.tags.lock().unwrap().insert(format!("/v2/{repository}/manifests/{tag}"), digest);
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn next_is(&self, status: u16, header: &'static str, value: String) {
        self.instead.lock().unwrap().push_back((status, header, value));
    }

    fn answer(self: Arc<Played>, request: &Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
        let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
        let authorization = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        self.asked.lock().unwrap().push(format!("{method} {path}"));
        let instead = self.instead.lock().unwrap().pop_front();
        if let Some((status, header, value)) = instead {
            return self.plain(status, header, &value, Bytes::new());
        }
        if path == "/token" {
            let wanted = format!("Basic {}", STANDARD.encode(self.login.unwrap_or_default()));
            let token = if authorization == Some(wanted) { "good" } else { "poor" };
            return self.plain(200, "x", "", format!(r#"{{"token":"{token}"}}"#).into());
        }
        if path.starts_with("/v2/secret") && authorization.as_deref() != Some("Bearer good") {
            let realm = format!("Bearer realm=\"{}://{}/token\",service=\"played\"", self.scheme, self.address);
            return self.plain(401, "www-authenticate", &realm, Bytes::new());
        }
        if method == "HEAD" && self.boasts.load(std::sync::atomic::Ordering::Relaxed) {
            let digest = path.rsplit_once('/').unwrap().1.replace("v1", &Digest::of(SECRET).to_string());
            return self.plain(200, "docker-content-digest", &digest, Bytes::new());
        }
        let tagged = self.tags.lock().unwrap().get(&path).copied();
        let named = match tagged {
            Some(digest) => format!("{}/{digest}", path.rsplit_once('/').unwrap().0),
            None => path,
        };
        let found = self.objects.lock().unwrap().get(&named).cloned();
        let Some(bytes) = found else { return self.plain(404, "x", "", Bytes::new()) };
        let digest = named.rsplit_once('/').unwrap().1.to_owned();
        let body = if method == "HEAD" { Bytes::new() } else { bytes.clone() };
        let mut response = self.plain(200, "docker-content-digest", &digest, body);
        response.headers_mut().insert("content-length", bytes.len().into());
        response.headers_mut().insert("content-type", "application/vnd.oci.image.manifest.v1+json".parse().unwrap());
        response
    }

    fn plain(
        self: Arc<Played>,
        status: u16,
        header: &'static str,
        value: &str,
        body: Bytes,
    ) -> Response<BoxBody<Bytes, Infallible>> {
        let frames = futures_util::stream::unfold((self, body), |(played, mut body)| async move {
            if body.is_empty() {
                return None;
            }
            played.chunks.acquire().await.unwrap().forget();
            let chunk = body.split_to(CHUNK_BYTES.min(body.len()));
            Some((Ok(Frame::data(chunk)), (played, body)))
        });
        let mut response = Response::new(BoxBody::new(StreamBody::new(frames)));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        response.headers_mut().insert(header, value.parse().unwrap());
        response
    }
}

struct Scene {
    played: Arc<Played>,
    host: String,
    door: Door,
    directory: tempfile::TempDir,
    _task: AbortOnDropHandle<()>,
}

async fn scene() -> Scene {
    scene_with(|_| {}).await
}

async fn scene_with(change: impl FnOnce(&mut Settings)) -> Scene {
    let (played, task) = Played::start().await;
    let host = played.address.to_string();
    let directory = tempfile::tempdir().unwrap();
    let upstream = Upstream { host: host.clone(), scheme: Scheme::Http, ..Upstream::default() };
    let mut settings = Settings { upstreams: vec![upstream], tags_last: Duration::ZERO, ..Settings::default() };
    change(&mut settings);
    let door = open(&directory, settings);
    Scene { played, host, door, directory, _task: task }
}

fn open(directory: &tempfile::TempDir, settings: Settings) -> Door {
    let config = Config { settings, directory: directory.path().to_owned(), route: Route::Direct };
    Door::open(config, Arc::new(Nowhere)).unwrap()
}

impl Scene {
    async fn get(&self, path: &str, logins: &Logins) -> Result<Given, Denied> {
        let host = component_of(&self.host);
        self.door.answer(&asked(&format!("/v2/{host}/{path}")).unwrap(), None, logins).await
    }

    /// What `path` brings, and what is said of it.
    async fn read(&self, path: &str) -> Result<(Vec<u8>, Option<String>), String> {
        self.read_as(path, &Logins::new()).await
    }

    async fn read_as(&self, path: &str, logins: &Logins) -> Result<(Vec<u8>, Option<String>), String> {
        let given = self.get(path, logins).await.map_err(|denied| format!("{} {}", denied.status, denied.code))?;
        whole(given).await
    }

    fn login(&self, password: &str) -> Logins {
        let login = Login { username: "me".to_owned(), password: password.to_owned() };
        Logins::from([(self.host.clone(), login)])
    }
}

async fn whole(given: Given) -> Result<(Vec<u8>, Option<String>), String> {
    let Given::Object { reader, bytes, note, .. } = given else { panic!("{given:?}") };
    let mut all = Vec::new();
    while (all.len() as u64) < bytes {
        all.extend(reader.read_at(all.len() as u64, 700).await.map_err(|error| error.to_string())?);
    }
    Ok((all, note))
}

#[tokio::test]
async fn a_blob_is_loaded_once_for_all_who_want_it_and_read_while_it_arrives() {
    let scene = scene().await;
    let bytes: Vec<u8> = (0..5000_u32).map(|number| number as u8).collect();
    let digest = scene.played.put("a/b", "blobs", &bytes);
    scene.played.chunks.forget_permits(Semaphore::MAX_PERMITS);
    scene.played.chunks.add_permits(2);
    let path = format!("a/b/blobs/{digest}");
    let Given::Object { reader, bytes: size, .. } = scene.get(&path, &Logins::new()).await.unwrap() else { panic!() };
    assert_eq!(size, 5000);
    let mut begun = Vec::new();
    for length in [700, 700, 599] {
        begun.extend(reader.read_at(begun.len() as u64, length).await.unwrap());
    }
    assert_eq!(begun, bytes[..1999], "the last byte that is there is held back");
    let second = scene.get(&path, &Logins::new()).await.unwrap();
    scene.played.chunks.add_permits(100);
    assert_eq!(whole(second).await.unwrap().0, bytes);
    assert_eq!(reader.read_at(4990, 700).await.unwrap(), bytes[4990..]);
    assert_eq!(scene.read(&path).await.unwrap().0, bytes);
    let gets = |asked: Vec<String>| asked.into_iter().filter(|line| line.starts_with("GET")).count();
    assert_eq!(gets(scene.played.asked()), 1);
    assert_eq!(scene.door.inventory().bytes, 5000);
}

#[tokio::test]
async fn a_read_of_what_still_arrives_waits_until_it_is_whole() {
    for disk in ["has room", "is full"] {
        let scene = scene().await;
        if disk == "is full" {
            scene.door.0.store.fill_the_disk();
        }
        let bytes: Vec<u8> = (0..5000_u32).map(|number| number as u8).collect();
        let digest = scene.played.put("a/b", "blobs", &bytes);
        let given = scene.get(&format!("a/b/blobs/{digest}"), &Logins::new()).await.unwrap();
        let Given::Object { reader, .. } = given else { panic!("{given:?}") };
        for (offset, length) in [(0, 10), (10, 2500), (2510, 3000), (5000, 1)] {
            let expected = &bytes[offset..5000.min(offset + length)];
            assert_eq!(
                reader.read_at(offset as u64, length).await.unwrap(),
                expected,
                "{offset}, when the disk {disk}"
            );
        }
    }
}

#[tokio::test]
async fn what_is_not_what_its_name_says_is_cut_off_and_never_kept() {
    let scene = scene().await;
    let digest = scene.played.put("a/b", "blobs", &[7; 3000]);
    let manifest = scene.played.put("a/b", "manifests", b"{}");
    for (kind, digest) in [("blobs", digest), ("manifests", manifest)] {
        let path = format!("/v2/a/b/{kind}/{digest}");
        let wrong = vec![8; scene.played.objects.lock().unwrap()[&path].len()];
        scene.played.objects.lock().unwrap().insert(path, wrong.into());
    }
    for _ in 0..2 {
        let told = scene.read(&format!("a/b/blobs/{digest}")).await.unwrap_err();
        // Before the first byte is given, or after some.
        assert!(told == "502 DIGEST_INVALID" || told.contains("where sha256:"), "{told}");
        assert_eq!(scene.read(&format!("a/b/manifests/{manifest}")).await, Err("502 MANIFEST_UNKNOWN".to_owned()));
    }
    assert_eq!(scene.door.inventory().bytes, 0);
    assert_eq!(std::fs::read_dir(scene.directory.path().join("blobs")).unwrap().count(), 0);
    let gets: Vec<_> = scene.played.asked().into_iter().filter(|line| line.starts_with("GET")).collect();
    assert_eq!(gets.len(), 4, "{gets:?}");
}

#[tokio::test]
async fn what_one_job_may_have_is_no_other_jobs_that_its_registry_would_refuse() {
    let scene = scene().await;
    let manifest = scene.played.put("secret/a", "manifests", b"{\"secret\":1}");
    scene.played.tag("secret/a", "v1", manifest);
    let blob = scene.played.put("secret/a", "blobs", b"a secret layer");
    scene.played.put("open/a", "blobs", b"an open layer");
    let (mine, wrong) = (scene.login("word"), scene.login("guess"));
    let (by_tag, by_digest) = ("secret/a/manifests/v1".to_owned(), format!("secret/a/manifests/{manifest}"));
    let layer = format!("secret/a/blobs/{blob}");
    for path in [&by_tag, &by_digest, &layer] {
        scene.read_as(path, &mine).await.unwrap();
    }
    for path in [&by_tag, &by_digest, &layer] {
        assert_eq!(scene.read(path).await, Err("403 DENIED".to_owned()), "{path}");
        assert_eq!(scene.read_as(path, &wrong).await, Err("403 DENIED".to_owned()), "{path}");
    }
    // The same bytes by the name of a repository that does not have them.
    assert_eq!(scene.read(&format!("open/a/blobs/{blob}")).await, Err("404 BLOB_UNKNOWN".to_owned()));
    // Also when its registry cannot be asked.
    scene.played.next_is(503, "x", String::new());
    assert_eq!(scene.read(&by_digest).await, Err("503 UNAVAILABLE".to_owned()));
    assert_eq!(scene.read_as(&by_digest, &mine).await.unwrap().0, b"{\"secret\":1}");
    let secrets = scene.played.asked().into_iter().filter(|line| *line == format!("GET /v2/{layer}")).count();
    assert_eq!(secrets, 1);
}

#[tokio::test]
async fn a_registry_that_says_of_every_digest_that_it_has_it_opens_nothing_of_other_repositories() {
    let scene = scene().await;
    let manifest = scene.played.put("secret/a", "manifests", SECRET);
    let blob = scene.played.put("secret/a", "blobs", b"a secret layer");
    let mine = scene.login("word");
    for path in [format!("secret/a/manifests/{manifest}"), format!("secret/a/blobs/{blob}")] {
        scene.read_as(&path, &mine).await.unwrap();
    }
    scene.played.boasts.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(scene.read(&format!("open/a/blobs/{blob}")).await, Err("404 BLOB_UNKNOWN".to_owned()));
    for reference in [manifest.to_string(), "v1".to_owned()] {
        let read = scene.read(&format!("open/a/manifests/{reference}")).await;
        assert_eq!(read, Err("404 MANIFEST_UNKNOWN".to_owned()), "{reference}");
    }
    // One that has other bytes by that name.
    let path = format!("/v2/open/a/blobs/{blob}");
    scene.played.objects.lock().unwrap().insert(path, Bytes::from_static(b"a public layer"));
    assert_eq!(scene.read(&format!("open/a/blobs/{blob}")).await, Err("404 BLOB_UNKNOWN".to_owned()));
}

#[tokio::test]
async fn a_layer_that_two_repositories_have_is_loaded_once_and_of_the_second_a_sample_is_read() {
    let scene = scene().await;
    let bytes: Vec<u8> = (0..100_000_u32).map(|number| (number / 7) as u8).collect();
    let digest = scene.played.put("a/b", "blobs", &bytes);
    scene.played.put("a/c", "blobs", &bytes);
    scene.played.put("a/d", "blobs", &bytes);
    assert_eq!(scene.read(&format!("a/b/blobs/{digest}")).await.unwrap().0, bytes);
    // A sample's worth may leave, and what a connection has besides on its way: by far not all of it.
    scene.played.chunks.forget_permits(Semaphore::MAX_PERMITS);
    scene.played.chunks.add_permits(50);
    assert_eq!(scene.read(&format!("a/c/blobs/{digest}")).await.unwrap().0, bytes);
    // From then on it is that repository's, too.
    scene.played.asked();
    assert_eq!(scene.read(&format!("a/c/blobs/{digest}")).await.unwrap().0, bytes);
    assert_eq!(scene.played.asked(), Vec::<String>::new());
    // Also while it arrives for the first one.
    let other = scene.played.put("a/b", "blobs", &bytes[1..]);
    scene.played.put("a/d", "blobs", &bytes[1..]);
    let first = scene.get(&format!("a/b/blobs/{other}"), &Logins::new()).await.unwrap();
    scene.played.chunks.add_permits(1000);
    assert_eq!(scene.read(&format!("a/d/blobs/{other}")).await.unwrap().0, bytes[1..]);
    assert_eq!(whole(first).await.unwrap().0, bytes[1..]);
    assert_eq!(scene.door.inventory().bytes, 199_999);
}

#[tokio::test]
async fn a_registry_that_is_away_or_has_enough_leaves_what_was_had_before_and_the_log_says_so() {
    let scene = scene().await;
    let manifest = scene.played.put("a/b", "manifests", b"{}");
    scene.played.tag("a/b", "v1", manifest);
    let blob = scene.played.put("a/b", "blobs", b"a layer");
    let layer = format!("a/b/blobs/{blob}");
    assert_eq!(scene.read("a/b/manifests/v1").await, Ok((b"{}".to_vec(), None)));
    scene.read(&layer).await.unwrap();
    scene.played.next_is(429, "retry-after", "600".to_owned());
    let (_, note) = scene.read("a/b/manifests/v1").await.unwrap();
    let note = note.unwrap();
    let host = &scene.host;
    assert!(note.starts_with("as of ") && note.ends_with(&format!("{host} answered 429 Too Many Requests")), "{note}");
    // It is left alone meanwhile.
    scene.played.asked();
    assert!(scene.read("a/b/manifests/v1").await.unwrap().1.is_some());
    assert_eq!(scene.read("a/b/manifests/v2").await, Err("503 UNAVAILABLE".to_owned()));
    assert_eq!(scene.played.asked(), Vec::<String>::new());
    // After a restart, with nobody at that address.
    let settings = Settings::clone(&scene.door.settings());
    let Scene { played, host, door, directory, _task } = scene;
    drop((played, door, _task));
    let door = open(&directory, settings);
    let (played, _task) = Played::start().await;
    let again = Scene { played, host, door, directory, _task };
    let (bytes, note) = again.read("a/b/manifests/v1").await.unwrap();
    assert_eq!((bytes, note.is_some()), (b"{}".to_vec(), true));
    assert_eq!(again.read(&format!("a/b/manifests/{manifest}")).await.unwrap().0, b"{}");
    assert_eq!(again.read(&layer).await.unwrap().0, b"a layer");
}

#[tokio::test]
async fn a_tag_is_asked_for_again_when_it_is_old_and_loaded_again_when_it_is_another() {
    let scene = scene().await;
    let first = scene.played.put("a/b", "manifests", b"{\"first\":1}");
    let second = scene.played.put("a/b", "manifests", b"{\"second\":1}");
    scene.played.tag("a/b", "v1", first);
    let path = "a/b/manifests/v1";
    for expected in [vec!["HEAD", "GET"], vec!["HEAD"]] {
        scene.read(path).await.unwrap();
        let asked: Vec<_> =
            scene.played.asked().iter().map(|line| line.split_once(' ').unwrap().0.to_owned()).collect();
        assert_eq!(asked, expected);
    }
    scene.played.tag("a/b", "v1", second);
    assert_eq!(scene.read(path).await.unwrap().0, b"{\"second\":1}");
    scene.door.set(Settings { tags_last: Duration::from_secs(3600), ..Settings::clone(&scene.door.settings()) });
    scene.played.asked();
    scene.read(path).await.unwrap();
    assert_eq!(scene.played.asked(), Vec::<String>::new());
    scene.played.tags.lock().unwrap().clear();
    scene.door.set(Settings { tags_last: Duration::ZERO, ..Settings::clone(&scene.door.settings()) });
    assert_eq!(scene.read(path).await, Err("404 MANIFEST_UNKNOWN".to_owned()));
    assert_eq!(scene.door.inventory().holdings[0].tags, Vec::<String>::new());
}

/// A server's side of TLS, and the authority that signed its certificate.
fn tls() -> (TlsAcceptor, Authority) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, key);
    let key = rcgen::KeyPair::generate().unwrap();
    let of_server = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![of_server.der().clone()], key).unwrap();
    (TlsAcceptor::from(Arc::new(config)), Authority::of(authority.as_bytes()).unwrap())
}

#[tokio::test]
async fn a_registry_whose_certificate_nobody_else_knows_is_had_with_its_authority_tokens_included() {
    let (acceptor, authority) = tls();
    let (played, _task) = Played::start_with(Some(acceptor)).await;
    let host = played.address.to_string();
    let directory = tempfile::tempdir().unwrap();
    let upstream = |authority| vec![Upstream { host: host.clone(), authority, ..Upstream::default() }];
    let settings = Settings { upstreams: upstream(None), tags_last: Duration::ZERO, ..Settings::default() };
    let door = open(&directory, settings.clone());
    let scene = Scene { played, host: host.clone(), door, directory, _task };
    let manifest = scene.played.put("secret/a", "manifests", b"{\"secret\":1}");
    scene.played.tag("secret/a", "v1", manifest);
    let (path, mine) = ("secret/a/manifests/v1", scene.login("word"));
    let denied = scene.get(path, &mine).await.unwrap_err();
    assert_eq!(denied.status, 503);
    assert!(denied.message.contains("invalid peer certificate"), "{}", denied.message);
    scene.door.set(Settings { upstreams: upstream(Some(tls().1)), ..settings.clone() });
    assert_eq!(scene.get(path, &mine).await.unwrap_err().status, 503, "another authority");
    scene.door.set(Settings { upstreams: upstream(Some(authority)), ..settings });
    assert_eq!(scene.read_as(path, &mine).await.unwrap().0, b"{\"secret\":1}");
    assert_eq!(scene.read_as(path, &scene.login("guess")).await, Err("403 DENIED".to_owned()));
}

#[tokio::test]
async fn what_is_forgotten_is_loaded_again_for_whom_its_registry_lets_in() {
    let scene = scene().await;
    let blob = scene.played.put("a/b", "blobs", b"a layer");
    let path = format!("a/b/blobs/{blob}");
    scene.read(&path).await.unwrap();
    let repository = format!("{}/a/b", scene.host);
    let forgotten = Forgotten { repositories: vec![repository], bytes: 7 };
    assert_eq!(scene.door.forget(&format!("{}/a", scene.host)).await, forgotten);
    for folder in ["blobs", "repositories"] {
        assert_eq!(std::fs::read_dir(scene.directory.path().join(folder)).unwrap().count(), 0, "{folder}");
    }
    scene.played.asked();
    assert_eq!(scene.read(&path).await.unwrap().0, b"a layer");
    assert_eq!(scene.played.asked(), [format!("GET /v2/{path}")]);
}

#[tokio::test]
async fn where_a_registry_leads_is_judged_and_takes_no_password_along() {
    let scene = scene().await;
    for place in ["http://127.0.0.1:1/x", "http://169.254.169.254/latest", "http://localhost:1/", "ftp://example.org/"]
    {
        scene.played.next_is(307, "location", place.to_owned());
        let denied = scene.get(&format!("a/b/blobs/{}", Digest::of(b"x")), &Logins::new()).await.unwrap_err();
        assert_eq!(denied.status, 503, "{place}");
        assert!(denied.message.contains("127.0.0.1"), "{}", denied.message);
        scene.door.set(Settings::clone(&scene.door.settings()));
        scene.played.next_is(401, "www-authenticate", format!("Bearer realm=\"{place}\""));
        let denied = scene.get(&format!("a/b/blobs/{}", Digest::of(b"x")), &scene.login("word")).await.unwrap_err();
        assert!(denied.status == 502 || denied.status == 503, "{place}: {denied:?}");
        scene.door.set(Settings::clone(&scene.door.settings()));
    }
    // To itself it may lead.
    let digest = scene.played.put("a/b", "blobs", b"a layer");
    scene.played.next_is(307, "location", format!("/v2/a/b/blobs/{digest}"));
    assert_eq!(scene.read(&format!("a/b/blobs/{digest}")).await.unwrap().0, b"a layer");
}

#[tokio::test]
async fn what_does_not_fit_is_passed_through_and_what_was_not_used_for_longest_goes() {
    let scene = scene_with(|settings| settings.bytes_max = 2500).await;
    let large = scene.played.put("a/b", "blobs", &[1; 4000]);
    let path = format!("a/b/blobs/{large}");
    assert_eq!(scene.read(&path).await.unwrap().0, [1; 4000]);
    assert_eq!(scene.door.inventory().bytes, 0);
    for number in 2..5 {
        let digest = scene.played.put("a/b", "blobs", &[number; 1000]);
        scene.read(&format!("a/b/blobs/{digest}")).await.unwrap();
    }
    assert_eq!(scene.door.inventory().bytes, 2000);
    // What is wrong is cut off here, too.
    scene.played.objects.lock().unwrap().insert(format!("/v2/{path}"), vec![9; 4000].into());
    assert!(scene.read(&path).await.unwrap_err().contains("sent something else"));
}

#[tokio::test]
async fn a_disk_that_is_full_in_the_middle_of_a_blob_ends_nobodys_pull() {
    let scene = scene().await;
    let bytes: Vec<u8> = (0..9000_u32).map(|number| (number / 7) as u8).collect();
    let digest = scene.played.put("a/b", "blobs", &bytes);
    scene.played.chunks.forget_permits(Semaphore::MAX_PERMITS);
    scene.played.chunks.add_permits(3);
    let Given::Object { reader, .. } = scene.get(&format!("a/b/blobs/{digest}"), &Logins::new()).await.unwrap() else {
        panic!()
    };
    let mut all = Vec::new();
    for length in [700, 700, 700, 700, 199] {
        all.extend(reader.read_at(all.len() as u64, length).await.unwrap());
    }
    scene.door.0.store.fill_the_disk();
    scene.played.chunks.add_permits(100);
    while all.len() < 9000 {
        all.extend(reader.read_at(all.len() as u64, 700).await.unwrap());
    }
    assert_eq!(all, bytes);
    assert_eq!(scene.door.inventory().bytes, 0);
}

#[tokio::test]
async fn a_registry_that_the_farm_does_not_name_is_not_asked() {
    let scene = scene().await;
    let asked = asked("/v2/quay.io/a/b/manifests/v1").unwrap();
    let denied = scene.door.answer(&asked, None, &Logins::new()).await.unwrap_err();
    let expected = format!("this farm has no images of quay.io; it has those of {}", scene.host);
    assert_eq!((denied.status, denied.message), (403, expected));
}
