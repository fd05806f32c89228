//! What is told to a forge of one job, call by call, and what each answer means. ◆
//!
//! ```text
//!                      accept()                         ended()
//!  Pending ───────────────────────► Running ─────────────────────► Ending: log ─► uploads ─► last word ─► Over(Done)
//!   PUT pending                      PUT running, once; then          │  202: the server still stores the log: again
//!                                    PATCH trace, or PUT running      │  412: it has lost some: the whole log again
//! ```
//!
//! | answer | to | then |
//! |---|---|---|
//! | `Job-Status: running` or 400 | PUT pending | the server knows no two phases: accepted already |
//! | 200, 202 | PATCH trace | the log goes on where `Range` says |
//! | 416 | PATCH trace | the log goes on where `Range` says; from 0 without it. Of a server that has more, once ours is longer |
//! | 409 | PUT pending, the first PUT running | another runner has it: [`Order::Stop`], and not a word more |
//! | `Job-Status: canceling` | any | [`Order::Cancel`], once; log, uploads and the last word still go |
//! | 401, 403, 404, `Job-Status: canceled`, `failed`, `success`, `skipped` | any but the last word | [`Order::Stop`]: its token is void |
//! | the same, and any other 4xx | an upload | that upload is lost, and the job does not succeed |
//! | 3xx, 408, 409, 429, 5xx, no connection | any | the same again: after `Retry-After`, or 1 s and twice that each time, 60 s at most |
//! | any other | any | as if it had been done; it is logged |
//!
//! One call at a time; who calls asks [`Courier::next`] after each answer, and when time has passed. The words are those of GitLab's runner
//! API. A forge with another protocol makes the same calls in its own way, and brings its answers in these words.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Between two calls of a job whose log has not grown: how long a cancelled job keeps its DUT at most. A machine costs more than a small
/// request; the server allows 200 a minute (rate limits of the runners' API).
const WATCH: Duration = Duration::from_secs(3);
/// Between two pieces of the log, where the server does not say; GitLab's own runner has it so.
const LOG_INTERVAL: Duration = Duration::from_secs(3);
/// The longest that the server may say: it asks for 60 s while nobody looks.
const LOG_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// The first pause after a failure, and the longest.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A server may say to wait for long, and mean it; not for ever.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(900);
/// For so long the last word is tried: a server that is moved to another machine is away for a day.
const LAST_WORD: Duration = Duration::from_secs(24 * 3600);
/// So often the whole log is sent again: a server that loses it thrice will lose it a fourth time.
const RESETS_MAX: u32 = 3;
/// For so long after its first failure an upload is tried: a server that is upgraded is away for ten minutes, and the verdict waits for it.
const UPLOAD_TIME: Duration = Duration::from_secs(900);

/// A state of a job, as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The DUT is not ready yet.
    Pending,
    /// It runs.
    Running,
    /// It is over.
    Final(Outcome),
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// Why it failed, in the forge's words. `None`: success.
    pub failure_reason: Option<String>,
    /// The verdict's number, as `wharf run` and `executorctl` exit with; or the script's own.
    pub exit_code: i32,
}

/// The log as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Log {
    pub crc32: u32,
    /// How long it is, in what the forge counts: bytes at GitLab, rows at Forgejo.
    pub length: u64,
}

/// One call to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// PUT: the state.
    Tell(State, Log),
    /// PATCH: a piece of the log.
    Piece { from: u64, length: u64 },
    /// POST: an upload, by its number.
    Upload(usize),
}

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// `None`: nothing, for no connection or no time.
    pub status: Option<u16>,
    /// `Job-Status`.
    pub job_status: Option<String>,
    /// The end of `Range`.
    pub range_end: Option<u64>,
    /// `X-GitLab-Trace-Update-Interval`.
    pub log_interval: Option<Duration>,
    /// `Retry-After`.
    pub retry_after: Option<Duration>,
    /// What the server said of an upload that it did not take.
    pub said: String,
}

