//! Devantech relay boards of the ETH and WIFI families: bytes over TCP.
//!
//! ```text
//!  connect ─► 79 password ─► 01                     where there is one
//!         ─► 10 ─► module, hardware, firmware       the module says how many relays
//!         ─► 24 ─► states, a bit each, relay 1 lowest of the first byte
//!         ─► 20 relay 00 (on), 21 relay 00 (off) ─► 00 done, 01 failed
//! ```
//! Outlets are the relays, from 1. Written from the maker's documents of ETH008 and ETH8020, "TCP access and commands" and "TCP/IP password"
//! (robot-electronics.co.uk/htm/eth8020tech.htm): port 17494, all bytes of a command in one packet, five connections at most, so each call has one of
//! its own and closes it. The boards of the dS family number their commands differently and are not here.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Outlet, OutletInfo, Pdu, PowerError, PowerState, address, position};
use crate::blueprint::driver::{self, Context, Mistake};

/// The documented port.
const PORT: u16 = 17494;
/// A whole call: a board answers within milliseconds; a wireless one out of reach costs some retries of TCP.
const CALL_TIME: Duration = Duration::from_secs(10);

/// Module number, name and relays; of ETH484 and WIFI484 the states have a second byte, for inputs and outputs that are no relays.
const MODULES: &[(u8, &str, u8)] = &[
    (18, "ETH002", 2),
    (19, "ETH008", 8),
    (20, "ETH484", 4),
    (21, "ETH8020", 20),
    (22, "WIFI484", 4),
    (24, "WIFI8020", 20),
    (26, "WIFI002", 2),
    (28, "WIFI008", 8),
    (52, "ETH1610", 10),
];

/// A Devantech board.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["host"]))]
pub struct Keys {
    /// Its address or name, with a port where it is not 17494.
    host: String,
    /// Its TCP password, where one is set.
    password: Option<String>,
}

impl driver::Keys<dyn Pdu> for Keys {
    fn build(self, context: &Context<'_>) -> Result<Arc<dyn Pdu>, Vec<Mistake>> {
        let address = address(&self.host, PORT).map_err(|mistake| vec![mistake])?;
        Ok(Arc::new(Devantech { own: context.outlet.cloned(), address, password: self.password }))
    }
}

struct Devantech {
    own: Option<Outlet>,
    address: String,
    password: Option<String>,
}

/// A board that is being talked to.
struct Board {
    stream: TcpStream,
    relays: u8,
}

impl Devantech {
    async fn connect(&self) -> Result<Board, String> {
        let mut stream = TcpStream::connect(&self.address).await.map_err(in_words)?;
        if let Some(password) = &self.password {
            match exchange::<1>(&mut stream, &[&[0x79], password.as_bytes()].concat()).await? {
                [1] => {}
                _ => return Err("the board refuses the password: give its TCP password in the farm file".to_owned()),
            }
        }
        let [module, ..] = exchange::<3>(&mut stream, &[0x10]).await?;
        let known = MODULES.iter().find(|(number, ..)| *number == module);
        let (_, _, relays) = known.ok_or_else(|| {
            let names: Vec<&str> = MODULES.iter().map(|(_, name, _)| *name).collect();
            format!("module {module} is not known; known are {}", names.join(", "))
        })?;
        Ok(Board { stream, relays: *relays })
    }

    /// One conversation, with its limit.
    async fn call<T>(
        &self,
        outlet: &Outlet,
        talk: impl AsyncFnOnce(&mut Board) -> Result<T, PowerError>,
    ) -> Result<T, PowerError> {
        let failed = |reason: String| PowerError::of(outlet, format!("{}: {reason}", self.address));
        let talking = async { talk(&mut self.connect().await.map_err(failed)?).await };
        let late = || failed(format!("no answer within {} s", CALL_TIME.as_secs()));
        timeout(CALL_TIME, talking).await.unwrap_or_else(|_| Err(late()))
    }

    async fn switch(&self, outlet: &Outlet, state: PowerState) -> Result<(), PowerError> {
        self.call(outlet, async |board| {
            let command = match state {
                PowerState::On => 0x20,
                PowerState::Off => 0x21,
            };
            let relay = board.relay(outlet, self.own.as_ref())?;
            // The time 0 is for good; others are pulses of 100 ms.
            let answer = exchange::<1>(&mut board.stream, &[command, relay, 0]).await;
            match answer.map_err(|reason| PowerError::of(outlet, reason))? {
                [0] => Ok(()),
                _ => Err(PowerError::of(outlet, "the board says that it failed: is there a TCP password to give?")),
            }
        })
        .await
    }

