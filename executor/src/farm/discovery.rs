//! Machines that register by being plugged in: from an unknown MAC to a DUT of the farm.
//!
//! ```text
//!  discover(outlet?) ─► what registers machines is made ready ─► outlet off, on ─► an unknown MAC asks for something to boot ─┐
//!        │                                                             ▲                                                      │ bound
//!        │  nothing came, cancelled ─► outlet off ◄────────────────────┴──── it boots, finds its console, posts what it is ◄──┘
//!        │                                                                              │
//!        ▼                                                                              ▼
//!   a record, told line by line ◄── in the farm, or why not yet ◄── merged ◄── inventory.yml ── outlet off, read back
//! ```
//! One discovery at a time: of two machines that come up at once nobody could say which is on the outlet. What a machine says is
//! written down before it is answered, so that a farm that is killed has it or has not told anybody so.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gateway::content::Content;
use gateway::dhcp::{Architecture, Mac, Role};
use gateway::namespace::Publication;
use serde_json::{Value, json};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

use self::record::Bind;
pub use self::record::{DiscoverAsk, DiscoverError, DiscoveryOutcome, DiscoveryRecord};
use self::said::Said;
pub(super) use self::strangers::{Sighting, Strangers};
use super::Farm;
use super::machines::Dut;
use crate::config::{FarmConfig, MachineConfig, SPARES, Unknown};
use crate::console::{self, Heard, Word};
use crate::inventory::{Entry, Inventory, InventoryError, OutletName, SetAside, outlet_of};

mod add;
mod boot;
mod left;
mod loaders;
mod outlets;
mod record;
mod registrar;
mod run;
mod said;
mod strangers;
mod view;

pub use add::{AddDut, AddError};
pub use loaders::LoaderView;
pub use outlets::OutletView;
pub use view::Found;

/// How long a machine that found its serial port is waited for on it: 40 bytes at 9,600 baud take 50 ms, and a console server as long again.
const CONSOLE_TIME: Duration = Duration::from_secs(5);

/// What a farm knows of machines that its file does not name.
pub(super) struct Discovery {
    pub inventory: Inventory,
    /// What the farm file says, without the inventory.
    file: Mutex<FarmConfig>,
    /// Machines of the inventory that are not in the farm.
    aside: Mutex<Vec<SetAside>>,
    strangers: Arc<Strangers>,
    /// The discovery that runs, or the last one.
    current: Mutex<Option<Arc<DiscoveryRecord>>>,
    last_id: AtomicU64,
    /// While the farm file lets machines register at any time, lines that are nobody's are answered at any time.
    listening: Mutex<Option<console::Discovery>>,
}

impl Discovery {
    /// With what the state folder has.
    pub(super) fn open(file: &FarmConfig, strangers: Arc<Strangers>) -> Result<Discovery, InventoryError> {
        let inventory = Inventory::open(&file.state)?;
        Ok(Discovery {
            inventory,
            file: Mutex::new(file.clone()),
            aside: Mutex::default(),
            strangers,
            current: Mutex::default(),
            last_id: AtomicU64::default(),
            listening: Mutex::default(),
        })
    }

    /// What the farm file said last.
    pub(super) fn file(&self) -> FarmConfig {
        lock(&self.file).clone()
    }

    /// The farm goes by this file from now on, `merged` with the inventory, and these machines are not in it.
    pub(super) fn goes_by(&self, file: FarmConfig, merged: &FarmConfig, aside: Vec<SetAside>) {
        self.strangers.make_room(&merged.duts.iter().map(|dut| dut.address).collect());
        for SetAside { entry, why, .. } in &aside {
            tracing::warn!(dut = entry.full_name, why, "a registered machine is not in the farm");
        }
        *lock(&self.file) = file;
        *lock(&self.aside) = aside;
    }

    /// The units that the farm file names.
    pub(super) fn pdus_of_the_file(&self) -> Vec<String> {
        lock(&self.file).pdus.iter().map(|pdu| pdu.name.clone()).collect()
    }

    /// Lets a machine of the farm say in its namespace what it is.
    pub(super) fn let_register(&self, dut: &Dut, publication: &Publication<Content>) {
        if let Some(registrar) = self.strangers.registrar(dut.mac, dut.address()) {
            registrar.answer_in(publication);
        }
    }

    /// The discovery that runs.
    fn running(&self) -> Option<Arc<DiscoveryRecord>> {
        lock(&self.current).clone().filter(|record| record.outcome().is_none())
    }
}

impl Farm {
    /// The machines that registered, or that somebody added.
    pub fn inventory(&self) -> &Inventory {
        &self.discovery.inventory
    }

    /// Those of them that are not in the farm, each with why.
    pub fn set_aside(&self) -> Vec<SetAside> {
        lock(&self.discovery.aside).clone()
    }

