//! The machines of the farm, and what leases do to them: the hardware's side of the [`Keeper`](crate::lease::Keeper).
//!
//! | kind | made | a lease on it is torn down | ended |
//! |---|---|---|---|
//! | DUT | drivers, its console opened, an address reserved | power off, read back | off; drivers, console and address are gone |
//! | boot namespace | – | nothing is published, DHCP forgets the boot | – |
//! | console, power, gear | – | – | – |
//! | host, working copy | `hosts.rs` | | |
//!
//! Everything may be done again after a crash: a machine that is not there is off.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, ready};
use gateway::Gateway;
use gateway::dhcp::{Mac, Reservation};

use super::Current;
use super::Listeners;
use super::boot_namespace::BootNamespace;
use super::hardware::Hardware;
use super::hold::Listener;
use super::hosts::Hosts;
use super::network::{Drivers, Network};
use super::record::Records;
use super::start::StartError;
use crate::blueprint::dut::console_name;
use crate::blueprint::power::{PowerError, PowerState};
use crate::config::{DutConfig, FarmConfig, HardwareConfig, MachineConfig, Whose};
use crate::console::{Consoles, Hub, Owner, Ports};
use crate::interface::Power;
use crate::lease::actor::Outside;
use crate::lease::rows::{Effect, Kind, Lease, Resource, ResourceId};
use crate::lease::{EffectError, Effects, Pass, Reconciled};
use crate::outlets::{Switch, Unit, User};
use crate::session::Event;

/// A machine with its drivers. When the farm file says something else of it that needs no other drivers, a clone that says so takes its
/// place; whoever holds the machine goes on with what he has.
#[derive(Clone)]
pub(super) struct Dut {
    pub config: DutConfig,
    pub mac: Mac,
    pub console: Arc<Hub>,
    pub boot: Arc<BootNamespace>,
    pub listener: Arc<Listener>,
    /// Its console's ports, while somebody leases it.
    pub console_ports: Arc<Ports>,
    pub outlet: Switch,
    /// How often it was switched on since that was last written down.
    boots: Arc<AtomicU64>,
    gateway: Arc<Gateway>,
}

/// The machines that exist, by name.
pub(super) struct Machines {
    config: Current,
    network: Network,
    /// The units and consoles that several machines name.
    hardware: Mutex<Arc<Hardware>>,
    consoles: Arc<Consoles>,
    /// Consoles of the farm file that no machine has.
    watched: Mutex<BTreeSet<String>>,
    gateway: Arc<Gateway>,
    listeners: Weak<Listeners>,
    records: Arc<Records>,
    /// Where virtual machines keep their sockets.
    runtime: PathBuf,
    /// The keeper makes machines from a thread of its own, and their drivers have tasks.
    tasks: tokio::runtime::Handle,
    duts: Mutex<BTreeMap<String, Arc<Dut>>>,
    hosts: Hosts,
}

impl Machines {
    /// The machines of the farm file, set up.
    pub(super) fn new(
        config: Current,
        network: Network,
        consoles: Arc<Consoles>,
        gateway: Arc<Gateway>,
        listeners: &Arc<Listeners>,
        records: Arc<Records>,
        runtime: PathBuf,
    ) -> Result<Machines, StartError> {
        let hardware = Mutex::new(Arc::new(Hardware::of(&config.get(), None)?));
        let (listeners, duts) = (Arc::downgrade(listeners), Mutex::default());
        let tasks = tokio::runtime::Handle::current();
        let hosts = Hosts::new(config.clone());
        let watched = Mutex::default();
        let machines = Machines {
            config,
            network,
            hardware,
            consoles,
            watched,
            gateway,
            listeners,
            records,
            runtime,
            tasks,
            duts,
            hosts,
        };
        for dut in &machines.config.get().duts {
            machines.set_up(dut)?;
        }
        machines.watch_free_lines();
        Ok(machines)
    }

    /// Where sockets of the DUTs' network are opened.
    pub(super) fn net(&self) -> gateway::net::Net {
        self.network.net()
    }

    /// The machines that run commands and keep files.
    pub(super) fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// A machine, by its resource's name.
    pub(super) fn get(&self, name: &str) -> Option<Arc<Dut>> {
        self.lock().get(name).cloned()
    }

