//! The farm file: which machines there are, on which network, and who may talk to us where.
//!
//! ```text
//!  farm.yml ── job_schema::load_checked ──► FarmFile (as written) ── checks across fields ──► FarmConfig (cannot be wrong)
//!                                              └── every mistake of the file at once, as for a job ──► Problems
//! ```

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use gateway::content::stores::{Object, Store};
use gateway::dhcp::Role;
use gateway::tftp::Engine;

use crate::blueprint::driver::Chosen;
use crate::blueprint::power::Outlet;
use crate::boot::database::Database;
use crate::boot::settings::Settings;
use crate::console::Limits;
use crate::farm::WhenBusy;
use crate::lease::rows::{Access, Patience};
use crate::outlets::Policy;

mod callers;
mod discovery;
mod file;
pub mod forgejo;
pub mod gitlab;
pub mod hosts;
mod on_demand;
mod proxy;

pub use callers::{IssuerConfig, OTHERS, ProjectConfig, Refs, RuleConfig, TlsConfig};
pub use discovery::{DiscoveryConfig, SPARES, SpareConfig, Unknown};
pub use file::{NAMES_OF_TEMPLATES, parse, parse_and, parse_pdu, schema};
pub use on_demand::OnDemandConfig;
pub use proxy::{DownloadsConfig, ProxyConfig};

/// A whole farm, checked.
#[derive(Clone, Debug)]
pub struct FarmConfig {
    /// The farm's name; every DUT has the tag `farm:<name>`.
    pub name: String,
    /// The network that the DUTs are on.
    pub network: NetworkConfig,
    /// Whether the farm gives addresses, and which to machines that the farm file does not name.
    pub dhcp: Role,
    /// What moves the blocks of TFTP.
    pub tftp_engine: Engine,
    /// The operator's listener.
    pub api: SocketAddr,
    /// Whether that speaks TLS.
    pub tls: TlsConfig,
    /// Forges whose id_tokens are believed.
    pub issuers: Vec<IssuerConfig>,
    /// What each project may use.
    pub projects: BTreeMap<String, ProjectConfig>,
    /// Where DUTs may connect to, if their jobs ask for it.
    pub proxy: ProxyConfig,
    /// The registries whose container images DUTs have from the farm, if it has any.
    pub registry: Option<gateway::registry::Settings>,
    /// From where it fetches for those who submit.
    pub downloads: DownloadsConfig,
    /// Where outlets are served to lease holders alone, as pdudaemon serves them.
    pub power_listener: Option<SocketAddr>,
    /// How jobs are taken from CI-tron's clients.
    pub submission: SubmissionConfig,
    /// Where jobs and logs are kept.
    pub state: PathBuf,
    /// How much of what each console says is kept, and for how long.
    pub console_log: Limits,
    /// How much jobs may keep in their buckets, and for how long.
    pub buckets: BucketLimits,
    /// Buckets that outlive jobs, and whose keys let a job use them.
    pub bucket_groups: Vec<BucketGroup>,
    /// Where `s3://` URLs lead.
    pub stores: Vec<Store>,
    /// Below what the logs and buckets of ended jobs are copied to.
    pub archive: Option<Object>,
    /// What a job may use as `{{ name }}` besides what the farm knows.
    pub job_variables: BTreeMap<String, String>,
    /// The machines that are there.
    pub duts: Vec<DutConfig>,
    /// The machines that are made when jobs ask for them.
    pub on_demand: Vec<OnDemandConfig>,
    /// Power units that machines name.
    pub pdus: Vec<PduConfig>,
    /// Consoles that machines name, or that nobody does yet.
    pub consoles: Vec<LineConfig>,
    /// What becomes of machines that the farm file does not name.
    pub discovery: DiscoveryConfig,
    /// Virtual machines that are no DUTs until they register.
    pub spares: Vec<SpareConfig>,
    /// What machines and jobs need besides.
    pub gear: Vec<GearConfig>,
    /// Machines that run commands and keep files.
    pub hosts: Vec<hosts::HostConfig>,
    /// GitLab instances whose jobs the farm takes.
    pub gitlab: Vec<gitlab::GitlabConfig>,
    /// Forgejo and Gitea instances whose jobs the farm takes.
    pub forgejo: Vec<forgejo::ForgejoConfig>,
    /// How machines boot that do not say it themselves.
    pub boots: Option<Database>,
    /// How machines show that they are well.
    pub training: TrainingConfig,
    /// How many failures in a row are too many.
    pub patience: Patience,
}

