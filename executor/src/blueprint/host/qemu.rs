//! Hosts that are virtual machines of this very machine: QEMU processes that outlive the server, known by what stands in their environment.
//!
//! ```text
//!  make ─► <folder>/<name>/  disk.qcow2  what the guest writes, over an image that stays as it is
//!          │                 seed/       user-data, meta-data: cloud-init reads them from a disk called `cidata` (its NoCloud source)
//!          └► qemu-system-x86_64 -daemonize   WHARF_HOST=<owner>/<entry>/<name> WHARF_PORT=<p>
//!                 127.0.0.1:p ─► user-mode network ─► the guest's SSH port
//!  find, list ─► /proc/*/environ          end ─► SIGKILL, waited for ─► no folder
//! ```
//! There is no record that a crash could lose: a process has its mark from its first instruction, and a number that another process has
//! got meanwhile has another environment.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;

use super::provider::{Found, Provider, ProviderError, Wanted};
use crate::config::hosts::{Outside, QemuHostConfig};
use crate::virtual_dut::install;
use crate::virtual_dut::qemu::{Accelerator, accelerator};

/// Says of a process which host it is.
const MARK: &str = "WHARF_HOST";
/// Says of it at which port of ours its SSH server is.
const PORT: &str = "WHARF_PORT";
/// Until QEMU has put its machine together and goes into the background: 0.2 s alone, some seconds with many on two busy cores.
const START_TIME: Duration = Duration::from_secs(60);
/// Making a file of some kilobytes.
const IMAGE_TIME: Duration = Duration::from_secs(30);
/// Times that a free port is looked for: between looking and taking it somebody else may.
const PORTS: u32 = 5;
/// A process with some GiB of memory is gone within a second or two.
const END_TIME: Duration = Duration::from_secs(30);
/// Between two looks at a process that ends.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// What of a program's complaint is told.
const WORDS_BYTES_MAX: usize = 2000;

/// One entry's virtual machines.
pub struct Qemu {
    config: QemuHostConfig,
    /// `<farm>-<its own>/<entry>/`, before each name.
    owner: String,
    /// Where the folders of its machines are.
    folder: PathBuf,
}

/// A process that is one of ours.
struct Process {
    number: Pid,
    name: String,
    port: Option<u16>,
}

impl Qemu {
    /// `owner`: the farm; `entry`: which of its entries; `state`: its state folder.
    pub fn new(config: QemuHostConfig, owner: &str, entry: &str, state: &Path) -> Qemu {
        // Once it is in the background QEMU is in the root folder, and vvfat still opens files.
        let state = std::path::absolute(state).unwrap_or_else(|_| state.to_owned());
        let folder = state.join("hosts").join(entry);
        Qemu { config, owner: format!("{owner}/{entry}/"), folder }
    }

    async fn start(&self, wanted: &Wanted) -> Result<(), ProviderError> {
        let cache = install::cache_folder().map_err(not_now)?;
        let qemu = install::look(&cache).qemu.ok_or_else(|| {
            ProviderError::Never("there is no QEMU on this machine; `wharf virtual install` gets it".to_owned())
        })?;
        let accelerator = accelerator(&qemu, &cache).await;
        let folder = self.folder.join(&wanted.name);
        self.fill(&folder, wanted).await?;
        let mut last = String::new();
        for _ in 0..PORTS {
            let port = free_port().map_err(not_now)?;
            let mut command = Command::new(&qemu);
            // Nothing else of ours is its business, secrets of clouds among it.
            command.env_clear().env(MARK, format!("{}{}", self.owner, wanted.name)).env(PORT, port.to_string());
            command.args(self.arguments(&folder, port, accelerator));
            match finished(command, START_TIME).await {
                Ok(()) => return Ok(()),
                Err(why) if why.contains("forwarding") => last = why,
                Err(why) => return Err(ProviderError::NotNow(why)),
            }
        }
        Err(ProviderError::NotNow(last))
    }

