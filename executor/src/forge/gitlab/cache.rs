//! `cache:` of a project's jobs: an archive for each key, kept by the farm from job to job, for that project alone.
//!
//! ```text
//!  <state>/gitlab-cache/<host>/<project's number>/<SHA-256 of the key>.zip       its time of change is that of its last use
//!
//!  before the job: its key, else its fallback keys ─► beneath its artifacts (checkout.rs)
//!  after it:       what `paths:` mean of what came back (results.rs) ─► a new archive in the old one's place
//!                  ─► what nobody used for `expiration` is gone; then, while there is more than `quota`, what was used longest ago
//! ```
//! Whose a job is GitLab says, not its variables. Within a project the server keeps branches apart: it ends every key with `-protected` or
//! `-non_protected`, by the job's ref.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::ci_tron::Environment;
use super::produce::{self, Named};
use super::results::CACHED_BYTES_MAX;
use super::wire::{Cache, Job};
use crate::config::gitlab::CacheLimits;

/// Four projects that use it heavily do not push each other out.
const SHARE_OF_PROJECT: u64 = 4;
/// Archives of a project: a key for each branch of a large one. Each is a file, however small.
const ARCHIVES_MAX: usize = 1000;
/// One that is being written: a killed server leaves it, and the next look after a day removes it.
const UNFINISHED: &str = "new";
const UNFINISHED_FOR: Duration = Duration::from_secs(24 * 3600);

/// The caches of an instance's projects.
pub(super) struct Caches {
    folder: PathBuf,
    limits: CacheLimits,
}

/// An archive that a job begins with.
#[derive(Debug)]
pub(super) struct Found {
    pub key: String,
    pub archive: File,
    /// Unpacked.
    pub bytes: u64,
    pub files: usize,
}

impl Caches {
    /// Those of the instance at this URL.
    pub(super) fn of(state: &Path, url: &str, limits: CacheLimits) -> Caches {
        let host = url.split_once("://").map_or(url, |(_, host)| host).replace([':', '/'], "_");
        Caches { folder: state.join("gitlab-cache").join(host), limits }
    }

    /// What the job begins with, and a sentence for each entry of its `cache:`.
    pub(super) fn restore(&self, job: &Job, environ: &Environment) -> (Vec<Found>, Vec<String>) {
        let (mut all, mut said, mut left) = (Vec::new(), Vec::new(), CACHED_BYTES_MAX);
        for entry in job.cache.iter().filter(|entry| entry.pulls()) {
            let keys = keys(entry, job, environ);
            let found = keys.iter().find_map(|key| self.find(job.job_info.project_id, key));
            let first = keys.first().map_or("", String::as_str);
            said.push(match found {
                None => format!("cache: there is nothing of `{first}` yet"),
                Some(found) if found.bytes > left => {
                    format!("cache: `{}` is left out: all caches have more than {} GiB", found.key, left_text())
                }
                Some(found) => {
                    left -= found.bytes;
                    let text = format!("cache: {} files of `{}`, {} bytes", found.files, found.key, found.bytes);
                    all.push(found);
                    text
                }
            });
        }
        (all, said)
    }

    fn find(&self, project: u64, key: &str) -> Option<Found> {
        let path = self.path(project, key);
        let archive = File::open(&path).ok()?;
        let Ok(listed) = zip::ZipArchive::new(&archive) else {
            tracing::warn!(path = %path.display(), "a cache that cannot be read is removed");
            let _ = fs::remove_file(&path);
            return None;
        };
        let (files, bytes) = (listed.len(), listed.decompressed_size()?);
        if let Err(error) = archive.set_modified(SystemTime::now()) {
            tracing::warn!(path = %path.display(), %error, "a cache's last use cannot be noted");
        }
        Some(Found { key: key.to_owned(), archive, bytes: u64::try_from(bytes).unwrap_or(u64::MAX), files })
    }

    /// Keeps these files under the entry's key; a sentence of that.
    pub(super) fn keep(&self, job: &Job, entry: &Cache, files: &[Named]) -> Result<String, String> {
        let key = key_of(entry, job);
        if files.is_empty() {
            return Err(format!("cache: no such file for `{key}`: {}", entry.paths.join(", ")));
        }
        let path = self.path(job.job_info.project_id, &key);
        let unfinished = path.with_extension(format!("{:016x}.{UNFINISHED}", rand::random::<u64>()));
        let written = self.write(&unfinished, files);
        let bytes = written.inspect_err(|_| drop(fs::remove_file(&unfinished)));
        let bytes = bytes.map_err(|why| format!("cache: `{key}` is not kept: {why}"))?;
        fs::rename(&unfinished, &path).map_err(|error| format!("cache: `{key}` is not kept: {error}"))?;
        self.tidy(SystemTime::now());
        Ok(format!("cache: {} files are kept as `{key}`, {bytes} bytes packed", files.len()))
    }

