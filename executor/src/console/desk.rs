//! Whether a machine is believed that says who it is on a console (SALAD, `salad.rs`).
//!
//! | the console | `machine_id=X` | `ping` |
//! |---|---|---|
//! | belongs to X (its id, MAC or full name) | taken | pong |
//! | belongs to another DUT | refused, and the farm's log says so | pong |
//! | belongs to none, and a discovery runs | taken, unless X is a DUT with another console | pong |
//! | belongs to none | refused | nothing |
//!
//! Everything that is heard, taken or not, is told to those who subscribe.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::broadcast;

use super::salad::Word;

/// News that a subscriber may be behind: a boot of each of 100 machines, twice. One that is later misses the oldest.
const NEWS_MAX: usize = 256;
/// A machine pings until it is answered: four times a second is often enough, and nobody can have us type without end.
const PONG_EVERY: Duration = Duration::from_millis(250);
/// The same word of the same console is news again after this time: a console that repeats it fills neither the log nor a subscriber's queue.
const NEWS_EVERY: Duration = Duration::from_secs(1);
/// A refusal that goes on is said again after this time.
const REFUSAL_EVERY: Duration = Duration::from_secs(60);

/// Whose console it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// What jobs name the DUT by.
    pub id: String,
    /// Its full name.
    pub full_name: String,
    /// The MAC it boots with, lower case with colons.
    pub mac: String,
}

/// What was heard on a console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The console.
    pub console: String,
    /// The DUT it belongs to, by id; `None`: to none.
    pub dut: Option<String>,
    /// What was said.
    pub word: Word,
    /// When.
    pub at: Timestamp,
    /// Why it is not believed; `None`: it is.
    pub refused: Option<String>,
}

/// What is typed in answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Nothing,
    Pong,
}

/// Who is believed.
pub(super) struct Desk {
    owners: Mutex<BTreeMap<String, Known>>,
    discoveries: AtomicUsize,
    news: broadcast::Sender<Heard>,
}

/// What is known of a console.
#[derive(Default)]
struct Known {
    owner: Option<Owner>,
    ponged: Option<Timestamp>,
    told: Option<(Word, Timestamp)>,
    refused: Option<Timestamp>,
    machine_id: Option<String>,
}

/// While it lives, consoles that belong to no DUT are answered and believed.
pub struct Discovery(Arc<Desk>);

impl Desk {
    pub(super) fn new() -> Arc<Desk> {
        let news = broadcast::channel(NEWS_MAX).0;
        Arc::new(Desk { owners: Mutex::default(), discoveries: AtomicUsize::new(0), news })
    }

    /// Whose a console is from now on.
    pub(super) fn belongs_to(&self, console: &str, owner: Option<Owner>) {
        let mut known = self.lock();
        let known = known.entry(console.to_owned()).or_default();
        if known.owner != owner {
            *known = Known { owner, ..Known::default() };
        }
    }

    /// The console is no more.
    pub(super) fn forget(&self, console: &str) {
        self.lock().remove(console);
    }

    /// Whose a console is.
    pub(super) fn owner(&self, console: &str) -> Option<Owner> {
        self.lock().get(console)?.owner.clone()
    }

