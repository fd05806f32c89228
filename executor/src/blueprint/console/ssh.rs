//! A console behind SSH: a program on another host that has the line, or a console server that gives it to whoever logs in.
//!
//! ```text
//!  open ─► log in (ssh/: the host's key is pinned) ─► a terminal that changes nothing ─► the command, or the login itself ─► stream
//!                                                                                           └ it ends: an error with the host
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use russh::keys::PrivateKey;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::timeout;

use super::stream::{Claims, Held};
use super::{Console, ConsoleStream};
use crate::blueprint::driver::{self, Mistake};
use crate::ssh::{HostKey, Login, Origin};

/// Logging in takes some 100 ms. What opening a console may take in all is 10 s.
const OPEN_TIME: Duration = Duration::from_secs(8);

/// A host that is reached by SSH.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["host", "user", "key", "host_key"]))]
pub struct Keys {
    /// Its name or address.
    host: String,
    /// Its SSH port.
    #[schemars(range(min = 1, max = 65535))]
    port: u16,
    /// Who logs in there.
    user: String,
    /// A file with our private key, without a passphrase; relative to the farm file.
    #[schemars(extend("x-example" = "key: console_ed25519"))]
    key: String,
    /// The host's own key, as `ssh-keyscan` prints it, or its fingerprint.
    #[schemars(extend("x-example" = "host_key: SHA256:uNiVztksCsDhcc0u9e8BrrQXVUpKZIDTMczCvj3tD2s"))]
    host_key: String,
    /// A line for the shell there, whose output and input are the console; the login itself is, when absent.
    command: Option<String>,
}

impl Default for Keys {
    /// SSH's own port.
    fn default() -> Self {
        let [host, user, key, host_key] = [const { String::new() }; 4];
        Keys { host, port: 22, user, key, host_key, command: None }
    }
}

impl driver::Keys<dyn Console> for Keys {
    fn build(self, context: &driver::Context<'_>) -> Result<Arc<dyn Console>, Vec<Mistake>> {
        let wrong =
            |what| vec![Mistake::new("host_key", what, "`ssh-keyscan HOST` prints it; compare it with the host's own")];
        let host_key = HostKey::parse(&self.host_key).map_err(wrong)?;
        let key = context.directory.join(&self.key);
        Ok(Arc::new(SshConsole { keys: self, key, host_key, claims: Claims::default() }))
    }
}

/// Reaches a console by SSH.
struct SshConsole {
    keys: Keys,
    key: PathBuf,
    host_key: HostKey,
    claims: Claims,
}

impl Console for SshConsole {
    fn open(&self) -> BoxFuture<'_, io::Result<Box<dyn ConsoleStream>>> {
        async {
            let Keys { host, port, user, command, .. } = &self.keys;
            let name = format!("{user}@{host}:{port}");
            let claim = self.claims.take(&name)?;
            let login = Login {
                name: host.clone(),
                address: host.clone(),
                port: *port,
                user: user.clone(),
                key: read_key(&self.key)?,
                host_keys: vec![self.host_key.clone()],
                from: Origin::Here,
            };
            let opening = async { login.open().await?.line(command.as_deref()).await };
            let line = match timeout(OPEN_TIME, opening).await {
                Ok(opened) => opened.map_err(io::Error::other)?,
                Err(_) => {
                    let why = format!("{name}: no console within {} s", OPEN_TIME.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
            };
            Ok(Box::new(Held::new(line, name, claim)) as Box<dyn ConsoleStream>)
        }
        .boxed()
    }
}

fn read_key(path: &Path) -> io::Result<Arc<PrivateKey>> {
    let failed = |why: String| io::Error::new(io::ErrorKind::InvalidInput, format!("{}: {why}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let key = PrivateKey::from_openssh(&text).map_err(|error| failed(format!("it is no private key: {error}")))?;
    if key.is_encrypted() {
        return Err(failed(
            "it has a passphrase, and nobody is there to type it; `ssh-keygen -p -N ''` removes it".into(),
        ));
    }
    Ok(Arc::new(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_key_that_is_none_is_a_mistake_and_a_key_that_is_none_is_told_with_its_path() {
        let context = driver::Context { directory: Path::new("/lab"), outlet: None };
        let keys = Keys { host_key: "trust me".into(), ..Keys::default() };
        let mistakes = driver::Keys::build(keys, &context).map(drop).unwrap_err();
        assert_eq!(mistakes[0].what, "it is neither `ssh-ed25519 AAAA…` nor `SHA256:…`");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "no key").unwrap();
        let why = read_key(&path).map(drop).unwrap_err().to_string();
        assert!(why.starts_with(&format!("{}: it is no private key: ", path.display())), "{why}");
    }
}
