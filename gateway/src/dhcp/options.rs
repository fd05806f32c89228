//! DHCP options that a job asks for: from names and values as people write them to numbers and bytes. ◆
//!
//! ```text
//!  deployment.dhcp:  match ────────────► who is told: DhcpMatch, asked of each request
//!                    options ── name ──► number (NAMES, or the number itself)
//!                               value ─► bytes, by the number's form:  text · address(es) · u8 · u16 · u32 · raw
//! ```
//! An option whose number has no form here takes text as it is, a number 0 to 255 or a list of such as bytes, and `hex:01:02` as bytes.

use core::net::Ipv4Addr;

use job_schema::job::{DhcpEntry, DhcpMatch};
use serde_json::Value;

use super::boot::{Architecture, is_settable};
use super::request::{ClientKind, Request};

/// An option's data at most: its length is one byte (RFC 2132 2). Longer ones would be split (RFC 3396), which firmware does not join.
const OPTION_BYTES_MAX: usize = 255;

/// What a job adds to the replies for some of its DUT's clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extra {
    /// To whom: all of these have to accept the request.
    pub matches: Vec<DhcpMatch>,
    /// Numbers and raw values; they replace what the reply would say under the same number.
    pub options: Vec<(u8, Vec<u8>)>,
    /// The server of the boot file (`siaddr`), when the job names another.
    pub next_server: Option<Ipv4Addr>,
}

/// How an option's value is written on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Addresses,
    U8,
    U16,
    U32,
    Raw,
}

/// Names of options (RFC 2132 and its followers; words joined by `_`), their numbers and forms. Where a number stands twice, all its
/// names are right.
const NAMES: &[(&str, u8, Form)] = &[
    ("subnet_mask", 1, Form::Addresses),
    ("time_offset", 2, Form::U32),
    ("router", 3, Form::Addresses),
    ("routers", 3, Form::Addresses),
    ("time_server", 4, Form::Addresses),
    ("dns_server", 6, Form::Addresses),
    ("domain_name_server", 6, Form::Addresses),
    ("domain_name_servers", 6, Form::Addresses),
    ("log_server", 7, Form::Addresses),
    ("hostname", 12, Form::Text),
    ("host_name", 12, Form::Text),
    ("boot_file_size", 13, Form::U16),
    ("domain_name", 15, Form::Text),
    ("root_path", 17, Form::Text),
    ("extensions_path", 18, Form::Text),
    ("interface_mtu", 26, Form::U16),
    ("broadcast_address", 28, Form::Addresses),
    ("ntp_server", 42, Form::Addresses),
    ("ntp_servers", 42, Form::Addresses),
    ("vendor_specific", 43, Form::Raw),
    ("vendor_specific_information", 43, Form::Raw),
    ("lease_time", 51, Form::U32),
    ("vendor_class", 60, Form::Text),
    ("vendor_class_identifier", 60, Form::Text),
    ("server_name", 66, Form::Text),
    ("tftp_server", 66, Form::Text),
    ("tftp_server_name", 66, Form::Text),
    ("bootfile", 67, Form::Text),
    ("bootfile_name", 67, Form::Text),
    ("boot_file", 67, Form::Text),
    ("boot_filename", 67, Form::Text),
    ("user_class", 77, Form::Text),
    ("domain_search", 119, Form::Raw),
    ("tftp_server_address", 150, Form::Addresses),
    ("pxelinux_magic", 208, Form::Raw),
    ("pxelinux_config_file", 209, Form::Text),
    ("pxelinux_path_prefix", 210, Form::Text),
    ("pxelinux_reboot_time", 211, Form::U32),
];

impl Extra {
    /// Reads one entry of a job, or says what is wrong with each of its options.
    pub fn read(entry: &DhcpEntry) -> Result<Extra, Vec<String>> {
        let mut extra = Extra { matches: vec![entry.match_.clone()], ..Extra::default() };
        let mut wrong = Vec::new();
        for (name, value) in &entry.options {
            if let Err(why) = extra.take(name, value) {
                wrong.push(why);
            }
        }
        if wrong.is_empty() { Ok(extra) } else { Err(wrong) }
    }

