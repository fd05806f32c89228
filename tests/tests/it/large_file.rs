//! A file of 5 GiB over HTTP: ranges at both ends and across the end of 32-bit numbers, and a server whose memory does not grow.
//!
//! All 5 GiB are read with `WHARF_WHOLE_FILE=1 cargo test -p executor --test it large_file -- --nocapture`; that takes ten seconds to
//! half a minute.
//!
//! ```text
//!  test ── runs itself again, alone in a process ──► server and reader in 1 MiB ──► how much memory the process ever had
//! ```

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

use gateway::namespace::Exposure;
use tests::bench::need_programs;

use crate::loopback::Loopback;

const SIZE: u64 = 5 << 30;
const MARK: &[u8] = b"a mark";
/// At both ends, and across the end of what 32 bits can count. All else is a hole, which reads as zeroes.
const MARKS: [u64; 3] = [0, (4 << 30) - 3, SIZE - 6];
/// Set in the process that does the work.
const ALONE: &str = "WHARF_TEST_ALONE";
/// Set by who wants all of it to be read.
const WHOLE: &str = "WHARF_WHOLE_FILE";
/// What all of it may add to what the first range took: three buffers of 256 KiB for a connection, the reader's own 2 MiB, and for the rest
/// what an allocator keeps. A server that held a hundredth of the file would be over it.
const GROWTH_KIB_MAX: u64 = 16 * 1024;

#[test]
fn a_file_of_five_gibibytes_comes_in_ranges_and_takes_no_memory() {
    need_programs(&[("curl", "curl")]);
    if std::env::var_os(ALONE).is_some() {
        return read_all();
    }
    let name = "large_file::a_file_of_five_gibibytes_comes_in_ranges_and_takes_no_memory";
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args([name, "--exact", "--nocapture"]).env(ALONE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains(" MiB in "), "{said}");
    print!("{said}");
}

fn read_all() {
    let server = Loopback::start();
    let path = server.fresh("large");
    let file = File::create(&path).unwrap();
    file.set_len(SIZE).unwrap();
    for offset in MARKS {
        file.write_all_at(MARK, offset).unwrap();
    }
    server.put_file("/large", &path, Exposure::default());
    assert_eq!(range(&server, "0-7"), b"a mark\0\0");
    let before = peak_kib();
    assert_eq!(range(&server, "4294967292-4294967299"), b"\0a mark\0");
    assert_eq!(range(&server, "5368709112-"), b"\0\0a mark");
    assert_eq!(range(&server, "-8"), b"\0\0a mark");
    let start = Instant::now();
    let (first, end) = match std::env::var_os(WHOLE) {
        Some(_) => (0, SIZE),
        None => ((4 << 30) - (32 << 20), (4 << 30) + (32 << 20)),
    };
    read_on(&server, first, end);
    let (grown, seconds) = (peak_kib() - before, start.elapsed().as_secs_f64());
    println!("{} MiB in {seconds:.1} s, and {grown} KiB more than the {before} KiB before", (end - first) >> 20);
    assert!(grown < GROWTH_KIB_MAX, "{grown} KiB more than the {before} KiB before");
}

fn range(server: &Loopback, range: &str) -> Vec<u8> {
    let url = format!("http://{}/large", server.http());
    let output = server.command("curl").args(["--silent", "--show-error", "--fail", "--range", range, &url]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// Reads from `first` up to `end`, and wants what the file has there.
fn read_on(server: &Loopback, first: u64, end: u64) {
    let stream = TcpStream::connect(server.http()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let last = end - 1;
    let head = "GET /large HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\nRange: bytes=";
    (&stream).write_all(format!("{head}{first}-{last}\r\n\r\n").as_bytes()).unwrap();
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(stream.read_line(&mut head).unwrap() > 0, "only {head}");
    }
    let told = format!("content-range: bytes {first}-{last}/5368709120\r\n");
    assert!(head.starts_with("HTTP/1.1 206 ") && head.to_lowercase().contains(&told), "{head}");
    let (mut offset, mut part, mut expected) = (first, vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let length = stream.read(&mut part).unwrap();
        if length == 0 {
            break;
        }
        expect(offset, &mut expected[..length]);
        assert!(part[..length] == expected[..length], "other bytes behind {offset}");
        offset += length as u64;
    }
    assert_eq!(offset, end);
}

/// What the file has from `offset` on.
fn expect(offset: u64, bytes: &mut [u8]) {
    bytes.fill(0);
    for mark in MARKS {
        for (place, byte) in (mark..).zip(MARK) {
            let inside = place.checked_sub(offset).and_then(|place| bytes.get_mut(place as usize));
            inside.into_iter().for_each(|inside| *inside = *byte);
        }
    }
}

/// The most memory that this process had at any time.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
