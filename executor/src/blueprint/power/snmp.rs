//! Switched power units that speak SNMP: v1, v2c, v3; presets for some, object identifiers by hand for the rest.
//!
//! ```text
//!  labels  ── walked ─► the outlets: their numbers (what follows the column's identifier), and what each is called
//!  status  ── GET ────► a number: on, off, being restarted
//!  control ── SET ────► a number: on, off              then status is asked until it says so, SETTLE_TIME at most
//!  power, energy ─ GET ► watts, joules                 a unit without them says that there is no such object
//! ```
//! An outlet is named by its number. The cards of some units ignore a command that follows another too soon: the next one waits
//! for what is left of the pause, and nobody waits after the last.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Outlet, OutletInfo, Pdu, PowerError, PowerState, Reading, position};

mod agent;
mod keys;

use agent::{Agent, Column, Row};
pub use keys::Keys;
use keys::Mapping;

/// From the SET to a status that says so: CyberPower's cards take up to 5 s, and get as long again.
const SETTLE_TIME: Duration = Duration::from_secs(10);
/// Between two looks at the status: four questions a second are little for the weakest card.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// The largest units have 48 outlets; chained ones, four times as many.
const OUTLETS_MAX: usize = 256;

/// Where everything is in the unit's tree.
struct Table {
    labels: Column,
    status: Column,
    control: Column,
    /// And what one of it is in watts.
    power: Option<(Column, f64)>,
    /// And what one of it is in joules.
    energy: Option<(Column, f64)>,
    told: Mapping,
    says: Mapping,
    /// Between two commands.
    pause: Duration,
}

struct SnmpPdu {
    own: Option<Outlet>,
    agent: Agent,
    table: Table,
    turns: Mutex<Turns>,
}

/// When which command was sent, or will be.
#[derive(Default)]
struct Turns {
    /// The next one is not sent before this.
    next: Option<Instant>,
    /// The last one to each outlet, by its number.
    last: HashMap<String, Instant>,
}

/// What a status says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Steady(PowerState),
    Restarting,
    Other(i64),
}

/// What an object is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Read,
    Write,
}

impl SnmpPdu {
    fn new(own: Option<Outlet>, agent: Agent, table: Table) -> Self {
        SnmpPdu { own, agent, table, turns: Mutex::default() }
    }

    /// All outlets: number and label.
    async fn walk(&self) -> Result<Vec<(String, String)>, String> {
        let rows = self.agent.walk(&self.table.labels, OUTLETS_MAX).await?;
        let label = |row: Row| (row.number, row.text.trim().to_owned());
        match rows.into_iter().map(label).collect::<Vec<_>>() {
            empty if empty.is_empty() => Err(format!(
                "{} has no outlets at {}; look at `preset` or `outlet_labels`",
                self.agent, self.table.labels
            )),
            outlets => Ok(outlets),
        }
    }

    /// The number of an outlet. A label is none: an outlet has one name, which others compare.
    async fn number(&self, outlet: &Outlet) -> Result<String, PowerError> {
        if Column::is_number(&outlet.0) {
            return Ok(outlet.0.clone());
        }
        let known = self.walk().await.map_err(|what| PowerError::of(outlet, what))?;
        let numbers: Vec<String> = known.iter().map(|(number, _)| number.clone()).collect();
        let position = position(outlet, self.own.as_ref(), &numbers);
        let position = position.map_err(|_| PowerError::of(outlet, no_such_outlet(&known)))?;
        Ok(numbers[position].clone())
    }

    /// What is wrong when an object of an outlet is not there: the outlet, or the whole column. Version 1 says the same of what may not be written.
    async fn missing(&self, outlet: &Outlet, number: &str, column: &Column, wish: Wish) -> PowerError {
        let what = match (self.walk().await, wish) {
            (Err(what), _) => what,
            (Ok(known), _) if !known.iter().any(|(it, _)| it == number) => no_such_outlet(&known),
            (Ok(_), Wish::Read) => format!("{} has nothing at {column}; look at the identifiers", self.agent),
            (Ok(_), Wish::Write) => format!(
                "{} has nothing that we may write at {column}; look at the identifiers and at what the community may do",
                self.agent
            ),
        };
        PowerError::of(outlet, what)
    }

    async fn status(&self, outlet: &Outlet, number: &str) -> Result<Status, PowerError> {
        let read = self.agent.get(&self.table.status.row(number)).await;
        match read.map_err(|what| PowerError::of(outlet, what))? {
            Some(value) => Ok(self.table.says.status(value)),
            None => Err(self.missing(outlet, number, &self.table.status, Wish::Read).await),
        }
    }

    /// Whether an outlet's status is from after the last command to it.
    fn is_quiet(&self, number: &str) -> bool {
        let turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.last.get(number).is_none_or(|last| Instant::now() >= *last + SETTLE_TIME)
    }

