//! `wharf serve`: the farm of a farm file, until SIGINT or SIGTERM.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Weak};

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::api::LocalSocket;
use crate::config::{FarmConfig, NetworkConfig};
use crate::farm::{Farm, Source, needs_of};
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
    install_for(&config, &|line| eprintln!("{line}"))?;
    // The listener is opened first: it belongs to the host's network, whatever network the farm makes for its DUTs.
    let listener = std::net::TcpListener::bind(config.api)
        .with_context(|| format!("cannot listen on {}: choose another address with --api", config.api))?;
    let power = config.power_listener.map(std::net::TcpListener::bind).transpose();
    let power = power.context("cannot listen where `listen.power` says: another program may be there")?;
    enter_private_world(&config)?;
    run_threads(async move {
        let address = listener.local_addr()?;
        // From here on a hang-up is no end of ours.
        let hang_ups = signal(SignalKind::hangup())?;
        let farm = Farm::start(config, address).await?;
        farm.is_from(source);
        tokio::spawn(reload_on_hang_up(Arc::downgrade(&farm), hang_ups));
        let (local, stop) = (LocalSocket::open(), stop_signal()?);
        let local = local.map(|local| tokio::spawn(local.serve(farm.clone(), stop)));
        if let Some(power) = power {
            tokio::spawn(crate::api::serve_power(power, farm.clone(), stop_signal()?));
        }
        println!("farm {} with {} DUTs: http://{address}", farm.name(), farm.size());
        // The API stays until the farm has stopped: who follows a job still gets its verdict.
        let stop = stop_signal()?;
        let served = crate::api::serve(listener, farm.clone(), async {
            stop.await;
            farm.clone().stop().await
        })
        .await;
        if let Some(local) = local {
            local.await?;
        }
        served.map(|()| ExitCode::SUCCESS).map_err(Into::into)
    })
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

/// Resolves at SIGINT or SIGTERM.
pub fn stop_signal() -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
