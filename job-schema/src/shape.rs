//! From a guarded tree to a typed value: the JSON Schema of the type *is* the check, so that what `wharf schema`
//! prints and what is enforced cannot differ.
//!
//! ```text
//!  text ─ guard ─► Node tree ─ walk along the schema ─► serde_yaml::Value ─ serde_yaml ─► T
//!                               │ every mismatch becomes a Problem with its place;
//!                               │ the bad part is left out and the walk goes on
//! ```
//! This is the one module that touches serde_yaml (pinned; see `docs/decisions/0003-yaml.md`). It gets a value whose
//! words already have their types, so its own reading of YAML 1.1 never matters.
//!
//! Beyond JSON Schema's words the walk knows:
//!
//! | word | meaning |
//! |---|---|
//! | `x-form` | a form of text (see [`FORMS`](crate::forms::FORMS)) or of structure: `collection`, `mapping-or-list`, `one-or-list`, `named`, `duration`, `lifetime`, `any` |
//! | `x-item` | what `collection`, `mapping-or-list`, `one-or-list` and `named` hold |
//! | `x-mapping` | the mapping that `mapping-or-list`, `duration` and `lifetime` also are |
//! | `x-exactly-one`, `x-at-most-one` | keys that exclude each other |
//! | `x-at-least-one` | keys of which one is needed |
//! | `x-groups-of`, `x-groups-in` | a key with a regular expression, and one that may refer to its groups |
//! | `x-here-or-in-each` | `{list, keys, unless}`: keys needed here, unless each mapping of that list has its own, or the key `unless` |
//! | `x-never-null` | a key that may be left out, but not left empty |
//! | `x-lenient` | a mapping kept for further checks although a required key is missing |

mod in_each;
mod references;

use std::collections::HashSet;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use serde_yaml::{Mapping, Value};

use crate::forms;
use crate::guard::{self, Kind, Node, Scalar};
use crate::problem::{Location, Problem, Problems, alternatives, nearest, quoted, visible};

/// The most problems collected; beyond it a file is not a job with mistakes but something else.
const PROBLEMS_AT_MOST: usize = 1000;

/// A typed value, with what is needed to point at parts of its text.
pub(crate) struct Loaded<T> {
    /// The value; absent when too much was wrong to build one.
    pub(crate) value: Option<T>,
    /// The tree it came from; absent when the text is no YAML.
    pub(crate) root: Option<Node>,
    /// What was wrong so far.
    pub(crate) problems: Vec<Problem>,
}

impl<T> Loaded<T> {
    /// The place of the value at `path`, or of the nearest mapping above it that exists.
    pub(crate) fn place(&self, path: &[impl AsRef<str>]) -> Option<Location> {
        self.root.as_ref().map(|root| place_of(root, path))
    }

    /// The indices of those items of the list under `key` that are mappings: only these reach the typed value.
    pub(crate) fn mappings_of(&self, key: &str) -> Vec<usize> {
        let items = self.root.as_ref().and_then(|root| root.child(key)).map_or(&[][..], Node::items);
        let is_mapping = |(_, item): &(usize, &Node)| matches!(item.kind, Kind::Mapping(_));
        items.iter().enumerate().filter(is_mapping).map(|(index, _)| index).collect()
    }
}

/// The place of the value at `path` (keys of mappings, indices of lists), or of the nearest one above it that exists.
fn place_of(root: &Node, path: &[impl AsRef<str>]) -> Location {
    let (mut node, mut place) = (root, root.place);
    for step in path {
        if let Some(entry) = node.entry(step.as_ref()) {
            node = &entry.value;
            place = if node.entries().is_empty() { node.place } else { entry.key_place };
        } else if let (Kind::List(items), Ok(index)) = (&node.kind, step.as_ref().parse::<usize>())
            && let Some(item) = items.get(index)
        {
            node = item;
            place = item.place;
        } else {
            break;
        }
    }
    place
}

/// Mistakes that the schema cannot see, told by the place they are at.
pub struct Findings {
    root: Node,
    problems: Vec<Problem>,
}

