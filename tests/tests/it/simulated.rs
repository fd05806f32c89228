//! Jobs on simulated DUTs: every firmware, every fault on request, many jobs at once, and the end of the server itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tests::bench::{Bench, Ended};

use crate::farms::{HELLO, SIMULATED_FARM, WHARF, farm_of, linux_job, simulated};

/// That `hello.yml` passed, and read all that it should have.
fn expect_hello(ended: &Ended) {
    ended.expect("PASS", "test").expect_in_order(HELLO_EVIDENCE);
}

/// `hello.yml` for one DUT.
fn hello_on(bench: &Bench, dut: &str) -> Ended {
    bench.submit(HELLO, &format!("?dut={dut}")).wait()
}

/// What every boot of `hello.yml` shows, whatever the firmware.
const HELLO_EVIDENCE: &[&str] = &[
    "boot 1: the outlet is on, and reads back so",
    "HTTP /_/boot/boot.ipxe",
    "HTTP /_/job/kernel",
    "HTTP /_/job/initramfs",
    "watchdogs.heartbeat.start matched `wharf: init started`",
    "HTTP /hello/greeting",
    "HTTP /hello/run.sh",
    "TFTP /hello/config.txt: 15 bytes, complete",
    "job_success, watchdogs.heartbeat.stop matched `wharf: job done`",
    "session_end matched",
];

#[test]
fn hello_passes_on_a_network_card_with_ipxe() {
    let bench = simulated();
    let ended = hello_on(&bench, "simulated-sim-1");
    expect_hello(&ended);
    ended.expect_said(&["wharf: init started\r\n", "wharf: network 10.78.0.11/24\r\n", "wharf: job done\r\n"]);
    assert_eq!(ended.of_kind("timeout_hit"), Vec::<&Value>::new());
}

#[test]
fn hello_passes_on_a_plain_bios_card_that_loads_ipxe_over_tftp() {
    let ended = hello_on(&simulated(), "simulated-sim-3");
    expect_hello(&ended);
    ended.expect_in_order(&["TFTP /undionly.kpxe"]);
}

#[test]
fn hello_passes_on_plain_uefi_that_asks_for_the_size_first() {
    let ended = hello_on(&simulated(), "simulated-sim-4");
    expect_hello(&ended);
    ended.expect_in_order(&["TFTP /snponly.efi"]);
}

#[test]
fn eight_jobs_at_once_on_four_machines_queue_and_all_pass() {
    let bench = Bench::start(WHARF, SIMULATED_FARM);
    // So that none of them is over before the last one is handed in, somebody has the machines until then.
    let leases: Vec<_> = (1..=4).map(|number| tests::rack::take(&bench, &format!("simulated-sim-{number}"))).collect();
    let mut jobs: Vec<_> = (0..8).map(|_| bench.submit(HELLO, "")).collect();
    for (place, job) in (1..).zip(&mut jobs) {
        let queued = job.wait_for_kind("queued");
        let reasons = queued["reasons"].as_array().map(Vec::len);
        assert_eq!((&queued["place"], reasons), (&Value::from(place), Some(4)), "a reason for each DUT: {queued}");
    }
    for lease in leases {
        assert_eq!(bench.ask("DELETE", &format!("/api/v1/leases/{lease}"), "", b"").status, 200);
    }
    let ended: Vec<_> = jobs.into_iter().map(|job| job.wait()).collect();
    for job in &ended {
        job.expect("PASS", "test");
    }
    let machines: std::collections::BTreeSet<_> = ended.iter().filter_map(Ended::dut).collect();
    assert_eq!(machines.len(), 4, "all DUTs were used: {machines:?}");
}

