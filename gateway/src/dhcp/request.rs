//! What a client said: one datagram, read once into a [`Request`] that cannot be wrong afterwards.
//!
//! ```text
//!  datagram ── dhcproto: header, options (long ones joined, RFC 3396) ──► overload (52) ──► Request
//!                                                                                  └──────► Malformed: dropped, with a reason
//! ```
//! Options are taken as raw bytes and read leniently: one option that its sender got wrong (a hostname in Latin-1, an architecture of
//! one byte) loses itself and nothing else. The hardware address is the machine's identity; option 61 changes between a machine's
//! firmware, boot loader and operating system and is only copied back (RFC 6842).

use core::fmt;
use core::net::Ipv4Addr;
use core::str::FromStr;
use std::collections::BTreeMap;

use dhcproto::v4::borrowed::{DhcpOptionIterator, Message};
use dhcproto::v4::{Flags, HType, MAGIC, Opcode};

use super::boot::Architecture;

/// A request of a client with an Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it wants (option 53).
    pub kind: RequestKind,
    /// The hardware address it gives itself.
    pub mac: Mac,
    /// Its transaction id, copied into the reply.
    pub transaction: u32,
    /// Its flags, copied into the reply.
    pub flags: Flags,
    /// The address it uses already, if any (`ciaddr`).
    pub client_address: Option<Ipv4Addr>,
    /// The relay that passed the request on, if any (`giaddr`).
    pub relay: Option<Ipv4Addr>,
    /// The address it would like (option 50).
    pub requested_address: Option<Ipv4Addr>,
    /// The server it talks to (option 54).
    pub server_identifier: Option<Ipv4Addr>,
    /// The options it wants to be told (option 55).
    pub parameters: Vec<u8>,
    /// The longest message it takes (option 57), with IP and UDP header.
    pub message_size_max: Option<u16>,
    /// Option 12.
    pub host_name: Option<String>,
    /// Option 60.
    pub vendor_class: Option<String>,
    /// Option 77.
    pub user_classes: Vec<String>,
    /// Option 93: the first number that is known, else the first.
    pub architecture: Option<Architecture>,
    /// Option 97, unless it is all zero.
    pub uuid: Option<MachineUuid>,
    /// Option 97 as it came, to be copied back.
    pub machine_identifier: Option<Vec<u8>>,
    /// Option 61, to be copied back.
    pub client_identifier: Option<Vec<u8>>,
    /// Option 82, to be copied back.
    pub relay_information: Option<Vec<u8>>,
    /// What kind of program this is, by all of the above.
    pub client: ClientKind,
}

/// The message types that clients send (RFC 2132 9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// DHCPDISCOVER.
    Discover,
    /// DHCPREQUEST.
    Request,
    /// DHCPDECLINE.
    Decline,
    /// DHCPRELEASE.
    Release,
    /// DHCPINFORM.
    Inform,
}

/// What kind of program asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientKind {
    /// iPXE, in a ROM or chainloaded.
    Ipxe,
    /// A firmware's PXE client (vendor class `PXEClient`).
    Pxe,
    /// A UEFI firmware's HTTP boot client (vendor class `HTTPClient`).
    HttpBoot,
    /// U-Boot before its EFI stage.
    UBoot,
    /// Something else that asks for a boot file (option 67) or names its architecture.
    OtherNetboot,
    /// An operating system that wants an address.
    OperatingSystem,
}

impl ClientKind {
    /// Whether it would do anything with a boot file.
    pub fn boots_from_network(self) -> bool {
        self != ClientKind::OperatingSystem
    }
}

/// Why a datagram was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than the fixed part.
    #[error("{0} bytes are no DHCP message; the fixed part alone has 240")]
    Short(usize),
    /// Not the op code of requests.
    #[error("op code {0} is not BOOTREQUEST (1)")]
    NotARequest(u8),
    /// Not the magic cookie of RFC 2131 3.
    #[error("the magic cookie of DHCP is missing")]
    NoCookie,
    /// Not a 6-byte Ethernet address.
    #[error("hardware type {hardware} with {length} address bytes is not Ethernet")]
    NotEthernet {
        /// `htype`.
        hardware: u8,
        /// `hlen`.
        length: u8,
    },
    /// No option 53: plain BOOTP.
    #[error("no message type (option 53): plain BOOTP is not served")]
    NoMessageType,
    /// A message type that servers or lease queries send.
    #[error("message type {0} is not one that clients send")]
    NotOfAClient(u8),
}

