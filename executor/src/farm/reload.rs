//! A running farm takes a changed farm file, and no lease ends by it.
//!
//! ```text
//!  farm file ─► read, checked: a mistake, or something that only a restart can change ─► nothing changes, and why
//!      │
//!      ├─► what jobs, plans and answers go by, at once        tags, names, comments, boot settings, variables, boots database, limits
//!      └─► the leases' keeper: added ─► made        removed ─► drained: nobody gets it any more, its lease goes on, then it is gone
//!                              drivers, MAC or address changed ─► drained, then made anew
//!                              who waits for what cannot be had any more ─► ends
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use job_schema::{Findings, Problems};
use serde::{Deserialize, Serialize};

use super::Farm;
use super::hardware::Hardware;
use super::machines::is_driven_alike;
use super::start::StartError;
use crate::blueprint::dut;
use crate::config::{
    DutConfig, FarmConfig, Firmware, GearConfig, LineConfig, MachineConfig, OnDemandConfig, PduConfig, Whose,
};
use crate::virtual_dut::images;
use crate::virtual_dut::install::{self, Need};

/// Where a farm's configuration comes from, so that it can be read again.
#[derive(Clone, Debug)]
pub struct Source {
    /// The farm file.
    pub path: PathBuf,
    /// The API's address, where the command line named one.
    pub api: Option<SocketAddr>,
    /// The state folder, where the command line named one.
    pub state: Option<PathBuf>,
}

impl Source {
    /// The farm file as it is now, checked.
    pub fn read(&self) -> Result<FarmConfig, ReloadError> {
        self.read_for(None)
    }

    /// The same, for a farm that runs: what it cannot take is a mistake like others, at its place.
    fn read_for(&self, running: Option<&FarmConfig>) -> Result<FarmConfig, ReloadError> {
        let name = self.path.display().to_string();
        let text = std::fs::read_to_string(&self.path)
            .map_err(|error| ReloadError::Unreadable(format!("cannot read `{name}`: {error}")))?;
        let directory = self.path.parent().map(PathBuf::from).unwrap_or_default();
        let of_the_command_line = |config: &mut FarmConfig| {
            config.api = self.api.unwrap_or(config.api);
            config.state = self.state.clone().unwrap_or_else(|| config.state.clone());
        };
        let more = |config: &mut FarmConfig, findings: &mut Findings| {
            of_the_command_line(config);
            if let Some(running) = running {
                fixed(running, config, findings);
            }
        };
        crate::config::parse_and(&name, &text, &directory, more).map_err(ReloadError::Wrong)
    }
}

/// Why a farm goes on as it was.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The farm file cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// The farm file has mistakes, or says what only a restart can bring about.
    #[error("{0}")]
    Wrong(Problems),
    /// What it asks for cannot be set up here.
    #[error("{0}; nothing was changed")]
    Failed(String),
}

impl From<StartError> for ReloadError {
    fn from(error: StartError) -> Self {
        ReloadError::Failed(error.to_string())
    }
}

/// What a reload changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Changes {
    /// In the order of the farm file's lists.
    pub changes: Vec<Change>,
}

/// One thing that is otherwise than before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Change {
    /// Whether it is new, other or gone.
    pub how: How,
    /// What it is: `dut`, `gear`, `on demand`, or `the farm`.
    pub what: String,
    /// Its full name; for the farm the key.
    pub name: String,
    /// What of it is other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// Who still holds it: it follows when that has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// Whether something is new, other or gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// It was not there before.
    Added,
    /// It is other.
    Changed,
    /// It is no longer there.
    Removed,
}

impl fmt::Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.how {
            How::Added => "+",
            How::Changed => "~",
            How::Removed => "-",
        };
        write!(formatter, "{sign} {} {}", self.what, self.name)?;
        if !self.keys.is_empty() {
            write!(formatter, ": {}", self.keys.join(", "))?;
        }
        match (&self.after, self.how) {
            (Some(holder), How::Removed) => write!(formatter, " (gone when {holder} gives it back)"),
            (Some(holder), How::Added | How::Changed) => write!(formatter, " (once {holder} gives it back)"),
            (None, _) => Ok(()),
        }
    }
}

