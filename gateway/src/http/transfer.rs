//! The body of one answer: bytes from a reader, accounted to their access.
//!
//! ```text
//!  poll_frame ── read_at(position) ──► 256 KiB ──► hyper           took(bytes) as hyper takes them
//!      all taken ──► end(Complete)     content fails ──► end(Failed)     dropped before ──► end(Aborted)
//! ```

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::body::{Body, Frame, SizeHint};

use super::connection::Running;
use super::proxy::Passed;
use crate::content::{ContentError, LARGE_READ_BYTES, Reader};
use crate::namespace::{Access, Outcome};

/// What an answer carries.
pub(super) enum AnswerBody {
    /// A sentence, or nothing.
    Text(Option<Bytes>),
    /// An artifact's bytes.
    Artifact(Transfer),
    /// What somebody else answered.
    Passed(Box<Passed>),
}

/// Bytes `position..end` of a reader, for one access.
pub(super) struct Transfer {
    reader: Reader,
    access: Option<Access>,
    running: Arc<Running>,
    start: u64,
    position: u64,
    end: u64,
    reading: Option<BoxFuture<'static, Result<Bytes, ContentError>>>,
}

impl Transfer {
    /// `length` bytes from `offset` of `reader`.
    pub(super) fn new(reader: Reader, access: Access, running: Arc<Running>, offset: u64, length: u64) -> Self {
        let mut transfer = Transfer {
            reader,
            access: Some(access),
            running,
            start: offset,
            position: offset,
            end: offset.saturating_add(length),
            reading: None,
        };
        if length == 0 {
            transfer.finish(Outcome::Complete);
        }
        transfer
    }

    fn left(&self) -> u64 {
        self.end - self.position
    }

    fn finish(&mut self, outcome: Outcome) {
        if let Some(access) = self.access.take() {
            access.end(outcome);
            self.running.end();
        }
    }

    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if self.left() == 0 || self.access.is_none() {
            return Poll::Ready(None);
        }
        let length = usize::try_from(self.left()).map_or(LARGE_READ_BYTES, |left| left.min(LARGE_READ_BYTES));
        let reading = self.reading.get_or_insert_with(|| {
            let (reader, position) = (self.reader.clone(), self.position);
            Box::pin(async move { reader.read_at(position, length).await })
        });
        let read = ready!(reading.as_mut().poll(context));
        self.reading = None;
        Poll::Ready(Some(self.account(read)))
    }

    fn account(&mut self, read: Result<Bytes, ContentError>) -> io::Result<Bytes> {
        let failure = match read {
            Ok(bytes) if !bytes.is_empty() => {
                self.position += bytes.len() as u64;
                if let Some(access) = &mut self.access {
                    access.took(bytes.len() as u64, Instant::now());
                }
                if self.left() == 0 {
                    self.finish(Outcome::Complete);
                }
                return Ok(bytes);
            }
            Ok(_) => "the content ended before its size".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::info!(failure, "an artifact failed in mid-transfer");
        self.finish(Outcome::Failed(failure.clone()));
        Err(io::Error::other(failure))
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let Some(access) = &self.access else { return };
        let taken = self.position - self.start;
        let outcome = if access.liveness().is_live() {
            Outcome::Aborted(format!(
                "closed the connection, or stopped reading, after {taken} of {} bytes",
                self.end - self.start
            ))
        } else {
            Outcome::Failed(format!("the job took its artifacts back after {taken} of {} bytes", self.end - self.start))
        };
        self.finish(outcome);
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.get_mut() {
            AnswerBody::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            AnswerBody::Artifact(transfer) => {
                transfer.poll_bytes(context).map(|bytes| bytes.map(|bytes| bytes.map(Frame::data)))
            }
            AnswerBody::Passed(passed) => passed.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            AnswerBody::Text(text) => text.is_none(),
            AnswerBody::Artifact(transfer) => transfer.left() == 0,
            AnswerBody::Passed(passed) => passed.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            AnswerBody::Text(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            AnswerBody::Artifact(transfer) => SizeHint::with_exact(transfer.left()),
            AnswerBody::Passed(passed) => passed.size_hint(),
        }
    }
}
