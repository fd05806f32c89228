//! What virtual machines need and this host may lack: found, named with its reason, and fetched from the system's own package
//! archive. Nothing is fetched while nothing is missing.
//!
//! ```text
//!   need      looked for                                          missing: fetched by
//!   Qemu      qemu-system-x86_64, its iPXE ROMs                   apt-get install (root, or sudo without a password)
//!   Ipxe      undionly.kpxe, snponly.efi                          apt-get install
//!   Ovmf      OVMF's code and variables                           apt-get install
//!   UBoot     qemu-system-aarch64, U-Boot for its machine         apt-get install
//!   Kernel    <cache>/kernel/<version>/                           apt-get download, unpacked into the cache, never installed
//!   Drivers   <cache>/kernel-of-hardware/<version>/               the same
//!   Busybox   a busybox linked statically, <cache>/busybox/…      the same: installing it would displace the host's own busybox
//! ```
//! Unpacking goes to a temporary folder that is renamed when complete, so that an interrupted one leaves nothing half done.

use std::collections::VecDeque;
use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// The meta package whose dependency is the kernel. Its drivers are those of virtual machines, and it unpacks itself three times
/// as fast as the general kernel where there is no KVM.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";

/// The same of the general kernel, with the drivers of real machines.
const HARDWARE_KERNEL_PACKAGE: &str = "linux-image-amd64";

/// Folders of the cache.
const KERNELS: &str = "kernel";
const KERNELS_OF_HARDWARE: &str = "kernel-of-hardware";

/// Debian's and Ubuntu's package of a busybox without shared libraries.
const BUSYBOX_PACKAGE: &str = "busybox-static";

/// How long apt waits for another package manager to finish. Unattended upgrades take minutes, and people rather wait than fail.
const APT_LOCK_TIMEOUT_S: u32 = 300;

/// Between two attempts to read the archive's lists while somebody else does: that takes seconds.
const LISTS_LOCKED_PAUSE: Duration = Duration::from_secs(1);

/// Lines of a failed program's output that an error carries: apt's last words are within them.
const OUTPUT_TAIL_LINES: usize = 8;

/// Network cards, which machines that register need and virtual DUTs do not.
const CARD_MODULES: &[&str] = &["*/kernel/drivers/net/ethernet/*"];

/// Branches of the kernel's modules that no machine here loads; without them the cache holds half as much.
const UNWANTED_MODULES: &[&str] = &[
    "*/kernel/arch/*",
    "*/kernel/drivers/comedi/*",
    "*/kernel/drivers/gpu/*",
    "*/kernel/drivers/hid/*",
    "*/kernel/drivers/infiniband/*",
    "*/kernel/drivers/media/*",
    "*/kernel/drivers/net/wireless/*",
    "*/kernel/drivers/scsi/*",
    "*/kernel/drivers/target/*",
    "*/kernel/net/netfilter/*",
    "*/kernel/sound/*",
];

/// One thing that a farm may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The machine emulator with the network boot ROMs of its cards.
    Qemu,
    /// iPXE binaries for firmware that chainloads them.
    Ipxe,
    /// UEFI firmware.
    Ovmf,
    /// U-Boot, and the emulator of the arm64 machine that it is for.
    UBoot,
    /// A Debian kernel to boot.
    Kernel,
    /// A Debian kernel with the drivers of real machines.
    Drivers,
    /// The userland of the demo's initramfs.
    Busybox,
}

