//! Boot by iPXE, for BIOS and UEFI: firmware that is not iPXE yet is sent an iPXE image, iPXE is sent a script.
//!
//! ```text
//!  PXE firmware ── DHCP ──► undionly.kpxe | snponly.efi (TFTP; HTTP for UEFI HTTP boot) ──► iPXE ── DHCP ──► /_/boot/boot.ipxe (HTTP)
//!                                                                                                          └─► kernel, initramfs (HTTP)
//! ```
//! The images come from the system's `ipxe` package; a farm without one still boots network cards with an iPXE ROM.

use std::path::{Path, PathBuf};

use gateway::dhcp::{Architecture, BootMatch, BootRule, Class};
use gateway::namespace::Protocol;
use job_schema::job::Deployment;

use super::settings::Settings;
use super::{BootMethod, BootPlan, Dut, Place, Planned, Source, generated, nothing_to_boot, plan_of};

/// Name of the boot script on the DUT side.
pub const SCRIPT_NAME: &str = "/_/boot/boot.ipxe";

/// An iPXE image, the client architectures (RFC 4578 and IANA's list) that are sent it, and how they load it.
struct Image {
    file: &'static str,
    architectures: &'static [Architecture],
    by: By,
}

/// How firmware loads an image.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Tftp,
    Http,
}

const IMAGES: &[Image] = &[
    Image { file: "undionly.kpxe", architectures: &[Architecture::X86Bios], by: By::Tftp },
    Image { file: "snponly.efi", architectures: &[Architecture::X64Uefi, Architecture::Ebc], by: By::Tftp },
    Image { file: "snponly.efi", architectures: &[Architecture::X64UefiHttp], by: By::Http },
    Image { file: "ipxe-arm64.efi", architectures: &[Architecture::Arm64Uefi], by: By::Tftp },
    Image { file: "ipxe-arm64.efi", architectures: &[Architecture::Arm64UefiHttp], by: By::Http },
];

/// The method, with the iPXE images that there are.
pub struct Ipxe {
    folder: PathBuf,
    images: Vec<&'static Image>,
}

/// It needs no settings.
pub fn build(_: &Settings) -> Box<dyn BootMethod> {
    Box::new(Ipxe::of_the_system())
}

impl Ipxe {
    /// Images where Debian's and Ubuntu's `ipxe` package installs them.
    pub fn of_the_system() -> Self {
        Self::of(Path::new("/usr/lib/ipxe"))
    }

    /// Those of the known images that `folder` holds now.
    pub fn of(folder: &Path) -> Self {
        let images = IMAGES.iter().filter(|image| folder.join(image.file).exists()).collect();
        Ipxe { folder: folder.to_owned(), images }
    }

    fn image(&self, image: &Image) -> Planned {
        let (protocol, name) = match image.by {
            By::Tftp => (Protocol::Tftp, format!("/{}", image.file)),
            By::Http => (Protocol::Http, format!("/_/boot/{}", image.file)),
        };
        generated(protocol, &name, Source::Firmware(self.folder.join(image.file)))
    }
}

impl BootMethod for Ipxe {
    fn plan(&self, deployment: &Deployment, dut: &Dut) -> BootPlan {
        if deployment.kernel.is_none() {
            return nothing_to_boot(deployment);
        }
        let mut own: Vec<Planned> = self.images.iter().map(|image| self.image(image)).collect();
        own.push(generated(Protocol::Http, SCRIPT_NAME, Source::Text(script(deployment, dut.place))));
        plan_of(deployment, &[Protocol::Http], own, rules(&self.images, dut.place))
    }
}

fn rules(images: &[&Image], place: Place) -> Vec<BootRule> {
    let script = BootRule {
        matches: BootMatch { user_class: Some(Class::Ipxe), ..BootMatch::default() },
        bootfile: format!("{}{SCRIPT_NAME}", place.http_url()),
        ..BootRule::default()
    };
    let chainload = |image: &Image| BootRule {
        matches: BootMatch { architecture: Some(image.architectures.to_vec()), ..BootMatch::default() },
        bootfile: match image.by {
            By::Tftp => image.file.to_owned(),
            By::Http => format!("{}/_/boot/{}", place.http_url(), image.file),
        },
        vendor_class_reply: (image.by == By::Http).then(|| "HTTPClient".to_owned()),
        ..BootRule::default()
    };
    std::iter::once(script).chain(images.iter().copied().map(chainload)).collect()
}

/// The script. UEFI kernels find their initramfs by the `initrd=` words, BIOS kernels are handed it. Each part is an image of its
/// own: iPXE and the EFI stub put them one after the other on the boundaries that the kernel wants, which joining bytes would not.
fn script(deployment: &Deployment, place: Place) -> String {
    let base = place.http_url();
    let (setup, cmdline) = command_line(&deployment.cmdline_text());
    let kernel = format!("kernel --name kernel {base}/_/job/kernel");
    if deployment.initramfs.is_empty() {
        return format!("#!ipxe\n{setup}{kernel} {cmdline}\nboot\n");
    }
    let parts = 0..deployment.initramfs.len();
    let words: String = parts.clone().map(|part| format!("initrd=initramfs.{part} ")).collect();
    let fetches: String =
        parts.map(|part| format!("initrd --name initramfs.{part} {base}/_/job/initramfs/{part}\n")).collect();
    format!(
        "#!ipxe\n{setup}iseq ${{platform}} efi && goto efi ||\n\
         {kernel} {cmdline}\n\
         goto initramfs\n\
         :efi\n\
         {kernel} {words}{cmdline}\n\
         :initramfs\n\
         {fetches}boot\n"
    )
}

/// The command line as iPXE must read it: as it is when that is safe, else through a setting. iPXE splits a line into words
/// (and ends a command at a `;`, `&&` or `||`, and the line at a `#`) before it expands settings, so what a setting holds is
/// passed on letter by letter. `${net0/mac}` and the like are expanded by iPXE in either, as CI-tron's users expect.
fn command_line(text: &str) -> (String, String) {
    let special = |character: char| {
        matches!(character, ';' | '&' | '|' | '#' | '"' | '\'' | '\\' | '\n' | '\r' | '\t') || !character.is_ascii()
    };
    if !text.contains(special) && !text.contains("  ") && text.trim() == text {
        return (String::new(), text.to_owned());
    }
    let line: String =
        text.chars().map(|character| if character.is_ascii_control() { ' ' } else { character }).collect();
    let hex: String = line.bytes().map(|byte| format!("{byte:02x}")).collect();
    (format!("set cmdline:hexraw {hex}\n"), "${cmdline:string}".to_owned())
}

#[cfg(test)]
mod tests;