impl Request {
    /// Reads one datagram.
    pub fn parse(datagram: &[u8]) -> Result<Request, Malformed> {
        let message = Message::new(datagram).map_err(|_| Malformed::Short(datagram.len()))?;
        let mac = check_header(datagram, &message)?;
        let options = Options::of(datagram, &message);
        let kind = request_kind(options.get(53).and_then(<[u8]>::first).ok_or(Malformed::NoMessageType)?)?;
        let vendor_class = options.get(60).and_then(text);
        let user_classes = options.get(77).map(user_classes).unwrap_or_default();
        let architecture = options.get(93).and_then(architecture);
        let client = client_kind(&options, vendor_class.as_deref().unwrap_or_default(), &user_classes, architecture);
        Ok(Request {
            kind,
            mac,
            transaction: message.xid(),
            flags: message.flags(),
            client_address: specified(message.ciaddr()),
            relay: specified(message.giaddr()),
            requested_address: options.address(50).and_then(specified),
            server_identifier: options.address(54).and_then(specified),
            parameters: options.get(55).unwrap_or_default().to_vec(),
            message_size_max: options
                .get(57)
                .and_then(|bytes| bytes.first_chunk())
                .map(|size| u16::from_be_bytes(*size)),
            host_name: options.get(12).and_then(text),
            vendor_class,
            user_classes,
            architecture,
            uuid: options.get(97).and_then(MachineUuid::from_option),
            machine_identifier: options.get(97).map(<[u8]>::to_vec),
            client_identifier: options.get(61).map(<[u8]>::to_vec),
            relay_information: options.get(82).map(<[u8]>::to_vec),
            client,
        })
    }

    /// Whether the parameter request list (option 55) names `code`.
    pub fn asks_for(&self, code: u8) -> bool {
        self.parameters.contains(&code)
    }
}

fn check_header(datagram: &[u8], message: &Message<'_>) -> Result<Mac, Malformed> {
    if message.opcode() != Opcode::BootRequest {
        return Err(Malformed::NotARequest(datagram[0]));
    }
    if datagram[236..240] != MAGIC {
        return Err(Malformed::NoCookie);
    }
    // The length is checked before `chaddr` is touched: the codec would slice past the field's 16 bytes.
    if message.htype() != HType::Eth || message.hlen() != 6 {
        return Err(Malformed::NotEthernet { hardware: datagram[1], length: message.hlen() });
    }
    let octets: [u8; 6] = message.chaddr().try_into().expect("hlen is 6");
    Ok(Mac(octets))
}

fn request_kind(number: &u8) -> Result<RequestKind, Malformed> {
    match number {
        1 => Ok(RequestKind::Discover),
        3 => Ok(RequestKind::Request),
        4 => Ok(RequestKind::Decline),
        7 => Ok(RequestKind::Release),
        8 => Ok(RequestKind::Inform),
        other => Err(Malformed::NotOfAClient(*other)),
    }
}

/// Raw options by number; an option given in several pieces is joined (RFC 3396 7).
struct Options(BTreeMap<u8, Vec<u8>>);

impl Options {
    fn of(datagram: &[u8], message: &Message<'_>) -> Options {
        let mut options = Options(BTreeMap::new());
        options.take(message.opts());
        // RFC 2132 9.3: 1 = `file` holds options, 2 = `sname`, 3 = both; read in this order (RFC 2131 4.1).
        let overload = options.get(52).and_then(<[u8]>::first).copied().unwrap_or(0);
        if overload & 1 != 0 {
            options.take(DhcpOptionIterator::new(&datagram[108..236]));
        }
        if overload & 2 != 0 {
            options.take(DhcpOptionIterator::new(&datagram[44..108]));
        }
        options
    }

    fn take(&mut self, options: DhcpOptionIterator<'_>) {
        for option in options {
            self.0.entry(option.code().into()).or_default().extend_from_slice(option.data());
        }
    }

    fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.get(&code).map(Vec::as_slice)
    }

    fn address(&self, code: u8) -> Option<Ipv4Addr> {
        self.get(code)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
    }
}

fn specified(address: Ipv4Addr) -> Option<Ipv4Addr> {
    (!address.is_unspecified()).then_some(address)
}

/// Text without the trailing NUL that some firmwares count in.
fn text(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end_matches('\0');
    (!text.is_empty()).then(|| text.to_owned())
}

/// Option 77: RFC 3004 has length-prefixed items; iPXE and most others send one bare string.
fn user_classes(bytes: &[u8]) -> Vec<String> {
    length_prefixed(bytes).unwrap_or_else(|| vec![bytes]).into_iter().filter_map(text).collect()
}

fn length_prefixed(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut items = Vec::new();
    while let Some((length, rest)) = bytes.split_first() {
        let (item, rest) = rest.split_at_checked(usize::from(*length))?;
        if item.is_empty() {
            return None;
        }
        items.push(item);
        bytes = rest;
    }
    Some(items)
}

