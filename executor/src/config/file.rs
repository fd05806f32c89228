//! The farm file as it is written, and the way from there to a [`FarmConfig`].

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use gateway::dhcp::Role;
use gateway::tftp::Engine;
use job_schema::problem::{Problems, quoted};
use job_schema::{DutId, Findings, field_of, load_checked};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    BeforeService, DutConfig, FarmConfig, Fault, Firmware, GearConfig, JobUrls, LOOPBACK_GATEWAY, MachineConfig,
    Misbehaviour, NetworkConfig, OnDemandConfig, PduConfig, QemuConfig, SimulatedConfig, SimulatedFirmware,
    SubmissionConfig,
};
use crate::blueprint::dut::{console_name, power_name};
use crate::boot::database::Database;
use crate::boot::settings::Settings;
use crate::farm::WhenBusy;
use crate::lease::rows::{Access, PlacementPolicy};

mod callers;
mod console_log;
mod discovery;
mod forgejo;
mod gitlab;
mod hardware;
mod hosts;
mod on_demand;
mod proxy;
mod registry;
mod s3;
mod training;

use callers::{CallersKeys, ProjectKeys, TlsKey};
use console_log::ConsoleLogKeys;
use discovery::{DiscoveryKeys, SpareKeys};
use forgejo::ForgejoKeys;
use gitlab::{GitlabKeys, PerKey};
use hardware::{HardwareKeys, LineKeys, PduKeys, Shared};
use hosts::HostKeys;
use on_demand::{AccessKey, GearKeys, OnDemandKeys, PoolKeys};
use proxy::{DownloadsKeys, ProxyKeys};
use registry::RegistryKeys;
use s3::S3Keys;
use training::{HealthKeys, TrainingKeys};

/// A farm of machines under test.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(title = "Farm file", extend("required" = ["name", "network", "duts"], "x-lenient" = true))]
struct FarmFile {
    /// The farm's name: the first part of its DUTs' full names, and their tag `farm:<name>`.
    #[schemars(extend("x-example" = "name: lab-1", "x-form" = "export-name"))]
    name: String,
    /// The network that the DUTs are on.
    #[schemars(extend("x-example" = "network: {private: {address: 10.77.0.1/24}}"))]
    network: NetworkKeys,
    /// Addresses for machines that this file does not name.
    dhcp: DhcpKeys,
    /// How files are served over TFTP.
    tftp: TftpKeys,
    /// Where operators and runners reach us.
    listen: ListenKeys,
    /// Folder for jobs and logs; a folder of the user's own when absent.
    state: Option<String>,
    /// What the consoles say, on disk.
    console_log: ConsoleLogKeys,
    /// The buckets of jobs.
    s3: S3Keys,
    /// Values that job templates may use as `{{ name }}`.
    variables: BTreeMap<String, String>,
    /// The machines that are there.
    #[schemars(extend("x-example" = "duts: []"))]
    duts: Vec<DutKeys>,
    /// Machines that are made when jobs ask for them.
    on_demand: Vec<OnDemandKeys>,
    /// Limits that several entries of `on_demand` share, by name.
    pools: BTreeMap<String, PoolKeys>,
    /// Power units that several machines hang on.
    pdus: Vec<PduKeys>,
    /// Serial lines, whether it is known whose they are or not.
    consoles: Vec<LineKeys>,
    /// What becomes of machines that this file does not name.
    discovery: DiscoveryKeys,
    /// Virtual machines that are no DUTs until they register.
    spares: Vec<SpareKeys>,
    /// Named things that machines and jobs need.
    gear: Vec<GearKeys>,
    /// Machines that run commands and keep files, reached by SSH.
    hosts: Vec<HostKeys>,
    /// GitLab instances whose jobs the farm takes.
    gitlab: Vec<GitlabKeys>,
    /// Forgejo and Gitea instances whose jobs the farm takes.
    forgejo: Vec<ForgejoKeys>,
    /// How machines show that they are well before they take jobs.
    training: TrainingKeys,
    /// How many failures in a row are too many.
    health: HealthKeys,
    /// Who may call from elsewhere, besides who has a token.
    callers: CallersKeys,
    /// What each project may use, by its name; `others` for those that are not here.
    projects: BTreeMap<String, ProjectKeys>,
    /// Where DUTs may connect to, if their jobs ask for it.
    proxy: ProxyKeys,
    /// Registries whose container images DUTs have from the farm.
    registry: RegistryKeys,
    /// From where the server fetches what jobs name by URL.
    downloads: DownloadsKeys,
    /// The boots database, relative to this file; all machines boot by iPXE when absent.
    boots: Option<String>,
}

