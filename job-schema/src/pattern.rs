//! Console patterns: regular expressions with the meaning Python's `re` gives them on bytes.
//!
//! CI-tron encodes a pattern as UTF-8 and searches raw console lines, so real jobs rely on `\r$`, on look-ahead and on
//! ASCII classes. PCRE2 without its UTF mode reads bytes the same way; what is spelled differently is translated:
//!
//! | Python | PCRE2 | why |
//! |---|---|---|
//! | `\Z` | `\z` | PCRE2's `\Z` also stops before a final newline |
//! | `\v` | `\x0b` | PCRE2's `\v` is a class of vertical blanks |
//! | `{,3}`, `{x}` | `{0,3}`, `\{x}` | a brace that is no count is itself |
//! | `[[:a]` | `[\[:a]` | Python has no POSIX classes |
//! | `\012`, `\1` | `\x{0a}`, `\g{1}` | octal and references are told apart as Python does |
//! | `(?(name)a)` | `(?(<name>)a)` | a group called `R` or `DEFINE` is a group |
//! | `(*VERB)`, `(?R)`, `\K`, `\uXXXX` | problem | Python refuses them, and they could lift the limits below |
//!
//! Every match runs under PCRE2's match limit, so that no pattern can hang a session.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use pcre2::bytes::{Regex, RegexBuilder};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest pattern, in bytes; the longest in real jobs has 200.
pub const PATTERN_BYTES_AT_MOST: usize = 4096;
/// Steps of a match attempt at one start position; a pattern of real jobs needs some hundred on a line of 4 KiB, and
/// 16,384 starts of this many are under two seconds.
const MATCH_STEPS_AT_MOST: u32 = 100_000;
/// Stack of the compiled matcher, in bytes: PCRE2's default of 32 KiB ends `(a|b)+` on lines of 4 KiB.
const MATCH_STACK_BYTES_AT_MOST: usize = 1024 * 1024;
/// Memory of one match without JIT, in KiB.
const MATCH_HEAP_KIB_AT_MOST: u32 = 16 * 1024;
/// The longest piece of a line that is searched, in bytes: with the steps above it bounds a search in time.
pub const LINE_BYTES_AT_MOST: usize = 16 * 1024;

/// A checked pattern over bytes.
#[derive(Clone)]
pub struct Pattern {
    source: String,
    search: Regex,
    whole: Regex,
}

/// Why a search gave no answer.
#[derive(Debug, thiserror::Error)]
#[error("pattern `{pattern}` gave up on a line of {line_bytes} bytes: {reason}")]
pub struct MatchError {
    /// The pattern.
    pub pattern: String,
    /// The length of the line.
    pub line_bytes: usize,
    /// What PCRE2 says.
    pub reason: String,
}

impl Pattern {
    /// Checks and compiles a pattern; the error is a sentence without the pattern itself.
    pub fn parse(source: &str) -> Result<Pattern, String> {
        if source.len() > PATTERN_BYTES_AT_MOST {
            return Err(format!("a pattern has at most {PATTERN_BYTES_AT_MOST} bytes"));
        }
        let (flags, body) = Translation::of(source)?;
        Ok(Pattern {
            source: source.to_owned(),
            search: compile(&format!("{flags}{body}"))?,
            // The newline ends a verbose pattern's last comment.
            whole: compile(&format!("{flags}\\A(?:{body}{})\\z", if flags.contains('x') { "\n" } else { "" }))?,
        })
    }

    /// Whether the line has the pattern anywhere; the line keeps its newline, as CI-tron's does.
    pub fn is_match(&self, line: &[u8]) -> Result<bool, MatchError> {
        let searched = &line[..line.len().min(LINE_BYTES_AT_MOST)];
        self.search.is_match(searched).map_err(|error| self.gave_up(line, &error))
    }

    /// Whether the whole subject is the pattern.
    pub fn is_full_match(&self, subject: &[u8]) -> Result<bool, MatchError> {
        self.whole.is_match(subject).map_err(|error| self.gave_up(subject, &error))
    }

    /// The groups of a match of the whole subject, group 0 first; a group that took no part is `None`.
    pub fn full_match_groups(&self, subject: &[u8]) -> Result<Option<Vec<Option<Range<usize>>>>, MatchError> {
        let found = self.whole.captures(subject).map_err(|error| self.gave_up(subject, &error))?;
        Ok(found.map(|groups| {
            (0..groups.len()).map(|group| groups.get(group).map(|part| part.start()..part.end())).collect()
        }))
    }

