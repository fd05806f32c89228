//! The job description, version 1, field for field: as CI-tron's 2024 release and main branch write it, with the
//! additions of `docs/job-description.md`. Shape only; what it means is in `job.rs`.
//!
//! ```text
//!  JobDescription ── target (one, or a list of roles), timeouts, console_patterns, proxy
//!                 └─ deployment ── start    ─┬─ kernel, initramfs, dtb, fastboot, dhcp
//!                               └─ continue ─┴─ storage ── http, tftp, nbd, nfs, s3, imagestore
//! ```
//! The derived JSON Schema of these types is what `shape.rs` checks a file against.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::ids::{ExportName, RoleName};
use crate::job::{
    Archive, Artifact, Bucket, DhcpEntry, Endpoint, Expose, Fastboot, FilesystemKind, FormatStep, Image, Lifetime,
    NbdExport, NfsShare, PathMatch, ResetOn, StorageArtifact,
};
use crate::merge::{Collection, Named, OneOrList};
use crate::pattern::Pattern;
use crate::roles::{COUNT_AT_MOST, DUTS_AT_MOST};
use crate::steps::{STEPS_AT_MOST, SshKeys, StepKeys};

/// A job for a machine under test.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(title = "Job description", extend("required" = ["target"], "x-lenient" = true))]
#[schemars(extend("x-here-or-in-each" = here_or_in_each_role(), "allOf" = here_or_in_each_role_for_editors()))]
pub(crate) struct JobDescription {
    /// Version of the description; 1 is the only one there is.
    #[schemars(range(min = 1))]
    pub(crate) version: Option<u32>,
    /// When the job must be over; UTC unless a zone is given.
    #[schemars(with = "Option<DeadlineForm>")]
    pub(crate) deadline: Option<String>,
    /// Which machines qualify: those of one target, or a list of roles with a target each.
    #[schemars(extend("x-example" = "target: {tags: []}"))]
    pub(crate) target: TargetForm,
    /// Whether no machine of a job over several is powered on before all are ready for it; true.
    pub(crate) start_together: Option<bool>,
    /// How long each part may take.
    pub(crate) timeouts: TimeoutsKeys,
    /// What is looked for in the console's lines.
    #[schemars(extend("x-example" = "console_patterns: {}", "x-never-null" = true))]
    pub(crate) console_patterns: PatternsKeys,
    /// What to boot.
    #[schemars(extend("x-example" = "deployment: {start: {}}", "x-never-null" = true))]
    pub(crate) deployment: DeploymentsKeys,
    /// Where the machine may connect to through the farm.
    pub(crate) proxy: ProxyKeys,
}

/// Which machines qualify: by id, by tags, or both. `tags: []` alone means any machine.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("x-at-least-one" = ["id", "tags"]))]
pub(crate) struct TargetKeys {
    /// The machine's id or full name.
    pub(crate) id: Option<String>,
    /// Tags the machine must have, all of them.
    #[schemars(with = "Vec<String>", extend("x-never-null" = true))]
    pub(crate) tags: Option<Vec<String>>,
    /// Gear of the farm that nobody else may use meanwhile.
    #[schemars(with = "Vec<GearForm>", extend("uniqueItems" = true))]
    pub(crate) gear: Vec<String>,
}

/// One target, or a list of roles.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum TargetForm {
    /// First, because a list would also do as the fields of a mapping, in order.
    Roles(Vec<RoleKeys>),
    One(TargetKeys),
}

impl Default for TargetForm {
    fn default() -> TargetForm {
        TargetForm::One(TargetKeys::default())
    }
}

impl JsonSchema for TargetForm {
    fn schema_name() -> Cow<'static, str> {
        "Target".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<TargetKeys>();
        let role = generator.subschema_for::<RoleKeys>();
        json_schema!({
            "x-form": "mapping-or-list",
            "x-mapping": one,
            "x-item": role,
            "anyOf": [one, {"type": "array", "items": role, "minItems": 1, "maxItems": DUTS_AT_MOST}],
        })
    }
}

