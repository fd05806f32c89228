//! The files of a plain script: the repository at the pipeline's commit, earlier jobs' artifacts over it, and what script.rs adds, as one
//! archive that the DUT unpacks.
//!
//! ```text
//!  GIT_STRATEGY fetch, clone ─► git fetch --depth, checkout ─► folder ─┐
//!               none, empty ───────────────────────────────────────────┤
//!  cache:, needs: ─► their archives ───────────────────────────────────┼─► files.tar      nothing of an archive is unpacked here:
//!  script.rs ─► files ─────────────────────────────────────────────────┘                  a link of the repository leads nowhere
//! ```
//! git runs here, as the farm's user (git.rs); where submodules may come from is judged (submodules.rs).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tar::{Builder, EntryType, Header, HeaderMode};

use super::ci_tron::Environment;
use super::client::Client;
use super::folder::{self, Waited};
use super::git::Git;
use super::lfs;
use super::submodules::{self, BySsh};
use super::wire::{GitInfo, Job, is_false};
use crate::farm::Descriptions;

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
    pub layout: Layout,
    /// Who speaks to the instance.
    pub client: &'a Client,
    /// Who may say where submodules come from.
    pub elsewhere: &'a Descriptions,
    /// Authorities of the instance's certificates.
    pub certificate_authority: Option<&'a Path>,
    /// Caches and earlier jobs' artifacts, each with what it is called.
    pub archives: Vec<(String, File)>,
}

/// How the archive looks.
#[derive(Clone, Debug)]
pub(super) enum Layout {
    /// A machine's root: the job's folder, and files with absolute paths.
    Machine { project_dir: String, files: Vec<(String, Vec<u8>)> },
    /// A folder below the job's, or all of that where it is empty; not itself in the archive.
    Folder { below: String },
}

/// What was packed.
#[derive(Debug)]
pub(super) struct Packed {
    pub archive: PathBuf,
    /// The files that git has.
    pub tracked: BTreeSet<String>,
    /// Whether there is anything in it.
    pub has_files: bool,
    /// A sentence of its files of Git LFS.
    pub lfs: Option<String>,
}

/// Packs into `folder`. The error is a sentence.
pub(super) async fn pack(folder: &Path, wanted: Wanted<'_>) -> Result<Packed, String> {
    let strategy = wanted.environ.get("GIT_STRATEGY").map_or("", String::as_str);
    let tree = folder.join("checkout");
    let (tracked, lfs) = match strategy {
        "" | "fetch" | "clone" => check_out(&tree, &wanted).await?,
        "none" | "empty" => (BTreeSet::new(), None),
        other => return Err(format!("GIT_STRATEGY is `{other}`; there are fetch, clone, none and empty")),
    };
    let archive = folder.join("files.tar");
    let (path, layout, archives) = (archive.clone(), wanted.layout, wanted.archives);
    let write = move |stop: &Arc<AtomicBool>| {
        let written = write(&path, &tree, &layout, archives, stop);
        if tree.is_dir() {
            fs::remove_dir_all(&tree).map_err(|error| error.to_string())?;
        }
        written
    };
    let written = folder::on_a_thread(write).await.unwrap_or_else(|error| Err(error.to_string()));
    let has_files = written.map_err(|error| format!("the job's files cannot be packed: {error}"))?;
    Ok(Packed { archive, tracked, has_files, lfs })
}

/// The files that git has; and a sentence of those of Git LFS, where there are any.
async fn check_out(tree: &Path, wanted: &Wanted<'_>) -> Result<(BTreeSet<String>, Option<String>), String> {
    let job = wanted.job;
    let git = Git::of(tree, &job.git_info.repo_url, &job.token, wanted.certificate_authority)?;
    let (info, said) = (&wanted.job.git_info, |name: &str| wanted.environ.get(name).map(String::as_str));
    fs::create_dir_all(tree).map_err(|error| format!("cannot make a folder for the repository: {error}"))?;
    let depth = match said("GIT_DEPTH").filter(|text| !text.is_empty()) {
        Some(text) => {
            text.parse().map_err(|_| format!("GIT_DEPTH is `{text}`; it is a number of commits, 0 for all"))?
        }
        None if wanted.job.git_info.refspecs.is_empty() => DEPTH,
        None => info.depth,
    };
    let depth = (depth > 0).then(|| format!("--depth={depth}"));
    let depth = depth.as_deref();
    fetch_commit(&git, info, depth.as_slice()).await?;
    let has_files = said("GIT_CHECKOUT").is_none_or(|text| text.is_empty() || !is_false(text));
    if has_files {
        git.run(&["checkout", "--quiet", "--force", "--detach", &info.sha]).await?;
    }
    let levels = match said("GIT_SUBMODULE_STRATEGY").unwrap_or("none") {
        "" | "none" => 0,
        "normal" => 1,
        "recursive" => submodules::LEVELS_MAX,
        other => return Err(format!("GIT_SUBMODULE_STRATEGY is `{other}`; there are none, normal and recursive")),
    };
    let forced = said("GIT_SUBMODULE_FORCE_HTTPS").is_some_and(|text| !is_false(text));
    let ssh_host = said("CI_SERVER_SHELL_SSH_HOST").unwrap_or_default();
    let by_ssh = if forced { BySsh::ByHttps { own: ssh_host } } else { BySsh::Refused };
    let before_path = git.url.strip_suffix(&format!("/{}.git", job.job_info.project_full_path));
    let root = format!("{}/", before_path.unwrap_or(&git.origin));
    submodules::Sources { elsewhere: wanted.elsewhere, root: &root, by_ssh }.fetch(&git, depth, levels).await?;
    let wants_large = has_files && said("GIT_LFS_SKIP_SMUDGE").is_none_or(is_false);
    let lfs = if wants_large { lfs::fetch(&git, wanted.client).await? } else { None };
    let listed = git.run(&["ls-files", "-z"]).await?;
    Ok((listed.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect(), lfs))
}

