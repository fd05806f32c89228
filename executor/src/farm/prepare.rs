//! From the text that was submitted to what a DUT can boot: render, check, plan, fetch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use gateway::content::Content;
use gateway::content::cache::Cached;
use gateway::namespace::{Exposure, Name, Origin, Protocol};
use job_schema::job::{Artifact, ArtifactSource, Deployment, Job};
use job_schema::problem::{Problem, Problems};
use job_schema::template::{Rendered, Variables};
use serde::Serialize;
use serde_json::json;

use super::{Farm, Submission, SubmitError, lease_of};
use crate::boot::ipxe::Ipxe;
use crate::boot::{BootMethod, BootPlan, Place, Planned, Source};
use crate::config::{DutConfig, FarmConfig};
use crate::job_log::{JobEvent, JobLog};
use crate::lease::RequestError;
use crate::lease::rows::{Kind, LeaseRequest, Mode, Owner, Timeouts, Want};
use crate::render;
use crate::runner::SetupError;
use crate::verdict::Cause;

/// A job that is ready to be booted on its DUT.
pub(super) struct Prepared {
    pub job: Arc<Job>,
    pub start: BootPlan,
    pub continue_: BootPlan,
}

/// What `wharf check --dut` shows: everything a boot would be made of, without booting.
#[derive(Clone, Debug, Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Preview {
    /// The DUT it was rendered for.
    pub dut: String,
    /// The DUTs that could ever take the job.
    pub fitting_duts: Vec<String>,
    /// The kernel's command line at the first boot.
    pub start_cmdline: String,
    /// The kernel's command line at later boots.
    pub continue_cmdline: String,
    /// The boot script of the first boot, if the boot method writes one.
    pub boot_script: Option<String>,
    /// Protocol, name, source and limits of everything published at the first boot.
    pub artifacts: Vec<[String; 4]>,
}

/// What a farm file alone is enough for: rendering, checking and planning jobs, with no server running.
#[derive(Clone, Debug)]
pub struct Planner {
    /// The farm.
    pub config: FarmConfig,
    /// Where its DUTs find the gateway.
    pub place: Place,
}

/// What a job asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// A DUT's id or full name; `None`: any.
    pub id: Option<String>,
    /// Tags that the DUT must all have.
    pub tags: Vec<String>,
    /// When the job must be over.
    pub deadline: Option<jiff::Timestamp>,
}

/// How long a DUT's parts may take to come up: three tries of an outlet that takes half a minute.
const ACTIVATE_MS: u64 = 200_000;

impl Wants {
    /// The request of a job for its DUT.
    pub(super) fn request(&self, submission: &Submission, job: &str) -> LeaseRequest {
        let left = self.deadline.map(|deadline| deadline.duration_since(jiff::Timestamp::now()).as_millis().max(0));
        LeaseRequest {
            id: lease_of(job),
            want: Want { kind: Kind::Dut, name: self.id.clone(), tags: self.tags.clone(), mode: Mode::Hold },
            also: Vec::new(),
            gang: None,
            prefers: Vec::new(),
            avoid: Vec::new(),
            sticky: None,
            priority: submission.priority,
            owner: Owner::Job(job.to_owned()),
            authorizer: submission.subject.clone(),
            timeouts: Timeouts {
                queue_ms: left.and_then(|left| u64::try_from(left).ok()),
                activate_ms: Some(ACTIVATE_MS),
                ..Timeouts::default()
            },
        }
    }
}

/// A DUT as the farm file has it.
struct Candidate {
    id: String,
    full_name: String,
    tags: Vec<String>,
}

impl Candidate {
    fn is_called(&self, name: &str) -> bool {
        self.id == name || self.full_name == name
    }

    /// `Err` says in a sentence why this DUT could never serve `wants`.
    fn fits(&self, wants: &Wants) -> Result<(), String> {
        if let Some(id) = wants.id.as_ref().filter(|id| !self.is_called(id)) {
            return Err(format!("{} is not `{id}`", self.full_name));
        }
        let missing: Vec<_> =
            wants.tags.iter().filter(|tag| !self.tags.contains(tag)).map(|tag| format!("`{tag}`")).collect();
        let lacks = || format!("{} lacks the tags {}", self.full_name, missing.join(", "));
        if missing.is_empty() { Ok(()) } else { Err(lacks()) }
    }
}

impl Planner {
    /// What the submitted text asks for, checked with placeholder values as CI-tron does.
    pub async fn wants(&self, submission: &Submission) -> Result<Wants, SubmitError> {
        let variables = self.variables(None, &submission.environ);
        let job = parse(submission, &variables).await.map_err(SubmitError::Invalid)?;
        let deadline = job.deadline;
        Ok(match &submission.target {
            Some(target) => Wants { id: target.id.clone(), tags: target.tags.clone().unwrap_or_default(), deadline },
            None => Wants { id: job.target.id.clone(), tags: job.target.tags.clone(), deadline },
        })
    }

