//! The network that the DUTs are on: made or found, with the gateway's place on it and the wires of virtual machines.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use gateway::content::cache::Route;
use gateway::dhcp::{DhcpEvent, Mac, Outcome, Silence};
use gateway::net::Net;
use gateway::{Gateway, Ports};

use super::Listeners;
use super::announced::Announcements;
use super::discovery::Strangers;
use super::hardware::Hardware;
use super::start::StartError;
use crate::blueprint::console::Console;
use crate::blueprint::console::qemu::QemuConsole;
use crate::blueprint::console::simulated::SimulatedConsole;
use crate::blueprint::power::qemu::QemuPdu;
use crate::blueprint::power::simulated::SimulatedPdu;
use crate::blueprint::power::{Outlet, Pdu};
use crate::config::{DutConfig, FarmConfig, LOOPBACK_GATEWAY, MachineConfig, NetworkConfig};
use crate::outlets::{Policy, Store, Switch, Unit};
use crate::session::Event;
use crate::virtual_dut::network::{NetworkError, PrivateNetwork};
use crate::virtual_dut::{install, qemu, simulated};

/// Where in the server's state the farm's own certificate authority is kept.
pub const AUTHORITY: &str = "authority";
/// Container images of other registries, beside it.
const IMAGES: &str = "images";
/// Times that jobs of one DUT are told that it takes a wrong address: anybody on its link can say so in its name, as often as he likes.
const COMPLAINTS_MAX: u32 = 100;

/// The network that DUTs are on, made or found.
pub(super) struct Network {
    /// The gateway's address.
    pub address: Ipv4Addr,
    prefix_length: u8,
    interface: Option<String>,
    private: Option<Arc<PrivateNetwork>>,
}

impl Network {
    /// The network of the farm file.
    pub(super) fn of(config: &FarmConfig) -> Result<Network, NetworkError> {
        Ok(match &config.network {
            NetworkConfig::Private { address, prefix_length } => {
                let private = PrivateNetwork::create(*address, *prefix_length)?;
                let interface = Some(private.bridge().to_owned());
                Network {
                    address: *address,
                    prefix_length: *prefix_length,
                    interface,
                    private: Some(Arc::new(private)),
                }
            }
            NetworkConfig::Interface { name, address, prefix_length } => Network {
                address: *address,
                prefix_length: *prefix_length,
                interface: Some(name.clone()),
                private: None,
            },
            NetworkConfig::Loopback => {
                Network { address: LOOPBACK_GATEWAY, prefix_length: 8, interface: None, private: None }
            }
        })
    }

    /// The gateway of a farm on this network.
    pub(super) fn gateway_config(
        &self,
        config: &FarmConfig,
        listeners: &Arc<Listeners>,
        strangers: &Arc<Strangers>,
        announcements: &Arc<Announcements>,
    ) -> Result<gateway::Config, StartError> {
        let (listeners, complaints) = (Arc::clone(listeners), Mutex::new(HashMap::new()));
        let (strangers, announcements) = (Arc::clone(strangers), Arc::clone(announcements));
        let tell = move |event| {
            tell(&listeners, &mut complaints.lock().unwrap_or_else(PoisonError::into_inner), &event);
            strangers.hear(&event);
            announcements.hear(&event);
        };
        Ok(gateway::Config {
            net: self.net(),
            interface: self.interface.clone(),
            address: self.address,
            prefix_length: self.prefix_length,
            ports: if self.interface.is_some() { Ports::standard() } else { Ports::ephemeral() },
            dhcp_role: config.dhcp,
            dhcp_observer: Arc::new(tell),
            tftp_engine: config.tftp_engine,
            cache_directory: install::cache_folder()?.join("artifacts"),
            stores: config.stores.clone().into(),
            registry: config.registry.clone().map(|settings| gateway::registry::Config {
                settings,
                directory: config.state.join(IMAGES),
                route: Route::Environment,
            }),
            authority_directory: Some(config.state.join(AUTHORITY)),
            ..gateway::Config::default()
        })
    }

    /// Where sockets of this network are opened.
    pub(super) fn net(&self) -> Net {
        self.private.as_ref().map(|private| private.net()).unwrap_or_default()
    }

