//! A private network for virtual DUTs, so that a farm needs no address, bridge or port of the host and leaves none behind.
//!
//! ```text
//!   host's network                 anonymous namespace                       one more namespace per simulated DUT
//!   ──────────────                 ───────────────────                       ─────────────────────────────────────
//!   operator's listener            wharf0 (bridge, the gateway's address)
//!   downloads                        ├── tap  ◄── QEMU's network card
//!                                    └── port0 ◄────── veth ──────► eth0     PXE client of ours
//! ```
//! Nothing of it has a name outside this process: only file descriptors and processes keep a namespace, so that it is gone
//! when they are, even after SIGKILL. Only threads enter it; the process itself stays in the host's network.
//!
//! Functions here block for some milliseconds (netlink answers at once); they are called when a farm starts and stops.

use std::fs::{self, OpenOptions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use futures_util::TryStreamExt;
use gateway::net::Net;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork, getegid, geteuid};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{
    BridgePortState, BridgeStpState, InfoBridgePort, InfoPortData, LinkAttribute, LinkInfo, LinkMessage,
};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth};

/// The bridge's name inside its namespace.
const BRIDGE: &str = "wharf0";

/// The bridge's own address. A bridge without one takes the lowest of its ports and changes it as they come and go, which
/// every DUT's ARP table would have to find out. Locally administered (IEEE 802 bit 0x02), then "wharf" in ASCII.
const BRIDGE_MAC: [u8; 6] = [0x02, b'w', b'h', b'a', b'r', b'f'];

/// Made from [`BRIDGE_MAC`] as RFC 4291 appendix A says: ff:fe in the middle, the 0x02 bit inverted.
const BRIDGE_LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x0077, 0x68ff, 0xfe61, 0x7266);

/// A simulated DUT's link inside its own namespace.
const PORT_INTERFACE: &str = "eth0";

/// How often, and how long at most, a fresh port of the bridge is looked at: see [`PrivateNetwork::await_forwarding`].
const FORWARDING_INTERVAL: Duration = Duration::from_millis(2);
const FORWARDING_TIMEOUT: Duration = Duration::from_secs(20);

/// Capabilities that a private network takes (linux/capability.h): to make namespaces, and to set up links in them.
const CAP_SYS_ADMIN: u32 = 21;
const CAP_NET_ADMIN: u32 = 12;

/// Why a private network could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Neither root's rights nor user namespaces.
    #[error(
        "a private network needs root or user namespaces, and this host refuses {what}: {source}; allow it (sysctl \
         kernel.unprivileged_userns_clone=1, user.max_user_namespaces above 0, a container with CAP_SYS_ADMIN), or use \
         simulated DUTs on the loopback: `--dut simulated`"
    )]
    Refused {
        /// The step that was refused.
        what: &'static str,
        /// The kernel's word.
        source: io::Error,
    },
    /// The tun device is not there or not for us.
    #[error(
        "a QEMU DUT's network card needs /dev/net/tun, which cannot be opened: {source}; make it readable and writable \
         (modprobe tun; chmod 0666 /dev/net/tun), run as root, or use simulated DUTs: `--dut simulated`"
    )]
    Tun {
        /// The kernel's word.
        source: io::Error,
    },
    /// A link could not be made or changed.
    #[error("cannot {action}: {source}; the kernel may lack support for it (modules bridge, veth, tun)")]
    Link {
        /// What was tried.
        action: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// Not a MAC address.
    #[error("`{0}` is not a MAC address; write six bytes such as `52:54:00:77:00:01`")]
    Mac(String),
}

/// A bridge in a network namespace of our own. Dropping it kills the processes that were [spawned](Self::spawn) into it.
pub struct PrivateNetwork {
    net: Net,
    ports: AtomicU32,
    keeper: Mutex<mpsc::Sender<Work>>,
}

/// What the keeper thread is asked to do.
type Work = Box<dyn FnOnce() + Send>;

impl PrivateNetwork {
    /// Makes a namespace with a bridge that has `address`.
    pub fn create(address: Ipv4Addr, prefix_length: u8) -> Result<Self, NetworkError> {
        let (keeper, net) = start_keeper()?;
        let network = PrivateNetwork { net, ports: AtomicU32::new(0), keeper: Mutex::new(keeper) };
        network.raise_loopback_and_bridge(address, prefix_length)?;
        Ok(network)
    }

