//! The buckets of jobs: made and filled before the first boot, served by S3 to the job's DUTs and to its submitter, gone some time after
//! the job.
//!
//! ```text
//!  <state>/jobs/<id>/buckets/<name>/   bucket.json  how long it stays       the rest: gateway, s3/bucket.rs
//!
//!  job ─► open: its own bucket, and those of `storage.s3` ─► filled ─┬─► its DUTs, each by a key of its own, until their leases end
//!                                                                    └─► its submitter, until the last bucket is gone
//!  the job has ended ─► after its `expiration` ─► gone
//! ```
//! Keys follow from the job's seed, which is kept with its submission: after a restart they are the same. DUTs of one job share its
//! buckets; nobody else's key leads there.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use gateway::content::edit::Editor;
use gateway::content::stores::{self, Store};
use gateway::s3::bucket::Bucket;
use gateway::s3::desk::{self, End, GoodFrom, Granted};
use gateway::s3::{Door, fill};
use hmac::{Hmac, KeyInit, Mac};
use job_schema::job::{self, Groups, Job};
use job_schema::problem::Problem;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::Sha256;
use tokio::sync::mpsc;

use super::contents::{Attachments, Contents, urls_of};
use super::shared_buckets::SharedBuckets;
use super::{Farm, JobRecord, JobState, Submission};
use crate::blueprint::host::ec2::sign;
use crate::config::{BucketLimits, BucketMember, FarmConfig, TlsConfig};
use crate::job_log::{AccessEnd, AccessRecord, JobEvent, JobLog, Severity};
use crate::runner::SetupError;
use crate::session::Event;
use crate::verdict::Cause;

/// The submitter's directory among the files that came along, as a tar archive; clients keep names with `_` to themselves.
pub const DIRECTORY: &str = "_shared_directory";
/// What a DUT puts into its job's own bucket by `job.bucket.results_url`.
pub const RESULTS: &str = "results";
/// In the job's folder.
const FOLDER: &str = "buckets";
const RECORD: &str = "bucket.json";
/// Lines about buckets in one job's log: a client that lists and reads thousands of objects must not fill the memory.
const LINES_MAX: usize = 1000;
/// A bucket is gone at most so long after its time.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// A key, and the secret that goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    /// The name of the key.
    pub access_key: String,
    /// What requests are signed with.
    pub secret_key: String,
}

impl Keys {
    /// Of a DUT of the job, by its id.
    pub(super) fn of_dut(seed: &str, dut: &str) -> Keys {
        Keys::of(seed, &format!("dut {dut}"))
    }

    /// Of whoever submitted the job.
    fn of_submitter(seed: &str) -> Keys {
        Keys::of(seed, "submitter")
    }

    /// As long as those of other stores: clients check it.
    fn of(seed: &str, whose: &str) -> Keys {
        let mut access_key = derived(seed, &format!("access key of {whose}")).to_uppercase();
        access_key.truncate(20);
        let mut secret_key = derived(seed, &format!("secret key of {whose}"));
        secret_key.truncate(40);
        Keys { access_key, secret_key }
    }
}

/// What the job's own bucket is called. Without a seed there is no job yet: then it is a placeholder, as CI-tron has it.
pub(super) fn own_name(seed: &str) -> String {
    if seed.is_empty() { "job-bucket".to_owned() } else { format!("job-{}", &derived(seed, "name")[..16]) }
}

/// A seed that nobody guesses.
pub(super) fn new_seed() -> String {
    format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>())
}