/// How much jobs may keep in their buckets, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketLimits {
    /// Of one bucket.
    pub bytes_max: u64,
    /// After the job, where it does not say it.
    pub expiration: Duration,
    /// The longest that a job may say.
    pub expiration_max: Duration,
}

/// Buckets that outlive jobs, for the jobs of those who have a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketGroup {
    /// What it is asked for by.
    pub name: String,
    /// Its buckets.
    pub buckets: Vec<String>,
    /// Who may have his jobs use them, and use them himself.
    pub members: Vec<BucketMember>,
}

/// A key of a group.
#[derive(Clone, PartialEq, Eq)]
pub struct BucketMember {
    /// The name of the key.
    pub access_key: String,
    /// What requests are signed with.
    pub secret_key: String,
}

impl std::fmt::Debug for BucketMember {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the key {}", self.access_key)
    }
}

impl Default for BucketLimits {
    /// 8 GiB: results and traces of a test run, with room, and ten such jobs fit on a small farm's disk. A day: who submitted has read
    /// his results by then, also when somebody had to look at them first. 30 days: GitLab keeps artifacts for as long by default, and what has to
    /// stay longer is copied to a store (`archive`).
    fn default() -> Self {
        let day = Duration::from_secs(86_400);
        BucketLimits { bytes_max: 8 << 30, expiration: day, expiration_max: 30 * day }
    }
}

impl FarmConfig {
    /// What a project may use: as its own entry says, else as that of the others does.
    pub fn project(&self, name: &str) -> Option<&ProjectConfig> {
        self.projects.get(name).or_else(|| self.projects.get(OTHERS))
    }
}

/// How machines show that they are well before they take jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainingConfig {
    /// Boots of one training.
    pub boots: u32,
    /// How many of them must pass.
    pub qualifying: u32,
    /// The job that is run until it passes, before the boots.
    pub register: Option<Template>,
    /// The job of each boot, and of a quick check.
    pub boot_loop: Template,
    /// How long a machine rests after a training that failed.
    pub pause: Duration,
}

impl Default for TrainingConfig {
    /// Five boots find a bad cable, and take minutes; CI-tron's hundred take a night. The pause is CI-tron's
    /// `SERGENT_HARTMAN_REGISTRATION_RETRIAL_DELAY`.
    fn default() -> TrainingConfig {
        let (boots, pause) = (5, Duration::from_secs(120));
        TrainingConfig { boots, qualifying: boots, register: None, boot_loop: Template::default(), pause }
    }
}

/// A health job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// What problems call it.
    pub name: String,
    /// The job description.
    pub text: String,
}

impl Default for Template {
    /// Boots Linux, which says hello and switches off.
    fn default() -> Template {
        let text = include_str!("../../fixtures/jobs/good/quick-check.yml");
        Template { name: "quick-check.yml".into(), text: text.into() }
    }
}

/// What a machine does before it takes its first job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BeforeService {
    /// Nothing.
    #[default]
    Nothing,
    /// It trains; also when it has failed a quick check.
    Training,
    /// It shows by one health job that it is well, and trains when it is not.
    QuickCheck,
    /// Nothing: it is out of service until somebody activates it, and trains when its quick check fails then.
    Retired,
}

impl BeforeService {
    /// Whether such a machine is one that trains.
    pub fn trains(self) -> bool {
        self != BeforeService::Nothing
    }
}

/// How jobs are taken from CI-tron's clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubmissionConfig {
    /// What a client that came over the upgrade gets while every fitting DUT is busy; one that is called back always gets 409.
    pub upgraded_when_busy: WhenBusy,
    /// From where a job description may be fetched.
    pub job_urls: JobUrls,
}

impl Default for SubmissionConfig {
    fn default() -> Self {
        SubmissionConfig { upgraded_when_busy: WhenBusy::Queue, job_urls: JobUrls::HttpsOnly }
    }
}

