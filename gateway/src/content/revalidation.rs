//! Fresh or stale, resume or restart: what to ask an artifact server, and what its answer means. No sockets, no files.
//!
//! ```text
//!  what the cache has            asked with                                   answer → verdict
//!  complete body + validator     If-None-Match | If-Modified-Since            304 → Reuse
//!  partial body + validator      Range: bytes=N- and If-Range                 206 from N, same validator → Append
//!  anything                      the same                                     200 → Start
//!                                                                             206 of something else, 416 → AskWhole
//!                                                                             408 425 429 500 502 503 504 → TryAgain
//!                                                                             any other → Refuse
//! ```

use serde::{Deserialize, Serialize};

/// What identifies one version of a body: response headers, kept as received.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Validators {
    /// `ETag`.
    pub(super) etag: Option<String>,
    /// `Last-Modified`.
    pub(super) last_modified: Option<String>,
}

impl Validators {
    /// The entity tag, if it promises equality byte by byte (RFC 9110, 8.8.1: a weak one does not).
    pub(super) fn strong_etag(&self) -> Option<&str> {
        self.etag.as_deref().filter(|etag| !etag.starts_with("W/"))
    }

    /// What may stand in `If-Range`: never a weak tag (RFC 9110, 13.1.5).
    fn for_range(&self) -> Option<&str> {
        match &self.etag {
            Some(_) => self.strong_etag(),
            None => self.last_modified.as_deref(),
        }
    }

    /// Whether an answer with `other` can be a further piece of the body that has these.
    fn continues(&self, other: &Validators) -> bool {
        match (self.strong_etag(), other.strong_etag()) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => self.last_modified == other.last_modified || other.last_modified.is_none(),
        }
    }
}

/// The conditional headers of one request; absent ones are not sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Conditions {
    /// `If-None-Match`.
    pub(super) if_none_match: Option<String>,
    /// `If-Modified-Since`.
    pub(super) if_modified_since: Option<String>,
    /// `Range: bytes=N-`, together with `if_range`.
    pub(super) range_from: Option<u64>,
    /// `If-Range`.
    pub(super) if_range: Option<String>,
}

/// A body that did not arrive whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    /// Whose start it is.
    pub(super) validators: &'a Validators,
    /// How much of it there is.
    pub(super) bytes: u64,
}

/// What to ask, given what the cache has. A server looks at `If-None-Match` first and at `If-Range` only when that failed
/// (RFC 9110, 13.2.2), so both can go into one request.
pub(super) fn conditions(complete: Option<&Validators>, part: Option<Part<'_>>) -> Conditions {
    let mut asked = Conditions::default();
    if let Some(complete) = complete {
        asked.if_none_match = complete.etag.clone();
        if complete.etag.is_none() {
            asked.if_modified_since = complete.last_modified.clone();
        }
    }
    if let Some(part) = part
        && part.bytes > 0
        && let Some(validator) = part.validators.for_range()
    {
        asked.range_from = Some(part.bytes);
        asked.if_range = Some(validator.to_owned());
    }
    asked
}

/// What of an answer matters here.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    /// The status code.
    pub(super) status: u16,
    /// `ETag` and `Last-Modified`.
    pub(super) validators: Validators,
    /// `Content-Range`.
    pub(super) content_range: Option<String>,
    /// `Content-Length`.
    pub(super) content_length: Option<u64>,
}

/// What to do with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The complete body of the cache is the current one.
    Reuse,
    /// The answer goes on where the partial body ends.
    Append {
        /// Length of the whole body.
        total: Option<u64>,
    },
    /// The answer is a whole body; whatever the cache had is another version.
    Start {
        /// Its length, if told.
        total: Option<u64>,
    },
    /// The partial body is of no use: drop it and ask for the whole.
    AskWhole,
    /// The server is busy or broken for the moment.
    TryAgain,
    /// The server has no such artifact for us.
    Refuse,
}

/// What `answer` means to a request with the conditions `asked`, given the partial body's validators.
pub(super) fn judge(asked: &Conditions, part: &Validators, answer: &Answer) -> Verdict {
    let was_conditional = asked.if_none_match.is_some() || asked.if_modified_since.is_some();
    match answer.status {
        200 => Verdict::Start { total: answer.content_length },
        206 => judge_part(asked, part, answer),
        304 if was_conditional => Verdict::Reuse,
        416 if asked.range_from.is_some() => Verdict::AskWhole,
        // RFC 9110, 15.5.9 and 15.6; 425 is RFC 8470, 429 is RFC 6585.
        408 | 425 | 429 | 500 | 502 | 503 | 504 => Verdict::TryAgain,
        _ => Verdict::Refuse,
    }
}

