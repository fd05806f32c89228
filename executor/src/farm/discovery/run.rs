//! A discovery from its first switch of the outlet to its last.
//!
//! | it ends by | the outlet | what is kept |
//! |---|---|---|
//! | a machine registered | off | all that it said |
//! | a machine booted and did not register in time | off | what its firmware said: it waits for somebody to say the rest |
//! | no machine came in time, cancelled, the farm stops | off | nothing |

use std::sync::{Arc, Weak};
use std::time::Duration;

use gateway::dhcp::Mac;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::outlets::Socket;
use super::record::{Bind, DiscoveryOutcome, DiscoveryRecord};
use super::said::Said;
use super::{Farm, LoaderView, Sighting, left};
use crate::blueprint::console::Console;
use crate::blueprint::power::PowerState;
use crate::config::SPARES;
use crate::inventory::OutletName;

/// An outlet that is on is off for this long first: a board lives on its capacitors for a second.
const OFF_TIME: Duration = Duration::from_secs(2);
/// What a machine says after it was answered still comes to its console.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// A closed console's task ends within a turn of the runtime.
const GONE_TIME: Duration = Duration::from_secs(5);
/// Sightings that wait to be looked at: a rack that is switched on at once.
const SIGHTINGS_MAX: usize = 64;
/// Between two looks at the fastboot loaders on USB, as often as for one that is waited for.
const LOOK_ON_USB: Duration = Duration::from_millis(500);

/// From the begin to the outcome.
pub(super) async fn run(farm: Arc<Farm>, record: Arc<DiscoveryRecord>, socket: Option<Socket>) {
    let (sender, sightings) = mpsc::channel(SIGHTINGS_MAX);
    // Lines that are nobody's are answered for as long as this runs.
    let listening = farm.consoles().discover();
    let console = socket.as_ref().and_then(|socket| socket.console.clone());
    if let Some((name, driver)) = &console
        && let Err(error) = farm.consoles().open(name, Arc::clone(driver), None)
    {
        record.tell(format!("nobody listens to its console: {error}"));
    }
    let is_real = record.outlet.as_ref().is_none_or(|outlet| outlet.pdu != SPARES);
    if is_real && let Some(lacks) = farm.linux_of_strangers_lacks().await {
        record.tell(lacks);
    }
    let found = match farm.open_doors().await {
        Ok(()) => {
            farm.discovery.strangers.tell(Some(sender));
            look(&farm, &record, socket.as_ref(), sightings).await
        }
        Err(why) => Err(DiscoveryOutcome::Failed { why: format!("what registers a machine cannot be served: {why}") }),
    };
    farm.discovery.strangers.tell(None);
    farm.close_doors();
    if let Some(socket) = &socket {
        match socket.set(PowerState::Off).await {
            Ok(()) => {
                left::forget(&farm.config().state);
                record.tell(format!("{} is off", outlet_in_words(&record)));
            }
            Err(error) => record.tell(format!("it cannot be switched off, look at it: {error}")),
        }
    }
    let spare = console.map(|(name, driver)| {
        farm.consoles().close(&name, "its discovery is over");
        Arc::downgrade(&driver)
    });
    drop((socket, listening));
    if let Some(driver) = spare {
        until_gone(&driver).await;
    }
    let outcome = match found {
        Ok(mac) => farm.settle(mac).await,
        Err(outcome) => outcome,
    };
    record.ends(outcome);
}

/// A spare's drivers go before the DUT gets its own: both keep their sockets in one place. Nobody tells when a task has let go of them.
async fn until_gone(driver: &Weak<dyn Console>) {
    let mut look = tokio::time::interval(Duration::from_millis(5));
    let gone = async {
        while driver.strong_count() > 0 {
            look.tick().await;
        }
    };
    if timeout(GONE_TIME, gone).await.is_err() {
        tracing::error!("the console of a spare is still in use; its DUT may not start");
    }
}

