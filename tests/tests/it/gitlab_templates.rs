//! Templates for `.gitlab-ci.yml` on the pages, read by `gitlab-ci-local --preview` (npm), which knows GitLab's schema and how `include`
//! and `extends` go together.
//!
//! 4.61.1 is the newest that runs on the Node of Debian and on 20 (newer ones need `Set.prototype.union`). It is installed once into the
//! user's cache.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tests::bench::need_programs;
use tests::packages::npm;
use tests::workspace::root;

/// A job that the templates' jobs need.
const BUILD: &str = "build:\n  script: [make]\n  artifacts: {paths: [out/]}\n";

/// What the jobs of a `.gitlab-ci.yml` are, all put together.
fn preview(pipeline: &str) -> Output {
    need_programs(&[("git", "git")]);
    let folder = tempfile::tempdir().unwrap();
    let beside = |name: &str| std::fs::copy(root().join("docs/gitlab").join(name), folder.path().join(name)).unwrap();
    beside("wharf.yml");
    std::fs::write(folder.path().join(".gitlab-ci.yml"), pipeline).unwrap();
    // It includes only files that git has.
    for words in [&["init", "-q", "."][..], &["add", "."]] {
        let status = Command::new("git").args(words).current_dir(folder.path()).status().unwrap();
        assert!(status.success(), "git {words:?}");
    }
    let mut command = Command::new(npm("gitlab-ci-local@4.61.1").join("gitlab-ci-local"));
    command.arg("--preview").current_dir(folder.path()).env("HOME", folder.path()).output().unwrap()
}

#[track_caller]
fn jobs(pipeline: &str) -> Value {
    let output = preview(pipeline);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\nof:\n{pipeline}");
    serde_yaml::from_slice(&output.stdout).unwrap()
}

/// The blocks of a page's section that are written with four blanks.
fn blocks(page: &Path, section: &str) -> Vec<String> {
    let text = std::fs::read_to_string(page).unwrap();
    let (_, after) = text.split_once(section).unwrap_or_else(|| panic!("no {section}"));
    let mut blocks = vec![String::new()];
    for line in after.lines().skip(1).take_while(|line| !line.starts_with('#')) {
        match line.strip_prefix("    ") {
            Some(line) => blocks.last_mut().unwrap().push_str(&format!("{line}\n")),
            None if line.is_empty() => {}
            None => blocks.push(String::new()),
        }
    }
    blocks.retain(|block| !block.is_empty());
    blocks
}

#[test]
fn the_templates_of_the_pages_are_what_gitlab_takes() {
    let blocks = blocks(&root().join("docs/gitlab.md"), "### Templates");
    assert!(blocks.len() >= 3, "{blocks:?}");
    for block in &blocks {
        jobs(&format!("{block}{BUILD}"));
    }
    let all = jobs(
        "include: [{local: wharf.yml}]\nboot:\n  extends: .wharf-job\n  tags: [lab]\n  variables: {WHARF_JOB_FILE: ci/boot.yml}\n\
         cat:\n  extends: .wharf-script\n  script: [cat /proc/cpuinfo]\nrun:\n  extends: .wharf-run\n  variables: {WHARF_SERVER: 'https://farm'}\n",
    );
    assert_eq!(all["boot"]["artifacts"]["reports"]["junit"], "wharf/junit.xml", "{all}");
    assert_eq!(all["boot"]["script"][0], "true");
    assert_eq!(all["cat"]["script"][0], "cat /proc/cpuinfo");
    assert_eq!(all["cat"]["retry"]["when"][0], "runner_system_failure");
    assert!(all["run"]["id_tokens"]["WHARF_TOKEN"]["aud"].is_string(), "{all}");
}

#[test]
fn the_checker_of_templates_refuses_what_gitlab_does_not_take() {
    let output = preview("boot:\n  script: [\"true\"]\n  retry: {max: 2, when: [runner_system_failur]}\n");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("must be equal to the allowed value"), "{said}");
}
