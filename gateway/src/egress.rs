//! Where a DUT may connect to through the gateway: who allows it, and what no list allows. ◆
//!
//! ```text
//!  host:port ─► the job's rules ─► the farm's rules ─► resolved, once ─► each address: judged ─► connected to, as it was judged
//!                  │ no                │ no                                │ never:   the gateway's host, the DUTs' network, loopback,
//!                  ▼                   ▼                                   │          link-local, multicast, reserved
//!               Denial::Job        Denial::Farm                            │ private: only in the farm's `private_networks`
//!                                                                          ▼ Denial::Address
//! ```
//! A name is nothing to rely on: whoever owns it says where it leads, and says something else a moment later. What counts is the
//! address, in whichever disguise it comes; and the address that was judged is the one that is connected to.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::fmt;
use std::str::FromStr;

use job_schema::job::Endpoint;

/// Endpoints that one party allows: `example.org:443`, `*.example.org:443`, `*:443`, `example.org:*`, `[2001:db8::1]:443`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    host: Hosts,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hosts {
    Any,
    /// Every name that ends so, with the dot; not the name without it.
    Below(String),
    One(String),
}

impl Rule {
    /// What a job allows itself; its port is always a number.
    pub fn of(endpoint: &Endpoint) -> Result<Rule, String> {
        Ok(Rule { host: hosts(&endpoint.host)?, port: Some(endpoint.port) })
    }

    /// Whether it allows `endpoint`.
    pub fn allows(&self, endpoint: &Endpoint) -> bool {
        let host = normal(&endpoint.host);
        let of_host = match &self.host {
            Hosts::Any => true,
            Hosts::Below(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
            Hosts::One(name) => host == *name,
        };
        of_host && self.port.is_none_or(|port| port == endpoint.port)
    }

    /// Whether it may allow something that `other` allows, too.
    pub fn meets(&self, other: &Rule) -> bool {
        let below = |suffix: &str, name: &str| name.len() > suffix.len() && name.ends_with(suffix);
        let hosts = match (&self.host, &other.host) {
            (Hosts::Any, _) | (_, Hosts::Any) => true,
            (Hosts::One(one), Hosts::One(other)) => one == other,
            (Hosts::Below(suffix), Hosts::One(name)) | (Hosts::One(name), Hosts::Below(suffix)) => below(suffix, name),
            (Hosts::Below(one), Hosts::Below(other)) => one.ends_with(other) || other.ends_with(one),
        };
        hosts && self.port.zip(other.port).is_none_or(|(one, other)| one == other)
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Rule, String> {
        match text.strip_suffix(":*") {
            // Any port will do to find mistakes in the host.
            Some(host) => Ok(Rule { port: None, ..Rule::of(&format!("{host}:1").parse()?)? }),
            None => Rule::of(&text.parse()?),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Hosts::Any => f.write_str("*")?,
            Hosts::Below(suffix) => write!(f, "*{suffix}")?,
            Hosts::One(name) if name.contains(':') => write!(f, "[{name}]")?,
            Hosts::One(name) => f.write_str(name)?,
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => f.write_str(":*"),
        }
    }
}

fn hosts(text: &str) -> Result<Hosts, String> {
    if text == "*" {
        return Ok(Hosts::Any);
    }
    match text.strip_prefix('*') {
        Some(suffix) if suffix.len() > 1 && suffix.starts_with('.') && !suffix.contains('*') => {
            Ok(Hosts::Below(normal(suffix)))
        }
        None if !text.contains('*') => Ok(Hosts::One(normal(text))),
        _ => Err("a `*` stands for a whole host, or as `*.` for all names below one".to_owned()),
    }
}

/// Names are the same in capitals and with the root's dot (RFC 4343, RFC 1034 3.1), addresses however they are written.
fn normal(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().to_string(),
        Err(_) => host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase(),
    }
}

/// Addresses that begin alike, such as `10.1.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix_length: u8,
}

impl Network {
    /// The network that `address` is in.
    pub fn new(address: IpAddr, prefix_length: u8) -> Network {
        Network { address: address.to_canonical(), prefix_length }
    }

    /// A network of one address.
    pub fn one(address: IpAddr) -> Network {
        Network::new(address, 128)
    }

    /// Whether `address` is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.prefix_length.min(32));
                (network.to_bits() ^ address.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.prefix_length.min(128));
                (network.to_bits() ^ address.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let (address, prefix_length) = text.split_once('/').ok_or("it has no prefix, such as `/16`")?;
        let address: IpAddr = address.parse().map_err(|_| "what is before the `/` is no address".to_owned())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix_length = prefix_length.parse().ok().filter(|length| *length <= longest);
        Ok(Network::new(address, prefix_length.ok_or(format!("its prefix is not a number from 0 to {longest}"))?))
    }
}

