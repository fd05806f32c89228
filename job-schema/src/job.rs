//! The job: rendered, checked, merged; what the rest of the house works with.
//!
//! ```text
//!  Rendered ─► shape.rs (guard, schema, typed load) ─► roles.rs (checks across fields, a Job per DUT) ─► continue over start ─► Job
//!                        └────────────── Problems, all of the file at once ──────────────┘
//! ```
//! A template can not get here: [`Job::parse`] takes only [`Rendered`](crate::template::Rendered) text.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use crate::description::{
    AnyForm, ArtifactKeys, BucketKeys, ContainerForm, DeploymentDescription, FilesystemKeys, ImagestoreKeys,
    JobDescription, KernelKeys, LifetimeKeys, LooseTextForm, MemberForm, ModeForm, NbdKeys, NfsKeys, OffsetForm,
    PatternKeys, PatternsKeys, StorageArtifactKeys, TimeoutKeys, TimeoutsKeys,
};
use crate::forms::duration_of;
use crate::ids::ExportName;
use crate::merge::{Collection, HasName, OneOrList};
use crate::pattern::{MatchError, Pattern};
use crate::shape;
use crate::steps::BySsh;

/// The overall timeout of a job that names none: CI-tron's default.
pub const DEFAULT_OVERALL: Duration = Duration::from_secs(6 * 3600);
/// The end of a session when the job names none: the kernel's last line before power-off.
pub const DEFAULT_SESSION_END: &str = r"^\[[\d \.]{12}\] reboot: Power Down$";
/// Connections to one NBD export when the job does not say: CI-tron's default.
pub const DEFAULT_NBD_CONNECTIONS: u32 = 4;

/// A job, rendered and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Which machines qualify.
    pub target: Target,
    /// When it must be over.
    pub deadline: Option<Timestamp>,
    /// How long each part may take.
    pub timeouts: Timeouts,
    /// Whether the job itself says how long its firmware may take; otherwise the farm may use what it learnt.
    pub firmware_boot_given: bool,
    /// What is looked for in the console's lines.
    pub patterns: Patterns,
    /// The first boot.
    pub start: Deployment,
    /// Every further boot: `continue` over `start`.
    pub continue_: Deployment,
    /// Where the machine may connect to through the farm.
    pub proxy: Vec<Endpoint>,
    /// What is done by SSH on what it boots.
    pub by_ssh: Option<BySsh>,
}

/// Which machines qualify.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// A machine's id or full name.
    pub id: Option<String>,
    /// Tags it must have, all of them.
    pub tags: Vec<String>,
    /// Gear of the farm that is held beside it, by name.
    pub gear: Vec<String>,
}

/// How long each part of a job may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// The whole job.
    pub overall: Timeout,
    /// Downloads and preparation before power-on.
    pub infra_setup: Timeout,
    /// Cleaning up after the machine is done.
    pub infra_teardown: Timeout,
    /// From power-on to the firmware's first request.
    pub firmware_boot: Timeout,
    /// From power-on to power-off.
    pub boot_cycle: Timeout,
    /// From power-on to the first line of the console.
    pub first_console_activity: Timeout,
    /// Between two signs of life of the console.
    pub console_activity: Timeout,
    /// Between two signs that a boot goes on.
    pub boot_progress: Timeout,
    /// Watchdogs by name.
    pub watchdogs: BTreeMap<String, Timeout>,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts::from(TimeoutsKeys::default())
    }
}

/// A duration and how often it may be exceeded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timeout {
    /// How long; `None` is for ever.
    pub duration: Option<Duration>,
    /// How many more boots an expiry gives.
    pub retries: u32,
}

/// What is looked for in the console's lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patterns {
    /// Ends the session.
    pub session_end: Pattern,
    /// Asks for another boot.
    pub session_reboot: Option<Pattern>,
    /// The test passed.
    pub job_success: Option<Pattern>,
    /// The test passed, but somebody should look.
    pub job_warn: Option<Pattern>,
    /// The machine is broken.
    pub machine_unfit_for_service: Option<Pattern>,
    /// Watchdogs by name; inert without the timeout of the same name.
    pub watchdogs: BTreeMap<String, WatchdogPatterns>,
}

/// The lines that start, reset and stop a watchdog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchdogPatterns {
    /// Starts it.
    pub start: Pattern,
    /// Starts its time anew.
    pub reset: Pattern,
    /// Stops it.
    pub stop: Pattern,
}

