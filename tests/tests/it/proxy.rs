//! What a DUT reaches of the world through the farm, and what it never does: by curl, wget and busybox, by hand, and by names that lie.
//!
//! ```text
//!  one network namespace: the server ─┬─ bridge ── cable ── another: "the DUT", 10.88.0.11, and its neighbour, 10.88.0.12
//!     traps on its loopback and       ├─ its name server, which is this test
//!     at the gateway's address        └─ cable ── a third: "elsewhere", 198.51.100.2: TLS, HTTP, an echo; and 192.168.50.2
//! ```

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tests::bench::{Bench, Ended, Surroundings, need_programs};
use tests::lab::{Lab, Running};

use crate::farms::WHARF;
use crate::picked_up::{GATEWAY, LINK, PATIENCE, Place};

const DUT: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 11);
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 12);
/// The host's address on the operator's network, and who else is there.
const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const LAB_SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 2);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const UNLISTED: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 9);
/// As `gateway::namespace::CONNECTIONS_PER_DUT_MAX` has it.
const CONNECTIONS_MAX: usize = 32;

/// What both lists have; port 22 and 8080 are in one of them each, but for one host.
const FARM: &str = "proxy:
  allowed_endpoints: ['*:80', '*:443', 'only.test:8080', '*:22']
  private_networks: [10.0.0.0/8, 192.168.50.0/24]
";
const JOB: &str =
    "proxy: {allowed_endpoints: ['*:80', 'good.test:443', '*.bad.test:443', '10.88.0.1:443', '*:8080']}\n";

/// Where names lead: to each of its addresses in turn, and to the last one from then on.
const NAMES: &[(&str, &[Ipv4Addr])] = &[
    ("good.test", &[ELSEWHERE]),
    ("only.test", &[ELSEWHERE]),
    ("lab.test", &[LAB_SERVER]),
    ("loopback.bad.test", &[Ipv4Addr::LOCALHOST]),
    ("gateway.bad.test", &[GATEWAY]),
    ("host.bad.test", &[HOST]),
    ("neighbour.bad.test", &[NEIGHBOUR]),
    ("metadata.bad.test", &[METADATA]),
    ("office.bad.test", &[UNLISTED]),
    ("rebound.test", &[ELSEWHERE, Ipv4Addr::LOCALHOST]),
];

/// A name server of few words: A records without a lifetime, nothing else.
struct Names {
    asked: Arc<Mutex<HashMap<String, usize>>>,
}

impl Names {
    /// Ends with the process: it holds nothing but its port in a namespace of its own.
    fn serve(lab: &Lab) -> Names {
        let socket = lab.inside(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 53))).unwrap();
        let asked = Arc::new(Mutex::new(HashMap::new()));
        let counted = Arc::clone(&asked);
        std::thread::spawn(move || {
            let mut packet = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut packet) {
                let answer = answered(&packet[..length], &mut counted.lock().unwrap());
                let _ = socket.send_to(&answer, from);
            }
        });
        Names { asked }
    }

    fn times_asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().get(name).copied().unwrap_or(0)
    }
}

/// RFC 1035, 4.1: the question with an answer behind it; name error (3) where there is no such name.
fn answered(question: &[u8], asked: &mut HashMap<String, usize>) -> Vec<u8> {
    let (mut name, mut at) = (Vec::new(), 12);
    while question[at] > 0 {
        let end = at + 1 + usize::from(question[at]);
        name.push(String::from_utf8_lossy(&question[at + 1..end]).to_ascii_lowercase());
        at = end;
    }
    let (name, kind, end) = (name.join("."), question[at + 2], at + 5);
    let found = NAMES.iter().find(|(known, _)| *known == name).map(|(_, addresses)| *addresses);
    let address = found.filter(|_| kind == 1).map(|addresses| {
        let times = asked.entry(name.clone()).or_default();
        *times += 1;
        addresses[(*times - 1).min(addresses.len() - 1)]
    });
    let code = if found.is_some() { 0x80 } else { 0x83 };
    let mut answer = [&question[..2], &[0x81, code, 0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]].concat();
    answer.extend_from_slice(&question[12..end]);
    if let Some(address) = address {
        // The name of the question, A, IN, no lifetime, four bytes.
        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend_from_slice(&address.octets());
    }
    answer
}

