//! From a GitLab job to what the farm is handed: its text, its variables, the files that it names.
//!
//! ```text
//!  Job ─► variables expanded ─► form ─┬─ text in a variable
//!                                     ├─ a file of the repository, of an artifact, of a URL: fetched
//!                                     ├─ CI_TRON_*: glartifact:// links looked up, then ci_tron.rs; its shared folder packed (executorctl.rs)
//!                                     └─ script: the farm's own job, or the farm file's; its files packed (checkout.rs)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use gateway::registry::Door;
use serde_json::{Value, json};

use super::cache::{Caches, Found};
use super::checkout::{self, Layout};
use super::ci_tron::{self, Environment};
use super::client::{Client, in_query};
use super::courier::Outcome;
use super::executorctl;
use super::folder::Over;
use super::forms::{self, Form, PipelineArtifact};
use super::git::Git;
use super::image::{self, Loaded};
use super::passed_over;
use super::produce::unpacked;
use super::register::Wanted;
use super::script;
use super::wire::{Dependency, Features, Job};
use crate::config::BucketMember;
use crate::farm::{Attached, DIRECTORY, Descriptions, TargetOverride};

/// A job description, as the API takes them.
const TEXT_BYTES_MAX: usize = 256 * 1024;
/// An archive of artifacts: what a job's files may have unpacked (checkout.rs).
const ARCHIVE_BYTES_MAX: u64 = 8 << 30;
/// A page of a pipeline's jobs has some hundreds of KiB.
const PAGE_BYTES_MAX: usize = 16 << 20;
/// All files that come along, as the API takes them.
const ATTACHED_BYTES_MAX: usize = 64 << 20;
/// A pipeline's jobs come in pages of 100.
const PAGES_MAX: usize = 20;
/// A machine that takes longer to begin with a script has another limit for that (`first_console_activity`).
const BOOT_S: u64 = 3600;
/// The files of a plain script and the root of its image, among those that come along.
const FILES: &str = "gitlab/files.tar";
const IMAGE: &str = "gitlab/image.tar";
/// What plain scripts run in.
const SCRIPT_JOB: &str = include_str!("../../../../fixtures/jobs/good/gitlab-script.yml");

/// What the farm is handed.
#[derive(Debug, Default)]
pub(super) struct Described {
    pub source_name: String,
    pub text: String,
    pub environ: Environment,
    pub attachments: BTreeMap<String, Attached>,
    /// Sentences for the job's log.
    pub said: Vec<String>,
    /// Those that deserve a second look.
    pub notes: Vec<String>,
    /// Whose buckets it may use besides its own, and who says that he is a member of them.
    pub groups: Vec<String>,
    pub member: Option<BucketMember>,
    /// What its verdict is.
    pub kind: Kind,
}

/// What a job's verdict is.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) enum Kind {
    /// What the console's patterns say.
    #[default]
    Patterns,
    /// A script's exit status.
    Script {
        /// What its last line has in it.
        nonce: String,
        /// The files that git has, where a job asks for the others.
        tracked: BTreeSet<String>,
    },
    /// What the patterns say; and a folder of its files is in its bucket.
    Folder {
        /// Where that is in the job's folder.
        below: String,
        tracked: BTreeSet<String>,
    },
}

/// Why a job cannot be described.
#[derive(Debug)]
pub(super) struct Refused {
    /// A sentence for the job's log.
    pub why: String,
    pub blame: Blame,
}

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Blame {
    /// What the job says is wrong.
    Author,
    /// Something that it needs could not be had.
    Source,
    /// Its image could not be had.
    Image,
    /// The farm has no room for it.
    Farm,
}

impl From<String> for Refused {
    fn from(why: String) -> Refused {
        Refused { why, blame: Blame::Author }
    }
}

impl From<Over> for Refused {
    fn from(over: Over) -> Refused {
        match over {
            Over::Quota(why) => why.into(),
            Over::Disk(why) => Refused { why, blame: Blame::Farm },
        }
    }
}

impl Blame {
    /// What it is to GitLab.
    pub(super) fn outcome(self, features: &Features) -> Outcome {
        match self {
            Blame::Author => Outcome::misconfigured(features),
            Blame::Source => Outcome::unfetched("runner_external_dependency_failure", features),
            Blame::Image => Outcome::unfetched("image_pull_failure", features),
            Blame::Farm => Outcome::lost(),
        }
    }
}

