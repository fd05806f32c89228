//! The server over sockets, with a client of a few lines: who gets which disk, how often, until when, and what an end leaves.

use core::net::Ipv4Addr;
use std::sync::Mutex as StdMutex;

use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::message::{client_flags, command, command_flags, option, reply};
use super::*;
use crate::content::disk::{self, Base};
use crate::namespace::{AccessEvent, Exposure, Name, Origin, Publication};

const DUT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Another machine of the loopback network.
const OTHER: [u8; 4] = [127, 0, 0, 2];

struct Scene {
    server: Server,
    namespaces: Namespaces<Content>,
    publication: Publication<Content>,
    events: Arc<StdMutex<Vec<AccessEvent>>>,
    folder: tempfile::TempDir,
}

fn quick() -> Config {
    let (handshake_timeout, stall_timeout) = (Duration::from_millis(300), Duration::from_secs(1));
    let listen = SocketAddr::new(DUT, 0);
    Config { handshake_timeout, stall_timeout, ..Config::new(Net::host(), listen) }
}

async fn scene_with(config: Config) -> Scene {
    let namespaces = Namespaces::new();
    let events = Arc::new(StdMutex::new(Vec::new()));
    let heard = Arc::clone(&events);
    let observer = Arc::new(move |event| {
        if event != AccessEvent::Progress {
            heard.lock().unwrap().push(event);
        }
    });
    let publication = namespaces.publish(DUT, observer).unwrap();
    let server = start(config, namespaces.clone()).await.unwrap();
    Scene { server, namespaces, publication, events, folder: tempfile::tempdir().unwrap() }
}

async fn scene() -> Scene {
    scene_with(Config::new(Net::host(), SocketAddr::new(DUT, 0))).await
}

impl Scene {
    async fn disk(&self, base: Base, attachments_max: u32) -> Disk {
        let directory = self.folder.path().to_owned();
        let config = disk::Config { base, mode: Mode::CopyOnWrite, directory, attachments_max };
        Disk::make(config).await.unwrap()
    }

    fn put(&self, name: &str, disk: &Disk, exposure: Exposure) {
        let (name, content) = (Name::Exact(name.to_owned()), Content::Disk(disk.clone()));
        self.publication.put(Protocol::Nbd, name, content, exposure, Origin::Job, Instant::now());
    }

    /// An empty disk of 1 MiB, published.
    async fn empty(&self, name: &str) -> Disk {
        let disk = self.disk(Base::Zeros { size_bytes: 1 << 20 }, 4).await;
        self.put(name, &disk, Exposure::default());
        disk
    }

    async fn connect(&self) -> Client {
        Client::connect(TcpStream::connect(self.server.address()).await.unwrap()).await
    }

    async fn attach(&self, name: &str) -> Client {
        let mut client = self.connect().await;
        assert_eq!(client.go(name).await, None);
        client
    }

    async fn events_of(&self, count: usize) -> Vec<AccessEvent> {
        let enough = async {
            loop {
                let events = self.events.lock().unwrap().clone();
                if events.len() >= count {
                    return events;
                }
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(10), enough).await;
        waited.unwrap_or_else(|_| panic!("not {count} events: {:?}", self.events.lock().unwrap()))
    }
}

/// A client with simple replies, one request at a time.
struct Client {
    stream: TcpStream,
}

impl Client {
    async fn connect(mut stream: TcpStream) -> Self {
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\x00\x03");
        stream.write_u32(client_flags::FIXED_NEWSTYLE | client_flags::NO_ZEROES).await.unwrap();
        Client { stream }
    }

