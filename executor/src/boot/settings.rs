//! How a machine boots, as a farm file or a boots database says it: the method, and what a board needs to have said once.
//!
//! ```text
//!  boot: {method: u-boot, load: {kernel: 0x40400000}} ── schema ─► Settings ── check ─► Problems: unknown method, a key of another one
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use job_schema::Findings;
use job_schema::job::UbootArchitecture;
use job_schema::problem::quoted;
use schemars::JsonSchema;
use serde::Deserialize;

use super::METHODS;

/// How a machine boots.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["method"]))]
pub struct Settings {
    /// The boot method's name.
    #[schemars(extend("x-example" = "method: u-boot"))]
    pub method: String,
    /// `u-boot`: the processor; `arm64` when absent.
    pub architecture: Option<UbootArchitecture>,
    /// `u-boot`: addresses in the machine's memory; the firmware's own variables when absent.
    pub load: Load,
    /// `grub`, `uefi-http`, `uefi-pxe`: the EFI program that the firmware loads, a file of this host.
    pub loader: Option<PathBuf>,
    /// `uefi-http`, `uefi-pxe`: the name of the EFI program, which a job or its defaults publish.
    pub bootfile: Option<String>,
    /// `grub`: the folder where it looks for `grub.cfg`; `/grub` when absent.
    pub prefix: Option<String>,
    /// `raspberry-pi`: the folder of this host with the board's boot files.
    pub firmware: Option<PathBuf>,
    /// `raspberry-pi`: the board's serial number, eight hexadecimal digits.
    pub serial: Option<String>,
    /// `raspberry-pi`: further lines of `config.txt`.
    pub config: Vec<String>,
    /// `depthcharge`: the names that the firmware asks for.
    pub files: Files,
    /// `fastboot`: the loader is at a TCP port of the machine's address.
    pub tcp: Option<TcpLoader>,
    /// `fastboot`: the loader is on USB; with the machine's id as its serial number when neither is there.
    pub usb: Option<UsbLoader>,
    /// `fastboot`: variables of the loader, and what each must say: a word, or a regular expression for the whole of it.
    pub variables: BTreeMap<String, String>,
}

/// A loader that is reached by TCP.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TcpLoader {
    /// Its port; 5554 when absent.
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
}

/// A loader on USB.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UsbLoader {
    /// Its serial number.
    pub serial: Option<String>,
    /// Where it hangs, as the kernel calls it: bus and ports, such as `1-4.2`.
    pub path: Option<String>,
}

/// Addresses in a machine's memory.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Load {
    /// Of the kernel; `kernel_addr_r` when absent.
    pub kernel: Option<u64>,
    /// Of the initial RAM disk; `ramdisk_addr_r` when absent.
    pub initramfs: Option<u64>,
    /// Of the device tree; `fdt_addr_r` when absent.
    pub dtb: Option<u64>,
}

/// Names that a firmware asks for.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Files {
    /// The kernel; `/vmlinuz` when absent.
    pub kernel: Option<String>,
    /// The command line; `/cmdline` when absent.
    pub cmdline: Option<String>,
    /// The initial RAM disks, joined; `/initramfs` when absent.
    pub initramfs: Option<String>,
    /// The device trees, joined; `/dtb` when absent.
    pub dtb: Option<String>,
}

impl Settings {
    /// The same with paths of this host's files made from `directory`, where the file that names them lies; after telling what is wrong.
    pub fn checked(mut self, directory: &Path, at: &[String], findings: &mut Findings) -> Settings {
        self.check_method(at, findings);
        self.check_texts(at, findings);
        self.check_loader(at, findings);
        for (key, path) in [("loader", &mut self.loader), ("firmware", &mut self.firmware)] {
            let Some(path) = path else { continue };
            *path = directory.join(&*path);
            let is_there = if key == "loader" { path.is_file() } else { path.is_dir() };
            if !is_there {
                let what = format!("nothing is at `{}`", path.display());
                findings.tell(&below(at, key), what, "name what is there, relative to this file or from the root");
            }
        }
        self
    }

