//! The ring around one session: select, step, perform.
//!
//! ```text
//!   console bytes ─┐
//!   gateway events ┤            ┌─► Say → log
//!   finished tasks ┼─► Session ─┼─► CutPower, BootWith, HandOver → a task each; its result comes back as an event
//!   timer          ┤            └─► End → verdict
//!   typed input ───┴─► console writer
//!
//!   console: open ──its stream ends──► away: a task opens it again, 0.25 s, 0.5 s, … 5 s apart ──► open
//! ```
//! The loop never awaits a device: what may be slow runs in the task set and comes back as an event.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Mutex, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::blueprint::console::ConsoleStream;
use crate::blueprint::power::PowerState;
use crate::interface::Power;
use crate::job_log::{Incomplete, JobEvent, JobLog, Severity};
use crate::journal::Recorded;
use crate::session::{Action, Event, Which};
use crate::verdict::{Cause, Status, Verdict};

/// Console bytes read at once: a serial line fills a fraction of it; a virtual one that floods gives few large records, not many small.
const CONSOLE_READ_BYTES: usize = 64 * 1024;
/// Of a console that said this many pieces within a second the log gathers the next ones for a while, so that a DUT that says a byte at a time
/// costs some two hundred records a second and not ten thousand. The session hears each of them at once; what comes of it, as what the servers
/// saw, is in the log behind the bytes that were there before.
const PIECES_AT_ONCE: u32 = 100;
const GATHER: Duration = Duration::from_millis(10);
/// The same once a console has said this many pieces, some ten minutes without a pause: a day of talk stays below what a log keeps.
const GATHER_OF_A_TALKER: Duration = Duration::from_millis(100);
const PIECES_OF_A_TALKER: usize = 100_000;
/// Pieces read at once when the power has gone: 1 MiB, more than lies between us and any console.
const REST_PIECES_MAX: usize = 16;
/// The first pause before a console is opened again: a stream that broke is often there at once.
const OPEN_AGAIN: Duration = Duration::from_millis(250);
/// The longest: each second more is a second of console that may be lost, and one attempt in 5 s burdens nobody.
const OPEN_AGAIN_MAX: Duration = Duration::from_secs(5);
/// A console that stayed open for less was not back: the pauses go on growing where they were.
const OPEN_STEADY: Duration = Duration::from_secs(10);
/// One attempt may take this long: TCP alone would ask a host that is gone for two minutes.
const OPEN_CALL: Duration = Duration::from_secs(10);
/// Typed chunks that wait for a console that does not take them; more are dropped, as a terminal would.
pub const INPUT_CHUNKS_MAX: usize = 64;
/// Events that wait for the session; what reports progress may be lost beyond, the session sees the next one.
pub const EVENTS_MAX: usize = 1024;

/// Publishes a deployment for the boot of this number; quick. The same boot again goes on with it.
pub type Publish = Arc<dyn Fn(Which, u32) -> Result<(), String> + Send + Sync>;

/// Gives the DUT's loader what a deployment has for it, in this boot; the event says how that ended. `None`: there is nothing to give.
pub type HandOver = Arc<dyn Fn(Which, u32) -> Option<BoxFuture<'static, Event>> + Send + Sync>;

/// What the setup gives: a console that is being listened to before power is applied.
pub type Console = Box<dyn ConsoleStream>;

/// Opens the console again after its stream ended.
pub type OpenConsole = Arc<dyn Fn() -> BoxFuture<'static, io::Result<Console>> + Send + Sync>;

/// Returns when what the DUT said until now can be read: between it and us is more than this file knows of.
pub type HearAll = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// Everything a session acts on.
pub struct Ring {
    /// Where everything said goes.
    pub log: Arc<JobLog>,
    /// The leased DUT's outlet.
    pub power: Power,
    /// Opens the console, fetches the artifacts; gives the event that tells the session so.
    pub setup: BoxFuture<'static, Result<(Console, Event), SetupError>>,
    /// Opens the console once more.
    pub open_console: OpenConsole,
    /// Hears what the DUT said until now.
    pub hear_all: HearAll,
    /// Publishes a deployment.
    pub publish: Publish,
    /// Gives the DUT's loader what there is for it.
    pub hand_over: HandOver,
    /// Events from the gateway, from operators, from the submitter.
    pub events: mpsc::Receiver<Event>,
    /// What the submitter types.
    pub input: mpsc::Receiver<Bytes>,
    /// Ends with the event that cancels the job; may never end.
    pub cancelled: BoxFuture<'static, Event>,
    /// Called when the DUT declares itself unfit.
    pub declare_unfit: Box<dyn Fn(String) + Send + Sync>,
}