impl Need {
    /// All of them, in the order in which `wharf virtual list` shows them.
    pub const ALL: [Need; 7] =
        [Need::Qemu, Need::Ipxe, Need::Ovmf, Need::UBoot, Need::Kernel, Need::Drivers, Need::Busybox];
    /// What virtual machines need.
    pub const OF_VIRTUAL: [Need; 6] = [Need::Qemu, Need::Ipxe, Need::Ovmf, Need::UBoot, Need::Kernel, Need::Busybox];
    /// What real machines boot that register themselves.
    pub const OF_HARDWARE: [Need; 3] = [Need::Ipxe, Need::Drivers, Need::Busybox];

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Need::Qemu => "QEMU",
            Need::Ipxe => "iPXE",
            Need::Ovmf => "OVMF",
            Need::UBoot => "U-Boot",
            Need::Kernel => "Linux kernel",
            Need::Drivers => "Linux kernel with drivers",
            Need::Busybox => "busybox",
        }
    }

    /// What it is good for.
    pub fn why(self) -> &'static str {
        match self {
            Need::Qemu => "runs virtual DUTs, with network cards that boot over the network",
            Need::Ipxe => "is what plain PXE firmware loads first",
            Need::Ovmf => "is the firmware of UEFI DUTs",
            Need::UBoot => "is the firmware of arm64 DUTs (with QEMU for ARM)",
            Need::Kernel => "is what the demo boots (unpacked into the cache, not installed)",
            Need::Drivers => "is what real machines boot to register (unpacked into the cache, not installed)",
            Need::Busybox => "is the userland of both (unpacked into the cache, not installed)",
        }
    }

    /// The packages that apt installs for it; none for what is only unpacked.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Need::Qemu => &["qemu-system-x86", "ipxe-qemu"],
            Need::Ipxe => &["ipxe"],
            Need::Ovmf => &["ovmf"],
            Need::UBoot => &["qemu-system-arm", "u-boot-qemu"],
            Need::Kernel | Need::Drivers | Need::Busybox => &[],
        }
    }
}

/// A kernel in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// As `uname -r` in it will say.
    pub version: String,
    /// The bootable file.
    pub image: PathBuf,
    /// The folder of its modules.
    pub modules: PathBuf,
}

/// UEFI firmware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ovmf {
    /// Its code, shared by all machines.
    pub code: PathBuf,
    /// Its variables as they are before the first boot; each machine gets a copy.
    pub variables: PathBuf,
}

/// U-Boot and its machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UBoot {
    /// The emulator.
    pub qemu: PathBuf,
    /// U-Boot for its `virt` machine.
    pub image: PathBuf,
}

/// What is there. After [`ensure`] all that was asked for is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// The emulator.
    pub qemu: Option<PathBuf>,
    /// The folder with `undionly.kpxe` and `snponly.efi`.
    pub ipxe: Option<PathBuf>,
    /// UEFI firmware.
    pub ovmf: Option<Ovmf>,
    /// U-Boot for arm64 machines.
    pub u_boot: Option<UBoot>,
    /// The newest kernel in the cache.
    pub kernel: Option<Kernel>,
    /// The newest one with drivers of real machines.
    pub drivers: Option<Kernel>,
    /// A static busybox.
    pub busybox: Option<PathBuf>,
}

impl Installed {
    /// Where it is, or nothing.
    pub fn path(&self, need: Need) -> Option<&Path> {
        match need {
            Need::Qemu => self.qemu.as_deref(),
            Need::Ipxe => self.ipxe.as_deref(),
            Need::Ovmf => self.ovmf.as_ref().map(|ovmf| ovmf.code.as_path()),
            Need::UBoot => self.u_boot.as_ref().map(|u_boot| u_boot.image.as_path()),
            Need::Kernel => self.kernel.as_ref().map(|kernel| kernel.image.as_path()),
            Need::Drivers => self.drivers.as_ref().map(|kernel| kernel.image.as_path()),
            Need::Busybox => self.busybox.as_deref(),
        }
    }

    /// Those of `needs` that are not there.
    pub fn missing(&self, needs: &[Need]) -> Vec<Need> {
        Need::ALL.into_iter().filter(|need| needs.contains(need) && self.path(*need).is_none()).collect()
    }
}

/// One line of `wharf virtual list`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Listing {
    /// What people call it.
    pub name: &'static str,
    /// What it is good for.
    pub why: &'static str,
    /// Its version where one is known.
    pub version: Option<String>,
    /// Where it is; nothing: missing.
    pub path: Option<PathBuf>,
}

