//! Real boots: QEMU machines that know nothing of us, through their firmware, DHCP, TFTP and HTTP to a verdict.
//!
//! Most of them boot `fixtures/virtual-dut/tiny.elf`, which obeys its command line and needs three seconds; UEFI machines boot Linux.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tests::bench::{Bench, need_programs, need_virtual_machines, until};

use crate::farms::{HELLO, QEMU, WHARF, linux_job, virtual_};

/// A job for a BIOS machine: the words that tiny.elf obeys, timeouts, further patterns, and further YAML under `deployment`.
pub(crate) fn tiny(words: &str, timeouts: &str, patterns: &str, more: &str) -> String {
    format!(
        "version: 1
target: {{tags: ['firmware:bios']}}
timeouts: {{overall: {{minutes: 10}}{timeouts}}}
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
        "boot 1: job_success matched `good`",
        "boot 1: session_end matched `TINY: power off`",
    ]);
    ended.expect_in_order(&["HTTP /_/boot/boot.ipxe: ", "HTTP /_/job/kernel: 960 bytes, complete"]);
    ended.expect_said(&["iPXE", "TINY: cmdline=", "one print=good\r\n", "good\r\n", "TINY: power off\r\n"]);
    let kinds: Vec<_> = ended.events.iter().filter_map(|event| event["event"].as_str()).collect();
    let place =
        |kind: &str| kinds.iter().position(|seen| *seen == kind).unwrap_or_else(|| panic!("no {kind}: {kinds:?}"));
    let order =
        ["leased", "setup_started", "setup_complete", "power_cycling", "powered_on", "console", "firmware_booted"];
    assert!(order.windows(2).all(|pair| place(pair[0]) < place(pair[1])), "{kinds:?}");
    assert_eq!(kinds[kinds.len() - 3..], ["teardown_started", "teardown_complete", "ended"]);
}

/// A job that boots Linux with these words in its command line, and says what Linux got.
pub(crate) fn linux_job_that_shows(tag: &str, words: &str) -> String {
    let all = in_yaml(&format!("console=ttyS0 quiet panic=-1 wharf.cmd={{{{ job.http.url }}}}/show {words}"));
    let storage = "    storage: {http: {path: /show, data: cat /proc/cmdline}}\n";
    linux_job(tag, all.trim_matches('"'), "overall: {minutes: 10}", storage)
}

#[test]
fn a_uefi_machine_boots_linux_by_the_ipxe_of_its_network_card_with_every_special_character() {
    let bench = virtual_();
    let _place = QEMU.pass();
    // `${x}` is iPXE's to replace; Linux takes 2 kB.
    let words = odd_words().replace("${x} ", "");
    let ended = bench.submit(&linux_job_that_shows("x", &words), "?dut=virtual-uefi-1").wait();
    ended.expect("PASS", "test").expect_in_order(&["first DHCP request", "HTTP /_/boot/boot.ipxe"]);
    ended.expect_in_order(&["HTTP /_/job/kernel", "HTTP /_/job/initramfs", "HTTP /show"]);
    ended.expect_said(&["wharf: network 10.77.0.13/24", &words[..1500], "wharf: command exit 0"]);
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
        ", boot_cycle: {minutes: 10, retries: 1}",
        "  session_reboot: {regex: '^TINY: reset'}",
        "  continue:\n    kernel: {cmdline: [second, print=good]}\n",
    ));
    ended.expect("PASS", "test").expect_in_order(&[
        "boot 1: session_reboot matched `TINY: reset`",
        "boot 2: the outlet is on, and reads back so",
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
fn a_watchdog_that_is_fed_lets_the_job_run_longer_than_its_own_time() {
    let bench = virtual_();
    let _place = QEMU.pass();
    let patterns = "  watchdogs: {dog: {start: {regex: '^armed'}, reset: {regex: 'beat'}, stop: {regex: 'never'}}}";
    let job = tiny("print=armed, end=beat", ", watchdogs: {dog: {seconds: 6}}", patterns, "");
    let running = bench.submit(&job, "");
    // It says one a second, of its own clock.
    let beats = || bench.get(&format!("/api/v1/jobs/{}/log", running.id)).text().matches("TINY: beat").count();
    until(Duration::from_secs(300), || Some(()).filter(|()| beats() >= 9)).expect("it beats on");
    running.cancel();
    let ended = running.wait();
    ended.expect("INCOMPLETE", "cancelled");
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

/// What each boot loader reads in its own way, and more of it than any line of an editor: 4 kB. Linux stops at more than 32 words that it
/// does not know, unless they have a dot: then they are a module's (init/main.c, `unknown_bootoption`).
pub(crate) fn odd_words() -> String {
    let odd = "a;b c&&d e|f run=\"one two\" it's $HOME ${x} #no back\\slash *";
    format!("{odd} {}", (0..400).map(|number| format!("word.{number}=v")).collect::<Vec<_>>().join(" "))
}

/// Text as YAML has it in double quotes.
fn in_yaml(text: &str) -> String {
    serde_json::to_string(text).expect("text is JSON")
}

#[test]
fn ipxe_passes_a_long_command_line_with_every_special_character_on() {
    let bench = virtual_();
    let _place = QEMU.pass();
    // `${x}` is iPXE's to replace, and it hands 512 bytes at most to a multiboot kernel.
    let words = odd_words().replace("${x} ", "");
    let ended = bench.run(&tiny(&format!("print=good, {}", in_yaml(&words)), "", "", ""));
    ended.expect("PASS", "test");
    ended.expect_said(&[&format!(" print=good {}", &words[..400])]);
}

/// A farm with one machine, on a network of its own.
pub(crate) fn farm_with(machine: &str, more: &str) -> Bench {
    need_virtual_machines(WHARF);
    let farm = format!(
        "name: board\nnetwork: {{private: {{address: 10.77.0.1/24}}}}\n{more}duts:\n  - {{id: board, mac: 52:54:00:77:00:05, \
         address: 10.77.0.15, {machine}}}\n"
    );
    Bench::start(WHARF, &farm)
}

/// A server of one file, for the farm to fetch it from; its URL.
pub(crate) fn serve_file(bytes: Vec<u8>) -> String {
    serve_file_at(TcpListener::bind("127.0.0.1:0").unwrap(), bytes)
}

/// The same for who has a network of its own.
pub(crate) fn serve_file_at(listener: TcpListener, bytes: Vec<u8>) -> String {
    let url = format!("http://{}/file", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                match client.read(&mut byte) {
                    Ok(1) => request.push(byte[0]),
                    _ => break,
                }
            }
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", bytes.len());
            let body: &[u8] = if request.starts_with(b"HEAD") { b"" } else { &bytes };
            // A client that went away has what it wanted.
            let _ = client.write_all(head.as_bytes()).and_then(|()| client.write_all(body));
        }
    });
    url
}

