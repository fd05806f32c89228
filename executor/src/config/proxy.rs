//! Where the farm lets its DUTs connect to, through the gateway.

use gateway::egress::{Network, Rule};

/// What jobs may be let to; nowhere by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyConfig {
    /// The places that a job may name.
    pub allowed: Vec<Rule>,
    /// Private networks that those may lead to.
    pub private_networks: Vec<Network>,
}
