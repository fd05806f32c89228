//! From the text that was submitted to what a DUT can boot: render, check, plan, fetch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use gateway::content::reach::Reach;
use gateway::dhcp::Mac;
use gateway::door::Transport;
use gateway::namespace::{Exposure, Name};
use gateway::registry::Logins;
use job_schema::job::{Artifact, ArtifactSource, Deployment, Job, NbdExport};
use job_schema::problem::{Problem, Problems};
use job_schema::template::{Rendered, Variables};
use job_schema::{Roles, Step};
use serde::Serialize;
use serde_json::json;

use super::Current;
use super::contents::Attachments;
use super::wants::{self, Asked, Candidate, Wants};
use super::{Asks, Submission, SubmitError, texts, values};
use super::{buckets, disks, on_dut};
use super::{egress, registry};
use crate::blueprint::host::keys::FarmKeys;
use crate::boot::{BootPlan, Dut, Place, Planned, Source, database, doors};
use crate::config::{BeforeService, DutConfig, MachineConfig, SimulatedConfig};
use crate::lease::rows::Access;
use crate::render;

/// A job that is ready to be booted on its DUT.
pub(super) struct Prepared {
    pub job: Arc<Job>,
    pub start: BootPlan,
    pub continue_: BootPlan,
    /// Files that came along.
    pub attachments: Attachments,
    /// The project, user or token in whose name it runs.
    pub subject: String,
    /// What the keys to its buckets follow from.
    pub seed: String,
    /// Whose buckets its DUTs use besides.
    pub groups: Vec<String>,
    /// Its own names and passwords at registries.
    pub logins: Logins,
    /// The values of its templates, for what is rendered when it is asked for.
    pub variables: Variables,
    /// What its templates are called in problems.
    pub source_name: String,
    /// With whose view of the network its artifacts are fetched.
    pub reach: Reach,
}

impl Prepared {
    /// Whether it says of anything how often or how long it may be read.
    pub(super) fn is_limited(&self) -> bool {
        self.start.artifacts.iter().chain(&self.continue_.artifacts).any(|planned| planned.exposure.is_limited())
    }
}

/// What `wharf check --dut` shows: everything a boot would be made of, without booting.
#[derive(Clone, Debug, Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Preview {
    /// What the DUT is called in the job, when it has several.
    pub role: Option<String>,
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
    /// What the farm gives to the DUT's loader at the first boot, and to which, if it does.
    #[serde(default)]
    pub hand_over: Option<String>,
    /// Protocol, name, source and limits of everything published at the first boot.
    pub artifacts: Vec<[String; 4]>,
    /// What the job's templates may name, each with its value for this DUT.
    pub values: Vec<[String; 2]>,
}

/// Where DUTs leave messages for each other, below the gateway's own paths.
pub(super) const MESSAGES: &str = "/_/messages";

/// What a farm file alone is enough for: rendering, checking and planning jobs, with no server running.
#[derive(Clone, Debug)]
pub struct Planner {
    /// The farm.
    pub config: Current,
    /// Where its DUTs find the gateway.
    pub place: Place,
    /// The gateway's port for disks.
    pub nbd_port: u16,
    /// The gateway's port for buckets.
    pub s3_port: u16,
    /// The gateway's port for container images.
    pub registry_port: u16,
}

/// Who plays what in a job over several DUTs, as its templates see it.
#[derive(Clone, Debug, Default)]
pub(super) struct Crew {
    /// What the DUT that is rendered for is called.
    pub role: String,
    /// All of them, by name.
    pub duts: BTreeMap<String, DutConfig>,
}

impl Crew {
    /// For the check before there are DUTs: their addresses are documentation's (RFC 5737), so that URLs with them are URLs.
    fn of_nobody(names: Vec<String>) -> Option<Crew> {
        let role = names.first()?.clone();
        let dut = |(index, name): (usize, String)| {
            let dut = DutConfig {
                id: name.clone(),
                full_name: name.clone(),
                base_name: name.clone(),
                tags: Vec::new(),
                mac: format!("02:00:00:00:00:{index:02x}"),
                address: [192, 0, 2, index as u8 + 1].into(),
                comment: None,
                access: Access::Everyone,
                needs: Vec::new(),
                machine: MachineConfig::Simulated(SimulatedConfig::default()),
                off_time: None,
                boot: None,
                before_service: BeforeService::Nothing,
            };
            (name, dut)
        };
        Some(Crew { role, duts: names.into_iter().enumerate().map(dut).collect() })
    }
}

