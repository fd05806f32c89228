//! The ring around one session: select, step, perform.
//!
//! ```text
//!   console bytes ─┐
//!   gateway events ┤            ┌─► Say → log
//!   finished tasks ┼─► Session ─┼─► CutPower, BootWith → a task each; its result comes back as an event
//!   timer          ┤            └─► End → verdict
//!   typed input ───┴─► console writer
//! ```
//! The loop never awaits a device: what may be slow runs in the task set and comes back as an event.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::blueprint::console::ConsoleStream;
use crate::blueprint::power::PowerState;
use crate::interface::Power;
use crate::job_log::JobLog;
use crate::session::{Action, Event, Session, Which};
use crate::verdict::{Cause, Verdict};

/// Console bytes read at once: a serial line fills a fraction of it; a virtual one that floods gives few large records, not many small.
const CONSOLE_READ_BYTES: usize = 64 * 1024;
/// Typed chunks that wait for a console that does not take them; more are dropped, as a terminal would.
pub const INPUT_CHUNKS_MAX: usize = 64;
/// Events that wait for the session; what reports progress may be lost beyond, the session sees the next one.
pub const EVENTS_MAX: usize = 1024;

/// Publishes a deployment for the next boot; quick, in memory.
pub type Publish = Arc<dyn Fn(Which) -> Result<(), String> + Send + Sync>;

/// What the setup gives: a console that is being listened to before power is applied.
pub type Console = Box<dyn ConsoleStream>;

/// Everything a session acts on.
pub struct Ring {
    /// Where everything said goes.
    pub log: Arc<JobLog>,
    /// The leased DUT's outlet.
    pub power: Power,
    /// Opens the console, fetches the artifacts.
    pub setup: BoxFuture<'static, Result<Console, SetupError>>,
    /// Publishes a deployment.
    pub publish: Publish,
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
    SetUp(Console),
}

/// Runs `session` to its verdict. Nothing is cleaned up here: that is the tear-down's, which also runs after a crash.
pub async fn run(mut session: Session, ring: Ring) -> Verdict {
    let Ring { log, power, setup, publish, mut events, mut input, cancelled, declare_unfit } = ring;
    let mut cancelled = cancelled.fuse();
    let mut tasks: JoinSet<Done> = JoinSet::new();
    tasks.spawn(async move {
        match setup.await {
            Ok(console) => Done::SetUp(console),
            Err(SetupError { cause, reason }) => Done::Event(Event::SetupFailed { cause, reason }),
        }
    });
    let mut console: Option<ReadHalf<Console>> = None;
    let mut typed: Option<mpsc::Sender<Bytes>> = None;
    let mut buffer = vec![0; CONSOLE_READ_BYTES];
    loop {
        while let Some(action) = session.poll_action() {
            match action {
                Action::Say(event) => log.append(event),
                Action::CutPower => drop(tasks.spawn(cut_power(power.clone()))),
                Action::BootWith { deployment, .. } => {
                    drop(tasks.spawn(boot(publish.clone(), deployment, power.clone())))
                }
                Action::DeclareUnfit { line } => declare_unfit(line),
                Action::End(verdict) => {
                    // Aborted is not gone: the writer holds half of the console, which the DUT's next job opens at once.
                    tasks.shutdown().await;
                    return verdict;
                }
            }
        }
        let wake = session.poll_timeout().map(tokio::time::Instant::from_std);
        let event = tokio::select! {
            Some(done) = tasks.join_next() => match done {
                Ok(Done::Event(event)) => Some(event),
                Ok(Done::SetUp(opened)) => {
                    let (reader, writer) = tokio::io::split(opened);
                    console = Some(reader);
                    typed = Some(start_writer(&mut tasks, writer));
                    Some(Event::SetupDone)
                }
                Err(error) => Some(Event::FarmFailed { reason: format!("an internal task failed: {error}") }),
            },
            read = read_console(&mut console, &mut buffer) => Some(match read {
                Ok(0) => { console = None; Event::ConsoleLost { reason: "the console closed".into() } }
                Ok(length) => { log.append_console(&buffer[..length]); Event::Console(Bytes::copy_from_slice(&buffer[..length])) }
                Err(error) => { console = None; Event::ConsoleLost { reason: format!("the console failed: {error}") } }
            }),
            event = &mut cancelled => Some(event),
            Some(event) = events.recv() => Some(event),
            Some(bytes) = input.recv() => { typed.as_ref().map(|typed| typed.try_send(bytes)); None }
            () = sleep_until(wake) => None,
        };
        let now = Instant::now();
        if let Some(event) = event {
            session.handle_event(event, now);
        }
        session.handle_timeout(now);
    }
}

