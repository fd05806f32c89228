//! Machines of the farm file that are not ours: which outlet switches them, where their console is; and the units and lines that several
//! machines name.
//!
//! ```text
//!  pdus:     {name: rack, snmp: {…}} ◄── power:   {pdu: rack, outlet: 7}      or a unit of its own: {exec: {…}}
//!  consoles: {name: usb-3, tty: {…}} ◄── console: {line: usb-3}               or a line of its own: {tcp: {…}}
//! ```
//! The drivers' own keys are in their own files; the tables in `blueprint` list them.

use std::marker::PhantomData;

use serde_json::{Map, Value};

use super::*;
use crate::blueprint::driver::{Chosen, Context, Driver};
use crate::blueprint::power::Outlet;
use crate::blueprint::{console, power};
use crate::config::{HardwareConfig, LineConfig, PduConfig, PowerConfig, Whose};
use crate::outlets::Policy;

/// A machine that is there whether this program runs or not.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["power", "console"]))]
pub(super) struct HardwareKeys {
    /// How its outlet is switched.
    power: PowerKeys,
    /// Where its console is.
    console: ConsoleKeys,
}

/// A unit of `pdus` or one of its own, and which outlet.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct PowerKeys {
    /// The outlet's name on its unit; a unit with a single outlet needs none.
    outlet: Option<String>,
    #[serde(flatten)]
    unit: Choice<OneOfPdus>,
}

/// A line of `consoles`, or one of its own.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct ConsoleKeys {
    #[serde(flatten)]
    way: Choice<OneOfLines>,
}

/// A power unit.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["name"]))]
pub(super) struct PduKeys {
    /// What machines name it by.
    #[schemars(extend("x-form" = "export-name", "x-example" = "name: rack-1"))]
    name: String,
    /// The least time that a machine is without power; as its driver has it when absent, 30 s for most.
    #[schemars(with = "Option<LengthForm>")]
    min_off_time: Option<f64>,
    /// How often the outlets are read; `5 s` when absent.
    #[schemars(with = "Option<LengthForm>")]
    poll_interval: Option<f64>,
    /// How long after a crash a command of before may still land; `5 s` when absent.
    #[schemars(with = "Option<LengthForm>")]
    settle_time: Option<f64>,
    /// Calls at a time; 1 when absent.
    #[schemars(range(min = 1, max = 16))]
    sessions: Option<usize>,
    /// Between two calls; `0.1 s` when absent.
    #[schemars(with = "Option<LengthForm>")]
    call_pause: Option<f64>,
    /// Outlets that nobody may switch.
    reserved: Vec<String>,
    #[serde(flatten)]
    unit: Choice<AnyPdu>,
}

/// A console.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["name"]))]
pub(super) struct LineKeys {
    /// What machines name it by.
    #[schemars(extend("x-form" = "export-name", "x-example" = "name: line-1"))]
    name: String,
    #[serde(flatten)]
    way: Choice<AnyLine>,
}

/// Exactly one driver of a table, by its name, with its keys; where `Of` has a list, an entry of that list does as well.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct Choice<Of> {
    said: Map<String, Value>,
    #[serde(skip)]
    of: PhantomData<Of>,
}

/// What is chosen from.
trait Choose {
    /// The key that names an entry of a list, and what it means.
    const NAMED: Option<(&'static str, &'static str)>;
    /// The drivers' names and keys.
    fn drivers(generator: &mut SchemaGenerator) -> Map<String, Value>;
}

#[derive(Debug)]
struct OneOfPdus;
#[derive(Debug)]
struct OneOfLines;
#[derive(Debug)]
struct AnyPdu;
#[derive(Debug)]
struct AnyLine;

impl Choose for AnyPdu {
    const NAMED: Option<(&'static str, &'static str)> = None;
    fn drivers(generator: &mut SchemaGenerator) -> Map<String, Value> {
        keys_of(power::DRIVERS, generator)
    }
}

impl Choose for OneOfPdus {
    const NAMED: Option<(&'static str, &'static str)> = Some(("pdu", "A unit of `pdus`."));
    fn drivers(generator: &mut SchemaGenerator) -> Map<String, Value> {
        AnyPdu::drivers(generator)
    }
}

impl Choose for AnyLine {
    const NAMED: Option<(&'static str, &'static str)> = None;
    fn drivers(generator: &mut SchemaGenerator) -> Map<String, Value> {
        keys_of(console::DRIVERS, generator)
    }
}

