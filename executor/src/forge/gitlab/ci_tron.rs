//! Jobs in CI-tron's variables: the job description that its template `dut.yml` asks for. ◆
//!
//! ```text
//!  CI_TRON_INITRAMFS__B2C__URL=…              ─► a tree of words, split at `__` ─► deployment.start.initramfs: [{url: …}]
//!  CI_TRON_INITRAMFS_CATEGORY__50_MINE__A__URL=…                                  initramfs: {categories: {50-mine: [{url: …}]}}
//! ```
//! | variable | becomes |
//! |---|---|
//! | `CI_TRON_TIMEOUT__X__{MINUTES,RETRIES}`, `CI_TRON_WATCHDOG__X__…` | `timeouts`, `console_patterns.watchdogs` |
//! | `CI_TRON_PATTERN__X__REGEX` | `console_patterns` |
//! | `CI_TRON_KERNEL__…`, `CI_TRON_KERNEL_CMDLINE…` | `kernel`, `kernel.cmdline` |
//! | `CI_TRON_{INITRAMFS,DTB,HTTP_ARTIFACT,TFTP_ARTIFACT}…` | the lists of that name, in the order of their short names |
//! | `CI_TRON_FASTBOOT__…`, `CI_TRON_NBD__…`, `CI_TRON_IMAGESTORE__PUBLIC__IMAGES__…`, `CI_TRON_PROXY__ALLOWED_ENDPOINTS…` | those |
//! | `CI_TRON__…` and all others | values for templates, as `environ` |
//!
//! A category is written `NAME_CATEGORY__CAT__SHORT` (as Mesa's jobs and dut.yml itself do) or `NAME__CATEGORY__CAT__SHORT` (as its text
//! says); `RAW` in a short name's place brings pieces of YAML. Templates inside the values are not touched: they are rendered where the
//! farm renders data and command lines, once it has a DUT.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// The variables of a job.
pub(super) type Environment = BTreeMap<String, String>;

/// Whether a job is written in these variables: its template requires this one.
pub(super) fn is_asked_for(environ: &Environment) -> bool {
    environ.contains_key("CI_TRON_PATTERN__SESSION_END__REGEX")
}

/// The job description as YAML, for a DUT with this name or these tags.
pub(super) fn description(environ: &Environment, target: &Value) -> Result<String, String> {
    for required in ["SESSION_END", "JOB_SUCCESS"] {
        let name = format!("CI_TRON_PATTERN__{required}__REGEX");
        if environ.get(&name).is_none_or(String::is_empty) {
            return Err(format!(
                "the variable {name} is missing: it says by which line of the console the job is known"
            ));
        }
    }
    let tree = Tree::of(environ);
    let mut job = json!({
        "version": 1,
        "target": target,
        "timeouts": timeouts(&tree)?,
        "console_patterns": patterns(&tree),
        "deployment": {"start": deployment(&tree)?},
    });
    let endpoints = collection(&tree, "CI_TRON_PROXY__ALLOWED_ENDPOINTS", &|node| Ok(node.text().into()))?;
    if let Some(endpoints) = endpoints {
        job["proxy"] = json!({"allowed_endpoints": endpoints});
    }
    Ok(format!("# From the CI_TRON_* variables of a GitLab job\n{}\n", yaml(&job)))
}

/// Words of names, and what stands at their ends.
#[derive(Default)]
struct Tree {
    value: Option<String>,
    below: BTreeMap<String, Tree>,
}

static NOTHING: Tree = Tree { value: None, below: BTreeMap::new() };

impl Tree {
    fn of(environ: &Environment) -> Tree {
        let mut root = Tree::default();
        for (name, value) in environ.iter().filter(|(name, _)| name.starts_with("CI_TRON_")) {
            let mut at = &mut root;
            for word in name.split("__") {
                at = at.below.entry(word.to_owned()).or_default();
            }
            at.value = Some(value.clone());
        }
        root
    }

    /// What is below a name, written as the variable is.
    fn at(&self, name: &str) -> &Tree {
        name.split("__").fold(self, |tree, word| tree.below.get(word).unwrap_or(&NOTHING))
    }

    fn text(&self) -> &str {
        self.value.as_deref().unwrap_or_default()
    }

    fn is_empty(&self) -> bool {
        self.value.is_none() && self.below.is_empty()
    }

