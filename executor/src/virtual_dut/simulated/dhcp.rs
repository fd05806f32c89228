//! Asking for an address and a bootfile, as firmware does.
//!
//! ```text
//!  DISCOVER ──► OFFER ──► REQUEST ──► ACK ──► Lease
//!     ▲  1 s, 2 s, 4 s, 8 s without an answer: again       │
//!     └────────────── NAK: from the start ◄────────────────┘
//! ```
//! The options on the wire are those of real ROMs (captures of Debian 12's iPXE and OVMF). One thing is left out: a real ROM
//! waits about 2 s for a ProxyDHCP offer unless option 175.176 ends the wait; we take the first offer at once.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::{Architecture, DhcpOption, DhcpOptions, Flags, Message, MessageType, OptionCode, UnknownOption};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use tokio::time::{Instant, timeout_at};

use super::wire::Wire;

/// RFC 2131, 4.1 asks for a doubling delay; iPXE begins with 1 s. After the fourth try firmware gives up the device.
pub const DELAYS: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8)];
/// Three refusals in a row: the server wants somebody else here.
const REFUSALS_MAX: u32 = 3;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its MAC.
    pub mac: [u8; 6],
    /// Its SMBIOS UUID in the order in which it is written.
    pub uuid: [u8; 16],
    /// Which program of it.
    pub client: Client,
}

/// The programs that a machine runs one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A BIOS ROM's own.
    PlainBios,
    /// EDK2's own.
    PlainUefi,
    /// iPXE under a BIOS.
    IpxeBios,
    /// iPXE under UEFI.
    IpxeUefi,
    /// A loader that wants an address and nothing to boot.
    Loader,
}

/// What the server gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Our address.
    pub address: Ipv4Addr,
    /// Option 1.
    pub netmask: Ipv4Addr,
    /// Option 3.
    pub router: Option<Ipv4Addr>,
    /// Option 6, the first.
    pub dns: Option<Ipv4Addr>,
    /// Option 12.
    pub hostname: Option<String>,
    /// Option 54.
    pub server: Ipv4Addr,
    /// `siaddr`, else option 66, else the server.
    pub next_server: Ipv4Addr,
    /// Option 67, else `file`.
    pub bootfile: Option<String>,
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum DhcpError {
    /// No socket.
    #[error("cannot ask for an address: {0}")]
    Socket(#[from] io::Error),
    /// Nobody answered.
    #[error("no DHCP server answered")]
    Silence,
    /// The server refused our requests.
    #[error("the DHCP server refused {REFUSALS_MAX} requests in a row")]
    Refused,
}

/// Asks until there is a lease or [`DELAYS`] are over.
pub async fn acquire(wire: &Wire, identity: &Identity) -> Result<Lease, DhcpError> {
    ask(wire, identity, &DELAYS).await
}

async fn ask(wire: &Wire, identity: &Identity, delays_between: &[Duration]) -> Result<Lease, DhcpError> {
    let (socket, server) = wire.dhcp_socket()?;
    // Ethernet's largest payload: no server sends more to a client that says 1472.
    let mut buffer = [0; 1500];
    for _ in 0..REFUSALS_MAX {
        let transaction = rand::random();
        let mut offer: Option<Lease> = None;
        let mut delays = delays_between.iter();
        let started = Instant::now();
        'asking: loop {
            let Some(delay) = delays.next() else { return Err(DhcpError::Silence) };
            let seconds = u16::try_from(started.elapsed().as_secs()).unwrap_or(u16::MAX);
            socket.send_to(&message(identity, transaction, seconds, offer.as_ref()), server).await?;
            let until = Instant::now() + *delay;
            while let Ok(received) = timeout_at(until, socket.recv_from(&mut buffer)).await {
                // An ICMP error for an earlier send comes back here: the server is not up yet.
                let Ok((length, _)) = received else { continue };
                match (understand(&buffer[..length], transaction, identity.mac), &offer) {
                    (Some(Reply::Offer(lease)), None) => {
                        offer = Some(lease);
                        delays = delays_between.iter();
                        continue 'asking;
                    }
                    (Some(Reply::Ack(lease)), Some(_)) => return Ok(lease),
                    (Some(Reply::Nak), Some(_)) => break 'asking,
                    _ => {}
                }
            }
        }
    }
    Err(DhcpError::Refused)
}

