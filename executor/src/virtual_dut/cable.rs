//! A virtual machine's network cable where no tap may be made: containers often have no `/dev/net/tun`, or one for root only.
//!
//! ```text
//!   wharf0 (bridge) ── tapX ═ veth pair ═ farX ── packet socket ──► this pump ──► unix socket ── QEMU `-netdev stream`
//!                                                 raw frames                     length (u32, big endian), frame
//! ```
//! A veth pair and a packet socket take no device, only rights in our own namespace. Each frame is copied twice more than with a tap;
//! a kernel comes through in a second or so. The pump lives as long as the cable; QEMUs come and go.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;

use super::network::{NetworkError, PrivateNetwork};

/// The longest frame that QEMU sends (its NET_BUFSIZE); a longer one means that the two of us have lost step.
const FRAME_BYTES_MAX: usize = 4096 + 65536;

/// Frames of the bridge that wait for the pump: a TFTP window of 64 blocks and some. More would be stale when they arrive.
const RECEIVE_BUFFER_BYTES: usize = 512 * 1024;

/// A cable from the bridge to a unix socket. Dropping it unplugs.
pub struct Cable {
    path: PathBuf,
    pump: JoinHandle<()>,
}

impl Cable {
    /// Plugs a cable named `near` into the bridge and listens at `path` for QEMU. Called from within a tokio runtime.
    pub fn plug(network: &PrivateNetwork, near: &str, far: &str, path: &Path) -> Result<Self, NetworkError> {
        let action = || format!("plug the cable `{near}`");
        network.pair(near, far)?;
        let failed = |source| NetworkError::Link { action: action(), source };
        let frames = network.net().run(|| packet_socket(near, far)).map_err(failed)?;
        // SAFETY: an `OwnedFd` keeps its descriptor open, and the same one, until it is dropped, and this one is never replaced.
        let frames = unsafe { AsyncFd::register(frames) }.map_err(|error| failed(error.into()))?;
        let listener = super::qemu::listen_on(path).map_err(failed)?;
        Ok(Cable { path: path.to_owned(), pump: tokio::spawn(pump(frames, listener)) })
    }

    /// Where QEMU connects to.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

/// One QEMU after the other, until the cable is dropped.
async fn pump(frames: AsyncFd<OwnedFd>, listener: UnixListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        drop_stale(&frames);
        let (from_guest, to_guest) = stream.into_split();
        // Each direction ends when the guest does.
        let ended = tokio::select! {
            ended = carry_to_guest(&frames, to_guest) => ended,
            ended = carry_to_bridge(&frames, from_guest) => ended,
        };
        tracing::debug!(?ended, "a virtual DUT's cable has lost its other end");
    }
}

/// What came while nobody listened is of an earlier boot.
fn drop_stale(frames: &AsyncFd<OwnedFd>) {
    let mut frame = [0; 1];
    while receive(frames.get_ref(), &mut frame).is_ok() {}
}

async fn carry_to_guest(frames: &AsyncFd<OwnedFd>, mut guest: OwnedWriteHalf) -> io::Result<()> {
    // The length stands before the frame in one buffer, so that one write carries both.
    let mut buffer = vec![0; 4 + FRAME_BYTES_MAX];
    loop {
        let length = match frames.readable().await?.try_io(|frames| receive(frames.get_ref(), &mut buffer[4..])) {
            Ok(length) => length?,
            Err(_would_block) => continue,
        };
        buffer[..4].copy_from_slice(&(length as u32).to_be_bytes());
        guest.write_all(&buffer[..4 + length]).await?;
    }
}

async fn carry_to_bridge(frames: &AsyncFd<OwnedFd>, guest: OwnedReadHalf) -> io::Result<()> {
    let mut guest = BufReader::with_capacity(FRAME_BYTES_MAX, guest);
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    loop {
        let length = guest.read_u32().await? as usize;
        let Some(frame) = buffer.get_mut(..length) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("QEMU announced a frame of {length} bytes"),
            ));
        };
        guest.read_exact(frame).await?;
        loop {
            match frames.writable().await?.try_io(|frames| send(frames.get_ref(), frame)) {
                // What the kernel does not take is lost, as on any wire.
                Ok(_sent) => break,
                Err(_would_block) => continue,
            }
        }
    }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(nix::sys::socket::recv(socket.as_raw_fd(), buffer, nix::sys::socket::MsgFlags::empty())?)
}

fn send(socket: &OwnedFd, frame: &[u8]) -> io::Result<usize> {
    Ok(nix::sys::socket::send(socket.as_raw_fd(), frame, nix::sys::socket::MsgFlags::empty())?)
}

/// A socket with every frame that leaves the bridge through `near`, and whose own frames enter there. Runs inside the namespace.
fn packet_socket(near: &str, far: &str) -> io::Result<OwnedFd> {
    complete_checksums(near)?;
    // Protocol 0 until it is bound: else it would gather the frames of every link in between.
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    let every_protocol = (libc::ETH_P_ALL as u16).to_be();
    let index = nix::net::if_::if_nametoindex(far)? as libc::c_int;
    // SAFETY: sockaddr_ll fits in a sockaddr_storage, all of whose bytes may be zero; its length is the one given back.
    let ((), address) = unsafe {
        socket2::SockAddr::try_init(|storage, length| {
            let mut address: libc::sockaddr_ll = MaybeUninit::zeroed().assume_init();
            address.sll_family = libc::AF_PACKET as libc::sa_family_t;
            address.sll_protocol = every_protocol;
            address.sll_ifindex = index;
            storage.cast::<libc::sockaddr_ll>().write(address);
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })?
    };
    socket.bind(&address)?;
    Ok(socket.into())
}