    fn check_method(&self, at: &[String], findings: &mut Findings) {
        let Some(method) = super::method(&self.method) else {
            let known: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
            if !self.method.is_empty() {
                let what = format!("no boot method is called {}", quoted(&self.method));
                findings.tell(&below(at, "method"), what, &format!("the boot methods are {}", known.join(", ")));
            }
            return;
        };
        for key in self.given().into_iter().filter(|key| !method.takes.contains(key)) {
            let hint = match method.takes {
                [] => "it takes no settings".to_owned(),
                takes => format!("it takes {}", takes.join(", ")),
            };
            let what = format!("`{key}` means nothing to the boot method `{}`", method.name);
            findings.tell(&below(at, key), what, &hint);
        }
    }

    /// The settings that are there, by their keys.
    fn given(&self) -> Vec<&'static str> {
        let table = [
            ("architecture", self.architecture.is_some()),
            ("load", self.load != Load::default()),
            ("loader", self.loader.is_some()),
            ("bootfile", self.bootfile.is_some()),
            ("prefix", self.prefix.is_some()),
            ("firmware", self.firmware.is_some()),
            ("serial", self.serial.is_some()),
            ("config", !self.config.is_empty()),
            ("files", self.files != Files::default()),
            ("tcp", self.tcp.is_some()),
            ("usb", self.usb.is_some()),
            ("variables", !self.variables.is_empty()),
        ];
        table.into_iter().filter(|(_, is_given)| *is_given).map(|(key, _)| key).collect()
    }

    fn check_texts(&self, at: &[String], findings: &mut Findings) {
        let is_serial = |text: &str| text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if let Some(serial) = self.serial.as_deref().filter(|serial| !is_serial(serial)) {
            let hint = "write the last eight hexadecimal digits of `Serial` in /proc/cpuinfo, quoted";
            findings.tell(&below(at, "serial"), format!("{} is no serial number", quoted(serial)), hint);
        }
        if self.loader.is_some() && self.bootfile.is_some() {
            let hint = "keep `loader` for a file of this host, or `bootfile` for a name that jobs publish";
            findings.tell(&below(at, "bootfile"), "`loader` names the boot file already".to_owned(), hint);
        }
        let names = [
            ("bootfile", &self.bootfile),
            ("prefix", &self.prefix),
            ("kernel", &self.files.kernel),
            ("cmdline", &self.files.cmdline),
            ("initramfs", &self.files.initramfs),
            ("dtb", &self.files.dtb),
        ];
        for (key, name) in names {
            let Some(name) = name else { continue };
            if !name.starts_with('/') || name.chars().any(|character| character.is_control() || character == ' ') {
                let place =
                    if matches!(key, "bootfile" | "prefix") { below(at, key) } else { below(&below(at, "files"), key) };
                findings.tell(&place, format!("{} is no name of a file", quoted(name)), "begin it with `/`");
            }
        }
    }

    fn check_loader(&self, at: &[String], findings: &mut Findings) {
        if self.tcp.is_some() && self.usb.is_some() {
            let what = "a loader is reached by `tcp` or by `usb`, not by both".to_owned();
            findings.tell(&below(at, "usb"), what, "keep one of the two");
        }
        let usb = self.usb.clone().unwrap_or_default();
        if let Some(path) = usb.path.filter(|path| !is_usb_path(path)) {
            let hint = "write the bus and the ports, as the folder in /sys/bus/usb/devices is called: `1-4.2`";
            let what = format!("{} is no place on USB", quoted(&path));
            findings.tell(&below(&below(at, "usb"), "path"), what, hint);
        }
        let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_graphic()) && (1..=57).contains(&name.len());
        for name in self.variables.keys().filter(|name| !is_name(name)) {
            let hint = "write a name that `fastboot getvar all` shows, of at most 57 letters";
            let what = format!("{} is no name of a variable", quoted(name));
            findings.tell(&below(&below(at, "variables"), name), what, hint);
        }
    }
}

/// `1-4.2`: the bus, then the ports of the hubs on the way.
fn is_usb_path(path: &str) -> bool {
    let is_number = |text: &str| text.parse::<u8>().is_ok_and(|number| number > 0 && number.to_string() == text);
    path.split_once('-').is_some_and(|(bus, ports)| is_number(bus) && ports.split('.').all(is_number))
}

fn below(at: &[String], key: &str) -> Vec<String> {
    at.iter().cloned().chain([key.to_owned()]).collect()
}
