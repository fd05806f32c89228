//! What a job's artifacts are made of, as its DUT sees it: archives packed and taken apart, names with groups, templates in data, a port
//! of its own; and what the log and the verdict say of it.

use serde_json::Value;
use tests::bench::Bench;

use crate::farms::{QEMU, SIMULATED_FARM, WHARF, linux_job, simulated, virtual_};

#[test]
fn a_kernel_finds_the_files_of_an_initial_ram_disk_that_was_packed_for_it() {
    let bench = virtual_();
    let _place = QEMU.pass();
    let job = linux_job(
        "'firmware:uefi'",
        "console=ttyS0,115200 quiet wharf.cmd={{ job.http.url }}/run.sh",
        "overall: {minutes: 10}, boot_cycle: {minutes: 10}",
        r"    storage:
      http:
      - {path: /run.sh, data: 'cat /user/deep/job.env; ls -l /user/tool'}
",
    );
    let with_more = "    initramfs:\n    - {url: '{{ images_url }}/initramfs'}\n    - archive:\n        extension: cpio\n        \
                     compression: gz\n        add:\n        - {path: /user/deep/job.env, artifact: {data: \"ANSWER=42\\n\"}}\n        \
                     - {path: user/tool, mode: 0100755, artifact: {data: '#!/bin/sh'}}\n";
    let job = job.replace("    initramfs: {url: '{{ images_url }}/initramfs'}\n", with_more);
    let ended = bench.run(&job);
    ended.expect("PASS", "test").expect_said(&["ANSWER=42", "-rwxr-xr-x", "wharf: command exit 0"]);
}

#[test]
fn names_with_groups_templates_in_data_and_what_was_never_read() {
    let bench = simulated();
    let words = "console=ttyS0,115200 wharf.url={{ job.http.url }}/mirror/initramfs wharf.url={{ job.http.url }}/told \
                 wharf.url={{ job.http.url }}/picked wharf.url={{ job.http.url }}/asked/for wharf.url=http://{{ job.http.host }}:8088/exposed";
    let storage = r"    storage:
      http:
      - {path: '/mirror/(.*)', url: '{{ images_url }}/\1'}
      - {path: /told, data: '{% raw %}{{ job.deployment }}{% endraw %} of {{ machine_id }}'}
      - path: '/asked/(.*)'
        data: |-
          {% raw %}#!jinja2
          {{ request.groups[1] }} in boot {{ job.boot }}{% endraw %}
      - {path: /unread, data: nobody asks}
      - {path: /exposed, data: at a port of its own, expose: {port: 8088}, lifetime: {access_count: 1}}
      - path: /picked
        archive: {extension: tar, compression: bz2, add: [{path: a/b, artifact: {data: twelve bytes}}]}
        format: [{archive: {match: 'a/.*'}}]
";
    let ended = bench.run(&linux_job("simulated", words, "overall: {minutes: 2}", storage));
    ended.expect("PASS", "test");
    let access = |name: &str| -> Value {
        let accesses = ended.of_kind("access").into_iter().map(|event| event["access"].clone());
        accesses.into_iter().find(|access| access["name"] == name).unwrap_or_default()
    };
    for name in ["/mirror/initramfs", "/told", "/picked", "/exposed"] {
        let access = access(name);
        assert_eq!((&access["end"], &access["protocol"]), (&"complete".into(), &"HTTP".into()), "{name}: {access}");
        assert!(access["seconds"].as_f64().is_some() && access["peer"].as_str().is_some(), "{access}");
    }
    assert_eq!(access("/picked")["bytes"], 12);
    assert_eq!(access("/asked/for")["bytes"], "for in boot 1".len());
    // "start of " and a MAC address.
    assert_eq!(access("/told")["bytes"], 9 + 17);
    assert!(access("/mirror/initramfs")["bytes"].as_u64() > Some(0));
    ended.expect_in_order(&["HTTP /picked: 12 bytes, complete", "published, and never read: HTTP /unread"]);
    let shown = bench.get(&format!("/api/v1/jobs/{}", ended.id)).json();
    let names: Vec<_> = shown["accesses"].as_array().unwrap().iter().map(|access| access["name"].clone()).collect();
    assert!(names.contains(&"/told".into()), "{names:?}");
}

#[test]
fn a_strict_template_that_fails_when_it_is_asked_for_is_an_error_and_a_line_in_the_log() {
    let bench = simulated();
    let storage = r"    storage:
      http:
      - path: '/asked/(.*)'
        data: |-
          {% raw %}#!jinja2
          {{ [] + 1 if request.groups[1] == 'wrong' }}{% endraw %}
";
    let words = "console=ttyS0,115200 wharf.url={{ job.http.url }}/asked/wrong";
    let ended = bench.run(&linux_job("simulated", words, "overall: {minutes: 2}", storage));
    let accesses: Vec<_> = ended.of_kind("access").into_iter().map(|event| &event["access"]).collect();
    let failed = accesses.iter().find(|access| access["name"] == "/asked/wrong").expect("it was asked for");
    assert_eq!((&failed["end"], failed["bytes"].as_u64()), (&"failed".into(), Some(0)), "{failed}");
    let reason = failed["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("`/asked/wrong`") && reason.contains("tried to use + operator"), "{reason}");
}

#[test]
fn an_archive_that_cannot_be_what_the_job_wants_ends_its_setup_with_a_sentence() {
    let bench = Bench::start(WHARF, SIMULATED_FARM);
    let storage = r"    storage:
      http:
      - {path: /dtb, data: no archive, format: {archive: {match: 'board\.dtb'}}}
";
    let ended = bench.run(&linux_job("simulated", "quiet", "overall: {minutes: 2}", storage));
    ended.expect("SETUP_FAIL", "artifact").expect_summary("it is no archive that is read here");
    // The farm itself has not noticed.
    let ended = bench.run(&linux_job("simulated", "quiet", "overall: {minutes: 2}", ""));
    ended.expect("PASS", "test");
}
