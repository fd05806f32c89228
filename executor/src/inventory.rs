//! The machines that registered by being plugged in, or that somebody added by hand, and the power units that an admin adopted: kept beside
//! the farm file, merged with it.
//!
//! ```text
//!  farm.yml ─────────────────────┐
//!                                ├─ merged ─► FarmConfig      every machine that can be leased
//!  <state>/inventory.yml ────────┘      └───► SetAside        and those that cannot yet, each with the sentence why
//!        ▲ change: the whole file, written beside it, synced, renamed over it
//! ```
//! The farm file wins: a registered machine with an id, MAC, address, outlet or console of one of its machines is set aside until one of
//! the two is changed, and so is an adopted unit with the name of one of its units. Nothing is lost by that, nor by a kill: the file is the
//! old one or the new one.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::blueprint::power::Outlet;
use crate::boot::settings::{Settings, UsbLoader};
use crate::config::{BeforeService, DutConfig, FarmConfig, HardwareConfig, MachineConfig, PowerConfig, SPARES, Whose};
use crate::lease::rows::Access;

mod adopted;

use adopted::ADOPTED_MAX;
pub use adopted::AdoptedPdu;

/// The file in the state folder.
const FILE: &str = "inventory.yml";

/// What stands above its entries.
const HEAD: &str = "# Machines that registered themselves, or that `wharf dut add` added, and power units that `wharf pdu adopt` adopted;\n\
                    # docs/discovery.md tells of each key.\n\
                    # The server writes this file. To change it by hand, stop the server first.\n";

/// So many machines: ten full racks. A stranger who invents MACs needs a discovery for each, and stops here at last.
const MACHINES_MAX: usize = 1000;

/// Where an outlet is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OutletName {
    /// An entry of the farm file's `pdus`.
    pub pdu: String,
    /// The outlet's name on it.
    pub outlet: String,
}

/// One machine, as it is written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The last part of its full name's middle: `<farm>-<base name>-<n>`.
    pub base_name: String,
    /// Its full name, given once.
    pub full_name: String,
    /// The MAC it boots with.
    pub mac_address: String,
    /// Its address on the farm's network.
    pub ip_address: Ipv4Addr,
    /// What it said of itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// What an admin said of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manual_tags: Vec<String>,
    /// Its outlet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power: Option<OutletName>,
    /// An entry of the farm file's `consoles`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<String>,
    /// The serial port, as the machine itself calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_tty_device: Option<String>,
    /// From its power to its first request to the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware_boot_time_s: Option<f64>,
    /// What else it said of itself, for people: CPU, memory, firmware.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, String>,
    /// A note of the admin's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// The serial number of its fastboot loader, on USB of this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fastboot_serial: Option<String>,
    /// The least time without power; as its unit has it when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub off_time_s: Option<f64>,
    /// How a machine begins that was in service elsewhere; it trains when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrives: Option<Arrives>,
    /// When it came.
    pub first_seen: jiff::Timestamp,
}

/// How a machine begins that was in service elsewhere before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrives {
    /// It has shown there that it is well: one health job is enough.
    QuickCheck,
    /// It was out of service there.
    Retired,
}

/// A machine that is in the inventory and not in the farm.
#[derive(Clone, Debug, PartialEq)]
pub struct SetAside {
    /// Its id.
    pub id: String,
    /// The machine.
    pub entry: Entry,
    /// Why, with the next step.
    pub why: String,
}

/// The whole file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    duts: BTreeMap<String, Entry>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pdus: BTreeMap<String, AdoptedPdu>,
}

/// Why the inventory cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The file is not what the server writes.
    #[error("{path}: {reason}; mend it, or move it away to begin without registered machines", path = path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It cannot be read or written.
    #[error("cannot keep the inventory in {path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// There are too many.
    #[error(
        "the inventory keeps {MACHINES_MAX} machines and {ADOPTED_MAX} power units at most; remove some with `wharf dut remove` or `wharf pdu remove`"
    )]
    Full,
    /// There is none of this name.
    #[error("no registered machine `{0}`; `wharf duts` lists them, and machines of the farm file are changed there")]
    NoSuchDut(String),
    /// A unit of this name was adopted already.
    #[error("`{0}` was adopted already; say another name with `--as`, or `wharf pdu remove {0}`")]
    Adopted(String),
    /// No unit of this name was adopted.
    #[error("no unit `{0}` was adopted; `wharf pdus` lists all of them")]
    NotAdopted(String),
}

