//! Files to and from a host over SFTP, compared at both ends.
//!
//! ```text
//!  put   bytes ─► hashed ─► <path>.part ─► the host hashes what it has ─► the same? ─► <path>      otherwise nothing is there
//!  get   the host hashes ─► bytes ─► hashed ─► the same? ─► end of the stream                      otherwise an error instead of the end
//! ```

use std::fmt;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use russh_sftp::client::error::Error;
use russh_sftp::client::fs::File;
use russh_sftp::client::{Config, SftpSession};
use russh_sftp::protocol::{OpenFlags, StatusCode};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::command::quoted;
use super::{Session, SshError};

/// A disk that is busy with others answers a request within this time.
const REQUEST_TIME_S: u64 = 60;
/// What is read at once: a request of the protocol is 32 KiB, and sixteen of them are on their way.
const CHUNK_BYTES: usize = 256 * 1024;

/// A file that was compared at both ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// How long it is.
    pub bytes: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// A file on its way here.
pub struct Getting {
    reading: Reading,
    /// The connection lives as long as this.
    session: Session,
    /// What the host said before.
    pub expected: Compared,
    path: String,
}

impl Session {
    /// Writes a file of this absolute path. `expected`: the SHA-256 that whoever sends it has told.
    pub async fn put<E: fmt::Display>(
        &self,
        path: &str,
        content: impl Stream<Item = Result<Bytes, E>> + Unpin,
        expected: Option<&str>,
    ) -> Result<Compared, SshError> {
        let sftp = self.sftp().await?;
        let part = format!("{path}.part");
        let written = self.fill(&sftp, path, &part, content, expected).await;
        if written.is_err() {
            let _ = sftp.remove_file(&part).await;
        }
        written
    }

    async fn fill<E: fmt::Display>(
        &self,
        sftp: &SftpSession,
        path: &str,
        part: &str,
        mut content: impl Stream<Item = Result<Bytes, E>> + Unpin,
        expected: Option<&str>,
    ) -> Result<Compared, SshError> {
        let flags = OpenFlags::CREATE | OpenFlags::WRITE | OpenFlags::TRUNCATE;
        let mut file = sftp.open_with_flags(part, flags).await.map_err(|error| self.fails("create", path, &error))?;
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        while let Some(chunk) = content.next().await {
            let chunk = chunk.map_err(|error| self.refused(format!("`{path}` did not come whole: {error}")))?;
            if let Err(error) = file.write_all(&chunk).await {
                return Err(self.cannot_write(sftp, path, &error).await);
            }
            hash.update(&chunk);
            bytes += chunk.len() as u64;
        }
        if let Err(error) = file.flush().await {
            return Err(self.cannot_write(sftp, path, &error).await);
        }
        file.close().await.map_err(|error| self.refused(format!("cannot write `{path}`: {error}")))?;
        let sent = Compared { bytes, sha256: hex(&hash.finalize()) };
        if let Some(expected) = expected.filter(|expected| **expected != sent.sha256) {
            return Err(self.refused(format!("`{path}` came as {}, and was announced as {expected}", sent.sha256)));
        }
        let there = self.hash_of(sftp, part).await?;
        if there != sent {
            let (it, we) = (there.sha256, &sent.sha256);
            return Err(self.refused(format!("`{path}` is {it} there and {we} here; nothing was kept")));
        }
        // SFTP's own rename does not replace a file (draft-ietf-secsh-filexfer-02 §6.5).
        self.script(&format!("mv -f -- {} {}", quoted(part), quoted(path))).await?;
        Ok(sent)
    }

    /// Begins to read a file of this absolute path.
    pub async fn get(self, path: &str) -> Result<Getting, SshError> {
        let sftp = self.sftp().await?;
        let found = sftp.metadata(path).await.map_err(|error| self.fails("read", path, &error))?;
        if !found.is_regular() {
            return Err(self.refused(format!("`{path}` is no file; pack a folder with `tar` first")));
        }
        let expected = self.hash_of(&sftp, path).await?;
        let file = sftp.open(path).await.map_err(|error| self.fails("read", path, &error))?;
        let reading = Reading { file, hash: Sha256::new(), bytes: 0 };
        Ok(Getting { reading, session: self, expected, path: path.to_owned() })
    }

