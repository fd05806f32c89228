//! What a farm file says of a unit that speaks SNMP, and what is known of some. ◆
//!
//! ```text
//!  preset ─► columns, numbers, pause ─┐
//!  outlet_…, …_mapping, by hand ──────┴─ go before it ─► Table          version, community, passwords ─► Access
//! ```
//! Columns of the presets: PowerNet-MIB sPDUOutletControlTable and rPDU2OutletMeteredStatusTable (APC); CPS-MIB ePDUOutletControlTable, ePDUOutletStatusTable,
//! atsOutletStatusTable and atsOutletControlTable (CyberPower), as CI-tron's drivers of these names read and set them.

use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use snmp2::v3::{self, Auth, Cipher, KeyExtension, Security};

use super::agent::{Access, Agent, Column};
use super::{SnmpPdu, Table};
use crate::blueprint::driver::{self, Context, Mistake};
use crate::blueprint::power::{Pdu, address};

/// RFC 3417 section 3.
const PORT: u16 = 161;
/// RFC 3414 section 11.2: shorter passwords must not be.
const PASSWORD_CHARACTERS_MIN: usize = 8;
/// RFC 3411 section 5, SnmpEngineID.
const ENGINE_ID_BYTES: std::ops::RangeInclusive<usize> = 5..=32;
/// Where the numbers of `system_id` begin.
const ENTERPRISES: &str = "1.3.6.1.4.1";

/// A power unit that speaks SNMP.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["host"]))]
pub struct Keys {
    /// Its address or name, with a port where it is not 161.
    host: String,
    /// A unit whose identifiers are known here; those below go before its own.
    preset: Option<Preset>,
    /// 1, 2 (which is v2c) or 3; 1 when it is not said.
    version: Option<u8>,
    /// The community of v1 and v2c; `private` when it is not said.
    community: Option<String>,
    /// The user of v3.
    security_username: Option<String>,
    /// How messages of v3 are signed; without it they are not.
    auth_protocol: Option<AuthProtocol>,
    /// The password for that.
    auth_password: Option<String>,
    /// How messages of v3 are encrypted; without it they are not.
    privacy_protocol: Option<PrivacyProtocol>,
    /// The password for that.
    privacy_password: Option<String>,
    /// The unit's engine, in hexadecimal digits; asked of the unit when it is not said.
    security_engine_id: Option<String>,
    /// As `security_engine_id`: a context of another engine is not supported.
    context_engine_id: Option<String>,
    /// What all identifiers below begin with, after 1.3.6.1.4.1; they are whole when it is not said.
    system_id: Option<String>,
    /// The column with the outlets' labels.
    outlet_labels: Option<String>,
    /// The column with what they do.
    outlet_status: Option<String>,
    /// The column that switches them; that of the status when it is not said.
    outlet_ctrl: Option<String>,
    /// The column with the power that each draws.
    outlet_power: Option<String>,
    /// What one of that column is in watts; 1 when it is not said.
    outlet_power_multiplier: Option<f64>,
    /// The column with the energy that each has drawn.
    outlet_energy: Option<String>,
    /// What one of that column is in joules; 3600, a watt-hour, when it is not said.
    outlet_energy_multiplier: Option<f64>,
    /// What switches an outlet.
    state_mapping: Option<Mapping>,
    /// What the status says, where these are other numbers.
    inverse_state_mapping: Option<Mapping>,
}

/// The units whose identifiers are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Preset {
    /// APC's switched rack units.
    ApcMasterswitch,
    /// CyberPower PDU41004.
    CyberpowerPdu41004,
    /// CyberPower PDU15SWHVIEC12ATNET.
    CyberpowerPdu15swhviec12atnet,
}

/// What signs messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
enum AuthProtocol {
    #[serde(rename = "MD5")]
    Md5,
    #[serde(rename = "SHA")]
    Sha1,
    #[serde(rename = "SHA-224")]
    Sha224,
    #[serde(rename = "SHA-256")]
    Sha256,
    #[serde(rename = "SHA-384")]
    Sha384,
    #[serde(rename = "SHA-512")]
    Sha512,
}

/// What encrypts messages. `AES` is RFC 3826's, of 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
enum PrivacyProtocol {
    #[serde(rename = "DES")]
    Des,
    #[serde(rename = "AES")]
    Aes128,
    #[serde(rename = "AES-192")]
    Aes192,
    #[serde(rename = "AES-256")]
    Aes256,
}

