//! `wharf host`: commands and files on a host, under a lease.
//!
//! ```text
//!  run --lease ID  ─────────────────────────────────────► the command ─► its exit status
//!  run [--on NAME] [--tag T]… ─► take ─► checkout ─► put… ─► the command ─► get… ─► release ─► its exit status
//!                                  └─ Ctrl-C, or this process is gone: the lease ends, and everything on the host with it
//!  put LOCAL REMOTE, get REMOTE LOCAL   hashed at both ends and compared
//! ```

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::stream;
use http_body_util::BodyExt;
use hyper::Method;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::client::{Lines, Server, in_query};
use super::interrupts::{INTERRUPTED, Interrupts};
use super::lease::{path, release, tell, user};
use super::view::say;
use crate::api::wire::hosts::{CommandNewsWire, CommandWire, FileWire, SHA256_HEADER};
use crate::api::wire::leases::{LeaseStateWire, LeaseWire, OwnerWire, TakeWire};
use crate::blueprint::host::working_copy::checkout;
use crate::ssh::files::hex;

/// Exit status of a command that took too long, as of timeout(1).
const TIMED_OUT: u8 = 124;
/// Exit status when the farm or the host failed, as of ssh(1).
const HOST_FAILED: u8 = 255;
/// What of a file is sent at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// Arguments of `wharf host`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Run a command in a working copy; exit with its status
    Run(Run),
    /// Put a file into the working copy
    Put {
        /// The lease, of `wharf lease take --host --detach`
        #[arg(long)]
        lease: String,
        /// The file here
        local: PathBuf,
        /// The file there, relative to the working copy or absolute
        remote: String,
    },
    /// Get a file from the working copy
    Get {
        /// The lease, of `wharf lease take --host --detach`
        #[arg(long)]
        lease: String,
        /// The file there, relative to the working copy or absolute
        remote: String,
        /// The file here
        local: PathBuf,
    },
}

/// Arguments of `wharf host run`.
#[derive(clap::Args)]
struct Run {
    /// A lease that is there already; without, a host is taken and given back
    #[arg(long, conflicts_with_all = ["on", "tags", "priority"])]
    lease: Option<String>,
    /// The host's name; any that has the tags when absent
    #[arg(long, value_name = "HOST")]
    on: Option<String>,
    /// A tag that the host must have, such as `os:debian` or `arch:x86_64`
    #[arg(short = 't', long = "tag")]
    tags: Vec<String>,
    /// Higher goes first
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    /// A git repository to check out first, with `#BRANCH`, `#TAG` or `#COMMIT`
    #[arg(long, value_name = "URL[#REF]")]
    checkout: Option<String>,
    /// A file to put before
    #[arg(long, value_name = "LOCAL:REMOTE")]
    put: Vec<String>,
    /// A file to get afterwards, whatever the command's status
    #[arg(long, value_name = "REMOTE:LOCAL")]
    get: Vec<String>,
    /// How long the command may take, such as `1h 30m`; then it and all that it started is ended
    #[arg(long, value_name = "TIME")]
    timeout: Option<String>,
    /// The program and its words
    #[arg(last = true, required = true)]
    argv: Vec<String>,
}

/// Does what the verb says.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let server = Server::find(server)?;
    match arguments.verb {
        Verb::Run(arguments) => match arguments.lease.clone() {
            Some(lease) => arguments.under(&server, &lease).await,
            None => arguments.with_a_host(&server).await,
        },
        Verb::Put { lease, local, remote } => put(&server, &lease, &local, &remote).await.map(|()| ExitCode::SUCCESS),
        Verb::Get { lease, remote, local } => get(&server, &lease, &remote, &local).await.map(|()| ExitCode::SUCCESS),
    }
}

