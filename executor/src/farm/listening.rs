//! How a job, or a person's lease, listens to its DUT's console: from its beginning on, over gaps and over restarts of the farm.
//!
//! ```text
//!  open ─► from now on ──► the console goes away ──► open ─► from the byte after the last one that was heard
//!            │                                                 ▲
//!            └─► `console.at` beside the log ─► a restart ─► go_on
//! ```
//! `console.at` says where in the console's log it began, and how far the offsets of the two logs are apart.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::console::{Hub, Place, Session};
use crate::job_log::JobLog;
use crate::lease::Pass;

/// In the folder of the job's or the lease's log.
const FILE: &str = "console.at";
/// What lies between the DUT and its console's log is read within milliseconds; a console that is away must not hold a boot up.
const HEAR_ALL: Duration = Duration::from_secs(1);

/// One listener to one console, at a time.
pub(super) struct Listening {
    console: Arc<Hub>,
    pass: Pass,
    log: Arc<JobLog>,
    heard: Mutex<Option<Span>>,
}

/// What was heard of a console.
struct Span {
    first: u64,
    place: Place,
}

impl Listening {
    /// Nothing is heard yet.
    pub(super) fn new(console: &Arc<Hub>, pass: &Pass, log: &Arc<JobLog>) -> Arc<Listening> {
        let (console, pass, log) = (Arc::clone(console), pass.clone(), Arc::clone(log));
        Arc::new(Listening { console, pass, log, heard: Mutex::default() })
    }

    /// From now on; the second time from where it ended.
    pub(super) async fn open(&self) -> io::Result<Session> {
        let before = self.lock().as_ref().map(|span| (span.first, span.place.offset()));
        match before {
            None => self.begin(None, self.console.open(&self.pass).await?),
            Some((first, next)) => self.begin(Some(first), self.console.open_from(&self.pass, Some(next)).await?),
        }
    }

    /// From where an earlier run of the farm was killed; from now on if that is not known.
    pub(super) async fn go_on(&self) -> io::Result<Session> {
        let Some((first, apart)) = self.read() else { return self.open().await };
        let next = u64::try_from(apart + i128::from(self.log.console_length())).ok();
        self.begin(Some(first), self.console.open_from(&self.pass, next).await?)
    }

    /// Returns when everything is in the console's log that was said until now.
    pub(super) async fn hear_all(&self) {
        // One that is away says nothing that could be heard.
        let _ = tokio::time::timeout(HEAR_ALL, self.console.settle()).await;
    }

    /// What was heard, in the console's own log.
    pub(super) fn evidence(&self) -> Option<String> {
        let heard = self.lock();
        let Span { first, place } = heard.as_ref()?;
        Some(format!("console {}: bytes {first} to {} of its log", self.console.name(), place.offset()))
    }

    fn begin(&self, first: Option<u64>, session: Session) -> io::Result<Session> {
        let place = session.place();
        let first = first.unwrap_or(place.offset());
        let apart = i128::from(place.offset()) - i128::from(self.log.console_length());
        if let Err(error) = std::fs::write(self.path(), format!("{first} {apart}\n")) {
            tracing::warn!(%error, "a restart will not know where in its console's log this began");
        }
        *self.lock() = Some(Span { first, place });
        Ok(session)
    }

    fn read(&self) -> Option<(u64, i128)> {
        let text = std::fs::read_to_string(self.path()).ok()?;
        let (first, apart) = text.strip_suffix('\n')?.split_once(' ')?;
        Some((first.parse().ok()?, apart.parse().ok()?))
    }

    fn path(&self) -> PathBuf {
        self.log.folder().join(FILE)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Span>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
