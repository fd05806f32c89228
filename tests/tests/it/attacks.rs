//! What a DUT may try to read another's artifacts: by header, prefix, path, port, or by racing a lease that ends. The gateway's servers run in
//! this process; DUTs are addresses of the loopback, and their bytes are sent by hand, for no client would send such.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gateway::content::Content;
use gateway::namespace::{Exposure, Name, Origin, Protocol, Publication};
use gateway::{Config, Gateway};

const ONE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 12);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 99);

/// Long enough for an answer on a busy machine; a silence that is awaited takes as long.
const PATIENCE: Duration = Duration::from_secs(5);

struct Scene {
    gateway: Gateway,
    runtime: tokio::runtime::Runtime,
    _folder: tempfile::TempDir,
}

fn scene() -> Scene {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = Config { cache_directory: folder.path().join("cache"), ..Config::default() };
    let gateway = runtime.block_on(Gateway::start(config)).unwrap();
    Scene { gateway, runtime, _folder: folder }
}

impl Scene {
    /// A job on the DUT at `address` that publishes `/secret`, the same name as every other, and `/only-<word>`.
    fn job(&self, address: Ipv4Addr, word: &str) -> Publication<Content> {
        let publication = self.gateway.namespaces().publish(IpAddr::V4(address), Arc::new(|_| ())).unwrap();
        for protocol in [Protocol::Http, Protocol::Tftp] {
            for name in ["/secret".to_owned(), format!("/only-{word}")] {
                put(&publication, protocol, &name, word.to_owned(), Exposure::default());
            }
        }
        publication
    }

    /// The whole answer to `request`, sent from `address`.
    fn http(&self, address: Ipv4Addr, request: &str) -> String {
        talk(&mut connect(address, self.gateway.addresses().http.unwrap()), request)
    }

    fn get(&self, address: Ipv4Addr, target: &str) -> String {
        self.http(address, &format!("GET {target} HTTP/1.1\r\nHost: farm\r\nConnection: close\r\n\r\n"))
    }

    /// The first answer to a read request.
    fn tftp(&self, address: Ipv4Addr, name: &str) -> Packet {
        let socket = udp(address);
        read_request(&socket, self.gateway.addresses().tftp.unwrap(), name);
        let (answer, transfer) = receive(&socket).expect("an answer");
        // Else the transfer waits for it, and there are places for 16 of an address.
        acknowledge(&socket, transfer, answer.1);
        answer
    }
}

fn put(publication: &Publication<Content>, protocol: Protocol, name: &str, bytes: String, exposure: Exposure) {
    let (name, content) = (Name::Exact(name.to_owned()), Content::Inline(bytes.into()));
    publication.put(protocol, name, content, exposure, Origin::Job, Instant::now());
}

fn connect(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.into()
}

