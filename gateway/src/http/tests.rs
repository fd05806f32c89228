//! The server behind real sockets, asked by a client that shows every byte of the head.

use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::mpsc;

use super::*;
use crate::content::cache::{Cache, Config as CacheConfig, Route};
use crate::live::{Answer, Question, Reply as LiveReply, Takes};
use crate::namespace::{AccessEvent, Exposure, Name, Origin, Publication};

struct Scene {
    server: Server,
    publication: Publication<Content>,
    events: mpsc::UnboundedReceiver<AccessEvent>,
}

async fn scene_with(change: impl FnOnce(&mut Config)) -> Scene {
    let namespaces = Namespaces::new();
    let (sender, events) = mpsc::unbounded_channel();
    let observer = Arc::new(move |event| {
        let _ = sender.send(event);
    });
    let publication = namespaces.publish("127.0.0.1".parse().unwrap(), observer).unwrap();
    let mut config = Config::new(Net::host(), "127.0.0.1:0".parse().unwrap());
    change(&mut config);
    let server = start(config, namespaces).await.unwrap();
    Scene { server, publication, events }
}

async fn scene() -> Scene {
    scene_with(|_| ()).await
}

fn inline(text: &str) -> Content {
    Content::Inline(Bytes::copy_from_slice(text.as_bytes()))
}

impl Scene {
    fn put(&self, name: &str, content: Content, exposure: Exposure, origin: Origin) {
        self.publication.put(Protocol::Http, Name::Exact(name.into()), content, exposure, origin, Instant::now());
    }

    fn put_text(&self, name: &str, text: &str) {
        self.put(name, inline(text), Exposure::default(), Origin::Job);
    }

    async fn client(&self) -> Client {
        self.client_from("127.0.0.1").await
    }

    async fn client_from(&self, address: &str) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
        Client(socket.connect(self.server.address()).await.unwrap())
    }

    /// One GET on a connection of its own.
    async fn get(&self, path: &str) -> Reply {
        self.client().await.get(path, "").await
    }

    /// The next event that is no progress.
    async fn event(&mut self) -> AccessEvent {
        loop {
            match self.events.recv().await.unwrap() {
                AccessEvent::Progress => {}
                event => return event,
            }
        }
    }
}

struct Client(TcpStream);

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        let line = self.head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}: ")))?;
        Some(&line[name.len() + 2..])
    }

    fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }
}

impl Client {
    async fn get(&mut self, path: &str, headers: &str) -> Reply {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: gateway\r\n{headers}\r\n")).await
    }

    async fn ask(&mut self, request: &str) -> Reply {
        self.0.write_all(request.as_bytes()).await.unwrap();
        let head = self.head().await;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut reply = Reply { status, head, body: Vec::new() };
        let length = reply.header("content-length").map_or(0, |length| length.parse().unwrap());
        if !request.starts_with("HEAD") && status != 304 {
            reply.body.resize(length, 0);
            self.0.read_exact(&mut reply.body).await.unwrap();
        }
        reply
    }

    async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.0.read_u8().await.unwrap());
        }
        String::from_utf8(head).unwrap()
    }

    /// Everything until the server closes.
    async fn rest(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = self.0.read_to_end(&mut rest).await;
        rest
    }
}

#[tokio::test]
async fn a_connection_serves_one_request_after_another() {
    let scene = scene().await;
    scene.put_text("/_/boot/boot.ipxe", "#!ipxe\n");
    let mut client = scene.client().await;
    for _ in 0..3 {
        let reply = client.get("/_/boot/boot.ipxe?uuid=1", "").await;
        assert_eq!((reply.status, reply.text()), (200, "#!ipxe\n"));
        assert_eq!(reply.header("connection"), None, "kept open without a word, as HTTP/1.1 means it");
    }
    let missing = client.get("/none", "").await;
    assert_eq!((missing.status, missing.text()), (404, "the job publishes no such name\n"));
    assert_eq!(
        client.get("//_//boot/boot.ipxe", "").await.status,
        200,
        "collapsed, not redirected; after an error too"
    );
}

