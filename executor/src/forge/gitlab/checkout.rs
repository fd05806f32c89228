//! The files of a plain script: the repository at the pipeline's commit, earlier jobs' artifacts over it, and what script.rs adds, as one
//! archive that the DUT unpacks.
//!
//! ```text
//!  GIT_STRATEGY fetch, clone ─► git fetch --depth, checkout ─► folder ─┐
//!               none, empty ───────────────────────────────────────────┤
//!  needs: ─► their archives ───────────────────────────────────────────┼─► files.tar      nothing of an archive is unpacked here:
//!  script.rs ─► files ─────────────────────────────────────────────────┘                  a link of the repository leads nowhere
//! ```
//! git runs here, as the farm's user: it has the job's token in its environment, not in its arguments, for the instance alone; none of the
//! host's configuration; and no transport but HTTP, whatever a submodule's URL says.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use tar::{Builder, EntryType, Header, HeaderMode};
use tokio::process::Command;

use super::ci_tron::Environment;
use super::wire::Job;

/// One call of git: a large repository over a slow line.
const GIT_TIME: Duration = Duration::from_secs(1800);
/// What git says of a failure; the last of it tells most.
const SAID_BYTES_MAX: usize = 4096;
/// All files of earlier jobs: what fits a small machine's memory is far below, what fills our disk is above.
const UNPACKED_BYTES_MAX: u64 = 8 << 30;
/// Where a link leads, as Linux has it (PATH_MAX).
const LINK_BYTES_MAX: u64 = 4096;
/// Commits, where neither the job nor GitLab says: its own default for new projects.
const DEPTH: u64 = 20;

/// What is packed.
pub(super) struct Wanted<'a> {
    pub job: &'a Job,
    pub environ: &'a Environment,
    pub project_dir: &'a str,
    /// Authorities of the instance's certificates.
    pub certificate_authority: Option<&'a Path>,
    /// Earlier jobs' archives, each with its job's name.
    pub archives: Vec<(String, Bytes)>,
    /// Files with absolute paths.
    pub files: Vec<(String, Vec<u8>)>,
}

/// What was packed.
#[derive(Debug)]
pub(super) struct Packed {
    pub archive: PathBuf,
    /// The files that git has.
    pub tracked: BTreeSet<String>,
}

/// Packs into `folder`. The error is a sentence.
pub(super) async fn pack(folder: &Path, wanted: Wanted<'_>) -> Result<Packed, String> {
    let strategy = wanted.environ.get("GIT_STRATEGY").map_or("", String::as_str);
    let tree = folder.join("checkout");
    let tracked = match strategy {
        "" | "fetch" | "clone" => check_out(&tree, &wanted).await?,
        "none" | "empty" => BTreeSet::new(),
        other => return Err(format!("GIT_STRATEGY is `{other}`; there are fetch, clone, none and empty")),
    };
    let archive = folder.join("files.tar");
    let (path, project_dir) = (archive.clone(), wanted.project_dir.to_owned());
    let (archives, files) = (wanted.archives, wanted.files);
    let write = move || {
        let written = write(&path, &tree, &project_dir, &archives, &files);
        if tree.is_dir() {
            fs::remove_dir_all(&tree).map_err(|error| error.to_string())?;
        }
        written
    };
    let written =
        tokio::task::spawn_blocking(write).await.map_err(|error| error.to_string()).and_then(|written| written);
    written.map_err(|error| format!("the job's files cannot be packed: {error}"))?;
    Ok(Packed { archive, tracked })
}

