//! curl reads from our HTTP server as firmware and systems do: whole, in part, resumed, by halves, and what it may not read.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use gateway::namespace::{AccessEvent, Exposure, Outcome, Protocol};
use tests::bad_link::Faults;
use tests::bench::{need_programs, until};

use crate::loopback::{LARGE_BYTES, Loopback, pattern};

/// A server with `/file` of this many bytes.
fn server(size: usize) -> Loopback {
    need_programs(&[("curl", "curl")]);
    let server = Loopback::start();
    server.put(Protocol::Http, "/file", &pattern(size), Exposure::default());
    server
}

fn curl(server: &Loopback, name: &str, arguments: &[&str]) -> Output {
    let mut command = server.command("curl");
    command.args(["--silent", "--show-error", "--max-time", "60"]).args(arguments);
    command.arg(format!("http://{}{name}", server.http())).output().unwrap()
}

/// Reads the first bytes into the file, and leaves.
fn begin(server: &Loopback, name: &str, bytes: usize, file: &Path) {
    let url = format!("http://{}{name}", server.http());
    let script = format!("curl --silent --max-time 60 {url} | head --bytes={bytes} > {}", file.display());
    server.command("sh").args(["-c", &script]).status().unwrap();
    assert_eq!(std::fs::metadata(file).unwrap().len(), bytes as u64, "{script}");
}

/// Goes on behind what the file has.
fn resume(server: &Loopback, name: &str, file: &Path) -> String {
    let path = file.display().to_string();
    let output = curl(server, name, &["--continue-at", "-", "--output", &path, "--write-out", "%{http_code}"]);
    String::from_utf8(output.stdout).unwrap()
}

fn opened(server: &Loopback) -> usize {
    server.events().iter().filter(|event| matches!(event, AccessEvent::Opened { .. })).count()
}

/// Status code and body.
fn get(server: &Loopback, name: &str, arguments: &[&str]) -> (String, Vec<u8>) {
    let file = server.fresh("body");
    let path = file.display().to_string();
    let more: Vec<_> = ["--output", &path, "--write-out", "%{http_code}"].iter().chain(arguments).copied().collect();
    let output = curl(server, name, &more);
    assert!(output.status.success(), "{output:?}");
    (String::from_utf8(output.stdout).unwrap(), std::fs::read(file).unwrap_or_default())
}

fn header(server: &Loopback, name: &str, wanted: &str) -> Option<String> {
    let head = String::from_utf8(curl(server, name, &["--head"]).stdout).unwrap();
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.to_owned())
}

#[test]
fn files_of_every_size_come_whole() {
    need_programs(&[("curl", "curl")]);
    let server = Loopback::start();
    for size in [0, 1, 4096, 262_143, 262_144, 262_145, LARGE_BYTES] {
        server.put(Protocol::Http, &format!("/{size}"), &pattern(size), Exposure::default());
        let (status, body) = get(&server, &format!("/{size}"), &[]);
        assert_eq!(status, "200");
        assert!(body == pattern(size), "{size}: {} bytes came, or others", body.len());
    }
}

#[test]
fn head_tells_the_length_and_is_no_access() {
    let server = server(1000);
    assert_eq!(header(&server, "/file", "content-length").as_deref(), Some("1000"));
    assert_eq!(header(&server, "/file", "accept-ranges").as_deref(), Some("bytes"));
    assert_eq!(server.events(), []);
}

#[test]
fn a_range_is_a_part() {
    let server = server(100_000);
    let whole = pattern(100_000);
    for (range, from, to) in
        [("0-9", 0, 10), ("99990-", 99_990, 100_000), ("-10", 99_990, 100_000), ("500-70000", 500, 70_001)]
    {
        let (status, body) = get(&server, "/file", &["--range", range]);
        assert_eq!(status, "206", "{range}");
        assert!(body == whole[from..to], "{range}: {} bytes came, or others", body.len());
    }
    assert_eq!(get(&server, "/file", &["--range", "100000-"]).0, "416");
}

#[test]
fn a_download_that_broke_is_resumed_and_is_one_access() {
    let server = server(LARGE_BYTES);
    let file = server.fresh("resumed");
    begin(&server, "/file", 400_000, &file);
    assert_eq!(resume(&server, "/file", &file), "206");
    assert!(std::fs::read(&file).unwrap() == pattern(LARGE_BYTES), "the file is whole and right");
    assert_eq!(opened(&server), 1, "a resumed range belongs to the same access: {:?}", server.events());
}