/// One boot.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Deployment {
    /// The kernel, unless the machine boots its own.
    pub kernel: Option<Kernel>,
    /// The pieces of the command line, in order.
    pub cmdline: Vec<String>,
    /// Initial RAM disks, in order.
    pub initramfs: Vec<Artifact>,
    /// Device trees, in order.
    pub dtb: Vec<Artifact>,
    /// What the machine may fetch or mount besides.
    pub storage: Storage,
    /// DHCP options; the first entry that matches wins.
    pub dhcp: Vec<DhcpEntry>,
    /// Android boot images.
    pub fastboot: Option<Fastboot>,
}

impl Deployment {
    /// The command line: its pieces joined by one space, as they are.
    pub fn cmdline_text(&self) -> String {
        self.cmdline.join(" ")
    }
}

/// What a farm lays under the first boot of a job: a deployment in its written form, to be changed category by category.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Defaults(pub(crate) DeploymentDescription);

impl Defaults {
    /// These with the changes of others, as `continue` changes `start`.
    pub fn updated(self, update: Defaults) -> Defaults {
        Defaults(self.0.updated(update.0))
    }
}

impl JsonSchema for Defaults {
    fn inline_schema() -> bool {
        DeploymentDescription::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        DeploymentDescription::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        DeploymentDescription::json_schema(generator)
    }
}

/// A kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Kernel {
    /// Its bytes.
    pub artifact: Artifact,
}

/// What the machine may fetch or mount.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Storage {
    /// Over HTTP, in the order a request looks for its match (see [`StorageArtifact::find`]).
    pub http: Vec<StorageArtifact>,
    /// Over TFTP, in the same order.
    pub tftp: Vec<StorageArtifact>,
    /// Block devices.
    pub nbd: Vec<NbdExport>,
    /// Shared directories.
    pub nfs: Vec<NfsShare>,
    /// Buckets.
    pub s3: Vec<Bucket>,
    /// Container images of the store `public`, by the name the job's templates use.
    pub imagestore: BTreeMap<String, Image>,
}

/// Bytes: where they come from, and what is done with them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "ArtifactKeys")]
pub struct Artifact {
    /// Where they come from.
    pub source: ArtifactSource,
    /// What is done with them, step by step.
    pub format: Vec<FormatStep>,
}

/// Where the bytes of an artifact come from.
#[derive(Debug, Clone, PartialEq)]
pub enum ArtifactSource {
    /// A URL (`http`, `https` or `s3`); may hold `\1` of the path it is asked for by.
    Url(String),
    /// These very bytes.
    Data(String),
    /// An archive made of other artifacts.
    Archive(Archive),
    /// A file sent along with the job, by its name there.
    Attached(String),
}

/// An archive made of other artifacts.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Archive {
    /// The kind of archive.
    pub extension: ArchiveKind,
    /// How it is compressed.
    pub compression: Compression,
    /// Its files.
    #[schemars(with = "OneOrList<ArchiveMember>")]
    pub add: Vec<ArchiveMember>,
}

/// A file of an archive.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
pub struct ArchiveMember {
    /// Its path in the archive; may hold `\1` of the path the archive is asked for by.
    pub path: String,
    /// Its bytes.
    pub artifact: Artifact,
    /// Its type and permissions, octal; `0100644` is a plain file.
    #[serde(default = "default_mode")]
    #[schemars(with = "ModeForm", extend("default" = "0100644"))]
    pub mode: u32,
}

/// One step of what is done with an artifact's bytes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "FormatKeys")]
pub enum FormatStep {
    /// Wraps them in a U-Boot image.
    Uboot(UbootFormat),
    /// Takes an archive apart and makes another, or takes one file out.
    Archive(ArchiveFormat),
}

/// One step of what is done with an artifact's bytes.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("x-exactly-one" = ["uboot", "archive"]))]
struct FormatKeys {
    /// Wraps the bytes in a U-Boot image.
    uboot: Option<UbootFormat>,
    /// Takes an archive apart and makes another, or takes one file out.
    archive: Option<ArchiveFormat>,
}

/// The header of a U-Boot image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UbootFormat {
    /// `arm64` unless said otherwise.
    pub architecture: UbootArchitecture,
    /// How the bytes are compressed already; `none`.
    pub compression: UbootCompression,
    /// The operating system; `linux`.
    pub os: UbootSystem,
    /// What the image is; `script`.
    #[serde(rename = "type")]
    pub kind: String,
}

impl Default for UbootFormat {
    fn default() -> UbootFormat {
        UbootFormat {
            architecture: UbootArchitecture::default(),
            compression: UbootCompression::default(),
            os: UbootSystem::default(),
            kind: "script".to_owned(),
        }
    }
}

/// The machine a U-Boot image is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum UbootArchitecture {
    X86,
    #[serde(rename = "x86_64")]
    X86_64,
    Arm32,
    #[default]
    Arm64,
    Riscv32,
    Riscv64,
}

