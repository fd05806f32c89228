//! SSH into what we booted ourselves, dropbear in a small Linux under QEMU: hosts that are guests of the server's own machine, and DUTs that
//! do the steps of a job.
//!
//! ```text
//!  /guest  keys from the disk `cidata`, as cloud-init takes them ─┐
//!  /dut    the farm's key from the job's template, a host key ────┴─► /etc/ssh.sh ─► dropbear, SFTP
//!          of its own, said on the console
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::bench::{Bench, Ended, Surroundings, need_programs, until};
use tests::lab::Lab;

use crate::boots::serve_file;
use crate::farms::{QEMU, WHARF, virtual_};
use crate::firmware::cpio;

/// What a loaded machine without KVM needs to boot a Linux.
const SOON: Duration = Duration::from_secs(120);

/// How both begin.
const BEGIN: &str = r#"#!/bin/busybox sh
for mount in "proc proc /proc" "sysfs sysfs /sys" "devtmpfs dev /dev"; do /bin/busybox mount -t $mount; done
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root
exec </dev/console >/dev/console 2>&1
while read -r module; do insmod /lib/modules/$module; done </etc/modules.order
ip link set lo up
ip link set eth0 up
udhcpc -q -n -f -t 5 -T 1 -i eth0 -s /etc/udhcpc.sh
mkdir -p /seed /root/.ssh /etc/dropbear
"#;

/// A host: as much of cloud-init as its keys take.
const GUEST: &str = r"for module in virtio_blk fat nls_cp437 nls_ascii vfat; do insmod /lib/more/$module.ko; done
mount -t vfat -o ro,iocharset=ascii $(findfs LABEL=cidata) /seed
sed -n '/BEGIN OPENSSH/,/END OPENSSH/s/^ *//p' /seed/user-data >/tmp/key
dropbearconvert openssh dropbear /tmp/key /etc/dropbear/key
sed -n 's/^  - ssh-/ssh-/p' /seed/user-data >/root/.ssh/authorized_keys
sh /etc/ssh.sh
while :; do sleep 3600; done
";

/// A DUT: what lets the farm in comes with the job.
const DUT: &str = r"echo '{{ ssh.public_key }}' >/root/.ssh/authorized_keys
sh /etc/ssh.sh
while :; do sleep 3600; done
";

const SSH: &str = r"mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
echo root:x:0:0:root:/root:/bin/sh >/etc/passwd
echo root:x:0: >/etc/group
echo /bin/sh >/etc/shells
chmod 700 /root /root/.ssh
chmod 600 /root/.ssh/authorized_keys
[ -e /etc/dropbear/key ] || dropbearkey -t ed25519 -f /etc/dropbear/key | grep '^ssh-ed25519'
dropbear -E -s -r /etc/dropbear/key
echo ssh: ready
";

/// Programs of Debian's, where they are there and where they are here.
const PROGRAMS: [(&str, &str); 4] = [
    ("bin/dropbear", "/usr/sbin/dropbear"),
    ("bin/dropbearkey", "/usr/bin/dropbearkey"),
    ("bin/dropbearconvert", "/usr/bin/dropbearconvert"),
    ("usr/lib/sftp-server", "/usr/lib/openssh/sftp-server"),
];

/// What both need beside the initramfs that jobs boot here.
fn programs() -> Vec<(String, Vec<u8>)> {
    need_programs(&[
        ("/usr/sbin/dropbear", "dropbear-bin"),
        ("/usr/lib/openssh/sftp-server", "openssh-sftp-server"),
        ("qemu-img", "qemu-utils"),
    ]);
    let mut files = BTreeMap::from([("etc/ssh.sh".to_owned(), SSH.as_bytes().to_vec())]);
    for (there, here) in PROGRAMS {
        files.insert(there.to_owned(), fs::read(here).unwrap());
        let libraries = Command::new("ldd").arg(here).output().unwrap();
        let libraries = String::from_utf8(libraries.stdout).unwrap();
        for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
            files.insert(library[1..].to_owned(), fs::read(library).unwrap());
        }
    }
    files.into_iter().collect()
}

