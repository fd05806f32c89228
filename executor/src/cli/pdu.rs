//! `wharf pdu`: one power unit, looked at; its outlets reserved, or switched where no machine in service needs them.

use std::iter;
use std::process::ExitCode;

use hyper::Method;

use super::client::{Server, in_query};
use super::pdus::drawn;
use super::view::print;
use crate::api::wire::pdus::{PortWire, PortWishWire, PowerUnitWire, SwitchedWire};
use crate::blueprint::power::PowerState;

/// Arguments of `wharf pdu`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Show its outlets
    Show(Shown),
    /// Keep everybody from switching an outlet
    Reserve(Of),
    /// Let it be switched again
    Unreserve(Of),
    /// Switch it on; not that of a machine in service
    On(Of),
    /// Switch it off; not that of a machine in service
    Off(Of),
    /// Say that you switched it by hand, as a `manual` unit asks
    Done {
        #[command(flatten)]
        of: Of,
        /// What it does now, if that is not what was asked for
        #[arg(value_parser = ["on", "off"])]
        state: Option<String>,
    },
}

#[derive(clap::Args)]
struct Shown {
    /// The unit, as `wharf pdus` calls it
    pdu: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
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
        Verb::Show(shown) => return show(&server, &shown).await,
        Verb::Done { of, state } => return done(&server, &of, state.as_deref()).await,
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

async fn done(server: &Server, of: &Of, state: Option<&str>) -> anyhow::Result<ExitCode> {
    let state = match state {
        Some("on") => Some(PowerState::On),
        Some(_) => Some(PowerState::Off),
        None => None,
    };
    let path = format!("/api/v1/pdu/{}/port/{}/done", in_query(&of.pdu), in_query(&of.outlet));
    let said: SwitchedWire = server.ask(Method::POST, &path, &SwitchedWire { state }).await?;
    let state = said.state.map(|state| state.to_string()).unwrap_or_default();
    print(&format!("outlet {} of {} is {state}", of.outlet, of.pdu))?;
    Ok(ExitCode::SUCCESS)
}

async fn show(server: &Server, shown: &Shown) -> anyhow::Result<ExitCode> {
    let name = shown.pdu.as_str();
    let pdu: PowerUnitWire = server.get(&format!("/api/v1/pdu/{}", in_query(name))).await?;
    if shown.json {
        print(&serde_json::to_string_pretty(&pdu)?)?;
    } else {
        print(&drawn(iter::once((name, &pdu))))?;
    }
    Ok(ExitCode::SUCCESS)
}
