//! DUTs of one job tell each other: with busybox's wget and a shell on real systems, over reboots, past the end of a role, and never from job to job.

use serde_json::Value;
use tests::bench::{Bench, Ended};

use crate::farms::{QEMU, WHARF, farm_of, linux_job, virtual_};

/// A role on the machine with `tag`: what its kernel's command line has besides, as YAML, and further keys of the role.
fn role(name: &str, tag: &str, words: &[&str], more: &str) -> String {
    let words: Vec<_> = words.iter().map(|word| word.replace("URL", "{{ job.messages.url }}")).collect();
    format!(
        "  - role: {name}
    tags: ['{tag}']
    deployment:
      start:
        kernel: {{url: '{{{{ images_url }}}}/kernel', cmdline: ['console=ttyS0,115200', quiet, '{}']}}
        initramfs: {{url: '{{{{ images_url }}}}/initramfs'}}
{more}",
        words.join("', '")
    )
}

fn job_of(roles: &[String]) -> String {
    format!(
        "version: 1
target:
{}timeouts: {{overall: {{minutes: 10}}, boot_cycle: {{minutes: 10, retries: 1}}}}
console_patterns:
  session_end: {{regex: 'reboot: Power [Dd]own'}}
  session_reboot: {{regex: 'reboot: Restarting system|reboot: machine restart'}}
  job_success: {{regex: '^wharf: job done\\r?$'}}
",
        roles.concat()
    )
}

/// What the job's log says of its board: `server sent …`, `server came to …`, `server asked …`.
fn notes(ended: &Ended) -> Vec<&str> {
    let texts = ended.of_kind("note").into_iter().filter_map(|note| note["text"].as_str());
    texts.filter(|text| matches!(text.split(' ').nth(1), Some("sent" | "came" | "asked"))).collect()
}

fn is_note(event: &Value, words: &str) -> bool {
    event["event"] == "note" && event["text"].as_str().is_some_and(|text| text.contains(words))
}

#[test]
fn a_shell_on_one_machine_reads_what_a_shell_on_another_has_sent() {
    let bench = virtual_();
    let _places = [QEMU.pass(), QEMU.pass()];
    let script = |lines: &[&str]| {
        let lines = lines.join("\n              ");
        format!(
            "        storage:
          http:
          - path: /run.sh
            data: |
              messages='{{{{ job.messages.url }}}}'
              {lines}
"
        )
    };
    let server = script(&[
        "wget -q -O - --post-data='motd=two++words%0A100%25&port=80' $messages/send/ready &&",
        "wget -q -O - $messages/sync/done",
    ]);
    let client = script(&[
        "wget -q -O - $messages/wait/ready | while read -r role pair; do",
        r#"  printf '%s says %s <%b>\n' "$role" "${pair%%=*}" "${pair#*=}""#,
        "done",
        "wget -q -O - $messages/sync/done",
    ]);
    let run = "wharf.cmd={{ job.http.url }}/run.sh";
    let ended = bench.run(&job_of(&[
        role("server", "firmware:uefi", &[run], &server),
        role("client", "firmware:uefi-pxe", &[run], &client),
    ]));
    ended.expect("PASS", "test");
    let client = bench.follow(&format!("{}-client", ended.id), "").wait();
    let said = ["server says motd <two  words", "100%>", "server says port <80>", "server\r\n", "client\r\n"];
    client.expect_said(&said).expect_said(&["wharf: command exit 0"]);
    assert_eq!(notes(&ended)[0], "server sent `ready`: motd=two  words\\n100% port=80");
}

#[test]
fn instances_of_a_role_are_waited_for_together() {
    let bench = Bench::start(WHARF, &farm_of(&[("node", ""), ("node", ""), ("head", "")]));
    let count = "    count: 2\n";
    let ended = bench.run(&job_of(&[
        role("node", "node", &["wharf.url=URL/send/up?n=1", "wharf.url=URL/sync/done"], count),
        role("head", "head", &["wharf.url=URL/wait-all/up?role=node", "wharf.url=URL/sync/done"], ""),
    ]));
    ended.expect("PASS", "test");
    let head = bench.follow(&format!("{}-head", ended.id), "").wait();
    // `node-1 n=1` and `node-2 n=1`, each with its newline.
    head.expect_said(&["/wait-all/up?role=node 22 bytes", "/sync/done 19 bytes"]);
    let mut sent: Vec<_> = notes(&ended).into_iter().filter(|note| note.contains(" sent ")).collect();
    sent.sort_unstable();
    assert_eq!(sent, ["node-1 sent `up`: n=1", "node-2 sent `up`: n=1"]);
}

#[test]
fn a_machine_that_reboots_finds_what_was_sent_before() {
    let bench = Bench::start(WHARF, &farm_of(&[("one", ""), ("two", "")]));
    let words = ["wharf.url=URL/sync/start", "wharf.url=URL/send/x?v=1", "wharf.end=reboot"];
    let after = "      continue:
        kernel: {cmdline: ['wharf.url={{ job.messages.url }}/sync/start', 'wharf.url={{ job.messages.url }}/wait/x', \
                 'wharf.url={{ job.messages.url }}/sync/done']}\n";
    let ended = bench.run(&job_of(&[
        role("a", "one", &words, after),
        role("b", "two", &["wharf.url=URL/sync/start", "wharf.url=URL/sync/done"], ""),
    ]));
    ended.expect("PASS", "test");
    let a = bench.follow(&format!("{}-a", ended.id), "").wait();
    // The lines of a sync are `a` and `b`; the message's is `a v=1`.
    a.expect_said(&["/send/x?v=1 0 bytes", "/sync/start 4 bytes", "/wait/x 6 bytes", "/sync/done 4 bytes"]);
}

#[test]
fn jobs_with_the_same_ids_do_not_meet_and_the_end_of_a_role_ends_the_wait_for_it() {
    let bench = Bench::start(WHARF, &farm_of(&[("one", ""), ("two", ""), ("three", ""), ("four", "")]));
    let mut other = bench.submit(
        &job_of(&[
            role("server", "one", &["wharf.url=URL/send/ready?of=other", "wharf.end=hang"], ""),
            role("client", "two", &["wharf.end=hang"], ""),
        ]),
        "",
    );
    other.wait_for("the other job's message", |event| is_note(event, "server sent `ready`: of=other"));
    let ended = bench.run(&job_of(&[
        role("server", "three", &["wharf.url=URL/send/unrelated"], ""),
        role("client", "four", &["wharf.url=URL/wait/ready"], ""),
    ]));
    other.cancel();
    other.wait().expect("INCOMPLETE", "cancelled");
    ended.expect("FAIL", "test").expect_summary("client: ");
    let client = bench.follow(&format!("{}-client", ended.id), "").wait();
    client.expect_said(&["/_/messages/wait/ready: 409 Conflict\r\n", "wharf: job failed"]);
    let sentence = "client asked wait/ready: all other roles have ended, and none has sent `ready`";
    assert_eq!(notes(&ended), ["server sent `unrelated`", sentence]);
}

#[test]
fn a_job_with_one_machine_has_no_board() {
    let bench = Bench::start(WHARF, &farm_of(&[("one", "")]));
    let words = "wharf.url={{ job.http.url }}/_/messages/send/x";
    let ended = bench.run(&linux_job("one", words, "overall: {minutes: 2}", ""));
    ended.expect("FAIL", "test").expect_said(&["/_/messages/send/x: 404 Not Found\r\n"]);
}