/// Exactly one of the kinds of network.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("x-exactly-one" = ["private", "interface", "loopback"]))]
struct NetworkKeys {
    /// A bridge in a network namespace of our own, for virtual DUTs.
    private: Option<PrivateKeys>,
    /// A link of this host that leads to the DUTs, and nowhere else.
    interface: Option<InterfaceKeys>,
    /// The host's loopback, for simulated DUTs where no namespace may be made.
    loopback: Option<LoopbackKeys>,
}

/// A private network.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["address"]))]
struct PrivateKeys {
    /// The gateway's address and the prefix, such as `10.77.0.1/24`.
    #[schemars(extend("x-form" = "network"))]
    address: String,
}

/// A network of this host's.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["name", "address"]))]
struct InterfaceKeys {
    /// The link's name.
    name: String,
    /// The gateway's address on it and the prefix, such as `10.0.0.1/24`.
    #[schemars(extend("x-form" = "network"))]
    address: String,
}

/// The loopback needs no settings.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct LoopbackKeys {}

/// What the farm is to the DHCP of its network.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct DhcpKeys {
    /// Whether it gives addresses; `server` when absent.
    mode: Option<DhcpModeKey>,
    /// The first and the last one; machines without an entry get no address when absent.
    #[schemars(with = "Vec<AddressForm>")]
    range: Vec<String>,
}

/// Whether the farm gives addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum DhcpModeKey {
    /// It is its network's only DHCP server.
    Server,
    /// Another server gives them; this one only says what to boot.
    Proxy,
}

/// The schema of an IPv4 address inside a list.
struct AddressForm;

impl JsonSchema for AddressForm {
    fn schema_name() -> Cow<'static, str> {
        "Address".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-form": "address" })
    }
}

/// TFTP.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct TftpKeys {
    /// What moves the blocks; `own` when absent.
    engine: Option<TftpEngineKey>,
}

/// An engine for TFTP.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum TftpEngineKey {
    /// The farm's own.
    Own,
    /// The crate async-tftp.
    AsyncTftp,
}

/// Listeners for operators and runners.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct ListenKeys {
    /// Address and port of the API; `127.0.0.1:8420` when absent.
    #[schemars(extend("x-form" = "endpoint"))]
    api: Option<String>,
    /// How it speaks there; in clear on the loopback and `own` elsewhere when absent.
    tls: Option<TlsKey>,
    /// Names under which it is known, for its certificate by the farm's own authority.
    names: Vec<String>,
    /// Its certificate with what is between it and its authority, in PEM, relative to this file.
    certificate: Option<String>,
    /// The private key of that, in PEM, relative to this file.
    key: Option<String>,
    /// Address and port where whoever holds a lease switches its outlet as with pdudaemon, whose clients ask at port 16421.
    #[schemars(extend("x-form" = "endpoint"))]
    power: Option<String>,
    /// What CI-tron's clients that can wait (0.2.0 and newer) get while every fitting DUT is busy; `queue` when absent.
    when_busy: Option<WhenBusyKey>,
    /// From where such a client may have its job fetched; `https` when absent.
    job_urls: Option<JobUrlsKey>,
}

/// What a client gets from a busy farm.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum WhenBusyKey {
    /// A place in the queue.
    Queue,
    /// Status 409, as CI-tron's own server has it.
    Refuse,
}

/// Schemes of job URLs.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum JobUrlsKey {
    /// `https://` only.
    Https,
    /// `http://` too.
    Http,
}