/// Why a job could not be set up.
#[derive(Debug)]
pub struct SetupError {
    /// Whose fault it is.
    pub cause: Cause,
    /// In a sentence.
    pub reason: String,
}

enum Done {
    Event(Event),
    SetUp(Console, Event),
    ConsoleBack(Console),
    Nothing,
}

/// The tasks of a session.
type Tasks = JoinSet<Done>;

/// Runs `session` to its verdict. Nothing is cleaned up here: that is the tear-down's, which also runs after a crash.
pub async fn run(mut session: Recorded, ring: Ring) -> Verdict {
    let Ring {
        log,
        power,
        setup,
        open_console,
        hear_all,
        publish,
        hand_over,
        mut events,
        mut input,
        cancelled,
        declare_unfit,
    } = ring;
    let mut cancelled = cancelled.fuse();
    // One command at a time, in order: an `on` that is still on its way must not overtake the `off` after it.
    let power = Arc::new(Mutex::new(power));
    let mut tasks = Tasks::new();
    tasks.spawn(async move {
        match setup.await {
            Ok((console, event)) => Done::SetUp(console, event),
            Err(SetupError { cause, reason }) => Done::Event(Event::SetupFailed { cause, reason }),
        }
    });
    let mut line = Line::new(open_console);
    let mut handing: Option<AbortHandle> = None;
    loop {
        while let Some(action) = session.poll_action() {
            match action {
                Action::Say(event) => log.append(event),
                Action::CutPower => {
                    // To a loader without power nothing is given.
                    handing.take().iter().for_each(AbortHandle::abort);
                    drop(tasks.spawn(cut_power(Arc::clone(&power), hear_all())));
                }
                Action::BootWith { deployment, boot } => drop(tasks.spawn(begin_boot(
                    publish.clone(),
                    deployment,
                    boot,
                    Arc::clone(&power),
                    Arc::clone(&log),
                ))),
                Action::HandOver { deployment, boot } => {
                    let begun = hand_over(deployment, boot).map(|giving| tasks.spawn(giving.map(Done::Event)));
                    handing = begun;
                }
                Action::DeclareUnfit { line } => declare_unfit(line),
                Action::End(verdict) => {
                    // Aborted is not gone: the writer holds half of the console, which the DUT's next job opens at once.
                    tasks.shutdown().await;
                    return match log.settle() {
                        Ok(()) => verdict,
                        Err(incomplete) => without_evidence(verdict, &incomplete),
                    };
                }
            }
        }
        let (wake, tell_at) = (session.poll_timeout().map(tokio::time::Instant::from_std), line.tell_at);
        let event = tokio::select! {
            Some(done) = tasks.join_next() => match done {
                Ok(Done::Event(event)) => {
                    if matches!(event, Event::PowerIsOff) {
                        line.rest().into_iter().for_each(|bytes| session.handle_event(heard_event(&log, bytes, Telling::Now), Instant::now()));
                    }
                    Some(event)
                }
                Ok(Done::SetUp(console, event)) => { line.opened(console, &mut tasks); Some(event) }
                Ok(Done::ConsoleBack(console)) => { line.opened(console, &mut tasks); Some(Event::ConsoleBack) }
                Ok(Done::Nothing) => None,
                Err(error) if error.is_cancelled() => None,
                Err(error) => Some(Event::FarmFailed { reason: format!("an internal task failed: {error}") }),
            },
            heard = line.hear() => Some(match heard {
                Ok((bytes, telling)) => {
                    line.tells(telling);
                    heard_event(&log, bytes, telling)
                }
                Err(reason) => { line.lost(&mut tasks); Event::ConsoleAway { reason } }
            }),
            () = sleep_until(tell_at) => { line.tells(Telling::Now); log.tell_console(); None }
            event = &mut cancelled => Some(event),
            Some(event) = events.recv() => { session.handle_event(event, Instant::now()); None }
            Some(bytes) = input.recv() => { line.type_on(bytes); None }
            () = sleep_until(wake) => None,
        };
        let now = Instant::now();
        // What was fetched before is evidence, also of what ends the job.
        while let Ok(event) = events.try_recv() {
            session.handle_event(event, now);
        }
        if let Some(event) = event {
            session.handle_event(event, now);
        }
        session.handle_timeout(now);
    }
}

