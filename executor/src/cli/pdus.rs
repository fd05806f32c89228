//! `wharf pdus`: the power units of a farm, and what their outlets do.

use std::process::ExitCode;

use super::client::Server;
use super::found_pdus::{self, Form};
use super::jobs::plain_table;
use super::view::print;
use crate::api::wire::pdus::{ErrandWire, PdusWire, PortWire, PowerUnitWire};

/// Arguments of `wharf pdus`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Look for units that the farm file does not have: those that tell of themselves
    #[arg(long)]
    discover: bool,
    /// Seconds that they get for it
    #[arg(long, requires = "discover", value_name = "SECONDS")]
    listen: Option<u64>,
}

/// Lists the outlets.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    if arguments.discover {
        let form = if arguments.json { Form::Json } else { Form::Lines };
        return found_pdus::run(arguments.listen, form, server).await;
    }
    let pdus: PdusWire = Server::find(server)?.get("/api/v1/pdus").await?;
    if arguments.json {
        print(&serde_json::to_string_pretty(&pdus)?)?;
    } else {
        print(&drawn(pdus.pdus.iter().map(|(name, pdu)| (name.as_str(), pdu))))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A line per outlet; a unit without any that is known has one, too.
pub(super) fn drawn<'a>(pdus: impl Iterator<Item = (&'a str, &'a PowerUnitWire)>) -> String {
    let mut table = plain_table();
    table.set_header(["PDU", "Driver", "Answers", "Outlet", "Is", "Reserved", "Label", "DUT", "Watts"]);
    let mut errands = String::new();
    for (name, pdu) in pdus {
        errands.extend(pdu.errands.iter().map(|it| errand(name, it)));
        let answers = pdu.error.clone().unwrap_or_else(|| answers(&pdu.state).to_owned());
        let unit = [name.to_owned(), pdu.driver.clone(), answers];
        if pdu.ports.is_empty() {
            table.add_row(unit.iter());
        }
        for (outlet, port) in &pdu.ports {
            table.add_row(unit.iter().cloned().chain(cells(outlet, port)));
        }
    }
    table.trim_fmt() + &errands
}

/// What a person should do, and how he tells of it.
fn errand(name: &str, errand: &ErrandWire) -> String {
    let ErrandWire { outlet, state, waits_s, .. } = errand;
    let instructions = errand.instructions.as_ref().map(|text| format!(" ({text})")).unwrap_or_default();
    format!(
        "\nswitch outlet {outlet} of {name} {state}{instructions}, {waits_s:.0} s ago; then: wharf pdu done {name} {outlet}"
    )
}

fn answers(state: &str) -> &'static str {
    if state == "CREATED" { "not asked yet" } else { "yes" }
}

fn cells(outlet: &str, port: &PortWire) -> [String; 6] {
    [
        outlet.to_owned(),
        port.state.to_lowercase(),
        if port.reserved { "reserved".to_owned() } else { String::new() },
        port.label.clone().unwrap_or_default(),
        port.dut.clone().unwrap_or_default(),
        port.instant_power.map(|watts| format!("{watts:.1}")).unwrap_or_default(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_outlet_is_one_line_with_its_unit() {
        let pdus: PdusWire = serde_json::from_value(json!({"pdus": {"rack": {
            "state": "OK", "error": null, "driver": "snmp", "reads_back": true,
            "ports": {"7": {
                "label": "shelf", "min_off_time": 30.0, "state": "ON", "last_shutdown": null, "last_polled": null,
                "reserved": true, "instant_power": 12.34, "energy": 5.0, "dut": null
            }}
        }}}))
        .unwrap();
        let table = drawn(pdus.pdus.iter().map(|(name, pdu)| (name.as_str(), pdu)));
        let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["rack", "snmp", "yes", "7", "on", "reserved", "shelf", "12.3"]);
        assert_eq!(table.lines().count(), 2);
    }

    #[test]
    fn a_person_reads_what_to_switch_and_how_to_tell() {
        let errand = json!({ "outlet": "1", "state": "on", "waits_s": 12.3, "instructions": "behind the bench" });
        let bench = json!({ "state": "OK", "error": null, "driver": "manual", "reads_back": false, "ports": {}, "errands": [errand] });
        let bench: PowerUnitWire = serde_json::from_value(bench).unwrap();
        let told = "switch outlet 1 of bench on (behind the bench), 12 s ago; then: wharf pdu done bench 1";
        assert_eq!(drawn(std::iter::once(("bench", &bench))).lines().last(), Some(told));
    }
}
