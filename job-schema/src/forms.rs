//! Forms of text that a job uses again and again: each is read once, here, and named by `x-form` in the schema.
//!
//! | form | example | becomes |
//! |---|---|---|
//! | `pattern` | `^over\r$` | text, compiled |
//! | `url` | `https://host/kernel` | text |
//! | `size` | `20G` | bytes |
//! | `duration` | `5 minutes`, `{minutes: 5}` | seconds |
//! | `lifetime` | `first_read`, `{access_count: 1}` | a mapping |
//! | `offset` | `0x10008000`, `""` | a number, or nothing when zero or empty |

use core::net::Ipv4Addr;

use serde_yaml::{Mapping, Value};

use crate::guard::Scalar;
use crate::ids::{DutId, ExportName, RoleName};
use crate::job::{Endpoint, Groups, PathMatch, parse_deadline};
use crate::pattern::Pattern;
use crate::quantity::{duration_from_seconds, parse_duration, parse_size};

/// How one form of text is read.
pub(crate) struct Form {
    name: &'static str,
    /// What it is called in a problem, with its article.
    pub(crate) noun: &'static str,
    /// How to write it.
    pub(crate) hint: &'static str,
    /// The value; `Err(None)` when it is not text at all, else why it is wrong.
    pub(crate) read: fn(&Scalar) -> Result<Value, Option<String>>,
}

/// All forms of text, by name.
pub(crate) const FORMS: &[Form] = &[
    Form { name: "address", noun: "an IPv4 address", hint: "write `10.77.0.11`", read: address },
    Form { name: "container", noun: "a container image", hint: "write `docker://registry/image:tag`", read: container },
    Form {
        name: "deadline",
        noun: "a date and time",
        hint: "write `2026-11-21 18:00:00`, in UTC unless a zone is given",
        read: deadline,
    },
    Form {
        name: "duration",
        noun: "a duration",
        hint: "write `5 minutes`, `1h 30m` or `{minutes: 5}`",
        read: duration,
    },
    Form {
        name: "endpoint",
        noun: "a host and port",
        hint: "write `host:port`, an IPv6 address in brackets",
        read: endpoint,
    },
    Form { name: "export-name", noun: "a name", hint: "use letters, digits, `-`, `_` and `.`", read: export_name },
    Form {
        name: "gear",
        noun: "a name of gear",
        hint: "write the name that the farm gives its gear, such as `power-meter`",
        read: gear,
    },
    Form {
        name: "lifetime",
        noun: "a lifetime",
        hint: "write `first_read` or `{access_count: 1, duration: 1 hour}`",
        read: lifetime,
    },
    Form { name: "loose-text", noun: "text", hint: "write text here, or remove the key", read: loose_text },
    Form { name: "mac", noun: "a MAC address", hint: "write six bytes such as `52:54:00:77:00:01`", read: mac },
    Form {
        name: "member",
        noun: "a path in an archive",
        hint: "write a regular expression for the whole path, as Python reads it on bytes",
        read: member,
    },
    Form { name: "mode", noun: "a file mode", hint: "write an octal number such as `0100644`", read: mode },
    Form {
        name: "network",
        noun: "an address with a prefix",
        hint: "write `10.77.0.1/24`, the gateway's own address first",
        read: network,
    },
    Form { name: "offset", noun: "a number", hint: "write a number such as `4096` or `0x10008000`", read: offset },
    Form {
        name: "path",
        noun: "a path",
        hint: "write an absolute path such as `/job/file`; a regular expression may follow the slash",
        read: path,
    },
    Form {
        name: "pattern",
        noun: "a pattern",
        hint: "write a regular expression as Python reads it on bytes",
        read: pattern,
    },
    Form { name: "role", noun: "a role", hint: "use letters, digits, `-` and `_`", read: role },
    Form { name: "size", noun: "a size", hint: "write `512M`, `20G` (2^30) or `20GB` (10^9)", read: size },
    Form {
        name: "url",
        noun: "a URL",
        hint: "write `https://host/path`; data of your own goes into `data` or `attached`",
        read: url,
    },
];

