//! Real job files: each must render and parse, except those the reference refuses too.
//!
//! The files are not part of the project; where they are not there, the test says so and proves nothing.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::{Job, Limits, Variables, decode, render};

/// Files that the reference (CI-tron 0.0.3) refuses as well, and why.
const REFUSED: &[(&str, &str)] = &[(
    "2021-05-17_8d2305b_containers__gitlab-trigger__bin__submit_job.sh.heredoc0.yml",
    // The name `session_reboot` had before June 2021.
    "unknown key `reboot`",
)];

/// What is no job file: environments of GitLab jobs, and the template that submits.
const NO_JOBS: &[&str] = &["gitlab-ci-tron-env", "ci-tron-dut.yml.gitlab-template.yml"];

#[test]
fn every_job_file_of_the_corpus_renders_and_parses() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    if !corpus.is_dir() {
        println!("skipped: no corpus at {}", corpus.display());
        return;
    }
    let mut files = Vec::new();
    collect(&corpus, &mut files);
    assert!(files.len() >= 70, "only {} files in the corpus", files.len());
    let mut failures = Vec::new();
    for file in &files {
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let refused = REFUSED.iter().find(|(refused, _)| *refused == name);
        match (parse(file, &name), refused) {
            (Ok(_), None) => {}
            (Err(drawing), None) => failures.push(drawing),
            (Ok(_), Some((_, why))) => failures.push(format!("{name} parses, but should not: {why}")),
            (Err(drawing), Some((_, why))) => assert!(drawing.contains(why), "{drawing}"),
        }
    }
    assert!(failures.is_empty(), "{} of {} files:\n{}", failures.len(), files.len(), failures.join("\n\n"));
}

fn parse(file: &Path, name: &str) -> Result<Job, String> {
    let bytes = std::fs::read(file).map_err(|error| error.to_string())?;
    let text = decode(name, &bytes).map_err(|problems| problems.to_string())?;
    let rendered = render(name, &text, &variables(), &Limits::default()).map_err(|problems| problems.to_string())?;
    Job::parse(&rendered).map_err(|problems| problems.to_string())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).expect("the corpus can be read");
    for path in entries.map(|entry| entry.expect("the corpus can be read").path()) {
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if hidden || NO_JOBS.iter().any(|name| path.ends_with(name)) {
            continue;
        }
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push(path);
        }
    }
    files.sort();
}

/// What a CI-tron server offers to templates.
fn variables() -> Variables {
    let mut variables = Variables::new();
    let dut = json!({
        "id": "52:54:00:11:22:33", "base_name": "gfx10", "full_name": "farm-gfx10-1", "tags": ["amdgpu:codename:NAVI10"], "manual_tags": [],
        "mac_address": "52:54:00:11:22:33", "ip_address": "10.42.0.17", "local_tty_device": "ttyS0", "ready_for_service": true, "comment": null,
    });
    for (name, value) in [
        ("machine_id", json!("52:54:00:11:22:33")),
        ("machine", dut.clone()),
        ("dut", dut),
        ("machine_tags", json!(["amdgpu:codename:NAVI10"])),
        ("local_tty_device", json!("ttyS0")),
        ("ready_for_service", json!(true)),
        ("minio_url", json!("http://ci-gateway:9000")),
        ("job_bucket", json!("job-5254-1")),
        ("job_bucket_access_key", json!("job-5254-1-dut")),
        ("job_bucket_secret_key", json!("0123456789abcdef")),
        ("fdo_proxy_registry", json!("10.42.0.1:8002")),
        ("pull_thru_registry", json!("10.42.0.1:8001")),
        ("local_registry", json!("10.42.0.1:8003")),
        ("harbor_fdo_registry", json!("10.42.0.1:8004")),
        ("ntp_peer", json!("10.42.0.1")),
        ("environ", json!({})),
        (
            "job",
            json!({"http": {"url": "http://10.42.0.1:8080"}, "bucket": {"url": "http://ci-gateway:9000", "name": "job-5254-1"}}),
        ),
    ] {
        variables.insert(name, value);
    }
    variables
}