    /// A fresh folder with what the machine needs; what is left of an earlier one goes first.
    async fn fill(&self, folder: &Path, wanted: &Wanted) -> Result<(), ProviderError> {
        remove(folder).map_err(not_now)?;
        let seed = folder.join("seed");
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&seed).map_err(not_now)?;
        let meta = format!("instance-id: {}\nlocal-hostname: {}\n", wanted.token, wanted.name);
        for (name, text) in [("user-data", &wanted.user_data), ("meta-data", &meta)] {
            let mut options = fs::OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(0o600).open(seed.join(name)).map_err(not_now)?;
            io::Write::write_all(&mut file, text.as_bytes()).map_err(not_now)?;
        }
        let Some(disk) = &self.config.disk else { return Ok(()) };
        let mut command = Command::new("qemu-img");
        let format = format_of(disk).map_err(|error| ProviderError::Never(format!("{}: {error}", disk.display())))?;
        command.args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]).arg(disk).arg(folder.join("disk.qcow2"));
        command.args(self.config.disk_mib.map(|size| format!("{size}M")));
        finished(command, IMAGE_TIME).await.map_err(ProviderError::NotNow)
    }

    fn arguments(&self, folder: &Path, port: u16, accelerator: Accelerator) -> Vec<OsString> {
        let config = &self.config;
        let mut arguments: Vec<OsString> = Vec::new();
        let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
        add(&[
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-monitor",
            "none",
            "-serial",
            "null",
            "-daemonize",
        ]);
        add(match accelerator {
            Accelerator::Kvm => &["-machine", "q35", "-accel", "kvm", "-cpu", "host"],
            Accelerator::Tcg => &["-machine", "q35", "-accel", "tcg", "-cpu", "max"],
        });
        add(&["-m", &config.memory_mib.to_string(), "-smp", &config.cpus.to_string()]);
        let restrict = match config.outside {
            Outside::Open => "",
            Outside::Closed => ",restrict=on",
        };
        let forward = format!("user,id=n0{restrict},hostfwd=tcp:127.0.0.1:{port}-:{}", config.ssh_port);
        add(&["-netdev", &forward, "-device", "virtio-net-pci,netdev=n0,romfile=", "-device", "virtio-rng-pci"]);
        if config.disk.is_some() {
            arguments.push("-drive".into());
            arguments.push(joined(b"if=virtio,format=qcow2,discard=unmap,file=", &folder.join("disk.qcow2")));
        }
        // A FAT of a folder (QEMU's vvfat), which cloud-init finds by its label.
        arguments.push("-drive".into());
        let seed = b"if=virtio,format=raw,readonly=on,file.driver=vvfat,file.label=cidata,file.dir=";
        arguments.push(joined(seed, &folder.join("seed")));
        if let Some(kernel) = &config.kernel {
            arguments.extend(["-kernel".into(), kernel.clone().into_os_string()]);
            arguments.extend(["-append".into(), OsString::from(&config.cmdline)]);
        }
        if let Some(initramfs) = &config.initramfs {
            arguments.extend(["-initrd".into(), initramfs.clone().into_os_string()]);
        }
        arguments
    }

    /// The machines of this entry that run.
    fn processes(&self) -> Vec<Process> {
        let mark = format!("{MARK}={}", self.owner);
        let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
        let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let one = |number: i32| {
            // What has ended and waits for its parent has none.
            let environment = fs::read(format!("/proc/{number}/environ")).ok()?;
            let words: Vec<_> = environment.split(|byte| *byte == 0).collect();
            let value = |before: &str| words.iter().find_map(|word| word.strip_prefix(before.as_bytes()));
            let name = String::from_utf8(value(&mark)?.to_vec()).ok()?;
            let port = value(&format!("{PORT}=")).and_then(|port| std::str::from_utf8(port).ok()?.parse().ok());
            Some(Process { number: Pid::from_raw(number), name, port })
        };
        numbers.filter_map(one).collect()
    }

    fn named(&self, name: &str) -> Vec<Process> {
        self.processes().into_iter().filter(|process| process.name == name).collect()
    }

    async fn stop(&self, name: &str) -> Result<(), ProviderError> {
        for process in self.named(name) {
            // One that has ended by itself meanwhile is ended.
            let _ = kill(process.number, Signal::SIGKILL);
        }
        let ends = async {
            while !self.named(name).is_empty() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        let late = |_| ProviderError::NotNow(format!("QEMU does not end within {} s", END_TIME.as_secs()));
        tokio::time::timeout(END_TIME, ends).await.map_err(late)?;
        remove(&self.folder.join(name)).map_err(not_now)
    }

    /// What machines left behind that ended without us.
    fn sweep(&self, running: &[String]) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(|name| !running.iter().any(|running| running == name)) {
                let _ = remove(&entry.path());
            }
        }
    }
}

impl Provider for Qemu {
    fn make<'a>(&'a self, wanted: &'a Wanted) -> BoxFuture<'a, Result<(), ProviderError>> {
        async move {
            match self.named(&wanted.name).is_empty() {
                true => self.start(wanted).await,
                false => Ok(()),
            }
        }
        .boxed()
    }

    fn find<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Found>, ProviderError>> {
        async move {
            let found = self.named(name).into_iter().next().map(|process| Found {
                id: format!("process {}", process.number),
                address: Some(Ipv4Addr::LOCALHOST.to_string()),
                port: process.port,
            });
            Ok(found)
        }
        .boxed()
    }

