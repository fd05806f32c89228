//! The one place where a refusal becomes an HTTP answer.
//!
//! | refusal | status | a client of ours reads | a client of CI-tron's reads |
//! |---|---|---|---|
//! | the job has problems | 400 | `{"error", "problems": […]}` | the same: its `error` |
//! | the request is malformed | 400 | `{"error"}` | the same |
//! | who calls is not known, or what he shows does not hold | 401 | `{"error"}`, and how to show it | " |
//! | not allowed: a foreign web page; MinIO groups | 403 | `{"error"}` | `{"version": 1, "error_msg"}` |
//! | no such DUT, no such job | 404 | " | " |
//! | no DUT has the tags | 406 | " | " |
//! | every fitting DUT is busy, the job has ended | 409 | " | " (the only one it tries again) |
//! | the lease is over | 410 | `{"error"}` | – |
//! | more than the server takes | 413 | " | " |
//! | the tarball is none | 420 | – | plain text `Invalid tarball file` |
//! | as much as the project may have | 429 | " | " |
//! | no room for one more upload | 503 | " | " |
//! | our own fault | 500 | " | " |

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use job_schema::problem::Problems;
use serde_json::{Value, json};

use super::guard::CHALLENGE;
use crate::farm::{CancelError, RemoveError, SubmitError};

/// Why a request is refused.
#[derive(Debug)]
pub(super) enum ApiError {
    /// The job description has problems.
    Problems(Problems),
    /// The request is not what the route takes.
    Malformed(String),
    /// Nobody knows who calls, or what he shows does not hold.
    Unauthorized(String),
    /// The caller may not.
    Forbidden(String),
    /// It names something that does not exist.
    NotFound(String),
    /// No DUT could ever take the job.
    NotAcceptable(String),
    /// Not in this state; later perhaps.
    Conflict(String),
    /// It was there, and is over.
    Gone(String),
    /// It is larger than the server takes.
    TooLarge(String),
    /// His project has as much as it may.
    TooMany(String),
    /// CI-tron's own status for a job bucket that is not a tar file.
    InvalidTarball,
    /// Too much is being done already.
    Unavailable(String),
    /// The server failed.
    Internal(String),
}

/// From where clients since 0.2.0 take the version of an answer, before they look into its body.
pub(super) const VERSION: HeaderName = HeaderName::from_static("ci_tron_version");

/// Whose client reads the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `{"error": …}`
    Ours,
    /// `{"version": 1, "error_msg": …}`, except where CI-tron itself answers with `error`.
    CiTron,
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            ApiError::Problems(_) | ApiError::Malformed(_) => StatusCode::BAD_REQUEST,
            ApiError::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            ApiError::Forbidden(_) => StatusCode::FORBIDDEN,
            ApiError::NotFound(_) => StatusCode::NOT_FOUND,
            ApiError::NotAcceptable(_) => StatusCode::NOT_ACCEPTABLE,
            ApiError::Conflict(_) => StatusCode::CONFLICT,
            ApiError::Gone(_) => StatusCode::GONE,
            ApiError::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            ApiError::TooMany(_) => StatusCode::TOO_MANY_REQUESTS,
            ApiError::InvalidTarball => StatusCode::from_u16(420).expect("420 is within 100 to 999"),
            ApiError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            ApiError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn text(&self) -> String {
        match self {
            ApiError::Problems(problems) => problems.to_string(),
            ApiError::InvalidTarball => "Invalid tarball file".into(),
            ApiError::Malformed(text)
            | ApiError::Unauthorized(text)
            | ApiError::Forbidden(text)
            | ApiError::NotFound(text)
            | ApiError::NotAcceptable(text)
            | ApiError::Conflict(text)
            | ApiError::Gone(text)
            | ApiError::TooLarge(text)
            | ApiError::TooMany(text)
            | ApiError::Unavailable(text)
            | ApiError::Internal(text) => text.clone(),
        }
    }

    /// The answer for a program that reads no JSON.
    pub(super) fn in_text(self) -> (StatusCode, String) {
        (self.status(), self.text())
    }

    /// The JSON of the answer. What CI-tron answers with 400 has no `version`, and its clients then read `error`; all but 0.2.0, which gives
    /// up without one (`client.py`, `Response.version`). That one takes the version from [`VERSION`] and reads `error_msg`.
    fn body(&self, dialect: Dialect) -> Value {
        match (self, dialect) {
            (ApiError::Problems(problems), Dialect::Ours) => json!({"error": self.text(), "problems": problems}),
            (ApiError::Problems(problems), Dialect::CiTron) => {
                json!({"error": self.text(), "error_msg": self.text(), "problems": problems})
            }
            (ApiError::Malformed(_), Dialect::CiTron) => json!({"error": self.text(), "error_msg": self.text()}),
            (_, Dialect::Ours) => json!({"error": self.text()}),
            (_, Dialect::CiTron) => json!({"version": 1, "error_msg": self.text()}),
        }
    }

    /// The answer as a client of this dialect understands it.
    pub(super) fn respond(self, dialect: Dialect) -> Response {
        match self {
            ApiError::InvalidTarball => (self.status(), self.text()).into_response(),
            other => {
                let mut response = (other.status(), Json(other.body(dialect))).into_response();
                if dialect == Dialect::CiTron {
                    response.headers_mut().insert(VERSION, HeaderValue::from_static("1"));
                }
                if matches!(other, ApiError::Unauthorized(_)) {
                    response.headers_mut().insert(header::WWW_AUTHENTICATE, CHALLENGE);
                }
                response.extensions_mut().insert(Why(other.text()));
                response
            }
        }
    }
}

