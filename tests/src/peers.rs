//! Other people's servers, started for a benchmark: what our figures stand beside.
//!
//! | peer      | serves          | where from              |
//! |-----------|-----------------|-------------------------|
//! | dnsmasq   | DHCP, RA, TFTP  | `dnsmasq-base`          |
//! | nginx     | HTTP            | `nginx-light`           |
//! | tftpd-hpa | TFTP            | `tftpd-hpa`             |
//! | atftpd    | TFTP, windows   | `atftpd`, only unpacked |
//! | nbdkit    | NBD             | `nbdkit`                |
//! | qemu-nbd  | NBD             | `qemu-utils`            |
//! | ser2net   | serial lines    | `ser2net`               |
//!
//! Each runs in the foreground, in a [`Lab`], with everything it writes in a folder of the benchmark.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

use crate::lab::{Lab, ROUTER_ADVERTISEMENT_PREFIX, Running};

/// A program of a Debian package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What people call it.
    pub name: &'static str,
    program: &'static str,
    package: &'static str,
}

/// DHCP, router advertisements, TFTP.
pub const DNSMASQ: Peer = Peer { name: "dnsmasq", program: "dnsmasq", package: "dnsmasq-base" };
/// HTTP.
pub const NGINX: Peer = Peer { name: "nginx", program: "nginx", package: "nginx-light" };
/// TFTP as most farms have it.
pub const TFTPD_HPA: Peer = Peer { name: "tftpd-hpa", program: "in.tftpd", package: "tftpd-hpa" };
/// TFTP with windows. Its package cannot be installed beside tftpd-hpa's: see [`unpack`].
pub const ATFTPD: Peer = Peer { name: "atftpd", program: "atftpd", package: "atftpd" };
/// The client of HTTP and TFTP.
pub const CURL: Peer = Peer { name: "curl", program: "curl", package: "curl" };
/// The client of TFTP with windows.
pub const ATFTP: Peer = Peer { name: "atftp", program: "atftp", package: "atftp" };
/// NBD, with writes kept beside the image.
pub const NBDKIT: Peer = Peer { name: "nbdkit", program: "nbdkit", package: "nbdkit" };
/// NBD as QEMU serves it.
pub const QEMU_NBD: Peer = Peer { name: "qemu-nbd", program: "qemu-nbd", package: "qemu-utils" };
/// Serial lines over TCP.
pub const SER2NET: Peer = Peer { name: "ser2net", program: "ser2net", package: "ser2net" };
/// The client of NBD that copies.
pub const NBDCOPY: Peer = Peer { name: "nbdcopy", program: "nbdcopy", package: "libnbd-bin" };
/// The client of NBD that reads and writes here and there.
pub const FIO: Peer = Peer { name: "fio", program: "fio", package: "fio" };

impl Peer {
    /// Where the program is.
    fn path(&self) -> Option<PathBuf> {
        let folders = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
        folders.iter().map(|folder| Path::new(folder).join(self.program)).find(|path| path.exists())
    }

    /// Name and version, as the package manager knows it.
    pub fn title(&self) -> String {
        let mut query = Command::new("dpkg-query");
        let output = query.args(["--show", "--showformat=${Version}", self.package]).output();
        let version = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        format!("{} {}", self.name, if version.is_empty() { "of unknown version" } else { &version })
    }
}

/// Installs those that are missing, and says so first. Debian's packages start their services where an init system runs: use a machine
/// that you can throw away.
pub fn install(peers: &[Peer]) -> anyhow::Result<()> {
    let missing: Vec<_> = peers.iter().filter(|peer| peer.path().is_none()).map(|peer| peer.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let words = [&["install", "--yes", "--no-install-recommends"], &missing[..]].concat();
    eprintln!("apt-get {}", words.join(" "));
    for words in [&["update"][..], &words] {
        let mut command = Command::new("apt-get");
        let output =
            command.args(words).env("DEBIAN_FRONTEND", "noninteractive").output().context("no apt-get here")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`apt-get {}` failed: {}", words.join(" "), said.trim());
    }
    for peer in peers {
        ensure!(peer.path().is_some(), "`{}` is missing after {} was installed", peer.program, peer.package);
    }
    Ok(())
}

/// A program of a package that was not installed.
pub struct Unpacked {
    peer: Peer,
    program: PathBuf,
    version: String,
}

impl Unpacked {
    /// Name and version.
    pub fn title(&self) -> String {
        format!("{} {}", self.peer.name, self.version)
    }
}

/// Fetches a peer's package and unpacks it in `folder`, for a package that another peer's excludes. Its libraries have to be there.
pub fn unpack(peer: Peer, folder: &Path) -> anyhow::Result<Unpacked> {
    let mut fetch = Command::new("apt-get");
    let output = fetch.args(["--quiet", "download", peer.package]).current_dir(folder).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`apt-get download {}` failed: {}", peer.package, said.trim());
    let names = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let is_archive = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
    let mut archives = names.filter(is_archive);
    let archive = archives.find(|path| path.to_string_lossy().contains(peer.package)).context("no archive came")?;
    let root = folder.join(peer.package);
    let status = Command::new("dpkg-deb").arg("--extract").args([&archive, &root]).status()?;
    ensure!(status.success(), "cannot unpack {}", archive.display());
    let version = Command::new("dpkg-deb").arg("--field").arg(&archive).arg("Version").output()?;
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    Ok(Unpacked { peer, program: root.join("usr/sbin").join(peer.program), version })
}

/// One machine to serve.
pub struct Client<'a> {
    /// Its network card.
    pub mac: &'a str,
    /// Its address.
    pub address: Ipv4Addr,
}

