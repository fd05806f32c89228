//! What may be read so often in a boot is read so often, by whatever protocol, and though the server is killed in between.
//!
//! ```text
//!  a network namespace: the server ── bridge ── cable ── another: curl and nbdinfo, at the DUT's address
//!                       └ killed with -9, started again; the machine goes on
//! ```

use std::io::Write;
use std::net::Ipv4Addr;
use std::process::Output;

use tests::bench::{Bench, need_programs};
use tests::lab::Lab;

use crate::farms::WHARF;
use crate::picked_up::{GATEWAY, LINK, PATIENCE, Place};

const DUT: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 11);

/// A place with a machine at its cable.
pub struct Scene {
    pub place: Place,
    pub dut: Lab,
}

impl Scene {
    pub fn new() -> Option<Scene> {
        need_programs(&[("curl", "curl"), ("nbdinfo", "libnbd-bin")]);
        let place = Place::new()?;
        let dut = Lab::new().unwrap();
        place.lab.plug(LINK, &dut, DUT).unwrap();
        Some(Scene { place, dut })
    }

    fn curl(&self, arguments: &[&str]) -> Output {
        let mut command = self.dut.command("curl").unwrap();
        command.args(["--silent", "--show-error", "--max-time", "20"]).args(arguments).output().unwrap()
    }

    /// Status and body of a GET.
    fn http(&self, name: &str, more: &[&str]) -> String {
        let url = format!("http://{GATEWAY}{name}");
        let output = self.curl(&[more, &["--write-out", "%{http_code} ", "--output", "/dev/stderr", &url]].concat());
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    }

    /// What is read, or how curl calls the error: 69 is TFTP's access violation.
    pub fn tftp(&self, name: &str) -> String {
        let output = self.curl(&[&format!("tftp://{GATEWAY}/{name}")]);
        match output.status.code() {
            Some(0) => String::from_utf8_lossy(&output.stdout).into_owned(),
            code => format!("{code:?}"),
        }
    }

    /// Whether the disk can be attached; otherwise what nbdinfo says.
    fn nbd(&self, name: &str) -> Result<(), String> {
        let mut command = self.dut.command("nbdinfo").unwrap();
        let output = command.args(["--size", &format!("nbd://{GATEWAY}/{name}")]).output().unwrap();
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    fn expect_readable(&self) {
        assert_eq!(self.http("/secret", &[]), "200 of HTTP");
        assert_eq!(self.tftp("secret"), "of TFTP");
        assert_eq!(self.nbd("secret"), Ok(()));
        assert_eq!(self.http("/for-a-while", &[]), "200 for a while");
    }

    fn expect_refused(&self) {
        let sentence = "410 already read 1 times in this boot (lifetime.access_count)\n";
        assert_eq!(self.http("/secret", &[]), sentence);
        assert_eq!(self.http("/secret", &["--range", "1-"]), sentence, "a range is no way around it");
        assert_eq!(self.tftp("secret"), "Some(69)");
        let refused = self.nbd("secret").expect_err("it was attached once");
        assert!(refused.contains("server policy prevents"), "{refused}");
    }
}

const JOB: &str = "version: 1
target: {tags: []}
timeouts: {overall: {minutes: 4}, boot_cycle: {minutes: 3, retries: 3}}
console_patterns:
  session_end: {regex: '^the end$'}
  session_reboot: {regex: '^once more$'}
deployment:
  start:
    storage:
      http:
      - {path: /secret, data: of HTTP, lifetime: first_read}
      - {path: /for-a-while, data: for a while, lifetime: {first_read: 1 hour, duration: 2 hours}}
      tftp: [{path: /secret, data: of TFTP, lifetime: {access_count: 1}}]
      nbd: {secret: {size: 1M, lifetime: {access_count: 1}}}
";

fn boots(bench: &Bench, count: u64) {
    bench.follow("1", "").wait_for("the boot", |event| event["event"] == "powered_on" && event["boot"] == count);
}

#[test]
fn a_secret_is_read_once_in_a_boot_by_any_protocol_and_a_server_that_is_killed_gives_no_second_read() {
    let Some(scene) = Scene::new() else { return };
    let bench = scene.place.start();
    bench.submit(JOB, "").wait_for_kind("powered_on");
    let console = scene.place.opened();
    scene.expect_readable();
    scene.expect_refused();
    // It is held until the server is dead, which would open it again, and say so.
    let mut bench = bench.killed_and_started_again(WHARF);
    drop(console);
    let mut console = scene.place.opened();
    bench.follow("1", "").wait_for_kind("console_back");
    scene.expect_refused();
    console.write_all(b"once more\n").unwrap();
    boots(&bench, 2);
    assert_eq!(scene.tftp("secret"), "of TFTP", "a new boot begins anew");
    bench = bench.killed_and_started_again(WHARF);
    drop(console);
    let mut console = scene.place.opened();
    bench.follow("1", "").wait_for("the second gap", {
        let mut gaps = 0;
        move |event| {
            gaps += u64::from(event["event"] == "console_back");
            gaps == 2
        }
    });
    assert_eq!(scene.tftp("secret"), "Some(69)", "what was read in this boot is read");
    assert_eq!(scene.http("/secret", &[]), "200 of HTTP", "what was read in the boot before is not");
    console.write_all(b"the end\n").unwrap();
    let ended = bench.follow("1", "").wait();
    ended.expect("COMPLETE", "test");
    let refused = |protocol: &str| {
        let accesses = ended.of_kind("access").into_iter().map(|event| &event["access"]);
        accesses.filter(|access| access["end"] == "refused" && access["protocol"] == protocol).count()
    };
    assert_eq!((refused("HTTP"), refused("TFTP")), (4, 3), "{ended}");
    assert!(refused("NBD") >= 2, "{ended}");
    bench.wait_until_free("bench-dut-1", PATIENCE).expect("it is free again");
}
