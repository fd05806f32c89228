//! What a proxy says to captured firmware (fixtures/packets/dhcp), and to whom it says nothing.

use super::*;
use crate::dhcp::boot::{BootOffer, BootRule};
use crate::dhcp::reply::tests::{
    DISCOVER, DUT, INFORM, RELEASE, REQUEST, STRANGER, describe, request, scene, unhex, with_address,
};

macro_rules! packet {
    ($name:literal) => {
        unhex(include_str!(concat!("../../../../fixtures/packets/dhcp/", $name, ".hex")))
    };
}

const PXE: (u8, &[u8]) = (60, b"PXEClient:Arch:00000:UNDI:002001");
const BIOS: (u8, &[u8]) = (93, &[0, 0]);

fn answer(datagram: &[u8], port: Port) -> String {
    let scene = scene();
    match reply(&Request::parse(datagram).unwrap(), &scene.table, port, scene.now).reply {
        Some((reply, destination)) => describe(&reply.encode(), destination),
        None => "nothing".to_owned(),
    }
}

fn outcome(datagram: &[u8], port: Port) -> String {
    let scene = scene();
    reply(&Request::parse(datagram).unwrap(), &scene.table, port, scene.now).event.outcome.to_string()
}

#[test]
fn the_ipxe_rom_is_offered_a_script_and_no_address() {
    let expected = r#"op 2 htype 1 hlen 6 hops 0
xid e9c3440f secs 0000 flags 0000
ciaddr 0.0.0.0 yiaddr 0.0.0.0
siaddr 10.77.0.1 giaddr 0.0.0.0
chaddr 52540077000100000000000000000000 sname "" file "http://10.77.0.1/_/boot/boot.ipxe"
53 02
54 10.77.0.1
60 "PXEClient"
43 060108ff
66 "10.77.0.1"
67 "http://10.77.0.1/_/boot/boot.ipxe"
pad
"#;
    let answered = answer(&packet!("ipxe-rom-bios-discover"), Port::Dhcp);
    let (head, identifiers) = answered.split_once("97 00").expect("its machine identifier comes back");
    assert_eq!(head.split_once('\n').unwrap(), ("342 bytes to 255.255.255.255:68", expected));
    assert!(identifiers.ends_with("61 01525400770001\n"), "{identifiers}");
}

#[test]
fn edk2_is_offered_a_program_by_pxe_and_a_url_by_http() {
    let by_pxe = answer(&packet!("edk2-x64-pxe-discover"), Port::Dhcp);
    let by_http = answer(&packet!("edk2-x64-http-discover"), Port::Dhcp);
    for (answered, class, file) in [
        (by_pxe, "60 \"PXEClient\"\n43 060108ff", "snponly.efi"),
        (by_http, "60 \"HTTPClient\"", "http://10.77.0.1/snponly.efi"),
    ] {
        let said = format!("53 02\n54 10.77.0.1\n{class}\n66 \"10.77.0.1\"\n67 \"{file}\"\npad\n97 00");
        assert!(answered.contains("yiaddr 0.0.0.0") && answered.contains(&said), "{answered}");
    }
}

#[test]
fn who_asks_at_the_port_for_pxe_is_told_once_more() {
    let asked = with_address(request(REQUEST, DUT, &[PXE, BIOS]), 12, [10, 77, 0, 202]);
    let answered = answer(&asked, Port::Pxe);
    assert!(answered.contains("ciaddr 10.77.0.202 yiaddr 0.0.0.0"), "{answered}");
    assert!(answered.contains("53 05\n54 10.77.0.1\n60 \"PXEClient\"\n43 060108ff\n"), "{answered}");
    assert!(answered.contains("67 \"undionly.kpxe\""), "{answered}");
    let informed = with_address(request(INFORM, DUT, &[PXE, BIOS]), 12, [10, 77, 0, 202]);
    assert_eq!(outcome(&informed, Port::Pxe), "acknowledged");
}

#[test]
fn what_is_the_other_server_s_is_not_answered_and_the_log_says_why() {
    let theirs = "not answered: addresses are the other DHCP server's";
    let no_client = "not answered: it does not boot by PXE or UEFI HTTP, and the rest is the other DHCP server's";
    let nothing = "not answered: there is nothing for it to boot now";
    let asked: &[(u8, &[u8])] = &[PXE, BIOS, (50, &[10, 77, 0, 202])];
    let cases = [
        (packet!("udhcpc-discover"), no_client),
        (packet!("u-boot-arm64-discover"), no_client),
        (request(REQUEST, DUT, asked), theirs),
        (request(RELEASE, DUT, &[PXE, BIOS]), theirs),
        (request(INFORM, DUT, &[PXE, BIOS]), theirs),
        (request(DISCOVER, STRANGER, &[PXE, BIOS]), nothing),
        (request(DISCOVER, DUT, &[PXE, (93, &[0, 10])]), nothing),
    ];
    for (datagram, expected) in cases {
        assert_eq!(
            (outcome(&datagram, Port::Dhcp).as_str(), answer(&datagram, Port::Dhcp).as_str()),
            (expected, "nothing")
        );
    }
    assert_eq!(outcome(&request(DISCOVER, DUT, &[PXE, BIOS]), Port::Pxe), theirs);
}

#[test]
fn an_address_that_is_not_the_reserved_one_is_heard_of_whoever_takes_it() {
    let expected = "not answered: it takes the address 10.77.0.57 from the other DHCP server, and 10.77.0.202 is reserved here; \
                    make the other one give it 10.77.0.202";
    for options in [&[PXE, BIOS, (50, &[10, 77, 0, 57][..])][..], &[(50, &[10, 77, 0, 57])]] {
        assert_eq!(outcome(&request(REQUEST, DUT, options), Port::Dhcp), expected);
    }
    assert_ne!(outcome(&request(DISCOVER, DUT, &[PXE, BIOS, (50, &[10, 77, 0, 57])]), Port::Dhcp), expected, "a wish");
    assert_ne!(
        outcome(&request(REQUEST, STRANGER, &[PXE, (50, &[10, 77, 0, 57])]), Port::Dhcp),
        expected,
        "nobody of ours"
    );
}

#[test]
fn a_rule_with_vendor_options_of_its_own_keeps_them() {
    let mut scene = scene();
    let options = vec![(43, b"\x06\x01\x03".to_vec())];
    let rule = BootRule { bootfile: "bootcode.bin".to_owned(), options, ..BootRule::default() };
    scene.table.set_boot(DUT, BootOffer { rules: vec![rule], ..BootOffer::default() });
    let asked = Request::parse(&request(DISCOVER, DUT, &[PXE, BIOS])).unwrap();
    let (message, destination) = reply(&asked, &scene.table, Port::Dhcp, scene.now).reply.unwrap();
    let said = describe(&message.encode(), destination);
    assert!(said.contains("60 \"PXEClient\"\n43 060103\n"), "{said}");
}