/// What the log cannot keep is no evidence: the job ends by it.
fn heard_event(log: &JobLog, bytes: Bytes, telling: Telling) -> Event {
    let kept = match telling {
        Telling::Now => log.append_console(&bytes),
        Telling::Within(_) => log.gather_console(&bytes),
    };
    match kept {
        Ok(()) => Event::Console(bytes),
        Err(incomplete) => Event::FarmFailed { reason: incomplete.to_string() },
    }
}

/// A verdict that a restart would not know, or whose evidence is lost, is the farm's: a later reader must find the same that was told.
fn without_evidence(verdict: Verdict, incomplete: &Incomplete) -> Verdict {
    if verdict.cause == Cause::Farm {
        return verdict;
    }
    let status = if verdict.status == Status::SetupFail { Status::SetupFail } else { Status::Incomplete };
    let summary = format!("{incomplete}; without that it would have ended {verdict}");
    Verdict { status, cause: Cause::Farm, summary, evidence: verdict.evidence }
}

async fn cut_power(power: Arc<Mutex<Power>>, hear_all: BoxFuture<'static, ()>) -> Done {
    Done::Event(match power.lock().await.set(PowerState::Off).await {
        Ok(()) => {
            hear_all.await;
            Event::PowerIsOff
        }
        Err(error) => Event::PowerFailed { reason: error.to_string() },
    })
}

async fn begin_boot(
    publish: Publish,
    deployment: Which,
    boot: u32,
    power: Arc<Mutex<Power>>,
    log: Arc<JobLog>,
) -> Done {
    if let Err(reason) = publish(deployment, boot) {
        return Done::Event(Event::FarmFailed { reason });
    }
    let power = power.lock().await;
    if let Some(text) = power.waits() {
        log.append(JobEvent::Note { text, severity: Severity::Info });
    }
    Done::Event(match power.set(PowerState::On).await {
        Ok(()) => Event::PowerIsOn,
        Err(error) => Event::PowerFailed { reason: error.to_string() },
    })
}

/// When the log tells of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Telling {
    Now,
    /// Together with what else comes until then.
    Within(Duration),
}

/// The line to the console: open or away.
struct Line {
    open: OpenConsole,
    reader: Option<ReadHalf<Console>>,
    typed: Option<mpsc::Sender<Bytes>>,
    writer: Option<AbortHandle>,
    opened_at: Instant,
    pause: Duration,
    buffer: Vec<u8>,
    pieces: usize,
    /// The second that began then, and its pieces.
    second: (Instant, u32),
    /// When the log tells of what it gathers.
    tell_at: Option<tokio::time::Instant>,
}

impl Line {
    fn new(open: OpenConsole) -> Self {
        let (reader, typed, writer) = (None, None, None);
        let buffer = vec![0; CONSOLE_READ_BYTES];
        let (opened_at, pause) = (Instant::now(), OPEN_AGAIN);
        let second = (opened_at, 0);
        Line { open, reader, typed, writer, opened_at, pause, buffer, pieces: 0, second, tell_at: None }
    }

    fn opened(&mut self, console: Console, tasks: &mut Tasks) {
        let (reader, writer) = tokio::io::split(console);
        let (typed, inbox) = mpsc::channel(INPUT_CHUNKS_MAX);
        self.writer = Some(tasks.spawn(write_typed(writer, inbox)));
        (self.reader, self.typed, self.opened_at) = (Some(reader), Some(typed), Instant::now());
    }

