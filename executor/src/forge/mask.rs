//! Secrets never leave in a log: each is replaced before the log goes anywhere, also where it comes in pieces. ◆
//!
//! ```text
//!  pieces ─► what is not decided yet is held back ─► [MASKED] in the place of
//!              a value        `masked: true` variables, tokens of ours; the longest that fits
//!              as written     in JSON, in XML, in a URL, on a console (a line ends with CR LF there)
//!              its base64     at each of the three places in a group of bytes that it may have
//!              after a lead   `glpat-` and its kin, `?private_token=` and its kin: the lead stays, what follows goes
//! ```
//! At most the longest secret is held back, and [`Masker::finish`] gives it.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// What stands in a secret's place; GitLab's word.
const MASKED: &[u8] = b"[MASKED]";
/// GitLab masks no shorter values either: two letters are in every line.
const VALUE_BYTES_MIN: usize = 4;
/// A shorter value leaves so few certain digits of base64 that they stand in innocent texts, too.
const ENCODED_BYTES_MIN: usize = 8;
/// Beginnings of GitLab's own tokens (docs.gitlab.com, "Token prefixes").
const TOKENS: [&str; 13] = [
    "glpat-", "gloas-", "gldt-", "glrt-", "glrtr-", "glcbt-", "glptt-", "glft-", "glimt-", "glagent-", "glsoat-",
    "glffct-", "gltok-",
];
/// Names of URL parameters whose values are secret; each behind `?` or `&`.
const PARAMETERS: [&str; 7] = [
    "private_token",
    "authenticity_token",
    "rss_token",
    "access_token",
    "x-amz-signature",
    "x-amz-credential",
    "x-amz-security-token",
];

/// Replaces secrets in a stream of bytes.
pub(super) struct Masker {
    phrases: Vec<Phrase>,
    /// Indices of phrases by their first byte, the longest first.
    by_first: Vec<Vec<usize>>,
    held: Vec<u8>,
    swallowing: Option<Ends>,
}

struct Phrase {
    bytes: Vec<u8>,
    then: Then,
}

/// What happens to a phrase that was found.
#[derive(Clone, Copy)]
enum Then {
    /// It goes.
    Replace,
    /// It stays, and what follows goes.
    Swallow(Ends),
}

/// Where a secret behind a lead ends.
#[derive(Clone, Copy)]
enum Ends {
    /// At the first byte that no token has.
    Token,
    /// At the first byte that no parameter's value has.
    Parameter,
}

/// Whether bytes begin with a phrase.
enum Found {
    Whole,
    /// As far as they go.
    SoFar,
    No,
}

impl Masker {
    /// For these values; `more_tokens` are beginnings of tokens that the server names.
    pub(super) fn new(values: impl IntoIterator<Item = String>, more_tokens: &[String]) -> Masker {
        let mut phrases: Vec<Phrase> = Vec::new();
        let values = values.into_iter().flat_map(|value| [lines(&value), vec![value]].concat());
        for value in values.filter(|value| value.len() >= VALUE_BYTES_MIN) {
            phrases.extend(encoded(value.as_bytes()).into_iter().map(Phrase::secret));
            phrases.extend(written(&value).into_iter().map(|form| Phrase::secret(form.into_bytes())));
        }
        let tokens = TOKENS.iter().map(|lead| (*lead).to_owned()).chain(more_tokens.iter().cloned());
        phrases.extend(tokens.filter(|lead| lead.len() >= VALUE_BYTES_MIN).map(|lead| Phrase::lead(lead, Ends::Token)));
        let parameters = PARAMETERS.iter().flat_map(|name| ["?", "&"].map(|before| format!("{before}{name}=")));
        phrases.extend(parameters.map(|lead| Phrase::lead(lead, Ends::Parameter)));
        phrases.sort_by(|one, other| other.bytes.len().cmp(&one.bytes.len()).then_with(|| one.bytes.cmp(&other.bytes)));
        let mut by_first = vec![Vec::new(); 256];
        for (index, phrase) in phrases.iter().enumerate() {
            let first = phrase.bytes[0];
            by_first[usize::from(first)].push(index);
            if !matches!(phrase.then, Then::Replace) && first.is_ascii_alphabetic() {
                by_first[usize::from(first ^ 0x20)].push(index);
            }
        }
        Masker { phrases, by_first, held: Vec::new(), swallowing: None }
    }

