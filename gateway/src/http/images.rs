//! Container images for DUTs: HTTP around the registry cache.
//!
//! ```text
//!  request ─► whose DUT? ─ nobody's ─► 403 ─► method, registry/ask.rs ─► Door ─┬─ Denied ─► the specification's JSON, a refusal in the log
//!                                                                              └─ Given ──► answer.rs: range ─► an access, transfer.rs
//! ```
//! The log names what was pulled as an image's name has it, `registry.example.org/a/b@sha256:…`, and says what is to be said of it.

use core::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, LINK,
};
use hyper::{Request, Response, StatusCode};

use super::answer::{self, Method};
use super::connection::Running;
use super::transfer::{AnswerBody, Transfer};
use super::{conditions, method};
use crate::content::{Content, Reader};
use crate::namespace::{Grant, Namespaces, Protocol};
use crate::registry::{self, Asked, Denied, Digest, Door, Given};

/// What registries say of themselves.
const VERSION: (&str, &str) = ("docker-distribution-api-version", "registry/2.0");

/// The answer to a request at the port of the registry cache.
pub(super) async fn answer(
    door: &Door,
    namespaces: &Namespaces<Content>,
    request: &Request<Incoming>,
    peer: IpAddr,
    running: Arc<Running>,
) -> Response<AnswerBody> {
    let path = request.uri().path();
    let grant = match namespaces.outward(peer, Protocol::Registry) {
        Ok(grant) => grant,
        Err(refusal) => return denied(&Denied::new(403, "DENIED", refusal.to_string())),
    };
    let asked = match method(request) {
        Some(method) => registry::asked(path).map(|asked| (method, asked)),
        None => Err(registry::not_read(request.method().as_str())),
    };
    let given = match asked {
        Ok((method, asked)) => {
            let given = door.answer(&asked, request.uri().query(), &grant.logins).await;
            given.map(|given| (method, asked, given))
        }
        Err(why) => Err(why),
    };
    match given {
        Ok((method, asked, given)) => give(request, method, &asked, given, grant, running),
        Err(why) => {
            grant.refuse(path.to_owned(), &why.message);
            denied(&why)
        }
    }
}

fn give(
    request: &Request<Incoming>,
    method: Method,
    asked: &Asked,
    given: Given,
    grant: Grant,
    running: Arc<Running>,
) -> Response<AnswerBody> {
    match given {
        Given::Pong => json(StatusCode::OK, "{}".to_owned()),
        Given::Tags { body, next } => {
            let mut response = json(StatusCode::OK, String::new());
            let path = request.uri().path();
            let next = next.and_then(|query| HeaderValue::from_str(&format!("<{path}?{query}>; rel=\"next\"")).ok());
            response.headers_mut().extend(next.map(|next| (LINK, next)));
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
            *response.body_mut() = AnswerBody::Text(Some(body));
            response
        }
        Given::Object { reader, bytes, digest, media_type, note } => {
            let name = named(asked, digest, note);
            let (whole, found) = (Whole { reader, digest, media_type }, conditions(request.headers()));
            let etag = format!("\"{digest}\"");
            let answer = answer::answer(found, bytes, Some(&etag));
            let body = match method {
                Method::Head => AnswerBody::Text(None),
                Method::Get => {
                    let access = grant.begin(name);
                    running.begin(access.pulse());
                    let reader = whole.reader.clone();
                    let length = answer.length.unwrap_or(0);
                    AnswerBody::Artifact(Transfer::new(reader, access, running, answer.offset, length))
                }
            };
            respond(&whole, &answer, &etag, body)
        }
    }
}

/// What the log calls it.
fn named(asked: &Asked, digest: Digest, note: Option<String>) -> String {
    let name = match asked {
        Asked::Manifest(repository, registry::Reference::Tag(tag)) => format!("{repository}:{tag}"),
        Asked::Manifest(repository, _) | Asked::Blob(repository, _) | Asked::Tags(repository) => {
            format!("{repository}@{digest}")
        }
        Asked::Ping => "/v2/".to_owned(),
    };
    match note {
        Some(note) => format!("{name} ({note})"),
        None => name,
    }
}

struct Whole {
    reader: Reader,
    digest: Digest,
    media_type: String,
}

fn respond(whole: &Whole, answer: &answer::Answer, etag: &str, body: AnswerBody) -> Response<AnswerBody> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let digest = whole.digest.to_string();
    let headers = response.headers_mut();
    let texts = [
        (HeaderName::from_static("docker-content-digest"), Some(digest.as_str())),
        (HeaderName::from_static(VERSION.0), Some(VERSION.1)),
        (ETAG, Some(etag)),
        (ACCEPT_RANGES, Some("bytes")),
        (CONTENT_RANGE, answer.content_range.as_deref()),
        (CONTENT_TYPE, Some(whole.media_type.as_str()).filter(|_| matches!(answer.status, 200 | 206))),
    ];
    for (name, text) in texts {
        if let Some(value) = text.and_then(|text| HeaderValue::from_str(text).ok()) {
            headers.insert(name, value);
        }
    }
    if let Some(length) = answer.length {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
}

fn denied(why: &Denied) -> Response<AnswerBody> {
    let status = StatusCode::from_u16(why.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(status, why.json());
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

fn json(status: StatusCode, text: String) -> Response<AnswerBody> {
    let length = text.len();
    let mut response = Response::new(AnswerBody::Text((length > 0).then(|| Bytes::from(text))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(HeaderName::from_static(VERSION.0), HeaderValue::from_static(VERSION.1));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    response
}
