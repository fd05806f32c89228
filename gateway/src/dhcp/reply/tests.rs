//! Replays of captured firmware (fixtures/packets/dhcp), and the rules one by one. Addresses as in the captures: the server is
//! 10.77.0.1, the machine 52:54:00:77:00:01 has 10.77.0.202 reserved, everybody else gets 10.77.0.100 and up.

use std::fmt::Write as _;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::dhcp::boot::{BootMatch, BootOffer, Class};
use crate::dhcp::request::Malformed;
use crate::dhcp::table::{OFFER, PARKED, Reservation};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub(in crate::dhcp) const DUT: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);
pub(in crate::dhcp) const DUT_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 202);
const U_BOOT: Mac = Mac([0x52; 6]);
pub(in crate::dhcp) const STRANGER: Mac = Mac([2, 0, 0, 0, 0, 9]);

macro_rules! packet {
    ($name:literal) => {
        unhex(include_str!(concat!("../../../../fixtures/packets/dhcp/", $name, ".hex")))
    };
}

pub(in crate::dhcp) fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

pub(in crate::dhcp) struct Scene {
    pub table: Table,
    pub now: Instant,
}

pub(in crate::dhcp) fn scene() -> Scene {
    let network = Network { server: SERVER, prefix_length: 24, router: Some(SERVER), dns: vec![SERVER] };
    let mut table = Table::new(network, Some(([10, 77, 0, 100].into(), [10, 77, 0, 102].into()))).unwrap();
    let reservations = [(DUT, DUT_ADDRESS, Some("dut-1")), (U_BOOT, Ipv4Addr::new(10, 77, 0, 150), None)];
    for (mac, address, hostname) in reservations {
        table.reserve(Reservation { mac, address, hostname: hostname.map(str::to_owned) }).unwrap();
        table.set_boot(mac, boot_offer());
    }
    Scene { table, now: Instant::now() }
}

fn boot_offer() -> BootOffer {
    let rule = |matches, bootfile: &str| BootRule { matches, bootfile: bootfile.to_owned(), ..BootRule::default() };
    let architecture = |numbers: &[u16]| BootMatch {
        architecture: Some(numbers.iter().map(|number| Architecture::from(*number)).collect()),
        ..BootMatch::default()
    };
    let ipxe = BootMatch { user_class: Some(Class::Ipxe), ..BootMatch::default() };
    BootOffer {
        rules: vec![
            rule(ipxe, "http://10.77.0.1/_/boot/boot.ipxe"),
            rule(architecture(&[7, 9]), "snponly.efi"),
            rule(architecture(&[0x10]), "http://10.77.0.1/snponly.efi"),
            rule(architecture(&[0x0b]), "grubnetaa64.efi"),
            rule(architecture(&[0x16]), "boot.scr.uimg"),
            rule(architecture(&[0]), "undionly.kpxe"),
        ],
        extras: Vec::new(),
    }
}

impl Scene {
    fn decide(&mut self, datagram: &[u8]) -> Decision {
        reply(&Request::parse(datagram).expect("a request"), &mut self.table, self.now)
    }

    /// The reply as text, field by field.
    fn answer(&mut self, datagram: &[u8]) -> String {
        match self.decide(datagram).reply {
            Some((reply, destination)) => describe(&reply.encode(), destination),
            None => "nothing".to_owned(),
        }
    }

    fn outcome(&mut self, datagram: &[u8]) -> (Outcome, Option<Ipv4Addr>) {
        let event = self.decide(datagram).event;
        (event.outcome, event.address)
    }

    fn later(&mut self, time: Duration) {
        self.now += time;
    }
}

/// Reads a reply without the codec under test.
pub(in crate::dhcp) fn describe(bytes: &[u8], destination: Destination) -> String {
    let mut text = String::new();
    let address = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
    writeln!(text, "{} bytes to {}", bytes.len(), destination.address()).unwrap();
    writeln!(text, "op {} htype {} hlen {} hops {}", bytes[0], bytes[1], bytes[2], bytes[3]).unwrap();
    writeln!(text, "xid {} secs {} flags {}", hex(&bytes[4..8]), hex(&bytes[8..10]), hex(&bytes[10..12])).unwrap();
    writeln!(text, "ciaddr {} yiaddr {}", address(12), address(16)).unwrap();
    writeln!(text, "siaddr {} giaddr {}", address(20), address(24)).unwrap();
    writeln!(
        text,
        "chaddr {} sname {:?} file {:?}",
        hex(&bytes[28..44]),
        string(&bytes[44..108]),
        string(&bytes[108..236])
    )
    .unwrap();
    assert_eq!(bytes[236..240], [99, 130, 83, 99], "the magic cookie");
    let mut rest = &bytes[240..];
    loop {
        match rest {
            [0, tail @ ..] => {
                writeln!(text, "pad").unwrap();
                rest = tail;
            }
            [255, tail @ ..] => {
                assert!(tail.iter().all(|byte| *byte == 0), "only padding behind the end");
                return text;
            }
            [code, length, tail @ ..] => {
                let (value, tail) = tail.split_at(usize::from(*length));
                writeln!(text, "{code} {}", option_text(*code, value)).unwrap();
                rest = tail;
            }
            _ => panic!("the options do not end: {text}"),
        }
    }
}