#[tokio::test]
async fn an_answer_tells_its_length_and_has_no_empty_header() {
    let scene = scene().await;
    scene.put_text("/snponly.efi", "MZ");
    let reply = scene.get("/snponly.efi").await;
    let head = reply.head.to_ascii_lowercase();
    let mut names: Vec<&str> = head.lines().skip(1).filter_map(|line| line.split_once(": ").map(|it| it.0)).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept-ranges", "content-length", "content-type", "date", "etag"]);
    assert!(head.lines().skip(1).filter(|line| !line.is_empty()).all(|line| !line.ends_with(": ")), "{head}");
    assert_eq!(reply.header("content-type"), Some("application/efi"));
    let empty = scene.get("/none").await;
    assert_eq!(empty.header("content-length"), Some("31"));
}

#[tokio::test]
async fn head_is_a_look_that_counts_nothing() {
    let mut scene = scene().await;
    scene.put("/once", inline("secret"), Exposure { access_count: Some(1), ..Exposure::default() }, Origin::Job);
    let mut client = scene.client().await;
    for _ in 0..2 {
        let reply = client.ask("HEAD /once HTTP/1.1\r\nHost: g\r\n\r\n").await;
        assert_eq!((reply.status, reply.header("content-length")), (200, Some("6")));
    }
    let read = client.get("/once", "").await;
    assert_eq!((read.status, read.text()), (200, "secret"));
    let again = client.get("/once", "").await;
    assert_eq!((again.status, again.text()), (410, "already read 1 times in this boot (lifetime.access_count)\n"));
    assert_eq!(client.ask("HEAD /once HTTP/1.1\r\nHost: g\r\n\r\n").await.status, 410);
    let resumed = client.get("/once", "Range: bytes=3-\r\n").await;
    assert_eq!(resumed.status, 410, "all of it was sent: a range is no second read");
    assert!(matches!(scene.event().await, AccessEvent::Opened { access: 1, .. }));
    let ended = scene.event().await;
    assert!(matches!(ended, AccessEvent::Ended { bytes: 6, outcome: Outcome::Complete, .. }), "{ended:?}");
}

#[tokio::test]
async fn ranges_come_from_the_place_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|index| (index / 3) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    let scene = scene().await;
    scene.put("/disk.img", Content::File(path), Exposure::default(), Origin::Job);
    let mut client = scene.client().await;
    let whole = client.get("/disk.img", "").await;
    assert!(whole.body == bytes);
    let etag = whole.header("etag").unwrap().to_owned();
    let part = client.get("/disk.img", "Range: bytes=500000-999998\r\n").await;
    assert_eq!((part.status, part.header("content-range")), (206, Some("bytes 500000-999998/1000000")));
    assert!(part.body == bytes[500_000..999_999]);
    let same = client.get("/disk.img", &format!("Range: bytes=10-12\r\nIf-Range: {etag}\r\n")).await;
    assert_eq!((same.status, &same.body[..]), (206, &bytes[10..13]));
    let other = client.get("/disk.img", "Range: bytes=10-12\r\nIf-Range: \"other\"\r\n").await;
    assert_eq!((other.status, other.body.len()), (200, 1_000_000));
    let behind = client.get("/disk.img", "Range: bytes=1000000-\r\n").await;
    assert_eq!((behind.status, behind.header("content-range")), (416, Some("bytes */1000000")));
    let known = client.get("/disk.img", &format!("If-None-Match: {etag}\r\n")).await;
    assert_eq!((known.status, known.header("etag")), (304, Some(&etag[..])));
    assert_eq!(client.get("/disk.img", "Range: bytes=0-1,5-6\r\n").await.body.len(), 1_000_000);
}