#[test]
fn two_jobs_that_publish_the_same_paths_at_once_each_get_their_own() {
    let bench = simulated();
    let job = |text: &str| {
        let words = "wharf.url={{ job.http.url }}/same wharf.tftp={{ job.tftp.url }}/same wharf.beats=1";
        let storage = format!(
            "    storage:\n      http: [{{path: /same, data: '{text}'}}]\n      tftp: [{{path: /same, data: '{text}'}}]\n"
        );
        linux_job("simulated", words, "overall: {minutes: 2}", &storage)
    };
    let (short, long) = ("ab", "abcdefghij");
    let jobs: Vec<_> =
        [short, long, short, long].iter().map(|text| (text.len(), bench.submit(&job(text), ""))).collect();
    for (length, job) in jobs {
        let ended = job.wait();
        ended.expect("PASS", "test");
        for protocol in ["http", "tftp"] {
            let line = format!("wharf: fetched {protocol}://10.78.0.1");
            let fetched = ended.console.lines().find(|said| said.starts_with(&line));
            assert!(fetched.is_some_and(|said| said.ends_with(&format!("/same {length} bytes"))), "{ended}");
        }
    }
}

#[test]
fn a_cancelled_job_frees_its_machine_within_five_seconds() {
    let bench = Bench::start(WHARF, SIMULATED_FARM);
    let mut job = bench.submit(&linux_job("simulated", "wharf.end=hang", "overall: {minutes: 5}", ""), "");
    job.wait_for_console("wharf: job done");
    let dut = job.wait_for_kind("leased")["dut"].as_str().unwrap().to_owned();
    assert_eq!(bench.dut(&dut)["power"], "on");
    let asked = Instant::now();
    job.cancel();
    bench.wait_until_free(&dut, Duration::from_secs(5)).expect("free and off");
    assert!(asked.elapsed() < Duration::from_secs(5));
    job.wait().expect("INCOMPLETE", "cancelled").expect_summary("cancelled by ");
}

#[test]
fn a_job_that_waits_can_be_cancelled_and_never_held_a_machine() {
    let bench = Bench::start(WHARF, &farm_of(&[("only", "")]));
    let hang = linux_job("only", "wharf.end=hang", "overall: {minutes: 5}", "");
    let mut first = bench.submit(&hang, "");
    first.wait_for_kind("leased");
    let mut second = bench.submit(&hang, "");
    let queued = second.wait_for_kind("queued");
    assert_eq!((&queued["place"], queued["reasons"].as_array().map(Vec::len)), (&Value::from(1), Some(1)));
    second.cancel();
    let ended = second.wait();
    ended.expect("INCOMPLETE", "cancelled").expect_summary("while it waited for a DUT");
    assert_eq!(ended.dut(), None);
    first.cancel();
    first.wait().expect("INCOMPLETE", "cancelled");
}

#[test]
fn where_no_namespace_may_be_made_the_machines_boot_over_the_loopback() {
    let farm = "name: here\nnetwork: {loopback: {}}\nduts:\n  \
                - {mac: '52:54:00:78:00:01', address: 127.78.0.1, tags: ['arch:x86_64'], machine: {simulated: {}}}\n  \
                - {mac: '52:54:00:78:00:02', address: 127.78.0.2, tags: ['arch:x86_64'], machine: {simulated: {}}}\n";
    let bench = Bench::start(WHARF, farm);
    let jobs = [bench.submit(HELLO, ""), bench.submit(HELLO, "")];
    for job in jobs {
        expect_hello(&job.wait());
    }
}

/// Machines with one fault each; a farm of their own, because a name says which.
fn odd_farm() -> Arc<Bench> {
    static ODD: tests::bench::Shared = tests::bench::Shared::new();
    let fault = |what: &str| format!("misbehave: [{{what: {what}}}]");
    let duts = [
        ("silent", fault("fall-silent")),
        ("silent-once", "misbehave: [{what: fall-silent, boot: 1}]".to_owned()),
        ("mute", fault("no-dhcp")),
        ("abort", "firmware: plain-bios, misbehave: [{what: abort-transfer}]".to_owned()),
        ("same-port", fault("same-port")),
        ("same-port-bios", "firmware: plain-bios, misbehave: [{what: same-port}]".to_owned()),
        ("loop", fault("loop")),
        ("no-initramfs", fault("no-initramfs")),
    ];
    let duts: Vec<_> = duts.iter().map(|(name, fields)| (*name, fields.as_str())).collect();
    tests::bench::need_programs(&[("/usr/lib/ipxe/undionly.kpxe", "ipxe")]);
    ODD.running(|| Bench::start(WHARF, &farm_of(&duts)))
}

