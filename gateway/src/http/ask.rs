//! A request for a name that is answered live: read whole, put to its [`Answer`](crate::live::Answer), and waited for as long as
//! somebody waits.
//!
//! ```text
//!  GET, POST ── form (query, body ≤ BODY_BYTES_MAX), or JSON ──► Question ──► Answer::answer ──► Reply ──► status, text
//!      │ other methods, HEAD: 405       400, 408, 413, 415                 │
//!      │ (asking acts, a look would too)                                   ├─ the publication is dropped ──► 410
//!      └─ the connection closes ──► hyper drops all of it                  └─ the server stops ──► 503
//! ```

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use tokio::sync::watch;

use super::connection::LIVENESS_PERIOD;
use super::form::{self, BadPair};
use super::transfer::AnswerBody;
use super::{Failure, Stop, sentence, stop_wanted, text};
use crate::live::{Question, Reply, Takes, Verb};
use crate::namespace::{Live, Liveness};

/// 64 KiB: a form that a script fills in; what is larger is a file.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// The answer to `request`, which `live` is asked for.
pub(super) async fn ask(
    live: Live,
    request: Request<Incoming>,
    body_timeout: Duration,
    mut stopped: watch::Receiver<Stop>,
) -> Response<AnswerBody> {
    let Live { answer, path, liveness } = live;
    let takes = answer.takes();
    let question = match read(request, path, takes, body_timeout).await {
        Ok(question) => question,
        Err(failure) => return refusal(&failure, takes),
    };
    tokio::select! {
        Reply { status, text: body } = answer.answer(question) => {
            let mut response = text(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), body);
            if takes == Takes::Json {
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            }
            response
        }
        () = gone(&liveness) => refusal(&Failure {
            status: StatusCode::GONE,
            sentence: "the job took its namespace back".to_owned(),
        }, takes),
        () = stop_wanted(&mut stopped) => refusal(&Failure {
            status: StatusCode::SERVICE_UNAVAILABLE,
            sentence: "the gateway stops; ask again when the farm is back".to_owned(),
        }, takes),
    }
}

/// Returns when the publication was dropped.
pub(super) async fn gone(liveness: &Liveness) {
    let mut period = tokio::time::interval(LIVENESS_PERIOD);
    while liveness.is_live() {
        period.tick().await;
    }
}

fn refusal(failure: &Failure, takes: Takes) -> Response<AnswerBody> {
    let mut response = sentence(failure);
    if failure.status == StatusCode::METHOD_NOT_ALLOWED {
        let allowed = match takes {
            Takes::Forms => "GET, POST",
            Takes::Json => "GET, POST, PUT, PATCH",
        };
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    }
    response
}

async fn read(
    request: Request<Incoming>,
    path: String,
    takes: Takes,
    body_timeout: Duration,
) -> Result<Question, Failure> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let mut question = Question { path, pairs: pairs(&query)?, ..Question::default() };
    question.verb = match (request.method(), takes) {
        (&hyper::Method::GET, _) => return Ok(question),
        (&hyper::Method::POST, _) => Verb::Post,
        (&hyper::Method::PUT, Takes::Json) => Verb::Put,
        (&hyper::Method::PATCH, Takes::Json) => Verb::Patch,
        (method, Takes::Forms) => {
            let sentence = format!("this name is asked with GET or POST, not {method}");
            return Err(Failure { status: StatusCode::METHOD_NOT_ALLOWED, sentence });
        }
        (method, Takes::Json) => {
            let sentence = format!("this name is asked with GET, POST, PUT or PATCH, not {method}");
            return Err(Failure { status: StatusCode::METHOD_NOT_ALLOWED, sentence });
        }
    };
    let body = body(request, takes, body_timeout).await?;
    match takes {
        Takes::Forms => question.pairs.extend(pairs(&body)?),
        Takes::Json => question.json = body,
    }
    Ok(question)
}

fn pairs(form: &str) -> Result<Vec<(String, String)>, Failure> {
    form::pairs(form).map_err(|BadPair(pair)| Failure {
        status: StatusCode::BAD_REQUEST,
        sentence: format!("`{}` is not percent-encoded UTF-8", pair.escape_debug()),
    })
}

/// The form, or the JSON, in the body of a request. What is JSON shows when it is read: clients name its type by several names.
async fn body(request: Request<Incoming>, takes: Takes, timeout: Duration) -> Result<String, Failure> {
    let media_type = request.headers().get(CONTENT_TYPE).map(|value| value.to_str().unwrap_or("no text").to_owned());
    let bytes = tokio::time::timeout(timeout, whole(request.into_body())).await.map_err(|_| Failure {
        status: StatusCode::REQUEST_TIMEOUT,
        sentence: format!("the request's body did not arrive within {timeout:?}"),
    })??;
    let (is_expected, hint) = match (takes, media_type.as_deref()) {
        (Takes::Forms, Some(other)) if !bytes.is_empty() => (is_form(other), "percent-encode it"),
        (Takes::Forms, _) => (true, "percent-encode it"),
        (Takes::Json, _) => (true, "JSON is"),
    };
    if !is_expected {
        let other = media_type.unwrap_or_default();
        return Err(Failure {
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            sentence: format!("the body is `{}`; send application/x-www-form-urlencoded", other.escape_debug()),
        });
    }
    String::from_utf8(bytes.into())
        .map_err(|_| Failure { status: StatusCode::BAD_REQUEST, sentence: format!("the body is not UTF-8; {hint}") })
}

fn is_form(media_type: &str) -> bool {
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

async fn whole(body: Incoming) -> Result<Bytes, Failure> {
    let collected = Limited::new(body, BODY_BYTES_MAX).collect().await;
    collected.map(|collected| collected.to_bytes()).map_err(|error| match error.is::<LengthLimitError>() {
        true => Failure {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            sentence: format!("the body is longer than {BODY_BYTES_MAX} bytes; what is longer is a file"),
        },
        false => Failure { status: StatusCode::BAD_REQUEST, sentence: format!("the body broke off: {error}") },
    })
}
