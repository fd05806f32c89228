//! Truly fetching files: over HTTP or TFTP, counted and hashed as they come, and not kept (a kernel has 14 MB; a farm may have many
//! DUTs). Only scripts are kept.
//!
//! ```text
//!  Station::fetch(uri) ─┬─ http://  connect from our address, GET, the body to its Content-Length   (http.rs)
//!                       └─ tftp://  one Read on a UDP socket                                        (tftp.rs)
//!                              │
//!                              └─► Digest ─► Fetched { bytes, sha256, script }
//! ```

use std::net::Ipv4Addr;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::dhcp::{Client, Lease};
use super::http;
use super::ipxe::Interpreter;
use super::tftp::{Options, RETRANSMIT_AFTER, Read, Reply, Step, TRIES_MAX};
use super::uri::{Scheme, Uri};
use super::wire::Wire;
use crate::config::Misbehaviour;

/// 1 MiB of script: iPXE's own limit is its memory; real ones have some kilobytes.
const SCRIPT_BYTES_MAX: usize = 1024 * 1024;
/// The largest UDP payload.
const PACKET_BYTES_MAX: usize = 65_507;

/// A booting DUT on the network.
pub struct Station {
    /// Its sockets.
    pub wire: Wire,
    /// Its address and servers.
    pub lease: Lease,
    /// Which of its programs asks.
    pub client: Client,
    /// What it still has to do wrong; each fault of a transfer happens once.
    pub faults: Vec<Misbehaviour>,
}

/// A file that arrived whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
    /// Its text, if it is an iPXE script.
    pub script: Option<String>,
}

/// Why a file did not arrive; the text is for the console.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The address cannot be used.
    #[error("{0}")]
    Address(String),
    /// The server answered, but not with the file.
    #[error("{0}")]
    Refused(String),
    /// Nobody answers, or not any more.
    #[error("Connection timed out")]
    Silence,
    /// The connection broke.
    #[error("{0}")]
    Broken(String),
    /// Given up on purpose in the middle.
    #[error("aborted")]
    Aborted,
}

impl From<std::io::Error> for FetchError {
    fn from(error: std::io::Error) -> Self {
        FetchError::Broken(error.to_string())
    }
}

/// How far a transfer is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// To the end.
    Whole,
    /// To its middle, for a fault.
    Middle,
}

impl Station {
    /// Fetches the file at an absolute address, from its first byte to its last.
    pub async fn fetch(&mut self, address: &str) -> Result<Fetched, FetchError> {
        let uri = Uri::parse(address).map_err(FetchError::Address)?;
        let host = self.resolve(&uri.host)?;
        match uri.scheme {
            Scheme::Http => self.fetch_http(host, uri).await,
            Scheme::Tftp => self.fetch_tftp(host, uri.port, uri.tftp_name()).await,
        }
    }

    /// Posts JSON; the answer's status and text.
    pub async fn post(&self, address: &str, json: String) -> Result<(u16, String), FetchError> {
        let uri = Uri::parse(address).map_err(FetchError::Address)?;
        let host = self.resolve(&uri.host)?;
        match uri.scheme {
            Scheme::Http => http::post(&self.wire, self.lease.address, host, &uri, json).await,
            Scheme::Tftp => Err(FetchError::Address("nothing is posted over TFTP".into())),
        }
    }

    /// Fetches a bootfile that DHCP named without a scheme.
    pub async fn fetch_bootfile(&mut self, name: &str) -> Result<Fetched, FetchError> {
        self.fetch_tftp(self.lease.next_server, None, name).await
    }

    /// Addresses are given by number; our network has no name server.
    fn resolve(&self, host: &str) -> Result<Ipv4Addr, FetchError> {
        match host {
            "localhost" => Ok(Ipv4Addr::LOCALHOST),
            host => {
                host.parse().map_err(|_| FetchError::Address(format!("cannot resolve `{host}`; use its IPv4 address")))
            }
        }
    }

