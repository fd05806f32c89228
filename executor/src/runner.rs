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