impl Farm {
    /// Where the farm's configuration is read again; said once, by whoever starts the farm.
    pub fn is_from(&self, source: Source) {
        // A second one would be a mistake of ours, and the first one stays right.
        let _ = self.source.set(source);
    }

    /// Reads the farm file again and goes on by it.
    pub async fn reload(self: &Arc<Self>) -> Result<Changes, ReloadError> {
        let Some(source) = self.source.get() else {
            return Err(ReloadError::Unreadable("this farm was not started from a farm file".into()));
        };
        let config = source.read_for(Some(&self.config()))?;
        // Machines that somebody holds are left to him: what changed of them follows afterwards.
        let changes = self.go_by(Some(config)).await?;
        self.keep_doors();
        Ok(changes)
    }

    /// Goes on by the same farm file and what the inventory says now.
    pub(super) async fn follow_inventory(&self) -> Result<Changes, ReloadError> {
        self.go_by(None).await
    }

    /// `None`: the farm file as it was read last.
    async fn go_by(&self, file: Option<FarmConfig>) -> Result<Changes, ReloadError> {
        let _turn = self.reloading.lock().await;
        let before = self.config();
        let mut file = file.unwrap_or_else(|| self.discovery.file());
        images::add_variables(&mut file.job_variables, self.images);
        let (config, aside) = self.inventory().merged(file.clone());
        let needs = needs_of(&config);
        if !needs.is_empty() {
            let installed = install::ensure(&needs, &|line| tracing::info!("{line}")).await;
            installed.map_err(|error| ReloadError::Failed(error.to_string()))?;
        }
        let hardware = Arc::new(Hardware::of(&config, Some((&before, &self.machines.hardware())))?);
        let anew = made_anew(&before, &config);
        let rows = dut::rows(&config);
        self.planner.config.set(config);
        let config = self.config();
        let hardware_before = self.machines.hardware();
        self.machines.use_hardware(hardware);
        if let Err(error) = self.keeper.configure(rows, anew).await {
            self.planner.config.set(FarmConfig::clone(&before));
            self.machines.use_hardware(hardware_before);
            // What cannot be written is not told either: this only sets the blueprints back.
            let _ = self.keeper.configure(dut::rows(&before), BTreeSet::new()).await;
            return Err(ReloadError::Failed(error.to_string()));
        }
        self.keeper.set_quotas(super::projects::quotas(&config)).await;
        if let (Some(door), Some(settings)) = (self.gateway.registry(), &config.registry)
            && before.registry != config.registry
        {
            door.set(settings.clone());
        }
        self.gateway.cache().fetcher().trust(super::downloads::fetching(&config));
        self.machines.follow(&config);
        self.discovery.goes_by(file, &config, aside);
        self.trials.look_again();
        let mut changes = changes(&before, &config);
        self.name_holders(&before, &mut changes).await;
        changes.iter().for_each(|change| tracing::info!(%change, "the farm file was read again"));
        Ok(Changes { changes })
    }

    /// Who holds what changes or goes.
    async fn name_holders(&self, before: &FarmConfig, changes: &mut [Change]) {
        let rows = self.snapshot().await;
        let holder = |name: &str| {
            let mut held = rows.leases.iter().filter(|lease| lease.is_held() && lease.parent.is_none());
            held.find(|lease| {
                lease.resource.as_ref().is_some_and(|id| id.as_str().rsplit_once('#').is_some_and(|(it, _)| it == name))
            })
        };
        for change in changes.iter_mut().filter(|change| change.what == "dut") {
            let dut = before.duts.iter().find(|dut| dut.full_name == change.name);
            let waits = change.how == How::Removed || change.keys.iter().any(|key| DRIVERS.contains(&key.as_str()));
            change.after =
                dut.filter(|_| waits).and_then(|dut| holder(&dut.id)).map(|lease| lease.request.owner.to_string());
        }
    }
}

