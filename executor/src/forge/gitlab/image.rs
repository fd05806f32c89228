//! The `image:` of a plain script: its manifest and layers by way of the farm's registry cache, as one archive that the DUT unpacks.
//!
//! ```text
//!  debian:12 ─► docker.io/library/debian, tag 12 ─► manifest ─┬─ of several machines ─► that of ours ─┐
//!                                                              └──────────────────────────────────────┴─► configuration, layers ─► image.tar
//! ```
//! Who may have it is the registry's to say, each time: the job's own names and passwords are shown to it (gateway, registry/).

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use gateway::content::Reader;
use gateway::content::edit::layers;
use gateway::registry::{self, Asked, Door, Given, Login, Logins, Repository};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::ci_tron::Environment;
use super::folder::{self, Waited};
use super::script::Container;
use super::wire::{Credentials, Job};
use crate::farm::{registry_logins, registry_of};

/// A manifest, or a configuration: registries refuse larger ones.
const JSON_BYTES_MAX: u64 = 4 << 20;
/// As many as container engines lay over each other.
const LAYERS_MAX: usize = 128;
/// All layers as they are sent: what a machine unpacks into its memory is far below.
const BYTES_MAX: u64 = 16 << 30;
/// Read of a layer at a time.
const PIECE_BYTES: usize = 1 << 20;
/// Indexes inside indexes: nobody makes more than one.
const DEPTH_MAX: usize = 3;

/// What a job wants to run in.
pub(super) struct Wanted<'a> {
    pub job: &'a Job,
    pub environ: &'a Environment,
    /// `arch:…` of the machine, where its tags say so.
    pub architecture: Option<&'a str>,
}

/// What was loaded.
#[derive(Debug)]
pub(super) struct Loaded {
    pub archive: PathBuf,
    pub container: Container,
    /// A sentence for the job's log.
    pub note: String,
}

/// Loads the image into `folder`; the error is a sentence.
pub(super) async fn load(door: &Door, wanted: Wanted<'_>, folder: &Path) -> Result<Loaded, String> {
    let name = &wanted.job.image.name;
    let image = Image { door, logins: &logins(wanted.job, wanted.environ), repository: repository_of(name)? };
    let platform = Platform::of(&wanted);
    let manifest = image.manifest(name, &platform).await?;
    let configuration: Configuration =
        image.json(Asked::Blob(image.repository.clone(), digest(&manifest.config.digest)?)).await?;
    platform.is_fine(&configuration).map_err(|why| format!("`image: {name}` {why}"))?;
    if manifest.layers.len() > LAYERS_MAX {
        return Err(format!("`image: {name}` has {} layers; {LAYERS_MAX} is the most", manifest.layers.len()));
    }
    let (mut layers, mut bytes) = (Vec::new(), 0);
    for (index, layer) in manifest.layers.iter().enumerate() {
        let path = folder.join(format!("layer-{index}"));
        bytes += image.blob(&layer.digest, &path, BYTES_MAX - bytes).await?;
        layers.push(path);
    }
    let archive = folder.join("image.tar");
    flatten(layers, archive.clone()).await.map_err(|error| format!("`image: {name}` cannot be unpacked: {error}"))?;
    let entrypoint = match &wanted.job.image.entrypoint {
        Some(own) => own.iter().filter(|word| !word.is_empty()).cloned().collect(),
        None => configuration.config.entrypoint.unwrap_or_default(),
    };
    let environment = configuration.config.environment.unwrap_or_default();
    let said = wanted.job.image.executor_opts["docker"]["user"].as_str().unwrap_or_default();
    let user = match said {
        "" => user_of(configuration.config.user.as_deref().unwrap_or_default())?,
        said => user_of(said)?,
    };
    let count = manifest.layers.len();
    let note = format!("The image is {name} for {platform}: {count} layers of {bytes} bytes in all");
    Ok(Loaded { archive, container: Container { environment, entrypoint, user }, note })
}

/// Who runs the script; `None`: root.
fn user_of(text: &str) -> Result<Option<String>, String> {
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || "_.-:".contains(letter);
    if !text.chars().all(is_word) || text.starts_with(['-', ':']) {
        return Err(format!("`{text}` is no user: write `USER` or `USER:GROUP`"));
    }
    Ok(Some(text).filter(|text| !matches!(*text, "" | "0" | "0:0" | "root" | "root:root")).map(str::to_owned))
}

/// On a thread for it, which ends when nobody waits any more.
async fn flatten(layers: Vec<PathBuf>, target: PathBuf) -> io::Result<()> {
    let work = move |stop: &Arc<AtomicBool>| {
        let file = Waited { inner: File::create(&target)?, stop: Arc::clone(stop) };
        layers::root(&layers, BufWriter::with_capacity(PIECE_BYTES, file), stop)?;
        layers.iter().try_for_each(std::fs::remove_file)
    };
    folder::on_a_thread(work).await?
}

/// An image of a registry, and in whose name it is asked for.
struct Image<'a> {
    door: &'a Door,
    logins: &'a Logins,
    repository: Repository,
}

