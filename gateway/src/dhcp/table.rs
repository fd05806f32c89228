//! Who has which address, and what each machine boots.
//!
//! ```text
//!                    ┌─ reserved? ── always its address, never anybody else's
//!  MAC ── offer() ───┤
//!                    └─ from the range: its last one → the one it asks for → a fresh one → the least recently used
//!
//!   a range address:   free ──offer──► Offered 30 s ──bind──► Bound 3600 s ──release, expiry──► Remembered
//!                        ▲                │ expiry                  │ decline                      │ reused last
//!                        └────────────────┴──────── Parked 600 s ◄──┘                              ▼ by another MAC
//! ```
//! A flood of made-up MACs takes only range addresses that are neither bound nor reserved, for 30 s each; machines of the farm are
//! reserved and do not notice. Everything here is bounded by the size of the range ([`RANGE_ADDRESSES_MAX`]).

use core::fmt;
use core::net::Ipv4Addr;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::boot::BootOffer;
use super::request::Mac;

/// How long an address is lent: an hour, as dnsmasq has it; DUTs boot far more often than that, and operating systems renew at half.
pub const LEASE: Duration = Duration::from_secs(3600);

/// How long an offer waits for its REQUEST: iPXE and U-Boot retry within 10 s, EDK2 within 16 s.
pub const OFFER: Duration = Duration::from_secs(30);

/// How long a declined address is left alone: a foreign machine sits on it, and the declining client needs another one now.
pub const PARKED: Duration = Duration::from_secs(600);

/// Addresses in a range at most: a /16. Finding the least recently used one walks all of them, about a millisecond.
pub const RANGE_ADDRESSES_MAX: u32 = 65_536;

/// The IPv4 network that is served, and what its machines are told about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// This server, in that network.
    pub server: Ipv4Addr,
    /// Length of the network's prefix.
    pub prefix_length: u8,
    /// The router, if the machines shall have one.
    pub router: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
}

impl Network {
    /// The mask of the prefix.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(self.prefix_length.min(32))).unwrap_or(0))
    }

    /// The address of all machines in it.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.server.to_bits() | !self.mask().to_bits())
    }

    /// Whether `address` lies in it.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask().to_bits() == self.server.to_bits() & self.mask().to_bits()
    }

    /// Whether a machine may have `address`: in the network, and not the network's own, its broadcast or this server's.
    fn can_host(&self, address: Ipv4Addr) -> bool {
        let first = Ipv4Addr::from_bits(self.server.to_bits() & self.mask().to_bits());
        // A /31 has no broadcast address (RFC 3021).
        let edges = self.prefix_length < 31 && (address == first || address == self.broadcast());
        self.contains(address) && address != self.server && !edges
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from_bits(self.server.to_bits() & self.mask().to_bits()), self.prefix_length)
    }
}

/// A machine whose address never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// Whose.
    pub mac: Mac,
    /// The address.
    pub address: Ipv4Addr,
    /// The name it is told (option 12).
    pub hostname: Option<String>,
}

/// What the farm file says of addresses cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressProblem {
    /// The range ends before it starts.
    #[error("the DHCP range ends at {last}, before its start {first}; swap the two")]
    Backwards {
        /// Its start.
        first: Ipv4Addr,
        /// Its end.
        last: Ipv4Addr,
    },
    /// The range has too many addresses.
    #[error("the DHCP range {first}-{last} has more than {RANGE_ADDRESSES_MAX} addresses; a smaller one will do")]
    TooLarge {
        /// Its start.
        first: Ipv4Addr,
        /// Its end.
        last: Ipv4Addr,
    },
    /// No machine of this network can have the address.
    #[error("{address} is no machine's address in {network} (server {server}); choose another one there")]
    Unusable {
        /// The address.
        address: Ipv4Addr,
        /// The network, as text.
        network: String,
        /// This server's address.
        server: Ipv4Addr,
    },
    /// Two machines cannot have one address.
    #[error("{address} is already reserved for {mac}; give each machine its own")]
    Taken {
        /// The address.
        address: Ipv4Addr,
        /// Whose it is.
        mac: Mac,
    },
}

