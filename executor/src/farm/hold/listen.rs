//! The console of a person's lease: open for as long as the lease lasts, whatever becomes of it in between.
//!
//! ```text
//!  open ─► what it says → the log    ─┬─ it closed, or failed ─► noted, a pause ─► open
//!          what is typed → the pass ─►│
//!  the lease's tear-down ─────────────┴─► closed
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::Opened;
use crate::farm::listening::Listening;
use crate::job_log::{JobEvent, JobLog};
use crate::lease::Pass;

/// A chunk that the console does not take within this time is lost. The lease's end waits for it, so it is short.
const TYPING_TIME: Duration = Duration::from_secs(2);
/// Console bytes read at once, as for jobs.
const CONSOLE_READ_BYTES: usize = 64 * 1024;
/// Between two attempts to open a console that went away; doubled up to the second number, so that one which is away all night costs
/// nothing, and one that is back is noticed while its reader still looks.
const REOPEN_PAUSE: Duration = Duration::from_millis(250);
const REOPEN_PAUSE_MAX: Duration = Duration::from_secs(10);

/// What listens to a DUT's console for a person. The lease's tear-down ends it.
#[derive(Default)]
pub(in crate::farm) struct Listener(Mutex<Option<JoinHandle<()>>>);

impl Listener {
    pub(super) fn start(&self, task: JoinHandle<()>) {
        if let Some(before) = self.lock().replace(task) {
            before.abort();
        }
    }

    /// Returns when nobody holds the console any more.
    pub(in crate::farm) async fn close(&self) {
        let task = self.lock().take();
        if let Some(task) = task {
            task.abort();
            // That it was cancelled is no error.
            let _ = task.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the console open for as long as the lease lasts, whatever becomes of it in between; says in `heard` when it was opened first, or could
/// not be.
pub(super) async fn listen(
    log: Arc<JobLog>,
    listening: Arc<Listening>,
    opened: Opened,
    pass: Pass,
    mut typed: mpsc::Receiver<Bytes>,
    heard: watch::Sender<bool>,
) {
    let mut away: Option<Instant> = None;
    let mut pause = REOPEN_PAUSE;
    let mut opened = opened;
    loop {
        let opening = match opened {
            Opened::First => listening.open().await,
            Opened::AfterRestart => listening.go_on().await,
        };
        heard.send_replace(true);
        let reason = match opening {
            Ok(console) => {
                opened = Opened::First;
                if let Some(since) = away.take() {
                    log.append(JobEvent::ConsoleBack { seconds: since.elapsed().as_secs_f64() });
                }
                let (mut reader, mut writer) = tokio::io::split(console);
                let since = Instant::now();
                let reason = tokio::select! {
                    reason = log_what_it_says(&mut reader, &log) => reason,
                    reason = type_on_it(&mut writer, &mut typed, &pass) => reason,
                };
                if since.elapsed() > REOPEN_PAUSE_MAX {
                    pause = REOPEN_PAUSE;
                }
                reason
            }
            Err(error) => error.to_string(),
        };
        if away.is_none() {
            away = Some(Instant::now());
            log.append(JobEvent::ConsoleAway { reason });
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(REOPEN_PAUSE_MAX);
    }
}

async fn log_what_it_says(console: &mut (impl AsyncRead + Unpin), log: &JobLog) -> String {
    let mut buffer = vec![0; CONSOLE_READ_BYTES];
    loop {
        match console.read(&mut buffer).await {
            Ok(0) => return "the console closed".into(),
            // What the disk does not take is noted in the log, and costs a person's lease nothing else.
            Ok(length) => drop(log.append_console(&buffer[..length])),
            Err(error) => return format!("the console failed: {error}"),
        }
    }
}

/// Ends only when the console cannot be written.
async fn type_on_it(console: &mut (impl AsyncWrite + Unpin), typed: &mut mpsc::Receiver<Bytes>, pass: &Pass) -> String {
    while let Some(bytes) = typed.recv().await {
        // After the lease what was typed too late is dropped.
        let Ok(_in_flight) = pass.enter().await else { continue };
        if let Ok(Err(error)) = tokio::time::timeout(TYPING_TIME, console.write_all(&bytes)).await {
            return format!("the console takes no input: {error}");
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_typed_after_the_lease_does_not_reach_the_console() {
        let pass = Pass::of(&Arc::default(), 1);
        let (mut console, mut dut) = tokio::io::duplex(64);
        let (typed, mut inbox) = mpsc::channel(4);
        typed.send(Bytes::from("in time")).await.unwrap();
        let mut heard = [0; 7];
        tokio::select! {
            _ = type_on_it(&mut console, &mut inbox, &pass) => unreachable!("the console can be written"),
            read = dut.read_exact(&mut heard) => assert_eq!(read.unwrap(), 7),
        }
        pass.revoke();
        typed.send(Bytes::from("too late")).await.unwrap();
        drop(typed);
        let typing = type_on_it(&mut console, &mut inbox, &pass);
        assert!(futures_util::FutureExt::now_or_never(typing).is_none(), "it goes on");
        drop(console);
        let mut rest = Vec::new();
        dut.read_to_end(&mut rest).await.unwrap();
        assert_eq!((&heard, rest.len()), (b"in time", 0));
    }
}