    /// The value of a word below, if it is not empty.
    fn get(&self, word: &str) -> Option<&str> {
        self.below.get(word).and_then(|tree| tree.value.as_deref()).filter(|value| !value.is_empty())
    }
}

fn timeouts(tree: &Tree) -> Result<Value, String> {
    let mut timeouts = Map::new();
    for (name, keys) in &tree.at("CI_TRON_TIMEOUT").below {
        timeouts.insert(name.to_lowercase(), timeout(&format!("CI_TRON_TIMEOUT__{name}"), keys)?);
    }
    let mut watchdogs = Map::new();
    for (name, keys) in &tree.at("CI_TRON_WATCHDOG").below {
        watchdogs.insert(name.to_lowercase(), timeout(&format!("CI_TRON_WATCHDOG__{name}"), keys)?);
    }
    if !watchdogs.is_empty() {
        timeouts.insert("watchdogs".into(), watchdogs.into());
    }
    Ok(timeouts.into())
}

fn timeout(name: &str, keys: &Tree) -> Result<Value, String> {
    let mut timeout = Map::new();
    for word in ["DAYS", "HOURS", "MINUTES", "SECONDS", "RETRIES"] {
        if let Some(text) = keys.get(word) {
            let number: Value = serde_json::from_str(text.trim())
                .ok()
                .filter(Value::is_number)
                .ok_or_else(|| format!("{name}__{word} is `{text}`, and not a number"))?;
            timeout.insert(word.to_lowercase(), number);
        }
    }
    Ok(timeout.into())
}

fn patterns(tree: &Tree) -> Value {
    let mut patterns = Map::new();
    for (name, keys) in &tree.at("CI_TRON_PATTERN").below {
        if let Some(regex) = keys.get("REGEX") {
            patterns.insert(name.to_lowercase(), json!({"regex": regex}));
        }
    }
    let mut watchdogs = Map::new();
    for (name, keys) in &tree.at("CI_TRON_WATCHDOG").below {
        let [start, reset, stop] = ["START_REGEX", "RESET_REGEX", "STOP_REGEX"].map(|word| keys.get(word));
        if let Some(start) = start {
            // One without a line that resets it is not reset; job descriptions want all three.
            let never = "(?!)";
            let regex = |it: Option<&str>| json!({"regex": it.unwrap_or(never)});
            watchdogs.insert(
                name.to_lowercase(),
                json!({"start": regex(Some(start)), "reset": regex(reset), "stop": regex(stop)}),
            );
        }
    }
    if !watchdogs.is_empty() {
        patterns.insert("watchdogs".into(), watchdogs.into());
    }
    patterns.into()
}

fn deployment(tree: &Tree) -> Result<Value, String> {
    let mut start = Map::new();
    let mut kernel = artifact(tree.at("CI_TRON_KERNEL"))?;
    if let Some(cmdline) = collection(tree, "CI_TRON_KERNEL_CMDLINE", &|node| Ok(node.text().into()))? {
        kernel.insert("cmdline".into(), cmdline);
    }
    insert(&mut start, "kernel", kernel);
    for (name, key) in [("CI_TRON_INITRAMFS", "initramfs"), ("CI_TRON_DTB", "dtb")] {
        if let Some(list) = collection(tree, name, &|node| Ok(artifact(node)?.into()))? {
            start.insert(key.into(), list);
        }
    }
    let mut storage = Map::new();
    for (name, key) in [("CI_TRON_HTTP_ARTIFACT", "http"), ("CI_TRON_TFTP_ARTIFACT", "tftp")] {
        if let Some(list) = collection(tree, name, &|node| Ok(artifact(node)?.into()))? {
            storage.insert(key.into(), list);
        }
    }
    insert(&mut storage, "nbd", disks(tree)?);
    let images = images(tree);
    if !images.is_empty() {
        storage.insert("imagestore".into(), json!({"public": {"images": images}}));
    }
    insert(&mut start, "storage", storage);
    insert(&mut start, "fastboot", fastboot(tree.at("CI_TRON_FASTBOOT"))?);
    Ok(start.into())
}

fn insert(map: &mut Map<String, Value>, key: &str, value: Map<String, Value>) {
    if !value.is_empty() {
        map.insert(key.to_owned(), value.into());
    }
}