/// The keys of a DUT that take other drivers.
const DRIVERS: [&str; 3] = ["mac", "address", "machine"];

/// What only a restart can bring about: all of it at once.
fn fixed(before: &FarmConfig, after: &FarmConfig, findings: &mut Findings) {
    let table: [(&[&str], bool); 10] = [
        (&["name"], before.name != after.name),
        (&["network"], before.network != after.network),
        (&["dhcp"], before.dhcp != after.dhcp),
        (&["tftp", "engine"], before.tftp_engine != after.tftp_engine),
        (&["listen", "api"], before.api != after.api),
        (&["listen", "tls"], before.tls != after.tls),
        (&["listen", "power"], before.power_listener != after.power_listener),
        (&["state"], before.state != after.state),
        (&["console_log"], before.console_log != after.console_log),
        // Other registries are taken; whether there are any is a port.
        (&["registry"], before.registry.is_some() != after.registry.is_some()),
    ];
    for (path, _) in table.into_iter().filter(|(_, differs)| *differs) {
        let key = path.join(".");
        let path: Vec<_> = path.iter().map(|step| (*step).to_owned()).collect();
        let hint = format!("restart `wharf serve` to change `{key}`; nothing was changed now");
        findings.tell(&path, format!("`{key}` cannot be changed while the farm runs"), &hint);
    }
}

/// The blueprints whose machines need other drivers than they have.
fn made_anew(before: &FarmConfig, after: &FarmConfig) -> BTreeSet<String> {
    let differs = |old: &DutConfig, dut: &DutConfig| !is_driven_alike(old, dut) || !names_the_same(before, after, dut);
    let duts = after.duts.iter().filter(|dut| find(&before.duts, &dut.id).is_some_and(|old| differs(old, dut)));
    let on_demand = after.on_demand.iter().filter(|kind| {
        let old = before.on_demand.iter().find(|old| old.name == kind.name);
        old.is_some_and(|old| {
            (&old.machine, old.first_address, old.first_mac, old.idle_min)
                != (&kind.machine, kind.first_address, kind.first_mac, kind.idle_min)
        })
    });
    duts.map(|dut| dut.id.clone()).chain(on_demand.map(|kind| kind.name.clone())).collect()
}

/// Whether the unit and the console that a machine names are what they were.
fn names_the_same(before: &FarmConfig, after: &FarmConfig, dut: &DutConfig) -> bool {
    let MachineConfig::Hardware(config) = &dut.machine else { return true };
    let pdu = |farm: &FarmConfig, name: &String| farm.pdus.iter().find(|pdu| pdu.name == *name).cloned();
    let line = |farm: &FarmConfig, name: &String| farm.consoles.iter().find(|line| line.name == *name).cloned();
    let same_unit = match &config.power.unit {
        Whose::Named(name) => pdu(before, name) == pdu(after, name),
        Whose::Own(_) => true,
    };
    let same_line = match &config.console {
        Whose::Named(name) => line(before, name) == line(after, name),
        Whose::Own(_) => true,
    };
    same_unit && same_line
}

fn find<'a>(duts: &'a [DutConfig], id: &str) -> Option<&'a DutConfig> {
    duts.iter().find(|dut| dut.id == id)
}

