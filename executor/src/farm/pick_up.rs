//! A job whose DUT ran on while there was no farm: it is taken up where its console stands.
//!
//! ```text
//!  the log says Leased, and has no verdict ─► what its session heard is heard again (journal.rs)
//!     ├─ it had come to its verdict ─────────────────────────────────────────► given back, that verdict
//!     ├─ its DUT ended with us, or its lease is not active, or nothing was kept ─► given back, cause farm
//!     └─ it goes on: outlet read, console opened, artifacts fetched and published again
//!           ├─ one of these is not as the session left it ─► cause farm, with the evidence so far
//!           └─ PickedUp ─► the runner, as if nothing had happened; the clocks stood still until here
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{BoxFuture, FutureExt, ready};
use job_schema::StartBarrier;
use job_schema::job::Job;
use tokio::time::sleep;

use super::boot_namespace::Serving;
use super::carry::{self, Inbox, Run};
use super::contents::Attachments;
use super::crew::Together;
use super::listening::Listening;
use super::machines::Dut;
use super::prepare::Prepared;
use super::{Farm, JobRecord, Submission, by_restart, lease_of};
use crate::blueprint::power::PowerState;
use crate::job_log::{JobEvent, JobLog, Severity};
use crate::journal::{Heard, Journal, Recorded, Replayed};
use crate::lease::rows::LeaseState;
use crate::runner::{Console, SetupError};
use crate::session::{Action, Event, Session, Standing};
use crate::verdict::Verdict;

/// A console server may hold on to the connection of before for some seconds, or be starting itself.
const CONSOLE_TIME: Duration = Duration::from_secs(10);
/// Between two attempts meanwhile.
const CONSOLE_AGAIN: Duration = Duration::from_millis(250);

/// How a job begins on its DUT.
pub(super) enum Beginning {
    /// With its setup.
    New,
    /// In the middle.
    Again(Box<Again>),
}

/// A session that was heard again.
pub(super) struct Again {
    heard: Heard,
    session: Session,
    /// When it began, had the farm not been away.
    start: Instant,
}

/// A session, and what its runner waits for first.
pub(super) struct Begun {
    pub session: Recorded,
    pub setup: Setup,
}

pub(super) type Setup = BoxFuture<'static, Result<(Console, Event), SetupError>>;

/// A job whose DUT ran when the farm was killed, to its verdict.
pub(super) async fn pick_up(farm: Arc<Farm>, record: Arc<JobRecord>, inbox: Inbox, submission: Submission) {
    let lease = lease_of(&record.id, None);
    // From here on the lease has its owner again.
    farm.keeper.beat(lease.clone());
    let (beginning, dut, prepared) = match look(&farm, &record, &submission).await {
        Ok(Look::GoesOn(beginning, dut, prepared)) => (beginning, dut, prepared),
        Ok(Look::Ended(verdict)) => return carry::give_back(farm, record, verdict).await,
        Err(why) => return carry::give_back(farm, record, by_restart(&in_words(&why))).await,
    };
    let views = farm.keeper.watch(lease.clone()).await;
    let active = views.and_then(|views| {
        let view = views.borrow().clone();
        (view.state == LeaseState::Active).then_some((view.pass?, views))
    });
    let Some((pass, views)) = active else {
        return carry::give_back(farm, record, by_restart(&in_words("its lease was being released"))).await;
    };
    let together = Together::of(&record, StartBarrier::default(), &inbox.cancelled);
    let listening = Listening::new(&dut.console, &pass, &record.log);
    let run = Run { farm, record, dut, pass, listening, crew: None, together };
    run.alone(beginning, prepared, inbox, submission, lease, views).await;
}

fn in_words(why: &str) -> String {
    format!("the farm was restarted while the job ran, and {why}; its DUT was switched off")
}

/// What is left of a job.
enum Look {
    GoesOn(Beginning, Arc<Dut>, Arc<Prepared>),
    Ended(Verdict),
}