/// One machine.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["mac", "address", "machine"], "x-lenient" = true))]
struct DutKeys {
    /// What jobs name it by; its MAC when absent.
    id: Option<String>,
    /// The middle of its full name, `<farm>-<base name>-<n>`; `dut` when absent.
    base_name: Option<String>,
    /// Its full name, when it is not the farm's to make.
    full_name: Option<String>,
    /// The MAC it boots with.
    #[schemars(extend("x-form" = "mac"))]
    mac: String,
    /// Its address on the farm's network.
    #[schemars(extend("x-form" = "address"))]
    address: String,
    /// What jobs ask for.
    tags: Vec<String>,
    /// A note for people.
    comment: Option<String>,
    /// Who may lease it; `everyone` when absent.
    access: Option<AccessKey>,
    /// Gear that goes with it, by name.
    needs: Vec<String>,
    /// The least time without power; as its unit has it when absent.
    #[schemars(with = "Option<LengthForm>")]
    off_time: Option<f64>,
    /// What it is made of.
    machine: MachineKeys,
    /// How it boots; as the boots database says when absent.
    boot: Option<Settings>,
}

/// Exactly one of the kinds of machine.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("x-exactly-one" = ["qemu", "simulated", "hardware"]))]
struct MachineKeys {
    /// A QEMU process on the private network.
    qemu: Option<QemuKeys>,
    /// The PXE client of this program.
    simulated: Option<SimulatedKeys>,
    /// A machine that is there whether this program runs or not.
    hardware: Option<HardwareKeys>,
}

/// A virtual machine.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct QemuKeys {
    /// `bios` when absent.
    firmware: Option<FirmwareKey>,
    /// Guest memory in MiB; 256 when absent.
    #[schemars(range(min = 16, max = 65536))]
    memory_mib: Option<u32>,
}

/// Firmware of a virtual machine.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum FirmwareKey {
    /// SeaBIOS and the network card's iPXE.
    Bios,
    /// OVMF and the network card's iPXE.
    UefiIpxe,
    /// OVMF's own PXE client.
    UefiPxe,
    /// OVMF's own HTTP boot client.
    UefiHttp,
    /// U-Boot on an arm64 machine.
    #[serde(rename = "u-boot-arm64")]
    UBootArm64,
}

/// A simulated machine.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default)]
struct SimulatedKeys {
    /// What it asks the network for first; `ipxe` when absent.
    firmware: Option<SimulatedFirmwareKey>,
    /// Its console script, relative to the farm file; a small Linux when absent.
    console: Option<String>,
    /// Its faults.
    misbehave: Vec<FaultKeys>,
}

/// Firmware of a simulated machine.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum SimulatedFirmwareKey {
    /// A network card's iPXE.
    Ipxe,
    /// A BIOS network card's own PXE client.
    PlainBios,
    /// UEFI's own PXE client.
    PlainUefi,
    /// A fastboot loader on TCP.
    Fastboot,
}

/// A fault, and in which boot.
#[derive(Debug, Deserialize, JsonSchema)]
struct FaultKeys {
    /// What goes wrong.
    what: MisbehaviourKey,
    /// Only in this boot, from 1; in every boot when absent.
    #[schemars(range(min = 1))]
    boot: Option<u32>,
    /// How long `outlet-lies`, `outlet-slow`, `console-floods` or `console-away` lasts.
    #[serde(rename = "for")]
    #[schemars(with = "Option<LengthForm>")]
    for_s: Option<f64>,
}

/// The schema of a length of time, in words.
struct LengthForm;

impl JsonSchema for LengthForm {
    fn schema_name() -> Cow<'static, str> {
        "Length".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-form": "duration", "x-mapping": { "type": "string" } })
    }
}

/// Faults of a simulated machine.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum MisbehaviourKey {
    /// Says nothing after it fetched its kernel.
    FallSilent,
    /// Never sends a DHCP request.
    NoDhcp,
    /// Never ends.
    Loop,
    /// Aborts its first transfer.
    AbortTransfer,
    /// Comes back on the same source port in the middle of a transfer.
    SamePort,
    /// Never fetches its initramfs.
    NoInitramfs,
    /// Its outlet says off and stays on.
    OutletLies,
    /// Its outlet answers late.
    OutletSlow,
    /// Says 10 MB a second.
    ConsoleFloods,
    /// Its console goes away for a while.
    ConsoleAway,
    /// Never stops talking.
    TalksOn,
    /// Its fastboot loader answers nonsense.
    LoaderBabbles,
    /// Its fastboot loader talks, and never answers.
    LoaderChatters,
    /// Its fastboot loader hangs up in the middle of the image.
    LoaderHangsUp,
    /// Its fastboot loader stops in the middle of the image.
    LoaderStalls,
}