impl Image<'_> {
    async fn manifest(&self, name: &str, platform: &Platform) -> Result<Manifest, String> {
        let mut asked = asked_of(name)?;
        for _ in 0..DEPTH_MAX {
            let found: Value = self.json(asked).await?;
            let Some(list) = found["manifests"].as_array() else {
                return serde_json::from_value(found).map_err(|error| format!("the manifest of `{name}`: {error}"));
            };
            let fits = |one: &&Value| platform.fits(&one["platform"]);
            let one = list.iter().find(fits).ok_or_else(|| {
                let known: Vec<_> = list.iter().map(|one| said_of(&one["platform"])).collect();
                format!("`image: {name}` is not there for {platform}; it is for {}", known.join(", "))
            })?;
            let of_ours = digest(one["digest"].as_str().unwrap_or_default())?;
            asked = Asked::Manifest(self.repository.clone(), registry::Reference::Digest(of_ours));
        }
        Err(format!("`image: {name}` is a list of lists of lists"))
    }

    async fn json<T: serde::de::DeserializeOwned>(&self, asked: Asked) -> Result<T, String> {
        let (reader, bytes) = self.object(&asked).await?;
        if bytes > JSON_BYTES_MAX {
            return Err(format!("{}: a description of {bytes} bytes", self.repository));
        }
        let text = read(&reader, 0, JSON_BYTES_MAX as usize).await?;
        serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", self.repository))
    }

    async fn blob(&self, of: &str, path: &Path, bytes_max: u64) -> Result<u64, String> {
        let (reader, bytes) = self.object(&Asked::Blob(self.repository.clone(), digest(of)?)).await?;
        if bytes > bytes_max {
            return Err(format!("{}: the image has more than {} GiB", self.repository, BYTES_MAX >> 30));
        }
        let cannot = |error: io::Error| format!("a layer cannot be kept: {error}");
        let mut file = tokio::fs::File::create(path).await.map_err(cannot)?;
        let mut at = 0;
        while at < bytes {
            let piece = read(&reader, at, PIECE_BYTES).await?;
            if piece.is_empty() {
                return Err(format!("{}: a layer ends early", self.repository));
            }
            file.write_all(&piece).await.map_err(cannot)?;
            at += piece.len() as u64;
        }
        file.flush().await.map_err(cannot)?;
        Ok(bytes)
    }

    async fn object(&self, asked: &Asked) -> Result<(Reader, u64), String> {
        match self.door.answer(asked, None, self.logins).await {
            Ok(Given::Object { reader, bytes, .. }) => Ok((reader, bytes)),
            Ok(_) => Err(format!("{}: no image", self.repository)),
            Err(denied) => Err(format!("the image cannot be had: {}", denied.message)),
        }
    }
}

async fn read(reader: &Reader, at: u64, length: usize) -> Result<bytes::Bytes, String> {
    reader.read_at(at, length).await.map_err(|error| format!("the image cannot be had: {error}"))
}

fn digest(text: &str) -> Result<registry::Digest, String> {
    text.parse().map_err(|()| format!("`{text}` is no digest that is read here: `sha256:` and 64 digits"))
}

fn repository_of(name: &str) -> Result<Repository, String> {
    match asked_of(name)? {
        Asked::Manifest(repository, _) => Ok(repository),
        Asked::Ping | Asked::Blob(..) | Asked::Tags(_) => Err(format!("`image: {name}` is no image's name")),
    }
}

/// A name as people write it: without a host it is Docker's, without a tag it is `latest`.
fn asked_of(name: &str) -> Result<Asked, String> {
    let (name, reference) = match name.split_once('@') {
        // A tag beside a digest says nothing more.
        Some((name, digest)) => (without_tag(name).0, digest),
        None => without_tag(name),
    };
    let has_host = |first: &str| first == "localhost" || first.contains(['.', ':']);
    let path = match name.split_once('/') {
        Some((host, rest)) if has_host(host) => format!("{host}/{rest}"),
        Some(_) => format!("{}/{name}", registry::DOCKER),
        None => format!("{}/library/{name}", registry::DOCKER),
    };
    let asked = registry::asked(&format!("/v2/{path}/manifests/{reference}"));
    asked.map_err(|denied| format!("`image: {name}` is no image's name: {}", denied.message))
}

fn without_tag(name: &str) -> (&str, &str) {
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (name, "latest"),
    }
}

/// The job's own names and passwords: those that GitLab gives it, and those of its variables.
fn logins(job: &Job, environ: &Environment) -> Logins {
    let given = job.credentials.iter().filter(|one| one.kind == "registry");
    let login = |one: &Credentials| Login { username: one.username.clone(), password: one.password.clone() };
    let mut logins: Logins = given.map(|one| (registry_of(&one.url), login(one))).collect();
    logins.extend(registry_logins(environ));
    logins
}

