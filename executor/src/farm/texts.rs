//! Texts within a job that are templates once more when they are served: inline `data`, and the pieces of the command line.
//!
//! ```text
//!  job file ── rendered ─► Job ─► texts with {{, {% or {#, or a first line #!jinja2 ── one child ─► the same Job, with what they say
//!                                  #!jinja2: a mistake ends the setup · without it: what fails stays as it is, as CI-tron has it
//! ```
//! What stood in `{% raw %}` is such a template after the first time, and then knows `job.deployment`.

use job_schema::job::{Archive, Artifact, ArtifactSource, Deployment, FormatStep, Job};
use job_schema::problem::Problems;
use job_schema::template::Variables;
use serde_json::json;

use crate::render;

/// Renders the texts of both deployments again.
pub(super) async fn render_again(source_name: &str, job: &mut Job, variables: &Variables) -> Result<(), Problems> {
    for (name, deployment) in [("start", &mut job.start), ("continue", &mut job.continue_)] {
        let mut texts: Vec<&mut String> = texts_of(deployment).into_iter().filter(|text| is_template(text)).collect();
        if texts.is_empty() {
            continue;
        }
        let mut variables = variables.clone();
        let mut of_job = variables.get("job").cloned().unwrap_or_else(|| json!({}));
        of_job["deployment"] = json!(name);
        variables.insert("job", of_job);
        let asked = texts.iter().map(|text| (*text).clone()).collect();
        let rendered = render::texts_in_child(source_name, asked, &variables).await?;
        for (text, rendered) in texts.iter_mut().zip(rendered) {
            **text = rendered;
        }
    }
    Ok(())
}

fn is_template(text: &str) -> bool {
    text.starts_with("#!jinja2") || ["{{", "{%", "{#"].iter().any(|opening| text.contains(opening))
}

fn texts_of(deployment: &mut Deployment) -> Vec<&mut String> {
    let mut texts: Vec<&mut String> = deployment.cmdline.iter_mut().collect();
    let storage = &mut deployment.storage;
    let files = storage.http.iter_mut().chain(&mut storage.tftp).map(|file| &mut file.artifact);
    let kernel = deployment.kernel.iter_mut().map(|kernel| &mut kernel.artifact);
    let boot_image = deployment.fastboot.iter_mut().filter_map(|fastboot| fastboot.boot_image.as_mut());
    for artifact in kernel.chain(&mut deployment.initramfs).chain(&mut deployment.dtb).chain(files).chain(boot_image) {
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
    for step in &mut artifact.format {
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
        assert!(is_template("#!jinja2\nx") && is_template("a {{ b }}") && !is_template("a { b }"));
    }
}