/// What differs, for a person.
fn changes(before: &FarmConfig, after: &FarmConfig) -> Vec<Change> {
    let mut list = Vec::new();
    differences("dut", (&before.duts, &after.duts), |it| (&it.id, &it.full_name), keys_of_dut, &mut list);
    let other = |one: &OnDemandConfig, two: &OnDemandConfig| keys([("its entry", one != two)]);
    differences("on demand", (&before.on_demand, &after.on_demand), |it| (&it.name, &it.full_name), other, &mut list);
    let other = |one: &GearConfig, two: &GearConfig| {
        keys([
            ("tags", one.tags != two.tags),
            ("comment", one.comment != two.comment),
            ("seats", one.seats != two.seats),
            ("access", one.access != two.access),
        ])
    };
    differences("gear", (&before.gear, &after.gear), |it| (&it.name, &it.full_name), other, &mut list);
    let unit = |one: &PduConfig, two: &PduConfig| keys([("its entry", one != two)]);
    differences("pdu", (&before.pdus, &after.pdus), |it| (&it.name, &it.name), unit, &mut list);
    let line = |one: &LineConfig, two: &LineConfig| keys([("its entry", one != two)]);
    differences("console", (&before.consoles, &after.consoles), |it| (&it.name, &it.name), line, &mut list);
    let of_farm = keys([
        ("gitlab", before.gitlab != after.gitlab),
        ("forgejo", before.forgejo != after.forgejo),
        ("training", before.training != after.training),
        ("health", before.patience != after.patience),
        ("variables", before.job_variables != after.job_variables),
        ("boots", before.boots != after.boots),
        ("listen.when_busy", before.submission.upgraded_when_busy != after.submission.upgraded_when_busy),
        ("callers", before.issuers != after.issuers),
        ("proxy", before.proxy != after.proxy),
        ("downloads", before.downloads != after.downloads),
        ("registry", before.registry != after.registry),
        ("projects", before.projects != after.projects),
        ("listen.job_urls", before.submission.job_urls != after.submission.job_urls),
    ]);
    let changed = |name| Change { how: How::Changed, what: "the farm's".into(), name, keys: Vec::new(), after: None };
    list.extend(of_farm.into_iter().map(changed));
    list
}

fn keys_of_dut(one: &DutConfig, two: &DutConfig) -> Vec<String> {
    keys([
        ("full_name", one.full_name != two.full_name),
        ("base_name", one.base_name != two.base_name),
        ("tags", one.tags != two.tags),
        ("comment", one.comment != two.comment),
        ("access", one.access != two.access),
        ("needs", one.needs != two.needs),
        ("boot", one.boot != two.boot),
        ("training", one.before_service != two.before_service),
        ("mac", one.mac != two.mac),
        ("address", one.address != two.address),
        ("machine", one.machine != two.machine),
    ])
}

fn keys<const N: usize>(table: [(&str, bool); N]) -> Vec<String> {
    table.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key.to_owned()).collect()
}

fn differences<T>(
    what: &str,
    (before, after): (&[T], &[T]),
    names: impl Fn(&T) -> (&String, &String),
    keys: impl Fn(&T, &T) -> Vec<String>,
    list: &mut Vec<Change>,
) {
    let change = |how, it: &T, keys| {
        let (what, name) = (what.to_owned(), names(it).1.clone());
        Change { how, what, name, keys, after: None }
    };
    for new in after {
        match before.iter().find(|old| names(old).0 == names(new).0) {
            None => list.push(change(How::Added, new, Vec::new())),
            Some(old) => {
                let keys = keys(old, new);
                list.extend((!keys.is_empty()).then(|| change(How::Changed, old, keys)));
            }
        }
    }
    let gone = before.iter().filter(|old| !after.iter().any(|new| names(new).0 == names(old).0));
    list.extend(gone.map(|old| change(How::Removed, old, Vec::new())));
}

/// What the host must have for the machines of a farm.
pub fn needs_of(config: &FarmConfig) -> Vec<Need> {
    let is_qemu = |machine: &MachineConfig| matches!(machine, MachineConfig::Qemu(_));
    if !config.machines().any(is_qemu) {
        return Vec::new();
    }
    let mut needs = vec![Need::Qemu, Need::Ipxe, Need::Kernel, Need::Busybox];
    for machine in config.machines() {
        let MachineConfig::Qemu(qemu) = machine else { continue };
        match qemu.firmware {
            Firmware::Bios => {}
            Firmware::UefiIpxe | Firmware::UefiPxe | Firmware::UefiHttp => needs.push(Need::Ovmf),
            Firmware::UBootArm64 => needs.push(Need::UBoot),
        }
    }
    needs
}