    /// The discovery that runs, or the last one.
    pub fn discovery(&self) -> Option<Arc<DiscoveryRecord>> {
        lock(&self.discovery.current).clone()
    }

    /// Forgets a registered machine: it leaves the farm when nobody holds it any more. Its id.
    pub async fn remove_dut(self: &Arc<Self>, name: &str) -> Result<String, AddError> {
        if self.inventory().find(name).is_none() {
            let config = self.config();
            let of_the_file = config.duts.iter().find(|dut| dut.id == name || dut.full_name == name);
            return Err(AddError::Wrong(match of_the_file {
                Some(dut) => format!("{} is in the farm file; remove it there, and `wharf reload`", dut.full_name),
                None => format!("no DUT `{name}`; `wharf duts` lists them"),
            }));
        }
        let (farm, name) = (Arc::clone(self), name.to_owned());
        let removed = tokio::task::spawn_blocking(move || farm.inventory().remove(&name)).await;
        let failed = |why: String| AddError::Farm(why);
        let (id, _) = removed.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))?;
        self.follow_inventory().await.map_err(|error| failed(error.to_string()))?;
        self.records.forget(&id);
        Ok(id)
    }

    /// Begins a discovery; follow its record.
    pub async fn discover(self: &Arc<Self>, ask: DiscoverAsk) -> Result<Arc<DiscoveryRecord>, DiscoverError> {
        let config = self.config();
        match config.dhcp {
            Role::Server { range: Some(_) } => {}
            Role::Server { range: None } => return Err(DiscoverError::NoRange),
            Role::Proxy => return Err(DiscoverError::Proxy),
        }
        let socket = match &ask.outlet {
            Some(outlet) => Some(self.socket(outlet).await?),
            None => None,
        };
        let record = {
            let mut current = lock(&self.discovery.current);
            if let Some(running) = current.as_ref().filter(|record| record.outcome().is_none()) {
                return Err(DiscoverError::Running(running.in_words()));
            }
            let id = self.discovery.last_id.fetch_add(1, Ordering::Relaxed) + 1;
            let record = DiscoveryRecord::new(id, ask);
            *current = Some(Arc::clone(&record));
            record
        };
        self.carriers().spawn(run::run(Arc::clone(self), Arc::clone(&record), socket));
        Ok(record)
    }

    /// A line for whoever waits for a machine.
    pub(super) fn tell_discovery(&self, line: &str) {
        if let Some(record) = self.discovery.running() {
            record.tell(line.to_owned());
        }
    }

    /// A machine says who it is. Written down before it is answered.
    async fn register(
        self: &Arc<Self>,
        mac: Mac,
        address: std::net::Ipv4Addr,
        said: Said,
    ) -> Result<Value, (u16, String)> {
        let id = mac.to_string();
        if self.inventory().find(&id).is_none() {
            if let Some(dut) = self.config().duts.iter().find(|dut| dut.mac == id) {
                tracing::info!(dut = dut.full_name, "a machine of the farm file registered; the farm file is right");
                return Ok(self.record(mac).expect("it is in the farm"));
            }
            let unknown = self.config().discovery.unknown;
            let record = may_register(self.discovery.running(), unknown, mac).map_err(|why| (403, why))?;
            let entry = self.entry_of(mac, address, said, record.as_deref()).await;
            self.keep(&id, entry).await?;
            match record {
                Some(record) => record.registered(&id),
                None => self.carriers_spawn_settle(mac),
            }
            return Ok(self.record(mac).expect("it was just written down"));
        }
        self.update(&id, address, said).await?;
        Ok(self.record(mac).expect("it is in the inventory"))
    }

    async fn entry_of(
        &self,
        mac: Mac,
        address: std::net::Ipv4Addr,
        said: Said,
        record: Option<&DiscoveryRecord>,
    ) -> Entry {
        let id = mac.to_string();
        let outlet = record.and_then(|record| record.outlet.clone());
        let console = self.console_of(&id, outlet.as_ref(), Ping::of(&said)).await;
        let sighting = record.and_then(DiscoveryRecord::sighting);
        let mut tags = said.tags;
        let mut facts = said.facts;
        for (key, value) in sighting.iter().flat_map(facts_of) {
            facts.entry(key).or_insert(value);
        }
        if tags.is_empty() {
            tags.extend(sighting.and_then(|sighting| sighting.architecture).iter().flat_map(|it| tags_of(*it)));
        }
        Entry {
            full_name: self.inventory().full_name(&self.config(), &said.base_name),
            base_name: said.base_name,
            mac_address: id,
            ip_address: address,
            tags,
            manual_tags: Vec::new(),
            power: outlet,
            console,
            local_tty_device: said.local_tty_device,
            firmware_boot_time_s: record.and_then(DiscoveryRecord::boot_time_s).or(said.firmware_boot_time_s),
            facts,
            comment: None,
            fastboot_serial: None,
            off_time_s: None,
            arrives: None,
            first_seen: jiff::Timestamp::now(),
        }
    }

    /// A machine that is known says what it is now. Its name stays, whatever it is made of.
    async fn update(self: &Arc<Self>, id: &str, address: std::net::Ipv4Addr, said: Said) -> Result<(), (u16, String)> {
        let (_, before) = self.inventory().find(id).ok_or_else(|| (404, format!("{id} is not registered")))?;
        let is_in_the_farm = self.config().duts.iter().any(|dut| dut.id == id);
        let console = match (&before.console, is_in_the_farm) {
            (None, false) => self.console_of(id, before.power.as_ref(), Ping::of(&said)).await,
            _ => before.console.clone(),
        };
        // What it does not say now is what it said before.
        let entry = Entry {
            tags: if said.tags.is_empty() { before.tags.clone() } else { said.tags },
            facts: if said.facts.is_empty() { before.facts.clone() } else { said.facts },
            local_tty_device: said.local_tty_device.or(before.local_tty_device.clone()),
            // A machine in the farm has its address for good.
            ip_address: if is_in_the_farm { before.ip_address } else { address },
            console,
            ..before.clone()
        };
        if entry == before {
            return Ok(());
        }
        self.keep(id, entry).await?;
        // While its discovery goes on, the outlet and the console are the discovery's: it takes the machine into the farm at its end.
        let is_being_found = |record: Arc<DiscoveryRecord>| record.who_registered().is_some_and(|who| who == id);
        if !self.discovery.running().is_some_and(is_being_found) {
            self.follow_soon();
        }
        Ok(())
    }

    async fn keep(self: &Arc<Self>, id: &str, entry: Entry) -> Result<(), (u16, String)> {
        let (farm, id) = (Arc::clone(self), id.to_owned());
        let kept = tokio::task::spawn_blocking(move || farm.inventory().put(&id, entry)).await;
        let failed = |why: String| (503, format!("the registration cannot be kept: {why}"));
        kept.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }

    /// What a machine may know of itself, in CI-tron's words: its `tags` are those that it said.
    pub(super) fn record(&self, mac: Mac) -> Option<Value> {
        let id = mac.to_string();
        if let Some((id, entry)) = self.inventory().find(&id) {
            return Some(json!({
                "id": id, "full_name": entry.full_name, "base_name": entry.base_name, "mac_address": entry.mac_address,
                "ip_address": entry.ip_address, "tags": entry.tags, "manual_tags": entry.manual_tags,
                "local_tty_device": entry.local_tty_device, "firmware_boot_time": entry.firmware_boot_time_s,
            }));
        }
        let config = self.config();
        let dut = config.duts.iter().find(|dut| dut.mac == id)?;
        Some(json!({
            "id": dut.id, "full_name": dut.full_name, "base_name": dut.base_name, "mac_address": dut.mac,
            "ip_address": dut.address, "tags": dut.tags, "manual_tags": [],
            "local_tty_device": null, "firmware_boot_time": null,
        }))
    }

    /// Where a DUT's power comes from, where that is an outlet of a unit that the farm file names.
    pub fn outlet_of(&self, dut: &str) -> Option<OutletName> {
        if let Some((_, entry)) = self.inventory().find(dut) {
            return entry.power;
        }
        match self.config().member(dut)?.machine {
            MachineConfig::Hardware(hardware) => outlet_of(&hardware.power),
            MachineConfig::Qemu(_) | MachineConfig::Simulated(_) => None,
        }
    }

    /// The console on which a machine said its name. One whose ping was answered is waited for: what it says on the line may come after
    /// what it says over the network. A spare's console is known before.
    async fn console_of(&self, id: &str, outlet: Option<&OutletName>, ping: Ping) -> Option<String> {
        if let Some(spare) = outlet.filter(|outlet| outlet.pdu == SPARES) {
            return Some(spare.outlet.clone());
        }
        let mut news = self.consoles().subscribe();
        let is_it = |said: &str| said.to_ascii_lowercase().replace('-', ":") == id;
        let said_before = || {
            let all = self.consoles().all();
            let free = all.iter().filter(|hub| self.consoles().owner(hub.name()).is_none());
            let mut names = free.map(|hub| hub.name().to_owned());
            names.find(|name| self.consoles().machine_id(name).is_some_and(|said| is_it(&said)))
        };
        if let Some(console) = said_before() {
            return Some(console);
        }
        let says_now = async {
            loop {
                match news.recv().await {
                    Ok(Heard { console, dut: None, word: Word::MachineId(said), refused: None, .. })
                        if is_it(&said) =>
                    {
                        return Some(console);
                    }
                    Ok(_) => {}
                    // What was missed is known to the desk.
                    Err(RecvError::Lagged(_)) => {
                        if let Some(console) = said_before() {
                            return Some(console);
                        }
                    }
                    Err(RecvError::Closed) => return None,
                }
            }
        };
        match ping {
            Ping::Answered => timeout(CONSOLE_TIME, says_now).await.ok().flatten(),
            Ping::None => None,
        }
    }

    /// The farm goes on with what the inventory says now, without anybody waiting for it.
    fn follow_soon(self: &Arc<Self>) {
        let farm = Arc::clone(self);
        self.carriers().spawn(async move {
            if let Err(error) = farm.follow_inventory().await {
                tracing::error!(%error, "the farm does not go by its inventory");
            }
        });
    }
}

