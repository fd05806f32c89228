//! Patterns of jobs, over lines of DUTs: both are anybody's.
//!
//! ```text
//!  the pattern, to the first NUL │ the line
//! ```

use job_schema::Pattern;
use job_schema::job::{Groups, PathMatch};

use crate::corpus;

pub(super) fn run(bytes: &[u8]) {
    let (source, line) = bytes.split_at(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    let Ok(source) = str::from_utf8(source) else { return };
    match Pattern::parse(source) {
        Ok(pattern) => search(&pattern, line.get(1..).unwrap_or_default()),
        Err(why) => assert!(!why.is_empty() && why.len() < 8192, "{why}"),
    }
    if let Ok(path) = PathMatch::parse(source) {
        assert!(path.matches(source).is_some(), "a path is its own name first");
    }
}

fn search(pattern: &Pattern, line: &[u8]) {
    // Giving up is an answer, too.
    let (Ok(found), Ok(whole)) = (pattern.is_match(line), pattern.is_full_match(line)) else { return };
    assert!(found || !whole, "all of a line is some of it: {} in {line:?}", pattern.as_str());
    let groups = pattern.full_match_groups(line).expect("it was found before");
    assert_eq!(groups.is_some(), whole, "{}", pattern.as_str());
    for group in groups.into_iter().flatten().flatten() {
        assert!(group.start <= group.end && group.end <= line.len());
    }
    let Ok(text) = str::from_utf8(line) else { return };
    if let Ok(Some(groups)) = Groups::of(pattern, text) {
        assert!(groups.expand(r"\1-\g<2>-\g<0>-\99").len() <= 3 * text.len() + 10);
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let patterns = [
        ("^\\[[\\d \\.]{12}\\] reboot: Power Down$", "[   12.345678] reboot: Power Down\n"),
        ("ring .* timeout(?!, but soft recovered)", "ring gfx timeout, but soft recovered\n"),
        ("(?P<word>ab)-(?P=word)|^[[:al]]+\\Z", "ab-ab"),
        ("/dtbs?/(.*)|/(x)", "/dtb/a.dtb"),
        ("(?x) a b # a comment\n c{,2}|[]\\b\\12]", "abc"),
        ("^(a)?(?(1)b|c)++$", "ab"),
        ("(?i)\\101\\0\\x41(?#note)", "a"),
    ];
    let mut seeds: Vec<_> = patterns.map(|(pattern, line)| [pattern, line].join("\0").into_bytes()).to_vec();
    seeds.extend(corpus(include_str!("../../corpus/pattern.hex")));
    seeds
}
