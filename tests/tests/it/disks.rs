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
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tests::bench::{Bench, Job, Surroundings, need_programs, until};

use crate::boots::serve_file;
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
    running.wait().expect("INCOMPLETE", "cancelled");
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
    let torn = "        - {name: scratch, size: 1M, shared: true, reset_on: boot}\n";
    let refused = bench.refused(&job("one", torn), "");
    assert!(refused.status == 400 && refused.text().contains("`shared: true` and has `reset_on: boot`"), "{refused:?}");
    let made = "        - {name: scratch, filesystem: {type: ext4, size: 1G}}\n";
    let refused = bench.refused(&job("one", made), "");
    assert!(refused.status == 400 && refused.text().contains("an NBD export's `filesystem`"), "{refused:?}");
    let huge = "        - {name: scratch, size: 17T}\n";
    let too_large = "is too large; 17592186044416 bytes are the most";
    bench.run(&job("one", huge)).expect("SETUP_FAIL", "artifact").expect_summary(too_large);
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

/// An attached disk, spoken to by whole blocks.
struct Attached {
    stream: TcpStream,
    size: u64,
}

impl Attached {
    fn to(from: [u8; 4], address: SocketAddr, name: &str) -> Attached {
        let mut stream = connect(from, address);
        let export = handshake(&mut stream, name.as_bytes()).unwrap();
        Attached { stream, size: export.size }
    }

    /// Sends a request of the simple kind, and gives its error number (0: none). Reads bring their data.
    fn ask(&mut self, kind: u16, offset: u64, data: &[u8], length: usize) -> (u32, Vec<u8>) {
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend([0_u16.to_be_bytes(), kind.to_be_bytes()].concat());
        request.extend([7_u64.to_be_bytes(), offset.to_be_bytes()].concat());
        request.extend((length as u32).to_be_bytes());
        self.stream.write_all(&[&request, data].concat()).unwrap();
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply).unwrap();
        let error = u32::from_be_bytes(*reply[4..].first_chunk().unwrap());
        let mut bytes = vec![0; if kind == 0 && error == 0 { length } else { 0 }];
        self.stream.read_exact(&mut bytes).unwrap();
        (error, bytes)
    }

    fn read(&mut self, offset: u64, length: usize) -> Vec<u8> {
        let (error, bytes) = self.ask(0, offset, b"", length);
        assert_eq!(error, 0);
        bytes
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        self.ask(1, offset, data, data.len()).0
    }

    fn flush(&mut self) {
        assert_eq!(self.ask(3, 0, b"", 0).0, 0);
    }
}

/// A project with the second machine alone.
const ONE_PROJECT: &str = "projects: {linux: {blueprints: [here-two-1]}}\n";

/// What its operator shows.
fn operator(bench: &Bench) -> String {
    let wish = json!({"name": "night-watch", "project": "linux", "role": "operate"}).to_string();
    let made = bench.post("/api/v1/tokens", "application/json", wish.as_bytes());
    format!("Authorization: Bearer {}\r\n", made.json()["secret"].as_str().unwrap())
}

fn disks(bench: &Bench) -> Vec<Value> {
    bench.get("/api/v1/disks").json()["disks"].as_array().unwrap().clone()
}

fn cancelled(job: Job) {
    job.cancel();
    job.wait().expect("INCOMPLETE", "cancelled");
}

