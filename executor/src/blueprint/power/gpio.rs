//! Relays on lines of this host's GPIO chips, by the kernel's character device.
//!
//! ```text
//!  state ─► the line as it is: no direction is changed by looking
//!  set ───► the line becomes an output with this value, and stays requested by us: nobody else changes it meanwhile
//! ```
//! What a line does when its holder ends is the chip's affair (Documentation/userspace-api/gpio/chardev.rst promises nothing): most keep the value, so that a
//! machine goes on over a restart of the server, and the next server reads it as it is.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use gpiocdev::Request;
use gpiocdev::line::{Offset, Value};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Outlet, OutletInfo, Pdu, PowerError, PowerState, position};
use crate::blueprint::driver::{self, Context, Mistake};

/// Lines of a GPIO chip of this host.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["chip", "outlets"]))]
pub struct Keys {
    /// The chip: `gpiochip0`, or a path.
    chip: String,
    /// Its lines by the outlets' names: `{"1": 17}`.
    outlets: BTreeMap<String, u32>,
    /// Which level of a line means on.
    active: Active,
}

/// Which level means on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Active {
    /// The line is high when the outlet is on.
    #[default]
    High,
    /// The line is low when the outlet is on, as relay boards with optocouplers have it.
    Low,
}

impl driver::Keys<dyn Pdu> for Keys {
    fn build(self, context: &Context<'_>) -> Result<Arc<dyn Pdu>, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        if self.chip.is_empty() {
            mistakes.push(Mistake::new("chip", "no chip is named", "`gpiodetect` lists them: `gpiochip0`"));
        }
        if self.outlets.is_empty() {
            mistakes.push(Mistake::new("outlets", "there are no outlets", "name a line: `{\"1\": 17}`"));
        }
        let mut users = BTreeMap::new();
        for (outlet, line) in &self.outlets {
            if let Some(earlier) = users.insert(line, outlet) {
                let what = format!("line {line} is already the outlet `{earlier}`");
                mistakes.push(Mistake::new("outlets", what, "give every outlet its own"));
            }
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let chip = Chip { path: Path::new("/dev").join(&self.chip), active: self.active, held: Mutex::default() };
        Ok(Arc::new(Gpio { own: context.outlet.cloned(), outlets: self.outlets, lines: Arc::new(chip) }))
    }
}

/// What a unit switches: a chip of the kernel, or a test's.
trait Lines: Send + Sync {
    fn read(&self, line: Offset) -> Result<PowerState, String>;
    fn write(&self, line: Offset, state: PowerState) -> Result<(), String>;
}

struct Gpio<L> {
    own: Option<Outlet>,
    outlets: BTreeMap<String, Offset>,
    lines: Arc<L>,
}

impl<L: Lines + 'static> Gpio<L> {
    fn line(&self, outlet: &Outlet) -> Result<Offset, PowerError> {
        let names: Vec<String> = self.outlets.keys().cloned().collect();
        Ok(self.outlets[&names[position(outlet, self.own.as_ref(), &names)?]])
    }

    /// A chip behind a slow bus takes its time: it is not spent on a thread of the runtime's.
    async fn with<T: Send + 'static>(
        &self,
        outlet: &Outlet,
        act: impl FnOnce(&L, Offset) -> Result<T, String> + Send + 'static,
    ) -> Result<T, PowerError> {
        let (lines, line) = (Arc::clone(&self.lines), self.line(outlet)?);
        let acted = tokio::task::spawn_blocking(move || act(&lines, line)).await;
        acted.map_err(|error| error.to_string()).flatten().map_err(|reason| PowerError::of(outlet, reason))
    }
}

impl<L: Lines + 'static> Pdu for Gpio<L> {
    fn set<'a>(&'a self, outlet: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>> {
        self.with(outlet, move |lines, line| lines.write(line, state)).boxed()
    }

    fn state<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>> {
        self.with(outlet, |lines, line| lines.read(line)).boxed()
    }

    fn outlets(&self) -> BoxFuture<'_, Result<Option<Vec<OutletInfo>>, PowerError>> {
        let outlets = self.outlets.keys().map(OutletInfo::named).collect();
        async { Ok(Some(outlets)) }.boxed()
    }
}

