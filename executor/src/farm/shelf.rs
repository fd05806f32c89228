//! The disks that are nobody's own: those that outlive their job (`reset_on: never`), and those that several DUTs attach (`shared: true`).
//!
//! ```text
//!  <state>/disks/<id>/disk.json          the record; without it the folder is no disk
//!                    layer, blocks, base  what was written (gateway, content/disk/kept.rs)
//!
//!  take ─► used ─► taken by others, too: one Body for all of them
//!            │ last user gone: flushed, closed
//!            ├─ while used: gone
//!            └─ beyond use: free ─┬─ taken again
//!                                 ├─ its expiration after it came free, whether we run or not ─┐
//!                                 └─ removed by a person ──────────────────────────────────────┴─► gone
//! ```
//! Which disk is meant follows from what a job says, and whose it is: name, source, whether it is shared, and the subject in whose name
//! the job runs; of a disk that is not shared, the DUT as well. So no word in a job leads to the disk of another project.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use gateway::content::disk::{Base, Beginning, Config, Disk, Mode};
use jiff::Timestamp;
use job_schema::job::{NbdExport, ResetOn};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::job_log::{JobEvent, Severity};

/// Kept disks of a farm. A job that makes a new one each time would fill a disk with files that nobody looks at.
const KEPT_MAX: usize = 1000;
/// The file that makes a folder a disk.
const RECORD: &str = "disk.json";
/// What is being removed, also by a start after a crash.
const GONE: &str = "gone";
/// The clock may be set while nobody looks: a disk is gone at most so long after its time.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The disks of a farm that are nobody's own. Cheap to clone.
#[derive(Clone)]
pub(super) struct Shelf(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    disks: Mutex<BTreeMap<String, Kept>>,
    /// A disk came free: the next one may expire earlier than thought.
    freed: Arc<Notify>,
    /// Tear-downs, which let go of disks, run on the leases' own thread.
    runtime: Handle,
}

struct Kept {
    record: Record,
    is_written: bool,
    /// Open while it is used. Held by whoever opens or closes it.
    opened: Opened,
    users: Vec<Use>,
}

/// A disk while it is open.
type Opened = Arc<tokio::sync::Mutex<Option<Disk>>>;

/// What is kept of a disk beside its bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    name: String,
    source: String,
    subject: String,
    /// The DUT's id; `None`: it is shared.
    dut: Option<String>,
    lasts: Lasts,
    expiration_ms: Option<u64>,
    size_bytes: u64,
    made: Timestamp,
    /// Since when nobody uses it; `None`: somebody does, or did when the farm was killed.
    free_since: Option<Timestamp>,
}

/// How long a disk is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Lasts {
    WhileUsed,
    BeyondUse,
}

struct Use {
    number: u64,
    job: String,
    mode: Mode,
}

/// Who asks for a disk, and which.
pub(super) struct Ask<'a> {
    pub export: &'a NbdExport,
    pub base: Base,
    /// The source as the job says it, and as people may read it.
    pub source: [&'a str; 2],
    pub user: &'a super::disks::User<'a>,
}

/// A disk in use; when dropped, no longer.
pub(super) struct Held {
    shelf: Shelf,
    id: String,
    number: u64,
}

/// A disk as a person sees it.
#[derive(Clone, Debug)]
pub struct DiskView {
    /// What it is called here.
    pub id: String,
    /// What jobs call it.
    pub name: String,
    /// What it began with.
    pub source: String,
    /// In whose name.
    pub subject: String,
    /// The id of the DUT whose it is; `None`: it is shared.
    pub dut: Option<String>,
    /// Its size.
    pub size_bytes: u64,
    /// What of it takes space on the farm's own disk.
    pub stored_bytes: u64,
    /// When it was made.
    pub made: Timestamp,
    /// The jobs and leases that use it.
    pub users: Vec<String>,
    /// When it will be gone unless somebody asks for it.
    pub expires: Option<Timestamp>,
}

/// Why a disk is not removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoveError {
    /// There is none.
    #[error("no disk `{0}`; `wharf disks` lists them")]
    NoSuch(String),
    /// Somebody has it.
    #[error("the disk {id} is used by {}; it can be removed afterwards", users.join(", "))]
    Used {
        /// Which.
        id: String,
        /// By whom.
        users: Vec<String>,
    },
}

