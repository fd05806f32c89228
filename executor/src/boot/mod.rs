//! How a deployment becomes what a DUT asks for: a plan is data, tested as golden text; nothing here opens a socket or a file.
//!
//! ```text
//!  Deployment + Place ── BootMethod::plan ──► BootPlan { artifacts by protocol and name, DHCP rules, scripts }
//! ```

use std::net::Ipv4Addr;
use std::path::PathBuf;

use gateway::dhcp::BootOffer;
use gateway::namespace::{Exposure, Name, Origin, Protocol};
use job_schema::job::{Artifact, Deployment, PathMatch, StorageArtifact};

pub mod ipxe;

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
    /// A firmware image of the system's packages.
    Firmware(PathBuf),
    /// Artifacts of the job, one after the other.
    Artifacts(Vec<Artifact>),
}

/// A way to boot.
pub trait BootMethod: Send + Sync {
    /// What this deployment means for a DUT that boots this way.
    fn plan(&self, deployment: &Deployment, place: Place) -> BootPlan;
}

/// The job's own HTTP and TFTP entries, the same for every boot method.
fn storage(deployment: &Deployment) -> Vec<Planned> {
    let entry = |protocol, artifact: &StorageArtifact| Planned {
        protocol,
        name: name_of(&artifact.path),
        source: Source::Artifacts(vec![artifact.artifact.clone()]),
        exposure: Exposure {
            access_count: artifact.lifetime.access_count,
            first_read: artifact.lifetime.first_read,
            duration: artifact.lifetime.duration,
        },
        origin: Origin::Job,
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
