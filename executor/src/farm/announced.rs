//! Power units that tell of themselves: on the farm's network, or by being plugged into this host.
//!
//! ```text
//!  DHCP: who is no machine of the farm, by MAC, as long as the server runs ─┐
//!  mDNS: _shelly._tcp, _http._tcp, asked for while somebody waits ──────────┼─► what is known of it ─► once each ─► for the farm file
//!  USB: the hubs of this host, both halves of each ─────────────────────────┘
//! ```
//! Nothing is added by itself: what an admin wants of it, he pastes under `pdus`, or adopts (adopted_pdus.rs).

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::select_all;
use gateway::dhcp::{DhcpEvent, Mac, Machine};
use gateway::net::Net;
use mdns_sd::{IfKind, ResolvedService, ServiceDaemon, ServiceEvent};
use tokio::time::timeout;

use super::Farm;
use crate::blueprint::driver::Chosen;
use crate::blueprint::power::announced::{Candidate, Heard, once_each, place_of};
use crate::blueprint::power::usb_hub::Hub;
use crate::config::NetworkConfig;

/// Clients of DHCP that are remembered: some racks of plugs. The next one is not, and is found by mDNS.
const HEARD_MAX: usize = 256;
/// Services that power units announce (announced.rs has the evidence).
const SERVICES: &[&str] = &["_shelly._tcp", "_http._tcp"];

/// Clients of DHCP that are no machines of the farm.
#[derive(Default)]
pub(super) struct Announcements(Mutex<BTreeMap<Mac, Heard>>);

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct FoundPdus {
    /// Units, and what the farm file calls those that it has already.
    pub units: Vec<(Candidate, Option<String>)>,
    /// What could not be looked at.
    pub problems: Vec<String>,
}

impl Announcements {
    /// One request.
    pub(super) fn hear(&self, event: &DhcpEvent) {
        if event.machine != Machine::Unknown || event.client.boots_from_network() {
            return;
        }
        let (mac, address) = (event.mac.to_string(), event.address.map(IpAddr::V4));
        let (host_name, vendor_class) = (event.host_name.clone(), event.vendor_class.clone());
        let heard = Heard::Dhcp { mac, address, host_name, vendor_class };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if Candidate::of(&heard).is_some() && (all.len() < HEARD_MAX || all.contains_key(&event.mac)) {
            all.insert(event.mac, heard);
        }
    }

    fn all(&self) -> Vec<Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

impl Farm {
    /// The power units that tell of themselves; on the network they get this long for it.
    pub async fn find_pdus(&self, listen: Duration) -> FoundPdus {
        self.find_pdus_until(listen, |_| false).await
    }

