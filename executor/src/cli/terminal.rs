//! The terminal of whoever types on a console: single keys, no echo, and as it was before whatever happens.
//!
//! ```text
//!  as it was ─► Raw::new ─► raw ─┬─ dropped: left, the server's end, an error, a panic ─► as it was
//!                                └─ SIGTERM, SIGHUP ─► as it was, and this process ends as by the signal
//! ```

use std::io::Read;
use std::process;

use anyhow::Context;
use bytes::Bytes;
use nix::sys::termios::{self, LocalFlags, OutputFlags, SetArg, Termios};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Keys that wait for the server; a person types slower, a paste waits in the terminal.
const KEYS_MAX: usize = 64;

/// Which keys are ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    /// All: nothing is typed.
    None,
    /// The escape only: Ctrl-C goes to the DUT.
    All,
    /// Ctrl-C and the like stay signals of ours.
    ButSignals,
}

/// A terminal that gives single keys and echoes none; as it was before once this is dropped.
pub(super) struct Raw(Termios);

impl Raw {
    /// Makes it so.
    pub(super) fn new(keys: Keys) -> anyhow::Result<Raw> {
        let before = termios::tcgetattr(std::io::stdin()).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        // Our own lines beside the console still begin at the left.
        raw.output_flags.insert(OutputFlags::OPOST | OutputFlags::ONLCR);
        if keys == Keys::ButSignals {
            raw.local_flags.insert(LocalFlags::ISIG);
        }
        termios::tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &raw)
            .context("cannot change the terminal's settings")?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = termios::tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}

/// The signals that end this process, from the moment of [`Endings::listen`] on.
pub(super) struct Endings {
    terminate: Signal,
    hang_up: Signal,
}

impl Endings {
    /// Before the terminal is changed: a signal that nobody hears would leave it so.
    pub(super) fn listen() -> anyhow::Result<Endings> {
        let heard = |kind| signal(kind).context("cannot wait for a signal");
        Ok(Endings { terminate: heard(SignalKind::terminate())?, hang_up: heard(SignalKind::hangup())? })
    }

    /// Ends this process by the first of them, once the terminal is as it was.
    pub(super) async fn restore(mut self, raw: &mut Option<Raw>) {
        let number = tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hang_up.recv() => SignalKind::hangup(),
        };
        drop(raw.take());
        // As shells have it for one that a signal ended.
        process::exit(128 + number.as_raw_value())
    }
}

/// Keys as they are pressed. The thread ends with the process: nobody can take a read of a terminal back.
pub(super) fn read_keys() -> mpsc::Receiver<Bytes> {
    let (keys, typed) = mpsc::channel(KEYS_MAX);
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(length) = std::io::stdin().lock().read(&mut buffer) {
            if length == 0 || keys.blocking_send(Bytes::copy_from_slice(&buffer[..length])).is_err() {
                return;
            }
        }
    });
    typed
}
