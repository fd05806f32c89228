//! What a job leaves for GitLab: files of ours under `wharf/`, and those that a plain script has left (results.rs), chosen by the job's
//! `artifacts:`.
//!
//! | file | what it is |
//! |---|---|
//! | `wharf/console.log` | all that the console said |
//! | `wharf/events.jsonl` | all that happened, a line of JSON each |
//! | `wharf/job.yml` | the job description as it was submitted |
//! | `wharf/junit.xml` | the verdict as a test case |
//! | `wharf/verdict.json` | the verdict with its evidence |
//!
//! These are masked as the log is; a script's own files are not, as on GitLab's own runner.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use zip::write::SimpleFileOptions;

use super::client::Upload;
use super::courier::Outcome;
use super::globs::Globs;
use super::mask::Masker;
use super::wire::{Artifacts, Cache, Job};
use crate::job_log::JobLog;
use crate::verdict::{Status, Verdict};

/// Read of the console at a time.
const PIECE_BYTES: usize = 256 * 1024;
/// Where the console is.
pub(super) const CONSOLE: &str = "wharf/console.log";

/// What is left of a job that has ended.
pub(super) struct Left<'a> {
    pub log: &'a JobLog,
    pub text: &'a str,
    pub name: &'a str,
    pub verdict: &'a Verdict,
}

/// Whether the console has to go along, because the log does not have all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Console {
    Shown,
    Cut,
}

/// A file, or a symbolic link, and its name in the job's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub name: String,
    pub content: Held,
    pub mode: u32,
}

/// What stands under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// The bytes of a file of ours.
    File(PathBuf),
    /// A link, and where it leads; nobody follows it here.
    Link(String),
}

impl Named {
    fn ours(name: &str, path: PathBuf) -> Named {
        Named { name: name.to_owned(), content: Held::File(path), mode: 0o644 }
    }

    /// How many bytes it has.
    pub(super) fn bytes(&self) -> u64 {
        self.file().and_then(|path| path.metadata().ok()).map_or(0, |metadata| metadata.len())
    }

    /// Its bytes, where it is a file.
    fn file(&self) -> Option<&Path> {
        match &self.content {
            Held::File(path) => Some(path),
            Held::Link(_) => None,
        }
    }
}

/// Writes the files into `folder`, each through a new masker.
pub(super) fn write(folder: &Path, left: &Left<'_>, masker: &dyn Fn() -> Masker) -> io::Result<Vec<Named>> {
    let verdict = serde_json::to_string_pretty(left.verdict)?;
    let events: Vec<String> =
        left.log.records().iter().map(|record| serde_json::to_string(&**record)).collect::<Result<_, _>>()?;
    let texts = [
        ("wharf/events.jsonl", events.join("\n") + "\n"),
        ("wharf/job.yml", left.text.to_owned()),
        ("wharf/junit.xml", junit(left.name, left.verdict)),
        ("wharf/verdict.json", verdict + "\n"),
    ];
    let mut files = Vec::new();
    for (index, (name, text)) in texts.into_iter().enumerate() {
        let path = folder.join(format!("file-{index}"));
        let mut masker = masker();
        let mut file = File::create(&path)?;
        file.write_all(&masker.push(text.as_bytes()))?;
        file.write_all(&masker.finish())?;
        files.push(Named::ours(name, path));
    }
    let path = folder.join("console.log");
    let (mut masker, mut file) = (masker(), File::create(&path)?);
    let mut offset = 0;
    while offset < left.log.console_length() {
        let length = PIECE_BYTES.min(usize::try_from(left.log.console_length() - offset).unwrap_or(PIECE_BYTES));
        file.write_all(&masker.push(&left.log.console_bytes(offset, length)?))?;
        offset += length as u64;
    }
    file.write_all(&masker.finish())?;
    files.push(Named::ours(CONSOLE, path));
    Ok(files)
}

