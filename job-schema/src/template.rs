//! Whole-document templates: CI-tron's Jinja, without its holes.
//!
//! ```text
//!  text (≤ 64 KiB) ─ parse ─ run on ≤ 1 M instructions, a stack of its own ─► ≤ 1 MiB of Rendered
//!                      └── Problems: line, column, what the template engine says ──┘
//! ```
//! No file, no network, no code: only [`Variables`], filters, and the methods Python's strings and lists have.
//! Undefined names print nothing and may be walked through (`{{ a.b.c }}`), as CI-tron configures it.
//!
//! One instruction may still take much memory or time (`"%1000000000s"|format`), and the limits here do not count
//! that. Text of strangers is therefore rendered in a child process under rlimits; [`render`] is what the child runs.
//!
//! A few methods turn plain data into what CI-tron's objects compute:
//!
//! | call | on a mapping with | gives |
//! |---|---|---|
//! | `job.http.path_to("initramfs.1")` | `url` | `<url>/_/job/initramfs/1` |
//! | `job.nbd.swap.to_b2c_nbd("/dev/nbd1")` | `hostname`, `tcp_port`, `name`, `max_connections` | `b2c.nbd=/dev/nbd1,host=…,port=…,name=…,connections=…` |
//! | `imagestore.mount("public")` | `stores` | the store's mounts |
//! | `….nfs.to_b2c_filesystem("x")` | `type`, `src`, `opts` | `b2c.filesystem=x,type=…,src=…,opts=…` |
//! | `registry.to_local_proxy(image)` | `proxies`: registry host → local address | the image's name behind the proxy |

use std::io;

use minijinja::value::{Kwargs, Serde, Tuple, Value, ValueKind, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior};
use serde::{Deserialize, Serialize};

use crate::problem::{Location, Problem, Problems, quoted};

/// The stack a template is parsed and run on: chains of operators recurse in the engine, and 64 KiB of them need some
/// 60 MiB. Only touched pages count.
const STACK_BYTES: usize = 256 * 1024 * 1024;
/// The widest that `ljust` and its kin pad to, in characters.
const PADDING_AT_MOST: usize = 10_000;
/// What CI-tron's objects compute.
const METHODS_OF_MAPPINGS: [&str; 5] = ["mount", "path_to", "to_b2c_filesystem", "to_b2c_nbd", "to_local_proxy"];
/// The first line that asks for strict templates.
const STRICT_LINE: &str = "#!jinja2";

/// What a template may name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Variables(serde_json::Map<String, serde_json::Value>);

impl Variables {
    /// No variables.
    pub fn new() -> Variables {
        Variables::default()
    }

    /// Adds a variable, or replaces it. What cannot be written as JSON becomes null.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Serialize) {
        self.0.insert(name.into(), serde_json::to_value(value).unwrap_or_default());
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&serde_json::Value> {
        self.0.get(name)
    }
}

/// Text whose templates are gone; the only thing a job is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rendered {
    /// The text.
    pub text: String,
    source_name: String,
}

impl Rendered {
    /// Text without templates, or rendered elsewhere (in our own child process).
    pub fn plain(source_name: impl Into<String>, text: impl Into<String>) -> Rendered {
        Rendered { text: text.into(), source_name: source_name.into() }
    }

    /// The name of the file it came from.
    pub fn source_name(&self) -> &str {
        &self.source_name
    }
}

/// What a template may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// The longest template, in bytes.
    pub input_bytes: usize,
    /// The most instructions.
    pub fuel: u64,
    /// The longest result, in bytes.
    pub output_bytes: usize,
}

impl Default for Limits {
    /// 64 KiB in, as the stack is made for; a million instructions (0.2 s); 1 MiB out, four times what the YAML
    /// guard takes.
    fn default() -> Limits {
        Limits { input_bytes: 64 * 1024, fuel: 1_000_000, output_bytes: 1024 * 1024 }
    }
}

