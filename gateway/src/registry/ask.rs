//! What a container engine asks of a registry, and what it is told when it gets nothing. ◆
//!
//! ```text
//!  GET|HEAD /v2/                                              Ping
//!           /v2/<upstream>/<repository>/manifests/<tag>       Manifest   tag or sha256:…
//!           /v2/<upstream>/<repository>/blobs/<digest>        Blob
//!           /v2/<upstream>/<repository>/tags/list             Tags
//!  any other method                                           405 UNSUPPORTED: images are pushed to their own registry
//! ```
//! OCI distribution-spec 1.1. `<upstream>` is the registry's host as image names have it; a port follows behind `_`, because a `:` is no
//! part of a repository's name (`localhost:5000/a/b` is `/v2/localhost_5000/a/b/…`). Who writes the `:` is understood, too.

use std::fmt;
use std::str::FromStr;

/// The longest path that is read: the specification asks clients for names of 255 characters at most, and tags have 128.
const PATH_BYTES_MAX: usize = 1024;

/// A sha256, as images name their parts by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Digest {
        use sha2::Digest as _;
        Digest(sha2::Sha256::digest(bytes).into())
    }

    /// That somebody has computed.
    pub fn from_bytes(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }

    /// Its 64 digits.
    pub fn hexadecimal(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl FromStr for Digest {
    type Err = ();

    fn from_str(text: &str) -> Result<Digest, ()> {
        let digits = text.strip_prefix("sha256:").ok_or(())?;
        let is_digits = digits.len() == 64 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let pair = str::from_utf8(pair).ok().filter(|_| is_digits).ok_or(())?;
            *byte = u8::from_str_radix(pair, 16).map_err(drop)?;
        }
        if is_digits { Ok(Digest(bytes)) } else { Err(()) }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hexadecimal())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A repository of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    /// The registry's host, with its port where an image's name has one.
    pub upstream: String,
    /// Its name there.
    pub name: String,
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.upstream, self.name)
    }
}

/// What a manifest is asked for by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// A name that its owner may give to another image.
    Tag(String),
    /// The manifest itself.
    Digest(Digest),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Tag(tag) => f.write_str(tag),
            Reference::Digest(digest) => write!(f, "{digest}"),
        }
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Whether this is a registry.
    Ping,
    /// A manifest.
    Manifest(Repository, Reference),
    /// A layer, or an image's configuration.
    Blob(Repository, Digest),
    /// Which tags there are.
    Tags(Repository),
}

/// Why there is nothing: status, code and sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The status of HTTP.
    pub status: u16,
    /// The specification's code.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

impl Denied {
    /// With these.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Denied {
        Denied { status, code, message: message.into() }
    }

    /// As the specification has it.
    pub fn json(&self) -> String {
        let error = serde_json::json!({ "code": self.code, "message": self.message, "detail": null });
        serde_json::json!({ "errors": [error] }).to_string()
    }
}

/// What a GET or HEAD of `path` asks for.
pub fn asked(path: &str) -> Result<Asked, Denied> {
    if path.len() > PATH_BYTES_MAX {
        return Err(Denied::new(414, "NAME_INVALID", "the path is too long"));
    }
    let nothing = || Denied::new(404, "UNSUPPORTED", "a registry is asked below `/v2/`");
    let path = path.strip_prefix("/v2").ok_or_else(nothing)?;
    if path.is_empty() || path == "/" {
        return Ok(Asked::Ping);
    }
    let path = path.strip_prefix('/').ok_or_else(nothing)?;
    if let Some(name) = path.strip_suffix("/tags/list") {
        return Ok(Asked::Tags(repository(name)?));
    }
    let (rest, last) = path.rsplit_once('/').ok_or_else(nothing)?;
    let digest = || {
        let why = "a digest is `sha256:` and 64 digits; no other kind is known here";
        last.parse::<Digest>().map_err(|()| Denied::new(400, "DIGEST_INVALID", why))
    };
    if let Some(name) = rest.strip_suffix("/manifests") {
        let reference = if is_tag(last) { Reference::Tag(last.to_owned()) } else { Reference::Digest(digest()?) };
        return Ok(Asked::Manifest(repository(name)?, reference));
    }
    if let Some(name) = rest.strip_suffix("/blobs") {
        return Ok(Asked::Blob(repository(name)?, digest()?));
    }
    Err(Denied::new(404, "UNSUPPORTED", "this cache has manifests, blobs and lists of tags"))
}

/// What any other method gets.
pub fn not_read(method: &str) -> Denied {
    Denied::new(405, "UNSUPPORTED", format!("{method}: this is a cache to pull from; push to the image's own registry"))
}

/// `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`.
fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = text.bytes();
    text.len() <= 128
        && bytes.next().is_some_and(is_word)
        && bytes.all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

fn repository(text: &str) -> Result<Repository, Denied> {
    let invalid = |why: String| Denied::new(400, "NAME_INVALID", why);
    let (first, name) = text
        .split_once('/')
        .ok_or_else(|| invalid(format!("`{text}` has no registry before it; write `registry.example.org/{text}`")))?;
    let upstream = upstream_of(first);
    let is_name = name.split('/').all(is_component);
    if upstream.is_empty() || !is_name {
        return Err(invalid(format!("`{text}` is no repository; write `registry.example.org/group/name`")));
    }
    Ok(Repository { name: completed(&upstream, name), upstream })
}