fn talk(stream: &mut TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // A connection that is reset has said what it had to say.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn udp(from: Ipv4Addr) -> UdpSocket {
    let socket = UdpSocket::bind((from, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn read_request(socket: &UdpSocket, server: SocketAddr, name: &str) {
    socket.send_to(format!("\0\x01{name}\0octet\0").as_bytes(), server).unwrap();
}

fn acknowledge(socket: &UdpSocket, server: SocketAddr, block: u16) {
    socket.send_to(&[&[0, 4][..], &block.to_be_bytes()].concat(), server).unwrap();
}

/// Opcode, block number or error code, and what follows.
type Packet = (u16, u16, Vec<u8>);

fn receive(socket: &UdpSocket) -> Option<(Packet, SocketAddr)> {
    let mut packet = [0; 2048];
    let (length, from) = socket.recv_from(&mut packet).ok()?;
    let number = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    Some(((number(0), number(2), packet[4..length].to_vec()), from))
}

/// RFC 1350: DATA, ERROR, and "file not found".
const DATA: u16 = 3;
const ERROR: u16 = 5;
const NOT_FOUND: u16 = 1;

#[test]
fn two_jobs_with_the_same_names_at_the_same_time_each_read_their_own() {
    let scene = scene();
    let _jobs = [scene.job(ONE, "one"), scene.job(OTHER, "other")];
    std::thread::scope(|threads| {
        for (address, word) in [(ONE, "one"), (OTHER, "other"), (ONE, "one"), (OTHER, "other")] {
            let scene = &scene;
            threads.spawn(move || {
                for _ in 0..100 {
                    assert!(scene.get(address, "/secret").ends_with(&format!("\r\n\r\n{word}")));
                    assert_eq!(scene.tftp(address, "/secret"), (DATA, 1, word.as_bytes().to_vec()));
                }
            });
        }
    });
}

#[test]
fn no_header_and_no_form_of_a_request_leads_to_another_namespace() {
    let scene = scene();
    let jobs = [scene.job(ONE, "one"), scene.job(OTHER, "other")];
    let headers = [
        "Host: 127.0.0.12".to_owned(),
        "X-Forwarded-For: 127.0.0.12".to_owned(),
        "Forwarded: for=127.0.0.12".to_owned(),
        "X-Real-IP: 127.0.0.12".to_owned(),
        "Via: 1.1 127.0.0.12".to_owned(),
        format!("X-Original-URL: /_/n/{}/only-other", jobs[1].key().as_str()),
        "Authorization: Basic b3RoZXI6b3RoZXI=".to_owned(),
    ];
    for header in headers {
        for name in ["/secret", "/only-other"] {
            let host = if header.starts_with("Host") { "" } else { "Host: farm\r\n" };
            let answer =
                scene.http(ONE, &format!("GET {name} HTTP/1.1\r\n{host}{header}\r\nConnection: close\r\n\r\n"));
            let is_own = answer.ends_with("\r\n\r\none") || answer.starts_with("HTTP/1.1 404 ");
            assert!(is_own, "{header}, {name}: {answer}");
        }
    }
    let forms = [
        "GET http://127.0.0.12/only-other HTTP/1.1\r\nHost: 127.0.0.12\r\nConnection: close\r\n\r\n",
        "GET //127.0.0.12/only-other HTTP/1.1\r\nHost: farm\r\nConnection: close\r\n\r\n",
        "CONNECT 127.0.0.12:80 HTTP/1.1\r\nHost: 127.0.0.12:80\r\n\r\n",
        "GET /secret HTTP/1.1\r\nHost: farm\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /only-other HTTP/1.1\r\nHost: 127.0.0.12\r\nConnection: close\r\n\r\n",
    ];
    for request in forms {
        let answer = scene.http(ONE, request);
        assert!(!answer.ends_with("other"), "{request}: {answer}");
    }
}

#[test]
fn no_path_leads_out_of_a_namespace() {
    let scene = scene();
    let jobs = [scene.job(ONE, "one"), scene.job(OTHER, "other")];
    let key = jobs[1].key().as_str();
    let own = jobs[0].key().as_str();
    let paths = [
        "/../only-other".to_owned(),
        "/%2e%2e/only-other".to_owned(),
        "/..%2fonly-other".to_owned(),
        "/%2f%2e%2e%2fonly-other".to_owned(),
        "/secret/../../only-other".to_owned(),
        "/..%5conly-other".to_owned(),
        "/only-other%00".to_owned(),
        "/%6fnly-other".to_owned(),
        "/127.0.0.12/only-other".to_owned(),
        "/boot/127.0.0.12/only-other".to_owned(),
        "/_/n//only-other".to_owned(),
        "/_/n/127.0.0.12/only-other".to_owned(),
        format!("/_/n/{}/only-other", &key[..31]),
        format!("/_/n/{}/only-other", key.replace(|letter: char| letter.is_ascii_digit(), "0") + "0"),
        format!("/_/n/{own}/only-other"),
        format!("/_/n/{own}/../{key}/only-other"),
        format!("/_/n/{own}/%2e%2e/{key}/only-other"),
    ];
    for path in &paths {
        let answer = scene.get(ONE, path);
        assert!(answer.starts_with("HTTP/1.1 404 ") || answer.starts_with("HTTP/1.1 400 "), "{path}: {answer}");
        let (opcode, ..) = scene.tftp(ONE, path);
        assert_eq!(opcode, ERROR, "{path}");
    }
    for path in ["/etc/hostname", "/../../../../etc/hostname", "/proc/self/environ"] {
        assert!(!scene.get(ONE, path).starts_with("HTTP/1.1 200 "), "{path}");
        assert_eq!(scene.tftp(ONE, path).0, ERROR, "{path}");
    }
    // The key itself is a right: whoever was told it may read, from wherever.
    assert!(scene.get(ONE, &format!("/_/n/{key}/only-other")).ends_with("\r\n\r\nother"));
}

#[test]
fn an_unknown_machine_gets_nothing_by_any_protocol() {
    let scene = scene();
    let _job = scene.job(ONE, "one");
    let answer = scene.get(STRANGER, "/secret");
    assert!(answer.starts_with("HTTP/1.1 404 ") && answer.ends_with("no leased DUT has this address\n"), "{answer}");
    let (opcode, code, _) = scene.tftp(STRANGER, "/secret");
    assert_eq!((opcode, code), (ERROR, NOT_FOUND));
    let mut nbd = connect(STRANGER, scene.gateway.addresses().nbd.unwrap());
    let mut greeting = [0; 18];
    nbd.read_exact(&mut greeting).unwrap();
    // Fixed newstyle, then NBD_OPT_LIST: what there is for a stranger is an acknowledgement (1) without a server (2) before it.
    nbd.write_all(&[&1u32.to_be_bytes()[..], b"IHAVEOPT", &3u32.to_be_bytes(), &0u32.to_be_bytes()].concat()).unwrap();
    let mut reply = [0; 20];
    nbd.read_exact(&mut reply).unwrap();
    assert_ne!(reply[12..16], 2u32.to_be_bytes(), "an export was told: {reply:?}");
}

#[test]
fn a_port_of_its_own_has_only_what_is_exposed_there_and_only_for_the_one_who_exposed_it() {
    let scene = scene();
    let (one, _other) = (scene.job(ONE, "one"), scene.job(OTHER, "other"));
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    put(&one, Protocol::Http, "/exposed", "bare".to_owned(), Exposure { port: Some(free), ..Exposure::default() });
    let server = scene.runtime.block_on(scene.gateway.open_port(Protocol::Http, free)).unwrap();
    let again = scene.runtime.block_on(scene.gateway.open_port(Protocol::Http, free)).unwrap();
    assert_eq!(server.address(), again.address(), "jobs share a port");
    let address = server.address();
    let get = |from, name: &str| {
        let request = format!("GET {name} HTTP/1.1\r\nHost: farm\r\nConnection: close\r\n\r\n");
        talk(&mut connect(from, address), &request)
    };
    assert!(get(ONE, "/exposed").ends_with("\r\n\r\nbare"));
    for (from, name) in [(ONE, "/secret"), (OTHER, "/exposed"), (OTHER, "/secret"), (STRANGER, "/exposed")] {
        assert!(get(from, name).starts_with("HTTP/1.1 404 "), "{from} {name}");
    }
    drop((server, again));
    let is_closed = || TcpStream::connect(address).is_err().then_some(());
    tests::bench::until(PATIENCE, is_closed).expect("a port that no job has any more is closed");
}

#[test]
fn a_lease_that_ends_takes_its_artifacts_from_open_connections_and_from_those_who_race_it() {
    let scene = scene();
    let mut kept = connect(ONE, scene.gateway.addresses().http.unwrap());
    let first = scene.job(ONE, "first");
    kept.write_all(b"GET /secret HTTP/1.1\r\nHost: farm\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"first") {
        let mut byte = [0];
        kept.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&answer)));
        answer.push(byte[0]);
    }
    let is_over = AtomicBool::new(false);
    let second = std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    // Asked after the second job began, nobody is told the first one's secret.
                    let is_second = scene.get(ONE, "/only-second").ends_with("second");
                    let answer = scene.get(ONE, "/secret");
                    assert!(!is_second || answer.ends_with("second"), "{answer}");
                    assert!(!is_second || !scene.get(ONE, "/only-first").ends_with("first"));
                }
            });
        }
        drop(first);
        let second = scene.job(ONE, "second");
        // A connection of the first lease is of use only to its address, and so only for what is there now.
        let late = talk(&mut kept, "GET /secret HTTP/1.1\r\nHost: farm\r\nConnection: close\r\n\r\n");
        assert!(!late.contains("first"), "{late}");
        for _ in 0..20 {
            assert!(scene.get(ONE, "/secret").ends_with("\r\n\r\nsecond"));
        }
        is_over.store(true, Ordering::SeqCst);
        second
    });
    drop(second);
}

