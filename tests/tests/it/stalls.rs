//! A machine that stops in the middle of its boot is noticed though its console is mute, and the verdict says what it had fetched.
//!
//! ```text
//!  a network namespace: the server ── bridge ── cable ── another: the machine, by hand: it asks, reads a little, and stops
//! ```

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use crate::boots::serve_file_at;
use crate::limits::Scene;
use crate::picked_up::{GATEWAY, PATIENCE};

/// More than a socket takes from us ahead of a machine that reads nothing.
const KERNEL_BYTES: usize = 8 * 1024 * 1024;

const JOB: &str = "version: 1
target: {tags: []}
timeouts: {overall: {minutes: 4}, boot_progress: {seconds: 6}}
console_patterns: {session_end: {regex: '^the end$'}}
deployment:
  start:
    kernel: {url: 'KERNEL', cmdline: [quiet]}
    initramfs: {data: 'never asked for'}
    storage: {tftp: [{path: /loader, data: of the firmware}]}
";

#[test]
fn a_machine_that_stalls_in_a_transfer_is_told_with_what_it_fetched_last_and_what_never() {
    let Some(scene) = Scene::new() else { return };
    let bench = scene.place.start();
    let site = scene.place.lab.inside(|| TcpListener::bind("127.0.0.1:0")).unwrap();
    let mut job = bench.submit(&JOB.replace("KERNEL", &serve_file_at(site, vec![b'k'; KERNEL_BYTES])), "");
    let mut console = scene.place.opened();
    job.wait_for_kind("powered_on");
    assert_eq!(scene.tftp("loader"), "of the firmware");
    console.write_all(b"a loader that says a line\n").unwrap();
    let mut stalled = scene.dut.inside(|| TcpStream::connect((GATEWAY, 80))).unwrap();
    stalled.set_read_timeout(Some(PATIENCE)).unwrap();
    // A receive buffer that holds a few packets, so that the server cannot send all of it ahead.
    socket2::SockRef::from(&stalled).set_recv_buffer_size(4096).unwrap();
    stalled.write_all(b"GET /_/job/kernel HTTP/1.1\r\nHost: farm\r\n\r\n").unwrap();
    stalled.read_exact(&mut [0; 512]).unwrap();
    let ended = job.wait();
    ended
        .expect("INCOMPLETE", "timeout")
        .expect_summary("timeouts.boot_progress of 6 s expired; fetched last: HTTP /_/job/kernel, ");
    ended.expect_summary("; never fetched whole: ");
    ended.expect_summary("initramfs");
    ended.expect_in_order(&[
        "TFTP /loader: 15 bytes, complete",
        "timeouts.boot_progress of 6 s expired",
        "published, and never read: ",
    ]);
    drop(stalled);
}