async fn check_out(tree: &Path, wanted: &Wanted<'_>) -> Result<BTreeSet<String>, String> {
    let git = Git::of(tree, wanted)?;
    let (info, said) = (&wanted.job.git_info, |name: &str| wanted.environ.get(name).map(String::as_str));
    if info.sha.is_empty() || !info.sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!("`{}` is no commit", info.sha));
    }
    fs::create_dir_all(tree).map_err(|error| format!("cannot make a folder for the repository: {error}"))?;
    git.run(&["init", "--quiet", "--template="]).await?;
    git.run(&["remote", "add", "origin", &git.url]).await?;
    let depth = match said("GIT_DEPTH").filter(|text| !text.is_empty()) {
        Some(text) => {
            text.parse().map_err(|_| format!("GIT_DEPTH is `{text}`; it is a number of commits, 0 for all"))?
        }
        None if wanted.job.git_info.refspecs.is_empty() => DEPTH,
        None => info.depth,
    };
    let depth = (depth > 0).then(|| format!("--depth={depth}"));
    let depth = depth.as_deref();
    let of_commit = format!("+{}:refs/wharf/commit", info.sha);
    let refspecs: Vec<&str> = match info.refspecs.as_slice() {
        [] => vec![of_commit.as_str()],
        all => all.iter().map(String::as_str).collect(),
    };
    git.fetch(depth, &refspecs).await?;
    // A branch may have moved on, further than the depth reaches.
    if git.run(&["cat-file", "-e", &format!("{}^{{commit}}", info.sha)]).await.is_err() {
        git.fetch(depth, &[&of_commit]).await?;
    }
    if said("GIT_CHECKOUT") != Some("false") {
        git.run(&["checkout", "--quiet", "--force", "--detach", &info.sha]).await?;
    }
    let recursive = match said("GIT_SUBMODULE_STRATEGY").unwrap_or("none") {
        "" | "none" => None,
        "normal" => Some(None),
        "recursive" => Some(Some("--recursive")),
        other => return Err(format!("GIT_SUBMODULE_STRATEGY is `{other}`; there are none, normal and recursive")),
    };
    if let Some(recursive) = recursive {
        let options = ["submodule", "update", "--init", "--quiet"];
        git.run(&options.into_iter().chain(recursive).chain(depth).collect::<Vec<_>>()).await?;
    }
    let listed = git.run(&["ls-files", "-z"]).await?;
    Ok(listed.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// How git is called for one job.
struct Git {
    tree: PathBuf,
    url: String,
    environment: Vec<(String, String)>,
}

impl Git {
    fn of(tree: &Path, wanted: &Wanted<'_>) -> Result<Git, String> {
        let (url, login) = without_login(&wanted.job.git_info.repo_url)?;
        let login = login.unwrap_or_else(|| format!("gitlab-ci-token:{}", wanted.job.token));
        // For this repository's instance alone: git compares host and path by parts (git-config, http.<url>).
        let origin = url.match_indices('/').nth(2).map_or(url.as_str(), |(at, _)| &url[..at]);
        let mut settings = vec![
            (format!("http.{origin}/.extraHeader"), format!("Authorization: Basic {}", BASE64_STANDARD.encode(login))),
            // A submodule's URL is not ours: neither local paths nor commands.
            ("protocol.allow".to_owned(), "never".to_owned()),
            ("protocol.http.allow".to_owned(), "always".to_owned()),
            ("protocol.https.allow".to_owned(), "always".to_owned()),
            ("init.defaultBranch".to_owned(), "main".to_owned()),
            ("advice.detachedHead".to_owned(), "false".to_owned()),
            ("core.hooksPath".to_owned(), "/dev/null".to_owned()),
        ];
        if let Some(path) = wanted.certificate_authority {
            settings.push((format!("http.{origin}/.sslCAInfo"), path.display().to_string()));
        }
        let count = settings.len().to_string();
        let fixed = [
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("HOME", "/dev/null"),
            ("LC_ALL", "C"),
            ("GIT_CONFIG_COUNT", count.as_str()),
        ];
        let mut environment: Vec<_> = fixed.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        for (index, (key, value)) in settings.into_iter().enumerate() {
            environment.push((format!("GIT_CONFIG_KEY_{index}"), key));
            environment.push((format!("GIT_CONFIG_VALUE_{index}"), value));
        }
        for name in
            ["PATH", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY"]
        {
            environment.extend(std::env::var(name).ok().map(|value| (name.to_owned(), value)));
        }
        Ok(Git { tree: tree.to_owned(), url, environment })
    }

    async fn fetch(&self, depth: Option<&str>, refspecs: &[&str]) -> Result<String, String> {
        let options = ["fetch", "--quiet", "--no-tags", "--no-recurse-submodules"];
        let target = ["--", "origin"];
        self.run(&options.into_iter().chain(depth).chain(target).chain(refspecs.iter().copied()).collect::<Vec<_>>())
            .await
    }

    /// What it printed; else a sentence with the last that it said.
    async fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("git");
        command.args(arguments).current_dir(&self.tree).env_clear().stdin(Stdio::null()).kill_on_drop(true);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let what = arguments.first().copied().unwrap_or_default();
        let output = match tokio::time::timeout(GIT_TIME, command.output()).await {
            Err(_) => return Err(format!("git {what} took longer than {} min", GIT_TIME.as_secs() / 60)),
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                return Err("the repository is fetched by git, and the farm's server has none: install the package git there, or set \
                            GIT_STRATEGY to none"
                    .to_owned());
            }
            Ok(Err(error)) => return Err(format!("git {what} cannot be run: {error}")),
            Ok(Ok(output)) => output,
        };
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = &output.stderr[output.stderr.len().saturating_sub(SAID_BYTES_MAX)..];
        Err(format!("git {what} failed: {}", String::from_utf8_lossy(said).trim()))
    }
}

