//! The ring around one CI-tron console: a connection that shows a job and owns it.
//!
//! ```text
//!             ┌ upgrade: 101 alone ─► acknowledged ─► grace ─► greeting ─┐
//!  accepted ──┤                                                          ├─► tell until session_end ─► half-close ─► wait for the client
//!             └ callback: connected, then 200 ───────────────────────────┘       │
//!                                                    client gone before the end ─┴─► cancel: SubmitterGone
//! ```
//! A client that never reads holds this task and nothing else: the job runs on by its own timeouts, then the connection is dropped.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{sleep, timeout};

use super::buckets::access;
use super::ci_tron_console::{Decoder, Framer, FromClient};
use super::owner::Owner;
use super::serve::prepare_tcp;
use super::wire::console_of;
use crate::farm::{JobRecord, JobState};
use crate::job_log::JobEvent;

/// We connect before we answer, and the client's HTTP has no limit of its own; it would wait 15 s more after the answer.
const CALLBACK_TIMEOUT: Duration = Duration::from_secs(10);

/// After the end: for a client that downloads its job bucket (it tries three times with pauses of 2, 4 and 8 s), and for one that
/// stopped reading.
const LINGER: Duration = Duration::from_secs(60);

/// How often a writer that waits for its client looks whether the job is over.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the 101 may stay unacknowledged before the console starts anyway: some round trips of a bad line.
const ACKNOWLEDGED_MAX: Duration = Duration::from_secs(2);

/// Between two looks at the kernel's send queue.
const ACKNOWLEDGED_STEP: Duration = Duration::from_millis(5);

/// Client 0.2.x throws away what its HTTP library read together with the 101 header. Its kernel has the header now (acknowledged), its
/// process is blocked in that read: this is the time it gets to wake up on a busy machine.
const GRACE: Duration = Duration::from_millis(250);

/// The same where the send queue cannot be asked: round trip and wake-up together.
const GRACE_UNKNOWN: Duration = Duration::from_millis(750);

/// Reads of a client's key presses.
const READ_BYTES: usize = 4096;

/// Shows a job on the connection of an accepted upgrade.
pub(super) async fn after_upgrade(
    upgrade: OnUpgrade,
    owner: Owner,
    host: Option<String>,
    _permit: Option<Arc<OwnedSemaphorePermit>>,
) {
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            return tracing::info!(job = owner.record().id, %error, "the console's client left during the upgrade");
        }
    };
    match upgraded.downcast::<TokioIo<TcpStream>>() {
        Ok(parts) => {
            let stream = parts.io.into_inner();
            acknowledged(&stream).await;
            sleep(GRACE).await;
            converse(stream, &parts.read_buf, owner, host).await;
        }
        Err(upgraded) => {
            sleep(GRACE_UNKNOWN).await;
            converse(TokioIo::new(upgraded), b"", owner, host).await;
        }
    }
}

/// Connects to the port on which a client without upgrade listens.
pub(super) async fn call_back(host: &str, port: u16) -> Result<TcpStream, String> {
    let next_step = "run the client where this server can reach it, name a reachable host with --callback, or use a client that \
                     upgrades (0.2.0 or newer)";
    match timeout(CALLBACK_TIMEOUT, TcpStream::connect((host, port))).await {
        Ok(Ok(stream)) => {
            prepare_tcp(&stream);
            Ok(stream)
        }
        Ok(Err(error)) => Err(format!("cannot connect to your console at {host}:{port}: {error}; {next_step}")),
        Err(_) => Err(format!("your console at {host}:{port} did not answer within {CALLBACK_TIMEOUT:?}; {next_step}")),
    }
}

/// Shows a job on a connection and types what its client types. `host`, where it reached us, when it will fetch the job's bucket. The client that leaves before the end takes its job along.
pub(super) async fn converse<S>(stream: S, already_read: &[u8], owner: Owner, host: Option<String>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (read, mut write) = tokio::io::split(stream);
    let mut decoder = Decoder::default();
    decoder.push(already_read);
    let mut listening = std::pin::pin!(listen(read, decoder, owner.record()));
    let told = tokio::select! {
        told = tell(&mut write, &owner, host.as_deref()) => told,
        reason = &mut listening => Err(io::Error::other(reason)),
    };
    match told {
        // The client's own close says that it has fetched everything; it is the last word.
        Ok(()) => drop((write.shutdown().await, timeout(LINGER, listening).await)),
        Err(error) => tracing::info!(job = owner.record().id, %error, "the console's client is gone"),
    }
}