#[tokio::test]
async fn a_key_opens_the_namespace_from_another_address_and_nothing_else_does() {
    let scene = scene().await;
    scene.put_text("/kernel", "vmlinuz");
    scene.put("/_/boot/boot.ipxe", inline("#!ipxe"), Exposure::default(), Origin::Generated);
    let key = scene.publication.key().as_str().to_owned();
    let mut stranger = scene.client_from("127.0.0.2").await;
    let refused = stranger.get("/kernel", "").await;
    assert_eq!((refused.status, refused.text()), (404, "no leased DUT has this address\n"));
    assert_eq!(stranger.get(&format!("/_/n/{key}/kernel"), "").await.text(), "vmlinuz");
    assert_eq!(stranger.get(&format!("/_/n/{key}/_/boot/boot.ipxe"), "").await.text(), "#!ipxe");
    assert_eq!(stranger.get("/_/n/0123/kernel", "").await.status, 404);
    let forged = stranger.get("/kernel", "X-Forwarded-For: 127.0.0.1\r\n").await;
    assert_eq!(forged.status, 404, "no header makes somebody of a stranger");
}

#[tokio::test]
async fn ci_trons_boot_script_path_answers_unless_the_job_publishes_it() {
    let scene = scene().await;
    scene.put("/_/boot/boot.ipxe", inline("generated"), Exposure::default(), Origin::Generated);
    let path = "/boot/52:54:00:00:00:01/boot.ipxe";
    assert_eq!(scene.get(path).await.text(), "generated");
    scene.put_text(path, "the job's");
    assert_eq!(scene.get(path).await.text(), "the job's");
}

#[tokio::test]
async fn other_methods_bad_paths_and_junk_are_refused_and_the_server_goes_on() {
    let scene = scene().await;
    scene.put_text("/a", "a");
    let mut client = scene.client().await;
    let deleted = client.ask("DELETE /a HTTP/1.1\r\nHost: g\r\n\r\n").await;
    assert_eq!((deleted.status, deleted.header("allow")), (405, Some("GET, HEAD")));
    assert_eq!(client.get("/../etc/passwd", "").await.status, 400);
    assert_eq!(client.get("/%2e%2e/etc/passwd", "").await.status, 400);
    assert_eq!(client.get(&format!("/{}", "a".repeat(5000)), "").await.status, 414);
    for junk in [
        "\x16\x03\x01\x02\x00\x01\x00\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "GET /a HTTP/9.9\r\n\r\n".to_owned(),
        format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(70_000)),
        format!("GET /a HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(500)),
        "GET /a HTTP/1.1\r\nContent-Length: x\r\n\r\n".to_owned(),
    ] {
        let mut client = scene.client().await;
        client.0.write_all(junk.as_bytes()).await.unwrap();
        let answer = client.rest().await;
        assert!(answer.starts_with(b"HTTP/1.1 4"), "{:?} answered {:?}", &junk[..6], String::from_utf8_lossy(&answer));
    }
    assert_eq!(scene.get("/a").await.text(), "a");
}

#[tokio::test]
async fn an_http_1_0_client_reads_until_the_end_of_the_connection() {
    let scene = scene().await;
    scene.put_text("/a", "old");
    let mut client = scene.client().await;
    client.0.write_all(b"GET /a HTTP/1.0\r\n\r\n").await.unwrap();
    let answer = String::from_utf8(client.rest().await).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("\r\n\r\nold"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("content-length: 3\r\n"), "{answer}");
}

/// A file that does not fit into the socket buffers of a client that does not read.
fn large_file(directory: &Path) -> Content {
    let path = directory.join("large");
    std::fs::File::create(&path).unwrap().set_len(64 * 1024 * 1024).unwrap();
    Content::File(path)
}

#[tokio::test]
async fn a_transfer_ends_when_its_publication_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let scene = scene().await;
    scene.put("/large", large_file(directory.path()), Exposure::default(), Origin::Job);
    let mut client = scene.client().await;
    client.0.write_all(b"GET /large HTTP/1.1\r\nHost: g\r\n\r\n").await.unwrap();
    client.head().await;
    let Scene { server, publication, mut events } = scene;
    drop(publication);
    let outcome = loop {
        match events.recv().await.unwrap() {
            AccessEvent::Ended { outcome, .. } => break outcome,
            _ => continue,
        }
    };
    assert!(
        matches!(&outcome, Outcome::Failed(why) if why.starts_with("the job took its artifacts back")),
        "{outcome:?}"
    );
    assert!(client.rest().await.len() < 64 * 1024 * 1024);
    drop(server);
}