/// Where to describe a job.
pub(super) struct Place<'a> {
    /// The DUT that its runner means, by its full name.
    pub dut: Option<String>,
    /// What is fetched with that is not at this GitLab.
    pub elsewhere: &'a Descriptions,
    /// Where images come from, if the farm has them.
    pub images: Option<&'a Door>,
    /// Of the DUTs that the runner means, where their tags say it.
    pub architecture: Option<String>,
    /// What earlier jobs of the project have kept.
    pub caches: &'a Caches,
    /// Where its files are made.
    pub folder: &'a Path,
}

/// All that the farm is handed of a job.
pub(super) async fn describe(
    client: &Client,
    job: &Job,
    runner: &Wanted,
    place: Place<'_>,
) -> Result<Described, Refused> {
    let mut environ = super::variables::of_job(job);
    let form = forms::form(&environ);
    let mut described = Described { source_name: "job.yml".into(), ..Described::default() };
    let pipeline = Pipeline { client, job, runner, folder: place.folder };
    match form {
        Form::Text(text) => {
            described.source_name = "WHARF_JOB".into();
            described.text = text;
        }
        Form::File(path) => {
            described.text = pipeline.file(&path).await?;
            described.source_name = path;
        }
        Form::Artifact(path) => {
            let found = pipeline.artifact(&path).await?;
            let bytes = found.ok_or_else(|| {
                format!("no `{path}` in the artifacts of the jobs that this one needs ({})", pipeline.needed())
            })?;
            described.text = text_of(bytes)?;
            described.source_name = path;
        }
        Form::Url(url) => {
            described.text = text_of(client.fetch_url(&url, place.elsewhere, TEXT_BYTES_MAX).await?.to_vec())?;
            described.source_name = url;
        }
        Form::CiTron => {
            described.notes = pipeline.look_up(&mut environ).await?;
            described.text = ci_tron::description(&environ, &target_of(&runner.target, place.dut.clone()))?;
            described.source_name = "CI_TRON_*".into();
            pipeline.folder(&mut described, &environ, &place).await?;
        }
        Form::Script => {
            environ = super::variables::of_script(job);
            pipeline.script(&mut described, &mut environ, &place).await?;
        }
    }
    if described.text.len() > TEXT_BYTES_MAX {
        return Err(format!("the job description has more than {} KiB", TEXT_BYTES_MAX >> 10).into());
    }
    described.attachments.extend(pipeline.attachments(&described.text, &described.attachments).await?);
    pipeline.dependencies().for_each(|earlier| drop(std::fs::remove_file(pipeline.archive_of(earlier))));
    described.environ = environ;
    Ok(described)
}

/// The DUT by its full name, as people know it.
fn target_of(target: &TargetOverride, dut: Option<String>) -> Value {
    match (dut.or_else(|| target.id.clone()), &target.tags) {
        (Some(id), _) => json!({"id": id}),
        (None, tags) => json!({"tags": tags.clone().unwrap_or_default()}),
    }
}

fn text_of(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|_| "the job description is no UTF-8 text".to_owned())
}

/// What belongs to a job on its instance.
struct Pipeline<'a> {
    client: &'a Client,
    job: &'a Job,
    runner: &'a Wanted,
    /// Where archives are while they are looked into.
    folder: &'a Path,
}