/// One of several machines of a job, or `count` of them that do the same. What it says of deployment, patterns and timeouts stands
/// in the place of what the top level says, as a whole.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["role"], "x-lenient" = true))]
pub(crate) struct RoleKeys {
    /// What the machine plays, such as `server`; each role has its own name.
    #[schemars(with = "RoleName", extend("x-example" = "role: server"))]
    pub(crate) role: Option<RoleName>,
    /// How many machines play it, as `server-1`, `server-2` and so on; 1, called `server`.
    #[schemars(range(min = 1, max = COUNT_AT_MOST))]
    pub(crate) count: Option<u32>,
    #[serde(flatten)]
    pub(crate) target: TargetKeys,
    /// What is done on a host: a role with steps is played by a host, which `id` and `tags` then mean, and boots nothing. With `ssh` it is
    /// done on the machine that the role boots.
    #[schemars(extend("maxItems" = STEPS_AT_MOST, "x-never-null" = true))]
    pub(crate) steps: Vec<StepKeys>,
    /// How the machine that the role boots is logged in to, for `steps`.
    #[schemars(with = "SshKeys", extend("x-never-null" = true))]
    pub(crate) ssh: Option<SshKeys>,
    /// How long each part may take, for this role.
    pub(crate) timeouts: Option<TimeoutsKeys>,
    /// What is looked for in the console's lines of this role.
    #[schemars(with = "PatternsKeys", extend("x-never-null" = true))]
    pub(crate) console_patterns: Option<PatternsKeys>,
    /// What this role boots.
    #[schemars(with = "DeploymentsKeys", extend("x-never-null" = true))]
    pub(crate) deployment: Option<DeploymentsKeys>,
}

/// What the top level must say unless every role says it.
const HERE_OR_IN_EACH_ROLE: [&str; 2] = ["console_patterns", "deployment"];

fn here_or_in_each_role() -> Json {
    json!({"list": "target", "keys": HERE_OR_IN_EACH_ROLE, "unless": "steps"})
}

/// The same in the words of JSON Schema.
fn here_or_in_each_role_for_editors() -> Json {
    let either = |key: &str| {
        let in_each = json!({"type": "array", "items": {"anyOf": [{"required": [key]}, {"required": ["steps"]}]}});
        json!({"anyOf": [{"required": [key]}, {"properties": {"target": in_each}, "additionalProperties": true}]})
    };
    HERE_OR_IN_EACH_ROLE.map(either).into()
}

/// How long each part may take. A timeout without any unit is infinite.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct TimeoutsKeys {
    /// The whole job; 6 hours. No retries.
    pub(crate) overall: Option<TimeoutKeys>,
    /// Downloads and preparation before power-on; a quarter of `overall`.
    pub(crate) infra_setup: Option<TimeoutKeys>,
    /// Cleaning up after the machine is done; a quarter of `overall`. No retries.
    pub(crate) infra_teardown: Option<TimeoutKeys>,
    /// From power-on to the firmware's first request; learnt from earlier boots.
    pub(crate) firmware_boot: Option<TimeoutKeys>,
    /// From power-on to power-off; infinite.
    pub(crate) boot_cycle: Option<TimeoutKeys>,
    /// From power-on to the first line of the console; infinite.
    pub(crate) first_console_activity: Option<TimeoutKeys>,
    /// Between two signs of life of the console; infinite.
    pub(crate) console_activity: Option<TimeoutKeys>,
    /// From power-on to a sign that the boot goes on, such as the next artifact fetched; infinite.
    pub(crate) boot_progress: Option<TimeoutKeys>,
    /// Watchdogs by name; the patterns of the same name start, reset and stop them.
    pub(crate) watchdogs: BTreeMap<String, TimeoutKeys>,
}

/// A duration as the sum of its units, and how often it may be exceeded.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct TimeoutKeys {
    #[serde(flatten)]
    pub(crate) units: UnitKeys,
    /// How many more boots an expiry gives; 0.
    pub(crate) retries: Option<u32>,
}

