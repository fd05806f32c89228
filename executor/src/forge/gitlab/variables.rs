//! A job's variables: the last of a name wins, and each may name others. ◆
//!
//! | written | becomes |
//! |---|---|
//! | `$NAME`, `${NAME}` | that variable, itself expanded; nothing when there is none |
//! | `$$` | `$` |
//! | `$` before anything else, or at the end | stays: `'safe to turn off\r?$'` is a regular expression |
//! | `raw: true` | as it is written |
//!
//! GitLab's own runner expands so (Go's `os.Expand`); the server has expanded some already.

use std::collections::BTreeMap;

use super::script::BUILDS;
use super::wire::{Job, Variable};

/// A variable may name one that names one, and so on: deeper than any template that there is (dut.yml's have four).
const DEPTH_MAX: usize = 16;
/// A value that doubles with each level would fill the memory; a job's text has at most 256 KiB. What is longer is cut.
const VALUE_BYTES_MAX: usize = 1 << 20;

/// A job's variables, expanded, with those that its runner adds. `GIT_CLONE_PATH` is its folder where it is one below [`BUILDS`].
pub(super) fn of_job(job: &Job) -> BTreeMap<String, String> {
    let runners = |name: &str, value: &str| Variable {
        key: name.to_owned(),
        value: value.to_owned(),
        raw: true,
        ..Variable::default()
    };
    let mut variables = job.variables.clone();
    variables.push(runners("CI_BUILDS_DIR", BUILDS));
    variables.push(runners("CI_PROJECT_DIR", &format!("{BUILDS}/{}", job.job_info.project_full_path)));
    variables.push(runners("CI_SERVER", "yes"));
    let all = expanded(&variables);
    match all.get("GIT_CLONE_PATH").filter(|path| is_below_builds(path)) {
        Some(path) => {
            variables.push(runners("CI_PROJECT_DIR", path));
            expanded(&variables)
        }
        None => all,
    }
}

/// Names, paths and patterns of `artifacts:` and `cache:`, with their variables replaced.
pub(super) fn expand_files(job: &mut Job) {
    let all = of_job(job);
    let value = |text: &str| expand(text, |name| all.get(name).cloned().unwrap_or_default());
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
    let written = variables.iter().map(|one| (one.key.as_str(), one)).collect();
    let mut expansion = Expansion { written, done: BTreeMap::new(), open: Vec::new() };
    let names: Vec<&str> = expansion.written.keys().copied().collect();
    names.into_iter().for_each(|name| drop(expansion.value(name)));
    expansion.done
}

/// Each value is made once, however many name it.
struct Expansion<'a> {
    written: BTreeMap<&'a str, &'a Variable>,
    done: BTreeMap<String, String>,
    /// Those whose value is being made: one that names itself is empty there, as in a shell that sets it anew.
    open: Vec<&'a str>,
}

impl<'a> Expansion<'a> {
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
            if variable.raw { variable.value.clone() } else { expand(&variable.value, |name| self.value(name)) };
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
    fn values_that_double_at_each_level_stay_bounded() {
        let doubles = |n: usize| variable(&format!("V{n}"), &format!("$V{0}$V{0}$V{0}$V{0}", n + 1));
        let mut all: Vec<_> = (0..15).map(doubles).collect();
        all.push(variable("V15", &"x".repeat(1000)));
        let longest = expanded(&all).into_values().map(|value| value.len()).max();
        assert!(longest <= Some(3 * VALUE_BYTES_MAX), "{longest:?}");
    }
}