/// Until a machine is in the inventory.
async fn look(
    farm: &Arc<Farm>,
    record: &Arc<DiscoveryRecord>,
    socket: Option<&Socket>,
    mut sightings: mpsc::Receiver<Sighting>,
) -> Result<Mac, DiscoveryOutcome> {
    let mut plugged = farm.loaders();
    if let Some(socket) = socket {
        let failed = |why: String| DiscoveryOutcome::Failed { why };
        let was_on = socket.state().await.map_err(|error| failed(error.to_string()))? == PowerState::On;
        socket.set(PowerState::Off).await.map_err(|error| failed(error.to_string()))?;
        if was_on {
            record.tell(format!("{} was on, and is switched off first", outlet_in_words(record)));
            tokio::select! {
                () = sleep(OFF_TIME) => {}
                outcome = ended_early(farm, record) => return Err(outcome),
            }
        }
        tokio::select! {
            () = socket.stay_off() => {}
            outcome = ended_early(farm, record) => return Err(outcome),
        }
        // Who asked before this is on another outlet.
        while sightings.try_recv().is_ok() {}
        plugged = farm.loaders();
        // A spare goes with its server.
        if let Some(outlet) = record.outlet.as_ref().filter(|outlet| outlet.pdu != SPARES) {
            left::note(&farm.config().state, outlet)
                .map_err(|error| failed(format!("cannot note the outlet: {error}")))?;
        }
        record.is_powered();
        socket.set(PowerState::On).await.map_err(|error| failed(error.to_string()))?;
        record.tell(format!("{} is on", outlet_in_words(record)));
    } else {
        record.tell("switch the machine on: the next one that the farm does not know is it".to_owned());
    }
    let mut changed = record.watch();
    let mut until = Instant::now() + record.timeout;
    let mut early = std::pin::pin!(ended_early(farm, record));
    let mut look_on_usb = tokio::time::interval(LOOK_ON_USB);
    loop {
        if let Some(mac) = record.who_registered().and_then(|id| id.parse().ok()) {
            return registered(farm, record, mac).await;
        }
        tokio::select! {
            Some(sighting) = sightings.recv() => {
                if see(record, sighting) {
                    until = Instant::now() + farm.config().discovery.register_time;
                }
            }
            Ok(()) = changed.changed() => {}
            _ = look_on_usb.tick(), if record.bound().is_none() => {
                if let Some(loader) = farm.new_loader(&plugged) {
                    take(farm, record, &loader).await;
                    plugged.push(loader);
                }
            }
            () = sleep_until(until) => return too_late(farm, record).await,
            outcome = &mut early => return Err(outcome),
        }
    }
}

/// A loader that was not there before is the machine.
async fn take(farm: &Arc<Farm>, record: &Arc<DiscoveryRecord>, loader: &LoaderView) {
    let LoaderView { serial, path, .. } = loader;
    record.tell(format!("a fastboot loader shows up on USB at {path}: serial number `{serial}`"));
    if let Err(why) = farm.take_loader(record, loader).await {
        record.tell(format!("it is not taken: {why}"));
    }
}

/// Whether it is the machine.
fn see(record: &DiscoveryRecord, sighting: Sighting) -> bool {
    match record.sees(sighting) {
        Some(Bind::Bound) => {
            let time = record.boot_time_s().map(|time| format!(", {time:.1} s after its power")).unwrap_or_default();
            record.tell(format!("{sighting}{time}"));
            true
        }
        Some(Bind::Another(bound)) => {
            record.tell(format!("{sighting}, too, and is left alone: this is about {bound}"));
            false
        }
        None => false,
    }
}

