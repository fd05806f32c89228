//! Boot images that the farm gives to loaders: over TCP to a loader of our own, because USB does not go into a process. That loader is held
//! to AOSP's `fastboot` program, and the images to AOSP's `mkbootimg`.
//!
//! | loader | ends with |
//! |---|---|
//! | takes its image | the job's own verdict |
//! | is another machine's, refuses, babbles, talks for ever, hangs up, never comes | cause `dut`, and what it said; a boot more where `firmware_boot` may be retried |
//! | stops in the middle | cause `dut` by the job's timeout, or a cancel at once |

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tests::bench::{Bench, Ended, Shared, Surroundings, need_programs};
use tests::lab::Lab;

use crate::boots::serve_file;
use crate::farms::{WHARF, linux_job};

const TWO_MINUTES: &str = "overall: {minutes: 2}";

static LOADERS: Shared = Shared::new();

/// Machines with a fastboot loader each: a tag, what is added to their `boot`, and their faults.
fn loaders() -> Arc<Bench> {
    let duts = [
        ("good", "variables: {product: 'other|simulated', serialno: '525400810001'}", ""),
        ("another", "variables: {serialno: '0123456789'}", ""),
        ("babbles", "", "{what: loader-babbles}"),
        ("chatters", "", "{what: loader-chatters}"),
        ("hangs-up", "", "{what: loader-hangs-up, boot: 1}"),
        ("stalls", "", "{what: loader-stalls}"),
        ("stalls-too", "", "{what: loader-stalls}"),
        ("absent", "", "{what: no-dhcp}"),
    ];
    let mut farm = "name: loaders\nnetwork: {private: {address: 10.81.0.1/24}}\nduts:\n".to_owned();
    for (index, (tag, boot, fault)) in (1..).zip(duts) {
        farm.push_str(&format!(
            "  - {{base_name: {tag}, mac: '52:54:00:81:00:{index:02x}', address: 10.81.0.{}, tags: [{tag}], \
             boot: {{method: fastboot, tcp: {{}}, {boot}}}, \
             machine: {{simulated: {{firmware: fastboot, misbehave: [{fault}]}}}}}}\n",
            index + 10
        ));
    }
    LOADERS.running(|| Bench::start(WHARF, &farm))
}

/// A job whose boot image is longer than what loaders with a fault take of one, whatever kernel there is on this machine.
fn large_job(tag: &str, timeouts: &str) -> String {
    let dtb = serve_file(vec![b'd'; 3 * 1024 * 1024]);
    linux_job(tag, "x=1", timeouts, &format!("    dtb: {{url: '{dtb}'}}\n    fastboot: {{header_version: 2}}\n"))
}

/// Runs a job that ends because of its loader, and sees its machine free again.
#[track_caller]
fn ends_by_its_loader(tag: &str, timeouts: &str, summary: &str) -> Ended {
    let bench = loaders();
    let ended = bench.run(&large_job(tag, timeouts));
    ended.expect("INCOMPLETE", "dut").expect_summary(summary);
    let dut = ended.dut().expect("it had a DUT");
    bench.wait_until_free(&dut, Duration::from_secs(10)).unwrap_or_else(|dut| panic!("not free: {dut}\n{ended}"));
    ended
}

#[test]
fn a_loader_is_given_kernel_ram_disk_device_tree_and_command_line_and_boots() {
    let bench = loaders();
    let more = "    dtb: {data: twelve bytes}\n    \
                fastboot: {header_version: 2, base: 0x80000000, pagesize: 4096, board: redfin, os_version: 12.0.0}\n    \
                storage: {http: [{path: /greeting, data: hello}]}\n";
    let words = "console=ttyS0,115200 wharf.url={{ job.http.url }}/greeting";
    let ended = bench.run(&linux_job("good", words, TWO_MINUTES, more));
    ended.expect("PASS", "test");
    ended.expect_said(&[
        "fastboot: version 2, kernel ",
        ", device tree 12 bytes\r\n",
        "Kernel command line: console=ttyS0,115200 wharf.url=http://10.81.0.1/greeting\r\n",
        "wharf: fetched http://10.81.0.1/greeting 5 bytes\r\n",
    ]);
    let accesses: Vec<_> = ended.of_kind("access").into_iter().map(|event| event["access"].clone()).collect();
    let image = accesses.iter().find(|access| access["protocol"] == "fastboot").expect("the image was given");
    assert_eq!((&image["name"], &image["end"]), (&"/_/job/boot.img".into(), &"complete".into()));
    let bytes = image["bytes"].as_u64().expect("a number");
    assert_eq!(bytes % 4096, 0, "whole pages: {bytes}");
    ended.expect_said(&[&format!("fastboot: {bytes} bytes, sha256 ")]);
    let evidence = ended.evidence.join("\n");
    for expected in [
        "boot 1: the fastboot loader at 10.81.0.11:5554 was there after ".to_owned(),
        format!("boot 1: the fastboot loader at 10.81.0.11:5554 took {bytes} bytes in "),
    ] {
        assert!(evidence.contains(&expected), "{expected}: {ended}");
    }
    assert!(!evidence.contains("never read"), "{ended}");
}

#[test]
fn a_loader_of_another_machine_gets_nothing() {
    let ended = ends_by_its_loader(
        "another",
        TWO_MINUTES,
        "its variable `serialno` is `525400810002`, and the farm file wants `0123456789`",
    );
    assert!(!ended.evidence.join("\n").contains("boot.img"), "no byte of the image was opened: {ended}");
}

