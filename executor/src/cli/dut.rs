//! `wharf dut`: one machine, found or added, looked at, changed, checked, held back, let go, retired, removed.

use std::collections::BTreeMap;
use std::process::ExitCode;

use bytes::Bytes;
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Server, in_query};
use super::duts::Dut;
use super::lease::user;
use super::view::print;
use crate::api::wire::leases::{ReasonWire, ResourceWire};

/// Arguments of `wharf dut`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Add a machine by hand, or say where the outlet and the console of a registered one are
    Add(super::discover::AddArguments),
    /// Find a machine that the farm does not know: power it, boot it, register it
    Discover(super::discover::Arguments),
    /// Show what it is, what it does, and what it has done so far
    Show {
        /// The DUT's id or full name
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Change the note or the tags of a machine that registered or was added
    Set {
        /// The DUT's id or full name
        name: String,
        /// A note for people; empty for none
        #[arg(long)]
        comment: Option<String>,
        /// A tag beside those that it registered with; may be repeated, and stands for all of them
        #[arg(long = "tag", value_name = "TAG")]
        tags: Option<Vec<String>>,
    },
    /// Take it out of service: whoever holds it keeps it, nobody gets it afterwards
    Cordon {
        /// The DUT's id or full name
        name: String,
        /// Why, for those who wait for it
        #[arg(long, default_value = "out of service")]
        reason: String,
    },
    /// Put it back into service, also after the farm itself has held it back
    Uncordon {
        /// The DUT's id or full name
        name: String,
    },
    /// Have it boot once; nobody gets it before that has passed
    Check {
        /// The DUT's id or full name
        name: String,
    },
    /// Take it out of service for good: not even checks run on it
    Retire {
        /// The DUT's id or full name
        name: String,
        /// Why, for those who wait for it
        #[arg(long, default_value = "out of use")]
        reason: String,
    },
    /// Put a retired one back: after a check it takes jobs
    Activate {
        /// The DUT's id or full name
        name: String,
    },
    /// Forget a machine that registered or was added; whoever holds it keeps it until he gives it back
    Remove {
        /// The DUT's id or full name
        name: String,
    },
}