/// From where a `job_desc_url` may be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobUrls {
    /// `https://` only, redirects included.
    HttpsOnly,
    /// `http://` too, for a farm with its own network.
    HttpToo,
}

/// The gateway's address on [`NetworkConfig::Loopback`], where DUTs have any other of 127.0.0.0/8. Not 127.0.0.1: who hears a request of
/// the host's own programs must not take it for a DUT's.
pub const LOOPBACK_GATEWAY: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 254);

/// Which network the DUTs are on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkConfig {
    /// A bridge in a network namespace of our own, for virtual DUTs.
    Private {
        /// The gateway's address on it.
        address: Ipv4Addr,
        /// Length of the network's prefix in bits.
        prefix_length: u8,
    },
    /// A link of this host that leads to the DUTs.
    Interface {
        /// The link's name.
        name: String,
        /// The gateway's address on it.
        address: Ipv4Addr,
        /// Length of the network's prefix in bits.
        prefix_length: u8,
    },
    /// The host's loopback, ephemeral ports: simulated DUTs where no namespace may be made.
    Loopback,
}

/// One machine.
#[derive(Clone, Debug, PartialEq)]
pub struct DutConfig {
    /// What jobs name it by; CI-tron's farms use the MAC.
    pub id: String,
    /// `<farm>-<base name>-<n>` where the farm file gives none.
    pub full_name: String,
    /// CI-tron's `base_name`.
    pub base_name: String,
    /// What jobs ask for.
    pub tags: Vec<String>,
    /// The MAC that it boots with, lower case with colons.
    pub mac: String,
    /// Its address on the farm's network.
    pub address: Ipv4Addr,
    /// A note of the admin's.
    pub comment: Option<String>,
    /// Who may lease it.
    pub access: Access,
    /// Gear that goes with it, by name.
    pub needs: Vec<String>,
    /// How its power and console are reached.
    pub machine: MachineConfig,
    /// The least time without power, where it is not its unit's.
    pub off_time: Option<Duration>,
    /// How it boots, where the farm file says it; else the boots database does.
    pub boot: Option<Settings>,
    /// What it does before it takes jobs.
    pub before_service: BeforeService,
}

/// A named thing that several machines or jobs may need: a meter, a licence, a room's silence.
#[derive(Clone, Debug, PartialEq)]
pub struct GearConfig {
    /// What it is needed by.
    pub name: String,
    /// `<farm>-<name>`.
    pub full_name: String,
    /// What jobs ask for.
    pub tags: Vec<String>,
    /// A note of the admin's.
    #[allow(dead_code, reason = "for people who read the file, until a page shows gear")]
    pub comment: Option<String>,
    /// How many leases may hold it at a time.
    pub seats: u32,
    /// Who may lease it.
    pub access: Access,
}

/// The kinds of machine.
#[derive(Clone, Debug, PartialEq)]
pub enum MachineConfig {
    /// A QEMU process.
    Qemu(QemuConfig),
    /// The PXE client of this repository.
    Simulated(SimulatedConfig),
    /// A machine that is there whether we run or not.
    Hardware(HardwareConfig),
}

/// A power unit that several machines hang on.
#[derive(Clone, Debug, PartialEq)]
pub struct PduConfig {
    /// What machines name it by.
    pub name: String,
    /// What it is.
    pub unit: Chosen,
    /// How it is treated.
    pub policy: Policy,
    /// Outlets that nobody may switch.
    pub reserved: Vec<Outlet>,
}

/// A console that is there before it is known whose it is: a serial adapter, a console server's port.
#[derive(Clone, Debug, PartialEq)]
pub struct LineConfig {
    /// What machines name it by.
    pub name: String,
    /// How it is reached.
    pub way: Chosen,
}

/// A machine that is not ours: our end is not its end.
#[derive(Clone, Debug, PartialEq)]
pub struct HardwareConfig {
    /// Where its power comes from.
    pub power: PowerConfig,
    /// Where its console is.
    pub console: ConsoleConfig,
}

/// Where a machine's power comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct PowerConfig {
    /// The unit.
    pub unit: Whose,
    /// The outlet of the unit; the machine's full name where a unit of its own has but one.
    pub outlet: Outlet,
}

/// Where a machine's console is.
pub type ConsoleConfig = Whose;