fn disks(tree: &Tree) -> Result<Map<String, Value>, String> {
    let mut disks = Map::new();
    for (name, keys) in &tree.at("CI_TRON_NBD").below {
        let size = keys.get("SIZE").ok_or_else(|| format!("the variable CI_TRON_NBD__{name}__SIZE is missing"))?;
        let connections = keys.get("MAX_CONNECTIONS").and_then(|text| text.parse::<u32>().ok());
        // dut.yml's default is 5.
        disks.insert(name.to_lowercase(), json!({"size": size, "max_connections": connections.unwrap_or(5)}));
    }
    Ok(disks)
}

fn images(tree: &Tree) -> Map<String, Value> {
    let mut images = Map::new();
    for (name, keys) in &tree.at("CI_TRON_IMAGESTORE__PUBLIC__IMAGES").below {
        let mut image = Map::new();
        for (word, key) in [("NAME", "name"), ("PLATFORM", "platform"), ("PULL_POLICY", "pull")] {
            if let Some(text) = keys.get(word) {
                image.insert(key.into(), text.into());
            }
        }
        if let Some(text) = keys.get("TLS_VERIFY") {
            image.insert("tls_verify".into(), (text != "false").into());
        }
        images.insert(name.to_lowercase(), image.into());
    }
    images
}

fn fastboot(keys: &Tree) -> Result<Map<String, Value>, String> {
    let mut fastboot = Map::new();
    for (name, tree) in &keys.below {
        if name == "BOOT_IMAGE" {
            insert(&mut fastboot, "boot_image", artifact(tree)?);
        } else if let Some(text) = keys.get(name) {
            fastboot.insert(name.to_lowercase(), text.into());
        }
    }
    Ok(fastboot)
}

/// A list, or a collection of lists where there are categories; `None` when no variable names it.
fn collection(tree: &Tree, name: &str, item: &dyn Fn(&Tree) -> Result<Value, String>) -> Result<Option<Value>, String> {
    let mut categories = Map::new();
    for below in [tree.at(&format!("{name}_CATEGORY")), tree.at(&format!("{name}__CATEGORY"))] {
        for (category, list) in &below.below {
            categories.insert(category.to_lowercase().replace('_', "-"), items(list, item)?.into());
        }
    }
    let own = tree.at(name);
    let uncategorised = items(own, item)?;
    let is_said = own.below.keys().any(|short| short != "CATEGORY");
    Ok(match (is_said, categories.is_empty()) {
        (false, true) => None,
        (_, true) => Some(uncategorised.into()),
        (false, false) => Some(json!({"categories": categories})),
        (true, false) => Some(json!({"categories": categories, "uncategorised": uncategorised})),
    })
}

fn items(tree: &Tree, item: &dyn Fn(&Tree) -> Result<Value, String>) -> Result<Vec<Value>, String> {
    if let Some(raw) = tree.below.get("RAW") {
        let mut list = Vec::new();
        for text in raw.value.iter().chain(raw.below.values().filter_map(|it| it.value.as_ref())) {
            let read: Value = serde_yaml::from_str(text).map_err(|error| format!("a RAW list is no YAML: {error}"))?;
            match read {
                Value::Array(more) => list.extend(more),
                Value::Null => {}
                one => list.push(one),
            }
        }
        return Ok(list);
    }
    tree.below.iter().filter(|(short, _)| *short != "CATEGORY").map(|(_, node)| item(node)).collect()
}

/// Where bytes come from and what is done with them.
fn artifact(node: &Tree) -> Result<Map<String, Value>, String> {
    let mut artifact = Map::new();
    if let Some(path) = node.get("PATH") {
        artifact.insert("path".into(), path.into());
    }
    let data = node.at("DATA");
    let archive = node.at("ARCHIVE");
    if !data.is_empty() {
        artifact.insert("data".into(), joined(data).into());
    } else if let Some(url) = node.get("URL") {
        artifact.insert("url".into(), url.into());
    } else if !archive.is_empty() {
        let mut keys = lowercase(archive, &["EXTENSION", "COMPRESSION"]);
        let member = |member: &Tree| {
            let mut file = lowercase(member, &["PATH", "MODE"]);
            file.insert("artifact".into(), self::artifact(member.at("ARTIFACT"))?.into());
            Ok(Value::from(file))
        };
        let members: Result<Vec<_>, String> = archive.at("ADD").below.values().map(member).collect();
        keys.insert("add".into(), members?.into());
        artifact.insert("archive".into(), keys.into());
    }
    let format = node.at("FORMAT");
    if !format.is_empty() {
        artifact.insert("format".into(), steps(format).into());
    }
    Ok(artifact)
}