/// Does what the verb says.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    match arguments.verb {
        Verb::Add(arguments) => return super::discover::add(arguments, server).await,
        Verb::Discover(arguments) => return super::discover::run(arguments, server).await,
        Verb::Show { name, json } => return show(&name, json, &Server::find(server)?).await,
        Verb::Set { name, comment, tags } => {
            let mut changes = json!({});
            if let Some(comment) = comment {
                changes["comment"] = comment.into();
            }
            if let Some(tags) = tags {
                changes["manual_tags"] = tags.into();
            }
            if changes.as_object().is_none_or(|changes| changes.is_empty()) {
                anyhow::bail!("nothing to set: say `--comment TEXT` or `--tag TAG`");
            }
            change(&name, &changes, &Server::find(server)?).await?;
        }
        Verb::Cordon { name, reason } => tell(&name, "cordon", Some(reason), &Server::find(server)?).await?,
        Verb::Uncordon { name } => tell(&name, "uncordon", None, &Server::find(server)?).await?,
        Verb::Check { name } => {
            let path = format!("/api/v1/dut/{}/quick_check", in_query(&name));
            print(Server::find(server)?.text(Method::POST, &path, Bytes::new()).await?.trim_end())?;
        }
        Verb::Retire { name, reason } => {
            let changes = json!({"is_retired": true, "reason": reason, "by": user()});
            change(&name, &changes, &Server::find(server)?).await?;
        }
        Verb::Activate { name } => {
            let changes = json!({"is_retired": false, "by": user()});
            change(&name, &changes, &Server::find(server)?).await?;
        }
        Verb::Remove { name } => {
            let path = format!("/api/v1/dut/{}", in_query(&name));
            print(Server::find(server)?.text(Method::DELETE, &path, Bytes::new()).await?.trim_end())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn tell(name: &str, verb: &str, reason: Option<String>, server: &Server) -> anyhow::Result<()> {
    let path = format!("/api/v1/resources/{}/{verb}?by={}", in_query(name), in_query(&user()));
    let dut: ResourceWire = server.ask(Method::POST, &path, &ReasonWire { reason }).await?;
    let held_back = dut.cordoned.map(|reason| format!("is held back: {reason}"));
    print(&format!("{} {}", dut.full_name, held_back.unwrap_or_else(|| "is in service".into())))
}

/// What is changed by CI-tron's route; then how it is.
async fn change(name: &str, changes: &Value, server: &Server) -> anyhow::Result<()> {
    let path = format!("/api/v1/dut/{}", in_query(name));
    server.text(Method::PATCH, &path, serde_json::to_vec(changes)?.into()).await?;
    let dut: Dut = server.get(&path).await?;
    let comment = dut.comment.map(|comment| format!(": {comment}")).unwrap_or_default();
    print(&format!("{} is {}{comment}", dut.full_name, dut.state))
}

/// What is read of one DUT beside what the list has.
#[derive(Debug, Deserialize)]
struct Shown {
    #[serde(flatten)]
    dut: Dut,
    health: String,
    record: Record,
    training: Training,
}

#[derive(Debug, Deserialize)]
struct Record {
    boots: u64,
    jobs: BTreeMap<String, u64>,
    failures: BTreeMap<String, u64>,
    failures_in_a_row: u32,
    last_failure: Option<Failure>,
    health_job: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Failure {
    at: jiff::Timestamp,
    job: String,
    cause: String,
    what: String,
}

#[derive(Debug, Deserialize)]
struct Training {
    is_active: bool,
    boot_loop_counts: u32,
    qualifying_rate: u32,
    current_loop_count: u32,
    statuses: BTreeMap<String, u64>,
}

async fn show(name: &str, json: bool, server: &Server) -> anyhow::Result<ExitCode> {
    let dut: Value = server.get(&format!("/api/v1/dut/{}", in_query(name))).await?;
    if json {
        print(&serde_json::to_string_pretty(&dut)?)?;
    } else {
        print(&drawn(&serde_json::from_value(dut)?))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn drawn(shown: &Shown) -> String {
    let Shown { dut, health, record, training } = shown;
    let counts = |counts: &BTreeMap<String, u64>| {
        let counts: Vec<_> = counts.iter().map(|(what, count)| format!("{count} {what}")).collect();
        if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }
    };
    let mut lines = vec![("state", dut.state.clone())];
    lines.extend(dut.comment.clone().map(|comment| ("comment", comment)));
    lines.extend(dut.job.clone().map(|job| ("job", job)));
    lines.extend(dut.holder.clone().map(|holder| ("holder", holder)));
    lines.extend(dut.power.clone().map(|power| ("power", power)));
    lines.push(("id", dut.id.clone()));
    lines.extend(dut.mac_address.clone().map(|mac| ("mac", mac)));
    lines.extend(dut.ip_address.clone().map(|address| ("address", address)));
    lines.push(("tags", dut.tags.join(" ")));
    lines.push(("health", health.clone()));
    lines.push(("boots", record.boots.to_string()));
    lines.push(("jobs", counts(&record.jobs)));
    lines.push(("failures", counts(&record.failures)));
    if record.failures_in_a_row > 0 {
        lines.push(("in a row", record.failures_in_a_row.to_string()));
    }
    if let Some(Failure { at, job, cause, what }) = &record.last_failure {
        lines.push(("last failure", format!("{at:.0}, job {job}, cause {cause}: {what}")));
    }
    if training.is_active {
        let Training { boot_loop_counts, qualifying_rate, current_loop_count, statuses, .. } = training;
        let passes = statuses.get("PASS").copied().unwrap_or_default();
        let text = format!(
            "{current_loop_count} of {boot_loop_counts} boots, {passes} passed of {qualifying_rate} that are needed"
        );
        lines.push(("training", text));
    }
    lines.extend(record.health_job.clone().map(|job| ("health job", job)));
    let lines = lines.iter().map(|(what, value)| format!("  {what:<13}{value}"));
    std::iter::once(dut.full_name.clone()).chain(lines).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dut_that_failed_while_it_trains_is_shown_with_what_it_did() {
        let shown: Shown = serde_json::from_value(json!({
            "id": "a", "full_name": "farm-sim-1", "state": "TRAINING", "tags": ["x", "farm:f"], "mac_address": "52:54:00:00:00:01",
            "ip_address": "10.0.0.2", "comment": null, "job": null, "holder": null, "power": "off", "health": "suspect",
            "record": {
                "boots": 7, "jobs": {"FAIL": 1, "PASS": 4}, "failures": {"network": 2}, "failures_in_a_row": 2, "health_job": "9",
                "last_failure": {"at": "2026-11-21T12:00:00Z", "job": "8", "cause": "network", "what": "no DHCP request"},
            },
            "training": {
                "is_active": true, "boot_loop_counts": 5, "qualifying_rate": 4, "current_loop_count": 3, "statuses": {"PASS": 2},
            },
        }))
        .unwrap();
        let expected = "farm-sim-1
  state        TRAINING
  power        off
  id           a
  mac          52:54:00:00:00:01
  address      10.0.0.2
  tags         x farm:f
  health       suspect
  boots        7
  jobs         1 FAIL, 4 PASS
  failures     2 network
  in a row     2
  last failure 2026-11-21T12:00:00Z, job 8, cause network: no DHCP request
  training     3 of 5 boots, 2 passed of 4 that are needed
  health job   9";
        assert_eq!(drawn(&shown), expected);
    }
}
