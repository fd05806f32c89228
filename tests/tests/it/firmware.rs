//! Machines that are not the farm's own boot through their firmware: other processors, other boot loaders, another DHCP server.
//!
//! ```text
//!  a network namespace: the server ── exec ──► QEMU's monitor
//!                          ├─ bridge ─────► QEMU's network card        (and in a namespace beside it: dnsmasq)
//!                          └─ TCP ────────► QEMU's serial line
//! ```

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use tests::bench::{Bench, Surroundings, need_programs, need_virtual_machines};
use tests::board::{Board, Rom};
use tests::lab::{Lab, Running};
use tests::packages::{Files, unpacked};

use crate::boots::{
    arm64_job, farm_with, linux_job_that_shows, odd_words, own_device_tree, serve_file, serve_file_at, tiny,
};
use crate::farms::{QEMU, WHARF, virtual_};
use crate::picked_up::{self, Place};

const LINK: &str = "wharf0";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
const MAC: &str = "52:54:00:88:00:05";

/// A namespace with a bridge; `None`: nobody may make one here.
fn lab() -> Option<Arc<Lab>> {
    need_virtual_machines(WHARF);
    let lab = match Lab::new() {
        Ok(lab) => lab,
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            return None;
        }
    };
    lab.bridge(LINK, GATEWAY).unwrap();
    Some(Arc::new(lab))
}

/// A farm with this one machine in the lab; `of_the_dut` and `of_the_farm` are further YAML.
fn farm(lab: &Arc<Lab>, board: &Board, of_the_dut: &str, of_the_farm: &str) -> Bench {
    let machine = board.machine();
    let farm = format!(
        "name: firmware
network: {{interface: {{name: {LINK}, address: {GATEWAY}/24}}}}
{of_the_farm}duts:
  - {{id: board, mac: '{MAC}', address: 10.88.0.15, off_time: 0 s, machine: {machine}, {of_the_dut}}}
"
    );
    Bench::start_with(WHARF, &farm, Surroundings { lab: Some(Arc::clone(lab)), ..Surroundings::default() })
}

/// QEMU's `virt` machine with EDK2 for arm64, which boots by PXE.
fn uefi_arm64(lab: &Lab, variables: &Path) -> Board {
    let code = "/usr/share/AAVMF/AAVMF_CODE.fd";
    need_programs(&[("qemu-system-aarch64", "qemu-system-arm"), (code, "qemu-efi-aarch64")]);
    std::fs::copy("/usr/share/AAVMF/AAVMF_VARS.fd", variables).unwrap();
    let flash = |more: &str, file: &str| format!("if=pflash,format=raw,{more}file={file}");
    let (code, variables) = (flash("readonly=on,", code), flash("", &variables.display().to_string()));
    let arguments = ["-M", "virt", "-cpu", "cortex-a57", "-m", "256", "-drive", &code, "-drive", &variables];
    Board::new(lab, LINK, MAC, Rom::Empty, "qemu-system-aarch64", &arguments)
}

#[test]
fn grub_boots_an_arm64_machine_by_tftp_with_the_words_and_the_device_tree_that_we_served() {
    let Some(lab) = lab() else { return };
    let _place = QEMU.pass();
    let package = unpacked("arm64", "grub-efi-arm64-bin", Files::Own);
    let loader = package.join("usr/lib/grub/arm64-efi/monolithic/grubnetaa64.efi");
    let folder = tempfile::tempdir().unwrap();
    let board = uefi_arm64(&lab, &folder.path().join("variables.fd"));
    let bench = farm(&lab, &board, &format!("boot: {{method: grub, loader: {}}}", loader.display()), "");
    // GRUB's own line ends only with ours.
    let job = |dtb: &str| arm64_job(&odd_words(), dtb).replace("'^TINY: model", "'TINY: model");
    let dtb = serve_file_at(lab.inside(|| TcpListener::bind("127.0.0.1:0")).unwrap(), own_device_tree());
    let ended = bench.submit(&job(&dtb), "").wait();
    ended.expect("PASS", "test").expect_in_order(&[
        &format!("TFTP /grubnetaa64.efi: {} bytes, complete", std::fs::metadata(&loader).unwrap().len()),
        "TFTP /grub/grub.cfg: ",
        "TFTP /_/job/kernel: 1120 bytes, complete",
        "TFTP /_/job/initramfs/0: 5 bytes, complete",
        "TFTP /_/job/initramfs/1: 6 bytes, complete",
        "TFTP /_/job/dtb: ",
    ]);
    // GRUB begins with the file's name, puts a word with spaces between quotes, and a backslash before a quote and a backslash.
    let said = r#"TINY: cmdline=BOOT_IMAGE=/_/job/kernel a;b c&&d e|f "run=one two" it\'s $HOME ${x} #no back\\slash * word.0=v "#;
    ended.expect_said(&[said, " word.399=v\r\n", "TINY: initramfs=first...second\r\n"]);
}

