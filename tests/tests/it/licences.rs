//! What we build on: licences under which a binary may be given away, one TLS stack, and nothing that was banned.
//!
//! The policy is this file (docs/decisions/0012-licence-policy-as-a-test.md). Licences are checked for the packages that are built on
//! this host; bans hold for every package of `Cargo.lock`.

use std::collections::{BTreeMap, BTreeSet};

use tests::workspace::{cargo, root};

/// Licences that ask for no more than to be named and passed on. SPDX identifiers.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
    // The decoder of bzip2: BSD with its own wording about origin and names.
    "bzip2-1.0.6",
];

/// Exceptions of SPDX's `WITH` that take conditions away and add none.
const ALLOWED_EXCEPTIONS: &[&str] = &["LLVM-exception"];

/// Packages with another licence, and why we may use them.
const OTHERWISE: &[(&str, &str, &str)] = &[
    (
        "serialport",
        "MPL-2.0",
        "copyleft for its own files alone, which we do not change; its source is where its licence says, for whoever gets the binary",
    ),
    (
        "webpki-root-certs",
        "CDLA-Permissive-2.0",
        "data, not code: Mozilla's list of certificate authorities; asks for nothing but its text beside the data",
    ),
];

/// Packages that must not come in, not even through others.
const BANNED: &[(&str, &str)] = &[
    ("aws-lc-rs", "a second cryptography beside ring, and it wants cmake"),
    ("aws-lc-sys", "a second cryptography beside ring, and it wants cmake"),
    ("native-tls", "a second TLS stack; reqwest uses rustls"),
    ("openssl", "a second TLS stack, linked dynamically"),
    ("openssl-sys", "a second TLS stack, linked dynamically"),
    ("serde_yml", "unsound, and withdrawn (RUSTSEC-2025-0068); serde_yaml is pinned instead"),
];

/// Packages that a feature of ours brings in for those who build a tool, and nobody else.
const TOOLS: &[(&str, &str)] = &[(
    "libfuzzer-sys",
    "LLVM's fuzzing engine, C++, (MIT OR Apache-2.0) AND NCSA; `fuzz/libfuzzer`, tests/fuzz/run.sh",
)];

/// Packages of which one version is enough: two of them are two stacks that do not know each other.
const ONCE: &[&str] = &["axum", "hyper", "reqwest", "ring", "rustls", "rustls-webpki", "serde_yaml", "tokio"];

fn host() -> String {
    let output = std::process::Command::new("rustc").arg("-vV").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.expect("rustc names its host").to_owned()
}

/// Every package of `Cargo.lock` with its versions.
fn locked() -> BTreeMap<String, BTreeSet<String>> {
    let text = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let mut packages: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let value = |line: &str, key: &str| line.strip_prefix(key)?.strip_suffix('"').map(str::to_owned);
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = value(line, "name = \"") {
            let version = lines.next().and_then(|line| value(line, "version = \""));
            packages.entry(name).or_default().extend(version);
        }
    }
    assert!(packages.len() > 100, "Cargo.lock has only {} packages: its form has changed", packages.len());
    packages
}

#[test]
fn every_package_may_be_given_away() {
    let host = host();
    let arguments = ["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &host];
    let output = cargo(&arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "cargo names only {} packages", packages.len());
    let mut refused = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let expression = package["license"].as_str().unwrap_or("(none)");
        let is_otherwise = OTHERWISE.iter().any(|(other, licence, _)| *other == name && *licence == expression);
        if !is_otherwise && !is_allowed(expression) {
            refused.push(format!("{name} {}: {expression}", package["version"].as_str().unwrap_or_default()));
        }
    }
    assert!(refused.is_empty(), "not on the list of licences:\n  {}", refused.join("\n  "));
}

#[test]
fn what_only_tools_are_made_of_is_built_only_when_asked_for() {
    for (name, why) in TOOLS {
        assert!(locked().contains_key(*name), "{name} is not used; take it off the list");
        // Whatever is built without features of a caller's choice: the binary, the tests, and what they are made with.
        let arguments = ["tree", "--workspace", "--offline", "--locked", "--invert", name];
        let output = cargo(&arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(!said.contains(name), "{name} is built with the rest ({why}):\n{said}");
    }
}

#[test]
fn nothing_that_is_banned_came_in() {
    let locked = locked();
    let found: Vec<_> = BANNED.iter().filter(|(name, _)| locked.contains_key(*name)).collect();
    assert!(found.is_empty(), "banned: {found:?}; `cargo tree --invert NAME` tells who brought it");
}

#[test]
fn there_is_one_version_of_each_stack() {
    let locked = locked();
    for name in ONCE {
        let versions = locked.get(*name).unwrap_or_else(|| panic!("{name} is not used; take it off the list"));
        assert_eq!(versions.len(), 1, "{name} is there more than once: {versions:?}");
    }
}

/// Whether we may choose licences such that the whole expression (SPDX specification, annex "License expressions") is kept. Older
/// packages write `A/B` for `A OR B`.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest).unwrap_or(false) && rest.is_empty()
}

/// `OR` binds weakest. `None`: not an expression.
fn any_of(rest: &mut &[&str]) -> Option<bool> {
    let mut allowed = all_of(rest)?;
    while rest.first() == Some(&"OR") {
        *rest = &rest[1..];
        allowed |= all_of(rest)?;
    }
    Some(allowed)
}

fn all_of(rest: &mut &[&str]) -> Option<bool> {
    let mut allowed = licence(rest)?;
    while rest.first() == Some(&"AND") {
        *rest = &rest[1..];
        allowed &= licence(rest)?;
    }
    Some(allowed)
}

fn licence(rest: &mut &[&str]) -> Option<bool> {
    let (first, tail) = rest.split_first()?;
    *rest = tail;
    if *first == "(" {
        let allowed = any_of(rest)?;
        let (closing, tail) = rest.split_first()?;
        *rest = tail;
        return (*closing == ")").then_some(allowed);
    }
    let mut allowed = ALLOWED.contains(first);
    if let ["WITH", exception, tail @ ..] = *rest {
        allowed &= ALLOWED_EXCEPTIONS.contains(exception);
        *rest = tail;
    }
    Some(allowed)
}

#[test]
fn licence_expressions_are_read_as_spdx_means_them() {
    let cases = [
        ("MIT", true),
        ("MIT OR GPL-3.0-only", true),
        ("MIT AND GPL-3.0-only", false),
        ("MIT/Apache-2.0", true),
        ("GPL-2.0-only OR MIT AND ISC", true),
        ("(GPL-2.0-only OR MIT) AND LGPL-2.1-only", false),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("GPL-2.0-only WITH Classpath-exception-2.0", false),
        ("AGPL-3.0-or-later", false),
        ("MIT OR", false),
        ("(MIT", false),
        ("(none)", false),
        ("", false),
    ];
    for (expression, expected) in cases {
        assert_eq!(is_allowed(expression), expected, "{expression}");
    }
}