impl Choose for OneOfLines {
    const NAMED: Option<(&'static str, &'static str)> = Some(("line", "A line of `consoles`."));
    fn drivers(generator: &mut SchemaGenerator) -> Map<String, Value> {
        AnyLine::drivers(generator)
    }
}

fn keys_of<T: ?Sized>(table: &[Driver<T>], generator: &mut SchemaGenerator) -> Map<String, Value> {
    let keys = |driver: &Driver<T>| (driver.name.to_owned(), (driver.schema)(generator).to_value());
    table.iter().map(keys).collect()
}

impl<Of> Default for Choice<Of> {
    fn default() -> Self {
        Choice { said: Map::new(), of: PhantomData }
    }
}

impl<Of: Choose> JsonSchema for Choice<Of> {
    fn schema_name() -> Cow<'static, str> {
        "Choice".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut keys = Of::drivers(generator);
        if let Some((name, meaning)) = Of::NAMED {
            keys.insert(name.to_owned(), serde_json::json!({ "type": "string", "description": meaning }));
        }
        let names: Vec<&String> = keys.keys().collect();
        json_schema!({ "type": "object", "x-exactly-one": names, "properties": keys })
    }
}

impl<Of: Choose> Choice<Of> {
    /// What was chosen; nothing when the schema's check has told already why there is nothing.
    fn chosen<T: ?Sized>(&self, table: &[Driver<T>], directory: &Path) -> Option<Whose> {
        let mut said = self.said.iter().filter(|(_, keys)| !keys.is_null());
        let (name, keys) = said.next().filter(|_| said.next().is_none())?;
        if Of::NAMED.is_some_and(|(key, _)| key == name) {
            return keys.as_str().map(|name| Whose::Named(name.to_owned()));
        }
        let driver = table.iter().find(|driver| driver.name == name)?.name;
        Some(Whose::Own(Chosen { driver, keys: keys.clone(), directory: directory.to_owned() }))
    }
}

/// A shorter one is a server that does nothing else.
const POLL_INTERVAL_MIN: Duration = Duration::from_millis(100);

impl PduKeys {
    fn policy(&self) -> Policy {
        let usual = Policy::HARDWARE;
        let length = |said: Option<f64>| said.map(Duration::from_secs_f64);
        Policy {
            off_time: length(self.min_off_time),
            settle_time: length(self.settle_time).unwrap_or(usual.settle_time),
            poll_interval: length(self.poll_interval).map(|it| it.max(POLL_INTERVAL_MIN)).or(usual.poll_interval),
            sessions: self.sessions.unwrap_or(usual.sessions),
            call_pause: length(self.call_pause).unwrap_or(usual.call_pause),
            tries: usual.tries,
        }
    }
}

/// The units and lines that machines may name, and who does.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub pdus: Vec<PduConfig>,
    pub consoles: Vec<LineConfig>,
    /// Where each outlet of a named unit, and each named line, was used first.
    users: HashMap<(String, Option<String>), String>,
}

impl Shared {
    /// Those of the farm file, checked.
    pub(super) fn of(file: &FarmFile, directory: &Path, findings: &mut Findings) -> Shared {
        let mut shared = Shared::default();
        let mut names = HashMap::new();
        for (index, keys) in file.pdus.iter().enumerate() {
            once(&mut names, at("pdus", index, "name"), &keys.name, findings);
            let Some(Whose::Own(unit)) = keys.unit.chosen(power::DRIVERS, directory) else { continue };
            check(&unit, power::DRIVERS, None, &at("pdus", index, unit.driver), findings);
            let reserved = keys.reserved.iter().cloned().map(Outlet).collect();
            shared.pdus.push(PduConfig { name: keys.name.clone(), unit, policy: keys.policy(), reserved });
        }
        let mut names = HashMap::new();
        for (index, keys) in file.consoles.iter().enumerate() {
            once(&mut names, at("consoles", index, "name"), &keys.name, findings);
            let Some(Whose::Own(way)) = keys.way.chosen(console::DRIVERS, directory) else { continue };
            check(&way, console::DRIVERS, None, &at("consoles", index, way.driver), findings);
            shared.consoles.push(LineConfig { name: keys.name.clone(), way });
        }
        shared
    }

