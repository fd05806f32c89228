//! What the farm remembers of its leases: the rows, and one [`Transition`] as the only way to change them. ◆
//!
//! ```text
//!  blueprint ──makes──► resource ◄──holds── lease ──owned by──► job, connection, heartbeat
//!                          │ gang                └─children──► lease on console, power, boot namespace, gear
//!                          └─slots: a key that one live row owns          command: asks a row; read once, in the row's transition
//! ```
//! Times are absolute milliseconds, so that a restart finds every deadline where it was.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

mod told;

/// A moment: milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Moment(pub u64);

impl Moment {
    /// This moment and some milliseconds.
    pub fn plus_ms(self, ms: u64) -> Moment {
        Moment(self.0.saturating_add(ms))
    }

    /// How many milliseconds later than `earlier` it is; none if it is not.
    pub fn since_ms(self, earlier: Moment) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> $name {
                $name(text.into())
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> $name {
                $name(text.into())
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

id!(
    /// A lease. The requester makes the id, so that asking twice is asking once.
    LeaseId
);
id!(
    /// One row of a resource: `<name>#<serial>`. A thing that comes back after it was lost is a new row.
    ResourceId
);

/// What a command, slot, effect or event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Object {
    /// A lease.
    Lease(LeaseId),
    /// A resource.
    Resource(ResourceId),
}

impl fmt::Display for Object {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Lease(id) => write!(formatter, "lease {id}"),
            Object::Resource(id) => write!(formatter, "resource {id}"),
        }
    }
}

/// What can be leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// What a DUT fetches from the gateway.
    BootNamespace,
    /// The writer of one console.
    Console,
    /// One outlet.
    Power,
    /// A named thing that several DUTs may need.
    Gear,
    /// A fresh folder on a host.
    WorkingCopy,
    /// A machine that runs commands and keeps files.
    Host,
    /// A machine under test.
    Dut,
}

impl Kind {
    /// A child's rank is strictly below its parent's, so that no two gangs can wait for each other. Siblings are claimed by rank.
    pub fn rank(self) -> u8 {
        match self {
            Kind::BootNamespace => 0,
            Kind::Console => 1,
            Kind::Power => 2,
            Kind::Gear => 3,
            Kind::WorkingCopy => 4,
            Kind::Host => 5,
            Kind::Dut => 6,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Kind::BootNamespace => "boot-namespace",
            Kind::Console => "console",
            Kind::Power => "power",
            Kind::Gear => "gear",
            Kind::WorkingCopy => "working-copy",
            Kind::Host => "host",
            Kind::Dut => "dut",
        })
    }
}

/// Whose lease it is. An owner that is gone takes the lease with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// A job.
    Job(String),
    /// An open connection.
    Connection(String),
    /// Somebody who is not missed: its time ends it.
    Term(String),
    /// Somebody who says every so often that he still wants it.
    Heartbeat {
        /// Who.
        name: String,
        /// How often, in milliseconds.
        every_ms: u64,
    },
}

impl fmt::Display for Owner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Job(id) => write!(formatter, "job {id}"),
            Owner::Connection(name) | Owner::Term(name) | Owner::Heartbeat { name, .. } => formatter.write_str(name),
        }
    }
}

/// How a lease holds its resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Alone, or as one of the seats of a shared resource.
    Hold,
    /// Looks on; takes no slot.
    Reader,
}

/// What a request asks of one resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Want {
    /// What kind.
    pub kind: Kind,
    /// A resource's name; `None`: any.
    pub name: Option<String>,
    /// Tags that it must all have.
    pub tags: Vec<String>,
    /// How it is held.
    pub mode: Mode,
    /// What for.
    #[serde(default, skip_serializing_if = "Purpose::is_work")]
    pub purpose: Purpose,
}

/// What a lease is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Whatever its owner wants.
    #[default]
    Work,
    /// To find out whether the resource is well: it may be one that is held back.
    Health,
}

impl Purpose {
    /// Whether it is anything but a look at the resource's health.
    pub fn is_work(&self) -> bool {
        *self == Purpose::Work
    }
}