    /// Where the gateway makes its sockets.
    pub fn net(&self) -> Net {
        self.net.clone()
    }

    /// The link that leads to all DUTs.
    pub fn bridge(&self) -> &str {
        BRIDGE
    }

    /// Makes a tap on the bridge for QEMU's `-netdev tap,ifname=`; it stays while QEMU comes and goes. Repeating it is harmless.
    pub fn tap(&self, name: &str) -> Result<(), NetworkError> {
        let link_name = to_link_name(name)
            .map_err(|source| NetworkError::Link { action: format!("make the tap `{name}`"), source })?;
        self.net
            .run(|| {
                let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
                let request = tap_request(link_name);
                // SAFETY: both requests read what linux/if_tun.h says they read: an ifreq that outlives the call, an int by value.
                unsafe {
                    tunsetiff(tun.as_raw_fd(), &request)?;
                    tunsetpersist(tun.as_raw_fd(), 1)?;
                }
                Ok(())
            })
            .map_err(|source| NetworkError::Tun { source })?;
        self.join_bridge(name)
    }

    /// Makes two links of which the one ends where the other begins, `near` a port of the bridge and `far` not.
    pub(super) fn pair(&self, near: &str, far: &str) -> Result<(), NetworkError> {
        links(&self.net, format!("make the link pair `{near}`"), async |netlink| {
            netlink.link().add(LinkVeth::new(near, far).build()).execute().await?;
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{far}/disable_ipv6"), "1");
            raise(&netlink, LinkMessageBuilder::<LinkUnspec>::new().index(index_of(far)?)).await
        })?;
        self.join_bridge(near)?;
        self.await_forwarding(near)
    }

    /// Makes a namespace with one link of address `mac` that is joined to the bridge: the own network of a simulated DUT.
    pub fn port(&self, mac: &str) -> Result<Port, NetworkError> {
        let mac = parse_mac(mac)?;
        let number = self.ports.fetch_add(1, Ordering::Relaxed);
        let (inside, outside) = (format!("port{number}"), format!("peer{number}"));
        let net = on_own_thread(enter_new_namespace)?;
        let handle = net.handle().expect("a namespace was just opened").as_raw_fd();
        links(&self.net, format!("make the link pair of port {number}"), async |netlink| {
            netlink.link().add(LinkVeth::new(&inside, &outside).build()).execute().await?;
            let peer = LinkMessageBuilder::<LinkUnspec>::new().index(index_of(&outside)?).setns_by_fd(handle);
            Ok(netlink.link().set(peer.build()).execute().await?)
        })?;
        self.join_bridge(&inside)?;
        links(&net, format!("raise the link of port {number}"), async |netlink| {
            raise(&netlink, LinkMessageBuilder::<LinkUnspec>::new().index(index_of("lo")?)).await?;
            let index = index_of(&outside)?;
            let named = LinkMessageBuilder::<LinkUnspec>::new().index(index).name(PORT_INTERFACE).address(mac.to_vec());
            raise(&netlink, named).await
        })?;
        self.await_forwarding(&inside)?;
        Ok(Port { net, interface: PORT_INTERFACE.to_owned(), bridge_net: self.net.clone(), bridge_end: inside })
    }

    /// Makes `command` run inside this network, and die with the thread that spawns it. That thread must be a long-lived one: the
    /// kernel sends a parent-death signal when the spawning *thread* ends, and an idle worker of tokio's may. [`Self::spawn`] takes care.
    pub fn confine(&self, command: &mut tokio::process::Command) {
        let net = self.net.clone();
        // SAFETY: between fork and exec only the system calls setns(2) and prctl(2) are made, on values that were made before.
        unsafe {
            command.pre_exec(move || {
                if let Some(handle) = net.handle() {
                    setns(handle, CloneFlags::CLONE_NEWNET)?;
                }
                set_pdeathsig(Signal::SIGKILL)?;
                Ok(())
            });
        }
    }

    /// Spawns `command` inside this network; it is killed when this value is dropped and when our process ends in whatever way.
    /// Called from within a tokio runtime.
    pub fn spawn(&self, mut command: tokio::process::Command) -> io::Result<tokio::process::Child> {
        self.confine(&mut command);
        let runtime = tokio::runtime::Handle::current();
        let (answer, spawned) = mpsc::sync_channel(1);
        let work: Work = Box::new(move || {
            let _inside = runtime.enter();
            // The receiver waits below: it cannot be gone.
            let _ = answer.send(command.spawn());
        });
        let gone = || io::Error::other("the private network's keeper thread has ended");
        self.keeper.lock().map_err(|_| gone())?.send(work).map_err(|_| gone())?;
        spawned.recv().map_err(|_| gone())?
    }