/// The registered machines and adopted units of one farm.
pub struct Inventory {
    path: PathBuf,
    kept: Mutex<File>,
}

impl Inventory {
    /// What the state folder has.
    pub fn open(state: &Path) -> Result<Inventory, InventoryError> {
        let path = state.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(InventoryError::File { path, source }),
        };
        let wrong = |error: serde_yaml::Error| InventoryError::Wrong { path: path.clone(), reason: error.to_string() };
        // An empty file is one that has no machines yet.
        let file: Option<File> = serde_yaml::from_str(&text).map_err(wrong)?;
        Ok(Inventory { path, kept: Mutex::new(file.unwrap_or_default()) })
    }

    /// All machines, by id.
    pub fn all(&self) -> BTreeMap<String, Entry> {
        self.lock().duts.clone()
    }

    /// One machine, by id, full name or MAC; with its id.
    pub fn find(&self, name: &str) -> Option<(String, Entry)> {
        let kept = self.lock();
        let found = kept.duts.iter().find(|(id, entry)| is_called(id, entry, name));
        found.map(|(id, entry)| (id.clone(), entry.clone()))
    }

    /// Writes a machine down, new or changed. Blocks until it is on the disk.
    pub fn put(&self, id: &str, entry: Entry) -> Result<(), InventoryError> {
        self.change(|File { duts, .. }| {
            if !duts.contains_key(id) && duts.len() >= MACHINES_MAX {
                return Err(InventoryError::Full);
            }
            duts.insert(id.to_owned(), entry);
            Ok(())
        })
    }

    /// Changes a machine that is there, by id, full name or MAC. Blocks until it is on the disk.
    pub fn edit(&self, name: &str, edit: impl FnOnce(&mut Entry)) -> Result<(String, Entry), InventoryError> {
        self.change(|File { duts, .. }| {
            let found = duts.iter_mut().find(|(id, entry)| is_called(id, entry, name));
            let (id, entry) = found.ok_or_else(|| InventoryError::NoSuchDut(name.to_owned()))?;
            edit(entry);
            Ok((id.clone(), entry.clone()))
        })
    }

    /// Forgets a machine, by id, full name or MAC. Blocks until that is on the disk.
    pub fn remove(&self, name: &str) -> Result<(String, Entry), InventoryError> {
        self.change(|File { duts, .. }| {
            let found = duts.iter().find(|(id, entry)| is_called(id, entry, name));
            let id = found.map(|(id, _)| id.clone()).ok_or_else(|| InventoryError::NoSuchDut(name.to_owned()))?;
            let entry = duts.remove(&id).expect("it was just found");
            Ok((id, entry))
        })
    }

    /// The farm file's machines and those of the inventory that can be leased; and those that cannot, each with why.
    pub fn merged(&self, mut config: FarmConfig) -> (FarmConfig, Vec<SetAside>) {
        self.add_adopted(&mut config);
        let mut taken = Taken::of(&config);
        let mut aside = Vec::new();
        for (id, entry) in self.all() {
            match taken.claim(&id, &entry).and_then(|()| machine_of(&config, &entry)) {
                Ok(machine) => config.duts.push(dut_of(&id, &entry, machine)),
                Err(why) => aside.push(SetAside { id, entry, why }),
            }
        }
        (config, aside)
    }

    /// What keeps this machine out of a farm with this file, besides what is not known of it yet.
    pub fn check(&self, mut file: FarmConfig, id: &str, entry: &Entry) -> Result<(), String> {
        self.add_adopted(&mut file);
        let file = &file;
        let mut taken = Taken::of(file);
        for (other, registered) in self.all().iter().filter(|(other, _)| *other != id) {
            // Two that are set aside because of each other are told elsewhere.
            let _ = taken.claim(other, registered);
        }
        taken.claim(id, entry)?;
        match (&entry.power, &entry.console) {
            (Some(_), Some(_)) => machine_of(file, entry).map(drop),
            (Some(power), None) if !file.has_pdu(&power.pdu) => Err(no_pdu(file, &power.pdu)),
            (None, Some(console)) if !file.has_console(console) => Err(no_console(file, console)),
            (Some(_) | None, None) | (None, Some(_)) => Ok(()),
        }
    }

    /// The next full name of a base name, counted over the farm file's machines and the inventory's.
    pub fn full_name(&self, config: &FarmConfig, base_name: &str) -> String {
        let registered = self.all();
        let names: Vec<&str> = config
            .duts
            .iter()
            .map(|dut| dut.full_name.as_str())
            .chain(registered.values().map(|entry| entry.full_name.as_str()))
            .collect();
        let name = |number: usize| format!("{}-{base_name}-{number}", config.name);
        let mut number = 1;
        while names.contains(&name(number).as_str()) {
            number += 1;
        }
        name(number)
    }

    /// On the disk first: what cannot be kept did not happen.
    fn change<T>(&self, change: impl FnOnce(&mut File) -> Result<T, InventoryError>) -> Result<T, InventoryError> {
        let mut kept = self.lock();
        let mut changed = kept.clone();
        let result = change(&mut changed)?;
        write_whole(&self.path, &changed).map_err(|source| InventoryError::File { path: self.path.clone(), source })?;
        *kept = changed;
        Ok(result)
    }

    fn lock(&self) -> MutexGuard<'_, File> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_called(id: &str, entry: &Entry, name: &str) -> bool {
    id == name || entry.full_name == name || entry.mac_address == name
}

