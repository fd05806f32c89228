//! Other people's TFTP clients read every kind of file from us to the last byte: curl, tftp-hpa, atftp, busybox.

use std::path::Path;
use std::process::{Command, Output};

use gateway::namespace::{AccessEvent, Exposure, Outcome, Protocol};
use gateway::tftp::Engine;
use tests::bad_link::Faults;
use tests::bench::need_programs;

use crate::loopback::{LARGE_BYTES, Loopback, pattern};

/// A client: makes the command that fetches `/name` from the server into the file.
type Fetch = fn(&Loopback, &str, &Path) -> Command;

/// Around the ends of blocks of 512, 1428 and 1468 bytes, empty, and with more than 65535 blocks.
const SIZES: &[usize] = &[0, 1, 511, 512, 513, 1024, 1428, 1468, 1469, 65536, LARGE_BYTES];

fn curl(server: &Loopback, name: &str, file: &Path) -> Command {
    let mut command = server.command("curl");
    command.args(["--silent", "--show-error", "--max-time", "120", "--output"]).arg(file);
    command.arg(format!("tftp://{}/{name}", server.tftp()));
    command
}

fn curl_without_options(server: &Loopback, name: &str, file: &Path) -> Command {
    let mut command = curl(server, name, file);
    command.arg("--tftp-no-options");
    command
}

fn curl_with_large_blocks(server: &Loopback, name: &str, file: &Path) -> Command {
    let mut command = curl(server, name, file);
    command.args(["--tftp-blksize", "1468"]);
    command
}

fn tftp_hpa(server: &Loopback, name: &str, file: &Path) -> Command {
    let mut command = server.command("tftp");
    let (host, port) = (server.tftp().ip().to_string(), server.tftp().port().to_string());
    command.args(["-m", "octet", &host, &port, "-c", "get", name]).arg(file);
    command
}

fn atftp(server: &Loopback, name: &str, file: &Path) -> Command {
    let mut command = server.command("atftp");
    command.args(["--get", "--remote-file", name, "--local-file"]).arg(file);
    command.args([server.tftp().ip().to_string(), server.tftp().port().to_string()]);
    command
}

fn atftp_with_options(server: &Loopback, name: &str, file: &Path) -> Command {
    let mut command = atftp(server, name, file);
    command.args(["--option", "blksize 1428", "--option", "tsize 0", "--option", "timeout 3"]);
    command.args(["--option", "windowsize 16"]);
    command
}

fn busybox(server: &Loopback, name: &str, file: &Path) -> Command {
    let mut command = server.command("busybox");
    command.args(["tftp", "-g", "-r", name, "-l"]).arg(file);
    command.args([server.tftp().ip().to_string(), server.tftp().port().to_string()]);
    command
}

fn busybox_with_large_blocks(server: &Loopback, name: &str, file: &Path) -> Command {
    let mut command = busybox(server, name, file);
    command.args(["-b", "1428"]);
    command
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Fetches a file of so many bytes, and wants the very bytes.
#[track_caller]
fn fetches(server: &Loopback, fetch: Fetch, size: usize, name: &str) {
    let file = server.fresh(name);
    let output = run(&mut fetch(server, name, &file));
    assert!(output.status.success(), "{name}: {output:?}");
    // A client may make no file of nothing.
    let got = std::fs::read(&file).unwrap_or_default();
    assert!(got == pattern(size), "{name}: {} bytes came, or others: {output:?}", got.len());
}

/// Fetches a file of each size, and wants the very bytes and one complete access for each.
#[track_caller]
fn fetches_every_size(fetch: Fetch) {
    let server = Loopback::start();
    for size in SIZES {
        server.put(Protocol::Tftp, &format!("/file-{size}"), &pattern(*size), Exposure::default());
    }
    for (index, size) in SIZES.iter().enumerate() {
        fetches(&server, fetch, *size, &format!("file-{size}"));
        let events = server.events_of(2 * (index + 1));
        let AccessEvent::Ended { bytes, outcome, .. } = &events[2 * index + 1] else { panic!("{events:?}") };
        assert_eq!((*bytes, outcome), (*size as u64, &Outcome::Complete), "one access for one file: {events:?}");
    }
}

/// Asks for a name that is not there, and wants the server's sentence from the client.
#[track_caller]
fn is_told_what_is_missing(fetch: Fetch, words: &str) {
    let server = Loopback::start();
    let output = run(&mut fetch(&server, "missing", &server.fresh("missing")));
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(words), "no `{words}`: {output:?}");
    let events = server.events_of(1);
    assert!(matches!(&events[..], [AccessEvent::Refused { name, .. }] if name == "/missing"), "{events:?}");
}

#[test]
fn curl_reads_every_size() {
    need_programs(&[("curl", "curl")]);
    fetches_every_size(curl);
    // CURLE_TFTP_NOTFOUND.
    is_told_what_is_missing(curl, "curl: (68)");
}

#[test]
fn curl_without_options_reads_every_size() {
    need_programs(&[("curl", "curl")]);
    fetches_every_size(curl_without_options);
}