/// Renders a whole document, in this process. A first line `#!jinja2` is emptied, so that line numbers stay.
pub fn render(source_name: &str, text: &str, variables: &Variables, limits: &Limits) -> Result<Rendered, Problems> {
    let body = without_strict_line(text);
    let result = on_large_stack(|| run(source_name, &body, variables, limits, TrailingNewline::Drop));
    match result {
        Ok(text) => Ok(Rendered { text, source_name: source_name.to_owned() }),
        Err(problem) => Err(Problems::one(source_name, text, problem)),
    }
}

/// Renders a text within a job, such as inline `data` or a command line: strictly when its first line is `#!jinja2`
/// (which is removed), otherwise a template that fails is left as it is.
pub fn render_inline(
    source_name: &str,
    text: &str,
    variables: &Variables,
    limits: &Limits,
) -> Result<String, Problems> {
    let strict = text.lines().next().is_some_and(|line| line.trim_end() == STRICT_LINE);
    let body = if strict { text.split_once('\n').map_or("", |(_, rest)| rest) } else { text };
    match on_large_stack(|| run(source_name, body, variables, limits, TrailingNewline::Keep)) {
        Ok(rendered) => Ok(rendered),
        Err(problem) if strict => Err(Problems::one(source_name, body, problem)),
        Err(_) => Ok(text.to_owned()),
    }
}

/// The names a template uses and does not set itself, with the attributes it asks of them: `job.http.url`.
pub fn variables_used(source_name: &str, text: &str) -> Result<Vec<String>, Problems> {
    let body = without_strict_line(text);
    let names = on_large_stack(|| {
        check_input(&body, Limits::default().input_bytes)?;
        let environment = Environment::new();
        let template =
            environment.template_from_named_str(source_name, &body).map_err(|error| problem_of(&error, &body))?;
        let mut names: Vec<String> = template.undeclared_variables(true).into_iter().collect();
        names.sort();
        Ok(names)
    });
    names.map_err(|problem| Problems::one(source_name, text, problem))
}

/// Whether one newline at the end of the template is dropped, as Jinja does.
#[derive(Clone, Copy)]
enum TrailingNewline {
    Drop,
    Keep,
}

fn without_strict_line(text: &str) -> String {
    match text.split_once('\n') {
        Some((first, rest)) if first.trim_end() == STRICT_LINE => format!("\n{rest}"),
        _ => text.to_owned(),
    }
}

/// Runs `work` on a thread whose stack fits the deepest template that is let in.
fn on_large_stack<T: Send>(work: impl FnOnce() -> Result<T, Problem> + Send) -> Result<T, Problem> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("template".to_owned()).stack_size(STACK_BYTES);
        match builder.spawn_scoped(scope, work) {
            Ok(thread) => {
                thread.join().unwrap_or_else(|_| Err(Problem::new("the template engine failed on this template")))
            }
            Err(error) => Err(Problem::new(format!("no memory to render the template: {error}"))),
        }
    })
}

fn check_input(text: &str, limit: usize) -> Result<(), Problem> {
    if text.len() <= limit {
        return Ok(());
    }
    Err(Problem::new(format!("the template has {} bytes; at most {limit} are rendered", text.len()))
        .hint("move inline `data` into an attached artifact or a URL"))
}

fn run(
    source_name: &str,
    text: &str,
    variables: &Variables,
    limits: &Limits,
    newline: TrailingNewline,
) -> Result<String, Problem> {
    check_input(text, limits.input_bytes)?;
    let mut environment = environment();
    environment.set_fuel(Some(limits.fuel));
    // The engine drops one newline at the end; one more makes it keep the text's own.
    let kept = match newline {
        TrailingNewline::Keep if text.ends_with('\n') => format!("{text}\n"),
        TrailingNewline::Keep | TrailingNewline::Drop => text.to_owned(),
    };
    let template = environment.template_from_named_str(source_name, &kept).map_err(|error| problem_of(&error, text))?;
    let mut output = Bounded { text: Vec::new(), limit: limits.output_bytes, overflowed: false };
    let result = template.render_captured_to(Value::from(Serde(&variables.0)), &mut output).map(|_| ());
    if output.overflowed {
        return Err(Problem::new(format!("the template makes more than {} bytes", limits.output_bytes))
            .hint("make less of it; large data belongs into an artifact"));
    }
    result.map_err(|error| problem_of(&error, text))?;
    String::from_utf8(output.text).map_err(|_| Problem::new("the template makes text that is not UTF-8"))
}

