//! The tree of this workspace as data: what a rule in `it/tidy.rs` or `it/docs.rs` is checked against.
//!
//! ```text
//!  files("rs") ─► SourceFile { path, text } ─► code()     text and comments blanked, so that a word found is a word used
//!                                           └► shipped()  the same, without what only tests see
//! ```
//! Blanked letters become spaces: every byte that is left keeps its line and column.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Folders that hold no sources of ours.
const SKIPPED: &[&str] = &["target", ".git"];

/// One text file of the workspace.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Its path from the workspace's root, with `/`.
    pub path: String,
    /// What it says.
    pub text: String,
}

/// The folder of the workspace's `Cargo.toml`.
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().expect("this package is a folder of the workspace").to_owned()
}

/// All files with this extension, sorted by path.
pub fn files(extension: &str) -> Vec<SourceFile> {
    let root = root();
    let mut found = Vec::new();
    collect(&root, &root, extension, &mut found);
    found.sort_by(|left, right| left.path.cmp(&right.path));
    found
}

/// The command that runs this workspace's cargo in its root, apart from what the outer cargo told this process about a package.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        // These change how cargo's own fingerprints come out, and with them what it builds again.
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST") {
            command.env_remove(&name);
        }
    }
    command.args(arguments).current_dir(root());
    command
}

fn collect(root: &Path, folder: &Path, extension: &str, found: &mut Vec<SourceFile>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("cannot read {}: {error}", folder.display()));
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() && !SKIPPED.iter().any(|skipped| name == *skipped) {
            collect(root, &path, extension, found);
        } else if path.extension().is_some_and(|own| own == extension)
            && let Ok(text) = fs::read_to_string(&path)
        {
            let relative = path.strip_prefix(root).expect("the walk began at the root");
            found.push(SourceFile { path: relative.to_string_lossy().into_owned(), text });
        }
    }
}

impl SourceFile {
    /// The lines of Rust code: comments and the insides of text literals are blank.
    pub fn code(&self) -> String {
        blank_comments_and_text(&self.text)
    }

    /// The code that is built into the binary: nothing at all for a file of tests.
    pub fn shipped(&self) -> String {
        if self.is_for_tests() { String::new() } else { without_test_items(&self.code()) }
    }

    /// Whether only tests see this file.
    pub fn is_for_tests(&self) -> bool {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        self.path.starts_with("tests/") || name == "tests.rs" || name.ends_with("_tests.rs") || name == "seeded.rs"
    }

    /// `path:line` of each place where `word` stands in `text` (which has this file's lines).
    pub fn places(&self, text: &str, word: &str) -> Vec<String> {
        let lines = text.lines().enumerate().filter(|(_, line)| has_word(line, word));
        lines.map(|(index, _)| format!("{}:{}: {word}", self.path, index + 1)).collect()
    }
}

/// `word` in `line`, not as a part of a longer name.
fn has_word(line: &str, word: &str) -> bool {
    let is_name = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let bytes = line.as_bytes();
    line.match_indices(word).any(|(start, _)| {
        let end = start + word.len();
        let glued_before = is_name(bytes.get(start)) && start > 0 && is_name(bytes.get(start - 1));
        let glued_after = is_name(bytes.get(end - 1)) && is_name(bytes.get(end));
        !glued_before && !glued_after
    })
}

/// What a stretch of Rust source is.
enum Stretch {
    Code,
    Blank,
}

/// Reads Rust's tokens just well enough to know what is comment and what is text (the Rust Reference, "Comments" and "Tokens").
fn blank_comments_and_text(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut blanked = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let (stretch, length) = next_stretch(&source[at..], at.checked_sub(1).map(|before| bytes[before]));
        let piece = &bytes[at..at + length];
        match stretch {
            Stretch::Code => blanked.extend_from_slice(piece),
            Stretch::Blank => blanked.extend(piece.iter().map(|byte| if *byte == b'\n' { b'\n' } else { b' ' })),
        }
        at += length;
    }
    String::from_utf8(blanked).expect("only whole characters are replaced")
}

