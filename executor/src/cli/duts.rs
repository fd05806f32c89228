//! `wharf duts`: the machines of a farm and what they do.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde::Deserialize;
use serde_json::Value;

use super::client::Server;
use super::jobs::plain_table;
use super::view::print;

/// Arguments of `wharf duts`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is read of a DUT; the answer has CI-tron's other keys too.
#[derive(Debug, Deserialize)]
pub(super) struct Dut {
    pub(super) id: String,
    pub(super) full_name: String,
    pub(super) state: String,
    pub(super) tags: Vec<String>,
    pub(super) mac_address: Option<String>,
    pub(super) ip_address: Option<String>,
    pub(super) comment: Option<String>,
    pub(super) job: Option<String>,
    pub(super) holder: Option<String>,
    pub(super) power: Option<String>,
}

/// Lists the machines.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let answer: Value = Server::find(server)?.get("/api/v1/duts").await?;
    if arguments.json {
        print(&serde_json::to_string_pretty(&answer)?)?;
    } else {
        let duts: BTreeMap<String, Dut> = serde_json::from_value(answer["duts"].clone())?;
        print(&drawn(duts.values()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn drawn<'a>(duts: impl Iterator<Item = &'a Dut>) -> String {
    let mut table = plain_table();
    table.set_header(["DUT", "State", "Power", "Job or holder", "MAC", "Address", "Tags", "Comment"]);
    for dut in duts {
        let or_empty = |text: &Option<String>| text.clone().unwrap_or_default();
        table.add_row([
            dut.full_name.clone(),
            dut.state.to_lowercase(),
            or_empty(&dut.power),
            dut.job.clone().or_else(|| dut.holder.clone()).unwrap_or_default(),
            or_empty(&dut.mac_address),
            or_empty(&dut.ip_address),
            dut.tags.join(" "),
            or_empty(&dut.comment),
        ]);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_dut_is_one_line() {
        let json = r#"{"id": "a", "full_name": "farm-sim-1", "state": "IDLE", "tags": ["x", "farm:f"], "mac_address": "52:54:00:00:00:01",
                       "ip_address": "10.0.0.2", "comment": null, "job": null, "power": "off"}"#;
        let dut: Dut = serde_json::from_str(json).unwrap();
        let table = drawn([&dut].into_iter());
        let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["farm-sim-1", "idle", "off", "52:54:00:00:00:01", "10.0.0.2", "x", "farm:f"]);
    }
}