/// What an answer means besides the next order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing.
    Simply,
    /// The upload that was called for is not tried again.
    UploadLost,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Make this call and bring the answer.
    Call(Call),
    /// Ask again then, or as soon as anything has changed.
    Wait(Instant),
    /// The forge wants the job to end; its words are still heard.
    Cancel,
    /// The forge has let go of the job: end it.
    Stop,
    /// There is nothing more to tell.
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Pending,
    Running,
    Ending { outcome: Outcome, uploads: usize, uploaded: usize },
    Over,
}

/// Whether the server knows that the job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Yes,
    No,
}

/// What was said and heard of one job so far.
pub(super) struct Courier {
    phase: Phase,
    told: Told,
    log: Log,
    /// Of one piece.
    piece_max: u64,
    /// How much of the log the server has.
    sent: u64,
    log_interval: Duration,
    last_call: Option<Instant>,
    last_piece: Option<Instant>,
    failures: u32,
    not_before: Option<Instant>,
    resets: u32,
    ended_at: Option<Instant>,
    /// When the upload that is due failed for the first time.
    upload_failed: Option<Instant>,
    /// Orders that wait to be taken.
    cancel: Cancel,
    is_stopped: Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cancel {
    No,
    Wanted,
    Given,
}

/// Whether [`Order::Stop`] is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stopped {
    No,
    Due,
}

impl Courier {
    /// A job that was just given to us; its log goes in pieces of `piece_max` at most.
    pub(super) fn new(piece_max: u64) -> Courier {
        Courier {
            phase: Phase::Pending,
            told: Told::No,
            log: Log { crc32: 0, length: 0 },
            piece_max,
            sent: 0,
            log_interval: LOG_INTERVAL,
            last_call: None,
            last_piece: None,
            failures: 0,
            not_before: None,
            resets: 0,
            ended_at: None,
            upload_failed: None,
            cancel: Cancel::No,
            is_stopped: Stopped::No,
        }
    }

    /// One that was accepted before a restart; how much of its log the server has, it will say itself.
    pub(super) fn resumed(piece_max: u64) -> Courier {
        Courier { phase: Phase::Running, told: Told::Yes, ..Courier::new(piece_max) }
    }

    /// The DUT is ready: from now on the job's time runs.
    pub(super) fn accept(&mut self) {
        if self.phase == Phase::Pending {
            self.phase = Phase::Running;
        }
    }

    /// Whether the server knows that it runs.
    pub(super) fn is_accepted(&self) -> bool {
        self.told == Told::Yes
    }

    /// So much log there is now.
    pub(super) fn log_is(&mut self, log: Log) {
        self.log = log;
    }

    /// The job is over: what is left of the log, so many uploads, then the last word.
    pub(super) fn ended(&mut self, outcome: Outcome, uploads: usize, now: Instant) {
        if self.phase != Phase::Over {
            self.phase = Phase::Ending { outcome, uploads, uploaded: 0 };
            self.ended_at = Some(now);
        }
    }

    /// A success becomes this: something of it is lost.
    pub(super) fn fails(&mut self, other: Outcome) {
        if let Phase::Ending { outcome, .. } = &mut self.phase
            && outcome.failure_reason.is_none()
        {
            *outcome = other;
        }
    }

    /// What to do now.
    pub(super) fn next(&mut self, now: Instant) -> Order {
        if self.is_stopped == Stopped::Due {
            self.is_stopped = Stopped::No;
            self.phase = Phase::Over;
            return Order::Stop;
        }
        if self.phase == Phase::Over {
            return Order::Over;
        }
        if self.cancel == Cancel::Wanted {
            self.cancel = Cancel::Given;
            return Order::Cancel;
        }
        let (call, due) = self.wanted(now);
        let due = due.max(self.not_before.unwrap_or(now));
        if due > now { Order::Wait(due) } else { Order::Call(call) }
    }

