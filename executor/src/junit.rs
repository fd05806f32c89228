//! Test results in JUnit's XML: how many tests, and which of them failed.
//!
//! ```text
//!  testsuites ─► testsuite ─► testcase ─┬─ failure  the test says no
//!  (any depth, or a testsuite alone)    ├─ error    the test itself broke
//!                                       └─ skipped
//! ```
//! The cases are counted, not the numbers in the heads of suites: programs disagree on what those mean, and the cases are there.

use std::fmt;
use std::io::Read;
use std::path::Path;

use roxmltree::{Document, Node, ParsingOptions};

/// A hundred thousand tests with a line each; some programs add the output of every test.
pub const BYTES_MAX: u64 = 64 * 1024 * 1024;
/// The tree of so many elements and texts takes some 200 MB at most.
const NODES_MAX: u32 = 2_000_000;
/// Failed tests that are told by name; the file has them all.
const NAMES_MAX: usize = 20;
/// What of a name, and of a message, is told.
const CHARACTERS_MAX: usize = 200;

/// What tests came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tests {
    /// All of them.
    pub tests: u64,
    /// Those that said no.
    pub failures: u64,
    /// Those that broke.
    pub errors: u64,
    /// Those that were not run.
    pub skipped: u64,
    /// The first that failed or broke: their names, and why.
    pub failed: Vec<String>,
}

/// Reads a file of them.
pub fn read(path: &Path) -> Result<Tests, String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| format!("it is no text: {error}"))?;
    if text.len() as u64 > BYTES_MAX {
        return Err(format!(
            "it is larger than {BYTES_MAX} bytes; let the test program leave the output of its tests out"
        ));
    }
    parse(&text)
}

/// Reads the text of a file. A document type is refused: entities could make much of little.
fn parse(text: &str) -> Result<Tests, String> {
    let options = ParsingOptions { allow_dtd: false, nodes_limit: NODES_MAX, ..ParsingOptions::default() };
    let document =
        Document::parse_with_options(text, options).map_err(|error| format!("it is no JUnit XML: {error}"))?;
    let root = document.root_element().tag_name().name();
    if !["testsuites", "testsuite"].contains(&root) {
        return Err(format!("it is no JUnit XML: it begins with `{root}`, not with `testsuites` or `testsuite`"));
    }
    let mut tests = Tests::default();
    for case in document.descendants().filter(|node| node.has_tag_name("testcase")) {
        tests.add(case);
    }
    Ok(tests)
}

impl Tests {
    /// Whether there were any, and none failed.
    pub fn is_success(&self) -> bool {
        self.failures + self.errors == 0 && self.tests > 0
    }

    fn add(&mut self, case: Node) {
        self.tests += 1;
        let child = |name: &str| case.children().find(|child| child.has_tag_name(name));
        let bad = match (child("failure"), child("error"), child("skipped")) {
            (Some(failure), ..) => {
                self.failures += 1;
                failure
            }
            (None, Some(error), _) => {
                self.errors += 1;
                error
            }
            (None, None, skipped) => {
                self.skipped += u64::from(skipped.is_some());
                return;
            }
        };
        if self.failed.len() < NAMES_MAX {
            self.failed.push(told(case, bad));
        }
    }
}

impl fmt::Display for Tests {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tests { tests, failures, errors, skipped, failed } = self;
        write!(formatter, "{tests} tests, {failures} failed, {errors} broken, {skipped} skipped")?;
        for name in failed {
            write!(formatter, "; {name}")?;
        }
        let more = failures + errors - failed.len() as u64;
        if more > 0 { write!(formatter, "; and {more} more") } else { Ok(()) }
    }
}

fn told(case: Node, bad: Node) -> String {
    let name = case.attribute("name").unwrap_or("a test without a name");
    let name = case.attribute("classname").map_or(name.to_owned(), |class| format!("{class}.{name}"));
    let why = bad.attribute("message").or(bad.text()).unwrap_or_default();
    let why = why.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let short = |text: &str| text.chars().take(CHARACTERS_MAX).collect::<String>();
    if why.is_empty() { short(&name) } else { format!("{}: {}", short(&name), short(why)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_counted_through_all_suites_and_the_failed_ones_named() {
        let text = r#"<?xml version="1.0"?><testsuites tests="99"><testsuite name="a"><testsuite name="b">
            <testcase classname="net" name="ping"/><testcase classname="net" name="dhcp"><failure message="no lease&#10;at all"/></testcase>
            </testsuite><testcase name="disk"><error>
              Traceback
              more</error></testcase><testcase name="gpu"><skipped/></testcase></testsuite></testsuites>"#;
        assert_eq!(
            parse(text).unwrap().to_string(),
            "4 tests, 1 failed, 1 broken, 1 skipped; net.dhcp: no lease; disk: Traceback"
        );
    }

    #[test]
    fn what_is_no_result_is_told_and_no_bomb_is_read() {
        assert_eq!(
            parse("<html/>").unwrap_err(),
            "it is no JUnit XML: it begins with `html`, not with `testsuites` or `testsuite`"
        );
        assert_eq!(parse("1..4\nok 1").unwrap_err(), "it is no JUnit XML: unknown token at 1:1");
        let bomb =
            r#"<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><testsuite><testcase name="&b;"/></testsuite>"#;
        assert_eq!(parse(bomb).unwrap_err(), "it is no JUnit XML: XML with DTD detected");
        assert!(!parse("<testsuite/>").unwrap().is_success(), "no tests are no success");
    }

    #[test]
    fn of_many_failed_tests_some_are_named() {
        let case = r#"<testcase name="t"><failure/></testcase>"#;
        let told = parse(&format!("<testsuite>{}</testsuite>", case.repeat(25))).unwrap().to_string();
        assert!(
            told.starts_with("25 tests, 25 failed, 0 broken, 0 skipped; t; t;") && told.ends_with("; and 5 more"),
            "{told}"
        );
    }
}