    /// The job as it is for this DUT.
    pub(super) async fn prepare(&self, submission: &Submission, dut: &DutConfig) -> Result<Prepared, Problems> {
        let variables = self.variables(Some(dut), &submission.environ);
        let job = parse(submission, &variables).await?;
        let method = Ipxe::of_the_system();
        let start = method.plan(&job.start, self.place);
        let continue_ = method.plan(&job.continue_, self.place);
        Ok(Prepared { job: Arc::new(job), start, continue_ })
    }

    /// A dry run of `submission` for `dut` (an id or full name; `None`: the first that fits).
    pub async fn preview(&self, submission: &Submission, dut: Option<&str>) -> Result<Preview, SubmitError> {
        let wants = self.wants(submission).await?;
        let candidates = self.candidates();
        let fitting: Vec<_> = candidates.iter().filter(|dut| dut.fits(&wants).is_ok()).collect();
        let chosen = match dut {
            Some(name) => candidates.iter().find(|dut| dut.is_called(name)).ok_or_else(|| {
                let known = candidates.iter().map(|dut| dut.full_name.clone()).collect();
                SubmitError::NoSuchDut { wanted: name.to_owned(), known }
            })?,
            None => fitting.first().copied().ok_or_else(|| misfit(&candidates, &wants))?,
        };
        let config = self.config.member(&chosen.id).expect("candidates are made from these");
        let config = &config;
        let prepared = self.prepare(submission, config).await.map_err(SubmitError::Invalid)?;
        Ok(Preview {
            dut: chosen.full_name.clone(),
            fitting_duts: fitting.iter().map(|dut| dut.full_name.clone()).collect(),
            start_cmdline: prepared.job.start.cmdline_text(),
            continue_cmdline: prepared.job.continue_.cmdline_text(),
            boot_script: prepared.start.artifacts.iter().find_map(|planned| match &planned.source {
                Source::Text(text) => Some(text.clone()),
                Source::Firmware(_) | Source::Artifacts(_) => None,
            }),
            artifacts: prepared.start.artifacts.iter().map(describe).collect(),
        })
    }

    /// Every DUT that there is, or that could be made.
    fn candidates(&self) -> Vec<Candidate> {
        let of = |dut: &DutConfig| Candidate {
            id: dut.id.clone(),
            full_name: dut.full_name.clone(),
            tags: self.tags_of(dut),
        };
        self.config.duts.iter().map(of).collect()
    }

    fn tags_of(&self, dut: &DutConfig) -> Vec<String> {
        dut.tags.iter().cloned().chain([format!("farm:{}", self.config.name)]).collect()
    }

    /// Why the keeper did not take a request, in the submitter's terms.
    pub(super) fn refusal(&self, wants: &Wants, error: RequestError) -> SubmitError {
        let candidates = self.candidates();
        match error {
            RequestError::NeverFeasible(why) if candidates.iter().any(|dut| dut.fits(wants).is_ok()) => {
                SubmitError::Never(why)
            }
            RequestError::NeverFeasible(_) => misfit(&candidates, wants),
            error @ (RequestError::NoSuch(_) | RequestError::Store(_) | RequestError::Stopped) => {
                SubmitError::Farm(error.to_string())
            }
        }
    }

    /// Those of `names` that no template value of this farm has.
    pub fn unknown_names(&self, names: Vec<String>) -> Vec<String> {
        let known = self.variables(None, &BTreeMap::new());
        let root = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
        let roots: BTreeSet<_> = names.iter().map(|name| root(name)).collect();
        roots.into_iter().filter(|name| known.get(name).is_none()).collect()
    }

    /// What a job's templates may use. Without a DUT the values are CI-tron's placeholders, so that both forms of a job are checked.
    fn variables(&self, dut: Option<&DutConfig>, environ: &BTreeMap<String, String>) -> Variables {
        let mut variables = Variables::new();
        for (name, value) in &self.config.job_variables {
            variables.insert(name, value);
        }
        let machine = dut.map_or(json!({}), |dut| self.machine(dut));
        variables.insert("machine_id", dut.map_or("machine_id", |dut| dut.id.as_str()));
        variables.insert("machine_tags", machine.get("tags").unwrap_or(&json!([])));
        variables.insert("local_tty_device", dut.map_or("", |_| "ttyS0"));
        variables.insert("ready_for_service", true);
        variables.insert("machine", &machine);
        variables.insert("dut", &machine);
        variables.insert("environ", environ);
        let http = self.place.http_url();
        let address = self.place.address.to_string();
        variables.insert(
            "job",
            json!({
                "http": { "url": http, "host": address, "port": self.place.http_port },
                "tftp": { "url": format!("tftp://{address}"), "host": address },
            }),
        );
        variables
    }

