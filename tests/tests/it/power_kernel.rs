//! USB hubs and GPIO lines of a real kernel: the server runs inside of QEMU, under Debian's kernel, whose word counts for what a port or a
//! line does.
//!
//! ```text
//!  QEMU: xhci ─┬─ hub that switches its ports ─ keyboard      the server ─ `switch: sysfs`
//!              └─ hub that switches its ports ─ keyboard      the server ─ `switch: port-power`
//!        the kernel's simulated GPIO chip                     the server ─ `gpio`, `active: high` and `low`
//! ```
//! A kernel of 70 MB takes too long for every run: `WHARF_KERNEL=1 cargo test -p executor --test it power_kernel`, half a minute once the kernel is
//! there. Debian's kernels have no `gpio-sim`; GPIO is tried where `WHARF_GPIO_SIM` names that module, built for this kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tests::bench::need_programs;
use tests::packages::{Files, unpacked};

use crate::farms::WHARF;

/// Set by who wants it to run.
const WANTED: &str = "WHARF_KERNEL";
const GPIO_SIM: &str = "WHARF_GPIO_SIM";
/// In the order in which they need each other.
const MODULES: &[&str] = &["usb-common", "usbcore", "xhci-hcd", "xhci-pci", "configfs", "gpio-sim"];

const FARM: &str = "name: guest
network: {loopback: {}}
state: /tmp/state
pdus:
- {name: file, min_off_time: 0 s, usb-hub: {controller: '0000:00:01.0', devices: [{devpath: '1'}], switch: sysfs}}
- {name: request, min_off_time: 0 s, usb-hub: {controller: '0000:00:01.0', devices: [{devpath: '2'}], switch: port-power}}
- {name: high, min_off_time: 0 s, gpio: {chip: gpiochip0, outlets: {'1': 3}}}
- {name: low, min_off_time: 0 s, gpio: {chip: gpiochip0, outlets: {'1': 5}, active: low}}
duts: []
";