/// The units of a duration; what is negative counts down to zero.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct UnitKeys {
    /// Days of 24 hours.
    #[schemars(range(min = -36500.0, max = 36500.0))]
    pub(crate) days: Option<f64>,
    /// Hours.
    #[schemars(range(min = -876000.0, max = 876000.0))]
    pub(crate) hours: Option<f64>,
    /// Minutes.
    #[schemars(range(min = -52560000.0, max = 52560000.0))]
    pub(crate) minutes: Option<f64>,
    /// Seconds.
    #[schemars(range(min = -1e9, max = 1e9))]
    pub(crate) seconds: Option<f64>,
    /// Milliseconds.
    #[schemars(range(min = -1e12, max = 1e12))]
    pub(crate) milliseconds: Option<f64>,
}

/// What is looked for in the console's lines.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct PatternsKeys {
    /// Ends the session; the kernel's `reboot: Power Down` unless said otherwise.
    #[schemars(with = "PatternKeys", extend("x-never-null" = true))]
    pub(crate) session_end: Option<PatternKeys>,
    /// Asks for another boot, counted against `timeouts.boot_cycle.retries`.
    pub(crate) session_reboot: Option<PatternKeys>,
    /// The test passed.
    pub(crate) job_success: Option<PatternKeys>,
    /// The test passed, but somebody should look.
    pub(crate) job_warn: Option<PatternKeys>,
    /// The machine is broken: ends the session and takes the machine out of service.
    pub(crate) machine_unfit_for_service: Option<PatternKeys>,
    /// Watchdogs by name; the timeout of the same name says how long.
    pub(crate) watchdogs: BTreeMap<String, WatchdogKeys>,
}

/// A regular expression, searched in each complete line as Python's `re` does on bytes.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub(crate) struct PatternKeys {
    /// The expression.
    pub(crate) regex: Pattern,
}

/// The lines that start, reset and stop a watchdog.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub(crate) struct WatchdogKeys {
    /// Starts it.
    pub(crate) start: PatternKeys,
    /// Starts its time anew.
    pub(crate) reset: PatternKeys,
    /// Stops it.
    pub(crate) stop: PatternKeys,
}

/// What to boot, first and after a reboot.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["start"], "x-lenient" = true))]
pub(crate) struct DeploymentsKeys {
    /// The first boot.
    #[schemars(extend("x-example" = "start: {}"))]
    pub(crate) start: DeploymentDescription,
    /// Every further boot: `start` with these changes.
    #[serde(rename = "continue")]
    #[schemars(with = "DeploymentDescription", extend("x-never-null" = true))]
    pub(crate) continue_: Option<DeploymentDescription>,
}

/// One boot.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct DeploymentDescription {
    /// The kernel and its command line.
    pub(crate) kernel: Option<KernelKeys>,
    /// Initial RAM disks, concatenated in order.
    pub(crate) initramfs: Option<Collection<Artifact>>,
    /// Device trees, concatenated in order.
    pub(crate) dtb: Option<Collection<Artifact>>,
    /// What the machine may fetch or mount beyond kernel, RAM disks and device trees.
    pub(crate) storage: Option<StorageKeys>,
    /// DHCP options by what the machine says of itself; the first entry that matches wins.
    pub(crate) dhcp: Option<Collection<DhcpEntry>>,
    /// Android boot images for fastboot.
    pub(crate) fastboot: Option<Fastboot>,
}

/// A kernel: where its bytes come from, and its command line.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("x-at-most-one" = ["url", "data", "archive", "attached"]))]
pub(crate) struct KernelKeys {
    #[serde(flatten)]
    pub(crate) artifact: ArtifactKeys,
    /// Command line: pieces joined by one space.
    pub(crate) cmdline: Option<Collection<String>>,
}