/// Whether the farm knows a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Machine {
    /// It has a reservation.
    Reserved,
    /// It has none.
    Unknown,
}

/// Why a REQUEST gets a NAK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The machine has another address here.
    HasAnother {
        /// What it asked for.
        asked: Ipv4Addr,
        /// What it has.
        has: Ipv4Addr,
    },
    /// Somebody else has that address, it is parked, or this network does not give it out.
    NotAvailable(Ipv4Addr),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::HasAnother { asked, has } => write!(f, "{asked} is not yours; {has} is"),
            Refusal::NotAvailable(asked) => write!(f, "{asked} is not available here"),
        }
    }
}

/// One line of the list of leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Whose.
    pub mac: Mac,
    /// The address.
    pub address: Ipv4Addr,
    /// The name it is told.
    pub hostname: Option<String>,
    /// Whether the farm knows the machine.
    pub machine: Machine,
    /// Until when an address of the range is lent; `None` for a reservation.
    pub until: Option<Instant>,
}

/// All addresses of one network, and the boot offers of its machines.
#[derive(Debug)]
pub struct Table {
    network: Network,
    range: Option<(u32, u32)>,
    reservations: HashMap<Mac, Reservation>,
    reserved: HashMap<Ipv4Addr, Mac>,
    entries: HashMap<Ipv4Addr, Entry>,
    entry_of: HashMap<Mac, Ipv4Addr>,
    boots: HashMap<Mac, BootOffer>,
    /// What machines without reservation boot, while they may.
    strangers: Option<BootOffer>,
}

/// What became of a range address.
#[derive(Debug)]
struct Entry {
    mac: Mac,
    state: State,
    used: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Offered { until: Instant },
    Bound { until: Instant },
    Remembered,
    Parked { until: Instant },
}

impl Entry {
    /// The state at `now`: an offer that nobody took up and a lease that ran out are only remembered.
    fn state(&self, now: Instant) -> State {
        match self.state {
            State::Offered { until } | State::Bound { until } | State::Parked { until } if until <= now => {
                State::Remembered
            }
            state => state,
        }
    }

    fn is_free(&self, now: Instant) -> bool {
        self.state(now) == State::Remembered
    }

    /// Who is reused first: addresses nobody took up or that a foreign machine sat on, then old leases, oldest first.
    fn reuse_order(&self) -> (bool, Instant) {
        (matches!(self.state, State::Bound { .. } | State::Remembered), self.used)
    }
}

impl Table {
    /// An empty table for `network`; without a range only reserved machines are served.
    pub fn new(network: Network, range: Option<(Ipv4Addr, Ipv4Addr)>) -> Result<Table, AddressProblem> {
        let range = range.map(|(first, last)| check_range(&network, first, last)).transpose()?;
        Ok(Table {
            network,
            range,
            reservations: HashMap::new(),
            reserved: HashMap::new(),
            entries: HashMap::new(),
            entry_of: HashMap::new(),
            boots: HashMap::new(),
            strangers: None,
        })
    }

    /// The network it is for.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Gives `reservation.mac` its address for good; an older reservation of that MAC is replaced, a lease of another machine on
    /// that address ends (its renewal gets a NAK).
    pub fn reserve(&mut self, reservation: Reservation) -> Result<(), AddressProblem> {
        let Reservation { mac, address, .. } = reservation;
        check_usable(&self.network, address)?;
        match self.reserved.get(&address) {
            Some(owner) if *owner != mac => return Err(AddressProblem::Taken { address, mac: *owner }),
            _ => {}
        }
        self.forget(mac);
        if let Some(entry) = self.entries.remove(&address) {
            self.entry_of.remove(&entry.mac);
        }
        self.reserved.insert(address, mac);
        self.reservations.insert(mac, reservation);
        Ok(())
    }

    /// Ends the reservation and any lease of `mac`. Its boot offer stays: see [`Table::clear_boot`].
    pub fn forget(&mut self, mac: Mac) {
        if let Some(reservation) = self.reservations.remove(&mac) {
            self.reserved.remove(&reservation.address);
        }
        if let Some(address) = self.entry_of.remove(&mac) {
            self.entries.remove(&address);
        }
    }