    /// Sends an option, and returns its answers.
    async fn option(&mut self, number: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let head = [&b"IHAVEOPT"[..], &number.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat();
        self.stream.write_all(&head).await.unwrap();
        let mut answers = Vec::new();
        loop {
            assert_eq!(self.stream.read_u64().await.unwrap(), 0x0003_e889_0455_65a9);
            assert_eq!(self.stream.read_u32().await.unwrap(), number);
            let kind = self.stream.read_u32().await.unwrap();
            let mut data = vec![0; self.stream.read_u32().await.unwrap() as usize];
            self.stream.read_exact(&mut data).await.unwrap();
            answers.push((kind, data));
            if kind == reply::ACK || kind > 1 << 31 {
                return answers;
            }
        }
    }

    /// Asks for an export; the sentence if it is refused.
    async fn go(&mut self, name: &str) -> Option<String> {
        let data = [&(name.len() as u32).to_be_bytes(), name.as_bytes(), &[0, 0]].concat();
        let (kind, data) = self.option(option::GO, &data).await.pop().unwrap();
        (kind != reply::ACK).then(|| String::from_utf8(data).unwrap())
    }

    async fn names(&mut self) -> Vec<String> {
        let answers = self.option(option::LIST, b"").await;
        let names = answers.iter().filter(|(kind, _)| *kind == reply::SERVER);
        names.map(|(_, data)| String::from_utf8(data[4..].to_vec()).unwrap()).collect()
    }

    async fn send(&mut self, flags: u16, command: u16, offset: u64, length: u32, data: &[u8]) -> io::Result<()> {
        let fields = [&flags.to_be_bytes()[..], &command.to_be_bytes(), &7_u64.to_be_bytes(), &offset.to_be_bytes()];
        let request = [b"\x25\x60\x95\x13", &fields.concat()[..], &length.to_be_bytes(), data].concat();
        self.stream.write_all(&request).await
    }

    async fn error(&mut self) -> io::Result<u32> {
        assert_eq!(self.stream.read_u32().await?, 0x6744_6698);
        let error = self.stream.read_u32().await?;
        assert_eq!(self.stream.read_u64().await?, 7);
        Ok(error)
    }

    async fn read(&mut self, offset: u64, length: u32) -> io::Result<Vec<u8>> {
        self.send(0, command::READ, offset, length, b"").await?;
        assert_eq!(self.error().await?, 0);
        let mut data = vec![0; length as usize];
        self.stream.read_exact(&mut data).await?;
        Ok(data)
    }

    async fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<u32> {
        self.send(command_flags::FUA, command::WRITE, offset, data.len() as u32, data).await?;
        self.error().await
    }

    async fn goodbye(mut self) {
        self.send(0, command::DISC, 0, 0, b"").await.unwrap();
        assert_eq!(self.stream.read(&mut [0]).await.unwrap(), 0, "the server closes after a goodbye");
    }

    /// The server closed, in whichever way: what it had not read makes it a reset.
    async fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(10), self.stream.read_to_end(&mut rest)).await;
        end.is_ok()
    }
}

#[tokio::test]
async fn what_one_connection_writes_another_reads_and_both_are_one_access() {
    let scene = scene().await;
    let disk = scene.disk(Base::Image(Content::Inline(Bytes::from(vec![9; 1 << 20]))), 2).await;
    scene.put("disk", &disk, Exposure { access_count: Some(1), ..Exposure::default() });
    let (mut first, mut second) = (scene.attach("disk").await, scene.attach("disk").await);
    assert_eq!(first.write(1000, b"written").await.unwrap(), 0);
    first.send(0, command::FLUSH, 0, 0, b"").await.unwrap();
    assert_eq!(first.error().await.unwrap(), 0);
    assert_eq!(second.read(999, 9).await.unwrap(), b"\x09written\x09");
    let sentence = scene.connect().await.go("disk").await;
    assert_eq!(sentence.unwrap(), "already attached by 2 connections (max_connections)");
    first.goodbye().await;
    second.goodbye().await;
    let (name, protocol) = ("disk".to_owned(), Protocol::Nbd);
    let expected = [
        AccessEvent::Opened { access: 1, protocol, name: name.clone(), peer: DUT },
        AccessEvent::Refused { protocol, name: name.clone(), peer: DUT, refusal: Refusal::Busy { connections_max: 2 } },
        AccessEvent::Ended { access: 1, protocol, name, bytes: 16, outcome: Outcome::Complete },
    ];
    assert_eq!(scene.events_of(3).await, expected);
    let sentence = scene.connect().await.go("disk").await.unwrap();
    assert_eq!(sentence, "already read 1 times in this boot (lifetime.access_count)");
    scene.publication.begin_boot();
    assert_eq!(scene.connect().await.go("disk").await, None);
}

#[tokio::test]
async fn a_caller_lists_and_attaches_its_own_disks_and_no_others() {
    let scene = scene().await;
    let other = scene.namespaces.publish(IpAddr::from(OTHER), Arc::new(|_| ())).unwrap();
    let disk = scene.disk(Base::Zeros { size_bytes: 4096 }, 4).await;
    let name = Name::Exact("secret".to_owned());
    other.put(Protocol::Nbd, name, Content::Disk(disk), Exposure::default(), Origin::Job, Instant::now());
    scene.empty("a").await;
    scene.empty("b").await;
    let mut client = scene.connect().await;
    assert_eq!(client.names().await, ["a", "b"]);
    assert_eq!(client.go("secret").await.unwrap(), "the job publishes no such name");
    assert_eq!(client.go("").await.unwrap(), "the job publishes no such name", "one of two is not chosen");
    let guessed = format!("{}/secret", "0".repeat(32));
    assert_eq!(client.go(&guessed).await.unwrap(), "no leased DUT has this address");
    assert_eq!(
        client.go(&format!("{}/", other.key().as_str())).await,
        None,
        "the key opens it, and it is the only one"
    );
    client.goodbye().await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((OTHER, 0))).unwrap();
    let mut client = Client::connect(socket.connect(scene.server.address()).await.unwrap()).await;
    assert_eq!(client.names().await, ["secret"]);
    drop(other);
    assert!(client.names().await.is_empty());
    assert_eq!(client.go("secret").await.unwrap(), "no leased DUT has this address");
}

