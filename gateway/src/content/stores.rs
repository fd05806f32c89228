//! Stores of objects elsewhere (S3): which of them has a bucket, and the signed URL of one of its objects. ◆
//!
//! ```text
//!  s3://bucket/key ─► the store whose bucket that is ─► https://endpoint/bucket/key?X-Amz-…&X-Amz-Signature=…
//!
//!  canonical request = method, path, query by name, host, the name of the only header, UNSIGNED-PAYLOAD
//!  string to sign    = algorithm, time, scope (day/region/s3/aws4_request), hash of the canonical request
//!  key               = HMAC over HMAC: "AWS4" + secret ─► day ─► region ─► "s3" ─► "aws4_request"
//!
//!  an error's status, and the code in its XML ─► what of the farm file or of the store is to be mended, and whether to try again
//! ```
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html>. Path style: it works with every store, at any host.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

/// How long a signed URL is good: for one request, which is made at once; clocks differ by minutes.
const GOOD_FOR: Duration = Duration::from_secs(900);

/// A store, and what of it is ours to use.
#[derive(Clone, PartialEq, Eq)]
pub struct Store {
    /// Where it is: scheme, host and port.
    pub endpoint: reqwest::Url,
    /// What it calls its region; many take any.
    pub region: String,
    /// The buckets that jobs may read there.
    pub buckets: Vec<String>,
    /// The name of the key.
    pub access_key: String,
    /// What requests are signed with.
    pub secret_key: String,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the store {} with the buckets {}", self.endpoint, self.buckets.join(", "))
    }
}

/// What is done with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// It is read.
    Get,
    /// It is written.
    Put,
}

/// An object in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Where.
    pub store: Store,
    /// In which of its buckets.
    pub bucket: String,
    /// What it is called.
    pub key: String,
}

impl Object {
    /// The URL by which it is read or written, at this time.
    pub fn signed(&self, verb: Verb, now: SystemTime) -> String {
        self.store.signed(verb, &self.bucket, &self.key, now)
    }
}

/// Why a store did not do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It will say the same again, until somebody mends what the sentence names.
    ForGood(String),
    /// It may be otherwise soon.
    ForNow(String),
}

impl Object {
    /// What an answer that is no success means, by its status and what could be read of its body.
    pub fn refused(&self, status: u16, body: &str) -> Refused {
        let Object { store, bucket, key } = self;
        let (endpoint, name) = (&store.endpoint, &store.access_key);
        // The codes: <https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html>, which other stores use as well.
        let code = between(body, "<Code>", "</Code>").unwrap_or_default();
        let why = match code {
            "InvalidAccessKeyId" => format!("knows no key `{name}`; mend `access_key` in the farm file's `s3.stores`"),
            "SignatureDoesNotMatch" => {
                format!(
                    "takes the signature of the key `{name}` for a false one; mend what is in its `secret_key_file`"
                )
            }
            "AuthorizationHeaderMalformed" | "AuthorizationQueryParametersError" => {
                format!("is not in the region `{}`; mend `region` in the farm file's `s3.stores`", store.region)
            }
            "AccessDenied" => format!("lets the key `{name}` not do this in the bucket `{bucket}`; its owner has to"),
            "NoSuchBucket" => format!("has no bucket `{bucket}`; make it there, or name another"),
            "NoSuchKey" => format!("has no object `{key}` in the bucket `{bucket}`"),
            "EntityTooLarge" => format!("takes no object as large as `{key}` in one piece"),
            "RequestTimeTooSkewed" => {
                return Refused::ForNow(format!("{endpoint} has another time than this machine; set the clocks"));
            }
            _ => {
                let said = between(body, "<Message>", "</Message>").map_or_else(String::new, |text| {
                    // A store's sentence is a line; a page of HTML has none.
                    format!(": {}", text.chars().filter(|it| !it.is_control()).take(200).collect::<String>())
                });
                let why = format!("{endpoint} answered {status} {code}{said}").trim_end().to_owned();
                return if matches!(status, 408 | 409 | 425 | 429 | 500..) {
                    Refused::ForNow(why)
                } else {
                    Refused::ForGood(why)
                };
            }
        };
        Refused::ForGood(format!("{endpoint} {why} ({status} {code})"))
    }
}

