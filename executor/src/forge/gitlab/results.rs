//! What a job's DUT leaves in the job's own bucket, as the files that `artifacts:` and `cache:` choose from (produce.rs, cache.rs).
//!
//! | the job | its bucket has |
//! |---|---|
//! | a plain script | one archive, which its DUT has sent (script.rs) |
//! | CI-tron's variables with a shared folder | the folder: an object for each file (executorctl.rs) |
//!
//! Everything is copied under numbers: no name of the DUT's is ever a path here.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use futures_util::StreamExt;
use gateway::s3::bucket::{Bucket, Object};
use gateway::s3::{fill, read};
use tokio::io::AsyncWriteExt;

use super::produce::{Held, Named};
use crate::farm::{Farm, JobRecord, RESULTS};

/// Of what a job leaves, unpacked: a script can pack zeros a thousandfold.
struct Limits {
    files: usize,
    bytes: u64,
    cached_bytes: u64,
}
/// GitLab's own browser of artifacts gives up before that many files.
const LIMITS: Limits = Limits { files: 100_000, bytes: 16 << 30, cached_bytes: CACHED_BYTES_MAX };
/// Of what only caches want: half of what a job's files may have when it begins with them (checkout.rs).
pub(super) const CACHED_BYTES_MAX: u64 = 4 << 30;
/// Where a link leads, as Linux has it (PATH_MAX).
const LINK_BYTES_MAX: usize = 4096;

/// What was left.
#[derive(Debug, Default)]
pub(super) struct Results {
    pub files: Vec<Named>,
    /// Whether a cache has more than is kept of one.
    pub has_too_much_to_cache: bool,
}

/// The job's own bucket, if it had one.
fn bucket_of(farm: &Farm, record: &JobRecord) -> Option<Bucket> {
    let own = farm.buckets_of(record).into_iter().find(|bucket| bucket.is_own)?;
    farm.bucket_of(record, &own.name)
}

/// Copies the archive of a job's results into `folder`; `None`: it has sent none.
pub(super) async fn fetch(farm: &Farm, record: &JobRecord, folder: &Path) -> io::Result<Option<PathBuf>> {
    let Some(object) = bucket_of(farm, record).and_then(|bucket| bucket.get(RESULTS)) else { return Ok(None) };
    let path = folder.join("results.tar.gz");
    copy(&object, &path).await?;
    Ok(Some(path))
}

async fn copy(object: &Object, path: &Path) -> io::Result<()> {
    let mut file = tokio::fs::File::create(path).await?;
    let mut chunks = read::read(object, 0..object.size());
    while let Some(chunk) = chunks.next().await {
        file.write_all(&chunk?).await?;
    }
    file.flush().await
}

/// The files of the bucket that are wanted, copied into `folder`; `below` is where the bucket's folder is in the job's.
pub(super) async fn of_folder(
    farm: &Farm,
    record: &JobRecord,
    folder: &Path,
    below: &str,
    is_wanted: impl Fn(&str) -> bool,
) -> io::Result<Vec<Named>> {
    let Some(bucket) = bucket_of(farm, record) else { return Ok(Vec::new()) };
    fs::create_dir_all(folder)?;
    let mut files = Vec::new();
    for key in bucket.keys().into_iter().filter(|key| is_path(key)) {
        let name = if below.is_empty() { key.clone() } else { format!("{below}/{key}") };
        let Some(object) = bucket.get(&key).filter(|_| is_wanted(&name)) else { continue };
        if files.len() == LIMITS.files {
            return Err(too_many());
        }
        let path = folder.join(files.len().to_string());
        copy(&object, &path).await?;
        let mode = fill::permissions(&object.headers).unwrap_or(0o644);
        files.push(Named { name, content: Held::File(path), mode });
    }
    Ok(files)
}

fn is_path(name: &str) -> bool {
    name.split('/').all(|step| !matches!(step, "" | "." | ".."))
}

fn too_many() -> io::Error {
    io::Error::other(format!("the job left more than {} files; have it pack them", LIMITS.files))
}

/// Unpacks the archive into `folder`. What is no artifact is there for a cache: of that too much costs the cache, and no more.
pub(super) fn unpack(archive: &Path, folder: &Path, is_artifact: impl Fn(&str) -> bool) -> io::Result<Results> {
    unpack_within(&LIMITS, archive, folder, is_artifact)
}