/// The JSON Schema of the farm file, for `wharf schema farm`.
pub fn schema() -> serde_json::Value {
    job_schema::schema_of::<FarmFile>()
}

/// Reads a farm file. `directory` is where it lies: console scripts are named relative to it.
pub fn parse(source_name: &str, text: &str, directory: &Path) -> Result<FarmConfig, Problems> {
    parse_and(source_name, text, directory, |_, _| {})
}

/// The same. `more`: what whoever reads it knows better than the file, and finds wrong with it beside its own mistakes.
pub fn parse_and(
    source_name: &str,
    text: &str,
    directory: &Path,
    more: impl FnOnce(&mut FarmConfig, &mut Findings),
) -> Result<FarmConfig, Problems> {
    load_checked::<FarmFile, FarmConfig>(source_name, text, |file, findings| {
        let mut config = check(file, findings, directory);
        more(&mut config, findings);
        config
    })
}

/// What every job's templates have by itself; a text of the farm file in its place would break jobs, or be passed over.
pub const NAMES_OF_TEMPLATES: [&str; 16] = [
    "dut",
    "environ",
    "job",
    "job_bucket",
    "job_bucket_access_key",
    "job_bucket_secret_key",
    "local_tty_device",
    "machine",
    "machine_id",
    "machine_tags",
    "minio_url",
    "ready_for_service",
    "registry",
    "role",
    "roles",
    "ssh",
];

fn variables(variables: BTreeMap<String, String>, findings: &mut Findings) -> BTreeMap<String, String> {
    for name in variables.keys().filter(|name| NAMES_OF_TEMPLATES.contains(&name.as_str())) {
        let what = format!("`{name}` is a value of the farm's own in every template");
        findings.tell(&["variables".to_owned(), name.clone()], what, "take another name");
    }
    variables
}

/// A unit that is in no farm file, by the rules of `pdus` there.
pub fn parse_pdu(name: &str, driver: &str, keys: &Map<String, Value>, directory: &Path) -> Result<PduConfig, Problems> {
    // A farm around it, of which nothing is used.
    let unit = json!({ "name": name, driver: keys });
    let farm = json!({ "name": "farm", "network": { "loopback": {} }, "pdus": [unit], "duts": [] });
    let mut config = parse(name, &farm.to_string(), directory)?;
    Ok(config.pdus.remove(0))
}

fn check(file: FarmFile, findings: &mut Findings, directory: &Path) -> FarmConfig {
    let network = network(&file.network);
    let shared = Shared::of(&file, directory, findings);
    let mut inventory = Inventory {
        farm: &file.name,
        network: &network,
        directory,
        before_service: file.training.of_the_file(),
        shared,
        names: HashMap::new(),
        count: HashMap::new(),
    };
    let duts = inventory.duts(&file.duts, findings);
    let gear = inventory.gear(&file.gear, findings);
    let on_demand = inventory.on_demand(&file, findings);
    let hosts = inventory.hosts(&file, findings);
    on_demand::needs(&file, &duts, &on_demand, findings);
    let spares = inventory.spares(&file, findings);
    let members = duts.iter().cloned().chain(on_demand.iter().flat_map(OnDemandConfig::members));
    let Shared { pdus, consoles, .. } = inventory.shared;
    let dhcp = dhcp(&file.dhcp, &network, members, findings);
    let discovery = discovery::discovery(&file.discovery, dhcp, directory, findings);
    let (stores, archive) = file.s3.stores(directory, findings);
    let bucket_groups = file.s3.groups(directory, findings);
    let api = listener("api", file.listen.api.as_ref(), findings).unwrap_or(([127, 0, 0, 1], 8420).into());
    let power_listener = listener("power", file.listen.power.as_ref(), findings);
    let tls = callers::tls(&file.listen, directory, findings);
    let proxy = file.proxy.checked(findings);
    FarmConfig {
        state: file.state.map_or_else(|| default_state(&file.name), PathBuf::from),
        network,
        dhcp,
        tftp_engine: match file.tftp.engine {
            None | Some(TftpEngineKey::Own) => Engine::Own,
            Some(TftpEngineKey::AsyncTftp) => Engine::AsyncTftp,
        },
        api,
        tls,
        issuers: callers::issuers(&file.callers, findings),
        projects: callers::projects(&file.projects),
        registry: file.registry.checked(&proxy.private_networks, directory, findings),
        proxy,
        downloads: file.downloads.checked(findings),
        power_listener,
        submission: submission(&file.listen),
        console_log: file.console_log.limits(findings),
        buckets: file.s3.limits(findings),
        bucket_groups,
        stores,
        archive,
        job_variables: variables(file.variables, findings),
        training: training::training(&file.training, directory, findings),
        patience: training::patience(&file.health, findings),
        gitlab: gitlab::gitlab(&file.gitlab, directory, findings),
        forgejo: forgejo::forgejo(&file.forgejo, directory, findings),
        boots: file.boots.and_then(|name| Database::read(&directory.join(name), findings)),
        duts,
        on_demand,
        pdus,
        consoles,
        discovery,
        spares,
        gear,
        hosts,
        name: file.name,
    }
}