    /// All machines that exist.
    pub(super) fn all(&self) -> Vec<Arc<Dut>> {
        self.lock().values().cloned().collect()
    }

    /// Makes the drivers of a machine and reserves its address. A machine that exists is left as it is.
    pub(super) fn set_up(&self, config: &DutConfig) -> Result<(), StartError> {
        let _entered = self.tasks.enter();
        if self.get(&config.id).is_some() {
            return Ok(());
        }
        let failed = |reason: String| StartError::Machine { dut: config.full_name.clone(), reason };
        let mac: Mac = config.mac.parse().map_err(|error| failed(format!("{error}")))?;
        let Drivers { outlet, console } =
            self.network.drivers(config, &self.hardware(), &self.gateway, &self.runtime)?;
        let console = self.consoles.open(&console_of(config), console, Some(owner(config)));
        let console = console.map_err(|error| failed(format!("its console's log cannot be kept: {error}")))?;
        let reservation = Reservation { mac, address: config.address, hostname: Some(config.full_name.clone()) };
        self.gateway.dhcp().reserve(reservation).map_err(|error| failed(error.to_string()))?;
        outlet.belongs_to(Some(self.user(config)));
        let (config, boot) = (config.clone(), Arc::default());
        let (listener, console_ports, gateway) = (Arc::default(), Arc::default(), Arc::clone(&self.gateway));
        let boots = Arc::default();
        let dut = Dut { config, mac, console, boot, listener, console_ports, outlet, boots, gateway };
        self.lock().insert(dut.config.id.clone(), Arc::new(dut));
        Ok(())
    }

    /// The drivers of a machine that is none of the farm's.
    pub(super) fn drivers_of(&self, config: &DutConfig) -> Result<Drivers, StartError> {
        self.network.drivers(config, &self.hardware(), &self.gateway, &self.runtime)
    }

