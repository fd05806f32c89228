//! How a deployment becomes what a DUT asks for: a plan is data, tested as golden text; nothing here opens a socket, and a file is
//! looked for only while a method is built.
//!
//! ```text
//!  farm file, boots database ── Settings ─► METHODS ─► BootMethod
//!  Deployment + Dut ── BootMethod::plan ──► BootPlan { artifacts by protocol and name, DHCP rules, scripts }
//! ```

use std::net::Ipv4Addr;
use std::path::PathBuf;

use gateway::dhcp::{BootOffer, BootRule, Mac};
use gateway::namespace::{Exposure, Name, Origin, Protocol};
use job_schema::job::{Artifact, Deployment, PathMatch, StorageArtifact};

pub mod android;
pub mod database;
mod depthcharge;
pub mod doors;
pub mod fastboot;
mod grub;
pub mod ipxe;
mod kexec;
mod raspberry_pi;
pub mod settings;
mod u_boot;
mod uefi;

use fastboot::HandOver;
use settings::Settings;

/// Every way to boot, by the name that a farm file has for it.
pub const METHODS: &[Method] = &[
    Method { name: "depthcharge", takes: &["files"], build: depthcharge::build },
    Method { name: "fastboot", takes: &["tcp", "usb", "variables"], build: fastboot::build },
    Method { name: "grub", takes: &["loader", "prefix"], build: grub::build },
    Method { name: "ipxe", takes: &[], build: ipxe::build },
    Method { name: "kexec", takes: &[], build: kexec::build },
    Method { name: "raspberry-pi", takes: &["config", "firmware", "serial"], build: raspberry_pi::build },
    Method { name: "u-boot", takes: &["architecture", "load"], build: u_boot::build },
    Method { name: "uefi-http", takes: &["bootfile", "loader"], build: uefi::by_http },
    Method { name: "uefi-pxe", takes: &["bootfile", "loader"], build: uefi::by_tftp },
];

/// One way to boot.
pub struct Method {
    /// What a farm file calls it.
    pub name: &'static str,
    /// The settings that mean something to it.
    pub takes: &'static [&'static str],
    /// Makes it, with the files that it finds on this host.
    pub build: fn(&Settings) -> Box<dyn BootMethod>,
}

/// The method called `name`.
pub fn method(name: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.name == name)
}

/// Who boots, as far as a plan depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dut {
    /// Where it finds the gateway.
    pub place: Place,
    /// The MAC that it boots with.
    pub mac: Mac,
}

impl Dut {
    /// Its MAC as file names have it: `52-54-00-77-00-01`.
    pub fn mac_with_dashes(&self) -> String {
        self.mac.to_string().replace(':', "-")
    }
}

/// Where the gateway is, as the DUT sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The gateway's address on the farm's network.
    pub address: Ipv4Addr,
    /// Its HTTP port.
    pub http_port: u16,
}

impl Place {
    /// The base of all HTTP names, without a slash at its end.
    pub fn http_url(&self) -> String {
        match self.http_port {
            80 => format!("http://{}", self.address),
            port => format!("http://{}:{port}", self.address),
        }
    }
}

/// Everything a deployment publishes, and what DHCP tells the DUT about it.
#[derive(Debug)]
pub struct BootPlan {
    /// What may be fetched.
    pub artifacts: Vec<Planned>,
    /// What DHCP answers, by the firmware that asks.
    pub dhcp: BootOffer,
    /// What the farm gives to the DUT's loader itself, once there is power.
    pub hand_over: Option<HandOver>,
}

/// One entry of the DUT's namespace.
#[derive(Debug)]
pub struct Planned {
    /// By which protocol.
    pub protocol: Protocol,
    /// Under which name.
    pub name: Name,
    /// Where the bytes come from.
    pub source: Source,
    /// How long and how often.
    pub exposure: Exposure,
    /// Whose entry it is.
    pub origin: Origin,
}

/// Where planned bytes come from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Text that the boot method wrote.
    Text(String),
    /// The same in the wrapping that its reader wants.
    Wrapped {
        /// What it says.
        text: String,
        /// What is served.
        bytes: Vec<u8>,
    },
    /// An Android boot image, made of the job's artifacts.
    Android(Box<android::BootImage>),
    /// A firmware image of the system's packages.
    Firmware(PathBuf),
    /// Artifacts of the job, one after the other.
    Artifacts(Vec<Artifact>),
    /// Initial RAM disks of the job, one after the other as the kernel finds them.
    Archives(Vec<Artifact>),
}

/// A way to boot.
pub trait BootMethod: Send + Sync {
    /// What this deployment means for a DUT that boots this way.
    fn plan(&self, deployment: &Deployment, dut: &Dut) -> BootPlan;
}

