//! `wharf demo`: a virtual machine boots over the network and runs a job, from nothing to a verdict, in one command.
//!
//! The farm and the job are the ones of `fixtures/`, compiled in. The farm lives on a private network of its own and is gone,
//! with everything it made, when the command ends.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use gateway::content::reach::Reach;
use gateway::dhcp::Role;

use super::interrupts::Interrupts;
use super::serve::{enter_private_world, install_for, run_threads};
use super::view::{View, say};
use crate::api::{Api, Door};
use crate::callers::Callers;
use crate::config::{FarmConfig, NetworkConfig};
use crate::farm::{CancelledBy, Farm, JobRecord, Submission};
use crate::virtual_dut::network;

const VIRTUAL_FARM: &str = include_str!("../../../fixtures/farms/virtual.yml");
const SIMULATED_FARM: &str = include_str!("../../../fixtures/farms/simulated.yml");
const HELLO: &str = include_str!("../../../fixtures/jobs/good/hello.yml");

/// Arguments of `wharf demo`.
#[derive(clap::Args)]
pub struct Arguments {
    /// What to boot
    #[arg(long, value_enum, default_value_t = DutKind::Qemu)]
    dut: DutKind,
    /// The job to run, instead of the built-in one
    #[arg(long)]
    job: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum DutKind {
    /// A QEMU machine: SeaBIOS, iPXE, Linux
    Qemu,
    /// The built-in simulated DUT: nothing to install
    Simulated,
}

/// Boots, runs, judges; the exit status is the verdict's.
pub fn main(arguments: Arguments) -> anyhow::Result<ExitCode> {
    super::start_logging("warn");
    let mut config = farm_of(arguments.dut)?;
    let (source_name, text) = match &arguments.job {
        Some(path) => (path.display().to_string(), super::read_text(path)?),
        None => ("fixtures/jobs/good/hello.yml".to_owned(), HELLO.to_owned()),
    };
    install_for(&config, &|line| say(line))?;
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    find_a_network(&mut config, arguments.dut)?;
    let own_network = if config.network == NetworkConfig::Loopback { "" } else { " on a network of its own" };
    let state = tempfile::Builder::new().prefix("wharf-demo-").tempdir()?;
    config.state = state.path().to_owned();
    run_threads(async move {
        // Before there is more that somebody would have to clean up.
        let mut interrupts = Interrupts::listen()?;
        let address = listener.local_addr()?;
        let callers = Arc::new(Callers::open(state.path())?);
        let farm = Farm::start(config, address, address).await?;
        let api = Api::new(&farm, &callers, Door::Local);
        let api = crate::api::serve(listener, api, None, std::future::pending());
        say(format_args!("farm {}{own_network}; its API: http://{address}", farm.name()));
        let submission = Submission {
            source_name,
            text,
            submitter: "wharf demo".into(),
            reach: Reach::Everywhere,
            ..Submission::default()
        };
        let outcome = tokio::select! {
            outcome = run(&farm, submission, &mut interrupts) => outcome,
            served = api => Err(served.err().map_or(anyhow::anyhow!("the API ended"), Into::into)),
        };
        farm.stop().await;
        outcome
    })
}

async fn run(farm: &Arc<Farm>, submission: Submission, interrupts: &mut Interrupts) -> anyhow::Result<ExitCode> {
    let job = farm.submit(submission).await.map_err(|error| anyhow::anyhow!("{error}"))?;
    show_to_the_end(farm, &job, interrupts).await
}

fn farm_of(kind: DutKind) -> anyhow::Result<FarmConfig> {
    let (name, text) = match kind {
        DutKind::Qemu => ("fixtures/farms/virtual.yml", VIRTUAL_FARM),
        DutKind::Simulated => ("fixtures/farms/simulated.yml", SIMULATED_FARM),
    };
    let mut config =
        crate::config::parse(name, text, Path::new("")).map_err(|problems| anyhow::anyhow!("{problems}"))?;
    config.duts.truncate(1);
    Ok(config)
}

/// A private network where one may be made; a simulated DUT does with the loopback where none may.
fn find_a_network(config: &mut FarmConfig, kind: DutKind) -> anyhow::Result<()> {
    match (enter_private_world(config), kind) {
        (Ok(()), DutKind::Qemu) => Ok(()),
        (Ok(()), DutKind::Simulated) if network::is_permitted() => Ok(()),
        (Ok(()) | Err(_), DutKind::Simulated) => {
            say("no network namespace may be made here: the simulated DUT boots over the loopback");
            config.network = NetworkConfig::Loopback;
            config.dhcp = Role::default();
            for (index, dut) in (1u8..).zip(&mut config.duts) {
                dut.address = [127, 77, 0, index].into();
            }
            Ok(())
        }
        (Err(error), DutKind::Qemu) => Err(error),
    }
}

/// Shows the job until its verdict. Ctrl-C cancels it, and the verdict still comes.
async fn show_to_the_end(farm: &Arc<Farm>, job: &JobRecord, interrupts: &mut Interrupts) -> anyhow::Result<ExitCode> {
    let mut view = View::new();
    let mut follower = job.log.follow(0);
    loop {
        let record = tokio::select! {
            record = follower.next() => record,
            () = interrupts.next() => {
                let _ = farm.cancel(&job.id, CancelledBy::Operator("Ctrl-C".into()));
                continue;
            }
        };
        let Some(record) = record else { break };
        view.show_from(&record, &job.log)?;
    }
    view.finish();
    let verdict = job.verdict().ok_or_else(|| anyhow::anyhow!("the job ended without a verdict"))?;
    Ok(ExitCode::from(verdict.status.exit_status()))
}