    /// As the host itself sees the file; where it has no `sha256sum`, as we read it once more.
    async fn hash_of(&self, sftp: &SftpSession, path: &str) -> Result<Compared, SshError> {
        let there = self.script(&format!("sha256sum < {0} && wc -c < {0}", quoted(path))).await;
        let mut words = there.iter().flat_map(|said| said.split_whitespace());
        let (hash, bytes) = (words.next(), words.last().and_then(|bytes| bytes.parse().ok()));
        if let (Some(hash), Some(bytes)) = (hash.filter(|hash| hash.len() == 64), bytes) {
            return Ok(Compared { bytes, sha256: hash.to_owned() });
        }
        let file = sftp.open(path).await.map_err(|error| self.fails("read", path, &error))?;
        let mut reading = Reading { file, hash: Sha256::new(), bytes: 0 };
        let broken = |error| self.refused(format!("cannot read `{path}`: {error}"));
        while reading.next().await.map_err(broken)?.is_some() {}
        Ok(reading.so_far())
    }

    fn fails(&self, what: &str, path: &str, error: &Error) -> SshError {
        let why = match error {
            Error::Status(status) => match status.status_code {
                StatusCode::NoSuchFile if what == "create" => "its folder is not there; `mkdir -p` it first".to_owned(),
                StatusCode::NoSuchFile => "no such file".to_owned(),
                StatusCode::PermissionDenied => "permission denied".to_owned(),
                _ => status.error_message.clone(),
            },
            other => other.to_string(),
        };
        self.refused(format!("cannot {what} `{path}`: {why}"))
    }

    /// A full disk is only a `Failure` to SFTP.
    async fn cannot_write(&self, sftp: &SftpSession, path: &str, error: &std::io::Error) -> SshError {
        let folder = path.rsplit_once('/').map_or(".", |(folder, _)| folder);
        let room = sftp.fs_info(folder).await.ok().flatten();
        let is_full = room.is_some_and(|room| room.blocks_avail == 0 || room.inodes_avail == 0);
        let why = if is_full { "its disk is full".to_owned() } else { error.to_string() };
        self.refused(format!("cannot write `{path}`: {why}"))
    }

    async fn sftp(&self) -> Result<SftpSession, SshError> {
        let channel = self.handle.channel_open_session().await.map_err(|error| self.broken(error))?;
        channel.request_subsystem(true, "sftp").await.map_err(|error| self.broken(error))?;
        let config = Config { request_timeout_secs: REQUEST_TIME_S, ..Config::default() };
        let session = SftpSession::new_with_config(channel.into_stream(), config).await;
        session.map_err(|error| self.refused(format!("its SSH server has no SFTP: {error}")))
    }

    fn refused(&self, what: String) -> SshError {
        SshError::Refused { host: self.host.clone(), what }
    }
}

impl Getting {
    /// The next bytes; `None` once all of them came and are those that the host has.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SshError> {
        let read = self.reading.next().await;
        let read = read.map_err(|error| self.session.refused(format!("cannot read `{}`: {error}", self.path)))?;
        let came = self.reading.so_far();
        if read.is_some() || came == self.expected {
            return Ok(read);
        }
        let (here, there) = (&came.sha256, &self.expected.sha256);
        let what = format!("`{}` is {there} there and came as {here}; did it change meanwhile?", self.path);
        Err(self.session.refused(what))
    }
}

/// A file that is hashed while it is read.
struct Reading {
    file: File,
    hash: Sha256,
    bytes: u64,
}

impl Reading {
    async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        let mut chunk = vec![0; CHUNK_BYTES];
        let read = self.file.read(&mut chunk).await?;
        chunk.truncate(read);
        self.hash.update(&chunk);
        self.bytes += read as u64;
        Ok((read > 0).then(|| chunk.into()))
    }

    fn so_far(&self) -> Compared {
        Compared { bytes: self.bytes, sha256: hex(&self.hash.clone().finalize()) }
    }
}

/// Bytes in hexadecimal, as `sha256sum` prints them.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
