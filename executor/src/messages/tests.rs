//! The board behind a real gateway, asked over sockets as DUTs ask.

use core::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use gateway::content::Content;
use gateway::namespace::Publication;
use gateway::{Config, Gateway};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::*;

/// One job of two roles, each DUT on an address of its own.
struct Scene {
    gateway: Gateway,
    board: Arc<Board>,
    _publications: Vec<Publication<Content>>,
    told: mpsc::Receiver<String>,
    _cache: tempfile::TempDir,
}

const CLIENT: &str = "127.0.0.11";
const SERVER: &str = "127.0.0.12";

fn roles() -> Vec<String> {
    vec!["client".to_owned(), "server".to_owned()]
}

fn publish(gateway: &Gateway, board: &Arc<Board>, role: &str, address: &str) -> Publication<Content> {
    let address: IpAddr = address.parse().unwrap();
    let publication = gateway.namespaces().publish(address, Arc::new(|_| ())).unwrap();
    publication.answer("/_/messages", board.seat(role));
    publication
}

async fn scene() -> Scene {
    let cache = tempfile::tempdir().unwrap();
    let config = Config { cache_directory: cache.path().to_owned(), ..Config::default() };
    let gateway = Gateway::start(config).await.unwrap();
    let (sender, told) = mpsc::channel();
    let board = Board::new(roles(), move |sentence| {
        let _ = sender.send(sentence.to_owned());
    });
    let publications = vec![publish(&gateway, &board, "client", CLIENT), publish(&gateway, &board, "server", SERVER)];
    Scene { gateway, board, _publications: publications, told, _cache: cache }
}

impl Scene {
    fn http(&self) -> SocketAddr {
        self.gateway.addresses().http.unwrap()
    }

