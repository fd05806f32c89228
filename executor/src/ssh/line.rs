//! A program on a host as a line: its input and output, and no terminal's habits in between.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use russh::client::Msg;
use russh::{ChannelStream, Pty};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Session, SshError};

/// The terminal there passes every byte on as it is (RFC 4254, section 8): console programs want one, consoles want none.
const RAW: &[(Pty, u32)] = &[
    (Pty::ECHO, 0),
    (Pty::ICANON, 0),
    (Pty::ICRNL, 0),
    (Pty::IEXTEN, 0),
    (Pty::ISIG, 0),
    (Pty::IXON, 0),
    (Pty::ONLCR, 0),
    (Pty::OPOST, 0),
];

/// Its bytes, both ways. Dropping it hangs up.
pub struct Line {
    stream: ChannelStream<Msg>,
    _session: Session,
}

impl Session {
    /// Starts a line of the user's shell there, or what the server does for whoever just logs in.
    pub async fn line(self, command: Option<&str>) -> Result<Line, SshError> {
        let channel = self.handle.channel_open_session().await.map_err(|error| self.broken(error))?;
        channel.request_pty(false, "dumb", 80, 24, 0, 0, RAW).await.map_err(|error| self.broken(error))?;
        let started = match command {
            Some(command) => channel.exec(true, command).await,
            None => channel.request_shell(true).await,
        };
        started.map_err(|error| self.broken(error))?;
        Ok(Line { stream: channel.into_stream(), _session: self })
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
