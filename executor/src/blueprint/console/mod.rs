//! Consoles: a byte stream from and to the DUT. The standard traits are the interface.

use std::io;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

mod device;
pub mod exec;
pub mod ipmi_sol;
pub mod lines;
pub mod nvt;
pub mod pty;
pub mod qemu;
pub mod rfc2217;
pub mod serial;
pub mod simulated;
pub mod ssh;
mod stream;
pub mod tcp;
pub mod telnet;
pub mod tty;
pub mod unix;
mod uucp_lock;
pub mod wires;

use self::serial::{Order, Settings};
use self::wires::Wires;
use super::driver::Driver;

/// Every way to reach a console that a farm file can name.
pub const DRIVERS: &[Driver<dyn Console>] = &[
    Driver::of::<exec::Keys>("exec"),
    Driver::of::<ipmi_sol::Keys>("ipmi-sol"),
    Driver::of::<pty::Keys>("pty"),
    Driver::of::<rfc2217::Keys>("rfc2217"),
    Driver::of::<ssh::Keys>("ssh"),
    Driver::of::<tcp::Keys>("tcp"),
    Driver::of::<telnet::Keys>("telnet"),
    Driver::of::<tty::Keys>("tty"),
    Driver::of::<unix::Keys>("unix"),
];

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

    /// How its line is set when it is opened, if it has one that we set.
    fn settings(&self) -> Option<Settings> {
        None
    }

    /// What its line says of itself, while a stream of it lives; `None`: it has no wires, or does not tell.
    fn wires(&self) -> Option<Wires> {
        None
    }

    /// Tells the line something beside its bytes, while a stream of it lives. A console that is no serial line, or whose line somebody else
    /// sets, refuses.
    fn tell(&self, order: Order) -> io::Result<()> {
        let why = format!("this console takes no settings of a line: {order:?}");
        Err(io::Error::new(io::ErrorKind::Unsupported, why))
    }
}
