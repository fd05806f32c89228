//! The answer to one request: what to say, where to send it, and what to tell the executor.
//!
//! ```text
//!  client                                         server (RFC 2131 4.3)
//!  DISCOVER ────────────────────────────────────► OFFER   its reserved address, or one of the range
//!  REQUEST  54 = other server ──────────────────► nothing, our offer is withdrawn
//!           54 = us, 50        (selecting)     ─┐
//!           50                 (init-reboot)    ├► ACK    if that is its address, or free and it has none
//!           ciaddr             (renew, rebind) ─┘  NAK    otherwise: this server is the only one of its network
//!  DECLINE  50 ─────────────────────────────────► nothing, the address is parked
//!  RELEASE  ciaddr ─────────────────────────────► nothing, the address is free
//!  INFORM   ciaddr ─────────────────────────────► ACK     options only, no lease
//! ```
//! Boot options go to clients that boot from the network and whose [`BootOffer`](super::boot::BootOffer) has a rule for them. An
//! unknown architecture gets its address like any other: no number that a firmware invents makes this server silent.

use core::fmt;
use core::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use dhcproto::v4::{CLIENT_PORT, DhcpOption, Message, MessageType, Opcode, OptionCode, SERVER_PORT, UnknownOption};
use dhcproto::{Encodable, Encoder};

use super::boot::{Architecture, BootRule, is_settable};
use super::options::Extra;
use super::request::{ClientKind, Mac, MachineUuid, Request, RequestKind};
use super::table::{LEASE, Machine, Network, Refusal, Table};

/// Shortest reply: BOOTP's fixed 300 bytes (RFC 951 with its 64-byte vendor area); old relays and ROMs drop shorter ones.
const MESSAGE_BYTES_MIN: usize = 300;

/// Room without option 57: a 576-byte IP datagram (RFC 2131 2).
const DATAGRAM_BYTES_DEFAULT: u16 = 576;

/// Room at most, whatever option 57 says (EDK2 says 65280): one Ethernet frame, because firmware reassembles badly or not at all.
const DATAGRAM_BYTES_MAX: u16 = 1500;

/// IP header and UDP header, which option 57 counts in.
const HEADER_BYTES: u16 = 28;

/// The `file` field, with its NUL (RFC 2131 2).
const FILE_BYTES: usize = 128;

/// What follows from a request.
#[derive(Debug)]
pub struct Decision {
    /// What to send, if anything.
    pub reply: Option<(Reply, Destination)>,
    /// What happened.
    pub event: DhcpEvent,
}

/// Where a reply goes (RFC 2131 4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The relay that passed the request on, port 67.
    Relay(Ipv4Addr),
    /// The client, which answers ARP for its address already, port 68.
    Client(Ipv4Addr),
    /// Everybody on the link, port 68. Also for clients that did not ask for it by the flag: they have no address to answer ARP for,
    /// and iPXE, udhcpc, U-Boot and EDK2 all take it.
    Broadcast,
}

impl Destination {
    /// Its address and port.
    pub fn address(self) -> SocketAddrV4 {
        match self {
            Destination::Relay(relay) => SocketAddrV4::new(relay, SERVER_PORT),
            Destination::Client(client) => SocketAddrV4::new(client, CLIENT_PORT),
            Destination::Broadcast => SocketAddrV4::new(Ipv4Addr::BROADCAST, CLIENT_PORT),
        }
    }
}

/// One request and how it ended, for the job's log and evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhcpEvent {
    /// Who asked.
    pub mac: Mac,
    /// How it ended.
    pub outcome: Outcome,
    /// The address in question.
    pub address: Option<Ipv4Addr>,
    /// Whether the farm knows the machine.
    pub machine: Machine,
    /// What kind of program asked; see [`ClientKind::boots_from_network`].
    pub client: ClientKind,
    /// Option 93.
    pub architecture: Option<Architecture>,
    /// Option 77, several ones joined by commas.
    pub user_class: Option<String>,
    /// Option 12.
    pub host_name: Option<String>,
    /// Option 60.
    pub vendor_class: Option<String>,
    /// Option 97.
    pub uuid: Option<MachineUuid>,
    /// The boot file it was told.
    pub bootfile: Option<String>,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// DISCOVER, answered by an offer.
    Offered,
    /// REQUEST, acknowledged.
    Acknowledged,
    /// REQUEST, refused by a NAK.
    Refused(Refusal),
    /// DECLINE: another machine uses the address.
    Declined,
    /// RELEASE: the address is given back.
    Released,
    /// INFORM, answered.
    Informed,
    /// No answer.
    Unanswered(Silence),
}

