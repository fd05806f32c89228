//! A fastboot loader as a simulated DUT has one: over TCP, because no USB goes into a process. Written from the protocol's description, apart
//! from the host's side, and held to AOSP's own `fastboot` program by a test.
//!
//! ```text
//!  listen ─► FB01 both ways ─► getvar, download, boot ─► Loaded: the image's header, its size, its digest
//!    ▲                                │
//!    └─ the host hung up ◄────────────┘
//! ```
//! The image is counted and hashed as it comes, and not kept but for its header.

use std::io;

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::boot_image::{HEADER_BYTES, Header};
use crate::config::Misbehaviour;

/// The port of a loader, as AOSP's host has it.
pub const PORT: u16 = 5554;
/// 64 MiB, what many boards have for a boot image.
const IMAGE_BYTES_MAX: u64 = 64 << 20;
/// A longer command is no command (README.md: 4096 since Android 9).
const COMMAND_BYTES_MAX: u64 = 4096;
/// Read at once.
const READ_BYTES: usize = 64 * 1024;
/// Where a fault in the middle of an image happens.
const FAULT_AFTER_BYTES: u64 = 100_000;

/// What a loader says, and does wrong.
#[derive(Clone, Debug, Default)]
pub struct Loader {
    /// Its serial number.
    pub serial: String,
    /// Its faults in this boot.
    pub faults: Vec<Misbehaviour>,
}

/// What it was told to boot.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the image's header says.
    pub header: Header,
    /// The image's size.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// An image in memory, as far as it is kept.
struct Image {
    start: Vec<u8>,
    bytes: u64,
    sha256: String,
}

/// What to do with a connection after a command.
enum Then {
    Next,
    HangUp,
    Boot(Loaded),
}

impl Loader {
    /// Serves one host after the other, until one of them has it boot.
    pub async fn serve(&self, listener: &TcpListener) -> io::Result<Loaded> {
        loop {
            let (stream, _) = listener.accept().await?;
            // A host that goes away is no matter of the loader's.
            if let Ok(Some(loaded)) = (Host { loader: self, stream, image: None }).talk().await {
                return Ok(loaded);
            }
        }
    }

    fn has(&self, fault: Misbehaviour) -> bool {
        self.faults.contains(&fault)
    }

    fn variable(&self, name: &str) -> Option<String> {
        Some(match name {
            "version" => "0.4".to_owned(),
            "product" => "simulated".to_owned(),
            "serialno" => self.serial.clone(),
            "max-download-size" => format!("{IMAGE_BYTES_MAX:#x}"),
            _ => return None,
        })
    }
}

/// A host that is connected.
struct Host<'a> {
    loader: &'a Loader,
    stream: TcpStream,
    image: Option<Image>,
}

impl Host<'_> {
    async fn talk(&mut self) -> io::Result<Option<Loaded>> {
        self.stream.write_all(b"FB01").await?;
        let mut hello = [0; 4];
        self.stream.read_exact(&mut hello).await?;
        if !hello.starts_with(b"FB") {
            return Ok(None);
        }
        loop {
            let length = self.stream.read_u64().await?;
            if length > COMMAND_BYTES_MAX {
                self.answer("FAILcommand too long").await?;
                return Ok(None);
            }
            let mut command = vec![0; length as usize];
            self.stream.read_exact(&mut command).await?;
            match self.obey(&String::from_utf8_lossy(&command)).await? {
                Then::Next => {}
                Then::HangUp => return Ok(None),
                Then::Boot(loaded) => return Ok(Some(loaded)),
            }
        }
    }

    async fn obey(&mut self, command: &str) -> io::Result<Then> {
        let (verb, argument) = command.split_once(':').unwrap_or((command, ""));
        match verb {
            "getvar" if argument == "all" => {
                for name in ["version", "product", "serialno", "max-download-size"] {
                    let value = self.loader.variable(name).unwrap_or_default();
                    self.answer(&format!("INFO{name}:{value}")).await?;
                }
                self.answer("OKAY").await?;
            }
            "getvar" => match self.loader.variable(argument) {
                Some(value) => self.answer(&format!("OKAY{value}")).await?,
                None => self.answer("FAILunknown variable").await?,
            },
            "download" => return self.download(argument).await,
            "boot" => return self.boot().await,
            _ => self.answer("FAILunknown command").await?,
        }
        Ok(Then::Next)
    }

    async fn download(&mut self, argument: &str) -> io::Result<Then> {
        let size = u64::from_str_radix(argument, 16).ok().filter(|size| *size <= IMAGE_BYTES_MAX);
        let Some(size) = size else {
            self.answer("FAILdata too large").await?;
            return Ok(Then::Next);
        };
        if self.loader.has(Misbehaviour::LoaderBabbles) {
            self.answer("what was the question").await?;
            return Ok(Then::Next);
        }
        self.answer(&format!("DATA{size:08x}")).await?;
        let mut image = Image { start: Vec::new(), bytes: 0, sha256: String::new() };
        let mut digest = Sha256::new();
        let mut buffer = vec![0; READ_BYTES];
        while image.bytes < size {
            // The image may come in any number of messages.
            let mut message = self.stream.read_u64().await?.min(size - image.bytes);
            while message > 0 {
                let length = usize::try_from(message).unwrap_or(READ_BYTES).min(READ_BYTES);
                let read = self.stream.read(&mut buffer[..length]).await?;
                if read == 0 {
                    return Ok(Then::HangUp);
                }
                let missing = HEADER_BYTES.saturating_sub(image.start.len()).min(read);
                image.start.extend_from_slice(&buffer[..missing]);
                digest.update(&buffer[..read]);
                image.bytes += read as u64;
                message -= read as u64;
                if image.bytes > FAULT_AFTER_BYTES {
                    if self.loader.has(Misbehaviour::LoaderStalls) {
                        return std::future::pending().await;
                    }
                    if self.loader.has(Misbehaviour::LoaderHangsUp) {
                        return Ok(Then::HangUp);
                    }
                }
            }
        }
        image.sha256 = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        self.image = Some(image);
        self.answer("OKAY").await?;
        Ok(Then::Next)
    }

    async fn boot(&mut self) -> io::Result<Then> {
        if self.loader.has(Misbehaviour::LoaderChatters) {
            loop {
                self.answer("INFOone moment").await?;
            }
        }
        let Some(Image { start, bytes, sha256 }) = self.image.take() else {
            self.answer("FAILno image downloaded").await?;
            return Ok(Then::Next);
        };
        match Header::read(&start, bytes) {
            Ok(header) => {
                self.answer("INFObooting").await?;
                self.answer("OKAY").await?;
                Ok(Then::Boot(Loaded { header, bytes, sha256 }))
            }
            Err(why) => {
                self.answer(&format!("FAIL{why}")).await?;
                Ok(Then::Next)
            }
        }
    }

    async fn answer(&mut self, text: &str) -> io::Result<()> {
        let length = (text.len() as u64).to_be_bytes();
        self.stream.write_all(&[&length, text.as_bytes()].concat()).await
    }
}