fn environment<'source>() -> Environment<'source> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Chainable);
    // The engine quotes every value in templates called *.yml unless told not to.
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(method);
    environment.set_debug(false);
    minijinja_contrib::add_to_environment(&mut environment);
    environment
        .add_filter("center", |text: &str, width: Option<usize>| justify(text, "center", width.unwrap_or(80), " "));
    environment.add_filter("int", int_filter);
    environment.add_filter("float", float_filter);
    environment.add_filter("truncate", truncate_filter);
    environment.add_filter("urlencode", url_encoded);
    environment.add_filter("wordcount", |text: &str| text.split_whitespace().count());
    environment.add_filter("default", default_filter);
    environment.add_filter("d", default_filter);
    environment.add_filter("length", length_filter);
    environment.add_filter("count", length_filter);
    environment
}

/// Output that ends the rendering once it is longer than it may be.
struct Bounded {
    text: Vec<u8>,
    limit: usize,
    overflowed: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > self.limit {
            self.overflowed = true;
            return Err(io::Error::other("the output is full"));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn problem_of(error: &Error, text: &str) -> Problem {
    let what = match error.detail() {
        Some(detail) => format!("template: {}: {detail}", error.kind()),
        None => format!("template: {}", error.kind()),
    };
    let problem = match place_of(error, text) {
        Some(place) => Problem::new(what).at(place),
        None => Problem::new(what),
    };
    let hint = match error.kind() {
        ErrorKind::OutOfFuel => "the template ran too long; make its loops shorter",
        ErrorKind::UndefinedError => "this variable is not defined here; give it with `default(…)` or check its name",
        ErrorKind::UnknownFilter | ErrorKind::UnknownTest | ErrorKind::UnknownFunction | ErrorKind::UnknownMethod => {
            "check the name; templates have Jinja's filters and Python's string methods"
        }
        ErrorKind::SyntaxError => {
            "check the braces; text that is no template goes between `{% raw %}` and `{% endraw %}`"
        }
        _ => "check the types of the values used here",
    };
    problem.hint(hint)
}

fn place_of(error: &Error, text: &str) -> Option<Location> {
    if let Some(range) = error.range().filter(|range| text.get(range.clone()).is_some()) {
        return Some(Location::of_span(text, range.start, range.end));
    }
    let line = error.line()?;
    let start = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum::<usize>().min(text.len());
    let end = start + text[start..].find('\n').unwrap_or(text.len() - start);
    Some(Location { line, column: 1, start, end })
}

/// `default("x")`, `default("x", true)` and `default("x", boolean=true)`.
fn default_filter(value: &Value, other: Option<Value>, boolean: Option<bool>, options: Kwargs) -> Result<Value, Error> {
    let boolean = boolean.or(options.get::<Option<bool>>("boolean")?).unwrap_or(false);
    options.assert_all_used()?;
    if value.is_undefined() || (boolean && !value.is_true()) {
        return Ok(other.unwrap_or_else(|| Value::from("")));
    }
    Ok(value.clone())
}

/// The length of what has one; of an undefined value it is 0, as in Jinja.
fn length_filter(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    let why = || Error::new(ErrorKind::InvalidOperation, format!("a {} has no length", value.kind()));
    value.len().ok_or_else(why)
}

/// The whole number a value is; `default` (0) where it is none, as in Jinja.
fn int_filter(
    state: &State,
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    options: Kwargs,
) -> Result<Value, Error> {
    let default = default.or(options.get("default")?).unwrap_or_else(|| Value::from(0));
    let base = base.or(options.get("base")?);
    options.assert_all_used()?;
    let none = std::iter::empty::<(&str, Value)>().collect();
    Ok(minijinja::filters::int(state, value, Some(default.clone()), base, none).unwrap_or(default))
}

/// The number a value is; `default` (0.0) where it is none, as in Jinja.
fn float_filter(value: &Value, default: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let default = default.or(options.get("default")?).unwrap_or_else(|| Value::from(0.0));
    options.assert_all_used()?;
    let number = f64::try_from(value.clone()).ok().or_else(|| value.as_str()?.trim().parse().ok());
    Ok(number.map_or(default, Value::from))
}

/// `truncate(length=255, killwords=false, end="...", leeway=5)`, as in Jinja; `leeway` by name only.
fn truncate_filter(
    text: &str,
    length: Option<usize>,
    kill_words: Option<bool>,
    end: Option<String>,
    options: Kwargs,
) -> Result<String, Error> {
    let length = length.or(options.get("length")?).unwrap_or(255);
    let kill_words = kill_words.or(options.get("killwords")?).unwrap_or(false);
    let end = end.or(options.get("end")?).unwrap_or_else(|| "...".to_owned());
    let leeway = options.get::<Option<usize>>("leeway")?.unwrap_or(5);
    options.assert_all_used()?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let kept: String = text.chars().take(length.saturating_sub(end.chars().count())).collect();
    match kept.rsplit_once(' ') {
        Some((words, _)) if !kill_words => Ok(words.to_owned() + &end),
        _ => Ok(kept + &end),
    }
}

/// Percent-encoding of all but the unreserved characters (RFC 3986 section 2.3) and the slash, as Jinja does.
fn url_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// A method the engine does not know: ours, or one of Python's.
fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    let ours = match value.kind() {
        ValueKind::String => string_method(value.as_str().unwrap_or_default(), name, arguments),
        ValueKind::Map => mapping_method(value, name, arguments),
        // A job's disks are known only once its text was rendered: the first time `job.nbd.swap` is nothing, and so is what is asked of it.
        ValueKind::Undefined if METHODS_OF_MAPPINGS.contains(&name) => Some(Ok(Value::UNDEFINED)),
        ValueKind::Seq if name == "index" => {
            let (wanted,): (&Value,) = from_args(arguments)?;
            let found = value.try_iter()?.position(|item| item == *wanted);
            found
                .map(|at| Ok(Value::from(at)))
                .or_else(|| Some(Err(Error::new(ErrorKind::InvalidOperation, "not in the list"))))
        }
        _ => None,
    };
    ours.unwrap_or_else(|| minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments))
}

