//! Boot by firmware that asks TFTP for fixed names: Chromebooks' Depthcharge, and boards that were taught names once. ◆
//!
//! ```text
//!  firmware ── DHCP: next server ─► TFTP /vmlinuz (a FIT image on ARM), /cmdline ─► kernel
//! ```
//! Each DUT has a namespace of its own, so that a thousand boards may ask for the same names.

use gateway::namespace::Protocol;
use job_schema::job::Deployment;

use super::settings::{Files, Settings};
use super::{BootMethod, BootPlan, Dut, Source, always, generated, nothing_to_boot, one, one_line, plan_of};
use super::{archives, joined};

struct Depthcharge(Files);

/// Takes `files`.
pub fn build(settings: &Settings) -> Box<dyn BootMethod> {
    Box::new(Depthcharge(settings.files.clone()))
}

impl BootMethod for Depthcharge {
    fn plan(&self, deployment: &Deployment, _: &Dut) -> BootPlan {
        let Some(kernel) = &deployment.kernel else { return nothing_to_boot(deployment) };
        let name = |given: &Option<String>, usual: &str| given.clone().unwrap_or_else(|| usual.to_owned());
        let kernel_name = name(&self.0.kernel, "/vmlinuz");
        let mut own = vec![
            generated(Protocol::Tftp, &kernel_name, one(&kernel.artifact)),
            // The whole file is the command line: no newline at its end.
            generated(Protocol::Tftp, &name(&self.0.cmdline, "/cmdline"), Source::Text(one_line(deployment))),
        ];
        if !deployment.initramfs.is_empty() {
            let name = name(&self.0.initramfs, "/initramfs");
            own.push(generated(Protocol::Tftp, &name, archives(&deployment.initramfs)));
        }
        if !deployment.dtb.is_empty() {
            own.push(generated(Protocol::Tftp, &name(&self.0.dtb, "/dtb"), joined(&deployment.dtb)));
        }
        // Depthcharge takes the name from DHCP where none was written into its flash.
        plan_of(deployment, &[Protocol::Http, Protocol::Tftp], own, vec![always(kernel_name.trim_start_matches('/'))])
    }
}
