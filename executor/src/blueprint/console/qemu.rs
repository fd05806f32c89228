//! A virtual machine's serial line. The machine reads it over all its boots; this hands it out, to one at a time.

use std::io;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::{Console, ConsoleStream};
use crate::virtual_dut::qemu::Machine;

/// The console of a virtual machine.
pub struct QemuConsole {
    machine: Arc<Machine>,
}

impl QemuConsole {
    /// The console of `machine`.
    pub fn new(machine: Arc<Machine>) -> Self {
        QemuConsole { machine }
    }
}

impl Console for QemuConsole {
    fn open(&self) -> BoxFuture<'_, io::Result<Box<dyn ConsoleStream>>> {
        async {
            let busy = || {
                let why = format!("the console of `{}` is open already; close that first", self.machine.name());
                io::Error::new(io::ErrorKind::ResourceBusy, why)
            };
            let console = self.machine.open_console().ok_or_else(busy)?;
            Ok(Box::new(console) as Box<dyn ConsoleStream>)
        }
        .boxed()
    }
}
