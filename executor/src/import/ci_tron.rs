//! A CI-tron farm as one of ours: its MaRS database, its boots database and its environment in; a farm file, an inventory and a boots
//! database out, with everything that has no place here. ◆
//!
//! ```text
//!  mars_db.yaml ─ pdus ──────────────► farm.yml   pdus
//!               ─ duts ──────────────► inventory  duts: names counted as CI-tron counts them
//!               ─ gitlab, … ─────────► Left
//!  boots_db ───── fastboot ──────────► boots.yml, defaults per kind of board, for machines with the tag `boots:<name>`
//!  environment ── EXECUTOR_JOB__* ───► farm.yml   variables; registry, for the proxy that CI-tron's gateway had of one
//! ```
//! The two files are those of the 2024 release and of main; keys that neither has are told as left over, not as mistakes.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use gateway::dhcp::Mac;
use job_schema::problem::{Problems, quoted};
use job_schema::{Findings, Location, field_of, load_checked};
use serde_json::{Map, Value, json};

use super::table::Table;
use crate::boot::database::Database;
use crate::config::NAMES_OF_TEMPLATES;
use crate::inventory::{Arrives, Entry, OutletName};

mod boots;
mod units;

/// A file, by its name.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// What it is called in problems.
    pub name: &'a str,
    /// What it says.
    pub text: &'a str,
}

/// What the files do not say.
pub struct Wish {
    /// The farm's name.
    pub name: String,
    /// The link that leads to the machines.
    pub interface: String,
    /// The gateway's address on it and the prefix.
    pub address: String,
    /// The first and the last address for machines that are not known.
    pub range: Vec<String>,
    /// Serial devices of this host.
    pub terminals: Vec<String>,
    /// What CI-tron's server had in its environment.
    pub environment: BTreeMap<String, String>,
    /// Where the state of the farm is to be.
    pub state: String,
}

/// What is made of them.
pub struct Imported {
    /// The farm file.
    pub farm: String,
    /// The boots database, where there was one.
    pub boots: Option<String>,
    /// The inventory's machines.
    pub duts: BTreeMap<String, Entry>,
    /// What has no place here.
    pub left: Vec<Left>,
}

/// Something that is not carried over.
#[derive(Clone, Debug, PartialEq)]
pub struct Left {
    /// The file, where it is in one.
    pub at: Option<(String, Location)>,
    /// Which value.
    pub field: String,
    /// Why, or what to do.
    pub why: String,
}

/// The farm; or every mistake of the files.
pub fn import(mars: Source<'_>, boots: Option<Source<'_>>, wish: &Wish) -> Result<Imported, Vec<Problems>> {
    let database = load_checked::<Value, _>(mars.name, mars.text, |value, findings| {
        let mut reader = Reader { source: mars.name, left: Vec::new() };
        let (pdus, duts) = reader.mars(&wish.name, value, findings);
        (pdus, duts, reader.left)
    });
    let boots = boots.map(|source| boots::read(source)).transpose();
    let (mut pdus_and_duts, boots) = match (database, boots) {
        (Ok(database), Ok(boots)) => (database, boots),
        (database, boots) => return Err([database.err(), boots.err()].into_iter().flatten().collect()),
    };
    let (pdus, duts, left) = &mut pdus_and_duts;
    if let Some(boots) = &boots {
        boots.tag(duts);
        left.extend(boots.left.iter().cloned());
    }
    left.extend(environment_left(wish));
    let text = boots.as_ref().map(boots::Boots::text);
    if let Some(text) = &text {
        Database::check("boots.yml (as it would be written)", text).map_err(|problems| vec![problems])?;
    }
    let farm = farm_file(wish, pdus, text.is_some());
    let (duts, left) = (std::mem::take(duts), std::mem::take(left));
    Ok(Imported { farm, boots: text, duts, left })
}

/// Reads one file, and keeps what has no place here.
struct Reader<'a> {
    source: &'a str,
    left: Vec<Left>,
}