/// A request as somebody makes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRequest {
    /// Made by the requester; the same id again is the same lease.
    pub id: LeaseId,
    /// What it asks for.
    pub want: Want,
    /// Claimed together with it, all or nothing: gear.
    pub also: Vec<Want>,
    /// Requests of one gang get their resources together or not at all.
    pub gang: Option<Gang>,
    /// Tags that are liked, the most liked first.
    pub prefers: Vec<String>,
    /// Resources by name that are taken last.
    pub avoid: Vec<String>,
    /// The resource by name that is taken first.
    pub sticky: Option<String>,
    /// Higher goes first.
    pub priority: i32,
    /// Whose it is.
    pub owner: Owner,
    /// In whose name blueprints are authorized.
    pub authorizer: String,
    /// How long it may wait, activate, and be held, in milliseconds.
    pub timeouts: Timeouts,
}

/// What a project may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Leases at a time.
    pub running: Option<u32>,
    /// Requests that wait.
    pub queued: Option<u32>,
    /// How much machine-time it gets, against others; 1 when absent.
    pub share: Option<u32>,
    /// What it may use, by either name of a blueprint; everything when absent.
    pub blueprints: Option<Vec<String>>,
}

/// How much machine-time a project has used lately (shares.rs).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Whose.
    pub project: String,
    /// Milliseconds, as they counted at `at`. With none left the row is forgotten.
    pub ms: u64,
    /// How long a lease of its lasts: a mean in which the last eight weigh most.
    pub mean_ms: u64,
    /// When.
    pub at: Moment,
}

/// Several requests that belong together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Gang {
    /// The gang's name.
    pub name: String,
    /// How many requests it has; it is not placed before they are all there.
    pub members: u32,
}

/// Limits of a lease, in milliseconds; `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// In the queue.
    pub queue_ms: Option<u64>,
    /// From acquired to active.
    pub activate_ms: Option<u64>,
    /// Active, until renewed.
    pub hold_ms: Option<u64>,
    /// Active, however often renewed.
    pub hold_ms_max: Option<u64>,
}

/// Where a lease is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// It waits for a resource.
    Pending,
    /// It has its resource; handles are being made.
    Acquired,
    /// It can be used.
    Active,
    /// The destroy phase.
    Releasing,
    /// Over.
    Destroyed,
}

/// Where a resource is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResourceState {
    /// It is being made.
    Pending,
    /// It can be leased.
    Active,
    /// It takes no new leases.
    Draining,
    /// The destroy phase.
    Releasing,
    /// Over.
    Destroyed,
}

/// How far the destroy phase is. It only moves forward, until the row is over or requeued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Nothing is done yet.
    #[default]
    Whole,
    /// Handles refuse and nothing is in flight.
    Revoked,
    /// The effects are undone.
    TornDown,
}

/// What follows the destroy phase of a lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    /// Nothing.
    #[default]
    Destroy,
    /// It waits again, in its old place.
    Requeue,
}

/// When things happen by themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadlines {
    /// The end of waiting in the queue.
    pub queue: Option<Moment>,
    /// The end of activation.
    pub activate: Option<Moment>,
    /// The end of the hold.
    pub expires: Option<Moment>,
    /// Which no renewal goes beyond.
    pub expires_at_most: Option<Moment>,
    /// Not before this is a failed effect tried again.
    pub retry: Option<Moment>,
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// What was asked for.
    pub request: LeaseRequest,
    /// Counts its transitions; each names the one that it goes on from.
    pub version: u64,
    /// Where it is.
    pub state: LeaseState,
    /// How far its destroy phase is.
    pub phase: Phase,
    /// What follows the destroy phase.
    pub then: Then,
    /// Why it is where it is.
    pub cause: Cause,
    /// What it holds.
    pub resource: Option<ResourceId>,
    /// The number of this hold on the resource.
    pub fence: u64,
    /// Its age: lower is older. A requeued lease keeps it.
    pub seq: u64,
    /// Failed activations.
    pub attempts: u32,
    /// Failed tear-downs of the present destroy phase.
    pub tear_downs_failed: u32,
    /// Resources that failed it, by name; taken last.
    pub failed_on: Vec<String>,
    /// The keys that it owns.
    pub slots: Vec<String>,
    /// When it does something by itself.
    pub deadlines: Deadlines,
    /// What a person must look at.
    pub needs_operator: Option<String>,
    /// The lease or resource that it is a part of.
    pub parent: Option<Object>,
    /// The resource that is being made for it.
    pub building: Option<ResourceId>,
    /// The idle resource that was asked to make room for it.
    pub reclaiming: Option<ResourceId>,
    /// When it got its resource.
    pub acquired_at: Option<Moment>,
    /// When it was asked for.
    pub requested_at: Moment,
}

impl Lease {
    /// Its id.
    pub fn id(&self) -> &LeaseId {
        &self.request.id
    }