#[test]
fn a_machine_that_falls_silent_ends_by_console_activity() {
    let job = linux_job("silent", "x=1", "overall: {minutes: 2}, console_activity: {seconds: 2}", "");
    let ended = odd_farm().run(&job);
    ended.expect("INCOMPLETE", "timeout").expect_summary("timeouts.console_activity of 2 s expired");
    ended.expect_in_order(&["HTTP /_/job/kernel", "HTTP /_/job/initramfs"]);
    assert_eq!(ended.of_kind("timeout_hit")[0]["is_retrying"], Value::from(false));
}

#[test]
fn a_machine_that_is_silent_in_its_first_boot_passes_in_its_second() {
    let timeouts = "overall: {minutes: 2}, console_activity: {seconds: 2, retries: 1}";
    let ended = odd_farm().run(&linux_job("silent-once", "x=1", timeouts, ""));
    ended.expect("PASS", "test").expect_in_order(&["boot 1: the outlet", "boot 2: the outlet", "boot 2: session_end"]);
    let hits: Vec<_> = ended.of_kind("timeout_hit").iter().map(|hit| hit["is_retrying"].clone()).collect();
    assert_eq!(hits, [true]);
}

#[test]
fn a_machine_that_never_asks_the_network_is_told_apart() {
    let job = linux_job("mute", "x=1", "overall: {minutes: 2}, boot_cycle: {seconds: 2}", "");
    let ended = odd_farm().run(&job);
    ended.expect("INCOMPLETE", "network").expect_summary("the DUT never asked the network for anything");
    assert_eq!(ended.of_kind("access"), Vec::<&Value>::new());
}

#[test]
fn a_machine_that_aborts_a_transfer_and_starts_over_passes() {
    let ended = odd_farm().run(&linux_job("abort", "x=1", "overall: {minutes: 2}", ""));
    let size = std::fs::metadata("/usr/lib/ipxe/undionly.kpxe").unwrap().len();
    let whole = format!("TFTP /undionly.kpxe: {size} bytes, complete");
    ended.expect("PASS", "test").expect_in_order(&["aborted by the DUT", &whole, "HTTP /_/job/initramfs"]);
}

#[test]
fn a_machine_that_asks_again_from_the_same_port_passes() {
    let words = "wharf.tftp={{ job.tftp.url }}/big";
    let storage = "    storage:\n      tftp: [{path: /big, url: '{{ images_url }}/initramfs'}]\n";
    let bench = odd_farm();
    let ended = bench.run(&linux_job("same-port", words, "overall: {minutes: 2}", storage));
    ended.expect("PASS", "test").expect_in_order(&["TFTP /big", "TFTP /big"]);
    bench.run(&linux_job("same-port-bios", "x=1", "overall: {minutes: 2}", "")).expect("PASS", "test");
}

#[test]
fn a_machine_that_says_the_same_again_and_again_ends_by_the_overall_timeout() {
    let job = linux_job("loop", "x=1", "overall: {seconds: 4}", "").replace("Power [Dd]own", "never");
    let ended = odd_farm().run(&job);
    ended.expect("INCOMPLETE", "timeout").expect_summary("timeouts.overall of 4 s expired");
    assert!(ended.console.matches("wharf: job done").count() > 1, "{ended}");
}

#[test]
fn a_machine_that_never_fetches_its_initramfs_shows_so_in_the_evidence() {
    let job = linux_job("no-initramfs", "x=1", "overall: {minutes: 2}, boot_cycle: {seconds: 3}", "");
    let ended = odd_farm().run(&job);
    ended.expect("INCOMPLETE", "timeout").expect_in_order(&["HTTP /_/job/kernel"]);
    assert!(!ended.evidence.iter().any(|entry| entry.contains("/_/job/initramfs")), "{ended}");
}

#[test]
fn killing_the_server_leaves_no_process_and_no_network_behind() {
    let bench = Bench::start(WHARF, SIMULATED_FARM);
    let mut job = bench.submit(&linux_job("simulated", "wharf.end=hang", "overall: {minutes: 5}", ""), "");
    job.wait_for_console("wharf: job done");
    drop(job);
    bench.kill();
}