impl Reader<'_> {
    fn mars(&mut self, farm: &str, value: Value, findings: &mut Findings) -> (Vec<Value>, BTreeMap<String, Entry>) {
        let mut top = Table::of(&[], value, findings);
        let mut pdus = Vec::new();
        let mut outlets = Outlets::default();
        for (name, table) in top.table("pdus", findings).entries(findings) {
            outlets.units.push(name.clone());
            match self.pdu(&name, table, findings) {
                Some(pdu) => pdus.push(pdu),
                None => outlets.dropped.push(name),
            }
        }
        let mut duts = BTreeMap::new();
        let mut taken = HashMap::new();
        for (id, table) in top.table("duts", findings).entries(findings) {
            if let Some(dut) = self.dut(&id, table, &mut outlets, findings) {
                once_each(&id, &dut, &mut taken, findings);
                duts.insert(id, dut);
            }
        }
        name_in_order(farm, &mut duts);
        for (at, _) in top.rest() {
            let why = match at[0].as_str() {
                "gitlab" | "github" => "runners are registered anew: their tokens belong to CI-tron's server",
                _ => "has no counterpart in this farm",
            };
            self.leave(&at, why, findings);
        }
        (pdus, duts)
    }

    /// Something that is not carried over.
    fn leave(&mut self, at: &[String], why: impl Into<String>, findings: &Findings) {
        let place = (self.source.to_owned(), findings.place(at));
        self.left.push(Left { at: Some(place), field: field_of(at), why: why.into() });
    }

    fn dut(&mut self, id: &str, mut table: Table, outlets: &mut Outlets, findings: &mut Findings) -> Option<Entry> {
        let here = table.at("");
        let here = &here[..here.len() - 1];
        let mac = mac_of(id, &mut table, findings);
        let address = address_of(&mut table, findings);
        let power = self.outlet(&mut table, outlets, findings);
        let is_ready = table.truth("ready_for_service", findings).unwrap_or(false);
        let is_retired = table.truth("is_retired", findings).unwrap_or(false);
        let entry = Entry {
            base_name: table.needed("base_name", findings).unwrap_or_default(),
            full_name: String::new(),
            mac_address: mac.unwrap_or_default(),
            ip_address: address.unwrap_or(Ipv4Addr::UNSPECIFIED),
            tags: table.texts("tags", findings),
            manual_tags: table.texts("manual_tags", findings),
            power,
            console: None,
            local_tty_device: table.text("local_tty_device", findings),
            firmware_boot_time_s: table.seconds("firmware_boot_time", findings),
            facts: BTreeMap::new(),
            comment: table.text("comment", findings),
            // Its id is the serial number of its loader then: what has no MAC in its firmware.
            fastboot_serial: id.parse::<Mac>().is_err().then(|| id.to_owned()),
            off_time_s: table.seconds("pdu_off_delay", findings),
            arrives: match (is_retired, is_ready) {
                (true, _) => Some(Arrives::Retired),
                (false, true) => Some(Arrives::QuickCheck),
                (false, false) => None,
            },
            first_seen: first_seen(&mut table, findings),
        };
        if id.is_empty() || id.contains([' ', '/', '{', '}']) {
            let hint = "an id has no spaces, slashes or braces; change it in the file, and in the jobs that name it";
            findings.tell(here, format!("{} is no id", quoted(id)), hint);
        }
        for (at, _) in table.rest() {
            let why = match at.last().map(String::as_str) {
                Some("gitlab" | "github" | "job_sources") => {
                    "runners are registered anew: their tokens belong to CI-tron's server"
                }
                Some("boot_sequence_power") => "the draw of a boot is not learnt here",
                _ => "has no counterpart in this farm",
            };
            self.leave(&at, why, findings);
        }
        Some(entry)
    }

    /// Where its power comes from.
    fn outlet(&mut self, table: &mut Table, outlets: &mut Outlets, findings: &mut Findings) -> Option<OutletName> {
        let at = table.at("pdu");
        let pdu = table.text("pdu", findings);
        // CI-tron writes the text `None` for an outlet that is not known.
        let outlet = table.text("pdu_port_id", findings).filter(|outlet| outlet != "None");
        let (Some(pdu), Some(outlet)) = (pdu, outlet) else { return None };
        if !outlets.units.contains(&pdu) {
            let known = if outlets.units.is_empty() { "none".to_owned() } else { outlets.units.join(", ") };
            findings.tell(&at, format!("no PDU is called {}", quoted(&pdu)), &format!("PDUs: {known}"));
            return None;
        }
        if outlets.dropped.contains(&pdu) {
            self.leave(&at, "its PDU is not carried over: say its outlet with `wharf dut add`", findings);
            return None;
        }
        Some(OutletName { pdu: units::name_of(&pdu), outlet })
    }
}

