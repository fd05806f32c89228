//! Plugs and relays that run Tasmota, over its web requests.
//!
//! ```text
//!  states   /cm?cmnd=Status 11 ─► StatusSTS: POWER, or POWER1, POWER2, …: as many outlets
//!  switch   /cm?cmnd=Power2 On ─► {"POWER2":"ON"}
//!  meter    /cm?cmnd=Status 10 ─► StatusSNS.ENERGY: Power in watts, Total in kilowatt-hours; lists where each outlet has its own
//! ```
//! Outlets are numbered from 1. Written from tasmota.github.io/docs/Commands (web requests, `Power<x>`, `Status`; user and password are part of the URL)
//! and …/JSON-Status-Responses (`POWER` without a number where there is one relay; the words are those that `StateText<x>` sets). The bits of
//! `Status` are not used: they are a number before version 14 and text since (snaptec/openWB issue 2839).

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::web::{Request, shown, url};
use super::{Outlet, OutletInfo, Pdu, PowerError, PowerState, Reading, position};
use crate::blueprint::driver::{self, Context, Mistake};

/// A unit that runs Tasmota.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["host"]))]
pub struct Keys {
    /// Its address or name, with a port where it is not 80.
    host: String,
    /// Who logs in; `admin` unless the firmware was built otherwise.
    user: Option<String>,
    /// The password of its web interface, where one is set. It is sent in clear.
    password: Option<String>,
}

impl driver::Keys<dyn Pdu> for Keys {
    fn build(self, context: &Context<'_>) -> Result<Arc<dyn Pdu>, Vec<Mistake>> {
        let hint = "write its address: `10.0.0.31`";
        url(&self.host, "/").map_err(|what| vec![Mistake::new("host", what, hint)])?;
        Ok(Arc::new(Tasmota { own: context.outlet.cloned(), keys: self }))
    }
}

struct Tasmota {
    own: Option<Outlet>,
    keys: Keys,
}

/// An outlet: its number, and what it is called in answers.
struct Relay {
    number: String,
    key: String,
    word: String,
}

const JOULES_A_KILOWATT_HOUR: f64 = 3_600_000.0;

impl Tasmota {
    async fn command(&self, command: &str) -> Result<Value, String> {
        let mut url = url(&self.keys.host, "/cm")?;
        if let Some(password) = &self.keys.password {
            let user = self.keys.user.as_deref().unwrap_or("admin");
            url.query_pairs_mut().append_pair("user", user).append_pair("password", password);
        }
        // A space is %20, not the plus of forms: the documents have it so.
        let query = [url.query(), Some(&format!("cmnd={}", command.replace(' ', "%20")))]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join("&");
        url.set_query(Some(&query));
        let text = Request::get(url).send().await?.accepted(&self.keys.host)?;
        let said = || format!("`{command}` was answered with {}", shown(&text));
        let answer: Value = serde_json::from_str(&text).map_err(|_| said())?;
        // {"WARNING":"Need user=<username>&password=<password>"}
        if answer.get("WARNING").is_some() {
            return Err(format!("{} refuses the login: give `password` in the farm file", self.keys.host));
        }
        Ok(answer)
    }

    async fn relays(&self) -> Result<Vec<Relay>, String> {
        let answer = self.command("Status 11").await?;
        let status = answer.get("StatusSTS").and_then(Value::as_object);
        let status = status.ok_or_else(|| format!("`Status 11` was answered with {}", shown(&answer.to_string())))?;
        let relay = |(key, word): (&String, &Value)| {
            let number = key.strip_prefix("POWER")?;
            let number = if number.is_empty() { 1 } else { number.parse::<u32>().ok()? };
            Some((number, Relay { number: number.to_string(), key: key.clone(), word: word.as_str()?.to_owned() }))
        };
        let mut relays: Vec<(u32, Relay)> = status.iter().filter_map(relay).collect();
        relays.sort_by_key(|(number, _)| *number);
        Ok(relays.into_iter().map(|(_, relay)| relay).collect())
    }

    /// The outlet, and how many there are.
    async fn relay(&self, outlet: &Outlet) -> Result<(Relay, usize), PowerError> {
        let mut relays = self.relays().await.map_err(|reason| PowerError::of(outlet, reason))?;
        let numbers: Vec<String> = relays.iter().map(|relay| relay.number.clone()).collect();
        let position = position(outlet, self.own.as_ref(), &numbers)?;
        Ok((relays.swap_remove(position), numbers.len()))
    }

    async fn switch(&self, outlet: &Outlet, state: PowerState) -> Result<(), PowerError> {
        let (relay, _) = self.relay(outlet).await?;
        let failed = |reason: String| PowerError::of(outlet, reason);
        let word = match state {
            PowerState::On => "On",
            PowerState::Off => "Off",
        };
        let command = format!("Power{} {word}", relay.number);
        let answer = self.command(&command).await.map_err(failed)?;
        let said = answer.get(&relay.key).and_then(Value::as_str);
        let said =
            said.ok_or_else(|| failed(format!("`{command}` was answered with {}", shown(&answer.to_string()))))?;
        let told = state_of(said).map_err(failed)?;
        if told == state { Ok(()) } else { Err(failed(format!("told to go {state}, the unit says {told}"))) }
    }

