//! A serial line that outlives the DUT behind it: one stream for the reader, over any number of boots.
//!
//! ```text
//!   Line::open ─► Stream ◄──64 KiB──► write()   what the DUT says; lost while nobody has the line open
//!                        ──pump──► 4 KiB ─► read_line()   what was typed; dropped while the power is off or the buffer is full
//!   go_away ─► the stream ends; open is refused and what is said is lost, until the time is over
//! ```

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// 64 KiB on the way: a reader that is slow for a moment stops nobody; one that never reads stops the DUT, as flow control would.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// 4 KiB typed ahead: a terminal's canonical line length.
const INPUT_BYTES_MAX: usize = 4096;

/// The DUT's side of a serial line.
#[derive(Default)]
pub(super) struct Line {
    output: tokio::sync::Mutex<Option<WriteHalf<DuplexStream>>>,
    reader: Mutex<Weak<()>>,
    input: Arc<Input>,
    pump: Mutex<Option<AbortHandle>>,
    away_until: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct Input {
    typed: Mutex<Option<VecDeque<u8>>>,
    arrived: Notify,
}

/// The reader's side. The line is free again when it is dropped.
pub(super) struct Stream {
    inner: DuplexStream,
    _reader: Arc<()>,
}

impl Line {
    /// Opens the line; refused while somebody else has it, and while it is away.
    pub(super) async fn open(&self) -> io::Result<Stream> {
        if locked(&self.away_until).is_some_and(|until| Instant::now() < until) {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "nothing answers where the console was"));
        }
        let token = {
            let mut reader = locked(&self.reader);
            if reader.upgrade().is_some() {
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, "the console is open already; close it first"));
            }
            let token = Arc::new(());
            *reader = Arc::downgrade(&token);
            token
        };
        let (ours, theirs) = tokio::io::duplex(OUTPUT_BYTES_MAX);
        let (typed, output) = tokio::io::split(ours);
        // A DUT that still writes to the last reader's stream gets an error from it at once: the wait is short.
        *self.output.lock().await = Some(output);
        let pump = tokio::spawn(pump(typed, Arc::clone(&self.input)));
        *locked(&self.pump) = Some(pump.abort_handle());
        Ok(Stream { inner: theirs, _reader: token })
    }

    /// The line is gone for so long: whoever has it open reads its end once all that was said before is read.
    pub(super) async fn go_away(&self, length: Duration) {
        *locked(&self.away_until) = Some(Instant::now() + length);
        // Both halves go: the stream ends in both directions.
        if let Some(pump) = locked(&self.pump).take() {
            pump.abort();
        }
        *self.output.lock().await = None;
    }

    /// The power comes or goes: what was typed before is forgotten.
    pub(super) fn set_listening(&self, listening: Listening) {
        *locked(&self.input.typed) = match listening {
            Listening::On => Some(VecDeque::new()),
            Listening::Off => None,
        };
    }

    /// Says `bytes`; waits while the reader does not keep up.
    pub(super) async fn write(&self, bytes: &[u8]) {
        let mut output = self.output.lock().await;
        if let Some(stream) = output.as_mut()
            && stream.write_all(bytes).await.is_err()
        {
            *output = None;
        }
    }

    /// The next line that was typed, without its end.
    pub(super) async fn read_line(&self) -> Vec<u8> {
        loop {
            let arrived = self.input.arrived.notified();
            if let Some(line) = locked(&self.input.typed).as_mut().and_then(take_line) {
                return line;
            }
            arrived.await;
        }
    }
}

/// Whether somebody is there to hear what is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listening {
    /// The DUT has power.
    On,
    /// It has none.
    Off,
}

fn take_line(typed: &mut VecDeque<u8>) -> Option<Vec<u8>> {
    loop {
        let end = typed.iter().position(|byte| matches!(byte, b'\r' | b'\n'))?;
        let line: Vec<u8> = typed.drain(..=end).take(end).collect();
        // CR LF is one end; an empty line says nothing.
        if !line.is_empty() {
            return Some(line);
        }
    }
}

/// Moves what is typed into the bounded buffer, so that the one who types is never held up.
async fn pump(mut stream: ReadHalf<DuplexStream>, input: Arc<Input>) {
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        if let Some(typed) = locked(&input.typed).as_mut() {
            let room = INPUT_BYTES_MAX.saturating_sub(typed.len());
            typed.extend(&buffer[..length.min(room)]);
        }
        input.arrived.notify_one();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_reader_at_a_time_and_what_is_said_to_nobody_is_lost() {
        let line = Line::default();
        line.write(b"to nobody").await;
        let mut first = line.open().await.unwrap();
        assert_eq!(line.open().await.err().unwrap().to_string(), "the console is open already; close it first");
        line.write(b"to the first").await;
        let mut heard = [0; 12];
        first.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"to the first");
        drop(first);
        line.write(b"lost").await;
        let mut second = line.open().await.unwrap();
        line.write(b"to the second").await;
        let mut heard = [0; 13];
        second.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"to the second");
    }

    #[tokio::test]
    async fn a_line_that_goes_away_ends_its_stream_and_can_be_opened_again_later() {
        let line = Line::default();
        let mut first = line.open().await.unwrap();
        line.write(b"before").await;
        line.go_away(Duration::from_millis(200)).await;
        let mut heard = Vec::new();
        first.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"before");
        drop(first);
        assert_eq!(line.open().await.err().unwrap().to_string(), "nothing answers where the console was");
        line.write(b"meanwhile").await;
        let opened_again = async {
            loop {
                match line.open().await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        let mut second = tokio::time::timeout(Duration::from_secs(30), opened_again).await.unwrap();
        line.write(b"after").await;
        let mut heard = [0; 5];
        second.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"after");
    }

    #[tokio::test]
    async fn lines_are_heard_under_power_only_and_typing_never_blocks() {
        let line = Line::default();
        let mut stream = line.open().await.unwrap();
        line.set_listening(Listening::On);
        stream.write_all(b"one\r\n\ntwo\rthree").await.unwrap();
        assert_eq!(line.read_line().await, b"one");
        assert_eq!(line.read_line().await, b"two");
        line.set_listening(Listening::Off);
        stream.write_all(&[b'x'; 1024 * 1024]).await.unwrap();
        stream.flush().await.unwrap();
    }
}
