//! An outlet that a person switches: the unit asks, and waits until somebody says that it is done.
//!
//! ```text
//!  set ─► an errand: "switch outlet `1` on" ── log, `wharf pdus` ─► a person ── `wharf pdu done bench 1` ─► done
//!             │                                                       └─ `… done bench 1 off` ─► an error: it is not as wanted
//!             └─ nobody within `wait_s` ─► an error: the errand is withdrawn
//!  state ─► what a person said last; nothing is known before the first word
//! ```
//! A person may say what an outlet does without being asked, too. What was said is forgotten with the server: the next one asks again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::{Errand, Outlet, OutletInfo, Pdu, PowerError, PowerState, ReadBack, position};
use crate::blueprint::driver::{self, Context, Mistake};

/// A person on the same floor.
const WAIT_S: u32 = 900;
/// The longest that a machine waits for a person: a weekend.
const WAIT_S_MAX: u32 = 3 * 24 * 3600;
/// What is left for the answer after the wait.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// Outlets that a person switches.
#[derive(Deserialize, JsonSchema)]
#[serde(default)]
pub struct Keys {
    /// The outlets' names; a unit of one machine's own has one, and needs none.
    outlets: Vec<String>,
    /// What the person is told, besides the outlet: where it is, which switch.
    instructions: Option<String>,
    /// How long a person has for it, in seconds.
    wait_s: u32,
}

impl Default for Keys {
    fn default() -> Self {
        Keys { outlets: Vec::new(), instructions: None, wait_s: WAIT_S }
    }
}

impl driver::Keys<dyn Pdu> for Keys {
    fn build(self, context: &Context<'_>) -> Result<Arc<dyn Pdu>, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let outlets = match (self.outlets.as_slice(), context.outlet) {
            ([], Some(own)) => vec![own.0.clone()],
            ([], None) => {
                mistakes.push(Mistake::new("outlets", "there are no outlets", "name them: `[\"1\", \"2\"]`"));
                Vec::new()
            }
            (named, _) => named.to_vec(),
        };
        if !(1..=WAIT_S_MAX).contains(&self.wait_s) {
            let what = format!("`{}` is out of range", self.wait_s);
            mistakes.push(Mistake::new("wait_s", what, format!("write 1 to {WAIT_S_MAX}")));
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let wait = Duration::from_secs(self.wait_s.into());
        let (told, _) = watch::channel(BTreeMap::new());
        let (own, instructions) = (context.outlet.cloned(), self.instructions);
        Ok(Arc::new(Manual { own, outlets, instructions, wait, told, errands: Mutex::default() }))
    }
}

struct Manual {
    own: Option<Outlet>,
    outlets: Vec<String>,
    instructions: Option<String>,
    wait: Duration,
    /// What people said last, by outlet.
    told: watch::Sender<BTreeMap<String, Word>>,
    errands: Mutex<BTreeMap<String, (PowerState, Instant)>>,
}

/// What a person said, and which of his words it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word {
    state: PowerState,
    number: u64,
}

/// An errand that is out, until whoever waits for it goes.
struct Asked<'a> {
    of: &'a Manual,
    outlet: &'a str,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.of.errands().remove(self.outlet);
    }
}

impl Manual {
    fn errands(&self) -> MutexGuard<'_, BTreeMap<String, (PowerState, Instant)>> {
        self.errands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, outlet: &Outlet) -> Result<&str, PowerError> {
        Ok(&self.outlets[position(outlet, self.own.as_ref(), &self.outlets)?])
    }

    async fn ask(&self, outlet: &Outlet, state: PowerState) -> Result<(), PowerError> {
        let name = self.name(outlet)?;
        let mut told = self.told.subscribe();
        let before = told.borrow_and_update().get(name).copied();
        if before.is_some_and(|word| word.state == state) {
            return Ok(());
        }
        let _asked = Asked { of: self, outlet: name };
        self.errands().insert(name.to_owned(), (state, Instant::now()));
        let instructions = self.instructions.as_deref().unwrap_or_default();
        tracing::warn!(outlet = name, instructions, "a person must switch the outlet {state}: `wharf pdus` shows it");
        let word = timeout(self.wait, told.wait_for(|told| told.get(name).copied() != before)).await;
        let waited = self.wait.as_secs();
        let nobody = || format!("nobody has switched it {state} within {waited} s; tell with `wharf pdu done`");
        match word.ok().and_then(Result::ok).and_then(|told| told.get(name).copied()) {
            Some(word) if word.state == state => Ok(()),
            Some(word) => Err(PowerError::of(
                outlet,
                format!("asked to switch it {state}, a person says that it is {}", word.state),
            )),
            None => Err(PowerError::of(outlet, nobody())),
        }
    }

    fn known(&self, outlet: &Outlet) -> Result<PowerState, PowerError> {
        let told = self.told.borrow().get(self.name(outlet)?).copied();
        let told = told.map(|word| word.state);
        told.ok_or_else(|| PowerError::of(outlet, "nobody has said yet what it does; tell with `wharf pdu done`"))
    }
}

