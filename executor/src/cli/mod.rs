//! The command line: one file per subcommand, and the table that names them.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod authorize;
mod buckets;
mod check;
mod client;
mod completions;
mod console;
mod consoles;
mod demo;
mod discover;
mod disk;
mod disks;
mod dut;
mod duts;
mod events;
mod found_pdus;
mod gitlab_executor;
mod host;
mod hosts;
mod import;
mod interrupts;
mod job;
mod jobs;
mod lease;
mod leases;
mod pdu;
mod pdus;
mod power;
mod registry;
mod reload;
mod run;
mod schema;
mod serve;
mod share;
mod terminal;
mod token;
mod view;
mod virtual_;

/// Exit status for a wrong command line (sysexits.h EX_USAGE): 1 to 6 are verdicts.
const USAGE: u8 = 64;
/// Exit status when `wharf` itself failed (sysexits.h EX_SOFTWARE).
const FAILED: u8 = 70;

/// Runs a farm of machines under test: boots them over the network, runs jobs on them, judges the jobs.
#[derive(Parser)]
#[command(name = "wharf", version, propagate_version = true, max_term_width = 100)]
struct Arguments {
    /// Where the server is: an URL such as `http://127.0.0.1:8420`, or the path of its socket
    #[arg(long, global = true, env = "WHARF_SERVER", value_name = "URL|PATH")]
    server: Option<String>,
    /// A file with the token for it, instead of WHARF_TOKEN
    #[arg(long, global = true, env = "WHARF_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The certificates that a server with https:// is vouched for by, instead of the system's
    #[arg(long, global = true, env = "WHARF_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot a virtual machine over the network and run a job on it
    Demo(demo::Arguments),
    /// Run the farm of a farm file until it is told to stop
    Serve(serve::Arguments),
    /// Check job and farm files; with --farm, show what a DUT would boot
    Check(check::Arguments),
    /// Submit a job, show its console, exit with its verdict
    Run(run::Arguments),
    /// List the jobs of a server
    Jobs(jobs::Arguments),
    /// Look at one job, or cancel it
    Job(job::Arguments),
    /// List the machines of a server
    Duts(duts::Arguments),
    /// Find or add a machine, hold it back, or let it go
    Dut(dut::Arguments),
    /// List the machines that run commands and keep files
    Hosts(hosts::Arguments),
    /// Run commands on such a machine; put and get files
    Host(host::Arguments),
    /// List the buckets of a job or a lease, with the key to them; fetch one
    Buckets(buckets::Arguments),
    /// List the disks that are kept, or shared by machines
    Disks(disks::Arguments),
    /// Remove a disk that is kept
    Disk(disk::Arguments),
    /// List the container images that are kept, or forget some
    Registry(registry::Arguments),
    /// List who holds what, and who waits for what
    Leases(leases::Arguments),
    /// Take a machine for yourself, and give it back
    Lease(lease::Arguments),
    /// Show what a console says and said; type on it with its machine's lease
    Console(console::Arguments),
    /// List the consoles of a server
    Consoles(consoles::Arguments),
    /// Switch a machine that you hold
    Power(power::Arguments),
    /// List the power units and their outlets
    Pdus(pdus::Arguments),
    /// Look at one power unit; reserve or switch an outlet that no machine in service has
    Pdu(pdu::Arguments),
    /// Tell what happened to leases and machines, and why
    Events(events::Arguments),
    /// Have the farm file read again; no lease ends by it
    Reload(reload::Arguments),
    /// List who may lease what, and who waits for an answer
    Authorizations(authorize::ListArguments),
    /// Answer whether somebody may lease something
    Authorize(authorize::Arguments),
    /// Say who may call a server from elsewhere
    Token(token::Arguments),
    /// Be a driver of GitLab's custom executor: called by gitlab-runner
    GitlabExecutor(gitlab_executor::Arguments),
    /// Make a farm file and an inventory of another program's farm
    Import(import::Arguments),
    /// Print the JSON Schema of job or farm files
    Schema(schema::Arguments),
    /// Virtual machines: what they need, what is there
    Virtual(virtual_::Arguments),
    /// Print a completion script for a shell
    Completions(completions::Arguments),
    /// Render one template under the limits of this process (what the server does with every job)
    #[command(hide = true)]
    RenderTemplate,
}

