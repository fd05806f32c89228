//! What a machine says of itself when it registers: CI-tron's JSON, read once, and what of it a machine may say. ◆
//!
//! | key | a machine may say |
//! |---|---|
//! | `mac_address`, `ip_address`, `id` | its own, and nobody else's; may be left out |
//! | `base_name`, `tags`, `local_tty_device`, `firmware_boot_time`, `facts` | what it likes |
//! | `manual_tags`, `comment`, `ready_for_service`, `is_retired`, `pdu_off_delay`, `boot_sequence_power` | nothing: they are an admin's |

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use gateway::dhcp::Mac;
use serde::Deserialize;
use serde_json::Value;

/// Tags of one machine: a server with every PCI slot filled has some 150.
const TAGS_MAX: usize = 400;
/// Facts of one machine.
const FACTS_MAX: usize = 64;
/// The longest tag, fact or name.
const TEXT_BYTES_MAX: usize = 256;

/// What a machine said, checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    /// What kind of machine it is, as a part of a name.
    pub base_name: String,
    /// What jobs may ask for.
    pub tags: Vec<String>,
    /// Its serial port that the farm answered on.
    pub local_tty_device: Option<String>,
    /// From its power to its first request, as the machine measured it.
    pub firmware_boot_time_s: Option<f64>,
    /// For people.
    pub facts: BTreeMap<String, String>,
}

/// The JSON as it comes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    id: Option<String>,
    base_name: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
    mac_address: Option<String>,
    ip_address: Option<String>,
    local_tty_device: Option<String>,
    firmware_boot_time: Option<f64>,
    #[serde(default)]
    facts: BTreeMap<String, String>,
    manual_tags: Option<Value>,
    comment: Option<Value>,
    ready_for_service: Option<Value>,
    is_retired: Option<Value>,
    pdu_off_delay: Option<Value>,
    boot_sequence_power: Option<Value>,
}

/// Why a machine is not taken at its word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is not understood.
    Malformed(String),
    /// It is understood, and not the machine's to say.
    Forbidden(String),
}

/// Reads what the machine with this MAC, at this address, says.
pub fn read(json: &str, mac: Mac, address: Ipv4Addr) -> Result<Said, Refused> {
    let keys: Keys = serde_json::from_str(json).map_err(|error| malformed(format!("not a registration: {error}")))?;
    for (key, said, own) in [
        ("mac_address", &keys.mac_address, mac.to_string()),
        ("id", &keys.id, mac.to_string()),
        ("ip_address", &keys.ip_address, address.to_string()),
    ] {
        if let Some(said) = said.as_ref().filter(|said| said.to_ascii_lowercase().replace('-', ":") != own) {
            let said = said.escape_debug();
            let why = format!("`{key}` is `{said}`, but this is {mac} at {address}: a machine registers only itself");
            return Err(Refused::Forbidden(why));
        }
    }
    let of_an_admin = [
        ("manual_tags", &keys.manual_tags),
        ("comment", &keys.comment),
        ("ready_for_service", &keys.ready_for_service),
        ("is_retired", &keys.is_retired),
        ("pdu_off_delay", &keys.pdu_off_delay),
        ("boot_sequence_power", &keys.boot_sequence_power),
    ];
    if let Some((key, _)) = of_an_admin.iter().find(|(_, said)| said.is_some()) {
        return Err(Refused::Forbidden(format!("`{key}` is for an admin to say; leave it out")));
    }
    check(&keys)?;
    Ok(Said {
        base_name: base_name(keys.base_name.as_deref().unwrap_or_default()),
        tags: once_each(keys.tags),
        local_tty_device: keys.local_tty_device,
        firmware_boot_time_s: keys.firmware_boot_time.filter(|time| time.is_finite() && *time >= 0.0),
        facts: keys.facts,
    })
}

