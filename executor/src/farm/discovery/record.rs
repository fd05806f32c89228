//! One discovery: what was asked, what is told of it while it goes on, and how it ended.
//!
//! ```text
//!  begun ──an unknown machine asks for something to boot, or registers──► bound ──it registers──► registered ──► over
//!    └── cancelled, too late, the outlet does not obey, the farm stops ─────┴─────────────────────────────────────▲
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gateway::dhcp::Mac;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::Sighting;
use crate::inventory::OutletName;

/// Lines of one discovery: a farm with many machines that it does not know tells of each.
const LINES_MAX: usize = 200;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoverAsk {
    /// The outlet that the machine is on; `None`: somebody presses its button.
    pub outlet: Option<OutletName>,
    /// How long a machine may take to be seen.
    pub timeout: Duration,
    /// Who asks.
    pub by: String,
}

/// Why a discovery does not begin.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// Machines without an entry get no address.
    #[error(
        "machines that the farm file does not name get no address here; add `dhcp: {{range: [FIRST, LAST]}}` to it and restart the server"
    )]
    NoRange,
    /// Another server gives the addresses.
    #[error(
        "this farm's DHCP gives no addresses (`dhcp: {{mode: proxy}}`), and a machine without a name is known by the address that it gave it; \
         name the machine in the farm file, with the address that the other server gives it"
    )]
    Proxy,
    /// One at a time.
    #[error("{0} runs already; wait for it, or cancel it with `wharf dut discover --cancel`")]
    Running(String),
    /// Not a unit of the farm file's.
    #[error("no PDU `{wanted}`; PDUs: {known}")]
    NoSuchPdu {
        /// What was asked for.
        wanted: String,
        /// What there is.
        known: String,
    },
    /// Not an outlet of the unit's.
    #[error("no outlet `{wanted}` on `{pdu}`; outlets: {known}")]
    NoSuchOutlet {
        /// The unit.
        pdu: String,
        /// What was asked for.
        wanted: String,
        /// What there is.
        known: String,
    },
    /// A DUT is on it.
    #[error("outlet `{outlet}` of `{pdu}` is {dut}'s; outlets without a DUT: {free}")]
    InUse {
        /// The unit.
        pdu: String,
        /// The outlet.
        outlet: String,
        /// Whose it is.
        dut: String,
        /// Which are nobody's.
        free: String,
    },
    /// The farm, or the unit, failed.
    #[error("{0}")]
    Farm(String),
}

/// How a discovery ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiscoveryOutcome {
    /// A machine is in the inventory.
    Registered {
        /// Its id.
        id: String,
        /// Its full name.
        full_name: String,
        /// What is missing until it is a DUT of the farm.
        waits_for: Option<String>,
    },
    /// No machine came.
    Nothing {
        /// What was seen.
        why: String,
    },
    /// Somebody cancelled it.
    Cancelled {
        /// Who.
        by: String,
    },
    /// The farm could not go on with it.
    Failed {
        /// Why.
        why: String,
    },
}

/// A discovery, from its begin on.
pub struct DiscoveryRecord {
    /// Its number since the farm's start.
    pub id: u64,
    /// The outlet that it is about.
    pub outlet: Option<OutletName>,
    /// When it began.
    pub began: jiff::Timestamp,
    /// How long a machine may take to be seen.
    pub timeout: Duration,
    progress: Mutex<Progress>,
    changed: watch::Sender<u64>,
    pub(super) cancelled: watch::Sender<Option<String>>,
}

#[derive(Default)]
struct Progress {
    lines: Vec<String>,
    powered_on: Option<Instant>,
    boot_time: Option<Duration>,
    bound: Option<Mac>,
    sighting: Option<Sighting>,
    registered: Option<String>,
    outcome: Option<DiscoveryOutcome>,
}

/// Whose a discovery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bind {
    Bound,
    Another(Mac),
}

impl DiscoveryRecord {
    pub(super) fn new(id: u64, ask: DiscoverAsk) -> Arc<DiscoveryRecord> {
        let DiscoverAsk { outlet, timeout, by } = ask;
        let record = DiscoveryRecord {
            id,
            outlet,
            began: jiff::Timestamp::now(),
            timeout,
            progress: Mutex::default(),
            changed: watch::channel(0).0,
            cancelled: watch::channel(None).0,
        };
        tracing::info!(discovery = record.in_words(), by, "a discovery begins");
        Arc::new(record)
    }

    /// What it is called.
    pub fn in_words(&self) -> String {
        match &self.outlet {
            Some(OutletName { pdu, outlet }) => format!("the discovery of outlet {outlet} of {pdu}"),
            None => "the discovery of the next machine".to_owned(),
        }
    }

    /// Ends it: the outlet goes off.
    pub fn cancel(&self, by: &str) {
        self.cancelled.send_if_modified(|cancelled| cancelled.replace(by.to_owned()).is_none());
    }

    /// The lines from this one on; and how it ended, once it has.
    pub fn told(&self, from: usize) -> (Vec<String>, Option<DiscoveryOutcome>) {
        let progress = self.lock();
        (progress.lines.get(from..).unwrap_or_default().to_vec(), progress.outcome.clone())
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<DiscoveryOutcome> {
        self.lock().outcome.clone()
    }

    /// The machine that it found, once it has.
    pub fn bound(&self) -> Option<Mac> {
        self.lock().bound
    }

    /// Whoever waits hears of each line, and of the end.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(super) fn tell(&self, line: String) {
        tracing::info!(discovery = self.id, line, "a discovery goes on");
        self.change(|progress| {
            if progress.lines.len() < LINES_MAX {
                progress.lines.push(line);
            }
        });
    }

    /// The outlet is on: boots are measured from here.
    pub(super) fn is_powered(&self) {
        self.change(|progress| progress.powered_on = Some(Instant::now()));
    }

    /// A stranger asks for something to boot. The first one is it; the others are only told.
    pub(super) fn sees(&self, sighting: Sighting) -> Option<Bind> {
        let mut bind = None;
        self.change(|progress| match progress.bound {
            None => {
                progress.bound = Some(sighting.mac);
                progress.sighting = Some(sighting);
                progress.boot_time = progress.powered_on.map(|on| on.elapsed());
                bind = Some(Bind::Bound);
            }
            Some(bound) if bound == sighting.mac => {
                progress.sighting.get_or_insert(sighting);
            }
            Some(bound) => bind = Some(Bind::Another(bound)),
        });
        bind
    }

    /// A stranger registers: it is bound if nobody was.
    pub(super) fn bind(&self, mac: Mac) -> Bind {
        let mut bind = Bind::Bound;
        self.change(|progress| match progress.bound {
            None => progress.bound = Some(mac),
            Some(bound) if bound == mac => {}
            Some(bound) => bind = Bind::Another(bound),
        });
        bind
    }

    pub(super) fn registered(&self, id: &str) {
        self.change(|progress| progress.registered = Some(id.to_owned()));
    }

    /// Who registered.
    pub(super) fn who_registered(&self) -> Option<String> {
        self.lock().registered.clone()
    }

    pub(super) fn sighting(&self) -> Option<Sighting> {
        self.lock().sighting
    }

    /// From power to the first request, in seconds with three digits.
    pub(super) fn boot_time_s(&self) -> Option<f64> {
        self.lock().boot_time.map(|time| (time.as_secs_f64() * 1000.0).round() / 1000.0)
    }

    pub(super) fn ends(&self, outcome: DiscoveryOutcome) {
        tracing::info!(discovery = self.id, ?outcome, "a discovery is over");
        self.change(|progress| {
            progress.outcome.get_or_insert(outcome);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock());
        self.changed.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