/// Reads the arguments and does what they say.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let server = arguments.server;
    client::show(client::Shown { token_file: arguments.token_file, ca: arguments.ca });
    let outcome = match arguments.command {
        Command::Demo(arguments) => demo::main(arguments),
        Command::Serve(arguments) => serve::main(arguments),
        Command::Check(arguments) => on_runtime(check::run(arguments)),
        Command::Run(arguments) => on_runtime(run::run(arguments, server)),
        Command::Jobs(arguments) => on_runtime(jobs::run(arguments, server)),
        Command::Job(arguments) => on_runtime(job::run(arguments, server)),
        Command::Duts(arguments) => on_runtime(duts::run(arguments, server)),
        Command::Dut(arguments) => on_runtime(dut::run(arguments, server)),
        Command::Hosts(arguments) => on_runtime(hosts::run(arguments, server)),
        Command::Host(arguments) => on_runtime(host::run(arguments, server)),
        Command::Buckets(arguments) => on_runtime(buckets::run(arguments, server)),
        Command::Disks(arguments) => on_runtime(disks::run(arguments, server)),
        Command::Disk(arguments) => on_runtime(disk::run(arguments, server)),
        Command::Registry(arguments) => on_runtime(registry::run(arguments, server)),
        Command::Leases(arguments) => on_runtime(leases::run(arguments, server)),
        Command::Lease(arguments) => on_runtime(lease::run(arguments, server)),
        Command::Console(arguments) => on_runtime(console::run(arguments, server)),
        Command::Consoles(arguments) => on_runtime(consoles::run(arguments, server)),
        Command::Power(arguments) => on_runtime(power::run(arguments, server)),
        Command::Pdus(arguments) => on_runtime(pdus::run(arguments, server)),
        Command::Pdu(arguments) => on_runtime(pdu::run(arguments, server)),
        Command::Events(arguments) => on_runtime(events::run(arguments, server)),
        Command::Reload(arguments) => on_runtime(reload::run(arguments, server)),
        Command::Authorizations(arguments) => on_runtime(authorize::list(arguments, server)),
        Command::Authorize(arguments) => on_runtime(authorize::run(arguments, server)),
        Command::Token(arguments) => on_runtime(token::run(arguments, server)),
        Command::GitlabExecutor(arguments) => on_runtime(gitlab_executor::run(arguments, server)),
        Command::Import(arguments) => import::run(arguments),
        Command::Schema(arguments) => schema::run(arguments),
        Command::Virtual(arguments) => on_runtime(virtual_::run(arguments)),
        Command::Completions(arguments) => completions::run(arguments),
        Command::RenderTemplate => crate::render::child_main().map(|()| ExitCode::SUCCESS).map_err(Into::into),
    };
    outcome.unwrap_or_else(|error| {
        view::say(format_args!("wharf: {}", in_one_line(&error)));
        ExitCode::from(FAILED)
    })
}

/// An error with its causes; many of ours name their cause already, and need not be told it twice.
fn in_one_line(error: &anyhow::Error) -> String {
    error.chain().skip(1).map(ToString::to_string).fold(error.to_string(), |told, cause| match told.contains(&cause) {
        true => told,
        false => format!("{told}: {cause}"),
    })
}

/// Runs a command that needs no threads of its own.
fn on_runtime(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}

/// Log lines on standard error; `WHARF_LOG` (as in `info,gateway=debug`) says which.
fn start_logging(default: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("WHARF_LOG").unwrap_or_else(|_| default.into());
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr).try_init();
}

/// Reads a file that a person named, or says which file could not be read.
fn read_text(path: &PathBuf) -> anyhow::Result<String> {
    use anyhow::Context;
    std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))
}
