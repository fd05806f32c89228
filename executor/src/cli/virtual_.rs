//! `wharf virtual`: what virtual machines need of this host, and those that register themselves, and whether it is there.

use std::process::ExitCode;

use super::view::{print, say};
use crate::virtual_dut::install::{self, Need};

/// Arguments of `wharf virtual`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Install what is missing: QEMU, iPXE, UEFI firmware, a kernel and a busybox in the cache
    Install {
        /// Rather what real machines boot to register: iPXE, and a kernel with their drivers and a busybox in the cache
        #[arg(long)]
        registration: bool,
    },
    /// List what is there, with versions
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Installs or lists.
pub async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Install { registration } => {
            let (needs, whose): (&[Need], _) = match registration {
                false => (&Need::OF_VIRTUAL, "virtual machines need"),
                true => (&Need::OF_HARDWARE, "machines need to register"),
            };
            install::ensure(needs, &|line| say(line)).await?;
            print(&format!("everything that {whose} is there"))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::List { json } => list(json).await,
    }
}

/// Status 1 when something is missing that virtual machines need.
async fn list(json: bool) -> anyhow::Result<ExitCode> {
    let listing = install::list().await?;
    if json {
        print(&serde_json::to_string_pretty(&listing)?)?;
    } else {
        let mut table = super::jobs::plain_table();
        table.set_header(["what", "version", "where", "for"]);
        for line in &listing {
            let place = line.path.as_ref().map_or("missing".into(), |path| path.display().to_string());
            table.add_row([line.name, line.version.as_deref().unwrap_or("-"), &place, line.why]);
        }
        print(&table.to_string())?;
    }
    let complete = listing.iter().all(|line| line.path.is_some() || line.name == Need::Drivers.name());
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
