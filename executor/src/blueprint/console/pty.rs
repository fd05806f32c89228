//! A pseudo terminal of this host: somebody else's (QEMU's `-serial pty`, socat, Renode), or one that we make for somebody else to open.
//!
//! ```text
//!  path: /run/board/tty    ─► opened as it is; its maker is the DUT; when that goes away the stream ends
//!  link: /run/wharf/board  ─► a new pair; the link leads to its far end, where the DUT's program opens it, as often as it likes
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;

use super::device::{Device, open, pair};
use super::stream::{Claims, Held, named};
use super::{Console, ConsoleStream};
use crate::blueprint::driver::{self, Mistake};

/// A pseudo terminal of this host.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("x-exactly-one" = ["path", "link"]))]
pub struct Keys {
    /// One that is there; relative to the farm file.
    #[schemars(extend("x-example" = "path: /run/qemu/board.tty"))]
    path: Option<String>,
    /// One that is made: where the link to it is put; relative to the farm file.
    link: Option<String>,
}

impl driver::Keys<dyn Console> for Keys {
    fn build(self, context: &driver::Context<'_>) -> Result<Arc<dyn Console>, Vec<Mistake>> {
        let which = match (self.path, self.link) {
            (Some(path), _) => Which::Path(context.directory.join(path)),
            (None, Some(link)) => Which::Link(context.directory.join(link)),
            (None, None) => {
                return Err(vec![Mistake::new("", "which terminal it is, is not said", "write its `path`, or `link`")]);
            }
        };
        Ok(Arc::new(PtyConsole { which, claims: Claims::default() }))
    }
}

#[derive(Debug)]
enum Which {
    Path(PathBuf),
    Link(PathBuf),
}

/// Reaches a console over a pseudo terminal.
struct PtyConsole {
    which: Which,
    claims: Claims,
}

impl PtyConsole {
    fn open_now(&self) -> io::Result<Box<dyn ConsoleStream>> {
        let (Which::Path(path) | Which::Link(path)) = &self.which;
        let name = path.display().to_string();
        let claim = self.claims.take(&name)?;
        let failed = |error: io::Error| named(&name, error);
        match &self.which {
            Which::Path(path) => {
                let device = Device::new(open(path).map_err(failed)?)?;
                Ok(Box::new(Held::new(device, name, claim)))
            }
            Which::Link(path) => {
                let made = Made::new(path).map_err(failed)?;
                let near = made.near.try_clone().map_err(failed)?;
                Ok(Box::new(Held::new(Device::new(near)?, name, (made, claim))))
            }
        }
    }
}

impl Console for PtyConsole {
    fn open(&self) -> BoxFuture<'_, io::Result<Box<dyn ConsoleStream>>> {
        async { self.open_now() }.boxed()
    }
}

/// A pair of ours, with the link to its far end. The far end is held open here, too: otherwise each program that closes it would be an end.
struct Made {
    near: OwnedFd,
    _far: OwnedFd,
    link: PathBuf,
}

impl Made {
    fn new(link: &Path) -> io::Result<Made> {
        let (near, far, path) = pair()?;
        // What a killed server left leads to nothing, or to somebody else's terminal; what is no link is not ours.
        if link.symlink_metadata().is_ok_and(|link| link.file_type().is_symlink()) {
            std::fs::remove_file(link)?;
        }
        std::os::unix::fs::symlink(path, link)?;
        Ok(Made { near, _far: far, link: link.to_owned() })
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.link);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_terminal_of_somebody_else_s_ends_with_its_maker() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tty");
        let (near, far, device) = pair().unwrap();
        std::os::unix::fs::symlink(device, &path).unwrap();
        let console = PtyConsole { which: Which::Path(path.clone()), claims: Claims::default() };
        let mut stream = console.open().await.unwrap();
        let mut maker = std::fs::File::from(near);
        maker.write_all(b"login:\r\n\0\xff").unwrap();
        let mut heard = [0; 10];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"login:\r\n\0\xff");
        stream.write_all(b"root\r\x03").await.unwrap();
        let mut typed = [0; 6];
        maker.read_exact(&mut typed).unwrap();
        assert_eq!(&typed, b"root\r\x03");
        drop((maker, far));
        let why = stream.read_u8().await.unwrap_err().to_string();
        assert!(why.contains(": the device went away"), "{why}");
    }

    #[tokio::test]
    async fn one_of_ours_is_opened_by_its_link_as_often_as_somebody_likes() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join("board");
        // Of a server that was killed.
        std::os::unix::fs::symlink("/dev/pts/none", &link).unwrap();
        let console = PtyConsole { which: Which::Link(link.clone()), claims: Claims::default() };
        let mut stream = console.open().await.unwrap();
        for round in 0..3 {
            let mut dut = std::fs::File::from(open(&link).unwrap());
            writeln!(dut, "boot {round}").unwrap();
            drop(dut);
            let mut heard = [0; 7];
            stream.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, format!("boot {round}\n").as_bytes());
        }
        drop(stream);
        assert!(!link.exists() && link.symlink_metadata().is_err());
        console.open().await.map(drop).unwrap();
    }

    #[tokio::test]
    async fn what_is_no_terminal_or_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let console = PtyConsole { which: Which::Path(path.clone()), claims: Claims::default() };
        let why = console.open().await.map(drop).unwrap_err().to_string();
        assert_eq!(why, format!("{}: No such file or directory (os error 2)", path.display()));
        std::fs::write(&path, "").unwrap();
        let why = console.open().await.map(drop).unwrap_err().to_string();
        assert_eq!(why, format!("{}: it is no terminal", path.display()));
        let console = PtyConsole { which: Which::Link(path.clone()), claims: Claims::default() };
        let why = console.open().await.map(drop).unwrap_err().to_string();
        assert_eq!(why, format!("{}: File exists (os error 17)", path.display()));
    }
}
