//! `wharf dut`: one machine, found or added, held back or let go.

use std::process::ExitCode;

use hyper::Method;

use super::client::{Server, in_query};
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
}

/// Does what the verb says.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let (name, verb, reason) = match arguments.verb {
        Verb::Add(arguments) => return super::discover::add(arguments, server).await,
        Verb::Discover(arguments) => return super::discover::run(arguments, server).await,
        Verb::Cordon { name, reason } => (name, "cordon", Some(reason)),
        Verb::Uncordon { name } => (name, "uncordon", None),
    };
    let path = format!("/api/v1/resources/{}/{verb}?by={}", in_query(&name), in_query(&user()));
    let dut: ResourceWire = Server::find(server)?.ask(Method::POST, &path, &ReasonWire { reason }).await?;
    let held_back = dut.cordoned.map(|reason| format!("is held back: {reason}"));
    print(&format!("{} {}", dut.full_name, held_back.unwrap_or_else(|| "is in service".into())))?;
    Ok(ExitCode::SUCCESS)
}