async fn registered(farm: &Farm, record: &DiscoveryRecord, mac: Mac) -> Result<Mac, DiscoveryOutcome> {
    if let Some((id, entry)) = farm.inventory().find(&mac.to_string()) {
        let console = entry.console.map_or("console unknown".to_owned(), |line| format!("console {line}"));
        record.tell(format!("{id} registered as {}: {}, {console}", entry.full_name, entry.tags.join(" ")));
    }
    // It is not powered off in the middle of its goodbye; a farm that stops does not wait for that.
    let mut stopping = farm.stopping.subscribe();
    let _ = timeout(LAST_WORDS, stopping.wait_for(|stopping| *stopping)).await;
    Ok(mac)
}

/// A machine that booted and said nothing is kept with what its firmware said.
async fn too_late(farm: &Arc<Farm>, record: &DiscoveryRecord) -> Result<Mac, DiscoveryOutcome> {
    let Some(sighting) = record.sighting() else {
        let why =
            format!("no machine that the farm does not know asked for something to boot within {:?}", record.timeout);
        return Err(DiscoveryOutcome::Nothing { why });
    };
    let fetched = farm.discovery.strangers.fetched(sighting.mac);
    let mut came =
        if fetched.is_empty() { "it read nothing".to_owned() } else { format!("it read {}", fetched.join(", ")) };
    if let Some(server) = farm.discovery.strangers.other_server(sighting.mac) {
        came += &format!("; it went with the DHCP server {server}, which is not the farm's");
    }
    let time = farm.config().discovery.register_time;
    record.tell(format!("{} did not register within {time:?}: {came}", sighting.mac));
    let said = Said { base_name: "dut".into(), ..Said::default() };
    let entry = farm.entry_of(sighting.mac, sighting.address, said, Some(record)).await;
    match farm.keep(&sighting.mac.to_string(), entry).await {
        Ok(()) => Ok(sighting.mac),
        Err((_, why)) => Err(DiscoveryOutcome::Failed { why }),
    }
}

async fn ended_early(farm: &Farm, record: &DiscoveryRecord) -> DiscoveryOutcome {
    let (mut cancelled, mut stopping) = (record.cancelled.subscribe(), farm.stopping.subscribe());
    tokio::select! {
        Ok(by) = cancelled.wait_for(Option::is_some) => {
            DiscoveryOutcome::Cancelled { by: by.clone().unwrap_or_default() }
        }
        _ = stopping.wait_for(|stopping| *stopping) => {
            DiscoveryOutcome::Failed { why: "the farm was stopped".into() }
        }
    }
}

fn outlet_in_words(record: &DiscoveryRecord) -> String {
    match &record.outlet {
        Some(OutletName { pdu, outlet }) => format!("outlet {outlet} of {pdu}"),
        None => "nothing".to_owned(),
    }
}

impl Farm {
    /// A machine of the inventory becomes one of the farm, if it can.
    async fn settle(self: &Arc<Self>, mac: Mac) -> DiscoveryOutcome {
        self.discovery.strangers.forget(mac);
        let mac = mac.to_string();
        let id = self.inventory().find(&mac).map_or(mac, |(id, _)| id);
        if let Err(error) = self.follow_inventory().await {
            return DiscoveryOutcome::Failed {
                why: format!("{id} is in the inventory, but the farm cannot take it: {error}"),
            };
        }
        let aside = self.set_aside().into_iter().find(|aside| aside.id == id);
        let full_name = self.inventory().find(&id).map_or_else(|| id.clone(), |(_, entry)| entry.full_name);
        DiscoveryOutcome::Registered { id, full_name, waits_for: aside.map(|aside| aside.why) }
    }

    /// The same for one that registered while nobody waited for it.
    pub(super) fn carriers_spawn_settle(self: &Arc<Self>, mac: Mac) {
        let farm = Arc::clone(self);
        self.carriers().spawn(async move {
            let mut stopping = farm.stopping.subscribe();
            let _ = timeout(LAST_WORDS, stopping.wait_for(|stopping| *stopping)).await;
            let outcome = farm.settle(mac).await;
            tracing::info!(?outcome, "a machine registered by itself");
        });
    }
}