struct World {
    place: Place,
    dut: Lab,
    elsewhere: Lab,
    names: Names,
    /// Connections to what no DUT may reach.
    caught: Arc<AtomicUsize>,
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Option<World> {
        let (place, dut, elsewhere) = (Place::new()?, Lab::new().ok()?, Lab::new().ok()?);
        place.lab.plug(LINK, &dut, DUT).unwrap();
        dut.ip(&format!("address add {NEIGHBOUR}/24 dev cable0")).unwrap();
        place.lab.cable(&[HOST, Ipv4Addr::new(192, 168, 50, 1)], &elsewhere, &[ELSEWHERE, LAB_SERVER]).unwrap();
        let (names, caught) = (Names::serve(&place.lab), Arc::new(AtomicUsize::new(0)));
        let folder = tempfile::tempdir().unwrap();
        let world = World { place, dut, elsewhere, names, caught, folder };
        for address in [ELSEWHERE, LAB_SERVER] {
            world.serve(&world.elsewhere, (address, 80), greet);
        }
        world.serve(&world.elsewhere, (ELSEWHERE, 8080), echo);
        let traps = [(Ipv4Addr::LOCALHOST, 80), (Ipv4Addr::LOCALHOST, 443), (GATEWAY, 443), (HOST, 80), (HOST, 443)];
        for trap in traps {
            world.trap(&world.place.lab, trap);
        }
        world.trap(&world.dut, (NEIGHBOUR, 80));
        world.trap(&world.dut, (NEIGHBOUR, 443));
        Some(world)
    }

    fn serve(&self, lab: &Lab, at: (Ipv4Addr, u16), mut talk: impl FnMut(TcpStream) + Send + 'static) {
        let listener = lab.inside(|| TcpListener::bind(at)).unwrap();
        std::thread::spawn(move || listener.incoming().flatten().for_each(&mut talk));
    }

    fn trap(&self, lab: &Lab, at: (Ipv4Addr, u16)) {
        let caught = Arc::clone(&self.caught);
        self.serve(lab, at, move |_| {
            caught.fetch_add(1, Ordering::SeqCst);
        });
    }

    fn start(&self) -> Bench {
        let surroundings = Surroundings {
            lab: Some(Arc::clone(&self.place.lab)),
            name_server: Some(Ipv4Addr::LOCALHOST),
            ..Surroundings::default()
        };
        Bench::start_with(WHARF, &format!("{}{FARM}", self.place.farm("")), surroundings)
    }

    /// A TLS server at port 443 elsewhere, for `good.test`, and whom to trust for it.
    fn serve_tls(&self) -> (Running, PathBuf) {
        let (key, certificate) = (self.folder.path().join("key.pem"), self.folder.path().join("certificate.pem"));
        let mut make = Command::new("openssl");
        make.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=good.test"]);
        make.args(["-addext", "subjectAltName=DNS:good.test", "-keyout"]).arg(&key).arg("-out").arg(&certificate);
        assert!(make.stdin(Stdio::null()).output().unwrap().status.success());
        let mut command = self.elsewhere.command("openssl").unwrap();
        let address = SocketAddr::from((ELSEWHERE, 443));
        command.args(["s_server", "-quiet", "-www", "-accept", &address.to_string(), "-key"]).arg(key);
        command.arg("-cert").arg(&certificate);
        let mut running = Running::spawn("openssl", command, &self.folder.path().join("openssl.log")).unwrap();
        self.elsewhere.wait_for_tcp(address, &mut running).unwrap();
        (running, certificate)
    }