/// The kernel's modules for the disk with the keys.
fn modules() -> Vec<(String, Vec<u8>)> {
    let kernels = tests::packages::cache_folder().join("kernel");
    let newest = fs::read_dir(kernels).unwrap().map(|entry| entry.unwrap().path()).max().expect("it is installed");
    let wanted = ["drivers/block/virtio_blk", "fs/fat/fat", "fs/fat/vfat", "fs/nls/nls_cp437", "fs/nls/nls_ascii"];
    let read = |module: &str| {
        let file = newest.join(format!("modules/kernel/{module}.ko"));
        // What is built in is no file.
        let name = module.rsplit('/').next()?;
        Some((format!("lib/more/{name}.ko"), fs::read(file).ok()?))
    };
    wanted.into_iter().filter_map(read).collect()
}

/// A farm whose only host is a guest, made on demand.
struct Site {
    folder: tempfile::TempDir,
    farm: Option<Bench>,
}

impl Site {
    fn new() -> Site {
        let folder = tempfile::tempdir().unwrap();
        let virtual_ = virtual_();
        let mut initramfs = virtual_.get("/images/initramfs").body;
        // The kernel looks for the next archive on a boundary of four bytes.
        initramfs.resize(initramfs.len().next_multiple_of(4), 0);
        let mut files = programs();
        files.extend(modules());
        files.push(("guest".to_owned(), [BEGIN, GUEST].concat().into_bytes()));
        initramfs.extend(cpio(&files));
        fs::write(folder.path().join("initramfs"), initramfs).unwrap();
        fs::write(folder.path().join("kernel"), virtual_.get("/images/kernel").body).unwrap();
        let image = Command::new("qemu-img").args(["create", "-q"]).arg(folder.path().join("disk")).arg("8M").status();
        assert!(image.unwrap().success());
        let farm = format!(
            "name: lab\nnetwork: {{loopback: {{}}}}\nduts: []\nhosts:\n  - name: guest\n    ssh: {{user: root}}\n    os: debian\n    \
             idle: 1 s\n    provider:\n      qemu: {{disk: {0}/disk, disk_mib: 64, kernel: {0}/kernel, initramfs: {0}/initramfs, \
             cmdline: 'quiet rdinit=/guest panic=-1', memory_mib: 256, outside: closed}}\n",
            folder.path().display()
        );
        let surroundings = Surroundings { lab: Some(Arc::new(Lab::new().unwrap())), ..Surroundings::default() };
        Site { folder, farm: Some(Bench::start_with(WHARF, &farm, surroundings)) }
    }

    fn farm(&self) -> &Bench {
        self.farm.as_ref().expect("it runs")
    }

    /// Its state folder, as the server was told.
    fn state(&self) -> PathBuf {
        self.farm().farm_file().with_file_name("state")
    }

