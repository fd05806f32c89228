//! The DUTs as others see them, and what a person or a check changes about them.
//!
//! | the row | somebody holds it | state |
//! |---|---|---|
//! | none: it registered, and cannot be leased yet | – | waits for config |
//! | – or any | yes | running |
//! | cordoned, quarantined, being made or taken out | no | retired |
//! | any other | no | idle |

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, Weak};

use serde::{Deserialize, Serialize};

use super::machines::Dut;
use super::{Farm, JobRecord, JobState, Submission, SubmitError, TargetOverride};
use crate::blueprint::power::PowerState;
use crate::config::DutConfig;
use crate::lease::Snapshot;
use crate::lease::rows::{Admin, Health, Kind, Lease, Owner, Resource, ResourceId, ResourceState, Verb};
use crate::verdict::{Cause, Status};

/// What a quick check runs.
const QUICK_CHECK: &str = include_str!("../../../fixtures/jobs/good/quick-check.yml");

/// A DUT's state, in CI-tron's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DutState {
    /// It registered, and something of it is not known yet: its outlet, its console.
    WaitForConfig,
    /// Free.
    Idle,
    /// Held by a job.
    Running,
    /// Held back by a person or by the farm.
    Retired,
}

/// A DUT as others see it.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DutView {
    /// What jobs name it by.
    pub id: String,
    /// `<farm>-<base name>-<n>`, or the farm file's own.
    pub full_name: String,
    /// CI-tron's `base_name`.
    pub base_name: String,
    /// What it does.
    pub state: DutState,
    /// Its tags, the farm's included.
    pub tags: Vec<String>,
    /// The MAC it boots with.
    pub mac_address: String,
    /// Its address on the farm's network.
    pub ip_address: String,
    /// The admin's note, or why it is held back.
    pub comment: Option<String>,
    /// The job that holds it.
    pub job: Option<String>,
    /// Who holds it when no job does.
    pub holder: Option<String>,
    /// The outlet as last read back.
    pub power: Option<PowerState>,
}

impl Farm {
    /// All DUTs that exist, by id.
    pub async fn duts(&self) -> Vec<DutView> {
        let rows = self.snapshot().await;
        let (of_duts, holders) = (rows_of_duts(&rows), holders(&rows));
        let view = |(says, dut): &(DutConfig, Option<Arc<Dut>>)| {
            let row = of_duts.get(says.id.as_str()).copied();
            DutView::of(says, dut.as_deref(), row, row.and_then(|row| holders.get(&row.id).copied()))
        };
        let mut duts: Vec<DutView> = self.known().values().map(view).chain(self.waiting_for_config()).collect();
        duts.sort_by(|one, other| one.id.cmp(&other.id));
        duts
    }

    /// One DUT, by id or full name.
    pub async fn dut(&self, id_or_full_name: &str) -> Option<DutView> {
        let rows = self.snapshot().await;
        let known = self.known();
        let called = |says: &DutConfig| says.id == id_or_full_name || says.full_name == id_or_full_name;
        let found = known.values().find(|(says, _)| called(says)).map(|(says, dut)| {
            let row = row_of(&rows, &says.id);
            DutView::of(says, dut.as_deref(), row, row.and_then(|row| holder_of(&rows, row)))
        });
        let is_it = |dut: &DutView| dut.id == id_or_full_name || dut.full_name == id_or_full_name;
        found.or_else(|| self.waiting_for_config().find(is_it))
    }

    /// By id, every machine that is there, or that the farm file says should be, with what is said of it now.
    fn known(&self) -> BTreeMap<String, (DutConfig, Option<Arc<Dut>>)> {
        let config = self.config();
        let mut known: BTreeMap<_, _> = config.duts.iter().map(|dut| (dut.id.clone(), (dut.clone(), None))).collect();
        for dut in self.machines.all() {
            let says = || (dut.config.clone(), None);
            known.entry(dut.config.id.clone()).or_insert_with(says).1 = Some(Arc::clone(&dut));
        }
        known
    }

    /// Takes a DUT (by id) out of service for a reason, or puts it back with `None`. A job that runs on it is left alone.
    pub async fn hold_back(&self, dut: &str, reason: Option<String>) {
        let rows = self.snapshot().await;
        let Some(resource) = row_of(&rows, dut) else { return };
        let verbs = match reason {
            Some(reason) => vec![Verb::Cordon { reason }],
            None => vec![Verb::Uncordon, Verb::Judge { health: Health::Unknown }],
        };
        for verb in verbs {
            let told = self.keeper.command(resource.object(), verb, &self.name).await;
            told.unwrap_or_else(|error| tracing::error!(dut, %error, "the DUT's service cannot be changed"));
        }
    }