impl Pdu for Manual {
    fn set<'a>(&'a self, outlet: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>> {
        self.ask(outlet, state).boxed()
    }

    fn state<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>> {
        ready(self.known(outlet)).boxed()
    }

    fn outlets(&self) -> BoxFuture<'_, Result<Option<Vec<OutletInfo>>, PowerError>> {
        ready(Ok(Some(self.outlets.iter().map(OutletInfo::named).collect()))).boxed()
    }

    fn read_back(&self) -> ReadBack {
        ReadBack::Remembered
    }

    fn call_time(&self) -> Duration {
        self.wait + ANSWER_TIME
    }

    fn asks_people(&self) -> bool {
        true
    }

    fn errands(&self) -> Vec<Errand> {
        let errand = |(outlet, (state, since)): (&String, &(PowerState, Instant))| Errand {
            outlet: Outlet(outlet.clone()),
            state: *state,
            waits: since.elapsed(),
            instructions: self.instructions.clone(),
        };
        self.errands().iter().map(errand).collect()
    }

    fn told(&self, outlet: &Outlet, state: PowerState) -> Result<(), PowerError> {
        let name = self.name(outlet)?.to_owned();
        self.told.send_modify(|told| {
            let number = told.get(&name).map_or(0, |word| word.number + 1);
            told.insert(name, Word { state, number });
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::blueprint::power::recorded_tests::{build, mistakes, outlet};

    async fn until(pdu: &Arc<dyn Pdu>, errands: usize) -> Vec<Errand> {
        let waiting = async {
            while pdu.errands().len() != errands {
                tokio::task::yield_now().await;
            }
            pdu.errands()
        };
        timeout(Duration::from_secs(20), waiting).await.expect("the errand is there")
    }

    #[tokio::test]
    async fn an_outlet_is_switched_when_a_person_says_so() {
        let pdu = build::<Keys>(&json!({ "outlets": ["left", "right"], "instructions": "behind the bench" }), None);
        let right = outlet("right");
        let told = pdu.state(&right).await.unwrap_err().to_string();
        assert_eq!(told, "outlet `right`: nobody has said yet what it does; tell with `wharf pdu done`");
        let (asking, of) = (pdu.clone(), right.clone());
        let asked = tokio::spawn(async move { asking.set(&of, PowerState::On).await });
        let errand = until(&pdu, 1).await.remove(0);
        assert_eq!((errand.outlet, errand.state), (right.clone(), PowerState::On));
        assert_eq!(errand.instructions.as_deref(), Some("behind the bench"));
        // Of another outlet it is not what was asked for.
        pdu.told(&outlet("left"), PowerState::On).unwrap();
        assert_eq!(pdu.errands().len(), 1);
        pdu.told(&right, PowerState::On).unwrap();
        asked.await.unwrap().unwrap();
        assert_eq!(pdu.state(&right).await.unwrap(), PowerState::On);
        until(&pdu, 0).await;
        pdu.set(&right, PowerState::On).await.expect("what was said already needs no person");
        let told = pdu.told(&outlet("up"), PowerState::On).unwrap_err().to_string();
        assert_eq!(told, "outlet `up`: no such outlet; outlets: left, right");
    }

    #[tokio::test]
    async fn a_person_may_say_no() {
        let pdu = build::<Keys>(&json!({}), Some("board-1"));
        let own = outlet("board-1");
        let asked = tokio::spawn({
            let (pdu, own) = (pdu.clone(), own.clone());
            async move { pdu.set(&own, PowerState::On).await }
        });
        until(&pdu, 1).await;
        pdu.told(&own, PowerState::Off).unwrap();
        let told = asked.await.unwrap().unwrap_err().to_string();
        assert_eq!(told, "outlet `board-1`: asked to switch it on, a person says that it is off");
        assert_eq!(pdu.state(&own).await.unwrap(), PowerState::Off);
    }

    #[tokio::test]
    async fn an_errand_that_nobody_does_is_withdrawn() {
        let pdu = build::<Keys>(&json!({ "wait_s": 1 }), Some("board-1"));
        let told = pdu.set(&outlet("board-1"), PowerState::Off).await.unwrap_err().to_string();
        assert_eq!(told, "outlet `board-1`: nobody has switched it off within 1 s; tell with `wharf pdu done`");
        assert!(pdu.errands().is_empty());
        assert_eq!(pdu.call_time(), Duration::from_secs(2));
    }

    #[test]
    fn what_cannot_be_is_told() {
        let told = mistakes::<Keys>(&json!({ "wait_s": 0 }), None);
        assert_eq!(told, ["outlets: there are no outlets", "wait_s: `0` is out of range"]);
    }
}