/// Why something is still missing.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// No right to install packages.
    #[error(
        "installing {packages} needs root, and neither are we root nor does `sudo` work without a password; run:\n  {line}"
    )]
    NoRight {
        /// Which packages.
        packages: String,
        /// What to run.
        line: String,
    },
    /// Not a system with apt.
    #[error(
        "this host has no `{program}` (it is not of the Debian family, or not complete); install by hand: {missing}; or use \
         simulated DUTs: `--dut simulated`"
    )]
    NoProgram {
        /// The program that is not there.
        program: String,
        /// What is missing, in words.
        missing: String,
    },
    /// A program failed.
    #[error("`{line}` failed with {status}:\n{output}")]
    Failed {
        /// What was run.
        line: String,
        /// How it ended.
        status: String,
        /// Its last lines.
        output: String,
    },
    /// The packages are there, the files are not.
    #[error(
        "{0} is still missing after its packages were installed; `wharf virtual list` shows where it is looked for"
    )]
    StillMissing(String),
    /// The kernel's meta package depends on nothing that looks like a kernel.
    #[error("apt knows no kernel behind the package `{0}`; add Debian's main archive to apt's sources")]
    NoKernelPackage(&'static str),
    /// No home for the cache.
    #[error("there is no place for the cache: set WHARF_CACHE to a folder, or HOME")]
    NoCache,
    /// A file of the cache could not be made.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Cache {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

/// Sees to it that all of `needs` are there; `progress` is told, in lines for people, what is missing, why, and what is being done.
pub async fn ensure(needs: &[Need], progress: &(dyn Fn(&str) + Sync)) -> Result<Installed, InstallError> {
    let cache = cache_folder()?;
    let missing = look(&cache).missing(needs);
    for need in &missing {
        progress(&format!("missing: {}, which {}", need.name(), need.why()));
    }
    let packages: Vec<&str> = missing.iter().flat_map(|need| need.packages()).copied().collect();
    if !packages.is_empty() {
        install_packages(&packages, progress).await?;
    }
    if missing.contains(&Need::Kernel) {
        let package = kernel_package(KERNEL_PACKAGE, progress).await?;
        let unwanted = [UNWANTED_MODULES, CARD_MODULES].concat();
        unpack(&package, &cache.join(KERNELS), (settle_kernel, &unwanted), progress).await?;
    }
    if missing.contains(&Need::Drivers) {
        let package = kernel_package(HARDWARE_KERNEL_PACKAGE, progress).await?;
        unpack(&package, &cache.join(KERNELS_OF_HARDWARE), (settle_kernel, UNWANTED_MODULES), progress).await?;
    }
    if missing.contains(&Need::Busybox) {
        unpack(BUSYBOX_PACKAGE, &cache.join("busybox"), (settle_busybox, &[]), progress).await?;
    }
    let installed = look(&cache);
    match installed.missing(needs).first() {
        Some(need) => Err(InstallError::StillMissing(need.name().to_owned())),
        None => Ok(installed),
    }
}

/// What is there, for people and `--json`.
pub async fn list() -> Result<Vec<Listing>, InstallError> {
    let installed = look(&cache_folder()?);
    let mut lines = Vec::new();
    for need in Need::ALL {
        let path = installed.path(need).map(Path::to_owned);
        let version = match (need, &path) {
            (_, None) => None,
            (Need::Kernel, _) => installed.kernel.as_ref().map(|kernel| kernel.version.clone()),
            (Need::Drivers, _) => installed.drivers.as_ref().map(|kernel| kernel.version.clone()),
            (_, Some(path)) => package_version(path).await,
        };
        lines.push(Listing { name: need.name(), why: need.why(), version, path });
    }
    Ok(lines)
}

/// The folder for what can be made again: `$WHARF_CACHE`, `$XDG_CACHE_HOME/wharf` or `~/.cache/wharf`.
pub fn cache_folder() -> Result<PathBuf, InstallError> {
    choose_cache_folder(|name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
        .ok_or(InstallError::NoCache)
}

fn choose_cache_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    variable("WHARF_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("wharf")))
        .or_else(|| variable("HOME").map(|folder| folder.join(".cache/wharf")))
}

/// Looks at the host's files and the cache; runs nothing, changes nothing.
pub fn look(cache: &Path) -> Installed {
    let rom = first_file(&[
        "/usr/lib/ipxe/qemu/efi-virtio.rom",
        "/usr/share/qemu/efi-virtio.rom",
        "/usr/share/ipxe/qemu/efi-virtio.rom",
    ]);
    Installed {
        qemu: rom.and_then(|_| program("qemu-system-x86_64")),
        ipxe: ["/usr/lib/ipxe", "/usr/share/ipxe"]
            .map(PathBuf::from)
            .into_iter()
            .find(|folder| folder.join("undionly.kpxe").is_file() && folder.join("snponly.efi").is_file()),
        ovmf: find_ovmf(Path::new("/usr/share/OVMF")),
        u_boot: first_file(&["/usr/lib/u-boot/qemu_arm64/u-boot.bin"])
            .zip(program("qemu-system-aarch64"))
            .map(|(image, qemu)| UBoot { qemu, image }),
        kernel: newest_kernel(&cache.join(KERNELS)),
        drivers: newest_kernel(&cache.join(KERNELS_OF_HARDWARE)),
        busybox: find_busybox(cache),
    }
}

/// Code and variables of one size belong together; the 4 MB build is the one that newer systems have.
fn find_ovmf(folder: &Path) -> Option<Ovmf> {
    [("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"), ("OVMF_CODE.fd", "OVMF_VARS.fd")]
        .map(|(code, variables)| Ovmf { code: folder.join(code), variables: folder.join(variables) })
        .into_iter()
        .find(|ovmf| ovmf.code.is_file() && ovmf.variables.is_file())
}

/// The kernel of the highest version in `folder`.
fn newest_kernel(folder: &Path) -> Option<Kernel> {
    let found = fs::read_dir(folder).ok()?.filter_map(|entry| {
        let folder = entry.ok()?.path();
        let version = folder.file_name()?.to_str()?.to_owned();
        let kernel = Kernel { version, image: folder.join("vmlinuz"), modules: folder.join("modules") };
        (kernel.image.is_file() && kernel.modules.is_dir()).then_some(kernel)
    });
    found.max_by_key(|kernel| version_key(&kernel.version))
}

/// The numbers in a version, so that 6.1.0-100 comes after 6.1.0-56.
fn version_key(version: &str) -> Vec<u64> {
    version.split(|character: char| !character.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// The host's busybox when it is static, else the cache's.
fn find_busybox(cache: &Path) -> Option<PathBuf> {
    let hosts = program("busybox").filter(|path| fs::read(path).is_ok_and(|elf| is_static(&elf)));
    hosts.or_else(|| {
        let folders = fs::read_dir(cache.join("busybox")).ok()?;
        folders.filter_map(|entry| Some(entry.ok()?.path().join("busybox"))).find(|path| path.is_file())
    })
}

/// Whether a 64-bit ELF program asks for no loader of shared libraries: no program header of type PT_INTERP (3).
fn is_static(elf: &[u8]) -> bool {
    let number = |at: usize, size: usize| {
        let bytes = elf.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0_usize, |value, byte| value << 8 | usize::from(*byte)))
    };
    let headers = || Some((number(32, 8)?, number(54, 2)?, number(56, 2)?));
    let (Some((table, size, count)), true) = (headers(), elf.starts_with(b"\x7fELF\x02")) else {
        return false;
    };
    (0..count).all(|entry| {
        let at = entry.checked_mul(size).and_then(|offset| offset.checked_add(table));
        at.and_then(|at| number(at, 4)).is_some_and(|kind| kind != 3)
    })
}

/// A program in `$PATH`, or where a user's path often does not reach.
fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(name)).find(|file| {
        fs::metadata(file).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    })
}