/// How a U-Boot image's bytes are compressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UbootCompression {
    /// Not at all.
    #[default]
    None,
}

/// The operating system of a U-Boot image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UbootSystem {
    /// Linux.
    #[default]
    Linux,
}

/// Takes an archive apart and makes another, or takes one file out.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ArchiveFormat {
    /// The kind of archive made.
    pub extension: ArchiveKind,
    /// How it is compressed.
    pub compression: Compression,
    /// Which files are kept; all when the list is empty.
    #[schemars(with = "OneOrList<Keep>")]
    pub keep: Vec<Keep>,
    /// Which files are added.
    #[schemars(with = "OneOrList<ArchiveMember>")]
    pub add: Vec<ArchiveMember>,
    /// Takes out the first file whose whole path is this regular expression.
    #[serde(rename = "match")]
    #[schemars(with = "Option<MemberForm>")]
    pub match_: Option<String>,
}

/// Files kept of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[schemars(extend("x-groups-of" = "path", "x-groups-in" = "rewrite"))]
pub struct Keep {
    /// A regular expression for their whole path; may hold `\1` of the path the artifact is asked for by.
    #[schemars(with = "MemberForm")]
    pub path: String,
    /// Their new path; may hold `\1` of this entry's own `path`.
    #[serde(default)]
    pub rewrite: Option<String>,
}

/// A kind of archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ArchiveKind {
    /// No archive.
    #[default]
    None,
    /// cpio, as initial RAM disks are.
    Cpio,
    /// ISO 9660.
    Iso,
    /// tar.
    Tar,
    /// zip.
    Zip,
}

/// A compression.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// None.
    #[default]
    None,
    /// gzip.
    Gz,
    /// bzip2.
    Bz2,
}

/// An artifact with the path it is served under.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "StorageArtifactKeys")]
pub struct StorageArtifact {
    /// The path it is asked for by.
    pub path: PathMatch,
    /// Its bytes.
    pub artifact: Artifact,
    /// How often and how long it may be read.
    pub lifetime: Lifetime,
    /// A port of its own, or TLS.
    pub expose: Option<Expose>,
}

impl StorageArtifact {
    /// The first artifact that answers a request for `path`, with the groups of its path.
    pub fn find<'a>(list: &'a [StorageArtifact], path: &str) -> Option<(&'a StorageArtifact, Groups)> {
        list.iter().find_map(|artifact| artifact.path.matches(path).map(|groups| (artifact, groups)))
    }
}

/// A path, or a regular expression for the whole of one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PathMatch {
    text: String,
    pattern: Option<Pattern>,
}

impl PathMatch {
    /// Checks a path as a job writes it: absolute, and not the server's own.
    pub fn parse(text: &str) -> Result<PathMatch, String> {
        if !text.starts_with('/') {
            return Err("it must begin with `/`".to_owned());
        }
        if text.starts_with("/_/") {
            return Err("paths below `/_/` are the server's own".to_owned());
        }
        if text.split('/').any(|segment| segment == "..") {
            return Err("it cannot contain `..`".to_owned());
        }
        if text.chars().any(char::is_control) {
            return Err("it contains control characters".to_owned());
        }
        match Pattern::parse(text) {
            Ok(pattern) => Ok(PathMatch { text: text.to_owned(), pattern: Some(pattern) }),
            // Who writes a group, a class or an escape means a regular expression.
            Err(why) if text.contains(['(', '[', '\\']) => Err(format!("it is no regular expression: {why}")),
            // `/+` is a fine path and no regular expression: then only the path itself matches.
            Err(_) => Ok(PathMatch { text: text.to_owned(), pattern: None }),
        }
    }

    /// The groups, when `path` is this very path or matches it as a whole.
    pub fn matches(&self, path: &str) -> Option<Groups> {
        if path == self.text {
            return Some(Groups(vec![Some(path.to_owned())]));
        }
        Groups::of(self.pattern.as_ref()?, path).ok()?
    }

    /// The path as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl TryFrom<String> for PathMatch {
    type Error = String;

    fn try_from(text: String) -> Result<PathMatch, String> {
        PathMatch::parse(&text)
    }
}

/// What the groups of a path took; group 0 is the whole path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups(Vec<Option<String>>);

impl Groups {
    /// The groups of a pattern that takes the whole of `text`.
    pub fn of(pattern: &Pattern, text: &str) -> Result<Option<Groups>, MatchError> {
        let taken = |group: Option<std::ops::Range<usize>>| group.and_then(|range| text.get(range)).map(str::to_owned);
        let groups = pattern.full_match_groups(text.as_bytes())?;
        Ok(groups.map(|groups| Groups(groups.into_iter().map(taken).collect())))
    }

