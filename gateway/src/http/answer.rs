//! What to answer: from a request's head, and the size and tag of what it asks for, to status, headers and bytes. Sans-io.
//!
//! ```text
//!  path ── route ──► Target { key?, name }          /_/n/<key>/…  by key, all else by address;  bad paths: 400, 414
//!  method ── GET, HEAD; any other: 405
//!  Range ── way ──► Open (counted) | Resume (starts behind 0: the access it continues was counted)
//!
//!  If-None-Match has the tag ──► 304
//!  no or odd Range, several ranges, If-Range of another version ──► 200, all bytes
//!  one range ──► 206, those bytes;  behind the end ──► 416
//! ```
//! What firmware needs beyond the RFC: the length always told and never chunked (EDK2 #8580, #9743, shim), no header with an empty
//! value (EDK2 #7443 hangs), no redirect for `//` but the name itself.

use std::fmt;

/// Methods that read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The headers and the bytes.
    Get,
    /// The headers.
    Head,
}

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The key of a namespace, if the path names one.
    pub key: Option<String>,
    /// The name in the namespace.
    pub name: String,
}

/// Why a path leads nowhere; [`fmt::Display`] is the body of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPath {
    /// Longer than [`PATH_BYTES_MAX`].
    TooLong,
    /// `%` without two hexadecimal digits, or not UTF-8, or a control character.
    Encoding,
    /// A `..` in it.
    Upwards,
}

/// The conditional headers of a request, as received.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conditions<'a> {
    /// `Range`.
    pub range: Option<&'a str>,
    /// `If-Range`.
    pub if_range: Option<&'a str>,
    /// `If-None-Match`.
    pub if_none_match: Option<&'a str>,
}

/// Whether a request begins a read or goes on with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It begins: `Namespaces::open`.
    Open,
    /// It goes on: `Namespaces::resume`.
    Resume,
}

/// The answer to a request for bytes that exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// `Content-Length`; none for 304, whose length would be that of the 200.
    pub length: Option<u64>,
    /// `Content-Range`.
    pub content_range: Option<String>,
    /// First byte to send; `length` of them.
    pub offset: u64,
}

/// Four times the longest path that a Linux tool accepts for a file name of one component, and what nginx takes by default.
const PATH_BYTES_MAX: usize = 4096;

impl fmt::Display for BadPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadPath::TooLong => write!(f, "the path is longer than {PATH_BYTES_MAX} bytes"),
            BadPath::Encoding => f.write_str("the path is not percent-encoded UTF-8"),
            BadPath::Upwards => f.write_str("the path contains `..`; artifacts have absolute names"),
        }
    }
}

impl BadPath {
    /// The status code.
    pub fn status(self) -> u16 {
        match self {
            BadPath::TooLong => 414,
            BadPath::Encoding | BadPath::Upwards => 400,
        }
    }
}

/// The target of a request's path (without its query).
pub fn route(path: &str) -> Result<Target, BadPath> {
    if path.len() > PATH_BYTES_MAX {
        return Err(BadPath::TooLong);
    }
    let name = normal(&decode(path)?)?;
    let by_key = name.strip_prefix("/_/n/").map(|rest| match rest.split_once('/') {
        Some((key, rest)) => Target { key: Some(key.to_owned()), name: format!("/{rest}") },
        None => Target { key: Some(rest.to_owned()), name: "/".to_owned() },
    });
    Ok(by_key.unwrap_or(Target { key: None, name }))
}

/// The name that answers for `name` when the job publishes no such name itself: CI-tron's DUTs chain to `/boot/<id>/boot.ipxe`.
pub fn alias(name: &str) -> Option<&'static str> {
    let id = name.strip_prefix("/boot/")?.strip_suffix("/boot.ipxe")?;
    (!id.is_empty() && !id.contains('/')).then_some("/_/boot/boot.ipxe")
}

fn decode(path: &str) -> Result<String, BadPath> {
    let text = percent_decoded(path).ok_or(BadPath::Encoding)?;
    if text.chars().any(char::is_control) { Err(BadPath::Encoding) } else { Ok(text) }
}

/// `text` with each `%` and its two digits replaced by their byte; `None` if that is no UTF-8, or digits are missing.
pub fn percent_decoded(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2)?;
        decoded.push(hexadecimal(digits)?);
        rest = behind;
    }
    String::from_utf8(decoded).ok()
}

fn hexadecimal(digits: &[u8]) -> Option<u8> {
    // `from_str_radix` would take a sign, too.
    let is_hexadecimal = digits.iter().all(u8::is_ascii_hexdigit);
    let text = is_hexadecimal.then(|| str::from_utf8(digits).ok()).flatten()?;
    u8::from_str_radix(text, 16).ok()
}

