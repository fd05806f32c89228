//! Real boots: QEMU machines that know nothing of us, through their firmware, DHCP, TFTP and HTTP to a verdict.
//!
//! Most of them boot `fixtures/virtual-dut/tiny.elf`, which obeys its command line and needs three seconds; UEFI machines boot Linux.

use std::time::Duration;

use serde_json::Value;

use crate::farms::{HELLO, QEMU, virtual_};

/// A job for a BIOS machine: the words that tiny.elf obeys, timeouts, further patterns, and further YAML under `deployment`.
fn tiny(words: &str, timeouts: &str, patterns: &str, more: &str) -> String {
    format!(
        "version: 1
target: {{tags: ['firmware:bios']}}
timeouts: {{overall: {{minutes: 4}}{timeouts}}}
console_patterns:
  session_end: {{regex: '^TINY: power off\\r$'}}
  job_success: {{regex: '^good\\r$'}}
{patterns}
deployment:
  start:
    kernel: {{url: '{{{{ images_url }}}}/tiny', cmdline: [{words}]}}
{more}"
    )
}

#[test]
fn a_bios_machine_boots_by_the_ipxe_of_its_network_card() {
    let bench = virtual_();
    let _place = QEMU.pass();
    let ended = bench.run(&tiny("one, print=good", "", "", ""));
    ended.expect("PASS", "test").expect_summary("job_success and session_end matched");
    ended.expect_in_order(&[
        "boot 1: the outlet is on, and reads back so",
        "boot 1: first DHCP request after ",
        "HTTP /_/boot/boot.ipxe: ",
        "HTTP /_/job/kernel: 960 bytes, complete",
        "boot 1: job_success matched `good`",
        "boot 1: session_end matched `TINY: power off`",
    ]);
    ended.expect_said(&["iPXE", "TINY: cmdline=", "one print=good\r\n", "good\r\n", "TINY: power off\r\n"]);
    let kinds: Vec<_> = ended.events.iter().filter_map(|event| event["event"].as_str()).collect();
    let place =
        |kind: &str| kinds.iter().position(|seen| *seen == kind).unwrap_or_else(|| panic!("no {kind}: {kinds:?}"));
    let order =
        ["leased", "setup_started", "setup_complete", "power_cycling", "powered_on", "console", "firmware_booted"];
    assert!(order.windows(2).all(|pair| place(pair[0]) < place(pair[1])), "{kinds:?}");
    assert_eq!(kinds[kinds.len() - 3..], ["teardown_started", "teardown_complete", "ended"]);
}

#[test]
fn a_uefi_machine_boots_linux_by_the_ipxe_of_its_network_card() {
    let bench = virtual_();
    let _place = QEMU.pass();
    let ended = bench.submit(HELLO, "?dut=virtual-uefi-1").wait();
    ended.expect("PASS", "test").expect_in_order(&[
        "first DHCP request",
        "HTTP /_/boot/boot.ipxe",
        "HTTP /_/job/kernel",
        "HTTP /_/job/initramfs",
        "HTTP /hello/greeting",
        "HTTP /hello/run.sh",
        "job_success, watchdogs.heartbeat.stop matched `wharf: job done`",
    ]);
    ended.expect_said(&["wharf: network 10.77.0.13/24", "hello from a job on virtual-uefi-1", "wharf: command exit 0"]);
}

#[test]
fn a_uefi_machine_without_ipxe_loads_it_over_our_tftp_and_boots_linux() {
    let bench = virtual_();
    let _place = QEMU.pass();
    let ended = bench.submit(HELLO, "?dut=virtual-uefi-pxe-1").wait();
    let size = std::fs::metadata("/usr/lib/ipxe/snponly.efi").unwrap().len();
    let chainload = format!("TFTP /snponly.efi: {size} bytes, complete");
    ended.expect("PASS", "test").expect_in_order(&[
        &chainload,
        "HTTP /_/boot/boot.ipxe",
        "HTTP /_/job/kernel",
        "HTTP /_/job/initramfs",
        "TFTP /hello/config.txt: 15 bytes, complete",
        "job_success, watchdogs.heartbeat.stop matched `wharf: job done`",
    ]);
    let probes = ended.evidence.iter().filter(|entry| entry.starts_with("TFTP /snponly.efi")).count();
    assert_eq!(probes, 1, "asking for the size is not an access\n{ended}");
}

#[test]
fn a_machine_that_reboots_goes_on_with_continue() {
    let bench = virtual_();
    let _place = QEMU.pass();
    let ended = bench.run(&tiny(
        "print=first, end=reset",
        ", boot_cycle: {minutes: 2, retries: 1}",
        "  session_reboot: {regex: '^TINY: reset'}",
        "  continue:\n    kernel: {cmdline: [second, print=good]}\n",
    ));
    ended.expect("PASS", "test").expect_in_order(&[
        "boot 1: session_reboot matched `TINY: reset`",
        "boot 2: the outlet is on, and reads back so",
        "HTTP /_/job/kernel",
        "boot 2: job_success matched `good`",
    ]);
    ended.expect_said(&["print=first end=reset\r\n", "first\r\n", "TINY: reset", "second print=good\r\n", "good\r\n"]);
    assert!(!ended.console.contains("first print=good"), "continue's words replace start's\n{ended}");
}