    /// Takes bytes, and gives all that is decided.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(bytes);
        self.decide(End::Open)
    }

    /// What was held back; nothing more comes.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        self.decide(End::Reached)
    }

    fn decide(&mut self, end: End) -> Vec<u8> {
        let held = std::mem::take(&mut self.held);
        let mut out = Vec::with_capacity(held.len());
        let mut at = 0;
        while at < held.len() {
            if let Some(ends) = self.swallowing {
                match held[at..].iter().position(|byte| ends.at(*byte)) {
                    Some(length) => at += length,
                    None => at = held.len(),
                }
                if at < held.len() {
                    self.swallowing = None;
                }
                continue;
            }
            let plain = held[at..].iter().position(|byte| !self.by_first[usize::from(*byte)].is_empty());
            let start = plain.map_or(held.len(), |plain| at + plain);
            out.extend_from_slice(&held[at..start]);
            at = start;
            if at == held.len() {
                break;
            }
            match self.phrase_at(&held[at..], end) {
                Step::Phrase(index) => at += self.replace(index, &held[at..], &mut out),
                Step::Byte => {
                    out.push(held[at]);
                    at += 1;
                }
                Step::Wait => break,
            }
        }
        self.held = held[at..].to_vec();
        out
    }

    /// The longest phrase that `bytes` begin with. One that is longer still, and may yet come, is waited for.
    fn phrase_at(&self, bytes: &[u8], end: End) -> Step {
        for &index in &self.by_first[usize::from(bytes[0])] {
            match self.phrases[index].is_at(bytes) {
                Found::Whole => return Step::Phrase(index),
                Found::SoFar if end == End::Open => return Step::Wait,
                Found::SoFar | Found::No => {}
            }
        }
        Step::Byte
    }

    fn replace(&mut self, index: usize, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let phrase = &self.phrases[index];
        let length = phrase.bytes.len();
        if let Then::Swallow(ends) = phrase.then {
            out.extend_from_slice(&bytes[..length]);
            self.swallowing = Some(ends);
        }
        out.extend_from_slice(MASKED);
        length
    }
}

/// Whether more may come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Reached,
}

enum Step {
    Phrase(usize),
    Byte,
    Wait,
}

impl Phrase {
    fn secret(bytes: Vec<u8>) -> Phrase {
        Phrase { bytes, then: Then::Replace }
    }

    fn lead(text: String, ends: Ends) -> Phrase {
        Phrase { bytes: text.into_bytes(), then: Then::Swallow(ends) }
    }

    /// Parameters are found in any case: Amazon's are written `X-Amz-Signature`.
    fn is_at(&self, bytes: &[u8]) -> Found {
        let length = self.bytes.len().min(bytes.len());
        let same = match self.then {
            Then::Swallow(Ends::Parameter) => self.bytes[..length].eq_ignore_ascii_case(&bytes[..length]),
            Then::Replace | Then::Swallow(Ends::Token) => self.bytes[..length] == bytes[..length],
        };
        match same {
            true if length == self.bytes.len() => Found::Whole,
            true => Found::SoFar,
            false => Found::No,
        }
    }
}

impl Ends {
    fn at(self, byte: u8) -> bool {
        match self {
            Ends::Token => !(byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'=')),
            Ends::Parameter => {
                byte.is_ascii_whitespace()
                    || byte.is_ascii_control()
                    || matches!(byte, b'&' | b'"' | b'\'' | b'<' | b'>' | b'`')
            }
        }
    }
}

/// The lines of a value that has ends of lines, such as a private key: each tells enough.
fn lines(value: &str) -> Vec<String> {
    let long = |line: &&str| line.len() >= ENCODED_BYTES_MIN && line.len() < value.len();
    value.lines().map(str::trim).filter(long).map(str::to_owned).collect()
}

/// A value as it is, and as our own files and others' have it.
fn written(value: &str) -> BTreeSet<String> {
    let in_json = serde_json::Value::from(value).to_string();
    let in_json = in_json[1..in_json.len() - 1].to_owned();
    let in_xml = value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let in_attribute = in_xml.replace('"', "&quot;");
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    let letter = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    let in_url: String = value.bytes().map(letter).collect();
    let on_console = value.replace("\r\n", "\n").replace('\n', "\r\n");
    [value.to_owned(), in_json, in_xml, in_attribute, in_url, on_console].into()
}