    /// Of a path that is not known yet: each took an `x`.
    pub(crate) fn of_anything() -> Groups {
        // References have two digits at most.
        Groups(vec![Some("x".to_owned()); 100])
    }

    /// The highest group that `text` refers to; 0 is the whole, or none.
    pub(crate) fn highest_in(text: &str) -> usize {
        let references = text.match_indices('\\').filter_map(|(at, _)| reference(&text[at + 1..]));
        references.map(|(number, _)| number).max().unwrap_or_default()
    }

    /// Whether `text` has a reference to a group, beside the whole.
    pub fn are_used_in(text: &str) -> bool {
        text.match_indices('\\').any(|(at, _)| reference(&text[at + 1..]).is_some_and(|(number, _)| number > 0))
    }

    /// What each took, the whole first; nothing where it took nothing.
    pub fn taken(&self) -> &[Option<String>] {
        &self.0
    }

    /// Each group as `change` makes it: letters that mean something where the text goes.
    pub fn map(&self, change: impl Fn(&str) -> String) -> Groups {
        Groups(self.0.iter().map(|group| group.as_deref().map(&change)).collect())
    }

    /// `text` with `\1` and `\g<1>` replaced by what the groups took; a group that took nothing is empty.
    pub fn expand(&self, text: &str) -> String {
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('\\') {
            expanded.push_str(&rest[..at]);
            let after = &rest[at + 1..];
            match reference(after) {
                Some((number, length)) => {
                    expanded.push_str(self.0.get(number).and_then(Option::as_deref).unwrap_or_default());
                    rest = &after[length..];
                }
                None => {
                    expanded.push('\\');
                    rest = after;
                }
            }
        }
        expanded + rest
    }
}

/// The number of a group reference after its backslash, and its length.
fn reference(text: &str) -> Option<(usize, usize)> {
    if let Some(inside) = text.strip_prefix("g<") {
        let end = inside.find('>')?;
        return Some((inside[..end].parse().ok()?, end + 3));
    }
    let length = text.bytes().take(2).take_while(u8::is_ascii_digit).count();
    Some((text[..length].parse().ok()?, length))
}

/// How often and how long an artifact may be read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "LifetimeKeys")]
pub struct Lifetime {
    /// Refused after this many accesses of one boot.
    pub access_count: Option<u64>,
    /// Refused this long after the first access of a boot.
    pub first_read: Option<Duration>,
    /// Refused this long after it was published.
    pub duration: Option<Duration>,
}

/// A port of its own, or TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Expose {
    /// The port it is served on as well; with `tls` and without a port: 443.
    #[schemars(range(min = 1))]
    pub port: Option<u16>,
    /// Whether it is read over TLS only, with a certificate of the farm's own authority; not in `tftp`.
    pub tls: bool,
}

/// A block device.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "NbdKeys")]
pub struct NbdExport {
    /// The export's name.
    pub name: ExportName,
    /// Whether writes are refused; otherwise they go into a copy.
    pub readonly: bool,
    /// What it holds.
    pub content: NbdContent,
    /// When its contents go back to the beginning.
    pub reset_on: ResetOn,
    /// Whether other machines may attach it too.
    pub shared: bool,
    /// How long it is kept after the last job that asked for it.
    pub expiration: Option<Duration>,
    /// How many connections it takes at once.
    pub max_connections: u32,
    /// How often and how long it may be attached.
    pub lifetime: Lifetime,
    /// Whether it is attached over TLS only.
    pub tls: bool,
}

impl NbdExport {
    /// Whether it is the same disk, however often it may be attached, and over what.
    pub fn is_same_disk(&self, other: &NbdExport) -> bool {
        *self == NbdExport { lifetime: self.lifetime.clone(), tls: self.tls, ..other.clone() }
    }
}

/// What a block device holds.
#[derive(Debug, Clone, PartialEq)]
pub enum NbdContent {
    /// A disk image, raw or qcow2.
    Url(String),
    /// Nothing, this many bytes of it.
    Empty {
        /// Its size.
        size_bytes: u64,
    },
    /// A file system made for this job.
    Filesystem(Filesystem),
}

/// A file system made for a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Filesystem {
    /// Its type.
    pub kind: FilesystemKind,
    /// Its size.
    pub size_bytes: u64,
    /// The files it begins with.
    pub content: Option<TreeSource>,
}

/// Where a tree of files comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum TreeSource {
    /// An archive.
    Archive(Artifact),
    /// A container image.
    Container(String),
}