    fn take(&mut self, name: &str, value: &Value) -> Result<(), String> {
        let word = name.trim().to_ascii_lowercase().replace('-', "_");
        if word == "next_server" || word == "siaddr" {
            let address = value.as_str().and_then(|text| text.parse().ok());
            self.next_server = Some(address.ok_or_else(|| format!("`{name}` is no IPv4 address; write `10.0.0.1`"))?);
            return Ok(());
        }
        let (code, form) = number_of(&word).ok_or_else(|| unknown(name))?;
        if !is_settable(code) {
            return Err(format!("option {code} (`{name}`) belongs to the exchange itself and cannot be set"));
        }
        let bytes = bytes_of(form, value).map_err(|why| format!("option {code} (`{name}`): {why}"))?;
        if bytes.is_empty() || bytes.len() > OPTION_BYTES_MAX {
            return Err(format!("option {code} (`{name}`) has {} bytes; 1 to {OPTION_BYTES_MAX} fit", bytes.len()));
        }
        self.options.retain(|(known, _)| *known != code);
        self.options.push((code, bytes));
        Ok(())
    }

    /// The text of option 67, if it is among the options.
    pub fn bootfile(&self) -> Option<String> {
        let (_, bytes) = self.options.iter().find(|(code, _)| *code == 67)?;
        Some(String::from_utf8_lossy(bytes).into_owned())
    }
}

fn unknown(name: &str) -> String {
    let stem = name.to_ascii_lowercase().replace('-', "_");
    let near: Vec<&str> = NAMES
        .iter()
        .map(|(known, ..)| *known)
        .filter(|known| known.starts_with(&stem) || stem.starts_with(known))
        .collect();
    let some = if near.is_empty() { vec!["bootfile_name", "tftp_server_name", "root_path"] } else { near };
    format!("`{name}` is no DHCP option known here; write its number, or one of the names such as {}", some.join(", "))
}

fn number_of(word: &str) -> Option<(u8, Form)> {
    if let Ok(code) = word.parse::<u8>() {
        let form = NAMES.iter().find(|(_, known, _)| *known == code).map_or(Form::Raw, |(.., form)| *form);
        return Some((code, form));
    }
    NAMES.iter().find(|(known, ..)| *known == word).map(|(_, code, form)| (*code, *form))
}

fn bytes_of(form: Form, value: &Value) -> Result<Vec<u8>, String> {
    if let Some(hex) = value.as_str().and_then(|text| text.strip_prefix("hex:")) {
        return hexadecimal(hex).ok_or_else(|| format!("`hex:{hex}` is not pairs of hexadecimal digits"));
    }
    if let (Form::Addresses, Some(all)) = (form, addresses(value)) {
        return Ok(all.iter().flat_map(Ipv4Addr::octets).collect());
    }
    match (form, value) {
        (Form::Addresses, Value::String(text)) => Err(format!("`{text}` is no IPv4 address; write `10.0.0.1`")),
        (Form::U8 | Form::U16 | Form::U32, _) => number(form, value),
        (Form::Text, Value::Number(number)) => Ok(number.to_string().into_bytes()),
        (_, Value::String(text)) => Ok(text.clone().into_bytes()),
        (_, Value::Number(_)) => number(Form::U8, value),
        (_, Value::Array(items)) => items.iter().map(byte).collect(),
        _ => Err(format!("`{value}` is neither text, a number nor a list of bytes")),
    }
}

fn number(form: Form, value: &Value) -> Result<Vec<u8>, String> {
    let number = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok());
    let (bytes, most): (usize, u64) = match form {
        Form::U16 => (2, u64::from(u16::MAX)),
        Form::U32 => (4, u64::from(u32::MAX)),
        Form::U8 | Form::Text | Form::Addresses | Form::Raw => (1, u64::from(u8::MAX)),
    };
    match number.filter(|number| *number <= most) {
        Some(number) => Ok(number.to_be_bytes()[8 - bytes..].to_vec()),
        None => Err(format!("`{value}` is not a number from 0 to {most}")),
    }
}

