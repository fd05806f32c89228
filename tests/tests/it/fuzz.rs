//! Each fuzz target (tests/fuzz) for some hundred or thousand inputs: always the same, so that a failure is nobody's bad luck.
//!
//! A failing run names its target, its number and its bytes; put those into the target's corpus with the reason, beside the fix.

use std::panic::{AssertUnwindSafe, catch_unwind};

use fuzz::mutation::input;
use fuzz::{TARGETS, Target};

fn run(name: &str) {
    let target = Target::named(name).unwrap();
    let seeds = (target.seeds)();
    assert!(!seeds.is_empty());
    for number in 0..target.runs.max(seeds.len() as u32) {
        let bytes = input(&seeds, number);
        if catch_unwind(AssertUnwindSafe(|| (target.run)(&bytes))).is_err() {
            let hexadecimal: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            panic!("{name}: input {number} broke a promise (above); its bytes: {hexadecimal}");
        }
    }
}

#[test]
fn archives_are_refused_or_packed_so_that_they_can_be_packed_again() {
    run("archive");
}

#[test]
fn boot_images_are_refused_or_say_where_their_parts_are() {
    run("boot_image");
}

#[test]
fn no_two_machines_are_told_one_address_whatever_is_sent() {
    run("dhcp");
}

#[test]
fn paths_ranges_and_forms_lead_nowhere_but_to_names() {
    run("http");
}

#[test]
fn a_text_is_a_job_or_its_problems_fit_on_a_screen() {
    run("job");
}

#[test]
fn every_nbd_request_is_answered_once_by_its_cookie() {
    run("nbd_export");
}

#[test]
fn nbd_options_are_answered_in_turn_however_the_stream_is_cut() {
    run("nbd_handshake");
}

#[test]
fn patterns_end_and_find_what_is_there() {
    run("pattern");
}

#[test]
fn qcow2_images_are_refused_or_read_the_same_in_parts() {
    run("qcow2");
}

#[test]
fn telnet_s_two_ends_agree_and_a_console_s_bytes_come_out_as_they_went_in() {
    run("telnet");
}

#[test]
fn tftp_datagrams_are_packets_or_sentences() {
    run("tftp_packet");
}

#[test]
fn a_tftp_client_gets_the_file_or_no_file_whatever_it_sends() {
    run("tftp_transfer");
}

#[test]
fn every_target_has_a_test_here() {
    let own = include_str!("fuzz.rs");
    let missing: Vec<_> =
        TARGETS.iter().map(|target| target.name).filter(|name| !own.contains(&format!("run(\"{name}\")"))).collect();
    assert!(missing.is_empty(), "no test runs {missing:?}");
    assert!(TARGETS.is_sorted_by_key(|target| target.name));
}