/// What is uploaded, and a sentence for each entry of `artifacts:` that means nothing of it.
pub(super) fn uploads(
    folder: &Path,
    job: &Job,
    outcome: &Outcome,
    chosen_from: &ChosenFrom<'_>,
    console: Console,
) -> io::Result<(Vec<Upload>, Vec<String>)> {
    let (mut uploads, mut missing) = (Vec::new(), Vec::new());
    let files = chosen_from.files;
    let mut wanted: Vec<(Artifacts, Vec<Named>)> = Vec::new();
    for entry in job.artifacts.iter().filter(|entry| outcome.uploads(&entry.when)) {
        let chosen = chosen_from.choose(&entry.paths, &entry.exclude, entry.untracked.into());
        if chosen.is_empty() {
            let others =
                if files.iter().all(|file| is_ours(&file.name)) { "; there are those under wharf/" } else { "" };
            missing.push(format!("artifacts: {}: no such file{others}", entry.paths.join(", ")));
        }
        wanted.push((entry.clone(), chosen));
    }
    if console == Console::Cut {
        add_console(&mut wanted, files);
    }
    for (index, (entry, chosen)) in wanted.into_iter().enumerate().filter(|(_, (_, chosen))| !chosen.is_empty()) {
        uploads.push(pack(&folder.join(format!("upload-{index}")), &entry, &chosen)?);
    }
    Ok((uploads, missing))
}

/// What `artifacts:` chooses from.
pub(super) struct ChosenFrom<'a> {
    pub files: &'a [Named],
    /// The files that git has: not among the `untracked`.
    pub tracked: &'a BTreeSet<String>,
    /// Where absolute paths begin.
    pub project_dir: &'a str,
}

/// Which files some entry of `artifacts:` or `cache:` may mean.
pub(super) struct Meant {
    is_any: bool,
    paths: Globs,
}

impl Meant {
    pub(super) fn by_artifacts(job: &Job, project_dir: &str) -> Meant {
        Meant::by(job.artifacts.iter().map(|entry| (&entry.paths, entry.untracked)), project_dir)
    }

    pub(super) fn by_caches(entries: &[Cache], project_dir: &str) -> Meant {
        Meant::by(entries.iter().map(|entry| (&entry.paths, entry.untracked)), project_dir)
    }

    fn by<'a>(entries: impl Iterator<Item = (&'a Vec<String>, bool)> + Clone, project_dir: &str) -> Meant {
        let is_any = entries.clone().any(|(_, untracked)| untracked);
        let paths: Vec<String> = entries.flat_map(|(paths, _)| paths.iter().cloned()).collect();
        Meant { is_any, paths: Globs::new(&paths, project_dir) }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.is_any || self.paths.mean(name)
    }
}

/// Whether files that git does not have are meant besides those of `paths`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Untracked {
    Chosen,
    Left,
}

impl From<bool> for Untracked {
    fn from(is_chosen: bool) -> Untracked {
        if is_chosen { Untracked::Chosen } else { Untracked::Left }
    }
}

impl ChosenFrom<'_> {
    /// Those that an entry of `artifacts:` or `cache:` means. Of one name the first counts: ours are before the job's, which has those
    /// of an earlier job under the same names where it needs that job, and an archive has no name twice.
    pub(super) fn choose(&self, paths: &[String], exclude: &[String], untracked: Untracked) -> Vec<Named> {
        let (paths, exclude) = (Globs::new(paths, self.project_dir), Globs::exact(exclude, self.project_dir));
        let is_new = |name: &str| {
            untracked == Untracked::Chosen
                && !self.tracked.contains(name)
                && !name.starts_with(".git/")
                && !is_ours(name)
        };
        let is_in = |file: &&Named| (paths.mean(&file.name) || is_new(&file.name)) && !exclude.mean(&file.name);
        let mut names = BTreeSet::new();
        self.files.iter().filter(is_in).filter(|file| names.insert(&file.name)).cloned().collect()
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with("wharf/")
}