impl Run {
    /// Takes a host, does everything, gives it back.
    async fn with_a_host(&self, server: &Server) -> anyhow::Result<ExitCode> {
        let wish = TakeWire {
            id: Some(format!("host-{:08x}", rand::random::<u32>())),
            host: Some(self.on.clone().unwrap_or_default()),
            tags: self.tags.clone(),
            priority: self.priority,
            owner: Some(OwnerWire::Connection),
            name: Some(user()),
            subject: server.subject(),
            ..TakeWire::default()
        };
        let mut interrupts = Interrupts::listen()?;
        let lease: LeaseWire = server.ask(Method::POST, "/api/v1/leases", &wish).await?;
        let id = lease.id;
        let mut kept = Kept { views: server.lines(&format!("{}/events?owner=1", path(&id))).await?, told: None };
        let work = async {
            kept.until_active(&id).await?;
            tokio::select! { done = self.under(server, &id) => done, over = kept.until_over(&id) => Err(over) }
        };
        let done = tokio::select! {
            done = work => done,
            () = interrupts.next() => Ok(ExitCode::from(INTERRUPTED)),
        };
        // Our connection is kept meanwhile, so that the events tell a release and no lost owner.
        let given_back = tokio::select! {
            given_back = release(server, &id) => given_back,
            () = interrupts.next() => return Ok(ExitCode::from(INTERRUPTED)),
        };
        drop(kept);
        let done = done?;
        given_back?;
        Ok(done)
    }

    async fn under(&self, server: &Server, lease: &str) -> anyhow::Result<ExitCode> {
        if let Some(wanted) = &self.checkout {
            let (url, reference) = wanted.split_once('#').unwrap_or((wanted, "HEAD"));
            let status = command(server, lease, checkout(url, reference), self.timeout.clone()).await?.status();
            if status != 0 {
                say(format_args!("wharf: `{wanted}` cannot be checked out"));
                return Ok(ExitCode::from(status));
            }
        }
        for pair in &self.put {
            let (local, remote) = pair.split_once(':').with_context(|| format!("`{pair}` is not LOCAL:REMOTE"))?;
            put(server, lease, Path::new(local), remote).await?;
        }
        let status = command(server, lease, self.argv.clone(), self.timeout.clone()).await?.status();
        for pair in &self.get {
            let (remote, local) = pair.split_once(':').with_context(|| format!("`{pair}` is not REMOTE:LOCAL"))?;
            get(server, lease, remote, Path::new(local)).await?;
        }
        Ok(ExitCode::from(status))
    }
}

/// The connection that a lease lives by.
struct Kept {
    views: Lines<LeaseWire>,
    told: Option<String>,
}

impl Kept {
    async fn until_active(&mut self, id: &str) -> anyhow::Result<()> {
        while let Some(lease) = self.views.next().await? {
            tell(&lease, &mut self.told);
            match lease.state {
                LeaseStateWire::Active => return Ok(()),
                LeaseStateWire::Destroyed => bail!("lease {id} is over: {}", lease.cause),
                LeaseStateWire::Pending | LeaseStateWire::Acquired | LeaseStateWire::Releasing => {}
            }
        }
        bail!("the server ended the stream before lease {id} was active")
    }

    async fn until_over(&mut self, id: &str) -> anyhow::Error {
        loop {
            match self.views.next().await {
                Ok(Some(lease)) if lease.state == LeaseStateWire::Active => {}
                Ok(Some(lease)) => return anyhow::anyhow!("lease {id} ended meanwhile: {}", lease.cause),
                Ok(None) => return anyhow::anyhow!("the server ended the stream before lease {id} was over"),
                Err(error) => return error,
            }
        }
    }
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// With this exit status.
    Exit(u8),
    /// It took too long.
    TimedOut,
    /// The host, its lease or the farm failed it; why.
    Failed(String),
}

impl Ended {
    fn status(&self) -> u8 {
        match self {
            Ended::Exit(status) => *status,
            Ended::TimedOut => TIMED_OUT,
            Ended::Failed(_) => HOST_FAILED,
        }
    }
}