    /// A connection from `address` with a request on its way.
    async fn asking(&self, address: &str, path: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
        let mut stream = socket.connect(self.http()).await.unwrap();
        stream.write_all(format!("GET /_/messages/{path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        stream
    }

    async fn ask(&self, address: &str, path: &str) -> (u16, String) {
        answer(self.asking(address, path).await).await
    }

    /// Returns when `count` requests wait on the board.
    async fn waiting(&self, count: usize) {
        waiting_on(&self.board, count).await;
    }
}

async fn waiting_on(board: &Board, count: usize) {
    let all_are_there = async {
        while board.lock().waiting.len() != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // 10 s: on a loaded machine; it takes milliseconds.
    let limit = Duration::from_secs(10);
    tokio::time::timeout(limit, all_are_there).await.unwrap_or_else(|_| panic!("not {count} requests wait"));
}

/// Status and body of the answer that comes on `stream`.
async fn answer(mut stream: TcpStream) -> (u16, String) {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn two_duts_meet_on_their_board() {
    let scene = scene().await;
    let waiting = scene.asking(CLIENT, "wait/ready").await;
    scene.waiting(1).await;
    assert_eq!(scene.ask(SERVER, "send/ready?ip=10.0.0.2&motd=two+words%0Aand+more").await, (200, String::new()));
    let lines = "server ip=10.0.0.2\nserver motd=two words\\nand more\n".to_owned();
    assert_eq!(answer(waiting).await, (200, lines));
    let (client, server) = tokio::join!(scene.ask(CLIENT, "sync/go"), scene.ask(SERVER, "sync/go"));
    assert_eq!((client, server), ((200, "client\nserver\n".into()), (200, "client\nserver\n".into())));
    assert_eq!(scene.ask(CLIENT, "shout/x").await.0, 404);
    let told: Vec<_> = scene.told.try_iter().collect();
    assert_eq!(told[0], "server sent `ready`: ip=10.0.0.2 motd=two words\\nand more");
    assert!(told[2].ends_with("came to sync `go`: 2 of 2 roles are there"), "{told:?}");
    assert!(told[3].starts_with("client asked shout/x: no such call"), "{told:?}");
}

#[tokio::test]
async fn two_jobs_with_the_same_ids_never_meet() {
    let scene = scene().await;
    let other = Board::new(roles(), |_| ());
    let _publication = publish(&scene.gateway, &other, "client", "127.0.0.13");
    scene.ask(SERVER, "send/ready").await;
    let waiting = scene.asking("127.0.0.13", "wait/ready").await;
    waiting_on(&other, 1).await;
    other.close("the other job is over");
    assert_eq!(answer(waiting).await, (409, "the other job is over\n".to_owned()));
    assert_eq!(scene.ask(CLIENT, "wait/ready").await, (200, "server\n".to_owned()));
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing_behind() {
    let scene = scene().await;
    let streams = [scene.asking(CLIENT, "wait/x").await, scene.asking(CLIENT, "sync/x").await];
    scene.waiting(2).await;
    drop(streams);
    scene.waiting(0).await;
    let server = scene.asking(SERVER, "sync/x").await;
    scene.waiting(1).await;
    assert_eq!(scene.ask(CLIENT, "sync/x").await.0, 200);
    assert_eq!(answer(server).await.0, 200);
}

#[tokio::test]
async fn the_end_of_a_role_and_of_the_job_ends_the_waits() {
    let scene = scene().await;
    let sync = scene.asking(CLIENT, "sync/x").await;
    scene.waiting(1).await;
    scene.board.role_ended("server");
    let sentence = "role `server` has ended before all roles came to sync `x`\n".to_owned();
    assert_eq!(answer(sync).await, (409, sentence));
    scene.board.close("the job has ended");
    assert_eq!(scene.ask(CLIENT, "send/y").await, (409, "the job has ended\n".to_owned()));
}

#[tokio::test]
async fn a_farm_that_was_killed_finds_the_messages_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("messages.jsonl");
    let kept = || Board::kept_at(&path, roles(), |_| ()).unwrap();
    let pairs = vec![("ip".to_owned(), "10.0.0.2".to_owned())];
    let ask = async |board: &Arc<Board>, role: &str, path: &str, pairs: &[(String, String)]| {
        let question = Question { path: path.to_owned(), pairs: pairs.to_vec(), ..Question::default() };
        board.seat(role).answer(question).await
    };
    let board = kept();
    ask(&board, "server", "/send/ready", &pairs).await;
    tokio::join!(ask(&board, "server", "/sync/go", &[]), ask(&board, "client", "/sync/go", &[]));
    board.role_ended("server");
    drop(board);
    let lines = "{\"fact\":\"sent\",\"role\":\"server\",\"id\":\"ready\",\"pairs\":[[\"ip\",\"10.0.0.2\"]]}\n\
                 {\"fact\":\"passed\",\"id\":\"go\"}\n\
                 {\"fact\":\"ended\",\"role\":\"server\"}\n";
    assert_eq!(std::fs::read_to_string(&path).unwrap(), lines);
    std::fs::write(&path, format!("{lines}{{\"fact\":\"sent\",\"ro")).unwrap();
    let board = kept();
    let reply = ask(&board, "client", "/wait/ready", &[]).await;
    assert_eq!((reply.status, reply.text.as_str()), (200, "server ip=10.0.0.2\n"));
    assert_eq!(ask(&board, "client", "/sync/go", &[]).await.status, 200);
    assert_eq!(ask(&board, "client", "/wait/more", &[]).await.status, 409);
    ask(&board, "client", "/send/late", &[]).await;
    drop(board);
    let late = "{\"fact\":\"sent\",\"role\":\"client\",\"id\":\"late\",\"pairs\":[]}\n";
    assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{lines}{late}"), "the line that broke off is gone");
    std::fs::write(&path, "nonsense\n").unwrap();
    let error = Board::kept_at(&path, roles(), |_| ()).map(|_| ()).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}:1: ", path.display())), "{error}");
    assert!(error.ends_with("; remove this line"), "{error}");
}

#[test]
fn a_shell_reads_a_line_and_printf_gives_the_value_back() {
    let value = "two  words \\ 100% \"$HOME\"\n\ttab\u{1}\u{85}é end ";
    let line = wire::lines("server-1", &vec![("motd".to_owned(), value.to_owned())]);
    let script = "IFS= read -r line; printf '%s\\n' \"$line\" | { read -r role pair; \
                  printf '%s|%s|' \"$role\" \"${pair%%=*}\"; printf '%b' \"${pair#*=}\"; }";
    let mut child = Command::new("sh")
        .args(["-c", script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(line.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("server-1|motd|{value}"));
}
