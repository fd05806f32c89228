//! Consoles: a byte stream from and to the DUT. The standard traits are the interface.

use std::io;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

pub mod lines;
pub mod qemu;
pub mod simulated;
pub mod tcp;

use super::driver::Driver;

/// Every way to reach a console that a farm file can name.
pub const DRIVERS: &[Driver<dyn Console>] = &[Driver::of::<tcp::Keys>("tcp")];

/// Both directions of a console.
pub trait ConsoleStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ConsoleStream for T {}

/// A way to reach a DUT's console.
pub trait Console: Send + Sync {
    /// Opens it, before power is applied so that no early byte is lost. One stream lasts over any number of power cycles; its end
    /// (a read of 0 bytes) means that the console went away, and it is opened again. One writer: a second open while the first stream
    /// lives is refused.
    fn open(&self) -> BoxFuture<'_, io::Result<Box<dyn ConsoleStream>>>;

    /// A job, or a person, begins to use it. Devices need not know.
    fn begins(&self) {}
}
