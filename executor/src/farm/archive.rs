//! Ended jobs, copied to a store elsewhere: their logs, their consoles and what is in their buckets.
//!
//! ```text
//!  ended ─► <job>/archiving ─► PUT of each file, one after the other ─► all there: the mark is gone
//!              │                  └ refused, unreachable: again, later and later
//!              └ a restart finds the mark, and begins anew
//!
//!  s3://bucket/prefix/<job>/{events.jsonl,console.log}, roles/<role>/…, buckets/<bucket>/<object>
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt};
use gateway::content::stores::{Object, Verb};
use gateway::s3::read::read;
use reqwest::header::CONTENT_LENGTH;
use tokio::sync::Semaphore;
use tokio_util::io::ReaderStream;

use super::{Farm, JobRecord, JobState};

/// The mark of a job that is on its way.
const MARK: &str = "archiving";
/// What is copied of a job's folder, and of those of its roles.
const FILES: [&str; 2] = ["events.jsonl", "console.log"];
/// Jobs that are copied at once: the line to the store is shared with downloads that DUTs wait for.
static PLACES: Semaphore = Semaphore::const_new(2);
/// Attempts per file, and the pause after the first: 2 s, doubling, are 17 minutes in all, a night's maintenance of a store not included.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_secs(2);
/// A store that takes nothing for so long has stalled.
const STALL: Duration = Duration::from_secs(60);

/// What is copied, and to where below the job's own prefix.
enum Source {
    File(PathBuf),
    Object(gateway::s3::bucket::Object),
}

impl Farm {
    /// Copies a job that has ended, if the farm file says to where.
    pub(super) fn archive(self: &Arc<Self>, record: &Arc<JobRecord>) {
        let Some(target) = self.config().archive.clone() else { return };
        let folder = self.job_directory(&record.id);
        if let Err(error) = std::fs::write(folder.join(MARK), "") {
            tracing::error!(job = record.id, %error, "a restart will not go on copying this job");
        }
        let (farm, record) = (Arc::downgrade(self), Arc::clone(record));
        let sources = self.sources(&record, &folder);
        tokio::spawn(async move {
            let copied = copy_all(&target, &record.id, sources).await;
            if farm.upgrade().is_none() {
                return;
            }
            let store = &target.store.endpoint;
            match copied {
                Ok(files) => {
                    let _ = std::fs::remove_file(folder.join(MARK));
                    tracing::info!(job = record.id, files, %store, "the ended job is copied");
                }
                Err(why) => {
                    tracing::error!(job = record.id, why, %store, "the ended job is not copied; a restart tries again")
                }
            }
        });
    }

    /// Goes on with a job of an earlier run.
    pub(super) fn archive_again(self: &Arc<Self>, record: &Arc<JobRecord>) {
        if record.state() == JobState::Ended && self.job_directory(&record.id).join(MARK).is_file() {
            self.archive(record);
        }
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
                Err(why) if attempt == TRIES => return Err(format!("{name}: {why}")),
                Err(why) => tracing::debug!(job, name, why, attempt, "a copy failed; once more"),
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
    Ok(sources.len())
}

async fn copy(client: &reqwest::Client, object: &Object, source: &Source) -> Result<(), String> {
    let in_words = |error: io::Error| error.to_string();
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
    let answer = answer.map_err(|error| format!("{:#}", anyhow::Error::from(error.without_url())))?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => {
            let body = answer.text().await.unwrap_or_default();
            let said: String = body.chars().take(300).collect();
            Err(format!("the store answered {status}: {said}"))
        }
    }
}