/// `Err`: why it cannot go on.
async fn look(farm: &Arc<Farm>, record: &Arc<JobRecord>, submission: &Submission) -> Result<Look, String> {
    if !record.roles().is_empty() {
        return Err("a job over several DUTs is not picked up".into());
    }
    let dut = record.dut().and_then(|dut| farm.machines.get(&dut.id));
    let dut = dut.ok_or("its DUT is not in the farm file any more")?;
    if !dut.outlives_us() {
        return Err("its DUT ended with the farm".into());
    }
    let prepared = farm.planner.prepare(submission, &dut.config, None).await;
    let prepared = Arc::new(prepared.map_err(|problems| format!("the job is wrong for its DUT now:\n{problems}"))?);
    let (log, job) = (Arc::clone(&record.log), Arc::clone(&prepared.job));
    // Hearing a long console again takes a while.
    let heard = tokio::task::spawn_blocking(move || hear_again(&log, &job)).await;
    match heard.map_err(|error| format!("an internal error ended it: {error}"))?? {
        None => Ok(Look::GoesOn(Beginning::New, dut, prepared)),
        Some((Replayed::Ended { verdict, unfit }, ..)) => {
            if let Some(line) = unfit {
                carry::declare_unfit(farm, &dut.config.id, line);
            }
            Ok(Look::Ended(verdict))
        }
        Some((Replayed::GoesOn(session), heard, start)) => {
            let again = Box::new(Again { heard, session: *session, start });
            Ok(Look::GoesOn(Beginning::Again(again), dut, prepared))
        }
    }
}

/// `None`: its session never began.
fn hear_again(log: &JobLog, job: &Arc<Job>) -> Result<Option<(Replayed, Heard, Instant)>, String> {
    if !log.records().iter().any(|record| record.event == JobEvent::SetupStarted) {
        return Ok(None);
    }
    let heard = Heard::read(log.folder())?.ok_or("what it heard could not be kept")?;
    let start = Instant::now().checked_sub(heard.until()).ok_or("this host is younger than the job")?;
    Ok(Some((heard.replay(job, log, start)?, heard, start)))
}

impl Run {
    /// `Err`: it ends before it begins.
    pub(super) async fn begin(
        &self,
        beginning: Beginning,
        prepared: &Arc<Prepared>,
        attachments: Attachments,
        deadline: Option<Instant>,
        ended: impl Future<Output = Event>,
    ) -> Result<Begun, Verdict> {
        match beginning {
            Beginning::New => {
                let now = Instant::now();
                let session = Session::new(Arc::clone(&prepared.job), deadline, now);
                let session = self.recorded(session, &prepared.job, now);
                Ok(Begun { session, setup: self.whole_setup(prepared, attachments) })
            }
            Beginning::Again(again) => {
                let Again { heard, mut session, start } = *again;
                let found = tokio::select! {
                    found = self.find(session.standing(), (session.boot(), &session.fetches().missing), prepared, attachments) => found,
                    event = ended => Err(event),
                };
                let now = Instant::now();
                let away = now.saturating_duration_since(start + heard.until());
                session.stood_still(away);
                if let Some(deadline) = deadline {
                    session.set_deadline(deadline, now);
                }
                let found = found.and_then(|setup| Ok((setup, self.goes_on(&heard, start + away)?)));
                match found {
                    Ok((setup, journal)) => {
                        Ok(Begun { session: Recorded::kept(session, journal), setup: setup(heard.away()) })
                    }
                    Err(event) => Err(verdict_of(session, event, now)),
                }
            }
        }
    }

    /// A machine that outlives us, when it is alone: several that wait for each other are not picked up.
    pub(super) fn may_be_picked_up(&self) -> bool {
        self.dut.outlives_us() && self.crew.is_none()
    }