fn byte(value: &Value) -> Result<u8, String> {
    value.as_u64().and_then(|number| u8::try_from(number).ok()).ok_or_else(|| format!("`{value}` is not a byte"))
}

/// One address, a list of them, or several in one text.
fn addresses(value: &Value) -> Option<Vec<Ipv4Addr>> {
    match value {
        Value::String(text) => {
            text.split([',', ' ']).filter(|word| !word.is_empty()).map(|word| word.parse().ok()).collect()
        }
        Value::Array(items) => items.iter().map(|item| item.as_str()?.parse().ok()).collect(),
        _ => None,
    }
}

fn hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits: String = text.chars().filter(|character| !matches!(character, ':' | ' ')).collect();
    if !digits.is_ascii() || !digits.len().is_multiple_of(2) {
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok()).collect()
}

/// Whether a request is one that `wanted` speaks of: each matcher that is given has to accept one of the words for what the client said.
pub fn accepts(wanted: &DhcpMatch, request: &Request) -> bool {
    let one_of = |list: &[job_schema::job::TextMatch], words: &[String]| {
        list.is_empty() || list.iter().any(|wanted| words.iter().any(|word| wanted.matches(word)))
    };
    let architecture = request.architecture;
    one_of(&wanted.architecture, &architecture.map(architecture_words).unwrap_or_default())
        && one_of(&wanted.firmware, &firmware_words(request))
        && one_of(&wanted.mac_address, &cases(&request.mac.to_string()))
        && one_of(&wanted.protocol, &protocol_words(request))
        && one_of(&wanted.vendor_class, request.vendor_class.as_slice())
        && one_of(&wanted.user_class, &request.user_classes)
        && one_of(&wanted.uuid, &request.uuid.map(|uuid| cases(&uuid.to_string())).unwrap_or_default())
}

/// As it is, and in capitals: CI-tron's own names are in capitals where they are constants.
fn cases(word: &str) -> Vec<String> {
    vec![word.to_owned(), word.to_ascii_uppercase()]
}

fn both_cases(words: &[&str]) -> Vec<String> {
    words.iter().flat_map(|word| cases(word)).collect()
}

/// What people call the processor of an architecture number, and the number itself.
fn architecture_words(architecture: Architecture) -> Vec<String> {
    use Architecture as A;
    let words: &[&str] = match architecture {
        A::X86Bios | A::X86Uefi | A::X86UefiHttp | A::X86BiosHttp => &["x86", "i386"],
        A::X64Uefi | A::X64UefiHttp | A::Ebc | A::EbcHttp => &["x86_64", "amd64"],
        A::Arm32Uefi | A::Arm32UefiHttp | A::Arm32UBoot | A::Arm32UBootHttp => &["arm32", "arm"],
        A::Arm64Uefi | A::Arm64UefiHttp | A::Arm64UBoot | A::Arm64UBootHttp | A::RaspberryPi => &["arm64", "aarch64"],
        A::Riscv32Uefi | A::Riscv32UefiHttp => &["riscv32"],
        A::Riscv64Uefi | A::Riscv64UefiHttp => &["riscv64"],
        A::LoongArch64Uefi | A::LoongArch64UefiHttp => &["loongarch64"],
        _ => &[],
    };
    let mut all = both_cases(words);
    all.extend([u16::from(architecture).to_string(), format!("{:#04x}", u16::from(architecture))]);
    all
}

fn firmware_words(request: &Request) -> Vec<String> {
    use Architecture as A;
    let words: &[&str] = match (request.client, request.architecture) {
        (ClientKind::Ipxe, Some(A::X86Bios)) => &["ipxe", "bios"],
        (ClientKind::Ipxe, Some(_)) => &["ipxe", "uefi"],
        (ClientKind::Ipxe, None) => &["ipxe"],
        (ClientKind::UBoot, _) => &["uboot", "u-boot"],
        (_, Some(A::X86Bios | A::X86BiosHttp)) => &["bios"],
        (_, Some(A::RaspberryPi)) => &["rpiboot", "rpi", "raspberry-pi"],
        (ClientKind::OperatingSystem, None) => &["os", "none"],
        (_, Some(_)) => &["uefi"],
        (ClientKind::Pxe | ClientKind::HttpBoot | ClientKind::OtherNetboot, None) => &[],
    };
    both_cases(words)
}

