//! A job's variables: the last of a name wins, and each may name others. ◆
//!
//! | written | becomes |
//! |---|---|
//! | `$NAME`, `${NAME}` | that variable, itself expanded; nothing when there is none |
//! | the same, of a variable of type file | where a script runs its path ([`of_script`]), elsewhere its content |
//! | `$$` | `$` |
//! | `$` before anything else, or at the end | stays: `'safe to turn off\r?$'` is a regular expression |
//! | `raw: true` | as it is written |
//!
//! GitLab's own runner expands so (Go's `os.Expand`); the server has expanded some already.

use std::collections::BTreeMap;

use serde_json::Value;

use super::script::BUILDS;
use super::wire::{Job, Variable};

/// A variable may name one that names one, and so on: deeper than any template that there is (dut.yml's have four).
const DEPTH_MAX: usize = 16;
/// A value that doubles with each level would fill the memory; a job's text has at most 256 KiB. What is longer is cut.
const VALUE_BYTES_MAX: usize = 1 << 20;

/// A job's variables, expanded, with those that its runner adds. `GIT_CLONE_PATH` is its folder where it is one below [`BUILDS`].
pub(super) fn of_job(job: &Job) -> BTreeMap<String, String> {
    expanded(&with_runners(job))
}

/// The same for a script, whose variables of type file are files: who names one of them means its path.
pub(super) fn of_script(job: &Job) -> BTreeMap<String, String> {
    let variables = with_runners(job);
    let project_dir = expanded(&variables).remove("CI_PROJECT_DIR").unwrap_or_default();
    Expansion::of(&variables, Files::Below(&project_dir)).all()
}

/// Those that the author may set otherwise come first.
fn with_runners(job: &Job) -> Vec<Variable> {
    let runners = |name: &str, value: &str| Variable {
        key: name.to_owned(),
        value: value.to_owned(),
        raw: true,
        ..Variable::default()
    };
    // One job at a time has the machine, and nothing of it stays.
    let first = [("CI_CONCURRENT_ID", "0"), ("CI_CONCURRENT_PROJECT_ID", "0"), ("CI_DISPOSABLE_ENVIRONMENT", "true")];
    let mut variables: Vec<_> = first.map(|(name, value)| runners(name, value)).into();
    variables.extend(job.variables.iter().cloned());
    variables.push(runners("CI_BUILDS_DIR", BUILDS));
    variables.push(runners("CI_PROJECT_DIR", &format!("{BUILDS}/{}", job.job_info.project_full_path)));
    variables.push(runners("CI_SERVER", "yes"));
    if let Some(path) = expanded(&variables).get("GIT_CLONE_PATH").filter(|path| is_below_builds(path)) {
        variables.push(runners("CI_PROJECT_DIR", path));
    }
    variables
}

/// The path of a variable of type file: beside the job's folder, as GitLab's own runner has it.
pub(super) fn path_of_file(project_dir: &str, name: &str) -> String {
    format!("{project_dir}.tmp/{name}")
}

/// What the server leaves to its runners: the image, names, paths and patterns of `artifacts:` and `cache:`, with their variables replaced.
pub(super) fn expand_names(job: &mut Job) {
    let all = of_job(job);
    let value = |text: &str| expand(text, |name| all.get(name).cloned().unwrap_or_default());
    for image in [&mut job.image].into_iter().chain(&mut job.services) {
        image.name = value(&image.name);
        for key in ["platform", "user"] {
            if let Some(Value::String(text)) = image.executor_opts.pointer_mut(&format!("/docker/{key}")) {
                *text = value(text);
            }
        }
    }
    for entry in &mut job.artifacts {
        entry.name = value(&entry.name);
        entry.paths.iter_mut().chain(&mut entry.exclude).for_each(|path| *path = value(path));
    }
    for entry in &mut job.cache {
        let texts = [&mut entry.key, &mut entry.policy].into_iter().chain(&mut entry.fallback_keys);
        texts.chain(&mut entry.paths).for_each(|text| *text = value(text));
    }
}