/// Why a request got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// The client chose another server.
    OtherServer(Ipv4Addr),
    /// No reservation, and no address left in the range (or no range).
    NoAddress,
    /// A relay of another network passed it on, and the machine has no reservation.
    ForeignRelay(Ipv4Addr),
    /// The request lacks the address that it is about.
    NoAddressNamed,
    /// A proxy gives no addresses.
    OfTheOtherServer,
    /// A proxy speaks to PXE and UEFI HTTP clients only.
    NoProxyClient,
    /// A proxy has nothing to say to a client that boots nothing now.
    NothingToBoot,
    /// The other server gives it an address that is not its reserved one.
    AnotherAddress {
        /// What it takes from the other server.
        given: Ipv4Addr,
        /// What is reserved for it here.
        reserved: Ipv4Addr,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Offered => f.write_str("offered"),
            Outcome::Acknowledged => f.write_str("acknowledged"),
            Outcome::Refused(refusal) => write!(f, "refused: {refusal}"),
            Outcome::Declined => f.write_str("declined: another machine uses the address"),
            Outcome::Released => f.write_str("released"),
            Outcome::Informed => f.write_str("informed"),
            Outcome::Unanswered(silence) => write!(f, "not answered: {silence}"),
        }
    }
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Silence::OtherServer(server) => write!(f, "it chose the server {server}"),
            Silence::NoAddress => {
                f.write_str("no reservation and no free address in the range; add one of them to the farm")
            }
            Silence::ForeignRelay(relay) => {
                write!(f, "relay {relay} is of another network; reserve an address for the machine")
            }
            Silence::NoAddressNamed => f.write_str("the request names no address"),
            Silence::OfTheOtherServer => f.write_str("addresses are the other DHCP server's"),
            Silence::NoProxyClient => {
                f.write_str("it does not boot by PXE or UEFI HTTP, and the rest is the other DHCP server's")
            }
            Silence::NothingToBoot => f.write_str("there is nothing for it to boot now"),
            Silence::AnotherAddress { given, reserved } => write!(
                f,
                "it takes the address {given} from the other DHCP server, and {reserved} is reserved here; make the other one \
                 give it {reserved}"
            ),
        }
    }
}

/// Answers `request`, and records in `table` what was promised.
pub fn reply(request: &Request, table: &mut Table, now: Instant) -> Decision {
    let (outcome, address) = decide(request, table, now);
    let boot = boot_for(request, table, &outcome);
    let event = event(request, table, &outcome, address, &boot);
    let message = match outcome {
        Outcome::Offered => Reply::new(MessageType::Offer, request, table, address, &boot),
        Outcome::Acknowledged => Reply::new(MessageType::Ack, request, table, address, &boot),
        Outcome::Informed => Reply::new(MessageType::Ack, request, table, None, &boot),
        Outcome::Refused(ref refusal) => Reply::refusal(request, table.network(), refusal),
        Outcome::Declined | Outcome::Released | Outcome::Unanswered(_) => return Decision { reply: None, event },
    };
    let destination = destination(request, &outcome);
    Decision { reply: Some((message, destination)), event }
}

fn decide(request: &Request, table: &mut Table, now: Instant) -> (Outcome, Option<Ipv4Addr>) {
    let mac = request.mac;
    if let Some(relay) = request.relay
        && !table.network().contains(relay)
        && table.machine(mac) == Machine::Unknown
    {
        return (Outcome::Unanswered(Silence::ForeignRelay(relay)), None);
    }
    match (request.kind, request.requested_address.or(request.client_address)) {
        (RequestKind::Discover, wanted) => match table.offer(mac, wanted, now) {
            Some(address) => (Outcome::Offered, Some(address)),
            None => (Outcome::Unanswered(Silence::NoAddress), None),
        },
        (RequestKind::Request, asked) => request_address(request, asked, table, now),
        (RequestKind::Decline | RequestKind::Release | RequestKind::Inform, None) => {
            (Outcome::Unanswered(Silence::NoAddressNamed), None)
        }
        (RequestKind::Decline, Some(address)) => {
            table.decline(mac, address, now);
            (Outcome::Declined, Some(address))
        }
        (RequestKind::Release, Some(address)) => {
            table.release(mac, address, now);
            (Outcome::Released, Some(address))
        }
        (RequestKind::Inform, Some(address)) => (Outcome::Informed, Some(address)),
    }
}