/// Whether a disk of a job is one of these.
pub(super) fn is_for(export: &NbdExport) -> bool {
    export.shared || export.reset_on == ResetOn::Never
}

impl Shelf {
    /// The disks that are kept in `folder`. What was used when the farm was killed comes free now; what only lasted while it was used
    /// is gone.
    pub(super) fn open(folder: PathBuf) -> io::Result<Shelf> {
        // Readable for our user only, as the cache is: what DUTs write may be secret.
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let shelf = Shelf(Arc::new(Inner {
            folder,
            disks: Mutex::default(),
            freed: Arc::default(),
            runtime: Handle::current(),
        }));
        for entry in fs::read_dir(&shelf.0.folder)?.flatten() {
            let (path, id) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            match read_record(&path) {
                Ok(record) if record.lasts == Lasts::BeyondUse => shelf.put_back(id, record),
                Ok(_) => shelf.remove_in_time(path),
                Err(error) if error.kind() == io::ErrorKind::NotFound => shelf.remove_in_time(path),
                Err(error) => {
                    tracing::error!(disk = id, %error, "a kept disk cannot be read; its folder is left as it is");
                }
            }
        }
        tokio::spawn(remove_the_expired(Arc::downgrade(&shelf.0)));
        Ok(shelf)
    }

    fn put_back(&self, id: String, mut record: Record) {
        if record.free_since.is_none() {
            record.free_since = Some(Timestamp::now());
            self.write_or_warn(&id, &record);
        }
        let kept = Kept { record, is_written: true, opened: Arc::default(), users: Vec::new() };
        self.lock().insert(id, kept);
    }

    /// The disk that is meant, made if there is none.
    pub(super) async fn take(&self, ask: Ask<'_>) -> Result<(Disk, Held), String> {
        self.sweep(Timestamp::now());
        let id = ask.id();
        let (held, opened) = self.enter(&id, &ask)?;
        let mut opened = opened.lock().await;
        let (disk, beginning) = match &*opened {
            Some(disk) if self.has_others(&id) => (disk.clone(), Beginning::Continued),
            // Whoever had it last is just gone. Its image is looked at again.
            _ => {
                close(&mut opened).await;
                Disk::keep(ask.config(self.path(&id))).await.map_err(|error| error.to_string())?
            }
        };
        *opened = Some(disk.clone());
        self.keep_record(&id, &ask, &disk).map_err(|error| format!("its record cannot be kept: {error}"))?;
        ask.tell(&id, beginning);
        Ok((disk.another(ask.mode(), ask.export.max_connections), held))
    }

    /// Makes who asks a user, unless that cannot be.
    fn enter(&self, id: &str, ask: &Ask<'_>) -> Result<(Held, Opened), String> {
        let mut disks = self.lock();
        if !disks.contains_key(id) && disks.len() >= KEPT_MAX {
            return Err(format!(
                "{KEPT_MAX} disks are kept; remove some, as `wharf disks` lists them, or let them expire"
            ));
        }
        let new = || Kept { record: ask.record(), is_written: false, opened: Arc::default(), users: Vec::new() };
        let kept = disks.entry(id.to_owned()).or_insert_with(new);
        let job = ask.user.job.to_owned();
        let writes = |user: &&Use| user.mode == Mode::CopyOnWrite && user.job != job;
        if ask.mode() == Mode::CopyOnWrite
            && let Some(other) = kept.users.iter().find(writes)
        {
            let other = &other.job;
            return Err(format!(
                "{other} writes to it, and only one job does so at a time; try again when that has ended"
            ));
        }
        let number = kept.users.iter().map(|user| user.number + 1).max().unwrap_or(0);
        kept.users.push(Use { number, job, mode: ask.mode() });
        Ok((Held { shelf: self.clone(), id: id.to_owned(), number }, Arc::clone(&kept.opened)))
    }

    fn has_others(&self, id: &str) -> bool {
        self.lock().get(id).is_some_and(|kept| kept.users.len() > 1)
    }

    /// The last job that asks says how long it is kept.
    fn keep_record(&self, id: &str, ask: &Ask<'_>, disk: &Disk) -> io::Result<()> {
        let mut disks = self.lock();
        let Some(kept) = disks.get_mut(id) else { return Ok(()) };
        let made = kept.record.made;
        kept.record = Record { made, size_bytes: disk.size(), ..ask.record() };
        write_record(&self.path(id), &kept.record)?;
        kept.is_written = true;
        Ok(())
    }

