//! Power units as CI-tron's clients read them, and ours: its keys, then our own.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::blueprint::power::{Errand, PowerState, ReadBack};
use crate::farm::{Origin, PduView};
use crate::outlets::{OutletView, UnitState};

/// All power units, by name.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PdusWire {
    /// By name.
    pub pdus: BTreeMap<String, PowerUnitWire>,
}

/// A power unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PowerUnitWire {
    /// Its outlets, by name, as far as they are known.
    pub ports: BTreeMap<String, PortWire>,
    /// `CREATED` while nothing was asked of it, `OK`, or `ERROR`.
    pub state: String,
    /// What went wrong last.
    pub error: Option<String>,
    /// Its driver.
    pub driver: String,
    /// False when it cannot be asked: its states are what it was told.
    pub reads_back: bool,
    /// What people are asked to do at it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errands: Vec<ErrandWire>,
    /// True when it is not in the farm file: an admin adopted it.
    #[serde(default)]
    pub adopted: bool,
}

/// A unit that was adopted.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct AdoptedWire {
    /// Its name.
    pub name: String,
    /// How it is.
    #[serde(flatten)]
    pub pdu: PowerUnitWire,
}

/// What a person is asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrandWire {
    /// At which outlet.
    pub outlet: String,
    /// Switch it `on` or `off`.
    pub state: PowerState,
    /// How long it has been waiting, in seconds.
    pub waits_s: f64,
    /// What the farm file says to that person.
    pub instructions: Option<String>,
}

/// That a person did it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SwitchedWire {
    /// What the outlet does now; what was asked for, when it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<PowerState>,
}

/// An outlet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PortWire {
    /// What it is called in the unit's own settings.
    pub label: Option<String>,
    /// The least time without power, in seconds.
    pub min_off_time: f64,
    /// As it was last read: `ON`, `OFF`, or `UNKNOWN`.
    pub state: String,
    /// When it went off last, as far as we saw: an HTTP date.
    pub last_shutdown: Option<String>,
    /// When it was read: an HTTP date.
    pub last_polled: Option<String>,
    /// Whether nobody may switch it.
    pub reserved: bool,
    /// What it draws, in watts, where something measures it.
    pub instant_power: Option<f64>,
    /// What it drew since the server began to look, in joules.
    pub energy: Option<f64>,
    /// The full name of the machine on it.
    pub dut: Option<String>,
}

impl PowerUnitWire {
    /// As it is.
    pub fn of(pdu: &PduView) -> PowerUnitWire {
        let (state, error) = match &pdu.state {
            UnitState::New => ("CREATED", None),
            UnitState::Ok => ("OK", None),
            UnitState::Failing(error) => ("ERROR", Some(error.clone())),
        };
        PowerUnitWire {
            ports: pdu.outlets.iter().map(|outlet| (outlet.name.clone(), PortWire::of(outlet))).collect(),
            state: state.to_owned(),
            error,
            driver: pdu.driver.to_owned(),
            reads_back: pdu.read_back == ReadBack::Asked,
            errands: pdu.errands.iter().map(ErrandWire::of).collect(),
            adopted: pdu.origin == Origin::Adopted,
        }
    }
}

impl ErrandWire {
    fn of(errand: &Errand) -> ErrandWire {
        ErrandWire {
            outlet: errand.outlet.0.clone(),
            state: errand.state,
            waits_s: errand.waits.as_secs_f64(),
            instructions: errand.instructions.clone(),
        }
    }
}

impl PortWire {
    /// As it is.
    pub fn of(outlet: &OutletView) -> PortWire {
        let state = match outlet.state {
            Some(PowerState::On) => "ON",
            Some(PowerState::Off) => "OFF",
            None => "UNKNOWN",
        };
        PortWire {
            label: outlet.label.clone(),
            min_off_time: outlet.off_time.as_secs_f64(),
            state: state.to_owned(),
            last_shutdown: outlet.last_off.map(http_date),
            last_polled: outlet.read_at.map(http_date),
            reserved: outlet.reserved,
            instant_power: outlet.watts,
            energy: outlet.joules,
            dut: outlet.dut.clone(),
        }
    }
}

/// What an admin wants of an outlet. CI-tron's keys; `state` is `on` or `off` in any case.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PortWishWire {
    /// `on` or `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Whether nobody may switch it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "truth")]
    pub reserved: Option<bool>,
    /// The least time without power, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_off_time: Option<f64>,
}

/// True or false; CI-tron's server wants them as a text, `"True"`.
fn truth<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Said {
        Truth(bool),
        Text(String),
    }
    match Option::<Said>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Said::Truth(truth)) => Ok(Some(truth)),
        Some(Said::Text(text)) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
        Some(Said::Text(text)) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
        Some(Said::Text(text)) => Err(D::Error::custom(format!("`{text}` is neither true nor false"))),
    }
}

/// How the programs of others name the outlet of a lease.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ServedPowerWire {
    /// The lease's key: whoever has it may switch.
    pub key: String,
    /// `host` of labgrid's `NetworkPowerPort` with `model: rest`.
    pub rest: String,
    /// The same with `model: simplerest`.
    pub simplerest: String,
    /// pdudaemon's API: `hostname` is the key, `port` the outlet.
    pub pdudaemon: String,
    /// The outlet's name.
    pub outlet: String,
}

/// The longest off-time that anybody may ask for: longer is `off`.
pub const OFF_TIME_MAX: Duration = Duration::from_secs(3600);

/// RFC 9110 section 5.6.7, as Flask writes every date.
pub fn http_date(at: jiff::Timestamp) -> String {
    at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outlet_has_the_keys_of_ci_tron() {
        let outlet = OutletView {
            name: "7".into(),
            label: Some("left shelf".into()),
            state: Some(PowerState::Off),
            read_at: Some("2026-11-20T23:35:13Z".parse().unwrap()),
            last_off: None,
            off_time: Duration::from_millis(1500),
            reserved: false,
            dut: Some("lab-dut-1".into()),
            watts: Some(3.5),
            joules: None,
        };
        let expected = r#"{"label":"left shelf","min_off_time":1.5,"state":"OFF","last_shutdown":null,"last_polled":"Fri, 20 Nov 2026 23:35:13 GMT","reserved":false,"instant_power":3.5,"energy":null,"dut":"lab-dut-1"}"#;
        assert_eq!(serde_json::to_string(&PortWire::of(&outlet)).unwrap(), expected);
    }
}