fn option_text(code: u8, value: &[u8]) -> String {
    match (code, value) {
        (1 | 3 | 6 | 28 | 54, [a, b, c, d]) => format!("{a}.{b}.{c}.{d}"),
        (51 | 58 | 59, [a, b, c, d]) => format!("{} s", u32::from_be_bytes([*a, *b, *c, *d])),
        (12 | 56 | 60 | 66 | 67, text) => format!("{:?}", string(text)),
        (_, bytes) => hex(bytes),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

/// A request of our own: `kind` is the message type, further options follow as given.
pub(in crate::dhcp) fn request(kind: u8, mac: Mac, options: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; 240];
    bytes[0..4].copy_from_slice(&[1, 1, 6, 0]);
    bytes[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
    bytes[28..34].copy_from_slice(&mac.0);
    bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
    for (code, value) in [(53, [kind].as_slice())].iter().chain(options) {
        bytes.push(*code);
        bytes.push(u8::try_from(value.len()).unwrap());
        bytes.extend_from_slice(value);
    }
    bytes.push(255);
    bytes
}

/// Writes `address` into a header field: 12 is `ciaddr`, 24 is `giaddr`.
pub(in crate::dhcp) fn with_address(mut datagram: Vec<u8>, at: usize, address: [u8; 4]) -> Vec<u8> {
    datagram[at..at + 4].copy_from_slice(&address);
    datagram
}

pub(in crate::dhcp) const DISCOVER: u8 = 1;
pub(in crate::dhcp) const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
pub(in crate::dhcp) const RELEASE: u8 = 7;
pub(in crate::dhcp) const INFORM: u8 = 8;
const US: &[u8] = &[10, 77, 0, 1];

#[test]
fn the_ipxe_rom_is_offered_the_script_and_told_not_to_wait_for_a_proxy() {
    let expected = r#"360 bytes to 255.255.255.255:68
op 2 htype 1 hlen 6 hops 0
xid e9c3440f secs 0000 flags 0000
ciaddr 0.0.0.0 yiaddr 10.77.0.202
siaddr 10.77.0.1 giaddr 0.0.0.0
chaddr 52540077000100000000000000000000 sname "" file "http://10.77.0.1/_/boot/boot.ipxe"
53 02
54 10.77.0.1
51 3600 s
58 1800 s
59 3150 s
1 255.255.255.0
3 10.77.0.1
6 10.77.0.1
12 "dut-1"
28 10.77.0.255
66 "10.77.0.1"
67 "http://10.77.0.1/_/boot/boot.ipxe"
pad
175 b00101
61 01525400770001
"#;
    assert_eq!(scene().answer(&packet!("ipxe-rom-bios-discover")), expected);
}

#[test]
fn the_ipxe_rom_s_request_is_acknowledged_with_the_same_script() {
    let expected = r#"360 bytes to 255.255.255.255:68
op 2 htype 1 hlen 6 hops 0
xid e9c3440f secs 0000 flags 0000
ciaddr 0.0.0.0 yiaddr 10.77.0.202
siaddr 10.77.0.1 giaddr 0.0.0.0
chaddr 52540077000100000000000000000000 sname "" file "http://10.77.0.1/_/boot/boot.ipxe"
53 05
54 10.77.0.1
51 3600 s
58 1800 s
59 3150 s
1 255.255.255.0
3 10.77.0.1
6 10.77.0.1
12 "dut-1"
28 10.77.0.255
66 "10.77.0.1"
67 "http://10.77.0.1/_/boot/boot.ipxe"
pad
175 b00101
61 01525400770001
"#;
    assert_eq!(scene().answer(&packet!("ipxe-rom-bios-request")), expected);
}

#[test]
fn chainloaded_ipxe_keeps_its_broadcast_flag() {
    let expected = r#"360 bytes to 255.255.255.255:68
op 2 htype 1 hlen 6 hops 0
xid 4281cf07 secs 0000 flags 8000
ciaddr 0.0.0.0 yiaddr 10.77.0.202
siaddr 10.77.0.1 giaddr 0.0.0.0
chaddr 52540077000100000000000000000000 sname "" file "http://10.77.0.1/_/boot/boot.ipxe"
53 02
54 10.77.0.1
51 3600 s
58 1800 s
59 3150 s
1 255.255.255.0
3 10.77.0.1
6 10.77.0.1
12 "dut-1"
28 10.77.0.255
66 "10.77.0.1"
67 "http://10.77.0.1/_/boot/boot.ipxe"
pad
175 b00101
61 01525400770001
"#;
    assert_eq!(scene().answer(&packet!("ipxe-undionly-discover")), expected);
}

#[test]
fn edk2_s_pxe_client_gets_the_efi_binary_and_no_option_60_that_would_send_it_to_port_4011() {
    let expected = r#"324 bytes to 255.255.255.255:68
op 2 htype 1 hlen 6 hops 0
xid 00ed1e09 secs 0000 flags 8000
ciaddr 0.0.0.0 yiaddr 10.77.0.202
siaddr 10.77.0.1 giaddr 0.0.0.0
chaddr 52540077000100000000000000000000 sname "" file "snponly.efi"
53 05
54 10.77.0.1
51 3600 s
58 1800 s
59 3150 s
1 255.255.255.0
3 10.77.0.1
6 10.77.0.1
12 "dut-1"
28 10.77.0.255
66 "10.77.0.1"
67 "snponly.efi"
pad
"#;
    assert_eq!(scene().answer(&packet!("edk2-x64-pxe-request")), expected);
}

#[test]
fn edk2_s_http_boot_gets_a_url_and_its_class_back() {
    let expected = r#"353 bytes to 255.255.255.255:68
op 2 htype 1 hlen 6 hops 0
xid 40d0255d secs 0000 flags 8000
ciaddr 0.0.0.0 yiaddr 10.77.0.202
siaddr 10.77.0.1 giaddr 0.0.0.0
chaddr 52540077000100000000000000000000 sname "" file "http://10.77.0.1/snponly.efi"
53 02
54 10.77.0.1
51 3600 s
58 1800 s
59 3150 s
1 255.255.255.0
3 10.77.0.1
6 10.77.0.1
12 "dut-1"
28 10.77.0.255
60 "HTTPClient"
66 "10.77.0.1"
67 "http://10.77.0.1/snponly.efi"
pad
"#;
    assert_eq!(scene().answer(&packet!("edk2-x64-http-discover")), expected);
}

#[test]
fn u_boot_gets_a_script_name_in_file_and_option() {
    let expected = r#"319 bytes to 255.255.255.255:68
op 2 htype 1 hlen 6 hops 0
xid 52525b6c secs 0000 flags 0000
ciaddr 0.0.0.0 yiaddr 10.77.0.150
siaddr 10.77.0.1 giaddr 0.0.0.0
chaddr 52525252525200000000000000000000 sname "" file "boot.scr.uimg"
53 02
54 10.77.0.1
51 3600 s
58 1800 s
59 3150 s
1 255.255.255.0
3 10.77.0.1
6 10.77.0.1
28 10.77.0.255
66 "10.77.0.1"
67 "boot.scr.uimg"
pad
"#;
    assert_eq!(scene().answer(&packet!("u-boot-arm64-discover")), expected);
}

#[test]
fn a_booted_linux_gets_an_address_and_no_boot_options() {
    let expected = r#"308 bytes to 255.255.255.255:68
op 2 htype 1 hlen 6 hops 0
xid 30796909 secs 0000 flags 0000
ciaddr 0.0.0.0 yiaddr 10.77.0.202
siaddr 0.0.0.0 giaddr 0.0.0.0
chaddr 52540077000100000000000000000000 sname "" file ""
53 05
54 10.77.0.1
51 3600 s
58 1800 s
59 3150 s
1 255.255.255.0
3 10.77.0.1
6 10.77.0.1
12 "dut-1"
28 10.77.0.255
61 01525400770001
"#;
    assert_eq!(scene().answer(&packet!("udhcpc-request")), expected);
}

#[test]
fn every_captured_firmware_is_recognised_and_served() {
    let mut scene = scene();
    let mut table = String::new();
    let packets = [
        ("ipxe-rom-bios", packet!("ipxe-rom-bios-discover"), packet!("ipxe-rom-bios-request")),
        ("ipxe-undionly", packet!("ipxe-undionly-discover"), packet!("ipxe-undionly-request")),
        ("ipxe-efi-x64", packet!("ipxe-efi-x64-discover"), packet!("ipxe-efi-x64-request")),
        ("edk2-x64-pxe", packet!("edk2-x64-pxe-discover"), packet!("edk2-x64-pxe-request")),
        ("edk2-x64-http", packet!("edk2-x64-http-discover"), packet!("edk2-x64-http-request")),
        ("edk2-arm64-pxe", packet!("edk2-arm64-pxe-discover"), packet!("edk2-arm64-pxe-request")),
        ("u-boot-arm64", packet!("u-boot-arm64-discover"), packet!("u-boot-arm64-request")),
        ("u-boot-arm64-efi", packet!("u-boot-arm64-efi-discover"), packet!("u-boot-arm64-efi-request")),
        ("udhcpc", packet!("udhcpc-discover"), packet!("udhcpc-request")),
    ];
    for (name, discover, request) in packets {
        let offered = scene.decide(&discover).event;
        let event = scene.decide(&request).event;
        assert_eq!((offered.outcome, offered.address), (Outcome::Offered, event.address), "{name}");
        assert_eq!(event.outcome, Outcome::Acknowledged, "{name}");
        let architecture = event.architecture.map_or("-".to_owned(), |architecture| architecture.to_string());
        let uuid = event.uuid.map_or("-".to_owned(), |uuid| uuid.to_string());
        let bootfile = event.bootfile.unwrap_or("-".to_owned());
        let class = event.vendor_class.unwrap_or("-".to_owned());
        let user_class = event.user_class.unwrap_or("-".to_owned());
        let address = event.address.unwrap();
        writeln!(table, "{name}: {:?}, {architecture}, {class}, {user_class}, {uuid}", event.client).unwrap();
        writeln!(table, "  {address} {bootfile}").unwrap();
    }
    let expected = r#"ipxe-rom-bios: Ipxe, x86 BIOS, PXEClient:Arch:00000:UNDI:002001, iPXE, 00000000-0000-4000-8000-525400770001
  10.77.0.202 http://10.77.0.1/_/boot/boot.ipxe
ipxe-undionly: Ipxe, x86 BIOS, PXEClient:Arch:00000:UNDI:002001, iPXE, 00000000-0000-4000-8000-525400770001
  10.77.0.202 http://10.77.0.1/_/boot/boot.ipxe
ipxe-efi-x64: Ipxe, x86-64 UEFI, PXEClient:Arch:00007:UNDI:003010, iPXE, 00000000-0000-4000-8000-525400770001
  10.77.0.202 http://10.77.0.1/_/boot/boot.ipxe
edk2-x64-pxe: Pxe, x86-64 UEFI, PXEClient:Arch:00007:UNDI:003000, -, 00000000-0000-4000-8000-525400770001
  10.77.0.202 snponly.efi
edk2-x64-http: HttpBoot, x86-64 UEFI HTTP boot, HTTPClient:Arch:00016:UNDI:003000, -, 00000000-0000-4000-8000-525400770001
  10.77.0.202 http://10.77.0.1/snponly.efi
edk2-arm64-pxe: Pxe, ARM 64-bit UEFI, PXEClient:Arch:00011:UNDI:003000, -, -
  10.77.0.202 grubnetaa64.efi
u-boot-arm64: UBoot, ARM 64-bit U-Boot, U-Boot.armv8, -, -
  10.77.0.150 boot.scr.uimg
u-boot-arm64-efi: Pxe, ARM 64-bit UEFI, PXEClient:Arch:00011:UNDI:003000, -, -
  10.77.0.150 grubnetaa64.efi
udhcpc: OperatingSystem, -, udhcp 1.35.0, -, -
  10.77.0.202 -
"#;
    assert_eq!(table, expected);
}

#[test]
fn two_architectures_or_a_number_that_nobody_knows_are_answered() {
    let mut scene = scene();
    let pxe: &[u8] = b"PXEClient:Arch:09999";
    let two = scene.decide(&request(DISCOVER, DUT, &[(60, pxe), (93, &[0xff, 0xf0, 0, 7])]));
    assert_eq!(two.event.architecture, Some(Architecture::X64Uefi), "the first known one");
    assert_eq!(two.event.bootfile.as_deref(), Some("snponly.efi"));
    let unknown = scene.decide(&request(DISCOVER, DUT, &[(60, pxe), (93, &[0x27, 0x0f])]));
    assert_eq!(unknown.event.architecture, Some(Architecture::Unknown(9999)));
    assert_eq!((unknown.event.outcome, unknown.event.bootfile), (Outcome::Offered, None), "an address, no boot file");
    let cut_short = scene.decide(&request(DISCOVER, DUT, &[(93, &[7]), (60, pxe)]));
    assert_eq!((cut_short.event.outcome, cut_short.event.architecture), (Outcome::Offered, None));
    assert_eq!(cut_short.event.client, ClientKind::Pxe, "the options behind a broken one are read");
}

#[test]
fn a_user_class_with_lengths_as_in_rfc_3004_is_ipxe_too_and_so_are_its_encapsulated_options() {
    let mut scene = scene();
    let script = Some("http://10.77.0.1/_/boot/boot.ipxe");
    let prefixed = scene.decide(&request(DISCOVER, DUT, &[(77, b"\x03abc\x04iPXE")])).event;
    assert_eq!((prefixed.client, prefixed.bootfile.as_deref()), (ClientKind::Ipxe, script));
    assert_eq!(prefixed.user_class.as_deref(), Some("abc, iPXE"));
    let encapsulated = scene.decide(&request(DISCOVER, DUT, &[(175, &[0xb1, 1, 0])])).event;
    assert_eq!((encapsulated.client, encapsulated.bootfile.as_deref()), (ClientKind::Ipxe, script));
    let other = scene.decide(&request(DISCOVER, DUT, &[(77, b"iPXElinux")])).event;
    assert_eq!((other.client, other.bootfile), (ClientKind::OperatingSystem, None));
}

#[test]
fn without_a_boot_offer_a_firmware_gets_an_address_and_nothing_to_boot() {
    let mut scene = scene();
    scene.table.clear_boot(DUT);
    let decision = scene.decide(&packet!("ipxe-rom-bios-discover"));
    assert_eq!((decision.event.outcome, decision.event.bootfile), (Outcome::Offered, None));
    let (reply, destination) = decision.reply.unwrap();
    let text = describe(&reply.encode(), destination);
    assert!(text.contains("siaddr 0.0.0.0") && text.contains("file \"\"") && !text.contains("\n67 "), "{text}");
}

#[test]
fn a_system_that_asks_for_a_boot_file_gets_one_and_one_that_does_not_gets_none() {
    let mut scene = scene();
    let any = BootRule { bootfile: "pxelinux.0".to_owned(), ..BootRule::default() };
    scene.table.set_boot(DUT, BootOffer { rules: vec![any], ..BootOffer::default() });
    let asks = scene.decide(&request(DISCOVER, DUT, &[(55, &[1, 3, 67])])).event;
    assert_eq!((asks.client, asks.bootfile.as_deref()), (ClientKind::OtherNetboot, Some("pxelinux.0")));
    let systemd = scene.decide(&request(DISCOVER, DUT, &[(55, &[1, 3, 6, 12, 15, 26, 33, 121])])).event;
    assert_eq!((systemd.client, systemd.bootfile), (ClientKind::OperatingSystem, None));
}

#[test]
fn a_rule_may_name_another_server_its_own_options_and_the_class_for_firmware_that_insists() {
    let mut scene = scene();
    let rule = BootRule {
        matches: BootMatch { vendor_class_prefix: Some("PXEClient".to_owned()), ..BootMatch::default() },
        bootfile: "bootcode.bin".to_owned(),
        next_server: Some(Ipv4Addr::new(10, 77, 0, 9)),
        options: vec![(6, vec![9, 9, 9, 9]), (53, vec![6]), (255, vec![]), (0, vec![1]), (209, b"grub.cfg".to_vec())],
        vendor_class_reply: Some("PXEClient".to_owned()),
    };
    scene.table.set_boot(DUT, BootOffer { rules: vec![rule], ..BootOffer::default() });
    let expected = r#"352 bytes to 255.255.255.255:68
op 2 htype 1 hlen 6 hops 0
xid deadbeef secs 0000 flags 0000
ciaddr 0.0.0.0 yiaddr 10.77.0.202
siaddr 10.77.0.9 giaddr 0.0.0.0
chaddr 52540077000100000000000000000000 sname "" file "bootcode.bin"
53 02
54 10.77.0.1
51 3600 s
58 1800 s
59 3150 s
1 255.255.255.0
3 10.77.0.1
6 9.9.9.9
12 "dut-1"
28 10.77.0.255
60 "PXEClient"
43 060108ff
66 "10.77.0.9"
67 "bootcode.bin"
pad
209 677275622e636667
"#;
    let answer = scene.answer(&request(DISCOVER, DUT, &[(60, b"PXEClient:Arch:00000:UNDI:002001")]));
    assert_eq!(answer, expected);
}

#[test]
fn a_choice_of_another_server_withdraws_the_offer_in_silence() {
    let mut scene = scene();
    let (outcome, offered) = scene.outcome(&request(DISCOVER, STRANGER, &[]));
    assert_eq!((outcome, offered), (Outcome::Offered, Some([10, 77, 0, 100].into())));
    let chosen = request(REQUEST, STRANGER, &[(54, &[10, 77, 0, 2]), (50, &[10, 77, 0, 177])]);
    assert_eq!(scene.answer(&chosen), "nothing");
    let silence = Outcome::Unanswered(Silence::OtherServer([10, 77, 0, 2].into()));
    assert_eq!(scene.outcome(&chosen).0, silence);
    assert_eq!(scene.table.address_of(STRANGER, scene.now), None);
}

#[test]
fn a_wrong_address_is_refused_in_public() {
    let mut scene = scene();
    let wrong = request(REQUEST, DUT, &[(54, US), (50, &[10, 77, 0, 77])]);
    let expected = r#"300 bytes to 255.255.255.255:68
op 2 htype 1 hlen 6 hops 0
xid deadbeef secs 0000 flags 0000
ciaddr 0.0.0.0 yiaddr 0.0.0.0
siaddr 0.0.0.0 giaddr 0.0.0.0
chaddr 52540077000100000000000000000000 sname "" file ""
53 06
54 10.77.0.1
56 "10.77.0.77 is not yours; 10.77.0.202 is"
"#;
    assert_eq!(scene.answer(&wrong), expected);
}

#[test]
fn a_machine_back_from_another_network_is_sent_to_ask_anew() {
    let mut scene = scene();
    let init_reboot = request(REQUEST, STRANGER, &[(50, &[192, 168, 1, 20])]);
    let elsewhere = Ipv4Addr::new(192, 168, 1, 20);
    assert_eq!(scene.outcome(&init_reboot), (Outcome::Refused(Refusal::NotAvailable(elsewhere)), Some(elsewhere)));
}

#[test]
fn a_rebooted_machine_keeps_its_address_even_if_the_server_was_restarted_too() {
    let init_reboot = request(REQUEST, STRANGER, &[(50, &[10, 77, 0, 101])]);
    assert_eq!(scene().outcome(&init_reboot), (Outcome::Acknowledged, Some([10, 77, 0, 101].into())));
}

#[test]
fn a_renewal_is_answered_to_the_client_s_own_address_with_it_in_the_reply() {
    let renewal = with_address(request(REQUEST, DUT, &[]), 12, DUT_ADDRESS.octets());
    let answer = scene().answer(&renewal);
    assert!(answer.starts_with("300 bytes to 10.77.0.202:68\n"), "{answer}");
    assert!(answer.contains("\nciaddr 10.77.0.202 yiaddr 10.77.0.202\n"), "{answer}");
    let wrong = with_address(request(REQUEST, DUT, &[]), 12, [10, 77, 0, 203]);
    let answer = scene().answer(&wrong);
    assert!(answer.starts_with("300 bytes to 255.255.255.255:68\n") && answer.contains("\n53 06\n"), "{answer}");
}

#[test]
fn a_declined_address_is_left_alone_for_ten_minutes() {
    let mut scene = scene();
    let discover = request(DISCOVER, STRANGER, &[]);
    assert_eq!(scene.outcome(&discover).1, Some([10, 77, 0, 100].into()));
    let decline = request(DECLINE, STRANGER, &[(54, US), (50, &[10, 77, 0, 100])]);
    assert_eq!(scene.answer(&decline), "nothing");
    assert_eq!(scene.outcome(&discover).1, Some([10, 77, 0, 101].into()), "another one");
    let again = request(REQUEST, Mac([2, 0, 0, 0, 0, 8]), &[(50, &[10, 77, 0, 100])]);
    assert!(matches!(scene.outcome(&again).0, Outcome::Refused(_)));
    scene.later(PARKED);
    assert_eq!(scene.outcome(&again).0, Outcome::Acknowledged);
}

#[test]
fn a_released_address_is_free_for_others() {
    let mut scene = scene();
    let take = request(REQUEST, STRANGER, &[(50, &[10, 77, 0, 100])]);
    let other = request(REQUEST, Mac([2, 0, 0, 0, 0, 8]), &[(50, &[10, 77, 0, 100])]);
    assert_eq!(scene.outcome(&take).0, Outcome::Acknowledged);
    assert!(matches!(scene.outcome(&other).0, Outcome::Refused(_)));
    let release = with_address(request(RELEASE, STRANGER, &[(54, US)]), 12, [10, 77, 0, 100]);
    assert_eq!(scene.answer(&release), "nothing");
    assert_eq!(scene.outcome(&other).0, Outcome::Acknowledged);
}

#[test]
fn an_inform_is_told_the_network_and_no_lease() {
    let inform = with_address(request(INFORM, STRANGER, &[]), 12, [10, 77, 0, 60]);
    let expected = r#"300 bytes to 10.77.0.60:68
op 2 htype 1 hlen 6 hops 0
xid deadbeef secs 0000 flags 0000
ciaddr 10.77.0.60 yiaddr 0.0.0.0
siaddr 0.0.0.0 giaddr 0.0.0.0
chaddr 02000000000900000000000000000000 sname "" file ""
53 05
54 10.77.0.1
1 255.255.255.0
3 10.77.0.1
6 10.77.0.1
28 10.77.0.255
"#;
    assert_eq!(scene().answer(&inform), expected);
}

#[test]
fn a_relay_gets_the_reply_on_port_67_with_its_information_last() {
    let information: &[u8] = &[1, 4, b'e', b't', b'h', b'7', 2, 1, 9];
    let discover = request(DISCOVER, DUT, &[(82, information), (61, &[1, 2, 3])]);
    let answer = scene().answer(&with_address(discover, 24, [10, 77, 0, 2]));
    assert!(answer.starts_with("315 bytes to 10.77.0.2:67\n"), "{answer}");
    assert!(answer.contains("\nsiaddr 0.0.0.0 giaddr 10.77.0.2\n"), "{answer}");
    assert!(answer.ends_with("\n61 010203\n82 010465746837020109\n"), "{answer}");
    let wrong = request(REQUEST, DUT, &[(50, &[10, 77, 0, 3]), (82, information)]);
    let refusal = scene().answer(&with_address(wrong, 24, [10, 77, 0, 2]));
    assert!(refusal.starts_with("301 bytes to 10.77.0.2:67\n"), "{refusal}");
    assert!(refusal.contains("secs 0000 flags 8000\n"), "the relay is told to broadcast it: {refusal}");
}

#[test]
fn a_relay_of_another_network_gets_no_address_of_this_one_except_for_reserved_machines() {
    let relay = Ipv4Addr::new(192, 168, 7, 1);
    let stranger = with_address(request(DISCOVER, STRANGER, &[]), 24, relay.octets());
    assert_eq!(scene().outcome(&stranger), (Outcome::Unanswered(Silence::ForeignRelay(relay)), None));
    let reserved = with_address(request(DISCOVER, DUT, &[]), 24, relay.octets());
    assert_eq!(scene().outcome(&reserved), (Outcome::Offered, Some(DUT_ADDRESS)));
}

#[test]
fn the_identity_is_the_mac_whatever_option_61_says() {
    let mut scene = scene();
    let firmware = scene.outcome(&request(DISCOVER, STRANGER, &[(61, &[1, 2, 0, 0, 0, 0, 9])]));
    let system = scene.outcome(&request(DISCOVER, STRANGER, &[(61, &[255, 0x12, 0x34, 0, 2])]));
    assert_eq!(firmware, system);
}

#[test]
fn machines_without_reservation_boot_what_strangers_boot_and_others_do_not() {
    let mut scene = scene();
    let mut stranger = packet!("ipxe-undionly-discover").to_vec();
    stranger[28..34].copy_from_slice(&STRANGER.0);
    assert_eq!(scene.decide(&stranger).event.bootfile, None);
    scene.table.set_strangers_boot(Some(boot_offer()));
    scene.table.clear_boot(DUT);
    let url = Some("http://10.77.0.1/_/boot/boot.ipxe".to_owned());
    assert_eq!(scene.decide(&stranger).event.bootfile, url);
    assert_eq!(scene.decide(&packet!("ipxe-undionly-discover")).event.bootfile, None, "a machine of the farm is none");
    scene.table.set_strangers_boot(None);
    assert_eq!(scene.decide(&stranger).event.bootfile, None);
}

#[test]
fn a_full_range_leaves_strangers_without_answer_and_reserved_machines_served() {
    let mut scene = scene();
    for last in 1..=3 {
        assert_eq!(scene.outcome(&request(DISCOVER, Mac([4, 0, 0, 0, 0, last]), &[])).0, Outcome::Offered);
    }
    let late = request(DISCOVER, STRANGER, &[]);
    assert_eq!(scene.outcome(&late).0, Outcome::Unanswered(Silence::NoAddress));
    assert_eq!(scene.outcome(&request(DISCOVER, DUT, &[])), (Outcome::Offered, Some(DUT_ADDRESS)));
    scene.later(OFFER);
    assert_eq!(scene.outcome(&late).0, Outcome::Offered, "offers that nobody takes up end");
}

/// The entries of a job's `dhcp`.
fn extras(entries: serde_json::Value) -> Vec<Extra> {
    let entries: Vec<job_schema::job::DhcpEntry> = serde_json::from_value(entries).unwrap();
    entries.iter().map(|entry| Extra::read(entry).unwrap()).collect()
}

#[test]
fn a_job_s_own_options_go_over_the_boot_method_s_and_the_first_entry_that_matches_counts() {
    let mut scene = scene();
    let extras = extras(serde_json::json!([
        { "match": { "vendor_class": ["PXEClient:Arch:0000[0-8]:.*"], "architecture": ["7"] }, "options": { "bootfile": "not.this" } },
        { "match": { "architecture": ["x86"], "firmware": ["bios"], "protocol": ["tftp"], "mac_address": ["52:54:00:77:00:01"] },
          "options": { "bootfile_name": "pxelinux.0", "next_server": "10.77.0.9", "210": "/lab/" } },
        { "options": { "root_path": "10.77.0.1:/srv" } },
    ]));
    scene.table.set_boot(DUT, BootOffer { extras, ..boot_offer() });
    let mut answer = |options: &[(u8, &[u8])]| {
        let decision = scene.decide(&request(DISCOVER, DUT, options));
        let (reply, destination) = decision.reply.unwrap();
        (decision.event.bootfile, describe(&reply.encode(), destination))
    };
    let class = b"PXEClient:Arch:00000:UNDI:002001";
    let (bootfile, text) = answer(&[(93, &[0, 0]), (60, class)]);
    assert_eq!(bootfile.as_deref(), Some("pxelinux.0"), "instead of undionly.kpxe");
    let [server, file] = ["siaddr 10.77.0.9 ", "sname \"\" file \"pxelinux.0\""];
    assert!(
        text.contains(server) && text.contains(file) && text.contains("\n66 \"10.77.0.9\"\n67 \"pxelinux.0\"\npad\n"),
        "{text}"
    );
    assert!(text.contains("\n210 ") && !text.contains("\n17 "), "{text}");
    let (bootfile, text) = answer(&[(93, &[0, 7]), (60, b"PXEClient:Arch:00009")]);
    assert_eq!(bootfile.as_deref(), Some("snponly.efi"), "the method's file stays where the job names none");
    assert!(text.contains("\n17 "), "{text}");
    let (bootfile, text) = answer(&[(60, b"udhcp 1.35.0"), (55, &[1, 3])]);
    assert!(bootfile.is_none() && text.contains("\n17 "), "an operating system is told the job's options: {text}");
}

#[test]
fn a_rule_may_want_what_a_matcher_of_a_job_wants() {
    let mut scene = scene();
    let said = serde_json::from_value(serde_json::json!({ "firmware": ["uboot"], "uuid": [".*"] })).unwrap();
    let matches = BootMatch { said, ..BootMatch::default() };
    let rule = BootRule { matches, bootfile: "boot.scr.uimg".to_owned(), ..BootRule::default() };
    scene.table.set_boot(DUT, BootOffer { rules: vec![rule], extras: Vec::new() });
    let uuid: &[u8] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    let mut bootfile = |options: &[(u8, &[u8])]| scene.decide(&request(DISCOVER, DUT, options)).event.bootfile;
    assert_eq!(bootfile(&[(93, &[0, 0x16]), (97, uuid)]).as_deref(), Some("boot.scr.uimg"));
    assert_eq!(bootfile(&[(93, &[0, 0x16])]), None, "it has no UUID");
    assert_eq!(bootfile(&[(93, &[0, 0x0b]), (97, uuid)]), None, "it is UEFI");
}

#[test]
fn what_a_small_client_cannot_take_is_left_out_and_the_boot_file_stays() {
    let mut scene = scene();
    let url = format!("http://10.77.0.1/{}", "x".repeat(180));
    let rule = BootRule {
        bootfile: url.clone(),
        options: vec![(209, vec![b'a'; 200]), (210, vec![b'b'; 20])],
        ..BootRule::default()
    };
    scene.table.set_boot(DUT, BootOffer { rules: vec![rule], ..BootOffer::default() });
    let mut answer = |options: &[(u8, &[u8])]| {
        let (reply, destination) = scene.decide(&request(DISCOVER, DUT, options)).reply.unwrap();
        describe(&reply.encode(), destination)
    };
    let bootfile = format!("\n67 {url:?}\n");
    let small = answer(&[(93, &[0, 0])]);
    assert!(small.contains(&bootfile) && small.contains(" file \"\"\n"), "a long name has no room in `file`: {small}");
    assert!(!small.contains("\n209 ") && !small.contains("\n210 "), "{small}");
    let large = answer(&[(93, &[0, 0]), (57, &[0x05, 0xc0])]);
    assert!(large.contains(&bootfile) && large.contains("\n209 ") && large.contains("\n210 "), "{large}");
}

#[test]
fn options_may_hide_in_the_file_and_name_fields() {
    let mut datagram = request(DISCOVER, DUT, &[(52, &[3])]);
    datagram[108..115].copy_from_slice(&[77, 4, b'i', b'P', b'X', b'E', 255]);
    datagram[44..49].copy_from_slice(&[93, 2, 0, 7, 255]);
    let event = scene().decide(&datagram).event;
    assert_eq!((event.client, event.architecture), (ClientKind::Ipxe, Some(Architecture::X64Uefi)));
}

#[test]
fn what_is_no_request_of_an_ethernet_client_is_dropped_with_a_reason() {
    let good = request(DISCOVER, DUT, &[]);
    let parse = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut datagram = good.clone();
        change(&mut datagram);
        Request::parse(&datagram).unwrap_err()
    };
    assert_eq!(parse(&|bytes| bytes.truncate(239)), Malformed::Short(239));
    assert_eq!(parse(&|bytes| bytes[0] = 2), Malformed::NotARequest(2));
    assert_eq!(parse(&|bytes| bytes[1] = 32), Malformed::NotEthernet { hardware: 32, length: 6 });
    assert_eq!(parse(&|bytes| bytes[2] = 255), Malformed::NotEthernet { hardware: 1, length: 255 });
    assert_eq!(parse(&|bytes| bytes[236] = 0), Malformed::NoCookie);
    assert_eq!(parse(&|bytes| bytes.truncate(240)), Malformed::NoMessageType);
    assert_eq!(parse(&|bytes| bytes[242] = 2), Malformed::NotOfAClient(2));
}

#[test]
fn any_bytes_are_survived_and_every_reply_is_well_formed() {
    let mut random = StdRng::seed_from_u64(2131);
    let seeds = [
        packet!("ipxe-rom-bios-discover"),
        packet!("ipxe-efi-x64-request"),
        packet!("edk2-x64-http-discover"),
        packet!("edk2-arm64-pxe-request"),
        packet!("u-boot-arm64-request"),
        packet!("udhcpc-request"),
        request(INFORM, STRANGER, &[(52, &[3]), (82, &[1, 2, 3, 4])]),
        request(DECLINE, STRANGER, &[(50, &[10, 77, 0, 100])]),
    ];
    let mut scene = scene();
    let mut replies = 0;
    for round in 0..50_000_usize {
        let mut datagram = seeds[round % seeds.len()].clone();
        for _ in 0..random.random_range(0..6) {
            let at = random.random_range(0..datagram.len());
            datagram[at] = random.random();
        }
        if random.random_range(0..4) == 0 {
            datagram.truncate(random.random_range(0..datagram.len()));
        }
        scene.later(Duration::from_secs(7));
        let Ok(request) = Request::parse(&datagram) else { continue };
        if let Some((reply, destination)) = super::reply(&request, &mut scene.table, scene.now).reply {
            let bytes = reply.encode();
            assert!((300..=1472).contains(&bytes.len()), "{} bytes", bytes.len());
            assert_eq!(bytes[4..8], datagram[4..8], "the transaction id");
            describe(&bytes, destination);
            replies += 1;
        }
    }
    assert!(replies > 10_000, "only {replies} of 50000 were answered: the test lost its grip");
}
