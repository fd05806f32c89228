//! What a plain script leaves: its DUT has sent it to the job's bucket as one archive (script.rs), whose files are what `artifacts:` chooses
//! from (produce.rs).

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use futures_util::StreamExt;
use gateway::s3::read;
use tokio::io::AsyncWriteExt;

use super::produce::Named;
use crate::farm::{Farm, JobRecord, RESULTS};

/// Files of one job; GitLab's own browser of artifacts gives up before.
const FILES_MAX: usize = 100_000;
/// All of them, unpacked: a script can pack zeros a thousandfold.
const BYTES_MAX: u64 = 16 << 30;

/// Copies the archive of a job's results into `folder`; `None`: it has sent none.
pub(super) async fn fetch(farm: &Farm, record: &JobRecord, folder: &Path) -> io::Result<Option<PathBuf>> {
    let own = farm.buckets_of(record).into_iter().find(|bucket| bucket.is_own);
    let object = own.and_then(|own| farm.bucket_of(record, &own.name)).and_then(|bucket| bucket.get(RESULTS));
    let Some(object) = object else { return Ok(None) };
    let path = folder.join("results.tar.gz");
    let mut file = tokio::fs::File::create(&path).await?;
    let mut chunks = read::read(&object, 0..object.size());
    while let Some(chunk) = chunks.next().await {
        file.write_all(&chunk?).await?;
    }
    file.flush().await?;
    Ok(Some(path))
}

/// Unpacks it into numbered files of `folder`: no name of the DUT's is ever a path here.
pub(super) fn unpack(archive: &Path, folder: &Path) -> io::Result<Vec<Named>> {
    fs::create_dir_all(folder)?;
    let (mut files, mut left) = (Vec::new(), BYTES_MAX);
    let mut archive = tar::Archive::new(MultiGzDecoder::new(File::open(archive)?));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
        let is_path = name.split('/').all(|step| !matches!(step, "" | "." | ".."));
        if !entry.header().entry_type().is_file() || !is_path {
            continue;
        }
        if files.len() == FILES_MAX {
            return Err(io::Error::other(format!("the job left more than {FILES_MAX} files; have it pack them")));
        }
        let path = folder.join(files.len().to_string());
        let size = io::copy(&mut entry.by_ref().take(left + 1), &mut File::create(&path)?)?;
        left = left
            .checked_sub(size)
            .ok_or_else(|| io::Error::other(format!("the job left more than {} GiB of files", BYTES_MAX >> 30)))?;
        let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
        files.push(Named { name, path, mode });
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_unpacked_under_numbers_and_names_that_are_no_paths_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.tar.gz");
        let packed = flate2::write::GzEncoder::new(File::create(&path).unwrap(), flate2::Compression::fast());
        let mut builder = tar::Builder::new(packed);
        for (name, text) in [("out/a", "one"), ("evil", "two"), ("b", "three")] {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o755);
            header.set_size(text.len() as u64);
            // The builder itself would refuse it.
            let name = if name == "evil" { "../evil" } else { name };
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, text.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap();
        let files = unpack(&path, &folder.path().join("results")).unwrap();
        let names: Vec<_> = files.iter().map(|file| (file.name.as_str(), file.mode)).collect();
        assert_eq!(names, [("out/a", 0o755), ("b", 0o755)]);
        assert_eq!(fs::read_to_string(&files[1].path).unwrap(), "three");
    }
}
