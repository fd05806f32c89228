//! A DUT whose root file system is on our disks: a QEMU machine boots Linux over the network, attaches its exports with Debian's
//! nbd-client, which hands the connections to the kernel, and goes on from there.
//!
//! ```text
//!  boot 1   ext4 over a served image ─► what was found is said, a word is written and synced ─► its power is cut in mid-flight
//!  boot 2   ext4 plays its journal   ─► what was found is said: kept by `job_start`, gone by `boot` ─► its power is cut again
//! ```

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tests::bench::need_programs;

use crate::boots::serve_file;
use crate::farms::{QEMU, virtual_};

/// The first process in the initial RAM disk: the network, two exports, and on to the root among them.
const ATTACH: &str = r"#!/bin/sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin
while read -r module; do insmod /lib/modules/$module; done </etc/modules.order
ip link set eth0 up
udhcpc -q -n -f -t 5 -T 1 -i eth0 -s /etc/udhcpc.sh
/usr/sbin/nbd-client {{ job.nbd.root.host }} {{ job.nbd.root.port }} /dev/nbd0 -N {{ job.nbd.root.export }} -C 2
/usr/sbin/nbd-client {{ job.nbd.fresh.host }} {{ job.nbd.fresh.port }} /dev/nbd1 -N {{ job.nbd.fresh.export }}
mkdir /new
mount -t ext4 /dev/nbd0 /new
exec switch_root /new /first
";

/// The first process on the root. Nothing is unmounted: what was not synced may be lost, and what was must not be.
const FIRST: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
exec </dev/console >/dev/console 2>&1
word=$(cat /word)
echo "root: $(grep ' / ext4 ' /proc/mounts | cut -d ' ' -f 1) holds $word, fresh holds $(head -c 4 /dev/nbd1)"
[ "$word" = nothing ] || echo "root: that is all"
echo kept | dd of=/word conv=fsync
echo kept | dd of=/dev/nbd1 conv=fsync
echo "root: cut my power"
while :; do sleep 60; done
"#;

/// 16 MiB: busybox, a journal, and room.
const ROOT_BYTES: u64 = 16 << 20;

/// The image of the root file system, made by mke2fs.
fn root_image(folder: &Path) -> Vec<u8> {
    let (tree, image) = (folder.join("tree"), folder.join("image"));
    for directory in ["bin", "dev", "proc"] {
        std::fs::create_dir_all(tree.join(directory)).unwrap();
    }
    std::fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    std::fs::write(tree.join("word"), "nothing\n").unwrap();
    std::fs::write(tree.join("first"), FIRST).unwrap();
    std::fs::set_permissions(tree.join("first"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::File::create(&image).unwrap().set_len(ROOT_BYTES).unwrap();
    run(Command::new("mke2fs").args(["-q", "-t", "ext4", "-d"]).args([&tree, &image]));
    std::fs::read(image).unwrap()
}

/// Debian's nbd-client with the libraries that it asks for, as a tar archive.
fn client_archive() -> Vec<u8> {
    let libraries = run(Command::new("ldd").arg("/usr/sbin/nbd-client"));
    let paths = libraries.split_whitespace().filter_map(|word| word.strip_prefix('/'));
    run_bytes(Command::new("tar").args(["-C", "/", "-chf", "-", "usr/sbin/nbd-client"]).args(paths))
}

fn run_bytes(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    output.stdout
}

fn run(command: &mut Command) -> String {
    String::from_utf8(run_bytes(command)).expect("these programs print text")
}

fn job(image: &str, client: &str) -> String {
    let attach = ATTACH.replace('\n', "\n              ");
    format!(
        "version: 1
target: {{tags: ['firmware:bios']}}
timeouts: {{overall: {{minutes: 10}}, boot_cycle: {{minutes: 10, retries: 1}}}}
console_patterns:
  session_end: {{regex: '^root: that is all'}}
  session_reboot: {{regex: '^root: cut my power'}}
  job_success: {{regex: 'holds kept, fresh holds \\r?$'}}
deployment:
  start:
    kernel: {{url: '{{{{ images_url }}}}/kernel', cmdline: ['console=ttyS0,115200 quiet panic=-1 rdinit=/attach']}}
    initramfs:
    - {{url: '{{{{ images_url }}}}/initramfs'}}
    - {{url: '{client}', format: {{archive: {{extension: cpio}}}}}}
    - archive:
        extension: cpio
        add:
        - path: /attach
          mode: 0100755
          artifact:
            data: |
              {attach}
    storage:
      nbd:
      - {{name: root, url: '{image}'}}
      - {{name: fresh, size: 1M, reset_on: boot}}
"
    )
}

#[test]
fn a_dut_lives_on_a_root_of_ours_and_finds_what_it_synced_or_a_new_disk_after_its_power_was_cut() {
    need_programs(&[("nbd-client", "nbd-client"), ("mke2fs", "e2fsprogs"), ("/bin/busybox", "busybox-static")]);
    let bench = virtual_();
    let folder = tempfile::tempdir().unwrap();
    let (image, client) = (serve_file(root_image(folder.path())), serve_file(client_archive()));
    let _place = QEMU.pass();
    let ended = bench.run(&job(&image, &client));
    ended.expect("PASS", "test").expect_in_order(&[
        "boot 1: session_reboot matched `root: cut my power`",
        "boot 2: the outlet is on",
        "boot 2: job_success matched `root: /dev/nbd0 holds kept, fresh holds",
    ]);
    ended.expect_said(&[
        "Connected /dev/nbd0\r\n",
        "Connected /dev/nbd1\r\n",
        "root: /dev/nbd0 holds nothing, fresh holds \r\n",
        "root: cut my power\r\n",
        "root: /dev/nbd0 holds kept, fresh holds \r\n",
    ]);
    // Had boot 1's connections outlived its power, boot 2's would have joined them, and each disk would have had one access.
    let ends = ended.of_kind("access").into_iter().filter_map(|event| event["text"].as_str());
    let ends: Vec<_> = ends.filter(|text| text.starts_with("NBD ")).collect();
    assert_eq!(ends.len(), 4, "{ended}");
    assert!(ends[2..].iter().all(|text| text.ends_with(" bytes, failed: the DUT was switched off")), "{ended}");
}
