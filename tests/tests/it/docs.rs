//! The pages say what is: their commands parse, their examples check, their links lead somewhere.
//!
//! ```text
//!  *.md ─► fences ─┬─► lines `wharf …`, `cargo run … -- …`  ─► the binary, with --help behind: every word before it is parsed
//!                  └─► yaml with `duts:` or `deployment:`   ─► wharf check
//!       └─► [text](target)                                 ─► a file that is there, a heading that is there
//! ```

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tests::workspace::{SourceFile, files, root};

/// A fenced block of a page.
struct Fence {
    /// `page.md:12`.
    place: String,
    /// The word after the backticks.
    language: String,
    lines: Vec<String>,
}

fn wharf(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_wharf")).args(arguments).current_dir(root()).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn pages() -> Vec<SourceFile> {
    let pages = files("md");
    assert!(pages.iter().any(|page| page.path == "README.md"), "the README was not found");
    pages
}

fn fences(page: &SourceFile) -> Vec<Fence> {
    let mut fences: Vec<Fence> = Vec::new();
    let mut is_open = false;
    for (index, line) in page.text.lines().enumerate() {
        match line.trim_start().strip_prefix("```") {
            Some(language) if !is_open => {
                let place = format!("{}:{}", page.path, index + 1);
                fences.push(Fence { place, language: language.trim().to_owned(), lines: Vec::new() });
                is_open = true;
            }
            Some(_) => is_open = false,
            None if is_open => fences.last_mut().expect("one is open").lines.push(line.to_owned()),
            None => {}
        }
    }
    assert!(!is_open, "{}: a fence is not closed", page.path);
    fences
}

/// The arguments of `wharf` that a line of a page shows, if it shows any.
fn arguments_of(line: &str) -> Option<Vec<String>> {
    let line = without_variables(line.trim_start().trim_start_matches("$ "));
    let command = match line.strip_prefix("wharf ") {
        Some(rest) => rest,
        None => line.strip_prefix("cargo run").and_then(|rest| rest.split_once(" -- "))?.1,
    };
    let end = [" # ", " | ", " > ", " && ", " &"].iter().filter_map(|end| command.find(end)).min();
    let command = command[..end.unwrap_or(command.len())].trim();
    Some(command.split_whitespace().map(|word| word.trim_matches(['\'', '"']).to_owned()).collect())
}

/// A command without the `NAME=value` words before it.
fn without_variables(command: &str) -> &str {
    let is_name = |name: &str| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
    match command.split_once(' ') {
        Some((first, rest)) if first.split_once('=').is_some_and(|(name, _)| is_name(name)) => without_variables(rest),
        _ => command,
    }
}