    /// A program at the DUT's place, which is told of the proxy as programs are.
    fn at_dut(&self, program: &str, words: &[&str]) -> String {
        // With its port: without one curl asks at 1080, others at 80.
        let proxy = format!("http://{GATEWAY}:80");
        let mut command = self.dut.command(program).unwrap();
        command.env_clear().env("PATH", std::env::var("PATH").unwrap_or_default()).env("HOME", self.folder.path());
        command.env("http_proxy", &proxy).env("https_proxy", &proxy).args(words).stdin(Stdio::null());
        let output = command.output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    /// A connection to the gateway from one of the addresses at the DUT's place.
    fn connected(&self, from: Ipv4Addr) -> TcpStream {
        let connect = || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.bind(&SocketAddr::from((from, 0)).into())?;
            socket.connect(&SocketAddr::from((GATEWAY, 80)).into())?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(TcpStream::from(socket))
        };
        self.dut.inside(connect).unwrap()
    }

    /// Status and body of the answer to `METHOD target`, and the connection.
    fn asked(&self, from: Ipv4Addr, line: &str) -> (u16, String, TcpStream) {
        let mut stream = self.connected(from);
        stream.write_all(format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count > 0) {
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let status =
            head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{line}: {head:?}"));
        let mut body = String::new();
        if status != 200 || line.starts_with("GET") {
            let _ = stream.read_to_string(&mut body);
        }
        (status, body, stream)
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

fn greet(mut stream: TcpStream) {
    let mut request = [0; 4096];
    let _ = stream.read(&mut request);
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\nConnection: close\r\n\r\nfrom elsewhere\n");
}

fn echo(mut stream: TcpStream) {
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut bytes) {
            let _ = stream.write_all(&bytes[..count]);
        }
    });
}

/// A job whose machine need not boot anything: it talks.
fn job(proxy: &str) -> String {
    format!(
        "version: 1
target: {{tags: []}}
timeouts: {{overall: {{minutes: 4}}}}
console_patterns:
  session_end: {{regex: '^the end$'}}
  job_success: {{regex: '^all is good$'}}
deployment: {{start: {{}}}}
{proxy}"
    )
}

