//! Connections to elsewhere through the real server: what is led where, and a list of attacks, each refused and told. The world outside is
//! played: names lead where the test says, and whatever address is connected to is one server on the loopback.

use std::collections::HashMap;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;

use super::*;
use crate::content::Content;
use crate::egress::{Egress, Network};
use crate::http::{Config, Server, start};
use crate::namespace::{AccessEvent, CONNECTIONS_PER_DUT_MAX, Namespaces, Protocol, Publication};
use crate::net::Net;
use crate::outside::Internet;

/// Names that lead to addresses, and a server that is at all of them.
#[derive(Debug)]
struct World {
    names: HashMap<String, Vec<IpAddr>>,
    server: SocketAddr,
    connected: mpsc::UnboundedSender<SocketAddr>,
}

impl Outside for World {
    fn resolve(&self, host: String, port: u16) -> BoxFuture<'_, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            match self.names.get(&host) {
                Some(found) => Ok(found.iter().map(|address| SocketAddr::new(*address, port)).collect()),
                // What is no name is read as the system reads it: `2130706433` and `0x7f.1` are addresses there.
                None => Ok(tokio::net::lookup_host((host, port)).await?.collect()),
            }
        })
    }

    fn connect(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        let _ = self.connected.send(address);
        Box::pin(TcpStream::connect(self.server))
    }

    fn own(&self) -> Vec<Network> {
        ["10.77.0.1/24", "203.0.113.9/32"].map(|text| text.parse().unwrap()).to_vec()
    }
}

struct Scene {
    server: Server,
    namespaces: Namespaces<Content>,
    publication: Option<Publication<Content>>,
    events: mpsc::UnboundedReceiver<AccessEvent>,
    connected: mpsc::UnboundedReceiver<SocketAddr>,
    upstream: TcpListener,
}

/// A DUT at 127.0.0.1 whose job and farm allow these.
async fn scene(job: &[&str], farm: &[&str]) -> Scene {
    let namespaces = Namespaces::new();
    let (sender, events) = mpsc::unbounded_channel();
    let observer = Arc::new(move |event| drop(sender.send(event)));
    let publication = namespaces.publish(IpAddr::from([127, 0, 0, 1]), observer).unwrap();
    let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    publication.lead_out(Egress { job: rules(job), farm: rules(farm), private_networks: Vec::new() });
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (told, connected) = mpsc::unbounded_channel();
    let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let names = [
        ("good.example", addresses(&["198.51.100.7"])),
        ("rebound.example", addresses(&["127.0.0.1"])),
        ("mapped.example", addresses(&["::ffff:10.77.0.1"])),
        ("metadata.example", addresses(&["169.254.169.254"])),
        ("dut.example", addresses(&["10.77.0.23"])),
        ("host.example", addresses(&["203.0.113.9"])),
        ("office.example", addresses(&["192.168.1.10"])),
        ("six.example", addresses(&["::1", "fe80::1"])),
        ("both.example", addresses(&["127.0.0.1", "198.51.100.8"])),
    ];
    let names = names.into_iter().map(|(name, addresses)| (name.to_owned(), addresses)).collect();
    let world = World { names, server: upstream.local_addr().unwrap(), connected: told };
    let config = Config { outside: Some(Arc::new(world)), ..Config::new(Net::host(), "127.0.0.1:0".parse().unwrap()) };
    let server = start(config, namespaces.clone()).await.unwrap();
    Scene { server, namespaces, publication: Some(publication), events, connected, upstream }
}

impl Scene {
    async fn client(&self, from: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        socket.connect(self.server.address()).await.unwrap()
    }

