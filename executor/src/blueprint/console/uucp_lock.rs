//! The lock file of a serial device, as minicom, picocom, ser2net and getty have it: `/run/lock/LCK..ttyUSB0`, with a process id in it
//! (Filesystem Hierarchy Standard 3.0, section 3.15 and 5.9).
//!
//! ```text
//!  look ─┬─ no file ───────────────────────────────► write: a file of our own, given its name by link(2), which only one can
//!        ├─ of a process that is dead, or is us ───► removed ─► write
//!        ├─ of a process that lives ───────────────► an error with its id
//!        └─ unreadable ────────────────────────────► an error with the path
//! ```
//! The device is opened between look and write, by flock(2) for this host's `wharf` alone: so a file with our own id is one that we left behind,
//! which happens in containers, where the server has the same id each time.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// Where they are.
pub(super) const FOLDER: &str = "/run/lock";
/// A file that is being broken by two at once is written again at most so often.
const TRIES_MAX: usize = 3;

/// The lock of one device, ours until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
}

/// Whose a lock is.
#[derive(Debug, PartialEq, Eq)]
enum Holder {
    Nobody,
    /// A process that is dead, or we.
    Stale,
    Alive(i32),
    Unreadable,
}

/// Whether somebody else has the device; nothing is changed.
pub(super) fn look(folder: &Path, device: &Path) -> io::Result<()> {
    let path = path_of(folder, device);
    let busy = |why: String| io::Error::new(ErrorKind::ResourceBusy, why);
    match holder_of(&path)? {
        Holder::Nobody | Holder::Stale => Ok(()),
        Holder::Alive(id) => {
            let (device, path) = (device.display(), path.display());
            Err(busy(format!("{device} is in use by process {id}{}: {path}; end that first", name_of(id))))
        }
        Holder::Unreadable => {
            let (device, path) = (device.display(), path.display());
            Err(busy(format!(
                "{device} is locked by {path}, which names no process; remove it if nobody uses the line"
            )))
        }
    }
}

impl Lock {
    /// Writes the lock. `None` where the system has no folder for locks, or lets us write none: the device is locked by flock(2) alone then.
    pub(super) fn take(folder: &Path, device: &Path) -> io::Result<Option<Lock>> {
        let path = path_of(folder, device);
        for _ in 0..TRIES_MAX {
            look(folder, device)?;
            if holder_of(&path)? == Holder::Stale {
                remove(&path)?;
            }
            match write(folder, &path) {
                Ok(()) => return Ok(Some(Lock { path })),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
                    ) =>
                {
                    tracing::debug!(path = %path.display(), %error, "no lock file is written");
                    return Ok(None);
                }
                Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
            }
        }
        Err(io::Error::new(
            ErrorKind::ResourceBusy,
            format!("{} is written by somebody else again and again", path.display()),
        ))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn path_of(folder: &Path, device: &Path) -> PathBuf {
    let name = device.file_name().unwrap_or_default();
    folder.join(format!("LCK..{}", name.to_string_lossy()))
}

fn holder_of(path: &Path) -> io::Result<Holder> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Holder::Nobody),
        Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    };
    let Some(id) = id_in(&bytes).filter(|id| *id > 0) else { return Ok(Holder::Unreadable) };
    let is_ours = u32::try_from(id) == Ok(std::process::id());
    // A process of somebody else's may not be signalled, but is there.
    let is_dead = kill(Pid::from_raw(id), None) == Err(Errno::ESRCH);
    Ok(if is_ours || is_dead { Holder::Stale } else { Holder::Alive(id) })
}

/// Ten digits and a line feed; older programs write the number's four bytes.
fn id_in(bytes: &[u8]) -> Option<i32> {
    let text = std::str::from_utf8(bytes).ok().and_then(|text| text.split_whitespace().next()?.parse().ok());
    text.or_else(|| Some(i32::from_ne_bytes(bytes.try_into().ok()?)))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            let hint = "its process is gone; remove it";
            Err(io::Error::new(error.kind(), format!("{}: {error}; {hint}", path.display())))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Nobody ever sees it without the id.
fn write(folder: &Path, path: &Path) -> io::Result<()> {
    let mut file = tempfile::Builder::new().prefix("LTMP.wharf-").tempfile_in(folder)?;
    writeln!(file, "{:>10}", std::process::id())?;
    #[allow(clippy::permissions_set_readonly_false, reason = "others have to read whose it is")]
    file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    fs::hard_link(file.path(), path)
}

fn name_of(id: i32) -> String {
    fs::read_to_string(format!("/proc/{id}/comm")).map(|name| format!(" ({})", name.trim())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let lock = folder.path().join("LCK..ttyUSB0");
        (folder, PathBuf::from("/dev/ttyUSB0"), lock)
    }

    #[test]
    fn it_is_there_with_our_id_and_gone_when_dropped() {
        let (folder, device, path) = device();
        let lock = Lock::take(folder.path(), &device).unwrap().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{:>10}\n", std::process::id()));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        drop(lock);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn that_of_a_dead_process_or_of_our_own_id_is_taken_over() {
        let (folder, device, path) = device();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = child.id();
        child.wait().unwrap();
        for text in [format!("{dead:>10}\n").into_bytes(), dead.to_ne_bytes().to_vec()] {
            fs::write(&path, &text).unwrap();
            assert!(Lock::take(folder.path(), &device).unwrap().is_some(), "{text:?}");
        }
        fs::write(&path, format!("{:>10}\n", std::process::id())).unwrap();
        assert!(Lock::take(folder.path(), &device).unwrap().is_some());
    }

    #[test]
    fn that_of_a_living_process_is_left_and_the_error_has_its_id() {
        let (folder, device, path) = device();
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        // The kernel lets us go on a moment before it has given the child its new name.
        while name_of(i32::try_from(child.id()).unwrap()) != " (cat)" {
            std::thread::yield_now();
        }
        fs::write(&path, format!("{:>10} cat root\n", child.id())).unwrap();
        let why = Lock::take(folder.path(), &device).unwrap_err().to_string();
        let (id, path) = (child.id(), path.display());
        assert_eq!(why, format!("/dev/ttyUSB0 is in use by process {id} (cat): {path}; end that first"));
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn one_that_names_no_process_is_for_a_person_to_look_at_and_no_folder_is_no_lock() {
        let (folder, device, path) = device();
        fs::write(&path, "what?\n").unwrap();
        let why = Lock::take(folder.path(), &device).unwrap_err().to_string();
        assert!(why.ends_with("which names no process; remove it if nobody uses the line"), "{why}");
        assert!(Lock::take(&folder.path().join("none"), &device).unwrap().is_none());
    }
}