    /// The drivers of a machine. A virtual one is a PDU with one outlet, named as its DUT.
    pub(super) fn drivers(
        &self,
        dut: &DutConfig,
        hardware: &Hardware,
        gateway: &Gateway,
        runtime: &Path,
    ) -> Result<Drivers, StartError> {
        let failed = |reason: String| StartError::Machine { dut: dut.full_name.clone(), reason };
        let outlet = Outlet(dut.full_name.clone());
        match &dut.machine {
            MachineConfig::Qemu(config) => {
                let private =
                    self.private.as_ref().ok_or_else(|| failed("a QEMU machine needs the private network".into()))?;
                let (name, uuid) = (&dut.full_name, uuid_of(&dut.mac));
                let machine = qemu::Machine::new(config.clone(), name, &dut.mac, &uuid, Arc::clone(private), runtime);
                let machine = Arc::new(machine.map_err(|error| failed(error.to_string()))?);
                let pdu = Arc::new(QemuPdu::new(Arc::clone(&machine)));
                let outlet = virtual_outlet("qemu", pdu, &outlet).map_err(failed)?;
                Ok(Drivers { outlet, console: Arc::new(QemuConsole::new(machine)) })
            }
            MachineConfig::Simulated(config) => {
                let wire = match &self.private {
                    Some(private) => simulated::Wire::Private(Arc::new(private.port(&dut.mac)?)),
                    None => loopback_wire(dut, gateway)
                        .ok_or_else(|| failed("the gateway serves no DHCP or no TFTP".into()))?,
                };
                let machine = simulated::Machine::new(config.clone(), &dut.mac, wire)
                    .map_err(|error| failed(error.to_string()))?;
                let pdu = Arc::new(SimulatedPdu::new([(outlet.clone(), Arc::clone(&machine))]));
                let outlet = virtual_outlet("simulated", pdu, &outlet).map_err(failed)?;
                Ok(Drivers { outlet, console: Arc::new(SimulatedConsole::new(machine)) })
            }
            MachineConfig::Hardware(config) => hardware.drivers(dut, config).map_err(failed),
        }
    }
}

/// The outlet of a machine that ends with us: nothing of it is kept.
fn virtual_outlet(driver: &'static str, pdu: Arc<dyn Pdu>, outlet: &Outlet) -> Result<Switch, String> {
    let make = move || Ok(Arc::clone(&pdu));
    let unit = Unit::new(&outlet.0, driver, Box::new(make), Policy::VIRTUAL, Vec::new(), Arc::new(Store::none()))?;
    Ok(unit.switch(outlet))
}

fn loopback_wire(dut: &DutConfig, gateway: &Gateway) -> Option<simulated::Wire> {
    let addresses = gateway.addresses();
    Some(simulated::Wire::Loopback { address: dut.address, dhcp: addresses.dhcp?, tftp_port: addresses.tftp?.port() })
}

/// A machine's UUID: the same for the same MAC, version 4's form (RFC 9562), as firmware shows it in option 97.
fn uuid_of(mac: &str) -> String {
    let digits: String = mac.chars().filter(char::is_ascii_hexdigit).collect();
    format!("00000000-0000-4000-8000-{digits}")
}

/// What a machine is driven by.
pub(super) struct Drivers {
    pub outlet: Switch,
    pub console: Arc<dyn Console>,
}

/// A DHCP request of a leased DUT's firmware: its session waits for it. A booted system that renews its address is not firmware. One
/// that takes an address by which nobody knows it is told so: it will read nothing.
fn tell(listeners: &Listeners, complaints: &mut HashMap<Mac, u32>, event: &DhcpEvent) {
    if event.client.boots_from_network() {
        listeners.tell(&event.mac.to_string(), Event::FirmwareSeen);
    }
    if let Outcome::Unanswered(silence @ Silence::AnotherAddress { .. }) = event.outcome
        && let count = complaints.entry(event.mac).or_default()
        && *count < COMPLAINTS_MAX
    {
        *count += 1;
        listeners.tell(&event.mac.to_string(), Event::Evidence(format!("DHCP: {silence}")));
    }
}