    async fn measure(&self, outlet: &Outlet) -> Result<Option<Reading>, PowerError> {
        let (relay, relays) = self.relay(outlet).await?;
        let answer = self.command("Status 10").await.map_err(|reason| PowerError::of(outlet, reason))?;
        let Some(energy) = answer.pointer("/StatusSNS/ENERGY") else { return Ok(None) };
        // One number of a unit with several outlets is all of them together: it says nothing of one.
        let number = |name: &str| match &energy[name] {
            Value::Array(each) => each.get(relay.number.parse::<usize>().ok()?.checked_sub(1)?)?.as_f64(),
            one if relays == 1 => one.as_f64(),
            _ => None,
        };
        let (watts, joules) = (number("Power"), number("Total").map(|hours| hours * JOULES_A_KILOWATT_HOUR));
        Ok(watts.or(joules).map(|_| Reading { watts, joules }))
    }
}

/// The unit's words, which its owner may change.
fn state_of(word: &str) -> Result<PowerState, String> {
    match word.to_ascii_uppercase().as_str() {
        "ON" | "1" => Ok(PowerState::On),
        "OFF" | "0" => Ok(PowerState::Off),
        _ => Err(format!(
            "the unit says `{word}` for its state: give it its own words again, `StateText1 OFF` and `StateText2 ON`"
        )),
    }
}

impl Pdu for Tasmota {
    fn set<'a>(&'a self, outlet: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>> {
        self.switch(outlet, state).boxed()
    }

    fn state<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>> {
        async { state_of(&self.relay(outlet).await?.0.word).map_err(|reason| PowerError::of(outlet, reason)) }.boxed()
    }

    fn outlets(&self) -> BoxFuture<'_, Result<Option<Vec<OutletInfo>>, PowerError>> {
        async {
            let relays = self.relays().await.map_err(|reason| PowerError { outlet: "all".to_owned(), reason })?;
            Ok(Some(relays.into_iter().map(|relay| OutletInfo::named(relay.number)).collect()))
        }
        .boxed()
    }

    fn meter<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<Option<Reading>, PowerError>> {
        self.measure(outlet).boxed()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::blueprint::power::recorded_tests::{Recorded, build, exchange, outlet};

    #[tokio::test]
    async fn a_plug_switches_and_counts_kilowatt_hours() {
        let unit = Recorded::http(&exchange("tasmota-plug.txt")).await;
        let pdu = build::<Keys>(&json!({ "host": unit.host() }), Some("board-1"));
        let own = outlet("board-1");
        assert_eq!(pdu.state(&own).await.unwrap(), PowerState::Off);
        pdu.set(&own, PowerState::On).await.unwrap();
        let reading = Reading { watts: Some(12.0), joules: Some(3.185 * 3_600_000.0) };
        assert_eq!(pdu.meter(&own).await.unwrap(), Some(reading));
        unit.was_played_to_its_end();
    }

    #[tokio::test]
    async fn one_with_several_relays_numbers_them_and_has_no_meter_for_each() {
        let unit = Recorded::http(&exchange("tasmota-relays.txt")).await;
        let pdu = build::<Keys>(&json!({ "host": unit.host(), "password": "jo&ker" }), None);
        assert_eq!(pdu.state(&outlet("2")).await.unwrap(), PowerState::On);
        pdu.set(&outlet("2"), PowerState::Off).await.unwrap();
        assert_eq!(pdu.meter(&outlet("1")).await.unwrap(), None);
        let known: Vec<String> = pdu.outlets().await.unwrap().unwrap().into_iter().map(|it| it.outlet.0).collect();
        assert_eq!(known, ["1", "2"]);
        let told = pdu.set(&outlet("3"), PowerState::Off).await.unwrap_err().to_string();
        assert_eq!(told, "outlet `3`: no such outlet; outlets: 1, 2");
        unit.was_played_to_its_end();
    }

    #[tokio::test]
    async fn a_wrong_password_and_changed_words_are_told_and_the_password_is_not() {
        let unit = Recorded::http(
            "> GET /cm?user=admin&password=secret&cmnd=Status%2011\n< 200 {\"WARNING\":\"Need user=<username>&password=<password>\"}\n\
             > GET /cm?user=admin&password=secret&cmnd=Status%2011\n< 200 {\"StatusSTS\":{\"POWER\":\"AN\"}}\n",
        )
        .await;
        let pdu = build::<Keys>(&json!({ "host": unit.host(), "password": "secret" }), None);
        let told = pdu.state(&outlet("1")).await.unwrap_err().reason;
        assert_eq!(told, format!("{} refuses the login: give `password` in the farm file", unit.host()));
        let told = pdu.state(&outlet("1")).await.unwrap_err().reason;
        assert_eq!(
            told,
            "the unit says `AN` for its state: give it its own words again, `StateText1 OFF` and `StateText2 ON`"
        );
        let gone = build::<Keys>(&json!({ "host": "127.0.0.1:1", "password": "secret" }), None);
        let told = gone.state(&outlet("1")).await.unwrap_err().reason;
        assert_eq!(told, "127.0.0.1:1: Connection refused (os error 111)");
    }
}
