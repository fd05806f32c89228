//! Machines of the farm file that are not ours: how their outlet is switched, and where their console is.

use super::*;
use crate::config::{ConsoleConfig, ExecConfig, HardwareConfig, PowerConfig, TcpConsoleConfig};

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

/// Exactly one of the ways to switch an outlet.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("x-exactly-one" = ["exec"]))]
struct PowerKeys {
    /// Commands of this host.
    exec: Option<ExecKeys>,
}

/// A command each, as a list of words; no shell reads them.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["on", "off", "state"]))]
struct ExecKeys {
    /// Switches it on; repeating it is harmless.
    on: Vec<String>,
    /// Switches it off; repeating it is harmless.
    off: Vec<String>,
    /// Prints `on` or `off`.
    state: Vec<String>,
}

/// Exactly one of the ways to reach a console.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("x-exactly-one" = ["tcp"]))]
struct ConsoleKeys {
    /// A TCP port that is the serial line, byte for byte.
    tcp: Option<TcpKeys>,
}

/// A console server's port.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["host", "port"]))]
struct TcpKeys {
    /// Its name or address.
    host: String,
    /// The port of this machine's line.
    #[schemars(range(min = 1, max = 65535), extend("x-example" = "port: 2001"))]
    port: Option<u16>,
}

/// What the schema cannot say is told; what it can is told already, and gives `None`.
pub(super) fn hardware(
    keys: &HardwareKeys,
    network: &NetworkConfig,
    place: &dyn Fn(&[&str]) -> Vec<String>,
    findings: &mut Findings,
) -> Option<MachineConfig> {
    if place(&[]).first().is_some_and(|list| list == "on_demand") {
        let hint = "name each machine under `duts`";
        findings.tell(&place(&["hardware"]), "hardware cannot be made on demand".to_owned(), hint);
    }
    if !matches!(network, NetworkConfig::Interface { .. }) {
        let hint = "use `network: {interface: {name: …, address: …}}`, the link that leads to it";
        findings.tell(&place(&["hardware"]), "hardware is not on a network of the farm's own".to_owned(), hint);
    }
    let exec = keys.power.exec.as_ref()?;
    for (key, words) in [("on", &exec.on), ("off", &exec.off), ("state", &exec.state)] {
        if words.first().is_none_or(String::is_empty) {
            let hint = "write a program and its words: `[pdu-client, outlet-7, \"on\"]`";
            findings.tell(&place(&["hardware", "power", "exec", key]), "no program is named".to_owned(), hint);
        }
    }
    let tcp = keys.console.tcp.as_ref()?;
    let exec = ExecConfig { on: exec.on.clone(), off: exec.off.clone(), state: exec.state.clone() };
    let console = TcpConsoleConfig { host: tcp.host.clone(), port: tcp.port? };
    Some(MachineConfig::Hardware(HardwareConfig {
        power: PowerConfig::Exec(exec),
        console: ConsoleConfig::Tcp(console),
    }))
}

#[cfg(test)]
mod tests {
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
        let words = |words: &[&str]| words.iter().map(|word| word.to_string()).collect();
        let exec = ExecConfig {
            on: words(&["pdu", "7", "on"]),
            off: words(&["pdu", "7", "off"]),
            state: words(&["pdu", "7"]),
        };
        let console = TcpConsoleConfig { host: "ser2net.lab".into(), port: 2007 };
        let expected = HardwareConfig { power: PowerConfig::Exec(exec), console: ConsoleConfig::Tcp(console) };
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
        assert_eq!(
            told(&format!("{FARM}{}", machine("{power: {snmp: {}}, console: {}}"))),
            [
                "duts[0].machine.hardware.power: one of `exec` is missing",
                "duts[0].machine.hardware.power.snmp: unknown key `snmp`",
                "duts[0].machine.hardware.console: one of `tcp` is missing",
            ]
        );
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
}
