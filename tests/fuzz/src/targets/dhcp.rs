//! DHCP: datagrams of any number of machines, in any order and at any time, against one table of addresses.
//!
//! ```text
//!  script: (seconds passed, datagram)…
//!  model:  who was told which address; no two machines have one, and no reply is larger than its client takes
//! ```

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dhcproto::v4::{Message, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder};
use gateway::dhcp::Extra;
use gateway::dhcp::boot::{Architecture, BootMatch, BootOffer, BootRule, Class};
use gateway::dhcp::reply::{Outcome, Reply, reply};
use gateway::dhcp::request::{Mac, Request};
use gateway::dhcp::table::{Network, Reservation, Table};

use crate::corpus;
use crate::script::{Script, piece};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// As in the captures of fixtures/packets/dhcp.
const DUT: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);
const U_BOOT: Mac = Mac([0x52; 6]);
/// An Ethernet frame's IP datagram, and its headers.
const DATAGRAM_BYTES_MAX: u16 = 1500;
const HEADER_BYTES: u16 = 28;

pub(super) fn run(bytes: &[u8]) {
    let (mut script, mut table, mut now) = (Script(bytes), table(), Instant::now());
    while !script.is_over() {
        now += Duration::from_secs(u64::from(script.number()));
        match Request::parse(script.piece()) {
            Ok(request) => answer(&request, &mut table, now),
            Err(malformed) => assert!(malformed.to_string().len() < 200),
        }
        check_leases(&table, now);
    }
}

fn table() -> Table {
    let network = Network { server: SERVER, prefix_length: 24, router: Some(SERVER), dns: vec![SERVER] };
    let range = (Ipv4Addr::new(10, 77, 0, 100), Ipv4Addr::new(10, 77, 0, 102));
    let mut table = Table::new(network, Some(range)).expect("a range of this network");
    for (mac, host, name) in [(DUT, 202, Some("dut-1")), (U_BOOT, 150, None)] {
        let address = Ipv4Addr::new(10, 77, 0, host);
        let reservation = Reservation { mac, address, hostname: name.map(str::to_owned) };
        table.reserve(reservation).expect("an address of this network, once");
        table.set_boot(mac, offer());
    }
    table
}

fn offer() -> BootOffer {
    let rule = |matches, bootfile: &str| BootRule { matches, bootfile: bootfile.to_owned(), ..BootRule::default() };
    let architecture =
        |number: u16| BootMatch { architecture: Some(vec![Architecture::from(number)]), ..BootMatch::default() };
    let script = format!("http://10.77.0.1/_/n/{}/boot.ipxe", "0123456789abcdef".repeat(9));
    let ipxe = BootMatch { user_class: Some(Class::Ipxe), ..BootMatch::default() };
    BootOffer {
        rules: vec![
            rule(ipxe, &script),
            rule(architecture(7), "snponly.efi"),
            rule(architecture(0x10), "http://10.77.0.1/snponly.efi"),
            BootRule {
                vendor_class_reply: Some("PXEClient".to_owned()),
                ..rule(BootMatch::default(), "undionly.kpxe")
            },
        ],
        extras: vec![Extra { options: vec![(17, vec![b'r'; 255]), (43, vec![6, 1, 8])], ..Extra::default() }],
    }
}

fn answer(request: &Request, table: &mut Table, now: Instant) {
    let decision = reply(request, table, now);
    assert_eq!(decision.event.mac, request.mac);
    let Some((reply, destination)) = decision.reply else { return };
    assert!(destination.address().port() == 67 || destination.address().port() == 68);
    check_reply(&reply, request);
    let told = reply.address();
    if !told.is_unspecified() {
        assert_eq!(table.mac_of(told, now), Some(request.mac), "{told} was told to another machine");
        assert!(table.network().contains(told) && told != SERVER);
    }
    let is_promise = matches!(decision.event.outcome, Outcome::Offered | Outcome::Acknowledged);
    assert_eq!(is_promise, !told.is_unspecified());
}

fn check_reply(reply: &Reply, request: &Request) {
    let bytes = reply.encode();
    let asked = request.message_size_max.unwrap_or(576).clamp(576, DATAGRAM_BYTES_MAX);
    // A relay's own option goes back to it whole, however long.
    let relayed = request.relay_information.as_ref().map_or(0, |information| 2 * information.len());
    let bytes_max = usize::from(asked - HEADER_BYTES) + relayed;
    assert!((300..=bytes_max).contains(&bytes.len()), "{} bytes for {bytes_max}", bytes.len());
    let message = Message::decode(&mut Decoder::new(&bytes)).expect("what we send can be read");
    assert_eq!((message.opcode(), message.xid()), (Opcode::BootReply, request.transaction));
    assert_eq!(message.chaddr(), request.mac.0);
    assert_eq!(message.opts().msg_type(), Some(reply.kind()));
    assert!(message.opts().get(OptionCode::ServerIdentifier).is_some());
}

fn check_leases(table: &Table, now: Instant) {
    let leases = table.leases(now);
    let addresses: HashSet<_> = leases.iter().map(|lease| lease.address).collect();
    let machines: HashSet<_> = leases.iter().map(|lease| lease.mac).collect();
    assert_eq!((addresses.len(), machines.len()), (leases.len(), leases.len()), "{leases:?}");
    // Two reservations, and a range of three.
    assert!(leases.len() <= 5, "{leases:?}");
}

/// What firmware sent (fixtures/packets/dhcp), alone and one after the other.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let captures = [
        include_str!("../../../../fixtures/packets/dhcp/edk2-x64-http-discover.hex"),
        include_str!("../../../../fixtures/packets/dhcp/edk2-x64-http-request.hex"),
        include_str!("../../../../fixtures/packets/dhcp/edk2-x64-pxe-discover.hex"),
        include_str!("../../../../fixtures/packets/dhcp/ipxe-undionly-discover.hex"),
        include_str!("../../../../fixtures/packets/dhcp/ipxe-undionly-request.hex"),
        include_str!("../../../../fixtures/packets/dhcp/u-boot-arm64-discover.hex"),
        include_str!("../../../../fixtures/packets/dhcp/udhcpc-discover.hex"),
        include_str!("../../../../fixtures/packets/dhcp/udhcpc-request.hex"),
    ];
    let packets = captures.map(|text| {
        let digits: String = text.lines().filter(|line| !line.starts_with('#')).collect();
        let digits: String = digits.chars().filter(char::is_ascii_hexdigit).collect();
        [vec![0, 1], piece(&crate::unhex(&digits))].concat()
    });
    let strangers = packets.iter().map(|packet| {
        // Another hardware address, which has no reservation.
        let mut packet = packet.clone();
        packet[4 + 28..4 + 34].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        packet
    });
    let mut seeds: Vec<Vec<u8>> = strangers.collect();
    seeds.push(packets.concat());
    seeds.push(seeds[6..8].concat());
    seeds.extend(packets);
    seeds.extend(corpus(include_str!("../../corpus/dhcp.hex")));
    seeds
}
