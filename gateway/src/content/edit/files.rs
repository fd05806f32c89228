//! The files of an archive, one after the other, for whoever puts them somewhere else: a job's bucket.

use std::io::{self, Read};
use std::sync::Arc;

use tokio::runtime::Handle;

use super::member::{self, DIRECTORY, Flow, Member, REGULAR};
use super::{Bench, Editor, Limit, StopWhenDropped};
use crate::content::{Content, ContentError};

/// What an archive has next.
pub enum Found<'a> {
    /// A file.
    File {
        /// Leads nowhere but into the archive.
        path: &'a str,
        /// Type and permissions, as stat(2) has them.
        mode: u32,
        /// Seconds since 1970.
        modified: u32,
        /// All of it.
        bytes: &'a mut dyn Read,
    },
    /// A link, a device or the like.
    Other,
}

impl Editor {
    /// Shows each file of `content`, an archive, to `visit`, on a thread that may wait; gives what it said last.
    pub async fn each_file<T: Send + 'static>(
        &self,
        content: &Content,
        mut visit: impl FnMut(Found<'_>) -> io::Result<T> + Send + 'static,
    ) -> Result<Option<T>, ContentError> {
        let reader = content.open().await?;
        let _place = self.0.places.acquire().await.expect("this semaphore is never closed");
        let stop = StopWhenDropped::default();
        let limit = Limit { bytes_max: self.0.bytes_max, stop: Arc::clone(&stop.0) };
        let bench = Bench { directory: self.0.directory.clone(), handle: Handle::current(), limit };
        let work = move || {
            let mut last = None;
            let spool = |stream: &mut dyn Read| bench.spool(stream);
            member::each(bench.input(reader)?, &bench.limit, &spool, &mut |member, bytes| {
                match member.kind() {
                    DIRECTORY => {}
                    REGULAR if member.link.is_none() => {
                        let Member { path, mode, modified, .. } = member;
                        last = Some(visit(Found::File { path: &path, mode, modified, bytes })?);
                    }
                    _ => last = Some(visit(Found::Other)?),
                }
                Ok(Flow::On)
            })?;
            Ok(last)
        };
        // A decoder that panics over evil bytes is a failure like any other.
        let outcome = tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        outcome.map_err(|error| ContentError::Edit { what: content.to_string(), reason: error.to_string() })
    }
}
