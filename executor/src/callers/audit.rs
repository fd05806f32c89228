//! The audit log: one JSON line for each thing that a caller changed, and for each refusal; `<state>/audit.log`.
//!
//! ```text
//!  a change of who may operate ───────────────────────────┐
//!  another change ─► CHANGES_MAX of that caller's? ────────┤          both in an hour
//!  a refusal ──────► REFUSALS_MAX of that place? ──────────┴─► audit.log ── BYTES_MAX? ─► audit.log.1 ─► … ─► audit.log.<FILES_MAX> ─► gone
//! ```
//! Who may only submit changes what is his own project's, and each of its jobs and leases has a log besides: what a flood of his hides here is
//! there. Who may more changes what is others', and no flood hides that.
//!
//! It is written before the answer leaves. Where it cannot be, the server says so in its own log, once per line, and goes on: a full disk
//! must not keep an operator from making room.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Role;

/// 16 MiB are some 60,000 lines.
const BYTES_MAX: u64 = 16 << 20;
/// With eight more files the last half a million lines are there.
const FILES_MAX: u32 = 8;
/// Refusals of one place, or of one caller, in an hour: who tries in a loop must not push out what others did.
const REFUSALS_MAX: u32 = 100;
/// Those of all places: who has many addresses needs two days for that.
const REFUSALS_OF_ALL_MAX: u32 = 10_000;
/// Changes of one who may only submit, in an hour: more than a job each second. A hundred such hours fill the log.
const CHANGES_MAX: u32 = 5000;
const HOUR: Duration = Duration::from_secs(3600);

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When.
    pub at: jiff::Timestamp,
    /// Who, as far as it is known.
    pub who: String,
    /// In whose name he acts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// What he may do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// From where.
    pub from: String,
    /// The request's method and path; a path with a key in it as its pattern.
    pub what: String,
    /// The answer's status.
    pub status: u16,
    /// Why it was refused; and that it is the last of its kind for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// The file, opened for the first line.
pub struct Audit {
    path: PathBuf,
    bytes_max: u64,
    open: Mutex<Option<(File, u64)>>,
    strangers: Mutex<Tally>,
    known: Mutex<Tally>,
    changes: Mutex<Tally>,
}

/// The lines of an hour.
#[derive(Default)]
struct Tally {
    since: Option<Instant>,
    of_place: BTreeMap<String, u32>,
    all: u32,
}

/// Whether one more is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Yes,
    Last,
    No,
}

/// How many lines there are in an hour.
#[derive(Clone, Copy)]
struct Bound {
    of_place: u32,
    of_all: u32,
}

const OF_REFUSALS: Bound = Bound { of_place: REFUSALS_MAX, of_all: REFUSALS_OF_ALL_MAX };
const OF_CHANGES: Bound = Bound { of_place: CHANGES_MAX, of_all: u32::MAX };

impl Tally {
    fn count(&mut self, place: &str, bound: Bound, now: Instant) -> Said {
        if self.since.is_none_or(|since| now.duration_since(since) >= HOUR) {
            *self = Tally { since: Some(now), ..Tally::default() };
        }
        let of_place = self.of_place.get(place).copied().unwrap_or(0);
        if of_place == bound.of_place || self.all == bound.of_all {
            return Said::No;
        }
        self.of_place.insert(place.to_owned(), of_place + 1);
        self.all += 1;
        if of_place + 1 == bound.of_place || self.all == bound.of_all { Said::Last } else { Said::Yes }
    }
}

impl Audit {
    /// That of a state folder.
    pub(crate) fn of(state: &Path) -> Audit {
        let (open, strangers, known, changes) = Default::default();
        Audit { path: state.join("audit.log"), bytes_max: BYTES_MAX, open, strangers, known, changes }
    }

    /// Writes a refusal, unless there were too many of them; the last one says so.
    pub fn write_refusal(&self, line: &Line, now: Instant) {
        let tally = if line.role.is_some() { &self.known } else { &self.strangers };
        let said = lock(tally).count(&line.place(), OF_REFUSALS, now);
        self.write_as(said, line, "what is refused next is not written down for an hour");
    }

