//! The first pass over any YAML a stranger sends: budgets, and a tree in which each value knows its place.
//!
//! ```text
//!  bytes ─► UTF-8, no NUL, ≤ 256 KiB ─► events of the saphyr parser ─► Node tree with spans
//!                                        │ depth ≤ 64, nodes ≤ 50,000, alias copies ≤ 1 MiB
//!                                        │ `<<` merged, duplicate keys and foreign tags refused
//! ```
//! The parser streams, and the tree is built with a stack of our own: the 65th bracket ends the pass, however many
//! follow, and nothing here recurses deeper than the 64 levels that were admitted.

use std::collections::HashMap;
use std::rc::Rc;

use serde_saphyr::granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Span, Tag};

use crate::problem::{Location, Problem, Problems, quoted};

/// The largest document, in bytes: the largest job ever seen is 8 kB, and inline data deserves room.
pub const DOCUMENT_BYTES_AT_MOST: usize = 256 * 1024;
/// The deepest nest: a job uses 12 levels, and every walker below recurses this deep at most.
pub const DEPTH_AT_MOST: usize = 64;
/// The most values in a document, copies through aliases included; bounds memory to some 10 MB.
pub const NODES_AT_MOST: usize = 50_000;
/// The most text copied through aliases, in bytes; 50,000 aliases of one long scalar must not fill the memory.
const ALIAS_BYTES_AT_MOST: usize = 1024 * 1024;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) place: Location,
}

/// What a value is, before anybody asked for a type.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Scalar(Scalar),
    List(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// A scalar as written; what it means depends on what is wanted (see `scalar.rs`).
#[derive(Debug, Clone)]
pub(crate) struct Scalar {
    pub(crate) text: String,
    pub(crate) style: Style,
}

/// Whether YAML may read a scalar as something else than text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Unquoted: `1`, `yes` and `null` are not text.
    Plain,
    /// Quoted, a block, or tagged `!!str`: always text.
    Quoted,
}

/// One key of a mapping with its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_place: Location,
    pub(crate) value: Node,
}

impl Node {
    /// The value under `key`, when this is a mapping that has it.
    pub(crate) fn child(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The entry of `key`, when this is a mapping that has it.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The entries, when this is a mapping; otherwise none.
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.kind {
            Kind::Mapping(entries) => entries,
            Kind::Scalar(_) | Kind::List(_) => &[],
        }
    }

    /// The items, when this is a list; otherwise none.
    pub(crate) fn items(&self) -> &[Node] {
        match &self.kind {
            Kind::List(items) => items,
            Kind::Scalar(_) | Kind::Mapping(_) => &[],
        }
    }

    fn weight(&self) -> Weight {
        match &self.kind {
            Kind::Scalar(scalar) => Weight { nodes: 1, bytes: scalar.text.len(), depth: 1 },
            Kind::List(items) => items.iter().map(Node::weight).fold(Weight::ONE, Weight::add),
            Kind::Mapping(entries) => entries
                .iter()
                .map(|entry| {
                    let weight = entry.value.weight();
                    Weight { nodes: weight.nodes + 1, bytes: weight.bytes + entry.key.len(), depth: weight.depth }
                })
                .fold(Weight::ONE, Weight::add),
        }
    }
}

/// What copying a value costs.
#[derive(Clone, Copy)]
struct Weight {
    nodes: usize,
    bytes: usize,
    depth: usize,
}

impl Weight {
    const ONE: Weight = Weight { nodes: 1, bytes: 0, depth: 1 };

    fn add(self, child: Weight) -> Weight {
        Weight {
            nodes: self.nodes + child.nodes,
            bytes: self.bytes + child.bytes,
            depth: self.depth.max(child.depth + 1),
        }
    }
}

/// Bytes from outside as text; says where they stop being UTF-8.
pub fn decode(source_name: &str, bytes: &[u8]) -> Result<String, Problems> {
    if let Err(problem) = check_length(bytes.len()) {
        return Err(Problems::one(source_name, "", problem));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => {
            let good = String::from_utf8_lossy(&bytes[..error.valid_up_to()]).into_owned();
            let byte = bytes.get(error.valid_up_to()).copied().unwrap_or(0);
            let place = Location::of_span(&good, good.len(), good.len());
            let problem = Problem::new(format!("the text is not UTF-8: byte `0x{byte:02x}` cannot stand here"))
                .at(place)
                .hint("save the file as UTF-8; binary data goes into an attached artifact");
            Err(Problems::one(source_name, good, problem))
        }
    }
}