impl Findings {
    /// The value at `path` (keys of mappings, indices of lists) is wrong.
    pub fn tell(&mut self, path: &[String], what: String, hint: &str) {
        let location = Some(place_of(&self.root, path));
        self.problems.push(Problem { location, field: field_of(path), what, hint: Some(hint.to_owned()) });
    }

    /// Where the value at `path` is, for what is no mistake and is told all the same.
    pub fn place(&self, path: &[String]) -> Location {
        place_of(&self.root, path)
    }
}

/// A path as problems write it: `duts[1].mac`.
pub fn field_of(path: &[String]) -> String {
    path.iter().fold(String::new(), |field, step| match step.parse::<usize>() {
        Ok(index) => format!("{field}[{index}]"),
        Err(_) if field.is_empty() => visible(step),
        Err(_) => format!("{field}.{}", visible(step)),
    })
}

/// Reads a whole YAML document as a `T` and turns it into a `U`, with checks that need more than one field. The checks run on
/// whatever could be read, so that the mistakes of both kinds are told together.
pub fn load_checked<T: DeserializeOwned + JsonSchema, U>(
    source_name: &str,
    text: &str,
    check: impl FnOnce(T, &mut Findings) -> U,
) -> Result<U, Problems> {
    let Loaded { value, root, mut problems } = load_leniently::<T>(text, &schema_of::<T>());
    let checked = value.zip(root).map(|(value, root)| {
        let mut findings = Findings { root, problems: Vec::new() };
        let checked = check(value, &mut findings);
        problems.append(&mut findings.problems);
        checked
    });
    match checked {
        Some(checked) if problems.is_empty() => Ok(checked),
        _ => Err(Problems::new(source_name, text, problems)),
    }
}

/// Reads a whole YAML document as a `T`, or tells everything that is wrong with its shape.
///
/// `T`'s schema decides; unknown keys are refused wherever the schema lists properties.
pub fn load<T: DeserializeOwned + JsonSchema>(source_name: &str, text: &str) -> Result<T, Problems> {
    let loaded = load_leniently::<T>(text, &schema_of::<T>());
    match loaded.value {
        Some(value) if loaded.problems.is_empty() => Ok(value),
        _ => Err(Problems::new(source_name, text, loaded.problems)),
    }
}

/// The same, keeping what could be read beside the problems, for checks that need the typed value.
/// `schema` is that of `T`, made once by whoever loads often.
pub(crate) fn load_leniently<T: DeserializeOwned>(text: &str, schema: &Json) -> Loaded<T> {
    let root = match guard::read(text) {
        Ok(root) => root,
        Err(problems) => return Loaded { value: None, root: None, problems },
    };
    let mut walk = Walk { schema, problems: Vec::new() };
    let value = walk.value(schema, &root, "");
    let mut problems = walk.problems;
    let value = value.and_then(|value| match serde_yaml::from_value(value) {
        Ok(value) => Some(value),
        Err(error) => {
            if problems.is_empty() {
                problems.push(Problem::new(error.to_string()).at(root.place));
            }
            None
        }
    });
    Loaded { value, root: Some(root), problems }
}

/// The JSON Schema of a type, as the walk reads it and as `wharf schema` prints it.
pub fn schema_of<T: JsonSchema>() -> Json {
    let schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>();
    let mut schema = Json::from(schema);
    close_objects(&mut schema);
    schema
}

/// Says in the schema what the walk does: a mapping with listed keys has no others.
fn close_objects(schema: &mut Json) {
    match schema {
        Json::Object(object) => {
            if object.contains_key("properties") && !object.contains_key("additionalProperties") {
                object.insert("additionalProperties".to_owned(), Json::Bool(false));
            }
            object.values_mut().for_each(close_objects);
        }
        Json::Array(items) => items.iter_mut().for_each(close_objects),
        _ => {}
    }
}

struct Walk<'s> {
    schema: &'s Json,
    problems: Vec<Problem>,
}

impl<'s> Walk<'s> {
    fn tell(&mut self, problem: Problem) {
        if self.problems.len() < PROBLEMS_AT_MOST {
            self.problems.push(problem);
        }
    }

