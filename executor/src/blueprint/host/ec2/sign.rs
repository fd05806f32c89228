//! How requests are signed: AWS Signature Version 4, for a form that is posted to the EC2 API, and for a URL of S3 that whoever has it may
//! put a file at. ◆
//!
//! ```text
//!  canonical request = method, path, query, headers by name, their names, hash of the body
//!  string to sign    = algorithm, time, scope (day/region/service/aws4_request), hash of the canonical request
//!  key               = HMAC over HMAC: "AWS4" + secret ─► day ─► region ─► service ─► "aws4_request"
//! ```
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>,
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html>

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::ssh::files::hex;

/// Who signs.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Which key.
    pub access_key_id: String,
    /// The key.
    pub secret_access_key: String,
    /// Of keys that end: what goes with them.
    pub session_token: Option<String>,
}

/// A request to sign.
#[derive(Clone, Copy, Debug)]
pub struct Signable<'a> {
    /// Host and port, as the `Host` header has them.
    pub host: &'a str,
    /// The path, at least `/`.
    pub path: &'a str,
    /// The form.
    pub body: &'a str,
    /// The time, as `20150830T123600Z`.
    pub at: &'a str,
    /// The region.
    pub region: &'a str,
    /// The service.
    pub service: &'a str,
}

/// The type of the body, which is signed with it.
pub const CONTENT_TYPE: &str = "application/x-www-form-urlencoded";

/// The headers that a signed request carries besides `Host` and `Content-Type`.
pub fn headers(credentials: &Credentials, request: Signable) -> Vec<(&'static str, String)> {
    let Signable { host, path, body, at, region, service } = request;
    let day = at.get(..8).unwrap_or(at);
    let token = credentials.session_token.as_deref();
    let mut signed = vec![("content-type", CONTENT_TYPE), ("host", host), ("x-amz-date", at)];
    signed.extend(token.map(|token| ("x-amz-security-token", token)));
    let lines: String = signed.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    let names = signed.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let canonical = format!("POST\n{path}\n\n{lines}\n{names}\n{}", hash(body));
    let scope = format!("{day}/{region}/{service}/aws4_request");
    let signature = signature(&credentials.secret_access_key, at, &scope, &canonical);
    let id = &credentials.access_key_id;
    let authorization =
        format!("AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}");
    let mut headers = vec![("x-amz-date", at.to_owned()), ("authorization", authorization)];
    headers.extend(token.map(|token| ("x-amz-security-token", token.to_owned())));
    headers
}

/// An object of S3, for one that may use it by a signed URL.
#[derive(Clone, Copy, Debug)]
pub struct SignedUrl<'a> {
    /// `GET`, `PUT`…
    pub verb: &'a str,
    /// Host and port, as the `Host` header has them.
    pub host: &'a str,
    /// The path, percent-encoded.
    pub path: &'a str,
    /// The time, as `20150830T123600Z`.
    pub at: &'a str,
    /// How long it is good; S3 allows a week at most.
    pub for_s: u32,
}

/// The region that signed URLs name: AWS's first, which clients take where nobody says another.
const REGION: &str = "us-east-1";

/// The URL's path and query, signed. What is put there is not a part of it.
pub fn signed_url(credentials: &Credentials, url: SignedUrl) -> String {
    let SignedUrl { verb, host, path, at, for_s } = url;
    let scope = format!("{}/{REGION}/s3/aws4_request", at.get(..8).unwrap_or(at));
    let query = format!(
        "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={}%2F{}&X-Amz-Date={at}&X-Amz-Expires={for_s}&X-Amz-SignedHeaders=host",
        credentials.access_key_id,
        scope.replace('/', "%2F")
    );
    let canonical = format!("{verb}\n{path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD");
    let signature = signature(&credentials.secret_access_key, at, &scope, &canonical);
    format!("{path}?{query}&X-Amz-Signature={signature}")
}

fn signature(secret: &str, at: &str, scope: &str, canonical: &str) -> String {
    let to_sign = format!("AWS4-HMAC-SHA256\n{at}\n{scope}\n{}", hash(canonical));
    let key = scope.split('/').fold(format!("AWS4{secret}").into_bytes(), |key, step| mac(&key, step));
    hex(&mac(&key, &to_sign))
}

fn hash(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `post-x-www-form-urlencoded` of the test suite that AWS publishes for Signature Version 4.
    #[test]
    fn a_form_is_signed_as_the_published_example_has_it() {
        let credentials = Credentials {
            access_key_id: "AKIDEXAMPLE".into(),
            secret_access_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
            session_token: None,
        };
        let request = Signable {
            host: "example.amazonaws.com",
            path: "/",
            body: "Param1=value1",
            at: "20150830T123600Z",
            region: "us-east-1",
            service: "service",
        };
        let headers = headers(&credentials, request);
        assert_eq!(
            headers[1].1,
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date, \
             Signature=ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"
        );
    }
    /// The example of S3's page on signed URLs.
    #[test]
    fn a_url_is_signed_as_the_published_example_has_it() {
        let credentials = Credentials {
            access_key_id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_access_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            session_token: None,
        };
        let url = SignedUrl {
            verb: "GET",
            host: "examplebucket.s3.amazonaws.com",
            path: "/test.txt",
            at: "20130524T000000Z",
            for_s: 86400,
        };
        assert_eq!(
            signed_url(&credentials, url),
            "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
             &X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host\
             &X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
        );
    }
}
