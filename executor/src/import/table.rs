//! A mapping of somebody else's file, read key by key: every mistake is told at its place, and what nobody asked for is what is left. ◆
//!
//! ```text
//!  {mac_address: …, gitlab: …} ── text("mac_address") ─► the value, or a mistake
//!                              └─ rest() ──────────────► gitlab
//! ```

use job_schema::Findings;
use job_schema::problem::quoted;
use serde_json::{Map, Value};

/// A mapping, and where it is.
pub struct Table {
    at: Vec<String>,
    said: Map<String, Value>,
}

impl Table {
    /// The value at `at`; nothing there is an empty mapping.
    pub fn of(at: &[String], value: Value, findings: &mut Findings) -> Table {
        let said = match value {
            Value::Object(said) => said,
            Value::Null => Map::new(),
            _ => {
                findings.tell(at, "this is no mapping".into(), "write `key: value` lines");
                Map::new()
            }
        };
        Table { at: at.to_vec(), said }
    }

    /// Where `key` of it is.
    pub fn at(&self, key: &str) -> Vec<String> {
        self.at.iter().cloned().chain([key.to_owned()]).collect()
    }

    /// Takes a value out.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        // In the file's order, whatever is taken out.
        self.said.shift_remove(key).filter(|value| !value.is_null())
    }

    /// The mapping below `key`.
    pub fn table(&mut self, key: &str, findings: &mut Findings) -> Table {
        let value = self.take(key).unwrap_or_default();
        Table::of(&self.at(key), value, findings)
    }

    /// Its entries, in the file's order, each with its name.
    pub fn entries(self, findings: &mut Findings) -> Vec<(String, Table)> {
        let at = self.at;
        let below = |name: &String| at.iter().cloned().chain([name.clone()]).collect::<Vec<String>>();
        let tables = self.said.into_iter().map(|(name, value)| {
            let table = Table::of(&below(&name), value, findings);
            (name, table)
        });
        tables.collect()
    }

    /// A text; a number does as well, as an outlet's name or a comment may be one.
    pub fn text(&mut self, key: &str, findings: &mut Findings) -> Option<String> {
        match self.take(key)? {
            Value::String(text) => Some(text),
            Value::Number(number) => Some(number.to_string()),
            _ => self.wrong(key, "a text", findings),
        }
    }

    /// A text that must be there.
    pub fn needed(&mut self, key: &str, findings: &mut Findings) -> Option<String> {
        if self.said.get(key).is_none_or(|value| value.is_null()) {
            findings.tell(&self.at, format!("the key `{key}` is missing"), &format!("add `{key}:`"));
            return None;
        }
        self.text(key, findings)
    }

    /// True or false.
    pub fn truth(&mut self, key: &str, findings: &mut Findings) -> Option<bool> {
        match self.take(key)? {
            Value::Bool(truth) => Some(truth),
            _ => self.wrong(key, "true or false", findings),
        }
    }

    /// A number of seconds.
    pub fn seconds(&mut self, key: &str, findings: &mut Findings) -> Option<f64> {
        match self.take(key)?.as_f64() {
            Some(seconds) if seconds >= 0.0 => Some(seconds),
            _ => self.wrong(key, "a number of seconds", findings),
        }
    }

    /// A list of texts.
    pub fn texts(&mut self, key: &str, findings: &mut Findings) -> Vec<String> {
        let items = match self.take(key) {
            None => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(_) => return self.wrong(key, "a list of texts", findings).unwrap_or_default(),
        };
        let text = |item: Value| match item {
            Value::String(text) => Some(text),
            Value::Number(number) => Some(number.to_string()),
            _ => self.wrong(key, "a list of texts", findings),
        };
        items.into_iter().filter_map(text).collect()
    }

    /// What nobody took.
    pub fn rest(self) -> Vec<(Vec<String>, Value)> {
        let at = self.at;
        let below = |name: &str| at.iter().cloned().chain([name.to_owned()]).collect();
        self.said
            .iter()
            .filter(|(_, value)| !is_empty(value))
            .map(|(name, value)| (below(name), value.clone()))
            .collect()
    }

    /// What nobody took, as a mapping.
    pub fn into_said(self) -> Map<String, Value> {
        self.said
    }

    fn wrong<T>(&self, key: &str, wanted: &str, findings: &mut Findings) -> Option<T> {
        findings.tell(&self.at(key), format!("{} is not {wanted}", quoted(key)), &format!("write {wanted}"));
        None
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(said) => said.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}
