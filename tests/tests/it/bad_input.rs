//! What is sent to a server by mistake or by malice: a clear answer each time, and the server serves on.
//!
//! The files that kill a parser, the datagrams and servers that kill CI-tron's, the clients that do not read, `kill -9`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use gateway::namespace::{Exposure, Protocol};
use serde_json::Value;
use tests::bench::{Bench, need_virtual_machines, until};

use crate::farms::{HELLO, QEMU, VIRTUAL_FARM, WHARF, farm_of, linux_job, simulated};
use crate::loopback::Loopback;

/// A submission is read, rendered in a child that is given ten seconds, and checked: no text may take longer.
const ANSWER_S_MAX: u64 = 15;

/// The server lists its machines, and a job passes on one.
#[track_caller]
fn serves_on(bench: &Bench) {
    assert_eq!(bench.get("/api/v1/duts").status, 200);
    bench.run(&linux_job("simulated", "wharf.beats=1", "overall: {minutes: 2}", "")).expect("PASS", "test");
}

/// Hands in a text, and wants a refusal that says this.
#[track_caller]
fn is_refused(text: &str, words: &str) {
    let bench = simulated();
    let asked = Instant::now();
    let answer = bench.refused(text, "");
    assert!(asked.elapsed() < Duration::from_secs(ANSWER_S_MAX), "it took {:?}", asked.elapsed());
    assert_eq!(answer.status, 400, "{answer:?}");
    let error = answer.json()["error"].as_str().expect("a refusal is a sentence").to_owned();
    assert!(error.contains(words), "no `{words}`:\n{error}");
    serves_on(&bench);
}

#[test]
fn a_nest_of_brackets_is_refused() {
    is_refused(&format!("version: 1\ntarget: {}", "[".repeat(200_000)), "has 200019 bytes; at most 65536 are rendered");
    is_refused(&format!("version: 1\ntarget: {}", "[".repeat(65_000)), "nested more than 64 levels deep");
}

#[test]
fn a_closed_nest_of_brackets_and_braces_is_refused() {
    let nest = format!("version: 1\ntarget: {}{}", "[".repeat(32_000), "]".repeat(32_000));
    is_refused(&nest, "nested more than 64 levels deep");
    let nest = format!("version: 1\ntarget: {}", "{a: ".repeat(16_000));
    is_refused(&nest, "nested more than 64 levels deep");
}

#[test]
fn an_alias_bomb_is_refused() {
    is_refused(include_str!("../../../fixtures/jobs/bad/alias-bomb.yml"), "the document has more than 50000 values");
}

#[test]
fn a_template_that_would_overflow_the_stack_is_refused() {
    // How deep is too deep is the renderer's to say: what it can still render is a `1` before the job, which is no YAML.
    for depth in [5_000, 60_000] {
        is_refused(&format!("{{{{ {}1 }}}}\n{HELLO}", "-".repeat(depth)), "error: ");
    }
    for depth in [2_500, 30_000] {
        is_refused(&format!("{{{{ {}1{} }}}}\n{HELLO}", "(".repeat(depth), ")".repeat(depth)), "error: ");
    }
}

#[test]
fn a_template_that_makes_a_string_of_a_tebibyte_is_refused() {
    is_refused(&format!("{{{{ \"%1000000000000s\"|format(1) }}}}\n{HELLO}"), "template");
}

#[test]
fn a_template_that_doubles_a_string_for_ever_is_refused() {
    let doubling = "{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}";
    is_refused(&format!("{doubling}{{{{ ns.s }}}}\n{HELLO}"), "template");
}

#[test]
fn a_template_that_never_ends_is_refused() {
    let loops = "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}{% endfor %}{% endfor %}{% endfor %}";
    is_refused(&format!("{loops}\n{HELLO}"), "the template ran too long");
}

#[test]
fn a_template_that_asks_for_files_or_code_gets_nothing() {
    is_refused(&format!("{{% include '/etc/passwd' %}}\n{HELLO}"), "template");
    let code = "{{ ''.__class__.__mro__[1].__subclasses__() }}";
    is_refused(&format!("{code}\n{HELLO}"), "template");
}

#[test]
fn a_body_beyond_the_limit_is_refused_without_being_read_whole() {
    let bench = simulated();
    let answer = bench.post("/api/v1/jobs", "application/yaml", &vec![b'#'; 20 << 20]);
    assert_eq!(answer.status, 413, "{answer:?}");
    serves_on(&bench);
}

#[test]
fn bytes_that_are_no_request_are_answered_or_hung_up_on() {
    let bench = simulated();
    for bytes in
        [&b"\x16\x03\x01\x02\x00\x01"[..], b"GET / HTTP/9.9\r\n\r\n", b"\0\0\0\0", b"POST /api/v1/jobs HTTP/1.1\r\n"]
    {
        let mut stream = TcpStream::connect(bench.address()).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(ANSWER_S_MAX))).unwrap();
        stream.read_to_end(&mut Vec::new()).expect("it does not keep us waiting");
    }
    serves_on(&bench);
}