/// Where the bytes of an artifact come from, and what is done with them.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct ArtifactKeys {
    /// Fetched from here, through the farm's cache.
    #[schemars(with = "Option<UrlForm>")]
    pub(crate) url: Option<String>,
    /// These very bytes.
    pub(crate) data: Option<String>,
    /// An archive made of other artifacts.
    pub(crate) archive: Option<Archive>,
    /// A file sent along with the job, by its name there.
    pub(crate) attached: Option<String>,
    /// What is done with the bytes, step by step.
    pub(crate) format: OneOrList<FormatStep>,
}

/// What the machine may fetch or mount.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct StorageKeys {
    /// Over HTTP.
    pub(crate) http: Option<Collection<StorageArtifact>>,
    /// Over TFTP.
    pub(crate) tftp: Option<Collection<StorageArtifact>>,
    /// Block devices.
    pub(crate) nbd: Named<NbdExport>,
    /// Shared directories.
    pub(crate) nfs: Named<NfsShare>,
    /// Buckets.
    pub(crate) s3: Named<Bucket>,
    /// Container images, unpacked on the gateway.
    pub(crate) imagestore: Option<ImagestoreKeys>,
}

/// An artifact with the path it is served under.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[schemars(extend("x-exactly-one" = ["url", "data", "archive", "attached"], "x-groups-of" = "path", "x-groups-in" = "url"))]
pub(crate) struct StorageArtifactKeys {
    /// The path asked for, or a regular expression for the whole of it.
    pub(crate) path: PathMatch,
    #[serde(flatten)]
    pub(crate) artifact: ArtifactKeys,
    /// How often and how long it may be read.
    #[serde(default)]
    pub(crate) lifetime: Lifetime,
    /// A port of its own, or TLS.
    #[serde(default)]
    pub(crate) expose: Option<Expose>,
}

/// A block device.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[schemars(extend("x-exactly-one" = ["url", "raw", "size", "filesystem"]))]
pub(crate) struct NbdKeys {
    /// The export's name.
    pub(crate) name: ExportName,
    /// Whether writes are refused; otherwise they go into a copy. Of a shared disk they are, unless this says `false`.
    #[serde(default)]
    pub(crate) readonly: Option<bool>,
    /// A disk image, raw or qcow2.
    #[serde(default)]
    #[schemars(with = "Option<UrlForm>")]
    pub(crate) url: Option<String>,
    /// An empty disk.
    #[serde(default)]
    pub(crate) raw: Option<RawKeys>,
    /// The size of an empty disk.
    #[serde(default)]
    #[schemars(with = "Option<SizeForm>")]
    pub(crate) size: Option<u64>,
    /// A file system made for this job.
    #[serde(default)]
    pub(crate) filesystem: Option<FilesystemKeys>,
    /// When its contents go back to the beginning.
    #[serde(default)]
    pub(crate) reset_on: ResetOn,
    /// Whether other machines may attach it too.
    #[serde(default)]
    pub(crate) shared: bool,
    /// How long it is kept after the last job that asked for it.
    #[serde(default)]
    #[schemars(with = "Option<DurationForm>")]
    pub(crate) expiration: Option<f64>,
    /// How many connections it takes at once; 4.
    #[serde(default)]
    #[schemars(range(min = 1, max = 64))]
    pub(crate) max_connections: Option<u32>,
    /// How often and how long it may be attached.
    #[serde(default)]
    pub(crate) lifetime: Lifetime,
    /// How it is served.
    #[serde(default)]
    pub(crate) expose: NbdExposeKeys,
}

/// How a block device is served: always at the farm's one port.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct NbdExposeKeys {
    /// Whether it is attached over TLS only, with a certificate of the farm's own authority.
    pub(crate) tls: bool,
}

/// An empty disk.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub(crate) struct RawKeys {
    /// Its size.
    #[schemars(with = "SizeForm")]
    pub(crate) size: u64,
}

