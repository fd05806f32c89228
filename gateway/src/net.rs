//! Where sockets are made: on the host, or inside a private network namespace.
//!
//! A Linux network namespace belongs to a thread, and a socket stays in the namespace it was made in. So one short-lived
//! thread enters the namespace, makes the socket and ends; the rest of the process never leaves the host's network and
//! can still download artifacts and answer operators.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, Socket, Type};

/// The network that sockets are made in. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Net(Option<Arc<OwnedFd>>);

impl Net {
    /// The network this process was started in.
    pub fn host() -> Self {
        Net(None)
    }

    /// The network namespace that `handle` (an open `/proc/<pid>/ns/net`) refers to; it lives as long as a clone of this value.
    pub fn namespace(handle: OwnedFd) -> Self {
        Net(Some(Arc::new(handle)))
    }

    /// The namespace's handle, `None` for the host's network.
    pub fn handle(&self) -> Option<&OwnedFd> {
        self.0.as_deref()
    }

    /// Runs `work` on a thread inside this network and waits for it. Blocks for as long as `work` does: keep it to making sockets
    /// and setting up links.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let Some(handle) = self.handle() else {
            return work();
        };
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(handle, CloneFlags::CLONE_NEWNET)?;
                work()
            });
            worker.join().unwrap_or_else(|_| Err(io::Error::other("the thread inside the network namespace panicked")))
        })
    }

    /// A non-blocking UDP socket bound to `address`; `interface` restricts it to one link (SO_BINDTODEVICE).
    pub fn udp(&self, address: SocketAddr, interface: Option<&str>) -> io::Result<tokio::net::UdpSocket> {
        let socket = self.run(|| {
            let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
            if let Some(interface) = interface {
                socket.bind_device(Some(interface.as_bytes()))?;
            }
            socket.set_reuse_address(true)?;
            socket.set_broadcast(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            Ok(socket)
        })?;
        tokio::net::UdpSocket::from_std(socket.into())
    }

    /// A listening TCP socket on `address`.
    pub fn tcp_listener(&self, address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
        let listener = self.run(|| {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            // 1024: a rack that is switched on at once opens several connections per DUT.
            socket.listen(1024)?;
            Ok(socket)
        })?;
        tokio::net::TcpListener::from_std(listener.into())
    }
}