/// Runs a command with its streams as ours.
pub(super) async fn command(
    server: &Server,
    lease: &str,
    argv: Vec<String>,
    timeout: Option<String>,
) -> anyhow::Result<Ended> {
    let wish = CommandWire { argv, timeout };
    let mut news = server.follow::<CommandNewsWire>(&format!("{}/command", path(lease)), &wish).await?;
    let (mut stdout, mut stderr) = (std::io::stdout().lock(), std::io::stderr().lock());
    while let Some(said) = news.next().await? {
        if let Some(data) = &said.stdout {
            stdout.write_all(&BASE64_STANDARD.decode(data)?)?;
            stdout.flush()?;
        }
        if let Some(data) = &said.stderr {
            stderr.write_all(&BASE64_STANDARD.decode(data)?)?;
        }
        let what = said.what.unwrap_or_default();
        match said.end.as_deref() {
            None => {}
            Some("exit") => return Ok(Ended::Exit(u8::try_from(said.status.unwrap_or_default()).unwrap_or(u8::MAX))),
            Some("timeout") => {
                writeln!(stderr, "wharf: the command was {what}")?;
                return Ok(Ended::TimedOut);
            }
            Some(_) => {
                writeln!(stderr, "wharf: {what}")?;
                return Ok(Ended::Failed(what));
            }
        }
    }
    bail!("the server ended the stream before the command was over")
}

pub(super) async fn put(server: &Server, lease: &str, local: &Path, remote: &str) -> anyhow::Result<()> {
    let cannot = || format!("cannot read `{}`", local.display());
    let sha256 = hash_of(local).await.with_context(cannot)?;
    let file = tokio::fs::File::open(local).await.with_context(cannot)?;
    let content = stream::try_unfold(file, |mut file| async move {
        let mut chunk = vec![0; CHUNK_BYTES];
        let read = file.read(&mut chunk).await?;
        chunk.truncate(read);
        Ok((read > 0).then(|| (chunk.into(), file)))
    });
    let remote = remote_name(remote, local);
    let path = format!("{}/file?path={}", path(lease), in_query(&remote));
    let there: FileWire = server.upload(&path, &[(SHA256_HEADER, sha256.clone())], content).await?;
    if there.sha256 != sha256 {
        bail!("`{remote}` is {} there and {sha256} here", there.sha256);
    }
    say(format_args!("put {remote}: {} bytes, SHA-256 {sha256}", there.bytes));
    Ok(())
}

/// Into a folder, under its own name.
fn remote_name(remote: &str, local: &Path) -> String {
    let name = local.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match remote {
        "" | "." => name,
        folder if folder.ends_with('/') => format!("{folder}{name}"),
        file => file.to_owned(),
    }
}

async fn hash_of(local: &Path) -> std::io::Result<String> {
    let mut file = tokio::fs::File::open(local).await?;
    let (mut hash, mut chunk) = (Sha256::new(), vec![0; CHUNK_BYTES]);
    loop {
        let read = file.read(&mut chunk).await?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&chunk[..read]);
    }
}

pub(super) async fn get(server: &Server, lease: &str, remote: &str, local: &Path) -> anyhow::Result<()> {
    let response = server.download(&format!("{}/file?path={}", path(lease), in_query(remote))).await?;
    let expected = response.headers().get(SHA256_HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let local =
        if local.is_dir() { local.join(Path::new(remote).file_name().unwrap_or_default()) } else { local.into() };
    let cannot = || format!("cannot write `{}`", local.display());
    // Whoever waits for the name finds the whole file or none.
    let folder = local.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let part = tempfile::NamedTempFile::new_in(folder).with_context(cannot)?;
    let mut file = tokio::fs::File::from_std(part.reopen().with_context(cannot)?);
    let (mut hash, mut bytes, mut body) = (Sha256::new(), 0, response.into_body());
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| anyhow::anyhow!("`{remote}` broke off: {error}; the server's log says why"))?;
        if let Ok(data) = frame.into_data() {
            hash.update(&data);
            bytes += data.len();
            file.write_all(&data).await.with_context(cannot)?;
        }
    }
    file.flush().await.with_context(cannot)?;
    let came = hex(&hash.finalize());
    if expected.as_deref() != Some(&came) {
        bail!("`{remote}` came as {came} and is {} there", expected.unwrap_or_default());
    }
    part.persist(&local).with_context(cannot)?;
    say(format_args!("got {remote}: {bytes} bytes, SHA-256 {came}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_goes_into_a_folder_keeps_its_name() {
        let named = |remote: &str| remote_name(remote, Path::new("/tmp/x/tool.tar"));
        assert_eq!([named("."), named("in/"), named("in/other")], ["tool.tar", "in/tool.tar", "in/other"]);
    }
}