    /// One machine an outlet, one machine a line.
    fn used(&mut self, name: &str, outlet: Option<&str>, at: Vec<String>, findings: &mut Findings) {
        let what = match outlet {
            Some(outlet) => format!("outlet `{outlet}` of `{name}`"),
            None => format!("the line `{name}`"),
        };
        let key = (name.to_owned(), outlet.map(str::to_owned));
        if let Some(earlier) = self.users.get(&key) {
            findings.tell(&at, format!("{what} is already used by `{earlier}`"), "give every machine its own");
        } else {
            self.users.insert(key, field_of(&at));
        }
    }
}

impl Shared {
    /// What nobody may switch is no machine's.
    fn not_reserved(&self, name: &str, outlet: &str, at: &[String], findings: &mut Findings) {
        let unit = self.pdus.iter().find(|pdu| pdu.name == name);
        if unit.is_some_and(|pdu| pdu.reserved.iter().any(|it| it.0 == outlet)) {
            let what = format!("outlet `{outlet}` of `{name}` is reserved");
            findings.tell(at, what, "take it out of `reserved` of the unit, or name another outlet");
        }
    }
}

/// Names of one list are different.
fn once(names: &mut HashMap<String, String>, at: Vec<String>, name: &str, findings: &mut Findings) {
    match names.get(name) {
        Some(earlier) => {
            findings.tell(&at, format!("the name {} is already used by `{earlier}`", quoted(name)), "name each once");
        }
        None => {
            names.insert(name.to_owned(), field_of(&at));
        }
    }
}

/// What the driver says of its keys.
fn check<T: ?Sized>(
    chosen: &Chosen,
    table: &[Driver<T>],
    outlet: Option<&Outlet>,
    at: &[String],
    findings: &mut Findings,
) {
    let driver = table.iter().find(|driver| driver.name == chosen.driver).expect("it was chosen from this table");
    let mistakes = driver.build(&chosen.keys, &Context { directory: &chosen.directory, outlet }).err();
    for mistake in mistakes.unwrap_or_default() {
        let path: Vec<String> = at.iter().chain(&mistake.key).cloned().collect();
        findings.tell(&path, mistake.what, &mistake.hint);
    }
}

/// Where a machine stands in the farm file.
pub(super) struct Place<'a> {
    pub network: &'a NetworkConfig,
    pub directory: &'a Path,
    pub full_name: &'a str,
    pub at: &'a dyn Fn(&[&str]) -> Vec<String>,
}

/// What the schema cannot say is told; what it can is told already, and gives `None`.
pub(super) fn hardware(
    keys: &HardwareKeys,
    place: &Place<'_>,
    shared: &mut Shared,
    findings: &mut Findings,
) -> Option<MachineConfig> {
    let at = |path: &[&str]| (place.at)(&[&["hardware"], path].concat());
    if at(&[]).first().is_some_and(|list| list == "on_demand") {
        let hint = "name each machine under `duts`";
        findings.tell(&at(&[]), "hardware cannot be made on demand".to_owned(), hint);
    }
    if !matches!(place.network, NetworkConfig::Interface { .. }) {
        let hint = "use `network: {interface: {name: …, address: …}}`, the link that leads to it";
        findings.tell(&at(&[]), "hardware is not on a network of the farm's own".to_owned(), hint);
    }
    let power = power_of(&keys.power, place, &at(&["power"]), shared, findings);
    let console = console_of(&keys.console, place, &at(&["console"]), shared, findings);
    Some(MachineConfig::Hardware(HardwareConfig { power: power?, console: console? }))
}

fn power_of(
    keys: &PowerKeys,
    place: &Place<'_>,
    at: &[String],
    shared: &mut Shared,
    findings: &mut Findings,
) -> Option<PowerConfig> {
    let unit = keys.unit.chosen(power::DRIVERS, place.directory)?;
    let below = |key: &str| [at, &[key.to_owned()]].concat();
    let outlet = Outlet(keys.outlet.clone().unwrap_or_else(|| place.full_name.to_owned()));
    match &unit {
        Whose::Own(own) => check(own, power::DRIVERS, Some(&outlet), &below(own.driver), findings),
        Whose::Named(name) => {
            let known = shared.pdus.iter().map(|pdu| &pdu.name);
            find("PDU", name, known, &below("pdu"), findings);
            match &keys.outlet {
                Some(outlet) => {
                    shared.used(name, Some(outlet), below("outlet"), findings);
                    shared.not_reserved(name, outlet, &below("outlet"), findings);
                }
                None => {
                    let what = format!("which outlet of `{name}` is not said");
                    findings.tell(at, what, "add `outlet: \"7\"`, its name on the unit");
                }
            }
        }
    }
    Some(PowerConfig { unit, outlet })
}

