//! Texts within a job that are templates once more: inline `data`, and the pieces of the command line.
//!
//! ```text
//!  job file ── rendered ─► Job ─┬► texts that something is made of (command line, kernel, archives): before the first boot, in one child
//!                               └► data of `storage`: tried then, and rendered when it is asked for ─► Served
//!                                     (name, protocol, boot) ─ rendered before in this boot? those bytes ─ no: a child, PLACES at once
//!
//!  #!jinja2: a mistake ends the setup, or the read · without it: what fails stays as it is, as CI-tron has it
//! ```
//! What stood in `{% raw %}` is such a template after the first time, and then knows `job.deployment`; when it is served, also `job.boot`
//! and `request`.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use gateway::namespace::Protocol;
use job_schema::job::{Archive, Artifact, ArtifactSource, Deployment, FormatStep, Groups, Job, StorageArtifact};
use job_schema::problem::Problems;
use job_schema::template::Variables;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::render;
use crate::session::Which;

/// Renderings of all jobs at once. A child may take two seconds of a processor: a DUT that asks in a loop must leave some to others.
static PLACES: Semaphore = Semaphore::const_new(4);
/// Renderings of one job's boot that are kept, so that a range and its file, or a look and its read, are the same bytes.
const KEPT_MAX: usize = 64;

/// Renders what is made before the first boot, and tries what is rendered when it is asked for.
pub(super) async fn render_again(source_name: &str, job: &mut Job, variables: &Variables) -> Result<(), Problems> {
    for (which, deployment) in [(Which::Start, &mut job.start), (Which::Continue, &mut job.continue_)] {
        let served: Vec<String> = files_of(deployment).filter_map(|file| served(&file.artifact)).cloned().collect();
        let mut texts: Vec<&mut String> = texts_of(deployment).into_iter().filter(|text| is_template(text)).collect();
        if !texts.is_empty() {
            let asked = texts.iter().map(|text| (*text).clone()).collect();
            let rendered = render::texts_in_child(source_name, asked, &of_deployment(variables, which, None)).await?;
            texts.iter_mut().zip(rendered).for_each(|(text, rendered)| **text = rendered);
        }
        if !served.is_empty() {
            let boot = if which == Which::Start { 1 } else { 2 };
            render::texts_in_child(source_name, served, &of_deployment(variables, which, Some(boot))).await?;
        }
    }
    Ok(())
}

/// The template that an entry of `storage` is served from, if it is one.
pub(super) fn served(artifact: &Artifact) -> Option<&String> {
    match &artifact.source {
        ArtifactSource::Data(text) if is_template(text) => Some(text),
        _ => None,
    }
}

fn of_deployment(variables: &Variables, which: Which, boot: Option<u32>) -> Variables {
    let mut variables = variables.clone();
    let mut of_job = variables.get("job").cloned().unwrap_or_else(|| json!({}));
    of_job["deployment"] = json!(match which {
        Which::Start => "start",
        Which::Continue => "continue",
    });
    if let Some(boot) = boot {
        of_job["boot"] = json!(boot);
    }
    variables.insert("job", of_job);
    variables
}

/// Data that is rendered when it is asked for.
pub(super) struct Served {
    source_name: String,
    variables: Variables,
    now: Mutex<Now>,
}

struct Now {
    which: Which,
    boot: u32,
    /// Of this boot, the oldest first.
    kept: VecDeque<(Request, String, String)>,
}

/// Who asks for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub protocol: Protocol,
    pub path: String,
}

impl Served {
    /// For a job with these values.
    pub(super) fn new(source_name: &str, variables: &Variables) -> Served {
        let now = Mutex::new(Now { which: Which::Start, boot: 0, kept: VecDeque::new() });
        Served { source_name: source_name.to_owned(), variables: variables.clone(), now }
    }

    /// A boot begins, or goes on; without a number it is one more.
    pub(super) fn begin(&self, which: Which, boot: Option<u32>) {
        let mut now = self.lock();
        let boot = boot.unwrap_or(now.boot + 1);
        *now = Now { which, boot, kept: VecDeque::new() };
    }

    /// What `template` says to this request; the error is a sentence for the job's log.
    pub(super) async fn render(&self, template: &str, request: Request, groups: &Groups) -> Result<String, String> {
        if let Some(kept) = self.kept(template, &request) {
            return Ok(kept);
        }
        let _place = PLACES.acquire().await.map_err(|_| "nothing is rendered any more".to_owned())?;
        // Another request for the same may have come first.
        if let Some(kept) = self.kept(template, &request) {
            return Ok(kept);
        }
        let (which, boot) = {
            let now = self.lock();
            (now.which, now.boot)
        };
        let mut variables = of_deployment(&self.variables, which, Some(boot));
        let protocol = request.protocol.to_string();
        variables.insert("request", json!({"protocol": protocol, "path": request.path, "groups": groups.taken()}));
        let rendered = render::texts_in_child(&self.source_name, vec![template.to_owned()], &variables).await;
        let text = rendered.map_err(|problems| in_a_line(&problems))?.pop().unwrap_or_default();
        let mut now = self.lock();
        if now.boot == boot {
            if now.kept.len() >= KEPT_MAX {
                now.kept.pop_front();
            }
            now.kept.push_back((request, template.to_owned(), text.clone()));
        }
        Ok(text)
    }

