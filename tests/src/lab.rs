//! Network namespaces: servers of other people, or a whole farm, run in them at the ports that firmware asks, and the host never notices.
//!
//! ```text
//!   Lab::new ──► namespace without a name ◄── Lab::command: a process inside, which dies with the thread that spawned it
//!                 │ ◄── Lab::inside: sockets                └──► Running: killed when dropped
//!                 └ gone with the last descriptor and process, whatever way the benchmark ends
//! ```

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

/// How long a server may take until it answers: milliseconds, unless the machine is busy.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// The IPv6 prefix of a bridge.
pub const ROUTER_ADVERTISEMENT_PREFIX: &str = "fd77::";

/// A network namespace without a name.
#[derive(Debug)]
pub struct Lab {
    namespace: File,
}

impl Lab {
    /// A namespace with nothing but its loopback. Needs root.
    pub fn new() -> anyhow::Result<Self> {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        let made = made.join().expect("the thread only opens a file");
        let lab = Lab { namespace: made.context("cannot make a network namespace: benchmarks need root")? };
        lab.ip("link set lo up")?;
        Ok(lab)
    }

    /// A bridge `name` with this address, as a farm's private network has it: no forwarding delay, no snooping.
    pub fn bridge(&self, name: &str, address: Ipv4Addr) -> anyhow::Result<()> {
        self.ip(&format!("link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"))?;
        self.ip(&format!("link set {name} up"))?;
        self.ip(&format!("address add {address}/24 dev {name}"))?;
        // For router advertisements: a unique local prefix (RFC 4193), without the second that detecting duplicates takes.
        self.ip(&format!("address add {ROUTER_ADVERTISEMENT_PREFIX}1/64 dev {name} nodad"))
    }

    /// A tap at a bridge.
    pub fn tap(&self, name: &str, bridge: &str) -> anyhow::Result<()> {
        self.ip(&format!("tuntap add dev {name} mode tap"))?;
        self.ip(&format!("link set {name} master {bridge} up"))
    }

    /// A cable from this namespace's bridge to another namespace, which has this address.
    pub fn plug(&self, bridge: &str, other: &Lab, address: Ipv4Addr) -> anyhow::Result<()> {
        let far = format!("/proc/{}/fd/{}", std::process::id(), other.namespace.as_raw_fd());
        self.ip(&format!("link add plug0 type veth peer name cable0 netns {far}"))?;
        self.ip(&format!("link set plug0 master {bridge} up"))?;
        other.ip(&format!("address add {address}/24 dev cable0"))?;
        other.ip("link set cable0 up")
    }

    /// A cable to another namespace; each end gets its addresses, the first of which the kernel sends from.
    pub fn cable(&self, addresses: &[Ipv4Addr], other: &Lab, other_addresses: &[Ipv4Addr]) -> anyhow::Result<()> {
        let far = format!("/proc/{}/fd/{}", std::process::id(), other.namespace.as_raw_fd());
        self.ip(&format!("link add cable0 type veth peer name cable0 netns {far}"))?;
        for (lab, addresses) in [(self, addresses), (other, other_addresses)] {
            for address in addresses {
                lab.ip(&format!("address add {address}/24 dev cable0"))?;
            }
            lab.ip("link set cable0 up")?;
        }
        Ok(())
    }

    /// What the kernel calls it.
    pub fn name(&self) -> io::Result<std::path::PathBuf> {
        std::fs::read_link(format!("/proc/self/fd/{}", self.namespace.as_raw_fd()))
    }

    /// The namespace's handle, for whoever makes sockets in it.
    pub fn handle(&self) -> io::Result<std::os::fd::OwnedFd> {
        Ok(self.namespace.try_clone()?.into())
    }

    /// Does `work` on a thread inside.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(&self.namespace, CloneFlags::CLONE_NEWNET)?;
                work()
            });
            worker.join().unwrap_or_else(|_| Err(io::Error::other("the thread inside the namespace panicked")))
        })
    }

    /// A command whose process will be inside, and be killed when the spawning thread ends.
    pub fn command(&self, program: &str) -> anyhow::Result<Command> {
        let namespace = self.namespace.try_clone()?;
        let mut command = Command::new(program);
        // SAFETY: between fork and exec only setns(2) and prctl(2) are called, on a descriptor that was opened before.
        unsafe {
            command.pre_exec(move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET)?;
                set_pdeathsig(Signal::SIGKILL).map_err(Into::into)
            });
        }
        Ok(command)
    }

    /// What `ip` does with these words, inside.
    pub fn ip(&self, words: &str) -> anyhow::Result<()> {
        let mut command = self.command("ip")?;
        let output = command.args(words.split(' ')).output().context("cannot run `ip`; apt-get install iproute2")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`ip {words}` failed: {}", said.trim());
        Ok(())
    }

    /// Waits until somebody accepts connections at `address`.
    pub fn wait_for_tcp(&self, address: SocketAddr, server: &mut Running) -> anyhow::Result<()> {
        server.wait_until(&|| self.inside(|| TcpStream::connect(address)).is_ok())
    }

    /// Waits until somebody answers TFTP requests at `address`; the file that is asked for need not be there.
    pub fn wait_for_tftp(&self, address: SocketAddr, server: &mut Running) -> anyhow::Result<()> {
        server.wait_until(&|| self.inside(|| ask_tftp(address)).is_ok())
    }
}

/// One read request (RFC 1350 section 5) and any answer to it.
fn ask_tftp(address: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    socket.send_to(b"\x00\x01/no-such-file\x00octet\x00", address)?;
    socket.recv(&mut [0; 600]).map(drop)
}

/// A process that is killed when this is dropped.
pub struct Running {
    name: String,
    child: Child,
}

impl Running {
    /// Spawns a command; what it says goes to `log`.
    pub fn spawn(name: &str, mut command: Command, log: &std::path::Path) -> anyhow::Result<Self> {
        let log = File::create(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Running { name: name.to_owned(), child })
    }

    /// Takes over a process that somebody else spawned.
    pub fn of(name: &str, child: Child) -> Self {
        Running { name: name.to_owned(), child }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The process itself.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    fn wait_until(&mut self, is_ready: &dyn Fn() -> bool) -> anyhow::Result<()> {
        let start = Instant::now();
        while !is_ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status} instead of serving", self.name);
            }
            ensure!(start.elapsed() < READY_TIMEOUT, "{} does not serve after {READY_TIMEOUT:?}", self.name);
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_namespaces_on_a_cable_reach_each_other_and_a_dropped_process_is_gone() {
        let Ok(left) = Lab::new() else {
            eprintln!("SKIPPED: no network namespace may be made here");
            return;
        };
        let right = Lab::new().unwrap();
        let address = Ipv4Addr::new(10, 77, 9, 1);
        left.cable(&[address], &right, &[Ipv4Addr::new(10, 77, 9, 2)]).unwrap();
        let listener = left.inside(|| std::net::TcpListener::bind((address, 0))).unwrap();
        let target = listener.local_addr().unwrap();
        right.inside(|| TcpStream::connect_timeout(&target, READY_TIMEOUT)).unwrap();
        assert!(TcpStream::connect_timeout(&target, Duration::from_millis(200)).is_err(), "the host reaches it, too");
        let mut command = right.command("sleep").unwrap();
        command.arg("600");
        let running = Running::of("sleep", command.spawn().unwrap());
        let folder = format!("/proc/{}", running.id());
        assert!(std::path::Path::new(&folder).exists());
        drop(running);
        assert!(!std::path::Path::new(&folder).exists());
    }
}