    /// The next call, and when it is due.
    fn wanted(&self, now: Instant) -> (Call, Instant) {
        let watch = self.last_call.map_or(now, |last| last + WATCH);
        let piece =
            Call::Piece { from: self.sent, length: self.piece_max.min(self.log.length.saturating_sub(self.sent)) };
        let is_behind = self.sent < self.log.length;
        match &self.phase {
            Phase::Pending => (Call::Tell(State::Pending, self.log), watch),
            Phase::Running | Phase::Ending { .. } if self.told == Told::No => {
                (Call::Tell(State::Running, self.log), now)
            }
            Phase::Running => {
                let piece_due = self.last_piece.map_or(now, |last| last + self.log_interval);
                let is_full = self.log.length.saturating_sub(self.sent) >= self.piece_max;
                match is_behind {
                    // A whole piece waits for nobody: a DUT that says 10 MB a second is else never caught up with.
                    true if is_full => (piece, now),
                    true if piece_due <= watch.max(now) => (piece, piece_due),
                    _ => (Call::Tell(State::Running, self.log), watch),
                }
            }
            Phase::Ending { .. } if is_behind => (piece, now),
            Phase::Ending { uploads, uploaded, .. } if uploaded < uploads => (Call::Upload(*uploaded), now),
            Phase::Ending { outcome, .. } => (Call::Tell(State::Final(outcome.clone()), self.log), now),
            Phase::Over => (Call::Tell(State::Running, self.log), now),
        }
    }

    /// Hears the answer to a call that [`Courier::next`] asked for.
    pub(super) fn answered(&mut self, call: &Call, answer: &Answer, now: Instant) -> Heard {
        let before = self.uploads_left();
        self.heard(call, answer, now);
        let is_taken = answer.status.is_some_and(|status| (200..300).contains(&status));
        if self.uploads_left() < before && !is_taken { Heard::UploadLost } else { Heard::Simply }
    }

    fn uploads_left(&self) -> usize {
        match &self.phase {
            Phase::Ending { uploads, uploaded, .. } => uploads - uploaded,
            Phase::Pending | Phase::Running | Phase::Over => 0,
        }
    }

    fn heard(&mut self, call: &Call, answer: &Answer, now: Instant) {
        self.last_call = Some(now);
        if let Some(interval) = answer.log_interval {
            self.log_interval = interval.clamp(LOG_INTERVAL, LOG_INTERVAL_MAX);
        }
        let is_last_word = matches!(call, Call::Tell(State::Final(_), _));
        match answer.job_status.as_deref() {
            Some("canceling") if self.cancel == Cancel::No => self.cancel = Cancel::Wanted,
            Some("canceled" | "failed" | "success" | "skipped") if !is_last_word => return self.stop(),
            _ => {}
        }
        match answer.status {
            None | Some(300..=399 | 408 | 429 | 500..=599) => self.failed(call, answer, now),
            Some(409) => match call {
                Call::Tell(State::Pending, _) => self.stop(),
                Call::Tell(State::Running, _) if !self.is_accepted() => self.stop(),
                _ => self.failed(call, answer, now),
            },
            Some(401 | 403 | 404) => match call {
                Call::Upload(_) => self.uploaded(),
                _ => self.stop(),
            },
            Some(status) => {
                (self.failures, self.not_before) = (0, None);
                self.succeeded(call, status, answer, now);
            }
        }
    }

    fn succeeded(&mut self, call: &Call, status: u16, answer: &Answer, now: Instant) {
        match call {
            Call::Tell(State::Pending, _) => {
                if answer.job_status.as_deref() == Some("running") || status == 400 {
                    self.told = Told::Yes;
                    self.accept();
                }
            }
            Call::Tell(State::Running, _) => self.told = Told::Yes,
            Call::Piece { from, length } => {
                self.last_piece = Some(now);
                self.sent = match (status, answer.range_end) {
                    (416, end) => end.unwrap_or(0),
                    (_, Some(end)) => end,
                    (_, None) => from + length,
                };
                if self.sent == *from {
                    self.stalled(now);
                }
            }
            Call::Upload(_) => self.uploaded(),
            Call::Tell(State::Final(_), _) => match status {
                202 => self.not_before = Some(now + self.log_interval),
                412 => self.send_anew(now),
                _ => self.phase = Phase::Over,
            },
        }
    }