/// Where the DUT of one job may connect to.
#[derive(Clone, Debug, Default)]
pub struct Egress {
    /// What the job says that it needs.
    pub job: Vec<Rule>,
    /// What the farm's administrator lets jobs have.
    pub farm: Vec<Rule>,
    /// Private networks that the administrator lets names and addresses lead to.
    pub private_networks: Vec<Network>,
}

/// Why a DUT may not connect to somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// The job does not name it.
    Job(Endpoint),
    /// The farm does not allow it.
    Farm(Endpoint),
    /// It is an address that nobody may connect to, or nobody without the farm's word.
    Address {
        /// Where it leads.
        address: IpAddr,
        /// What is there.
        what: &'static str,
    },
    /// It has as many connections as it may have.
    TooMany(usize),
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denial::Job(endpoint) => write!(f, "the job's proxy.allowed_endpoints do not have {endpoint}"),
            Denial::Farm(endpoint) => write!(f, "the farm's proxy.allowed_endpoints do not have {endpoint}"),
            Denial::Address { address, what } => write!(f, "it leads to {address}, {what}"),
            Denial::TooMany(count) => write!(f, "the DUT has {count} connections through the farm already"),
        }
    }
}

const PRIVATE: &str = "a private address that the farm's proxy.private_networks do not have";

const NOT_FETCHED: &str = "a private address that the farm's downloads.private_networks do not have";

impl Egress {
    /// Whether job and farm allow `endpoint`, wherever it leads.
    pub fn allows(&self, endpoint: &Endpoint) -> Result<(), Denial> {
        let has = |rules: &[Rule]| rules.iter().any(|rule| rule.allows(endpoint));
        if !has(&self.job) {
            return Err(Denial::Job(endpoint.clone()));
        }
        if has(&self.farm) { Ok(()) } else { Err(Denial::Farm(endpoint.clone())) }
    }

    /// Whether `address` may be connected to; `own` is what belongs to the gateway's host and to its DUTs.
    pub fn may_reach(&self, address: IpAddr, own: &[Network]) -> Result<(), Denial> {
        let denied = |what| Err(Denial::Address { address, what });
        let canonical = undisguised(address);
        if own.iter().any(|network| network.contains(canonical)) {
            return denied("which belongs to the farm");
        }
        match kind(canonical) {
            Kind::Public => Ok(()),
            Kind::Private if self.private_networks.iter().any(|network| network.contains(canonical)) => Ok(()),
            Kind::Private => denied(PRIVATE),
            Kind::Never(what) => denied(what),
        }
    }
}

/// From where the server fetches in the name of those who may submit, and no more.
#[derive(Clone, Debug, Default)]
pub struct Fetching {
    /// Places that may be anywhere, the farm's host included: the administrator names them.
    pub trusted: Vec<Rule>,
    /// The URLs below which the farm's own images are; each ends with a slash.
    pub own_images: Vec<reqwest::Url>,
    /// Private networks that everything else may lead to; all of them when absent: artifacts are on servers of the lab, as a rule.
    pub private_networks: Option<Vec<Network>>,
}

impl Fetching {
    /// Whether what `url` leads to need not be judged.
    pub fn trusts(&self, url: &reqwest::Url) -> bool {
        let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let endpoint = Endpoint { host, port: url.port_or_known_default().unwrap_or_default() };
        let is_below = |own: &reqwest::Url| own.origin() == url.origin() && url.path().starts_with(own.path());
        self.trusted.iter().any(|rule| rule.allows(&endpoint)) || self.own_images.iter().any(is_below)
    }

    /// Whether `address` may be fetched from; `own` is what belongs to the gateway's host and to its DUTs.
    pub fn may_reach(&self, address: IpAddr, own: &[Network]) -> Result<(), Denial> {
        let denied = |what| Err(Denial::Address { address, what });
        let canonical = undisguised(address);
        if own.iter().any(|network| network.contains(canonical)) {
            return denied("which belongs to the farm");
        }
        match (kind(canonical), &self.private_networks) {
            (Kind::Public, _) | (Kind::Private, None) => Ok(()),
            (Kind::Private, Some(networks)) if networks.iter().any(|network| network.contains(canonical)) => Ok(()),
            (Kind::Private, Some(_)) => denied(NOT_FETCHED),
            (Kind::Never(what), _) => denied(what),
        }
    }
}

enum Kind {
    Public,
    Private,
    Never(&'static str),
}

/// The address of IPv4 that one of IPv6 leads to: mapped (RFC 4291 2.5.5.2), or through the well-known prefix of NAT64 (RFC 6052 2.1).
fn undisguised(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(six) if six.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0] => {
            Ipv4Addr::from_bits(six.to_bits() as u32).into()
        }
        other => other,
    }
}