    /// Itself, as an object.
    pub fn object(&self) -> Object {
        Object::Lease(self.request.id.clone())
    }

    /// Whether it occupies its resource.
    pub fn is_held(&self) -> bool {
        matches!(self.state, LeaseState::Acquired | LeaseState::Active | LeaseState::Releasing)
    }
}

/// Whether a person lets a resource be leased.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Admin {
    /// Yes.
    #[default]
    Enabled,
    /// No.
    Cordoned {
        /// Who and why.
        reason: String,
    },
    /// Not before it has shown that it is well.
    OnTrial {
        /// How.
        trial: Trial,
    },
    /// It is out of service, and nobody looks whether it is well either.
    Retired {
        /// Who and why.
        reason: String,
    },
}

/// How a resource shows that it is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trial {
    /// By one health job.
    QuickCheck,
    /// By as many as its training takes.
    Training,
}

/// What the farm thinks of a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It has worked.
    Good,
    /// Nobody has looked yet.
    #[default]
    Unknown,
    /// It failed lately; taken last.
    Suspect,
    /// It is not leased.
    Quarantined,
}

/// A part that a lease on a resource claims together with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// What kind of part.
    pub kind: Kind,
    /// Which one.
    pub on: ClaimOn,
}

/// Where a part comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaimOn {
    /// The resource of this name, which exists by itself.
    Named(String),
    /// It is made for this lease and goes with it; `identity` is the slot that keeps two of them apart.
    Made {
        /// The key that only one such part owns at a time; `{lease}` in it stands for the lease's id, where each may have its own.
        identity: String,
    },
}

/// A thing that exists, or is being made, and can be leased.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// Its row.
    pub id: ResourceId,
    /// The number of its row.
    pub serial: u64,
    /// Counts its transitions.
    pub version: u64,
    /// What kind.
    pub kind: Kind,
    /// What made it.
    pub blueprint: String,
    /// What requests call it; also the name of the thing outside, the same at every attempt.
    pub name: String,
    /// Another name of it.
    pub full_name: String,
    /// What can be asked of it.
    pub tags: Vec<String>,
    /// How many leases may hold it at a time.
    pub seats: u32,
    /// Its parts.
    pub gang: Vec<Claim>,
    /// How long it lives.
    pub keep: Keep,
    /// Where it is.
    pub state: ResourceState,
    /// How far its destroy phase is.
    pub phase: Phase,
    /// Why it is where it is.
    pub cause: Cause,
    /// The number of the newest hold.
    pub fence: u64,
    /// A person's word.
    pub admin: Admin,
    /// The farm's word.
    pub health: Health,
    /// Failures in a row that were the farm's.
    pub failures: u32,
    /// Failed activations.
    pub attempts: u32,
    /// Failed tear-downs of the present destroy phase.
    pub tear_downs_failed: u32,
    /// The keys that it owns.
    pub slots: Vec<String>,
    /// When it does something by itself.
    pub deadlines: Deadlines,
    /// What a person must look at.
    pub needs_operator: Option<String>,
    /// Since when nobody holds it.
    pub idle_since: Option<Moment>,
    /// How long it must have been idle before it makes room for another.
    pub idle_ms_min: u64,
    /// The lease that it is made for.
    pub made_for: Option<LeaseId>,
    /// What a probe found.
    pub facts: Vec<(String, String)>,
}

impl Resource {
    /// Itself, as an object.
    pub fn object(&self) -> Object {
        Object::Resource(self.id.clone())
    }

    /// Whether it may be leased for this, as far as people and the farm think.
    pub fn serves(&self, purpose: Purpose) -> bool {
        match (&self.admin, purpose) {
            (Admin::Enabled, Purpose::Work) => self.health != Health::Quarantined,
            (Admin::Cordoned { .. } | Admin::OnTrial { .. }, Purpose::Work) => false,
            (Admin::Enabled | Admin::Cordoned { .. } | Admin::OnTrial { .. }, Purpose::Health) => true,
            (Admin::Retired { .. }, _) => false,
        }
    }

    /// Whether somebody could know it by this name.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.full_name == name
    }
}

/// How long a resource lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// Until it is released, lost or reclaimed.
    OnItsOwn,
    /// As long as the one lease that it was made for.
    WithItsLease,
}