    /// The loopback, the bridge and its addresses.
    fn raise_loopback_and_bridge(&self, address: Ipv4Addr, prefix_length: u8) -> Result<(), NetworkError> {
        links(&self.net, format!("make the bridge `{BRIDGE}` with {address}/{prefix_length}"), async |netlink| {
            raise(&netlink, LinkMessageBuilder::<LinkUnspec>::new().index(index_of("lo")?)).await?;
            let bridge = LinkMessageBuilder::<LinkBridge>::new(BRIDGE)
                .address(BRIDGE_MAC.to_vec())
                // No spanning tree and no forwarding delay: a port must forward the DHCP request that follows power-on at once.
                .stp_state(BridgeStpState::Disabled)
                .forward_delay(0)
                // Nobody queries here, so snooping would drop multicast (router solicitations) after some minutes.
                .mcast_snooping(false);
            netlink.link().add(bridge.build()).execute().await?;
            // Else a reply of the router advertiser waits a second for duplicate address detection; the address below asks for
            // none either, so where /proc/sys is read-only nothing is lost.
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{BRIDGE}/accept_dad"), "0");
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{BRIDGE}/accept_ra"), "0");
            let index = index_of(BRIDGE)?;
            raise(&netlink, LinkMessageBuilder::<LinkUnspec>::new().index(index)).await?;
            netlink.address().add(index, IpAddr::V4(address), prefix_length).replace().execute().await?;
            add_link_local(&netlink, index).await
        })
    }

    /// Waits until the bridge passes frames from and to a port whose other end is up. The kernel gets to it in a work queue of its own,
    /// within a millisecond or, while other networks are being torn down, some seconds.
    fn await_forwarding(&self, name: &str) -> Result<(), NetworkError> {
        links(&self.net, format!("wait for the port `{name}` of the bridge"), async |netlink| {
            let index = index_of(name)?;
            let forwarding = async {
                loop {
                    let found: Vec<_> = netlink.link().get().match_index(index).execute().try_collect().await?;
                    if found.iter().any(is_forwarding) {
                        return Ok(());
                    }
                    tokio::time::sleep(FORWARDING_INTERVAL).await;
                }
            };
            tokio::time::timeout(FORWARDING_TIMEOUT, forwarding).await.map_err(io::Error::from)?
        })
    }

    /// Makes a link a port of the bridge and raises it.
    fn join_bridge(&self, name: &str) -> Result<(), NetworkError> {
        links(&self.net, format!("join `{name}` to the bridge"), async |netlink| {
            // A port of a bridge has no business of its own: no link-local address, no router solicitations.
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
            let port = LinkMessageBuilder::<LinkUnspec>::new().index(index_of(name)?);
            raise(&netlink, port.controller(index_of(BRIDGE)?)).await
        })
    }
}

/// A simulated DUT's own network: one link at the bridge. Dropping it pulls the cable.
pub struct Port {
    /// Where the DUT's sockets are made.
    pub net: Net,
    /// The link's name in there.
    pub interface: String,
    bridge_net: Net,
    bridge_end: String,
}

impl Port {
    /// Gives the link an address, in place of any other.
    pub fn set_address(&self, address: Ipv4Addr, prefix_length: u8) -> Result<(), NetworkError> {
        self.clear_address()?;
        links(&self.net, format!("set {address}/{prefix_length} on `{}`", self.interface), async |netlink| {
            let index = index_of(&self.interface)?;
            Ok(netlink.address().add(index, IpAddr::V4(address), prefix_length).replace().execute().await?)
        })
    }