    /// Who was believed last on a console.
    pub(super) fn machine_id(&self, console: &str) -> Option<String> {
        self.lock().get(console)?.machine_id.clone()
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Heard> {
        self.news.subscribe()
    }

    pub(super) fn discover(self: &Arc<Self>) -> Discovery {
        self.discoveries.fetch_add(1, Ordering::SeqCst);
        Discovery(Arc::clone(self))
    }

    /// A machine said this on a console.
    pub(super) fn heard(&self, console: &str, word: Word, at: Timestamp) -> Answer {
        let mut all = self.lock();
        let refused = self.refusal(&all, console, &word);
        let known = all.entry(console.to_owned()).or_default();
        if let (Word::MachineId(id), None) = (&word, &refused) {
            known.machine_id = Some(id.clone());
        }
        if let Some(why) = &refused
            && is_due(known.refused, at, REFUSAL_EVERY)
        {
            known.refused = Some(at);
            tracing::warn!(console, why, "a machine is not believed");
        }
        let is_news =
            known.told.as_ref().is_none_or(|(told, when)| *told != word || is_due(Some(*when), at, NEWS_EVERY));
        if is_news {
            known.told = Some((word.clone(), at));
            let dut = known.owner.as_ref().map(|owner| owner.id.clone());
            let heard = Heard { console: console.to_owned(), dut, word: word.clone(), at, refused: refused.clone() };
            // With nobody who listens it is no news.
            let _ = self.news.send(heard);
        }
        if word == Word::Ping && refused.is_none() && is_due(known.ponged, at, PONG_EVERY) {
            known.ponged = Some(at);
            return Answer::Pong;
        }
        Answer::Nothing
    }

    fn refusal(&self, all: &BTreeMap<String, Known>, console: &str, word: &Word) -> Option<String> {
        let owner = all.get(console).and_then(|known| known.owner.as_ref());
        match (owner, word) {
            (Some(_), Word::Ping) => None,
            (Some(owner), Word::MachineId(id)) if owner.is(id) => None,
            (Some(owner), Word::MachineId(id)) => {
                Some(format!("it says that it is `{id}` on the console of {}", owner.full_name))
            }
            (None, _) if self.discoveries.load(Ordering::SeqCst) == 0 => {
                Some("the console belongs to no DUT, and no discovery runs".into())
            }
            (None, Word::Ping) => None,
            (None, Word::MachineId(id)) => {
                let other = all.iter().find(|(_, known)| known.owner.as_ref().is_some_and(|owner| owner.is(id)));
                other.map(|(other, _)| format!("it says that it is `{id}`, whose console is {other}"))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.0.discoveries.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Owner {
    /// Machines know themselves by the id that they were booted with, which a template may have from any of the three.
    fn is(&self, id: &str) -> bool {
        id == self.id || id == self.full_name || id.to_ascii_lowercase().replace('-', ":") == self.mac
    }
}

fn is_due(before: Option<Timestamp>, now: Timestamp, every: Duration) -> bool {
    let every = i128::try_from(every.as_nanos()).unwrap_or(i128::MAX);
    // A clock that was put back makes everything due.
    before.is_none_or(|before| now < before || now.duration_since(before).as_nanos() >= every)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(1_763_000_000_000 + milliseconds).unwrap()
    }

    fn left() -> Owner {
        Owner { id: "left".into(), full_name: "lab-dut-1".into(), mac: "52:54:00:77:00:01".into() }
    }

    fn id(id: &str) -> Word {
        Word::MachineId(id.into())
    }

    fn refused(desk: &Desk, console: &str, word: Word) -> Option<String> {
        let mut news = desk.subscribe();
        desk.heard(console, word, at(0));
        news.try_recv().unwrap().refused
    }

    #[test]
    fn a_dut_is_believed_on_its_own_console_by_any_of_its_names() {
        for name in ["left", "lab-dut-1", "52:54:00:77:00:01", "52-54-00-77-00-01"] {
            let desk = Desk::new();
            desk.belongs_to("left.console", Some(left()));
            assert_eq!(refused(&desk, "left.console", id(name)), None);
            assert_eq!(desk.machine_id("left.console").as_deref(), Some(name));
        }
    }

    #[test]
    fn a_machine_that_takes_anothers_name_is_refused() {
        let desk = Desk::new();
        desk.belongs_to("left.console", Some(left()));
        let why = refused(&desk, "left.console", id("right"));
        assert_eq!(why.as_deref(), Some("it says that it is `right` on the console of lab-dut-1"));
        assert_eq!(desk.machine_id("left.console"), None);
        desk.belongs_to("line-3", None);
        let discovery = desk.discover();
        let why = refused(&desk, "line-3", id("left"));
        assert_eq!(why.as_deref(), Some("it says that it is `left`, whose console is left.console"));
        drop(discovery);
    }

    #[test]
    fn a_line_that_belongs_to_no_dut_is_believed_while_a_discovery_runs() {
        let desk = Desk::new();
        desk.belongs_to("line-3", None);
        let closed = Some("the console belongs to no DUT, and no discovery runs".to_owned());
        assert_eq!(refused(&desk, "line-3", id("new")), closed);
        assert_eq!(desk.heard("line-3", Word::Ping, at(1000)), Answer::Nothing);
        let discovery = desk.discover();
        assert_eq!(desk.heard("line-3", Word::Ping, at(2000)), Answer::Pong);
        assert_eq!(refused(&desk, "line-3", id("new")), None);
        drop(discovery);
        assert_eq!(refused(&desk, "line-3", Word::Ping), closed);
    }

    #[test]
    fn pings_and_names_without_end_cost_four_answers_and_a_piece_of_news_a_second() {
        let desk = Desk::new();
        desk.belongs_to("left.console", Some(left()));
        let mut news = desk.subscribe();
        let pongs = (0..1000).filter(|time| desk.heard("left.console", Word::Ping, at(*time)) == Answer::Pong).count();
        assert_eq!(pongs, 4);
        assert_eq!(std::iter::from_fn(|| news.try_recv().ok()).count(), 1);
    }
}