    /// CI-tron's `machine`, and main's `dut` with its `hostname`.
    fn machine(&self, dut: &DutConfig) -> serde_json::Value {
        json!({
            "id": dut.id,
            "base_name": dut.base_name,
            "full_name": dut.full_name,
            "hostname": dut.full_name,
            "tags": self.tags_of(dut),
            "manual_tags": [],
            "mac_address": dut.mac,
            "ip_address": dut.address.to_string(),
            "local_tty_device": "ttyS0",
            "ready_for_service": true,
            "comment": dut.comment,
        })
    }
}

/// Why no DUT of the farm could ever take the job.
fn misfit(candidates: &[Candidate], wants: &Wants) -> SubmitError {
    match &wants.id {
        Some(id) if !candidates.iter().any(|dut| dut.id == *id || dut.full_name == *id) => {
            let known = candidates.iter().map(|dut| dut.full_name.clone()).collect();
            SubmitError::NoSuchDut { wanted: id.clone(), known }
        }
        _ => {
            let reasons = candidates.iter().filter_map(|dut| dut.fits(wants).err()).collect();
            SubmitError::NoDutMatches { tags: wants.tags.clone(), reasons }
        }
    }
}

/// Text to job: the rendering in a child, the rest here.
async fn parse(submission: &Submission, variables: &Variables) -> Result<Job, Problems> {
    let rendered: Rendered = render::in_child(&submission.source_name, &submission.text, variables).await?;
    let job = Job::parse(&rendered)?;
    let mut unserved: BTreeSet<_> = unserved(&job.start).into_iter().chain(unserved(&job.continue_)).collect();
    if !job.proxy.is_empty() {
        unserved.insert("`proxy.allowed_endpoints`");
    }
    if unserved.is_empty() {
        return Ok(job);
    }
    let problem = |what: &str| {
        Problem::new(format!("{what} is checked, but not served by this version"))
            .about("deployment")
            .hint("README.md lists what this version serves")
    };
    Err(Problems::new(&submission.source_name, &rendered.text, unserved.into_iter().map(problem).collect()))
}

/// What a job may say and this version does not do yet. Refused at once: a job that silently lacks its disk fails late and oddly.
/// `fastboot` is not among them: it only speaks to machines that boot so.
fn unserved(deployment: &Deployment) -> Vec<&'static str> {
    let storage = &deployment.storage;
    let files = || storage.http.iter().chain(&storage.tftp);
    let artifacts = || {
        let kernel = deployment.kernel.iter().map(|kernel| &kernel.artifact);
        kernel.chain(&deployment.initramfs).chain(&deployment.dtb).chain(files().map(|file| &file.artifact))
    };
    let is_archive = |artifact: &Artifact| matches!(artifact.source, ArtifactSource::Archive(_));
    let is_s3 = |artifact: &Artifact| matches!(&artifact.source, ArtifactSource::Url(url) if url.starts_with("s3:"));
    let table = [
        ("`storage.nbd`", !storage.nbd.is_empty()),
        ("`storage.nfs`", !storage.nfs.is_empty()),
        ("`storage.s3`", !storage.s3.is_empty()),
        ("`storage.imagestore`", !storage.imagestore.is_empty()),
        ("`dhcp`", !deployment.dhcp.is_empty()),
        ("an artifact's `archive`", artifacts().any(is_archive)),
        ("an artifact's `format`", artifacts().any(|artifact| !artifact.format.is_empty())),
        ("an artifact's `s3://` URL", artifacts().any(is_s3)),
        ("an artifact's `expose`", files().any(|file| file.expose.is_some())),
    ];
    table.into_iter().filter(|(_, used)| *used).map(|(what, _)| what).collect()
}

impl Farm {
    /// Begins every download that a plan needs, and waits until what the firmware needs is there whole. Other URLs have answered
    /// by then, and stream to the DUT while they are still arriving.
    pub(super) async fn fetch(&self, log: &JobLog, prepared: &Prepared) -> Result<Contents, SetupError> {
        let mut downloads: BTreeMap<String, (Cached, Origin)> = BTreeMap::new();
        for planned in prepared.start.artifacts.iter().chain(&prepared.continue_.artifacts) {
            for url in urls(&planned.source) {
                let entry =
                    downloads.entry(url.clone()).or_insert_with(|| (self.gateway.cache().fetch(&url), planned.origin));
                if planned.origin == Origin::Generated {
                    entry.1 = Origin::Generated;
                }
            }
        }
        for (url, (cached, origin)) in &downloads {
            wait_for(log, url, cached, *origin)
                .await
                .map_err(|error| SetupError { cause: Cause::Artifact, reason: error.to_string() })?;
        }
        Ok(Contents(downloads.into_iter().map(|(url, (cached, _))| (url, cached)).collect()))
    }
}

