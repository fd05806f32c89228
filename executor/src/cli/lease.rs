//! `wharf lease`: a DUT for a person, for a while.
//!
//! ```text
//!  take ─► waits, says place and reasons ─► active: the console, and typing ─► Ctrl-C, or this process is gone: released
//!     │                                        └─ handed over by somebody ─► leaves; the lease stays
//!     └─ --detach ─► prints the id; the lease lasts until its time is over
//! ```

use std::cell::Cell;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hyper::Method;
use serde_json::json;

use super::client::{Refused, Server, in_query};
use super::console::{Keys, Left, show};
use super::interrupts::{INTERRUPTED, Interrupts};
use super::jobs::time;
use super::leases::news;
use super::view::{print, say};
use crate::api::wire::leases::{
    ChangeWire, ConsolePortWire, ConsolePortWishWire, LeaseStateWire, LeaseWire, OwnerWire, PowerWire, ReasonWire,
    TakeWire, in_a_word,
};
use crate::console::Protocol;

/// How long a detached lease lasts when nobody said: long enough for a look, short enough to be forgotten about.
const DETACHED_TIME: &str = "1h";
/// How long a server that went away is looked for: as long as a restarted one waits for us.
const RESTART_PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts to reach it.
const RESTART_PAUSE: Duration = Duration::from_millis(500);

/// Arguments of `wharf lease`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Take a DUT: wait for it, show its console, type to it; Ctrl-C gives it back
    Take(Take),
    /// State, owner, DUT, parts, times
    Show {
        /// The lease's id
        id: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Let it end so long from now
    Renew {
        /// The lease's id
        id: String,
        /// How long from now, such as `1h 30m`
        #[arg(long = "for", value_name = "TIME")]
        hold_time: String,
    },
    /// Give it back: the DUT is switched off and free
    Release {
        /// The lease's id
        id: String,
    },
    /// Give it to somebody else; only its time ends it from then on
    HandOver {
        /// The lease's id
        id: String,
        /// Whose it is from now on
        name: String,
        /// How long it lasts from now on; needed where it has no end yet
        #[arg(long = "for", value_name = "TIME")]
        hold_time: Option<String>,
    },
    /// Publish what a job's `deployment.start` boots: power on boots it
    Boot {
        /// The lease's id
        id: String,
        /// The job file
        job: PathBuf,
    },
    /// Serve its console at a port of the server's host, for as long as it lasts; prints ADDRESS:PORT
    ConsolePort {
        /// The lease's id
        id: String,
        /// What is spoken there
        #[arg(long, value_enum, default_value = "raw")]
        protocol: Protocol,
    },
    /// Count a tear-down that does not succeed as done: somebody has looked at the DUT
    Abandon {
        /// The lease's id
        id: String,
        /// Why that is all right; the events keep it
        #[arg(long)]
        reason: String,
    },
}

/// Arguments of `wharf lease take`.
#[derive(clap::Args)]
struct Take {
    /// The DUT's id or full name, with --host the host's name; any when absent
    dut: Option<String>,
    /// Take a host instead of a DUT: a working copy on it, for `wharf host`
    #[arg(long, conflicts_with = "boot")]
    host: bool,
    /// A tag that the DUT must have
    #[arg(short = 't', long = "tag")]
    tags: Vec<String>,
    /// Gear that is claimed with it
    #[arg(long)]
    gear: Vec<String>,
    /// How long, such as `1h 30m`; without --detach until Ctrl-C when absent
    #[arg(long = "for", value_name = "TIME")]
    hold_time: Option<String>,
    /// Higher goes first
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// Boot what this job's `deployment.start` says
    #[arg(long, value_name = "JOB.yml")]
    boot: Option<PathBuf>,
    /// Print the lease's id and leave; it lasts until --for (an hour when absent) is over
    #[arg(long)]
    detach: bool,
    /// With --detach: print the lease as JSON
    #[arg(long, requires = "detach")]
    json: bool,
}