#[test]
fn a_transfer_is_its_own_client_s_only_and_does_not_outlive_the_lease() {
    let scene = scene();
    let server = scene.gateway.addresses().tftp.unwrap();
    let job = scene.job(ONE, "one");
    let long = "x".repeat(512 * 100);
    put(&job, Protocol::Tftp, "/long", long, Exposure::default());
    let client = udp(ONE);
    read_request(&client, server, "/long");
    let ((opcode, block, _), transfer) = receive(&client).unwrap();
    assert_eq!((opcode, block), (DATA, 1));
    // The same port number at another address, as one that is recycled: it gets no block of this transfer (RFC 1350, 4).
    let port = client.local_addr().unwrap().port();
    let thief = UdpSocket::bind((OTHER, port)).unwrap();
    thief.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    acknowledge(&thief, transfer, 1);
    let stolen = receive(&thief);
    assert!(stolen.as_ref().is_none_or(|((opcode, ..), _)| *opcode == ERROR), "{stolen:?}");
    // The lease ends, and another job has the address: the old transfer brings nothing more to the old port.
    drop(job);
    let _next = scene.job(ONE, "next");
    client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut last = 1;
    for block in 1..40 {
        acknowledge(&client, transfer, block);
        match receive(&client) {
            Some(((DATA, number, _), _)) => last = last.max(number),
            Some(_) | None => break,
        }
        // A block that was on its way when the lease ended is no leak; the transfer itself has 250 ms to hear of it.
        std::thread::yield_now();
    }
    assert!(last < 40, "the transfer went on for {last} blocks after the lease ended");
    let fresh = udp(ONE);
    read_request(&fresh, server, "/long");
    let ((opcode, code, _), _) = receive(&fresh).unwrap();
    assert_eq!((opcode, code), (ERROR, NOT_FOUND), "the next job publishes no such name");
}