    fn recorded(&self, session: Session, job: &Job, now: Instant) -> Recorded {
        if !self.may_be_picked_up() {
            return Recorded::unkept(session);
        }
        match Journal::create(&self.record.log, job, now) {
            Ok(journal) => Recorded::kept(session, journal),
            Err(error) => {
                tracing::warn!(%error, "a restart will end this job: what it hears cannot be kept");
                Recorded::unkept(session)
            }
        }
    }

    fn goes_on(&self, heard: &Heard, start: Instant) -> Result<Journal, Event> {
        Journal::go_on(heard, &self.record.log, start)
            .map_err(|error| failed(&format!("what it hears cannot be kept any more: {error}")))
    }

    fn whole_setup(&self, prepared: &Arc<Prepared>, attachments: Attachments) -> Setup {
        let setup = self.setup(Arc::clone(prepared), attachments);
        setup.map(|setup| setup.map(|console| (console, Event::SetupDone))).boxed()
    }

    /// Whether the DUT is as its session left it. Gives what the runner waits for, once it is known how long the farm was away.
    async fn find(
        &self,
        standing: Standing,
        (boot, missing): (u32, &[String]),
        prepared: &Arc<Prepared>,
        attachments: Attachments,
    ) -> Result<Box<dyn FnOnce(Duration) -> Setup + Send>, Event> {
        match standing {
            Standing::SettingUp => {
                self.record.note(Severity::Info, "The farm was restarted: the job is set up anew");
                let setup = self.whole_setup(prepared, attachments);
                return Ok(Box::new(|_| setup));
            }
            // It is switched once more, and read back then: a command that was killed half-way may have left nothing that can be read.
            Standing::Switching => {}
            Standing::Off => self.outlet_is(PowerState::Off).await.map_err(|why| failed(&why))?,
            Standing::Booted(_) => self.outlet_is(PowerState::On).await.map_err(|why| failed(&why))?,
        }
        let console = self.open_patiently().await.map_err(|why| failed(&why))?;
        let boot = matches!(standing, Standing::Booted(_)).then_some(boot);
        let served = self.serve(Arc::clone(prepared), attachments, Serving::Again(boot)).await;
        served.map_err(|error| failed(&format!("its artifacts cannot be served again: {}", error.reason)))?;
        if let Standing::Booted(which) = standing {
            self.dut.boot.publish(which, boot).map_err(|why| failed(&why))?;
            self.dut.boot.goes_on(which, missing);
        }
        self.record.note(Severity::Info, "The farm was restarted: the job goes on where its console stands");
        Ok(Box::new(|away| ready(Ok((console, Event::PickedUp { away }))).boxed()))
    }

    async fn outlet_is(&self, expected: PowerState) -> Result<(), String> {
        let power = self.dut.power(self.pass.clone());
        let read = power.state().await.map_err(|error| format!("its outlet cannot be read: {error}"))?;
        if read == expected { Ok(()) } else { Err(format!("its outlet reads {read}, and was {expected} before")) }
    }

    async fn open_patiently(&self) -> Result<Console, String> {
        let until = Instant::now() + CONSOLE_TIME;
        loop {
            match self.listening.go_on().await {
                Ok(console) => return Ok(Box::new(console)),
                Err(error) if Instant::now() >= until => {
                    return Err(format!("its console cannot be opened any more: {error}"));
                }
                Err(_) => sleep(CONSOLE_AGAIN).await,
            }
        }
    }
}

fn failed(why: &str) -> Event {
    Event::FarmFailed { reason: in_words(why) }
}

/// Of an event that ends every session: with the evidence of what it heard.
fn verdict_of(mut session: Session, event: Event, now: Instant) -> Verdict {
    session.handle_event(event, now);
    loop {
        match session.poll_action().expect("cancelling and a farm that fails end a session in every state") {
            Action::End(verdict) => return verdict,
            Action::Say(_)
            | Action::CutPower
            | Action::BootWith { .. }
            | Action::HandOver { .. }
            | Action::DeclareUnfit { .. } => {}
        }
    }
}
