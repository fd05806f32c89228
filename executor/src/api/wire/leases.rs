//! Leases, resources, events and authorizations on the wire. Times are RFC 3339, causes and reasons are sentences.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::blueprint::power::PowerState;
use crate::console::Protocol;
use crate::farm::PowerAction;
use crate::lease::rows::{
    Admin, Authorization, AuthorizationState, Event, Health, Lease, LeaseState, Moment, Object, Owner, Resource,
    ResourceState, Trial,
};
use crate::lease::{LeaseView, Snapshot};

/// A lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LeaseWire {
    /// Its id; those of jobs are `job-<number>`.
    pub id: String,
    /// `dut` or `host`, and for parts `console`, `power`, `boot-namespace`, `gear`, `working-copy`.
    pub kind: String,
    /// Where it is.
    pub state: LeaseStateWire,
    /// Why it is there.
    pub cause: String,
    /// Whose it is: `job 7`, or a name.
    pub owner: String,
    /// What keeps it: `job`, `connection`, `heartbeat` or `term`, its time alone.
    pub kept_by: String,
    /// In whose name it was asked for.
    pub subject: String,
    /// The full name of the resource that it holds.
    pub resource: Option<String>,
    /// The DUT that was asked for by name.
    pub wanted: Option<String>,
    /// The tags that were asked for.
    pub tags: Vec<String>,
    /// The gear that was asked for.
    pub gear: Vec<String>,
    /// Higher goes first.
    pub priority: i32,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub requested: jiff::Timestamp,
    /// When it got its resource.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub acquired: Option<jiff::Timestamp>,
    /// When it ends, unless it is renewed.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires: Option<jiff::Timestamp>,
    /// When it ends, however often it is renewed.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at_most: Option<jiff::Timestamp>,
    /// While it waits: its place; 1 is next.
    pub place: Option<usize>,
    /// While it waits: per candidate, why not now.
    pub reasons: Vec<String>,
    /// While it waits: when its turn comes, as far as one can tell.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub estimate: Option<jiff::Timestamp>,
    /// What a person must look at.
    pub needs_operator: Option<String>,
    /// What it is a part of.
    pub part_of: Option<String>,
    /// Its parts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartWire>,
}

/// A part of a lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PartWire {
    /// Its id.
    pub id: String,
    /// What kind.
    pub kind: String,
    /// Where it is.
    pub state: LeaseStateWire,
    /// What it holds.
    pub resource: Option<String>,
}

/// Where a lease is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LeaseStateWire {
    /// It waits.
    Pending,
    /// It has its resource, which is being brought up.
    Acquired,
    /// It can be used.
    Active,
    /// Everything is being given back.
    Releasing,
    /// Over.
    Destroyed,
}

/// All leases that are not over.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LeasesWire {
    /// Those that hold something first, then the queue in its order.
    pub leases: Vec<LeaseWire>,
}

/// What can be leased.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResourceWire {
    /// Its row.
    pub id: String,
    /// What requests call it.
    pub name: String,
    /// Its other name.
    pub full_name: String,
    /// What kind.
    pub kind: String,
    /// What makes it.
    pub blueprint: String,
    /// Where it is.
    pub state: ResourceStateWire,
    /// Why it is there.
    pub cause: String,
    /// Why a person holds it back, if one does.
    pub cordoned: Option<String>,
    /// What the farm thinks of it: `good`, `unknown`, `suspect` or `quarantined`.
    pub health: String,
    /// Failures in a row that were the farm's.
    pub failures: u32,
    /// What can be asked of it.
    pub tags: Vec<String>,
    /// What was found out about it.
    pub facts: std::collections::BTreeMap<String, String>,
    /// Since when nobody holds it.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub idle_since: Option<jiff::Timestamp>,
    /// What a person must look at.
    pub needs_operator: Option<String>,
    /// The ids of the leases on it.
    pub leases: Vec<String>,
}

/// Where a resource is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ResourceStateWire {
    /// It is being made.
    Pending,
    /// It can be leased.
    Active,
    /// It takes no new leases.
    Draining,
    /// It is being removed.
    Releasing,
    /// Gone.
    Destroyed,
}

/// Everything that exists.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ResourcesWire {
    /// The resources, by name.
    pub resources: Vec<ResourceWire>,
}

