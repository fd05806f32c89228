//! Consoles belong to their machines, not to jobs: each is open from the farm's start to its end, and everything it says is kept.
//!
//! ```text
//!  blueprint/console/ (drivers) ─► Hub, one per console ─┬─► Log ─► <state>/consoles/<name>/
//!                                    ▲                   ├─► Session: a job's, or a person's, under its pass
//!                                    │ typed             ├─► Reader 1 … n: API, `wharf console`, raw TCP
//!                                    └─ Writer (pass)    └─► Desk: machines that say who they are (SALAD) ─► Heard
//! ```
//! | file | what |
//! |---|---|
//! | `hub` | one console's task: open, read, type, open again |
//! | `log`, `tail` ◆, `store`, `marks` ◆ | what it said: in memory, on disk, and when |
//! | `reader` | one reader at its own pace, replay included |
//! | `serve` | its ports for other programs, under a lease |
//! | `session` | the stream that a lease has |
//! | `salad` ◆, `desk` | what machines say of themselves, and whether they are believed |

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::broadcast;

mod desk;
mod hub;
mod log;
mod marks;
mod reader;
mod salad;
mod serve;
mod session;
mod store;
mod tail;

pub use desk::{Discovery, Heard, Owner};
pub use hub::Hub;
pub use log::{Extent, Since, State};
pub use reader::{Piece, Reader};
pub use salad::Word;
pub use serve::{Ports, Protocol};
pub use session::{Place, Session};
pub use store::Limits;

use desk::Desk;
use log::Log;

use crate::blueprint::console::Console;

/// How often logs are looked after: files closed, old pieces removed, a full disk tried again.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The consoles of a farm.
pub struct Consoles {
    folder: PathBuf,
    limits: Limits,
    hubs: Mutex<BTreeMap<String, Arc<Hub>>>,
    desk: Arc<Desk>,
}

impl Consoles {
    /// Consoles whose logs are kept in `folder`. Called from within a tokio runtime.
    pub fn new(folder: PathBuf, limits: Limits) -> Arc<Consoles> {
        let consoles = Arc::new(Consoles { folder, limits, hubs: Mutex::default(), desk: Desk::new() });
        let weak = Arc::downgrade(&consoles);
        tokio::spawn(async move {
            let mut tick = tokio::time::interval(LOOK_EVERY);
            loop {
                tick.tick().await;
                let Some(consoles) = weak.upgrade() else { return };
                let now = Timestamp::now();
                consoles.all().iter().for_each(|hub| hub.look_after(now));
            }
        });
        consoles
    }

    /// Opens a console and keeps it open. One that is open already goes on, unless it is reached in another way now.
    pub fn open(&self, name: &str, driver: Arc<dyn Console>, owner: Option<Owner>) -> io::Result<Arc<Hub>> {
        let mut hubs = self.lock();
        if let Some(hub) = hubs.get(name) {
            if hub.is_driven_by(&driver) {
                self.desk.belongs_to(name, owner);
                return Ok(Arc::clone(hub));
            }
            hub.close("it is reached in another way from now on");
        }
        let log = Log::open(name, self.folder.join(name), self.limits, Timestamp::now())?;
        self.desk.belongs_to(name, owner);
        let hub = Arc::new(Hub::new(name, log, driver, Arc::clone(&self.desk)));
        hubs.insert(name.to_owned(), Arc::clone(&hub));
        Ok(hub)
    }

    /// A console by its name, or by the id or the full name of its DUT.
    pub fn get(&self, name: &str) -> Option<Arc<Hub>> {
        let hubs = self.lock();
        let of_the_dut = |hub: &&Arc<Hub>| {
            self.desk.owner(hub.name()).is_some_and(|owner| owner.id == name || owner.full_name == name)
        };
        hubs.get(name).or_else(|| hubs.values().find(of_the_dut)).cloned()
    }

    /// All consoles, by name.
    pub fn all(&self) -> Vec<Arc<Hub>> {
        self.lock().values().cloned().collect()
    }

    /// Closes a console for a reason. Its log stays.
    pub fn close(&self, name: &str, reason: &str) {
        if let Some(hub) = self.lock().remove(name) {
            hub.close(reason);
        }
        self.desk.forget(name);
    }

    /// Closes all of them, at the farm's end.
    pub fn stop(&self) {
        self.all().iter().for_each(|hub| hub.close("the farm was stopped"));
    }

    /// Whose a console is from now on; `None`: it belongs to no DUT.
    pub fn belongs_to(&self, console: &str, owner: Option<Owner>) {
        self.desk.belongs_to(console, owner);
    }

    /// Whose a console is.
    pub fn owner(&self, console: &str) -> Option<Owner> {
        self.desk.owner(console)
    }

    /// Who was believed last on a console.
    pub fn machine_id(&self, console: &str) -> Option<String> {
        self.desk.machine_id(console)
    }

    /// What machines say of themselves from now on, on any console, believed or not.
    pub fn subscribe(&self) -> broadcast::Receiver<Heard> {
        self.desk.subscribe()
    }

    /// While the value lives, machines on consoles that belong to no DUT are answered and believed.
    pub fn discover(&self) -> Discovery {
        self.desk.discover()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Hub>>> {
        self.hubs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