    /// Writes what was changed, unless who may only submit has changed too much; the last line says so.
    pub fn write_change(&self, line: &Line, now: Instant) {
        let said = match line.role {
            Some(Role::Operate | Role::Administer) => Said::Yes,
            Some(Role::Submit) | None => lock(&self.changes).count(&line.place(), OF_CHANGES, now),
        };
        let more = "what is changed next is not written down for an hour: the logs of jobs and leases have it";
        self.write_as(said, line, more);
    }

    fn write_as(&self, said: Said, line: &Line, more: &str) {
        match said {
            Said::Yes => self.write(line),
            Said::Last => {
                let why = line.why.as_ref().map_or_else(|| more.to_owned(), |why| format!("{why}; {more}"));
                self.write(&Line { why: Some(why), ..line.clone() });
            }
            Said::No => {}
        }
    }

    /// Writes a line.
    pub fn write(&self, line: &Line) {
        if let Err(error) = self.append(line) {
            tracing::error!(path = %self.path.display(), %error, who = line.who, what = line.what, "the audit log cannot be written");
        }
    }

    fn append(&self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let mut open = lock(&self.open);
        if open.as_ref().is_some_and(|(_, length)| length + text.len() as u64 > self.bytes_max) {
            *open = None;
            self.rotate()?;
        }
        let (file, length) = match &mut *open {
            Some(open) => open,
            None => {
                let file = File::options().create(true).append(true).mode(0o600).open(&self.path)?;
                let length = file.metadata()?.len();
                open.insert((file, length))
            }
        };
        file.write_all(&text)?;
        *length += text.len() as u64;
        Ok(())
    }

    fn rotate(&self) -> io::Result<()> {
        let numbered = |number: u32| self.path.with_extension(format!("log.{number}"));
        for number in (1..FILES_MAX).rev().filter(|number| numbered(*number).exists()) {
            std::fs::rename(numbered(number), numbered(number + 1))?;
        }
        std::fs::rename(&self.path, numbered(1))
    }
}

impl Line {
    /// Whom or what it is counted of: who is known, or else the address; of IPv6 the network, in which one host has them all.
    fn place(&self) -> String {
        if self.role.is_some() {
            return self.who.clone();
        }
        let address = self.from.parse().map(|address: SocketAddr| address.ip()).or_else(|_| self.from.parse());
        match address.map(|address: IpAddr| address.to_canonical()) {
            Ok(IpAddr::V6(six)) => Ipv6Addr::from_bits(six.to_bits() >> 64 << 64).to_string(),
            Ok(four) => four.to_string(),
            Err(_) => self.from.clone(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(status: u16) -> Line {
        Line {
            at: jiff::Timestamp::UNIX_EPOCH,
            who: "ci".into(),
            project: Some("mesa".into()),
            role: Some(Role::Submit),
            from: "10.0.0.1:5".into(),
            what: "POST /api/v1/jobs".into(),
            status,
            why: None,
        }
    }

    #[test]
    fn a_line_says_who_did_what_from_where_and_how_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit::of(folder.path());
        audit.write(&line(201));
        audit.write(&Line { why: Some("no".into()), project: None, role: None, ..line(403) });
        let expected = r#"{"at":"1970-01-01T00:00:00Z","who":"ci","project":"mesa","role":"submit","from":"10.0.0.1:5","what":"POST /api/v1/jobs","status":201}
{"at":"1970-01-01T00:00:00Z","who":"ci","from":"10.0.0.1:5","what":"POST /api/v1/jobs","status":403,"why":"no"}
"#;
        assert_eq!(std::fs::read_to_string(folder.path().join("audit.log")).unwrap(), expected);
    }

    #[test]
    fn a_full_file_is_set_aside_and_of_those_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit { bytes_max: 300, ..Audit::of(folder.path()) };
        (0..40).for_each(|number| audit.write(&line(number)));
        let mut statuses = Vec::new();
        let names = (1..=FILES_MAX + 1).rev().map(|number| format!("audit.log.{number}")).chain(["audit.log".into()]);
        for path in names.map(|name| folder.path().join(name)).filter(|path| path.exists()) {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.len() <= 300, "{}", path.display());
            statuses.extend(text.lines().map(|line| serde_json::from_str::<Line>(line).unwrap().status));
        }
        assert_eq!(statuses, (22..40).collect::<Vec<_>>(), "nine files of two lines");
    }

