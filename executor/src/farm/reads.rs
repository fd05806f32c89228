//! What of a job was read that may be read so often or so long, on disk: a crash does not give a second read.
//!
//! ```text
//!  setup ─► begin ──► <job>/reads.jsonl     {"published":"2026-11-21T08:00:00Z"}
//!  boot n ─► boot ───►                       {"boot":1}
//!  DUT ─► open ─► read, on disk, ─► granted  {"read":"HTTP","entry":"/secret","at":"2026-11-21T08:00:09Z"}
//!                                              │ the server is killed, the DUT goes on
//!  pick-up ─► go_on ─► Known { published, boot, read } ─► the same boot? its limits go on · the next one begins anew
//! ```
//! Only of machines that outlive the server, and only for jobs that limit something: nothing else has anything to remember. A line that was
//! cut short was never answered for: its read was not granted.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use gateway::namespace::{Counted, Protocol, Recorder};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// In the job's folder.
const FILE: &str = "reads.jsonl";
/// 16 MiB: a hundred thousand reads of what is limited in number.
const BYTES_MAX: u64 = 16 << 20;

/// The file of one job. Cheap to clone.
#[derive(Clone)]
pub(super) struct Reads(Arc<Mutex<Written>>);

struct Written {
    file: File,
    length: u64,
}

/// What an earlier run wrote.
#[derive(Debug)]
pub(super) struct Known {
    /// When the job's artifacts were published.
    pub published: Instant,
    /// The boot that this is about; 0 before the first.
    pub boot: u32,
    /// In that boot: how often each entry was read, and since when.
    pub read: BTreeMap<(Protocol, String), (u64, Instant)>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Published { published: Timestamp },
    Boot { boot: u32 },
    Read { read: String, entry: String, at: Timestamp },
}

impl Reads {
    /// A new file, for a job that is published now.
    pub(super) fn begin(folder: &Path) -> io::Result<Reads> {
        let file = File::options().create(true).truncate(true).write(true).open(folder.join(FILE))?;
        let reads = Reads(Arc::new(Mutex::new(Written { file, length: 0 })));
        reads.write(&Line::Published { published: Timestamp::now() })?;
        File::open(folder)?.sync_all()?;
        Ok(reads)
    }

    /// Goes on with what an earlier run wrote; `None`: it had nothing to write.
    pub(super) fn go_on(folder: &Path, now: Instant) -> io::Result<Option<(Reads, Known)>> {
        let text = match std::fs::read(folder.join(FILE)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let (known, length) = read(&text, now).ok_or_else(|| io::Error::other(format!("{FILE} is damaged")))?;
        let file = File::options().write(true).open(folder.join(FILE))?;
        file.set_len(length)?;
        Ok(Some((Reads(Arc::new(Mutex::new(Written { file, length }))), known)))
    }

    /// A boot begins: nothing was read in it.
    pub(super) fn boot(&self, boot: u32) -> io::Result<()> {
        self.write(&Line::Boot { boot })
    }

    /// Writes each access down before it is granted.
    pub(super) fn recorder(&self) -> Recorder {
        let reads = self.clone();
        Arc::new(move |counted: &Counted| {
            let (read, entry) = (counted.protocol.to_string(), counted.entry.clone());
            let line = Line::Read { read, entry, at: Timestamp::now() };
            patiently(|| reads.write(&line)).map_err(|error| error.to_string())
        })
    }

    fn write(&self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if written.length + text.len() as u64 > BYTES_MAX {
            return Err(io::Error::other(format!("{FILE} is as long as it may be")));
        }
        written.file.write_all_at(&text, written.length)?;
        written.file.sync_data()?;
        written.length += text.len() as u64;
        Ok(())
    }
}

/// A disk takes milliseconds: where the runtime has other threads, they take over what this one does.
fn patiently<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        Ok(_) | Err(_) => work(),
    }
}