#[test]
fn every_command_of_the_pages_is_one_that_the_program_knows() {
    let mut seen = Vec::new();
    let mut wrong = Vec::new();
    for fence in pages().iter().flat_map(fences).filter(|fence| fence.language != "yaml" && fence.language != "rust") {
        for arguments in fence.lines.iter().filter_map(|line| arguments_of(line)) {
            let mut words: Vec<_> = arguments.iter().map(String::as_str).collect();
            // Behind `--` it would be a word of another program.
            words.insert(words.iter().position(|word| *word == "--").unwrap_or(words.len()), "--help");
            let output = wharf(&words);
            if !output.status.success() {
                wrong.push(format!("{}: wharf {}: {}", fence.place, arguments.join(" "), said(&output)));
            }
            seen.push(arguments.first().cloned().unwrap_or_default());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for expected in ["check", "demo", "run", "serve"] {
        assert!(seen.iter().any(|command| command == expected), "no page shows `wharf {expected}`");
    }
}

#[test]
fn commands_are_read_as_a_shell_would() {
    let words = |line: &str| arguments_of(line).map(|words| words.join(" "));
    assert_eq!(words("$ wharf jobs --json | jq ."), Some("jobs --json".into()));
    assert_eq!(words("A=b wharf run -E 'CI_.*' job.yml   # a note"), Some("run -E CI_.* job.yml".into()));
    assert_eq!(words("cargo run --release -- demo"), Some("demo".into()));
    assert_eq!(words("wharfinger"), None);
}

/// What `.ci/run` does to the machine, the README tells: its commands stand there word for word.
#[test]
fn the_gate_does_no_more_than_the_readme_says() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let script = std::fs::read_to_string(root().join(".ci/run")).unwrap();
    let commands = script.lines().map(str::trim).filter(|line| {
        ["apt-get ", "cargo ", "rustup ", "curl ", "wget "].iter().any(|program| line.starts_with(program))
    });
    let commands: Vec<_> = commands.collect();
    assert_eq!(commands.last(), Some(&"cargo test"));
    let secret: Vec<_> = commands.iter().filter(|command| !readme.contains(**command)).collect();
    assert!(secret.is_empty(), "the README does not tell of {secret:?}");
}

#[test]
fn a_word_that_the_program_does_not_know_is_found() {
    assert!(!wharf(&["serve", "--farm", "x.yml", "--no-such-option", "--help"]).status.success());
    assert!(!wharf(&["no-such-command", "--help"]).status.success());
}

#[test]
fn every_whole_job_and_farm_of_the_pages_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let (mut checked, mut wrong) = (0, Vec::new());
    for fence in pages().iter().flat_map(fences).filter(|fence| fence.language == "yaml") {
        let has = |key: &str| fence.lines.iter().any(|line| line.starts_with(key));
        let is_marked = fence.lines.first().is_some_and(|line| matches!(line.trim(), "# job" | "# farm"));
        let is_whole = (has("network:") && has("duts:")) || (has("target:") && has("deployment:"));
        if !is_marked && !is_whole {
            continue;
        }
        checked += 1;
        let file = folder.path().join(format!("{checked}.yml"));
        std::fs::write(&file, fence.lines.join("\n") + "\n").unwrap();
        let output = wharf(&["check", file.to_str().unwrap()]);
        if !output.status.success() {
            wrong.push(format!("{}:\n{}", fence.place, said(&output)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked >= 4, "only {checked} whole examples were found");
}

/// The names of all keys that a JSON Schema knows, and the words that it allows as values.
fn words_of(schema: &serde_json::Value, words: &mut BTreeSet<String>) {
    if let Some(properties) = schema["properties"].as_object() {
        words.extend(properties.keys().cloned());
    }
    words.extend(schema["const"].as_str().map(str::to_owned));
    words.extend(schema["enum"].as_array().into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)));
    match schema {
        serde_json::Value::Object(members) => members.values().for_each(|member| words_of(member, words)),
        serde_json::Value::Array(items) => items.iter().for_each(|item| words_of(item, words)),
        _ => {}
    }
}

#[test]
fn the_page_of_the_farm_file_and_those_of_its_drivers_have_every_key_and_word() {
    let schema = serde_json::from_slice(&wharf(&["schema", "farm"]).stdout).unwrap();
    let mut words = BTreeSet::new();
    words_of(&schema, &mut words);
    assert!(words.contains("misbehave") && words.contains("uefi-pxe"), "{words:?}");
    let of_farms = |page: &SourceFile| page.path == "docs/farm-file.md" || page.path.ends_with("-drivers.md");
    let page: String = pages().into_iter().filter(of_farms).map(|page| page.text).collect();
    let is_named = |word: &String| {
        page.contains(&format!("`{word}`"))
            || page.contains(&format!("`{word}: "))
            || page.contains(&format!(".{word}`"))
    };
    let missing: Vec<_> = words.iter().filter(|word| !is_named(word)).collect();
    assert!(missing.is_empty(), "docs/farm-file.md and docs/*-drivers.md do not name {missing:?}");
}

#[test]
fn the_jobs_and_farms_of_the_fixtures_are_right() {
    for folder in ["fixtures/farms", "fixtures/jobs/good"] {
        for file in files("yml").iter().filter(|file| Path::new(&file.path).parent() == Some(Path::new(folder))) {
            let output = wharf(&["check", &file.path]);
            assert!(output.status.success(), "{}:\n{}", file.path, said(&output));
        }
    }
}

#[test]
fn a_job_that_is_wrong_is_found_and_its_line_named() {
    let output = wharf(&["check", "fixtures/jobs/bad/unknown-keys.yml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("fixtures/jobs/bad/unknown-keys.yml:"), "{}", said(&output));
}

/// The targets of `[text](target)` on a line, outside of code.
fn targets(line: &str) -> Vec<String> {
    let text: String = line.split('`').step_by(2).collect();
    text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
}

/// The anchor that a heading gets from the usual renderers: lower case, blanks as `-`, punctuation dropped.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = kept.chars().filter(|character| character.is_alphanumeric() || " -_".contains(*character));
    kept.map(|character| if character == ' ' { '-' } else { character }).collect()
}

fn anchors(page: &str) -> Vec<String> {
    page.lines().filter(|line| line.starts_with('#')).map(anchor).collect()
}

/// What is wrong with a link of this page, if anything.
fn wrong_link(page: &SourceFile, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, wanted) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() {
        root().join(&page.path)
    } else {
        root().join(&page.path).parent().expect("a page is in a folder").join(file)
    };
    if !path.exists() {
        return Some(format!("{}: `{target}`: no such file", page.path));
    }
    let has_anchor =
        wanted.is_empty() || anchors(&std::fs::read_to_string(&path).unwrap()).contains(&wanted.to_owned());
    (!has_anchor).then(|| format!("{}: `{target}`: no such heading", page.path))
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let mut followed = 0;
    let mut wrong = Vec::new();
    for page in pages() {
        let mut is_code = false;
        for line in page.text.lines() {
            if line.trim_start().starts_with("```") {
                is_code = !is_code;
            }
            for target in targets(line).into_iter().filter(|_| !is_code) {
                followed += 1;
                wrong.extend(wrong_link(&page, &target));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(followed >= 10, "only {followed} links were found");
}

/// All pages that one gets to from the README by following links.
fn reached() -> BTreeSet<PathBuf> {
    let mut reached = BTreeSet::new();
    let mut next = vec![root().join("README.md")];
    while let Some(page) = next.pop() {
        let text = std::fs::read_to_string(&page).unwrap();
        if !reached.insert(page.clone()) {
            continue;
        }
        for target in text.lines().flat_map(targets) {
            let file = target.split('#').next().unwrap_or_default();
            let linked = page.parent().expect("a page is in a folder").join(file);
            if file.ends_with(".md") && linked.exists() {
                next.push(linked.canonicalize().unwrap());
            }
        }
    }
    reached
}

#[test]
fn every_page_is_reached_from_the_readme() {
    let reached = reached();
    let lost: Vec<_> = pages()
        .into_iter()
        .filter(|page| page.path.starts_with("docs/") && !reached.contains(&root().join(&page.path)))
        .map(|page| page.path)
        .collect();
    assert!(lost.is_empty(), "no page links to {lost:?}");
}

#[test]
fn the_drawing_of_the_house_has_every_room() {
    let page = std::fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let mut missing = Vec::new();
    for file in files("rs") {
        let Some((house, inside)) = file.path.split_once("/src/") else { continue };
        let room = match inside.split_once('/') {
            Some((folder, _)) => format!("{folder}/"),
            // Tests stand beside what they test.
            None if inside.ends_with("_tests.rs") || inside == "seeded.rs" => continue,
            None => inside.to_owned(),
        };
        // A folder may be drawn as the file beside it, whose parts it holds.
        let beside = room.strip_suffix('/').map(|folder| format!(" {folder}.rs"));
        if house != "tests" && !page.contains(&format!(" {room}")) && !beside.is_some_and(|file| page.contains(&file)) {
            missing.push(format!("{house}/src/{room}"));
        }
    }
    missing.dedup();
    assert!(missing.is_empty(), "docs/ARCHITECTURE.md does not show {missing:?}");
}

#[test]
fn links_and_headings_are_read_as_renderers_do() {
    assert_eq!(targets("see [a](b.md#c), `[x](y)` and [d](../e)"), ["b.md#c", "../e"]);
    assert_eq!(anchor("### `storage.http` and `storage.tftp`"), "storagehttp-and-storagetftp");
}

/// A path in backticks that begins with a folder of the tree: `gateway/src/net.rs`, `fixtures/`. Not a pattern, not a placeholder.
fn named_paths(line: &str) -> Vec<&str> {
    const FOLDERS: &[&str] = &["docs/", "executor/", "fixtures/", "gateway/", "job-schema/", "tests/"];
    let is_path = |word: &&str| {
        FOLDERS.iter().any(|folder| word.starts_with(folder)) && !word.contains(['*', '<', '{', ' ', '…', '^'])
    };
    line.split('`').skip(1).step_by(2).filter(is_path).collect()
}

#[test]
fn every_file_that_a_page_names_is_there() {
    let mut named = 0;
    let mut missing = Vec::new();
    for page in pages() {
        for (index, line) in page.text.lines().enumerate() {
            for path in named_paths(line) {
                named += 1;
                if !root().join(path).exists() {
                    missing.push(format!("{}:{}: `{path}`", page.path, index + 1));
                }
            }
        }
    }
    assert!(missing.is_empty(), "named, but not there:\n  {}", missing.join("\n  "));
    assert!(named >= 20, "only {named} paths were found");
}
