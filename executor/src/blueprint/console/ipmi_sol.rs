//! A machine's console by its BMC: IPMI 2.0's Serial over LAN, spoken by `ipmitool`.
//!
//! ```text
//!  open ─► sol deactivate (what a killed client left, or somebody else has) ─► sol activate ─► `[SOL Session operational…]` ─► stream
//!                                                                                 └ no, or within 6 s not: an error with what it said
//! ```
//! * A BMC has one session: whoever had it loses it, as `ipmitool` of a person would make us lose it.
//! * `ipmitool` obeys what is typed behind an escape letter at a line's beginning (`~.` ends it). It is given the byte 255, which no text has.
//! * The password is in a file: arguments can be seen by every user of this host.
//!
//! Written against ipmitool 1.8.19. It reads pipes as it does terminals, but keeps its first line back from a pipe until a byte of the console comes.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::exec::{Output, serve};
use super::stream::{Claims, Served};
use super::{Console, ConsoleStream};
use crate::blueprint::driver::{self, Context, Mistake};

/// BMCs answer in some 100 ms, and lose packets while they do something else. What opening a console may take in all is 10 s.
const DEACTIVATE_TIME: Duration = Duration::from_secs(3);
const ACTIVATE_TIME: Duration = Duration::from_secs(6);
/// What `ipmitool` says when the session is there; the console begins behind its line.
const OPERATIONAL: &[u8] = b"[SOL Session operational.";
/// The longest line that is no console's yet.
const GREETING_BYTES_MAX: usize = 512;

/// A BMC with Serial over LAN.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["host", "user", "password_file"]))]
pub struct Keys {
    /// The BMC's name or address.
    host: String,
    /// Its UDP port.
    #[schemars(range(min = 1, max = 65535))]
    port: u16,
    /// Who logs in there; needs the right to open the console.
    user: String,
    /// A file with the password alone; relative to the farm file.
    #[schemars(extend("x-example" = "password_file: bmc-7.password"))]
    password_file: String,
    /// The number of a cipher suite, for BMCs that know fewer than they offer; 3 is what all have.
    cipher_suite: Option<u8>,
}

impl Default for Keys {
    /// RMCP+'s own port.
    fn default() -> Self {
        let [host, user, password_file] = [const { String::new() }; 3];
        Keys { host, port: 623, user, password_file, cipher_suite: None }
    }
}

impl driver::Keys<dyn Console> for Keys {
    fn build(self, context: &Context<'_>) -> Result<Arc<dyn Console>, Vec<Mistake>> {
        let password = context.directory.join(&self.password_file);
        Ok(Arc::new(SolConsole { keys: self, password, claims: Claims::default() }))
    }
}

/// Reaches a console by a BMC.
struct SolConsole {
    keys: Keys,
    password: PathBuf,
    claims: Claims,
}

impl Console for SolConsole {
    fn open(&self) -> BoxFuture<'_, io::Result<Box<dyn ConsoleStream>>> {
        async {
            let name = format!("the BMC {}:{}", self.keys.host, self.keys.port);
            let claim = self.claims.take_from_task(&name).await?;
            self.deactivate().await;
            let mut stream = serve(name.clone(), self.command("activate"), Output::Terminal, claim).await?;
            match timeout(ACTIVATE_TIME, skip_greeting(&mut stream)).await {
                Ok(greeted) => greeted?,
                Err(_) => {
                    let why = format!("{name} opened no console within {} s", ACTIVATE_TIME.as_secs());
                    return Err(io::Error::new(io::ErrorKind::TimedOut, why));
                }
            }
            Ok(Box::new(stream) as Box<dyn ConsoleStream>)
        }
        .boxed()
    }
}

impl SolConsole {
    /// A BMC that has no session says so, and that is as good; one that does not answer says so again in a moment.
    async fn deactivate(&self) {
        let mut command = self.command("deactivate");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let _ = timeout(DEACTIVATE_TIME, command.status()).await;
    }

    fn command(&self, verb: &str) -> Command {
        let Keys { host, port, user, cipher_suite, .. } = &self.keys;
        let mut command = Command::new("ipmitool");
        command.args(["-I", "lanplus", "-H", host, "-p", &port.to_string(), "-U", user, "-f"]).arg(&self.password);
        if let Some(suite) = cipher_suite {
            command.args(["-C", &suite.to_string()]);
        }
        command.arg("-e").arg(OsStr::from_bytes(b"\xff")).args(["sol", verb]);
        command
    }
}

/// Reads up to the end of the line with which `ipmitool` begins.
async fn skip_greeting(stream: &mut Served) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.push(stream.read_u8().await?);
        match line.as_slice() {
            [.., b'\n'] if line.starts_with(OPERATIONAL) => return Ok(()),
            // Warnings come before it.
            [.., b'\n'] => line.clear(),
            _ if line.len() > GREETING_BYTES_MAX => {
                return Err(io::Error::other("`ipmitool` does not begin with its usual line"));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_password_is_no_argument_and_the_escape_is_no_letter() {
        let keys = Keys {
            host: "10.0.0.7".into(),
            user: "admin".into(),
            password_file: "bmc-7.password".into(),
            cipher_suite: Some(3),
            ..Keys::default()
        };
        let password = Path::new("/lab").join(&keys.password_file);
        let console = SolConsole { keys, password, claims: Claims::default() };
        let command = console.command("activate");
        let words: Vec<_> = command.as_std().get_args().map(OsStr::as_bytes).collect();
        let expected = b"-I lanplus -H 10.0.0.7 -p 623 -U admin -f /lab/bmc-7.password -C 3 -e \xff sol activate";
        assert_eq!(words.join(&b' '), expected);
    }
}
