//! Shelly relays and plugs over their own HTTP interface, of the first generation and of those since.
//!
//! ```text
//!  GET /shelly ─► `gen` missing: 1                                    ─► `gen` 2, 3, …: RPC over GET
//!  states, meters   GET /status      relays[n].ison, meters[n]            GET /rpc/Shelly.GetStatus     "switch:n": output, apower, aenergy
//!  switch           GET /relay/n?turn=on      ison                        GET /rpc/Switch.Set?id=n&on=true
//! ```
//! Outlets are the unit's own numbers, from 0. Written from the vendor's documents: shelly-api-docs.shelly.cloud/gen1 (`/shelly`, `/status`,
//! `/relay/{index}`, `/meter/{index}`: total in watt-minutes) and …/gen2 (General/Authentication: digest with SHA-256, user always `admin`, `/shelly`
//! needs none; ComponentsAndServices/Switch: `aenergy.total` in watt-hours). Which numbers a unit has is what its status lists: a list of models
//! here would be wrong with the next one.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::web::{Request, shown, url};
use super::{Outlet, OutletInfo, Pdu, PowerError, PowerState, Reading, position};
use crate::blueprint::driver::{self, Context, Mistake};

/// A Shelly of any generation.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["host"]))]
pub struct Keys {
    /// Its address or name, with a port where it is not 80.
    host: String,
    /// Who logs in; only the first generation knows others than `admin`.
    user: Option<String>,
    /// The password, where one is set.
    password: Option<String>,
}

impl driver::Keys<dyn Pdu> for Keys {
    fn build(self, context: &Context<'_>) -> Result<Arc<dyn Pdu>, Vec<Mistake>> {
        let hint = "write its address: `10.0.0.30`";
        url(&self.host, "/").map_err(|what| vec![Mistake::new("host", what, hint)])?;
        Ok(Arc::new(Shelly { own: context.outlet.cloned(), keys: self }))
    }
}

struct Shelly {
    own: Option<Outlet>,
    keys: Keys,
}

/// What `/shelly` says of itself, of what is needed here.
#[derive(Deserialize)]
struct Introduction {
    /// The first generation has no such field.
    #[serde(rename = "gen")]
    generation: Option<u32>,
}

/// `/status` of the first generation.
#[derive(Deserialize)]
struct FirstStatus {
    #[serde(default)]
    relays: Vec<FirstRelay>,
    #[serde(default)]
    meters: Vec<FirstMeter>,
}

#[derive(Deserialize)]
struct FirstRelay {
    ison: bool,
}

#[derive(Deserialize)]
struct FirstMeter {
    power: f64,
    /// Watt-minutes. A Shelly 1, which has no meter, shows one without it.
    total: Option<f64>,
}

/// One `switch:n` of the later generations.
#[derive(Deserialize)]
struct Switch {
    output: bool,
    apower: Option<f64>,
    aenergy: Option<Energy>,
}

#[derive(Deserialize)]
struct Energy {
    /// Watt-hours.
    total: f64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Generation {
    First,
    Later,
}

/// An outlet as either generation tells of it.
struct Relay {
    number: String,
    state: PowerState,
    reading: Option<Reading>,
}

const SECONDS_A_MINUTE: f64 = 60.0;
const SECONDS_AN_HOUR: f64 = 3600.0;

impl Shelly {
    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        let user = self.keys.user.clone().unwrap_or_else(|| "admin".to_owned());
        let login = self.keys.password.clone().map(|password| (user, password));
        let request = Request { login, ..Request::get(url(&self.keys.host, path)?) };
        let text = request.send().await?.accepted(&self.keys.host)?;
        serde_json::from_str(&text).map_err(|_| format!("{} is not answered as a Shelly would: {}", path, shown(&text)))
    }

