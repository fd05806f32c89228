//! The disks of a job: made, named in its templates, proven, attached by their DUT and nobody else, gone when it is off.

use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use nbd::client::{NbdClient, handshake};
use socket2::{Domain, Socket, Type};
use tests::bench::{Bench, Job, until};

use crate::farms::{WHARF, linux_job};

/// Two simulated machines over the loopback: a test can speak from the address of either.
const FARM: &str = "name: here\nnetwork: {loopback: {}}\nduts:\n  \
    - {base_name: one, mac: '52:54:00:80:00:01', address: 127.80.0.1, tags: [one], machine: {simulated: {}}}\n  \
    - {base_name: two, mac: '52:54:00:80:00:02', address: 127.80.0.2, tags: [two], machine: {simulated: {}}}\n";
const ONE: [u8; 4] = [127, 80, 0, 1];
const TWO: [u8; 4] = [127, 80, 0, 2];

/// A job that says where its disk is, and runs until it is cancelled.
fn job(tag: &str, disks: &str) -> String {
    let words = "disk={{ job.nbd.scratch.url }} wharf.end=hang";
    linux_job(tag, words, "overall: {minutes: 5}", &format!("    storage:\n      nbd:\n{disks}"))
}

const SCRATCH: &str = "        - {name: scratch, size: 1M}\n        - {name: pristine, size: 64K, readonly: true}\n";

/// Where the job's own templates say that its disk is.
fn disk_address(bench: &Bench, running: &mut Job) -> SocketAddr {
    running.wait_for_console("wharf.end=hang");
    let console = bench.get(&format!("/api/v1/jobs/{}/log", running.id)).text();
    let url = console.split("disk=nbd://").nth(1).expect("the command line names the disk");
    let (address, name) = url.split_whitespace().next().unwrap().split_once('/').unwrap();
    assert_eq!(name, "scratch");
    address.parse().unwrap()
}

fn connect(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(IpAddr::from(from), 0).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

#[test]
fn a_dut_writes_to_its_own_disk_and_loses_it_with_its_power() {
    let bench = Bench::start(WHARF, FARM);
    let mut running = bench.submit(&job("one", SCRATCH), "");
    let address = disk_address(&bench, &mut running);
    let mut stream = connect(ONE, address);
    let export = handshake(&mut stream, b"scratch").unwrap();
    assert_eq!(export.size, 1 << 20);
    let mut disk = NbdClient::new(&mut stream, &export);
    disk.seek(SeekFrom::Start(4000)).unwrap();
    disk.write_all(&[7; 200]).unwrap();
    disk.seek(SeekFrom::Start(3999)).unwrap();
    let mut read = [1; 202];
    disk.read_exact(&mut read).unwrap();
    assert_eq!((read[0], read[1], read[200], read[201]), (0, 7, 7, 0));
    let mut other = connect(ONE, address);
    let pristine = handshake(&mut other, b"pristine").unwrap();
    assert!(NbdClient::new(&mut other, &pristine).write_all(&[1; 512]).is_err(), "it is read-only");
    drop(other);
    running.wait_for("the end of an attachment", |event| {
        event["event"] == "access" && event["text"].as_str().is_some_and(|text| text.starts_with("NBD pristine"))
    });
    running.cancel();
    let closed = || match stream.read(&mut [0; 1]) {
        Ok(0) => Some(()),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Some(()),
        _ => None,
    };
    until(Duration::from_secs(10), closed).expect("a DUT that is off is attached to nothing");
    running.wait().expect("INCOMPLETE", "cancelled").expect_in_order(&["NBD pristine"]);
}

#[test]
fn no_dut_attaches_the_disk_of_another_and_a_job_begins_with_an_empty_one() {
    let bench = Bench::start(WHARF, FARM);
    let mut first = bench.submit(&job("one", SCRATCH), "");
    let mut second = bench.submit(&job("two", "        - {name: scratch, size: 2M}\n"), "");
    let address = disk_address(&bench, &mut first);
    disk_address(&bench, &mut second);
    assert!(handshake(&mut connect(TWO, address), b"pristine").is_err(), "it is the other's");
    assert!(handshake(&mut connect([127, 80, 0, 3], address), b"scratch").is_err(), "nobody's address");
    let mut stream = connect(TWO, address);
    let export = handshake(&mut stream, b"scratch").unwrap();
    assert_eq!(export.size, 2 << 20, "its own, under the same name");
    NbdClient::new(&mut stream, &export).write_all(&[9; 4096]).unwrap();
    second.cancel();
    second.wait().expect("INCOMPLETE", "cancelled");
    let mut again = bench.submit(&job("two", "        - {name: scratch, size: 2M}\n"), "");
    disk_address(&bench, &mut again);
    let mut stream = connect(TWO, address);
    let export = handshake(&mut stream, b"scratch").unwrap();
    let mut read = [1; 4096];
    NbdClient::new(&mut stream, &export).read_exact(&mut read).unwrap();
    assert_eq!(read, [0; 4096]);
    for job in [first, again] {
        job.cancel();
        job.wait().expect("INCOMPLETE", "cancelled");
    }
}

#[test]
fn a_disk_begins_anew_at_each_boot_where_the_job_says_so_and_keeps_its_writes_elsewhere() {
    let bench = Bench::start(WHARF, FARM);
    let disks = "        - {name: scratch, size: 1M}\n        - {name: fresh, size: 1M, reset_on: boot}\n";
    let silent = "overall: {minutes: 5}, console_activity: {seconds: 8, retries: 1}";
    let mut running = bench.submit(&job("one", disks).replace("overall: {minutes: 5}", silent), "");
    let address = disk_address(&bench, &mut running);
    for name in [b"scratch".as_slice(), b"fresh"] {
        let mut stream = connect(ONE, address);
        let export = handshake(&mut stream, name).unwrap();
        NbdClient::new(&mut stream, &export).write_all(&[5; 4096]).unwrap();
    }
    running.wait_for("the second boot", |event| event["event"] == "powered_on" && event["boot"] == 2);
    let first_byte = |name: &[u8]| {
        let mut stream = connect(ONE, address);
        let export = handshake(&mut stream, name).unwrap();
        let mut read = [1; 4096];
        NbdClient::new(&mut stream, &export).read_exact(&mut read).unwrap();
        read[0]
    };
    assert_eq!((first_byte(b"scratch"), first_byte(b"fresh")), (5, 0));
    running.cancel();
    running.wait().expect("INCOMPLETE", "cancelled");
}

#[test]
fn what_cannot_be_a_disk_ends_its_job_with_the_reason_or_is_refused() {
    let bench = Bench::start(WHARF, FARM);
    let missing = "        - {name: scratch, url: '{{ images_url }}/nothing'}\n";
    bench.run(&job("one", missing)).expect("SETUP_FAIL", "artifact").expect_summary("cannot make the disk `scratch`");
    let never = "        - {name: scratch, size: 1M, reset_on: never}\n";
    let refused = bench.refused(&job("one", never), "");
    assert!(refused.status == 400 && refused.text().contains("`reset_on: never`"), "{refused:?}");
}