/// The units that machines may name.
#[derive(Default)]
struct Outlets {
    units: Vec<String>,
    dropped: Vec<String>,
}

/// Older files have no `mac_address`: the id is the MAC.
fn mac_of(id: &str, table: &mut Table, findings: &mut Findings) -> Option<String> {
    let at = table.at("mac_address");
    let (said, at) = match table.text("mac_address", findings) {
        Some(said) => (said, at),
        None => (id.to_owned(), at[..at.len() - 1].to_vec()),
    };
    match said.parse::<Mac>() {
        Ok(mac) => Some(mac.to_string()),
        Err(_) => {
            findings.tell(&at, format!("{} is no MAC address", quoted(&said)), "add `mac_address: 00:11:22:33:44:55`");
            None
        }
    }
}

fn address_of(table: &mut Table, findings: &mut Findings) -> Option<Ipv4Addr> {
    let at = table.at("ip_address");
    let said = table.needed("ip_address", findings)?;
    let read = said.parse::<Ipv4Addr>();
    if read.is_err() {
        findings.tell(&at, format!("{} is no IPv4 address", quoted(&said)), "write it as `10.42.0.11`");
    }
    read.ok()
}

/// CI-tron writes the local time without a zone: taken for UTC, as only the order counts. What is not there was first of all.
fn first_seen(table: &mut Table, findings: &mut Findings) -> jiff::Timestamp {
    let at = table.at("first_seen");
    let Some(said) = table.text("first_seen", findings) else { return jiff::Timestamp::UNIX_EPOCH };
    let with_zone = said.parse::<jiff::Timestamp>().ok();
    let without = || said.parse::<jiff::civil::DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok();
    let read = with_zone.or_else(|| without().map(|zoned| zoned.timestamp()));
    if read.is_none() {
        findings.tell(&at, format!("{} is no time", quoted(&said)), "write it as `2024-05-31 12:00:00`");
    }
    read.unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

/// Two machines with one MAC, address or outlet are a mistake of the file's: only one of them could boot.
fn once_each(id: &str, dut: &Entry, taken: &mut HashMap<(&'static str, String), String>, findings: &mut Findings) {
    let outlet = dut.power.as_ref().map(|power| format!("{} of {}", power.outlet, power.pdu));
    let address = (!dut.ip_address.is_unspecified()).then(|| dut.ip_address.to_string());
    let mac = Some(dut.mac_address.clone()).filter(|mac| !mac.is_empty());
    for (key, noun, value) in
        [("mac_address", "MAC", mac), ("ip_address", "address", address), ("pdu_port_id", "outlet", outlet)]
    {
        let Some(value) = value else { continue };
        if let Some(first) = taken.get(&(noun, value.clone())) {
            let what = format!("the {noun} {value} is that of `{first}`, too");
            findings.tell(&["duts", id, key].map(str::to_owned), what, "give every machine its own");
        } else {
            taken.insert((noun, value), id.to_owned());
        }
    }
}

/// `<farm>-<base name>-<n>`, `n` counted from 1 in the order in which they were first seen: jobs and runners know them by that.
fn name_in_order(farm: &str, duts: &mut BTreeMap<String, Entry>) {
    let mut order: Vec<(jiff::Timestamp, String)> = duts.iter().map(|(id, dut)| (dut.first_seen, id.clone())).collect();
    order.sort();
    let mut counts: HashMap<String, usize> = HashMap::new();
    for (_, id) in order {
        let Some(dut) = duts.get_mut(&id) else { continue };
        let count = counts.entry(dut.base_name.clone()).or_default();
        *count += 1;
        dut.full_name = format!("{farm}-{}-{count}", dut.base_name);
    }
}

/// What CI-tron's job variables are called in its environment.
const JOB_VARIABLE: &str = "EXECUTOR_JOB__";

/// What else of the environment has a place here, by its name.
const ELSEWHERE: [&str; 4] =
    ["FARM_NAME", "PRIVATE_INTERFACE", "SERGENT_HARTMAN_BOOT_COUNT", "SERGENT_HARTMAN_QUALIFYING_BOOT_COUNT"];

/// The proxy of a container registry that CI-tron's gateway has, as `HOST:PORT`, and the registry.
const REGISTRY_PROXY: (&str, &str) = ("EXECUTOR_JOB__FDO_PROXY_REGISTRY", "registry.freedesktop.org");

/// Only names: some of the values are secrets.
fn environment_left(wish: &Wish) -> Vec<Left> {
    let why = |name: &str| match name.strip_prefix(JOB_VARIABLE).map(str::to_lowercase) {
        None if ELSEWHERE.contains(&name) => None,
        None => Some("has no counterpart in this farm".to_owned()),
        Some(job) if NAMES_OF_TEMPLATES.contains(&job.as_str()) => {
            Some(format!("`{job}` is a value of the farm's own in every template"))
        }
        Some(_) if !wish.leads_to_the_gateway(name) => None,
        Some(_) if name == REGISTRY_PROXY.0 => {
            Some(format!("the farm's own cache of {} is in its place", REGISTRY_PROXY.1))
        }
        Some(_) => Some("kept, but it leads to a server of CI-tron's gateway, which is not there any more".to_owned()),
    };
    let left = |name: &String| Some(Left { at: None, field: name.clone(), why: why(name)? });
    wish.environment.keys().filter_map(left).collect()
}

impl Wish {
    /// Whether a variable names a server at the address that is this farm's from now on.
    fn leads_to_the_gateway(&self, name: &str) -> bool {
        let address = self.address.split('/').next().unwrap_or_default();
        let value = self.environment.get(name).map_or("", |value| value.rsplit("//").next().unwrap_or(value));
        let host = value.split(['/', ':']).next().unwrap_or_default();
        host == address || host == "ci-gateway"
    }
}

fn farm_file(wish: &Wish, pdus: &[Value], has_boots: bool) -> String {
    let mut farm = Map::new();
    let mut text =
        "# Made by `wharf import ci-tron`. The machines are in the inventory, in the folder `state`.\n".to_owned();
    let mut section = |key: &str, value: Value| {
        farm.clear();
        farm.insert(key.to_owned(), value);
        text += &serde_yaml::to_string(&farm).expect("texts and numbers always become YAML");
    };
    section("name", json!(wish.name));
    section("network", json!({"interface": {"name": wish.interface, "address": wish.address}}));
    if !wish.range.is_empty() {
        section("dhcp", json!({"range": wish.range}));
    }
    section("state", json!(wish.state));
    let variables = variables(wish);
    if !variables.is_empty() {
        section("variables", json!(variables));
    }
    if wish.leads_to_the_gateway(REGISTRY_PROXY.0) {
        section("registry", json!({"upstreams": [{"host": REGISTRY_PROXY.1}]}));
    }
    if has_boots {
        section("boots", json!("boots.yml"));
    }
    if let Some(training) = training(&wish.environment) {
        section("training", training);
    }
    if !pdus.is_empty() {
        section("pdus", json!(pdus));
    }
    if !wish.terminals.is_empty() {
        let line = |path: &String| json!({"name": units::line_of(path), "tty": {"path": path}});
        section("consoles", wish.terminals.iter().map(line).collect());
    }
    section("duts", json!([]));
    text
}

/// `EXECUTOR_JOB__NTP_PEER` is `ntp_peer` in templates.
fn variables(wish: &Wish) -> BTreeMap<String, String> {
    let named = |(name, value): (&String, &String)| {
        let ours = name == REGISTRY_PROXY.0 && wish.leads_to_the_gateway(name);
        let job = name.strip_prefix(JOB_VARIABLE)?.to_lowercase();
        (!ours && !NAMES_OF_TEMPLATES.contains(&job.as_str())).then(|| (job, value.clone()))
    };
    wish.environment.iter().filter_map(named).collect()
}

fn training(environment: &BTreeMap<String, String>) -> Option<Value> {
    let number = |name: &str| environment.get(name)?.trim().parse::<i64>().ok();
    // Below 0 nothing trains with CI-tron.
    let boots = number("SERGENT_HARTMAN_BOOT_COUNT")?.clamp(0, 10_000);
    let qualifying = number("SERGENT_HARTMAN_QUALIFYING_BOOT_COUNT").unwrap_or(boots).clamp(0, boots);
    Some(json!({"boots": boots, "qualifying": qualifying}))
}

#[cfg(test)]
mod tests;