    /// The head of the answer to `line`, and the connection.
    async fn ask(&self, line: &str) -> (String, TcpStream) {
        let mut client = self.client("127.0.0.1").await;
        client.write_all(format!("{line} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        (head(&mut client).await, client)
    }

    async fn event(&mut self) -> AccessEvent {
        loop {
            match self.events.recv().await.unwrap() {
                AccessEvent::Progress => {}
                event => return event,
            }
        }
    }
}

/// Up to the empty line.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

fn status(head: &str) -> &str {
    head.split(' ').nth(1).unwrap()
}

#[tokio::test]
async fn a_tunnel_moves_bytes_both_ways_and_is_told_as_an_access() {
    let mut scene = scene(&["good.example:443"], &["*.example:443"]).await;
    let (head, mut client) = scene.ask("CONNECT good.example:443").await;
    assert_eq!(status(&head), "200", "{head}");
    let (mut server, _) = scene.upstream.accept().await.unwrap();
    assert_eq!(scene.connected.recv().await, Some("198.51.100.7:443".parse().unwrap()));
    client.write_all(b"hello").await.unwrap();
    let mut heard = [0; 5];
    server.read_exact(&mut heard).await.unwrap();
    server.write_all(b"good day").await.unwrap();
    drop(server);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!((&heard, answer.as_str()), (b"hello", "good day"));
    drop(client);
    let name = "good.example:443".to_owned();
    let (access, protocol, peer) = (1, Protocol::Proxy, IpAddr::from([127, 0, 0, 1]));
    assert_eq!(scene.event().await, AccessEvent::Opened { access, protocol, name: name.clone(), peer });
    let ended = AccessEvent::Ended { access, protocol, name, bytes: 13, outcome: Outcome::Complete };
    assert_eq!(scene.event().await, ended);
}

#[tokio::test]
async fn plain_http_is_passed_on_without_what_is_between_hops() {
    let mut scene = scene(&["good.example:80"], &["*:80"]).await;
    let mut client = scene.client("127.0.0.1").await;
    let request = "POST http://good.example/a?b=1 HTTP/1.1\r\nHost: other.example\r\nProxy-Authorization: secret\r\n\
                   Connection: x-hop\r\nX-Hop: 1\r\nX-End: 2\r\nContent-Length: 2\r\n\r\nhi";
    client.write_all(request.as_bytes()).await.unwrap();
    let (mut server, _) = scene.upstream.accept().await.unwrap();
    let asked = head(&mut server).await.to_ascii_lowercase();
    let mut lines: Vec<_> = asked.trim_end().split("\r\n").collect();
    lines[1..].sort_unstable();
    assert_eq!(lines, ["post /a?b=1 http/1.1", "content-length: 2", "host: good.example", "x-end: 2"]);
    let mut body = [0; 2];
    server.read_exact(&mut body).await.unwrap();
    let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\nKeep-Alive: timeout=5\r\nX-End: 3\r\n\r\nno\n";
    server.write_all(answer).await.unwrap();
    let answered = head(&mut client).await.to_ascii_lowercase();
    assert_eq!(status(&answered), "404");
    assert!(answered.contains("x-end: 3") && !answered.contains("keep-alive"), "{answered}");
    let mut said = [0; 3];
    client.read_exact(&mut said).await.unwrap();
    assert_eq!((&body, &said), (b"hi", b"no\n"));
    assert!(matches!(scene.event().await, AccessEvent::Opened { .. }));
    let ended = scene.event().await;
    assert!(matches!(ended, AccessEvent::Ended { bytes: 5, outcome: Outcome::Complete, .. }), "{ended:?}");
}

#[tokio::test]
async fn whatever_a_dut_asks_for_that_it_may_not_reach_is_refused_and_told_and_nothing_is_connected() {
    let mut scene = scene(&["*:443", "*:80", "*:22"], &["*:443", "*:80", "only.example:22"]).await;
    for (line, why) in [
        ("CONNECT good.example:22", "the farm's proxy.allowed_endpoints do not have good.example:22"),
        ("CONNECT good.example:25", "the job's proxy.allowed_endpoints do not have good.example:25"),
        ("CONNECT 127.0.0.1:443", "it leads to 127.0.0.1, the loopback of the farm's host"),
        ("CONNECT 2130706433:443", "it leads to 127.0.0.1, the loopback of the farm's host"),
        ("CONNECT 0x7f.1:443", "it leads to 127.0.0.1, the loopback of the farm's host"),
        ("CONNECT 0177.0.0.1:443", "it leads to 127.0.0.1, the loopback of the farm's host"),
        ("CONNECT 127.1:443", "it leads to 127.0.0.1, the loopback of the farm's host"),
        ("CONNECT localhost:443", "the loopback of the farm's host"),
        ("CONNECT [::1]:443", "it leads to ::1, the loopback of the farm's host"),
        ("CONNECT [::ffff:127.0.0.1]:443", "the loopback of the farm's host"),
        ("CONNECT [::ffff:7f00:1]:443", "the loopback of the farm's host"),
        ("CONNECT [64:ff9b::7f00:1]:443", "the loopback of the farm's host"),
        ("CONNECT 0.0.0.0:443", "it leads to 0.0.0.0, which is this host"),
        ("CONNECT 169.254.169.254:80", "a link-local address"),
        ("CONNECT [fe80::1]:443", "a link-local address"),
        ("CONNECT 10.77.0.1:80", "it leads to 10.77.0.1, which belongs to the farm"),
        ("CONNECT 10.77.0.23:80", "it leads to 10.77.0.23, which belongs to the farm"),
        ("CONNECT 203.0.113.9:443", "which belongs to the farm"),
        ("CONNECT rebound.example:443", "it leads to 127.0.0.1, the loopback of the farm's host"),
        ("CONNECT mapped.example:443", "which belongs to the farm"),
        ("CONNECT metadata.example:80", "it leads to 169.254.169.254, a link-local address"),
        ("CONNECT dut.example:80", "it leads to 10.77.0.23, which belongs to the farm"),
        ("CONNECT host.example:443", "which belongs to the farm"),
        ("CONNECT six.example:443", "it leads to ::1, the loopback of the farm's host"),
        ("CONNECT office.example:443", "a private address that the farm's proxy.private_networks do not have"),
        ("GET http://metadata.example/latest/meta-data/", "it leads to 169.254.169.254, a link-local address"),
        ("GET http://10.77.0.23/secret", "which belongs to the farm"),
        ("GET http://good.example:25/", "the job's proxy.allowed_endpoints do not have good.example:25"),
    ] {
        let (head, _) = scene.ask(line).await;
        assert_eq!(status(&head), "403", "{line}");
        let AccessEvent::Refused { protocol, refusal, .. } = scene.event().await else { panic!("{line}") };
        assert_eq!(protocol, Protocol::Proxy);
        assert!(refusal.to_string().contains(why), "{line}: {refusal}");
    }
    assert!(scene.connected.try_recv().is_err(), "nothing was connected to");
}

#[tokio::test]
async fn what_is_no_request_for_a_proxy_is_told_so() {
    let scene = scene(&["*:443", "*:80"], &["*:443", "*:80"]).await;
    for line in [
        "GET http://user@good.example/",
        "GET https://good.example/",
        "GET ftp://good.example/",
        "CONNECT good.example",
        "CONNECT good.example:0",
    ] {
        assert_eq!(status(&scene.ask(line).await.0), "400", "{line}");
    }
}

#[tokio::test]
async fn of_a_name_with_several_addresses_those_are_tried_that_may_be_reached() {
    let mut scene = scene(&["both.example:443"], &["*:*"]).await;
    assert_eq!(status(&scene.ask("CONNECT both.example:443").await.0), "200");
    assert_eq!(scene.connected.recv().await, Some("198.51.100.8:443".parse().unwrap()));
    assert!(scene.connected.try_recv().is_err());
}

#[tokio::test]
async fn who_has_no_job_or_the_key_of_one_is_led_nowhere() {
    let scene = scene(&["*:443", "*:80"], &["*:*"]).await;
    let mut stranger = scene.client("127.0.0.2").await;
    stranger.write_all(b"CONNECT good.example:443 HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(status(&head(&mut stranger).await), "403");
    let key = scene.publication.as_ref().unwrap().key().as_str().to_owned();
    let mut stranger = scene.client("127.0.0.2").await;
    let request = format!("GET http://good.example/_/n/{key}/x HTTP/1.1\r\nHost: x\r\n\r\n");
    stranger.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(status(&head(&mut stranger).await), "403");
}

#[tokio::test]
async fn a_tunnel_ends_with_its_lease_and_the_next_job_starts_without() {
    let mut scene = scene(&["good.example:443"], &["*:*"]).await;
    let (head, mut client) = scene.ask("CONNECT good.example:443").await;
    assert_eq!(status(&head), "200");
    let (_server, _) = scene.upstream.accept().await.unwrap();
    assert!(matches!(scene.event().await, AccessEvent::Opened { .. }));
    drop(scene.publication.take());
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0, "the tunnel is closed");
    let AccessEvent::Ended { outcome, .. } = scene.event().await else { panic!() };
    assert_eq!(outcome, Outcome::Failed("the job is over".into()));
    let _next = scene.namespaces.publish(IpAddr::from([127, 0, 0, 1]), Arc::new(|_| ())).unwrap();
    assert_eq!(status(&scene.ask("CONNECT good.example:443").await.0), "403");
}

#[tokio::test]
async fn a_dut_has_so_many_connections_at_a_time_and_no_more() {
    let scene = scene(&["good.example:443"], &["*:*"]).await;
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS_PER_DUT_MAX {
        let (head, client) = scene.ask("CONNECT good.example:443").await;
        assert_eq!(status(&head), "200");
        open.push(client);
    }
    assert_eq!(status(&scene.ask("CONNECT good.example:443").await.0), "403");
}

#[tokio::test]
async fn a_host_that_cannot_be_reached_is_502_and_told() {
    let mut scene = scene(&["good.example:443"], &["*:*"]).await;
    let upstream = std::mem::replace(&mut scene.upstream, TcpListener::bind("127.0.0.1:0").await.unwrap());
    drop(upstream);
    assert_eq!(status(&scene.ask("CONNECT good.example:443").await.0), "502");
    assert!(matches!(scene.event().await, AccessEvent::Opened { .. }));
    let AccessEvent::Ended { outcome: Outcome::Failed(reason), .. } = scene.event().await else { panic!() };
    assert!(reason.starts_with("cannot connect to 198.51.100.7:443: "), "{reason}");
}

#[test]
fn the_hosts_own_addresses_are_the_farms() {
    let duts = "10.77.0.1/24".parse().unwrap();
    let own = Internet { net: Net::host(), interface: None, duts }.own();
    for address in [IpAddr::from([127, 0, 0, 1]), IpAddr::from([10, 77, 0, 200])] {
        assert!(own.iter().any(|network| network.contains(address)), "{address}: {own:?}");
    }
    assert!(!own.iter().any(|network| network.contains(IpAddr::from([198, 51, 100, 1]))), "{own:?}");
}