/// A chip of this host. A line that was asked for once stays ours.
struct Chip {
    path: PathBuf,
    active: Active,
    held: Mutex<BTreeMap<Offset, Request>>,
}

impl Chip {
    fn with<T>(&self, line: Offset, act: impl FnOnce(&Request) -> gpiocdev::Result<T>) -> Result<T, String> {
        let failed = |error: gpiocdev::Error| format!("line {line} of {}: {error}", self.path.display());
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Vacant(free) = held.entry(line) {
            let mut asked = Request::builder();
            asked.on_chip(&self.path).with_consumer("wharf").with_line(line).as_is();
            match self.active {
                Active::High => asked.as_active_high(),
                Active::Low => asked.as_active_low(),
            };
            free.insert(asked.request().map_err(failed)?);
        }
        act(&held[&line]).map_err(failed)
    }
}

impl Lines for Chip {
    fn read(&self, line: Offset) -> Result<PowerState, String> {
        let value = self.with(line, |request| request.value(line))?;
        Ok(match value {
            Value::Active => PowerState::On,
            Value::Inactive => PowerState::Off,
        })
    }

    fn write(&self, line: Offset, state: PowerState) -> Result<(), String> {
        let value = match state {
            PowerState::On => Value::Active,
            PowerState::Off => Value::Inactive,
        };
        self.with(line, |request| {
            let mut config = request.config();
            config.with_line(line).as_output(value);
            request.reconfigure(&config)
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::blueprint::power::recorded_tests::{build, mistakes, outlet};

    /// A chip that remembers: few hosts of tests have a real one.
    #[derive(Default)]
    struct Fake(Mutex<BTreeMap<Offset, PowerState>>);

    impl Lines for Fake {
        fn read(&self, line: Offset) -> Result<PowerState, String> {
            Ok(self.0.lock().unwrap().get(&line).copied().unwrap_or(PowerState::Off))
        }

        fn write(&self, line: Offset, state: PowerState) -> Result<(), String> {
            self.0.lock().unwrap().insert(line, state);
            Ok(())
        }
    }

    #[tokio::test]
    async fn an_outlet_is_its_line() {
        let outlets = BTreeMap::from([("left".to_owned(), 17), ("right".to_owned(), 27)]);
        let pdu = Gpio { own: None, outlets, lines: Arc::new(Fake::default()) };
        pdu.set(&outlet("right"), PowerState::On).await.unwrap();
        assert_eq!(*pdu.lines.0.lock().unwrap(), BTreeMap::from([(27, PowerState::On)]));
        assert_eq!(pdu.state(&outlet("right")).await.unwrap(), PowerState::On);
        assert_eq!(pdu.state(&outlet("left")).await.unwrap(), PowerState::Off);
        let told = pdu.state(&outlet("17")).await.unwrap_err().to_string();
        assert_eq!(told, "outlet `17`: no such outlet; outlets: left, right");
    }

    #[tokio::test]
    async fn a_chip_that_is_not_there_is_told_with_its_line() {
        let pdu = build::<Keys>(&json!({ "chip": "gpiochip-none", "outlets": { "1": 4 } }), Some("board"));
        let told = pdu.set(&outlet("board"), PowerState::On).await.unwrap_err().to_string();
        assert!(told.starts_with("outlet `board`: line 4 of /dev/gpiochip-none: "), "{told}");
    }

    #[test]
    fn one_line_is_one_outlet() {
        let keys = json!({ "chip": "", "outlets": { "1": 4, "2": 4 } });
        let told = ["chip: no chip is named", "outlets: line 4 is already the outlet `1`"];
        assert_eq!(mistakes::<Keys>(&keys, None), told);
    }
}