    /// The value of `node` as `schema` wants it; `None` after telling what is wrong.
    fn value(&mut self, schema: &'s Json, node: &Node, field: &str) -> Option<Value> {
        let (schema, nullable) = self.resolve(schema);
        if let Kind::Scalar(scalar) = &node.kind
            && scalar.is_null()
            && nullable
        {
            return Some(Value::Null);
        }
        if let Some(form) = schema["x-form"].as_str() {
            return self.form(form, schema, node, field);
        }
        if let Some(words) = words_of(schema) {
            return self.word(&words, node, field);
        }
        match type_of(schema) {
            Some("object") if schema["properties"].is_object() => self.object(schema, node, field),
            Some("object") => self.map(&schema["additionalProperties"], node, field),
            Some("array") => {
                if schema["uniqueItems"] == true {
                    self.said_once(node, field);
                }
                self.list(&schema["items"], node, field)
            }
            Some("string") => self.text(node, field),
            Some("boolean") => self.boolean(node, field),
            Some("integer") => self.integer(schema, node, field),
            Some("number") => self.number(schema, node, field),
            _ => Some(plain_value(node)),
        }
    }

    /// Follows references and takes `null` off; says whether null was among the types.
    fn resolve(&self, schema: &'s Json) -> (&'s Json, bool) {
        let mut schema = schema;
        let mut nullable = false;
        // A chain of references is two or three long; a cycle of nothing but references would be our own mistake.
        for _ in 0..16 {
            if let Some(options) = schema["anyOf"].as_array().filter(|_| schema["x-form"].is_null()) {
                nullable |= options.iter().any(|option| option["type"] == "null");
                match options.iter().find(|option| option["type"] != "null") {
                    Some(option) => schema = option,
                    None => break,
                }
            } else if let Some(target) = schema["$ref"].as_str() {
                schema = self.schema.pointer(target.trim_start_matches('#')).unwrap_or(&Json::Null);
            } else {
                break;
            }
        }
        nullable |= schema["type"].as_array().is_some_and(|types| types.iter().any(|name| name == "null"));
        (schema, nullable)
    }

    fn object(&mut self, schema: &'s Json, node: &Node, field: &str) -> Option<Value> {
        let Kind::Mapping(entries) = &node.kind else {
            return self.mismatch("a mapping", node, field, Some(keys_hint(schema)));
        };
        let properties = schema["properties"].as_object()?;
        let mut mapping = Mapping::new();
        for entry in entries {
            let inner = join(field, &entry.key);
            match properties.get(&entry.key) {
                // A key with nothing after it is as good as none.
                Some(property) if is_null(&entry.value) && may_be_empty(schema, property, &entry.key) => {}
                Some(property) => {
                    if let Some(value) = self.value(property, &entry.value, &inner) {
                        mapping.insert(Value::String(entry.key.clone()), value);
                    }
                }
                None => self.unknown_key(schema, entry, &inner),
            }
        }
        self.exclusions(schema, node, field);
        self.references(schema, node, field);
        let complete = self.required(schema, node, field, &mapping);
        self.here_or_in_each(schema, node, field);
        (complete || schema["x-lenient"] == true).then_some(Value::Mapping(mapping))
    }

    fn unknown_key(&mut self, schema: &Json, entry: &guard::Entry, field: &str) {
        let known = schema["properties"].as_object().into_iter().flatten().map(|(key, _)| key.as_str());
        let hint = match nearest(&entry.key, known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => keys_hint(schema),
        };
        let what = format!("unknown key {}", quoted(&entry.key));
        self.tell(Problem::new(what).at(entry.key_place).about(field).hint(hint));
    }

