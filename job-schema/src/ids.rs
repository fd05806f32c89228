//! Names that were checked once and cannot be wrong afterwards.
//!
//! | type | holds | refused |
//! |---|---|---|
//! | [`JobId`] | what a submitter calls a job | empty, more than 128 bytes, anything a log or path could misread |
//! | [`DutId`] | a MAC address, a serial number or a name | the same |
//! | [`ArtifactPath`] | `/a/b`, what a DUT asks a server for | `..`, the reserved `/_/`, control characters |
//! | [`ExportName`] | the name of an NBD export, NFS share or bucket | more than 63 bytes, slashes, leading dots |
//! | [`RoleName`] | what a DUT of a job plays, such as `server` | more than 60 bytes, anything but letters, digits, `-`, `_` |

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The longest id, in bytes: it becomes part of file names, which end at 255.
pub const ID_BYTES_AT_MOST: usize = 128;
/// The longest path a DUT may name, in bytes; a TFTP request must fit its 512-byte datagram (RFC 1350 §5).
pub const PATH_BYTES_AT_MOST: usize = 480;
/// The longest export name, in bytes: also a bucket name, which S3 ends at 63.
pub const EXPORT_BYTES_AT_MOST: usize = 63;
/// The longest name of a role, in bytes: with the number of its DUT (`-16`) it still is a label of the DNS (RFC 1035 §2.3.4: 63).
pub const ROLE_BYTES_AT_MOST: usize = 60;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NameError(String);

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<$name, NameError> {
                $check(text).map($name).map_err(NameError)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<$name, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

name!(
    /// What a submitter calls a job.
    JobId,
    check_id
);
name!(
    /// A DUT: a MAC address, a serial number or a name.
    DutId,
    check_id
);
name!(
    /// What a DUT asks a server for: absolute, without `..`, not below the reserved `/_/`. A TFTP name gets the
    /// leading slash that firmware leaves out.
    ArtifactPath,
    check_path
);
name!(
    /// The name of an NBD export, an NFS share or a bucket.
    ExportName,
    check_export
);
name!(
    /// What a DUT plays in a job over several, such as `server`.
    RoleName,
    check_role
);

impl JsonSchema for ExportName {
    fn schema_name() -> Cow<'static, str> {
        "ExportName".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "x-form": "export-name"})
    }
}

impl JsonSchema for RoleName {
    fn schema_name() -> Cow<'static, str> {
        "RoleName".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "x-form": "role", "pattern": "^[A-Za-z0-9_][A-Za-z0-9_-]*$", "maxLength": ROLE_BYTES_AT_MOST})
    }
}

fn check_id(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("an id has at least one character".to_owned());
    }
    if text.len() > ID_BYTES_AT_MOST {
        return Err(format!("an id has at most {ID_BYTES_AT_MOST} bytes"));
    }
    match text.chars().find(|&c| c.is_control() || c.is_whitespace() || matches!(c, '/' | '\\')) {
        Some(bad) => Err(format!("an id cannot contain `{}`", bad.escape_default())),
        None if text == "." || text == ".." => Err(format!("`{text}` is a directory, not an id")),
        None => Ok(text.to_owned()),
    }
}

fn check_path(text: &str) -> Result<String, String> {
    // U-Boot and PXE ROMs ask TFTP for `pxelinux.0`, some Windows loaders for `\Boot\BCD`.
    let mut path = text.replace('\\', "/");
    if !path.starts_with('/') {
        path.insert(0, '/');
    }
    if path.len() > PATH_BYTES_AT_MOST {
        return Err(format!("a path has at most {PATH_BYTES_AT_MOST} bytes"));
    }
    if path == "/" {
        return Err("a path names a file".to_owned());
    }
    if path.starts_with("/_/") || path == "/_" {
        return Err("paths below `/_/` are the server's own".to_owned());
    }
    if path.split('/').any(|segment| segment == "..") {
        return Err("a path cannot contain `..`".to_owned());
    }
    match path.chars().find(|c| c.is_control()) {
        Some(bad) => Err(format!("a path cannot contain `{}`", bad.escape_default())),
        None => Ok(path),
    }
}

fn check_export(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("a name has at least one character".to_owned());
    }
    if text.len() > EXPORT_BYTES_AT_MOST {
        return Err(format!("a name has at most {EXPORT_BYTES_AT_MOST} bytes"));
    }
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
        return Err("a name begins with a letter or a digit".to_owned());
    }
    match text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))) {
        Some(bad) => {
            Err(format!("a name cannot contain `{}`; use letters, digits, `-`, `_` and `.`", bad.escape_default()))
        }
        None => Ok(text.to_owned()),
    }
}

fn check_role(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("a role has at least one character".to_owned());
    }
    if text.len() > ROLE_BYTES_AT_MOST {
        return Err(format!("a role has at most {ROLE_BYTES_AT_MOST} bytes"));
    }
    if text.starts_with('-') {
        return Err("a role begins with a letter, a digit or `_`".to_owned());
    }
    match text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))) {
        Some(bad) => Err(format!("a role cannot contain `{}`", bad.escape_default())),
        None => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_what_fits_a_log_line_and_a_file_name() {
        for good in ["52:54:00:11:22:33", "mesa-vkcts-1/2".replace('/', "-").as_str(), "x", "farm-dut.1"] {
            assert_eq!(good.parse::<DutId>().map(|id| id.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "a b", "a/b", "a\nb", "..", &"x".repeat(129)] {
            assert!(bad.parse::<JobId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_tftp_name_gets_its_leading_slash_and_no_path_climbs() {
        let table = [
            ("/a/b", Some("/a/b")),
            ("pxelinux.0", Some("/pxelinux.0")),
            ("\\Boot\\BCD", Some("/Boot/BCD")),
            ("/a/../b", None),
            ("..\\b", None),
            ("/_/job/kernel", None),
            ("/_", None),
            ("/", None),
            ("", None),
            ("/a\0b", None),
        ];
        for (text, path) in table {
            assert_eq!(text.parse::<ArtifactPath>().ok().as_ref().map(ArtifactPath::as_str), path, "{text:?}");
        }
    }

    #[test]
    fn a_role_is_a_word_for_urls_templates_and_file_names() {
        for good in ["server", "server-1", "DUT_2", "_", "7", &"x".repeat(60)] {
            assert_eq!(good.parse::<RoleName>().map(|name| name.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "-v", "a b", "a/b", "a.b", "é", "a\n", &"x".repeat(61)] {
            assert!(bad.parse::<RoleName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_name_read_from_json_is_checked_too() {
        assert!(serde_json::from_str::<ExportName>("\"root-fs_1.img\"").is_ok());
        assert!(serde_json::from_str::<ExportName>("\"a/b\"").is_err());
        assert!(serde_json::from_str::<ExportName>("\".hidden\"").is_err());
    }
}
