//! Programs of Debian and of PyPI that a test needs: found, or installed as `wharf virtual install` does it.
//!
//! ```text
//!  need_programs, need_packages ─► apt-get install         need_virtual_machines ─► wharf virtual install
//!  python: programs of PyPI ─► a virtual environment in the user's cache
//!  unpacked: files for another machine ─► apt-get download, with lists and state of its own ─► the user's cache
//! ```

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::bench::until;

/// Reading apt's lists takes somebody else some seconds.
const LISTS_LOCKED_MAX: Duration = Duration::from_secs(300);

/// Installs the Debian packages of the programs that are not there: pairs of program (or a file's path) and package.
pub fn need_programs(programs: &[(&str, &'static str)]) {
    let missing =
        || programs.iter().filter(|(program, _)| !is_installed(program)).map(|(_, package)| *package).collect();
    need_packages(missing);
}

/// Installs the Debian packages that `missing` says; it is asked again when another test has installed some meanwhile.
pub fn need_packages(missing: impl Fn() -> Vec<&'static str>) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = lock(&ONE_AT_A_TIME);
    let packages = missing();
    if packages.is_empty() {
        return;
    }
    let list = packages.join(" ");
    let is_root = nix::unistd::geteuid().is_root();
    assert!(is_root, "this test needs programs that are not here; run: apt-get install {list}");
    println!("installing what this test needs: {list}");
    for arguments in [vec!["update"], [vec!["install", "-y", "--no-install-recommends"], packages].concat()] {
        let mut command = Command::new("apt-get");
        command.args(["-qq", "-o", "DPkg::Lock::Timeout=300"]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        let told = until(LISTS_LOCKED_MAX, || {
            let output = command.output().expect("these tests run on a Debian system");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            // For this lock apt does not wait: a server of another test reads the archive's lists anew.
            let is_locked = said.contains("/var/lib/apt/lists/lock");
            Some(if output.status.success() { Ok(()) } else { Err(said) }).filter(|_| !is_locked)
        });
        let told = told.unwrap_or_else(|| Err("somebody reads its lists all the time".to_owned()));
        told.unwrap_or_else(|said| panic!("apt-get could not install {list}: {said}"));
    }
}

/// Runs `wharf virtual install`, once.
pub fn need_virtual_machines(wharf: &str) {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut is_done = lock(&DONE);
    if !*is_done {
        let output = Command::new(wharf).args(["virtual", "install"]).env("WHARF_CACHE", cache_folder()).output();
        let output = output.expect("the binary was built");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "the tests with QEMU need what `wharf virtual install` installs: {said}");
        *is_done = true;
    }
}

/// What is unpacked of a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// Its own.
    Own,
    /// Those of all that it depends on, too.
    WithDependencies,
}

/// The folder with the programs of a virtual environment that has these packages of PyPI, such as `pyserial==3.5`: made once. An
/// environment is one set of packages; tests that need the same set share it.
pub fn python(packages: &[&str]) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = lock(&ONE_AT_A_TIME);
    let name: String = packages.join("+").chars().map(|it| if it.is_alphanumeric() { it } else { '-' }).collect();
    let folder = cache_folder().join("python").join(name);
    let is_whole = folder.join("whole");
    if !is_whole.exists() {
        let has_venv = || Command::new("python3").args(["-c", "import ensurepip, venv"]).output();
        let is_there = || has_venv().is_ok_and(|output| output.status.success());
        need_packages(|| if is_there() { vec![] } else { vec!["python3", "python3-venv"] });
        println!("installing what this test needs: {}", packages.join(" "));
        // What an earlier run could not finish is of no use.
        let _ = std::fs::remove_dir_all(&folder);
        must(Command::new("python3").args(["-m", "venv"]).arg(&folder));
        let pip = folder.join("bin/pip");
        must(Command::new(pip).args(["install", "--quiet", "--disable-pip-version-check"]).args(packages));
        std::fs::write(is_whole, "").expect("the cache is the user's own");
    }
    folder.join("bin")
}

/// The folder with the programs of a package of npm, such as `gitlab-ci-local@4.61.1`: installed once. Debian's npm brings some hundreds of
/// packages of Debian along where there is none.
pub fn npm(package: &str) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = lock(&ONE_AT_A_TIME);
    let name: String = package.chars().map(|it| if it.is_alphanumeric() { it } else { '-' }).collect();
    let folder = cache_folder().join("npm").join(name);
    let is_whole = folder.join("whole");
    if !is_whole.exists() {
        need_programs(&[("node", "nodejs"), ("npm", "npm")]);
        println!("installing what this test needs: {package}");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("the cache is the user's own");
        let words = ["install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"];
        must(Command::new("npm").args(words).arg(&folder).arg(package));
        std::fs::write(is_whole, "").expect("the cache is the user's own");
    }
    folder.join("node_modules/.bin")
}

fn must(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The files of a Debian package of any architecture, downloaded once and not installed: what is for another machine to run.
pub fn unpacked(architecture: &str, package: &str, files: Files) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = lock(&ONE_AT_A_TIME);
    let home = cache_folder().join("unpacked").join(architecture);
    let folder = home.join(package);
    if folder.is_dir() {
        return folder;
    }
    println!("downloading what this test needs: {package} for {architecture}");
    std::fs::create_dir_all(&home).expect("the cache is the user's own");
    let work = tempfile::Builder::new().prefix(".unpacking-").tempdir_in(&home).expect("the folder is the user's own");
    // Lists and state of its own: the system's dpkg need not know of the architecture, and does not hear of the packages.
    let script = "set -e; cd \"$1\"; mkdir -p tree state/lists/partial cache/archives/partial
options=\"-qq -y -o APT::Architecture=$2 -o APT::Architectures=$2 -o Dir::State=$1/state -o Dir::Cache=$1/cache
-o Dir::State::status=/dev/null -o APT::Sandbox::User=root -o Acquire::Retries=3\"
apt-get $options update
case $4 in
Own) (cd cache/archives && apt-get $options download \"$3\") ;;
*) apt-get $options install --download-only --no-install-recommends \"$3\" ;;
esac
for archive in cache/archives/*.deb; do dpkg-deb -x \"$archive\" tree; done";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(work.path()).args([architecture, package, &format!("{files:?}")]);
    let output = command.output().expect("these tests run on a Debian system");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "apt-get could not download {package} for {architecture}: {said}");
    // Somebody else may have been faster: theirs is as good.
    let moved = std::fs::rename(work.path().join("tree"), &folder);
    assert!(folder.is_dir(), "cannot move {package} into the cache: {moved:?}");
    folder
}

/// Where the user's `wharf` keeps its downloads: another XDG_RUNTIME_DIR must not move it.
pub fn cache_folder() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let home = || variable("HOME").unwrap_or_else(|| "/root".into()).join(".cache");
    variable("WHARF_CACHE").unwrap_or_else(|| variable("XDG_CACHE_HOME").unwrap_or_else(home).join("wharf"))
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
