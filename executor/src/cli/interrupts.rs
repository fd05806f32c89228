//! Being told to stop: what a command holds it gives back at the first time, and at the second it leaves at once.
//!
//! | signal | of whom |
//! |---|---|
//! | SIGINT, SIGTERM | who types Ctrl-C, who started us, who shuts the machine down |
//! | SIGHUP | a terminal that is closed; under `nohup` it stays ignored |

use std::future::poll_fn;
use std::task::Poll;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The exit status of a command that was told to stop: a shell's for one that SIGINT ended, which Ctrl-C would otherwise have done.
pub(super) const INTERRUPTED: u8 = 130;

/// The signals, from the moment of [`Interrupts::listen`] on.
pub(super) struct Interrupts(Vec<Signal>);

impl Interrupts {
    /// Before anything is held: what comes from here on is heard by [`Interrupts::next`].
    pub(super) fn listen() -> anyhow::Result<Interrupts> {
        let mut kinds = vec![SignalKind::interrupt(), SignalKind::terminate()];
        if !is_ignored(SignalKind::hangup()) {
            kinds.push(SignalKind::hangup());
        }
        let signals = kinds.into_iter().map(signal).collect::<std::io::Result<_>>();
        signals.map(Interrupts).context("cannot listen for signals")
    }

    /// Until the next one.
    pub(super) async fn next(&mut self) {
        poll_fn(|context| match self.0.iter_mut().any(|signal| signal.poll_recv(context).is_ready()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }
}

/// Whether this process was started with the signal ignored (proc_pid_status(5), `SigIgn`).
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.unwrap_or(0) >> (kind.as_raw_value() - 1) & 1 == 1
}