#[tokio::test]
async fn a_client_that_stops_reading_loses_its_connection() {
    let directory = tempfile::tempdir().unwrap();
    let mut scene = scene_with(|config| config.write_timeout = Duration::from_millis(200)).await;
    scene.put("/large", large_file(directory.path()), Exposure::default(), Origin::Job);
    let mut client = scene.client().await;
    client.0.write_all(b"GET /large HTTP/1.1\r\nHost: g\r\n\r\n").await.unwrap();
    assert!(matches!(scene.event().await, AccessEvent::Opened { .. }));
    let ended = scene.event().await;
    assert!(
        matches!(&ended, AccessEvent::Ended { outcome: Outcome::Aborted(why), .. } if why.contains("stopped reading")),
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_client_that_sends_half_a_request_loses_its_connection() {
    let scene = scene_with(|config| config.idle_timeout = Duration::from_millis(100)).await;
    let mut client = scene.client().await;
    client.0.write_all(b"GET /a HTT").await.unwrap();
    client.rest().await;
}

#[tokio::test]
async fn one_peer_gets_64_connections_and_others_still_get_theirs() {
    let scene = scene().await;
    scene.put_text("/a", "a");
    let mut clients = Vec::new();
    for _ in 0..64 {
        let mut client = scene.client().await;
        assert_eq!(client.get("/a", "").await.status, 200);
        clients.push(client);
    }
    assert_eq!(scene.client().await.rest().await, b"", "the 65th is closed");
    assert_eq!(scene.client_from("127.0.0.2").await.get("/a", "").await.status, 404);
    assert_eq!(clients[0].get("/a", "").await.status, 200);
}

#[tokio::test]
async fn drain_lets_a_running_answer_finish() {
    let directory = tempfile::tempdir().unwrap();
    let scene = scene().await;
    scene.put("/large", large_file(directory.path()), Exposure::default(), Origin::Job);
    let mut client = scene.client().await;
    client.0.write_all(b"GET /large HTTP/1.1\r\nHost: g\r\n\r\n").await.unwrap();
    client.head().await;
    let Scene { server, publication, .. } = scene;
    let drained = tokio::spawn(server.drain());
    assert_eq!(client.rest().await.len(), 64 * 1024 * 1024);
    drained.await.unwrap();
    drop(publication);
}

/// A web server that sends a head and half of the body, the rest when told, and then closes.
async fn slow_site(head: &'static str, half: &'static str) -> (SocketAddr, Arc<tokio::sync::Notify>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let gate = Arc::new(tokio::sync::Notify::new());
    let opened = Arc::clone(&gate);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // A socket that is closed with a request in it that nobody read throws away what it has not sent yet.
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
        }
        stream.write_all(format!("HTTP/1.1 200 OK\r\n{head}\r\n{half}").as_bytes()).await.unwrap();
        opened.notified().await;
        stream.write_all(half.as_bytes()).await.unwrap();
    });
    (address, gate)
}

fn cache(directory: &Path) -> Cache {
    let config = CacheConfig { route: Route::Direct, tries: 1, ..CacheConfig::new(directory) };
    Cache::new(config).unwrap()
}

#[tokio::test]
async fn a_dut_reads_an_artifact_while_it_is_downloaded() {
    let directory = tempfile::tempdir().unwrap();
    // Two reads of the server's size, so that the first can leave before the second arrived.
    let half: &'static str = Box::leak("k".repeat(300 * 1024).into_boxed_str());
    let (site, gate) = slow_site("Content-Length: 614400\r\n", half).await;
    let scene = scene().await;
    let cached = cache(directory.path()).fetch(&format!("http://{site}/kernel"));
    scene.put("/kernel", Content::Url(cached), Exposure::default(), Origin::Job);
    let mut client = scene.client().await;
    client.0.write_all(b"GET /kernel HTTP/1.1\r\nHost: g\r\n\r\n").await.unwrap();
    let head = client.head().await.to_ascii_lowercase();
    assert!(head.contains("content-length: 614400\r\n"), "{head}");
    let mut body = vec![0; 256 * 1024];
    client.0.read_exact(&mut body).await.unwrap();
    gate.notify_one();
    body.resize(614_400, 0);
    client.0.read_exact(&mut body[256 * 1024..]).await.unwrap();
    assert!(body.iter().all(|&byte| byte == b'k'));
}