/// What makes resources: configuration, loaded at every start. A machine of the inventory is a blueprint that keeps one and allows one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blueprint {
    /// Its name; resources are called `<name>` where the limit is one, and `<name>-<k>` otherwise.
    pub name: String,
    /// The other name of what it makes, numbered in the same way.
    pub full_name: String,
    /// What it makes.
    pub kind: Kind,
    /// What can be asked of what it makes.
    pub tags: Vec<String>,
    /// The most that may exist at a time.
    pub limit: u32,
    /// The limit that it shares with other blueprints; `None`: its own.
    pub pool: Option<Pool>,
    /// How many are kept, wanted or not.
    pub preallocated: u32,
    /// How many leases may hold one at a time.
    pub seats: u32,
    /// The parts of one: `{}` in a name or identity stands for the resource's own name.
    pub gang: Vec<Claim>,
    /// Who may lease from it.
    pub access: Access,
    /// Which of several free ones is taken.
    pub policy: PlacementPolicy,
    /// How long one must have been idle before it makes room for another, in milliseconds.
    pub idle_ms_min: u64,
    /// How long one above `preallocated` is kept idle, in milliseconds; `None`: for ever.
    pub idle_ms_max: Option<u64>,
    /// How long activation of one may take, in milliseconds.
    pub activate_ms: u64,
    /// How long a lease of one lasts on average, in milliseconds, where that is known.
    pub mean_hold_ms: Option<u64>,
    /// Whether it still makes resources.
    pub service: Service,
    /// How many failures in a row are too many.
    pub patience: Patience,
    /// Whether what it makes has to show first that it is well.
    pub trial: Option<Trial>,
    /// What was thought of the one of the inventory before it was made anew: the next one is the same machine.
    pub before: Option<Standing>,
}

/// How many failures in a row that were the farm's a resource may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// So many make it suspect: it is taken last.
    pub suspect_after: u32,
    /// So many quarantine it: it is not leased.
    pub quarantined_after: u32,
}

impl Default for Patience {
    /// One failure is an accident, two are a pattern; four are no bad luck any more.
    fn default() -> Patience {
        Patience { suspect_after: 2, quarantined_after: 4 }
    }
}

/// What people and the farm think of a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// A person's word.
    pub admin: Admin,
    /// The farm's word.
    pub health: Health,
    /// Failures in a row that were the farm's.
    pub failures: u32,
}

/// A limit over several blueprints, as for the machine that they all run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// The most of all of them.
    pub limit: u32,
}

/// Who may lease from a blueprint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    #[default]
    Everyone,
    /// Whoever has an [`Authorization`].
    Authorized,
}

/// Which of several free resources is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlacementPolicy {
    /// The one that has been idle longest.
    #[default]
    Spread,
    /// The one that was used last.
    Pack,
}

/// Whether a blueprint makes resources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Service {
    /// Yes.
    #[default]
    Open,
    /// Not before this moment: the last one could not be made.
    BackOff(Moment),
    /// No more: what exists is drained.
    Retired,
}

/// Whether a subject may lease from a blueprint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authorization {
    /// A project, user or token.
    pub subject: String,
    /// The blueprint's name.
    pub blueprint: String,
    /// The answer.
    pub state: AuthorizationState,
    /// Who answered, or asked.
    pub by: String,
    /// When.
    pub at: Moment,
}

/// An authorization's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuthorizationState {
    /// Nobody has answered.
    Requested,
    /// Yes.
    Authorized,
    /// No.
    Declined,
}

/// A command's number; they are read in this order.
pub type CommandId = u64;

/// What somebody asks of a row. Only the row's own transition reads it, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Its number; 0 until it is committed.
    pub id: CommandId,
    /// Of whom.
    pub target: Object,
    /// What.
    pub verb: Verb,
    /// Who asks.
    pub by: String,
    /// When.
    pub at: Moment,
}