    /// Waits until the pause after the last command is over, and takes the next one's place.
    async fn wait_for_turn(&self, number: &str) {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = turns.next.unwrap_or_else(Instant::now).max(Instant::now());
            turns.next = Some(turn + self.table.pause);
            turns.last.insert(number.to_owned(), turn);
            turn
        };
        sleep_until(turn).await;
    }

    async fn switch(&self, outlet: &Outlet, state: PowerState) -> Result<(), PowerError> {
        let number = self.number(outlet).await?;
        // What an outlet does already takes no place in the queue; but what it says right after a command may be what was before.
        if self.is_quiet(&number) && self.status(outlet, &number).await? == Status::Steady(state) {
            return Ok(());
        }
        self.wait_for_turn(&number).await;
        let value = match state {
            PowerState::On => self.table.told.on,
            PowerState::Off => self.table.told.off,
        };
        let told = self.agent.set(&self.table.control.row(&number), value).await;
        if told.map_err(|what| PowerError::of(outlet, what))?.is_none() {
            return Err(self.missing(outlet, &number, &self.table.control, Wish::Write).await);
        }
        let settled = Instant::now() + SETTLE_TIME;
        // What it says at the end is read back above, and judged there.
        while self.status(outlet, &number).await? != Status::Steady(state) && Instant::now() < settled {
            sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// A restart ends by itself.
    async fn read(&self, outlet: &Outlet) -> Result<PowerState, PowerError> {
        let number = self.number(outlet).await?;
        let settled = Instant::now() + SETTLE_TIME;
        loop {
            match self.status(outlet, &number).await? {
                Status::Steady(state) => return Ok(state),
                Status::Restarting if Instant::now() < settled => sleep(LOOK_AGAIN).await,
                Status::Restarting => {
                    let what = format!(
                        "it is being restarted for more than {} s now; look at the unit",
                        SETTLE_TIME.as_secs()
                    );
                    return Err(PowerError::of(outlet, what));
                }
                Status::Other(value) => {
                    let Mapping { on, off, .. } = self.table.says;
                    let what =
                        format!("its status is {value}, which is neither {on} (on) nor {off} (off); look at the unit");
                    return Err(PowerError::of(outlet, what));
                }
            }
        }
    }

    async fn measure(&self, outlet: &Outlet) -> Result<Option<Reading>, PowerError> {
        let number = self.number(outlet).await?;
        let mut reading = Reading::default();
        for (column, amount) in [(&self.table.power, &mut reading.watts), (&self.table.energy, &mut reading.joules)] {
            let Some((column, unit)) = column else { continue };
            let read = self.agent.get(&column.row(&number)).await.map_err(|what| PowerError::of(outlet, what))?;
            // A meter that has nothing to say is -1 in these trees, which as a gauge is the largest.
            #[allow(clippy::cast_precision_loss, reason = "watts and watt-hours are far from 2^53")]
            let measured =
                read.filter(|value| (0..i64::from(u32::MAX)).contains(value)).map(|value| value as f64 * unit);
            *amount = measured;
        }
        Ok(Some(reading).filter(|reading| *reading != Reading::default()))
    }
}

impl Mapping {
    fn status(self, value: i64) -> Status {
        match value {
            value if value == self.on => Status::Steady(PowerState::On),
            value if value == self.off => Status::Steady(PowerState::Off),
            value if Some(value) == self.reboot => Status::Restarting,
            value => Status::Other(value),
        }
    }
}

fn no_such_outlet(known: &[(String, String)]) -> String {
    let known: Vec<String> = known.iter().map(|(number, label)| described(number, label)).collect();
    format!("no such outlet; outlets: {}", known.join(", "))
}

fn described(number: &str, label: &str) -> String {
    if label.is_empty() { number.to_owned() } else { format!("{number} ({label})") }
}

impl Pdu for SnmpPdu {
    fn set<'a>(&'a self, outlet: &'a Outlet, state: PowerState) -> BoxFuture<'a, Result<(), PowerError>> {
        self.switch(outlet, state).boxed()
    }

    fn state<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<PowerState, PowerError>> {
        self.read(outlet).boxed()
    }

    fn outlets(&self) -> BoxFuture<'_, Result<Option<Vec<OutletInfo>>, PowerError>> {
        async move {
            let known = self.walk().await.map_err(|what| PowerError::of(&Outlet("all".into()), what))?;
            let info = |(number, label): (String, String)| OutletInfo {
                outlet: Outlet(number),
                label: Some(label).filter(|label| !label.is_empty()),
            };
            Ok(Some(known.into_iter().map(info).collect()))
        }
        .boxed()
    }

    fn meter<'a>(&'a self, outlet: &'a Outlet) -> BoxFuture<'a, Result<Option<Reading>, PowerError>> {
        self.measure(outlet).boxed()
    }
}

#[cfg(test)]
mod tests;
