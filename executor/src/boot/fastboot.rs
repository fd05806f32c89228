//! Boot by Android's fastboot: the boot image, made of the job's kernel, RAM disk and device tree, or given whole. ◆
//!
//! ```text
//!  kernel, initramfs, dtb, cmdline, deployment.fastboot ─► android.rs ─► /_/job/boot.img (HTTP, TFTP) ─► whoever sends it
//! ```
//! Data only: sending it over USB is a driver's work. Boards whose loader can fetch it (U-Boot's `bootm` knows the format) need nothing
//! else.

use gateway::namespace::Protocol;
use job_schema::job::{Deployment, Fastboot as Given};

use super::android::BootImage;
use super::settings::Settings;
use super::{BootMethod, BootPlan, Dut, Source, generated, nothing_to_boot, one, one_line, plan_of};

/// Name of the boot image on the DUT side.
const IMAGE_NAME: &str = "/_/job/boot.img";

struct Fastboot;

/// It needs no settings: a job and its defaults have `fastboot` for that.
pub fn build(_: &Settings) -> Box<dyn BootMethod> {
    Box::new(Fastboot)
}

impl BootMethod for Fastboot {
    fn plan(&self, deployment: &Deployment, _: &Dut) -> BootPlan {
        let given = deployment.fastboot.clone().unwrap_or_default();
        let source = match (&given.boot_image, &deployment.kernel) {
            (Some(image), _) => one(image),
            (None, Some(kernel)) => Source::Android(Box::new(BootImage {
                kernel: kernel.artifact.clone(),
                ramdisk: deployment.initramfs.clone(),
                dtb: deployment.dtb.clone(),
                cmdline: one_line(deployment),
                header: Given { boot_image: None, ..given },
            })),
            (None, None) => return nothing_to_boot(deployment),
        };
        let image = |protocol| generated(protocol, IMAGE_NAME, source.clone());
        let own = vec![image(Protocol::Http), image(Protocol::Tftp)];
        plan_of(deployment, &[Protocol::Http, Protocol::Tftp], own, Vec::new())
    }
}