#[tokio::test]
async fn an_artifact_of_unknown_length_is_sent_with_its_length_once_it_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let (site, gate) = slow_site("Connection: close\r\n", "half").await;
    let scene = scene().await;
    let cached = cache(directory.path()).fetch(&format!("http://{site}/a"));
    scene.put("/a", Content::Url(cached), Exposure::default(), Origin::Job);
    gate.notify_one();
    let reply = scene.get("/a").await;
    assert_eq!((reply.header("content-length"), reply.text()), (Some("8"), "halfhalf"));
    assert_eq!(reply.header("transfer-encoding"), None);
}

#[tokio::test]
async fn an_artifact_that_cannot_be_had_is_a_502_and_a_missing_file_a_500_without_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let mut scene = scene().await;
    let cached = cache(directory.path()).fetch("gopher://example.org/kernel");
    scene.put("/kernel", Content::Url(cached), Exposure::default(), Origin::Job);
    let reply = scene.get("/kernel").await;
    let expected =
        "cannot fetch `gopher://example.org/kernel`: the scheme `gopher` is not supported; use http, https or s3\n";
    assert_eq!((reply.status, reply.text()), (502, expected));
    scene.put("/file", Content::File(directory.path().join("none")), Exposure::default(), Origin::Job);
    let reply = scene.get("/file").await;
    assert_eq!((reply.status, reply.text()), (500, "the gateway cannot read this artifact; the job's log says why\n"));
    let mut outcomes = Vec::new();
    while outcomes.len() < 2 {
        if let AccessEvent::Ended { outcome: Outcome::Failed(why), .. } = scene.event().await {
            outcomes.push(why);
        }
    }
    assert!(outcomes[1].contains("none: No such file or directory"), "{outcomes:?}");
}