/// Does what the verb says.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let server = Server::find(server)?;
    match arguments.verb {
        Verb::Take(arguments) => return take(&server, arguments).await,
        Verb::Show { id, json } => {
            let lease: LeaseWire = server.get(&path(&id)).await?;
            print(&if json { serde_json::to_string_pretty(&lease)? } else { described(&lease) })?;
        }
        Verb::Renew { id, hold_time } => {
            let change = ChangeWire { hold_time: Some(hold_time), ..ChangeWire::default() };
            let lease: LeaseWire = server.ask(Method::PATCH, &by_us(&path(&id)), &change).await?;
            print(&format!("until {}", lease.expires.map(time).unwrap_or_default()))?;
        }
        Verb::Release { id } => release(&server, &id).await?,
        Verb::HandOver { id, name, hold_time } => {
            let change =
                ChangeWire { hold_time, name: Some(name), owner: Some(OwnerWire::Term), ..ChangeWire::default() };
            let lease: LeaseWire = server.ask(Method::PATCH, &by_us(&path(&id)), &change).await?;
            print(&format!(
                "lease {} is {}'s until {}",
                lease.id,
                lease.owner,
                lease.expires.map(time).unwrap_or_default()
            ))?;
        }
        Verb::Boot { id, job } => publish(&server, &id, &job).await?,
        Verb::ConsolePort { id, protocol } => {
            let path = format!("{}/console/serve", path(&id));
            let wish = ConsolePortWishWire { protocol: Some(protocol) };
            let port: ConsolePortWire = server.ask(Method::POST, &path, &wish).await?;
            print(&port.address.to_string())?;
        }
        Verb::Abandon { id, reason } => {
            let path = by_us(&format!("{}/abandon", path(&id)));
            let _: LeaseWire = server.ask(Method::POST, &path, &ReasonWire { reason: Some(reason) }).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The name of whoever runs this.
pub(super) fn user() -> String {
    std::env::var("USER").unwrap_or_else(|_| format!("user {}", nix::unistd::getuid()))
}

pub(super) fn path(id: &str) -> String {
    format!("/api/v1/leases/{}", in_query(id))
}

fn by_us(path: &str) -> String {
    format!("{path}?by={}", in_query(&user()))
}

async fn take(server: &Server, arguments: Take) -> anyhow::Result<ExitCode> {
    let wish = wish(&arguments, server.subject());
    let lease: LeaseWire = server.ask(Method::POST, "/api/v1/leases", &wish).await?;
    if !arguments.detach {
        return Taken { server, id: lease.id, owner: lease.owner, boot: arguments.boot, told: None }
            .until_it_ends()
            .await;
    }
    if let Some(job) = &arguments.boot {
        wait_until_active(server, &lease.id).await?;
        boot(server, &lease.id, job).await?;
    }
    let lease: LeaseWire = server.get(&path(&lease.id)).await?;
    print(&if arguments.json { serde_json::to_string_pretty(&lease)? } else { lease.id })?;
    Ok(ExitCode::SUCCESS)
}

fn wish(arguments: &Take, subject: Option<String>) -> TakeWire {
    let (owner, hold_time) = match arguments.detach {
        true => (OwnerWire::Term, arguments.hold_time.clone().or_else(|| Some(DETACHED_TIME.into()))),
        false => (OwnerWire::Connection, arguments.hold_time.clone()),
    };
    TakeWire {
        // Ours, so that a request whose answer was lost can be made again.
        id: Some(format!("lease-{:08x}", rand::random::<u32>())),
        dut: arguments.dut.clone().filter(|_| !arguments.host),
        host: arguments.host.then(|| arguments.dut.clone().unwrap_or_default()),
        tags: arguments.tags.clone(),
        gear: arguments.gear.clone(),
        priority: arguments.priority,
        hold_time,
        owner: Some(owner),
        name: Some(user()),
        subject,
        ..TakeWire::default()
    }
}

pub(super) async fn wait_until_active(server: &Server, id: &str) -> anyhow::Result<()> {
    let mut views = server.lines::<LeaseWire>(&format!("{}/events", path(id))).await?;
    let mut told = None;
    while let Some(lease) = views.next().await? {
        tell(&lease, &mut told);
        match lease.state {
            LeaseStateWire::Active => return Ok(()),
            LeaseStateWire::Destroyed => bail!("the lease is over: {}", lease.cause),
            LeaseStateWire::Pending | LeaseStateWire::Acquired | LeaseStateWire::Releasing => {}
        }
    }
    bail!("the server ended the stream before the lease was active")
}

async fn publish(server: &Server, id: &str, job: &PathBuf) -> anyhow::Result<()> {
    publish_text(server, id, &job.display().to_string(), super::read_text(job)?).await
}

async fn publish_text(server: &Server, id: &str, name: &str, text: String) -> anyhow::Result<()> {
    let path = format!("{}/boot?name={}", path(id), in_query(name));
    server.put(Method::PUT, &path, "application/yaml", text.into()).await
}

async fn boot(server: &Server, id: &str, job: &PathBuf) -> anyhow::Result<()> {
    boot_text(server, id, &job.display().to_string(), super::read_text(job)?).await
}

/// Publishes a job description of this name, and switches on.
pub(super) async fn boot_text(server: &Server, id: &str, name: &str, text: String) -> anyhow::Result<()> {
    publish_text(server, id, name, text).await?;
    let _: PowerWire = server.ask(Method::POST, &format!("{}/power", path(id)), &json!({"state": "on"})).await?;
    Ok(())
}

/// Releases, and waits until everything is given back.
pub(super) async fn release(server: &Server, id: &str) -> anyhow::Result<()> {
    let mut views = server.lines::<LeaseWire>(&format!("{}/events", path(id))).await?;
    let _: LeaseWire = server.ask(Method::DELETE, &by_us(&path(id)), &json!({})).await?;
    let mut told = None;
    while let Some(lease) = views.next().await? {
        if lease.needs_operator.is_some() {
            tell(&lease, &mut told);
        }
        if lease.state == LeaseStateWire::Destroyed {
            return Ok(());
        }
    }
    bail!("the server ended the stream before the lease was over; `wharf lease show {id}` tells where it is")
}

/// What changed for a person, on standard error.
pub(super) fn tell(lease: &LeaseWire, told: &mut Option<String>) {
    let text = match lease.state {
        LeaseStateWire::Pending => {
            let mut text = format!("lease {} waits: {}", lease.id, news(lease));
            if let Some(at) = lease.estimate {
                text.push_str(&format!("; its turn should come at about {}", at.strftime("%H:%M:%S UTC")));
            }
            text
        }
        LeaseStateWire::Active => {
            let until = lease.expires.map(|at| format!(" until {}", time(at))).unwrap_or_default();
            format!("lease {}: you have {}{until}", lease.id, lease.resource.as_deref().unwrap_or("it"))
        }
        LeaseStateWire::Acquired => format!("lease {} is being brought up", lease.id),
        LeaseStateWire::Releasing | LeaseStateWire::Destroyed => {
            format!("lease {} is {}: {}", lease.id, in_a_word(&lease.state), lease.cause)
        }
    };
    let text = lease.needs_operator.as_ref().map_or(text, |what| format!("somebody must look at the DUT: {what}"));
    if told.as_ref() != Some(&text) {
        say(&text);
        *told = Some(text);
    }
}

/// A lease that lives as long as this process.
struct Taken<'a> {
    server: &'a Server,
    id: String,
    owner: String,
    boot: Option<PathBuf>,
    told: Option<String>,
}

/// How a lease that was kept by this process ended for it.
enum Ended {
    HandedOver,
    Over(String),
}

impl Taken<'_> {
    async fn until_it_ends(mut self) -> anyhow::Result<ExitCode> {
        let (server, id, mut interrupts) = (self.server, self.id.clone(), Interrupts::listen()?);
        let mut the_end = Box::pin(self.kept());
        tokio::select! {
            ended = &mut the_end => return ended_by_itself(&id, ended?),
            () = interrupts.next() => {}
        }
        say(format_args!("releasing lease {id} and waiting for its DUT to be free; Ctrl-C again to leave at once"));
        // Our connection is kept meanwhile, so that the events tell a release and no lost owner.
        let released = async {
            tokio::select! { done = release(server, &id) => done, _ = the_end => Ok(()) }
        };
        tokio::select! {
            done = released => done.map(|()| ExitCode::SUCCESS),
            () = interrupts.next() => Ok(ExitCode::from(INTERRUPTED)),
        }
    }

    /// Keeps the lease over restarts of the server.
    async fn kept(&mut self) -> anyhow::Result<Ended> {
        let seen = Cell::new(0);
        let mut lost_at: Option<Instant> = None;
        loop {
            let error = match self.on_one_connection(&seen, &mut lost_at).await {
                Ok(ended) => return Ok(ended),
                Err(error) => error,
            };
            // What the server refuses it refuses the next time, too.
            if error.downcast_ref::<Refused>().is_some() {
                return Err(error);
            }
            match lost_at {
                Some(lost_at) if lost_at.elapsed() > RESTART_PATIENCE => return Err(error),
                Some(_) => {}
                None => {
                    say(format_args!("wharf: {error:#}; looking for the server for {} s", RESTART_PATIENCE.as_secs()));
                    lost_at = Some(Instant::now());
                }
            }
            tokio::time::sleep(RESTART_PAUSE).await;
        }
    }

    async fn on_one_connection(&mut self, seen: &Cell<u64>, lost_at: &mut Option<Instant>) -> anyhow::Result<Ended> {
        let mut views = self.server.lines::<LeaseWire>(&format!("{}/events?owner=1", path(&self.id))).await?;
        *lost_at = None;
        let server = self.server;
        let mut console = Console::Closed;
        loop {
            let lease = tokio::select! {
                lease = views.next() => lease?.context("the server ended the stream before the lease was over")?,
                left = console.ends() => match left? {
                    // The lease's own news follow.
                    Left::Over => { console = Console::Seen; continue }
                    Left::Escaped => bail!("left"),
                },
            };
            tell(&lease, &mut self.told);
            if lease.owner != self.owner || lease.kept_by != "connection" {
                return Ok(Ended::HandedOver);
            }
            match lease.state {
                LeaseStateWire::Destroyed => return Ok(Ended::Over(lease.cause)),
                // A host has no console: its lease is used by `wharf host`.
                LeaseStateWire::Active if matches!(console, Console::Closed) && lease.kind != "host" => {
                    console = Console::Open(Box::pin(look_on(server, self.id.clone(), self.boot.take(), seen)));
                }
                _ => {}
            }
        }
    }
}