/// A driver of the machine's own, or one that the farm file names.
#[derive(Clone, Debug, PartialEq)]
pub enum Whose {
    /// An entry of `pdus` or `consoles`.
    Named(String),
    /// Nobody else's.
    Own(Chosen),
}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuConfig {
    /// What it boots with.
    pub firmware: Firmware,
    /// Guest memory in MiB.
    pub memory_mib: u32,
}

/// The firmware of a virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS with the network card's iPXE ROM.
    Bios,
    /// OVMF with the network card's iPXE ROM.
    UefiIpxe,
    /// OVMF's own PXE client, no ROM: it chainloads `snponly.efi` over TFTP.
    UefiPxe,
    /// OVMF's own HTTP boot client, no ROM and no PXE.
    UefiHttp,
    /// U-Boot on an arm64 machine.
    UBootArm64,
}

/// A machine that only exists as a client of our servers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SimulatedConfig {
    /// What it asks the network for when it starts.
    pub firmware: SimulatedFirmware,
    /// What it says on its console after it fetched its kernel (`fixtures/consoles/README.md`); `None`: a built-in script.
    pub console: Option<PathBuf>,
    /// Its faults, by the boot they happen in.
    pub misbehave: Vec<Fault>,
}

/// The firmware that a simulated DUT plays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SimulatedFirmware {
    /// A network card's iPXE ROM under a BIOS: asks for a script at once.
    #[default]
    Ipxe,
    /// A BIOS network card's own PXE client: chainloads `undionly.kpxe`, then goes on as iPXE.
    PlainBios,
    /// UEFI's own PXE client: chainloads `snponly.efi` after a size probe, then goes on as iPXE.
    PlainUefi,
    /// A loader that waits at its address to be given a boot image by fastboot over TCP.
    Fastboot,
}

/// A fault and when it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What goes wrong.
    pub what: Misbehaviour,
    /// Only in this boot, counted from 1 since somebody began to use it; `None`: in every boot.
    pub boot: Option<u32>,
    /// How long it lasts, for those that last; `None`: for ever.
    pub lasts: Option<Duration>,
}

/// Faults of a simulated DUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misbehaviour {
    /// Says nothing and does nothing after it fetched its kernel.
    FallSilent,
    /// Never sends a DHCP request.
    NoDhcp,
    /// Plays its console script again and again, never ending.
    Loop,
    /// Aborts its first transfer in the middle (TFTP by an ERROR, HTTP by a reset), then starts it over.
    AbortTransfer,
    /// Falls silent in the middle of its first TFTP transfer, then asks again from the same source port.
    SamePort,
    /// Never fetches its initramfs: stops where the boot script asks for it.
    NoInitramfs,
    /// Its outlet says that it went off and stays on, as a relay does whose contacts are welded.
    OutletLies,
    /// Its outlet answers late, whatever it is asked.
    OutletSlow,
    /// Says 10 MB of lines a second while its kernel runs, besides what its console script says.
    ConsoleFloods,
    /// Its console's stream ends when its kernel starts and cannot be opened again for a while; what it says meanwhile is lost.
    ConsoleAway,
    /// Goes on talking after its console script's end, and heeds nothing but its power.
    TalksOn,
    /// Its fastboot loader answers what means nothing.
    LoaderBabbles,
    /// Its fastboot loader talks for ever, and never answers.
    LoaderChatters,
    /// Its fastboot loader hangs up in the middle of the boot image.
    LoaderHangsUp,
    /// Its fastboot loader takes no more in the middle of the boot image.
    LoaderStalls,
}

impl Misbehaviour {
    /// How long the fault lasts when the farm file does not say.
    pub(crate) fn usually_lasts(self) -> Option<Duration> {
        match self {
            Misbehaviour::OutletSlow => Some(Duration::from_secs(30)),
            Misbehaviour::ConsoleAway => Some(Duration::from_secs(60)),
            _ => None,
        }
    }

    /// Whether it is a fault with a length.
    pub(crate) fn has_a_length(self) -> bool {
        matches!(
            self,
            Misbehaviour::OutletLies
                | Misbehaviour::OutletSlow
                | Misbehaviour::ConsoleFloods
                | Misbehaviour::ConsoleAway
        )
    }
}