    /// The next bytes of the console, and when to tell of them; never any while it is away. The error: its stream ended.
    async fn hear(&mut self) -> Result<(Bytes, Telling), String> {
        let Some(reader) = self.reader.as_mut() else { return std::future::pending().await };
        let length = match reader.read(&mut self.buffer).await {
            Ok(0) => return Err("the console closed".into()),
            Ok(length) => length,
            Err(error) => return Err(format!("the console failed: {error}")),
        };
        Ok((Bytes::copy_from_slice(&self.buffer[..length]), self.telling()))
    }

    fn telling(&mut self) -> Telling {
        if self.second.0.elapsed() >= Duration::from_secs(1) {
            self.second = (Instant::now(), 0);
        }
        // What is told of with others is no piece of its own.
        if self.tell_at.is_none() {
            self.pieces += 1;
            self.second.1 += 1;
        }
        if self.pieces > PIECES_OF_A_TALKER {
            Telling::Within(GATHER_OF_A_TALKER)
        } else if self.second.1 > PIECES_AT_ONCE {
            Telling::Within(GATHER)
        } else {
            Telling::Now
        }
    }

    /// What is gathered is told of when its first piece has waited for so long.
    fn tells(&mut self, telling: Telling) {
        match telling {
            Telling::Now => self.tell_at = None,
            Telling::Within(time) => {
                self.tell_at.get_or_insert_with(|| tokio::time::Instant::now() + time);
            }
        }
    }

    /// What was said before the power went and is not read yet: it must not be taken for the next boot's.
    fn rest(&mut self) -> Vec<Bytes> {
        let mut rest = Vec::new();
        while rest.len() < REST_PIECES_MAX {
            let Some(Ok((bytes, _))) = self.hear().now_or_never() else { break };
            rest.push(bytes);
        }
        rest
    }