fn protocol_words(request: &Request) -> Vec<String> {
    use Architecture as A;
    let by_http = request.client == ClientKind::HttpBoot
        || matches!(
            request.architecture,
            Some(
                A::X86UefiHttp
                    | A::X64UefiHttp
                    | A::EbcHttp
                    | A::Arm32UefiHttp
                    | A::Arm64UefiHttp
                    | A::X86BiosHttp
                    | A::Arm32UBootHttp
                    | A::Arm64UBootHttp
            )
        );
    match (by_http, request.client) {
        (true, _) => both_cases(&["http"]),
        (false, ClientKind::OperatingSystem) => Vec::new(),
        (false, ClientKind::Ipxe) => both_cases(&["http", "tftp"]),
        (false, ClientKind::Pxe | ClientKind::HttpBoot | ClientKind::UBoot | ClientKind::OtherNetboot) => {
            both_cases(&["tftp"])
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(options: &Value) -> DhcpEntry {
        serde_json::from_value(json!({ "options": options })).unwrap()
    }

    fn read(options: &Value) -> Vec<(u8, Vec<u8>)> {
        Extra::read(&entry(options)).unwrap().options
    }

    #[test]
    fn options_are_named_by_name_or_number_and_valued_by_their_form() {
        assert_eq!(read(&json!({"bootfile-name": "x.efi"})), [(67, b"x.efi".to_vec())]);
        assert_eq!(read(&json!({"67": "x.efi"})), [(67, b"x.efi".to_vec())]);
        assert_eq!(read(&json!({"router": "10.0.0.1"})), [(3, vec![10, 0, 0, 1])]);
        assert_eq!(read(&json!({"6": ["10.0.0.1", "10.0.0.2"]})), [(6, vec![10, 0, 0, 1, 10, 0, 0, 2])]);
        assert_eq!(read(&json!({"interface_mtu": 1400})), [(26, vec![5, 0x78])]);
        assert_eq!(read(&json!({"175": [1, 2]})), [(175, vec![1, 2])]);
        assert_eq!(read(&json!({"43": "hex:06:01:03"})), [(43, vec![6, 1, 3])]);
        assert_eq!(read(&json!({"224": "as it is"})), [(224, b"as it is".to_vec())]);
        let elsewhere = Extra::read(&entry(&json!({"next_server": "10.0.0.9"}))).unwrap();
        assert_eq!(elsewhere.next_server, Some(Ipv4Addr::new(10, 0, 0, 9)));
    }

    #[test]
    fn every_wrong_option_is_told_with_its_next_step() {
        let wrong = Extra::read(&entry(&json!({
            "53": 1, "boot": "a", "colour": "red", "router": "here", "interface_mtu": 70000, "175": [300], "43": "hex:0",
            "root_path": "x".repeat(256),
        })));
        assert_eq!(
            wrong.unwrap_err(),
            [
                "option 175 (`175`): `300` is not a byte",
                "option 43 (`43`): `hex:0` is not pairs of hexadecimal digits",
                "option 53 (`53`) belongs to the exchange itself and cannot be set",
                "`boot` is no DHCP option known here; write its number, or one of the names such as boot_file_size, bootfile, \
                 bootfile_name, boot_file, boot_filename",
                "`colour` is no DHCP option known here; write its number, or one of the names such as bootfile_name, \
                 tftp_server_name, root_path",
                "option 26 (`interface_mtu`): `70000` is not a number from 0 to 65535",
                "option 17 (`root_path`) has 256 bytes; 1 to 255 fit",
                "option 3 (`router`): `here` is no IPv4 address; write `10.0.0.1`",
            ]
        );
    }
}
