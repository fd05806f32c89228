//! Machines show that they are well before they take jobs: a quick check is one health job, a training as many as the farm file says.
//! Health jobs are ordinary jobs with ordinary leases; only they get a machine that is on trial.
//!
//! ```text
//!  new, registered ─────────────► TRAINING: register job until it passes ─► boots ─► enough passed? ─► in service
//!  checked, activated ─► QUICK_CHECK ──failed──► ▲                             └── too few: rest, then again from the first boot
//!                          └──passed──► in service          too many failures in a row: quarantined, until somebody looks
//! ```
//! The row says that a machine is on trial, its record how far it is: a restart goes on from both.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use gateway::content::reach::Reach;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::duts::row_of;
use super::record::DutRecord;
use super::{Farm, JobRecord, Submission, SubmitError, TargetOverride};
use crate::config::{BeforeService, Template, TrainingConfig};
use crate::lease::rows::{Admin, Health, Purpose, Resource, Trial, Verb};
use crate::verdict::{Cause, Status, Verdict};

/// How often machines on trial are looked for without having been told of one: somebody may have put one on trial by another way.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How long whoever changes a machine waits for one that is made anew: its outlet is switched off before.
const MADE_IN: Duration = Duration::from_secs(10);

/// How far a machine is with its training.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Training {
    /// Whether the job before the boots has passed, or there is none.
    pub is_registered: bool,
    /// The boots so far, of this round.
    pub loops: Vec<Loop>,
    /// Rounds that failed before.
    pub failed_rounds: u32,
    /// Until when it rests.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub rests_until: Option<jiff::Timestamp>,
    /// Whether it is over: passed, or called off.
    pub is_over: bool,
}

/// One boot of a training.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Loop {
    /// The job's number.
    pub job: String,
    /// How it ended, with CI-tron's names.
    pub status: String,
}

/// What a training does next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    /// The job before the boots.
    Register,
    /// One boot more.
    Boot,
    /// Nothing before this moment.
    Rest(jiff::Timestamp),
    /// The machine is well.
    Passed,
}

impl Training {
    fn next(&self, config: &TrainingConfig, now: jiff::Timestamp) -> Next {
        match self.rests_until {
            Some(until) if until > now => Next::Rest(until),
            _ if !self.is_registered && config.register.is_some() => Next::Register,
            _ if self.loops.len() < config.boots as usize => Next::Boot,
            _ => Next::Passed,
        }
    }

    /// Takes how a job of it ended. A round that has too few passes begins again after a rest.
    fn heard(&mut self, what: &Next, job: &str, status: Status, config: &TrainingConfig, now: jiff::Timestamp) {
        self.rests_until = None;
        let rest = now.checked_add(config.pause).ok();
        match what {
            Next::Register if status == Status::Pass => self.is_registered = true,
            Next::Register => self.rests_until = rest,
            Next::Boot => {
                self.loops.push(Loop { job: job.to_owned(), status: status.name().to_owned() });
                if self.loops.len() >= config.boots as usize && self.passed() < config.qualifying as usize {
                    self.failed_rounds += 1;
                    self.loops.clear();
                    self.rests_until = rest;
                }
            }
            Next::Rest(_) | Next::Passed => {}
        }
    }

    /// Boots of this round that passed.
    pub fn passed(&self) -> usize {
        self.loops.iter().filter(|boot| boot.status == Status::Pass.name()).count()
    }

    /// How many boots of this round ended how.
    pub fn statuses(&self) -> BTreeMap<String, u32> {
        let mut statuses = BTreeMap::new();
        self.loops.iter().for_each(|boot| *statuses.entry(boot.status.clone()).or_default() += 1);
        statuses
    }

    /// How far it is, in a sentence.
    pub fn in_words(&self, config: &TrainingConfig) -> String {
        let (done, passed) = (self.loops.len(), self.passed());
        let rounds = match self.failed_rounds {
            0 => String::new(),
            1 => "; 1 round failed before".to_owned(),
            rounds => format!("; {rounds} rounds failed before"),
        };
        match self.rests_until {
            Some(until) => format!("it trains: it rests until {until:.0}{rounds}"),
            None if !self.is_registered && config.register.is_some() => format!("it trains: it registers{rounds}"),
            None => format!("it trains: {done} of {} boots, {passed} passed{rounds}", config.boots),
        }
    }
}

/// Who looks after which machine.
#[derive(Default)]
pub(super) struct Trials {
    look: Notify,
    running: Mutex<BTreeSet<String>>,
}

impl Trials {
    /// Somebody put a machine on trial.
    pub(super) fn look_again(&self) {
        self.look.notify_one();
    }