/// The text of an inventory with these machines, by id, and its file's name in the state folder.
pub fn file_of(duts: BTreeMap<String, Entry>) -> (&'static str, String) {
    let text = serde_yaml::to_string(&File { duts, ..File::default() }).expect("texts and numbers always become YAML");
    (FILE, format!("{HEAD}{text}"))
}

fn write_whole(path: &Path, file: &File) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let text = serde_yaml::to_string(file).map_err(io::Error::other)?;
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    temporary.write_all(HEAD.as_bytes())?;
    temporary.write_all(text.as_bytes())?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|error| error.error)?;
    // The name is on the disk once its folder is.
    fs::File::open(folder)?.sync_all()
}

/// What the farm file's machines have, and those that were merged before.
struct Taken {
    by: BTreeMap<(What, String), String>,
}

/// What two machines cannot have both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Name,
    Mac,
    Address,
    Outlet,
    Console,
}

impl What {
    fn noun(self) -> &'static str {
        match self {
            What::Name => "name",
            What::Mac => "MAC",
            What::Address => "address",
            What::Outlet => "outlet",
            What::Console => "console",
        }
    }
}

impl Taken {
    fn of(config: &FarmConfig) -> Taken {
        let mut taken = Taken { by: BTreeMap::new() };
        let members = config.duts.iter().cloned();
        for dut in members.chain(config.on_demand.iter().flat_map(|kind| kind.members())) {
            let mut has = vec![
                (What::Name, dut.id.clone()),
                (What::Name, dut.full_name.clone()),
                (What::Mac, dut.mac.clone()),
                (What::Address, dut.address.to_string()),
            ];
            if let MachineConfig::Hardware(HardwareConfig { power, console }) = &dut.machine {
                has.extend(outlet_of(power).map(|outlet| (What::Outlet, shown(&outlet))));
                if let Whose::Named(line) = console {
                    has.push((What::Console, line.clone()));
                }
            }
            taken.by.extend(has.into_iter().map(|key| (key, dut.full_name.clone())));
        }
        taken
    }

    fn claim(&mut self, id: &str, entry: &Entry) -> Result<(), String> {
        let mut wants = vec![
            (What::Name, id.to_owned()),
            (What::Mac, entry.mac_address.clone()),
            (What::Address, entry.ip_address.to_string()),
            (What::Name, entry.full_name.clone()),
        ];
        wants.extend(entry.power.iter().map(|outlet| (What::Outlet, shown(outlet))));
        wants.extend(entry.console.iter().map(|line| (What::Console, line.clone())));
        if let Some(((what, value), owner)) = wants.iter().find_map(|key| self.by.get_key_value(key)) {
            let what = what.noun();
            return Err(format!(
                "its {what} {value} is {owner}'s; change one of the two, or `wharf dut remove {}`",
                entry.full_name
            ));
        }
        self.by.extend(wants.into_iter().map(|key| (key, entry.full_name.clone())));
        Ok(())
    }
}