/// A URL, and what stood before its host.
fn without_login(url: &str) -> Result<(String, Option<String>), String> {
    let (scheme, rest) = url
        .split_once("://")
        .filter(|(scheme, _)| matches!(*scheme, "http" | "https"))
        .ok_or_else(|| format!("the repository's URL `{url}` is neither http nor https"))?;
    let host_end = rest.find('/').unwrap_or(rest.len());
    match rest[..host_end].rsplit_once('@') {
        Some((login, host)) => Ok((format!("{scheme}://{host}{}", &rest[host_end..]), Some(login.to_owned()))),
        None => Ok((url.to_owned(), None)),
    }
}

fn write(
    path: &Path,
    tree: &Path,
    project_dir: &str,
    archives: &[(String, Bytes)],
    files: &[(String, Vec<u8>)],
) -> Result<(), String> {
    let cannot = |error: io::Error| error.to_string();
    let mut builder = Builder::new(BufWriter::new(private(path).map_err(cannot)?));
    // No owner but root: git in a container refuses the folder of another.
    builder.mode(HeaderMode::Deterministic);
    builder.follow_symlinks(false);
    let project = project_dir.trim_start_matches('/');
    if tree.is_dir() {
        builder.append_dir_all(project, tree).map_err(cannot)?;
    }
    let mut left = UNPACKED_BYTES_MAX;
    for (name, archive) in archives {
        add_zip(&mut builder, project, archive, &mut left)
            .map_err(|error| format!("the artifacts of `{name}`: {error}"))?;
    }
    for (path, bytes) in files {
        let mut header = of_root(0o600);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, path.trim_start_matches('/'), bytes.as_slice()).map_err(cannot)?;
    }
    builder.into_inner().and_then(|mut file| file.flush()).map_err(cannot)
}