fn submission(keys: &ListenKeys) -> SubmissionConfig {
    SubmissionConfig {
        upgraded_when_busy: match keys.when_busy {
            None | Some(WhenBusyKey::Queue) => WhenBusy::Queue,
            Some(WhenBusyKey::Refuse) => WhenBusy::Refuse,
        },
        job_urls: match keys.job_urls {
            None | Some(JobUrlsKey::Https) => JobUrls::HttpsOnly,
            Some(JobUrlsKey::Http) => JobUrls::HttpToo,
        },
    }
}

/// The text was checked by the schema's form where it matters; what is missing was told already.
fn network(keys: &NetworkKeys) -> NetworkConfig {
    let split = |text: &str| {
        let (address, length) = text.split_once('/')?;
        Some((address.parse::<Ipv4Addr>().ok()?, length.parse::<u8>().ok()?))
    };
    match (&keys.private, &keys.interface) {
        (Some(private), _) => split(&private.address).map_or(NetworkConfig::Loopback, |(address, prefix_length)| {
            NetworkConfig::Private { address, prefix_length }
        }),
        (None, Some(interface)) => {
            split(&interface.address).map_or(NetworkConfig::Loopback, |(address, prefix_length)| {
                NetworkConfig::Interface { name: interface.name.clone(), address, prefix_length }
            })
        }
        (None, None) => NetworkConfig::Loopback,
    }
}

fn contains(network: &NetworkConfig, address: Ipv4Addr) -> bool {
    match network {
        NetworkConfig::Private { address: ours, prefix_length }
        | NetworkConfig::Interface { address: ours, prefix_length, .. } => {
            let mask = u32::MAX.checked_shl(32 - u32::from(*prefix_length)).unwrap_or(0);
            let (network, host) = (u32::from(*ours) & mask, u32::from(address) & !mask);
            // All zeroes are the network itself, all ones its broadcast address (RFC 1122 §3.2.1.3).
            network == u32::from(address) & mask && *ours != address && host != 0 && host != !mask
        }
        NetworkConfig::Loopback => address.is_loopback() && address != LOOPBACK_GATEWAY,
    }
}

/// The next step for what is used twice.
const OWN_HINT: &str = "give every machine and every piece of gear its own";

/// The place of a key in an entry of one of the file's lists.
fn at(list: &str, index: usize, key: &str) -> Vec<String> {
    vec![list.to_owned(), index.to_string(), key.to_owned()]
}

/// Everything in the file that has a name, a MAC or an address.
struct Inventory<'a> {
    farm: &'a str,
    network: &'a NetworkConfig,
    directory: &'a Path,
    /// What its machines do before they take jobs.
    before_service: BeforeService,
    /// What several machines may name.
    shared: Shared,
    /// Where each id, full name, MAC and address was used first.
    names: HashMap<String, String>,
    /// How many DUTs have a base name so far.
    count: HashMap<String, u32>,
}