/// A type of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum FilesystemKind {
    Btrfs,
    Erofs,
    Ext2,
    Ext3,
    Ext4,
    Squashfs,
    Vfat,
    Xfs,
}

/// When the contents of a device or share go back to the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResetOn {
    /// At every power-on.
    Boot,
    /// When a job starts; a reboot of the job keeps them.
    #[default]
    JobStart,
    /// Never: the next job finds what this one left.
    Never,
}

/// A shared directory.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "NfsKeys")]
pub struct NfsShare {
    /// The share's name.
    pub name: ExportName,
    /// Whether writes are refused; otherwise they go into a copy.
    pub readonly: bool,
    /// The files it begins with.
    pub content: Option<TreeSource>,
    /// When its contents go back to the beginning.
    pub reset_on: ResetOn,
    /// Whether other machines may mount it too.
    pub shared: bool,
    /// How long it is kept after the last job that asked for it.
    pub expiration: Option<Duration>,
}

/// A bucket of object storage.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "BucketKeys")]
pub struct Bucket {
    /// Its name in the job.
    pub bucket: ExportName,
    /// An archive whose files it begins with.
    pub fill: Option<Artifact>,
    /// How long it is kept after the job.
    pub expiration: Option<Duration>,
}

/// A container image, unpacked on the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
pub struct Image {
    /// The image's name in its registry.
    #[schemars(with = "ContainerForm")]
    pub name: String,
    /// The platform; `linux/amd64` unless said otherwise.
    #[serde(default = "default_platform")]
    pub platform: String,
    /// Whether the registry's certificate is checked.
    #[serde(default = "yes")]
    pub tls_verify: bool,
    /// When it is pulled.
    #[serde(default)]
    pub pull: PullPolicy,
}

/// When a container image is pulled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// For every job.
    #[default]
    Always,
    /// For every job, unless that was done within the last five minutes.
    RelaxedAlways,
    /// When it is not there.
    Missing,
}

/// DHCP options for machines that match.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
pub struct DhcpEntry {
    /// What the machine must say of itself; nothing means any machine.
    #[serde(default, rename = "match")]
    pub match_: DhcpMatch,
    /// Options by name or number.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, AnyForm>")]
    pub options: BTreeMap<String, serde_json::Value>,
}

/// What a machine says of itself; each matcher is a list of words or regular expressions of which one must be the whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DhcpMatch {
    /// Its architecture.
    #[schemars(with = "OneOrList<LooseTextForm>")]
    pub architecture: Vec<TextMatch>,
    /// Its firmware.
    #[schemars(with = "OneOrList<LooseTextForm>")]
    pub firmware: Vec<TextMatch>,
    /// Its MAC address.
    #[schemars(with = "OneOrList<LooseTextForm>")]
    pub mac_address: Vec<TextMatch>,
    /// The protocol it boots by.
    #[schemars(with = "OneOrList<LooseTextForm>")]
    pub protocol: Vec<TextMatch>,
    /// Its vendor class.
    #[schemars(with = "OneOrList<LooseTextForm>")]
    pub vendor_class: Vec<TextMatch>,
    /// Its user class.
    #[schemars(with = "OneOrList<LooseTextForm>")]
    pub user_class: Vec<TextMatch>,
    /// Its UUID.
    #[schemars(with = "OneOrList<LooseTextForm>")]
    pub uuid: Vec<TextMatch>,
}

/// A word, or a regular expression for the whole of one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct TextMatch {
    text: String,
    pattern: Option<Pattern>,
}

impl TextMatch {
    /// Whether `value` is this very word or matches it as a whole.
    pub fn matches(&self, value: &str) -> bool {
        let by_pattern =
            || self.pattern.as_ref().is_some_and(|pattern| pattern.is_full_match(value.as_bytes()).unwrap_or(false));
        value == self.text || by_pattern()
    }

    /// The word as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl From<String> for TextMatch {
    fn from(text: String) -> TextMatch {
        let pattern = Pattern::parse(&text).ok();
        TextMatch { text, pattern }
    }
}