/// What a datagram is answered with: an ERROR's code, the first block of the file, or an offer of other options.
#[derive(Debug, PartialEq)]
enum Heard {
    Error(u8),
    FirstBlock,
    Offer(&'static str),
}

fn read_request(fields: &[&[u8]]) -> Vec<u8> {
    fields.iter().fold(b"\x00\x01".to_vec(), |mut datagram, field| {
        datagram.extend_from_slice(field);
        datagram.push(0);
        datagram
    })
}

#[track_caller]
fn is_answered(server: &Loopback, datagram: &[u8], expected: &Heard) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.send_to(datagram, server.tftp()).unwrap();
    let mut answer = [0; 2048];
    let (length, from) = socket.recv_from(&mut answer).unwrap_or_else(|error| panic!("{error}: {datagram:?}"));
    let heard = match &answer[..length] {
        [0, 5, 0, code, ..] => Heard::Error(*code),
        [0, 3, 0, 1, b'a', b'h', b'o', b'y'] => {
            socket.send_to(b"\x00\x04\x00\x01", from).unwrap();
            Heard::FirstBlock
        }
        b"\x00\x06blksize\x001468\x00" => {
            socket.send_to(b"\x00\x04\x00\x00", from).unwrap();
            let (length, _) = socket.recv_from(&mut answer).unwrap();
            assert_eq!(&answer[..length], b"\x00\x03\x00\x01ahoy");
            socket.send_to(b"\x00\x04\x00\x01", from).unwrap();
            Heard::Offer("blksize 1468")
        }
        other => panic!("{other:?} is the answer to {datagram:?}"),
    };
    assert_eq!(&heard, expected, "{datagram:?}");
}

#[test]
fn each_of_the_datagrams_that_kill_a_naive_tftp_server_is_answered_and_the_next_client_is_served() {
    let server = Loopback::start();
    server.put(Protocol::Tftp, "/file", b"ahoy", Exposure::default());
    let write = [&b"\x00\x02"[..], b"file\x00octet\x00"].concat();
    let datagrams: [(&str, Vec<u8>, Heard); 8] = [
        ("a write request", write, Heard::Error(2)),
        ("one byte", vec![0], Heard::Error(4)),
        ("an acknowledgement of nothing", b"\x00\x04\x00\x07".to_vec(), Heard::Error(5)),
        ("an option that is no number", read_request(&[b"file", b"octet", b"blksize", b"many"]), Heard::FirstBlock),
        ("blocks of no bytes", read_request(&[b"file", b"octet", b"blksize", b"0"]), Heard::FirstBlock),
        (
            "blocks beyond any packet",
            read_request(&[b"file", b"octet", b"blksize", b"99999999999"]),
            Heard::Offer("blksize 1468"),
        ),
        ("a name that is not ASCII", read_request(&[b"f\xff\xfele", b"octet"]), Heard::Error(1)),
        ("no mode", read_request(&[b"file"]), Heard::Error(4)),
    ];
    for (what, datagram, expected) in &datagrams {
        println!("{what}");
        is_answered(&server, datagram, expected);
        is_answered(&server, &read_request(&[b"file", b"octet"]), &Heard::FirstBlock);
    }
}

/// A web server of one answer: each connection is answered with it, and held open.
fn web_server(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(answer);
            held.push(stream);
        }
    });
    port
}

/// A job whose kernel is at this address.
fn job_with_kernel(url: &str, timeouts: &str) -> String {
    linux_job("simulated", "x=1", &format!("overall: {{minutes: 2}}{timeouts}"), "")
        .replace("{{ images_url }}/kernel", url)
}