    /// The log did not get on by a piece that was sent.
    fn stalled(&mut self, now: Instant) {
        self.resets += 1;
        if self.resets > RESETS_MAX {
            self.sent = self.log.length;
        }
        self.not_before = Some(now + PAUSE_MIN);
    }

    fn send_anew(&mut self, now: Instant) {
        self.resets += 1;
        self.sent = if self.resets > RESETS_MAX { self.log.length } else { 0 };
        // A log that cannot be brought over is given up, the verdict is not.
        if self.resets > 2 * RESETS_MAX {
            self.phase = Phase::Over;
        }
        self.not_before = Some(now + PAUSE_MIN);
    }

    fn uploaded(&mut self) {
        if let Phase::Ending { uploaded, .. } = &mut self.phase {
            *uploaded += 1;
        }
        self.upload_failed = None;
    }

    fn failed(&mut self, call: &Call, answer: &Answer, now: Instant) {
        self.failures += 1;
        if matches!(call, Call::Upload(_)) {
            let since = *self.upload_failed.get_or_insert(now);
            if now.duration_since(since) >= UPLOAD_TIME {
                self.failures = 0;
                self.uploaded();
            }
        }
        if self.ended_at.is_some_and(|ended| now.duration_since(ended) > LAST_WORD) {
            self.phase = Phase::Over;
        }
        let doubled = PAUSE_MIN.saturating_mul(1 << self.failures.saturating_sub(1).min(6));
        let pause = answer.retry_after.map_or(doubled.min(PAUSE_MAX), |after| after.min(RETRY_AFTER_MAX));
        self.not_before = Some(now + pause);
    }

    fn stop(&mut self) {
        self.is_stopped = Stopped::Due;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16) -> Answer {
        Answer { status: Some(status), ..Answer::default() }
    }

    fn with_status(status: u16, job_status: &str) -> Answer {
        Answer { job_status: Some(job_status.to_owned()), ..answer(status) }
    }

    fn range(status: u16, end: u64) -> Answer {
        Answer { range_end: Some(end), ..answer(status) }
    }

    fn log(bytes: u64) -> Log {
        Log { crc32: 1, length: bytes }
    }

    fn failed() -> Outcome {
        Outcome { failure_reason: Some("script_failure".into()), exit_code: 3 }
    }

    /// A courier and its clock.
    struct Story {
        courier: Courier,
        now: Instant,
    }

    impl Story {
        fn pending() -> Story {
            Story { courier: Courier::new(1 << 20), now: Instant::now() }
        }

        /// Accepted, with so much log.
        fn running(bytes: u64) -> Story {
            let mut told = Story { courier: Courier::resumed(1 << 20), now: Instant::now() };
            told.courier.log_is(log(bytes));
            told
        }

        fn after(&mut self, seconds: u64) -> &mut Story {
            self.now += Duration::from_secs(seconds);
            self
        }

        fn next(&mut self) -> Order {
            self.courier.next(self.now)
        }

        #[track_caller]
        fn calls(&mut self, expected: Call, then: Answer) -> &mut Story {
            assert_eq!(self.next(), Order::Call(expected.clone()));
            self.courier.answered(&expected, &then, self.now);
            self
        }

        #[track_caller]
        fn waits(&mut self, seconds: u64) -> &mut Story {
            assert_eq!(self.next(), Order::Wait(self.now + Duration::from_secs(seconds)));
            self
        }

        #[track_caller]
        fn is_told(&mut self, expected: Order) -> &mut Story {
            assert_eq!(self.next(), expected);
            self
        }
    }

    fn piece(from: u64, length: u64) -> Call {
        Call::Piece { from, length }
    }

