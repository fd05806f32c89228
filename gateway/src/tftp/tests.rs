//! The server on loopback sockets, with a client that misbehaves where a test says so.

use super::*;
use crate::namespace::{AccessEvent, Exposure, Name, Origin, Publication};
use crate::tftp::packet::RequestOption;
use std::path::Path;
use std::sync::Mutex;
use tokio::time::timeout;

mod engine_tests;

/// Longer than any answer takes on a loaded machine; a test waits this long only when it fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server with one namespace, for callers from 127.0.0.1.
struct Scene {
    server: Server,
    publication: Publication<Content>,
    namespaces: Namespaces<Content>,
    seen: Arc<Mutex<Vec<AccessEvent>>>,
}

async fn scene() -> Scene {
    scene_with(Config::default()).await
}

async fn scene_with(config: Config) -> Scene {
    let namespaces = Namespaces::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let observer = Arc::new(move |event| {
        if event != AccessEvent::Progress {
            log.lock().unwrap().push(event);
        }
    });
    let publication = namespaces.publish(Ipv4Addr::LOCALHOST.into(), observer).unwrap();
    let listen = match config.listen.port() {
        69 => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
        _ => config.listen,
    };
    let server = start(Config { listen, ..config }, namespaces.clone()).await.unwrap();
    Scene { server, publication, namespaces, seen }
}

impl Scene {
    fn put(&self, name: &str, content: Content) {
        self.put_for(name, content, Exposure::default());
    }

    fn put_for(&self, name: &str, content: Content, exposure: Exposure) {
        self.publication.put(Protocol::Tftp, Name::Exact(name.into()), content, exposure, Origin::Job, Instant::now());
    }

    async fn client(&self) -> Client {
        Client::to(self.server.address()).await
    }

