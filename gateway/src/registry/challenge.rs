//! What a registry wants before it gives an image: the `WWW-Authenticate` of its 401. ◆
//!
//! ```text
//!  Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull"  ─► GET realm?service=…&scope=… ─► token
//!  Basic realm="…"                                                                                    ─► name and password themselves
//! ```
//! RFC 9110 11.6.1, RFC 6750 3; <https://distribution.github.io/distribution/spec/auth/token/>.

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token from elsewhere.
    Bearer {
        /// From where.
        realm: String,
        /// For whom.
        service: Option<String>,
        /// For what.
        scope: Option<String>,
    },
    /// A name and a password.
    Basic,
}

/// The first challenge of a header that we can answer.
pub(super) fn challenge(header: &str) -> Option<Challenge> {
    let (scheme, parameters) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let parameters = parameters_of(parameters);
    let named = |name: &str| {
        let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.clone())
    };
    Some(Challenge::Bearer { realm: named("realm")?, service: named("service"), scope: named("scope") })
}

/// `key="value"` or `key=value`, with commas between; a comma inside quotes is none (scopes have them).
fn parameters_of(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some((key, behind)) = rest.split_once('=') {
        let (value, after) = match behind.trim_start().strip_prefix('"') {
            Some(quoted) => unquoted(quoted),
            None => {
                let (value, after) = behind.split_once(',').unwrap_or((behind, ""));
                (value.trim().to_owned(), after)
            }
        };
        found.push((key.trim().to_owned(), value));
        rest = after.trim_start_matches([',', ' ', '\t']);
    }
    found
}

/// Up to the closing quote; `\` keeps what follows it (RFC 9110 5.6.4).
fn unquoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(letters.next().map(|(_, kept)| kept)),
            _ => value.push(letter),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Some(Challenge::Bearer { realm: realm.to_owned(), service: owned(service), scope: owned(scope) })
    }

    #[test]
    fn the_challenges_of_registries_are_read() {
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:a/b:pull,push")),
            ),
            (
                r#"bearer service=x, realm = "https://a/t?k=\"1\"" , error="invalid_token""#,
                bearer(r#"https://a/t?k="1""#, Some("x"), None),
            ),
            ("Basic realm=\"Registry Realm\"", Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            ("Bearer service=\"x\"", None),
            ("Bearer realm=\"open", bearer("open", None, None)),
            ("Negotiate", None),
            ("", None),
        ] {
            assert_eq!(challenge(header), expected, "{header}");
        }
    }
}