/// The device tree that QEMU makes for such a machine, with a model of our own: nobody else has it.
pub(crate) fn own_device_tree() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("virt.dtb");
    let machine = format!("virt,dumpdtb={}", file.display());
    let made = Command::new("qemu-system-aarch64").args(["-M", &machine, "-cpu", "cortex-a57", "-m", "256"]).output();
    assert!(made.unwrap().status.success());
    let tree = std::fs::read(&file).unwrap();
    let (theirs, ours) = (b"linux,dummy-virt\0", b"wharf,served-dtb\0");
    let places: Vec<_> =
        tree.windows(theirs.len()).enumerate().filter(|(_, window)| window == theirs).map(|(at, _)| at).collect();
    let mut own = tree;
    for at in &places {
        own[*at..at + ours.len()].copy_from_slice(ours);
    }
    assert_eq!(places.len(), 2, "`compatible` and `model`");
    own
}

/// A job for [`farm_with`]'s machine and the payload that says what it was booted with.
pub(crate) fn arm64_job(words: &str, dtb: &str) -> String {
    format!(
        "version: 1
target: {{id: board}}
timeouts: {{overall: {{minutes: 10}}}}
console_patterns:
  session_end: {{regex: '^TINY: power off\\r$'}}
  job_success: {{regex: '^TINY: model=wharf,served-dtb\\r$'}}
deployment:
  start:
    kernel: {{url: '{{{{ images_url }}}}/tiny-arm64', cmdline: {}}}
    initramfs: [{{data: first}}, {{data: second}}]
    dtb: {{url: '{dtb}'}}
",
        in_yaml(words)
    )
}

#[test]
fn u_boot_boots_an_arm64_machine_by_tftp_with_the_device_tree_that_we_served() {
    let bench = farm_with("machine: {qemu: {firmware: u-boot-arm64}}, boot: {method: u-boot}", "");
    let _place = QEMU.pass();
    let (words, tree) = (odd_words(), own_device_tree());
    let dtb = serve_file(tree.clone());
    let ended = bench.submit(&arm64_job(&words, &dtb), "").wait();
    let fetched = format!("TFTP /_/job/dtb: {} bytes, complete", tree.len());
    ended.expect("PASS", "test").expect_in_order(&[
        "first DHCP request",
        "TFTP /boot.scr.uimg: ",
        "TFTP /_/job/kernel: 1120 bytes, complete",
        "TFTP /_/job/initramfs/0: 5 bytes, complete",
        "TFTP /_/job/initramfs/1: 6 bytes, complete",
        &fetched,
        "job_success matched `TINY: model=wharf,served-dtb`",
    ]);
    ended.expect_said(&[&format!("TINY: cmdline={words}\r\n"), "TINY: initramfs=first...second..\r\n"]);
}

