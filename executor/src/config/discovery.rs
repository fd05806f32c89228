//! Machines that the farm file does not name: what becomes of them when they ask the network for something to boot.

use std::path::PathBuf;
use std::time::Duration;

use super::MachineConfig;

/// What the farm does with machines that it does not know.
#[derive(Clone, Debug, PartialEq)]
pub struct DiscoveryConfig {
    /// When they may register.
    pub unknown: Unknown,
    /// The job description whose first boot registers them: its name and its text. The farm's own when absent.
    pub job: Option<(String, String)>,
    /// A kernel for machines that the farm's own is not made for, and the folder of its modules.
    pub kernel: Option<(PathBuf, PathBuf)>,
    /// How long a machine may take from its first request to its registration.
    pub register_time: Duration,
}

impl Default for DiscoveryConfig {
    /// Five minutes: two of a server's second self test, a kernel over a slow link, and the pings of its serial ports.
    fn default() -> Self {
        let register_time = Duration::from_secs(300);
        DiscoveryConfig { unknown: Unknown::default(), job: None, kernel: None, register_time }
    }
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