/// Says back what it is asked; `/hold` it never answers. Tells of every question that arrives, and of every one that is over.
struct Echo(mpsc::UnboundedSender<&'static str>);

impl Answer for Echo {
    fn answer(&self, question: Question) -> futures_util::future::BoxFuture<'_, LiveReply> {
        struct Over(mpsc::UnboundedSender<&'static str>);
        impl Drop for Over {
            fn drop(&mut self) {
                let _ = self.0.send("over");
            }
        }
        let _ = self.0.send("asked");
        let over = Over(self.0.clone());
        Box::pin(async move {
            let _over = over;
            match question.path.as_str() {
                "/hold" => std::future::pending().await,
                "/nothing" => LiveReply { status: 200, text: String::new() },
                path => LiveReply { status: 209, text: format!("{path} {:?}\n", question.pairs) },
            }
        })
    }
}

/// A scene whose `/_/messages` an [`Echo`] answers.
async fn live_scene() -> (Scene, mpsc::UnboundedReceiver<&'static str>) {
    let scene = scene_with(|config| config.idle_timeout = Duration::from_millis(300)).await;
    let (sender, heard) = mpsc::unbounded_channel();
    scene.publication.answer("/_/messages", Arc::new(Echo(sender)));
    (scene, heard)
}

/// A client that asks for what is never answered, once the question arrived.
async fn holding_client(scene: &Scene, heard: &mut mpsc::UnboundedReceiver<&'static str>) -> Client {
    let mut client = scene.client().await;
    client.0.write_all(b"GET /_/messages/hold HTTP/1.1\r\nHost: g\r\n\r\n").await.unwrap();
    assert_eq!(heard.recv().await, Some("asked"));
    client
}

fn post(path: &str, headers: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: g\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

#[tokio::test]
async fn a_live_name_is_answered_below_its_prefix_with_query_and_form_decoded() {
    let (scene, _heard) = live_scene().await;
    let mut client = scene.client().await;
    let reply = client.get("//_//messages/send/a%20b?ip=10.0.0.1&note=two+words%0A", "").await;
    assert_eq!(
        (reply.status, reply.text()),
        (209, "/send/a b [(\"ip\", \"10.0.0.1\"), (\"note\", \"two words\\n\")]\n")
    );
    assert_eq!(reply.header("content-type"), Some("text/plain; charset=utf-8"));
    let form = "Content-Type: application/x-www-form-urlencoded; charset=utf-8\r\n";
    let reply = client.ask(&post("/_/messages/send/a?b=1", form, "c=%26&d")).await;
    assert_eq!(reply.text(), "/send/a [(\"b\", \"1\"), (\"c\", \"&\"), (\"d\", \"\")]\n");
    assert_eq!(client.get("/_/messages", "").await.text(), " []\n", "the prefix itself");
    let reply = client.get("/_/messages/nothing", "").await;
    assert_eq!((reply.status, reply.header("content-length"), reply.text()), (200, Some("0"), ""));
    assert_eq!(client.get("/_/messagesx/send/a", "").await.status, 404, "only whole parts of a path");
}

#[tokio::test]
async fn a_live_name_is_reached_by_the_namespaces_two_keys_only_and_nothing_shadows_it() {
    let (scene, _heard) = live_scene().await;
    scene.put_text("/_/messages/send/a", "shadow");
    let any = Name::Matching("/.*".into(), Arc::new(|_| true));
    let now = Instant::now();
    scene.publication.put(Protocol::Http, any, inline("shadow"), Exposure::default(), Origin::Job, now);
    assert_eq!(scene.get("/_/messages/send/a").await.status, 209);
    let mut stranger = scene.client_from("127.0.0.2").await;
    assert_eq!(stranger.get("/_/messages/send/a", "").await.status, 404);
    let key = scene.publication.key().as_str().to_owned();
    let keyed = stranger.get(&format!("/_/n/{key}/_/messages/send/a"), "").await;
    assert_eq!((keyed.status, keyed.text()), (209, "/send/a []\n"));
    scene.publication.clear();
    assert_eq!(scene.get("/_/messages/send/a").await.status, 209, "another deployment is the same job");
    assert_eq!(scene.get("/kernel").await.status, 404);
}

/// Says back the JSON that it is told.
struct Register;

impl Answer for Register {
    fn answer(&self, question: Question) -> futures_util::future::BoxFuture<'_, LiveReply> {
        let text = format!("{{\"{:?} {}\": {}}}", question.verb, question.path, question.json);
        Box::pin(std::future::ready(LiveReply { status: 200, text }))
    }

    fn takes(&self) -> Takes {
        Takes::Json
    }
}

#[tokio::test]
async fn what_takes_json_is_told_it_by_the_dut_at_its_address_and_by_nobody_who_knows_the_key() {
    let (scene, _heard) = live_scene().await;
    scene.publication.answer("/api/v1/machine", Arc::new(Register));
    let mut client = scene.client().await;
    for verb in ["POST", "PUT", "PATCH"] {
        let request = post("/api/v1/machine/", "Content-Type: application/json\r\n", "[1]").replacen("POST", verb, 1);
        let reply = client.ask(&request).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.text().to_ascii_uppercase(), format!("{{\"{verb} /\": [1]}}"));
        assert_eq!(reply.header("content-type"), Some("application/json"));
    }
    let reply = client.ask("DELETE /api/v1/machine/ HTTP/1.1\r\nHost: g\r\n\r\n").await;
    assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, POST, PUT, PATCH")));
    let key = scene.publication.key().as_str().to_owned();
    assert_eq!(client.get(&format!("/_/n/{key}/api/v1/machine/"), "").await.status, 404);
}

