//! What a job's templates may name, as a table: `wharf check` shows each name as a job writes it, with its value for one DUT.
//!
//! ```text
//!  Variables ─ walked ─► job.http.url, machine.tags, job.nbd["root-fs"].port … ─┐
//!  what is called: job.http.path_to("kernel") … ─ rendered in a child ──────────┴─► rows
//! ```

use gateway::namespace::Name;
use job_schema::problem::Problems;
use serde_json::Value;

use super::prepare::Prepared;
use crate::render;

/// The rows: a name, and what it prints.
pub(super) async fn of(prepared: &Prepared) -> Result<Vec<[String; 2]>, Problems> {
    let mut rows = Vec::new();
    let all = serde_json::to_value(&prepared.variables).unwrap_or_default();
    for (name, value) in all.as_object().into_iter().flatten() {
        // CI-tron's older word for the same.
        if name != "machine" {
            walk(name, value, &mut rows);
        }
    }
    let calls = calls(prepared, &all);
    let templates = calls.iter().map(|call| format!("{{{{ {call} }}}}")).collect();
    let said = render::texts_in_child(&prepared.source_name, templates, &prepared.variables).await?;
    rows.extend(calls.into_iter().zip(said).map(|(call, said)| [call, said]));
    rows.sort();
    Ok(rows)
}

fn walk(name: &str, value: &Value, rows: &mut Vec<[String; 2]>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| walk(&format!("{name}{}", step(key)), value, rows));
        }
        Value::String(text) => rows.push([name.to_owned(), text.clone()]),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
            rows.push([name.to_owned(), value.to_string()]);
        }
    }
}

/// A key behind a name: what is no word stands in brackets.
fn step(key: &str) -> String {
    let is_word = key.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
        && key.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_');
    if is_word { format!(".{key}") } else { format!("[{key:?}]") }
}

/// What is called, with what it is called with: paths of what the first boot has, and disks.
fn calls(prepared: &Prepared, all: &Value) -> Vec<String> {
    let names = prepared.start.artifacts.iter().map(|planned| match &planned.name {
        Name::Exact(name) | Name::Matching(name, _) => (planned.protocol, name),
    });
    let of_files = names.filter_map(|(protocol, name)| {
        let file = name.strip_prefix("/_/job/")?.replace('/', ".");
        Some(format!("job.{}.path_to({file:?})", protocol.to_string().to_lowercase()))
    });
    let disks = all["job"]["nbd"].as_object().into_iter().flatten().enumerate();
    let of_disks = disks.map(|(index, (name, _))| format!("job.nbd{}.to_b2c_nbd(\"/dev/nbd{index}\")", step(name)));
    of_files.chain(of_disks).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_as_a_template_writes_them() {
        let mut rows = Vec::new();
        walk("job", &serde_json::json!({"nbd": {"root-fs": {"port": 10809}}, "tags": ["a"]}), &mut rows);
        let row = |name: &str, value: &str| [name.to_owned(), value.to_owned()];
        assert_eq!(rows, [row("job.nbd[\"root-fs\"].port", "10809"), row("job.tags", "[\"a\"]")]);
    }
}
