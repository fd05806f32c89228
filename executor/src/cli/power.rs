//! `wharf power`: the outlet of a DUT, for whoever holds it; its state for everybody.

use std::process::ExitCode;

use anyhow::bail;
use hyper::Method;
use serde_json::{Value, json};

use super::client::{Server, in_query};
use super::console::{Found, find};
use super::view::print;
use crate::api::wire::leases::PowerWire;
use crate::api::wire::pdus::ServedPowerWire;

/// Arguments of `wharf power`.
#[derive(clap::Args)]
pub struct Arguments {
    /// A lease's id, or a DUT's id or full name
    #[arg(value_name = "DUT|LEASE")]
    target: String,
    /// What to do
    verb: Verb,
}

/// A wish about power.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Verb {
    /// Power on; boots what `wharf lease boot` published
    On,
    /// Power off
    Off,
    /// Off, a pause, on
    Cycle,
    /// Say what the outlet reads
    State,
    /// Say how pdudaemon's clients and labgrid name it
    Urls,
}

/// Switches, or looks.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let server = Server::find(server)?;
    let found = find(&server, &arguments.target).await?;
    let wish = match arguments.verb {
        Verb::State => return state(&server, &arguments.target, found).await,
        Verb::Urls => return urls(&server, found).await,
        Verb::On => "on",
        Verb::Off => "off",
        Verb::Cycle => "cycle",
    };
    let lease = match found {
        Found::Lease(lease) | Found::HolderOf(lease) => lease,
        Found::Free(dut) => bail!("nobody holds {dut}; take it with `wharf lease take {dut}` before you switch it"),
    };
    let path = format!("/api/v1/leases/{}/power", in_query(&lease.id));
    let power: PowerWire = server.ask(Method::POST, &path, &json!({"state": wish})).await?;
    print(&power.state.to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// What to write into the configuration of others.
async fn urls(server: &Server, found: Found) -> anyhow::Result<ExitCode> {
    let lease = match found {
        Found::Lease(lease) | Found::HolderOf(lease) => lease,
        Found::Free(dut) => bail!("nobody holds {dut}; take it with `wharf lease take {dut}` first"),
    };
    let served: ServedPowerWire = server.get(&format!("/api/v1/leases/{}/power/served", in_query(&lease.id))).await?;
    print(&format!(
        "key         {}\nrest        {}\nsimplerest  {}\npdudaemon   {}",
        served.key, served.rest, served.simplerest, served.pdudaemon
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// As the outlet reads now under a lease of a person; as it was last read otherwise.
async fn state(server: &Server, target: &str, found: Found) -> anyhow::Result<ExitCode> {
    let dut = match found {
        Found::Lease(lease) | Found::HolderOf(lease) if lease.kept_by != "job" => {
            let path = format!("/api/v1/leases/{}/power", in_query(&lease.id));
            let power: PowerWire = server.get(&path).await?;
            print(&power.state.to_string())?;
            return Ok(ExitCode::SUCCESS);
        }
        Found::Lease(lease) | Found::HolderOf(lease) => lease.resource.unwrap_or_else(|| target.to_owned()),
        Found::Free(dut) => dut,
    };
    let dut: Value = server.get(&format!("/api/v1/dut/{}", in_query(&dut))).await?;
    print(dut["power"].as_str().unwrap_or("not read yet"))?;
    Ok(ExitCode::SUCCESS)
}