/// Android boot images: what is absent keeps the tool's default.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Fastboot {
    /// Version of the image's header.
    #[schemars(with = "Option<OffsetForm>")]
    pub header_version: Option<u64>,
    /// Base address.
    #[schemars(with = "Option<OffsetForm>")]
    pub base: Option<u64>,
    /// Offset of the kernel.
    #[schemars(with = "Option<OffsetForm>")]
    pub kernel_offset: Option<u64>,
    /// Offset of the RAM disk.
    #[schemars(with = "Option<OffsetForm>")]
    pub ramdisk_offset: Option<u64>,
    /// Offset of the device tree.
    #[schemars(with = "Option<OffsetForm>")]
    pub dtb_offset: Option<u64>,
    /// Offset of the tags.
    #[schemars(with = "Option<OffsetForm>")]
    pub tags_offset: Option<u64>,
    /// The board's name.
    #[schemars(with = "Option<LooseTextForm>")]
    pub board: Option<String>,
    /// Size of a page.
    #[schemars(with = "Option<OffsetForm>")]
    pub pagesize: Option<u64>,
    /// Android's version, such as `12.0.0`.
    #[schemars(with = "Option<LooseTextForm>")]
    pub os_version: Option<String>,
    /// Android's patch level, such as `2023-10`.
    #[schemars(with = "Option<LooseTextForm>")]
    pub os_patch_level: Option<String>,
    /// A ready boot image, instead of one made of kernel and RAM disk.
    pub boot_image: Option<Artifact>,
}

/// A host and port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Endpoint {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Endpoint, String> {
        let (host, port) = text.rsplit_once(':').ok_or("it has no port")?;
        let port: u16 =
            port.parse().ok().filter(|port| *port != 0).ok_or("its port is not a number from 1 to 65535")?;
        let host = match host.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
            Some(Some(address)) if address.parse::<std::net::Ipv6Addr>().is_ok() => address,
            Some(_) => return Err("its IPv6 address is not one".to_owned()),
            None if host.contains(':') => return Err("its IPv6 address is not in brackets".to_owned()),
            None => host,
        };
        if host.is_empty() || host.chars().any(|c| c.is_whitespace() || c.is_control() || "/@[]".contains(c)) {
            return Err("its host is not a name or address".to_owned());
        }
        Ok(Endpoint { host: host.to_owned(), port })
    }
}

impl TryFrom<String> for Endpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Endpoint, String> {
        text.parse()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(formatter, "[{}]:{}", self.host, self.port),
            false => write!(formatter, "{}:{}", self.host, self.port),
        }
    }
}

/// The JSON Schema of a job description, as `wharf schema job` prints it.
pub fn json_schema() -> serde_json::Value {
    shape::schema_of::<JobDescription>()
}

impl From<TimeoutsKeys> for Timeouts {
    fn from(keys: TimeoutsKeys) -> Timeouts {
        let overall = keys.overall.map_or(Timeout { duration: Some(DEFAULT_OVERALL), retries: 0 }, Timeout::from);
        // CI-tron takes the quarter of the seconds beside the days, and so gives 0 to whole days: not copied.
        let quarter = Timeout { duration: overall.duration.map(|duration| duration / 4), retries: 0 };
        let given = |keys: Option<TimeoutKeys>, otherwise: Timeout| keys.map_or(otherwise, Timeout::from);
        Timeouts {
            overall,
            infra_setup: given(keys.infra_setup, quarter),
            infra_teardown: given(keys.infra_teardown, quarter),
            firmware_boot: given(keys.firmware_boot, Timeout::default()),
            boot_cycle: given(keys.boot_cycle, Timeout::default()),
            first_console_activity: given(keys.first_console_activity, Timeout::default()),
            console_activity: given(keys.console_activity, Timeout::default()),
            boot_progress: given(keys.boot_progress, Timeout::default()),
            watchdogs: keys.watchdogs.into_iter().map(|(name, timeout)| (name, timeout.into())).collect(),
        }
    }
}

impl From<TimeoutKeys> for Timeout {
    fn from(keys: TimeoutKeys) -> Timeout {
        let units = keys.units;
        let table = [
            (units.days, 86_400.0),
            (units.hours, 3600.0),
            (units.minutes, 60.0),
            (units.seconds, 1.0),
            (units.milliseconds, 0.001),
        ];
        let given = table.iter().any(|(number, _)| number.is_some());
        let seconds: f64 = table.iter().map(|(number, length)| number.unwrap_or(0.0) * length).sum();
        // The ranges in the description keep the sum far below what a Duration holds.
        let duration = given.then(|| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX));
        Timeout { duration, retries: keys.retries.unwrap_or(0) }
    }
}

impl From<PatternsKeys> for Patterns {
    fn from(keys: PatternsKeys) -> Patterns {
        let regex = |keys: Option<PatternKeys>| keys.map(|keys| keys.regex);
        let default_end = || Pattern::parse(DEFAULT_SESSION_END).expect("a test compiles the default pattern");
        Patterns {
            session_end: regex(keys.session_end).unwrap_or_else(default_end),
            session_reboot: regex(keys.session_reboot),
            job_success: regex(keys.job_success),
            job_warn: regex(keys.job_warn),
            machine_unfit_for_service: regex(keys.machine_unfit_for_service),
            watchdogs: keys
                .watchdogs
                .into_iter()
                .map(|(name, keys)| {
                    (name, WatchdogPatterns { start: keys.start.regex, reset: keys.reset.regex, stop: keys.stop.regex })
                })
                .collect(),
        }
    }
}

