//! Other people's NBD clients write and read our disks to the last byte: qemu-img, qemu-io, nbdcopy, nbdinfo, fio.

use std::path::Path;
use std::process::Output;

use gateway::content::Content;
use gateway::content::disk::{Base, Disk, Mode};
use gateway::namespace::{AccessEvent, Exposure, Outcome};
use tests::bad_link::Faults;
use tests::bench::need_programs;

use crate::loopback::{Loopback, pattern};

/// 48 MiB, of which the middle third is a hole.
const IMAGE_BYTES: u64 = 48 << 20;
/// 16 MiB.
const THIRD: usize = 16 << 20;

/// An image with a hole, and its path.
fn image(server: &Loopback) -> std::path::PathBuf {
    let path = server.fresh("image");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(IMAGE_BYTES).unwrap();
    let write = |bytes: &[u8], offset: u64| std::os::unix::fs::FileExt::write_all_at(&file, bytes, offset).unwrap();
    write(&pattern(THIRD), 0);
    write(&pattern(THIRD + 5)[5..], 2 * THIRD as u64);
    path
}

fn empty(server: &Loopback, name: &str, size_bytes: u64) -> Disk {
    server.put_disk(name, Base::Zeros { size_bytes }, Mode::CopyOnWrite, Exposure::default())
}