    /// Asked each time: a unit that was replaced may be of another generation.
    async fn generation(&self) -> Result<Generation, String> {
        let introduction: Introduction = self.ask("/shelly").await?;
        Ok(if introduction.generation.is_some_and(|generation| generation >= 2) {
            Generation::Later
        } else {
            Generation::First
        })
    }

    async fn relays(&self) -> Result<(Generation, Vec<Relay>), String> {
        let generation = self.generation().await?;
        let relays = match generation {
            Generation::First => {
                let status: FirstStatus = self.ask("/status").await?;
                let meter = |index: usize| status.meters.get(index).and_then(FirstMeter::reading);
                let relays = status.relays.iter().enumerate();
                relays.map(|(index, relay)| Relay::new(index.to_string(), relay.ison, meter(index))).collect()
            }
            Generation::Later => {
                let status: BTreeMap<String, serde_json::Value> = self.ask("/rpc/Shelly.GetStatus").await?;
                let mut switches = Vec::new();
                for (key, value) in status {
                    let Some(number) = key.strip_prefix("switch:") else { continue };
                    let wrong = |_| format!("`{key}` is not as a Shelly's: {}", shown(&value.to_string()));
                    let switch = Switch::deserialize(&value).map_err(wrong)?;
                    switches.push(Relay::new(number.to_owned(), switch.output, switch.reading()));
                }
                switches.sort_by_key(|relay| relay.number.parse::<u32>().unwrap_or(u32::MAX));
                switches
            }
        };
        Ok((generation, relays))
    }

    async fn relay(&self, outlet: &Outlet) -> Result<(Generation, Relay), PowerError> {
        let (generation, mut relays) = self.relays().await.map_err(|reason| PowerError::of(outlet, reason))?;
        let numbers: Vec<String> = relays.iter().map(|relay| relay.number.clone()).collect();
        let position = position(outlet, self.own.as_ref(), &numbers)?;
        Ok((generation, relays.swap_remove(position)))
    }

    async fn switch(&self, outlet: &Outlet, state: PowerState) -> Result<(), PowerError> {
        let (generation, Relay { number, .. }) = self.relay(outlet).await?;
        let failed = |reason: String| PowerError::of(outlet, reason);
        match generation {
            Generation::First => {
                let relay: FirstRelay = self.ask(&format!("/relay/{number}?turn={state}")).await.map_err(failed)?;
                let told = state_of(relay.ison);
                // An overloaded relay says off to `turn=on`.
                if told == state { Ok(()) } else { Err(failed(format!("told to go {state}, the unit says {told}"))) }
            }
            Generation::Later => {
                let on = state == PowerState::On;
                let path = format!("/rpc/Switch.Set?id={number}&on={on}");
                self.ask::<serde_json::Value>(&path).await.map(drop).map_err(failed)
            }
        }
    }
}

impl Relay {
    fn new(number: String, output: bool, reading: Option<Reading>) -> Self {
        Relay { number, state: state_of(output), reading }
    }
}

impl FirstMeter {
    fn reading(&self) -> Option<Reading> {
        let joules = self.total? * SECONDS_A_MINUTE;
        Some(Reading { watts: Some(self.power), joules: Some(joules) })
    }
}

impl Switch {
    fn reading(&self) -> Option<Reading> {
        let joules = self.aenergy.as_ref().map(|energy| energy.total * SECONDS_AN_HOUR);
        self.apower.or(joules).map(|_| Reading { watts: self.apower, joules })
    }
}

/// What their JSON says.
fn state_of(output: bool) -> PowerState {
    if output { PowerState::On } else { PowerState::Off }
}

impl Pdu for Shelly {
    fn set<'a>(&'a self, outlet: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>> {
        self.switch(outlet, state).boxed()
    }

    fn state<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>> {
        async { Ok(self.relay(outlet).await?.1.state) }.boxed()
    }