/// One slash where there were several, no `.`, and never a `..`.
fn normal(path: &str) -> Result<String, BadPath> {
    let mut name = String::with_capacity(path.len() + 1);
    let mut ends_open = true;
    for part in path.split('/') {
        ends_open = matches!(part, "" | ".");
        match part {
            ".." => return Err(BadPath::Upwards),
            "" | "." => {}
            part => {
                name.push('/');
                name.push_str(part);
            }
        }
    }
    if ends_open {
        name.push('/');
    }
    Ok(name)
}

/// How a request reaches its namespace: a range that starts behind 0 goes on with a read that was counted. The last bytes of a file may
/// be all of it (`bytes=-N` with a large N): they are a read of their own, or a file that may be read once could be read twice.
pub fn way(range: Option<&str>) -> Way {
    match range.and_then(one_range) {
        Some(Range::From(first, _)) if first > 0 => Way::Resume,
        Some(Range::From(..) | Range::Last(_)) | None => Way::Open,
    }
}

/// One byte range as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Range {
    /// `first-last` or `first-`.
    From(u64, Option<u64>),
    /// `-count`.
    Last(u64),
}

/// The range, if there is one and only one: of several we send the whole (RFC 9110, 14.2: a server may ignore the header), and what
/// is no range is ignored likewise.
fn one_range(text: &str) -> Option<Range> {
    let (unit, range) = text.split_once('=')?;
    let (first, last) = range.trim().split_once('-')?;
    match (unit.trim().eq_ignore_ascii_case("bytes"), first, last) {
        (false, _, _) => None,
        (true, "", count) => Some(Range::Last(number(count)?)),
        (true, first, "") => Some(Range::From(number(first)?, None)),
        (true, first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Range::From(first, Some(last)))
        }
    }
}

/// Decimal digits; more than fit are the largest number, which is behind the end of anything.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Status, headers and bytes for a request for `size` bytes with the tag `etag`.
pub fn answer(asked: Conditions<'_>, size: u64, etag: Option<&str>) -> Answer {
    let whole = Answer { status: 200, length: Some(size), content_range: None, offset: 0 };
    if asked.if_none_match.is_some_and(|tags| names(tags, etag)) {
        return Answer { status: 304, length: None, ..whole };
    }
    match asked.range.and_then(one_range) {
        Some(range) if is_same(asked.if_range, etag) => part(range, size),
        Some(_) | None => whole,
    }
}

fn part(range: Range, size: u64) -> Answer {
    let (first, last) = match range {
        Range::From(first, last) => (first, last.unwrap_or(u64::MAX)),
        Range::Last(0) => (size, u64::MAX),
        Range::Last(count) => (size.saturating_sub(count), u64::MAX),
    };
    if first >= size {
        return Answer { status: 416, length: Some(0), content_range: Some(format!("bytes */{size}")), offset: 0 };
    }
    let last = last.min(size - 1);
    Answer {
        status: 206,
        length: Some(last - first + 1),
        content_range: Some(format!("bytes {first}-{last}/{size}")),
        offset: first,
    }
}

/// `If-None-Match` compares weakly (RFC 9110, 13.1.2).
fn names(tags: &str, etag: Option<&str>) -> bool {
    let plain = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    match etag {
        Some(etag) => tags.trim() == "*" || tags.split(',').any(|tag| plain(tag) == plain(etag)),
        None => tags.trim() == "*",
    }
}