fn audit_lines(bench: &Bench) -> Vec<Value> {
    let text = fs::read_to_string(bench.state().join("audit.log")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What is asked for, and the end of the sentence why not; all of it from the DUT's own address, with lists that allow every host.
const REFUSED: &[(&str, &str)] = &[
    ("CONNECT good.test:22", "the job's proxy.allowed_endpoints do not have good.test:22"),
    ("CONNECT good.test:8080", "the farm's proxy.allowed_endpoints do not have good.test:8080"),
    ("GET http://good.test:8080/", "the farm's proxy.allowed_endpoints do not have good.test:8080"),
    ("CONNECT 10.88.0.1:443", "it leads to 10.88.0.1, which belongs to the farm"),
    ("CONNECT 10.88.0.1:80", "it leads to 10.88.0.1, which belongs to the farm"),
    ("GET http://10.88.0.12/secret", "it leads to 10.88.0.12, which belongs to the farm"),
    ("GET http://198.51.100.1/", "it leads to 198.51.100.1, which belongs to the farm"),
    ("GET http://127.0.0.1/", "it leads to 127.0.0.1, which belongs to the farm"),
    ("GET http://2130706433/", "it leads to 127.0.0.1, which belongs to the farm"),
    ("GET http://0x7f.1/", "it leads to 127.0.0.1, which belongs to the farm"),
    ("GET http://0177.0.0.1/", "it leads to 127.0.0.1, which belongs to the farm"),
    ("GET http://[::ffff:127.0.0.1]/", "which belongs to the farm"),
    ("GET http://[::ffff:a58:c]/", "which belongs to the farm"),
    ("GET http://127.9.9.9/", "it leads to 127.9.9.9, the loopback of the farm's host"),
    ("GET http://169.254.169.254/latest/meta-data/", "it leads to 169.254.169.254, a link-local address"),
    ("GET http://[fe80::1]/", "it leads to fe80::1, which belongs to the farm"),
    (
        "GET http://172.16.0.9/",
        "it leads to 172.16.0.9, a private address that the farm's proxy.private_networks do not have",
    ),
    ("GET http://loopback.bad.test/", "it leads to 127.0.0.1, which belongs to the farm"),
    ("CONNECT gateway.bad.test:443", "it leads to 10.88.0.1, which belongs to the farm"),
    ("CONNECT host.bad.test:443", "it leads to 198.51.100.1, which belongs to the farm"),
    ("CONNECT neighbour.bad.test:443", "it leads to 10.88.0.12, which belongs to the farm"),
    ("CONNECT metadata.bad.test:443", "it leads to 169.254.169.254, a link-local address"),
    (
        "CONNECT office.bad.test:443",
        "it leads to 172.16.0.9, a private address that the farm's proxy.private_networks do not have",
    ),
];

/// What was connected to, with the bytes of both directions where this test knows them.
const ACCESSES: &[&str] = &[
    "proxy good.test:80: 15 bytes, complete",
    "proxy lab.test:80: 15 bytes, complete",
    "proxy good.test:443: ",
    "proxy only.test:8080: 8 bytes",
];

/// `CONNECT a:1` and `GET http://a/b` name `a:1` and `a:80`.
fn endpoint(line: &str) -> String {
    let rest = line.split_once(' ').unwrap().1;
    match rest.strip_prefix("http://") {
        None => rest.to_owned(),
        Some(url) => {
            let authority = url.split('/').next().unwrap();
            if authority.ends_with(":8080") { authority.to_owned() } else { format!("{authority}:80") }
        }
    }
}

#[test]
fn a_dut_reaches_what_job_and_farm_allow_and_nothing_of_the_farm_and_each_refusal_is_written_down() {
    let Some(world) = World::new() else { return };
    need_programs(&[
        ("/usr/bin/curl", "curl"),
        ("/usr/bin/wget", "wget"),
        ("busybox", "busybox"),
        ("openssl", "openssl"),
    ]);
    let (_tls, trusted) = world.serve_tls();
    let bench = world.start();
    let refused = bench.refused(&job("proxy: {allowed_endpoints: ['good.test:25']}\n"), "");
    assert!(refused.text().contains("this farm does not let its DUTs connect to good.test:25"), "{}", refused.text());
    let mut submitted = bench.submit(&job(JOB), "");
    let mut console = world.place.opened();
    submitted.wait_for_kind("powered_on");

    // What is allowed, with the programs that people have.
    let greeting = "from elsewhere\n";
    for url in ["http://good.test/plain", "http://lab.test/private"] {
        assert_eq!(world.at_dut("curl", &["-sS", "--interface", &DUT.to_string(), url]), greeting, "{url}");
    }
    let ca = trusted.display().to_string();
    let page = world.at_dut("curl", &["-sS", "--interface", &DUT.to_string(), "--cacert", &ca, "https://good.test/"]);
    assert!(page.contains("s_server"), "{page}");
    assert_eq!(
        world.at_dut("wget", &["-q", "--bind-address", &DUT.to_string(), "-O", "-", "http://good.test/wget"]),
        greeting
    );
    let file = world.path("busybox");
    world.at_dut("busybox", &["wget", "-q", "-O", &file, "http://good.test/busybox"]);
    assert_eq!(fs::read_to_string(Path::new(&file)).unwrap_or_default(), greeting);

    // What is not, though every name of it is in both lists.
    for (line, why) in REFUSED {
        let (status, body, _) = world.asked(DUT, line);
        assert_eq!(status, 403, "{line}: {body}");
        assert!(body.trim_end().ends_with(why), "{line}: {body}");
    }
    // A name that leads elsewhere the second time: what was judged is what is connected to, and the next one is judged anew.
    assert_eq!(world.names.times_asked("rebound.test"), 0);
    let (status, body, _) = world.asked(DUT, "GET http://rebound.test/");
    assert_eq!((status, body.as_str(), world.names.times_asked("rebound.test")), (200, greeting, 1));
    let (status, body, _) = world.asked(DUT, "GET http://rebound.test/");
    assert_eq!(status, 403, "{body}");
    assert!(body.contains("it leads to 127.0.0.1"), "{body}");
    // Another machine has no job, and so no word in this.
    assert_eq!(world.asked(NEIGHBOUR, "GET http://good.test/").0, 403);
    assert_eq!(world.asked(NEIGHBOUR, "CONNECT good.test:443").0, 403);
    assert_eq!(world.caught.load(Ordering::SeqCst), 0, "something was connected to that is the farm's");

    // As many tunnels as it may have, and not one more; they end with the lease.
    let mut tunnels: Vec<_> = (0..CONNECTIONS_MAX).map(|_| world.asked(DUT, "CONNECT only.test:8080")).collect();
    assert!(tunnels.iter().all(|(status, ..)| *status == 200), "{tunnels:?}");
    let (status, body, _) = world.asked(DUT, "CONNECT only.test:8080");
    assert_eq!(status, 403);
    assert!(body.contains("the DUT has 32 connections through the farm already"), "{body}");
    let (mut tunnel, mut other) = (tunnels.swap_remove(0).2, tunnels.swap_remove(0).2);
    drop(tunnels);
    let mut heard = [0; 4];
    for tunnel in [&mut tunnel, &mut other] {
        tunnel.write_all(b"ahoy").unwrap();
        tunnel.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"ahoy");
    }
    drop(other);
    for words in ACCESSES {
        // That an access is over is heard by another task than what the console says.
        let is_it = |event: &Value| event["text"].as_str().is_some_and(|text| text.contains(words));
        bench.follow(&submitted.id, "").wait_for(words, is_it);
    }
    console.write_all(b"all is good\nthe end\n").unwrap();
    let ended = submitted.wait();
    assert_eq!(tunnel.read(&mut heard).unwrap_or(0), 0, "a tunnel outlives its lease");
    assert_eq!(world.asked(DUT, "CONNECT only.test:8080").0, 403);

    ended.expect("PASS", "test");
    told(&ended, &bench);
}

/// What is told of it: accesses with their bytes, refusals in the job's log, and each of these in the audit log.
fn told(ended: &Ended, bench: &Bench) {
    for words in
        ["proxy good.test:80: ", "proxy good.test:443: ", "proxy lab.test:80: ", "proxy only.test:8080: 8 bytes"]
    {
        ended.expect_in_order(&[words]);
    }
    let lines = audit_lines(bench);
    for (line, why) in REFUSED {
        let what = format!("connect to {}", endpoint(line));
        let is_it = |audit: &&Value| {
            audit["what"] == what.as_str() && audit["why"].as_str().is_some_and(|said| said.ends_with(why))
        };
        let audit = lines.iter().find(is_it).unwrap_or_else(|| panic!("no line of {line}: {lines:#?}"));
        let expected = (&Value::from(403), &Value::from(DUT.to_string()), &Value::from(format!("job {}", ended.id)));
        assert_eq!((&audit["status"], &audit["from"], &audit["who"]), expected);
        let said = ended.events.iter().any(|event| {
            let text = event.to_string();
            text.contains(&endpoint(line)) && text.contains(why)
        });
        assert!(said, "the job's log does not tell of {line}\n{ended}");
    }
    let many = lines.iter().filter(|audit| audit["why"].as_str().is_some_and(|why| why.contains("32 connections")));
    assert_eq!(many.count(), 1);
}
