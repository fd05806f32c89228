//! Hosts: machines that run commands and keep files for jobs and people, reached by SSH. ◆

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::PrivateKey;

use crate::lease::rows::{Access, PlacementPolicy, Pool};
use crate::ssh::HostKey;

/// A host, or a kind of hosts that are made when somebody asks.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Its name; of those that are made, `<name>-<k>`, or `<name>` where there may only be one.
    pub name: String,
    /// `<farm>-<name>`.
    pub full_name: String,
    /// What is asked for, its `os:` and `arch:` included.
    pub tags: Vec<String>,
    /// A note of the admin's.
    pub comment: Option<String>,
    /// How it is logged in to.
    pub ssh: SshConfig,
    /// Where its working copies are: absolute, or beneath the user's home.
    pub folder: String,
    /// How many leases may hold it at a time.
    pub seats: u32,
    /// Who may lease it.
    pub access: Access,
    /// Which of several free ones is taken.
    pub policy: PlacementPolicy,
    /// Where it comes from.
    pub from: HostFrom,
}

/// How a machine is logged in to.
#[derive(Clone, Debug)]
pub struct SshConfig {
    /// Who we are there.
    pub user: String,
    /// The port of its SSH server.
    pub port: u16,
    /// Our key; `None`: the farm's own.
    pub key: Option<Arc<PrivateKey>>,
    /// The keys that it may show; empty: the one that the farm made for it.
    pub host_keys: Vec<HostKey>,
}

/// Where a host comes from.
#[derive(Clone, Debug)]
pub enum HostFrom {
    /// It is there.
    Inventory {
        /// Its name or address.
        address: String,
    },
    /// It is made.
    Provider(Box<MadeConfig>),
}

/// Hosts that are made.
#[derive(Clone, Debug)]
pub struct MadeConfig {
    /// By whom.
    pub provider: ProviderConfig,
    /// The most that exist at a time.
    pub limit: u32,
    /// How many are kept, wanted or not.
    pub preallocated: u32,
    /// The limit that it shares with others.
    pub pool: Option<Pool>,
    /// How long one is kept idle.
    pub idle: Duration,
    /// How long one must have been idle before it makes room for another.
    pub idle_min: Duration,
}

/// Who makes hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProviderConfig {
    /// A cloud with the EC2 API.
    Ec2(Ec2Config),
    /// QEMU on this machine.
    Qemu(QemuHostConfig),
}

/// Virtual machines of this machine, and what they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuHostConfig {
    /// The image of their disk, which none of them changes.
    pub disk: Option<PathBuf>,
    /// A kernel that they boot; the disk's own boot loader when absent.
    pub kernel: Option<PathBuf>,
    /// The kernel's first file system.
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
    /// The size of their disk in MiB; the image's when absent.
    pub disk_mib: Option<u32>,
    /// What they reach.
    pub outside: Outside,
    /// The port of their SSH server.
    pub ssh_port: u16,
}

/// What a virtual machine reaches besides us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// Whatever this machine reaches.
    Open,
    /// Nothing.
    Closed,
}

/// A cloud with the EC2 API, and what is asked of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ec2Config {
    /// Where its API is.
    pub endpoint: String,
    /// Its region, which requests are signed for.
    pub region: String,
    /// The file with `access_key_id` and `secret_access_key`; `None`: the environment's.
    pub credentials: Option<PathBuf>,
    /// The image.
    pub image: String,
    /// The size, such as `t3.micro`.
    pub instance_type: String,
    /// The subnet; the account's default when absent.
    pub subnet: Option<String>,
    /// Security groups by id.
    pub security_groups: Vec<String>,
    /// Which of its addresses is used.
    pub reach: Reach,
}

/// Which of an instance's addresses is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The one inside the cloud's network.
    Private,
    /// The one that the world sees.
    Public,
}

impl ProviderConfig {
    /// As the farm file calls it.
    pub fn name(&self) -> &'static str {
        match self {
            ProviderConfig::Ec2(_) => "ec2",
            ProviderConfig::Qemu(_) => "qemu",
        }
    }
}

impl HostConfig {
    /// The names that hosts of this entry may have.
    pub fn members(&self) -> impl Iterator<Item = String> {
        let limit = self.limit();
        (1..=limit).map(move |number| if limit == 1 { self.name.clone() } else { format!("{}-{number}", self.name) })
    }

    /// The most of them that exist at a time.
    pub fn limit(&self) -> u32 {
        match &self.from {
            HostFrom::Inventory { .. } => 1,
            HostFrom::Provider(made) => made.limit,
        }
    }
}