#[test]
fn curl_with_large_blocks_reads_every_size() {
    need_programs(&[("curl", "curl")]);
    fetches_every_size(curl_with_large_blocks);
}

#[test]
fn tftp_hpa_reads_every_size() {
    need_programs(&[("tftp", "tftp-hpa")]);
    fetches_every_size(tftp_hpa);
    is_told_what_is_missing(tftp_hpa, "Error code 1: ");
}

#[test]
fn atftp_reads_every_size() {
    need_programs(&[("atftp", "atftp")]);
    fetches_every_size(atftp);
    is_told_what_is_missing(atftp, "tftp: error received from server");
}

#[test]
fn atftp_with_windows_reads_every_size() {
    need_programs(&[("atftp", "atftp")]);
    fetches_every_size(atftp_with_options);
}

#[test]
fn busybox_reads_every_size() {
    need_programs(&[("busybox", "busybox")]);
    fetches_every_size(busybox);
    is_told_what_is_missing(busybox, "server error: (1)");
}

#[test]
fn busybox_with_large_blocks_reads_every_size() {
    need_programs(&[("busybox", "busybox")]);
    fetches_every_size(busybox_with_large_blocks);
}

/// Each of them loses several frames of its own: 0.5 % of its blocks and acknowledgements.
#[test]
fn every_client_reads_over_a_link_that_loses_and_delays() {
    need_programs(&[("curl", "curl"), ("tftp", "tftp-hpa"), ("atftp", "atftp"), ("busybox", "busybox")]);
    // 600 blocks in lock-step, and about as many round trips of 10 ms in windows.
    const CLIENTS: &[(&str, Fetch, usize)] = &[
        ("curl", curl, 300_000),
        ("curl-without-options", curl_without_options, 300_000),
        ("curl-with-large-blocks", curl_with_large_blocks, 800_000),
        ("tftp-hpa", tftp_hpa, 300_000),
        ("atftp", atftp, 300_000),
        ("atftp-with-windows", atftp_with_options, 8_000_000),
        ("busybox", busybox, 300_000),
        ("busybox-with-large-blocks", busybox_with_large_blocks, 800_000),
    ];
    let Some(server) = Loopback::across(Faults::ISSUED) else { return };
    for (name, _, size) in CLIENTS {
        server.put(Protocol::Tftp, &format!("/{name}"), &pattern(*size), Exposure::default());
    }
    std::thread::scope(|scope| {
        for (name, fetch, size) in CLIENTS {
            scope.spawn(|| fetches(&server, *fetch, *size, name));
        }
    });
    let link = server.link().expect("this server has one");
    assert!(link.lost() > 8, "each client was to lose something: {link:?}");
}

/// The large file goes by windows only: in lock-step the crate takes twice our time.
#[test]
fn every_client_reads_from_the_crates_engine() {
    need_programs(&[("curl", "curl"), ("tftp", "tftp-hpa"), ("atftp", "atftp"), ("busybox", "busybox")]);
    const CLIENTS: &[(&str, Fetch, &[usize])] = &[
        ("curl", curl, &[0, 1, 512, 65536]),
        ("curl-with-large-blocks", curl_with_large_blocks, &[1468, 1_000_000]),
        ("tftp-hpa", tftp_hpa, &[0, 1, 512, 65536]),
        ("atftp", atftp, &[1, 512, 65536]),
        ("atftp-with-windows", atftp_with_options, &[1428, LARGE_BYTES]),
        ("busybox", busybox, &[0, 1, 512, 65536]),
    ];
    let server = Loopback::start_with(Engine::AsyncTftp);
    for (client, fetch, sizes) in CLIENTS {
        for size in *sizes {
            let name = format!("{client}-{size}");
            server.put(Protocol::Tftp, &format!("/{name}"), &pattern(*size), Exposure::default());
            fetches(&server, *fetch, *size, &name);
        }
    }
    let output = run(&mut curl(&server, "missing", &server.fresh("missing")));
    assert_eq!(output.status.code(), Some(68), "CURLE_TFTP_NOTFOUND: {output:?}");
}

#[test]
fn a_client_that_writes_is_refused() {
    need_programs(&[("curl", "curl")]);
    let server = Loopback::start();
    let file = server.fresh("upload");
    std::fs::write(&file, "mine").unwrap();
    let target = format!("tftp://{}/upload", server.tftp());
    let output = run(Command::new("curl").args(["--silent", "--show-error", "--upload-file"]).arg(&file).arg(target));
    assert_eq!(output.status.code(), Some(69), "CURLE_TFTP_PERM: {output:?}");
}

#[test]
fn the_third_read_of_a_file_that_may_be_read_twice_is_refused() {
    need_programs(&[("curl", "curl")]);
    let server = Loopback::start();
    let twice = Exposure { access_count: Some(2), ..Exposure::default() };
    server.put(Protocol::Tftp, "/secret", b"once or twice", twice);
    let codes: Vec<_> =
        (0..3).map(|_| run(&mut curl(&server, "secret", &server.fresh("secret"))).status.code()).collect();
    assert_eq!(codes, [Some(0), Some(0), Some(69)], "{:?}", server.events());
}
