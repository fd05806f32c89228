//! `wharf leases`: who holds what, and who waits for what.

use std::process::ExitCode;

use super::client::Server;
use super::jobs::{plain_table, time};
use super::view::print;
use crate::api::wire::leases::{LeaseStateWire, LeaseWire, LeasesWire, in_a_word};

/// Arguments of `wharf leases`.
#[derive(clap::Args)]
pub struct Arguments {
    /// With the parts of each: console, outlet, boot namespace, gear
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Lists the leases.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let path = if arguments.all { "/api/v1/leases?all=1" } else { "/api/v1/leases" };
    let leases: LeasesWire = Server::find(server)?.get(path).await?;
    if arguments.json {
        print(&serde_json::to_string_pretty(&leases)?)?;
    } else {
        print(&drawn(&leases.leases))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn drawn(leases: &[LeaseWire]) -> String {
    let mut table = plain_table();
    table.set_header(["Lease", "Owner", "DUT", "State", "Since", "Until", "News"]);
    for lease in leases {
        table.add_row([
            lease.id.clone(),
            lease.owner.clone(),
            lease.resource.clone().unwrap_or_default(),
            in_a_word(&lease.state),
            time(lease.acquired.unwrap_or(lease.requested)),
            lease.expires.map(time).unwrap_or_default(),
            news(lease),
        ]);
        for part in &lease.parts {
            let resource = part.resource.clone().unwrap_or_default();
            table.add_row(["", part.kind.as_str(), &resource, &in_a_word(&part.state), "", "", ""]);
        }
    }
    table.trim_fmt()
}

/// What a person wants to know of it in a line: why it waits, or what is wrong with it.
pub(super) fn news(lease: &LeaseWire) -> String {
    if let Some(what) = &lease.needs_operator {
        return format!("somebody must look at it: {what}");
    }
    match (lease.state, lease.place) {
        (LeaseStateWire::Pending, Some(place)) => {
            let reason = lease.reasons.first().map(|reason| format!(": {reason}")).unwrap_or_default();
            let more = lease.reasons.len().saturating_sub(1);
            let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
            format!("place {place}{reason}{more}")
        }
        (LeaseStateWire::Releasing | LeaseStateWire::Destroyed, _) => lease.cause.clone(),
        (LeaseStateWire::Pending | LeaseStateWire::Acquired | LeaseStateWire::Active, _) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lease(changes: serde_json::Value) -> LeaseWire {
        let mut lease = json!({
            "id": "a", "kind": "dut", "state": "pending", "cause": "it was asked for", "owner": "anna", "kept_by": "connection",
            "subject": "anna", "resource": null, "wanted": null, "tags": [], "gear": [], "priority": 0,
            "requested": "2026-11-21T06:00:00Z", "acquired": null, "expires": null, "expires_at_most": null, "place": 2,
            "reasons": ["one is busy with job 3", "two is held back: broken"], "estimate": null, "needs_operator": null, "part_of": null
        });
        let fields = lease.as_object_mut().unwrap();
        fields.extend(changes.as_object().unwrap().clone());
        serde_json::from_value(lease).unwrap()
    }

    #[test]
    fn a_lease_that_waits_says_its_place_and_why() {
        assert_eq!(news(&lease(json!({}))), "place 2: one is busy with job 3 (and 1 more)");
    }

    #[test]
    fn a_lease_that_needs_somebody_says_so_first() {
        let stuck = lease(json!({"state": "releasing", "place": null, "needs_operator": "it reads back on"}));
        assert_eq!(news(&stuck), "somebody must look at it: it reads back on");
    }

    #[test]
    fn a_held_lease_is_one_line() {
        let held = lease(
            json!({"state": "active", "place": null, "reasons": [], "resource": "farm-sim-1", "acquired": "2026-11-21T06:01:00Z"}),
        );
        let drawn = drawn(&[held]);
        let row: Vec<_> = drawn.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row[..4], ["a", "anna", "farm-sim-1", "active"]);
    }
}