/// Fetches the commit into a new repository.
async fn fetch_commit(git: &Git, info: &GitInfo, options: &[&str]) -> Result<(), String> {
    if info.sha.is_empty() || !info.sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(format!("`{}` is no commit", info.sha));
    }
    // SHA-1 has no name of its own in the programs that know no other.
    let format = (info.repo_object_format == "sha256").then_some("--object-format=sha256");
    let init = ["init", "--quiet", "--template="];
    git.run(&init.into_iter().chain(format).collect::<Vec<_>>()).await?;
    git.run(&["remote", "add", "origin", &git.url]).await?;
    let of_commit = format!("+{}:refs/wharf/commit", info.sha);
    let refspecs: Vec<&str> = match info.refspecs.as_slice() {
        [] => vec![of_commit.as_str()],
        all => all.iter().map(String::as_str).collect(),
    };
    git.fetch(options, &refspecs).await?;
    // A branch may have moved on, further than the depth reaches.
    if git.run(&["cat-file", "-e", &format!("{}^{{commit}}", info.sha)]).await.is_err() {
        git.fetch(options, &[&of_commit]).await?;
    }
    Ok(())
}

/// One file of the repository at the commit, as text.
pub(super) async fn file(git: &Git, info: &GitInfo, path: &str, bytes_max: u64) -> Result<String, String> {
    // Of all others only the names; a server that cannot leave them out sends them.
    fetch_commit(git, info, &["--depth=1", "--filter=blob:none"]).await?;
    let object = format!("{}:{path}", info.sha);
    let length = git.run(&["cat-file", "-s", &object]).await?;
    match length.trim().parse::<u64>() {
        Ok(bytes) if bytes <= bytes_max => git.run(&["cat-file", "blob", &object]).await,
        _ => Err(format!("it has more than {} KiB", bytes_max >> 10)),
    }
}

/// Whether anything was written.
fn write(
    path: &Path,
    tree: &Path,
    layout: &Layout,
    archives: Vec<(String, File)>,
    stop: &Arc<AtomicBool>,
) -> Result<bool, String> {
    let cannot = |error: io::Error| error.to_string();
    let file = Waited { inner: private(path).map_err(cannot)?, stop: Arc::clone(stop) };
    let mut builder = Builder::new(BufWriter::new(file));
    // No owner but root: git in a container refuses the folder of another.
    builder.mode(HeaderMode::Deterministic);
    builder.follow_symlinks(false);
    // git leaves holes where a file has zeros, and busybox knows no archive's holes (`unknown typeflag: 0x53`).
    builder.sparse(false);
    let (prefix, below, files) = match layout {
        Layout::Machine { project_dir, files } => (project_dir.trim_start_matches('/'), "", files.as_slice()),
        Layout::Folder { below } => ("", below.as_str(), [].as_slice()),
    };
    let mut has_files = add_tree(&mut builder, prefix, tree, below)?;
    let mut left = UNPACKED_BYTES_MAX;
    for (name, archive) in archives {
        let added = add_zip(&mut builder, (prefix, below), archive, &mut left);
        has_files |= added.map_err(|error| format!("{name}: {error}"))?;
    }
    for (path, bytes) in files {
        let mut header = of_root(0o600);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, path.trim_start_matches('/'), bytes.as_slice()).map_err(cannot)?;
    }
    builder.into_inner().and_then(|mut file| file.flush()).map_err(cannot)?;
    Ok(has_files)
}