/// What a command asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// To end.
    Release {
        /// Why.
        cause: Cause,
    },
    /// To a lease: to last longer.
    Renew {
        /// Until when.
        until: Moment,
    },
    /// To end at a moment, sooner or later than it would.
    Expires {
        /// When.
        at: Moment,
    },
    /// To a lease: the resource under it ends. To a resource: the thing outside is gone.
    ResourceLost {
        /// What happened.
        why: String,
    },
    /// To a lease: it belongs to another owner from now on.
    HandOver {
        /// To whom.
        owner: Owner,
    },
    /// To a resource: to take no new leases, then to end.
    Drain,
    /// To a resource: to take leases again.
    Undrain,
    /// To a resource: to end if it is idle.
    Reclaim,
    /// To a resource: to take no new leases.
    Cordon {
        /// Why.
        reason: String,
    },
    /// To a resource: to take leases again.
    Uncordon,
    /// To a resource: to show that it is well before it takes leases.
    Try {
        /// How.
        trial: Trial,
    },
    /// To a resource: to take no leases at all.
    Retire {
        /// Why.
        reason: String,
    },
    /// To a resource: what the farm thinks of it now.
    Judge {
        /// The new opinion.
        health: Health,
    },
    /// To a resource: a lease on it failed, and it was the farm's fault.
    Failed {
        /// What happened.
        why: String,
    },
    /// To a resource: what the farm file says of it now.
    Describe {
        /// Another name of it.
        full_name: String,
        /// What can be asked of it.
        tags: Vec<String>,
        /// Its parts from the next lease on; `None`: as they are.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gang: Option<Vec<Claim>>,
        /// How many leases may hold it; `None`: as it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seats: Option<u32>,
    },
    /// To a row whose tear-down does not succeed: to count it as done.
    Abandon {
        /// Why that is all right.
        reason: String,
    },
}

/// Why something happened: closed, and each with a sentence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Somebody asked for it.
    Requested,
    /// The allocator had a place for it.
    Placed,
    /// It came up.
    Activated,
    /// Somebody released it.
    Released {
        /// Who.
        by: String,
    },
    /// Its time was over.
    Expired,
    /// Its owner fell silent or closed the connection.
    OwnerGone,
    /// It waited too long in the queue.
    QueueTimeout,
    /// It took too long to come up.
    ActivateTimeout,
    /// Nothing in the farm could ever serve it.
    NeverFeasible {
        /// Per candidate, why not.
        why: String,
    },
    /// The resource under it went away.
    ResourceLost {
        /// What happened.
        why: String,
    },
    /// It could not be brought up.
    ActivationFailed {
        /// What happened.
        why: String,
    },
    /// What it is a part of ends.
    ParentEnds,
    /// Another member of its gang could not be had.
    GangBroken {
        /// Which.
        member: LeaseId,
    },
    /// Its tear-down failed.
    TearDownFailed {
        /// What happened.
        why: String,
    },
    /// A person counted its tear-down as done.
    Abandoned {
        /// Who.
        by: String,
        /// Why that is all right.
        reason: String,
    },
    /// Somebody changed its end.
    Renewed {
        /// Who.
        by: String,
    },
    /// Somebody gave it to another owner.
    HandedOver {
        /// Who.
        by: String,
    },
    /// Somebody drains it, or its blueprint is retired.
    Drained {
        /// Who.
        by: String,
    },
    /// It was idle, and something else needed the room.
    Reclaimed {
        /// Who asked.
        by: String,
    },
    /// A person holds it back or lets it go again.
    Administered {
        /// Who.
        by: String,
    },
    /// The farm's opinion of it changed.
    Judged {
        /// Why.
        why: String,
    },
    /// The farm was away, and that is not held against it.
    FarmWasAway {
        /// For how long; less than nothing where the clock was set back.
        ms: i64,
    },
    /// The command came too late, or does not apply here.
    Refused {
        /// Why.
        why: String,
    },
}

impl fmt::Display for Cause {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Requested => formatter.write_str("it was asked for"),
            Cause::Placed => formatter.write_str("there was a place for it"),
            Cause::Activated => formatter.write_str("it came up"),
            Cause::Released { by } => write!(formatter, "{by} released it"),
            Cause::Expired => formatter.write_str("its time was over"),
            Cause::OwnerGone => formatter.write_str("its owner is gone"),
            Cause::QueueTimeout => formatter.write_str("it waited in the queue for too long"),
            Cause::ActivateTimeout => formatter.write_str("it took too long to come up"),
            Cause::NeverFeasible { why } => write!(formatter, "nothing in the farm could ever serve it: {why}"),
            Cause::ResourceLost { why } => write!(formatter, "its resource went away: {why}"),
            Cause::ActivationFailed { why } => write!(formatter, "it could not be brought up: {why}"),
            Cause::ParentEnds => formatter.write_str("what it is a part of ends"),
            Cause::GangBroken { member } => write!(formatter, "lease {member} of its gang could not be had"),
            Cause::TearDownFailed { why } => write!(formatter, "its tear-down failed: {why}"),
            Cause::Abandoned { by, reason } => write!(formatter, "{by} counted its tear-down as done: {reason}"),
            Cause::Renewed { by } => write!(formatter, "{by} changed its end"),
            Cause::HandedOver { by } => write!(formatter, "{by} gave it to another owner"),
            Cause::Drained { by } => write!(formatter, "{by} drains it"),
            Cause::Reclaimed { by } => write!(formatter, "it was idle, and {by} needed the room"),
            Cause::Administered { by } => write!(formatter, "{by} administers it"),
            Cause::Judged { why } => write!(formatter, "the farm's opinion of it changed: {why}"),
            Cause::FarmWasAway { ms } => write!(formatter, "the farm was away for {} s", ms / 1_000),
            Cause::Refused { why } => write!(formatter, "a command was refused: {why}"),
        }
    }
}

