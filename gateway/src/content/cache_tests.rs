//! The cache against a server that breaks off, stalls, changes its mind or lies.

use std::net::SocketAddr;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::super::Content;
use super::*;

/// One thing that the test's server does on a connection.
#[derive(Clone)]
enum Step {
    Send(Vec<u8>),
    Wait(Arc<Notify>),
    /// Keeps the connection and says nothing; tells when the client closed it.
    Hang(Arc<Notify>),
}

struct Site {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Site {
    /// A server that does what `answer` says to the n-th request (from 0) with this head; then it closes the connection.
    async fn start(answer: impl Fn(usize, &str) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&heads), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve_one(stream, Arc::clone(&seen), Arc::clone(&answer)));
            }
        });
        Site { address, heads }
    }

    fn url(&self, name: &str) -> String {
        format!("http://{}{name}", self.address)
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn serve_one(
    mut stream: TcpStream,
    seen: Arc<Mutex<Vec<String>>>,
    answer: Arc<impl Fn(usize, &str) -> Vec<Step>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let number = {
        let mut seen = seen.lock().unwrap();
        seen.push(head.clone());
        seen.len() - 1
    };
    for step in answer(number, &head) {
        match step {
            Step::Send(bytes) => stream.write_all(&bytes).await.unwrap(),
            Step::Wait(gate) => gate.notified().await,
            Step::Hang(closed) => {
                while stream.read_u8().await.is_ok() {}
                closed.notify_one();
            }
        }
    }
}

fn send(text: &str) -> Step {
    Step::Send(text.as_bytes().to_vec())
}

fn config(directory: &Path) -> Config {
    Config {
        route: Route::Direct,
        idle_timeout: Duration::from_secs(20),
        back_off: Duration::from_millis(1),
        ..Config::new(directory)
    }
}

fn cache(directory: &Path) -> Cache {
    Cache::new(config(directory)).unwrap()
}

async fn read_all(cached: &Cached) -> Result<Bytes, ContentError> {
    let reader = Content::Url(cached.clone()).open().await?;
    let size = reader.complete_size().await?;
    reader.read_at(0, size as usize).await
}

#[tokio::test]
async fn ten_readers_share_one_download() {
    let site = Site::start(|_, _| vec![send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")]).await;
    let directory = tempfile::tempdir().unwrap();
    let cache = cache(directory.path());
    let url = site.url("/a");
    let handles: Vec<Cached> = (0..10).map(|_| cache.fetch(&url)).collect();
    let reads = futures_util::future::join_all(handles.iter().map(read_all)).await;
    assert!(reads.into_iter().all(|read| read.unwrap() == "hello"));
    assert_eq!(site.heads().len(), 1);
}

#[tokio::test]
async fn bytes_are_read_while_the_rest_has_not_left_the_server() {
    let gate = Arc::new(Notify::new());
    let opened = Arc::clone(&gate);
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\nETag: \"v1\"\r\n\r\n01234";
    let site = Site::start(move |_, _| vec![send(head), Step::Wait(Arc::clone(&gate)), send("56789")]).await;
    let directory = tempfile::tempdir().unwrap();
    let cached = cache(directory.path()).fetch(&site.url("/a"));
    let reader = Content::Url(cached.clone()).open().await.unwrap();
    assert_eq!(reader.size(), Some(10));
    assert_eq!(reader.read_at(1, 4).await.unwrap(), "1234");
    let early_tag = reader.etag();
    opened.notify_one();
    assert_eq!(reader.read_at(3, 100).await.unwrap(), "3456789");
    cached.wait_complete().await.unwrap();
    assert_eq!(cached.state(), Progress { bytes: 10, total: Some(10) });
    assert_eq!(reader.etag(), early_tag, "a DUT may resume what it began while we were downloading");
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    let site = Site::start(|number, _| match number {
        0 => vec![send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\nETag: \"v1\"\r\n\r\n0123")],
        1 => vec![send("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")],
        _ => vec![send(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 4-9/10\r\nContent-Length: 6\r\nETag: \"v1\"\r\n\r\n456789",
        )],
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let cached = cache(directory.path()).fetch(&site.url("/a"));
    assert_eq!(read_all(&cached).await.unwrap(), "0123456789");
    let heads = site.heads();
    assert!(!heads[0].contains("range:"), "{}", heads[0]);
    assert!(heads[2].contains("range: bytes=4-\r\n") && heads[2].contains("if-range: \"v1\"\r\n"), "{}", heads[2]);
}

#[tokio::test]
async fn another_version_in_mid_download_ends_old_readers_and_serves_new_ones() {
    let gate = Arc::new(Notify::new());
    let opened = Arc::clone(&gate);
    let site = Site::start(move |number, _| match number {
        0 => vec![
            send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\nETag: \"v1\"\r\n\r\nold4"),
            Step::Wait(Arc::clone(&gate)),
        ],
        _ => vec![send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\nETag: \"v2\"\r\n\r\nnewer!")],
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let cached = cache(directory.path()).fetch(&site.url("/a"));
    let old = Content::Url(cached.clone()).open().await.unwrap();
    assert_eq!(old.read_at(0, 4).await.unwrap(), "old4");
    opened.notify_one();
    let error = old.read_at(4, 6).await.unwrap_err();
    assert!(matches!(error, ContentError::Changed { .. }), "{error}");
    assert_eq!(read_all(&cached).await.unwrap(), "newer!");
}

#[tokio::test]
async fn without_content_length_the_size_is_known_at_the_end() {
    let gate = Arc::new(Notify::new());
    let opened = Arc::clone(&gate);
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
    let site = Site::start(move |_, _| vec![send(head), send("abc"), Step::Wait(Arc::clone(&gate)), send("def")]).await;
    let directory = tempfile::tempdir().unwrap();
    let cached = cache(directory.path()).fetch(&site.url("/a"));
    let reader = Content::Url(cached).open().await.unwrap();
    assert_eq!(reader.size(), None);
    assert_eq!(reader.etag(), None);
    assert_eq!(reader.read_at(0, 3).await.unwrap(), "abc");
    opened.notify_one();
    assert_eq!(reader.complete_size().await.unwrap(), 6);
    assert_eq!(reader.read_at(2, 100).await.unwrap(), "cdef");
    assert_eq!(
        reader.etag().unwrap(),
        "\"bef57ec7f53a6d40beb640a780a639c83bc29ac8a9816f1fc6c5c6dcd93c4721\"",
        "sha256 of abcdef"
    );
}

#[tokio::test]
async fn a_stalled_server_is_an_error_after_the_idle_timeout() {
    let closed = Arc::new(Notify::new());
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\nETag: \"v1\"\r\n\r\n0123";
    let site = Site::start(move |_, _| vec![send(head), Step::Hang(Arc::clone(&closed))]).await;
    let directory = tempfile::tempdir().unwrap();
    let config = Config { idle_timeout: Duration::from_millis(200), ..config(directory.path()) };
    let cached = Cache::new(config).unwrap().fetch(&site.url("/a"));
    let error = cached.wait_complete().await.unwrap_err();
    assert_eq!(error.to_string(), format!("{} stalled: no byte for 200ms, 4 bytes had arrived", site.url("/a")));
    assert_eq!(cached.state(), Progress { bytes: 4, total: Some(10) });
}

#[tokio::test]
async fn a_missing_artifact_names_url_and_status_and_is_asked_for_again_next_time() {
    let site = Site::start(|number, _| match number {
        0 => vec![send("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")],
        _ => vec![send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")],
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let cache = cache(directory.path());
    let url = site.url("/kernel");
    let missing = cache.fetch(&url);
    let error = missing.ready().await.unwrap_err();
    assert_eq!(error.to_string(), format!("{url} answered 404 Not Found; check the URL, or the server behind it"));
    assert_eq!(read_all(&cache.fetch(&url)).await.unwrap(), "ok");
}

#[tokio::test]
async fn a_piece_that_is_longer_than_announced_is_thrown_away() {
    let site = Site::start(|number, _| match number {
        0 => vec![send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\nETag: \"v1\"\r\n\r\n0123")],
        1 => vec![send(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 4-5/6\r\nContent-Length: 5\r\nETag: \"v1\"\r\n\r\n45678",
        )],
        _ => vec![send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\nETag: \"v1\"\r\n\r\n012345")],
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let cached = cache(directory.path()).fetch(&site.url("/a"));
    cached.wait_complete().await.unwrap();
    assert_eq!(read_all(&cached).await.unwrap(), "012345");
    assert!(!site.heads()[2].contains("range:"), "{}", site.heads()[2]);
}

#[tokio::test]
async fn a_server_that_always_breaks_off_is_given_up_after_so_many_tries() {
    let site = Site::start(|_, _| Vec::new()).await;
    let directory = tempfile::tempdir().unwrap();
    let error = cache(directory.path()).fetch(&site.url("/a")).wait_complete().await.unwrap_err();
    assert!(error.to_string().ends_with("(after 5 tries without progress)"), "{error}");
    assert_eq!(site.heads().len(), 5);
    assert_eq!(directory.path().join("partial").read_dir().unwrap().count(), 0, "nothing is left of nothing");
}

#[tokio::test]
async fn the_next_job_revalidates_and_reuses_the_body() {
    let site = Site::start(|_, head| {
        if head.contains("if-none-match: \"v1\"") {
            vec![send("HTTP/1.1 304 Not Modified\r\nETag: \"v1\"\r\n\r\n")]
        } else {
            vec![send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: \"v1\"\r\n\r\nhello")]
        }
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let cache = cache(directory.path());
    let first = cache.fetch(&site.url("/a"));
    assert_eq!(read_all(&first).await.unwrap(), "hello");
    first.wait_complete().await.unwrap();
    let second = cache.fetch(&site.url("/a"));
    assert_eq!(read_all(&second).await.unwrap(), "hello");
    assert_eq!(read_all(&second).await.unwrap(), "hello");
    assert_eq!(site.heads().len(), 2, "one download, one revalidation; reads ask nobody");
    let tag = async |cached: &Cached| Content::Url(cached.clone()).open().await.unwrap().etag();
    assert_eq!(tag(&first).await, tag(&second).await);
    let body = directory.path().join("bodies/2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
    assert_eq!(std::fs::read(body).unwrap(), b"hello", "named by its sha256");
}

#[tokio::test]
async fn what_arrived_survives_a_restart() {
    let closed = Arc::new(Notify::new());
    let hang_up = Arc::clone(&closed);
    let site = Site::start(move |number, _| match number {
        0 => vec![
            send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\nETag: \"v1\"\r\n\r\n0123"),
            Step::Hang(Arc::clone(&closed)),
        ],
        _ => vec![send(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 4-9/10\r\nContent-Length: 6\r\nETag: \"v1\"\r\n\r\n456789",
        )],
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let url = site.url("/a");
    let interrupted = cache(directory.path()).fetch(&url);
    let reader = Content::Url(interrupted.clone()).open().await.unwrap();
    assert_eq!(reader.read_at(0, 4).await.unwrap(), "0123");
    drop((reader, interrupted));
    hang_up.notified().await;
    let cached = cache(directory.path()).fetch(&url);
    assert_eq!(read_all(&cached).await.unwrap(), "0123456789");
    assert!(site.heads()[1].contains("range: bytes=4-\r\n"), "{}", site.heads()[1]);
    cached.wait_complete().await.unwrap();
    let body = directory.path().join("bodies").read_dir().unwrap().next().unwrap().unwrap();
    assert_eq!(
        body.file_name(),
        "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882",
        "sha256 of 0123456789, resumed or not"
    );
}

#[tokio::test]
async fn two_caches_on_one_directory_do_not_spoil_each_other() {
    let gate = Arc::new(Notify::new());
    let opened = Arc::clone(&gate);
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\nETag: \"v1\"\r\n\r\n01234";
    let site = Site::start(move |number, _| match number {
        0 => vec![send(head), Step::Wait(Arc::clone(&gate)), send("56789")],
        _ => vec![send(head), send("56789")],
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let (first_cache, second_cache) = (cache(directory.path()), cache(directory.path()));
    let first = first_cache.fetch(&site.url("/a"));
    first.ready().await.unwrap();
    let second = second_cache.fetch(&site.url("/a"));
    assert_eq!(read_all(&second).await.unwrap(), "0123456789");
    opened.notify_one();
    assert_eq!(read_all(&first).await.unwrap(), "0123456789");
    let names = |name: &str| directory.path().join(name).read_dir().unwrap().count();
    first.wait_complete().await.unwrap();
    second.wait_complete().await.unwrap();
    assert_eq!((names("index"), names("bodies"), names("partial")), (1, 1, 0));
}

#[tokio::test]
async fn prune_removes_what_nobody_used_and_readers_keep_what_they_read() {
    let site = Site::start(|_, _| vec![send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")]).await;
    let directory = tempfile::tempdir().unwrap();
    let cache = cache(directory.path());
    let cached = cache.fetch(&site.url("/a"));
    cached.wait_complete().await.unwrap();
    assert_eq!(cache.prune(Duration::from_secs(3600)).await.unwrap(), Pruned::default());
    let old = std::time::SystemTime::now() - Duration::from_secs(7200);
    for name in ["index", "bodies"] {
        for entry in directory.path().join(name).read_dir().unwrap() {
            std::fs::File::open(entry.unwrap().path()).unwrap().set_modified(old).unwrap();
        }
    }
    let pruned = cache.prune(Duration::from_secs(3600)).await.unwrap();
    assert_eq!(pruned.files, 2);
    assert_eq!(read_all(&cached).await.unwrap(), "hello");
    assert_eq!(read_all(&cache.fetch(&site.url("/a"))).await.unwrap(), "hello");
}

#[tokio::test]
async fn the_farms_own_files_are_served_only_when_allowed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("kernel");
    std::fs::write(&file, "vmlinuz").unwrap();
    let url = format!("file://{}", file.display());
    let refused = cache(directory.path()).fetch(&url).ready().await.unwrap_err();
    assert!(refused.to_string().contains("this farm does not serve its own files"), "{refused}");
    let allowed = Cache::new(Config { file_urls: FileUrls::Allow, ..config(directory.path()) }).unwrap();
    assert_eq!(read_all(&allowed.fetch(&url)).await.unwrap(), "vmlinuz");
}

#[tokio::test]
async fn https_is_spoken_and_a_server_that_does_not_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let hello = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let first = stream.read_u8().await.unwrap();
        stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await.unwrap();
        first
    });
    let directory = tempfile::tempdir().unwrap();
    let config = Config { tries: 1, ..config(directory.path()) };
    let error = Cache::new(config).unwrap().fetch(&format!("https://{address}/a")).ready().await.unwrap_err();
    assert!(matches!(error, ContentError::Unreachable { tries: 1, .. }), "{error}");
    assert_eq!(hello.await.unwrap(), 22, "a TLS handshake record");
}

#[tokio::test]
async fn passwords_in_urls_are_not_shown() {
    let directory = tempfile::tempdir().unwrap();
    let cached = cache(directory.path()).fetch("ftp://me:secret@example.org/a");
    let error = cached.ready().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot fetch `ftp://example.org/a`: the scheme `ftp` is not supported; use http, https or s3"
    );
}