/// The tree of a document, or everything that is wrong with its form.
pub(crate) fn read(text: &str) -> Result<Node, Vec<Problem>> {
    check_length(text.len()).map_err(|problem| vec![problem])?;
    check_characters(text).map_err(|problem| vec![problem])?;
    let mut builder = Builder::default();
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| builder.with(not_yaml(text, &error)))?;
        if let Event::DocumentStart(..) = event {
            documents += 1;
            if documents > 1 {
                let problem = Problem::new("a second document begins here").at(location(&span));
                return Err(builder.with(problem.hint("keep one document per file")));
            }
        }
        if let Err(problem) = builder.event(event, &span) {
            return Err(builder.with(*problem));
        }
    }
    builder.finish()
}

fn check_length(bytes: usize) -> Result<(), Problem> {
    if bytes <= DOCUMENT_BYTES_AT_MOST {
        return Ok(());
    }
    Err(Problem::new(format!("the document has {bytes} bytes; at most {DOCUMENT_BYTES_AT_MOST} are read"))
        .hint("move inline `data` into an attached artifact or a URL"))
}

fn check_characters(text: &str) -> Result<(), Problem> {
    match text.find('\0') {
        None => Ok(()),
        Some(at) => Err(Problem::new("a NUL byte cannot stand in YAML")
            .at(Location::of_span(text, at, at + 1))
            .hint("remove it, or write `\\0` in a double-quoted string")),
    }
}

fn not_yaml(text: &str, error: &ScanError) -> Problem {
    let marker = error.marker();
    let start = marker.byte_offset().unwrap_or(text.len()).min(text.len());
    let place = Location { line: marker.line().max(1), column: marker.col() + 1, start, end: start };
    match error.kind() {
        // The parser looks ahead to tell keys from values, and meets its own limit of 255 before we see our 65th level.
        ErrorKind::RecursionLimitExceeded => too_deep().at(place),
        kind => {
            Problem::new(format!("this is not YAML: {kind}")).at(place).hint("check indentation, quotes and brackets")
        }
    }
}

fn too_deep() -> Problem {
    Problem::new(format!("the document is nested more than {DEPTH_AT_MOST} levels deep"))
        .hint("close the brackets; a job needs a dozen levels")
}

fn location(span: &Span) -> Location {
    let start = span.start.byte_offset().unwrap_or(0);
    let end = span.end.byte_offset().unwrap_or(start).max(start);
    Location { line: span.start.line().max(1), column: span.start.col() + 1, start, end }
}

/// A collection whose end was not seen yet.
struct Open {
    anchor: usize,
    place: Location,
    contents: Contents,
}

enum Contents {
    List(Vec<Node>),
    Mapping { entries: Vec<(Node, Node)>, key: Option<Node> },
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
    anchors: HashMap<usize, Rc<Node>>,
    nodes: usize,
    alias_bytes: usize,
    problems: Vec<Problem>,
}

impl Builder {
    /// What was wrong so far, and this, which ends the pass.
    fn with(&mut self, problem: Problem) -> Vec<Problem> {
        let mut problems = std::mem::take(&mut self.problems);
        problems.push(problem);
        problems
    }