    /// Takes the link's IPv4 addresses away.
    pub fn clear_address(&self) -> Result<(), NetworkError> {
        links(&self.net, format!("clear the addresses of `{}`", self.interface), async |netlink| {
            let filtered = netlink.address().get().set_link_index_filter(index_of(&self.interface)?);
            let present: Vec<_> = filtered.execute().try_collect().await?;
            for message in present {
                let is_ipv4 =
                    |attribute: &AddressAttribute| matches!(attribute, AddressAttribute::Address(IpAddr::V4(_)));
                if message.attributes.iter().any(is_ipv4) {
                    netlink.address().del(message).execute().await?;
                }
            }
            Ok(())
        })
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // One end takes the other with it. An error means that the whole network has gone before us.
        let _ = links(&self.bridge_net, "remove a port".to_owned(), async |netlink| {
            Ok(netlink.link().del(index_of(&self.bridge_end)?).execute().await?)
        });
    }
}

/// Gives a process without root's rights a user namespace in which it may make networks. To be called at the start of `main()`, while
/// the process has one thread (the kernel's condition) and before anything is installed with `sudo`, which does not work inside. The
/// process stays in the host's network namespace. On an error the process is as it was.
pub fn enter_user_namespace_if_needed() -> Result<(), NetworkError> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if has_capabilities(&status, &[CAP_SYS_ADMIN, CAP_NET_ADMIN]) {
        return Ok(());
    }
    rehearse_user_namespace()?;
    enter_user_namespace().map_err(|source| NetworkError::Refused { what: "a user namespace", source })
}

/// Whether a private network may be made here. Tried, not guessed: capabilities, sysctls, LSMs and seccomp all have a say.
pub fn is_permitted() -> bool {
    on_own_thread(enter_new_namespace).is_ok()
}

/// Enters a user namespace in which we are root; outside of it we stay who we are.
fn enter_user_namespace() -> io::Result<()> {
    let (user, group) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    // user_namespaces(7): without CAP_SETGID outside, a group map is refused until setgroups(2) is given up.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1"))
}

/// Tries it all in a child, so that a refusal half way does not leave us as nobody in a namespace without rights.
fn rehearse_user_namespace() -> Result<(), NetworkError> {
    let refused = |source| NetworkError::Refused { what: "a user namespace with a network namespace in it", source };
    // SAFETY: the caller promises a single thread, so the child may run any code; it ends by _exit.
    match unsafe { fork() }.map_err(|errno| refused(errno.into()))? {
        ForkResult::Child => {
            let outcome = enter_user_namespace().and_then(|()| Ok(unshare(CloneFlags::CLONE_NEWNET)?));
            let status = outcome.map_or_else(|error| error.raw_os_error().unwrap_or(libc::EPERM), |()| 0);
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(status) }
        }
        ForkResult::Parent { child } => match waitpid(child, None).map_err(|errno| refused(errno.into()))? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, errno) => Err(refused(io::Error::from_raw_os_error(errno))),
            _ => Err(refused(io::Error::other("the attempt was killed"))),
        },
    }
}

/// Whether `/proc/self/status` shows all of these capabilities as effective.
fn has_capabilities(status: &str, capabilities: &[u32]) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    capabilities.iter().all(|bit| mask & (1 << bit) != 0)
}

/// Starts the thread that owns the namespace and spawns processes into it. It ends when its sender is dropped.
fn start_keeper() -> Result<(mpsc::Sender<Work>, Net), NetworkError> {
    let (sender, work) = mpsc::channel::<Work>();
    let (answer, entered) = mpsc::sync_channel(1);
    let keeper = std::thread::Builder::new().name("private-network".to_owned());
    let refused = |source| NetworkError::Refused { what: "a thread", source };
    keeper
        .spawn(move || {
            let is_inside = enter_new_namespace();
            let goes_on = is_inside.is_ok();
            let _ = answer.send(is_inside);
            while let (true, Ok(work)) = (goes_on, work.recv()) {
                work();
            }
        })
        .map_err(refused)?;
    let net = entered.recv().map_err(|_| refused(io::Error::other("it ended early")))??;
    Ok((sender, net))
}

/// Moves the calling thread into a new network namespace and opens a handle to it.
fn enter_new_namespace() -> Result<Net, NetworkError> {
    let refused = |source| NetworkError::Refused { what: "a network namespace", source };
    unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| refused(errno.into()))?;
    let handle = fs::File::open("/proc/thread-self/ns/net").map_err(refused)?;
    Ok(Net::namespace(OwnedFd::from(handle)))
}

/// Runs `work` on a thread that ends with it, because it changes the thread.
fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T, NetworkError> + Send) -> Result<T, NetworkError> {
    std::thread::scope(|scope| scope.spawn(work).join().expect("entering a namespace does not panic"))
}

