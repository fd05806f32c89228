//! `wharf pdus --discover`: power units that tell of themselves, as lines for the farm file.

use std::process::ExitCode;

use bytes::Bytes;

use super::client::Server;
use super::view::print;
use crate::api::wire::found_pdus::FoundPdusWire;

/// Looks for them, and prints what to paste.
pub async fn run(listen_s: Option<u64>, form: Form, server: Option<String>) -> anyhow::Result<ExitCode> {
    let query = listen_s.map(|seconds| format!("?listen_s={seconds}")).unwrap_or_default();
    let path = format!("/api/v1/pdus/discover{query}");
    let found: FoundPdusWire = Server::find(server)?.post(&path, None, Bytes::new()).await?;
    match form {
        Form::Json => print(&serde_json::to_string_pretty(&found)?)?,
        Form::Lines => print(drawn(&found).trim_end())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// How it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For programs.
    Json,
    /// For the farm file.
    Lines,
}

/// YAML: everything that is not an entry is a comment.
fn drawn(found: &FoundPdusWire) -> String {
    let mut lines = String::new();
    for problem in &found.problems {
        lines += &format!("# not looked at: {problem}\n");
    }
    for unit in &found.units {
        match &unit.known_as {
            Some(name) => lines += &format!("# {} ({}) is `{name}` already\n", unit.what, unit.heard),
            None => lines += &format!("# {} ({})\n{}", unit.what, unit.heard, unit.entry),
        }
    }
    if let Some(unit) = found.units.iter().find(|unit| unit.known_as.is_none()) {
        lines += &format!("# paste what you want under `pdus`, or adopt it as it is: wharf pdu adopt {}\n", unit.name);
    }
    if found.units.is_empty() {
        lines +=
            "# no power unit told of itself; Devantech and KernelChip boards, and plugs of another network, never do\n";
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_found_can_be_pasted_into_the_farm_file() {
        let unit = json!({
            "name": "strip", "what": "a Shelly", "heard": "mDNS: _shelly._tcp", "address": "10.0.0.30", "driver": "shelly",
            "entry": "- name: strip\n  shelly: {host: 10.0.0.30}\n", "known_as": null,
        });
        let mut known = unit.clone();
        known["known_as"] = json!("rack");
        let found = json!({ "units": [unit, known], "problems": ["USB: Permission denied"] });
        let expected = "# not looked at: USB: Permission denied\n# a Shelly (mDNS: _shelly._tcp)\n- name: strip\n  shelly: {host: 10.0.0.30}\n\
                        # a Shelly (mDNS: _shelly._tcp) is `rack` already\n\
                        # paste what you want under `pdus`, or adopt it as it is: wharf pdu adopt strip\n";
        assert_eq!(drawn(&serde_json::from_value(found).unwrap()), expected);
    }
}