impl Planner {
    /// What the submitted text asks for, checked with placeholder values as CI-tron does.
    pub async fn asked(&self, submission: &Submission) -> Result<Asked, SubmitError> {
        let roles = self.roles(submission).await.map_err(SubmitError::Invalid)?;
        let of = |role: job_schema::Role| Wants {
            role: role.name,
            asks: if role.steps.is_empty() { Asks::Dut } else { Asks::Host },
            id: role.job.target.id,
            tags: role.job.target.tags,
            gear: role.job.target.gear,
            deadline: role.job.deadline,
        };
        let mut asked = Asked { start: roles.start, duts: roles.list.into_iter().map(of).collect() };
        match (&submission.target, asked.duts.as_mut_slice()) {
            (None, _) => {}
            (Some(target), [only]) if only.role.is_none() => {
                only.id.clone_from(&target.id);
                only.tags = target.tags.clone().unwrap_or_default();
            }
            (Some(_), _) => {
                let problem = Problem::new("the job has roles, so it cannot be sent to one machine".to_owned())
                    .about("target")
                    .hint("leave the machine and the tags of the command line out; each role has its own");
                let problems = Problems::one(&submission.source_name, submission.text.as_str(), problem);
                return Err(SubmitError::Invalid(problems));
            }
        }
        Ok(asked)
    }

    /// The DUTs of a job with placeholder values. Their names come first: the templates tell the DUTs of each other.
    async fn roles(&self, submission: &Submission) -> Result<Roles, Problems> {
        let rendered = self.render(submission, None, None).await?;
        let rendered = match Crew::of_nobody(Roles::names_in(&rendered)) {
            Some(crew) => self.render(submission, None, Some(&crew)).await?,
            None => rendered,
        };
        let roles = Job::parse_all(&rendered)?;
        roles.list.iter().try_for_each(|role| self.served(&role.job, submission, &rendered))?;
        let wrong: Vec<_> = roles.list.iter().filter_map(|role| on_dut::mistake(role.job.by_ssh.as_ref()?)).collect();
        if wrong.is_empty() { Ok(roles) } else { Err(Problems::new(&submission.source_name, &rendered.text, wrong)) }
    }

    /// The job as it is for this DUT, and as this member of the crew.
    pub(super) async fn prepare(
        &self,
        submission: &Submission,
        dut: &DutConfig,
        crew: Option<&Crew>,
    ) -> Result<Prepared, Problems> {
        let rendered = self.render(submission, Some(dut), crew).await?;
        let variables = self.variables(Some(dut), submission, crew, &Storage::in_(&rendered));
        let config = self.config.get();
        let tags = wants::tags_of(&config, dut);
        let choices = database::choices(dut.boot.as_ref(), config.boots.as_ref(), &tags, &variables)?;
        let boots = Dut { place: self.place, mac: dut.mac.parse().unwrap_or(Mac([0; 6])) };
        let (mut jobs, mut start, mut continue_) = (Vec::new(), Vec::new(), Vec::new());
        for choice in choices {
            let mut job = Job::parse_over(&rendered, crew.map(|crew| crew.role.as_str()), &choice.defaults)?;
            texts::render_again(&submission.source_name, &mut job, &variables).await?;
            self.served(&job, submission, &rendered)?;
            let plan = |deployment| choice.plan(deployment, &boots).map_err(|why| refused(why, submission, &rendered));
            start.push(plan(&job.start)?);
            continue_.push(plan(&job.continue_)?);
            jobs.push(job);
        }
        let job = jobs.into_iter().next().expect("there is always a way to boot");
        let (start, continue_) = (database::joined(start), database::joined(continue_));
        let (attachments, source_name) = (submission.attachments.clone(), submission.source_name.clone());
        let (subject, seed, reach) = (submission.subject.clone(), submission.seed.clone(), submission.reach);
        let logins = registry::logins(&submission.environ);
        Ok(Prepared {
            job: Arc::new(job),
            start,
            continue_,
            attachments,
            subject,
            seed,
            groups: submission.groups.clone(),
            logins,
            variables,
            source_name,
            reach,
        })
    }