/// An answer that is for us.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reply {
    Offer(Lease),
    Ack(Lease),
    Nak,
}

impl Client {
    /// Options 93, 94 (the UNDI version) and 60 of those that boot from the network.
    fn pxe(self) -> Option<(Architecture, (u8, u8, u8), &'static str)> {
        Some(match self {
            Client::PlainBios | Client::IpxeBios => {
                (Architecture::X86_Bios, (1, 2, 1), "PXEClient:Arch:00000:UNDI:002001")
            }
            Client::PlainUefi => (Architecture::X64, (1, 3, 0), "PXEClient:Arch:00007:UNDI:003000"),
            Client::IpxeUefi => (Architecture::X64, (1, 3, 10), "PXEClient:Arch:00007:UNDI:003010"),
            Client::Loader => return None,
        })
    }

    fn is_ipxe(self) -> bool {
        matches!(self, Client::IpxeBios | Client::IpxeUefi)
    }
}

/// A DISCOVER, or a REQUEST for what was offered.
fn message(identity: &Identity, transaction: u32, seconds: u16, offer: Option<&Lease>) -> Vec<u8> {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(transaction, none, none, none, none, &identity.mac);
    message.set_secs(seconds);
    // EDK2 asks for broadcast replies; iPXE's ROM does not, and takes them all the same.
    if !identity.client.is_ipxe() {
        message.set_flags(Flags::default().set_broadcast());
    }
    options(identity, message.opts_mut());
    let kind = match offer {
        None => MessageType::Discover,
        Some(lease) => {
            message.opts_mut().insert(DhcpOption::RequestedIpAddress(lease.address));
            message.opts_mut().insert(DhcpOption::ServerIdentifier(lease.server));
            MessageType::Request
        }
    };
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    let mut bytes = Vec::with_capacity(548);
    message.encode(&mut Encoder::new(&mut bytes)).expect("our own options are short");
    // RFC 1542, 2.1: servers may drop BOOTP packets under 300 bytes.
    bytes.resize(bytes.len().max(300), 0);
    bytes
}

fn options(identity: &Identity, options: &mut DhcpOptions) {
    let client = identity.client;
    // 0x05c0, as iPXE says.
    options.insert(DhcpOption::MaxMessageSize(1472));
    let Some((architecture, (kind, major, minor), vendor_class)) = client.pxe() else {
        // Subnet mask, router and name server: what is needed to be reached.
        options.insert(DhcpOption::ParameterRequestList([1, 3, 6].map(OptionCode::from).to_vec()));
        return;
    };
    options.insert(DhcpOption::ClientSystemArchitecture(architecture));
    options.insert(DhcpOption::ClientNetworkInterface(kind, major, minor));
    options.insert(DhcpOption::ClassIdentifier(vendor_class.into()));
    let mut uuid = vec![0];
    uuid.extend_from_slice(&smbios_order(identity.uuid));
    options.insert(DhcpOption::ClientMachineIdentifier(uuid));
    options.insert(DhcpOption::ParameterRequestList(wanted(client)));
    if client.is_ipxe() {
        // The bare string, not RFC 3004's length-prefixed form.
        options.insert(DhcpOption::UserClass(b"iPXE".to_vec()));
        let features =
            [177, 5, 1, 0x1a, 0xf4, 0x10, 0, 235, 3, 1, 0, 0, 23, 1, 1, 21, 1, 1, 19, 1, 1, 34, 1, 1, 18, 1, 1];
        options.insert(DhcpOption::Unknown(UnknownOption::new(OptionCode::from(175), features.to_vec())));
        let mut identifier = vec![1];
        identifier.extend_from_slice(&identity.mac);
        options.insert(DhcpOption::ClientIdentifier(identifier));
    }
}

/// Option 55 as iPXE sends it; EDK2's has no 175 and 203.
fn wanted(client: Client) -> Vec<OptionCode> {
    let mut codes = vec![1, 3, 6, 7, 12, 15, 17, 26, 43, 60, 66, 67, 119, 128, 129, 130, 131, 132, 133, 134, 135];
    if client.is_ipxe() {
        codes.extend([175, 203]);
    }
    codes.into_iter().map(OptionCode::from).collect()
}