fn console_of(
    keys: &ConsoleKeys,
    place: &Place<'_>,
    at: &[String],
    shared: &mut Shared,
    findings: &mut Findings,
) -> Option<Whose> {
    let way = keys.way.chosen(console::DRIVERS, place.directory)?;
    let below = |key: &str| [at, &[key.to_owned()]].concat();
    match &way {
        Whose::Own(own) => check(own, console::DRIVERS, None, &below(own.driver), findings),
        Whose::Named(name) => {
            find("console", name, shared.consoles.iter().map(|line| &line.name), &below("line"), findings);
            shared.used(name, None, below("line"), findings);
        }
    }
    Some(way)
}

/// A name must be one of the list's.
fn find<'a>(noun: &str, name: &str, known: impl Iterator<Item = &'a String>, at: &[String], findings: &mut Findings) {
    let known: Vec<&str> = known.map(String::as_str).collect();
    if !known.contains(&name) {
        let hint = match known.as_slice() {
            [] => format!("add it under `{}s`", noun.to_ascii_lowercase()),
            known => format!("there are: {}", known.join(", ")),
        };
        findings.tell(at, format!("no {noun} {}", quoted(name)), &hint);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FARM: &str = "name: lab\nnetwork: {interface: {name: eth1, address: 10.0.0.1/24}}\nduts:\n";

    fn told(text: &str) -> Vec<String> {
        let problems = parse("farm.yml", text, Path::new("")).map(drop).expect_err("the farm is wrong");
        problems.list().iter().map(|problem| format!("{}: {}", problem.field, problem.what)).collect()
    }

    fn machine(hardware: &str) -> String {
        format!("- {{mac: 52:54:00:77:00:01, address: 10.0.0.11, machine: {{hardware: {hardware}}}}}\n")
    }

    const GOOD: &str = "{power: {exec: {on: [pdu, '7', 'on'], off: [pdu, '7', 'off'], state: [pdu, '7']}}, \
                        console: {tcp: {host: ser2net.lab, port: 2007}}}";

    #[test]
    fn a_machine_has_commands_for_its_outlet_and_an_address_for_its_console() {
        let farm = parse("farm.yml", &format!("{FARM}{}", machine(GOOD)), Path::new("")).unwrap();
        let exec = json!({ "on": ["pdu", "7", "on"], "off": ["pdu", "7", "off"], "state": ["pdu", "7"] });
        let unit = Whose::Own(Chosen { driver: "exec", keys: exec, directory: "".into() });
        let tcp = json!({ "host": "ser2net.lab", "port": 2007 });
        let console = Whose::Own(Chosen { driver: "tcp", keys: tcp, directory: "".into() });
        let power = PowerConfig { unit, outlet: Outlet("lab-dut-1".into()) };
        let expected = HardwareConfig { power, console };
        assert!(matches!(&farm.duts[0].machine, MachineConfig::Hardware(machine) if *machine == expected));
    }

    #[test]
    fn what_is_missing_or_senseless_is_told_by_its_place() {
        let empty = machine("{power: {exec: {on: [], off: [''], state: [pdu]}}, console: {tcp: {host: a, port: 0}}}");
        assert_eq!(
            told(&format!("{FARM}{empty}")),
            [
                "duts[0].machine.hardware.power.exec.on: no program is named",
                "duts[0].machine.hardware.power.exec.off: no program is named",
                "duts[0].machine.hardware.console.tcp.port: `0` is out of range",
            ]
        );
        // Which drivers there are is for their tables to say.
        let all: Vec<String> = told(&format!("{FARM}{}", machine("{power: {abacus: {}}, console: {}}")));
        let expected = [
            ("duts[0].machine.hardware.power: one of `", "` or `pdu` is missing"),
            ("duts[0].machine.hardware.power.abacus", ": unknown key `abacus`"),
            ("duts[0].machine.hardware.console: one of `", "` or `line` is missing"),
        ];
        assert_eq!(all.len(), expected.len(), "{all:?}");
        for (told, (begins, ends)) in all.iter().zip(expected) {
            assert!(told.starts_with(begins) && told.ends_with(ends), "{told}");
        }
    }

    #[test]
    fn hardware_is_on_a_link_of_this_host_and_is_never_made() {
        let private = "name: lab\nnetwork: {private: {address: 10.0.0.1/24}}\nduts:\n";
        assert_eq!(
            told(&format!("{private}{}", machine(GOOD))),
            ["duts[0].machine.hardware: hardware is not on a network of the farm's own"]
        );
        let on_demand = format!(
            "name: lab\nnetwork: {{interface: {{name: eth1, address: 10.0.0.1/24}}}}\nduts: []\non_demand:\n\
             - {{name: box, limit: 2, first_address: 10.0.0.50, machine: {{hardware: {GOOD}}}}}\n"
        );
        assert_eq!(told(&on_demand), ["on_demand[0].machine.hardware: hardware cannot be made on demand"]);
    }

    const SHARED: &str = "pdus:\n- {name: rack, exec: {on: [pdu, '{outlet}'], off: [pdu, '{outlet}'], state: [pdu, '{outlet}']}}\n\
                          consoles:\n- {name: usb-1, tcp: {host: a, port: 1}}\n- {name: usb-2, tcp: {host: a, port: 2}}\n";

    fn two(left: &str, right: &str) -> String {
        let second = machine(right).replace("00:01", "00:02").replace("0.11", "0.12");
        format!("{SHARED}{FARM}{}{second}", machine(left))
    }

    #[test]
    fn machines_share_a_unit_by_its_name_and_each_has_its_own_outlet_and_line() {
        let text = two(
            "{power: {pdu: rack, outlet: '1'}, console: {line: usb-1}}",
            "{power: {pdu: rack, outlet: '2'}, console: {line: usb-2}}",
        );
        let farm = parse("farm.yml", &text, Path::new("")).unwrap_or_else(|problems| panic!("{problems}"));
        let MachineConfig::Hardware(right) = &farm.duts[1].machine else { panic!("it is hardware") };
        assert_eq!(right.power, PowerConfig { unit: Whose::Named("rack".into()), outlet: Outlet("2".into()) });
        assert_eq!(right.console, Whose::Named("usb-2".into()));
        assert_eq!((farm.pdus[0].name.as_str(), farm.pdus[0].unit.driver), ("rack", "exec"));
        assert_eq!(farm.consoles.len(), 2);
    }

    #[test]
    fn a_name_that_nothing_has_and_what_two_machines_use_are_told() {
        let text = two(
            "{power: {pdu: rock, outlet: '1'}, console: {line: usb-1}}",
            "{power: {pdu: rack}, console: {line: usb-1}}",
        );
        assert_eq!(
            told(&text),
            [
                "duts[0].machine.hardware.power.pdu: no PDU `rock`",
                "duts[1].machine.hardware.power: which outlet of `rack` is not said",
                "duts[1].machine.hardware.console.line: the line `usb-1` is already used by `duts[0].machine.hardware.console.line`",
            ]
        );
    }

    #[test]
    fn every_driver_is_built_from_its_fixture() {
        fn walk<T: ?Sized>(kind: &str, table: &[Driver<T>]) {
            for driver in table {
                let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/blueprints").join(kind);
                let path = root.join(format!("{}.yml", driver.name));
                let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                let list = if kind == "power" { "pdus" } else { "consoles" };
                let entry: String = text.lines().map(|line| format!("      {line}\n")).collect();
                let farm = format!("{FARM} []\n{list}:\n  - name: it\n    {}:\n{entry}", driver.name);
                let farm = parse("farm.yml", &farm, &root).unwrap_or_else(|problems| panic!("{problems}\n{farm}"));
                let names =
                    farm.pdus.iter().map(|pdu| pdu.unit.driver).chain(farm.consoles.iter().map(|it| it.way.driver));
                assert_eq!(names.collect::<Vec<_>>(), [driver.name]);
            }
            assert!(table.is_sorted_by_key(|driver| driver.name), "the table of {kind} is in alphabetical order");
        }
        walk("power", power::DRIVERS);
        walk("console", console::DRIVERS);
    }

    #[test]
    fn an_unknown_driver_or_key_names_the_known_ones() {
        let farm = |entry: &str| format!("{FARM} []\npdus:\n- {{name: it, {entry}}}\n");
        let problems = parse("farm.yml", &farm("abacus: {}"), Path::new("")).unwrap_err().to_string();
        for driver in power::DRIVERS {
            assert!(problems.contains(&format!("`{}`", driver.name)), "{problems}");
        }
        let exec = "exec: {on: [a, '{outlet}'], off: [a, '{outlet}'], state: [a, '{outlet}'], toggle: [a]}";
        let problems = parse("farm.yml", &farm(exec), Path::new("")).unwrap_err().to_string();
        assert!(problems.contains("unknown key `toggle`") && problems.contains("`on`"), "{problems}");
    }
}
