//! What a DUT is made of: its parts as leases see them, and drivers for its outlet and its console, one device family per file.

pub mod console;
pub mod dut;
pub mod power;