impl Inventory<'_> {
    fn duts(&mut self, duts: &[DutKeys], findings: &mut Findings) -> Vec<DutConfig> {
        duts.iter().enumerate().filter_map(|(index, keys)| self.dut(index, keys, findings)).collect()
    }

    fn dut(&mut self, index: usize, keys: &DutKeys, findings: &mut Findings) -> Option<DutConfig> {
        let mac = keys.mac.to_ascii_lowercase().replace('-', ":");
        let address: Ipv4Addr = keys.address.parse().ok()?;
        let id = keys.id.clone().unwrap_or_else(|| mac.clone());
        let base_name = keys.base_name.clone().unwrap_or_else(|| "dut".to_owned());
        let number = self.count.entry(base_name.clone()).or_default();
        *number += 1;
        let full_name = keys.full_name.clone().unwrap_or_else(|| format!("{}-{base_name}-{number}", self.farm));
        self.unique_names(index, keys, [&mac, &id, &full_name], findings);
        if !contains(self.network, address) {
            let hint = "every DUT needs an address of the farm's network that is not the gateway's own";
            let what = format!("`{address}` is not an address for a DUT of this network");
            findings.tell(&at("duts", index, "address"), what, hint);
        }
        let machine = self.machine("duts", index, &full_name, &keys.machine, findings)?;
        let (tags, comment, needs) = (keys.tags.clone(), keys.comment.clone(), keys.needs.clone());
        let access = on_demand::access(keys.access);
        let boot = |settings: &Settings| settings.clone().checked(self.directory, &at("duts", index, "boot"), findings);
        let boot = keys.boot.as_ref().map(boot);
        let off_time = keys.off_time.map(Duration::from_secs_f64);
        let before_service = self.before_service;
        Some(DutConfig {
            id,
            full_name,
            base_name,
            tags,
            mac,
            address,
            comment,
            access,
            needs,
            machine,
            off_time,
            boot,
            before_service,
        })
    }

    /// A DUT's own names, and those of its parts.
    fn unique_names(&mut self, index: usize, keys: &DutKeys, names: [&String; 3], findings: &mut Findings) {
        let [mac, id, full_name] = names;
        // A DUT whose MAC is missing or wrong keeps its place in the list: that was told already.
        let mut is_own = !mac.is_empty() && self.unique(at("duts", index, "mac"), "MAC", mac, findings);
        self.unique(at("duts", index, "address"), "address", &keys.address, findings);
        if keys.id.is_some() && id != mac {
            check_id(index, id, findings);
            is_own = self.unique(at("duts", index, "id"), "id", id, findings);
        }
        if full_name != id {
            self.unique(at("duts", index, "full_name"), "full name", full_name, findings);
        }
        if is_own {
            self.unique(at("duts", index, "id"), "name", &console_name(id), findings);
            self.unique(at("duts", index, "id"), "name", &power_name(id), findings);
        }
    }

    /// Whether nobody has it yet; tells who has.
    fn unique(&mut self, at: Vec<String>, noun: &str, value: &str, findings: &mut Findings) -> bool {
        let taken = self.take(&at, noun, value);
        if let Some(what) = &taken {
            findings.tell(&at, what.clone(), OWN_HINT);
        }
        taken.is_none()
    }

    /// Writes down that a value is used here, or says where it was used before.
    fn take(&mut self, at: &[String], noun: &str, value: &str) -> Option<String> {
        if let Some(earlier) = self.names.get(value) {
            return Some(format!("the {noun} `{value}` is already used by `{earlier}`"));
        }
        self.names.insert(value.to_owned(), field_of(at));
        None
    }

    fn machine(
        &mut self,
        list: &str,
        index: usize,
        full_name: &str,
        keys: &MachineKeys,
        findings: &mut Findings,
    ) -> Option<MachineConfig> {
        let at = |keys: &[&str]| {
            let path = at(list, index, "machine").into_iter();
            path.chain(keys.iter().map(|key| key.to_string())).collect::<Vec<_>>()
        };
        match (&keys.qemu, &keys.simulated, &keys.hardware) {
            (Some(qemu), None, None) => {
                if !matches!(self.network, NetworkConfig::Private { .. }) {
                    let hint = "use `network: {private: {address: 10.77.0.1/24}}`";
                    findings.tell(&at(&["qemu"]), "a QEMU machine needs the private network".to_owned(), hint);
                }
                Some(MachineConfig::Qemu(qemu_config(qemu)))
            }
            (None, Some(simulated), None) => {
                if matches!(self.network, NetworkConfig::Interface { .. }) {
                    let hint = "use `network: {private: …}`, or `network: {loopback: {}}`";
                    findings.tell(
                        &at(&["simulated"]),
                        "a simulated machine has no card on a real network".to_owned(),
                        hint,
                    );
                }
                let console = simulated.console.as_ref().map(|name| self.directory.join(name));
                if let Some(path) = console.as_ref().filter(|path| !path.is_file()) {
                    let hint = "name a console script relative to the farm file";
                    findings.tell(&at(&["simulated", "console"]), format!("no file `{}`", path.display()), hint);
                }
                for (number, keys) in simulated.misbehave.iter().enumerate() {
                    if keys.for_s.is_some() && !fault(keys).what.has_a_length() {
                        let hint = "`for` goes with `outlet-lies`, `outlet-slow`, `console-floods` and `console-away`";
                        let number = number.to_string();
                        let place = at(&["simulated", "misbehave", &number, "for"]);
                        findings.tell(&place, "this fault has no length".to_owned(), hint);
                    }
                }
                Some(MachineConfig::Simulated(simulated_config(simulated, console)))
            }
            (None, None, Some(keys)) => {
                let place = hardware::Place { network: self.network, directory: self.directory, full_name, at: &at };
                hardware::hardware(keys, &place, &mut self.shared, findings)
            }
            // Told already, by the schema.
            (Some(_), Some(_), _) | (Some(_), _, Some(_)) | (_, Some(_), Some(_)) | (None, None, None) => None,
        }
    }
}