fn unpack_within(
    limits: &Limits,
    archive: &Path,
    folder: &Path,
    is_artifact: impl Fn(&str) -> bool,
) -> io::Result<Results> {
    fs::create_dir_all(folder)?;
    let (mut results, mut left, mut left_to_cache) = (Results::default(), limits.bytes, limits.cached_bytes);
    let mut archive = tar::Archive::new(MultiGzDecoder::new(File::open(archive)?));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        let kind = entry.header().entry_type();
        if !(kind.is_file() || kind.is_symlink()) || !is_path(&name) {
            continue;
        }
        let is_artifact = is_artifact(&name);
        let has_room = results.files.len() < limits.files && (is_artifact || entry.size() <= left_to_cache);
        match (has_room, is_artifact) {
            (true, _) => {}
            (false, true) => return Err(too_many()),
            (false, false) => {
                results.has_too_much_to_cache = true;
                continue;
            }
        }
        let content = match entry.link_name_bytes().filter(|_| kind.is_symlink()) {
            Some(target) if target.len() <= LINK_BYTES_MAX => Held::Link(String::from_utf8_lossy(&target).into_owned()),
            Some(_) => continue,
            None => {
                let path = folder.join(results.files.len().to_string());
                let budget = if is_artifact { &mut left } else { &mut left_to_cache };
                let size = io::copy(&mut entry.by_ref().take(*budget + 1), &mut File::create(&path)?)?;
                *budget = budget.checked_sub(size).ok_or_else(|| {
                    io::Error::other(format!("the job left more than {} GiB of files", limits.bytes >> 30))
                })?;
                Held::File(path)
            }
        };
        let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
        results.files.push(Named { name, content, mode });
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(builder: &mut tar::Builder<impl io::Write>, name: &str, kind: tar::EntryType, text: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_entry_type(kind);
        let bytes = if kind.is_symlink() { "" } else { text };
        header.set_size(bytes.len() as u64);
        if kind.is_symlink() {
            header.set_link_name(text).unwrap();
        }
        // The builder itself would refuse some names.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, bytes.as_bytes()).unwrap();
    }

    #[test]
    fn files_are_unpacked_under_numbers_links_stay_links_and_names_that_are_no_paths_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.tar.gz");
        let packed = flate2::write::GzEncoder::new(File::create(&path).unwrap(), flate2::Compression::fast());
        let mut builder = tar::Builder::new(packed);
        let file = tar::EntryType::Regular;
        add(&mut builder, "./out/a", file, "one");
        add(&mut builder, "../evil", file, "two");
        add(&mut builder, "b", file, "three");
        add(&mut builder, "bin/tool", tar::EntryType::Symlink, "../../etc/passwd");
        builder.into_inner().unwrap().finish().unwrap();
        let results = unpack(&path, &folder.path().join("results"), |_| true).unwrap();
        let names: Vec<_> = results.files.iter().map(|file| (file.name.as_str(), file.mode)).collect();
        assert_eq!(names, [("out/a", 0o755), ("b", 0o755), ("bin/tool", 0o755)]);
        let Held::File(second) = &results.files[1].content else { panic!("{results:?}") };
        assert_eq!(fs::read_to_string(second).unwrap(), "three");
        assert_eq!(results.files[2].content, Held::Link("../../etc/passwd".into()));
        assert!(!results.has_too_much_to_cache);
    }

    #[test]
    fn names_that_lead_elsewhere_are_no_files_of_a_job() {
        assert!(is_path("results/junit.xml") && is_path("..a"));
        for name in ["results/../../evil", "/etc/passwd", "a//b", "", "./a", "a/"] {
            assert!(!is_path(name), "{name}");
        }
    }

    #[test]
    fn what_is_too_much_for_a_cache_costs_no_artifact() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.tar.gz");
        let packed = flate2::write::GzEncoder::new(File::create(&path).unwrap(), flate2::Compression::fast());
        let mut builder = tar::Builder::new(packed);
        for (name, text) in [("junit.xml", "<testsuite/>"), ("cache/huge", "0123456789"), ("cache/small", "01")] {
            add(&mut builder, name, tar::EntryType::Regular, text);
        }
        builder.into_inner().unwrap().finish().unwrap();
        let names_within = |limits: &Limits, is_artifact: &dyn Fn(&str) -> bool| {
            let results = unpack_within(limits, &path, &folder.path().join("results"), is_artifact)?;
            let names = results.files.into_iter().map(|file| file.name).collect::<Vec<_>>().join(" ");
            io::Result::Ok((names, results.has_too_much_to_cache))
        };
        let is_junit = |name: &str| name == "junit.xml";
        let few = Limits { files: 2, bytes: 100, cached_bytes: 100 };
        let short = Limits { files: 100, bytes: 100, cached_bytes: 9 };
        assert_eq!(names_within(&short, &is_junit).unwrap(), ("junit.xml cache/small".to_owned(), true));
        assert_eq!(names_within(&few, &is_junit).unwrap(), ("junit.xml cache/huge".to_owned(), true));
        assert!(names_within(&few, &|_| true).unwrap_err().to_string().contains("have it pack them"));
        let all = "junit.xml cache/huge cache/small".to_owned();
        assert_eq!(names_within(&LIMITS, &is_junit).unwrap(), (all, false));
    }
}
