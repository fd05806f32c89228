//! `wharf disk`: one disk that is kept.

use std::process::ExitCode;

use bytes::Bytes;
use hyper::Method;

use super::client::{Server, in_query};
use super::view::print;

/// Arguments of `wharf disk`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Remove a disk that nobody uses, with all that was written to it
    Remove {
        /// Its id, as `wharf disks` lists it
        id: String,
    },
}

/// Does what the verb says.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let Verb::Remove { id } = arguments.verb;
    let path = format!("/api/v1/disks/{}", in_query(&id));
    Server::find(server)?.put(Method::DELETE, &path, "application/json", Bytes::new()).await?;
    print(&format!("{id} is removed"))?;
    Ok(ExitCode::SUCCESS)
}