    /// What the host of a role does, with the DUTs that the job has got.
    pub(super) async fn steps(&self, submission: &Submission, crew: &Crew) -> Result<Vec<Step>, Problems> {
        let rendered = self.render(submission, None, Some(crew)).await?;
        let roles = Job::parse_all(&rendered)?;
        let role = roles.list.into_iter().find(|role| role.name.as_deref() == Some(crew.role.as_str()));
        Ok(role.map(|role| role.steps).unwrap_or_default())
    }

    /// In a child: whatever a template does, it does not do it to us. A job with disks is rendered twice, because its templates may
    /// tell where they are.
    async fn render(
        &self,
        submission: &Submission,
        dut: Option<&DutConfig>,
        crew: Option<&Crew>,
    ) -> Result<Rendered, Problems> {
        let variables = self.variables(dut, submission, crew, &Storage::default());
        let rendered = render::in_child(&submission.source_name, &submission.text, &variables).await?;
        let storage = Storage::in_(&rendered);
        if storage == Storage::default() {
            return Ok(rendered);
        }
        let variables = self.variables(dut, submission, crew, &storage);
        render::in_child(&submission.source_name, &submission.text, &variables).await
    }

    /// A dry run of `submission` for `dut` (an id or full name; `None`: the first that fits): a preview per DUT of the job.
    pub async fn preview(&self, submission: &Submission, dut: Option<&str>) -> Result<Vec<Preview>, SubmitError> {
        let asked = self.asked(submission).await?;
        let mut chosen = asked.clone();
        let config = self.config.get();
        let candidates = Candidate::all_of(&config);
        if let (Some(name), [only]) = (dut, chosen.duts.as_mut_slice()) {
            if !candidates.iter().any(|dut| dut.is_called(name)) {
                return Err(SubmitError::NoSuchDut { wanted: name.to_owned(), known: wants::names(&candidates) });
            }
            (only.id, only.tags) = (Some(name.to_owned()), Vec::new());
        }
        let cast = wants::cast(&config, &candidates, &chosen)?;
        let members: Vec<DutConfig> = cast.iter().filter_map(|place| config.member(candidates[*place].id())).collect();
        let names = asked.of_duts().filter_map(|wants| wants.role.clone());
        let duts: BTreeMap<_, _> = names.zip(members.iter().cloned()).collect();
        let mut previews = Vec::new();
        for (wants, member) in asked.of_duts().zip(&members) {
            let crew = wants.role.clone().map(|role| Crew { role, duts: duts.clone() });
            let prepared = self.prepare(submission, member, crew.as_ref()).await.map_err(SubmitError::Invalid)?;
            let fitting = candidates.iter().filter(|dut| dut.fits(wants));
            previews.push(Preview {
                role: wants.role.clone(),
                dut: member.full_name.clone(),
                fitting_duts: fitting.map(|dut| dut.full_name().to_owned()).collect(),
                values: values::of(&prepared).await.map_err(SubmitError::Invalid)?,
                ..Preview::of(&prepared)
            });
        }
        Ok(previews)
    }

    /// Those of `names` that no template value of this farm has.
    pub fn unknown_names(&self, names: Vec<String>) -> Vec<String> {
        let crew = Crew::of_nobody(vec!["role".into()]);
        let known = self.variables(None, &Submission::default(), crew.as_ref(), &Storage::default());
        let root = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
        let roots: BTreeSet<_> = names.iter().map(|name| root(name)).collect();
        roots.into_iter().filter(|name| known.get(name).is_none()).collect()
    }

    /// Refuses what a job may say and this version does not do yet (a job that silently lacks its disk fails late and oddly), and what
    /// it wants where something else is.
    fn served(&self, job: &Job, submission: &Submission, rendered: &Rendered) -> Result<(), Problems> {
        let unserved: BTreeSet<_> = unserved(&job.start).into_iter().chain(unserved(&job.continue_)).collect();
        let unserved = unserved.into_iter().map(|what| {
            let problem =
                Problem::new(format!("{what} is checked, but not served by this version")).about("deployment");
            problem.hint("README.md lists what this version serves")
        });
        let config = self.config.get();
        let kept = buckets::mistakes(job, config.buckets);
        let unknown = buckets::unknown_objects(job, &config.stores)
            .into_iter()
            .map(|what| Problem::new(what).about("deployment"));
        let own = doors::Own { http: self.place.http_port, nbd: self.nbd_port };
        let misplaced = doors::refused(job, own).into_iter().map(|what| Problem::new(what).about("deployment"));
        let refused = egress::mistakes(job, &config.proxy);
        let problems: Vec<_> = unserved.chain(unknown).chain(misplaced).chain(refused).chain(kept).collect();
        if problems.is_empty() {
            return Ok(());
        }
        Err(Problems::new(&submission.source_name, &rendered.text, problems))
    }

