//! `wharf virtual`: what virtual machines need of this host, and whether it is there.

use std::process::ExitCode;

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
    Install,
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
        Command::Install => {
            install::ensure(&Need::ALL, &|line| eprintln!("{line}")).await?;
            println!("everything that virtual machines need is there");
            Ok(ExitCode::SUCCESS)
        }
        Command::List { json } => list(json).await,
    }
}

/// Status 1 when something is missing.
async fn list(json: bool) -> anyhow::Result<ExitCode> {
    let listing = install::list().await?;
    if json {
        println!("{}", serde_json::to_string_pretty(&listing)?);
    } else {
        let mut table = super::jobs::plain_table();
        table.set_header(["what", "version", "where", "for"]);
        for line in &listing {
            let place = line.path.as_ref().map_or("missing".into(), |path| path.display().to_string());
            table.add_row([line.name, line.version.as_deref().unwrap_or("-"), &place, line.why]);
        }
        println!("{table}");
    }
    let complete = listing.iter().all(|line| line.path.is_some());
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