    #[test]
    fn of_who_tries_in_a_loop_a_hundred_refusals_are_written_down_each_hour_and_he_hides_nobody_elses() {
        let (folder, begin) = (tempfile::tempdir().unwrap(), Instant::now());
        let audit = Audit::of(folder.path());
        let written = || std::fs::read_to_string(folder.path().join("audit.log")).unwrap_or_default().lines().count();
        let tries = |from: &dyn Fn(u32) -> String, role, later: u64| {
            let before = written();
            for number in 0..150 {
                let line = Line { from: from(number), role, why: Some("no".into()), ..line(403) };
                audit.write_refusal(&line, begin + Duration::from_secs(later));
            }
            written() - before
        };
        assert_eq!(tries(&|port| format!("10.0.0.1:{port}"), None, 0), 100);
        assert_eq!(tries(&|port| format!("[::ffff:10.0.0.1]:{port}"), None, 1), 0);
        assert_eq!(tries(&|host| format!("[2001:db8::{host:x}]:5"), None, 2), 100);
        assert_eq!(tries(&|host| format!("10.0.1.{host}"), None, 3), 150);
        // Wherever he comes from.
        assert_eq!(tries(&|host| format!("10.0.2.{host}:5"), Some(Role::Submit), 3599), 100);
        assert_eq!(tries(&|port| format!("10.0.0.1:{port}"), None, 3600), 100);
        let text = std::fs::read_to_string(folder.path().join("audit.log")).unwrap();
        let last = r#""status":403,"why":"no; what is refused next is not written down for an hour"}"#;
        assert!(text.lines().nth(99).unwrap().ends_with(last) && !text.lines().nth(98).unwrap().ends_with(last));
    }

    #[test]
    fn who_submits_in_a_loop_hides_nobody_elses_changes_and_no_change_of_an_operator_is_hidden() {
        let (folder, begin) = (tempfile::tempdir().unwrap(), Instant::now());
        let audit = Audit::of(folder.path());
        let lines = || {
            let text = std::fs::read_to_string(folder.path().join("audit.log")).unwrap();
            text.lines().map(|line| serde_json::from_str::<Line>(line).unwrap()).collect::<Vec<_>>()
        };
        let changes = |who: &str, role, count: usize, later: u64| {
            let now = begin + Duration::from_secs(later);
            (0..count).for_each(|_| audit.write_change(&Line { who: who.into(), role, ..line(201) }, now));
            lines().iter().filter(|line| line.who == who).count()
        };
        assert_eq!(changes("ci", Some(Role::Submit), 5100, 0), 5000);
        assert_eq!(changes("other-ci", Some(Role::Submit), 1, 1), 1);
        assert_eq!(changes("anna", Some(Role::Operate), 5100, 2), 5100);
        assert_eq!(changes("the host", Some(Role::Administer), 5100, 2), 5100);
        assert_eq!(changes("ci", Some(Role::Submit), 1, 3599), 5000);
        assert_eq!(changes("ci", Some(Role::Submit), 1, 3600), 5001);
        let said: Vec<_> = lines().into_iter().enumerate().filter_map(|(at, line)| Some((at, line.why?))).collect();
        let why = "what is changed next is not written down for an hour: the logs of jobs and leases have it";
        assert_eq!(said, [(4999, why.to_owned())], "it is told once, in the last line");
    }

    #[test]
    fn all_strangers_together_fill_no_more_than_a_part_of_the_log() {
        let (mut refusals, now) = (Tally::default(), Instant::now());
        let stranger = |number: &i32| refusals.count(&format!("stranger {number}"), OF_REFUSALS, now) != Said::No;
        let said = (0..20_000).filter(stranger);
        assert_eq!(said.count(), 10_000);
    }
}
