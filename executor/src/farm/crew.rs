//! What the DUTs of one job have in common: the start barrier, the board of messages, and the end of all when one ends without a result.
//!
//! ```text
//!  set up ──► all_are_ready (barrier) ──► power on …        one ends SETUP_FAIL, INCOMPLETE or UNKNOWN ──► the others end, cause farm
//!  the log of the job: what the DUTs leave on the board, every line of their consoles with its role before it
//! ```

use std::sync::Arc;

use job_schema::StartBarrier;
use tokio::sync::{Barrier, watch};

use super::carry::{Cancelled, cancellation};
use super::{CancelledBy, JobRecord};
use crate::job_log::{Follower, JobEvent, Severity};
use crate::messages::Board;
use crate::sentence::sentence;
use crate::session::Event;
use crate::verdict::{Cause, Status, Verdict};

/// The longest line of a role's console that is copied whole into the job's; what comes later of it begins a line of its own.
const LINE_BYTES_MAX: usize = 4096;
/// The board's file, in the job's folder.
const MESSAGES: &str = "messages.jsonl";

/// What the DUTs of one job share.
pub(super) struct Together {
    barrier: Option<Barrier>,
    board: Option<Arc<Board>>,
    /// Why the others end.
    broken: watch::Sender<Option<String>>,
}

impl Together {
    /// Of a job whose roles' records are there; a job with one DUT shares with nobody.
    pub(super) fn of(record: &Arc<JobRecord>, start: StartBarrier, cancelled: &Cancelled) -> Arc<Together> {
        let roles = record.roles();
        for role in &roles {
            tokio::spawn(copy_into(Arc::clone(record), role.log.follow(0), name_in(record, role)));
            tokio::spawn(hand_on(cancelled.clone(), Arc::clone(role)));
        }
        let barrier = (start == StartBarrier::Together && !roles.is_empty()).then(|| Barrier::new(roles.len()));
        let board = (!roles.is_empty()).then(|| board_of(record, &roles));
        Arc::new(Together { barrier, board, broken: watch::channel(None).0 })
    }

    /// Returns when every DUT is set up: from here on they are powered on.
    pub(super) async fn all_are_ready(&self) {
        if let Some(barrier) = &self.barrier {
            barrier.wait().await;
        }
    }

    /// What answers a role's DUT when it asks for messages.
    pub(super) fn messages_of(&self, role: &str) -> Option<Arc<dyn gateway::live::Answer>> {
        self.board.as_ref().map(|board| board.seat(role))
    }

    /// A role has its verdict. One without a result leaves the others waiting for it in vain: they end.
    pub(super) fn has_ended(&self, role: &str, verdict: &Verdict) {
        if let Some(board) = &self.board {
            board.role_ended(role);
        }
        if matches!(verdict.status, Status::SetupFail | Status::Incomplete | Status::Unknown) {
            self.broken.send_if_modified(|broken| {
                let first = broken.is_none();
                broken.get_or_insert_with(|| format!("its role {role} ended {verdict}"));
                first
            });
        }
    }

    /// The event that ends a role because another one ended.
    pub(super) async fn ended_by_others(&self) -> Event {
        let mut broken = self.broken.subscribe();
        let reason = broken.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => Event::FarmFailed { reason },
            // The sender lives as long as this does.
            None => std::future::pending().await,
        }
    }

    /// Every role has its verdict.
    pub(super) fn is_over(&self) {
        if let Some(board) = &self.board {
            board.close("the job has ended");
        }
    }
}

fn name_in(record: &JobRecord, role: &JobRecord) -> String {
    role.id.strip_prefix(&format!("{}-", record.id)).unwrap_or(&role.id).to_owned()
}

/// The board tells the job's log. One that cannot be kept on the disk serves all the same; a restart ends the job anyway.
fn board_of(record: &Arc<JobRecord>, roles: &[Arc<JobRecord>]) -> Arc<Board> {
    let names: Vec<_> = roles.iter().map(|role| name_in(record, role)).collect();
    let teller = |record: &Arc<JobRecord>| {
        let record = Arc::clone(record);
        move |text: &str| record.note(Severity::Info, text)
    };
    Board::kept_at(&record.log.folder().join(MESSAGES), names.clone(), teller(record)).unwrap_or_else(|error| {
        tracing::error!(job = record.id, %error, "the messages between the job's DUTs are not kept");
        Board::new(names, teller(record))
    })
}