fn next_stretch(rest: &str, before: Option<u8>) -> (Stretch, usize) {
    let first = rest.chars().next().map_or(1, char::len_utf8);
    let after_name = before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if rest.starts_with("//") {
        (Stretch::Blank, rest.find('\n').unwrap_or(rest.len()))
    } else if rest.starts_with("/*") {
        (Stretch::Blank, block_comment(rest))
    } else if let Some(length) = raw_text(rest).filter(|_| !after_name) {
        (Stretch::Blank, length)
    } else if rest.starts_with('"') {
        (Stretch::Blank, quoted(rest, b'"'))
    } else if is_character(rest) {
        (Stretch::Blank, quoted(rest, b'\''))
    } else {
        (Stretch::Code, first)
    }
}

/// Block comments nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        let tail = &rest.as_bytes()[at..];
        if tail.starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if tail.starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
        } else {
            at += 1;
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

/// The length of `r"…"`, `r#"…"#`, `br"…"` and so on at the start of `rest`.
fn raw_text(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix("br").or_else(|| rest.strip_prefix("cr")).or_else(|| rest.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let closing = format!("\"{}", "#".repeat(hashes));
    let begin = rest.len() - body.len();
    Some(body.find(&closing).map_or(rest.len(), |end| begin + end + closing.len()))
}

/// A quote that begins a character, not a lifetime: `'a'` and `'\n'`, not `'a,`.
fn is_character(rest: &str) -> bool {
    let mut characters = rest.chars();
    characters.next() == Some('\'')
        && match characters.next() {
            Some('\\') => true,
            Some(_) => characters.next() == Some('\''),
            None => false,
        }
}

fn quoted(rest: &str, quote: u8) -> usize {
    let bytes = rest.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Blanks each item that stands under `#[cfg(test)]`.
fn without_test_items(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut kept = code.as_bytes().to_vec();
    let mut from = 0;
    while let Some(start) = code[from..].find(MARK).map(|offset| from + offset) {
        let end = start + item_length(&code[start..]);
        for byte in &mut kept[start..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        from = end;
    }
    String::from_utf8(kept).expect("whole characters are replaced byte by byte")
}

/// From an attribute to the end of its item: the `;` before any brace, or the brace that closes the first one.
fn item_length(code: &str) -> usize {
    let mut depth = 0;
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return at + 1,
            b'}' => depth -= 1,
            b';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> SourceFile {
        SourceFile { path: "room/src/file.rs".into(), text: text.into() }
    }

    #[test]
    fn comments_and_text_are_blank_and_code_keeps_its_place() {
        let source = "let a = \"todo\"; // todo\nlet b = r#\"x \" y\"#;/* a /* b */ c */let c = 'x';\nlet d: &'static str = \"\\\"\";";
        let expected =
            "let a =       ;        \nlet b =           ;                 let c =    ;\nlet d: &'static str =     ;";
        assert_eq!(file(source).code(), expected);
    }

    #[test]
    fn a_name_that_ends_in_r_does_not_begin_raw_text() {
        assert_eq!(file("for\"a\" bar#\"b\"").code(), "for    bar#   ");
    }

    #[test]
    fn letters_beyond_ascii_in_comments_leave_their_line_in_place() {
        let code = file("// ─► é\nlet x = \"é\"; y();").code();
        assert_eq!(code.lines().nth(1).map(|line| line.ends_with("; y();")), Some(true));
    }

    #[test]
    fn items_under_cfg_test_are_not_shipped() {
        let source = "fn a() {}\n#[cfg(test)]\nmod tests;\nfn b() {}\n#[cfg(test)]\nmod more {\n fn c() { if x {} }\n}\nfn d() {}";
        let shipped = file(source).shipped();
        let functions: Vec<_> = shipped.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        assert_eq!(functions, ["fn a() {}", "fn b() {}", "fn d() {}"]);
    }

    #[test]
    fn a_word_is_found_as_a_whole_name_only() {
        let source = file("use tokio::net;\nlet tokio_like = 1;\nlet x = now();");
        assert_eq!(source.places(&source.code(), "tokio"), ["room/src/file.rs:1: tokio"]);
        assert_eq!(source.places(&source.code(), "now()"), ["room/src/file.rs:3: now()"]);
    }
}