/// Boots, if that was asked for, and shows the console.
async fn look_on(server: &Server, id: String, job: Option<PathBuf>, seen: &Cell<u64>) -> anyhow::Result<Left> {
    let path = format!("{}/console", path(&id));
    let console = show(server, &path, seen, Some(&path), Keys::ButSignals);
    let Some(job) = job else { return console.await };
    let booted = async {
        boot(server, &id, &job).await?;
        std::future::pending::<anyhow::Result<Left>>().await
    };
    tokio::select! { left = console => left, failed = booted => failed }
}

type Looking<'a> = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<Left>> + 'a>>;

/// The console beside the lease's news.
enum Console<'a> {
    Closed,
    Open(Looking<'a>),
    Seen,
}

impl Console<'_> {
    async fn ends(&mut self) -> anyhow::Result<Left> {
        match self {
            Console::Open(looking) => looking.await,
            Console::Closed | Console::Seen => std::future::pending().await,
        }
    }
}

fn ended_by_itself(id: &str, ended: Ended) -> anyhow::Result<ExitCode> {
    match ended {
        Ended::HandedOver => {
            say(format_args!("lease {id} has another owner from now on"));
            Ok(ExitCode::SUCCESS)
        }
        Ended::Over(cause) => bail!("lease {id} is over: {cause}"),
    }
}