    /// Boots a DUT and looks whether it comes up, when its turn comes.
    pub async fn queue_quick_check(self: &Arc<Self>, dut: &str) -> Result<Arc<JobRecord>, SubmitError> {
        let id = self.dut(dut).await.map(|dut| dut.id);
        let submission = Submission {
            source_name: "quick-check.yml".into(),
            text: QUICK_CHECK.into(),
            target: Some(TargetOverride { id: Some(id.clone().unwrap_or_else(|| dut.to_owned())), tags: None }),
            submitter: "quick check".into(),
            ..Submission::default()
        };
        let job = self.submit(submission).await?;
        if let Some(id) = id {
            self.quick_checks.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), Arc::clone(&job));
            tokio::spawn(hold_back_unless_passed(Arc::downgrade(self), id, Arc::clone(&job)));
        }
        Ok(job)
    }

    /// Whether a quick check of this DUT waits or runs.
    pub async fn quick_check_queued(&self, dut: &str) -> bool {
        let Some(dut) = self.dut(dut).await else { return false };
        let checks = self.quick_checks.lock().unwrap_or_else(PoisonError::into_inner);
        checks.get(&dut.id).is_some_and(|job| job.state() != JobState::Ended)
    }
}

/// A DUT that fails its quick check takes no more jobs until somebody has looked at it.
async fn hold_back_unless_passed(farm: Weak<Farm>, dut: String, job: Arc<JobRecord>) {
    let mut follower = job.log.follow(0);
    while follower.next().await.is_some() {}
    let verdict = job.verdict().filter(|verdict| verdict.cause != Cause::Cancelled && verdict.status != Status::Pass);
    if let (Some(farm), Some(verdict)) = (farm.upgrade(), verdict) {
        farm.hold_back(&dut, Some(format!("its quick check ended {verdict}"))).await;
    }
}

/// The row of a DUT, by its id.
fn row_of<'a>(rows: &'a Snapshot, dut: &str) -> Option<&'a Resource> {
    rows.resources.iter().find(|row| is_a_dut(row) && row.name == dut).map(Arc::as_ref)
}

/// The same for all of them, by id: looking for each among all rows takes seconds on a farm of a thousand.
fn rows_of_duts(rows: &Snapshot) -> HashMap<&str, &Resource> {
    rows.resources.iter().rev().filter(|row| is_a_dut(row)).map(|row| (row.name.as_str(), row.as_ref())).collect()
}

fn is_a_dut(row: &Resource) -> bool {
    row.kind == Kind::Dut && !matches!(row.state, ResourceState::Releasing | ResourceState::Destroyed)
}

impl DutView {
    fn of(says: &DutConfig, dut: Option<&Dut>, row: Option<&Resource>, holder: Option<&Lease>) -> DutView {
        let held_back = row.map_or_else(|| Some("it is being made ready".to_owned()), held_back);
        let state = match (holder, &held_back) {
            (Some(_), _) => DutState::Running,
            (None, Some(_)) => DutState::Retired,
            (None, None) => DutState::Idle,
        };
        DutView {
            id: says.id.clone(),
            full_name: says.full_name.clone(),
            base_name: says.base_name.clone(),
            state,
            tags: row.map_or_else(|| says.tags.clone(), |row| row.tags.clone()),
            mac_address: says.mac.clone(),
            ip_address: says.address.to_string(),
            comment: held_back.or_else(|| says.comment.clone()),
            job: holder.and_then(|lease| match &lease.request.owner {
                Owner::Job(id) => Some(id.clone()),
                Owner::Connection(_) | Owner::Term(_) | Owner::Heartbeat { .. } => None,
            }),
            holder: holder.and_then(|lease| match &lease.request.owner {
                Owner::Job(_) => None,
                owner @ (Owner::Connection(_) | Owner::Term(_) | Owner::Heartbeat { .. }) => {
                    Some(format!("{owner} ({})", lease.id()))
                }
            }),
            power: dut.and_then(Dut::power_seen),
        }
    }
}

/// Who holds what.
fn holders(rows: &Snapshot) -> HashMap<&ResourceId, &Lease> {
    let held = rows.leases.iter().rev().filter(|lease| lease.is_held());
    held.filter_map(|lease| Some((lease.resource.as_ref()?, lease.as_ref()))).collect()
}

fn holder_of<'a>(rows: &'a Snapshot, row: &Resource) -> Option<&'a Lease> {
    rows.leases.iter().find(|lease| lease.is_held() && lease.resource.as_ref() == Some(&row.id)).map(Arc::as_ref)
}

/// Why a DUT takes no jobs, if it takes none.
fn held_back(row: &Resource) -> Option<String> {
    match (&row.admin, row.health, row.state) {
        (Admin::Cordoned { reason }, ..) => Some(reason.clone()),
        (Admin::Enabled, Health::Quarantined, _) => Some("it failed too often; look at its events".into()),
        (Admin::Enabled, _, ResourceState::Pending) => Some("it is being made ready".into()),
        (Admin::Enabled, _, ResourceState::Draining) => Some("it is being taken out of service".into()),
        (Admin::Enabled, _, ResourceState::Active | ResourceState::Releasing | ResourceState::Destroyed) => None,
    }
}
