//! What a DUT is made of: its parts as leases see them, and drivers for its outlet, its console and its loader, one device family per file.

pub mod console;
pub mod driver;
pub mod dut;
pub mod fastboot;
pub mod host;
pub mod power;
mod spawner;