fn between<'a>(text: &'a str, before: &str, behind: &str) -> Option<&'a str> {
    text.split_once(before)?.1.split_once(behind).map(|(inside, _)| inside)
}

/// What an `s3://` URL means; the key is as people write it, so nothing in it is decoded. `Err`: what to do about it.
pub fn object_of(stores: &[Store], url: &str) -> Result<Object, String> {
    let parts = url.strip_prefix("s3://").and_then(|rest| rest.split_once('/'));
    let parts = parts.filter(|(bucket, key)| !bucket.is_empty() && !key.is_empty());
    let (bucket, key) = parts.ok_or("it is not `s3://bucket/key`")?;
    let known = || stores.iter().flat_map(|store| &store.buckets).cloned().collect::<Vec<_>>().join(", ");
    let found = stores.iter().find(|store| store.buckets.iter().any(|name| name == bucket));
    let object = |store: &Store| Object { store: store.clone(), bucket: bucket.to_owned(), key: key.to_owned() };
    found.map(object).ok_or_else(|| match known() {
        none if none.is_empty() => "this farm knows no store; its administrator names some in `s3.stores`".to_owned(),
        known => format!("no store of this farm has the bucket `{bucket}`; there are: {known}"),
    })
}

impl Store {
    fn signed(&self, verb: Verb, bucket: &str, key: &str, now: SystemTime) -> String {
        let at = stamp(now);
        let day = &at[..8];
        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let path =
            format!("{}/{}/{}", self.endpoint.path().trim_end_matches('/'), encoded(bucket, '/'), encoded(key, '/'));
        // In the order of their names, as the canonical form has them.
        let query = format!(
            "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={}&X-Amz-Date={at}&X-Amz-Expires={}&X-Amz-SignedHeaders=host",
            encoded(&format!("{}/{scope}", self.access_key), '~'),
            GOOD_FOR.as_secs()
        );
        let host = match (self.endpoint.host_str().unwrap_or_default(), self.endpoint.port()) {
            (host, Some(port)) => format!("{host}:{port}"),
            (host, None) => host.to_owned(),
        };
        let method = match verb {
            Verb::Get => "GET",
            Verb::Put => "PUT",
        };
        let canonical = format!("{method}\n{path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD");
        let to_sign = format!("AWS4-HMAC-SHA256\n{at}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
        let start = format!("AWS4{}", self.secret_key).into_bytes();
        let key = [day, &self.region, "s3", "aws4_request"].iter().fold(start, |key, step| mac(&key, step));
        let signature = hex(&mac(&key, &to_sign));
        format!("{}://{host}{path}?{query}&X-Amz-Signature={signature}", self.endpoint.scheme())
    }
}

/// All but the unreserved characters of RFC 3986, 2.3, and one more, in hexadecimal.
fn encoded(text: &str, besides: char) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte.into()),
            byte if char::from(byte) == besides => encoded.push(besides),
            byte => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