/// Whether a machine that nobody knows may register now, and in which discovery.
fn may_register(
    running: Option<Arc<DiscoveryRecord>>,
    unknown: Unknown,
    mac: Mac,
) -> Result<Option<Arc<DiscoveryRecord>>, String> {
    let Some(record) = running else {
        return match unknown {
            Unknown::Always => Ok(None),
            Unknown::WhenDiscovered => Err("machines register here while `wharf dut discover` runs; or write \
                 `discovery: {unknown: always}` into the farm file"
                .to_owned()),
        };
    };
    match (record.bind(mac), unknown) {
        (Bind::Bound, _) => Ok(Some(record)),
        (Bind::Another(_), Unknown::Always) => Ok(None),
        (Bind::Another(other), Unknown::WhenDiscovered) => {
            Err(format!("{} is about {other}; try again when it is over", record.in_words()))
        }
    }
}

/// Whether the farm answered a machine on one of its serial ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ping {
    Answered,
    None,
}

impl Ping {
    fn of(said: &Said) -> Ping {
        if said.local_tty_device.is_some() { Ping::Answered } else { Ping::None }
    }
}

/// What its firmware's requests say of a machine.
fn facts_of(sighting: &Sighting) -> Vec<(String, String)> {
    let architecture = sighting.architecture.map(|it| ("firmware".to_owned(), it.to_string()));
    let uuid = sighting.uuid.map(|it| ("uuid".to_owned(), it.to_string()));
    architecture.into_iter().chain(uuid).collect()
}