#[tokio::test]
async fn the_end_of_a_job_ends_its_connections() {
    let mut scene = scene().await;
    scene.empty("disk").await;
    let (mut idle, mut busy) = (scene.attach("disk").await, scene.attach("disk").await);
    let address = IpAddr::from(OTHER);
    scene.publication = scene.namespaces.publish(address, Arc::new(|_| ())).unwrap();
    assert!(busy.write(0, b"late").await.is_err(), "a request after the end is not begun");
    assert!(idle.is_closed().await);
    let events = scene.events_of(2).await;
    let reason = "the job that published this has ended".to_owned();
    assert!(
        matches!(&events[1], AccessEvent::Ended { outcome: Outcome::Failed(words), .. } if *words == reason),
        "{events:?}"
    );
}

#[tokio::test]
async fn a_machine_that_is_switched_off_loses_its_connections_and_its_places_at_once() {
    let scene = scene().await;
    let disk = scene.empty("disk").await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(scene.attach("disk").await);
    }
    assert_eq!(disk.attachments(), 4);
    assert_eq!(scene.server.connections().drop_of(IpAddr::from(OTHER)).await, 0);
    assert_eq!(scene.server.connections().drop_of(DUT).await, 4);
    assert_eq!(disk.attachments(), 0);
    for client in &mut clients {
        assert!(client.is_closed().await);
    }
    assert_eq!(scene.attach("disk").await.read(0, 1).await.unwrap(), [0]);
}

#[tokio::test]
async fn a_reset_ends_the_connections_and_the_next_one_finds_the_base() {
    let scene = scene().await;
    let disk = scene.empty("disk").await;
    let mut before = scene.attach("disk").await;
    assert_eq!(before.write(0, b"old").await.unwrap(), 0);
    disk.reset().await.unwrap();
    assert!(before.write(0, b"late").await.is_err());
    assert_eq!(scene.attach("disk").await.read(0, 4).await.unwrap(), [0; 4]);
}

#[tokio::test]
async fn a_client_that_stops_in_mid_handshake_request_or_answer_is_given_up() {
    let scene = scene_with(quick()).await;
    let disk = scene.disk(Base::Zeros { size_bytes: 64 << 20 }, 4).await;
    scene.put("disk", &disk, Exposure::default());
    let mut haggling = scene.connect().await;
    haggling.stream.write_all(b"IHAVE").await.unwrap();
    assert!(haggling.is_closed().await);
    let mut half = scene.attach("disk").await;
    half.send(0, command::WRITE, 0, 1 << 20, b"and no more").await.unwrap();
    let mut deaf = scene.attach("disk").await;
    deaf.send(0, command::READ, 0, 32 << 20, b"").await.unwrap();
    let silent = scene.attach("disk").await;
    assert!(half.is_closed().await);
    // The kernel's buffers hold some of the answer; its end does not come.
    let gone = tokio::time::timeout(Duration::from_secs(10), async {
        while disk.attachments() > 1 {
            tokio::task::yield_now().await;
        }
    });
    gone.await.expect("who takes no answer is given up");
    silent.goodbye().await;
}

#[tokio::test]
async fn a_handshake_that_comes_byte_by_byte_is_given_up_in_its_time_and_an_option_after_go_is_no_request() {
    let scene = scene_with(quick()).await;
    scene.empty("disk").await;
    let mut slow = scene.connect().await;
    // 16 KiB of one option, at a byte a millisecond: it never gets there.
    slow.stream.write_all(b"IHAVEOPT\0\0\0\x63\0\0\x40\0").await.unwrap();
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    let dripping = async {
        while slow.stream.write_all(b"x").await.is_ok() {
            ticks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), dripping).await.expect("300 ms are enough for a handshake");
    let mut twice = scene.attach("disk").await;
    twice.stream.write_all(b"IHAVEOPT\0\0\0\x07\0\0\0\x0c\0\0\0\x04disk\0\x01\0\x03").await.unwrap();
    assert!(twice.is_closed().await);
    let garbage = Outcome::Failed("the client sent something that is no request".to_owned());
    let events = scene.events_of(2).await;
    assert!(matches!(&events[1], AccessEvent::Ended { outcome, .. } if *outcome == garbage), "{events:?}");
}