/// RFC 2131 4.3.2. A REQUEST without any address (seen from no firmware here) is taken to mean what the machine was offered.
fn request_address(
    request: &Request,
    asked: Option<Ipv4Addr>,
    table: &mut Table,
    now: Instant,
) -> (Outcome, Option<Ipv4Addr>) {
    let mac = request.mac;
    if let Some(server) = request.server_identifier
        && server != table.network().server
    {
        table.withdraw(mac, now);
        return (Outcome::Unanswered(Silence::OtherServer(server)), asked);
    }
    let Some(address) = asked.or_else(|| table.address_of(mac, now)) else {
        return (Outcome::Unanswered(Silence::NoAddressNamed), None);
    };
    match table.bind(mac, address, now) {
        Ok(()) => (Outcome::Acknowledged, Some(address)),
        Err(refusal) => (Outcome::Refused(refusal), Some(address)),
    }
}

/// What of the machine's boot offer goes into this reply.
#[derive(Default)]
pub(super) struct Boot {
    rule: Option<BootRule>,
    extra: Option<Extra>,
}

impl Boot {
    /// The boot file that the client is told in the end.
    pub fn bootfile(&self) -> Option<String> {
        let own = || self.rule.as_ref().map(|rule| rule.bootfile.clone());
        self.extra.as_ref().and_then(Extra::bootfile).or_else(own)
    }
}

pub(super) fn boot_for(request: &Request, table: &Table, outcome: &Outcome) -> Boot {
    let offer = match outcome {
        Outcome::Offered | Outcome::Acknowledged | Outcome::Informed => table.boot(request.mac),
        Outcome::Refused(_) | Outcome::Declined | Outcome::Released | Outcome::Unanswered(_) => None,
    };
    let rule = offer.filter(|_| request.client.boots_from_network()).and_then(|offer| offer.rule_for(request));
    Boot { rule: rule.cloned(), extra: offer.and_then(|offer| offer.extra_for(request)).cloned() }
}

pub(super) fn event(
    request: &Request,
    table: &Table,
    outcome: &Outcome,
    address: Option<Ipv4Addr>,
    boot: &Boot,
) -> DhcpEvent {
    DhcpEvent {
        mac: request.mac,
        outcome: outcome.clone(),
        address,
        machine: table.machine(request.mac),
        client: request.client,
        architecture: request.architecture,
        user_class: (!request.user_classes.is_empty()).then(|| request.user_classes.join(", ")),
        host_name: request.host_name.clone(),
        vendor_class: request.vendor_class.clone(),
        uuid: request.uuid,
        bootfile: boot.bootfile(),
    }
}

pub(super) fn destination(request: &Request, outcome: &Outcome) -> Destination {
    match (request.relay, request.client_address) {
        (Some(relay), _) => Destination::Relay(relay),
        // A NAK tells the client that its address is wrong: it would not hear it there.
        (None, _) if matches!(outcome, Outcome::Refused(_)) => Destination::Broadcast,
        (None, Some(client)) => Destination::Client(client),
        (None, None) => Destination::Broadcast,
    }
}

/// As what this server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Voice {
    /// As the link's only one.
    Server,
    /// As a proxy beside another one.
    Proxy,
}

/// A reply, with its options in the order in which they are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    header: Message,
    options: Vec<DhcpOption>,
    bytes_max: usize,
}

impl Reply {
    /// OFFER or ACK; without an address it is the answer to an INFORM (RFC 2131 4.3.5: no `yiaddr`, no lease times).
    fn new(kind: MessageType, request: &Request, table: &Table, address: Option<Ipv4Addr>, boot: &Boot) -> Reply {
        let mut reply = Reply::start(kind, request, table.network());
        if kind == MessageType::Ack {
            reply.header.set_ciaddr(request.client_address.unwrap_or(Ipv4Addr::UNSPECIFIED));
        }
        if let Some(address) = address {
            reply.header.set_yiaddr(address);
            reply.options.extend(lease_options());
        }
        reply.options.extend(network_options(table, request.mac));
        reply.boot(request, table.network().server, boot, Voice::Server);
        reply.copy_back(request);
        reply
    }

    /// OFFER or ACK of a proxy: what to boot, and no address. Option 97 has to be in all packets of PXE (RFC 4578 2.3).
    pub(super) fn of_a_proxy(kind: MessageType, request: &Request, network: &Network, boot: &Boot) -> Reply {
        let mut reply = Reply::start(kind, request, network);
        if kind == MessageType::Ack {
            reply.header.set_ciaddr(request.client_address.unwrap_or(Ipv4Addr::UNSPECIFIED));
        }
        reply.boot(request, network.server, boot, Voice::Proxy);
        if let Some(identifier) = &request.machine_identifier {
            reply.options.push(raw(97, identifier.clone()));
        }
        reply.copy_back(request);
        reply
    }

