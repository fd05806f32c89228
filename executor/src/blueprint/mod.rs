//! What a DUT is made of: its parts as leases see them, and drivers for its outlet and its console, one device family per file.

pub mod console;
#[allow(dead_code, reason = "the farm asks it for its rows once it leases by the keeper")]
pub mod dut;
pub mod power;
