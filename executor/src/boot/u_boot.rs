//! Boot by U-Boot: a boot script of our making, and the same as `pxelinux.cfg` for boards that ask for that. ◆
//!
//! ```text
//!  U-Boot ── DHCP ─► TFTP /boot.scr.uimg ── source ─► tftpboot kernel, initramfs, dtb ─► booti | bootz | bootm
//!         └─ pxe get ─► TFTP /pxelinux.cfg/01-<mac> ─► the same files, by U-Boot's own rules
//! ```
//! Addresses come from the board's own variables (`kernel_addr_r`, `ramdisk_addr_r`, `fdt_addr_r`; the older `loadaddr`,
//! `initrd_addr`, `fdt_addr` where those are not set), or from the setting `load`. A board without a device tree of the job's keeps its
//! own.

use gateway::content::edit::uimage;
use gateway::dhcp::BootRule;
use gateway::namespace::Protocol;
use job_schema::job::{Deployment, UbootArchitecture};

use super::settings::{Load, Settings};
use super::{BootMethod, BootPlan, DTB, Dut, INITRAMFS, KERNEL, Source};
use super::{always, generated, nothing_to_boot, one_line, plan_of};

/// U-Boot's network boot asks for this name whatever DHCP says (include/config_distro_bootcmd.h, `boot_script_dhcp`).
const SCRIPT_NAME: &str = "boot.scr.uimg";

struct UBoot {
    architecture: UbootArchitecture,
    load: Load,
}

/// Takes `architecture` and `load`.
pub fn build(settings: &Settings) -> Box<dyn BootMethod> {
    Box::new(UBoot { architecture: settings.architecture.unwrap_or_default(), load: settings.load.clone() })
}

impl BootMethod for UBoot {
    fn plan(&self, deployment: &Deployment, dut: &Dut) -> BootPlan {
        if deployment.kernel.is_none() {
            return nothing_to_boot(deployment);
        }
        let text = self.script(deployment, dut);
        let bytes = uimage::script(&text, self.architecture);
        let script =
            |name: &str| generated(Protocol::Tftp, name, Source::Wrapped { text: text.clone(), bytes: bytes.clone() });
        let menu = format!("/pxelinux.cfg/01-{}", dut.mac_with_dashes());
        let own = vec![
            script(&format!("/{SCRIPT_NAME}")),
            generated(Protocol::Tftp, &menu, Source::Text(pxelinux(deployment))),
        ];
        plan_of(deployment, &[Protocol::Tftp, Protocol::Http], own, rules())
    }
}

fn rules() -> Vec<BootRule> {
    vec![always(SCRIPT_NAME)]
}

impl UBoot {
    fn script(&self, deployment: &Deployment, dut: &Dut) -> String {
        let mut lines = vec![
            "echo wharf: boot script".to_owned(),
            format!("setenv serverip {}", dut.place.address),
            format!("setenv bootargs {}", quoted(&one_line(deployment))),
        ];
        lines.extend(address("kernel_addr_r", self.load.kernel, "loadaddr"));
        lines.push(fetch("kernel_addr_r", KERNEL));
        lines.push("setenv wharf_kernel_size ${filesize}".to_owned());
        lines.extend(self.initramfs(deployment));
        lines.extend(self.dtb(deployment));
        lines.push(self.go(if deployment.initramfs.is_empty() { Initramfs::None } else { Initramfs::Some }));
        lines.push("echo wharf: none of the boot commands took the kernel".to_owned());
        lines.join("\n") + "\n"
    }

