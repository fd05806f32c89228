//! CI-tron's virtual power unit: a connection is one word, and one byte back.
//!
//! ```text
//!  word, 32 bits, big-endian:  31 … 13 zero │ 12 … 2 outlet │ 1, 0 command
//!  0 how many outlets ─► their number        1 on, 2 off ─► 01 done        3 state ─► 03 on, 04 off, 05 not known
//! ```
//! Outlets are numbered from 0. Written from the protocol of CI-tron's `vpdu` role and of its driver of that name; nothing in it says who asks, so
//! whoever reaches the port may switch.

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

/// Where CI-tron's listens.
const PORT: u16 = 9191;
/// A question: it starts or kills a virtual machine before it answers, which takes a tenth of a second.
const QUESTION_TIME: Duration = Duration::from_secs(10);

/// A virtual power unit of CI-tron's.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["host"]))]
pub struct Keys {
    /// Its address or name, with a port where it is not 9191.
    host: String,
}

impl driver::Keys<dyn Pdu> for Keys {
    fn build(self, context: &Context<'_>) -> Result<Arc<dyn Pdu>, Vec<Mistake>> {
        let address = address(&self.host, PORT).map_err(|mistake| vec![mistake])?;
        Ok(Arc::new(VirtualPdu { own: context.outlet.cloned(), address }))
    }
}

struct VirtualPdu {
    own: Option<Outlet>,
    address: String,
}

/// What can be asked.
#[derive(Clone, Copy)]
enum Command {
    Count = 0,
    On = 1,
    Off = 2,
    State = 3,
}

fn word(command: Command, outlet: u8) -> [u8; 4] {
    (u32::from(outlet) << 2 | command as u32).to_be_bytes()
}

impl VirtualPdu {
    async fn ask(&self, command: Command, outlet: u8) -> Result<u8, String> {
        let asking = async {
            let mut stream = TcpStream::connect(&self.address).await?;
            stream.write_all(&word(command, outlet)).await?;
            stream.read_u8().await
        };
        match timeout(QUESTION_TIME, asking).await {
            Ok(answer) => answer.map_err(|error| format!("{}: {error}", self.address)),
            Err(_) => Err(format!("{} did not answer within {} s", self.address, QUESTION_TIME.as_secs())),
        }
    }

    async fn names(&self) -> Result<Vec<String>, String> {
        let count = self.ask(Command::Count, 0).await?;
        Ok((0..count).map(|number| number.to_string()).collect())
    }

    /// The answer about an outlet, which the unit has.
    async fn ask_about(&self, outlet: &Outlet, command: Command) -> Result<u8, PowerError> {
        let failed = |what| PowerError::of(outlet, what);
        let names = self.names().await.map_err(failed)?;
        let number = position(outlet, self.own.as_ref(), &names)?;
        let number = u8::try_from(number).expect("the unit said in a byte how many it has");
        self.ask(command, number).await.map_err(failed)
    }
}

impl Pdu for VirtualPdu {
    fn set<'a>(&'a self, outlet: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>> {
        let command = match state {
            PowerState::On => Command::On,
            PowerState::Off => Command::Off,
        };
        async move {
            match self.ask_about(outlet, command).await? {
                1 => Ok(()),
                other => Err(PowerError::of(outlet, format!("{} answered {other}, not 1 for done", self.address))),
            }
        }
        .boxed()
    }

    fn state<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>> {
        async move {
            match self.ask_about(outlet, Command::State).await? {
                3 => Ok(PowerState::On),
                4 => Ok(PowerState::Off),
                5 => Err(PowerError::of(outlet, format!("{} does not know its state; switch it", self.address))),
                other => Err(PowerError::of(outlet, format!("{} answered {other}, which is no state", self.address))),
            }
        }
        .boxed()
    }

    /// Virtual machines lose their power at once; CI-tron waits as long.
    fn off_time(&self) -> Duration {
        Duration::from_millis(100)
    }

    fn outlets(&self) -> BoxFuture<'_, Result<Option<Vec<OutletInfo>>, PowerError>> {
        async move {
            let names = self.names().await.map_err(|what| PowerError::of(&Outlet("all".into()), what))?;
            Ok(Some(names.into_iter().map(OutletInfo::named).collect()))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A unit that expects these words, each with its answer.
    async fn unit(dialogue: &'static [([u8; 4], &'static [u8])]) -> (VirtualPdu, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let served = tokio::spawn(async move {
            for (expected, answer) in dialogue {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut word = [0; 4];
                stream.read_exact(&mut word).await.unwrap();
                assert_eq!(word, *expected);
                stream.write_all(answer).await.unwrap();
            }
        });
        (VirtualPdu { own: None, address }, served)
    }

    const COUNT: ([u8; 4], &[u8]) = ([0, 0, 0, 0], &[200]);

    #[tokio::test]
    async fn every_command_is_the_word_of_the_protocol() {
        let (pdu, served) = unit(&[
            COUNT,
            ([0, 0, 0, 0b1101], &[1]),
            COUNT,
            ([0, 0, 0, 0b1110], &[1]),
            COUNT,
            ([0, 0, 0, 0b1111], &[3]),
            COUNT,
            ([0, 0, 0b11, 0b0001_1111], &[4]),
            COUNT,
        ])
        .await;
        let (third, last) = (Outlet("3".into()), Outlet("199".into()));
        pdu.set(&third, PowerState::On).await.unwrap();
        pdu.set(&third, PowerState::Off).await.unwrap();
        assert_eq!(pdu.state(&third).await.unwrap(), PowerState::On);
        assert_eq!(pdu.state(&last).await.unwrap(), PowerState::Off);
        assert_eq!(pdu.outlets().await.unwrap().unwrap().len(), 200);
        served.await.unwrap();
    }

    #[tokio::test]
    async fn what_it_does_not_know_or_do_is_an_error_with_its_address() {
        let two: ([u8; 4], &[u8]) = ([0; 4], &[2]);
        let dialogue = Box::leak(Box::new([
            two,
            ([0, 0, 0, 0b111], &[5]),
            two,
            ([0, 0, 0, 0b101], &[0]),
            two,
            ([0, 0, 0, 0b111], &[9]),
            two,
            ([0, 0, 0, 0b111], &[]),
            two,
        ]));
        let (pdu, served) = unit(dialogue).await;
        let one = Outlet("1".into());
        let at = pdu.address.clone();
        let said = |error: PowerError| error.to_string().replace(&at, "UNIT");
        let state = || async { said(pdu.state(&one).await.unwrap_err()) };
        assert_eq!(state().await, "outlet `1`: UNIT does not know its state; switch it");
        assert_eq!(
            said(pdu.set(&one, PowerState::On).await.unwrap_err()),
            "outlet `1`: UNIT answered 0, not 1 for done"
        );
        assert_eq!(state().await, "outlet `1`: UNIT answered 9, which is no state");
        assert!(state().await.starts_with("outlet `1`: UNIT: "), "a connection that ends early has a cause");
        let seven = Outlet("7".into());
        assert_eq!(said(pdu.state(&seven).await.unwrap_err()), "outlet `7`: no such outlet; outlets: 0, 1");
        served.await.unwrap();
    }
}
