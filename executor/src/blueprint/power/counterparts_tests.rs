//! Other people's units and servers for the tests of the drivers here, each in a network namespace of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use ::tests::bench::until;
use ::tests::lab::{Lab, Running};

/// Longer than any of them takes to start on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A namespace, and a folder for what runs in it.
pub(super) struct World {
    pub lab: Lab,
    folder: tempfile::TempDir,
}

impl World {
    /// `None`: nobody may make a network namespace here.
    pub(super) fn new() -> Option<World> {
        match Lab::new() {
            Ok(lab) => Some(World { lab, folder: tempfile::tempdir().unwrap() }),
            Err(error) => {
                eprintln!("SKIPPED: {error}");
                None
            }
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(super) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Starts a program, and waits until it said `ready`.
    pub(super) fn start(&self, program: &Path, arguments: &[&str], ready: &str) -> Running {
        self.start_until(program, arguments, |_, said| said.contains(ready))
    }

    /// Starts a program, and waits until it is `ready`: by its process and what it said.
    pub(super) fn start_until(&self, program: &Path, arguments: &[&str], ready: impl Fn(u32, &str) -> bool) -> Running {
        let name = program.file_name().unwrap().to_string_lossy().into_owned();
        let mut command = self.lab.command(&program.display().to_string()).unwrap();
        command.args(arguments).current_dir(self.folder.path()).env("TMPDIR", self.folder.path());
        command.env("SNMP_PERSISTENT_DIR", self.path("persistent")).env("MIBS", "").env("PYTHONUNBUFFERED", "1");
        let log = format!("{name}.log");
        let running = Running::spawn(&name, command, &self.path(&log)).unwrap();
        let is_ready = || ready(running.id(), &self.read(&log)).then_some(());
        until(PATIENCE, is_ready).unwrap_or_else(|| panic!("{name} does not serve: {}", self.read(&log)));
        running
    }

    /// Does `work` in the namespace.
    pub(super) fn inside<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
        self.lab.inside(|| Ok(runtime()?.block_on(work))).unwrap()
    }
}