fn of_root(mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// For us alone: the job's variables are in it.
fn private(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(true).write(true).mode(0o600).open(path)
}

/// The files of an archive, below `folder`.
fn add_zip(builder: &mut Builder<impl Write>, folder: &str, archive: &[u8], left: &mut u64) -> Result<(), String> {
    let mut archive = zip::ZipArchive::new(io::Cursor::new(archive)).map_err(|error| error.to_string())?;
    for index in 0..archive.len() {
        let file = archive.by_index(index).map_err(|error| error.to_string())?;
        let name = file.enclosed_name().ok_or_else(|| {
            let name = String::from_utf8_lossy(file.name_raw()).into_owned();
            format!("`{name}` leads out of the folder")
        })?;
        let path = Path::new(folder).join(name);
        let mode = file.unix_mode().unwrap_or(0o644);
        let mut header = of_root(mode & 0o777);
        if file.is_dir() {
            header.set_entry_type(EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            builder.append_data(&mut header, &path, io::empty()).map_err(|error| error.to_string())?;
            continue;
        }
        let size = file.size();
        *left = left
            .checked_sub(size)
            .ok_or_else(|| format!("all artifacts together have more than {} GiB", UNPACKED_BYTES_MAX >> 30))?;
        if mode & 0o170_000 == 0o120_000 {
            let mut target = String::new();
            file.take(LINK_BYTES_MAX).read_to_string(&mut target).map_err(|error| error.to_string())?;
            header.set_entry_type(EntryType::Symlink);
            header.set_size(0);
            builder.append_link(&mut header, &path, target).map_err(|error| error.to_string())?;
            continue;
        }
        header.set_size(size);
        let mut counted = Counted { inner: file.take(size), count: 0 };
        builder.append_data(&mut header, &path, &mut counted).map_err(|error| error.to_string())?;
        // What it says of its length may be wrong, and stands in the other archive's header by now.
        if counted.count != size {
            return Err(format!("{} has fewer bytes than the archive says", path.display()));
        }
    }
    Ok(())
}

struct Counted<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_taken_out_of_the_url() {
        let read = |url: &str| without_login(url);
        let expected = ("https://gitlab.example.org/a/b.git".to_owned(), Some("gitlab-ci-token:x".to_owned()));
        assert_eq!(read("https://gitlab-ci-token:x@gitlab.example.org/a/b.git"), Ok(expected));
        assert_eq!(read("http://host/a@b.git"), Ok(("http://host/a@b.git".to_owned(), None)));
        assert!(read("file:///etc").unwrap_err().contains("neither http nor https"));
        assert!(read("--upload-pack=x").is_err());
    }

    fn zip(files: &[(&str, &str)]) -> Bytes {
        let mut archive = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        for (name, text) in files {
            let options = zip::write::SimpleFileOptions::default().unix_permissions(0o755);
            archive.start_file(*name, options).unwrap();
            archive.write_all(text.as_bytes()).unwrap();
        }
        archive.finish().unwrap().into_inner().into()
    }

    #[test]
    fn the_archive_has_the_checkout_then_the_artifacts_then_the_script_all_of_root() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("checkout");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("a.txt"), "a").unwrap();
        std::os::unix::fs::symlink("/etc", tree.join("out")).unwrap();
        let path = folder.path().join("files.tar");
        let archives = [("build".to_owned(), zip(&[("out/x", "built")]))];
        write(&path, &tree, "/builds/g/p", &archives, &[("/.wharf/script".into(), b"true".to_vec())]).unwrap();
        let mut archive = tar::Archive::new(File::open(&path).unwrap());
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            assert_eq!((entry.header().uid().unwrap(), entry.header().gid().unwrap()), (0, 0));
            format!("{} {text}", entry.path().unwrap().display())
        });
        let mut names: Vec<String> = entries.collect();
        names[1..3].sort();
        assert_eq!(
            names,
            ["builds/g/p/ ", "builds/g/p/a.txt a", "builds/g/p/out ", "builds/g/p/out/x built", ".wharf/script true"]
        );
        assert!(!Path::new("/etc/x").exists());
    }

    #[test]
    fn artifacts_that_lead_out_of_the_folder_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let archives = [("build".to_owned(), zip(&[("../../x", "evil")]))];
        let error = write(&folder.path().join("f"), &folder.path().join("none"), "/b/p", &archives, &[]).unwrap_err();
        assert_eq!(error, "the artifacts of `build`: `../../x` leads out of the folder");
    }
}
