//! A loader that waits to be given its boot image by Android's fastboot: found after power-on, asked who it is, given the image, and told to
//! boot it.
//!
//! ```text
//!  Loader::reach ── every half second, until it is there ─► Link          tcp.rs: port 5554 · usb.rs: by serial number or place
//!  boot ── Dialogue (dialogue.rs ◆) ── a command, an answer ─► Link ── the image, 1 MiB at a time ─► … ─► it boots
//! ```
//! Why our own: the crates for it are bound to USB, keep none of what a loader says, and wait for ever. Nothing is tried twice here: whether
//! there is another boot, the session decides.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use gateway::content::{ContentError, Reader};
use tokio::time::{Instant, sleep, timeout, timeout_at};

pub mod dialogue;
pub mod plugged;
pub mod tcp;
pub mod usb;

#[cfg(test)]
mod tests;

use dialogue::{Dialogue, Next, Order};

/// Between two looks for a loader: soon enough for any boot, and two connections or listings a second burden nobody.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Of the image at once: a loader that takes less than this in [`Patience::answer`] is slower than USB 1.1.
const PIECE_BYTES: usize = 1024 * 1024;

/// How long is waited for what.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From power-on until the loader is there.
    pub show_up: Duration,
    /// From a command, or a line that the loader says, to its next one; and for each piece of the image.
    pub answer: Duration,
    /// From a command to its answer, whatever is said meanwhile.
    pub command: Duration,
}

impl Default for Patience {
    /// Five minutes until it is there: a server board's own tests take three. Half a minute for an answer is what AOSP's host waits, five
    /// minutes what the slowest loader may take to look through an image.
    fn default() -> Self {
        let minutes = |count: u64| Duration::from_secs(count * 60);
        Patience { show_up: minutes(5), answer: Duration::from_secs(30), command: minutes(5) }
    }
}

/// Where a loader is found.
#[derive(Clone, Debug)]
pub enum Loader {
    /// At a TCP port.
    Tcp(tcp::Address),
    /// At a USB port of this host.
    Usb(usb::Device),
}

/// A connection to a loader: packets there and back.
pub trait Link: Send {
    /// Sends a command, as one packet.
    fn send<'a>(&'a mut self, command: &'a str) -> BoxFuture<'a, io::Result<()>>;
    /// `bytes` of an image come now, by any number of [`Link::send_piece`].
    fn begin_image(&mut self, bytes: u64) -> BoxFuture<'_, io::Result<()>>;
    /// Sends a piece of it; done once the loader has taken it, or the kernel has for it.
    fn send_piece(&mut self, piece: Bytes) -> BoxFuture<'_, io::Result<()>>;
    /// The next answer.
    fn receive(&mut self) -> BoxFuture<'_, io::Result<Vec<u8>>>;
}

/// What is heard on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The loader is the right one, and waits for the image.
    Ready,
    /// The loader said so.
    Line(String),
    /// It took so many more bytes of the image.
    Took(u64),
}