    fn end<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), ProviderError>> {
        self.stop(name).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<String>, ProviderError>> {
        async move {
            let names: Vec<_> = self.processes().into_iter().map(|process| process.name).collect();
            self.sweep(&names);
            Ok(names)
        }
        .boxed()
    }
}

/// Runs a program to its end; what it complains of when it fails.
async fn finished(mut command: Command, time: Duration) -> Result<(), String> {
    let program = Path::new(command.as_std().get_program()).file_name().unwrap_or_default().display().to_string();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = tokio::time::timeout(time, command.output()).await;
    let output = output.map_err(|_| format!("{program} is not done within {} s", time.as_secs()))?;
    let output =
        output.map_err(|error| format!("cannot run {program}: {error}; `apt-get install qemu-utils` gets qemu-img"))?;
    if output.status.success() {
        return Ok(());
    }
    let words = &output.stderr[..output.stderr.len().min(WORDS_BYTES_MAX)];
    Err(format!("{program} ended with {}: {}", output.status, String::from_utf8_lossy(words).trim()))
}

/// A port that nobody has now.
fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A disk that begins as QEMU's images do is one (docs/interop/qcow2.txt of QEMU); everything else is a disk as it is.
fn format_of(disk: &Path) -> io::Result<&'static str> {
    let mut magic = [0; 4];
    let is_qcow2 = fs::File::open(disk)?.read_exact(&mut magic).is_ok() && magic == *b"QFI\xfb";
    Ok(if is_qcow2 { "qcow2" } else { "raw" })
}

/// QEMU takes a comma for the end of a value unless it is doubled.
fn joined(option: &[u8], path: &Path) -> OsString {
    let mut value = option.to_vec();
    for byte in path.as_os_str().as_bytes() {
        value.extend(std::iter::repeat_n(*byte, if *byte == b',' { 2 } else { 1 }));
    }
    std::os::unix::ffi::OsStringExt::from_vec(value)
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn not_now(error: impl std::fmt::Display) -> ProviderError {
    ProviderError::NotNow(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machines(state: &Path) -> Qemu {
        let config = QemuHostConfig {
            disk: Some("/images/debian,12.qcow2".into()),
            kernel: None,
            initramfs: None,
            cmdline: String::new(),
            memory_mib: 512,
            cpus: 2,
            disk_mib: None,
            outside: Outside::Closed,
            ssh_port: 22,
        };
        Qemu::new(config, "lab-0011", "guest", state)
    }

    #[test]
    fn a_guest_gets_its_disk_its_keys_and_one_port_of_the_loopback() {
        let arguments = machines(Path::new("/state")).arguments(Path::new("/a,b"), 40022, Accelerator::Tcg);
        let line = arguments.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        assert_eq!(
            line,
            "-nodefaults -no-user-config -display none -monitor none -serial null -daemonize -machine q35 -accel tcg -cpu max -m 512 -smp 2 \
             -netdev user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:40022-:22 -device virtio-net-pci,netdev=n0,romfile= -device virtio-rng-pci \
             -drive if=virtio,format=qcow2,discard=unmap,file=/a,,b/disk.qcow2 \
             -drive if=virtio,format=raw,readonly=on,file.driver=vvfat,file.label=cidata,file.dir=/a,,b/seed"
        );
    }

    #[tokio::test]
    async fn a_machine_is_known_by_its_environment_and_ended_with_its_folder() {
        let state = tempfile::tempdir().unwrap();
        let machines = machines(state.path());
        let owner = format!("{}guest-1", machines.owner);
        let mut sleeper = std::process::Command::new("sleep");
        let mut sleeper = sleeper.arg("600").env(MARK, owner).env(PORT, "40022").spawn().unwrap();
        // It has its environment once it is no longer a copy of us.
        while machines.named("guest-1").is_empty() {
            tokio::task::yield_now().await;
        }
        let found = machines.find("guest-1").await.unwrap().unwrap();
        assert_eq!((found.id, found.port), (format!("process {}", sleeper.id()), Some(40022)));
        for name in ["guest-1", "guest-2"] {
            fs::create_dir_all(machines.folder.join(name)).unwrap();
        }
        assert_eq!(machines.list().await.unwrap(), ["guest-1"]);
        assert!(!machines.folder.join("guest-2").exists(), "what ended without us leaves nothing");
        machines.end("guest-1").await.unwrap();
        assert_eq!(machines.find("guest-1").await.unwrap(), None);
        assert!(!machines.folder.join("guest-1").exists());
        sleeper.wait().unwrap();
    }
}