fn described(lease: &LeaseWire) -> String {
    let mut lines = vec![
        format!("lease      {}", lease.id),
        format!("owner      {} (kept by a {})", lease.owner, lease.kept_by),
        match lease.state {
            LeaseStateWire::Releasing | LeaseStateWire::Destroyed => {
                format!("state      {}: {}", in_a_word(&lease.state), lease.cause)
            }
            LeaseStateWire::Pending | LeaseStateWire::Acquired | LeaseStateWire::Active => {
                format!("state      {}", in_a_word(&lease.state))
            }
        },
        format!("requested  {}", time(lease.requested)),
    ];
    let mut line = |name: &str, value: Option<String>| {
        lines.extend(value.filter(|value| !value.is_empty()).map(|value| format!("{name:<10} {value}")));
    };
    line(if lease.kind == "host" { "host" } else { "DUT" }, lease.resource.clone());
    line("gear", Some(lease.gear.join(", ")));
    line("acquired", lease.acquired.map(time));
    line("until", lease.expires.map(time));
    line("at most", lease.expires_at_most.map(time));
    line("place", lease.place.map(|place| place.to_string()));
    for reason in &lease.reasons {
        line("", Some(format!("- {reason}")));
    }
    line("operator", lease.needs_operator.clone());
    for part in &lease.parts {
        let resource = part.resource.as_deref().unwrap_or_default();
        line("part", Some(format!("{} {resource} ({})", part.kind, in_a_word(&part.state))));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        take: Take,
    }

    fn wish_of(words: &[&str]) -> TakeWire {
        wish(&Line::try_parse_from([&["take"], words].concat()).unwrap().take, Some("anna".into()))
    }

    #[test]
    fn a_detached_lease_lasts_an_hour_unless_something_else_is_said() {
        let detached = wish_of(&["box", "--detach"]);
        assert_eq!((detached.owner, detached.hold_time.as_deref()), (Some(OwnerWire::Term), Some("1h")));
        assert_eq!(wish_of(&["--detach", "--for", "5m"]).hold_time.as_deref(), Some("5m"));
    }

    #[test]
    fn an_attached_lease_lives_by_its_connection() {
        let attached = wish_of(&["-t", "sim", "--gear", "scope"]);
        assert_eq!((attached.owner, attached.hold_time), (Some(OwnerWire::Connection), None));
        assert_eq!((attached.tags, attached.gear), (vec!["sim".to_owned()], vec!["scope".to_owned()]));
        assert!(attached.id.is_some_and(|id| id.starts_with("lease-")));
    }
}