#[test]
fn a_link_that_loses_and_delays_changes_no_byte() {
    need_programs(&[("curl", "curl")]);
    let Some(server) = Loopback::across(Faults::ISSUED) else { return };
    let whole = pattern(4_000_000);
    server.put(Protocol::Http, "/file", &whole, Exposure::default());
    let (status, body) = get(&server, "/file", &[]);
    assert!(status == "200" && body == whole, "{status}, {} bytes", body.len());
    let (status, body) = get(&server, "/file", &["--range", "1999999-2999999"]);
    assert!(status == "206" && body == whole[1_999_999..3_000_000], "{status}, {} bytes", body.len());
    let file = server.fresh("resumed");
    begin(&server, "/file", 1_000_000, &file);
    assert_eq!(resume(&server, "/file", &file), "206");
    assert!(std::fs::read(&file).unwrap() == whole, "the file is whole and right");
    let link = server.link().expect("this server has one");
    assert!(link.lost() > 8, "9 MB are 6000 frames and more: {link:?}");
}

#[test]
fn if_range_with_the_tag_resumes_and_with_another_tag_starts_over() {
    let server = server(10_000);
    let tag = header(&server, "/file", "etag").expect("a file has a tag");
    let resume = |tag: &str| get(&server, "/file", &["--range", "9000-", "--header", &format!("If-Range: {tag}")]);
    let (status, body) = resume(&tag);
    assert_eq!((status.as_str(), body.len()), ("206", 1000));
    let (status, body) = resume("\"another\"");
    assert_eq!((status.as_str(), body.len()), ("200", 10_000));
}

#[test]
fn what_has_not_changed_is_not_sent_again() {
    let server = server(10_000);
    let tag = header(&server, "/file", "etag").expect("a file has a tag");
    let (status, body) = get(&server, "/file", &["--header", &format!("If-None-Match: {tag}")]);
    assert_eq!((status.as_str(), body.len()), ("304", 0));
}

#[test]
fn what_is_not_there_is_404_with_a_sentence_that_says_so() {
    let server = server(1);
    let (status, body) = get(&server, "/missing", &[]);
    assert_eq!(
        (status.as_str(), String::from_utf8(body).unwrap().as_str()),
        ("404", "the job publishes no such name\n")
    );
    for path in ["/../file", "/%2e%2e/file", "/_/../file"] {
        let (status, _) = get(&server, path, &["--path-as-is"]);
        assert!(status == "400" || status == "404", "{path}: {status}");
    }
}

#[test]
fn the_second_read_of_a_file_that_may_be_read_once_is_410() {
    let server = server(1);
    let once = Exposure { access_count: Some(1), ..Exposure::default() };
    server.put(Protocol::Http, "/once", b"secret", once);
    assert_eq!(get(&server, "/once", &[]), ("200".to_owned(), b"secret".to_vec()));
    let (status, body) = get(&server, "/once", &[]);
    let sentence = "already read 1 times in this boot (lifetime.access_count)\n";
    assert_eq!((status.as_str(), String::from_utf8(body).unwrap().as_str()), ("410", sentence));
}

#[test]
fn a_caller_with_another_address_gets_nothing() {
    let server = server(1);
    let (status, body) = get(&server, "/file", &["--interface", "127.0.0.2"]);
    let sentence = "no leased DUT has this address\n";
    assert_eq!((status.as_str(), String::from_utf8(body).unwrap().as_str()), ("404", sentence));
    let forged =
        ["--interface", "127.0.0.2", "--header", "X-Forwarded-For: 127.0.0.1", "--header", "Forwarded: for=127.0.0.1"];
    assert_eq!(get(&server, "/file", &forged).0, "404");
}

#[test]
fn a_dut_that_writes_is_refused() {
    let server = server(1);
    assert_eq!(get(&server, "/file", &["--data", "mine"]).0, "405");
    assert_eq!(get(&server, "/file", &["--request", "DELETE"]).0, "405");
}

#[test]
fn a_client_that_leaves_in_the_middle_is_an_aborted_access_and_the_next_one_is_served() {
    let server = server(LARGE_BYTES);
    let output = curl(&server, "/file", &["--limit-rate", "1M", "--max-time", "1", "--output", "/dev/null"]);
    assert_eq!(output.status.code(), Some(28), "curl's own time limit: {output:?}");
    let aborted = || {
        let events = server.events();
        events.into_iter().find(|event| matches!(event, AccessEvent::Ended { outcome: Outcome::Aborted(_), .. }))
    };
    until(Duration::from_secs(20), aborted).unwrap_or_else(|| panic!("not told: {:?}", server.events()));
    assert_eq!(get(&server, "/file", &["--range", "0-0"]), ("206".to_owned(), pattern(1)));
}
