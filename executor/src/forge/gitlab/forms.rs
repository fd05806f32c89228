//! What a GitLab job asks for: the four ways to say it. ◆
//!
//! | the job has | it is |
//! |---|---|
//! | `WHARF_JOB` | a job description in a variable, or in a variable of type file |
//! | `WHARF_JOB_FILE` | one in the repository, at the commit of the pipeline |
//! | `WHARF_JOB_ARTIFACT` | one in the artifacts of an earlier job |
//! | `WHARF_JOB_URL` | one at a URL |
//! | `CI_TRON_PATTERN__SESSION_END__REGEX` | CI-tron's variables (ci_tron.rs) |
//! | none of these | its `script:`, run on the DUT |
//!
//! The first row that fits. All variables are `environ` in the job's templates.

use super::ci_tron::{self, Environment};
use super::wire::{Job, Step, Variable};

/// What is known of a job without asking anybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// This text.
    Text(String),
    /// The text of this file of the repository.
    File(String),
    /// The text of this file of an earlier job's artifacts.
    Artifact(String),
    /// The text at this URL.
    Url(String),
    /// CI-tron's variables.
    CiTron,
    /// This script.
    Script(String),
}

/// Which form a job has; the error is a sentence for its author.
pub(super) fn form(job: &Job, environ: &Environment) -> Result<Form, String> {
    let said = |name: &str| environ.get(name).filter(|value| !value.trim().is_empty()).cloned();
    if let Some(text) = said("WHARF_JOB") {
        return Ok(Form::Text(text));
    }
    if let Some(path) = said("WHARF_JOB_FILE") {
        return Ok(Form::File(path.trim_start_matches("./").to_owned()));
    }
    if let Some(path) = said("WHARF_JOB_ARTIFACT") {
        return Ok(Form::Artifact(path.trim_start_matches("./").to_owned()));
    }
    if let Some(url) = said("WHARF_JOB_URL") {
        return Ok(Form::Url(url));
    }
    if ci_tron::is_asked_for(environ) {
        return Ok(Form::CiTron);
    }
    if !job.image.name.is_empty() {
        return Err(format!(
            "`image: {}` cannot be run: DUTs boot no containers here yet. Leave `image` out (`inherit: {{default: false}}` where it comes \
             from the defaults) to run the script in a small Linux, or name a job description in WHARF_JOB, WHARF_JOB_FILE, \
             WHARF_JOB_ARTIFACT or WHARF_JOB_URL",
            job.image.name
        ));
    }
    Ok(Form::Script(script(job, environ)))
}

/// A shell's script of the job's steps: its variables, then each command, shown before it runs.
fn script(job: &Job, environ: &Environment) -> String {
    let is_file = |name: &str| job.variables.iter().rev().find(|one| one.key == name).is_some_and(|one| one.file);
    let mut out = "mkdir -p /tmp/wharf /builds\ncd /builds\n".to_owned();
    for (name, value) in environ.iter().filter(|(name, _)| is_shell_name(name)) {
        if is_file(name) {
            out.push_str(&format!("printf %s {} >/tmp/wharf/{name}\nexport {name}=/tmp/wharf/{name}\n", quoted(value)));
        } else {
            out.push_str(&format!("export {name}={}\n", quoted(value)));
        }
    }
    let is_after = |step: &&Step| step.name == "after_script";
    let (after, before): (Vec<&Step>, Vec<&Step>) = job.steps.iter().partition(is_after);
    out.push_str(&format!("(\nset -e\n{}) </dev/null\nwharf_code=$?\n", commands(&before)));
    // What it says of itself is not the job's verdict, as on GitLab's own runner.
    out.push_str(&format!("(\nset -e\n{}) </dev/null\nexit $wharf_code\n", commands(&after)));
    out
}