fn check(keys: &Keys) -> Result<(), Refused> {
    let texts = keys.tags.iter().chain(keys.facts.keys()).chain(keys.facts.values());
    for text in texts.chain(&keys.base_name).chain(&keys.local_tty_device) {
        if text.len() > TEXT_BYTES_MAX {
            return Err(malformed(format!("a text of {} bytes; {TEXT_BYTES_MAX} are the most", text.len())));
        }
        if text.chars().any(char::is_control) {
            return Err(malformed(format!("`{}` has control characters", text.escape_debug())));
        }
    }
    if let Some(tag) = keys.tags.iter().find(|tag| tag.is_empty() || tag.starts_with("farm:")) {
        let why =
            format!("`{tag}` is no tag for a machine to give itself: `farm:…` is the farm's, and it is not empty");
        return Err(Refused::Forbidden(why));
    }
    if keys.tags.len() > TAGS_MAX || keys.facts.len() > FACTS_MAX {
        let (tags, facts) = (keys.tags.len(), keys.facts.len());
        return Err(malformed(format!(
            "{tags} tags and {facts} facts; {TAGS_MAX} tags and {FACTS_MAX} facts are the most"
        )));
    }
    Ok(())
}

fn malformed(why: String) -> Refused {
    Refused::Malformed(why)
}

fn once_each(tags: Vec<String>) -> Vec<String> {
    let mut once = Vec::new();
    for tag in tags {
        if !once.contains(&tag) {
            once.push(tag);
        }
    }
    once
}

/// A part of a DUT's name: lower case, digits and single dashes.
pub fn base_name(said: &str) -> String {
    let lower = said.to_lowercase();
    let words: Vec<&str> = lower.split(|letter: char| !letter.is_ascii_alphanumeric()).collect();
    let name = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-");
    let name: String = name.chars().take(32).collect();
    if name.is_empty() { "dut".to_owned() } else { name.trim_end_matches('-').to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0x77, 0, 0x0a]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);

    fn said(json: &str) -> Result<Said, Refused> {
        read(json, MAC, ADDRESS)
    }

    #[test]
    fn what_ci_tron_s_container_posts_is_read() {
        let read = said(
            r#"{"base_name": "Navi 21", "tags": ["amdgpu:pciid:0x1002:0x73bf", "amdgpu:family:NV", "amdgpu:family:NV"],
                "mac_address": "52:54:00:77:00:0A", "ip_address": "10.77.0.100", "local_tty_device": null}"#,
        );
        let expected = Said {
            base_name: "navi-21".into(),
            tags: vec!["amdgpu:pciid:0x1002:0x73bf".into(), "amdgpu:family:NV".into()],
            ..Said::default()
        };
        assert_eq!(read, Ok(expected));
        assert_eq!(said("{}").unwrap().base_name, "dut");
    }

    #[test]
    fn a_machine_registers_only_itself_and_says_nothing_that_is_an_admin_s() {
        let forbidden = |json: &str| match said(json) {
            Err(Refused::Forbidden(why)) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            forbidden(r#"{"mac_address": "52:54:00:77:00:0b"}"#),
            "`mac_address` is `52:54:00:77:00:0b`, but this is 52:54:00:77:00:0a at 10.77.0.100: a machine registers only itself"
        );
        assert!(forbidden(r#"{"id": "left"}"#).starts_with("`id` is `left`"));
        assert!(forbidden(r#"{"ip_address": "10.77.0.1"}"#).starts_with("`ip_address` is `10.77.0.1`"));
        assert_eq!(
            forbidden(r#"{"ready_for_service": true}"#),
            "`ready_for_service` is for an admin to say; leave it out"
        );
        assert!(forbidden(r#"{"tags": ["farm:other"]}"#).starts_with("`farm:other` is no tag"));
    }

    #[test]
    fn what_is_no_registration_is_told_so_and_costs_nothing() {
        for (json, why) in [
            ("", "not a registration: EOF"),
            ("[]", "not a registration: invalid"),
            (r#"{"tags": "one"}"#, "not a registration: invalid type"),
            (r#"{"colour": "red"}"#, "not a registration: unknown field `colour`"),
            (r#"{"tags": ["a\nb"]}"#, "`a\\nb` has control characters"),
            (&format!(r#"{{"base_name": "{}"}}"#, "x".repeat(257)), "a text of 257 bytes; 256 are the most"),
            (&format!(r#"{{"tags": [{}"b"]}}"#, "\"a\",".repeat(400)), "401 tags and 0 facts;"),
        ] {
            match said(json) {
                Err(Refused::Malformed(told)) => assert!(told.starts_with(why), "{told}"),
                other => panic!("{json}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_base_name_is_a_part_of_a_name_whatever_it_was() {
        assert_eq!(base_name("Standard PC (Q35 + ICH9, 2009)"), "standard-pc-q35-ich9-2009");
        assert_eq!(base_name("…"), "dut");
        assert_eq!(base_name(&"ab ".repeat(30)).len(), 32);
    }
}
