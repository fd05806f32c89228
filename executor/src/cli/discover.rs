//! `wharf dut discover` and `wharf dut add`: machines that the farm file does not name.

use std::process::ExitCode;

use anyhow::bail;
use bytes::Bytes;
use hyper::Method;
use serde_json::Value;

use super::client::Server;
use super::interrupts::Interrupts;
use super::view::print;
use crate::api::wire::discovery::{DiscoverWire, LoadersWire, NameWire, NewDutWire, NewsWire, OutletsWire, PduWire};
use crate::farm::{DiscoveryOutcome, LoaderView, OutletView};

/// Arguments of `wharf dut discover`.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("which").args(["outlet", "all"]))]
pub struct Arguments {
    /// The power unit that the machine is on; without it, somebody switches the machine on
    #[arg(long, requires = "which")]
    pdu: Option<String>,
    /// Its outlet there
    #[arg(long, requires = "pdu")]
    outlet: Option<String>,
    /// Try every outlet that no machine is on, one after the other; with --pdu those of one unit
    #[arg(long)]
    all: bool,
    /// How long a machine may take to ask for something to boot
    #[arg(long, value_name = "TIME", default_value = "150s", value_parser = seconds)]
    timeout: u64,
    /// Cancel the discovery that runs
    #[arg(long, conflicts_with_all = ["pdu", "outlet", "all"])]
    cancel: bool,
    /// List the fastboot loaders that are plugged in by USB where the server runs, and whose they are
    #[arg(long, conflicts_with_all = ["pdu", "outlet", "all", "cancel"])]
    usb: bool,
    /// Print the last machine that registered as JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `wharf dut add`.
#[derive(clap::Args)]
pub struct AddArguments {
    /// The MAC that it boots with
    #[arg(required_unless_present = "fastboot")]
    mac: Option<String>,
    /// The serial number of its fastboot loader on USB, of `wharf dut discover --usb`: its id
    #[arg(long, value_name = "SERIAL")]
    fastboot: Option<String>,
    /// Its address on the farm's network; the one that it got from the farm when absent
    #[arg(long)]
    address: Option<String>,
    /// The middle of its full name
    #[arg(long)]
    base_name: Option<String>,
    /// What jobs may ask for; may be repeated
    #[arg(long = "tag", short)]
    tags: Vec<String>,
    /// The power unit that it is on
    #[arg(long, requires = "outlet")]
    pdu: Option<String>,
    /// Its outlet there
    #[arg(long, requires = "pdu")]
    outlet: Option<String>,
    /// Its console, one of the farm file's `consoles`
    #[arg(long)]
    console: Option<String>,
    /// A note for people
    #[arg(long)]
    comment: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `150`, `150s` or `3m`.
fn seconds(text: &str) -> Result<u64, String> {
    let (number, unit_s) = match text.trim_end_matches(char::is_alphabetic) {
        number if text.ends_with('m') => (number, 60),
        number if text.ends_with('s') || number == text => (number, 1),
        _ => return Err(format!("`{text}` is no time; write `150s` or `3m`")),
    };
    let number: Option<u64> = number.parse().ok().filter(|number| *number > 0);
    number
        .and_then(|number| number.checked_mul(unit_s))
        .ok_or_else(|| format!("`{text}` is no time; write `150s` or `3m`"))
}

/// Finds a machine, or one per outlet.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let server = Server::find(server)?;
    if arguments.cancel {
        cancel(&server).await?;
        print("the discovery is cancelled")?;
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.usb {
        let LoadersWire { loaders } = server.get("/api/v1/dut/discover/usb").await?;
        print(&if arguments.json { serde_json::to_string_pretty(&loaders)? } else { listed(&loaders) })?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut places = vec![(arguments.pdu.clone(), arguments.outlet.clone())];
    if arguments.all {
        let OutletsWire { outlets } = server.get("/api/v1/dut/discover/outlets").await?;
        let free = |it: &OutletView| it.dut.is_none() && arguments.pdu.as_ref().is_none_or(|pdu| *pdu == it.pdu);
        let free = outlets.into_iter().filter(free);
        places = free.map(|it| (Some(it.pdu), Some(it.outlet))).collect();
        if places.is_empty() {
            bail!("no outlet without a machine is known; name one with --pdu and --outlet");
        }
    }
    let (mut found, mut interrupts) = (None, Interrupts::listen()?);
    for (pdu, outlet) in places {
        let wanted = DiscoverWire { pdu, port_id: outlet.map(NameWire::Text), timeout: Some(arguments.timeout) };
        match follow(&server, &wanted, &mut interrupts).await? {
            DiscoveryOutcome::Registered { id, full_name, waits_for } => {
                print(&match waits_for {
                    None => format!("{full_name} ({id}) is in the farm; `wharf duts` shows how it gets on"),
                    Some(why) => format!("{full_name} ({id}) waits: {why}"),
                })?;
                found = Some(id);
            }
            DiscoveryOutcome::Nothing { why } => print(&why)?,
            DiscoveryOutcome::Cancelled { by } => bail!("cancelled by {by}"),
            DiscoveryOutcome::Failed { why } => bail!("{why}"),
        }
    }
    match (found, arguments.json) {
        (None, _) => Ok(ExitCode::FAILURE),
        (Some(_), false) => Ok(ExitCode::SUCCESS),
        (Some(id), true) => {
            let dut: Value = server.get(&format!("/api/v1/dut/{}", super::client::in_query(&id))).await?;
            print(&serde_json::to_string_pretty(&dut)?)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// One discovery to its end; its lines as they come. Who interrupts it, or cannot be told of it any more, cancels it.
async fn follow(
    server: &Server,
    wanted: &DiscoverWire,
    interrupts: &mut Interrupts,
) -> anyhow::Result<DiscoveryOutcome> {
    let begun: Value = server.ask(Method::POST, "/api/v1/dut/discover", wanted).await?;
    let id = begun["id"].as_u64().unwrap_or_default();
    let mut next = 0;
    let told = async {
        loop {
            let news: NewsWire = server.get(&format!("/api/v1/dut/discover/{id}?from={next}")).await?;
            news.lines.iter().try_for_each(|line| print(line))?;
            next = news.next;
            if let Some(outcome) = news.outcome {
                return anyhow::Ok(outcome);
            }
        }
    };
    let ended = tokio::select! {
        told = told => match told {
            Ok(outcome) => return Ok(outcome),
            Err(error) => Err(error),
        },
        () = interrupts.next() => Ok(DiscoveryOutcome::Cancelled { by: "you".into() }),
    };
    let cancelled = tokio::select! {
        cancelled = cancel(server) => cancelled,
        () = interrupts.next() => Ok(()),
    };
    let outcome = ended?;
    cancelled?;
    Ok(outcome)
}

async fn cancel(server: &Server) -> anyhow::Result<()> {
    server.put(Method::DELETE, "/api/v1/dut/discover", "application/json", Bytes::new()).await
}

fn listed(loaders: &[LoaderView]) -> String {
    if loaders.is_empty() {
        return "no fastboot loader is plugged in by USB".to_owned();
    }
    let line = |LoaderView { serial, path, product, dut }: &LoaderView| {
        let product = product.as_ref().map(|product| format!(" ({product})")).unwrap_or_default();
        let whose = dut.clone().unwrap_or_else(|| format!("nobody's; `wharf dut add --fastboot {serial}` adds it"));
        format!("{serial} at {path}{product}: {whose}")
    };
    loaders.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Adds one machine.
pub async fn add(arguments: AddArguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let AddArguments { mac, fastboot, address, base_name, tags, pdu, outlet, console, comment, json } = arguments;
    let outlet = outlet.map(NameWire::Text);
    let wanted = NewDutWire {
        mac_address: mac,
        fastboot_serial: fastboot,
        ip_address: address,
        base_name,
        manual_tags: (!tags.is_empty()).then_some(tags),
        comment,
        pdu: pdu.zip(outlet).map(|(name, port_id)| PduWire { name, port_id }),
        console,
        ..NewDutWire::default()
    };
    let dut: Value = Server::find(server)?.ask(Method::POST, "/api/v1/dut/", &wanted).await?;
    if json {
        print(&serde_json::to_string_pretty(&dut)?)?;
    } else {
        let text = |key: &str| dut[key].as_str().unwrap_or_default().to_owned();
        let why = match text("state").as_str() {
            "WAIT_FOR_CONFIG" => format!("waits: {}", text("comment")),
            state => state.to_lowercase(),
        };
        print(&format!("{} ({}): {why}", text("full_name"), text("id")))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaders_are_listed_with_whose_they_are_or_how_they_become_a_machine() {
        let loader = |serial: &str, path: &str, product: Option<&str>, dut: Option<&str>| LoaderView {
            serial: serial.into(),
            path: path.into(),
            product: product.map(str::to_owned),
            dut: dut.map(str::to_owned),
        };
        assert_eq!(listed(&[]), "no fastboot loader is plugged in by USB");
        let all = [loader("A1", "1-1", None, Some("lab-phone-1")), loader("B2", "1-4.2", Some("Pixel 5"), None)];
        let expected = "A1 at 1-1: lab-phone-1\nB2 at 1-4.2 (Pixel 5): nobody's; `wharf dut add --fastboot B2` adds it";
        assert_eq!(listed(&all), expected);
    }

    #[test]
    fn a_timeout_is_seconds_or_minutes() {
        assert_eq!([seconds("150s"), seconds("150"), seconds("3m")], [Ok(150), Ok(150), Ok(180)]);
        for wrong in ["", "0", "fast", "3h", "-1s", "99999999999999999999s"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