    fn take_fault(&mut self, wanted: &[Misbehaviour]) -> Option<Misbehaviour> {
        let at = self.faults.iter().position(|fault| wanted.contains(fault))?;
        Some(self.faults.remove(at))
    }

    async fn fetch_http(&mut self, host: Ipv4Addr, uri: Uri) -> Result<Fetched, FetchError> {
        if self.take_fault(&[Misbehaviour::AbortTransfer]).is_some() {
            match http::get(&self.wire, self.lease.address, host, &uri, Until::Middle).await {
                Err(FetchError::Aborted) => {}
                other => return other,
            }
        }
        http::get(&self.wire, self.lease.address, host, &uri, Until::Whole).await
    }

    async fn fetch_tftp(&mut self, host: Ipv4Addr, port: Option<u16>, name: &str) -> Result<Fetched, FetchError> {
        let transfer = Transfer {
            server: self.wire.tftp_server(host, port),
            name,
            options: match self.client {
                Client::PlainBios => Options::BIOS,
                Client::PlainUefi => Options::UEFI,
                Client::IpxeBios | Client::IpxeUefi | Client::Loader => Options::IPXE,
            },
        };
        let mut source_port = 0;
        if self.client == Client::PlainUefi {
            // EDK2 asks for the size first, aborts, and asks again (captured).
            transfer.run(&self.socket(0)?, Ending::AfterSize).await?;
        }
        match self.take_fault(&[Misbehaviour::AbortTransfer, Misbehaviour::SamePort]) {
            Some(Misbehaviour::SamePort) => {
                let socket = self.socket(0)?;
                source_port = socket.local_addr()?.port();
                transfer.run(&socket, Ending::SilentInTheMiddle).await?;
            }
            Some(_) => drop(transfer.run(&self.socket(0)?, Ending::ErrorInTheMiddle).await?),
            None => {}
        }
        let socket = self.socket(source_port)?;
        transfer.run(&socket, Ending::Whole).await?.ok_or(FetchError::Aborted)
    }

    fn socket(&self, port: u16) -> Result<UdpSocket, FetchError> {
        Ok(self.wire.udp(self.lease.address, port)?)
    }
}

/// How a TFTP transfer is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Whole,
    AfterSize,
    ErrorInTheMiddle,
    SilentInTheMiddle,
}

struct Transfer<'a> {
    server: std::net::SocketAddr,
    name: &'a str,
    options: Options,
}

impl Transfer<'_> {
    /// Runs to its planned ending; the file, if that is the whole of it.
    async fn run(&self, socket: &UdpSocket, ending: Ending) -> Result<Option<Fetched>, FetchError> {
        let mut read = Read::new(self.name, self.options);
        let mut digest = Digest::default();
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        let mut peer = None;
        let mut tries = 1;
        socket.send_to(read.packet(), self.server).await?;
        let mut deadline = Instant::now() + RETRANSMIT_AFTER;
        loop {
            let Ok(received) = timeout_at(deadline, socket.recv_from(&mut buffer)).await else {
                tries += 1;
                if tries > TRIES_MAX {
                    return Err(FetchError::Silence);
                }
                read.handle_timeout();
                socket.send_to(read.packet(), peer.unwrap_or(self.server)).await?;
                deadline = Instant::now() + RETRANSMIT_AFTER;
                continue;
            };
            let (length, from) = received?;
            // RFC 1350, 4: the server answers from a port of its own; whoever else sends here is told so and ignored.
            if from.ip() != self.server.ip() || peer.is_some_and(|peer| peer != from) {
                socket.send_to(&Read::abort(5, "Unknown transfer ID"), from).await?;
                continue;
            }
            match read.handle_packet(&buffer[..length]) {
                Step::Ignore => continue,
                Step::Send | Step::Data(_, Reply::Now | Reply::Later) if stops(ending, &read) => {
                    return self.stop(socket, from, ending).await;
                }
                Step::Send => drop(socket.send_to(read.packet(), from).await?),
                Step::Data(bytes, Reply::Later) => digest.push(bytes),
                Step::Data(bytes, Reply::Now) => {
                    digest.push(bytes);
                    socket.send_to(read.packet(), from).await?;
                }
                Step::Last(bytes) => {
                    digest.push(bytes);
                    socket.send_to(read.packet(), from).await?;
                    return Ok(Some(digest.finish()));
                }
                Step::Failed(why) => return Err(FetchError::Refused(why)),
            }
            peer = Some(from);
            (tries, deadline) = (1, Instant::now() + RETRANSMIT_AFTER);
        }
    }

    /// Ends a transfer early, on purpose.
    async fn stop(
        &self,
        socket: &UdpSocket,
        peer: std::net::SocketAddr,
        ending: Ending,
    ) -> Result<Option<Fetched>, FetchError> {
        if ending != Ending::SilentInTheMiddle {
            // RFC 2347's code 8 and EDK2's words.
            socket.send_to(&Read::abort(8, "User aborted the transfer"), peer).await?;
        }
        Ok(None)
    }
}