/// Whether a job's files may lie there.
pub(super) fn is_below_builds(path: &str) -> bool {
    let rest = path.strip_prefix(BUILDS).and_then(|rest| rest.strip_prefix('/'));
    rest.is_some_and(|rest| rest.split('/').all(|step| !matches!(step, "" | "." | "..")))
}

/// The values by name, all expanded.
pub(super) fn expanded(variables: &[Variable]) -> BTreeMap<String, String> {
    Expansion::of(variables, Files::Nowhere).all()
}

/// Where variables of type file are files.
#[derive(Clone, Copy)]
enum Files<'a> {
    /// Beside this folder of the job.
    Below(&'a str),
    Nowhere,
}

/// Each value is made once, however many name it.
struct Expansion<'a> {
    written: BTreeMap<&'a str, &'a Variable>,
    files: Files<'a>,
    done: BTreeMap<String, String>,
    /// Those whose value is being made: one that names itself is empty there, as in a shell that sets it anew.
    open: Vec<&'a str>,
}

impl<'a> Expansion<'a> {
    fn of(variables: &'a [Variable], files: Files<'a>) -> Expansion<'a> {
        let written = variables.iter().map(|one| (one.key.as_str(), one)).collect();
        Expansion { written, files, done: BTreeMap::new(), open: Vec::new() }
    }

    fn all(mut self) -> BTreeMap<String, String> {
        let names: Vec<&str> = self.written.keys().copied().collect();
        names.into_iter().for_each(|name| drop(self.value(name)));
        self.done
    }

    /// What stands in the place of a name.
    fn named(&mut self, name: &str) -> String {
        match (self.files, self.written.get(name)) {
            (Files::Below(folder), Some(variable)) if variable.file => path_of_file(folder, name),
            _ => self.value(name),
        }
    }

    fn value(&mut self, name: &str) -> String {
        if let Some(done) = self.done.get(name) {
            return done.clone();
        }
        let Some(variable) = self.written.get(name).copied() else { return String::new() };
        if self.open.len() == DEPTH_MAX || self.open.contains(&name) {
            return String::new();
        }
        self.open.push(&variable.key);
        let value =
            if variable.raw { variable.value.clone() } else { expand(&variable.value, |name| self.named(name)) };
        self.open.pop();
        self.done.insert(name.to_owned(), value.clone());
        value
    }
}

/// A text with the names in it replaced.
fn expand(text: &str, mut value: impl FnMut(&str) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if out.len() > VALUE_BYTES_MAX {
            return out;
        }
        rest = match reference(after) {
            Some(("$", rest)) => {
                out.push('$');
                rest
            }
            Some((name, rest)) => {
                out.push_str(&value(name));
                rest
            }
            None => {
                out.push('$');
                after
            }
        };
    }
    out.push_str(rest);
    out
}

