//! `wharf consoles`: the lines that the farm listens to.

use std::process::ExitCode;

use super::client::Server;
use super::jobs::{plain_table, time};
use super::view::print;
use crate::api::wire::consoles::{ConsoleWire, ConsolesWire};

/// Arguments of `wharf consoles`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Lists the consoles.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let answer: ConsolesWire = Server::find(server)?.get("/api/v1/consoles").await?;
    if arguments.json {
        print(&serde_json::to_string_pretty(&answer)?)?;
    } else {
        print(&drawn(&answer.consoles))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn drawn(consoles: &[ConsoleWire]) -> String {
    let mut table = plain_table();
    table.set_header(["Console", "DUT", "State", "Since", "Kept", "Next byte", "Machine says", "Trouble"]);
    for console in consoles {
        let or_empty = |text: &Option<String>| text.clone().unwrap_or_default();
        let trouble = console.refused.as_ref().or(console.reason.as_ref());
        table.add_row([
            console.name.clone(),
            or_empty(&console.dut),
            if console.open { "open" } else { "away" }.to_owned(),
            time(console.since),
            (console.end - console.first).to_string(),
            console.end.to_string(),
            or_empty(&console.machine_id),
            trouble.cloned().unwrap_or_default(),
        ]);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_that_is_away_says_why() {
        let json = r#"{"name": "line-3", "dut": null, "open": false, "since": "2026-11-21T12:00:00Z", "reason": "no such device",
                       "first": 100, "end": 1124, "said": null, "refused": null, "machine_id": null}"#;
        let table = drawn(&[serde_json::from_str(json).unwrap()]);
        let row = table.lines().nth(1).unwrap().trim_start();
        assert!(row.starts_with("line-3") && row.contains("away") && row.ends_with("no such device"), "{table}");
        assert!(row.contains(" 1024 ") && row.contains(" 1124 "), "{table}");
    }
}