    async fn read(&self, outlet: &Outlet) -> Result<PowerState, PowerError> {
        self.call(outlet, async |board| {
            let index = usize::from(board.relay(outlet, self.own.as_ref())? - 1);
            let states = board.states().await.map_err(|reason| PowerError::of(outlet, reason))?;
            let on = states.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1);
            Ok(if on { PowerState::On } else { PowerState::Off })
        })
        .await
    }
}

impl Board {
    /// The number of the relay that is meant.
    fn relay(&self, outlet: &Outlet, own: Option<&Outlet>) -> Result<u8, PowerError> {
        let numbers: Vec<String> = (1..=self.relays).map(|number| number.to_string()).collect();
        let position = position(outlet, own, &numbers)?;
        Ok(u8::try_from(position + 1).expect("there are 20 at most"))
    }

    /// A bit each.
    async fn states(&mut self) -> Result<Vec<u8>, String> {
        self.stream.write_all(&[0x24]).await.map_err(in_words)?;
        let mut states = vec![0; usize::from(self.relays.div_ceil(8))];
        self.stream.read_exact(&mut states).await.map_err(in_words)?;
        Ok(states)
    }
}

/// A command in one packet, and an answer of this length.
async fn exchange<const LENGTH: usize>(stream: &mut TcpStream, command: &[u8]) -> Result<[u8; LENGTH], String> {
    stream.write_all(command).await.map_err(in_words)?;
    let mut answer = [0; LENGTH];
    stream.read_exact(&mut answer).await.map_err(in_words)?;
    Ok(answer)
}

fn in_words(error: std::io::Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset => {
            "the board closed the connection: has it five already?".to_owned()
        }
        _ => error.to_string(),
    }
}

impl Pdu for Devantech {
    fn set<'a>(&'a self, outlet: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>> {
        self.switch(outlet, state).boxed()
    }

    fn state<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>> {
        self.read(outlet).boxed()
    }

    fn outlets(&self) -> BoxFuture<'_, Result<Option<Vec<OutletInfo>>, PowerError>> {
        async {
            let relays = self.call(&Outlet("all".to_owned()), async |board| Ok(board.relays)).await?;
            Ok(Some((1..=relays).map(OutletInfo::named).collect()))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::blueprint::power::recorded_tests::{self, Recorded, build, mistakes, outlet};

    #[tokio::test]
    async fn a_board_of_eight_switches_and_tells_its_relays_apart() {
        let unit = Recorded::bytes(&recorded_tests::exchange("devantech-eth008.txt")).await;
        let pdu = build::<Keys>(&json!({ "host": unit.host() }), None);
        assert_eq!(pdu.state(&outlet("3")).await.unwrap(), PowerState::On);
        pdu.set(&outlet("8"), PowerState::On).await.unwrap();
        assert_eq!(pdu.state(&outlet("8")).await.unwrap(), PowerState::On);
        let told = pdu.set(&outlet("3"), PowerState::Off).await.unwrap_err().to_string();
        assert_eq!(told, "outlet `3`: the board says that it failed: is there a TCP password to give?");
        let told = pdu.set(&outlet("9"), PowerState::Off).await.unwrap_err().to_string();
        assert_eq!(told, "outlet `9`: no such outlet; outlets: 1, 2, 3, 4, 5, 6, 7, 8");
        assert_eq!(pdu.outlets().await.unwrap().unwrap().len(), 8);
        unit.was_played_to_its_end();
    }

    #[tokio::test]
    async fn a_board_of_twenty_wants_its_password_first() {
        let unit = Recorded::bytes(&recorded_tests::exchange("devantech-eth8020-password.txt")).await;
        let pdu = build::<Keys>(&json!({ "host": unit.host(), "password": "apple" }), None);
        assert_eq!(pdu.state(&outlet("20")).await.unwrap(), PowerState::On);
        pdu.set(&outlet("20"), PowerState::On).await.unwrap();
        let told = pdu.state(&outlet("20")).await.unwrap_err().reason;
        let refused = "the board refuses the password: give its TCP password in the farm file";
        assert_eq!(told, format!("{}: {refused}", unit.host()));
        unit.was_played_to_its_end();
    }

    #[tokio::test]
    async fn a_board_of_another_family_and_one_with_no_room_are_told() {
        let unit = Recorded::bytes("> 10\n< 1e 01 04\n").await;
        let pdu = build::<Keys>(&json!({ "host": unit.host() }), None);
        let told = pdu.state(&outlet("1")).await.unwrap_err().reason;
        assert!(told.contains("module 30 is not known; known are ETH002, ETH008, "), "{told}");
        let told = pdu.state(&outlet("1")).await.unwrap_err().reason;
        assert!(told.ends_with("the board closed the connection: has it five already?"), "{told}");
        assert_eq!(mistakes::<Keys>(&json!({ "host": "10.0.0.9:far" }), None), ["host: `far` is not a port"]);
    }
}
