//! Boot by UEFI firmware alone: it loads one EFI program, by PXE (TFTP) or by HTTP, and that one goes on by itself. ◆
//!
//! ```text
//!            setting       the EFI program is                                      by PXE            by HTTP
//!            loader        a file of this host: GRUB, shim, a shell                /<its name>       /_/boot/<its name>
//!            bootfile      what the job or its defaults publish under that name    that name         that name
//!            neither       the job's kernel: a unified kernel image (UKI)          /kernel.efi       /_/boot/kernel.efi
//! ```
//! HTTP boot takes an offer only with `HTTPClient` in option 60 and a URL in option 67 (UEFI 2.10, 24.7.3), and asks for the size by
//! HEAD. A kernel that is no UKI starts so with an empty command line: `ipxe` and `grub` can give it one.

use std::path::PathBuf;

use gateway::dhcp::{Architecture, BootMatch, BootRule, ClientKind};
use gateway::namespace::Protocol;
use job_schema::job::Deployment;

use super::settings::Settings;
use super::{BootMethod, BootPlan, Dut, Planned, Source, generated, nothing_to_boot, one, plan_of};

/// The name for a kernel that is the program: OVMF's HTTP boot wants to see `.efi` (MdeModulePkg, `HttpUrlGetFileType` of its
/// HttpBootDxe).
const KERNEL_NAME: &str = "kernel.efi";

struct Uefi {
    by: Protocol,
    program: Program,
}

enum Program {
    OfThisHost { name: String, file: PathBuf },
    OfTheJob { name: String },
    Kernel,
}

/// By PXE. Takes `bootfile` or `loader`.
pub fn by_tftp(settings: &Settings) -> Box<dyn BootMethod> {
    Box::new(Uefi { by: Protocol::Tftp, program: Program::of(settings) })
}

/// By HTTP. Takes `bootfile` or `loader`.
pub fn by_http(settings: &Settings) -> Box<dyn BootMethod> {
    Box::new(Uefi { by: Protocol::Http, program: Program::of(settings) })
}

impl Program {
    fn of(settings: &Settings) -> Program {
        match (&settings.loader, &settings.bootfile) {
            (Some(file), _) => {
                let name = file.file_name().map(|name| name.to_string_lossy().into_owned());
                Program::OfThisHost { name: name.unwrap_or_else(|| "boot.efi".to_owned()), file: file.clone() }
            }
            (None, Some(name)) => Program::OfTheJob { name: name.clone() },
            (None, None) => Program::Kernel,
        }
    }
}

impl BootMethod for Uefi {
    fn plan(&self, deployment: &Deployment, dut: &Dut) -> BootPlan {
        let folder = match self.by {
            Protocol::Http => "/_/boot/",
            _ => "/",
        };
        let (name, own) = match (&self.program, &deployment.kernel) {
            (Program::OfThisHost { name, file }, _) => {
                let name = format!("{folder}{name}");
                let program = generated(self.by, &name, Source::Firmware(file.clone()));
                (name, vec![program])
            }
            (Program::OfTheJob { name }, _) => (name.clone(), Vec::new()),
            (Program::Kernel, Some(kernel)) => {
                let name = format!("{folder}{KERNEL_NAME}");
                let program = generated(self.by, &name, one(&kernel.artifact));
                (name, vec![program])
            }
            (Program::Kernel, None) => return nothing_to_boot(deployment),
        };
        self.publish(deployment, dut, &name, own)
    }
}

impl Uefi {
    fn publish(&self, deployment: &Deployment, dut: &Dut, name: &str, own: Vec<Planned>) -> BootPlan {
        let rules = match self.by {
            Protocol::Http => vec![by_url(format!("{}{name}", dut.place.http_url()))],
            _ => vec![by_name(name.trim_start_matches('/'))],
        };
        plan_of(deployment, &[Protocol::Http, Protocol::Tftp], own, rules)
    }
}

fn by_url(url: String) -> BootRule {
    let matches = BootMatch { client: Some(ClientKind::HttpBoot), ..BootMatch::default() };
    BootRule { matches, bootfile: url, vendor_class_reply: Some("HTTPClient".to_owned()), ..BootRule::default() }
}

/// UEFI's PXE clients only: what they load asks DHCP again as something else.
fn by_name(name: &str) -> BootRule {
    use Architecture as A;
    let architecture = vec![
        A::X86Uefi,
        A::X64Uefi,
        A::Ebc,
        A::Arm32Uefi,
        A::Arm64Uefi,
        A::Riscv32Uefi,
        A::Riscv64Uefi,
        A::LoongArch32Uefi,
        A::LoongArch64Uefi,
    ];
    let matches = BootMatch { architecture: Some(architecture), ..BootMatch::default() };
    BootRule { matches, bootfile: name.to_owned(), ..BootRule::default() }
}