/// The network's own DHCP server, in a namespace beside the lab: it gives the machine `address`, and knows nothing of booting.
fn dnsmasq(lab: &Lab, folder: &Path, address: Ipv4Addr) -> (Lab, Running) {
    need_programs(&[("dnsmasq", "dnsmasq-base")]);
    let beside = Lab::new().unwrap();
    lab.plug(LINK, &beside, Ipv4Addr::new(10, 88, 0, 2)).unwrap();
    let mut command = beside.command("dnsmasq").unwrap();
    command.args([
        "--no-daemon",
        "--port=0",
        "--no-hosts",
        "--no-resolv",
        "--conf-file=/dev/null",
        "--log-dhcp",
        "--no-ping",
    ]);
    command.args(["--dhcp-range=10.88.0.100,10.88.0.199,1h", &format!("--dhcp-host={MAC},{address}")]);
    command.arg(format!("--dhcp-leasefile={}", folder.join("leases").display()));
    let server = Running::spawn("dnsmasq", command, &folder.join("dnsmasq.log")).unwrap();
    (beside, server)
}

/// What dnsmasq has said.
fn said_by_dnsmasq(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("dnsmasq.log")).unwrap()
}

const BESIDE_ANOTHER: &str = "dhcp: {mode: proxy}\n";

#[test]
fn a_bios_machine_boots_what_we_say_with_the_address_that_the_network_s_own_dhcp_server_gives_it() {
    let Some(lab) = lab() else { return };
    let _place = QEMU.pass();
    let folder = tempfile::tempdir().unwrap();
    let _server = dnsmasq(&lab, folder.path(), Ipv4Addr::new(10, 88, 0, 15));
    let machine = ["-m", "128", "-machine", "q35,graphics=off"];
    let board = Board::new(&lab, LINK, MAC, Rom::Ipxe, "qemu-system-x86_64", &machine);
    let bench = farm(&lab, &board, "tags: ['firmware:bios']", BESIDE_ANOTHER);
    let ended = bench.run(&tiny("print=good", "", "", ""));
    ended.expect("PASS", "test").expect_in_order(&[
        "first DHCP request",
        "HTTP /_/boot/boot.ipxe: ",
        "HTTP /_/job/kernel: ",
    ]);
    let said = said_by_dnsmasq(folder.path());
    assert!(said.contains(&format!("DHCPACK(cable0) 10.88.0.15 {MAC}")), "{said}");
}

#[test]
fn uefi_loads_a_kernel_by_pxe_with_the_address_that_the_network_s_own_dhcp_server_gives_it() {
    let Some(lab) = lab() else { return };
    let _place = QEMU.pass();
    let folder = tempfile::tempdir().unwrap();
    let _server = dnsmasq(&lab, folder.path(), Ipv4Addr::new(10, 88, 0, 15));
    let board = uefi_arm64(&lab, &folder.path().join("variables.fd"));
    let bench = farm(&lab, &board, "boot: {method: uefi-pxe}", BESIDE_ANOTHER);
    let job = "version: 1
target: {id: board}
timeouts: {overall: {minutes: 10}}
console_patterns:
  session_end: {regex: '^TINY: power off\\r$'}
  job_success: {regex: '^TINY: cmdline=\\r$'}
deployment: {start: {kernel: {url: '{{ images_url }}/tiny-arm64'}}}
";
    let ended = bench.run(job);
    ended.expect("PASS", "test").expect_in_order(&["first DHCP request", "TFTP /kernel.efi: 1120 bytes, complete"]);
    let said = said_by_dnsmasq(folder.path());
    assert!(said.contains(&format!("DHCPACK(cable0) 10.88.0.15 {MAC}")), "{said}");
}