/// dnsmasq as a PXE server on `interface`: the boot script over HTTP for iPXE, files of `root` over TFTP.
pub fn start_dnsmasq_for_pxe(
    lab: &Lab,
    interface: &str,
    server: Ipv4Addr,
    client: &Client<'_>,
    root: &Path,
    folder: &Path,
) -> anyhow::Result<Running> {
    let subnet = Ipv4Addr::from(u32::from(server) & 0xffff_ff00);
    let words = [
        format!("--interface={interface}"),
        format!("--dhcp-range={subnet},static,255.255.255.0,1h"),
        format!("--dhcp-host={},{}", client.mac, client.address),
        "--dhcp-authoritative".to_owned(),
        "--no-ping".to_owned(),
        // iPXE marks itself with option 175; sub-option 176 ends its wait for a proxy, as ours does.
        "--dhcp-match=set:ipxe,175".to_owned(),
        "--dhcp-option=tag:ipxe,encap:175,176,1b".to_owned(),
        format!("--dhcp-boot=tag:ipxe,http://{server}/boot.ipxe"),
        "--dhcp-boot=tag:!ipxe,undionly.kpxe".to_owned(),
        // Without a router advertisement iPXE waits 15 s for one.
        "--enable-ra".to_owned(),
        format!("--dhcp-range={ROUTER_ADVERTISEMENT_PREFIX},ra-only,64,1h"),
        format!("--dhcp-leasefile={}", folder.join("leases").display()),
    ];
    dnsmasq(lab, server, root, folder, &words)
}

/// dnsmasq with TFTP only.
pub fn start_dnsmasq_for_tftp(lab: &Lab, server: Ipv4Addr, root: &Path, folder: &Path) -> anyhow::Result<Running> {
    dnsmasq(lab, server, root, folder, &[format!("--listen-address={server}")])
}

fn dnsmasq(lab: &Lab, server: Ipv4Addr, root: &Path, folder: &Path, words: &[String]) -> anyhow::Result<Running> {
    let mut command = command(lab, &DNSMASQ)?;
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--port=0", "--bind-interfaces"]);
    command.args(["--log-facility=-", "--log-dhcp", "--pid-file", "--enable-tftp"]);
    command.arg(format!("--tftp-root={}", root.display())).args(words);
    let mut running = Running::spawn(DNSMASQ.name, command, &folder.join("dnsmasq.log"))?;
    with_log(lab.wait_for_tftp(SocketAddr::new(server.into(), 69), &mut running), &folder.join("dnsmasq.log"))?;
    Ok(running)
}

/// nginx with the files of `root` at port 80. One process, so that nothing of it outlives a kill.
pub fn start_nginx(lab: &Lab, server: Ipv4Addr, root: &Path, folder: &Path) -> anyhow::Result<Running> {
    let at = |name: &str| folder.join(name).display().to_string();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {};", at(name)))
        .join(" ");
    let configuration = format!(
        "daemon off; master_process off; pid {}; error_log stderr; user root;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log off; sendfile on; tcp_nopush on; {temporary}\n\
         server {{ listen {server}:80; root {}; }} }}\n",
        at("nginx.pid"),
        root.display()
    );
    fs::write(folder.join("nginx.conf"), configuration)?;
    let mut command = command(lab, &NGINX)?;
    command.args(["-e", "stderr", "-c", &at("nginx.conf")]);
    let mut running = Running::spawn(NGINX.name, command, &folder.join("nginx.log"))?;
    with_log(lab.wait_for_tcp(SocketAddr::new(server.into(), 80), &mut running), &folder.join("nginx.log"))?;
    Ok(running)
}

/// What a ser2net keeps of what its lines say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// Nothing, as a rule.
    Nothing,
    /// A file for each line.
    Files,
}

