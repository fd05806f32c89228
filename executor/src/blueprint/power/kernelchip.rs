//! KernelChip relay units (Laurent-2, Laurent-112, Laurent-128): lines over TCP.
//!
//! ```text
//!  connect ─► $KE,PSW,SET,password ─► #PSW,SET,OK         where there is one
//!         ─► $KE,RDR,ALL ─► #RDR,ALL,0100…                a digit for each relay: as many outlets
//!         ─► $KE,REL,4,1 ─► #REL,OK
//! ```
//! Outlets are the relays, from 1. Written from the maker's "Laurent-2, TCP/IP commands, version 2.02" (scribd.com/document/474768183) and the exchange that
//! CI-tron's driver shows. A unit talks unasked, too (`#FLG,…`, `JConfig from FLASH`): what does not begin as the awaited answer is
//! passed over. A unit has one listener for one client: each call connects and closes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::{Outlet, OutletInfo, Pdu, PowerError, PowerState, address, position};
use crate::blueprint::driver::{self, Context, Mistake};

/// The documented port.
const PORT: u16 = 2424;
/// A whole call, with what waits before it for the unit's only listener.
const CALL_TIME: Duration = Duration::from_secs(20);
/// The longest line of a unit has 28 relays and is under 50 bytes; a unit that says this much in one call says something else.
const ANSWER_BYTES_MAX: u64 = 4096;

/// A KernelChip unit.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["host"]))]
pub struct Keys {
    /// Its address or name, with a port where it is not 2424.
    host: String,
    /// Its password, where it asks for one; the maker sets `Laurent`.
    password: Option<String>,
}

impl driver::Keys<dyn Pdu> for Keys {
    fn build(self, context: &Context<'_>) -> Result<Arc<dyn Pdu>, Vec<Mistake>> {
        let address = address(&self.host, PORT).map_err(|mistake| vec![mistake])?;
        if self.password.as_ref().is_some_and(|password| password.contains(['\r', '\n', ','])) {
            return Err(vec![Mistake::new(
                "password",
                "a comma or the end of a line would end it",
                "set another one in the unit",
            )]);
        }
        Ok(Arc::new(KernelChip {
            own: context.outlet.cloned(),
            address,
            password: self.password,
            turn: Mutex::new(()),
        }))
    }
}

struct KernelChip {
    own: Option<Outlet>,
    address: String,
    password: Option<String>,
    /// Who talks to it: one at a time.
    turn: Mutex<()>,
}

/// A unit that is being talked to, and the relays as it told of them.
struct Unit {
    stream: BufReader<tokio::io::Take<TcpStream>>,
    relays: Vec<PowerState>,
}

impl KernelChip {
    async fn connect(&self) -> Result<Unit, String> {
        let stream = TcpStream::connect(&self.address).await.map_err(|error| error.to_string())?;
        let mut unit = Unit { stream: BufReader::new(stream.take(ANSWER_BYTES_MAX)), relays: Vec::new() };
        if let Some(password) = &self.password {
            let refused = || "the unit refuses the password of the farm file".to_owned();
            let answer = unit.ask(&format!("$KE,PSW,SET,{password}"), "#PSW,SET").await.map_err(|_| refused())?;
            if answer != ",OK" {
                return Err(refused());
            }
        }
        let answer = unit.ask("$KE,RDR,ALL", "#RDR,ALL,").await?;
        let relay = |digit: char| match digit {
            '0' => Ok(PowerState::Off),
            '1' => Ok(PowerState::On),
            _ => Err(format!("`#RDR,ALL,{answer}` has a relay that is neither 0 nor 1")),
        };
        unit.relays = answer.chars().map(relay).collect::<Result<_, _>>()?;
        Ok(unit)
    }

    /// One conversation, with its limit.
    async fn call<T>(
        &self,
        outlet: &Outlet,
        talk: impl AsyncFnOnce(&mut Unit) -> Result<T, PowerError>,
    ) -> Result<T, PowerError> {
        let failed = |reason: String| PowerError::of(outlet, format!("{}: {reason}", self.address));
        let talking = async {
            let _turn = self.turn.lock().await;
            talk(&mut self.connect().await.map_err(failed)?).await
        };
        let late = || failed(format!("no answer within {} s", CALL_TIME.as_secs()));
        timeout(CALL_TIME, talking).await.unwrap_or_else(|_| Err(late()))
    }

