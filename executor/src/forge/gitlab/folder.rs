//! The folder in which a job's files are made: git writes there what a stranger's repository says, and nothing else stops it.
//!
//! ```text
//!  work in the folder ──────────────────────────────► done ─► weighed once more ─► its result
//!     │ every LOOK:         the disk has too little left ──┐
//!     │ every LOOK or more: it weighs more than it may ────┴─► the work is dropped, with all that it started ─► Over
//! ```
//! Who drops the work has git's processes killed (git.rs), and threads that write for it stop at their next write.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::statvfs::statvfs;
use tokio::time::sleep;

use crate::config::gitlab::CheckoutLimits;

/// Between two looks: a fast disk takes half a gibibyte in that time, which is half of what the disk is left by default.
const LOOK: Duration = Duration::from_millis(250);
/// Weighing takes at most so large a part of a processor's time: a tree of a million files is looked at for seconds.
const SHARE: u32 = 4;
/// What a file costs at least: ext4 has one inode for so many bytes (mke2fs.conf, inode_ratio), and none are left before the blocks are.
const FILE_BYTES_MIN: u64 = 16 * 1024;
/// Attempts to remove the folder: a process that was killed may write for a moment.
const REMOVALS_MAX: u32 = 20;
const REMOVAL_PAUSE: Duration = Duration::from_millis(50);

/// Why the work was not let go on; sentences for the job's log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// It would be more than a job may have.
    Quota(String),
    /// The farm's disk has no room for it.
    Disk(String),
}

/// The work's result, unless it makes more in the folder than the limits let it, or the disk gets full.
pub(super) async fn within<T>(folder: &Path, limits: CheckoutLimits, work: impl Future<Output = T>) -> Result<T, Over> {
    if let Some(why) = shortage(folder, limits) {
        return Err(Over::Disk(why));
    }
    let done = tokio::select! {
        done = work => done,
        over = until_short(folder, limits) => return Err(over),
        over = until_heavy(folder, limits) => return Err(over),
    };
    // The last of it may have come after the last look.
    too_heavy(folder, limits).await.map_or(Ok(done), Err)
}

/// A sentence where the disk that this folder is on has less left than must stay.
pub(super) fn shortage(folder: &Path, limits: CheckoutLimits) -> Option<String> {
    // What cannot be asked does not keep a job from its machine: writes have errors of their own.
    let space = statvfs(folder).ok()?;
    // The type differs between platforms.
    #[allow(clippy::unnecessary_cast)]
    let left = (space.blocks_available() as u64).saturating_mul(space.fragment_size() as u64);
    let said = (megabytes(left), megabytes(limits.bytes_left));
    (left < limits.bytes_left).then(|| {
        format!("the farm's disk has {} MiB left, and {} MiB have to stay (`checkout.reserve`)", said.0, said.1)
    })
}

/// Removes the folder, and keeps at it for a moment.
pub(super) async fn remove(folder: PathBuf) {
    for attempt in 1..=REMOVALS_MAX {
        let path = folder.clone();
        let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(path)).await;
        match removed.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound && attempt == REMOVALS_MAX => {
                tracing::warn!(path = %folder.display(), %error, "what was made for a job cannot be removed");
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => sleep(REMOVAL_PAUSE).await,
            _ => return,
        }
    }
}

