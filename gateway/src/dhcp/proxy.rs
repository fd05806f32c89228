//! ProxyDHCP: beside another DHCP server, this one says what to boot and nothing else (PXE 2.1, chapter 2). ◆
//!
//! ```text
//!  firmware                       the other server           this one
//!  DISCOVER as PXEClient ───────► OFFER with an address      OFFER without one: 60, 43 "take the file from this offer", 66, 67, 97
//!  REQUEST for that address ────► ACK                        nothing; the address is compared with the reserved one
//!  REQUEST, INFORM to port 4011 ───────────────────────────► ACK: the same once more, for who asks twice
//! ```
//! Only PXE and UEFI HTTP clients are answered, and only while there is something for them to boot: nobody else shall notice that there
//! are two. A DUT's address is what is reserved for it here, never what a datagram says: the other server has to give it that one, and
//! one that gets another reads nothing.

use core::net::Ipv4Addr;
use std::time::Instant;

use dhcproto::v4::MessageType;

use super::reply::{Decision, Outcome, Reply, Silence, boot_for, destination, event};
use super::request::{ClientKind, Request, RequestKind};
use super::table::Table;

/// Where a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// 67, where everybody hears it.
    Dhcp,
    /// 4011, to this server alone.
    Pxe,
}

/// Answers `request` beside the other server.
pub fn reply(request: &Request, table: &Table, port: Port, now: Instant) -> Decision {
    let (mut outcome, address) = decide(request, table, port, now);
    let boot = boot_for(request, table, &outcome);
    let kind = match outcome {
        Outcome::Offered => Some(MessageType::Offer),
        Outcome::Acknowledged => Some(MessageType::Ack),
        _ => None,
    };
    if kind.is_some() && boot.bootfile().is_none() {
        outcome = Outcome::Unanswered(Silence::NothingToBoot);
    }
    let event = event(request, table, &outcome, address, &boot);
    let message = kind.filter(|_| event.bootfile.is_some());
    let message = message.map(|kind| Reply::of_a_proxy(kind, request, table.network(), &boot));
    Decision { reply: message.map(|message| (message, destination(request, &outcome))), event }
}

fn decide(request: &Request, table: &Table, port: Port, now: Instant) -> (Outcome, Option<Ipv4Addr>) {
    let asked = request.requested_address.or(request.client_address);
    if let Some((given, reserved)) = asked.zip(table.address_of(request.mac, now))
        && given != reserved
        && request.kind == RequestKind::Request
    {
        return (Outcome::Unanswered(Silence::AnotherAddress { given, reserved }), Some(given));
    }
    let is_client = match request.client {
        ClientKind::Ipxe | ClientKind::Pxe | ClientKind::HttpBoot => true,
        ClientKind::UBoot | ClientKind::OtherNetboot | ClientKind::OperatingSystem => false,
    };
    let outcome = match (request.kind, port) {
        _ if !is_client => Outcome::Unanswered(Silence::NoProxyClient),
        (RequestKind::Discover, Port::Dhcp) => Outcome::Offered,
        (RequestKind::Request | RequestKind::Inform, Port::Pxe) => Outcome::Acknowledged,
        (RequestKind::Discover, Port::Pxe)
        | (RequestKind::Request | RequestKind::Inform, Port::Dhcp)
        | (RequestKind::Decline | RequestKind::Release, _) => Outcome::Unanswered(Silence::OfTheOtherServer),
    };
    (outcome, asked.filter(|_| request.kind != RequestKind::Discover))
}

#[cfg(test)]
mod tests;