    /// The same, and no longer than until the one that is looked for was heard.
    pub(super) async fn find_pdus_until(&self, listen: Duration, is_wanted: impl Fn(&Candidate) -> bool) -> FoundPdus {
        let config = self.planner.config.get();
        let mut problems = Vec::new();
        let mut heard = self.announcements.all();
        let is_enough = |heard: &Heard| Candidate::of(heard).is_some_and(|unit| is_wanted(&unit));
        match services(&self.machines.net(), &config.network, listen, is_enough).await {
            Ok(services) => heard.extend(services),
            Err(error) => problems.push(format!("mDNS: {error}")),
        }
        match Hub::pairs(Path::new("/sys")) {
            Ok(hubs) => heard.extend(hubs.into_iter().map(Heard::Usb)),
            // A host without USB has no such folder.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => problems.push(format!("USB: {error}")),
        }
        // Of two words of one unit the one that has its address counts.
        heard.sort_by_key(|heard| matches!(heard, Heard::Dhcp { .. }));
        let named = |unit: Candidate| {
            let known = config.pdus.iter().find(|pdu| is_it(&unit, &pdu.unit)).map(|pdu| pdu.name.clone());
            (unit, known)
        };
        let units = once_each(heard.iter().filter_map(Candidate::of).collect());
        FoundPdus { units: units.into_iter().map(named).collect(), problems }
    }
}

/// Whether it is this unit of the farm's: by its address on the network, or by its place on the bus.
fn is_it(unit: &Candidate, known: &Chosen) -> bool {
    match unit.address {
        Some(address) => names(&known.keys, address),
        None => known.driver == unit.driver && unit.place().is_some_and(|place| Some(place) == place_of(&known.keys)),
    }
}

/// Whether these keys of a driver are of the unit with this address.
fn names(keys: &serde_json::Value, address: IpAddr) -> bool {
    let host = keys.get("host").and_then(serde_json::Value::as_str).unwrap_or_default();
    let name = host
        .parse::<std::net::Ipv6Addr>()
        .map_or_else(|_| host.rsplit_once(':').map_or(host, |(name, _)| name), |_| host);
    name.trim_matches(['[', ']']) == address.to_string()
}

/// What announces itself on the farm's network within this time.
async fn services(
    net: &Net,
    network: &NetworkConfig,
    listen: Duration,
    is_enough: impl Fn(&Heard) -> bool,
) -> Result<Vec<Heard>, String> {
    // Its thread is started inside the network, and with it the sockets that it makes.
    let daemon = net.run(|| ServiceDaemon::new().map_err(io::Error::other)).map_err(|error| error.to_string())?;
    let heard = hear_services(&daemon, network, listen, is_enough).await.map_err(|error| error.to_string());
    // It ends with its last handle, too.
    let _ = daemon.shutdown();
    heard
}

async fn hear_services(
    daemon: &ServiceDaemon,
    network: &NetworkConfig,
    listen: Duration,
    is_enough: impl Fn(&Heard) -> bool,
) -> mdns_sd::Result<Vec<Heard>> {
    let only = match network {
        // Of a private network all interfaces are the farm's.
        NetworkConfig::Private { .. } => None,
        NetworkConfig::Interface { name, .. } => Some(IfKind::Name(name.clone())),
        NetworkConfig::Loopback => Some(IfKind::LoopbackV4),
    };
    if let Some(only) = only {
        daemon.disable_interface(IfKind::All)?;
        daemon.enable_interface(only)?;
    }
    let browse = |service: &&str| daemon.browse(&format!("{service}.local."));
    let browsed = SERVICES.iter().map(browse).collect::<mdns_sd::Result<Vec<_>>>()?;
    let mut events = select_all(browsed.into_iter().map(|events| events.into_stream()));
    let mut heard = Vec::new();
    // The time is over when it is over: what was heard until then is all.
    let _ = timeout(listen, async {
        while let Some(event) = events.next().await {
            if let ServiceEvent::ServiceResolved(service) = event {
                let service = heard_of(&service);
                let is_last = is_enough(&service);
                heard.push(service);
                if is_last {
                    return;
                }
            }
        }
    })
    .await;
    Ok(heard)
}

fn heard_of(service: &ResolvedService) -> Heard {
    let kind = service.ty_domain.trim_end_matches(".local.").to_owned();
    let instance = service.fullname.split_once(&format!(".{kind}")).map_or(&*service.fullname, |(name, _)| name);
    let mut addresses: Vec<IpAddr> = service.addresses.iter().map(mdns_sd::ScopedIp::to_ip_addr).collect();
    // An address of IPv4 first: one of a link needs the link beside it.
    addresses.sort();
    Heard::Mdns {
        service: kind,
        instance: instance.to_owned(),
        address: addresses.first().copied(),
        port: service.port,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_hub_of_the_farm_file_is_known_by_its_place() {
        let keys = "controller: \"0000:00:14.0\", devices: [{devpath: \"1.4\", vendor: \"05e3\", product: \"0610\"}]";
        let (heard, name) = ("USB: 4 ports".to_owned(), "usb-hub-1-1-4".to_owned());
        let hub = Candidate { name, what: "a hub", heard, address: None, driver: "usb-hub", keys: keys.to_owned() };
        let known = |devpath: &str| {
            let keys = json!({ "controller": "0000:00:14.0", "devices": [{ "devpath": devpath }], "switch": "sysfs" });
            is_it(&hub, &Chosen { driver: "usb-hub", keys, directory: std::path::PathBuf::new() })
        };
        assert!(known("1.4") && !known("1.3"));
    }

    #[test]
    fn a_unit_of_the_farm_file_is_known_by_its_address() {
        let address: IpAddr = [10, 0, 0, 30].into();
        assert!(names(&json!({ "host": "10.0.0.30" }), address));
        assert!(names(&json!({ "host": "10.0.0.30:8080" }), address));
        assert!(!names(&json!({ "host": "10.0.0.3" }), address));
        assert!(!names(&json!({ "chip": "gpiochip0" }), address));
        let address: IpAddr = "fd00::30".parse().unwrap();
        assert!(names(&json!({ "host": "fd00::30" }), address));
        assert!(names(&json!({ "host": "[fd00::30]:8080" }), address));
    }
}