    /// Tells missing keys; false when one is missing or was unusable.
    fn required(&mut self, schema: &Json, node: &Node, field: &str, mapping: &Mapping) -> bool {
        let mut complete = true;
        for key in schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str) {
            complete &= mapping.contains_key(key);
            if node.entry(key).is_none() && !misspelt(schema, node, key) {
                self.missing(schema, key, node, field);
            }
        }
        complete
    }

    fn missing(&mut self, schema: &Json, key: &str, node: &Node, field: &str) {
        let problem = Problem::new(format!("the key `{key}` is missing")).at(node.place).about(join(field, key));
        self.tell(match schema["properties"][key]["x-example"].as_str() {
            Some(example) => problem.hint(format!("add `{example}`")),
            None => problem.hint(format!("add `{key}:`")),
        });
    }

    fn exclusions(&mut self, schema: &Json, node: &Node, field: &str) {
        for (word, least, most) in [("x-exactly-one", 1, 1), ("x-at-most-one", 0, 1), ("x-at-least-one", 1, usize::MAX)]
        {
            let Some(keys) = schema[word].as_array() else { continue };
            let keys: Vec<&str> = keys.iter().filter_map(Json::as_str).collect();
            let said = |entry: &&guard::Entry| !is_null(&entry.value);
            let named = node.entries().iter().filter(|entry| keys.contains(&entry.key.as_str()));
            let present: Vec<&guard::Entry> = named.filter(said).collect();
            // `tags: null` was told already, and so was `ulr:`; that the key is missing would be the same again.
            let refused = |key: &&str| node.entry(key).is_some() && schema["properties"][*key]["x-never-null"] == true;
            let told = keys.iter().any(|key| misspelt(schema, node, key)) || keys.iter().any(refused);
            if present.len() < least && !told {
                let what = format!("one of {} is missing", alternatives(keys.iter().copied()));
                self.tell(Problem::new(what).at(node.place).about(field).hint(format!("add `{}:`", keys[0])));
            }
            if present.len() > most {
                let said = alternatives(present.iter().map(|entry| entry.key.as_str())).replace(" or ", " and ");
                let problem = Problem::new(format!("{said} exclude each other")).at(present[1].key_place);
                self.tell(problem.about(join(field, &present[1].key)).hint("keep one of them"));
            }
        }
    }

    fn map(&mut self, item: &'s Json, node: &Node, field: &str) -> Option<Value> {
        let Kind::Mapping(entries) = &node.kind else { return self.mismatch("a mapping", node, field, None) };
        let mut mapping = Mapping::new();
        for entry in entries {
            if let Some(value) = self.value(item, &entry.value, &join(field, &entry.key)) {
                mapping.insert(Value::String(entry.key.clone()), value);
            }
        }
        Some(Value::Mapping(mapping))
    }

    fn list(&mut self, item: &'s Json, node: &Node, field: &str) -> Option<Value> {
        let Kind::List(items) = &node.kind else { return self.mismatch("a list", node, field, None) };
        Some(Value::Sequence(self.items(item, items, field)))
    }

    /// JSON Schema's `uniqueItems`, for lists of text.
    fn said_once(&mut self, node: &Node, field: &str) {
        let mut seen = HashSet::new();
        for (index, item) in node.items().iter().enumerate() {
            if let Some(scalar) = scalar_of(item).filter(|scalar| !seen.insert(scalar.text.as_str())) {
                let problem = Problem::new(format!("{} stands twice", quoted(&scalar.text))).at(item.place);
                self.tell(problem.about(format!("{field}[{index}]")).hint("say it once"));
            }
        }
    }

    fn items(&mut self, item: &'s Json, items: &[Node], field: &str) -> Vec<Value> {
        items
            .iter()
            .enumerate()
            .filter_map(|(index, node)| self.value(item, node, &format!("{field}[{index}]")))
            .collect()
    }

    fn text(&mut self, node: &Node, field: &str) -> Option<Value> {
        let Kind::Scalar(scalar) = &node.kind else { return self.mismatch("text", node, field, None) };
        match scalar.as_text() {
            Ok(text) => Some(Value::String(text.to_owned())),
            Err("nothing") => self.mismatch("text", node, field, None),
            Err(_) => self.mismatch("text", node, field, Some(format!("put it in quotes: \"{}\"", scalar.text))),
        }
    }

    fn word(&mut self, words: &[&str], node: &Node, field: &str) -> Option<Value> {
        let Kind::Scalar(Scalar { text, .. }) = &node.kind else {
            return self.mismatch(&alternatives(words.iter().copied()), node, field, None);
        };
        if words.contains(&text.as_str()) {
            return Some(Value::String(text.clone()));
        }
        let hint = match nearest(text, words.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("use {}", alternatives(words.iter().copied())),
        };
        self.tell(Problem::new(format!("{} is not known here", quoted(text))).at(node.place).about(field).hint(hint));
        None
    }

    fn boolean(&mut self, node: &Node, field: &str) -> Option<Value> {
        match scalar_of(node).and_then(Scalar::as_boolean) {
            Some(value) => Some(Value::Bool(value)),
            None => self.mismatch("a boolean", node, field, Some("write `true` or `false`".to_owned())),
        }
    }

    fn integer(&mut self, schema: &Json, node: &Node, field: &str) -> Option<Value> {
        let Some(number) = scalar_of(node).and_then(Scalar::as_integer) else {
            return self.mismatch("a whole number", node, field, None);
        };
        let least = schema["minimum"].as_i64().map_or(i128::from(i64::MIN), i128::from);
        let most = match schema["format"].as_str() {
            Some("uint8") => i128::from(u8::MAX),
            Some("uint16") => i128::from(u16::MAX),
            Some("uint32") => i128::from(u32::MAX),
            _ => i128::from(i64::MAX),
        };
        let most = schema["maximum"].as_i64().map_or(most, i128::from);
        if number < least || number > most {
            let problem = Problem::new(format!("`{number}` is out of range")).at(node.place).about(field);
            self.tell(problem.hint(format!("write a number from {least} to {most}")));
            return None;
        }
        i64::try_from(number).ok().map(Value::from)
    }

    fn number(&mut self, schema: &Json, node: &Node, field: &str) -> Option<Value> {
        let least = schema["minimum"].as_f64().unwrap_or(f64::MIN);
        let most = schema["maximum"].as_f64().unwrap_or(f64::MAX);
        let scalar = scalar_of(node);
        let written = match (scalar, scalar.and_then(Scalar::as_number)) {
            (_, Some(number)) if (least..=most).contains(&number) => return Some(Value::from(number)),
            (_, Some(number)) => number.to_string(),
            // `.inf` and `.nan` are numbers to YAML, but none that a clock can wait for.
            (Some(scalar), None) if scalar.as_text() == Err("a number") => scalar.text.clone(),
            _ => return self.mismatch("a number", node, field, None),
        };
        let problem = Problem::new(format!("{} is out of range", quoted(&written))).at(node.place).about(field);
        self.tell(problem.hint(format!("write a number from {least} to {most}")));
        None
    }

    fn form(&mut self, form: &str, schema: &'s Json, node: &Node, field: &str) -> Option<Value> {
        match form {
            "any" => Some(plain_value(node)),
            "collection" => self.collection(&schema["x-item"], node, field),
            "one-or-list" => self.one_or_list(&schema["x-item"], node, field),
            "named" => self.named(&schema["x-item"], node, field),
            "mapping-or-list" => match &node.kind {
                Kind::Mapping(_) => self.value(&schema["x-mapping"], node, field),
                Kind::List(_) => self.list(&schema["x-item"], node, field),
                Kind::Scalar(_) => {
                    let hint = keys_hint(self.resolve(&schema["x-mapping"]).0);
                    self.mismatch("a mapping or a list of mappings", node, field, Some(hint))
                }
            },
            "duration" | "lifetime" if matches!(node.kind, Kind::Mapping(_)) => {
                let mapping = self.value(&schema["x-mapping"], node, field)?;
                if form == "duration" { Some(Value::from(forms::seconds_of_units(&mapping))) } else { Some(mapping) }
            }
            _ => self.scalar_form(form, node, field),
        }
    }

    fn scalar_form(&mut self, name: &str, node: &Node, field: &str) -> Option<Value> {
        let form = forms::find(name);
        let Kind::Scalar(scalar) = &node.kind else {
            return self.mismatch(form.noun, node, field, Some(form.hint.to_owned()));
        };
        match (form.read)(scalar) {
            Ok(value) => Some(value),
            Err(None) => {
                let hint = match scalar.as_text() {
                    Err("a number" | "a boolean") => format!("put it in quotes: \"{}\"", scalar.text),
                    _ => form.hint.to_owned(),
                };
                self.mismatch(form.noun, node, field, Some(hint))
            }
            Err(Some(why)) => {
                let what = format!("{} is not {}: {why}", quoted(&scalar.text), form.noun);
                self.tell(Problem::new(what).at(node.place).about(field).hint(form.hint));
                None
            }
        }
    }

    fn one_or_list(&mut self, item: &'s Json, node: &Node, field: &str) -> Option<Value> {
        match &node.kind {
            Kind::List(items) => Some(Value::Sequence(self.items(item, items, field))),
            Kind::Scalar(scalar) if scalar.is_null() => Some(Value::Sequence(Vec::new())),
            _ => self.value(item, node, field).map(|value| Value::Sequence(vec![value])),
        }
    }

    /// A list whose items have a `name`, or a mapping of names to items; the list is what goes on.
    fn named(&mut self, item: &'s Json, node: &Node, field: &str) -> Option<Value> {
        let key = if self.resolve(item).0["properties"]["bucket"].is_object() { "bucket" } else { "name" };
        match &node.kind {
            Kind::List(items) => {
                self.names_said_once(items, key, field);
                Some(Value::Sequence(self.items(item, items, field)))
            }
            Kind::Mapping(entries) => {
                let named = entries.iter().map(|entry| (with_name(entry, key), join(field, &entry.key)));
                Some(Value::Sequence(named.filter_map(|(node, field)| self.value(item, &node, &field)).collect()))
            }
            Kind::Scalar(_) => self.mismatch("a list or a mapping of names", node, field, None),
        }
    }

    fn names_said_once(&mut self, items: &[Node], key: &str, field: &str) {
        let mut seen = HashSet::new();
        for (index, item) in items.iter().enumerate() {
            let Some(name) = item.child(key) else { continue };
            let Some(scalar) = scalar_of(name) else { continue };
            if !seen.insert(scalar.text.clone()) {
                let problem = Problem::new(format!("the name {} stands twice", quoted(&scalar.text))).at(name.place);
                self.tell(problem.about(format!("{field}[{index}].{key}")).hint("give each its own name"));
            }
        }
    }

    /// CI-tron's ComplexList: an item, a list, categories, or `{categories, uncategorised}` (`merge.rs` has the rules).
    fn collection(&mut self, item: &'s Json, node: &Node, field: &str) -> Option<Value> {
        let (uncategorised, categories) = match &node.kind {
            Kind::Mapping(entries) if self.is_item(item, node) => {
                debug_assert!(!entries.is_empty());
                (self.one_or_list(item, node, field)?, Mapping::new())
            }
            Kind::Mapping(_) if is_explicit(node) => {
                let uncategorised = match node.child("uncategorised") {
                    Some(list) => self.one_or_list(item, list, &join(field, "uncategorised"))?,
                    None => Value::Sequence(Vec::new()),
                };
                let categories = node.child("categories").map(guard::Node::entries).unwrap_or_default();
                (uncategorised, self.categories(item, categories, &join(field, "categories")).1)
            }
            Kind::Mapping(entries) => self.categories(item, entries, field),
            _ => (self.one_or_list(item, node, field)?, Mapping::new()),
        };
        let mut explicit = Mapping::new();
        explicit.insert("uncategorised".into(), uncategorised);
        explicit.insert("categories".into(), Value::Mapping(categories));
        Some(Value::Mapping(explicit))
    }

    fn categories(&mut self, item: &'s Json, entries: &[guard::Entry], field: &str) -> (Value, Mapping) {
        let mut uncategorised = Value::Sequence(Vec::new());
        let mut categories = Mapping::new();
        for entry in entries {
            let inner = join(field, &entry.key);
            let list = self.one_or_list(item, &entry.value, &inner);
            if entry.key == ":uncategorised" {
                uncategorised = list.unwrap_or(uncategorised);
            } else if entry.key.is_empty() || entry.key.starts_with(':') {
                let what = if entry.key.is_empty() {
                    "a category needs a name".to_owned()
                } else {
                    format!("the category name {} is reserved", quoted(&entry.key))
                };
                let hint = "begin its name with a letter or a digit, or use `:uncategorised`";
                self.tell(Problem::new(what).at(entry.key_place).about(inner).hint(hint));
            } else if let Some(list) = list {
                categories.insert(Value::String(entry.key.clone()), list);
            }
        }
        (uncategorised, categories)
    }

    /// Whether a mapping is one item of a collection rather than its categories.
    fn is_item(&self, item: &'s Json, node: &Node) -> bool {
        let (item, _) = self.resolve(item);
        let Some(properties) = item["properties"].as_object() else { return false };
        let entries = node.entries();
        let flat = |entry: &guard::Entry| scalar_of(&entry.value).is_some_and(|scalar| !scalar.is_null());
        entries.iter().any(|entry| properties.contains_key(&entry.key))
            || (!entries.is_empty() && entries.iter().all(flat))
    }

    fn mismatch(&mut self, wanted: &str, node: &Node, field: &str, hint: Option<String>) -> Option<Value> {
        let mut problem =
            Problem::new(format!("expected {wanted}, found {}", describe(node))).at(node.place).about(field);
        problem.hint = hint.or_else(|| Some(format!("write {wanted} here, or remove the key")));
        self.tell(problem);
        None
    }
}

