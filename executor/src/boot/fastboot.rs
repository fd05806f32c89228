//! Boot by Android's fastboot: the boot image, made of the job's kernel, RAM disk and device tree, or given whole; and whom to give it. ◆
//!
//! ```text
//!  kernel, initramfs, dtb, cmdline, deployment.fastboot ─► android.rs ─► /_/job/boot.img ─┬─ fastboot: the farm gives it to the loader
//!                                                                                         └─ HTTP, TFTP: for a loader that fetches it
//! ```
//! Data only: giving it is a driver's work (`executor/src/blueprint/fastboot`).

use std::collections::BTreeMap;
use std::fmt;

use gateway::namespace::Protocol;
use job_schema::job::{Deployment, Fastboot as Given, TextMatch};

use super::android::BootImage;
use super::settings::Settings;
use super::{BootMethod, BootPlan, Dut, Source, generated, nothing_to_boot, one, one_line, plan_of};

/// Name of the boot image on the DUT side.
const IMAGE_NAME: &str = "/_/job/boot.img";
/// The port of a loader, as AOSP's host has it.
const PORT: u16 = 5554;

/// What the farm gives to the DUT's loader, and to which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandOver {
    /// The name of the boot image, published by [`Protocol::Fastboot`].
    pub name: String,
    /// Where the loader is.
    pub reach: Reach,
    /// Its variables, and what each must say.
    pub variables: Vec<(String, TextMatch)>,
}

/// Where a DUT's loader is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// At this TCP port of the DUT's address.
    Tcp {
        /// The port.
        port: u16,
    },
    /// On USB; with neither of the two its serial number is the DUT's id.
    Usb {
        /// Its serial number.
        serial: Option<String>,
        /// Where it hangs: bus and ports.
        path: Option<String>,
    },
}

struct Fastboot {
    reach: Reach,
    variables: BTreeMap<String, String>,
}

/// With the settings that say where the loader is.
pub fn build(settings: &Settings) -> Box<dyn BootMethod> {
    let usb = settings.usb.clone().unwrap_or_default();
    let reach = match &settings.tcp {
        Some(tcp) => Reach::Tcp { port: tcp.port.unwrap_or(PORT) },
        None => Reach::Usb { serial: usb.serial, path: usb.path },
    };
    Box::new(Fastboot { reach, variables: settings.variables.clone() })
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
        let own = vec![image(Protocol::Fastboot), image(Protocol::Http), image(Protocol::Tftp)];
        let plan = plan_of(deployment, &[Protocol::Http, Protocol::Tftp], own, Vec::new());
        BootPlan { hand_over: Some(self.hand_over()), ..plan }
    }
}

impl Fastboot {
    fn hand_over(&self) -> HandOver {
        let variable = |(name, wanted): (&String, &String)| (name.clone(), TextMatch::from(wanted.clone()));
        let variables = self.variables.iter().map(variable).collect();
        HandOver { name: IMAGE_NAME.to_owned(), reach: self.reach.clone(), variables }
    }
}

impl fmt::Display for HandOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to the fastboot loader ", self.name)?;
        match &self.reach {
            Reach::Tcp { port } => write!(f, "at TCP port {port}")?,
            Reach::Usb { serial: None, path: None } => f.write_str("on USB whose serial number is the DUT's id")?,
            Reach::Usb { serial, path } => {
                f.write_str("on USB")?;
                serial.iter().try_for_each(|serial| write!(f, " with the serial number `{serial}`"))?;
                path.iter().try_for_each(|path| write!(f, " at {path}"))?;
            }
        }
        let variable = |(name, wanted): &(String, TextMatch)| write!(f, ", if its `{name}` is `{}`", wanted.as_str());
        self.variables.iter().try_for_each(variable)
    }
}