/// What belongs to Docker's own images is `library/…` in their registry, and called by its last word by people.
fn completed(upstream: &str, name: &str) -> String {
    if upstream == DOCKER && !name.contains('/') { format!("library/{name}") } else { name.to_owned() }
}

/// The registry that is meant when an image's name has none.
pub const DOCKER: &str = "docker.io";

/// `registry.example_5000` is `registry.example:5000`: no host has a `_`.
fn upstream_of(component: &str) -> String {
    match component.rsplit_once('_') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{host}:{port}")
        }
        _ => component.to_owned(),
    }
}

/// An upstream's host as the first part of a repository's name here.
pub fn component_of(upstream: &str) -> String {
    upstream.replace(':', "_")
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut rest = text.as_bytes();
    loop {
        let word = rest.iter().take_while(|byte| is_word(**byte)).count();
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        let between = rest.iter().take_while(|byte| !is_word(**byte)).count();
        match &rest[..between] {
            [] => return rest.is_empty(),
            [b'.'] | [b'_'] | [b'_', b'_'] => {}
            dashes if dashes.iter().all(|byte| *byte == b'-') => {}
            _ => return false,
        }
        rest = &rest[between..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGITS: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn of(upstream: &str, name: &str) -> Repository {
        Repository { upstream: upstream.to_owned(), name: name.to_owned() }
    }

    #[test]
    fn a_digest_is_read_and_printed() {
        assert_eq!(Digest::of(b"").to_string(), format!("sha256:{DIGITS}"));
        assert_eq!(format!("sha256:{DIGITS}").parse(), Ok(Digest::of(b"")));
        for wrong in
            [DIGITS.to_owned(), format!("sha256:{}", &DIGITS[1..]), format!("sha256:{}", DIGITS.to_uppercase())]
        {
            assert_eq!(wrong.parse::<Digest>(), Err(()), "{wrong}");
        }
        assert_eq!(format!("sha256:+{}", &DIGITS[1..]).parse::<Digest>(), Err(()));
    }

    #[test]
    fn paths_lead_to_what_the_specification_says() {
        let tag = |text: &str| Reference::Tag(text.to_owned());
        let digest = Digest::of(b"");
        for (path, expected) in [
            ("/v2/", Asked::Ping),
            ("/v2", Asked::Ping),
            ("/v2/quay.io/a/b/manifests/v1.0", Asked::Manifest(of("quay.io", "a/b"), tag("v1.0"))),
            ("/v2/quay.io/a/manifests/manifests/x", Asked::Manifest(of("quay.io", "a/manifests"), tag("x"))),
            (
                &format!("/v2/quay.io/a/manifests/sha256:{DIGITS}"),
                Asked::Manifest(of("quay.io", "a"), Reference::Digest(digest)),
            ),
            (&format!("/v2/quay.io/a__b/c-d/blobs/sha256:{DIGITS}"), Asked::Blob(of("quay.io", "a__b/c-d"), digest)),
            ("/v2/docker.io/alpine/tags/list", Asked::Tags(of("docker.io", "library/alpine"))),
            ("/v2/docker.io/a/b/tags/list", Asked::Tags(of("docker.io", "a/b"))),
            ("/v2/127.0.0.1_5000/a/manifests/x", Asked::Manifest(of("127.0.0.1:5000", "a"), tag("x"))),
            ("/v2/127.0.0.1:5000/a/manifests/x", Asked::Manifest(of("127.0.0.1:5000", "a"), tag("x"))),
        ] {
            assert_eq!(asked(path), Ok(expected), "{path}");
        }
    }

    #[test]
    fn what_is_no_question_to_a_registry_is_refused_with_its_code() {
        for (path, expected) in [
            ("/", (404, "UNSUPPORTED")),
            ("/v3/", (404, "UNSUPPORTED")),
            ("/v2x/", (404, "UNSUPPORTED")),
            ("/v2/_catalog", (404, "UNSUPPORTED")),
            ("/v2/quay.io/a/referrers/sha256:00", (404, "UNSUPPORTED")),
            ("/v2/alpine/manifests/x", (400, "NAME_INVALID")),
            ("/v2/quay.io/A/manifests/x", (400, "NAME_INVALID")),
            ("/v2/quay.io/../b/manifests/x", (400, "NAME_INVALID")),
            ("/v2/quay.io//b/manifests/x", (400, "NAME_INVALID")),
            ("/v2/quay.io/a%2fb/manifests/x", (400, "NAME_INVALID")),
            ("/v2/quay.io/a/manifests/-x", (400, "DIGEST_INVALID")),
            ("/v2/quay.io/a/blobs/latest", (400, "DIGEST_INVALID")),
            ("/v2/quay.io/a/blobs/sha512:00", (400, "DIGEST_INVALID")),
            (&format!("/v2/{}", "a/".repeat(600)), (414, "NAME_INVALID")),
        ] {
            let denied = asked(path).unwrap_err();
            assert_eq!((denied.status, denied.code), expected, "{path}: {denied:?}");
        }
    }

    #[test]
    fn a_refusal_is_the_specifications_json() {
        let expected = r#"{"errors":[{"code":"UNSUPPORTED","message":"PUT: this is a cache to pull from; push to the image's own registry","detail":null}]}"#;
        assert_eq!(not_read("PUT").json(), expected);
    }
}