#[test]
fn an_artifact_that_is_not_there_ends_the_job_before_its_machine_has_power() {
    let bench = simulated();
    let port = web_server(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    let url = format!("http://127.0.0.1:{port}/no/such/kernel");
    let ended = bench.run(&job_with_kernel(&url, ""));
    ended.expect("SETUP_FAIL", "artifact").expect_summary(&format!("{url} answered 404 Not Found"));
    assert_eq!(ended.of_kind("powered_on"), Vec::<&Value>::new());
    serves_on(&bench);
}

#[test]
fn a_server_of_artifacts_that_stalls_ends_the_job_by_its_own_timeout() {
    let bench = simulated();
    let port = web_server(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nthe beginning");
    let url = format!("http://127.0.0.1:{port}/kernel");
    let ended = bench.run(&job_with_kernel(&url, ", infra_setup: {seconds: 2}"));
    ended.expect("SETUP_FAIL", "artifact");
    ended.expect_summary("timeouts.infra_setup of 2 s expired before every artifact was there");
    assert_eq!(ended.of_kind("powered_on"), Vec::<&Value>::new());
    serves_on(&bench);
}

#[test]
fn a_server_of_artifacts_that_accepts_and_says_nothing_ends_the_job_by_its_own_timeout() {
    let bench = simulated();
    let port = web_server(b"");
    let ended = bench.run(&job_with_kernel(&format!("http://127.0.0.1:{port}/kernel"), ", infra_setup: {seconds: 2}"));
    ended.expect("SETUP_FAIL", "artifact").expect_summary("timeouts.infra_setup of 2 s expired");
    serves_on(&bench);
}

#[test]
fn nobody_at_the_address_of_an_artifact_is_said_with_the_address() {
    let bench = simulated();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}/kernel");
    let ended = bench.run(&job_with_kernel(&url, ""));
    ended.expect("SETUP_FAIL", "artifact").expect_summary(&format!("cannot fetch {url}"));
    serves_on(&bench);
}

/// More than every buffer on the way to a reader holds: the kernel keeps up to 6 MiB of a connection at one end, and 4 at the other.
const TALK_BYTES: usize = 13_000_000;

/// A machine that says so much without a pause once it is told to, and a job on it.
fn talkative() -> (Bench, String, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("talk.yml");
    let line = "all work and no play makes a dull machine, ".repeat(80);
    let times = TALK_BYTES / line.len() + 1;
    let steps = format!(
        "- say: 'who will listen?'\n- expect: nobody\n- repeat: {{times: {times}, steps: [{{say: '{line}'}}]}}\n\
         - say: 'wharf: job done'\n- kernel: 'reboot: Power Down'\n- poweroff\n"
    );
    std::fs::write(&script, steps).unwrap();
    let farm = farm_of(&[("talks", &format!("console: {}", script.display())), ("simulated", "")]);
    (Bench::start(WHARF, &farm), linux_job("talks", "x=1", "overall: {minutes: 4}", ""), folder)
}

/// Has the machine talk, and waits until its job is over.
#[track_caller]
fn talks_to_its_end(bench: &Bench, job: &str) {
    let mut running = bench.follow(job, "");
    running.wait_for_console("who will listen?");
    running.type_line("nobody");
    let ended = running.wait();
    assert_eq!((ended.status.as_str(), ended.cause.as_str()), ("PASS", "test"), "{}", ended.summary);
    assert!(ended.console.len() > TALK_BYTES, "the machine said {} bytes", ended.console.len());
}

#[test]
fn a_client_that_never_reads_its_console_does_not_stop_its_job() {
    let (bench, job, _folder) = talkative();
    let part = |name: &str, kind: &str, text: &str| {
        format!(
            "--cut\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{name}\"\r\nContent-Type: {kind}\r\n\r\n{text}\r\n"
        )
    };
    let metadata = part("metadata", "application/json", "{\"version\": 1}");
    let body = metadata + &part("job", "application/x-yaml", &job) + "--cut--\r\n";
    let mut stream = TcpStream::connect(bench.address()).unwrap();
    write!(
        stream,
        "POST /api/v1/jobs HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: ci-tron-console\r\n\
         Content-Type: multipart/form-data; boundary=cut\r\nContent-Length: {}\r\n\r\n{body}",
        bench.address(),
        body.len()
    )
    .unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).unwrap();
    assert_eq!(&status, b"HTTP/1.1 101");
    // From here on it reads nothing more.
    talks_to_its_end(&bench, "1");
    serves_on(&bench);
    drop(stream);
}

#[test]
fn a_reader_of_events_that_never_reads_does_not_stop_the_job() {
    let (bench, job, _folder) = talkative();
    let id = bench.submit(&job, "").id;
    let readers: Vec<_> = ["events", "log?follow=1"]
        .iter()
        .map(|what| {
            let mut stream = TcpStream::connect(bench.address()).unwrap();
            let path = format!("/api/v1/jobs/{id}/{what}");
            write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", bench.address()).unwrap();
            stream
        })
        .collect();
    talks_to_its_end(&bench, &id);
    serves_on(&bench);
    drop(readers);
}