/// One resource with its present and its past.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ResourcePageWire {
    /// What it is.
    #[serde(flatten)]
    pub resource: ResourceWire,
    /// The leases on it.
    pub held_by: Vec<LeaseWire>,
    /// Its newest events, the oldest of them first.
    pub events: Vec<TransitionWire>,
}

/// One change of a lease or a resource.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TransitionWire {
    /// Its number, from 1.
    pub seq: u64,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: jiff::Timestamp,
    /// `lease` or `resource`.
    pub kind: String,
    /// Its id.
    pub id: String,
    /// The row of the table of leases (`L2`) or resources (`R9`); `Asked` when somebody posted a command, `Intent` before an effect.
    pub step: String,
    /// Where it is afterwards.
    pub state: Option<String>,
    /// Why.
    pub cause: String,
    /// The resource that it holds afterwards.
    pub resource: Option<String>,
}

/// Whether a subject may lease from a blueprint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuthorizationWire {
    /// A project, user or token.
    pub subject: String,
    /// The blueprint: a DUT's or a gear's name.
    pub blueprint: String,
    /// The answer.
    pub state: AuthorizationStateWire,
    /// Who answered, or asked.
    pub by: String,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: jiff::Timestamp,
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AuthorizationStateWire {
    /// Nobody has answered yet.
    Requested,
    /// Yes.
    Authorized,
    /// No.
    Declined,
}

/// All answers, and what waits for one.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AuthorizationsWire {
    /// By subject and blueprint.
    pub authorizations: Vec<AuthorizationWire>,
}

/// An answer to give.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AuthorizeWire {
    /// A project, user or token.
    #[serde(default)]
    pub subject: String,
    /// A DUT's or a gear's name.
    #[serde(default)]
    pub blueprint: String,
    /// The answer.
    #[serde(default)]
    pub state: Option<AuthorizationStateWire>,
}

/// A request for a lease. Durations are as in job descriptions: `1h 30m`, `90 s`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TakeWire {
    /// Made by the requester: the same id again is the same lease. Made by the server when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// A DUT's id or full name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dut: Option<String>,
    /// A host instead of a DUT: its name; any that has the tags when empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Tags that it must all have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Gear by name, claimed together with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gear: Vec<String>,
    /// Tags that are liked, the most liked first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefers: Vec<String>,
    /// DUTs that are taken last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub avoid: Vec<String>,
    /// The DUT that is taken first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<String>,
    /// Higher goes first.
    #[serde(default)]
    pub priority: i32,
    /// How long it is held, until renewed.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub hold_time: Option<String>,
    /// How long it is held, however often renewed.
    #[serde(default, rename = "for_at_most", skip_serializing_if = "Option::is_none")]
    pub hold_time_max: Option<String>,
    /// How long it may wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_timeout: Option<String>,
    /// What keeps it: `"connection"` (the default), `{"heartbeat": "30 s"}` or `"term"`, its time alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerWire>,
    /// The owner's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// In whose name DUTs are authorized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
}

/// What keeps a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OwnerWire {
    /// The connection of `GET …/events?owner=1`.
    Connection,
    /// `POST …/beat`, this often.
    Heartbeat(String),
    /// Nothing but its time.
    Term,
}

/// A change of a lease: longer, or another owner's.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeWire {
    /// It ends so long from now.
    #[serde(default, rename = "for", skip_serializing_if = "Option::is_none")]
    pub hold_time: Option<String>,
    /// It ends at this moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub until: Option<jiff::Timestamp>,
    /// What keeps it from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<OwnerWire>,
    /// Whose it is from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Why somebody does something.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReasonWire {
    /// For the events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A wish about power.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PowerWishWire {
    /// What to do.
    #[serde(default)]
    pub state: Option<PowerAction>,
}

/// How a leased console is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsolePortWishWire {
    /// `raw` or `rfc2217`; `raw` when absent.
    #[serde(default)]
    pub protocol: Option<Protocol>,
}

/// A port that leads to a leased console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConsolePortWire {
    /// What is spoken there.
    pub protocol: Protocol,
    /// Where, such as `127.0.0.1:40123`.
    #[schema(value_type = String)]
    pub address: SocketAddr,
}

/// Power as it was read back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PowerWire {
    /// On or off.
    pub state: PowerState,
}

