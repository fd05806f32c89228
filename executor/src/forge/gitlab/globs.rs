//! The patterns of `artifacts:paths`, as regular expressions that the DUT's `grep -E` and ours read alike. ◆
//!
//! | in a pattern | means |
//! |---|---|
//! | `*`, `?` | any letters, a letter of a name |
//! | `**` as a whole name | any folders, or none |
//! | `[a-z]`, `[!a]` | one of these letters, none of them |
//! | `{a,b}` | this or that |
//! | `\*` | the letter itself |
//! | a folder | all in it |
//!
//! GitLab's own runner reads them so (doublestar.PathMatch, then a walk of what it found), relative to the job's folder.

/// Patterns, any of which may fit.
pub(super) struct Globs(Vec<pcre2::bytes::Regex>);

/// How an expression ends: with it fits what is in the folder.
const ALL_IN_IT: &str = "(/.*)?$";

impl Globs {
    /// Those of one entry of `artifacts:`; `project_dir` is where absolute ones begin.
    pub(super) fn new(patterns: &[String], project_dir: &str) -> Globs {
        Globs::compiled(patterns.iter().filter_map(|pattern| expression(pattern, project_dir)))
    }

    /// Those of `exclude:`, which mean no more than they say: a folder has to end with `/**/*`.
    pub(super) fn exact(patterns: &[String], project_dir: &str) -> Globs {
        let exactly = |text: String| match text.strip_suffix(ALL_IN_IT) {
            Some(start) => format!("{start}$"),
            None => text,
        };
        Globs::compiled(patterns.iter().filter_map(|pattern| expression(pattern, project_dir)).map(exactly))
    }

    fn compiled(expressions: impl Iterator<Item = String>) -> Globs {
        Globs(expressions.filter_map(|expression| pcre2::bytes::Regex::new(&expression).ok()).collect())
    }

    /// Whether a path of the job's files is meant.
    pub(super) fn mean(&self, path: &str) -> bool {
        self.0.iter().any(|one| one.is_match(path.as_bytes()).unwrap_or(false))
    }
}

/// A pattern as an extended regular expression (POSIX.1-2017, 9.4); `None`: it means nothing here.
pub(super) fn expression(pattern: &str, project_dir: &str) -> Option<String> {
    let pattern = match pattern.strip_prefix(project_dir).filter(|_| !project_dir.is_empty()) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => ".".to_owned() + rest,
        _ => pattern.to_owned(),
    };
    let pattern = pattern.trim_start_matches("./").trim_matches('/');
    match pattern {
        "" => return None,
        "." => return Some("^.*$".to_owned()),
        _ => {}
    }
    let mut out = "^".to_owned();
    let mut names = pattern.split('/').peekable();
    while let Some(name) = names.next() {
        let is_last = names.peek().is_none();
        match (name, is_last) {
            ("**", true) => out.push_str(".*"),
            ("**", false) => out.push_str("(.*/)?"),
            _ => out.push_str(&name_expression(name)),
        }
        if !is_last && name != "**" {
            out.push('/');
        }
    }
    Some(out + ALL_IN_IT)
}

fn name_expression(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    let has_pairs = name.matches('{').count() == name.matches('}').count();
    let (mut out, mut at, mut depth) = (String::new(), 0, 0);
    while let Some(&letter) = letters.get(at) {
        at += 1;
        match letter {
            '*' => out.push_str("[^/]*"),
            '?' => out.push_str("[^/]"),
            '\\' if at < letters.len() => {
                out.push_str(&literal(letters[at]));
                at += 1;
            }
            '[' => match class(&letters[at..]) {
                Some((text, length)) => {
                    out.push_str(&text);
                    at += length;
                }
                None => out.push_str("\\["),
            },
            '{' if has_pairs => {
                depth += 1;
                out.push('(');
            }
            ',' if depth > 0 => out.push('|'),
            '}' if depth > 0 => {
                depth -= 1;
                out.push(')');
            }
            _ => out.push_str(&literal(letter)),
        }
    }
    // One that closes before it opens would be no expression.
    if depth == 0 { out } else { name.chars().map(literal).collect() }
}

/// What stands between brackets, and how many letters that were, with the closing one.
fn class(letters: &[char]) -> Option<(String, usize)> {
    let end = letters.iter().skip(1).position(|letter| *letter == ']')? + 1;
    let inside: String = letters[..end].iter().collect();
    let is_plain = inside.chars().all(|letter| !matches!(letter, '[' | '\\' | ']'));
    let text = match inside.strip_prefix(['!', '^']) {
        Some(rest) => format!("[^{rest}]"),
        None => format!("[{inside}]"),
    };
    is_plain.then_some((text, end + 1))
}

fn literal(letter: char) -> String {
    match letter {
        '.' | '+' | '(' | ')' | '|' | '^' | '$' | '\\' | '[' | ']' | '{' | '}' | '*' | '?' => format!("\\{letter}"),
        letter => letter.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn means(pattern: &str, path: &str) -> bool {
        Globs::new(&[pattern.to_owned()], "/builds/group/project").mean(path)
    }

    #[test]
    fn paths_are_meant_by_names_patterns_and_folders() {
        for pattern in [
            "wharf",
            "wharf/",
            "./wharf/console.log",
            "wharf/*.log",
            "**/console.*",
            "**",
            "*",
            ".",
            "wharf/**/console.log",
            "wharf/[a-d]onsole.log",
            "wharf/{console,other}.log",
            "/builds/group/project/wharf",
            "/builds/group/project",
            "w*/c??sole.log",
        ] {
            assert!(means(pattern, "wharf/console.log"), "{pattern}");
        }
        for pattern in [
            "console.log",
            "wharf/console",
            "results/",
            "wharf/?.log",
            "*.log",
            "",
            "wharf/[!c]onsole.log",
            "wharf/console\\?log",
            "/builds/group/project2/wharf",
            "wharf.console.log",
        ] {
            assert!(!means(pattern, "wharf/console.log"), "{pattern}");
        }
        assert!(means("a/**/b", "a/b") && means("a/**/b", "a/x/y/b/c") && !means("a/**/b", "ab"));
        assert!(means("x}{", "x}{") && means("a[b", "a[b") && means("a+b", "a+b"));
    }

    #[test]
    fn what_is_excluded_is_not_searched_for_more() {
        let excluded = |pattern: &str, path: &str| Globs::exact(&[pattern.to_owned()], "/builds/g/p").mean(path);
        for pattern in ["out/**/*", "out/*/a.o", "**/*.o", "/builds/g/p/out/deep/a.o"] {
            assert!(excluded(pattern, "out/deep/a.o"), "{pattern}");
        }
        for pattern in ["out", "out/", "out/*", "*.o", "out/deep"] {
            assert!(!excluded(pattern, "out/deep/a.o"), "{pattern}");
        }
    }

    #[test]
    fn the_programs_of_a_dut_read_the_same_expression() {
        let text = expression("results/**/[!_]*.{xml,json}", "").unwrap();
        assert_eq!(text, r"^results/(.*/)?[^_][^/]*\.(xml|json)(/.*)?$");
        let script = "printf '%s\\n' results/a.xml results/x/y/b.json results/_c.xml other/a.xml | grep -E \"$1\"";
        let output = std::process::Command::new("sh").args(["-c", script, "sh", &text]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "results/a.xml\nresults/x/y/b.json\n");
    }
}