fn first_file(candidates: &[&str]) -> Option<PathBuf> {
    candidates.iter().map(PathBuf::from).find(|path| path.is_file())
}

/// The version of the package that a file came with; nothing where it came otherwise.
async fn package_version(path: &Path) -> Option<String> {
    let mut package = owner(path).await;
    if package.is_none() {
        // Where /bin is a link to /usr/bin, dpkg may know a file by the name that it had before.
        package = owner(&Path::new("/").join(path.strip_prefix("/usr").ok()?)).await;
    }
    let shown = Command::new("dpkg-query").args(["-W", "-f", "${Version}", &package?]).output().await.ok()?;
    String::from_utf8(shown.stdout).ok().filter(|version| !version.is_empty())
}

/// The package that dpkg unpacked `path` from.
async fn owner(path: &Path) -> Option<String> {
    let output = Command::new("dpkg-query").arg("-S").arg(path).output().await.ok()?;
    let line = String::from_utf8(output.stdout).ok()?;
    line.split([':', ',']).next().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// How packages can be installed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    Root,
    Sudo,
}

async fn install_packages(packages: &[&str], progress: &(dyn Fn(&str) + Sync)) -> Result<(), InstallError> {
    let missing = packages.join(" ");
    if program("apt-get").is_none() {
        return Err(InstallError::NoProgram { program: "apt-get".to_owned(), missing });
    }
    let by_hand = format!("apt-get install -y --no-install-recommends {missing}");
    let Some(right) = right().await else {
        return Err(InstallError::NoRight { packages: missing, line: format!("sudo {by_hand}") });
    };
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(packages);
    progress(&format!("running: {by_hand}"));
    if !has_lists() {
        update(right, progress).await?;
        return run(apt(Some(right), &install), progress).await;
    }
    // What fails with lists that are there fails mostly because they are old: the archive no longer has that version.
    match run(apt(Some(right), &install), &|_| ()).await {
        Ok(()) => Ok(()),
        Err(_) => {
            progress("running: apt-get update");
            update(right, progress).await?;
            run(apt(Some(right), &install), progress).await
        }
    }
}