fn is_archive(entry: &Artifacts) -> bool {
    matches!(entry.artifact_type.as_str(), "" | "archive")
}

/// A job has one archive: the console goes into it, or is all of it.
fn add_console(wanted: &mut Vec<(Artifacts, Vec<Named>)>, files: &[Named]) {
    let console = files.iter().find(|file| file.name == CONSOLE).cloned();
    match wanted.iter_mut().find(|(entry, _)| is_archive(entry)) {
        Some((_, chosen)) if chosen.iter().any(|file| file.name == CONSOLE) => {}
        Some((_, chosen)) => chosen.extend(console),
        None => wanted
            .push((Artifacts { artifact_format: "zip".into(), ..Artifacts::default() }, console.into_iter().collect())),
    }
}

fn pack(path: &Path, entry: &Artifacts, files: &[Named]) -> io::Result<Upload> {
    let kind = if is_archive(entry) { "archive" } else { entry.artifact_type.as_str() };
    let format = match entry.artifact_format.as_str() {
        "" if kind == "archive" => "zip",
        "" => "gzip",
        format => format,
    };
    let base =
        if entry.name.is_empty() { if kind == "archive" { "artifacts" } else { kind } } else { entry.name.as_str() };
    let end = match format {
        "zip" => {
            zipped(path, files)?;
            ".zip"
        }
        "gzip" => {
            // A member each (RFC 1952, 2.2): GitLab reads reports one by one.
            let mut whole = File::create(path)?;
            for file in files.iter().filter_map(Named::file) {
                let mut packed = GzEncoder::new(whole, Compression::default());
                io::copy(&mut File::open(file)?, &mut packed)?;
                whole = packed.finish()?;
            }
            ".gz"
        }
        _ => {
            let mut whole = File::create(path)?;
            for file in files.iter().filter_map(Named::file) {
                io::copy(&mut File::open(file)?, &mut whole)?;
            }
            ""
        }
    };
    Ok(Upload {
        path: path.to_owned(),
        name: format!("{base}{end}"),
        kind: kind.to_owned(),
        format: format.to_owned(),
        expire_in: entry.expire_in.clone(),
    })
}

/// Writes the archive of these files.
pub(super) fn zipped(path: &Path, files: &[Named]) -> io::Result<()> {
    let mut archive = zip::ZipWriter::new(File::create(path)?);
    for named in files {
        let options = SimpleFileOptions::default().unix_permissions(named.mode);
        match &named.content {
            Held::File(path) => {
                // GitLab reads archives of more than 4 GiB, whose sizes need it.
                let large = path.metadata()?.len() >= u64::from(u32::MAX);
                archive.start_file(&named.name, options.large_file(large)).map_err(io::Error::other)?;
                io::copy(&mut File::open(path)?, &mut archive)?;
            }
            Held::Link(target) => {
                archive.add_symlink(&named.name, target.as_str(), options).map_err(io::Error::other)?;
            }
        }
    }
    archive.finish().map_err(io::Error::other)?.sync_data()
}

/// One test case, which GitLab shows beside the pipeline's others.
fn junit(name: &str, verdict: &Verdict) -> String {
    let evidence = verdict.evidence.join("\n");
    let (failures, errors, inside) = match verdict.status {
        Status::Pass => (0, 0, String::new()),
        Status::Warn | Status::Complete | Status::Fail => (1, 0, fault("failure", verdict)),
        Status::Incomplete | Status::Unknown | Status::SetupFail => (0, 1, fault("error", verdict)),
    };
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n<testsuite name=\"wharf\" tests=\"1\" failures=\"{failures}\" \
         errors=\"{errors}\">\n<testcase classname=\"wharf\" name=\"{}\">{inside}<system-out>{}</system-out></testcase>\n\
         </testsuite>\n</testsuites>\n",
        escaped(name),
        escaped(&evidence)
    )
}