impl From<DeploymentDescription> for Deployment {
    fn from(description: DeploymentDescription) -> Deployment {
        let KernelKeys { artifact, cmdline } = description.kernel.unwrap_or_default();
        let storage = description.storage.unwrap_or_default();
        Deployment {
            kernel: Artifact::try_from(artifact).ok().map(|artifact| Kernel { artifact }),
            cmdline: cmdline.map(Collection::into_items).unwrap_or_default(),
            initramfs: description.initramfs.map(Collection::into_items).unwrap_or_default(),
            dtb: description.dtb.map(Collection::into_items).unwrap_or_default(),
            storage: Storage {
                http: storage.http.map(Collection::into_lookup).unwrap_or_default(),
                tftp: storage.tftp.map(Collection::into_lookup).unwrap_or_default(),
                nbd: storage.nbd.0,
                nfs: storage.nfs.0,
                s3: storage.s3.0,
                imagestore: images_of(storage.imagestore),
            },
            dhcp: description.dhcp.map(Collection::into_lookup).unwrap_or_default(),
            fastboot: description.fastboot,
        }
    }
}

pub(crate) fn images_of(store: Option<ImagestoreKeys>) -> BTreeMap<String, Image> {
    store.and_then(|store| store.public).map(|public| public.images).unwrap_or_default()
}

impl TryFrom<ArtifactKeys> for Artifact {
    type Error = &'static str;

    fn try_from(keys: ArtifactKeys) -> Result<Artifact, &'static str> {
        let source = match keys {
            ArtifactKeys { url: Some(url), .. } => ArtifactSource::Url(url),
            ArtifactKeys { data: Some(data), .. } => ArtifactSource::Data(data),
            ArtifactKeys { archive: Some(archive), .. } => ArtifactSource::Archive(archive),
            ArtifactKeys { attached: Some(name), .. } => ArtifactSource::Attached(name),
            _ => return Err("an artifact has no source"),
        };
        Ok(Artifact { source, format: keys.format.0 })
    }
}

impl TryFrom<FormatKeys> for FormatStep {
    type Error = &'static str;

    fn try_from(keys: FormatKeys) -> Result<FormatStep, &'static str> {
        match (keys.uboot, keys.archive) {
            (Some(uboot), None) => Ok(FormatStep::Uboot(uboot)),
            (None, Some(archive)) => Ok(FormatStep::Archive(archive)),
            _ => Err("a step is either `uboot` or `archive`"),
        }
    }
}

impl TryFrom<StorageArtifactKeys> for StorageArtifact {
    type Error = &'static str;

    fn try_from(keys: StorageArtifactKeys) -> Result<StorageArtifact, &'static str> {
        Ok(StorageArtifact {
            path: keys.path,
            artifact: keys.artifact.try_into()?,
            lifetime: keys.lifetime,
            expose: keys.expose,
        })
    }
}

impl TryFrom<LifetimeKeys> for Lifetime {
    type Error = String;

    fn try_from(keys: LifetimeKeys) -> Result<Lifetime, String> {
        Ok(Lifetime {
            access_count: keys.access_count.filter(|count| *count != 0),
            first_read: keys.first_read.map(duration_of).transpose()?,
            duration: keys.duration.map(duration_of).transpose()?,
        })
    }
}

impl TryFrom<NbdKeys> for NbdExport {
    type Error = String;

    fn try_from(keys: NbdKeys) -> Result<NbdExport, String> {
        let content = match (keys.url, keys.raw.map(|raw| raw.size).or(keys.size), keys.filesystem) {
            (Some(url), None, None) => NbdContent::Url(url),
            (None, Some(size_bytes), None) => NbdContent::Empty { size_bytes },
            (None, None, Some(filesystem)) => NbdContent::Filesystem(filesystem.into()),
            _ => return Err("a block device has exactly one of `url`, `raw`, `size` and `filesystem`".to_owned()),
        };
        Ok(NbdExport {
            name: keys.name,
            readonly: keys.readonly.unwrap_or(keys.shared),
            content,
            reset_on: keys.reset_on,
            shared: keys.shared,
            expiration: keys.expiration.map(duration_of).transpose()?,
            max_connections: keys.max_connections.unwrap_or(DEFAULT_NBD_CONNECTIONS),
            lifetime: keys.lifetime,
            tls: keys.expose.tls,
        })
    }
}