/// Whether apt knows any package.
fn has_lists() -> bool {
    let entries = fs::read_dir("/var/lib/apt/lists").into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().contains("_Packages"))
}

/// Root in a user namespace of one's own is nobody's root: the packages belong to the root outside.
async fn right() -> Option<Right> {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    if nix::unistd::geteuid().is_root() && is_whole_map(&map) {
        return Some(Right::Root);
    }
    let sudo = Command::new("sudo").args(["-n", "true"]).stdin(Stdio::null()).stderr(Stdio::null()).status().await;
    sudo.is_ok_and(|status| status.success()).then_some(Right::Sudo)
}

/// Whether a uid map (user_namespaces(7)) has more users than one: then root is one who installed this system, be it a container.
fn is_whole_map(map: &str) -> bool {
    map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok()).sum::<u64>() > 1
}

/// An apt-get that asks nothing and waits for its lock.
fn apt(right: Option<Right>, arguments: &[&str]) -> Command {
    let mut command = match right {
        Some(Right::Sudo) => {
            let mut command = Command::new("sudo");
            command.args(["-n", "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
            command
        }
        Some(Right::Root) | None => {
            let mut command = Command::new("apt-get");
            command.env("DEBIAN_FRONTEND", "noninteractive");
            command
        }
    };
    command.args(["-q", "-o", &format!("DPkg::Lock::Timeout={APT_LOCK_TIMEOUT_S}"), "-o", "Acquire::Retries=3"]);
    command.args(arguments);
    command
}

/// The package of the newest kernel, as the meta package's dependency names it.
async fn kernel_package(meta: &'static str, progress: &(dyn Fn(&str) + Sync)) -> Result<String, InstallError> {
    if let Some(package) = ask_kernel_package(meta).await? {
        return Ok(package);
    }
    update_lists(progress).await?;
    ask_kernel_package(meta).await?.ok_or(InstallError::NoKernelPackage(meta))
}

async fn ask_kernel_package(meta: &str) -> Result<Option<String>, InstallError> {
    let mut command = Command::new("apt-cache");
    let output = command.args(["depends", "--important", meta]).env("LC_ALL", "C").output().await;
    let output = output.map_err(|_| InstallError::NoProgram {
        program: "apt-cache".to_owned(),
        missing: format!("the package {meta}"),
    })?;
    Ok(first_dependency(&String::from_utf8_lossy(&output.stdout)))
}

/// The first `Depends: NAME` of `apt-cache depends`; `<NAME>` would be a virtual package.
fn first_dependency(text: &str) -> Option<String> {
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.map(str::trim).find(|name| name.starts_with("linux-image-")).map(str::to_owned)
}

/// Reads the archive's lists anew.
async fn update_lists(progress: &(dyn Fn(&str) + Sync)) -> Result<(), InstallError> {
    let Some(right) = right().await else {
        let line = "sudo apt-get update".to_owned();
        return Err(InstallError::NoRight { packages: "(or rather, reading apt's lists anew)".to_owned(), line });
    };
    progress("running: apt-get update");
    update(right, progress).await
}

/// apt waits for dpkg's lock, and not for that of its lists (apt-pkg/acquire.cc, `GetLock`): somebody else's update ends by itself.
async fn update(right: Right, progress: &(dyn Fn(&str) + Sync)) -> Result<(), InstallError> {
    let until = Instant::now() + Duration::from_secs(APT_LOCK_TIMEOUT_S.into());
    loop {
        match run(apt(Some(right), &["update"]), progress).await {
            Err(InstallError::Failed { output, .. }) if is_locked(&output) && Instant::now() < until => {
                tokio::time::sleep(LISTS_LOCKED_PAUSE).await;
            }
            ended => return ended,
        }
    }
}

/// Whether apt says, in any language, that somebody else reads the archive's lists anew.
fn is_locked(output: &str) -> bool {
    output.contains("/var/lib/apt/lists/lock")
}

/// From a package's files to those that are kept, and their name.
type Settle = fn(&Path, &Path) -> io::Result<String>;

/// Downloads `package`, unpacks it but for what is `unwanted` next to `home`'s contents, lets `settle` keep what is wanted and name it, and moves that in.
async fn unpack(
    package: &str,
    home: &Path,
    (settle, unwanted): (Settle, &[&str]),
    progress: &(dyn Fn(&str) + Sync),
) -> Result<(), InstallError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| InstallError::Cache { action, path, source }
    };
    fs::create_dir_all(home).map_err(failed("make the folder", home))?;
    // The dot keeps it out of sight of `newest_kernel` and `find_busybox`, which want complete ones.
    let work =
        tempfile::Builder::new().prefix(".unpacking-").tempdir_in(home).map_err(failed("make a folder in", home))?;
    progress(&format!("downloading the package {package}"));
    let archive = download(package, work.path(), progress).await?;
    progress(&format!("unpacking {package} into {}", home.display()));
    let tree = work.path().join("tree");
    fs::create_dir(&tree).map_err(failed("make the folder", &tree))?;
    run(unpack_command(&archive, &tree, unwanted), progress).await?;
    decompress_modules(&tree, progress).await?;
    let kept = work.path().join("kept");
    fs::create_dir(&kept).map_err(failed("make the folder", &kept))?;
    let name = settle(&tree, &kept).map_err(failed("find the wanted files in", &tree))?;
    let target = home.join(name);
    match fs::rename(&kept, &target) {
        // Somebody else was faster: theirs is as good.
        Err(_) if target.is_dir() => Ok(()),
        other => other.map_err(failed("move the unpacked files to", &target)),
    }
}