    /// The kernel wants each part of an initramfs on a boundary of four bytes, with nothing but zeroes before it
    /// (Documentation/driver-api/early-userspace/buffer-format.rst): so each is loaded behind the last one, rounded up.
    fn initramfs(&self, deployment: &Deployment) -> Vec<String> {
        if deployment.initramfs.is_empty() {
            return Vec::new();
        }
        let mut lines = address("ramdisk_addr_r", self.load.initramfs, "initrd_addr");
        if let [_] = deployment.initramfs.as_slice() {
            lines.push(fetch("ramdisk_addr_r", INITRAMFS));
            lines.push("setenv wharf_initramfs_size ${filesize}".to_owned());
            return lines;
        }
        lines.push("setenv wharf_end ${ramdisk_addr_r}".to_owned());
        for part in 0..deployment.initramfs.len() {
            lines.push(fetch("wharf_end", &format!("{INITRAMFS}/{part}")));
            lines.push("setexpr wharf_end ${wharf_end} + ${filesize}".to_owned());
            lines.push("mw.b ${wharf_end} 0 4".to_owned());
            // Setexpr has no shift; a remainder does as well.
            lines.push("setexpr wharf_rest ${wharf_end} % 4".to_owned());
            lines.push("setexpr wharf_end ${wharf_end} + 4".to_owned());
            lines.push("setexpr wharf_end ${wharf_end} - ${wharf_rest}".to_owned());
        }
        lines.push("setexpr wharf_initramfs_size ${wharf_end} - ${ramdisk_addr_r}".to_owned());
        lines
    }

    fn dtb(&self, deployment: &Deployment) -> Vec<String> {
        if deployment.dtb.is_empty() {
            // What U-Boot itself runs with, where the board does not say more.
            let own = "if test -n \"${fdt_addr}\"; then setenv wharf_dtb ${fdt_addr}; else setenv wharf_dtb ${fdtcontroladdr}; fi";
            return vec![own.to_owned()];
        }
        let mut lines = address("fdt_addr_r", self.load.dtb, "fdt_addr");
        lines.push(fetch("fdt_addr_r", DTB));
        lines.push("setenv wharf_dtb ${fdt_addr_r}".to_owned());
        lines
    }

    /// A board has one or two of these commands; one that it lacks, or that does not know the kernel's format, fails and the next is
    /// tried.
    fn go(&self, initramfs: Initramfs) -> String {
        let is_pc = matches!(self.architecture, UbootArchitecture::X86 | UbootArchitecture::X86_64);
        match (is_pc, initramfs) {
            (true, Initramfs::None) => "zboot ${kernel_addr_r} ${wharf_kernel_size}".to_owned(),
            (true, Initramfs::Some) => {
                "zboot ${kernel_addr_r} ${wharf_kernel_size} ${ramdisk_addr_r} ${wharf_initramfs_size}".to_owned()
            }
            (false, Initramfs::None) => boot_commands("-"),
            (false, Initramfs::Some) => boot_commands("${ramdisk_addr_r}:${wharf_initramfs_size}"),
        }
    }
}

enum Initramfs {
    None,
    Some,
}

fn boot_commands(initramfs: &str) -> String {
    let command = |name: &str| format!("{name} ${{kernel_addr_r}} {initramfs} ${{wharf_dtb}}");
    ["booti", "bootz", "bootm"].map(command).join(" || ")
}

/// Sees to it that a variable has an address.
fn address(variable: &str, given: Option<u64>, older: &str) -> Vec<String> {
    vec![match given {
        Some(address) => format!("setenv {variable} {address:#x}"),
        None => format!("test -n \"${{{variable}}}\" || setenv {variable} ${{{older}}}"),
    }]
}

/// What cannot be fetched ends the script, rather than booting what is in memory.
fn fetch(variable: &str, name: &str) -> String {
    format!("tftpboot ${{{variable}}} {name} || exit 1")
}

/// Text as U-Boot's shell reads it whole: nothing is special between single quotes but the quote itself, and the backslash, of which
/// its own clean-up takes one away (common/cli_hush.c, `globhack`; seen with 2023.01).
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "'\\''"))
}

/// U-Boot's reading of the syslinux format (doc/README.pxe). It replaces `${…}` in `append`; ours are the script's way round that.
fn pxelinux(deployment: &Deployment) -> String {
    let mut text = format!("default wharf\nprompt 0\ntimeout 1\nlabel wharf\n  kernel {KERNEL}\n");
    if !deployment.initramfs.is_empty() {
        text += &format!("  initrd {INITRAMFS}\n");
    }
    if !deployment.dtb.is_empty() {
        text += &format!("  fdt {DTB}\n");
    }
    text + &format!("  append {}\n", one_line(deployment))
}
