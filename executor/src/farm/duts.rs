//! The DUTs as others see them, and what a person or a check changes about them.
//!
//! | the row | who holds it | state |
//! |---|---|---|
//! | none: it registered, and cannot be leased yet; or being made | nobody | WAIT_FOR_CONFIG |
//! | any | a health job | TRAINING or QUICK_CHECK |
//! | any | somebody else, not active yet | QUEUED |
//! | any | somebody else | RUNNING |
//! | retired, cordoned, or taken out of the farm file | nobody | RETIRED |
//! | quarantined | nobody | BORKED |
//! | on trial | nobody | TRAINING or QUICK_CHECK |
//! | any other | nobody | IDLE |

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::machines::Dut;
use super::record::{DutRecord, Opinion, opinion};
use super::{AddError, Farm};
use crate::blueprint::power::PowerState;
use crate::config::{DutConfig, TrainingConfig};
use crate::lease::Snapshot;
use crate::lease::rows::{
    Admin, Health, Kind, Lease, LeaseState, Owner, Purpose, Resource, ResourceId, ResourceState, Trial, Verb,
};
use crate::verdict::Verdict;

/// A DUT's state, in CI-tron's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DutState {
    /// It is being made ready, or something of it is not known yet.
    WaitForConfig,
    /// Free.
    Idle,
    /// It boots again and again, before it takes jobs.
    Training,
    /// A job has it, and does not run yet.
    Queued,
    /// Held by a job or a person.
    Running,
    /// Held back by a person.
    Retired,
    /// It has to boot once, before it takes jobs.
    QuickCheck,
    /// Held back by the farm: it failed too often.
    Borked,
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
    /// What it has to pass before it takes jobs.
    #[schema(value_type = Option<String>)]
    pub trial: Option<Trial>,
    /// What the farm thinks of it.
    #[schema(value_type = String)]
    pub health: Health,
    /// Whether a person retired it.
    pub is_retired: bool,
    /// Whether it takes jobs.
    pub ready_for_service: bool,
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
            let view = DutView::of(says, dut.as_deref(), row, row.and_then(|row| holders.get(&row.id).copied()));
            self.explained(view)
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
            self.explained(DutView::of(says, dut.as_deref(), row, row.and_then(|row| holder_of(&rows, row))))
        });
        let is_it = |dut: &DutView| dut.id == id_or_full_name || dut.full_name == id_or_full_name;
        found.or_else(|| self.waiting_for_config().find(is_it))
    }

    /// What of a DUT only its record knows: how far its training is, and why the farm thinks ill of it.
    fn explained(&self, mut view: DutView) -> DutView {
        if view.trial == Some(Trial::Training) && view.health != Health::Quarantined {
            let training = self.records.of(&view.id).training.unwrap_or_default();
            view.comment = Some(training.in_words(&self.config().training));
        } else if view.health >= Health::Suspect
            && !view.is_retired
            && let Some(complaint) = self.records.of(&view.id).complaint()
        {
            let what = if view.health == Health::Suspect { "suspect" } else { "quarantined" };
            view.comment = Some(format!("{what} after {complaint}"));
        }
        view
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
            self.change_service(resource, verb).await;
        }
    }

    /// Lets a DUT (by id) be leased again, whatever its health.
    pub(super) async fn put_back(&self, dut: &str) {
        let rows = self.snapshot().await;
        if let Some(resource) = row_of(&rows, dut) {
            self.change_service(resource, Verb::Uncordon).await;
        }
    }

    async fn change_service(&self, resource: &Resource, verb: Verb) {
        let told = self.keeper.command(resource.object(), verb, &self.name).await;
        let dut = &resource.name;
        told.unwrap_or_else(|error| tracing::error!(dut, %error, "the DUT's service cannot be changed"));
    }

    /// Takes a DUT out of service as CI-tron does: where machines train it trains, else a person has to put it back.
    pub async fn take_out_of_service(&self, dut: &str, reason: &str) {
        let trains = self.config().member(dut).is_some_and(|it| it.before_service.trains());
        let rows = self.snapshot().await;
        let Some(row) = row_of(&rows, dut).filter(|_| trains) else {
            return self.hold_back(dut, Some(format!("taken out of service {reason}"))).await;
        };
        let told = self.keeper.command(row.object(), Verb::Try { trial: Trial::Training }, &self.name).await;
        told.unwrap_or_else(|error| tracing::error!(dut, %error, "the DUT's service cannot be changed"));
        self.trials.look_again();
    }

    /// Changes what an admin says of a machine that registered, or was added.
    pub async fn edit_dut(
        self: &Arc<Self>,
        dut: &str,
        comment: Option<String>,
        manual_tags: Option<Vec<String>>,
    ) -> Result<(), AddError> {
        if self.inventory().find(dut).is_none() {
            let name = self.dut(dut).await.map_or_else(|| dut.to_owned(), |dut| dut.full_name);
            return Err(AddError::Wrong(format!("{name} is in the farm file; change it there, and `wharf reload`")));
        }
        let (farm, name) = (Arc::clone(self), dut.to_owned());
        let edit = move || {
            farm.inventory().edit(&name, |entry| {
                if let Some(comment) = comment {
                    entry.comment = Some(comment).filter(|comment| !comment.is_empty());
                }
                if let Some(tags) = manual_tags {
                    entry.manual_tags = tags;
                }
            })
        };
        let failed = |why: String| AddError::Farm(why);
        let edited = tokio::task::spawn_blocking(edit).await.map_err(|error| failed(error.to_string()))?;
        edited.map_err(|error| failed(error.to_string()))?;
        self.follow_inventory().await.map(drop).map_err(|error| failed(error.to_string()))
    }

    /// Whether a DUT waits for its quick check, or is checked.
    pub async fn is_being_checked(&self, dut: &str) -> bool {
        let Some(dut) = self.dut(dut).await else { return false };
        dut.state == DutState::QuickCheck || dut.trial == Some(Trial::QuickCheck)
    }

    /// What a job's end says about its DUT.
    pub(super) async fn judge_by(&self, dut: &str, job: &str, verdict: &Verdict, purpose: Purpose) {
        let before = self.records.change(dut, |record| {
            let before = record.failures_in_a_row;
            record.heard(job, verdict, purpose, jiff::Timestamp::now());
            before
        });
        let verb = match opinion(verdict, purpose) {
            Opinion::Failed => Verb::Failed { why: format!("job {job} ended with cause {}", verdict.cause) },
            Opinion::Well if before > 0 => Verb::Judge { health: Health::Good },
            Opinion::Well | Opinion::None => return,
        };
        let rows = self.snapshot().await;
        let Some(row) = row_of(&rows, dut) else { return };
        if let Err(error) = self.keeper.command(row.object(), verb, &format!("job {job}")).await {
            tracing::error!(dut, %error, "what a job says of its DUT cannot be written down");
        }
    }

    /// What a DUT has done so far.
    pub fn record_of(&self, dut: &str) -> DutRecord {
        self.records.of(dut)
    }

    /// How machines show that they are well.
    pub fn training(&self) -> TrainingConfig {
        self.config().training.clone()
    }
}