/// Works on a thread for it; the work is told when nobody waits any more.
pub(super) async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce(&Arc<AtomicBool>) -> T + Send + 'static,
) -> io::Result<T> {
    struct Waits(Arc<AtomicBool>);
    impl Drop for Waits {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = Arc::new(AtomicBool::new(false));
    let _waits = Waits(Arc::clone(&stop));
    tokio::task::spawn_blocking(move || work(&stop)).await.map_err(io::Error::other)
}

/// Writes until nobody waits any more.
pub(super) struct Waited<W> {
    pub inner: W,
    pub stop: Arc<AtomicBool>,
}

impl<W: Write> Write for Waited<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(io::Error::other("nobody waits for it any more")),
            false => self.inner.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

async fn until_short(folder: &Path, limits: CheckoutLimits) -> Over {
    loop {
        sleep(LOOK).await;
        if let Some(why) = shortage(folder, limits) {
            return Over::Disk(why);
        }
    }
}

async fn until_heavy(folder: &Path, limits: CheckoutLimits) -> Over {
    let mut pause = LOOK;
    loop {
        sleep(pause).await;
        let begin = Instant::now();
        if let Some(over) = too_heavy(folder, limits).await {
            return over;
        }
        pause = LOOK.max(begin.elapsed() * SHARE);
    }
}

async fn too_heavy(folder: &Path, limits: CheckoutLimits) -> Option<Over> {
    let (path, bytes_max) = (folder.to_owned(), limits.bytes_max);
    match on_a_thread(move |stop| weigh(path, bytes_max, stop)).await.unwrap_or_else(Err) {
        Ok(bytes) if bytes <= bytes_max => None,
        Ok(_) => Some(Over::Quota(format!(
            "the job's files have more than {} MiB, which is all that a job may have here (`checkout.quota`)",
            megabytes(bytes_max)
        ))),
        Err(error) => Some(Over::Quota(format!("the job's files cannot be weighed: {error}"))),
    }
}

/// What a folder has on the disk, looked at until it is more than `bytes_max`. Links lead nowhere.
fn weigh(folder: PathBuf, bytes_max: u64, stop: &AtomicBool) -> io::Result<u64> {
    let (mut folders, mut bytes) = (vec![folder], 0);
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            // What git works with comes and goes.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            // Blocks have 512 bytes, whatever the file system's have (stat(2)).
            bytes += (std::os::unix::fs::MetadataExt::blocks(&metadata) * 512).max(FILE_BYTES_MIN);
            if metadata.is_dir() {
                folders.push(entry.path());
            }
            if bytes > bytes_max || stop.load(Ordering::Relaxed) {
                return Ok(bytes);
            }
        }
    }
    Ok(bytes)
}

fn megabytes(bytes: u64) -> u64 {
    bytes >> 20
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn limits(bytes_max: u64, bytes_left: u64) -> CheckoutLimits {
        CheckoutLimits { bytes_max, bytes_left }
    }

    #[tokio::test]
    async fn work_that_would_not_end_is_ended_when_its_folder_weighs_too_much() {
        let folder = tempfile::tempdir().unwrap();
        let endless = async {
            fs::create_dir(folder.path().join("deep")).unwrap();
            fs::write(folder.path().join("deep/file"), vec![1; 2 << 20]).unwrap();
            pending::<()>().await;
        };
        let said = "the job's files have more than 1 MiB, which is all that a job may have here (`checkout.quota`)";
        assert_eq!(within(folder.path(), limits(MIB, 0), endless).await, Err(Over::Quota(said.to_owned())));
        remove(folder.path().to_owned()).await;
        assert!(!folder.path().exists());
    }

    #[tokio::test]
    async fn what_is_made_between_two_looks_is_weighed_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(within(folder.path(), limits(MIB, 0), ready(7)).await, Ok(7));
        // Files of nothing fill a disk as well.
        (0..65).for_each(|number| fs::write(folder.path().join(number.to_string()), "").unwrap());
        assert!(matches!(within(folder.path(), limits(MIB, 0), ready(7)).await, Err(Over::Quota(_))));
        assert_eq!(within(folder.path(), limits(2 * MIB, 0), ready(7)).await, Ok(7));
    }

    #[tokio::test]
    async fn a_link_weighs_nothing_of_what_it_leads_to() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/", folder.path().join("all")).unwrap();
        assert_eq!(within(folder.path(), limits(MIB, 0), ready(7)).await, Ok(7));
    }

    #[tokio::test]
    async fn no_work_is_begun_where_the_disk_has_less_left_than_has_to_stay() {
        let folder = tempfile::tempdir().unwrap();
        let begun = within(folder.path(), limits(MIB, u64::MAX), async { panic!("it was begun") });
        let Err(Over::Disk(why)) = begun.await else { panic!("it was begun") };
        assert!(why.ends_with(" MiB left, and 17592186044415 MiB have to stay (`checkout.reserve`)"), "{why}");
    }

    #[tokio::test]
    async fn a_thread_stops_to_write_when_nobody_waits_for_it() {
        let (told, ended) = std::sync::mpsc::channel();
        let writing = on_a_thread(move |stop| {
            let mut writer = Waited { inner: io::sink(), stop: Arc::clone(stop) };
            let error = (0..).find_map(|_| writer.write_all(b"x").err()).unwrap();
            told.send(error.to_string()).unwrap();
        });
        assert!(tokio::time::timeout(Duration::from_millis(1), writing).await.is_err());
        assert_eq!(ended.recv().unwrap(), "nobody waits for it any more");
    }
}