    /// How many groups it has, the whole not counted.
    pub fn group_count(&self) -> usize {
        self.whole.captures_len().saturating_sub(1)
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        &self.source
    }

    fn gave_up(&self, line: &[u8], error: &pcre2::Error) -> MatchError {
        MatchError { pattern: self.source.clone(), line_bytes: line.len(), reason: error.to_string() }
    }
}

fn compile(translated: &str) -> Result<Regex, String> {
    let limited =
        format!("(*LF)(*LIMIT_MATCH={MATCH_STEPS_AT_MOST})(*LIMIT_HEAP={MATCH_HEAP_KIB_AT_MOST}){translated}");
    RegexBuilder::new()
        .jit_if_available(true)
        .max_jit_stack_size(Some(MATCH_STACK_BYTES_AT_MOST))
        .build(&limited)
        .map_err(|error| {
            // The offset counts the limits written before the pattern, and would mislead.
            let text = error.to_string();
            let reason = text.split_once("at offset ").and_then(|(_, rest)| rest.split_once(": "));
            reason.map_or(text.clone(), |(_, reason)| reason.to_owned())
        })
}

/// The walk over a pattern's bytes that writes PCRE2's spelling.
struct Translation<'a> {
    bytes: &'a [u8],
    at: usize,
    out: Vec<u8>,
    verbose: bool,
    flags: String,
}