/// Runs `work` with a netlink socket that was made inside `net`.
fn links(
    net: &Net,
    action: String,
    work: impl AsyncFnOnce(Handle) -> Result<(), LinkError> + Send,
) -> Result<(), NetworkError> {
    net.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let (connection, netlink, _) = rtnetlink::new_connection()?;
            let connection = tokio::spawn(connection);
            let outcome = work(netlink).await;
            connection.abort();
            outcome.map_err(|LinkError(error)| error)
        })
    })
    .map_err(|source| NetworkError::Link { action, source })
}

/// An error of netlink or of a look-up, as the kernel named it.
struct LinkError(io::Error);

impl From<rtnetlink::Error> for LinkError {
    fn from(error: rtnetlink::Error) -> Self {
        LinkError(match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        })
    }
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        LinkError(error)
    }
}

/// Whether the bridge that this link is a port of passes its frames.
fn is_forwarding(link: &LinkMessage) -> bool {
    let infos = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let states = infos.flatten().filter_map(|info| match info {
        LinkInfo::PortData(InfoPortData::BridgePort(port)) => Some(port),
        _ => None,
    });
    states.flatten().any(|info| matches!(info, InfoBridgePort::State(BridgePortState::Forwarding)))
}

/// Applies `change` and sets the link up.
async fn raise(netlink: &Handle, change: LinkMessageBuilder<LinkUnspec>) -> Result<(), LinkError> {
    Ok(netlink.link().set(change.up().build()).execute().await?)
}

/// The number of a link in the calling thread's namespace.
fn index_of(name: &str) -> io::Result<u32> {
    if_nametoindex(name)
        .map_err(|errno| io::Error::new(io::Error::from(errno).kind(), format!("link `{name}`: {errno}")))
}

/// Adds the bridge's link-local address ready for use: without duplicate address detection (RFC 4862 5.4), as nobody else is here.
async fn add_link_local(netlink: &Handle, index: u32) -> Result<(), LinkError> {
    let mut request = netlink.address().add(index, IpAddr::V6(BRIDGE_LINK_LOCAL), 64).replace();
    request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    Ok(request.execute().await?)
}

nix::ioctl_write_ptr_bad!(tunsetiff, nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()), libc::ifreq);
nix::ioctl_write_int_bad!(tunsetpersist, nix::request_code_write!(b'T', 203, size_of::<libc::c_int>()));

/// What TUNSETIFF reads (linux/if_tun.h): an Ethernet device without the four bytes of packet information before each frame.
fn tap_request(name: LinkName) -> libc::ifreq {
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } }
}

/// A link's name as the kernel takes it, with its final zero.
pub(super) type LinkName = [libc::c_char; libc::IFNAMSIZ];