    fn outlets(&self) -> BoxFuture<'_, Result<Option<Vec<OutletInfo>>, PowerError>> {
        async {
            let (_, relays) = self.relays().await.map_err(|reason| PowerError { outlet: "all".to_owned(), reason })?;
            Ok(Some(relays.into_iter().map(|relay| OutletInfo::named(relay.number)).collect()))
        }
        .boxed()
    }

    fn meter<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<Option<Reading>, PowerError>> {
        async { Ok(self.relay(outlet).await?.1.reading) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::blueprint::power::recorded_tests::{Recorded, build, exchange, mistakes, outlet};

    #[tokio::test]
    async fn one_of_the_first_generation_switches_and_counts_watt_minutes() {
        let unit = Recorded::http(&exchange("shelly-gen1.txt")).await;
        let pdu = build::<Keys>(&json!({ "host": unit.host() }), None);
        let (first, second) = (outlet("0"), outlet("1"));
        assert_eq!(pdu.state(&first).await.unwrap(), PowerState::Off);
        pdu.set(&second, PowerState::On).await.unwrap();
        assert_eq!(pdu.state(&second).await.unwrap(), PowerState::On);
        let reading = Reading { watts: Some(12.4), joules: Some(720.0) };
        assert_eq!(pdu.meter(&second).await.unwrap(), Some(reading));
        let told = pdu.set(&second, PowerState::On).await.unwrap_err().to_string();
        assert_eq!(told, "outlet `1`: told to go on, the unit says off");
        let told = pdu.set(&outlet("2"), PowerState::On).await.unwrap_err().to_string();
        assert_eq!(told, "outlet `2`: no such outlet; outlets: 0, 1");
        let known: Vec<String> = pdu.outlets().await.unwrap().unwrap().into_iter().map(|it| it.outlet.0).collect();
        assert_eq!(known, ["0", "1"]);
        unit.was_played_to_its_end();
    }

    #[tokio::test]
    async fn one_of_the_second_switches_and_counts_watt_hours() {
        let unit = Recorded::http(&exchange("shelly-gen2.txt")).await;
        let pdu = build::<Keys>(&json!({ "host": unit.host() }), Some("board-1"));
        // A plug has one outlet: a machine of its own need not name it.
        let own = outlet("board-1");
        assert_eq!(pdu.state(&own).await.unwrap(), PowerState::Off);
        pdu.set(&own, PowerState::On).await.unwrap();
        pdu.set(&own, PowerState::Off).await.unwrap();
        let reading = Reading { watts: Some(8.9), joules: Some(6.532 * 3600.0) };
        assert_eq!(pdu.meter(&outlet("0")).await.unwrap(), Some(reading));
        unit.was_played_to_its_end();
    }

    #[tokio::test]
    async fn a_password_is_proved_by_digest_and_never_said() {
        let unit = Recorded::http(&exchange("shelly-gen2-password.txt")).await;
        let keys = json!({ "host": unit.host(), "password": "mysecretpassword" });
        assert_eq!(build::<Keys>(&keys, None).state(&outlet("0")).await.unwrap(), PowerState::Off);
        let told = build::<Keys>(&json!({ "host": unit.host() }), None).state(&outlet("0")).await.unwrap_err().reason;
        assert_eq!(told, format!("{} refuses the login: give `user` and `password` in the farm file", unit.host()));
        unit.was_played_to_its_end();
    }

    #[tokio::test]
    async fn what_is_no_shelly_is_told_by_its_answer() {
        let unit = Recorded::http("> GET /shelly\n< 200 <html>printer</html>\n").await;
        let pdu = build::<Keys>(&json!({ "host": unit.host() }), None);
        let told = pdu.state(&outlet("0")).await.unwrap_err().reason;
        assert_eq!(told, "/shelly is not answered as a Shelly would: `<html>printer</html>`");
        assert_eq!(
            mistakes::<Keys>(&json!({ "host": "http://10.0.0.9" }), None),
            ["host: `http://10.0.0.9` is not a host"]
        );
    }
}
