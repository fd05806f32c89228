//! `wharf`: runs a farm of machines under test, and talks to one that runs. Arguments and wiring, nothing else.

mod api;
mod blueprint;
mod boot;
mod callers;
mod cli;
mod config;
mod console;
mod farm;
mod forge;
mod import;
mod interface;
mod inventory;
mod job_log;
mod journal;
mod junit;
mod lease;
mod messages;
mod outlets;
mod render;
mod runner;
mod sentence;
mod session;
mod ssh;
mod verdict;
mod virtual_dut;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