/// What requests can name, and what leases can write down.
fn check_id(index: usize, id: &str, findings: &mut Findings) {
    let braces = || id.contains(['{', '}']).then(|| "an id cannot contain braces".to_owned());
    if let Some(why) = id.parse::<DutId>().err().map(|error| error.to_string()).or_else(braces) {
        let hint = "use letters, digits, `-`, `_`, `.` and `:`";
        findings.tell(&at("duts", index, "id"), format!("{} is not an id: {why}", quoted(id)), hint);
    }
}

fn qemu_config(keys: &QemuKeys) -> QemuConfig {
    let firmware = match keys.firmware {
        None | Some(FirmwareKey::Bios) => Firmware::Bios,
        Some(FirmwareKey::UefiIpxe) => Firmware::UefiIpxe,
        Some(FirmwareKey::UefiPxe) => Firmware::UefiPxe,
        Some(FirmwareKey::UefiHttp) => Firmware::UefiHttp,
        Some(FirmwareKey::UBootArm64) => Firmware::UBootArm64,
    };
    QemuConfig { firmware, memory_mib: keys.memory_mib.unwrap_or(256) }
}

fn simulated_config(keys: &SimulatedKeys, console: Option<PathBuf>) -> SimulatedConfig {
    let firmware = match keys.firmware {
        None | Some(SimulatedFirmwareKey::Ipxe) => SimulatedFirmware::Ipxe,
        Some(SimulatedFirmwareKey::PlainBios) => SimulatedFirmware::PlainBios,
        Some(SimulatedFirmwareKey::PlainUefi) => SimulatedFirmware::PlainUefi,
        Some(SimulatedFirmwareKey::Fastboot) => SimulatedFirmware::Fastboot,
    };
    SimulatedConfig { firmware, console, misbehave: keys.misbehave.iter().map(fault).collect() }
}