impl LeaseWire {
    /// A lease as its row has it; what only the allocator knows is from its news, which come a moment later.
    pub fn of(lease: &Lease, view: &LeaseView) -> Self {
        let row = LeaseWire { resource: view.resource_full_name.clone(), ..LeaseWire::of_row(lease) };
        match lease.state {
            LeaseState::Pending => LeaseWire {
                place: view.place,
                reasons: view.reasons.iter().map(ToString::to_string).collect(),
                estimate: view.estimate.map(timestamp),
                ..row
            },
            LeaseState::Acquired | LeaseState::Active | LeaseState::Releasing | LeaseState::Destroyed => row,
        }
    }

    /// A lease of a snapshot.
    pub fn in_snapshot(lease: &Lease, snapshot: &Snapshot) -> Self {
        let outlook = snapshot.outlooks.get(lease.id()).filter(|_| lease.state == LeaseState::Pending);
        LeaseWire {
            resource: full_name(lease, snapshot),
            place: outlook.map(|outlook| outlook.place),
            reasons: outlook.iter().flat_map(|outlook| outlook.reasons.iter()).map(ToString::to_string).collect(),
            estimate: outlook.and_then(|outlook| outlook.estimate).map(timestamp),
            ..LeaseWire::of_row(lease)
        }
    }

    /// Adds the parts.
    pub fn with_parts(mut self, snapshot: &Snapshot) -> Self {
        let whole = Object::Lease(self.id.as_str().into());
        let parts = snapshot.leases.iter().filter(|lease| lease.parent.as_ref() == Some(&whole));
        self.parts = parts
            .map(|part| PartWire {
                id: part.id().to_string(),
                kind: part.request.want.kind.to_string(),
                state: part.state.into(),
                resource: full_name(part, snapshot),
            })
            .collect();
        self
    }

    fn of_row(lease: &Lease) -> Self {
        let request = &lease.request;
        LeaseWire {
            id: lease.id().to_string(),
            kind: request.want.kind.to_string(),
            state: lease.state.into(),
            cause: lease.cause.to_string(),
            owner: request.owner.to_string(),
            kept_by: kept_by(&request.owner),
            subject: request.authorizer.clone(),
            resource: None,
            wanted: request.want.name.clone(),
            tags: request.want.tags.clone(),
            gear: request.also.iter().filter_map(|want| want.name.clone()).collect(),
            priority: request.priority,
            requested: timestamp(lease.requested_at),
            acquired: lease.acquired_at.map(timestamp),
            expires: lease.deadlines.expires.map(timestamp),
            expires_at_most: lease.deadlines.expires_at_most.map(timestamp),
            place: None,
            reasons: Vec::new(),
            estimate: None,
            needs_operator: lease.needs_operator.clone(),
            part_of: lease.parent.as_ref().map(ToString::to_string),
            parts: Vec::new(),
        }
    }
}

impl ResourceWire {
    /// A resource of a snapshot.
    pub fn of(resource: &Resource, snapshot: &Snapshot) -> Self {
        let on_it = snapshot.leases.iter().filter(|lease| lease.resource.as_ref() == Some(&resource.id));
        ResourceWire {
            id: resource.id.to_string(),
            name: resource.name.clone(),
            full_name: resource.full_name.clone(),
            kind: resource.kind.to_string(),
            blueprint: resource.blueprint.clone(),
            state: resource.state.into(),
            cause: resource.cause.to_string(),
            cordoned: match &resource.admin {
                Admin::Enabled => None,
                Admin::Cordoned { reason } | Admin::Retired { reason } => Some(reason.clone()),
                Admin::OnTrial { trial: Trial::QuickCheck } => Some("it has to pass its quick check first".into()),
                Admin::OnTrial { trial: Trial::Training } => Some("it has to pass its training first".into()),
            },
            health: match resource.health {
                Health::Good => "good",
                Health::Unknown => "unknown",
                Health::Suspect => "suspect",
                Health::Quarantined => "quarantined",
            }
            .to_owned(),
            failures: resource.failures,
            tags: resource.tags.clone(),
            facts: resource.facts.iter().cloned().collect(),
            idle_since: resource.idle_since.map(timestamp),
            needs_operator: resource.needs_operator.clone(),
            leases: on_it.map(|lease| lease.id().to_string()).collect(),
        }
    }
}

