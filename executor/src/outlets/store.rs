//! What of a unit's outlets outlives the process: what each should do, since when it is off, who must not switch it.
//!
//! ```text
//!  <state>/power/rack-1.json   {"7": {"wish": "cycle", "off_since": {…}, "reserved": false}}
//!     written before the unit is told, and when it has done it: a server that is killed in between finds what it was about to do
//! ```
//! A file is replaced as a whole. Units with 48 outlets have 5 kB of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::policy::Stamp;
use crate::blueprint::power::{Outlet, PowerState};

/// What an outlet should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wish {
    /// Be on.
    On,
    /// Be off.
    Off,
    /// Go off, stay off for its off-time, go on: the one thing that is not the same done twice.
    Cycle,
}

impl From<PowerState> for Wish {
    fn from(state: PowerState) -> Wish {
        match state {
            PowerState::On => Wish::On,
            PowerState::Off => Wish::Off,
        }
    }
}

/// What is kept of one outlet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// What it was told last, or was about to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wish: Option<Wish>,
    /// Since when it is off; `None` when it is on, or was never read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub off_since: Option<Stamp>,
    /// The same for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_off: Option<jiff::Timestamp>,
    /// Somebody said that it is not to be switched.
    #[serde(skip_serializing_if = "is_false")]
    pub reserved: bool,
    /// Somebody gave it an off-time of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub off_time_ms: Option<u64>,
}

/// The file of a unit.
#[derive(Debug)]
pub struct Store {
    path: Option<PathBuf>,
    outlets: Mutex<BTreeMap<String, Kept>>,
}

impl Store {
    /// Nothing outlives the process: for machines that do not either.
    pub fn none() -> Store {
        Store { path: None, outlets: Mutex::default() }
    }

    /// The file of the unit with this name. One that cannot be read is the same as none, which the log says: every off-time begins anew.
    pub fn open(folder: &Path, unit: &str) -> Store {
        let path = folder.join(format!("{}.json", file_name(unit)));
        let read = fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        let outlets = read.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::error!(path = %path.display(), %error, "what the outlets did before is not known");
            }
            BTreeMap::new()
        });
        Store { path: Some(path), outlets: Mutex::new(outlets) }
    }

    /// Whether it is a file.
    pub fn outlives_us(&self) -> bool {
        self.path.is_some()
    }

    /// What is known of an outlet.
    pub fn get(&self, outlet: &Outlet) -> Kept {
        self.lock().get(&outlet.0).cloned().unwrap_or_default()
    }

    /// Outlets of which something is known.
    pub fn known(&self) -> Vec<Outlet> {
        self.lock().keys().cloned().map(Outlet).collect()
    }

    /// Changes what is known, and writes it down when it is something new.
    pub fn change(&self, outlet: &Outlet, change: impl FnOnce(&mut Kept)) -> io::Result<()> {
        let mut outlets = self.lock();
        let kept = outlets.entry(outlet.0.clone()).or_default();
        let before = kept.clone();
        change(kept);
        match &self.path {
            Some(path) if *kept != before => write(path, &outlets),
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        self.outlets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Beside it and renamed: whoever reads it after a crash finds the old one or the new one.
fn write(path: &Path, outlets: &BTreeMap<String, Kept>) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(&serde_json::to_vec_pretty(outlets)?)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(folder)?.sync_all()
}

/// A unit may be called after its machine, whose name is anybody's.
fn file_name(unit: &str) -> String {
    let mut name = String::new();
    for byte in unit.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            _ => name.push_str(&format!("%{byte:02X}")),
        }
    }
    name
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_there_after_a_restart_and_another_unit_has_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let seven = Outlet("7".into());
        let store = Store::open(folder.path(), "rack/1");
        store.change(&seven, |kept| kept.wish = Some(Wish::Cycle)).unwrap();
        let again = Store::open(folder.path(), "rack/1");
        assert_eq!(again.get(&seven), Kept { wish: Some(Wish::Cycle), ..Kept::default() });
        assert_eq!(again.known(), std::slice::from_ref(&seven));
        assert_eq!(Store::open(folder.path(), "rack.1").get(&seven), Kept::default());
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["rack%2F1.json"]);
    }

    #[test]
    fn what_is_no_news_is_not_written_and_what_cannot_be_read_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let seven = Outlet("7".into());
        let store = Store::open(folder.path(), "rack");
        store.change(&seven, |kept| kept.reserved = false).unwrap();
        assert!(!folder.path().join("rack.json").exists());
        store.change(&seven, |kept| kept.reserved = true).unwrap();
        let text = fs::read_to_string(folder.path().join("rack.json")).unwrap();
        assert_eq!(text, "{\n  \"7\": {\n    \"reserved\": true\n  }\n}");
        fs::write(folder.path().join("rack.json"), "{").unwrap();
        assert_eq!(Store::open(folder.path(), "rack").get(&seven), Kept::default());
    }
}