/// The checkout's folder `below`, as `prefix`; whether there is anything in it.
fn add_tree(builder: &mut Builder<impl Write>, prefix: &str, tree: &Path, below: &str) -> Result<bool, String> {
    let cannot = |error: io::Error| error.to_string();
    if !tree.is_dir() {
        return Ok(false);
    }
    // A link of the repository in its place may lead anywhere on this host.
    let inner = match tree.join(below).canonicalize() {
        Ok(inner) if inner.starts_with(tree.canonicalize().map_err(cannot)?) => inner,
        Ok(_) => return Err(format!("`{below}` leads out of the repository")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(format!("`{below}`: {error}")),
    };
    if !prefix.is_empty() {
        builder.append_dir_all(prefix, &inner).map_err(cannot)?;
        return Ok(true);
    }
    let mut has_files = false;
    for entry in fs::read_dir(&inner).map_err(|error| format!("`{below}`: {error}"))? {
        let entry = entry.map_err(cannot)?;
        has_files = true;
        match entry.file_type().map_err(cannot)?.is_dir() {
            true => builder.append_dir_all(entry.file_name(), entry.path()),
            false => builder.append_path_with_name(entry.path(), entry.file_name()),
        }
        .map_err(cannot)?;
    }
    Ok(has_files)
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

/// The files of an archive in the folder `below`, as `prefix`; whether there were any.
fn add_zip(
    builder: &mut Builder<impl Write>,
    (prefix, below): (&str, &str),
    archive: File,
    left: &mut u64,
) -> Result<bool, String> {
    let mut archive = zip::ZipArchive::new(archive).map_err(|error| error.to_string())?;
    let mut has_files = false;
    for index in 0..archive.len() {
        let file = archive.by_index(index).map_err(|error| error.to_string())?;
        let name = file.enclosed_name().ok_or_else(|| {
            let name = String::from_utf8_lossy(file.name_raw()).into_owned();
            format!("`{name}` leads out of the folder")
        })?;
        let inner = name.strip_prefix(below).ok().filter(|inner| !inner.as_os_str().is_empty());
        let Some(path) = inner.map(|inner| Path::new(prefix).join(inner)) else { continue };
        has_files = true;
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
    Ok(has_files)
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

    fn zip(files: &[(&str, &str)]) -> File {
        let mut archive = zip::ZipWriter::new(tempfile::tempfile().unwrap());
        for (name, text) in files {
            let options = zip::write::SimpleFileOptions::default().unix_permissions(0o755);
            archive.start_file(*name, options).unwrap();
            archive.write_all(text.as_bytes()).unwrap();
        }
        archive.finish().unwrap()
    }

    #[test]
    fn the_archive_has_the_checkout_then_the_artifacts_then_the_script_all_of_root() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("checkout");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("a.txt"), "a").unwrap();
        std::os::unix::fs::symlink("/etc", tree.join("out")).unwrap();
        let path = folder.path().join("files.tar");
        let archives = vec![("build".to_owned(), zip(&[("out/x", "built")]))];
        let layout = Layout::Machine {
            project_dir: "/builds/g/p".into(),
            files: vec![("/.wharf/script".into(), b"true".to_vec())],
        };
        assert_eq!(write(&path, &tree, &layout, archives, &Arc::default()), Ok(true));
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
    fn a_file_with_a_hole_is_in_the_archive_as_any_other() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("checkout");
        fs::create_dir(&tree).unwrap();
        File::create(tree.join("disk.img")).unwrap().set_len(1 << 20).unwrap();
        let path = folder.path().join("files.tar");
        write(&path, &tree, &Layout::Folder { below: String::new() }, Vec::new(), &Arc::default()).unwrap();
        let mut archive = tar::Archive::new(File::open(&path).unwrap());
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!((entry.header().entry_type(), entry.header().size().unwrap()), (EntryType::Regular, 1 << 20));
    }

    #[test]
    fn artifacts_that_lead_out_of_the_folder_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let archives = vec![("the artifacts of `build`".to_owned(), zip(&[("../../x", "evil")]))];
        let layout = Layout::Folder { below: String::new() };
        let error = write(&folder.path().join("f"), &folder.path().join("none"), &layout, archives, &Arc::default())
            .unwrap_err();
        assert_eq!(error, "the artifacts of `build`: `../../x` leads out of the folder");
    }

    #[test]
    fn a_folder_of_the_job_is_packed_by_itself_and_is_never_one_of_the_host() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("checkout");
        fs::create_dir_all(tree.join("out/deep")).unwrap();
        fs::write(tree.join("out/deep/a"), "a").unwrap();
        fs::write(tree.join("beside"), "b").unwrap();
        std::os::unix::fs::symlink("/etc", tree.join("etc")).unwrap();
        let path = folder.path().join("files.tar");
        let pack = |below: &str, files: &[(&str, &str)]| {
            let archives = vec![("build".to_owned(), zip(files))];
            let has_files =
                write(&path, &tree, &Layout::Folder { below: below.to_owned() }, archives, &Arc::default())?;
            let mut archive = tar::Archive::new(File::open(&path).unwrap());
            let names = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string());
            Ok((has_files, names.collect::<Vec<_>>().join(" ")))
        };
        assert_eq!(pack("out", &[("out/x", ""), ("other/y", "")]), Ok((true, "deep/ deep/a x".to_owned())));
        assert_eq!(pack("none", &[("outer/x", "")]), Ok((false, String::new())));
        assert_eq!(pack("etc", &[]), Err("`etc` leads out of the repository".to_owned()));
    }
}