    fn says(&self, words: &[&str]) -> String {
        let mut command = Command::new(WHARF);
        command.args(words).env("WHARF_SERVER", self.farm().local_socket()).stdin(Stdio::null());
        let Output { status, stdout, stderr } = command.output().unwrap();
        assert!(status.success(), "{words:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    /// The folders of guests that there are.
    fn guests(&self) -> usize {
        fs::read_dir(self.state().join("hosts/guest")).map_or(0, |folder| folder.count())
    }
}

/// A guest outlives its server by design, and must not outlive a test that fails.
impl Drop for Site {
    fn drop(&mut self) {
        for process in self.farm.iter().flat_map(|_| processes_with(&self.state())) {
            let _ = kill(process, Signal::SIGKILL);
        }
    }
}

/// Those whose command line has this path, but the server itself.
fn processes_with(state: &Path) -> Vec<Pid> {
    let disk = state.join("hosts").display().to_string();
    let numbers = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has = |number: &i32| {
        let line = fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&disk)
    };
    numbers.filter(has).map(Pid::from_raw).collect()
}

#[test]
fn a_guest_of_the_servers_own_machine_is_made_used_found_again_after_a_kill_and_ended_with_all_that_it_had() {
    let mut site = Site::new();
    let _place = QEMU.pass();
    let lease = site.says(&["lease", "take", "--host", "-t", "os:debian", "--detach"]).trim().to_owned();
    let state = || site.farm().get(&format!("/api/v1/leases/{lease}")).json();
    until(SOON, || Some(()).filter(|()| state()["state"] == "active")).unwrap_or_else(|| panic!("{:#}", state()));
    assert_eq!((processes_with(&site.state()).len(), site.guests()), (1, 1));
    let boot = ["host", "run", "--lease", &lease, "--", "cat", "/proc/sys/kernel/random/boot_id"];
    let booted = site.says(&boot);
    let (input, output): (PathBuf, PathBuf) = (site.folder.path().join("input"), site.folder.path().join("output"));
    fs::write(&input, vec![7; 100_000]).unwrap();
    site.says(&["host", "put", "--lease", &lease, input.to_str().unwrap(), "copied"]);
    let size =
        site.says(&["host", "run", "--lease", &lease, "--", "sh", "-c", "wc -c <copied; cat /sys/block/vda/size"]);
    assert_eq!(size, "100000\n131072\n", "its disk is as large as the farm file says");
    site.farm = site.farm.take().map(|farm| farm.killed_and_started_again(WHARF));
    assert_eq!(site.says(&boot), booted, "the same guest, which went on");
    site.says(&["host", "get", "--lease", &lease, "copied", output.to_str().unwrap()]);
    assert!(fs::read(&output).unwrap() == fs::read(&input).unwrap());
    site.says(&["lease", "release", &lease]);
    let left = || (processes_with(&site.state()).len(), site.guests());
    until(SOON, || Some(()).filter(|()| left() == (0, 0))).unwrap_or_else(|| panic!("{:?} are left", left()));
}

/// What a DUT does: results that are good, a file, results that are not.
pub(crate) const STEPS: &str = "      - put: greeting.txt
        data: 'hello {{ roles.dut.ip_address }}'
      - run: |
          echo \"heard $(cat greeting.txt)\"
          uname -s >kernel.txt
          echo '<testsuite><testcase name=\"good\"/><testcase name=\"left out\"><skipped/></testcase></testsuite>' >good.xml
        results: {junit: good.xml}
      - get: kernel.txt
      - run: echo '<testsuite><testcase name=\"bad\"><failure message=\"too slow\"/></testcase></testsuite>' >bad.xml
        results: {junit: bad.xml}
      - run: echo never
";

/// What came of them; `get` asks the farm.
#[track_caller]
pub(crate) fn expect_steps(ended: &Ended, get: impl Fn(&str) -> String) {
    ended.expect("FAIL", "test").expect_summary("1 tests, 1 failed, 0 broken, 0 skipped; bad: too slow");
    ended.expect_in_order(&[
        "dut: step 1, put `greeting.txt`: ",
        "exit status 0; 2 tests, 0 failed, 0 broken, 1 skipped",
        "dut: step 3, get `kernel.txt`: 6 bytes",
        "dut: step 4, run ",
    ]);
    assert!(ended.console.contains("[dut] heard hello 1") && !ended.console.contains("[dut] never"), "{ended}");
    let kept = |name: &str| get(&format!("/api/v1/jobs/{}-dut/files/{name}", ended.id));
    assert_eq!(kept("kernel.txt"), "Linux\n");
    assert!(kept("bad.xml").contains("too slow"));
}

fn job(archive: &str) -> String {
    let dut = [BEGIN, DUT].concat().replace('\n', "\n              ");
    format!(
        "version: 1
target:
  - role: dut
    tags: ['firmware:bios']
    ssh: {{when: {{regex: '^ssh: ready'}}}}
    steps:
{STEPS}timeouts: {{overall: {{minutes: 10}}}}
deployment:
  start:
    kernel: {{url: '{{{{ images_url }}}}/kernel', cmdline: ['console=ttyS0,115200 quiet panic=-1 rdinit=/dut']}}
    initramfs:
    - {{url: '{{{{ images_url }}}}/initramfs'}}
    - {{url: '{archive}'}}
    - archive:
        extension: cpio
        add:
        - path: /dut
          mode: 0100755
          artifact:
            data: |
              {dut}
"
    )
}

/// With `WHARF_SSH_GUESTS`, as it boots another Linux: `hosts` has the same steps on a simulated DUT, whose SSH server is this machine's.
#[test]
fn a_booted_dut_does_the_steps_of_its_job_by_ssh_and_the_test_results_that_it_wrote_decide() {
    if std::env::var_os("WHARF_SSH_GUESTS").is_none() {
        return eprintln!("SKIPPED: it boots another Linux; set WHARF_SSH_GUESTS");
    }
    let (bench, archive) = (virtual_(), serve_file(cpio(&programs())));
    let _place = QEMU.pass();
    expect_steps(&bench.run(&job(&archive)), |path| bench.get(path).text());
}
