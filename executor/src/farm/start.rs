//! A farm from its configuration: the network, the gateway on it, the machines, everything off.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use gateway::content::ContentError;
use gateway::dhcp::{DhcpEvent, Mac, Reservation};
use gateway::{Gateway, GatewayError, Ports};
use tokio::sync::watch;

use super::{Dut, Farm, Jobs, Listeners, Planner, ledger};
use crate::blueprint::console::Console;
use crate::blueprint::console::qemu::QemuConsole;
use crate::blueprint::console::simulated::SimulatedConsole;
use crate::blueprint::power::qemu::QemuPdu;
use crate::blueprint::power::simulated::SimulatedPdu;
use crate::blueprint::power::{Outlet, Pdu};
use crate::boot::Place;
use crate::config::{DutConfig, FarmConfig, LOOPBACK_GATEWAY, MachineConfig, NetworkConfig};
use crate::lease::Desk;
use crate::session::Event;
use crate::virtual_dut::network::{NetworkError, PrivateNetwork};
use crate::virtual_dut::{images, install, qemu, simulated};

/// Why a farm could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The private network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A server of the gateway.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    /// The artifact cache.
    #[error("cannot open the artifact cache: {0}")]
    Cache(#[from] ContentError),
    /// The folder of the cache.
    #[error(transparent)]
    Install(#[from] install::InstallError),
    /// A machine.
    #[error("cannot set up {dut}: {reason}")]
    Machine {
        /// Its full name.
        dut: String,
        /// What went wrong.
        reason: String,
    },
    /// The folder for jobs.
    #[error("cannot keep jobs in {path}: {source}")]
    State {
        /// The folder.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Farm {
    /// Starts the farm; its API will be at `api`, where the farm's own boot images are downloaded from.
    pub async fn start(mut config: FarmConfig, api: SocketAddr) -> Result<Arc<Farm>, StartError> {
        let state_lock = keep_state_in(&config.state)?;
        let (kept, last_number) = ledger::read(&config.state);
        images::add_variables(&mut config.job_variables, api);
        let listeners = Arc::new(Listeners::default());
        let network = Network::of(&config)?;
        let gateway = Gateway::start(network.gateway_config(&config, &listeners)?).await?;
        let addresses = gateway.addresses();
        let place = Place { address: network.address, http_port: addresses.http.map_or(80, |address| address.port()) };
        let runtime = qemu::RuntimeFolder::new()
            .map_err(|source| StartError::State { path: "a runtime folder".into(), source })?;
        let mut duts = BTreeMap::new();
        for dut in &config.duts {
            let Drivers { pdu, outlet, console } = network.drivers(dut, &gateway, runtime.path())?;
            reserve(&gateway, dut)?;
            let mac = mac_of(dut)?;
            duts.insert(
                dut.id.clone(),
                Arc::new(Dut { config: dut.clone(), mac, pdu, outlet, console, power: Mutex::default() }),
            );
        }
        let planner = Planner { config, place };
        let desk = Desk::new(planner.config.duts.iter().map(|dut| planner.candidate(dut)));
        let farm = Farm {
            planner,
            duts,
            desk,
            gateway,
            jobs: Mutex::new(Jobs { last_number, ..Jobs::default() }),
            listeners,
            stopping: watch::channel(false).0,
            carriers: Mutex::default(),
            quick_checks: Mutex::default(),
            _state_lock: state_lock,
            _runtime: runtime,
            _network: network.private,
        };
        let farm = Arc::new(farm);
        farm.switch_everything_off().await;
        farm.restore(kept).await;
        tokio::spawn(keep_the_cache_small(Arc::downgrade(&farm)));
        Ok(farm)
    }
}

impl Farm {
    /// No outlet is on without a lease: whatever an earlier run left on goes off before the first job comes. A DUT that will not go
    /// off is held back.
    async fn switch_everything_off(&self) {
        let switch = |dut: Arc<Dut>| async move {
            if let Err(error) = super::carry::power_off(&dut).await {
                tracing::error!(dut = dut.config.full_name, %error, "cannot switch the DUT off at the start");
                self.desk.hold_back(
                    &dut.config.id,
                    Some(format!("it could not be switched off when the farm started: {error}")),
                );
            }
        };
        futures_util::future::join_all(self.duts.values().cloned().map(switch)).await;
    }
}

/// Once a day, for as long as the farm lives, forgets downloads that no job has used for 60 days (CI-tron's period).
async fn keep_the_cache_small(farm: Weak<Farm>) {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let mut day = tokio::time::interval(DAY);
    loop {
        day.tick().await;
        let Some(farm) = farm.upgrade() else { return };
        match farm.gateway.cache().prune(60 * DAY).await {
            Ok(pruned) => tracing::debug!(?pruned, "old downloads are gone"),
            Err(error) => tracing::warn!(%error, "cannot prune the artifact cache"),
        }
    }
}

/// Makes the state folder and takes it for this process.
fn keep_state_in(path: &Path) -> Result<std::fs::File, StartError> {
    let locked = std::fs::create_dir_all(path).and_then(|()| ledger::lock(path));
    locked.map_err(|source| StartError::State { path: path.display().to_string(), source })
}

/// The network that DUTs are on, made or found.
struct Network {
    address: std::net::Ipv4Addr,
    prefix_length: u8,
    interface: Option<String>,
    private: Option<Arc<PrivateNetwork>>,
}

impl Network {
    fn of(config: &FarmConfig) -> Result<Network, NetworkError> {
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

    fn gateway_config(&self, config: &FarmConfig, listeners: &Arc<Listeners>) -> Result<gateway::Config, StartError> {
        let listeners = Arc::clone(listeners);
        Ok(gateway::Config {
            net: self.private.as_ref().map(|private| private.net()).unwrap_or_default(),
            interface: self.interface.clone(),
            address: self.address,
            prefix_length: self.prefix_length,
            ports: if self.interface.is_some() { Ports::standard() } else { Ports::ephemeral() },
            dhcp_range: config.dhcp_range,
            dhcp_observer: Arc::new(move |event| tell(&listeners, &event)),
            cache_directory: install::cache_folder()?.join("artifacts"),
            ..gateway::Config::default()
        })
    }

    /// The drivers of a machine. A virtual one is a PDU with one outlet, named as its DUT.
    fn drivers(&self, dut: &DutConfig, gateway: &Gateway, runtime: &Path) -> Result<Drivers, StartError> {
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
                Ok(Drivers { pdu, outlet, console: Arc::new(QemuConsole::new(machine)) })
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
                Ok(Drivers { pdu, outlet, console: Arc::new(SimulatedConsole::new(machine)) })
            }
        }
    }
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
struct Drivers {
    pdu: Arc<dyn Pdu>,
    outlet: Outlet,
    console: Arc<dyn Console>,
}

fn mac_of(dut: &DutConfig) -> Result<Mac, StartError> {
    let failed = |reason: String| StartError::Machine { dut: dut.full_name.clone(), reason };
    dut.mac.parse().map_err(|error| failed(format!("{error}")))
}

fn reserve(gateway: &Gateway, dut: &DutConfig) -> Result<(), StartError> {
    let failed = |reason: String| StartError::Machine { dut: dut.full_name.clone(), reason };
    let reservation = Reservation { mac: mac_of(dut)?, address: dut.address, hostname: Some(dut.full_name.clone()) };
    gateway.dhcp().reserve(reservation).map_err(|error| failed(error.to_string()))
}

/// A DHCP request of a leased DUT's firmware: its session waits for it. A booted system that renews its address is not firmware.
fn tell(listeners: &Listeners, event: &DhcpEvent) {
    if event.client.boots_from_network() {
        listeners.tell(&event.mac.to_string(), Event::FirmwareSeen);
    }
}
