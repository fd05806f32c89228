//! Programs are started by a thread of their own, which lives as long as the process.
//!
//! ```text
//!  spawn ─► order ─► the thread, one after the other: fork, wait until it has become the program ─► Child
//! ```
//! A fork copies the page tables of a server that serves much, and then the program is read from the disk: some 5 to 20 ms on a busy
//! machine, in which a worker of the runtime would serve nobody; a hundred outlets that are commands are read every 5 s. And
//! PR_SET_PDEATHSIG (prctl(2)) is bound to the thread that forks. A runtime of one thread has no other worker to keep free, and may be inside
//! a network that is its thread's alone (docs/decisions/0008-network-namespace-per-thread.md): it starts its programs itself.

use std::io;
use std::sync::{LazyLock, mpsc};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use tokio::process::{Child, Command};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::oneshot;

/// Each that sends one waits for its answer: there are never more than outlets and consoles.
static ORDERS: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
    let (orders, inbox) = mpsc::channel::<Order>();
    std::thread::spawn(move || inbox.into_iter().for_each(Order::carry_out));
    orders
});

struct Order {
    command: Command,
    runtime: Handle,
    answer: oneshot::Sender<io::Result<Child>>,
}

impl Order {
    fn carry_out(self) {
        let Order { mut command, runtime, answer } = self;
        let _inside = runtime.enter();
        let child = command.spawn();
        // It has the child's ends of pipes and terminals as well, and would keep them open.
        drop(command);
        // A child that nobody waits for any more is killed as it is dropped.
        let _ = answer.send(child);
    }
}

/// Starts a program that is killed when its [`Child`] is dropped, and when this process ends in whatever way. Called from within a tokio
/// runtime.
pub(super) async fn spawn(mut command: Command) -> io::Result<Child> {
    command.kill_on_drop(true);
    // SAFETY: between fork and exec only prctl(2) is called.
    unsafe { command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(Into::into)) };
    let runtime = Handle::current();
    if runtime.runtime_flavor() == RuntimeFlavor::CurrentThread {
        return command.spawn();
    }
    let (answer, started) = oneshot::channel();
    let gone = || io::Error::other("the thread that starts programs has ended");
    ORDERS.send(Order { command, runtime, answer }).map_err(|_| gone())?;
    started.await.map_err(|_| gone())?
}
