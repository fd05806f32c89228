//! Who may call, and how much each project may use.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::callers::Role;

/// The entry of `projects` for those that have none of their own.
pub const OTHERS: &str = "others";

/// A forge whose id_tokens are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerConfig {
    /// Its `iss`, letter by letter.
    pub issuer: String,
    /// The `aud` that says that a token is for this farm.
    pub audience: String,
    /// How long the token lasts for which an id_token is exchanged; as long as the id_token when absent.
    pub session: Option<Duration>,
    /// The first that fits says who it is.
    pub rules: Vec<RuleConfig>,
}

/// Who of a forge may do what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleConfig {
    /// In whose name he acts.
    pub project: String,
    /// What he may do.
    pub role: Role,
    /// What the id_token must say.
    pub claims: BTreeMap<String, String>,
    /// From which refs.
    pub refs: Refs,
}

/// The refs whose jobs are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refs {
    /// Only those that the forge protects.
    Protected,
    /// All of them, merge requests of anybody included.
    Any,
}

/// What a project may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProjectConfig {
    /// Leases at a time.
    pub running: Option<u32>,
    /// Requests in the queue.
    pub queued: Option<u32>,
    /// Against others: twice the share, twice the machine-time.
    pub share: Option<u32>,
    /// What it may use, by the names of blueprints; everything when absent.
    pub blueprints: Option<Vec<String>>,
}

/// Whether the operator's listener speaks TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TlsConfig {
    /// On the loopback no, elsewhere with the farm's own authority.
    #[default]
    Usual,
    /// In clear: something else protects it.
    None,
    /// With a certificate of the farm's own authority, which is good for these names, too.
    Own(Vec<String>),
    /// With these files, read again when they change.
    Files {
        /// The chain.
        certificate: PathBuf,
        /// The private key.
        key: PathBuf,
    },
}
