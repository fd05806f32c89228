//! The root file system that a virtual DUT boots with a Debian kernel: busybox, the modules its network card needs, and an `init`
//! that does what the kernel command line says (`fixtures/virtual-dut/init`).
//!
//! ```text
//!   cpio "newc" archive, gzip'd        bin/busybox          static, so that nothing else is needed
//!   (linux: buffer-format.rst)         init, etc/*.sh       from fixtures/virtual-dut
//!                                      etc/modules.order    one path per line, dependencies first
//!                                      lib/modules/*.ko     virtio_pci, virtio_net, … and what they depend on
//! ```
//! The same inputs give the same bytes (no time, no owner, sorted), and the cache's file is named by their hash.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::install::Kernel;

/// The DUT's first process.
const INIT: &str = include_str!("../../../fixtures/virtual-dut/init");

/// What configures its link.
const UDHCPC_SCRIPT: &str = include_str!("../../../fixtures/virtual-dut/udhcpc.sh");

/// What tells the farm what the machine is, when the command line says so.
const REGISTER_SCRIPT: &str = include_str!("../../../fixtures/virtual-dut/register.sh");

/// Modules that a virtual DUT needs for its disk-less life; each may as well be built into the kernel.
const MODULES: &[&str] = &["virtio_pci", "virtio_net", "virtio_rng", "nbd"];

/// Modules besides, for real machines: the wired network cards that PCs, servers and boards have. Loading those whose card is not there
/// does nothing.
const MODULES_OF_HARDWARE: &[&str] = &[
    "alx",
    "amd_xgbe",
    "aqc111",
    "atlantic",
    "ax88179_178a",
    "be2net",
    "bnx2",
    "bnx2x",
    "bnxt_en",
    "cdc_ether",
    "cdc_ncm",
    "cxgb4",
    "dwmac_rk",
    "e100",
    "e1000",
    "e1000e",
    "ena",
    "fec",
    "forcedeth",
    "genet",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "lan743x",
    "lan78xx",
    "macb",
    "mlx4_en",
    "mlx5_core",
    "qede",
    "r8152",
    "r8169",
    "realtek",
    "sfc",
    "sky2",
    "smsc95xx",
    "tg3",
    "vmxnet3",
    "xhci_pci",
];

/// Modes as in stat(2).
const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Why there is no initramfs.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// A file could not be read or written.
    #[error("cannot {action} `{}`: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The gzip program failed.
    #[error("cannot compress the initramfs with `gzip`: {0}; install the package gzip")]
    Gzip(io::Error),
}

/// Builds the initramfs for `kernel`, or finds the one built before, in `cache`.
pub fn build(kernel: &Kernel, busybox: &Path, cache: &Path) -> Result<PathBuf, InitramfsError> {
    build_with(MODULES, kernel, busybox, cache)
}

/// The same with the drivers of real machines' network cards.
pub fn build_for_hardware(kernel: &Kernel, busybox: &Path, cache: &Path) -> Result<PathBuf, InitramfsError> {
    build_with(&[MODULES, MODULES_OF_HARDWARE].concat(), kernel, busybox, cache)
}

fn build_with(wanted: &[&str], kernel: &Kernel, busybox: &Path, cache: &Path) -> Result<PathBuf, InitramfsError> {
    let archive = archive(wanted, kernel, busybox)?;
    let name = format!("initramfs-{}.cpio.gz", short_hash(&archive));
    let path = cache.join(&name);
    if path.is_file() {
        return Ok(path);
    }
    let compressed = gzip(archive).map_err(InitramfsError::Gzip)?;
    let failed = |source| InitramfsError::File { action: "write", path: path.clone(), source };
    fs::create_dir_all(cache).map_err(failed)?;
    let mut file = tempfile::NamedTempFile::new_in(cache).map_err(failed)?;
    file.write_all(&compressed).map_err(failed)?;
    file.persist(&path).map_err(|error| failed(error.error))?;
    Ok(path)
}