    /// From the next request on, `mac` boots by `offer`.
    pub fn set_boot(&mut self, mac: Mac, offer: BootOffer) {
        self.boots.insert(mac, offer);
    }

    /// From the next request on, `mac` gets an address and no boot file.
    pub fn clear_boot(&mut self, mac: Mac) {
        self.boots.remove(&mac);
    }

    /// From the next request on, machines without reservation boot by `offer`; `None`: they get an address and no boot file.
    pub fn set_strangers_boot(&mut self, offer: Option<BootOffer>) {
        self.strangers = offer;
    }

    /// What `mac` boots.
    pub fn boot(&self, mac: Mac) -> Option<&BootOffer> {
        let stranger = || self.strangers.as_ref().filter(|_| self.machine(mac) == Machine::Unknown);
        self.boots.get(&mac).or_else(stranger)
    }

    /// Whether the farm knows `mac`.
    pub fn machine(&self, mac: Mac) -> Machine {
        if self.reservations.contains_key(&mac) { Machine::Reserved } else { Machine::Unknown }
    }

    /// The name that `mac` is told.
    pub fn hostname(&self, mac: Mac) -> Option<&str> {
        self.reservations.get(&mac)?.hostname.as_deref()
    }

    /// The address that `mac` has: reserved, offered or leased.
    pub fn address_of(&self, mac: Mac, now: Instant) -> Option<Ipv4Addr> {
        if let Some(reservation) = self.reservations.get(&mac) {
            return Some(reservation.address);
        }
        let address = self.entry_of.get(&mac)?;
        (!self.entries.get(address)?.is_free(now)).then_some(*address)
    }

    /// Whose `address` is.
    pub fn mac_of(&self, address: Ipv4Addr, now: Instant) -> Option<Mac> {
        if let Some(mac) = self.reserved.get(&address) {
            return Some(*mac);
        }
        let entry = self.entries.get(&address)?;
        matches!(entry.state(now), State::Offered { .. } | State::Bound { .. }).then_some(entry.mac)
    }

    /// Every reservation and every running lease, by address.
    pub fn leases(&self, now: Instant) -> Vec<Lease> {
        let reserved = self.reservations.values().map(|reservation| Lease {
            mac: reservation.mac,
            address: reservation.address,
            hostname: reservation.hostname.clone(),
            machine: Machine::Reserved,
            until: None,
        });
        let lent = self.entries.iter().filter_map(|(address, entry)| match entry.state(now) {
            State::Bound { until } => Some(Lease {
                mac: entry.mac,
                address: *address,
                hostname: None,
                machine: Machine::Unknown,
                until: Some(until),
            }),
            State::Offered { .. } | State::Remembered | State::Parked { .. } => None,
        });
        let mut leases: Vec<Lease> = reserved.chain(lent).collect();
        leases.sort_by_key(|lease| lease.address);
        leases
    }

    /// The address to offer to `mac`, which would like `wanted`; `None` when no address is left for it.
    pub fn offer(&mut self, mac: Mac, wanted: Option<Ipv4Addr>, now: Instant) -> Option<Ipv4Addr> {
        if let Some(reservation) = self.reservations.get(&mac) {
            return Some(reservation.address);
        }
        let address = match self.entry_of.get(&mac) {
            Some(address) => *address,
            None => wanted.filter(|wanted| self.is_free(*wanted, now)).or_else(|| self.pick(now))?,
        };
        match self.entries.get(&address).filter(|entry| entry.mac == mac).map(|entry| entry.state(now)) {
            // A machine that lost its memory in mid-lease; an abandoned new boot does not end the lease.
            Some(State::Bound { .. }) => {}
            _ => self.enter(mac, address, State::Offered { until: now + OFFER }, now),
        }
        Some(address)
    }