/// What Python's strings have beside what minijinja-contrib gives them.
fn string_method(text: &str, name: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    Some(match name {
        "partition" => from_args(arguments)
            .map(|(separator,): (&str,)| partition(text.split_once(separator), separator, [text, "", ""])),
        "rpartition" => from_args(arguments)
            .map(|(separator,): (&str,)| partition(text.rsplit_once(separator), separator, ["", "", text])),
        "removeprefix" => {
            from_args(arguments).map(|(prefix,): (&str,)| Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            from_args(arguments).map(|(suffix,): (&str,)| Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "rsplit" => {
            from_args(arguments).map(|(separator, most): (Option<&str>, Option<i64>)| rsplit(text, separator, most))
        }
        "index" => from_args(arguments).and_then(|(part,): (&str,)| found_at(text, text.find(part))),
        "rindex" => from_args(arguments).and_then(|(part,): (&str,)| found_at(text, text.rfind(part))),
        "ljust" | "rjust" | "center" => from_args(arguments)
            .and_then(|(width, fill): (usize, Option<&str>)| justify(text, name, width, fill.unwrap_or(" "))),
        "zfill" => from_args(arguments).and_then(|(width,): (usize,)| zfill(text, width)),
        "swapcase" => from_args(arguments).map(|()| Value::from(text.chars().map(swap_case).collect::<String>())),
        "casefold" => from_args(arguments).map(|()| Value::from(text.to_lowercase())),
        "isdecimal" => {
            from_args(arguments).map(|()| Value::from(!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())))
        }
        _ => return None,
    })
}

fn partition(found: Option<(&str, &str)>, separator: &str, otherwise: [&str; 3]) -> Value {
    let parts = found.map_or(otherwise, |(before, after)| [before, separator, after]);
    Value::from(Tuple::from(parts.map(Value::from)))
}

fn rsplit(text: &str, separator: Option<&str>, most: Option<i64>) -> Value {
    let pieces = most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most.saturating_add(1));
    let mut parts: Vec<String> = match separator {
        Some(separator) if !separator.is_empty() => text.rsplitn(pieces, separator).map(str::to_owned).collect(),
        _ => rsplit_blank(text, pieces),
    };
    parts.reverse();
    Value::from(parts)
}

/// Without a separator, runs of white space separate, and none is left at the ends.
fn rsplit_blank(text: &str, pieces: usize) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        match rest.rfind(char::is_whitespace).filter(|_| parts.len() + 1 < pieces) {
            Some(at) => {
                parts.push(rest[at..].trim_start().to_owned());
                rest = rest[..at].trim_end();
            }
            None => {
                parts.push(rest.to_owned());
                break;
            }
        }
    }
    parts
}