/// The archive, not compressed.
fn archive(wanted: &[&str], kernel: &Kernel, busybox: &Path) -> Result<Vec<u8>, InitramfsError> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "etc", "lib", "lib/modules", "proc", "sys", "tmp"] {
        archive.add(directory, DIRECTORY, b"");
    }
    // The kernel opens it for init before anything is mounted; without it init's first errors are lost.
    archive.add_device("dev/console", CHARACTER_DEVICE, (5, 1));
    archive.add("bin/busybox", PROGRAM, &read(busybox)?);
    archive.add("bin/sh", LINK, b"busybox");
    archive.add("init", PROGRAM, INIT.as_bytes());
    archive.add("etc/udhcpc.sh", PROGRAM, UDHCPC_SCRIPT.as_bytes());
    archive.add("etc/register.sh", PROGRAM, REGISTER_SCRIPT.as_bytes());
    let mut order = String::new();
    for (name, bytes) in modules_in_order(&kernel.modules, wanted)? {
        archive.add(&format!("lib/modules/{name}.ko"), FILE, &bytes);
        order.push_str(&format!("{name}.ko\n"));
    }
    archive.add("etc/modules.order", FILE, order.as_bytes());
    Ok(archive.finish())
}

/// The wanted modules and all that they depend on, each after what it needs. One that is not there is taken as built in.
fn modules_in_order(folder: &Path, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>, InitramfsError> {
    let mut present = BTreeMap::new();
    find_modules(folder, &mut present)?;
    let (mut ordered, mut seen) = (Vec::new(), BTreeSet::new());
    for name in wanted {
        add_module(&canonical(name), &present, &mut seen, &mut ordered)?;
    }
    Ok(ordered)
}

/// Depth first; `seen` also ends a circle.
fn add_module(
    name: &str,
    present: &BTreeMap<String, PathBuf>,
    seen: &mut BTreeSet<String>,
    ordered: &mut Vec<(String, Vec<u8>)>,
) -> Result<(), InitramfsError> {
    let Some(path) = present.get(name).filter(|_| seen.insert(name.to_owned())) else {
        return Ok(());
    };
    let bytes = read(path)?;
    for needed in dependencies(&bytes) {
        add_module(&needed, present, seen, ordered)?;
    }
    ordered.push((name.to_owned(), bytes));
    Ok(())
}

/// What a module's `.modinfo` says it needs: `depends=a,b` and `softdep=pre: c`. Entries are separated by zeroes; nothing else in a
/// module looks like one, so the section table need not be read.
fn dependencies(module: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    for entry in module.split(|byte| *byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok()) {
        if let Some(list) = entry.strip_prefix("depends=") {
            names.extend(list.split(',').filter(|name| !name.is_empty()).map(canonical));
        } else if let Some(list) = entry.strip_prefix("softdep=pre: ") {
            let before = list.split(" post: ").next().unwrap_or_default();
            names.extend(before.split_whitespace().map(implementation));
        }
    }
    names
}

/// An algorithm that a module asks for by name is another module: modprobe finds it by an alias. Cards ask for this one.
fn implementation(name: &str) -> String {
    if name == "crc32c" { "crc32c_generic".to_owned() } else { canonical(name) }
}

/// The kernel takes `-` and `_` in a module's name for the same.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// All `.ko` files below `folder`, by their canonical name.
fn find_modules(folder: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<(), InitramfsError> {
    let failed = |source| InitramfsError::File { action: "list", path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            find_modules(&path, found)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".ko")) {
            found.insert(canonical(name), path.clone());
        }
    }
    Ok(())
}

