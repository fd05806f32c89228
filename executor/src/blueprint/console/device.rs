//! A terminal device of this host, read and written without blocking: what `tty` and `pty` have in common.
//!
//! ```text
//!  read ─┬─ bytes                                 a device that went away says so in one of four ways, and they all mean
//!        └─ 0, EIO, ENXIO, ENODEV ─► gone         the same; 0 for ever is what a read loop must not spin on
//! ```
//! What nobody has read when a device goes away is the kernel's to drop, and it does: so it is read at once, whoever waits for it.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A new pseudo terminal: the near end, the far end, and the far end's path. Its bytes as they are; no child inherits it.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd, PathBuf)> {
    let near = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    grantpt(&near)?;
    unlockpt(&near)?;
    let path = PathBuf::from(ptsname_r(&near)?);
    let far = open(&path)?;
    Ok((OwnedFd::from(near), far, path))
}

/// Opens a terminal. Its bytes as they are: no echo, no lines, no signals.
pub(super) fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = (OFlag::O_NOCTTY | OFlag::O_NONBLOCK).bits();
    let file: OwnedFd = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?.into();
    let mut settings =
        tcgetattr(&file).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "it is no terminal"))?;
    cfmakeraw(&mut settings);
    tcsetattr(&file, SetArg::TCSANOW, &settings)?;
    Ok(file)
}

/// An open terminal device.
pub(super) struct Device(AsyncFd<OwnedFd>);

impl Device {
    /// Reads and writes `file` from now on.
    pub(super) fn new(file: OwnedFd) -> io::Result<Device> {
        let flags = OFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GETFL)?);
        fcntl(&file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        // SAFETY: the descriptor is its own, and nobody takes it out of there.
        Ok(Device(unsafe { AsyncFd::register(file) }?))
    }
}

fn failed(error: Errno) -> io::Error {
    match error {
        Errno::EIO | Errno::ENXIO | Errno::ENODEV => gone(),
        _ => error.into(),
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the device went away; it is opened again when it is back")
}

impl AsyncRead for Device {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            match nix::unistd::read(self.0.get_ref(), buffer.initialize_unfilled()) {
                Ok(0) => return Poll::Ready(Err(gone())),
                Ok(length) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::EAGAIN) => guard.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(error) => return Poll::Ready(Err(failed(error))),
            }
        }
    }
}

impl AsyncWrite for Device {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            match nix::unistd::write(self.0.get_ref(), bytes) {
                Ok(length) => return Poll::Ready(Ok(length)),
                Err(Errno::EAGAIN) => guard.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(error) => return Poll::Ready(Err(failed(error))),
            }
        }
    }

    /// The kernel has it; the wire takes its time.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