    /// What a job's templates may use. Without a DUT the values are CI-tron's placeholders, so that both forms of a job are checked.
    fn variables(
        &self,
        dut: Option<&DutConfig>,
        submission: &Submission,
        crew: Option<&Crew>,
        storage: &Storage,
    ) -> Variables {
        let mut variables = Variables::new();
        let config = self.config.get();
        let places = registry::places(config.registry.as_ref(), self.place.address, self.registry_port);
        let (older_name, host) = registry::FDO_PROXY_REGISTRY;
        if let Some(place) = places.get(host) {
            variables.insert(older_name, place);
        }
        variables.insert("registry", json!({ "proxies": places }));
        for (name, value) in &config.job_variables {
            variables.insert(name, value);
        }
        let machine = dut.map_or(json!({}), |dut| self.machine(dut));
        variables.insert("machine_id", dut.map_or("machine_id", |dut| dut.id.as_str()));
        variables.insert("machine_tags", machine.get("tags").unwrap_or(&json!([])));
        variables.insert("local_tty_device", dut.map_or("", |_| "ttyS0"));
        variables.insert("ready_for_service", true);
        variables.insert("machine", &machine);
        variables.insert("dut", &machine);
        variables.insert("environ", &submission.environ);
        // Until a farm has run here there is none, and nobody to log in.
        let public_key = FarmKeys::login_of(&self.config.get().state).unwrap_or_else(|| "ssh-ed25519 AAAA".to_owned());
        variables.insert("ssh", json!({ "public_key": public_key }));
        let http = self.place.http_url();
        let address = self.place.address.to_string();
        let mut job = json!({
            "http": { "url": http, "host": address, "port": self.place.http_port },
            "tftp": { "url": format!("tftp://{address}"), "host": address },
        });
        if let Some(crew) = crew {
            let duts: BTreeMap<_, _> = crew.duts.iter().map(|(name, dut)| (name, self.machine(dut))).collect();
            variables.insert("role", &crew.role);
            variables.insert("roles", &duts);
            job["messages"] = json!({ "url": format!("{http}{MESSAGES}") });
        }
        let port = self.nbd_port;
        let disk = |disk: &NbdExport| {
            let name = disk.name.to_string();
            let scheme = if disk.tls { "nbds" } else { "nbd" };
            let value = json!({
                "name": name, "export": name, "host": address, "hostname": address, "port": port, "tcp_port": port,
                "max_connections": disk.max_connections, "url": format!("{scheme}://{address}:{port}/{name}"),
            });
            (name, value)
        };
        job["nbd"] = storage.disks.iter().map(disk).collect::<serde_json::Map<_, _>>().into();
        let keys = buckets::Keys::of_dut(&submission.seed, dut.map_or("machine_id", |dut| dut.id.as_str()));
        let own = buckets::own_name(&submission.seed);
        let place = (self.place.address.into(), self.s3_port);
        for (name, value) in buckets::values(place, &keys, &own, &storage.buckets) {
            match name {
                "s3" | "bucket" => job[name] = value,
                _ => variables.insert(name, value),
            }
        }
        variables.insert("job", job);
        variables
    }

    /// CI-tron's `machine`, and main's `dut` with its `hostname`.
    fn machine(&self, dut: &DutConfig) -> serde_json::Value {
        json!({
            "id": dut.id,
            "base_name": dut.base_name,
            "full_name": dut.full_name,
            "hostname": dut.full_name,
            "tags": wants::tags_of(&self.config.get(), dut),
            "manual_tags": [],
            "mac_address": dut.mac,
            "ip_address": dut.address.to_string(),
            "local_tty_device": "ttyS0",
            "ready_for_service": true,
            "comment": dut.comment,
        })
    }
}