/// Waits for one download, and says twice a second how far it is.
async fn wait_for(
    log: &JobLog,
    url: &str,
    cached: &Cached,
    origin: Origin,
) -> Result<(), gateway::content::ContentError> {
    let waiting = async {
        match origin {
            Origin::Generated => cached.wait_complete().await,
            Origin::Job => cached.ready().await,
        }
    };
    tokio::pin!(waiting);
    let mut told = None;
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(500));
    loop {
        tokio::select! {
            result = &mut waiting => {
                tell_download(log, url, cached, &mut told);
                return result;
            }
            _ = tick.tick() => tell_download(log, url, cached, &mut told),
        }
    }
}

fn tell_download(log: &JobLog, url: &str, cached: &Cached, told: &mut Option<u64>) {
    let progress = cached.state();
    if *told != Some(progress.bytes) {
        *told = Some(progress.bytes);
        log.append(JobEvent::Download { url: url.to_owned(), bytes: progress.bytes, total: progress.total });
    }
}

/// The downloads of a job by URL; they are kept in the cache at least as long as this lives.
#[derive(Default)]
pub(super) struct Contents(BTreeMap<String, Cached>);

impl Contents {
    /// What an entry of the plan serves, or why it cannot.
    pub(super) fn of(&self, planned: &Planned, attachments: &BTreeMap<String, Bytes>) -> Result<Content, String> {
        match &planned.source {
            Source::Text(text) => Ok(Content::Inline(Bytes::from(text.clone()))),
            Source::Firmware(path) => Ok(Content::File(path.clone())),
            Source::Artifacts(artifacts) => {
                let parts: Result<Vec<_>, _> =
                    artifacts.iter().map(|artifact| self.artifact(artifact, attachments)).collect();
                let mut parts = parts?;
                Ok(if parts.len() == 1 { parts.remove(0) } else { Content::Joined(parts.into()) })
            }
        }
    }

    fn artifact(&self, artifact: &Artifact, attachments: &BTreeMap<String, Bytes>) -> Result<Content, String> {
        match &artifact.source {
            ArtifactSource::Data(text) => Ok(Content::Inline(Bytes::from(text.clone()))),
            ArtifactSource::Url(url) => {
                self.0.get(url).cloned().map(Content::Url).ok_or_else(|| format!("`{url}` was not fetched"))
            }
            ArtifactSource::Attached(name) => attachments.get(name).cloned().map(Content::Inline).ok_or_else(|| {
                let known: Vec<_> = attachments.keys().map(String::as_str).collect();
                format!("no file `{name}` was attached; attached: {}", known.join(", "))
            }),
            ArtifactSource::Archive(_) => Err("`archive` artifacts are not served by this version".into()),
        }
    }
}

fn urls(source: &Source) -> Vec<String> {
    let Source::Artifacts(artifacts) = source else { return Vec::new() };
    let url = |artifact: &'_ Artifact| match &artifact.source {
        ArtifactSource::Url(url) => Some(url.clone()),
        ArtifactSource::Data(_) | ArtifactSource::Attached(_) | ArtifactSource::Archive(_) => None,
    };
    artifacts.iter().filter_map(url).collect()
}

fn describe(planned: &Planned) -> [String; 4] {
    let (Name::Exact(name) | Name::Matching(name, _)) = &planned.name;
    let protocol = match planned.protocol {
        Protocol::Http => "HTTP",
        Protocol::Tftp => "TFTP",
    };
    [protocol.to_owned(), name.clone(), describe_source(&planned.source), describe_exposure(&planned.exposure)]
}

fn describe_source(source: &Source) -> String {
    let artifact = |artifact: &Artifact| match &artifact.source {
        ArtifactSource::Url(url) => url.clone(),
        ArtifactSource::Data(text) => format!("{} bytes of text", text.len()),
        ArtifactSource::Archive(_) => "an archive".to_owned(),
        ArtifactSource::Attached(name) => format!("attached file {name}"),
    };
    match source {
        Source::Text(text) => format!("{} bytes, generated", text.len()),
        Source::Firmware(path) => path.display().to_string(),
        Source::Artifacts(artifacts) => artifacts.iter().map(artifact).collect::<Vec<_>>().join(" + "),
    }
}

fn describe_exposure(exposure: &Exposure) -> String {
    let mut limits = Vec::new();
    if let Some(count) = exposure.access_count.filter(|count| *count > 0) {
        limits.push(format!("{count} accesses a boot"));
    }
    if let Some(first_read) = exposure.first_read {
        limits.push(format!("{first_read:?} after the first"));
    }
    if let Some(duration) = exposure.duration {
        limits.push(format!("{duration:?} in all"));
    }
    if limits.is_empty() { "no limit".to_owned() } else { limits.join(", ") }
}