    /// The units and consoles that several machines name.
    pub(super) fn hardware(&self) -> Arc<Hardware> {
        Arc::clone(&self.hardware.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Machines that are made from now on name these.
    pub(super) fn use_hardware(&self, hardware: Arc<Hardware>) {
        *self.hardware.lock().unwrap_or_else(PoisonError::into_inner) = hardware;
        self.watch_free_lines();
    }

    /// Consoles of the farm file that no machine has are listened to as well: somebody may be plugged in there.
    fn watch_free_lines(&self) {
        let hardware = self.hardware();
        let of_machines: BTreeSet<_> = self.all().iter().map(|dut| dut.console.name().to_owned()).collect();
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in watched.iter().filter(|name| !of_machines.contains(*name) && hardware.console(name).is_none()) {
            self.consoles.close(gone, "the farm file no longer has it");
        }
        watched.clear();
        for (name, driver) in hardware.consoles().filter(|(name, _)| !of_machines.contains(*name)) {
            watched.insert(name.clone());
            if let Err(error) = self.consoles.open(name, Arc::clone(driver), None) {
                tracing::error!(console = name, %error, "nobody listens to the console: its log cannot be kept");
            }
        }
    }

    /// What the farm file says now of machines that stay what they are.
    pub(super) fn follow(&self, config: &FarmConfig) {
        let mut duts = self.lock();
        for (name, dut) in duts.iter_mut() {
            let Some(says) =
                config.member(name).filter(|says| *says != dut.config && is_driven_alike(says, &dut.config))
            else {
                continue;
            };
            let hostname = Some(says.full_name.clone());
            if says.full_name != dut.config.full_name
                && let Err(error) =
                    self.gateway.dhcp().reserve(Reservation { mac: dut.mac, address: says.address, hostname })
            {
                tracing::warn!(dut = says.full_name, %error, "the machine is not told its new name");
            }
            self.consoles.belongs_to(dut.console.name(), Some(owner(&says)));
            dut.outlet.belongs_to(Some(self.user(&says)));
            *dut = Arc::new(Dut { config: says, ..Dut::clone(dut) });
        }
    }

    /// A job hears when somebody else switches its machine.
    fn user(&self, config: &DutConfig) -> User {
        let (listeners, mac) = (Weak::clone(&self.listeners), config.mac.clone());
        let changed = move |state: PowerState| {
            let text = format!("its outlet was switched {state} by somebody else");
            if let Some(listeners) = listeners.upgrade() {
                listeners.tell(&mac, Event::Evidence(text));
            }
        };
        User { dut: config.full_name.clone(), off_time: config.off_time, changed: Arc::new(changed) }
    }

    /// All power units: those of the farm file, then those of single machines.
    pub(super) fn units(&self) -> Vec<Arc<Unit>> {
        let mut units = self.hardware().units();
        for dut in self.all() {
            if !units.iter().any(|unit| Arc::ptr_eq(unit, dut.outlet.unit())) {
                units.push(Arc::clone(dut.outlet.unit()));
            }
        }
        units
    }

    /// The machine that a lease is on, or is a part of.
    fn of(&self, lease: &Lease) -> Option<Arc<Dut>> {
        let name = name_of(lease.resource.as_ref()?);
        match lease.request.want.kind {
            Kind::Dut => self.get(name),
            // It was made for a lease on the DUT, and is called after it.
            Kind::BootNamespace => self.get(name.strip_suffix(&format!("-{}", Kind::BootNamespace))?),
            Kind::Console | Kind::Power | Kind::Gear | Kind::WorkingCopy | Kind::Host => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Dut>>> {
        self.duts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the drivers of one are good for the other.
pub(super) fn is_driven_alike(one: &DutConfig, other: &DutConfig) -> bool {
    (&one.mac, one.address, &one.machine) == (&other.mac, other.address, &other.machine)
}

/// What a machine's console is called: as its line, if it has one of the farm file's.
fn console_of(config: &DutConfig) -> String {
    match &config.machine {
        MachineConfig::Hardware(HardwareConfig { console: Whose::Named(line), .. }) => line.clone(),
        MachineConfig::Hardware(_) | MachineConfig::Qemu(_) | MachineConfig::Simulated(_) => console_name(&config.id),
    }
}

fn owner(config: &DutConfig) -> Owner {
    Owner { id: config.id.clone(), full_name: config.full_name.clone(), mac: config.mac.clone() }
}

/// The host that a lease is on.
fn host_of(lease: &Lease) -> Option<String> {
    let resource = lease.resource.as_ref().filter(|_| lease.request.want.kind == Kind::Host)?;
    Some(name_of(resource).to_owned())
}

/// A row is called `<name>#<serial>`.
fn name_of(resource: &ResourceId) -> &str {
    resource.as_str().rsplit_once('#').map_or(resource.as_str(), |(name, _)| name)
}

impl Effects for Machines {
    fn activate(&self, lease: &Lease, _: Option<Pass>) -> BoxFuture<'static, Result<(), EffectError>> {
        match host_of(lease) {
            Some(host) => self.hosts.clone().activate(host, lease.clone()).boxed(),
            None => ready(Ok(())).boxed(),
        }
    }

    fn revoke(&self, lease: &Lease) -> BoxFuture<'static, ()> {
        self.hosts.revoke(lease.id());
        ready(()).boxed()
    }

    fn tear_down(&self, lease: &Lease) -> BoxFuture<'static, Result<(), EffectError>> {
        if let Some(host) = host_of(lease) {
            return self.hosts.clone().tear_down(host, lease.clone()).boxed();
        }
        let Some(dut) = self.of(lease) else { return ready(Ok(())).boxed() };
        let records = Arc::clone(&self.records);
        match lease.request.want.kind {
            Kind::Dut => async move {
                dut.console_ports.close();
                let boots = dut.boots.swap(0, Ordering::Relaxed);
                records.change(&dut.config.id, |record| record.boots += boots);
                let off = dut.switch_off().await;
                dut.listener.close().await;
                off.map_err(|error| {
                    EffectError::Retry(format!("{} cannot be switched off: {error}", dut.config.full_name))
                })
            }
            .boxed(),
            Kind::BootNamespace => {
                dut.boot.close();
                ready(Ok(())).boxed()
            }
            Kind::Console | Kind::Power | Kind::Gear | Kind::WorkingCopy | Kind::Host => ready(Ok(())).boxed(),
        }
    }

    fn make(&self, resource: &Resource) -> BoxFuture<'static, Result<Vec<(String, String)>, EffectError>> {
        let facts = |config: &DutConfig| {
            vec![("mac".to_owned(), config.mac.clone()), ("address".to_owned(), config.address.to_string())]
        };
        if resource.kind == Kind::Host {
            return self.hosts.clone().make(resource.name.clone(), resource.id.to_string()).boxed();
        }
        let made = match (resource.kind, self.config.get().member(&resource.name)) {
            (Kind::Dut, None) => {
                Err(EffectError::Permanent(format!("the farm file has no machine `{}`", resource.name)))
            }
            (Kind::Dut, Some(config)) => {
                self.set_up(&config).map(|()| facts(&config)).map_err(|error| EffectError::Retry(error.to_string()))
            }
            (Kind::BootNamespace | Kind::Console | Kind::Power | Kind::Gear | Kind::WorkingCopy | Kind::Host, _) => {
                Ok(Vec::new())
            }
        };
        ready(made).boxed()
    }

    fn unmake(&self, resource: &Resource) -> BoxFuture<'static, Result<(), EffectError>> {
        if resource.kind == Kind::Host {
            return self.hosts.clone().unmake(resource.name.clone()).boxed();
        }
        let found = self.get(&resource.name).filter(|_| resource.kind == Kind::Dut);
        let Some(dut) = found else { return ready(Ok(())).boxed() };
        self.gateway.dhcp().forget(dut.mac);
        dut.outlet.belongs_to(None);
        // From here on nobody finds it; the machine itself goes with its last handle.
        self.lock().remove(&resource.name);
        self.consoles.close(dut.console.name(), "its machine is no more");
        self.watch_free_lines();
        async move { dut.switch_off().await.map_err(|error| EffectError::Retry(error.to_string())) }.boxed()
    }

    /// Making a machine twice is making it once.
    fn reconcile(&self, _: &Effect) -> BoxFuture<'static, Reconciled> {
        ready(Reconciled::NotApplied).boxed()
    }