#[test]
fn a_machine_that_reboots_more_often_than_allowed_ends_the_job() {
    let bench = virtual_();
    let _place = QEMU.pass();
    let patterns = "  session_reboot: {regex: '^TINY: reset'}";
    let ended = bench.run(&tiny("end=reset", "", patterns, ""));
    ended.expect("INCOMPLETE", "test").expect_summary("timeouts.boot_cycle.retries allows 0 reboots");
}

#[test]
fn a_machine_that_hangs_is_ended_by_its_watchdog() {
    let bench = virtual_();
    let _place = QEMU.pass();
    let patterns = "  watchdogs: {dog: {start: {regex: '^armed'}, reset: {regex: 'beat'}, stop: {regex: 'never'}}}";
    let ended = bench.run(&tiny("print=armed, end=hang", ", watchdogs: {dog: {seconds: 2}}", patterns, ""));
    ended.expect("INCOMPLETE", "timeout").expect_summary("timeouts.watchdogs.dog of 2 s expired");
    ended.expect_in_order(&["watchdogs.dog.start matched `armed`", "timeouts.watchdogs.dog of 2 s expired"]);
}

#[test]
fn a_machine_that_hangs_once_is_power_cycled_by_its_watchdog_and_passes() {
    let bench = virtual_();
    let _place = QEMU.pass();
    let ended = bench.run(&tiny(
        "print=armed, end=hang",
        ", watchdogs: {dog: {seconds: 2, retries: 1}}",
        "  watchdogs: {dog: {start: {regex: '^armed'}, reset: {regex: 'beat'}, stop: {regex: 'never'}}}",
        "  continue:\n    kernel: {cmdline: [print=good]}\n",
    ));
    ended.expect("PASS", "test").expect_in_order(&["watchdogs.dog", "boot 2: the outlet is on", "boot 2: session_end"]);
    let hit = ended.of_kind("timeout_hit")[0];
    assert_eq!((&hit["name"], &hit["is_retrying"]), (&Value::from("watchdogs.dog"), &Value::from(true)), "{hit}");
}

#[test]
fn a_watchdog_that_is_fed_lets_the_job_run_until_its_overall_timeout() {
    let bench = virtual_();
    let _place = QEMU.pass();
    let patterns = "  watchdogs: {dog: {start: {regex: '^armed'}, reset: {regex: 'beat'}, stop: {regex: 'never'}}}";
    let job = tiny("print=armed, end=beat", ", watchdogs: {dog: {seconds: 6}}", patterns, "");
    let ended = bench.run(&job.replace("overall: {minutes: 4}", "overall: {seconds: 14}"));
    ended.expect("INCOMPLETE", "timeout").expect_summary("timeouts.overall of 14 s expired");
    ended.expect_in_order(&["watchdogs.dog.start", "watchdogs.dog.reset", "watchdogs.dog.reset"]);
}

#[test]
fn a_job_that_is_cancelled_in_mid_boot_frees_its_machine_within_five_seconds() {
    let bench = virtual_();
    let _place = QEMU.pass();
    let mut job = bench.submit(&tiny("end=hang", "", "", ""), "?dut=virtual-bios-2");
    job.wait_for_kind("firmware_booted");
    assert_eq!(bench.dut("virtual-bios-2")["power"], "on");
    job.cancel();
    bench.wait_until_free("virtual-bios-2", Duration::from_secs(5)).expect("free and off");
    job.wait().expect("INCOMPLETE", "cancelled");
}

#[test]
fn a_submitter_that_goes_away_in_mid_boot_frees_its_machine_within_five_seconds() {
    let bench = virtual_();
    let _place = QEMU.pass();
    let job = bench.submit(&tiny("end=hang", "", "", ""), "?dut=virtual-bios-2");
    let mut owner = bench.follow(&job.id, "?owner=1");
    owner.wait_for_kind("firmware_booted");
    drop(owner);
    bench.wait_until_free("virtual-bios-2", Duration::from_secs(5)).expect("free and off");
    job.wait().expect("INCOMPLETE", "submitter");
}

#[test]
fn what_is_typed_reaches_the_machine_and_its_answer_comes_back() {
    let bench = virtual_();
    let _place = QEMU.pass();
    let mut job = bench.submit(&tiny("print=good, hold", "", "", ""), "");
    job.wait_for_console("TINY: ready");
    job.type_line("ahoy");
    job.wait_for_console("TINY: got ahoy");
    job.type_line("off");
    job.wait().expect("PASS", "test").expect_said(&["TINY: got ahoy\r\n", "TINY: got off\r\n", "TINY: power off\r\n"]);
}