    /// Waits until the namespace has seen `count` events.
    async fn seen(&self, count: usize) -> Vec<AccessEvent> {
        let enough = async {
            loop {
                let seen = self.seen.lock().unwrap().clone();
                if seen.len() >= count {
                    return seen;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, enough).await.unwrap_or_else(|_| panic!("only {:?}", self.seen.lock().unwrap()))
    }

    fn seen_now(&self) -> Vec<AccessEvent> {
        self.seen.lock().unwrap().clone()
    }
}

/// One source port; talks to whoever answered last.
struct Client {
    socket: UdpSocket,
    server: SocketAddr,
    partner: SocketAddr,
    /// The last OACK's options.
    offer: Option<String>,
    /// The last block that it acknowledged; 0 is an OACK.
    acknowledged: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Heard {
    Data(u16, Vec<u8>),
    OptionAck(String),
    Error(u16, String),
}

impl Client {
    async fn to(server: SocketAddr) -> Client {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        Client { socket, server, partner: server, offer: None, acknowledged: None }
    }

    async fn ask(&mut self, name: &str, options: &[(&str, &str)]) {
        let options: Vec<_> = options.iter().map(|(name, value)| RequestOption::new(name, value)).collect();
        let mut datagram = Vec::new();
        packet::encode_read(&mut datagram, name, packet::Mode::Octet, &options);
        self.acknowledged = None;
        self.send_to_server(&datagram).await;
    }

    async fn send_to_server(&self, datagram: &[u8]) {
        self.socket.send_to(datagram, self.server).await.unwrap();
    }

    async fn send(&self, datagram: &[u8]) {
        self.socket.send_to(datagram, self.partner).await.unwrap();
    }

    async fn ack(&mut self, block: u16) {
        self.acknowledged = Some(block);
        let mut datagram = Vec::new();
        packet::encode_ack(&mut datagram, block);
        self.send(&datagram).await;
    }

    async fn hear(&mut self) -> Heard {
        timeout(PATIENCE, self.hear_at_last()).await.expect("the server did not answer")
    }

    /// The next datagram. What a server sends again to a client that took long, which has acknowledged it since, is passed over.
    async fn hear_at_last(&mut self) -> Heard {
        loop {
            let heard = self.hear_datagram().await;
            let block = match &heard {
                Heard::Data(block, _) => Some(*block),
                Heard::OptionAck(_) => Some(0),
                Heard::Error(..) => None,
            };
            if block.is_none() || block != self.acknowledged {
                return heard;
            }
        }
    }

    async fn hear_datagram(&mut self) -> Heard {
        let mut inbox = vec![0; 70_000];
        let (bytes, source) = self.socket.recv_from(&mut inbox).await.unwrap();
        self.partner = source;
        match packet::decode(&inbox[..bytes]).unwrap() {
            Packet::Data { block, payload } => Heard::Data(block, payload.to_vec()),
            Packet::Error { code, text } => Heard::Error(code, text),
            Packet::OptionAck(options) => {
                let words: Vec<_> = options.iter().map(|option| format!("{}={}", option.name, option.value)).collect();
                Heard::OptionAck(words.join(" "))
            }
            other => panic!("a server does not send {other:?}"),
        }
    }

    /// A whole transfer, as a polite client does it.
    async fn fetch(&mut self, name: &str, options: &[(&str, &str)]) -> Result<Vec<u8>, (u16, String)> {
        self.ask(name, options).await;
        self.fetch_on(&mut Vec::new()).await
    }

    async fn fetch_on(&mut self, received: &mut Vec<u8>) -> Result<Vec<u8>, (u16, String)> {
        let (mut block_size, mut window, mut in_window, mut expected) = (512, 1, 0, 1_u64);
        loop {
            let heard = timeout(PATIENCE, self.hear_datagram()).await.expect("the server did not answer");
            match heard {
                Heard::Error(code, text) => return Err((code, text)),
                Heard::OptionAck(options) => {
                    for option in options.to_lowercase().split(' ') {
                        match option.split_once('=') {
                            Some(("blksize", value)) => block_size = value.parse().unwrap(),
                            Some(("windowsize", value)) => window = value.parse().unwrap(),
                            _ => {}
                        }
                    }
                    self.offer = Some(options);
                    self.ack(0).await;
                }
                Heard::Data(block, payload) if block == (expected & 0xffff) as u16 => {
                    received.extend_from_slice(&payload);
                    expected += 1;
                    in_window += 1;
                    if in_window == window || payload.len() < block_size {
                        in_window = 0;
                        self.ack(block).await;
                    }
                    if payload.len() < block_size {
                        return Ok(std::mem::take(received));
                    }
                }
                Heard::Data(..) => {
                    in_window = 0;
                    self.ack(((expected - 1) & 0xffff) as u16).await;
                }
            }
        }
    }
}

fn bytes(length: usize) -> Bytes {
    (0..length).map(|position| (position % 251) as u8 ^ (position / 509) as u8).collect()
}

fn inline(text: &'static str) -> Content {
    Content::Inline(Bytes::from_static(text.as_bytes()))
}

fn opened(access: u64, name: &str) -> AccessEvent {
    let peer = Ipv4Addr::LOCALHOST.into();
    AccessEvent::Opened { access, protocol: Protocol::Tftp, name: name.into(), peer }
}

fn ended(access: u64, name: &str, bytes: u64, outcome: Outcome) -> AccessEvent {
    AccessEvent::Ended { access, protocol: Protocol::Tftp, name: name.into(), bytes, outcome }
}

/// `(source port, payload)` of each request in a fixture.
fn recorded(file: &str) -> Vec<(u16, Vec<u8>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/packets/tftp").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let packet = |line: &str| {
        let (port, hex) = line.split_once(' ').unwrap();
        let byte = |index| u8::from_str_radix(&hex[index..index + 2], 16).unwrap();
        (port.parse().unwrap(), (0..hex.len()).step_by(2).map(byte).collect())
    };
    text.lines().filter(|line| !line.starts_with('#')).map(packet).collect()
}

#[tokio::test]
async fn an_artifact_arrives_whole_with_and_without_options() {
    let scene = scene().await;
    let content = bytes(300_000);
    scene.put("/a", Content::Inline(content.clone()));
    for options in [&[][..], &[("blksize", "1468")], &[("tsize", "0")], &[("blksize", "1024"), ("windowsize", "16")]] {
        assert!(scene.client().await.fetch("a", options).await.unwrap() == content, "{options:?}");
    }
    let seen = scene.seen(8).await;
    assert_eq!(seen[6..], [opened(4, "/a"), ended(4, "/a", 300_000, Outcome::Complete)]);
}

#[tokio::test]
async fn a_file_of_more_than_65535_blocks_arrives_whole() {
    let scene = scene().await;
    let content = bytes(33 * 1024 * 1024 + 7);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &content).unwrap();
    scene.put("/big", Content::File(file.path().to_owned()));
    assert!(scene.client().await.fetch("/big", &[("windowsize", "32")]).await.unwrap() == content);
}

#[tokio::test]
async fn blocks_larger_than_a_packet_are_sent_one_by_one() {
    let scene = scene_with(Config { block_size_max: 65464, ..Config::default() }).await;
    let content = bytes(1_000_000);
    scene.put("/a", Content::Inline(content.clone()));
    let options = [("blksize", "65464"), ("windowsize", "4")];
    assert!(scene.client().await.fetch("a", &options).await.unwrap() == content);
}

#[tokio::test]
async fn the_eight_datagrams_that_kill_ci_trons_server_get_an_answer_and_the_next_client_its_file() {
    let scene = scene().await;
    scene.put("/a", inline("still here"));
    let refused = |code, text: &str| Heard::Error(code, text.to_owned());
    let data = || Heard::Data(1, b"still here".to_vec());
    let cases: Vec<(&[u8], Heard)> = vec![
        (b"\0\x02a\0octet\0", refused(2, "/a cannot be written: this server is read-only")),
        (b"\0", refused(4, "a datagram of 1 bytes is no TFTP request")),
        (b"\0\x04\0\x07", refused(5, "no transfer runs here; send a read request")),
        (b"\0\x01a\0octet\0blksize\0many\0", data()),
        (b"\0\x01a\0octet\0blksize\x000\0", data()),
        (b"\0\x01a\0octet\0blksize\x00999999\0", Heard::OptionAck("blksize=1468".into())),
        (b"\0\x01caf\xe9\0octet\0", refused(1, "the name is not UTF-8")),
        (b"\0\x01a\0", refused(4, "the request has no mode; send octet")),
    ];
    for (datagram, answer) in cases {
        let mut client = scene.client().await;
        client.send_to_server(datagram).await;
        assert_eq!(client.hear().await, answer, "{}", datagram.escape_ascii());
        assert_eq!(scene.client().await.fetch("a", &[]).await.unwrap(), b"still here");
    }
    let stray = scene.client().await;
    stray.send_to_server(b"\0\x05\0\0silence is the answer to an error\0").await;
    assert_eq!(scene.client().await.fetch("a", &[]).await.unwrap(), b"still here");
    assert_eq!(stray.socket.try_recv(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_refusal_becomes_the_code_that_fits_and_the_sentence_of_the_jobs_log() {
    let scene = scene().await;
    scene.put_for("/once", inline("1"), Exposure { access_count: Some(1), ..Exposure::default() });
    let mut client = scene.client().await;
    assert_eq!(client.fetch("/none", &[]).await.unwrap_err(), (1, "the job publishes no such name".into()));
    assert_eq!(
        client.fetch("/none", &[("tsize", "0")]).await.unwrap_err(),
        (1, "the job publishes no such name".into())
    );
    assert_eq!(client.fetch("/once", &[]).await.unwrap(), b"1");
    let spent = (2, "already read 1 times in this boot (lifetime.access_count)".into());
    assert_eq!(client.fetch("/once", &[]).await.unwrap_err(), spent);
    let key_of_nobody = client.fetch("/_/n/0123/once", &[]).await.unwrap_err();
    assert_eq!(key_of_nobody, (1, "no leased DUT has this address".into()));
}

#[tokio::test]
async fn a_namespaces_key_opens_it_from_an_address_that_is_nobodys() {
    let namespaces = Namespaces::new();
    let publication = namespaces.publish(Ipv4Addr::new(10, 1, 2, 3).into(), Arc::new(|_| ())).unwrap();
    let exact = Name::Exact("/boot/a".into());
    publication.put(Protocol::Tftp, exact, inline("keyed"), Exposure::default(), Origin::Job, Instant::now());
    let listen = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    let server = start(Config { listen, ..Config::default() }, namespaces).await.unwrap();
    let mut client = Client::to(server.address()).await;
    let name = format!("_/n/{}/boot/a", publication.key().as_str());
    assert_eq!(client.fetch(&name, &[]).await.unwrap(), b"keyed");
    assert_eq!(client.fetch("boot/a", &[]).await.unwrap_err().0, 1);
}

#[tokio::test]
async fn a_probe_for_the_size_is_not_an_access() {
    let scene = scene().await;
    scene.put_for("/once.efi", inline("firmware"), Exposure { access_count: Some(1), ..Exposure::default() });
    let mut probe = scene.client().await;
    for _ in 0..3 {
        probe.ask("once.efi", &[("tsize", "0"), ("blksize", "1468")]).await;
        assert_eq!(probe.hear().await, Heard::OptionAck("tsize=8 blksize=1468".into()));
        probe.send(b"\0\x05\0\x08User aborted the transfer\0").await;
    }
    assert_eq!(scene.seen_now(), []);
    assert_eq!(scene.client().await.fetch("once.efi", &[("blksize", "1468")]).await.unwrap(), b"firmware");
    assert_eq!(scene.seen(2).await, [opened(1, "/once.efi"), ended(1, "/once.efi", 8, Outcome::Complete)]);
}

#[tokio::test]
async fn an_artifact_that_expires_between_offer_and_acceptance_is_refused() {
    let scene = scene().await;
    scene.put_for("/once", inline("1"), Exposure { access_count: Some(1), ..Exposure::default() });
    let (mut first, mut second) = (scene.client().await, scene.client().await);
    for client in [&mut first, &mut second] {
        client.ask("once", &[("tsize", "0")]).await;
        assert_eq!(client.hear().await, Heard::OptionAck("tsize=1".into()));
    }
    first.ack(0).await;
    assert_eq!(first.hear().await, Heard::Data(1, b"1".to_vec()));
    second.ack(0).await;
    let spent = "already read 1 times in this boot (lifetime.access_count)".into();
    assert_eq!(second.hear().await, Heard::Error(2, spent));
}

#[tokio::test]
async fn an_error_from_the_client_ends_its_access_at_once() {
    let scene = scene().await;
    scene.put("/a", Content::Inline(bytes(5000)));
    let mut client = scene.client().await;
    client.ask("a", &[]).await;
    assert!(matches!(client.hear().await, Heard::Data(1, _)));
    client.ack(1).await;
    assert!(matches!(client.hear().await, Heard::Data(2, _)));
    client.send(b"\0\x05\0\x03disk full\0").await;
    let outcome = Outcome::Aborted("client's error 3: disk full".into());
    assert_eq!(scene.seen(2).await, [opened(1, "/a"), ended(1, "/a", 512, outcome)]);
}

#[tokio::test]
async fn a_new_request_from_the_same_port_supersedes_at_once() {
    let scene = scene().await;
    scene.put("/a", Content::Inline(bytes(100_000)));
    scene.put("/b", inline("other"));
    let mut client = scene.client().await;
    client.ask("a", &[]).await;
    assert!(matches!(client.hear().await, Heard::Data(1, _)));
    client.ack(1).await;
    assert!(matches!(client.hear().await, Heard::Data(2, _)));
    // The machine was switched off and on, and asks on the same port for the same name.
    client.ask("a", &[]).await;
    let outcome = Outcome::Aborted("asked again from the same port".into());
    assert!(scene.seen(3).await.contains(&ended(1, "/a", 512, outcome)));
    // The first transfer may have sent its block again before it ended.
    let mut heard = client.hear().await;
    while matches!(heard, Heard::Data(2, _)) {
        heard = client.hear().await;
    }
    assert!(matches!(heard, Heard::Data(1, _)));
    client.ask("b", &[]).await;
    assert_eq!(client.fetch_on(&mut Vec::new()).await.unwrap(), b"other");
    assert_eq!(scene.seen(6).await.len(), 6);
}

#[tokio::test]
async fn an_impatient_repetition_is_answered_from_the_port_that_answered_first() {
    let scene = scene().await;
    scene.put("/a", inline("patience"));
    let mut client = scene.client().await;
    client.ask("a", &[("tsize", "0")]).await;
    assert_eq!(client.hear().await, Heard::OptionAck("tsize=8".into()));
    let first = client.partner;
    client.ask("a", &[("tsize", "0")]).await;
    assert_eq!(client.hear().await, Heard::OptionAck("tsize=8".into()));
    assert_eq!(client.partner, first);
    client.ack(0).await;
    assert_eq!(client.hear().await, Heard::Data(1, b"patience".to_vec()));
    client.ack(1).await;
    assert_eq!(scene.seen(2).await, [opened(1, "/a"), ended(1, "/a", 8, Outcome::Complete)]);
}

#[tokio::test]
async fn a_lost_option_ack_and_a_lost_last_block_are_sent_again() {
    let scene = scene().await;
    scene.put("/a", inline("ok"));
    let mut client = scene.client().await;
    client.ask("a", &[("tsize", "0")]).await;
    for _ in 0..2 {
        assert_eq!(client.hear().await, Heard::OptionAck("tsize=2".into()));
    }
    client.ack(0).await;
    for _ in 0..3 {
        assert_eq!(client.hear().await, Heard::Data(1, b"ok".to_vec()));
    }
    client.ack(1).await;
    assert_eq!(scene.seen(2).await[1], ended(1, "/a", 2, Outcome::Complete));
}

#[tokio::test]
async fn a_stranger_on_a_transfers_port_is_told_so_and_the_transfer_goes_on() {
    let scene = scene().await;
    let content = bytes(2000);
    scene.put("/a", Content::Inline(content.clone()));
    let (mut client, mut stranger) = (scene.client().await, scene.client().await);
    client.ask("a", &[]).await;
    assert_eq!(client.hear().await, Heard::Data(1, content[..512].to_vec()));
    stranger.partner = client.partner;
    stranger.ack(1).await;
    assert_eq!(stranger.hear().await, Heard::Error(5, "this port serves another client".into()));
    stranger.send(b"\0\x05\0\0not for you\0").await;
    client.ack(1).await;
    assert_eq!(client.hear().await, Heard::Data(2, content[512..1024].to_vec()));
    assert_eq!(stranger.socket.try_recv(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn transfers_beyond_the_cap_of_one_address_are_told_so() {
    let scene = scene_with(Config { transfer_count_max_per_peer: 2, ..Config::default() }).await;
    scene.put("/a", Content::Inline(bytes(5000)));
    let mut clients = [scene.client().await, scene.client().await];
    for client in &mut clients {
        client.ask("a", &[]).await;
        assert!(matches!(client.hear().await, Heard::Data(1, _)));
    }
    let sentence = "too many transfers: 2 are running for your address; end one first";
    let mut third = scene.client().await;
    assert_eq!(third.fetch("a", &[]).await.unwrap_err(), (0, sentence.into()));
    clients[0].send(b"\0\x05\0\0done\0").await;
    scene.seen(3).await;
    let ends = async { while third.fetch("a", &[]).await.is_err() {} };
    timeout(PATIENCE, ends).await.expect("the place came back");
}

#[tokio::test]
async fn windows_of_one_address_share_its_memory() {
    let window_bytes_max_per_peer = 10 * 1024;
    let scene = scene_with(Config { window_bytes_max_per_peer, ..Config::default() }).await;
    scene.put("/a", Content::Inline(bytes(5000)));
    let mut granted = Vec::new();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = scene.client().await;
        client.ask("a", &[("blksize", "1024"), ("windowsize", "8")]).await;
        granted.push(client.hear().await);
        clients.push(client);
    }
    let offers = ["8", "2", "1"].map(|window| Heard::OptionAck(format!("blksize=1024 windowsize={window}")));
    assert_eq!(granted, offers);
}

#[tokio::test]
async fn content_that_cannot_be_opened_tells_the_client_and_the_job() {
    let scene = scene().await;
    scene.put("/gone", Content::File("/nonexistent/kernel".into()));
    let (code, text) = scene.client().await.fetch("gone", &[("tsize", "0")]).await.unwrap_err();
    assert_eq!(code, 0);
    assert!(text.starts_with("cannot read /nonexistent/kernel: "), "{text}");
    assert_eq!(scene.seen(2).await, [opened(1, "/gone"), ended(1, "/gone", 0, Outcome::Failed(text))]);
}

#[tokio::test]
async fn content_that_fails_midway_tells_the_client_and_the_job() {
    let scene = scene().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes(1_000_000)).unwrap();
    scene.put("/a", Content::File(file.path().to_owned()));
    let mut client = scene.client().await;
    client.ask("a", &[("tsize", "0")]).await;
    assert_eq!(client.hear().await, Heard::OptionAck("tsize=1000000".into()));
    file.as_file().set_len(10).unwrap();
    let (code, text) = {
        client.ack(0).await;
        client.fetch_on(&mut Vec::new()).await.unwrap_err()
    };
    assert_eq!(code, 0);
    assert_eq!(scene.seen(2).await, [opened(1, "/a"), ended(1, "/a", 0, Outcome::Failed(text))]);
}

#[tokio::test]
async fn a_listener_on_every_address_answers_from_the_one_that_was_asked() {
    let listen = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
    let scene = scene_with(Config { listen, ..Config::default() }).await;
    scene.put("/a", inline("local"));
    let second = SocketAddr::new(Ipv4Addr::new(127, 0, 0, 2).into(), scene.server.address().port());
    let mut client = Client::to(second).await;
    assert_eq!(client.fetch("a", &[]).await.unwrap(), b"local");
    assert_eq!(client.partner.ip(), second.ip());
    client.send_to_server(b"\0\x02a\0octet\0").await;
    assert!(matches!(client.hear().await, Heard::Error(2, _)));
    assert_eq!(client.partner.ip(), second.ip());
}

#[tokio::test]
async fn a_transfer_whose_job_has_ended_is_cut_off() {
    let scene = scene().await;
    scene.put("/kernel", Content::Inline(Bytes::from(vec![7; 5000])));
    let mut client = scene.client().await;
    client.ask("kernel", &[]).await;
    assert!(matches!(client.hear().await, Heard::Data(1, _)));
    drop(scene.publication);
    client.ack(1).await;
    assert_eq!(client.hear_at_last().await, Heard::Error(2, "the job that published this has ended".into()));
}

#[tokio::test]
async fn draining_ends_running_transfers_and_takes_no_new_ones() {
    let scene = scene().await;
    let content = bytes(2000);
    scene.put("/a", Content::Inline(content.clone()));
    let mut client = scene.client().await;
    client.ask("a", &[]).await;
    assert!(matches!(client.hear().await, Heard::Data(1, _)));
    let Scene { server, publication: _kept, .. } = scene;
    let address = server.address();
    let drained = tokio::spawn(server.drain());
    // The port is free once the listener has gone; only then the transfer goes on.
    let gone = async {
        while std::net::UdpSocket::bind(address).is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, gone).await.expect("the listener closes");
    assert!(!drained.is_finished());
    let mut received = content[..512].to_vec();
    for block in 1..=3 {
        client.ack(block).await;
        let Heard::Data(number, payload) = client.hear().await else { panic!("expected data") };
        assert_eq!(number, block + 1);
        received.extend(payload);
    }
    client.ack(4).await;
    timeout(PATIENCE, drained).await.expect("the transfer ended").unwrap();
    assert!(received == content);
}

#[tokio::test]
async fn dropping_the_server_stops_its_transfers() {
    let scene = scene().await;
    scene.put("/a", Content::Inline(bytes(2000)));
    let mut client = scene.client().await;
    client.ask("a", &[]).await;
    assert!(matches!(client.hear().await, Heard::Data(1, _)));
    let Scene { server, seen, publication: _kept, namespaces, .. } = scene;
    drop((server, namespaces));
    let stopped = async {
        while seen.lock().unwrap().len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, stopped).await.expect("the access ends");
    assert_eq!(seen.lock().unwrap()[1], ended(1, "/a", 0, Outcome::Failed("the connection ended".into())));
}

/// What each firmware asked on the wire, and what it must hear first.
#[tokio::test]
async fn requests_recorded_from_firmware_are_answered_as_that_firmware_needs() {
    let offers = [
        ("edk2-x64.hex", "/snponly.efi", vec!["tsize=3000 blksize=1468 windowsize=4", "blksize=1468 windowsize=4"]),
        (
            "edk2-arm64.hex",
            "/grubnetaa64.efi",
            vec!["tsize=3000 blksize=1468 windowsize=4", "blksize=1468 windowsize=4"],
        ),
        ("grub-arm64.hex", "/grub/grub.cfg", vec!["", "", "", "", "blksize=1024 tsize=3000", "", ""]),
        ("ipxe-efi.hex", "/vmlinuz", vec!["blksize=1432 tsize=3000", ""]),
        ("ipxe-bios.hex", "/undionly.kpxe", vec!["blksize=1432 tsize=3000"; 3]),
        ("u-boot-arm64.hex", "/grubnetaa64.efi", vec!["", "timeout=5 blksize=1468", ""]),
    ];
    for (file, name, expected) in offers {
        let scene = scene().await;
        scene.put(name, Content::Inline(bytes(3000)));
        let packets = recorded(file);
        assert_eq!(packets.len(), expected.len(), "{file}");
        for ((_, request), expected) in packets.iter().zip(expected) {
            let mut client = scene.client().await;
            client.send_to_server(request).await;
            let answer = client.hear().await;
            if expected.is_empty() {
                assert_eq!(answer, Heard::Error(1, "the job publishes no such name".into()), "{file}");
                continue;
            }
            assert_eq!(answer, Heard::OptionAck(expected.into()), "{file}");
            client.ack(0).await;
            assert_eq!(client.hear().await, Heard::Data(1, bytes(3000)[..first_block(expected)].to_vec()), "{file}");
        }
    }
}

/// EDK2 and GRUB each take a new port per request, power-cycled machines the same ones again.
#[tokio::test]
async fn a_recorded_boot_of_edk2_counts_one_access_and_runs_again_on_the_same_ports() {
    let scene = scene().await;
    scene.put("/snponly.efi", Content::Inline(bytes(3000)));
    let packets = recorded("edk2-x64.hex");
    let (mut probe, mut read) = (scene.client().await, scene.client().await);
    for boot in 1..=2 {
        probe.send_to_server(&packets[0].1).await;
        assert_eq!(probe.hear().await, Heard::OptionAck("tsize=3000 blksize=1468 windowsize=4".into()));
        probe.send(b"\0\x05\0\x08User aborted the transfer\0").await;
        read.send_to_server(&packets[1].1).await;
        let received = read.fetch_on(&mut Vec::new()).await.unwrap();
        assert!(received == bytes(3000));
        let seen = scene.seen(2 * boot).await;
        assert_eq!(seen.len(), 2 * boot);
        assert_eq!(seen[2 * boot - 1], ended(boot as u64, "/snponly.efi", 3000, Outcome::Complete));
    }
}

fn first_block(options: &str) -> usize {
    options.split(' ').find_map(|option| option.strip_prefix("blksize=")).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_hostile_stream_of_datagrams_leaves_the_server_serving() {
    use rand::rngs::SmallRng;
    use rand::{Rng, RngExt, SeedableRng};
    let scene = scene().await;
    scene.put("/a", inline("still here"));
    let mut random = SmallRng::seed_from_u64(69);
    let noise = scene.client().await;
    for _ in 0..20 {
        for _ in 0..100 {
            let mut datagram = vec![0; random.random_range(0..600)];
            random.fill_bytes(&mut datagram);
            if datagram.len() > 1 {
                datagram[0] = 0;
                datagram[1] %= 8;
            }
            noise.send_to_server(&datagram).await;
        }
        assert_eq!(scene.client().await.fetch("a", &[]).await.unwrap(), b"still here");
    }
}

#[tokio::test]
async fn netascii_is_translated() {
    let scene = scene().await;
    scene.put("/boot.cfg", inline("a\nb"));
    let mut client = scene.client().await;
    client.send_to_server(b"\0\x01boot.cfg\0netascii\0").await;
    assert_eq!(client.hear().await, Heard::Data(1, b"a\r\nb".to_vec()));
}
