//! Form data of a query or a body: `key=value&key=value`, percent-encoded. Sans-io. ◆
//!
//! ```text
//!  a=1&b=two+words&c=%0A&d   ──►   ("a", "1") ("b", "two words") ("c", "\n") ("d", "")
//!  a=%zz   a=%ff                   refused: no text
//! ```
//! The rules are those of HTML forms (URL Standard, 5.1), which curl's `-d` and `--data-urlencode` write, but what they would replace
//! by U+FFFD is refused here: a script is told of its mistake, rather than its reader later.

use super::answer::percent_decoded;

/// A pair that is not percent-encoded UTF-8, as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadPair(pub String);

/// The pairs of `form`, in its order.
pub fn pairs(form: &str) -> Result<Vec<(String, String)>, BadPair> {
    form.split('&').filter(|pair| !pair.is_empty()).map(pair).collect()
}

fn pair(text: &str) -> Result<(String, String), BadPair> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    let decoded = |part: &str| percent_decoded(&part.replace('+', " ")).ok_or_else(|| BadPair(text.to_owned()));
    Ok((decoded(key)?, decoded(value)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_read_as_curl_and_browsers_write_them() {
        for (form, expected) in [
            ("", vec![]),
            ("a=1", vec![("a", "1")]),
            ("a=1&b=two+words&c=%0A&d", vec![("a", "1"), ("b", "two words"), ("c", "\n"), ("d", "")]),
            ("&&a=b=c&", vec![("a", "b=c")]),
            ("sum=1%2B2&%c3%a9=%26", vec![("sum", "1+2"), ("é", "&")]),
        ] {
            let found = pairs(form).unwrap();
            let found: Vec<_> = found.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            assert_eq!(found, expected, "{form}");
        }
    }

    #[test]
    fn a_pair_that_is_no_text_is_named() {
        for (form, wrong) in [("a=1&b=%zz", "b=%zz"), ("a=%ff", "a=%ff"), ("%f=1", "%f=1"), ("a=%+1", "a=%+1")] {
            assert_eq!(pairs(form), Err(BadPair(wrong.into())), "{form}");
        }
    }
}