impl Preview {
    fn of(prepared: &Prepared) -> Preview {
        Preview {
            role: None,
            dut: String::new(),
            fitting_duts: Vec::new(),
            start_cmdline: prepared.job.start.cmdline_text(),
            continue_cmdline: prepared.job.continue_.cmdline_text(),
            boot_script: prepared.start.artifacts.iter().find_map(|planned| match &planned.source {
                Source::Text(text) | Source::Wrapped { text, .. } => Some(text.clone()),
                Source::Android(_) | Source::Firmware(_) | Source::Artifacts(_) | Source::Archives(_) => None,
            }),
            hand_over: prepared.start.hand_over.as_ref().map(ToString::to_string),
            artifacts: {
                let storage = &prepared.job.start.storage;
                let disks = storage.nbd.iter().map(disks::described);
                let buckets = storage.s3.iter().map(|bucket| buckets::described(bucket, describe_artifact));
                prepared.start.artifacts.iter().map(describe).chain(disks).chain(buckets).collect()
            },
            values: Vec::new(),
        }
    }
}

/// A deployment that cannot be planned.
fn refused(why: Vec<String>, submission: &Submission, rendered: &Rendered) -> Problems {
    let problem = |what| Problem::new(what).about("deployment.start.dhcp").hint("mend the entry's `options`");
    Problems::new(&submission.source_name, &rendered.text, why.into_iter().map(problem).collect())
}

/// What is not served yet. `fastboot` is not among them: it only speaks to machines that boot so.
fn unserved(deployment: &Deployment) -> Vec<&'static str> {
    let storage = &deployment.storage;
    let table = [("`storage.nfs`", !storage.nfs.is_empty()), ("`storage.imagestore`", !storage.imagestore.is_empty())];
    let files_and_rest = table.into_iter().filter(|(_, used)| *used).map(|(what, _)| what);
    files_and_rest.chain(disks::unserved(&storage.nbd)).collect()
}

/// What a job's templates may name of its storage, of all its DUTs. What cannot be read is told when it is parsed.
#[derive(Default, PartialEq)]
struct Storage {
    disks: Vec<NbdExport>,
    buckets: Vec<String>,
}

impl Storage {
    fn in_(rendered: &Rendered) -> Storage {
        let roles = Job::parse_all(rendered).map(|roles| roles.list).unwrap_or_default();
        let mut storage = Storage::default();
        for role in &roles {
            for deployment in [&role.job.start, &role.job.continue_] {
                storage.disks.extend(deployment.storage.nbd.iter().cloned());
            }
            storage.buckets.extend(buckets::declared(&role.job).iter().map(|bucket| bucket.bucket.to_string()));
        }
        storage
    }
}

fn describe(planned: &Planned) -> [String; 4] {
    let (Name::Exact(name) | Name::Matching(name, _)) = &planned.name;
    [planned.protocol.to_string(), name.clone(), describe_source(&planned.source), describe_exposure(&planned.exposure)]
}

fn describe_artifact(artifact: &Artifact) -> String {
    let source = match &artifact.source {
        ArtifactSource::Url(url) => url.clone(),
        ArtifactSource::Data(_) if texts::served(artifact).is_some() => "a template, filled in when it is read".into(),
        ArtifactSource::Data(text) => format!("{} bytes of text", text.len()),
        ArtifactSource::Archive(archive) => format!("an archive of {} files", archive.add.len()),
        ArtifactSource::Attached(name) => format!("attached file {name}"),
    };
    if artifact.format.is_empty() { source } else { format!("{source}, edited") }
}

fn describe_source(source: &Source) -> String {
    match source {
        Source::Text(text) => format!("{} bytes, generated", text.len()),
        Source::Wrapped { bytes, .. } => format!("{} bytes, generated", bytes.len()),
        Source::Android(_) => "a boot image, generated".to_owned(),
        Source::Firmware(path) => path.display().to_string(),
        Source::Artifacts(artifacts) | Source::Archives(artifacts) => {
            artifacts.iter().map(describe_artifact).collect::<Vec<_>>().join(" + ")
        }
    }
}

pub(super) fn describe_exposure(exposure: &Exposure) -> String {
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
    match (exposure.port, exposure.transport) {
        (Some(port), Transport::Clear) => limits.push(format!("at port {port} as well")),
        (Some(port), Transport::Tls) => limits.push(format!("over TLS at port {port}")),
        (None, Transport::Tls) => limits.push("over TLS".to_owned()),
        (None, Transport::Clear) => {}
    }
    if limits.is_empty() { "no limit".to_owned() } else { limits.join(", ") }
}