fn stops(ending: Ending, read: &Read) -> bool {
    match ending {
        Ending::Whole => false,
        Ending::AfterSize => true,
        Ending::ErrorInTheMiddle | Ending::SilentInTheMiddle => read.is_midway(),
    }
}

/// What is kept of a file.
pub(super) struct Digest {
    hasher: Sha256,
    bytes: u64,
    script: Option<Vec<u8>>,
}

impl Default for Digest {
    fn default() -> Self {
        Digest { hasher: Sha256::new(), bytes: 0, script: Some(Vec::new()) }
    }
}

impl Digest {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        if let Some(text) = &mut self.script {
            text.extend_from_slice(bytes);
            let is_other = text.len() >= 2 && !text.starts_with(b"#!");
            if is_other || text.len() > SCRIPT_BYTES_MAX {
                self.script = None;
            }
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn finish(self) -> Fetched {
        let sha256 = self.hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let script = self.script.filter(|text| Interpreter::is_script(text));
        Fetched { bytes: self.bytes, sha256, script: script.map(|text| String::from_utf8_lossy(&text).into_owned()) }
    }
}

/// 30 s without a byte: twice the longest pause of a healthy server that first has to fetch the file itself.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    /// A TFTP server that loses and reorders: for each request, the packets to send before the next one arrives.
    async fn scripted(answers: Vec<Vec<Vec<u8>>>) -> (SocketAddr, tokio::task::JoinHandle<Vec<(u16, Vec<u8>)>>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (mut heard, mut buffer) = (Vec::new(), [0; 2048]);
            for packets in answers {
                let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
                heard.push((peer.port(), buffer[..length].to_vec()));
                for packet in packets {
                    socket.send_to(&packet, peer).await.unwrap();
                }
            }
            heard
        });
        (address, task)
    }

    fn station(tftp: SocketAddr, client: Client, faults: &[Misbehaviour]) -> Station {
        let address = Ipv4Addr::new(127, 77, 0, 6);
        Station {
            wire: Wire::Loopback { address, dhcp: tftp, tftp_port: tftp.port() },
            lease: Lease {
                address,
                netmask: Ipv4Addr::new(255, 0, 0, 0),
                router: None,
                dns: None,
                hostname: None,
                server: Ipv4Addr::LOCALHOST,
                next_server: Ipv4Addr::LOCALHOST,
                bootfile: None,
            },
            client,
            faults: faults.to_vec(),
        }
    }

    fn oack(words: &[&str]) -> Vec<u8> {
        let mut packet = vec![0, 6];
        for word in words {
            packet.extend_from_slice(word.as_bytes());
            packet.push(0);
        }
        packet
    }

    fn data(block: u8, bytes: &[u8]) -> Vec<u8> {
        [&[0, 3, 0, block][..], bytes].concat()
    }

    #[tokio::test]
    async fn a_lost_packet_is_repaired_and_a_wrong_order_does_no_harm() {
        let offer = || oack(&["tsize", "20", "blksize", "8"]);
        let (server, heard) = scripted(vec![
            vec![],
            vec![offer()],
            vec![data(2, b"too soon"), data(1, b"01234567")],
            vec![data(2, b"89abcdef")],
            vec![data(1, b"01234567"), data(3, b"ghij")],
            vec![],
        ])
        .await;
        let fetched = station(server, Client::IpxeBios, &[]).fetch_bootfile("file").await.unwrap();
        // sha256 of 0123456789abcdefghij, by sha256sum.
        assert_eq!(fetched.sha256, "6bc14bdc4517a7a682c6910de2e2946eb8e1ecd04090728fef6d092a7ceb62c5");
        assert_eq!(fetched.bytes, 20);
        let heard: Vec<Vec<u8>> = heard.await.unwrap().into_iter().map(|(_, packet)| packet).collect();
        assert_eq!(heard[0], heard[1], "the request is sent again");
        assert_eq!(heard[2..], [[0, 4, 0, 0], [0, 4, 0, 1], [0, 4, 0, 2], [0, 4, 0, 3]]);
    }

    #[tokio::test]
    async fn uefi_asks_for_the_size_aborts_and_asks_again() {
        let (server, heard) = scripted(vec![
            vec![oack(&["tsize", "3", "blksize", "1468", "windowsize", "4"])],
            vec![],
            vec![oack(&["tsize", "3", "blksize", "1468", "windowsize", "4"])],
            vec![data(1, b"efi")],
            vec![],
        ])
        .await;
        let fetched = station(server, Client::PlainUefi, &[]).fetch_bootfile("snponly.efi").await.unwrap();
        assert_eq!(fetched.bytes, 3);
        let heard = heard.await.unwrap();
        assert_eq!(heard[1].1, b"\0\x05\0\x08User aborted the transfer\0");
        assert_eq!(heard[0].1, heard[2].1);
        assert_ne!(heard[0].0, heard[2].0, "another source port");
    }

    #[tokio::test]
    async fn a_faulty_dut_aborts_once_or_comes_back_on_the_same_port() {
        let offer = || oack(&["tsize", "4", "blksize", "1432"]);
        for fault in [Misbehaviour::AbortTransfer, Misbehaviour::SamePort] {
            let mut answers = vec![vec![offer()], vec![], vec![offer()], vec![data(1, b"file")], vec![]];
            if fault == Misbehaviour::SamePort {
                answers.remove(1);
            }
            let (server, heard) = scripted(answers).await;
            let mut station = station(server, Client::IpxeBios, &[fault]);
            assert_eq!(station.fetch("tftp://127.0.0.1/file").await.unwrap().bytes, 4);
            assert!(station.faults.is_empty());
            let heard = heard.await.unwrap();
            match fault {
                Misbehaviour::SamePort => assert_eq!(heard[0], heard[1], "same packet, same port"),
                _ => assert_eq!(heard[1].1, b"\0\x05\0\x08User aborted the transfer\0"),
            }
        }
    }

    #[tokio::test]
    async fn a_refusal_and_an_unusable_address_are_told() {
        let (server, _heard) = scripted(vec![vec![b"\0\x05\0\x01the job publishes no such name\0".to_vec()]]).await;
        let mut station = station(server, Client::IpxeBios, &[]);
        let error = station.fetch("tftp://127.0.0.1/nothing").await.unwrap_err();
        assert_eq!(error.to_string(), "TFTP error 1: the job publishes no such name");
        let error = station.fetch("http://gateway/x").await.unwrap_err();
        assert_eq!(error.to_string(), "cannot resolve `gateway`; use its IPv4 address");
    }
}