    fn kept(&self, template: &str, request: &Request) -> Option<String> {
        let now = self.lock();
        let is_it = |(other, of, _): &&(Request, String, String)| other == request && of == template;
        now.kept.iter().find(is_it).map(|(_, _, text)| text.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn in_a_line(problems: &Problems) -> String {
    let line = |problem: &job_schema::problem::Problem| match problem.location {
        Some(place) => format!("line {} of its data: {}", place.line, problem.what),
        None => problem.what.clone(),
    };
    problems.list().iter().map(line).collect::<Vec<_>>().join("; ")
}

fn is_template(text: &str) -> bool {
    text.starts_with("#!jinja2") || ["{{", "{%", "{#"].iter().any(|opening| text.contains(opening))
}

fn files_of(deployment: &Deployment) -> impl Iterator<Item = &StorageArtifact> {
    deployment.storage.http.iter().chain(&deployment.storage.tftp)
}

/// All but what is rendered when it is asked for.
fn texts_of(deployment: &mut Deployment) -> Vec<&mut String> {
    let mut texts: Vec<&mut String> = deployment.cmdline.iter_mut().collect();
    let storage = &mut deployment.storage;
    for file in storage.http.iter_mut().chain(&mut storage.tftp) {
        match served(&file.artifact) {
            Some(_) => collect_steps(&mut file.artifact.format, &mut texts),
            None => collect(&mut file.artifact, &mut texts),
        }
    }
    let kernel = deployment.kernel.iter_mut().map(|kernel| &mut kernel.artifact);
    let boot_image = deployment.fastboot.iter_mut().filter_map(|fastboot| fastboot.boot_image.as_mut());
    for artifact in kernel.chain(&mut deployment.initramfs).chain(&mut deployment.dtb).chain(boot_image) {
        collect(artifact, &mut texts);
    }
    texts
}

fn collect<'a>(artifact: &'a mut Artifact, texts: &mut Vec<&'a mut String>) {
    match &mut artifact.source {
        ArtifactSource::Data(text) => texts.push(text),
        ArtifactSource::Archive(Archive { add, .. }) => {
            add.iter_mut().for_each(|member| collect(&mut member.artifact, texts));
        }
        ArtifactSource::Url(_) | ArtifactSource::Attached(_) => {}
    }
    collect_steps(&mut artifact.format, texts);
}

fn collect_steps<'a>(steps: &'a mut [FormatStep], texts: &mut Vec<&'a mut String>) {
    for step in steps {
        if let FormatStep::Archive(format) = step {
            format.add.iter_mut().for_each(|member| collect(&mut member.artifact, texts));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use job_schema::template::Rendered;

    #[test]
    fn the_texts_of_a_deployment_are_found_in_archives_as_well() {
        let text = "version: 1\ntarget: {tags: []}\nconsole_patterns: {}\ndeployment:\n  start:\n    kernel: {data: k, cmdline: [c]}\n    \
                    initramfs:\n    - archive: {extension: cpio, add: [{path: a, artifact: {data: d, format: {archive: {extension: tar, \
                    add: [{path: b, artifact: {data: e}}]}}}}]}\n    storage: {tftp: [{path: /t, data: t}]}\n";
        let mut job = Job::parse_as(&Rendered::plain("job.yml", text), None).unwrap();
        let mut texts: Vec<_> = texts_of(&mut job.start).into_iter().map(|text| text.clone()).collect();
        texts.sort();
        assert_eq!(texts, ["c", "d", "e", "k", "t"]);
        let text =
            text.replace("data: t}", "data: '{{ t }}', format: {archive: {add: [{path: a, artifact: {data: in}}]}}}");
        let mut job = Job::parse_as(&Rendered::plain("job.yml", text), None).unwrap();
        let mut texts: Vec<_> = texts_of(&mut job.start).into_iter().map(|text| text.clone()).collect();
        texts.sort();
        assert_eq!(
            texts,
            ["c", "d", "e", "in", "k"],
            "what is served is rendered then, and what it is packed with is not"
        );
        assert!(is_template("#!jinja2\nx") && is_template("a {{ b }}") && !is_template("a { b }"));
    }
}
