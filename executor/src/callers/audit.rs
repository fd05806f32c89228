//! The audit log: one JSON line for each thing that a caller changed, and for each refusal; `<state>/audit.log`.
//!
//! ```text
//!  a line ─► audit.log ── BYTES_MAX? ─► audit.log.1 ─► … ─► audit.log.<FILES_MAX> ─► gone
//! ```
//! It is written before the answer leaves. Where it cannot be, the server says so in its own log, once per line, and goes on: a full disk
//! must not keep an operator from making room.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// 16 MiB are some 60,000 lines.
const BYTES_MAX: u64 = 16 << 20;
/// With eight more files the last half a million lines are there.
const FILES_MAX: u32 = 8;

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
    pub role: Option<super::Role>,
    /// From where.
    pub from: String,
    /// The request's method and path; a path with a key in it as its pattern.
    pub what: String,
    /// The answer's status.
    pub status: u16,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// The file, opened for the first line.
pub struct Audit {
    path: PathBuf,
    bytes_max: u64,
    open: Mutex<Option<(File, u64)>>,
}

impl Audit {
    /// That of a state folder.
    pub(crate) fn of(state: &Path) -> Audit {
        Audit { path: state.join("audit.log"), bytes_max: BYTES_MAX, open: Mutex::new(None) }
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
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn line(status: u16) -> Line {
        Line {
            at: jiff::Timestamp::UNIX_EPOCH,
            who: "ci".into(),
            project: Some("mesa".into()),
            role: Some(super::super::Role::Submit),
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
}