/// The name behind a `$`, and what follows it.
fn reference(after: &str) -> Option<(&str, &str)> {
    if let Some(braced) = after.strip_prefix('{') {
        let (name, rest) = braced.split_once('}')?;
        return (!name.is_empty()).then_some((name, rest));
    }
    let first = after.chars().next()?;
    if first.is_ascii_digit() || "*#$@!?-".contains(first) {
        return Some(after.split_at(1));
    }
    let length = after.find(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_')).unwrap_or(after.len());
    (length > 0).then(|| after.split_at(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(key: &str, value: &str) -> Variable {
        Variable { key: key.into(), value: value.into(), ..Variable::default() }
    }

    fn value(written: &[(&str, &str)], name: &str) -> String {
        let all: Vec<_> = written.iter().map(|(key, value)| variable(key, value)).collect();
        expanded(&all)[name].clone()
    }

    #[test]
    fn each_row_of_the_table_holds() {
        let all = [
            ("A", "1"),
            ("B", "${A}2"),
            ("C", "$B-3"),
            ("D", "100$$ '$' $"),
            ("E", "off\\r?$"),
            ("F", "<$NONE$1>"),
            ("G", "$G:/bin"),
            ("A", "last"),
        ];
        let got: Vec<_> = ["C", "D", "E", "F", "G"].map(|name| value(&all, name)).into();
        assert_eq!(got, ["last2-3", "100$ '$' $", "off\\r?$", "<>", ":/bin"]);
    }

    #[test]
    fn a_raw_one_stays_and_circles_end() {
        let raw = Variable { raw: true, ..variable("R", "$A") };
        let all = expanded(&[raw, variable("A", "$B"), variable("B", "x$A"), variable("C", "$R")]);
        assert_eq!((all["R"].as_str(), all["C"].as_str()), ("$A", "$A"));
        assert_eq!(all["A"], "x");
    }

    #[test]
    fn who_names_a_file_means_its_path_where_there_is_one_and_else_what_is_in_it() {
        let mut job = Job::default();
        job.job_info.project_full_path = "g/p".into();
        let file = Variable { file: true, ..variable("CERT", "$A-text") };
        job.variables = vec![file, variable("A", "1"), variable("USES", "<$CERT>"), variable("CI_CONCURRENT_ID", "7")];
        let (elsewhere, script) = (of_job(&job), of_script(&job));
        assert_eq!((elsewhere["USES"].as_str(), script["USES"].as_str()), ("<1-text>", "</builds/g/p.tmp/CERT>"));
        assert_eq!((script["CERT"].as_str(), script["CI_CONCURRENT_ID"].as_str()), ("1-text", "7"));
        job.variables.push(variable("GIT_CLONE_PATH", "/builds/else where"));
        assert_eq!(of_script(&job)["USES"], "</builds/else where.tmp/CERT>");
    }

    #[test]
    fn what_the_server_leaves_to_runners_has_its_variables_replaced() {
        let payload = serde_json::json!({
            "variables": [{"key": "CI_REGISTRY_IMAGE", "value": "r.org/g/p"}, {"key": "ARCH", "value": "arm64"}],
            "image": {"name": "$CI_REGISTRY_IMAGE/${ARCH}:1", "executor_opts": {"docker": {"platform": "linux/$ARCH", "user": "me"}}},
            "services": [{"name": "db:$ARCH"}],
            "artifacts": [{"name": "of-$ARCH", "paths": ["$ARCH/"], "exclude": ["$ARCH/tmp"]}],
            "cache": [{"key": "$ARCH", "fallback_keys": ["x$ARCH"], "paths": [".$ARCH"], "policy": "$NONE"}],
        });
        let mut job: Job = serde_json::from_value(payload).unwrap();
        expand_names(&mut job);
        assert_eq!((job.image.name.as_str(), job.services[0].name.as_str()), ("r.org/g/p/arm64:1", "db:arm64"));
        assert_eq!(job.image.executor_opts["docker"], serde_json::json!({"platform": "linux/arm64", "user": "me"}));
        let (artifacts, cache) = (&job.artifacts[0], &job.cache[0]);
        assert_eq!(
            (artifacts.name.as_str(), &artifacts.paths[0], &artifacts.exclude[0]),
            ("of-arm64", &"arm64/".into(), &"arm64/tmp".into())
        );
        assert_eq!(
            (cache.key.as_str(), &cache.fallback_keys[0], &cache.paths[0]),
            ("arm64", &"xarm64".into(), &".arm64".into())
        );
    }

    #[test]
    fn values_that_double_at_each_level_stay_bounded() {
        let doubles = |n: usize| variable(&format!("V{n}"), &format!("$V{0}$V{0}$V{0}$V{0}", n + 1));
        let mut all: Vec<_> = (0..15).map(doubles).collect();
        all.push(variable("V15", &"x".repeat(1000)));
        let longest = expanded(&all).into_values().map(|value| value.len()).max();
        assert!(longest <= Some(3 * VALUE_BYTES_MAX), "{longest:?}");
    }
}
