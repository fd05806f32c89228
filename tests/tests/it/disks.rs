//! The disks of a job: made, named in its templates, proven, attached by their DUT and nobody else, gone when it is off.

use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use gateway::content::Content;
use gateway::content::disk::{Base, Config, Disk, Mode};
use gateway::namespace::Exposure;
use nbd::client::{NbdClient, handshake};
use socket2::{Domain, Socket, Type};
use tests::bench::{Bench, Job, need_programs, until};

use crate::farms::{WHARF, linux_job};
use crate::loopback::{Loopback, pattern};

/// Two simulated machines over the loopback: a test can speak from the address of either.
pub(crate) const FARM: &str = "name: here\nnetwork: {loopback: {}}\nduts:\n  \
    - {base_name: one, mac: '52:54:00:80:00:01', address: 127.80.0.1, tags: [one], machine: {simulated: {}}}\n  \
    - {base_name: two, mac: '52:54:00:80:00:02', address: 127.80.0.2, tags: [two], machine: {simulated: {}}}\n";
pub(crate) const ONE: [u8; 4] = [127, 80, 0, 1];
const TWO: [u8; 4] = [127, 80, 0, 2];

/// A job that says where its disk is, and runs until it is cancelled.
pub(crate) fn job(tag: &str, disks: &str) -> String {
    let words = "disk={{ job.nbd.scratch.url }} wharf.end=hang";
    linux_job(tag, words, "overall: {minutes: 5}", &format!("    storage:\n      nbd:\n{disks}"))
}

const SCRATCH: &str = "        - {name: scratch, size: 1M}\n        - {name: pristine, size: 64K, readonly: true}\n";

/// Where the job's own templates say that its disk is.
pub(crate) fn disk_address(bench: &Bench, running: &mut Job) -> SocketAddr {
    running.wait_for_console("wharf.end=hang");
    let console = bench.get(&format!("/api/v1/jobs/{}/log", running.id)).text();
    let url = console.split("disk=nbd://").nth(1).expect("the command line names the disk");
    let (address, name) = url.split_whitespace().next().unwrap().split_once('/').unwrap();
    assert_eq!(name, "scratch");
    address.parse().unwrap()
}

pub(crate) fn connect(from: [u8; 4], to: SocketAddr) -> TcpStream {
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

/// 12 MiB: the middle third is a hole, the last third is text, which is compressed.
fn raw_image(server: &Loopback) -> PathBuf {
    const THIRD: u64 = 4 << 20;
    let path = server.fresh("raw");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(3 * THIRD).unwrap();
    file.write_all_at(&pattern(THIRD as usize), 0).unwrap();
    let text: String = (0..THIRD / 16).map(|line| format!("line {line:10}\n")).collect();
    file.write_all_at(text.as_bytes(), 2 * THIRD).unwrap();
    path
}

#[track_caller]
fn qemu_img(words: &str, files: &[&Path]) {
    let mut command = Command::new("qemu-img");
    let output = command.args(words.split_whitespace()).args(files).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

#[test]
fn qcow2_images_of_every_kind_read_as_what_they_were_made_of() {
    need_programs(&[("qemu-img", "qemu-utils")]);
    let server = Loopback::start();
    let raw = raw_image(&server);
    let kinds = [
        ("plain", ""),
        ("old", "-o compat=0.10"),
        ("zlib", "-c"),
        ("zstd", "-c -o compression_type=zstd"),
        ("small", "-c -o cluster_size=512"),
        ("large", "-c -o cluster_size=2M,compression_type=zstd"),
    ];
    for (name, options) in kinds {
        let image = server.fresh(name);
        qemu_img(&format!("convert -f raw -O qcow2 {options}"), &[&raw, &image]);
        if name == "plain" {
            // What an image remembers of before is not what it shows.
            qemu_img("snapshot -c before", &[&image]);
            qemu_img("bench -f qcow2 -w -c 1 -s 4096 --pattern 0", &[&image]);
            qemu_img("snapshot -a before", &[&image]);
        }
        server.put_disk(name, Base::Image(Content::File(image)), Mode::CopyOnWrite, Exposure::default());
        qemu_img("compare -f raw -F raw", &[&raw, Path::new(&server.nbd_url(name))]);
    }
}

#[test]
fn a_qcow2_image_that_needs_another_file_is_refused_with_the_next_step() {
    need_programs(&[("qemu-img", "qemu-utils")]);
    let server = Loopback::start();
    let raw = raw_image(&server);
    let refusal = |image: PathBuf| {
        let directory = server.fresh("layers");
        let config =
            Config { base: Base::Image(Content::File(image)), mode: Mode::CopyOnWrite, directory, attachments_max: 1 };
        server.block_on(Disk::make(config)).map(|disk| panic!("{disk:?}")).unwrap_err().to_string()
    };
    let overlay = server.fresh("overlay");
    qemu_img(&format!("create -f qcow2 -F raw -b {}", raw.display()), &[&overlay]);
    let told = refusal(overlay.clone());
    let expected = format!(
        "cannot read the qcow2 image {}: it shows its backing file `{}` where it has nothing itself, and no other file is opened for it; \
         `qemu-img convert -O qcow2` makes one image of both",
        overlay.display(),
        raw.display()
    );
    assert_eq!(told, expected);
    let split = server.fresh("split");
    let data = server.fresh("data");
    qemu_img(&format!("create -f qcow2 -o data_file={}", data.display()), &[&split, Path::new("1M")]);
    assert!(refusal(split).contains("its clusters are in a data file of their own"));
    let extended = server.fresh("extended");
    qemu_img("create -f qcow2 -o extended_l2=on", &[&extended, Path::new("1M")]);
    assert!(refusal(extended).contains("it has extended entries (subclusters)"));
}