fn found_at(text: &str, at: Option<usize>) -> Result<Value, Error> {
    at.map(|at| Value::from(text[..at].chars().count()))
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "the text does not contain what `index` looks for"))
}

fn justify(text: &str, how: &str, width: usize, fill: &str) -> Result<Value, Error> {
    let missing = check_width(width)?.saturating_sub(text.chars().count());
    let left = match how {
        "ljust" => 0,
        "rjust" => missing,
        // Python puts the odd one to the left when the width is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    Ok(Value::from(format!("{}{text}{}", fill.repeat(left), fill.repeat(missing - left))))
}

fn zfill(text: &str, width: usize) -> Result<Value, Error> {
    let zeros = "0".repeat(check_width(width)?.saturating_sub(text.chars().count()));
    let (sign, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (&text[..1], digits),
        None => ("", text),
    };
    Ok(Value::from(format!("{sign}{zeros}{digits}")))
}

fn check_width(width: usize) -> Result<usize, Error> {
    match width <= PADDING_AT_MOST {
        true => Ok(width),
        false => Err(Error::new(ErrorKind::InvalidOperation, format!("a width is at most {PADDING_AT_MOST}"))),
    }
}

fn swap_case(character: char) -> char {
    match character.is_uppercase() {
        true => character.to_lowercase().next().unwrap_or(character),
        false => character.to_uppercase().next().unwrap_or(character),
    }
}

/// What CI-tron's own objects compute, here from plain mappings.
fn mapping_method(mapping: &Value, name: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    let text = |key: &str| {
        mapping
            .get_attr(key)
            .ok()
            .filter(|value| !value.is_undefined() && !value.is_none())
            .map(|value| value.to_string())
    };
    Some(match name {
        "path_to" => from_args(arguments).and_then(|(target,): (&str,)| {
            let url = text("url").ok_or_else(|| no_key("url"))?;
            Ok(Value::from(format!("{}/_/job/{}", url.trim_end_matches('/'), target.replace('.', "/"))))
        }),
        "to_b2c_nbd" => from_args(arguments).map(|(device,): (&str,)| {
            let parts = [
                ("host", text("hostname")),
                ("port", text("tcp_port")),
                ("name", text("name")),
                ("connections", text("max_connections")),
            ];
            Value::from(b2c_option("nbd", device, parts))
        }),
        "to_b2c_filesystem" => from_args(arguments).map(|(named,): (&str,)| {
            Value::from(b2c_option(
                "filesystem",
                named,
                [("type", text("type")), ("src", text("src")), ("opts", text("opts"))],
            ))
        }),
        "mount" => from_args(arguments).and_then(|(store,): (&str,)| mapping.get_attr("stores")?.get_attr(store)),
        "to_local_proxy" => from_args(arguments).and_then(|(image,): (&str,)| {
            let proxies = mapping.get_attr("proxies")?;
            Ok(Value::from(local_image(image, &proxies)))
        }),
        _ => return None,
    })
}

fn no_key(key: &str) -> Error {
    Error::new(ErrorKind::UndefinedError, format!("the mapping has no {}", quoted(key)))
}

fn b2c_option<const N: usize>(option: &str, name: &str, parts: [(&str, Option<String>); N]) -> String {
    let parts = parts.into_iter().filter_map(|(key, value)| value.map(|value| format!(",{key}={value}")));
    format!("b2c.{option}={name}{}", parts.collect::<String>())
}

/// `docker://registry.example/a/b:1` becomes `docker://10.0.0.1:5000/registry.example/a/b:1` where the registry has a local proxy. The
/// `docker://` stays where there is one and comes to nothing else (CI-tron's `RegistryConfig.to_local_proxy`).
fn local_image(image: &str, proxies: &Value) -> String {
    const SCHEME: &str = "docker://";
    let (scheme, bare) = image.strip_prefix(SCHEME).map_or(("", image), |bare| (SCHEME, bare));
    let is_host = |first: &str| first.contains(['.', ':']) || first == "localhost";
    // What has no host is Docker's, as container engines read it.
    let (host, path) = bare.split_once('/').filter(|(first, _)| is_host(first)).unwrap_or(("docker.io", bare));
    match proxies.get_attr(host).ok().filter(|proxy| !proxy.is_undefined()) {
        Some(proxy) => format!("{scheme}{}/{path}", proxy.to_string().trim_end_matches('/')),
        None => image.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn variables() -> Variables {
        let mut variables = Variables::new();
        variables.insert("machine_id", "52:54:00:11:22:33");
        variables.insert("machine_tags", ["cpu:arch", "it's"]);
        variables.insert("minio_url", "http://ci-gateway:9000");
        variables.insert("environ", json!({"CI_TRON_B": "2", "CI_TRON_A": "1", "HOME": "/"}));
        variables.insert("nothing", json!(null));
        variables.insert("flag", true);
        variables.insert(
            "job",
            json!({
                "http": {"url": "http://10.42.0.1:8080"},
                "nbd": {"swap": {"name": "swap", "hostname": "ci-gateway", "tcp_port": 10809, "max_connections": 4}},
            }),
        );
        variables.insert(
            "imagestore",
            json!({"stores": {"public": {"nfs": {"type": "nfs", "src": "10.42.0.1:/images", "opts": "ro|vers=4.2"}}}}),
        );
        let proxies = json!({"registry.freedesktop.org": "10.42.0.1:8002", "docker.io": "10.42.0.1:8001/docker.io"});
        variables.insert("registry", json!({"proxies": proxies}));
        variables
    }

    fn rendered(template: &str) -> String {
        render("job.yml", template, &variables(), &Limits::default())
            .unwrap_or_else(|problems| panic!("{template}: {problems}"))
            .text
    }

    fn problem(template: &str) -> Problem {
        render("job.yml", template, &variables(), &Limits::default()).expect_err(template).list()[0].clone()
    }

    #[test]
    fn templates_render_as_ci_tron_renders_them() {
        let table = [
            // undefined names print nothing, however far one walks
            ("[{{ nope }}]", "[]"),
            ("[{{ nope.a.b['c'].d }}]", "[]"),
            ("{% for x in nope.list %}x{% endfor %}", ""),
            ("{{ nope | default('x') }} {{ '' | default('y', true) }} {{ '' | default('z', boolean=true) }}", "x y z"),
            ("{{ nope | length }}", "0"),
            // Python's way to print
            ("{{ machine_tags }}", "['cpu:arch', \"it's\"]"),
            ("{{ nothing }} {{ flag }}", "None True"),
            // nothing is escaped in a file called job.yml
            ("{{ '<a href=\"x\">&' }}", "<a href=\"x\">&"),
            // one newline at the end is dropped
            ("a\n\n", "a\n"),
            // strict first line: emptied
            ("#!jinja2\nversion: 1", "\nversion: 1"),
            // loops over sorted mappings with a condition
            (
                "{% for k, v in environ | dictsort if k.startswith('CI_TRON_') %}{{ k }}={{ v }};{% endfor %}",
                "CI_TRON_A=1;CI_TRON_B=2;",
            ),
            ("{% for i in range(3) %}{{ i }}{% endfor %}", "012"),
            // Python's string methods
            ("{{ 'a,b,c'.split(',') }}", "['a', 'b', 'c']"),
            ("{{ 'a,b,c'.rsplit(',', 1) }}", "['a,b', 'c']"),
            ("{{ ' a  b c '.rsplit(None, 1) }}", "['a  b', 'c']"),
            ("{{ ' a b '.rsplit() }}", "['a', 'b']"),
            ("{{ 'k=v=w'.partition('=') }}", "('k', '=', 'v=w')"),
            ("{{ 'k=v=w'.rpartition('=')[0] }}", "k=v"),
            ("{{ 'k'.partition('=')[2] }}", ""),
            ("{{ '7'.zfill(3) }} {{ '-7'.zfill(4) }}", "007 -007"),
            ("{{ 'linux-x.img'.removeprefix('linux-').removesuffix('.img') }}", "x"),
            ("[{{ 'ab'.ljust(4) }}] [{{ 'ab'.rjust(4, '.') }}] [{{ 'ab'.center(5, '-') }}]", "[ab  ] [..ab] [--ab-]"),
            ("{{ 'abc'.index('c') }} {{ 'abcb'.rindex('b') }} {{ [1, 2].index(2) }}", "2 3 1"),
            ("{{ 'aBc'.swapcase() }} {{ 'ABC'.lower() }} {{ '12'.isdecimal() }}", "AbC abc True"),
            // filters that Jinja has and the engine has not, or has otherwise
            (
                "{{ 'x' | int }} {{ '5' | int + 1 }} {{ 'x' | int(7) }} {{ 'x' | float }} {{ '1.5' | float }}",
                "0 6 7 0.0 1.5",
            ),
            ("{{ 'a b/é' | urlencode }} {{ 'a  b c' | wordcount }} [{{ 'x' | center(5) }}]", "a%20b/%C3%A9 3 [  x  ]"),
            ("{{ 'Hello, World  x' | truncate(9) }} {{ 5 | filesizeformat }}", "Hello,... 5 Bytes"),
            // what CI-tron's objects compute
            ("{{ job.http.path_to('kernel') }}", "http://10.42.0.1:8080/_/job/kernel"),
            ("{{ job.http.path_to('initramfs.1') }}", "http://10.42.0.1:8080/_/job/initramfs/1"),
            (
                "{{ job.nbd.swap.to_b2c_nbd('/dev/nbd1') }}",
                "b2c.nbd=/dev/nbd1,host=ci-gateway,port=10809,name=swap,connections=4",
            ),
            (
                "{{ imagestore.mount('public').nfs.to_b2c_filesystem('store') }}",
                "b2c.filesystem=store,type=nfs,src=10.42.0.1:/images,opts=ro|vers=4.2",
            ),
            (
                "{{ registry.to_local_proxy('docker://registry.freedesktop.org/a/b:1') }}",
                "docker://10.42.0.1:8002/a/b:1",
            ),
            ("{{ registry.to_local_proxy('registry.freedesktop.org/a/b@sha256:0') }}", "10.42.0.1:8002/a/b@sha256:0"),
            ("{{ registry.to_local_proxy('quay.io/a/b') }}", "quay.io/a/b"),
            ("{{ registry.to_local_proxy('docker://localhost/a/b') }}", "docker://localhost/a/b"),
            ("{{ registry.to_local_proxy('docker://alpine:3') }}", "docker://10.42.0.1:8001/docker.io/alpine:3"),
            ("{{ registry.to_local_proxy('library/alpine') }}", "10.42.0.1:8001/docker.io/library/alpine"),
            ("[{{ job.nbd.other.to_b2c_nbd('/dev/nbd0') }}]", "[]"),
        ];
        for (template, expected) in table {
            assert_eq!(rendered(template), expected, "{template}");
        }
    }

    #[test]
    fn a_template_that_fails_says_where_and_why() {
        let table = [
            ("a\n  {{ 1 + }}", 2, "template: syntax error: unexpected end of variable block"),
            ("{{ 'x' | nofilter }}", 1, "template: unknown filter: filter nofilter is unknown"),
            (
                "a\n{{ nope + 1 }}",
                2,
                "template: invalid operation: tried to use + operator on unsupported types undefined and number",
            ),
            (
                "{{ 'abc'.index('x') }}",
                1,
                "template: invalid operation: the text does not contain what `index` looks for",
            ),
            ("{{ 'x'.ljust(100000000000) }}", 1, "template: invalid operation: a width is at most 10000"),
        ];
        for (template, line, what) in table {
            let problem = problem(template);
            assert_eq!((problem.location.map(|place| place.line), problem.what.as_str()), (Some(line), what));
        }
    }

    #[test]
    fn a_template_cannot_reach_files_or_code() {
        for template in [
            "{% include '/etc/passwd' %}",
            "{% import 'os' as os %}",
            "{% extends 'x' %}",
            "{{ ''.__class__.__mro__() }}",
        ] {
            problem(template);
        }
        assert_eq!(rendered("[{{ ''.__class__.__mro__ }}]"), "[]");
    }

    #[test]
    fn limits_end_a_template_that_asks_for_too_much() {
        let long_loop = "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}";
        assert_eq!(problem(long_loop).hint.as_deref(), Some("the template ran too long; make its loops shorter"));
        let much_output = "{% for a in range(10000) %}{{ 'x'.ljust(1000) }}{% endfor %}";
        assert_eq!(problem(much_output).what, "the template makes more than 1048576 bytes");
        assert_eq!(problem(&"x".repeat(70_000)).what, "the template has 70000 bytes; at most 65536 are rendered");
    }

    #[test]
    fn a_deep_chain_of_operators_does_not_overflow_the_stack() {
        let minus = format!("{{{{ {}1 }}}}", "-".repeat(60_000));
        let plus = format!("{{{{ {}1 }}}}", "1+".repeat(30_000));
        let dots = format!("{{{{ a{} }}}}", ".b".repeat(30_000));
        let pipes = format!("{{{{ 'a'{} }}}}", "|string".repeat(9_000));
        let branches = format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(5_000));
        for template in [minus, plus, dots, pipes, branches] {
            // Either answer is good; the process is still here to tell.
            let _ = render("job.yml", &template, &variables(), &Limits::default());
        }
    }

    #[test]
    fn inline_data_is_strict_only_when_it_says_so() {
        let inline = |text: &str| render_inline("data", text, &variables(), &Limits::default());
        assert_eq!(inline("id={{ machine_id }}\n"), Ok("id=52:54:00:11:22:33\n".to_owned()));
        assert_eq!(
            inline("#!/bin/sh\necho ${#x} {{ nope + 1 }}\n"),
            Ok("#!/bin/sh\necho ${#x} {{ nope + 1 }}\n".to_owned())
        );
        assert_eq!(inline("#!jinja2\n{{ 1 + 1 }}\n"), Ok("2\n".to_owned()));
        assert!(inline("#!jinja2\n{{ nope + 1 }}\n").is_err());
    }

    #[test]
    fn what_a_template_uses_can_be_listed() {
        let used = variables_used(
            "job.yml",
            "{% set x = 1 %}{{ x }}{{ machine_id }}{{ job.http.url }}{% for t in tags %}{{ t }}{% endfor %}",
        );
        assert_eq!(used, Ok(vec!["job.http.url".to_owned(), "machine_id".to_owned(), "tags".to_owned()]));
    }

    #[test]
    fn any_bytes_never_panic_the_template_engine() {
        let words = [
            "{{",
            "}}",
            "{%",
            "%}",
            "{#",
            "#}",
            " for ",
            "x",
            " in ",
            "if",
            "endif",
            "endfor",
            "|",
            "default",
            "(",
            ")",
            "[",
            "]",
            "'",
            "\"",
            "~",
            "-",
            "1",
            ".",
            "a",
            "é",
            "\n",
            "raw",
            "endraw",
            "set ",
            "=",
            "{",
            "}",
            "\u{0}",
            "macro m()",
            "endmacro",
            "not ",
            "is ",
            "#!jinja2\n",
        ];
        let mut random = crate::seeded::Random::new(0x5eed_0001);
        for _ in 0..1_000 {
            let template: String = (0..random.below(24)).map(|_| words[random.below(words.len())]).collect();
            let _ = render("job.yml", &template, &variables(), &Limits { fuel: 20_000, ..Limits::default() });
        }
    }
}