/// Downloads into `folder`; when that fails, once more with fresh lists.
async fn download(package: &str, folder: &Path, progress: &(dyn Fn(&str) + Sync)) -> Result<PathBuf, InstallError> {
    let command = || {
        let mut command = apt(None, &["download", package]);
        // Else apt, when root, complains that its own user may not write into our folder.
        command.current_dir(folder).args(["-o", "APT::Sandbox::User=root"]);
        command
    };
    if run(command(), &|_| ()).await.is_err() {
        update_lists(progress).await?;
        run(command(), progress).await?;
    }
    let found = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    found.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "deb")).ok_or_else(|| {
        InstallError::Failed {
            line: format!("apt-get download {package}"),
            status: "success".to_owned(),
            output: "but there is no .deb file".to_owned(),
        }
    })
}

/// A pipe of two programs that every Debian has; the shell gets the paths as arguments, never as text.
fn unpack_command(archive: &Path, tree: &Path, unwanted: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let script = r#"set -e; a=$1; t=$2; shift 2; dpkg-deb --fsys-tarfile "$a" | tar -x --no-same-owner -C "$t" "$@""#;
    command.args(["-c", script, "unpack"]).arg(archive).arg(tree);
    command.args(["--wildcards", "--exclude=./usr/share/*"]);
    command.args(unwanted.iter().map(|pattern| format!("--exclude={pattern}")));
    command
}

/// Debian 13 compresses modules, and our init's `insmod` wants them plain.
async fn decompress_modules(tree: &Path, progress: &(dyn Fn(&str) + Sync)) -> Result<(), InstallError> {
    let mut command = Command::new("find");
    command.arg(tree).args(["-name", "*.ko.xz", "-exec", "xz", "-d", "{}", "+"]);
    run(command, progress).await
}

