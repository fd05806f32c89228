//! Who makes hosts: a cloud is one file, and does four things.
//!
//! ```text
//!  make ─► it is on its way ─► find … an address ─► it answers by SSH with the key that we gave it ─► a host
//!  end  ─► it is going; nobody finds it any more            list ─► all of ours that there are, for those that nobody remembers
//! ```
//! Every host is known by its name alone: what was begun before a crash is found again, made once, and ended.

use std::path::Path;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::ec2::Ec2;
use super::qemu::Qemu;
use crate::config::hosts::ProviderConfig;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// The same for every attempt to make this one, and never again.
    pub token: String,
    /// What cloud-init does at its first boot.
    pub user_data: String,
}

/// A host that there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What its provider calls it.
    pub id: String,
    /// Where it is, once it is known.
    pub address: Option<String>,
    /// The port of its SSH server there, where it is another than its own.
    pub port: Option<u16>,
}

/// Why a provider did not do it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// It may do it later.
    #[error("{0}")]
    NotNow(String),
    /// It will not, unless somebody changes something.
    #[error("{0}")]
    Never(String),
}

/// Makes and ends hosts.
pub trait Provider: Send + Sync {
    /// Makes a host. Asking twice is asking once.
    fn make<'a>(&'a self, wanted: &'a Wanted) -> BoxFuture<'a, Result<(), ProviderError>>;
    /// The host of this name, unless it is ending.
    fn find<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Option<Found>, ProviderError>>;
    /// Ends it. One that is not there is ended.
    fn end<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), ProviderError>>;
    /// The names of all of this entry's hosts that are not ending.
    fn list(&self) -> BoxFuture<'_, Result<Vec<String>, ProviderError>>;
}

/// The provider of an entry. `owner` tells this farm's hosts from those of others, `entry` those of this entry from the farm's others;
/// `state` is where what they need on this machine is kept.
pub fn build(config: &ProviderConfig, owner: &str, entry: &str, state: &Path) -> Arc<dyn Provider> {
    match config {
        ProviderConfig::Ec2(config) => Arc::new(Ec2::new(config.clone(), owner, entry)),
        ProviderConfig::Qemu(config) => Arc::new(Qemu::new(config.clone(), owner, entry, state)),
    }
}
