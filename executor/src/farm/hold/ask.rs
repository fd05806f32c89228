//! What a person asks for, as a request of the leases.

use std::time::Duration;

use super::LeaseError;
use crate::blueprint::dut::ACTIVATE_MS;
use crate::lease::rows::{Kind, LeaseRequest, Mode, Owner, Purpose, Timeouts, Want};

/// The longest id of a lease: it names a folder, and has to fit into a line.
const ID_LENGTH_MAX: usize = 64;
/// Leases that jobs ask for.
const JOBS_PREFIX: &str = "job-";

/// What a person asks for.
#[derive(Clone, Debug, Default)]
pub struct LeaseAsk {
    /// Made by the requester, so that asking twice is asking once; made here when absent.
    pub id: Option<String>,
    /// What is asked for.
    pub asks: Asks,
    /// The DUT's id or full name, or the host's; `None`: any.
    pub resource: Option<String>,
    /// Tags that it must all have.
    pub tags: Vec<String>,
    /// Gear by name, claimed together with it.
    pub gear: Vec<String>,
    /// Tags that are liked.
    pub prefers: Vec<String>,
    /// DUTs that are taken last.
    pub avoid: Vec<String>,
    /// The DUT that is taken first.
    pub sticky: Option<String>,
    /// Higher goes first.
    pub priority: i32,
    /// Who asks: the name of the owner.
    pub name: String,
    /// The project, user or token in whose name DUTs are authorized.
    pub subject: String,
    /// What keeps it.
    pub keeps: Keeps,
    /// How long it may wait.
    pub queue_time: Option<Duration>,
    /// How long it is held, until renewed.
    pub hold_time: Option<Duration>,
    /// How long it is held, however often renewed.
    pub hold_time_max: Option<Duration>,
}

/// What a person may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Asks {
    /// A DUT with its parts.
    #[default]
    Dut,
    /// A host with a working copy.
    Host,
}

/// What keeps a lease, besides its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keeps {
    /// An open connection; see [`Link`](super::Link).
    #[default]
    Connection,
    /// A word of its owner every so often.
    Heartbeat(Duration),
    /// Nothing: its time alone ends it.
    Term,
}

/// The request of a wish; its id is made here unless the requester made one.
pub(super) fn request_of(ask: &LeaseAsk) -> Result<LeaseRequest, LeaseError> {
    let id = match &ask.id {
        Some(id) => checked_id(id)?.to_owned(),
        None => format!("lease-{:08x}", rand::random::<u32>()),
    };
    if ask.keeps == Keeps::Term && ask.hold_time.is_none() && ask.hold_time_max.is_none() {
        return Err(LeaseError::Wrong { field: "for", what: "a lease that only its time ends needs a time".into() });
    }
    let gear = |name: &String| Want {
        kind: Kind::Gear,
        name: Some(name.clone()),
        tags: Vec::new(),
        mode: Mode::Hold,
        purpose: Purpose::Work,
    };
    Ok(LeaseRequest {
        id: id.into(),
        want: Want {
            kind: ask.asks.kind(),
            name: ask.resource.clone(),
            tags: ask.tags.clone(),
            mode: Mode::Hold,
            purpose: Purpose::Work,
        },
        also: ask.gear.iter().map(gear).collect(),
        gang: None,
        prefers: ask.prefers.clone(),
        avoid: ask.avoid.clone(),
        sticky: ask.sticky.clone(),
        priority: ask.priority,
        owner: owner_of(&ask.name, ask.keeps)?,
        authorizer: ask.subject.clone(),
        timeouts: Timeouts {
            queue_ms: ask.queue_time.map(ms),
            activate_ms: Some(ACTIVATE_MS),
            hold_ms: ask.hold_time.map(ms),
            hold_ms_max: ask.hold_time_max.map(ms),
        },
    })
}

impl Asks {
    /// What kind of resource that is.
    pub(in crate::farm) fn kind(self) -> Kind {
        match self {
            Asks::Dut => Kind::Dut,
            Asks::Host => Kind::Host,
        }
    }
}

pub(super) fn owner_of(name: &str, keeps: Keeps) -> Result<Owner, LeaseError> {
    let name = name.to_owned();
    Ok(match keeps {
        Keeps::Connection => Owner::Connection(name),
        Keeps::Heartbeat(every) if every.is_zero() => {
            return Err(LeaseError::Wrong { field: "owner", what: "a heartbeat needs a time above zero".into() });
        }
        Keeps::Heartbeat(every) => Owner::Heartbeat { name, every_ms: ms(every) },
        Keeps::Term => Owner::Term(name),
    })
}

/// Ids name folders, and those of jobs are the jobs'.
pub(super) fn checked_id(id: &str) -> Result<&str, LeaseError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let begins_well = id.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if !begins_well || id.len() > ID_LENGTH_MAX || !id.bytes().all(is_plain) {
        let what = format!(
            "`{id}` is no id; write up to {ID_LENGTH_MAX} letters, digits, `-`, `_`, `.`, a letter or digit first"
        );
        return Err(LeaseError::Wrong { field: "id", what });
    }
    if id.starts_with(JOBS_PREFIX) {
        return Err(LeaseError::Wrong {
            field: "id",
            what: format!("ids with `{JOBS_PREFIX}` are those of jobs; choose another"),
        });
    }
    Ok(id)
}

/// A duration as rows keep it.
pub(super) fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_could_leave_its_folder_or_be_a_jobs_is_refused() {
        for id in ["", "..", ".hidden", "a/b", "a b", "-x", "é", &"x".repeat(65)] {
            assert!(checked_id(id).unwrap_err().to_string().contains("is no id"), "{id}");
        }
        assert!(checked_id("job-3").unwrap_err().to_string().contains("choose another"));
        assert_eq!(checked_id("anna.1_b-2").unwrap(), "anna.1_b-2");
    }

    #[test]
    fn a_lease_that_only_its_time_ends_needs_a_time() {
        let ask = LeaseAsk { keeps: Keeps::Term, name: "anna".into(), ..LeaseAsk::default() };
        assert_eq!(request_of(&ask).unwrap_err().to_string(), "`for`: a lease that only its time ends needs a time");
        let request = request_of(&LeaseAsk { hold_time: Some(Duration::from_secs(60)), ..ask }).unwrap();
        assert_eq!(request.timeouts.hold_ms, Some(60_000));
        assert_eq!(request.owner, Owner::Term("anna".into()));
    }

    #[test]
    fn gear_is_claimed_with_the_dut() {
        let request = request_of(&LeaseAsk { gear: vec!["scope".into()], ..LeaseAsk::default() }).unwrap();
        assert_eq!((request.want.kind, request.also[0].kind), (Kind::Dut, Kind::Gear));
        assert_eq!(request.also[0].name.as_deref(), Some("scope"));
        assert!(request.id.as_str().starts_with("lease-"));
    }
}