#[test]
fn a_machine_that_the_other_dhcp_server_gives_another_address_reads_nothing_and_its_job_says_why() {
    let Some(lab) = lab() else { return };
    let _place = QEMU.pass();
    let folder = tempfile::tempdir().unwrap();
    let _server = dnsmasq(&lab, folder.path(), Ipv4Addr::new(10, 88, 0, 77));
    let machine = ["-m", "128", "-machine", "q35,graphics=off"];
    let board = Board::new(&lab, LINK, MAC, Rom::Ipxe, "qemu-system-x86_64", &machine);
    let bench = farm(&lab, &board, "tags: ['firmware:bios']", BESIDE_ANOTHER);
    let mut job = bench.submit(&tiny("print=good", "", "", ""), "");
    // What it says when it was refused.
    job.wait_for_console("boot.ipxe... ");
    job.wait_for_console("No such file or directory");
    job.cancel();
    let ended = job.wait();
    ended.expect("INCOMPLETE", "cancelled").expect_in_order(&[
        "DHCP: it takes the address 10.88.0.77 from the other DHCP server, and 10.88.0.15 is reserved here; make the other one give it \
         10.88.0.15",
    ]);
    assert!(!ended.evidence.iter().any(|entry| entry.starts_with("HTTP")), "{ended}");
}

/// One file by curl, which asks as boards do: octets, no slash at the name's beginning. `None`: it is not there.
fn read_by_tftp(dut: &Lab, name: &str) -> Option<String> {
    let mut command = dut.command("curl").unwrap();
    let output =
        command.args(["--silent", "--max-time", "30", &format!("tftp://{}/{name}", picked_up::GATEWAY)]).output();
    let output = output.unwrap();
    match output.status.code() {
        Some(0) => Some(String::from_utf8(output.stdout).unwrap()),
        // "There was a problem locating a file on the TFTP server" (curl's manual, exit codes).
        Some(68) => None,
        _ => panic!("{name}: {output:?}"),
    }
}

/// A job for a machine that this test plays: everything is told apart by its text.
const ALL_FILES: &str = "version: 1
target: {tags: []}
timeouts: {overall: {minutes: 10}}
console_patterns:
  session_end: {regex: '^the end$'}
  job_success: {regex: '^all is good$'}
deployment:
  start:
    kernel: {data: the kernel, cmdline: [console=ttyS0, 'run=\"a b\"']}
    initramfs: [{data: 'first, '}, {data: second}]
    dtb: {data: the device tree}
";

#[test]
fn a_raspberry_pi_reads_in_its_own_folder_what_its_boot_rom_asks_for_and_is_told_what_is_not_there() {
    need_programs(&[("curl", "curl")]);
    let Some(place) = Place::new() else { return };
    let files = tempfile::tempdir().unwrap();
    std::fs::create_dir(files.path().join("overlays")).unwrap();
    for name in ["bootcode.bin", "start.elf", "fixup.dat", "overlays/disable-bt.dtbo"] {
        std::fs::write(files.path().join(name), name).unwrap();
    }
    let firmware = files.path().display();
    let bench = place.start_with(&format!(
        "    boot: {{method: raspberry-pi, serial: '2073ff53', firmware: {firmware}, config: [dtoverlay=disable-bt]}}\n"
    ));
    let dut = Lab::new().unwrap();
    place.lab.plug(picked_up::LINK, &dut, Ipv4Addr::new(10, 88, 0, 11)).unwrap();
    let mut job = bench.submit(ALL_FILES, "");
    let mut console = place.opened();
    job.wait_for_kind("powered_on");
    let config = "arm_64bit=1\nenable_uart=1\nkernel=kernel8.img\ncmdline=cmdline.txt\ninitramfs initramfs followkernel\n\
                  device_tree=wharf.dtb\ndtoverlay=disable-bt\n";
    // The order of a Pi 3: raspberrypi.com, "Network boot flow", and logs of TFTP servers beside one. A Pi 4 begins in its folder.
    let asked = [
        ("bootcode.bin", Some("bootcode.bin")),
        ("bootsig.bin", None),
        ("2073ff53/start.elf", Some("start.elf")),
        ("2073ff53/autoboot.txt", None),
        ("2073ff53/config.txt", Some(config)),
        ("2073ff53/recovery.elf", None),
        ("2073ff53/start.elf", Some("start.elf")),
        ("2073ff53/fixup.dat", Some("fixup.dat")),
        ("2073ff53/dt-blob.bin", None),
        ("2073ff53/bootcfg.txt", None),
        ("2073ff53/cmdline.txt", Some("console=ttyS0 run=\"a b\"\n")),
        ("2073ff53/kernel8.img", Some("the kernel")),
        ("2073ff53/armstub8-32.bin", None),
        ("2073ff53/initramfs", Some("first, \0second")),
        ("2073ff53/wharf.dtb", Some("the device tree")),
        ("2073ff53/overlays/disable-bt.dtbo", Some("overlays/disable-bt.dtbo")),
        // Where the EEPROM says so (TFTP_PREFIX): the MAC, or no folder. Never another board's.
        ("52-54-00-88-00-01/config.txt", Some(config)),
        ("config.txt", Some(config)),
        ("2073ff54/config.txt", None),
    ];
    for (name, expected) in asked {
        assert_eq!(read_by_tftp(&dut, name).as_deref(), expected, "{name}");
    }
    console.write_all(b"all is good\nthe end\n").unwrap();
    let ended = job.wait();
    ended
        .expect("PASS", "test")
        .expect_in_order(&["TFTP /2073ff53/kernel8.img: 10 bytes, complete", "/bootsig.bin: refused"]);
}