    fn write(&self, path: &Path, files: &[Named]) -> Result<u64, String> {
        let unpacked: u64 = files.iter().map(Named::bytes).sum();
        if unpacked > CACHED_BYTES_MAX {
            return Err(format!("it has more than {} GiB", left_text()));
        }
        let cannot = |error: io::Error| error.to_string();
        let folder = path.parent().unwrap_or(Path::new(""));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(cannot)?;
        produce::zipped(path, files).map_err(cannot)?;
        let bytes = path.metadata().map_err(cannot)?.len();
        let share = self.limits.bytes_max / SHARE_OF_PROJECT;
        match bytes <= share {
            true => Ok(bytes),
            false => Err(format!(
                "{bytes} bytes are more than a project may have ({share}, a quarter of the farm's `cache.quota`)"
            )),
        }
    }

    /// No key is ever a path.
    fn path(&self, project: u64, key: &str) -> PathBuf {
        let digest = Sha256::digest(key.as_bytes());
        let name: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(project.to_string()).join(name + ".zip")
    }

    /// Removes what has had its time, and what is more than there is room for.
    fn tidy(&self, now: SystemTime) {
        let mut all = Vec::new();
        for project in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let mut own = archives(&project.path(), now);
            // The newest first.
            own.sort_by_key(|archive| std::cmp::Reverse(archive.used));
            let share = self.limits.bytes_max / SHARE_OF_PROJECT;
            let kept = within(own, share, |index, archive| {
                index < ARCHIVES_MAX && now.duration_since(archive.used).unwrap_or_default() < self.limits.expiration
            });
            all.extend(kept);
        }
        all.sort_by_key(|archive| std::cmp::Reverse(archive.used));
        within(all, self.limits.bytes_max, |_, _| true);
    }
}

fn left_text() -> u64 {
    CACHED_BYTES_MAX >> 30
}

/// An archive on the disk.
struct Archive {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

fn archives(folder: &Path, now: SystemTime) -> Vec<Archive> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
        let Ok(used) = metadata.modified() else { continue };
        let is_unfinished = path.extension().is_some_and(|extension| extension == UNFINISHED);
        match (is_unfinished, now.duration_since(used).unwrap_or_default() > UNFINISHED_FOR) {
            (true, true) => remove(&path),
            (true, false) => {}
            (false, _) => all.push(Archive { path, bytes: metadata.len(), used }),
        }
    }
    all
}

/// Those from the first on that stay and have room; the others are removed.
fn within(all: Vec<Archive>, bytes_max: u64, stays: impl Fn(usize, &Archive) -> bool) -> Vec<Archive> {
    let (mut kept, mut bytes) = (Vec::new(), 0u64);
    for (index, archive) in all.into_iter().enumerate() {
        let has_room = bytes.saturating_add(archive.bytes) <= bytes_max;
        if has_room && stays(index, &archive) {
            bytes += archive.bytes;
            kept.push(archive);
        } else {
            remove(&archive.path);
        }
    }
    kept
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "a cache stays on the disk");
    }
}

/// What an entry is kept under: without a key of its own it is the job's and its branch's, as with GitLab's own runner.
fn key_of(entry: &Cache, job: &Job) -> String {
    match entry.key.is_empty() {
        true => format!("{}/{}", job.job_info.name, job.git_info.reference),
        false => entry.key.clone(),
    }
}