    fn enumerate(&self) -> BoxFuture<'static, Vec<Outside>> {
        self.hosts.clone().enumerate().boxed()
    }

    fn remove(&self, _: &str, name: &str) -> BoxFuture<'static, Result<(), EffectError>> {
        self.hosts.clone().unmake(name.to_owned()).boxed()
    }
}

impl Dut {
    /// The address that it boots with.
    pub(super) fn address(&self) -> IpAddr {
        IpAddr::V4(self.config.address)
    }

    /// Whether it goes on when this process ends.
    pub(super) fn outlives_us(&self) -> bool {
        match self.config.machine {
            MachineConfig::Qemu(_) | MachineConfig::Simulated(_) => false,
            MachineConfig::Hardware(_) => true,
        }
    }

    /// Its outlet, for the holder of a lease.
    pub(super) fn power(self: &Arc<Self>, pass: Pass) -> Power {
        let dut = Arc::clone(self);
        let went = move |state| match state {
            PowerState::On => drop(dut.boots.fetch_add(1, Ordering::Relaxed)),
            PowerState::Off => {
                // What it had attached is closed before it can come up again: a boot takes longer than this.
                let dut = Arc::clone(&dut);
                tokio::spawn(async move { dut.gateway.drop_connections(dut.address()).await });
            }
        };
        Power::new(self.outlet.clone(), pass, Arc::new(went))
    }

    /// Off, and it reads back so. Without a pass: for tear-downs and for the start.
    pub(super) async fn switch_off(&self) -> Result<(), PowerError> {
        self.outlet.set(PowerState::Off).await?;
        self.gateway.drop_connections(self.address()).await;
        Ok(())
    }

    /// What is said of its outlet when nobody waits for it any more.
    pub(super) fn no_answer(&self, time: Duration) -> PowerError {
        let reason = format!("its unit, {}, did not do it within {} s", self.outlet.unit().name, time.as_secs());
        PowerError { outlet: self.outlet.outlet().0.clone(), reason }
    }

    /// Reads the outlet of a DUT that is held: its lease's tear-down may be done already, and nobody else would look.
    pub(super) async fn look_at_power(&self) -> Result<(), PowerError> {
        self.outlet.state().await.map(drop)
    }

    /// The outlet as it was last read.
    pub(super) fn power_seen(&self) -> Option<PowerState> {
        self.outlet.seen()
    }
}