/// ser2net with a port of the loopback for each terminal, from `first_port` on, at 115,200 baud. It greets with [`SER2NET_BANNER`].
pub fn start_ser2net(
    lab: &Lab,
    lines: &[PathBuf],
    clients: usize,
    keeps: Keeps,
    folder: &Path,
) -> anyhow::Result<Running> {
    let mut configuration = String::new();
    for (index, line) in lines.iter().enumerate() {
        let (port, line) = (SER2NET_PORT + index as u16, line.display());
        configuration += &format!(
            "connection: &c{index}\n  accepter: tcp(nodelay=true),127.0.0.1,{port}\n  \
             connector: serialdev(nouucplock=true),{line},115200n81,local\n  options:\n    \
             max-connections: {clients}\n    banner: {}\n",
            SER2NET_BANNER.escape_default()
        );
        if keeps == Keeps::Files {
            configuration += &format!("    trace-read: {}\n", folder.join(format!("{index}.log")).display());
        }
    }
    fs::write(folder.join("ser2net.yaml"), configuration)?;
    let mut command = command(lab, &SER2NET)?;
    command.args(["-n", "-u", "-c"]).arg(folder.join("ser2net.yaml"));
    let mut running = Running::spawn(SER2NET.name, command, &folder.join("ser2net.log"))?;
    // It opens its ports in order.
    let last = SER2NET_PORT + lines.len().saturating_sub(1) as u16;
    let served = lab.wait_for_tcp(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), last), &mut running);
    with_log(served, &folder.join("ser2net.log"))?;
    Ok(running)
}

/// The first line's port, in a network of its own.
pub const SER2NET_PORT: u16 = 7000;
/// What it says first to whoever connects: from then on it is heard.
pub const SER2NET_BANNER: &str = "here\r\n";

/// tftpd-hpa with the files of `root`.
pub fn start_tftpd_hpa(lab: &Lab, server: Ipv4Addr, root: &Path, folder: &Path) -> anyhow::Result<Running> {
    let mut command = command(lab, &TFTPD_HPA)?;
    command.args(["--foreground", "--user", "root", "--secure", "--address", &format!("{server}:69")]).arg(root);
    let mut running = Running::spawn(TFTPD_HPA.name, command, &folder.join("tftpd-hpa.log"))?;
    lab.wait_for_tftp(SocketAddr::new(server.into(), 69), &mut running)?;
    Ok(running)
}

/// atftpd with the files of `root`.
pub fn start_atftpd(
    lab: &Lab,
    atftpd: &Unpacked,
    server: Ipv4Addr,
    root: &Path,
    folder: &Path,
) -> anyhow::Result<Running> {
    let mut command = lab.command(&atftpd.program.display().to_string())?;
    command.args(["--daemon", "--no-fork", "--user", "root.root", "--logfile", "-", "--verbose=3"]);
    command.args(["--bind-address", &server.to_string()]).arg(root);
    let mut running = Running::spawn(ATFTPD.name, command, &folder.join("atftpd.log"))?;
    with_log(lab.wait_for_tftp(SocketAddr::new(server.into(), 69), &mut running), &folder.join("atftpd.log"))?;
    Ok(running)
}

/// The port of NBD (IANA).
const NBD_PORT: u16 = 10809;

/// nbdkit with `image` and what is written to it in a file of its own.
pub fn start_nbdkit(lab: &Lab, server: Ipv4Addr, image: &Path, folder: &Path) -> anyhow::Result<Running> {
    let mut command = command(lab, &NBDKIT)?;
    command.args(["--foreground", "--ipaddr", &server.to_string(), "--filter=cow", "file"]).arg(image);
    command.env("TMPDIR", folder);
    let mut running = Running::spawn(NBDKIT.name, command, &folder.join("nbdkit.log"))?;
    with_log(lab.wait_for_tcp(SocketAddr::new(server.into(), NBD_PORT), &mut running), &folder.join("nbdkit.log"))?;
    Ok(running)
}

/// qemu-nbd with `image` and what is written to it in a snapshot.
pub fn start_qemu_nbd(lab: &Lab, server: Ipv4Addr, image: &Path, folder: &Path) -> anyhow::Result<Running> {
    let mut command = command(lab, &QEMU_NBD)?;
    command
        .args(["--persistent", "--snapshot", "--shared=8", "--format=raw", "--bind", &server.to_string()])
        .arg(image);
    command.env("TMPDIR", folder);
    let mut running = Running::spawn(QEMU_NBD.name, command, &folder.join("qemu-nbd.log"))?;
    with_log(lab.wait_for_tcp(SocketAddr::new(server.into(), NBD_PORT), &mut running), &folder.join("qemu-nbd.log"))?;
    Ok(running)
}

fn command(lab: &Lab, peer: &Peer) -> anyhow::Result<Command> {
    match peer.path() {
        Some(path) => lab.command(&path.display().to_string()),
        None => bail!("{} is not installed; apt-get install {}", peer.name, peer.package),
    }
}

/// An error with what the server said.
fn with_log(outcome: anyhow::Result<()>, log: &Path) -> anyhow::Result<()> {
    outcome.with_context(|| fs::read_to_string(log).unwrap_or_default())
}