/// The digits of base64 that are the value's alone, for each number of bytes that may stand before it in its first group of three.
fn encoded(value: &[u8]) -> Vec<Vec<u8>> {
    if value.len() < ENCODED_BYTES_MIN {
        return Vec::new();
    }
    let of = |before: usize| {
        let text = STANDARD.encode([vec![0; before], value.to_vec()].concat());
        // Of six bits each: those with bits of what stands before, or after, are not certain.
        let (first, last) = ((before * 8).div_ceil(6), (before + value.len()) * 8 / 6);
        text.as_bytes()[first..last].to_vec()
    };
    (0..3).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(values: &[&str], text: &str) -> String {
        let mut masker = Masker::new(values.iter().map(|value| (*value).to_owned()), &["corp-".to_owned()]);
        let mut out = masker.push(text.as_bytes());
        out.extend(masker.finish());
        String::from_utf8(out).unwrap()
    }

    /// What comes out whatever the pieces, down to single bytes.
    fn expect(values: &[&str], text: &str, expected: &str) {
        assert_eq!(mask(values, text), expected);
        for size in 1..text.len() {
            let mut masker = Masker::new(values.iter().map(|value| (*value).to_owned()), &["corp-".to_owned()]);
            let mut out: Vec<u8> = text.as_bytes().chunks(size).flat_map(|piece| masker.push(piece)).collect();
            out.extend(masker.finish());
            assert_eq!(String::from_utf8(out).unwrap(), expected, "in pieces of {size}");
        }
    }

    #[test]
    fn a_value_is_masked_wherever_the_pieces_are_cut() {
        expect(&["hunter2!"], "a hunter2! b hunter2hunter2!", "a [MASKED] b hunter2[MASKED]");
    }

    #[test]
    fn the_longest_value_that_fits_is_masked() {
        expect(&["secret", "secret-long"], "secret secret-long secret-lone", "[MASKED] [MASKED] [MASKED]-lone");
    }

    #[test]
    fn a_value_in_base64_is_masked_at_each_place_in_a_group() {
        let value = "correct horse";
        for before in ["", "x", "xy", "user:"] {
            let text = STANDARD.encode(format!("{before}{value}"));
            let masked = mask(&[value], &text);
            assert!(masked.contains("[MASKED]"), "{before}: {masked}");
            assert!(masked.len() < text.len() + 8 && !masked.contains(&text[8..16]), "{before}: {masked}");
        }
    }

    #[test]
    fn a_value_is_masked_as_json_xml_urls_and_consoles_have_it() {
        let value = "p<a>&\"s\\s\nword";
        for written in [
            r#"p<a>&\"s\\s\nword"#,
            "p&lt;a&gt;&amp;\"s\\s\nword",
            "p&lt;a&gt;&amp;&quot;s\\s\nword",
            "p%3Ca%3E%26%22s%5Cs%0Aword",
            "p<a>&\"s\\s\r\nword",
        ] {
            expect(&[value], &format!("it is {written}."), "it is [MASKED].");
        }
    }

    #[test]
    fn each_long_line_of_a_value_is_masked() {
        expect(&["{\n  0123456789abcdef\n}\n"], "{ 0123456789abcdef }", "{ [MASKED] }");
        expect(&["one line\n"], "one line, one line\n", "[MASKED], [MASKED]");
    }

    #[test]
    fn what_follows_the_beginning_of_a_token_is_masked_to_its_end() {
        expect(&[], "use glpat-abc_DEF-12.34 now, corp-x9", "use glpat-[MASKED] now, corp-[MASKED]");
    }

    #[test]
    fn secret_parameters_of_urls_are_masked_in_any_case() {
        expect(
            &[],
            "GET /a?X-Amz-Signature=0aF&b=1&private_token=zz \"?x=1\"",
            "GET /a?X-Amz-Signature=[MASKED]&b=1&private_token=[MASKED] \"?x=1\"",
        );
    }

    #[test]
    fn short_values_and_other_bytes_are_left_alone() {
        let mut masker = Masker::new(["abc".to_owned()], &[]);
        assert_eq!(masker.push(b"abc \xff\x00 gl"), b"abc \xff\x00 ");
        assert_eq!(masker.finish(), b"gl");
    }
}