fn run(server: &Loopback, program: &str, arguments: &[&str]) -> Output {
    let mut command = server.command(program);
    command.args(arguments);
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

#[track_caller]
fn succeeds(server: &Loopback, program: &str, arguments: &[&str]) -> String {
    let output = run(server, program, arguments);
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

/// Reads, writes and tells of qemu-io, one after the other on one connection.
fn qemu_io(server: &Loopback, url: &str, commands: &[&str]) -> String {
    let mut arguments = vec!["-f", "raw"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    arguments.push(url);
    let output = run(server, "qemu-io", &arguments);
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn qemu_img_copies_an_image_to_a_disk_and_finds_it_there() {
    need_programs(&[("qemu-img", "qemu-utils")]);
    let server = Loopback::start();
    let (image, disk) = (image(&server), empty(&server, "disk", IMAGE_BYTES));
    let url = server.nbd_url("disk");
    succeeds(&server, "qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", text(&image), &url]);
    assert!(disk.layer_bytes() <= 33 << 20, "the hole takes space: {} bytes", disk.layer_bytes());
    succeeds(&server, "qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&image), &url]);
    let info = succeeds(&server, "qemu-img", &["info", "--output=json", "-f", "raw", &url]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["virtual-size"], IMAGE_BYTES);
    let map = succeeds(&server, "qemu-img", &["map", "--output=json", "-f", "raw", &url]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let zeros: Vec<_> = map.as_array().unwrap().iter().filter(|extent| extent["zero"] == true).collect();
    assert_eq!(zeros.len(), 1, "{map}");
    assert_eq!((zeros[0]["start"].as_u64(), zeros[0]["length"].as_u64()), (Some(THIRD as u64), Some(THIRD as u64)));
}

#[test]
fn nbdcopy_writes_and_reads_over_four_connections_as_one_access_each() {
    need_programs(&[("nbdcopy", "libnbd-bin")]);
    let server = Loopback::start();
    let (image, url) = (image(&server), server.nbd_url("disk"));
    empty(&server, "disk", IMAGE_BYTES);
    succeeds(&server, "nbdcopy", &["--connections=4", "--flush", text(&image), &url]);
    let copy = server.fresh("copy");
    succeeds(&server, "nbdcopy", &["--connections=4", &url, text(&copy)]);
    assert!(std::fs::read(&copy).unwrap() == std::fs::read(&image).unwrap());
    let events = server.events_of(4);
    let is_complete = |event: &AccessEvent| matches!(event, AccessEvent::Ended { outcome: Outcome::Complete, .. });
    assert_eq!(events.len(), 4, "{events:?}");
    assert!(is_complete(&events[1]) && is_complete(&events[3]), "{events:?}");
}

#[test]
fn nbdcopy_of_a_sparse_disk_of_twenty_gigabytes_reads_what_is_there() {
    need_programs(&[("nbdcopy", "libnbd-bin")]);
    let server = Loopback::start();
    let disk = empty(&server, "disk", 20 << 30);
    assert_eq!(disk.layer_bytes(), 0);
    let url = server.nbd_url("disk");
    qemu_io(&server, &url, &["write -P 0x5a 10G 1M", "flush"]);
    let copy = server.fresh("copy");
    succeeds(&server, "nbdcopy", &[&url, text(&copy)]);
    let events = server.events_of(4);
    let AccessEvent::Ended { bytes, .. } = &events[3] else { panic!("{events:?}") };
    assert!(*bytes < 64 << 20, "{bytes} bytes were read for one of 1 MiB");
    let file = std::fs::File::open(&copy).unwrap();
    let mut read = vec![0; 1 << 20];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut read, 10 << 30).unwrap();
    assert!(read.iter().all(|byte| *byte == 0x5a));
    assert_eq!(file.metadata().unwrap().len(), 20 << 30);
}

#[test]
fn nbdinfo_sees_every_ability_the_list_and_the_map() {
    need_programs(&[("nbdinfo", "libnbd-bin")]);
    let server = Loopback::start();
    let image = server.put_disk("os", Base::Image(Content::File(image(&server))), Mode::ReadOnly, Exposure::default());
    assert_eq!(image.size(), IMAGE_BYTES);
    empty(&server, "disk", 1 << 30);
    let list: serde_json::Value =
        serde_json::from_str(&succeeds(&server, "nbdinfo", &["--json", "--list", &server.nbd_url("")])).unwrap();
    assert_eq!(list["structured"], true, "{list}");
    let [os, disk] = &list["exports"].as_array().unwrap()[..] else { panic!("{list}") };
    for (key, on_os, on_disk) in [
        ("is_read_only", true, false),
        ("can_multi_conn", true, true),
        ("can_cache", true, true),
        ("can_df", true, true),
        ("can_flush", true, true),
        ("can_fua", true, true),
        ("can_trim", false, true),
        ("can_zero", false, true),
        ("can_fast_zero", false, true),
    ] {
        assert_eq!((&os[key], &disk[key]), (&on_os.into(), &on_disk.into()), "{key}: {list}");
    }
    assert_eq!((&os["export-name"], &disk["export-name"]), (&"os".into(), &"disk".into()));
    assert_eq!((&disk["block_size_minimum"], &disk["block_size_maximum"]), (&1.into(), &(32 << 20).into()));
    assert_eq!(disk["contexts"], serde_json::json!(["base:allocation"]));
    let map = succeeds(&server, "nbdinfo", &["--map", &server.nbd_url("os")]);
    let words: Vec<Vec<_>> = map.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    assert_eq!(words, [["0", "16777216", "0"], ["16777216", "16777216", "3"], ["33554432", "16777216", "0"]]);
}

#[test]
fn qemu_io_writes_discards_and_zeroes_and_another_connection_reads_it() {
    need_programs(&[("qemu-io", "qemu-utils")]);
    let server = Loopback::start();
    let base = Base::Image(Content::File(image(&server)));
    server.put_disk("disk", base, Mode::CopyOnWrite, Exposure::default());
    let url = server.nbd_url("disk");
    let written = qemu_io(
        &server,
        &url,
        &[
            "write -P 0x11 0 1M",
            "write -f -P 0x22 1000 3000",
            "write -z 100k 64k",
            "write -z -u 300k 64k",
            "discard 512k 128k",
            "write -P 0x33 50331136 512",
            "flush",
        ],
    );
    assert!(!written.contains("rror") && !written.contains("failed"), "{written}");
    let read = qemu_io(
        &server,
        &url,
        &[
            "read -P 0x11 0 1000",
            "read -P 0x22 1000 3000",
            "read -P 0x11 4000 98400",
            "read -P 0 100k 64k",
            "read -P 0 300k 64k",
            "read -P 0 512k 128k",
            "read -P 0x11 640k 384k",
            "read -P 0x33 50331136 512",
            "read -P 0x33 50331136 513",
        ],
    );
    assert!(!read.contains("Pattern verification failed"), "{read}");
    assert_eq!(read.matches(" bytes at offset ").count(), 8, "{read}");
    assert!(read.contains("read failed: "), "one byte past the end: {read}");
}

#[test]
fn a_read_only_disk_is_known_as_such_and_stays_as_it_is() {
    need_programs(&[("qemu-io", "qemu-utils"), ("nbdinfo", "libnbd-bin")]);
    let server = Loopback::start();
    let path = image(&server);
    let base = Base::Image(Content::File(path.clone()));
    server.put_disk("os", base, Mode::ReadOnly, Exposure::default());
    let url = server.nbd_url("os");
    assert!(run(&server, "nbdinfo", &["--is", "read-only", &url]).status.success());
    let said = qemu_io(&server, &url, &["write -P 0x11 0 512"]);
    assert!(said.contains("Permission denied"), "{said}");
    assert!(std::fs::read(path).unwrap()[..THIRD] == pattern(THIRD));
}

#[test]
fn a_reset_between_two_clients_brings_the_image_back() {
    need_programs(&[("qemu-io", "qemu-utils"), ("qemu-img", "qemu-utils")]);
    let server = Loopback::start();
    let path = image(&server);
    let disk =
        server.put_disk("disk", Base::Image(Content::File(path.clone())), Mode::CopyOnWrite, Exposure::default());
    let url = server.nbd_url("disk");
    qemu_io(&server, &url, &["write -P 0x11 4k 1M", "flush"]);
    let compare = || run(&server, "qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&path), &url]).status.code();
    assert_eq!(compare(), Some(1), "the disk differs from its image");
    server.block_on(disk.reset()).unwrap();
    assert_eq!(compare(), Some(0));
}

#[test]
fn a_disk_that_may_be_attached_once_is_refused_the_second_time_with_the_reason() {
    need_programs(&[("nbdcopy", "libnbd-bin")]);
    let server = Loopback::start();
    let once = Exposure { access_count: Some(1), ..Exposure::default() };
    server.put_disk("secret", Base::Zeros { size_bytes: 1 << 20 }, Mode::CopyOnWrite, once);
    let url = server.nbd_url("secret");
    succeeds(&server, "nbdcopy", &["--connections=4", &url, text(&server.fresh("copy"))]);
    server.events_of(2);
    let second = run(&server, "nbdcopy", &[&url, text(&server.fresh("copy"))]);
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(said.contains("server policy prevents NBD_OPT_GO"), "{said}");
}

/// Random requests of odd sizes, 32 at a time, each block of which is read back and compared by its checksum.
fn fio(server: &Loopback, url: &str, size: &str) -> String {
    let mut arguments = vec!["--name=nbd", "--ioengine=nbd", "--rw=randrw", "--iodepth=32", "--bsrange=512-64k"];
    arguments.extend([
        "--blockalign=512",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--verify_state_save=0",
    ]);
    let (url, size) = (format!("--uri={url}"), format!("--size={size}"));
    arguments.extend([&*url, &size]);
    succeeds(server, "fio", &arguments)
}

#[test]
fn fio_writes_at_random_and_finds_every_block_as_it_wrote_it() {
    need_programs(&[("fio", "fio")]);
    let server = Loopback::start();
    empty(&server, "disk", 16 << 20);
    let said = fio(&server, &server.nbd_url("disk"), "16M");
    assert!(said.contains("err= 0"), "{said}");
}

#[test]
fn a_link_that_loses_and_delays_changes_no_byte() {
    need_programs(&[("nbdcopy", "libnbd-bin"), ("qemu-img", "qemu-utils"), ("fio", "fio")]);
    let Some(server) = Loopback::across(Faults::ISSUED) else { return };
    let (image, url) = (server.fresh("image"), server.nbd_url("disk"));
    std::fs::write(&image, pattern(4 << 20)).unwrap();
    empty(&server, "disk", 4 << 20);
    succeeds(&server, "nbdcopy", &["--connections=4", "--flush", text(&image), &url]);
    succeeds(&server, "qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&image), &url]);
    let said = fio(&server, &url, "1M");
    assert!(said.contains("err= 0"), "{said}");
    let link = server.link().expect("this server has one");
    assert!(link.lost() > 8, "8 MB are 5600 frames and more: {link:?}");
}

#[test]
fn the_map_of_an_image_is_the_one_that_qemu_makes_of_its_file() {
    need_programs(&[("qemu-img", "qemu-utils"), ("qemu-io", "qemu-utils")]);
    let server = Loopback::start();
    let path = server.fresh("image");
    std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
    // A hole and some data, over and over; the last of them ends where the image does.
    let writes: Vec<_> = (0..8).map(|index| format!("write -P 7 {}k 64k", index * 8192 + 8128)).collect();
    qemu_io(&server, text(&path), &writes.iter().map(String::as_str).collect::<Vec<_>>());
    let base = Base::Image(Content::File(path.clone()));
    server.put_disk("os", base.clone(), Mode::ReadOnly, Exposure::default());
    server.put_disk("disk", base, Mode::CopyOnWrite, Exposure::default());
    let map = |of: &str| {
        let json = succeeds(&server, "qemu-img", &["map", "--output=json", "-f", "raw", of]);
        let map: serde_json::Value = serde_json::from_str(&json).unwrap();
        let extents = map.as_array().unwrap().iter();
        let of_extent = |extent: &serde_json::Value| ["start", "length", "zero", "data"].map(|key| extent[key].clone());
        extents.map(of_extent).collect::<Vec<_>>()
    };
    let expected = map(text(&path));
    assert_eq!(expected.len(), 16);
    assert_eq!(map(&server.nbd_url("os")), expected);
    assert_eq!(map(&server.nbd_url("disk")), expected);
    // The same change to both: a page in a hole, and a hole in what was data.
    for of in [text(&path), &server.nbd_url("disk")] {
        qemu_io(&server, of, &["write -P 8 1M 64k", "discard 8M 64k", "write -z -u 16320k 64k"]);
    }
    let expected = map(text(&path));
    assert_eq!(expected.len(), 16);
    assert_eq!(map(&server.nbd_url("disk")), expected);
}