/// Each line that ends in a number has that mistake.
const TWENTY_MISTAKES: &str = "\
name: lab
network: {private: {address: 10.77.0.1/24}}
nmae: lab                                                                       # 1
dhcp: {range: [10.77.0.10, 10.77.0.20]}                                         # 2
listen: {api: '0.0.0.0'}                                                        # 3
duts:
  - {mac: '52:54:00:77:00:01', address: 10.77.0.11, machine: {simulated: {}}, id: a, full_name: first}
  - {mac: '52:54:00:77:00:01', address: 10.77.0.31, machine: {simulated: {}}}   # 4
  - {mac: '52:54:00:77:00:03', address: 10.77.0.11, machine: {simulated: {}}}   # 5
  - {mac: '52:54:00:77:00:04', address: 10.99.0.34, machine: {simulated: {}}}   # 6
  - {mac: '52:54:00:77:00:05', address: 10.77.0.1, machine: {simulated: {}}}    # 7
  - {mac: '52:54:00:77:00:06', address: 10.77.0.36, machine: {simulated: {}}, id: a}              # 8
  - {mac: '52:54:00:77:00:07', address: 10.77.0.37, machine: {simulated: {}}, full_name: first}   # 9
  - {mac: nonsense, address: 10.77.0.38, machine: {simulated: {}}}              # 10
  - {mac: '52:54:00:77:00:09', address: ten, machine: {simulated: {}}}          # 11
  - {mac: '52:54:00:77:00:0a', address: 10.77.0.40}                             # 12
  - {mac: '52:54:00:77:00:0b', address: 10.77.0.41, machine: {}}                # 13
  - {mac: '52:54:00:77:00:0c', address: 10.77.0.42, machine: {qemu: {firmware: coreboot}}}             # 14
  - {mac: '52:54:00:77:00:0d', address: 10.77.0.43, machine: {simulated: {console: nowhere.yml}}}      # 15
  - {mac: '52:54:00:77:00:0e', address: 10.77.0.44, machine: {simulated: {firmware: plain-arm}}}       # 16
  - {mac: '52:54:00:77:00:0f', address: 10.77.0.45, machine: {simulated: {misbehave: [{what: burn}]}}} # 17
  - {mac: '52:54:00:77:00:10', address: 10.77.0.46, machine: {simulated: {}}, speed: 9}                # 18
  - {mac: '52:54:00:77:00:11', address: 10.77.0.47, machine: {simulated: {}}, tags: [[a]]}             # 19
  - {address: 10.77.0.48, machine: {simulated: {}}}                                                    # 20
";

#[test]
fn a_farm_file_with_twenty_mistakes_is_told_all_twenty_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("farm.yml");
    std::fs::write(&file, TWENTY_MISTAKES).unwrap();
    let output = Command::new(WHARF).arg("check").arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    for (index, line) in TWENTY_MISTAKES.lines().enumerate() {
        let place = format!("farm.yml:{}:", index + 1);
        let wanted = usize::from(line.contains('#'));
        assert_eq!(told.matches(&place).count(), wanted, "line {}: {line}\n{told}", index + 1);
    }
    assert_eq!(told.matches("error: ").count(), 20, "{told}");
}

#[test]
fn who_reads_no_further_ends_no_command_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mistakes = folder.path().join("farm.yml");
    std::fs::write(&mistakes, TWENTY_MISTAKES).unwrap();
    let root = tests::workspace::root();
    let (job, farm) = (root.join("fixtures/jobs/good/hello.yml"), root.join("fixtures/farms/simulated.yml"));
    let [job, farm, mistakes] = [&job, &farm, &mistakes].map(|path| path.to_str().unwrap());
    let preview: &[&str] = &["check", job, "--farm", farm];
    for (arguments, status) in
        [(preview, 0), (&["check", farm], 0), (&["check", mistakes], 1), (&["completions", "bash"], 0)]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (output, errors) = (writer.try_clone().unwrap(), writer);
        let ended = Command::new(WHARF).args(arguments).stdout(output).stderr(errors).status().unwrap();
        assert_eq!(ended.code(), Some(status), "{arguments:?}");
    }
}

#[test]
fn a_farm_file_with_a_mistake_does_not_start_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("farm.yml");
    std::fs::write(&file, TWENTY_MISTAKES).unwrap();
    let output = Command::new(WHARF).args(["serve", "--api", "127.0.0.1:0", "--farm"]).arg(&file).output().unwrap();
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("unknown key `nmae`"), "{output:?}");
}

#[test]
fn killing_the_server_in_mid_boot_leaves_no_qemu_and_no_network_behind() {
    need_virtual_machines(WHARF);
    let _place = QEMU.pass();
    let bench = Bench::start(WHARF, VIRTUAL_FARM);
    let job = "version: 1\ntarget: {tags: ['firmware:bios']}\nconsole_patterns: {session_end: {regex: 'never'}}\n\
               deployment: {start: {kernel: {url: '{{ images_url }}/tiny', cmdline: [end=hang]}}}\n";
    let mut running = bench.submit(job, "");
    running.wait_for_kind("firmware_booted");
    let two = || Some(()).filter(|()| bench.processes().len() == 2);
    until(Duration::from_secs(30), two)
        .unwrap_or_else(|| panic!("not the server and one QEMU: {:?}", bench.processes()));
    drop(running);
    bench.kill();
}