/// A number for each thing that an outlet can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default)]
#[schemars(extend("required" = ["on", "off"]))]
pub(super) struct Mapping {
    /// It has power.
    pub(super) on: i64,
    /// It has none.
    pub(super) off: i64,
    /// It is off for a moment.
    pub(super) reboot: Option<i64>,
}

/// What is known of a kind of unit.
struct Known {
    labels: &'static str,
    status: &'static str,
    control: &'static str,
    power_watts: Option<(&'static str, f64)>,
    energy_joules: Option<(&'static str, f64)>,
    told: Mapping,
    says: Mapping,
    pause: Duration,
}

const ON_OFF_REBOOT: Mapping = Mapping { on: 1, off: 2, reboot: Some(3) };

/// A pause between two commands is what CI-tron's drivers keep to: 1 s, and 5 s for the cards of CyberPower, which ignore what comes earlier.
const PAUSE: Duration = Duration::from_secs(1);
const CYBERPOWER_PAUSE: Duration = Duration::from_secs(5);

impl Preset {
    fn known(self) -> Known {
        match self {
            Preset::ApcMasterswitch => Known {
                labels: "1.3.6.1.4.1.318.1.1.4.4.2.1.4",
                status: "1.3.6.1.4.1.318.1.1.4.4.2.1.3",
                control: "1.3.6.1.4.1.318.1.1.4.4.2.1.3",
                // rPDU2OutletMeteredStatusPower: watts (LibreNMS's discovery of APC). CI-tron's driver takes tens of watts, the unit of
                // rPDU2DeviceStatusPower: `outlet_power_multiplier`.
                power_watts: Some(("1.3.6.1.4.1.318.1.1.26.9.4.3.1.7", 1.0)),
                // Tenths of a kilowatt-hour.
                energy_joules: Some(("1.3.6.1.4.1.318.1.1.26.9.4.3.1.11", 360_000.0)),
                told: ON_OFF_REBOOT,
                says: ON_OFF_REBOOT,
                pause: PAUSE,
            },
            Preset::CyberpowerPdu41004 => Known {
                labels: "1.3.6.1.4.1.3808.1.1.3.3.3.1.1.2",
                status: "1.3.6.1.4.1.3808.1.1.3.3.3.1.1.4",
                control: "1.3.6.1.4.1.3808.1.1.3.3.3.1.1.4",
                power_watts: Some(("1.3.6.1.4.1.3808.1.1.3.3.5.1.1.8", 1.0)),
                energy_joules: None,
                told: ON_OFF_REBOOT,
                says: ON_OFF_REBOOT,
                pause: CYBERPOWER_PAUSE,
            },
            Preset::CyberpowerPdu15swhviec12atnet => Known {
                labels: "1.3.6.1.4.1.3808.1.1.5.6.3.1.2",
                status: "1.3.6.1.4.1.3808.1.1.5.6.3.1.3",
                control: "1.3.6.1.4.1.3808.1.1.5.6.5.1.3",
                power_watts: None,
                energy_joules: None,
                // Its card counts commands from 2 and states from 1.
                told: Mapping { on: 2, off: 3, reboot: Some(4) },
                says: ON_OFF_REBOOT,
                pause: CYBERPOWER_PAUSE,
            },
        }
    }
}

impl driver::Keys<dyn Pdu> for Keys {
    fn build(self, context: &Context<'_>) -> Result<Arc<dyn Pdu>, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let address = taken(address(&self.host, PORT), &mut mistakes);
        let access = taken(self.access(), &mut mistakes);
        let table = self.table(&mut mistakes);
        match (address, access, table) {
            (Some(address), Some(access), Some(table)) if mistakes.is_empty() => {
                Ok(Arc::new(SnmpPdu::new(context.outlet.cloned(), Agent::new(address, access), table)))
            }
            _ => Err(mistakes),
        }
    }
}

fn taken<T>(made: Result<T, Mistake>, mistakes: &mut Vec<Mistake>) -> Option<T> {
    made.map_err(|mistake| mistakes.push(mistake)).ok()
}

impl Keys {
    fn access(&self) -> Result<Access, Mistake> {
        let of_v3 = [
            ("security_username", self.security_username.is_some()),
            ("auth_protocol", self.auth_protocol.is_some()),
            ("auth_password", self.auth_password.is_some()),
            ("privacy_protocol", self.privacy_protocol.is_some()),
            ("privacy_password", self.privacy_password.is_some()),
            ("security_engine_id", self.security_engine_id.is_some()),
            ("context_engine_id", self.context_engine_id.is_some()),
        ];
        let version = self.version.unwrap_or(1);
        match (version, of_v3.iter().find(|(_, is_there)| *is_there)) {
            (1 | 2, Some((key, _))) => Err(Mistake::new(
                key,
                format!("version {version} has no `{key}`"),
                "write `version: 3`, or leave it out",
            )),
            (1, None) => Ok(Access::V1(self.community_or_default())),
            (2, None) => Ok(Access::V2c(self.community_or_default())),
            (3, _) if self.community.is_some() => {
                let hint = "leave it out, and write `security_username`";
                Err(Mistake::new("community", "version 3 has no community", hint))
            }
            (3, _) => self.security().map(|security| Access::V3(Box::new(security))),
            (other, _) => Err(Mistake::new("version", format!("there is no version {other}"), "write 1, 2 or 3")),
        }
    }

    fn community_or_default(&self) -> String {
        self.community.clone().unwrap_or_else(|| "private".to_owned())
    }

    fn security(&self) -> Result<Security, Mistake> {
        let Some(user) = self.security_username.as_deref().filter(|user| !user.is_empty()) else {
            return Err(Mistake::new("security_username", "version 3 needs a user", "write `security_username: …`"));
        };
        let of_auth = pair("auth", self.auth_protocol, self.auth_password.as_deref())?;
        let of_privacy = pair("privacy", self.privacy_protocol, self.privacy_password.as_deref())?;
        let security = match (of_auth, of_privacy) {
            (None, None) => Security::new(user.as_bytes(), b"").with_auth(Auth::NoAuthNoPriv),
            (None, Some(_)) => {
                let hint = "add `auth_protocol` and `auth_password`";
                return Err(Mistake::new("privacy_protocol", "what is encrypted must be signed, too", hint));
            }
            (Some((protocol, password)), privacy) => {
                let auth = privacy.map_or(Auth::AuthNoPriv, |(protocol, password)| Auth::AuthPriv {
                    cipher: protocol.into(),
                    privacy_password: password.as_bytes().to_vec(),
                });
                let security = Security::new(user.as_bytes(), password.as_bytes()).with_auth(auth);
                // Keys that a hash is too short for are made longer as net-snmp does it.
                security.with_auth_protocol(protocol.into()).with_key_extension_method(KeyExtension::Blumenthal)
            }
        };
        let engine = self.security_engine_id.as_deref().map(engine_id).transpose()?;
        let context = self.context_engine_id.as_deref();
        if context.is_some()
            && context.map(str::to_ascii_lowercase) != self.security_engine_id.as_deref().map(str::to_ascii_lowercase)
        {
            let hint = "leave it out, or write the same at `security_engine_id`";
            return Err(Mistake::new("context_engine_id", "a context of another engine is not supported", hint));
        }
        match engine {
            None => Ok(security),
            Some(id) => security
                .with_engine_id(&id)
                .map_err(|error| Mistake::new("security_engine_id", error.to_string(), "leave it out")),
        }
    }

    fn table(&self, mistakes: &mut Vec<Mistake>) -> Option<Table> {
        let known = self.preset.map(Preset::known);
        let mut column = |key: &str, said: &Option<String>, preset: Option<&str>| match (said, preset) {
            (Some(said), _) => taken(self.column(key, said), mistakes),
            (None, Some(preset)) => Some(Column::parse(preset).expect("the presets are well-formed")),
            (None, None) => None,
        };
        let labels = column("outlet_labels", &self.outlet_labels, known.as_ref().map(|known| known.labels));
        let status = column("outlet_status", &self.outlet_status, known.as_ref().map(|known| known.status));
        let control = column("outlet_ctrl", &self.outlet_ctrl, known.as_ref().map(|known| known.control));
        let preset = known.as_ref().and_then(|known| known.power_watts);
        let power = column("outlet_power", &self.outlet_power, preset.map(|(column, _)| column));
        let watts = self.outlet_power_multiplier.or(preset.map(|(_, unit)| unit)).unwrap_or(1.0);
        let preset = known.as_ref().and_then(|known| known.energy_joules);
        let energy = column("outlet_energy", &self.outlet_energy, preset.map(|(column, _)| column));
        let joules = self.outlet_energy_multiplier.or(preset.map(|(_, unit)| unit)).unwrap_or(3600.0);
        let told = self.state_mapping.or(known.as_ref().map(|known| known.told));
        let says = self.inverse_state_mapping.or(self.state_mapping).or(known.as_ref().map(|known| known.says));
        for (key, is_there) in [
            ("outlet_labels", labels.is_some() || self.outlet_labels.is_some()),
            ("outlet_status", status.is_some() || self.outlet_status.is_some()),
            ("state_mapping", told.is_some()),
        ] {
            if !is_there {
                let hint = "write it, or `preset`: `apc_masterswitch`, `cyberpower_pdu41004`, `cyberpower_pdu15swhviec12atnet`";
                mistakes.push(Mistake::new("", format!("`{key}` is missing, and so is `preset`"), hint));
            }
        }
        let (labels, status) = (labels?, status?);
        Some(Table {
            labels,
            control: control.unwrap_or_else(|| status.clone()),
            status,
            power: power.map(|column| (column, watts)),
            energy: energy.map(|column| (column, joules)),
            told: told?,
            says: says?,
            pause: known.map_or(PAUSE, |known| known.pause),
        })
    }

    /// An identifier by hand.
    fn column(&self, key: &str, said: &str) -> Result<Column, Mistake> {
        let whole = match &self.system_id {
            Some(system) => format!("{ENTERPRISES}.{system}.{said}"),
            None => said.to_owned(),
        };
        Column::parse(&whole)
            .map_err(|what| Mistake::new(key, what, "write numbers with dots: `1.3.6.1.4.1.318.1.1.4.4.2.1.3`"))
    }
}

/// A protocol with its password, or neither.
fn pair<'a, P>(key: &str, protocol: Option<P>, password: Option<&'a str>) -> Result<Option<(P, &'a str)>, Mistake> {
    match (protocol, password) {
        (None, None) => Ok(None),
        (Some(protocol), Some(password)) if password.chars().count() >= PASSWORD_CHARACTERS_MIN => {
            Ok(Some((protocol, password)))
        }
        (Some(_), Some(_)) => {
            let what = format!("it has fewer than {PASSWORD_CHARACTERS_MIN} characters");
            Err(Mistake::new(&format!("{key}_password"), what, "set a longer one, on the unit too"))
        }
        (Some(_), None) => {
            let key = format!("{key}_password");
            Err(Mistake::new(&key, format!("`{key}` is missing"), "write it, or leave the protocol out"))
        }
        (None, Some(_)) => {
            let key = format!("{key}_protocol");
            Err(Mistake::new(&key, format!("`{key}` is missing"), "write it, or leave the password out"))
        }
    }
}

fn engine_id(digits: &str) -> Result<Vec<u8>, Mistake> {
    let wrong = |what: &str| {
        Mistake::new(
            "security_engine_id",
            format!("`{digits}` {what}"),
            "write 5 to 32 bytes as hexadecimal digits, or leave it out",
        )
    };
    let bare = digits.strip_prefix("0x").unwrap_or(digits);
    if !bare.len().is_multiple_of(2) || !bare.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong("is not in pairs of hexadecimal digits"));
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).unwrap_or_default();
    let bytes: Vec<u8> = bare.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect();
    if ENGINE_ID_BYTES.contains(&bytes.len()) { Ok(bytes) } else { Err(wrong("has another length")) }
}

impl From<AuthProtocol> for v3::AuthProtocol {
    fn from(protocol: AuthProtocol) -> Self {
        match protocol {
            AuthProtocol::Md5 => v3::AuthProtocol::Md5,
            AuthProtocol::Sha1 => v3::AuthProtocol::Sha1,
            AuthProtocol::Sha224 => v3::AuthProtocol::Sha224,
            AuthProtocol::Sha256 => v3::AuthProtocol::Sha256,
            AuthProtocol::Sha384 => v3::AuthProtocol::Sha384,
            AuthProtocol::Sha512 => v3::AuthProtocol::Sha512,
        }
    }
}

impl From<PrivacyProtocol> for Cipher {
    fn from(protocol: PrivacyProtocol) -> Self {
        match protocol {
            PrivacyProtocol::Des => Cipher::Des,
            PrivacyProtocol::Aes128 => Cipher::Aes128,
            PrivacyProtocol::Aes192 => Cipher::Aes192,
            PrivacyProtocol::Aes256 => Cipher::Aes256,
        }
    }
}