/// A time as `20150830T123600Z`.
fn stamp(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (mut days, of_day) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}{month:02}{:02}T{hour:02}{minute:02}{second:02}Z", days + 1)
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(endpoint: &str) -> Store {
        Store {
            endpoint: endpoint.parse().unwrap(),
            region: "us-east-1".into(),
            buckets: vec!["examplebucket".into()],
            access_key: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
        }
    }

    #[test]
    fn a_time_is_written_as_signatures_want_it() {
        let stamp = |seconds| stamp(UNIX_EPOCH + Duration::from_secs(seconds));
        // `date -u -d @SECONDS +%Y%m%dT%H%M%SZ`
        assert_eq!(stamp(0), "19700101T000000Z");
        assert_eq!(stamp(1_369_353_600), "20130524T000000Z");
        assert_eq!(stamp(1_709_210_096), "20240229T123456Z");
        assert_eq!(stamp(4_102_444_799), "20991231T235959Z");
    }

    #[test]
    fn an_object_s_url_is_signed_for_its_method_and_only_for_it() {
        let now = UNIX_EPOCH + Duration::from_secs(1_369_353_600);
        let url = store("http://127.0.0.1:9000").signed(Verb::Get, "examplebucket", "a b/ü.txt", now);
        let path = "http://127.0.0.1:9000/examplebucket/a%20b/%C3%BC.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256\
                    &X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request\
                    &X-Amz-Date=20130524T000000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host&X-Amz-Signature=";
        let signature = |url: &str| url.strip_prefix(path).unwrap_or_else(|| panic!("{url}")).to_owned();
        // What botocore (awscli 1.46.3) makes of the same.
        assert_eq!(signature(&url), "6f0b965d58d57e5271262b897708277f0efc3dd01e9f1ffc26182ff606931d78");
        let url = store("http://127.0.0.1:9000").signed(Verb::Put, "examplebucket", "a b/ü.txt", now);
        assert_eq!(signature(&url), "444d634681e38d53ee1594746d448172d22ef9188e4bc010a419974514a1f973");
    }

    #[test]
    fn what_a_store_refuses_is_told_with_what_to_mend_and_only_a_passing_trouble_is_tried_again() {
        let object = object_of(&[store("https://s3.example.org")], "s3://examplebucket/a/b").unwrap();
        let answer = |status, code: &str| {
            object.refused(status, &format!("<Error><Code>{code}</Code><Message>no\nway</Message></Error>"))
        };
        let for_good = |status, code, words: &str| match answer(status, code) {
            Refused::ForGood(why) => assert_eq!(why, words),
            other => panic!("{other:?}"),
        };
        let key = "AKIAIOSFODNN7EXAMPLE";
        for_good(
            403,
            "InvalidAccessKeyId",
            &format!(
                "https://s3.example.org/ knows no key `{key}`; mend `access_key` in the farm file's `s3.stores` (403 InvalidAccessKeyId)"
            ),
        );
        for_good(
            403,
            "SignatureDoesNotMatch",
            &format!(
                "https://s3.example.org/ takes the signature of the key `{key}` for a false one; mend what is in its `secret_key_file` (403 SignatureDoesNotMatch)"
            ),
        );
        for_good(
            404,
            "NoSuchBucket",
            "https://s3.example.org/ has no bucket `examplebucket`; make it there, or name another (404 NoSuchBucket)",
        );
        for_good(405, "MethodNotAllowed", "https://s3.example.org/ answered 405 MethodNotAllowed: noway");
        assert_eq!(object.refused(404, "<html>"), Refused::ForGood("https://s3.example.org/ answered 404".into()));
        let for_now = "https://s3.example.org/ answered 503 SlowDown: noway".to_owned();
        assert_eq!(answer(503, "SlowDown"), Refused::ForNow(for_now));
        assert!(matches!(answer(403, "RequestTimeTooSkewed"), Refused::ForNow(_)));
    }

    #[test]
    fn a_bucket_that_no_store_has_is_told_with_those_that_there_are() {
        let stores = [store("https://s3.example.org")];
        assert!(object_of(&stores, "s3://examplebucket/x").is_ok());
        let told = |stores: &[Store], url: &str| object_of(stores, url).unwrap_err();
        assert_eq!(
            told(&stores, "s3://other/x"),
            "no store of this farm has the bucket `other`; there are: examplebucket"
        );
        assert_eq!(told(&[], "s3://a/x"), "this farm knows no store; its administrator names some in `s3.stores`");
        assert_eq!(told(&stores, "s3://bucket"), "it is not `s3://bucket/key`");
    }
}