/// The sentence of a refusal, beside its body, for the audit log.
#[derive(Clone, Debug)]
pub(super) struct Why(pub(super) String);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.respond(Dialect::Ours)
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let text = error.to_string();
        match error {
            SubmitError::Invalid(problems) => ApiError::Problems(problems),
            SubmitError::NoSuchDut { .. } => ApiError::NotFound(text),
            SubmitError::NoDutMatches { .. } | SubmitError::Never(_) => ApiError::NotAcceptable(text),
            SubmitError::Busy { .. } => ApiError::Conflict(text),
            SubmitError::TooMany(_) => ApiError::TooMany(text),
            SubmitError::Farm(_) => ApiError::Internal(text),
        }
    }
}

impl From<CancelError> for ApiError {
    fn from(error: CancelError) -> Self {
        let text = error.to_string();
        match error {
            CancelError::NoSuchJob(_) => ApiError::NotFound(text),
            CancelError::Ended(_) => ApiError::Conflict(text),
        }
    }
}

impl From<RemoveError> for ApiError {
    fn from(error: RemoveError) -> Self {
        let text = error.to_string();
        match error {
            RemoveError::NoSuch(_) => ApiError::NotFound(text),
            RemoveError::Used { .. } => ApiError::Conflict(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use job_schema::problem::Problem;

    fn answer(error: SubmitError, dialect: Dialect) -> (u16, String) {
        let error = ApiError::from(error);
        (error.status().as_u16(), error.body(dialect).to_string())
    }

    #[test]
    fn a_ci_tron_client_gets_the_statuses_and_fields_of_ci_tron() {
        let no_such = SubmitError::NoSuchDut { wanted: "x".into(), known: vec!["a".into(), "b".into()] };
        let expected = r#"{"version":1,"error_msg":"no DUT `x`; DUTs: a, b"}"#;
        assert_eq!(answer(no_such, Dialect::CiTron), (404, expected.into()));
        let no_match = SubmitError::NoDutMatches { tags: vec!["t".into()], reasons: vec!["a: lacks t".into()] };
        assert_eq!(answer(no_match, Dialect::CiTron).0, 406);
        let busy = SubmitError::Busy { reasons: vec!["a: runs job 1".into()] };
        let expected = r#"{"version":1,"error_msg":"every fitting DUT is busy: a: runs job 1"}"#;
        assert_eq!(answer(busy, Dialect::CiTron), (409, expected.into()));
        assert_eq!(answer(SubmitError::Farm("stopping".into()), Dialect::CiTron).0, 500);
    }

    #[test]
    fn problems_are_told_as_a_drawing_and_as_a_list_in_both_dialects() {
        let problem = Problem::new("bad").about("target").hint("mend it");
        let body = |dialect| {
            let problems = Problems::one("job.yml", "a: 1\n", problem.clone());
            answer(SubmitError::Invalid(problems), dialect)
        };
        let (status, text) = body(Dialect::CiTron);
        assert_eq!(status, 400);
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value.get("version"), None);
        assert!(value["error"].as_str().unwrap().contains("error: bad"));
        assert_eq!(value["problems"][0]["hint"], "mend it");
        // Client 0.2.0 reads this one, by the version of the header.
        assert_eq!(value["error_msg"], value["error"]);
        let ours: Value = serde_json::from_str(&body(Dialect::Ours).1).unwrap();
        assert_eq!((&ours["error"], ours.get("error_msg")), (&value["error"], None));
    }

    #[test]
    fn a_broken_tarball_is_answered_as_plain_text_with_420() {
        let response = ApiError::InvalidTarball.respond(Dialect::CiTron);
        assert_eq!(response.status().as_u16(), 420);
        assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
    }
}
