//! Machines that the farm file does not name: what becomes of them when they ask the network for something to boot.

use std::path::PathBuf;

use super::MachineConfig;

/// What the farm does with machines that it does not know.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DiscoveryConfig {
    /// When they may register.
    pub unknown: Unknown,
    /// The job description whose first boot registers them: its name and its text. The farm's own when absent.
    pub job: Option<(String, String)>,
    /// A kernel for machines that the farm's own is not made for, and the folder of its modules.
    pub kernel: Option<(PathBuf, PathBuf)>,
}

/// When a machine that the farm does not know may register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unknown {
    /// Only while a discovery runs.
    #[default]
    WhenDiscovered,
    /// Always.
    Always,
}

/// A virtual machine that nobody has registered yet: an outlet and a console without a DUT.
#[derive(Clone, Debug, PartialEq)]
pub struct SpareConfig {
    /// The outlet of the PDU `spares` that it is on, and its console's name.
    pub name: String,
    /// The MAC that it boots with.
    pub mac: String,
    /// What it is made of: a virtual machine.
    pub machine: MachineConfig,
}

/// The PDU that all spares are outlets of.
pub const SPARES: &str = "spares";