/// Says in lines with `=` what was done, and what the kernel says then.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
ip link set lo up
for module in MODULES; do insmod /modules/$module.ko; done
mount -t configfs config /sys/kernel/config
chip=/sys/kernel/config/gpio-sim/chip
mkdir $chip && mkdir $chip/bank && echo 8 > $chip/bank/num_lines && echo 1 > $chip/live
until_so() { tries=0; while [ $tries -lt 300 ]; do if eval \"$1\"; then return; fi; sleep 0.1; tries=$((tries + 1)); done; echo \"= NOT $1\"; }
usb=/sys/bus/usb/devices
until_so '[ -e $usb/1-1.1 ] && [ -e $usb/1-2.1 ]'
wharf serve --farm /farm.yml > /tmp/log 2>&1 &
until_so 'grep -q http:// /tmp/log'
wharf pdus --discover --listen 0 | sed 's/^/= /'
hub() {
    wharf pdu $3 $1 1 2>&1 | sed 's/^/= /'
    echo \"= its port is $(cat $usb/1-$2:1.0/1-$2-port1/disable), the next one $(cat $usb/1-$2:1.0/1-$2-port2/disable)\"
}
hub file 1 off; until_so '! [ -e $usb/1-1.1 ]'
hub file 1 on; until_so '[ -e $usb/1-1.1 ]'
hub request 2 off
hub request 2 on; until_so '[ -e $usb/1-2.1 ]'
gpio() { wharf pdu $2 $1 1 2>&1 | sed 's/^/= /'; echo \"= its line is $(cat /sys/devices/platform/gpio-sim.0/gpiochip*/sim_gpio$3/value)\"; }
if [ -e /dev/gpiochip0 ]; then
    gpio high on 3; gpio high off 3; gpio low on 5; gpio low off 5
fi
sed 's/^/log: /' /tmp/log
poweroff -f
";

/// A root file system with the server, the libraries that it needs, and the kernel's modules.
fn root(folder: &Path, modules: &Path) {
    for name in ["bin", "dev", "proc", "run", "root", "sys", "tmp", "modules", "lib64"] {
        fs::create_dir(folder.join(name)).unwrap();
    }
    let copy = |from: &Path, to: &str| {
        fs::copy(from, folder.join(to)).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    };
    let stripped = Command::new("strip").arg("-o").arg(folder.join("bin/wharf")).arg(WHARF).status();
    assert!(stripped.is_ok_and(|status| status.success()), "the server can be stripped");
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.exists());
    copy(&busybox.expect("it was installed"), "bin/busybox");
    let needed = Command::new("ldd").arg(WHARF).output().unwrap();
    for word in String::from_utf8_lossy(&needed.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
        let target = folder.join(word.trim_start_matches('/'));
        fs::create_dir_all(target.parent().expect("it has a folder")).unwrap();
        fs::copy(word, target).unwrap();
    }
    let gpio_sim = std::env::var_os(GPIO_SIM).map(PathBuf::from);
    for name in MODULES.iter().filter(|name| **name != "gpio-sim" || gpio_sim.is_some()) {
        let found = gpio_sim.clone().filter(|_| *name == "gpio-sim").or_else(|| find(modules, &format!("{name}.ko")));
        copy(&found.unwrap_or_else(|| panic!("the kernel has no {name}.ko")), &format!("modules/{name}.ko"));
    }
    fs::write(folder.join("farm.yml"), FARM).unwrap();
    fs::write(folder.join("init"), INIT.replace("MODULES", &MODULES.join(" "))).unwrap();
    must(Command::new("chmod").arg("+x").arg(folder.join("init")));
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    let mut folders = Vec::new();
    for path in entries {
        if path.is_dir() {
            folders.push(path);
        } else if path.file_name().is_some_and(|it| it == name) {
            return Some(path);
        }
    }
    folders.iter().find_map(|folder| find(folder, name))
}

fn must(command: &mut Command) {
    assert!(command.status().is_ok_and(|status| status.success()), "{command:?}");
}

#[test]
fn ports_and_lines_of_a_real_kernel_do_as_they_are_told() {
    if std::env::var_os(WANTED).is_none() {
        return eprintln!("SKIPPED: {WANTED} is not set");
    }
    need_programs(&[
        ("busybox", "busybox-static"),
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("strip", "binutils"),
        ("gzip", "gzip"),
    ]);
    let kernel = unpacked("amd64", "linux-image-amd64", Files::WithDependencies);
    let place = tempfile::tempdir().unwrap();
    let tree = place.path().join("root");
    fs::create_dir(&tree).unwrap();
    root(&tree, &kernel.join("lib/modules"));
    let archive = place.path().join("initramfs");
    let pack = "cd \"$1\" && find . | busybox cpio -o -H newc 2> /dev/null | gzip -1 > \"$2\"";
    must(Command::new("sh").args(["-c", pack, "sh"]).arg(&tree).arg(&archive));
    let boot = fs::read_dir(kernel.join("boot")).unwrap().filter_map(Result::ok).map(|entry| entry.path());
    let mut images =
        boot.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")));
    let mut qemu = Command::new("timeout");
    // Ten times what it takes alone.
    qemu.args([
        "300",
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-M",
        "q35",
        "-m",
        "700",
        "-nodefaults",
        "-no-user-config",
    ]);
    qemu.args(["-display", "none", "-serial", "stdio", "-no-reboot", "-append", "console=ttyS0 quiet panic=-1"]);
    qemu.arg("-kernel").arg(images.next().expect("the package has a kernel")).arg("-initrd").arg(&archive);
    qemu.args(["-device", "qemu-xhci,id=usb,addr=1"]);
    for port in ["1", "2"] {
        qemu.args(["-device", &format!("usb-hub,bus=usb.0,port={port},port-power=on")]);
        qemu.args(["-device", &format!("usb-kbd,bus=usb.0,port={port}.1")]);
    }
    let output = qemu.stdin(Stdio::null()).output().unwrap();
    let all = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    let said: Vec<&str> = all.lines().filter_map(|line| line.strip_prefix("= ")).collect();
    let mut expected = vec![
        "# a USB hub, which may switch its ports (USB: 8 ports) is `file` already",
        "# a USB hub, which may switch its ports (USB: 8 ports) is `request` already",
        "outlet 1 of file: off",
        "its port is 1, the next one 0",
        "outlet 1 of file: on",
        "its port is 0, the next one 0",
        "outlet 1 of request: off",
        "its port is 1, the next one 0",
        "outlet 1 of request: on",
        "its port is 0, the next one 0",
    ];
    if std::env::var_os(GPIO_SIM).is_some() {
        expected.extend(["outlet 1 of high: on", "its line is 1", "outlet 1 of high: off", "its line is 0"]);
        expected.extend(["outlet 1 of low: on", "its line is 0", "outlet 1 of low: off", "its line is 1"]);
    }
    assert_eq!(said, expected, "{all}\n{}", String::from_utf8_lossy(&output.stderr));
}
