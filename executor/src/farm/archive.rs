//! Ended jobs, copied to a store elsewhere: their logs, their consoles and what is in their buckets.
//!
//! ```text
//!  <job>/archiving ─► ended ─► PUT of each file, one after the other ─► all there: the mark is gone
//!    │  └ while it is there,      ├ unreachable, busy: again, later and later, then as below
//!    │    no bucket expires       └ refused (key, bucket): told; all of it again in an hour
//!    └ a restart finds the mark, and begins anew
//!
//!  s3://bucket/prefix/<job>/{events.jsonl,console.log}, roles/<role>/…, buckets/<bucket>/<object>
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt};
use gateway::content::stores::{Object, Refused, Verb};
use gateway::s3::read::read;
use reqwest::header::CONTENT_LENGTH;
use tokio::sync::Semaphore;
use tokio_util::io::ReaderStream;

use super::{Farm, JobRecord, JobState};
use crate::verdict::Verdict;

/// The mark of a job that is on its way.
const MARK: &str = "archiving";
/// What is copied of a job's folder, and of those of its roles.
const FILES: [&str; 2] = ["events.jsonl", "console.log"];
/// Jobs that are copied at once: the line to the store is shared with downloads that DUTs wait for.
static PLACES: Semaphore = Semaphore::const_new(2);
/// Attempts per file, and the pause after the first: 2 s, doubling, are 17 minutes in all, a night's maintenance of a store not included.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_secs(2);
/// What nobody has mended within an hour is told again: a line per job and hour.
const AGAIN_AFTER: Duration = Duration::from_secs(3600);
/// A store that takes nothing for so long has stalled.
const STALL: Duration = Duration::from_secs(60);

/// What is copied, and to where below the job's own prefix.
enum Source {
    File(PathBuf),
    Object(gateway::s3::bucket::Object),
}

impl Farm {
    /// A job has its verdict: it is told, and the job is copied, if the farm file says to where.
    pub(super) fn ends(self: &Arc<Self>, record: &Arc<JobRecord>, verdict: Verdict) {
        if self.config().archive.is_some() {
            // Before the verdict: a server that is killed in between finds it, too.
            if let Err(error) = std::fs::write(self.job_directory(&record.id).join(MARK), "") {
                tracing::error!(job = record.id, %error, "a restart will not go on copying this job");
            }
        }
        record.ended(verdict);
        self.archive(record);
    }

    /// Goes on with a job of an earlier run.
    pub(super) fn archive_again(self: &Arc<Self>, record: &Arc<JobRecord>) {
        if record.state() == JobState::Ended && self.is_to_be_copied(&record.id) {
            self.archive(record);
        }
    }

    /// Whether what is left of a job is not in the store yet.
    pub(super) fn is_to_be_copied(&self, job: &str) -> bool {
        self.config().archive.is_some() && self.job_directory(job).join(MARK).is_file()
    }

    fn archive(self: &Arc<Self>, record: &Arc<JobRecord>) {
        let Some(target) = self.config().archive.clone() else { return };
        let (farm, record) = (Arc::downgrade(self), Arc::clone(record));
        tokio::spawn(async move {
            let store = &target.store.endpoint;
            loop {
                let Some(farm) = farm.upgrade() else { return };
                let folder = farm.job_directory(&record.id);
                let sources = farm.sources(&record, &folder);
                drop(farm);
                match copy_all(&target, &record.id, sources).await {
                    Ok(files) => {
                        let _ = std::fs::remove_file(folder.join(MARK));
                        return tracing::info!(job = record.id, files, %store, "the ended job is copied");
                    }
                    Err(why) => {
                        tracing::error!(job = record.id, why, %store, "the ended job is not copied; it is tried again in an hour, and after a restart");
                    }
                }
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        });
    }

    fn sources(&self, record: &JobRecord, folder: &Path) -> Vec<(String, Source)> {
        let mut all = Vec::new();
        let mut logs = |folder: &Path, prefix: &str| {
            for name in FILES {
                let path = folder.join(name);
                if path.is_file() {
                    all.push((format!("{prefix}{name}"), Source::File(path)));
                }
            }
        };
        logs(folder, "");
        for role in record.roles() {
            let name = role.id.strip_prefix(&format!("{}-", record.id)).unwrap_or(&role.id).to_owned();
            logs(role.log.folder(), &format!("roles/{name}/"));
        }
        for view in self.buckets_of(record) {
            let Some(bucket) = self.bucket_of(record, &view.name) else { continue };
            for key in bucket.keys() {
                if let Some(object) = bucket.get(&key) {
                    all.push((format!("buckets/{}/{key}", view.name), Source::Object(object)));
                }
            }
        }
        all
    }
}

async fn copy_all(target: &Object, job: &str, sources: Vec<(String, Source)>) -> Result<usize, String> {
    let _place = PLACES.acquire().await.map_err(|error| error.to_string())?;
    // Refuses when the process has a provider already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().connect_timeout(STALL).read_timeout(STALL).build();
    let client = client.map_err(|error| error.to_string())?;
    for (name, source) in &sources {
        let key = format!("{}/{job}/{name}", target.key.trim_end_matches('/'));
        let object = Object { key, ..target.clone() };
        let mut pause = PAUSE;
        for attempt in 1.. {
            match copy(&client, &object, source).await {
                Ok(()) => break,
                Err(Refused::ForGood(why)) => return Err(format!("{name}: {why}")),
                Err(Refused::ForNow(why)) if attempt == TRIES => return Err(format!("{name}: {why}")),
                Err(Refused::ForNow(why)) => tracing::warn!(job, name, why, attempt, "a copy failed; once more"),
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
    Ok(sources.len())
}

async fn copy(client: &reqwest::Client, object: &Object, source: &Source) -> Result<(), Refused> {
    let in_words = |error: io::Error| Refused::ForNow(error.to_string());
    let (size, bytes): (u64, BoxStream<'static, io::Result<Bytes>>) = match source {
        Source::File(path) => {
            use tokio::io::AsyncReadExt;
            let file = tokio::fs::File::open(path).await.map_err(in_words)?;
            let size = file.metadata().await.map_err(in_words)?.len();
            // A log may still grow by a line; what was announced is sent.
            (size, ReaderStream::new(file.take(size)).boxed())
        }
        Source::Object(object) => (object.size(), read(object, 0..object.size())),
    };
    let request = client.put(object.signed(Verb::Put, SystemTime::now())).header(CONTENT_LENGTH, size);
    let answer = request.body(reqwest::Body::wrap_stream(bytes)).send().await;
    let unreachable = |error: reqwest::Error| {
        let why = anyhow::Error::from(error.without_url());
        Refused::ForNow(format!("{} cannot be reached: {why:#}", object.store.endpoint))
    };
    let answer = answer.map_err(unreachable)?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => Err(object.refused(status.as_u16(), &answer.text().await.unwrap_or_default())),
    }
}