impl TransitionWire {
    /// An event.
    pub fn of(event: &Event) -> Self {
        let transition = &event.transition;
        let (kind, id) = match &transition.object {
            Object::Lease(id) => ("lease", id.to_string()),
            Object::Resource(id) => ("resource", id.to_string()),
        };
        let lease = transition.leases.iter().find(|lease| lease.object() == transition.object);
        let resource = transition.resources.iter().find(|resource| resource.object() == transition.object);
        let of_lease = lease.map(|lease| in_a_word(&LeaseStateWire::from(lease.state)));
        let of_resource = resource.map(|resource| in_a_word(&ResourceStateWire::from(resource.state)));
        TransitionWire {
            seq: event.seq,
            at: timestamp(transition.at),
            kind: kind.to_owned(),
            id,
            step: format!("{:?}", transition.label),
            state: of_lease.or(of_resource),
            cause: transition.cause.to_string(),
            resource: lease.and_then(|lease| lease.resource.as_ref()).map(ToString::to_string),
        }
    }
}

impl From<&Authorization> for AuthorizationWire {
    fn from(row: &Authorization) -> Self {
        AuthorizationWire {
            subject: row.subject.clone(),
            blueprint: row.blueprint.clone(),
            state: match row.state {
                AuthorizationState::Requested => AuthorizationStateWire::Requested,
                AuthorizationState::Authorized => AuthorizationStateWire::Authorized,
                AuthorizationState::Declined => AuthorizationStateWire::Declined,
            },
            by: row.by.clone(),
            at: timestamp(row.at),
        }
    }
}

impl From<AuthorizationStateWire> for AuthorizationState {
    fn from(state: AuthorizationStateWire) -> Self {
        match state {
            AuthorizationStateWire::Requested => AuthorizationState::Requested,
            AuthorizationStateWire::Authorized => AuthorizationState::Authorized,
            AuthorizationStateWire::Declined => AuthorizationState::Declined,
        }
    }
}

impl From<LeaseState> for LeaseStateWire {
    fn from(state: LeaseState) -> Self {
        match state {
            LeaseState::Pending => LeaseStateWire::Pending,
            LeaseState::Acquired => LeaseStateWire::Acquired,
            LeaseState::Active => LeaseStateWire::Active,
            LeaseState::Releasing => LeaseStateWire::Releasing,
            LeaseState::Destroyed => LeaseStateWire::Destroyed,
        }
    }
}

impl From<ResourceState> for ResourceStateWire {
    fn from(state: ResourceState) -> Self {
        match state {
            ResourceState::Pending => ResourceStateWire::Pending,
            ResourceState::Active => ResourceStateWire::Active,
            ResourceState::Draining => ResourceStateWire::Draining,
            ResourceState::Releasing => ResourceStateWire::Releasing,
            ResourceState::Destroyed => ResourceStateWire::Destroyed,
        }
    }
}

/// The word that the wire has for it.
pub fn in_a_word(state: &impl std::fmt::Debug) -> String {
    format!("{state:?}").to_lowercase()
}

fn kept_by(owner: &Owner) -> String {
    match owner {
        Owner::Job(_) => "job",
        Owner::Connection(_) => "connection",
        Owner::Heartbeat { .. } => "heartbeat",
        Owner::Term(_) => "term",
    }
    .to_owned()
}

fn full_name(lease: &Lease, snapshot: &Snapshot) -> Option<String> {
    let id = lease.resource.as_ref()?;
    let found = snapshot.resources.iter().find(|resource| resource.id == *id);
    Some(found.map_or_else(|| id.to_string(), |resource| resource.full_name.clone()))
}

fn timestamp(moment: Moment) -> jiff::Timestamp {
    let ms = i64::try_from(moment.0).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    // A moment beyond the year 9999 is as good as that year.
    ms.unwrap_or(jiff::Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_a_word_or_a_heartbeat_with_its_time() {
        let read = |text| serde_json::from_str::<OwnerWire>(text).unwrap();
        assert_eq!(read(r#""connection""#), OwnerWire::Connection);
        assert_eq!(read(r#"{"heartbeat": "30 s"}"#), OwnerWire::Heartbeat("30 s".into()));
        assert_eq!(read(r#""term""#), OwnerWire::Term);
    }

    #[test]
    fn a_moment_beyond_all_calendars_is_the_last_one() {
        assert_eq!(timestamp(Moment(u64::MAX)), jiff::Timestamp::MAX);
        assert_eq!(timestamp(Moment(1_795_000_000_000)).to_string(), "2026-11-18T11:06:40Z");
    }
}