    fn refusal(request: &Request, network: &Network, refusal: &Refusal) -> Reply {
        let mut reply = Reply::start(MessageType::Nak, request, network);
        // RFC 2131 4.3.2: the relay shall broadcast a NAK, whatever the client's flag says.
        if request.relay.is_some() {
            reply.header.set_flags(request.flags.set_broadcast());
        }
        reply.options.push(DhcpOption::Message(refusal.to_string()));
        reply.copy_back(request);
        reply
    }

    fn start(kind: MessageType, request: &Request, network: &Network) -> Reply {
        let mut header = Message::new_with_id(
            request.transaction,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::UNSPECIFIED,
            request.relay.unwrap_or(Ipv4Addr::UNSPECIFIED),
            &request.mac.0,
        );
        header.set_opcode(Opcode::BootReply).set_flags(request.flags);
        let options = vec![DhcpOption::MessageType(kind), DhcpOption::ServerIdentifier(network.server)];
        let datagram = request.message_size_max.unwrap_or(DATAGRAM_BYTES_DEFAULT);
        let datagram = datagram.clamp(DATAGRAM_BYTES_DEFAULT, DATAGRAM_BYTES_MAX);
        Reply { header, options, bytes_max: usize::from(datagram - HEADER_BYTES) }
    }

    fn boot(&mut self, request: &Request, server: Ipv4Addr, boot: &Boot, voice: Voice) {
        if let Some(rule) = &boot.rule {
            self.obey(request, server, rule, voice);
        }
        if let Some(extra) = &boot.extra {
            self.add(extra);
        }
    }

    fn obey(&mut self, request: &Request, server: Ipv4Addr, rule: &BootRule, voice: Voice) {
        let next_server = rule.next_server.unwrap_or(server);
        self.header.set_siaddr(next_server);
        self.set_file(rule.bootfile.as_bytes());
        self.options.extend(vendor_options(request, rule, voice));
        self.options.push(DhcpOption::TFTPServerName(next_server.to_string().into_bytes()));
        self.options.push(DhcpOption::BootfileName(rule.bootfile.as_bytes().to_vec()));
        // EDK2 writes a NUL over the byte behind option 67 (PxeBcParseDhcp4Packet): let that byte be padding.
        self.options.push(DhcpOption::Pad);
        if (request.client, voice) == (ClientKind::Ipxe, Voice::Server) {
            // iPXE's encapsulated option 176 (no-pxedhcp) = 1: do not wait for a ProxyDHCP server. Measured: the REQUEST follows the
            // OFFER in 4 ms instead of 2.2 s.
            self.options.push(raw(175, vec![176, 1, 1]));
        }
        self.set(&rule.options);
    }

    /// The job's own options go before ours. A boot file or a server of its own stands in the header, too, where old firmware looks.
    fn add(&mut self, extra: &Extra) {
        if let Some(server) = extra.next_server {
            self.header.set_siaddr(server);
            self.set(&[(66, server.to_string().into_bytes())]);
        }
        if let Some(file) = extra.bootfile() {
            self.set_file(file.as_bytes());
        }
        self.set(&extra.options);
    }

    /// What is too long for the field stands in option 67 alone.
    fn set_file(&mut self, name: &[u8]) {
        self.header.set_fname(if name.len() < FILE_BYTES { name } else { b"" });
    }

    fn set(&mut self, options: &[(u8, Vec<u8>)]) {
        for (code, value) in options.iter().filter(|(code, _)| is_settable(*code)) {
            let place = self.options.iter().position(|option| u8::from(OptionCode::from(option)) == *code);
            match place {
                Some(place) => self.options[place] = raw(*code, value.clone()),
                None => self.options.push(raw(*code, value.clone())),
            }
        }
    }

    /// RFC 6842: option 61 comes back unchanged. RFC 3046 2.2: option 82 comes back unchanged, as the last one.
    fn copy_back(&mut self, request: &Request) {
        if let Some(identifier) = &request.client_identifier {
            self.options.push(DhcpOption::ClientIdentifier(identifier.clone()));
        }
        if let Some(information) = &request.relay_information {
            self.options.push(raw(82, information.clone()));
        }
    }

