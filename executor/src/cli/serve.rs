//! `wharf serve`: the farm of a farm file, until SIGINT or SIGTERM.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Weak};

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::view::{print, say};
use crate::api::{Api, Door, LocalSocket, Tls};
use crate::callers::Callers;
use crate::config::{FarmConfig, NetworkConfig, TlsConfig};
use crate::farm::{AUTHORITY, Farm, Source, needs_of};
use crate::virtual_dut::install;
use crate::virtual_dut::network;

/// Arguments of `wharf serve`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The farm file
    #[arg(long)]
    farm: PathBuf,
    /// Address and port of the API, instead of the farm file's `listen.api`
    #[arg(long)]
    api: Option<SocketAddr>,
    /// Folder for jobs and logs, instead of the farm file's `state`
    #[arg(long)]
    state: Option<PathBuf>,
}

/// Runs the farm until it is told to stop.
pub fn main(arguments: Arguments) -> anyhow::Result<ExitCode> {
    super::start_logging("info");
    allow_many_files();
    let source = Source { path: arguments.farm, api: arguments.api, state: arguments.state };
    let config = source.read()?;
    install_for(&config, &|line| say(line))?;
    let callers = Arc::new(Callers::open(&config.state)?);
    let door = door_of(&config, &callers)?;
    // The listeners are opened first: they belong to the host's network, whatever network the farm makes for its DUTs.
    let listener = std::net::TcpListener::bind(config.api)
        .with_context(|| format!("cannot listen on {}: choose another address with --api", config.api))?;
    let power = config.power_listener.map(std::net::TcpListener::bind).transpose();
    let power = power.context("cannot listen where `listen.power` says: another program may be there")?;
    let tls = Tls::of(&config.tls, listener.local_addr()?, &config.state.join(AUTHORITY))?;
    let images = images_listener(door, tls.as_ref())?;
    enter_private_world(&config)?;
    run_threads(async move {
        let address = listener.local_addr()?;
        // From here on a hang-up is no end of ours.
        let hang_ups = signal(SignalKind::hangup())?;
        let images_at = images.as_ref().map_or(Ok(address), std::net::TcpListener::local_addr)?;
        let farm = Farm::start(config, address, images_at).await?;
        farm.is_from(source);
        tokio::spawn(reload_on_hang_up(Arc::downgrade(&farm), hang_ups));
        // Before anybody can see that we are there: whoever waited for that may tell us at once to stop.
        let stop = stop_signal()?;
        let behind = |door| Api::new(&farm, &callers, door);
        let local = LocalSocket::open();
        let local = local.map(|local| tokio::spawn(local.serve(behind(Door::Local), stop.clone().cancelled_owned())));
        if let Some(power) = power {
            tokio::spawn(crate::api::serve_power(power, behind(Door::Open), stop.clone().cancelled_owned()));
        }
        if let Some(images) = images {
            tokio::spawn(crate::api::serve_images(images, behind(Door::Open), stop.clone().cancelled_owned()));
        }
        let scheme = if tls.is_some() { "https" } else { "http" };
        print(&format!("farm {} with {} DUTs: {scheme}://{address}", farm.name(), farm.size()))?;
        let forges = crate::forge::ask(&farm);
        // The API stays until the farm has stopped: who follows a job still gets its verdict.
        let served = crate::api::serve(listener, behind(door), tls, async {
            stop.cancelled().await;
            farm.clone().stop().await;
            forges.stop().await
        })
        .await;
        if let Some(local) = local {
            local.await?;
        }
        served.map(|()| ExitCode::SUCCESS).map_err(Into::into)
    })
}

/// Whoever reaches an address other than the loopback must be known: without a way to know anybody there is no such listener.
fn door_of(config: &FarmConfig, callers: &Callers) -> anyhow::Result<Door> {
    let address = config.api;
    if address.ip().is_loopback() {
        return Ok(Door::Local);
    }
    if !callers.can_tell(&config.issuers)? {
        anyhow::bail!(
            "{address} can be reached from elsewhere, and nobody could show who he is: make a token with \
             `wharf token add NAME --role administer --farm FILE`, or name a forge in `callers.issuers`, or listen on 127.0.0.1"
        );
    }
    if config.tls == TlsConfig::None {
        tracing::warn!(%address, "tokens come here in clear (`listen.tls: none`): something else must protect them on their way");
    }
    Ok(Door::Open)
}

/// The farm fetches its own boot images from its own listener, where nobody asks it for a token or shows it a certificate.
fn images_listener(door: Door, tls: Option<&Tls>) -> anyhow::Result<Option<std::net::TcpListener>> {
    if door == Door::Local && tls.is_none() {
        return Ok(None);
    }
    std::net::TcpListener::bind(("127.0.0.1", 0)).map(Some).context("cannot listen on the loopback")
}

/// Every hang-up has the farm file read again, as `wharf reload` does.
async fn reload_on_hang_up(farm: Weak<Farm>, mut hang_ups: Signal) {
    while hang_ups.recv().await.is_some() {
        let Some(farm) = farm.upgrade() else { return };
        match farm.reload().await {
            Ok(changes) if changes.changes.is_empty() => {
                tracing::info!("the farm file was read again: nothing changed")
            }
            // What changed was logged, each thing by itself.
            Ok(_) => {}
            Err(error) => tracing::error!("the farm file was read again, and nothing was changed: {error}"),
        }
    }
}

/// As many open files as an ordinary user may have. What a shell allows at first, often 1,024, is what 200 running jobs have open.
fn allow_many_files() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "the number of open files stays as it was");
    }
}

/// Installs what the farm's machines need and the host lacks. On a runtime of its own, which is gone (with its threads) when this
/// returns: what follows needs a process with one thread.
pub fn install_for(config: &FarmConfig, say: &(dyn Fn(&str) + Sync)) -> anyhow::Result<()> {
    let needs = needs_of(config);
    if needs.is_empty() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(install::ensure(&needs, say))?;
    Ok(())
}

/// Without root, a private network takes a user namespace, and that takes a process with one thread: now, before the runtime.
pub fn enter_private_world(config: &FarmConfig) -> anyhow::Result<()> {
    if matches!(config.network, NetworkConfig::Private { .. }) {
        network::enter_user_namespace_if_needed()?;
    }
    Ok(())
}

/// A runtime with threads, for a farm.
pub fn run_threads(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(command)
}

/// Cancelled by the first SIGINT or SIGTERM from now on.
fn stop_signal() -> anyhow::Result<CancellationToken> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        told.cancel();
    });
    Ok(stop)
}
