//! Something wrong in what a person wrote, told so that the person can mend it without asking us.
//!
//! ```text
//!  Problem   one mistake: where (line, column, bytes), which field, what, and the next step
//!  Problems  all mistakes of one file, with the file's text, because a drawing needs both
//!            Display     → the drawing of a compiler, plain
//!            Serialize   → [{file, line, column, field, what, hint}], for programs
//! ```

use std::borrow::Cow;
use std::fmt;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::{Deserialize, Serialize, Serializer};

/// How many problems are drawn; a person mends a handful per round, and a file of 50,000 wrong keys
/// must not become an answer of megabytes.
pub const DRAWN_AT_MOST: usize = 50;

/// The longest piece of a user's value that is repeated in a message, in characters.
const QUOTED_CHARACTERS: usize = 60;

/// The longest source line that is drawn, in bytes; a longer one is shown by its position only.
const DRAWN_LINE_BYTES: usize = 4096;

/// A place in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// First byte of the span.
    pub start: usize,
    /// First byte after the span.
    pub end: usize,
}

impl Location {
    /// The place of `start..end` in `text`; counts lines and characters up to `start`.
    pub fn of_span(text: &str, start: usize, end: usize) -> Location {
        let before = text.as_bytes().get(..start).unwrap_or(text.as_bytes());
        let before = String::from_utf8_lossy(before);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
        Location { line, column, start, end }
    }
}

/// One mistake in what a person wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Where it is, when it is anywhere.
    pub location: Option<Location>,
    /// The field it is about, such as `deployment.start.kernel.url`; empty for the file as a whole.
    pub field: String,
    /// What is wrong, the offending value in backticks.
    pub what: String,
    /// The next step.
    pub hint: Option<String>,
}

impl Problem {
    /// A problem of the file as a whole.
    pub fn new(what: impl Into<String>) -> Problem {
        Problem { location: None, field: String::new(), what: what.into(), hint: None }
    }

    /// The same problem, at a place.
    #[must_use]
    pub fn at(mut self, location: Location) -> Problem {
        self.location = Some(location);
        self
    }

    /// The same problem, about a field.
    #[must_use]
    pub fn about(mut self, field: impl Into<String>) -> Problem {
        self.field = field.into();
        self
    }

    /// The same problem, with the next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into());
        self
    }
}

/// All mistakes of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    source_name: String,
    text: String,
    list: Vec<Problem>,
}

impl Problems {
    /// The problems of the file `source_name`, whose text is needed for the drawing. Sorted by place.
    pub fn new(source_name: impl Into<String>, text: impl Into<String>, mut list: Vec<Problem>) -> Problems {
        list.sort_by_key(|problem| problem.location.map_or(0, |location| location.start));
        Problems { source_name: source_name.into(), text: text.into(), list }
    }

    /// A single problem of the file `source_name`.
    pub fn one(source_name: impl Into<String>, text: impl Into<String>, problem: Problem) -> Problems {
        Problems::new(source_name, text, vec![problem])
    }

    /// The problems, by their place in the file.
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    /// The name of the file they are in.
    pub fn source_name(&self) -> &str {
        &self.source_name
    }

    /// The text of the file they are in.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The drawing for a terminal with colours.
    pub fn render_coloured(&self) -> String {
        self.draw(&Renderer::styled())
    }

    fn draw(&self, renderer: &Renderer) -> String {
        let mut drawing = String::new();
        for problem in self.list.iter().take(DRAWN_AT_MOST) {
            if !drawing.is_empty() {
                drawing.push_str("\n\n");
            }
            drawing.push_str(&renderer.render(&[self.group(problem)]));
        }
        let more = self.list.len().saturating_sub(DRAWN_AT_MOST);
        if more > 0 {
            drawing.push_str(&format!("\n\n{more} more problems are not shown; mend these first"));
        }
        drawing
    }

    fn group<'a>(&'a self, problem: &'a Problem) -> Group<'a> {
        let title = Level::ERROR.primary_title(problem.what.as_str());
        let mut group = match problem.location.and_then(|place| self.excerpt(place).map(|excerpt| (place, excerpt))) {
            Some((place, (line, span))) => {
                let annotation = AnnotationKind::Primary.span(span).label(problem.field.as_str());
                let snippet = Snippet::source(harmless(line)).path(self.source_name.as_str()).line_start(place.line);
                title.element(snippet.annotation(annotation))
            }
            None => title.element(annotate_snippets::Origin::path(self.position_only(problem))),
        };
        if let Some(hint) = &problem.hint {
            group = group.element(Level::HELP.message(hint.as_str()));
        }
        group
    }

    /// The first line of a span and the part of it to underline.
    fn excerpt(&self, place: Location) -> Option<(&str, std::ops::Range<usize>)> {
        let before = self.text.get(..place.start)?;
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let rest = &self.text[line_start..];
        let line = rest.split('\n').next().unwrap_or(rest).trim_end_matches('\r');
        if line.len() > DRAWN_LINE_BYTES {
            return None;
        }
        let start = (place.start - line_start).min(line.len());
        let mut end = place.end.saturating_sub(line_start).clamp(start, line.len());
        while !line.is_char_boundary(end) {
            end += 1;
        }
        let trimmed = line[start..end].trim_end().len();
        Some((line, start..start + trimmed))
    }