/// Who cancels the job cancels each of its roles.
async fn hand_on(mut cancelled: Cancelled, role: Arc<JobRecord>) {
    let by: CancelledBy = cancellation(&mut cancelled).await;
    role.cancelled.send_replace(Some(by));
}

/// A role's log, told in the job's: whole lines of the console, and a sentence for everything else that is worth one.
async fn copy_into(record: Arc<JobRecord>, mut follower: Follower, role: String) {
    let mut line = Vec::new();
    while let Some(news) = follower.next().await {
        match &news.event {
            JobEvent::Console { offset, length } => {
                let Ok(bytes) = follower.log().console_bytes(*offset, *length) else { continue };
                for byte in bytes {
                    line.push(byte);
                    if byte == b'\n' || line.len() >= LINE_BYTES_MAX {
                        tell_line(&record, &role, &mut line);
                    }
                }
            }
            JobEvent::Access { .. } | JobEvent::Download { .. } | JobEvent::Leased { .. } | JobEvent::Ended { .. } => {}
            event => {
                if let Some(text) = sentence(event) {
                    record.note(Severity::Info, format!("{role}: {text}"));
                }
            }
        }
    }
    tell_line(&record, &role, &mut line);
}

fn tell_line(record: &JobRecord, role: &str, line: &mut Vec<u8>) {
    if line.is_empty() {
        return;
    }
    let mut told = format!("[{role}] ").into_bytes();
    told.append(line);
    if !told.ends_with(b"\n") {
        told.push(b'\n');
    }
    // A loss is noted in the log itself, and the role's own log has the line.
    let _ = record.log.append_console(&told);
}

/// The verdict of a job: of its only DUT, or the worst of its roles', with what each said.
pub(super) fn verdict_of(verdicts: Vec<(Option<String>, Verdict)>) -> Verdict {
    let worst = verdicts.iter().max_by_key(|(_, verdict)| gravity(verdict)).map(|(_, verdict)| verdict.clone());
    let nobody = || Verdict {
        status: Status::Unknown,
        cause: Cause::Farm,
        summary: "the job had no DUT".to_owned(),
        evidence: Vec::new(),
    };
    let worst = worst.unwrap_or_else(nobody);
    if verdicts.iter().all(|(role, _)| role.is_none()) {
        return worst;
    }
    let named = || verdicts.iter().filter_map(|(role, verdict)| Some((role.as_deref()?, verdict)));
    let summary: Vec<_> = named().map(|(role, verdict)| format!("{role}: {verdict}")).collect();
    let evidence = named().flat_map(|(role, it)| it.evidence.iter().map(move |text| format!("{role}: {text}")));
    Verdict { status: worst.status, cause: worst.cause, summary: summary.join("; "), evidence: evidence.collect() }
}

/// The worse, the higher. Who ended by itself says more than who was ended because of it.
fn gravity(verdict: &Verdict) -> (u8, bool) {
    let rank = match verdict.status {
        Status::Pass => 0,
        Status::Complete => 1,
        Status::Warn => 2,
        Status::Fail => 3,
        Status::Incomplete => 4,
        Status::Unknown => 5,
        Status::SetupFail => 6,
    };
    (rank, verdict.cause != Cause::Farm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(role: &str, status: Status, cause: Cause) -> (Option<String>, Verdict) {
        let verdict = Verdict { status, cause, summary: "done".into(), evidence: vec!["seen".into()] };
        (Some(role.to_owned()), verdict)
    }

    #[test]
    fn the_verdict_of_a_job_is_the_worst_of_its_roles_and_tells_them_all() {
        let verdict =
            verdict_of(vec![ended("server", Status::Pass, Cause::Test), ended("client", Status::Fail, Cause::Test)]);
        assert_eq!((verdict.status, verdict.cause), (Status::Fail, Cause::Test));
        assert_eq!(verdict.summary, "server: PASS (cause: test): done; client: FAIL (cause: test): done");
        assert_eq!(verdict.evidence, ["server: seen", "client: seen"]);
    }

    #[test]
    fn who_was_ended_because_of_another_does_not_decide_the_cause() {
        let verdict = verdict_of(vec![
            ended("server", Status::Incomplete, Cause::Farm),
            ended("client", Status::Incomplete, Cause::Timeout),
        ]);
        assert_eq!(verdict.cause, Cause::Timeout);
    }

    #[test]
    fn the_only_dut_speaks_for_its_job() {
        let (_, only) = ended("any", Status::Pass, Cause::Test);
        assert_eq!(verdict_of(vec![(None, only.clone())]), only);
    }
}