    /// All that are kept, by name.
    pub(super) fn list(&self) -> Vec<DiskView> {
        let disks = self.lock();
        let mut views: Vec<_> = disks.iter().map(|(id, kept)| kept.view(id, &self.path(id))).collect();
        views.sort_by(|one, other| (&one.name, &one.id).cmp(&(&other.name, &other.id)));
        views
    }

    /// Removes a disk that nobody uses.
    pub(super) fn remove(&self, id: &str) -> Result<(), RemoveError> {
        let mut disks = self.lock();
        let kept = disks.get(id).ok_or_else(|| RemoveError::NoSuch(id.to_owned()))?;
        if !kept.users.is_empty() {
            return Err(RemoveError::Used { id: id.to_owned(), users: kept.names() });
        }
        self.discard(&mut disks, id);
        Ok(())
    }

    /// Flushes what is open: the farm ends.
    pub(super) async fn close(&self) {
        let opened: Vec<_> = self.lock().values().map(|kept| Arc::clone(&kept.opened)).collect();
        for opened in opened {
            close(&mut *opened.lock().await).await;
        }
    }

    /// Removes what has expired; says how long it is until the next one does.
    fn sweep(&self, now: Timestamp) -> Option<Duration> {
        let mut disks = self.lock();
        let free = disks.iter().filter(|(_, kept)| kept.users.is_empty());
        let due: Vec<_> = free.filter_map(|(id, kept)| Some((id.clone(), kept.record.expires()?))).collect();
        for (id, _) in due.iter().filter(|(_, at)| *at <= now) {
            tracing::info!(disk = id, "a kept disk has expired");
            self.discard(&mut disks, id);
        }
        let next = due.iter().map(|(_, at)| *at).filter(|at| *at > now).min()?;
        Duration::try_from(next.duration_since(now)).ok()
    }

    fn leave(&self, id: &str, number: u64) {
        let mut disks = self.lock();
        let Some(kept) = disks.get_mut(id) else { return };
        kept.users.retain(|user| user.number != number);
        if !kept.users.is_empty() {
            return;
        }
        kept.record.free_since = Some(Timestamp::now());
        if kept.is_written {
            self.write_or_warn(id, &kept.record);
        }
        let (shelf, id) = (self.clone(), id.to_owned());
        self.0.runtime.spawn(async move { shelf.close_unused(&id).await });
    }

    /// Closes a disk unless somebody has taken it meanwhile.
    async fn close_unused(&self, id: &str) {
        let Some(opened) = self.lock().get(id).map(|kept| Arc::clone(&kept.opened)) else { return };
        let mut opened = opened.lock().await;
        if self.lock().get(id).is_none_or(|kept| !kept.users.is_empty()) {
            return;
        }
        close(&mut opened).await;
        let mut disks = self.lock();
        let is_over =
            |kept: &Kept| kept.users.is_empty() && (!kept.is_written || kept.record.lasts == Lasts::WhileUsed);
        if disks.get(id).is_some_and(is_over) {
            self.discard(&mut disks, id);
        }
        self.0.freed.notify_one();
    }

    fn discard(&self, disks: &mut BTreeMap<String, Kept>, id: &str) {
        disks.remove(id);
        let (path, gone) = (self.path(id), self.0.folder.join(format!("{id}.{GONE}-{:016x}", rand::random::<u64>())));
        // Without its record it is no disk any more, whatever else becomes of the folder.
        let _ = fs::remove_file(path.join(RECORD));
        match fs::rename(&path, &gone) {
            Ok(()) => self.remove_in_time(gone),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(disk = id, %error, "a kept disk cannot be removed; the next start tries again")
            }
        }
    }

    /// Many gigabytes take a while.
    fn remove_in_time(&self, path: PathBuf) {
        self.0.runtime.spawn_blocking(move || {
            if let Err(error) = fs::remove_dir_all(&path) {
                tracing::error!(path = %path.display(), %error, "a disk that is gone cannot be removed; the next start tries again");
            }
        });
    }

    fn write_or_warn(&self, id: &str, record: &Record) {
        if let Err(error) = write_record(&self.path(id), record) {
            tracing::error!(disk = id, %error, "the record of a kept disk cannot be written");
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.0.folder.join(id)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        self.0.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.users.iter().map(|user| user.job.clone()).collect();
        names.sort();
        names.dedup();
        names
    }

    fn view(&self, id: &str, path: &Path) -> DiskView {
        // st_blocks counts 512 bytes whatever the file system's own blocks are (inode(7)).
        let stored = fs::metadata(path.join("layer")).map_or(0, |metadata| metadata.blocks() * 512);
        let Record { name, source, subject, dut, size_bytes, made, .. } = self.record.clone();
        let (users, expires) = (self.names(), self.record.expires());
        DiskView {
            id: id.to_owned(),
            name,
            source,
            subject,
            dut,
            size_bytes,
            stored_bytes: stored,
            made,
            users,
            expires,
        }
    }
}