    /// `mac` takes `address` for [`LEASE`]. Without a record of the machine (this server was restarted), a free address is as good.
    pub fn bind(&mut self, mac: Mac, address: Ipv4Addr, now: Instant) -> Result<(), Refusal> {
        let has = match self.reservations.get(&mac) {
            Some(reservation) if reservation.address == address => return Ok(()),
            Some(reservation) => Some(reservation.address),
            None => self.entry_of.get(&mac).copied(),
        };
        match has {
            Some(has) if has != address => return Err(Refusal::HasAnother { asked: address, has }),
            None if !self.is_free(address, now) => return Err(Refusal::NotAvailable(address)),
            _ => {}
        }
        self.enter(mac, address, State::Bound { until: now + LEASE }, now);
        Ok(())
    }

    /// `mac` chose another server: what was only offered is free again.
    pub fn withdraw(&mut self, mac: Mac, now: Instant) {
        self.change(mac, now, |state| match state {
            State::Offered { .. } => State::Offered { until: now },
            kept => kept,
        });
    }

    /// `mac` gives its address back; it is remembered, and comes back to it next time if nobody needed it.
    pub fn release(&mut self, mac: Mac, address: Ipv4Addr, now: Instant) {
        if self.entry_of.get(&mac) == Some(&address) {
            self.change(mac, now, |_| State::Remembered);
        }
    }

    /// `mac` found another machine on its address: nobody gets it for [`PARKED`]. Only the address that `mac` holds is parked, else
    /// one client could empty the range; a reservation stands whatever its machine says.
    pub fn decline(&mut self, mac: Mac, address: Ipv4Addr, now: Instant) {
        if self.entry_of.get(&mac) == Some(&address) {
            self.change(mac, now, |_| State::Parked { until: now + PARKED });
            self.entry_of.remove(&mac);
        }
    }

    fn change(&mut self, mac: Mac, now: Instant, to: impl FnOnce(State) -> State) {
        if let Some(entry) = self.entry_of.get(&mac).and_then(|address| self.entries.get_mut(address)) {
            entry.state = to(entry.state);
            entry.used = now;
        }
    }

    fn enter(&mut self, mac: Mac, address: Ipv4Addr, state: State, now: Instant) {
        if let Some(before) = self.entries.insert(address, Entry { mac, state, used: now })
            && before.mac != mac
            && self.entry_of.get(&before.mac) == Some(&address)
        {
            self.entry_of.remove(&before.mac);
        }
        self.entry_of.insert(mac, address);
    }

    /// Whether a machine without a record may have `address` now.
    fn is_free(&self, address: Ipv4Addr, now: Instant) -> bool {
        self.is_lendable(address) && self.entries.get(&address).is_none_or(|entry| entry.is_free(now))
    }

    fn is_lendable(&self, address: Ipv4Addr) -> bool {
        let in_range = self.range.is_some_and(|(first, last)| (first..=last).contains(&address.to_bits()));
        in_range && self.network.can_host(address) && !self.reserved.contains_key(&address)
    }

    /// The first fresh address of the range, else the free one that was unused for the longest time.
    fn pick(&self, now: Instant) -> Option<Ipv4Addr> {
        let (first, last) = self.range?;
        let mut oldest: Option<((bool, Instant), Ipv4Addr)> = None;
        for address in (first..=last).map(Ipv4Addr::from_bits).filter(|address| self.is_lendable(*address)) {
            match self.entries.get(&address) {
                None => return Some(address),
                Some(entry) if entry.is_free(now) => {
                    let candidate = (entry.reuse_order(), address);
                    oldest = Some(oldest.map_or(candidate, |oldest| oldest.min(candidate)));
                }
                Some(_) => {}
            }
        }
        oldest.map(|(_, address)| address)
    }
}

fn check_range(network: &Network, first: Ipv4Addr, last: Ipv4Addr) -> Result<(u32, u32), AddressProblem> {
    if last < first {
        return Err(AddressProblem::Backwards { first, last });
    }
    if last.to_bits() - first.to_bits() >= RANGE_ADDRESSES_MAX {
        return Err(AddressProblem::TooLarge { first, last });
    }
    // The server's own address may lie in the middle: it is passed over. The ends have to be real.
    check_usable(network, first).or_else(|problem| if first == network.server { Ok(()) } else { Err(problem) })?;
    check_usable(network, last).or_else(|problem| if last == network.server { Ok(()) } else { Err(problem) })?;
    Ok((first.to_bits(), last.to_bits()))
}

