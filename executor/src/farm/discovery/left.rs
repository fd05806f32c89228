//! The outlet of the discovery that runs, on disk: a server that is killed in the middle leaves it on, and the next one switches it off.
//!
//! ```text
//!  outlet on ─► <state>/discovery.json {"pdu": …, "outlet": …} ─► outlet off ─► gone
//!                       └── killed ─► the next start: a DUT's by now? left to it : off, tried until it works ─► gone
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::outlets::Socket;
use super::record::DiscoverError;
use crate::blueprint::power::PowerState;
use crate::farm::Farm;
use crate::inventory::OutletName;

/// A unit that does not answer now may be a switch that boots, as after the power cut that took the server along.
const AGAIN: Duration = Duration::from_secs(10);

/// Written before the outlet goes on.
pub(super) fn note(state: &Path, outlet: &OutletName) -> io::Result<()> {
    fs::write(path(state), serde_json::to_vec(outlet)?)
}

/// The outlet is off.
pub(super) fn forget(state: &Path) {
    match fs::remove_file(path(state)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::error!(%error, "the next start will switch the outlet of this discovery off again");
        }
        Ok(()) | Err(_) => {}
    }
}

impl Farm {
    /// What a killed server's discovery has left on goes off.
    pub(in crate::farm) fn end_discovery_of_before(self: &Arc<Self>) {
        let state = self.config().state.clone();
        let Ok(text) = fs::read(path(&state)) else { return };
        let Ok(outlet) = serde_json::from_slice::<OutletName>(&text) else {
            tracing::error!(path = %path(&state).display(), "which outlet a discovery has left on cannot be read");
            return forget(&state);
        };
        let farm = Arc::clone(self);
        self.carriers().spawn(async move {
            let mut stopping = farm.stopping.subscribe();
            while let Err(why) = farm.switch_off_left(&outlet).await {
                tracing::warn!(pdu = outlet.pdu, outlet = outlet.outlet, why, "a discovery has left it on");
                tokio::select! {
                    _ = stopping.wait_for(|stopping| *stopping) => return,
                    () = tokio::time::sleep(AGAIN) => {}
                }
            }
            forget(&state);
        });
    }

    /// `Err`: to be tried again.
    async fn switch_off_left(&self, outlet: &OutletName) -> Result<(), String> {
        let is_its_again = |record: Arc<super::DiscoveryRecord>| record.outlet.as_ref() == Some(outlet);
        if self.discovery.running().is_some_and(is_its_again) {
            return Ok(());
        }
        let socket: Socket = match self.socket(outlet).await {
            Ok(socket) => socket,
            // Whose it is now looks after it; what the farm file does not have any more nobody can switch.
            Err(DiscoverError::InUse { .. } | DiscoverError::NoSuchPdu { .. } | DiscoverError::NoSuchOutlet { .. }) => {
                return Ok(());
            }
            Err(error) => return Err(error.to_string()),
        };
        socket.set(PowerState::Off).await.map_err(|error| error.to_string())?;
        tracing::info!(
            pdu = outlet.pdu,
            outlet = outlet.outlet,
            "the server was killed in a discovery: its outlet is off"
        );
        Ok(())
    }
}

fn path(state: &Path) -> PathBuf {
    state.join("discovery.json")
}
