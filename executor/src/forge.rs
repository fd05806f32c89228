//! Where jobs come from by themselves: forges that have jobs to be run, asked by the farm.
//!
//! ```text
//!  farm file ─► runners.rs: those of gitlab/ and forgejo/, their questions ─► carry.rs: a job ─► Farm::submit, its log, Farm::cancel
//!                                                                              │ courier.rs ◆ what is told when
//!                                                                              └ the log: spool.rs, trace.rs ◆, mask.rs ◆ without secrets
//!  shared by forges: room.rs is a DUT free, http.rs clients, kept.rs files of tokens, script.rs ◆ words of shells
//! ```
//! They use the farm as the API does, and the farm knows nothing of them.

mod carry;
mod courier;
mod forgejo;
pub mod gitlab;
mod http;
mod kept;
mod mask;
mod room;
mod runners;
mod script;
mod spool;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use carry::Carriers;
use tokio::task::JoinHandle;

use crate::farm::Farm;

/// At a stop, so long is left to tell forges how jobs have ended. What could not be told is told at the next start.
const LAST_WORDS: Duration = Duration::from_secs(4);

/// The forges of a farm, being asked.
pub struct Asking {
    supervisors: [JoinHandle<()>; 2],
    carriers: Arc<Carriers>,
}

/// Asks the forges that the farm file names, from now on.
pub fn ask(farm: &Arc<Farm>) -> Asking {
    let carriers = Arc::new(Carriers::default());
    let supervisors = [tokio::spawn(gitlab::take(farm, &carriers)), tokio::spawn(forgejo::take(farm, &carriers))];
    Asking { supervisors, carriers }
}

impl Asking {
    /// Asks no more; the farm must have stopped.
    pub async fn stop(self) {
        self.supervisors.iter().for_each(JoinHandle::abort);
        let _ = tokio::time::timeout(LAST_WORDS, self.carriers.all_done()).await;
    }
}