/// What the whole lines say, and how long they are.
fn read(text: &[u8], now: Instant) -> Option<(Known, u64)> {
    let wall = Timestamp::now();
    // A clock that was set back makes nothing younger than it is.
    let instant = |at: Timestamp| {
        let age = Duration::try_from(wall.duration_since(at)).unwrap_or_default();
        now.checked_sub(age).unwrap_or(now)
    };
    let mut known: Option<Known> = None;
    let mut length = 0;
    for line in text.split_inclusive(|byte| *byte == b'\n').take_while(|line| line.ends_with(b"\n")) {
        match (serde_json::from_slice(line).ok()?, &mut known) {
            (Line::Published { published }, None) => {
                known = Some(Known { published: instant(published), boot: 0, read: BTreeMap::new() });
            }
            (Line::Boot { boot }, Some(known)) => {
                known.boot = boot;
                known.read.clear();
            }
            (Line::Read { read, entry, at }, Some(known)) => {
                let protocol = protocol_of(&read)?;
                known.read.entry((protocol, entry)).or_insert((0, instant(at))).0 += 1;
            }
            (Line::Published { .. }, Some(_)) | (_, None) => return None,
        }
        length += line.len() as u64;
    }
    Some((known?, length))
}

fn protocol_of(name: &str) -> Option<Protocol> {
    Protocol::ALL.into_iter().find(|protocol| protocol.to_string() == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(protocol: Protocol, entry: &str) -> Counted {
        Counted { protocol, entry: entry.to_owned() }
    }

    #[test]
    fn what_was_read_in_this_boot_is_known_again_and_a_torn_line_was_never_granted() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Reads::go_on(folder.path(), Instant::now()).unwrap().is_none());
        let reads = Reads::begin(folder.path()).unwrap();
        let record = reads.recorder();
        reads.boot(1).unwrap();
        record(&counted(Protocol::Http, "/of the boot before")).unwrap();
        reads.boot(2).unwrap();
        for (protocol, entry) in [(Protocol::Http, "/a"), (Protocol::Tftp, "/a"), (Protocol::Http, "/a")] {
            record(&counted(protocol, entry)).unwrap();
        }
        let path = folder.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], b"{\"read\":\"HTTP\",\"ent"].concat()).unwrap();
        let (reads, known) = Reads::go_on(folder.path(), Instant::now()).unwrap().unwrap();
        let counts: Vec<_> =
            known.read.iter().map(|((protocol, entry), (count, _))| (*protocol, entry, *count)).collect();
        assert_eq!(known.boot, 2);
        assert_eq!(counts, [(Protocol::Http, &"/a".to_owned(), 2), (Protocol::Tftp, &"/a".to_owned(), 1)]);
        reads.recorder()(&counted(Protocol::Nbd, "disk")).unwrap();
        let (_, known) = Reads::go_on(folder.path(), Instant::now()).unwrap().unwrap();
        assert_eq!(known.read.len(), 3, "what is written now begins where the torn line began");
    }

    #[test]
    fn a_time_that_runs_goes_on_by_the_wall_clock() {
        let hour = Duration::from_secs(3600);
        let (now, then) = (Instant::now(), Timestamp::now() - hour);
        let text = format!(
            "{{\"published\":\"{then}\"}}\n{{\"boot\":1}}\n{{\"read\":\"HTTP\",\"entry\":\"/a\",\"at\":\"{then}\"}}\n"
        );
        let known = read(text.as_bytes(), now).unwrap().0;
        assert!(now - known.published >= hour);
        assert!(now - known.read[&(Protocol::Http, "/a".to_owned())].1 >= hour);
    }

    #[test]
    fn a_file_that_makes_no_sense_is_an_error_and_not_a_new_beginning() {
        let folder = tempfile::tempdir().unwrap();
        for text in [
            "",
            "{\"boot\":1}\n",
            "rubbish\n",
            "{\"published\":\"2026-11-21T08:00:00Z\"}\n{\"read\":\"FTP\",\"entry\":\"/\",\"at\":\"2026-11-21T08:00:00Z\"}\n",
        ] {
            std::fs::write(folder.path().join(FILE), text).unwrap();
            assert!(Reads::go_on(folder.path(), Instant::now()).is_err(), "{text}");
        }
    }
}