#[test]
fn a_board_that_asks_tftp_for_fixed_names_gets_its_own_job_s_files_by_them() {
    need_programs(&[("tftp", "tftp-hpa")]);
    let Some(place) = Place::new() else { return };
    let bench = place.start_with("    boot: {method: depthcharge, files: {kernel: /lab/fit, cmdline: /lab/words}}\n");
    let dut = Lab::new().unwrap();
    place.lab.plug(picked_up::LINK, &dut, Ipv4Addr::new(10, 88, 0, 11)).unwrap();
    let mut job = bench.submit(ALL_FILES, "");
    let mut console = place.opened();
    job.wait_for_kind("powered_on");
    let folder = tempfile::tempdir().unwrap();
    let names = [
        ("lab/fit", "the kernel"),
        ("lab/words", "console=ttyS0 run=\"a b\""),
        ("/initramfs", "first, \0second"),
        ("/dtb", "the device tree"),
    ];
    for (name, expected) in names {
        let file = folder.path().join("file").display().to_string();
        let mut client = dut.command("tftp").unwrap();
        let server = picked_up::GATEWAY.to_string();
        let output = client.args(["-m", "binary", &server, "-c", "get", name, &file]).output().unwrap();
        let read = std::fs::read_to_string(&file);
        assert_eq!(read.unwrap_or_else(|error| panic!("{name}: {error}: {output:?}")), expected, "{name}");
    }
    console.write_all(b"all is good\nthe end\n").unwrap();
    job.wait().expect("PASS", "test");
}

/// A board of which the code has never heard, as the page about booting has it.
fn unheard_of() -> &'static str {
    let page = include_str!("../../../docs/protocols/booting.md");
    let section = page.split_once("## A new board\n").expect("the page has that section").1;
    let block = section.split_once("```yaml\n").expect("an example is in it").1;
    block.split_once("```").expect("the block ends").0
}

#[test]
fn a_board_unknown_to_the_code_boots_by_the_database_alone_and_its_job_replaces_a_category() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("boots.yml"), unheard_of()).unwrap();
    let boots = format!("boots: {}\n", folder.path().join("boots.yml").display());
    let machine = "tags: ['board:unheard-of'], machine: {qemu: {firmware: u-boot-arm64}}";
    let bench = farm_with(machine, &boots);
    let _place = QEMU.pass();
    // No `${}`: in `pxelinux.cfg` they are U-Boot's.
    let words = "a;b c&&d e|f run=\"one two\" it's #no back\\slash *";
    let job = arm64_job(words, &serve_file(own_device_tree()));
    let job = job.replace("cmdline: ", "cmdline: {50-policy: [policy=lax], 90-job: ").replace("\"}\n", "\"}}\n");
    let ended = bench.submit(&job, "").wait();
    ended.expect("PASS", "test").expect_in_order(&[
        "TFTP /boot.scr.uimg: ",
        "TFTP /pxelinux.cfg/01-52-54-00-77-00-05: ",
        "TFTP /_/job/kernel: 1120 bytes, complete",
        "TFTP /_/job/initramfs: 14 bytes, complete",
        "TFTP /_/job/dtb: ",
    ]);
    // What is special to a shell is not to U-Boot's reader of this format, but for the quote, which it leaves out.
    ended.expect_said(&[
        "TINY: cmdline=console=ttyAMA0 board=board policy=lax a;b c&&d e|f run=\"one two\" its #no back\\slash *\r\n",
        "TINY: initramfs=first...second\r\n",
    ]);
}