/// `If-Range` compares strongly (RFC 9110, 13.1.5). A date never matches: we send none.
fn is_same(if_range: Option<&str>, etag: Option<&str>) -> bool {
    match if_range {
        None => true,
        Some(tag) => !tag.trim().starts_with("W/") && etag.is_some_and(|etag| etag == tag.trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Result<Target, BadPath> {
        Ok(Target { key: None, name: name.to_owned() })
    }

    fn keyed(key: &str, name: &str) -> Result<Target, BadPath> {
        Ok(Target { key: Some(key.to_owned()), name: name.to_owned() })
    }

    #[test]
    fn paths_lead_to_names() {
        for (path, expected) in [
            ("/kernel", named("/kernel")),
            ("/", named("/")),
            ("", named("/")),
            ("//job///kernel", named("/job/kernel")),
            ("/./a/.", named("/a/")),
            ("/a/", named("/a/")),
            ("/a%20b%2fc", named("/a b/c")),
            ("/a+b", named("/a+b")),
            ("/%c3%a9", named("/é")),
            ("/_/job/initramfs/0", named("/_/job/initramfs/0")),
            ("/_/n/00ff/kernel", keyed("00ff", "/kernel")),
            ("//_//n/00ff//_/boot/boot.ipxe", keyed("00ff", "/_/boot/boot.ipxe")),
            ("/_/n/00ff", keyed("00ff", "/")),
            ("/_/n/", keyed("", "/")),
            ("/..", Err(BadPath::Upwards)),
            ("/a/%2e%2e/b", Err(BadPath::Upwards)),
            ("/a%2f..%2fb", Err(BadPath::Upwards)),
            ("/a..b", named("/a..b")),
            ("/%zz", Err(BadPath::Encoding)),
            ("/%+1", Err(BadPath::Encoding)),
            ("/%f", Err(BadPath::Encoding)),
            ("/%ff", Err(BadPath::Encoding)),
            ("/a%00", Err(BadPath::Encoding)),
            ("/a%0d%0ab", Err(BadPath::Encoding)),
        ] {
            assert_eq!(route(path), expected, "{path}");
        }
        assert_eq!(route(&"/a".repeat(2049)), Err(BadPath::TooLong));
    }

    #[test]
    fn ci_trons_boot_script_has_an_alias() {
        assert_eq!(alias("/boot/52:54:00:00:00:01/boot.ipxe"), Some("/_/boot/boot.ipxe"));
        for other in
            ["/boot/boot.ipxe", "/boot//boot.ipxe", "/boot/a/b/boot.ipxe", "/boot/a/boot.ipxe/", "/_/boot/boot.ipxe"]
        {
            assert_eq!(alias(other), None, "{other}");
        }
    }

    #[test]
    fn a_range_that_starts_behind_0_resumes() {
        for (range, expected) in [
            (None, Way::Open),
            (Some("bytes=0-"), Way::Open),
            (Some("bytes=0-99"), Way::Open),
            (Some("bytes=1-"), Way::Resume),
            (Some("Bytes = 512-1023"), Way::Resume),
            (Some("bytes=-5"), Way::Open),
            (Some("bytes=1-2,5-6"), Way::Open),
            (Some("lines=1-"), Way::Open),
            (Some("bytes=5-1"), Way::Open),
        ] {
            assert_eq!(way(range), expected, "{range:?}");
        }
    }

    /// Status, Content-Length, Content-Range, first byte.
    type Expected = (u16, Option<u64>, Option<&'static str>, u64);

    fn check(range: Option<&str>, if_range: Option<&str>, if_none_match: Option<&str>, size: u64, expected: Expected) {
        let asked = Conditions { range, if_range, if_none_match };
        let found = answer(asked, size, Some("\"v1\""));
        let found_row = (found.status, found.length, found.content_range.as_deref(), found.offset);
        assert_eq!(found_row, expected, "{asked:?} of {size}");
    }

    #[test]
    fn ranges_are_answered_as_the_rfc_says() {
        const WHOLE: Expected = (200, Some(10), None, 0);
        for (range, expected) in [
            ("bytes=0-", (206, Some(10), Some("bytes 0-9/10"), 0)),
            ("bytes=0-0", (206, Some(1), Some("bytes 0-0/10"), 0)),
            ("bytes=4-", (206, Some(6), Some("bytes 4-9/10"), 4)),
            ("bytes=4-6", (206, Some(3), Some("bytes 4-6/10"), 4)),
            ("bytes=4-99", (206, Some(6), Some("bytes 4-9/10"), 4)),
            ("bytes=4-99999999999999999999", (206, Some(6), Some("bytes 4-9/10"), 4)),
            ("bytes=-3", (206, Some(3), Some("bytes 7-9/10"), 7)),
            ("bytes=-99", (206, Some(10), Some("bytes 0-9/10"), 0)),
            ("bytes=10-", (416, Some(0), Some("bytes */10"), 0)),
            ("bytes=-0", (416, Some(0), Some("bytes */10"), 0)),
            ("bytes=99999999999999999999-", (416, Some(0), Some("bytes */10"), 0)),
            ("bytes=0-1,4-5", WHOLE),
            ("bytes=6-4", WHOLE),
            ("bytes=a-b", WHOLE),
            ("bytes=", WHOLE),
            ("bytes=-", WHOLE),
            ("bytes=+1-", WHOLE),
            ("pages=1-2", WHOLE),
        ] {
            check(Some(range), None, None, 10, expected);
        }
        check(Some("bytes=0-"), None, None, 0, (416, Some(0), Some("bytes */0"), 0));
        check(None, None, None, 0, (200, Some(0), None, 0));
    }

    #[test]
    fn a_range_of_another_version_is_the_whole() {
        let part: Expected = (206, Some(6), Some("bytes 4-9/10"), 4);
        let whole: Expected = (200, Some(10), None, 0);
        for (if_range, expected) in
            [("\"v1\"", part), ("\"v2\"", whole), ("W/\"v1\"", whole), ("Sat, 21 Nov 2026 00:00:00 GMT", whole)]
        {
            check(Some("bytes=4-"), Some(if_range), None, 10, expected);
        }
    }

    #[test]
    fn what_the_client_has_is_not_sent_again() {
        let not_modified: Expected = (304, None, None, 0);
        let whole: Expected = (200, Some(10), None, 0);
        for (tags, expected) in [
            ("\"v1\"", not_modified),
            ("W/\"v1\"", not_modified),
            ("\"v0\", \"v1\"", not_modified),
            ("*", not_modified),
            ("\"v2\"", whole),
            ("", whole),
        ] {
            check(None, None, Some(tags), 10, expected);
        }
        check(Some("bytes=4-"), None, Some("\"v1\""), 10, not_modified);
    }
}