async fn tell(write: &mut (impl AsyncWrite + Unpin), owner: &Owner, host: Option<&str>) -> io::Result<()> {
    let record = owner.record();
    let mut framer = Framer::default();
    let greeting = format!("wharf {}: job {} ({}) is accepted", owner.farm().name(), record.id, record.source_name);
    // Alone and whole: should a slow client still drop what comes with the 101, it drops this and no part of a frame.
    write_patiently(write, &framer.note(record.submitted, &greeting), record).await?;
    let mut follower = record.log.follow(0);
    while let Some(event) = follower.next().await {
        let console = console_of(&record.log, &event);
        if matches!(event.event, JobEvent::Ended { .. }) {
            framer.bucket = host.and_then(|host| access(owner.farm(), record, host));
        }
        write_patiently(write, &framer.frames(&event, &console), record).await?;
    }
    Ok(())
}

/// Writes at the client's pace while the job runs; once it has ended, a client gets [`LINGER`] per write.
async fn write_patiently(write: &mut (impl AsyncWrite + Unpin), bytes: &[u8], record: &JobRecord) -> io::Result<()> {
    let mut writing = std::pin::pin!(async {
        write.write_all(bytes).await?;
        write.flush().await
    });
    loop {
        let patience = if record.state() == JobState::Ended { LINGER } else { PATIENCE };
        match timeout(patience, &mut writing).await {
            Ok(result) => return result,
            Err(_) if patience == LINGER => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it does not read its console"));
            }
            Err(_) => {}
        }
    }
}

/// Reads until the client is gone; says why.
async fn listen(mut read: impl AsyncRead + Unpin, mut decoder: Decoder, record: &JobRecord) -> String {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        loop {
            match decoder.next() {
                Ok(Some(FromClient::Typed(bytes))) => record.type_on_console(bytes),
                Ok(Some(FromClient::Other)) => {}
                Ok(None) => break,
                Err(error) => return format!("it sent {error}"),
            }
        }
        match read.read(&mut buffer).await {
            Ok(0) => return "it closed its connection".into(),
            Ok(length) => decoder.push(&buffer[..length]),
            Err(error) => return error.to_string(),
        }
    }
}

mod outgoing {
    //! The send queue's length in bytes, unacknowledged ones included: `SIOCOUTQ` of tcp(7), the number of `TIOCOUTQ`.
    nix::ioctl_read_bad!(queue_length, nix::libc::TIOCOUTQ, nix::libc::c_int);
}

/// Waits until the peer has acknowledged everything.
async fn acknowledged(stream: &TcpStream) {
    let all = async {
        while unacknowledged_bytes(stream) > 0 {
            sleep(ACKNOWLEDGED_STEP).await;
        }
    };
    let _ = timeout(ACKNOWLEDGED_MAX, all).await;
}

fn unacknowledged_bytes(stream: &TcpStream) -> i32 {
    let mut length = 0;
    // SAFETY: the descriptor is open for as long as `stream` is borrowed, and the kernel writes one c_int to `length`.
    match unsafe { outgoing::queue_length(stream.as_raw_fd(), &raw mut length) } {
        Ok(_) => length,
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_send_queue_is_empty_once_the_peer_has_the_bytes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        client.write_all(b"hello").await.unwrap();
        acknowledged(&client).await;
        assert_eq!(unacknowledged_bytes(&client), 0);
        // A peer that never reads: what does not fit in its window stays in our queue.
        while let Ok(written) = client.try_write(&[0; 65536]) {
            assert!(written > 0);
        }
        assert!(unacknowledged_bytes(&client) > 0);
        drop(server);
    }

    #[tokio::test]
    async fn a_callback_to_nobody_names_the_address_and_the_next_step() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = call_back("127.0.0.1", port).await.unwrap_err();
        assert!(error.starts_with(&format!("cannot connect to your console at 127.0.0.1:{port}: ")), "{error}");
        assert!(error.contains("--callback"), "{error}");
    }
}