    /// Lets go of the console, since it takes one at a time, and begins to open it again.
    fn lost(&mut self, tasks: &mut Tasks) {
        (self.reader, self.typed) = (None, None);
        if let Some(writer) = self.writer.take() {
            writer.abort();
        }
        if self.opened_at.elapsed() >= OPEN_STEADY {
            self.pause = OPEN_AGAIN;
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(OPEN_AGAIN_MAX);
        tasks.spawn(open_again(Arc::clone(&self.open), pause));
    }

    /// Dropped when the console does not take it, or is away, as a terminal would.
    fn type_on(&self, bytes: Bytes) {
        if let Some(typed) = &self.typed {
            let _ = typed.try_send(bytes);
        }
    }
}

/// For as long as the session lets it: how long a console may be away is decided there.
async fn open_again(open: OpenConsole, mut pause: Duration) -> Done {
    loop {
        sleep(pause).await;
        match timeout(OPEN_CALL, open()).await {
            Ok(Ok(console)) => return Done::ConsoleBack(console),
            Ok(Err(error)) => tracing::debug!(%error, "the console cannot be opened again yet"),
            Err(_) => tracing::debug!("nothing answers for the console yet"),
        }
        pause = (pause * 2).min(OPEN_AGAIN_MAX);
    }
}

/// Writes what is typed, in its own task: a DUT that takes no input must not stop the loop. Ends with the session's task set.
async fn write_typed(mut writer: WriteHalf<Console>, mut inbox: mpsc::Receiver<Bytes>) -> Done {
    while let Some(bytes) = inbox.recv().await {
        if let Err(error) = writer.write_all(&bytes).await {
            return Done::Event(Event::Evidence(format!("typed input was lost: {error}")));
        }
    }
    Done::Nothing
}

async fn sleep_until(wake: Option<tokio::time::Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blueprint::power::{Outlet, Pdu, PowerError};
    use crate::lease::Pass;
    use crate::outlets::{Policy, Store, Unit};
    use crate::session::Session;
    use futures_util::future::ready;
    use job_schema::job::Job;
    use job_schema::template::Rendered;
    use tokio::io::DuplexStream;

    /// An outlet that obeys, or that says yes and stays as it is.
    struct TestPdu {
        state: std::sync::Mutex<PowerState>,
        obeys: bool,
    }

    impl Pdu for TestPdu {
        fn set<'a>(&'a self, _: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>> {
            if self.obeys {
                *self.state.lock().unwrap() = state;
            }
            ready(Ok(())).boxed()
        }

        fn state<'a>(&'a self, _: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>> {
            ready(Ok(*self.state.lock().unwrap())).boxed()
        }
    }

    struct Scene {
        session: Recorded,
        ring: Ring,
        dut: DuplexStream,
        typed: mpsc::Sender<Bytes>,
        _folder: tempfile::TempDir,
    }

    fn scene(pdu: TestPdu) -> Scene {
        let text =
            "version: 1\ntarget: {tags: []}\nconsole_patterns: {session_end: {regex: end}}\ndeployment: {start: {}}\n";
        let job = Arc::new(Job::parse(&Rendered::plain("job.yml", text)).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let (console, dut) = tokio::io::duplex(64);
        let (_, events) = mpsc::channel(1);
        let (typed, input) = mpsc::channel(1);
        let pass = Pass::of(&Arc::default(), 1);
        let pdu: Arc<dyn Pdu> = Arc::new(pdu);
        let make = move || Ok(Arc::clone(&pdu));
        let unit =
            Unit::new("test", "test", Box::new(make), Policy::VIRTUAL, Vec::new(), Arc::new(Store::none())).unwrap();
        let ring = Ring {
            log: JobLog::create(folder.path()).unwrap(),
            power: Power::new(unit.switch(&Outlet("1".into())), pass, Arc::new(|_| ())),
            setup: ready(Ok((Box::new(console) as Console, Event::SetupDone))).boxed(),
            open_console: Arc::new(|| ready(Err(io::Error::other("unplugged"))).boxed()),
            hear_all: Arc::new(|| ready(()).boxed()),
            publish: Arc::new(|_, _| Ok(())),
            hand_over: Arc::new(|_, _| None),
            events,
            input,
            cancelled: std::future::pending().boxed(),
            declare_unfit: Box::new(|_| ()),
        };
        Scene { session: Recorded::unkept(Session::new(job, None, Instant::now())), ring, dut, typed, _folder: folder }
    }

    #[tokio::test]
    async fn a_job_hears_and_types_and_its_console_is_closed_when_the_verdict_is_there() {
        let Scene { session, ring, mut dut, typed, _folder } =
            scene(TestPdu { state: std::sync::Mutex::new(PowerState::On), obeys: true });
        let log = Arc::clone(&ring.log);
        let running = tokio::spawn(run(session, ring));
        let mut follower = log.follow(0);
        while let Some(record) = follower.next().await {
            if matches!(record.event, crate::job_log::JobEvent::PoweredOn { .. }) {
                break;
            }
        }
        typed.send(Bytes::from("hello")).await.unwrap();
        let mut heard = [0; 5];
        dut.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
        dut.write_all(b"the end\n").await.unwrap();
        assert_eq!(running.await.unwrap().status, Status::Complete);
        assert_eq!(dut.read(&mut heard).await.unwrap(), 0, "nobody holds the console any more");
    }

    #[tokio::test]
    async fn an_outlet_that_lies_ends_the_job_with_power_as_cause() {
        let Scene { session, ring, dut: _dut, _folder, .. } =
            scene(TestPdu { state: std::sync::Mutex::new(PowerState::On), obeys: false });
        let verdict = run(session, ring).await;
        assert_eq!((verdict.status, verdict.cause), (Status::SetupFail, Cause::Power));
        assert_eq!(verdict.summary, "outlet `1`: told to go off, but it reads back on");
    }

    /// A pair of ends whose far one the test keeps; each opening of the console takes the next.
    fn consoles(count: usize) -> (OpenConsole, Vec<DuplexStream>) {
        let (ours, theirs): (Vec<_>, Vec<_>) = (0..count).map(|_| tokio::io::duplex(1 << 20)).unzip();
        let ours = Arc::new(std::sync::Mutex::new(ours.into_iter()));
        let open = move || {
            let next = ours.lock().unwrap().next();
            let console = next.map(|console| Box::new(console) as Console);
            ready(console.ok_or_else(|| io::Error::other("nothing answers"))).boxed()
        };
        (Arc::new(open), theirs)
    }

    #[tokio::test]
    async fn a_console_that_goes_away_is_opened_again_and_the_log_has_the_gap() {
        let obeys = TestPdu { state: std::sync::Mutex::new(PowerState::On), obeys: true };
        let Scene { session, mut ring, dut, typed, _folder } = scene(obeys);
        let (open, mut theirs) = consoles(1);
        ring.open_console = open;
        let log = Arc::clone(&ring.log);
        let running = tokio::spawn(run(session, ring));
        let mut follower = log.follow(0);
        let mut heard = [0; 5];
        while let Some(record) = follower.next().await {
            if matches!(record.event, crate::job_log::JobEvent::PoweredOn { .. }) {
                break;
            }
        }
        drop(dut);
        let mut again = theirs.remove(0);
        while let Some(record) = follower.next().await {
            if let crate::job_log::JobEvent::ConsoleBack { seconds } = record.event {
                assert!(seconds >= OPEN_AGAIN.as_secs_f64());
                break;
            }
        }
        typed.send(Bytes::from("hello")).await.unwrap();
        again.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
        again.write_all(b"the end\n").await.unwrap();
        let verdict = running.await.unwrap();
        assert_eq!(verdict.status, Status::Complete);
        assert!(verdict.evidence.iter().any(|entry| entry.starts_with("boot 1: the console was away for ")));
    }

    #[tokio::test]
    async fn a_dut_that_says_a_byte_at_a_time_costs_few_records() {
        let obeys = TestPdu { state: std::sync::Mutex::new(PowerState::On), obeys: true };
        let Scene { session, ring, mut dut, typed: _typed, _folder } = scene(obeys);
        let log = Arc::clone(&ring.log);
        let running = tokio::spawn(run(session, ring));
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(500) {
            dut.write_all(b"x").await.unwrap();
            tokio::task::yield_now().await;
        }
        // Two seconds, as the runner counts them, may have a share in it.
        let pieces = 2 * u128::from(PIECES_AT_ONCE) + started.elapsed().as_millis() / GATHER.as_millis() + 2;
        dut.write_all(b"\nthe end\n").await.unwrap();
        assert_eq!(running.await.unwrap().status, Status::Complete);
        let console =
            |record: &&Arc<crate::job_log::Record>| matches!(record.event, crate::job_log::JobEvent::Console { .. });
        let records = log.records().iter().filter(console).count() as u128;
        assert!(records <= pieces + 2, "{records} records, and {pieces} would do");
    }

    #[tokio::test]
    async fn a_line_that_means_something_is_told_at_once_behind_all_that_was_said_before_it() {
        let obeys = TestPdu { state: std::sync::Mutex::new(PowerState::On), obeys: true };
        let Scene { session, ring, mut dut, typed: _typed, _folder } = scene(obeys);
        let log = Arc::clone(&ring.log);
        let running = tokio::spawn(run(session, ring));
        let mut follower = log.follow(0);
        while let Some(record) = follower.next().await {
            if matches!(record.event, JobEvent::PoweredOn { .. }) {
                break;
            }
        }
        // More than is told of at once.
        for _ in 0..4 * PIECES_AT_ONCE {
            dut.write_all(b"x").await.unwrap();
            tokio::task::yield_now().await;
        }
        dut.write_all(b"\nthe end\n").await.unwrap();
        assert_eq!(running.await.unwrap().status, Status::Complete);
        let (mut told, mut before) = (0, None);
        for record in log.records() {
            match &record.event {
                JobEvent::Console { offset, length } => {
                    assert_eq!(*offset, told);
                    told += *length as u64;
                }
                JobEvent::PatternMatched { line, .. } => before = Some((line.clone(), told)),
                _ => {}
            }
        }
        let all = u64::from(4 * PIECES_AT_ONCE) + "\nthe end\n".len() as u64;
        assert_eq!((before, told), (Some(("the end".to_owned(), all)), all));
    }
}
