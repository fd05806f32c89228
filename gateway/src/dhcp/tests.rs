//! The ring on real sockets: loopback, ports of the system's choice.

use std::sync::mpsc;

use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder};

use super::*;

const DUT: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 1]);
const DUT_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 202);

/// Long enough for a busy machine, short enough to end a test that hangs.
const PATIENCE: Duration = Duration::from_secs(20);

fn packet(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn discover() -> Vec<u8> {
    packet(include_str!("../../../fixtures/packets/dhcp/ipxe-rom-bios-discover.hex"))
}

fn request() -> Vec<u8> {
    packet(include_str!("../../../fixtures/packets/dhcp/ipxe-rom-bios-request.hex"))
}

fn config(observer: Observer) -> Config {
    Config {
        net: Net::host(),
        interface: None,
        listen: "127.0.0.1:0".parse().unwrap(),
        server: Ipv4Addr::new(10, 77, 0, 1),
        prefix_length: 24,
        router: None,
        dns: Vec::new(),
        role: Role::default(),
        reply_to: ReplyTo::Source,
        observer,
    }
}

async fn receive(client: &UdpSocket) -> Message {
    let mut buffer = [0; 1500];
    let length = tokio::time::timeout(PATIENCE, client.recv(&mut buffer)).await.expect("an answer").unwrap();
    Message::decode(&mut Decoder::new(&buffer[..length])).unwrap()
}

#[tokio::test]
async fn a_firmware_boots_over_a_real_socket_and_the_executor_hears_of_it() {
    let (events, heard) = mpsc::channel();
    let server = start(config(Arc::new(move |event| events.send(event).unwrap()))).await.unwrap();
    server.reserve(Reservation { mac: DUT, address: DUT_ADDRESS, hostname: None }).unwrap();
    let rule = BootRule { bootfile: "http://10.77.0.1/boot.ipxe".to_owned(), ..BootRule::default() };
    server.set_boot(DUT, BootOffer { rules: vec![rule], ..BootOffer::default() });
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();

    client.send_to(b"not DHCP", server.address()).await.unwrap();
    client.send_to(&discover(), server.address()).await.unwrap();
    let offer = receive(&client).await;
    assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
    assert_eq!((offer.yiaddr(), offer.siaddr()), (DUT_ADDRESS, Ipv4Addr::new(10, 77, 0, 1)));
    let bootfile = DhcpOption::BootfileName(b"http://10.77.0.1/boot.ipxe".to_vec());
    assert_eq!(offer.opts().get(OptionCode::BootfileName), Some(&bootfile));

    server.clear_boot(DUT);
    client.send_to(&request(), server.address()).await.unwrap();
    let acknowledgement = receive(&client).await;
    assert_eq!(acknowledgement.opts().msg_type(), Some(MessageType::Ack));
    assert_eq!(acknowledgement.opts().get(OptionCode::BootfileName), None, "the job is over");

    let first = heard.recv_timeout(PATIENCE).unwrap();
    let second = heard.recv_timeout(PATIENCE).unwrap();
    assert_eq!((first.outcome, first.bootfile.as_deref()), (Outcome::Offered, Some("http://10.77.0.1/boot.ipxe")));
    assert_eq!((second.outcome, second.bootfile), (Outcome::Acknowledged, None));
    assert_eq!((first.mac, first.address, first.machine), (DUT, Some(DUT_ADDRESS), Machine::Reserved));
}

#[tokio::test]
async fn a_proxy_answers_on_both_of_its_ports_and_has_no_address_to_give() {
    let server = start(Config { role: Role::Proxy, ..config(Arc::new(|_| {})) }).await.unwrap();
    server.reserve(Reservation { mac: DUT, address: DUT_ADDRESS, hostname: None }).unwrap();
    let rule = BootRule { bootfile: "http://10.77.0.1/boot.ipxe".to_owned(), ..BootRule::default() };
    server.set_boot(DUT, BootOffer { rules: vec![rule], ..BootOffer::default() });
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut at_the_pxe_port = request();
    // Its address, as firmware has it by then.
    at_the_pxe_port[12..16].copy_from_slice(&DUT_ADDRESS.octets());
    let asked = [
        (discover(), server.address(), MessageType::Offer),
        (at_the_pxe_port, server.pxe_address().unwrap(), MessageType::Ack),
    ];
    for (datagram, address, kind) in asked {
        client.send_to(&datagram, address).await.unwrap();
        let answer = receive(&client).await;
        assert_eq!((answer.opts().msg_type(), answer.yiaddr()), (Some(kind), Ipv4Addr::UNSPECIFIED));
        let bootfile = DhcpOption::BootfileName(b"http://10.77.0.1/boot.ipxe".to_vec());
        assert_eq!(answer.opts().get(OptionCode::BootfileName), Some(&bootfile));
    }
    assert_eq!(start(config(Arc::new(|_| {}))).await.unwrap().pxe_address(), None);
}

#[tokio::test]
async fn the_handle_answers_who_has_which_address() {
    let server = start(config(Arc::new(|_| {}))).await.unwrap();
    server.reserve(Reservation { mac: DUT, address: DUT_ADDRESS, hostname: None }).unwrap();
    assert_eq!(server.address_of(DUT), Some(DUT_ADDRESS));
    assert_eq!(server.mac_of(DUT_ADDRESS), Some(DUT));
    assert_eq!(server.leases().len(), 1);
    server.forget(DUT);
    assert_eq!((server.address_of(DUT), server.mac_of(DUT_ADDRESS), server.leases().len()), (None, None, 0));
}

#[tokio::test]
async fn a_machine_without_reservation_is_heard_of_though_it_gets_no_answer() {
    let (events, heard) = mpsc::channel();
    let server = start(config(Arc::new(move |event| events.send(event).unwrap()))).await.unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.send_to(&discover(), server.address()).await.unwrap();
    let event = tokio::task::spawn_blocking(move || heard.recv_timeout(PATIENCE).unwrap()).await.unwrap();
    assert_eq!((event.mac, event.machine), (DUT, Machine::Unknown));
    assert_eq!(event.outcome, Outcome::Unanswered(Silence::NoAddress));
}

#[tokio::test]
async fn draining_or_dropping_the_last_handle_frees_the_port() {
    // A loopback address of this test alone: no other one can take the port in between.
    let listen = "127.0.67.1:0".parse().unwrap();
    let server = start(Config { listen, ..config(Arc::new(|_| {})) }).await.unwrap();
    let address = server.address();
    server.drain().await;
    drop(UdpSocket::bind(address).await.expect("free after drain"));

    let server = start(Config { listen: address, ..config(Arc::new(|_| {})) }).await.unwrap();
    let handle = server.clone();
    drop(server);
    assert!(std::net::UdpSocket::bind(address).is_err(), "a clone keeps it running");
    drop(handle);
    tokio::time::timeout(PATIENCE, async {
        while std::net::UdpSocket::bind(address).is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("free after the last handle is gone");
}

#[tokio::test]
async fn a_range_that_cannot_be_served_is_refused_at_start() {
    let role = Role::Server { range: Some((Ipv4Addr::new(10, 77, 0, 9), Ipv4Addr::new(10, 77, 0, 5))) };
    let error = start(Config { role, ..config(Arc::new(|_| {})) }).await.unwrap_err();
    assert_eq!(error.to_string(), "the DHCP range ends at 10.77.0.5, before its start 10.77.0.9; swap the two");
}
