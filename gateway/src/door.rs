//! By which door a caller comes to a name: at which port, in clear or over TLS. ◆
//!
//! ```text
//!                        the server's own port       the entry's `expose.port`     another port
//!  expose: {port}        clear or TLS                clear or TLS                  no such name
//!  expose: {tls}         TLS, else TlsRequired       TLS, else TlsRequired         no such name
//!  neither               clear or TLS                                              no such name
//! ```
//! A port is shared by every job that exposes something there, and knows by its first byte whether TLS comes: what one job asks of it
//! is nothing to another.

use crate::namespace::{Exposure, Refusal};

/// What bytes travel over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// TCP or UDP as it is.
    #[default]
    Clear,
    /// TLS, with a certificate of the farm's own authority.
    Tls,
}

/// A port and a transport that a caller came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Door {
    /// A port besides the server's own; `None` is that one.
    pub port: Option<u16>,
    /// What it came over.
    pub transport: Transport,
}

impl Door {
    /// The server's own port.
    pub fn main(transport: Transport) -> Self {
        Door { port: None, transport }
    }
}

impl Exposure {
    /// Whether an entry may be had by `door`.
    pub(crate) fn admits(&self, door: Door) -> Result<(), Refusal> {
        if door.port.is_some() && door.port != self.port {
            return Err(Refusal::NoSuchName);
        }
        match (self.transport, door.transport) {
            (Transport::Tls, Transport::Clear) => Err(Refusal::TlsRequired { port: self.port }),
            (Transport::Tls, Transport::Tls) | (Transport::Clear, _) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_had_by_its_own_doors_and_in_clear_only_if_it_does_not_ask_for_tls() {
        use Transport::{Clear, Tls};
        let exposure = |port, transport| Exposure { port, transport, ..Exposure::default() };
        let door = |port, transport| Door { port, transport };
        let required = |port| Err(Refusal::TlsRequired { port });
        let table = [
            (exposure(None, Clear), door(None, Clear), Ok(())),
            (exposure(None, Clear), door(None, Tls), Ok(())),
            (exposure(None, Clear), door(Some(80), Clear), Err(Refusal::NoSuchName)),
            (exposure(Some(8080), Clear), door(Some(8080), Clear), Ok(())),
            (exposure(Some(8080), Clear), door(Some(8080), Tls), Ok(())),
            (exposure(Some(8080), Clear), door(Some(8081), Clear), Err(Refusal::NoSuchName)),
            (exposure(Some(8080), Clear), door(None, Clear), Ok(())),
            (exposure(Some(8443), Tls), door(Some(8443), Tls), Ok(())),
            (exposure(Some(8443), Tls), door(Some(8443), Clear), required(Some(8443))),
            (exposure(Some(8443), Tls), door(None, Clear), required(Some(8443))),
            (exposure(Some(8443), Tls), door(Some(8080), Tls), Err(Refusal::NoSuchName)),
            (exposure(None, Tls), door(None, Clear), required(None)),
            (exposure(None, Tls), door(None, Tls), Ok(())),
        ];
        for (exposure, door, expected) in table {
            assert_eq!(exposure.admits(door), expected, "{exposure:?} by {door:?}");
        }
    }
}
