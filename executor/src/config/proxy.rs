//! Where the farm lets its DUTs connect to through the gateway, and from where it fetches for those who submit.

use gateway::egress::{Network, Rule};

/// What jobs may be let to; nowhere by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyConfig {
    /// The places that a job may name.
    pub allowed: Vec<Rule>,
    /// Private networks that those may lead to.
    pub private_networks: Vec<Network>,
}

/// From where the farm fetches what jobs name by URL, for those who may submit and no more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DownloadsConfig {
    /// Places that may be anywhere, the farm's host included.
    pub trusted: Vec<Rule>,
    /// Private networks that all others may lead to; all when absent.
    pub private_networks: Option<Vec<Network>>,
}