impl Pipeline<'_> {
    /// A plain script: the farm's own job for it, and its files.
    async fn script(
        &self,
        described: &mut Described,
        environ: &mut Environment,
        place: &Place<'_>,
    ) -> Result<(), Refused> {
        let job = self.job;
        if let Some(path) = environ.get("GIT_CLONE_PATH").filter(|path| !super::variables::is_below_builds(path)) {
            return Err(format!("GIT_CLONE_PATH is `{path}`; it has to be below {}", script::BUILDS).into());
        }
        described.notes.extend(passed_over::of_script(job, environ)?);
        let loaded = self.image(environ, place).await?;
        let project_dir = environ.get("CI_PROJECT_DIR").cloned().unwrap_or_default();
        let files = script::files(job, environ, &project_dir);
        let layout = Layout::Machine { project_dir: project_dir.clone(), files };
        let packed = self.pack(described, environ, place, layout).await?;
        described.attachments.insert(FILES.to_owned(), Attached::File(packed.archive));
        let nonce = format!("{:016x}", rand::random::<u64>());
        let container = loaded.as_ref().map(|loaded| &loaded.container);
        environ.insert("WHARF_SCRIPT".to_owned(), script::outer(&project_dir, &nonce, container));
        if let Some(loaded) = loaded {
            environ.insert("WHARF_IMAGE".to_owned(), job.image.name.clone());
            described.attachments.insert(IMAGE.to_owned(), Attached::File(loaded.archive));
            described.said.push(loaded.note);
        }
        environ.insert("WHARF_NONCE".to_owned(), nonce.clone());
        if let Ok(timeout_s @ 1..) = u64::try_from(job.runner_info.timeout) {
            // GitLab's own limit begins when the machine is up.
            environ.insert("WHARF_TIMEOUT_S".to_owned(), timeout_s.saturating_add(BOOT_S).to_string());
        }
        described.kind = Kind::Script { nonce, tracked: packed.tracked };
        let own = || ("script:".to_owned(), SCRIPT_JOB.to_owned());
        (described.source_name, described.text) = self.runner.instance.script_job.clone().unwrap_or_else(own);
        Ok(())
    }

    /// The folder that CI-tron's template would share with the DUT, and whose buckets that may use.
    async fn folder(&self, described: &mut Described, environ: &Environment, place: &Place<'_>) -> Result<(), Refused> {
        let options = executorctl::options(environ)?;
        if !options.passed_over.is_empty() {
            let words = options.passed_over.join(" ");
            described
                .notes
                .push(format!("CI_TRON_EXECUTORCTL_EXTRA_ARGS: passed over, as it means nothing here: {words}"));
        }
        (described.groups, described.member) = (options.groups, options.member);
        let Some(share) = options.share else { return Ok(()) };
        let project_dir = environ.get("CI_PROJECT_DIR").map_or("", String::as_str);
        let below = executorctl::below(&share, project_dir)
            .ok_or_else(|| format!("--share-directory {share} is not in the job's folder, {project_dir}"))?;
        let layout = Layout::Folder { below: below.clone() };
        let packed = self.pack(described, environ, place, layout).await?;
        if packed.has_files {
            described.attachments.insert(DIRECTORY.to_owned(), Attached::File(packed.archive));
        }
        described.kind = Kind::Folder { below, tracked: packed.tracked };
        Ok(())
    }

    /// The repository, what caches have, and earlier jobs' artifacts.
    async fn pack(
        &self,
        described: &mut Described,
        environ: &Environment,
        place: &Place<'_>,
        layout: Layout,
    ) -> Result<checkout::Packed, Refused> {
        let of_source = |why| Refused { why, blame: Blame::Source };
        let (found, said) = place.caches.restore(self.job, environ);
        described.said.extend(said);
        let of_cache = |found: Found| (format!("the cache `{}`", found.key), found.archive);
        let mut archives: Vec<_> = found.into_iter().map(of_cache).collect();
        for earlier in self.dependencies() {
            let archive = self.archive(earlier).await.map_err(of_source)?;
            archives.push((format!("the artifacts of `{}`", earlier.name), archive));
        }
        let certificate_authority = self.runner.instance.certificate_authority.as_deref();
        let elsewhere = place.elsewhere;
        let (job, client) = (self.job, self.client);
        let wanted = checkout::Wanted { job, environ, layout, client, elsewhere, certificate_authority, archives };
        let mut packed = checkout::pack(place.folder, wanted).await.map_err(of_source)?;
        described.said.extend(packed.lfs.take());
        let (artifacts, cache) = (&self.job.artifacts, &self.job.cache);
        if !artifacts.iter().any(|entry| entry.untracked) && !cache.iter().any(|entry| entry.untracked) {
            packed.tracked.clear();
        }
        Ok(packed)
    }

    /// A file of the repository, at the pipeline's commit.
    async fn file(&self, path: &str) -> Result<String, String> {
        let (project, sha) = (self.job.job_info.project_id, in_query(&self.job.git_info.sha));
        let url = format!("/projects/{project}/repository/files/{}/raw?ref={sha}", in_query(path));
        match self.client.fetch(&url, &self.job.token, TEXT_BYTES_MAX).await {
            Ok(text) => text_of(text.to_vec()),
            // Which calls a job's token may make is the instance's and the project's to say; its repository it may always fetch.
            Err(by_api) => self.file_by_git(path).await.map_err(|by_git| {
                format!("cannot fetch `{path}` of the repository, by its API: {by_api}; by git: {by_git}")
            }),
        }
    }

    async fn file_by_git(&self, path: &str) -> Result<String, String> {
        let folder = self.folder.join("repository");
        std::fs::create_dir_all(&folder).map_err(|error| format!("cannot make a folder for it: {error}"))?;
        let authority = self.runner.instance.certificate_authority.as_deref();
        let git = Git::of(&folder, &self.job.git_info.repo_url, &self.job.token, authority)?;
        let text = checkout::file(&git, &self.job.git_info, path, TEXT_BYTES_MAX as u64).await;
        let removed = std::fs::remove_dir_all(&folder).map_err(|error| error.to_string());
        text.and_then(|text| removed.map(|()| text))
    }

    /// The job's `image:`, loaded.
    async fn image(&self, environ: &Environment, place: &Place<'_>) -> Result<Option<Loaded>, Refused> {
        let name = &self.job.image.name;
        if name.is_empty() {
            return Ok(None);
        }
        let door = place.images.ok_or_else(|| {
            format!(
                "`image: {name}` cannot be run: the farm has no `registry` in its farm file. Leave `image` out \
                 (`inherit: {{default: false}}` where it comes from the defaults) to run the script in a small Linux"
            )
        })?;
        let wanted = image::Wanted { job: self.job, environ, architecture: place.architecture.as_deref() };
        let loaded = image::load(door, wanted, place.folder).await;
        loaded.map(Some).map_err(|why| Refused { why, blame: Blame::Image })
    }

    fn dependencies(&self) -> impl Iterator<Item = &Dependency> {
        self.job.dependencies.iter().filter(|earlier| earlier.artifacts_file.is_some())
    }

    fn needed(&self) -> String {
        let names: Vec<_> = self.dependencies().map(|earlier| earlier.name.as_str()).collect();
        if names.is_empty() { "none of them has any: see `needs:`".to_owned() } else { names.join(", ") }
    }

    /// Where its archive is, once it was fetched.
    fn archive_of(&self, earlier: &Dependency) -> PathBuf {
        self.folder.join(format!("needed-{}.zip", earlier.id))
    }

    async fn archive(&self, earlier: &Dependency) -> Result<File, String> {
        let cannot = |error: String| format!("cannot fetch the artifacts of `{}`: {error}", earlier.name);
        let path = self.archive_of(earlier);
        if !path.exists() {
            let token = if earlier.token.is_empty() { &self.job.token } else { &earlier.token };
            let url = format!("/jobs/{}/artifacts?direct_download=true", earlier.id);
            let unfinished = path.with_extension("part");
            self.client.load(&url, token, &unfinished, ARCHIVE_BYTES_MAX).await.map_err(cannot)?;
            std::fs::rename(&unfinished, &path).map_err(|error| cannot(error.to_string()))?;
        }
        File::open(&path).map_err(|error| cannot(error.to_string()))
    }

    /// A file of the earlier jobs' artifacts; the first that has it.
    async fn artifact(&self, path: &str) -> Result<Option<Vec<u8>>, String> {
        for earlier in self.dependencies() {
            let archive = self.archive(earlier).await?;
            let found = unpacked(archive, path, TEXT_BYTES_MAX as u64);
            if let Some(bytes) = found.map_err(|error| format!("the artifacts of `{}`: {error}", earlier.name))? {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }

    /// The files of the earlier jobs' artifacts that the text attaches. What is missing the farm will say, with its place in the text.
    async fn attachments(
        &self,
        text: &str,
        others: &BTreeMap<String, Attached>,
    ) -> Result<BTreeMap<String, Attached>, String> {
        let mut names = forms::attached_names(text);
        names.retain(|name| !others.contains_key(name) && !name.starts_with("gitlab/"));
        let mut attachments = BTreeMap::new();
        if names.is_empty() {
            return Ok(attachments);
        }
        let mut left = ATTACHED_BYTES_MAX;
        for earlier in self.dependencies() {
            let archive = self.archive(earlier).await?;
            for name in names.iter().filter(|name| !attachments.contains_key(*name)).cloned().collect::<Vec<_>>() {
                let found = unpacked(&archive, &name, left as u64);
                if let Some(bytes) = found.map_err(|error| format!("the artifacts of `{}`: {error}", earlier.name))? {
                    left = left.saturating_sub(bytes.len());
                    attachments.insert(name, Attached::Bytes(bytes.into()));
                }
            }
        }
        Ok(attachments)
    }

    /// Replaces `glartifact://` in the addresses of CI-tron's variables; a note for each that is not in the pipeline.
    async fn look_up(&self, environ: &mut Environment) -> Result<Vec<String>, String> {
        let is_link = |(name, value): &(&String, &String)| {
            name.starts_with("CI_TRON_") && name.ends_with("__URL") && value.starts_with("glartifact://")
        };
        let links: Vec<_> = environ.iter().filter(is_link).map(|(name, value)| (name.clone(), value.clone())).collect();
        if links.is_empty() {
            return Ok(Vec::new());
        }
        let pipeline = environ.get("CI_PIPELINE_ID").cloned().unwrap_or_default();
        let jobs = self.jobs(&pipeline).await?;
        let mut notes = Vec::new();
        for (name, value) in links {
            let Some(link) = PipelineArtifact::read(&value) else { continue };
            let url = match jobs.get(&link.job) {
                Some(id) => self
                    .client
                    .api_url(&format!("/projects/{}/jobs/{id}/artifacts{}", self.job.job_info.project_id, link.path)),
                None if !link.default.is_empty() => {
                    notes.push(format!("The job `{}` is not in this pipeline: {name} is its default", link.job));
                    link.default
                }
                None => {
                    return Err(format!(
                        "{name}: the job `{}` is not in this pipeline, and there is no default",
                        link.job
                    ));
                }
            };
            environ.insert(name, url);
        }
        Ok(notes)
    }

    /// The pipeline's successful jobs by name: the newest of each, which come first.
    async fn jobs(&self, pipeline: &str) -> Result<BTreeMap<String, u64>, String> {
        let mut jobs = BTreeMap::new();
        for page in 1..=PAGES_MAX {
            let url = format!(
                "/projects/{}/pipelines/{}/jobs?scope%5B%5D=success&include_retried=true&per_page=100&page={page}",
                self.job.job_info.project_id,
                in_query(pipeline)
            );
            let fetched = self.client.fetch(&url, &self.job.token, PAGE_BYTES_MAX).await;
            let bytes = fetched.map_err(|error| format!("cannot look for the pipeline's jobs: {error}"))?;
            let list: Vec<Value> =
                serde_json::from_slice(&bytes).map_err(|error| format!("the pipeline's jobs: {error}"))?;
            let count = list.len();
            for job in list {
                if let (Some(name), Some(id)) = (job["name"].as_str(), job["id"].as_u64()) {
                    jobs.entry(name.to_owned()).or_insert(id);
                }
            }
            if count < 100 {
                break;
            }
        }
        Ok(jobs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ci_tron_job_is_for_the_runners_dut_or_its_tags() {
        let one = TargetOverride { id: Some("52:54:00:00:00:01".into()), tags: None };
        assert_eq!(target_of(&one, Some("lab-dut-1".into())), json!({"id": "lab-dut-1"}));
        let class = TargetOverride { id: None, tags: Some(vec!["arm".into()]) };
        assert_eq!(target_of(&class, None), json!({"tags": ["arm"]}));
    }

    #[test]
    fn the_environments_of_real_jobs_give_job_descriptions() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus/gitlab-ci-tron-env");
        let Ok(files) = std::fs::read_dir(&corpus) else {
            return println!("skipped: no corpus at {}", corpus.display());
        };
        let mut seen = 0;
        for path in files.map(|file| file.unwrap().path()) {
            let sets: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let raw = sets["raw"].as_object().unwrap().iter().map(|(key, value)| super::super::wire::Variable {
                key: key.clone(),
                value: value.as_str().map_or_else(|| value.to_string(), str::to_owned),
                ..Default::default()
            });
            let environ = super::super::variables::expanded(&raw.collect::<Vec<_>>());
            for (key, value) in sets["expanded"].as_object().unwrap() {
                assert_eq!(Some(environ[key].as_str()), value.as_str(), "{key} of {}", path.display());
            }
            let text = ci_tron::description(&environ, &json!({"id": "box"})).unwrap();
            let variables = job_schema::template::Variables::new();
            let rendered =
                job_schema::template::render("job.yml", &text, &variables, &job_schema::Limits::default()).unwrap();
            let job = job_schema::Job::parse_all(&rendered)
                .unwrap_or_else(|error| panic!("{}: {error}\n{text}", path.display()));
            let start = &job.list[0].job.start;
            assert!(start.cmdline_text().contains("SALAD.machine_id={{ dut.id }}"), "{text}");
            seen += 1;
        }
        assert!(seen >= 3);
    }
}
