//! The console of a simulated DUT.

use std::io;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{Console, ConsoleStream};
use crate::virtual_dut::simulated::Machine;

/// Reaches the serial line of a machine of this process.
pub struct SimulatedConsole(Arc<Machine>);

impl SimulatedConsole {
    /// The console of this machine.
    pub fn new(machine: Arc<Machine>) -> Self {
        SimulatedConsole(machine)
    }
}

impl Console for SimulatedConsole {
    fn open(&self) -> BoxFuture<'_, io::Result<Box<dyn ConsoleStream>>> {
        Box::pin(async move {
            let stream = self.0.open_console().await?;
            Ok(Box::new(stream) as Box<dyn ConsoleStream>)
        })
    }

    fn begins(&self) {
        self.0.begins();
    }
}
