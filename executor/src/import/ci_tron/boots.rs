//! CI-tron's boots database as ours. ◆
//!
//! ```text
//!  fastboot: {phone: {match: {usb: {iSerialNumber: …}}, defaults}}
//!     └─► {match: {tags: ['boots:phone']}, defaults}      and the tag for the machines that it names
//!  dhcp: {…} ─► Left: our boot methods answer firmware
//! ```
//! CI-tron renders the file before it reads it. Here it is read as it is: `{{ … }}` inside texts stays, `{% … %}` around lines is a mistake.

use std::collections::BTreeMap;

use job_schema::problem::{Problem, Problems};
use job_schema::{Findings, Location, load_checked};
use serde_json::{Value, json};

use super::{Left, Reader, Source};
use crate::import::table::Table;
use crate::inventory::Entry;

/// What is made of it.
pub(super) struct Boots {
    entries: Vec<Value>,
    /// The serial numbers that each tag is for.
    serials: Vec<(String, Vec<String>)>,
    pub(super) left: Vec<Left>,
}

pub(super) fn read(source: Source<'_>) -> Result<Boots, Problems> {
    if let Some(problem) = block(source.text) {
        return Err(Problems::one(source.name, source.text, problem));
    }
    load_checked::<Value, _>(source.name, source.text, |value, findings| {
        let mut reader = Reader { source: source.name, left: Vec::new() };
        let mut boots = Boots { entries: Vec::new(), serials: Vec::new(), left: Vec::new() };
        let mut top = Table::of(&[], value, findings);
        for (name, table) in top.table("fastboot", findings).entries(findings) {
            reader.fastboot(&name, table, &mut boots, findings);
        }
        for (at, _) in top.rest() {
            let why = match at[0].as_str() {
                "dhcp" => "firmware is answered by this farm's boot methods; see docs/protocols/booting.md",
                _ => "has no counterpart in this farm",
            };
            reader.leave(&at, why, findings);
        }
        Boots { left: reader.left, ..boots }
    })
}

/// A template's statement: what it holds cannot be told without running it.
fn block(text: &str) -> Option<Problem> {
    let uncommented = |line: &&str| line.split('#').next().is_some_and(|line| line.contains("{%"));
    let line = text.lines().find(uncommented)?;
    let start = line.as_ptr() as usize - text.as_ptr() as usize + line.find("{%")?;
    let problem = Problem::new("a template's statement stands around the entries");
    let hint = "write its entries out, each with its own values, and import again";
    Some(problem.at(Location::of_span(text, start, start + 2)).hint(hint))
}

impl Reader<'_> {
    fn fastboot(&mut self, name: &str, mut table: Table, boots: &mut Boots, findings: &mut Findings) {
        let mut matches = table.table("match", findings);
        let mut usb = matches.table("usb", findings);
        let serials = one_or_many(usb.take("iSerialNumber"));
        for (at, _) in usb.rest() {
            self.leave(&at, "a loader is known by its serial number", findings);
        }
        for (at, _) in matches.rest() {
            self.leave(&at, "a loader is known by its serial number", findings);
        }
        let tag = format!("boots:{name}");
        let defaults = table.take("defaults");
        for (at, _) in table.rest() {
            self.leave(&at, "is not read by CI-tron either", findings);
        }
        if serials.is_empty() && defaults.is_some() {
            let why = format!(
                "machines get its entry by the tag `{tag}`: `wharf dut set NAME --tag {tag}`, beside its others"
            );
            self.leave(&matches_of(name), why, findings);
        }
        // Without defaults there is nothing that a tag would give.
        if let Some(defaults) = defaults {
            boots.entries.push(json!({"match": {"tags": [tag]}, "defaults": defaults}));
            boots.serials.push((tag, serials));
        }
    }
}

fn matches_of(name: &str) -> [String; 3] {
    ["fastboot", name, "match"].map(str::to_owned)
}

fn one_or_many(value: Option<Value>) -> Vec<String> {
    let text = |value: Value| match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    match value {
        Some(Value::Array(items)) => items.into_iter().filter_map(text).collect(),
        Some(value) => text(value).into_iter().collect(),
        None => Vec::new(),
    }
}

impl Boots {
    /// Gives the entries' tags to the machines that they name by their serial number.
    pub(super) fn tag(&self, duts: &mut BTreeMap<String, Entry>) {
        for (tag, serials) in &self.serials {
            for (_, dut) in duts.iter_mut().filter(|(id, _)| serials.contains(id)) {
                if !dut.manual_tags.contains(tag) {
                    dut.manual_tags.push(tag.clone());
                }
            }
        }
    }

    pub(super) fn text(&self) -> String {
        let head = "# Made by `wharf import ci-tron`: what jobs on these boards start from.\n";
        let text = serde_yaml::to_string(&json!({"boots": self.entries}));
        format!("{head}{}", text.expect("texts and numbers always become YAML"))
    }
}