    /// The datagram. What does not fit into the client's maximum message size is left out, the last of the dispensable first.
    pub fn encode(&self) -> Vec<u8> {
        let mut options = self.options.clone();
        loop {
            let mut datagram = Vec::with_capacity(usize::from(DATAGRAM_BYTES_MAX));
            self.encode_with(&options, &mut datagram).expect("a vector takes every byte");
            let dispensable = options.iter().rposition(|option| !is_essential(option));
            match dispensable {
                Some(last) if datagram.len() > self.bytes_max => options.remove(last),
                _ => {
                    datagram.resize(datagram.len().max(MESSAGE_BYTES_MIN), 0);
                    return datagram;
                }
            };
        }
    }

    fn encode_with(&self, options: &[DhcpOption], datagram: &mut Vec<u8>) -> dhcproto::error::EncodeResult<()> {
        let mut encoder = Encoder::new(datagram);
        // The header's own option map stays empty: it would sort by number, and some ROMs look for option 53 first.
        self.header.encode(&mut encoder)?;
        for option in options {
            option.encode(&mut encoder)?;
        }
        DhcpOption::End.encode(&mut encoder)
    }

    /// OFFER, ACK or NAK.
    pub fn kind(&self) -> MessageType {
        match self.options.first() {
            Some(DhcpOption::MessageType(kind)) => *kind,
            _ => unreachable!("every reply starts with its message type"),
        }
    }

    /// The address it gives (`yiaddr`).
    pub fn address(&self) -> Ipv4Addr {
        self.header.yiaddr()
    }
}

/// RFC 2131 4.4.5: renew at a half, rebind at seven eighths.
fn lease_options() -> [DhcpOption; 3] {
    let lease_s = u32::try_from(LEASE.as_secs()).expect("an hour fits");
    [DhcpOption::AddressLeaseTime(lease_s), DhcpOption::Renewal(lease_s / 2), DhcpOption::Rebinding(lease_s / 8 * 7)]
}

/// The mask goes before the router (RFC 2132 3.3).
fn network_options(table: &Table, mac: Mac) -> Vec<DhcpOption> {
    let network = table.network();
    let mut options = vec![DhcpOption::SubnetMask(network.mask())];
    if let Some(router) = network.router {
        options.push(DhcpOption::Router(vec![router]));
    }
    if !network.dns.is_empty() {
        options.push(DhcpOption::DomainNameServer(network.dns.clone()));
    }
    if let Some(hostname) = table.hostname(mac) {
        options.push(DhcpOption::Hostname(hostname.to_owned()));
    }
    options.push(DhcpOption::BroadcastAddr(network.broadcast()));
    options
}

/// Option 60, and 43 where 60 would mislead without it.
///
/// UEFI HTTP boot drops an offer that does not say `HTTPClient`. `PXEClient` is said only where a rule wants it: EDK2 takes an offer
/// with it for a BINL server's and asks port 4011 for the file it was just told (PxeBcParseDhcp4Packet, PxeBcRetryBinlOffer; FOG
/// documents the same of Windows DHCP servers), unless PXE's discovery control (43.6) comes along; 8 there means "take the boot file
/// from this offer". Without option 60, iPXE, EDK2 and U-Boot all take the file (captures of dnsmasq: fixtures/packets/dhcp).
///
/// A proxy has to say who it speaks to: by that its offer is told from one of a server that forgot the address.
fn vendor_options(request: &Request, rule: &BootRule, voice: Voice) -> Vec<DhcpOption> {
    let usual = match (request.client, voice) {
        (ClientKind::HttpBoot, _) => Some("HTTPClient"),
        (_, Voice::Proxy) => Some("PXEClient"),
        (_, Voice::Server) => None,
    };
    let Some(class) = rule.vendor_class_reply.as_deref().or(usual) else {
        return Vec::new();
    };
    let mut options = vec![DhcpOption::ClassIdentifier(class.as_bytes().to_vec())];
    if class.starts_with("PXEClient") {
        options.push(DhcpOption::VendorExtensions(vec![6, 1, 8, 255]));
    }
    options
}

fn raw(code: u8, value: Vec<u8>) -> DhcpOption {
    DhcpOption::Unknown(UnknownOption::new(OptionCode::from(code), value))
}

/// Without these the client cannot go on, or the relay cannot pass the reply back.
fn is_essential(option: &DhcpOption) -> bool {
    matches!(u8::from(OptionCode::from(option)), 0 | 1 | 51 | 53 | 54 | 60 | 67 | 82)
}

#[cfg(test)]
pub(super) mod tests;