/// A file system made for this job.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[schemars(extend("x-at-most-one" = ["data", "container"]))]
pub(crate) struct FilesystemKeys {
    /// Its type.
    #[serde(rename = "type")]
    pub(crate) kind: FilesystemKind,
    /// Its size.
    #[schemars(with = "SizeForm")]
    pub(crate) size: u64,
    /// An archive whose files go into it.
    #[serde(default)]
    pub(crate) data: Option<Artifact>,
    /// A container image whose files go into it.
    #[serde(default)]
    #[schemars(with = "Option<ContainerForm>")]
    pub(crate) container: Option<String>,
}

/// A shared directory.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[schemars(extend("x-at-most-one" = ["data", "container"]))]
pub(crate) struct NfsKeys {
    /// The share's name.
    pub(crate) name: ExportName,
    /// Whether writes are refused; otherwise they go into a copy.
    #[serde(default)]
    pub(crate) readonly: bool,
    /// An archive whose files it holds.
    #[serde(default)]
    pub(crate) data: Option<Artifact>,
    /// A container image whose files it holds.
    #[serde(default)]
    #[schemars(with = "Option<ContainerForm>")]
    pub(crate) container: Option<String>,
    /// When its contents go back to the beginning.
    #[serde(default)]
    pub(crate) reset_on: ResetOn,
    /// Whether other machines may mount it too.
    #[serde(default)]
    pub(crate) shared: bool,
    /// How long it is kept after the last job that asked for it.
    #[serde(default)]
    #[schemars(with = "Option<DurationForm>")]
    pub(crate) expiration: Option<f64>,
}

/// A bucket of object storage.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
pub(crate) struct BucketKeys {
    /// Its name in the job.
    pub(crate) bucket: ExportName,
    /// An archive whose files it begins with.
    #[serde(default)]
    pub(crate) fill: Option<Artifact>,
    /// How long it is kept after the job.
    #[serde(default)]
    #[schemars(with = "Option<DurationForm>")]
    pub(crate) expiration: Option<f64>,
}

/// Container images by store; `public` is the only store.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct ImagestoreKeys {
    /// The store all machines may read.
    pub(crate) public: Option<PublicStoreKeys>,
}

/// The images of a store.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct PublicStoreKeys {
    /// Images by the name the job's templates use.
    pub(crate) images: BTreeMap<String, Image>,
}

/// Where the machine may connect to through the farm.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct ProxyKeys {
    /// `host:port` of each place.
    pub(crate) allowed_endpoints: Collection<Endpoint>,
}

/// How often and how long an artifact may be read, written out.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct LifetimeKeys {
    /// Refused after this many accesses; 0 is no limit. Counted per boot.
    pub(crate) access_count: Option<u64>,
    /// Refused this long after the first access of a boot.
    #[schemars(with = "Option<DurationForm>")]
    pub(crate) first_read: Option<f64>,
    /// Refused this long after it was published.
    #[schemars(with = "Option<DurationForm>")]
    pub(crate) duration: Option<f64>,
}

/// Marks a field as text of a form that `forms.rs` reads.
macro_rules! form {
    ($name:ident, $form:literal, $types:tt) => {
        #[doc = concat!("Text of the form `", $form, "`.")]
        pub(crate) struct $name;

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": $types, "x-form": $form})
            }
        }
    };
}

form!(ContainerForm, "container", "string");
form!(DeadlineForm, "deadline", "string");
form!(GearForm, "gear", "string");
form!(LooseTextForm, "loose-text", ["string", "number"]);
form!(MemberForm, "member", "string");
form!(ModeForm, "mode", ["integer", "string"]);
form!(OffsetForm, "offset", ["integer", "string"]);
form!(SizeForm, "size", ["integer", "string"]);
form!(UrlForm, "url", "string");
form!(AnyForm, "any", ["string", "number", "boolean", "array"]);

/// A duration, in words or as CI-tron's mapping.
pub(crate) struct DurationForm;

impl JsonSchema for DurationForm {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let units = generator.subschema_for::<UnitKeys>();
        json_schema!({
            "x-form": "duration",
            "x-mapping": units,
            "description": "A duration, such as `5 minutes`, `1h 30m` or `{minutes: 5}`.",
            "anyOf": [{"type": "string"}, units],
        })
    }
}
