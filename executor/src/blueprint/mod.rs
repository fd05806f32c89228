//! What a DUT is made of: drivers for its outlet and its console, one device family per file.

pub mod console;
pub mod power;
