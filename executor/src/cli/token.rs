//! `wharf token`: who may call a server from elsewhere. With `--farm` it works on the farm's own files: the first token is made before the
//! server can start.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use bytes::Bytes;
use hyper::Method;

use super::client::{Server, in_query};
use super::jobs::{plain_table, time};
use super::view::{print, say};
use crate::api::token_of;
use crate::api::wire::callers::{AddTokenWire, CallerWire, MadeTokenWire, SessionWire, TokenWire, TokensWire};
use crate::callers::audit::Line;
use crate::callers::{Callers, Role};

/// Arguments of `wharf token`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Make a token; it is printed once
    Add {
        /// What logs call who shows it
        name: String,
        /// In whose name jobs and leases are
        #[arg(long)]
        project: Option<String>,
        /// What it is good for
        #[arg(long, value_enum, default_value = "submit")]
        role: Role,
        /// How long, such as `30 days`; 90 days when absent
        #[arg(long = "for", value_name = "TIME")]
        lasts: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// List the tokens; their secrets are nowhere
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Place,
    },
    /// End a token, by its id; or all of a name
    Revoke {
        /// An id or a name
        name: String,
        #[command(flatten)]
        place: Place,
    },
    /// Exchange the id_token of a CI job, in WHARF_TOKEN, for a token that is good for more than one request; prints it
    Exchange,
    /// Show who one is to the server, and what one may do
    Show,
}

/// Whose tokens.
#[derive(clap::Args)]
struct Place {
    /// The farm file: works on its state folder, whether a server runs or not
    #[arg(long, value_name = "FILE")]
    farm: Option<PathBuf>,
    /// The state folder, instead of the farm file's
    #[arg(long, requires = "farm", value_name = "DIR")]
    state: Option<PathBuf>,
}

impl Place {
    /// The files, where they are asked for.
    fn files(&self) -> anyhow::Result<Option<Callers>> {
        let Some(farm) = &self.farm else { return Ok(None) };
        let source = crate::farm::Source { path: farm.clone(), api: None, state: self.state.clone() };
        Ok(Some(Callers::open(&source.read()?.state)?))
    }
}

/// Does what it says.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    match arguments.verb {
        Verb::Add { name, project, role, lasts, place } => {
            let wish = AddTokenWire { name: Some(name), project, role: Some(role), lasts };
            add(wish, &place, server).await?;
        }
        Verb::List { json, place } => list(json, &place, server).await?,
        Verb::Revoke { name, place } => revoke(&name, &place, server).await?,
        Verb::Exchange => exchange(&Server::find(server)?).await?,
        Verb::Show => {
            let caller: CallerWire = Server::find(server)?.get("/api/v1/caller").await?;
            let project = caller.project.map_or_else(|| "any project".to_owned(), |name| format!("project {name}"));
            print(&format!("{}: {project}, may {}", caller.name, caller.role))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn add(wish: AddTokenWire, place: &Place, server: Option<String>) -> anyhow::Result<()> {
    let made = match place.files()? {
        None => Server::find(server)?.ask::<MadeTokenWire>(Method::POST, "/api/v1/tokens", &wish).await?,
        Some(callers) => {
            let now = jiff::Timestamp::now();
            let (token, secret) = callers.add(token_of(wish, now).map_err(anyhow::Error::msg)?)?;
            write_down(&callers, &format!("token add {}", token.name));
            MadeTokenWire { secret, token: TokenWire::of(token, now) }
        }
    };
    let TokenWire { id, name, project, role, expires, .. } = &made.token;
    say(format_args!(
        "token {id} of {name}, project {project}, may {role}, until {}; it is not shown again:",
        time(*expires)
    ));
    print(&made.secret)
}

async fn list(json: bool, place: &Place, server: Option<String>) -> anyhow::Result<()> {
    let tokens = match place.files()? {
        None => Server::find(server)?.get::<TokensWire>("/api/v1/tokens").await?,
        Some(callers) => {
            let now = jiff::Timestamp::now();
            TokensWire { tokens: callers.tokens()?.into_iter().map(|token| TokenWire::of(token, now)).collect() }
        }
    };
    if json {
        return print(&serde_json::to_string_pretty(&tokens)?);
    }
    let mut table = plain_table();
    table.set_header(["Id", "Name", "Project", "Role", "State", "Made", "Expires"]);
    for token in tokens.tokens {
        let (made, expires) = (time(token.made), time(token.expires));
        table.add_row([token.id, token.name, token.project, token.role.to_string(), token.state, made, expires]);
    }
    print(&table.trim_fmt())
}

async fn revoke(name: &str, place: &Place, server: Option<String>) -> anyhow::Result<()> {
    match place.files()? {
        None => {
            let path = format!("/api/v1/tokens/{}", in_query(name));
            Server::find(server)?.put(Method::DELETE, &path, "application/json", Bytes::new()).await
        }
        Some(callers) => {
            if callers.revoke(name)? == 0 {
                bail!("no token `{name}` that is not over; `wharf token list` shows them");
            }
            write_down(&callers, &format!("token revoke {name}"));
            Ok(())
        }
    }
}

async fn exchange(server: &Server) -> anyhow::Result<()> {
    let session: SessionWire =
        server.sign_in().await?.context("no token: set WHARF_TOKEN or WHARF_TOKEN_FILE to the job's id_token")?;
    say(format_args!("{}, may {}, until {}", session.caller.name, session.caller.role, time(session.expires)));
    print(&session.token)
}

/// What is changed beside the server is in the same log.
fn write_down(callers: &Callers, what: &str) {
    let user = super::lease::user();
    callers.audit.write(&Line {
        at: jiff::Timestamp::now(),
        who: user,
        project: None,
        role: None,
        from: "the host's files".to_owned(),
        what: what.to_owned(),
        status: 200,
        why: None,
    });
}