/// Whether a key may be there with nothing after it.
fn may_be_empty(schema: &Json, property: &Json, key: &str) -> bool {
    let required = schema["required"].as_array().is_some_and(|keys| keys.iter().any(|name| name == key));
    !required && property["x-never-null"] != true
}

fn is_null(node: &Node) -> bool {
    scalar_of(node).is_some_and(Scalar::is_null)
}

/// Whether a mapping has an unknown key that is `key` but for a slip of the fingers.
fn misspelt(schema: &Json, node: &Node, key: &str) -> bool {
    let Some(properties) = schema["properties"].as_object() else { return false };
    let unknown = node.entries().iter().filter(|entry| !properties.contains_key(&entry.key));
    unknown.into_iter().any(|entry| nearest(&entry.key, properties.keys().map(String::as_str)) == Some(key))
}

fn join(field: &str, key: &str) -> String {
    let key = if key.is_empty() { "\"\"" } else { key };
    if field.is_empty() { visible(key) } else { format!("{field}.{}", visible(key)) }
}

fn keys_hint(schema: &Json) -> String {
    let keys = schema["properties"].as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    format!("known keys: {}", alternatives(keys).replace(" or ", ", "))
}

fn is_explicit(node: &Node) -> bool {
    let keys = node.entries();
    let mapping = node.child("categories").is_none_or(|value| matches!(value.kind, Kind::Mapping(_)));
    !keys.is_empty() && mapping && keys.iter().all(|entry| matches!(entry.key.as_str(), "categories" | "uncategorised"))
}