nix::ioctl_readwrite_bad!(siocethtool, libc::SIOCETHTOOL, libc::ifreq);

/// linux/ethtool.h: a command and its value.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    value: u32,
}

/// ETHTOOL_STXCSUM: sets transmit checksum offload.
const SET_TRANSMIT_CHECKSUM: u32 = 0x17;

/// Takes checksum offload from a link, and with it segmentation offload: no card follows to do either, the guest would get giant frames
/// with half-made checksums.
fn complete_checksums(link: &str) -> io::Result<()> {
    let mut value = EthtoolValue { command: SET_TRANSMIT_CHECKSUM, value: 0 };
    let mut request = libc::ifreq {
        ifr_name: super::network::to_link_name(link)?,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: (&raw mut value).cast() },
    };
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // SAFETY: the request and the value that it points to outlive the call.
    unsafe { siocethtool(socket.as_raw_fd(), &raw mut request) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use tokio::net::UnixStream;

    use super::*;

    /// What QEMU does at the other end.
    async fn connect(cable: &Cable) -> UnixStream {
        UnixStream::connect(cable.path()).await.unwrap()
    }

    /// An Ethernet broadcast with a UDP datagram from 0.0.0.0:68 to 255.255.255.255:67 that says `hello`. Checksums: IP's as RFC 1071
    /// wants it, UDP's absent (RFC 768 allows it).
    const HELLO: &[u8] = b"\xff\xff\xff\xff\xff\xff\x52\x54\x00\x77\x00\x01\x08\x00\
        \x45\x00\x00\x21\x00\x00\x00\x00\x40\x11\x7a\xcd\x00\x00\x00\x00\xff\xff\xff\xff\
        \x00\x44\x00\x43\x00\x0d\x00\x00hello";

    /// The next frame of IPv4: the network's IPv6 announces itself whenever it likes.
    async fn read_frame(stream: &mut UnixStream) -> Vec<u8> {
        let frame = async {
            loop {
                let length = stream.read_u32().await.unwrap() as usize;
                let mut frame = vec![0; length];
                stream.read_exact(&mut frame).await.unwrap();
                if frame[12..14] == [0x08, 0x00] {
                    return frame;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(5), frame).await.unwrap()
    }

    /// Says hello until it is heard, as firmware does: a link that has just been made may lose a datagram. What was heard, and from which port.
    async fn hello(machine: &mut UnixStream, server: &tokio::net::UdpSocket) -> (Vec<u8>, u16) {
        let mut buffer = [0; 64];
        let mut again = tokio::time::interval(Duration::from_millis(500));
        let heard = async {
            loop {
                tokio::select! {
                    received = server.recv_from(&mut buffer) => return received.unwrap(),
                    _ = again.tick() => {
                        machine.write_u32(HELLO.len() as u32).await.unwrap();
                        machine.write_all(HELLO).await.unwrap();
                    }
                }
            }
        };
        let (length, from) = tokio::time::timeout(Duration::from_secs(20), heard).await.unwrap();
        (buffer[..length].to_vec(), from.port())
    }

    #[tokio::test]
    async fn frames_pass_both_ways_and_the_next_machine_gets_none_of_the_last() {
        let network = match PrivateNetwork::create(Ipv4Addr::new(10, 77, 0, 1), 24) {
            Err(error @ NetworkError::Refused { .. }) => return eprintln!("SKIPPED: {error}"),
            network => network.unwrap(),
        };
        let folder = tempfile::tempdir().unwrap();
        let cable = Cable::plug(&network, "near1", "far1", &folder.path().join("cable")).unwrap();
        let server = network.net().udp("0.0.0.0:67".parse().unwrap(), Some(network.bridge())).unwrap();
        for _boot in 0..2 {
            let mut machine = connect(&cable).await;
            assert_eq!(hello(&mut machine, &server).await, (b"hello".to_vec(), 68));
            server.send_to(b"to the machine", "255.255.255.255:68").await.unwrap();
            let frame = read_frame(&mut machine).await;
            assert!(frame.ends_with(b"to the machine"), "{frame:?}");
            assert_eq!(udp_checksum(&frame[14..]), 0xffff, "the checksum is complete");
            drop(machine);
            server.send_to(b"nobody is there", "255.255.255.255:68").await.unwrap();
        }
    }

    /// The one's complement sum over pseudo header and datagram (RFC 768): all ones when the checksum in it is right.
    fn udp_checksum(packet: &[u8]) -> u16 {
        let datagram = &packet[20..];
        let mut sum = 17 + datagram.len() as u32;
        for pair in packet[12..20].chunks(2).chain(datagram.chunks(2)) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[tokio::test]
    async fn a_machine_that_announces_a_giant_frame_is_cut_off_and_the_next_one_is_served() {
        let network = match PrivateNetwork::create(Ipv4Addr::new(10, 77, 0, 1), 24) {
            Err(error @ NetworkError::Refused { .. }) => return eprintln!("SKIPPED: {error}"),
            network => network.unwrap(),
        };
        let folder = tempfile::tempdir().unwrap();
        let cable = Cable::plug(&network, "near1", "far1", &folder.path().join("cable")).unwrap();
        let mut broken = connect(&cable).await;
        broken.write_u32(u32::MAX).await.unwrap();
        let end = tokio::time::timeout(Duration::from_secs(5), broken.read(&mut [0; 1])).await.unwrap();
        assert_eq!(end.unwrap(), 0);
        let server = network.net().udp("0.0.0.0:67".parse().unwrap(), Some(network.bridge())).unwrap();
        let mut machine = connect(&cable).await;
        assert_eq!(hello(&mut machine, &server).await, (b"hello".to_vec(), 68));
    }
}