impl Record {
    /// When it is gone; `None` while it is used, and when nobody said how long it is kept.
    fn expires(&self) -> Option<Timestamp> {
        let (since, after) = (self.free_since?, Duration::from_millis(self.expiration_ms?));
        Some(since.checked_add(after).unwrap_or(Timestamp::MAX))
    }
}

impl Ask<'_> {
    /// The same for all who mean the same disk.
    fn id(&self) -> String {
        let record = self.record();
        let said = self.source[0];
        let identity = serde_json::json!([record.name, said, record.subject, record.dut, record.lasts]);
        let hash = Sha256::digest(identity.to_string().as_bytes());
        // 48 bits: nobody gains by making two of them collide but within one subject.
        hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }

    fn mode(&self) -> Mode {
        if self.export.readonly { Mode::ReadOnly } else { Mode::CopyOnWrite }
    }

    fn config(&self, directory: PathBuf) -> Config {
        let (base, mode) = (self.base.clone(), Mode::CopyOnWrite);
        Config { base, mode, directory, attachments_max: self.export.max_connections }
    }

    fn record(&self) -> Record {
        let expiration = self.export.expiration.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let lasts = if self.export.reset_on == ResetOn::Never { Lasts::BeyondUse } else { Lasts::WhileUsed };
        Record {
            name: self.export.name.to_string(),
            source: self.source[1].to_owned(),
            subject: self.user.subject.to_owned(),
            dut: (!self.export.shared).then(|| self.user.dut.to_owned()),
            lasts,
            expiration_ms: expiration,
            size_bytes: 0,
            made: Timestamp::now(),
            free_since: None,
        }
    }

    /// What its author could not know.
    fn tell(&self, id: &str, beginning: Beginning) {
        let name = &self.export.name;
        let (severity, text) = match beginning {
            Beginning::New => (Severity::Info, format!("The disk {name} is new; it is kept as {id}")),
            Beginning::Continued => {
                (Severity::Info, format!("The disk {name} is {id}, with what was written to it before"))
            }
            Beginning::Anew => (
                Severity::Warning,
                format!(
                    "The image of the disk {name} ({id}) is another one than before: what was written over that one is gone"
                ),
            ),
        };
        self.user.log.append(JobEvent::Note { text, severity });
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shelf.leave(&self.id, self.number);
    }
}

/// On disk before it is let go: what was flushed is there anyway, and so is its map.
async fn close(opened: &mut Option<Disk>) {
    if let Some(disk) = opened.take()
        && let Err(error) = disk.view().flush().await
    {
        tracing::error!(%error, "a kept disk cannot be flushed; what was written to it last may be lost");
    }
}

async fn remove_the_expired(shelf: Weak<Inner>) {
    loop {
        let Some(shelf) = shelf.upgrade().map(Shelf) else { return };
        let pause = shelf.sweep(Timestamp::now()).map_or(LOOK_EVERY, |next| next.min(LOOK_EVERY));
        let freed = Arc::clone(&shelf.0.freed);
        drop(shelf);
        let _ = tokio::time::timeout(pause, freed.notified()).await;
    }
}

fn read_record(folder: &Path) -> io::Result<Record> {
    Ok(serde_json::from_slice(&fs::read(folder.join(RECORD))?)?)
}

/// Beside it and renamed: whoever reads it after a crash finds the old one or the new one.
fn write_record(folder: &Path, record: &Record) -> io::Result<()> {
    let beside = folder.join("disk.json.new");
    fs::write(&beside, serde_json::to_vec(record)?)?;
    fs::File::open(&beside)?.sync_all()?;
    fs::rename(&beside, folder.join(RECORD))
}

#[cfg(test)]
#[path = "shelf_tests.rs"]
mod tests;
