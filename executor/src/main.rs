//! wharf
mod virtual_dut;
fn main() {}