/// The form of this name; asking for one that is not listed is a mistake of ours.
pub(crate) fn find(name: &str) -> &'static Form {
    FORMS.iter().find(|form| form.name == name).expect("every x-form in description.rs is listed in FORMS")
}

/// CI-tron's mapping of units as seconds; what is below zero is zero.
pub(crate) fn seconds_of_units(mapping: &Value) -> f64 {
    let table = [("days", 86_400.0), ("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0), ("milliseconds", 0.001)];
    let sum: f64 = table.iter().map(|(unit, seconds)| mapping[*unit].as_f64().unwrap_or(0.0) * seconds).sum();
    sum.max(0.0)
}

fn text_of(scalar: &Scalar) -> Result<&str, Option<String>> {
    scalar.as_text().map_err(|_| None)
}

fn checked<T, E: ToString>(scalar: &Scalar, check: impl Fn(&str) -> Result<T, E>) -> Result<Value, Option<String>> {
    let text = text_of(scalar)?;
    check(text).map(|_| Value::String(text.to_owned())).map_err(|why| Some(why.to_string()))
}

fn pattern(scalar: &Scalar) -> Result<Value, Option<String>> {
    checked(scalar, Pattern::parse)
}

/// A group of the path that the artifact is asked for by may stand in it.
fn member(scalar: &Scalar) -> Result<Value, Option<String>> {
    checked(scalar, |text| match Pattern::parse(text) {
        Err(why) if Groups::are_used_in(text) => {
            Pattern::parse(&Groups::of_anything().expand(text)).map(drop).map_err(|_| why)
        }
        read => read.map(drop),
    })
}

fn export_name(scalar: &Scalar) -> Result<Value, Option<String>> {
    checked(scalar, str::parse::<ExportName>)
}

fn role(scalar: &Scalar) -> Result<Value, Option<String>> {
    checked(scalar, str::parse::<RoleName>)
}

/// What a farm may call its gear is what it may call its DUTs.
fn gear(scalar: &Scalar) -> Result<Value, Option<String>> {
    checked(scalar, |text| text.parse::<DutId>().map_err(|why| why.to_string().replacen("an id", "it", 1)))
}

fn address(scalar: &Scalar) -> Result<Value, Option<String>> {
    checked(scalar, str::parse::<Ipv4Addr>)
}

fn mac(scalar: &Scalar) -> Result<Value, Option<String>> {
    checked(scalar, |text| {
        let bytes: Vec<_> = text.split([':', '-']).collect();
        let is_byte = |byte: &&str| byte.len() == 2 && byte.chars().all(|digit| digit.is_ascii_hexdigit());
        match bytes.len() == 6 && bytes.iter().all(is_byte) {
            true => Ok(()),
            false => Err("it is not six bytes in hexadecimal"),
        }
    })
}

fn network(scalar: &Scalar) -> Result<Value, Option<String>> {
    checked(scalar, |text| {
        let (address, length) = text.split_once('/').ok_or("it has no prefix length")?;
        address.parse::<Ipv4Addr>().map_err(|_| "it does not begin with an IPv4 address")?;
        match length.parse::<u8>() {
            Ok(8..=30) => Ok(()),
            _ => Err("its prefix length is not a number from 8 to 30"),
        }
    })
}

fn endpoint(scalar: &Scalar) -> Result<Value, Option<String>> {
    checked(scalar, str::parse::<Endpoint>)
}

fn path(scalar: &Scalar) -> Result<Value, Option<String>> {
    checked(scalar, PathMatch::parse)
}

fn deadline(scalar: &Scalar) -> Result<Value, Option<String>> {
    checked(scalar, parse_deadline)
}

fn container(scalar: &Scalar) -> Result<Value, Option<String>> {
    checked(scalar, |text| {
        let image = text.strip_prefix("docker://").or_else(|| text.strip_prefix("oci://")).unwrap_or(text);
        match image.contains("://") || image.is_empty() || image.contains(char::is_whitespace) {
            true => Err("it names no image"),
            false => Ok(()),
        }
    })
}

fn url(scalar: &Scalar) -> Result<Value, Option<String>> {
    checked(scalar, |text| {
        if text.starts_with("glartifact:") {
            return Err("`glartifact` is resolved by the submitting client, not by the farm");
        }
        let Some((scheme, rest)) = text.split_once("://") else { return Err("it has no scheme") };
        if !["http", "https", "s3"].contains(&scheme.to_ascii_lowercase().as_str()) {
            return Err("only `http`, `https` and `s3` are fetched");
        }
        if rest.split(['/', '?', '#']).next().unwrap_or_default().is_empty() {
            return Err("it has no host");
        }
        match text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            true => Err("it contains white space"),
            false => Ok(()),
        }
    })
}

fn size(scalar: &Scalar) -> Result<Value, Option<String>> {
    if scalar.is_null() {
        return Err(None);
    }
    parse_size(&scalar.text).map(Value::from).map_err(Some)
}

fn duration(scalar: &Scalar) -> Result<Value, Option<String>> {
    if scalar.is_null() {
        return Err(None);
    }
    parse_duration(&scalar.text).map(|duration| Value::from(duration.as_secs_f64())).map_err(Some)
}

fn lifetime(scalar: &Scalar) -> Result<Value, Option<String>> {
    if text_of(scalar)? != "first_read" {
        return Err(Some("the only short form is `first_read`".to_owned()));
    }
    Ok(Value::Mapping(Mapping::from_iter([("access_count".into(), Value::from(1))])))
}

/// Text that YAML may have taken for a number, such as a version: the letters as written.
fn loose_text(scalar: &Scalar) -> Result<Value, Option<String>> {
    match scalar.is_null() {
        true => Err(None),
        false => Ok(Value::String(scalar.text.clone())),
    }
}

fn mode(scalar: &Scalar) -> Result<Value, Option<String>> {
    let number = scalar.as_integer().ok_or(None)?;
    match u32::try_from(number) {
        Ok(mode) if mode <= 0o177_777 => Ok(Value::from(mode)),
        _ => Err(Some("a mode has at most six octal digits".to_owned())),
    }
}

fn offset(scalar: &Scalar) -> Result<Value, Option<String>> {
    if scalar.text.trim().is_empty() || scalar.is_null() {
        return Ok(Value::Null);
    }
    match scalar.as_integer().ok_or(None)? {
        0 => Ok(Value::Null),
        number => i64::try_from(number)
            .ok()
            .filter(|number| *number > 0)
            .map(Value::from)
            .ok_or(Some("it is not positive".to_owned())),
    }
}

/// Used by the typed load: seconds, already checked, as a duration.
pub(crate) fn duration_of(seconds: f64) -> Result<std::time::Duration, String> {
    duration_from_seconds(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::Style;

    fn read(form: &str, text: &str) -> Result<Value, Option<String>> {
        (find(form).read)(&Scalar { text: text.to_owned(), style: Style::Plain })
    }

    #[test]
    fn the_forms_are_sorted_by_name() {
        assert!(FORMS.is_sorted_by_key(|form| form.name));
    }

    #[test]
    fn a_url_is_what_the_farm_can_fetch() {
        for good in [
            "https://host/a b".replace(' ', "%20").as_str(),
            "http://10.42.0.1:9000/boot/k",
            "HTTP://h",
            "s3://bucket/key",
            r"https://h/\1?x=y",
        ] {
            assert_eq!(read("url", good), Ok(Value::String(good.to_owned())), "{good}");
        }
        let table = [
            ("/boot/kernel", "it has no scheme"),
            ("file:///etc/passwd", "only `http`, `https` and `s3` are fetched"),
            ("http:///kernel", "it has no host"),
            ("https://h/a b", "it contains white space"),
            ("glartifact://job/path", "`glartifact` is resolved by the submitting client, not by the farm"),
        ];
        for (bad, why) in table {
            assert_eq!(read("url", bad), Err(Some(why.to_owned())), "{bad}");
        }
    }

    #[test]
    fn an_offset_of_zero_or_nothing_is_unset() {
        assert_eq!(read("offset", "0x10008000"), Ok(Value::from(0x1000_8000)));
        assert_eq!(read("offset", "0"), Ok(Value::Null));
        assert_eq!(read("offset", ""), Ok(Value::Null));
        assert_eq!(read("offset", "x"), Err(None));
        assert_eq!(read("offset", "-1"), Err(Some("it is not positive".to_owned())));
    }
}