fn commands(steps: &[&Step]) -> String {
    let lines = steps.iter().flat_map(|step| &step.script);
    let shown = lines.map(|line| format!("echo {}\n{line}\n", quoted(&format!("\x1b[32;1m$ {line}\x1b[0m"))));
    let all: String = shown.collect();
    // A subshell without a command is a mistake.
    all + ":\n"
}

fn is_shell_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// What nobody may read in the job's log.
pub(super) fn secrets(job: &Job, environ: &Environment) -> Vec<String> {
    let masked = job.variables.iter().filter(|variable| variable.masked);
    // As it is written, and as it is used.
    let both = |variable: &Variable| [Some(variable.value.clone()), environ.get(&variable.key).cloned()];
    let passwords = job.credentials.iter().map(|login| login.password.clone());
    let tokens = job.dependencies.iter().map(|earlier| earlier.token.clone());
    masked.flat_map(both).flatten().chain(passwords).chain(tokens).chain([job.token.clone()]).collect()
}

/// The files that came along which a job's text asks for by `attached: NAME`.
pub(super) fn attached_names(text: &str) -> Vec<String> {
    let after = text.split("attached:").skip(1);
    let name = |rest: &str| {
        let rest = rest.trim_start_matches([' ', '\t']);
        let end = match rest.chars().next()? {
            quote @ ('"' | '\'') => return rest[1..].split(quote).next().map(str::to_owned),
            _ => rest.find(['\n', ',', '}', ' ', '#']).unwrap_or(rest.len()),
        };
        Some(rest[..end].trim().to_owned())
    };
    let mut names: Vec<_> = after.filter_map(name).filter(|name| !name.is_empty()).collect();
    names.sort();
    names.dedup();
    names
}

/// A `glartifact://JOB[/PATH][?default=URL]` of CI-tron's variables, its parts decoded.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PipelineArtifact {
    pub job: String,
    pub path: String,
    pub default: String,
}

impl PipelineArtifact {
    /// `None`: it is another URL.
    pub(super) fn read(url: &str) -> Option<PipelineArtifact> {
        let rest = url.strip_prefix("glartifact://")?;
        let (rest, default) = rest.split_once("?default=").unwrap_or((rest, ""));
        let (job, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        Some(PipelineArtifact { job: decoded(job), path: decoded(path), default: decoded(default) })
    }
}

fn decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let byte = after.get(..2).filter(|_| first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &after[2..];
            }
            None => {
                out.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Whether a path of the job's files is meant by a pattern of `artifacts:paths`: `*` within a name, `**` over folders, a folder means all
/// in it.
pub(super) fn is_meant(pattern: &str, path: &str) -> bool {
    let pattern = pattern.trim_start_matches("./").trim_end_matches('/');
    let (pattern, path): (Vec<&str>, Vec<&str>) = (pattern.split('/').collect(), path.split('/').collect());
    (1..=path.len()).any(|length| folders_fit(&pattern, &path[..length]))
}

fn folders_fit(pattern: &[&str], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((&"**", rest)), _) if folders_fit(rest, path) => true,
        (Some((&"**", _)), Some((_, after))) => folders_fit(pattern, after),
        (Some((one, rest)), Some((name, after))) => {
            name_fits(one.as_bytes(), name.as_bytes()) && folders_fit(rest, after)
        }
        _ => false,
    }
}