fn judge_part(asked: &Conditions, part: &Validators, answer: &Answer) -> Verdict {
    let Some(from) = asked.range_from else { return Verdict::Refuse };
    match answer.content_range.as_deref().and_then(content_range) {
        Some((start, total)) if start == from && part.continues(&answer.validators) => Verdict::Append { total },
        _ => Verdict::AskWhole,
    }
}

/// `bytes 5-9/100` → (5, Some(100)); `bytes 5-9/*` → (5, None).
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validators(etag: &str, last_modified: &str) -> Validators {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Validators { etag: some(etag), last_modified: some(last_modified) }
    }

    fn asked_for(part: &Validators, bytes: u64) -> Conditions {
        conditions(None, Some(Part { validators: part, bytes }))
    }

    fn answer(status: u16, etag: &str, content_range: &str) -> Answer {
        Answer {
            status,
            validators: validators(etag, ""),
            content_range: (!content_range.is_empty()).then(|| content_range.to_owned()),
            content_length: Some(5),
        }
    }

    #[test]
    fn a_complete_body_is_asked_for_by_its_tag_or_else_by_its_date() {
        let by_tag = conditions(Some(&validators("\"a\"", "Mon")), None);
        assert_eq!((by_tag.if_none_match.as_deref(), by_tag.if_modified_since), (Some("\"a\""), None));
        let by_date = conditions(Some(&validators("", "Mon")), None);
        assert_eq!((by_date.if_none_match, by_date.if_modified_since.as_deref()), (None, Some("Mon")));
    }

    #[test]
    fn a_part_without_a_strong_validator_is_never_resumed() {
        assert_eq!(asked_for(&validators("W/\"a\"", "Mon"), 5), Conditions::default());
        assert_eq!(asked_for(&validators("", ""), 5), Conditions::default());
        assert_eq!(asked_for(&validators("\"a\"", ""), 0), Conditions::default());
        let resumed = asked_for(&validators("", "Mon"), 5);
        assert_eq!((resumed.range_from, resumed.if_range.as_deref()), (Some(5), Some("Mon")));
    }

    #[test]
    fn only_the_piece_that_was_asked_for_is_appended() {
        let part = validators("\"a\"", "");
        let asked = asked_for(&part, 5);
        let judged = |answer| judge(&asked, &part, &answer);
        assert_eq!(judged(answer(206, "\"a\"", "bytes 5-9/10")), Verdict::Append { total: Some(10) });
        assert_eq!(judged(answer(206, "\"a\"", "bytes 5-9/*")), Verdict::Append { total: None });
        assert_eq!(judged(answer(206, "\"a\"", "bytes 4-9/10")), Verdict::AskWhole);
        assert_eq!(judged(answer(206, "\"b\"", "bytes 5-9/10")), Verdict::AskWhole);
        assert_eq!(judged(answer(206, "\"a\"", "")), Verdict::AskWhole);
        assert_eq!(judged(answer(206, "\"a\"", "bytes 5-4/10")), Verdict::AskWhole);
        assert_eq!(judged(answer(206, "\"a\"", "bytes 5-10/10")), Verdict::AskWhole);
        assert_eq!(judged(answer(416, "", "bytes */5")), Verdict::AskWhole);
        assert_eq!(judged(answer(200, "\"b\"", "")), Verdict::Start { total: Some(5) });
    }

    #[test]
    fn not_modified_counts_only_when_we_asked_for_it() {
        let asked = conditions(Some(&validators("\"a\"", "")), None);
        assert_eq!(judge(&asked, &Validators::default(), &answer(304, "\"a\"", "")), Verdict::Reuse);
        let unasked = Conditions::default();
        assert_eq!(judge(&unasked, &Validators::default(), &answer(304, "\"a\"", "")), Verdict::Refuse);
        assert_eq!(judge(&unasked, &Validators::default(), &answer(206, "\"a\"", "bytes 0-4/5")), Verdict::Refuse);
    }

    #[test]
    fn a_missing_artifact_is_refused_and_a_busy_server_is_tried_again() {
        for (status, expected) in [
            (404, Verdict::Refuse),
            (403, Verdict::Refuse),
            (204, Verdict::Refuse),
            (503, Verdict::TryAgain),
            (429, Verdict::TryAgain),
        ] {
            assert_eq!(
                judge(&Conditions::default(), &Validators::default(), &answer(status, "", "")),
                expected,
                "{status}"
            );
        }
    }
}