fn fault(keys: &FaultKeys) -> Fault {
    let what = match keys.what {
        MisbehaviourKey::FallSilent => Misbehaviour::FallSilent,
        MisbehaviourKey::NoDhcp => Misbehaviour::NoDhcp,
        MisbehaviourKey::Loop => Misbehaviour::Loop,
        MisbehaviourKey::AbortTransfer => Misbehaviour::AbortTransfer,
        MisbehaviourKey::SamePort => Misbehaviour::SamePort,
        MisbehaviourKey::NoInitramfs => Misbehaviour::NoInitramfs,
        MisbehaviourKey::OutletLies => Misbehaviour::OutletLies,
        MisbehaviourKey::OutletSlow => Misbehaviour::OutletSlow,
        MisbehaviourKey::ConsoleFloods => Misbehaviour::ConsoleFloods,
        MisbehaviourKey::ConsoleAway => Misbehaviour::ConsoleAway,
        MisbehaviourKey::TalksOn => Misbehaviour::TalksOn,
        MisbehaviourKey::LoaderBabbles => Misbehaviour::LoaderBabbles,
        MisbehaviourKey::LoaderChatters => Misbehaviour::LoaderChatters,
        MisbehaviourKey::LoaderHangsUp => Misbehaviour::LoaderHangsUp,
        MisbehaviourKey::LoaderStalls => Misbehaviour::LoaderStalls,
    };
    let lasts = keys.for_s.map(Duration::from_secs_f64).or(what.usually_lasts());
    Fault { what, boot: keys.boot, lasts }
}

fn dhcp(
    keys: &DhcpKeys,
    network: &NetworkConfig,
    members: impl Iterator<Item = DutConfig>,
    findings: &mut Findings,
) -> Role {
    let range = dhcp_range(keys, network, members, findings);
    if keys.mode != Some(DhcpModeKey::Proxy) {
        return Role::Server { range };
    }
    let at = |key: &str| ["dhcp".to_owned(), key.to_owned()];
    if !matches!(network, NetworkConfig::Interface { .. }) {
        let hint = "leave `dhcp.mode` out, or name an `interface` that leads to such a network";
        findings.tell(&at("mode"), "there is no other DHCP server on this network".to_owned(), hint);
    }
    if !keys.range.is_empty() {
        let hint = "leave it out: the other server gives the addresses";
        findings.tell(&at("range"), "a proxy gives no addresses".to_owned(), hint);
    }
    Role::Proxy
}

fn dhcp_range(
    keys: &DhcpKeys,
    network: &NetworkConfig,
    mut members: impl Iterator<Item = DutConfig>,
    findings: &mut Findings,
) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let at = ["dhcp".to_owned(), "range".to_owned()];
    let [first, last] = keys.range.as_slice() else {
        if !keys.range.is_empty() {
            findings.tell(
                &at,
                format!("a range of {} addresses", keys.range.len()),
                "write two: the first and the last",
            );
        }
        return None;
    };
    let (first, last): (Ipv4Addr, Ipv4Addr) = (first.parse().ok()?, last.parse().ok()?);
    if first > last || !contains(network, first) || !contains(network, last) {
        let hint = "write the first and the last address, both of the farm's network, without the gateway's own";
        findings.tell(&at, format!("`{first}` to `{last}` is no range of the farm's network"), hint);
    }
    if let Some(dut) = members.find(|dut| (first..=last).contains(&dut.address)) {
        let what = format!("the range holds `{}`, the address of {}", dut.address, dut.full_name);
        findings.tell(&at, what, "keep the DUTs' own addresses out of the range");
    }
    Some((first, last))
}

/// `None` when it is absent, or wrong, which is told.
fn listener(key: &str, text: Option<&String>, findings: &mut Findings) -> Option<SocketAddr> {
    let text = text?;
    let at = ["listen".to_owned(), key.to_owned()];
    match text.parse::<SocketAddr>() {
        Ok(address) => Some(address),
        Err(_) => {
            findings.tell(&at, format!("`{text}` is not an address and port"), "write `127.0.0.1:8420`");
            None
        }
    }
}

/// `/var/lib/wharf/<farm>` for root, else the user's state folder (XDG base directory specification).
fn default_state(farm: &str) -> PathBuf {
    let own = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let base = if nix::unistd::geteuid().is_root() && own.is_none() {
        Some(PathBuf::from("/var/lib"))
    } else {
        own.or_else(home)
    };
    base.unwrap_or_else(std::env::temp_dir).join("wharf").join(farm)
}

#[cfg(test)]
mod tests;
