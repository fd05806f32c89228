//! `wharf hosts`: the machines that run commands and keep files, and who has them.

use std::process::ExitCode;

use super::client::Server;
use super::jobs::plain_table;
use super::view::print;
use crate::api::wire::hosts::{HostWire, HostsWire};

/// Arguments of `wharf hosts`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Lists the hosts.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let hosts: HostsWire = Server::find(server)?.get("/api/v1/hosts").await?;
    print(&if arguments.json { serde_json::to_string_pretty(&hosts)? } else { drawn(&hosts.hosts) })?;
    Ok(ExitCode::SUCCESS)
}

fn drawn(hosts: &[HostWire]) -> String {
    let mut table = plain_table();
    table.set_header(["Host", "State", "Holders", "Seats", "Address", "Made by", "Tags", "Comment"]);
    for host in hosts {
        let why = host.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        table.add_row([
            host.name.clone(),
            format!("{}{why}", host.state),
            host.holders.join(", "),
            host.seats.to_string(),
            host.address.clone().unwrap_or_default(),
            host.provider.clone().unwrap_or_default(),
            host.tags.join(" "),
            host.comment.clone().unwrap_or_default(),
        ]);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_one_line() {
        let host = HostWire {
            name: "builder".into(),
            full_name: "lab-builder".into(),
            state: "leased".into(),
            why: None,
            tags: vec!["os:debian".into(), "farm:lab".into()],
            seats: 2,
            holders: vec!["anna".into(), "job 3".into()],
            address: Some("10.0.0.5".into()),
            provider: None,
            comment: None,
        };
        let drawn = drawn(&[host]);
        let row: Vec<_> = drawn.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["builder", "leased", "anna,", "job", "3", "2", "10.0.0.5", "os:debian", "farm:lab"]);
    }
}