    fn position_only(&self, problem: &Problem) -> String {
        match problem.location {
            Some(place) => format!("{}:{}:{}", self.source_name, place.line, place.column),
            None => self.source_name.clone(),
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.draw(&Renderer::plain()))
    }
}

impl std::error::Error for Problems {}

impl Serialize for Problems {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.list.iter().map(|problem| WireProblem {
            file: &self.source_name,
            line: problem.location.map(|place| place.line),
            column: problem.location.map(|place| place.column),
            field: &problem.field,
            what: &problem.what,
            hint: problem.hint.as_deref(),
        }))
    }
}

/// A problem as programs read it.
#[derive(Serialize)]
struct WireProblem<'a> {
    file: &'a str,
    line: Option<usize>,
    column: Option<usize>,
    field: &'a str,
    what: &'a str,
    hint: Option<&'a str>,
}

/// A line of the file with a dot for each control character of U+0080 to U+009F, which YAML allows and some terminals obey; the dot has
/// two bytes as they do, so that every place stays. Those below U+0020 the drawing itself replaces.
fn harmless(line: &str) -> Cow<'_, str> {
    let is_obeyed = |character: char| matches!(character, '\u{80}'..='\u{9f}');
    if line.contains(is_obeyed) { line.replace(is_obeyed, "·").into() } else { line.into() }
}

/// A user's value in backticks, as [`visible`] shows it.
pub fn quoted(value: &str) -> String {
    format!("`{}`", visible(value))
}

/// A user's word: shortened, and with its control characters made visible, so that it moves no terminal's cursor.
pub fn visible(value: &str) -> String {
    let mut shown: String = String::new();
    for character in value.chars().take(QUOTED_CHARACTERS) {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    let dots = if value.chars().count() > QUOTED_CHARACTERS { "…" } else { "" };
    shown + dots
}

/// The known word nearest to what was written, when it is near enough to be a slip of the fingers.
pub fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // One slip in three letters is the most that still reads as the same word.
    let allowed = (written.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|word| (edits(&written.to_lowercase(), &word.to_lowercase()), word))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, word)| word)
}

/// A list of words as a sentence wants them: `a`, `b` or `c`.
pub fn alternatives<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let words: Vec<String> = words.into_iter().map(|word| format!("`{word}`")).collect();
    match words.split_last() {
        None => "nothing".to_owned(),
        Some((only, [])) => only.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

/// The least number of insertions, removals, replacements and swaps of neighbours between two words.
fn edits(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    // A key longer than this is not a slip of a known word, and the table is quadratic.
    if left.len() > 64 || right.len() > 64 {
        return usize::MAX;
    }
    let mut rows = vec![vec![0usize; right.len() + 1]; left.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=right.len()).collect();
    for i in 1..=left.len() {
        for j in 1..=right.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[left.len()][right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_drawn_under_its_line() {
        let text = "version: 1\ntarget:\n  idd: x\n";
        let start = text.find("idd").expect("it is there");
        let problem = Problem::new("unknown key `idd`")
            .at(Location::of_span(text, start, start + 3))
            .about("target.idd")
            .hint("did you mean `id`?");
        let problems = Problems::one("job.yml", text, problem);
        let expected = "\
error: unknown key `idd`
 --> job.yml:3:3
  |
3 |   idd: x
  |   ^^^ target.idd
  |
  = help: did you mean `id`?";
        assert_eq!(problems.to_string(), expected);
        assert!(problems.render_coloured().contains("\u{1b}["));
    }

    #[test]
    fn programs_get_file_line_column_field_what_and_hint() {
        let text = "é: [1]\n";
        let problem = Problem::new("bad").at(Location::of_span(text, 4, 7)).about("é");
        let json = serde_json::to_string(&Problems::one("a.yml", text, problem)).expect("problems are plain data");
        assert_eq!(json, r#"[{"file":"a.yml","line":1,"column":4,"field":"é","what":"bad","hint":null}]"#);
    }

    #[test]
    fn a_slip_of_the_fingers_finds_the_word_meant() {
        let known = ["kernel", "initramfs", "dtb", "storage"];
        assert_eq!(nearest("kernle", known), Some("kernel"));
        assert_eq!(nearest("initramf", known), Some("initramfs"));
        assert_eq!(nearest("Storage", known), Some("storage"));
        assert_eq!(nearest("frobnicate", known), None);
    }

    #[test]
    fn a_value_with_control_characters_cannot_move_the_cursor() {
        assert_eq!(quoted("a\u{1b}[2Jb\n"), "`a\\u{1b}[2Jb\\n`");
        assert_eq!(quoted(&"x".repeat(100)), format!("`{}…`", "x".repeat(60)));
    }

    #[test]
    fn a_thousand_problems_are_not_all_drawn() {
        let list = (0..1000).map(|number| Problem::new(format!("wrong {number}"))).collect();
        let drawing = Problems::new("a.yml", "", list).to_string();
        assert!(drawing.ends_with("950 more problems are not shown; mend these first"), "{drawing}");
    }

    #[test]
    fn a_line_that_would_steer_a_terminal_is_drawn_without_that() {
        let text = "a\u{9b}2Jb: 1";
        let problem = Problem::new("bad").at(Location::of_span(text, 0, 6)).about("a");
        let drawing = Problems::one("job.yml", text, problem).to_string();
        assert_eq!(drawing.lines().nth(3), Some("1 | a·2Jb: 1"), "{drawing}");
    }
}