/// What jobs may ask for of a machine that did not say it itself. A BIOS says nothing of its processor.
fn tags_of(architecture: Architecture) -> Vec<String> {
    let (machine, firmware) = match architecture {
        Architecture::X86Bios => (None, "bios"),
        Architecture::X64Uefi | Architecture::Ebc | Architecture::X64UefiHttp => (Some("x86_64"), "uefi"),
        Architecture::Arm64Uefi | Architecture::Arm64UefiHttp => (Some("aarch64"), "uefi"),
        Architecture::Arm64UBoot | Architecture::Arm64UBootHttp => (Some("aarch64"), "u-boot"),
        _ => return Vec::new(),
    };
    let machine = machine.into_iter().flat_map(|name| [format!("arch:{name}"), format!("cpu:arch:{name}")]);
    machine.chain([format!("firmware:{firmware}")]).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn discovery() -> Arc<DiscoveryRecord> {
        let outlet = Some(OutletName { pdu: "rack".into(), outlet: "7".into() });
        DiscoveryRecord::new(1, DiscoverAsk { outlet, timeout: Duration::from_secs(150), by: "a test".into() })
    }

    fn outlet_of(allowed: Result<Option<Arc<DiscoveryRecord>>, String>) -> Result<Option<String>, String> {
        allowed.map(|record| record.and_then(|record| Some(record.outlet.clone()?.outlet)))
    }

    #[test]
    fn without_a_discovery_machines_register_only_where_the_farm_file_says_so() {
        let refused = may_register(None, Unknown::WhenDiscovered, ONE).map(drop).unwrap_err();
        assert_eq!(
            refused,
            "machines register here while `wharf dut discover` runs; or write `discovery: {unknown: always}` into the farm file"
        );
        assert_eq!(outlet_of(may_register(None, Unknown::Always, ONE)), Ok(None));
    }

    #[test]
    fn a_discovery_is_about_the_first_machine_and_another_one_has_nothing_of_its_outlet() {
        let record = discovery();
        let may = |mac, unknown| outlet_of(may_register(Some(Arc::clone(&record)), unknown, mac));
        assert_eq!(may(ONE, Unknown::WhenDiscovered), Ok(Some("7".to_owned())));
        assert_eq!(may(ONE, Unknown::WhenDiscovered), Ok(Some("7".to_owned())), "again");
        let refused = "the discovery of outlet 7 of rack is about 02:00:00:00:00:01; try again when it is over";
        assert_eq!(may(OTHER, Unknown::WhenDiscovered), Err(refused.to_owned()));
        assert_eq!(may(OTHER, Unknown::Always), Ok(None), "it registers, but not on this outlet");
    }
}
