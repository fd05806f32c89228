//! `wharf pdu`: one power unit, looked at; its outlets reserved, or switched where no machine in service needs them.

use std::iter;
use std::process::ExitCode;

use hyper::Method;

use super::client::{Server, in_query};
use super::pdus::drawn;
use super::view::print;
use crate::api::wire::pdus::{PortWire, PortWishWire, PowerUnitWire};

/// Arguments of `wharf pdu`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Show its outlets
    Show {
        /// The unit, as `wharf pdus` calls it
        pdu: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Keep everybody from switching an outlet
    Reserve(Of),
    /// Let it be switched again
    Unreserve(Of),
    /// Switch it on; not that of a machine in service
    On(Of),
    /// Switch it off; not that of a machine in service
    Off(Of),
}

#[derive(clap::Args)]
struct Of {
    /// The unit, as `wharf pdus` calls it
    pdu: String,
    /// The outlet's name on it
    outlet: String,
}

/// Does what the verb says.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let server = Server::find(server)?;
    let (of, wish) = match arguments.verb {
        Verb::Show { pdu, json } => return show(&server, &pdu, json).await,
        Verb::Reserve(of) => (of, PortWishWire { reserved: Some(true), ..PortWishWire::default() }),
        Verb::Unreserve(of) => (of, PortWishWire { reserved: Some(false), ..PortWishWire::default() }),
        Verb::On(of) => (of, PortWishWire { state: Some("on".into()), ..PortWishWire::default() }),
        Verb::Off(of) => (of, PortWishWire { state: Some("off".into()), ..PortWishWire::default() }),
    };
    let path = format!("/api/v1/pdu/{}/port/{}", in_query(&of.pdu), in_query(&of.outlet));
    let port: PortWire = server.ask(Method::PATCH, &path, &wish).await?;
    let reserved = if port.reserved { ", reserved" } else { "" };
    print(&format!("outlet {} of {}: {}{reserved}", of.outlet, of.pdu, port.state.to_lowercase()))?;
    Ok(ExitCode::SUCCESS)
}

async fn show(server: &Server, name: &str, json: bool) -> anyhow::Result<ExitCode> {
    let pdu: PowerUnitWire = server.get(&format!("/api/v1/pdu/{}", in_query(name))).await?;
    if json {
        print(&serde_json::to_string_pretty(&pdu)?)?;
    } else {
        print(&drawn(iter::once((name, &pdu))))?;
    }
    Ok(ExitCode::SUCCESS)
}