/// An outlet of a unit that several machines share.
pub fn outlet_of(power: &PowerConfig) -> Option<OutletName> {
    match &power.unit {
        Whose::Named(pdu) => Some(OutletName { pdu: pdu.clone(), outlet: power.outlet.0.clone() }),
        Whose::Own(_) => None,
    }
}

fn shown(outlet: &OutletName) -> String {
    format!("{} of {}", outlet.outlet, outlet.pdu)
}

/// Its power and its console; `Err`: what is missing.
fn machine_of(config: &FarmConfig, entry: &Entry) -> Result<MachineConfig, String> {
    let mac = &entry.mac_address;
    let Some(power) = &entry.power else {
        return Err(format!("its outlet is not known; say it with `wharf dut add {mac} --pdu PDU --outlet OUTLET`"));
    };
    let Some(console) = &entry.console else {
        return Err(format!("its console is not known; say it with `wharf dut add {mac} --console LINE`"));
    };
    if power.pdu == SPARES {
        return spare_of(config, entry, &power.outlet);
    }
    if !config.has_pdu(&power.pdu) {
        return Err(no_pdu(config, &power.pdu));
    }
    if !config.has_console(console) {
        return Err(no_console(config, console));
    }
    Ok(MachineConfig::Hardware(HardwareConfig {
        power: PowerConfig { unit: Whose::Named(power.pdu.clone()), outlet: Outlet(power.outlet.clone()) },
        console: Whose::Named(console.clone()),
    }))
}

impl FarmConfig {
    fn has_pdu(&self, name: &str) -> bool {
        self.pdus.iter().any(|pdu| pdu.name == name) || (name == SPARES && !self.spares.is_empty())
    }

    fn has_console(&self, name: &str) -> bool {
        self.consoles.iter().any(|line| line.name == name) || self.spares.iter().any(|spare| spare.name == name)
    }
}

fn no_pdu(config: &FarmConfig, name: &str) -> String {
    let known: Vec<&str> = config.pdus.iter().map(|pdu| pdu.name.as_str()).collect();
    format!("the farm has no PDU `{name}`; PDUs: {}", or_none(&known))
}

fn no_console(config: &FarmConfig, name: &str) -> String {
    let known: Vec<&str> = config.consoles.iter().map(|line| line.name.as_str()).collect();
    format!("the farm file has no console `{name}`; consoles: {}", or_none(&known))
}

fn or_none(names: &[&str]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// A virtual machine that registered: its outlet and its console are made with it.
fn spare_of(config: &FarmConfig, entry: &Entry, name: &str) -> Result<MachineConfig, String> {
    match config.spares.iter().find(|spare| spare.name == name) {
        Some(spare) if spare.mac == entry.mac_address => Ok(spare.machine.clone()),
        Some(spare) => {
            Err(format!("the spare `{name}` has the MAC {} now; `wharf dut remove {}`", spare.mac, entry.full_name))
        }
        None => {
            Err(format!("the farm file has no spare `{name}`; add it there, or `wharf dut remove {}`", entry.full_name))
        }
    }
}

fn dut_of(id: &str, entry: &Entry, machine: MachineConfig) -> DutConfig {
    let mut tags = entry.tags.clone();
    tags.extend(entry.manual_tags.iter().filter(|tag| !entry.tags.contains(tag)).cloned());
    DutConfig {
        id: id.to_owned(),
        full_name: entry.full_name.clone(),
        base_name: entry.base_name.clone(),
        tags,
        mac: entry.mac_address.clone(),
        address: entry.ip_address,
        comment: entry.comment.clone(),
        access: Access::Everyone,
        needs: Vec::new(),
        machine,
        off_time: entry.off_time_s.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        boot: entry.fastboot_serial.as_deref().map(by_fastboot),
        before_service: match entry.arrives {
            None => BeforeService::Training,
            Some(Arrives::QuickCheck) => BeforeService::QuickCheck,
            Some(Arrives::Retired) => BeforeService::Retired,
        },
    }
}

fn by_fastboot(serial: &str) -> Settings {
    let usb = UsbLoader { serial: Some(serial.to_owned()), path: None };
    Settings { method: "fastboot".to_owned(), usb: Some(usb), ..Settings::default() }
}

#[cfg(test)]
mod tests;
