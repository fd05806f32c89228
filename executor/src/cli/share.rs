//! `wharf run --share DIR`: a directory that goes to the job's own bucket and comes back from it.
//!
//! ```text
//!  DIR ─► tar ─► the job's bucket ─► its DUT reads, writes, deletes ─► tar ─► DIR
//!                                                                       └ what was sent and is no longer in the bucket is removed
//! ```

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use futures_util::StreamExt;
use http_body_util::BodyStream;

use super::client::Server;
use super::view::say;

/// A directory whose files were sent with a job.
pub(super) struct Shared {
    directory: PathBuf,
    sent: BTreeSet<PathBuf>,
}

/// Packs the files of a directory, which is made when there is none.
pub(super) fn pack(directory: &Path) -> anyhow::Result<(Shared, Vec<u8>)> {
    std::fs::create_dir_all(directory)
        .with_context(|| format!("cannot make the directory `{}`", directory.display()))?;
    let mut builder = tar::Builder::new(Vec::new());
    let mut sent = BTreeSet::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path = directory.join(&folder);
        let entries = std::fs::read_dir(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read `{}`", path.display()))?;
            let name = folder.join(entry.file_name());
            let kind = entry.file_type().with_context(|| format!("cannot read `{}`", entry.path().display()))?;
            if kind.is_dir() {
                folders.push(name);
            } else if kind.is_file() {
                let added = builder.append_path_with_name(entry.path(), &name);
                added.with_context(|| format!("cannot read `{}`", entry.path().display()))?;
                sent.insert(name);
            } else {
                say(format_args!("{} is no file, and is not sent", entry.path().display()));
            }
        }
    }
    let bytes = builder.into_inner().context("cannot pack the directory")?;
    Ok((Shared { directory: directory.to_owned(), sent }, bytes))
}

impl Shared {
    /// Fetches what is in the job's bucket now.
    pub(super) async fn fetch(self, server: &Server, job: &str) -> anyhow::Result<()> {
        let answer = server
            .download(&format!("/api/v1/jobs/{job}/buckets/own"))
            .await
            .context("cannot fetch the job's bucket")?;
        let mut file = tempfile::tempfile().context("cannot make a temporary file")?;
        let mut frames = BodyStream::new(answer.into_body());
        while let Some(frame) = frames.next().await {
            if let Ok(bytes) = frame.context("the job's bucket did not come whole")?.into_data() {
                file.write_all(&bytes).context("cannot keep the job's bucket")?;
            }
        }
        std::io::Seek::rewind(&mut file)?;
        let came = self.unpack(file)?;
        for gone in self.sent.difference(&came) {
            let path = self.directory.join(gone);
            std::fs::remove_file(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
        }
        Ok(())
    }

    fn unpack(&self, archive: impl std::io::Read) -> anyhow::Result<BTreeSet<PathBuf>> {
        let mut came = BTreeSet::new();
        for entry in tar::Archive::new(archive).entries()? {
            let mut entry = entry.context("the job's bucket did not come whole")?;
            let path = entry.path().context("an object has no path")?.into_owned();
            // Refuses what would lead out of the directory, also by a link in it.
            if !entry.unpack_in(&self.directory).with_context(|| format!("cannot write `{}`", path.display()))? {
                bail!("the object `{}` would lead out of `{}`", path.display(), self.directory.display());
            }
            came.insert(path);
        }
        Ok(came)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_comes_back_as_the_bucket_has_it_and_other_files_stay() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        };
        write("a/sent");
        write("stale");
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join("link")).unwrap();
        let (shared, bytes) = pack(folder.path()).unwrap();
        assert_eq!(shared.sent.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(), ["a/sent", "stale"]);
        write("made meanwhile");
        let other = tempfile::tempdir().unwrap();
        let there = Shared { directory: other.path().to_owned(), sent: BTreeSet::new() };
        assert_eq!(there.unpack(&bytes[..]).unwrap().len(), 2);
        assert_eq!(std::fs::read_to_string(other.path().join("a/sent")).unwrap(), "a/sent");
    }
}