fn derived(seed: &str, what: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(seed.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(what.as_bytes());
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The buckets that a job declares, in either deployment.
pub(super) fn declared(job: &Job) -> Vec<&job::Bucket> {
    let mut all: Vec<&job::Bucket> = Vec::new();
    for bucket in job.start.storage.s3.iter().chain(&job.continue_.storage.s3) {
        if !all.iter().any(|other| other.bucket == bucket.bucket) {
            all.push(bucket);
        }
    }
    all
}

/// What of the buckets that a job declares is more than the farm gives.
pub(super) fn mistakes(job: &Job, limits: BucketLimits) -> Vec<Problem> {
    let most = limits.expiration_max;
    let too_long = |bucket: &&job::Bucket| bucket.expiration.is_some_and(|expiration| expiration > most);
    let problem = |bucket: &job::Bucket| {
        let wanted = bucket.expiration.map(in_days).unwrap_or_default();
        let what = format!("the bucket `{}` would be kept for {wanted} after the job", bucket.bucket);
        let hint =
            format!("this farm keeps buckets for {} at most (`s3.expiration_max` of the farm file)", in_days(most));
        Problem::new(what).about("storage.s3").hint(hint)
    };
    declared(job).into_iter().filter(too_long).map(problem).collect()
}

fn in_days(time: Duration) -> String {
    match (time.as_secs(), time.as_secs() % 86_400) {
        (86_400, _) => "1 day".to_owned(),
        (seconds @ 86_400.., 0) => format!("{} days", seconds / 86_400),
        (seconds, _) => format!("{seconds} s"),
    }
}

/// The `s3://` URLs of a job that lead nowhere, each with what to do. Those with a group of their path are known when they are asked for.
pub(super) fn unknown_objects(job: &Job, stores: &[Store]) -> Vec<String> {
    let mut unknown = Vec::new();
    for deployment in [&job.start, &job.continue_] {
        let storage = &deployment.storage;
        let files = storage.http.iter().chain(&storage.tftp).map(|file| &file.artifact);
        let fills = storage.s3.iter().filter_map(|bucket| bucket.fill.as_ref());
        let kernel = deployment.kernel.iter().map(|kernel| &kernel.artifact);
        for artifact in kernel.chain(&deployment.initramfs).chain(&deployment.dtb).chain(files).chain(fills) {
            for url in urls_of(artifact).into_iter().filter(|url| url.starts_with("s3:") && !Groups::are_used_in(url)) {
                if let Err(why) = stores::object_of(stores, url) {
                    unknown.push(format!("`{url}` cannot be fetched: {why}"));
                }
            }
        }
    }
    unknown.sort();
    unknown.dedup();
    unknown
}

/// A row of what is published.
pub(super) fn described(bucket: &job::Bucket, source: impl Fn(&job::Artifact) -> String) -> [String; 4] {
    let filled = bucket.fill.as_ref().map_or_else(|| "an empty bucket".to_owned(), source);
    let kept = bucket
        .expiration
        .map_or_else(|| "as long as the farm keeps buckets".to_owned(), |it| format!("{it:?} after the job"));
    ["S3".to_owned(), bucket.bucket.to_string(), filled, kept]
}

/// The names of a job's buckets in its templates: `job.s3` and `job.bucket`, and CI-tron's older words for the latter.
pub(super) fn values(
    place: (IpAddr, u16),
    keys: &Keys,
    own: &str,
    names: &[String],
) -> [(&'static str, serde_json::Value); 6] {
    let (address, port) = place;
    let url = format!("http://{address}:{port}");
    let value = |name: &str| {
        json!({
            "url": url, "host": address.to_string(), "port": port, "name": name,
            "access_key": keys.access_key, "secret_key": keys.secret_key,
        })
    };
    let mut own_value = value(own);
    own_value["results_url"] = results_url(place, keys, own).into();
    let declared: serde_json::Map<_, _> = names.iter().map(|name| (name.clone(), value(name))).collect();
    [
        ("s3", declared.into()),
        ("bucket", own_value),
        ("minio_url", url.clone().into()),
        ("job_bucket", own.into()),
        ("job_bucket_access_key", keys.access_key.clone().into()),
        ("job_bucket_secret_key", keys.secret_key.clone().into()),
    ]
}

/// Where a DUT may put one file with any HTTP client: [`RESULTS`] of its job's own bucket. For a week, which is the most that S3 has.
fn results_url((address, port): (IpAddr, u16), keys: &Keys, own: &str) -> String {
    let host = std::net::SocketAddr::new(address, port).to_string();
    let at = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
    let credentials = sign::Credentials {
        access_key_id: keys.access_key.clone(),
        secret_access_key: keys.secret_key.clone(),
        session_token: None,
    };
    let path = format!("/{own}/{RESULTS}");
    let url = sign::SignedUrl { verb: "PUT", host: &host, path: &path, at: &at, for_s: 7 * 24 * 3600 };
    format!("http://{host}{}", sign::signed_url(&credentials, url))
}

/// The buckets of a farm's jobs.
pub(super) struct Buckets {
    door: Door,
    editor: Editor,
    limits: BucketLimits,
    shared: SharedBuckets,
    jobs: Mutex<BTreeMap<String, Arc<OfJob>>>,
}

/// The buckets of one job.
struct OfJob {
    folder: PathBuf,
    seed: String,
    buckets: desk::Buckets,
    /// Held by whoever makes or fills one: DUTs of one job are set up at once.
    making: tokio::sync::Mutex<()>,
    _of_submitter: Granted,
}

/// What is kept of a bucket beside its bytes.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Record {
    expiration_ms: Option<u64>,
}

/// A bucket as its submitter sees it.
#[derive(Clone, Debug)]
pub struct BucketView {
    /// Its name.
    pub name: String,
    /// Whether it is the job's own, which begins with the submitter's directory.
    pub is_own: bool,
    /// Objects in it.
    pub objects: usize,
    /// Bytes in it.
    pub bytes: u64,
    /// Its quota.
    pub bytes_max: u64,
    /// When it is gone; `None`: the job has not ended.
    pub expires: Option<jiff::Timestamp>,
}

/// A job's DUT that is given its buckets.
pub(super) struct Ask<'a> {
    pub number: &'a str,
    pub folder: &'a Path,
    pub seed: &'a str,
    pub groups: &'a [String],
    pub job: &'a Job,
    pub contents: &'a Contents,
    pub attachments: &'a Attachments,
    pub dut: (&'a str, IpAddr),
    pub log: &'a Arc<JobLog>,
    pub events: &'a mpsc::Sender<Event>,
}

impl Buckets {
    pub(super) fn new(door: Door, editor: Editor, config: &FarmConfig) -> io::Result<Buckets> {
        let limits = config.buckets;
        let shared = SharedBuckets::open(&config.bucket_groups, &config.state, limits.bytes_max, &door)?;
        Ok(Buckets { door, editor, limits, shared, jobs: Mutex::default() })
    }

    /// The buckets of a job, made and filled unless they are there, and a key for its DUT.
    pub(super) async fn open(&self, ask: Ask<'_>) -> Result<Granted, SetupError> {
        let own = own_name(ask.seed);
        let farm_failed = |name: &str, error: &dyn std::fmt::Display| SetupError {
            cause: Cause::Farm,
            reason: format!("cannot make the bucket `{name}`: {error}"),
        };
        let of_job = self.of_job(ask.number, ask.folder, ask.seed);
        let making = of_job.making.lock().await;
        if of_job.buckets.get(&own).is_none() {
            let directory = ask.attachments.get(DIRECTORY).cloned();
            let (bucket, is_new) = self.make(&of_job, &own).map_err(|error| farm_failed(&own, &error))?;
            if let Some(directory) = directory.filter(|_| is_new) {
                self.fill(&bucket, &directory.content(), ask.log).await?;
            }
            self.is_made(&of_job, &bucket, None).map_err(|error| farm_failed(&own, &error))?;
        }
        for declared in declared(ask.job) {
            let name = declared.bucket.as_str();
            if of_job.buckets.get(name).is_some() {
                continue;
            }
            let (bucket, is_new) = self.make(&of_job, name).map_err(|error| farm_failed(name, &error))?;
            if let Some(artifact) = declared.fill.as_ref().filter(|_| is_new) {
                let content = ask.contents.of_artifact(artifact, ask.attachments);
                let content = content.map_err(|reason| not_filled(name, &reason))?;
                self.fill(&bucket, &content, ask.log).await?;
            }
            self.is_made(&of_job, &bucket, declared.expiration).map_err(|error| farm_failed(name, &error))?;
        }
        drop(making);
        let (dut, address) = ask.dut;
        let Keys { access_key, secret_key } = Keys::of_dut(ask.seed, dut);
        let grant = desk::Grant {
            secret: secret_key,
            from: GoodFrom::Dut(address),
            buckets: of_job.buckets.clone(),
            shared: self.shared.of(ask.groups),
            observer: observer(ask.log, Some(ask.events)),
        };
        Ok(self.door.desk().grant(&access_key, grant))
    }

    /// The buckets of a job of before a restart, for its submitter.
    pub(super) fn reopen(&self, number: &str, folder: &Path, seed: &str) {
        if seed.is_empty() || !folder.join(FOLDER).is_dir() {
            return;
        }
        let of_job = self.of_job(number, folder, seed);
        for entry in std::fs::read_dir(&of_job.folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // One that was not made whole is made anew when its job is picked up.
            if !entry.path().join(RECORD).is_file() {
                continue;
            }
            match Bucket::open(&name, &entry.path(), self.limits.bytes_max) {
                Ok(bucket) => of_job.buckets.add(bucket),
                Err(error) => {
                    tracing::error!(job = number, name, %error, "a bucket of before the restart cannot be read")
                }
            }
        }
    }

    fn of_job(&self, number: &str, folder: &Path, seed: &str) -> Arc<OfJob> {
        let mut jobs = self.lock();
        if let Some(of_job) = jobs.get(number) {
            return Arc::clone(of_job);
        }
        let buckets = desk::Buckets::default();
        let Keys { access_key, secret_key } = Keys::of_submitter(seed);
        let grant = desk::Grant {
            secret: secret_key,
            from: GoodFrom::Operator,
            buckets: buckets.clone(),
            shared: Vec::new(),
            observer: Arc::new(|event| tracing::debug!(?event, "a submitter's access to its bucket")),
        };
        let of_submitter = self.door.desk().grant(&access_key, grant);
        let (folder, seed) = (folder.join(FOLDER), seed.to_owned());
        let of_job =
            OfJob { folder, seed, buckets, making: tokio::sync::Mutex::default(), _of_submitter: of_submitter };
        let of_job = Arc::new(of_job);
        jobs.insert(number.to_owned(), Arc::clone(&of_job));
        of_job
    }

    /// The bucket, and whether it is to be filled. One whose filling a killed server did not end begins anew.
    fn make(&self, of_job: &OfJob, name: &str) -> io::Result<(Bucket, bool)> {
        let folder = of_job.folder.join(name);
        let is_new = !folder.join(RECORD).is_file();
        if is_new && folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        Ok((Bucket::open(name, &folder, self.limits.bytes_max)?, is_new))
    }

    /// From here on it is there, also after a restart.
    fn is_made(&self, of_job: &OfJob, bucket: &Bucket, expiration: Option<Duration>) -> io::Result<()> {
        let record = of_job.folder.join(bucket.name()).join(RECORD);
        if !record.is_file() {
            let expiration_ms = expiration.map(|expiration| u64::try_from(expiration.as_millis()).unwrap_or(u64::MAX));
            std::fs::write(record, serde_json::to_vec(&Record { expiration_ms })?)?;
        }
        of_job.buckets.add(bucket.clone());
        Ok(())
    }

    async fn fill(&self, bucket: &Bucket, content: &gateway::content::Content, log: &JobLog) -> Result<(), SetupError> {
        let filled = fill::fill(bucket, &self.editor, content).await;
        let fill::Filled { files, left_out } = filled.map_err(|reason| not_filled(bucket.name(), &reason))?;
        let left_out = match left_out {
            0 => String::new(),
            count => format!("; {count} links and devices left out: an object is a file"),
        };
        let text = format!(
            "The bucket {} begins with {files} files of {} bytes{left_out}",
            bucket.name(),
            bucket.used_bytes()
        );
        log.append(JobEvent::Note { text, severity: Severity::Info });
        Ok(())
    }

    /// The buckets of a job; none once they are gone.
    pub(super) fn views(&self, number: &str, ended: Option<jiff::Timestamp>) -> Vec<BucketView> {
        let Some(of_job) = self.lock().get(number).cloned() else { return Vec::new() };
        let own = own_name(&of_job.seed);
        let view = |bucket: Bucket| BucketView {
            name: bucket.name().to_owned(),
            is_own: bucket.name() == own,
            objects: bucket.count(),
            bytes: bucket.used_bytes(),
            bytes_max: bucket.bytes_max(),
            expires: ended.and_then(|ended| ended.checked_add(self.expiration(&of_job, bucket.name())).ok()),
        };
        of_job.buckets.all().into_iter().map(view).collect()
    }

    /// The key of who submitted it.
    pub(super) fn keys_of(&self, number: &str) -> Option<Keys> {
        let of_job = self.lock().get(number).cloned()?;
        Some(Keys::of_submitter(&of_job.seed))
    }

    /// One of its buckets.
    pub(super) fn bucket(&self, number: &str, name: &str) -> Option<Bucket> {
        let of_job = self.lock().get(number).cloned()?;
        of_job.buckets.get(name)
    }

    fn expiration(&self, of_job: &OfJob, name: &str) -> Duration {
        let record = std::fs::read(of_job.folder.join(name).join(RECORD)).ok();
        let record: Record = record.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        record.expiration_ms.map_or(self.limits.expiration, Duration::from_millis)
    }

    fn remove_the_expired(&self, number: &str, ended: SystemTime, now: SystemTime) {
        let Some(of_job) = self.lock().get(number).cloned() else { return };
        for bucket in of_job.buckets.all() {
            let name = bucket.name();
            if ended.checked_add(self.expiration(&of_job, name)).is_some_and(|end| end <= now) {
                of_job.buckets.remove(name);
                if let Err(error) = std::fs::remove_dir_all(of_job.folder.join(name)) {
                    tracing::warn!(job = number, name, %error, "an expired bucket stays on the disk");
                }
            }
        }
        if of_job.buckets.all().is_empty() {
            let _ = std::fs::remove_dir(&of_job.folder);
            self.lock().remove(number);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<OfJob>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_filled(name: &str, reason: &str) -> SetupError {
    SetupError { cause: Cause::Artifact, reason: format!("cannot fill the bucket `{name}`: {reason}") }
}

/// Tells a job's log what was done with its buckets.
fn observer(log: &Arc<JobLog>, events: Option<&mpsc::Sender<Event>>) -> desk::Observer {
    let (log, events, lines) = (Arc::clone(log), events.cloned(), AtomicUsize::new(0));
    Arc::new(move |event| {
        let desk::Event { verb, name, peer, bytes, seconds, end } = event;
        let (end, reason) = match end {
            End::Complete => (AccessEnd::Complete, None),
            End::Failed(reason) => (AccessEnd::Failed, Some(reason)),
            End::Refused(reason) => (AccessEnd::Refused, Some(reason)),
        };
        let text = match (end, &reason) {
            (AccessEnd::Refused, Some(reason)) => format!("S3 {verb} {name}: refused to {peer}: {reason}"),
            (_, Some(reason)) => format!("S3 {verb} {name}: {bytes} bytes, failed: {reason}"),
            (_, None) => format!("S3 {verb} {name}: {bytes} bytes, complete"),
        };
        let name = format!("{verb} {name}");
        let access = AccessRecord { protocol: "S3".to_owned(), name, peer, bytes, seconds: Some(seconds), end, reason };
        match lines.fetch_add(1, Ordering::Relaxed) {
            count if count < LINES_MAX => {
                log.append(JobEvent::Access { text: text.clone(), access: Some(access) });
                if let Some(events) = &events {
                    let _ = events.try_send(Event::Evidence(text));
                }
            }
            LINES_MAX => {
                let text = "further accesses to buckets are not listed".to_owned();
                log.append(JobEvent::Access { text, access: None });
            }
            _ => {}
        }
    })
}

impl Farm {
    /// What answers S3 requests of the operator's side.
    pub fn s3(&self) -> &Door {
        self.gateway.s3()
    }

    /// Whether a job of who has this key may use the buckets of these groups; `Err`: why not.
    pub fn may_join(&self, groups: &[String], key: Option<&BucketMember>) -> Result<(), String> {
        self.buckets.shared.may_join(groups, key)
    }

    /// How the API is reached by TCP.
    pub fn api_scheme(&self) -> &'static str {
        match &self.config().tls {
            TlsConfig::None => "http",
            TlsConfig::Usual if self.api.ip().is_loopback() => "http",
            TlsConfig::Usual | TlsConfig::Own(_) | TlsConfig::Files { .. } => "https",
        }
    }

    /// The buckets of a job, or of the job that a role belongs to.
    pub fn buckets_of(&self, record: &JobRecord) -> Vec<BucketView> {
        self.buckets.views(number_of(&record.id), ended(record))
    }

    /// The key by which a job's submitter reaches its buckets, while there are any.
    pub fn bucket_keys_of(&self, record: &JobRecord) -> Option<Keys> {
        self.buckets.keys_of(number_of(&record.id))
    }

    /// A bucket of a job.
    pub fn bucket_of(&self, record: &JobRecord, name: &str) -> Option<Bucket> {
        self.buckets.bucket(number_of(&record.id), name)
    }

    /// The buckets of a job of an earlier run.
    pub(super) fn reopen_buckets(&self, record: &JobRecord, submission: &Submission) {
        self.buckets.reopen(&record.id, &self.job_directory(&record.id), &submission.seed);
    }
}

/// When a job ended, by its log.
fn ended(record: &JobRecord) -> Option<jiff::Timestamp> {
    let records = record.log.records();
    records.iter().rev().find(|record| matches!(record.event, JobEvent::Ended { .. })).map(|record| record.at)
}

/// The number of a whole job, also of one of its roles.
fn number_of(id: &str) -> &str {
    id.split('-').next().unwrap_or(id)
}

/// For as long as the farm lives, removes what has had its time.
pub(super) async fn remove_the_expired(farm: Weak<Farm>) {
    let mut look = tokio::time::interval(LOOK_EVERY);
    loop {
        look.tick().await;
        let Some(farm) = farm.upgrade() else { return };
        let numbers: Vec<String> = farm.buckets.lock().keys().cloned().collect();
        // What is not yet in the store that it is to be copied to has no other place.
        for number in numbers.into_iter().filter(|number| !farm.is_to_be_copied(number)) {
            let of_lease = farm.end_of_its_lease(&number).await;
            let ended = match (of_lease, farm.job(&number)) {
                (Some(ended), _) => ended,
                (None, Some(record)) if record.state() == JobState::Ended => ended(&record).map(SystemTime::from),
                (None, Some(_)) => None,
                // Forgotten: a thousand jobs have ended since.
                (None, None) => Some(SystemTime::UNIX_EPOCH),
            };
            if let Some(ended) = ended {
                farm.buckets.remove_the_expired(&number, ended, SystemTime::now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_gone_when_its_own_time_after_the_job_is_over_or_else_the_farms() {
        let state = tempfile::tempdir().unwrap();
        let text = "name: lab\nnetwork: {private: {address: 10.77.0.1/24}}\nduts: []\ns3: {expiration: 1 day}\n";
        let config = crate::config::parse("farm.yml", text, Path::new("")).unwrap();
        let config = FarmConfig { state: state.path().to_owned(), ..config };
        let cache = gateway::content::cache::Config::new(state.path().join("cache"));
        let editor = gateway::content::cache::Cache::new(cache).unwrap().editor().clone();
        let buckets = Buckets::new(Door::new(desk::Desk::default()), editor, &config).unwrap();
        let folder = state.path().join("jobs/7");
        for (name, record) in [("short", r#"{"expiration_ms": 60000}"#), ("usual", r#"{"expiration_ms": null}"#)] {
            let path = folder.join(FOLDER).join(name);
            Bucket::open(name, &path, 100).unwrap();
            std::fs::write(path.join(RECORD), record).unwrap();
        }
        buckets.reopen("7", &folder, "seed");
        let ended = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let left = |after_s: u64| {
            buckets.remove_the_expired("7", ended, ended + Duration::from_secs(after_s));
            buckets.views("7", None).into_iter().map(|view| view.name).collect::<Vec<_>>()
        };
        assert_eq!(left(59), ["short", "usual"]);
        assert_eq!(left(60), ["usual"]);
        assert!(!folder.join(FOLDER).join("short").exists());
        assert_eq!(left(86_399), ["usual"]);
        assert_eq!(left(86_400), Vec::<String>::new());
        assert!(!folder.join(FOLDER).exists() && buckets.lock().is_empty());
    }

    #[test]
    fn a_bucket_that_would_stay_for_longer_than_the_farm_keeps_any_is_told_with_both_times() {
        let text = "version: 1\ntarget: {tags: []}\ntimeouts: {overall: {minutes: 4}}\nconsole_patterns: {session_end: {regex: x}}\n\
                    deployment: {start: {storage: {s3: [{bucket: fine, expiration: 30 days}, {bucket: usual}, {bucket: long, expiration: 720h 1s}]}}}\n";
        let job = Job::parse(&job_schema::template::Rendered::plain("job.yml", text)).unwrap();
        let told = mistakes(&job, BucketLimits::default());
        let hint = "this farm keeps buckets for 30 days at most (`s3.expiration_max` of the farm file)";
        let what = "the bucket `long` would be kept for 2592001 s after the job".to_owned();
        assert_eq!(told, [Problem::new(what).about("storage.s3").hint(hint)]);
        let limits = BucketLimits { expiration_max: Duration::from_secs(3600), ..BucketLimits::default() };
        let told: Vec<_> = mistakes(&job, limits).into_iter().map(|problem| problem.what).collect();
        assert_eq!(told[0], "the bucket `fine` would be kept for 30 days after the job");
        assert_eq!(told.len(), 2);
    }

    #[test]
    fn keys_follow_from_the_seed_and_from_whose_they_are() {
        let keys = Keys::of_dut("seed", "aa:bb");
        assert_eq!((keys.access_key.len(), keys.secret_key.len()), (20, 40));
        assert_eq!(keys, Keys::of_dut("seed", "aa:bb"));
        for other in [Keys::of_dut("seed", "aa:bc"), Keys::of_dut("Seed", "aa:bb"), Keys::of_submitter("seed")] {
            assert_ne!(keys.access_key, other.access_key);
            assert_ne!(keys.secret_key, other.secret_key);
        }
        assert_eq!(own_name(""), "job-bucket");
        assert_eq!(own_name("seed").len(), 20);
        assert_ne!(new_seed(), new_seed());
    }
}