#[tokio::test]
async fn an_export_is_proven_by_a_client_that_is_not_ours() {
    let scene = scene().await;
    let image = Content::Inline(Bytes::from((0..200_000).map(|index| (index % 249) as u8).collect::<Vec<_>>()));
    let disk = scene.disk(Base::Image(image.clone()), 1).await;
    scene.put("disk", &disk, Exposure::default());
    let (net, address, key) = (Net::host(), scene.server.address(), scene.publication.key());
    proof::prove(&net, address, None, key, "disk", &disk).await.unwrap();
    let missing = proof::prove(&net, address, None, key, "none", &disk).await.unwrap_err();
    let words = format!("export `none` cannot be attached at {address}: ");
    assert!(missing.to_string().starts_with(&words), "{missing}");
    let longer = scene.disk(Base::Zeros { size_bytes: 200_001 }, 1).await;
    let differs = proof::prove(&net, address, None, key, "disk", &longer).await.unwrap_err();
    assert_eq!(differs.to_string(), "export `disk` is not its disk: 200000 bytes long instead of 200001");
    let other = scene.disk(Base::Image(image), 1).await;
    other.view().write(70, Bytes::from_static(b"~"), disk::Durability::Memory).await.unwrap();
    let differs = proof::prove(&net, address, None, key, "disk", &other).await.unwrap_err();
    assert_eq!(differs.to_string(), "export `disk` is not its disk: byte 70 is another");
}

#[tokio::test]
async fn nonsense_neither_hangs_nor_harms_the_server() {
    let scene = scene_with(quick()).await;
    scene.empty("disk").await;
    let mut other = scene.attach("disk").await;
    let ours = b"what another connection wrote";
    assert_eq!(other.write(512 << 10, ours).await.unwrap(), 0);
    for seed in 0..150 {
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        let mut client = if seed % 3 == 0 { scene.connect().await } else { scene.attach("disk").await };
        let (mut reading, mut writing) = client.stream.split();
        let nonsense = nonsense(&mut random, seed % 3 == 0);
        let sending = async {
            let _ = writing.write_all(&nonsense).await;
            let _ = writing.shutdown().await;
        };
        let mut heard = Vec::new();
        let listening = reading.read_to_end(&mut heard);
        let both = async { tokio::join!(sending, listening) };
        let ended = tokio::time::timeout(Duration::from_secs(20), both).await;
        assert!(ended.is_ok(), "seed {seed} hangs");
    }
    assert_eq!(other.read(512 << 10, ours.len() as u32).await.unwrap(), ours, "nobody wrote up there");
}

/// Options or requests, mostly well-formed heads with fields that are not, writes below 512 KiB.
fn nonsense(random: &mut rand::rngs::StdRng, is_handshake: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let odd = [0, 1, 2, 511, 4096, 65_536, 1 << 20, 1 << 31, u32::MAX];
    for _ in 0..random.random_range(1..40) {
        let length = odd[random.random_range(0..odd.len())];
        if is_handshake {
            bytes.extend(b"IHAVEOPT");
            bytes.extend(random.random_range(0..12_u32).to_be_bytes());
            bytes.extend(length.to_be_bytes());
        } else {
            bytes.extend(b"\x25\x60\x95\x13");
            // Every flag and every command, but no zeroes over what the other connection wrote.
            let kind = [0, 1, 3, 4, 5, 7, 8, 99][random.random_range(0..8)];
            bytes.extend(random.random_range(0..64_u16).to_be_bytes());
            bytes.extend(u16::to_be_bytes(kind));
            bytes.extend(random.random::<u64>().to_be_bytes());
            let offset = if random.random_bool(0.8) { random.random_range(0..256 << 10) } else { random.random() };
            let length = if kind == 4 { length.min(128 << 10) } else { length };
            bytes.extend(u64::to_be_bytes(offset));
            bytes.extend(if kind == 1 { length.min(65_536) } else { length }.to_be_bytes());
        }
        let data = random.random_range(0..70_000_usize).min(length as usize);
        bytes.extend(std::iter::repeat_with(|| random.random::<u8>()).take(data));
    }
    bytes
}

#[tokio::test]
async fn a_drained_server_closes_what_is_open_and_takes_nothing_more() {
    let scene = scene().await;
    let disk = scene.empty("disk").await;
    let mut client = scene.attach("disk").await;
    let address = scene.server.address();
    scene.server.drain().await;
    assert_eq!(disk.attachments(), 0);
    assert!(client.is_closed().await);
    assert!(TcpStream::connect(address).await.is_err());
}
