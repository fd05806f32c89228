//! `wharf pdu`: one power unit, looked at; its outlets reserved, or switched where no machine in service needs them; one that was found,
//! adopted or given up.

use std::iter;
use std::process::ExitCode;

use bytes::Bytes;
use hyper::Method;
use serde_json::Value;

use super::client::{Server, in_query};
use super::pdus::drawn;
use super::view::print;
use crate::api::wire::found_pdus::AdoptWire;
use crate::api::wire::pdus::{AdoptedWire, PortWire, PortWishWire, PowerUnitWire, SwitchedWire};
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
    /// Take a unit into the farm that `wharf pdus --discover` found; the farm file stays as it is
    Adopt(Adopted),
    /// Give up a unit that was adopted
    Remove {
        /// The unit, as `wharf pdus` calls it
        pdu: String,
    },
}

#[derive(clap::Args)]
struct Adopted {
    /// As `wharf pdus --discover` calls it, or its address
    #[arg(value_name = "FOUND")]
    found: String,
    /// What it is called from now on
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// A key of its driver that it does not tell, such as `password=apple`; may be repeated
    #[arg(long = "with", value_name = "KEY=VALUE", value_parser = key_value)]
    keys: Vec<(String, Value)>,
    /// Seconds that it gets for telling of itself
    #[arg(long, value_name = "SECONDS")]
    listen: Option<u64>,
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
        Verb::Adopt(adopted) => return adopt(&server, adopted).await,
        Verb::Remove { pdu } => {
            server.put(Method::DELETE, &format!("/api/v1/pdu/{}", in_query(&pdu)), "", Bytes::new()).await?;
            print(&format!("{pdu} is the farm's no longer"))?;
            return Ok(ExitCode::SUCCESS);
        }
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

async fn adopt(server: &Server, adopted: Adopted) -> anyhow::Result<ExitCode> {
    let Adopted { found, name, keys, listen } = adopted;
    let wish = AdoptWire { found, name, keys: keys.into_iter().collect(), listen_s: listen };
    let adopted: AdoptedWire = server.ask(Method::POST, "/api/v1/pdus/adopt", &wish).await?;
    print(&drawn(iter::once((adopted.name.as_str(), &adopted.pdu))))?;
    Ok(ExitCode::SUCCESS)
}

/// As the farm file has it: `version=3` is a number, `password=apple` text.
fn key_value(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    let value = serde_yaml::from_str(value).map_err(|error| format!("`{value}` is no YAML: {error}"))?;
    Ok((key.to_owned(), value))
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
