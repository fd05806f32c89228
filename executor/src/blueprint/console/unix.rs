//! A console behind a socket of this host: QEMU's `-serial unix:`, a simulator, socat. Bytes as they are.
//!
//! ```text
//!  open ─► connect ─► stream ─► dropped, and the next may open
//!            └ nobody listens: an error with the path
//! ```

use std::io;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::net::UnixStream;

use super::stream::{Claims, Held, named};
use super::{Console, ConsoleStream};
use crate::blueprint::driver::{self, Mistake};

/// The longest path of a socket: it ends with a zero within 108 bytes (unix(7)).
const PATH_BYTES_MAX: usize = 107;

/// A socket of this host that is the serial line, byte for byte.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["path"]))]
pub struct Keys {
    /// Where the socket is; relative to the farm file.
    #[schemars(extend("x-example" = "path: /run/qemu/board.sock"))]
    path: String,
}

impl driver::Keys<dyn Console> for Keys {
    fn build(self, context: &driver::Context<'_>) -> Result<Arc<dyn Console>, Vec<Mistake>> {
        let path = context.directory.join(&self.path).display().to_string();
        if self.path.is_empty() || path.len() > PATH_BYTES_MAX {
            let what = format!("`{path}` is no socket's path: it has {} bytes", path.len());
            let hint = format!("a socket's path has 1 to {PATH_BYTES_MAX} bytes; a symbolic link is shorter");
            return Err(vec![Mistake::new("path", what, hint)]);
        }
        Ok(Arc::new(UnixConsole { path, claims: Claims::default() }))
    }
}

/// Reaches a console over a socket of this host.
struct UnixConsole {
    path: String,
    claims: Claims,
}

impl Console for UnixConsole {
    fn open(&self) -> BoxFuture<'_, io::Result<Box<dyn ConsoleStream>>> {
        async {
            let claim = self.claims.take(&self.path)?;
            let stream = UnixStream::connect(&self.path).await.map_err(|error| named(&self.path, error))?;
            Ok(Box::new(Held::new(stream, self.path.clone(), claim)) as Box<dyn ConsoleStream>)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn bytes_go_both_ways_and_whoever_hangs_up_or_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("line").display().to_string();
        let console = UnixConsole { path: path.clone(), claims: Claims::default() };
        let why = console.open().await.map(drop).unwrap_err().to_string();
        assert_eq!(why, format!("{path}: No such file or directory (os error 2)"));
        let listener = UnixListener::bind(&path).unwrap();
        let mut stream = console.open().await.unwrap();
        let why = console.open().await.map(drop).unwrap_err().to_string();
        assert_eq!(why, format!("the console at {path} is open already; close that first"));
        let (mut dut, _) = listener.accept().await.unwrap();
        dut.write_all(b"\xff\0login:").await.unwrap();
        let mut heard = [0; 8];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"\xff\0login:");
        stream.write_all(b"root\r").await.unwrap();
        let mut typed = [0; 5];
        dut.read_exact(&mut typed).await.unwrap();
        assert_eq!(&typed, b"root\r");
        drop(dut);
        let why = stream.read(&mut [0; 8]).await.unwrap_err().to_string();
        assert_eq!(why, format!("{path} closed the connection"));
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_a_mistake() {
        let directory = std::path::Path::new("/lab");
        let context = driver::Context { directory, outlet: None };
        let keys = Keys { path: "x".repeat(200) };
        let mistakes = driver::Keys::build(keys, &context).map(drop).unwrap_err();
        assert!(mistakes[0].what.ends_with("is no socket's path: it has 205 bytes"), "{mistakes:?}");
    }
}