impl Translation<'_> {
    /// The flags that hold for all of the pattern, and the pattern in PCRE2's spelling.
    fn of(source: &str) -> Result<(String, String), String> {
        let mut walk =
            Translation { bytes: source.as_bytes(), at: 0, out: Vec::new(), verbose: false, flags: String::new() };
        while let Some(byte) = walk.take() {
            walk.step(byte)?;
        }
        let body = String::from_utf8(walk.out).map_err(|_| "the pattern is cut within a character".to_owned())?;
        Ok((walk.flags, body))
    }

    fn step(&mut self, byte: u8) -> Result<(), String> {
        match byte {
            b'\\' => self.escape(Within::Pattern),
            b'[' => self.class(),
            b'(' => self.group(),
            b'{' => {
                self.brace();
                Ok(())
            }
            b'#' if self.verbose => {
                self.out.push(b'#');
                while let Some(byte) = self.take() {
                    self.out.push(byte);
                    if byte == b'\n' {
                        break;
                    }
                }
                Ok(())
            }
            other => {
                self.out.push(other);
                Ok(())
            }
        }
    }

    fn take(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.at).copied();
        self.at += usize::from(byte.is_some());
        byte
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    fn write(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn escape(&mut self, within: Within) -> Result<(), String> {
        let Some(byte) = self.take() else { return Err("the pattern ends in a lone backslash".to_owned()) };
        match byte {
            b'Z' if within == Within::Pattern => self.write("\\z"),
            b'A' | b'B' if within == Within::Pattern => self.out.extend([b'\\', byte]),
            b'v' => self.write("\\x0b"),
            b'x' => self.hexadecimal()?,
            b'0'..=b'9' => self.number(byte, within)?,
            b'a' | b'b' | b'd' | b'D' | b'f' | b'n' | b'r' | b's' | b'S' | b't' | b'w' | b'W' => {
                self.out.extend([b'\\', byte])
            }
            letter if letter.is_ascii_alphabetic() => {
                return Err(format!("`\\{}` means nothing in a pattern over bytes", char::from(letter)));
            }
            other => self.out.extend([b'\\', other]),
        }
        Ok(())
    }

    fn hexadecimal(&mut self) -> Result<(), String> {
        match self.rest() {
            [high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let (high, low) = (*high, *low);
                self.at += 2;
                self.out.extend([b'\\', b'x', high, low]);
                Ok(())
            }
            _ => Err("`\\x` needs two hexadecimal digits".to_owned()),
        }
    }

    /// `\0…`, three octal digits and any octal digits in a class are a byte; anything else is the number of a group.
    fn number(&mut self, first: u8, within: Within) -> Result<(), String> {
        let octal = |byte: &u8| (b'0'..=b'7').contains(byte);
        let mut digits = vec![first];
        let following: Vec<u8> = self.rest().iter().copied().take(2).collect();
        let three = octal(&first) && following.len() == 2 && following.iter().all(octal);
        let is_octal = first == b'0' || three || (within == Within::Class && octal(&first));
        for byte in following {
            let wanted = if is_octal { octal(&byte) } else { byte.is_ascii_digit() && digits.len() < 2 };
            if !wanted {
                break;
            }
            digits.push(byte);
            self.at += 1;
        }
        let text = String::from_utf8_lossy(&digits).into_owned();
        if is_octal {
            let value = u32::from_str_radix(&text, 8).unwrap_or(u32::MAX);
            if value > 0xff {
                return Err(format!("the octal escape `\\{text}` is more than a byte"));
            }
            self.write(&format!("\\x{{{value:02x}}}"));
        } else if within == Within::Class {
            return Err(format!("`\\{text}` means nothing in a class"));
        } else {
            self.write(&format!("\\g{{{text}}}"));
        }
        Ok(())
    }

    fn class(&mut self) -> Result<(), String> {
        self.out.push(b'[');
        if self.rest().first() == Some(&b'^') {
            self.at += 1;
            self.out.push(b'^');
        }
        if self.rest().first() == Some(&b']') {
            self.at += 1;
            self.write("\\]");
        }
        // PCRE2 would take `[:a:]` for a POSIX class in the wrong place.
        if let Some(opening @ (b':' | b'.' | b'=')) = self.rest().first().copied() {
            self.at += 1;
            self.out.extend([b'\\', opening]);
        }
        loop {
            match self.take() {
                None => return Err("a class `[` is not closed".to_owned()),
                Some(b']') => break,
                Some(b'[') => self.write("\\["),
                Some(b'\\') => self.escape(Within::Class)?,
                Some(other) => self.out.push(other),
            }
        }
        self.out.push(b']');
        Ok(())
    }

    /// A brace is a count only when it is one to Python: `{3}`, `{3,}`, `{,3}`, `{3,4}`.
    fn brace(&mut self) {
        let end = self.rest().iter().position(|&byte| byte == b'}');
        let inside = end.map(|end| self.rest()[..end].to_vec()).unwrap_or_default();
        let commas = inside.iter().filter(|&&byte| byte == b',').count();
        let counts =
            !inside.is_empty() && commas <= 1 && inside.iter().all(|byte| byte.is_ascii_digit() || *byte == b',');
        if !counts {
            self.write("\\{");
            return;
        }
        self.at += inside.len() + 1;
        let zero = if inside[0] == b',' { "0" } else { "" };
        self.write(&format!("{{{zero}{}}}", String::from_utf8_lossy(&inside)));
    }

    fn group(&mut self) -> Result<(), String> {
        match self.rest() {
            [b'*', ..] => Err("there is nothing before `*` to repeat".to_owned()),
            [b'?', ..] => {
                self.at += 1;
                self.extension()
            }
            _ => {
                self.out.push(b'(');
                Ok(())
            }
        }
    }

    fn extension(&mut self) -> Result<(), String> {
        for known in ["P<", ":", "=", "!", "<=", "<!", ">"] {
            if self.rest().starts_with(known.as_bytes()) {
                self.at += known.len();
                self.write(&format!("(?{known}"));
                return Ok(());
            }
        }
        match self.rest() {
            [b'P', b'=', ..] => {
                self.at += 2;
                let name = self.until(b')', "`(?P=` is not closed")?;
                self.write(&format!("(?P={name})"));
                Ok(())
            }
            [b'#', ..] => self.until(b')', "the comment `(?#` is not closed").map(|_| ()),
            [b'(', ..] => {
                self.at += 1;
                let name = self.until(b')', "`(?(` is not closed")?;
                let numbered = name.bytes().all(|byte| byte.is_ascii_digit());
                self.write(&if numbered { format!("(?({name})") } else { format!("(?(<{name}>)") });
                Ok(())
            }
            _ => self.inline_flags(),
        }
    }

    fn until(&mut self, stop: u8, otherwise: &str) -> Result<String, String> {
        let end = self.rest().iter().position(|&byte| byte == stop).ok_or_else(|| otherwise.to_owned())?;
        let text = String::from_utf8_lossy(&self.rest()[..end]).into_owned();
        self.at += end + 1;
        Ok(text)
    }

    /// `(?ims)` at the start holds for all of the pattern; `(?i-s:…)` holds for its group.
    fn inline_flags(&mut self) -> Result<(), String> {
        let end = self
            .rest()
            .iter()
            .position(|byte| !byte.is_ascii_alphabetic() && *byte != b'-')
            .unwrap_or(self.rest().len());
        let letters = String::from_utf8_lossy(&self.rest()[..end]).into_owned();
        let closing = self.rest().get(end).copied();
        self.at += end + usize::from(closing.is_some());
        if letters.is_empty() || !letters.chars().all(|letter| "aimsx-".contains(letter)) {
            return Err(format!("`(?{letters}` is not an extension that patterns over bytes have"));
        }
        // ASCII is the only reading here, so `a` says nothing.
        let kept: Cow<'_, str> = letters.replace('a', "").into();
        match closing {
            Some(b')') if self.out.is_empty() && !letters.contains('-') => {
                self.verbose |= kept.contains('x');
                if !kept.is_empty() {
                    self.flags.push_str(&format!("(?{kept})"));
                }
                Ok(())
            }
            Some(b')') => Err(format!("`(?{letters})` must stand at the start of the pattern")),
            Some(b':') => {
                self.write(&format!("(?{kept}:"));
                Ok(())
            }
            _ => Err(format!("`(?{letters}` is not closed")),
        }
    }
}