fn kind(address: IpAddr) -> Kind {
    match address {
        IpAddr::V4(address) => kind_of_four(address),
        IpAddr::V6(address) => kind_of_six(address),
    }
}

/// The registry of special addresses of RFC 6890.
fn kind_of_four(address: Ipv4Addr) -> Kind {
    match address.octets() {
        [0, ..] => Kind::Never("which is this host"),
        [127, ..] => Kind::Never("the loopback of the farm's host"),
        [169, 254, ..] => Kind::Never("a link-local address"),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] | [192, 0, 0, _] | [198, 18 | 19, ..] => {
            Kind::Private
        }
        [224..=239, ..] => Kind::Never("a multicast address"),
        [240..=255, ..] => Kind::Never("a reserved address"),
        _ => Kind::Public,
    }
}

fn kind_of_six(address: Ipv6Addr) -> Kind {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Kind::Never("which is this host"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Kind::Never("the loopback of the farm's host"),
        // IPv4-compatible, NAT64 of a network's own (RFC 8215), Teredo, 6to4: IPv4 underneath, and not for us to find out which.
        [0, 0, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] | [0x2001, 0, ..] | [0x2002, ..] => {
            Kind::Never("an address of IPv4 in disguise")
        }
        [0xfe80..=0xfebf, ..] => Kind::Never("a link-local address"),
        [0xff00..=0xffff, ..] => Kind::Never("a multicast address"),
        // Unique local (RFC 4193), and what was site-local before (RFC 3879).
        [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] => Kind::Private,
        [0x2000..=0x3fff, ..] => Kind::Public,
        _ => Kind::Never("a reserved address"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    #[test]
    fn a_rule_allows_a_host_all_below_one_or_any_at_a_port_or_all() {
        for (rule, allowed, denied) in [
            ("example.org:443", "EXAMPLE.org.:443", "example.org:80"),
            ("example.org:443", "example.org:443", "a.example.org:443"),
            ("*.example.org:443", "a.b.example.org:443", "example.org:443"),
            ("*.example.org:443", "a.Example.org:443", "evilexample.org:443"),
            ("*:443", "10.0.0.1:443", "example.org:22"),
            ("example.org:*", "example.org:8443", "example.com:8443"),
            ("[2001:db8::1]:443", "[2001:db8:0::1]:443", "[2001:db8::2]:443"),
            ("192.0.2.1:443", "[::ffff:192.0.2.1]:443", "192.0.2.2:443"),
        ] {
            let parsed: Rule = rule.parse().unwrap();
            assert!(parsed.allows(&endpoint(allowed)), "{rule} has {allowed}");
            assert!(!parsed.allows(&endpoint(denied)), "{rule} has not {denied}");
            assert_eq!(parsed.to_string(), rule);
        }
        for wrong in
            ["example.org", "*example.org:443", "a.*.org:443", "*.:443", "**:1", "example.org:0", "a b:1", ":*"]
        {
            assert!(wrong.parse::<Rule>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_job_may_have_something_of_a_farm_whose_rules_meet_its_own() {
        let meets = |job: &str, farm: &str| job.parse::<Rule>().unwrap().meets(&farm.parse().unwrap());
        assert!(meets("a.example.org:443", "*.example.org:*"));
        assert!(meets("*.b.example.org:443", "*.example.org:443"));
        assert!(meets("*:443", "example.org:443"));
        assert!(!meets("example.org:443", "*.example.org:443"));
        assert!(!meets("a.example.org:80", "*.example.org:443"));
        assert!(!meets("*.example.com:443", "*.example.org:443"));
    }

    #[test]
    fn both_lists_must_have_an_endpoint() {
        let rules = |text: &str| vec![text.parse().unwrap()];
        let egress = Egress { job: rules("*.org:443"), farm: rules("a.org:*"), private_networks: Vec::new() };
        assert_eq!(egress.allows(&endpoint("a.org:443")), Ok(()));
        assert_eq!(egress.allows(&endpoint("a.org:80")), Err(Denial::Job(endpoint("a.org:80"))));
        assert_eq!(egress.allows(&endpoint("b.org:443")), Err(Denial::Farm(endpoint("b.org:443"))));
        assert_eq!(Egress::default().allows(&endpoint("a.org:443")), Err(Denial::Job(endpoint("a.org:443"))));
    }

    #[test]
    fn what_is_fetched_for_others_is_on_no_address_of_the_farm_and_elsewhere_as_its_administrator_says() {
        let own = ["10.77.0.0/24", "192.168.1.5/32"].map(|text| text.parse().unwrap());
        let default = Fetching::default();
        let kept_in = Fetching { private_networks: Some(vec!["192.168.1.0/24".parse().unwrap()]), ..default.clone() };
        for (address, by_default, kept) in [
            ("198.51.100.1", true, true),
            ("192.168.1.9", true, true),
            ("10.1.2.3", true, false),
            ("fd00::1", true, false),
            ("192.168.1.5", false, false),
            ("10.77.0.9", false, false),
            ("::ffff:10.77.0.9", false, false),
            ("64:ff9b::127.0.0.1", false, false),
            ("127.0.0.1", false, false),
            ("::1", false, false),
            ("0.0.0.0", false, false),
            ("169.254.169.254", false, false),
            ("fe80::1", false, false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(default.may_reach(address, &own).is_ok(), by_default, "{address}");
            assert_eq!(kept_in.may_reach(address, &own).is_ok(), kept, "{address}");
        }
    }

    #[test]
    fn trusted_is_a_place_with_its_port_and_what_is_below_the_farms_own_images() {
        let fetching = Fetching {
            trusted: ["cache.lab:8000", "127.0.0.1:9000", "[::1]:*"].map(|text| text.parse().unwrap()).to_vec(),
            own_images: vec!["http://127.0.0.1:8420/images/".parse().unwrap()],
            private_networks: None,
        };
        let trusts = |url: &str| fetching.trusts(&url.parse().unwrap());
        for url in [
            "http://cache.lab:8000/a",
            "https://CACHE.lab:8000/",
            "http://127.0.0.1:9000/x",
            "http://0x7f.1:9000/x",
            "http://[::1]/x",
            "http://127.0.0.1:8420/images/kernel",
        ] {
            assert!(trusts(url), "{url}");
        }
        for url in [
            "http://cache.lab/a",
            "http://a.cache.lab:8000/",
            "http://127.0.0.1:8420/api/v1/jobs",
            "http://127.0.0.1:8420/images/../api/v1/jobs",
            "http://127.0.0.1:8420/images/%2e%2e/api/v1/jobs",
            "http://127.0.0.1:8420/images",
            "https://127.0.0.1:8420/images/kernel",
            "http://127.0.0.1/images/kernel",
            "http://127.0.0.1:9000@evil.example/",
        ] {
            assert!(!trusts(url), "{url}");
        }
    }

    #[test]
    fn addresses_of_the_farm_the_host_and_its_links_are_never_reached_in_whichever_disguise() {
        let everything = ["0.0.0.0/0", "::/0"].map(|text| text.parse().unwrap()).to_vec();
        let egress = Egress { private_networks: everything, ..Egress::default() };
        let own = ["10.77.0.1/24", "203.0.113.9/32", "2001:db8:7::/64"].map(|text| text.parse().unwrap());
        for address in [
            "10.77.0.1",
            "10.77.0.200",
            "203.0.113.9",
            "::ffff:10.77.0.1",
            "64:ff9b::10.77.0.1",
            "2001:db8:7::5",
            "127.0.0.1",
            "127.255.0.3",
            "::1",
            "::ffff:127.0.0.1",
            "64:ff9b::127.0.0.1",
            "::127.0.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "::ffff:0.0.0.0",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "febf::1",
            "224.0.0.251",
            "ff02::1",
            "255.255.255.255",
            "240.0.0.1",
            "2002:7f00:1::",
            "2001:0:1::1",
            "64:ff9b:1::1",
            "4000::1",
        ] {
            assert!(egress.may_reach(address.parse().unwrap(), &own).is_err(), "{address}");
        }
        for address in ["10.78.0.1", "fd00::1", "198.51.100.1", "2001:db8:8::1", "64:ff9b::198.51.100.1"] {
            assert_eq!(egress.may_reach(address.parse().unwrap(), &own), Ok(()), "{address}");
        }
    }

    #[test]
    fn a_private_address_takes_the_farms_word() {
        let egress = Egress { private_networks: vec!["10.1.0.0/16".parse().unwrap()], ..Egress::default() };
        assert_eq!(egress.may_reach("10.1.2.3".parse().unwrap(), &[]), Ok(()));
        assert_eq!(egress.may_reach("::ffff:10.1.2.3".parse().unwrap(), &[]), Ok(()));
        for address in ["10.2.0.1", "172.31.0.1", "192.168.1.1", "100.64.0.1", "fd00::1"] {
            let address = address.parse().unwrap();
            assert_eq!(egress.may_reach(address, &[]), Err(Denial::Address { address, what: PRIVATE }));
        }
        for wrong in ["10.1.0.0", "10.1.0.0/33", "::/129", "x/8", "10.1.0.0/"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