/// The names under which the job's own files are always there, whatever the method: by HTTP, and by TFTP for firmware that has no
/// other.
pub const KERNEL: &str = "/_/job/kernel";
/// The initial RAM disks joined, and each below it by its index.
pub const INITRAMFS: &str = "/_/job/initramfs";
/// The device trees joined, and each below it by its index.
pub const DTB: &str = "/_/job/dtb";

/// For a deployment without a kernel: no boot file, so that the firmware goes on to its next boot device.
fn nothing_to_boot(deployment: &Deployment) -> BootPlan {
    BootPlan { artifacts: storage(deployment), dhcp: BootOffer::default(), hand_over: None }
}

/// A plan of `deployment` that offers its files by `protocols`, with what the method makes itself.
fn plan_of(deployment: &Deployment, protocols: &[Protocol], own: Vec<Planned>, rules: Vec<BootRule>) -> BootPlan {
    let mut artifacts = storage(deployment);
    artifacts.extend(own);
    artifacts.extend(protocols.iter().flat_map(|protocol| job_files(deployment, *protocol)));
    BootPlan { artifacts, dhcp: BootOffer { rules, extras: Vec::new() }, hand_over: None }
}

/// Kernel, initial RAM disks and device trees under their lasting names.
fn job_files(deployment: &Deployment, protocol: Protocol) -> Vec<Planned> {
    let kernel = deployment.kernel.iter().map(|kernel| generated(protocol, KERNEL, one(&kernel.artifact)));
    let parts = [(INITRAMFS, archives(&deployment.initramfs)), (DTB, joined(&deployment.dtb))];
    let lists = parts.into_iter().zip([&deployment.initramfs, &deployment.dtb]);
    kernel.chain(lists.flat_map(|((name, whole), list)| parts_of(protocol, name, whole, list))).collect()
}

/// The list as a whole under `name`, and each part under `name/<index>`.
fn parts_of(protocol: Protocol, name: &str, whole: Source, list: &[Artifact]) -> Vec<Planned> {
    if list.is_empty() {
        return Vec::new();
    }
    let whole = generated(protocol, name, whole);
    let part = |(index, artifact): (usize, &Artifact)| generated(protocol, &format!("{name}/{index}"), one(artifact));
    std::iter::once(whole).chain(list.iter().enumerate().map(part)).collect()
}

/// Initial RAM disks as one file.
fn archives(list: &[Artifact]) -> Source {
    match list {
        [artifact] => one(artifact),
        _ => Source::Archives(list.to_vec()),
    }
}

/// Device trees as one file.
fn joined(list: &[Artifact]) -> Source {
    Source::Artifacts(list.to_vec())
}

fn one(artifact: &Artifact) -> Source {
    Source::Artifacts(vec![artifact.clone()])
}

fn generated(protocol: Protocol, name: &str, source: Source) -> Planned {
    Planned {
        protocol,
        name: Name::Exact(name.to_owned()),
        source,
        exposure: Exposure::default(),
        origin: Origin::Generated,
    }
}

/// A rule that answers every client with this boot file.
fn always(bootfile: &str) -> BootRule {
    BootRule { bootfile: bootfile.to_owned(), ..BootRule::default() }
}

/// The command line in one line: what ends a line elsewhere is a space to the kernel.
fn one_line(deployment: &Deployment) -> String {
    deployment.cmdline_text().chars().map(|character| if character.is_control() { ' ' } else { character }).collect()
}

/// The job's own HTTP and TFTP entries, the same for every boot method.
fn storage(deployment: &Deployment) -> Vec<Planned> {
    let entry = |protocol, artifact: &StorageArtifact| {
        let lifetime = &artifact.lifetime;
        let (port, transport) = doors::of(artifact.expose.as_ref());
        Planned {
            protocol,
            name: name_of(&artifact.path),
            source: Source::Artifacts(vec![artifact.artifact.clone()]),
            exposure: Exposure {
                access_count: lifetime.access_count,
                first_read: lifetime.first_read,
                duration: lifetime.duration,
                port,
                transport,
            },
            origin: Origin::Job,
        }
    };
    let http = deployment.storage.http.iter().map(|artifact| entry(Protocol::Http, artifact));
    let tftp = deployment.storage.tftp.iter().map(|artifact| entry(Protocol::Tftp, artifact));
    http.chain(tftp).collect()
}

/// A job's path is looked up as it stands first, then as a pattern for the whole name.
fn name_of(path: &PathMatch) -> Name {
    let path = path.clone();
    Name::Matching(path.as_str().to_owned(), std::sync::Arc::new(move |name| path.matches(name).is_some()))
}

#[cfg(test)]
mod tests;