/// RFC 4578, 2.3 as SMBIOS has it: the first three fields little-endian.
fn smbios_order(mut uuid: [u8; 16]) -> [u8; 16] {
    uuid[0..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    uuid
}

fn understand(bytes: &[u8], transaction: u32, mac: [u8; 6]) -> Option<Reply> {
    let message = Message::decode(&mut Decoder::new(bytes)).ok()?;
    let for_us = message.opcode() == dhcproto::v4::Opcode::BootReply
        && message.xid() == transaction
        && message.chaddr().starts_with(&mac);
    match message.opts().msg_type().filter(|_| for_us)? {
        MessageType::Offer => Some(Reply::Offer(lease(&message)?)),
        MessageType::Ack => Some(Reply::Ack(lease(&message)?)),
        MessageType::Nak => Some(Reply::Nak),
        _ => None,
    }
}

fn lease(message: &Message) -> Option<Lease> {
    let options = message.opts();
    let Some(DhcpOption::ServerIdentifier(server)) = options.get(OptionCode::ServerIdentifier) else { return None };
    let text = |option: Option<&DhcpOption>| match option {
        Some(DhcpOption::BootfileName(bytes) | DhcpOption::TFTPServerName(bytes)) => plain_text(bytes),
        Some(DhcpOption::Hostname(name)) => Some(name.clone()),
        _ => None,
    };
    let address = |option: Option<&DhcpOption>| match option {
        Some(DhcpOption::Router(list) | DhcpOption::DomainNameServer(list)) => list.first().copied(),
        Some(DhcpOption::SubnetMask(mask)) => Some(*mask),
        _ => None,
    };
    let named_server = text(options.get(OptionCode::TFTPServerName)).and_then(|name| name.parse().ok());
    let next_server = Some(message.siaddr()).filter(|address| !address.is_unspecified()).or(named_server);
    Some(Lease {
        address: message.yiaddr(),
        // A server that tells no netmask serves one link: /24 as the classful guess of old firmware for private networks.
        netmask: address(options.get(OptionCode::SubnetMask)).unwrap_or(Ipv4Addr::new(255, 255, 255, 0)),
        router: address(options.get(OptionCode::Router)),
        dns: address(options.get(OptionCode::DomainNameServer)),
        hostname: text(options.get(OptionCode::Hostname)),
        server: *server,
        next_server: next_server.unwrap_or(*server),
        bootfile: text(options.get(OptionCode::BootfileName)).or_else(|| message.fname().and_then(plain_text)),
    })
}

/// Firmware's strings end at the first NUL, and an empty one is none.
fn plain_text(bytes: &[u8]) -> Option<String> {
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    Some(String::from_utf8_lossy(bytes).into_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use tokio::net::UdpSocket;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    const UUID: [u8; 16] = *b"\x00\x00\x00\x01\x00\x02\x40\x00\x80\x00\x52\x54\x00\x12\x34\x56";

    fn identity(client: Client) -> Identity {
        Identity { mac: MAC, uuid: UUID, client }
    }

    fn has(packet: &[u8], option: &[u8]) {
        assert!(packet.windows(option.len()).any(|window| window == option), "{option:x?} is missing in {packet:x?}");
    }

    #[test]
    fn a_discover_of_ipxe_has_the_options_of_a_real_rom() {
        let packet = message(&identity(Client::IpxeBios), 7, 0, None);
        assert_eq!(packet[..8], [1, 1, 6, 0, 0, 0, 0, 7]);
        assert_eq!(packet[10..12], [0, 0], "no broadcast flag");
        assert_eq!(packet[28..34], MAC);
        has(&packet, &[53, 1, 1]);
        has(&packet, &[57, 2, 0x05, 0xc0]);
        has(&packet, &[93, 2, 0, 0]);
        has(&packet, &[94, 3, 1, 2, 1]);
        has(&packet, b"\x3c\x20PXEClient:Arch:00000:UNDI:002001");
        has(&packet, b"\x4d\x04iPXE");
        has(&packet, &[61, 7, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        has(&packet, &[97, 17, 0, 1, 0, 0, 0, 2, 0, 0, 0x40, 0x80, 0, 0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        has(
            &packet,
            &[
                55, 23, 1, 3, 6, 7, 12, 15, 17, 26, 43, 60, 66, 67, 119, 128, 129, 130, 131, 132, 133, 134, 135, 175,
                203,
            ],
        );
        has(&packet, &[177, 5, 1, 0x1a, 0xf4, 0x10, 0]);
    }

    #[test]
    fn plain_uefi_firmware_has_no_user_class_and_wants_broadcasts() {
        let packet = message(&identity(Client::PlainUefi), 7, 3, None);
        assert_eq!(packet[8..12], [0, 3, 0x80, 0]);
        has(&packet, &[93, 2, 0, 7]);
        has(&packet, b"\x3c\x20PXEClient:Arch:00007:UNDI:003000");
        assert!(!packet.windows(4).any(|window| window == b"iPXE"));
    }

    fn reply(request: &Message, kind: MessageType, bootfile: &str) -> Vec<u8> {
        let mut reply = Message::new_with_id(
            request.xid(),
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::new(127, 77, 0, 5),
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::UNSPECIFIED,
            request.chaddr(),
        );
        reply.set_opcode(dhcproto::v4::Opcode::BootReply);
        reply.opts_mut().insert(DhcpOption::MessageType(kind));
        reply.opts_mut().insert(DhcpOption::ServerIdentifier(Ipv4Addr::LOCALHOST));
        reply.opts_mut().insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 0, 0, 0)));
        reply.opts_mut().insert(DhcpOption::BootfileName(bootfile.into()));
        let mut bytes = Vec::new();
        reply.encode(&mut Encoder::new(&mut bytes)).unwrap();
        bytes
    }

    /// Answers each request with the next of `kinds` (`None`: stays silent), and returns what it was asked.
    async fn scripted(
        kinds: &'static [Option<MessageType>],
    ) -> (SocketAddr, tokio::task::JoinHandle<Vec<MessageType>>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (mut asked, mut buffer) = (Vec::new(), [0; 1500]);
            for kind in kinds {
                let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
                let request = Message::decode(&mut Decoder::new(&buffer[..length])).unwrap();
                asked.push(request.opts().msg_type().unwrap());
                let Some(kind) = kind else { continue };
                // Answers for somebody else come first, as broadcasts do.
                let mut stranger = request.clone();
                stranger.set_xid(request.xid() ^ 1);
                socket.send_to(&reply(&stranger, *kind, "other"), peer).await.unwrap();
                socket.send_to(b"junk", peer).await.unwrap();
                socket.send_to(&reply(&request, *kind, "boot.ipxe\0"), peer).await.unwrap();
            }
            asked
        });
        (address, task)
    }

    fn loopback(dhcp: SocketAddr) -> Wire {
        Wire::Loopback { address: Ipv4Addr::new(127, 77, 0, 5), dhcp, tftp_port: 69 }
    }

    #[tokio::test]
    async fn a_lost_packet_is_sent_again_and_a_nak_starts_over() {
        use MessageType::{Ack, Discover, Nak, Offer, Request};
        let delays = [Duration::from_millis(200), Duration::from_secs(10)];
        let (address, server) = scripted(&[None, Some(Offer), Some(Nak), Some(Offer), Some(Ack)]).await;
        let lease = ask(&loopback(address), &identity(Client::IpxeBios), &delays).await.unwrap();
        assert_eq!(server.await.unwrap(), [Discover, Discover, Request, Discover, Request]);
        assert_eq!(lease.address, Ipv4Addr::new(127, 77, 0, 5));
        assert_eq!(lease.netmask, Ipv4Addr::new(255, 0, 0, 0));
        assert_eq!(lease.next_server, Ipv4Addr::LOCALHOST);
        assert_eq!(lease.bootfile.as_deref(), Some("boot.ipxe"));
    }

    #[tokio::test]
    async fn silence_ends_after_the_last_delay() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let wire = loopback(silent.local_addr().unwrap());
        let delays = [Duration::from_millis(5), Duration::from_millis(10)];
        let error = ask(&wire, &identity(Client::IpxeBios), &delays).await.unwrap_err();
        assert_eq!(error.to_string(), "no DHCP server answered");
        let mut asked = 0;
        while silent.try_recv(&mut [0; 1500]).is_ok() {
            asked += 1;
        }
        assert_eq!(asked, 2);
    }
}