/// The value of a mapping's entry, with the entry's key as its name.
fn with_name(entry: &guard::Entry, key: &str) -> Node {
    let name = Scalar { text: entry.key.clone(), style: guard::Style::Quoted };
    let name = Node { kind: Kind::Scalar(name), place: entry.key_place };
    let mut node = entry.value.clone();
    if let Kind::Mapping(entries) = &mut node.kind {
        entries.retain(|inner| inner.key != key);
        entries.push(guard::Entry { key: key.to_owned(), key_place: entry.key_place, value: name });
    }
    node
}

fn scalar_of(node: &Node) -> Option<&Scalar> {
    match &node.kind {
        Kind::Scalar(scalar) => Some(scalar),
        Kind::List(_) | Kind::Mapping(_) => None,
    }
}

fn type_of(schema: &Json) -> Option<&str> {
    match &schema["type"] {
        Json::String(name) => Some(name),
        Json::Array(names) => names.iter().filter_map(Json::as_str).find(|name| *name != "null"),
        _ => None,
    }
}

/// The words of an enumeration, in either of the two ways schemars writes one.
fn words_of(schema: &Json) -> Option<Vec<&str>> {
    let mut words: Vec<&str> = schema["enum"].as_array().into_iter().flatten().filter_map(Json::as_str).collect();
    for option in schema["oneOf"].as_array().into_iter().flatten() {
        words.extend(option["const"].as_str());
        words.extend(option["enum"].as_array().into_iter().flatten().filter_map(Json::as_str));
    }
    (!words.is_empty()).then_some(words)
}