/// What a machine without a network boot has on its disk: it asks DHCP for a boot file, fetches that script and runs it.
const RESIDENT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
echo 'resident: up'
while read -r module; do insmod /lib/modules/$module; done </etc/modules.order
for link in /sys/class/net/*; do link=${link##*/}; [ $link = lo ] || break; done
ip link set $link up
udhcpc -q -n -f -O bootfile -i $link -s /etc/resident.sh
wget -q -O /tmp/script $(cat /tmp/boot_file) && sh /tmp/script
echo 'resident: the script came back'
";
const RESIDENT_DHCP: &str = "#!/bin/sh
. /etc/udhcpc.sh
[ \"$1\" != bound ] || echo \"$boot_file\" >/tmp/boot_file
";

/// A cpio archive as the kernel unpacks it over what came before (Documentation/driver-api/early-userspace/buffer-format.rst).
pub(crate) fn cpio(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Vec::new();
    let mut add = |name: &str, mode: usize, bytes: &[u8]| {
        let mut fields = [0; 13];
        (fields[1], fields[4], fields[6], fields[11]) = (mode, 1, bytes.len(), name.len() + 1);
        archive.extend(b"070701");
        archive.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
        archive.extend(name.bytes().chain([0]));
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(bytes);
        archive.resize(archive.len().next_multiple_of(4), 0);
    };
    let mut folders: Vec<&str> = Vec::new();
    for (name, bytes) in files {
        for (at, _) in name.match_indices('/').filter(|(at, _)| !folders.contains(&&name[..*at])).collect::<Vec<_>>() {
            add(&name[..at], 0o040_755, b"");
            folders.push(&name[..at]);
        }
        add(name, 0o100_755, bytes);
    }
    add("TRAILER!!!", 0, b"");
    archive
}

/// The libraries that Debian's kexec wants, by how their names begin.
const LIBRARIES: [&str; 5] = ["ld-linux", "libc.so", "liblzma", "libxen", "libz.so"];

/// The kernel and the initramfs of such a machine: those that jobs boot here, and Debian's kexec with its libraries.
fn resident_system(folder: &Path) -> (String, String) {
    let system = unpacked("amd64", "kexec-tools", Files::WithDependencies);
    let mut files = vec![("init".to_owned(), RESIDENT.into()), ("etc/resident.sh".to_owned(), RESIDENT_DHCP.into())];
    for program in ["sbin/kexec", "usr/sbin/kexec"] {
        files.extend(std::fs::read(system.join(program)).map(|bytes| ("bin/kexec".to_owned(), bytes)));
    }
    for libraries in ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"] {
        for entry in std::fs::read_dir(system.join(libraries)).into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if LIBRARIES.iter().any(|library| name.starts_with(library)) {
                let home = if name.starts_with("ld-linux") { "lib64" } else { "lib/x86_64-linux-gnu" };
                files.push((format!("{home}/{name}"), std::fs::read(system.join(libraries).join(&name)).unwrap()));
            }
        }
    }
    let bench = virtual_();
    let (kernel, initramfs) = (folder.join("kernel"), folder.join("initramfs"));
    std::fs::write(&kernel, bench.get("/images/kernel").body).unwrap();
    let mut initrd = bench.get("/images/initramfs").body;
    // The kernel looks for the next archive on a boundary of four bytes.
    initrd.resize(initrd.len().next_multiple_of(4), 0);
    initrd.extend(cpio(&files));
    std::fs::write(&initramfs, initrd).unwrap();
    (kernel.display().to_string(), initramfs.display().to_string())
}

#[test]
fn a_resident_linux_asks_for_its_job_by_http_and_starts_its_kernel_by_kexec() {
    let Some(lab) = lab() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (kernel, initramfs) = resident_system(folder.path());
    let _place = QEMU.pass();
    let mut machine = vec!["-m", "512", "-machine", "q35", "-kernel", &kernel, "-initrd", &initramfs];
    machine.extend(["-append", "console=ttyS0 quiet panic=-1"]);
    let board = Board::new(&lab, LINK, MAC, Rom::Empty, "qemu-system-x86_64", &machine);
    let bench = farm(&lab, &board, "tags: [resident], boot: {method: kexec}", "");
    let words = &odd_words()[..1500];
    let ended = bench.run(&linux_job_that_shows("resident", words));
    ended.expect("PASS", "test").expect_in_order(&[
        "HTTP /_/boot/kexec.sh: ",
        "HTTP /_/job/kernel: ",
        "HTTP /_/job/initramfs/0: ",
    ]);
    ended.expect_said(&["resident: up", "wharf: init started", words]);
}