    fn tell(state: State, bytes: u64) -> Call {
        Call::Tell(state, Log { crc32: if bytes == 0 { 0 } else { 1 }, length: bytes })
    }

    #[test]
    fn a_job_is_pending_until_it_is_accepted_then_its_log_goes() {
        let mut told = Story::pending();
        told.calls(tell(State::Pending, 0), with_status(200, "pending")).waits(3).after(3);
        told.calls(tell(State::Pending, 0), with_status(200, "pending"));
        told.courier.log_is(log(10));
        told.waits(3);
        told.courier.accept();
        told.calls(tell(State::Running, 10), with_status(200, "running"));
        assert!(told.courier.is_accepted());
        told.calls(piece(0, 10), range(202, 10)).waits(3).after(3);
        told.calls(tell(State::Running, 10), with_status(200, "running"));
    }

    #[test]
    fn a_server_without_two_phases_has_accepted_already() {
        for first in [with_status(200, "running"), answer(400)] {
            let mut told = Story::pending();
            told.calls(tell(State::Pending, 0), first);
            assert!(told.courier.is_accepted());
        }
    }

    #[test]
    fn a_job_that_another_runner_has_is_let_go() {
        let mut told = Story::pending();
        told.calls(tell(State::Pending, 0), answer(409)).is_told(Order::Stop).is_told(Order::Over);
        let mut told = Story::pending();
        told.courier.accept();
        told.calls(tell(State::Running, 0), answer(409)).is_told(Order::Stop).is_told(Order::Over);
    }

    #[test]
    fn the_log_goes_on_where_the_server_says() {
        let mut told = Story::running(100);
        told.calls(piece(0, 100), range(416, 40)).after(3);
        told.calls(piece(40, 60), range(202, 70)).after(3);
        told.calls(piece(70, 30), answer(416)).after(3).calls(piece(0, 100), range(202, 100)).waits(3);
    }

    #[test]
    fn a_server_that_has_more_of_the_log_gets_what_comes_after_that_and_the_verdict_all_the_same() {
        let mut told = Story::running(100);
        told.calls(piece(0, 100), range(416, 150)).after(3).calls(tell(State::Running, 100), answer(200));
        told.courier.log_is(log(170));
        told.calls(piece(150, 20), range(202, 170));
        let mut told = Story::running(100);
        told.calls(piece(0, 100), range(416, 150));
        told.courier.ended(failed(), 0, told.now);
        told.calls(tell(State::Final(failed()), 100), answer(200)).is_told(Order::Over);
    }

    #[test]
    fn a_log_that_gets_on_nowhere_costs_no_verdict() {
        for stays in [range(416, 0), answer(416), range(202, 0)] {
            let mut told = Story::running(100);
            told.courier.ended(failed(), 0, told.now);
            for _ in 0..=RESETS_MAX {
                told.calls(piece(0, 100), stays.clone()).waits(1).after(1);
            }
            told.calls(tell(State::Final(failed()), 100), answer(200)).is_told(Order::Over);
        }
    }

    #[test]
    fn whole_pieces_do_not_wait_for_the_interval_and_small_ones_do() {
        let mut told = Story::running((2 << 20) + 5);
        let slow = Answer { log_interval: Some(Duration::from_secs(30)), ..answer(202) };
        told.calls(piece(0, 1 << 20), slow.clone()).calls(piece(1 << 20, 1 << 20), slow);
        told.waits(3).after(3).calls(tell(State::Running, (2 << 20) + 5), answer(200));
        told.after(27).calls(piece(2 << 20, 5), answer(202));
    }

    #[test]
    fn the_end_is_the_log_the_uploads_and_the_last_word_which_is_repeated_until_it_is_taken() {
        let mut told = Story::running(10);
        told.courier.ended(failed(), 2, told.now);
        told.calls(piece(0, 10), range(202, 10))
            .calls(Call::Upload(0), answer(201))
            .calls(Call::Upload(1), answer(403));
        let last = || tell(State::Final(failed()), 10);
        told.calls(last(), with_status(202, "running")).waits(3).after(3);
        told.calls(last(), answer(503)).waits(1).after(1).calls(last(), answer(503)).waits(2).after(2);
        told.calls(last(), with_status(200, "failed")).is_told(Order::Over);
    }