    async fn switch(&self, outlet: &Outlet, state: PowerState) -> Result<(), PowerError> {
        self.call(outlet, async |unit| {
            let relay = unit.position(outlet, self.own.as_ref())? + 1;
            let value = match state {
                PowerState::On => 1,
                PowerState::Off => 0,
            };
            let answer = unit.ask(&format!("$KE,REL,{relay},{value}"), "#REL,").await;
            match answer.map_err(|reason| PowerError::of(outlet, reason))?.as_str() {
                "OK" => Ok(()),
                other => Err(PowerError::of(outlet, format!("told to go {state}, the unit says `#REL,{other}`"))),
            }
        })
        .await
    }
}

impl Unit {
    /// What follows `expected` in the answer.
    async fn ask(&mut self, command: &str, expected: &str) -> Result<String, String> {
        let said = |error: std::io::Error| error.to_string();
        self.stream.get_mut().get_mut().write_all(format!("{command}\r\n").as_bytes()).await.map_err(said)?;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).await.map_err(said)? == 0 {
                return Err("the unit closed the connection".to_owned());
            }
            let line = line.trim_end();
            if let Some(rest) = line.strip_prefix(expected) {
                return Ok(rest.to_owned());
            }
            if line.contains("Access denied") {
                return Err("the unit asks for its password: give `password` in the farm file".to_owned());
            }
            if line.starts_with("#ERR") {
                return Err(format!("the unit does not take the command: `{line}`"));
            }
        }
    }

    fn position(&self, outlet: &Outlet, own: Option<&Outlet>) -> Result<usize, PowerError> {
        let numbers: Vec<String> = (1..=self.relays.len()).map(|number| number.to_string()).collect();
        position(outlet, own, &numbers)
    }
}

impl Pdu for KernelChip {
    fn set<'a>(&'a self, outlet: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>> {
        self.switch(outlet, state).boxed()
    }

    fn state<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>> {
        async {
            let read = async |unit: &mut Unit| Ok(unit.relays[unit.position(outlet, self.own.as_ref())?]);
            self.call(outlet, read).await
        }
        .boxed()
    }

    fn outlets(&self) -> BoxFuture<'_, Result<Option<Vec<OutletInfo>>, PowerError>> {
        async {
            let relays = self.call(&Outlet("all".to_owned()), async |unit| Ok(unit.relays.len())).await?;
            Ok(Some((1..=relays).map(OutletInfo::named).collect()))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::blueprint::power::recorded_tests::{Recorded, build, exchange, outlet};

    #[tokio::test]
    async fn a_unit_that_talks_unasked_is_heard_for_its_answers() {
        let unit = Recorded::lines(&exchange("kernelchip.txt")).await;
        let pdu = build::<Keys>(&json!({ "host": unit.host(), "password": "Laurent" }), None);
        assert_eq!(pdu.state(&outlet("2")).await.unwrap(), PowerState::On);
        pdu.set(&outlet("4"), PowerState::On).await.unwrap();
        let told = pdu.set(&outlet("4"), PowerState::Off).await.unwrap_err().to_string();
        assert_eq!(told, "outlet `4`: the unit does not take the command: `#ERR`");
        let told = pdu.state(&outlet("4")).await.unwrap_err().reason;
        assert_eq!(told, format!("{}: the unit refuses the password of the farm file", unit.host()));
        let told = pdu.state(&outlet("5")).await.unwrap_err().to_string();
        assert_eq!(told, "outlet `5`: no such outlet; outlets: 1, 2, 3, 4");
        unit.was_played_to_its_end();
    }

    #[tokio::test]
    async fn a_unit_that_wants_a_password_says_so_and_one_that_falls_silent_is_told() {
        let unit = Recorded::lines("> $KE,RDR,ALL\n< #Access denied. Password is needed.\n\n> $KE,RDR,ALL\n").await;
        let pdu = build::<Keys>(&json!({ "host": unit.host() }), None);
        let told = pdu.state(&outlet("1")).await.unwrap_err().reason;
        let needed = "the unit asks for its password: give `password` in the farm file";
        assert_eq!(told, format!("{}: {needed}", unit.host()));
        let told = pdu.state(&outlet("1")).await.unwrap_err().reason;
        assert_eq!(told, format!("{}: the unit closed the connection", unit.host()));
    }
}
