//! `wharf demo`: one command from nothing to a verdict, and its exit status is the verdict's.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::bench::{need_virtual_machines, until};
use tests::workspace::root;

use crate::farms::{QEMU, WHARF};

const FAILS: &str = "
version: 1
target: {tags: []}
timeouts: {overall: {minutes: 3}}
console_patterns:
  session_end: {regex: '(reboot: Power Down|TINY: power off)'}
  job_success: {regex: 'this is never said'}
deployment:
  start:
    kernel: {url: '{{ images_url }}/tiny', cmdline: [print=test_failed]}
";

/// The user without rights, on every Linux.
const NOBODY: u32 = 65534;

fn demo(arguments: &[&str]) -> Output {
    Command::new(WHARF).arg("demo").args(arguments).current_dir(root()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn job_file(folder: &tempfile::TempDir) -> String {
    let path = folder.path().join("fails.yml");
    std::fs::write(&path, FAILS).unwrap();
    path.display().to_string()
}

#[test]
fn the_demo_boots_a_simulated_machine_and_ends_with_status_0() {
    let output = demo(&["--dut", "simulated"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let console = text(&output.stdout);
    assert!(console.contains("wharf: init started\r\n"), "{console}");
    assert!(console.contains("wharf: job done\r\n"), "{console}");
    let told = text(&output.stderr);
    assert!(told.contains("HTTP /_/boot/boot.ipxe: "), "the evidence names the boot script: {told}");
    assert!(told.contains("TFTP /hello/config.txt: 15 bytes, complete"), "{told}");
    assert!(told.contains("PASS"), "{told}");
}

#[test]
fn the_simulated_demo_needs_no_root() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("own");
    std::fs::create_dir(&own).unwrap();
    // The target folder may be closed to others.
    let program = folder.path().join("wharf");
    // By a program: a child that another test starts meanwhile would have a file that is written here open, and nobody could run it then.
    assert!(Command::new("cp").arg(WHARF).arg(&program).status().unwrap().success());
    let mut command = Command::new(&program);
    command.args(["demo", "--dut", "simulated"]).current_dir(&own).env_remove("XDG_RUNTIME_DIR");
    for variable in ["HOME", "TMPDIR", "WHARF_CACHE"] {
        command.env(variable, &own);
    }
    if nix::unistd::geteuid().is_root() {
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text(&output.stdout).contains("wharf: job done\r\n"), "{output:?}");
}

#[test]
fn a_job_that_fails_ends_the_simulated_demo_with_status_3() {
    let folder = tempfile::tempdir().unwrap();
    let output = demo(&["--dut", "simulated", "--job", &job_file(&folder)]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(text(&output.stderr).contains("FAIL"), "{output:?}");
}

#[test]
fn the_demo_boots_linux_in_qemu_and_ends_with_status_0() {
    need_virtual_machines(WHARF);
    let _place = QEMU.pass();
    let output = demo(&[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let console = text(&output.stdout);
    assert!(console.contains("iPXE"), "the firmware speaks on the console too: {console}");
    assert!(console.contains("hello from a job on virtual-bios-1"), "{console}");
    assert!(console.contains("wharf: command exit 0"), "{console}");
    assert!(text(&output.stderr).contains("PASS"), "{output:?}");
}

#[test]
fn a_job_that_fails_ends_the_demo_in_qemu_with_status_3() {
    need_virtual_machines(WHARF);
    let folder = tempfile::tempdir().unwrap();
    let _place = QEMU.pass();
    let output = demo(&["--job", &job_file(&folder)]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(text(&output.stdout).contains("test failed\r\n"), "{output:?}");
}

#[test]
fn ctrl_c_ends_the_demo_with_the_verdict_of_a_cancelled_job_and_leaves_no_folder() {
    let folders = tempfile::tempdir().unwrap();
    let hangs = folders.path().join("hangs.yml");
    std::fs::write(&hangs, FAILS.replace("print=test_failed", "wharf.end=hang")).unwrap();
    let (run, temporary) = (folders.path().join("run"), folders.path().join("tmp"));
    for folder in [&run, &temporary] {
        std::fs::create_dir(folder).unwrap();
    }
    let mut command = Command::new(WHARF);
    command.args(["demo", "--dut", "simulated", "--job"]).arg(&hangs);
    command.env("XDG_RUNTIME_DIR", &run).env("TMPDIR", &temporary);
    let log = folders.path().join("console");
    command.stdout(std::fs::File::create(&log).unwrap()).stderr(std::process::Stdio::null());
    let mut demo = command.spawn().unwrap();
    let said = || std::fs::read_to_string(&log).is_ok_and(|said| said.contains("wharf: job done"));
    until(Duration::from_secs(30), || said().then_some(())).expect("the job gets to where it hangs");
    kill(Pid::from_raw(demo.id().cast_signed()), Signal::SIGINT).unwrap();
    let status = until(Duration::from_secs(10), || demo.try_wait().unwrap()).expect("it ends within 10 s");
    assert_eq!(status.code(), Some(4), "INCOMPLETE");
    for folder in [&run, &temporary] {
        let left: Vec<_> = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).collect();
        assert_eq!(left, Vec::<std::path::PathBuf>::new());
    }
}