/// Why a DUT was not booted.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// What the loader said.
    #[error(transparent)]
    Dialogue(#[from] dialogue::Fault),
    /// It is not there.
    #[error("it did not show up within {seconds} s of power-on: {why}")]
    Absent { seconds: u64, why: String },
    /// It is something else.
    #[error("{0}")]
    NoLoader(String),
    /// This host cannot say which one it is.
    #[error("{0}")]
    Host(String),
    /// It is there, and says nothing.
    #[error("no answer to `{command}` within {seconds} s")]
    Silent { command: String, seconds: u64 },
    /// It does not take the image.
    #[error("it took {bytes} bytes of the boot image, and no more within {seconds} s")]
    Stalled { bytes: u64, seconds: u64 },
    /// It went away.
    #[error("the connection broke in `{command}`: {source}")]
    Broken { command: String, source: io::Error },
    /// It went away in the middle of the image.
    #[error("the connection broke after {bytes} bytes of the boot image: {source}")]
    BrokenOff { bytes: u64, source: io::Error },
    /// There is no image.
    #[error("the boot image cannot be read: {0}")]
    Image(#[from] ContentError),
}

/// Why a look for a loader did not find one.
enum Missed {
    /// It may come.
    NotYet(String),
    /// What is there is no loader.
    Never(String),
    /// This host cannot look, or not tell.
    Host(String),
}

impl Loader {
    /// Waits until it is there.
    pub async fn reach(&self, patience: &Patience) -> Result<Box<dyn Link>, Fault> {
        let until = Instant::now() + patience.show_up;
        loop {
            let found = match self {
                Loader::Tcp(address) => address.connect().await,
                Loader::Usb(device) => device.open().await,
            };
            match found {
                Ok(link) => return Ok(link),
                Err(Missed::Never(why)) => return Err(Fault::NoLoader(why)),
                Err(Missed::Host(why)) => return Err(Fault::Host(why)),
                Err(Missed::NotYet(why)) if Instant::now() >= until => {
                    return Err(Fault::Absent { seconds: patience.show_up.as_secs(), why });
                }
                Err(Missed::NotYet(_)) => sleep(LOOK_AGAIN).await,
            }
        }
    }
}

impl fmt::Display for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Loader::Tcp(address) => write!(f, "the fastboot loader at {}", address.socket),
            Loader::Usb(device) => write!(f, "the fastboot loader on USB with {device}"),
        }
    }
}

/// Has the loader boot `image`, if it says what `order` wants. Gives how long it took the image.
pub async fn boot(
    link: &mut dyn Link,
    order: Order,
    image: &Reader,
    patience: &Patience,
    heard: &mut (dyn FnMut(Heard) + Send),
) -> Result<Duration, Fault> {
    let image_bytes = order.image_bytes;
    let (mut dialogue, mut command) = Dialogue::begin(order)?;
    let (mut began, mut took) = (None, Duration::ZERO);
    loop {
        let end = Instant::now() + patience.command;
        let silent = |command: String| Fault::Silent { command, seconds: patience.answer.as_secs() };
        let sent = timeout(patience.answer, link.send(&command)).await.map_err(|_| silent(command.clone()))?;
        sent.map_err(|source| Fault::Broken { command: command.clone(), source })?;
        command = loop {
            let until = end.min(Instant::now() + patience.answer);
            let answer = timeout_at(until, link.receive()).await.map_err(|_| silent(dialogue.command()))?;
            let answer = answer.map_err(|source| Fault::Broken { command: dialogue.command(), source })?;
            match dialogue.handle(&answer)? {
                Next::Told(line) => heard(Heard::Line(line)),
                Next::Send(command) => {
                    took = began.map_or(took, |began: Instant| began.elapsed());
                    break command;
                }
                Next::SendImage => {
                    began = Some(Instant::now());
                    heard(Heard::Ready);
                    send_image(link, image, image_bytes, patience, heard).await?;
                }
                Next::Booted => return Ok(took),
            }
        };
    }
}

async fn send_image(
    link: &mut dyn Link,
    image: &Reader,
    image_bytes: u64,
    patience: &Patience,
    heard: &mut (dyn FnMut(Heard) + Send),
) -> Result<(), Fault> {
    let mut bytes = 0;
    let stalled = |bytes| Fault::Stalled { bytes, seconds: patience.answer.as_secs() };
    let begun = timeout(patience.answer, link.begin_image(image_bytes)).await.map_err(|_| stalled(bytes))?;
    begun.map_err(|source| Fault::BrokenOff { bytes, source })?;
    while bytes < image_bytes {
        let length = usize::try_from(image_bytes - bytes).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        let piece = image.read_at(bytes, length).await?;
        if piece.is_empty() {
            let reason = format!("it ends after {bytes} of {image_bytes} bytes");
            return Err(Fault::Image(ContentError::Edit { what: "the boot image".to_owned(), reason }));
        }
        let taken = piece.len() as u64;
        let sent = timeout(patience.answer, link.send_piece(piece)).await.map_err(|_| stalled(bytes))?;
        sent.map_err(|source| Fault::BrokenOff { bytes, source })?;
        bytes += taken;
        heard(Heard::Took(taken));
    }
    Ok(())
}
