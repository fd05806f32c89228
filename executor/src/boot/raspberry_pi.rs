//! Boot by a Raspberry Pi's own network boot: its firmware fetches files by name from a folder named after the board.
//!
//! ```text
//!  boot ROM or EEPROM ── DHCP: option 43 "Raspberry Pi Boot" ─► TFTP <serial>/start4.elf, fixup4.dat    the setting `firmware`
//!                                                              <serial>/config.txt, cmdline.txt         made here
//!                                                              <serial>/kernel8.img, initramfs, dtb     the job's
//! ```
//! The folder is the serial number's last eight digits, the MAC with dashes, or none (the EEPROM's TFTP_PREFIX): all are answered, for
//! the DUT that asks only. Many of the files that it asks for do not exist; each miss is answered at once.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gateway::dhcp::BootRule;
use gateway::namespace::{Name, Protocol};
use job_schema::job::Deployment;

use super::settings::Settings;
use super::{BootMethod, BootPlan, Dut, Planned, Source, archives, generated, joined, one_line, plan_of};

/// Boot files of a board at most: the full boot partition, overlays included, has some 400.
const FILES_MAX: usize = 2000;

/// What the ROM looks for in option 43 (raspberrypi.com, "Network boot"): PXE discovery control (6) = 3, menu prompt (10) "PXE" with
/// time 0, boot menu (9) with entry 0 "Raspberry Pi Boot" (PXE 2.1, 2.4).
const VENDOR_OPTIONS: &[u8] = b"\x06\x01\x03\x0a\x04\x00PXE\x09\x14\x00\x00\x11Raspberry Pi Boot\xff";

struct RaspberryPi {
    /// Where each of the board's own files lies, by its name.
    firmware: Vec<(String, PathBuf)>,
    serial: Option<String>,
    config: Vec<String>,
}

/// Takes `config`, `firmware` and `serial`.
pub fn build(settings: &Settings) -> Box<dyn BootMethod> {
    let mut firmware = Vec::new();
    if let Some(folder) = &settings.firmware {
        list(folder, "", &mut firmware);
    }
    let serial = settings.serial.as_ref().map(|serial| serial.to_ascii_lowercase());
    Box::new(RaspberryPi { firmware, serial, config: settings.config.clone() })
}

/// The folder's files and those of its `overlays`, by name. What cannot be read is not offered: the log then says who asked in vain.
fn list(folder: &Path, below: &str, files: &mut Vec<(String, PathBuf)>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if path.is_dir() && below.is_empty() && name == "overlays" {
            list(&path, "overlays/", files);
        } else if path.is_file() && files.len() < FILES_MAX {
            files.push((format!("{below}{name}"), path.clone()));
        }
    }
}

impl BootMethod for RaspberryPi {
    fn plan(&self, deployment: &Deployment, dut: &Dut) -> BootPlan {
        let mut own = Vec::new();
        let mut offer = |name: &str, source| own.push(self.file(name, source, dut));
        if let Some(kernel) = &deployment.kernel {
            offer("config.txt", Source::Text(self.config_txt(deployment)));
            offer("cmdline.txt", Source::Text(one_line(deployment) + "\n"));
            offer("kernel8.img", super::one(&kernel.artifact));
            if !deployment.initramfs.is_empty() {
                offer("initramfs", archives(&deployment.initramfs));
            }
            if !deployment.dtb.is_empty() {
                offer("wharf.dtb", joined(&deployment.dtb));
            }
        }
        // Last, so that a file of the folder does not hide what this boot is made of.
        for (name, path) in &self.firmware {
            offer(name, Source::Firmware(path.clone()));
        }
        plan_of(deployment, &[Protocol::Http, Protocol::Tftp], own, vec![rule()])
    }
}

impl RaspberryPi {
    fn config_txt(&self, deployment: &Deployment) -> String {
        let mut lines = vec!["arm_64bit=1", "enable_uart=1", "kernel=kernel8.img", "cmdline=cmdline.txt"];
        if !deployment.initramfs.is_empty() {
            lines.push("initramfs initramfs followkernel");
        }
        if !deployment.dtb.is_empty() {
            lines.push("device_tree=wharf.dtb");
        }
        lines.extend(self.config.iter().map(String::as_str));
        lines.join("\n") + "\n"
    }

    /// A file in the folder that the board asks in, and without any.
    fn file(&self, name: &str, source: Source, dut: &Dut) -> Planned {
        let exact = format!("/{name}");
        let (wanted, serial, mac) = (exact.clone(), self.serial.clone(), dut.mac_with_dashes());
        let answers = move |asked: &str| {
            let Some(folder) = asked.strip_suffix(wanted.as_str()).and_then(|folder| folder.strip_prefix('/')) else {
                return false;
            };
            match &serial {
                _ if folder == mac => true,
                Some(serial) => folder == serial,
                None => folder.len() == 8 && folder.bytes().all(|byte| byte.is_ascii_hexdigit()),
            }
        };
        let name = Name::Matching(exact, Arc::new(answers));
        Planned { name, ..generated(Protocol::Tftp, "", source) }
    }
}

fn rule() -> BootRule {
    BootRule {
        // The ROM knows the name by itself; option 67 may not be empty (RFC 2132 9.5).
        bootfile: "bootcode.bin".to_owned(),
        vendor_class_reply: Some("PXEClient".to_owned()),
        options: vec![(43, VENDOR_OPTIONS.to_vec())],
        ..BootRule::default()
    }
}