#[test]
fn a_disk_that_is_never_reset_is_there_for_the_duts_next_job_also_after_a_kill_of_the_farm() {
    let bench = Bench::start(WHARF, &format!("{FARM}{ONE_PROJECT}"));
    let image = pattern(1 << 20);
    let disks_of_job = format!(
        "        - {{name: scratch, url: '{}', reset_on: never, expiration: 7 days}}\n        \
         - {{name: empty, size: 20G, reset_on: never}}\n",
        serve_file(image.clone())
    );
    let mut first = bench.submit(&job("one", &disks_of_job), "");
    let address = disk_address(&bench, &mut first);
    let mut expected = image.clone();
    expected[5000..5010].copy_from_slice(b"persistent");
    let (mut scratch, mut empty) = (Attached::to(ONE, address, "scratch"), Attached::to(ONE, address, "empty"));
    assert_eq!(scratch.write(5000, b"persistent"), 0);
    scratch.flush();
    assert_eq!(empty.write(10 << 30, b"far away"), 0);
    empty.flush();
    let bench = bench.killed_and_started_again(WHARF);
    let mut second = bench.submit(&job("one", &disks_of_job), "");
    let address = disk_address(&bench, &mut second);
    let mut scratch = Attached::to(ONE, address, "scratch");
    assert!(scratch.read(0, 1 << 20) == expected, "what was flushed, and the image around it");
    let mut empty = Attached::to(ONE, address, "empty");
    assert_eq!((empty.size, empty.read(10 << 30, 9)), (20 << 30, b"far away\0".to_vec()));
    // Another DUT's, of the same name and source, is another disk.
    let mut others = bench.submit(&job("two", &disks_of_job), "");
    disk_address(&bench, &mut others);
    assert!(Attached::to(TWO, address, "scratch").read(0, 1 << 20) == image);
    let kept = disks(&bench);
    let of_one: Vec<_> = kept.iter().filter(|disk| disk["dut"] == "here-one-1").collect();
    assert_eq!((kept.len(), of_one.len()), (4, 2), "{kept:#?}");
    assert!(of_one.iter().all(|disk| disk["stored_bytes"].as_u64().unwrap() <= 64 * 1024), "{of_one:#?}");
    let path = format!("/api/v1/disks/{}", of_one[0]["id"].as_str().unwrap());
    let refused = bench.ask("DELETE", &path, "", b"");
    assert!(refused.status == 409 && refused.text().contains(&format!("is used by job {}", second.id)), "{refused:?}");
    let operator = operator(&bench);
    for disk in &kept {
        let path = format!("/api/v1/disks/{}", disk["id"].as_str().unwrap());
        let status = bench.ask("DELETE", &path, &operator, b"").status;
        assert_eq!(status, if disk["dut"] == "here-two-1" { 409 } else { 403 }, "{disk}");
    }
    cancelled(second);
    cancelled(others);
    let freed = || Some(disks(&bench)).filter(|disks| disks.iter().all(|disk| disk["users"] == json!([])));
    let free = until(Duration::from_secs(10), freed).unwrap_or_else(|| panic!("{:#?}", disks(&bench)));
    let expires = |name: &str| free.iter().find(|disk| disk["name"] == name).unwrap()["expires"].is_string();
    assert!(expires("scratch") && !expires("empty"));
    let listed = Command::new(WHARF).args(["disks", "--server", &bench.url()]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.lines().count() == 5 && listed.contains("20.0 GiB"), "{listed}");
    for disk in free {
        let removed = Command::new(WHARF)
            .args(["disk", "remove", disk["id"].as_str().unwrap(), "--server", &bench.url()])
            .output()
            .unwrap();
        assert!(removed.status.success(), "{removed:?}");
    }
    assert!(disks(&bench).is_empty());
}