#[test]
fn ovmf_boots_by_http_what_a_boots_database_says_and_then_ipxe_boots_linux() {
    let folder = tempfile::tempdir().unwrap();
    let database = "boots:
  - match: {firmware: ipxe}
    boot: {method: ipxe}
  - match: {tags: [http], protocol: http}
    boot: {method: uefi-http, loader: /usr/lib/ipxe/snponly.efi}
";
    std::fs::write(folder.path().join("boots.yml"), database).unwrap();
    let boots = format!("boots: {}\n", folder.path().join("boots.yml").display());
    let machine = "tags: [http, 'arch:x86_64'], machine: {qemu: {firmware: uefi-http}}";
    let bench = farm_with(machine, &boots);
    let _place = QEMU.pass();
    let ended = bench.submit(HELLO, "?dut=board").wait();
    let size = std::fs::metadata("/usr/lib/ipxe/snponly.efi").unwrap().len();
    let chainload = format!("HTTP /_/boot/snponly.efi: {size} bytes, complete");
    ended.expect("PASS", "test").expect_in_order(&[
        &chainload,
        "HTTP /_/boot/boot.ipxe",
        "HTTP /_/job/kernel",
        "HTTP /_/job/initramfs",
        "job_success, watchdogs.heartbeat.stop matched `wharf: job done`",
    ]);
}

/// GRUB for x86-64 firmware, made of its modules as Debian makes its own network loader.
fn grub_loader(folder: &std::path::Path) -> std::path::PathBuf {
    need_programs(&[("grub-mkimage", "grub-common"), ("/usr/lib/grub/x86_64-efi/moddep.lst", "grub-efi-amd64-bin")]);
    let file = folder.join("grubnet.efi");
    let mut make = Command::new("grub-mkimage");
    make.args(["-O", "x86_64-efi", "-p", "/grub", "-o"]).arg(&file);
    make.args(["boot", "configfile", "echo", "efinet", "linux", "net", "normal", "reboot", "test", "tftp"]);
    assert!(make.status().unwrap().success());
    file
}

#[test]
fn grub_boots_linux_by_tftp_with_a_configuration_by_mac() {
    let folder = tempfile::tempdir().unwrap();
    let loader = grub_loader(folder.path());
    let boot = format!("boot: {{method: grub, loader: {}}}", loader.display());
    let bench = farm_with(&format!("tags: ['arch:x86_64'], machine: {{qemu: {{firmware: uefi-pxe}}}}, {boot}"), "");
    let _place = QEMU.pass();
    let ended = bench.submit(HELLO, "?dut=board").wait();
    let size = std::fs::metadata(&loader).unwrap().len();
    let chainload = format!("TFTP /grubnet.efi: {size} bytes, complete");
    ended.expect("PASS", "test").expect_in_order(&[
        &chainload,
        "TFTP /grub/grub.cfg-01-52-54-00-77-00-05: ",
        "TFTP /_/job/kernel",
        "TFTP /_/job/initramfs/0",
        "job_success matched `wharf: job done`",
    ]);
}

#[test]
fn uefi_loads_by_pxe_the_program_that_the_job_gives_it() {
    let folder = tempfile::tempdir().unwrap();
    let loader = serve_file(std::fs::read(grub_loader(folder.path())).unwrap());
    let boot = "boot: {method: uefi-pxe, bootfile: /firmware/grub.efi}";
    let bench = farm_with(&format!("tags: [pxe], machine: {{qemu: {{firmware: uefi-pxe}}}}, {boot}"), "");
    let _place = QEMU.pass();
    let configuration = "linux /_/job/kernel console=ttyS0,115200 quiet panic=-1\\ninitrd /_/job/initramfs\\nboot\\n";
    let storage = format!(
        "    storage: {{tftp: [{{path: /firmware/grub.efi, url: '{loader}'}}, {{path: '/grub/grub\\.cfg.*', data: \"{configuration}\"}}]}}\n"
    );
    let ended = bench.run(&linux_job("pxe", "not this one", "overall: {minutes: 10}", &storage));
    ended.expect("PASS", "test").expect_in_order(&[
        "TFTP /firmware/grub.efi: ",
        "TFTP /grub/grub.cfg-01-52-54-00-77-00-05: ",
        "TFTP /_/job/kernel: ",
        "TFTP /_/job/initramfs: ",
        "job_success",
    ]);
}