/// Where an entry is looked for, in this order. The variable is the author's, and the server adds nothing to it: what protected branches have
/// kept it does not reach.
fn keys(entry: &Cache, job: &Job, environ: &Environment) -> Vec<String> {
    let of_variable = environ.get("CACHE_FALLBACK_KEY").filter(|key| !key.is_empty() && !key.ends_with("-protected"));
    [key_of(entry, job)].into_iter().chain(entry.fallback_keys.iter().cloned()).chain(of_variable.cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::produce::Held;
    use super::*;

    fn caches(folder: &Path, bytes_max: u64) -> Caches {
        let limits = CacheLimits { bytes_max, expiration: Duration::from_secs(3600) };
        Caches::of(folder, "https://gitlab.example.org:8443/in", limits)
    }

    fn job(project: u64, entry: &Cache) -> Job {
        let mut job = Job { cache: vec![entry.clone()], ..Job::default() };
        job.job_info.project_id = project;
        job
    }

    fn entry(key: &str, fallbacks: &[&str]) -> Cache {
        let fallback_keys = fallbacks.iter().map(|key| (*key).to_owned()).collect();
        Cache { key: key.into(), fallback_keys, ..Cache::default() }
    }

    fn file(folder: &Path, name: &str, text: &str) -> Named {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        Named { name: name.to_owned(), content: Held::File(path), mode: 0o644 }
    }

    #[test]
    fn what_a_job_keeps_the_next_of_its_project_finds_by_its_key_or_a_fallback_and_no_other_project() {
        let folder = tempfile::tempdir().unwrap();
        let caches = caches(folder.path(), 1 << 20);
        let files = [file(folder.path(), "a", "one"), file(folder.path(), "b", "two!")];
        let (none, of) = (Environment::new(), entry("../deps-protected", &[]));
        let kept = caches.keep(&job(17, &of), &of, &files).unwrap();
        assert!(kept.starts_with("cache: 2 files are kept as `../deps-protected`, "), "{kept}");
        let found = |project: u64, entry: &Cache, environ: &Environment| {
            let (found, said) = caches.restore(&job(project, entry), environ);
            (found.first().map(|found| (found.files, found.bytes)), said.join("\n"))
        };
        let expected = "cache: 2 files of `../deps-protected`, 7 bytes".to_owned();
        assert_eq!(found(17, &of, &none), (Some((2, 7)), expected.clone()));
        assert_eq!(found(17, &entry("x", &["y", "../deps-protected"]), &none), (Some((2, 7)), expected));
        let nothing = |key: &str| (None, format!("cache: there is nothing of `{key}` yet"));
        assert_eq!(found(18, &of, &none), nothing("../deps-protected"));
        // The author's own variable leads to nothing of protected branches.
        let variable = Environment::from([("CACHE_FALLBACK_KEY".to_owned(), "../deps-protected".to_owned())]);
        assert_eq!(found(17, &entry("x-non_protected", &[]), &variable), nothing("x-non_protected"));
        let (push, mut pushes) = (Cache { policy: "push".into(), ..of.clone() }, 0);
        caches.restore(&job(17, &push), &none).1.iter().for_each(|_| pushes += 1);
        assert_eq!(pushes, 0, "who only pushes asks for nothing");
        assert!(caches.keep(&job(17, &of), &of, &[]).unwrap_err().contains("no such file"));
    }

    #[test]
    fn what_nobody_uses_goes_and_a_project_has_a_quarter_of_the_room() {
        let folder = tempfile::tempdir().unwrap();
        let caches = caches(folder.path(), 4000);
        let text: String = (0..150u64).map(|it| format!("{:016x}", it.wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect();
        let small = [file(folder.path(), "small", &text[..1000])];
        let keep = |project: u64, key: &str| {
            let of = entry(key, &[]);
            caches.keep(&job(project, &of), &of, &small).map(drop)
        };
        let used = |project: u64, key: &str, ago_s: u64| {
            let file = File::options().append(true).open(caches.path(project, key)).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(ago_s)).unwrap();
        };
        let there = |project: u64, key: &str| caches.path(project, key).exists();
        keep(17, "old").unwrap();
        used(17, "old", 3601);
        keep(18, "one").unwrap();
        used(18, "one", 60);
        assert!(!there(17, "old") && there(18, "one"), "its time is over");
        let large = [file(folder.path(), "large", &text)];
        let of = entry("large", &[]);
        let error = caches.keep(&job(18, &of), &of, &large).unwrap_err();
        assert!(error.contains("are more than a project may have (1000,"), "{error}");
        // An archive has more than 500 bytes, and its project has room for one.
        keep(18, "two").unwrap();
        assert_eq!(["one", "two", "large"].map(|key| there(18, key)), [false, true, false]);
        // The farm has room for seven or less.
        for project in 20..28 {
            keep(project, "theirs").unwrap();
            used(project, "theirs", 100 - project);
        }
        keep(17, "last").unwrap();
        assert!(there(17, "last") && there(27, "theirs") && !there(20, "theirs"));
    }
}