#[test]
fn a_shared_disk_is_read_by_the_duts_whose_jobs_ask_for_it_and_written_by_one_job() {
    let bench = Bench::start(WHARF, &format!("{FARM}{ONE_PROJECT}"));
    let shared = "        - {name: scratch, size: 1M, shared: true, max_connections: 1, expiration: 1 s}\n".to_owned();
    let kept = shared.replace("expiration", "reset_on: never, expiration");
    let written = |entry: &str| entry.replace("size", "readonly: false, size");
    let mut writer = bench.submit(&job("one", &written(&kept)), "");
    let address = disk_address(&bench, &mut writer);
    let path = format!("/api/v1/disks/{}", disks(&bench)[0]["id"].as_str().unwrap());
    let refused = bench.ask("DELETE", &path, &operator(&bench), b"");
    let why = "the disk is shared, and may be used by a machine that the project `linux` may not use (projects.linux.blueprints)";
    assert_eq!((refused.status, refused.json()["error"].as_str()), (403, Some(why)));
    let mut disk = Attached::to(ONE, address, "scratch");
    assert_eq!(disk.write(0, b"for all"), 0);
    assert!(handshake(&mut connect(TWO, address), b"scratch").is_err(), "it has no job that asks for it");
    let refused = bench.run(&job("two", &written(&kept)));
    let reason = format!("cannot make the disk `scratch`: job {} writes to it, and only one job does so", writer.id);
    refused.expect("SETUP_FAIL", "artifact").expect_summary(&reason);
    let mut reader = bench.submit(&job("two", &kept), "");
    disk_address(&bench, &mut reader);
    let mut other = Attached::to(TWO, address, "scratch");
    assert_eq!(other.read(0, 8), b"for all\0");
    assert_eq!(other.write(0, b"mine"), 1, "EPERM");
    assert!(handshake(&mut connect(TWO, address), b"scratch").is_err(), "one connection each");
    // Another project's, and the one that begins anew with its jobs, are other disks by the same name.
    cancelled(reader);
    for (entry, query) in [(written(&shared), ""), (written(&kept), "?subject=others")] {
        let mut reader = bench.submit(&job("two", &entry), query);
        disk_address(&bench, &mut reader);
        assert_eq!(Attached::to(TWO, address, "scratch").read(0, 8), [0; 8], "{query} {entry}");
        cancelled(reader);
    }
    cancelled(writer);
    let gone = || Some(()).filter(|()| disks(&bench).is_empty());
    until(Duration::from_secs(20), gone).unwrap_or_else(|| panic!("not expired: {:#?}", disks(&bench)));
}

#[test]
fn a_person_boots_from_disks_that_were_proven_as_a_jobs_are() {
    let bench = Bench::start(WHARF, FARM);
    let wish = json!({"id": "anna", "dut": "here-one-1", "owner": "term", "for": "10 minutes", "name": "anna"});
    let headers = "Content-Type: application/json\r\n";
    assert_eq!(bench.ask("POST", "/api/v1/leases", headers, wish.to_string().as_bytes()).status, 201);
    let active = || Some(()).filter(|()| bench.get("/api/v1/leases/anna").json()["state"] == "active");
    until(Duration::from_secs(20), active).expect("the DUT is free");
    let boot = |disks: &str| bench.ask("PUT", "/api/v1/leases/anna/boot", "", job("one", disks).as_bytes());
    // Its header is right, its first cluster lies behind its end.
    let mut broken = vec![0; 3 * 65536];
    let fields: [(usize, &[u8]); 6] = [
        (0, b"QFI\xfb\0\0\0\x03"),
        (20, &[0, 0, 0, 16, 0, 0, 0, 0, 0, 0x10, 0, 0]),
        (36, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0]),
        (96, &[0, 0, 0, 4, 0, 0, 0, 112]),
        (65536, &[0, 0, 0, 0, 0, 2, 0, 0]),
        (2 * 65536, &[0, 0, 0, 0, 0x40, 0, 0, 0]),
    ];
    for (at, bytes) in fields {
        broken[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let refused = boot(&format!("        - {{name: scratch, url: '{}'}}\n", serve_file(broken)));
    assert!(refused.status == 500 && refused.text().contains("a cluster would lie at byte 1073741824"), "{refused:?}");
    let good = "        - {name: scratch, size: 1M, reset_on: never}\n";
    for _ in 0..2 {
        let answer = boot(good);
        assert_eq!(answer.status, 204, "{answer:?}");
    }
    assert_eq!(disks(&bench)[0]["users"], json!(["lease anna"]));
}

#[test]
fn a_dut_cannot_fill_the_farms_own_disk() {
    /// 64 MiB: less than what stays free, more than a job's log.
    const STATE_BYTES: u64 = 64 << 20;
    let surroundings = Surroundings { state_bytes: Some(STATE_BYTES), ..Surroundings::default() };
    let bench = Bench::start_with(WHARF, FARM, surroundings);
    let mut running = bench.submit(&job("one", "        - {name: scratch, size: 1G}\n"), "");
    let address = disk_address(&bench, &mut running);
    let mut disk = Attached::to(ONE, address, "scratch");
    assert_eq!(disk.write(0, &[1; 4096]), 28, "ENOSPC");
    assert_eq!(disk.read(0, 4096), [0; 4096]);
    cancelled(running);
}