fn name_fits(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) if name_fits(rest, name) => true,
        (Some((b'*', _)), Some((_, after))) => name_fits(pattern, after),
        (Some((b'?', rest)), Some((_, after))) => name_fits(rest, after),
        (Some((one, rest)), Some((letter, after))) => one == letter && name_fits(rest, after),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(steps: &[(&str, &[&str])]) -> Job {
        let step = |(name, script): &(&str, &[&str])| Step {
            name: (*name).to_owned(),
            script: script.iter().map(|line| (*line).to_owned()).collect(),
            when: String::new(),
        };
        Job { token: "job-token".into(), steps: steps.iter().map(step).collect(), ..Job::default() }
    }

    fn environ(all: &[(&str, &str)]) -> Environment {
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_first_row_that_fits_is_taken() {
        let of = |all: &[(&str, &str)]| form(&job(&[]), &environ(all)).unwrap();
        assert_eq!(of(&[("WHARF_JOB", "version: 1"), ("WHARF_JOB_URL", "u")]), Form::Text("version: 1".into()));
        assert_eq!(of(&[("WHARF_JOB_FILE", "./ci/job.yml")]), Form::File("ci/job.yml".into()));
        assert_eq!(of(&[("WHARF_JOB_ARTIFACT", "out/job.yml")]), Form::Artifact("out/job.yml".into()));
        assert_eq!(of(&[("WHARF_JOB", " "), ("WHARF_JOB_URL", "https://x")]), Form::Url("https://x".into()));
        assert_eq!(of(&[("CI_TRON_PATTERN__SESSION_END__REGEX", "x")]), Form::CiTron);
        assert!(matches!(of(&[]), Form::Script(_)));
    }

    #[test]
    fn a_container_is_refused_with_the_next_step() {
        let mut job = job(&[("script", &["make"])]);
        job.image.name = "debian:12".into();
        let error = form(&job, &Environment::new()).unwrap_err();
        assert!(error.starts_with("`image: debian:12` cannot be run") && error.contains("WHARF_JOB_FILE"), "{error}");
        assert_eq!(form(&job, &environ(&[("WHARF_JOB_URL", "u")])), Ok(Form::Url("u".into())));
    }

    #[test]
    fn a_script_runs_in_a_shell_with_its_variables_and_its_exit_status() {
        let job = job(&[("script", &["echo \"$GREETING\"", "exit 7"]), ("after_script", &["echo after"])]);
        let Ok(Form::Script(text)) = form(&job, &environ(&[("GREETING", "it's {{ me }}"), ("not-a-name", "x")])) else {
            panic!("it has no other form")
        };
        let text = text.replace("/tmp/wharf /builds", "/dev/null/x").replace("cd /builds\n", "");
        let output = std::process::Command::new("sh").arg("-c").arg(&text).output().unwrap();
        assert_eq!(output.status.code(), Some(7), "{text}");
        let said = String::from_utf8(output.stdout).unwrap();
        let expected = "\x1b[32;1m$ echo \"$GREETING\"\x1b[0m\nit's {{ me }}\n\x1b[32;1m$ exit 7\x1b[0m\n\x1b[32;1m$ echo after\x1b[0m\nafter\n";
        assert_eq!(said, expected);
    }

    #[test]
    fn attached_files_are_found_by_their_names() {
        let text =
            "kernel: {attached: bzImage}\ninitramfs: [{attached: \"a b\"}, {attached: 'c'}]\nx:\n  attached: d # no\n";
        assert_eq!(attached_names(text), ["a b", "bzImage", "c", "d"]);
    }

    #[test]
    fn an_artifact_of_the_pipeline_has_its_parts_decoded() {
        let read = PipelineArtifact::read("glartifact://linux: [a%2Fb]/out/x%3F?default=https://h/%26").unwrap();
        assert_eq!(
            read,
            PipelineArtifact { job: "linux: [a/b]".into(), path: "/out/x?".into(), default: "https://h/&".into() }
        );
        assert_eq!(PipelineArtifact::read("https://h/glartifact://x"), None);
    }

    #[test]
    fn paths_are_meant_by_names_patterns_and_folders() {
        for pattern in
            ["wharf", "wharf/", "./wharf/console.log", "wharf/*.log", "**/console.*", "**", "*", "wharf/**/console.log"]
        {
            assert!(is_meant(pattern, "wharf/console.log"), "{pattern}");
        }
        for pattern in ["console.log", "wharf/console", "results/", "wharf/?.log", "*.log", ""] {
            assert!(!is_meant(pattern, "wharf/console.log"), "{pattern}");
        }
    }
}