    /// Whether nobody looked after this machine; now the caller does.
    fn begin(self: &Arc<Self>, dut: &str) -> Option<Turn> {
        let first = self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(dut.to_owned());
        first.then(|| Turn { trials: Arc::clone(self), dut: dut.to_owned() })
    }
}

/// The right to look after one machine.
struct Turn {
    trials: Arc<Trials>,
    dut: String,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.trials.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.dut);
    }
}

/// What whoever looks after a machine does next.
enum Step {
    Again,
    Rest(Duration),
    Over,
}

/// Looks after every machine on trial, for as long as the farm lives.
pub(super) async fn supervise(farm: Weak<Farm>, trials: Arc<Trials>) {
    loop {
        let Some(alive) = farm.upgrade() else { return };
        let mut stopping = alive.stopping.subscribe();
        for dut in alive.on_trial().await {
            if let Some(turn) = trials.begin(&dut) {
                tokio::spawn(try_out(Weak::clone(&farm), turn));
            }
        }
        drop(alive);
        tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => return,
            () = trials.look.notified() => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

async fn try_out(farm: Weak<Farm>, turn: Turn) {
    loop {
        let Some(alive) = farm.upgrade() else { return };
        let mut stopping = alive.stopping.subscribe();
        let step = tokio::select! {
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => return,
            step = alive.try_step(&turn.dut) => step,
        };
        drop(alive);
        match step {
            Step::Again => {}
            Step::Over => return,
            Step::Rest(rest) => tokio::select! {
                _ = stopping.wait_for(|stopping| *stopping) => return,
                () = tokio::time::sleep(rest) => {}
            },
        }
    }
}

impl Farm {
    /// Has a machine show by one health job that it is well; it takes no other job before that. One that trains goes on with that.
    pub async fn check(self: &Arc<Self>, dut: &str, by: &str) -> Result<Option<Arc<JobRecord>>, SubmitError> {
        let (id, row) = self.row_by_name(dut).await?;
        if let Some(sentence) = retired(&row) {
            return Err(SubmitError::Never(sentence));
        }
        self.put_on_trial(&id, &row, by).await
    }

    /// Puts a machine that was retired back: after its quick check it takes jobs.
    pub async fn activate(self: &Arc<Self>, dut: &str, by: &str) -> Result<Option<Arc<JobRecord>>, SubmitError> {
        let (id, row) = self.row_by_name(dut).await?;
        self.put_on_trial(&id, &row, by).await
    }

    /// Takes a machine out of service for good: no job gets it, health jobs neither. Who holds it keeps it.
    pub async fn retire(self: &Arc<Self>, dut: &str, reason: &str, by: &str) -> Result<(), SubmitError> {
        let (id, row) = self.row_by_name(dut).await?;
        self.command_of(&row, Verb::Retire { reason: reason.to_owned() }, by).await?;
        if let Some(job) = self.records.of(&id).health_job {
            // One that has ended meanwhile is as good.
            let _ = self.cancel(&job, super::CancelledBy::Operator(by.to_owned()));
        }
        Ok(())
    }

    /// The id and the row of a machine. One that is made anew has none for a moment.
    async fn row_by_name(&self, name: &str) -> Result<(String, Resource), SubmitError> {
        let Some(id) = self.dut(name).await.map(|dut| dut.id) else {
            let known = self.config().duts.iter().map(|dut| dut.full_name.clone()).collect();
            return Err(SubmitError::NoSuchDut { wanted: name.to_owned(), known });
        };
        let row = async {
            // The rows tell nobody when this one is there.
            let mut look = tokio::time::interval(Duration::from_millis(20));
            loop {
                look.tick().await;
                if let Some(row) = row_of(&self.snapshot().await, &id) {
                    return row.clone();
                }
            }
        };
        match tokio::time::timeout(MADE_IN, row).await {
            Ok(row) => Ok((id.clone(), row)),
            Err(_) => {
                Err(SubmitError::Busy { reasons: vec![format!("{name} is not ready; `wharf dut show` says why")] })
            }
        }
    }

    async fn put_on_trial(
        self: &Arc<Self>,
        id: &str,
        row: &Resource,
        by: &str,
    ) -> Result<Option<Arc<JobRecord>>, SubmitError> {
        if row.health == Health::Quarantined {
            self.command_of(row, Verb::Judge { health: Health::Suspect }, by).await?;
        }
        let trains = matches!(row.admin, Admin::OnTrial { trial: Trial::Training });
        if trains {
            self.trials.look_again();
            return Ok(None);
        }
        // Somebody looks after it already: it is on trial.
        let Some(turn) = self.trials.begin(id) else { return Ok(None) };
        self.command_of(row, Verb::Try { trial: Trial::QuickCheck }, by).await?;
        let job = self.health_job(id, "quick check", &self.config().training.boot_loop).await?;
        tokio::spawn(try_out(Arc::downgrade(self), turn));
        Ok(Some(job))
    }

    async fn command_of(&self, row: &Resource, verb: Verb, by: &str) -> Result<(), SubmitError> {
        let told = self.keeper.command(row.object(), verb, by).await;
        told.map_err(|error| SubmitError::Farm(error.to_string()))
    }

    /// The machines that have to show that they are well.
    async fn on_trial(&self) -> Vec<String> {
        let rows = self.snapshot().await;
        let tries = |row: &&Arc<Resource>| {
            super::duts::is_a_dut(row)
                && matches!(row.admin, Admin::OnTrial { .. })
                && row.health != Health::Quarantined
        };
        rows.resources.iter().filter(tries).map(|row| row.name.clone()).collect()
    }

    async fn try_step(self: &Arc<Self>, id: &str) -> Step {
        let rows = self.snapshot().await;
        let config = self.config();
        let (Some(row), Some(dut)) = (row_of(&rows, id), config.member(id)) else { return Step::Over };
        let Admin::OnTrial { trial } = row.admin else {
            self.records.change(id, DutRecord::trial_is_over);
            return Step::Over;
        };
        if row.health == Health::Quarantined {
            return Step::Over;
        }
        match trial {
            Trial::QuickCheck => self.quick_check(id, row, dut.before_service).await,
            Trial::Training => self.train(id, row, &config.training).await,
        }
    }

    async fn quick_check(self: &Arc<Self>, id: &str, row: &Resource, before_service: BeforeService) -> Step {
        let template = self.config().training.boot_loop.clone();
        let verdict = match self.ended_health_job(id, "quick check", &template).await {
            Ok((_, verdict)) => verdict,
            Err(step) => return step,
        };
        let verb = match (verdict.status, verdict.cause, before_service) {
            // Whoever cancels it says that it is not needed.
            (Status::Pass, ..) | (_, Cause::Cancelled, _) => Verb::Uncordon,
            (_, _, before) if before.trains() => Verb::Try { trial: Trial::Training },
            _ => Verb::Cordon { reason: format!("its quick check ended {}", first_line(&verdict)) },
        };
        self.decide(row, verb, "its quick check").await
    }

    async fn train(self: &Arc<Self>, id: &str, row: &Resource, config: &TrainingConfig) -> Step {
        let now = jiff::Timestamp::now();
        let next = self.records.change(id, |record| record.begin_training().next(config, now));
        let template = match &next {
            Next::Rest(until) => return Step::Rest(until.duration_since(now).try_into().unwrap_or_default()),
            Next::Passed => {
                self.records.change(id, DutRecord::trial_is_over);
                return self.decide(row, Verb::Uncordon, "its training").await;
            }
            Next::Register => config.register.clone().unwrap_or_default(),
            Next::Boot => config.boot_loop.clone(),
        };
        match self.ended_health_job(id, "training", &template).await {
            Ok((job, verdict)) => {
                let now = jiff::Timestamp::now();
                let hear =
                    |record: &mut DutRecord| record.begin_training().heard(&next, &job, verdict.status, config, now);
                self.records.change(id, hear);
                Step::Again
            }
            Err(step) => step,
        }
    }

    async fn decide(&self, row: &Resource, verb: Verb, by: &str) -> Step {
        let rows = self.snapshot().await;
        if !row_of(&rows, &row.name).is_some_and(|now| now.id == row.id && now.admin == row.admin) {
            // Somebody has decided meanwhile, on purpose.
            return Step::Again;
        }
        match self.command_of(row, verb, by).await {
            Ok(()) => Step::Again,
            Err(error) => {
                tracing::error!(dut = row.full_name, %error, "a trial's end cannot be written down");
                Step::Rest(LOOK_AGAIN)
            }
        }
    }

    /// A health job's verdict: of the one that runs, also since before a restart, or else of a new one.
    async fn ended_health_job(
        self: &Arc<Self>,
        id: &str,
        why: &str,
        template: &Template,
    ) -> Result<(String, Verdict), Step> {
        let kept = self.records.of(id).health_job.and_then(|job| self.job(&job));
        let job = match kept {
            Some(job) => job,
            None => self.health_job(id, why, template).await.map_err(|error| {
                tracing::error!(dut = id, %error, "a health job cannot be run; it is tried again later");
                Step::Rest(self.config().training.pause.max(LOOK_AGAIN))
            })?,
        };
        let mut follower = job.log.follow(0);
        while follower.next().await.is_some() {}
        self.records.change(id, |record| record.health_job = None);
        match job.verdict() {
            // What the farm failed at says nothing about the machine.
            Some(verdict) if verdict.cause == Cause::Farm => {
                tracing::warn!(dut = id, job = job.id, %verdict, "a health job has failed by the farm; it is tried again");
                Err(Step::Rest(self.config().training.pause.min(LOOK_AGAIN)))
            }
            Some(verdict) => Ok((job.id.clone(), verdict)),
            None => Err(Step::Again),
        }
    }

    async fn health_job(
        self: &Arc<Self>,
        id: &str,
        why: &str,
        template: &Template,
    ) -> Result<Arc<JobRecord>, SubmitError> {
        let submission = Submission {
            source_name: template.name.clone(),
            text: template.text.clone(),
            target: Some(TargetOverride { id: Some(id.to_owned()), tags: None }),
            submitter: why.to_owned(),
            purpose: Purpose::Health,
            reach: Reach::Everywhere,
            ..Submission::default()
        };
        let job = self.submit(submission).await?;
        self.records.change(id, |record| record.health_job = Some(job.id.clone()));
        Ok(job)
    }
}

impl DutRecord {
    fn begin_training(&mut self) -> &mut Training {
        if self.training.as_ref().is_none_or(|training| training.is_over) {
            self.training = Some(Training::default());
        }
        self.training.get_or_insert_default()
    }

    fn trial_is_over(&mut self) {
        self.health_job = None;
        if let Some(training) = &mut self.training {
            training.is_over = true;
            training.rests_until = None;
        }
    }
}

fn retired(row: &Resource) -> Option<String> {
    let Admin::Retired { reason } = &row.admin else { return None };
    Some(format!("{} is retired: {reason}; `wharf dut activate` puts it back", row.full_name))
}

fn first_line(verdict: &Verdict) -> String {
    verdict.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(boots: u32, qualifying: u32) -> TrainingConfig {
        TrainingConfig { boots, qualifying, register: Some(Template::default()), ..TrainingConfig::default() }
    }

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_training_registers_until_that_passes_then_boots_and_qualifies_by_its_rate() {
        let config = config(3, 2);
        let mut training = Training::default();
        let mut run = |status, second| {
            let next = training.next(&config, at(second));
            training.heard(&next, &second.to_string(), status, &config, at(second));
            (next, training.in_words(&config))
        };
        assert_eq!(
            run(Status::Incomplete, 0),
            (Next::Register, "it trains: it rests until 1970-01-01T00:02:00Z".to_owned())
        );
        assert_eq!(training.next(&config, at(119)), Next::Rest(at(120)));
        let mut run = |status, second| {
            let next = training.next(&config, at(second));
            training.heard(&next, &second.to_string(), status, &config, at(second));
            (next, training.in_words(&config))
        };
        assert_eq!(run(Status::Pass, 120), (Next::Register, "it trains: 0 of 3 boots, 0 passed".to_owned()));
        assert_eq!(run(Status::Pass, 121).0, Next::Boot);
        assert_eq!(run(Status::Fail, 122), (Next::Boot, "it trains: 2 of 3 boots, 1 passed".to_owned()));
        assert_eq!(run(Status::Pass, 123).0, Next::Boot);
        assert_eq!(training.next(&config, at(124)), Next::Passed);
        let expected = BTreeMap::from([("FAIL".to_owned(), 1), ("PASS".to_owned(), 2)]);
        assert_eq!(training.statuses(), expected);
    }

    #[test]
    fn a_round_with_too_few_passes_rests_and_begins_again() {
        let config = config(2, 2);
        let mut training = Training { is_registered: true, ..Training::default() };
        training.heard(&Next::Boot, "1", Status::Pass, &config, at(0));
        training.heard(&Next::Boot, "2", Status::Warn, &config, at(0));
        let words = "it trains: it rests until 1970-01-01T00:02:00Z; 1 round failed before";
        assert_eq!((training.in_words(&config).as_str(), training.loops.len()), (words, 0), "WARN is no pass");
        assert_eq!(training.next(&config, at(120)), Next::Boot);
    }

    #[test]
    fn a_training_without_boots_is_over_once_it_is_registered() {
        let config = config(0, 0);
        let training = Training { is_registered: true, ..Training::default() };
        assert_eq!(training.next(&config, at(0)), Next::Passed);
    }
}