    #[test]
    fn a_log_that_the_server_lost_is_sent_again_from_its_beginning() {
        let mut told = Story::running(10);
        told.courier.ended(failed(), 0, told.now);
        let last = || tell(State::Final(failed()), 10);
        told.calls(piece(0, 10), range(202, 10)).calls(last(), answer(412)).after(1);
        told.calls(piece(0, 10), range(202, 10)).calls(last(), answer(200)).is_told(Order::Over);
    }

    #[test]
    fn a_cancelled_job_is_stopped_and_a_gently_cancelled_one_says_its_last_word() {
        for gone in [answer(403), answer(404), with_status(202, "canceled"), with_status(200, "failed")] {
            Story::running(10).calls(piece(0, 10), gone).is_told(Order::Stop).is_told(Order::Over);
        }
        let mut told = Story::running(10);
        let gently = Answer { range_end: Some(10), ..with_status(202, "canceling") };
        told.calls(piece(0, 10), gently.clone()).is_told(Order::Cancel).waits(3).after(3);
        told.calls(tell(State::Running, 10), gently.clone()).waits(3);
        told.courier.ended(failed(), 0, told.now);
        told.calls(tell(State::Final(failed()), 10), with_status(200, "canceled")).is_told(Order::Over);
    }

    #[test]
    fn failures_are_repeated_ever_more_slowly_and_as_the_server_wants() {
        let mut told = Story::running(10);
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            told.calls(piece(0, 10), if pause % 3 == 1 { Answer::default() } else { answer(500) })
                .waits(pause)
                .after(pause);
        }
        let later = Answer { retry_after: Some(Duration::from_secs(7)), ..answer(429) };
        told.calls(piece(0, 10), later).waits(7).after(7).calls(piece(0, 10), range(202, 10));
        told.waits(3);
    }

    fn passed() -> Outcome {
        Outcome { failure_reason: None, exit_code: 0 }
    }

    #[test]
    fn an_upload_outlives_ten_minutes_without_a_server_and_is_lost_after_fifteen() {
        let mut told = Story::running(0);
        told.courier.ended(passed(), 2, told.now);
        for _ in 0..10 {
            assert_eq!(told.courier.answered(&Call::Upload(0), &answer(502), told.now), Heard::Simply);
            told.after(60);
        }
        told.calls(Call::Upload(0), answer(201));
        assert_eq!(told.courier.answered(&Call::Upload(1), &Answer::default(), told.now), Heard::Simply);
        told.after(900);
        assert_eq!(told.courier.answered(&Call::Upload(1), &Answer::default(), told.now), Heard::UploadLost);
        told.courier.fails(failed());
        told.after(60);
        told.calls(Call::Tell(State::Final(failed()), log(0)), answer(200)).is_told(Order::Over);
    }

    #[test]
    fn an_upload_that_is_refused_is_lost_at_once_and_a_job_that_failed_keeps_its_reason() {
        for status in [400, 403, 413] {
            let mut told = Story::running(0);
            told.courier.ended(failed(), 1, told.now);
            assert_eq!(told.courier.answered(&Call::Upload(0), &answer(status), told.now), Heard::UploadLost);
            told.courier.fails(Outcome { failure_reason: Some("other".into()), exit_code: 1 });
            told.calls(Call::Tell(State::Final(failed()), log(0)), answer(200)).is_told(Order::Over);
        }
    }

    #[test]
    fn a_last_word_that_is_sent_elsewhere_is_said_again() {
        let mut told = Story::running(0);
        told.courier.ended(passed(), 0, told.now);
        told.calls(Call::Tell(State::Final(passed()), log(0)), answer(302)).waits(1).after(1);
        told.calls(Call::Tell(State::Final(passed()), log(0)), answer(200));
    }
}