#[tokio::test]
async fn what_a_live_name_cannot_take_is_told_in_a_sentence() {
    let (scene, mut heard) = live_scene().await;
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    for (request, status, text) in [
        (
            "PUT /_/messages/send/a HTTP/1.1\r\nHost: g\r\n\r\n".to_owned(),
            405,
            "this name is asked with GET or POST, not PUT\n",
        ),
        (
            "GET /_/messages/send/a?b=%zz HTTP/1.1\r\nHost: g\r\n\r\n".to_owned(),
            400,
            "`b=%zz` is not percent-encoded UTF-8\n",
        ),
        (
            post("/_/messages/send/a", form, &"a".repeat(65_537)),
            413,
            "the body is longer than 65536 bytes; what is longer is a file\n",
        ),
        (
            post("/_/messages/send/a", "Content-Type: application/json\r\n", "{}"),
            415,
            "the body is `application/json`; send application/x-www-form-urlencoded\n",
        ),
        (
            "POST /_/messages/send/a HTTP/1.1\r\nHost: g\r\nContent-Length: 5\r\n\r\na".to_owned(),
            408,
            "the request's body did not arrive within 300ms\n",
        ),
    ] {
        let reply = scene.client().await.ask(&request).await;
        assert_eq!((reply.status, reply.text()), (status, text));
        assert_eq!(reply.header("allow"), (status == 405).then_some("GET, POST"));
    }
    let head = scene.client().await.ask("HEAD /_/messages/send/a HTTP/1.1\r\nHost: g\r\n\r\n").await;
    assert_eq!((head.status, head.header("allow")), (405, Some("GET, POST")), "a look would act");
    assert!(heard.try_recv().is_err(), "none of them was asked");
}

#[tokio::test]
async fn a_client_that_waits_longer_than_an_idle_connection_may_is_not_cut_off() {
    let (scene, mut heard) = live_scene().await;
    let mut client = holding_client(&scene, &mut heard).await;
    // Three times the idle timeout of this scene.
    let silent = tokio::time::timeout(Duration::from_millis(900), client.0.read_u8()).await;
    assert!(silent.is_err(), "{silent:?}");
    assert!(heard.try_recv().is_err());
}

#[tokio::test]
async fn a_client_that_goes_away_while_it_waits_ends_its_question() {
    let (scene, mut heard) = live_scene().await;
    let client = holding_client(&scene, &mut heard).await;
    drop(client);
    assert_eq!(heard.recv().await, Some("over"));
}

#[tokio::test]
async fn dropping_the_publication_answers_410_to_who_waits() {
    let (scene, mut heard) = live_scene().await;
    let mut client = holding_client(&scene, &mut heard).await;
    let Scene { server: _server, publication, .. } = scene;
    drop(publication);
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 410 Gone\r\n"), "{head}");
    assert_eq!(heard.recv().await, Some("over"));
}

#[tokio::test]
async fn drain_does_not_wait_for_who_waits() {
    let (scene, mut heard) = live_scene().await;
    let client = holding_client(&scene, &mut heard).await;
    let Scene { server, publication: _publication, .. } = scene;
    let start = Instant::now();
    server.drain().await;
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    let said = String::from_utf8(client.rest().await).unwrap();
    assert!(said.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{said}");
    assert!(said.ends_with("\r\n\r\nthe gateway stops; ask again when the farm is back\n"), "{said}");
}

#[tokio::test]
async fn a_silent_peer_is_asked_whether_it_is_still_there() {
    let (scene, mut heard) = live_scene().await;
    let client = holding_client(&scene, &mut heard).await;
    let (here, there) = (client.0.local_addr().unwrap().port(), scene.server.address().port());
    // The server's end of the connection, in the kernel's table: `local remote state queues timer:when …`.
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let is_it = |line: &&str| {
        let ports: Vec<_> = line.split_whitespace().skip(1).take(2).filter_map(|end| end.split_once(':')).collect();
        ports.iter().map(|end| u16::from_str_radix(end.1, 16).ok()).eq([Some(there), Some(here)])
    };
    let row = table.lines().find(is_it).unwrap();
    assert!(row.split_whitespace().nth(5).unwrap().starts_with("02:"), "the keep-alive timer runs: {row}");
}