/// Through the program: a compressor as a library would be in the binary for this alone. `-n` leaves name and time out.
fn gzip(archive: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut child = Command::new("gzip").args(["-n", "-9"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().ok_or_else(|| io::Error::other("no pipe"))?;
    // From another thread, so that neither pipe fills while the other waits.
    let writer = std::thread::spawn(move || stdin.write_all(&archive));
    let output = child.wait_with_output()?;
    writer.join().map_err(|_| io::Error::other("the writing thread panicked"))??;
    if !output.status.success() {
        return Err(io::Error::other(format!("it ended with {}", output.status)));
    }
    Ok(output.stdout)
}

fn read(path: &Path) -> Result<Vec<u8>, InitramfsError> {
    fs::read(path).map_err(|source| InitramfsError::File { action: "read", path: path.to_owned(), source })
}

/// Sixteen hexadecimal digits: enough to tell a handful of cached files apart.
fn short_hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// A cpio archive in the making (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.add_entry(name, mode, content, (0, 0));
    }

    fn add_device(&mut self, name: &str, mode: u32, number: (u32, u32)) {
        self.add_entry(name, mode, b"", number);
    }

    /// One header of 13 numbers in eight hexadecimal digits each, the name, the content; both padded to four bytes.
    fn add_entry(&mut self, name: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        self.entries += 1;
        let link_count = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let (content_size, name_size) = (content.len() as u32, name.len() as u32 + 1);
        // magic, inode, mode, owner, group, links, time, size, device of the file system, device number, name size, checksum
        let numbers = [self.entries, mode, 0, 0, link_count, 0, content_size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for number in numbers {
            self.bytes.extend_from_slice(format!("{number:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, b"");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel folder with modules that say what they depend on, as bytes of no other meaning.
    fn kernel(folder: &Path) -> Kernel {
        let modules = folder.join("modules");
        let write = |name: &str, content: &[u8]| {
            let path = modules.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        write("drivers/net/virtio_net.ko", b"ELF\0license=GPL\0depends=net_failover,virtio-ring\0");
        write("drivers/net/net_failover.ko", b"ELF\0depends=failover\0");
        write("net/core/failover.ko", b"ELF\0depends=\0");
        write("drivers/virtio/virtio-ring.ko", b"ELF\0softdep=pre: failover post: nbd\0");
        write("drivers/block/nbd.ko", b"ELF\0depends=nbd\0");
        Kernel { version: "6.1.0".to_owned(), image: folder.join("vmlinuz"), modules }
    }

    #[test]
    fn modules_come_after_what_they_depend_on_and_built_in_ones_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<String> = modules_in_order(&kernel(folder.path()).modules, MODULES)
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["failover", "net_failover", "virtio_ring", "virtio_net", "nbd"]);
    }

    #[test]
    fn a_cpio_entry_is_written_to_the_byte() {
        let mut archive = Archive::default();
        archive.add("etc/motd", FILE, b"hello");
        // inode, mode, owner, group / links, time, size, device / …, … / number, …, name size / checksum
        let expected = "070701\
             00000001000081A40000000000000000\
             00000001000000000000000500000000\
             00000000000000000000000000000009\
             00000000etc/motd\0\0hello\0\0\0";
        assert_eq!(String::from_utf8_lossy(&archive.bytes), expected);
    }

    #[test]
    fn cpio_reads_what_we_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let busybox = folder.path().join("busybox");
        fs::write(&busybox, b"static").unwrap();
        let bytes = archive(MODULES, &kernel(folder.path()), &busybox).unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let path = folder.path().join("archive.cpio");
        fs::write(&path, bytes).unwrap();
        let script = "command -v cpio >/dev/null || exit 77; exec cpio --quiet -t";
        let output = Command::new("sh").args(["-c", script]).stdin(fs::File::open(path).unwrap()).output().unwrap();
        if output.status.code() == Some(77) {
            return eprintln!("SKIPPED: no cpio program");
        }
        assert!(output.status.success(), "{output:?}");
        let names = String::from_utf8(output.stdout).unwrap();
        assert!(names.starts_with("bin\ndev\netc\n"), "{names}");
        assert!(names.ends_with("lib/modules/nbd.ko\netc/modules.order\n"), "{names}");
    }

    #[test]
    fn the_same_inputs_give_the_same_file_once() {
        let folder = tempfile::tempdir().unwrap();
        let busybox = folder.path().join("busybox");
        fs::write(&busybox, b"static").unwrap();
        let kernel = kernel(folder.path());
        let cache = folder.path().join("cache");
        let first = build(&kernel, &busybox, &cache).unwrap();
        let bytes = fs::read(&first).unwrap();
        assert_eq!(&bytes[..4], [0x1f, 0x8b, 8, 0], "gzip, deflate, no name and no time");
        assert_eq!(build(&kernel, &busybox, &cache).unwrap(), first);
        fs::write(&busybox, b"another").unwrap();
        assert_ne!(build(&kernel, &busybox, &cache).unwrap(), first);
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 2);
    }

    #[test]
    fn a_missing_busybox_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = build(&kernel(folder.path()), Path::new("/nowhere/busybox"), folder.path()).unwrap_err();
        assert_eq!(error.to_string(), "cannot read `/nowhere/busybox`: No such file or directory (os error 2)");
    }
}