/// Where an escape stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Pattern,
    Class,
}

impl fmt::Debug for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Pattern({:?})", self.source)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.source)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.source == other.source
    }
}

impl Eq for Pattern {}

impl std::str::FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Pattern, String> {
        Pattern::parse(text)
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.source)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Pattern, D::Error> {
        Pattern::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl JsonSchema for Pattern {
    fn schema_name() -> Cow<'static, str> {
        "Pattern".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "x-form": "pattern"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, line: &[u8]) -> bool {
        Pattern::parse(pattern)
            .unwrap_or_else(|why| panic!("{pattern}: {why}"))
            .is_match(line)
            .expect("within the limits")
    }

    #[test]
    fn patterns_mean_what_python_means_on_bytes() {
        let table: &[(&str, &[u8], bool)] = &[
            // `$` before one final newline, `\Z` only at the very end
            (r"over\r$", b"over\r\n", true),
            (r"over\r?$", b"over\n", true),
            (r"over$", b"over\n\n", false),
            (r"over$", b"over\r\n", false),
            (r"over\Z", b"over\n", false),
            (r"over\Z", b"over", true),
            (r"over\n\Z", b"over\n", true),
            // `.` takes \r and foreign bytes, never \n
            (r"a.b", b"a\rb", true),
            (r"a.b", b"a\xffb", true),
            (r"a.b", b"a\nb", false),
            (r"(?s)a.b", b"a\nb", true),
            // searched anywhere; ^ is the start of the line only
            (r"panic", b"kernel panic\n", true),
            (r"^panic", b"kernel panic\n", false),
            (r"(?m)^panic", b"kernel\npanic\n", true),
            // look-around
            (r"ring .* timeout(?!, but soft recovered)", b"ring gfx timeout\n", true),
            (r"ring .* timeout(?!, but soft recovered)", b"ring gfx timeout, but soft recovered\n", false),
            (r"(?<=a)b", b"ab", true),
            (r"(?<!a)b", b"ab", false),
            // bytes, not characters
            ("é", "é".as_bytes(), true),
            ("^.é?$", b"x\xc3\n", true),
            ("^[é]$", b"\xa9\n", true),
            ("^[é]$", "é\n".as_bytes(), false),
            ("^..$", "é\n".as_bytes(), true),
            (r"\xff\xfe", b"\xff\xfe", true),
            // ASCII classes
            (r"^\w$", b"\xe9", false),
            (r"(?i)É", "é".as_bytes(), false),
            (r"(?i)panic", b"PANIC", true),
            (r"\d", "٣".as_bytes(), false),
            (r"\s", b"\x0b", true),
            (r"^\v$", b"\x0b", true),
            (r"^\v$", b"\x0c", false),
            // groups and counts
            (r"(?P<word>ab)-(?P=word)", b"ab-ab", true),
            (r"(ab)-\1", b"ab-ab", true),
            (r"\101\0", b"A\0", true),
            (r"^(a)?(?(1)b|c)$", b"ab", true),
            (r"^(?P<R>a)?(?(R)b|c)$", b"c", true),
            (r"^a{,2}$", b"aa", true),
            (r"^a{,2}$", b"a{,2}", false),
            (r"^a{x}$", b"a{x}", true),
            (r"^a{}$", b"a{}", true),
            (r"a{2", b"a{2", true),
            (r"a++b", b"aaab", true),
            (r"a++ab", b"aaab", false),
            (r"(?>a+)ab", b"aaab", false),
            // classes
            (r"^[]a]+$", b"]a", true),
            (r"^[^]a]$", b"]", false),
            (r"^[[:alpha:]]$", b"h]", true),
            (r"^[[:alpha:]]$", b"h", false),
            (r"^[\b]$", b"\x08", true),
            (r"^[\12\1]+$", b"\n\x01", true),
            (r"^\[[:a:]]$", b"[:]", true),
            // flags
            (r"(?a)x", b"x", true),
            ("(?x) a b # a comment with a ( in it\n c", b"abc", true),
            (r"(?i)(?m)^B$", b"a\nb\nc", true),
            (r"a(?i:B)c", b"abc", true),
            (r"a(?#(note)b", b"ab", true),
            // CI-tron's default end of session
            (r"^\[[\d \.]{12}\] reboot: Power Down$", b"[   12.345678] reboot: Power Down\n", true),
        ];
        for (pattern, line, expected) in table {
            assert_eq!(matches(pattern, line), *expected, "{pattern} on {:?}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn what_python_refuses_is_refused_with_its_reason() {
        let table = [
            (r"\u00e9", "`\\u` means nothing in a pattern over bytes"),
            (r"a\Kb", "`\\K` means nothing in a pattern over bytes"),
            (r"\p{L}", "`\\p` means nothing in a pattern over bytes"),
            (r"[\Z]", "`\\Z` means nothing in a pattern over bytes"),
            (r"(*UTF)a", "there is nothing before `*` to repeat"),
            (r"(?R)", "`(?R` is not an extension that patterns over bytes have"),
            (r"a(?i)b", "`(?i)` must stand at the start of the pattern"),
            (r"(?u)b", "`(?u` is not an extension that patterns over bytes have"),
            (r"\x4", "`\\x` needs two hexadecimal digits"),
            (r"\777", "the octal escape `\\777` is more than a byte"),
            (r"[a", "a class `[` is not closed"),
            ("\\", "the pattern ends in a lone backslash"),
        ];
        for (pattern, why) in table {
            assert_eq!(Pattern::parse(pattern).expect_err(pattern), why);
        }
        for pattern in ["(", ")", "*a", r"\2(a)", "a{2,1}", "(?P<a>x)(?P<a>y)", "[b-a]"] {
            assert!(Pattern::parse(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_that_would_run_for_ever_gives_up() {
        for source in ["(a+a+)+$", "^(a+a+)+$", "(a|aa)+$", "(.*)*(.*)*(.*)*x$", r"(a*)*\1b$"] {
            let pattern = Pattern::parse(source).expect("a bad idea, but a pattern");
            let line = [&[b'a'; LINE_BYTES_AT_MOST - 3][..], b"bx!"].concat();
            let started = std::time::Instant::now();
            let answer = pattern.is_match(&line);
            assert!(answer.is_err(), "{source} gave {answer:?}");
            assert!(started.elapsed() < std::time::Duration::from_secs(2), "{source} took {:?}", started.elapsed());
        }
    }

    #[test]
    fn a_line_of_a_megabyte_is_searched_in_its_first_16_kib() {
        let line = [&[b'a'; 1_000_000][..], b"needle"].concat();
        assert!(!matches("needle", &line));
        assert!(matches("^(a|b)+$", &line));
    }

    #[test]
    fn a_whole_match_takes_all_and_gives_its_groups() {
        let pattern = Pattern::parse(r"/dtbs?/(.*)|/(x)").expect("good");
        assert!(pattern.is_full_match(b"/dtb/a.dtb").expect("within the limits"));
        assert!(!pattern.is_full_match(b"/x/dtb/a").expect("within the limits"));
        assert!(!pattern.is_full_match(b"/x\n").expect("within the limits"));
        let groups = pattern.full_match_groups(b"/dtbs/b").expect("within the limits").expect("it matches");
        assert_eq!(groups, [Some(0..7), Some(6..7), None]);
    }
}
