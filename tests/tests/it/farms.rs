//! The farms that the tests of this binary share, and the one number that keeps QEMU within two processors.

use std::sync::Arc;

use tests::bench::{Bench, Gate, Shared, need_programs, need_virtual_machines};

/// The program under test.
pub(crate) const WHARF: &str = env!("CARGO_BIN_EXE_wharf");

/// The farm of simulated machines, as the fixtures have it.
pub(crate) const SIMULATED_FARM: &str = include_str!("../../../fixtures/farms/simulated.yml");

/// The farm of QEMU machines, as the fixtures have it.
pub(crate) const VIRTUAL_FARM: &str = include_str!("../../../fixtures/farms/virtual.yml");

/// The first job.
pub(crate) const HELLO: &str = include_str!("../../../fixtures/jobs/good/hello.yml");

/// QEMU machines at once: without KVM each takes a processor, and two is what the smallest machine has that we test on.
pub(crate) static QEMU: Gate = Gate::new(2);

static SIMULATED: Shared = Shared::new();
static VIRTUAL: Shared = Shared::new();

/// `fixtures/farms/simulated.yml`, running.
pub(crate) fn simulated() -> Arc<Bench> {
    need_programs(&[("/usr/lib/ipxe/undionly.kpxe", "ipxe")]);
    SIMULATED.running(|| Bench::start(WHARF, SIMULATED_FARM))
}

/// `fixtures/farms/virtual.yml`, running.
pub(crate) fn virtual_() -> Arc<Bench> {
    need_virtual_machines(WHARF);
    VIRTUAL.running(|| Bench::start(WHARF, VIRTUAL_FARM))
}

/// A farm of simulated machines on `10.79.0.1/24`: a base name and the fields of its `simulated:` for each.
pub(crate) fn farm_of(duts: &[(&str, &str)]) -> String {
    let mut farm = "name: odd\nnetwork: {private: {address: 10.79.0.1/24}}\nduts:\n".to_owned();
    for (index, (name, fields)) in (1..).zip(duts) {
        farm.push_str(&format!(
            "  - {{base_name: {name}, mac: '52:54:00:79:00:{index:02x}', address: 10.79.0.{}, tags: [{name}], \
             machine: {{simulated: {{{fields}}}}}}}\n",
            index + 10
        ));
    }
    farm
}

/// A job for a DUT with `tag`: kernel and initramfs, the words of its command line, and further top-level YAML.
pub(crate) fn linux_job(tag: &str, words: &str, timeouts: &str, more: &str) -> String {
    format!(
        "version: 1
target: {{tags: [{tag}]}}
timeouts: {{{timeouts}}}
console_patterns:
  session_end: {{regex: 'reboot: Power [Dd]own'}}
  job_success: {{regex: '^wharf: job done\\r?$'}}
deployment:
  start:
    kernel: {{url: '{{{{ images_url }}}}/kernel', cmdline: [\"{words}\"]}}
    initramfs: {{url: '{{{{ images_url }}}}/initramfs'}}
{more}"
    )
}

/// One that says hello and ends at once.
pub(crate) fn short(tag: &str, words: &str) -> String {
    linux_job(tag, &format!("wharf.beats=1 {words}"), "overall: {minutes: 5}", "")
}

/// Checks that the text has these, each after the one before.
#[track_caller]
pub(crate) fn expect_in(text: &str, words: &[&str]) {
    let mut rest = text;
    for word in words {
        (_, rest) = rest.split_once(word).unwrap_or_else(|| panic!("no `{word}` in its place in:\n{text}"));
    }
}
