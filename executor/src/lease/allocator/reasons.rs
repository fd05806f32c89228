//! What a waiting lease is told: its place, and per candidate why it cannot have it now. ◆

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::lease::rows::{Admin, Kind, LeaseId, Moment, Resource, Trial};

/// What everybody who waits is told.
pub type Outlooks = HashMap<LeaseId, Outlook>;

/// What a waiting lease is told. Leases that ask for the same share their reasons.
#[derive(Clone, Debug, PartialEq)]
pub struct Outlook {
    /// Its place in the queue; 1 is next.
    pub place: usize,
    /// Per candidate, why not now.
    pub reasons: Arc<[Reason]>,
    /// When its turn comes, as far as one can tell from the ends and the mean lengths of the holds before it.
    pub estimate: Option<Moment>,
}

/// Why a candidate is not to be had now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Somebody has it.
    Busy {
        /// The candidate.
        resource: String,
        /// Who.
        owner: String,
        /// Since when.
        since: Moment,
    },
    /// A person holds it back.
    Cordoned {
        /// The candidate.
        resource: String,
        /// Why.
        why: String,
    },
    /// It has to show first that it is well.
    OnTrial {
        /// The candidate.
        resource: String,
        /// How.
        trial: Trial,
    },
    /// The farm holds it back.
    Quarantined {
        /// The candidate.
        resource: String,
    },
    /// It takes no new leases.
    Draining {
        /// The candidate.
        resource: String,
    },
    /// It is not there yet.
    Starting {
        /// The candidate.
        resource: String,
        /// What it is: some say how far they are.
        kind: Kind,
    },
    /// An earlier request needs it.
    Earlier {
        /// The candidate.
        resource: String,
        /// Whose.
        owner: String,
    },
    /// Something that goes with it is not to be had.
    PartBusy {
        /// The candidate.
        resource: String,
        /// What.
        part: String,
    },
    /// As many as are allowed exist.
    Limit {
        /// The blueprint.
        blueprint: String,
        /// How many.
        limit: u32,
    },
    /// The last one could not be made.
    BackOff {
        /// The blueprint.
        blueprint: String,
    },
    /// Somebody has to say yes.
    AwaitsAuthorization {
        /// The blueprint.
        blueprint: String,
        /// For whom.
        subject: String,
    },
    /// The project has as much as it may.
    Quota {
        /// Which.
        project: String,
        /// How many leases that is.
        running: u32,
    },
    /// Other projects that wait have used less machine-time by their shares.
    UsedMore {
        /// Whose request this is.
        project: String,
    },
    /// An idle resource is asked to make room.
    Reclaiming {
        /// Which.
        resource: String,
    },
    /// Not all members of the gang have asked yet, or not all have a place.
    Gang {
        /// The gang.
        name: String,
    },
}

impl Reason {
    /// Why one that is held back is.
    pub fn of_held_back(row: &Resource) -> Reason {
        let resource = row.full_name.clone();
        match &row.admin {
            Admin::Enabled => Reason::Quarantined { resource },
            Admin::Cordoned { reason } => Reason::Cordoned { resource, why: reason.clone() },
            Admin::Retired { reason } => Reason::Cordoned { resource, why: format!("retired: {reason}") },
            Admin::OnTrial { trial } => Reason::OnTrial { resource, trial: *trial },
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Busy { resource, owner, .. } => write!(formatter, "{resource} is busy with {owner}"),
            Reason::Cordoned { resource, why } => write!(formatter, "{resource} is held back: {why}"),
            Reason::OnTrial { resource, trial: Trial::QuickCheck } => {
                write!(formatter, "{resource} has to pass its quick check first")
            }
            Reason::OnTrial { resource, trial: Trial::Training } => {
                write!(formatter, "{resource} has to pass its training first")
            }
            Reason::Quarantined { resource } => {
                write!(formatter, "{resource} is held back: it failed too often; look at its events")
            }
            Reason::Draining { resource } => write!(formatter, "{resource} is being taken out of service"),
            Reason::Starting { resource, kind: Kind::Host } => {
                write!(formatter, "{resource} is being made ready; `wharf hosts` says how far it is")
            }
            Reason::Starting { resource, .. } => write!(formatter, "{resource} is being made ready"),
            Reason::Earlier { resource, owner } => write!(formatter, "{resource} goes to {owner}, which came earlier"),
            Reason::PartBusy { resource, part } => write!(formatter, "{resource} needs {part}, which is not free"),
            Reason::Limit { blueprint, limit } => {
                write!(formatter, "{blueprint} makes no more than {limit} at a time")
            }
            Reason::BackOff { blueprint } => write!(formatter, "{blueprint} pauses: the last one could not be made"),
            Reason::AwaitsAuthorization { blueprint, subject } => {
                write!(formatter, "nobody has said yet whether {subject} may use {blueprint}")
            }
            Reason::Quota { project, running } => {
                let leases = if *running == 1 { "lease" } else { "leases" };
                write!(
                    formatter,
                    "the project `{project}` has {running} {leases} at a time, and no more (projects.{project}.running)"
                )
            }
            Reason::UsedMore { project } => {
                write!(
                    formatter,
                    "the project `{project}` has used more machine-time lately than others that wait: they go first"
                )
            }
            Reason::Reclaiming { resource } => write!(formatter, "{resource} is idle and makes room"),
            Reason::Gang { name } => write!(formatter, "gang {name} is not complete yet"),
        }
    }
}