/// The row of a DUT, by its id.
pub(super) fn row_of<'a>(rows: &'a Snapshot, dut: &str) -> Option<&'a Resource> {
    rows.resources.iter().find(|row| is_a_dut(row) && row.name == dut).map(Arc::as_ref)
}

/// The same for all of them, by id: looking for each among all rows takes seconds on a farm of a thousand.
fn rows_of_duts(rows: &Snapshot) -> HashMap<&str, &Resource> {
    rows.resources.iter().rev().filter(|row| is_a_dut(row)).map(|row| (row.name.as_str(), row.as_ref())).collect()
}

pub(super) fn is_a_dut(row: &Resource) -> bool {
    row.kind == Kind::Dut && !matches!(row.state, ResourceState::Releasing | ResourceState::Destroyed)
}

impl DutView {
    fn of(says: &DutConfig, dut: Option<&Dut>, row: Option<&Resource>, holder: Option<&Lease>) -> DutView {
        let held_back = row.map_or_else(|| Some("it is being made ready".to_owned()), held_back);
        DutView {
            id: says.id.clone(),
            full_name: says.full_name.clone(),
            base_name: says.base_name.clone(),
            state: state_of(row, holder),
            tags: row.map_or_else(|| says.tags.clone(), |row| row.tags.clone()),
            mac_address: says.mac.clone(),
            ip_address: says.address.to_string(),
            comment: held_back.or_else(|| says.comment.clone()),
            trial: row.and_then(trial_of),
            health: row.map_or(Health::Unknown, |row| row.health),
            is_retired: row.is_some_and(|row| matches!(row.admin, Admin::Retired { .. })),
            ready_for_service: row.is_some_and(|row| row.serves(Purpose::Work)),
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

fn trial_of(row: &Resource) -> Option<Trial> {
    match row.admin {
        Admin::OnTrial { trial } => Some(trial),
        Admin::Enabled | Admin::Cordoned { .. } | Admin::Retired { .. } => None,
    }
}

/// The table above.
fn state_of(row: Option<&Resource>, holder: Option<&Lease>) -> DutState {
    let Some(row) = row else { return DutState::WaitForConfig };
    let tried = match trial_of(row) {
        Some(Trial::Training) => DutState::Training,
        Some(Trial::QuickCheck) | None => DutState::QuickCheck,
    };
    if let Some(lease) = holder {
        return match (lease.request.want.purpose, lease.state) {
            (Purpose::Health, _) => tried,
            (Purpose::Work, LeaseState::Acquired) => DutState::Queued,
            (Purpose::Work, _) => DutState::Running,
        };
    }
    match (&row.admin, row.health, row.state) {
        (Admin::Retired { .. } | Admin::Cordoned { .. }, ..) => DutState::Retired,
        (_, Health::Quarantined, _) => DutState::Borked,
        (Admin::OnTrial { .. }, ..) => tried,
        (Admin::Enabled, _, ResourceState::Pending) => DutState::WaitForConfig,
        (Admin::Enabled, _, ResourceState::Draining) => DutState::Retired,
        (Admin::Enabled, _, ResourceState::Active | ResourceState::Releasing | ResourceState::Destroyed) => {
            DutState::Idle
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
        (Admin::Cordoned { reason } | Admin::Retired { reason }, ..) => Some(reason.clone()),
        (Admin::OnTrial { trial: Trial::QuickCheck }, ..) => Some("it has to pass its quick check first".into()),
        (Admin::OnTrial { trial: Trial::Training }, ..) => Some("it has to pass its training first".into()),
        (Admin::Enabled, Health::Quarantined, _) => Some("it failed too often; look at its events".into()),
        (Admin::Enabled, _, ResourceState::Pending) => Some("it is being made ready".into()),
        (Admin::Enabled, _, ResourceState::Draining) => Some("it is being taken out of service".into()),
        (Admin::Enabled, _, ResourceState::Active | ResourceState::Releasing | ResourceState::Destroyed) => None,
    }
}