fn describe(node: &Node) -> String {
    match &node.kind {
        Kind::List(_) => "a list".to_owned(),
        Kind::Mapping(_) => "a mapping".to_owned(),
        Kind::Scalar(scalar) => match scalar.as_text() {
            Ok(text) => format!("the text {}", quoted(text)),
            Err("nothing") => "nothing".to_owned(),
            Err(kind) => format!("{} {}", kind.replacen('a', "the", 1), quoted(&scalar.text)),
        },
    }
}

/// A value whose type nobody asked for, by YAML 1.1's own reading.
fn plain_value(node: &Node) -> Value {
    match &node.kind {
        Kind::List(items) => Value::Sequence(items.iter().map(plain_value).collect()),
        Kind::Mapping(entries) => Value::Mapping(
            entries.iter().map(|entry| (Value::String(entry.key.clone()), plain_value(&entry.value))).collect(),
        ),
        Kind::Scalar(scalar) => match scalar.as_text() {
            Ok(text) => Value::String(text.to_owned()),
            Err("nothing") => Value::Null,
            Err("a boolean") => Value::Bool(scalar.as_boolean().unwrap_or_default()),
            Err(_) => match scalar.as_integer().and_then(|number| i64::try_from(number).ok()) {
                Some(number) => Value::from(number),
                None => scalar.as_number().map_or(Value::String(scalar.text.clone()), Value::from),
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;

    #[derive(Debug, Deserialize, JsonSchema, PartialEq)]
    struct Farm {
        name: String,
        #[serde(default)]
        size: Option<u16>,
        #[serde(default)]
        on: bool,
        #[serde(default)]
        duts: Vec<Dut>,
        #[serde(default)]
        labels: BTreeMap<String, String>,
    }

    #[derive(Debug, Deserialize, JsonSchema, PartialEq)]
    struct Dut {
        mac: String,
        #[serde(default)]
        mode: Option<Mode>,
    }

    #[derive(Debug, Deserialize, JsonSchema, PartialEq)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        /// The old firmware.
        Bios,
        /// The new firmware.
        Uefi,
    }

    #[test]
    fn any_type_with_a_schema_can_be_loaded() {
        let text =
            "name: north\nsize: 0x10\non: yes\nduts: [{mac: 52:54:00:11:22:33, mode: uefi}]\nlabels: {rack: a}\n";
        let farm: Farm = load("farm.yml", text).expect("a good farm");
        let expected = Farm {
            name: "north".to_owned(),
            size: Some(16),
            on: true,
            duts: vec![Dut { mac: "52:54:00:11:22:33".to_owned(), mode: Some(Mode::Uefi) }],
            labels: BTreeMap::from([("rack".to_owned(), "a".to_owned())]),
        };
        assert_eq!(farm, expected);
    }

    #[test]
    fn all_mistakes_are_told_at_once_with_their_fields() {
        let text = "nmae: north\nsize: 70000\non: maybe\nduts: [{mode: ufei}, 3]\nlabels: [a]\n";
        let problems = load::<Farm>("farm.yml", text).expect_err("a bad farm");
        let told: Vec<(usize, &str, &str)> = problems
            .list()
            .iter()
            .map(|problem| {
                (problem.location.map_or(0, |place| place.line), problem.field.as_str(), problem.what.as_str())
            })
            .collect();
        let expected = [
            (1, "nmae", "unknown key `nmae`"),
            (2, "size", "`70000` is out of range"),
            (3, "on", "expected a boolean, found the text `maybe`"),
            (4, "duts[0].mac", "the key `mac` is missing"),
            (4, "duts[0].mode", "`ufei` is not known here"),
            (4, "duts[1]", "expected a mapping, found the number `3`"),
            (5, "labels", "expected a mapping, found a list"),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_key_that_would_move_the_cursor_is_shown_and_not_obeyed() {
        let problems = load::<Farm>("farm.yml", "\"\\e[2J\": 1\n").expect_err("an unknown key");
        assert_eq!(problems.list()[0].field, r"\u{1b}[2J");
        assert!(!problems.to_string().contains('\u{1b}'), "{problems}");
    }
}
