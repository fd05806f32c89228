//! What a GitLab job asks for: the four ways to say it. ◆
//!
//! | the job has | it is |
//! |---|---|
//! | `WHARF_JOB` | a job description in a variable, or in a variable of type file |
//! | `WHARF_JOB_FILE` | one in the repository, at the commit of the pipeline |
//! | `WHARF_JOB_ARTIFACT` | one in the artifacts of an earlier job |
//! | `WHARF_JOB_URL` | one at a URL |
//! | `CI_TRON_PATTERN__SESSION_END__REGEX` | CI-tron's variables (ci_tron.rs) |
//! | none of these | its `script:`, run on the DUT (script.rs), in its `image:` if it has one |
//!
//! The first row that fits. All variables are `environ` in the job's templates.

use super::ci_tron::{self, Environment};
use super::wire::{Job, Variable};
use crate::farm::{DOCKER_AUTH_CONFIG, registry_secrets_in};

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
    /// Its `script:`.
    Script,
}

/// Which form a job has.
pub(super) fn form(environ: &Environment) -> Form {
    let said = |name: &str| environ.get(name).filter(|value| !value.trim().is_empty()).cloned();
    if let Some(text) = said("WHARF_JOB") {
        return Form::Text(text);
    }
    if let Some(path) = said("WHARF_JOB_FILE") {
        return Form::File(path.trim_start_matches("./").to_owned());
    }
    if let Some(path) = said("WHARF_JOB_ARTIFACT") {
        return Form::Artifact(path.trim_start_matches("./").to_owned());
    }
    if let Some(url) = said("WHARF_JOB_URL") {
        return Form::Url(url);
    }
    if ci_tron::is_asked_for(environ) {
        return Form::CiTron;
    }
    Form::Script
}

/// What nobody may read in the job's log.
pub(super) fn secrets(job: &Job, environ: &Environment) -> Vec<String> {
    let masked = job.variables.iter().filter(|variable| variable.masked);
    // As it is written, and as it is used.
    let both = |variable: &Variable| [Some(variable.value.clone()), environ.get(&variable.key).cloned()];
    let passwords = job.credentials.iter().map(|login| login.password.clone());
    let tokens = job.dependencies.iter().map(|earlier| earlier.token.clone());
    // Masked or not: GitLab itself masks no text with quotes and line ends.
    let written = environ.get(DOCKER_AUTH_CONFIG).map(|text| registry_secrets_in(text)).unwrap_or_default();
    masked.flat_map(both).flatten().chain(passwords).chain(written).chain(tokens).chain([job.token.clone()]).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn environ(all: &[(&str, &str)]) -> Environment {
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_first_row_that_fits_is_taken() {
        let of = |all: &[(&str, &str)]| form(&environ(all));
        assert_eq!(of(&[("WHARF_JOB", "version: 1"), ("WHARF_JOB_URL", "u")]), Form::Text("version: 1".into()));
        assert_eq!(of(&[("WHARF_JOB_FILE", "./ci/job.yml")]), Form::File("ci/job.yml".into()));
        assert_eq!(of(&[("WHARF_JOB_ARTIFACT", "out/job.yml")]), Form::Artifact("out/job.yml".into()));
        assert_eq!(of(&[("WHARF_JOB", " "), ("WHARF_JOB_URL", "https://x")]), Form::Url("https://x".into()));
        assert_eq!(of(&[("CI_TRON_PATTERN__SESSION_END__REGEX", "x")]), Form::CiTron);
        assert_eq!(of(&[]), Form::Script);
    }

    #[test]
    fn passwords_of_registries_are_secret_whether_somebody_had_them_masked_or_not() {
        let auths =
            r#"{"auths": {"a.org": {"auth": "bWU6d29yZA=="}, "b.org": {"username": "you", "password": "other"}}}"#;
        let told = secrets(&Job::default(), &environ(&[("DOCKER_AUTH_CONFIG", auths)]));
        for secret in ["bWU6d29yZA==", "word", "eW91Om90aGVy", "other"] {
            assert!(told.iter().any(|other| other == secret), "{secret}: {told:?}");
        }
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
}
