//! Boot from a small Linux that is always there (a resident initramfs): it fetches a script, which starts the job's kernel. ◆
//!
//! ```text
//!  resident Linux ── DHCP: boot file ─► /_/boot/kexec.sh (HTTP) ── sh ─► kernel, initramfs, dtb ─► kexec --load, --exec
//! ```
//! For machines whose firmware cannot boot from the network. The resident system needs a shell, wget or curl, and kexec; its DHCP
//! client has to ask for option 67 (`udhcpc -O bootfile`), or it knows the name.

use gateway::namespace::Protocol;
use job_schema::job::Deployment;

use super::settings::Settings;
use super::{BootMethod, BootPlan, DTB, Dut, INITRAMFS, KERNEL, Source};
use super::{always, generated, nothing_to_boot, one_line, plan_of};

/// Name of the script on the DUT side.
const SCRIPT_NAME: &str = "/_/boot/kexec.sh";

/// The beginning of every script: `fetch URL FILE` with what the resident system has.
const PREAMBLE: &str = "\
#!/bin/sh
set -e
fetch() {
    if command -v curl >/dev/null; then curl --fail --silent --show-error --output \"$2\" \"$1\"; else wget -q -O \"$2\" \"$1\"; fi
}
folder=$(mktemp -d)
cd \"$folder\"
";

struct Kexec;

/// It needs no settings.
pub fn build(_: &Settings) -> Box<dyn BootMethod> {
    Box::new(Kexec)
}

impl BootMethod for Kexec {
    fn plan(&self, deployment: &Deployment, dut: &Dut) -> BootPlan {
        if deployment.kernel.is_none() {
            return nothing_to_boot(deployment);
        }
        let base = dut.place.http_url();
        let own = vec![generated(Protocol::Http, SCRIPT_NAME, Source::Text(script(deployment, &base)))];
        plan_of(deployment, &[Protocol::Http], own, vec![always(&format!("{base}{SCRIPT_NAME}"))])
    }
}

fn script(deployment: &Deployment, base: &str) -> String {
    let mut text = format!("{PREAMBLE}fetch {base}{KERNEL} kernel\n");
    let mut options = String::new();
    if !deployment.initramfs.is_empty() {
        for part in 0..deployment.initramfs.len() {
            text += &format!("fetch {base}{INITRAMFS}/{part} part\ncat part >>initramfs\n");
            // The kernel wants the next part on a boundary of four bytes, after zeroes.
            text += "head -c $(( (4 - $(wc -c <initramfs) % 4) % 4 )) /dev/zero >>initramfs\n";
        }
        text += "rm part\n";
        options += " --initrd=initramfs";
    }
    if !deployment.dtb.is_empty() {
        text += &format!("fetch {base}{DTB} dtb\n");
        options += " --dtb=dtb";
    }
    let cmdline = quoted(&one_line(deployment));
    text + &format!("kexec --load kernel{options} --command-line={cmdline}\nexec kexec --exec\n")
}

/// As a shell reads it whole (POSIX 2.2.2).
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