    fn finish(mut self) -> Result<Node, Vec<Problem>> {
        match self.root.take() {
            _ if !self.problems.is_empty() => Err(self.problems),
            Some(root) if !is_empty(&root) => Ok(root),
            Some(_) | None => Err(vec![Problem::new("the document is empty").hint("begin with `version: 1`")]),
        }
    }

    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), Box<Problem>> {
        let place = location(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.count(1, place)?;
                let style = if style == ScalarStyle::Plain { Style::Plain } else { Style::Quoted };
                let style = self.style_of_tag(tag.as_deref(), style, place);
                let node = Node { kind: Kind::Scalar(Scalar { text: text.into_owned(), style }), place };
                self.remember(anchor, &node);
                self.put(node);
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.style_of_tag(tag.as_deref(), Style::Plain, place);
                self.descend(anchor, place, Contents::List(Vec::new()))?;
            }
            Event::MappingStart(_, anchor, tag) => {
                self.style_of_tag(tag.as_deref(), Style::Plain, place);
                self.descend(anchor, place, Contents::Mapping { entries: Vec::new(), key: None })?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.ascend(place),
            Event::Alias(anchor) => self.alias(anchor, place)?,
            _ => {}
        }
        Ok(())
    }

    fn count(&mut self, nodes: usize, place: Location) -> Result<(), Box<Problem>> {
        self.nodes += nodes;
        if self.nodes <= NODES_AT_MOST {
            return Ok(());
        }
        Err(Box::new(
            Problem::new(format!("the document has more than {NODES_AT_MOST} values, aliases counted as copies"))
                .at(place)
                .hint("remove aliases, or move data into an attached artifact"),
        ))
    }

    fn check_depth(&self, levels: usize, place: Location) -> Result<(), Box<Problem>> {
        if self.open.len() + levels <= DEPTH_AT_MOST {
            return Ok(());
        }
        Err(Box::new(too_deep().at(place)))
    }

    fn descend(&mut self, anchor: usize, place: Location, contents: Contents) -> Result<(), Box<Problem>> {
        self.count(1, place)?;
        self.check_depth(1, place)?;
        self.open.push(Open { anchor, place, contents });
        Ok(())
    }

    fn ascend(&mut self, end: Location) {
        let Some(open) = self.open.pop() else { return };
        let kind = match open.contents {
            Contents::List(items) => Kind::List(items),
            Contents::Mapping { entries, .. } => Kind::Mapping(self.entries(entries)),
        };
        let place = Location { end: end.end.max(open.place.start), ..open.place };
        let node = Node { kind, place };
        self.remember(open.anchor, &node);
        self.put(node);
    }

    fn alias(&mut self, anchor: usize, place: Location) -> Result<(), Box<Problem>> {
        let Some(target) = self.anchors.get(&anchor).cloned() else {
            return Err(Box::new(Problem::new("this alias names the value it stands in").at(place)));
        };
        let weight = target.weight();
        self.count(weight.nodes, place)?;
        self.check_depth(weight.depth, place)?;
        self.alias_bytes += weight.bytes;
        if self.alias_bytes > ALIAS_BYTES_AT_MOST {
            let what = format!("aliases copy more than {ALIAS_BYTES_AT_MOST} bytes of text");
            return Err(Box::new(Problem::new(what).at(place).hint("write the text once, as an artifact with a URL")));
        }
        self.put(Node::clone(&target));
        Ok(())
    }

    fn remember(&mut self, anchor: usize, node: &Node) {
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::new(node.clone()));
        }
    }

    /// Puts a finished value where the innermost open collection wants it.
    fn put(&mut self, node: Node) {
        match self.open.last_mut().map(|open| &mut open.contents) {
            None => self.root = Some(node),
            Some(Contents::List(items)) => items.push(node),
            Some(Contents::Mapping { entries, key }) => match key.take() {
                None => *key = Some(node),
                Some(key) => entries.push((key, node)),
            },
        }
    }

    fn style_of_tag(&mut self, tag: Option<&Tag>, style: Style, place: Location) -> Style {
        let Some(tag) = tag else { return style };
        match tag.core_suffix() {
            Some("str") => Style::Quoted,
            Some("int" | "float" | "bool" | "null" | "map" | "seq" | "timestamp") => Style::Plain,
            _ => {
                let what = format!("the tag {} means nothing here", quoted(&tag.original()));
                self.problems.push(Problem::new(what).at(place).hint("remove the tag"));
                style
            }
        }
    }

    /// Keys become text, `<<` is merged, and a key said twice is a problem.
    fn entries(&mut self, pairs: Vec<(Node, Node)>) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::with_capacity(pairs.len());
        let mut seen: HashMap<String, usize> = HashMap::new();
        let mut merged: Vec<Node> = Vec::new();
        for (key, value) in pairs {
            let Kind::Scalar(Scalar { text, style }) = key.kind else {
                self.problems
                    .push(Problem::new("a list or mapping cannot be a key").at(key.place).hint("quote the key"));
                continue;
            };
            if text == "<<" && style == Style::Plain {
                merged.push(value);
            } else if let Some(line) = seen.insert(text.clone(), key.place.line) {
                let what = format!("the key {} stands twice in one mapping", quoted(&text));
                self.problems
                    .push(Problem::new(what).at(key.place).hint(format!("the first is in line {line}; keep one")));
            } else {
                entries.push(Entry { key: text, key_place: key.place, value });
            }
        }
        for source in merged {
            self.merge(source, &mut seen, &mut entries);
        }
        entries
    }

    fn merge(&mut self, source: Node, seen: &mut HashMap<String, usize>, entries: &mut Vec<Entry>) {
        let place = source.place;
        let mappings = match source.kind {
            Kind::List(items) => items,
            kind => vec![Node { kind, place }],
        };
        for mapping in mappings {
            let Kind::Mapping(more) = mapping.kind else {
                self.problems.push(
                    Problem::new("`<<` merges mappings only").at(mapping.place).hint("name a mapping by its alias"),
                );
                continue;
            };
            for entry in more {
                if !seen.contains_key(&entry.key) {
                    seen.insert(entry.key.clone(), entry.key_place.line);
                    entries.push(entry);
                }
            }
        }
    }
}

