//! `wharf authorizations`, `wharf authorize`: who may lease what asks for an answer.

use std::process::ExitCode;

use hyper::Method;

use super::client::{Server, in_query};
use super::jobs::{plain_table, time};
use super::lease::user;
use super::view::print;
use crate::api::wire::leases::{AuthorizationStateWire, AuthorizationsWire, AuthorizeWire, in_a_word};

/// Arguments of `wharf authorizations`.
#[derive(clap::Args)]
pub struct ListArguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `wharf authorize`.
#[derive(clap::Args)]
pub struct Arguments {
    /// A project, user or token
    subject: String,
    /// The name of a DUT, of gear, or of what makes machines on demand
    blueprint: String,
    /// Say no
    #[arg(long)]
    decline: bool,
}

/// Lists the answers, and what waits for one.
pub async fn list(arguments: ListArguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let all: AuthorizationsWire = Server::find(server)?.get("/api/v1/authorizations").await?;
    if arguments.json {
        print(&serde_json::to_string_pretty(&all)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = plain_table();
    table.set_header(["Subject", "Blueprint", "Answer", "By", "At"]);
    for row in all.authorizations {
        table.add_row([row.subject, row.blueprint, in_a_word(&row.state), row.by, time(row.at)]);
    }
    print(&table.trim_fmt())?;
    Ok(ExitCode::SUCCESS)
}

/// Gives an answer.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let state = if arguments.decline { AuthorizationStateWire::Declined } else { AuthorizationStateWire::Authorized };
    let Arguments { subject, blueprint, .. } = arguments;
    let path = format!("/api/v1/authorizations?by={}", in_query(&user()));
    let answer = AuthorizeWire { subject, blueprint, state: Some(state) };
    let _: AuthorizationsWire = Server::find(server)?.ask(Method::POST, &path, &answer).await?;
    Ok(ExitCode::SUCCESS)
}