/// Option 93 may hold several numbers (RFC 4578 2.1): the first that the registry knows, else the first.
fn architecture(bytes: &[u8]) -> Option<Architecture> {
    let mut all = bytes.chunks_exact(2).map(|pair| Architecture::from(u16::from_be_bytes([pair[0], pair[1]])));
    all.clone().find(|architecture| architecture.is_known()).or_else(|| all.next())
}

fn client_kind(
    options: &Options,
    vendor_class: &str,
    user_classes: &[String],
    architecture: Option<Architecture>,
) -> ClientKind {
    // iPXE calls itself PXEClient too (captured: fixtures/packets/dhcp/ipxe-*), so it is looked for first. gPXE has its own
    // user class and the same option 175, and understands the same scripts.
    if options.get(175).is_some() || user_classes.iter().any(|class| class == "iPXE") {
        ClientKind::Ipxe
    } else if vendor_class.starts_with("HTTPClient") {
        ClientKind::HttpBoot
    } else if vendor_class.starts_with("PXEClient") {
        ClientKind::Pxe
    } else if vendor_class.starts_with("U-Boot") || architecture.is_some_and(Architecture::is_u_boot) {
        ClientKind::UBoot
    } else if architecture.is_some() || options.get(55).is_some_and(|asked| asked.contains(&67)) {
        ClientKind::OtherNetboot
    } else {
        ClientKind::OperatingSystem
    }
}

/// An Ethernet address: the identity of a machine here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

/// A text that is no Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no MAC address; write six pairs of hexadecimal digits, as in 52:54:00:77:00:01")]
pub struct NotAMac(pub String);

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(text: &str) -> Result<Mac, NotAMac> {
        let refuse = || NotAMac(text.to_owned());
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut octets = [0; 6];
        let mut pairs = text.split(separator);
        for octet in &mut octets {
            let pair = pairs.next().ok_or_else(refuse)?;
            if pair.len() != 2 || !pair.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(refuse());
            }
            *octet = u8::from_str_radix(pair, 16).map_err(|_| refuse())?;
        }
        if pairs.next().is_some() { Err(refuse()) } else { Ok(Mac(octets)) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The UUID of the machine (SMBIOS), bytes in the order in which it is written.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MachineUuid(pub [u8; 16]);

impl MachineUuid {
    /// Option 97 (RFC 4578 2.3): type 0 and 16 bytes, whose first three fields are little-endian as in SMBIOS (seen from iPXE and
    /// EDK2: `…-4000-8000-…` is `0040 8000` on the wire). All zero says "none" (AAVMF without `-uuid`).
    fn from_option(bytes: &[u8]) -> Option<MachineUuid> {
        let (0, rest) = bytes.split_first().map(|(kind, rest)| (*kind, rest))? else {
            return None;
        };
        let mut uuid: [u8; 16] = *rest.first_chunk()?;
        uuid[0..4].reverse();
        uuid[4..6].reverse();
        uuid[6..8].reverse();
        (uuid != [0; 16]).then_some(MachineUuid(uuid))
    }
}

impl fmt::Display for MachineUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for MachineUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_read_with_colons_or_dashes_and_written_with_colons() {
        let mac: Mac = "52:54:00:AB:0c:01".parse().unwrap();
        assert_eq!(mac, Mac([0x52, 0x54, 0, 0xab, 0x0c, 1]));
        assert_eq!("52-54-00-ab-0c-01".parse(), Ok(mac));
        assert_eq!(mac.to_string(), "52:54:00:ab:0c:01");
        for wrong in [
            "",
            "52:54:00:ab:0c",
            "52:54:00:ab:0c:01:02",
            "52:54:00:ab:0c:1",
            "52:54:00:ab-0c-01",
            "+2:54:00:ab:0c:01",
            "zz:54:00:ab:0c:01",
        ] {
            assert_eq!(wrong.parse::<Mac>(), Err(NotAMac(wrong.to_owned())));
        }
        assert_eq!(
            "bad".parse::<Mac>().unwrap_err().to_string(),
            "`bad` is no MAC address; write six pairs of hexadecimal digits, as in 52:54:00:77:00:01"
        );
    }

    #[test]
    fn a_uuid_is_turned_into_the_order_in_which_it_is_written() {
        let wire = [0, 0x44, 0x33, 0x22, 0x11, 0x66, 0x55, 0x88, 0x77, 0x99, 0xaa, 1, 2, 3, 4, 5, 6];
        let uuid = MachineUuid::from_option(&wire).unwrap();
        assert_eq!(uuid.to_string(), "11223344-5566-7788-99aa-010203040506");
        assert_eq!(MachineUuid::from_option(&[0; 17]), None, "no UUID was set");
        assert_eq!(MachineUuid::from_option(&wire[..16]), None, "cut short");
        assert_eq!(MachineUuid::from_option(&[]), None);
    }
}