/// Keeps the kernel and its modules, under the kernel's version.
fn settle_kernel(tree: &Path, kept: &Path) -> io::Result<String> {
    let missing = |what: &str| io::Error::new(io::ErrorKind::NotFound, format!("no {what} in the package"));
    let boot = fs::read_dir(tree.join("boot"))?.flatten().map(|entry| entry.file_name());
    let version = boot
        .filter_map(|name| Some(name.to_str()?.strip_prefix("vmlinuz-")?.to_owned()))
        .next()
        .ok_or_else(|| missing("vmlinuz"))?;
    fs::rename(tree.join("boot").join(format!("vmlinuz-{version}")), kept.join("vmlinuz"))?;
    let modules = ["lib/modules", "usr/lib/modules"]
        .map(|folder| tree.join(folder).join(&version))
        .into_iter()
        .find(|folder| folder.is_dir())
        .ok_or_else(|| missing("folder of modules"))?;
    fs::rename(modules, kept.join("modules"))?;
    Ok(version)
}

/// Keeps the one program.
fn settle_busybox(tree: &Path, kept: &Path) -> io::Result<String> {
    let found = ["bin/busybox", "usr/bin/busybox"].map(|path| tree.join(path)).into_iter().find(|path| path.is_file());
    let found = found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no busybox in the package"))?;
    fs::rename(found, kept.join("busybox"))?;
    Ok("static".to_owned())
}

/// Runs a program to its end; each line it says goes to `progress`, its last lines into the error.
async fn run(mut command: Command, progress: &(dyn Fn(&str) + Sync)) -> Result<(), InstallError> {
    let line = line_of(&command);
    let failed = |status: String, output: String| InstallError::Failed { line: line.clone(), status, output };
    let (reader, writer) = io::pipe().map_err(|error| failed(error.to_string(), String::new()))?;
    let both = writer
        .try_clone()
        .and_then(|clone| Ok((tokio::net::unix::pipe::Receiver::from_owned_fd(reader.into())?, clone)));
    let (output, clone) = both.map_err(|error| failed(error.to_string(), String::new()))?;
    let spawned = command.stdin(Stdio::null()).stdout(writer).stderr(clone).kill_on_drop(true).spawn();
    // Our ends of the pipe: it must end when the program does.
    drop(command);
    let mut child = spawned.map_err(|error| failed(error.to_string(), String::new()))?;
    let (mut lines, mut tail) = (BufReader::new(output).lines(), VecDeque::new());
    while let Ok(Some(line)) = lines.next_line().await {
        progress(&line);
        tail.push_back(line);
        if tail.len() > OUTPUT_TAIL_LINES {
            tail.pop_front();
        }
    }
    let status = child.wait().await.map_err(|error| failed(error.to_string(), String::new()))?;
    if status.success() {
        return Ok(());
    }
    Err(failed(status.to_string(), Vec::from(tail).join("\n")))
}