async fn cut_power(power: Power) -> Done {
    Done::Event(match power.set(PowerState::Off).await {
        Ok(()) => Event::PowerIsOff,
        Err(error) => Event::PowerFailed { reason: error.to_string() },
    })
}

async fn boot(publish: Publish, deployment: Which, power: Power) -> Done {
    if let Err(reason) = publish(deployment) {
        return Done::Event(Event::FarmFailed { reason });
    }
    Done::Event(match power.set(PowerState::On).await {
        Ok(()) => Event::PowerIsOn,
        Err(error) => Event::PowerFailed { reason: error.to_string() },
    })
}

/// Writes what is typed, in its own task: a DUT that takes no input must not stop the loop. Ends with the session's task set.
fn start_writer(tasks: &mut JoinSet<Done>, mut writer: WriteHalf<Console>) -> mpsc::Sender<Bytes> {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(INPUT_CHUNKS_MAX);
    tasks.spawn(async move {
        while let Some(bytes) = receiver.recv().await {
            if let Err(error) = writer.write_all(&bytes).await {
                return Done::Event(Event::Evidence(format!("typed input was lost: {error}")));
            }
        }
        Done::Event(Event::Evidence("the submitter's input ended".into()))
    });
    sender
}

async fn read_console(console: &mut Option<ReadHalf<Console>>, buffer: &mut [u8]) -> std::io::Result<usize> {
    match console {
        Some(console) => console.read(buffer).await,
        None => std::future::pending().await,
    }
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
    use crate::verdict::Status;
    use futures_util::future::ready;
    use job_schema::job::Job;
    use job_schema::template::Rendered;
    use std::sync::Mutex;
    use tokio::io::DuplexStream;

    /// An outlet that obeys, or that says yes and stays as it is.
    struct TestPdu {
        state: Mutex<PowerState>,
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
        session: Session,
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
        let pass = Pass::issue(&Arc::default());
        let ring = Ring {
            log: JobLog::create(folder.path()).unwrap(),
            power: Power::new(Arc::new(pdu), Outlet("1".into()), pass, Arc::new(|_| ())),
            setup: ready(Ok(Box::new(console) as Console)).boxed(),
            publish: Arc::new(|_| Ok(())),
            events,
            input,
            cancelled: std::future::pending().boxed(),
            declare_unfit: Box::new(|_| ()),
        };
        Scene { session: Session::new(job, None, Instant::now()), ring, dut, typed, _folder: folder }
    }

    #[tokio::test]
    async fn a_job_hears_and_types_and_its_console_is_closed_when_the_verdict_is_there() {
        let Scene { session, ring, mut dut, typed, _folder } =
            scene(TestPdu { state: Mutex::new(PowerState::On), obeys: true });
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
        let Scene { session, ring, dut: _dut, .. } = scene(TestPdu { state: Mutex::new(PowerState::On), obeys: false });
        let verdict = run(session, ring).await;
        assert_eq!((verdict.status, verdict.cause), (Status::SetupFail, Cause::Power));
        assert_eq!(verdict.summary, "outlet `1`: told to go off, but it reads back on");
    }
}