#[test]
fn a_loader_that_refuses_its_image_is_quoted() {
    let bench = loaders();
    let more = "    fastboot: {boot_image: {data: no boot image at all}}\n";
    let ended = bench.run(&linux_job("good", "x=1", TWO_MINUTES, more));
    ended.expect("INCOMPLETE", "dut").expect_summary("it refused `boot`: bad boot image magic");
}

#[test]
fn a_loader_that_babbles_or_talks_for_ever_is_left() {
    let babble = "it answered `download:00eae000` with `what was the question`, which is no answer of fastboot's";
    let (start, end) = babble.split_at("it answered `download:".len());
    let ended = ends_by_its_loader("babbles", TWO_MINUTES, start);
    assert!(ended.summary.ends_with(&end["00eae000".len()..]), "{ended}");
    ends_by_its_loader("chatters", TWO_MINUTES, "it said 200 lines and never answered `boot`");
}

#[test]
fn a_loader_that_hangs_up_costs_a_boot_where_one_more_is_allowed() {
    let timeouts = "overall: {minutes: 2}, firmware_boot: {minutes: 1, retries: 1}";
    let ended = loaders().run(&large_job("hangs-up", timeouts));
    ended.expect("PASS", "test");
    ended.expect_in_order(&["bytes of the boot image", "boot 2: the outlet is on", "job_success"]);
    ends_by_its_loader("hangs-up", TWO_MINUTES, "bytes of the boot image");
}

#[test]
fn a_loader_that_stops_in_the_middle_ends_by_the_job_s_timeout_or_by_a_cancel() {
    ends_by_its_loader(
        "stalls",
        "overall: {minutes: 2}, boot_progress: {seconds: 2}",
        "timeouts.boot_progress of 2 s expired; fetched last: fastboot /_/job/boot.img, not to its end; \
         never fetched whole: boot.img; its loader has not booted the image that it was being given",
    );
    let bench = loaders();
    let mut job = bench.submit(&large_job("stalls-too", TWO_MINUTES), "");
    job.wait_for_kind("firmware_booted");
    job.cancel();
    let ended = job.wait();
    ended.expect("INCOMPLETE", "cancelled");
    let dut = ended.dut().expect("it had a DUT");
    bench.wait_until_free(&dut, Duration::from_secs(10)).expect("free and off");
}

#[test]
fn a_loader_that_never_comes_is_the_dut_s_fault() {
    let summary = "timeouts.firmware_boot of 2 s expired; the fastboot loader at 10.81.0.18:5554 did not show up";
    ends_by_its_loader("absent", "overall: {minutes: 2}, firmware_boot: {seconds: 2}", summary);
}

/// An image made by AOSP's tool; its kernel is nothing that runs.
fn image_of_aosp(folder: &tempfile::TempDir) -> String {
    need_programs(&[("mkbootimg", "mkbootimg"), ("fastboot", "fastboot")]);
    let [kernel, image] = ["kernel", "boot.img"].map(|name| folder.path().join(name).display().to_string());
    std::fs::write(&kernel, "k".repeat(200_000)).expect("the folder is ours");
    let output = Command::new("mkbootimg")
        .args(["--kernel", &kernel, "--cmdline", "by.aosp=1", "--header_version", "1", "-o", &image])
        .output()
        .expect("it was installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    image
}

#[test]
fn an_image_that_aosp_s_tool_made_is_given_as_it_is() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let image = image_of_aosp(&folder);
    let bench = loaders();
    let job = linux_job("good", "not.this=1", TWO_MINUTES, "    fastboot: {boot_image: {attached: boot.img}}\n");
    let path = folder.path().join("job.yml");
    std::fs::write(&path, job).expect("the folder is ours");
    let attached = format!("boot.img:{image}");
    let mut command = Command::new(WHARF);
    command.args(["--server", &bench.url(), "run", "-f", &attached]).arg(path);
    let output = command.output().expect("the binary was built");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("Kernel command line: by.aosp=1"), "{said}");
}

/// Our host's side is tried against our own loader; so that one is tried with the host's side that everybody has.
#[test]
fn aosp_s_own_program_finds_and_boots_our_loader() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let image = image_of_aosp(&folder);
    let lab = Arc::new(Lab::new().expect("root may make a network namespace"));
    let farm = "name: here\nnetwork: {loopback: {}}\nduts:\n  \
                - {base_name: loader, mac: '52:54:00:81:01:01', address: 127.81.0.11, tags: [loader], \
                machine: {simulated: {firmware: fastboot}}}\n";
    let surroundings = Surroundings { lab: Some(Arc::clone(&lab)), ..Surroundings::default() };
    let bench = Bench::start_with(WHARF, farm, surroundings);
    let job = "version: 1\ntarget: {tags: [loader]}\ntimeouts: {overall: {minutes: 2}}\nconsole_patterns:\n  \
               session_end: {regex: 'reboot: Power [Dd]own'}\n  job_success: {regex: 'line: by.aosp=1'}\n\
               deployment: {start: {}}\n";
    let mut running = bench.submit(job, "");
    running.wait_for_console("waits at 127.81.0.11:5554");
    let fastboot = |words: &[&str]| {
        let mut command = lab.command("fastboot").expect("the namespace is open");
        let output = command.args(["-s", "tcp:127.81.0.11"]).args(words).output().expect("it was installed");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "fastboot {words:?}: {said}");
        said
    };
    let told = fastboot(&["getvar", "all"]);
    assert!(told.contains("serialno:525400810101") && told.contains("product:simulated"), "{told}");
    fastboot(&["boot", &image]);
    running.wait().expect("PASS", "test");
}
