//! What requests and answers travel over: TCP as it is, or TLS on it; either way without waiting, as the ring of a connection wants it.
//!
//! ```text
//!  Clear   socket ◄──────────────────────────────────────────► bytes
//!  Tls     socket ─► records ─► rustls ─► unread ─► bytes       bytes ─► rustls ─► unsent records ─► socket
//! ```

use std::io::{self, BufRead, IoSlice, Read, Write};

use bytes::BytesMut;
use rustls::ServerConnection;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// A connection's bytes.
pub(super) enum Wire {
    Clear(TcpStream),
    Tls(Box<Sealed>),
}

/// TLS on a socket.
pub(super) struct Sealed {
    stream: TcpStream,
    session: ServerConnection,
    /// Whether bytes may be there that came out of a record and nobody took.
    is_unread: bool,
}

/// What comes in one turn at most: what one request of usual size and its head need.
const TURN_BYTES_MAX: usize = 256 * 1024;

impl From<TlsStream<TcpStream>> for Wire {
    /// After a handshake, whose last answer was flushed.
    fn from(stream: TlsStream<TcpStream>) -> Self {
        let (stream, session) = stream.into_inner();
        Wire::Tls(Box::new(Sealed { stream, session, is_unread: true }))
    }
}

impl Wire {
    /// Returns when [`try_read_buf`](Wire::try_read_buf) is worth a try.
    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Wire::Clear(stream) => stream.readable().await,
            Wire::Tls(sealed) if sealed.is_unread => Ok(()),
            Wire::Tls(sealed) => sealed.stream.readable().await,
        }
    }

    /// Returns when [`try_write_vectored`](Wire::try_write_vectored) or [`push`](Wire::push) is worth a try.
    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            Wire::Clear(stream) => stream.writable().await,
            Wire::Tls(sealed) => sealed.stream.writable().await,
        }
    }

    /// Reads what is there; 0 is the end.
    pub(super) fn try_read_buf(&mut self, input: &mut BytesMut) -> io::Result<usize> {
        match self {
            Wire::Clear(stream) => stream.try_read_buf(input),
            Wire::Tls(sealed) => sealed.try_read_buf(input),
        }
    }

    /// Takes as much of `slices` as goes now.
    pub(super) fn try_write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Wire::Clear(stream) => stream.try_write_vectored(slices),
            Wire::Tls(sealed) => sealed.try_write_vectored(slices),
        }
    }

    /// Sends on what was taken before, as far as it goes now.
    pub(super) fn push(&mut self) -> io::Result<()> {
        match self {
            Wire::Clear(_) => Ok(()),
            Wire::Tls(sealed) => sealed.push(),
        }
    }

    /// Whether something was taken that is not yet sent.
    pub(super) fn has_unsent(&self) -> bool {
        match self {
            Wire::Clear(_) => false,
            Wire::Tls(sealed) => sealed.session.wants_write(),
        }
    }

    /// Says goodbye, as far as that goes without waiting (the protocol text, "Terminating the transmission phase").
    pub(super) fn close(&mut self) {
        if let Wire::Tls(sealed) = self {
            sealed.session.send_close_notify();
            let _ = sealed.push();
        }
    }
}

impl Sealed {
    fn try_read_buf(&mut self, input: &mut BytesMut) -> io::Result<usize> {
        let mut taken = 0;
        let ended = loop {
            match self.session.reader().fill_buf() {
                Ok([]) => break Ok(()),
                Ok(plain) => {
                    let length = plain.len();
                    input.extend_from_slice(plain);
                    self.session.reader().consume(length);
                    taken += length;
                    if taken >= TURN_BYTES_MAX {
                        return Ok(taken);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match self.receive() {
                    Ok(0) => break Ok(()),
                    Ok(_) => {}
                    Err(error) => break Err(error),
                },
                Err(error) => break Err(error),
            }
        };
        self.is_unread = false;
        match ended {
            // What ends or fails now does so again when there is nothing left to take.
            _ if taken > 0 => Ok(taken),
            Ok(()) => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Records from the socket; 0 is its end.
    fn receive(&mut self) -> io::Result<usize> {
        let length = self.session.read_tls(&mut Now(&self.stream))?;
        self.session.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        // An answer of TLS itself, as to a change of keys.
        self.push()?;
        Ok(length)
    }

    fn try_write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.push()?;
        if self.session.wants_write() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let taken = self.session.writer().write_vectored(slices)?;
        self.push()?;
        Ok(taken)
    }

    fn push(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut Now(&self.stream)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A socket that never waits.
struct Now<'a>(&'a TcpStream);

impl Read for Now<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Now<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