fn fault(element: &str, verdict: &Verdict) -> String {
    format!("<{element} message=\"{}\" type=\"{}\"/>", escaped(&verdict.summary), verdict.cause)
}

/// Without the control characters that XML does not have (XML 1.0 §2.2).
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        match letter {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(letter),
            letter if letter.is_control() => {}
            letter => out.push(letter),
        }
    }
    out
}

/// A file of an archive of an earlier job, of at most so many bytes.
pub(super) fn unpacked(archive: impl Read + io::Seek, path: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, String> {
    let mut archive = zip::ZipArchive::new(archive).map_err(|error| error.to_string())?;
    let file = match archive.by_name(path) {
        Ok(file) => file,
        Err(zip::result::ZipError::FileNotFound) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut bytes = Vec::new();
    // What it says of its length may be wrong.
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!("{path} has more than {} MiB", bytes_max >> 20));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job_log::JobEvent;
    use crate::verdict::Cause;

    fn verdict(status: Status) -> Verdict {
        Verdict { status, cause: Cause::Test, summary: "the <end>".into(), evidence: vec!["seen hunter2!".into()] }
    }

    fn entry(kind: &str, paths: &[&str]) -> Artifacts {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        Artifacts { artifact_type: kind.into(), paths, when: "always".into(), ..Artifacts::default() }
    }

    fn left(folder: &Path, artifacts: Vec<Artifacts>, console: Console) -> (Vec<Upload>, Vec<String>) {
        let log = JobLog::create(&folder.join("log")).unwrap();
        log.append_console(b"say hunter2! aloud\r\n").unwrap();
        let verdict = verdict(Status::Fail);
        log.append(JobEvent::Ended { verdict: verdict.clone() });
        let left = Left { log: &log, text: "version: 1", name: "boot & test", verdict: &verdict };
        let files = write(folder, &left, &|| Masker::new(["hunter2!".to_owned()], &[])).unwrap();
        let job = Job { artifacts, ..Job::default() };
        let outcome = Outcome { failure_reason: Some("script_failure".into()), exit_code: 3 };
        let chosen_from = ChosenFrom { files: &files, tracked: &BTreeSet::new(), project_dir: "/builds/g/p" };
        uploads(folder, &job, &outcome, &chosen_from, console).unwrap()
    }

    #[test]
    fn an_archive_has_the_files_that_the_job_names_masked() {
        let folder = tempfile::tempdir().unwrap();
        let (uploads, missing) = left(folder.path(), vec![entry("archive", &["wharf/*.log"])], Console::Shown);
        assert_eq!((uploads.len(), missing.len(), uploads[0].name.as_str()), (1, 0, "artifacts.zip"));
        let archive = File::open(&uploads[0].path).unwrap();
        assert_eq!(unpacked(&archive, CONSOLE, 100).unwrap().unwrap(), b"say [MASKED] aloud\r\n");
        assert_eq!(unpacked(&archive, "wharf/job.yml", 100).unwrap(), None);
        assert!(unpacked(&archive, CONSOLE, 3).unwrap_err().contains("more than"));
    }

    #[test]
    fn of_two_files_of_one_name_the_farm_s_own_goes_along() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, path: &str, text: &str| {
            std::fs::write(folder.path().join(path), text).unwrap();
            Named::ours(name, folder.path().join(path))
        };
        let files =
            [file(CONSOLE, "1", "ours"), file(CONSOLE, "2", "of an earlier job"), file("wharf/more", "3", "the job's")];
        let chosen_from = ChosenFrom { files: &files, tracked: &BTreeSet::new(), project_dir: "/builds/g/p" };
        let job = Job { artifacts: vec![entry("archive", &["wharf/"])], ..Job::default() };
        let outcome = Outcome { failure_reason: None, exit_code: 0 };
        let (uploads, _) = uploads(folder.path(), &job, &outcome, &chosen_from, Console::Shown).unwrap();
        let archive = File::open(&uploads[0].path).unwrap();
        assert_eq!(unpacked(&archive, CONSOLE, 100).unwrap().unwrap(), b"ours");
        assert_eq!(unpacked(&archive, "wharf/more", 100).unwrap().unwrap(), b"the job's");
    }

    #[test]
    fn a_report_is_the_verdict_as_a_test_case() {
        let folder = tempfile::tempdir().unwrap();
        let (uploads, _) = left(folder.path(), vec![entry("junit", &["wharf/junit.xml"])], Console::Shown);
        assert_eq!(
            (uploads[0].kind.as_str(), uploads[0].format.as_str(), uploads[0].name.as_str()),
            ("junit", "gzip", "junit.gz")
        );
        let mut text = String::new();
        flate2::read::GzDecoder::new(File::open(&uploads[0].path).unwrap()).read_to_string(&mut text).unwrap();
        let tree = roxmltree::Document::parse(&text).unwrap();
        let case = tree.descendants().find(|node| node.has_tag_name("testcase")).unwrap();
        assert_eq!(case.attribute("name"), Some("boot & test"));
        let failure = case.children().find(|node| node.has_tag_name("failure")).unwrap();
        assert_eq!(failure.attribute("message"), Some("the <end>"));
        assert!(text.contains("seen [MASKED]"), "{text}");
    }

    #[test]
    fn a_console_that_the_log_does_not_show_goes_along_whatever_the_job_names() {
        let folder = tempfile::tempdir().unwrap();
        let (uploads, missing) = left(folder.path(), vec![entry("", &["results/"])], Console::Cut);
        assert_eq!(missing, ["artifacts: results/: no such file; there are those under wharf/"]);
        let archive = File::open(&uploads[0].path).unwrap();
        assert!(unpacked(&archive, CONSOLE, 100).unwrap().is_some());
        let folder = tempfile::tempdir().unwrap();
        let (uploads, _) = left(folder.path(), vec![], Console::Cut);
        assert_eq!((uploads.len(), uploads[0].kind.as_str(), uploads[0].format.as_str()), (1, "archive", "zip"));
    }
    #[test]
    fn reports_of_several_files_are_members_of_their_own_and_untracked_files_those_that_git_has_not() {
        let folder = tempfile::tempdir().unwrap();
        let named = |name: &str| {
            let path = folder.path().join(name.replace('/', "_"));
            std::fs::write(&path, name).unwrap();
            Named { name: name.to_owned(), content: Held::File(path), mode: 0o755 }
        };
        let files = ["wharf/job.yml", "a.xml", "b.xml", "Makefile", ".git/index"].map(named);
        let tracked = BTreeSet::from(["Makefile".to_owned()]);
        let chosen_from = ChosenFrom { files: &files, tracked: &tracked, project_dir: "/builds/g/p" };
        let mut all_new = entry("archive", &[]);
        all_new.untracked = true;
        let job = Job { artifacts: vec![entry("junit", &["/builds/g/p/*.xml"]), all_new], ..Job::default() };
        let outcome = Outcome { failure_reason: None, exit_code: 0 };
        let (uploads, missing) = uploads(folder.path(), &job, &outcome, &chosen_from, Console::Shown).unwrap();
        assert_eq!(missing, [""; 0]);
        let mut member = flate2::bufread::GzDecoder::new(io::BufReader::new(File::open(&uploads[0].path).unwrap()));
        let mut text = String::new();
        member.read_to_string(&mut text).unwrap();
        assert_eq!(text, "a.xml", "the first member is the first file");
        let mut archive = zip::ZipArchive::new(File::open(&uploads[1].path).unwrap()).unwrap();
        assert_eq!(archive.file_names().map(Result::unwrap).collect::<Vec<_>>(), ["a.xml", "b.xml"]);
        assert_eq!(archive.by_index(0).unwrap().unix_mode().map(|mode| mode & 0o777), Some(0o755));
    }
}