/// A name that fits, or why it does not.
pub(super) fn to_link_name(name: &str) -> io::Result<LinkName> {
    let mut bytes = [0; libc::IFNAMSIZ];
    if name.is_empty() || name.len() >= bytes.len() {
        let why = format!("a link's name has 1 to {} bytes", bytes.len() - 1);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(bytes)
}

/// Six bytes in hexadecimal with colons between them.
fn parse_mac(text: &str) -> Result<[u8; 6], NetworkError> {
    let bytes: Option<Vec<u8>> =
        text.split(':').map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok()).flatten()).collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| NetworkError::Mac(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;

    use super::*;

    /// `None` where namespaces are not allowed; says so.
    fn network() -> Option<PrivateNetwork> {
        match PrivateNetwork::create(Ipv4Addr::new(10, 77, 0, 1), 24) {
            Ok(network) => Some(network),
            Err(error @ NetworkError::Refused { .. }) => {
                eprintln!("SKIPPED: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[tokio::test]
    async fn a_port_reaches_the_gateway_by_broadcast_without_an_address() {
        let Some(network) = network() else { return };
        let port = network.port("52:54:00:77:00:01").unwrap();
        let server = network.net().udp("0.0.0.0:67".parse().unwrap(), Some(network.bridge())).unwrap();
        let client = port.net.udp("0.0.0.0:68".parse().unwrap(), Some(&port.interface)).unwrap();
        client.send_to(b"discover", "255.255.255.255:67").await.unwrap();
        let mut buffer = [0; 64];
        let (length, _) =
            tokio::time::timeout(Duration::from_secs(5), server.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(&buffer[..length], b"discover");
        server.send_to(b"offer", "255.255.255.255:68").await.unwrap();
        let length = tokio::time::timeout(Duration::from_secs(5), client.recv(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(&buffer[..length], b"offer");
    }

    #[tokio::test]
    async fn a_port_with_an_address_speaks_from_it_and_loses_it_when_cleared() {
        let Some(network) = network() else { return };
        let port = network.port("52:54:00:77:00:01").unwrap();
        port.set_address(Ipv4Addr::new(10, 77, 0, 10), 24).unwrap();
        port.set_address(Ipv4Addr::new(10, 77, 0, 11), 24).unwrap();
        let server = network.net().udp("10.77.0.1:69".parse().unwrap(), None).unwrap();
        let client = port.net.udp("0.0.0.0:0".parse().unwrap(), None).unwrap();
        client.send_to(b"read", "10.77.0.1:69").await.unwrap();
        let mut buffer = [0; 64];
        let (_, from) =
            tokio::time::timeout(Duration::from_secs(5), server.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(from.ip().to_string(), "10.77.0.11");
        port.clear_address().unwrap();
        assert!(client.send_to(b"read", "10.77.0.1:69").await.is_err());
    }

    #[tokio::test]
    async fn many_ports_can_be_made_and_a_dropped_one_takes_its_link_along() {
        let Some(network) = network() else { return };
        let ports: Vec<Port> =
            (0..8).map(|number| network.port(&format!("52:54:00:77:00:{number:02x}")).unwrap()).collect();
        let link = |name: &str| network.net().run(|| index_of(name));
        assert!(link("port7").is_ok());
        drop(ports);
        assert!(link("port7").is_err());
    }

    #[tokio::test]
    async fn a_spawned_process_is_inside_and_dies_with_the_network() {
        let Some(network) = network() else { return };
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", "cat /proc/net/dev; sleep 600"]).stdout(Stdio::piped());
        let mut child = network.spawn(command).unwrap();
        let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
        let mut names = Vec::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            names.extend(line.split_once(':').map(|(name, _)| name.trim().to_owned()));
            if names.len() == 2 {
                break;
            }
        }
        assert_eq!(names, ["lo", "wharf0"]);
        drop(network);
        let status = tokio::time::timeout(Duration::from_secs(5), child.wait()).await.unwrap().unwrap();
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
    }

    #[test]
    fn a_tap_is_made_twice_without_harm() {
        let Some(network) = network() else { return };
        match network.tap("dut1") {
            Err(error @ NetworkError::Tun { .. }) => return eprintln!("SKIPPED: {error}"),
            other => other.unwrap(),
        }
        network.tap("dut1").unwrap();
        assert!(network.net().run(|| index_of("dut1")).is_ok());
        assert!(index_of("dut1").is_err(), "the host must not see it");
    }

    #[test]
    fn a_link_name_that_is_too_long_is_refused_in_words() {
        let Some(network) = network() else { return };
        let error = network.tap("a-name-of-seventeen").unwrap_err().to_string();
        assert!(error.contains("a link's name has 1 to 15 bytes"), "{error}");
    }

    #[test]
    fn capabilities_are_read_from_the_status_file() {
        let root = "Name:\twharf\nCapInh:\t0000000000000000\nCapEff:\t000001ffffffffff\n";
        assert!(has_capabilities(root, &[CAP_SYS_ADMIN, CAP_NET_ADMIN]));
        // Docker's default set: CAP_NET_ADMIN and CAP_SYS_ADMIN are missing.
        assert!(!has_capabilities("CapEff:\t00000000a80425fb\n", &[CAP_NET_ADMIN]));
        assert!(!has_capabilities("", &[CAP_SYS_ADMIN]));
    }

    #[test]
    fn a_mac_address_has_six_bytes() {
        assert_eq!(parse_mac("52:54:00:77:00:0A").unwrap(), [0x52, 0x54, 0, 0x77, 0, 0x0a]);
        for bad in
            ["", "52:54:00:77:00", "52:54:00:77:00:01:02", "52-54-00-77-00-01", "52:54:00:77:00:1", "zz:54:00:77:00:01"]
        {
            assert_eq!(
                parse_mac(bad).unwrap_err().to_string(),
                format!("`{bad}` is not a MAC address; write six bytes such as `52:54:00:77:00:01`")
            );
        }
    }
}