/// A machine as images know it (OCI image-spec, image-index.md).
struct Platform {
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// What the job says (`image:docker:platform`), else what the machine's tags say, else what most machines are.
    fn of(wanted: &Wanted<'_>) -> Platform {
        let said = wanted.job.image.executor_opts["docker"]["platform"].as_str();
        let said = said.map(|text| text.trim_start_matches("linux/").to_owned());
        let text = said.unwrap_or_else(|| match wanted.architecture.unwrap_or("x86_64") {
            "x86_64" => "amd64".to_owned(),
            "aarch64" => "arm64".to_owned(),
            "armv7l" | "armhf" => "arm/v7".to_owned(),
            "i686" => "386".to_owned(),
            other => other.to_owned(),
        });
        match text.split_once('/') {
            Some((architecture, variant)) => {
                Platform { architecture: architecture.to_owned(), variant: Some(variant.to_owned()) }
            }
            None => Platform { architecture: text, variant: None },
        }
    }

    fn fits(&self, platform: &Value) -> bool {
        let is_variant = |variant: &str| self.variant.as_deref().is_none_or(|own| own == variant);
        platform["os"] == "linux"
            && platform["architecture"] == self.architecture.as_str()
            && platform["variant"].as_str().is_none_or(is_variant)
    }

    fn is_fine(&self, configuration: &Configuration) -> Result<(), String> {
        match configuration.architecture == self.architecture {
            true => Ok(()),
            false => Err(format!("is for {}, and the machine is {self}", configuration.architecture)),
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "linux/{}", self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

fn said_of(platform: &Value) -> String {
    let said = |key: &str| platform[key].as_str().unwrap_or("unknown");
    format!("{}/{}", said("os"), said("architecture"))
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Descriptor {
    digest: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Configuration {
    architecture: String,
    config: Runs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Runs {
    #[serde(rename = "Env")]
    environment: Option<Vec<String>>,
    #[serde(rename = "Entrypoint")]
    entrypoint: Option<Vec<String>>,
    #[serde(rename = "User")]
    user: Option<String>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_read_as_people_write_them() {
        let sha = format!("sha256:{}", "ab".repeat(32));
        for (name, expected) in [
            ("debian", "docker.io/library/debian latest"),
            ("debian:12", "docker.io/library/debian 12"),
            ("group/tool", "docker.io/group/tool latest"),
            ("registry.example.org/a/b/c:1.0", "registry.example.org/a/b/c 1.0"),
            ("localhost:5000/x:y", "localhost:5000/x y"),
            (&format!("debian:12@{sha}"), &format!("docker.io/library/debian {sha}")),
        ] {
            let Ok(Asked::Manifest(repository, reference)) = asked_of(name) else { panic!("{name}") };
            assert_eq!(format!("{repository} {reference}"), expected);
        }
        assert!(asked_of("Not An Image").unwrap_err().starts_with("`image: Not An Image` is no image's name"));
    }

    #[test]
    fn a_machine_has_the_image_of_its_own_kind() {
        let mut job = Job::default();
        let of = |job: &Job, architecture| {
            Platform::of(&Wanted { job, environ: &Environment::new(), architecture }).to_string()
        };
        assert_eq!(of(&job, None), "linux/amd64");
        assert_eq!(of(&job, Some("aarch64")), "linux/arm64");
        job.image.executor_opts = json!({"docker": {"platform": "linux/arm/v7"}});
        assert_eq!(of(&job, Some("aarch64")), "linux/arm/v7");
        let platform = Platform { architecture: "arm64".into(), variant: None };
        assert!(platform.fits(&json!({"os": "linux", "architecture": "arm64", "variant": "v8"})));
        assert!(!platform.fits(&json!({"os": "unknown", "architecture": "unknown"})));
    }

    #[test]
    fn a_script_runs_as_the_user_whom_the_image_or_the_job_names() {
        for text in ["", "0", "root:root"] {
            assert_eq!(user_of(text), Ok(None));
        }
        assert_eq!(user_of("builder:1000"), Ok(Some("builder:1000".to_owned())));
        assert_eq!(user_of("$(reboot)"), Err("`$(reboot)` is no user: write `USER` or `USER:GROUP`".to_owned()));
    }

    #[test]
    fn the_jobs_own_passwords_are_found_by_their_hosts() {
        let login = |password: &str| Login { username: "me".into(), password: password.into() };
        let given = Credentials {
            kind: "registry".into(),
            url: "registry.example.org:5050".into(),
            username: "me".into(),
            password: "given".into(),
        };
        let job = Job { credentials: vec![given], ..Job::default() };
        let auth = r#"{"auths": {"https://other.example.org/v2/": {"username": "me", "password": "written"}}}"#;
        let environ = Environment::from([("DOCKER_AUTH_CONFIG".to_owned(), auth.to_owned())]);
        let expected = [("other.example.org", "written"), ("registry.example.org:5050", "given")];
        let expected: Logins = expected.map(|(host, password)| (host.to_owned(), login(password))).into();
        assert_eq!(logins(&job, &environ), expected);
    }
}