/// Each piece is on lines of its own.
fn joined(data: &Tree) -> String {
    if let Some(text) = &data.value {
        return text.clone();
    }
    let pieces: Vec<_> = data.below.values().map(|piece| piece.text().trim_end_matches('\n').to_owned()).collect();
    pieces.join("\n") + "\n"
}

fn steps(format: &Tree) -> Vec<Value> {
    // dut.yml has an example without a number.
    let is_one = format.below.contains_key("ARCHIVE") || format.below.contains_key("UBOOT");
    let all: Vec<&Tree> = if is_one { vec![format] } else { format.below.values().collect() };
    all.into_iter()
        .map(|step| match step.below.get("UBOOT") {
            Some(uboot) => json!({"uboot": lowercase(uboot, &["TYPE", "ARCHITECTURE", "COMPRESSION", "OS"])}),
            None => {
                let archive = step.at("ARCHIVE");
                let mut keys = lowercase(archive, &["EXTENSION", "COMPRESSION", "MATCH"]);
                let keep = archive.at("KEEP").below.values();
                let keep: Vec<Value> = keep.map(|one| lowercase(one, &["PATH", "REWRITE"]).into()).collect();
                if !keep.is_empty() {
                    keys.insert("keep".into(), keep.into());
                }
                json!({"archive": keys})
            }
        })
        .collect()
}

fn lowercase(tree: &Tree, words: &[&str]) -> Map<String, Value> {
    let said = words.iter().filter_map(|word| Some((word.to_lowercase(), Value::from(tree.get(word)?))));
    said.collect()
}

/// A value as YAML. Texts are quoted as JSON quotes them, which YAML reads; their braces are written by number, so that templates in them
/// pass through the rendering of the whole document, and are rendered where they are used.
pub(super) fn yaml(value: &Value) -> String {
    let mut out = String::new();
    write(value, 0, &mut out);
    out.trim_start_matches('\n').to_owned()
}

fn write(value: &Value, depth: usize, out: &mut String) {
    let pad = "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                out.push_str(&format!("\n{pad}{}:", scalar(&Value::from(key.as_str()))));
                write(value, depth + 1, out);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for value in list {
                out.push_str(&format!("\n{pad}-"));
                write(value, depth + 1, out);
            }
        }
        other => out.push_str(&format!(" {}", scalar(other))),
    }
}

/// Names that need no quotes get none.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        Value::String(_) => value.to_string().replace('{', "\\u007b"),
        other => other.to_string(),
    }
}