fn is_empty(root: &Node) -> bool {
    matches!(&root.kind, Kind::Scalar(scalar) if scalar.text.is_empty() && scalar.style == Style::Plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn first_problem(text: &str) -> String {
        let started = Instant::now();
        let problems = read(text).expect_err("the guard lets this through");
        assert!(started.elapsed() < Duration::from_secs(2), "took {:?}", started.elapsed());
        problems[0].what.clone()
    }

    #[test]
    fn a_nest_of_brackets_is_refused_at_its_65th_level() {
        for bracket in ["[", "{a: ", "- "] {
            let text = bracket.repeat(200_000 / bracket.len());
            assert_eq!(first_problem(&text), "the document is nested more than 64 levels deep", "{bracket}");
        }
    }

    #[test]
    fn no_text_of_256_kib_takes_long() {
        let pieces = [
            "[",
            "{",
            "]",
            "- ",
            "? ",
            ": ",
            "'",
            "\"",
            "&a ",
            "*a ",
            "!!str ",
            "!<x> ",
            "#",
            "# x\n",
            "a: ",
            "|\n",
            ">-\n  x\n",
            "%x y\n",
            "---\n",
            "...\n",
            "\n",
            " ",
            "\t",
            "a:\n ",
            "[],",
            "{},",
            "a, ",
            "\\",
            "\"\\x\" ",
            "é",
            "a\n",
            "- a\n",
            "a: b\n",
            "&a a\n",
            "? a\n",
            "<<: {}\n",
            "[a: ",
            "\u{feff}",
        ];
        for piece in pieces {
            for start in ["", "[", "{", "a: ", "- ", "\"", "'", "a: |\n ", "[&a b, "] {
                let repeats = (DOCUMENT_BYTES_AT_MOST - start.len()) / piece.len();
                let text = format!("{start}{}", piece.repeat(repeats));
                let started = Instant::now();
                let _ = read(&text);
                assert!(started.elapsed() < Duration::from_secs(5), "{start}{piece}… took {:?}", started.elapsed());
            }
        }
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..9 {
            let aliases = vec![format!("*a{}", level - 1); 9].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        assert_eq!(first_problem(&text), "the document has more than 50000 values, aliases counted as copies");
    }

    #[test]
    fn aliases_of_one_long_text_are_refused() {
        let text = format!("a: &a \"{}\"\nb: [{}]\n", "x".repeat(100_000), vec!["*a"; 1000].join(", "));
        assert_eq!(first_problem(&text), "aliases copy more than 1048576 bytes of text");
    }

    #[test]
    fn aliases_cannot_nest_deeper_than_brackets() {
        let mut text = String::from("a0: &a0 []\n");
        for level in 1..80 {
            text.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
        }
        assert_eq!(first_problem(&text), "the document is nested more than 64 levels deep");
    }

    #[test]
    fn what_is_no_text_is_refused_where_it_stops_being_text() {
        assert_eq!(first_problem("a: \0b"), "a NUL byte cannot stand in YAML");
        let problems = decode("job.yml", b"a: 1\nb: \xff").expect_err("not UTF-8");
        assert_eq!(problems.list()[0].what, "the text is not UTF-8: byte `0xff` cannot stand here");
        let place = problems.list()[0].location.expect("it has a place");
        assert_eq!((place.line, place.column), (2, 4));
    }

    #[test]
    fn a_document_of_a_megabyte_is_refused() {
        let text = format!("a: {}", "x".repeat(1_000_000));
        assert_eq!(first_problem(&text), "the document has 1000003 bytes; at most 262144 are read");
    }

    #[test]
    fn an_empty_document_a_second_one_and_a_key_said_twice_are_refused() {
        assert_eq!(first_problem(""), "the document is empty");
        assert_eq!(first_problem("# only a comment\n"), "the document is empty");
        assert_eq!(first_problem("a: 1\n---\nb: 2\n"), "a second document begins here");
        assert_eq!(first_problem("a: 1\nb: 2\na: 3\n"), "the key `a` stands twice in one mapping");
        assert_eq!(
            first_problem("a: !!python/object:os.system x\n"),
            "the tag `!!python/object:os.system` means nothing here"
        );
    }

    #[test]
    fn merge_keys_fill_what_is_not_said() {
        let node = read("base: &base {a: 1, b: 2}\nuse:\n  <<: *base\n  b: 3\n").expect("good YAML");
        let used = node.child("use").expect("it is there");
        let text = |key: &str| match &used.child(key).expect("it is there").kind {
            Kind::Scalar(scalar) => scalar.text.clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!((text("a"), text("b")), ("1".to_owned(), "3".to_owned()));
    }
}