fn check_usable(network: &Network, address: Ipv4Addr) -> Result<(), AddressProblem> {
    if network.can_host(address) {
        return Ok(());
    }
    Err(AddressProblem::Unusable { address, network: network.to_string(), server: network.server })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

    fn network() -> Network {
        Network { server: SERVER, prefix_length: 24, router: None, dns: Vec::new() }
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, last)
    }

    fn mac(number: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, number])
    }

    fn reservation(number: u8, last: u8) -> Reservation {
        Reservation { mac: mac(number), address: address(last), hostname: None }
    }

    /// Three addresses: 10.77.0.100 to 10.77.0.102.
    fn table() -> (Table, Instant) {
        (Table::new(network(), Some((address(100), address(102)))).unwrap(), Instant::now())
    }

    #[test]
    fn an_address_stays_with_its_machine_after_the_lease_ran_out() {
        let (mut table, start) = table();
        table.bind(mac(1), address(101), start).unwrap();
        let later = start + LEASE * 3;
        assert_eq!(table.address_of(mac(1), later), None);
        assert_eq!(table.offer(mac(2), None, later), Some(address(100)));
        assert_eq!(table.offer(mac(1), None, later), Some(address(101)));
    }

    #[test]
    fn the_least_recently_used_address_is_reused_and_never_requested_ones_before_it() {
        let (mut table, start) = table();
        table.bind(mac(1), address(100), start).unwrap();
        table.bind(mac(2), address(101), start + Duration::from_secs(5)).unwrap();
        assert_eq!(table.offer(mac(3), None, start + Duration::from_secs(9)), Some(address(102)));
        let later = start + LEASE * 2;
        assert_eq!(table.offer(mac(4), None, later), Some(address(102)), "only offered, though used last");
        assert_eq!(table.offer(mac(5), None, later), Some(address(100)), "the older lease");
        assert_eq!(table.offer(mac(6), None, later), Some(address(101)));
        assert_eq!(table.offer(mac(7), None, later), None);
        assert_eq!(table.offer(mac(2), None, later + OFFER), Some(address(100)), "its own was given away meanwhile");
    }

    #[test]
    fn a_flood_of_made_up_machines_ends_no_lease_and_takes_no_reservation() {
        let (mut table, start) = table();
        table.reserve(reservation(1, 50)).unwrap();
        table.reserve(reservation(2, 101)).unwrap();
        table.bind(mac(3), address(100), start).unwrap();
        for number in 0..10_000_u32 {
            let [a, b, c, d] = number.to_be_bytes();
            let offered = table.offer(Mac([6, 6, a, b, c, d]), Some(address(101)), start);
            assert!(offered.is_none_or(|offered| offered == address(102)), "{offered:?}");
        }
        assert_eq!(table.offer(mac(1), None, start), Some(address(50)));
        assert_eq!(table.offer(mac(2), None, start), Some(address(101)));
        assert_eq!(table.bind(mac(3), address(100), start), Ok(()));
        assert_eq!(table.entries.len(), 2, "no more entries than addresses");
        assert_eq!(table.entry_of.len(), 2);
        assert_eq!(table.offer(mac(4), None, start + OFFER), Some(address(102)), "30 s later the flood is forgotten");
    }

    #[test]
    fn an_offered_address_is_honoured_for_thirty_seconds_against_others() {
        let (mut table, start) = table();
        assert_eq!(table.offer(mac(1), Some(address(102)), start), Some(address(102)));
        assert_eq!(table.bind(mac(2), address(102), start), Err(Refusal::NotAvailable(address(102))));
        assert_eq!(table.bind(mac(2), address(102), start + OFFER), Ok(()));
        let has = table.offer(mac(1), None, start + OFFER);
        assert_eq!(has, Some(address(100)), "its offer was taken over");
    }

    #[test]
    fn only_the_holder_can_park_an_address() {
        let (mut table, start) = table();
        table.bind(mac(1), address(100), start).unwrap();
        table.decline(mac(2), address(100), start);
        assert_eq!(table.mac_of(address(100), start), Some(mac(1)));
        table.decline(mac(1), address(100), start);
        assert_eq!(table.mac_of(address(100), start), None);
        assert_eq!(table.offer(mac(1), Some(address(100)), start), Some(address(101)));
        let last_moment = start + PARKED - Duration::from_secs(1);
        assert_eq!(table.bind(mac(3), address(100), last_moment), Err(Refusal::NotAvailable(address(100))));
        assert_eq!(table.bind(mac(3), address(100), start + PARKED), Ok(()));
    }

    #[test]
    fn a_reservation_replaces_the_old_one_and_moves_a_stranger_off_its_address() {
        let (mut table, start) = table();
        table.bind(mac(1), address(100), start).unwrap();
        table.reserve(reservation(2, 50)).unwrap();
        table.reserve(reservation(2, 100)).unwrap();
        assert_eq!(table.mac_of(address(50), start), None);
        assert_eq!(table.mac_of(address(100), start), Some(mac(2)));
        assert_eq!(table.bind(mac(1), address(100), start), Err(Refusal::NotAvailable(address(100))));
        table.forget(mac(2));
        assert_eq!(table.address_of(mac(2), start), None);
        assert_eq!(table.machine(mac(2)), Machine::Unknown);
    }

    #[test]
    fn the_list_names_reservations_and_running_leases_by_address() {
        let (mut table, start) = table();
        table.bind(mac(1), address(100), start).unwrap();
        table.offer(mac(2), None, start);
        let named = Reservation { mac: mac(3), address: address(50), hostname: Some("dut-3".to_owned()) };
        table.reserve(named).unwrap();
        let lines = |now| -> Vec<String> {
            let leases = table.leases(now).into_iter();
            leases
                .map(|lease| format!("{} {} {:?} {:?}", lease.address, lease.mac, lease.machine, lease.hostname))
                .collect()
        };
        let reserved = r#"10.77.0.50 02:00:00:00:00:03 Reserved Some("dut-3")"#;
        assert_eq!(lines(start), [reserved, "10.77.0.100 02:00:00:00:00:01 Unknown None"]);
        assert_eq!(lines(start + LEASE), [reserved]);
    }

    #[test]
    fn what_cannot_be_served_is_said_in_a_sentence() {
        let (mut table, _) = table();
        let range = |first, last| Table::new(network(), Some((first, last))).unwrap_err().to_string();
        assert_eq!(
            range(address(9), address(5)),
            "the DHCP range ends at 10.77.0.5, before its start 10.77.0.9; swap the two"
        );
        assert_eq!(
            range(address(9), address(255)),
            "10.77.0.255 is no machine's address in 10.77.0.0/24 (server 10.77.0.1); choose another one there"
        );
        assert_eq!(
            range(Ipv4Addr::new(10, 0, 0, 1), address(9)),
            "the DHCP range 10.0.0.1-10.77.0.9 has more than 65536 addresses; a smaller one will do"
        );
        assert_eq!(
            table.reserve(reservation(1, 1)).unwrap_err().to_string(),
            "10.77.0.1 is no machine's address in 10.77.0.0/24 (server 10.77.0.1); choose another one there"
        );
        table.reserve(reservation(1, 50)).unwrap();
        assert_eq!(
            table.reserve(reservation(2, 50)).unwrap_err().to_string(),
            "10.77.0.50 is already reserved for 02:00:00:00:00:01; give each machine its own"
        );
    }

    #[test]
    fn masks_and_broadcast_addresses_follow_the_prefix() {
        let with = |prefix_length| Network { prefix_length, ..network() };
        assert_eq!((with(24).mask(), with(24).broadcast()), ([255, 255, 255, 0].into(), address(255)));
        assert_eq!((with(20).mask(), with(20).broadcast()), ([255, 255, 240, 0].into(), [10, 77, 15, 255].into()));
        assert_eq!((with(0).mask(), with(0).broadcast()), ([0, 0, 0, 0].into(), Ipv4Addr::BROADCAST));
        assert_eq!((with(32).mask(), with(32).broadcast()), (Ipv4Addr::BROADCAST, SERVER));
    }
}
