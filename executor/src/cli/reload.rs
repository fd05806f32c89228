//! `wharf reload`: the server reads its farm file again.

use std::process::ExitCode;

use bytes::Bytes;

use super::client::Server;
use super::view::print;
use crate::farm::Changes;

/// Arguments of `wharf reload`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Has it read, and prints what is otherwise than before.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let changes: Changes = Server::find(server)?.post("/api/v1/reload", None, Bytes::new()).await?;
    if arguments.json {
        print(&serde_json::to_string_pretty(&changes)?)?;
    } else if changes.changes.is_empty() {
        print("nothing changed")?;
    } else {
        for change in &changes.changes {
            print(&change.to_string())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