impl From<FilesystemKeys> for Filesystem {
    fn from(keys: FilesystemKeys) -> Filesystem {
        Filesystem { kind: keys.kind, size_bytes: keys.size, content: tree_source(keys.data, keys.container) }
    }
}

fn tree_source(data: Option<Artifact>, container: Option<String>) -> Option<TreeSource> {
    data.map(TreeSource::Archive).or(container.map(TreeSource::Container))
}

impl TryFrom<NfsKeys> for NfsShare {
    type Error = String;

    fn try_from(keys: NfsKeys) -> Result<NfsShare, String> {
        Ok(NfsShare {
            name: keys.name,
            readonly: keys.readonly,
            content: tree_source(keys.data, keys.container),
            reset_on: keys.reset_on,
            shared: keys.shared,
            expiration: keys.expiration.map(duration_of).transpose()?,
        })
    }
}

/// What every client of S3 takes for the name of a bucket; `job-…` are the jobs' own.
pub fn is_bucket_name(name: &str) -> bool {
    let is_end = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = name.as_bytes();
    let is_inside = |byte: &u8| is_end(Some(*byte)) || *byte == b'-';
    (3..=63).contains(&name.len())
        && is_end(bytes.first().copied())
        && is_end(bytes.last().copied())
        && bytes.iter().all(is_inside)
}

impl TryFrom<BucketKeys> for Bucket {
    type Error = String;

    fn try_from(keys: BucketKeys) -> Result<Bucket, String> {
        if !is_bucket_name(keys.bucket.as_str()) {
            return Err(format!(
                "`{}` is no name of a bucket: 3 to 63 lower-case letters, digits and hyphens, with a letter or digit at both ends",
                keys.bucket
            ));
        }
        Ok(Bucket { bucket: keys.bucket, fill: keys.fill, expiration: keys.expiration.map(duration_of).transpose()? })
    }
}

impl HasName for NbdExport {
    fn name(&self) -> &str {
        self.name.as_str()
    }
}

impl HasName for NfsShare {
    fn name(&self) -> &str {
        self.name.as_str()
    }
}

impl HasName for Bucket {
    fn name(&self) -> &str {
        self.bucket.as_str()
    }
}

/// A date, or a date and time, UTC unless it says otherwise.
pub(crate) fn parse_deadline(text: &str) -> Result<Timestamp, String> {
    let text = text.trim();
    if let Ok(timestamp) = text.parse::<Timestamp>() {
        return Ok(timestamp);
    }
    let civil: DateTime = text.parse().map_err(|_| "it is not a date of the calendar".to_owned())?;
    let zoned = civil.to_zoned(TimeZone::UTC).map_err(|_| "it is out of range".to_owned())?;
    Ok(zoned.timestamp())
}

fn default_mode() -> u32 {
    0o100_644
}

fn default_platform() -> String {
    "linux/amd64".to_owned()
}

fn yes() -> bool {
    true
}

/// Gives a job type the schema of the keys it is made from.
macro_rules! schema_of_keys {
    ($($job:ident from $keys:ident),* $(,)?) => {$(
        impl JsonSchema for $job {
            fn schema_name() -> Cow<'static, str> {
                stringify!($job).into()
            }

            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                $keys::json_schema(generator)
            }
        }
    )*};
}

schema_of_keys! {
    Bucket from BucketKeys,
    FormatStep from FormatKeys,
    NbdExport from NbdKeys,
    NfsShare from NfsKeys,
    StorageArtifact from StorageArtifactKeys,
}

impl JsonSchema for Artifact {
    fn schema_name() -> Cow<'static, str> {
        "Artifact".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = ArtifactKeys::json_schema(generator);
        // Not said by the keys themselves: a kernel has them too, and may have none.
        schema.insert("x-exactly-one".to_owned(), serde_json::json!(["url", "data", "archive", "attached"]));
        schema
    }
}

impl JsonSchema for Lifetime {
    fn schema_name() -> Cow<'static, str> {
        "Lifetime".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let keys = generator.subschema_for::<LifetimeKeys>();
        json_schema!({"x-form": "lifetime", "x-mapping": keys, "anyOf": [{"const": "first_read"}, keys]})
    }
}

impl JsonSchema for PathMatch {
    fn schema_name() -> Cow<'static, str> {
        "Path".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "x-form": "path", "pattern": "^/"})
    }
}

impl JsonSchema for Endpoint {
    fn schema_name() -> Cow<'static, str> {
        "Endpoint".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "x-form": "endpoint"})
    }
}

#[cfg(test)]
mod tests;
