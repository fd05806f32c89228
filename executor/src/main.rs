//! `wharf`: runs a farm of machines under test, and talks to one that runs. Arguments and wiring, nothing else.
#![allow(dead_code)]

mod blueprint;
mod boot;
mod config;
mod interface;
mod job_log;
mod lease;
mod render;
mod runner;
mod session;
mod verdict;
mod virtual_dut;

fn main() {}
