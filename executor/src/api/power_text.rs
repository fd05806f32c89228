//! pdudaemon's older protocol, which its `pduclient` speaks without `-H`, at the port where its clients ask for both.
//!
//! ```text
//!  first byte a capital ─► HTTP
//!             else      ─► KEY OUTLET on|off|reboot [DELAY]      no end of line, and the client leaves its side open
//!                          ack                                   it is done, and reads back so
//!                          nack: why                             it is not
//! ```
//! From pdudaemon 1.1.1's `pduclient`, which takes anything but `ack` for a failure and shows it, and its `tcplistener.py`, which says
//! `nack` alone. Keys are small letters and digits (farm/served_power.rs), methods of HTTP are capitals.

use std::io;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::time::timeout;

use super::Api;
use super::guard::clean;
use super::power_served::{Asked, Refused, as_pdudaemon, wrong};
use super::serve::{ACCEPT_PAUSE, Accept, CONNECTIONS_MAX, HEAD_TIMEOUT, Peer};
use crate::callers::audit::Line;

/// A key, an outlet's name, a verb and a number.
const REQUEST_BYTES_MAX: usize = 512;
/// A request comes in one piece; what does not come within this time after the last piece is not part of it.
const QUIET: Duration = Duration::from_millis(100);

/// A listener whose connections are HTTP's; those of the older protocol are answered here.
pub(super) struct EitherListener {
    http: Mutex<mpsc::Receiver<(TcpStream, Peer)>>,
}

impl EitherListener {
    /// Of this one; ends with it.
    pub(super) fn of(listener: TcpListener, api: Api) -> EitherListener {
        // One: whoever is not served yet waits in the kernel's queue, not here.
        let (found, http) = mpsc::channel(1);
        tokio::spawn(tell_apart(listener, api, found));
        EitherListener { http: Mutex::new(http) }
    }
}

impl Accept for EitherListener {
    type Raw = TcpStream;
    type Stream = TcpStream;

    fn ready(&self, raw: TcpStream) -> impl Future<Output = io::Result<TcpStream>> + Send + 'static {
        std::future::ready(Ok(raw))
    }

    async fn next(&self) -> io::Result<(TcpStream, Peer)> {
        self.http.lock().await.recv().await.ok_or_else(|| io::Error::other("the listener has ended"))
    }
}

/// Until nobody wants HTTP's connections any more.
async fn tell_apart(listener: TcpListener, api: Api, found: mpsc::Sender<(TcpStream, Peer)>) {
    let permits = std::sync::Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while !found.is_closed() {
        let Ok(permit) = std::sync::Arc::clone(&permits).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = Accept::next(&listener) => accepted,
            () = found.closed() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for outlets");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (api, found) = (api.clone(), found.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let mut first = [0; 1];
            match timeout(HEAD_TIMEOUT, stream.peek(&mut first)).await {
                Ok(Ok(1)) if first[0].is_ascii_uppercase() => drop(found.send((stream, peer)).await),
                Ok(Ok(1)) => answer(stream, &api).await,
                // It said nothing, or went.
                Ok(Ok(_) | Err(_)) | Err(_) => {}
            }
        });
    }
}

async fn answer(mut stream: TcpStream, api: &Api) {
    let Ok(request) = read(&mut stream).await else { return };
    let peer = stream.peer_addr().map_or_else(|_| "somewhere".to_owned(), |peer| peer.to_string());
    let said = match switched(api, &request).await {
        Ok(()) => {
            write_down(api, peer, &request, (StatusCode::OK, None));
            "ack\n".to_owned()
        }
        Err(refused) => {
            let (status, why) = refused.in_text();
            let said = format!("nack: {why}\n");
            write_down(api, peer, &request, (status, Some(why)));
            said
        }
    };
    // Who has gone does not hear it.
    let _ = stream.write_all(said.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// What was switched, and who had a key that is none: as the same over HTTP.
fn write_down(api: &Api, from: String, request: &str, (status, why): (StatusCode, Option<String>)) {
    if status != StatusCode::OK && status != StatusCode::NOT_FOUND {
        return;
    }
    // Without the key.
    let words: Vec<&str> = request.split_whitespace().skip(1).collect();
    let what = clean(&format!("outlet {}", words.join(" ")));
    let (at, who) = (jiff::Timestamp::now(), "somebody".to_owned());
    let line = Line { at, who, project: None, role: None, from, what, status: status.as_u16(), why };
    match status {
        StatusCode::OK => api.callers.audit.write_change(&line, Instant::now()),
        _ => api.callers.audit.write_refusal(&line, Instant::now()),
    }
}

/// Up to an end of line, an end, or silence.
async fn read(stream: &mut TcpStream) -> io::Result<String> {
    let mut request = Vec::new();
    let mut piece = [0; REQUEST_BYTES_MAX];
    while request.len() < REQUEST_BYTES_MAX && !request.contains(&b'\n') {
        let limit = if request.is_empty() { HEAD_TIMEOUT } else { QUIET };
        match timeout(limit, stream.read(&mut piece)).await {
            Ok(read) => match read? {
                0 => break,
                bytes => request.extend_from_slice(&piece[..bytes]),
            },
            Err(_) => break,
        }
    }
    Ok(String::from_utf8_lossy(&request).into_owned())
}

async fn switched(api: &Api, request: &str) -> Result<(), Refused> {
    as_pdudaemon(api, asked(request)?).await
}

fn asked(request: &str) -> Result<Asked<'_>, Refused> {
    let words: Vec<&str> = request.split_whitespace().collect();
    let (key, outlet, request, delay) = match words[..] {
        [key, outlet, request] => (key, outlet, request, None),
        [key, outlet, request, delay] => (key, outlet, request, Some(delay)),
        _ => return Err(wrong("send `KEY OUTLET on`, `off` or `reboot`, and a delay if you like".into())),
    };
    Ok(Asked { key, outlet: Some(outlet), request, delay })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_three_words_or_four() {
        let read = |text: &str| {
            let asked = asked(text).map_err(|refused| refused.in_text().1)?;
            Ok((asked.key.to_owned(), asked.outlet.map(str::to_owned), asked.request.to_owned(), asked.delay.is_some()))
        };
        let expected = |delay| Ok(("0a".to_owned(), Some("4".to_owned()), "reboot".to_owned(), delay));
        assert_eq!(read("0a 4 reboot"), expected(false));
        assert_eq!(read("0a 4 reboot 5\r\n"), expected(true));
        let told = Err("send `KEY OUTLET on`, `off` or `reboot`, and a delay if you like".to_owned());
        assert_eq!((read("0a reboot"), read("")), (told.clone(), told));
    }
}