/// An effect's number.
pub type EffectId = u64;

/// One line of the journal: what was about to be done outside, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Effect {
    /// Its number; 0 until it is committed.
    pub id: EffectId,
    /// For whom.
    pub object: Object,
    /// What.
    pub operation: Operation,
    /// Under which hold.
    pub fence: u64,
    /// When it was about to be done.
    pub intent_at: Moment,
}

/// What is done outside. Each may be done again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Bring it up.
    Activate,
    /// Make its handles refuse and wait until nothing is in flight. Local, so never in the journal.
    Revoke,
    /// Undo everything.
    TearDown,
}

/// A row of a table of [`super::steps`], or one of the writes beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names of the tables' rows; the tables say what they are")]
pub enum Label {
    L1,
    L2,
    L3,
    L4,
    L5,
    L6,
    L7,
    L8,
    L9,
    L10,
    L11,
    L12,
    L13,
    L14,
    L15,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R11,
    R12,
    R13,
    /// Somebody posted a command.
    Asked,
    /// An effect is about to be done.
    Intent,
    /// The allocator noted which resource a waiting lease waits for.
    Noted,
    /// Its clocks stood while the farm was away.
    Credited,
}

/// One change of the rows, whole: it is committed in one transaction with its event, or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// When.
    pub at: Moment,
    /// Whose transition.
    pub object: Object,
    /// Which.
    pub label: Label,
    /// Why.
    pub cause: Cause,
    /// Leases as they are now; each goes on from the version before.
    pub leases: Vec<Lease>,
    /// Resources as they are now.
    pub resources: Vec<Resource>,
    /// Commands that were read.
    pub consumed: Vec<CommandId>,
    /// Commands to others.
    pub posted: Vec<Command>,
    /// Keys that now have an owner.
    pub taken: Vec<(String, Object)>,
    /// Keys that are free again.
    pub freed: Vec<(String, Object)>,
    /// Effects that are about to be done.
    pub intents: Vec<Effect>,
    /// Whether the object's effects in the journal are over.
    pub journal: Journal,
    /// What projects have used by now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub used: Vec<Used>,
    /// Who should look at its rows again. A hint: after a restart everybody looks.
    #[serde(skip)]
    pub wakes: Vec<Wake>,
}

/// What a transition does to its object's open effects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Journal {
    /// Nothing.
    #[default]
    Stays,
    /// They are over, with this transition as their result.
    Closed,
}

impl Transition {
    /// A transition that changes nothing yet.
    pub fn new(at: Moment, object: Object, label: Label, cause: Cause) -> Transition {
        Transition {
            at,
            object,
            label,
            cause,
            leases: Vec::new(),
            resources: Vec::new(),
            consumed: Vec::new(),
            posted: Vec::new(),
            taken: Vec::new(),
            freed: Vec::new(),
            intents: Vec::new(),
            journal: Journal::Stays,
            used: Vec::new(),
            wakes: Vec::new(),
        }
    }

    /// Somebody's wish, put where its target reads it.
    pub fn ask(at: Moment, target: Object, verb: Verb, by: &str) -> Transition {
        let mut transition =
            Transition::new(at, target.clone(), Label::Asked, Cause::Administered { by: by.to_owned() });
        if let Verb::Release { cause } = &verb {
            transition.cause = cause.clone();
        }
        transition.post(target, verb, by);
        transition
    }

    /// Adds a command, and wakes whom it asks.
    pub fn post(&mut self, target: Object, verb: Verb, by: &str) {
        self.wakes.push(Wake::Object(target.clone()));
        self.posted.push(Command { id: 0, target, verb, by: by.to_owned(), at: self.at });
    }
}

/// Who should look again.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    /// A row.
    Object(Object),
    /// The allocator.
    Allocator,
}

/// What happened, for people; from the events the rows can be made again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number; without gaps.
    pub seq: u64,
    /// What happened.
    pub transition: Transition,
}
