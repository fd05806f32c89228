//! What an unquoted word means, asked type by type: the YAML 1.1 reading that CI-tron's jobs were written for.
//!
//! | written | as text | as number | as boolean |
//! |---|---|---|---|
//! | `52:54:00:11:22:33` | text (base 60 is not read) | – | – |
//! | `010`, `0o10`, `0x10` | problem: quote it | 8, 8, 16 | – |
//! | `yes`, `on`, `Off` | problem: quote it | – | true, true, false |
//! | `1_000` | problem: quote it | 1000 | – |
//! | `12e45678` | text | – | – |

use crate::guard::{Scalar, Style};

impl Scalar {
    /// Whether it is the null of YAML.
    pub(crate) fn is_null(&self) -> bool {
        self.style == Style::Plain && matches!(self.text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }

    /// The text, unless YAML reads it as something else; then the name of that.
    pub(crate) fn as_text(&self) -> Result<&str, &'static str> {
        if self.style == Style::Quoted {
            return Ok(&self.text);
        }
        if self.is_null() {
            Err("nothing")
        } else if self.text.len() > 1 && boolean_word(&self.text).is_some() {
            Err("a boolean")
        } else if integer(&self.text).is_some() || float(&self.text).is_some() {
            Err("a number")
        } else {
            Ok(&self.text)
        }
    }

    /// The whole number, also when it stands in quotes.
    pub(crate) fn as_integer(&self) -> Option<i128> {
        integer(self.text.trim())
    }

    /// The number, also when it stands in quotes.
    pub(crate) fn as_number(&self) -> Option<f64> {
        let text = self.text.trim();
        integer(text).map(|number| number as f64).or_else(|| float(text)).filter(|number| number.is_finite())
    }

    /// The boolean, also when it stands in quotes or is 0 or 1.
    pub(crate) fn as_boolean(&self) -> Option<bool> {
        match self.text.trim() {
            "1" => Some(true),
            "0" => Some(false),
            word => boolean_word(word),
        }
    }
}

fn boolean_word(text: &str) -> Option<bool> {
    let lower = text.to_ascii_lowercase();
    // YAML 1.1 knows three spellings: lower, Capital and UPPER.
    let capital = format!("{}{}", lower.get(..1)?.to_ascii_uppercase(), &lower[1..]);
    if text != lower && text != capital && text != lower.to_ascii_uppercase() {
        return None;
    }
    match lower.as_str() {
        "true" | "yes" | "on" | "y" => Some(true),
        "false" | "no" | "off" | "n" => Some(false),
        _ => None,
    }
}

/// Decimal, `0x`, `0b`, `0o` and the leading-zero octal of YAML 1.1; underscores between digits are ignored.
fn integer(text: &str) -> Option<i128> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    if !digits.as_bytes().first()?.is_ascii_digit() || digits.len() > 40 {
        return None;
    }
    let digits = digits.replace('_', "");
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits.as_str()),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    i128::from_str_radix(digits, radix).ok().map(|number| sign * number)
}

/// A float as YAML 1.1 writes it: a dot is needed, an exponent needs its sign; `.inf` and `.nan` are numbers too.
fn float(text: &str) -> Option<f64> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned.to_ascii_lowercase().as_str(), ".inf" | ".nan") {
        return Some(f64::NAN);
    }
    let plausible = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && unsigned.contains('.')
        && unsigned.contains(|c: char| c.is_ascii_digit())
        && unsigned.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-' | '_'));
    if !plausible {
        return None;
    }
    text.replace('_', "").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> Scalar {
        Scalar { text: text.to_owned(), style: Style::Plain }
    }

    #[test]
    fn an_address_or_a_hash_is_text_though_yaml_1_1_would_count() {
        for text in [
            "52:54:00:11:22:33",
            "12:30",
            "12e45678",
            "1.2.3",
            "b2c",
            "2021-03-31",
            "0x",
            "-",
            "6.6.21-mesa",
            "08",
            "y",
        ] {
            assert_eq!(plain(text).as_text(), Ok(text), "{text}");
        }
    }

    #[test]
    fn what_yaml_reads_as_something_else_is_not_text_unless_quoted() {
        let table = [
            ("1", "a number"),
            ("010", "a number"),
            ("1.5", "a number"),
            ("0x1F", "a number"),
            ("1_000", "a number"),
            ("yes", "a boolean"),
            ("Off", "a boolean"),
            ("TRUE", "a boolean"),
            ("", "nothing"),
            ("~", "nothing"),
            (".inf", "a number"),
        ];
        for (text, kind) in table {
            assert_eq!(plain(text).as_text(), Err(kind), "{text}");
            assert_eq!(Scalar { text: text.to_owned(), style: Style::Quoted }.as_text(), Ok(text));
        }
    }

    #[test]
    fn whole_numbers_are_read_in_four_bases() {
        let table = [
            ("0", 0),
            ("42", 42),
            ("-7", -7),
            ("0x10008000", 0x1000_8000),
            ("0o17", 15),
            ("0100644", 0o100_644),
            ("0b101", 5),
            ("1_000", 1000),
        ];
        for (text, number) in table {
            assert_eq!(plain(text).as_integer(), Some(number), "{text}");
        }
        for text in ["", "x", "1.0", "0x", "09", "0x-1", "--1", "1e3", &"9".repeat(100)] {
            assert_eq!(plain(text).as_integer(), None, "{text}");
        }
    }

    #[test]
    fn booleans_have_the_spellings_of_yaml_1_1() {
        for (text, value) in [
            ("yes", true),
            ("On", true),
            ("TRUE", true),
            ("1", true),
            ("no", false),
            ("OFF", false),
            ("False", false),
            ("0", false),
        ] {
            assert_eq!(plain(text).as_boolean(), Some(value), "{text}");
        }
        for text in ["yEs", "2", "", "ja", "é"] {
            assert_eq!(plain(text).as_boolean(), None, "{text}");
        }
    }
}