/// The command as a person would type it.
fn line_of(command: &Command) -> String {
    let command = command.as_std();
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_waits_for_that_of_somebody_else_and_for_nothing_else() {
        let said = "Reading package lists...\nE: Could not get lock /var/lib/apt/lists/lock. It is held by process 23021 (apt-get)\n\
                    E: Unable to lock directory /var/lib/apt/lists/";
        assert!(is_locked(said));
        assert!(!is_locked(
            "E: List directory /var/lib/apt/lists/partial is missing. - Acquire (13: Permission denied)"
        ));
    }

    #[test]
    fn the_cache_is_where_the_environment_says() {
        let with = |pairs: &'static [(&str, &str)]| {
            choose_cache_folder(|name| {
                pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
            })
        };
        assert_eq!(with(&[("WHARF_CACHE", "/c"), ("HOME", "/h")]), Some("/c".into()));
        assert_eq!(with(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]), Some("/x/wharf".into()));
        assert_eq!(with(&[("HOME", "/h")]), Some("/h/.cache/wharf".into()));
        assert_eq!(with(&[]), None);
    }

    #[test]
    fn the_newest_kernel_is_found_by_number_and_half_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        for version in ["6.1.0-56-cloud-amd64", "6.1.0-100-cloud-amd64", "6.1.0-9-cloud-amd64"] {
            fs::create_dir_all(folder.path().join(version).join("modules")).unwrap();
            fs::write(folder.path().join(version).join("vmlinuz"), b"").unwrap();
        }
        fs::create_dir_all(folder.path().join("6.12.0-1-cloud-amd64")).unwrap();
        assert_eq!(newest_kernel(folder.path()).unwrap().version, "6.1.0-100-cloud-amd64");
        assert_eq!(newest_kernel(&folder.path().join("none")), None);
    }

    #[test]
    fn the_kernels_package_is_read_from_what_apt_says() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(first_dependency(text).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(first_dependency("linux-image-cloud-amd64\n  Depends: <something>\n"), None);
        assert_eq!(first_dependency(""), None);
    }

    #[test]
    fn a_static_program_is_told_from_one_that_loads_libraries() {
        let header = |kinds: &[u32]| {
            let mut elf = vec![0; 64];
            elf[..5].copy_from_slice(b"\x7fELF\x02");
            (elf[32], elf[54], elf[56]) = (64, 56, kinds.len() as u8);
            for kind in kinds {
                elf.extend_from_slice(&kind.to_le_bytes());
                elf.extend_from_slice(&[0; 52]);
            }
            elf
        };
        assert!(is_static(&header(&[1, 1, 4])));
        assert!(!is_static(&header(&[6, 3, 1])));
        assert!(!is_static(&header(&[1])[..60]));
        assert!(!is_static(b"#!/bin/sh"));
        assert!(!is_static(b""));
    }

    #[test]
    fn root_of_a_user_namespace_of_one_user_is_not_root() {
        assert!(is_whole_map("         0          0 4294967295\n"));
        assert!(is_whole_map("0 1000 1\n1 100000 65536\n"), "rootless containers install packages");
        assert!(!is_whole_map("         0       1000          1\n"));
    }

    #[test]
    fn apt_is_run_so_that_it_asks_nothing_and_waits_for_its_lock() {
        assert_eq!(
            line_of(&apt(Some(Right::Sudo), &["install", "-y", "--no-install-recommends", "ovmf"])),
            "sudo -n env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 \
             install -y --no-install-recommends ovmf"
        );
    }

    #[tokio::test]
    async fn a_failed_program_is_shown_with_its_last_lines() {
        let mut command = Command::new("sh");
        command.args(["-c", "for n in 1 2 3 4 5 6 7 8 9 10; do echo line $n; done; echo broken >&2; exit 3"]);
        let error = run(command, &|_| ()).await.unwrap_err().to_string();
        assert!(
            error.ends_with(
                "failed with exit status: 3:\nline 4\nline 5\nline 6\nline 7\nline 8\nline 9\nline 10\nbroken"
            ),
            "{error}"
        );
    }

    #[test]
    fn an_unpacked_kernel_is_kept_under_its_version_wherever_its_modules_were() {
        for modules in ["lib/modules", "usr/lib/modules"] {
            let work = tempfile::tempdir().unwrap();
            let (tree, kept) = (work.path().join("tree"), work.path().join("kernel/.x"));
            fs::create_dir_all(tree.join(modules).join("6.12.1-cloud/kernel/net")).unwrap();
            fs::create_dir_all(tree.join("boot")).unwrap();
            fs::create_dir_all(&kept).unwrap();
            fs::write(tree.join("boot/vmlinuz-6.12.1-cloud"), b"image").unwrap();
            assert_eq!(settle_kernel(&tree, &kept).unwrap(), "6.12.1-cloud");
            assert_eq!(fs::read(kept.join("vmlinuz")).unwrap(), b"image");
            assert!(kept.join("modules/kernel/net").is_dir());
        }
    }

    #[test]
    fn what_is_missing_is_named_in_one_order() {
        let installed = Installed { qemu: Some("/usr/bin/qemu-system-x86_64".into()), ..Installed::default() };
        assert_eq!(installed.missing(&[Need::Kernel, Need::Qemu, Need::Ipxe]), [Need::Ipxe, Need::Kernel]);
    }
}