fn is_plain(text: &str) -> bool {
    let is_word = text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_');
    is_word && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        let required = [("CI_TRON_PATTERN__SESSION_END__REGEX", "end"), ("CI_TRON_PATTERN__JOB_SUCCESS__REGEX", "ok")];
        required.iter().chain(variables).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn of(variables: &[(&str, &str)]) -> Value {
        let text = description(&environment(variables), &json!({"id": "box"})).unwrap();
        serde_yaml::from_str(&text).unwrap()
    }

    #[test]
    fn patterns_timeouts_and_watchdogs_have_their_places() {
        let job = of(&[
            ("CI_TRON_TIMEOUT__OVERALL__MINUTES", "59"),
            ("CI_TRON_TIMEOUT__FIRST_CONSOLE_ACTIVITY__RETRIES", "3"),
            ("CI_TRON_WATCHDOG__TO_LINUX__MINUTES", "0.3"),
            ("CI_TRON_WATCHDOG__TO_LINUX__START_REGEX", "a{2}"),
            ("CI_TRON_WATCHDOG__TO_LINUX__STOP_REGEX", "b"),
        ]);
        assert_eq!(job["target"], json!({"id": "box"}));
        assert_eq!(job["timeouts"]["overall"], json!({"minutes": 59}));
        assert_eq!(job["timeouts"]["first_console_activity"], json!({"retries": 3}));
        assert_eq!(job["timeouts"]["watchdogs"], json!({"to_linux": {"minutes": 0.3}}));
        assert_eq!(job["console_patterns"]["session_end"], json!({"regex": "end"}));
        let watchdog = json!({"start": {"regex": "a{2}"}, "reset": {"regex": "(?!)"}, "stop": {"regex": "b"}});
        assert_eq!(job["console_patterns"]["watchdogs"]["to_linux"], watchdog);
    }

    #[test]
    fn lists_keep_the_order_of_their_names_and_categories_are_written_in_both_ways() {
        let job = of(&[
            ("CI_TRON_KERNEL__URL", "http://k"),
            ("CI_TRON_KERNEL_CMDLINE__02_SECOND", "world={{ dut.id }}"),
            ("CI_TRON_KERNEL_CMDLINE__01_FIRST", "hello"),
            ("CI_TRON_INITRAMFS__B2C__URL", "http://b2c"),
            ("CI_TRON_INITRAMFS_CATEGORY__50_PLATFORM__0__URL", "http://firmware"),
            ("CI_TRON_INITRAMFS__CATEGORY__60_MINE__A__DATA", "x"),
            ("CI_TRON_DTB__RAW__0", "[{url: 'http://d'}]"),
        ]);
        let start = &job["deployment"]["start"];
        assert_eq!(start["kernel"], json!({"url": "http://k", "cmdline": ["hello", "world={{ dut.id }}"]}));
        let categories = json!({"50-platform": [{"url": "http://firmware"}], "60-mine": [{"data": "x"}]});
        assert_eq!(start["initramfs"], json!({"categories": categories, "uncategorised": [{"url": "http://b2c"}]}));
        assert_eq!(start["dtb"], json!([{"url": "http://d"}]));
    }

    #[test]
    fn data_in_pieces_is_joined_by_lines_and_formats_keep_their_steps() {
        let job = of(&[
            ("CI_TRON_HTTP_ARTIFACT__CFG__PATH", "/cfg"),
            ("CI_TRON_HTTP_ARTIFACT__CFG__DATA__00", "#!jinja2"),
            ("CI_TRON_HTTP_ARTIFACT__CFG__DATA__01", "a\n"),
            ("CI_TRON_TFTP_ARTIFACT__D__PATH", "/dtbs?/(.*)"),
            ("CI_TRON_TFTP_ARTIFACT__D__URL", "http://d"),
            ("CI_TRON_TFTP_ARTIFACT__D__FORMAT__0__ARCHIVE__MATCH", "boot/\\1"),
            ("CI_TRON_TFTP_ARTIFACT__D__FORMAT__1__UBOOT__TYPE", "flatdt"),
        ]);
        let storage = &job["deployment"]["start"]["storage"];
        assert_eq!(storage["http"], json!([{"path": "/cfg", "data": "#!jinja2\na\n"}]));
        let format = json!([{"archive": {"match": "boot/\\1"}}, {"uboot": {"type": "flatdt"}}]);
        assert_eq!(storage["tftp"], json!([{"path": "/dtbs?/(.*)", "url": "http://d", "format": format}]));
    }

    #[test]
    fn a_number_that_is_none_and_a_pattern_that_is_missing_are_named() {
        let wrong = description(&environment(&[("CI_TRON_TIMEOUT__OVERALL__MINUTES", "soon")]), &json!({"id": "x"}));
        assert_eq!(wrong.unwrap_err(), "CI_TRON_TIMEOUT__OVERALL__MINUTES is `soon`, and not a number");
        let missing = description(&Environment::new(), &json!({"id": "x"})).unwrap_err();
        assert!(missing.starts_with("the variable CI_TRON_PATTERN__SESSION_END__REGEX is missing"), "{missing}");
    }

    #[test]
    fn templates_in_values_pass_through_the_documents_own_rendering() {
        let text = yaml(&json!({"cmdline": ["a={{ dut.id }}", "{% if x %}", "{# no comment #}"], "empty": {}}));
        assert!(!text.contains("{{") && !text.contains("{%") && !text.contains("{#"), "{text}");
        let read: Value = serde_yaml::from_str(&text).unwrap();
        assert_eq!(read["cmdline"], json!(["a={{ dut.id }}", "{% if x %}", "{# no comment #}"]));
        assert_eq!(read["empty"], json!({}));
    }
}
